"""How long a scrape takes while the service computes, and a request while it is scraped: with a page process, without.

Two services run behind uvicorn, which differ in `page_process` alone; they are measured by turns, and rest
meanwhile. Threads that compute in plain Python stand for models: they leave the interpreter's lock only when asked
to, every 5 ms each. Run as a program it prints all figures, with what memory and start the process costs.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.measure import ROOT, Line

if TYPE_CHECKING:
    import psutil
    from fastapi import FastAPI

SERIES = 1_000
"""About so many samples has the page: that of a service with a few models and routes."""
BUSY = (0, 1, 2)
"""How many threads compute."""
PAUSE_S = 0.02
"""Between two scrapes. Prometheus' 15 s would take a day; nothing is kept from one page to the next but the lines
of series that did not change, and they change with every request here."""
SCRAPED_EVERY_S = 0.1
"""How often the page is read while requests are timed: more often than in earnest, to see anything."""
MOST_S = 0.010
"""What a scrape may take while two threads compute."""
WAIT_S = 30.0
WAYS = {"process": "true", "worker": "false"}
"""Where the page is made, and the setting for it."""


def service() -> FastAPI:
    """The service; its threads begin and end to compute when they are told."""
    from fastapi import FastAPI

    from otel_mlops import configure_telemetry

    app = FastAPI()
    telemetry = configure_telemetry(app, service_name="bench")
    sizes = telemetry.meter.create_histogram("bench.size")
    for number in range(SERIES // 18):  # a histogram has so many lines
        sizes.record(number, {"route": f"/items/{number}"})
    stop = threading.Event()

    def compute(stopping: threading.Event) -> None:
        while not stopping.is_set():
            sum(number * number for number in range(1_000))

    @app.post("/busy")
    async def busy(threads: int) -> None:
        nonlocal stop
        stop.set()
        stop = threading.Event()
        for _ in range(threads):
            threading.Thread(target=compute, args=(stop,), daemon=True).start()

    @app.get("/predict")
    async def predict(number: int) -> dict[str, int]:
        with telemetry.model("bench", version="1").prediction():
            sizes.record(number, {"route": f"/items/{number % 50}"})
            return {"number": number}

    return app


class Service(NamedTuple):
    """One that runs."""

    process: psutil.Process
    port: int
    page_port: int

    def get(self, path: str, method: str = "GET") -> bytes:
        """What it answers on a connection for this alone."""
        return _get(self.port, path, method)

    def scrape(self) -> bytes:
        """Its page, as Prometheus asks for it."""
        return _get(self.page_port, "/metrics")

    def page_process(self) -> psutil.Process | None:
        """The process of its page, once that serves."""
        children = self.process.children()
        if not children:
            return None
        with socket.create_connection(("127.0.0.1", self.page_port)) as client:
            own, end = client.getsockname()[1], time.monotonic() + 0.2
            while time.monotonic() < end:  # if another accepts, nobody tells
                connections = children[0].net_connections("tcp")
                if any(each.raddr.port == own for each in connections if each.status == "ESTABLISHED"):
                    return children[0]
        return None


@contextmanager
def running(way: str) -> Iterator[Service]:
    """A service whose page is made this way, ready to be measured."""
    import psutil

    with TemporaryDirectory(dir=_memory()) as state, ExitStack() as probes:
        opened = [probes.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        port, page_port = (each.getsockname()[1] for each in opened)
        probes.close()
        environment = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")} | {
            "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(page_port),
            "OTEL_MLOPS_STATE_DIR": state,
            "OTEL_MLOPS_PAGE_PROCESS": WAYS[way],
        }
        command = [sys.executable, "-m", "uvicorn", "benchmarks.latency:service", "--factory", "--no-access-log"]
        process = subprocess.Popen([*command, "--log-level", "error", "--port", str(port)], cwd=ROOT, env=environment)
        service = Service(psutil.Process(process.pid), port, page_port)
        try:
            _until(lambda: process.poll() is not None or service.get("/predict?number=1"))
            _until(lambda: service.page_process() if way == "process" else service.scrape())
            yield service
        finally:
            process.terminate()
            process.wait(WAIT_S)


def scrapes(service: Service, busy: int, for_s: float) -> list[float]:
    """Seconds of each scrape in this time, while so many threads compute.

    Errors:  ValueError if it is not the page that was to be measured.
    """
    times = []
    with _computing(service, busy):
        end = time.perf_counter() + for_s
        while time.perf_counter() < end:
            start = time.perf_counter()
            page = service.scrape()
            times.append(time.perf_counter() - start)
            long = page.count(b"\n")
            if not SERIES < long < 2 * SERIES:
                msg = f"the page has {long} lines"
                raise ValueError(msg)
            time.sleep(PAUSE_S)
    return times


def requests(service: Service, busy: int, for_s: float) -> list[float]:
    """Seconds of each request in this time, one after the other on one connection, while the page is read."""
    times: list[float] = []
    ending = threading.Event()

    def read_page() -> None:
        while not ending.wait(SCRAPED_EVERY_S):
            service.scrape()

    reader = threading.Thread(target=read_page)
    line = HTTPConnection("127.0.0.1", service.port, timeout=WAIT_S)
    with _computing(service, busy):
        reader.start()
        end = time.perf_counter() + for_s
        while time.perf_counter() < end:
            start = time.perf_counter()
            line.request("GET", f"/predict?number={len(times)}")
            if sys.platform == "linux":
                # Head and body of an answer come apart: the kernel's late acknowledgements would add 40 ms.
                line.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            line.getresponse().read()
            times.append(time.perf_counter() - start)
        ending.set()
        reader.join()
    line.close()
    return times


Times = dict[tuple[str, int], list[list[float]]]
"""The times of each round, by the way and how many threads compute."""


def measure(services: Mapping[str, Service], *, rounds: int, for_s: float) -> tuple[Times, Times]:
    """Time the services by turns: scrapes, and requests while the page is read."""
    scraped: Times = {(way, busy): [] for busy in BUSY for way in services}
    requested: Times = {(way, busy): [] for busy in (0, 1) for way in services}
    for _ in range(rounds):
        for (way, busy), times in scraped.items():
            times.append(scrapes(services[way], busy, for_s))
        for (way, busy), times in requested.items():
            times.append(requests(services[way], busy, for_s))
    return scraped, requested


def percentile(rounds: list[list[float]], percent: int) -> float:
    """The time that so many of a hundred do not take longer than, in the best of the rounds."""
    return min(statistics.quantiles(times, n=100, method="inclusive")[percent - 1] for times in rounds)


def lines(*, quick: bool) -> Iterator[Line]:
    """The lines of this topic."""
    peer = "page made in the service"
    try:
        with ExitStack() as stack:
            services = {way: stack.enter_context(running(way)) for way in WAYS}
            scraped, requested = measure(services, rounds=1 if quick else 3, for_s=0.5 if quick else 1.0)
    except Exception as error:  # whatever keeps a service from running, the table says so and goes on
        yield Line("scrape", peer, 1.0, None, None, f"service: {type(error).__name__}: {error}")
        return
    for busy in BUSY:
        for percent, target in ((50, 1 / 2 if busy else 1.5), (99, 1 / 2 if busy else 2.0)):
            ours, theirs = (percentile(scraped[way, busy], percent) for way in WAYS)
            yield Line(f"scrape, {busy} threads computing, p{percent}", peer, target, ours, theirs)
    ours = percentile(scraped["process", BUSY[-1]], 50)
    yield Line(f"scrape, {BUSY[-1]} threads computing, p50", "what it may take", 1.0, ours, MOST_S)
    for busy in sorted({busy for _, busy in requested}):
        for percent, target in ((50, 1.5), (99, 2.0)):
            ours, theirs = (percentile(requested[way, busy], percent) for way in WAYS)
            yield Line(f"request, scraped, {busy} computing, p{percent}", peer, target, ours, theirs)


def _get(port: int, path: str, method: str = "GET") -> bytes:
    line = HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    try:
        line.request(method, path)
        answer = line.getresponse()
        body = answer.read()
    finally:
        line.close()
    if answer.status != 200:
        msg = f"{path} was answered with {answer.status}"
        raise ValueError(msg)
    return body


@contextmanager
def _computing(service: Service, busy: int) -> Iterator[None]:
    service.get(f"/busy?threads={busy}", "POST")
    try:
        yield
    finally:
        service.get("/busy?threads=0", "POST")


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while True:
        with suppress(OSError):  # it does not listen yet
            if holds():
                return
        if time.monotonic() > end:
            msg = f"the service is not ready within {WAIT_S:.0f} s"
            raise TimeoutError(msg)
        time.sleep(0.05)


def _memory_of(pid: int) -> str:
    """What a process occupies, what its part of that is, and what it would give back by ending."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    kib = {row.split(":")[0]: int(row.split()[1]) for row in text.splitlines()[1:]}
    own = kib["Private_Clean"] + kib["Private_Dirty"]
    return f"RSS {kib['Rss'] / 1024:.1f} MiB, PSS {kib['Pss'] / 1024:.1f} MiB, its own {own / 1024:.1f} MiB"


def main() -> None:
    """Print every figure."""
    with ExitStack() as stack:
        services = {way: stack.enter_context(running(way)) for way in WAYS}
        if (process := services["process"].page_process()) is not None:
            spent = process.cpu_times()
            print(f"the process of the page has taken {spent.user + spent.system:.2f} s of CPU to begin")
        scraped, requested = measure(services, rounds=3, for_s=1.0)
        for what, figures in (("scrape", scraped), ("request, scraped", requested)):
            for (way, busy), rounds in figures.items():
                p50, p99 = (percentile(rounds, percent) * 1e3 for percent in (50, 99))
                print(f"{what:<17} {busy} computing  {way:<8} p50 {p50:7.2f} ms  p99 {p99:7.2f} ms")
        for way, service in services.items():
            print(f"service, page made in the {way}: {_memory_of(service.process.pid)}")
            if (process := service.page_process()) is not None:
                print(f"process of the page: {_memory_of(process.pid)}")


if __name__ == "__main__":
    main()
