"""The SQLite file that a group's workers share: made whole, opened again when it is another's, closed over a fork.

It has a write-ahead log (half the time of a rollback journal) and does not wait for a disk (`synchronous=OFF`):
what was committed lies with the kernel, which no SIGKILL takes it from. A loss of power empties shared memory anyway,
and may damage a file on a disk, which is then begun anew. Pages that become free are used again; it never shrinks.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from sqlite3 import Connection

T = TypeVar("T")
Trouble: TypeAlias = Literal["busy", "full", "unavailable"]

_logger = logging.getLogger(__name__)

_PAGE_BYTES = 4096
_LOG_PAGES = 250
"""Committed pages that are moved from the log into the file at once, in some 0.3 ms."""
_LEFT_TO_OTHERS = 4 * 1024 * 1024
"""Bytes of a file system that neither the file nor its log takes."""
_FORK_PATIENCE_S = 1.0
_NO_FILE = (0, 0)
"""The identity of what is in memory alone."""

_BUSY, _FULL, _DAMAGED = {5, 6, 15}, {13}, {11, 26}
"""SQLite's codes: BUSY, LOCKED and PROTOCOL; FULL; CORRUPT and NOTADB."""


class StoreError(Exception):
    """What is kept cannot be got at now, and why.

    `busy`: others held it for as long as one may wait. `full`: there is no room on the file system. `unavailable`:
    anything else that the log tells. The next call tries again.
    """

    def __init__(self, reason: Trouble, told: str = "") -> None:
        super().__init__(f"{reason}: {told}" if told else reason)
        self.reason: Trouble = reason


