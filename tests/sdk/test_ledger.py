"""The ledger: what is written is there whatever happens to the writer, and nothing else ever is."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_mlops.sdk import group, ledger
from otel_mlops.sdk.group import open_folder
from otel_mlops.sdk.ledger import EXEMPLARS, SEGMENT_BYTES, SERIES, STREAM, Ledger, Record, is_alive, read_ledger


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger in a folder of its own."""
    made = Ledger(lambda: tmp_path)
    yield made
    made.close()


def path_of(made: Ledger) -> Path:
    """Where a ledger's file is, which it must have."""
    assert made.path is not None
    return made.path


def plain(value: Any) -> Any:
    """A description as it comes back: JSON has no tuples."""
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value


def typed(value: Any) -> Any:
    """A value with the types of everything in it, so that 1, 1.0 and True differ."""
    if isinstance(value, list):
        return [typed(each) for each in value]
    if isinstance(value, dict):
        return {key: typed(each) for key, each in value.items()}
    return type(value), value


@contextmanager
def forked(child: Callable[[], None]) -> Iterator[int]:
    """A forked child; it is killed and waited for at the end, whatever happens."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            assert not Path(f"/proc/{pid}").exists()  # the test has waited for it already


# --- Writing and reading ------------------------------------------------------------------------------------

WRITES_AND_DIES = """
import os, signal, sys
from pathlib import Path
from otel_mlops.sdk.ledger import SERIES, Ledger
made = Ledger(lambda: Path(sys.argv[1]))
cells = made.append(SERIES, ["predictions", 7], 2).cells
cells[0] += 41.5
cells[1] = -1e300
print(made.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_has_written_is_there(tmp_path: Path):
    """Cells written by a process that died by SIGKILL are read by another one, which sees that it is dead."""
    died = subprocess.run(
        [sys.executable, "-c", WRITES_AND_DIES, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    path = Path(died.stdout.strip())
    assert read_ledger(path) == [Record(SERIES, ["predictions", 7], [41.5, -1e300])]
    assert not is_alive(path)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
DESCRIPTIONS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(DESCRIPTIONS, st.integers(0, 40)), min_size=1, max_size=5))
def test_descriptions_come_back_with_their_types(records: list[tuple[Any, int]]):
    """What a record describes is read as it was written, types included; tuples come back as lists."""
    with tempfile.TemporaryDirectory() as folder:
        made = Ledger(lambda: Path(folder))
        try:
            for description, cells in records:
                made.append(SERIES, description, cells)
            found = read_ledger(path_of(made))
        finally:
            made.close()
    assert [typed(each.description) for each in found] == [typed(plain(each)) for each, _ in records]
    assert [each.cells for each in found] == [[0.0] * cells for _, cells in records]


@pytest.mark.parametrize("value", [{"__bytes__": "no base64"}, {"__bytes__": 5}, {"__bytes__": "", "more": 1}])
def test_a_mapping_that_looks_like_encoded_bytes_breaks_nothing(opened: Ledger, value: Any):
    """Somebody's own mapping with the key that bytes are kept under is read as it is."""
    opened.append(SERIES, [value], 1)
    assert read_ledger(path_of(opened))[0].description == [value]


def test_it_grows_without_moving_a_cell(opened: Ledger):
    """Cells handed out in the first segment are still those of the file after many more segments."""
    first = opened.append(STREAM, "first", 3).cells
    first[1] = 1.0
    every = [opened.append(SERIES, ["series", number], 40).cells for number in range(1000)]
    for number, cells in enumerate(every):
        cells[39] = number
    first[1] += 1.0
    path = path_of(opened)
    found = read_ledger(path)
    assert found[0] == Record(STREAM, "first", [0.0, 2.0, 0.0])
    assert [(each.description[1], each.cells[39]) for each in found[1:]] == [(n, n) for n in range(1000)]
    assert path.stat().st_size == opened.total_bytes > 4 * SEGMENT_BYTES
    assert opened.fault is None


def test_a_record_may_be_bigger_than_a_segment(opened: Ledger):
    """A record that fits in no segment of the usual length gets one of its own length, and others go on."""
    opened.append(SERIES, "small", 1)
    big = opened.append(SERIES, "x" * SEGMENT_BYTES, 20_000).cells
    big[19_999] = 5.0
    opened.append(SERIES, "after", 1).cells[0] = 6.0
    found = read_ledger(path_of(opened))
    assert [(len(each.description), each.cells[-1]) for each in found] == [(5, 0.0), (SEGMENT_BYTES, 5.0), (5, 6.0)]


def test_a_forgotten_record_is_read_no_more(opened: Ledger):
    """Forgetting a record leaves those before and behind it."""
    places = [opened.append(SERIES, number, 1) for number in range(3)]
    places[2].cells[0] = 2.0
    opened.forget(places[1])
    places[1].cells[0] += 1.0
    assert read_ledger(path_of(opened)) == [Record(SERIES, 0, [0.0]), Record(SERIES, 2, [2.0])]


def test_threads_that_append_at_once_get_cells_of_their_own(opened: Ledger):
    """Records of eight threads all stand in the file, and no two share a cell."""

    def append(thread: int) -> None:
        for number in range(200):
            opened.append(SERIES, [thread, number], 3).cells[2] = thread * 1000 + number

    threads = [threading.Thread(target=append, args=(thread,)) for thread in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    found = read_ledger(path_of(opened))
    assert sorted(each.description for each in found) == [[t, n] for t in range(8) for n in range(200)]
    assert all(each.cells == [0.0, 0.0, each.description[0] * 1000 + each.description[1]] for each in found)


def test_whoever_reads_while_it_is_written_sees_a_beginning(opened: Ledger):
    """A reader beside the writer sees the records up to some point, and all whose forgetting it does not see."""
    opened.append(SERIES, -1, 1)
    path, written = path_of(opened), threading.Event()

    def write() -> None:
        for number in range(1500):
            place = opened.append(SERIES, number, 5)
            if number % 3 == 0:
                opened.forget(place)
        written.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = 0
    while not written.is_set():
        numbers = [each.description for each in read_ledger(path)]
        assert numbers == sorted(set(numbers))
        assert all(n in numbers for n in range(max(numbers)) if n % 3), "a record behind a forgotten one is missing"
        assert len(numbers) >= seen
        seen = len(numbers) - 1  # the last may be forgotten by the next time
    thread.join()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers: run this on Linux or macOS")
def test_a_signal_handler_may_append_in_the_middle_of_an_append(opened: Ledger):
    """A handler that runs anywhere within an append gets cells of its own, and no record is lost."""
    made: list[tuple[str, int, memoryview[float]]] = []
    numbers = itertools.count()

    def append(who: str) -> None:
        number = next(numbers)
        made.append((who, number, opened.append(SERIES, [who, number], 3).cells))

    before = signal.signal(signal.SIGALRM, lambda *_: append("handler"))
    try:
        for number in range(4000):
            signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + number % 40))
            append("mine")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sum(who == "handler" for who, _, _ in made) >= 100
    for _, number, cells in made:
        cells[0] += 1.0
        cells[2] += number
    found = sorted((each.description[1], each.description[0], each.cells) for each in read_ledger(path_of(opened)))
    assert found == sorted((number, who, [1.0, 0.0, number]) for who, number, _ in made)


