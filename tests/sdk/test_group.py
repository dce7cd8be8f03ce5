"""The group: whose folder is used and whose is not, who gets in and out, who leads, and what is left behind."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from otel_mlops.sdk import group as group_module
from otel_mlops.sdk import records
from otel_mlops.sdk.files import is_alive
from otel_mlops.sdk.group import FORGETS, RETIRED, Group, group_of
from otel_mlops.sdk.ledger import SEGMENT_BYTES, Ledger
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.sdk.records import SERIES, Record, read_ledger
from otel_mlops.sdk.retired import Retired
from otel_mlops.settings import Settings

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork: run this on Linux or macOS")

A_LONG_TIME_S = 30.0
OpenProvider = Callable[..., MeterProvider]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take its time at the door; where waiting ends is for the tests of it."""
    monkeypatch.setattr(group_module, "_PATIENCE_S", A_LONG_TIME_S)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, patient: None) -> None:
    """Nobody waits at the door for long."""
    monkeypatch.setattr(group_module, "_PATIENCE_S", 0.1)


@pytest.fixture
def group(tmp_path: Path) -> Group:
    """A group in a folder of its own."""
    return Group("house", tmp_path)


@pytest.fixture
def open_ledger() -> Iterator[Callable[..., Ledger]]:
    """Opens ledgers with a record, which are closed after the test."""
    opened: list[Ledger] = []

    def open_one(home: Group, number: float = 1.0, **arguments: Any) -> Ledger:
        made = Ledger(home, **arguments)
        opened.append(made)
        made.append(SERIES, "series", [number])
        return made

    yield open_one
    for each in opened:
        each.close()


def path_of(made: Ledger) -> Path:
    """Where a ledger's file is, which it must have."""
    assert made.path is not None
    return made.path


def user_folder(state: Path) -> Path:
    """The folder of this user's groups."""
    return state / f"otel_mlops-{os.getuid()}"


class Other:
    """Another process: it runs the steps of a program one after the other, and says when each is done."""

    def __init__(self, tmp_path: Path, program: str) -> None:
        setup = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from otel_mlops.sdk import group\n"
            "from otel_mlops.sdk.group import Group\n"
            "from otel_mlops.sdk.ledger import Ledger\n"
            "from otel_mlops.sdk.records import SERIES\n"
            "def say(*what):\n"
            "    print(*what, flush=True)\n"
            "    sys.stdin.readline()\n"
            f"group._PATIENCE_S = {A_LONG_TIME_S}\n"
            f"group = Group('house', Path({str(tmp_path)!r}))\n"
            "ledger = Ledger(group)\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", setup + program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hear(self) -> str:
        """What it says next."""
        assert self.process.stdout is not None
        arrivals = select.poll()
        arrivals.register(self.process.stdout, select.POLLIN)
        assert arrivals.poll(A_LONG_TIME_S * 1000), "the other process hangs"
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        """Let it do the next step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait(A_LONG_TIME_S)

    def close(self) -> None:
        """End it, if it has not ended, and let go of its pipes."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def run_other(tmp_path: Path) -> Iterator[Callable[[str], Other]]:
    """Runs programs in other processes, which are killed at the end."""
    others: list[Other] = []

    def run_one(program: str) -> Other:
        others.append(Other(tmp_path, program))
        return others[-1]

    yield run_one
    for each in others:
        each.close()


JOINS = "ledger.append(SERIES, 'other', [5.0])\nsay(ledger.path)\n"
LEADS = "ledger.append(SERIES, 'other', [5.0])\nsay(group.try_to_lead())\n"
HOLDS_THE_DOOR = "with group._door():\n    say('inside')\nsay('outside')\n"


# --- Whose folder it is -------------------------------------------------------------------------------------


def test_the_folder_is_the_users_alone(tmp_path: Path, open_ledger: Any):
    """The folders are made for this user, closed to others, and are the same the next time."""
    group = Group("house", tmp_path / "state" / "deeper")
    made = open_ledger(group)
    above = user_folder(tmp_path / "state" / "deeper")
    assert path_of(made).parent == group.folder == above / "house"
    assert [each.stat().st_mode & 0o777 for each in (above, group.folder)] == [0o700, 0o700]
    assert {each.stat().st_mode & 0o777 for each in group.folder.iterdir()} == {0o600}
    assert path_of(open_ledger(Group("house", tmp_path / "state" / "deeper"))).parent == group.folder