class Database:
    """One connection of this process to the group's file, which nothing is done to before it is needed.

    As long as there is no folder it lies in the memory of this process; the rows are carried over when there is one.
    A process has one connection and a lock, as a fork must find it closed: SQLite's locks belong to a process, and a
    child that had an open one would corrupt the file.
    """

    def __init__(
        self,
        folder: Callable[[], Path | None],
        name: str,
        schema: str,
        timeout_s: float,
        max_bytes: int,
    ) -> None:
        self._folder = folder
        self._name = name
        self._schema = schema
        # A thread may wait for another of this process, and then for another process.
        self._wait_s = timeout_s / 2
        self._max_bytes = max_bytes
        self._path: Path | None = None
        self._log = ""
        self._connection: Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._carried: list[tuple[str, list[Any]]] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._is_held_for_fork = False
        self._is_lost = False
        self._has_told_of_damage = False
        _alive.add(self)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Carry out some work as one transaction: all of it, or nothing.

        It may be called twice, as a file that is gone or damaged is made anew at once.

        Errors:  StoreError.
        """
        if self._pid != os.getpid():
            self.after_fork_in_child()  # forked by what does not tell Python
        if not self._lock.acquire(timeout=self._wait_s):
            raise StoreError("busy", "another thread has it")
        try:
            if self._is_lost:
                raise StoreError("unavailable", "this process was forked while it was in use")
            return self._run(work)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close what is open; the next use opens it again."""
        if self._lock.acquire(timeout=_FORK_PATIENCE_S):
            try:
                self._close()
            finally:
                self._lock.release()

    def _run(self, work: Callable[[Connection], T]) -> T:
        try:
            import sqlite3
        except ImportError as error:
            raise StoreError("unavailable", str(error)) from None
        tries = 2
        while True:
            tries -= 1
            try:
                return self._transaction(self._connected(), work)
            except (sqlite3.Error, OSError) as error:
                reason = self._after_failure(error)
                if reason != "unavailable" or not tries:
                    raise StoreError(reason, str(error)) from error

    def _transaction(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        try:
            # With the right to write from the start: one that gets it later may be refused it.
            connection.execute("BEGIN IMMEDIATE")
            for insertion, rows in self._carried:
                connection.executemany(insertion, rows)
            result = work(connection)
            connection.execute("COMMIT")
            self._carried = []
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return result

    def _after_failure(self, error: Exception) -> Trouble:
        """Say what has happened, and see to it that the next try may do better."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _BUSY or isinstance(error, TimeoutError):
            return "busy"
        if code in _FULL or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
            return "full"
        found = self._identity
        self._close()
        is_damaged = code in _DAMAGED or "no such table" in str(error)
        if is_damaged and self._path is not None and found is not None:
            self._move_away(self._path, found, error)
        return "unavailable"

    # --- The file --------------------------------------------------------------------------------------------

    def _connected(self) -> Connection:
        if self._connection is None:
            self._open()
        elif self._path is None:
            if self._folder() is not None:
                self._carried = _carried(self._connection)
                self._close()
                self._open()
        elif _identity(self._path) != self._identity:
            self._close()
            self._open()
        assert self._connection is not None  # noqa: S101 (just opened)
        self._bound_log(self._connection)
        return self._connection

    def _open(self) -> None:
        folder = self._folder()
        if folder is None:
            self._path, self._identity = None, _NO_FILE
            self._connection = _connect(":memory:", self._wait_s)
            self._connection.executescript(self._schema)
            return
        path = self._path = folder / self._name
        self._log = f"{path}-wal"
        # Known before it is opened, so that it can be moved away if it is no database at all.
        self._identity = _identity(path)
        if self._identity is None:
            self._make(path)
            self._identity = _identity(path)
        _check(path)
        most_pages = min(self._max_bytes, _share_of_space(path)) // _PAGE_BYTES
        log_pages = max(1, min(_LOG_PAGES, most_pages))
        connection = _connect(f"{path.absolute().as_uri()}?mode=rw", self._wait_s)
        try:
            for setting in (
                "synchronous=OFF",
                f"wal_autocheckpoint={log_pages}",
                f"journal_size_limit={4 * log_pages * _PAGE_BYTES}",
                f"max_page_count={max(1, most_pages)}",
            ):
                connection.execute(f"PRAGMA {setting}").fetchall()
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        if _identity(path) != self._identity:
            # The log, which is opened by its name, may be that of the file which is there now.
            raise FileNotFoundError(errno.ENOENT, "the folder was cleared away meanwhile", str(path))

    def _make(self, path: Path) -> None:
        """Make a file that has its tables before anybody finds it under its name.

        Errors:  OSError, or sqlite3.Error.
        """
        with self._alone(path.parent):
            if _identity(path) is not None:
                return  # another worker was faster
            # Of a file that was removed, or of one that was never finished: nobody has them by now.
            _remove(path, but=_damaged(path))
            # The end of its name is that of what is not finished, which the group's first worker clears away.
            hidden = path.with_name(f"{path.name}-{secrets.token_hex(8)}.new")
            try:
                os.close(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
                with closing(_connect(str(hidden), self._wait_s)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL").fetchone()
                    connection.executescript(self._schema)
                hidden.rename(path)
            except BaseException:
                _remove(hidden)
                raise

    def _move_away(self, path: Path, found: tuple[int, int], why: Exception) -> None:
        """Give a damaged file another name, unless somebody has done so before."""
        # Whatever is in the way is told by the next try, which finds the file as it is.
        with suppress(OSError), self._alone(path.parent):
            if _identity(path) != found:
                return
            path.rename(_damaged(path))
            if not self._has_told_of_damage:
                self._has_told_of_damage = True
                _logger.warning(
                    "%s is damaged (%s): it is now %s, and what waited in it for its truth is lost",
                    path,
                    why,
                    _damaged(path).name,
                )

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """Hold the folder's lock, without which no worker gives the file its name or takes it away."""
        import fcntl

        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            until = time.monotonic() + self._wait_s
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise TimeoutError(f"another worker holds {folder}") from None
                    time.sleep(0.002)  # no lock of files can be waited for with a limit
            yield
        finally:
            os.close(file)

    def _bound_log(self, connection: Connection) -> None:
        """See to it that the log does not grow for ever behind a worker that was stopped in the middle.

        Errors:  StoreError.
        """
        if self._path is None or _size(self._log) <= self._max_bytes // 2:
            return
        is_in_use, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_in_use:
            raise StoreError("busy", "a worker holds an old state of it, and the log is at its limit")

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    __del__ = close

    # --- Forks -----------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Close the file, and let no thread open it before the child is there."""
        self._is_held_for_fork = self._lock.acquire(timeout=_FORK_PATIENCE_S)
        if self._is_held_for_fork and self._path is not None:
            self._close()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._is_held_for_fork:
            self._is_held_for_fork = False
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Begin anew; what is open all the same is neither used nor closed, and then there is no other in here."""
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._is_held_for_fork = False
        self._carried = []  # the parent's to carry
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._path is None:
            connection.close()
        else:
            self._is_lost = True
            _abandoned.append(connection)


_alive: WeakSet[Database] = WeakSet()
_abandoned: list[Any] = []
"""Connections of a parent: to close one would let go of locks that are its own."""


def _everywhere(step: Callable[[Database], None]) -> Callable[[], None]:
    def take_step() -> None:
        for database in list(_alive):
            step(database)

    return take_step


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_everywhere(Database.before_fork),
        after_in_parent=_everywhere(Database.after_fork_in_parent),
        after_in_child=_everywhere(Database.after_fork_in_child),
    )


def _connect(where: str, wait_s: float) -> Connection:
    import sqlite3

    # Whoever uses it holds the lock, and transactions are begun by word.
    return sqlite3.connect(
        where, timeout=wait_s, isolation_level=None, check_same_thread=False, uri=where.startswith("file:")
    )


def _carried(connection: Connection) -> list[tuple[str, list[Any]]]:
    """All rows, with what inserts them elsewhere."""
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = []
    for table in tables:
        rows = connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 (a name of the schema's)
        if rows:
            places = ", ".join("?" * len(rows[0]))
            found.append((f"INSERT OR IGNORE INTO {table} VALUES ({places})", rows))  # noqa: S608 (likewise)
    return found


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file has a name; None where there is none."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _share_of_space(path: Path) -> int:
    """How large the file may become so that its log has as much room, and others some.

    On a file system that is really full its oldest rows cannot even be removed: that takes room in the log.
    """
    system = os.statvfs(path)
    space = system.f_bavail * system.f_frsize + path.stat().st_size
    return max(space // 4, (space - _LEFT_TO_OTHERS) // 2)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (asked for each time, and a Path takes longer)
    except FileNotFoundError:
        return 0  # where memory cannot be shared SQLite keeps to a rollback journal


def _check(path: Path) -> None:
    status, user = path.lstat(), os.getuid()
    if not stat.S_ISREG(status.st_mode) or status.st_uid != user or status.st_mode & 0o077:
        raise PermissionError(f"{path} must be a file of user {user} that nobody else can open")


def _remove(path: Path, but: Path | None = None) -> None:
    """Remove a file, and what SQLite has put beside it."""
    for left in path.parent.glob(f"{path.name}*"):
        if left != but:
            left.unlink(missing_ok=True)


def _damaged(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")
