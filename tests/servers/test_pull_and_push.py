"""One service, pulled and pushed every way into one Prometheus: the same series, but for what is listed here."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from otel_mlops.metrics import API_REQUESTS, CATALOGUE, PREDICTION_DURATION, PREDICTION_LATENCY_P99, WORKERS
from tests.nvml.driver import FakeDriver, build
from tests.servers.fleet import Series
from tests.servers.programs import Prometheus, answering, collector, prometheus
from tests.servers.service import WAIT_S, Service, free_port, get, listens, running, status, until
from tests.test_names_by_otlp import name_by_otlp

SERVICE = """
    import random
    from pathlib import Path

    from fastapi import FastAPI
    from opentelemetry import trace
    from opentelemetry.metrics import Observation

    from otel_mlops import Profile, configure_telemetry

    app = FastAPI(title="shop")
    telemetry = configure_telemetry(app, metrics_path="/metrics", monitoring_interval=0.5)
    draw = random.Random(1)
    rows = [[draw.uniform(0.0, 10.0), draw.uniform(0.0, 10.0)] for _ in range(500)]
    profile = Profile.fit(
        rows,
        [int(row[0] > 5.0) for row in rows],
        truth=[int(row[0] + row[1] / 9.0 > 5.0) for row in rows],
        scores=[row[0] / 10.0 for row in rows],
        names=["income", "rooms"],
        type="classification",
    )
    loans = telemetry.model("loans", version="v1", stage="production", type="classification", profile=profile)
    candidate = telemetry.model("loans", version="v2", type="classification")
    shadow = loans.shadow(candidate)
    price = telemetry.model("price", version="v1", type="regression")
    poet = telemetry.model("poet", version="v7")
    with loans.loading():
        pass
    telemetry.update_model_performance_metrics(
        model_version="v0", dataset="validation", accuracy=0.95, rmse=0.123, mae=0.089, r2=0.92
    )
    try:
        Path("first").touch(exist_ok=False)
        telemetry.set_model_status("v0", "error")  # in one worker only: of both the worst is told
    except FileExistsError:
        telemetry.set_model_status("v0", "ready")
    telemetry.update_api_health_status("database", True)
    telemetry.update_api_health_status("model", False)
    telemetry.update_prediction_latency_percentiles("v0", p95_latency=0.05, p99_latency=0.1)
    telemetry.update_model_drift_score(model_version="v0", feature="MedInc", drift_score=0.15)
    telemetry.system_info.info({"environment": "production", "version": "1.0.0", "deployment_date": "2024-01-15"})
    telemetry.schedule_task(lambda: None, 3600, "health_check")

    # What others make through OpenTelemetry, with names, units and attributes as they come.
    meter = telemetry.meter
    made = [
        getattr(meter, f"create_{kind}")(name, unit, f"What is {name}, in {unit or 'nothing'}.")
        for kind, name, unit in INSTRUMENTS
    ]
    for name, unit in OBSERVED:
        meter.create_observable_gauge(name, [lambda _: [Observation(4.5, {"host.id": 7})]], unit, f"Seen: {name}.")
    keyed = meter.create_counter("keyed", "", "By attributes.")
    claimed = meter.create_counter("claimed", "", "By an attribute that Prometheus has for itself.")
    bounded = meter.create_histogram("bounded", "By", "By le.", explicit_bucket_boundaries_advisory=[1, 900, 1e7])
    others = telemetry.meter_provider.get_meter("others", "1.2", attributes={"kind": "scope"})
    made.append(others.create_counter("of.others", "", "Of another scope."))

    def record(value):
        for each in made:
            verb = getattr(each, "add", None) or getattr(each, "record", None) or each.set
            verb(value, {"a.b": "x", "Camel-Case": "y", "fits": True, "number": 3, "nothing": ""})
        for attributes in KEYED:
            keyed.add(value, attributes)
        claimed.add(value, {"job": "mine"})
        bounded.record(value, {"le": "mine"})

    @app.post("/predict")
    def predict(rows: list[list[float]]) -> list[int]:
        seen = trace.SpanContext(int(100 * rows[0][0]) + 1, 7, False, trace.TraceFlags(1))
        with trace.use_span(trace.NonRecordingSpan(seen)):
            with loans.prediction(features=rows) as prediction:
                with prediction.phase("preprocess"):
                    scores = [row[0] / 10.0 for row in rows]
                prediction.scores, prediction.values = scores, [int(score > 0.5) for score in scores]
            for receipt, row in zip(prediction.receipts, rows):
                loans.record_truth(receipt=receipt, actual=int(row[0] + row[1] / 9.0 > 5.0))
            with candidate.prediction() as other:
                other.values = [int(score > 0.4) for score in scores]
            shadow.record(prediction.values, other.values, [1] * len(rows))
            with price.prediction() as answer:
                answer.values = [row[0] - 2.0 for row in rows]
            price.record_truth(prediction=answer.values, actual=[row[0] - 1.5 for row in rows])
            with telemetry.database_operation("insert", "predictions"):
                pass
            record(rows[0][0])
        return prediction.values

    @app.get("/broken")
    def broken() -> None:
        with poet.prediction():
            raise ValueError("secret")

    @app.get("/chat")
    def chat() -> int:
        with poet.generation(provider="engine") as generation:
            generation.tokens(input=12)
            return len([token for token in generation.stream(iter("abcdef"))])