@pytest.mark.parametrize("linked", ["otel_mlops", "house"])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_a_folders_place_is_refused(tmp_path: Path, group: Group, linked: str, dangling: bool):
    """A link in the place of the folder or of the one above it, dangling or not, is not followed."""
    elsewhere = tmp_path / "elsewhere"
    if not dangling:
        elsewhere.mkdir(mode=0o700)
    if linked == "house":
        group.folder.parent.mkdir(mode=0o700)
    (group.folder if linked == "house" else group.folder.parent).symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"must be a directory of user|No such file|exists"):
        group.join(SEGMENT_BYTES)
    assert not elsewhere.exists() if dangling else list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["door", "0-0.ledger", "page-0.ledger"])
def test_a_link_in_a_files_place_is_refused(tmp_path: Path, group: Group, name: str):
    """A link at the door or under a ledger's name is not followed, and is one fault; the numbers are kept."""
    group.folder.mkdir(mode=0o700, parents=True)
    group.folder.parent.chmod(0o700)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (group.folder / name).symlink_to(elsewhere)
    faults: list[str] = []
    made = Ledger(group, on_fault=faults.append)
    cells = made.append(SERIES, 1, [1.0]).cells
    made.retry()
    assert (cells[0], made.path, elsewhere.read_text()) == (1.0, None, "mine")
    (fault,) = faults
    assert str(group.folder / name) in fault
    (group.folder / name).unlink()
    assert made.retry()
    assert path_of(made).parent == group.folder
    made.close()


def test_a_link_in_the_leads_place_is_refused(tmp_path: Path, group: Group, open_ledger: Any):
    """Nobody leads by a link, and where it points nothing is made."""
    open_ledger(group)
    (group.folder / "lead").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        group.try_to_lead()
    assert not (tmp_path / "elsewhere").exists()


def test_somebody_elses_folder_is_refused(tmp_path: Path, group: Group, monkeypatch: pytest.MonkeyPatch):
    """A folder in this user's name that belongs to another is not used."""
    (tmp_path / "otel_mlops-4294967").mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: 4294967)
    with pytest.raises(PermissionError, match="of user 4294967 that nobody else can open"):
        group.join(SEGMENT_BYTES)


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777, 0o710])
@pytest.mark.parametrize("above", [False, True])
def test_a_folder_that_others_can_open_is_refused(group: Group, mode: int, above: bool):
    """A folder that the user's group or the world may enter or list is not used, nor one within such a folder."""
    group.folder.parent.mkdir(mode=0o700)
    group.folder.mkdir(mode=0o700)
    (group.folder.parent if above else group.folder).chmod(mode)
    with pytest.raises(PermissionError, match="that nobody else can open"):
        group.join(SEGMENT_BYTES)


@pytest.mark.parametrize("above", [False, True])
def test_a_file_in_a_folders_place_is_refused(tmp_path: Path, group: Group, above: bool):
    """A file of that name is one fault of the ledger, which goes on in private memory."""
    if above:
        group.folder.parent.touch(0o600)
    else:
        group.folder.parent.mkdir(mode=0o700)
        group.folder.touch(0o600)
    faults: list[str] = []
    made = Ledger(group, on_fault=faults.append)
    made.append(SERIES, 1, 1).cells[0] = 1.0
    made.retry()
    (fault,) = faults
    assert "must be a directory of user" in fault
    assert made.path is None


def test_a_state_folder_that_cannot_be_made_is_one_fault(tmp_path: Path):
    """Where nothing can be written the numbers lie in private memory and it is said once, naming the path."""
    (tmp_path / "file").write_text("")
    faults: list[str] = []
    made = Ledger(Group("house", tmp_path / "file" / "state"), on_fault=faults.append)
    cells = [made.append(SERIES, number, 3000).cells for number in range(10)]
    for each in cells:
        each[0] += 1.0
    assert not made.retry()
    assert [each[0] for each in cells] == [1.0] * 10
    assert len(faults) == 1
    assert str(tmp_path / "file") in faults[0]


