"""The sampler, which reads sources, and the machine as a source."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest
from opentelemetry.metrics import CallbackOptions

from otel_mlops.metrics import (
    GPU_UTILIZATION,
    HARDWARE_TEMPERATURE,
    SOURCE_AGE,
    SOURCE_DURATION,
    SOURCE_UP,
    SYSTEM_CPU_USAGE,
    SYSTEM_DISK_TOTAL,
    SYSTEM_DISK_USAGE,
    SYSTEM_MEMORY_TOTAL,
    SYSTEM_MEMORY_USAGE,
    Metric,
)
from otel_mlops.sources.host import open_host
from otel_mlops.sources.sampler import Sample, Sampler

SELDOM_S = 3600.0
DAY_S = 86_400
LINUX = sys.platform == "linux"


def eventually(condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = 1000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now


class Faulty:
    """A source that counts its readings, and raises or hangs when told."""

    def __init__(self, value: float = 1.0, row: Metric = SYSTEM_CPU_USAGE):
        self.value = value
        self.row = row
        self.readings = 0
        self.error: BaseException | None = None
        self.hangs = False
        self.leave = threading.Event()

    def __call__(self):
        self.readings += 1
        if self.hangs:
            self.leave.wait(30)
        if self.error is not None:
            raise self.error
        return [Sample(self.row, self.value)]

    def recover(self) -> None:
        """Answer again, also to those who wait."""
        self.hangs, self.error = False, None
        self.leave.set()


def seen(sampler: Sampler, row: Metric):
    """What a row's callback says now."""
    observations = sampler.observe(row)(CallbackOptions())
    return {tuple(observation.attributes.values()): observation.value for observation in observations}


def our_threads() -> list[str]:
    """The names of the threads that the sampler has."""
    return sorted(t.name for t in threading.enumerate() if t.name in ("otel-mlops-reader", "otel-mlops-keeper"))


@pytest.fixture
def opened():
    """Opens samplers, and stops them and their sources at the end."""
    samplers = []

    def open_sampler(sources, interval_s=SELDOM_S, **arguments) -> Sampler:
        sampler = Sampler(sources, interval_s, **arguments)
        samplers.append((sampler, sources))
        return sampler

    yield open_sampler
    for sampler, sources in samplers:
        for source in sources.values():
            if isinstance(source, Faulty):
                source.recover()
        sampler.stop(10)
    eventually(lambda: not our_threads())


# --- Reading and showing -----------------------------------------------------------------------------------


def test_a_callback_shows_the_last_snapshot_and_reads_nothing(opened):
    """Observing any number of times leaves the source alone; only sampling reads it, once."""
    source = Faulty(41.0)
    sampler = opened({"host": source})
    assert seen(sampler, SYSTEM_CPU_USAGE) == {}
    sampler.sample()
    source.value = 42.0
    for _ in range(3):
        assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 41.0}
    assert source.readings == 1
    sampler.sample()
    assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 42.0}


def test_a_row_is_shown_from_all_sources(opened):
    """Two sources may give series of one metric."""

    def gpu(number: str):
        return lambda: [Sample(GPU_UTILIZATION, float(number), {"gpu_id": number, "gpu_name": "H100"})]

    sampler = opened({"first": gpu("0"), "second": gpu("1")})
    sampler.sample()
    assert seen(sampler, GPU_UTILIZATION) == {("0", "H100"): 0.0, ("1", "H100"): 1.0}


def test_the_thread_reads_at_once_and_then_at_the_interval(opened):
    """Readings come without being asked for: the first at the start, the next an interval later."""
    source = Faulty()
    times: list[float] = []

    def timed():
        times.append(time.monotonic())
        return source()

    sampler = opened({"host": timed}, 0.1)
    began = time.monotonic()
    sampler.start()
    eventually(lambda: len(times) >= 4)
    assert times[0] - began < 5
    # A late reading may be followed by one in time, so only the whole is bounded.
    assert times[3] - times[0] > 0.25
    assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 1.0}


def test_start_and_stop_can_be_repeated(opened):
    """There is one reader however often it is started, none after a stop, and one again after a start."""
    source = Faulty()
    sampler = opened({"host": source})
    sampler.stop(0)
    sampler.start()
    sampler.start()
    eventually(lambda: source.readings == 1)
    assert our_threads() == ["otel-mlops-keeper", "otel-mlops-reader"]
    sampler.stop(10)
    sampler.stop(10)
    assert our_threads() == []
    sampler.start()
    eventually(lambda: source.readings == 2)


