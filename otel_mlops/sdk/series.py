"""Series: a metric with one set of attributes, whose numbers are cells; recording is adding to a cell.

On CPython with the GIL, `cells[i] += value` on a memoryview of doubles runs from read to write without a
point at which another thread or a signal handler can run. That holds for an exact float and an exact
memoryview, in one line of its own, and for nothing else: hence `value = float(value)` in a statement before
it. Where the interpreter does not give that, the locked classes of recording.py are used.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from opentelemetry import context as otel_context

from otel_mlops.sdk.batch import LARGEST, count_by_bucket, drawn
from otel_mlops.sdk.exemplars import Exemplar, Exemplars, sampled_span
from otel_mlops.sdk.ledger import Place
from otel_mlops.sdk.records import EXEMPLARS, SERIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opentelemetry.context import Context
    from opentelemetry.util.types import AnyValue

    from otel_mlops.sdk.stream import Stream

Cells: TypeAlias = Any
"""A memoryview of doubles, or its stand-in before the first record; typed loosely because += is indexed."""


class Unborn:
    """Stands in for the cells of a series into which nothing was recorded yet, or not since a fork.

    It makes the series join the ledger at the first record, so the hot path asks nothing.
    """

    __slots__ = ("_series",)

    def __init__(self, series: Series) -> None:
        self._series = series

    def __getitem__(self, index: object) -> float:
        return 0.0

    def __setitem__(self, index: object, amount: float) -> None:
        if not self._join(index, amount):
            self._series.cells[index] += amount

    def _join(self, index: object, amount: float) -> bool:
        try:
            return self._series.join(index, amount)
        except RecursionError as error:  # attributes within attributes, too deep for here though not for before
            if self._series.place is None:
                self._series.stream.drop("attributes", error)
            return True


class Series:
    """A metric with one set of attributes; the base of the four ways to record."""

    __slots__ = ("__weakref__", "attributes", "born_ns", "cells", "place", "rendered", "stream")

    size = 1
    _whole: Any = slice(None)
    """The index of all cells at once."""

    def __init__(self, stream: Stream, attributes: Mapping[str, AnyValue]) -> None:
        self.stream = stream
        self.attributes = attributes
        self.rendered: Any = None
        self.unbear()

    def unbear(self) -> None:
        """Forget the cells; the next record begins at nothing."""
        self.place: Place | None = None
        self.born_ns = 0
        self.cells: Cells = Unborn(self)

    def join(self, index: Any = None, first: float = 0.0) -> bool:
        """Take cells in the ledger, and return whether that was done: another thread may just have done so.

        The first number stands in its cell before the series can be seen: no page shows a newborn gauge at 0.
        """
        stream = self.stream
        with stream.ledger.lock:
            found = self.place
            if found is None:
                born_ns = time.time_ns()
                values = [0.0] * self.size
                if index is not None:
                    values[index or 0] = first
                place = stream.ledger.append(SERIES, self._described(born_ns), values)
                cells = self._shape(place.cells)
                if self.place is None:
                    self.born_ns, self.place, self.cells = born_ns, place, cells
                    stream.keep(self)
                    return True
                stream.ledger.forget(place)  # a signal handler has recorded into this very series meanwhile
            return False

    def move(self) -> None:
        """Move out of private memory into the ledger's file, where there is one again."""
        stream = self.stream
        with stream.lock, stream.ledger.lock:
            old = self.place
            if old is None or not stream.ledger.is_private(old):
                return
            new = stream.ledger.append(SERIES, self._described(self.born_ns), self.read())
            if stream.ledger.is_private(new):
                stream.ledger.forget(new)  # there is no room yet
                return
            self._swap(new)
            stream.ledger.forget(old)

    def take_along(self) -> None:
        """Move into private memory, as the worker leaves its group and its file."""
        stream = self.stream
        with stream.lock, stream.ledger.lock:
            if self.place is not None:
                self._swap(stream.ledger.append(SERIES, self._described(self.born_ns), self.read()))

    def _swap(self, new: Place) -> None:
        cells, before, whole = self._shape(new.cells), self.cells, self._whole
        # In one breath, like a record: what other threads add meanwhile goes to the old cells before, and to
        # the new ones after.
        cells[whole] = before[whole]
        self.cells = cells
        self.place = new

    def leave(self) -> None:
        """Give the cells up: nobody reads them any more, and the next record begins at nothing."""
        if self.place is not None:
            self.stream.ledger.forget(self.place)
        self.unbear()

    def read(self) -> list[float]:
        """Return the cells as they are now."""
        cells = self.cells
        return [0.0] * self.size if isinstance(cells, Unborn) else cells.tolist()

    def read_exemplars(self) -> list[Exemplar | None] | None:
        """The exemplar of each bucket; None where there never was one."""
        return None

    def _shape(self, cells: memoryview[float]) -> Cells:
        return cells

    def _described(self, *rest: Any) -> list[Any]:
        return [self.stream.number(), [*map(list, self.attributes.items())], *rest]


class CounterSeries(Series):
    """A sum that only grows."""

    __slots__ = ()

    _whole = ()

    def add(self, amount: float) -> None:
        """Add a number that is not negative."""
        try:
            amount = float(amount)
        except Exception:
            self.stream.drop("type", amount)
            return
        if 0.0 <= amount <= LARGEST:
            self.cells[()] += amount
        else:
            self.stream.drop("negative" if -LARGEST <= amount < 0.0 else "not_finite", amount)

    def read(self) -> list[float]:
        """Return the one cell."""
        return [self.cells[()]]

    def _shape(self, cells: memoryview[float]) -> Cells:
        # A view without dimensions is the fastest cell there is: no index to convert.
        return cells.cast("B").cast("d", shape=[])


