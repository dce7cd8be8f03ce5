"""What dead workers have left: their totals, folded into one file, so that files on disk do not pile up."""

from __future__ import annotations

import json
import logging
import math
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import add
from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics._internal._view_instrument_match import _OVERFLOW_ATTRIBUTES, _hash_attributes

from otel_mlops.sdk import records
from otel_mlops.sdk.exemplars import Exemplar
from otel_mlops.sdk.forgotten import Forgotten, Labels
from otel_mlops.sdk.merge import KEEP_THE_DEAD, exact_terms, newest_exemplars
from otel_mlops.sdk.peers import Peer, PeerStream, attributes_of
from otel_mlops.sdk.records import BEGIN, EXEMPLARS, NAMES, SEGMENT_HEADER, SERIES, STREAM

_logger = logging.getLogger(__name__)

_LARGEST_WHOLE = 2.0**53
_NOTHING = Forgotten()


class RetiredSeries:
    """What all dead workers have recorded into a series: the exact sum, or the latest value.

    `terms` are readings that add up to it, as one number a cell cannot hold every sum exactly.
    """

    __slots__ = ("attributes", "born_ns", "exemplars", "terms")

    def __init__(self, attributes: Mapping[str, Any], born_ns: int, terms: list[list[float]]) -> None:
        self.attributes = attributes
        self.born_ns = born_ns
        self.terms = terms
        self.exemplars: list[Exemplar | None] | None = None

    def read(self) -> list[float]:
        """The largest term, which is 0 where the sum is."""
        return self.terms[0]

    def readings(self) -> list[_Reading]:
        """The terms, as series that can be put together with those of the living."""
        return [
            _Reading(self.attributes, self.born_ns, term, None if index else self.exemplars)
            for index, term in enumerate(self.terms)
        ]

    def add(self, cells: list[float]) -> None:
        """Add a reading."""
        if len(self.terms) == 1 and all(map(_adds_exactly, self.terms[0], cells)):
            self.terms = [[*map(add, self.terms[0], cells)]]
            return
        columns = [exact_terms(column) for column in zip(*self.terms, cells, strict=True)]
        depth = max(map(len, columns))
        self.terms = [[column[index] if index < len(column) else 0.0 for column in columns] for index in range(depth)]

    def add_exemplars(self, newer: Sequence[Exemplar | None] | None) -> None:
        """Keep the newest of each bucket."""
        self.exemplars = newest_exemplars((self.exemplars, newer))


class _Reading:
    """One term of a retired series, as a series of the page."""

    __slots__ = ("_exemplars", "attributes", "born_ns", "cells", "rendered")

    def __init__(
        self,
        attributes: Mapping[str, Any],
        born_ns: int,
        cells: list[float],
        exemplars: list[Exemplar | None] | None,
    ) -> None:
        self.attributes = attributes
        self.born_ns = born_ns
        self.rendered: str | None = None
        self.cells = array("d", cells)
        self._exemplars = exemplars

    def read(self) -> list[float]:
        """The cells."""
        return [*self.cells]

    def read_exemplars(self) -> list[Exemplar | None] | None:
        """The exemplars."""
        return self._exemplars


