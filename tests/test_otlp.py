"""OTLP push against a Collector in this process that decodes what it gets."""

from __future__ import annotations

import collections
import errno
import gzip
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import Observation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_mlops.metrics import API_REQUESTS, PREDICTION_DURATION
from otel_mlops.otlp import call_within, open_metric_reader, open_tracer_provider, wire
from otel_mlops.sdk.group import PUSHED, Group
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.settings import Settings
from otel_mlops.testing import fresh_telemetry
from tests.waiting import eventually

DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
RESOURCE = Resource({"service.name": "housing", "service.version": "1.4.0"})
PROTOBUF = {"Content-Type": "application/x-protobuf"}
LOGGER = "otel_mlops.otlp.wire"
REQUESTS = {"/v1/metrics": ExportMetricsServiceRequest, "/v1/traces": ExportTraceServiceRequest}

Answer = Callable[[BaseHTTPRequestHandler], None]


def answer(status: int = 200, body: bytes = b"", **headers: str) -> Answer:
    """An answer of a Collector."""

    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in (PROTOBUF | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return write


class InMemoryExporter(MetricExporter):
    """A stock exporter that sends nothing."""

    def export(self, *arguments: Any, **options: Any) -> MetricExportResult:
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        """Nothing to close."""


class Collector:
    """Takes OTLP over HTTP; `answers` are given in turn, and success when there are no more."""

    def __init__(self, port: int = 0) -> None:
        self.requests: queue.Queue[SimpleNamespace] = queue.Queue()
        self.answers: collections.deque[Answer] = collections.deque()
        self.released = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                plain = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                kind = REQUESTS.get(self.path.partition("?")[0], ExportMetricsServiceRequest)
                seen = SimpleNamespace(
                    path=self.path, headers=self.headers, otlp=kind.FromString(plain), peer=self.client_address
                )
                collector.requests.put(seen)
                (collector.answers.popleft() if collector.answers else answer())(self)

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def hold(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer only once the test lets it."""
        self.released.wait(30)
        with suppress(OSError):  # it may have given up
            answer()(handler)

    def metrics(self) -> dict[str, Metric]:
        """The metrics of the next request, by name."""
        found = self.requests.get(timeout=10).otlp.resource_metrics
        return {metric.name: metric for one in found for scope in one.scope_metrics for metric in scope.metrics}

    def close(self) -> None:
        """Stop listening."""
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch):
    """Retries follow one another at once."""
    monkeypatch.setattr(wire.random, "uniform", lambda *_: 1e-3)


@pytest.fixture
def failures() -> list[str]:
    return []


@pytest.fixture
def pushed(collector: Collector, failures: list[str]) -> Iterator[Callable[..., MeterProvider]]:
    """Makes providers whose reader pushes to the Collector, and shuts them down."""
    opened = []

    def open_provider(endpoint: str = collector.url, interval_s: float = 3600, **options: Any) -> MeterProvider:
        settings = Settings(metrics_endpoint=endpoint, metric_export_interval_s=interval_s)
        reader = open_metric_reader(settings, on_failure=failures.append)
        provider = MeterProvider([reader], RESOURCE, shutdown_on_exit=False, **options)
        provider.reader = reader
        opened.append(provider)
        return provider

    yield open_provider
    collector.released.set()
    for provider in opened:
        provider.shutdown(2000)


@pytest.fixture
def traced(collector: Collector, failures: list[str]) -> Iterator[Callable[..., Any]]:
    """Makes tracer providers that push to the Collector, and shuts them down."""
    opened = []

    def open_provider(**options: Any) -> Any:
        settings = Settings(traces_endpoint=collector.url)
        provider = open_tracer_provider(settings, RESOURCE, on_failure=failures.append, **options)
        opened.append(provider)
        return provider

    yield open_provider
    collector.released.set()
    for provider in opened:
        provider.shutdown()


def closed_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def said(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """What was logged from a level on, with the logger's name."""
    return [f"{record.name}: {record.getMessage()}" for record in caplog.records if record.levelno >= level]


class TestMetrics:
    def test_every_kind_arrives_with_its_value_and_the_resource(self, collector: Collector, pushed):
        """What is recorded arrives under its name, with attributes, value, unit, scope and resource."""
        provider = pushed()
        provider.instrument(API_REQUESTS).add(3, {"method": "POST"})
        meter = provider.get_meter("mine", "2")
        meter.create_up_down_counter("waiting").add(-2)
        meter.create_gauge("temperature", "Cel").set(41.5)
        meter.create_observable_gauge("observed", [lambda _: [Observation(7, {"k": "v"})]])

        assert provider.reader.force_flush() is True

        seen = collector.requests.get(timeout=10)
        assert seen.path == "/v1/metrics"
        (resource_metrics,) = seen.otlp.resource_metrics
        resource = {each.key: each.value.string_value for each in resource_metrics.resource.attributes}
        assert resource == {"service.name": "housing", "service.version": "1.4.0"}
        scopes = {each.scope.name: each for each in resource_metrics.scope_metrics}
        assert scopes["mine"].scope.version == "2"
        (requests_metric,) = scopes["otel_mlops"].metrics
        (point,) = requests_metric.sum.data_points
        assert (requests_metric.name, requests_metric.unit) == (API_REQUESTS.name, API_REQUESTS.unit)
        assert requests_metric.sum.is_monotonic
        assert point.as_double == 3
        assert [(each.key, each.value.string_value) for each in point.attributes] == [("method", "POST")]
        mine = {metric.name: metric for metric in scopes["mine"].metrics}
        assert mine["waiting"].sum.data_points[0].as_double == -2
        assert not mine["waiting"].sum.is_monotonic
        assert mine["temperature"].unit == "Cel"
        assert mine["temperature"].gauge.data_points[0].as_double == 41.5
        assert mine["observed"].gauge.data_points[0].as_int == 7

    def test_a_histogram_has_its_buckets_and_neither_min_nor_max(self, collector: Collector, pushed):
        """A histogram arrives with explicit bounds, counts and sum; the extremes are unset, not zero."""
        provider = pushed()
        for duration in (0.001, 0.2, 9999):
            provider.instrument(PREDICTION_DURATION).record(duration, {"model_version": "v1"})

        provider.force_flush()

        (point,) = collector.metrics()[PREDICTION_DURATION.name].histogram.data_points
        assert tuple(point.explicit_bounds) == PREDICTION_DURATION.buckets
        assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
        assert (point.count, sum(point.bucket_counts), point.bucket_counts[-1]) == (3, 3, 1)
        assert point.sum == pytest.approx(9999.201)
        assert not point.HasField("min")
        assert not point.HasField("max")

    @pytest.mark.parametrize(
        ("preference", "temporality", "second"),
        [(None, CUMULATIVE, 5), ("cumulative", CUMULATIVE, 5), ("delta", DELTA, 2), ("lowmemory", DELTA, 2)],
    )
    def test_the_temporality_is_what_the_variable_prefers(
        self, collector: Collector, pushed, monkeypatch, preference, temporality, second
    ):
        """Counters and histograms arrive as totals, or as differences where the standard variable says so."""
        if preference:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference)
        provider = pushed()
        meter = provider.get_meter("mine")
        counter, histogram, waiting = (
            meter.create_counter("c"),
            meter.create_histogram("h"),
            meter.create_up_down_counter("w"),
        )
        arrived = []
        for amount in (3, 2):
            counter.add(amount)
            waiting.add(amount)
            for _ in range(amount):
                histogram.record(1)
            provider.force_flush()
            arrived.append(collector.metrics())

        assert [each["c"].sum.aggregation_temporality for each in arrived] == [temporality] * 2
        assert [each["c"].sum.data_points[0].as_double for each in arrived] == [3, second]
        assert [each["h"].histogram.aggregation_temporality for each in arrived] == [temporality] * 2
        assert [each["h"].histogram.data_points[0].count for each in arrived] == [3, second]
        assert [each["w"].sum.data_points[0].as_double for each in arrived] == [3, 5]

    def test_an_exemplar_names_the_trace_of_its_record(self, collector: Collector, pushed, traced):
        """A record inside a sampled span leaves an exemplar with the ids of that span."""
        provider, tracer = pushed(), traced().get_tracer("t")
        with tracer.start_as_current_span("predict") as span:
            provider.instrument(PREDICTION_DURATION).record(0.2, {"model_version": "v1"})
        provider.force_flush()

        (point,) = collector.metrics()[PREDICTION_DURATION.name].histogram.data_points
        (exemplar,) = point.exemplars
        assert exemplar.as_double == 0.2
        assert exemplar.trace_id == span.get_span_context().trace_id.to_bytes(16, "big")
        assert exemplar.span_id == span.get_span_context().span_id.to_bytes(8, "big")

    def test_an_exponential_preference_gives_explicit_buckets_and_one_warning(
        self, collector: Collector, pushed, monkeypatch, caplog
    ):
        """A preference for exponential histograms is answered with explicit ones, and said once."""
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "base2_exponential_bucket_histogram"
        )
        provider = pushed()
        for _ in range(2):
            provider.get_meter("mine").create_histogram("h").record(1)
            provider.force_flush()

        assert [collector.metrics()["h"].WhichOneof("data") for _ in range(2)] == ["histogram"] * 2
        assert len([line for line in said(caplog, logging.WARNING) if "exponential" in line.lower()]) == 1

    def test_the_reader_pushes_by_itself_at_the_interval(self, collector: Collector, pushed):
        """Without a flush, exports follow one another at the interval of the settings."""
        provider = pushed(interval_s=0.02)
        provider.get_meter("mine").create_counter("c").add(1)

        assert [collector.metrics()["c"].sum.data_points[0].as_double for _ in range(2)] == [1, 1]

    def test_shutdown_pushes_what_is_left(self, collector: Collector, pushed):
        """What was recorded since the last export arrives when the provider is shut down."""
        provider = pushed()
        provider.get_meter("mine").create_counter("c").add(4)
        provider.shutdown(2000)

        assert collector.metrics()["c"].sum.data_points[0].as_double == 4
        assert not any(thread.name == "OtelPeriodicExportingMetricReader" for thread in threading.enumerate())

    def test_compression_and_headers_come_from_the_standard_variables(self, collector: Collector, pushed, monkeypatch):
        """The exporter reads OpenTelemetry's own variables for compression and headers."""
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
        provider = pushed()
        provider.get_meter("mine").create_counter("c").add(1)
        provider.force_flush()

        seen = collector.requests.get(timeout=10)
        assert (seen.headers["Content-Encoding"], seen.headers["api-key"]) == ("gzip", "secret")


