"""Another worker's ledger, alive or dead, as whoever makes the page reads it."""

from __future__ import annotations

import logging
import mmap
import os
import struct
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from opentelemetry.sdk.metrics._internal._view_instrument_match import _hash_attributes
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_mlops.metrics import Kind
from otel_mlops.sdk import records
from otel_mlops.sdk.exemplars import Exemplar, Exemplars, read_exemplars
from otel_mlops.sdk.files import is_locked
from otel_mlops.sdk.forgotten import Forgotten
from otel_mlops.sdk.records import (
    BEGIN,
    EXEMPLARS,
    FORGETS,
    GENERATION,
    LEADS,
    PID,
    PID_NAMESPACE,
    SERIES,
    STARTED,
    STREAM,
    ZEROED,
    Found,
)

_logger = logging.getLogger(__name__)

_FORGIVING_S = 5.0
"""How often a ledger is read again though it does not say that a record has come or gone."""


class PeerSeries:
    """A series in another worker's ledger."""

    __slots__ = ("_exemplars", "attributes", "born_ns", "cells", "number", "rendered")

    def __init__(self, number: int, attributes: Mapping[str, Any], born_ns: int, cells: memoryview[float]) -> None:
        self.number = number
        """Its metric's, in that ledger."""
        self.attributes = attributes
        self.born_ns = born_ns
        self.cells = cells
        self.rendered: str | None = None
        self._exemplars: memoryview[float] | None = None

    def read(self) -> list[float]:
        """The cells as they are now."""
        return self.cells.tolist()  # type: ignore[return-value]

    def read_exemplars(self) -> list[Exemplar | None] | None:
        """The exemplar of each bucket, None where there never was one."""
        return None if self._exemplars is None else read_exemplars(self._exemplars.cast("B"))

    def keep_exemplars(self, cells: memoryview[float], slots: int) -> None:
        """Know where the exemplars are.

        Errors:  ValueError if there is not one for each bucket.
        """
        if len(cells) != Exemplars.cells(slots):
            msg = f"{slots} exemplars have {Exemplars.cells(slots)} cells, not {len(cells)}"
            raise ValueError(msg)
        self._exemplars = cells


class PeerStream:
    """What a metric is, as another worker's ledger describes it, and its series there."""

    observed: bool

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.name: str = told["name"]
        self.unit: str = told["unit"]
        self.description: str = told["description"]
        self.kind: str = told["kind"]
        self.shown: str = told["shown"]
        self.rule: str = told["rule"]
        self.observed = bool(told["observed"])
        self.states = tuple(told["states"])
        self.subject: tuple[str, ...] | None = None if told["subject"] is None else tuple(told["subject"])
        self.bounds: tuple[float, ...] = tuple(told["bounds"])
        self.size = int(told["size"])
        self.scope = InstrumentationScope(*told["scope"])
        self.series: list[PeerSeries] = []
        self.by_attributes: dict[Any, PeerSeries] = {}
        self.told = told
        if self.shown not in (*get_args(Kind), "cells"):
            msg = f"{self.name} is a {self.shown}, which nobody knows"
            raise ValueError(msg)

    @property
    def length(self) -> int:
        """How many cells a series has."""
        if self.kind == "cells":
            return self.size
        if self.kind == "histogram":
            return len(self.bounds) + 2
        return 2 if self.kind == "gauge" or self.observed else 1

    @property
    def identity(self) -> tuple[Any, ...]:
        """What two workers' streams of the same metric have in common."""
        return identity_of(self)

    def living(self) -> Sequence[Any]:
        """Its series."""
        return self.series


def identity_of(stream: Any) -> tuple[Any, ...]:
    """What two streams of the same metric have in common, whoever keeps them."""
    scope = stream.scope
    return (
        stream.name, stream.unit, stream.kind, stream.shown, stream.rule, stream.bounds, stream.size,
        scope.name, scope.version, scope.schema_url,
    )  # fmt: skip


def attributes_of(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Attributes as a ledger has them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in pairs}


