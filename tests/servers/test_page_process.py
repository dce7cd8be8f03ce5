"""The process of the page behind real servers: it comes, it is killed, frozen and left alone, and scrapes go on."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Self
from urllib.request import urlopen

import psutil
import pytest
import trustme

from otel_mlops.sdk.text import TEXT
from tests.servers.fleet import Fleet, Growth, Page, Place, Tally, fetch, place, runs, serve
from tests.servers.service import WAIT_S, Service, running, until
from tests.servers.test_otlp_workers import COUNT, pushes  # noqa: F401  (a fixture)

MARK = "otel-mlops-page"
"""Stands in the command line of the process of the page."""

MOST_GAP_S = 0.3
"""How long the page may be away when its process is killed."""
MOST_GAP_OF_ANOTHER_S = 1.0
"""How long it may be away when the worker is killed, and another takes over."""
MOST_ORPHAN_S = 1.0
"""How long the process may outlive its worker."""
MOST_FROZEN_S = 5.0
"""How long scrapes may wait for one that is frozen: three beats, and what the worker needs to begin again."""
MOST_STUCK_S = 0.5
"""How long a scrape may take while the worker does not let go of its interpreter."""

STANDS_THERE = "otel_mlops_build_info", "system_memory_total_bytes", "otel_mlops_source_up"
"""What every page has, whoever leads."""


class Scrapes:
    """Scrapes the page every 20 ms until the block ends, and keeps what was good and what failed."""

    _PAUSE_S = 0.02
    _BEAT_S = 0.01

    def __init__(self, page_port: int) -> None:
        self.good: list[tuple[float, float]] = []
        """When each good scrape began and ended."""
        self.failed: list[str] = []
        self.incomplete: list[str] = []
        """What was not on a page, each time."""
        self.growth = Growth()
        self._port = page_port
        self._stalls: list[tuple[float, float]] = []
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._scrape), threading.Thread(target=self._beat)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        until(lambda: self.good)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def gap_after(self, moment: float) -> float:
        """How long after a moment the page was there again."""
        until(lambda: self.good[-1][0] >= moment)
        return self.seconds(moment, next(ended for began, ended in self.good if began >= moment))

    def longest_gap(self) -> float:
        """The longest time from the end of one good scrape to that of the next."""
        return max(self.seconds(before[1], after[1]) for before, after in pairwise(self.good))

    def seconds(self, began: float, ended: float) -> float:
        """The time between two moments, without that by which a thread that only sleeps was late: the machine's."""
        late = sum(max(0.0, min(ended, end) - max(began, begin)) for begin, end in list(self._stalls))
        return ended - began - late

    def _scrape(self) -> None:
        while not self._ending.wait(self._PAUSE_S):
            began = time.monotonic()
            try:
                page = Page(fetch(self._port, TEXT))
            except (OSError, HTTPException, ValueError) as error:
                self.failed.append(repr(error))
                continue
            self.growth.look(page.growing(), time.time())
            self.incomplete += [name for name in STANDS_THERE if not page.of(name)]
            self.good.append((began, time.monotonic()))

    def _beat(self) -> None:
        due = time.monotonic() + self._BEAT_S
        while not self._ending.wait(max(0.0, due - time.monotonic())):
            now = time.monotonic()
            if now > due + self._BEAT_S:
                self._stalls.append((due, now))
            due = now + self._BEAT_S


