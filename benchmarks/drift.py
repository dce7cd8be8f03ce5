"""What it costs to count the features of one prediction call for drift: one row and a batch.

The peer is whylogs, which keeps a sketch of each feature where we count in the bins that training gave.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from statistics import quantiles
from typing import Any

from benchmarks.measure import Line, Work, race
from otel_mlops.profile.binning import Binning
from otel_mlops.profile.feature import Feature, Numeric

WIDTHS = (10, 50)
ROWS = 1_000
"""How many rows a batch has."""

Contender = Callable[[], Work]


def numbers(count: int) -> list[float]:
    """Values of a feature, the same in each run."""
    generator = random.Random(1)
    return [generator.gauss(0.0, 1.0) for _ in range(count)]


def features(width: int) -> list[Feature]:
    """As training sees so many features: with ten bins each."""
    seen = numbers(10_000)
    edges = tuple(quantiles(seen, n=10))
    counts = (*[1_000.0] * 10, 0.0)
    return [Numeric(f"feature_{i}", edges, counts, min(seen), max(seen)) for i in range(width)]


def rows(width: int) -> list[list[float]]:
    """The rows of a batch."""
    values = numbers(width * ROWS)
    return [values[start : start + width] for start in range(0, len(values), width)]


def as_row(width: int, form: Callable[[Sequence[float]], Any] = list) -> Contender:
    """One row of ours, as a list or in another form."""
    return lambda: Work(
        "of_features(row)", {"of_features": Binning(features(width)).of_features, "row": form(rows(width)[0])}
    )


def as_batch(width: int, form: Callable[[list[list[float]]], Any] = list) -> Contender:
    """A batch of ours, as a list of rows or in another form."""

    def prepare() -> Work:
        names = {"of_features": Binning(features(width)).of_features, "batch": form(rows(width))}
        return Work("of_features(batch)", names, pieces=ROWS)

    return prepare


def by_name(row: Sequence[float]) -> dict[str, float]:
    """A row by the features' names."""
    return {f"feature_{i}": value for i, value in enumerate(row)}


def array_of(batch: list[list[float]]) -> Any:
    """A batch as an array of numpy."""
    import numpy as np

    return np.array(batch)


def whylogs_row(width: int) -> Contender:
    """One row of whylogs, which takes it by name, into a profile that exists."""

    def prepare() -> Work:
        profile = import_module("whylogs.core").DatasetProfile()
        return Work("track(row)", {"track": profile.track, "row": by_name(rows(width)[0])})

    return prepare


def lines(*, quick: bool) -> Iterator[Line]:
    """The lines of this topic."""
    import numpy as np  # noqa: F401, a list is counted through numpy only where the program has loaded it

    for width in WIDTHS:
        measured = race(
            {
                "list": as_row(width),
                "dict": as_row(width, by_name),
                "rows": as_batch(width),
                "array": as_batch(width, array_of),
                "whylogs": whylogs_row(width),
            },
            rounds=5 if quick else 25,
        )
        # The whole prediction is to cost 1/30 of whylogs' row: of that, the features' part is 1/100.
        yield measured.line(f"{width} features, one row, list", "whylogs, one row", "list", "whylogs", target=1 / 100)
        yield measured.line(f"{width} features, one row, dict", "whylogs, one row", "dict", "whylogs", target=1 / 80)
        yield measured.line(
            f"{width} features, row of {ROWS:,}, lists", "one row, list", "rows", "list", target=1 / 1.2
        )
        yield measured.line(
            f"{width} features, row of {ROWS:,}, numpy array", "one row, list", "array", "list", target=1 / 3
        )
