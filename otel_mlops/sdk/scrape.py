"""A request to the page's port and its answer: HTTP within limits of size and time."""

from __future__ import annotations

import io
import logging
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from http import HTTPStatus
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Protocol

from otel_mlops.people import CONTENT_TYPE, people_page
from otel_mlops.sdk.text import prefers_html
from otel_mlops.sdk.tls import say_goodbye

if TYPE_CHECKING:
    from otel_mlops.people import PeoplePage
    from otel_mlops.sdk.connections import Connection
    from otel_mlops.sdk.passwords import Refusal
    from otel_mlops.sdk.sharing import SharedPage
    from otel_mlops.sdk.web_config import WebConfig

_logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 5.0
"""How long a request may take to arrive, however slowly it comes."""

ANSWER_TIMEOUT_S = 10.0
"""In each time of this length a client must take a part of its answer, at SLOWEST_BYTES_PER_S."""

SLOWEST_BYTES_PER_S = 64 * 1024
"""A client that takes its answer more slowly is sent away."""

_PAGES = ("/", "/metrics")
_PROBES = ("/-/healthy", "/-/ready")
_MOST_REQUEST_BYTES = 128 * 1024
_MOST_UNREAD_BYTES = 16 * 1024 * 1024
_UNREAD_TIMEOUT_S = 1.0
_PART_BYTES = 64 * 1024
_WORTH_COMPRESSING_BYTES = 1024
_GZIP = re.compile(r"\s*(x-)?gzip\s*(;\s*q=(?P<q>[\d.]+)\s*)?", re.IGNORECASE)

Headers = Sequence[tuple[str, str]]


class TooSlowError(Exception):
    """A client sends its request, or takes its answer, more slowly than is allowed."""


class Server(Protocol):
    """Who makes the page, and says who may read it."""

    def share_page(self, accept: str) -> SharedPage | None:
        """The page in the format that an Accept header prefers; None if it cannot be made."""

    def admit(self, config: WebConfig, authorization: list[str], host: str) -> Refusal | None:
        """Why a request is not answered, or None."""

    def busy(self, connection: Connection) -> AbstractContextManager[None]:
        """A `with` block during which a connection does not make room for another."""

    def begin_to_send(self, connection: Connection, body: bytes) -> None:
        """Note that a body is being sent."""

    def refused(self, reason: str) -> None:
        """Note that a client was sent away."""


class _Arriving(io.RawIOBase):
    """What a client sends, until it is too much or takes too long."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._until_s = time.monotonic() + REQUEST_TIMEOUT_S
        self._left = _MOST_REQUEST_BYTES

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is, within what is left of time and size."""
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TooSlowError
        if self._left <= 0:
            raise LineTooLong("request")
        self._connection.socket.settimeout(left_s)
        try:
            count = self._connection.socket.recv_into(buffer)
        except TimeoutError as error:
            raise TooSlowError from error
        if self._left == _MOST_REQUEST_BYTES:
            # The rest is on the way. Not so with each part, or who sends them one by one would keep its place.
            self._connection.came_s = time.monotonic()
        elif not count:
            # http.server would take what has come for all of it.
            raise ConnectionAbortedError("the client left in the middle of its request")
        self._left -= count
        return count


class _Departing(io.RawIOBase):
    """What a client is sent, as long as it takes it fast enough."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._until_s = time.monotonic() + ANSWER_TIMEOUT_S
        self._taken = 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Send all of it."""
        left = memoryview(data)
        while left:
            count = self._send(left[:_PART_BYTES])
            self._taken += count
            left = left[count:]
        return len(data)

    def _send(self, part: memoryview) -> int:
        """Send what can be sent now; 0 where that is nothing within the time, at whose end it is looked at."""
        now_s = time.monotonic()
        if now_s >= self._until_s:
            if self._taken < SLOWEST_BYTES_PER_S * ANSWER_TIMEOUT_S:
                raise TooSlowError
            self._until_s, self._taken = now_s + ANSWER_TIMEOUT_S, 0
        self._connection.socket.settimeout(self._until_s - now_s)
        try:
            count = self._connection.socket.send(part)
        except TimeoutError:
            return 0
        self._connection.moved_s = time.monotonic()
        return count


