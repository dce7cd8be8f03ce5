"""Ours against the stock SDK: the same calls in, the same metrics out, the listed differences aside.

Listed: times; integers come out as doubles; min, max and exemplars of counters are absent; an exemplar says
nothing of the attributes that a view left out; a reader of differences is told nothing of a sum that did not
change; what cannot be a number raises in the stock SDK and is dropped by ours.
"""

from __future__ import annotations

import logging
import math
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Observation
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import DropAggregation, ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.provider import MeterProvider
from tests.pages import check_page

DELTA, CUMULATIVE = AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE
CLASSES = [
    sdk.Counter, sdk.UpDownCounter, sdk.Histogram, sdk._Gauge, sdk.ObservableCounter, sdk.ObservableUpDownCounter,
    sdk.ObservableGauge,
]  # fmt: skip
RESOURCE = Resource({"service.name": "differential"}, "https://schema/resource")
SYNCHRONOUS = ("counter", "up_down_counter", "histogram", "gauge")
OBSERVABLE = ("observable_counter", "observable_up_down_counter", "observable_gauge")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Both sides warn of every odd value; what they say is the subject of other tests."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# --- What is done -------------------------------------------------------------------------------------------


class Action(Protocol):
    """Something that is done to both sides."""

    def do(self, side: Side) -> object: ...


@dataclass(frozen=True)
class Identity:
    """What an instrument is created with."""

    kind: str
    name: str
    unit: str
    description: str
    scope: tuple[Any, ...]
    bounds: tuple[float, ...] | None


@dataclass
class Side:
    """One of the two: a provider, its readers, and what its callbacks will say."""

    provider: Any
    readers: list[InMemoryMetricReader]
    is_ours: bool
    said: dict[Identity, list[Observation]] = field(default_factory=dict)

    def create(self, identity: Identity) -> Any:
        """The instrument of an identity, or None where it is refused."""
        name, *scope, attributes = identity.scope
        meter = self.provider.get_meter(name, *scope, attributes=dict(attributes) if attributes else None)
        create = getattr(meter, f"create_{identity.kind}")
        arguments: dict[str, Any] = {"unit": identity.unit, "description": identity.description}
        if identity.kind == "histogram" and identity.bounds is not None:
            arguments["explicit_bucket_boundaries_advisory"] = list(identity.bounds)
        try:
            return create(identity.name, **arguments)
        except Exception:
            return None  # of the stock SDK's kinds of errors, a KeyError the second time, none is better


@dataclass(frozen=True)
class Record:
    """A measurement, through the instrument or, on our side, through a handle."""

    identity: Identity
    value: Any
    attributes: Any
    bound: bool

    def do(self, side: Side) -> object:
        """Record; only our side may never raise."""
        instrument = side.create(self.identity)
        if instrument is None:
            return "refused"
        if side.is_ours and self.bound:
            handle = instrument.bind(self.attributes)
            getattr(handle, _VERBS[self.identity.kind])(self.value)
            return None
        record = getattr(instrument, _VERBS[self.identity.kind])
        try:
            record(self.value, self.attributes)
        except (TypeError, ValueError, OverflowError):
            assert not side.is_ours
        return None


@dataclass(frozen=True)
class Say:
    """What the callback of an observable instrument says from now on."""

    identity: Identity
    observations: tuple[tuple[Any, Any], ...]

    def do(self, side: Side) -> object:
        """Create the instrument with its callback, once, and set what it says.

        Once: a second one's callback is dropped by the stock SDK, and added by ours.
        """
        same = replace(self.identity, name=self.identity.name.lower())
        if same not in side.said:
            side.said[same] = []
            name, *scope, attributes = self.identity.scope
            meter = side.provider.get_meter(name, *scope, attributes=dict(attributes) if attributes else None)
            create = getattr(meter, f"create_{self.identity.kind}")
            said = side.said[same]
            try:
                create(self.identity.name, [lambda _: list(said)], self.identity.unit, self.identity.description)
            except Exception:
                return "refused"
        side.said[same][:] = [Observation(*each) for each in self.observations]
        return None


