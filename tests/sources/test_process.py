"""The worker processes as a source: this process and real children, and processes that a test describes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from opentelemetry.metrics import CallbackOptions
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from otel_mlops.metrics import (
    PROCESS_CPU,
    PROCESS_MAX_FDS,
    PROCESS_OPEN_FDS,
    PROCESS_PROPORTIONAL_MEMORY,
    PROCESS_RESIDENT_MEMORY,
    PROCESS_START_TIME,
    PROCESS_THREADS,
    Metric,
)
from otel_mlops.sdk.text import OPENMETRICS
from otel_mlops.settings import Settings
from otel_mlops.sources.process import open_process
from otel_mlops.sources.sampler import Sample, Sampler
from otel_mlops.telemetry import Telemetry
from otel_mlops.testing import collect

LINUX = sys.platform == "linux"
ON_LINUX = pytest.mark.skipif(not LINUX, reason="only Linux tells the proportional memory: run this there")
ROWS = {
    PROCESS_CPU, PROCESS_MAX_FDS, PROCESS_OPEN_FDS, PROCESS_PROPORTIONAL_MEMORY, PROCESS_RESIDENT_MEMORY,
    PROCESS_START_TIME, PROCESS_THREADS,
}  # fmt: skip
MINUTE_S = 60.0


def values(samples: list[Sample], worker: str = "0") -> dict[Metric, float]:
    """What was read of a worker."""
    found = {sample.metric: sample.value for sample in samples if sample.attributes == {"worker": worker}}
    assert len(found) == len([sample for sample in samples if sample.attributes["worker"] == worker])
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said about the processes."""
    records = [each for each in caplog.records if each.levelno >= logging.WARNING]
    return [each.getMessage() for each in records if each.name == "otel_mlops.sources.process"]


# --- Real processes ------------------------------------------------------------------------------------------


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has run the code, and waits."""
    code += "\nprint('ready', flush=True)\nimport sys; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


BUSY = """
import os, threading, time
files = [open(os.devnull) for _ in range(7)]
threads = [threading.Thread(target=time.sleep, args=(3600,), daemon=True).start() for _ in range(3)]
held = os.urandom(32 << 20)
while time.process_time() < 0.2: ...
"""


def test_what_a_process_has_and_does_is_what_is_read_of_it():
    """Of two processes the one that has more files, threads and memory, and has computed, is told so by just that."""
    with child("") as idle, child(BUSY) as busy:
        samples = open_process(lambda: {"0": idle.pid, "1": busy.pid})()
        less, more = values(samples), values(samples, "1")
        assert more[PROCESS_START_TIME] == psutil.Process(busy.pid).create_time()
        times = psutil.Process(busy.pid).cpu_times()
    assert less[PROCESS_OPEN_FDS] + 7 == more[PROCESS_OPEN_FDS]
    assert less[PROCESS_THREADS] + 3 == more[PROCESS_THREADS] == 4
    assert less[PROCESS_RESIDENT_MEMORY] + (24 << 20) < more[PROCESS_RESIDENT_MEMORY]
    assert 0.15 < more[PROCESS_CPU] <= times.user + times.system  # the kernel counts in ticks


def test_every_row_is_read_of_this_process():
    """A worker reads itself as it reads the others, and what it may have open is what the system says."""
    found = values(open_process(lambda: {"0": os.getpid()})())
    assert found.keys() == (ROWS if LINUX else ROWS - {PROCESS_PROPORTIONAL_MEMORY, PROCESS_MAX_FDS})
    assert found[PROCESS_START_TIME] < time.time()
    if LINUX:
        import resource

        assert found[PROCESS_MAX_FDS] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_the_time_of_a_process_is_its_own():
    """What its children have used is not the worker's, as they are no worker."""
    burn = "import time\nwhile time.process_time() < 0.2: ...\n"
    with child(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])") as process:
        read = values(open_process(lambda: {"0": process.pid})())
        times = psutil.Process(process.pid).cpu_times()
        assert times.children_user + times.children_system >= 0.15
        assert read[PROCESS_CPU] == pytest.approx(times.user + times.system, abs=0.03)


