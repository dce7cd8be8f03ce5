"""The cells that count a prediction's features and answers: the same ones in whatever form they come."""

from __future__ import annotations

import sys
from array import array
from collections import Counter, UserDict, UserList, deque, namedtuple
from collections.abc import Iterator
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from math import inf, isinf, isnan, nan, nextafter
from types import SimpleNamespace as Odd
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_mlops.profile import Profile
from otel_mlops.profile.binning import Binned, Binning
from otel_mlops.profile.feature import Categorical, Feature, Numeric

AGE = Numeric("age", edges=(18.0, 30.0, 65.0), counts=(5.0, 5.0, 5.0, 5.0, 1.0), minimum=0.1, maximum=99.0)
DEBT = Numeric(
    "debt", edges=(nextafter(0.0, -inf), 0.0, 0.3), counts=(0.0, 9.0, 3.0, 3.0, 0.0), minimum=0.0, maximum=0.7
)
FREE = Numeric("free", edges=(-5e-324, 2.0**53, 1e300), counts=(1.0, 1.0, 1.0, 1.0, 0.0))
LOOSE = Numeric("loose", edges=(-9.0, 2.0, 9.0), counts=(0.0, 4.0, 4.0, 0.0, 0.0), minimum=1.0, maximum=3.0)
"""As only a hand can write it: edges beyond what training saw."""
COLOUR = Categorical("colour", values=("red", "1", "0", "2.5"), counts=(4.0, 3.0, 2.0, 1.0, 0.0, 1.0))
CITY = Categorical("city", values=("Bonn",), counts=(4.0, 3.0, 0.0))
FEATURES = (AGE, DEBT, FREE, LOOSE, COLOUR, CITY)
NUMERIC = (AGE, DEBT, FREE, LOOSE)
NAMES = [feature.name for feature in FEATURES]
MANY = 40
"""Rows enough to be counted by columns."""


class Matrix(np.ndarray):
    """As numpy's own, which warns: whatever is taken of it has two dimensions."""

    def __getitem__(self, places: Any) -> Any:
        found = super().__getitem__(places)
        return found[:, None] if getattr(found, "ndim", 0) == 1 else found


class NAType:
    """As that of pandas: it cannot be compared."""

    def __bool__(self) -> bool:
        raise TypeError

    def __ne__(self, other: object) -> Any:
        return self

    __hash__ = None  # type: ignore[assignment]


class Broken:
    """Whatever it is asked for but its class, which pytest wants to know, it raises."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return Broken
        raise RuntimeError(name)

    def __len__(self) -> int:
        raise RuntimeError

    def __float__(self) -> float:
        raise RuntimeError

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __hash__(self) -> int:
        raise RuntimeError


class BrokenText(str):
    """A text that cannot be looked up."""

    __slots__ = ()

    def __hash__(self) -> int:
        raise RuntimeError


class BrokenKind(type):
    """The class of a class that cannot be asked for."""

    def __hash__(cls) -> int:
        raise RuntimeError

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError


class OfABrokenKind(metaclass=BrokenKind):
    """An object whose class raises."""


class Endless(list[float]):
    """A list that says it is short and never ends."""

    def __iter__(self) -> Iterator[float]:
        while True:
            yield 1.0

    def __len__(self) -> int:
        return len(FEATURES)


class Frame:
    """A data frame by its interface: that of pandas and polars alike."""

    def __init__(self, columns: dict[Any, Any]) -> None:
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name: Any) -> Column:
        return Column(self._columns[name])

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))


class Column:
    """A column by what those of pandas and polars have in common."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def to_numpy(self) -> Any:
        return self._values if isinstance(self._values, np.ndarray) else np.array(self._values, dtype=object)

    def __len__(self) -> int:
        return len(self._values)


