"""A service of several workers behind each of the servers, and what loads it, kills it and watches its page."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPConnection, HTTPException
from itertools import pairwise
from json import loads
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from otel_mlops.metrics import CATALOGUE
from otel_mlops.sdk.text import OPENMETRICS, TEXT
from tests.servers.service import CLEAN, WAIT_S, free_port, until

_ASKED = "--host 127.0.0.1 --port {port} --workers {workers}"
SERVERS = {
    # As plain `pip install uvicorn` runs it; the others take uvloop and httptools where they are installed.
    "uvicorn": f"-m uvicorn service:app {_ASKED} --loop asyncio --http h11",
    "gunicorn": "-m gunicorn service:app -k uvicorn_worker.UvicornWorker -b 127.0.0.1:{port} -w {workers}",
    "gunicorn --preload": "-m gunicorn service:app --preload -k uvicorn_worker.UvicornWorker -b 127.0.0.1:{port} "
    "-w {workers}",
    "fastapi run": f"-m fastapi run service.py {_ASKED}",
    "granian": f"-m granian service:app --interface asgi {_ASKED} --respawn-failed-workers",
    "hypercorn": "-m hypercorn service:app --bind 127.0.0.1:{port} --workers {workers}",
    "python": "service.py {port} {workers}",
}
"""What is given to the interpreter, by the mode."""

IMPORTED_BY_PARENT = frozenset({"gunicorn --preload", "fastapi run", "python"})
"""The modes whose parent, which serves nothing, executes the module too, and so records at import time."""

IMPORTS_BY_WORKER = {"gunicorn --preload": 0, "python": 2}
"""How often each worker executes the module, where that is not once: `__mp_main__` and `service` are two."""

SERVICE = """
    import ctypes, functools, multiprocessing, os, random, socket, sys, time

    from fastapi import FastAPI
    from opentelemetry.metrics import Observation
    from otel_mlops import configure_telemetry

    app = FastAPI(title="fleet")
    telemetry = configure_telemetry(app)

    with telemetry.model("fleet", version="v1").loading():
        pass

    amounts = telemetry.meter.create_counter("fleet.amount")
    sizes = telemetry.meter.create_histogram("fleet.size")
    under_way = telemetry.meter.create_up_down_counter("fleet.under.way")
    starts = telemetry.meter.create_counter("fleet.start.amount")
    start_sizes = telemetry.meter.create_histogram("fleet.start.size", explicit_bucket_boundaries_advisory=[0.5])
    telemetry.meter.create_observable_gauge("fleet.pid", [lambda _: [Observation(os.getpid())]])

    @app.post("/pid")
    async def pid():
        time.sleep(0.02)  # the whole worker is busy for a moment, so that the next connection is another's
        return os.getpid()

    @functools.cache
    def begin(pid):
        # Sums that stand still from here on: the next page would show it if they came back a digit smaller.
        for number in range(10):
            starts.add(random.SystemRandom().random(), {"number": number})
            start_sizes.record(random.SystemRandom().random(), {"number": number})

    @app.post("/linger")
    def linger():
        under_way.add(1)
        with telemetry.model("fleet", version="lingering").prediction() as prediction:
            time.sleep(0.2)
            prediction.values = 1.0
        under_way.add(-1)

    @app.post("/record")
    def record(rows: int, amount: float, version: str):
        begin(os.getpid())
        under_way.add(1)
        with telemetry.model("fleet", version=version).prediction() as prediction:
            prediction.values = [amount] * rows
        amounts.add(amount)
        sizes.record(amount)
        under_way.add(-1)
        return {"pid": os.getpid(), "rows": rows, "amount": amount}

    @app.post("/hold")
    async def hold(port: int):
        with socket.create_connection(("127.0.0.1", port)) as released:
            # PyDLL keeps the interpreter's lock: no thread of this process runs until a byte comes.
            ctypes.PyDLL(None).recv(released.fileno(), ctypes.create_string_buffer(1), 1, 0)

    @app.post("/forget")
    def forget(version: str):
        return telemetry.forget(model_version=version)

    @app.post("/fork")
    def fork():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
        child.start()
        return child.pid

    if __name__ == "__main__":
        import uvicorn

        uvicorn.run("service:app", port=int(sys.argv[1]), workers=int(sys.argv[2]))
