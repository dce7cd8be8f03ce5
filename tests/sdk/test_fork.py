"""Forked children: they begin at nothing, with locks and a file of their own, and leave their parent alone."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.metrics import Observation
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_mlops.metrics import API_REQUEST_DURATION, DROPPED, PREDICTIONS
from otel_mlops.sdk import instruments, stream
from otel_mlops.sdk import recording as recording_module
from otel_mlops.sdk.files import is_alive
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.sdk.records import SERIES, read_ledger
from tests.sdk.folder import Folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork: run this on Linux or macOS")

OpenProvider = Callable[..., MeterProvider]
A_LONG_TIME_S = 30.0


class Child:
    """A forked child, what it answers, and its end."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._answers, tell = os.pipe()
        self._wait, self._go_on = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._go_on)
                os.write(tell, json.dumps(work()).encode() + b"\n")
                os.read(self._wait, 1)  # until the test is done with it
            except BaseException as error:
                os.write(tell, json.dumps({"error": repr(error)}).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(tell)
        os.close(self._wait)

    def answer(self) -> Any:
        """What the work returned."""
        arrivals = select.poll()  # select() knows no descriptor past 1,023, of which other tests may leave many
        arrivals.register(self._answers, select.POLLIN)
        assert arrivals.poll(A_LONG_TIME_S * 1000), "the child hangs"
        answer = b""
        while not answer.endswith(b"\n"):
            answer += os.read(self._answers, 1 << 16)
        found = json.loads(answer)
        assert not (isinstance(found, dict) and "error" in found), found
        return found

    def kill(self) -> None:
        """End it without a word."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._answers)
        os.close(self._go_on)


@pytest.fixture
def fork() -> Iterator[Callable[[Callable[[], Any]], Child]]:
    """Forks children that are killed at the end, by SIGKILL, as workers die."""
    children: list[Child] = []

    def one(work: Callable[[], Any]) -> Child:
        children.append(Child(work))
        return children[-1]

    yield one
    for child in children:
        child.kill()


@pytest.fixture
def shared(open_provider: OpenProvider, reader: PageReader, tmp_path: Path) -> MeterProvider:
    """A provider with a page and a ledger in a file."""
    return open_provider(metric_readers=[reader], ledger=Ledger(Folder(lambda: tmp_path)))


def path_of(provider: MeterProvider) -> Path:
    """Where its ledger is."""
    assert provider.ledger.path is not None
    return provider.ledger.path


def cells_in(path: Path, name: str) -> list[list[float]]:
    """The cells of a metric's series in a ledger's file."""
    records = read_ledger(path)
    numbers = [
        each.description["number"]
        for each in records
        if isinstance(each.description, dict) and each.description["name"] == name
    ]
    return [each.cells for each in records if each.kind == SERIES and each.description[0] in numbers]


def totals(provider: MeterProvider, name: str) -> list[list[float]]:
    """The cells of a metric's series in this process."""
    return [each.read() for one in provider.streams() if one.name == name for each in one.living()]


# --- Beginning at nothing -----------------------------------------------------------------------------------


def test_a_child_begins_at_nothing(shared: MeterProvider, reader: PageReader, fork: Any):
    """A child has nothing of what its parent counted, on its page neither, and the parent keeps it."""
    meter = shared.get_meter("m")
    counter, gauge = meter.create_counter("c"), meter.create_gauge("g")
    counter.add(5, {"a": "1"})
    gauge.set(7)
    reader.page()

    def work() -> Any:
        before = [totals(shared, "c"), totals(shared, "g"), "c_total" in reader.page().body.decode()]
        counter.add(1, {"a": "1"})
        counter.add(2, {"a": "2"})
        page = reader.page().body.decode()
        return [before, totals(shared, "c"), [line for line in page.splitlines() if line.startswith(("c_", "g "))]]

    before, after, lines = fork(work).answer()
    assert before == [[], [], False]
    assert after == [[1.0], [2.0]]
    assert lines == ['c_total{a="1"} 1.0', 'c_total{a="2"} 2.0']
    counter.add(1, {"a": "1"})
    assert totals(shared, "c") == [[6.0]]
    assert 'c_total{a="1"} 6.0' in reader.page().body.decode()


def test_a_child_that_records_nothing_leaves_no_file(shared: MeterProvider, tmp_path: Path, fork: Any):
    """Being born makes nobody a worker: neither a child of a worker nor one of a process that has recorded nothing."""
    counter = shared.get_meter("m").create_counter("c")
    handle = counter.bind({"a": "1"})
    assert fork(lambda: [counter.bind({"b": "1"}) is None, len(list(tmp_path.iterdir()))]).answer() == [False, 0]
    handle.add(1)
    fork(lambda: 0).answer()
    assert list(tmp_path.iterdir()) == [path_of(shared)]


def test_handles_from_before_the_fork_count_in_the_childs_own_file(shared: MeterProvider, tmp_path: Path, fork: Any):
    """Handles, used before or not, of every kind, in the overflow and forgotten ones, write into the child's file."""
    shared.max_series = 2
    meter = shared.get_meter("m")
    counter, updown, gauge = meter.create_counter("c"), meter.create_up_down_counter("u"), meter.create_gauge("g")
    histogram = meter.create_histogram("h", explicit_bucket_boundaries_advisory=[1.0])
    used, unused, over = (counter.bind({"n": n}) for n in range(3))
    handles = [updown.bind(), gauge.bind(), histogram.bind()]
    forgotten = meter.create_counter("f").bind({"a": "1"})
    forgotten.add(9)
    meter.create_counter("f").forget()
    flags = TraceFlags(TraceFlags.SAMPLED)
    span = trace.set_span_in_context(NonRecordingSpan(SpanContext(1, 2, False, flags)))

    def record() -> None:
        token = otel_context.attach(span)
        handles[0].add(-1)
        handles[1].set(3)
        handles[2].record(0.5)
        handles[2].record_many([0.5, 2.0])
        otel_context.detach(token)

    used.add(5)
    over.add(5)
    record()

    def work() -> str:
        for handle in (used, unused, over, forgotten):
            handle.add(1)
        record()
        counter.add(1, {"n": 0})
        return str(path_of(shared))

    before = path_of(shared).read_bytes()
    child = Path(fork(work).answer())
    assert path_of(shared).read_bytes() == before
    assert {path_of(shared), child} == set(tmp_path.iterdir())
    assert cells_in(child, "c") == [[2.0], [1.0], [1.0]]
    assert (cells_in(child, "u"), cells_in(child, "h"), cells_in(child, "f")) == ([[-1.0]], [[2.0, 1.0, 3.0]], [[1.0]])
    assert [cells[0] for cells in cells_in(child, "g")] == [3.0]
    assert cells_in(path_of(shared), "c") == [[5.0], [5.0]]
    assert is_alive(child)


def test_a_parent_and_its_children_count_at_once(shared: MeterProvider, fork: Any):
    """What three children and their parent add to the same handle at the same time is exact in each one's file."""
    handle = shared.instrument(PREDICTIONS).bind({"model_version": "1"})
    histogram = shared.instrument(API_REQUEST_DURATION).bind({"method": "GET"})
    handle.add(1)

    def work() -> str:
        for _ in range(20_000):
            handle.add(1)
            histogram.record(0.25)
        return str(path_of(shared))

    children = [fork(work) for _ in range(3)]
    for _ in range(20_000):
        handle.add(1)
    paths = [Path(child.answer()) for child in children]
    assert cells_in(path_of(shared), PREDICTIONS.name) == [[20_001.0]]
    assert totals(shared, PREDICTIONS.name) == [[20_001.0]]
    for path in paths:
        assert cells_in(path, PREDICTIONS.name) == [[20_000.0]]
        ((*buckets, total),) = cells_in(path, API_REQUEST_DURATION.name)
        assert (sum(buckets), total) == (20_000.0, 5000.0)
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + A_LONG_TIME_S
    while any(map(is_alive, paths)):
        assert time.monotonic() < deadline
    assert [cells_in(path, PREDICTIONS.name) for path in paths] == [[[20_000.0]]] * 3


def test_grandchildren_are_children_too(shared: MeterProvider, tmp_path: Path, fork: Any):
    """A child's child begins at nothing as well, and has a file of its own."""
    counter = shared.get_meter("m").create_counter("c")
    counter.add(1)

    def work() -> Any:
        counter.add(10)
        grandchild = Child(lambda: [counter.add(100), totals(shared, "c"), str(path_of(shared))])
        answer = grandchild.answer()
        return [totals(shared, "c"), answer[1], len({answer[2], str(path_of(shared))})]

    assert fork(work).answer() == [[[10.0]], [[100.0]], 2]
    assert totals(shared, "c") == [[1.0]]
    assert len(list(tmp_path.iterdir())) == 3


def test_readers_of_the_child_see_the_child(open_provider: OpenProvider, fork: Any):
    """Totals and differences in a child are the child's own, and begin with it."""
    delta = dict.fromkeys([sdk.Counter], AggregationTemporality.DELTA)
    readers = [InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=delta)]
    provider = open_provider(metric_readers=readers)
    counter = provider.get_meter("m").create_counter("c")
    provider.get_meter("m").create_observable_counter("o", [lambda _: [Observation(4)]])

    def read() -> list[Any]:
        found = []
        for each in readers:
            data = each.get_metrics_data()
            every = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
            found.append({m.name: [(p.value, p.start_time_unix_nano) for p in m.data.data_points] for m in every})
        return found

    counter.add(5)
    read()
    forked_ns = time.time_ns()

    def work() -> Any:
        counter.add(2)
        first = read()
        counter.add(1)
        return [first, read()]

    first, second = fork(work).answer()
    assert [[value for value, _ in each["c"]] for each in first] == [[2.0], [2.0]]
    assert [[value for value, _ in each["c"]] for each in second] == [[3.0], [1.0]]
    assert all(start > forked_ns for each in [*first, *second] for _, start in each["c"])
    assert [[value for value, _ in each["o"]] for each in first] == [[4], [4]]
    counter.add(1)
    assert [[value for value, _ in each["c"]] for each in read()] == [[6.0], [1.0]]