def test_without_shared_memory_the_folder_is_among_the_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where /dev/shm is missing or closed the folder is made where temporary files are."""
    monkeypatch.setattr(group_module, "_SHARED_MEMORY", tmp_path / "nothing")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert Group("house").folder == user_folder(tmp_path) / "house"


def test_shared_memory_is_taken_where_there_is_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder lies in shared memory unless another is named."""
    monkeypatch.setattr(group_module, "_SHARED_MEMORY", tmp_path)
    assert Group("house").folder == user_folder(tmp_path) / "house"
    assert Group("house", tmp_path / "state").folder == user_folder(tmp_path / "state") / "house"


# --- Who shares a page --------------------------------------------------------------------------------------


def test_workers_of_one_service_host_and_port_share_a_group(tmp_path: Path):
    """Whatever else differs: the same service, host and port are one group."""
    one = group_of(Settings(service_name="a", port=8001, state_dir=tmp_path))
    other = group_of(Settings(service_name="a", port=8001, state_dir=tmp_path, max_series=5), inherited_lead=-1)
    assert one is not None
    assert other is not None
    assert one.folder == other.folder
    assert one.folder.parent == user_folder(tmp_path)


@pytest.mark.parametrize("different", [{"port": 8002}, {"service_name": "b"}, {"host": "0.0.0.0"}, {"group": "mine"}])
def test_another_service_host_or_port_is_another_group(tmp_path: Path, different: dict[str, Any]):
    """One service's numbers never stand on another's page."""
    one = group_of(Settings(service_name="a", port=8001, state_dir=tmp_path))
    other = group_of(Settings(**{"service_name": "a", "port": 8001, "state_dir": tmp_path, **different}))
    assert one is not None
    assert other is not None
    assert one.folder != other.folder


def test_another_network_or_user_is_another_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Containers that share memory have a port each, and users do not share at all."""
    settings = Settings(service_name="a", port=8001, state_dir=tmp_path)

    def folder() -> Path:
        found = group_of(settings)
        assert found is not None
        return found.folder

    own = folder()
    monkeypatch.setattr(group_module, "namespace", lambda _: 1)
    elsewhere = folder()
    monkeypatch.setattr(os, "getuid", lambda: 4294967)
    assert len({own, elsewhere, folder()}) == 3


def test_a_groups_name_stands_for_all_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """OTEL_MLOPS_GROUP alone says who belongs together: across ports, services and networks."""
    one = group_of(Settings.from_env({"OTEL_MLOPS_GROUP": "mine", "OTEL_MLOPS_STATE_DIR": str(tmp_path)}))
    monkeypatch.setattr(group_module, "namespace", lambda _: 1)
    other = group_of(Settings(service_name="b", port=9000, group="mine", state_dir=tmp_path))
    third = group_of(Settings(service_name="b", port=9000, group="Mine", state_dir=tmp_path))
    assert one is not None
    assert other is not None
    assert third is not None
    assert one.folder == other.folder != third.folder


def test_a_name_is_no_way_out_of_the_folder(tmp_path: Path):
    """Whatever a service or a group is called, its folder is one below the user's."""
    for name in ("../../etc", "a/b", "..", ".", "x" * 500, "ü"):
        for settings in (Settings(service_name=name, state_dir=tmp_path), Settings(group=name, state_dir=tmp_path)):
            found = group_of(settings)
            assert found is not None
            assert found.folder.resolve().parent == user_folder(tmp_path).resolve()
            assert len(found.folder.name) < 100


# --- Joining and leaving ------------------------------------------------------------------------------------


def test_workers_are_numbered_from_nothing_and_numbers_come_back(tmp_path: Path, open_ledger: Any):
    """A worker gets the smallest number that no living one has, and the file has it in its name."""
    groups = [Group("house", tmp_path) for _ in range(4)]
    ledgers = [open_ledger(each) for each in groups[:3]]
    assert [each.number for each in groups[:3]] == [0, 1, 2]
    assert [path_of(each).name.partition("-")[0] for each in ledgers] == ["0", "1", "2"]
    ledgers[1].close()
    open_ledger(groups[3])
    assert groups[3].number == 1
    assert len(groups[0].ledgers()) == 4  # what the one has counted that left stays