"""


class Place(NamedTuple):
    """Where the workers of a service meet: their page's port and the folder of their group."""

    page_port: int
    state: Path

    def files(self) -> list[Path]:
        """What lies in the folder, folders aside."""
        return [path for path in self.state.rglob("*") if not path.is_dir()]


@contextmanager
def place() -> Iterator[Place]:
    """A place of its own, which is gone after the block."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fleet-", dir=memory if memory.is_dir() else None))
    try:
        yield Place(free_port(), folder / "state")
    finally:
        shutil.rmtree(folder)


# --- The service ---------------------------------------------------------------------------------------------


@dataclass
class Fleet:
    """A service that runs behind a server, and its workers."""

    mode: str
    process: subprocess.Popen[bytes]
    workers: int
    port: int
    place: Place
    mark: str
    """Stands in the environment of every process of it, also of those that have lost their parents."""

    def line(self, *, of: int | None = None) -> HTTPConnection:
        """A connection to the service: to the worker of a pid, or to any."""
        if of is None:
            return HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        found: dict[int, HTTPConnection] = {}
        until(lambda: of in found or found.update(self._knock(keep=of)))
        return found[of]

    def ask(self, path: str, *, of: int | None = None) -> Any:
        """What a worker answers to a POST."""
        with closing(self.line(of=of)) as line:
            return post(line, path)

    def record(self, times: int, *, of: int | None = None, version: str = "v1") -> Tally:
        """Let a worker record so many times, and return what it did."""
        tally: Tally = []
        with closing(self.line(of=of)) as line:
            for number in range(times):
                tally.append((2 + number % 4, AMOUNTS[number % 3]))
                post(line, recording(*tally[-1], version))
        return tally

    def worker_pids(self, at_least: int | None = None) -> set[int]:
        """The workers that answer, once there are that many, by default all of them."""
        wanted = self.workers if at_least is None else at_least
        found: set[int] = set()

        def have_answered() -> bool:
            for pid, line in self._knock().items():
                line.close()
                found.add(pid)
            found.intersection_update([pid for pid in found if runs(pid)])
            return len(found) >= wanted

        until(have_answered, 2 * WAIT_S)
        return found

    def processes(self) -> list[psutil.Process]:
        """Every process of the service that lives, with its children's children."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it has ended meanwhile, or is another user's
                if process.environ().get("FLEET") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def listeners(self) -> set[int]:
        """The processes that hold the listening socket of the page's port."""
        found = set()
        for process in self.processes():
            with suppress(psutil.Error):  # it has ended meanwhile
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN and connection.laddr.port == self.place.page_port:
                        found.add(process.pid)
        return found

    def leader(self) -> int:
        """The worker that leads: it, or a page process that it has started, listens on the page's port."""
        found: set[int] = set()

        def is_found() -> bool:
            for listener in self.listeners():
                lineage = [listener, *ancestors(listener)]
                found.update(pid for pid, parent in pairwise(lineage) if parent == self.process.pid)
            return bool(found)  # else nobody leads just now, or a page process lives on without its worker

        until(is_found)
        return min(found)

    def page_process(self) -> int:
        """The process that has the page of the worker that leads, once it answers in that one's stead."""
        found: set[int] = set()

        def answers() -> bool:
            with socket.create_connection(("127.0.0.1", self.place.page_port), timeout=WAIT_S) as client:
                until(lambda: found.update(self._ends(client.getsockname())) or found)
            found.discard(self.leader())
            return bool(found)

        until(answers)
        return min(found)

    def waited(self) -> dict[int, float]:
        """How long, in seconds, each process has waited for a processor; nothing where the system does not say."""
        waited = {}
        for process in self.processes():
            with suppress(OSError):  # it has ended meanwhile
                threads = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
                waited[process.pid] = sum(int(each.read_text().split()[1]) for each in threads) / 1e9
        return waited

    def page(self) -> Page:
        """What the page says, from its own port."""
        return Page(fetch(self.place.page_port, TEXT))

    def kill(self, pid: int) -> None:
        """End a process by SIGKILL."""
        os.kill(pid, signal.SIGKILL)
        until(lambda: not runs(pid))

    def kill_all(self) -> None:
        """End everything by SIGKILL, the parent first, which would start others."""
        self.process.kill()
        self.process.wait()
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # it has ended with its parent
                process.kill()
        until(lambda: not self.processes())

    def stop(self) -> None:
        """End by SIGTERM, as a supervisor does; it must end in time, and nobody may be left."""
        self.process.terminate()
        self.process.wait(WAIT_S)
        until(lambda: not self.processes())

    def _ends(self, address: tuple[str, int]) -> set[int]:
        """The processes that have taken the connection from an address."""
        found = set()
        for process in self.processes():
            with suppress(psutil.Error):  # it has ended meanwhile
                found.update(process.pid for each in process.net_connections("tcp") if each.raddr == address)
        return found

    def _knock(self, keep: int | None = None) -> dict[int, HTTPConnection]:
        """Connections by the workers that took them; with `keep` only that one's, if it took one."""
        lines = []
        for _ in range(2 * self.workers):  # all of them before the first answer is read: one worker is too slow
            line = self.line()
            try:
                line.request("POST", "/pid")
                lines.append(line)
            except OSError:
                line.close()  # its worker dies
        found: dict[int, HTTPConnection] = {}
        for line in lines:
            try:
                pid = loads(line.getresponse().read())
            except (OSError, HTTPException):
                line.close()  # its worker has died
                continue
            if pid in found or keep not in (None, pid):
                line.close()
            else:
                found[pid] = line
        return found


