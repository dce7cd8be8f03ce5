"""OTLP push: the stock SDK's exporters, bounded in every way, and one log line per change of state.

A dead Collector costs the service nothing: exports run in daemon threads, end in time, and stop being
retried the moment the service ends.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

if TYPE_CHECKING:
    import requests
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

    from otel_mlops.settings import Settings

Signal = Literal["metrics", "traces"]

EXIT_S = 2.0
"""The longest that a Collector may delay the end of the service."""

_TIMEOUT_S = 10.0
_LONGEST_TIMEOUT_S = 60.0
_LARGEST_ANSWER = 65_536
_TRANSIENT = frozenset({429, 502, 503, 504})
"""Answers after which the same request may be sent again. Source: OTLP specification, retryable response codes."""

_GRPC = "opentelemetry-exporter-otlp-proto-grpc"
_CLASSES = {
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
    "traces": ("trace_exporter", "OTLPSpanExporter"),
}

_logger = logging.getLogger(__name__)


def open_metric_reader(settings: Settings, *, on_failure: Callable[[str], None]) -> MetricReader:
    """Open the reader that pushes metrics; it collects once a provider has it.

    `on_failure("metrics")` is called for each export that failed.

    Errors:  ImportError if the extra is absent; ValueError for a variable of OTLP's that is not acceptable.
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
    """Open the stock TracerProvider that pushes spans in batches.

    `on_failure("traces")` is called for each export that failed, `on_dropped()` for each span that was lost
    because too many were waiting. `shutdown()` takes EXIT_S at most.

    Errors:  ImportError if the extra is absent; ValueError for a variable of OTLP's that is not acceptable.
    """
    exporter, push = _open_exporter(settings, "traces", on_failure, SpanExportResult.FAILURE)
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(OTLPSpanProcessor(exporter, push, on_dropped))
    return provider


