"""The provider: OpenTelemetry's in every way its users look at it, and never in the way of the service."""

from __future__ import annotations

import atexit
import itertools
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics as api
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    LastValueAggregation,
    SumAggregation,
    View,
)

from otel_mlops.metrics import API_REQUEST_DURATION, CATALOGUE, MODEL_STATUS, PREDICTIONS
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.sdk.records import EXEMPLARS, SERIES, STREAM, read_ledger
from tests.sdk.folder import Folder

OpenProvider = Callable[..., MeterProvider]
DELTA = AggregationTemporality.DELTA


def metrics_of(data: MetricsData | None) -> dict[str, Any]:
    """Metrics by name, those about ourselves aside."""
    return {
        metric.name: metric
        for of_resource in (data.resource_metrics if data else ())
        for of_scope in of_resource.scope_metrics
        if of_scope.scope.name != "otel_mlops"
        for metric in of_scope.metrics
    }


class Reader(MetricReader):
    """A reader that does what a test wants when it is flushed and shut down."""

    def __init__(self, do: Callable[[str], object] = lambda _: None) -> None:
        super().__init__()
        self.do = do
        self.calls: list[str] = []

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Say that it was flushed."""
        self.calls.append("force_flush")
        return self.do("force_flush") is not False

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        """Say that it was shut down."""
        self.calls.append("shutdown")
        self.do("shutdown")

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> None:
        """Nothing is kept."""


# --- Being OpenTelemetry's ----------------------------------------------------------------------------------


def test_it_is_a_meter_provider_of_the_sdk(provider: MeterProvider):
    """Provider, meters and instruments are instances of the SDK's and the API's public classes."""
    meter = provider.get_meter("m")
    assert isinstance(provider, sdk.MeterProvider)
    assert isinstance(meter, sdk.Meter)
    for made, classes in (
        (meter.create_counter("c"), (sdk.Counter, api.Counter)),
        (meter.create_up_down_counter("u"), (sdk.UpDownCounter, api.UpDownCounter)),
        (meter.create_histogram("h"), (sdk.Histogram, api.Histogram)),
        (meter.create_gauge("g"), (sdk._Gauge, api._Gauge)),
        (meter.create_observable_counter("oc"), (sdk.ObservableCounter, api.ObservableCounter)),
        (meter.create_observable_gauge("og"), (sdk.ObservableGauge, api.ObservableGauge)),
    ):
        assert all(isinstance(made, each) for each in classes)


@pytest.mark.parametrize("public", [sdk.Counter, api.Counter, api.Instrument, sdk.Histogram, sdk._Gauge])
def test_views_select_by_the_sdks_public_classes(open_provider: OpenProvider, public: type[Any]):
    """A View(instrument_type=...) finds our instruments by any class that they are."""
    provider = open_provider(views=[View(instrument_type=public, name="selected")])
    meter = provider.get_meter("m")
    every = [meter.create_counter("c"), meter.create_histogram("h"), meter.create_gauge("g")]
    assert [isinstance(each, public) for each in every] == [each.name == "selected" for each in provider.streams()]


def test_the_same_identity_is_the_same_object(provider: MeterProvider):
    """Meters and instruments are made once for each identity, names without regard to case and spaces around."""
    meter = provider.get_meter("m", "1", "https://schema/1", {"a": 1})
    assert provider.get_meter("m", "1", "https://schema/1", {"a": 1}) is meter
    assert provider.get_meter("m", "1") is not meter
    assert meter.create_counter("c", "s", "d") is meter.create_counter("C", "s", "d")
    assert meter.create_counter("c", "s", "d") is not meter.create_counter("c", "s", "other")
    assert meter.create_counter("c") is not meter.create_up_down_counter("c")
    assert provider.instrument(PREDICTIONS) is provider.instrument(PREDICTIONS)
    assert len(provider.streams()) == 5


def test_every_row_has_an_instrument(provider: MeterProvider):
    """Each row of the catalogue gives the instrument of its kind, with its name, unit, help and buckets."""
    verbs = {"counter": "add", "updown": "add", "histogram": "record", "gauge": "set", "info": "set", "stateset": "set"}
    for row in CATALOGUE:
        instrument = provider.instrument(row)
        getattr(instrument.bind(dict.fromkeys(row.attributes, "x")), verbs[row.kind])(1)
        (stream,) = [each for each in provider.streams() if each.row is row]
        assert (stream.name, stream.unit, stream.description) == (row.name, row.unit, row.help)
        assert stream.bounds == row.buckets
        assert [dict(attributes) for attributes, _ in provider.totals(row)] == [dict.fromkeys(row.attributes, "x")]


def test_the_totals_of_a_row_are_values_or_counts(provider: MeterProvider):
    """totals() gives a counter's value and a histogram's count, and nothing of metrics that were not recorded."""
    provider.instrument(PREDICTIONS).add(3, {"model_version": "1"})
    provider.instrument(API_REQUEST_DURATION).bind({"method": "GET"}).record_many([0.1, 2.0, 99.0])
    assert provider.totals(PREDICTIONS) == [({"model_version": "1"}, 3.0)]
    assert provider.totals(API_REQUEST_DURATION) == [({"method": "GET"}, 3.0)]
    assert provider.totals(MODEL_STATUS) == []


def test_a_second_histogram_with_other_bounds_keeps_the_first_ones(
    provider: MeterProvider, caplog: pytest.LogCaptureFixture
):
    """The same histogram asked for with other bounds is the first one, and a warning."""
    meter = provider.get_meter("m")
    first = meter.create_histogram("h", explicit_bucket_boundaries_advisory=[1, 2])
    assert meter.create_histogram("h", explicit_bucket_boundaries_advisory=[1, 2]) is first
    assert not caplog.records
    assert meter.create_histogram("h", explicit_bucket_boundaries_advisory=[3]) is first
    assert "other bucket bounds" in caplog.text
    assert provider.streams()[0].bounds == (1.0, 2.0)


def test_the_ledger_describes_itself(open_provider: OpenProvider, tmp_path: Path):
    """Whoever reads the file finds what each metric is, once, before the series of it."""
    provider = open_provider(ledger=Ledger(Folder(lambda: tmp_path)))
    handle = provider.instrument(API_REQUEST_DURATION).bind({"method": "GET", "endpoint": "/"})
    provider.get_meter("lib", "2", "https://schema/1").create_counter("c", "By", "Bytes.").add(5, {"n": 1, "b": b"x"})
    handle.record(0.3)
    handle.record(0.3)
    assert provider.ledger.path is not None
    found = read_ledger(provider.ledger.path)
    assert [each.kind for each in found] == [STREAM, SERIES, STREAM, SERIES]
    counter, of_counter, histogram, of_histogram = (each.description for each in found)
    assert counter == {
        "number": 1, "name": "c", "unit": "By", "description": "Bytes.", "kind": "counter", "rule": "sum",
        "shown": "counter", "observed": False, "states": [], "subject": None, "bounds": [], "size": 1,
        "scope": ["lib", "2", "https://schema/1"],
    }  # fmt: skip
    assert of_counter[:2] == [1, [["n", 1], ["b", b"x"]]]
    assert (histogram["name"], histogram["rule"], histogram["bounds"]) == (
        "api.request.duration", "sum", list(API_REQUEST_DURATION.buckets),
    )  # fmt: skip
    assert of_histogram[:2] == [2, [["method", "GET"], ["endpoint", "/"]]]
    assert found[3].cells[-1] == 0.6
    assert abs(of_histogram[2] - time.time_ns()) < 60e9


def test_the_ledger_says_whose_exemplars_are_whose(open_provider: OpenProvider, tmp_path: Path):
    """Exemplars lie in the file beside their series, named as it is, and go with it when it is forgotten."""
    ledger = Ledger(Folder(lambda: tmp_path))
    provider = open_provider(ledger=ledger, exemplar_filter=sdk.AlwaysOnExemplarFilter())
    histogram = provider.get_meter("m").create_histogram("h", explicit_bucket_boundaries_advisory=[1.0])
    for number in range(2):
        histogram.record(0.5, {"n": number})
    assert ledger.path is not None
    kept = {
        kind: [r.description[:2] for r in read_ledger(ledger.path) if r.kind == kind] for kind in (SERIES, EXEMPLARS)
    }
    assert kept[EXEMPLARS] == kept[SERIES] == [[1, [["n", 0]]], [1, [["n", 1]]]]
    histogram.forget({"n": 0})
    kept = {
        kind: [r.description[:2] for r in read_ledger(ledger.path) if r.kind == kind] for kind in (SERIES, EXEMPLARS)
    }
    assert kept[EXEMPLARS] == kept[SERIES] == [[1, [["n", 1]]]]


# --- Mistakes at the start ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [[2, 1], [1, 1], [math.nan], [1, math.inf], ["a"], [None], [10**400], 5])
def test_bad_bounds_are_an_error_at_the_start(provider: MeterProvider, bounds: Any):
    """Bounds that are not finite numbers in rising order are refused when the histogram is created."""
    with pytest.raises(ValueError, match="explicit_bucket_boundaries_advisory must be finite numbers in rising order"):
        provider.get_meter("m").create_histogram("h", explicit_bucket_boundaries_advisory=bounds)
    assert provider.streams() == []


@pytest.mark.parametrize(
    "aggregation", [SumAggregation(), LastValueAggregation(), ExponentialBucketHistogramAggregation()]
)
def test_a_view_that_cannot_be_honoured_is_an_error(open_provider: OpenProvider, aggregation: Any):
    """A view with another aggregation than buckets or none is refused, not ignored."""
    with pytest.raises(ValueError, match=f"views: {type(aggregation).__name__} cannot be honoured"):
        open_provider(views=[View(instrument_name="*", aggregation=aggregation)])


def test_a_view_with_bad_buckets_is_an_error(open_provider: OpenProvider):
    """Bounds of a view are checked at the start as well."""
    with pytest.raises(ValueError, match="rising order"):
        open_provider(views=[View(instrument_name="*", aggregation=ExplicitBucketHistogramAggregation([2, 1]))])


def test_an_unknown_exemplar_filter_is_an_error(open_provider: OpenProvider):
    """A filter that is none of the SDK's three is refused with the names of those."""

    class Mine(sdk.ExemplarFilter):
        def should_sample(self, *_: Any) -> bool:
            return True

    hooks = atexit._ncallbacks()
    with pytest.raises(ValueError, match=r"exemplar_filter must be .* \['always_off', 'always_on', 'trace_based'\]"):
        MeterProvider(exemplar_filter=Mine())
    assert atexit._ncallbacks() == hooks


