"""What one record costs: bound, through OpenTelemetry's API, and 10,000 values in one call.

Each contender records into the storage it would have in a service: ours and OpenTelemetry's with a reader,
prometheus_client's in a registry of its own. Attributes are written as a literal, as they are in a handler.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.measure import Line, Measured, Work, in_a_process, race

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0)
"""Seconds; with the bucket of the rest, the sum and the count they make 18 lines a series."""

THREE = {"method": "POST", "endpoint": "/predict", "status_code": "200"}
FIVE = {
    "http.request.method": "POST",
    "http.route": "/predict",
    "http.response.status_code": 200,
    "url.scheme": "http",
    "network.protocol.version": "1.1",
}
"""What FastAPI's own telemetry records with, an integer among them."""

BATCH = 10_000

Contender = Callable[[], Work]


def our_meter() -> Any:
    """A meter whose numbers lie in our cells, with the page as its reader."""
    from otel_mlops.sdk.page import PageReader
    from otel_mlops.sdk.provider import MeterProvider

    return MeterProvider(metric_readers=[PageReader()]).get_meter("bench")


def stock_meter() -> Any:
    """A meter of the stock SDK with a reader: without one it would keep nothing."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    return MeterProvider(metric_readers=[InMemoryMetricReader()]).get_meter("bench")


def bound_counter() -> Work:
    """One add of ours on a bound counter."""
    return Work("counter.add(1)", {"counter": our_meter().create_counter("requests").bind(THREE)})


def client_counter() -> Work:
    """One add of prometheus_client on a counter whose labels are bound."""
    from prometheus_client import CollectorRegistry, Counter

    counter = Counter("requests", "Requests.", list(THREE), registry=CollectorRegistry())
    return Work("counter.inc(1)", {"counter": counter.labels(**THREE)})


def counter_with(meter: Callable[[], Any], attributes: Mapping[str, object]) -> Contender:
    """One add through OpenTelemetry's API with attributes."""
    return lambda: Work(f"counter.add(1, {attributes!r})", {"counter": meter().create_counter("requests")})


def bound_histogram() -> Work:
    """One record of ours on a bound histogram."""
    histogram = our_meter().create_histogram("duration", explicit_bucket_boundaries_advisory=BOUNDS)
    return Work("histogram.record(0.03)", {"histogram": histogram.bind(THREE)})


def client_histogram() -> Work:
    """One observation of prometheus_client on a histogram whose labels are bound."""
    return Work("histogram.observe(0.03)", {"histogram": _client_histogram()})


def stock_histogram() -> Work:
    """One record of the stock SDK, which has nothing to bind."""
    histogram = stock_meter().create_histogram("duration", explicit_bucket_boundaries_advisory=BOUNDS)
    return Work(f"histogram.record(0.03, {THREE!r})", {"histogram": histogram})


def values() -> list[float]:
    """Prediction values over all buckets, the same in each run."""
    generator = random.Random(1)
    return [generator.lognormvariate(-3.0, 1.5) for _ in range(BATCH)]


def batch(*, as_array: bool) -> Contender:
    """Many values in one call of ours, as a numpy array or as a list."""

    def prepare() -> Work:
        batch: Any = values()
        if as_array:
            import numpy as np

            batch = np.array(batch)
        histogram = our_meter().create_histogram("values", explicit_bucket_boundaries_advisory=BOUNDS)
        names = {"histogram": histogram.bind({"model_version": "v1"}), "batch": batch}
        return Work("histogram.record_many(batch)", names, pieces=BATCH)

    return prepare


def client_batch() -> Work:
    """The same values with prometheus_client, which takes them one by one."""
    names = {"histogram": _client_histogram(), "batch": values()}
    return Work("for value in batch: histogram.observe(value)", names, pieces=BATCH)


def _client_histogram() -> Any:
    from prometheus_client import CollectorRegistry, Histogram

    histogram = Histogram("duration", "Duration.", list(THREE), registry=CollectorRegistry(), buckets=BOUNDS)
    return histogram.labels(**THREE)


def _batches(rounds: int) -> Measured:
    import numpy as np  # noqa: F401, a list is counted through numpy only where the program has loaded it

    contenders = {"array": batch(as_array=True), "list": batch(as_array=False), "client": client_batch}
    return race(contenders, rounds=rounds)


def _batches_without_numpy(rounds: int) -> Measured:
    try:
        return Measured(**in_a_process("-m", "benchmarks.record", str(rounds)))
    except RuntimeError as error:
        return Measured({}, {"list": str(error)})


def lines(*, quick: bool) -> Iterator[Line]:
    """The lines of this topic."""
    rounds = 5 if quick else 25
    one = race(
        {
            "bound counter": bound_counter,
            "client counter": client_counter,
            "our counter, 3": counter_with(our_meter, THREE),
            "stock counter, 3": counter_with(stock_meter, THREE),
            "our counter, 5": counter_with(our_meter, FIVE),
            "stock counter, 5": counter_with(stock_meter, FIVE),
            "bound histogram": bound_histogram,
            "client histogram": client_histogram,
            "stock histogram": stock_histogram,
        },
        rounds=rounds,
    )
    client, stock = "prometheus_client, bound", "OpenTelemetry SDK"
    yield one.line("bound counter, one add", client, "bound counter", "client counter", target=0.35)
    yield one.line("bound counter, one add", stock, "bound counter", "stock counter, 3", target=1 / 50)
    yield one.line("bound histogram, one record", client, "bound histogram", "client histogram", target=0.4)
    yield one.line("bound histogram, one record", stock, "bound histogram", "stock histogram", target=1 / 25)
    yield one.line("counter.add, 3 attributes", stock, "our counter, 3", "stock counter, 3", target=1 / 12)
    yield one.line("counter.add, 5 attributes, an int", stock, "our counter, 5", "stock counter, 5", target=1 / 8)

    many = _batches(rounds)
    without = _batches_without_numpy(rounds)
    yield many.line(f"{BATCH:,} values, numpy array", client, "array", "client", target=1 / 40)
    yield many.line(f"{BATCH:,} values, list, numpy loaded", client, "list", "client", target=1 / 20)
    yield without.line(f"{BATCH:,} values, list, no numpy", client, "list", "client", target=1 / 6)


if __name__ == "__main__":
    sys.modules["numpy"] = None  # type: ignore[assignment]  # from here on no import finds it
    measured = race({"list": batch(as_array=False), "client": client_batch}, rounds=int(sys.argv[1]))
    print(json.dumps({"seconds": measured.seconds, "reasons": measured.reasons}))
