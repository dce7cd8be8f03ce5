"""One worker's cells and the directory of its series, in one file of shared memory; nothing here knows metrics.

The file is a row of segments, each mapped on its own, so that it grows without moving a cell. A segment is
a header and records, one after the other; a record is a header, a description (JSON) and its cells
(float64). The header carries a checksum of the description: whoever reads stops at the first record that
does not check, so a worker killed in the middle of a registration leaves nothing half-read.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import struct
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAGIC = b"OMLEDG01"
SEGMENT_BYTES = 64 * 1024

STREAM, SERIES, EXEMPLARS = 1, 2, 3
"""What a record describes: a metric, a series of it, or the exemplars of a series."""

_SEGMENT_HEADER = struct.Struct("<8sQ")
_RECORD_HEADER = struct.Struct("<IIIHBx")  # checksum, bytes of description, cells, kind, whether it is forgotten
_FORGOTTEN_AT = 14
_CELL_BYTES = 8


class Place(NamedTuple):
    """Where a record stands: its segment's bytes, the offset of its header, and its cells."""

    segment: memoryview
    offset: int
    cells: memoryview[float]


class Record(NamedTuple):
    """One record as read from a ledger's file."""

    kind: int
    description: Any
    cells: list[float]


class Ledger:
    """The cells of one worker: a file of its own in `folder`, private memory where there is none.

    Nothing is created before the first record is appended, so a process that records nothing leaves
    nothing. When the file cannot be made or cannot grow (a full tmpfs, a read-only root), further cells lie
    in private memory, `fault` says why, and `on_fault` is told once.
    """

    def __init__(
        self, folder: Callable[[], Path] | None = None, *, on_fault: Callable[[str], None] | None = None
    ) -> None:
        self._folder = folder
        self._on_fault = on_fault
        self._begin()

    def _begin(self) -> None:
        self.lock = threading.RLock()
        self.path: Path | None = None
        self.fault: str | None = None
        self._lock_file = -1
        self._closed = False
        self._file_bytes = 0
        self._segment = memoryview(b"")
        self._used = self._end = 0
        self.total_bytes = 0
        self.streams = 0

    def append(self, kind: int, description: Any, cells: int) -> Place:
        """Append a record with `cells` zeroed cells and return where they are."""
        text = json.dumps(description, default=_encode, separators=(",", ":")).encode()
        head = _RECORD_HEADER.pack(_checksum(text, cells, kind), len(text), cells, kind, 0) + text
        written, first = len(head), _RECORD_HEADER.size + _padded(len(text))
        size = first + cells * _CELL_BYTES
        with self.lock:
            while self._used + size > self._end:
                self._grow(size)
            # No call stands between the question and the claim: a signal handler or a finaliser of this very
            # thread, which runs at calls only, may append as well and must not be given the same space.
            segment, offset = self._segment, self._used
            self._used = offset + size
            segment[offset : offset + written] = head
            return Place(segment, offset, segment[offset + first : offset + size].cast("d"))

    def forget(self, place: Place) -> None:
        """Mark a record as gone; its cells stay where they are and are read by nobody."""
        # One byte, so that whoever reads just now finds a whole record or none, and those behind it.
        place.segment[place.offset + _FORGOTTEN_AT] = 1

    def abandon(self) -> None:
        """Begin anew in a forked child: nothing of the parent's file, lock or mappings is kept."""
        lock_file = self._lock_file
        self._begin()
        if lock_file >= 0:
            # The child shares the parent's open file, and with it the lock: closing only drops our hold.
            os.close(lock_file)

    def close(self) -> None:
        """Remove the file; cells that are still referred to go on in memory nobody else sees."""
        with self.lock:
            self._closed = True
            if self.path is not None:
                self.path.unlink(missing_ok=True)
                self.path = None
            if self._lock_file >= 0:
                os.close(self._lock_file)
                self._lock_file = -1

    def _grow(self, size: int) -> None:
        need = _SEGMENT_HEADER.size + size
        length = -(-need // SEGMENT_BYTES) * SEGMENT_BYTES
        memory = self._map_file(length)
        if memory is None and os.name == "posix":
            # MAP_PRIVATE: a forked child must not write into its parent's numbers.
            memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        elif memory is None:
            memory = mmap.mmap(-1, length)
        segment = memoryview(memory)
        _SEGMENT_HEADER.pack_into(segment, 0, MAGIC, length)
        self.total_bytes += length
        self._segment, self._used, self._end = segment, _SEGMENT_HEADER.size, length

    def _map_file(self, length: int) -> mmap.mmap | None:
        if self._folder is None or self._closed or self.fault is not None or os.name != "posix":
            return None
        try:
            path = self.path
            if path is None:
                path, lock_file = _create(self._folder(), length)
                if self.path is None:
                    self.path, self._lock_file = path, lock_file
                else:  # a signal handler has recorded meanwhile, and its file is the ledger's
                    path.unlink(missing_ok=True)
                    os.close(lock_file)
                    path = self.path
            # Claimed at once, for the same reason as a record's space.
            begin = self._file_bytes
            self._file_bytes = begin + length
            # A mapping keeps a copy of its descriptor; the lock has one of its own, so that a forked
            # child that closes the lock's does not go on holding it through the mapping.
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if begin:
                    _reserve(file, begin, length)
                memory = mmap.mmap(file, length, offset=begin)
            finally:
                os.close(file)
        except (OSError, ValueError) as error:
            self.fault = str(error)
            if self._on_fault is not None:
                self._on_fault(self.fault)
            return None
        return memory


def read_ledger(path: Path) -> list[Record]:
    """Read the records of a ledger's file, its worker alive or dead, up to the first bad one.

    Errors: ValueError if the file is no ledger of this format.
    """
    content = memoryview(path.read_bytes())
    if bytes(content[: len(MAGIC)]) != MAGIC:
        msg = f"{path} is no ledger of format {MAGIC.decode()}: it begins with {bytes(content[:8])!r}"
        raise ValueError(msg)
    return list(_records(content))


def is_alive(path: Path) -> bool:
    """Say whether a ledger's worker lives, by the kernel's lock on the file and never by a pid."""
    import fcntl

    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _records(content: memoryview) -> Iterator[Record]:
    begin = 0
    while begin + _SEGMENT_HEADER.size <= len(content):
        magic, length = _SEGMENT_HEADER.unpack_from(content, begin)
        if magic != MAGIC or length < _SEGMENT_HEADER.size:
            return
        offset, end = begin + _SEGMENT_HEADER.size, min(begin + length, len(content))
        while offset + _RECORD_HEADER.size <= end:
            checksum, size, cells, kind, forgotten = _RECORD_HEADER.unpack_from(content, offset)
            if not checksum:
                break  # the rest of this segment is unused
            start = offset + _RECORD_HEADER.size
            first = start + _padded(size)
            after = first + cells * _CELL_BYTES
            if after > end:
                return
            text = bytes(content[start : start + size])
            if checksum != _checksum(text, cells, kind):
                return
            if not forgotten:
                values = list(struct.unpack_from(f"={cells}d", content, first))
                yield Record(kind, json.loads(text, object_hook=_decode), values)
            offset = after
        begin += length


def _create(folder: Path, length: int) -> tuple[Path, int]:
    """Make a file that is reserved and locked before anybody can see it under its name."""
    import fcntl

    name = uuid.uuid4().hex
    hidden, path = folder / f"{name}.new", folder / f"{name}.ledger"
    file = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _reserve(file, 0, length)
        os.pwrite(file, _SEGMENT_HEADER.pack(MAGIC, length), 0)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(path)
    except BaseException:
        os.close(file)
        hidden.unlink(missing_ok=True)
        raise
    return path, file


def _reserve(file: int, offset: int, length: int) -> None:
    """Take the space now: a hole in a file on a full tmpfs would kill the worker with SIGBUS later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, offset, length)
        return
    zeros = bytes(length)
    while zeros:
        written = os.pwrite(file, zeros, offset)
        zeros, offset = zeros[written:], offset + written


def _checksum(text: bytes, cells: int, kind: int) -> int:
    # Never 0: zero is what unused space reads as.
    return zlib.crc32(text, zlib.crc32(struct.pack("<II", cells, kind))) | 1 << 31


def _padded(length: int) -> int:
    return -(-length // _CELL_BYTES) * _CELL_BYTES


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"__bytes__": base64.b64encode(value).decode()}
    return str(value)


def _decode(value: dict[str, Any]) -> Any:
    if value.keys() == {"__bytes__"}:
        try:
            return base64.b64decode(value["__bytes__"], validate=True)
        except (TypeError, ValueError):
            return value  # somebody's own mapping that has this key
    return value
