"""Requests as they are counted: real FastAPI and Starlette applications, driven by raw ASGI."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from fastapi import APIRouter, BackgroundTasks, Body, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from opentelemetry import metrics as otel_metrics
from opentelemetry import trace as otel_trace
from opentelemetry.instrumentation import _semconv
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider as StockMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse
from starlette.routing import Host, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocketDisconnect

from otel_mlops import metrics as rows
from otel_mlops.metrics import Metric
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.web import exchange, instrument_app, lifespan
from otel_mlops.web.requests import RequestMetrics

Message = dict[str, Any]
WAIT_S = 5.0


@dataclass(frozen=True)
class Settings:
    metrics_path: str | None = None
    health_path: str | None = "/health"
    request_timing_header: str | None = None
    instrumentation: str = "auto"


@dataclass(frozen=True)
class Page:
    body: bytes
    content_type: str


class Telemetry:
    """A telemetry with the real provider, and notes of what the application asked of it."""

    def __init__(self, settings: Settings = Settings(), tracer_provider: Any = None) -> None:  # noqa: B008
        self.settings = settings
        self._reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider((self._reader,), shutdown_on_exit=False)
        self.tracer_provider = tracer_provider
        self.asked: list[str] = []
        self.threads: set[int] = set()
        self.components: dict[str, bool] = {}

    def start(self) -> None:
        self.asked.append("start")
        self.threads.add(threading.get_ident())

    def shutdown(self, timeout_s: float) -> None:
        assert 0 < timeout_s <= 30
        self.asked.append("shutdown")
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
        return self.values(rows.API_REQUESTS, "method", "endpoint", "status_code")

    @property
    def errors(self) -> dict[tuple[str, str], float]:
        return self.values(rows.ERRORS, "error_type", "endpoint")

    @property
    def active(self) -> float:
        return sum(self.values(rows.ACTIVE_CONNECTIONS).values())

    @property
    def in_progress(self) -> dict[str, float]:
        return {method: value for method, value in self.values(rows.API_REQUESTS_IN_PROGRESS, "method").items() if value}

    def total(self, row: Metric) -> tuple[int, float]:
        """Count and sum of a histogram over all its series."""
        points = self.points(row.name).values()
        return sum(point.count for point in points), sum(point.sum for point in points)

    @property
    def is_balanced(self) -> bool:
        return self.active == 0 and not self.in_progress


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


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


# --- Templates ----------------------------------------------------------------------------------------------


async def endpoint(request: Request) -> PlainTextResponse:
    return PlainTextResponse("here")


def anything(item_id: int = 0) -> dict[str, int]:
    return {"item_id": item_id}


async def opaque(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("opaque")(scope, receive, send)


def every_kind_of_route(folder: Path) -> FastAPI:
    (folder / "page.html").write_text("page")
    app = FastAPI()
    app.get("/")(anything)
    app.get("/items/{item_id}")(anything)
    app.post("/slash/")(anything)
    app.get("/files/{name:path}")(lambda name: name)
    inner, outer, plain = APIRouter(prefix="/inner"), APIRouter(), APIRouter(prefix="/plain")
    inner.get("/{item_id}")(anything)
    inner.get("/slash/")(anything)
    plain.add_route("/{name}", endpoint)
    plain.mount("/mounted", Starlette(routes=[Route("/{name}", endpoint)]))
    outer.include_router(inner, prefix="/outer")
    app.include_router(outer, prefix="/v1")
    app.include_router(outer, prefix="/v2/{version}")
    app.include_router(plain)
    fastapi, starlette = FastAPI(), Starlette(routes=[Route("/{name}", endpoint), Mount("/deep", routes=[Route("/{x}", endpoint)])])
    fastapi.include_router(inner, prefix="/sub")
    fastapi.get("/")(anything)
    fastapi.get("/slash/")(anything)
    app.mount("/fastapi", fastapi)
    app.mount("/starlette", starlette)
    app.mount("/tenants/{tenant}", fastapi)
    app.mount("/wrapped", CORSMiddleware(fastapi, allow_origins=["*"]))
    app.mount("/static", StaticFiles(directory=folder))
    app.mount("/opaque", opaque)
    app.router.routes.append(Host("named.example", Starlette(routes=[Route("/host/{x}", endpoint)])))
    if hasattr(app, "frontend"):
        app.frontend("/ui", directory=folder)
    return app


KINDS = [
    ("GET", "/", 200, "/"),
    ("GET", "/items/7", 200, "/items/{item_id}"),
    ("GET", "/items/none", 422, "/items/{item_id}"),
    ("PATCH", "/items/7", 405, "/items/{item_id}"),
    ("OPTIONS", "/items/7", 405, "/items/{item_id}"),
    ("GET", "/files/a/b/c", 200, "/files/{name}"),
    ("GET", "/nothing/here", 404, "unmatched"),
    ("POST", "/slash", 307, "/slash/"),
    ("GET", "/items/7/", 307, "/items/{item_id}"),
    ("GET", "/v1/outer/inner/7", 200, "/v1/outer/inner/{item_id}"),
    ("PUT", "/v1/outer/inner/7", 405, "/v1/outer/inner/{item_id}"),
    ("GET", "/v2/9/outer/inner/7", 200, "/v2/{version}/outer/inner/{item_id}"),
    ("GET", "/v1/outer/inner/slash/", 200, "/v1/outer/inner/slash/"),
    ("GET", "/v1/outer/nothing", 404, "unmatched"),
    ("GET", "/plain/name", 200, "/plain/{name}"),
    ("GET", "/plain/mounted/name", 200, "/plain/mounted/{name}"),
    ("GET", "/fastapi/", 200, "/fastapi/"),
    ("GET", "/fastapi/sub/inner/7", 200, "/fastapi/sub/inner/{item_id}"),
    ("GET", "/fastapi/nothing", 404, "unmatched"),
    ("GET", "/fastapi/slash", 307, "/fastapi/slash/"),
    ("GET", "/fastapi/docs", 200, "/fastapi/docs"),
    ("GET", "/starlette/name", 200, "/starlette/{name}"),
    ("GET", "/starlette/deep/name", 200, "/starlette/deep/{x}"),
    ("GET", "/starlette/deep/name/more", 404, "unmatched"),
    ("POST", "/starlette/name", 405, "/starlette/{name}"),
    ("GET", "/tenants/secret/", 200, "/tenants/{tenant}/"),
    ("GET", "/tenants/secret/sub/inner/7", 200, "/tenants/{tenant}/sub/inner/{item_id}"),
    ("GET", "/tenants/secret/nothing", 404, "unmatched"),
    ("GET", "/wrapped/sub/inner/7", 200, "/wrapped/sub/inner/{item_id}"),
    ("GET", "/wrapped/nothing", 404, "unmatched"),
    ("GET", "/static/page.html", 200, "/static/{path}"),
    ("GET", "/static/nothing.html", 404, "/static/{path}"),
    ("GET", "/opaque/what/ever", 200, "/opaque/{path}"),
    ("GET", "/docs", 200, "/docs"),
    ("GET", "/openapi.json", 200, "/openapi.json"),
    ("HEAD", "/docs", 200, "/docs"),
    ("GET", "/ui/page.html", 200, "/ui/{path}"),
]


@pytest.mark.parametrize("instrumentation", ["auto", "none"])
@pytest.mark.parametrize(("method", "path", "status", "template"), KINDS)
async def test_the_endpoint_is_the_whole_template(method, path, status, template, instrumentation, tmp_path):
    """The endpoint is the route's template with the prefixes of its routers and mounts, or `unmatched`."""
    telemetry, app = Telemetry(Settings(instrumentation=instrumentation)), every_kind_of_route(tmp_path)
    instrument_app(app, telemetry)
    for _ in range(2):  # what is learned from the first must hold for the second
        assert (await ask(app, method, path)).status == status
    assert telemetry.requests == {(method, template, str(status)): 2}
    assert telemetry.is_balanced


