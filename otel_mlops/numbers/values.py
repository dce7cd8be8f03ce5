"""What a model predicted, of whatever library it is: how many rows, and which numbers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


class ValuesReader:
    """Reads the values of predictions: raises nothing, and says once that some cannot be read."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told = False

    def read(self, values: Any) -> tuple[int | None, Any]:
        """Return the rows of a batch and its numbers; None and the number of a single prediction.

        The numbers are None where there are none, as with labels, or with several a row.

        >>> ValuesReader().read([[1.0], [2.0]]), ValuesReader().read(4), ValuesReader().read(["cat", "dog"])
        ((2, [1.0, 2.0]), (None, 4), (2, None))
        """
        rows = None
        try:
            rows = count_rows(values)
            if rows is None:
                return None, values if is_number(values) else None
            return rows, numbers_of(values) if rows else None
        except Exception:
            # The values are somebody else's objects: whatever they raise is no affair of the request's.
            if not self._told:
                self._told = True
                logger.warning(
                    "Predicted values of type %s cannot be read; the prediction is counted without them",
                    type(values).__qualname__, exc_info=True,
                )  # fmt: skip
            return rows, None


def count_rows(values: Any) -> int | None:
    """Return the rows of a batch, None for one answer: a scalar, a text, or a mapping of an answer's parts.

    Errors:  whatever the object's own `__len__` raises, but for the TypeError of what has no length.

    >>> count_rows([0.1, 0.9]), count_rows(0.9), count_rows("cat"), count_rows({"cat": 0.9})
    (2, None, None, None)
    """
    if isinstance(values, (str, bytes, bytearray, Mapping)):
        return None
    try:
        return len(values)
    except TypeError:
        return None


def numbers_of(values: Any) -> Any | None:
    """Return a batch's numbers, one a row, as an array or a list; None for labels and several numbers a row.

    Where the first row is a number, all rows are given: what is no number among them is the reader's to drop.

    Shapes:  (n,) or (n, 1), n > 0; None for any other.
    Errors:  whatever the object's own methods raise.

    >>> numbers_of([[1.0], [2.0]]), numbers_of([None, 3.0]), numbers_of(["cat"]), numbers_of([[0.1, 0.9]])
    ([1.0, 2.0], [3.0], None, None)
    """
    if not isinstance(values, (list, tuple)):
        if tuple(getattr(values, "shape", ()))[1:] not in ((), (1,)):
            return None
        values = _unpacked(values)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(values, numpy.ndarray):
        if values.dtype.kind in "biuf":
            return values.ravel()
        if values.dtype.kind != "O":
            return None
        values = values.ravel().tolist()
    first = next(iter(values))
    if isinstance(first, (str, bytes)):
        return None
    if isinstance(first, (list, tuple)):
        values = [row[0] for row in values if len(row) == 1]
    elif is_number(first):
        return values
    return [value for value in values if is_number(value)] or None


def is_number(value: object) -> bool:
    """Say whether an object stands for one number, as the scalars of every library do.

    >>> is_number(1), is_number(None), is_number("1")
    (True, False, False)
    """
    if isinstance(value, (str, bytes, bytearray)):
        return False
    return hasattr(type(value), "__float__") or hasattr(type(value), "__index__")


def _unpacked(values: Any) -> Any:
    """The values of a series, tensor or column as an array or a list, whichever its library gives."""
    for verb in ("to_numpy", "numpy"):
        unpack = getattr(values, verb, None)
        if unpack is not None:
            try:
                return unpack()
            except (TypeError, RuntimeError, ValueError) as error:
                # A tensor on a GPU or with a gradient has no array, yet it has a list.
                logger.debug("%s.%s(): %s", type(values).__qualname__, verb, error)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(values, numpy.ndarray):
        return values
    return values.tolist() if hasattr(values, "tolist") else values
