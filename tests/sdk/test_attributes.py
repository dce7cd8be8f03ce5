"""Sets of attributes: which series a record belongs to, how many there may be, and how they are forgotten."""

from __future__ import annotations

import collections
import itertools
import logging
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import DropAggregation, View

from otel_mlops.metrics import API_REQUESTS, DROPPED, OVERFLOW
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.sdk.records import SERIES, read_ledger
from otel_mlops.sdk.stream import Stream
from tests.pages import check_page
from tests.sdk.folder import Folder

OpenProvider = Callable[..., MeterProvider]


def counter_of(provider: MeterProvider, name: str = "c") -> Any:
    """A counter."""
    return provider.get_meter("test").create_counter(name)


def typed(value: Any) -> Any:
    """A value with the types of everything in it."""
    if isinstance(value, tuple | list):
        return tuple(typed(each) for each in value)
    if isinstance(value, Mapping):
        return frozenset((key, typed(each)) for key, each in value.items())
    return type(value), value


def totals(provider: MeterProvider, name: str = "c") -> dict[Any, float]:
    """The values of a metric's series by their attributes and the types of these."""
    found = [
        (typed(series.attributes), series.read()[0])
        for stream in provider.streams()
        if stream.name == name
        for series in stream.living()
    ]
    assert len(found) == len(dict(found)), "two series of the same attributes"
    return dict(found)


def overflows(provider: MeterProvider) -> dict[str, float]:
    """How many records went to the overflow, by metric."""
    return {str(attributes["metric"]): count for attributes, count in provider.totals(OVERFLOW)}


OVERFLOWING = {"otel.metric.overflow": True}


# --- Which series -------------------------------------------------------------------------------------------

ALIKE: list[Any] = [1, True, 1.0, "1", b"1", (1,), (True,), (1.0,), ("1",), None, "", "None", 0, False, 0.0]


@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("rotation", range(0, len(ALIKE), 2))
def test_values_that_look_alike_are_different_series(provider: MeterProvider, bound: bool, rotation: int):
    """1, True, 1.0 and "1" are series of their own, within tuples too, whichever comes first and how often."""
    counter = counter_of(provider)
    for _ in range(3):
        for value in [*ALIKE[rotation:], *ALIKE[:rotation]]:
            for attributes in ({"k": value}, {"k": value, "name": "x"}):
                counter.bind(attributes).add(1) if bound else counter.add(1, attributes)
    assert totals(provider) == {
        typed(attributes): 3.0 for value in ALIKE for attributes in ({"k": value}, {"k": value, "name": "x"})
    }


def test_the_order_of_attributes_does_not_matter(provider: MeterProvider):
    """The same attributes in any order, from any kind of mapping, are the same series."""
    counter, items = counter_of(provider), [("a", "1"), ("b", 2), ("c", True), ("d", (1, 2))]
    for order in itertools.permutations(items):
        counter.add(1, dict(order))
        counter.bind(types.MappingProxyType(dict(order))).add(1)
        counter.add(1, collections.OrderedDict(order))
        counter.add(1, collections.UserDict(order))
    assert totals(provider) == {typed(dict(items)): 4 * 24}


def test_values_that_cannot_be_hashed_are_attributes_as_well(provider: MeterProvider):
    """Lists and mappings are found by what they hold, a list being the same as a tuple."""
    counter = counter_of(provider)
    for _ in range(2):
        counter.add(1, {"k": [1, "two"], "m": {"x": [1.0]}})
        counter.bind({"m": {"x": (1.0,)}, "k": (1, "two")}).add(1)
        counter.add(1, {"k": [True, "two"], "m": {"x": [1.0]}})
    assert totals(provider) == {
        typed({"k": (1, "two"), "m": {"x": (1.0,)}}): 4.0,
        typed({"k": (True, "two"), "m": {"x": (1.0,)}}): 2.0,
    }


def test_what_is_changed_after_the_call_changes_nothing(provider: MeterProvider):
    """Attributes are those of the moment of the call, whatever becomes of the mapping and its lists."""
    counter, attributes = counter_of(provider), {"a": "1", "list": [1, 2]}
    handle = counter.bind(attributes)
    counter.add(1, attributes)
    attributes["a"] = "2"
    attributes["list"].append(3)
    counter.add(10, attributes)
    handle.add(1)
    attributes.clear()
    counter.add(100, attributes)
    assert totals(provider) == {
        typed({"a": "1", "list": (1, 2)}): 2.0,
        typed({"a": "2", "list": (1, 2, 3)}): 10.0,
        typed({}): 100.0,
    }


