"""Recording: what counts, what is dropped, and that no record is lost or counted twice."""

from __future__ import annotations

import array
import collections
import ctypes
import enum
import errno
import gc
import itertools
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter
from opentelemetry.sdk.metrics.view import View

from otel_mlops.metrics import DROPPED, OVERFLOW, PREDICTION_VALUES
from otel_mlops.sdk import instruments, series, stream
from otel_mlops.sdk import ledger as ledger_module
from otel_mlops.sdk import recording as recording_module
from otel_mlops.sdk.group import Group
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.sdk.records import EXEMPLARS, SERIES, STREAM, read_ledger
from tests.sdk.folder import Folder

BOUNDS = (1.0, 2.0, 5.0)
KINDS = ("counter", "updown", "histogram", "gauge")

OpenProvider = Callable[..., MeterProvider]


@pytest.fixture(params=["lock_free", "locked"])
def recording(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to record: by the interpreter's atomicity, and under a lock, as a free-threaded one needs."""
    classes = recording_module.LOCKED if request.param == "locked" else recording_module.LOCK_FREE
    monkeypatch.setattr(stream, "RECORDING", classes)
    monkeypatch.setattr(instruments, "RECORDING", classes)
    return str(request.param)


def create(provider: MeterProvider, kind: str, name: str = "") -> Any:
    """An instrument of a kind."""
    meter = provider.get_meter("test")
    if kind == "histogram":
        return meter.create_histogram(name or kind, explicit_bucket_boundaries_advisory=BOUNDS)
    made = {"counter": meter.create_counter, "updown": meter.create_up_down_counter, "gauge": meter.create_gauge}
    return made[kind](name or kind)


def verb(recorder: Any) -> Callable[..., None]:
    """How something is recorded, by an instrument or by a handle."""
    for name in ("add", "record", "set"):
        if hasattr(recorder, name):
            return getattr(recorder, name)
    raise AssertionError(recorder)


def values(provider: MeterProvider, name: str) -> list[float]:
    """The numbers of a metric's only series: the buckets and the sum, or the value; nothing if it is not there."""
    found = [each.read() for one in provider.streams() if one.name == name for each in one.living()]
    assert len(found) <= 1
    kinds = {one.name: one.kind for one in provider.streams()}
    return found[0][:1] if found and kinds[name] == "gauge" else found[0] if found else []


def dropped(provider: MeterProvider) -> dict[str, float]:
    """How many measurements were dropped, by the reason."""
    return {str(attributes["reason"]): count for attributes, count in provider.totals(DROPPED)}


class Adding(float):
    """A float whose sum runs Python code in the middle of `+=`, where another thread may come in."""

    def __radd__(self, other: float) -> float:
        return float(other) + float(self)

    def __add__(self, other: float) -> float:
        return float(self) + float(other)


class Convertible:
    """An object that is no number and becomes one, slowly."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return float(sum([self.value]))

    def __radd__(self, other: object) -> float:
        raise AssertionError("it must have been made a float before")


class Hostile:
    """An object that fails in every way it is looked at."""

    def __float__(self) -> float:
        raise RuntimeError("no number")

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    __str__ = __repr__


class NotAFloat:
    """An object whose conversion gives something else."""

    def __float__(self) -> float:
        return "2.0"


class Level(enum.IntEnum):
    """An integer with a name."""

    TWO = 2


TWOS = [
    2, 2.0, Level.TWO, np.int8(2), np.int64(2), np.float16(2), np.float32(2), np.float64(2), np.longdouble(2),
    np.array(2.0), Fraction(4, 2), Decimal(2), Adding(2.0), Convertible(2.0), ctypes.c_double(2.0).value, "2",
]  # fmt: skip

NO_NUMBERS = [
    None, "two", b"\xff", [], [2], {}, (), object(), 2j, 10**400, 10**5000, Hostile(), NotAFloat(), Decimal("sNaN"),
    np.array([2.0, 2.0]), float, lambda: 2,
]  # fmt: skip

NOT_FINITE = [
    math.nan, math.inf, -math.inf, Decimal("NaN"), Decimal("-Infinity"), np.float32("inf"), np.longdouble("1e4000"),
]  # fmt: skip

NEGATIVES = [-1, -1.0, -5e-324, Fraction(-1, 3), np.int64(-5), Adding(-2.0), -sys.float_info.max]


# --- What counts and what is dropped ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bound", [False, True])
def test_whatever_converts_to_a_finite_number_counts(provider: MeterProvider, recording: str, kind: str, bound: bool):
    """Numbers of every type, and what says that it is one, count as the float they are."""
    instrument = create(provider, kind)
    record = verb(instrument.bind({"a": "b"}) if bound else instrument)
    for value in [*TWOS, True, 0, -0.0]:
        record(value)
    twos = float(len(TWOS))
    wanted = {
        "counter": [twos * 2 + 1],
        "updown": [twos * 2 + 1],
        "gauge": [0.0],
        "histogram": [3.0, twos, 0.0, 0.0, twos * 2 + 1],
    }
    assert values(provider, kind) == wanted[kind]
    assert dropped(provider) == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bound", [False, True])
def test_what_is_no_number_is_dropped_counted_and_said_once(
    provider: MeterProvider, recording: str, kind: str, bound: bool, caplog: pytest.LogCaptureFixture
):
    """What does not convert to a finite number changes nothing, raises nothing, is counted, and is said once."""
    instrument = create(provider, kind)
    record = verb(instrument.bind({"a": "b"}) if bound else instrument)
    record(2)
    before = values(provider, kind)
    negatives = NEGATIVES if kind in ("counter", "histogram") else []
    for value in [*NO_NUMBERS, *NOT_FINITE, *negatives]:
        record(value)
    assert values(provider, kind) == before
    wanted = {"type": len(NO_NUMBERS), "not_finite": len(NOT_FINITE), "negative": len(negatives)}
    assert dropped(provider) == {reason: count for reason, count in wanted.items() if count}
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(dropped(provider))
    assert all(message.startswith(f"{kind}: dropped ") for message in said)


@pytest.mark.parametrize("value", [Hostile(), 10**5000], ids=["hostile", "huge"])
def test_a_value_that_cannot_be_shown_is_dropped_by_its_type(
    provider: MeterProvider, caplog: pytest.LogCaptureFixture, value: object
):
    """A value whose repr() fails is told by the name of its type: saying so must not break the record."""
    create(provider, "counter").add(value)
    assert [record.getMessage() for record in caplog.records] == [
        f"counter: dropped a {type(value).__name__} (type); more of the same are counted in otel_mlops_dropped_total"
    ]


@pytest.mark.parametrize("kind", ["updown", "gauge"])
def test_negative_values_count_where_a_metric_goes_both_ways(provider: MeterProvider, recording: str, kind: str):
    """An up-down counter and a gauge take negative numbers."""
    record = verb(create(provider, kind))
    record(-2)
    record(Fraction(-1, 2))
    assert values(provider, kind) == [{"updown": -2.5, "gauge": -0.5}[kind]]
    assert dropped(provider) == {}


def test_a_signed_histogram_counts_negative_values(provider: MeterProvider, recording: str):
    """A row that is signed takes what OpenTelemetry's histogram drops, and only infinities and NaN are dropped."""
    handle = provider.instrument(PREDICTION_VALUES).bind({"model_version": "1"})
    for value in (-3.5, -1e300, 2.0, -math.inf, math.nan):
        handle.record(value)
    handle.record_many([-1.0, -2.0])
    handle.record_many(np.array([-1.5]))
    read = values(provider, PREDICTION_VALUES.name)
    assert sum(read[:-1]) == 6.0
    assert read[-1] == -1e300
    assert dropped(provider) == {"not_finite": 2.0}


def test_a_value_on_a_bound_belongs_to_the_bucket_below_it(provider: MeterProvider, recording: str):
    """Buckets hold what is less than or equal to their bound, by record and by record_many."""
    handle = create(provider, "histogram").bind()
    for value in (0.0, 1.0, math.nextafter(1.0, 2.0), 2.0, 5.0, math.nextafter(5.0, 9.0), 1e300):
        handle.record(value)
    one_by_one = values(provider, "histogram")[:-1]
    assert one_by_one == [2.0, 2.0, 1.0, 2.0]
    every = [0.0, 1.0, math.nextafter(1.0, 2.0), 2.0, 5.0, math.nextafter(5.0, 9.0), 1e300]
    handle.record_many(every)
    handle.record_many(np.array(every))
    assert values(provider, "histogram")[:-1] == [3 * count for count in one_by_one]


def test_the_sum_of_an_updown_and_a_gauges_value_may_be_zero(paged: MeterProvider):
    """A series whose value is 0 is there all the same."""
    for kind in KINDS:
        verb(create(paged, kind))(0)
    assert [len(one.living()) for one in paged.streams() if one.name in KINDS] == [1] * 4


def test_a_handle_that_is_never_used_is_no_series(provider: MeterProvider):
    """Binding makes no series and takes no space in the ledger."""
    for kind in KINDS:
        create(provider, kind).bind({"a": "b"})
    assert [one.living() for one in provider.streams()] == [[]] * 4
    assert provider.ledger.total_bytes == 0


# --- Many values in one go ----------------------------------------------------------------------------------


@pytest.fixture(params=["with numpy", "without numpy"])
def numpy_loaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the program has imported numpy."""
    if request.param == "without numpy":
        monkeypatch.delitem(sys.modules, "numpy")
    return bool(request.param == "with numpy")


CONTAINERS: list[Callable[[list[Any]], Any]] = [
    list, tuple, iter, set, lambda v: (each for each in v), lambda v: dict.fromkeys(v).keys(),
    lambda v: map(Fraction, v), lambda v: array.array("d", v), collections.deque,
]  # fmt: skip
ARRAYS: list[Callable[[list[Any]], Any]] = [
    np.array, lambda v: np.array(v, dtype=np.float32), lambda v: np.array(v).reshape(-1, 1),
    lambda v: np.array(v, dtype=object), lambda v: np.array([v, v])[0, ::-1],
]  # fmt: skip


@pytest.mark.parametrize(
    ("container", "loaded"),
    [*((each, loaded) for each in CONTAINERS for loaded in (True, False)), *((each, True) for each in ARRAYS)],
)
@pytest.mark.parametrize("size", [0, 1, 10, 500])
def test_many_values_count_from_any_container(
    provider: MeterProvider,
    recording: str,
    monkeypatch: pytest.MonkeyPatch,
    container: Callable[[list[Any]], Any],
    loaded: bool,
    size: int,
):
    """Lists, tuples, generators, sets and, with numpy, arrays of any shape count as their values do one by one."""
    if not loaded:
        monkeypatch.delitem(sys.modules, "numpy")
    every = [number / 4 for number in range(size)]
    create(provider, "histogram", "many").bind().record_many(container(every))
    one = create(provider, "histogram", "one").bind()
    for value in every:
        one.record(value)
    assert values(provider, "many") == values(provider, "one")
    assert dropped(provider) == {}


MIXED = st.one_of(
    st.floats(-1e300, 1e300),
    st.floats(0, 10),
    st.integers(-5, 2**53),
    st.booleans(),
    st.sampled_from([math.nan, math.inf, -math.inf, None, "x", "3", Decimal("1.5"), Fraction(1, 3), [1.0], 2j]),
    st.builds(np.float64, st.floats(0, 3)),
)


@pytest.mark.stress
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    many=st.lists(MIXED, max_size=30)
    | st.lists(st.floats(0, 10) | st.sampled_from([None, -1.0]), min_size=60)
    | st.lists(st.floats(0, 10) | st.just(-1.0), min_size=60)
)
def test_many_values_count_as_they_do_one_by_one(numpy_loaded: bool, many: list[Any]):
    """Whatever is among them, record_many counts and drops the same as record for each."""
    provider = MeterProvider(shutdown_on_exit=False)
    create(provider, "histogram", "many").bind().record_many(many)
    after_many = dropped(provider)
    one = create(provider, "histogram", "one").bind()
    for value in many:
        one.record(value)
    in_one_go, one_by_one = values(provider, "many"), values(provider, "one")
    assert in_one_go[:-1] == one_by_one[:-1]
    assert math.isclose(sum(in_one_go[-1:]), sum(one_by_one[-1:]), rel_tol=1e-9)
    assert {reason: 2 * count for reason, count in after_many.items()} == dropped(provider)
    provider.shutdown()


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [3, 200])
def test_one_bad_value_among_many_is_dropped_alone(provider: MeterProvider, numpy_loaded: bool, size: int, bad: float):
    """A negative, infinite or undefined value in a list or an array costs itself and no other."""
    handle = create(provider, "histogram").bind()
    many = [0.5] * size
    many[size // 2] = bad
    handle.record_many(many)
    if numpy_loaded:
        handle.record_many(np.array(many))
    times = 2 if numpy_loaded else 1
    assert values(provider, "histogram") == [times * (size - 1), 0.0, 0.0, 0.0, times * (size - 1) / 2]
    assert dropped(provider) == {"negative" if bad == -1.0 else "not_finite": times}


@pytest.mark.parametrize("size", [3, 200])
def test_lists_in_a_list_are_no_values(provider: MeterProvider, numpy_loaded: bool, size: int):
    """A nested list is dropped value by value whatever its length and whether or not numpy is there."""
    create(provider, "histogram").bind().record_many([[1.0, 2.0]] * size)
    assert values(provider, "histogram") == []
    assert dropped(provider) == {"type": size}


@pytest.mark.parametrize("given", [None, 5, 2.0, np.float64(3), object()])
def test_what_holds_no_values_is_dropped_once(provider: MeterProvider, given: Any):
    """Something that is no iterable is one drop, and raises nothing."""
    create(provider, "histogram").bind().record_many(given)
    assert values(provider, "histogram") == []
    assert dropped(provider) == {"type": 1.0}


def failing(numbers: list[float]) -> Iterator[float]:
    """A generator that fails after its values."""
    yield from numbers
    raise RuntimeError("the source broke")


class FailsToCount(list[float]):
    """A list that raises when it is asked for its length, and whose values can be had."""

    def __len__(self) -> int:
        raise RuntimeError("no length")


def test_what_a_generator_gave_before_it_failed_counts(provider: MeterProvider):
    """A generator that raises loses nothing of what it gave, and counts as one drop."""
    handle = create(provider, "histogram").bind()
    handle.record_many(failing([1.0, 2.0, 3.0]))
    handle.record_many(FailsToCount([1.0, 2.0]))
    assert values(provider, "histogram") == [2.0, 2.0, 1.0, 0.0, 9.0]
    assert dropped(provider) == {"type": 1.0}


def test_a_huge_batch_counts_exactly(provider: MeterProvider, numpy_loaded: bool):
    """A hundred thousand values in one go are a hundred thousand counts."""
    handle = create(provider, "histogram").bind()
    many = [0.5, 1.5, 2.5, 9.5] * 25_000
    handle.record_many(many)
    handle.record_many(np.array(many) if numpy_loaded else tuple(many))
    assert values(provider, "histogram") == [50_000.0] * 4 + [2 * sum(many)]


def test_every_view_of_a_histogram_counts_each_value_of_a_generator(open_provider: OpenProvider):
    """Where two views select an instrument, both count all that a generator gives, good and bad."""
    views = [View(instrument_name="h", name="left"), View(instrument_name="h", name="right")]
    provider = open_provider(views=views)
    handle = create(provider, "histogram", "h").bind()
    handle.record_many(each for each in (1.0, None, 4.0))
    handle.record_many(failing([1.0]))
    assert values(provider, "left") == values(provider, "right") == [2.0, 0.0, 1.0, 0.0, 6.0]


# --- Threads, signals and finalisers ------------------------------------------------------------------------


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads that are switched as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(threads: int, work: Callable[[int], None]) -> None:
    """Run the same work in several threads that begin together; a failure in one is one of the test."""
    failures: list[BaseException] = []
    gate = threading.Barrier(threads)

    def run(number: int) -> None:
        gate.wait(20)
        try:
            work(number)
        except BaseException as error:
            failures.append(error)
            raise

    each = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in each:
        thread.start()
    for thread in each:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []


# A half of each type: halves add up exactly in any order.
HALVES = [
    0.5, Adding(0.5), Convertible(0.5), Fraction(1, 2), Decimal("0.5"), np.float64(0.5), np.float32(0.5),
    np.array(0.5), 1, True, np.int64(1),
]  # fmt: skip
HALVES_SUM = float(sum(float(each) for each in HALVES))


@pytest.mark.stress
@pytest.mark.parametrize("bound", [True, False])
def test_eight_threads_lose_nothing(provider: MeterProvider, recording: str, impatient: None, bound: bool):
    """Totals are exact for every type of number while eight threads add to the same series."""
    rounds, threads = 150, 8
    made = {kind: create(provider, kind) for kind in KINDS}
    attributes = {"route": "/predict", "code": 200}

    def work(_: int) -> None:
        recorders = [made[kind].bind(attributes) if bound else made[kind] for kind in KINDS]
        counter, updown, histogram, gauge = map(verb, recorders)
        keywords = {} if bound else {"attributes": attributes}
        for _ in range(rounds):
            for value in HALVES:
                counter(value, **keywords)
                updown(value, **keywords)
                histogram(value, **keywords)
                gauge(value, **keywords)
                updown(-0.25, **keywords)

    at_once(threads, work)
    total, count = rounds * threads * HALVES_SUM, rounds * threads * len(HALVES)
    assert values(provider, "counter") == [total]
    assert values(provider, "updown") == [total - count / 4]
    assert values(provider, "histogram") == [count, 0.0, 0.0, 0.0, total]
    assert values(provider, "gauge")[0] in (0.5, 1.0)
    assert dropped(provider) == {}


def test_the_first_record_of_a_series_is_made_by_all_threads_at_once(
    provider: MeterProvider, recording: str, impatient: None
):
    """Series that eight threads create at the same moment are one series each, and no record is lost."""
    counter, histogram = create(provider, "counter"), create(provider, "histogram")

    def work(_: int) -> None:
        for number in range(120):
            counter.add(1, {"number": number, "name": "x"})
            counter.bind({"name": "x", "number": number}).add(1)
            histogram.bind({"number": str(number)}).record_many([0.5, 3.0])

    at_once(8, work)
    found = {one.name: [each.read() for each in one.living()] for one in provider.streams()}
    assert found["counter"] == [[16.0]] * 120
    assert found["histogram"] == [[8.0, 0.0, 8.0, 0.0, 28.0]] * 120


def test_metrics_that_threads_create_at_once_are_one(provider: MeterProvider, recording: str, impatient: None):
    """Instruments that eight threads ask for at the same moment, a row's too, are the same and lose nothing."""

    def work(number: int) -> None:
        for round_ in range(40):
            provider.get_meter(f"meter{round_ % 3}").create_counter(f"counter{round_}").add(1)
            provider.instrument(PREDICTION_VALUES).record(number, {"model_version": str(round_ % 4)})
            verb(create(provider, "counter"))(None)

    at_once(8, work)
    counters = {one.name: [each.read() for each in one.living()] for one in provider.streams()}
    assert [counters[f"counter{number}"] for number in range(40)] == [[[8.0]]] * 40
    assert sum(sum(read[:-1]) for read in counters[PREDICTION_VALUES.name]) == 8 * 40
    assert dropped(provider) == {"type": 8 * 40}
    names = [one.name for one in provider.streams()]
    assert len(names) == len(set(names))


needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers: run this on Linux or macOS")


@needs_timers
def test_a_signal_handler_may_record_in_the_middle_of_a_record(provider: MeterProvider, recording: str):
    """A handler that adds to the same series, and makes new ones, loses nothing and waits for nothing."""
    counter, histogram = create(provider, "counter"), create(provider, "histogram")
    same, many = counter.bind({"who": "both"}), histogram.bind()
    handled = itertools.count()
    runs: list[int] = []

    def handle(*_: object) -> None:
        number = next(handled)
        same.add(1)
        many.record(0.5)
        many.record_many([1.5, 3.0])
        counter.add(1, {"who": "handler", "number": number % 500})
        counter.add(None, {"who": "handler"})  # counted as dropped, in a metric of its own
        runs.append(number)

    before = signal.signal(signal.SIGALRM, handle)
    mine = 0
    try:
        for number in range(6000):
            signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + number % 50))
            same.add(1)
            many.record(0.5)
            counter.add(1, {"who": "main", "number": number % 700})
            mine += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(runs) >= 100
    found = {one.name: one for one in provider.streams()}
    by_who: dict[str, float] = {}
    for each in found["counter"].living():
        who = str(each.attributes["who"])
        by_who[who] = by_who.get(who, 0.0) + each.read()[0]
    assert by_who == {"both": mine + len(runs), "main": mine, "handler": len(runs)}
    assert values(provider, "histogram") == [
        mine + len(runs), len(runs), len(runs), 0.0, (mine + len(runs)) * 0.5 + len(runs) * 4.5,
    ]  # fmt: skip
    assert dropped(provider) == {"type": len(runs)}


