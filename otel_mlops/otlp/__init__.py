"""OTLP push: the stock SDK's exporters, bounded in every way, with one log line per change of state.

A dead Collector costs the service nothing: exports run in daemon threads, end in time, and are not retried
once the service ends.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from otel_mlops.otlp.wire import HOLD, PerProcess, Push, Signal, open_session
from otel_mlops.sdk.bounded import call_within

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader, MetricsData
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

    from otel_mlops.sdk.provider import MeterProvider
    from otel_mlops.settings import Settings

EXIT_S = 2.0
"""The longest that a Collector may delay the end of the service."""

_TIMEOUT_S = 10.0
_LONGEST_TIMEOUT_S = 60.0
_GRPC = "opentelemetry-exporter-otlp-proto-grpc"
_CLASSES = {
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
    "traces": ("trace_exporter", "OTLPSpanExporter"),
}

_logger = logging.getLogger(__name__)


def check(signal: Signal) -> None:
    """Find out at start-up what opening the way of a signal would only find out later.

    Errors:  ImportError if the extra is absent; ValueError for a variable of OTLP that is not acceptable.
    """
    _exporter_class(signal)
    _timeout_s(signal)


def open_metric_reader(settings: Settings, *, on_failure: Callable[[str], None]) -> MetricReader:
    """Open the reader that pushes metrics, once a provider has it.

    `on_failure("metrics")` is called for each export that failed.

    Errors:  ImportError if the extra is absent; ValueError for a variable of OTLP that is not acceptable.
    """
    exporter, push = _open_exporter(settings, "metrics", on_failure, MetricExportResult.FAILURE)
    return OTLPMetricReader(exporter, push, settings.metric_export_interval_s)


def open_tracer_provider(
    settings: Settings,
    resource: Resource,
    *,
    on_failure: Callable[[str], None],
    on_dropped: Callable[[], None] | None = None,
) -> TracerProvider:
    """Open the stock TracerProvider with a processor that pushes spans in batches.

    `on_failure("traces")` is called for each export that failed, `on_dropped()` for each span that was lost
    because too many were waiting. Its `shutdown()` takes EXIT_S at most.

    Errors:  ImportError if the extra is absent; ValueError for a variable of OTLP that is not acceptable.
    """
    exporter, push = _open_exporter(settings, "traces", on_failure, SpanExportResult.FAILURE)
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(OTLPSpanProcessor(exporter, push, on_dropped))
    return provider


class _Flush:
    """A flush that is waited for no longer than asked, and runs once at a time, so that no threads pile up."""

    def __init__(self, flush: Callable[[], object]) -> None:
        self._flush = flush
        self._running = PerProcess(threading.Lock)

    def within(self, timeout_s: float) -> bool:
        """Flush; False if that took longer, or raised, or an earlier flush took the time."""
        deadline = time.monotonic() + timeout_s
        if not self._running().acquire(timeout=timeout_s):
            return False
        return call_within(deadline - time.monotonic(), self._run)

    def _run(self) -> object:
        try:
            return self._flush()
        finally:
            self._running().release()


class OTLPMetricReader(PeriodicExportingMetricReader):
    """The stock reader with a bounded flush, a last export without retries, and no thread in a forked child."""

    def __init__(self, exporter: Any, push: Push, interval_s: float) -> None:
        self._push = push
        self._flush = _Flush(super().force_flush)
        self._pid = os.getpid()
        self._provider: MeterProvider | None = None
        super().__init__(exporter, export_interval_millis=interval_s * 1e3)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Collect and export now; False if that failed or took longer."""
        return self._flush.within(timeout_millis / 1e3) and not self._push.failing

    def shutdown(self, timeout_millis: float = EXIT_S * 1e3, **kwargs: Any) -> None:
        """Export for the last time, and end; in a forked child there is nothing to end."""
        if self._pid != os.getpid():
            return
        super().shutdown(self._push.end(timeout_millis / 1e3) * 1e3, **kwargs)
        if self._daemon_thread is not None and self._daemon_thread.is_alive():
            self._push.failed("no answer before the end")

    def _set_meter_provider(self, meter_provider: Any) -> None:
        super()._set_meter_provider(meter_provider)
        self._provider = meter_provider

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        super()._receive_metrics(metrics_data, timeout_millis, **kwargs)
        if self._provider is not None:
            self._provider.exported(self)

    def _ticker(self) -> None:
        while True:
            try:
                super()._ticker()
                return
            except Exception as error:  # it would end the stock thread, and the push with it
                self._push.failed(f"collecting raised {error!r:.200}")
                if self._shutdown_event.is_set():
                    return

    def _at_fork_reinit(self) -> None:
        # The stock reader starts its thread again, but a machine's workers push once: whoever leads opens
        # a reader of its own. The lock may have been held by a thread that the child does not have.
        self._daemon_thread = None
        self._export_lock = threading.Lock()