class TestGroup:
    """What whoever leads pushes for all; the workers are two of one group in this process."""

    @pytest.fixture
    def open_worker(self, collector: Collector, tmp_path: Path) -> Iterator[Callable[[], MeterProvider]]:
        group = Group("g", tmp_path)
        opened = []

        def open_one() -> MeterProvider:
            reader = open_metric_reader(
                Settings(metrics_endpoint=collector.url, metric_export_interval_s=3600), on_failure=[].append
            )
            group = Group("g", tmp_path)
            provider = MeterProvider((), RESOURCE, shutdown_on_exit=False, ledger=Ledger(group), group=group)
            provider.reader = reader
            provider.kept = group.folder / PUSHED
            opened.append(provider)
            return provider

        yield open_one
        for provider in opened:
            provider.shutdown(2000)
        assert not group.folder.exists()

    def lead(self, provider: MeterProvider) -> None:
        """Push for the group from now on."""
        provider.add_metric_reader(provider.reader, of_group=True)

    @pytest.mark.parametrize(("preference", "second"), [("cumulative", 5), ("delta", 2), ("lowmemory", 2)])
    def test_who_leads_next_goes_on(self, collector: Collector, open_worker, monkeypatch, preference, second):
        """All workers' totals are pushed, or the differences to what the leader before has pushed."""
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference)
        one, two = open_worker(), open_worker()
        for leader, amount in ((one, 3), (two, 2)):
            for worker in (one, two):
                worker.get_meter("m").create_gauge("joined").set(1)
            two.get_meter("m").create_counter("c").add(amount)
            self.lead(leader)
            assert leader.reader.force_flush()
            leader.remove_metric_reader(leader.reader)

        first, _, next_, _ = [collector.metrics() for _ in range(4)]  # the end of each is an export as well
        assert [each["c"].sum.data_points[0].as_double for each in (first, next_)] == [3, second]
        shown = [(each.attributes[0].key, each.attributes[0].value) for each in next_["joined"].gauge.data_points]
        assert [(key, value.string_value) for key, value in shown] == [("worker", "1"), ("worker", "0")]

    def test_the_differences_of_an_export_are_kept_when_it_has_ended(
        self, collector: Collector, open_worker, monkeypatch
    ):
        """While the Collector holds an export nothing of it is kept: who leads next would push it once more."""
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
        collector.answers.append(collector.hold)
        worker = open_worker()
        worker.get_meter("m").create_counter("c").add(1)
        self.lead(worker)
        assert worker.reader.force_flush(20) is False
        collector.requests.get(timeout=10)
        assert not worker.kept.exists()

        collector.released.set()
        eventually(worker.kept.exists, within_s=10.0)

    def test_what_a_failed_export_held_is_not_pushed_by_the_next_leader(
        self, collector: Collector, open_worker, monkeypatch
    ):
        """Differences that the Collector refused are lost, whoever leads then, and not there twice if it took them."""
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
        collector.answers.append(answer(400))
        one, two = open_worker(), open_worker()
        for worker, amount in ((one, 3), (two, 2)):
            worker.get_meter("m").create_counter("c").add(amount)
            self.lead(worker)
            worker.reader.force_flush()

        assert [collector.metrics()["c"].sum.data_points[0].as_double for _ in range(2)] == [3, 2]