def test_a_reader_of_another_provider_is_an_error(open_provider: OpenProvider):
    """A reader that is given to a second provider would read the first: it is refused."""
    reader = InMemoryMetricReader()
    open_provider(metric_readers=[reader])
    with pytest.raises(ValueError, match="belongs to a provider already"):
        open_provider(metric_readers=[reader])


def test_a_view_of_buckets_leaves_other_kinds_as_they_are(
    open_provider: OpenProvider, caplog: pytest.LogCaptureFixture
):
    """A counter that a view wants as a histogram stays a counter, and it is said."""
    provider = open_provider(views=[View(instrument_name="*", aggregation=ExplicitBucketHistogramAggregation([1, 2]))])
    meter = provider.get_meter("m")
    meter.create_counter("c").add(1)
    meter.create_histogram("h").record(1)
    assert [(each.kind, each.bounds) for each in provider.streams()] == [("counter", ()), ("histogram", (1.0, 2.0))]
    assert "only a histogram has buckets" in caplog.text


def test_a_dropping_view_beside_another_leaves_the_other(open_provider: OpenProvider):
    """Of two views that select an instrument, one that drops takes only itself away."""
    views = [View(instrument_name="c", aggregation=DropAggregation()), View(instrument_name="c", name="kept")]
    provider = open_provider(views=views)
    provider.get_meter("m").create_counter("c").add(1)
    assert [each.name for each in provider.streams()] == ["kept"]


