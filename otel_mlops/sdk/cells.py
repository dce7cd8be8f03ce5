"""Cells: counts of a model that are no metric by themselves, from which whoever leads works scores out.

They merge over workers by exact addition, outlive the worker, and are forgotten, as counters are; no page and no reader
shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from otel_mlops.sdk.series import Series

if TYPE_CHECKING:
    from opentelemetry.util.types import AnyValue

    from otel_mlops.sdk.stream import Stream

KIND = "cells"


class CellSeries(Series):
    """A row of numbers, each of which only adds up."""

    __slots__ = ("size",)

    def __init__(self, stream: Stream, attributes: Mapping[str, AnyValue]) -> None:
        self.size = stream.size
        super().__init__(stream, attributes)

    def count(self, indices: Iterable[int]) -> None:
        """Add 1 to each of these cells."""
        for index in indices:
            # The cells anew each time: the series may move between two of them.
            self.cells[index] += 1.0

    def record(self, index: int, amount: float) -> None:
        """Add 1 to one cell, and an amount to the last one."""
        cells = self.cells  # in one breath, or the series might move in the middle
        cells[index] += 1.0
        cells[-1] += amount

    def add(self, amounts: Iterable[tuple[int, float]]) -> None:
        """Add finite amounts to cells, all of them or, to whoever reads meanwhile, some already."""
        with self.stream.ledger.lock:  # the series must not move in the middle
            cells = self.cells
            for index, amount in amounts:
                cells[index] += amount


class NoCells:
    """The cells of a provider that is disabled, and those for which there is no room."""

    def count(self, indices: Iterable[int]) -> None:
        """Do nothing."""

    def record(self, index: int, amount: float) -> None:
        """Do nothing."""

    def add(self, amounts: Iterable[tuple[int, float]]) -> None:
        """Do nothing."""


class Cells:
    """The streams of the cells; `new_stream` makes one of a name, a size and a description."""

    def __init__(self, new_stream: Callable[[str, int, str], Stream]) -> None:
        self._new_stream = new_stream
        self._streams: dict[str, Stream] = {}

    @property
    def streams(self) -> list[Stream]:
        """The streams, in the order in which they were first asked for."""
        return list(self._streams.values())

    def find(self, name: str, size: int, attributes: Mapping[str, str], description: str) -> Any:
        """The series of these attributes; the description is that of who asks first."""
        stream = self._streams.get(name)
        if stream is None:
            self._drop_unused()
            stream = self._streams.setdefault(name, self._new_stream(name, size, description))
        series = stream.find(attributes)
        # What there is no room for is not counted: together it would be of no model.
        return NoCells() if stream.is_overflow(series) else series

    def _drop_unused(self) -> None:
        """Let go of the streams whose series were forgotten and are held by nobody, and of their descriptions."""
        for name, stream in list(self._streams.items()):
            if stream.is_unused():
                del self._streams[name]
                stream.leave()

    def after_fork(self) -> None:
        """Begin at nothing in a forked child."""
        for stream in self._streams.values():
            stream.after_fork()
