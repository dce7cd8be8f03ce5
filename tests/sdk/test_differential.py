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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import context as otel_context
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

from otel_mlops.sdk.group import Group
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.provider import MeterProvider
from tests.pages import check_page
from tests.sdk.workers import state_folder

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


@differential(80)
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


# --- The reader of the group ---------------------------------------------------------------------------------


def growing(number: int, action: Action) -> Action:
    """The action, but for a callback that would count backwards, and for what one metric says of itself in two ways.

    The reader of the group takes a total that fell for a new one, and another worker's description for an older one.
    """
    if not isinstance(action, Record | Say):
        return action
    same = replace(action, identity=replace(action.identity, description=""))
    if isinstance(same, Say) and same.identity.kind == "observable_counter":
        # Also where several observations of one set of attributes add up, and fewer of them do the next time.
        return replace(same, observations=tuple((8**number, attributes) for _, attributes in same.observations))
    return same


def without_worker(found: Tally[Any]) -> Tally[Any]:
    """The same points without the attribute that names the only worker."""
    worker = ("worker", typed("0"))
    return Tally(
        {(about, (kind, attributes - {worker}, value)): n for (about, (kind, attributes, value)), n in found.items()}
    )


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    temporality=st.sampled_from([CUMULATIVE, DELTA]),
    views=st.lists(st.sampled_from([0, 2, 4, 7, 9, 12, 13]), max_size=1),  # one stream of a name for each instrument
    actions=st.lists(ACTIONS, max_size=40),
)
def test_the_reader_of_a_group_of_one_gets_what_any_reader_gets(
    temporality: AggregationTemporality, views: list[int], actions: list[Action]
):
    """Of one worker, the reader of its group is told what every reader of this process is, with the worker's number."""
    with state_folder() as state:
        group = Group("g", state)
        plain, of_group = (
            InMemoryMetricReader(preferred_temporality=dict.fromkeys(CLASSES, temporality)) for _ in range(2)
        )
        provider = MeterProvider(
            [plain],
            RESOURCE,
            shutdown_on_exit=False,
            views=[VIEWS[number]() for number in views],
            ledger=Ledger(group),
            group=group,
        )
        provider.add_metric_reader(of_group, of_group=True)
        side = Side(provider, [plain, of_group], True)
        for number, action in enumerate([*actions, Collect(0)]):
            if isinstance(action, Collect):
                told = without_worker(comparable(of_group.get_metrics_data()))
                assert told == comparable(plain.get_metrics_data()), f"action {number}"
            else:
                growing(number, action).do(side)
        provider.shutdown()


