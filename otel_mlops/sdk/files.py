"""The files of ledgers: made reserved and locked, and known by their lock to be of a worker that lives."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from otel_mlops.sdk import records
from otel_mlops.sdk.records import SEGMENT_HEADER


class LockedFile:
    """The file of a ledger, and the lock that says its worker lives."""

    def __init__(self, path: Path, lock_file: int) -> None:
        self.path = path
        self.lock_file = lock_file
        self.bytes = 0
        self._identity = identity(lock_file)

    @property
    def is_locked(self) -> bool:
        """Whether the lock is still held: a program may close all descriptors it knows nothing of."""
        return identity(self.lock_file) == self._identity

    def unlock(self) -> None:
        """Let go of the lock, but of no stranger's file that has its number by now."""
        if self.is_locked:
            os.close(self.lock_file)


def is_alive(path: Path) -> bool:
    """Say whether a ledger's worker lives, by the kernel's lock on the file and never by a pid."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return is_locked(file)
    finally:
        os.close(file)


def is_locked(file: int) -> bool:
    """Say whether another open file holds the lock of its worker."""
    import fcntl

    try:
        # Shared: two who ask at once must not take each other for the worker.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def create(folder: Path, name: str, length: int, forgets: float = 0.0) -> tuple[Path, int]:
    """Make a file that is reserved and locked before anybody can see it under its name.

    `forgets` is the number of the group's last `forget`, which a new worker has nothing to do with.

    Errors:  OSError that names the folder: one that is tried again and again must not look new each time.
    """
    import fcntl

    hidden, path = folder / f"{name}.new", folder / f"{name}.ledger"
    try:
        file = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    try:
        reserve(file, 0, length)
        os.pwrite(file, SEGMENT_HEADER.pack(records.MAGIC, length) + struct.pack("=dd", 0.0, forgets), 0)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(path)
    except BaseException:
        os.close(file)
        hidden.unlink(missing_ok=True)
        raise
    return path, file


def reserve(file: int, offset: int, length: int) -> None:
    """Take the space now: a hole in a file on a full tmpfs would kill the worker with SIGBUS later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, offset, length)
        return
    zeros = bytes(length)
    while zeros:
        written = os.pwrite(file, zeros, offset)
        zeros, offset = zeros[written:], offset + written


def namespace(kind: str) -> int:
    """Which namespace of a kind (`net`, `pid`) this process is in; 0 where the system has one for all."""
    try:
        return Path(f"/proc/self/ns/{kind}").stat().st_ino
    except OSError:
        return 0


def exists(path: Path) -> bool:
    """Whether a file is there, for this user."""
    try:
        return path.exists()
    except OSError:
        return False  # of no use to this user any more


def identity(file: int) -> tuple[int, int] | None:
    """Which file an open one is, whatever its name is by now; None if there is none of this number."""
    try:
        found = os.fstat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def mark_of(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is put in another's place."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
