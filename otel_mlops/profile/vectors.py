"""Arithmetic on whole columns with numpy: the functions of plain.py, some fifty times as fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from otel_mlops.numbers.probability import LEAST
from otel_mlops.numbers.quality import Residuals

from . import plain
from .plain import Moments

_U64 = np.uint64


def floats(column: Any) -> Any:
    """Return the numbers of a column, NaN where there is none: for the missing and the infinite."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "iufb":
        values = column.astype(np.float64, copy=False)
    else:
        try:
            values = np.array(column, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            values = np.array(plain.floats(column), dtype=np.float64)
    finite = np.isfinite(values)
    return values if finite.all() else np.where(finite, values, np.nan)


def codes_of(texts: Sequence[str | None]) -> tuple[list[str | None], Any]:
    """Return the distinct texts in the order in which they come, and for each row which one it is."""
    found, codes = plain.codes_of(texts)
    return found, np.array(codes, dtype=np.int64)


def joined(parts: Sequence[Any]) -> Any:
    """Return columns one after the other."""
    return np.concatenate(parts) if len(parts) != 1 else parts[0]


def picked(column: Any, mask: Any) -> Any:
    """Return the values of a column where the mask says so."""
    return column[mask]


def marks(start: int, stop: int) -> Any:
    """Return for each row a number of 64 bits that is as good as random, always the same."""
    with np.errstate(over="ignore"):
        z = (np.arange(start, stop, dtype=_U64) + _U64(1)) * _U64(plain.STEP)
        z = (z ^ (z >> _U64(30))) * _U64(plain.FIRST)
        z = (z ^ (z >> _U64(27))) * _U64(plain.SECOND)
        return z ^ (z >> _U64(31))


def survivors(numbers: Any, level: int) -> Any:
    """Return the mask of those marks of which one in 2 ** level is left."""
    return (numbers & _U64((1 << level) - 1)) == 0


def moments(values: Any) -> Moments:
    """Return how many values there are, their mean, sum of squares about it, minimum and maximum."""
    present = values[~np.isnan(values)]
    if not len(present):
        return Moments()
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(present.mean())
        return Moments(
            len(present), mean, float(np.square(present - mean).sum()), float(present.min()), float(present.max())
        )


def ordered(values: Any) -> Any:
    """Return the values that there are, by size."""
    return np.sort(values[~np.isnan(values)])


def places(values: Any, edges: Sequence[float]) -> Any:
    """Return the bin of each value, the one after the last for the missing."""
    found = np.searchsorted(np.array(edges, dtype=np.float64), values, side="left")
    found[np.isnan(values)] = len(edges) + 1
    return found


def table(rows: Any, height: int, columns: Any, width: int) -> list[list[float]]:
    """Return how often each pair of a row's and a column's code comes."""
    counts = np.bincount(rows * width + columns, minlength=height * width)
    return [[float(count) for count in row] for row in counts.reshape(height, width).tolist()]


def numbers_of_blocks(seconds: Any, length: float) -> tuple[list[int], Any]:
    """Return the numbers of the blocks of time, and which of them each row is in; -1 is none."""
    numbers = np.floor(seconds / length)
    present = ~np.isnan(numbers)
    found, codes = np.unique(numbers[present], return_inverse=True)
    all_codes = np.full(len(numbers), -1, dtype=np.int64)
    all_codes[present] = codes
    return [int(number) for number in found.tolist()], all_codes


def seconds_of(column: Any) -> Any:
    """Return points in time as seconds since 1970, NaN where there is none."""
    if isinstance(column, np.ndarray) and column.dtype.kind == "M":
        return np.where(np.isnat(column), np.nan, column.astype("datetime64[us]").astype(np.int64) / 1e6)
    if isinstance(column, np.ndarray) and column.dtype.kind in "iuf":
        seconds = floats(column)
        for extreme in moments(seconds)[3:]:
            plain.in_range(extreme if np.isfinite(extreme) else 0.0)
        return seconds
    return np.array(plain.seconds_of(column), dtype=np.float64)


def below(codes: Any, size: int) -> Any:
    """Return the mask of the codes from 0 to below `size`."""
    return (codes >= 0) & (codes < size)


def clipped(scores: Any) -> Any:
    """Return scores as probabilities, 0 and 1 for what is a little beyond."""
    return np.clip(scores, 0.0, 1.0)


def sums(codes: Any, size: int, weights: Any) -> list[float]:
    """Return the sum of the weights of each code."""
    return [float(each) for each in np.bincount(codes, weights=weights, minlength=size).tolist()]


def combined(high: Any, low: Any, size: int) -> Any:
    """Return one code for two, of which the low one is below `size`."""
    return high * size + low


def squares(scores: Any, positive: bool) -> Any:
    """Return what each score adds to the Brier score's sum."""
    return np.square(scores - positive)


def losses(scores: Any, positive: bool) -> Any:
    """Return what each score adds to the logarithmic loss's sum."""
    return -np.log(np.clip(scores if positive else 1.0 - scores, LEAST, 1.0))


def residual_sums(predicted: Any, actual: Any, reference: float) -> Residuals:
    """Return the sums of the residuals, of the rows that have both."""
    both = ~(np.isnan(predicted) | np.isnan(actual))
    e, d = (predicted - actual)[both], actual[both] - reference
    sums = (float(each.sum()) for each in (e, np.square(e), np.abs(e), d, np.square(d)))
    return Residuals._make([float(len(e)), *sums, reference])


def taken(values: Sequence[int], codes: Any) -> Any:
    """Return the value that each code stands for."""
    return np.array(values, dtype=np.int64)[codes]
