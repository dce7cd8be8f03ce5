"""From the features and the answers of a prediction, in whatever form they come, to the cells that count them."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

from otel_mlops.numbers.values import count_rows

from .cells import PLAIN, Placed, amounts_in, amounts_of, listed, placed
from .feature import Feature

Binned: TypeAlias = tuple[list[int] | None, list[tuple[int, float]] | None, int]
"""The cells of one row, each to be counted once; or the amounts that a batch adds to cells; and how many rows are
dropped because they have not one value for each feature. What cannot be read at all counts as one."""

_NOTHING: Binned = (None, None, 0)
_DROPPED: Binned = (None, None, 1)

_WHOLE = 2**53
"""Whole numbers up to here are exact as floats, and may be compared as they are."""

_WORTH_AN_ARRAY = 32
"""From about this many rows on a batch is counted faster by columns, if the program has loaded numpy."""

_TEXTS = (str, bytes, bytearray)


class Binning:
    """Says which cells count the features and the answers of a prediction.

    The cells of a feature are its bins in order, then its reasons in order; features follow one another, the
    prediction comes last. Each value is in exactly one bin: in that of the missing ones also what is infinite or of a
    wrong type. A text is a wrong type for a number, `"1.5"` too; a bool is 0 or 1; an int beyond all floats is
    infinite.

    Nothing here raises, whatever is given, and no call changes anything: threads may share a Binning.
    """

    def __init__(self, features: Sequence[Feature], prediction: Feature | None = None) -> None:
        features = list(features)
        self._features: list[Placed] = []
        self.size = 0
        """How many cells there are."""
        for feature in [*features, prediction] if prediction else features:
            self._features.append(placed(feature, self.size))
            self.size += len(feature.counts) + len(feature.reasons)
        self._prediction = self._features.pop() if prediction else None
        self._names = [feature.name for feature in features]
        self._plan = [(feature.edges, feature.places, feature) for feature in self._features]

    def of_features(self, given: Any) -> Binned:
        """Return the cells of one row, or the amounts of a batch.

        A row is a list, tuple, one-dimensional array or series with a value for each feature in the profile's order,
        or a mapping or series by their names: a name that is not there is a missing value, others are left alone.
        A batch is a list or tuple whose first item is a row, a two-dimensional array, a frame (`.columns` and
        `frame[name]`), or a mapping whose first feature that is not None is a column: a list, tuple, array or series.
        An iterator is neither: to read it would take the values from the model.

        >>> from otel_mlops.profile import Numeric
        >>> rooms = Numeric("rooms", edges=(2.0, 4.0), counts=(1, 1, 1, 0), minimum=1.0, maximum=9.0)
        >>> binning = Binning([rooms])
        >>> binning.of_features([3.0]), binning.of_features({"rooms": None}), binning.of_features([1.0, 2.0])
        (([1], None, 0), ([3], None, 0), (None, None, 1))
        >>> binning.of_features([[3.0], [2.5], [11.0]])
        (None, [(1, 2.0), (2, 1.0), (5, 1.0)], 0)
        """
        try:
            if type(given) is list and given and len(given) == len(self._plan) and type(given[0]) in PLAIN:
                return self._row(given), None, 0
            return self._of_any(given) if self._plan else _NOTHING
        except Exception:
            return _DROPPED  # it is somebody else's object, and fails when it is read: for the caller to count

    def of_predictions(self, values: Any) -> Binned:
        """Return the cells of one answer, or the amounts of a batch.

        An answer is a number or a text, and whatever else has no length; a mapping is one answer, of a wrong type. In
        a batch a list, tuple or array of one value stands for the value; one of several is dropped.
        """
        feature = self._prediction
        if feature is None:
            return _NOTHING
        try:
            if type(values) is float or count_rows(values) is None:
                return list(feature.of(values)), None, 0
            column, dropped = _answers(values)
            if _is_worth_an_array(column):
                return None, amounts_in(feature, column), dropped
            return None, amounts_of(map(feature.of, listed(column))), dropped
        except Exception:
            return _DROPPED  # as above

    def _row(self, values: Iterable[Any]) -> list[int]:
        """The cells of a row that has a value for each feature: what all of this is about, so it is spelled out."""
        cells: list[int] = []
        for (edges, places, feature), value in zip(self._plan, values):  # noqa: B905, the keyword costs a tenth
            if type(value) is float or (type(value) is int and -_WHOLE <= value <= _WHOLE):
                cell = places[bisect_left(edges, value)]
                if cell >= 0:
                    cells.append(cell)
                    continue
            cells += feature.of(value)
        return cells

    def _of_any(self, given: Any) -> Binned:
        if type(given) is dict or isinstance(given, Mapping):
            return self._mapping(given)
        if isinstance(given, Sequence):
            rows = _column(given)
            return self._rows(rows) if not rows or _has_values(rows[0]) else self._one(rows)
        if hasattr(given, "columns"):
            names = {str(name): name for name in set(given.columns)}  # a set takes names only, no columns
            columns = [_column(given[names[name]]) if name in names else None for name in self._names]
            return self._columns(columns, len(given))
        if fields := _fields(given):
            return self._mapping({name: given[name] for name in fields})
        if getattr(given, "ndim", 1) == 2:
            return self._matrix(given)
        return _NOTHING if getattr(given, "shape", None) == (0,) else self._one(given)

    def _one(self, given: Any) -> Binned:
        values = self._values(given)
        return _DROPPED if values is None else (self._row(values), None, 0)

    def _values(self, row: Any) -> list[Any] | None:
        """The values of one row in the profile's order, None for what is no row of it."""
        try:
            if isinstance(row, Mapping):
                return list(map(row.get, self._names))
            fields = _fields(row)
            if fields or hasattr(row, "keys"):
                named = set(fields or row.keys()).intersection(self._names)
                if named or not hasattr(row, "tolist"):  # a series without names is in order
                    return [row[name] if name in named else None for name in self._names]
            values = listed(_column(row))
        except Exception:
            return None  # it is somebody else's object, and fails when it is read
        return values if len(values) == len(self._names) else None

    def _rows(self, rows: list[Any]) -> Binned:
        """A batch of rows, each in any form."""
        good = rows
        if not (set(map(type, rows)) <= {list, tuple} and set(map(len, rows)) == {len(self._names)}):
            good = [values for values in map(self._values, rows) if values is not None]
        if _is_worth_an_array(good):
            amounts = self._by_column(map(list, zip(*good, strict=True)))
        else:
            amounts = amounts_of(map(self._row, good))
        return None, amounts, len(rows) - len(good)

    def _mapping(self, given: Mapping[str, Any]) -> Binned:
        """A row by names, or columns by names."""
        values = list(map(given.get, self._names))
        first = values[0]
        if first is None:
            first = next((value for value in values if value is not None), None)
        if type(first) in PLAIN or isinstance(first, Mapping) or not _has_values(first):
            return self._row(values), None, 0
        columns = [None if value is None else _column(value) for value in values]
        return self._columns(columns, max([len(column) for column in columns if column is not None]))

    def _matrix(self, given: Any) -> Binned:
        """An array of two dimensions, of any library."""
        if not _is_array(given) or (given.dtype.kind in "biuf" and not _is_worth_an_array(given)):
            return self._rows(given.tolist())
        rows, width = given.shape
        if width != len(self._names):
            return None, None, rows
        if not hasattr(given, "mask"):
            given = sys.modules["numpy"].asarray(given)  # the columns of a numpy.matrix are matrices again
        return self._columns([_column(given[:, place]) for place in range(width)], rows)

    def _columns(self, columns: list[Any], rows: int) -> Binned:
        """Columns in the profile's order, None for those that are not there."""
        if any(column is not None and len(column) != rows for column in columns):
            return None, None, rows
        filled = [[None] * rows if column is None else column for column in columns]
        if _is_worth_an_array(filled[0]):
            return None, self._by_column(filled), 0
        return None, amounts_of(map(self._row, zip(*map(listed, filled), strict=True))), 0

    def _by_column(self, columns: Iterable[Any]) -> list[tuple[int, float]]:
        pairs = zip(self._features, columns, strict=True)
        return [amount for feature, column in pairs for amount in amounts_in(feature, column)]


