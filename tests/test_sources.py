"""The sampler, which reads sources."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time

import pytest
from opentelemetry.metrics import CallbackOptions

from otel_mlops.metrics import (
    GPU_BUSY,
    GPU_ENERGY,
    GPU_UTILIZATION,
    SOURCE_AGE,
    SOURCE_DURATION,
    SOURCE_UP,
    SYSTEM_CPU_USAGE,
    SYSTEM_DISK_IO,
    SYSTEM_DISK_USAGE,
    SYSTEM_MEMORY_TOTAL,
    SYSTEM_MEMORY_USAGE,
    Metric,
)
from otel_mlops.sources.sampler import Absent, Sample, Sampler
from tests.clock import Clock
from tests.waiting import eventually

SELDOM_S = 3600.0
DAY_S = 86_400
GPU = {"gpu_id": "0", "gpu_name": "H100"}


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


def test_without_sources_there_is_no_reader(opened):
    """Nothing to read takes no thread and no waiting; the keeper minds midnight all the same."""
    sampler = opened({})
    sampler.start()
    assert sampler.wait(20)
    assert our_threads() == ["otel-mlops-keeper"]


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


def test_a_source_has_a_pace_of_its_own(opened):
    """A source that is named in `paces` is read at it, sooner or later than the others, which keep the interval."""
    often, seldom = Faulty(), Faulty(row=SYSTEM_MEMORY_USAGE)
    sampler = opened({"often": often, "seldom": seldom}, paces={"often": 0.01})
    sampler.start()
    eventually(lambda: often.readings >= 5)
    assert seldom.readings == 1
    sampler.stop(10)
    often, seldom = Faulty(), Faulty(row=SYSTEM_MEMORY_USAGE)
    sampler = opened({"often": often, "seldom": seldom}, 0.01, paces={"seldom": SELDOM_S, "nobody": 1.0})
    sampler.start()
    eventually(lambda: often.readings >= 5)
    assert seldom.readings == 1


def test_values_vanish_by_the_pace_of_their_source(opened):
    """What is read seldom is shown for longer: three of its own intervals."""
    clock = Clock(1000.0)
    sources = {"often": Faulty(), "seldom": Faulty(row=SYSTEM_MEMORY_USAGE)}
    sampler = opened(sources, 5.0, paces={"seldom": 60.0}, clock=clock)
    sampler.sample()
    clock.now_s += 180.0
    assert seen(sampler, SYSTEM_CPU_USAGE) == {}
    assert seen(sampler, SYSTEM_MEMORY_USAGE) == {(): 1.0}
    clock.now_s += 0.001
    assert seen(sampler, SYSTEM_MEMORY_USAGE) == {}


# --- What adds up over workers -----------------------------------------------------------------------------


class Ledger:
    """What was counted, by metric and attributes."""

    def __init__(self):
        self.counts: dict[tuple[str, ...], float] = {}

    def count(self, row: Metric, value: float, attributes) -> None:
        """Add to a counter."""
        assert row.across == "sum"
        assert type(value) is float
        series = (row.name, *attributes.values())
        self.counts[series] = self.counts.get(series, 0.0) + value


def test_increases_are_counted_and_totals_are_shown(opened):
    """A counter that adds up over workers goes into the ledger, also by 0; one that is a fact of the host is shown."""
    ledger = Ledger()
    disk = {"direction": "read"}
    increases = iter([0, 2.5, 3])
    sampler = opened(
        {"gpu": lambda: [Sample(GPU_BUSY, next(increases), GPU), Sample(SYSTEM_DISK_IO, 100, disk)]}, count=ledger.count
    )
    for total in (0.0, 2.5, 5.5):
        sampler.sample()
        assert ledger.counts == {(GPU_BUSY.name, "0", "H100"): total}
        assert seen(sampler, GPU_BUSY) == {}
        assert seen(sampler, SYSTEM_DISK_IO) == {("read",): 100.0}


def test_a_reading_that_fails_counts_nothing(opened):
    """Increases count when all of the reading is there: those of one that breaks off come again with the next."""
    ledger, breaks_off = Ledger(), [True]

    def source():
        yield Sample(GPU_BUSY, 2.0, GPU)
        if breaks_off:
            raise OSError("gone")

    sampler = opened({"gpu": source}, count=ledger.count)
    sampler.sample()
    assert ledger.counts == {}
    breaks_off.clear()
    sampler.sample()
    assert ledger.counts == {(GPU_BUSY.name, "0", "H100"): 2.0}


def test_an_increase_that_cannot_be_is_not_counted(opened):
    """What is below 0 or there twice is dropped and said, and the rest of the reading counts."""
    ledger, dropped = Ledger(), []
    other = GPU | {"gpu_id": "1"}
    samples = [Sample(GPU_BUSY, 1.0, GPU), Sample(GPU_BUSY, 1.0, GPU), Sample(GPU_BUSY, -1.0, other)]
    sampler = opened({"gpu": lambda: samples}, count=ledger.count, on_dropped=dropped.append)
    sampler.sample()
    assert ledger.counts == {(GPU_BUSY.name, "0", "H100"): 1.0}
    assert sorted(dropped) == ["duplicate", "negative"]


def test_without_a_ledger_increases_go_nowhere(opened):
    """A sampler that was given nothing to count with shows the rest."""
    sampler = opened({"gpu": lambda: [Sample(GPU_BUSY, 1.0, GPU), Sample(SYSTEM_CPU_USAGE, 2.0)]})
    sampler.sample()
    assert seen(sampler, GPU_BUSY) == {}
    assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 2.0}
    assert seen(sampler, SOURCE_UP) == {("gpu",): 1.0}


# --- About the sources -------------------------------------------------------------------------------------


def test_a_source_is_told_about(opened):
    """Up, duration and age are there per source once it has been read, and the age grows."""
    clock = Clock(1000.0)

    def slow():
        clock.now_s += 0.25
        return []

    sampler = opened({"host": slow}, 5.0, clock=clock)
    for row in (SOURCE_UP, SOURCE_DURATION, SOURCE_AGE):
        assert seen(sampler, row) == {}
    sampler.sample()
    clock.now_s += 2
    assert seen(sampler, SOURCE_UP) == {("host",): 1.0}
    assert seen(sampler, SOURCE_DURATION) == {("host",): 0.25}
    assert seen(sampler, SOURCE_AGE) == {("host",): 2.0}
    observation = next(iter(sampler.observe(SOURCE_UP)(CallbackOptions())))
    assert observation.attributes == {"source": "host"}


@pytest.mark.parametrize("error", [OSError("gone"), SystemExit(1), GeneratorExit()])
def test_a_source_that_raises_is_down_and_the_others_are_whole(opened, error):
    """A failure is a number: up is 0, the age grows, and the last values stay until they are too old."""
    clock = Clock(1000.0)
    bad, good = Faulty(41.0), Faulty(2.0, SYSTEM_MEMORY_USAGE)
    sampler = opened({"bad": bad, "good": good}, 5.0, clock=clock)
    sampler.sample()
    bad.error = error
    clock.now_s += 5
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


def test_a_source_with_nothing_to_read_is_neither_up_nor_down(opened, caplog):
    """An absence is no fault: no series, one line at INFO for each reason, and a later reading can succeed or fail."""
    caplog.set_level(logging.INFO)
    source = Faulty(41.0)
    source.error = Absent("there is no GPU")
    sampler = opened({"gpu": source})
    about = (SOURCE_UP, SOURCE_DURATION, SOURCE_AGE, SYSTEM_CPU_USAGE)
    for error in (Absent("there is no GPU"), Absent("there is no driver"), Absent("there is no GPU")):
        source.error = error
        sampler.sample()
        assert [seen(sampler, row) for row in about] == [{}] * 4
    source.error = None
    sampler.sample()
    assert seen(sampler, SOURCE_UP) == {("gpu",): 1.0}
    assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 41.0}
    source.error = OSError("gone")
    sampler.sample()
    assert seen(sampler, SOURCE_UP) == {("gpu",): 0.0}
    source.error = Absent("there is no GPU")
    sampler.sample()
    assert [seen(sampler, row) for row in about] == [{}] * 4
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.INFO, "Source gpu: there is no GPU"),
        (logging.INFO, "Source gpu: there is no driver"),
        (logging.WARNING, "Source gpu is down: OSError: gone"),
    ]


def test_an_absent_source_leaves_the_others_whole(opened):
    """The others are read on, also by the thread."""
    absent, good = Faulty(), Faulty(2.0, SYSTEM_MEMORY_USAGE)
    absent.error = Absent("there is none")
    sampler = opened({"absent": absent, "good": good}, 0.01)
    sampler.start()
    eventually(lambda: good.readings >= 3 and absent.readings >= 3)
    assert seen(sampler, SOURCE_UP) == {("good",): 1.0}


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
    clock = Clock(1000.0)
    sampler = opened({"host": Faulty(41.0)}, interval_s, clock=clock)
    sampler.sample()
    clock.now_s += oldest_s
    assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 41.0}
    clock.now_s += 0.001
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


def test_an_interrupt_that_a_driver_raises_ends_no_thread(opened):
    """In the reader's thread nobody has pressed Ctrl-C: that source is down, and the others are read on."""
    odd, good = Faulty(), Faulty(row=SYSTEM_MEMORY_USAGE)
    odd.error = KeyboardInterrupt()
    sampler = opened({"odd": odd, "good": good}, 0.01)
    sampler.start()
    eventually(lambda: odd.readings > 2 and good.readings > 2)
    assert seen(sampler, SOURCE_UP) == {("odd",): 0.0, ("good",): 1.0}


