"""Callbacks of observable instruments: whatever they do, the others are heard and the page is made."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_mlops.metrics import DROPPED
from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.provider import MeterProvider
from tests.pages import check_page

OpenProvider = Callable[..., MeterProvider]
KINDS = ("observable_counter", "observable_up_down_counter", "observable_gauge")


@pytest.fixture
def memory() -> InMemoryMetricReader:
    """A reader that keeps what it collects."""
    return InMemoryMetricReader()


@pytest.fixture
def observed(open_provider: OpenProvider, memory: InMemoryMetricReader) -> MeterProvider:
    """A provider with that reader."""
    return open_provider(metric_readers=[memory])


def values(memory: InMemoryMetricReader) -> dict[str, list[Any]]:
    """The values of each metric, those about ourselves aside."""
    data = memory.get_metrics_data()
    return {
        metric.name: sorted(getattr(point, "value", None) or point.sum for point in metric.data.data_points)
        for of_resource in (data.resource_metrics if data else ())
        for of_scope in of_resource.scope_metrics
        if of_scope.scope.name != "otel_mlops"
        for metric in of_scope.metrics
    }


def dropped(provider: MeterProvider) -> dict[str, float]:
    """How many observations and callbacks were dropped, by the reason."""
    return {str(attributes["reason"]): count for attributes, count in provider.totals(DROPPED)}


def gauge(provider: MeterProvider, name: str, *callbacks: Any) -> Any:
    """An observable gauge."""
    return provider.get_meter("m").create_observable_gauge(name, callbacks)


# --- What they say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_callbacks_say_is_collected(observed: MeterProvider, memory: InMemoryMetricReader, kind: str):
    """Observations of all callbacks of an instrument, lists and generators alike, are its data points."""

    def one(options: CallbackOptions) -> list[Observation]:
        assert 0 < options.timeout_millis <= 10_000
        return [Observation(1, {"n": 1}), Observation(2.5, {"n": 2})]

    def many(_: CallbackOptions) -> Iterator[Observation]:
        for number in range(3, 6):
            yield Observation(number, {"n": number})

    getattr(observed.get_meter("m"), f"create_{kind}")("o", [one, many])
    assert values(memory) == {"o": [1, 2.5, 3, 4, 5]}
    assert [type(each) for each in values(memory)["o"]] == [int, float, int, int, int]


def test_generators_are_sent_their_options(observed: MeterProvider, memory: InMemoryMetricReader):
    """A generator as a callback is resumed at each collection, and says nothing once it has ended."""
    sent: list[CallbackOptions] = []

    def said() -> Generator[Iterable[Observation], CallbackOptions, None]:
        sent.append((yield []))
        sent.append((yield [Observation(1)]))
        sent.append((yield [Observation(2)]))

    gauge(observed, "g", said())
    assert [values(memory) for _ in range(4)] == [{"g": [1]}, {"g": [2]}, {}, {}]
    assert all(isinstance(each, CallbackOptions) for each in sent)
    assert dropped(observed) == {}


@pytest.mark.parametrize("nothing", [None, [], (), iter(())])
def test_a_callback_may_say_nothing(
    observed: MeterProvider, memory: InMemoryMetricReader, caplog: pytest.LogCaptureFixture, nothing: Any
):
    """None and an empty iterable are no observations and no failure."""
    gauge(observed, "g", lambda _: nothing)
    assert values(memory) == {}
    assert dropped(observed) == {}
    assert not caplog.records


def test_observations_that_are_no_finite_numbers_are_left_out(
    observed: MeterProvider, memory: InMemoryMetricReader, caplog: pytest.LogCaptureFixture
):
    """Each is dropped and counted alone, the first is said, and the others of the same callback are kept."""
    said = [
        1, None, True, "x", Fraction(1, 2), math.nan, Decimal("0.25"), math.inf, np.float64(2), 10**400, np.int64(3),
        [], 4,
    ]  # fmt: skip
    gauge(observed, "g", lambda _: [Observation(value, {"n": number}) for number, value in enumerate(said)])
    assert values(memory) == {"g": [0.25, 0.5, 1, 1.0, 2.0, 3.0, 4]}
    assert dropped(observed) == {"type": 4, "not_finite": 2}
    values(memory)
    assert dropped(observed) == {"type": 8, "not_finite": 4}
    assert [record.getMessage() for record in caplog.records] == [
        "callback of g gave a NoneType that is no finite number"
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_registration_adds_its_callbacks(observed: MeterProvider, memory: InMemoryMetricReader, kind: str):
    """An instrument that is created again gets the new callbacks too; one that it has is not called twice."""
    calls: list[str] = []

    def first(_: CallbackOptions) -> list[Observation]:
        calls.append("first")
        return [Observation(1, {"by": "first"})]

    def second(_: CallbackOptions) -> list[Observation]:
        calls.append("second")
        return [Observation(2, {"by": "second"})]

    create = getattr(observed.get_meter("m"), f"create_{kind}")
    made = create("o", [first])
    assert create("O", [second, first]) is made
    assert create("o", [second]) is made
    assert create("o") is made
    assert values(memory) == {"o": [1, 2]}
    assert calls == ["first", "second"]


def test_the_same_generator_twice_goes_on_where_it_was(observed: MeterProvider, memory: InMemoryMetricReader):
    """Registering a generator again neither resumes it nor loses what it says."""

    def said() -> Generator[Iterable[Observation], CallbackOptions, None]:
        number = 1
        yield []
        while True:
            yield [Observation(number)]
            number += 1

    generator = said()
    for _ in range(3):
        gauge(observed, "g", generator)
    assert [values(memory) for _ in range(3)] == [{"g": [1]}, {"g": [2]}, {"g": [3]}]


def test_callbacks_run_once_for_each_reader(open_provider: OpenProvider, reader: PageReader):
    """Each collection of each reader asks each callback once; a flush means nothing to the page."""
    memory, calls = InMemoryMetricReader(), []
    provider = open_provider(metric_readers=[memory, reader])
    gauge(provider, "g", lambda _: calls.append(1) or [Observation(len(calls))])
    values(memory)
    assert len(calls) == 1
    reader.page()
    assert len(calls) == 2
    provider.force_flush()
    assert len(calls) == 3
    assert "\ng 4.0\n" in reader.page().body.decode()


# --- What they do wrong -------------------------------------------------------------------------------------


class Flaky:
    """A callback that fails when it is told to, after what it has said."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.fails = True

    def __call__(self, _: CallbackOptions) -> Iterator[Observation]:
        yield Observation(1, {"n": 1})
        if self.fails:
            raise self.error
        yield Observation(2, {"n": 2})