# --- Readers ------------------------------------------------------------------------------------------------


def test_a_reader_that_wants_something_else_is_told(open_provider: OpenProvider, caplog: pytest.LogCaptureFixture):
    """A reader that asks for exponential histograms or other aggregations gets what there is, and a warning."""
    wanted = {sdk.Histogram: ExponentialBucketHistogramAggregation(), sdk.Counter: LastValueAggregation()}
    reader = InMemoryMetricReader(preferred_aggregation=wanted)
    provider = open_provider(metric_readers=[reader])
    provider.get_meter("m").create_histogram("h").record(1)
    said = [record.getMessage() for record in caplog.records]
    assert [message.split(",")[0] for message in said] == [
        "InMemoryMetricReader asks for the LastValueAggregation of a counter",
        "InMemoryMetricReader asks for the ExponentialBucketHistogramAggregation of a histogram",
    ]
    (point,) = metrics_of(reader.get_metrics_data())["h"].data.data_points
    assert point.explicit_bounds[:3] == (0.0, 5.0, 10.0)


def test_a_reader_that_wants_buckets_as_they_are_is_not_told(
    open_provider: OpenProvider, caplog: pytest.LogCaptureFixture
):
    """What OTLP exporters ask for by default is what there is."""
    preference = {sdk.Histogram: ExplicitBucketHistogramAggregation()}
    open_provider(metric_readers=[InMemoryMetricReader(preferred_aggregation=preference), PageReader()])
    assert not caplog.records