async def test_a_host_adds_nothing_to_the_template(telemetry, tmp_path):
    """A route below a Host has its own template, and the Host header is in no label."""
    app = every_kind_of_route(tmp_path)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/host/secret", headers={"host": "named.example"})
    assert telemetry.requests == {("GET", "/host/{x}", "200"): 1}


async def test_a_plain_starlette_application_is_counted_too(telemetry):
    """A Starlette application without FastAPI has the same labels."""
    app = Starlette(routes=[Mount("/a/{b}", routes=[Route("/{c}", endpoint)]), Route("/{d}", endpoint)])
    instrument_app(app, telemetry)
    for path in ("/a/1/2", "/3", "/4/", "/a/1/2/5"):
        await ask(app, "GET", path)
    assert telemetry.requests == {
        ("GET", "/a/{b}/{c}", "200"): 1,
        ("GET", "/{d}", "200"): 1,
        ("GET", "/{d}", "307"): 1,
        ("GET", "unmatched", "404"): 1,
    }


@pytest.mark.parametrize("instrumentation", ["auto", "none"])
async def test_root_path_is_no_part_of_the_template(instrumentation):
    """A root_path, of the application, the server or a proxy's header, is in no label."""

    class Forwarded:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            prefix = dict(scope["headers"]).get(b"x-forwarded-prefix")
            if prefix is not None:
                scope["root_path"] = prefix.decode()
                scope["path"] = scope["root_path"] + scope["path"]
            await self.app(scope, receive, send)

    telemetry = Telemetry(Settings(instrumentation=instrumentation))
    app, sub = FastAPI(root_path="/api"), FastAPI()
    app.add_middleware(Forwarded)
    app.get("/items/{item_id}")(anything)
    sub.get("/items/{item_id}")(anything)
    app.mount("/sub", sub)
    instrument_app(app, telemetry)
    assert (await ask(app, "GET", "/items/1")).status == 200
    assert (await ask(app, "GET", "/api/items/1")).status == 200
    assert (await ask(app, "GET", "/api/sub/items/1")).status == 200
    for number in range(20):
        prefix = {"x-forwarded-prefix": f"/tenant-{number}"}
        assert (await ask(app, "GET", "/items/1", headers=prefix)).status == 200
        assert (await ask(app, "GET", "/sub/items/1", headers=prefix)).status == 200
    assert telemetry.requests == {("GET", "/items/{item_id}", "200"): 22, ("GET", "/sub/items/{item_id}", "200"): 21}


async def test_a_mounted_application_by_itself_has_its_mounts_in_the_template(telemetry):
    """An instrumented application in one that is not has the mount's prefix, and never a tenant's name."""
    sub, outer = FastAPI(), Starlette()
    sub.get("/items/{item_id}")(anything)
    outer.mount("/fixed", sub)
    outer.mount("/tenants/{tenant}", sub)
    instrument_app(sub, telemetry)
    await ask(outer, "GET", "/fixed/items/1")
    await ask(outer, "GET", "/tenants/secret/items/1")
    assert telemetry.requests == {
        ("GET", "/fixed/items/{item_id}", "200"): 1,
        ("GET", "/tenants/{tenant}/items/{item_id}", "200"): 1,
    }


async def test_what_a_middleware_answers_has_the_template_of_the_route_it_was_for(telemetry):
    """A preflight and a refusal, answered before the routing, are counted at the route they were meant for."""
    app = FastAPI()
    app.get("/items/{item_id}")(anything)
    instrument_app(app, telemetry)

    class Refuse:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            refused = dict(scope["headers"]).get(b"authorization") == b"wrong"
            await (PlainTextResponse("no", 401) if refused else self.app)(scope, receive, send)

    app.add_middleware(CORSMiddleware, allow_origins=["https://a.example"])
    app.add_middleware(Refuse)
    preflight = {"origin": "https://a.example", "access-control-request-method": "GET"}
    assert (await ask(app, "OPTIONS", "/items/1", headers=preflight)).status == 200
    assert (await ask(app, "GET", "/items/1", headers={"authorization": "wrong"})).status == 401
    assert (await ask(app, "GET", "/nothing", headers={"authorization": "wrong"})).status == 401
    assert telemetry.requests == {
        ("OPTIONS", "/items/{item_id}", "200"): 1,
        ("GET", "/items/{item_id}", "401"): 1,
        ("GET", "unmatched", "401"): 1,
    }


async def test_a_middleware_that_copies_the_scope_hides_no_template(telemetry):
    """A middleware that hands on a copy of the scope leaves the template as it is."""

    class Copy:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(dict(scope), receive, send)

    app = FastAPI()
    app.get("/items/{item_id}")(anything)
    app.add_middleware(Copy)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/items/1")
    assert telemetry.requests == {("GET", "/items/{item_id}", "200"): 1}


async def test_a_route_that_cannot_be_read_breaks_no_request(telemetry, caplog):
    """A route class that raises while it is asked again leaves the request whole, and is logged once."""

    class Moody(Route):
        asked = 0

        def matches(self, scope: Any) -> Any:
            Moody.asked += 1
            if Moody.asked % 2 == 0:
                raise LookupError("moody")
            return super().matches(scope)

    app = FastAPI()
    app.router.routes.append(Moody("/moody", endpoint))
    instrument_app(app, telemetry)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert (await ask(app, "GET", "/moody")).status == 200
    assert telemetry.requests == {("GET", "unmatched", "200"): 3}
    assert len(caplog.records) == 1


async def test_the_same_function_on_two_paths_is_two_endpoints(telemetry):
    """Two paths of one function are told apart."""
    app = FastAPI()
    app.get("/old/{item_id}")(app.get("/new/{item_id}")(anything))
    instrument_app(app, telemetry)
    await ask(app, "GET", "/old/1")
    await ask(app, "GET", "/new/1")
    assert telemetry.values(rows.API_REQUESTS, "endpoint") == {"/old/{item_id}": 1, "/new/{item_id}": 1}


async def test_a_route_added_later_is_known(telemetry):
    """Routes and mounts that are added while the application serves have their templates."""
    app = FastAPI()
    instrument_app(app, telemetry)
    await ask(app, "GET", "/later/1")
    app.get("/later/{item_id}")(anything)
    sub = FastAPI()
    sub.get("/{item_id}")(anything)
    app.mount("/sub", sub)
    await ask(app, "GET", "/later/1")
    await ask(app, "GET", "/sub/1")
    assert telemetry.values(rows.API_REQUESTS, "endpoint") == {
        "unmatched": 1, "/later/{item_id}": 1, "/sub/{item_id}": 1,
    }  # fmt: skip


# --- Labels are bounded -------------------------------------------------------------------------------------


@pytest.mark.parametrize("instrumentation", ["auto", "none"])
async def test_no_client_can_make_series(instrumentation, tmp_path):
    """Thousands of paths, methods and hosts leave a handful of series."""
    telemetry, app = Telemetry(Settings(instrumentation=instrumentation)), every_kind_of_route(tmp_path)
    instrument_app(app, telemetry)
    prefixes = ("/", "/items/", "/fastapi/", "/tenants/", "/static/", "/v1/outer/inner/", "/tenants/x/sub/inner/")
    for number in range(5000):
        path = prefixes[number % len(prefixes)] + f"secret{number}"
        await ask(app, "GET", path, headers={"host": f"secret{number % 500}.example"})
        await ask(app, f"SECRET{number % 500}", path)
    series = [attributes for row in rows.CATALOGUE for attributes in telemetry.points(row.name)]
    assert len(series) < 100
    for name in ("http.server.request.duration", "http.server.active_requests"):
        series += telemetry.points(name)
    assert len(series) < 150
    assert "secret" not in str(series).lower()
    middleware = app.middleware_stack
    assert isinstance(middleware, RequestMetrics)
    assert len(middleware.series) < 30
    assert telemetry.is_balanced
    methods = {dict(each)["method"] for each in telemetry.points(rows.API_REQUESTS.name)}
    assert methods == {"GET", "_OTHER"}