def test_a_killed_workers_number_is_used_again(tmp_path: Path, group: Group, run_other: Any, open_ledger: Any):
    """The dead have no number, and their numbers stay while anybody lives."""
    other = run_other(JOINS)
    path = Path(other.hear())
    open_ledger(group)
    assert group.number == 1
    other.kill()
    third = Group("house", tmp_path)
    open_ledger(third)
    assert third.number == 0
    assert read_ledger(path) == [Record(SERIES, "other", [5.0])]


def test_the_process_of_the_page_has_no_number(tmp_path: Path, open_ledger: Any):
    """It lives in the group as others do, and takes no worker's number."""
    page = Group("house", tmp_path, inherited_lead=-1)
    worker = Group("house", tmp_path)
    of_page = open_ledger(page)
    open_ledger(worker)
    assert (page.number, worker.number) == (None, 0)
    assert path_of(of_page).name.startswith("page-")


def test_the_first_one_in_clears_what_the_dead_have_left(group: Group, run_other: Any, open_ledger: Any):
    """Where no ledger's worker lives everything goes, half-made files too, but for the two locks."""
    other = run_other("group.try_to_lead()\n" + JOINS)
    other.hear()
    for name in (RETIRED, FORGETS, "midnight", "0-12.new", "retired.new"):
        (group.folder / name).write_text("[]")
    other.kill()
    made = open_ledger(group)
    assert {each.name for each in group.folder.iterdir()} == {"door", "lead", path_of(made).name}
    assert group.number == 0


def test_who_joins_the_living_clears_half_made_ledgers_alone(tmp_path: Path, group: Group, open_ledger: Any):
    """A ledger that was not finished never will be; what the leader is just writing is left alone."""
    first = open_ledger(group)
    for name in (RETIRED, FORGETS, "3-12.new", "page-12.new", "retired.new", "forgets.new"):
        (group.folder / name).write_text("[]")
    second = open_ledger(Group("house", tmp_path))
    kept = {"door", RETIRED, FORGETS, "retired.new", "forgets.new"}
    assert {each.name for each in group.folder.iterdir()} == {*kept, path_of(first).name, path_of(second).name}


def test_who_joins_has_nothing_to_do_with_what_was_forgotten_before(tmp_path: Path, group: Group, open_ledger: Any):
    """A new worker's ledger says that it has followed the calls of `forget` up to the last one."""
    first = open_ledger(group)
    assert [group.tell_to_forget({"model": "a"}), group.tell_to_forget({"model": "b"})] == [1, 2]
    second = open_ledger(Group("house", tmp_path))
    assert [made.about[1] for made in (first, second)] == [0.0, 2.0]
    assert group.forgets() == [(1, {"model": "a"}), (2, {"model": "b"})]


def test_the_last_one_out_leaves_nothing(tmp_path: Path, open_ledger: Any):
    """Whoever leaves others behind is told that the numbers stay; the last one is not, and the folder is gone."""
    groups = [Group("house", tmp_path) for _ in range(3)]
    ledgers = [open_ledger(each) for each in groups]
    groups[0].try_to_lead()
    groups[0].keep(RETIRED, {})
    told: list[int] = []
    for number, each in enumerate(ledgers):
        each.leave(lambda number=number: told.append(number))
    groups[0].give_up_lead()
    assert told == [0, 1]
    assert not groups[0].folder.exists()
    assert list(user_folder(tmp_path).iterdir()) == []


def test_who_leaves_counts_as_living_until_the_others_have_its_numbers(tmp_path: Path, group: Group, open_ledger: Any):
    """When a worker is told that its numbers stay, its ledger is locked still: nobody folds it half-way."""
    open_ledger(Group("house", tmp_path))
    leaving = open_ledger(group)
    path, seen = path_of(leaving), []
    leaving.leave(lambda: seen.append((is_alive(path), leaving.path)))
    assert seen == [(True, path)]
    assert not is_alive(path)
    assert path.exists()