@ON_LINUX
def test_the_proportional_memory_of_a_process_is_at_most_what_it_has_in_memory():
    """What it alone has in memory counts in full, what it shares in part."""
    with child("held = bytearray(b'x' * (48 << 20))") as process:
        read = values(open_process(lambda: {"0": process.pid})())
        assert 48 << 20 < read[PROCESS_PROPORTIONAL_MEMORY] < read[PROCESS_RESIDENT_MEMORY]


def test_a_worker_that_has_ended_is_left_out(caplog):
    """What has ended, or was never there, costs the others nothing, and is no fault."""
    caplog.set_level(logging.DEBUG)
    with child("") as process:
        pids = {"0": os.getpid(), "1": process.pid}
        read = open_process(lambda: pids)
        assert values(read(), "1")
    samples = read()
    assert values(samples)
    assert values(samples, "1") == {}
    assert "Worker 1 has ended" in caplog.text
    assert warnings(caplog) == []
    pids = {"1": process.pid}
    assert read() == []


def test_the_sampler_takes_all_of_it():
    """Totals and gauges of every worker are shown as they were read; nothing is dropped, nothing is added up."""
    dropped: list[str] = []
    pids = {"0": os.getpid(), "page": os.getpid()}
    sampler = Sampler({"process": open_process(lambda: pids)}, 5.0, on_dropped=dropped.append, count=pytest.fail)
    sampler.sample()
    for row in (PROCESS_CPU, PROCESS_RESIDENT_MEMORY, PROCESS_START_TIME):
        shown = {seen.attributes["worker"]: seen.value for seen in sampler.observe(row)(CallbackOptions())}
        assert shown.keys() == {"0", "page"}
        assert min(shown.values()) > 0
    assert dropped == []
    del pids["0"]
    sampler.sample()
    assert [seen.attributes for seen in sampler.observe(PROCESS_CPU)(CallbackOptions())] == [{"worker": "page"}]


# --- Processes that a test describes -------------------------------------------------------------------------


class GoneError(Exception):
    """psutil's NoSuchProcess."""


class DeniedError(Exception):
    """psutil's AccessDenied."""


class Process:
    """Stands for psutil's."""

    system: Processes

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._born = self._ask("born")
        self.system.opened.append(pid)

    def _ask(self, what: str) -> Any:
        told = self.system.there.get(self.pid)
        if told is None:
            raise GoneError(self.pid)
        if isinstance(told[what], Exception):
            raise told[what]
        return told[what]

    def oneshot(self) -> AbstractContextManager[None]:
        return nullcontext()

    def is_running(self) -> bool:
        return self.system.there.get(self.pid, {}).get("born") == self._born

    def cpu_times(self) -> Any:
        return SimpleNamespace(**self._ask("times"))

    def memory_info(self) -> Any:
        return SimpleNamespace(rss=self._ask("rss"))

    def num_threads(self) -> int:
        return self._ask("threads")

    def create_time(self) -> float:
        return self._ask("created")


class LinuxProcess(Process):
    """What psutil has on Linux besides."""

    def num_fds(self) -> int:
        return self._ask("fds")

    def rlimit(self, which: int) -> tuple[int, int]:
        assert which == Processes.RLIMIT_NOFILE
        return self._ask("most"), 1 << 20


class Processes:
    """Stands for psutil: what there is by pid, and which were opened."""

    NoSuchProcess = GoneError
    RLIMIT_NOFILE, RLIM_INFINITY = 7, -1

    def __init__(self, process: type[Process] = LinuxProcess) -> None:
        self.there: dict[int, dict[str, Any]] = {}
        self.opened: list[int] = []
        self.Process = type("Process", (process,), {"system": self})

    def start(self, pid: int, **told: Any) -> None:
        """Have a process under a pid."""
        times = {"user": 2.5, "system": 0.5, "children_user": 9.0, "children_system": 9.0}
        told = {"times": times, "rss": 4096, "threads": 2, "fds": 5, "most": 1024, "born": 1e9} | told
        self.there[pid] = {"created": told["born"]} | told


