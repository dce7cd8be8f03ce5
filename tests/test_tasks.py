"""Scheduled tasks: when they run, what is counted, and that none can hurt the others or the process."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import subprocess
import sys
import threading
import time

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_mlops.metrics import SCHEDULED_TASK_DURATION, SCHEDULED_TASK_RUNS
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.tasks import Tasks
from tests.waiting import eventually

SELDOM_S = 3600
OFTEN_S = 0.02


def our_threads() -> list[str]:
    """The names of the threads that the tasks have."""
    names = (thread.name for thread in threading.enumerate())
    return sorted(name for name in names if name.startswith(("otel-mlops-task", "APScheduler")))


class Scheduled:
    """Tasks, and what was recorded of them."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.leads = True
        self.tasks = Tasks(self.provider, is_leader=lambda: self.leads)

    def _points(self, name):
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def runs(self, task: str, result: str = "success") -> float:
        """How many runs of a task ended so."""
        points = self._points(SCHEDULED_TASK_RUNS.name)
        return sum(p.value for p in points if p.attributes == {"task": task, "result": result})

    def timed(self, task: str) -> int:
        """How many runs of a task were timed."""
        points = self._points(SCHEDULED_TASK_DURATION.name)
        return sum(p.count for p in points if p.attributes == {"task": task})


@pytest.fixture
def scheduled():
    """Tasks of the test's own, stopped at its end."""
    scheduled = Scheduled()
    yield scheduled
    scheduled.tasks.stop(0.5)
    scheduled.provider.shutdown()


@pytest.fixture
def tasks(scheduled):
    """The tasks themselves."""
    return scheduled.tasks


# --- When a task runs --------------------------------------------------------------------------------------


def test_a_task_runs_at_once_when_the_tasks_start(scheduled, tasks):
    """A task that is scheduled before the start waits for it, and then for no interval."""
    before = set(threading.enumerate())  # hanging tasks of other tests leave threads behind on purpose
    tasks.schedule(lambda: None, SELDOM_S, "check")
    assert set(threading.enumerate()) <= before
    assert scheduled.runs("check") == 0
    tasks.start()
    eventually(lambda: scheduled.runs("check") == 1)
    assert scheduled.timed("check") == 1


def test_a_task_scheduled_later_runs_at_once_too(scheduled, tasks):
    """After the start there is nothing to wait for either."""
    tasks.start()
    tasks.schedule(lambda: None, SELDOM_S, "check")
    eventually(lambda: scheduled.runs("check") == 1)


def test_a_task_runs_again_after_each_interval(scheduled, tasks):
    """Runs come at the interval: neither faster, nor once only."""
    times: list[float] = []
    tasks.schedule(lambda: times.append(time.monotonic()), 0.1, "check")
    tasks.start()
    eventually(lambda: len(times) >= 4)
    # A late run may be followed by one in time, so only the whole is bounded.
    assert times[3] - times[0] > 0.25


def test_starting_twice_runs_nothing_twice(scheduled, tasks):
    """A second start does nothing while the tasks run."""
    tasks.schedule(lambda: None, SELDOM_S, "check")
    tasks.start()
    tasks.start()
    tasks.schedule(lambda: None, SELDOM_S, "marker")
    eventually(lambda: scheduled.runs("marker") == 1 and scheduled.runs("check") >= 1)
    assert scheduled.runs("check") == 1


def test_asynchronous_tasks_share_a_loop_that_is_not_the_callers(scheduled, tasks):
    """Coroutine functions, partials of them and objects called so run on one loop of the tasks' own."""
    loops = []

    async def check(_where: str = "") -> None:
        loops.append(asyncio.get_running_loop())

    class Check:
        async def __call__(self) -> None:
            await check()

    async def main() -> None:
        for name, func in {
            "plain": check,
            "partial": functools.partial(check, "db"),
            "object": Check(),
        }.items():
            tasks.schedule(func, SELDOM_S, name)
        tasks.start()
        await asyncio.to_thread(eventually, lambda: len(loops) == 3)
        assert asyncio.get_running_loop() not in loops

    asyncio.run(main())
    assert len(set(loops)) == 1