def test_a_record_made_while_the_file_is_being_made_goes_into_the_same_file(tmp_path: Path):
    """A handler that records while the very first record makes the file does not lead to a second one."""
    nested: list[memoryview[float]] = []

    def folder() -> Path:
        if made.streams == 0:
            made.streams = 1
            nested.append(made.append(SERIES, "nested", 1).cells)
        return tmp_path

    made = Ledger(folder)
    made.append(SERIES, "outer", 1).cells[0] = 1.0
    nested[0][0] = 2.0
    assert list(tmp_path.iterdir()) == [path_of(made)]
    assert sorted(read_ledger(path_of(made))) == [Record(SERIES, "nested", [2.0]), Record(SERIES, "outer", [1.0])]
    made.close()


# --- Damaged files ------------------------------------------------------------------------------------------


def some_ledger(folder: Path, records: int, text: str) -> tuple[bytes, list[Record]]:
    """The bytes of a ledger with a few records, and what they are."""
    made, whole = Ledger(lambda: folder), []
    for number in range(records):
        kind, cells = (STREAM, SERIES, EXEMPLARS)[number % 3], [number + index / 4 for index in range(number % 4)]
        place = made.append(kind, [text, number], len(cells))
        for index, value in enumerate(cells):
            place.cells[index] = value
        whole.append(Record(kind, [text, number], cells))
    content = path_of(made).read_bytes()
    assert read_ledger(path_of(made)) == whole
    made.close()
    return content, whole


