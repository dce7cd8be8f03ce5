"""A feature as training saw it: its bins, how many values fell into each, and what it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

PREDICTION = "__prediction__"
"""The feature that the predictions are: its bins follow those of the model's own features."""

MISSING, OTHER = "missing", "other"
"""The bins of what has no value, and of the values of a category that have no bin of their own."""

BELOW, ABOVE, INFINITE, TYPE, UNSEEN = "below_range", "above_range", "infinite", "type", "unseen"
"""Why a value is not as in training. Infinite ones and those of a wrong type have no value: they are in the bin MISSING
as well; values below and above the range, and unseen ones, are in the bin where they belong."""


@dataclass(frozen=True, slots=True)
class Numeric:
    """A feature of numbers, in bins between edges, open at both ends.

    A value is in the bin of the first edge that is not below it, in the last one if there is none: the bins' order is
    that of `bisect_left(edges, value)`. A value that is frequent by itself has a bin of its own: two edges, the number
    right before it and itself.
    """

    name: str
    edges: tuple[float, ...]
    counts: tuple[float, ...]
    """How many of training's values each bin has, that of the missing ones last: one more than edges and one more."""
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    std: float | None = None
    block: float | None = None
    """What the stability index of one block of training's time, a day say, stays below with 99 percent."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why a value may not be as in training: what is counted behind the bins, in this order."""
        return (BELOW, ABOVE, INFINITE, TYPE)

    @property
    def apart(self) -> int:
        """How many bins, from the last on, have no place in the order."""
        return 1


@dataclass(frozen=True, slots=True)
class Categorical:
    """A feature of categories: a bin for each of the frequent values, one for all others, one for the missing."""

    name: str
    values: tuple[str, ...]
    counts: tuple[float, ...]
    """How many of training's values each bin has: those of `values`, then OTHER, then MISSING."""
    block: float | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why a value may not be as in training. Where training has put some into OTHER, none can be told unseen."""
        return (UNSEEN, TYPE)

    @property
    def apart(self) -> int:
        """How many bins have no place in the order: all of them."""
        return len(self.counts)


Feature: TypeAlias = Numeric | Categorical


def category_of(value: object) -> str | None:
    """Return the text by which a value is a category, None for what is none.

    A str stands for itself; a whole number is its digits, also as a float, which data frames make of whole numbers
    where some are missing; a bool is 1 or 0, as which it may well be served.

    >>> category_of("a"), category_of(True), category_of(3), category_of(3.0), category_of(2.5), category_of([])
    ('a', '1', '3', '3', '2.5', None)
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(float(value))
    item = getattr(value, "item", None)  # a number of numpy's
    if item is None or getattr(value, "ndim", 0) != 0:
        return None
    plain = item()
    return category_of(plain) if isinstance(plain, (str, bool, int, float)) else None