async def test_the_handles_that_are_kept_are_bounded(telemetry, monkeypatch):
    """An application that makes up statuses and exception classes is counted, and fills no memory."""
    monkeypatch.setattr("otel_mlops.web.requests._MOST_REMEMBERED", 5)
    app = FastAPI()

    @app.get("/{code}")
    def made_up(code: int) -> PlainTextResponse:
        if code < 100:
            raise type(f"Made{code}", (Exception,), {})
        return PlainTextResponse("", code)

    instrument_app(app, telemetry)
    for code in range(20):
        await ask(app, "GET", f"/{code}")
        await ask(app, "GET", f"/{200 + code}")
    assert len(telemetry.requests) == 21
    assert len(telemetry.errors) == 20
    middleware = app.middleware_stack
    assert len(middleware._errors_by_type) == 5
    assert all(len(each.by_status) <= 5 for each in middleware.series.values())


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "QUERY", "CONNECT"])
async def test_known_methods_count_as_themselves(method, telemetry):
    """Each method of HTTP is its own label."""
    app = FastAPI()
    app.add_api_route("/", anything, methods=[method])
    instrument_app(app, telemetry)
    await ask(app, method, "/")
    assert telemetry.requests == {(method, "/", "200"): 1}


# --- When a request is counted ------------------------------------------------------------------------------


async def test_what_was_answered_is_on_the_page(telemetry):
    """A request is counted before its last message is passed on, and is in progress until then."""
    app = FastAPI()

    @app.get("/stream")
    def stream() -> StreamingResponse:
        return StreamingResponse(iter([b"one", b"two"]))

    instrument_app(app, telemetry)
    seen = []

    def note(message: Message) -> None:
        is_last = message["type"] == "http.response.body" and not message.get("more_body")
        seen.append((is_last, sum(telemetry.requests.values()), telemetry.active, telemetry.in_progress))

    await ask(app, "GET", "/stream", on_send=note)
    assert seen == [*[(False, 0, 1, {"GET": 1})] * 3, (True, 1, 0, {})]


class Clock:
    """A clock that stands still until it is set on."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(exchange, "perf_counter", clock)
    return clock


async def test_the_duration_of_a_stream_goes_to_its_last_byte(telemetry, clock):
    """The time between the parts of a stream counts; the time after it does not."""
    app = FastAPI()

    async def parts() -> AsyncIterator[bytes]:
        for part in (b"one", b"two"):
            clock.now_s += 2.0
            yield part
        clock.now_s += 3.0

    async def afterwards() -> None:
        clock.now_s += 50.0

    @app.get("/stream")
    def stream(tasks: BackgroundTasks) -> StreamingResponse:
        clock.now_s += 1.0
        tasks.add_task(afterwards)
        return StreamingResponse(parts(), background=tasks)

    instrument_app(app, telemetry)
    await ask(app, "GET", "/stream")
    assert telemetry.total(rows.API_REQUEST_DURATION) == (1, 8.0)


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_background_tasks_are_no_part_of_a_request(method, status, telemetry, clock):
    """A background task runs after its request is counted, also where there is no body."""
    app = FastAPI()
    counted = []

    def afterwards() -> None:
        clock.now_s += 50.0
        counted.append((telemetry.total(rows.API_REQUEST_DURATION), telemetry.active))

    @app.api_route("/", methods=["GET", "HEAD"])
    def at_once(tasks: BackgroundTasks) -> PlainTextResponse:
        clock.now_s += 1.0
        tasks.add_task(afterwards)
        return PlainTextResponse("", status, background=tasks)

    instrument_app(app, telemetry)
    await ask(app, method, "/")
    assert counted == [((1, 1.0), 0)]
    assert telemetry.requests == {(method, "/", str(status)): 1}


async def test_the_timing_header_tells_the_seconds_to_the_start_of_the_answer(clock):
    """The header is on every answer, the error page's too, and a response that is used twice has it once."""
    telemetry = Telemetry(Settings(request_timing_header="X-Process-Time"))
    app = FastAPI()
    reused = PlainTextResponse("again")

    @app.get("/")
    def timed() -> PlainTextResponse:
        clock.now_s += 0.25
        return reused

    @app.get("/fails")
    def fails() -> None:
        clock.now_s += 0.5
        raise ValueError

    instrument_app(app, telemetry)
    for _ in range(2):
        answer = await ask(app, "GET", "/")
        assert [value for name, value in answer.messages[0]["headers"] if name == b"x-process-time"] == [b"0.250000"]
    assert (await ask(app, "GET", "/fails")).headers[b"x-process-time"] == b"0.500000"


async def test_no_header_is_added_unasked(telemetry):
    """Without the setting an answer's messages are passed on as they are."""
    app = FastAPI()
    app.get("/")(anything)
    bare = await ask(app, "GET", "/")
    app = FastAPI()
    app.get("/")(anything)
    instrument_app(app, telemetry)
    assert (await ask(app, "GET", "/")).messages == bare.messages


# --- Sizes --------------------------------------------------------------------------------------------------


async def test_sizes_are_the_bytes_that_passed(telemetry):
    """The parts of an upload and of a stream are added up, whatever their headers say."""
    app = FastAPI()

    @app.post("/")
    async def echo(request: Request) -> StreamingResponse:
        length = len(await request.body())
        parts = [b"a" * length, memoryview(bytes(8)).cast("q"), b""]
        return StreamingResponse(iter(parts), headers={"content-length": "1"})

    instrument_app(app, telemetry)
    await ask(app, "POST", "/", body=[b"x" * 30, b"", b"y" * 12], headers={"content-length": "5"})
    assert telemetry.total(rows.API_REQUEST_SIZE) == (1, 42)
    assert telemetry.total(rows.API_RESPONSE_SIZE) == (1, 50)


async def test_a_body_that_nobody_reads_has_no_size(telemetry):
    """What an application leaves unread is not in the size of its requests."""
    app = FastAPI()
    app.get("/")(anything)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/", body=[b"unread"], headers={"content-length": "6"})
    assert telemetry.total(rows.API_REQUEST_SIZE) == (1, 0)


async def test_an_answer_to_head_has_no_size(telemetry):
    """A server sends no body for HEAD, so none is counted."""
    app = FastAPI()
    app.add_api_route("/", lambda: PlainTextResponse("long"), methods=["GET", "HEAD"])
    instrument_app(app, telemetry)
    await ask(app, "HEAD", "/")
    assert telemetry.total(rows.API_RESPONSE_SIZE) == (1, 0)


async def test_a_file_that_the_server_sends_has_its_size(telemetry, tmp_path):
    """A file handed to the server by its path ends the answer, with the length that its headers tell."""
    (tmp_path / "file").write_bytes(b"z" * 321)
    app = FastAPI()
    app.get("/")(lambda: FileResponse(tmp_path / "file"))
    instrument_app(app, telemetry)
    seen = []

    def note(message: Message) -> None:
        seen.append((message["type"], sum(telemetry.requests.values())))

    scope = scope_of("GET", "/") | {"extensions": {"http.response.pathsend": {}}}
    await ask(app, "GET", "/", scope=scope, on_send=note)
    assert seen == [("http.response.start", 0), ("http.response.pathsend", 1)]
    assert telemetry.total(rows.API_RESPONSE_SIZE) == (1, 321)