# --- The cap ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    limit=st.integers(1, 4),
    numbers=st.lists(st.integers(0, 9), max_size=40),
    keys=st.sampled_from([None, {"n"}, {"half"}]),
)
def test_the_same_sets_go_to_the_overflow(limit: int, numbers: list[int], keys: set[str] | None):
    """With a cap on the series of a metric, both sides send the same records to the overflow."""
    said = []
    for provider_class in (MeterProvider, sdk.MeterProvider):
        reader = InMemoryMetricReader()
        view = View(instrument_name="*", attribute_keys=keys, aggregation_cardinality_limit=limit)
        provider = provider_class([reader], RESOURCE, shutdown_on_exit=False, views=[view])
        meter = provider.get_meter("m")
        counter, histogram = meter.create_counter("c"), meter.create_histogram("h")
        for number in numbers:
            counter.add(1, {"n": number, "half": number // 2})
            histogram.record(number, {"n": str(number)})
        said.append(comparable(reader.get_metrics_data()))
        provider.shutdown()
    assert said[0] == said[1]


# --- Exemplars ----------------------------------------------------------------------------------------------


def context_of(number: int) -> Context | None:
    """A context with a span: 0 none given, 1 an empty one, odd numbers sampled, even numbers not."""
    if number == 0:
        return None
    if number == 1:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if number % 2 else TraceFlags.DEFAULT)
    return trace.set_span_in_context(NonRecordingSpan(SpanContext(number, 1000 + number, False, flags)), Context())


def exemplars_of(data: MetricsData | None) -> list[Any]:
    """The exemplars of all histograms, by metric and value."""
    every = [
        (metric.name, typed(point.attributes), each.value, each.span_id, each.trace_id)
        for of_resource in (data.resource_metrics if data else ())
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
        for point in metric.data.data_points
        for each in point.exemplars
    ]
    return sorted(every, key=repr)


EXEMPLAR_CALLS = st.one_of(
    st.tuples(st.integers(0, 6), st.integers(0, 6), st.sampled_from([0.5, 1, 3.0, 7.5, 1e9])), st.just("collect")
)


@settings(max_examples=80, deadline=None)
@given(
    exemplar_filter=st.sampled_from(
        [sdk.TraceBasedExemplarFilter, sdk.AlwaysOnExemplarFilter, sdk.AlwaysOffExemplarFilter]
    ),
    temporality=st.sampled_from([CUMULATIVE, DELTA]),
    calls=st.lists(EXEMPLAR_CALLS, max_size=20),
)
def test_readers_get_the_same_exemplars(
    exemplar_filter: type[Any], temporality: AggregationTemporality, calls: list[Any]
):
    """A reader gets, of each bucket, the last value since it last collected, with the span of the right context."""
    said: list[list[Any]] = []
    for provider_class in (MeterProvider, sdk.MeterProvider):
        reader = InMemoryMetricReader(preferred_temporality=dict.fromkeys(CLASSES, temporality))
        provider = provider_class([reader], RESOURCE, exemplar_filter(), shutdown_on_exit=False)
        histogram = provider.get_meter("m").create_histogram("h", explicit_bucket_boundaries_advisory=[1.0, 5.0])
        said.append([])
        for call in [*calls, "collect"]:
            if call == "collect":
                said[-1].append(exemplars_of(reader.get_metrics_data()))
                continue
            current, given_, value = call
            if exemplar_filter is sdk.AlwaysOnExemplarFilter and current < 2:
                current += 2  # without a span the stock SDK tells that of the value before
            token = otel_context.attach(context_of(current) or Context())
            histogram.record(value, {"a": "b"}, context=context_of(given_))
            otel_context.detach(token)
        provider.shutdown()
    assert said[0] == said[1]


# --- The stock readers on our provider ----------------------------------------------------------------------


class Kept(MetricExporter):
    """An exporter that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(preferred_temporality=dict.fromkeys(CLASSES, DELTA))
        self.exported: list[Tally[Any]] = []
        self.flushed = self.ended = 0

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:
        """Keep it."""
        self.exported.append(comparable(metrics_data))
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Count the flush."""
        self.flushed += 1
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        """Count the end."""
        self.ended += 1


@pytest.mark.parametrize("added_later", [False, True])
def test_the_stock_periodic_reader_exports_the_same(added_later: bool):
    """A PeriodicExportingMetricReader exports what it does with the stock SDK, at flushes, and at the end."""
    exported = []
    for provider_class in (MeterProvider, sdk.MeterProvider):
        exporter = Kept()
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
        late = added_later and provider_class is MeterProvider  # the stock SDK forgets to flush one that was added
        provider = provider_class([] if late else [reader], RESOURCE, shutdown_on_exit=False)
        if late:
            provider.add_metric_reader(reader)
        meter = provider.get_meter("m", "1", "https://schema/1", {"k": "v"})
        meter.create_observable_gauge("o", [lambda _: [Observation(7, {"x": True})]])
        meter.create_counter("c", "By", "What").add(5, {"a": 1})
        meter.create_histogram("h").record(3)
        assert provider.force_flush()
        meter.create_counter("c", "By", "What").add(2, {"a": 1})
        meter.create_gauge("g").set(2.5)
        provider.shutdown()
        assert exporter.ended == 1
        exported.append(exporter.exported)
    assert exported[0] == exported[1]
    assert len(exported[0]) == 2


def samples_of(text: str) -> dict[Any, Any]:
    """Every sample and every family of a page; an empty label is none, and bounds are numbers."""
    found: dict[Any, Any] = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("otel_mlops"):
            continue
        found[family.name] = (family.type, family.documentation if family.name != "target_info" else "")
        for sample in family.samples:
            if "otel_mlops" in sample.labels.get("otel_scope_name", ""):
                continue
            bound = "le" if sample.name.endswith("_bucket") else None
            labels = {k: float(v) if k == bound else v for k, v in sample.labels.items() if v}
            key = (sample.name, frozenset(labels.items()))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


# Names, kinds, units and descriptions that do not clash; the stock exporter's faults are the page's tests.
PAGED = [
    ("counter", "jobs", "", "Jobs."),
    ("counter", "jobs.done.total", "{job}", "Jobs \\ done\nso far"),
    ("counter", "Energy/used", "J", ""),
    ("counter", "cpu", "s", "CPU"),
    ("up_down_counter", "queue-length", "1", "Queue."),
    ("gauge", "gpu.temperature", "Cel", "Hot?"),
    ("gauge", "rate", "By/s", "Rate."),
    ("gauge", "ratio_percent", "%", ""),
    ("histogram", "latency", "ms", "Latency."),
    ("histogram", "size_bytes", "By", "Size."),
    ("observable_counter", "read", "By", "Read."),
    ("observable_up_down_counter", "open.files", "{file}", "Open."),
    ("observable_gauge", "load_1m", "", "Load."),
]
PAGE_ATTRIBUTES = st.dictionaries(
    st.sampled_from(["plain", "http.route", "1st", "CamelCase", "weird key!", "otel.scope"]),
    st.sampled_from(["x", "y", '"quoted"', "back\\slash", "new\nline", "%s %d", '{a="b"} 5', "ü\u2028", "1;2"]),
    max_size=3,
)
TYPED_ATTRIBUTES = st.fixed_dictionaries(
    {}, optional={"int": st.integers(0, 2), "flag": st.booleans(), "list": st.just((1, "a")), "none": st.none()}
)


@settings(max_examples=40, deadline=None)
@given(
    calls=st.lists(
        st.tuples(st.sampled_from(PAGED), NUMBERS.map(abs), st.builds(dict.__or__, PAGE_ATTRIBUTES, TYPED_ATTRIBUTES)),
        max_size=25,
    )
)
def test_the_page_says_what_the_stock_exporter_says(calls: list[Any]):
    """Names, types, help, labels and values are those of the stock exporter, which runs on our provider as well."""
    registries = [CollectorRegistry(), CollectorRegistry()]
    stock_readers = [PrometheusMetricReader(scope_info_enabled=False, registry=each) for each in registries]
    page = PageReader()
    providers = [
        MeterProvider([page, stock_readers[0]], RESOURCE, shutdown_on_exit=False),
        sdk.MeterProvider([stock_readers[1]], RESOURCE, shutdown_on_exit=False),
    ]
    said: dict[str, list[Observation]] = {}
    for (kind, name, _, _), number, attributes in calls:
        if kind in OBSERVABLE:
            said.setdefault(name, []).append(Observation(number, attributes))
    for provider in providers:
        meter = provider.get_meter("m")
        created = set()
        for (kind, name, unit, description), number, attributes in calls:
            if kind in SYNCHRONOUS:
                instrument = getattr(meter, f"create_{kind}")(name, unit, description)
                getattr(instrument, _VERBS[kind])(number, attributes)
            elif name not in created:
                created.add(name)
                getattr(meter, f"create_{kind}")(name, [lambda _, name=name: said[name]], unit, description)
    ours, through_stock, stock = (
        samples_of(text) for text in (check_page(page).text, *(generate_latest(each).decode() for each in registries))
    )
    for provider in providers:
        provider.shutdown()
    if not calls:
        ours = {}  # of nothing the stock exporter does not tell the target either
    through_stock = {key: value for key, value in through_stock.items() if key in stock or calls}
    assert ours == stock
    assert through_stock == stock
