"""A service in a process of its own, behind uvicorn, as a user runs it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

WAIT_S = 60.0
CLEAN = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}


def until(holds: Callable[[], object], wait_s: float = WAIT_S) -> None:
    """Wait until a condition holds, or fail."""
    end = time.monotonic() + wait_s
    while not holds():
        assert time.monotonic() < end, "the condition did not come to hold in time"
        time.sleep(0.05)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether anything listens at a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def get(url: str, **headers: str) -> tuple[str, str]:
    """The body and the content type of an answer."""
    with urlopen(Request(url, headers=headers), timeout=WAIT_S) as response:
        return response.read().decode(), response.headers["Content-Type"]


def status(url: str, method: str = "GET", body: bytes | None = None) -> int:
    """The status of an answer."""
    request = Request(url, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urlopen(request, timeout=WAIT_S) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


@dataclass
class Service:
    """A service that runs."""

    process: subprocess.Popen[bytes]
    port: int
    page_port: int
    log: Path

    @property
    def url(self) -> str:
        """Where the application answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def page_url(self) -> str:
        """Where the page's own port answers."""
        return f"http://127.0.0.1:{self.page_port}/metrics"

    def said(self) -> str:
        """What it has logged."""
        return self.log.read_text()


@contextmanager
def running(
    code: str, folder: Path, *, page_port: int | None = None, arguments: Sequence[str] = (), **environment: str
) -> Iterator[Service]:
    """Run an application, `app` in this code, until the block ends; then it must end by itself, in time.

    The code finds the page's port in OTEL_EXPORTER_PROMETHEUS_PORT, as every service does. `arguments` are
    uvicorn's.
    """
    (folder / "service.py").write_text(textwrap.dedent(code))
    port, page_port = free_port(), page_port or free_port()
    log = folder / "service.log"
    environ = CLEAN | {
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(page_port),
        "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
        **environment,
    }
    command = [sys.executable, "-m", "uvicorn", "service:app", "--port", str(port), "--log-level", "warning"]
    command += arguments
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=output, stderr=output, start_new_session=True
        )
    service = Service(process, port, page_port, log)
    try:
        until(lambda: listens(port) or process.poll() is not None)
        assert process.poll() is None, service.said()
        yield service
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT_S)
    finally:
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