def test_sampling_beside_the_thread_never_reads_a_source_twice_at_once(opened):
    """A source, which keeps state, is read by one thread at a time."""
    inside: list[int] = []
    most: list[int] = []

    def source():
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.001)
        inside.pop()
        return []

    sampler = opened({"host": source}, 0.001)
    sampler.start()
    threads = [threading.Thread(target=lambda: [sampler.sample() for _ in range(20)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    eventually(lambda: len(most) > 60)
    assert max(most) == 1


# --- About the sources -------------------------------------------------------------------------------------


def test_a_source_is_told_about(opened):
    """Up, duration and age are there per source once it has been read, and the age grows."""
    clock = Clock()

    def slow():
        clock.now += 0.25
        return []

    sampler = opened({"host": slow}, 5.0, clock=clock)
    for row in (SOURCE_UP, SOURCE_DURATION, SOURCE_AGE):
        assert seen(sampler, row) == {}
    sampler.sample()
    clock.now += 2
    assert seen(sampler, SOURCE_UP) == {("host",): 1.0}
    assert seen(sampler, SOURCE_DURATION) == {("host",): 0.25}
    assert seen(sampler, SOURCE_AGE) == {("host",): 2.0}
    observation = next(iter(sampler.observe(SOURCE_UP)(CallbackOptions())))
    assert observation.attributes == {"source": "host"}


@pytest.mark.parametrize("error", [OSError("gone"), SystemExit(1), GeneratorExit()])
def test_a_source_that_raises_is_down_and_the_others_are_whole(opened, error):
    """A failure is a number: up is 0, the age grows, and the last values stay until they are too old."""
    clock = Clock()
    bad, good = Faulty(41.0), Faulty(2.0, SYSTEM_MEMORY_USAGE)
    sampler = opened({"bad": bad, "good": good}, 5.0, clock=clock)
    sampler.sample()
    bad.error = error
    clock.now += 5
    sampler.sample()
    assert seen(sampler, SOURCE_UP) == {("bad",): 0.0, ("good",): 1.0}
    assert seen(sampler, SOURCE_AGE) == {("bad",): 5.0, ("good",): 0.0}
    assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 41.0}
    assert good.readings == 2


def test_a_source_that_never_answered_is_down_and_has_no_age(opened):
    """Down from the start: no value and no age, but up is there, and 0."""
    bad = Faulty()
    bad.error = OSError("no driver")
    sampler = opened({"bad": bad})
    sampler.sample()
    assert seen(sampler, SOURCE_UP) == {("bad",): 0.0}
    assert seen(sampler, SOURCE_AGE) == {}


def test_the_changes_of_a_source_are_logged_and_nothing_else(opened, caplog):
    """One line when a source goes down and one when it is up again, however often it is read."""
    caplog.set_level(logging.INFO)
    source = Faulty()
    sampler = opened({"host": source})
    sampler.sample()
    source.error = OSError("gone")
    for _ in range(3):
        sampler.sample()
    source.recover()
    for _ in range(3):
        sampler.sample()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "Source host is down: OSError: gone"),
        (logging.INFO, "Source host is up again"),
    ]


def test_a_reading_that_breaks_off_is_no_reading(opened):
    """A generator that raises half-way leaves the last good snapshot, and not half of a new one."""
    values = [(1.0, 10.0)]

    def source():
        cpu, memory = values[-1]
        yield Sample(SYSTEM_CPU_USAGE, cpu)
        if memory is None:
            raise OSError("gone")
        yield Sample(SYSTEM_MEMORY_USAGE, memory)

    sampler = opened({"host": source})
    sampler.sample()
    values.append((2.0, None))
    sampler.sample()
    assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 1.0}
    assert seen(sampler, SYSTEM_MEMORY_USAGE) == {(): 10.0}
    assert seen(sampler, SOURCE_UP) == {("host",): 0.0}


@pytest.mark.parametrize(("interval_s", "oldest_s"), [(1.0, 15.0), (5.0, 15.0), (10.0, 30.0)])
def test_values_vanish_when_they_are_too_old(opened, interval_s, oldest_s):
    """Past three intervals, and at least 15 s, the last values are not shown any more, and up is 0."""
    clock = Clock()
    sampler = opened({"host": Faulty(41.0)}, interval_s, clock=clock)
    sampler.sample()
    clock.now += oldest_s
    assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 41.0}
    clock.now += 0.001
    assert seen(sampler, SYSTEM_CPU_USAGE) == {}
    assert seen(sampler, SOURCE_UP) == {("host",): 0.0}
    assert seen(sampler, SOURCE_AGE) == {("host",): pytest.approx(oldest_s + 0.001)}


def test_an_interrupt_reaches_the_caller(opened):
    """Ctrl-C while the caller samples is the caller's, and the source can be read afterwards."""
    source = Faulty()
    source.error = KeyboardInterrupt()
    sampler = opened({"host": source})
    with pytest.raises(KeyboardInterrupt):
        sampler.sample()
    source.recover()
    sampler.sample()
    assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 1.0}