class TestTraces:
    def test_spans_arrive_with_their_attributes_and_the_resource(self, collector: Collector, traced):
        """A span that has ended arrives with its name, attributes, parent and resource."""
        provider = traced()
        tracer = provider.get_tracer("t", "1")
        with tracer.start_as_current_span("request"), tracer.start_as_current_span("predict") as span:
            span.set_attribute("model", "housing")

        assert provider.force_flush() is True

        seen = collector.requests.get(timeout=10)
        assert seen.path == "/v1/traces"
        (resource_spans,) = seen.otlp.resource_spans
        resource = {each.key: each.value.string_value for each in resource_spans.resource.attributes}
        assert resource == {"service.name": "housing", "service.version": "1.4.0"}
        predict, request = resource_spans.scope_spans[0].spans
        assert (predict.name, predict.attributes[0].value.string_value) == ("predict", "housing")
        assert predict.parent_span_id == request.span_id

    def test_shutdown_pushes_the_spans_that_wait(self, collector: Collector, traced):
        """Spans that were not exported yet arrive when the provider is shut down."""
        provider = traced()
        provider.get_tracer("t").start_span("last").end()
        provider.shutdown()

        assert collector.requests.get(timeout=10).otlp.resource_spans[0].scope_spans[0].spans[0].name == "last"

    def test_spans_past_the_queue_are_counted_and_said_once(self, collector: Collector, traced, monkeypatch, caplog):
        """A full queue drops the oldest span, calls on_dropped for each, and logs the change of state alone."""
        caplog.set_level(logging.INFO)
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
        collector.answers.append(collector.hold)
        lost: list[int] = []
        provider = traced(on_dropped=lambda: lost.append(1))
        tracer = provider.get_tracer("t")
        for number in range(2):
            tracer.start_span(f"sent {number}").end()
        collector.requests.get(timeout=10)  # the queue is empty, and the Collector holds the exporter
        for number in range(7):
            tracer.start_span(f"s{number}").end()

        assert len(lost) == 3
        collector.released.set()
        assert provider.force_flush()
        arrived = [collector.requests.get(timeout=10).otlp.resource_spans[0].scope_spans[0] for _ in range(2)]
        assert [span.name for scope in arrived for span in scope.spans] == ["s3", "s4", "s5", "s6"]
        assert said(caplog) == [
            f"{LOGGER}: 4 spans wait for the Collector at {collector.host}; the oldest are dropped",
            f"{LOGGER}: 3 spans were dropped while too many waited",
        ]

    def test_a_span_that_is_not_sampled_is_no_loss(self, collector: Collector, traced, monkeypatch):
        """With a full queue, spans that would not have been exported are not counted as dropped."""
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
        collector.answers.append(collector.hold)
        lost: list[int] = []
        provider = traced(on_dropped=lambda: lost.append(1))
        provider.get_tracer("t").start_span("sent").end()
        collector.requests.get(timeout=10)
        provider.get_tracer("t").start_span("waits").end()
        (processor,) = provider._active_span_processor._span_processors
        processor.on_end(SimpleNamespace(context=SimpleNamespace(trace_flags=SimpleNamespace(sampled=False))))

        assert lost == []


