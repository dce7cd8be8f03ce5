"""Cells as OpenTelemetry's data points, for the metric readers of the stock SDK; the page has its own way."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics._internal.instrument import (
    _Counter,
    _Gauge,
    _Histogram,
    _ObservableCounter,
    _ObservableGauge,
    _ObservableUpDownCounter,
    _UpDownCounter,
)
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.view import DefaultAggregation, ExplicitBucketHistogramAggregation

from otel_mlops.numbers.sketch import exponential_histogram

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from otel_mlops.sdk.exemplars import Exemplar as Kept
    from otel_mlops.sdk.stream import Stream

_logger = logging.getLogger(__name__)

_CLASSES = {
    ("counter", False): _Counter,
    ("updown", False): _UpDownCounter,
    ("histogram", False): _Histogram,
    ("cells", False): _Histogram,
    ("gauge", False): _Gauge,
    ("counter", True): _ObservableCounter,
    ("updown", True): _ObservableUpDownCounter,
    ("gauge", True): _ObservableGauge,
}
"""By these classes of the stock SDK a reader says which temporality it wants; True is for what callbacks say."""


class Reading(NamedTuple):
    """A series as it is now; `key` is what it is known by the next time."""

    key: Any
    attributes: Mapping[str, Any]
    start_ns: int
    values: list[float]
    exemplars: Sequence[Kept | None] | None


class Told(NamedTuple):
    """What a reader of differences was told of a series last, and when."""

    start_ns: int
    values: list[float]
    at_ns: int


_NOTHING = Told(0, [], 0)

Said: TypeAlias = tuple[Any, "InstrumentationScope", list[Reading]]
"""A stream, its scope and its series."""
Found: TypeAlias = list[tuple["InstrumentationScope", Metric]]


class Points:
    """What one reader sees, and what it saw last where it asked for differences."""

    def __init__(self, reader: MetricReader) -> None:
        self._temporality = {about: reader._instrument_class_temporality[of] for about, of in _CLASSES.items()}
        self._last: MutableMapping[Any, Told] = WeakKeyDictionary()
        self._last_ns = time.time_ns()
        for (kind, observed), of in _CLASSES.items():
            asked: Any = reader._instrument_class_aggregation[of]
            plain = isinstance(asked, ExplicitBucketHistogramAggregation) and asked._boundaries is None
            fits = kind == "cells" or isinstance(asked, DefaultAggregation) or (kind == "histogram" and plain)
            if not observed and not fits:
                _logger.warning(
                    "%s asks for the %s of a %s, which is the same for all readers here: a view can change it",
                    type(reader).__name__,
                    type(asked).__name__,
                    kind,
                )

    @staticmethod
    def of(streams: Iterable[Stream]) -> Iterable[Said]:
        """What the streams of this process say."""
        for stream in streams:
            readings = []
            for series in stream.living():
                values = series.read()  # before it is asked when it was born: not at all if forgotten just now
                readings.append(Reading(series, series.attributes, series.born_ns, values, series.read_exemplars()))
            yield stream, stream.scope, readings

    def read(self, said: Iterable[Said]) -> Found:
        """Return the data points of each stream that has something to tell, with its scope."""
        now_ns = time.time_ns()
        found = []
        for stream, scope, readings in said:
            temporality = self._temporality[stream.kind, stream.observed]
            delta = temporality is AggregationTemporality.DELTA
            points = [
                point for each in readings if (point := self._point(each, stream, now_ns, delta=delta)) is not None
            ]
            if points:
                metric = Metric(stream.name, stream.description, stream.unit, _data(stream, points, temporality))
                found.append((scope, metric))
        self._last_ns = now_ns
        return found

    def _point(self, reading: Reading, stream: Any, now_ns: int, *, delta: bool) -> Any:
        start_ns, values, is_sum = reading.start_ns, reading.values, stream.kind != "gauge"
        if not start_ns:
            return None  # forgotten just now
        if delta:
            told = self._last.get(reading.key, _NOTHING)
            last, began_ns = told.values, told.at_ns
            if not self._goes_on(stream, reading, told):
                last, began_ns = [0.0] * len(values) if is_sum else [], max(start_ns, told.at_ns)
            if values == last:
                return None
            self._last[reading.key] = Told(start_ns, values, now_ns)
            if is_sum:
                values = [now - then for now, then in zip(values, last, strict=True)]
                start_ns = began_ns
        if stream.kind == "histogram":
            return self._histogram_point(reading, stream.bounds, values, start_ns, now_ns)
        if stream.kind == "cells":
            return _sketch_point(reading, values, start_ns, now_ns)
        return NumberDataPoint(
            attributes=dict(reading.attributes),
            start_time_unix_nano=start_ns if is_sum else None,  # type: ignore[arg-type]
            time_unix_nano=now_ns,
            value=values[0],
        )

    def _goes_on(self, stream: Any, reading: Reading, told: Told) -> bool:
        """Whether a series is still the one of which something was told; else it begins at nothing."""
        return reading.start_ns == told.start_ns

    def _histogram_point(
        self, reading: Reading, bounds: Sequence[float], values: list[float], start_ns: int, now_ns: int
    ) -> HistogramDataPoint:
        counts = [round(count) for count in values[:-1]]
        return HistogramDataPoint(
            attributes=dict(reading.attributes),
            start_time_unix_nano=start_ns,
            time_unix_nano=now_ns,
            count=sum(counts),
            sum=values[-1],
            bucket_counts=tuple(counts),
            explicit_bounds=bounds,
            min=None,  # type: ignore[arg-type]  # of an interval it cannot be known from cumulative cells
            max=None,  # type: ignore[arg-type]
            exemplars=[
                Exemplar(None, each.value, int(each.time_s * 1e9), each.span_id or None, each.trace_id or None)
                for each in reading.exemplars or ()
                if each is not None and each.time_s * 1e9 > self._last_ns
            ],
        )


def _sketch_point(reading: Reading, values: list[float], start_ns: int, now_ns: int) -> ExponentialHistogramDataPoint:
    sketch = exponential_histogram(values[:-1])
    return ExponentialHistogramDataPoint(
        attributes=dict(reading.attributes),
        start_time_unix_nano=start_ns,
        time_unix_nano=now_ns,
        count=sketch.zero_count + sum(sketch.bucket_counts),
        sum=values[-1],
        scale=sketch.scale,
        zero_count=sketch.zero_count,
        positive=Buckets(sketch.offset, sketch.bucket_counts),
        negative=Buckets(0, []),
        flags=0,
        min=None,  # type: ignore[arg-type]
        max=None,  # type: ignore[arg-type]
    )


def _data(
    stream: Any, points: list[Any], temporality: AggregationTemporality
) -> Sum | Gauge | Histogram | ExponentialHistogram:
    if stream.kind == "cells":
        return ExponentialHistogram(data_points=points, aggregation_temporality=temporality)
    if stream.kind == "histogram":
        return Histogram(data_points=points, aggregation_temporality=temporality)
    if stream.kind == "gauge":
        return Gauge(data_points=points)
    return Sum(data_points=points, aggregation_temporality=temporality, is_monotonic=stream.kind == "counter")


def metrics_data(found: Found, resource: Resource, observed: MetricsData | None = None) -> MetricsData | None:
    """Put data points together by scope, with what callbacks have said; None if nobody has anything to tell."""
    scopes: dict[InstrumentationScope, ScopeMetrics] = {}
    for resource_metrics in observed.resource_metrics if observed else ():
        scopes.update({each.scope: each for each in resource_metrics.scope_metrics})
    for scope, metric in found:
        of_scope = scopes.setdefault(scope, ScopeMetrics(scope, [], scope.schema_url or ""))
        of_scope.metrics.append(metric)  # type: ignore[attr-defined]
    if not scopes:
        return None
    return MetricsData([ResourceMetrics(resource, list(scopes.values()), resource.schema_url)])