# --- Samples that cannot be shown --------------------------------------------------------------------------

OWN_ROW = Metric("own.temperature", "gauge", "Cel", "A row of nobody's.", (), "once")
LOOKALIKE = Metric(SYSTEM_CPU_USAGE.name, "gauge", "%", "Another row of a declared name.", (), "once")


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (Sample(OWN_ROW, 1.0), "undeclared"),
        (Sample(LOOKALIKE, 1.0), "undeclared"),
        (Sample(SYSTEM_MEMORY_USAGE, float("nan")), "not_finite"),
        (Sample(SYSTEM_MEMORY_USAGE, float("-inf")), "not_finite"),
        (Sample(SYSTEM_MEMORY_USAGE, None), "type"),
        (Sample(SYSTEM_MEMORY_USAGE, "many"), "type"),
        (Sample(SYSTEM_MEMORY_USAGE, 10**400), "type"),
        (Sample(SYSTEM_MEMORY_USAGE, 1.0, {"color": "red"}), "attributes"),
        (Sample(SYSTEM_DISK_USAGE, 1.0), "attributes"),
        (Sample(SYSTEM_DISK_USAGE, 1.0, {"mount_point": 7}), "attributes"),
        (Sample(SYSTEM_CPU_USAGE, 2.0), "duplicate"),
    ],
)
def test_a_sample_that_cannot_be_shown_is_dropped_and_counted(opened, caplog, sample, reason):
    """What is undeclared, no finite number, or labelled otherwise than its row goes; the rest stays."""
    dropped = []
    sampler = opened({"host": lambda: [Sample(SYSTEM_CPU_USAGE, 1.0), sample]}, on_dropped=dropped.append)
    sampler.sample()
    sampler.sample()
    assert dropped == [reason, reason]
    assert len(caplog.records) == 1
    assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 1.0}
    assert seen(sampler, SYSTEM_MEMORY_USAGE) == {}
    assert seen(sampler, SYSTEM_DISK_USAGE) == {}
    assert seen(sampler, SOURCE_UP) == {("host",): 1.0}


def test_only_rows_of_the_catalogue_can_be_observed(opened):
    """Observing any other row is a mistake, said at once."""
    with pytest.raises(ValueError, match=r"'own\.temperature'"):
        opened({}).observe(OWN_ROW)


# --- Hanging -----------------------------------------------------------------------------------------------


def test_a_source_that_hangs_delays_neither_pages_nor_the_others(opened, caplog):
    """The others are read on, the hanging one is down and left out, and it is back when it answers."""
    caplog.set_level(logging.INFO)
    stuck, good = Faulty(41.0), Faulty(2.0, SYSTEM_MEMORY_USAGE)
    stuck.hangs = True
    sampler = opened({"stuck": stuck, "good": good}, 0.02, patience_s=0.3)
    sampler.start()
    eventually(lambda: good.readings >= 3)
    assert stuck.readings == 1
    assert seen(sampler, SOURCE_UP) == {("stuck",): 0.0, ("good",): 1.0}
    assert seen(sampler, SYSTEM_CPU_USAGE) == {}
    assert our_threads() == ["otel-mlops-keeper", "otel-mlops-reader", "otel-mlops-reader"]

    stuck.recover()
    eventually(lambda: seen(sampler, SOURCE_UP)["stuck",] == 1.0)
    assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 41.0}
    eventually(lambda: our_threads() == ["otel-mlops-keeper", "otel-mlops-reader"])
    assert [record.getMessage() for record in caplog.records] == [
        "Source stuck has not answered for 0.3 s; it is left out until it does",
        "Source stuck is up again",
    ]


def test_at_most_one_thread_is_abandoned_to_a_source(opened):
    """Several sources that hang cost one thread each, however long it lasts."""
    stuck = [Faulty(), Faulty(row=SYSTEM_MEMORY_TOTAL)]
    for source in stuck:
        source.hangs = True
    good = Faulty(2.0, SYSTEM_MEMORY_USAGE)
    sampler = opened({"a": stuck[0], "b": stuck[1], "good": good}, 0.01, patience_s=0.2)
    sampler.start()
    eventually(lambda: good.readings >= 20)
    assert [source.readings for source in stuck] == [1, 1]
    assert our_threads().count("otel-mlops-reader") == 3


def test_a_slow_source_is_read_on(opened):
    """A source that takes longer than is waited for loses nothing but its punctuality."""
    slow, leave = Faulty(41.0), threading.Semaphore(0)

    def read():
        leave.acquire(timeout=30)
        return slow()

    sampler = opened({"slow": read}, 0.01, patience_s=0.05)
    sampler.start()
    for value in (1.0, 2.0):
        slow.value = value
        eventually(lambda: seen(sampler, SOURCE_UP).get(("slow",)) == 0.0)
        leave.release()
        eventually(lambda value=value: seen(sampler, SYSTEM_CPU_USAGE) == {(): value})
    leave.release(2)