class Interrupted(Ledger):
    """A ledger in whose appending something else comes in between, once, as a signal handler would."""

    def __init__(self, home: Folder, kind: int) -> None:
        super().__init__(home)
        self.kind = kind
        self.interrupt: Callable[[], None] | None = None

    def append(self, kind: int, description: Any, cells: Any) -> Any:
        """Append, and let the other in before the caller knows where."""
        place = super().append(kind, description, cells)
        if kind == self.kind and self.interrupt is not None:
            interrupt, self.interrupt = self.interrupt, None
            interrupt()
        return place


@pytest.mark.parametrize("kind", [STREAM, SERIES])
def test_a_series_that_is_born_twice_at_once_is_one(open_provider: OpenProvider, tmp_path: Path, kind: int):
    """A handler that records into a series just as it is made does not make it a second time, and no count is lost."""
    ledger = Interrupted(Folder(lambda: tmp_path), kind)
    provider = open_provider(ledger=ledger)
    counter = create(provider, "counter")
    handle = counter.bind({"a": "b"})
    ledger.interrupt = lambda: handle.add(10)
    handle.add(1)
    ledger.interrupt = lambda: counter.add(10, {"n": 1})
    counter.add(1, {"n": 1})
    if ledger.interrupt is not None:  # the metric was described before
        ledger.interrupt()
    found = next(one for one in provider.streams() if one.name == "counter")
    assert [each.read() for each in found.living()] == [[11.0], [11.0]]
    assert ledger.path is not None
    records = read_ledger(ledger.path)
    described = {each.description["number"] for each in records if each.kind == STREAM}
    series_ = [each for each in records if each.kind == SERIES]
    assert [each.cells for each in series_] == [[11.0], [11.0]]
    for each in series_:
        behind = records[: records.index(each)]
        assert each.description[0] in {other.description["number"] for other in behind if other.kind == STREAM}
    assert len(described) <= 2