class UpDownSeries(CounterSeries):
    """A sum that goes both ways."""

    __slots__ = ()

    def add(self, amount: float) -> None:
        """Add a number."""
        try:
            amount = float(amount)
        except Exception:
            self.stream.drop("type", amount)
            return
        if -LARGEST <= amount <= LARGEST:
            self.cells[()] += amount
        else:
            self.stream.drop("not_finite", amount)


class _UnbornGauge(Unborn):
    __slots__ = ()

    def __setitem__(self, index: object, amount: float) -> None:
        if not self._join(index, amount):
            self._series.cells[index] = amount


class GaugeSeries(Series):
    """The last value, and when it was set on the monotonic clock: the latest of several workers is shown."""

    __slots__ = ()

    size = 2

    def unbear(self) -> None:
        """Forget the cells; the next record sets, where the others add."""
        super().unbear()
        self.cells = _UnbornGauge(self)

    def set(self, value: float) -> None:
        """Set the value."""
        try:
            value = float(value)
        except Exception:
            self.stream.drop("type", value)
            return
        if -LARGEST <= value <= LARGEST:
            now = time.monotonic()
            # In one breath: the series must not move between the two.
            cells = self.cells
            cells[0] = value
            cells[1] = now
        else:
            self.stream.drop("not_finite", value)


class HistogramSeries(Series):
    """Counts by bucket, and the sum last; the count is the sum of the buckets, so it never contradicts them."""

    __slots__ = ("_context", "_lowest", "bounds", "exemplars")

    def __init__(self, stream: Stream, attributes: Mapping[str, AnyValue]) -> None:
        self.bounds = stream.bounds
        self._lowest = stream.lowest
        self._context = stream.sampling
        self.exemplars: Exemplars | None = None
        super().__init__(stream, attributes)

    @property
    def size(self) -> int:  # type: ignore[override]
        """The number of cells: a bucket more than there are bounds, and the sum."""
        return len(self.bounds) + 2

    def unbear(self) -> None:
        """Forget the cells and the exemplars."""
        super().unbear()
        self.exemplars = None

    def read_exemplars(self) -> list[Exemplar | None] | None:
        """The exemplar of each bucket."""
        kept = self.exemplars
        return None if kept is None else kept.read()

    def leave(self) -> None:
        """Give the cells and the exemplars up."""
        if self.exemplars is not None:
            self.stream.ledger.forget(self.exemplars.place)
        super().leave()

    def record(self, value: float) -> None:
        """Count a value in its bucket."""
        try:
            value = float(value)
        except Exception:
            self.stream.drop("type", value)
            return
        if self._lowest <= value <= LARGEST:
            index = bisect_left(self.bounds, value)
            cells = self.cells
            cells[index] += 1.0
            cells[-1] += value
            if self._context.get():
                self._sample(index, value)
        else:
            self.stream.drop("negative" if -LARGEST <= value < 0.0 else "not_finite", value)

    def record_in(self, value: float, context: Context) -> None:
        """Count a value in its bucket, sampling the span of the given context and of no other."""
        token = otel_context.attach(context)
        try:
            self.record(value)
        finally:
            otel_context.detach(token)

    def record_many(self, values: Iterable[float]) -> None:
        """Count many values in one go: a numpy array, or any iterable of numbers."""
        try:
            if not hasattr(values, "__len__"):
                values = drawn(values, partial(self.stream.drop, "type", values))
            counts, total = count_by_bucket(values, self.bounds, self._lowest)
        except Exception:
            # One bad value among them: each is then judged alone, and only the bad ones are dropped.
            self._record_each(values)
            return
        if counts:
            # Not one line but a loop: the series must not move in the middle of it.
            with self.stream.ledger.lock:
                cells = self.cells
                for index, count in counts:
                    cells[index] += count
                cells[-1] += total

    def _record_each(self, values: Iterable[float]) -> None:
        try:
            each = iter(values)
        except Exception:
            self.stream.drop("type", values)
            return
        while True:
            try:
                value = next(each)
            except StopIteration:
                return
            except Exception:
                self.stream.drop("type", values)
                return
            self.record(value)

    def _sample(self, index: int, value: float) -> None:
        """Keep the span that is current as the bucket's exemplar, if it is sampled."""
        span = sampled_span(always=self.stream.sampling_always)
        if span is not None:
            (self.exemplars or self._open_exemplars()).put(index, value, span)

    def _open_exemplars(self) -> Exemplars:
        with self.stream.ledger.lock:
            if self.exemplars is None:
                self.join()
                self.exemplars = self._new_exemplars()
            return self.exemplars

    def _new_exemplars(self) -> Exemplars:
        slots = len(self.bounds) + 1
        return Exemplars(self.stream.ledger.append(EXEMPLARS, self._described(slots), Exemplars.cells(slots)))

    def move(self) -> None:
        """Move the cells and the exemplars."""
        super().move()
        ledger = self.stream.ledger
        with ledger.lock:
            old = self.exemplars
            if old is not None and self.place is not None and ledger.is_private(old.place):
                new = self._new_exemplars()
                if ledger.is_private(new.place):
                    ledger.forget(new.place)  # there is no room yet
                    return
                new.copy(old)
                self.exemplars = new
                ledger.forget(old.place)