"""

INSTRUMENTS = [
    *[
        (kind, f"odd.{name}.{kind.split('_')[0]}", unit)
        for kind in ("counter", "up_down_counter", "histogram", "gauge")
        for name, unit in zip(
            ("plain", "wait", "load", "size", "part", "flow"), ("", "ms", "%", "By", "{thing}", "By/s"), strict=True
        )
    ],
    ("up_down_counter", "odd.level", "1"),
    ("gauge", "odd.share", "1"),
    ("gauge", "bytes_sent", "By"),
    ("gauge", "ends_", ""),
    ("counter", "tokens_total_count", ""),
    ("histogram", "inference_latency_ms", "ms"),
    ("counter", "Camel.Case-name/path", ""),
    ("counter", "double__under", ""),
]  # fmt: skip
OBSERVED = [("odd.seen", "{thing}"), ("system.odd.temperature", "Cel"), ("system.odd.share", "1")]
KEYED = [
    {"9x": "digit"}, {"_x": "low"}, {"a__b": "two"}, {"é": "accent"}, {"a.b": "1", "a_b": "2"},
    {"list": ("x", "y")}, {"weight": 1.0}, {"weight": 1.5}, {"quote": 'a"b\\c\nd'}, {"number": 3, "fits": False},
]  # fmt: skip

JOB = "shops/shop"
"""What Prometheus makes of service.namespace and service.name; the scraped job has the same name."""
PULLED = ("text", "openmetrics", "page")
"""Scraped by Prometheus: as text, as OpenMetrics, and as it asks by default, with names in UTF-8 if there are any."""
PUSHED = ("direct", "collected")
"""Pushed by the service: to Prometheus itself, and to a Collector which passes it on."""
FORWARDED = ("forwarded", "forwarded openmetrics")
"""Scraped by a Collector, as text and as it asks by default, which passes it on over OTLP."""
WAYS = (*PULLED, *PUSHED, *FORWARDED)
REQUESTS, BROKEN, CHATS, MISSED = 40, 3, 4, 2
SENT = REQUESTS + BROKEN + CHATS + MISSED


class Difference(NamedTuple):
    """Series that one way has and the page as text has not, or the other way round."""

    title: str
    """What docs/otlp.md calls it."""
    ways: tuple[str, ...]
    on_page: tuple[str, ...]
    """Series that the way lacks: a name, which may be an expression, and some of the labels."""
    instead: tuple[str, ...]
    """Series that it has."""


KNOWN_DIFFERENCES = [
    Difference(
        "a gauge with the unit `1`",
        PUSHED,
        ("odd_share", "system_odd_share"),
        ("odd_share_ratio", "system_odd_share_ratio"),
    ),
    Difference("a unit that stands in the name already", PUSHED, ("bytes_sent_bytes",), ("bytes_sent",)),
    Difference(
        "`total` within a counter's name", (*PUSHED, *FORWARDED), ("tokens_total_count_total",), ("tokens_count_total",)
    ),
    Difference("a name that ends in `_`", (*PUSHED, *FORWARDED), ("ends_",), ("ends",)),
    Difference(
        "an attribute that begins with a digit or `_`, or is no ASCII",
        (*PUSHED, *FORWARDED),
        ('keyed_total{_x="digit"}', 'keyed_total{_x="low"}', 'keyed_total{_="accent"}'),
        ('keyed_total{key_.*="digit"}', 'keyed_total{key_x="low"}', 'keyed_total{key_="accent"}'),
    ),
    Difference("`__` within an attribute", PUSHED, ('keyed_total{a_b="two"}',), ('keyed_total{a__b="two"}',)),
    Difference(
        "an attribute that is a float or a list",
        PUSHED,
        ('keyed_total{weight="1.0"}', 'keyed_total{list="["x", "y"]"}'),
        ('keyed_total{weight="1"}', 'keyed_total{list="["x","y"]"}'),
    ),
    Difference("an attribute `job` or `instance`", PUSHED, ('claimed_total{exported_job="mine"}',), ("claimed_total",)),
    Difference(
        "an attribute `le` of a histogram",
        PUSHED,
        ('bounded_bytes_(bucket|sum|count){exported_le="mine"}',),
        ("bounded_bytes_bucket", 'bounded_bytes_(sum|count){le="mine"}'),
    ),
    Difference("the resource", (*PUSHED, *FORWARDED), ("target_info",), ("target_info",)),
    Difference("the scrape", PUSHED, ("up", "scrape_.*"), ()),
    Difference("the sketch of durations", PUSHED, (), ("prediction_latency_seconds",)),
    Difference(
        "the sum and count of a histogram with negative buckets",
        ("openmetrics", "page"),
        ("prediction_values_(sum|count)",),
        (),
    ),
    Difference(
        "OpenMetrics through a Collector: infos",
        ("forwarded openmetrics",),
        (".+_info",),
        ("model|gpu|system|otel_mlops_build",),
    ),
    Difference(
        "OpenMetrics through a Collector: histograms with negative buckets",
        ("forwarded openmetrics",),
        ("prediction_values_.+",),
        (),
    ),
    Difference(
        "OpenMetrics through a Collector: units with a slash",
        ("forwarded openmetrics",),
        ("odd_flow_.+_bytes_per_second.*",),
        ("odd_flow_.+_bytes_per_second_per_second.*",),
    ),
]
"""What differs, from the page as text; docs/otlp.md says why, in the same words."""

MOVING = {
    "event_loop_lag_seconds.*": "grows with the time",
    "gpu_.*": "is read twice between two readers",
    "otel_mlops_page_(duration|series).*": "is counted by each scrape",
    "otel_mlops_source_(age|duration)_seconds": "is another at each reading",
    "process_.*": "is that of the processes now",
    "python_gc_pause_seconds.*": "grows with the time",
    "scrape_.*": "is about each scrape",
    "system_(?!info|odd).*": "is that of the machine now",
}
"""Series that are compared by presence only, since each reader finds another value."""

OF_THE_SCRAPE = "up|target_info|scrape_.+"
_OF_THE_WAY = ("__name__", "__type__", "__unit__", "job", "instance")


class Found(NamedTuple):
    """What Prometheus has of one way."""

    values: Mapping[Series, float]
    kinds: Mapping[str, tuple[str, str]]
    """Type and unit of each family."""
    bounds: frozenset[str]
    """The texts of all `le`."""
    instances: frozenset[str]


class Ways(NamedTuple):
    """All ways together, after the traffic."""

    found: Mapping[str, Found]
    selectors: Mapping[str, str]
    prometheus: Prometheus
    service: Service
    page: str
    """As text."""
    pushes: tuple[bytes, ...]
    at_s: float
    """When all this was so; the service has ended since."""

    def value(self, query: str) -> float:
        """The one value of a query as of then."""
        (found,) = self.prometheus.ask("query", query=query, time=self.at_s)["result"]
        return float(found["value"][1])


@contextmanager
def passing_on(urls: list[str], pushes: list[bytes]) -> Iterator[str]:
    """A URL to which OTLP can be pushed, and which passes each request on as it is."""

    class Relay(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept = {name: self.headers[name] for name in ("Content-Type", "Content-Encoding") if self.headers[name]}
            for url in urls:
                with urlopen(Request(url, body, kept), timeout=30) as response:
                    response.read()
            pushes.append(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with answering(Relay) as port:
        yield f"http://127.0.0.1:{port}/v1/metrics"


def pipelines(page_port: int, otlp_port: int, health_port: int, prometheus_url: str) -> dict[str, Any]:
    """A Collector that takes pushes and scrapes, and gives both to Prometheus over OTLP."""
    every = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    target = [{"targets": [f"127.0.0.1:{page_port}"]}]
    text, default = FORWARDED
    jobs = [
        {"job_name": text, "static_configs": target, "scrape_protocols": ["PrometheusText0.0.4"]},
        {"job_name": default, "static_configs": target},
    ]
    named = {"key": "service.name", "value": "collected", "action": "upsert"}
    one_at_a_time = {"num_consumers": 1}
    return {
        "extensions": {"health_check": {"endpoint": f"127.0.0.1:{health_port}"}},
        "receivers": {
            "otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{otlp_port}"}}},
            "prometheus": {"config": {"global": every, "scrape_configs": jobs}},
        },
        "processors": {"resource": {"attributes": [named]}},
        "exporters": {"otlp_http": {"endpoint": f"{prometheus_url}/api/v1/otlp", "sending_queue": one_at_a_time}},
        "service": {
            "extensions": ["health_check"],
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {
                "metrics/collected": {"receivers": ["otlp"], "processors": ["resource"], "exporters": ["otlp_http"]},
                "metrics/forwarded": {"receivers": ["prometheus"], "exporters": ["otlp_http"]},
            },
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def ways(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """A service of two workers that has had its traffic, in Prometheus by every way."""
    folder = tmp_path_factory.mktemp("ways")
    page_port, otlp_port, health_port = free_port(), free_port(), free_port()
    target = [{"targets": [f"127.0.0.1:{page_port}"]}]
    jobs = [
        {"job_name": "text", "static_configs": target, "scrape_protocols": ["PrometheusText0.0.4"]},
        {"job_name": "openmetrics", "static_configs": target, "scrape_protocols": ["OpenMetricsText1.0.0"]},
        {"job_name": JOB, "static_configs": target},
    ]
    config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
    features = ["--enable-feature=exemplar-storage", "--enable-feature=type-and-unit-labels"]
    here = f"127.0.0.1:{page_port}"
    selectors = {way: f'job="{way}"' for way in WAYS} | {
        "page": f'job="{JOB}",instance="{here}"',
        "direct": f'job="{JOB}",instance!="{here}"',
        "collected": 'job="shops/collected"',
    }
    pushes: list[bytes] = []
    with ExitStack() as stack:
        server = stack.enter_context(prometheus(folder, config, arguments=features))
        written = folder / "collector.yaml"
        written.write_text(json.dumps(pipelines(page_port, otlp_port, health_port, server.url)))
        stack.enter_context(collector(written, folder / "collector.log", health_port))
        urls = [f"http://127.0.0.1:{otlp_port}/v1/metrics", f"{server.url}/api/v1/otlp/v1/metrics"]
        url = stack.enter_context(passing_on(urls, pushes))
        driver = FakeDriver(build(request.config.cache.mkdir("nvml"))).environment(gpus=2, realtime=True)
        environment = {name: driver[name] for name in driver if name.startswith(("FAKE_NVML", "LD_LIBRARY"))}
        code = "".join(f"    {name} = {globals()[name]!r}\n" for name in ("INSTRUMENTS", "OBSERVED", "KEYED")) + SERVICE
        service = stack.enter_context(
            running(
                code,
                folder,
                page_port=page_port,
                arguments=("--workers", "2"),
                OTEL_METRICS_EXPORTER="prometheus,otlp",
                OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=url,
                OTEL_METRIC_EXPORT_INTERVAL="1000",
                OTEL_MLOPS_MODEL_COUNTS="true",
                OTEL_SERVICE_NAME="shop",
                OTEL_RESOURCE_ATTRIBUTES="service.namespace=shops,deployment.environment.name=test",
                NO_PROXY="*",
                **environment,
            )
        )
        until(lambda: listens(service.page_port))
        # An exemplar is pushed if it is newer than the last push: the first must have been.
        until(lambda: totals(server, selectors, WORKERS.page_name) == [2.0])
        send_traffic(service)
        until(lambda: totals(server, selectors, API_REQUESTS.page_name) == [SENT])
        found = quiet(server, selectors)
        ways = Ways(found, selectors, server, service, get(service.page_url)[0], tuple(pushes), time.time())
        service.process.terminate()
        service.process.wait(WAIT_S)
        yield ways


def totals(server: Prometheus, selectors: Mapping[str, str], name: str) -> list[float]:
    """What the series of a name add up to, in each way: one number once all agree."""
    found = {server.value(f"sum({name}{{{selector}}})") for selector in selectors.values()}
    return sorted(math.nan if each is None else each for each in found)


def send_traffic(service: Service) -> None:
    """Send what the tests count on."""
    for number in range(REQUESTS):
        rows = [[number / 4.0, number % 3], [1.0, 2.0]]
        assert status(f"{service.url}/predict", "POST", json.dumps(rows).encode()) == 200, service.said()
    for path, times, expected in (("broken", BROKEN, 500), ("chat", CHATS, 200), ("nothing", MISSED, 404)):
        assert [status(f"{service.url}/{path}") for _ in range(times)] == [expected] * times


def quiet(server: Prometheus, selectors: Mapping[str, str]) -> dict[str, Found]:
    """What each way says once all say the same; after a while, whatever they say then."""
    found: dict[str, Found] = {}

    def agree() -> bool:
        found.update({way: read(server, selector) for way, selector in selectors.items()})
        text = found["text"]
        return not any(differing(text, found[way]) or any(unexplained(way, found)) for way in WAYS[1:])

    with suppress(AssertionError):  # the tests tell in what they differ
        until(agree)
    return found


def read(server: Prometheus, selector: str) -> Found:
    """What Prometheus has of one way now."""
    every = server.ask("query", query=f'{{__name__!="",{selector}}}')["result"]
    # Of a native histogram, which is of another form, how many it has counted.
    values = {
        series_of(each["metric"]): float(each["value"][1] if "value" in each else each["histogram"][1]["count"])
        for each in every
    }
    assert len(values) == len(every), "two series differ by nothing that tells them apart"
    told = {
        (each["metric"], each["type"], each["unit"])
        for each in server.ask("targets/metadata", match_target=f"{{{selector}}}")
    } or {
        (each["metric"]["__name__"], each["metric"].get("__type__", ""), each["metric"].get("__unit__", ""))
        for each in every
        if not re.fullmatch(OF_THE_SCRAPE, each["metric"]["__name__"])
    }
    kinds = {family_of(name, kind): (kind, unit) for name, kind, unit in told}
    bounds = frozenset(each["metric"]["le"] for each in every if "le" in each["metric"])
    instances = frozenset(each["metric"]["instance"] for each in every)
    return Found(values, kinds, bounds, instances)


def family_of(name: str, kind: str) -> str:
    """The name under which types and units are compared, however it is told."""
    match kind:
        case "histogram":
            return re.sub("_(bucket|sum|count)$", "", name)
        case "counter":
            return name.removesuffix("_total")
        case "info":
            return f"{name}_info"
    return name


def series_of(labels: Mapping[str, str]) -> Series:
    """A series by its labels, without what the way adds; a bound is the same however it is written."""
    kept = {name: text for name, text in labels.items() if name not in _OF_THE_WAY}
    with suppress(KeyError, ValueError):  # no bucket, or an attribute `le` of something else
        kept["le"] = repr(float(kept["le"]))
    return labels["__name__"], frozenset(kept.items())


def differing(one: Found, other: Found) -> dict[Series, tuple[float, float]]:
    """The series of both whose values differ, less those that move."""
    return {
        series: (value, other.values[series])
        for series, value in one.values.items()
        if other.values.get(series, value) != value and not moves(series[0])
    }


def moves(name: str) -> bool:
    """Whether a name is compared by presence only."""
    return any(re.fullmatch(each, name) for each in MOVING)


def covers(pattern: str, series: Series) -> bool:
    """Whether a series is meant by `name` or `name{label="text"}`, of which the name and the label are expressions."""
    name, _, rest = pattern.partition("{")
    label, _, text = rest.removesuffix('"}').partition('="')
    fits = not rest or any(re.fullmatch(label, key) and value == text for key, value in series[1])
    return fits and re.fullmatch(name, series[0]) is not None


def unexplained(way: str, found: Mapping[str, Found]) -> tuple[set[Series], set[Series]]:
    """The series that a way lacks and those that it has instead, less those of the known differences."""
    page, other = found["text"].values.keys(), found[way].values.keys()
    known = [each for each in KNOWN_DIFFERENCES if way in each.ways]
    return (
        {series for series in page - other if not any(covers(p, series) for each in known for p in each.on_page)},
        {series for series in other - page if not any(covers(p, series) for each in known for p in each.instead)},
    )


@pytest.mark.parametrize("way", WAYS[1:])
def test_each_way_gives_the_same_series(ways: Ways, way: str):
    """Names and labels are those of the page as text, less the known differences, each of which is there."""
    assert unexplained(way, ways.found) == (set(), set())
    page, other = ways.found["text"].values.keys(), ways.found[way].values.keys()
    for each in KNOWN_DIFFERENCES:
        if way in each.ways:
            assert [p for p in each.on_page if not any(covers(p, series) for series in page - other)] == []
            assert [p for p in each.instead if not any(covers(p, series) for series in other - page)] == []
    assert len(page & other) > 900


@pytest.mark.parametrize("way", WAYS[1:])
def test_each_way_gives_the_same_values(ways: Ways, way: str):
    """Every value is that of the page as text, to the last digit, of all series that do not move by themselves."""
    assert differing(ways.found["text"], ways.found[way]) == {}


def test_what_moves_by_itself_is_there(ways: Ways):
    """Each family that is compared by presence only is there: the list names nothing that is not."""
    names = {name for name, _ in ways.found["text"].values}
    assert [each for each in MOVING if not any(re.fullmatch(each, name) for name in names)] == []
    assert len({*filter(moves, names)}) < len(names) / 2


@pytest.mark.parametrize("way", WAYS[1:])
def test_each_way_gives_the_same_types(ways: Ways, way: str):
    """Prometheus takes each metric for what the page says; OpenMetrics alone has infos and state sets."""
    plain = {"info": "gauge", "stateset": "gauge"}
    text, other = ways.found["text"].kinds, ways.found[way].kinds
    common = {name: (text[name][0], plain.get(other[name][0], other[name][0])) for name in text.keys() & other.keys()}
    assert {name: both for name, both in common.items() if both[0] != both[1]} == {}
    assert {both[0] for both in common.values()} == {"counter", "gauge", "histogram"}
    assert len(common) > 100


@pytest.mark.parametrize("way", ["page", *PUSHED, "forwarded openmetrics"])
def test_each_way_that_tells_units_tells_the_same(ways: Ways, way: str):
    """Units are those that OpenMetrics has on the page; the text has none."""
    page, other = ways.found["openmetrics"].kinds, ways.found[way].kinds
    common = {name: (page[name][1], other[name][1]) for name in page.keys() & other.keys()}
    assert {name: both for name, both in common.items() if both[0] != both[1]} == {}
    assert {both[0] for both in common.values()} >= {"seconds", "bytes", "percent", "celsius", "watts", ""}
    assert {unit for _, unit in ways.found["text"].kinds.values()} == {""}


def test_types_and_helps_are_listed_of_what_is_scraped_only(ways: Ways):
    """/api/v1/metadata, from which Grafana has types and helps, does not know a name that was only pushed."""
    listed = ways.prometheus.ask("metadata")
    pushed = {name for name, _ in ways.found["direct"].values}
    assert "prediction_latency_seconds" in pushed
    assert "prediction_latency_seconds" not in listed
    assert {row.page_name for row in CATALOGUE if row.kind == "gauge"} & pushed <= listed.keys()


def test_a_push_says_what_the_page_says_of_each_metric(ways: Ways):
    """The help in a push is the page's, and the name is what the rules make of it."""
    page = {family.name: family.documentation for family in parse_text(ways.page)}
    told = {}
    for metric in metrics_in(ways.pushes[-1]):
        which = metric.WhichOneof("data")
        kind = {"sum": "counter" if metric.sum.is_monotonic else "updown", "gauge": "gauge"}.get(which, "histogram")
        told[name_by_otlp(metric.name, kind, metric.unit)] = metric.description
    families = {name.removesuffix("_total"): name for name in told}
    common = families.keys() & page.keys()
    assert {name: page[name] for name in common} == {name: told[families[name]] for name in common}
    assert len(common) > 100
    arrived = {family for family in ways.found["direct"].kinds if not moves(family)}
    assert {name.removesuffix("_total") for name in told if not moves(name)} == arrived