def call_within(timeout_s: float, *calls: Callable[[], object]) -> bool:
    """Make all calls at once and wait for them no longer than this.

    Returns whether every call ended in time and none raised or returned False; one that did not end goes on
    in a daemon thread.
    """
    deadline = time.monotonic() + timeout_s
    went_well: list[bool] = []

    def make(call: Callable[[], object]) -> None:
        try:
            went_well.append(call() is not False)
        except Exception:
            _logger.exception("%r failed", call)

    threads = []
    for call in calls:
        thread = threading.Thread(target=make, args=(call,), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # Python 3.12 and later start none in an atexit callback
            make(call)
        else:
            threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return len(went_well) == len(calls) and all(went_well)


class OTLPMetricReader(PeriodicExportingMetricReader):
    """The stock reader, whose last export is one attempt, and which stays quiet in a forked child."""

    def __init__(self, exporter: Any, push: _Push, interval_s: float) -> None:
        self._push = push
        super().__init__(exporter, export_interval_millis=interval_s * 1e3)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Collect and export now; False if that failed or took longer."""
        flush = partial(super().force_flush, timeout_millis)
        return call_within(timeout_millis / 1e3, flush) and not self._push.failing

    def shutdown(self, timeout_millis: float = EXIT_S * 1e3, **kwargs: Any) -> None:
        """Export for the last time, without retries, and end."""
        self._push.end(timeout_millis / 1e3)
        super().shutdown(timeout_millis, **kwargs)

    def _ticker(self) -> None:
        while True:
            try:
                return super()._ticker()
            except Exception as error:  # it would end the stock thread, and the push with it
                self._push.failed(f"collecting raised {error!r:.200}")
                if self._shutdown_event.is_set():
                    return None

    def _at_fork_reinit(self) -> None:
        # The stock reader starts its thread again. Who pushes is for the group to say: once per machine.
        self._daemon_thread = None
        self._export_lock = threading.Lock()


class OTLPSpanProcessor(BatchSpanProcessor):
    """The stock processor, bounded in its flush and its end, that tells of the spans it drops."""

    def __init__(self, exporter: Any, push: _Push, on_dropped: Callable[[], None] | None) -> None:
        super().__init__(exporter)
        self._push = push
        self._on_dropped = on_dropped
        self._queue = self._batch_processor._queue  # noqa: SLF001 - held by a contract test
        logging.getLogger(type(self._batch_processor).__module__).addFilter(_HOLD)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a sampled span; where the queue is full the oldest makes room."""
        if len(self._queue) < (self._queue.maxlen or 0) or not (span.context and span.context.trace_flags.sampled):
            super().on_end(span)
            return
        with _HOLD.lines():  # "Queue full, dropping Span."
            super().on_end(span)
        self._push.dropped(len(self._queue))
        if self._on_dropped is not None:
            self._on_dropped()

    def force_flush(self, timeout_millis: float | None = None) -> bool:
        """Export all that waits now; False if that failed or took longer."""
        timeout_s = _TIMEOUT_S if timeout_millis is None else timeout_millis / 1e3
        return call_within(timeout_s, super().force_flush) and not self._push.failing

    def shutdown(self) -> None:
        """Export what waits, without retries, and end within EXIT_S."""
        self._push.end(EXIT_S)
        self._batch_processor.shutdown(timeout_millis=int(EXIT_S * 1e3))
        if self._queue:
            _logger.warning("%d spans were still waiting when the service ended", len(self._queue))


class _Push:
    """One signal's way to its Collector: whether it works, and by when all must have ended."""

    def __init__(self, signal: Signal, endpoint: str, timeout_s: float, on_failure: Callable[[str], None]) -> None:
        self.timeout_s = timeout_s
        self.failing = False
        self.ending = threading.Event()
        self.end_by = math.inf
        self._signal = signal
        self._to = urlsplit(endpoint).netloc.rpartition("@")[2]
        self._on_failure = on_failure
        self._dropped = itertools.count(1)  # counts in one step: the threads of many requests drop spans
        self._dropping = False

    def end(self, within_s: float) -> None:
        """Allow one more attempt for what is left, and no time past this."""
        self.end_by = min(self.end_by, time.monotonic() + within_s)
        self.ending.set()

    def watch(self, export: Callable[..., Any], failure: Any) -> Callable[..., Any]:
        """Return a stock exporter's `export` with its log lines kept back and its failures told once."""

        def watched(batch: Any, *args: Any, **options: Any) -> Any:
            with _HOLD.lines() as said:
                try:
                    result = export(batch, *args, **options)
                except Exception as error:
                    said.append(type(error).__name__)
                    result = failure
            if result is failure:
                self.failed(said[-1] if said else "no reason was given")
            else:
                self._worked()
            return result

        return watched

    def failed(self, reason: str) -> None:
        """Count a failed export, and log the first of an outage."""
        if not self.failing:
            _logger.warning("%s do not reach the Collector at %s: %s; said once", self._signal, self._to, reason)
        self.failing = True
        self._on_failure(self._signal)

    def dropped(self, waiting: int) -> None:
        """Count a span that was lost to a full queue, and log the first."""
        next(self._dropped)
        if not self._dropping:
            self._dropping = True
            _logger.warning("%d spans wait for the Collector at %s; older ones are dropped", waiting, self._to)

    def _worked(self) -> None:
        if self.failing:
            _logger.info("%s reach the Collector at %s again", self._signal, self._to)
        if self._dropping:
            _logger.info("%d spans were dropped", next(self._dropped) - 1)
            self._dropped = itertools.count(1)
        self.failing = self._dropping = False


class _Hold(logging.Filter):
    """Keeps back what stock loggers say while our own export runs in this thread; others' lines pass.

    The stock exporter and processor log each failure, each retry and each dropped span, and offer no switch.
    A level set on their loggers would silence exporters that somebody else has opened.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.local()

    @contextmanager
    def lines(self) -> Generator[list[str], None, None]:
        """Collect this thread's lines instead of logging them."""
        before = getattr(self._thread, "said", None)
        self._thread.said = said = []
        try:
            yield said
        finally:
            self._thread.said = before

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass a record unless its thread collects."""
        said = getattr(self._thread, "said", None)
        if said is None or record.levelno < logging.WARNING:
            return True
        if isinstance(record.args, tuple):
            for each in record.args:
                if isinstance(each, _Undelivered):
                    said.append(str(each))
                    return False
            # The text of other people's exceptions may repeat the URL, and so a token.
            record.args = tuple(type(each).__name__ if isinstance(each, Exception) else each for each in record.args)
        said.append(f"{record.getMessage():.200}")
        return False


_HOLD = _Hold()


class _Undelivered(Exception):  # noqa: N818 - an outcome, told in the log by its text
    """Why a request did not arrive, and after what pause to send it again; None for not at all."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class _Wire:
    """The adapter of an exporter's session: one POST, sent again while there is time, then why it failed.

    The stock client retries too, but cannot be told to stop without giving up what it holds; it takes a
    redirect for success, reads an answer of any length, and never looks for what the Collector rejected.
    """

    def __init__(self, push: _Push) -> None:
        self._push = push
        self._connect()

    def _connect(self) -> None:
        from requests.adapters import HTTPAdapter

        self._adapter = HTTPAdapter()
        self._pid = os.getpid()

    def send(self, request: requests.PreparedRequest, *, timeout: float, **options: Any) -> requests.Response:
        """Send a request until it arrives, must not be repeated, or the time is up.

        Errors:  _Undelivered, at which the stock client gives up.
        """
        if self._pid != os.getpid():
            self._connect()  # the parent's connections are the parent's
        deadline = time.monotonic() + timeout
        options["stream"] = True
        for attempt in itertools.count():
            left_s = min(deadline, self._push.end_by) - time.monotonic()
            try:
                return self._attempt(request, attempt, max(left_s, 1e-3), options)
            except _Undelivered as failure:
                left_s = min(deadline, self._push.end_by) - time.monotonic()
                if failure.pause_s is None or failure.pause_s >= left_s:
                    raise
                if failure.pause_s and self._push.ending.is_set():
                    raise
                self._push.ending.wait(failure.pause_s)
        raise AssertionError("count() does not end")

    def close(self) -> None:
        """Close the connections."""
        self._adapter.close()

    def _attempt(
        self, request: requests.PreparedRequest, attempt: int, left_s: float, options: dict[str, Any]
    ) -> requests.Response:
        from urllib3 import Timeout

        backoff_s = 2**attempt * random.uniform(0.8, 1.2)  # noqa: S311 - spreads the retries of many workers
        try:
            response = self._adapter.send(request, timeout=Timeout(total=left_s), **options)  # type: ignore[arg-type]
            body = _body(response)
        except OSError as error:  # what requests raises as well
            # The Collector may have closed a connection that was kept: the first time goes without a pause.
            raise _Undelivered(_cause(error), backoff_s if attempt else 0.0) from error
        if 200 <= response.status_code < 300:
            if rejected := _rejected(response, body):
                raise _Undelivered(rejected)
            return response
        reason = f"{response.status_code} {response.reason}"[:200]
        if response.status_code not in _TRANSIENT:
            raise _Undelivered(reason)
        asked = response.headers.get("Retry-After", "")
        raise _Undelivered(reason, max(backoff_s, float(asked) if asked.isdecimal() else 0.0))


def _body(response: requests.Response) -> bytes:
    """Return an answer's body if it is short; else nothing, and the connection is given up."""
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) <= _LARGEST_ANSWER and "Content-Encoding" not in response.headers:
        return response.content or b""
    response.close()
    return b""