class Scrape(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the page and two probes, and nothing else."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # so that what is no HTTP at all is answered with a status too
    server: Server  # type: ignore[assignment]

    def __init__(self, connection: Connection, server: Server, config: WebConfig) -> None:
        self._from = connection
        self._config = config
        self._work = ExitStack()
        """Holds the connection's place from the request's last byte to the answer's first."""
        super().__init__(connection.socket, (connection.host, 0), server)  # type: ignore[arg-type]

    def setup(self) -> None:
        """Read and write within limits."""
        self.connection = self._from.socket
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.rfile = io.BufferedReader(_Arriving(self._from))
        self.wfile = _Departing(self._from)  # type: ignore[assignment]  # it needs no more than to write

    def parse_request(self) -> bool:
        """Read the request's headers, and let in who may read the page, whatever it is that they ask for."""
        if not super().parse_request():
            return False
        self._work.enter_context(self.server.busy(self._from))
        refusal = self.server.admit(self._config, self.headers.get_all("Authorization", []), self._from.host)
        if refusal is None:
            return True
        self._refuse(refusal.status, refusal.reason, refusal.headers)
        return False

    def handle_expect_100(self) -> bool:
        """Do not ask for a body, which nobody wants."""
        return True

    def do_GET(self) -> None:
        """Answer with the page, at `/` with the one for people where HTML is preferred."""
        path = _path(self.path)
        people = people_page() if path == "/" and prefers_html(self._header("Accept")) else None
        if people is not None:
            self._send(HTTPStatus.OK, *self._for_people(people))
        elif path in _PAGES:
            self._send(*self._page_as_asked())
        elif path in _PROBES:
            self._send(HTTPStatus.OK, b"OK\n")
        else:
            self._send(HTTPStatus.NOT_FOUND, b"The page is at /metrics.\n")

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _for_people(self, people: PeoplePage) -> tuple[bytes, Headers]:
        configured = (self._config.headers or {}).get("Content-Security-Policy")
        headers = [
            ("Content-Type", CONTENT_TYPE),
            # Two policies are both in force: what the web.config.yml forbids is forbidden here too.
            ("Content-Security-Policy", f"{people.policy}, {configured}" if configured else people.policy),
            ("Referrer-Policy", "no-referrer"),
        ]
        return self._packed(people.body, headers, lambda: people.compressed)

    def _page_as_asked(self) -> tuple[HTTPStatus, bytes, Headers]:
        shared = self.server.share_page(self._header("Accept"))
        if shared is None:
            return HTTPStatus.SERVICE_UNAVAILABLE, b"The page could not be made.\n", ()
        headers = [("Content-Type", shared.page.content_type)]
        return HTTPStatus.OK, *self._packed(shared.page.body, headers, shared.compressed)

    def _packed(self, body: bytes, headers: Headers, compressed: Callable[[], bytes]) -> tuple[bytes, Headers]:
        headers = [*headers, ("Vary", "Accept, Accept-Encoding")]
        if len(body) > _WORTH_COMPRESSING_BYTES and _accepts_gzip(self._header("Accept-Encoding")):
            return compressed(), [*headers, ("Content-Encoding", "gzip")]
        return body, headers

    def _send(self, status: HTTPStatus, body: bytes, headers: Headers = ()) -> None:
        self.close_connection = True
        self.send_response(status)
        every: Mapping[str, str] = {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Connection": "close",
            "X-Content-Type-Options": "nosniff",
            **(self._config.headers or {}),
        }
        named = {name for name, _ in headers}
        for name, value in (*((name, value) for name, value in every.items() if name not in named), *headers):
            self.send_header(name, value)
        self.server.begin_to_send(self._from, b"" if self.command == "HEAD" else body)
        self._work.close()
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        say_goodbye(self.connection)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse without echoing anything of the request."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "request", [("Allow", "GET, HEAD")])
        else:
            self._refuse(HTTPStatus(code), "request", ())

    def _refuse(self, status: HTTPStatus, reason: str, headers: Headers) -> None:
        self.server.refused(reason)
        self._send(status, f"{status.phrase}\n".encode(), headers)
        self._from.body = b""  # from here on it may make room
        let_the_client_finish(self.connection)

    def _header(self, name: str) -> str:
        return ", ".join(self.headers.get_all(name, ()))

    def version_string(self) -> str:
        """Say nothing of versions."""
        return "otel-mlops"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Scrapes are not worth a line each."""
        _logger.debug(format, *args)


def let_the_client_finish(connection: socket.socket) -> None:
    """Read on for a moment: closing over what is unread would reset the connection before the answer is read."""
    # It fails where the client is gone or says nothing more, and then there is nothing to wait for. With the plain
    # socket's methods, as what comes is not looked at.
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_WR)
        until_s, left = time.monotonic() + _UNREAD_TIMEOUT_S, _MOST_UNREAD_BYTES
        while left > 0 and (left_s := until_s - time.monotonic()) > 0:
            connection.settimeout(left_s)
            left -= len(socket.socket.recv(connection, 65_536)) or left


def _path(target: str) -> str:
    """The path of a request's target, which is a whole URL where a proxy sends it on."""
    return re.sub(r"^https?://[^/?]*", "", target).partition("?")[0] or "/"


def _accepts_gzip(header: str) -> bool:
    found = [match for part in header.split(",") if (match := _GZIP.fullmatch(part))]
    return any((match["q"] or "1").strip("0.") for match in found)
