"""Counts and times requests: a pure ASGI middleware that passes everything on as it came."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from otel_mlops.metrics import (
    ACTIVE_CONNECTIONS,
    API_REQUEST_DURATION,
    API_REQUEST_SIZE,
    API_REQUESTS,
    API_REQUESTS_IN_PROGRESS,
    API_RESPONSE_SIZE,
    ERRORS,
    METHODS,
)
from otel_mlops.web import lifespan
from otel_mlops.web.exchange import EXCHANGE, ASGIApp, Exchange, Message, Receive, Send, client_left
from otel_mlops.web.routes import Scope, Templates

_MOST_REMEMBERED = 4096
"""How many handles of a kind are kept: there are fewer routes, unless an application makes them up."""


class _Process:
    """Who runs here: a forked child has another token, which costs less to compare than a pid to ask for."""

    token = object()

    @classmethod
    def renew(cls) -> None:
        """Become another process."""
        cls.token = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Process.renew)


class Settings(Protocol):
    """What the web part reads of the settings."""

    @property
    def disabled(self) -> bool:
        """Whether nothing is measured."""

    @property
    def metrics_path(self) -> str | None:
        """Where the application serves the page as well."""

    @property
    def health_path(self) -> str | None:
        """Where the application tells its health."""

    @property
    def request_timing_header(self) -> str | None:
        """The response header that tells the processing time."""

    @property
    def instrumentation(self) -> str:
        """Whose semantic conventions the application gets."""


class Page(Protocol):
    """The page in one of its formats."""

    @property
    def body(self) -> bytes:
        """What is sent."""

    @property
    def content_type(self) -> str:
        """The format, as a header says it."""


class Telemetry(Protocol):
    """What the web part asks of a telemetry; it pickles by itself, so an application may hold it."""

    @property
    def settings(self) -> Settings:
        """What the service chose."""

    @property
    def meter_provider(self) -> Any:
        """OpenTelemetry's MeterProvider, with `instrument(row)`."""

    @property
    def tracer_provider(self) -> Any:
        """OpenTelemetry's TracerProvider; None without an exporter of traces."""

    def start(self) -> None:
        """Start sockets and threads; does nothing while they run."""

    def watch_loop(self) -> None:
        """Time the event loop that runs here, once it has started."""

    def stop(self, timeout_s: float) -> object:
        """End them within the time; `start()` begins again."""

    def page(self, accept: str | None = None) -> Page:
        """Make the page in the format that an Accept header prefers."""

    def health(self) -> Mapping[str, Any]:
        """Return `status`, and `components` with whether each is healthy."""


class Series:
    """The handles of one method and endpoint."""

    __slots__ = ("_labels", "_requests", "by_status", "duration", "received", "sent")

    def __init__(self, metrics: RequestMetrics, method: str, endpoint: str) -> None:
        self._labels = {"method": method, "endpoint": endpoint}
        self._requests = metrics.requests
        self.by_status: dict[int, Any] = {}
        self.duration = metrics.duration.bind(self._labels)
        self.received = metrics.received.bind(self._labels)
        self.sent = metrics.sent.bind(self._labels)

    def bind_status(self, status: int) -> Any:
        """Return the counter of the requests that were answered with a status, and remember it."""
        counter = self._requests.bind({**self._labels, "status_code": str(int(status))})
        if len(self.by_status) < _MOST_REMEMBERED:
            self.by_status[status] = counter
        return counter


class RequestMetrics:
    """The middleware: one for each application, around everything the application does with a request."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, hides_from_fastapi: bool = False) -> None:
        self.app = app
        self._telemetry = telemetry
        self._hides_from_fastapi = hides_from_fastapi
        self._started_in: object = None
        header = telemetry.settings.request_timing_header
        self.timing_header = None if header is None else header.lower().encode("latin-1")
        self.templates = Templates()
        instrument = telemetry.meter_provider.instrument
        self.active = instrument(ACTIVE_CONNECTIONS).bind({})
        in_progress = instrument(API_REQUESTS_IN_PROGRESS)
        self.in_progress = {method: in_progress.bind({"method": method}) for method in METHODS}
        self.requests = instrument(API_REQUESTS)
        self.duration = instrument(API_REQUEST_DURATION)
        self.received = instrument(API_REQUEST_SIZE)
        self.sent = instrument(API_RESPONSE_SIZE)
        self._errors = instrument(ERRORS)
        self.series: dict[tuple[str, str], Series] = {}
        self._errors_by_type: dict[tuple[str, str], Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the handles, which belong to this process."""
        return type(self), (self.app, self._telemetry, self._hides_from_fastapi)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for one lifespan, request or connection."""
        kind = scope["type"]
        if kind == "lifespan":
            self._started_in = _Process.token
            try:
                await lifespan.live(self._telemetry, self.app, scope, receive, send)
            finally:
                self._started_in = None
            return
        if self._started_in is not _Process.token:
            # The lifespan is off, or this process was forked from one that had started.
            self._started_in = _Process.token
            await lifespan.start(self._telemetry)
        if EXCHANGE in scope or kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if self._hides_from_fastapi:
            # Else mounted applications would report by FastAPI what the outer one reports by other means.
            scope.setdefault("fastapi.telemetry", None)
        if kind == "websocket":
            await self._connect(scope, receive, send)
            return
        exchange = Exchange(self, scope, receive, send)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as error:
            exchange.fail(error)
            raise
        finally:
            exchange.close()

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count a websocket as a connection while it is open, and its unhandled exception as an error."""
        scope[EXCHANGE] = None
        is_open = True
        lost: OSError | None = None

        def leave() -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                self.active.add(-1)

        async def send_until_close(message: Message) -> None:
            nonlocal lost
            if message["type"] == "websocket.close":
                leave()
            try:
                await send(message)
            except OSError as error:
                # ASGI's way to say that the client is gone.
                lost = error
                raise

        self.active.add(1)
        try:
            await self.app(scope, receive, send_until_close)
        except Exception as error:
            if error is not lost and not client_left(error):
                self.count_error(type(error).__name__, scope, None)
            raise
        finally:
            leave()
            lost = None

    def bind_series(self, method: str, endpoint: str) -> Series:
        """Return the handles of a method and an endpoint, and remember them."""
        series = Series(self, method, endpoint)
        # It stands at 0 before the first failure, as `increase` does not see what a series begins with.
        series.bind_status(500).add(0.0)
        if len(self.series) < _MOST_REMEMBERED:
            self.series[method, endpoint] = series
        return series

    def count_error(self, error_type: str, scope: Scope, status: int | None) -> None:
        """Count an error at the route it met."""
        endpoint = self.templates.of(scope, status)
        counter = self._errors_by_type.get((error_type, endpoint))
        if counter is None:
            counter = self._errors.bind({"error_type": error_type, "endpoint": endpoint})
            if len(self._errors_by_type) < _MOST_REMEMBERED:
                self._errors_by_type[error_type, endpoint] = counter
        counter.add(1)