def test_an_exemplar_that_is_made_twice_at_once_breaks_nothing(open_provider: OpenProvider, tmp_path: Path):
    """A handler that takes the first exemplar of a series just as it is made costs at most an exemplar."""
    ledger = Interrupted(Folder(lambda: tmp_path), EXEMPLARS)
    provider = open_provider(ledger=ledger, exemplar_filter=AlwaysOnExemplarFilter())
    handle = create(provider, "histogram").bind()
    ledger.interrupt = lambda: handle.record(3.0)
    handle.record(0.5)
    handle.record(9.0)
    assert values(provider, "histogram") == [1.0, 0.0, 1.0, 1.0, 12.5]
    assert [each and each.value for each in handle.exemplars.read()][-1] == 9.0


@pytest.mark.stress
@needs_timers
def test_a_signal_handler_may_make_series_while_they_are_listed(open_provider: OpenProvider):
    """New series that a handler makes while a page or a reader goes through them disturb nobody."""
    provider = open_provider(max_series=100_000)
    counter = create(provider, "counter")
    for number in range(2000):
        counter.add(1, {"n": number})
    found = next(one for one in provider.streams() if one.name == "counter")
    numbers = itertools.count(2000)
    before = signal.signal(signal.SIGALRM, lambda *_: counter.add(1, {"n": next(numbers)}))
    try:
        for delay in range(300):
            signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + delay % 60))
            assert len(found.living()) >= 2000
            assert found.forget({"n": -1}) == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert next(numbers) > 2050


