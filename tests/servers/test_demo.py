"""The demo as a user runs it: it serves, counts every request, ends when told to, and leaves nothing."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from tests.servers import service
from tests.servers.programs import BUILT, program

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "prometheus_metrics_demo.py"
COMMAND = [sys.executable, str(EXAMPLE), "--port", "0", "--page-port", "0", "--rate", "60"]
ENVIRON = {name: text for name, text in os.environ.items() if not name.startswith(("DEMO_", "OTEL_"))}
WAIT_S = 90.0
until = partial(service.until, wait_s=WAIT_S)


class Running:
    """A demo that runs, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.family: set[psutil.Process] = set()
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.said += line

    def wait_for(self, pattern: str) -> str:
        """Wait until the demo has said something, and return it."""
        until(lambda: re.search(pattern, self.said) or self.process.poll() is not None)
        found = re.search(pattern, self.said)
        assert found, self.said
        return found[found.re.groups and 1]

    def urls(self) -> dict[str, str]:
        """The URLs that the demo shows, once it has begun to watch, and with them all that it has started."""
        self.wait_for(r"requests/s")
        self.family = {*psutil.Process(self.process.pid).children(recursive=True)}
        shown = re.findall(r"^  (\w+(?: \w+)?) +(http\S+)$", self.said, re.MULTILINE)
        return {name: url.removesuffix("/docs") for name, url in shown}

    def end(self) -> int:
        """Wait for the demo's end, and return its exit code."""
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return code


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended, be it that nobody has asked for its exit code yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def running(*arguments: str, **environ: str) -> Iterator[Running]:
    """A demo that runs, which is ended with the block."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=ENVIRON | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    demo = Running(process)
    try:
        yield demo
    finally:
        process.kill()
        demo.end()
        for each in demo.family:
            if not is_gone(each):
                each.kill()


@pytest.fixture
def has_prometheus() -> None:
    """Prometheus is installed."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not on the PATH: run `make servers`")


def answer(client: httpx.Client, url: str) -> str:
    """What is answered, nothing while a program starts."""
    try:
        return client.get(url).text
    except httpx.TransportError:
        return ""


def numbers(said: str) -> dict[str, tuple[int, int]]:
    """Of the summary, what the page has counted and what the clients have seen."""
    found = re.findall(r"^  +(requests|answered with \d+) +([\d,]+) +([\d,]+)$", said, re.MULTILINE)
    return {name: (int(page.replace(",", "")), int(clients.replace(",", ""))) for name, page, clients in found}


def test_a_demo_ends_by_itself_and_has_counted_everything(has_prometheus: None):
    """After DEMO_SECONDS it ends with 0, and page, clients and Prometheus have counted the same."""
    with running(DEMO_SECONDS="10") as demo:
        urls = demo.urls()
        assert demo.end() == 0, demo.said
        assert all(is_gone(each) for each in demo.family)
    counted = numbers(demo.said)
    assert all(page == clients for page, clients in counted.values()), demo.said
    assert {"requests", "answered with 200", "answered with 404", "answered with 422", "answered with 500"} == set(
        counted
    )
    asked = counted["requests"][0]
    assert asked > 100
    assert f"{counted['answered with 500'][0]} ValueError" in demo.said
    assert set(urls) - {"Alertmanager"} == {"service", "page", "for people", "Prometheus"}
    assert "Prometheus    up == 1\n" in demo.said
    assert f"sum(api_requests_total) == {asked}\n" in demo.said
    p95 = re.search(r"histogram_quantile\(.*\) == (\S+)$", demo.said, re.MULTILINE)
    assert p95
    assert 0 < float(p95[1]) < 5