class Series(Column):
    """A column or a row by the interface of pandas."""

    def __init__(self, values: Any, index: Any = None) -> None:
        super().__init__(values)
        if index is not None:
            self.keys = lambda: index
            self._by_name = dict(zip(index, values, strict=True))

    def tolist(self) -> list[Any]:
        return list(self._values)

    def __getitem__(self, name: Any) -> Any:
        return self._by_name[name]


class Tensor:
    """An array of some other library, as torch has them."""

    def __init__(self, values: Any) -> None:
        self._array = np.array(values)
        self.ndim, self.shape = self._array.ndim, self._array.shape

    def tolist(self) -> Any:
        return self._array.tolist()

    def reshape(self, length: int) -> Tensor:
        return Tensor(self._array.reshape(length))

    def __float__(self) -> float:
        return float(self._array.reshape(()))

    def __len__(self) -> int:
        return len(self._array)


class Label(StrEnum):
    """A text with a name."""

    BONN = "Bonn"


def labels(features: tuple[Feature, ...] = FEATURES, prediction: Feature | None = None) -> list[str]:
    """What each cell counts, in the order of the cells."""
    every = (*features, *([prediction] if prediction else []))
    return [
        f"{feature.name} {cell}"
        for feature in every
        for cell in [*range(len(feature.counts) - 1), "missing", *feature.reasons]
    ]


def named(binned: Binned, cells: list[str]) -> Counter[str]:
    """How often each cell is counted, by what it counts; no row may be dropped."""
    indices, amounts, dropped = binned
    assert dropped == 0
    assert indices is None or amounts is None
    counts: Counter[str] = Counter()
    for index, amount in [(index, 1.0) for index in indices or []] + (amounts or []):
        assert type(index) is int
        assert type(amount) is float
        counts[cells[index]] += amount
    return counts


def of_number(feature: Numeric, number: float) -> list[str]:
    """The plain definition: the first edge that is not below the number, and why it is not as in training."""
    if isnan(number):
        return [f"{feature.name} missing"]
    if isinf(number):
        return [f"{feature.name} missing", f"{feature.name} infinite"]
    place = next((i for i, edge in enumerate(feature.edges) if not edge < number), len(feature.edges))
    found = [f"{feature.name} {place}"]
    if feature.minimum is not None and number < feature.minimum:
        found.append(f"{feature.name} below_range")
    if feature.maximum is not None and number > feature.maximum:
        found.append(f"{feature.name} above_range")
    return found


def one(feature: Feature, value: object) -> list[str]:
    """The cells of one value of one feature."""
    return list(named(Binning([feature]).of_features([value]), labels((feature,))))


EDGES = sorted(
    {edge for feature in NUMERIC for edge in (*feature.edges, feature.minimum, feature.maximum) if edge is not None}
)
SPECIAL = [
    *EDGES,
    *[nextafter(edge, -inf) for edge in EDGES],
    *[nextafter(edge, inf) for edge in EDGES],
    *[float(np.float32(edge)) for edge in EDGES if abs(edge) < 1e30],
    *[0.0, -0.0, 5e-324, -5e-324, 2.2e-308, 1.7976931348623157e308, -1.7976931348623157e308, inf, -inf, nan],
]  # fmt: skip
numbers = st.one_of(st.sampled_from(SPECIAL), st.floats(), st.floats(-20, 100))
whole = st.one_of(st.integers(-20, 100), st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**63, 10**300]))
odd = st.sampled_from(
    [None, True, False, "1.5", "", b"1", 10**400, -(10**400), Decimal("0.3"), Fraction(1, 3), 1j, {}, object()]
)
texts = st.sampled_from(["red", "1", "0", "2.5", "Bonn", "Rome", ""])
values = st.one_of(numbers, whole, odd, texts)


@pytest.mark.parametrize("feature", NUMERIC, ids=lambda feature: feature.name)
def test_a_number_is_in_the_bin_of_the_first_edge_that_is_not_below_it(feature: Numeric):
    """Each special number is in the bin that the definition says, one by one and in an array."""
    for number in SPECIAL:
        assert one(feature, number) == of_number(feature, number), number
    expected = Counter(label for number in SPECIAL for label in of_number(feature, number))
    batch = np.array(SPECIAL)[:, None]
    assert len(batch) >= MANY
    assert named(Binning([feature]).of_features(batch), labels((feature,))) == expected


