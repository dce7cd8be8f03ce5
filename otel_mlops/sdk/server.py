"""The page on its own port: a small HTTP server in threads of its own, which waits for a port that is taken."""

from __future__ import annotations

import errno
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.client import LineTooLong
from pathlib import Path
from typing import TYPE_CHECKING

from otel_mlops.sdk import tls
from otel_mlops.sdk.connections import Connection, Connections
from otel_mlops.sdk.passwords import Door, Refusal
from otel_mlops.sdk.scrape import Scrape, TooSlowError, let_the_client_finish
from otel_mlops.sdk.sharing import Renderings, SharedPage
from otel_mlops.sdk.text import choose_format
from otel_mlops.sdk.web_config import WebConfig, WebConfigFile

if TYPE_CHECKING:
    from otel_mlops.sdk.page import Page

_logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 5.0
"""How long a client may take to agree on TLS."""

_QUIET_S = 1.0
_QUICK_S = 5.0
_QUICK_RETRY_S = 0.1
_RETRY_S = 1.0
_PAUSE_S = 0.1
_LAST_ANSWERS_S = 0.25
_ROOM_TIMEOUT_S = 1.0
_OPEN = WebConfig()
_TLS_HANDSHAKE = b"\x16"
_NO_TLS = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This port speaks HTTPS: ask with https, in Prometheus with scheme: https.\n"
)


