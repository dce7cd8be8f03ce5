"""Bins of numbers: edges at the quantiles of training's values, and a bin of its own for what is frequent by itself."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import inf, isfinite, nextafter


def edges_of(ordered: Sequence[float], bins: int) -> tuple[float, ...]:
    """Return the edges of about as many bins with as many values in each.

    A value that is heavier than one bin, and has come more than once, has two edges, the number right before it and
    itself. What is left is cut into the bins that are left, at quantiles that are values themselves (numpy's
    "inverted_cdf"); equal edges are one.

    >>> edges_of([1.0, 2.0, 3.0, 4.0], bins=4)
    (1.0, 2.0, 3.0)
    >>> edges_of([5.0, 5.0, 5.0], bins=10) == (nextafter(5.0, -inf), 5.0)
    True
    """
    n = len(ordered)
    if not n:
        return ()
    runs = _heavy_runs(ordered, bins)
    edges = set()
    for start, _ in runs:
        value = float(ordered[start]) + 0.0  # -0.0 becomes 0.0
        edges |= {edge for edge in (nextafter(value, -inf), value) if isfinite(edge)}
    left = n - sum([stop - start for start, stop in runs])
    parts = bins - len(runs)
    if left:
        for k in range(1, parts):
            place = max(0, -(-k * left // parts) - 1)
            for start, stop in runs:
                place += stop - start if place >= start else 0
            edges.add(float(ordered[place]) + 0.0)
    return tuple(sorted(edges))


def counts_of(ordered: Sequence[float], edges: Sequence[float], total: int) -> tuple[float, ...]:
    """Return how many of all values each bin has; where these are a sample of them, in its shares.

    Whole numbers that add up to `total`.

    >>> counts_of([1.0, 2.0, 3.0, 4.0], (1.0, 3.0), total=4), counts_of([1.0, 2.0], (1.0,), total=5)
    ((1.0, 2.0, 1.0), (2.0, 3.0))
    """
    n = len(ordered)
    if not n:
        return (*[0.0] * len(edges), float(total))
    upto = [0, *[bisect_right(ordered, edge) * total // n for edge in edges], total]
    return tuple([float(high - low) for low, high in pairwise(upto)])


def _heavy_runs(ordered: Sequence[float], bins: int) -> list[tuple[int, int]]:
    """Where the values begin and end that are heavier than one bin. Each such run has a multiple of the step in it."""
    n = len(ordered)
    runs: list[tuple[int, int]] = []
    for place in range(0, n, max(1, n // bins)):
        if not runs or place >= runs[-1][1]:
            value = ordered[place]
            start, stop = bisect_left(ordered, value), bisect_right(ordered, value)
            if (stop - start) * bins > n and (stop - start > 1 or n == 1):
                runs.append((start, stop))
    return runs
