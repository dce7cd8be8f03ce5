"""The page: valid in both formats whatever is on it, with none of the stock exporter's faults."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.metrics import Observation
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from otel_mlops.metrics import (
    API_REQUEST_DURATION,
    CATALOGUE,
    ERRORS,
    MODEL_INFO,
    MODEL_STATES,
    MODEL_STATUS,
    PAGE_DURATION,
    PAGE_SERIES,
    PREDICTION_VALUES,
)
from otel_mlops.sdk.families import Family
from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.sdk.text import OPENMETRICS, TEXT, choose_format
from tests.pages import check_lint, check_page, check_text

OpenProvider = Callable[..., MeterProvider]


def meter_of(provider: MeterProvider, name: str = "m") -> Any:
    """A meter."""
    return provider.get_meter(name)


def text_of(reader: PageReader, accept: str | None = None) -> str:
    """A page as text."""
    return reader.page(accept).body.decode()


def says(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged about the page."""
    return [record.getMessage() for record in caplog.records if record.name == "otel_mlops.sdk.page"]


# --- The page as it must be, letter by letter ---------------------------------------------------------------

GOLDEN_TEXT = r"""# HELP target_info The resource that these metrics describe.
# TYPE target_info gauge
target_info{service_name="test"} 1.0
# HELP jobs_total Jobs \\ done\nso "far".
# TYPE jobs_total counter
jobs_total 2.0
jobs_total{http_route="/a;/b",kind="say \"x\"\n\\"} 0.5
# HELP queue_length Waiting.
# TYPE queue_length gauge
queue_length{flag="true",list="[1, \"a\"]",none="null",number="1.5"} -3.0
# HELP gpu_temperature_celsius Heat.
# TYPE gpu_temperature_celsius gauge
gpu_temperature_celsius{gpu_id="0"} 71.5
# HELP latency_seconds Time.
# TYPE latency_seconds histogram
latency_seconds_bucket{exported_le="x",le="0.5"} 1
latency_seconds_bucket{exported_le="x",le="1.0"} 1
latency_seconds_bucket{exported_le="x",le="1e+06"} 2
latency_seconds_bucket{exported_le="x",le="+Inf"} 3
latency_seconds_count{exported_le="x"} 3
latency_seconds_sum{exported_le="x"} 20000062.5
# HELP model_info What a model is; always 1.
# TYPE model_info gauge
model_info{features="8",model_version="1"} 1.0
# HELP model_status State of a model: 1 for the state it is in, 0 for the others.
# TYPE model_status gauge
model_status{model_status="ready",model_version="1"} 1.0
model_status{model_status="error",model_version="1"} 0.0
"""

GOLDEN_OPENMETRICS = r"""# HELP target The resource that these metrics describe.
# TYPE target info
target_info{service_name="test"} 1.0
# HELP jobs Jobs \\ done\nso \"far\".
# TYPE jobs counter
jobs_total 2.0
jobs_total{http_route="/a;/b",kind="say \"x\"\n\\"} 0.5
# HELP queue_length Waiting.
# TYPE queue_length gauge
queue_length{flag="true",list="[1, \"a\"]",none="null",number="1.5"} -3.0
# HELP gpu_temperature_celsius Heat.
# TYPE gpu_temperature_celsius gauge
# UNIT gpu_temperature_celsius celsius
gpu_temperature_celsius{gpu_id="0"} 71.5
# HELP latency_seconds Time.
# TYPE latency_seconds histogram
# UNIT latency_seconds seconds
latency_seconds_bucket{exported_le="x",le="0.5"} 1
latency_seconds_bucket{exported_le="x",le="1.0"} 1
latency_seconds_bucket{exported_le="x",le="1e+06"} 2
latency_seconds_bucket{exported_le="x",le="+Inf"} 3
latency_seconds_count{exported_le="x"} 3
latency_seconds_sum{exported_le="x"} 20000062.5
# HELP model What a model is; always 1.
# TYPE model info
model_info{features="8",model_version="1"} 1.0
# HELP model_status State of a model: 1 for the state it is in, 0 for the others.
# TYPE model_status stateset
model_status{model_status="ready",model_version="1"} 1.0
model_status{model_status="error",model_version="1"} 0.0
# EOF
"""


@pytest.mark.parametrize(
    ("accept", "golden"), [(None, GOLDEN_TEXT), ("application/openmetrics-text", GOLDEN_OPENMETRICS)]
)
def test_the_page_letter_by_letter(paged: MeterProvider, reader: PageReader, accept: str | None, golden: str):
    """Every kind of metric stands on the page as it must in either format."""
    meter = meter_of(paged)
    jobs = meter.create_counter("jobs", "{job}", 'Jobs \\ done\nso "far".')
    jobs.add(2)
    jobs.add(0.5, {"http_route": "/b", "http.route": "/a", "kind": 'say "x"\n\\'})
    queue = meter.create_up_down_counter("queue-length", "1", "Waiting.")
    queue.add(-3, {"number": 1.5, "list": [1, "a"], "none": None, "flag": True})
    meter.create_gauge("gpu.temperature", "Cel", "Heat.").set(71.5, {"gpu.id": "0"})
    latency = meter.create_histogram("latency", "s", "Time.", explicit_bucket_boundaries_advisory=[0.5, 1, 1e6])
    for value in (0.5, 62, 2e7):
        latency.record(value, {"le": "x"})
    paged.instrument(MODEL_INFO).set(1, {"model_version": "1", "features": 8})
    for state, value in (("ready", 1), ("error", 0)):
        paged.instrument(MODEL_STATUS).set(value, {"model_version": "1", "model_status": state})
    assert text_of(reader, accept) == golden


def test_every_row_of_the_catalogue_is_on_a_valid_page(paged: MeterProvider, reader: PageReader):
    """With every metric recorded the page passes all parsers, and promtool finds only what is fixed as it is."""
    verbs = {"counter": "add", "updown": "add", "histogram": "record", "gauge": "set", "info": "set", "stateset": "set"}
    for row in CATALOGUE:
        attributes = {key: row.values.get(key, ("x",))[0] for key in row.attributes}
        getattr(paged.instrument(row), verbs[row.kind])(1, attributes)
    page = check_page(reader, lint=True)
    shown = {sample for sample, _ in page.samples}
    for row in CATALOGUE:
        assert {row.page_name, f"{row.page_name}_count"} & shown, row.name
        kind = {"updown": "gauge"}.get(row.kind, row.kind)
        assert page.types[row.family] == kind