def test_what_a_synchronous_function_returns_is_awaited(scheduled, tasks):
    """A lambda over a coroutine function does its work, and its failure is the task's."""
    done = []

    async def check(fails: bool) -> None:
        done.append(fails)
        if fails:
            raise OSError("database is gone")

    tasks.schedule(lambda: check(fails=False), SELDOM_S, "good")
    tasks.schedule(lambda: check(fails=True), SELDOM_S, "bad")
    tasks.start()
    eventually(lambda: scheduled.runs("good") == 1 and scheduled.runs("bad", "error") == 1)
    assert sorted(done) == [False, True]


def test_runs_of_one_task_do_not_overlap(scheduled, tasks, caplog):
    """A run that falls due while the last is under way is counted as missed, and logged once."""
    leave = threading.Event()
    inside: list[int] = []
    most: list[int] = []

    def slow() -> None:
        inside.append(1)
        most.append(len(inside))
        leave.wait(30)
        inside.pop()

    tasks.schedule(slow, OFTEN_S, "slow")
    tasks.start()
    eventually(lambda: scheduled.runs("slow", "missed") >= 3)
    leave.set()
    eventually(lambda: scheduled.runs("slow") >= 2)
    assert max(most) == 1
    assert [r.getMessage() for r in caplog.records].count(
        "A run of task slow was missed: its last run has not ended"
    ) == 1  # fmt: skip


# --- Failures ----------------------------------------------------------------------------------------------


