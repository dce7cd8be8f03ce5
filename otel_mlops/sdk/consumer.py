"""What a metric reader collects: the callbacks of observable instruments, and what stands in the cells."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions
from opentelemetry.sdk.metrics._internal.measurement_consumer import SynchronousMeasurementConsumer
from opentelemetry.sdk.metrics._internal.metric_reader_storage import MetricReaderStorage
from opentelemetry.sdk.metrics.export import MetricReader, MetricsData, ResourceMetrics, ScopeMetrics

from otel_mlops.sdk.points import Points

if TYPE_CHECKING:
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from otel_mlops.sdk.stream import Stream

_logger = logging.getLogger(__name__)


class Consumer(SynchronousMeasurementConsumer):
    """Runs the callbacks of observable instruments, and adds what stands in the cells."""

    def __init__(self, sdk_config: Any, streams: Callable[[], list[Stream]]) -> None:
        super().__init__(sdk_config, ())
        # A callback may create an observable instrument: a plain lock would wait for itself for ever.
        self._lock = threading.RLock()  # type: ignore[assignment]
        self._streams = streams
        self._late = False
        self._points: WeakKeyDictionary[MetricReader, Points] = WeakKeyDictionary()

    def add_metric_reader(self, metric_reader: MetricReader) -> None:
        """Begin to keep what this reader saw last."""
        super().add_metric_reader(metric_reader)
        self._points[metric_reader] = Points(metric_reader)

    def observe(self, metric_reader: MetricReader, timeout_millis: float = 10_000) -> MetricsData | None:
        """Run all callbacks and return what they say.

        A callback that overruns the time is not interrupted; the ones after it are left out this once. The
        stock SDK fails the whole collection instead.
        """
        deadline = time.monotonic() + timeout_millis / 1e3
        with self._lock:
            storage = self._reader_storages.get(metric_reader)
            if storage is None:
                return None
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
                for measurement in instrument.callback(CallbackOptions(timeout_millis=left_s * 1e3)):
                    storage.consume_measurement(measurement, False)
            else:
                self._late = False
            return storage.collect()

    def collect(self, metric_reader: MetricReader, timeout_millis: float = 10_000) -> MetricsData | None:
        """Return everything, cells and observables, as one reader wants it."""
        with self._lock:
            points = self._points.get(metric_reader)
            if points is None:
                return None
            observed = self.observe(metric_reader, timeout_millis)
            scopes: dict[InstrumentationScope, ScopeMetrics] = {}
            for resource_metrics in observed.resource_metrics if observed else ():
                scopes.update({each.scope: each for each in resource_metrics.scope_metrics})
            for stream, metric in points.read(self._streams()):
                scope = scopes.setdefault(stream.scope, ScopeMetrics(stream.scope, [], stream.scope.schema_url or ""))
                scope.metrics.append(metric)  # type: ignore[attr-defined]
        if not scopes:
            return None
        resource = self._sdk_config.resource
        return MetricsData([ResourceMetrics(resource, list(scopes.values()), resource.schema_url)])

    def after_fork(self) -> None:
        """Begin anew in a forked child: fresh locks, and readers that have seen nothing."""
        self._lock = threading.RLock()  # type: ignore[assignment]
        storages: dict[Any, MetricReaderStorage] = {}
        for reader in self._reader_storages:
            asked: Any = reader
            storages[reader] = MetricReaderStorage(
                self._sdk_config,
                asked._instrument_class_temporality,
                asked._instrument_class_aggregation,
                asked._instrument_class_cardinality_limit,
            )
            self._points[reader] = Points(reader)
        self._reader_storages = storages
