"""Requests as uvicorn brings them: connections that are kept, uploads in parts, clients that leave, websockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from websockets.sync.client import connect

from otel_mlops import metrics as rows
from otel_mlops.web import instrument_app
from tests.asgi import Page, Settings, Telemetry
from tests.servers import service

WAIT_S = 30.0
until = partial(service.until, wait_s=WAIT_S)


class HeldUp(Telemetry):
    """A telemetry whose page can be held up."""

    def __init__(self) -> None:
        super().__init__(Settings(metrics_path="/metrics"))
        self.is_asked, self.may_answer = threading.Event(), threading.Event()

    def page(self, accept: str | None = None) -> Page:
        self.is_asked.set()
        assert self.may_answer.wait(WAIT_S)
        return super().page(accept)


def service(state: dict[str, Any]) -> FastAPI:
    app = FastAPI()

    @app.get("/items/{item_id}")
    async def item(item_id: int) -> int:
        return item_id

    @app.post("/upload")
    async def upload(request: Request) -> int:
        state["uploading"].set()
        return len(await request.body())

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.Event().wait()

        return StreamingResponse(parts())

    @app.get("/slow")
    async def slow(request: Request) -> PlainTextResponse:
        state["slow"].set()
        while (await request.receive())["type"] != "http.disconnect":
            continue
        return PlainTextResponse("too late")

    @app.get("/deaf")
    def deaf() -> str:
        state["deaf"].set()
        assert state["may_answer"].wait(WAIT_S)
        return "too late"

    @app.get("/fails")
    async def fails() -> None:
        raise ValueError

    @app.websocket("/ws/{room}")
    async def talk(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    return app


@dataclass
class Served:
    """A service on a port, with what is told about it."""

    port: int
    telemetry: HeldUp
    state: dict[str, threading.Event]
    server: uvicorn.Server

    def get(self, path: str) -> tuple[int, bytes]:
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def open(self, request: bytes) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        client.sendall(request)
        return client


@pytest.fixture(params=["lifespan on", "lifespan off"])
def served(request) -> Iterator[Served]:
    telemetry = HeldUp()
    state = {name: threading.Event() for name in ("uploading", "slow", "deaf", "may_answer")}
    app = service(state)
    instrument_app(app, telemetry)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        lifespan = "on" if request.param == "lifespan on" else "off"
        config = uvicorn.Config(
            app, lifespan=lifespan, ws="websockets-sansio", log_config=None, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        until(lambda: server.started)
        if lifespan == "on":
            assert telemetry.asked == ["start"]
        yield Served(listening.getsockname()[1], telemetry, state, server)
        telemetry.may_answer.set()
        server.should_exit = True
        thread.join(WAIT_S)
    assert not thread.is_alive()
    assert [each for each in telemetry.asked if each != "page"] == (
        ["start", "stop"] if lifespan == "on" else ["start"]
    )
    assert telemetry.active == 0


def test_what_a_client_has_read_is_on_the_page(served):
    """After each answer that a client has read to its end, the page has it, on one connection as well."""
    with contextlib.closing(HTTPConnection("127.0.0.1", served.port, timeout=WAIT_S)) as kept:
        for number in range(1, 101):
            kept.request("GET", f"/items/{number}")
            assert kept.getresponse().read() == str(number).encode()
            assert served.telemetry.requests == {("GET", "/items/{item_id}", "200"): number}
            assert served.telemetry.active == 0


def test_an_upload_in_parts_has_its_size(served):
    """A chunked upload counts with the bytes of its parts."""
    with contextlib.closing(HTTPConnection("127.0.0.1", served.port, timeout=WAIT_S)) as client:
        client.request("POST", "/upload", body=iter([b"x" * 10_000, b"y" * 300]), encode_chunked=True)
        assert client.getresponse().read() == b"10300"
    assert served.telemetry.total(rows.API_REQUEST_SIZE) == (1, 10_300)


def test_a_client_that_leaves_in_a_stream(served):
    """A stream whose client goes away ends with the status that was sent, and is no error."""
    client = served.open(b"GET /stream HTTP/1.1\r\nhost: here\r\n\r\n")
    received = b""
    while b"first" not in received:
        received += client.recv(4096)
    assert served.telemetry.active == 1
    assert served.telemetry.requests == {}
    client.close()
    until(lambda: served.telemetry.requests == {("GET", "/stream", "200"): 1})
    until(lambda: served.telemetry.active == 0)
    assert served.telemetry.errors == {}


def test_a_client_that_leaves_before_its_answer(served):
    """A client that does not wait for its answer is a 499, and no error."""
    client = served.open(b"GET /slow HTTP/1.1\r\nhost: here\r\n\r\n")
    assert served.state["slow"].wait(WAIT_S)
    client.close()
    until(lambda: served.telemetry.requests == {("GET", "/slow", "499"): 1})
    assert served.telemetry.errors == {}


def test_a_client_that_leaves_unheard(served):
    """An endpoint that does not ask whether its client is there counts with the answer that it made."""
    client = served.open(b"GET /deaf HTTP/1.1\r\nhost: here\r\n\r\n")
    assert served.state["deaf"].wait(WAIT_S)
    client.close()
    until(lambda: not served.server.server_state.connections)
    assert served.telemetry.requests == {}
    served.state["may_answer"].set()
    until(lambda: served.telemetry.requests == {("GET", "/deaf", "200"): 1})
    assert served.telemetry.errors == {}


def test_a_client_that_leaves_in_its_upload(served):
    """An upload that breaks off is a 499, with the bytes that came, and no error."""
    client = served.open(b"POST /upload HTTP/1.1\r\nhost: here\r\ncontent-length: 100\r\n\r\nonly this")
    assert served.state["uploading"].wait(WAIT_S)
    client.close()
    until(lambda: served.telemetry.requests == {("POST", "/upload", "499"): 1})
    assert served.telemetry.total(rows.API_REQUEST_SIZE) == (1, len("only this"))
    assert served.telemetry.errors == {}


def test_a_failure_is_on_the_page_with_its_answer(served):
    """An unhandled exception is one error and one 500 once its client has the answer."""
    assert served.get("/fails") == (500, b"Internal Server Error")
    assert served.telemetry.requests == {("GET", "/fails", "500"): 1}
    assert served.telemetry.errors == {("ValueError", "/fails"): 1}


def test_websockets_are_connections(served):
    """Each open websocket is a connection, until it is closed or its client is gone without a word."""
    url = f"ws://127.0.0.1:{served.port}/ws/1"
    with connect(url) as polite, connect(url) as abrupt:
        for client in (polite, abrupt):
            client.send("hello")
            assert client.recv(WAIT_S) == "hello"
        assert served.telemetry.active == 2
        abrupt.socket.shutdown(socket.SHUT_RDWR)
        until(lambda: served.telemetry.active == 1)
    until(lambda: served.telemetry.active == 0)
    assert served.telemetry.requests == {}
    assert served.telemetry.errors == {}


def test_the_page_holds_up_no_request(served):
    """While the page is being made, requests are answered, and a scrape is no request."""
    answers: list[tuple[int, bytes]] = []
    scrape = threading.Thread(target=lambda: answers.append(served.get("/metrics")))
    scrape.start()
    assert served.telemetry.is_asked.wait(WAIT_S)
    assert served.get("/items/1") == (200, b"1")
    assert served.get("/health")[0] == 200
    assert answers == []
    assert served.telemetry.active == 0
    served.telemetry.may_answer.set()
    scrape.join(WAIT_S)
    assert answers == [(200, b"page for None\n")]
    assert served.telemetry.requests == {("GET", "/items/{item_id}", "200"): 1}
