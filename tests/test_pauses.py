"""What stops a worker: runs of the garbage collector, and an event loop that is held up."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from fastapi import FastAPI
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.metrics.view import DropAggregation, ExplicitBucketHistogramAggregation, View
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_mlops.metrics import EVENT_LOOP_LAG, PYTHON_GC_PAUSE
from otel_mlops.pauses import Pauses
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.settings import Settings
from otel_mlops.telemetry import Telemetry
from otel_mlops.testing import collect, fresh_telemetry
from tests.asgi import ask, serving
from tests.sdk.folder import Folder
from tests.sdk.test_fork import Child

PATIENCE_S = 20.0
TIMER_S = 0.01
GC_PAUSE, LAG = PYTHON_GC_PAUSE.page_name, EVENT_LOOP_LAG.page_name

OpenPauses = Callable[..., Pauses]


def count(provider: MeterProvider, row: Any = PYTHON_GC_PAUSE) -> float:
    """How many values a histogram without attributes has."""
    return sum(value for _, value in provider.totals(row))


def total_s(provider: MeterProvider, row: Any = PYTHON_GC_PAUSE) -> float:
    """What its values add up to."""
    return sum(series.read()[-1] for stream in provider.streams() if stream.row is row for series in stream.living())


@pytest.fixture
def provider() -> Iterator[MeterProvider]:
    """A provider in private memory."""
    made = MeterProvider(shutdown_on_exit=False)
    yield made
    made.shutdown()


@pytest.fixture
def open_pauses(provider: MeterProvider) -> Iterator[OpenPauses]:
    """Opens recorders, which are stopped after the test; with quick timers."""
    opened: list[Pauses] = []

    def one(of: MeterProvider = provider) -> Pauses:
        opened.append(Pauses(of, timer_s=TIMER_S))
        opened[-1].start()
        return opened[-1]

    yield one
    for each in opened:
        each.stop()


@pytest.fixture
def by_hand() -> Iterator[None]:
    """The collector runs when a test calls it, and not else."""
    gc.disable()
    yield
    gc.enable()


# --- The garbage collector -----------------------------------------------------------------------------------


def test_each_run_of_the_collector_is_one_pause(provider: MeterProvider, open_pauses: OpenPauses, by_hand: None):
    """A run counts once, of whatever generation, with the time that it took and no more."""
    open_pauses()
    assert provider.totals(PYTHON_GC_PAUSE) == [({}, 0.0)]  # it is there before the first
    began = time.perf_counter()
    for generation in (0, 1, 2, 2):
        gc.collect(generation)
    took = time.perf_counter() - began
    assert count(provider) == 4
    assert 0 < total_s(provider) <= took


def test_a_pause_is_in_the_bucket_of_its_length(provider: MeterProvider, open_pauses: OpenPauses, by_hand: None):
    """What is slow to be collected makes a long pause."""

    class Slow:
        def __del__(self) -> None:
            time.sleep(0.02)

    open_pauses()
    slow = Slow()
    slow.itself = slow  # type: ignore[attr-defined]
    del slow
    gc.collect(0)
    (series,) = [each for stream in provider.streams() for each in stream.living()]
    *buckets, seconds = series.read()
    assert seconds >= 0.02
    assert sum(buckets) == 1
    assert sum(buckets[: PYTHON_GC_PAUSE.buckets.index(0.01) + 1]) == 0


def test_it_ends_and_begins_again(provider: MeterProvider, open_pauses: OpenPauses, by_hand: None):
    """Between stop and start nothing is counted and the collector has no call of ours; starting twice is once."""
    before = list(gc.callbacks)
    pauses = open_pauses()
    pauses.start()
    gc.collect(0)
    assert count(provider) == 1
    assert len(gc.callbacks) == len(before) + 1
    for _ in range(2):
        pauses.stop()
        gc.collect(0)
    assert gc.callbacks == before
    assert count(provider) == 1
    pauses.start()
    gc.collect(0)
    assert count(provider) == 2


def test_several_telemetries_share_one_call(provider: MeterProvider, open_pauses: OpenPauses, by_hand: None):
    """However many there are the collector calls once, and each of them counts, until it is stopped."""
    other = MeterProvider(shutdown_on_exit=False)
    before = len(gc.callbacks)
    pauses = [open_pauses(), open_pauses(other)]
    assert len(gc.callbacks) == before + 1
    gc.collect(0)
    pauses[0].stop()
    gc.collect(0)
    assert (count(provider), count(other)) == (1, 2)
    pauses[1].stop()
    assert len(gc.callbacks) == before
    other.shutdown()


def test_what_has_begun_before_it_was_seen_is_no_pause(provider: MeterProvider, open_pauses: OpenPauses, by_hand: None):
    """An end without a beginning counts nothing, and of two beginnings the later one counts."""
    open_pauses()
    told = gc.callbacks[-1]
    told("stop", {})
    assert count(provider) == 0
    told("start", {})
    time.sleep(0.02)
    told("start", {})
    told("stop", {})
    told("stop", {})
    assert count(provider) == 1
    assert total_s(provider) < 0.02


def test_begun_in_the_middle_of_a_run_it_counts_from_the_next(
    provider: MeterProvider, open_pauses: OpenPauses, by_hand: None
):
    """Who starts in a finaliser does not count the run that it is called in, of which the others saw the beginning."""
    other = MeterProvider(shutdown_on_exit=False)
    open_pauses(other)
    pauses = Pauses(provider)

    class Starting:
        def __del__(self) -> None:
            pauses.start()

    each = Starting()
    each.itself = each  # type: ignore[attr-defined]
    del each
    gc.collect(0)
    assert count(provider) == 0
    gc.collect(0)
    assert count(provider) == count(other) == 1
    pauses.stop()
    other.shutdown()


def test_nothing_is_kept_alive_by_it(by_hand: None):
    """A provider that nobody has stopped goes when nobody refers to it, and so does the call."""
    before = list(gc.callbacks)
    provider = MeterProvider(shutdown_on_exit=False)
    pauses = Pauses(provider)
    pauses.start()
    assert gc.callbacks != before
    gone = weakref.ref(provider)
    del provider, pauses
    gc.collect(0)
    assert gone() is None
    assert gc.callbacks == before


def test_it_waits_for_no_lock(provider: MeterProvider, open_pauses: OpenPauses, by_hand: None):
    """A run is counted while others hold every lock that a record could want."""
    open_pauses()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        (stream,) = [each for each in provider.streams() if each.row is PYTHON_GC_PAUSE]
        with provider.ledger.lock, stream.lock, provider.everyone._lock:
            held.set()
            done.wait(PATIENCE_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE_S)
    collecting = threading.Thread(target=gc.collect, args=(0,))
    collecting.start()
    collecting.join(PATIENCE_S)
    is_stuck = collecting.is_alive()
    done.set()
    holder.join()
    collecting.join()
    assert not is_stuck
    assert count(provider) == 1


def test_no_run_leaves_an_exemplar(by_hand: None):
    """A span that is current when the collector runs has not caused it, and is not worth a lock there."""
    reader = PageReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    pauses = Pauses(provider)
    pauses.start()
    span = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        gc.collect(0)
    finally:
        otel_context.detach(token)
    pauses.stop()
    assert count(provider) == 1
    assert b"trace_id" not in reader.page("application/openmetrics-text").body
    provider.shutdown()


BUCKET = ExplicitBucketHistogramAggregation([60.0])


@pytest.mark.parametrize(
    ("views", "buckets"),
    [
        ([View(instrument_name=PYTHON_GC_PAUSE.name, aggregation=DropAggregation())], []),
        (
            [View(instrument_name=PYTHON_GC_PAUSE.name, aggregation=ExplicitBucketHistogramAggregation([1e-9, 60.0]))],
            [[0.0, 1.0, 0.0]],
        ),
        (
            [
                View(instrument_name=PYTHON_GC_PAUSE.name, name="one", aggregation=BUCKET),
                View(instrument_name=PYTHON_GC_PAUSE.name, name="other", aggregation=BUCKET),
            ],
            [[1.0, 0.0], [1.0, 0.0]],
        ),
    ],
    ids=["dropped", "other buckets", "two"],
)  # fmt: skip
def test_views_have_their_way(views: list[View], buckets: list[list[float]], by_hand: None):
    """A view may drop the pauses, give them other buckets, or make several metrics of them."""
    provider = MeterProvider(shutdown_on_exit=False, views=views)
    pauses = Pauses(provider)
    pauses.start()
    gc.collect(0)
    pauses.stop()
    assert [series.read()[:-1] for stream in provider.streams() for series in stream.living()] == buckets
    provider.shutdown()


def started(tmp_path: Path, **settings: Any) -> Telemetry:
    """A telemetry that has started, with a page and without a port."""
    private = {"service_name": "test", "start_server": False, "set_global": False, "page_process": False}
    telemetry = Telemetry(Settings(**(private | {"state_dir": tmp_path, "sources": ()} | settings)))
    telemetry.start()
    return telemetry


@pytest.mark.parametrize("settings", [{"start_monitoring": False}, {"disabled": True}])
async def test_where_nothing_is_to_be_watched_nothing_is(settings: dict[str, bool], tmp_path: Path):
    """Without monitoring, or disabled, neither the collector nor the loop has anything of ours."""
    before = list(gc.callbacks)
    telemetry = started(tmp_path, **settings)
    telemetry.watch_loop()
    await asyncio.sleep(0)
    assert gc.callbacks == before
    assert {GC_PAUSE, LAG} & {name.removesuffix("_count") for name in collect(telemetry).names()} == set()
    telemetry.shutdown()


def test_a_telemetry_counts_from_its_start_to_its_end(tmp_path: Path):
    """On the page the pauses stand under the worker's number; after the end the collector has no call of ours."""
    before = list(gc.callbacks)
    with started(tmp_path) as telemetry:
        gc.collect(0)
        assert collect(telemetry).value(f"{GC_PAUSE}_count", worker="0") >= 1
        telemetry.stop()
        assert gc.callbacks == before
        telemetry.start()
        gc.collect(0)
        assert collect(telemetry).value(f"{GC_PAUSE}_count", worker="0") >= 1
    assert gc.callbacks == before


FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork: run this on Linux or macOS")


@FORKS
def test_no_child_becomes_a_worker_by_a_run_of_the_collector(tmp_path: Path, by_hand: None):
    """From its first moment on a forked child counts nothing, and so makes no ledger."""
    provider = MeterProvider(shutdown_on_exit=False, ledger=Ledger(Folder(lambda: tmp_path)))
    pauses = Pauses(provider)
    pauses.start()
    child = Child(lambda: [gc.collect(0) and None, provider.ledger.path is None])
    assert child.answer()[1]
    child.kill()
    gc.collect(0)
    assert count(provider) == 1
    assert len([*tmp_path.iterdir()]) == 1
    pauses.stop()
    provider.shutdown()


@FORKS
def test_a_forked_child_counts_when_it_has_started(tmp_path: Path):
    """One that has not started is no worker by its collector's runs; one that starts counts its own alone."""
    with started(tmp_path) as telemetry:
        for _ in range(3):
            gc.collect(0)

        def live() -> list[object]:
            gc.disable()
            gc.collect(0)
            has_joined = telemetry.meter_provider.ledger.path is not None
            is_called = any("_Collections" in repr(each) for each in gc.callbacks)
            goes_on = telemetry._pauses.run is not None
            telemetry.start()
            before = count(telemetry.meter_provider)
            gc.collect(0)
            return [has_joined, is_called, goes_on, before, count(telemetry.meter_provider)]

        child = Child(live)
        assert child.answer() == [False, False, False, 0, 1]
        page = collect(telemetry)
        assert page.value(f"{GC_PAUSE}_count", worker="1") >= 1
        assert page.value(f"{GC_PAUSE}_count", worker="0") >= 3
        assert telemetry.meter_provider.everyone.processes() == {"0": os.getpid(), "1": child.pid}
        child.kill()