@pytest.mark.parametrize("nothing", [None, {}, collections.OrderedDict()])
def test_without_attributes_there_is_one_series(provider: MeterProvider, nothing: Any):
    """No attributes and an empty mapping are the same series."""
    counter = counter_of(provider)
    counter.add(1)
    counter.add(1, nothing)
    counter.bind(nothing).add(1)
    counter.bind().add(1)
    assert totals(provider) == {typed({}): 4.0}


class Unprintable:
    """A value that cannot be made a text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Unhashable(str):
    """A text that fails to be looked up."""

    __slots__ = ()

    def __hash__(self) -> int:
        raise RuntimeError("no hash")


class Broken(Mapping[str, str]):
    """A mapping that fails when it is read."""

    def __getitem__(self, key: str) -> str:
        raise RuntimeError("no item")

    def __iter__(self) -> Iterator[str]:
        return iter(["key"])

    def __len__(self) -> int:
        return 1


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)

NO_ATTRIBUTES = [
    [("a", 1)], "text", 5, np.array([1, 2]), object(), Broken(), {"k": Unprintable()}, {"k": ENDLESS}, Unprintable(),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(NO_ATTRIBUTES)))
def test_attributes_that_cannot_be_read_lose_no_count(
    provider: MeterProvider, caplog: pytest.LogCaptureFixture, number: int
):
    """What is measured with impossible attributes counts without any, raises nothing, and is said once."""
    attributes: Any = NO_ATTRIBUTES[number]
    counter = counter_of(provider)
    histogram, gauge = provider.get_meter("test").create_histogram("h"), provider.get_meter("test").create_gauge("g")
    for _ in range(3):
        counter.add(1, attributes)
        counter.bind(attributes).add(1)
        histogram.record(1, attributes)
        gauge.set(1, attributes)
    assert totals(provider) == {typed({}): 6.0}
    assert [len(stream.living()) for stream in provider.streams()] == [1, 1, 1]
    ours = [record for record in caplog.records if record.name.startswith("otel_mlops")]
    assert len(ours) == 3  # one for each metric


def test_a_value_whose_hash_fails_raises_nothing(provider: MeterProvider):
    """An attribute that cannot be looked up counts somewhere and never raises into the caller."""
    counter = counter_of(provider)
    counter.add(1, {"k": Unhashable("x")})
    counter.bind({"k": Unhashable("x")}).add(1)
    assert sum(totals(provider).values()) == 2.0


@pytest.mark.filterwarnings("ignore")
def test_keys_that_are_no_texts_become_texts(provider: MeterProvider):
    """A key of another type is its text, as the stock SDK has it; 1 and True stay apart; an empty key is left out."""
    counter = counter_of(provider)
    for _ in range(2):
        counter.add(1, {1: "a"})
        counter.add(1, {True: "a"})
        counter.add(1, {"": "a"})
    assert totals(provider) == {typed({"1": "a"}): 2.0, typed({"True": "a"}): 2.0, typed({}): 2.0}


def test_a_view_that_keeps_some_attributes_adds_up_the_rest(open_provider: OpenProvider):
    """Where a view leaves attributes out, sets that differ only in those are one series."""
    provider = open_provider(views=[View(instrument_name="c", attribute_keys={"a"})])
    counter = counter_of(provider)
    for number in range(10):
        counter.add(1, {"a": number % 2, "b": number})
        counter.bind({"a": number % 2, "b": number}).add(1)
    assert totals(provider) == {typed({"a": 0}): 10.0, typed({"a": 1}): 10.0}


# --- How many -----------------------------------------------------------------------------------------------


def test_past_its_cap_a_metric_records_into_one_series_more(
    open_provider: OpenProvider, caplog: pytest.LogCaptureFixture
):
    """Sets past the cap share the overflow's series, each record of which is counted; known sets go on; said once."""
    provider = open_provider(max_series=3)
    counter = counter_of(provider)
    for _ in range(2):
        for number in range(5):
            counter.add(1, {"n": number})
    late = counter.bind({"n": 99})
    late.add(1)
    late.add(1)
    counter.bind({"n": 0}).add(1)
    assert totals(provider) == {
        typed({"n": 0}): 3.0, typed({"n": 1}): 2.0, typed({"n": 2}): 2.0, typed(OVERFLOWING): 6.0,
    }  # fmt: skip
    assert overflows(provider) == {"c": 5.0}  # the records by the API, and the handle once
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["c: more than 3 sets of attributes"]