@contextmanager
def serve(
    mode: str,
    folder: Path,
    workers: int = 4,
    *,
    at: Place | None = None,
    arguments: Sequence[str] = (),
    **environment: str,
) -> Iterator[Fleet]:
    """Run the service under a server until the block ends; then it must end by itself, in time.

    `at` a place it meets others; without one it has its own. `arguments` are the server's.
    """
    (folder / "service.py").write_text(textwrap.dedent(SERVICE))
    where: AbstractContextManager[Place] = place() if at is None else nullcontext(at)
    with where as place_, (folder / f"{uuid.uuid4()}.log").open("w+b") as log:
        port, mark = free_port(), str(uuid.uuid4())
        environ = CLEAN | {
            "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(place_.page_port),
            "OTEL_MLOPS_STATE_DIR": str(place_.state),
            "OTEL_MLOPS_MONITORING_INTERVAL": "0.5",
            "XDG_RUNTIME_DIR": str(place_.state.parent),  # gunicorn's own socket goes there, or into the home
            "FLEET": mark,
            **environment,
        }
        # They would all compile the package anew.
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        command = shlex.split(SERVERS[mode].format(port=port, workers=workers))
        process = subprocess.Popen(
            [sys.executable, *command, *arguments],
            cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        fleet = Fleet(mode, process, workers, port, place_, mark)
        try:
            until(lambda: connects(port) or process.poll() is not None, 2 * WAIT_S)
            assert process.poll() is None, f"{mode} has ended at once"
            fleet.worker_pids()
            yield fleet
            if process.poll() is None:
                fleet.stop()
        finally:
            fleet.kill_all()
            log.seek(0)
            said = [line for line in log.read().decode(errors="replace").splitlines() if 'HTTP/1.1" 200' not in line]
            print(f"--- {mode} said, at its end:", *said[-100:], sep="\n")


def post(line: HTTPConnection, path: str) -> Any:
    """What is answered to a POST on a connection.

    Errors:  OSError or HTTPException if the answer does not come; ValueError if it is not 200.
    """
    line.request("POST", path)
    if line.sock is not None and hasattr(socket, "TCP_QUICKACK"):
        # The workers of uvicorn on plain asyncio send an answer's head and body apart and without TCP_NODELAY: each
        # body would wait 40 ms until the head's receipt is confirmed.
        line.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    answer = line.getresponse()
    body = answer.read()
    if answer.status != 200:
        msg = f"{path} was answered with {answer.status}: {body!r:.200}"
        raise ValueError(msg)
    return loads(body)


def fetch(port: int, accept: str) -> str:
    """The page of a port in the format of an Accept header."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=5.0)) as line:
        line.request("GET", "/metrics", headers={"Accept": accept})
        answer = line.getresponse()
        body = answer.read().decode()
        if answer.status != 200:
            msg = f"the page was answered with {answer.status}"
            raise HTTPException(msg)
        return body


def runs(pid: int) -> bool:
    """Whether a process lives: one that its parent has not asked after yet does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def ancestors(pid: int) -> list[int]:
    """The parent of a process, its parent, and so on; none if it has ended."""
    try:
        return [parent.pid for parent in psutil.Process(pid).parents()]
    except psutil.NoSuchProcess:
        return []


def connects(port: int) -> bool:
    """Whether a connection to a port is taken."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=WAIT_S)) as line:
        try:
            line.connect()
        except OSError:
            return False
        return True


# --- Traffic -------------------------------------------------------------------------------------------------

AMOUNTS = (0.1, 0.7, 1 / 3)
"""None of them is exact in binary, so that their sums tell how they were added up."""

Tally = list[tuple[int, float]]
"""The rows and the amount of each request."""


def recording(rows: int, amount: float, version: str = "v1") -> str:
    """The path that records so much."""
    return f"/record?rows={rows}&amount={amount!r}&version={version}"


class Load:
    """Requests to the service from a few clients until the block ends: what was sent, what was acknowledged.

    Others linger in the service, so that a worker that dies has something under way.
    """

    _CLIENTS = 3
    _LINGERING = 2
    _REQUESTS_A_LINE = 15
    _PAUSE_S = 0.02

    def __init__(self, fleet: Fleet) -> None:
        self.sent: Tally = []
        """Noted before a request is sent: the service may have recorded it, or not."""
        self.acknowledged: Tally = []
        """Noted after its answer was read to the end: the service has recorded it."""
        self.refused: list[str] = []
        """Answers that say anything but what was asked for."""
        self._fleet = fleet
        self._ending = threading.Event()
        self._clients = [threading.Thread(target=self._run) for _ in range(self._CLIENTS)]
        self._clients += [threading.Thread(target=self._linger) for _ in range(self._LINGERING)]

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for client in self._clients:
            client.join()

    def _run(self) -> None:
        while not self._ending.is_set():
            with closing(self._fleet.line()) as line:
                for _ in range(self._REQUESTS_A_LINE):
                    if self._ending.wait(self._PAUSE_S) or not self._send(line):
                        break

    def _linger(self) -> None:
        while not self._ending.wait(self._PAUSE_S):
            with suppress(OSError, HTTPException):  # its worker has died
                self._fleet.ask("/linger")

    def _send(self, line: HTTPConnection) -> bool:
        """Send one request; False if its worker has died."""
        one = random.randint(2, 5), random.choice(AMOUNTS)
        self.sent.append(one)
        try:
            answer = post(line, recording(*one))
        except (OSError, HTTPException):
            return False
        except ValueError as error:
            self.refused.append(str(error))
            return False
        if (answer["rows"], answer["amount"]) == one:
            self.acknowledged.append(one)
        else:
            self.refused.append(f"{one} was answered with {answer}")
        return True


# --- The page ------------------------------------------------------------------------------------------------

Series = tuple[str, frozenset[tuple[str, str]]]

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@lru_cache(maxsize=10_000)
def _series(text: str) -> Series:
    name, _, labels = text.partition("{")
    return name, frozenset(_LABEL.findall(labels))


class Page:
    """A page in the text format, read ten times as quickly as by prometheus_client's parser.

    Errors:  ValueError for a line that is none, and for a series that stands there twice.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.kinds: dict[str, str] = {}
        self.samples: dict[Series, float] = {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                name, kind = line.split()[2:]
                self.kinds[name] = kind
            elif not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                key = _series(series)
                if key in self.samples:
                    msg = f"{series} stands twice on the page"
                    raise ValueError(msg)
                self.samples[key] = float(value)

    def of(self, name: str, **labels: str) -> dict[Series, float]:
        """The samples of a name that carry all of these labels."""
        return {
            series: value
            for series, value in self.samples.items()
            if series[0] == name and labels.items() <= set(series[1])
        }

    def total(self, name: str, **labels: str) -> float:
        """What the samples of a name with these labels add up to; 0.0 if there is none."""
        return sum(self.of(name, **labels).values())

    def growing(self) -> dict[Series, float]:
        """The samples that may only grow: of counters, and the buckets, counts and sums of histograms.

        What concerns one worker goes with it, and begins anew with its successor.
        """
        return {series: value for series, value in self.samples.items() if self._grows(*series)}

    def _grows(self, name: str, labels: frozenset[tuple[str, str]]) -> bool:
        if "worker" in dict(labels):
            return False
        if self.kinds.get(name) == "counter":
            return True
        family, _, part = name.rpartition("_")
        return part in ("bucket", "count", "sum") and self.kinds.get(family) == "histogram"


READ = {row.page_name for row in CATALOGUE if row.kind == "counter" and row.across == "once"}
"""What a source reads: who leads next on a busy machine may serve a page before it has."""


class Growth:
    """Holds each page against those before it: what may only grow never steps back, and what was recorded stays."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._last: dict[Series, float] = {}

    def look(self, growing: Mapping[Series, float], wall_s: float) -> None:
        """Take the next page's samples, seen at this time."""
        for series, last in self._last.items():
            value = growing.get(series)
            if value is None:
                if series[0] not in READ:
                    self.faults.append(f"{series} was {last!r} and is gone")
            elif not value >= last and not (series[0] == "daily_predictions_total" and near_midnight(wall_s)):
                self.faults.append(f"{series} was {last!r} and is {value!r}")
        self._last |= growing


def near_midnight(wall_s: float) -> bool:
    """Whether a new day, in UTC, has begun just now or does so in a moment."""
    return (wall_s + 10) % 86_400 < 20


class Watch:
    """Scrapes the page again and again until the block ends, and keeps what was wrong and when it was good."""

    _PAUSE_S = 0.07
    _STRICT_EVERY = 25
    _BEAT_S = 0.01
    _LATE_S = 0.005

    def __init__(self, fleet: Fleet) -> None:
        self.growth = Growth()
        self.good: list[tuple[float, float]] = []
        """When each good scrape began and ended."""
        self.gaps: list[tuple[float, float]] = []
        """The longest time without a good scrape in each block of `within`, and how much of it was the machine's."""
        self._fleet = fleet
        self._port = fleet.place.page_port
        self._stalls: list[tuple[float, float]] = []
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._scrape), threading.Thread(target=self._beat)]

    @property
    def faults(self) -> list[str]:
        """What was wrong with a page."""
        return self.growth.faults

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        until(lambda: self.good)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    @contextmanager
    def within(self, most_s: float) -> Iterator[None]:
        """Whoever ends in the block, the page is never away for longer than this, in it and right after it."""
        began, waited = time.monotonic(), self._fleet.waited()
        yield
        ended = time.monotonic()
        until(lambda: self.good[-1][0] >= ended)
        seen = [scrape for scrape in self.good if scrape[1] > began]
        last = next(index for index, (begin, _) in enumerate(seen) if begin >= ended)
        ends = [began, *(end for _, end in seen[: last + 1])]
        since, back = max(pairwise(ends), key=lambda gap: gap[1] - gap[0])
        late_s = self.late_s(since, back, waited)
        self.gaps.append((back - since, late_s))
        assert back - since - late_s < most_s, f"the page was away for {back - since} s, {late_s} s by the machine"

    def late_s(self, since: float, back: float, waited: Mapping[int, float]) -> float:
        """What the machine has added to the time between two moments, before which the fleet has waited so much.

        That is what a thread of this process that only sleeps was late by, and for how long the threads of whoever
        leads now, and of its page process, have stood in line for a processor, by the kernel's account.
        """
        leader, now = self._fleet.leader(), self._fleet.waited()
        leads = {leader, *(pid for pid in self._fleet.listeners() if leader in ancestors(pid))}
        stalls = sum(max(0.0, min(end, back) - max(begin, since)) for begin, end in list(self._stalls))
        return stalls + sum(now.get(pid, 0.0) - waited.get(pid, 0.0) for pid in leads)

    def _scrape(self) -> None:
        while not self._ending.wait(self._PAUSE_S):
            began = time.monotonic()
            try:
                page = Page(fetch(self._port, TEXT))
                if len(self.good) % self._STRICT_EVERY == 0:
                    check_strictly(page, fetch(self._port, OPENMETRICS))
            except (OSError, HTTPException):
                continue  # nobody serves the page just now: what that means the times of the good ones will tell
            except ValueError as error:
                self.faults.append(str(error))
                continue
            self.growth.look(page.growing(), time.time())
            self.good.append((began, time.monotonic()))

    def _beat(self) -> None:
        while not self._ending.is_set():
            due = time.monotonic() + self._BEAT_S
            self._ending.wait(self._BEAT_S)
            if (now := time.monotonic()) > due + self._LATE_S:
                self._stalls.append((due, now))


def check_strictly(page: Page, openmetrics: str) -> None:
    """Let prometheus_client's parsers read a page.

    Errors:  ValueError if one of them refuses it, or finds another number of samples.
    """
    strict = sum(len(family.samples) for family in parse_text(page.text))
    if strict != len(page.samples):
        msg = f"prometheus_client reads {strict} samples, not {len(page.samples)}"
        raise ValueError(msg)
    for _ in parse_openmetrics(openmetrics):
        ...  # it raises at what it refuses