async def test_a_body_that_is_refused_outside_the_users_middleware_is_counted(telemetry):
    """The 413 of FastAPI's own limit is on the page."""
    try:
        app = FastAPI(max_body_size=10)
    except AttributeError:
        pytest.skip("this FastAPI limits no body: install a newer one")
    app.post("/")(lambda data=Body(): data)
    instrument_app(app, telemetry)
    await ask(app, "POST", "/", body=[b'"' + b"x" * 50 + b'"'], headers={"content-length": "52"})
    assert telemetry.requests == {("POST", "/", "413"): 1}


# --- Errors -------------------------------------------------------------------------------------------------


class Busy(HTTPException):
    """The application says what is wrong."""


class Domain(Exception):
    """The application has a handler for it."""


def failing_app(**more: Any) -> FastAPI:
    app = FastAPI(**more)

    @app.get("/raise/{kind}")
    async def fail(kind: str) -> None:
        errors = {
            "value": ValueError("secret"), "http": HTTPException(503, "secret"), "busy": Busy(503),
            "domain": Domain(), "missing": HTTPException(404), "refused": Busy(429),
        }  # fmt: skip
        raise errors[kind]

    @app.get("/plain/{code}")
    async def plain(code: int) -> JSONResponse:
        return JSONResponse({}, code)

    @app.get("/wrong")
    def wrong() -> int:
        return "no number"  # type: ignore[return-value]

    @app.exception_handler(Domain)
    async def handle(request: Request, error: Domain) -> JSONResponse:
        return JSONResponse({}, 502)

    return app


@pytest.mark.parametrize("with_user_middleware", [False, True])
@pytest.mark.parametrize(
    ("path", "status", "error_type"),
    [
        ("/raise/value", 500, "ValueError"),
        ("/wrong", 500, "ResponseValidationError"),
        ("/raise/http", 503, "HTTPException"),
        ("/raise/busy", 503, "Busy"),
        ("/raise/domain", 502, "Domain"),
        ("/plain/500", 500, "HTTPException"),
        ("/plain/507", 507, "HTTPException"),
        ("/raise/missing", 404, None),
        ("/raise/refused", 429, None),
        ("/plain/418", 418, None),
        ("/nothing", 404, None),
    ],
)
async def test_errors_are_counted_once_by_their_class(path, status, error_type, with_user_middleware, telemetry):
    """An unhandled exception and an answer of 500 and above are one error; 4xx are none."""
    app = failing_app()
    if with_user_middleware:
        # It runs the application in another task, which hides what is being handled there.
        app.middleware("http")(lambda request, call_next: call_next(request))
        error_type = error_type and {"Busy": "HTTPException", "Domain": "HTTPException"}.get(error_type, error_type)
    instrument_app(app, telemetry)
    answer = await ask(app, "GET", path)
    assert answer.status == status
    template = next((dict(each)["endpoint"] for each in telemetry.points(rows.API_REQUESTS.name)), None)
    assert telemetry.requests == {("GET", template, str(status)): 1}
    assert telemetry.errors == ({(error_type, template): 1} if error_type else {})
    assert telemetry.is_balanced


async def test_an_unhandled_exception_goes_on_its_way(telemetry):
    """The server gets the very exception that was raised, after the error was counted."""
    raised = ValueError("secret")
    app = FastAPI()
    seen = []

    @app.get("/{item_id}")
    def fail(item_id: int) -> None:
        raise raised

    instrument_app(app, telemetry)
    answer = await ask(app, "GET", "/1", on_send=lambda message: seen.append(dict(telemetry.errors)))
    assert answer.error is raised
    assert seen == [{("ValueError", "/{item_id}"): 1}] * 2
    assert "secret" not in str(telemetry.points(rows.ERRORS.name))


async def test_the_status_of_a_users_last_handler_is_counted(telemetry):
    """A handler of the user's for all exceptions says the status; the exception is the error's class."""
    app = failing_app(exception_handlers={Exception: lambda request, error: JSONResponse({}, 503)})
    instrument_app(app, telemetry)
    assert (await ask(app, "GET", "/raise/value")).status == 503
    assert telemetry.requests == {("GET", "/raise/{kind}", "503"): 1}
    assert telemetry.errors == {("ValueError", "/raise/{kind}"): 1}


async def test_an_exception_of_a_mounted_application_is_one_error(telemetry):
    """An exception that passes two applications is counted once, at the whole template."""
    app = Starlette()
    app.mount("/sub", failing_app())
    instrument_app(app, telemetry)
    await ask(app, "GET", "/sub/raise/value")
    assert telemetry.requests == {("GET", "/sub/raise/{kind}", "500"): 1}
    assert telemetry.errors == {("ValueError", "/sub/raise/{kind}"): 1}


async def test_an_exception_in_a_stream_keeps_the_status_that_was_sent(telemetry):
    """A stream that breaks is an error, and counts with the status its client has seen."""
    app = FastAPI()

    @app.get("/")
    def stream() -> StreamingResponse:
        def parts() -> Iterable[bytes]:
            yield b"one"
            raise ValueError

        return StreamingResponse(parts())

    instrument_app(app, telemetry)
    answer = await ask(app, "GET", "/")
    assert answer.error is not None
    assert telemetry.requests == {("GET", "/", "200"): 1}
    assert telemetry.errors == {("ValueError", "/"): 1}
    assert telemetry.is_balanced


async def test_an_exception_in_a_background_task_is_an_error_of_its_route(telemetry):
    """A background task that fails is an error, and its request stays what it was."""
    app = FastAPI()

    def fail() -> None:
        raise ValueError

    @app.get("/{item_id}")
    def at_once(item_id: int, tasks: BackgroundTasks) -> None:
        tasks.add_task(fail)

    instrument_app(app, telemetry)
    await ask(app, "GET", "/1")
    assert telemetry.requests == {("GET", "/{item_id}", "200"): 1}
    assert telemetry.errors == {("ValueError", "/{item_id}"): 1}


async def test_a_dependency_that_cleans_up_changes_no_error(telemetry):
    """An exception that passes a dependency with yield is counted once."""
    app, cleaned = FastAPI(), []

    def session() -> Iterable[None]:
        try:
            yield
        finally:
            cleaned.append(True)

    @app.get("/")
    def fail(session: None = Depends(session)) -> None:
        raise KeyError

    instrument_app(app, telemetry)
    await ask(app, "GET", "/")
    assert telemetry.errors == {("KeyError", "/"): 1}
    assert cleaned == [True]


async def test_an_exception_around_the_application_is_not_its_own(telemetry):
    """A request made while its caller handles an exception does not take that exception for its own."""
    app = failing_app()
    instrument_app(app, telemetry)
    try:
        raise LookupError
    except LookupError:
        await ask(app, "GET", "/plain/500")
        await ask(app, "GET", "/raise/value")
    assert telemetry.errors == {("HTTPException", "/plain/{code}"): 1, ("ValueError", "/raise/{kind}"): 1}


async def test_an_application_that_says_nothing_is_a_500(telemetry):
    """An application that returns without an answer, for which its server sends 500, counts as such."""
    app = Starlette()

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return

    app.mount("/silent", silent)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/silent/x")
    assert telemetry.requests == {("GET", "/silent/{path}", "500"): 1}
    assert telemetry.errors == {("HTTPException", "/silent/{path}"): 1}


# --- Clients that leave -------------------------------------------------------------------------------------


async def test_a_client_that_leaves_before_the_answer_is_a_499(telemetry):
    """An upload that breaks off counts as 499 and is no error, though the application raises and answers 500."""
    app, raised = FastAPI(), []

    @app.post("/upload")
    async def upload(request: Request) -> None:
        try:
            await request.body()
        except ClientDisconnect as error:
            raised.append(error)
            raise

    instrument_app(app, telemetry)
    await ask(app, "POST", "/upload", body=[b"part"], disconnect=True)
    assert raised
    assert telemetry.requests == {("POST", "/upload", "499"): 1}
    assert telemetry.total(rows.API_REQUEST_SIZE) == (1, 4)
    assert telemetry.errors == {}
    assert telemetry.is_balanced


