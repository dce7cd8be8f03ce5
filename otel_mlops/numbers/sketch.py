"""Quantiles from counts: a row of cells whose buckets grow by the same ratio, so each answer is near by 1.1 percent."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import ceil
from typing import NamedTuple

SCALE = 5
"""OpenTelemetry's scale of an exponential histogram: a bucket ends at 2 ** (2 ** -SCALE) times where it begins."""

_STEPS = 1 << SCALE  # buckets to a doubling
_FIRST = -20 * _STEPS  # about a microsecond
_LAST = 10 * _STEPS  # 1,024 seconds

BOUNDS: tuple[float, ...] = tuple(2.0 ** (step / _STEPS) for step in range(_FIRST, _LAST + 1))
"""The buckets' upper bounds, which belong to them: of a sketch, and of a histogram that is to be one, in seconds."""

CELLS = len(BOUNDS) + 1
"""How many counts a sketch has: one for each bound, and one for what is above the last."""


class ExponentialHistogram(NamedTuple):
    """What OTLP's exponential histogram says of a sketch; its count is `zero_count` and all of `bucket_counts`."""

    scale: int
    zero_count: int
    zero_threshold: float
    offset: int
    bucket_counts: list[int]


def index_of(seconds: float) -> int:
    """Return the cell that counts a value: the first whose bound is not below it.

    What is at most BOUNDS[0], about a microsecond, goes into cell 0; what is above BOUNDS[-1] into the last. Two
    sketches of the same cells merge by adding them, and are then the sketch of all their values, exactly.

    Units:   any; BOUNDS is made for seconds.
    Source:  OpenTelemetry, metrics data model, "Exponential Scale": bucket i holds what is above 2 ** (i / 2 ** scale),
             up to and with 2 ** ((i + 1) / 2 ** scale). Cell c is bucket c - 641.

    >>> index_of(0.0), index_of(1.0), index_of(1.000001), index_of(3600.0)
    (0, 640, 641, 961)
    """
    # As fast as log2 with a correction, and it is what histograms do: a histogram with these bounds is a sketch.
    return bisect_left(BOUNDS, seconds)


def quantile(q: float, counts: Sequence[float]) -> float | None:
    """Return a value within 1.1 percent of the q-quantile: of the ceil(q n)-th of n values from the smallest on.

    The value lies in that value's bucket, where it is wrong by the same ratio at either end, (g - 1) / (g + 1) with
    g = 2 ** (1 / 32): 1.083 percent. Values outside of BOUNDS count as the nearest of them.

    Shapes:  counts: (CELLS,), whole numbers >= 0.
    Units:   those of the values.
    Errors:  ValueError if q is not within 0 and 1, or the counts are not CELLS.
    Absent when: the counts are all 0.
    Source:  the rank is that of Hyndman and Fan 1996, definition 1 (numpy's "inverted_cdf"); the value within a bucket
             that of DDSketch (Masson, Rim, Lee 2019, section 2.1).

    >>> counts = [0.0] * CELLS
    >>> for seconds in (0.1, 0.2, 0.3, 0.4):
    ...     counts[index_of(seconds)] += 1.0
    >>> round(quantile(0.5, counts), 3), round(quantile(0.95, counts), 3)
    (0.199, 0.398)
    """
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"q must be within 0 and 1, not {q}")
    if len(counts) != CELLS:
        raise ValueError(f"a sketch has {CELLS} counts, not {len(counts)}")
    ranks = list(accumulate(counts))
    n = ranks[-1]
    if not n > 0.0:
        return None
    cell = bisect_left(ranks, max(ceil(q * n), 1))
    if cell == 0:
        return BOUNDS[0]
    if cell >= len(BOUNDS):
        return BOUNDS[-1]
    low, high = BOUNDS[cell - 1], BOUNDS[cell]
    return 2.0 * low * high / (low + high)


def exponential_histogram(counts: Sequence[float]) -> ExponentialHistogram:
    """Return a sketch as OTLP's exponential histogram: the same buckets, without the empty ones at both ends.

    Cell 0 is the zero bucket. What is above BOUNDS[-1] is in the one bucket that follows it.

    Shapes:  counts: (CELLS,), whole numbers >= 0.
    Errors:  ValueError if the counts are not CELLS.
    Source:  opentelemetry-proto, metrics.proto, ExponentialHistogramDataPoint.

    >>> counts = [0.0] * CELLS
    >>> counts[0], counts[index_of(1.0)], counts[index_of(1.03)] = 1.0, 2.0, 3.0
    >>> exponential_histogram(counts)
    ExponentialHistogram(scale=5, zero_count=1, zero_threshold=9.5367431640625e-07, offset=-1, bucket_counts=[2, 0, 3])
    """
    if len(counts) != CELLS:
        raise ValueError(f"a sketch has {CELLS} counts, not {len(counts)}")
    filled = [cell for cell in range(1, CELLS) if counts[cell]]
    first, last = (filled[0], filled[-1]) if filled else (1, 0)
    return ExponentialHistogram(
        scale=SCALE,
        zero_count=int(counts[0]),
        zero_threshold=BOUNDS[0],
        offset=first - 1 + _FIRST,
        bucket_counts=[int(count) for count in counts[first : last + 1]],
    )