class TestFaults:
    def test_an_outage_is_said_once_and_so_is_its_end(self, failures: list[str], pushed, monkeypatch, caplog):
        """While nobody listens each export counts; the log has one warning, then one line when it works."""
        caplog.set_level(logging.INFO)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")  # less than the pause before a retry
        port = closed_port()
        provider = pushed(f"http://user:password@127.0.0.1:{port}/token")
        provider.get_meter("mine").create_counter("c").add(1)
        for _ in range(3):
            assert provider.reader.force_flush() is False
        assert failures == ["metrics"] * 3
        again = Collector(port)
        try:
            for _ in range(2):
                assert provider.reader.force_flush() is True
        finally:
            again.close()

        assert failures == ["metrics"] * 3
        reason = os.strerror(errno.ECONNREFUSED)
        assert said(caplog) == [
            f"{LOGGER}: metrics do not reach the Collector at {again.host}: [Errno {errno.ECONNREFUSED}] {reason}",
            f"{LOGGER}: metrics reach the Collector at {again.host} again",
        ]

    @pytest.mark.parametrize("status", [429, 502, 503, 504])
    def test_what_is_transient_is_sent_again(
        self, collector: Collector, pushed, failures: list[str], quick_retries, caplog, status
    ):
        """An answer that asks for patience is followed by the same request, and counts as no failure."""
        collector.answers.extend([answer(status), answer(status)])
        provider = pushed()
        provider.get_meter("mine").create_counter("c").add(1)

        assert provider.reader.force_flush() is True
        assert collector.requests.qsize() == 3
        assert failures == []
        assert said(caplog) == []

    @pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 500])
    def test_what_is_final_is_not_sent_again(self, collector: Collector, pushed, failures, caplog, status):
        """A redirect and a refusal are failures at the first answer, with the answer as the reason."""
        collector.answers.append(answer(status, Location="/elsewhere"))
        provider = pushed()
        provider.get_meter("mine").create_counter("c").add(1)

        assert provider.reader.force_flush() is False
        assert collector.requests.qsize() == 1
        assert failures == ["metrics"]
        (line,) = said(caplog)
        assert f": {status} " in line

    def test_the_last_export_is_not_sent_again(self, collector: Collector, pushed, failures: list[str]):
        """Once the service ends, an answer that asks for patience is final."""
        collector.answers.extend([answer(503)] * 5)
        provider = pushed()
        provider.get_meter("mine").create_counter("c").add(1)
        provider.shutdown(2000)

        assert collector.requests.qsize() == 1
        assert failures == ["metrics"]

    def test_nothing_is_sent_past_the_end(self, collector: Collector, traced, caplog):
        """A shutdown that had no time left sends nothing, and says what became of the spans."""
        provider = traced()
        (processor,) = provider._active_span_processor._span_processors
        processor._push.end(0)
        provider.get_tracer("t").start_span("late").end()
        provider.shutdown()

        assert collector.requests.empty()
        assert said(caplog)[0].endswith("the time was up")

    def test_a_pause_longer_than_the_timeout_is_not_waited_for(self, collector: Collector, pushed, caplog):
        """A Collector that asks for a pause past the time of an export is not asked again."""
        collector.answers.append(answer(503, Retry_After="3600"))
        provider = pushed()
        provider.get_meter("mine").create_counter("c").add(1)

        assert provider.reader.force_flush() is False
        assert collector.requests.qsize() == 1
        assert "503 Service Unavailable" in said(caplog)[0]

    def test_what_the_collector_rejects_is_a_failure(self, collector: Collector, pushed, failures, caplog):
        """An answer of success that names rejected points is a failure, with the Collector's reason."""
        response = ExportMetricsServiceResponse()
        response.partial_success.rejected_data_points = 3
        response.partial_success.error_message = "out of order\nfake line"
        collector.answers.append(answer(body=response.SerializeToString()))
        provider = pushed()
        provider.get_meter("mine").create_counter("c").add(1)

        assert provider.reader.force_flush() is False
        assert failures == ["metrics"]
        assert said(caplog)[0].endswith(r"it rejected 3, 'out of order\nfake line'")

    def test_an_answer_that_is_not_otlp_is_a_failure(self, collector: Collector, pushed, caplog):
        """A body that says it is OTLP and is not is no success."""
        collector.answers.append(answer(body=b"\xff\xff"))
        provider = pushed()
        provider.get_meter("mine").create_counter("c").add(1)

        assert provider.reader.force_flush() is False
        assert "something else than OTLP" in said(caplog)[0]

    def test_an_endless_answer_is_not_read(self, collector: Collector, pushed):
        """Of an answer without a length or with a long one nothing is read, and its connection is closed."""
        broken = threading.Event()

        def endless(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.end_headers()
            try:
                while True:
                    handler.wfile.write(b"x" * 65536)
            except OSError:
                broken.set()
            handler.close_connection = True

        collector.answers.append(endless)
        provider = pushed()
        provider.get_meter("mine").create_counter("c").add(1)

        assert provider.reader.force_flush() is True
        assert broken.wait(10)

    def test_a_connection_is_kept_and_replaced_once_it_is_closed(
        self, collector: Collector, pushed, failures: list[str]
    ):
        """Exports share a connection; one that the Collector has closed without a word costs no data."""

        def closes(handler: BaseHTTPRequestHandler) -> None:
            answer()(handler)
            handler.close_connection = True

        def never_answers(handler: BaseHTTPRequestHandler) -> None:
            handler.close_connection = True

        collector.answers.extend([answer(), closes, answer(), never_answers])
        provider = pushed()
        provider.get_meter("mine").create_counter("c").add(1)

        assert all(provider.reader.force_flush() for _ in range(4))
        peers = [collector.requests.get(timeout=10).peer for _ in range(5)]
        assert peers[0] == peers[1]
        assert peers[1] != peers[2]
        assert peers[2] == peers[3] != peers[4]
        assert failures == []

    def test_a_collector_that_never_answers_costs_the_timeout(
        self, collector: Collector, pushed, failures: list[str], monkeypatch, caplog
    ):
        """An export ends after OTEL_EXPORTER_OTLP_TIMEOUT, whatever the Collector does."""
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.05")
        collector.answers.append(collector.hold)
        provider = pushed()
        provider.get_meter("mine").create_counter("c").add(1)

        assert provider.reader.force_flush() is False
        assert failures == ["metrics"]
        assert said(caplog)[0].endswith(": timed out")

    def test_a_flush_takes_no_longer_than_asked_and_leaves_one_thread(self, collector: Collector, pushed, traced):
        """Flushes of a held Collector return False in time, and do not pile up threads."""
        collector.answers.extend([collector.hold, collector.hold])
        meters, tracers = pushed(), traced()
        meters.get_meter("mine").create_counter("c").add(1)
        tracers.get_tracer("t").start_span("s").end()
        before = threading.active_count()
        for _ in range(5):
            assert meters.reader.force_flush(20) is False
            assert tracers.force_flush(20) is False
        for _ in range(2):
            collector.requests.get(timeout=10)

        # One for each flush, and one of the server for each connection.
        assert threading.active_count() <= before + 4

    def test_a_collection_that_raises_does_not_end_the_push(self, collector: Collector, pushed, failures, caplog):
        """A fault while collecting counts as a failed export, and the next interval goes on."""
        provider = pushed(interval_s=0.02)
        provider.get_meter("mine").create_counter("c").add(1)
        collector.metrics()
        collect = provider.reader._collect

        def faulty(*arguments: Any, **keywords: Any) -> Any:
            provider.reader._set_collect_callback(collect)
            raise RuntimeError("no memory")

        provider.reader._set_collect_callback(faulty)
        eventually(lambda: failures, within_s=10.0)
        while not collector.requests.empty():
            collector.requests.get()

        assert collector.metrics()["c"].sum.data_points[0].as_double == 1
        assert any("collecting raised RuntimeError('no memory')" in line for line in said(caplog))

    def test_an_exporter_that_raises_is_a_failure(self, failures: list[str], caplog):
        """An exception out of a stock exporter is told by its type, since its text may hold the URL."""

        def export(batch: object) -> str:
            raise RuntimeError("https://user:password@host")

        push = wire.Push("traces", "http://host:4318/v1/traces", failures.append)

        assert push.watch(export, "failure")(object()) == "failure"
        assert failures == ["traces"]
        assert said(caplog) == [f"{LOGGER}: traces do not reach the Collector at host:4318: RuntimeError"]

    def test_what_cannot_be_encoded_is_a_failure(self, failures: list[str], pushed, caplog):
        """What the stock exporter logs for other reasons becomes the reason, without the text of exceptions."""
        provider = pushed()
        provider.reader._exporter.export(object())

        assert failures == ["metrics"]
        (line,) = said(caplog)
        assert line.endswith("Failed to encode metrics batch: AttributeError")

    def test_the_lines_of_other_exporters_pass(self, pushed, caplog):
        """A stock exporter that somebody else has opened logs as ever."""
        pushed()
        theirs = OTLPMetricExporter(endpoint=f"http://127.0.0.1:{closed_port()}/v1/metrics", timeout=0.1)
        theirs._client.export(b"")
        theirs.shutdown()

        assert any(line.startswith("opentelemetry.exporter.otlp.proto.http.metric_exporter") for line in said(caplog))


class TestSettings:
    def seen_path(self, collector: Collector, settings: Settings) -> str:
        reader = open_metric_reader(settings, on_failure=[].append)
        provider = MeterProvider([reader], RESOURCE, shutdown_on_exit=False)
        provider.get_meter("mine").create_counter("c").add(1)
        reader.force_flush()
        provider.shutdown(2000)
        return collector.requests.get(timeout=10).path

    @pytest.mark.parametrize(
        ("variable", "path", "expected"),
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "", "/v1/metrics"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "/", "/v1/metrics"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "/tenant/7", "/tenant/7/v1/metrics"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "/own?k=v", "/own?k=v"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "/", "/"),
        ],
    )
    def test_the_general_endpoint_gets_the_signals_path(
        self, collector: Collector, monkeypatch, variable, path, expected
    ):
        """The general variable is a base to which the path is added; a signal's own is taken as it stands."""
        monkeypatch.setenv(variable, collector.url + path)

        assert self.seen_path(collector, Settings.from_env()) == expected

    def test_a_full_url_in_the_settings_is_taken_as_it_stands(self, collector: Collector):
        """An endpoint that ends with the signal's path does not get it twice."""
        settings = Settings(metrics_endpoint=f"{collector.url}/v1/metrics")

        assert self.seen_path(collector, settings) == "/v1/metrics"

    @pytest.mark.parametrize(
        ("environment", "message"),
        [
            ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json', expected"),
            (
                {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "udp"},
                "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL is 'udp', expected http/protobuf or grpc",
            ),
            ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "OTEL_EXPORTER_OTLP_TIMEOUT is 'soon', expected seconds"),
            ({"OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "0"}, "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT is '0'"),
            (
                {"OTEL_PYTHON_EXPORTER_OTLP_HTTP_METRICS_CREDENTIAL_PROVIDER": "nobody"},
                "METRICS_CREDENTIAL_PROVIDER is 'nobody', expected the name of an installed",
            ),
        ],
    )
    def test_a_variable_that_is_not_acceptable_is_named(self, monkeypatch, environment, message):
        """A protocol, timeout or credential provider that does not exist is an error that names its variable."""
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        with pytest.raises(ValueError, match=message):
            open_metric_reader(Settings(), on_failure=[].append)

    def test_http_protobuf_may_be_named(self, collector: Collector, monkeypatch):
        """The default protocol can be set, in any case."""
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "HTTP/protobuf")

        assert self.seen_path(collector, Settings(metrics_endpoint=collector.url)) == "/v1/metrics"

    @pytest.mark.parametrize(
        ("protocol", "message"),
        [
            ("http/protobuf", r"over OTLP need an extra: pip install 'otel-mlops\[otlp\]'"),
            ("grpc", "PROTOCOL is grpc, which needs opentelemetry-exporter-otlp-proto-grpc: pip install"),
        ],
    )
    def test_an_absent_exporter_is_named_with_the_install_line(self, monkeypatch, protocol, message):
        """Where the package of a protocol is missing, the error says how to get it."""
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        for transport in ("http", "grpc"):
            for module in ("metric_exporter", "trace_exporter"):
                monkeypatch.setitem(sys.modules, f"opentelemetry.exporter.otlp.proto.{transport}.{module}", None)

        with pytest.raises(ImportError, match=message):
            open_metric_reader(Settings(), on_failure=[].append)
        with pytest.raises(ImportError, match=message):
            open_tracer_provider(Settings(), RESOURCE, on_failure=[].append)

    @pytest.mark.parametrize(
        ("endpoint", "expected"),
        [
            (None, "http://localhost:4317"),
            ("https://user:password@collector:4317", "https://collector:4317"),
        ],
    )
    def test_grpc_gets_the_host_alone(self, monkeypatch, endpoint, expected):
        """The exporter for gRPC is given neither a path nor credentials, which it would log."""
        given: dict[str, Any] = {}

        class Exporter(InMemoryExporter):
            def __init__(self, **options: Any) -> None:
                super().__init__()
                given.update(options)

        module = "opentelemetry.exporter.otlp.proto.grpc.metric_exporter"
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(OTLPMetricExporter=Exporter))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc")
        open_metric_reader(Settings(metrics_endpoint=endpoint), on_failure=[].append).shutdown()

        assert given == {"endpoint": expected, "timeout": 10.0}

    def test_a_timeout_meant_in_milliseconds_is_cut(self, pushed, monkeypatch, caplog):
        """A timeout of hours is not honoured, and the log says what is given instead."""
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10000")
        provider = pushed()

        assert provider.reader._exporter._client._timeout == 60
        assert "OTEL_EXPORTER_OTLP_TIMEOUT is 10000 s; an export is given 60 s" in said(caplog)[0]

    def test_a_credential_providers_session_is_used(self, collector: Collector, pushed, monkeypatch):
        """The session of the credential provider that the stock variable names carries the exports."""
        session = requests.Session()
        session.headers["Authorization"] = "Bearer t"
        found = SimpleNamespace(load=lambda: lambda: session)
        monkeypatch.setattr(wire, "entry_points", lambda **wanted: [found] if wanted["name"] == "mine" else [])
        monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "mine")
        provider = pushed()
        provider.get_meter("mine").create_counter("c").add(1)
        provider.force_flush()

        assert collector.requests.get(timeout=10).headers["Authorization"] == "Bearer t"


