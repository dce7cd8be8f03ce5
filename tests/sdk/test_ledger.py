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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_mlops.sdk import ledger as ledger_module
from otel_mlops.sdk import records
from otel_mlops.sdk.files import is_alive
from otel_mlops.sdk.ledger import SEGMENT_BYTES, Ledger
from otel_mlops.sdk.records import EXEMPLARS, SERIES, STREAM, Record, read_ledger
from tests.sdk.folder import Folder


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger in a folder of its own."""
    made = Ledger(Folder(lambda: tmp_path))
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
from otel_mlops.sdk.ledger import Ledger
from tests.sdk.folder import Folder
from otel_mlops.sdk.records import SERIES
made = Ledger(Folder(lambda: Path(sys.argv[1])))
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
        made = Ledger(Folder(lambda: Path(folder)))
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


def test_whoever_reads_while_it_is_written_misses_nothing_that_was_there_before(opened: Ledger):
    """A reader beside the writer sees all that had come before it began, nothing that had gone, and nothing twice."""
    # Not a beginning of what is written meanwhile: the writer goes on between two pages that are read.
    opened.append(SERIES, -1, 1)
    path, reading, written = path_of(opened), threading.Event(), threading.Event()
    come, gone = [-1], list[int]()

    def write() -> None:
        assert reading.wait(30)
        for number in range(1500):
            place = opened.append(SERIES, number, 5)
            if number % 3:
                come.append(number)
            else:
                opened.forget(place)
                gone.append(number)
        written.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not written.is_set():
        before, forgotten = {*come}, {*gone}
        reading.set()
        numbers = [each.description for each in read_ledger(path)]
        assert numbers == sorted(set(numbers))
        assert not before - {*numbers}
        assert not forgotten & {*numbers}
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

    made = Ledger(Folder(folder))
    made.append(SERIES, "outer", 1).cells[0] = 1.0
    nested[0][0] = 2.0
    assert list(tmp_path.iterdir()) == [path_of(made)]
    assert sorted(read_ledger(path_of(made))) == [Record(SERIES, "nested", [2.0]), Record(SERIES, "outer", [1.0])]
    made.close()


# --- Damaged files ------------------------------------------------------------------------------------------


def some_ledger(folder: Path, records: int, text: str) -> tuple[bytes, list[Record]]:
    """The bytes of a ledger with a few records, and what they are."""
    made, whole = Ledger(Folder(lambda: folder)), []
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
    if path.read_bytes()[:8] != records.MAGIC:
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
    content, whole = some_ledger(tmp_path, 4, "a metric")
    used = content.rindex(b'["a metric",3]') + 32 + 3 * 8
    path = tmp_path / "cut.ledger"
    lengths = set()
    for end in range(8, used + 1):
        path.write_bytes(content[:end])
        found = check_damaged(path, whole)
        assert found == whole[: len(found)]
        lengths.add(len(found))
    assert lengths == set(range(len(whole) + 1))


def test_a_byte_changed_anywhere_gives_no_false_record(tmp_path: Path):
    """A changed byte ends the reading at its record, or is a forgotten mark, a cell or unused space."""
    content, whole = some_ledger(tmp_path, 4, "a metric")
    used = content.rindex(b'["a metric",3]') + 32 + 3 * 8
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
@given(content=st.binary(max_size=400).filter(lambda content: not content.startswith(records.MAGIC)))
def test_what_is_no_ledger_says_so(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    """A file that does not begin as a ledger is a ValueError that names the file; one that does never raises."""
    path = tmp_path_factory.getbasetemp() / "junk.ledger"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"junk\.ledger is no ledger"):
        read_ledger(path)
    path.write_bytes(records.MAGIC + content)
    assert read_ledger(path) == []


# --- Space that is not there --------------------------------------------------------------------------------


def test_without_room_for_the_first_segment_there_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the file system is full, numbers lie in private memory, one fault is told, and nothing is left behind."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    faults: list[str] = []
    made = Ledger(Folder(lambda: tmp_path), on_fault=faults.append)
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
    made = Ledger(Folder(lambda: tmp_path), on_fault=faults.append)
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
from otel_mlops.sdk.ledger import Ledger
from tests.sdk.folder import Folder
from otel_mlops.sdk.records import SERIES, read_ledger
faults = []
made = Ledger(Folder(lambda: Path(sys.argv[1])), on_fault=faults.append)
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


BOUNDS = ["limit", *(["tmpfs"] if sys.platform == "linux" and may_mount() else [])]


@pytest.mark.parametrize("bound", BOUNDS)
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
    made = Ledger(Folder(lambda: tmp_path))
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

    made = Ledger(Folder(folder))
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
    made = Ledger(Folder(lambda: tmp_path))
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
        made = Ledger(Folder(lambda: tmp_path))
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


# --- The room comes back ------------------------------------------------------------------------------------


class Room:
    """A file system of which a test says how often room can be reserved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        reserve = os.posix_fallocate

        def take(file: int, offset: int, length: int) -> None:
            if self.left <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.left -= 1
            reserve(file, offset, length)

        monkeypatch.setattr(os, "posix_fallocate", take)


