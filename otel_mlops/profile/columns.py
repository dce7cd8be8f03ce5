"""Columns: what a user has as features, by name, whichever way they are held; and of what kind a column is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

from .feature import PREDICTION, category_of

Kind = Literal["number", "category"]

MOST_FEATURES = 10_000
LONGEST = 200
"""How many characters a feature's name, and a category that has a bin of its own, may have."""


def columns_of(features: Any, names: Sequence[str] | None = None) -> tuple[dict[str, Any], int]:
    """Return the columns of features by name, and how many rows they have.

    Features are a frame (`.columns` and `frame[name]`), a mapping of columns, a 2-D array, a list of rows or of
    mappings, or one column. What has no names takes `names`, else x0, x1 and so on; of what has names they are those
    to take, in this order.

    Errors:  ValueError for columns of different lengths, and for names that are not there or appear twice.

    >>> columns_of([[1, "a"], [2, "b"]])
    ({'x0': [1, 2], 'x1': ['a', 'b']}, 2)
    """
    if isinstance(features, Mapping):
        return _selected(features, features, names)
    if hasattr(features, "columns"):
        return _selected(features.columns, features, names)
    if names is None and isinstance(getattr(features, "name", None), str) and features.name:
        names = [features.name]  # a series
    found = sequence_of(features)
    dimensions = getattr(found, "ndim", 1)
    if dimensions > 2:
        raise ValueError(f"features have rows and columns, not {dimensions} dimensions")
    if dimensions == 2:
        return _named([found[:, i] for i in range(found.shape[1])], names, len(found))
    if len(found) and isinstance(found[0], Mapping):
        keys = list(dict.fromkeys(chain.from_iterable(found))) if names is None else names
        return _named([[row.get(key) for row in found] for key in keys], keys, len(found))
    if len(found) and _is_row(found[0]):
        return _named(_turned(found), names, len(found))
    return _named([found], names, len(found))


def column_of(values: Any, rows: int, what: str) -> Any:
    """Return what a user gives beside the features, one value a row, as an array or a list.

    Errors:  ValueError where it has not one value a row; the text says `what` it is.
    """
    values = sequence_of(values)
    shape: tuple[int, ...] = getattr(values, "shape", (len(values),))
    if len(shape) == 2 and shape[1] == 1:
        values, shape = values[:, 0], shape[:1]
    if len(shape) != 1 or (len(values) and _is_row(values[0])):
        raise ValueError(
            f"{what} have one value a row; of the probabilities of several classes take predict_proba(X)[:, 1] for "
            "two classes, predict_proba(X).max(axis=1) for more"
        )
    if len(values) != rows:
        raise ValueError(f"{len(values)} {what} do not go with {rows} rows")
    return values


def sequence_of(values: Any) -> Any:
    """Return a series, tensor or any iterable as an array of numpy's or a list, whichever it gives by itself."""
    if isinstance(values, (list, tuple)):
        return values
    for verb in ("to_numpy", "numpy", "__array__"):
        unpack = getattr(values, verb, None)
        if unpack is not None:
            return unpack()
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValueError(f"{type(values).__name__} {values!r:.40} is no column")  # noqa: TRY004 (as all of them)
    return list(values)


