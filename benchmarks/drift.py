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


def prediction(width: int, *, with_features: bool = True, batch: bool = False) -> Contender:
    """A prediction as a service makes it: its duration, its value and, with features, its drift."""

    def prepare() -> Work:
        from otel_mlops.model import Model
        from otel_mlops.profile import Profile
        from otel_mlops.sdk.page import PageReader
        from otel_mlops.sdk.provider import MeterProvider

        answer = features(1)[0]
        profile = Profile(features=tuple(features(width)), prediction=answer) if with_features else None
        model = Model(
            MeterProvider([PageReader()], shutdown_on_exit=False), name="bench", version="1", type="regression",
            profile=profile,
        )  # fmt: skip
        given: Any = array_of(rows(width)) if batch else rows(width)[0]
        values: Any = array_of(rows(1))[:, 0] if batch else 1.5

        def predict() -> None:
            with model.prediction(given if with_features else None) as prediction:
                prediction.values = values

        return Work("predict()", {"predict": predict}, pieces=ROWS if batch else 1)

    return prepare


def look(width: int) -> Contender:
    """What whoever leads does before a scrape: all scores of a model from the counts of all workers."""

    def prepare() -> Work:
        from otel_mlops.model import Model
        from otel_mlops.profile import Profile
        from otel_mlops.scores import Scores
        from otel_mlops.sdk.provider import MeterProvider
        from otel_mlops.settings import Settings

        provider = MeterProvider(shutdown_on_exit=False)
        profile = Profile(features=tuple(features(width)), prediction=features(1)[0])
        model = Model(provider, name="bench", version="1", type="regression", profile=profile)
        scores = Scores(provider, None, Settings())
        scores()
        with model.prediction(array_of(rows(width))) as prediction:
            prediction.values = array_of(rows(1))[:, 0]
        for _ in range(100):
            model.record_truth(prediction=1.0, actual=1.5)
        return Work("scores()", {"scores": scores})

    return prepare


def bytes_of_a_model(width: int) -> int:
    """What a model with a profile takes in a worker: in its ledger and in the memory of Python's objects."""
    import tracemalloc

    from otel_mlops.model import Model
    from otel_mlops.profile import Profile
    from otel_mlops.sdk.provider import MeterProvider

    provider, given = MeterProvider(shutdown_on_exit=False), array_of(rows(width))
    profile = Profile(features=tuple(features(width)), prediction=features(1)[0])

    def serve(version: str) -> Any:
        model = Model(provider, name="bench", version=version, type="regression", profile=profile)
        for _ in range(10):
            with model.prediction(given) as prediction:
                prediction.values = given[:, 0]
            model.record_truth(prediction=1.0, actual=1.5)
        return model

    kept = [serve("warm")]
    tracemalloc.start()
    before = provider.ledger.total_bytes
    kept.append(serve("counted"))
    took = tracemalloc.get_traced_memory()[0] + provider.ledger.total_bytes - before
    tracemalloc.stop()
    return took


def lines(*, quick: bool) -> Iterator[Line]:
    """The lines of this topic."""
    import numpy as np  # noqa: F401, a list is counted through numpy only where the program has loaded it

    rounds = 5 if quick else 25
    for width in WIDTHS:
        measured = race(
            {
                "list": as_row(width),
                "dict": as_row(width, by_name),
                "rows": as_batch(width),
                "array": as_batch(width, array_of),
                "whole": prediction(width),
                "plain": prediction(width, with_features=False),
                "batch": prediction(width, batch=True),
                "whylogs": whylogs_row(width),
            },
            rounds=rounds,
        )
        peer = "whylogs, one row"
        yield measured.line(f"prediction of {width} features, with drift", peer, "whole", "whylogs", target=1 / 30)
        yield measured.line(f"{width} features, one row, list", peer, "list", "whylogs", target=1 / 100)
        yield measured.line(f"{width} features, one row, dict", peer, "dict", "whylogs", target=1 / 80)
        yield measured.line(
            f"{width} features, row of {ROWS:,}, lists", "one row, list", "rows", "list", target=1 / 1.2
        )
        yield measured.line(
            f"{width} features, row of {ROWS:,}, numpy array", "one row, list", "array", "list", target=1 / 3
        )
        if width == WIDTHS[0]:
            may = "what it may take"
            yield Line(f"prediction of {width} features, in all", may, 1.0, measured.seconds.get("whole"), 8e-6)
            yield Line(f"the same, a row of a batch of {ROWS:,}", may, 1.0, measured.seconds.get("batch"), 0.4e-6)
            yield measured.line("what the drift makes of a prediction", "without it", "whole", "plain", target=4.0)
    scores = race({"scores": look(WIDTHS[-1])}, rounds=rounds).seconds.get("scores")
    yield Line(f"all scores of {WIDTHS[-1]} features", "what it may take", 1.0, scores, 2e-3)
    took = float(bytes_of_a_model(WIDTHS[-1]))
    yield Line(f"memory of a model of {WIDTHS[-1]} features", "what it may take", 1.0, took, 1e6, unit="bytes")