def test_records_without_attributes_overflow_and_are_counted_too(open_provider: OpenProvider):
    """The set without attributes is a set like any other."""
    provider = open_provider(max_series=1)
    counter = counter_of(provider)
    counter.add(1, {"n": 0})
    for _ in range(3):
        counter.add(1)
    assert totals(provider) == {typed({"n": 0}): 1.0, typed(OVERFLOWING): 3.0}
    assert overflows(provider) == {"c": 3.0}


def test_a_view_sets_the_cap_of_its_metrics(open_provider: OpenProvider):
    """A view's own limit stands above the provider's."""
    provider = open_provider(max_series=1, views=[View(instrument_name="c", aggregation_cardinality_limit=4)])
    counter = counter_of(provider)
    for number in range(6):
        counter.add(1, {"n": number})
    assert len(totals(provider)) == 5
    assert totals(provider)[typed(OVERFLOWING)] == 2.0


def test_the_metrics_about_ourselves_may_overflow_as_well(open_provider: OpenProvider):
    """With a cap of one, drops and overflows of many metrics are still counted, without end or deadlock."""
    provider = open_provider(max_series=1)
    for number in range(4):
        counter = counter_of(provider, f"c{number}")
        for value in (1, None, -1, float("nan")):
            counter.add(value, {"value": str(value)})
    dropped = sum(count for _, count in provider.totals(DROPPED))
    assert dropped == 12.0
    assert sum(count for _, count in provider.totals(OVERFLOW)) >= 12.0


@pytest.mark.stress
def test_what_is_remembered_is_bounded(open_provider: OpenProvider):
    """A hundred thousand sets leave as many series as the cap, and as many remembered forms as fit to it."""
    provider = open_provider(max_series=50)
    counter = counter_of(provider)
    for number in range(100_000):
        counter.add(1, {"n": str(number)} if number % 2 else {"n": number})
    for order in itertools.permutations("abcdef"):
        counter.add(1, dict.fromkeys(order, "x"))
    assert len(totals(provider)) == 51
    assert sum(totals(provider).values()) == 100_720.0
    assert len(counter._forms) <= 4 * 50
    assert len(provider.streams()[0].series) == 50


def test_ways_of_writing_one_set_are_bounded_too(open_provider: OpenProvider):
    """A set written in more orders than are remembered is found each time, and is one series."""
    provider = open_provider(max_series=50)
    counter = counter_of(provider)
    for _ in range(2):
        for order in itertools.permutations("abcdef"):
            counter.add(1, dict.fromkeys(order, "x"))
            counter.add(1, dict.fromkeys(order, 1))
    assert sorted(totals(provider).values()) == [1440.0, 1440.0]
    assert len(counter._forms) <= 4 * 50


@pytest.mark.parametrize("value", ["text", 5, True, 2.5, None])
def test_known_sets_stay_fast_in_a_full_metric(
    open_provider: OpenProvider, monkeypatch: pytest.MonkeyPatch, value: Any
):
    """A set is looked up once; whether the metric is full, has two views, or was forgotten from, changes nothing."""
    views = [View(instrument_name="two", name="left"), View(instrument_name="two", name="right")]
    provider = open_provider(max_series=2, views=views)
    looked_up: list[Any] = []
    find = Stream.find

    def counted(self: Stream, attributes: Any) -> Any:
        if self.name in ("c", "left"):
            looked_up.append(attributes)
        return find(self, attributes)

    for name in ("c", "two"):
        counter = counter_of(provider, name)
        for number in range(4):
            counter.add(1, {"n": number})
        counter.forget({"n": 0})
        counter.add(1, {"k": value})
        provider.forget({"n": 3})  # nothing is left of what was remembered
        monkeypatch.setattr(Stream, "find", counted)
        for _ in range(5):
            counter.add(1, {"k": value})
        assert len(looked_up) == 1
        looked_up.clear()
        monkeypatch.undo()


# --- Forgetting ---------------------------------------------------------------------------------------------