def metrics_in(push: bytes) -> Iterator[Any]:
    """The metrics of an export."""
    (of_resource,) = ExportMetricsServiceRequest.FromString(push).resource_metrics
    for of_scope in of_resource.scope_metrics:
        yield from of_scope.metrics


def test_a_group_pushes_as_one_instance(ways: Ways):
    """All pushes of two workers come from one service.instance.id, which is the label `instance`."""
    ids = set()
    for push in ways.pushes:
        (of_resource,) = ExportMetricsServiceRequest.FromString(push).resource_metrics
        ids |= {
            each.value.string_value for each in of_resource.resource.attributes if each.key == "service.instance.id"
        }
    assert len(ids) == 1
    assert ways.found["direct"].instances == ways.found["collected"].instances == ids
    (address,) = ways.found["page"].instances
    assert ways.found["text"].instances == ways.found["forwarded"].instances == {address}
    assert address == f"127.0.0.1:{ways.service.page_port}"
    (target,) = (dict(labels) for name, labels in ways.found["text"].values if name == "target_info")
    assert {target["service_instance_id"]} == ids


def test_the_resource_is_in_target_info_each_way(ways: Ways):
    """The page's has the service's name and id, a pushed one leaves them to `job` and `instance`; all have the rest."""
    for way, found in ways.found.items():
        targets = [dict(labels) for name, labels in found.values if name == "target_info"]
        # Of a scrape that failed, before the service was there, a Collector tells a resource that is almost empty.
        (target,) = (each for each in targets if way not in FORWARDED or "telemetry_sdk_name" in each)
        assert target["deployment_environment_name"] == "test"
        assert target.get("service_name") == (None if way in PUSHED else "shop")
        assert ("service_instance_id" in target) == (way not in PUSHED)
        assert ("server_port" in target) == (way in FORWARDED)