def is_missing(value: object) -> bool:
    """Say whether a value is none: None, NaN, and what pandas has for them.

    >>> is_missing(None), is_missing(float("nan")), is_missing(0), is_missing("")
    (True, True, False, False)
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, float) or getattr(value, "ndim", None) == 0:
        return bool(value != value)  # noqa: PLR0124 (what NaN is known by)
    return False


def kind_of(column: Any, name: str) -> Kind | None:
    """Return whether a column holds numbers or categories (texts, true and false); None where all is missing.

    Errors:  ValueError for a column that holds both, or anything else.

    >>> kind_of([1, None, 2.5], "x"), kind_of(["a", float("nan")], "x"), kind_of([None], "x")
    ('number', 'category', None)
    """
    letter = getattr(getattr(column, "dtype", None), "kind", "O")
    if letter in "iuf":
        return "number" if (column == column).any() else None  # noqa: PLR0124 (what NaN is known by)
    if letter in "bU":
        return "category" if len(column) else None
    if letter in "mM":
        raise ValueError(f"column {name!r} holds times: give them as timestamps, or make numbers of them")
    found: set[str] = set()
    for each in set(map(type, column)):
        if issubclass(each, str) or each.__name__ in ("bool", "bool_"):
            found.add("category")
        elif issubclass(each, float):  # a missing text is often NaN
            found |= {"number"} if any(type(value) is each and value == value for value in column) else set()  # noqa: PLR0124
        elif issubclass(each, (bytes, complex)) or not (each.__name__ in _MISSING or _is_numeric(each)):
            raise ValueError(f"column {name!r} holds {each.__name__}, which is neither a number nor a category")
        elif each.__name__ not in _MISSING:
            found.add("number")
    if len(found) == 2:
        raise ValueError(f"column {name!r} holds numbers and texts: name it in categorical=, or make it one of both")
    return found.pop() if found else None  # type: ignore[return-value]


def categories_of(column: Any, name: str) -> list[str | None]:
    """Return the texts of a column of categories, None for the missing.

    Errors:  ValueError for a value that is no category.
    """
    values = column.tolist() if hasattr(column, "tolist") else column
    texts: list[str | None] = []
    for value in values:
        text = None if is_missing(value) else value if type(value) is str else category_of(value)
        if text is None and not is_missing(value):
            raise ValueError(f"column {name!r} holds {value!r:.40}, a {type(value).__name__}, which is no category")
        texts.append(text)
    return texts


def has_a_name(text: str) -> bool:
    """Say whether a text can name a feature or a bin: not too long, and every character can be written."""
    return len(text) <= LONGEST and not any("\ud800" <= character <= "\udfff" for character in text)


def check_names(names: Sequence[object]) -> None:
    """Refuse names of features that are no texts, empty, too long, twice, or too many.

    Errors:  ValueError.
    """
    if not 1 <= len(names) <= MOST_FEATURES:
        raise ValueError(f"{len(names)} features, expected 1 to {MOST_FEATURES}")
    seen = set()
    for name in names:
        if not isinstance(name, str) or not name or not has_a_name(name) or name == PREDICTION:
            raise ValueError(f"{name!r:.80} cannot name a feature: a text of 1 to {LONGEST} characters can")
        if name in seen:
            raise ValueError(f"two features are named {name!r}")
        seen.add(name)


_MISSING = ("NoneType", "NAType", "NaTType")


def _selected(found: Iterable[Any], of: Any, names: Sequence[str] | None) -> tuple[dict[str, Any], int]:
    keys = {str(key): key for key in found}
    if len(keys) < len(list(found)):
        raise ValueError("two columns have the same name")
    missing = [name for name in names or () if name not in keys]
    if missing:
        raise ValueError(f"there is no column {missing[0]!r}")
    wanted = list(keys) if names is None else names
    columns = [sequence_of(of[keys[name]]) for name in wanted]
    return _named(columns, wanted, len(columns[0]) if columns else 0)


def _named(columns: Sequence[Any], names: Sequence[str] | None, rows: int) -> tuple[dict[str, Any], int]:
    if names is None:
        names = [f"x{i}" for i in range(len(columns))]
    if len(names) != len(columns):
        raise ValueError(f"{len(names)} names do not go with {len(columns)} columns")
    check_names(names)
    for name, column in zip(names, columns, strict=True):
        if len(column) != rows:
            raise ValueError(f"column {name!r} has {len(column)} values, not {rows} as the others")
        if getattr(column, "ndim", 1) != 1:
            raise ValueError(f"column {name!r} has several values a row")
    return dict(zip(names, columns, strict=True)), rows


def _turned(rows: Sequence[Any]) -> list[list[Any]]:
    width = len(rows[0])
    for i, row in enumerate(rows):
        if not _is_row(row) or len(row) != width:
            raise ValueError(f"row {i} has not {width} values as the first has")
    return [list(column) for column in zip(*rows, strict=True)]


def _is_row(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1


def _is_numeric(each: type) -> bool:
    return hasattr(each, "__float__") or hasattr(each, "__index__")
