"""What an application is given: pages, a start and an end; and when it cannot be."""

from __future__ import annotations

import asyncio
import copyreg
import json
import logging
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import cloudpickle
import pytest
from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.routing import Route

from otel_mlops import metrics as rows
from otel_mlops.web import instrument_app, lifespan, pages
from tests.asgi import (
    WAIT_S,
    Page,
    Settings,
    Socket,
    Telemetry,
    anything,
    ask,
    endpoint,
    opaque,
    scope_of,
    serving,
)


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


# --- Our own pages -------------------------------------------------------------------------------------------


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
    telemetry.page = lambda **_: 1 / 0  # type: ignore[method-assign, assignment, return-value]
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
    @app.get("/{path:path}")
    def take_all(path: str) -> str:
        return "the user's"


def health_as_mount(app: FastAPI) -> None:
    app.mount("/", Starlette(routes=[Route("/health", lambda _: JSONResponse("the user's"))]))


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
    app = FastAPI()
    instrument_app(app, telemetry)
    for root_path, path, status in (
        ("/api", "/api/health", 200),
        ("/api", "/health", 200),
        ("/api", "/apihealth", 404),
        ("/he", "/health", 200),
    ):
        assert (await ask(app, "GET", path, root_path=root_path)).status == status


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


@pytest.mark.parametrize("hangs", ["page", "health"])
async def test_a_page_that_hangs_is_a_503(hangs, monkeypatch, caplog):
    """A page that cannot be made in time is a 503, and what hangs are a few threads that keep no process alive."""
    monkeypatch.setattr(pages, "TIMEOUT_S", 0.05)
    telemetry = Telemetry(Settings(metrics_path="/metrics"))
    ending, hanging = threading.Event(), set()

    def hang(**_: object) -> None:
        hanging.add(threading.current_thread())
        assert ending.wait(WAIT_S)

    works = {"page": "/health", "health": "/metrics"}[hangs]
    path = {"page": "/metrics", "health": "/health"}[hangs]
    setattr(telemetry, hangs, hang)
    app = FastAPI()
    instrument_app(app, telemetry)
    async with asyncio.timeout(WAIT_S / 2):
        answers = await asyncio.gather(*(ask(app, "GET", path) for _ in range(20)))
        assert {answer.status for answer in answers} == {503}
        assert (await ask(app, "GET", works)).status == 200
    assert "takes longer than 0.05 s" in caplog.text
    assert len(hanging) == 4
    assert all(thread.daemon for thread in hanging)
    ending.set()
    for thread in hanging:
        thread.join(WAIT_S)
    delattr(telemetry, hangs)
    monkeypatch.setattr(pages, "TIMEOUT_S", WAIT_S)
    assert (await ask(app, "GET", path)).status == 200


async def test_an_exit_in_a_page_is_none_of_the_servers():
    """A callback that wants to exit makes a 503, and the event loop goes on."""
    telemetry = Telemetry(Settings(metrics_path="/metrics"))

    def leave(**_: object) -> Page:
        raise SystemExit

    telemetry.page = leave  # type: ignore[method-assign, assignment]
    app = FastAPI()
    instrument_app(app, telemetry)
    answer = await ask(app, "GET", "/metrics")
    assert (answer.error, answer.status) == (None, 503)


# --- Start and end -------------------------------------------------------------------------------------------


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
    assert told == ["start", "user's start", "user's end", "stop"]
    assert threading.get_ident() not in telemetry.threads


async def test_handlers_of_start_and_end_run_as_before(telemetry):
    """on_startup and on_shutdown of the user's run between our start and our end."""
    told = telemetry.asked
    app = FastAPI(on_startup=[lambda: told.append("up")], on_shutdown=[lambda: told.append("down")])
    instrument_app(app, telemetry)
    async with serving(app):
        pass
    assert told == ["start", "up", "down", "stop"]


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
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"other"
    os.waitpid(child, 0)  # noqa: ASYNC222  (it has said its last word)
    _Process.renew()  # what the child has done
    await ask(app, "GET", "/")
    assert telemetry.asked == ["start", "start"]


async def test_a_telemetry_that_cannot_start_stops_nobody(telemetry, caplog):
    """A fault of ours at start and end is logged, and the application runs."""

    def fail(*arguments: object) -> None:
        raise OSError("no room")

    telemetry.start = telemetry.stop = fail
    app = FastAPI()
    app.get("/")(anything)
    instrument_app(app, telemetry)
    with caplog.at_level(logging.ERROR):
        async with serving(app):
            assert (await ask(app, "GET", "/")).status == 200
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