def test_attributes_that_are_changed_are_those_of_the_value(opened):
    """A source may give one mapping again and again and change it between, from one reading to the next as well."""
    labels = dict(GPU)

    def source():
        for number in ("0", "1"):
            labels["gpu_id"] = number
            yield Sample(GPU_UTILIZATION, float(number), labels)

    sampler = opened({"gpus": source})
    for _ in range(3):
        sampler.sample()
        assert seen(sampler, GPU_UTILIZATION) == {("0", "H100"): 0.0, ("1", "H100"): 1.0}


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
        (Sample(SYSTEM_DISK_IO, 1.0, {"direction": 1}), "attributes"),
        (Sample(SYSTEM_DISK_IO, -0.5, {"direction": "read"}), "negative"),
        (Sample(GPU_ENERGY, -1e-9, GPU), "negative"),
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


@pytest.mark.stress
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


def test_stop_is_bounded_while_a_driver_is_let_go(opened):
    """A driver that hangs when it is closed does not hold the stop either, and is closed once."""

    class Held(Faulty):
        closings = 0

        def close(self) -> None:
            self.closings += 1
            self.leave.wait(30)

    held = Held()
    sampler = opened({"held": held})
    sampler.start()
    assert sampler.wait(20)
    began = time.monotonic()
    sampler.stop(0.1)
    assert time.monotonic() - began < 5
    eventually(lambda: held.closings == 1)
    assert seen(sampler, SYSTEM_CPU_USAGE) == {}


