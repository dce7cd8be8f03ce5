"""An ASGI server's side of an application, and a telemetry that tells what it was told."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_mlops import metrics as rows
from otel_mlops.metrics import Metric
from otel_mlops.sdk.provider import MeterProvider

Message = dict[str, Any]
WAIT_S = 20.0


@dataclass(frozen=True)
class Settings:
    """The settings that the web part reads."""

    metrics_path: str | None = None
    health_path: str | None = "/health"
    request_timing_header: str | None = None
    instrumentation: str = "auto"
    disabled: bool = False


@dataclass(frozen=True)
class Page:
    """The page as a telemetry gives it."""

    body: bytes
    content_type: str


class Telemetry:
    """A telemetry with the real provider, and notes of what the application asked of it."""

    def __init__(self, settings: Settings | None = None, tracer_provider: Any = None) -> None:
        self.settings = settings or Settings()
        self._reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider((self._reader,), shutdown_on_exit=False)
        self.tracer_provider = tracer_provider
        self.asked: list[str] = []
        self.threads: set[int] = set()
        self.components: dict[str, bool] = {}

    def start(self) -> None:
        self.asked.append("start")
        self.threads.add(threading.get_ident())

    def watch_loop(self) -> None:
        asyncio.get_running_loop()  # it is asked in the loop

    def stop(self, timeout_s: float) -> None:
        assert 0 < timeout_s <= 30
        self.asked.append("stop")
        self.threads.add(threading.get_ident())

    def page(self, accept: str | None = None) -> Page:
        self.asked.append("page")
        self.threads.add(threading.get_ident())
        return Page(f"page for {accept}\n".encode(), "text/plain; version=0.0.4")

    def health(self) -> dict[str, Any]:
        self.threads.add(threading.get_ident())
        status = "healthy" if all(self.components.values()) else "unhealthy"
        return {"status": status, "components": self.components}

    def __reduce__(self) -> tuple[Any, ...]:
        return Telemetry, (self.settings,)

    def points(self, name: str) -> dict[tuple[tuple[str, Any], ...], Any]:
        """Each series of an instrument, in whatever scope, with its data point."""
        data = self._reader.get_metrics_data()
        return {
            tuple(sorted(point.attributes.items())): point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        }

    def scopes(self, name: str) -> set[str]:
        data = self._reader.get_metrics_data()
        return {
            scope.scope.name
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        }

    def values(self, row: Metric, *labels: str) -> dict[Any, float]:
        """The value of each series of a row by the labels named; the one label by itself."""
        found: Counter[Any] = Counter()
        for attributes, point in self.points(row.name).items():
            key = tuple(dict(attributes)[label] for label in labels)
            found[key[0] if len(key) == 1 else key] += point.value
        return dict(found)

    @property
    def requests(self) -> dict[tuple[str, str, str], float]:
        """Those that came: what waits at 0 for a first failure is left out."""
        found = self.values(rows.API_REQUESTS, "method", "endpoint", "status_code")
        return {each: value for each, value in found.items() if value}

    @property
    def errors(self) -> dict[tuple[str, str], float]:
        return self.values(rows.ERRORS, "error_type", "endpoint")

    @property
    def active(self) -> float:
        return sum(self.values(rows.ACTIVE_CONNECTIONS).values())

    @property
    def in_progress(self) -> dict[str, float]:
        return {
            method: value for method, value in self.values(rows.API_REQUESTS_IN_PROGRESS, "method").items() if value
        }

    def total(self, row: Metric) -> tuple[int, float]:
        """Count and sum of a histogram over all its series."""
        points = self.points(row.name).values()
        return sum(point.count for point in points), sum(point.sum for point in points)

    @property
    def is_balanced(self) -> bool:
        return self.active == 0 and not self.in_progress


@dataclass
class Answer:
    """What a server has got from an application."""

    messages: list[Message] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def status(self) -> int | None:
        return next((each["status"] for each in self.messages if each["type"] == "http.response.start"), None)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(next(each["headers"] for each in self.messages if each["type"] == "http.response.start"))

    @property
    def body(self) -> bytes:
        return b"".join(bytes(each.get("body", b"")) for each in self.messages if each["type"] == "http.response.body")


def scope_of(method: str, path: str, *, root_path: str = "", headers: Mapping[str, str] | None = None) -> Message:
    raw = [(name.encode(), value.encode()) for name, value in {"host": "service", **(headers or {})}.items()]
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": method, "path": path, "raw_path": path.encode(), "root_path": root_path, "query_string": b"",
        "scheme": "http", "headers": raw, "server": ("service", 80), "client": ("client", 1),
    }  # fmt: skip


async def ask(
    app: Any,
    method: str,
    path: str,
    *,
    body: Iterable[bytes] = (),
    disconnect: bool = False,
    on_send: Callable[[Message], Awaitable[None] | None] | None = None,
    scope: Message | None = None,
    **more: Any,
) -> Answer:
    """Send one request as a server does; with `disconnect` its client leaves after the body."""
    answer, done = Answer(), asyncio.Event()
    chunks = list(body)
    arriving: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    arriving.append({"type": "http.disconnect"} if disconnect else {"type": "http.request", "body": b""})

    async def receive() -> Message:
        if arriving:
            return arriving.pop(0)
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if on_send is not None:
            waiting = on_send(message)
            if waiting is not None:
                await waiting
        answer.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            done.set()

    try:
        await app(scope or scope_of(method, path, **more), receive, send)
    except BaseException as error:
        answer.error = error
    return answer


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[dict[str, Any]]:
    """Run an application's lifespan as a server does, and give the state that its requests get."""
    state: dict[str, Any] = {}
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    from_app: asyncio.Queue[Message] = asyncio.Queue()

    async def told(wanted: str) -> None:
        await to_app.put({"type": f"lifespan.{wanted}"})
        waiting = asyncio.ensure_future(from_app.get())
        await asyncio.wait((waiting, running), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done() and waiting.result()["type"] == f"lifespan.{wanted}.complete":
            return
        await running  # raises what went wrong
        raise AssertionError(f"no answer to {wanted}")

    running = asyncio.ensure_future(app({"type": "lifespan", "asgi": {}, "state": state}, to_app.get, from_app.put))
    await told("startup")
    yield state
    await told("shutdown")
    await running


class Socket:
    """The client's side of one websocket."""

    def __init__(self, app: Any, path: str) -> None:
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        scope = scope_of("GET", path) | {"type": "websocket", "scheme": "ws", "subprotocols": []}
        self.running = asyncio.ensure_future(app(scope, self._to_app.get, self._from_app.put))

    async def hears(self, wanted: str) -> Message:
        message = await asyncio.wait_for(self._from_app.get(), WAIT_S)
        assert message["type"] == f"websocket.{wanted}"
        return message

    async def connect(self) -> Socket:
        await self.says("connect")
        await self.hears("accept")
        return self

    async def says(self, what: str, **more: Any) -> None:
        await self._to_app.put({"type": f"websocket.{what}", **more})


async def endpoint(request: Request) -> PlainTextResponse:
    return PlainTextResponse("here")


def anything(item_id: int = 0) -> dict[str, int]:
    return {"item_id": item_id}


async def opaque(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("opaque")(scope, receive, send)


class Busy(HTTPException):
    """The application says what is wrong."""


class DomainError(Exception):
    """The application has a handler for it."""


def failing_app(**more: Any) -> FastAPI:
    app = FastAPI(**more)

    @app.get("/raise/{kind}")
    async def fail(kind: str) -> None:
        errors = {
            "value": ValueError("secret"), "http": HTTPException(503, "secret"), "busy": Busy(503),
            "domain": DomainError(), "missing": HTTPException(404), "refused": Busy(429),
        }  # fmt: skip
        raise errors[kind]

    @app.get("/plain/{code}")
    async def plain(code: int) -> JSONResponse:
        return JSONResponse({}, code)

    @app.get("/wrong")
    def wrong() -> int:
        return "no number"  # type: ignore[return-value]

    @app.exception_handler(DomainError)
    async def handle(request: Request, error: DomainError) -> JSONResponse:
        return JSONResponse({}, 502)

    return app
