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
    """Watches the messages of one request and counts it: once, right before the last of them is passed on.

    A request is one error at most: several layers may report the same fault, each in its own words.
    """

    __slots__ = (
        "_around",
        "_cause",
        "_headers",
        "_in_progress",
        "_is_error",
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
        self._is_finished = self._is_gone = self._is_error = False
        self._cause: str | None = None
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
            self._headers = message.get("headers", ())
            if not (self._is_gone or self._is_finished):
                self._status = status = message["status"]
                if status >= 500:
                    self.see()
                    if self._cause is not None:
                        self._count_error(self._cause)
            timing_header = self._metrics.timing_header
            if timing_header is not None:
                seconds = b"%.6f" % (perf_counter() - self._started)
                message = {**message, "headers": [*self._headers, (timing_header, seconds)]}
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

    def see(self) -> None:
        """Note the class of the exception that an answer of 500 and above is made of, if it can be seen.

        Frameworks answer an exception while they handle it, so it can be seen from where they answer: an
        HTTPException, what a handler of the user's made an answer of, and an unhandled one before its 500.
        """
        error = sys.exception()
        if error is not None and error is not self._around:
            self._cause = type(error).__name__

    def fail(self, error: BaseException) -> None:
        """Count an exception that nobody handled, unless it only says that the client left."""
        if error is self._lost or client_left(error) or not isinstance(error, Exception):
            # What is no Exception ends the task (a cancellation, an exit): nobody is answered.
            self._is_gone = True
            return
        if self._status is None and not self._is_gone:
            self._status = 500
        self._count_error(type(error).__name__)

    def _count_error(self, error_type: str) -> None:
        """Count the request as an error; only the first call does, however many layers report the same fault."""
        if not self._is_error:
            self._is_error = True
            self._metrics.count_error(error_type, self._scope, self._status)

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
                self._status = status = 500
        if status >= 500:
            # Not when it began: an exception that ends the request before its answer does tells the class.
            self._count_error(NO_CLASS)
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
        del self._scope, self._lost


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


class Witness:
    """The innermost middleware, for an application with one that runs what it wraps in a task of its own.

    From outside of that task nobody sees which exception an answer is made of; from here it can be seen.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and tell its exchange what it sees."""
        exchange = scope.get(EXCHANGE)
        if not isinstance(exchange, Exchange):
            await self.app(scope, receive, send)
            return

        async def see_and_send(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 500:
                exchange.see()
            await send(message)

        await self.app(scope, receive, see_and_send)
