"""The cells of one feature: which of them count a value, and how often each is met in a column."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from itertools import chain
from math import inf, isfinite, isnan, nan, nextafter
from typing import Any, TypeAlias

from otel_mlops.numbers.values import is_number

from .columns import is_missing
from .feature import ABOVE, BELOW, INFINITE, TYPE, UNSEEN, Categorical, Feature, Numeric, category_of

OUTSIDE = -1
"""In place of a cell: beyond training's range or no number, and to be looked at more closely."""

PLAIN = frozenset({float, int, bool, str, type(None)})
"""The types of most values, which are nothing but a value."""

_LARGEST = sys.float_info.max


class Numbers:
    """The cells of a numeric feature.

    `edges` are those of the feature between two more: the number right before the minimum, and the maximum. So one
    search finds the bin and says whether the value is in training's range; NaN comes out at an end as well.
    """

    __slots__ = ("_above", "_array", "_below", "_bins", "_infinite", "_inner", "_missing", "_type", "edges", "places")

    def __init__(self, feature: Numeric, first: int) -> None:
        low = -inf if feature.minimum is None else nextafter(feature.minimum, -inf)
        high = _LARGEST if feature.maximum is None else min(feature.maximum, _LARGEST)
        self._inner = tuple(feature.edges)
        self.edges = (low, *[min(max(edge, low), high) for edge in feature.edges], high)
        self._array = array("d", self.edges)
        self._missing = first + len(feature.counts) - 1
        self._bins = range(first, self._missing)
        self.places = (OUTSIDE, *self._bins, OUTSIDE)
        reason = {name: self._missing + 1 + place for place, name in enumerate(feature.reasons)}
        self._below, self._above = reason[BELOW], reason[ABOVE]
        self._infinite, self._type = reason[INFINITE], reason[TYPE]

    def of(self, value: Any) -> tuple[int, ...]:
        """The cell of any value's bin, and that of the reason if there is one."""
        if type(value) is float and (cell := self.places[bisect_left(self.edges, value)]) >= 0:
            return (cell,)
        try:
            number = _number(value)
        except OverflowError:
            number = inf
        except Exception:
            return self._missing, self._type
        if isnan(number):
            return (self._missing,)
        if not isfinite(number):
            return self._missing, self._infinite
        cell = self._bins[bisect_left(self._inner, number)]
        if self.edges[0] < number <= self.edges[-1]:
            return (cell,)
        return cell, self._below if number <= self.edges[0] else self._above

    def tally(self, column: Any, numpy: Any) -> Mapping[int, int]:
        """How often each cell is met in a column. Errors: any exception where not all are numbers."""
        if isinstance(column, list):
            # By their types: numpy would read a text as a number as well.
            numbers = {float, int, bool, type(None), numpy.float64, numpy.float32, numpy.int64}
            if not set(map(type, column)) <= numbers:
                raise TypeError
        column = numpy.asarray(column, dtype=numpy.float64)
        found = numpy.frombuffer(self._array).searchsorted(column)
        below, *counts, beyond = numpy.bincount(found, minlength=len(self.places)).tolist()
        tally = Tally(dict(zip(self._bins, counts, strict=True)))
        if below or beyond:
            self._look_closely(column[(found == 0) | (found == len(self.edges))], tally, numpy)
        return tally

    def _look_closely(self, outside: Any, tally: Tally[int], numpy: Any) -> None:
        finite = outside[numpy.isfinite(outside)]
        for place, count in enumerate(numpy.bincount(numpy.searchsorted(self._inner, finite)).tolist()):
            tally[self._bins[place]] += count
        tally[self._missing] += len(outside) - len(finite)
        tally[self._infinite] += int(numpy.isinf(outside).sum())
        tally[self._below] += int((finite <= self.edges[0]).sum())
        tally[self._above] += int((finite > self.edges[-1]).sum())


class Categories:
    """The cells of a feature of categories. It has no edges: any number there is looked at more closely."""

    __slots__ = ("_cells", "_missing", "_other", "_type", "edges", "places")

    def __init__(self, feature: Categorical, first: int) -> None:
        self.edges: tuple[float, ...] = ()
        self.places: tuple[int, ...] = (OUTSIDE,)
        self._cells = {value: (first + place,) for place, value in enumerate(feature.values)}
        self._missing = first + len(feature.counts) - 1
        reason = {name: self._missing + 1 + place for place, name in enumerate(feature.reasons)}
        self._type = reason[TYPE]
        other = self._missing - 1
        self._other = (other,) if feature.counts[-2] else (other, reason[UNSEEN])

    def of(self, value: Any) -> tuple[int, ...]:
        """The cell of any value's bin, and that of the reason if there is one."""
        try:
            if type(value) is not str:
                if _is_missing(value):
                    return (self._missing,)
                value = category_of(value)
            return (self._missing, self._type) if value is None else self._cells.get(value, self._other)
        except Exception:
            return self._missing, self._type

    def tally(self, column: Any, numpy: Any) -> Mapping[int, int]:
        """How often each cell is met in a column. Errors: TypeError where 1, True and 1.0 could be taken for one."""
        column = listed(column)
        kinds = set(map(type, column))
        if not (kinds <= {str, float, type(None)} or (len(kinds) == 1 and kinds <= PLAIN)):
            raise TypeError
        tally: Tally[int] = Tally()
        for value, count in Tally(column).items():
            for cell in self.of(value):
                tally[cell] += count
        return tally


Placed: TypeAlias = Numbers | Categories


def placed(feature: Feature, first: int) -> Placed:
    """Return the cells of a feature, of which the first is `first`."""
    return Numbers(feature, first) if isinstance(feature, Numeric) else Categories(feature, first)


def amounts_of(cells: Iterable[Iterable[int]]) -> list[tuple[int, float]]:
    """What the cells of many values or rows add."""
    return [(cell, float(count)) for cell, count in Tally(chain.from_iterable(cells)).items()]


def amounts_in(feature: Placed, column: Any) -> list[tuple[int, float]]:
    """What a column adds: counted in one go if it can be, else value by value."""
    try:
        tally = feature.tally(column, sys.modules["numpy"])
    except Exception:
        return amounts_of(map(feature.of, listed(column)))
    return [(cell, float(count)) for cell, count in tally.items() if count]


def listed(column: Any) -> list[Any]:
    """A column as a list. Points in time stay such, of which numpy's `tolist` makes numbers."""
    if isinstance(column, list):
        return column
    return list(column) if column.dtype.kind in "mM" else list(column.tolist())


def _number(value: Any) -> float:
    """The number that a value is, NaN for one that is missing.

    Errors: OverflowError for an int beyond all floats, any other exception for what is no number.
    """
    if isinstance(value, (float, int)):
        return float(value)
    if _is_missing(value):
        return nan
    # Times and complex numbers of numpy's have a __float__, which gives nanoseconds or the real part.
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    if not is_number(value) or kind in "cmM" or getattr(value, "ndim", 0) != 0:
        raise TypeError
    return float(value)


def _is_missing(value: Any) -> bool:
    return type(value).__name__ == "MaskedConstant" or is_missing(value)