# --- Locks that another thread holds ------------------------------------------------------------------------


@pytest.fixture(params=["lock_free", "locked"])
def recording(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to record."""
    classes = recording_module.LOCKED if request.param == "locked" else recording_module.LOCK_FREE
    monkeypatch.setattr(stream, "RECORDING", classes)
    monkeypatch.setattr(instruments, "RECORDING", classes)


def every_lock(provider: MeterProvider, reader: PageReader, memory: InMemoryMetricReader) -> dict[str, Any]:
    """The locks that another thread may hold at the moment of the fork."""
    meter = provider._meters[next(iter(provider._meters))]
    storage = provider._consumer._reader_storages[memory]
    found = {
        "ledger": provider.ledger.lock,
        "consumer": provider._consumer._lock,
        "page": reader._lock,
        "meters": provider._meter_lock,
        "provider": provider._lock,
        "readers": type(provider)._all_metric_readers_lock,
        "instruments": meter._instrument_registration_lock,
        "identities": meter._instrument_ids_lock,
        "storage": storage._lock,
    }
    found.update({f"stream {each.name}": each.lock for each in provider.streams() if each.name == "c"})
    observed = [match for each in storage._instrument_view_instrument_matches.values() for match in each]
    found.update({f"observed {number}": match._lock for number, match in enumerate(observed)})
    return found


LOCKS = [
    "ledger", "consumer", "page", "meters", "provider", "readers", "instruments", "identities", "storage", "stream c",
    "observed 0",
]  # fmt: skip


@pytest.mark.stress
@pytest.mark.parametrize("name", [*LOCKS, "all"])
def test_a_fork_while_another_thread_holds_a_lock(
    open_provider: OpenProvider, reader: PageReader, tmp_path: Path, fork: Any, recording: None, name: str
):
    """Whatever another thread was in the middle of, the child records, creates, scrapes, collects and ends."""
    memory = InMemoryMetricReader()
    provider = open_provider(metric_readers=[reader, memory], ledger=Ledger(Folder(lambda: tmp_path)))
    meter = provider.get_meter("m")
    counter, histogram = meter.create_counter("c"), meter.create_histogram("h")
    meter.create_observable_gauge("o", [lambda _: [Observation(4)]])
    handle = histogram.bind({"a": "1"})
    counter.add(5)
    handle.record(1)
    memory.collect()
    reader.page()
    locks = every_lock(provider, reader, memory)
    assert set(LOCKS) <= set(locks)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        taken = list(locks.values()) if name == "all" else [locks[name]]
        for lock in taken:
            lock.acquire()
        held.set()
        assert release.wait(A_LONG_TIME_S)
        for lock in taken:
            lock.release()

    holding = threading.Thread(target=hold)
    holding.start()
    assert held.wait(A_LONG_TIME_S)

    def work() -> Any:
        counter.add(1)
        counter.add(1, {"new": 1})
        counter.add(None)
        handle.record(1)
        handle.record_many([1, 2])
        meter.create_counter("later").add(1)
        provider.get_meter("other").create_gauge("g").set(1)
        meter.create_observable_gauge("p", [lambda _: [Observation(5)]])
        counter.forget({"new": 1})
        page = reader.page().body.decode()
        provider.add_metric_reader(InMemoryMetricReader())
        flushed = provider.force_flush(timeout_millis=A_LONG_TIME_S * 1e3)
        memory.collect()
        provider.shutdown(timeout_millis=A_LONG_TIME_S * 1e3)
        shown = [line for line in page.splitlines() if line.startswith(("c_total", "h_count", "later", "o ", "p "))]
        return [shown, flushed]

    try:
        shown, flushed = fork(work).answer()
    finally:
        release.set()
        holding.join()
    assert shown == ["c_total 1.0", 'h_count{a="1"} 3', "later_total 1.0", "o 4.0", "p 5.0"]
    assert flushed is True
    assert totals(provider, "c") == [[5.0]]
    assert list(tmp_path.iterdir()) == [path_of(provider)]


@pytest.mark.stress
def test_forks_while_everything_is_going_on(open_provider: OpenProvider, reader: PageReader, tmp_path: Path, fork: Any):
    """Children forked while threads record, create, scrape and forget all answer, and the parent's totals are exact."""
    provider = open_provider(metric_readers=[reader], ledger=Ledger(Folder(lambda: tmp_path)))
    meter = provider.get_meter("m")
    counter = meter.create_counter("c")
    done = threading.Event()
    added = [0, 0]

    def record(thread: int) -> None:
        while not done.is_set():
            counter.add(1, {"thread": thread})
            added[thread] += 1
            number = added[thread] % 50
            meter.create_counter(f"other{number}").add(1, {"n": added[thread] % 7})
            counter.add(None)

    def scrape() -> None:
        while not done.is_set():
            reader.page()
            meter.create_counter("other1").forget({"n": 3})

    threads = [threading.Thread(target=record, args=(0,)), threading.Thread(target=record, args=(1,))]
    threads.append(threading.Thread(target=scrape))
    for each in threads:
        each.start()

    def work() -> Any:
        counter.add(1, {"thread": "child"})
        counter.add(1, {"thread": 0})
        return [reader.page().body.count(b"c_total{"), sorted(map(sum, totals(provider, "c")))]

    try:
        children = [fork(work) for _ in range(12)]
        answers = [child.answer() for child in children]
    finally:
        done.set()
        for each in threads:
            each.join()
    assert answers == [[2, [1.0, 1.0]]] * 12
    assert sorted(map(sum, totals(provider, "c"))) == sorted(map(float, added))
    assert totals(provider, DROPPED.name) == [[float(sum(added))]]


FORKS_AFTER_A_POOL = """
import os, sys
from pathlib import Path
from opentelemetry.sdk.resources import Resource
from otel_mlops.sdk.provider import MeterProvider
provider = MeterProvider(resource=Resource({}))
counter = provider.get_meter("m").create_counter("c")
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor() as pool:
    pool.submit(counter.add, 1).result()
pid = os.fork()
counter.add(1)
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_thread_pool_before_the_fork_does_not_stop_the_child():
    """A child of a process that has used a thread pool since it made its provider is born, and ends."""
    with subprocess.Popen([sys.executable, "-c", FORKS_AFTER_A_POOL], start_new_session=True) as forking:
        try:
            assert forking.wait(A_LONG_TIME_S) == 0
        finally:
            if forking.returncode is None:
                os.killpg(forking.pid, signal.SIGKILL)


# --- The end of a child, and of a parent --------------------------------------------------------------------

CHILD_EXITS = """
import os, sys
from pathlib import Path
from otel_mlops.sdk.files import is_alive
from otel_mlops.sdk.ledger import Ledger
from tests.sdk.folder import Folder
from otel_mlops.sdk.records import read_ledger
from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.provider import MeterProvider
provider = MeterProvider([PageReader()], ledger=Ledger(Folder(lambda: Path(sys.argv[1]))))
counter = provider.get_meter("m").create_counter("c")
counter.add(5)
pid = os.fork()
counter.add(1)
if pid == 0:
    sys.exit(0)  # an ordinary end, with everything that runs then
os.waitpid(pid, 0)
assert [path for path in Path(sys.argv[1]).iterdir()] == [provider.ledger.path]
assert is_alive(provider.ledger.path)
assert [each.cells for each in read_ledger(provider.ledger.path) if each.cells] == [[6.0]]
"""


def test_a_childs_ordinary_end_leaves_the_parents_file(tmp_path: Path):
    """A child that exits removes its own file and not its parent's, whose end removes the rest."""
    ended = subprocess.run(
        [sys.executable, "-c", CHILD_EXITS, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


STARTS_A_PROGRAM = """
import subprocess, sys, time
from pathlib import Path
from otel_mlops.sdk.ledger import Ledger
from tests.sdk.folder import Folder
from otel_mlops.sdk.records import SERIES
made = Ledger(Folder(lambda: Path(sys.argv[1])))
made.append(SERIES, "x", 1)
other = subprocess.Popen(["sleep", "60"], close_fds=False)
print(made.path, other.pid, flush=True)
time.sleep(60)
"""


def test_a_program_that_a_dead_worker_started_does_not_keep_it_alive(tmp_path: Path):
    """Programs started by a worker hold neither its lock nor its file, though they inherit all descriptors."""
    worker = subprocess.Popen(
        [sys.executable, "-c", STARTS_A_PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    path, pid = worker.stdout.readline().split()
    try:
        assert is_alive(Path(path))
        worker.kill()
        worker.wait(A_LONG_TIME_S)
        assert not is_alive(Path(path))
        os.kill(int(pid), 0)  # it lives
    finally:
        os.kill(int(pid), signal.SIGKILL)
        worker.stdout.close()


def test_a_child_of_a_dead_parent_goes_on(tmp_path: Path):
    """A forked worker records on after its parent was killed, and only the parent is dead."""
    program = CHILD_EXITS.partition("pid = os.fork()")[0] + (
        "import signal, time\n"
        "pid = os.fork()\n"
        "if pid:\n"
        "    print(provider.ledger.path, pid, flush=True)\n"
        "    time.sleep(60)\n"
        "sys.stdin.readline()\n"
        "counter.add(1)\n"
        "print(provider.ledger.path, flush=True)\n"
        "sys.stdin.readline()\n"
        "counter.add(1)\n"
        "print([each.cells for each in read_ledger(provider.ledger.path) if each.cells], flush=True)\n"
        "sys.stdin.readline()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    parents, pid = parent.stdout.readline().split()
    try:
        parent.stdin.write("record\n")
        parent.stdin.flush()
        childs = parent.stdout.readline().strip()
        parent.kill()
        parent.wait(A_LONG_TIME_S)
        assert (is_alive(Path(parents)), is_alive(Path(childs))) == (False, True)
        parent.stdin.write("record again\n")
        parent.stdin.flush()
        assert parent.stdout.readline().strip() == "[[2.0]]"
        assert cells_in(Path(parents), "c") == [[5.0]]
    finally:
        os.kill(int(pid), signal.SIGKILL)
        parent.stdin.close()
        parent.stdout.close()