def test_a_bound_is_written_in_two_ways(ways: Ways):
    """Prometheus 3 writes a scraped bound as 1.0 and 1e+06, a pushed one as 1 and 1000000: match none by equality."""
    for way in PULLED:
        assert {"1.0", "0.5", "1e+07"} <= ways.found[way].bounds
        assert not {"1", "10000000"} & ways.found[way].bounds
    for way in (*PUSHED, *FORWARDED):
        assert {"1", "0.5", "10000000"} <= ways.found[way].bounds
        assert not {"1.0", "1e+07"} & ways.found[way].bounds


def test_no_way_has_labels_of_scopes_or_samples_of_creation(ways: Ways):
    """Neither otel_scope_name nor _created is anywhere, each of which would be one more series for nothing."""
    for way, found in ways.found.items():
        names = {name for _, labels in found.values for name, _ in labels}
        assert not [name for name in names if name.startswith("otel_scope")], way
        assert not [name for name, _ in found.values if name.endswith("_created")], way


def test_attributes_that_become_one_label_are_joined_each_way(ways: Ways):
    """`a.b` and `a_b` are one label whose value has both, and an attribute without a value is no label."""
    for way, found in ways.found.items():
        labels = [dict(labels) for name, labels in found.values if name == "keyed_total"]
        assert [each for each in labels if each.get("a_b") == "1;2"], way
        plain = [dict(labels) for name, labels in found.values if name == "odd_plain_counter_total"]
        assert plain == [{"a_b": "x", "Camel_Case": "y", "fits": "true", "number": "3"}], way