@pytest.fixture
def processes() -> Processes:
    """A system with two processes."""
    there = Processes()
    there.start(10)
    there.start(11, rss=8192)
    return there


def test_each_row_says_its_own(processes: Processes, tmp_path: Path):
    """Every value stands under the row, and the worker, that it is of."""
    read = open_process(lambda: {"0": 10, "page": 11}, processes, root=tmp_path)
    expected = {
        PROCESS_CPU: 3.0, PROCESS_RESIDENT_MEMORY: 4096.0, PROCESS_THREADS: 2.0, PROCESS_START_TIME: 1e9,
        PROCESS_OPEN_FDS: 5.0, PROCESS_MAX_FDS: 1024.0,
    }  # fmt: skip
    assert values(read()) == expected
    assert values(read(), "page") == expected | {PROCESS_RESIDENT_MEMORY: 8192.0}


def test_a_worker_that_ends_in_the_middle_of_it_is_left_out(processes: Processes, tmp_path: Path):
    """Half of a worker is none of it."""
    read = open_process(lambda: {"0": 10, "1": 11}, processes, root=tmp_path)
    processes.there[11]["fds"] = GoneError(11)
    samples = read()
    assert values(samples)
    assert values(samples, "1") == {}
    processes.there[11]["fds"] = ProcessLookupError()
    assert values(read(), "1") == {}


