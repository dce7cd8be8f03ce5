"""Many values in one go: how many fall into each bucket, and their sum."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import Counter as Tally
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LARGEST = sys.float_info.max

_WORTH_AN_ARRAY = 64
"""From about this length on a list is counted faster through numpy, if the program has loaded it."""


def count_by_bucket(
    values: Iterable[float], bounds: tuple[float, ...], lowest: float
) -> tuple[list[tuple[int, float]], float]:
    """Return the counts of the buckets that are not empty, and the sum.

    Errors: any exception where a single value is not fit to be counted.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and (hasattr(values, "__array__") or len(values) > _WORTH_AN_ARRAY):  # type: ignore[arg-type]
        array = numpy.asarray(values, dtype=numpy.float64)
        if array.ndim > 1 and not hasattr(values, "__array__"):
            raise TypeError  # lists in a list are no numbers, however many there are
        array = array.ravel()
        if not array.size:
            return [], 0.0
        total = float(array.sum())
        if not (lowest <= array.min() and -LARGEST <= total <= LARGEST):
            raise ValueError
        places = numpy.searchsorted(_as_array(bounds), array, side="left")
        tally = numpy.bincount(places).tolist()
        return [(index, float(count)) for index, count in enumerate(tally) if count], total
    numbers = values if isinstance(values, (list, tuple)) else list(values)
    if not numbers:
        return [], 0.0
    total = float(sum(numbers))
    # A NaN or an infinity among them would show in the sum, a negative one in the minimum.
    if not (lowest <= min(numbers) and -LARGEST <= total <= LARGEST):
        raise ValueError
    return [(i, float(n)) for i, n in Tally(map(partial(bisect_left, bounds), numbers)).items()], total


def drawn(values: Iterable[float], on_failure: Callable[[], None]) -> list[float]:
    """Return what an iterable gives, up to where it fails."""
    numbers: list[float] = []
    try:
        numbers.extend(values)
    except Exception:
        on_failure()
    return numbers


@lru_cache(maxsize=256)
def _as_array(bounds: tuple[float, ...]) -> Any:
    numpy = sys.modules["numpy"]
    return numpy.array(bounds, dtype=numpy.float64)
