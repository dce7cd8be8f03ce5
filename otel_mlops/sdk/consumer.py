"""What a metric reader collects: the callbacks of observable instruments, and what stands in the cells."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions
from opentelemetry.sdk.metrics._internal.measurement_consumer import SynchronousMeasurementConsumer
from opentelemetry.sdk.metrics._internal.metric_reader_storage import MetricReaderStorage
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricReader, MetricsData

from otel_mlops.sdk.group_points import GroupPoints
from otel_mlops.sdk.observed import SCOPE, OursSaid
from otel_mlops.sdk.points import Points, Told, metrics_data

if TYPE_CHECKING:
    from otel_mlops.sdk.stream import Stream

_logger = logging.getLogger(__name__)

_ANY_TIME = CallbackOptions()
"""What our own callbacks are told: they look at what is there, and take no time."""


class Consumer(SynchronousMeasurementConsumer):
    """Runs the callbacks of observable instruments, and adds what stands in the cells.

    `of_group` makes what a reader sees of the whole group, of the reader and what the one before it was told.
    """

    def __init__(
        self,
        sdk_config: Any,
        streams: Callable[[], list[Stream]],
        of_group: Callable[[MetricReader, Mapping[str, Told]], GroupPoints],
    ) -> None:
        super().__init__(sdk_config, ())
        # A callback may create an observable instrument: a plain lock would wait for itself for ever.
        self._lock = threading.RLock()  # type: ignore[assignment]
        self._streams = streams
        self._of_group = of_group
        self._late = False
        self._points: WeakKeyDictionary[MetricReader, Points] = WeakKeyDictionary()
        self._told: dict[str, Told] = {}
        """What a reader of the group was told last that has been removed."""

    def add_metric_reader(self, metric_reader: MetricReader, *, of_group: bool = False) -> None:
        """Begin to keep what this reader saw last."""
        points = self._of_group(metric_reader, self._told) if of_group else Points(metric_reader)
        with self._lock:
            self._points[metric_reader] = points
            self._reader_storages = {**self._reader_storages, metric_reader: self._storage(metric_reader)}

    def remove_metric_reader(self, metric_reader: MetricReader) -> None:
        """Know nothing of a reader any more, but for what the next of the group has to go on with."""
        super().remove_metric_reader(metric_reader)
        points = self._points.pop(metric_reader, None)
        if isinstance(points, GroupPoints):
            self._told = points.told

    def exported(self, metric_reader: MetricReader) -> None:
        """Have what a reader of the group has told remembered by the group."""
        points = self._points.get(metric_reader)
        if isinstance(points, GroupPoints):
            points.exported()

    def observe(
        self,
        metric_reader: MetricReader,
        timeout_millis: float = 10_000,
        *,
        anew: bool = False,
        ours: list[OursSaid] | None = None,
    ) -> MetricsData | None:
        """Run all callbacks and return what they say.

        With `anew` nothing is kept of what they said before: the stock SDK keeps every set of attributes that was
        ever said, until there is no room for those that are said now. What our own callbacks say goes to `ours`, if
        that is given and no view is to be honoured: the SDK's way takes twenty times as long.

        A callback that overruns the time is not interrupted; the ones after it are left out this once. The
        stock SDK fails the whole collection instead.
        """
        deadline = time.monotonic() + timeout_millis / 1e3
        with self._lock:
            storage = self._reader_storages.get(metric_reader)
            if storage is None:
                return None
            if anew:
                for matches in storage._instrument_view_instrument_matches.values():
                    for match in matches:
                        match._attributes_aggregation.clear()
            for instrument in self._async_instruments:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    if not self._late:
                        _logger.warning(
                            "callbacks took longer than %g s; those from %s on are left out; "
                            "said once until they are in time",
                            timeout_millis / 1e3,
                            instrument.name,
                        )
                    self._late = True
                    break
                if ours is not None and instrument.instrumentation_scope.name == SCOPE and not self._sdk_config.views:
                    callbacks: Iterable[Any] = instrument._callbacks
                    ours.append((instrument, [each for callback in callbacks for each in callback(_ANY_TIME)]))
                    continue
                for measurement in instrument.callback(CallbackOptions(timeout_millis=left_s * 1e3)):
                    storage.consume_measurement(measurement, False)
            else:
                self._late = False
            return storage.collect()

    def collect(self, metric_reader: MetricReader, timeout_millis: float = 10_000) -> MetricsData | None:
        """Return everything, cells and observables, as one reader wants it."""
        points = self._points.get(metric_reader)
        if points is None:
            return None
        if isinstance(points, GroupPoints):
            # Without the lock, which is taken the other way round where a page has the callbacks speak.
            return points.collect(metric_reader, timeout_millis)
        with self._lock:
            observed = self.observe(metric_reader, timeout_millis)
            found = points.read(Points.of(self._streams()))
        return metrics_data(found, self._sdk_config.resource, observed)

    def after_fork(self) -> None:
        """Begin anew in a forked child: fresh locks, and readers that have seen nothing."""
        self._lock = threading.RLock()  # type: ignore[assignment]
        self._told.clear()
        for reader, points in self._points.items():
            if isinstance(points, GroupPoints):
                points.after_fork()
            else:
                self._points[reader] = Points(reader)
        self._reader_storages = {reader: self._storage(reader) for reader in self._reader_storages}

    def _storage(self, reader: Any) -> MetricReaderStorage:
        """Where the stock SDK keeps what callbacks say to a reader; of the group always totals, as it is in cells."""
        temporality = reader._instrument_class_temporality
        if isinstance(self._points.get(reader), GroupPoints):
            temporality = dict.fromkeys(temporality, AggregationTemporality.CUMULATIVE)
        return MetricReaderStorage(
            self._sdk_config,
            temporality,
            reader._instrument_class_aggregation,
            reader._instrument_class_cardinality_limit,
        )