def test_the_end_of_the_interpreter_is_quiet(tmp_path: Path):
    """A program that ends without a word to its telemetry says nothing, whatever is collected then."""
    script = """
        import sys
        from pathlib import Path
        from otel_mlops.settings import Settings
        from otel_mlops.telemetry import Telemetry
        class Kept:
            def __del__(self):
                import gc
                gc.collect(0)
        telemetry = Telemetry(Settings(start_server=False, set_global=False, state_dir=Path(sys.argv[1]), sources=()))
        telemetry.start()
        kept = Kept()
        kept.itself = kept
        sys.kept = Kept()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- The event loop ------------------------------------------------------------------------------------------

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


async def until(holds: Callable[[], object]) -> None:
    """Wait in the loop until a condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  (nobody would set an event)
            await asyncio.sleep(TIMER_S)


async def runs_of(provider: MeterProvider, more: int) -> None:
    """Wait until timers have run so many times more."""
    at_least = count(provider, EVENT_LOOP_LAG) + more
    await until(lambda: count(provider, EVENT_LOOP_LAG) >= at_least)


@LOOPS
def test_a_call_that_holds_the_loop_up_is_seen_at_its_length(
    new_loop: NewLoop, provider: MeterProvider, open_pauses: OpenPauses
):
    """The timer that was due in the middle of a blocking call is late by what was left of it."""

    async def serve() -> None:
        open_pauses().watch_loop()
        await runs_of(provider, 3)
        quiet = total_s(provider, EVENT_LOOP_LAG)
        time.sleep(0.2)  # noqa: ASYNC251
        await runs_of(provider, 1)
        assert total_s(provider, EVENT_LOOP_LAG) - quiet >= 0.2 - 2 * TIMER_S

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve())