class OTLPSpanProcessor(BatchSpanProcessor):
    """The stock processor with a bounded flush and end, which tells of the spans it drops."""

    def __init__(self, exporter: Any, push: Push, on_dropped: Callable[[], None] | None) -> None:
        super().__init__(exporter)
        self._push = push
        self._flush = _Flush(super().force_flush)
        self._on_dropped = on_dropped
        self._waiting = self._batch_processor._queue  # noqa: SLF001 - a contract test names it
        self._most = self._waiting.maxlen or 0
        logging.getLogger(type(self._batch_processor).__module__).addFilter(HOLD)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a sampled span; where the queue is full the oldest makes room."""
        if len(self._waiting) < self._most or not (span.context and span.context.trace_flags.sampled):
            super().on_end(span)
            return
        with HOLD.lines():  # "Queue full, dropping Span."
            super().on_end(span)
        self._push.dropped(self._most)
        if self._on_dropped is not None:
            self._on_dropped()

    def force_flush(self, timeout_millis: float | None = None) -> bool:
        """Export all that waits now; False if that failed or took longer."""
        timeout_s = _TIMEOUT_S if timeout_millis is None else timeout_millis / 1e3
        return self._flush.within(timeout_s) and not self._push.failing

    def shutdown(self) -> None:
        """Export what waits, without retries, and end within EXIT_S."""
        self._batch_processor.shutdown(timeout_millis=int(self._push.end(EXIT_S) * 1e3))
        if self._batch_processor._worker_thread.is_alive():  # noqa: SLF001 - a contract test names it
            self._push.failed("no answer before the end")
        if self._waiting:
            _logger.warning("%d spans that still waited were lost at the end", len(self._waiting))


def _open_exporter(
    settings: Settings, signal: Signal, on_failure: Callable[[str], None], failure: Any
) -> tuple[Any, Push]:
    exporter_class, grpc = _exporter_class(signal)
    endpoint = _endpoint(settings, signal, grpc=grpc)
    push = Push(signal, endpoint, on_failure)
    options = {} if grpc else {"session": open_session(push)}
    exporter = exporter_class(endpoint=endpoint, timeout=_timeout_s(signal), **options)
    for each in exporter_class.__mro__:
        if each.__module__.startswith("opentelemetry.exporter.otlp."):
            logging.getLogger(each.__module__).addFilter(HOLD)
    exporter.export = push.watch(exporter.export, failure)
    return exporter, push


def _exporter_class(signal: Signal) -> tuple[Any, bool]:
    """Return the stock exporter of a signal, and whether it speaks gRPC."""
    variable, protocol = _variable(signal, "PROTOCOL")
    if protocol.lower() not in ("", "http/protobuf", "grpc"):
        raise ValueError(f"{variable} is {protocol!r}, expected http/protobuf or grpc")
    grpc = protocol.lower() == "grpc"
    module, name = _CLASSES[signal]
    try:
        found = import_module(f"opentelemetry.exporter.otlp.proto.{'grpc' if grpc else 'http'}.{module}")
    except ImportError as error:
        if grpc:
            raise ImportError(f"{variable} is grpc, which needs {_GRPC}: pip install {_GRPC}") from error
        raise ImportError(f"{signal} over OTLP need an extra: pip install 'otel-mlops[otlp]'") from error
    return getattr(found, name), grpc


def _endpoint(settings: Settings, signal: Signal, *, grpc: bool) -> str:
    """Return the full URL: a signal's own variable has it, the general one wants the signal's path."""
    given = settings.metrics_endpoint if signal == "metrics" else settings.traces_endpoint
    if grpc:
        # Credentials in its URL are of no use to gRPC, and the stock exporter would repeat them in the log.
        parts = urlsplit(given or "http://localhost:4317")
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    path = f"/v1/{signal}"
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "").strip()
    if given and (given == own or urlsplit(given).path.endswith(path)):
        return given
    return (given or "http://localhost:4318").rstrip("/") + path


def _timeout_s(signal: Signal) -> float:
    variable, text = _variable(signal, "TIMEOUT")
    try:
        timeout_s = float(text) if text else _TIMEOUT_S
    except ValueError:
        timeout_s = math.nan
    if not timeout_s > 0:
        raise ValueError(f"{variable} is {text!r}, expected seconds, more than 0")
    if timeout_s > _LONGEST_TIMEOUT_S:
        # The specification says milliseconds, OpenTelemetry's SDK for Python has always read seconds.
        _logger.warning("%s is %s s; an export is given %.0f s", variable, text, _LONGEST_TIMEOUT_S)
    return min(timeout_s, _LONGEST_TIMEOUT_S)


def _variable(signal: Signal, name: str) -> tuple[str, str]:
    """Return the signal's own variable, else the general one, with its text; empty where neither is set."""
    own, general = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"
    text = os.environ.get(own, "").strip()
    return (own, text) if text else (general, os.environ.get(general, "").strip())
