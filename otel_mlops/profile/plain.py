"""Arithmetic on whole columns in plain Python, where numpy is not installed: vectors.py has the same functions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from datetime import UTC, date, datetime
from itertools import chain, compress
from math import floor, fsum, inf, isfinite, nan
from typing import Any, NamedTuple

from otel_mlops.numbers.probability import brier_loss, log_loss
from otel_mlops.numbers.quality import Residuals, residuals

from .columns import is_missing

STEP, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of splitmix64: Steele, Lea, Flood 2014, Fast splittable pseudorandom number generators."""

LATEST = 1e11
"""More seconds since 1970 than a point in time has; milliseconds have more."""

_ALL = (1 << 64) - 1


class Moments(NamedTuple):
    """Of the values of a column: how many, their mean, sum of squares about it, minimum and maximum."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    minimum: float = inf
    maximum: float = -inf

    def plus(self, other: Moments) -> Moments:
        """Return those of both together: Chan, Golub, LeVeque 1979."""
        n = self.n + other.n
        if not n:
            return self
        delta = other.mean - self.mean
        return Moments(
            n,
            self.mean + delta * (other.n / n),
            self.squares + other.squares + delta * delta * (self.n * (other.n / n)),
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )


def floats(column: Any) -> list[float]:
    """Return the numbers of a column, NaN where there is none: for the missing and the infinite."""
    return [_float(value) for value in column]


def codes_of(texts: Sequence[str | None]) -> tuple[list[str | None], list[int]]:
    """Return the distinct texts in the order in which they come, and for each row which one it is."""
    found: dict[str | None, int] = {}
    codes = [found.setdefault(text, len(found)) for text in texts]
    return list(found), codes


def joined(parts: Sequence[Any]) -> list[Any]:
    """Return columns one after the other."""
    return list(chain.from_iterable(parts))


def picked(column: Any, mask: Any) -> list[Any]:
    """Return the values of a column where the mask says so."""
    return list(compress(column, mask))


def marks(start: int, stop: int) -> list[int]:
    """Return for each row a number of 64 bits that is as good as random, always the same."""
    return [_mark(row) for row in range(start, stop)]


def survivors(numbers: Any, level: int) -> list[bool]:
    """Return the mask of those marks of which one in 2 ** level is left."""
    return [not number & ((1 << level) - 1) for number in numbers]


def moments(values: Any) -> Moments:
    """Return how many values there are, their mean, sum of squares about it, minimum and maximum."""
    present = ordered(values)
    if not present:
        return Moments()
    mean = _sum(present) / len(present)
    return Moments(
        len(present), mean, _sum([(each - mean) * (each - mean) for each in present]), present[0], present[-1]
    )


def ordered(values: Any) -> list[float]:
    """Return the values that there are, by size."""
    return sorted([value for value in values if value == value])  # noqa: PLR0124 (what NaN is known by)


def places(values: Any, edges: Sequence[float]) -> list[int]:
    """Return the bin of each value, the one after the last for the missing."""
    return [bisect_left(edges, value) if value == value else len(edges) + 1 for value in values]  # noqa: PLR0124


def table(rows: Any, height: int, columns: Any, width: int) -> list[list[float]]:
    """Return how often each pair of a row's and a column's code comes."""
    counts = [[0.0] * width for _ in range(height)]
    for row, column in zip(rows, columns, strict=True):
        counts[row][column] += 1.0
    return counts


def sums(codes: Any, size: int, weights: Any) -> list[float]:
    """Return the sum of the weights of each code."""
    found = [0.0] * size
    for code, weight in zip(codes, weights, strict=True):
        found[code] += weight
    return found


def numbers_of_blocks(seconds: Any, length: float) -> tuple[list[int], list[int]]:
    """Return the numbers of the blocks of time, and which of them each row is in; -1 is none."""
    numbers = [floor(each / length) if each == each else None for each in seconds]  # noqa: PLR0124
    found = {number: code for code, number in enumerate(sorted({each for each in numbers if each is not None}))}
    return list(found), [-1 if number is None else found[number] for number in numbers]


def seconds_of(column: Any) -> list[float]:
    """Return points in time as seconds since 1970, NaN where there is none.

    Errors:  ValueError for what is no point in time, and for milliseconds.
    """
    return [_seconds(value) for value in column]


def below(codes: Any, size: int) -> list[bool]:
    """Return the mask of the codes from 0 to below `size`."""
    return [0 <= code < size for code in codes]


def clipped(scores: Any) -> list[float]:
    """Return scores as probabilities, 0 and 1 for what is a little beyond."""
    return [score if score != score else min(max(score, 0.0), 1.0) for score in scores]  # noqa: PLR0124


def combined(high: Any, low: Any, size: int) -> list[int]:
    """Return one code for two, of which the low one is below `size`."""
    return [a * size + b for a, b in zip(high, low, strict=True)]


def squares(scores: Any, positive: bool) -> list[float]:
    """Return what each score adds to the Brier score's sum."""
    return [brier_loss(score, positive) for score in scores]


def losses(scores: Any, positive: bool) -> list[float]:
    """Return what each score adds to the logarithmic loss's sum."""
    return [log_loss(score if positive else 1.0 - score) for score in scores]


def residual_sums(predicted: Any, actual: Any, reference: float) -> Residuals:
    """Return the sums of the residuals, of the rows that have both."""
    total = [0.0] * 6
    for p, a in zip(predicted, actual, strict=True):
        if p == p and a == a:  # noqa: PLR0124 (what NaN is known by)
            total = [x + y for x, y in zip(total, residuals(p, a, reference), strict=False)]
    return Residuals._make([*total, reference])


def _float(value: Any) -> float:
    if is_missing(value):
        return nan
    try:
        number = float(value)
    except OverflowError:
        return nan  # a whole number beyond every float is as good as infinite
    return number if isfinite(number) else nan


def _sum(values: Sequence[float]) -> float:
    try:
        return fsum(values)
    except OverflowError:
        return nan


def _mark(row: int) -> int:
    z = (row + 1) * STEP & _ALL
    z = (z ^ (z >> 30)) * FIRST & _ALL
    z = (z ^ (z >> 27)) * SECOND & _ALL
    return z ^ (z >> 31)


def _seconds(value: Any) -> float:
    if is_missing(value):
        return nan
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if type(value).__name__ == "datetime64":
        value = int(value.astype("datetime64[us]").astype(int)) / 1e6
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp()
    if isinstance(value, bool) or not hasattr(type(value), "__float__"):
        raise ValueError(f"{value!r:.40} is no timestamp: seconds since 1970, datetimes and ISO 8601 texts are")
    return in_range(float(value))


def in_range(seconds: float) -> float:
    """Return the seconds, if they can be some.

    Errors:  ValueError for what only milliseconds can be.
    """
    if abs(seconds) > LATEST:
        raise ValueError(f"the timestamp {seconds!r} is not in seconds since 1970")
    return seconds


def taken(values: Sequence[int], codes: Any) -> list[int]:
    """Return the value that each code stands for."""
    return [values[code] for code in codes]
