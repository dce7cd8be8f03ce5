from __future__ import annotations

import ctypes
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_mlops.model.database import Database, StoreError
from tests.model.children import children
from tests.waiting import eventually

NAME = "rows.sqlite"
SCHEMA = "CREATE TABLE rows (text TEXT)"
OpenDatabase = Callable[..., Database]


@pytest.fixture
def open_database(tmp_path: Path) -> Iterator[OpenDatabase]:
    """Opens databases of one folder, which are closed after the test."""
    opened: list[Database] = []

    def open_one(
        folder: Callable[[], Path | None] = lambda: tmp_path, timeout_s: float = 30.0, max_bytes: int = 1 << 25
    ) -> Database:
        opened.append(Database(folder, NAME, SCHEMA, timeout_s, max_bytes))
        return opened[-1]

    yield open_one
    for database in opened:
        database.close()


def add(database: Database, text: str) -> None:
    database.run(lambda connection: connection.execute("INSERT INTO rows VALUES (?)", (text,)))


def rows(database: Database) -> list[str]:
    return database.run(lambda connection: [text for (text,) in connection.execute("SELECT text FROM rows")])


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(StoreError) as caught:
        call()
    return caught.value.reason


def wipe(folder: Path) -> None:
    """What the first worker of a group does."""
    for path in folder.iterdir():
        path.unlink(missing_ok=True)


def test_what_a_transaction_raises_takes_it_back(open_database: OpenDatabase, tmp_path: Path):
    """An exception of the work goes on its way, nothing of the work stays, and others can write at once."""
    database, other = open_database(), open_database(timeout_s=0.02)
    add(database, "before")

    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO rows VALUES ('half')")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database.run(work)
    add(other, "whole")
    assert rows(database) == ["before", "whole"]
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


def test_a_folder_that_does_not_exist_is_waited_for(open_database: OpenDatabase, tmp_path: Path):
    """Without its folder it is unavailable, and makes none; once the folder is there it works."""
    folder = tmp_path / "group"
    database = open_database(lambda: folder)
    assert refused(lambda: rows(database)) == "unavailable"
    assert not folder.exists()
    folder.mkdir()
    add(database, "a")
    assert rows(database) == ["a"]


def test_a_folder_that_was_wiped_is_begun_anew(open_database: OpenDatabase, tmp_path: Path):
    """After a wipe the next call makes the file again, and all workers meet in the new one."""
    one, other = open_database(), open_database()
    add(one, "before")
    assert rows(other) == ["before"]
    wipe(tmp_path)
    add(one, "after")
    assert rows(other) == ["after"]
    shutil.rmtree(tmp_path)
    assert refused(lambda: add(one, "a")) == "unavailable"
    tmp_path.mkdir()
    add(other, "again")
    assert rows(one) == ["again"]


def test_who_closes_a_wiped_file_leaves_the_new_one_alone(open_database: OpenDatabase, tmp_path: Path):
    """A worker that still had the old file open takes nothing of the new one's log with it when it closes."""
    old, new, late = open_database(), open_database(), open_database()
    add(old, "old")
    wipe(tmp_path)
    add(new, "new")
    old.close()
    assert (tmp_path / f"{NAME}-wal").exists()
    add(new, "newer")
    assert rows(late) == rows(old) == rows(new) == ["new", "newer"]


@pytest.mark.stress
def test_wipes_in_the_middle_of_writing_harm_nobody(open_database: OpenDatabase, tmp_path: Path):
    """However often the folder is wiped under busy writers, all meet in one sound file afterwards."""
    wiping_is_over = tmp_path.with_name(f"{tmp_path.name}-over")

    def write(tell: Callable[[Any], None]) -> None:
        database, number, wiped_again = open_database(), 0, []
        while not wiping_is_over.exists():
            number += 1
            try:
                add(database, f"{os.getpid()} {number}")
            except StoreError as error:
                wiped_again.append(error)
        add(database, f"{os.getpid()} last")
        tell([number, sorted({error.reason for error in wiped_again} - {"busy", "unavailable"})])

    with children(write, write, write) as born:
        for _ in range(400):
            eventually((tmp_path / NAME).exists)
            wipe(tmp_path)
        wiping_is_over.touch()
        assert all(number > 0 and not other for number, other in (child.next() for child in born))
        found = rows(open_database())
        assert all(f"{child.pid} last" in found for child in born)
    assert open_database().run(lambda connection: connection.execute("PRAGMA integrity_check").fetchall()) == [("ok",)]
    assert not (tmp_path / f"{NAME}.damaged").exists()


