"""The page in a process of its own: a child of the leading worker that leads in its stead, and dies with it.

A scrape then never waits for the worker's interpreter, nor the worker for a scrape. The worker keeps the lead
and the listening socket, which the child inherits: where there is no child, not yet or not any more, the worker
serves the page itself, and nobody who scrapes sees the difference.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from otel_mlops.settings import Settings

if TYPE_CHECKING:
    from otel_mlops.sdk.group import Group
    from otel_mlops.sdk.server import PageServer

_logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 30.0
_FIRST_REST_S = 1.0
_LONGEST_REST_S = 60.0

# It finds what the worker finds, and nothing of the folder that it happens to run in.
_CODE = (
    "import json, sys; order = json.loads(sys.stdin.readline()); sys.path[:] = order['path']; "
    "from otel_mlops.page_process import serve; serve(order)"
)


def why_not() -> str | None:
    """Why this interpreter cannot start another one; None if it can."""
    if getattr(sys, "frozen", False):
        return "the program is frozen"
    name = Path(sys.executable or "").name
    if not name.startswith(("python", "pypy")):
        return f"sys.executable is {sys.executable!r}, which is no Python"
    return None


class PageProcess:
    """Keeps the process of the page running while its worker leads.

    `hand_over` is called when the process is about to lead, `take_back` when it does not any more.
    """

    def __init__(
        self,
        settings: Settings,
        group: Group,
        server: PageServer,
        *,
        hand_over: Callable[[], None],
        take_back: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._group = group
        self._server = server
        self._hand_over = hand_over
        self._take_back = take_back
        self._begin()

    def _begin(self) -> None:
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reported = False

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begin to keep it running; does nothing while that goes on."""
        if self._thread is not None:
            return
        self._stopping = threading.Event()
        thread = threading.Thread(
            target=self._keep, args=(self._stopping,), name="otel-mlops-page-process", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            _logger.exception("the page stays in this process: no thread can be started")
        else:
            self._thread = thread

    def stop(self, timeout_s: float) -> None:
        """End the process within the time; it has pushed and left when it ends by itself."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        process = self._process
        if process is not None:
            _tell(process, "end")
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def after_fork(self) -> None:
        """In a forked child: the process is the parent's."""
        process = self._process
        if process is not None and process.stdin is not None:
            # It lives as long as somebody holds this end, which must be the parent alone.
            process.stdin.close()
            process.returncode = 0  # or the end of the child would warn of a process that is not its own
        self._begin()

    def _keep(self, stopping: threading.Event) -> None:
        rest_s = _FIRST_REST_S
        # What is over in a moment, a script or a test, is not worth a process.
        stopping.wait(_FIRST_REST_S)
        while not stopping.is_set():
            if not self._server.serving.wait(_FIRST_REST_S):
                continue  # the port is taken: there is nothing to hand over yet
            if self._live(stopping):
                rest_s = _FIRST_REST_S
            if stopping.wait(rest_s):
                return
            rest_s = min(2 * rest_s, _LONGEST_REST_S)

    def _live(self, stopping: threading.Event) -> bool:
        """Run the process until it ends, and say whether it has served."""
        served = False
        try:
            with self._open() as process:
                self._process = process
                words = iter(process.stdout or ())
                if next(words, b"") == b"ready\n" and not stopping.is_set():
                    self._hand_over()
                    served = True
                    _tell(process, "go")
                    self._reported = False
                for _ in words:
                    continue  # until it ends
        except OSError as error:
            self._report(f"cannot be started: {error}")
        finally:
            self._process = None
        if not stopping.is_set():
            if served:
                self._take_back()
            self._report("has ended; this worker serves the page until another one does")
        return served

    def _open(self) -> subprocess.Popen[bytes]:
        listener = self._server.listener
        if listener is None:
            raise OSError("the page's port is not open")
        passed = (listener.fileno(), self._group.lead_file)
        process = subprocess.Popen(  # noqa: S603  (ourselves)
            [sys.executable, "-I", "-c", _CODE, "otel-mlops-page", self._settings.service_name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=passed,
        )
        order = {"path": sys.path, "listener": passed[0], "lead": passed[1], "settings": _plain(self._settings)}
        _tell(process, json.dumps(order))
        return process

    def _report(self, what: str) -> None:
        if not self._reported:
            self._reported = True
            _logger.warning("the process of the page %s", what)


def serve(order: dict[str, Any]) -> None:
    """Be the process of the page: wait for the word, lead until the worker ends or says so."""
    # Whoever stops the service stops the workers; their page is there until they have ended.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    from otel_mlops.telemetry import Telemetry

    words = sys.stdin
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anybody prints is no word to the worker
    telemetry = Telemetry(Settings(**order["settings"]), lead_file=order["lead"], listener=order["listener"])
    _say(out, "ready")
    if words.readline() == "go\n":
        telemetry.start()
        if words.readline() == "end\n":
            telemetry.shutdown()
    # Without a word: the worker is dead. Another one is waiting for the lead and the port.
    os._exit(0)


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON can say them."""
    chosen = {**asdict(settings), "page_process": False, "set_global": False, "traces_endpoint": None}
    return {name: str(value) if isinstance(value, Path) else value for name, value in chosen.items()}


def _tell(process: subprocess.Popen[bytes], word: str) -> None:
    if process.stdin is not None:
        _say(process.stdin, word)


def _say(out: IO[bytes], word: str) -> None:
    try:
        out.write(word.encode() + b"\n")
        out.flush()
    except OSError as error:
        _logger.debug("nobody listens any more: %s", error)