class RetiredStream(PeerStream):
    """A metric as dead workers described it, and what is left of its series."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        super().__init__(told)
        self.left: dict[Any, RetiredSeries] = {}

    def living(self, forgotten: Forgotten = _NOTHING) -> Sequence[Any]:
        """The readings of its series, but for those that were forgotten."""
        kept = [series for series in self.left.values() if not forgotten.hides(self, series)]
        return [reading for series in kept for reading in series.readings()]


class Retired:
    """The totals of the dead of a group, and whose ledgers are in them.

    A ledger that is listed in `names` is never folded again, whoever was killed in the middle: the list and the
    totals stand in one file, which is put in place before the ledger is removed.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.forgets = 0
        """The last `forget` of the group that was followed here."""
        self._streams: dict[tuple[Any, ...], RetiredStream] = {}

    @property
    def streams(self) -> list[RetiredStream]:
        """The metrics there is something left of."""
        return list(self._streams.values())

    def fold(
        self,
        peer: Peer,
        forgotten: Forgotten,
        limit: int,
        is_living: Callable[[tuple[Any, ...], Any], bool] = lambda _identity, _key: False,
    ) -> None:
        """Add what a dead worker has left, but for what was forgotten since it last looked.

        Past `limit` series of a metric the rest goes to its overflow series, but for those that a living worker has:
        `is_living` says so of a metric's identity and a series' key.
        """
        for stream in peer.streams:
            if stream.rule not in KEEP_THE_DEAD:
                continue
            kept = self._stream(stream.told)
            for series in stream.series:
                if not forgotten.hides(stream, series):
                    self._fold(kept, series, limit, is_living)
        self.names.append(peer.name)

    def _stream(self, told: Mapping[str, Any]) -> RetiredStream:
        made = RetiredStream(told)
        return self._streams.setdefault(made.identity, made)

    def _fold(self, stream: RetiredStream, series: Any, limit: int, is_living: Callable[..., bool]) -> None:
        cells, attributes = series.read(), series.attributes
        key = _hash_attributes(attributes)
        if key not in stream.left and len(stream.left) >= limit and not is_living(stream.identity, key):
            attributes = dict(_OVERFLOW_ATTRIBUTES)
            key = _hash_attributes(attributes)
        found = stream.left.get(key)
        if found is None:
            found = stream.left[key] = RetiredSeries(attributes, series.born_ns, [cells])
        elif stream.rule == "latest":
            if cells[1] >= found.terms[0][1]:
                found.terms = [cells]
        else:
            found.add(cells)
        found.born_ns = min(found.born_ns, series.born_ns)
        found.add_exemplars(series.read_exemplars())

    def forget(self, *every: Labels) -> None:
        """Remove the series that carry all of the labels of one of these."""
        forgotten = Forgotten(every)
        for stream in self._streams.values():
            for key in [key for key, series in stream.left.items() if forgotten.hides(stream, series)]:
                del stream.left[key]

    def save(self, path: Path) -> None:
        """Write everything beside the file, then put it in its place."""
        write_beside(path, self._content())
        put_in_place(path)

    def _content(self) -> bytes:
        entries: list[tuple[int, bytes, Sequence[float]]] = []

        def enter(kind: int, description: Any, cells: Sequence[float] = ()) -> None:
            entries.append((kind, records.encode(description), cells))

        enter(NAMES, {"names": self.names, "forgets": self.forgets})
        for number, stream in enumerate((each for each in self._streams.values() if each.left), 1):
            enter(STREAM, {**stream.told, "number": number})
            for series in stream.left.values():
                pairs = [*map(list, series.attributes.items())]
                born = [series.born_ns, len(series.terms)]
                enter(SERIES, [number, pairs, born], [*chain.from_iterable(series.terms)])
                if series.exemplars is not None:
                    enter(EXEMPLARS, [number, pairs, series.exemplars])
        length = BEGIN + sum(records.size_of(text, len(cells)) for _, text, cells in entries)
        content = bytearray(length)
        segment, offset = memoryview(content), BEGIN
        SEGMENT_HEADER.pack_into(segment, 0, records.MAGIC, length)
        for kind, text, cells in entries:
            records.write(segment, offset, kind, text, cells)
            offset += records.size_of(text, len(cells))
        return bytes(content)

    @classmethod
    def load(cls, path: Path) -> Retired:
        """Read the file; nothing is left where there is none.

        Errors:  ValueError if it is not of this format.
        """
        self = cls()
        try:
            found = records.read_ledger(path)
        except FileNotFoundError:
            return self
        streams: dict[int, RetiredStream] = {}
        for record in found:
            try:
                self._take(record, streams)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
                # Written by another version: what it says otherwise is left out, the rest is read.
                _logger.warning("a record of %s is not understood and left out: %r", path, error)
        return self

    def _take(self, record: records.Record, streams: dict[int, RetiredStream]) -> None:
        kind, told, cells = record
        if kind == NAMES:
            self.names, self.forgets = told["names"], told["forgets"]
        elif kind == STREAM:
            streams[told["number"]] = self._stream(told)
        elif kind in (SERIES, EXEMPLARS):
            number, pairs, rest = told
            attributes = attributes_of(pairs)
            left, key = streams[number].left, _hash_attributes(attributes)
            if kind == SERIES:
                born_ns, depth = rest
                size = len(cells) // depth
                terms = [cells[begin : begin + size] for begin in range(0, len(cells), size)]
                left[key] = RetiredSeries(attributes, born_ns, terms)
            else:
                left[key].exemplars = [None if each is None else Exemplar(*each) for each in rest]


def followed_by_retired(path: Path) -> float:
    """The last `forget` that was followed in the file of the retired, which begins with it; inf where there is none.

    Errors:  OSError if it cannot be read.
    """
    try:
        content = memoryview(path.read_bytes())
    except FileNotFoundError:
        return math.inf
    for segment in records.segments(content):
        first = next(records.scan(segment, BEGIN), None)
        told = None if first is None or first.kind != NAMES else records.describe(segment, first)
        followed = told.get("forgets") if isinstance(told, dict) else None
        return float(followed) if isinstance(followed, int | float) else 0.0
    return 0.0


def write_beside(path: Path, content: bytes) -> None:
    """Write a file's new content under another name."""
    beside = path.with_suffix(".new")
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(file, "wb") as out:
            out.write(content)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def put_in_place(path: Path) -> None:
    """Give the new content the file's name: whoever reads finds the old file or the new, and nothing between."""
    path.with_suffix(".new").rename(path)


def _adds_exactly(left: float, right: float) -> bool:
    return left.is_integer() and right.is_integer() and abs(left) + abs(right) < _LARGEST_WHOLE


def load_json(path: Path, otherwise: Any) -> Any:
    """What a file of the group says, or something else where it is absent or cannot be read."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return otherwise