@dataclass(frozen=True)
class Collect:
    """One of the readers collects."""

    reader: int

    def do(self, side: Side) -> object:
        """What the reader gets, made comparable."""
        reader = side.readers[self.reader % len(side.readers)]
        return comparable(reader.get_metrics_data())


_VERBS = {"counter": "add", "up_down_counter": "add", "histogram": "record", "gauge": "set"}


# --- What comes out -----------------------------------------------------------------------------------------


def typed(value: Any) -> Any:
    """A value with the types of everything in it; a tuple for a list."""
    if isinstance(value, tuple | list):
        return tuple(typed(each) for each in value)
    if isinstance(value, Mapping):
        return frozenset((key, typed(each)) for key, each in value.items())
    return type(value).__name__, value


def comparable(data: MetricsData | None, *, of_ours: bool = False) -> Tally[Any]:
    """Every data point with all that must be equal, and how often it is there."""
    found: Tally[Any] = Tally()
    for of_resource in data.resource_metrics if data else ():
        assert of_resource.resource == RESOURCE
        assert of_resource.schema_url == RESOURCE.schema_url
        for of_scope in of_resource.scope_metrics:
            assert of_scope.schema_url == of_scope.scope.schema_url
            if of_scope.scope.name == "otel_mlops":
                continue  # what we say of ourselves
            assert of_scope.metrics
            for metric in of_scope.metrics:
                identity = (of_scope.scope, metric.name, metric.unit, metric.description)
                found.update((identity, each) for each in points(metric.data))
    return found


def points(data: Any) -> Iterable[Any]:
    """The points of a metric, times aside."""
    temporality = getattr(data, "aggregation_temporality", None)
    kind = (type(data).__name__, temporality, getattr(data, "is_monotonic", None))
    for point in data.data_points:
        assert point.start_time_unix_nano is None or point.start_time_unix_nano <= point.time_unix_nano
        if hasattr(point, "bucket_counts"):
            assert point.count == sum(point.bucket_counts)
            assert all(type(count) is int for count in point.bucket_counts)
            value: Any = (tuple(point.bucket_counts), float(point.sum), tuple(map(float, point.explicit_bounds)))
        else:
            value = float(point.value)
            if temporality is DELTA and value == 0:
                continue  # listed: a sum that has not changed
        yield kind, typed(point.attributes), value


# --- The random calls ---------------------------------------------------------------------------------------

NAMES = ["c", "C", "requests.total", "a/b", "a-b", "temperature_celsius", "x" * 255, "1bad", "", "ü", "x" * 256]
SCOPES = [("m1", None, None, None), ("m1", "1.0", "https://schema/1", None), ("m2", "", "", (("k", "v"),))]

IDENTITIES = st.builds(
    Identity,
    st.sampled_from(SYNCHRONOUS),
    st.sampled_from(NAMES[:4]) | st.sampled_from(NAMES),
    st.sampled_from(["", "s", "1", "{request}", "By", "ü", "x" * 64]),
    st.sampled_from(["", "What it is.", "Something\nelse"]),
    st.sampled_from(SCOPES),
    st.sampled_from([None, None, (1.0, 2.5), (), (-1.0, 0.0, 7.0), (1, 2)]),
)
OBSERVED = st.builds(
    Identity,
    st.sampled_from(OBSERVABLE),
    st.sampled_from(NAMES[:4]),
    st.sampled_from(["", "s"]),
    st.sampled_from(["", "What it is."]),
    st.sampled_from(SCOPES),
    st.none(),
)
# Eighths of a moderate size: they add up exactly in any order.
NUMBERS = st.integers(-(2**30), 2**30) | st.integers(0, 2**20).map(lambda n: n / 8) | st.booleans()
ODD_NUMBERS = st.sampled_from([Fraction(5, 4), np.float64(2.5), np.int64(3), -0.0, 0, -1, -2.5])
NO_NUMBERS = st.sampled_from([math.nan, math.inf, -math.inf, None, "x", 2j, [], 10**400])
VALUES = st.one_of(NUMBERS, NUMBERS, ODD_NUMBERS, NO_NUMBERS)
ATTRIBUTE_VALUES = st.sampled_from(
    ["x", "y", "", "1", 1, True, 1.0, 0, False, None, (1,), [1], (True,), ("a", "b"), b"x", {"n": 1}, {"n": [True]}]
)
KEYS = st.sampled_from(["a", "b", "http.route", "http_route", "le", "otel.metric.overflow"])
ATTRIBUTES = st.none() | st.dictionaries(KEYS, ATTRIBUTE_VALUES, max_size=3) | st.just({"": "x", 5: "y"}) | st.just("x")