def test_records_wait_for_one_another_where_the_interpreter_gives_no_atomicity(provider: MeterProvider, recording: str):
    """Under a lock every verb of every kind waits for who holds it; without, none does."""
    for kind in KINDS:
        handle = create(provider, kind).bind({"a": "b"})
        verb(handle)(1)
        found = next(one for one in provider.streams() if one.name == kind)
        calls: list[Callable[[], None]] = [lambda handle=handle: verb(handle)(1)]
        if kind == "histogram":
            calls.append(lambda handle=handle: handle.record_many([1.0, 2.0]))
        for call in calls:
            recording_thread = threading.Thread(target=call)
            with found.lock:
                recording_thread.start()
                recording_thread.join(0.05 if recording == "locked" else 20)
                assert recording_thread.is_alive() is (recording == "locked")
            recording_thread.join(20)
            assert not recording_thread.is_alive()


def test_an_overflow_is_counted_without_the_ledgers_lock(open_provider: OpenProvider, recording: str):
    """Whoever counts an overflow holds nothing that others need who wait for the metric that counts it."""
    provider = open_provider(max_series=2)
    first, second = create(provider, "counter"), create(provider, "counter", "other")
    for number in range(3):
        first.add(1, {"n": number})
    for number in range(2):
        second.add(1, {"n": number})
    streams = {one.name: one for one in provider.streams()}
    overflowing = threading.Thread(target=lambda: second.add(1, {"n": 2}))
    with streams[OVERFLOW.name].lock:
        overflowing.start()
        deadline = time.monotonic() + 20
        while streams["other"]._overflow is None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert provider.ledger.lock.acquire(timeout=10), "the ledger's lock is held while another is waited for"
        provider.ledger.lock.release()
    overflowing.join(20)
    assert not overflowing.is_alive()
    assert {attributes["metric"]: count for attributes, count in provider.totals(OVERFLOW)} == {
        "counter": 1.0, "other": 1.0,
    }  # fmt: skip