def page_processes(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those among these that are of the page."""
    found = []
    for process in processes:
        with suppress(psutil.Error):  # it has ended meanwhile
            if MARK in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def takes(process: psutil.Process, page_port: int) -> bool:
    """Whether a process accepts who comes to the page's port now."""
    with socket.create_connection(("127.0.0.1", page_port)) as client:
        own = client.getsockname()[1]
        end = time.monotonic() + 0.2  # if it does not, nobody tells
        while time.monotonic() < end:
            with suppress(psutil.Error):  # it has ended meanwhile
                if any(each.raddr and each.raddr.port == own for each in process.net_connections("tcp")):
                    return True
    return False


def leading(processes: Callable[[], list[psutil.Process]], page_port: int) -> psutil.Process:
    """The process of the page, as soon as it leads."""
    found: list[psutil.Process] = []

    def is_there() -> bool:
        found[:] = page_processes(processes())
        with suppress(OSError):  # nobody serves just now
            return len(found) == 1 and takes(found[0], page_port)
        return False

    until(is_there)
    return found[0]


def page_process(fleet: Fleet) -> psutil.Process:
    """The process of the page of a fleet, as soon as it leads."""
    return leading(fleet.processes, fleet.place.page_port)


def check_growth(watch: Scrapes) -> None:
    """No sample stepped back or went away."""
    assert not watch.growth.faults, watch.growth.faults[:20]


def said(folder: Path) -> str:
    """What a fleet has logged."""
    return "".join(log.read_text() for log in folder.glob("*.log"))


@pytest.fixture
def at() -> Iterator[Place]:
    """A port and a folder that outlive a service."""
    with place() as at:
        yield at


@pytest.mark.parametrize("workers", [1, 3])
def test_nobody_who_scrapes_sees_who_serves(workers, at, tmp_path):
    """At a hand-over no scrape fails, when the process dies none steps back, and at the end nothing is left of it."""
    with serve("uvicorn", tmp_path, workers=workers, at=at) as fleet:
        tally: Tally = [one for pid in fleet.worker_pids() for one in fleet.record(3, of=pid)]
        first = page_process(fleet)
        with Scrapes(fleet.place.page_port) as deaths:
            first.kill()
            until(lambda: not runs(first.pid))
            deaths.gap_after(time.monotonic())
            with Scrapes(fleet.place.page_port) as hand_over:
                second = page_process(fleet)
                tally += fleet.record(3)
                hand_over.gap_after(time.monotonic())
            second.kill()
            until(lambda: not runs(second.pid))
            third = page_process(fleet)
            assert len({first.pid, second.pid, third.pid}) == 3
            deaths.gap_after(time.monotonic())

        assert hand_over.failed == []
        assert hand_over.incomplete == []
        assert deaths.longest_gap() < MOST_GAP_S
        assert len(deaths.failed) <= 2, deaths.failed  # whose answer the process has taken along
        check_growth(deaths)
        assert fleet.page().total("fleet_size_count") == len(tally)
        fleet.stop()
        assert not runs(third.pid)
    assert at.files() == []
    assert "Traceback" not in said(tmp_path)


@pytest.mark.parametrize("state", ["well", "frozen", "beside a forked child"])
def test_it_dies_with_its_worker(state, tmp_path):
    """However it is, it is gone at once, and within a second another worker serves the page."""
    with serve("uvicorn", tmp_path, workers=3) as fleet:
        tally = [one for pid in fleet.worker_pids() for one in fleet.record(3, of=pid)]
        process = page_process(fleet)
        worker = process.ppid()
        forked = fleet.ask("/fork", of=worker) if state == "beside a forked child" else None
        with Scrapes(fleet.place.page_port) as watch:
            if state == "frozen":
                process.suspend()
            died = time.monotonic()
            fleet.kill(worker)
            until(lambda: not runs(process.pid))
            assert watch.seconds(died, time.monotonic()) < MOST_ORPHAN_S
            assert watch.gap_after(died) < MOST_GAP_OF_ANOTHER_S
            check_growth(watch)
        assert page_process(fleet).ppid() != worker
        assert fleet.page().total("fleet_size_count") == len(tally)
        if forked is not None:
            assert runs(forked)
            assert forked not in fleet.listeners()
            os.kill(forked, signal.SIGKILL)


def test_one_that_is_frozen_is_replaced(tmp_path):
    """Who scrapes waits for a few seconds, once, and fails at most in what the frozen one had accepted."""
    with serve("uvicorn", tmp_path, workers=1) as fleet:
        process = page_process(fleet)
        with Scrapes(fleet.place.page_port) as watch:
            process.suspend()
            frozen = time.monotonic()
            until(lambda: not runs(process.pid))
            assert watch.gap_after(frozen) < MOST_FROZEN_S
            assert page_process(fleet).pid != process.pid
        assert len(watch.failed) <= 1
        check_growth(watch)
        assert "has said nothing for 3 s" in said(tmp_path)


def test_what_ends_the_group_does_not_end_it(at, tmp_path):
    """It takes no notice of Ctrl-C and of a supervisor's signals, and serves on until its worker has ended."""
    with serve("uvicorn", tmp_path, workers=1, at=at) as fleet:
        process = page_process(fleet)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        for _ in range(3):
            assert takes(process, at.page_port)
        os.killpg(fleet.process.pid, signal.SIGINT)
        fleet.process.wait(WAIT_S)
        until(lambda: not fleet.processes())
    assert at.files() == []
    assert "Traceback" not in said(tmp_path)


def open_files(pid: int) -> set[str]:
    """What a process has open; some of it is closed while this looks."""
    found = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(file.readlink()))
    return found


def test_it_has_nothing_of_the_service_open(tmp_path):
    """Of its worker's sockets it has the page's listener, of its files the lead, and all read the group's ledgers."""
    with serve("uvicorn", tmp_path, workers=3) as fleet:
        process = page_process(fleet)
        mine, others = (open_files(pid) for pid in (process.pid, process.ppid()))
        assert len([link for link in mine & others if link.startswith("socket:")]) == 1
        assert {each.laddr.port for each in process.net_connections() if each.status == psutil.CONN_LISTEN} == {
            fleet.place.page_port
        }
        files = {link for link in mine & others if link.startswith("/") and not link.endswith(".ledger")}
        log = {str(path) for path in tmp_path.glob("*.log")}
        assert {Path(file).name for file in files - log - {"/dev/null"}} == {"lead"}