@pytest.mark.parametrize("left", [0, 1])
def test_what_lies_in_private_memory_is_told_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
):
    """One fault for as long as the room is missing; then the file goes on, or is made, and a new fault is told."""
    room = Room(monkeypatch, left)
    faults: list[str] = []
    made = Ledger(Folder(lambda: tmp_path), on_fault=faults.append)
    places = [made.append(SERIES, number, 3000) for number in range(6)]
    private = [place for place in places if made.is_private(place)]
    assert len(private) == (4 if left else 6)
    before = made.total_bytes
    assert [made.retry() for _ in range(3)] == [False] * 3
    assert (len(faults), made.total_bytes) == (1, before)
    room.left = 1
    assert made.retry()
    assert made.fault is None
    assert made.total_bytes == path_of(made).stat().st_size
    moved = made.append(SERIES, "moved", [4.0])
    assert not made.is_private(moved)
    assert made.is_private(private[0])
    assert read_ledger(path_of(made))[-1] == Record(SERIES, "moved", [4.0])
    for number in range(4):
        made.append(SERIES, number, 3000)
    assert len(faults) == 2
    made.close()


FILLS_AND_GETS_ROOM = """
import resource, sys
from pathlib import Path
from otel_mlops.sdk.ledger import Ledger
from tests.sdk.folder import Folder
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.sdk.records import SERIES, read_ledger
folder = Path(sys.argv[1])
faults = []
provider = MeterProvider(ledger=Ledger(Folder(lambda: folder), on_fault=faults.append), shutdown_on_exit=False)
counter = provider.get_meter("m").create_counter("c")
def record():
    for number in range(1500):
        counter.add(number, {"n": number, "fill": "x" * 100})
filler = folder / "filler"
if sys.argv[2] == "limit":
    filler.touch()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, most))
else:
    filler.write_bytes(bytes(900 * 1024))
record()
for _ in range(3):
    provider.settle()
assert len(faults) == 1, faults
def in_the_file():
    found = [each for each in read_ledger(provider.ledger.path) if each.kind == SERIES]
    return {dict(each.description[1])["n"]: each.cells for each in found}
assert 0 < len(in_the_file()) < 1500
filler.unlink()
resource.setrlimit(resource.RLIMIT_FSIZE, [resource.getrlimit(resource.RLIMIT_FSIZE)[1]] * 2)
record()
provider.settle()
wanted = {number: [number * 2.0] for number in range(1500)}
assert in_the_file() == wanted
assert [series.read() for stream in provider.streams() for series in stream.living()] == [*wanted.values()]
assert len(faults) == 1
provider.shutdown()
"""


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_file_system_that_was_full_for_a_while_has_all_numbers_in_the_end(tmp_path: Path, bound: str):
    """On a real file system that runs full in the middle, all numbers are in the file once something else went away."""
    mount = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh"] if bound == "tmpfs" else []
    ended = subprocess.run(
        [*command, sys.executable, "-c", FILLS_AND_GETS_ROOM, str(tmp_path), bound],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_a_fault_that_names_another_file_each_time_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file system without a free inode refuses another name at each try; that is one fault, naming the folder."""
    faults: list[str] = []
    made = Ledger(Folder(lambda: tmp_path), on_fault=faults.append)
    opens = os.open

    def full(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return opens(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", full)
    made.append(SERIES, 1, [1.0])
    assert [made.retry() for _ in range(3)] == [False] * 3
    (fault,) = faults
    assert fault.endswith(f"'{tmp_path}'")
    monkeypatch.undo()
    assert made.retry()
    made.close()


@pytest.mark.parametrize("segment", [0, 1])
@pytest.mark.parametrize("fails", ["open", "mmap"])
def test_a_segment_that_could_not_be_mapped_leaves_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment: int, fails: str
):
    """Where a mapping or a descriptor cannot be had for once, what comes afterwards is read all the same."""
    made = Ledger(Folder(lambda: tmp_path))
    for number in range(segment):
        made.append(SERIES, number, 8000)
    opens, refused = os.open, []

    def refuse(*given: Any, **named: Any) -> Any:
        if fails == "open" and str(given[0]).endswith(".new"):
            return opens(*given, **named)
        refused.append(given)
        raise OSError(errno.EMFILE, "Too many")

    with monkeypatch.context() as patched:
        patched.setattr(*((os, "open") if fails == "open" else (ledger_module.mmap, "mmap")), refuse)
        if fails == "open":
            assert made.is_private(made.append(SERIES, "private", 8000))
        else:
            with pytest.raises(OSError, match="Too many"):  # there is no private memory either
                made.append(SERIES, "nowhere", 8000)
    assert refused
    assert made.retry()
    made.append(SERIES, "after", [4.0])
    assert read_ledger(path_of(made))[-1] == Record(SERIES, "after", [4.0])
    with path_of(made).open("rb") as file:
        generation = memoryview(file.read())[records.ABOUT].cast("d")[records.GENERATION]
    assert generation == made.about[records.GENERATION] > 0
    made.close()


# --- Coming and going ---------------------------------------------------------------------------------------


def test_a_file_that_somebody_removed_is_made_again(opened: Ledger, tmp_path: Path):
    """Where the file is gone, what lies in it counts as private until it is moved, and the next one is locked."""
    place = opened.append(SERIES, "x", [3.0])
    before = path_of(opened)
    before.unlink()
    assert not opened.is_private(place)
    assert opened.retry()
    assert opened.is_private(place)
    assert place.cells[0] == 3.0
    assert list(tmp_path.iterdir()) == [path_of(opened)] != [before]
    assert is_alive(path_of(opened))
    assert opened.total_bytes == SEGMENT_BYTES


def test_who_has_left_begins_a_file_again_when_it_comes_back(opened: Ledger, tmp_path: Path):
    """After leaving records lie in private memory, without a fault; coming back they may be moved into a file."""
    before = opened.append(SERIES, "before", [1.0])
    opened.leave()
    assert list(tmp_path.iterdir()) == []
    between = opened.append(SERIES, "between", [2.0])
    assert (opened.path, opened.fault, opened.retry()) == (None, None, False)
    assert not any(map(opened.is_private, (before, between))), "there is nowhere to move it"
    opened.rejoin()
    assert list(tmp_path.iterdir()) == []
    after = opened.append(SERIES, "after", [3.0])
    assert [opened.is_private(place) for place in (before, between, after)] == [True, True, False]
    assert read_ledger(path_of(opened)) == [Record(SERIES, "after", [3.0])]
    path = path_of(opened)
    opened.rejoin()
    assert path_of(opened) == path


def test_a_private_ledger_has_nothing_private():
    """Where nobody is to read a ledger, nothing in it waits to be moved."""
    made = Ledger()
    assert not made.is_private(made.append(SERIES, 1, 1))
    assert not made.retry()


# --- Places that are used again -----------------------------------------------------------------------------


def test_the_place_of_a_forgotten_record_rests(opened: Ledger, monkeypatch: pytest.MonkeyPatch):
    """For a while nobody writes where a record was, as somebody may be reading it; then one of its size does."""
    times = [100.0]
    monkeypatch.setattr(ledger_module.time, "monotonic", lambda: times[0])
    old = opened.append(SERIES, ["old", 1], [1.0, 2.0])
    behind = opened.append(SERIES, ["behind", 1], [5.0])
    opened.forget(old)
    times[0] += 59.9
    assert opened.append(SERIES, ["new", 1], [3.0, 4.0]).offset > behind.offset
    times[0] += 0.2
    assert opened.append(SERIES, ["one cell", 1], [3.0]).offset > behind.offset
    assert opened.append(SERIES, ["a description that is longer", 1], [3.0, 4.0]).offset > behind.offset
    again = opened.append(SERIES, ["again", 1], [6.0, 7.0])
    assert (again.segment, again.offset) == (old.segment, old.offset)
    once = opened.append(SERIES, ["once", 1], [8.0, 9.0])
    assert once.offset != old.offset
    for each in (again, once):
        opened.forget(each)
    times[0] += 60.0
    two = [opened.append(SERIES, ["two", number], [6.0, 7.0]).offset for number in range(2)]
    assert two == [again.offset, once.offset]
    assert read_ledger(path_of(opened))[0] == Record(SERIES, ["two", 0], [6.0, 7.0])


def test_a_place_that_is_forgotten_twice_is_used_once(opened: Ledger, monkeypatch: pytest.MonkeyPatch):
    """No two records share their cells, whoever forgets a record a second time."""
    monkeypatch.setattr(ledger_module, "_REST_S", 0.0)
    old = opened.append(SERIES, "old", [1.0])
    opened.forget(old)
    generation = opened.about[records.GENERATION]
    opened.forget(old)
    assert opened.about[records.GENERATION] == generation
    assert opened.append(SERIES, "a", [2.0]).offset != opened.append(SERIES, "b", [3.0]).offset
    assert [each.cells for each in read_ledger(path_of(opened))] == [[2.0], [3.0]]


@pytest.mark.stress
@pytest.mark.parametrize("where", ["file", "private", "behind a full file"])
def test_what_comes_and_goes_takes_no_more_and_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    """Twenty thousand records that are forgotten again need the room of those that rest, in whatever memory."""
    monkeypatch.setattr(ledger_module, "_REST_S", 0.0)
    made = Ledger(None if where == "private" else Folder(lambda: tmp_path))
    kept = made.append(SERIES, "kept", [1.0])
    if where == "behind a full file":
        Room(monkeypatch, 0)
        made.append(SERIES, "too big", 10_000)
    before = made.total_bytes
    for number in range(20_000):
        made.forget(made.append(SERIES, ["series", number], [1.0, 2.0]))
    assert made.total_bytes <= before + SEGMENT_BYTES
    assert kept.cells[0] == 1.0
    made.close()


def test_what_was_forgotten_in_one_file_is_not_used_in_the_next(opened: Ledger, monkeypatch: pytest.MonkeyPatch):
    """Places in a file that was left, or removed, are nobody's any more."""
    monkeypatch.setattr(ledger_module, "_REST_S", 0.0)
    for away in (opened.leave, lambda: path_of(opened).unlink()):
        old = opened.append(SERIES, "old", [1.0])
        opened.forget(old)
        away()
        between = opened.append(SERIES, "between", [1.0]) if opened.path is None else None
        assert between is None or between.segment is not old.segment
        opened.rejoin()
        assert opened.retry()
        new = opened.append(SERIES, "new", [1.0])
        assert opened.holds(new)
        assert Record(SERIES, "new", [1.0]) in read_ledger(path_of(opened))


def test_it_is_full_past_its_bytes(tmp_path: Path):
    """What is used counts, not what is reserved; without a limit it is never full."""
    made = Ledger(Folder(lambda: tmp_path), max_bytes=100_000)
    counts = []
    while not made.is_full:
        counts.append(made.append(SERIES, len(counts), 100))
    assert 100_000 / (16 + 32 + 800) - 1 < len(counts) <= 100_000 / (16 + 32 + 800) + 1
    assert not Ledger(Folder(lambda: tmp_path)).is_full
    made.close()


def test_a_full_ledger_takes_more_when_what_it_had_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Places that rest are room for others of their size, and what comes in other sizes is bounded all the same."""
    monkeypatch.setattr(ledger_module, "_REST_S", 0.0)
    made = Ledger(Folder(lambda: tmp_path), max_bytes=100_000)
    for size in (100, 100, 100, 150, 200, 250):
        places: list[Any] = []
        while not made.is_full:
            places.append(made.append(SERIES, len(places), size))
        for place in places:
            made.forget(place)
        assert places or size > 100
        assert made.total_bytes <= 3 * 100_000
    made.close()