def test_sampling_leaves_out_a_source_that_another_thread_is_stuck_in(opened):
    """The caller waits no longer than the patience for a source that hangs elsewhere."""
    stuck, good = Faulty(), Faulty(2.0, SYSTEM_MEMORY_USAGE)
    stuck.hangs = True
    sampler = opened({"stuck": stuck, "good": good}, patience_s=0.05)
    sampler.start()
    eventually(lambda: stuck.readings == 1)
    read_before = good.readings
    sampler.sample()
    assert good.readings > read_before
    assert stuck.readings == 1


def test_stop_is_bounded_while_a_source_hangs(opened):
    """A driver that never returns does not hold the stop."""
    stuck = Faulty()
    stuck.hangs = True
    sampler = opened({"stuck": stuck})
    sampler.start()
    eventually(lambda: stuck.readings == 1)
    began = time.monotonic()
    sampler.stop(0.1)
    assert time.monotonic() - began < 5


def test_a_source_that_hangs_does_not_keep_the_process():
    """A process whose driver hangs ends at its end, and says nothing."""
    program = """
import threading, time
from otel_mlops.sources.sampler import Sampler
entered = threading.Event()
def hang():
    entered.set()
    time.sleep(600)
Sampler({"stuck": hang}, 5.0).start()
entered.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_thread_that_cannot_be_started_is_tried_again(opened, monkeypatch):
    """Where the system gives no thread for the reader, the keeper asks again."""
    start = threading.Thread.start
    refusals = [1, 1]

    def start_or_refuse(thread: threading.Thread) -> None:
        if thread.name == "otel-mlops-reader" and refusals:
            refusals.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_refuse)
    source = Faulty()
    sampler = opened({"host": source}, patience_s=0.04)
    sampler.start()
    eventually(lambda: source.readings == 1)
    assert not refusals


# --- Midnight ----------------------------------------------------------------------------------------------

MIDNIGHT = 20_000.0 * DAY_S


class Midnight:
    """A sampler whose wall clock the test moves, and how often midnight was dealt with."""

    def __init__(self, opened, now: float):
        self.clock = Clock(now)
        self.times = 0
        self.source = Faulty()
        self.sampler = opened(
            {"host": self.source}, 0.01, at_midnight=self.strike, wall_clock=self.clock, patience_s=0.04
        )
        self.sampler.start()

    def strike(self) -> None:
        """What is done at midnight."""
        self.times += 1

    def move(self, now: float) -> None:
        """Set the clock and wait until the keeper has looked at it twice."""
        self.clock.now = now
        looks: list[int] = []
        original = self.sampler._until_next_look
        self.sampler._until_next_look = lambda: looks.append(1) or original()
        eventually(lambda: len(looks) >= 2)
        self.sampler._until_next_look = original


def test_midnight_is_dealt_with_once_a_day(opened):
    """Nothing at the start, once at each midnight UTC, and once after a sleep over several."""
    midnight = Midnight(opened, MIDNIGHT - 0.5)
    midnight.move(MIDNIGHT - 0.1)
    assert midnight.times == 0
    midnight.move(MIDNIGHT)
    midnight.move(MIDNIGHT + 50_000)
    assert midnight.times == 1
    midnight.move(MIDNIGHT + DAY_S + 3)
    assert midnight.times == 2
    midnight.move(MIDNIGHT + 9 * DAY_S)
    assert midnight.times == 3


def test_a_clock_that_is_set_back_over_midnight_brings_no_second_one(opened):
    """A correction of some seconds repeats nothing, and the next midnight comes all the same."""
    midnight = Midnight(opened, MIDNIGHT - 1)
    midnight.move(MIDNIGHT + 1)
    midnight.move(MIDNIGHT - 2)
    midnight.move(MIDNIGHT + 1)
    assert midnight.times == 1
    midnight.move(MIDNIGHT + DAY_S)
    assert midnight.times == 2


def test_a_clock_that_ran_years_ahead_costs_no_midnight(opened):
    """After a clock in the future was set right, midnights come again at once."""
    midnight = Midnight(opened, MIDNIGHT + 1000 * DAY_S)
    midnight.move(MIDNIGHT - 1)
    assert midnight.times == 0
    midnight.move(MIDNIGHT)
    assert midnight.times == 1


def test_midnight_is_dealt_with_within_milliseconds_although_a_source_hangs(opened):
    """The thread that minds midnight reads nothing, so it is in time whatever the sources do."""
    late_s = []
    stuck = Faulty()
    stuck.hangs = True
    ahead_s = MIDNIGHT - 0.3 - time.time()

    def wall_clock() -> float:
        return time.time() + ahead_s

    sampler = opened(
        {"stuck": stuck}, at_midnight=lambda: late_s.append(wall_clock() - MIDNIGHT), wall_clock=wall_clock
    )
    sampler.start()
    eventually(lambda: late_s)
    assert 0 <= late_s[0] < 0.25


def test_a_failure_at_midnight_is_logged_and_the_next_day_comes(opened, caplog):
    """What fails at midnight ends neither the reading nor the next midnight."""
    midnight = Midnight(opened, MIDNIGHT - 1)
    strike = midnight.strike
    midnight.sampler._at_midnight = lambda: (strike(), 1 / 0)
    midnight.move(MIDNIGHT)
    midnight.move(MIDNIGHT + DAY_S)
    assert midnight.times == 2
    assert len(caplog.records) == 2
    read_before = midnight.source.readings
    eventually(lambda: midnight.source.readings > read_before)


# --- Fork and mistakes -------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="run this on Linux or macOS, which can fork")
def test_a_forked_child_has_read_nothing_and_can_begin(opened):
    """Locks that threads of the parent held are free in the child, which shows its own readings only."""
    stuck = Faulty(41.0)
    sampler = opened({"host": stuck})
    sampler.sample()
    stuck.hangs = True
    sampler.start()
    eventually(lambda: stuck.readings == 2)
    with sampler._lifecycle:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                sampler.after_fork()
                assert seen(sampler, SYSTEM_CPU_USAGE) == {}
                assert seen(sampler, SOURCE_UP) == {}
                stuck.hangs, stuck.value = False, 42.0
                sampler.start()
                eventually(lambda: seen(sampler, SYSTEM_CPU_USAGE) == {(): 42.0}, within_s=10)
                sampler.stop(1)
                code = 0
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 41.0}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"interval_s": 0}, ValueError, "interval_s is 0"),
        ({"interval_s": -5.0}, ValueError, r"interval_s is -5\.0"),
        ({"interval_s": float("nan")}, ValueError, "interval_s is nan"),
        ({"interval_s": float("inf")}, ValueError, "interval_s is inf"),
        ({"interval_s": "5"}, TypeError, "interval_s is '5'"),
        ({"interval_s": True}, TypeError, "interval_s is True"),
        ({"patience_s": 0}, ValueError, "patience_s is 0"),
        ({"sources": {"": list}}, ValueError, "sources has the name ''"),
        ({"sources": {"host": None}}, TypeError, r"sources\['host'\] is None"),
    ],
)
def test_a_mistake_in_the_call_names_the_argument(arguments, error, message):
    """A wrong argument is an error at construction that names it, its value and what was expected."""
    with pytest.raises(error, match=message):
        Sampler(**{"sources": {}, "interval_s": 5.0, **arguments})


# --- The machine -------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """The fields of psutil's that every system has."""

    total: int
    available: int
    percent: float
    used: int
    free: int