def test_while_its_worker_is_stuck_it_goes_on(pushes, tmp_path):  # noqa: F811
    """A worker that holds its interpreter for seconds delays no scrape and no push, and its last numbers are there."""
    with (
        serve(
            "uvicorn",
            tmp_path,
            workers=1,
            OTEL_METRICS_EXPORTER="prometheus,otlp",
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{pushes.url}/v1/metrics",
            OTEL_METRIC_EXPORT_INTERVAL="100",
            NO_PROXY="*",
        ) as fleet,
        closing(socket.create_server(("127.0.0.1", 0))) as gate,
    ):
        (pid,) = fleet.worker_pids()
        tally = fleet.record(7, of=pid)
        page_process(fleet)
        until(pushes)
        holding = threading.Thread(target=fleet.ask, args=(f"/hold?port={gate.getsockname()[1]}",))
        holding.start()
        gate.settimeout(WAIT_S)
        released, _ = gate.accept()
        with closing(released):
            held, pushed = time.monotonic(), len(pushes())
            with Scrapes(fleet.place.page_port) as watch:
                until(lambda: len(pushes()) > pushed + 5 and time.monotonic() > held + 2.0)
                assert fleet.page().total("fleet_size_count") == len(tally)
            assert holding.is_alive()
            released.sendall(b".")
        holding.join(WAIT_S)
        assert watch.failed == []
        assert max(watch.seconds(began, ended) for began, ended in watch.good) < MOST_STUCK_S
        assert watch.incomplete == []
        check_growth(watch)
        assert pushes()[-1].count() == len(tally), COUNT


# --- One worker, and what a service may do to it ----------------------------------------------------------------

SERVICE = """
    from fastapi import FastAPI
    from otel_mlops import configure_telemetry

    app = FastAPI(title="housing")
    telemetry = configure_telemetry(app)
    telemetry.meter.create_counter("jobs").add(3)
"""

HOSTILE = """
    import logging, json, pathlib, sys

    # What a service keeps beside itself has names of the standard library, and is found before it.
    for each in ("json", "logging", "queue", "selectors", "signal", "socket", "threading", "types", "typing"):
        pathlib.Path(each + ".py").write_text("raise SystemExit(f'{__file__} was imported')")
    sys.path.insert(0, str(pathlib.Path.cwd()))
    sys.path.insert(0, pathlib.Path("no text"))
"""


SECRET = "s3cr3t-t0ken"
REFUSED = "do not reach the Collector"


@contextmanager
def alone(code: str, folder: Path, **environment: str) -> Iterator[tuple[Service, Callable[[], psutil.Process]]]:
    """A service of one worker, and what finds the process of its page."""
    with place() as at:
        environment = {"OTEL_MLOPS_STATE_DIR": str(at.state), "OTEL_MLOPS_MONITORING_INTERVAL": "0.5", **environment}
        with running(code, folder, page_port=at.page_port, **environment) as service:
            parent = psutil.Process(service.process.pid)
            yield service, lambda: leading(lambda: parent.children(recursive=True), at.page_port)


def test_what_lies_beside_the_service_does_no_harm(tmp_path):
    """Modules of the service's that have names of the standard library, and odd entries of its path, are no matter."""
    # They are written by the service itself when the server is up: it would not start beside them either.
    with alone(HOSTILE + SERVICE, tmp_path) as (service, process):
        assert process()
        assert Page(fetch(service.page_port, TEXT)).total("jobs_total") == 3
        assert "was imported" not in service.said()


class Refusing(BaseHTTPRequestHandler):
    """A Collector that takes nothing."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def pushing() -> Iterator[dict[str, str]]:
    """The environment of a service that pushes ten times a second to who takes nothing."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield {
            "OTEL_METRICS_EXPORTER": "prometheus,otlp",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"http://user:{SECRET}@127.0.0.1:{collector.server_port}/v1/metrics",
            "OTEL_METRIC_EXPORT_INTERVAL": "100",
            "NO_PROXY": "*",
        }
        collector.shutdown()


def test_it_comes_when_the_port_is_free(pushing, tmp_path):
    """Where another program has the port the worker does what else there is to do, until the port is free."""
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as taken,
        running(SERVICE, tmp_path, page_port=taken.getsockname()[1], **pushing) as service,
    ):
        parent = psutil.Process(service.process.pid)
        until(lambda: REFUSED in service.said())
        assert page_processes(parent.children()) == []
        taken.close()
        assert leading(parent.children, service.page_port)


def test_its_own_words_are_in_the_services_log_and_no_secret_in_its_command_line(pushing, tmp_path):
    """What it logs goes where the service logs; whoever lists processes sees no token of a URL."""
    with alone(SERVICE, tmp_path, **pushing) as (service, process):
        line = process().cmdline()
        assert line[0] == sys.executable
        assert not [word for word in line if SECRET in word]
        # It alone pushes: the worker has left that to it.
        until(lambda: REFUSED in service.said())


def test_it_speaks_tls_where_the_service_does(tmp_path):
    """The web.config.yml of the service holds for its process too."""
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    config = tmp_path / "web.config.yml"
    config.write_text("tls_server_config: {cert_file: both.pem, key_file: both.pem}\n")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with alone(SERVICE, tmp_path, OTEL_MLOPS_WEB_CONFIG_FILE=str(config)) as (service, process):
        assert process()
        url = service.page_url.replace("http:", "https:")
        with urlopen(url, timeout=WAIT_S, context=context) as answer:
            assert Page(answer.read().decode()).total("jobs_total") == 3
