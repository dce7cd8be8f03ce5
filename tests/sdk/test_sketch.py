"""The latency of predictions over OTLP: an exponential histogram of all workers, in the stock SDK's buckets."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics import Histogram
from opentelemetry.sdk.metrics._internal.exponential_histogram.mapping.logarithm_mapping import LogarithmMapping
from opentelemetry.sdk.metrics.export import AggregationTemporality, ExponentialHistogram, InMemoryMetricReader

from otel_mlops.numbers.sketch import BOUNDS, SCALE
from otel_mlops.sdk.sketch import LATENCY
from tests.sdk.workers import Worker, state_folder

MODEL = {"model_name": "m", "model_version": "1"}
SECONDS = [0.0, 2e-7, 0.001, 0.0011, 0.25, 0.26, 1.0, 999.0, 5_000.0]


@pytest.fixture
def state() -> Iterator[Path]:
    """The folder of the groups."""
    with state_folder() as folder:
        yield folder


def record(worker: Worker, seconds: list[float]) -> None:
    """Record durations of prediction calls."""
    cells = worker.provider.cells(LATENCY.cells, LATENCY.size, MODEL)
    for each in seconds:
        cells.record(bisect_left(BOUNDS, each), each)


def told(reader: InMemoryMetricReader) -> Any:
    """The latency as a reader is told it, None where it is not."""
    data = reader.get_metrics_data()
    scopes = [scope for each in data.resource_metrics for scope in each.scope_metrics] if data else []
    return next((each for scope in scopes for each in scope.metrics if each.name == "prediction.latency"), None)


def test_a_reader_of_the_group_is_told_an_exponential_histogram(state: Path):
    """Each duration of any worker is in the bucket in which the stock SDK has it, the tiniest are zeroes."""
    one, other, reader = Worker(state), Worker(state), InMemoryMetricReader()
    record(one, SECONDS[:4])
    record(other, SECONDS[4:])
    one.provider.add_metric_reader(reader, of_group=True)
    metric = told(reader)
    assert (metric.unit, type(metric.data)) == ("s", ExponentialHistogram)
    (point,) = metric.data.data_points
    assert point.attributes == MODEL
    assert (point.count, point.sum, point.scale, point.zero_count) == (9, pytest.approx(sum(SECONDS)), SCALE, 2)
    found = {point.positive.offset + index: n for index, n in enumerate(point.positive.bucket_counts) if n}
    mapping = LogarithmMapping(SCALE)
    expected: dict[int, int] = {}
    for seconds in SECONDS[2:-1]:
        index = mapping.map_to_index(seconds)
        expected[index] = expected.get(index, 0) + 1
    last = mapping.map_to_index(1_024.5)  # what is longer than the last bound follows it
    assert found == {**expected, last: 1}


def test_it_can_be_exported(state: Path):
    """The OTLP encoder takes it as it is."""
    worker, reader = Worker(state), InMemoryMetricReader()
    record(worker, SECONDS)
    worker.provider.add_metric_reader(reader, of_group=True)
    data = reader.get_metrics_data()
    assert data is not None
    metrics = encode_metrics(data).resource_metrics[0].scope_metrics[0].metrics
    (histogram,) = [each.exponential_histogram for each in metrics if each.name == "prediction.latency"]
    assert histogram.data_points[0].count == len(SECONDS)
    assert not histogram.data_points[0].HasField("max")


def test_differences_are_told_to_who_asks_for_them(state: Path):
    """A reader of differences is told what was recorded since, and nothing where nothing was."""
    worker = Worker(state)
    reader = InMemoryMetricReader(preferred_temporality={Histogram: AggregationTemporality.DELTA})
    worker.provider.add_metric_reader(reader, of_group=True)
    for seconds in ([0.5], [0.25, 2.0]):
        record(worker, seconds)
        (point,) = told(reader).data.data_points
        assert (point.count, point.sum) == (len(seconds), sum(seconds))
    assert told(reader) is None


def test_cells_of_another_size_are_not_told(state: Path):
    """What another version calls latency is not taken for it."""
    worker, reader = Worker(state), InMemoryMetricReader()
    worker.provider.cells(LATENCY.cells, 5, MODEL).count([1])
    worker.provider.add_metric_reader(reader, of_group=True)
    assert told(reader) is None
