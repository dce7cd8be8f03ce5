"""The page in a process of its own: a child of the leading worker that leads in its stead, and dies with it.

A scrape then never waits for the worker's interpreter, nor the worker for a scrape. The worker keeps the lead
and the listening socket, which the child inherits: where there is no child, not yet or not any more, the worker
serves the page itself, and nobody who scrapes sees the difference.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from otel_mlops.sdk.bounded import call_within
from otel_mlops.sdk.files import identity
from otel_mlops.settings import Settings

if TYPE_CHECKING:
    from otel_mlops.sdk.group import Group
    from otel_mlops.sdk.server import PageServer

_logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 30.0
_FIRST_REST_S = 1.0
_LONGEST_REST_S = 60.0
_BEAT_S = 1.0
_LAST_WORDS_S = 1.0
"""How long one that is of no use any more may take over the answers that it has begun."""
_MOST_SILENCES = 3
"""After so many beats that did not come the process is frozen, and those who scrape wait for nothing."""
_FIRST_READING_S = 2.0
_PR_SET_PDEATHSIG = 1

_OF_THE_GROUP = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
"""What is sent to all of a service's processes at once: the workers end by it, and their page when they have."""

# Nothing of the environment or of the folder that it happens to run in has a say before the path is the worker's.
_CODE = (
    "import json, sys; order = json.loads(sys.stdin.readline() or sys.exit()); sys.path[:] = order['path']; "
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

    `sees_all` says whether another process sees all numbers of this one, without which there is nothing to hand
    over. `hand_over` is called when the process is about to lead, `take_back` as often as it turns out that it does
    not.
    """

    def __init__(
        self,
        settings: Settings,
        group: Group,
        server: PageServer,
        *,
        sees_all: Callable[[], bool],
        hand_over: Callable[[], None],
        take_back: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._group = group
        self._server = server
        self._sees_all = sees_all
        self._hand_over = hand_over
        self._take_back = take_back
        self._begin()

    def _begin(self) -> None:
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._leads = False
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
            self._take_back()
        else:
            self._thread = thread

    def stop(self, timeout_s: float) -> None:
        """End the process within the time; it has pushed and left when it ends by itself."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        process = self._process
        if process is not None:
            if self._leads:
                _tell(process, "end")
            else:
                process.kill()
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
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    # The process lives as long as somebody holds these ends, which must be the parent alone.
                    pipe.close()
            process.returncode = 0  # or the end of the child would warn of a process that is not its own
        self._begin()

    def _keep(self, stopping: threading.Event) -> None:
        rest_s = _FIRST_REST_S
        # What is over in a moment, a script or a test, is not worth a process: the rest comes first.
        while not stopping.wait(rest_s):
            if not self._server.serving.is_set() or not self._sees_all():
                self._take_back()  # the port is taken, or there is no memory to share: nothing to hand over yet
                continue
            began = time.monotonic()
            self._live(stopping)
            lasted = time.monotonic() - began > _LONGEST_REST_S
            # One that ends again and again must not keep a processor busy.
            rest_s = _FIRST_REST_S if lasted else min(2 * rest_s, _LONGEST_REST_S)

    def _live(self, stopping: threading.Event) -> None:
        """Run the process until it ends, or is of no use any more."""
        end, lead = "was not ready in time", identity(self._group.lead_file)
        try:
            with self._open() as process:
                self._process = process
                try:
                    # `stop` ends what it finds; what came too late for it is ended here.
                    word = None if stopping.is_set() else _hear(process, _START_TIMEOUT_S)
                    if word == b"ready\n" and not stopping.is_set():
                        self._leads = True
                        self._hand_over()
                        _tell(process, "go")
                        end = self._watch(process, lead)
                    elif word == b"":
                        end = "has ended before it was ready"
                finally:
                    process.kill()
        except (OSError, ValueError) as error:
            end = f"cannot be started: {error}"
        finally:
            self._process = None
            self._leads = False
            if not stopping.is_set():
                self._take_back()
                self._report(end)

    def _watch(self, process: subprocess.Popen[bytes], lead: tuple[int, int] | None) -> str:
        """Return why the process does not lead any more, as soon as it does not."""
        silences = 0
        while silences < _MOST_SILENCES:
            word = _hear(process, _BEAT_S)
            if word == b"":
                return "has ended"
            if word is not None:
                self._reported = False
            silences = 0 if word is not None else silences + 1
            # Another file is the lead when somebody has removed the group's folder.
            if identity(self._group.lead_file) != lead or not self._sees_all():
                _tell(process, "end")
                with suppress(subprocess.TimeoutExpired):  # it is killed then
                    process.wait(_LAST_WORDS_S)
                return "cannot see the numbers of this worker"
        return f"has said nothing for {_MOST_SILENCES * _BEAT_S:.0f} s"

    def _open(self) -> subprocess.Popen[bytes]:
        listener = self._server.listener
        if listener is None:
            raise OSError("the page's port is not open")
        passed = (listener.fileno(), self._group.lead_file)
        options = ["-B"] if sys.dont_write_bytecode else []
        if sys.pycache_prefix is not None:
            options += ["-X", f"pycache_prefix={sys.pycache_prefix}"]
        # What this thread blocks the process has blocked from its first instruction on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_GROUP)
        try:
            process = subprocess.Popen(  # noqa: S603  (ourselves)
                [sys.executable, "-I", *options, "-c", _CODE, "otel-mlops-page", self._settings.service_name],
                # Without buffers: their locks would be held for ever in a child that is forked at the wrong moment.
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=passed,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        order = {"path": _path(), "listener": passed[0], "lead": passed[1], "settings": _plain(self._settings)}
        _tell(process, json.dumps(order))
        return process

    def _report(self, end: str) -> None:
        if not self._reported:
            self._reported = True
            _logger.warning("the process of the page %s; this worker serves the page until another one does", end)


def serve(order: dict[str, Any]) -> None:
    """Be the process of the page: wait for the word, lead until the worker ends or says so."""
    _end_with_worker()
    from otel_mlops.telemetry import Telemetry

    words = sys.stdin
    out = os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # what anybody prints is no word to the worker
    for passed in (order["listener"], order["lead"]):
        os.set_inheritable(passed, False)
    telemetry = Telemetry(Settings(**order["settings"]), lead_file=order["lead"], listener=order["listener"])
    # Its first page has what the worker's last one had.
    call_within(_FIRST_READING_S, telemetry.sample)
    _say(out, "ready")
    if words.readline() == "go\n":
        telemetry.start()
        telemetry.page()  # what callbacks say once for all stands there now, for the pages of the workers too
        threading.Thread(target=_beat, args=(out,), name="otel-mlops-beat", daemon=True).start()
        if words.readline() == "end\n":
            telemetry.shutdown()
    # Without a word: the worker is dead. Another one is waiting for the lead and the port.
    os._exit(0)


def _end_with_worker() -> None:
    """Be killed when the worker dies, also while frozen: nobody else could lead."""
    if sys.platform != "linux":
        return
    try:
        import ctypes
    except ImportError as error:  # built without libffi
        _logger.debug("this process ends when it reads that its worker has died, and not while frozen: %s", error)
    else:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _beat(out: IO[bytes]) -> None:
    """Tell the worker again and again that this interpreter runs."""
    never = threading.Event()
    while not never.wait(_BEAT_S):
        _say(out, "here")


def _path() -> list[str]:
    """Where the worker finds modules; the standard library first, whose names files of the service may have."""
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    standard = {library, f"{library}/lib-dynload"}
    entries: list[Any] = sys.path  # a Path among them, of which no import takes notice, is no JSON either
    return sorted((each for each in entries if isinstance(each, str)), key=lambda each: each not in standard)


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON can say them."""
    chosen = {**asdict(settings), "page_process": False, "set_global": False, "traces_endpoint": None}
    return {name: str(value) if isinstance(value, Path) else value for name, value in chosen.items()}


def _hear(process: subprocess.Popen[bytes], timeout_s: float) -> bytes | None:
    """The next word of the process; empty when it has ended, None if none comes within the time."""
    words = process.stdout
    if words is None:
        return b""
    arrivals = select.poll()
    arrivals.register(words, select.POLLIN)
    return words.readline() if arrivals.poll(timeout_s * 1e3) else None


def _tell(process: subprocess.Popen[bytes], word: str) -> None:
    if process.stdin is not None:
        _say(process.stdin, word)


def _say(out: IO[bytes], word: str) -> None:
    left = memoryview(word.encode() + b"\n")
    try:
        while left:
            left = left[out.write(left) :]
    except (OSError, ValueError) as error:  # the other end is gone, or this one was closed meanwhile
        _logger.debug("nobody listens any more: %s", error)