class Usage(NamedTuple):
    """The space of a file system."""

    total: int
    used: int
    free: int
    percent: float


class Partition(NamedTuple):
    """A mounted file system."""

    device: str
    mountpoint: str
    fstype: str
    opts: str


class Sensor(NamedTuple):
    """A temperature."""

    label: str
    current: float | None
    high: float | None
    critical: float | None


LINUX_TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")


class FakePsutil:
    """What the machine is read through: psutil with a machine that the test describes."""

    def __init__(self):
        self.times = dict.fromkeys(LINUX_TIMES, 0.0) | {"user": 100.0, "idle": 900.0}
        self.memory = Memory(total=1000, available=400, percent=60.0, used=500, free=100)
        self.partitions = [Partition("/dev/sda1", "/", "ext4", "rw"), Partition("/dev/sdb1", "/data", "xfs", "rw")]
        self.usages = {"/": Usage(100, 40, 60, 40.0), "/data": Usage(200, 50, 150, 25.0)}
        self.sensors = {}
        self.leave = threading.Event()

    def cpu_times(self):
        return namedtuple("Times", self.times)(**self.times)  # noqa: PYI024 (the fields are the system's)

    def virtual_memory(self):
        return self.memory

    def disk_partitions(self, all=False):  # noqa: A002 (psutil's name)
        assert all is False
        return self.partitions

    def disk_usage(self, path):
        usage = self.usages[path]
        if usage == "hangs":
            self.leave.wait(30)
            usage = Usage(1, 1, 0, 100.0)
        if isinstance(usage, Exception):
            raise usage
        return usage

    def sensors_temperatures(self):
        return self.sensors

    def spend(self, **seconds: float) -> None:
        """Let CPU time pass."""
        for field, spent in seconds.items():
            self.times[field] += spent