def test_what_may_not_be_read_is_left_out_and_said_once(
    processes: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """What another user's process does not tell is absent, the rest of it is there; its successor is news again."""
    pids = {"0": 10, "1": 11}
    read = open_process(lambda: pids, processes, root=tmp_path)
    for what in ("fds", "most"):
        processes.there[11][what] = DeniedError("not yours")
    for _ in range(2):
        assert values(read(), "1").keys() == ROWS - {PROCESS_PROPORTIONAL_MEMORY, PROCESS_OPEN_FDS, PROCESS_MAX_FDS}
    (said,) = warnings(caplog)
    assert "worker 1" in said
    assert PROCESS_OPEN_FDS.name in said
    assert PROCESS_MAX_FDS.name in said
    assert "not yours" in said
    processes.there[11]["rss"] = DeniedError("nor this")
    for _ in range(2):
        assert PROCESS_RESIDENT_MEMORY not in values(read(), "1")
    assert "nor this" in warnings(caplog)[1]
    processes.start(12, fds=DeniedError("of another"))
    pids["1"] = 12
    read()
    assert ["another" in each for each in warnings(caplog)] == [False, False, True]


def test_where_nothing_can_be_read_the_source_is_down(processes: Processes, tmp_path: Path):
    """A reading raises what the first part raised when there are workers, and nothing at all is known of them."""
    processes.start(10, **dict.fromkeys(("times", "rss", "threads", "fds", "most", "created"), DeniedError("no")))
    read = open_process(lambda: {"0": 10}, processes, root=tmp_path)
    with pytest.raises(DeniedError, match="no"):
        read()
    processes.start(11)
    assert values(open_process(lambda: {"0": 10, "1": 11}, processes, root=tmp_path)(), "1")


def test_what_a_system_does_not_have_is_absent(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Where psutil has no descriptors, limits or proportional memory there is none of it, and nothing is said."""
    processes = Processes(Process)
    processes.start(10)
    read = open_process(lambda: {"0": 10}, processes, root=tmp_path)
    assert values(read()).keys() == {PROCESS_CPU, PROCESS_RESIDENT_MEMORY, PROCESS_THREADS, PROCESS_START_TIME}
    assert warnings(caplog) == []


def test_no_limit_is_no_number(processes: Processes, tmp_path: Path):
    """Who may have as many descriptors as there are has no most."""
    processes.there[10]["most"] = processes.RLIM_INFINITY
    assert PROCESS_MAX_FDS not in values(open_process(lambda: {"0": 10}, processes, root=tmp_path)())


def test_a_successor_is_another_process(processes: Processes, tmp_path: Path):
    """The number of a worker may come to another pid, and both to another process; else it is opened once."""
    pids = {"0": 10}
    read = open_process(lambda: pids, processes, root=tmp_path)
    assert values(read())[PROCESS_START_TIME] == values(read())[PROCESS_START_TIME] == 1e9
    assert processes.opened == [10]
    processes.start(10, born=2e9)
    assert values(read())[PROCESS_START_TIME] == 2e9
    pids["0"] = 11
    assert values(read())[PROCESS_RESIDENT_MEMORY] == 8192.0
    assert processes.opened == [10, 10, 11]


# --- The proportional memory ---------------------------------------------------------------------------------

ROLLUP = """\
55fe09bcb000-7fffdc9dd000 ---p 00000000 00:00 0                          [rollup]
Rss:               {rss} kB
Pss:               {pss} kB
Pss_Dirty:             112 kB
"""


class Memory:
    """The files in which Linux tells what of a process is in memory, and a clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 1000.0

    def say(self, pid: int, pss: int) -> None:
        """Have a process with so many kB."""
        folder = self.root / f"proc/{pid}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "smaps_rollup").write_text(ROLLUP.format(rss=2 * pss, pss=pss))

    def clock(self) -> float:
        return self.now


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    """Two processes' memory."""
    there = Memory(tmp_path)
    there.say(10, 100)
    there.say(11, 200)
    return there


Proportional = Callable[[], dict[str, float]]


@pytest.fixture
def pids() -> dict[str, int]:
    """Who the workers are."""
    return {"0": 10, "1": 11}


@pytest.fixture
def proportional(processes: Processes, memory: Memory, pids: dict[str, int]) -> Proportional:
    """Reads the source, and gives the workers' proportional memory in kB."""
    read = open_process(lambda: pids, processes, root=memory.root, clock=memory.clock)
    return lambda: {
        sample.attributes["worker"]: sample.value / 1024
        for sample in read()
        if sample.metric is PROCESS_PROPORTIONAL_MEMORY
    }


def test_proportional_memory_is_read_of_one_worker_a_reading_and_once_a_minute(
    proportional: Proportional, memory: Memory
):
    """A reading asks for the memory of the worker that waits longest, and shows what is known of the rest."""
    assert proportional() == {"0": 100.0}
    memory.say(10, 101)
    memory.now += 5
    assert proportional() == {"0": 100.0, "1": 200.0}
    memory.say(11, 201)
    memory.now += MINUTE_S - 6
    assert proportional() == {"0": 100.0, "1": 200.0}
    memory.now += 6
    assert proportional() == {"0": 101.0, "1": 200.0}
    assert proportional() == {"0": 101.0, "1": 201.0}
    memory.say(10, 102)
    assert proportional() == {"0": 101.0, "1": 201.0}


def test_a_large_worker_is_not_held_up(proportional: Proportional, processes: Processes, memory: Memory):
    """Of a worker with more than 4 GiB in memory there is no proportional memory: reading it would take too long."""
    processes.there[10]["rss"] = 5 * 2**30
    proportional()
    assert proportional() == {"1": 200.0}
    processes.there[10]["rss"] = 2**30
    memory.now += MINUTE_S
    assert proportional() == {"0": 100.0, "1": 200.0}


def test_what_is_known_of_a_worker_is_not_its_successors(
    proportional: Proportional, processes: Processes, memory: Memory, pids: dict[str, int]
):
    """A successor has no proportional memory until it was read, which comes before those that were read already."""
    for _ in range(2):
        proportional()
    processes.start(12)
    memory.say(12, 300)
    pids["0"] = 12
    pids["2"] = pids.pop("1")
    assert proportional() == {"0": 300.0}
    assert proportional() == {"0": 300.0, "2": 200.0}
    del pids["0"]
    assert proportional() == {"2": 200.0}


def test_proportional_memory_that_cannot_be_read_is_tried_again_in_a_minute(
    proportional: Proportional, memory: Memory, caplog: pytest.LogCaptureFixture
):
    """It is absent meanwhile, the other worker has its turn, and it is said once."""
    file = memory.root / "proc/10/smaps_rollup"
    file.unlink()
    file.mkdir()
    assert proportional() == {}
    assert proportional() == {"1": 200.0}
    file.rmdir()
    memory.say(10, 100)
    assert proportional() == {"1": 200.0}
    memory.now += MINUTE_S
    assert proportional() == {"0": 100.0, "1": 200.0}
    (said,) = warnings(caplog)
    assert PROCESS_PROPORTIONAL_MEMORY.name in said


# --- On the page ---------------------------------------------------------------------------------------------


@pytest.fixture
def open_telemetry(tmp_path: Path) -> Iterator[Callable[..., Telemetry]]:
    """Starts telemetries without a port that read nothing by themselves, and ends them."""
    opened: list[Telemetry] = []

    def one(**arguments: Any) -> Telemetry:
        private = {"service_name": "test", "start_server": False, "set_global": False, "state_dir": tmp_path}
        registry = arguments.pop("registry", None)
        settings = Settings(**(private | {"sources": ("process",), "monitoring_interval": 3600.0} | arguments))
        opened.append(Telemetry(settings, registry=registry))
        opened[-1].start()
        return opened[-1]

    yield one
    for each in opened:
        each.shutdown()


def test_every_row_is_on_the_page(open_telemetry: Callable[..., Telemetry]):
    """A worker's process stands there under the worker's number."""
    telemetry = open_telemetry()
    telemetry.sample()
    page = collect(telemetry)
    for row in ROWS if LINUX else ROWS - {PROCESS_PROPORTIONAL_MEMORY, PROCESS_MAX_FDS}:
        assert page.labels(row.page_name) == [{"worker": "0"}]
        assert page.value(row.page_name) > 0
    assert page.value("otel_mlops_source_up", source="process") == 1


@pytest.mark.parametrize("settings", [{"sources": ("host",)}, {"start_monitoring": False}, {"disabled": True}], ids=str)
def test_where_it_is_not_wanted_it_is_not_read(open_telemetry: Callable[..., Telemetry], settings: dict[str, Any]):
    """Without the source, without monitoring, or disabled, there is nothing of it."""
    telemetry = open_telemetry(**settings)
    telemetry.sample()
    assert not [name for name in collect(telemetry).names() if name.startswith("process_")]


def test_prometheus_clients_own_process_metrics_do_not_stand_beside_ours(
    open_telemetry: Callable[..., Telemetry], caplog: pytest.LogCaptureFixture
):
    """On our page ours have the names that both have, on the registry's own theirs; what one has alone is on both."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    telemetry = open_telemetry(registry=registry)
    telemetry.sample()
    ours = {row.page_name for row in ROWS if LINUX or row not in (PROCESS_PROPORTIONAL_MEMORY, PROCESS_MAX_FDS)}
    both = ours - {PROCESS_THREADS.page_name, PROCESS_PROPORTIONAL_MEMORY.page_name} if LINUX else set()
    for _ in range(2):
        for page, has_ours in ((telemetry.page(OPENMETRICS).body, True), (generate_openmetrics(registry), False)):
            # This parser refuses a family that stands there twice.
            samples = [sample for family in parse_openmetrics(page.decode()) for sample in family.samples]
            names = [sample.name for sample in samples]
            for name in ours:
                assert [each.labels for each in samples if each.name == name] == (
                    [{"worker": "0"}] if has_ours or name not in both else [{}]
                )
            assert names.count("process_virtual_memory_bytes") == LINUX
            assert "python_gc_collections_total" in names
            assert "python_gc_pause_seconds_count" in names
    said = [each.getMessage() for each in caplog.records if each.name == "otel_mlops.sdk.page"]
    assert len(said) == 2 * LINUX, said