def check_damaged(path: Path, whole: list[Record]) -> list[Record]:
    """Read a damaged file: only true records may come, in their order; cells carry no checksum and may differ."""
    if path.read_bytes()[:8] != ledger.MAGIC:
        with pytest.raises(ValueError, match="is no ledger of format"):
            read_ledger(path)
        return []
    found = read_ledger(path)
    rest = iter(whole)
    for each in found:
        assert any(
            (each.kind, each.description, len(each.cells)) == (true.kind, true.description, len(true.cells))
            for true in rest
        ), f"{each} was never written, or not there"
    return found


def test_a_file_cut_anywhere_gives_its_beginning(tmp_path: Path):
    """Of a file that ends early the records that are whole are read, whole, and nothing raises."""
    content, whole = some_ledger(tmp_path, 12, "a metric")
    used = content.rindex(b'["a metric",11]') + 64
    path = tmp_path / "cut.ledger"
    lengths = set()
    for end in range(8, used):
        path.write_bytes(content[:end])
        found = check_damaged(path, whole)
        assert found == whole[: len(found)]
        lengths.add(len(found))
    assert lengths == set(range(len(whole) + 1))


def test_a_byte_changed_anywhere_gives_no_false_record(tmp_path: Path):
    """A changed byte ends the reading at its record, or is a forgotten mark, a cell or unused space."""
    content, whole = some_ledger(tmp_path, 12, "a metric")
    used = content.rindex(b'["a metric",11]') + 64
    path = tmp_path / "flipped.ledger"
    damaged = bytearray(content[:used])
    for offset in range(used):
        for mask in (0x01, 0x80, 0xFF):
            damaged[offset] ^= mask
            path.write_bytes(damaged)
            check_damaged(path, whole)
            damaged[offset] ^= mask
    path.write_bytes(damaged)
    assert check_damaged(path, whole) == whole


@pytest.fixture(scope="module")
def long_ledger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, list[Record]]:
    """A ledger of several segments."""
    folder = tmp_path_factory.mktemp("long")
    content, whole = some_ledger(folder, 600, "x" * 300)
    assert len(content) > 3 * SEGMENT_BYTES
    return folder / "damaged.ledger", content, whole


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_file_damaged_in_several_places_gives_no_false_record(
    long_ledger: tuple[Path, bytes, list[Record]], data: st.DataObject
):
    """However a file of several segments is cut and overwritten, reading it ends and invents nothing."""
    path, content, whole = long_ledger
    near = st.integers(0, 3).map(lambda segment: segment * SEGMENT_BYTES)
    offsets = st.integers(0, len(content) - 1) | st.builds(lambda a, b: a + b, near, st.integers(0, 64))
    damaged = bytearray(content)
    for offset, junk in data.draw(st.lists(st.tuples(offsets, st.binary(min_size=1, max_size=24)), max_size=4)):
        damaged[offset : offset + len(junk)] = junk[: len(damaged) - offset]
    path.write_bytes(damaged[: data.draw(st.integers(8, len(damaged)))])
    check_damaged(path, whole)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=400).filter(lambda content: not content.startswith(ledger.MAGIC)))
def test_what_is_no_ledger_says_so(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    """A file that does not begin as a ledger is a ValueError that names the file; one that does never raises."""
    path = tmp_path_factory.getbasetemp() / "junk.ledger"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"junk\.ledger is no ledger"):
        read_ledger(path)
    path.write_bytes(ledger.MAGIC + content)
    assert read_ledger(path) == []


# --- Space that is not there --------------------------------------------------------------------------------