class TestFork:
    def in_child(self, function: Callable[[], object]) -> str:
        """Run a function in a forked child and return what it returned, as text."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)  # a child that hangs says nothing, and the test fails
            try:
                os.write(write, str(function()).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            text = pipe.read()
        os.waitpid(pid, 0)
        return text

    def test_a_forked_child_does_not_push_by_itself(self, collector: Collector, pushed):
        """A forked child has no thread of the metric reader; it can flush though its parent exports."""
        provider = pushed(interval_s=0.02)
        collector.answers.append(collector.hold)
        provider.get_meter("mine").create_counter("c").add(1)
        collector.requests.get(timeout=10)  # the parent exports, with the lock held

        def flushed() -> tuple[bool, list[str]]:
            provider.get_meter("mine").create_counter("c").add(1)
            return provider.reader.force_flush(5_000), [thread.name for thread in threading.enumerate()]

        assert self.in_child(flushed) == "(True, ['MainThread'])"

    def test_a_forked_child_ends_the_reader_of_its_parent_without_its_locks(self, pushed):
        """Shutting the inherited reader down does nothing, so that no lock of a parent's thread is waited for."""
        reader = pushed().reader
        with reader._shutdown_event._cond:
            assert self.in_child(lambda: reader.shutdown(10_000)) == "None"

    def test_a_forked_child_has_connections_of_its_own(self, collector: Collector, traced):
        """Spans of a child do not go over a connection of its parent."""
        provider = traced()
        tracer = provider.get_tracer("t")
        tracer.start_span("parent").end()
        assert provider.force_flush()

        def flushed() -> bool:
            tracer.start_span("child").end()
            return provider.force_flush()

        assert self.in_child(flushed) == "True"
        parent, child = (collector.requests.get(timeout=10) for _ in range(2))
        assert child.otlp.resource_spans[0].scope_spans[0].spans[0].name == "child"
        assert parent.peer != child.peer


