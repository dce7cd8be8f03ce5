"""The page on its own port: a small HTTP server in threads of its own, which waits for a port that is taken."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.client import LineTooLong
from typing import TYPE_CHECKING, Any

from otel_mlops.sdk.scrape import Scrape

if TYPE_CHECKING:
    from otel_mlops.sdk.page import Page

_logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 32
"""How many connections there are at a time; a further one takes the place of the one that has waited longest."""

_RETRY_S = 1.0
_LOOK_S = 0.2
_PAUSE_S = 0.1


class PageServer:
    """Serves the page at `host`:`port` until it is stopped.

    A port that is taken costs the service nothing: it is said once, and tried again until it is free.
    """

    def __init__(self, page: Callable[[str | None], Page], host: str, port: int) -> None:
        self._page = page
        self._host = host
        self._wanted_port = port
        self.port = port
        """The port it listens on, or has listened on last; before that the one it would like to have."""
        self._begin()

    def _begin(self) -> None:
        self.fault: str | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None
        self._connections = _Connections()
        self._page_fails = False
        self.serving = threading.Event()

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104 - nothing is bound
        return f"http://{f'[{here}]' if ':' in here else here}:{self.port}/metrics"

    def start(self) -> None:
        """Listen now if the port is free, else as soon as it is."""
        if self._thread is not None:
            return
        self._begin()
        self._listen()
        thread = threading.Thread(target=self._run, args=(self._stopping,), name="otel-mlops-page", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self.fault = str(error)
            _logger.exception("the page is not served: no thread can be started")
            self._close()
        else:
            self._thread = thread

    def stop(self, timeout_s: float) -> None:
        """Stop listening and free the port, within the time; a page that is being made is still sent."""
        self._stopping.set()
        thread, listener = self._thread, self._listener
        if listener is not None:
            # Wakes the thread at once on Linux; elsewhere this fails, and it looks up by itself in a moment.
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
        self._connections.end_waiting()
        self._thread = None

    def after_fork(self) -> None:
        """In a forked child: let go of the parent's sockets, which would keep its port beyond its death."""
        self._close()
        self._connections.close()
        self._begin()

    def make_page(self, accept: str | None) -> Page | None:
        """The page in the format that an Accept header prefers; None if it cannot be made, which is said once."""
        try:
            page = self._page(accept)
        except Exception:
            if not self._page_fails:
                self._page_fails = True
                _logger.exception("the page could not be made; said once until it can")
            return None
        self._page_fails = False
        return page

    def busy(self, connection: socket.socket) -> AbstractContextManager[None]:
        """A `with` block during which a connection does not make room for another."""
        return self._connections.busy(connection)

    def _listen(self) -> None:
        try:
            self._listener = _bind(self._host, self._wanted_port)
            self.port = self._listener.getsockname()[1]
        except (OSError, OverflowError, UnicodeError) as error:
            self._say(error)
            return
        if self.fault is not None:
            _logger.info("the page is served on %s now", self.url)
        self.fault = None

    def _say(self, error: Exception) -> None:
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

    def _run(self, stopping: threading.Event) -> None:
        try:
            while self._listener is None:
                if stopping.wait(_RETRY_S):
                    return
                self._listen()
            if not stopping.is_set():
                self.serving.set()
            self._accept(self._listener, stopping)
        finally:
            self.serving.clear()
            self._close()

    def _accept(self, listener: socket.socket, stopping: threading.Event) -> None:
        fails = False
        while not stopping.is_set():
            try:
                connection, address = listener.accept()
            except OSError as error:
                if isinstance(error, TimeoutError):
                    continue  # nobody came
                if not fails and not stopping.is_set():
                    fails = True
                    _logger.warning("no connection to the page can be taken: %s; said once until one can", error)
                # Out of file descriptors, say: asking again at once would keep a CPU busy.
                stopping.wait(_PAUSE_S)
                continue
            fails = False
            if self._connections.enter(connection):
                self._answer_beside(connection, address)

    def _answer_beside(self, connection: socket.socket, address: Any) -> None:
        thread = threading.Thread(
            target=self._answer, args=(connection, address), name="otel-mlops-page-request", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            _logger.debug("no thread can be started for a request: %s", error)
            self._connections.leave(connection)

    def _answer(self, connection: socket.socket, address: Any) -> None:
        connections = self._connections
        try:
            Scrape(connection, address, self)  # type: ignore[arg-type]
        except (OSError, LineTooLong) as error:
            _logger.debug("a client of the page went away or was sent away: %s", error)
        except Exception:
            _logger.exception("a request for the page failed")
        finally:
            connections.leave(connection)

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()


class _Connections:
    """The connections there are, oldest first, and which of them may make room for another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: dict[socket.socket, bool] = {}

    def enter(self, connection: socket.socket) -> bool:
        """Take a connection in, or close it if there are too many and every one is being worked on.

        Clients that connect and say nothing must not keep a scraper out, so the oldest of them goes.
        """
        with self._lock:
            if len(self._waits) >= MOST_CONNECTIONS:
                oldest = next((each for each, waits in self._waits.items() if waits), None)
                if oldest is None:
                    connection.close()
                    return False
                del self._waits[oldest]
                _end(oldest)
            self._waits[connection] = True
            return True

    def leave(self, connection: socket.socket) -> None:
        """Close a connection."""
        with self._lock:
            self._waits.pop(connection, None)
            _end(connection)
            connection.close()

    @contextmanager
    def busy(self, connection: socket.socket) -> Iterator[None]:
        """While the page is made nothing can end the thread, so the connection keeps its place."""
        self._set(connection, waits=False)
        try:
            yield
        finally:
            self._set(connection, waits=True)

    def end_waiting(self) -> None:
        """End those on which nothing is being done."""
        with self._lock:
            for connection, waits in self._waits.items():
                if waits:
                    _end(connection)

    def close(self) -> None:
        """In a forked child: close what is the parent's, which goes on with its own copies."""
        for connection in self._waits:
            connection.close()

    def _set(self, connection: socket.socket, *, waits: bool) -> None:
        with self._lock:
            if connection in self._waits:
                self._waits[connection] = waits


def _bind(host: str, port: int) -> socket.socket:
    """Listen at an address; of a name's addresses an IPv4 one is preferred."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    listener = socket.create_server(address[:2], family=family, backlog=128, dualstack_ipv6=both)
    listener.settimeout(_LOOK_S)
    return listener


def _end(connection: socket.socket) -> None:
    """End a connection that another thread may be waiting on: closing it would not wake that thread."""
    # It fails where the client has ended the connection before.
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