def test_a_forgotten_series_is_gone_and_begins_anew(tmp_path: Path, open_provider: OpenProvider):
    """A forgotten series is nowhere, in the ledger's file neither; recording begins it at nothing."""
    provider = open_provider(ledger=Ledger(Folder(lambda: tmp_path)))
    counter = counter_of(provider)
    handle = counter.bind({"model": "a", "n": 1})
    for attributes in ({"model": "a", "n": 1}, {"model": "a", "n": 2}, {"model": "b", "n": 1}):
        counter.add(5, attributes)
    assert counter.forget({"model": "a"}) == 2
    assert totals(provider) == {typed({"model": "b", "n": 1}): 5.0}
    handle.add(1)
    counter.add(2, {"model": "a", "n": 1})
    assert totals(provider) == {typed({"model": "b", "n": 1}): 5.0, typed({"model": "a", "n": 1}): 3.0}
    assert provider.ledger.path is not None
    in_file = [(r.description[1], r.cells) for r in read_ledger(provider.ledger.path) if r.kind == SERIES]
    assert in_file == [([["model", "b"], ["n", 1]], [5.0]), ([["model", "a"], ["n", 1]], [3.0])]


def test_handles_from_before_and_after_forgetting_are_one_series(paged: MeterProvider, reader: PageReader):
    """A handle that is held goes on counting in the same series as whatever is recorded later."""
    counter = counter_of(paged)
    old = counter.bind({"a": "1"})
    old.add(10)
    counter.forget({"a": "1"})
    new = counter.bind({"a": "1"})
    new.add(1)
    old.add(1)
    counter.add(1, {"a": "1"})
    assert totals(paged) == {typed({"a": "1"}): 3.0}
    assert check_page(reader).value("c_total", a="1") == 3.0


def test_forgetting_goes_by_the_types_of_values(provider: MeterProvider):
    """Only series whose attributes are equal and of the same types are forgotten."""
    counter = counter_of(provider)
    for value in ALIKE:
        counter.add(1, {"k": value, "x": "y"})
    counter.add(1, {"x": "y"})
    for value in ALIKE:
        assert counter.forget({"k": value}) == 1
        assert counter.forget({"k": value}) == 0
    assert totals(provider) == {typed({"x": "y"}): 1.0}
    assert counter.forget() == 1
    assert totals(provider) == {}


def test_forgetting_makes_room_under_the_cap(open_provider: OpenProvider):
    """After forgetting, new sets have series of their own again, and the overflow itself can be forgotten."""
    provider = open_provider(max_series=2)
    counter = counter_of(provider)
    for number in range(4):
        counter.add(1, {"n": number})
    assert counter.forget({"n": 0}) == 1
    counter.add(1, {"n": 3})
    assert totals(provider) == {typed({"n": 1}): 1.0, typed({"n": 3}): 1.0, typed(OVERFLOWING): 2.0}
    assert counter.forget(OVERFLOWING) == 1
    assert totals(provider) == {typed({"n": 1}): 1.0, typed({"n": 3}): 1.0}
    counter.add(1, {"n": 5})
    assert totals(provider)[typed(OVERFLOWING)] == 1.0


def test_bound_but_unused_series_are_not_counted_as_forgotten(provider: MeterProvider):
    """Forgetting says how many series there were; a handle that was never used is none, and works afterwards."""
    counter = counter_of(provider)
    handle = counter.bind({"a": "1"})
    assert counter.forget({"a": "1"}) == 0
    handle.add(1)
    assert totals(provider) == {typed({"a": "1"}): 1.0}


def test_the_provider_forgets_in_every_metric(paged: MeterProvider, reader: PageReader):
    """An unloaded model's series go from all metrics and from the page at once, and come back with new records."""
    meter = paged.get_meter("test")
    histogram, gauge, counter = meter.create_histogram("h"), meter.create_gauge("g"), meter.create_counter("c")
    for version in ("1", "2"):
        histogram.record(1, {"model_version": version})
        gauge.set(1, {"model_version": version})
        counter.add(1, {"model_version": version, "more": 5})
    check_page(reader)
    assert paged.forget({"model_version": "1"}) == 3
    page = check_page(reader)
    assert 'model_version="1"' not in page.text
    assert page.value("c_total", model_version="2", more="5") == 1.0
    counter.add(1, {"model_version": "1", "more": 5})
    gauge.set(7, {"model_version": "1"})
    page = check_page(reader)
    assert page.value("c_total", model_version="1", more="5") == 1.0
    assert page.value("g", model_version="1") == 7.0
    assert page.value("h_count", model_version="1") is None