@pytest.fixture
def machine():
    """A machine that the test describes."""
    machine = FakePsutil()
    yield machine
    machine.leave.set()


def values(samples, row: Metric):
    """The values of a row among samples, by its attributes' values."""
    return {tuple(s.attributes.values()): s.value for s in samples if s.metric is row}


def cpu_percent(source) -> float | None:
    """The CPU figure of one reading."""
    return values(source(), SYSTEM_CPU_USAGE).get(())


def test_the_cpu_figure_is_that_of_the_time_since_the_last_reading(machine):
    """Each reading covers the window since the one before, the first that since the opening."""
    source = open_host(machine)
    machine.spend(user=1.0, idle=3.0)
    assert cpu_percent(source) == 25.0
    machine.spend(system=1.0, nice=1.0, iowait=1.0, idle=1.0)
    assert cpu_percent(source) == 50.0


def test_a_guests_time_is_not_counted_twice(machine):
    """Linux counts the time of virtual machines in user and nice already."""
    source = open_host(machine)
    machine.spend(user=2.0, guest=2.0, nice=1.0, guest_nice=1.0, idle=3.0)
    assert cpu_percent(source) == 50.0


def test_all_other_times_are_busy(machine):
    """Interrupts and stolen time are not idle; what a system does not count is not missed."""
    source = open_host(machine)
    machine.spend(irq=1.0, softirq=1.0, steal=1.0, idle=1.0)
    assert cpu_percent(source) == 75.0
    machine.times = {"user": 1.0, "nice": 0.0, "system": 0.0, "idle": 0.0}
    source = open_host(machine)
    machine.spend(system=1.0, idle=1.0)
    assert cpu_percent(source) == 50.0


def test_a_window_too_short_to_mean_anything_repeats_the_last_figure(machine):
    """Two readings within a clock tick do not give 0 or 100, and the time between them is not lost."""
    source = open_host(machine)
    assert cpu_percent(source) == 10.0  # since boot: nothing better is known yet
    machine.spend(user=3.0, idle=1.0)
    assert cpu_percent(source) == 75.0
    machine.spend(user=0.01)
    assert cpu_percent(source) == 75.0
    machine.spend(idle=0.99)
    assert cpu_percent(source) == pytest.approx(1.0)


def test_times_that_step_back_keep_the_figure_in_its_range(machine):
    """Where iowait or a CPU that went offline makes a counter smaller, the figure stays within 0 to 100."""
    source = open_host(machine)
    machine.spend(user=4.0, idle=-2.0, iowait=-1.0)
    assert cpu_percent(source) == 100.0
    machine.spend(user=-50.0, idle=4.0)
    assert cpu_percent(source) == 0.0


def test_the_cpu_figure_does_not_depend_on_the_thread(machine):
    """A thread that is new gets the same figure: psutil's own gives it 0."""
    source = open_host(machine)
    figures = []
    for _ in range(3):
        machine.spend(user=1.0, idle=1.0)
        thread = threading.Thread(target=lambda: figures.append(cpu_percent(source)))
        thread.start()
        thread.join(10)
    assert figures == [50.0, 50.0, 50.0]


def test_memory_in_use_is_what_is_not_available(machine):
    """Caches that can be given back are not in use."""
    samples = open_host(machine)()
    assert values(samples, SYSTEM_MEMORY_USAGE) == {(): 600}
    assert values(samples, SYSTEM_MEMORY_TOTAL) == {(): 1000}


def test_each_file_system_has_its_space(machine):
    """Use and size stand by mount point."""
    samples = open_host(machine)()
    assert values(samples, SYSTEM_DISK_USAGE) == {("/",): 40, ("/data",): 50}
    assert values(samples, SYSTEM_DISK_TOTAL) == {("/",): 100, ("/data",): 200}


def test_images_and_second_mounts_of_a_device_are_left_out(machine):
    """A read-only image is always full, and a device mounted twice is one file system."""
    machine.partitions += [
        Partition("/dev/loop3", "/snap/core/1", "squashfs", "ro"),
        Partition("/dev/loop4", "/mnt/disk-image", "ext4", "rw"),
        Partition("/dev/sr0", "/media/cdrom", "iso9660", "ro"),
        Partition("/dev/sdb1", "/var/lib/kubelet/pods/7/volumes/data", "xfs", "rw"),
    ]
    assert values(open_host(machine)(), SYSTEM_DISK_USAGE) == {("/",): 40, ("/data",): 50}