def test_times_of_points(open_provider: OpenProvider):
    """Totals begin when a series was first recorded; differences where the last collection ended."""
    classes = [sdk.Counter, sdk.Histogram]
    readers = [InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=dict.fromkeys(classes, DELTA))]
    provider = open_provider(metric_readers=readers)
    counter, gauge = provider.get_meter("m").create_counter("c"), provider.get_meter("m").create_gauge("g")
    began = time.time_ns()
    counter.add(1)
    gauge.set(1)
    times: list[list[tuple[int, int]]] = [[], []]
    for _ in range(3):
        for reader, found in zip(readers, times, strict=True):
            metrics = metrics_of(reader.get_metrics_data())
            (point,) = metrics["c"].data.data_points
            found.append((point.start_time_unix_nano, point.time_unix_nano))
            assert all(each.start_time_unix_nano is None for each in metrics["g"].data.data_points)
        counter.add(1)
        gauge.set(1)
    totals, differences = times
    assert began <= totals[0][0] <= totals[0][1]
    assert {start for start, _ in totals} == {totals[0][0]}
    assert differences[0][0] == totals[0][0]
    assert [start for start, _ in differences[1:]] == [end for _, end in differences[:-1]]


def test_readers_come_and_go(provider: MeterProvider, caplog: pytest.LogCaptureFixture):
    """A reader that is added sees everything, twice is a warning, and one that is removed is shut down."""
    counter = provider.get_meter("m").create_counter("c")
    counter.add(5)
    early, late = Reader(), InMemoryMetricReader()
    provider.add_metric_reader(early)
    provider.add_metric_reader(late)
    assert metrics_of(late.get_metrics_data())["c"].data.data_points[0].value == 5.0
    provider.add_metric_reader(late)
    assert "registered already" in caplog.text
    provider.remove_metric_reader(early)
    assert early.calls == ["shutdown"]
    assert provider.force_flush()
    assert early.calls == ["shutdown"]
    late.get_metrics_data()
    provider.remove_metric_reader(late)
    assert late.get_metrics_data() is None
    provider.remove_metric_reader(late)  # a second time is nothing


def test_readings_beside_records_never_go_back(provider: MeterProvider):
    """A reader that collects while threads record sees sums that only grow and histograms that add up."""
    reader = InMemoryMetricReader()
    provider.add_metric_reader(reader)
    counter, histogram = provider.get_meter("m").create_counter("c"), provider.get_meter("m").create_histogram("h")
    done = threading.Event()

    def record() -> None:
        for number in itertools.count():
            counter.add(1)
            histogram.record(number % 20, {"n": number % 3})
            if done.is_set():
                return

    threads = [threading.Thread(target=record) for _ in range(2)]
    for thread in threads:
        thread.start()
    seen, counts = 0.0, [0] * 3
    for _ in range(60):
        metrics = metrics_of(reader.get_metrics_data())
        if "c" in metrics:
            (point,) = metrics["c"].data.data_points
            assert point.value >= seen
            seen = point.value
        for point in metrics["h"].data.data_points if "h" in metrics else ():
            assert point.count == sum(point.bucket_counts) >= counts[point.attributes["n"]]
            counts[point.attributes["n"]] = point.count
    done.set()
    for thread in threads:
        thread.join()
    assert seen > 0


# --- Flushing and the end -----------------------------------------------------------------------------------


def test_readers_are_flushed_and_shut_down_once(open_provider: OpenProvider, caplog: pytest.LogCaptureFixture):
    """Every reader, added later too, is flushed each time and shut down once, whatever is called how often."""
    readers = [Reader(), Reader()]
    provider = open_provider(metric_readers=readers[:1])
    provider.add_metric_reader(readers[1])
    assert provider.force_flush()
    assert provider.force_flush()
    provider.shutdown()
    provider.shutdown()
    assert [each.calls for each in readers] == [["force_flush", "force_flush", "shutdown"]] * 2
    assert not caplog.records


def test_a_reader_that_fails_holds_nobody_up(open_provider: OpenProvider, caplog: pytest.LogCaptureFixture):
    """What one reader raises is logged, the others are called all the same, and nothing is raised."""

    def fail(_: str) -> None:
        raise RuntimeError("the backend is down")

    readers = [Reader(fail), Reader()]
    provider = open_provider(metric_readers=readers)
    assert provider.force_flush() is False
    provider.shutdown()
    assert readers[1].calls == ["force_flush", "shutdown"]
    assert caplog.text.count("the backend is down") >= 2