def _rejected(response: requests.Response, body: bytes) -> str:
    """Return what the Collector says it did not take, empty if it took everything."""
    if not body or not response.headers.get("Content-Type", "").startswith("application/x-protobuf"):
        return ""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

    try:
        # The answers to metrics and traces differ in the names of their fields only.
        partial = ExportMetricsServiceResponse.FromString(body).partial_success
    except ValueError as error:
        return f"an answer that is not OTLP ({type(error).__name__})"
    if not partial.rejected_data_points:
        return ""
    return f"{partial.rejected_data_points} rejected, {partial.error_message!r:.200}"


def _cause(error: BaseException) -> str:
    """Return the innermost reason: the outer ones repeat the URL, in whose path or query a token may stand."""
    while deeper := error.__cause__ or error.__context__:
        error = deeper
    return f"{error}"[:200] or type(error).__name__


def _open_exporter(
    settings: Settings, signal: Signal, on_failure: Callable[[str], None], failure: Any
) -> tuple[Any, _Push]:
    exporter_class, grpc = _exporter_class(signal)
    endpoint = _endpoint(settings, signal, grpc=grpc)
    push = _Push(signal, endpoint, _timeout_s(signal), on_failure)
    options: dict[str, Any] = {} if grpc else {"session": _session(push, signal)}
    exporter = exporter_class(endpoint=endpoint, timeout=push.timeout_s, **options)
    for each in exporter_class.__mro__:
        if each.__module__.startswith("opentelemetry.exporter.otlp."):
            logging.getLogger(each.__module__).addFilter(_HOLD)
    exporter.export = push.watch(exporter.export, failure)
    return exporter, push


def _exporter_class(signal: Signal) -> tuple[Any, bool]:
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
        parts = urlsplit(given or "http://localhost:4317")
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    path = f"/v1/{signal}"
    if given and (given == _variable(signal, "ENDPOINT", only=True)[1] or urlsplit(given).path.endswith(path)):
        return given
    return (given or "http://localhost:4318").rstrip("/") + path