def test_two_processes_join_and_leave_at_once(tmp_path: Path, group: Group, run_other: Any):
    """Of two that come and go all the time, each finds its own file there, and nothing is left at the end."""
    program = (
        "for number in range(60):\n"
        "    ledger.rejoin()\n"
        "    ledger.append(SERIES, 'other', [5.0])\n"
        "    assert ledger.path.exists(), ledger.fault\n"
        "    assert ledger.fault is None, ledger.fault\n"
        "    ledger.leave()\n"
        "say('done')\n"
    )
    others = [run_other(program), run_other(program)]
    assert [each.hear() for each in others] == ["done", "done"]
    left = group.ledgers()
    assert not any(map(is_alive, left))
    assert left == []
    assert not group.folder.exists()


# --- The door -----------------------------------------------------------------------------------------------


def test_a_killed_holder_leaves_the_door_open(group: Group, run_other: Any):
    """Whoever dies inside the door keeps nobody out."""
    other = run_other(HOLDS_THE_DOOR)
    assert other.hear() == "inside"
    other.kill()
    made = Ledger(group)
    made.append(SERIES, 1, 1)
    assert made.fault is None
    made.close()


def test_a_stopped_holder_holds_nobody_up_and_loses_nothing(
    group: Group, open_provider: OpenProvider, run_other: Any, impatient: None, monkeypatch: pytest.MonkeyPatch
):
    """While the door stays shut numbers go to private memory, soon; when it opens all of them move into the file."""
    provider = open_provider(ledger=Ledger(group), group=group)
    meter = provider.get_meter("m")
    counter, histogram = meter.create_counter("c"), meter.create_histogram("h")
    gauge = meter.create_gauge("g")
    other = run_other(HOLDS_THE_DOOR)
    assert other.hear() == "inside"
    other.process.send_signal(signal.SIGSTOP)
    began_s = time.monotonic()
    counter.add(5, {"a": "1"})
    assert time.monotonic() - began_s < A_LONG_TIME_S / 3
    assert provider.ledger.path is None
    assert "holds the door" in str(provider.ledger.fault)
    with monkeypatch.context() as patched:
        patched.setattr(group, "join", lambda _: pytest.fail("a record goes to the door a second time"))
        counter.add(2, {"a": "2"})
        histogram.record(3.0)
        gauge.set(7.0)
    provider.settle()
    assert provider.ledger.path is None
    other.process.send_signal(signal.SIGCONT)
    other.go_on()
    assert other.hear() == "outside"
    monkeypatch.setattr(group_module, "_PATIENCE_S", A_LONG_TIME_S)
    provider.settle()
    assert provider.ledger.fault is None
    counter.add(1, {"a": "1"})
    found = [each.cells for each in read_ledger(path_of(provider.ledger)) if each.kind == SERIES]
    assert [cells for cells in found if len(cells) == 1] == [[6.0], [2.0]]
    assert [cells[-1] for cells in found if len(cells) > 2] == [3.0]
    assert [cells[0] for cells in found if len(cells) == 2] == [7.0]


def test_a_door_that_was_removed_meanwhile_is_no_door(group: Group, monkeypatch: pytest.MonkeyPatch):
    """Who waited at a door that the last one out has removed goes to the one that is there."""
    group.folder.parent.mkdir(mode=0o700)
    group.folder.mkdir(mode=0o700)
    locked, removed = group_module._locked, []

    def remove_it_first(file: int, how: int) -> bool:
        if not removed:
            removed.append(os.fstat(file).st_ino)
            group._remove()
        return locked(file, how)

    monkeypatch.setattr(group_module, "_locked", remove_it_first)
    with group._door():
        inside = (group.folder / "door").stat().st_ino
        with (group.folder / "door").open() as found, pytest.raises(BlockingIOError):
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert removed
    assert inside == (group.folder / "door").stat().st_ino