@pytest.mark.stress
def test_a_finaliser_may_record_in_the_middle_of_a_record(open_provider: OpenProvider, recording: str):
    """An object that records as it is collected, wherever that happens, loses nothing and waits for nothing."""
    provider = open_provider(max_series=5000)
    counter = create(provider, "counter")
    same = counter.bind({"who": "both"})
    collected: list[int] = []

    class Dying:
        def __init__(self, number: int) -> None:
            self.number = number
            self.itself = self

        def __del__(self) -> None:
            same.add(1)
            counter.add(1, {"who": "finaliser", "number": self.number})
            collected.append(self.number)

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for number in range(1000):
            Dying(number)
            same.add(1)
            counter.bind({"who": "main", "number": [number]}).add(1)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert sorted(collected) == list(range(1000))
    found = next(one for one in provider.streams() if one.name == "counter")
    assert sum(each.read()[0] for each in found.living()) == 4000
    assert [each.read() for each in found.living() if each.attributes["who"] == "both"] == [[2000.0]]


@pytest.mark.parametrize("creates", [False, True])
def test_a_logging_handler_may_count_what_is_logged(provider: MeterProvider, recording: str, creates: bool):
    """A handler that counts log records, ours among them, gets no endless loop and no deadlock."""

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            counter = create(provider, "counter", "logs") if creates else logs
            counter.add(1, {"level": record.levelname})
            counter.add(None)

    logs = create(provider, "counter", "logs")
    handler = Counting()
    logging.getLogger().addHandler(handler)
    try:
        small = provider.get_meter("test").create_counter("small")
        provider.max_series = 1
        tiny = create(provider, "counter", "tiny")
        for number in range(3):
            small.add("no number")
            tiny.add(1, {"number": number})
    finally:
        logging.getLogger().removeHandler(handler)
    assert values(provider, "logs") == [3.0]  # small's drop, logs' own, tiny's overflow
    assert dropped(provider) == {"type": 6.0}