async def test_a_client_that_leaves_in_a_stream_keeps_the_status_it_saw(telemetry):
    """A stream that nobody hears to its end counts with the status that was sent, and is no error."""
    app, left = FastAPI(), asyncio.Event()

    @app.get("/")
    def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            await left.wait()
            await asyncio.Event().wait()  # only a cancellation ends it

        return StreamingResponse(parts())

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            left.set()

    instrument_app(app, telemetry)
    await asyncio.wait_for(app(scope_of("GET", "/"), receive, send), WAIT_S)
    assert telemetry.requests == {("GET", "/", "200"): 1}
    assert telemetry.total(rows.API_RESPONSE_SIZE) == (1, 3)
    assert telemetry.errors == {}
    assert telemetry.is_balanced


@pytest.mark.parametrize("at", ["http.response.start", "http.response.body"])
@pytest.mark.parametrize("streams", [False, True])
async def test_a_server_that_cannot_send_is_no_error(at, streams, telemetry):
    """The OSError by which a server says that the client is gone goes on its way, and is no error."""
    app = FastAPI()

    @app.get("/")
    def answer() -> PlainTextResponse | StreamingResponse:
        return StreamingResponse(iter([b"one", b"two"])) if streams else PlainTextResponse("one")

    def gone(message: Message) -> None:
        if message["type"] == at:
            raise BrokenPipeError

    instrument_app(app, telemetry)
    scope = scope_of("GET", "/") | {"asgi": {"version": "3.0", "spec_version": "2.4"}}
    answer = await ask(app, "GET", "/", scope=scope, on_send=gone)
    assert isinstance(answer.error, (BrokenPipeError, ClientDisconnect))
    assert telemetry.requests == {("GET", "/", "200"): 1}
    assert telemetry.errors == {}
    assert telemetry.is_balanced


async def test_an_oserror_of_the_applications_own_is_an_error(telemetry):
    """A file that is missing is an error like any other."""
    app = FastAPI()

    @app.get("/")
    def fail() -> None:
        raise FileNotFoundError

    instrument_app(app, telemetry)
    await ask(app, "GET", "/")
    assert telemetry.errors == {("FileNotFoundError", "/"): 1}


async def test_a_cancellation_is_no_error(telemetry):
    """A request that is cancelled before its answer counts as 499, and the cancellation goes on its way."""
    app, waiting = FastAPI(), asyncio.Event()

    @app.get("/")
    async def wait() -> None:
        waiting.set()
        await asyncio.Event().wait()

    instrument_app(app, telemetry)
    task = asyncio.ensure_future(app(scope_of("GET", "/"), None, None))
    await asyncio.wait_for(waiting.wait(), WAIT_S)
    assert (telemetry.active, telemetry.in_progress) == (1, {"GET": 1})
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert telemetry.requests == {("GET", "/", "499"): 1}
    assert telemetry.errors == {}
    assert telemetry.is_balanced


async def test_a_failure_after_the_client_left_is_an_error_without_an_answer(telemetry):
    """An exception that is no news of the client's leaving is an error, also when nobody waits any more."""
    app = FastAPI()

    @app.get("/")
    async def fail(request: Request) -> None:
        assert await request.is_disconnected()
        raise ValueError

    instrument_app(app, telemetry)
    await ask(app, "GET", "/", disconnect=True)
    assert telemetry.requests == {("GET", "/", "499"): 1}
    assert telemetry.errors == {("ValueError", "/"): 1}


# --- Websockets ---------------------------------------------------------------------------------------------


async def test_a_websocket_is_a_connection_while_it_is_open(telemetry):
    """An open websocket is one connection and no request."""
    app = FastAPI()

    @app.websocket("/ws/{room}")
    async def talk(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    instrument_app(app, telemetry)
    first, second = await Socket(app, "/ws/1").connect(), await Socket(app, "/ws/2").connect()
    assert telemetry.active == 2
    await first.says("receive", text="hello")
    assert (await first.hears("send"))["text"] == "hello"
    await first.hears("close")
    assert telemetry.active == 1
    await second.says("disconnect", code=1001)
    await asyncio.wait((first.running, second.running), timeout=WAIT_S)
    assert first.running.exception() is None
    assert isinstance(second.running.exception(), WebSocketDisconnect)
    assert telemetry.active == 0
    assert telemetry.requests == {}
    assert telemetry.errors == {}


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (ValueError(), {("ValueError", "/v1/ws/{room}"): 1}),
        (WebSocketDisconnect(1006), {}),
        (ExceptionGroup("two", [WebSocketDisconnect(1001), WebSocketDisconnect(1000)]), {}),
        (ExceptionGroup("two", [WebSocketDisconnect(1001), ValueError()]), {("ExceptionGroup", "/v1/ws/{room}"): 1}),
    ],
)
async def test_an_exception_of_a_websocket_is_an_error_of_its_route(error, counted, telemetry):
    """An unhandled exception ends the connection as an error; a client that leaves does not."""
    app, router = FastAPI(), APIRouter(prefix="/v1")

    @router.websocket("/ws/{room}")
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        raise error

    app.include_router(router)
    instrument_app(app, telemetry)
    socket = await Socket(app, "/v1/ws/1").connect()
    with pytest.raises(type(error)):
        await socket.running
    assert telemetry.errors == counted
    assert telemetry.active == 0


