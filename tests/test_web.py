"""When and how requests are counted: real applications, driven by raw ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse
from starlette.websockets import WebSocketDisconnect

from otel_mlops import metrics as rows
from otel_mlops.web import exchange, instrument_app
from tests.asgi import (
    WAIT_S,
    Message,
    Settings,
    Socket,
    Telemetry,
    anything,
    ask,
    failing_app,
    scope_of,
)
from tests.clock import Clock


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


# --- When a request is counted -------------------------------------------------------------------------------


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


async def test_failures_stand_at_0_before_the_first(telemetry):
    """With an endpoint's first answer comes its series of 500s, so that `increase` sees the first of them."""
    app = FastAPI()

    @app.get("/items/{item_id}")
    def item(item_id: str) -> str:
        return item_id

    instrument_app(app, telemetry)
    await ask(app, "GET", "/items/7")
    by_status = telemetry.values(rows.API_REQUESTS, "endpoint", "status_code")
    assert by_status == {("/items/{item_id}", "200"): 1, ("/items/{item_id}", "500"): 0}


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock(100.0)
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

    async def raw_app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": ((b"a", b"b"),)})
        await send({"type": "http.response.body"})

    app.mount("/raw", raw_app)

    instrument_app(app, telemetry)
    for _ in range(2):
        answer = await ask(app, "GET", "/")
        assert [value for name, value in answer.messages[0]["headers"] if name == b"x-process-time"] == [b"0.250000"]
    assert (await ask(app, "GET", "/fails")).headers[b"x-process-time"] == b"0.500000"
    raw = await ask(app, "GET", "/raw/x")
    assert raw.messages[0]["headers"] == [(b"a", b"b"), (b"x-process-time", b"0.000000")]


async def test_no_header_is_added_unasked(telemetry):
    """Without the setting an answer's messages are passed on as they are."""
    app = FastAPI()
    app.get("/")(anything)
    bare = await ask(app, "GET", "/")
    app = FastAPI()
    app.get("/")(anything)
    instrument_app(app, telemetry)
    assert (await ask(app, "GET", "/")).messages == bare.messages


# --- Sizes ---------------------------------------------------------------------------------------------------


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


async def test_what_is_refused_outside_the_users_middleware_is_counted(telemetry):
    """An answer that the framework gives before any middleware of the user's (FastAPI's 413) is on the page."""

    class Limited(FastAPI):
        def build_middleware_stack(self) -> Any:
            within = super().build_middleware_stack()

            async def limit(scope: Any, receive: Any, send: Any) -> None:
                is_long = len((await receive())["body"]) > 10
                await (PlainTextResponse("too long", 413) if is_long else within)(scope, receive, send)

            return limit

    app = Limited()
    app.post("/")(anything)
    instrument_app(app, telemetry)
    await ask(app, "POST", "/", body=[b"x" * 50])
    assert telemetry.requests == {("POST", "/", "413"): 1}