@pytest.mark.stress
def test_a_million_records_of_eight_threads_are_a_million(provider: MeterProvider, impatient: None):
    """A million records are counted exactly, through handles and through the API."""
    each = 125_000
    counter, histogram = create(provider, "counter"), create(provider, "histogram")

    def work(number: int) -> None:
        handle, attributes = histogram.bind(), {"number": number % 2, "name": "soak"}
        for _ in range(each // 5):
            handle.record(0.5)
            handle.record(4.0)
            counter.add(1, attributes)
            counter.add(0.5, attributes)
            counter.add(True, attributes)

    at_once(8, work)
    half = each * 8 / 5
    found = next(one for one in provider.streams() if one.name == "counter")
    assert [series_.read() for series_ in found.living()] == [[half * 2.5 / 2]] * 2
    assert values(provider, "histogram") == [half, 0.0, half, 0.0, half * 4.5]


@pytest.mark.stress
def test_series_that_come_and_go_under_threads_leave_exact_totals(
    open_provider: OpenProvider, impatient: None, tmp_path: Any
):
    """While threads record and one forgets, no series is listed twice and what is recorded afterwards is exact."""
    provider = open_provider(ledger=Ledger(Folder(lambda: tmp_path)))
    counter = create(provider, "counter")
    handles = [counter.bind({"number": number}) for number in range(20)]
    stop = threading.Event()

    def forget() -> None:
        while not stop.is_set():
            for number in range(20):
                counter.forget({"number": number})

    forgetting = threading.Thread(target=forget)
    forgetting.start()

    def work(_: int) -> None:
        for round_ in range(1500):
            handles[round_ % 20].add(1)
            counter.add(1, {"number": round_ % 20})

    at_once(4, work)
    stop.set()
    forgetting.join()
    found = next(one for one in provider.streams() if one.name == "counter")
    listed = [each.attributes["number"] for each in found.living()]
    assert len(listed) == len(set(listed))
    before = {each.attributes["number"]: each.read()[0] for each in found.living()}
    for number, handle in enumerate(handles):
        handle.add(1)
        counter.add(1, {"number": number})
    after = {each.attributes["number"]: each.read()[0] for each in found.living()}
    assert after == {number: before.get(number, 0.0) + 2 for number in range(20)}


def test_a_newborn_gauge_is_never_seen_at_zero(paged, reader, monkeypatch):
    """A page that is made the moment a series can be seen has its first value, not the 0 of fresh cells."""
    keep, seen = stream.Stream.keep, []

    def keep_and_look(kept_in: Any, born: Any) -> None:
        keep(kept_in, born)
        if kept_in.name == "g":
            seen.append("\ng 0.95\n" in reader.page().body.decode())

    monkeypatch.setattr(stream.Stream, "keep", keep_and_look)
    paged.get_meter("meter").create_gauge("g").set(0.95)
    assert seen == [True]


# --- Moving -------------------------------------------------------------------------------------------------


def path_of(provider: MeterProvider) -> Path:
    """Where its ledger is."""
    assert provider.ledger.path is not None
    return provider.ledger.path


def in_the_file(path: Path) -> dict[str, list[list[float]]]:
    """The cells of every series in a ledger's file, by the metric; each metric described once, before its series."""
    found: dict[str, list[list[float]]] = {}
    names: dict[int, str] = {}
    for each in read_ledger(path):
        if each.kind == STREAM:
            assert each.description["number"] not in names
            names[each.description["number"]] = each.description["name"]
        elif each.kind == SERIES:
            found.setdefault(names[each.description[0]], []).append(each.cells)
    return found


@pytest.fixture
def housed(open_provider: OpenProvider, tmp_path: Path) -> MeterProvider:
    """A provider whose ledger is in a folder of its own."""
    return open_provider(ledger=Ledger(Folder(lambda: tmp_path)), exemplar_filter=AlwaysOnExemplarFilter())


def lose_file(provider: MeterProvider) -> None:
    """Have somebody remove the file."""
    path_of(provider).unlink()


def come_back(provider: MeterProvider) -> None:
    """Have the worker stop and start."""
    provider.leave()
    provider.ledger.rejoin()


@pytest.mark.parametrize("away", [lose_file, come_back])
def test_numbers_of_every_kind_move_into_the_next_file(housed: MeterProvider, recording: str, away: Any):
    """After a removed file, or a stop and a start of the only worker, the next file has everything, and goes on."""
    handles = {kind: create(housed, kind).bind({"a": "b"}) for kind in KINDS}
    overflowing = create(housed, "counter", "full")
    overflowing.add(1, {"n": 0})
    next(one for one in housed.streams() if one.name == "full").limit = 1
    unused = create(housed, "counter").bind({"never": "used"})
    for _ in range(2):
        for handle in handles.values():
            verb(handle)(1.5)
        overflowing.add(2, {"n": 1})
        before = {one.name: [each.born_ns for each in one.living()] for one in housed.streams()}
        away(housed)
        for handle in handles.values():
            verb(handle)(0.25)
        housed.settle()
        assert {one.name: [each.born_ns for each in one.living()] for one in housed.streams()} == before
    for handle in handles.values():
        verb(handle)(10.0)
    exemplars = handles["histogram"].exemplars
    assert [each and each.value for each in exemplars.read()] == [0.25, 1.5, None, 10.0]
    assert housed.ledger.holds(exemplars.place)
    found = in_the_file(path_of(housed))
    assert found["counter"] == found["updown"] == [[13.5]]
    assert found["histogram"] == [[2.0, 2.0, 0.0, 1.0, 13.5]]
    assert [cells[0] for cells in found["gauge"]] == [10.0]
    assert found["full"] == [[1.0], [4.0]]
    unused.add(1)
    assert in_the_file(path_of(housed))["counter"] == [[13.5], [1.0]]


def test_settling_moves_nothing_that_is_where_it_belongs(housed: MeterProvider):
    """Putting in order again and again changes nothing in a file that is well."""
    for kind in KINDS:
        verb(create(housed, kind))(1)
    before, places = path_of(housed).read_bytes(), [each.place for one in housed.streams() for each in one.living()]
    for _ in range(3):
        housed.settle()
    assert path_of(housed).read_bytes() == before
    assert [each.place for one in housed.streams() for each in one.living()] == places


def test_what_finds_no_room_stays_until_there_is_some(housed: MeterProvider, monkeypatch: pytest.MonkeyPatch):
    """Of what is to move, what does not fit any more stays as it was, again and again, without taking more memory."""
    wide = housed.get_meter("m").create_histogram("wide", explicit_bucket_boundaries_advisory=range(3000))
    handles = [wide.bind({"n": number}) for number in range(4)]
    for handle in handles:
        handle.record(1.0)
    before = [(handle.place, handle.exemplars.place) for handle in handles]
    lose_file(housed)
    reserve, rooms = os.posix_fallocate, [1]

    def nearly_full(file: int, offset: int, length: int) -> None:
        if not rooms[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        rooms[0] -= 1
        reserve(file, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", nearly_full)
    housed.settle()
    private = [housed.ledger.is_private(handle.place) for handle in handles]
    assert private == [False, True, True, True]
    assert [(handle.place, handle.exemplars.place) for handle in handles[1:]] == before[1:]
    assert handles[0].exemplars.place is before[0][1]
    sizes = set()
    for _ in range(3):
        for handle in handles:
            handle.record(1.0)
        housed.settle()
        sizes.add(housed.ledger.total_bytes)
    assert len(sizes) == 1
    rooms[0] = 100
    housed.settle()
    assert [housed.ledger.holds(handle.exemplars.place) for handle in handles] == [True] * 4
    assert [cells[-1] for cells in in_the_file(path_of(housed))["wide"]] == [4.0] * 4


def test_who_leaves_others_begins_at_nothing(open_provider: OpenProvider, tmp_path: Path, recording: str):
    """The numbers stay with the others, once; handles go on from nothing, and come back with what came since."""
    other = open_provider(ledger=Ledger(Group("house", tmp_path)))
    create(other, "counter").add(1)
    provider = open_provider(ledger=Ledger(Group("house", tmp_path)))
    handles = {kind: create(provider, kind).bind({"a": "b"}) for kind in KINDS}
    for handle in handles.values():
        verb(handle)(1.5)
    left = path_of(provider)
    provider.leave()
    assert {one.kind for one in provider.streams() if one.living()} == {"updown", "gauge"}, "what counts here goes on"
    before = left.read_bytes()
    for handle in handles.values():
        verb(handle)(0.25)
    provider.settle()
    assert provider.ledger.path is None
    assert left.read_bytes() == before
    provider.ledger.rejoin()
    provider.settle()
    for path, value, in_progress in ((left, 1.5, 1.5), (path_of(provider), 0.25, 1.75)):
        found = in_the_file(path)
        assert (found["counter"], found["updown"]) == ([[value]], [[in_progress]])
        assert [cells[0] for cells in found["gauge"]] == [value]
        assert [cells[-1] for cells in found["histogram"]] == [value]
    assert len(Group("house", tmp_path).ledgers()) == 3


def test_what_lay_in_private_memory_stays_with_who_leaves(open_provider: OpenProvider, tmp_path: Path):
    """What no file had, and so nobody else has, is not dropped: it comes back with the worker."""
    other = open_provider(ledger=Ledger(Group("house", tmp_path)))
    create(other, "counter").add(1)
    group = Group("house", tmp_path)
    provider = open_provider(ledger=Ledger(group))
    counter = create(provider, "counter")
    counter.add(1, {"where": "file"})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "posix_fallocate", lambda *_: fail(errno.ENOSPC))
        wide = provider.get_meter("m").create_histogram("wide", explicit_bucket_boundaries_advisory=range(9000))
        wide.record(4.0)
        provider.leave()
    provider.ledger.rejoin()
    provider.settle()
    counter.add(2, {"where": "file"})
    found = in_the_file(path_of(provider))
    assert (found["counter"], [cells[-1] for cells in found["wide"]]) == ([[2.0]], [4.0])


def fail(number: int) -> None:
    """Fail as the system does."""
    raise OSError(number, os.strerror(number))


def test_metrics_that_come_and_go_take_no_more_and_more_room(housed: MeterProvider, monkeypatch: pytest.MonkeyPatch):
    """Series that are made and forgotten again, exemplars too, use the places of those before."""
    monkeypatch.setattr(ledger_module, "_REST_S", 0.0)
    counter, histogram = create(housed, "counter"), create(housed, "histogram")
    kept = counter.bind({"kept": True})
    for number in range(1500):
        kept.add(1)
        counter.add(1, {"number": number})
        histogram.record(1.0, {"number": number})
        counter.forget({"number": number})
        histogram.forget({"number": number})
    assert housed.ledger.total_bytes == ledger_module.SEGMENT_BYTES
    assert in_the_file(path_of(housed)) == {"counter": [[1500.0]]}


def test_a_full_ledger_overflows_and_says_so_once(
    open_provider: OpenProvider, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Past its bytes further series of a metric are one, which is said once a metric; those that are there go on."""
    ledger = Ledger(Folder(lambda: tmp_path), max_bytes=30_000)
    provider = open_provider(ledger=ledger)
    counter = create(provider, "counter")
    for _ in range(2):
        for number in range(1000):
            counter.add(1, {"number": number})
    found = next(one for one in provider.streams() if one.name == "counter")
    *series_, overflow = found.living()
    assert 0 < len(series_) < 1000
    assert [each.read() for each in series_] == [[2.0]] * len(series_)
    assert overflow.read() == [2.0 * (1000 - len(series_))]
    assert ledger.total_bytes == ledger_module.SEGMENT_BYTES
    told = [record.getMessage() for record in caplog.records if "OTEL_MLOPS_MAX_LEDGER_BYTES" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("counter: this worker's series take")
    ((attributes, count),) = provider.totals(OVERFLOW)
    assert (dict(attributes), count) == ({"metric": "counter"}, overflow.read()[0])


def moving_to_and_fro(provider: MeterProvider, until: threading.Event) -> int:
    """Move everything, again and again, until told to stop; how often."""
    for count in itertools.count():
        if until.is_set() and count > 20:
            return count
        (lose_file if count % 2 else come_back)(provider)
        provider.settle()
    raise AssertionError


@pytest.mark.stress
def test_nothing_is_lost_while_numbers_move(housed: MeterProvider, recording: str, impatient: None):
    """Four threads add to handles of all kinds while everything moves from file to file: the totals are exact."""
    counter, updown, histogram, gauge = (create(housed, kind) for kind in ("counter", "updown", "histogram", "gauge"))
    handles = [each.bind({"a": "b"}) for each in (counter, updown, histogram)]
    done, each = threading.Event(), 20_000
    moves: list[int] = []
    gauge.set(0.0)

    def work(number: int) -> None:
        many, value = histogram.bind({"many": "at once"}), gauge.bind({"thread": number})
        for round_ in range(each):
            handles[0].add(1)
            handles[1].add(0.5)
            handles[2].record(3.0)
            value.set(round_)
            if round_ % 50 == 0:
                many.record_many([0.5, 1.5, 3.0, 9.0])
                counter.add(1, {"thread": number, "round": round_ // 1000})

    moving = threading.Thread(target=lambda: moves.append(moving_to_and_fro(housed, done)))
    moving.start()
    try:
        at_once(4, work)
    finally:
        done.set()
        moving.join(60)
    assert moves
    assert moves[0] > 20
    found = in_the_file(path_of(housed))
    batches = float(4 * each / 50)
    assert max(found["counter"]) == [4.0 * each]
    assert math.fsum(cells[0] for cells in found["counter"]) == 4 * each + batches
    assert found["updown"] == [[2.0 * each]]
    assert sorted(found["histogram"]) == sorted(
        [[0.0, 0.0, 4.0 * each, 0.0, 12.0 * each], [batches, batches, batches, batches, 14.0 * batches]]
    )
    assert sorted(cells[0] for cells in found["gauge"]) == [0.0, *[each - 1.0] * 4]


@pytest.mark.stress
def test_nothing_is_lost_while_a_worker_leaves_and_comes_back(
    open_provider: OpenProvider, tmp_path: Path, recording: str, impatient: None
):
    """What four threads record while their worker leaves others and comes back is, over all files, exact."""
    other = open_provider(ledger=Ledger(Group("house", tmp_path)))
    create(other, "counter", "other").add(1)
    provider = open_provider(ledger=Ledger(Group("house", tmp_path)))
    counter, histogram = create(provider, "counter").bind(), create(provider, "histogram").bind()
    done, each = threading.Event(), 10_000

    def work(_: int) -> None:
        for round_ in range(each):
            counter.add(1)
            histogram.record(3.0)
            if round_ % 50 == 0:
                histogram.record_many([0.5, 1.5])

    def come_and_go() -> None:
        for count in itertools.count():
            if done.is_set() and count > 10:
                return
            come_back(provider)
            provider.settle()
            done.wait(0.002)  # where records are locked it would else have the locks nearly all the time

    moving = threading.Thread(target=come_and_go)
    moving.start()
    try:
        at_once(4, work)
    finally:
        done.set()
        moving.join(60)
    assert not moving.is_alive()
    files = [in_the_file(path) for path in Group("house", tmp_path).ledgers()]
    assert len(files) > 10
    counts = [cells[0] for found in files for cells in found.get("counter", [])]
    buckets = [cells for found in files for cells in found.get("histogram", [])]
    batches = 4 * each / 50
    assert math.fsum(counts) == 4 * each
    assert [math.fsum(column) for column in zip(*buckets, strict=True)] == [
        batches, batches, 4.0 * each, 0.0, 12.0 * each + 2.0 * batches,
    ]  # fmt: skip


@pytest.mark.stress
@needs_timers
def test_a_signal_handler_may_record_while_numbers_move(housed: MeterProvider, recording: str):
    """A handler that records anywhere within a move loses nothing and waits for nothing."""
    counter, histogram, gauge = (create(housed, kind) for kind in ("counter", "histogram", "gauge"))
    handles = counter.bind(), histogram.bind(), gauge.bind()
    runs: list[int] = []

    def handle(*_: object) -> None:
        handles[0].add(1)
        handles[1].record(3.0)
        handles[2].set(len(runs))
        counter.add(1, {"number": len(runs) % 40})
        runs.append(1)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        for number in range(600):
            signal.setitimer(signal.ITIMER_REAL, 1e-5 * (1 + number % 40))
            (lose_file if number % 2 else come_back)(housed)
            housed.settle()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    housed.settle()
    assert len(runs) >= 50
    found = in_the_file(path_of(housed))
    assert found["counter"].count([float(len(runs))]) == 1
    assert math.fsum(cells[0] for cells in found["counter"]) == 2 * len(runs)
    assert found["histogram"] == [[0.0, 0.0, float(len(runs)), 0.0, 3.0 * len(runs)]]
    assert [cells[0] for cells in found["gauge"]] == [len(runs) - 1.0]


def test_a_gauge_is_never_half_set(housed: MeterProvider, monkeypatch: pytest.MonkeyPatch):
    """A move at the worst moment of setting a gauge leaves no new value with an old time."""
    gauge = create(housed, "gauge").bind()
    gauge.set(1.0)
    monotonic = time.monotonic

    def move_first() -> float:
        monkeypatch.setattr(series.time, "monotonic", monotonic)
        lose_file(housed)
        housed.settle()
        return 12345.0

    monkeypatch.setattr(series.time, "monotonic", move_first)
    gauge.set(2.0)
    assert in_the_file(path_of(housed))["gauge"] == [[2.0, 12345.0]]
