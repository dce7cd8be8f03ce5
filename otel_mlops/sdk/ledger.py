"""One worker's cells and the directory of its series, in one file of shared memory; nothing here knows metrics.

The file is a row of segments, each mapped on its own, so that it grows without moving a cell. records.py has
the format.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from otel_mlops.sdk import records
from otel_mlops.sdk.files import LockedFile, exists, namespace, reserve
from otel_mlops.sdk.records import (
    ABOUT,
    ABOUT_BYTES,
    BEGIN,
    GENERATION,
    PID,
    PID_NAMESPACE,
    SEGMENT_HEADER,
    STARTED,
)

_logger = logging.getLogger(__name__)

SEGMENT_BYTES = 64 * 1024

_REST_S = 60.0
"""How long the place of a forgotten record stays unused: whoever reads it just now must not read another's."""


class Home(Protocol):
    """Where a ledger's file lies: with the other workers of a group, or by itself."""

    def join(self, length: int) -> tuple[Path, int]:
        """Make the file, reserved and locked, and return it with the descriptor that holds the lock."""

    def leave(self, path: Path, lock_file: int, on_stay: Callable[[], None]) -> None:
        """Give the lock up; before that, tell whether the file stays for the others to take its numbers over."""


class Place(NamedTuple):
    """Where a record stands: its file (None is private memory), its segment's bytes, its offset, its cells."""

    file: LockedFile | None
    segment: memoryview
    offset: int
    cells: memoryview[float]