# --- Errors --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("with_user_middleware", [False, True])
@pytest.mark.parametrize(
    ("path", "status", "error_type"),
    [
        ("/raise/value", 500, "ValueError"),
        ("/wrong", 500, "ResponseValidationError"),
        ("/raise/http", 503, "HTTPException"),
        ("/raise/busy", 503, "Busy"),
        ("/raise/domain", 502, "DomainError"),
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
    answer = await ask(app, "GET", "/1", on_send=lambda _: seen.append(dict(telemetry.errors)))
    assert answer.error is raised
    assert seen == [{("ValueError", "/{item_id}"): 1}] * 2
    assert "secret" not in str(telemetry.points(rows.ERRORS.name))


async def test_the_status_of_a_users_last_handler_is_counted(telemetry):
    """A handler of the user's for all exceptions says the status; the exception is the error's class."""
    app = failing_app(exception_handlers={Exception: lambda *_: JSONResponse({}, 503)})
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


@pytest.mark.parametrize("handles_its_parent", [False, True])
@pytest.mark.parametrize("with_user_middleware", [False, True])
async def test_an_exception_that_several_layers_report_is_one_error(
    with_user_middleware, handles_its_parent, telemetry
):
    """An exception that a mounted application answers and raises again is one error of its class."""
    app, sub = FastAPI(), FastAPI()

    @sub.get("/boom")
    async def fail() -> None:
        raise KeyError

    if with_user_middleware:
        app.middleware("http")(lambda request, call_next: call_next(request))
    if handles_its_parent:
        # Too late for an answer, so it raises an exception of its own.
        app.exception_handler(LookupError)(lambda *_: JSONResponse({}, 404))
    app.mount("/sub", sub)
    instrument_app(app, telemetry)
    users = list(app.user_middleware)
    answer = await ask(app, "GET", "/sub/boom")
    assert app.user_middleware == users
    assert isinstance(answer.error, RuntimeError if handles_its_parent else KeyError)
    assert telemetry.requests == {("GET", "/sub/boom", "500"): 1}
    assert telemetry.errors == {("KeyError", "/sub/boom"): 1}


@pytest.mark.parametrize("path", ["/raise/busy", "/plain/503", "/sub/raise/value"])
async def test_an_answered_error_is_on_the_page(path, telemetry):
    """A client that has been answered 500 or above finds its error, whatever hides the exception from us."""
    app = FastAPI(routes=failing_app().routes)
    app.mount("/sub", failing_app())
    app.middleware("http")(lambda request, call_next: call_next(request))
    instrument_app(app, telemetry)
    at_the_end = []

    def note(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            at_the_end.append(sum(telemetry.errors.values()))

    await ask(app, "GET", path, on_send=note)
    assert at_the_end == [1]
    assert sum(telemetry.errors.values()) == 1


async def test_a_stream_without_a_class_that_breaks_is_one_error(telemetry):
    """An answer of 503 that nothing was raised for, and whose stream breaks, is one error of what broke it."""
    app = FastAPI()

    @app.get("/")
    def stream() -> StreamingResponse:
        def parts() -> Iterable[bytes]:
            yield b"one"
            raise ValueError

        return StreamingResponse(parts(), 503)

    instrument_app(app, telemetry)
    await ask(app, "GET", "/")
    assert telemetry.requests == {("GET", "/", "503"): 1}
    assert telemetry.errors == {("ValueError", "/"): 1}


async def test_an_error_that_a_middleware_makes_good_is_none(telemetry):
    """Where a middleware puts another answer in the place of a 503, what counts is the answer that was sent."""
    app = failing_app()

    @app.middleware("http")
    async def make_good(request: Request, call_next: Any) -> Any:
        answer = await call_next(request)
        return PlainTextResponse("from the cache") if answer.status_code == 503 else answer

    instrument_app(app, telemetry)
    assert (await ask(app, "GET", "/raise/busy")).status == 200
    assert telemetry.requests == {("GET", "/raise/{kind}", "200"): 1}
    assert telemetry.errors == {}


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
        {}["missing"]
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


# --- Clients that leave --------------------------------------------------------------------------------------


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

    @app.get("/", response_model=None)
    def say() -> PlainTextResponse | StreamingResponse:
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


# --- Websockets ----------------------------------------------------------------------------------------------


async def test_a_websocket_is_a_connection_while_it_is_open(telemetry):
    """An open websocket is one connection and no request."""
    app, afterwards = FastAPI(), asyncio.Event()

    @app.websocket("/ws/{room}")
    async def talk(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()
        await asyncio.wait_for(afterwards.wait(), WAIT_S)

    instrument_app(app, telemetry)
    first, second = await Socket(app, "/ws/1").connect(), await Socket(app, "/ws/2").connect()
    assert telemetry.active == 2
    await first.says("receive", text="hello")
    assert (await first.hears("send"))["text"] == "hello"
    await first.hears("close")
    assert telemetry.active == 1
    afterwards.set()
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