def test_a_container_shows_its_root_and_no_single_files(machine, tmp_path):
    """Psutil leaves out the overlay at the root and lists the files mounted from the host's disk."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost")
    volume = str(tmp_path / "a-volume-with-a-longer-name")
    machine.partitions = [
        Partition("/dev/sda1", str(hosts), "ext4", "rw"),
        Partition("/dev/sda1", volume, "ext4", "rw"),
    ]
    machine.usages[str(hosts)] = machine.usages[volume] = Usage(300, 60, 240, 20.0)
    assert values(open_host(machine)(), SYSTEM_DISK_USAGE) == {("/",): 40, (volume,): 60}


def test_a_mount_that_cannot_be_read_leaves_the_others_whole(machine, caplog):
    """An unreadable mount is absent and logged once; another mount of its device stands in for it."""
    machine.partitions.append(Partition("/dev/sda1", "/rescue", "ext4", "rw"))
    machine.usages |= {"/": PermissionError("no"), "/rescue": Usage(100, 41, 59, 41.0)}
    source = open_host(machine)
    for _ in range(3):
        assert values(source(), SYSTEM_DISK_USAGE) == {("/rescue",): 41, ("/data",): 50}
    assert [record.getMessage() for record in caplog.records] == ["The file system at / cannot be read: no"]


def test_a_mount_that_hangs_leaves_everything_else_whole(machine, caplog):
    """A dead mount costs its timeout once and one thread; it is back when it answers."""
    machine.usages["/data"] = "hangs"
    source = open_host(machine, disk_timeout_s=0.05)
    for _ in range(3):
        samples = source()
        assert values(samples, SYSTEM_DISK_USAGE) == {("/",): 40}
        assert values(samples, SYSTEM_MEMORY_TOTAL) == {(): 1000}
    stuck = [thread for thread in threading.enumerate() if thread.name == "otel-mlops-disk"]
    assert len(stuck) == 1
    assert len(caplog.records) == 1
    machine.usages["/data"] = Usage(200, 51, 149, 25.5)
    machine.leave.set()
    stuck[0].join(10)
    assert values(source(), SYSTEM_DISK_USAGE) == {("/",): 40, ("/data",): 51}


def test_a_mount_point_that_is_no_text_can_be_written(machine):
    """A path of bytes that are not UTF-8 becomes a label all the same."""
    odd = "/mnt/caf\udce9"
    machine.partitions.append(Partition("/dev/sdc1", odd, "ext4", "rw"))
    machine.usages[odd] = Usage(10, 1, 9, 10.0)
    labels = values(open_host(machine)(), SYSTEM_DISK_USAGE)
    assert ("/mnt/caf?",) in labels


def test_each_temperature_has_its_component(machine):
    """A component is chip and label, numbered where two are alike; a sensor not connected is absent."""
    machine.sensors = {
        "coretemp": [Sensor("Core 0", 51.0, 90.0, 100.0), Sensor("Core 0", 52.0, 90.0, 100.0)],
        "acpitz": [Sensor("", 27.8, None, None), Sensor("", 0.0, None, None)],
        "nvme": [Sensor("Composite", None, None, None), Sensor("Sensor 1", -273.1, None, None)],
    }
    assert values(open_host(machine)(), HARDWARE_TEMPERATURE) == {
        ("coretemp/Core 0",): 51.0,
        ("coretemp/Core 0#2",): 52.0,
        ("acpitz",): 27.8,
    }


def test_a_system_without_sensors_has_no_temperature(machine):
    """Where psutil cannot read sensors, or finds none, the metric is absent, not 0."""
    assert values(open_host(machine)(), HARDWARE_TEMPERATURE) == {}
    without = SimpleNamespace(
        cpu_times=machine.cpu_times,
        virtual_memory=machine.virtual_memory,
        disk_partitions=machine.disk_partitions,
        disk_usage=machine.disk_usage,
    )
    samples = open_host(without)()
    assert values(samples, HARDWARE_TEMPERATURE) == {}
    assert values(samples, SYSTEM_MEMORY_TOTAL) == {(): 1000}


def broken(*_arguments, **_keywords):
    """Raises, as a driver does."""
    raise OSError("broken")


@pytest.mark.parametrize(
    ("call", "absent"),
    [
        ("cpu_times", {SYSTEM_CPU_USAGE}),
        ("virtual_memory", {SYSTEM_MEMORY_USAGE, SYSTEM_MEMORY_TOTAL}),
        ("disk_partitions", {SYSTEM_DISK_USAGE, SYSTEM_DISK_TOTAL}),
        ("sensors_temperatures", {HARDWARE_TEMPERATURE}),
    ],
)
def test_a_part_that_cannot_be_read_leaves_the_others_whole(machine, monkeypatch, caplog, call, absent):
    """Whatever part fails, the others are there, one line is logged, and the part comes back."""
    machine.sensors = {"acpitz": [Sensor("", 27.8, None, None)]}
    whole = {sample.metric.name for sample in open_host(machine)()}
    monkeypatch.setattr(machine, call, broken)
    source = open_host(machine)
    for _ in range(3):
        assert whole - {sample.metric.name for sample in source()} == {row.name for row in absent}
    assert len(caplog.records) == 1
    monkeypatch.undo()
    assert {sample.metric.name for sample in open_host(machine)()} == whole


def test_a_machine_of_which_nothing_can_be_read_is_down(machine, monkeypatch):
    """When every part fails the reading raises, so that the source is seen to be down."""
    for call in ("cpu_times", "virtual_memory", "disk_partitions", "sensors_temperatures"):
        monkeypatch.setattr(machine, call, broken)
    source = open_host(machine)
    with pytest.raises(OSError, match="broken"):
        source()


def test_without_psutil_the_host_cannot_be_opened(monkeypatch):
    """The import is late, and its failure is the opener's."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ImportError):
        open_host()