def test_the_door_goes_last(group: Group, open_ledger: Any, monkeypatch: pytest.MonkeyPatch):
    """Nobody can come in while the last one out removes files whose names the next ones use."""
    made = open_ledger(group)
    group.try_to_lead()
    group.keep(RETIRED, {})
    gone: list[str] = []
    unlink = Path.unlink

    def watched(self: Path, missing_ok: bool = False) -> None:
        gone.append(self.name)
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    made.close()
    group.give_up_lead()
    assert gone[-1] == "door"
    assert sorted(gone[:-1]) == sorted(["lead", RETIRED, gone[[".ledger" in name for name in gone].index(True)]])


def test_a_child_forked_inside_the_door_does_not_keep_it_shut(tmp_path: Path, group: Group):
    """The door opens when its holder comes out, though a child that was forked meanwhile has the file open."""
    hold, release = os.pipe()
    with group._door():
        pid = os.fork()
        if pid == 0:
            os.close(release)
            os.read(hold, 1)
            os._exit(0)
    try:
        with Group("house", tmp_path)._door():
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    finally:
        os.close(release)
        os.waitpid(pid, 0)
        os.close(hold)


def test_a_signal_handler_may_record_inside_the_door(tmp_path: Path, group: Group, monkeypatch: pytest.MonkeyPatch):
    """A record that a handler makes while its own thread joins waits for nothing, and there is one ledger."""
    made = Ledger(group)
    nested: list[memoryview[float]] = []
    create = group_module.create

    def interrupted(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(group_module, "create", create)
        nested.append(made.append(SERIES, "handler", [2.0]).cells)
        return create(*given, **named)

    monkeypatch.setattr(group_module, "create", interrupted)
    made.append(SERIES, "outer", [1.0])
    assert made.fault is None
    assert group.ledgers() == [path_of(made)]
    assert sorted(each.cells for each in read_ledger(path_of(made))) == [[1.0], [2.0]]
    assert made.about[0] == 2.0
    assert path_of(made).name.startswith(f"{group.number}-")
    made.close()
    assert not group.folder.exists()


def test_forgets_of_two_threads_have_a_number_each(tmp_path: Path, group: Group, open_ledger: Any):
    """Calls at once, of this process and of others, are numbered one after the other and none is lost."""
    open_ledger(group)
    numbers: list[int] = []

    def tell(which: int) -> None:
        mine = Group("house", tmp_path)
        numbers.extend(mine.tell_to_forget({"thread": f"{which}.{each}"}) for each in range(10))

    threads = [threading.Thread(target=tell, args=(which,)) for which in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(A_LONG_TIME_S)
    assert sorted(numbers) == list(range(1, 31))
    assert [number for number, _ in group.forgets()] == list(range(1, 31))


def tell(group: Group, *each: int) -> list[int]:
    """Have everybody forget, and return the numbers of the calls that are kept then."""
    for number in each:
        group.tell_to_forget({"n": str(number)})
    return [number for number, _ in group.forgets()]


def test_what_is_forgotten_again_is_listed_once(group: Group, open_ledger: Any):
    """Of calls with the same labels the last one is kept."""
    open_ledger(group)
    assert tell(group, 7, 8, 7) == [2, 3]
    assert group.forgets() == [(2, {"n": "8"}), (3, {"n": "7"})]


def test_forgets_that_everybody_has_followed_are_not_kept_for_ever(
    tmp_path: Path, group: Group, open_ledger: Any, monkeypatch: pytest.MonkeyPatch
):
    """The last ones are kept, under numbers that go on, and those that a ledger or the retired have yet to follow."""
    monkeypatch.setattr(group_module, "_MANY_FORGETS", 3)
    first, second = open_ledger(group), open_ledger(Group("house", tmp_path))
    assert tell(group, 1, 2, 3, 4, 5) == [1, 2, 3, 4, 5]
    first.about[records.FORGETS], second.about[records.FORGETS] = 5.0, 2.0
    assert tell(group, 6) == [3, 4, 5, 6]
    retired = Retired()
    retired.forgets = 4
    retired.save(group.folder / RETIRED)
    second.about[records.FORGETS] = 6.0
    retired.names.append("x")
    assert tell(group, 7) == [5, 6, 7]
    retired.forgets = 0
    retired.save(group.folder / RETIRED)
    assert tell(group, 8) == [5, 6, 7, 8]


@pytest.mark.parametrize(("name", "content"), [("x.ledger", b""), ("x.ledger", None), (RETIRED, b"x"), (RETIRED, None)])
def test_what_cannot_be_read_keeps_all_forgets(
    group: Group, open_ledger: Any, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None
):
    """A strange file in the folder takes nothing off the list, and stops nobody from forgetting."""
    monkeypatch.setattr(group_module, "_MANY_FORGETS", 1)
    made = open_ledger(group)
    made.about[records.FORGETS] = 100.0
    assert tell(group, 1, 2) == [2]
    path = group.folder / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert tell(group, 3, 4) == [2, 3, 4]
    if content is None:
        path.rmdir()
    else:
        path.unlink()
    assert tell(group, 5) == [5]


@pytest.mark.parametrize("is_carried_out", [False, True])
def test_no_more_than_so_many_forgets_are_kept(
    group: Group,
    open_ledger: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_carried_out: bool,
):
    """Where somebody never follows, the oldest go at last; it is said once, unless they were carried out there."""
    monkeypatch.setattr(group_module, "_MANY_FORGETS", 3)
    monkeypatch.setattr(group_module, "_MOST_FORGETS", 5)
    made = open_ledger(group)
    made.about[records.ZEROED] = 100.0 if is_carried_out else 0.0
    assert tell(group, *range(9)) == [5, 6, 7, 8, 9]
    told = [each for each in caplog.records if "do not follow" in each.getMessage()]
    assert len(told) == (0 if is_carried_out else 1)


# --- Leading ------------------------------------------------------------------------------------------------


def test_one_leads_and_its_death_frees_the_lead_at_once(tmp_path: Path, group: Group, run_other: Any, open_ledger: Any):
    """While one leads no other does; the kernel gives a killed leader's lead to the next who asks."""
    other = run_other(LEADS)
    assert other.hear() == "True"
    open_ledger(group)
    assert not group.try_to_lead()
    assert not Group("house", tmp_path).try_to_lead()
    other.kill()
    assert group.try_to_lead()
    assert group.try_to_lead()
    assert os.fstat(group.lead_file).st_ino == (group.folder / "lead").stat().st_ino


def test_a_lead_that_is_given_up_is_anothers(tmp_path: Path, group: Group, open_ledger: Any):
    """Giving up frees the lead, and giving up again changes nothing."""
    open_ledger(group)
    second = Group("house", tmp_path)
    assert (group.try_to_lead(), second.try_to_lead()) == (True, False)
    group.give_up_lead()
    group.give_up_lead()
    assert (second.try_to_lead(), group.try_to_lead()) == (True, False)
    second.give_up_lead()


def test_the_lead_of_a_removed_folder_is_no_lead(tmp_path: Path, group: Group, open_ledger: Any):
    """When the folder is gone the lead is taken anew, in the new one, by one alone."""
    import shutil

    open_ledger(group)
    second = Group("house", tmp_path)
    assert group.try_to_lead()
    shutil.rmtree(group.folder)
    assert second.try_to_lead()
    assert not group.try_to_lead()
    second.give_up_lead()
    assert group.try_to_lead()
    group.give_up_lead()


def test_a_child_has_neither_lead_nor_door_nor_ledger(
    tmp_path: Path, group: Group, open_ledger: Any, open_provider: OpenProvider
):
    """A forked child leads nothing; its parent's lead and ledger outlive the child, and do not outlive the parent."""
    provider = open_provider(ledger=Ledger(group), group=group)
    provider.get_meter("m").create_counter("c").add(1)
    assert group.try_to_lead()
    path = path_of(provider.ledger)
    ready, tell = os.pipe()
    hold, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            group.after_fork()
            said = [group.number, group.lead_file, provider.ledger.path, group.try_to_lead()]
            with group._door():
                said.append("inside")
            os.write(tell, repr(said).encode())
            os.close(release)
            os.read(hold, 1)
        finally:
            os._exit(0)
    try:
        os.close(hold)
        assert os.read(ready, 4096).decode() == repr([None, -1, None, False, "inside"])
        second = Group("house", tmp_path)
        assert not second.try_to_lead()
        assert is_alive(path)
        open_ledger(Group("house", tmp_path))
        provider.ledger.leave()
        group.give_up_lead()
        # The child lives, and holds none of them.
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        assert not is_alive(path)
        assert second.try_to_lead()
        second.give_up_lead()
    finally:
        os.close(release)
        os.waitpid(pid, 0)
        for each in (ready, tell):
            os.close(each)


def test_a_childs_end_leaves_the_parents_lead(tmp_path: Path, group: Group, open_ledger: Any):
    """A child that ends, with or without a word, takes nothing from its parent."""
    made = open_ledger(group)
    assert group.try_to_lead()
    for says_so in (True, False):
        pid = os.fork()
        if pid == 0:
            if says_so:
                group.after_fork()
                made.abandon()
            os._exit(0)
        os.waitpid(pid, 0)
        assert not Group("house", tmp_path).try_to_lead()
        assert is_alive(path_of(made))
    assert group.try_to_lead()
    group.give_up_lead()


# --- Neighbours ---------------------------------------------------------------------------------------------


def test_groups_that_died_are_swept_and_the_living_are_not(tmp_path: Path, run_other: Any, open_ledger: Any):
    """Folders whose workers were all killed go; those of the living, one's own, and what is no group's stay."""
    other = run_other(JOINS)
    other.hear()
    dead = Group("house", tmp_path).folder
    mine, living = Group("mine", tmp_path), Group("living", tmp_path)
    open_ledger(mine)
    open_ledger(living)
    strange = dead.parent / "strange"
    strange.mkdir()
    (strange / "file").write_text("")
    (dead.parent / "file").write_text("")
    mine.sweep_neighbours()
    assert dead.exists(), "it lives"
    other.kill()
    mine.sweep_neighbours()
    assert {each.name for each in dead.parent.iterdir()} == {"mine", "living", "strange", "file"}
    assert (strange / "file").exists()
    assert len(living.ledgers()) == 1


def test_a_neighbour_whose_door_is_held_is_left(tmp_path: Path, run_other: Any, open_ledger: Any, impatient: None):
    """A group that somebody is just joining is not swept, and nobody waits for it."""
    other = run_other(HOLDS_THE_DOOR)
    assert other.hear() == "inside"
    mine = Group("mine", tmp_path)
    open_ledger(mine)
    mine.sweep_neighbours()
    assert Group("house", tmp_path).folder.exists()
    other.go_on()
    assert other.hear() == "outside"
    mine.sweep_neighbours()
    assert not Group("house", tmp_path).folder.exists()


# --- What the group knows -----------------------------------------------------------------------------------


def test_what_is_kept_is_found_by_all(tmp_path: Path, group: Group, open_ledger: Any):
    """What one keeps under a name another loads; what is not there, or no JSON, is what the caller says."""
    open_ledger(group)
    other = Group("house", tmp_path)
    assert other.load("midnight", "nothing") == "nothing"
    group.keep("midnight", {"day": [1, 2.5]})
    assert other.load("midnight") == {"day": [1, 2.5]}
    (group.folder / "midnight").write_text("{half")
    assert other.load("midnight", "nothing") == "nothing"


def test_nothing_is_kept_where_nobody_has_joined(group: Group):
    """Keeping makes no folder: it is an error that the caller is told."""
    with pytest.raises(OSError, match="No such file"):
        group.keep("midnight", {})
    assert group.load("midnight") is None
    assert not group.folder.parent.exists()


def test_numbers_and_totals_hold_through_kills(tmp_path: Path, group: Group, run_other: Any, open_ledger: Any):
    """Workers that are killed one after the other leave a ledger each, while one lives, and no number twice at once."""
    open_ledger(group)
    paths = []
    for _ in range(3):
        other = run_other(JOINS)
        paths.append(Path(other.hear()))
        other.kill()
    assert all(one != other for one, other in pairwise(paths))
    assert [path.name.partition("-")[0] for path in paths] == ["1", "1", "1"]
    assert [read_ledger(path)[0].cells for path in paths] == [[5.0]] * 3
