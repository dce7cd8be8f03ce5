"""One HTTP request and its answer, as they pass by."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from otel_mlops.web.routes import Scope

if TYPE_CHECKING:
    from otel_mlops.web.requests import RequestMetrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

EXCHANGE = "otel_mlops.exchange"
"""Where a scope keeps its exchange; its presence says that an outer application counts this one already."""

CLIENT_CLOSED = 499
"""The status of a request whose client left before an answer began: nginx's number for it."""

NO_CLASS = "HTTPException"
"""The error type of a response of 500 and above behind which no exception can be seen."""

_OTHER = "_OTHER"
"""What stands for every method that is none of the known ones."""


class Exchange:
    """Watches the messages of one request and counts it: once, right before the last of them is passed on."""

    __slots__ = (
        "_around",
        "_error",
        "_headers",
        "_in_progress",
        "_is_finished",
        "_is_gone",
        "_lost",
        "_method",
        "_metrics",
        "_receive",
        "_received",
        "_scope",
        "_send",
        "_sent",
        "_started",
        "_status",
    )

    def __init__(self, metrics: RequestMetrics, scope: Scope, receive: Receive, send: Send) -> None:
        self._started = perf_counter()
        self._metrics = metrics
        self._scope = scope
        self._receive = receive
        self._send = send
        self._method = scope["method"]
        in_progress = metrics.in_progress.get(self._method)
        if in_progress is None:
            self._method = _OTHER
            in_progress = metrics.in_progress[_OTHER]
        self._in_progress = in_progress
        self._status: int | None = None
        self._headers: Any = ()
        self._received = self._sent = 0.0
        self._is_finished = self._is_gone = False
        self._error: BaseException | None = None
        self._lost: OSError | None = None
        # Whoever calls the application in an `except` block handles an exception that is not ours.
        self._around = sys.exception()
        scope[EXCHANGE] = self
        in_progress.add(1.0)
        metrics.active.add(1.0)

    async def receive(self) -> Message:
        """Pass a message of the client's on, and count its bytes."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._received += len(message.get("body") or b"")
        elif message["type"] == "http.disconnect":
            self._is_gone = True
        return message

    async def send(self, message: Message) -> None:
        """Pass a message of the application's on; the request is counted before its last one."""
        kind = message["type"]
        if kind == "http.response.body":
            body = message.get("body")
            if body:
                self._sent += body.nbytes if isinstance(body, memoryview) else len(body)
            if not message.get("more_body", False):
                self.finish()
        elif kind == "http.response.start":
            message = self._begin(message)
        elif kind == "http.response.pathsend":
            self._sent = _content_length(self._headers)
            self.finish()
        try:
            await self._send(message)
        except OSError as error:
            # ASGI's way to say that the client is gone.
            self._lost = error
            self._is_gone = True
            raise

    def _begin(self, message: Message) -> Message:
        """Note the status of the answer that begins now, and what made it an error."""
        self._headers = message.get("headers", ())
        if not (self._is_gone or self._is_finished):
            status = message["status"]
            if status < 500:
                self._status = status
            else:
                self._note_server_error(status)
        timing_header = self._metrics.timing_header
        if timing_header is None:
            return message
        seconds = b"%.6f" % (perf_counter() - self._started)
        return {**message, "headers": [*self._headers, (timing_header, seconds)]}

    def _note_server_error(self, status: int) -> None:
        # Frameworks answer an exception while they handle it, so it can be seen from here: an HTTPException,
        # what a handler of the user's made an answer of, and an unhandled one before its 500 is passed on.
        error = sys.exception()
        if error is self._around:
            error = None
        self._status = status
        self._error = error
        name = NO_CLASS if error is None else type(error).__name__
        self._metrics.count_error(name, self._scope, status)

    def fail(self, error: BaseException) -> None:
        """Count an exception that nobody handled: once, and not if it only says that the client left."""
        if error is self._error:
            return
        if error is self._lost or client_left(error) or not isinstance(error, Exception):
            # What is no Exception ends the task (a cancellation, an exit): nobody is answered.
            self._is_gone = True
            return
        self._error = error
        if self._status is None and not self._is_gone:
            self._status = 500
        self._metrics.count_error(type(error).__name__, self._scope, self._status)

    def finish(self) -> None:
        """Count the request; only the first call does."""
        if self._is_finished:
            return
        seconds = perf_counter() - self._started
        self.withdraw()
        metrics, method, status = self._metrics, self._method, self._status
        if status is None:
            status = CLIENT_CLOSED
            if not self._is_gone:
                # The application returned without a word, and its server answers for it.
                status = 500
                metrics.count_error(NO_CLASS, self._scope, status)
        key = method, metrics.templates.of(self._scope, status)
        series = metrics.series.get(key) or metrics.bind_series(*key)
        (series.by_status.get(status) or series.bind_status(status)).add(1.0)
        series.duration.record(seconds)
        series.received.record(self._received)
        # Servers leave out the body of an answer to HEAD.
        series.sent.record(0.0 if method == "HEAD" else self._sent)

    def withdraw(self) -> None:
        """End the exchange uncounted: our own pages are no requests of the service."""
        if not self._is_finished:
            self._is_finished = True
            self._in_progress.add(-1.0)
            self._metrics.active.add(-1.0)

    def close(self) -> None:
        """Count what was not answered to the end, and let go of what would make a cycle."""
        self.finish()
        del self._scope, self._error, self._lost


def client_left(error: BaseException) -> bool:
    """Whether an exception says no more than that the client is gone."""
    from starlette.requests import ClientDisconnect
    from starlette.websockets import WebSocketDisconnect

    if isinstance(error, BaseExceptionGroup):
        return all(client_left(each) for each in error.exceptions)
    return isinstance(error, ClientDisconnect | WebSocketDisconnect)


def _content_length(headers: Any) -> int:
    for name, value in headers:
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return 0