class Ledger:
    """The cells of one worker: a file of its own at `home`, private memory where there is none.

    Nothing is created before the first record is appended, so a process that records nothing leaves
    nothing. When the file cannot be made or cannot grow (a full tmpfs, a read-only root), further cells lie
    in private memory, `fault` says why, and `on_fault` is told once; `retry()` looks whether it can again.
    Past `max_bytes` it says that it is full.
    """

    def __init__(
        self,
        home: Home | None = None,
        *,
        on_fault: Callable[[str], None] | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self._home = home if os.name == "posix" else None
        self._on_fault = on_fault
        self._max_bytes = max_bytes
        self._begin()

    def _begin(self) -> None:
        self.lock = threading.RLock()
        self._file: LockedFile | None = None
        self.fault: str | None = None
        self._closed = False
        self._segment = memoryview(b"")
        self._segment_file: LockedFile | None = None
        self._about = _new_about()
        self._used = self._end = 0
        self._free: dict[tuple[int, int], list[tuple[float, Place]]] = {}
        self._free_bytes = 0
        self.total_bytes = 0
        self.streams = 0

    @property
    def path(self) -> Path | None:
        """The file; None before the first record, and where there is none."""
        return self._file.path if self._file is not None else None

    @property
    def is_full(self) -> bool:
        """Whether it takes no more series."""
        if self._max_bytes is None:
            return False
        # Places that rest are used again if what comes has their size, so they count for half at most.
        free = self._end - self._used + min(self._free_bytes, self._max_bytes)
        return self.total_bytes - free >= self._max_bytes

    @property
    def about(self) -> memoryview[float]:
        """The cells about the ledger itself."""
        return self._about

    def note_started(self, *, has_started: bool) -> None:
        """Note whether the worker has started, which others can read."""
        self._about[STARTED] = float(has_started)

    def append(self, kind: int, description: Any, cells: int | Sequence[float]) -> Place:
        """Append a record with these numbers in its cells, or so many zeroes, and return where they are."""
        values = [0.0] * cells if isinstance(cells, int) else cells
        text = records.encode(description)
        size = records.size_of(text, len(values))
        with self.lock:
            file, segment, offset, *_ = self._rested(len(text), len(values)) or self._claim(size)
            place = Place(file, segment, offset, records.write(segment, offset, kind, text, values))
        self._about[GENERATION] += 1.0
        return place

    def forget(self, place: Place) -> None:
        """Mark a record as gone; after a rest its place is used again."""
        if not records.forget(place.segment, place.offset):
            return
        self._about[GENERATION] += 1.0
        size = len(place.cells)
        record = next(records.scan(place.segment, place.offset))
        with self.lock:
            rests = self._free.setdefault((record.first - record.offset, size), [])
            rests.append((time.monotonic() + _REST_S, place))
            self._free_bytes += record.end - record.offset

    def holds(self, place: Place) -> bool:
        """Whether a record lies in the file."""
        return place.file is not None and place.file is self._file

    def is_private(self, place: Place) -> bool:
        """Whether a record lies where nobody else reads it, though it should."""
        return self._home is not None and not self._closed and not self.holds(place)

    def retry(self) -> bool:
        """Look whether the file is there and can be used again; True if records may be moved into it."""
        with self.lock:
            if self._home is None or self._closed:
                return False
            if self._file is not None and not exists(self._file.path):
                # Somebody has removed it: what lies in it is read by nobody any more.
                self._let_go()
            if self._file is None or self._segment_file is None:
                told, self.fault = self.fault, None
                memory = self._map_file(SEGMENT_BYTES, told)
                if memory is not None and self._file is not None:
                    # What lies in private memory is about to be moved, and is not counted any more.
                    self.total_bytes = self._file.bytes - SEGMENT_BYTES
                    self._use(memory, SEGMENT_BYTES, self._file)
            return self._segment_file is not None

    @property
    def has_lost_its_lock(self) -> bool:
        """Whether the group takes this worker for dead, as something has closed the file under it."""
        return self._file is not None and not self._file.is_locked

    def lose(self, on_stay: Callable[[], None]) -> None:
        """Begin anew after the lock was lost: the group takes the numbers over.

        `on_stay` is called as by `leave()`.
        """
        with self.lock:
            if not self.has_lost_its_lock:
                return
            has_started = bool(self._about[STARTED])
            self._closed = True
            on_stay()
            self._let_go()
            self._about = _new_about()
            self.note_started(has_started=has_started)
            self._closed = False

    def leave(self, on_stay: Callable[[], None] = lambda: None) -> None:
        """Leave the group; records go on in private memory.

        `on_stay` is called, while the worker still counts as living, if the numbers stay with the group:
        what is recorded from then on must not be added to them.
        """
        with self.lock:
            self._closed = True
            self._segment_file, self._segment, self._used, self._end = None, memoryview(b""), 0, 0
            file = self._file

            def stay() -> None:
                # Both at once, so that a page made just now finds the numbers here or there, and not twice.
                on_stay()
                self._file = None
                self._about = _new_about()  # nothing is written into that file any more

            if file is not None and self._home is not None:
                if file.is_locked:
                    self._home.leave(file.path, file.lock_file, stay)
                else:
                    stay()  # it was lost, and the numbers with it, to the others
            self._file = None

    def rejoin(self) -> None:
        """Begin a file again after `leave()`, with the next record that is moved or made."""
        with self.lock:
            if self._closed:
                self._closed = False
                self._segment, self._used, self._end = memoryview(b""), 0, 0
                self._free = {}
                self._free_bytes = 0
                self.fault = None
                self.total_bytes = 0

    def abandon(self) -> None:
        """Begin anew in a forked child: nothing of the parent's file, lock or mappings is kept."""
        file = self._file
        self._begin()
        if file is not None:
            # The child shares the parent's open file, and with it the lock: closing only drops our hold.
            file.unlock()

    def close(self) -> None:
        """Leave for good; cells that are still referred to go on in memory nobody else sees."""
        self.leave()

    def _let_go(self) -> None:
        file, self._file = self._file, None
        self._segment_file, self._segment, self._used, self._end = None, memoryview(b""), 0, 0
        self._free = {}
        self._free_bytes = 0
        if file is not None:
            file.unlock()

    def _rested(self, text: int, cells: int) -> Place | None:
        """The place of a forgotten record of this very size, if one has rested long enough."""
        rests = self._free.get((records.size_of(b"", 0) + text, cells), [])
        now = time.monotonic()
        while True:
            # No call stands between the question and the taking, for the reason that `_claim` gives.
            if not rests or rests[0][0] > now:
                return None
            place = rests[0][1]
            del rests[0]
            self._free_bytes -= records.size_of(b"", cells) + text
            if self.holds(place) or (place.file is None and self._segment_file is None):
                return place

    def _claim(self, size: int) -> tuple[LockedFile | None, memoryview, int]:
        while self._used + size > self._end:
            self._grow(size)
        # No call stands between the question and the claim: a signal handler or a finaliser of this very
        # thread, which runs at calls only, may append as well and must not be given the same space.
        segment, offset = self._segment, self._used
        self._used = offset + size
        return self._segment_file, segment, offset

    def _grow(self, size: int) -> None:
        length = -(-(BEGIN + size) // SEGMENT_BYTES) * SEGMENT_BYTES
        memory = self._map_file(length)
        if memory is not None:
            self._use(memory, length, self._file)
        elif os.name == "posix":
            # MAP_PRIVATE: a forked child must not write into its parent's numbers.
            self._use(mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), length, None)
        else:
            self._use(mmap.mmap(-1, length), length, None)

    def _use(self, memory: mmap.mmap, length: int, file: LockedFile | None) -> None:
        segment = memoryview(memory)
        SEGMENT_HEADER.pack_into(segment, 0, records.MAGIC, length)
        self.total_bytes += length
        self._segment, self._segment_file, self._used, self._end = segment, file, BEGIN, length

    def _map_file(self, length: int, told: str | None = None) -> mmap.mmap | None:
        if self._home is None or self._closed or self.fault is not None:
            return None
        try:
            if self._file is None:
                path, lock_file = self._home.join(length)
                if self.path is None:
                    self._file = LockedFile(path, lock_file)
                else:  # a signal handler has recorded meanwhile, and its file is the ledger's
                    path.unlink(missing_ok=True)
                    os.close(lock_file)
            mine = self._file
            assert mine is not None  # noqa: S101
            # Claimed at once, for the same reason as a record's space.
            begin = mine.bytes
            mine.bytes = begin + length
            try:
                memory = _map(mine.path, begin, length)
            except (OSError, ValueError):
                mine.bytes = begin  # a gap in the file would end every reading of it
                raise
            if begin == 0:
                about = memoryview(memory)[ABOUT].cast("d")
                about[STARTED] = self._about[STARTED]
                about[PID], about[PID_NAMESPACE] = float(os.getpid()), float(namespace("pid"))
                self._about = about
        except (OSError, ValueError) as error:
            self.fault = str(error)
            if self._on_fault is not None and self.fault != told:
                self._on_fault(self.fault)
            return None
        return memory


def _new_about() -> memoryview[float]:
    return memoryview(bytearray(ABOUT_BYTES)).cast("d")


def _map(path: Path, begin: int, length: int) -> mmap.mmap:
    # A mapping keeps a copy of its descriptor; the lock has one of its own, so that a forked child that
    # closes the lock's does not go on holding it through the mapping.
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if begin:
            reserve(file, begin, length)
        return mmap.mmap(file, length, offset=begin)
    finally:
        os.close(file)