@LOOPS
def test_a_loop_that_is_not_held_up_is_in_time(new_loop: NewLoop, provider: MeterProvider, open_pauses: OpenPauses):
    """What is waited for on purpose is no lag: sooner or later a timer is late by less than that."""
    in_time = EVENT_LOOP_LAG.buckets.index(TIMER_S / 2) + 1

    def is_in_time() -> bool:
        return any(
            sum(series.read()[:in_time])
            for stream in provider.streams()
            if stream.row is EVENT_LOOP_LAG
            for series in stream.living()
        )

    async def serve() -> None:
        open_pauses().watch_loop()
        await until(is_in_time)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve())


class Counting(asyncio.SelectorEventLoop):
    """A loop that says how often it was asked for a timer of ours."""

    asked = 0

    def call_later(self, delay: float, *arguments: Any, **named: Any) -> asyncio.TimerHandle:
        self.asked += delay == TIMER_S * 1.5
        return super().call_later(delay, *arguments, **named)


@pytest.fixture
def slow(provider: MeterProvider) -> Iterator[Pauses]:
    """A recorder whose timers no others are taken for."""
    pauses = Pauses(provider, timer_s=TIMER_S * 1.5)
    pauses.start()
    yield pauses
    pauses.stop()


def test_a_loop_has_one_timer(provider: MeterProvider, slow: Pauses):
    """However often it is asked for, a loop that is timed already is timed once, until the end; then no more."""

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Counting)
        for _ in range(3):
            slow.watch_loop()
        assert loop.asked == 1
        await runs_of(provider, 2)
        assert loop.asked == 1 + count(provider, EVENT_LOOP_LAG)
        slow.stop()
        slow.watch_loop()
        last, asked = count(provider, EVENT_LOOP_LAG), loop.asked
        await asyncio.sleep(4 * TIMER_S)
        assert (count(provider, EVENT_LOOP_LAG), loop.asked) == (last, asked)
        slow.start()
        slow.watch_loop()
        assert loop.asked == asked + 1
        await runs_of(provider, 1)

    with asyncio.Runner(loop_factory=Counting) as runner:
        runner.run(serve())


def test_started_anew_at_once_it_has_one_timer(provider: MeterProvider, slow: Pauses):
    """The timer of before, which is still to run, ends when it does."""

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Counting)
        slow.watch_loop()
        slow.start()
        slow.watch_loop()
        assert loop.asked == 2
        await runs_of(provider, 3)
        assert loop.asked == 2 + count(provider, EVENT_LOOP_LAG)

    with asyncio.Runner(loop_factory=Counting) as runner:
        runner.run(serve())


@pytest.mark.stress
@LOOPS
def test_loops_come_and_go(new_loop: NewLoop, provider: MeterProvider, open_pauses: OpenPauses):
    """Several loops in threads of their own are timed, each from its start on, and one that is closed is let go."""
    pauses = open_pauses()
    gone: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def serve() -> None:
        gone.append(weakref.ref(asyncio.get_running_loop()))
        pauses.watch_loop()
        await runs_of(provider, 2)

    def run() -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(serve())

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    run()
    assert count(provider, EVENT_LOOP_LAG) >= 4
    del thread, threads
    gc.collect()
    assert [loop() for loop in gone] == [None] * 4