async def _fails_in_a_coroutine(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_task_that_fails_stops_neither_itself_nor_another(scheduled, tasks, error, asynchronous):
    """Whatever a task raises is counted as its error; it runs again, and so do the others."""

    def fail() -> None:
        raise error

    tasks.schedule(functools.partial(_fails_in_a_coroutine, error) if asynchronous else fail, OFTEN_S, "bad")
    tasks.schedule(lambda: None, OFTEN_S, "good")
    tasks.start()
    eventually(lambda: scheduled.runs("bad", "error") >= 2 and scheduled.runs("good") >= 2)
    assert scheduled.runs("bad") == 0
    assert scheduled.timed("bad") >= 2


def test_a_failure_is_logged_when_it_begins_and_when_it_ends(scheduled, tasks, caplog):
    """A task that fails on and on writes one line with its traceback, and one when it succeeds again."""
    caplog.set_level(logging.INFO)
    broken = threading.Event()
    broken.set()

    def check() -> None:
        if broken.is_set():
            raise OSError("database is gone")

    tasks.schedule(check, OFTEN_S, "check")
    tasks.start()
    eventually(lambda: scheduled.runs("check", "error") >= 3)
    broken.clear()
    eventually(lambda: scheduled.runs("check") >= 2)

    lines = [(record.levelno, record.getMessage(), bool(record.exc_info)) for record in caplog.records]
    assert lines == [
        (logging.ERROR, "Task check failed; more of the same is counted only", True),
        (logging.INFO, "Task check succeeds again", False),
    ]


def test_a_task_that_hangs_hinders_no_other(scheduled, tasks):
    """A synchronous hang, and a coroutine that blocks its loop, leave synchronous tasks running."""
    leave = threading.Event()

    async def blocks() -> None:
        leave.wait(30)

    tasks.schedule(lambda: leave.wait(30), SELDOM_S, "hangs")
    tasks.schedule(blocks, SELDOM_S, "blocks")
    tasks.schedule(lambda: None, OFTEN_S, "good")
    tasks.start()
    eventually(lambda: scheduled.runs("good") >= 3)
    leave.set()


def test_a_thread_that_cannot_be_started_is_a_missed_run(scheduled, tasks, monkeypatch):
    """Where the system gives no thread, the run is counted as missed and the next is tried."""
    start = threading.Thread.start
    refuse = threading.Event()

    def start_or_refuse(thread: threading.Thread) -> None:
        if refuse.is_set() and thread.name.startswith("otel-mlops-task-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_refuse)
    refuse.set()
    tasks.schedule(lambda: None, OFTEN_S, "check")
    tasks.start()
    eventually(lambda: scheduled.runs("check", "missed") >= 2)
    refuse.clear()
    eventually(lambda: scheduled.runs("check") >= 1)


# --- Once per group ----------------------------------------------------------------------------------------


def test_a_task_once_per_group_runs_in_the_leader_only(scheduled, tasks):
    """The lead is asked for before each run; a run that the leader makes is not counted here."""
    ran = []
    tasks.schedule(lambda: ran.append("sync"), OFTEN_S, "sync", once_per_group=True)

    async def check() -> None:
        ran.append("async")

    tasks.schedule(check, OFTEN_S, "async", once_per_group=True)
    tasks.schedule(lambda: None, OFTEN_S, "everywhere")
    scheduled.leads = False
    tasks.start()
    eventually(lambda: scheduled.runs("everywhere") >= 3)
    assert ran == []
    scheduled.leads = True
    eventually(lambda: {"sync", "async"} <= set(ran))
    eventually(lambda: scheduled.runs("sync") and scheduled.runs("async"))
    assert scheduled.runs("sync", "missed") == 0


# --- Stop, fork, exit --------------------------------------------------------------------------------------


def test_stop_waits_for_the_runs_under_way(scheduled, tasks):
    """A stop in time lets runs end, and leaves no thread."""
    entered, leave = threading.Barrier(3), threading.Event()

    def slow() -> None:
        entered.wait(20)
        leave.wait(30)

    async def slow_async() -> None:
        await asyncio.to_thread(slow)

    tasks.schedule(slow, SELDOM_S, "sync")
    tasks.schedule(slow_async, SELDOM_S, "async")
    tasks.start()
    entered.wait(20)
    threading.Timer(0.05, leave.set).start()
    assert tasks.stop(20) is True
    assert (scheduled.runs("sync"), scheduled.runs("async")) == (1, 1)
    eventually(lambda: not [t.name for t in threading.enumerate() if "otel-mlops" in t.name or t.name == "APScheduler"])


def test_stop_is_bounded_and_names_what_it_leaves_behind(scheduled, tasks, caplog):
    """Tasks that hang do not hold the stop; asynchronous ones are cancelled, which is no error."""
    entered, cancelled, leave = threading.Event(), threading.Event(), threading.Event()

    async def endless() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    tasks.schedule(lambda: leave.wait(30), SELDOM_S, "hangs")
    tasks.schedule(endless, SELDOM_S, "endless")
    tasks.start()
    eventually(lambda: entered.is_set() and "otel-mlops-task-hangs" in our_threads())
    began = time.monotonic()
    assert tasks.stop(0.1) is False
    assert time.monotonic() - began < 5
    assert cancelled.wait(20)
    assert "left behind: endless, hangs" in caplog.text
    assert scheduled.runs("endless", "error") == 0
    leave.set()


def test_nothing_runs_after_the_stop_until_the_next_start(scheduled, tasks):
    """The tasks stay scheduled over a stop; a task that still hangs from before does not run twice."""
    leave = threading.Event()
    ran = []
    tasks.schedule(lambda: ran.append(1), OFTEN_S, "check")
    tasks.schedule(lambda: leave.wait(30), SELDOM_S, "hangs")
    tasks.start()
    eventually(lambda: len(ran) >= 2)
    tasks.stop(0.05)
    seen = len(ran)
    tasks.schedule(lambda: None, SELDOM_S, "new")
    assert "otel-mlops-task-hangs" in our_threads()
    assert len(ran) == seen

    tasks.start()
    eventually(lambda: len(ran) > seen and scheduled.runs("new") == 1)
    eventually(lambda: scheduled.runs("hangs", "missed") == 1)
    leave.set()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_task_may_stop_the_tasks(tasks, asynchronous):
    """A run that stops the tasks does not wait for itself."""
    stopped = []

    def last() -> None:
        stopped.append(tasks.stop(60))

    async def last_async() -> None:
        last()

    tasks.schedule(last_async if asynchronous else last, SELDOM_S, "last")
    tasks.start()
    eventually(lambda: stopped == [True])


def test_stopping_what_never_started_does_nothing(tasks):
    """Stop can be called at any time, and repeatedly."""
    assert tasks.stop(0)
    tasks.start()
    assert tasks.stop(0)
    assert tasks.stop(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="run this on Linux or macOS, which can fork")
def test_a_forked_child_runs_nothing_until_it_starts(scheduled, tasks):
    """The child has no threads and free locks; after its own start it runs the tasks."""
    leave = threading.Event()
    ran: list[int] = []
    tasks.schedule(lambda: leave.wait(30), SELDOM_S, "hangs")
    tasks.schedule(lambda: ran.append(os.getpid()), OFTEN_S, "check")
    tasks.start()
    eventually(lambda: len(ran) >= 1)
    with tasks._lock:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                tasks.after_fork()
                ran.clear()
                tasks.schedule(lambda: None, SELDOM_S, "new")
                assert not ran
                tasks.start()
                eventually(lambda: os.getpid() in ran, within_s=10)
                tasks.stop(0.1)
                code = 0
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    leave.set()


@pytest.mark.parametrize("stopped", [False, True])
def test_tasks_that_hang_do_not_keep_the_process(stopped):
    """A process whose tasks hang ends at its end, with or without a stop, and says nothing of it."""
    program = f"""
import asyncio, threading, time
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.tasks import Tasks
entered = threading.Semaphore(0)
def hang():
    entered.release()
    time.sleep(600)
async def hang_async():
    entered.release()
    await asyncio.sleep(600)
async def block():
    entered.release()
    time.sleep(600)
tasks = Tasks(MeterProvider(shutdown_on_exit=False))
for func in (hang, hang_async, block):
    tasks.schedule(func, 3600, func.__name__)
tasks.start()
for _ in range(2):
    entered.acquire()
if {stopped}:
    assert not tasks.stop(0.1)
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 0
    assert time.monotonic() - began < 30
    assert done.stdout == ""
    assert "left behind" in done.stderr if stopped else done.stderr == ""


def test_nothing_is_imported_before_a_task_runs():
    """APScheduler costs a quarter of a second to import: who has no task does not pay for it."""
    program = """
import sys
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.tasks import Tasks
tasks = Tasks(MeterProvider(shutdown_on_exit=False))
tasks.start()
assert "apscheduler" not in sys.modules
tasks.stop(1)
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


# --- Mistakes ----------------------------------------------------------------------------------------------


def generates():
    """Yields, so that calling it does nothing."""
    yield


async def generates_async():
    """Yields, so that calling it does nothing."""
    yield


def needs_an_argument(_database):
    """Cannot be called by a scheduler."""


@pytest.mark.parametrize(
    ("func", "interval_seconds", "task_name", "error", "message"),
    [
        (None, 1, "check", TypeError, "func is None"),
        ("print", 1, "check", TypeError, "func is 'print'"),
        (generates, 1, "check", TypeError, "func is .*generates.* no generator"),
        (generates_async, 1, "check", TypeError, "func is .*generates.* no generator"),
        (needs_an_argument, 1, "check", TypeError, "func is .*without arguments"),
        (print, 0, "check", ValueError, "interval_seconds is 0"),
        (print, -1, "check", ValueError, "interval_seconds is -1"),
        (print, float("nan"), "check", ValueError, "interval_seconds is nan"),
        (print, float("inf"), "check", ValueError, "interval_seconds is inf"),
        (print, 1e12, "check", ValueError, "interval_seconds is 1000000000000.0"),
        (print, "30", "check", TypeError, "interval_seconds is '30'"),
        (print, True, "check", TypeError, "interval_seconds is True"),
        (print, 1, "", ValueError, "task_name is ''"),
        (print, 1, None, ValueError, "task_name is None"),
        (
            print,
            1,
            "taken",
            ValueError,
            "task_name is 'taken', expected a name that is not scheduled already",
        ),
    ],
)
def test_a_mistake_in_the_call_names_the_argument(tasks, func, interval_seconds, task_name, error, message):
    """A wrong argument is an error at once, which names it, its value and what was expected."""
    tasks.schedule(print, SELDOM_S, "taken")
    with pytest.raises(error, match=message):
        tasks.schedule(func, interval_seconds, task_name)


def test_a_name_that_was_refused_is_still_free(scheduled, tasks):
    """A call that fails leaves nothing behind."""
    with pytest.raises(ValueError, match="interval_seconds"):
        tasks.schedule(print, 0, "check")
    tasks.schedule(lambda: None, SELDOM_S, "check")
    tasks.start()
    eventually(lambda: scheduled.runs("check") == 1)


def test_adding_a_task_while_another_is_due_waits_for_nobody(scheduled, tasks):
    """The scheduler's thread, which holds its lock while it begins a run, and one that adds tasks do not meet."""
    tasks.start()
    added = threading.Event()

    def add_many() -> None:
        for number in range(60):
            tasks.schedule(lambda: None, OFTEN_S, f"task {number}")
        added.set()

    threading.Thread(target=add_many, daemon=True).start()
    assert added.wait(20)
    eventually(lambda: scheduled.runs("task 59") >= 1)