def test_the_cells_of_the_features_follow_one_another_and_the_prediction_is_last():
    """A feature's cells are its bins, then its reasons, behind those of the features before."""
    binning = Binning([AGE, CITY], DEBT)
    assert binning.size == (5 + 4) + (3 + 2) + (5 + 4)
    assert binning.of_features([18.0, "Bonn"]) == ([0, 9], None, 0)
    assert binning.of_features([None, "Rome"]) == ([4, 10], None, 0)
    assert binning.of_features([-1.0, []]) == ([0, 5, 11, 13], None, 0)
    assert binning.of_predictions(0.8) == ([17, 20], None, 0)
    assert binning.of_predictions("yes") == ([18, 22], None, 0)


@pytest.mark.parametrize(
    ("value", "cells"),
    [
        (None, ["missing"]),
        (nan, ["missing"]),
        (np.float32("nan"), ["missing"]),
        (Decimal("nan"), ["missing"]),
        (NAType(), ["missing"]),
        (np.ma.masked, ["missing"]),
        (np.datetime64("NaT", "ns"), ["missing"]),
        (inf, ["missing", "infinite"]),
        (-inf, ["missing", "infinite"]),
        (np.float16("inf"), ["missing", "infinite"]),
        (10**400, ["missing", "infinite"]),
        (Decimal("1e400"), ["missing", "infinite"]),
        ("20", ["missing", "type"]),
        (np.str_("20"), ["missing", "type"]),
        (b"20", ["missing", "type"]),
        (memoryview(b"20"), ["missing", "type"]),
        (20 + 0j, ["missing", "type"]),
        (np.complex64(20), ["missing", "type"]),
        (np.datetime64(20, "ns"), ["missing", "type"]),
        (np.timedelta64(20, "ns"), ["missing", "type"]),
        ((20.0,), ["missing", "type"]),
        (Tensor([20.0]), ["missing", "type"]),
        (Tensor(20.0), ["1"]),
        (object(), ["missing", "type"]),
        (Broken(), ["missing", "type"]),
        (OfABrokenKind(), ["missing", "type"]),
        (20, ["1"]),
        (True, ["0"]),
        (np.True_, ["0"]),
        (np.int8(20), ["1"]),
        (np.float32(20), ["1"]),
        (np.array(20.0), ["1"]),
        (Decimal(20), ["1"]),
        (Fraction(41, 2), ["1"]),
        (False, ["0", "below_range"]),
        (-1, ["0", "below_range"]),
        (2**70, ["3", "above_range"]),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # as in a service: none of numpy's warnings is what stops a value
def test_what_is_no_float_is_a_number_missing_or_of_a_wrong_type(value: object, cells: list[str]):
    """Each is in one bin, with the reason if there is one, alone and in a batch, beside numbers and beside none."""
    expected = [f"age {cell}" for cell in cells]
    binning = Binning([FREE, AGE])
    free = Counter({"free 1": 1})
    assert named(binning.of_features([0.5, value]), labels((FREE, AGE))) == free + Counter(expected)
    few = named(binning.of_features([[0.5, value]] * 2), labels((FREE, AGE)))
    assert few == Counter((*free.elements(), *expected) * 2)
    many = named(binning.of_features([[0.5, 19.5], [0.5, value]] * MANY), labels((FREE, AGE)))
    assert many == Counter(("free 1", "age 1", "free 1", *expected) * MANY)


@pytest.mark.parametrize(
    ("value", "cells"),
    [
        ("red", ["0"]),
        (np.str_("red"), ["0"]),
        (1, ["1"]),
        (1.0, ["1"]),
        (np.int16(1), ["1"]),
        (True, ["1"]),
        (np.False_, ["2"]),
        (2.5, ["3"]),
        ("green", ["4", "unseen"]),
        ("", ["4", "unseen"]),
        (inf, ["4", "unseen"]),
        (None, ["missing"]),
        (nan, ["missing"]),
        (NAType(), ["missing"]),
        (np.ma.masked, ["missing"]),
        (b"red", ["missing", "type"]),
        (["red"], ["missing", "type"]),
        (10**5000, ["missing", "type"]),
        (BrokenText("red"), ["missing", "type"]),
        (Broken(), ["missing", "type"]),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_category_is_in_the_bin_of_its_text(value: object, cells: list[str]):
    """Each is in one bin, with the reason if there is one, alone and in a batch, beside texts and beside 1 and 1.0."""
    expected = [f"colour {cell}" for cell in cells]
    binning = Binning([FREE, COLOUR])
    cells = labels((FREE, COLOUR))
    assert named(binning.of_features([0.5, value]), cells) == Counter(["free 1", *expected])
    many = named(binning.of_features([[0.5, value], [0.5, False], [0.5, 1.0]] * MANY), cells)
    assert many == Counter(["free 1", *expected, "free 1", "colour 2", "free 1", "colour 1"] * MANY)


def test_no_category_is_unseen_where_training_put_some_into_other():
    """A value without a bin of its own is one of the others, and nothing says that it is new."""
    assert one(CITY, "Rome") == ["city 1"]
    assert one(CITY, Label.BONN) == ["city 0"]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(*[values] * len(FEATURES)), min_size=1, max_size=6), times=st.sampled_from([1, MANY]))
def test_all_forms_of_a_batch_count_the_same(rows: list[tuple[Any, ...]], times: int):
    """Rows, mappings, columns and frames of any values add what the rows do one by one; each is in one bin."""
    rows = rows * times
    binning, cells = Binning(FEATURES), labels()
    expected: Counter[str] = Counter()
    for row in rows:
        expected.update(named(binning.of_features(dict(zip(NAMES, row, strict=True))), cells))
    columns = {name: [row[i] for row in rows] for i, name in enumerate(NAMES)}
    table = np.empty((len(rows), len(FEATURES)), dtype=object)
    for i, name in enumerate(NAMES):
        table[:, i] = np.fromiter(columns[name], dtype=object, count=len(rows))
    forms = [
        [list(row) for row in rows],
        tuple(rows),
        deque(rows),
        [dict(zip(reversed(NAMES), reversed(row), strict=True)) for row in rows],
        [UserDict(zip(NAMES, row, strict=True)) for row in rows],
        [table[i] for i in range(len(rows))],
        table,
        Frame({name: table[:, i] for i, name in enumerate(NAMES)}),
    ]
    if any(row[0] is not None for row in rows):
        forms += [columns, UserDict({name: table[:, i] for i, name in enumerate(NAMES)})]
    for form in forms:
        assert named(binning.of_features(form), cells) == expected, type(form)
    for name, feature in zip(NAMES, FEATURES, strict=True):
        assert sum(expected[f"{name} {place}"] for place in [*range(len(feature.counts) - 1), "missing"]) == len(rows)


@settings(max_examples=60, deadline=None)
@given(
    column=st.lists(numbers, min_size=1, max_size=12),
    dtype=st.sampled_from(["f8", "f4", "f2", ">f8", "i8", "u8", "i1", "?", "g", "O"]),
    times=st.sampled_from([1, MANY]),
)
def test_all_arrays_count_as_their_values_do_one_by_one(column: list[float], dtype: str, times: int):
    """Of whatever dtype and order, an array adds what Python's numbers of the same value do."""
    with np.errstate(all="ignore"):
        flat = np.nan_to_num(column, posinf=1e9, neginf=-1e9) if np.dtype(dtype).kind in "iu" else np.array(column)
        if np.dtype(dtype).kind in "iu":
            flat = np.clip(flat, *((0, 2**60) if dtype == "u8" else (-(2**60), 2**60)))
        flat = np.tile(flat.astype(dtype), times)
    binning, cells = Binning(NUMERIC), labels(NUMERIC)
    expected = Counter(
        label for each in flat.tolist() for feature in NUMERIC for label in of_number(feature, float(each))
    )
    table = np.repeat(flat[:, None], len(NUMERIC), axis=1)
    wide = np.repeat(table, 2, axis=1)
    forms = [
        table,
        np.asfortranarray(table),
        wide[:, ::2],
        table[::-1],
        table.view(Matrix),
        np.ma.masked_array(table),
        Tensor(table),
        list(table),
        table.tolist(),
        [list(row) for row in table],
        {feature.name: flat for feature in NUMERIC},
        Frame({feature.name: flat for feature in NUMERIC}),
        np.rec.fromarrays([flat] * len(NUMERIC), names=[feature.name for feature in reversed(NUMERIC)]),
    ]
    for form in forms:
        assert named(binning.of_features(form), cells) == expected, type(form)
    rows: Counter[str] = Counter()
    for row in table:
        rows += named(binning.of_features(row), cells)
    assert rows == expected


@pytest.mark.parametrize("times", [1, MANY])
def test_without_numpy_the_same_is_counted(times: int, monkeypatch: pytest.MonkeyPatch):
    """Rows and columns add the same whether the program has loaded numpy or not."""
    binning, cells = Binning(NUMERIC, AGE), labels(NUMERIC, AGE)
    rows = [[number, -number, number, number] for number in SPECIAL] * times
    columns = dict(zip([feature.name for feature in NUMERIC], zip(*rows, strict=True), strict=True))
    arrays = {name: array("d", column) for name, column in columns.items()}
    forms: list[Any] = [rows, list(map(tuple, rows)), columns, arrays]
    expected = [named(binning.of_features(form), cells) for form in forms]
    answers = named(binning.of_predictions(SPECIAL * times), cells)
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert [named(binning.of_features(form), cells) for form in forms] == expected
    assert named(binning.of_predictions(SPECIAL * times), cells) == answers


def test_masked_values_are_missing():
    """What a masked array hides is missing, in a row, a batch and the answers."""
    binning, cells = Binning([AGE, FREE], AGE), labels((AGE, FREE), AGE)
    row = np.ma.masked_array([20.0, 1.0], mask=[True, False])
    assert binning.of_features(row) == ([4, 10], None, 0)
    table = np.ma.masked_array([[20, 1]] * MANY, mask=[[True, False]] * MANY)
    assert named(binning.of_features(table), cells) == {"age missing": MANY, "free 1": MANY}
    assert binning.of_predictions(table[:, 0]) == (None, [(9 + 9 + 4, float(MANY))], 0)


@pytest.mark.parametrize("count", [1, MANY])
def test_times_in_an_array_are_no_numbers(count: int):
    """Nanoseconds since 1970 are no numbers, those that are not there are missing."""
    times = np.array(["2024-01-01", "NaT"] * count, dtype="M8[ns]")
    for form in (times[:, None], {"free": times}):
        found = named(Binning([FREE]).of_features(form), labels((FREE,)))
        assert found == {"free missing": 2 * count, "free type": count}


def test_a_row_is_taken_in_each_of_its_forms():
    """A list, tuple, array, series, tensor or sequence by order, a mapping or series by names: all are one row."""
    binning = Binning([AGE, CITY])
    Row = namedtuple("Row", ["city", "age"])  # noqa: PYI024, it is about untyped ones
    by_order: list[Any] = [
        [20.0, "Bonn"], (20.0, "Bonn"), [np.array(20.0), "Bonn"], Row(20.0, "Bonn"), UserList([20.0, "Bonn"]),
        deque([20.0, "Bonn"]), np.array([20.0, "Bonn"], dtype=object), Series([20.0, "Bonn"]),
        Series([20.0, "Bonn"], index=[0, 1]),
    ]  # fmt: skip
    by_name: list[Any] = [
        {"city": "Bonn", "age": 20.0, "more": []}, UserDict(age=20.0, city="Bonn"),
        Series(["Bonn", 1, 20.0], index=["city", "more", "age"]),
        np.array([("Bonn", 20)], dtype=[("city", "U9"), ("age", "i4")])[0],
    ]  # fmt: skip
    for row in by_order + by_name:
        assert binning.of_features(row) == ([1, 9], None, 0), row
        assert binning.of_features([row, row]) == (None, [(1, 2.0), (9, 2.0)], 0), row
    floats = Binning([FREE, FREE])
    for other in (array("d", [1.0, 1.0]), Tensor([1.0, 1.0]), np.float32([1, 1]), np.array([1, 1])):
        assert floats.of_features(other) == ([1, 10], None, 0)


@pytest.mark.parametrize("missing", [{}, {"city": "Bonn"}, {"age": None, "other": 3}, UserDict()], ids=str)
def test_a_name_that_is_not_there_is_a_missing_value(missing: Any):
    """A mapping or frame without a feature's name has no value for it, in each of its rows."""
    binning, cells = Binning([AGE, CITY]), labels((AGE, CITY))
    assert "age missing" in named(binning.of_features(missing), cells)
    assert named(binning.of_features([missing] * MANY), cells)["age missing"] == MANY
    for count in (2, MANY):
        frame = {"other": [1.0] * count, "city": ["Bonn"] * count}
        for form in (frame, Frame(frame)):
            assert named(binning.of_features(form), cells) == {"age missing": count, "city 0": count}


def test_a_frame_whose_columns_are_numbered_is_read_by_their_digits():
    """A profile of such a frame has texts as names, which the frame has not."""
    binning = Binning([Numeric("0", edges=(), counts=(1.0, 0.0)), Numeric("1", edges=(), counts=(1.0, 0.0))])
    assert binning.of_features(Frame({1: [None], 0: [2.0]})) == (None, [(0, 1.0), (7, 1.0)], 0)


def test_a_table_whose_columns_are_no_names_is_dropped():
    """What calls the columns themselves `columns`, as arrow does, is not taken for a frame without the features."""
    table = Frame({"age": [20.0]})
    table.columns = [[20.0]]
    assert Binning([AGE]).of_features(table) == (None, None, 1)


def test_a_mapping_has_columns_if_its_first_value_is_one():
    """The first feature that is not None decides; what is no column then, or of another length, drops the batch."""
    binning, cells = Binning([AGE, CITY, FREE]), labels((AGE, CITY, FREE))
    columns = {"age": None, "city": ["Bonn", "Rome"], "free": (1.0, 2.0)}
    assert named(binning.of_features(columns), cells) == {"age missing": 2, "city 0": 1, "city 1": 1, "free 1": 2}
    assert binning.of_features({"age": {}, "city": ["Bonn"], "free": 1.0})[0] == [4, 8, 11, 13, 15]
    assert binning.of_features({"age": [1.0, 2.0], "city": ["Bonn"]}) == (None, None, 2)
    assert binning.of_features({"age": [1.0, 2.0], "city": "Bonn"}) == (None, None, 1)
    assert binning.of_features({"age": {1.0, 2.0}}) == (None, None, 1)


@pytest.mark.parametrize(
    "given",
    [
        [1.0], [1.0, 2.0, 3.0], (1.0,), np.ones(3), np.float64(1), np.ones((2, 2, 2)), 1.0, None, True, "ab", b"ab",
        {1.0, 2.0}, object(), Broken(), Endless(), type, np, Series([1.0]), Tensor(1.0),
    ],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_what_is_no_row_is_dropped(given: Any):
    """A wrong number of values, and what has none, is one dropped row, also beside rows that are none."""
    binning = Binning([AGE, FREE])
    assert binning.of_features(given) == (None, None, 1)
    few = binning.of_features([[20.0, 1.0], given, (20.0, 1.0)])
    assert few == (None, [(1, 2.0), (10, 2.0)], 1)
    many = binning.of_features([[20.0, 1.0], given] * MANY)
    assert many == (None, [(1, float(MANY)), (10, float(MANY))], MANY)


def test_a_table_of_another_width_is_dropped():
    """Each of its rows is."""
    binning = Binning([AGE, FREE])
    for table in (np.ones((MANY, 3)), np.ones((MANY, 1)), [[1.0]] * MANY, Tensor(np.ones((MANY, 3)))):
        indices, amounts, dropped = binning.of_features(table)
        assert (indices, amounts or None, dropped) == (None, None, MANY)


@pytest.mark.parametrize(
    "given",
    [[], (), np.ones(0), np.ones((0, 2)), deque(), {"age": [], "free": []}, Frame({"age": []})],
    ids=lambda given: type(given).__name__,
)
def test_a_batch_of_nothing_adds_nothing(given: Any):
    """No row is counted, and none is dropped."""
    indices, amounts, dropped = Binning([AGE, FREE]).of_features(given)
    assert (indices, amounts or None, dropped) == (None, None, 0)


def test_a_profile_of_the_answers_alone_takes_no_features():
    """Without features of its own nothing is counted or dropped, and without a prediction no answer is."""
    assert Binning([], AGE).of_features([1.0]) == (None, None, 0)
    assert Binning([], AGE).of_features([]) == (None, None, 0)
    assert Binning([AGE]).of_predictions(1.0) == (None, None, 0)


def test_an_iterator_keeps_its_values():
    """What can be read only once is left to the model."""
    binning = Binning([AGE, FREE], AGE)
    rows = iter([[1.0, 2.0]])
    for form in (rows, [rows, rows], {"age": rows}):
        binning.of_features(form)
        binning.of_predictions(form)
    assert list(rows) == [[1.0, 2.0]]


@pytest.mark.parametrize(
    "given",
    [
        Broken(), [Broken()] * 2, [[Broken(), Broken()]] * MANY, {"age": Broken(), "free": Broken()},
        [OfABrokenKind()] * MANY, [[OfABrokenKind()] * 2] * MANY, Endless(), [Endless()] * MANY,
        Frame({"age": Broken()}), Odd(columns=3), Odd(ndim="x"), Odd(shape=None), Odd(ndim=2, tolist=lambda: 5),
        Frame({Broken: [1.0]}), Series(Broken()), UserDict({Label.BONN: 1}), np.fromiter([Broken()] * 2, dtype=object),
        Odd(ndim=1, tolist=lambda: 5), Odd(to_numpy=lambda: 5), Odd(dtype=5),
        np.zeros((1, 2), dtype="M8[s]"), np.zeros(2, dtype="V4"),
    ],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_nothing_raises_whatever_is_given(given: Any):
    """Features and answers of objects that fail when they are read are counted or dropped."""
    for binning in (Binning([AGE, FREE], AGE), Binning([CITY, COLOUR], CITY)):
        for indices, amounts, dropped in (binning.of_features(given), binning.of_predictions(given)):
            assert dropped >= 0
            assert all(0 <= index < binning.size for index in indices or [])
            assert all(0 <= index < binning.size and amount > 0 for index, amount in amounts or [])


@pytest.mark.stress
def test_rows_nested_without_end_are_dropped_or_of_a_wrong_type():
    """A list in itself and one a thousand deep need no stack."""
    deep: list[Any] = [1.0, 2.0]
    for _ in range(100_000):
        deep = [deep, deep]
    itself: list[Any] = []
    itself += [itself, itself]
    binning = Binning([AGE, FREE], AGE)
    for form in (deep, itself):
        assert named(binning.of_features([1.0, form]), labels((AGE, FREE)))["free type"] == 1
        assert named(binning.of_features(form), labels((AGE, FREE)))["free type"] == 2
        assert binning.of_predictions(form) == (None, [], 2)
    while isinstance(deep, list):
        deep = deep[0]  # one by one: to free them all at once needs the stack


ANSWERS: list[tuple[Any, Binned]] = [
    (20.0, ([1], None, 0)),
    (20, ([1], None, 0)),
    (np.float32(20), ([1], None, 0)),
    (np.array(20.0), ([1], None, 0)),
    (None, ([4], None, 0)),
    ("high", ([4, 8], None, 0)),
    ({"value": 20.0}, ([4, 8], None, 0)),
    (object(), ([4, 8], None, 0)),
    ([20.0], (None, [(1, 1.0)], 0)),
    ((20, None), (None, [(1, 1.0), (4, 1.0)], 0)),
    ([[20.0], (20,), np.array([20.0])], (None, [(1, 3.0)], 0)),
    ([[20.0, 1.0], 20.0, []], (None, [(1, 1.0)], 2)),
    (np.array([[20.0], [20.0]]), (None, [(1, 2.0)], 0)),
    (np.full((MANY, 1), 20, dtype=">i2"), (None, [(1, float(MANY))], 0)),
    (np.ones((MANY, 2)), (None, [], MANY)),
    (np.ones((3, 1, 1)), (None, [], 3)),
    (Series([20.0, nan]), (None, [(1, 1.0), (4, 1.0)], 0)),
    (Tensor([[20.0], [20.0]]), (None, [(1, 2.0)], 0)),
    ([], (None, [], 0)),
    ({20.0}, (None, None, 1)),
]


@pytest.mark.parametrize(("given", "binned"), ANSWERS, ids=lambda value: type(value).__name__)
def test_answers_are_one_or_a_batch(given: Any, binned: Binned):
    """What has a length is a batch, of which an answer of several values is dropped."""
    assert Binning([], AGE).of_predictions(given) == binned


def test_labels_are_counted_as_categories():
    """Texts, whole numbers and truth values, one or many, list or array, are the same labels."""
    binning = Binning([AGE], COLOUR)
    start = 5 + 4
    assert binning.of_predictions("red") == ([start], None, 0)
    assert binning.of_predictions(np.str_("green")) == ([start + 4, start + 6], None, 0)
    for ones in ([1] * MANY, np.ones(MANY, dtype="i8"), np.ones(MANY), ["1"] * MANY, np.array(["1"] * MANY)):
        assert binning.of_predictions(ones) == (None, [(start + 1, float(MANY))], 0)
    assert binning.of_predictions([{"red": 0.9}]) == (None, [(start + 5, 1.0), (start + 7, 1.0)], 0)
    assert binning.of_predictions([False, 1, True] * MANY) == (None, [(start + 2, 40.0), (start + 1, 80.0)], 0)
    assert binning.of_predictions(np.array([False] * MANY)) == (None, [(start + 2, float(MANY))], 0)


def test_training_data_are_counted_as_the_profile_counts_them():
    """What a profile was made of falls into its bins just as often as the profile says, and all of it is as known."""
    generator = np.random.default_rng(7)
    rows = 400
    features = {
        "normal": np.where(generator.random(rows) < 0.1, np.nan, generator.normal(size=rows)),
        "often": np.where(generator.random(rows) < 0.6, 0.0, generator.exponential(size=rows)),
        "whole": generator.integers(0, 5, rows),
        "text": generator.choice(["a", "b", "c"], rows),
        "flag": generator.random(rows) < 0.3,
    }
    answers = generator.normal(size=rows)
    profile = Profile.fit(features, answers)
    binning = Binning(profile.features, profile.prediction)
    expected = [
        count for feature in profile.every_feature for count in (*feature.counts, *[0.0] * len(feature.reasons))
    ]
    counts = [0.0] * binning.size
    for binned in (binning.of_features(features), binning.of_predictions(answers)):
        for index, amount in binned[1] or []:
            counts[index] += amount
    assert counts == expected