def test_where_no_loop_runs_there_is_nothing_to_time(provider: MeterProvider, open_pauses: OpenPauses):
    """A service without a loop has no such metric."""
    open_pauses().watch_loop()
    assert provider.totals(EVENT_LOOP_LAG) == []


async def test_nothing_is_kept_alive_by_a_timer(provider: MeterProvider):
    """Neither who records nor what was current when it began lives as long as the loop."""

    class Request:
        """What a request has in its context."""

    current: contextvars.ContextVar[Request] = contextvars.ContextVar("current")

    async def begin(request: Request) -> Pauses:
        current.set(request)
        pauses = Pauses(provider, timer_s=TIMER_S)
        pauses.start()
        pauses.watch_loop()
        return pauses

    request = Request()
    pauses = await asyncio.create_task(begin(request))
    await runs_of(provider, 2)
    gone = weakref.ref(request), weakref.ref(pauses)
    del request, pauses
    await until(lambda: gc.collect() and [each() for each in gone] == [None, None])
    last = count(provider, EVENT_LOOP_LAG)
    await asyncio.sleep(3 * TIMER_S)
    assert count(provider, EVENT_LOOP_LAG) == last


async def test_in_a_forked_child_a_timer_ends(provider: MeterProvider, open_pauses: OpenPauses):
    """A loop that a child goes on with records nothing there until it has started."""
    pauses = open_pauses()
    pauses.watch_loop()
    await runs_of(provider, 1)
    pauses.stop()  # as happens right after the fork
    last = count(provider, EVENT_LOOP_LAG)
    await asyncio.sleep(3 * TIMER_S)
    assert count(provider, EVENT_LOOP_LAG) == last
    pauses.start()
    pauses.watch_loop()
    await runs_of(provider, 1)


class Odd(asyncio.SelectorEventLoop):
    """Somebody's loop, which knows no context."""

    def call_later(self, delay: float, callback: Any, *arguments: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        return super().call_later(delay, callback, *arguments)


def test_an_odd_loop_is_left_alone(open_pauses: OpenPauses, caplog: pytest.LogCaptureFixture):
    """What a loop cannot do is said, and the application goes on."""

    async def serve() -> None:
        open_pauses().watch_loop()

    with asyncio.Runner(loop_factory=Odd) as runner:
        runner.run(serve())
    assert (
        [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
        == [message for message in caplog.messages if "the event loop is not timed" in message]
        != []
    )


async def lag_of(telemetry: Telemetry) -> float:
    """The lag's count on the page, once there is one."""
    await until(lambda: f"{LAG}_count" in collect(telemetry).names())
    return collect(telemetry).value(f"{LAG}_count")


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """A telemetry with quick timers."""
    with fresh_telemetry() as fresh:
        fresh._pauses.timer_s = TIMER_S
        yield fresh


@pytest.fixture
def app(telemetry: Telemetry) -> FastAPI:
    """An application of that telemetry."""
    made = FastAPI()
    telemetry.instrument_app(made)
    return made


async def test_an_applications_loop_is_timed_from_its_lifespan_on(telemetry: Telemetry, app: FastAPI):
    """It begins with the lifespan, and ends with it."""
    async with serving(app):
        assert await lag_of(telemetry) >= 1
    last = count(telemetry.meter_provider, EVENT_LOOP_LAG)
    await asyncio.sleep(3 * TIMER_S)
    assert count(telemetry.meter_provider, EVENT_LOOP_LAG) == last


async def test_an_applications_loop_is_timed_from_its_first_request_on(telemetry: Telemetry, app: FastAPI):
    """Where the server runs no lifespan the first request begins it."""
    await ask(app, "GET", "/nowhere")
    assert await lag_of(telemetry) >= 1


async def test_a_service_without_an_application_is_timed(telemetry: Telemetry):
    """`async with` times the loop that it is in, also where the telemetry has started before."""
    await asyncio.to_thread(telemetry.start)
    assert f"{LAG}_count" not in collect(telemetry).names()
    async with telemetry:
        assert await lag_of(telemetry) >= 1


async def test_the_loop_that_it_is_started_in_is_timed(telemetry: Telemetry):
    """A service that configures its telemetry in its main coroutine needs no more than that."""
    telemetry.start()
    assert await lag_of(telemetry) >= 1