@pytest.mark.parametrize("driver", [None, FakePsutil()], ids=["real", "fake"])
def test_every_sample_of_the_machine_can_be_shown(opened, driver):
    """What the source gives is declared, finite, labelled as its row says, in range, and there once."""
    dropped = []
    sampler = opened({"host": open_host(driver)}, on_dropped=dropped.append)
    sampler.sample()
    assert dropped == []
    assert 0 <= seen(sampler, SYSTEM_CPU_USAGE)[()] <= 100
    assert 0 < seen(sampler, SYSTEM_MEMORY_USAGE)[()] < seen(sampler, SYSTEM_MEMORY_TOTAL)[()]
    used, total = seen(sampler, SYSTEM_DISK_USAGE), seen(sampler, SYSTEM_DISK_TOTAL)
    assert ("/",) in used
    assert used.keys() == total.keys()
    assert all(0 <= used[mount] <= total[mount] for mount in used)
    assert all(-100 < celsius < 200 for celsius in seen(sampler, HARDWARE_TEMPERATURE).values())


def test_the_fake_looks_like_psutil():
    """The fields that are read have the same names in psutil as in the fake."""
    fake = FakePsutil()
    fake.sensors = {"acpitz": [Sensor("", 27.8, None, None)]}
    assert {"user", "system", "idle"} <= set(psutil.cpu_times()._fields)
    if LINUX:
        assert set(psutil.cpu_times()._fields) == set(fake.cpu_times()._fields)
    assert {"total", "available"} <= set(psutil.virtual_memory()._fields)
    assert set(Partition._fields) <= set(psutil._ntuples.sdiskpart._fields)
    assert all(set(Partition._fields) <= set(each._fields) for each in psutil.disk_partitions(all=False))
    assert set(Usage._fields) == set(psutil.disk_usage(os.sep)._fields)
    sensors = getattr(psutil, "sensors_temperatures", dict)()
    assert all(set(Sensor._fields) <= set(each._fields) for chip in sensors.values() for each in chip)


@pytest.mark.skipif(not LINUX, reason="run this on Linux, which has /proc")
def test_the_figures_are_those_of_the_kernel():
    """Memory and disk agree with /proc and statvfs."""
    samples = open_host()()
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    meminfo = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    assert values(samples, SYSTEM_MEMORY_TOTAL)[()] == meminfo["MemTotal"]
    in_use = meminfo["MemTotal"] - meminfo["MemAvailable"]
    assert values(samples, SYSTEM_MEMORY_USAGE)[()] == pytest.approx(in_use, abs=0.05 * meminfo["MemTotal"])
    root = os.statvfs("/")
    assert values(samples, SYSTEM_DISK_TOTAL)["/",] == root.f_blocks * root.f_frsize


@pytest.mark.skipif(not LINUX, reason="run this on Linux, where one thread's CPU time can be held against the clock")
def test_a_computation_raises_the_cpu_figure():
    """While this thread computes, at least its own share of the machine is in use."""
    source = open_host()
    began, began_cpu = time.monotonic(), time.thread_time()
    while time.monotonic() - began < 0.5:
        sum(range(1000))
    share = 100 * (time.thread_time() - began_cpu) / (time.monotonic() - began) / (os.cpu_count() or 1)
    assert share > 0
    # The kernel counts in ticks of 10 ms on each CPU.
    assert cpu_percent(source) >= share - 10


@pytest.mark.parametrize("is_ending", [False, True])
def test_a_program_that_ends_has_no_fault(
    machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_ending: bool
):
    """Where no thread can be started any more because the program ends nothing is said; at other times it is."""
    source = open_host(machine)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    main = threading.Thread() if is_ending else threading.main_thread()
    monkeypatch.setattr(threading, "main_thread", lambda: main)
    assert values(source(), SYSTEM_MEMORY_TOTAL)
    assert bool(caplog.records) is not is_ending
