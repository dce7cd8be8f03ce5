"""A request to the page's port and its answer: HTTP within limits of size and time."""

from __future__ import annotations

import gzip
import io
import logging
import re
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from http import HTTPStatus
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from otel_mlops.sdk.page import Page

_logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 5.0
"""How long a request may take to arrive, however slowly it comes."""

ANSWER_TIMEOUT_S = 10.0
"""How long a client may take to receive its answer."""

_PAGES = ("/", "/metrics")
_PROBES = ("/-/healthy", "/-/ready")
_WELCOME = b'<!doctype html><title>otel-mlops</title><p>The page is at <a href="/metrics">/metrics</a>.\n'
_MOST_REQUEST_BYTES = 128 * 1024
_MOST_UNREAD_BYTES = 1024 * 1024
_UNREAD_TIMEOUT_S = 1.0
_WORTH_COMPRESSING_BYTES = 1024
_GZIP = re.compile(r"\s*(x-)?gzip\s*(;\s*q=(?P<q>[\d.]+)\s*)?", re.IGNORECASE)


class Server(Protocol):
    """Who makes the page."""

    def make_page(self, accept: str | None) -> Page | None:
        """The page in the format that an Accept header prefers; None if it cannot be made."""

    def busy(self, connection: socket.socket) -> AbstractContextManager[None]:
        """A `with` block during which a connection does not make room for another."""


class _Arriving(io.RawIOBase):
    """What a client sends, until it is too much or takes too long."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._until = time.monotonic() + REQUEST_TIMEOUT_S
        self._left = _MOST_REQUEST_BYTES

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is, within what is left of time and size."""
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if self._left <= 0:
            raise LineTooLong("request")
        self._connection.settimeout(left_s)
        count = self._connection.recv_into(buffer)
        self._left -= count
        return count


class Scrape(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the page and two probes, and nothing else."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # so that what is no HTTP at all is answered with a status too
    disable_nagle_algorithm = True
    timeout = REQUEST_TIMEOUT_S
    server: Server  # type: ignore[assignment]

    def setup(self) -> None:
        """Read within limits."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Arriving(self.connection))

    def do_GET(self) -> None:
        """Answer with the page."""
        path = _path(self.path)
        if path == "/" and "text/html" in self._header("Accept"):
            self._send(HTTPStatus.OK, _WELCOME, {"Content-Type": "text/html; charset=utf-8", "Vary": "Accept"})
        elif path in _PAGES:
            with self.server.busy(self.connection):
                answer = self._page_as_asked()
            self._send(*answer)
        elif path in _PROBES:
            self._send(HTTPStatus.OK, b"OK\n")
        else:
            self._send(HTTPStatus.NOT_FOUND, b"The page is at /metrics.\n")

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _page_as_asked(self) -> tuple[HTTPStatus, bytes, Mapping[str, str]]:
        page = self.server.make_page(self._header("Accept"))
        if page is None:
            return HTTPStatus.SERVICE_UNAVAILABLE, b"The page could not be made.\n", {}
        body, headers = page.body, {"Content-Type": page.content_type, "Vary": "Accept, Accept-Encoding"}
        if len(body) > _WORTH_COMPRESSING_BYTES and _accepts_gzip(self._header("Accept-Encoding")):
            # Level 1: the higher ones cost several times the page itself and save a tenth.
            body = gzip.compress(body, compresslevel=1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        return HTTPStatus.OK, body, headers

    def _send(self, status: HTTPStatus, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.close_connection = True
        self.connection.settimeout(ANSWER_TIMEOUT_S)
        self.send_response(status)
        every = {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Connection": "close",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in {**every, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse without echoing anything of the request."""
        status, headers = HTTPStatus(code), {}
        if status == HTTPStatus.NOT_IMPLEMENTED:
            status, headers = HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET, HEAD"}
        self._send(status, f"{status.phrase}\n".encode(), headers)
        self._let_the_client_finish()

    def _let_the_client_finish(self) -> None:
        """Read on for a moment: closing over what is unread would reset the connection before it is read."""
        # It fails where the client is gone or says nothing more, and then there is nothing to wait for.
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            until, left = time.monotonic() + _UNREAD_TIMEOUT_S, _MOST_UNREAD_BYTES
            while left > 0 and (left_s := until - time.monotonic()) > 0:
                self.connection.settimeout(left_s)
                left -= len(self.connection.recv(65_536)) or left

    def _header(self, name: str) -> str:
        return ", ".join(self.headers.get_all(name, ()))

    def version_string(self) -> str:
        """Say nothing of versions."""
        return "otel-mlops"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Scrapes are not worth a line each."""
        _logger.debug(format, *args)


def _path(target: str) -> str:
    """The path of a request's target, which is a whole URL where a proxy sends it on."""
    return re.sub(r"^https?://[^/?]*", "", target).partition("?")[0] or "/"


def _accepts_gzip(header: str) -> bool:
    found = [match for part in header.split(",") if (match := _GZIP.fullmatch(part))]
    return any((match["q"] or "1").strip("0.") for match in found)
