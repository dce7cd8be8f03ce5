"""Cells as OpenTelemetry's data points, for the metric readers of the stock SDK; the page has its own way."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics._internal.instrument import _Counter, _Gauge, _Histogram, _UpDownCounter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.metrics.view import DefaultAggregation, ExplicitBucketHistogramAggregation

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader

    from otel_mlops.sdk.series import HistogramSeries, Series
    from otel_mlops.sdk.stream import Stream

_logger = logging.getLogger(__name__)

_CLASSES = {"counter": _Counter, "updown": _UpDownCounter, "histogram": _Histogram, "gauge": _Gauge}
"""By these classes of the stock SDK a reader says which temporality it wants."""


class Points:
    """What one reader sees, and what it saw last where it asked for differences."""

    def __init__(self, reader: MetricReader) -> None:
        self._temporality = {kind: reader._instrument_class_temporality[of] for kind, of in _CLASSES.items()}
        self._last: WeakKeyDictionary[Series, tuple[int, list[float], int]] = WeakKeyDictionary()
        self._last_ns = time.time_ns()
        for kind, of in _CLASSES.items():
            asked: Any = reader._instrument_class_aggregation[of]
            plain = isinstance(asked, ExplicitBucketHistogramAggregation) and asked._boundaries is None
            if not isinstance(asked, DefaultAggregation) and not (kind == "histogram" and plain):
                _logger.warning(
                    "%s asks for the %s of a %s, which is the same for all readers here: a view can change it",
                    type(reader).__name__,
                    type(asked).__name__,
                    kind,
                )

    def read(self, streams: Iterable[Stream]) -> list[tuple[Stream, Metric]]:
        """Return each stream that has something to tell, with its data points."""
        now_ns = time.time_ns()
        found = []
        for stream in streams:
            delta = self._temporality[stream.kind] is AggregationTemporality.DELTA
            points = [
                point
                for series in stream.living()
                if (point := self._point(series, stream, now_ns, delta=delta)) is not None
            ]
            if points:
                data = _data(stream, points, self._temporality[stream.kind])
                found.append((stream, Metric(stream.name, stream.description, stream.unit, data)))
        self._last_ns = now_ns
        return found

    def _point(self, series: Series, stream: Stream, now_ns: int, *, delta: bool) -> Any:
        values, start_ns = series.read(), series.born_ns
        if not start_ns:
            return None  # forgotten just now
        if delta:
            born_ns, last, last_ns = self._last.get(series, (0, [], 0))
            if born_ns != start_ns:
                last, last_ns = [0.0] * len(values), start_ns  # seen for the first time since it was forgotten
            if values == last:
                return None
            self._last[series] = start_ns, values, now_ns
            if stream.kind != "gauge":
                values = [now - then for now, then in zip(values, last, strict=True)]
                start_ns = last_ns
        if stream.kind == "histogram":
            return self._histogram_point(series, values, start_ns, now_ns)  # type: ignore[arg-type]
        return NumberDataPoint(
            attributes=dict(series.attributes),
            start_time_unix_nano=start_ns if stream.kind != "gauge" else None,  # type: ignore[arg-type]
            time_unix_nano=now_ns,
            value=values[0],
        )

    def _histogram_point(
        self, series: HistogramSeries, values: list[float], start_ns: int, now_ns: int
    ) -> HistogramDataPoint:
        counts = [round(count) for count in values[:-1]]
        exemplars = series.exemplars.read() if series.exemplars is not None else []
        return HistogramDataPoint(
            attributes=dict(series.attributes),
            start_time_unix_nano=start_ns,
            time_unix_nano=now_ns,
            count=sum(counts),
            sum=values[-1],
            bucket_counts=tuple(counts),
            explicit_bounds=series.bounds,
            min=None,  # type: ignore[arg-type]  # of an interval it cannot be known from cumulative cells
            max=None,  # type: ignore[arg-type]
            exemplars=[
                Exemplar(None, each.value, int(each.time_s * 1e9), each.span_id or None, each.trace_id or None)
                for each in exemplars
                if each is not None and each.time_s * 1e9 > self._last_ns
            ],
        )


def _data(stream: Stream, points: list[Any], temporality: AggregationTemporality) -> Sum | Gauge | Histogram:
    if stream.kind == "histogram":
        return Histogram(data_points=points, aggregation_temporality=temporality)
    if stream.kind == "gauge":
        return Gauge(data_points=points)
    return Sum(data_points=points, aggregation_temporality=temporality, is_monotonic=stream.kind == "counter")