def test_exemplars_come_by_push_and_by_openmetrics(ways: Ways):
    """Both give each bucket's newest exemplar with its trace; the text, by whomever it is scraped, has none."""
    found = {way: exemplars(ways, way) for way in WAYS}
    assert found["text"] == found["forwarded"] == {}
    for way in ("page", *PUSHED, "forwarded openmetrics"):
        assert found[way] == found["openmetrics"], way
    assert len(found["openmetrics"]) >= 3


def exemplars(ways: Ways, way: str) -> dict[Series, tuple[float, str]]:
    """The newest exemplar of each bucket of the predictions' duration: its value and its trace."""
    query = f"{PREDICTION_DURATION.page_name}_bucket{{{ways.selectors[way]}}}"
    every = ways.prometheus.ask("query_exemplars", query=query, start=time.time() - 600, end=time.time())
    newest = {series_of(each["seriesLabels"]): each["exemplars"][-1] for each in every}
    return {series: (float(each["value"]), each["labels"]["trace_id"]) for series, each in newest.items()}


def test_the_sketch_gives_the_percentiles_of_the_page(ways: Ways):
    """The pushed sketch has in PromQL the 99th percentile that the page has, to the width of its bucket."""
    of = f'model_name="loans",model_version="v1",{ways.selectors["direct"]}'
    pushed = ways.value(f"histogram_quantile(0.99, prediction_latency_seconds{{{of}}})")
    assert pushed == pytest.approx(ways.value(f"{PREDICTION_LATENCY_P99.page_name}{{{of}}}"), rel=0.025)