def test_a_reading_that_ends_after_the_stop_shows_nothing(opened):
    """What it gives is older than what is read by whoever goes on."""
    stuck = Faulty()
    stuck.hangs = True
    sampler = opened({"stuck": stuck})
    sampler.start()
    eventually(lambda: stuck.readings == 1)
    sampler.stop(0.1)
    stuck.recover()
    eventually(lambda: not our_threads())
    assert [seen(sampler, row) for row in (SYSTEM_CPU_USAGE, SOURCE_UP, SOURCE_AGE, SOURCE_DURATION)] == [{}] * 4
    sampler.sample()
    assert seen(sampler, SYSTEM_CPU_USAGE) == {(): 1.0}


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
        self.clock.now_s = now
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
        ({"sources": {"a": list}, "paces": {"a": 0}}, ValueError, r"paces\['a'\] is 0"),
        ({"sources": {"a": list}, "paces": {"a": "1"}}, TypeError, r"paces\['a'\] is '1'"),
        ({"patience_s": 0}, ValueError, "patience_s is 0"),
        ({"sources": {"": list}}, ValueError, "sources has the name ''"),
        ({"sources": {"host": None}}, TypeError, r"sources\['host'\] is None"),
    ],
)
def test_a_mistake_in_the_call_names_the_argument(arguments, error, message):
    """A wrong argument is an error at construction that names it, its value and what was expected."""
    with pytest.raises(error, match=message):
        Sampler(**{"sources": {}, "interval_s": 5.0, **arguments})
