"""The process of the page behind real servers: it comes, it is killed, frozen and left alone, and scrapes go on."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
import trustme

from otel_mlops.sdk.text import TEXT
from tests.servers.fleet import Fleet, Page, Place, Tally, Watch, fetch, place, runs, serve
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

KEEPS_UP = "otel_mlops_build_info", "system_memory_total_bytes", "otel_mlops_source_up"
"""What every page has, whoever leads."""


class Close(Watch):
    """A watch that looks every 20 ms, and that keeps what failed."""

    _PAUSE_S = 0.02

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self.failed: list[str] = []
        self.incomplete: list[str] = []

    def _scrape(self) -> None:
        while not self._ending.wait(self._PAUSE_S):
            began = time.monotonic()
            try:
                page = Page(fetch(self._port, TEXT))
            except (OSError, HTTPException, ValueError) as error:
                self.failed.append(repr(error))
                continue
            self.good.append((began, time.monotonic()))
            self.growth.look(page.growing(), time.time())
            self.incomplete += [name for name in KEEPS_UP if not page.of(name)]


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


def check_growth(watch: Watch) -> None:
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
    """Before, at and after a hand-over no scrape fails; through deaths of the process no sample steps back.

    At the end of the service no process is left, and no file.
    """
    with serve("uvicorn", tmp_path, workers=workers, at=at) as fleet:
        tally: Tally = [one for pid in fleet.worker_pids() for one in fleet.record(3, of=pid)]
        first = page_process(fleet)
        with Close(fleet) as deaths:
            first.kill()
            until(lambda: not runs(first.pid))
            deaths.gap_after(time.monotonic())
            with Close(fleet) as hand_over:
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
        with Close(fleet) as watch:
            if state == "frozen":
                process.suspend()
            died = fleet.kill(worker)
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
        with Close(fleet) as watch:
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


def test_it_has_nothing_of_the_service_open(tmp_path):
    """Of its worker's sockets it has the page's listener, of its files the lead, and all read the group's ledgers."""
    with serve("uvicorn", tmp_path, workers=3) as fleet:
        process = page_process(fleet)
        mine, others = (
            {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()} for pid in (process.pid, process.ppid())
        )
        assert len([link for link in mine & others if link.startswith("socket:")]) == 1
        assert {each.laddr.port for each in process.net_connections() if each.status == psutil.CONN_LISTEN} == {
            fleet.place.page_port
        }
        files = {link for link in mine & others if link.startswith("/")}
        log = {str(path) for path in tmp_path.glob("*.log")}
        assert {Path(file).name for file in files - log - {"/dev/null"}} == {"lead"}


def test_while_its_worker_is_stuck_it_goes_on(pushes, tmp_path):  # noqa: F811
    """A worker that holds its interpreter for seconds delays no scrape and no push, and its last numbers stand there."""
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
            with Close(fleet) as watch:
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


def test_it_comes_when_the_port_is_free_and_tells_no_secret(tmp_path):
    """Where another program has the port, everything else goes on; a token in a URL is in no command line."""
    secret = "s3cr3t-t0ken"
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with running(
            SERVICE,
            tmp_path,
            page_port=port,
            OTEL_METRICS_EXPORTER="prometheus,otlp",
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"http://user:{secret}@127.0.0.1:9/v1/metrics",
            OTEL_METRIC_EXPORT_INTERVAL="100",
            NO_PROXY="*",
        ) as service:
            parent = psutil.Process(service.process.pid)
            # The worker pushes meanwhile, and says that nobody takes it.
            until(lambda: re.search("(?i)export|push", service.said()))
            assert page_processes(parent.children()) == []
            taken.close()
            process = leading(parent.children, port)
            assert not [word for word in process.cmdline() if secret in word]


def test_its_own_words_are_in_the_services_log(tmp_path):
    """What it logs goes where the service logs."""
    environment = {
        "OTEL_METRICS_EXPORTER": "prometheus,otlp",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:9/v1/metrics",
        "OTEL_METRIC_EXPORT_INTERVAL": "100",
        "NO_PROXY": "*",
    }
    with alone(SERVICE, tmp_path, **environment) as (service, process):
        process()
        # It alone pushes: the worker has left that to it.
        until(lambda: re.search("(?i)export|push", service.said()))


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