RECORDS = st.builds(Record, IDENTITIES, VALUES, ATTRIBUTES, st.booleans())
SAYINGS = st.builds(Say, OBSERVED, st.lists(st.tuples(NUMBERS | st.just(math.nan), ATTRIBUTES), max_size=4).map(tuple))
ACTIONS: st.SearchStrategy[Action] = st.one_of(
    RECORDS, RECORDS, RECORDS, SAYINGS, st.builds(Collect, st.integers(0, 1))
)

VIEWS: list[Callable[[], View]] = [
    lambda: View(instrument_name="c", attribute_keys={"a"}),
    lambda: View(instrument_name="c", attribute_keys=set()),
    lambda: View(instrument_name="requests.total", name="renamed", description="by a view"),
    lambda: View(instrument_name="a/b", name="c"),
    lambda: View(instrument_name="*", description="of all"),
    lambda: View(instrument_name="[ca]*", attribute_keys={"a", "b"}),
    lambda: View(instrument_type=sdk.Counter, meter_name="m1"),
    lambda: View(instrument_type=sdk.Histogram, aggregation=ExplicitBucketHistogramAggregation([0, 5, 10])),
    lambda: View(instrument_type=sdk.Histogram, aggregation=ExplicitBucketHistogramAggregation()),
    lambda: View(instrument_type=sdk.Histogram, aggregation=ExplicitBucketHistogramAggregation([])),
    lambda: View(instrument_unit="s", meter_version="1.0", aggregation=DropAggregation()),
    lambda: View(instrument_name="C", meter_schema_url="https://schema/1", aggregation=DropAggregation()),
    lambda: View(instrument_type=sdk._Gauge, instrument_name="a*", attribute_keys={"b"}),
    lambda: View(instrument_type=sdk.ObservableGauge, attribute_keys={"a"}),
]


def open_side(provider_class: Any, temporalities: Iterable[AggregationTemporality], views: Iterable[int]) -> Side:
    """A provider with its readers."""
    readers = [InMemoryMetricReader(preferred_temporality=dict.fromkeys(CLASSES, each)) for each in temporalities]
    provider = provider_class(
        metric_readers=readers,
        resource=RESOURCE,
        shutdown_on_exit=False,
        views=[VIEWS[number]() for number in views],
    )
    return Side(provider, readers, provider_class is MeterProvider)


def check_same(temporalities: list[AggregationTemporality], views: list[int], actions: list[Action]) -> None:
    """Do the same to both and compare what each action gives, and what is there at the end."""
    ours, stock = (open_side(each, temporalities, views) for each in (MeterProvider, sdk.MeterProvider))
    try:
        for number, action in enumerate([*actions, *map(Collect, range(len(temporalities)))]):
            assert action.do(ours) == action.do(stock), f"action {number}: {action}"
    finally:
        ours.provider.shutdown()
        stock.provider.shutdown()


def differential(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test over random views, readers and calls."""
    bounds = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    return lambda test: bounds(
        given(
            temporalities=st.lists(st.sampled_from([CUMULATIVE, DELTA]), min_size=1, max_size=2),
            views=st.lists(st.integers(0, len(VIEWS) - 1), max_size=3, unique=True),
            actions=st.lists(ACTIONS, max_size=40),
        )(test)
    )


@differential(120)
def test_the_same_calls_give_the_same_metrics(
    temporalities: list[AggregationTemporality], views: list[int], actions: list[Action]
):
    """Whatever is created, recorded, observed and collected, through whatever views, both sides say the same."""
    check_same(temporalities, views, actions)


@pytest.mark.stress
@differential(1500)
def test_the_same_calls_give_the_same_metrics_for_long(
    temporalities: list[AggregationTemporality], views: list[int], actions: list[Action]
):
    """The same, with many more calls."""
    check_same(temporalities, views, actions)