def test_without_room_for_the_first_segment_there_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the file system is full, numbers lie in private memory, one fault is told, and nothing is left behind."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    faults: list[str] = []
    made = Ledger(lambda: tmp_path, on_fault=faults.append)
    every = [made.append(SERIES, number, 1000).cells for number in range(50)]
    for cells in every:
        cells[999] += 2.0
    assert [cells[999] for cells in every] == [2.0] * 50
    assert len(faults) == 1
    assert "No space left" in faults[0]
    assert made.fault == faults[0]
    assert list(tmp_path.iterdir()) == []


def test_where_the_room_ends_the_numbers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What stands in the file stays there and is read; what comes after lies in private memory."""
    reserve, rooms = os.posix_fallocate, iter(range(2))

    def nearly_full(file: int, offset: int, length: int) -> None:
        if next(rooms, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(file, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", nearly_full)
    faults: list[str] = []
    made = Ledger(lambda: tmp_path, on_fault=faults.append)
    every = [made.append(SERIES, number, 1000).cells for number in range(50)]
    for number, cells in enumerate(every):
        cells[0] += number
    assert [cells[0] for cells in every] == list(range(50))
    assert len(faults) == 1
    path = path_of(made)
    found = read_ledger(path)
    assert [each.description for each in found] == list(range(len(found)))
    assert [each.cells[0] for each in found] == list(range(len(found)))
    assert 0 < len(found) < 50
    assert path.stat().st_size == 2 * SEGMENT_BYTES
    assert is_alive(path)
    made.close()


FILLS_UP = """
import sys
from pathlib import Path
from otel_mlops.sdk.ledger import SERIES, Ledger, read_ledger
faults = []
made = Ledger(lambda: Path(sys.argv[1]), on_fault=faults.append)
every = [made.append(SERIES, number, 1000).cells for number in range(100)]
for number, cells in enumerate(every):
    for index in range(1000):
        cells[index] += number
assert [cells[999] for cells in every] == list(range(100))
found = read_ledger(made.path)
assert [each.cells[999] for each in found] == list(range(len(found)))
print(len(found), len(faults))
made.close()
"""


def may_mount() -> bool:
    """Whether this user may mount a file system in a namespace of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    tried = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("bound", ["limit", *(["tmpfs"] if sys.platform == "linux" and may_mount() else [])])