def test_a_reader_that_says_no_is_not_flushed(open_provider: OpenProvider):
    """A flush that a reader reports as failed is reported as failed."""
    provider = open_provider(metric_readers=[Reader(lambda verb: verb != "force_flush"), Reader()])
    assert provider.force_flush() is False


def test_a_reader_that_hangs_is_left_behind(open_provider: OpenProvider, tmp_path: Path):
    """Flush and shutdown come back in their time, though a reader never does, and the ledger is removed."""
    release = threading.Event()
    readers = [Reader(lambda _: release.wait(60)), Reader()]
    provider = open_provider(metric_readers=readers, ledger=Ledger(Folder(lambda: tmp_path)))
    provider.get_meter("m").create_counter("c").add(1)
    started = time.monotonic()
    assert provider.force_flush(timeout_millis=100) is False
    provider.shutdown(timeout_millis=100)
    assert time.monotonic() - started < 20
    assert readers[1].calls == ["force_flush", "shutdown"]
    assert list(tmp_path.iterdir()) == []
    release.set()


def test_the_end_of_the_interpreter_flushes_without_threads(
    open_provider: OpenProvider, monkeypatch: pytest.MonkeyPatch
):
    """Where no thread can be started any more, as at the exit of Python 3.12 and later, readers are called in turn."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    readers = [Reader(), Reader()]
    provider = open_provider(metric_readers=readers)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert provider.force_flush()
    provider.shutdown()
    assert [each.calls for each in readers] == [["force_flush", "shutdown"]] * 2


ENDS = """
import sys
from pathlib import Path
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from otel_mlops.sdk.ledger import Ledger
from tests.sdk.folder import Folder
from otel_mlops.sdk.provider import MeterProvider
reader = PeriodicExportingMetricReader(ConsoleMetricExporter(), export_interval_millis=3_600_000)
provider = MeterProvider([reader], ledger=Ledger(Folder(lambda: Path(sys.argv[1]))))
provider.get_meter("m").create_counter("exported_at_exit").add(1)
assert provider.ledger.path.exists()
"""


def test_at_exit_what_was_counted_is_exported_and_the_ledger_removed(tmp_path: Path):
    """A process that ends without a word exports what it has, and leaves no file."""
    ended = subprocess.run(
        [sys.executable, "-c", ENDS, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert '"exported_at_exit"' in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_after_shutdown_a_meter_records_nothing_and_says_so(
    open_provider: OpenProvider, caplog: pytest.LogCaptureFixture
):
    """A provider that is shut down gives meters that do nothing."""
    provider = open_provider()
    provider.shutdown()
    provider.get_meter("late").create_counter("c").add(1)
    assert provider.streams() == []
    assert "shut down" in caplog.text


def test_the_sdks_own_metrics_work_on_it(monkeypatch: pytest.MonkeyPatch, open_provider: OpenProvider):
    """With OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED a reader's own metrics are ours like any other."""
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    reader = InMemoryMetricReader()
    provider = open_provider(metric_readers=[reader])
    provider.get_meter("m").create_counter("c").add(1)
    reader.collect()
    assert "otel.sdk.metric_reader.collection.duration" in metrics_of(reader.get_metrics_data())


def test_a_flush_in_the_middle_of_a_collection_is_bounded(open_provider: OpenProvider):
    """A callback that flushes its own provider gets False in time instead of a deadlock."""
    said: list[bool] = []
    reader = InMemoryMetricReader()
    provider = open_provider(metric_readers=[reader])

    def flush(_: Any) -> list[Any]:
        if not said:
            said.append(provider.force_flush(timeout_millis=100))
        return [api.Observation(1)]

    provider.get_meter("m").create_observable_gauge("g", [flush])
    assert metrics_of(reader.get_metrics_data())["g"].data.data_points[0].value == 1
    assert said == [False]


def test_a_periodic_reader_ends_with_the_provider(open_provider: OpenProvider):
    """No thread of a periodic reader is left after shutdown, though it was added later."""

    class Nowhere(sdk.export.MetricExporter):
        def export(self, *_: Any, **__: Any) -> Any:
            return sdk.export.MetricExportResult.SUCCESS

        def force_flush(self, timeout_millis: float = 10_000) -> bool:
            return True

        def shutdown(self, *_: Any, **__: Any) -> None:
            logging.getLogger(__name__).debug("ended")

    before = set(threading.enumerate())
    provider = open_provider()
    provider.add_metric_reader(PeriodicExportingMetricReader(Nowhere(), export_interval_millis=3_600_000))
    assert set(threading.enumerate()) > before
    provider.shutdown()
    assert set(threading.enumerate()) == before
