"""MeterProvider: the stock SDK's, with the numbers of synchronous instruments in cells.

Private names of the SDK are used in this folder only; `tests/sdk/test_contract.py` names each, so that a new
release of the SDK cannot break it unseen.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

# The stock SDK's fork hook runs a thread pool. Its module must have registered its own hook, which frees the
# pool's lock in a child, before the provider registers that one: else a child would wait for itself for ever.
from concurrent.futures import thread as _thread  # noqa: F401
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    View,
)
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_mlops.metrics import CATALOGUE, DROPPED, OVERFLOW, Metric
from otel_mlops.sdk import instruments
from otel_mlops.sdk.bounded import call_within
from otel_mlops.sdk.cells import KIND, Cells, NoCells
from otel_mlops.sdk.consumer import Consumer
from otel_mlops.sdk.everyone import Everyone
from otel_mlops.sdk.group_points import GroupPoints
from otel_mlops.sdk.intervals import Intervals
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.meter import DisabledMeter, Meter, check_bounds
from otel_mlops.sdk.observed import SCOPE, Observed
from otel_mlops.sdk.stream import Stream
from otel_mlops.sdk.views import check_view

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import ExemplarFilter
    from opentelemetry.sdk.metrics.export import MetricReader

    from otel_mlops.sdk.group import Group

_logger = logging.getLogger(__name__)

_ROWS = {row.name: row for row in CATALOGUE}

DEFAULT_BOUNDS = (0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1e3, 2.5e3, 5e3, 7.5e3, 1e4)
"""What the stock SDK counts by where nobody says better. Source: OpenTelemetry, Metrics SDK, Aggregation."""

_FILTERS = {
    sdk.TraceBasedExemplarFilter: "trace_based",
    sdk.AlwaysOnExemplarFilter: "always_on",
    sdk.AlwaysOffExemplarFilter: "always_off",
}


class MeterProvider(sdk.MeterProvider):
    """OpenTelemetry's MeterProvider whose counts lie in a ledger.

    `ledger` says where the cells are, private memory by default; `max_series` caps each metric. With a `group`
    the page shows what all of its workers have recorded, and what their callbacks said no longer than
    `stale_s` ago. A forked child gets a `service.instance.id` of its own unless `keeps_instance_id` says that
    the service was given one. The rest is the stock SDK's. Errors: ValueError for a view that cannot be honoured.
    """

    def __init__(
        self,
        metric_readers: Sequence[MetricReader] = (),
        resource: Resource | None = None,
        exemplar_filter: ExemplarFilter | None = None,
        shutdown_on_exit: bool = True,
        views: Sequence[View] = (),
        *,
        ledger: Ledger | None = None,
        group: Group | None = None,
        max_series: int = 2000,
        stale_s: float = 15.0,
        disabled: bool | None = None,
        keeps_instance_id: bool = False,
    ) -> None:
        # What is wrong is said before super(), which registers hooks for the fork and the exit.
        for view in views:
            check_view(view)
        for reader in metric_readers:
            if reader in self._all_metric_readers:
                raise ValueError(f"metric_readers: {reader} belongs to a provider already, and can belong to one only")
        if exemplar_filter is not None and type(exemplar_filter) not in _FILTERS:
            names = sorted(_FILTERS.values())
            msg = f"exemplar_filter must be one of the SDK's for {names}, not a {type(exemplar_filter).__name__}"
            raise ValueError(msg)
        self.ledger = ledger or Ledger()
        self.intervals = Intervals(self.ledger)
        self._keeps_instance_id = keeps_instance_id
        self.max_series = max_series
        self._streams: list[Stream] = []
        self._observed = Observed(self._observed_stream)
        self._cells = Cells(self._cell_stream)
        self.everyone = Everyone(
            self._every_stream,
            self.ledger,
            group,
            stale_s=stale_s,
            max_series=max_series,
        )
        super().__init__((), resource, exemplar_filter, shutdown_on_exit, views)
        self._exemplar_filter = _FILTERS[type(self._sdk_config.exemplar_filter)]
        self._disabled = self._disabled if disabled is None else disabled
        self.shared_resource: Resource = self._sdk_config.resource
        """What the numbers of the whole group describe."""
        self._consumer = Consumer(self._sdk_config, self.streams, partial(GroupPoints, provider=self, group=group))
        self._measurement_consumer = self._consumer
        self._rows: dict[str, Any] = {}
        self._meter_lock = threading.RLock()  # type: ignore[assignment]
        self._metric_readers = []
        for reader in metric_readers:
            self.add_metric_reader(reader)

    def get_meter(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the meter of a scope; one that records nothing when disabled, shut down, or without a name."""
        if self._disabled or self._shutdown or not name:
            if not self._disabled:
                _logger.warning("get_meter(%r): %s", name, "the provider is shut down" if self._shutdown else "no name")
            return DisabledMeter(name or "", version=version, schema_url=schema_url)
        scope = InstrumentationScope(name, version, schema_url, attributes)
        with self._meter_lock:
            meter = self._meters.get(scope)
            if meter is None:
                meter = self._meters[scope] = Meter(scope, self)
            return meter

    def instrument(self, row: Metric) -> Any:
        """The instrument of a row of the catalogue, the same each time."""
        found = self._rows.get(row.name)
        if found is None:
            # After the end, quietly: a service that is still recording has done nothing wrong.
            meter = DisabledMeter(SCOPE) if self._shutdown else self.get_meter(SCOPE)
            found = self._rows[row.name] = meter.instrument(row)
        return found

    @property
    def resource(self) -> Resource:
        """What these metrics describe."""
        return self._sdk_config.resource

    def totals(self, row: Metric) -> list[tuple[Mapping[str, Any], float]]:
        """The attributes and the value, or the count, of every series of a row."""
        return [
            (
                series.attributes,
                math.fsum(series.read()[:-1]) if stream.kind == "histogram" else series.read()[0],
            )
            for stream in [each for each in self.streams() if each.row is row][:1]  # views may have made more of it
            for series in stream.living()
        ]

    def streams(self) -> list[Stream]:
        """The streams of all synchronous instruments, in the order they were created."""
        return list(self._streams)

    def cells(self, name: str, size: int, attributes: Mapping[str, str], description: str = "") -> Any:
        """The cells of these attributes, with `count()` and `add()`: hidden numbers that scores are worked out from.

        Those of one name have one size; the description says what whoever leads must know of them.
        """
        return NoCells() if self._disabled else self._cells.find(name, size, attributes, description)

    def _every_stream(self) -> list[Stream]:
        return [*self._streams, *self._observed.streams, *self._cells.streams]

    def refresh(self, reader: MetricReader, timeout_s: float) -> None:
        """Have the callbacks of observable instruments speak, and keep in cells what they say."""
        self._observed.refresh(
            lambda left_s, ours: self._consumer.observe(reader, left_s * 1e3, anew=True, ours=ours), timeout_s
        )

    def settle(self) -> None:
        """Move what lies in private memory into the ledger's file, if there is room for it again."""
        if self.ledger.has_lost_its_lock:
            with self._streams_held() as streams:
                self.ledger.lose(partial(_begin_anew, streams))
        if self.ledger.retry():
            for stream in self._every_stream():
                stream.move()
        self.intervals.settle()

    def leave(self) -> None:
        """Leave the group: the numbers stay with it, or with this process if it was the last one."""
        self.settle()
        with self._streams_held() as streams:
            self.ledger.leave(partial(_begin_anew, streams))

    @contextmanager
    def _streams_held(self) -> Iterator[list[Stream]]:
        """The streams with their locks, which come before the ledger's: where records are locked they take both."""
        with ExitStack() as held:
            streams = self._every_stream()
            for stream in streams:
                held.enter_context(stream.lock)
            yield streams

    def forget(self, attributes: Mapping[str, Any]) -> int:
        """Remove the series that carry all of these attributes, in every metric, and return how many.

        What is in progress stays until it is forgotten again.
        """
        gone = sum(stream.forget(attributes, spare_busy=True) for stream in self._every_stream())
        with self._meter_lock:
            meters = list(self._meters.values())
        for meter in meters:
            for instrument in meter._instrument_id_instrument.values():
                if isinstance(instrument, instruments.Instrument):
                    instrument._forget_forms()
        return gone

    def add_metric_reader(self, metric_reader: MetricReader, *, of_group: bool = False) -> None:
        """Add a reader; unlike the stock SDK's, it is flushed and shut down with the others.

        It sees this process; with `of_group` what all workers of the group have recorded.
        """
        with self._all_metric_readers_lock:
            if metric_reader in self._all_metric_readers:
                _logger.warning("%s is registered already", metric_reader)
                return
            self._all_metric_readers.add(metric_reader)
        self._consumer.add_metric_reader(metric_reader, of_group=of_group)
        metric_reader._set_collect_callback(self._consumer.collect)  # type: ignore[arg-type]
        metric_reader._set_meter_provider(self)
        self._metric_readers = [*self._metric_readers, metric_reader]

    def exported(self, metric_reader: MetricReader) -> None:
        """To be told by a reader of the group after each export: who reads for the group next goes on from there."""
        self._consumer.exported(metric_reader)

    def remove_metric_reader(self, metric_reader: MetricReader) -> None:
        """Shut a reader down, and remove it; the stock SDK removes it first, and loses its last collection."""
        with self._all_metric_readers_lock:
            if metric_reader not in self._all_metric_readers:
                _logger.warning("%s is not registered", metric_reader)
                return
            self._all_metric_readers.remove(metric_reader)
        self._metric_readers = [each for each in self._metric_readers if each is not metric_reader]
        try:
            metric_reader.shutdown()
        finally:
            self._consumer.remove_metric_reader(metric_reader)
            metric_reader._set_collect_callback(None)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Let every reader collect and export; False if one failed or the time ran out. Never raises."""
        return self._bounded("force_flush", timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        """Shut every reader down within the time, and remove the ledger. A second call does nothing."""
        with self._lock:
            if self._shutdown:
                return
            self._shutdown = True
        self._bounded("shutdown", timeout_millis)
        if self._atexit_handler is not None:
            atexit.unregister(self._atexit_handler)
            self._atexit_handler = None
        self.leave()

    def count_dropped(self, reason: str) -> None:
        """Count a measurement that could not be recorded."""
        self.instrument(DROPPED).add(1, {"reason": reason})

    def _bounded(self, verb: str, timeout_millis: float) -> bool:
        """Call every reader at once: one that hangs holds neither us nor the exit."""
        calls = [partial(getattr(reader, verb), timeout_millis=timeout_millis) for reader in self._metric_readers]
        return call_within(timeout_millis / 1e3, *calls)

    def _streams_of(
        self, instrument: Any, kind: str, bounds: tuple[float, ...] | None, row: Metric | None
    ) -> Iterable[Stream]:
        """A stream for each view that selects the instrument; a plain one where none does."""
        views = [view for view in self._sdk_config.views if view._match(instrument)]
        for view in views or [_PLAIN]:
            if isinstance(view._aggregation, DropAggregation):
                continue
            buckets = bounds
            if isinstance(view._aggregation, ExplicitBucketHistogramAggregation):
                if kind == "histogram":
                    given = view._aggregation._boundaries
                    buckets = bounds if given is None else check_bounds(given)
                else:
                    _logger.warning("view of %s: only a histogram has buckets; it stays a %s", instrument.name, kind)
            stream = Stream(
                name=view._name or instrument.name,
                unit=instrument.unit,
                description=view._description or instrument.description,
                kind=kind,
                scope=instrument.instrumentation_scope,
                ledger=self.ledger,
                limit=view._aggregation_cardinality_limit or self.max_series,
                on_dropped=self._on_dropped,
                on_overflow=self._on_overflow,
                row=row,
                bounds=(DEFAULT_BOUNDS if buckets is None else buckets) if kind == "histogram" else (),
                attribute_keys=None if view._attribute_keys is None else frozenset(view._attribute_keys),
                exemplar_filter=self._exemplar_filter,
            )
            self._streams.append(stream)
            yield stream

    def _observed_stream(
        self, scope: InstrumentationScope, name: str, unit: str, description: str, kind: str
    ) -> Stream:
        return Stream(
            name=name,
            unit=unit,
            description=description,
            kind=kind,
            scope=scope,
            ledger=self.ledger,
            limit=self.max_series,
            on_dropped=self._on_dropped,
            on_overflow=self._on_overflow,
            row=_ROWS.get(name) if scope.name == SCOPE else None,
            observed=True,
        )

    def _cell_stream(self, name: str, size: int, description: str) -> Stream:
        return Stream(
            name=name,
            unit="",
            description=description,
            kind=KIND,
            scope=InstrumentationScope(SCOPE),
            ledger=self.ledger,
            limit=self.max_series,
            on_dropped=self._on_dropped,
            on_overflow=self._on_overflow,
            size=size,
        )

    def _on_dropped(self, stream: Stream, reason: str) -> None:
        self.count_dropped(reason)

    def _on_overflow(self, stream: Stream, reason: str) -> None:
        if stream.row is not OVERFLOW:
            self.instrument(OVERFLOW).add(1, {"metric": stream.name})

    def _handle_fork(self) -> None:
        """In a forked child: nothing of the parent's counts, locks and file; then what the stock SDK does."""
        # Ours first: whatever the detectors of the resource do, nothing may be written into the parent's file.
        for stream in self._streams:
            stream.after_fork()
        self._observed.after_fork()
        self._cells.after_fork()
        self.ledger.abandon()
        self.intervals.after_fork()
        self.everyone.after_fork()
        for meter in self._meters.values():
            meter.fresh_locks()  # type: ignore[attr-defined]
        self._consumer.after_fork()
        for reader in self._metric_readers:
            # The page's reader, whose lock another thread may have held; the stock readers have hooks of their own.
            getattr(reader, "after_fork", lambda: None)()
        given = self.resource.attributes.get(SERVICE_INSTANCE_ID) if self._keeps_instance_id else None
        super()._handle_fork()
        if given is not None:
            self._sdk_config.resource = self.resource.merge(Resource({SERVICE_INSTANCE_ID: given}))
        self.shared_resource = self.resource
        self._meter_lock = threading.RLock()  # type: ignore[assignment]


def _begin_anew(streams: Iterable[Stream]) -> None:
    for stream in streams:
        stream.begin_anew()


def exemplar_filter(name: str) -> ExemplarFilter:
    """The stock SDK's exemplar filter of a name, as OTEL_METRICS_EXEMPLAR_FILTER has them."""
    filters: dict[str, Callable[[], ExemplarFilter]] = {each: filter_ for filter_, each in _FILTERS.items()}
    return filters[name]()


_PLAIN = View(instrument_name="*")