def test_ctrl_c_ends_a_demo_with_a_summary(has_prometheus: None, tmp_path: Path):
    """While it runs, service, docs, all pages, Prometheus and Alertmanager answer; SIGINT ends all of it with 0."""
    program("alertmanager")
    with running(TMPDIR=str(tmp_path), PATH=f"{os.environ['PATH']}{os.pathsep}{BUILT}") as demo:
        urls = demo.urls()
        with httpx.Client(trust_env=False, timeout=10.0) as client:
            assert client.get(f"{urls['service']}/docs").status_code == 200
            assert client.get(f"{urls['service']}/health").json()["status"] == "healthy"
            page = client.get(urls["page"]).text
            assert "<title>" in client.get(urls["for people"], headers={"Accept": "text/html"}).text
            until(lambda: "Watchdog" in answer(client, f"{urls['Alertmanager']}/api/v2/alerts"))
            assert "api_requests_total{" in client.get(f"{urls['service']}/metrics").text
            assert "ModelAccuracyDrop" in answer(client, f"{urls['Prometheus']}/api/v1/rules")
        demo.process.send_signal(signal.SIGINT)
        assert demo.end() == 0, demo.said
        assert all(is_gone(each) for each in demo.family)
    for name in (
        "predictions_total", "database_operations_total", "model_status", "model_accuracy_score", "system_info",
        "scheduled_task_runs_total", "api_health_status", "system_cpu_usage_percent", "model_load_duration_seconds_sum",
    ):  # fmt: skip
        assert f"\n{name}{{" in page or f"\n{name} " in page, name
    assert list(tmp_path.iterdir()) == []
    assert "Ended after" in demo.said
    page_count, client_count = numbers(demo.said)["requests"]
    # The one more is this test's, for the docs.
    assert 0 < client_count <= page_count <= client_count + 1


def test_a_killed_demo_leaves_nothing_running(tmp_path: Path):
    """After SIGKILL, which no program can answer, the service and Prometheus end all the same."""
    with running(TMPDIR=str(tmp_path)) as demo:
        assert demo.urls()
        family = set(demo.family)
        assert any("uvicorn" in each.cmdline() for each in family)
        demo.process.kill()
        demo.end()
        until(lambda: all(is_gone(each) for each in family))


def test_a_service_that_dies_ends_the_demo(tmp_path: Path):
    """When the service dies the demo says so, ends with 1 and ends Prometheus, and no file is left."""
    with running(TMPDIR=str(tmp_path)) as demo:
        demo.urls()
        (service,) = (each for each in demo.family if "uvicorn" in each.cmdline() and "/bin/sh" not in each.cmdline())
        service.kill()
        assert demo.end() == 1, demo.said
        assert "the service has ended" in demo.said
        assert all(is_gone(each) for each in demo.family)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_is_ended_while_it_starts_leaves_nothing():
    """SIGTERM before the service answers ends the demo with 0, and the service."""
    with running("--no-prometheus") as demo:
        demo.wait_for("Starting the service")
        until(lambda: psutil.Process(demo.process.pid).children())
        demo.family = {*psutil.Process(demo.process.pid).children(recursive=True)}
        demo.process.terminate()
        assert demo.end() == 0, demo.said
        assert all(is_gone(each) for each in demo.family)


def test_a_terminal_that_is_closed_ends_the_demo():
    """When the terminal goes away the demo ends without a traceback, and so does the service."""
    ours, theirs = pty.openpty()
    demo = subprocess.Popen(
        [*COMMAND, "--no-prometheus"],
        env=ENVIRON | {"TERM": "xterm"},
        stdout=theirs,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        while b"REQUESTS" not in (_part(ours) or b"REQUESTS"):
            continue
        family = psutil.Process(demo.pid).children(recursive=True)
        assert family
        os.close(ours)
        assert demo.communicate(timeout=WAIT_S) == (None, b"")
        assert all(is_gone(each) for each in family)
    finally:
        demo.kill()
        demo.communicate()


def test_a_terminal_has_a_table():
    """In a terminal a table is drawn over itself, and the cursor is there again at the end."""
    ours, theirs = pty.openpty()
    demo = subprocess.Popen(
        [*COMMAND, "--no-prometheus", "--seconds", "3"],
        env=ENVIRON | {"TERM": "xterm", "COLUMNS": "110", "LINES": "40"},
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    try:
        while part := _part(ours):
            said += part
        assert demo.wait(WAIT_S) == 0, said.decode()
    finally:
        demo.kill()
        demo.wait()
        os.close(ours)
    text = said.decode()
    assert "REQUESTS" in text
    assert re.search(r"tumour v1\.2\.3 single", text)
    assert re.search(r"\x1b\[\d+F", text)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "Ended after 3 s." in text


def _part(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""  # Linux says the end of a terminal so