def test_a_log_that_was_left_behind_is_not_read_into_a_new_file(open_database: OpenDatabase, tmp_path: Path):
    """Where a wipe was cut short the old log lies beside no file: the new file has nothing of it."""
    database = open_database()
    add(database, "old")
    log = (tmp_path / f"{NAME}-wal").read_bytes()
    wipe(tmp_path)
    (tmp_path / f"{NAME}-wal").write_bytes(log)
    (tmp_path / f"{NAME}-1234.new").write_bytes(b"half")
    assert rows(database) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, f"{NAME}-shm", f"{NAME}-wal"]


def test_a_file_that_cannot_be_finished_leaves_nothing(open_database: OpenDatabase, tmp_path: Path):
    """Where the tables cannot be made the folder is as empty as it was."""
    database = Database(lambda: tmp_path, NAME, "CREATE NOTHING", 30.0, 1 << 25)
    assert refused(lambda: rows(database)) == "unavailable"
    assert list(tmp_path.iterdir()) == []


def damage_all(path: Path) -> None:
    path.write_bytes(b"no database at all " * 500)


def damage_the_inside(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * (len(content) - 100))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096])


@pytest.mark.parametrize("damage", [damage_all, damage_the_inside, empty, cut_off])
def test_a_damaged_file_is_moved_away_once(
    damage: Callable[[Path], None], open_database: OpenDatabase, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """A file that cannot be read is given another name, which is told once, and a new one made at the same call."""
    writer = open_database()
    add(writer, "lost")
    writer.close()
    damage(tmp_path / NAME)
    (tmp_path / NAME).chmod(0o600)
    one, other = open_database(), open_database()
    add(one, "a")
    add(other, "b")
    assert rows(one) == ["a", "b"]
    assert (tmp_path / f"{NAME}.damaged").exists()
    one.close()
    other.close()
    damage(tmp_path / NAME)
    add(one, "c")
    assert rows(one) == rows(other) == ["c"]
    (told,) = caplog.records
    assert f"{NAME}.damaged" in told.getMessage()


def test_damage_under_an_open_file_is_found(open_database: OpenDatabase, tmp_path: Path):
    """A file that is damaged while it is open is replaced as well, and all workers go on in the same new one."""
    one, other = open_database(), open_database()
    for number in range(200):
        add(one, f"{number} {'x' * 200}")
    one.close()  # the rows are in the file now, and not in the log
    assert len(rows(one)) == 200
    other.close()
    with open(os.open(tmp_path / NAME, os.O_WRONLY), "wb", closefd=False) as file:
        # Left open: to close it would let go of the locks that SQLite has in this process.
        file.seek(100)
        file.write(b"\xff" * 30_000)
        file.flush()
    add(other, "new")
    add(one, "newer")
    assert rows(one) == rows(other) == ["new", "newer"]


def test_who_finds_the_damage_later_leaves_the_new_file_alone(open_database: OpenDatabase, tmp_path: Path):
    """One that has met the damage, and comes after another has made a new file, does not take that away."""
    one, other = open_database(), open_database()
    add(one, "lost")
    found = one._identity
    assert found is not None
    (tmp_path / NAME).rename(tmp_path / f"{NAME}.damaged")
    add(other, "new")
    one._move_away(tmp_path / NAME, found, sqlite3.DatabaseError("damaged"))
    assert rows(one) == rows(other) == ["new"]


def link(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")


def open_to_all(path: Path) -> None:
    path.touch()
    path.chmod(0o666)


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("lay", [link, open_to_all, directory])
def test_a_file_that_others_may_have_made_is_not_used(
    lay: Callable[[Path], None], open_database: OpenDatabase, tmp_path: Path
):
    """A link, a folder and a file that is open to others is left as it is."""
    lay(tmp_path / NAME)
    assert refused(lambda: rows(open_database())) == "unavailable"
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_folder_with_odd_characters_is_used(open_database: OpenDatabase, tmp_path: Path):
    """The folder's name may have the characters that a URL gives a meaning to."""
    folder = tmp_path / "50%?mode=memory#é ü"
    folder.mkdir()
    add(open_database(lambda: folder), "a")
    assert rows(open_database(lambda: folder)) == ["a"]
    assert (folder / NAME).exists()


def test_the_log_is_bounded_behind_one_who_holds_an_old_state(open_database: OpenDatabase, tmp_path: Path):
    """A worker stopped inside a reading keeps the log from being reused: at its limit others are busy, then go on."""
    size = 64 * 4096
    database = open_database(timeout_s=0.02, max_bytes=size)
    add(database, "first")

    def read(tell: Any) -> None:
        connection = sqlite3.connect(tmp_path / NAME, isolation_level=None)
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM rows").fetchall()
        tell("reading")
        os.read(hold, 1)

    hold, let_go = os.pipe()
    with children(read) as (child,):
        assert child.next() == "reading"
        assert refused(lambda: [add(database, str(number)) for number in range(10_000)]) == "busy"
        assert (tmp_path / f"{NAME}-wal").stat().st_size < size
        assert refused(lambda: add(database, "a")) == "busy"
    os.close(hold)
    os.close(let_go)
    add(database, "last")
    assert rows(database)[-1] == "last"
    assert (tmp_path / f"{NAME}-wal").stat().st_size < size // 8


def test_the_log_shrinks_after_a_large_batch(open_database: OpenDatabase, tmp_path: Path):
    """The log of a large transaction is cut back once it has been moved into the file."""
    database = open_database()

    def work(connection: sqlite3.Connection) -> None:
        connection.executemany("INSERT INTO rows VALUES (?)", (("x" * 400,) for _ in range(15_000)))

    database.run(work)
    assert (tmp_path / f"{NAME}-wal").stat().st_size > 6_000_000
    add(database, "a")
    assert (tmp_path / f"{NAME}-wal").stat().st_size < 4_200_000


def test_one_who_is_stopped_while_the_file_is_made_delays_others_no_longer_than_they_may(
    open_database: OpenDatabase, tmp_path: Path
):
    """While another worker holds the folder nobody makes the file, and nobody waits for it longer than allowed."""
    holder, waiter = open_database(), open_database(timeout_s=0.02)
    with holder._alone(tmp_path):
        assert refused(lambda: rows(waiter)) == "busy"
    assert rows(waiter) == []


@pytest.mark.skipif(sys.platform != "linux", reason="macOS: run this on Linux")
def test_a_child_that_python_does_not_know_of_leaves_the_file_alone(open_database: OpenDatabase):
    """A child of a bare fork(2), which closes nothing before it, says that it has none; its parent goes on."""
    database = open_database()
    add(database, "a")
    answers, tell = os.pipe()
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        try:
            os.write(tell, refused(lambda: rows(database)).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(answers, 100) == b"unavailable"
    os.close(answers)
    os.close(tell)
    add(database, "b")
    assert rows(database) == ["a", "b"]


def test_a_process_without_sqlite_is_told(open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch):
    """Where Python was built without SQLite it is unavailable, and nothing else is raised."""
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    assert refused(lambda: rows(open_database())) == "unavailable"


# --- Full file systems -------------------------------------------------------------------------------------------

FILLS_UP = """
import sys
from collections import Counter
from pathlib import Path
from otel_mlops.model.store import Answer, Store, StoreError
folder, said = Path(sys.argv[1]), Counter()
store = Store(lambda: folder, timeout_s=30.0, on_dropped=lambda reason, count: said.update({reason: count}))
def remember(number):
    try:
        store.remember(f"i{number}", Answer(float(number), None, None, 1.0, ""))
        kept.append(number)
    except StoreError as error:
        said[error.reason] += 1
kept = []
for number in range(300):
    remember(number)
ballast = (folder / "ballast").open("wb", buffering=0)
try:
    while True:
        ballast.write(bytes(4096))
except OSError:
    pass
for number in range(300, 3000):
    remember(number)
    assert store.take("unknown") is None  # nothing is written for it, so it goes on
ballast.truncate(0)
assert store.take(f"i{kept[-1]}").value == kept[-1]
for number in range(3000, 30_000):
    if said["space"] == 0:
        remember(number)
assert said["space"]
newest = kept[-store.waiting():]
assert all(store.take(f"i{number}").value == number for number in newest)
print(len(kept), said["full"], said["busy"], said["unavailable"])
"""


def may_mount() -> bool:
    """Whether this user may mount a file system in a namespace of its own."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    tried = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


@pytest.mark.stress
@pytest.mark.skipif(not may_mount(), reason="may not mount: run this as root on Linux")
def test_a_full_file_system_is_told_and_survived(tmp_path: Path):
    """Others fill the file system: calls say `full`, nobody dies; there is room again: all that was kept is there."""
    command = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=512k tmpfs {tmp_path} && exec "$@"', "sh"]
    ended = subprocess.run(
        [*command, sys.executable, "-c", FILLS_UP, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    kept, full, *other = map(int, ended.stdout.split())
    assert kept > 300
    assert full > 1000
    assert other == [0, 0]
    assert ended.stderr.count("cannot be kept") == 1