def test_both_ways_under_one_job_count_everything_twice(ways: Ways):
    """Where the page is scraped and the push arrives too, a sum over the job is the double: choose one way."""
    assert ways.value(f'sum(api_requests_total{{job="{JOB}"}})') == 2 * SENT


def test_differences_are_refused(ways: Ways):
    """Prometheus takes no delta temporality as it is: keep the default, which is cumulative."""
    point = {"asDouble": 1, "timeUnixNano": str(time.time_ns()), "startTimeUnixNano": str(time.time_ns() - 1)}
    metric = {"name": "differences", "sum": {"dataPoints": [point], "aggregationTemporality": 1, "isMonotonic": True}}
    body = {"resourceMetrics": [{"resource": {}, "scopeMetrics": [{"scope": {}, "metrics": [metric]}]}]}
    url = f"{ways.prometheus.url}/api/v1/otlp/v1/metrics"
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}), timeout=30)
    assert (refused.value.code, "temporality" in refused.value.read().decode()) == (500, True)


def test_the_docs_list_every_difference():
    """The table of docs/otlp.md has the known differences and no other."""
    text = (Path(__file__).parents[2] / "docs" / "otlp.md").read_text()
    table = text.partition("| What |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in table] == [each.title for each in KNOWN_DIFFERENCES]


# --- When the service ends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [*PULLED, *FORWARDED])
def test_what_is_scraped_ends_with_the_service(ways: Ways, way: str):
    """With the next scrape `up` is 0 and the page's series are gone; a Collector does not end those of a `_sum`."""
    selector = ways.selectors[way]
    left = OF_THE_SCRAPE + ("|.+_sum" if way in FORWARDED else "")
    of_the_page = f'{{__name__!~"{left}",{selector}}}'
    until(lambda: ways.prometheus.value(f"up{{{selector}}}") == 0)
    until(lambda: not ways.prometheus.ask("query", query=of_the_page)["result"])
    sums = ways.prometheus.ask("query", query=f'{{__name__=~".+_sum",{selector}}}')["result"]
    assert bool(sums) == (way in FORWARDED)


@pytest.mark.parametrize("way", PUSHED)
def test_what_is_pushed_lingers_for_five_minutes(ways: Ways, way: str):
    """The last values stay for Prometheus' five minutes; that nothing comes any more shows in absent_over_time."""
    workers = f"{WORKERS.page_name}{{{ways.selectors[way]}}}"
    until(lambda: ways.prometheus.value(f"absent_over_time({workers}[3s])") == 1)
    last = ways.prometheus.value(f"timestamp({workers})")
    assert last is not None
    assert ways.prometheus.value(f"time() - timestamp({workers})") > 1
    assert at(ways, workers, last + 299) == 1
    assert at(ways, workers, last + 301) == 0
    assert ways.prometheus.value(f"sum(api_requests_total{{{ways.selectors[way]}}})") == SENT
    assert ways.prometheus.value(f"up{{{ways.selectors[way]}}}") is None


def at(ways: Ways, query: str, time_s: float) -> int:
    """How many series a query finds at a time, which need not have come."""
    return len(ways.prometheus.ask("query", query=query, time=time_s)["result"])