def test_a_reader_of_differences_sees_no_negative_ones_after_forgetting(open_provider: OpenProvider):
    """For a delta reader a forgotten series begins at nothing again, even if it counts to the same number."""
    temporality = dict.fromkeys([*map(type, ()), *_delta_classes()], AggregationTemporality.DELTA)
    reader = InMemoryMetricReader(preferred_temporality=temporality)
    provider = open_provider(metric_readers=[reader])
    counter, histogram = counter_of(provider), provider.get_meter("test").create_histogram("h")

    def read() -> dict[str, Any]:
        data = reader.get_metrics_data()
        if data is None:
            return {}
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
        return {m.name: [getattr(p, "value", getattr(p, "count", None)) for p in m.data.data_points] for m in metrics}

    counter.add(5)
    histogram.record(1)
    assert read() == {"c": [5.0], "h": [1]}
    counter.forget()
    histogram.forget()
    counter.add(5)
    histogram.record(1)
    assert read() == {"c": [5.0], "h": [1]}
    counter.forget()
    counter.add(2)
    assert read() == {"c": [2.0]}


def _delta_classes() -> list[type]:
    from opentelemetry.sdk.metrics import Counter, Histogram

    return [Counter, Histogram]


# --- Handles of instruments that record nothing, or not yet -------------------------------------------------


def check_recorders_are_silent(meter: Any) -> None:
    """Every verb of every instrument and handle of a meter can be called."""
    counter, updown = meter.create_counter("c"), meter.create_up_down_counter("u")
    histogram, gauge = meter.create_histogram("h"), meter.create_gauge("g")
    for each in (counter, counter.bind({"a": 1}), updown, updown.bind()):
        each.add(1)
    for each in (histogram, histogram.bind({"a": 1})):
        each.record(1)
    histogram.bind().record_many([1, 2])
    for each in (gauge, gauge.bind({"a": 1})):
        each.set(1)
    assert [each.forget({"a": 1}) for each in (counter, updown, histogram, gauge)] == [0] * 4
    meter.create_observable_gauge("o", [lambda _: []])


def test_handles_of_a_disabled_provider_record_nothing(open_provider: OpenProvider, monkeypatch: pytest.MonkeyPatch):
    """With OTEL_SDK_DISABLED, or disabled by its argument, a provider's instruments have all verbs and do nothing."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    by_variable = open_provider()
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    for provider in (by_variable, open_provider(disabled=True)):
        check_recorders_are_silent(provider.get_meter("test"))
        provider.instrument(API_REQUESTS).bind({"method": "GET"}).add(1)
        provider.instrument(API_REQUESTS).add(1)
        assert provider.streams() == []


def test_handles_work_after_shutdown(open_provider: OpenProvider, tmp_path: Path):
    """After shutdown old handles and new ones, of old meters and new ones, raise nothing, and no file comes back."""
    provider = open_provider(ledger=Ledger(Folder(lambda: tmp_path)))
    counter = counter_of(provider)
    handle = counter.bind({"a": "1"})
    handle.add(1)
    provider.shutdown()
    handle.add(1)
    counter.add(1, {"a": "2"})
    counter.bind({"a": "3"}).add(1)
    counter.add(None)
    check_recorders_are_silent(provider.get_meter("late"))
    provider.instrument(API_REQUESTS).bind({"method": "GET"}).add(1)
    assert list(tmp_path.iterdir()) == []


def test_a_meter_without_a_name_records_nothing(provider: MeterProvider, caplog: pytest.LogCaptureFixture):
    """An empty name gives a meter whose instruments do nothing, and a warning."""
    check_recorders_are_silent(provider.get_meter(""))
    assert provider.streams() == []
    assert "no name" in caplog.text


def test_an_instrument_that_every_view_drops_records_nothing(open_provider: OpenProvider):
    """A dropped instrument's handles have all verbs and make no series."""
    provider = open_provider(views=[View(instrument_name="*", aggregation=DropAggregation())])
    check_recorders_are_silent(provider.get_meter("test"))
    assert provider.streams() == []


