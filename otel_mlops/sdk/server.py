"""The page on its own port: a small HTTP server in threads of its own, which waits for a port that is taken."""

from __future__ import annotations

import errno
import gzip
import logging
import re
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_mlops.sdk.page import Page

_logger = logging.getLogger(__name__)

_PAGES = ("/", "/metrics")
_PROBES = ("/-/healthy", "/-/ready")
_SOCKET_TIMEOUT_S = 5.0
_MOST_CONNECTIONS = 32
_RETRY_S = 1.0
_POLL_S = 0.2
_WORTH_COMPRESSING = 1024
_GZIP_REFUSED = re.compile(r"gzip\s*;\s*q=0(\.0*)?\s*(,|$)")


class PageServer:
    """Serves the page at `host`:`port` until it is stopped.

    A port that is taken costs the service nothing: it is said once, and tried again until it is free.
    """

    def __init__(self, page: Callable[[str | None], Page], host: str, port: int) -> None:
        self._page = page
        self._host = host
        self._wanted_port = port
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._http: _Http | None = None
        self.fault: str | None = None
        self.serving = threading.Event()

    @property
    def port(self) -> int:
        """The port it listens on, or would like to."""
        return self._http.server_address[1] if self._http is not None else self._wanted_port

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._host, self._host)
        return f"http://{host}:{self.port}/metrics"

    def start(self) -> None:
        """Listen now if the port is free, else as soon as it is."""
        if self._thread is not None:
            return
        self._stopping = threading.Event()
        self._listen()
        self._thread = threading.Thread(target=self._run, name="otel-mlops-page", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Stop listening and free the port, within the time."""
        self._stopping.set()
        http, thread = self._http, self._thread
        if http is not None and self.serving.is_set():
            http.shutdown()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
        if http is not None:
            http.server_close()
        self._http = self._thread = None
        self.serving.clear()

    def after_fork(self) -> None:
        """In a forked child: let go of the parent's socket, which would keep its port beyond its death."""
        if self._http is not None:
            self._http.socket.close()
        self._http = self._thread = None
        self.serving = threading.Event()
        self._stopping = threading.Event()

    def _listen(self) -> None:
        try:
            self._http = _Http(self._page, self._host, self._wanted_port)
        except (OSError, OverflowError) as error:
            self._say(error)
            return
        if self.fault is not None:
            _logger.info("the page is served on %s now", self.url)
        self.fault = None

    def _say(self, error: OSError | OverflowError) -> None:
        fault = str(error)
        if fault == self.fault:
            return
        self.fault = fault
        why = fault
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            why = "another program listens there; stop it, or set OTEL_EXPORTER_PROMETHEUS_PORT to a free port"
        _logger.error(
            "the page cannot be served on %s port %s: %s. The service runs on; trying again until it can.",
            self._host,
            self._wanted_port,
            why,
        )

    def _run(self) -> None:
        while self._http is None:
            if self._stopping.wait(_RETRY_S):
                return
            self._listen()
        self.serving.set()
        if not self._stopping.is_set():
            self._http.serve_forever(poll_interval=_POLL_S)


class _Http(ThreadingMixIn, HTTPServer):
    """A thread for each connection, and no more of them than a scraper needs."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, page: Callable[[str | None], Page], host: str, port: int) -> None:
        self.page = page
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without the look-up of the host's name that HTTPServer makes, which can block for seconds."""
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve in a thread, or close at once when there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        _logger.debug("a request for the page failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the page and two probes, and nothing else."""

    protocol_version = "HTTP/1.1"
    timeout = _SOCKET_TIMEOUT_S
    server: _Http

    def do_GET(self) -> None:
        """Answer with the page."""
        path = self.path.partition("?")[0]
        if path in _PAGES:
            self._send_page()
        elif path in _PROBES:
            self._send(HTTPStatus.OK, b"OK\n")
        else:
            self._send(HTTPStatus.NOT_FOUND, b"The page is at /metrics.\n")

    do_HEAD = do_GET  # noqa: N815  (http.server looks for this name)

    def _send_page(self) -> None:
        page = self.server.page(self.headers.get("Accept"))
        body, headers = page.body, {"Vary": "Accept, Accept-Encoding"}
        accepted = self.headers.get("Accept-Encoding", "").lower()
        if "gzip" in accepted and not _GZIP_REFUSED.search(accepted) and len(body) > _WORTH_COMPRESSING:
            # Level 1: the higher ones cost several times the page itself and save a tenth.
            body = gzip.compress(body, compresslevel=1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        self._send(HTTPStatus.OK, body, page.content_type, headers)

    def _send(
        self,
        status: HTTPStatus,
        body: bytes,
        content_type: str = "text/plain; charset=utf-8",
        headers: Any = None,
    ) -> None:
        self.close_connection = True
        self.send_response(status)
        for name, value in {
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse without echoing anything of the request."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self._send(status, f"{status.phrase}\n".encode(), headers={"Allow": "GET, HEAD"})

    def version_string(self) -> str:
        """Say nothing of versions."""
        return "otel-mlops"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name in the base class)
        """Scrapes are not worth a line each."""
        _logger.debug(format, *args)
