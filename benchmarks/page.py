"""What a page of 1,000 histogram series costs: 18,000 lines, when all, 5 % or none of them have changed.

The peers keep no text from one page to the next, so one time stands for all three.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Line, Work, race
from benchmarks.record import BOUNDS

SERIES = 1_000
WORKERS = 4
LINES = SERIES * (len(BOUNDS) + 3)
NAME = "prediction_duration_seconds"


def attributes(number: int) -> dict[str, str]:
    """The attributes of one of the series."""
    return {"model_version": f"v1.{number}.0", "prediction_type": "single"}


def _checked(read: Callable[[], bytes]) -> Callable[[], bytes]:
    page = read().decode()
    lines = sum(line.startswith(NAME) for line in page.splitlines())
    if lines != LINES:
        msg = f"the page has {lines} lines instead of {LINES}"
        raise ValueError(msg)
    return read


def _change(records: Sequence[Callable[[float], object]]) -> None:
    for number, record in enumerate(records):
        record(number % 97 / 10)


class Ours:
    """Our page over series that are changed between two readings, in each of so many workers."""

    def __init__(self, workers: int = 1) -> None:
        from otel_mlops.sdk.group import Group
        from otel_mlops.sdk.ledger import Ledger
        from otel_mlops.sdk.page import PageReader
        from otel_mlops.sdk.provider import MeterProvider

        self.reader = PageReader()
        folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self._workers: list[list[Callable[[float], object]]] = []
        for worker in range(workers):
            group = Group("bench", folder)
            readers = [] if worker else [self.reader]
            provider = MeterProvider(readers, ledger=Ledger(group), group=group)
            atexit.register(provider.leave)  # before the folder goes
            bounds = {"explicit_bucket_boundaries_advisory": BOUNDS}
            histogram = provider.get_meter("bench").create_histogram("prediction.duration", unit="s", **bounds)
            self._workers.append([histogram.bind(attributes(number)).record for number in range(SERIES)])
        self._change(SERIES)
        _checked(self.read)

    def _change(self, changed: int) -> None:
        for records in self._workers:
            _change(records[:changed])

    def read(self) -> bytes:
        """The page, as it is served."""
        body: bytes = self.reader.page(accept=None).body
        return body

    def after(self, changed: int) -> Callable[[], Work]:
        """Reading the page after some of its series have changed."""
        return lambda: Work("read()", {"read": self.read}, before=lambda: self._change(changed))


def stock() -> Work:
    """The stock exporter's page, as prometheus_client's server would render it."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    meter = MeterProvider(metric_readers=[PrometheusMetricReader(registry=registry)]).get_meter("bench")
    histogram = meter.create_histogram("prediction.duration", unit="s", explicit_bucket_boundaries_advisory=BOUNDS)

    def record(number: int) -> Callable[[float], object]:
        labels = attributes(number)
        return lambda value: histogram.record(value, labels)

    return _rendered(generate_latest, registry, [record(number) for number in range(SERIES)])


def client() -> Work:
    """prometheus_client's page, without the `_created` lines, which nobody else writes."""
    from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, generate_latest

    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    histogram = Histogram(NAME, "Duration.", list(attributes(0)), registry=registry, buckets=BOUNDS)
    records = [histogram.labels(**attributes(number)).observe for number in range(SERIES)]
    return _rendered(generate_latest, registry, records)


def _rendered(render: Callable[[Any], bytes], registry: Any, records: Sequence[Callable[[float], object]]) -> Work:
    _change(records)
    _checked(lambda: render(registry))
    return Work("render(registry)", {"render": render, "registry": registry}, before=lambda: _change(records))


def lines(*, quick: bool) -> Iterator[Line]:
    """The lines of this topic."""
    reason = ""
    readings: dict[str, Callable[[], Work]] = {}
    try:
        ours = Ours()
        readings = {"all": ours.after(SERIES), "5 %": ours.after(SERIES // 20), "none": ours.after(0)}
        readings["workers"] = Ours(WORKERS).after(SERIES)
    except Exception as error:  # whatever keeps our page from being read, the table says so and goes on
        reason = f"otel_mlops: {type(error).__name__}: {error}"
    measured = race({**readings, "stock": stock, "client": client}, rounds=3 if quick else 15)
    for changed, of_stock, of_client in (("all", 1 / 25, 1.0), ("5 %", 1 / 100, 1.0), ("none", 1 / 100, 1.0)):
        what = f"page of {LINES:,} lines, {changed} changed"
        yield measured.line(what, "OpenTelemetry exporter", changed, "stock", target=of_stock, reason=reason)
        yield measured.line(what, "prometheus_client", changed, "client", target=of_client, reason=reason)
    what = f"page of {LINES:,} lines, {WORKERS} workers"
    yield measured.line(what, "one worker's page", "workers", "all", target=2.0, reason=reason)