ERRORS = [RuntimeError("no driver"), SystemExit(1), asyncio.CancelledError(), GeneratorExit(), StopIteration()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failing_callback_is_said_once_until_it_works(
    observed: MeterProvider, memory: InMemoryMetricReader, caplog: pytest.LogCaptureFixture, error: BaseException
):
    """What it said before it failed is kept, the others are heard, each failure counts, each change is logged once."""
    caplog.set_level(logging.INFO, "otel_mlops")
    flaky = Flaky(error)
    gauge(observed, "before", lambda _: [Observation(7)])
    gauge(observed, "flaky", flaky, lambda _: [Observation(9, {"n": 9})])
    gauge(observed, "after", lambda _: [Observation(8)])
    for _ in range(3):
        assert values(memory) == {"before": [7], "flaky": [1, 9], "after": [8]}
    assert dropped(observed) == {"callback": 3}
    flaky.fails = False
    for _ in range(3):
        assert values(memory)["flaky"] == [1, 2, 9]
    flaky.fails = True
    for _ in range(3):
        assert values(memory)["flaky"] == [1, 9]
    assert dropped(observed) == {"callback": 6}
    said = [record.getMessage() for record in caplog.records]
    assert [message.startswith("callback of flaky failed: ") for message in said] == [True, False, True]
    assert said[1] == "callback of flaky works again"


@pytest.mark.parametrize("said", [5, "text", [None], [1, 2], {"a": 1}, [object()]])
def test_a_callback_that_gives_something_else_fails_alone(
    observed: MeterProvider, memory: InMemoryMetricReader, said: Any
):
    """What is no iterable of observations is a failure of that callback and of no other."""
    gauge(observed, "wrong", lambda _: said)
    gauge(observed, "right", lambda _: [Observation(1)])
    assert values(memory) == {"right": [1]}
    assert dropped(observed) == {"callback": 1}


def test_an_interrupt_is_not_kept_from_whoever_pressed_it(observed: MeterProvider, memory: InMemoryMetricReader):
    """A KeyboardInterrupt in a callback ends the collection, as anywhere else."""
    gauge(observed, "g", Flaky(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        memory.collect()


def test_a_page_is_made_whatever_callbacks_do(paged: MeterProvider, reader: PageReader):
    """Failing callbacks leave the rest of the page as it is."""
    paged.get_meter("m").create_counter("c").add(1)
    for number, error in enumerate(ERRORS):
        gauge(paged, f"g{number}", Flaky(error), lambda _: 5)
    page = check_page(reader)
    assert page.value("c_total") == 1.0
    assert [page.value(f"g{number}", n="1") for number in range(len(ERRORS))] == [1.0] * len(ERRORS)


# --- What they may do ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_callback_may_create_instruments_and_record(observed: MeterProvider, memory: InMemoryMetricReader, kind: str):
    """Creating observables within a callback waits for nothing, and recording in it counts."""
    meter, created = observed.get_meter("m"), []

    def create(_: CallbackOptions) -> list[Observation]:
        if not created:
            created.append(getattr(meter, f"create_{kind}")("inner", [lambda _: [Observation(5)]]))
            created.append(observed.get_meter("other").create_observable_gauge("outer", [lambda _: [Observation(6)]]))
        meter.create_counter("c").add(1)
        meter.create_histogram("h").bind({"a": "b"}).record(1)
        return [Observation(1)]

    gauge(observed, "g", create)
    ended = threading.Event()

    def collect() -> None:
        values(memory)
        ended.set()

    threading.Thread(target=collect, daemon=True).start()
    assert ended.wait(20), "creating an instrument in a callback never came back"
    data = memory.get_metrics_data()
    assert data is not None
    names = {m.name for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert names >= {"g", "inner", "outer", "c", "h"}


def test_instruments_are_created_while_a_callback_runs(observed: MeterProvider, memory: InMemoryMetricReader):
    """While a callback takes its time other threads record and create what is not observed."""
    began, go_on = threading.Event(), threading.Event()

    def slow(_: CallbackOptions) -> list[Observation]:
        began.set()
        assert go_on.wait(20)
        return [Observation(1)]

    gauge(observed, "slow", slow)
    collecting = threading.Thread(target=memory.collect)
    collecting.start()
    assert began.wait(20)
    observed.get_meter("m").create_counter("c").add(1)
    observed.get_meter("new").create_histogram("h").bind().record(1)
    assert collecting.is_alive()
    go_on.set()
    collecting.join()


def test_slow_callbacks_leave_out_those_behind_them(open_provider: OpenProvider, caplog: pytest.LogCaptureFixture):
    """Once the time for callbacks is over, those not yet asked are left out this once, and it is said."""
    reader = PageReader(observe_timeout_s=0.05)
    provider = open_provider(metric_readers=[reader])
    delays = iter([0.1, 0.1, 0.0, 0.0, 0.1])
    gauge(provider, "slow", lambda _: time.sleep(next(delays)) or [Observation(1)])
    gauge(provider, "behind", lambda _: [Observation(2)])
    provider.get_meter("m").create_counter("c").add(1)
    found = []
    for _ in range(5):
        page = reader.page().body.decode()
        assert "\nslow 1.0\n" in page
        assert "\nc_total 1.0\n" in page
        found.append("\nbehind 2.0\n" in page)
    assert found == [False, False, True, True, False]
    said = "callbacks took longer than 0.05 s; those from behind on are left out; said once until they are in time"
    assert [record.getMessage() for record in caplog.records] == [said, said]


def test_a_reader_in_a_hurry_gets_what_there_is(observed: MeterProvider, memory: InMemoryMetricReader):
    """A collection whose time is over gives the cells without the callbacks, where the stock SDK raises."""
    observed.get_meter("m").create_counter("c").add(1)
    gauge(observed, "g", lambda _: [Observation(1)])
    memory.collect(timeout_millis=0)
    assert memory._metrics_data is not None
    data, memory._metrics_data = memory._metrics_data, None
    assert {m.name for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics} == {"c"}


def test_callbacks_of_a_meter_that_is_switched_off_are_not_asked(observed: MeterProvider, memory: InMemoryMetricReader):
    """A disabled meter's callbacks are left alone."""
    from opentelemetry.sdk.metrics._internal import _MeterConfig

    calls: list[int] = []
    gauge(observed, "g", lambda _: calls.append(1) or [Observation(1)])
    observed._set_meter_configurator(meter_configurator=lambda _: _MeterConfig(is_enabled=False))
    assert values(memory) == {}
    assert calls == []