class TestCallWithin:
    def test_it_waits_for_all_and_tells_how_they_went(self, caplog):
        """Calls run at once; the answer is whether all ended in time, none raised and none returned False."""
        both = threading.Barrier(2)

        def fails() -> None:
            raise OSError("disk")

        assert call_within(10, both.wait, both.wait) is True
        assert call_within(10, lambda: None, lambda: False) is False
        assert call_within(10, fails) is False
        assert "OSError: disk" in caplog.text

    def test_it_leaves_what_does_not_end(self):
        """A call that does not end is left to a daemon thread."""
        never = threading.Event()

        assert call_within(0.01, never.wait) is False
        assert all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())
        never.set()

    def test_where_no_thread_starts_the_calls_are_made_here(self, monkeypatch):
        """At the end of an interpreter that starts no threads any more, the calls are made all the same."""

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

        made: list[int] = []
        monkeypatch.setattr(threading.Thread, "start", refuse)

        assert call_within(1, lambda: made.append(1)) is True
        assert made == [1]


class TestContract:
    @pytest.mark.parametrize("name", ["_ticker", "_at_fork_reinit"])
    def test_the_stock_reader_has_the_private_names_that_are_overridden(self, name):
        """A release of the SDK that renames what the reader overrides fails here first."""
        assert callable(vars(PeriodicExportingMetricReader)[name])

    def test_the_stock_reader_has_the_private_attributes_that_are_used(self, pushed):
        """The reader's lock, thread and event are where its subclass looks for them."""
        reader = pushed().reader
        assert reader._daemon_thread.name == "OtelPeriodicExportingMetricReader"
        assert reader._daemon_thread.daemon
        assert reader._export_lock.acquire(blocking=False)
        reader._export_lock.release()
        assert not reader._shutdown_event.is_set()

    def test_the_stock_processor_has_the_queue_that_is_watched(self, collector, traced, monkeypatch):
        """The processor's queue is a deque that is as long as the standard variable says, kept in a child."""
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "700")
        (processor,) = traced()._active_span_processor._span_processors
        assert isinstance(processor, BatchSpanProcessor)
        waiting = processor._batch_processor._queue
        assert isinstance(waiting, collections.deque)
        assert waiting.maxlen == 700
        assert processor._batch_processor._worker_thread.daemon