def _is_worth_an_array(rows: Any) -> bool:
    return len(rows) >= _WORTH_AN_ARRAY and sys.modules.get("numpy") is not None


def _is_array(value: Any) -> bool:
    return isinstance(value, getattr(sys.modules.get("numpy"), "ndarray", ()))


def _fields(value: Any) -> tuple[str, ...]:
    """The names in a structured array or in a row of one."""
    return getattr(getattr(value, "dtype", None), "names", None) or ()


def _has_values(value: Any) -> bool:
    """Whether a value is none but has some: a row, a column."""
    if not hasattr(value, "__len__") or isinstance(value, _TEXTS):
        return False
    try:
        return len(value) >= 0
    except Exception:
        return False  # an array without dimensions, say


def _column(values: Any) -> Any:
    """The values of a row or a column as a list or an array of numbers. Errors: TypeError for what has no such."""
    if type(values) is list:
        return values
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    if getattr(values, "ndim", 1) != 1:
        raise TypeError
    if _is_array(values):
        exact = values.dtype.kind in "biuf" and not hasattr(values, "mask")
        return values if exact else listed(values)
    if hasattr(values, "tolist"):
        return values.tolist()
    if isinstance(values, Sequence) and not isinstance(values, _TEXTS):
        return list(islice(values, len(values)))  # somebody's class may have no end
    raise TypeError


def _answers(values: Any) -> tuple[Any, int]:
    """The answers of a batch as a column, and how many are left out since they are several values each."""
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    shape: Any = getattr(values, "shape", (0,))
    if len(shape) == 2 and shape[1] == 1:
        values = values.reshape(-1)
    elif len(shape) > 1:
        return [], len(values)
    column = _column(values)
    if not isinstance(column, list) or set(map(type, column)) <= PLAIN:
        return column, 0
    answers: list[Any] = []
    for answer in column:
        if isinstance(answer, Mapping) or not _has_values(answer):
            answers.append(answer)
        elif len(answer) == 1:
            answers.extend(islice(answer, 1))
    return answers, len(column) - len(answers)