def test_a_meter_that_is_switched_off_and_on_again(provider: MeterProvider):
    """A meter's configuration, when it changes, holds for the instruments that exist."""
    from opentelemetry.sdk.metrics._internal import _MeterConfig

    counter = counter_of(provider)
    for enabled in (True, False, True):
        provider._set_meter_configurator(meter_configurator=lambda _, on=enabled: _MeterConfig(is_enabled=on))
        counter.add(1)
        counter.add(1, {"a": "1"})
        counter.add(1, {"a": 1})
    assert totals(provider) == {typed({}): 2.0, typed({"a": "1"}): 2.0, typed({"a": 1}): 2.0}


BEFORE_CONFIGURATION = """
from opentelemetry import metrics
import otel_mlops.sdk.instruments  # as `import otel_mlops` does it
meter = metrics.get_meter("early")
counter, updown = meter.create_counter("c"), meter.create_up_down_counter("u")
histogram, gauge = meter.create_histogram("h"), meter.create_gauge("g")
observed = meter.create_observable_gauge("o", [lambda _: [metrics.Observation(5)]])
handles = [counter.bind({"a": "1"}), updown.bind({"a": "1"}), histogram.bind({"a": "1"}), gauge.bind({"a": "1"})]
attributes = {"list": [1]}
changed = counter.bind(attributes)
attributes["list"] = [2]

def record():
    handles[0].add(1); handles[1].add(-1); handles[2].record(1); handles[2].record_many([1, 2]); handles[3].set(4)
    counter.add(1, {"a": "1"})
    changed.add(1)

record()  # into nothing
PROVIDER
record()
counter.bind({"a": "1"}).add(1)
print(SHOWN)
"""

OURS = """
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.sdk.page import PageReader
reader = PageReader()
provider = MeterProvider([reader])
metrics.set_meter_provider(provider)
"""

STOCK = """
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
"""


def run(program: str) -> str:
    """What a program prints in a process of its own."""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


def test_instruments_made_before_the_provider_have_handles():
    """Handles of proxies record nothing before there is a provider, and then into the provider that comes."""
    program = BEFORE_CONFIGURATION.replace("PROVIDER", OURS).replace("SHOWN", "reader.page().body.decode()")
    lines = run(program).splitlines()
    for line in (
        'c_total{a="1"} 3.0', 'c_total{list="[1]"} 1.0', 'u{a="1"} -1.0', 'h_count{a="1"} 3', 'h_sum{a="1"} 4.0',
        'g{a="1"} 4.0', "o 5.0",
    ):  # fmt: skip
        assert line in lines


def test_handles_of_proxies_work_with_somebody_elses_provider():
    """Where the stock provider is set instead, the handles record into its instruments, each value of a batch too."""
    shown = """{
        metric.name: [getattr(point, "value", getattr(point, "count", 0)) for point in metric.data.data_points]
        for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics for metric in scope.metrics
    }"""
    program = BEFORE_CONFIGURATION.replace("PROVIDER", STOCK).replace("SHOWN", shown)
    printed = run(program.replace('counter.bind({"a": "1"}).add(1)\nprint', "print"))
    assert eval(printed) == {"c": [2, 1], "u": [-1], "h": [3], "g": [4], "o": [5]}


def test_unusable_attributes_are_logged_by_nobody_twice(provider: MeterProvider, caplog: pytest.LogCaptureFixture):
    """A thousand calls with a wrong type of attributes are one line in the log."""
    caplog.set_level(logging.DEBUG)
    counter = counter_of(provider)
    for _ in range(1000):
        counter.add(1, "wrong")
    assert [record.getMessage() for record in caplog.records] == [
        "c: attributes must be a mapping, not 'wrong': recorded without"
    ]


@pytest.mark.parametrize("depth", [100, 300, 350, 400, 2000])
def test_attributes_that_cannot_be_written_raise_nothing(provider: MeterProvider, depth: int):
    """What is nested too deep, or a number of too many digits, costs its attributes or is dropped, and never raises."""
    nested: Any = {}
    for _ in range(depth):
        nested = {"inner": nested}
    counter = provider.instrument(API_REQUESTS)
    for value in (nested, 10**5000):
        counter.add(1, {"of": value})
        counter.add(1, {"of": value})
    dropped = sum(count for _, count in provider.totals(DROPPED))
    assert sum(count for _, count in provider.totals(API_REQUESTS)) + dropped == 4