def test_a_full_file_system_kills_nobody(tmp_path: Path, bound: str):
    """On a real file system without room no cell is a hole that would end the process with SIGBUS."""
    if bound == "tmpfs":
        mount = f'mount -t tmpfs -o size=192k tmpfs {tmp_path} && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", mount, "sh"]
        limit = None
    else:
        command = []

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    ended = subprocess.run(
        [*command, sys.executable, "-c", FILLS_UP, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert ended.returncode == 0, ended.stderr
    in_the_file, faults = map(int, ended.stdout.split())
    assert 0 < in_the_file < 100
    assert faults == 1


def test_where_space_cannot_be_reserved_at_once_zeros_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without posix_fallocate (macOS) the file is filled with zeros, though each write takes only a part."""
    monkeypatch.delattr(os, "posix_fallocate")
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, data[:4096], offset))
    made = Ledger(lambda: tmp_path)
    for number in range(200):
        made.append(SERIES, number, 100).cells[99] = number
    path = path_of(made)
    assert [each.cells[99] for each in read_ledger(path)] == list(range(200))
    assert path.stat().st_size == made.total_bytes == 3 * SEGMENT_BYTES
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    made.close()


# --- The file's life ----------------------------------------------------------------------------------------


def test_nothing_is_made_before_the_first_record(tmp_path: Path):
    """A process that records nothing asks for no folder and leaves no file, closed or not."""
    asked: list[None] = []

    def folder() -> Path:
        asked.append(None)
        return tmp_path

    made = Ledger(folder)
    made.close()
    assert (asked, list(tmp_path.iterdir()), made.total_bytes) == ([], [], 0)


def test_it_has_its_name_only_when_it_is_reserved_locked_and_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At the moment it gets its name it is whole: nobody can find it dead, short or unreadable."""
    seen: list[tuple[bool, int, list[Record], str]] = []
    rename = Path.rename

    def watched(self: Path, target: Path) -> Path:
        seen.append((is_alive(self), self.stat().st_size, read_ledger(self), self.suffix))
        assert list(tmp_path.iterdir()) == [self]
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    made = Ledger(lambda: tmp_path)
    made.append(SERIES, "first", 1)
    assert seen == [(True, SEGMENT_BYTES, [], ".new")]
    assert path_of(made).suffix == ".ledger"
    assert path_of(made).stat().st_mode & 0o777 == 0o600
    assert is_alive(path_of(made))
    made.close()


def test_closing_removes_the_file_and_the_numbers_go_on(opened: Ledger, tmp_path: Path):
    """After close nothing is left in the folder; cells that are held, and new ones, go on in memory."""
    cells = opened.append(SERIES, "before", 1).cells
    opened.close()
    cells[0] += 1.0
    after = [opened.append(SERIES, number, 5000).cells for number in range(5)]
    for each in after:
        each[4999] += 1.0
    assert (cells[0], [each[4999] for each in after]) == (1.0, [1.0] * 5)
    assert list(tmp_path.iterdir()) == []
    assert opened.fault is None
    opened.close()


def test_without_a_folder_it_lies_in_private_memory():
    """A ledger that was given no folder has no path, no fault, and works."""
    made = Ledger()
    cells = [made.append(SERIES, number, 100).cells for number in range(200)]
    for each in cells:
        each[0] += 1.0
    assert ([each[0] for each in cells], made.path, made.fault) == ([1.0] * 200, None, None)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork: run this on Linux or macOS")


@needs_fork
@pytest.mark.parametrize("abandons", [True, False])
def test_a_forked_child_does_not_keep_its_dead_parent_alive(tmp_path: Path, abandons: bool):
    """A child that abandons the ledger lets go of the parent's lock, though it outlives the parent."""
    ready, tell = os.pipe()
    hold, release = os.pipe()

    def grandchild(made: Ledger) -> None:
        os.close(release)
        if abandons:
            made.abandon()
        os.write(tell, json.dumps([str(path_of_parent), os.getpid()]).encode() + b"\n")
        os.read(hold, 1)

    def child() -> None:
        nonlocal path_of_parent
        made = Ledger(lambda: tmp_path)
        cells = made.append(SERIES, "parent", 1).cells
        cells[0] = 7.0
        path_of_parent = path_of(made)
        if os.fork() == 0:
            grandchild(made)
            os._exit(0)
        signal.pause()

    path_of_parent = Path()
    with forked(child) as pid:
        os.close(hold)
        os.close(tell)
        path = Path(json.loads(os.read(ready, 4096))[0])
        assert is_alive(path)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert is_alive(path) is not abandons
        assert read_ledger(path) == [Record(SERIES, "parent", [7.0])]
        os.close(release)
    assert os.read(ready, 1) == b""  # the grandchild has ended as well
    os.close(ready)


@needs_fork
def test_a_forked_child_that_abandons_it_writes_into_its_own(opened: Ledger, tmp_path: Path):
    """After abandon the child has neither file nor record of the parent; its next record makes its own file."""
    opened.append(SERIES, "parent", 1).cells[0] = 1.0
    path = path_of(opened)
    ready, tell = os.pipe()

    def child() -> None:
        opened.abandon()
        state = [opened.path is None, opened.total_bytes, opened.streams]
        opened.append(SERIES, "child", 1).cells[0] = 2.0
        records = [[each.description, each.cells] for each in read_ledger(path_of(opened))]
        os.write(tell, json.dumps([state, records, str(path_of(opened))]).encode())

    with forked(child) as pid:
        state, records, own = json.loads(os.read(ready, 4096))
        os.waitpid(pid, 0)
    assert (state, records) == ([True, 0, 0], [["child", [2.0]]])
    assert {path, Path(own)} == set(tmp_path.iterdir())
    assert read_ledger(path) == [Record(SERIES, "parent", [1.0])]
    assert is_alive(path)
    assert not is_alive(Path(own))


# --- The folder ---------------------------------------------------------------------------------------------


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> int:
    """The number of the user whom the folder belongs to."""
    return os.getuid()


def test_the_folder_is_the_users_alone(tmp_path: Path, user: int):
    """The folder is made for this user, closed to others, and is the same the next time."""
    folder = open_folder(tmp_path / "state" / "deeper")
    assert folder == tmp_path / "state" / "deeper" / f"otel_mlops-{user}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert open_folder(tmp_path / "state" / "deeper") == folder


def test_a_link_is_refused(tmp_path: Path, user: int):
    """A link in the folder's place, which somebody may have laid there, is not followed."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / f"otel_mlops-{user}").symlink_to(elsewhere)
    with pytest.raises(PermissionError, match="must be a directory of user"):
        open_folder(tmp_path)
    assert list(elsewhere.iterdir()) == []


def test_somebody_elses_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder in this user's name that belongs to another is not used."""
    (tmp_path / "otel_mlops-4294967").mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: 4294967)
    with pytest.raises(PermissionError, match="of user 4294967 that nobody else can open"):
        open_folder(tmp_path)


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777, 0o710])
def test_a_folder_that_others_can_open_is_refused(tmp_path: Path, user: int, mode: int):
    """A folder that the group or the world may enter or list is not used."""
    folder = tmp_path / f"otel_mlops-{user}"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(PermissionError, match="that nobody else can open"):
        open_folder(tmp_path)


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path, user: int):
    """A file of that name is an OSError, which the ledger takes for a fault."""
    (tmp_path / f"otel_mlops-{user}").write_text("")
    faults: list[str] = []
    made = Ledger(lambda: open_folder(tmp_path), on_fault=faults.append)
    made.append(SERIES, 1, 1).cells[0] = 1.0
    assert len(faults) == 1
    assert made.path is None