async def test_a_websocket_whose_client_is_gone_is_no_error(telemetry):
    """The OSError of a send to nobody is no error of the application's."""

    async def talk(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.send", "text": "hello"})

    async def gone(message: Message) -> None:
        raise ConnectionResetError

    app = Starlette()
    app.mount("/", talk)
    instrument_app(app, telemetry)
    with pytest.raises(ConnectionResetError):
        await app(scope_of("GET", "/") | {"type": "websocket"}, None, gone)
    assert telemetry.errors == {}
    assert telemetry.active == 0


# --- Our own pages ------------------------------------------------------------------------------------------


async def test_the_page_is_served_where_it_was_asked_for():
    """The page comes in the format that is asked for, is made beside the event loop, and is no request."""
    telemetry = Telemetry(Settings(metrics_path="/metrics"))
    app = FastAPI()
    app.get("/{path:path}")(lambda path: path)  # would take every path
    instrument_app(app, telemetry)
    seen = []
    make = telemetry.page

    def page(accept: str | None = None) -> Page:
        seen.append((telemetry.active, telemetry.in_progress))
        return make(accept)

    telemetry.page = page  # type: ignore[method-assign]
    answer = await ask(app, "GET", "/metrics", headers={"accept": "application/openmetrics-text"})
    assert answer.status == 200
    assert answer.body == b"page for application/openmetrics-text\n"
    assert answer.headers[b"content-type"] == b"text/plain; version=0.0.4"
    assert int(answer.headers[b"content-length"]) == len(answer.body)
    head = await ask(app, "HEAD", "/metrics")
    assert (head.status, head.body) == (200, b"")
    assert seen == [(0, {})] * 2
    assert threading.get_ident() not in telemetry.threads
    assert telemetry.requests == {}
    assert telemetry.is_balanced
    assert (await ask(app, "POST", "/metrics")).status == 405


async def test_the_page_lies_behind_the_users_middleware():
    """What guards the application guards the page as well."""
    telemetry = Telemetry(Settings(metrics_path="/metrics"))
    app = FastAPI()
    instrument_app(app, telemetry)

    class Guard:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await PlainTextResponse("no", 401)(scope, receive, send)

    app.add_middleware(Guard)
    assert (await ask(app, "GET", "/metrics")).status == 401
    assert "page" not in telemetry.asked


async def test_a_page_that_cannot_be_made_is_a_503(caplog):
    """A failure of ours is told without its text, and is no error of the service."""
    telemetry = Telemetry(Settings(metrics_path="/metrics"))
    telemetry.page = lambda accept=None: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    app = FastAPI()
    instrument_app(app, telemetry)
    with caplog.at_level(logging.ERROR):
        answer = await ask(app, "GET", "/metrics")
    assert answer.status == 503
    assert b"division" not in answer.body
    assert "ZeroDivisionError" in caplog.text
    assert telemetry.errors == {}


@pytest.mark.parametrize("path", [None, "/other"])
async def test_there_is_no_page_unasked(path):
    """Without the setting, `/metrics` is the application's."""
    app = FastAPI()
    instrument_app(app, Telemetry(Settings(metrics_path=path)))
    assert (await ask(app, "GET", "/metrics")).status == 404


async def test_a_route_of_the_users_at_the_same_path_stays(caplog):
    """Where the application has a route at `metrics_path`, it stays, and a warning says so."""
    app = FastAPI()
    router = APIRouter(prefix="/internal")
    router.get("/metrics")(anything)
    telemetry = Telemetry(Settings(metrics_path="/internal/metrics"))
    instrument_app(app, telemetry)
    app.include_router(router)
    with caplog.at_level(logging.WARNING):
        answer = await ask(app, "GET", "/internal/metrics")
    assert json.loads(answer.body) == {"item_id": 0}
    assert "/internal/metrics" in caplog.text
    assert telemetry.requests == {("GET", "/internal/metrics", "200"): 1}


async def test_the_health_is_the_components(telemetry):
    """`/health` answers 200 while every component is healthy and 503 when one is not, and is no request."""
    app = FastAPI()
    instrument_app(app, telemetry)
    answer = await ask(app, "GET", "/health")
    assert (answer.status, json.loads(answer.body)) == (200, {"status": "healthy", "components": {}})
    telemetry.components = {"database": True, "model": False}
    answer = await ask(app, "GET", "/health")
    assert answer.status == 503
    assert json.loads(answer.body) == {"status": "unhealthy", "components": {"database": True, "model": False}}
    assert answer.headers[b"content-type"] == b"application/json"
    assert (await ask(app, "HEAD", "/health")).body == b""
    assert threading.get_ident() not in telemetry.threads
    assert telemetry.requests == {}
    assert telemetry.errors == {}
    assert telemetry.is_balanced
    assert (await ask(app, "POST", "/health")).status == 404


def health_as_route(app: FastAPI) -> None:
    app.get("/health")(lambda: "the user's")


def health_as_router(app: FastAPI) -> None:
    router = APIRouter()
    router.get("/health")(lambda: "the user's")
    app.include_router(router)


def health_as_catch_all(app: FastAPI) -> None:
    app.get("/{path:path}")(lambda path: "the user's")


def health_as_mount(app: FastAPI) -> None:
    app.mount("/", Starlette(routes=[Route("/health", lambda request: JSONResponse("the user's"))]))


@pytest.mark.parametrize("add", [health_as_route, health_as_router, health_as_catch_all, health_as_mount])
@pytest.mark.parametrize("later", [False, True])
async def test_the_health_shadows_no_route(add, later, telemetry):
    """A route of the user's that takes `/health` stays, whenever it is added, and its requests count."""
    app = FastAPI()
    instrument_app(app, telemetry)
    if later:
        await ask(app, "GET", "/first")
    add(app)
    assert json.loads((await ask(app, "GET", "/health")).body) == "the user's"
    assert telemetry.values(rows.API_REQUESTS, "status_code")["200"] == 1


async def test_the_health_is_found_below_a_root_path(telemetry):
    """A root_path before `/health` makes no difference."""
    app = FastAPI(root_path="/api")
    instrument_app(app, telemetry)
    assert (await ask(app, "GET", "/api/health")).status == 200
    assert (await ask(app, "GET", "/health")).status == 200
    assert (await ask(app, "GET", "/apihealth")).status == 404


async def test_the_health_can_be_left_out():
    """With `health_path=None` the path is the application's."""
    app = FastAPI()
    instrument_app(app, Telemetry(Settings(health_path=None)))
    assert (await ask(app, "GET", "/health")).status == 404


async def test_the_pages_are_no_part_of_the_schema():
    """OpenAPI names neither the page nor the health."""
    app = FastAPI()
    instrument_app(app, Telemetry(Settings(metrics_path="/metrics")))
    assert json.loads((await ask(app, "GET", "/openapi.json")).body)["paths"] == {}


async def test_the_pages_need_no_free_endpoint_thread(telemetry):
    """The health answers while every thread of the pool is taken by endpoints."""
    import anyio

    app = FastAPI()
    instrument_app(app, telemetry)
    limiter = anyio.to_thread.current_default_thread_limiter()
    taken = [object() for _ in range(int(limiter.total_tokens))]
    for each in taken:
        limiter.acquire_on_behalf_of_nowait(each)
    try:
        answer = await asyncio.wait_for(ask(app, "GET", "/health"), WAIT_S)
    finally:
        for each in taken:
            limiter.release_on_behalf_of(each)
    assert answer.status == 200


# --- Start and end ------------------------------------------------------------------------------------------


async def test_the_telemetry_lives_as_long_as_the_application(telemetry):
    """It starts before the user's own lifespan and ends after it; what that yields reaches the requests."""
    told = telemetry.asked

    @asynccontextmanager
    async def users(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        told.append("user's start")
        yield {"model": "loaded"}
        told.append("user's end")

    app = FastAPI(lifespan=users)

    @app.get("/")
    def read(request: Request) -> str:
        return request.state.model

    instrument_app(app, telemetry)
    assert told == []
    async with serving(app) as state:
        for _ in range(2):
            assert (await ask(app, "GET", "/", scope=scope_of("GET", "/") | {"state": state})).body == b'"loaded"'
    assert told == ["start", "user's start", "user's end", "shutdown"]
    assert threading.get_ident() not in telemetry.threads


async def test_handlers_of_start_and_end_run_as_before(telemetry):
    """on_startup and on_shutdown of the user's run between our start and our end."""
    told = telemetry.asked
    app = FastAPI(on_startup=[lambda: told.append("up")], on_shutdown=[lambda: told.append("down")])
    instrument_app(app, telemetry)
    async with serving(app):
        pass
    assert told == ["start", "up", "down", "shutdown"]


async def test_without_a_lifespan_the_first_request_starts_it(telemetry):
    """A server that runs no lifespan starts the telemetry with the first request, and only then."""
    app = FastAPI()
    app.get("/")(anything)
    instrument_app(app, telemetry)
    assert telemetry.asked == []
    for _ in range(3):
        await ask(app, "GET", "/")
    assert telemetry.asked == ["start"]


async def test_a_websocket_can_be_the_first(telemetry):
    """The first connection starts the telemetry, whatever it is."""
    app = FastAPI()

    @app.websocket("/")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    instrument_app(app, telemetry)
    await (await Socket(app, "/").connect()).running
    assert telemetry.asked == ["start"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here: run it on Linux or macOS")
async def test_a_forked_worker_starts_its_own(telemetry):
    """A worker that is forked after the application has started starts the telemetry again."""
    app = FastAPI()
    app.get("/")(anything)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/")
    from otel_mlops.web.requests import _Process

    before = _Process.token
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"same" if _Process.token is before else b"other")
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"other"
    _Process.renew()  # what the child has done
    await ask(app, "GET", "/")
    assert telemetry.asked == ["start", "start"]


async def test_a_telemetry_that_cannot_start_stops_nobody(telemetry, caplog):
    """A fault of ours at start and end is logged, and the application runs."""

    def fail(*arguments: object) -> None:
        raise OSError("no room")

    telemetry.start = telemetry.shutdown = fail
    app = FastAPI()
    app.get("/")(anything)
    instrument_app(app, telemetry)
    with caplog.at_level(logging.ERROR):
        async with serving(app):
            assert (await ask(app, "GET", "/")).status == 200
    assert caplog.text.count("no room") == 2


async def test_a_telemetry_that_hangs_stops_nobody(telemetry, caplog, monkeypatch):
    """A start or an end that takes too long is left behind, in a thread that keeps no process alive."""
    monkeypatch.setattr(lifespan, "START_TIMEOUT_S", 0.01)
    monkeypatch.setattr(lifespan, "SHUTDOWN_TIMEOUT_S", -0.99)
    ending, hanging = threading.Event(), []

    def hang(*arguments: object) -> None:
        hanging.append(threading.current_thread())
        ending.wait(WAIT_S)

    telemetry.start = telemetry.shutdown = hang
    app = FastAPI()
    instrument_app(app, telemetry)
    with caplog.at_level(logging.WARNING):
        async with serving(app):
            pass
    assert len(hanging) == 2
    assert all(thread.daemon for thread in hanging)
    assert len(caplog.records) == 2
    ending.set()
    for thread in hanging:
        thread.join(WAIT_S)


async def test_an_application_that_cannot_start_ends_the_telemetry(telemetry):
    """The telemetry is shut down when the user's lifespan fails, and the failure stays the user's."""

    @asynccontextmanager
    async def users(app: FastAPI) -> AsyncIterator[None]:
        raise LookupError("no model")
        yield

    app = FastAPI(lifespan=users)
    instrument_app(app, telemetry)
    with pytest.raises(LookupError, match="no model"):
        async with serving(app):
            pass
    assert telemetry.asked == ["start", "shutdown"]


async def test_applications_that_share_a_telemetry_end_it_together(telemetry):
    """Two applications in one process are both counted, and only the last to end shuts the telemetry down."""
    first, second = FastAPI(), FastAPI()
    first.get("/first")(anything)
    second.get("/second")(anything)
    instrument_app(first, telemetry)
    instrument_app(second, telemetry)
    async with serving(first):
        async with serving(second):
            await ask(second, "GET", "/second")
        assert "shutdown" not in telemetry.asked
        await ask(first, "GET", "/first")
    assert telemetry.asked == ["start", "start", "shutdown"]
    assert telemetry.values(rows.API_REQUESTS, "endpoint") == {"/first": 1, "/second": 1}


# --- instrument_app -----------------------------------------------------------------------------------------


async def test_instrumenting_again_changes_nothing(telemetry):
    """An application that is instrumented twice is counted once."""
    app = FastAPI()
    app.get("/")(anything)
    instrument_app(app, telemetry)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/")
    instrument_app(app, telemetry)  # also when it serves already
    assert telemetry.requests == {("GET", "/", "200"): 1}


async def test_a_mounted_application_that_is_instrumented_too_is_counted_once(telemetry):
    """A request that passes two instrumented applications is one request, with the whole template."""
    app, sub = FastAPI(), FastAPI()
    sub.get("/items/{item_id}")(anything)
    app.mount("/sub", sub)
    instrument_app(app, telemetry)
    instrument_app(sub, telemetry)
    await ask(app, "GET", "/sub/items/1")
    assert telemetry.requests == {("GET", "/sub/items/{item_id}", "200"): 1}
    assert telemetry.total(rows.API_REQUEST_DURATION)[0] == 1
    assert telemetry.is_balanced


def test_an_application_has_one_telemetry(telemetry):
    """A second telemetry for one application is an error that says what to do."""
    app = FastAPI()
    instrument_app(app, telemetry)
    with pytest.raises(RuntimeError, match="new application"):
        instrument_app(app, Telemetry())


@pytest.mark.parametrize("app", [None, "app", APIRouter(), opaque])
def test_what_is_no_application_is_refused(app, telemetry):
    """Anything but a FastAPI or Starlette application is a TypeError."""
    with pytest.raises(TypeError, match="expected a FastAPI or Starlette application"):
        instrument_app(app, telemetry)


async def test_a_call_after_the_first_request_says_what_to_do(telemetry):
    """An application that serves already cannot be instrumented, and the error says where to do it."""
    app = FastAPI()
    await ask(app, "GET", "/")
    with pytest.raises(RuntimeError, match=r"right after FastAPI\(\)"):
        instrument_app(app, telemetry)


async def test_a_call_in_the_lifespan_says_what_to_do(telemetry):
    """In the lifespan it is too late, and the error says where to do it."""

    @asynccontextmanager
    async def users(app: FastAPI) -> AsyncIterator[None]:
        instrument_app(app, telemetry)
        yield

    with pytest.raises(RuntimeError, match="not in the lifespan"):
        async with serving(FastAPI(lifespan=users)):
            pass


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_application_can_be_pickled(when):
    """An application is sent to another process whole, before it serves and after, and counts there."""
    app = FastAPI()
    app.get("/items/{item_id}")(anything)
    instrument_app(app, Telemetry(Settings(metrics_path="/metrics", instrumentation="none")))
    if when == "after":
        await ask(app, "GET", "/items/1")
    there = cloudpickle.loads(cloudpickle.dumps(app))
    assert (await ask(there, "GET", "/items/1")).status == 200
    assert there._otel_mlops.telemetry.requests == {("GET", "/items/{item_id}", "200"): 1}
    assert (await ask(there, "GET", "/metrics")).status == 200


async def test_an_application_with_fastapis_telemetry_can_be_pickled(telemetry):
    """The providers that FastAPI is given travel with the application."""
    app = FastAPI()
    app.get("/items/{item_id}")(anything)
    instrument_app(app, telemetry)
    there = cloudpickle.loads(cloudpickle.dumps(app))
    await ask(there, "GET", "/items/1")
    assert len(there._otel_mlops.telemetry.points("http.server.request.duration")) == 1


# --- Semantic conventions -----------------------------------------------------------------------------------

DURATION = "http.server.request.duration"


def routes_seen(telemetry: Telemetry) -> dict[str, int]:
    return {dict(key).get("http.route", ""): point.count for key, point in telemetry.points(DURATION).items()}


async def test_fastapi_reports_by_its_own_telemetry(telemetry):
    """With FastAPI's own telemetry each name comes from its scope, into our provider, without spans."""
    app, sub = FastAPI(), FastAPI()
    app.get("/items/{item_id}")(anything)
    sub.get("/items/{item_id}")(anything)
    app.mount("/sub", sub)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/items/1")
    await ask(app, "GET", "/sub/items/1")
    assert routes_seen(telemetry) == {"/items/{item_id}": 1, "/sub/items/{item_id}": 1}
    assert telemetry.scopes(DURATION) == {"fastapi"}
    assert telemetry.scopes("http.server.active_requests") == {"fastapi"}
    assert app._telemetry["tracer_provider"] is None


async def test_our_own_pages_are_not_in_fastapis_telemetry():
    """Scrapes and probes of ours are left out; a health of the user's own is not."""
    telemetry = Telemetry(Settings(metrics_path="/metrics"))
    ours, users = FastAPI(), FastAPI(telemetry={"exclude": lambda scope: scope["path"] == "/excluded"})
    users.get("/health")(anything)
    for app in (ours, users):
        instrument_app(app, telemetry)
        for path in ("/metrics", "/health", "/excluded"):
            await ask(app, "GET", path)
    assert routes_seen(telemetry) == {"": 1, "/health": 1}


async def test_what_the_user_gave_to_fastapi_stays(telemetry):
    """A provider of the user's own keeps what FastAPI reports."""
    reader = InMemoryMetricReader()
    app = FastAPI(telemetry={"meter_provider": StockMeterProvider((reader,), shutdown_on_exit=False)})
    app.get("/")(anything)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/")
    assert telemetry.points(DURATION) == {}
    assert reader.get_metrics_data() is not None
    assert telemetry.requests == {("GET", "/", "200"): 1}


@pytest.mark.parametrize(("api", "key"), [(otel_metrics, "meter"), (otel_trace, "tracer")])
def test_a_global_provider_of_somebody_elses_keeps_its_pipeline(api, key, monkeypatch):
    """Where another has set a global provider, FastAPI goes on reporting to it."""
    foreign = {"meter": StockMeterProvider(shutdown_on_exit=False), "tracer": TracerProvider(shutdown_on_exit=False)}[key]
    monkeypatch.setattr(api, f"get_{key}_provider", lambda: foreign)
    app = FastAPI()
    instrument_app(app, Telemetry(tracer_provider=TracerProvider(shutdown_on_exit=False)))
    assert app._telemetry[f"{key}_provider"] is None


def spans_of(exporter: InMemorySpanExporter) -> set[tuple[str, str]]:
    return {(span.instrumentation_scope.name, span.name) for span in exporter.get_finished_spans()}


def traced() -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


async def test_spans_come_where_an_exporter_of_traces_is():
    """With a tracer provider FastAPI makes spans, and our histograms carry their ids as exemplars."""
    provider, exporter = traced()
    telemetry = Telemetry(tracer_provider=provider)
    app = FastAPI()
    app.get("/items/{item_id}")(anything)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/items/1")
    assert ("fastapi", "GET /items/{item_id}") in spans_of(exporter)
    (point,) = telemetry.points(rows.API_REQUEST_DURATION.name).values()
    server = next(span for span in exporter.get_finished_spans() if span.name == "GET /items/{item_id}")
    assert [exemplar.span_id for exemplar in point.exemplars] == [server.context.span_id]


@pytest.mark.parametrize("given", [False, True])
async def test_none_means_none(given, monkeypatch):
    """With `none` FastAPI reports nothing to a global provider, mounted or not; the user's own is kept."""
    reader = InMemoryMetricReader()
    users = StockMeterProvider((reader,), shutdown_on_exit=False)
    telemetry = Telemetry(Settings(instrumentation="none"))
    monkeypatch.setattr(otel_metrics, "get_meter_provider", lambda: telemetry.meter_provider)
    app, sub = FastAPI(telemetry={"meter_provider": users} if given else None), FastAPI()
    sub.get("/")(anything)
    app.mount("/sub", sub)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/sub/")
    assert telemetry.points(DURATION) == {}
    assert (reader.get_metrics_data() is not None) == given
    assert telemetry.requests == {("GET", "/sub/", "200"): 1}


@pytest.fixture
def package(monkeypatch) -> Iterable[list[FastAPI]]:
    """OpenTelemetry's package as in a fresh process; the applications in the list are freed of it at the end."""
    stability = _semconv._OpenTelemetrySemanticConventionStability
    monkeypatch.setattr(stability, "_initialized", False)
    monkeypatch.setattr(stability, "_OTEL_SEMCONV_STABILITY_SIGNAL_MAPPING", {})
    monkeypatch.delenv("OTEL_SEMCONV_STABILITY_OPT_IN", raising=False)
    apps: list[FastAPI] = []
    yield apps
    for app in apps:
        FastAPIInstrumentor.uninstrument_app(app)


PACKAGE = "opentelemetry.instrumentation.fastapi"


async def test_opentelemetrys_package_reports_alone(package, monkeypatch):
    """With `opentelemetry` each name comes from the package, mounted or not, with no Host header in a label."""
    provider, exporter = traced()
    telemetry = Telemetry(Settings(instrumentation="opentelemetry"), tracer_provider=provider)
    monkeypatch.setattr(otel_metrics, "get_meter_provider", lambda: telemetry.meter_provider)
    app, sub = failing_app(), FastAPI()
    package.append(app)
    sub.get("/items/{item_id}")(anything)
    app.mount("/sub", sub)
    instrument_app(app, telemetry)
    for path in ("/raise/value", "/sub/items/1", "/plain/200"):
        await ask(app, "GET", path, headers={"host": "evil.example"})
    assert telemetry.scopes(DURATION) == {PACKAGE}
    assert sum(point.count for point in telemetry.points(DURATION).values()) == 3
    assert "evil" not in str(telemetry.points(DURATION))
    assert {scope for scope, _ in spans_of(exporter)} == {PACKAGE}
    assert not [name for _, name in spans_of(exporter) if name.endswith(("send", "receive"))]
    assert telemetry.requests == {
        ("GET", "/raise/{kind}", "500"): 1,
        ("GET", "/sub/items/{item_id}", "200"): 1,
        ("GET", "/plain/{code}", "200"): 1,
    }
    assert telemetry.errors == {("ValueError", "/raise/{kind}"): 1}
    assert "OTEL_SEMCONV_STABILITY_OPT_IN" not in os.environ


@pytest.mark.parametrize("order", ["package first", "package last"])
async def test_a_package_that_the_user_put_on_goes_along(order, package, telemetry, monkeypatch):
    """The package on an application by the user's own call, before or after ours, leaves one of each name."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    monkeypatch.setattr(otel_metrics, "get_meter_provider", lambda: telemetry.meter_provider)
    app, sub = failing_app(), FastAPI()
    package.append(app)
    sub.get("/items/{item_id}")(anything)
    app.mount("/sub", sub)
    if order == "package first":
        FastAPIInstrumentor.instrument_app(app, meter_provider=telemetry.meter_provider)
    instrument_app(app, telemetry)
    if order == "package last":
        FastAPIInstrumentor.instrument_app(app, meter_provider=telemetry.meter_provider)
    await ask(app, "GET", "/sub/items/1")
    await ask(app, "GET", "/raise/value")
    await ask(app, "GET", "/raise/busy")
    assert telemetry.scopes(DURATION) == {PACKAGE}
    assert telemetry.requests == {
        ("GET", "/sub/items/{item_id}", "200"): 1,
        ("GET", "/raise/{kind}", "500"): 1,
        ("GET", "/raise/{kind}", "503"): 1,
    }
    assert telemetry.errors == {("ValueError", "/raise/{kind}"): 1, ("Busy", "/raise/{kind}"): 1}
    assert telemetry.is_balanced


def test_a_choice_that_cannot_be_had_is_refused(monkeypatch):
    """What an application cannot have is an error at the call, and leaves the application as it was."""
    for wanted in ("fastapi", "opentelemetry"):
        app = Starlette()
        with pytest.raises(ValueError, match="only a FastAPI application"):
            instrument_app(app, Telemetry(Settings(instrumentation=wanted)))
        assert "build_middleware_stack" not in vars(app)
    old = FastAPI()
    del old._native_telemetry
    with pytest.raises(ValueError, match=r"0\.142"):
        instrument_app(old, Telemetry(Settings(instrumentation="fastapi")))
    monkeypatch.setattr("otel_mlops.web.conventions.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install opentelemetry-instrumentation-fastapi"):
        instrument_app(FastAPI(), Telemetry(Settings(instrumentation="opentelemetry")))


async def test_fastapi_still_has_the_names_we_rely_on():
    """The private names of FastAPI that are read or set are there."""
    app = FastAPI()
    assert {"meter_provider", "tracer_provider", "metrics", "tracing", "exclude"} <= set(app._telemetry)
    assert app._native_telemetry.config is app._telemetry
    app.include_router(router := APIRouter(), prefix="/v1")
    seen = {}

    @router.get("/x")
    def look(request: Request) -> None:
        seen.update(request.scope)

    await ask(app, "GET", "/v1/x")
    context = seen["fastapi"]["effective_route_context"]
    assert context.original_route is seen["route"]
    assert context.path_format == "/v1/x"