@pytest.mark.parametrize(
    ("end", "preference", "second"), [("stop", "cumulative", 2), ("stop", "delta", 1), ("shutdown", "cumulative", None)]
)
def test_what_was_recorded_last_is_pushed_at_the_end(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, end: str, preference: str, second: int | None
):
    """The end of a service pushes what no interval has pushed yet, and so does its next end after a new start."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference)
    with fresh_telemetry(metrics_exporter="otlp", metrics_endpoint=collector.url, traces_endpoint=None) as telemetry:
        telemetry.start()
        telemetry.record_error("ValueError", "/predict")
        getattr(telemetry, end)()
        assert collector.metrics()["errors"].sum.data_points[0].as_double == 1
        if second is not None:
            telemetry.start()
            telemetry.record_error("ValueError", "/predict")
            telemetry.stop()
            assert collector.metrics()["errors"].sum.data_points[0].as_double == second


def test_one_of_two_workers_pushes_for_both_under_one_name(collector: Collector, tmp_path: Path):
    """Of a group one pushes, for everybody; the one that leads after it goes by the same `service.instance.id`."""
    of_group = {"group": "g", "state_dir": tmp_path, "metrics_exporter": "otlp", "metrics_endpoint": collector.url}
    with fresh_telemetry(**of_group) as one, fresh_telemetry(**of_group) as two:
        one.start()
        two.start()
        for telemetry in (one, two):
            telemetry.record_error("ValueError", "/predict")
        one.stop()
        ends = [collector.requests.get(timeout=10)]
        eventually(lambda: two._member.leads, within_s=10.0)
        two.stop()
        ends.append(collector.requests.get(timeout=10))

    assert collector.requests.empty()
    instances, totals = set(), []
    for request in ends:
        (found,) = request.otlp.resource_metrics
        instances |= {each.value.string_value for each in found.resource.attributes if each.key == SERVICE_INSTANCE_ID}
        metrics = {metric.name: metric for scope in found.scope_metrics for metric in scope.metrics}
        totals.append([point.as_double for point in metrics["errors"].sum.data_points])
    assert len(instances) == 1
    assert totals == [[2.0], [2.0]]