def test_a_reader_without_a_provider_has_an_empty_page():
    """Before it belongs to a provider the page is empty and valid."""
    reader = PageReader()
    assert reader.page() == (b"", TEXT)
    assert reader.page("application/openmetrics-text") == (b"# EOF\n", OPENMETRICS)


def test_before_anything_is_recorded_the_page_says_what_it_describes(paged: MeterProvider, reader: PageReader):
    """A page without metrics has the target, with observables only as well."""
    meter_of(paged).create_observable_gauge("g", [lambda _: [Observation(1)]])
    lines = text_of(reader).splitlines()
    assert [line for line in lines if not line.startswith("#")] == ['target_info{service_name="test"} 1.0', "g 1.0"]


def test_the_page_tells_of_itself(paged: MeterProvider, reader: PageReader):
    """How many series the last page had and how long pages take is on the next."""
    for number in range(5):
        meter_of(paged).create_counter("c").add(1, {"n": number})
    reader.page()
    page = check_page(reader)
    assert page.value(PAGE_SERIES.page_name) == 6.0
    assert page.value(f"{PAGE_DURATION.page_name}_count") == 1.0
    assert text_of(reader).count("\n") > 6


# --- Values and labels that are hard to write ---------------------------------------------------------------

HOSTILE = [
    "new\nline", "\\", '"', '"} 5\nfake_total 7', "NUL\0", "%s %d %%", "\ud800 half", "\r\x0b\x0c\x85\u2028\u2029",
    "x" * 60_000, "ü\U0001f600", "# EOF", " ", '{a="b"}', "a,b=c", "\x7f\x01",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_label_values_stand_on_the_page_as_they_are(paged: MeterProvider, reader: PageReader, number: int):
    """Any text is a label's value and nothing else: it is read back as it was, half a surrogate pair aside."""
    value, meter = HOSTILE[number], meter_of(paged)
    meter.create_counter("c").add(1, {"k": value})
    meter.create_histogram("h").record(1, {"k": value, "le": value})
    meter.create_gauge("g", description=value).set(1)
    meter.create_observable_gauge("o", [lambda _: [Observation(1, {"k": value})]])
    shown = value.encode("utf-8", "replace").decode()
    page = check_page(reader)
    assert page.value("c_total", k=shown) == 1.0
    assert page.value("h_count", k=shown, exported_le=shown) == 1.0
    assert page.value("o", k=shown) == 1.0
    assert "fake_total" not in {sample for sample, _ in page.samples}


KEYS = st.text(min_size=1, max_size=6) | st.sampled_from(["le", "a.b", "a_b", "1a", "__name__", "exported_le", "é"])
ANYTHING = st.text(max_size=8) | st.integers() | st.booleans() | st.none() | st.floats() | st.binary(max_size=4)


def expected_labels(attributes: dict[str, Any], *, histogram: bool) -> dict[str, str]:
    """The labels of attributes, said another way than the page's code says it."""
    import json

    found: dict[str, list[str]] = {}
    for key in sorted(attributes):
        name = re.sub("[^a-zA-Z0-9]+", "_", "_" + key[1:] if key[0].isdigit() else key)
        name = "exported_le" if histogram and name == "le" else name
        value = attributes[key]
        shown = value if isinstance(value, str) else json.dumps(value, default=str)
        found.setdefault(name, []).append(shown.encode("utf-8", "replace").decode())
    joined = {name: ";".join(values) for name, values in found.items()}
    return {name: value for name, value in joined.items() if value}


@settings(max_examples=60, deadline=None)
@given(sets=st.lists(st.dictionaries(KEYS, ANYTHING, max_size=4), min_size=1, max_size=6))
def test_any_attributes_are_labels(sets: list[dict[str, Any]]):
    """Whatever the attributes, the page is valid, has each set of labels once, and loses no count."""
    reader = PageReader()
    provider = MeterProvider([reader], Resource({}), shutdown_on_exit=False)
    meter = meter_of(provider)
    counter, histogram = meter.create_counter("c"), meter.create_histogram("h")
    wanted: tuple[dict[Any, float], dict[Any, float]] = ({}, {})
    for attributes in sets:
        counter.add(1, attributes)
        histogram.record(1, attributes)
        for found, is_histogram in zip(wanted, (False, True), strict=True):
            key = frozenset(expected_labels(attributes, histogram=is_histogram).items())
            found[key] = found.get(key, 0.0) + 1
    page = check_page(reader)
    provider.shutdown()
    assert page.of("c_total") == wanted[0]
    assert page.of("h_count") == wanted[1]


NAMES = st.from_regex(r"[a-zA-Z][-_./a-zA-Z0-9]{0,6}", fullmatch=True)
SUFFIXES = st.sampled_from(["", "", "_total", "_info", "_bucket", "_count", "_sum", "_created", ".seconds", "_"])
INSTRUMENTS = st.tuples(
    st.sampled_from(["counter", "up_down_counter", "gauge", "histogram", "observable_gauge", "observable_counter"]),
    st.builds("{}{}".format, st.sampled_from(["a", "a.b", "A_b", "target"]) | NAMES, SUFFIXES),
    st.sampled_from(["", "s", "1", "By/s", "%", "{thing}", "m/s", "a b", "_"]),
    st.text(max_size=5),
)


@settings(max_examples=60, deadline=None)
@given(instruments=st.lists(INSTRUMENTS, max_size=8))
def test_any_instruments_make_a_valid_page(instruments: list[tuple[str, str, str, str]]):
    """However names, kinds, units and descriptions clash, the page is valid and the first of each name is there."""
    reader = PageReader()
    provider = MeterProvider([reader], Resource({}), shutdown_on_exit=False)
    for number, (kind, name, unit, description) in enumerate(instruments):
        meter = meter_of(provider, f"m{number % 2}")
        if kind.startswith("observable"):
            getattr(meter, f"create_{kind}")(name, [lambda _: [Observation(1)]], unit, description)
        else:
            instrument = getattr(meter, f"create_{kind}")(name, unit, description)
            getattr(instrument, {"gauge": "set", "histogram": "record"}.get(kind, "add"))(1, {"n": number})
    check_page(reader)
    check_page(reader)
    provider.shutdown()


NUMBERS = [0.0, -0.0, 5e-324, 1e-5, 0.1, 1 / 3, 1e15, 1e16, 2.0**53, 1.7976931348623157e308, -1e-300, -12345.678]


def test_numbers_are_written_exactly(paged: MeterProvider, reader: PageReader):
    """Every value on the page is read back as the very same float."""
    gauge = meter_of(paged).create_gauge("g")
    for number, value in enumerate(NUMBERS):
        gauge.set(value, {"n": str(number)})
    page = check_page(reader)
    assert [page.value("g", n=str(number)) for number in range(len(NUMBERS))] == NUMBERS
    assert 'g{n="1"} -0.0' in page.text


def test_a_sum_beyond_all_floats_is_infinite_on_a_valid_page(paged: MeterProvider, reader: PageReader):
    """Totals that overflow are +Inf, which all parsers take."""
    counter, histogram = meter_of(paged).create_counter("c"), meter_of(paged).create_histogram("h")
    for _ in range(2):
        counter.add(1.7e308)
        histogram.record(1.7e308)
    page = check_page(reader)
    assert (page.value("c_total"), page.value("h_sum"), page.value("h_count")) == (math.inf, math.inf, 2.0)
    check_lint(page.text, {"c_total no help text", "h no help text"})


def test_bounds_are_written_as_floats(paged: MeterProvider, reader: PageReader):
    """Integer bounds stand on the page as 1.0, so that two libraries with the same bounds make the same series."""
    for name, bounds in (("ints", [1, 10]), ("floats", [1.0, 10.0])):
        meter_of(paged, name).create_histogram("h", explicit_bucket_boundaries_advisory=bounds).record(5)
    page = check_page(reader)
    assert page.value("h_bucket", le="10.0") == 2.0
    assert 'le="1.0"' in page.text
    assert 'le="1"' not in page.text


def test_an_empty_label_is_no_label(paged: MeterProvider, reader: PageReader):
    """A series with an empty attribute and one without it, the same to Prometheus, are one on the page."""
    counter = meter_of(paged).create_counter("c")
    counter.add(1, {"a": ""})
    counter.add(2, {})
    counter.add(4, {"a": "", "b": "x"})
    page = check_page(reader)
    assert page.of("c_total") == {frozenset(): 3.0, frozenset({("b", "x")}): 4.0}
    assert 'a=""' not in page.text


# --- The stock exporter's faults ----------------------------------------------------------------------------


def test_two_scopes_with_other_labels_keep_their_labels(paged: MeterProvider, reader: PageReader):
    """The same metric from two libraries with different attributes is not mislabelled, in either order."""
    meter_of(paged, "a").create_counter("c").add(1, {"x": "1"})
    meter_of(paged, "b").create_counter("c").add(10, {"y": "2", "a": "A"})
    page = check_page(reader)
    assert page.of("c_total") == {frozenset({("x", "1")}): 1.0, frozenset({("y", "2"), ("a", "A")}): 10.0}


def test_two_descriptions_make_one_family(paged: MeterProvider, reader: PageReader):
    """A metric that is described in two ways has one HELP and one TYPE, with all series under them."""
    meter_of(paged, "a").create_counter("c", description="first").add(1, {"by": "a"})
    meter_of(paged, "b").create_counter("c", description="second").add(2, {"by": "b"})
    meter_of(paged, "b").create_observable_counter("c", [lambda _: [Observation(3, {"by": "o"})]], "", "third")
    page = check_page(reader)
    assert (page.value("c_total", by="a"), page.value("c_total", by="b"), page.value("c_total", by="o")) == (1, 2, 3)
    assert re.findall(r"# HELP c_total .*", page.text) == ["# HELP c_total first"]


@pytest.mark.parametrize("spelling", ["a.b", "a-b", "a/b", "A__B", "a_b"])
def test_names_that_become_the_same_are_added_up(paged: MeterProvider, reader: PageReader, spelling: str):
    """Two metrics whose names look the same on the page share a family, and the same labels are one series."""
    for number, name in enumerate(("a.b", spelling)):
        meter_of(paged, f"m{number}").create_counter(name).add(1, {"x": "1"})
        meter_of(paged, f"m{number}").create_up_down_counter(f"up.{name}").add(-1, {"x": "1"})
        meter_of(paged, f"m{number}").create_histogram(f"h.{name}").record(3, {"x": "1"})
    page = check_page(reader)
    assert page.value("a_b_total", x="1") == 2.0
    assert page.value("up_a_b", x="1") == -2.0
    assert (page.value("h_a_b_count", x="1"), page.value("h_a_b_sum", x="1")) == (2.0, 6.0)


def test_values_that_look_the_same_are_one_series(paged: MeterProvider, reader: PageReader):
    """1 and "1", True and "true" are series of their own to OpenTelemetry and one on the page, without loss."""
    counter = meter_of(paged).create_counter("c")
    for value in (1, "1", True, "true", None, "null", [1], "[1]"):
        counter.add(1, {"k": value})
    page = check_page(reader)
    assert page.of("c_total") == {frozenset({("k", v)}): 2.0 for v in ("1", "true", "null", "[1]")}


def test_of_several_gauges_in_one_series_the_last_that_was_set_is_shown(paged: MeterProvider, reader: PageReader):
    """Gauges of two libraries with the same labels are not added up: the latest counts, back and forth."""
    first, second = (meter_of(paged, name).create_gauge("g") for name in "ab")
    for gauge, value in ((first, 1.0), (second, 2.0), (first, 3.0), (first, -5.0), (second, 0.0)):
        gauge.set(value)
        assert check_page(reader).value("g") == value


def test_attributes_that_become_one_label_are_joined(paged: MeterProvider, reader: PageReader):
    """http.route beside http_route is one label with both values, in the order of the original keys."""
    meter_of(paged).create_counter("c").add(1, {"http_route": "second", "http.route": "first", "http-route": "zeroth"})
    assert check_page(reader).value("c_total", http_route="zeroth;first;second") == 1.0


def test_flushing_poisons_nothing(paged: MeterProvider, reader: PageReader):
    """After any number of flushes the page says what is true now, once, and nothing has piled up."""
    counter = meter_of(paged).create_counter("c")
    for _ in range(50):
        counter.add(1)
        assert paged.force_flush()
    assert check_page(reader).value("c_total") == 50.0
    assert len(reader._collector._metrics_datas) == 0


@pytest.mark.parametrize("how", ["preference", "environment"])
def test_exponential_histograms_never_break_the_page(
    open_provider: OpenProvider, reader: PageReader, monkeypatch: pytest.MonkeyPatch, how: str
):
    """With a reader beside the page that wants exponential histograms the page has buckets as ever."""
    if how == "environment":
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        variable = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
        monkeypatch.setenv(variable, "base2_exponential_bucket_histogram")
        preference = OTLPMetricExporter()._preferred_aggregation
    else:
        preference = {sdk.Histogram: sdk.view.ExponentialBucketHistogramAggregation()}
    other = InMemoryMetricReader(preferred_aggregation=preference)
    provider = open_provider(metric_readers=[other, reader])
    meter_of(provider).create_histogram("h").record(7)
    other.collect()
    assert check_page(reader).value("h_bucket", le="10.0") == 1.0


def test_concurrent_scrapes_are_whole(paged: MeterProvider, reader: PageReader):
    """Pages made at the same time, while series come and values change, are each valid, complete and not empty."""
    meter = meter_of(paged)
    counter, histogram = meter.create_counter("c"), meter.create_histogram("h")
    meter.create_observable_gauge("o", [lambda _: [Observation(5, {"n": n}) for n in range(3)]])
    counter.add(1, {"n": "first"})
    done = threading.Event()

    def record() -> None:
        number = 0
        while not done.is_set():
            counter.add(1, {"n": number % 300})
            histogram.record(number % 20, {"n": number % 5})
            number += 1
            if number % 100 == 0:
                counter.forget({"n": number % 300})

    recording = threading.Thread(target=record)
    recording.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            formats = [None, "application/openmetrics-text"] * 30
            pages = [body.decode() for body, _ in pool.map(reader.page, formats)]
    finally:
        done.set()
        recording.join()
    for text, openmetrics in zip(pages[::2], pages[1::2], strict=True):
        for page in (text, openmetrics):
            assert 'c_total{n="first"} 1.0' in page
            assert len(re.findall(r"^o\{", page, re.MULTILINE)) == 3
            keys = [line.rpartition(" ")[0] for line in page.splitlines() if not line.startswith("#")]
            assert len(keys) == len(set(keys))
        histograms = re.findall(r'h_bucket\{n="(\d)",le="\+Inf"\} (\d+)', text)
        assert histograms == re.findall(r'h_count\{n="(\d)"\} (\d+)', text)


def test_an_observed_series_is_gone_once_it_is_not_said_any_more(paged: MeterProvider, reader: PageReader):
    """What a callback stops saying disappears from the next page, its family too, and comes back when it is said."""
    said: list[Observation] = [Observation(1, {"n": 1}), Observation(2, {"n": 2})]
    meter_of(paged).create_observable_gauge("o", [lambda _: list(said)])
    assert check_page(reader).of("o") == {frozenset({("n", "1")}): 1.0, frozenset({("n", "2")}): 2.0}
    del said[0]
    assert check_page(reader).of("o") == {frozenset({("n", "2")}): 2.0}
    said.clear()
    assert "o" not in check_page(reader).types
    said.append(Observation(3, {"n": 1}))
    assert check_page(reader).of("o") == {frozenset({("n", "1")}): 3.0}


@pytest.mark.parametrize("scope", ["otel_mlops", "m"])
def test_what_is_said_with_the_same_object_again_is_of_the_attributes_it_has(
    paged: MeterProvider, reader: PageReader, scope: str
):
    """A callback may give one mapping each time and change it in between."""
    attributes = {"n": 1}
    paged.get_meter(scope).create_observable_gauge("o", [lambda _: [Observation(5, attributes)]])
    for number in (1, 1, 2):
        attributes["n"] = number
        assert check_page(reader).of("o") == {frozenset({("n", str(number))}): 5.0}


@pytest.mark.parametrize("scope", ["otel_mlops", "m"])
def test_an_observed_series_leaves_the_overflow_when_there_is_room(
    open_provider: Callable[..., MeterProvider], reader: PageReader, scope: str
):
    """What a full metric had no room for has a series of its own once another is not said any more."""
    said = [Observation(n, {"n": n}) for n in range(3)]
    provider = open_provider(metric_readers=[reader], max_series=2)
    provider.get_meter(scope).create_observable_gauge("o", [lambda _: list(said)])
    for _ in range(2):
        assert check_page(reader).value("o", otel_metric_overflow="true") == 2.0
    del said[0]
    for _ in range(2):
        assert check_page(reader).of("o") == {frozenset({("n", "1")}): 1.0, frozenset({("n", "2")}): 2.0}


def test_observed_and_recorded_series_of_one_name_are_added_up(paged: MeterProvider, reader: PageReader):
    """A counter that is recorded here and observed there is one series with the sum; so are up-down counters."""
    meter_of(paged, "a").create_counter("c").add(1)
    meter_of(paged, "b").create_observable_counter("c", [lambda _: [Observation(2)]])
    meter_of(paged, "a").create_up_down_counter("u").add(5)
    meter_of(paged, "b").create_observable_up_down_counter("u", [lambda _: [Observation(-2)]])
    for _ in range(2):
        page = check_page(reader)
        assert (page.value("c_total"), page.value("u")) == (3.0, 3.0)


# --- Names that belong to others ----------------------------------------------------------------------------

CLASHES = [
    (("histogram", "foo"), ("gauge", "foo_bucket"), "foo_count"),
    (("gauge", "foo_bucket"), ("histogram", "foo"), "foo_bucket"),
    (("counter", "foo"), ("gauge", "foo_total"), "foo_total"),
    (("gauge", "foo_total"), ("counter", "foo"), "foo_total"),
    (("counter", "foo"), ("gauge", "foo"), "foo_total"),
    (("gauge", "foo"), ("histogram", "foo"), "foo"),
    (("histogram", "foo"), ("counter", "foo_count"), "foo_count"),
    (("counter", "foo"), ("gauge", "foo_created"), "foo_total"),
]


@pytest.mark.parametrize(("first", "second", "sample"), CLASHES)
def test_of_names_that_clash_the_first_has_the_page(
    paged: MeterProvider,
    reader: PageReader,
    caplog: pytest.LogCaptureFixture,
    first: tuple[str, str],
    second: tuple[str, str],
    sample: str,
):
    """A metric whose samples would be taken for another's is left out, and that is said once."""
    for number, (kind, name) in enumerate((first, second)):
        instrument = getattr(meter_of(paged, f"m{number}"), f"create_{kind}")(name)
        getattr(instrument, {"gauge": "set", "histogram": "record"}.get(kind, "add"))(1 + number, {"by": str(number)})
    for _ in range(2):
        page = check_page(reader)
        assert page.value(sample, by="0") == 1.0
        assert 'by="1"' not in page.text
    assert len(says(caplog)) == 1
    assert says(caplog)[0].startswith(f"page: {second[1]} ({second[0]}) is left out: its name on the page belongs to")


def test_an_observed_metric_that_clashes_is_left_out(
    paged: MeterProvider, reader: PageReader, caplog: pytest.LogCaptureFixture
):
    """Observable instruments keep to the same rule."""
    meter_of(paged).create_counter("foo").add(1)
    meter_of(paged).create_observable_gauge("foo", [lambda _: [Observation(5)]])
    assert check_page(reader).value("foo") is None
    assert len(says(caplog)) == 1


def test_buckets_that_differ_are_left_out_where_the_labels_are_the_same(
    paged: MeterProvider, reader: PageReader, caplog: pytest.LogCaptureFixture
):
    """Two histograms of one name with other bounds share the page but for the same labels, which is said once."""
    for name, bounds, value in (("a", [1, 2], 1), ("b", [5], 2)):
        histogram = meter_of(paged, name).create_histogram("h", explicit_bucket_boundaries_advisory=bounds)
        histogram.record(value)
        histogram.record(value, {"by": name})
    for _ in range(2):
        page = check_page(reader)
        assert (page.value("h_sum"), page.value("h_sum", by="a"), page.value("h_sum", by="b")) == (1.0, 1.0, 2.0)
    assert says(caplog) == ["page: h{} is left out where its bucket bounds differ from the first ones"]


def test_the_target_belongs_to_the_resource(paged: MeterProvider, reader: PageReader):
    """Nobody's metric takes the place of the resource, whose attributes are the labels of target_info."""
    meter_of(paged).create_gauge("target_info").set(5, {"mine": "1"})
    meter_of(paged).create_gauge("target.info").set(5, {"mine": "1"})
    assert check_page(reader).of("target_info") == {frozenset({("service_name", "test")}): 1.0}


def test_two_readers_of_one_provider_have_the_same_page(open_provider: OpenProvider):
    """Each reader keeps its own families: both pages are whole, and stay so when series come."""
    readers = [PageReader(), PageReader()]
    provider = open_provider(metric_readers=readers)
    counter = meter_of(provider).create_counter("c")
    for number in range(3):
        counter.add(1, {"n": number})
        meter_of(provider).create_gauge(f"g{number}").set(number)
        for _ in range(2):
            pages = [check_page(reader) for reader in readers]
            for page in pages:
                assert len(page.of("c_total")) == number + 1
                assert page.value(f"g{number}") == number


# --- Info, states, negative buckets -------------------------------------------------------------------------


def test_states_of_one_thing_follow_one_another(paged: MeterProvider, reader: PageReader):
    """State sets are grouped for OpenMetrics in whatever order they were recorded, with whatever other labels."""
    status = paged.instrument(MODEL_STATUS)
    for state in MODEL_STATES:
        for labels in ({"model_version": "1"}, {"model_name": "1"}, {"model_version": "2", "model_name": "a"}, {}):
            status.set(float(state == "ready"), {**labels, "model_status": state})
    page = check_page(reader)
    assert page.types["model_status"] == "stateset"
    assert page.value("model_status", model_version="1", model_status="ready") == 1.0
    assert sum(page.of("model_status").values()) == 4.0
    assert len(page.of("model_status")) == 16


def test_info_is_info_in_openmetrics(paged: MeterProvider, reader: PageReader):
    """An info metric has its type where there is such a type, and is a gauge of 1 elsewhere."""
    paged.instrument(MODEL_INFO).set(1, {"model_version": "1"})
    page = check_page(reader)
    assert page.types["model"] == "info"
    assert "# TYPE model_info gauge" in page.text
    assert page.value("model_info", model_version="1") == 1.0


def test_a_signed_histogram_has_no_sum_in_openmetrics(paged: MeterProvider, reader: PageReader):
    """With negative buckets the sum is no counter: OpenMetrics has the buckets alone, the text format everything."""
    paged.instrument(PREDICTION_VALUES).record(-2.5, {"model_version": "1"})
    page = check_page(reader)
    assert page.value("prediction_values_sum", model_version="1") == -2.5
    assert page.value("prediction_values_count", model_version="1") == 1.0
    assert "prediction_values_bucket" in page.openmetrics
    assert "prediction_values_sum" not in page.openmetrics


def test_a_sum_below_zero_is_left_out_of_openmetrics(open_provider: OpenProvider, reader: PageReader):
    """A view may give a signed histogram buckets without a negative one; its negative sum stays in the text format."""
    view = View(instrument_name="prediction.values", aggregation=ExplicitBucketHistogramAggregation([0.0, 1.0]))
    provider = open_provider(metric_readers=[reader], views=[view])
    handle = provider.instrument(PREDICTION_VALUES).bind({"model_version": "1"})
    handle.record(-2.5)
    page = check_page(reader)
    assert page.value("prediction_values_sum", model_version="1") == -2.5
    assert "prediction_values_sum" not in page.openmetrics
    handle.record(10)
    assert "prediction_values_sum" in check_page(reader).openmetrics


# --- Exemplars ----------------------------------------------------------------------------------------------


@pytest.fixture
def in_span() -> Callable[..., None]:
    """Runs something in a span that is sampled, or not."""

    def run(number: int, call: Callable[[], None], *, sampled: bool = True) -> None:
        flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        span = NonRecordingSpan(SpanContext(number, number, False, flags))
        token = otel_context.attach(trace.set_span_in_context(span))
        try:
            call()
        finally:
            otel_context.detach(token)

    return run


def exemplars(page: str, name: str) -> dict[str, tuple[str, float]]:
    """The trace and value of each exemplar of a histogram, by the bucket's bound."""
    return {
        sample.labels["le"]: (sample.exemplar.labels.get("trace_id", "").lstrip("0"), sample.exemplar.value)
        for family in openmetrics_parser.text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == f"{name}_bucket" and sample.exemplar
    }


def test_exemplars_stay_until_they_are_replaced(paged: MeterProvider, reader: PageReader, in_span: Any):
    """OpenMetrics names the last sampled span of each bucket, on every page, after flushes too."""
    handle = paged.instrument(API_REQUEST_DURATION).bind({"method": "GET", "endpoint": "/"})
    in_span(0xA, lambda: handle.record(0.003))
    in_span(0xB, lambda: handle.record(0.3))
    in_span(0xC, lambda: handle.record(0.3), sampled=False)
    handle.record(0.3)
    paged.force_flush()
    for _ in range(3):
        page = check_page(reader)
        assert exemplars(page.openmetrics, "api_request_duration_seconds") == {"0.005": ("a", 0.003), "0.5": ("b", 0.3)}
        assert " # {" not in page.text
    in_span(0xD, lambda: paged.instrument(API_REQUEST_DURATION).record(0.4, {"method": "GET", "endpoint": "/"}))
    page = check_page(reader)
    assert exemplars(page.openmetrics, "api_request_duration_seconds")["0.5"] == ("d", 0.4)


@pytest.mark.parametrize(
    ("exemplar_filter", "wanted"),
    [
        (sdk.AlwaysOnExemplarFilter, {"1.0": ("", 0.5), "5.0": ("e", 2.0), "+Inf": ("f", 9.0)}),
        (sdk.AlwaysOffExemplarFilter, {}),
        (sdk.TraceBasedExemplarFilter, {"5.0": ("e", 2.0)}),
    ],
)
def test_the_filter_says_which_values_are_exemplars(
    open_provider: OpenProvider, reader: PageReader, in_span: Any, exemplar_filter: Any, wanted: dict[str, Any]
):
    """Always, never, or in sampled spans: without a span an exemplar has no ids."""
    provider = open_provider(metric_readers=[reader], exemplar_filter=exemplar_filter())
    histogram = meter_of(provider).create_histogram("h", explicit_bucket_boundaries_advisory=[1.0, 5.0])
    histogram.record(0.5)
    in_span(0xE, lambda: histogram.record(2.0))
    in_span(0xF, lambda: histogram.record(9.0), sampled=False)
    assert exemplars(check_page(reader).openmetrics, "h") == wanted


def test_the_newest_exemplar_of_two_series_in_one_is_shown(paged: MeterProvider, reader: PageReader, in_span: Any):
    """Where two libraries' histograms are one series on the page, the newer exemplar of each bucket stands there."""
    histograms = [meter_of(paged, name).create_histogram("h") for name in "ab"]
    in_span(0xA, lambda: histograms[1].record(3))
    in_span(0xB, lambda: histograms[0].record(4))
    in_span(0xC, lambda: histograms[1].record(99))
    assert exemplars(check_page(reader).openmetrics, "h") == {"5.0": ("b", 4.0), "100.0": ("c", 99.0)}


def test_a_forgotten_series_has_no_exemplar_left(paged: MeterProvider, reader: PageReader, in_span: Any):
    """After forgetting, a series begins without exemplars."""
    histogram = meter_of(paged).create_histogram("h")
    in_span(0xA, lambda: histogram.record(3))
    assert exemplars(check_page(reader).openmetrics, "h") == {"5.0": ("a", 3.0)}
    histogram.forget()
    histogram.record(3)
    assert exemplars(check_page(reader).openmetrics, "h") == {}


def test_a_span_of_somebody_elses_making_breaks_no_record(paged: MeterProvider, reader: PageReader):
    """A current span whose context cannot be read costs the exemplar and nothing else."""

    class Broken(NonRecordingSpan):
        def get_span_context(self) -> SpanContext:
            raise RuntimeError("no context")

    span = Broken(SpanContext(1, 1, False, TraceFlags(TraceFlags.SAMPLED)))
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        meter_of(paged).create_histogram("h").record(3)
    finally:
        otel_context.detach(token)
    assert check_page(reader).value("h_count") == 1.0


# --- A registry shared with the host ------------------------------------------------------------------------


@pytest.fixture
def registry() -> CollectorRegistry:
    """The host's registry."""
    return CollectorRegistry()


@pytest.fixture
def shared(open_provider: OpenProvider, registry: CollectorRegistry) -> tuple[MeterProvider, PageReader]:
    """A provider whose page takes in the host's registry, and is in it."""
    reader = PageReader(registry=registry)
    return open_provider(metric_readers=[reader]), reader


def test_the_hosts_metrics_are_on_our_page_and_ours_on_the_hosts(
    shared: tuple[MeterProvider, PageReader], registry: CollectorRegistry
):
    """Whichever page is scraped has the metrics of both, once, in both formats."""
    provider, reader = shared
    Counter("host_jobs", "Jobs.", ["kind"], registry=registry).labels("a").inc(3)
    Info("host", "Host.", registry=registry).info({"version": "1"})
    Histogram("host_seconds", "Time.", registry=registry).observe(0.3)
    meter_of(provider).create_counter("ours").add(2, {"x": "y"})
    meter_of(provider).create_histogram("ours.time", "s").record(7)
    meter_of(provider).create_observable_gauge("ours.observed", [lambda _: [Observation(4)]])
    provider.instrument(MODEL_INFO).set(1, {"model_version": "1"})
    hosts = check_text(generate_latest(registry).decode(), generate_openmetrics(registry).decode())
    for page in (check_page(reader), hosts):
        assert page.value("host_jobs_total", kind="a") == 3.0
        assert page.value("host_info", version="1") == 1.0
        assert page.value("host_seconds_count") == 1.0
        assert page.value("ours_total", x="y") == 2.0
        assert (page.value("ours_time_seconds_sum"), page.value("ours_time_seconds_bucket", le="10.0")) == (7.0, 1.0)
        assert page.value("ours_observed") == 4.0
        assert page.value("model_info", model_version="1") == 1.0


def test_exemplars_are_on_the_hosts_page_too(
    shared: tuple[MeterProvider, PageReader], registry: CollectorRegistry, in_span: Any
):
    """Through the host's registry OpenMetrics has our exemplars."""
    provider, _ = shared
    in_span(0xA, lambda: meter_of(provider).create_histogram("h").record(3))
    assert exemplars(generate_openmetrics(registry).decode(), "h") == {"5.0": ("a", 3.0)}


@pytest.mark.parametrize("clash", ["ours", "ours_total", "ours_created", "h_bucket"])
def test_a_host_metric_whose_name_we_have_is_left_out(
    shared: tuple[MeterProvider, PageReader],
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    clash: str,
):
    """On our page our metrics have their names; the host's other metrics stay, and the clash is said once."""
    provider, reader = shared
    meter_of(provider).create_counter("ours").add(2)
    meter_of(provider).create_histogram("h").record(2)
    Gauge(clash, "Mine.", registry=registry).set(9)
    Gauge("other", "Mine.", registry=registry).set(7)
    for _ in range(2):
        page = check_page(reader)
        assert (page.value("ours_total"), page.value("other")) == (2.0, 7.0)
        assert 9.0 not in page.of(clash).values()
    assert len(says(caplog)) == 1


class Machine:
    """A collector of the host that says what it has, as prometheus_client's own do in its default registry."""

    def collect(self) -> Iterator[Any]:
        """A metric of a name that we have, and one of its own."""
        yield CounterMetricFamily("ours", "Mine.", value=9)
        yield GaugeMetricFamily("machine", "Mine.", value=7)


@pytest.mark.parametrize("unnamed", [False, True])
def test_on_each_page_a_name_is_its_owners(
    open_provider: OpenProvider, caplog: pytest.LogCaptureFixture, unnamed: bool
):
    """What both have is ours on our page and the host's on the host's, so both are valid, and each is said once."""
    registry = CollectorRegistry(auto_describe=True, support_collectors_without_names=unnamed)
    registry.register(Machine())
    reader = PageReader(registry=registry)
    meter = meter_of(open_provider(metric_readers=[reader]))
    meter.create_counter("ours").add(2, {"worker": "0"})
    meter.create_counter("others").add(3)
    for _ in range(2):
        mine = check_page(reader)
        hosts = check_text(generate_latest(registry).decode(), generate_openmetrics(registry).decode())
        assert mine.of("ours_total") == {frozenset({("worker", "0")}): 2.0}
        assert hosts.of("ours_total") == {frozenset(): 9.0}
        for page in (mine, hosts):
            assert (page.value("others_total"), page.value("machine")) == (3.0, 7.0)
    assert len(says(caplog)) == 2


def test_a_registry_that_does_not_say_what_it_has_gets_all_of_ours(caplog: pytest.LogCaptureFixture):
    """Where somebody's own kind of registry cannot be asked our metrics are in it, and that is said once."""

    class Registry(CollectorRegistry):
        def restricted_registry(self, names: Any) -> Any:
            raise NotImplementedError("ask somebody else")

    registry = Registry()
    provider = MeterProvider([PageReader(registry=registry)], shutdown_on_exit=False)
    meter_of(provider).create_counter("ours").add(2)
    for _ in range(2):
        assert b"ours_total 2.0" in generate_latest(registry)
    assert len(says(caplog)) == 1
    provider.shutdown()


class Broken:
    """A collector of the host that fails after its first metric."""

    def collect(self) -> Iterator[Any]:
        """One metric, and an error."""
        yield GaugeMetricFamily("broken_first", "Fine.", value=1)
        raise RuntimeError("no database")


def test_a_collector_of_the_host_that_fails_costs_only_itself_and_what_follows(
    shared: tuple[MeterProvider, PageReader], registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
):
    """Our page is made whatever the host's collectors do; what they gave before stays, and it is said once."""
    provider, reader = shared
    meter_of(provider).create_counter("ours").add(2)
    registry.register(Broken())
    for _ in range(2):
        page = check_page(reader)
        assert (page.value("ours_total"), page.value("broken_first")) == (2.0, 1.0)
    assert [message for message in says(caplog) if "no database" in message] == says(caplog)
    assert len(says(caplog)) == 1


def test_a_host_metric_that_cannot_be_written_is_left_out(
    shared: tuple[MeterProvider, PageReader], registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
):
    """A value of the host's that is no number costs the host's part of the page, not ours."""

    class Wrong:
        def collect(self) -> Iterator[Any]:
            family = CounterMetricFamily("wrong", "Wrong.", labels=["a"])
            family.add_metric([object()], "no number")
            yield family

    provider, reader = shared
    meter_of(provider).create_counter("ours").add(2)
    registry.register(Wrong())
    assert "ours_total 2.0" in text_of(reader)
    assert text_of(reader, "application/openmetrics-text").endswith("# EOF\n")
    assert any("could not be rendered" in message for message in says(caplog))


def test_two_pages_in_one_registry_are_not_doubled(open_provider: OpenProvider, registry: CollectorRegistry):
    """Two providers in one registry make valid pages: names of the other that are taken are left out."""
    readers = [PageReader(registry=registry), PageReader(registry=registry)]
    for number, reader in enumerate(readers):
        provider = open_provider(metric_readers=[reader])
        meter_of(provider).create_counter("same").add(number + 1)
        meter_of(provider).create_counter(f"own{number}").add(1)
    for number, reader in enumerate(readers):
        page = check_page(reader)
        assert page.value("same_total") == number + 1
        assert page.value("own0_total") == page.value("own1_total") == 1.0


def test_after_shutdown_it_has_left_the_registry(registry: CollectorRegistry):
    """Shutting a reader or its provider down, once or twice, takes it out of the host's registry."""
    reader = PageReader(registry=registry)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter_of(provider).create_counter("ours").add(1)
    Counter("host_jobs", "Jobs.", registry=registry)
    reader.shutdown()
    reader.shutdown()
    provider.shutdown()
    provider.shutdown()
    assert b"ours" not in generate_latest(registry)
    assert b"host_jobs" in generate_latest(registry)
    assert b"host_jobs" not in reader.page().body
    assert b"ours_total 1.0" in reader.page().body


# --- Which format -------------------------------------------------------------------------------------------

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
ACCEPTS = [
    (None, TEXT), ("", TEXT), ("*/*", TEXT), ("text/plain", TEXT), ("text/html,application/xhtml+xml", TEXT),
    ("application/openmetrics-text", OPENMETRICS), (PROMETHEUS, OPENMETRICS),
    ("application/openmetrics-text; version=1.0.0; charset=utf-8", OPENMETRICS),
    ("APPLICATION/OpenMetrics-Text;Version=1.0.0", OPENMETRICS),
    ("application/openmetrics-text;q=0.5,text/plain;q=0.5", OPENMETRICS),
    ("application/openmetrics-text;q=0.4,text/plain;q=0.5", TEXT),
    ("text/plain;q=0.1,application/openmetrics-text;q=0.2", OPENMETRICS),
    ("application/openmetrics-text;q=0", TEXT), ("application/openmetrics-text;q=0,*/*", TEXT),
    ("application/openmetrics-text;version=0.0.1", TEXT), ("application/openmetrics-text;version=2.0.0", TEXT),
    ("application/openmetrics-text;q=high", TEXT), ("application/openmetrics-text;q=nan", TEXT),
    ("application/openmetrics-text;q=-1", TEXT), ("application/openmetrics-text;q=", TEXT),
    (";;;,,,=;q=;", TEXT), ("application/openmetrics-text" + ",x/y" * 100_000, OPENMETRICS),
    ("x/y," * 100_000 + "application/openmetrics-text", TEXT),
]  # fmt: skip


@pytest.mark.parametrize(("accept", "wanted"), ACCEPTS, ids=range(len(ACCEPTS)))
def test_the_format_is_the_one_that_is_asked_for(accept: str | None, wanted: str):
    """OpenMetrics is for whoever prefers it, by quality and version; everybody else gets the text format."""
    assert choose_format(accept) == wanted


@settings(max_examples=200)
@given(accept=st.text(alphabet=st.sampled_from("aq=;,/*.0 1-\x00é"), max_size=60) | st.text())
def test_any_accept_header_has_an_answer(accept: str):
    """No header makes an error."""
    assert choose_format(accept) in (TEXT, OPENMETRICS)


# --- What is kept from page to page -------------------------------------------------------------------------


def test_pages_follow_what_is_recorded(paged: MeterProvider, reader: PageReader):
    """Text that is kept from the last page is never stale: values, new series, forgotten ones, in both formats."""
    meter = meter_of(paged)
    counter, histogram = meter.create_counter("c"), meter.create_histogram("h")
    handles = [counter.bind({"n": number}) for number in range(5)]
    for round_ in range(1, 6):
        for handle in handles[:round_]:
            handle.add(1)
        histogram.record(round_)
        page = check_page(reader)
        assert page.of("c_total") == {frozenset({("n", str(n))}): float(round_ - n) for n in range(round_)}
        assert page.value("h_count") == round_
    counter.forget({"n": 0})
    assert len(check_page(reader).of("c_total")) == 4
    counter.forget()
    assert "c" not in check_page(reader).types
    handles[0].add(1)
    assert check_page(reader).of("c_total") == {frozenset({("n", "0")}): 1.0}


def test_only_what_has_changed_is_written_again(
    paged: MeterProvider, reader: PageReader, monkeypatch: pytest.MonkeyPatch
):
    """A series whose numbers are the same is not rendered again."""
    handles = [meter_of(paged).create_histogram("h").bind({"n": number}) for number in range(20)]
    for handle in handles:
        handle.record(1)
    reader.page()
    written: list[str] = []
    from otel_mlops.sdk.text import HistogramLines

    write = HistogramLines.write

    def counted(self: HistogramLines, values: Any) -> str:
        written.append(self.pairs.get("n", ""))
        return write(self, values)

    monkeypatch.setattr(HistogramLines, "write", counted)
    handles[7].record(1)
    reader.page()
    assert [each for each in written if each] == ["7"]


def test_a_family_that_cannot_be_written_is_left_out(
    paged: MeterProvider, reader: PageReader, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
):
    """An error in one family costs that family on this page, and is said once."""
    meter_of(paged).create_counter("good").add(1)
    meter_of(paged).create_counter("bad").add(1)
    write = Family.write

    def fail(self: Family, *, openmetrics: bool) -> list[bytes]:
        if self.name == "bad":
            raise RuntimeError("no text")
        return write(self, openmetrics=openmetrics)

    monkeypatch.setattr(Family, "write", fail)
    page = check_page(reader)
    assert (page.value("good_total"), page.value("bad_total")) == (1.0, None)


def test_a_collection_that_fails_costs_only_what_is_observed(
    paged: MeterProvider, reader: PageReader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Where the SDK fails to collect observables, the rest of the page is there, and it is said once."""
    meter_of(paged).create_counter("c").add(1)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no storage")

    monkeypatch.setattr(paged._consumer, "observe", fail)
    for _ in range(2):
        assert "c_total 1.0" in text_of(reader)
    assert says(caplog) == ["page: observable instruments could not be read: RuntimeError('no storage')"]


def test_the_names_of_the_catalogue_are_kept_for_it(paged, reader, caplog):
    """A gauge of the program's that would be `errors` is left out, although it came before our counter."""
    paged.get_meter("shop").create_gauge("errors").set(3)
    reader.page()
    paged.instrument(ERRORS).add(1, {"error_type": "ValueError", "endpoint": "/predict"})
    page = check_page(reader)
    assert page.value("errors_total", error_type="ValueError", endpoint="/predict") == 1
    assert page.value("errors") is None
    assert "errors (gauge) is left out: its name on the page belongs to errors" in caplog.text