class PageServer:
    """Serves the page at `host`:`port` until it is stopped.

    A port that is taken costs the service nothing: it is said once, and tried again until it is free.
    `web_config_file` is the web.config.yml of Prometheus' exporters. `on_refused` is told one of the REFUSALS of
    the catalogue for each client that is sent away.
    Errors:  ValueError and ImportError of `WebConfigFile`.
    """

    def __init__(
        self,
        page: Callable[[str | None], Page],
        host: str,
        port: int,
        *,
        web_config_file: Path | None = None,
        on_refused: Callable[[str], None] | None = None,
    ) -> None:
        self._page = page
        self._host = host
        self._wanted_port = port
        self.port = port
        """The port it listens on, or has listened on last; before that the one it would like to have."""
        self._on_refused = on_refused
        self._web_config_file = None if web_config_file is None else WebConfigFile(web_config_file)
        self._listener: socket.socket | None = None
        self._begin()

    def _begin(self) -> None:
        self.fault: str | None = None
        self.serving = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._alarm: tuple[socket.socket, socket.socket] | None = None
        self._connections = Connections()
        self._renderings = Renderings(self.make_page)
        self._door = Door()
        self._page_fails = False

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104 - nothing is bound
        scheme = "http" if self._config().context is None else "https"
        return f"{scheme}://{f'[{here}]' if ':' in here else here}:{self.port}/metrics"

    @property
    def listener(self) -> socket.socket | None:
        """The socket it listens on, if it has one."""
        return self._listener

    @property
    def config_fault(self) -> str | None:
        """Why the web.config.yml as it is now is not in force: it was changed, and what it says is wrong."""
        return None if self._web_config_file is None else self._web_config_file.fault

    def start(self, listener: socket.socket | None = None) -> None:
        """Listen now if the port is free, else as soon as it is; on this socket, or on the one kept by `pause`."""
        if self._thread is not None:
            return
        self.fault = None
        self._stopping = threading.Event()
        self._since_s = time.monotonic()
        if listener is not None:
            self._close()
            self._take(listener)
        elif self._listener is None:
            self._listen()
        try:
            self._alarm = socket.socketpair()
            arguments = (self._stopping, self._alarm[0])
            thread = threading.Thread(target=self._run, args=arguments, name="otel-mlops-page", daemon=True)
            thread.start()
        except (OSError, RuntimeError) as error:
            self.fault = str(error)
            _logger.exception("the page is not served: no thread can be started")
            self._silence()
            self._close()
        else:
            self._thread = thread

    def pause(self, timeout_s: float = 5.0) -> None:
        """Accept nobody any more, within the time, but keep the socket: clients queue there for who has it as well.

        Whoever was accepted before is answered, if it has asked for something by then.
        """
        self._stopping.set()
        if self._alarm is not None:
            self._alarm[1].send(b"!")
        self._connections.wake()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
        self._connections.wait_until_none(min(timeout_s, _LAST_ANSWERS_S))
        self._silence()

    def stop(self, timeout_s: float) -> None:
        """Stop listening and free the port, within the time; a page that is being made is still sent."""
        self.pause(timeout_s)
        self._close()
        self._connections.end_waiting()

    def after_fork(self) -> None:
        """In a forked child: let go of the parent's sockets, which would keep its port beyond its death."""
        self._close()
        self._connections.close()
        self._silence()
        if self._web_config_file is not None:
            self._web_config_file.after_fork()
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

    def share_page(self, accept: str) -> SharedPage | None:
        """The page, shared with those who ask for the same format at the same time; None if it cannot be made."""
        return self._renderings.share(choose_format(accept), accept)

    def admit(self, config: WebConfig, authorization: list[str], host: str) -> Refusal | None:
        """Why a request is not answered, or None."""
        return self._door.admit(config, authorization, host)

    def busy(self, connection: Connection) -> AbstractContextManager[None]:
        """A `with` block during which a connection does not make room for another."""
        return self._connections.busy(connection)

    def begin_to_send(self, connection: Connection, body: bytes) -> None:
        """Note that a body is being sent."""
        for _ in self._connections.begin_to_send(connection, body):
            self.refused("busy")

    def refused(self, reason: str) -> None:
        """Note that a client was sent away."""
        if self._on_refused is None:
            return
        try:
            self._on_refused(reason)
        except Exception:
            _logger.exception("a refused request could not be counted")

    def _config(self) -> WebConfig:
        return _OPEN if self._web_config_file is None else self._web_config_file.current()

    def _take(self, listener: socket.socket) -> None:
        # Another process may accept on the same socket and be there first: accept() must not wait.
        listener.setblocking(False)
        self._listener = listener
        self.port = listener.getsockname()[1]

    def _listen(self) -> None:
        try:
            self._take(_bind(self._host, self._wanted_port))
        except (OSError, OverflowError, UnicodeError) as error:
            self._say(error)
            return
        if self.fault is not None:
            _logger.info("the page is served on %s now", self.url)
        self.fault = None

    def _say(self, error: Exception) -> None:
        fault = why = str(error)
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            if time.monotonic() - self._since_s < _QUIET_S:
                return  # taking over from one that has just died
            why = "another program listens there; stop it, or set OTEL_EXPORTER_PROMETHEUS_PORT to a free port"
        if fault == self.fault:
            return
        self.fault = fault
        _logger.error(
            "the page cannot be served on %s port %s: %s. The service runs on; trying again until it can.",
            self._host,
            self._wanted_port,
            why,
        )

    def _run(self, stopping: threading.Event, awaken: socket.socket) -> None:
        while self._listener is None:
            is_new = time.monotonic() - self._since_s < _QUICK_S
            if stopping.wait(_QUICK_RETRY_S if is_new else _RETRY_S):
                return
            self._listen()
        if stopping.is_set():
            return
        self.serving.set()
        try:
            self._accept(self._listener, stopping, awaken)
        finally:
            self.serving.clear()

    def _accept(self, listener: socket.socket, stopping: threading.Event, awaken: socket.socket) -> None:
        fails = False
        arrivals = select.poll()
        for each in (listener, awaken):
            arrivals.register(each, select.POLLIN)
        while not stopping.is_set():
            arrivals.poll()
            if stopping.is_set():
                return
            try:
                accepted, address = listener.accept()
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    continue  # it went away, or to another process
                if not fails and not stopping.is_set():
                    fails = True
                    _logger.warning("no connection to the page can be taken: %s; said once until one can", error)
                # Out of file descriptors, say: asking again at once would keep a CPU busy.
                stopping.wait(_PAUSE_S)
                continue
            fails = False
            connection = Connection(accepted, address[0])
            # Where all are being worked on this waits, and further ones wait in the kernel's queue.
            leaver = self._connections.enter(connection, _ROOM_TIMEOUT_S, stopping)
            if leaver is not None:
                self.refused("busy")
            if leaver is connection:
                accepted.close()
            else:
                self._answer_beside(connection)

    def _answer_beside(self, connection: Connection) -> None:
        thread = threading.Thread(target=self._answer, args=(connection,), name="otel-mlops-page-request", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            _logger.debug("no thread can be started for a request: %s", error)
            self._connections.leave(connection)

    def _answer(self, connection: Connection) -> None:
        connections = self._connections
        try:
            config = self._config()
            if config.context is None or self._secure(connection, config, config.context):
                Scrape(connection, self, config)
        except (TooSlowError, LineTooLong) as error:
            _logger.debug("a client of the page was sent away: %s", error)
            if not connection.is_ended:
                connection.end()
                self.refused("request")
        except OSError as error:
            _logger.debug("a client of the page went away or was sent away: %s", error)
        except Exception:
            _logger.exception("a request for the page failed")
        finally:
            connections.leave(connection)

    def _secure(self, connection: Connection, config: WebConfig, context: ssl.SSLContext) -> bool:
        """Agree on TLS, beside all other clients. Returns whether there is a client to go on with."""
        try:
            first = tls.first_byte(connection.socket, HANDSHAKE_TIMEOUT_S)
            if not first:
                return False  # a probe that looks whether the port is open
            if first == _TLS_HANDSHAKE:
                wrapped = context.wrap_socket(connection.socket, server_side=True, do_handshake_on_connect=False)
                self._connections.secure(connection, wrapped)
                tls.handshake(wrapped, HANDSHAKE_TIMEOUT_S, config.allowed_names)
                return True
            self.refused("tls")
            connection.socket.sendall(_NO_TLS)
            let_the_client_finish(connection.socket)
        except OSError as error:
            _logger.debug("no TLS with a client of the page: %s", error)
            if not connection.is_ended:
                self.refused("tls")
        return False

    def _silence(self) -> None:
        alarm, self._alarm = self._alarm, None
        for each in alarm or ():
            each.close()

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()


def _bind(host: str, port: int) -> socket.socket:
    """Listen at an address; of a name's addresses an IPv4 one is preferred."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    return socket.create_server(address[:2], family=family, backlog=128, dualstack_ipv6=both)