def about_of(path: Path) -> tuple[float, ...]:
    """The cells about a ledger itself, as its file has them; 0 where it is too short.

    Errors:  OSError if the file is gone or cannot be opened.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        found = os.pread(file, records.ABOUT_BYTES, records.ABOUT.start).ljust(records.ABOUT_BYTES, b"\0")
    finally:
        os.close(file)
    return struct.unpack(f"={records.ABOUT_BYTES // records.CELL_BYTES}d", found)


class Peer:
    """The ledger of another worker of the group.

    Errors:  OSError if the file is gone or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self.label = self.name.partition("-")[0]
        """The value of the label `worker` where each worker is shown."""
        self.number = int(self.label) if self.label.isdecimal() else None
        """The worker's number; None for the process of the page."""
        # Never the mapping's: this one only asks for the lock.
        self._lock_file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self.close = weakref.finalize(self, os.close, self._lock_file)
        """Let go of the file, as happens at the latest when nobody refers to this any more."""
        self._maps: list[memoryview] = []
        self._about: Sequence[float] = (0.0,) * (records.ABOUT_BYTES // records.CELL_BYTES)
        """The cells about the ledger itself, as soon as there is something mapped."""
        self._mapped = 0
        self._known: dict[tuple[int, int, int], Any] = {}
        self._seen = -1.0
        self._looked_at = 0.0
        self.is_alive = True
        self.streams: list[PeerStream] = []
        self.version = 0
        """Grows when a series comes or goes."""

    @property
    def forgets(self) -> float:
        """The last `forget` of the group that its worker has followed."""
        return self._about[FORGETS]

    @property
    def zeroed(self) -> float:
        """The last `forget` of the group that another worker has carried out here."""
        return self._about[ZEROED]

    @property
    def has_started(self) -> bool:
        """Whether its worker has started, and is not a master that only imports the application."""
        return bool(self._about[STARTED])

    @property
    def leads(self) -> bool:
        """Whether its worker leads."""
        return bool(self._about[LEADS])

    @property
    def pid(self) -> int:
        """Its worker's process, in the namespace of pids that this one runs in; 0 before that is known."""
        return int(self._about[PID])

    @property
    def pid_namespace(self) -> int:
        """Which that namespace is: in another one a pid is of another process."""
        return int(self._about[PID_NAMESPACE])

    def look(self) -> None:
        """See whether the worker lives, and what series have come and gone.

        Errors:  OSError if the file cannot be mapped; the worker then counts as living, so that nobody takes
                 what was read so far for all that it has left.
        """
        is_dead = self.is_alive and not is_locked(self._lock_file)
        self._map()
        if self._maps:
            generation = self._about[GENERATION]
            now = time.monotonic()
            if is_dead or generation != self._seen or now - self._looked_at > _FORGIVING_S:
                self._seen, self._looked_at = generation, now
                self._read()
        if is_dead:
            self.is_alive = False
            self.version += 1

    def zero(self, number: int, forgotten: Forgotten) -> None:
        """Forget in the stead of a worker that follows nobody, by setting cells to zero, up to this `forget`.

        The records stay, as its worker goes on to record into them.

        Errors:  OSError if the file cannot be opened or mapped.
        """
        file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            memory = memoryview(mmap.mmap(file, self._mapped))
        finally:
            os.close(file)
        streams = {stream.told["number"]: stream for stream in self.streams}
        for segment in records.segments(memory):
            for found in records.scan(segment, BEGIN):
                if found.forgotten or found.kind not in (SERIES, EXEMPLARS):
                    continue
                try:
                    told = _READS[found.kind](segment, found)
                    if forgotten.hides(streams[told.number], told):
                        told.cells[:] = memoryview(bytes(told.cells.nbytes)).cast("d")
                except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                    _logger.debug("a record of %s is not understood: %r", self.path, error)
        # Last: until it is done, what matches is hidden altogether.
        memory[records.ABOUT].cast("d")[ZEROED] = float(number)

    def _map(self) -> None:
        size = os.fstat(self._lock_file).st_size
        while self._mapped + BEGIN <= size:
            header = os.pread(self._lock_file, records.SEGMENT_HEADER.size, self._mapped)
            magic, length = records.SEGMENT_HEADER.unpack(header)
            whole = length > 0 and length % mmap.ALLOCATIONGRANULARITY == 0 and self._mapped + length <= size
            if magic != records.MAGIC or not whole:
                return  # reserved, and not begun yet
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                memory = mmap.mmap(file, length, access=mmap.ACCESS_READ, offset=self._mapped)
            finally:
                os.close(file)
            self._maps.append(memoryview(memory))
            self._about = self._maps[0][records.ABOUT].cast("d")
            self._mapped += length

    def _read(self) -> None:
        known, self._known = self._known, {}
        streams: dict[int, PeerStream] = {}
        every = [
            ((index, found.offset, found.checksum), found)
            for index, segment in enumerate(self._maps)
            for found in records.scan(segment, BEGIN)
            if not found.forgotten and found.kind in _READS
        ]
        # By kind: where a forgotten record was, another is written, and so a series may stand before its metric.
        for key, found in sorted(every, key=lambda each: each[1].kind):
            try:
                told = known.get(key) or _READS[found.kind](self._maps[key[0]], found)
                _enter(told, streams)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                # Written by another version: what it says otherwise is left out, the rest is read.
                _logger.debug("a record of %s is not understood: %r", self.path, error)
            else:
                self._known[key] = told
        if known.keys() != self._known.keys():
            self.version += 1
        self.streams = list(streams.values())


class _Exemplars(NamedTuple):
    """The exemplars of a series, as they lie in another worker's ledger."""

    number: int
    attributes: Mapping[str, Any]
    cells: memoryview[float]


def _read_stream(segment: memoryview, found: Found) -> PeerStream:
    return PeerStream(records.describe(segment, found))


def _read_series(segment: memoryview, found: Found) -> PeerSeries:
    number, pairs, born_ns = records.describe(segment, found)
    return PeerSeries(number, attributes_of(pairs), int(born_ns), records.cells_of(segment, found))


def _read_exemplars(segment: memoryview, found: Found) -> _Exemplars:
    number, pairs, _ = records.describe(segment, found)
    return _Exemplars(number, attributes_of(pairs), records.cells_of(segment, found))


_READS: dict[int, Callable[[memoryview, Found], Any]] = {
    STREAM: _read_stream,
    SERIES: _read_series,
    EXEMPLARS: _read_exemplars,
}


def _enter(told: PeerStream | PeerSeries | _Exemplars, streams: dict[int, PeerStream]) -> None:
    """Put what a record says where it belongs.

    Errors:  KeyError if there is no such place; ValueError if it has not the cells that go there.
    """
    if isinstance(told, PeerStream):
        told.series = []
        told.by_attributes = {}
        streams[told.told["number"]] = told
        return
    stream = streams[told.number]
    key = _hash_attributes(told.attributes)
    if isinstance(told, PeerSeries):
        if len(told.cells) != stream.length:
            msg = f"{stream.name} has {stream.length} cells a series, not {len(told.cells)}"
            raise ValueError(msg)
        stream.series.append(told)
        stream.by_attributes[key] = told
    else:
        stream.by_attributes[key].keep_exemplars(told.cells, len(stream.bounds) + 1)