def test_a_state_folder_that_cannot_be_made_is_one_fault(tmp_path: Path):
    """Where nothing can be written the numbers lie in private memory and it is said once, naming the path."""
    (tmp_path / "file").write_text("")
    faults: list[str] = []
    made = Ledger(lambda: open_folder(tmp_path / "file" / "state"), on_fault=faults.append)
    cells = [made.append(SERIES, number, 3000).cells for number in range(10)]
    for each in cells:
        each[0] += 1.0
    assert [each[0] for each in cells] == [1.0] * 10
    assert len(faults) == 1
    assert str(tmp_path / "file") in faults[0]


def test_without_shared_memory_the_folder_is_among_the_temporary_files(
    tmp_path: Path, user: int, monkeypatch: pytest.MonkeyPatch
):
    """Where /dev/shm is missing or closed the folder is made where temporary files are."""
    monkeypatch.setattr(group, "_SHARED_MEMORY", tmp_path / "nothing")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert open_folder() == tmp_path / f"otel_mlops-{user}"


def test_shared_memory_is_taken_where_there_is_any(tmp_path: Path, user: int, monkeypatch: pytest.MonkeyPatch):
    """The folder lies in shared memory unless another is named."""
    monkeypatch.setattr(group, "_SHARED_MEMORY", tmp_path)
    assert open_folder() == tmp_path / f"otel_mlops-{user}"


def test_opening_the_folder_sweeps_the_dead_and_keeps_the_living(tmp_path: Path):
    """Files of killed workers go, whole or half-made; those of the living, just born or not, and of others stay."""
    folder = open_folder(tmp_path)
    living = Ledger(lambda: folder)
    living.append(SERIES, "living", 1)
    dead = subprocess.run(
        [sys.executable, "-c", WRITES_AND_DIES, str(folder)], capture_output=True, text=True, check=False
    )
    young, old, strange = folder / "young.new", folder / "old.new", folder / "strange.txt"
    for each in (young, old, strange):
        each.write_bytes(b"")
    for each in (old, strange):
        os.utime(each, (time.time() - 3600,) * 2)
    assert Path(dead.stdout.strip()) in folder.iterdir()
    open_folder(tmp_path)
    assert set(folder.iterdir()) == {living.path, young, strange}
    assert read_ledger(path_of(living)) == [Record(SERIES, "living", [0.0])]
    living.close()


def test_files_that_vanish_during_the_sweep_are_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Workers that start at the same moment rename and remove their files under one another's eyes."""
    folder = open_folder(tmp_path)
    gone = [folder / "gone.new", folder / "gone.ledger"]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(gone))
    assert open_folder(tmp_path) == folder