async def test_a_telemetry_that_hangs_stops_nobody(telemetry, caplog, monkeypatch):
    """A start or an end that takes too long is left behind, in a thread that keeps no process alive."""
    monkeypatch.setattr(lifespan, "START_TIMEOUT_S", 0.01)
    monkeypatch.setattr(lifespan, "STOP_TIMEOUT_S", -0.99)
    ending, hanging = threading.Event(), []

    def hang(*arguments: object) -> None:
        hanging.append(threading.current_thread())
        ending.wait(WAIT_S)

    telemetry.start = telemetry.stop = hang
    app = FastAPI()
    instrument_app(app, telemetry)
    with caplog.at_level(logging.WARNING):
        async with asyncio.timeout(WAIT_S / 2), serving(app):
            pass
    assert len(hanging) == 2
    assert all(thread.daemon for thread in hanging)
    assert len(caplog.records) == 2
    ending.set()
    for thread in hanging:
        thread.join(WAIT_S)


@pytest.fixture
def no_thread_can_start(telemetry, monkeypatch) -> None:
    """A process that has all the threads it may have, once its telemetry is made."""

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)


@pytest.mark.usefixtures("no_thread_can_start")
async def test_a_process_without_a_thread_to_spare_serves(telemetry, caplog):
    """Where no thread can be started, the application answers as before, our pages say 503, and it is logged once."""
    telemetry.settings = Settings(metrics_path="/metrics")
    app = Starlette(routes=[Route("/", endpoint)])
    instrument_app(app, telemetry)
    for _ in range(3):
        answer = await ask(app, "GET", "/")
        assert (answer.error, answer.status) == (None, 200)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "can't start new thread" in caplog.text
    assert telemetry.requests == {("GET", "/", "200"): 3}
    for _ in range(9):  # more than there are places
        assert (await ask(app, "GET", "/metrics")).status == 503
    assert telemetry.asked == []


@pytest.mark.usefixtures("no_thread_can_start")
async def test_a_lifespan_without_a_thread_to_spare_runs(telemetry, caplog):
    """Where no thread can be started, the application starts and ends."""
    app = FastAPI()
    instrument_app(app, telemetry)
    async with serving(app):
        pass
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


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
    assert telemetry.asked == ["start", "stop"]


async def test_an_application_without_a_lifespan_leaves_none_open(telemetry):
    """An application that refuses the lifespan serves all the same, and another's end is still the last."""

    class Refuse:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await receive()
                raise NotImplementedError
            await self.app(scope, receive, send)

    refusing, other = FastAPI(), FastAPI()
    for app in (refusing, other):
        app.get("/")(anything)
        instrument_app(app, telemetry)
    refusing.add_middleware(Refuse)
    with pytest.raises(NotImplementedError):
        async with serving(refusing):
            pass
    assert (await ask(refusing, "GET", "/")).status == 200
    async with serving(other):
        pass
    assert telemetry.asked == ["start", "start", "start", "stop"]


async def test_a_request_after_the_end_starts_again(telemetry):
    """An application that is asked after its lifespan has ended asks its telemetry to start."""
    app = FastAPI()
    app.get("/")(anything)
    instrument_app(app, telemetry)
    async with serving(app):
        await ask(app, "GET", "/")
    await ask(app, "GET", "/")
    assert telemetry.asked == ["start", "stop", "start"]


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
        assert "stop" not in telemetry.asked
        await ask(first, "GET", "/first")
    assert telemetry.asked == ["start", "start", "stop"]
    assert telemetry.values(rows.API_REQUESTS, "endpoint") == {"/first": 1, "/second": 1}


# --- instrument_app ------------------------------------------------------------------------------------------


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


@pytest.fixture
def picklable_state(monkeypatch) -> None:
    """Starlette's State, which cannot be unpickled since its `__getattr__` asks for itself, can."""
    monkeypatch.setitem(copyreg.dispatch_table, State, lambda state: (State, (state._state,)))


@pytest.mark.usefixtures("picklable_state")
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


@pytest.mark.usefixtures("picklable_state")
async def test_an_application_with_fastapis_telemetry_can_be_pickled(telemetry):
    """The providers that FastAPI is given travel with the application."""
    app = FastAPI()
    app.get("/items/{item_id}")(anything)
    instrument_app(app, telemetry)
    there = cloudpickle.loads(cloudpickle.dumps(app))
    await ask(there, "GET", "/items/1")
    assert len(there._otel_mlops.telemetry.points("http.server.request.duration")) == 1


async def test_where_telemetry_is_disabled_only_the_pages_are_there():
    """With the SDK disabled nothing is measured, and what probes the health finds it."""
    telemetry = Telemetry(Settings(disabled=True))
    app = FastAPI()
    app.get("/")(anything)
    instrument_app(app, telemetry)
    assert (await ask(app, "GET", "/")).status == 200
    assert (await ask(app, "GET", "/health")).status == 200
    assert telemetry.requests == {}
    assert telemetry.asked == []
    assert app._telemetry["meter_provider"] is None
