"""A real Prometheus scrapes a running service: every query has data, and every value is what was sent."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.request import Request, urlopen

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from otel_mlops.metrics import CATALOGUE
from tests.servers.programs import Prometheus, answering, program, prometheus, scraping
from tests.servers.service import Service, get, running, status, until

SERVICE = """
    from fastapi import FastAPI
    from otel_mlops import configure_telemetry

    app = FastAPI(title="housing")
    telemetry = configure_telemetry(app, metrics_path="/metrics", monitoring_interval=0.5)
    model = telemetry.model("housing", version="v1.2.3", stage="production", type="regression", features=8)

    with model.loading():
        weights = (0.5, -1.0)

    telemetry.update_model_performance_metrics(
        model_version="v1.2.3", dataset="validation", accuracy=0.95, rmse=0.123, mae=0.089, r2=0.92
    )
    telemetry.update_api_health_status("database", True)
    telemetry.update_api_health_status("model", False)
    telemetry.update_prediction_latency_percentiles("v1.2.3", p95_latency=0.05, p99_latency=0.1)
    telemetry.update_model_drift_score(model_version="v1.2.3", feature="MedInc", drift_score=0.15)
    telemetry.system_info.info({"environment": "production", "version": "1.0.0", "deployment_date": "2024-01-15"})
    telemetry.schedule_task(lambda: None, 3600, "health_check")

    @app.post("/predict")
    def predict(rows: list[float]) -> list[float]:
        with model.prediction() as prediction:
            prediction.values = [weights[0] * row + weights[1] for row in rows]
        with telemetry.database_operation("insert", 'predictions "of" \\\\ today'):
            pass
        return prediction.values

    @app.get("/broken")
    def broken() -> None:
        raise ValueError("secret")
"""

QUERIES = (
    "rate(api_requests_total[5m])",
    "histogram_quantile(0.95, prediction_duration_seconds_bucket)",
    "rate(errors_total[5m])",
    'model_accuracy_score{model_version="v1.2.3"}',
    "system_cpu_usage_percent",
    "system_memory_usage_bytes / system_memory_total_bytes * 100",
    'api_health_status{component="database"}',
)
"""The queries that must return data, less the GPU's: there is none here."""

PREDICT = '{method="POST",endpoint="/predict"'
BATCH = '{model_name="housing",model_version="v1.2.3",prediction_type="batch"}'
TRAFFIC = 20
SENT = {
    f'api_requests_total{PREDICT},status_code="200"}}': TRAFFIC,
    'api_requests_total{endpoint="unmatched",status_code="404"}': 3,
    f"api_request_duration_seconds_count{PREDICT}}}": TRAFFIC,
    f'api_request_duration_seconds_bucket{PREDICT},le="+Inf"}}': TRAFFIC,
    f"api_request_size_bytes_sum{PREDICT}}}": TRAFFIC * len(b"[1.0, 2.0, 3.0]"),
    f"predictions_total{BATCH}": 3 * TRAFFIC,
    'daily_predictions_total{model_name="housing",model_version="v1.2.3"}': 3 * TRAFFIC,
    f"prediction_duration_seconds_count{BATCH}": TRAFFIC,
    'prediction_values_bucket{model_version="v1.2.3",le="-0.1"}': TRAFFIC,
    'prediction_values_bucket{model_version="v1.2.3",le="+Inf"}': 3 * TRAFFIC,
    'errors_total{error_type="ValueError",endpoint="/broken"}': 2,
    'database_operations_total{operation="insert",table="predictions \\"of\\" \\\\ today"}': TRAFFIC,
    'model_accuracy_score{dataset="validation"}': 0.95,
    'model_rmse_score{dataset="validation"}': 0.123,
    'model_drift_score{feature="MedInc"}': 0.15,
    "prediction_latency_p99_seconds": 0.1,
    'model_info{stage="production",type="regression",features="8"}': 1,
    'model_status{model_status="ready"}': 1,
    'model_status{model_status="error"}': 0,
    'api_health_status{component="model"}': 0,
    'system_info{environment="production",version="1.0.0",deployment_date="2024-01-15"}': 1,
    'scheduled_task_runs_total{task="health_check",result="success"}': 1,
    'otel_mlops_source_up{source="host"}': 1,
}
"""What the traffic must have left, by selector."""

JOBS = ("page", "text", "app")
"""The page's port in OpenMetrics, the same as text, and the application's own /metrics."""


class Scraped(NamedTuple):
    """A service that has had its traffic, and the Prometheus that scrapes it."""

    service: Service
    prometheus: Prometheus


@contextmanager
def as_text(page_url: str) -> Iterator[int]:
    """A port where the page is always text: no Prometheus before 2.49 can be told to ask for that."""

    class Relay(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with urlopen(Request(page_url, headers={"Accept": "text/plain"}), timeout=30) as response:
                body = response.read()
                self.send_response(response.status)
                self.send_header("Content-Type", response.headers["Content-Type"])
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with answering(Relay) as port:
        yield port


def in_every_job(value: float) -> dict[str, list[float]]:
    """The result of a query that finds the same one value in every job."""
    return {job: [value] for job in JOBS}


@pytest.fixture(scope="module", params=["prometheus", "prometheus-2"])
def scraped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """A service under each Prometheus, after traffic of which half came while it was scraped."""
    folder = tmp_path_factory.mktemp(request.param)
    with running(SERVICE, folder) as service, as_text(service.page_url) as text_port:
        ports = dict(zip(JOBS, (service.page_port, text_port, service.port), strict=True))
        with prometheus(folder, scraping(ports), name=request.param, arguments=["--log.level=debug"]) as watcher:
            send_traffic(service, TRAFFIC // 2, failures=1, misses=1)
            until(lambda: all(len(watcher.by_job("errors_total").get(job, ())) == 1 for job in JOBS))
            send_traffic(service, TRAFFIC // 2, failures=1, misses=2)
            until(lambda: watcher.by_job("errors_total == 2").keys() == set(JOBS))
            yield Scraped(service, watcher)


def send_traffic(service: Service, predictions: int, failures: int, misses: int) -> None:
    """Send what SENT speaks of."""
    for _ in range(predictions):
        assert status(f"{service.url}/predict", "POST", b"[1.0, 2.0, 3.0]") == 200
    for _ in range(failures):
        assert status(f"{service.url}/broken") == 500
    for number in range(misses):
        assert status(f"{service.url}/no/such/path/{number}") == 404


def test_every_target_is_up_and_nothing_is_complained_about(scraped):
    """Both formats and the application's own page are scraped without an error or a warning in Prometheus' log."""
    targets = {each["labels"]["job"]: each for each in scraped.prometheus.ask("targets")["activeTargets"]}
    assert {job: each["lastError"] for job, each in targets.items()} == dict.fromkeys(JOBS, "")
    assert scraped.prometheus.by_job("up") == in_every_job(1.0)
    assert scraped.prometheus.by_job("min_over_time(up[1m])") == in_every_job(1.0)
    assert scraped.prometheus.complaints() == []


@pytest.mark.parametrize("query", QUERIES)
def test_each_query_that_must_return_data_does(scraped, query):
    """The queries of the specification return finite numbers, from every job."""
    until(lambda: scraped.prometheus.by_job(query).keys() == set(JOBS))
    for values in scraped.prometheus.by_job(query).values():
        assert all(map(math.isfinite, values))


def test_the_rates_and_quantiles_are_those_of_the_traffic(scraped):
    """A rate over the scrapes is above nothing, a share is a share, and a quantile lies among the buckets."""
    for job in JOBS:
        until(lambda job=job: scraped.prometheus.by_job(f'sum by (job) (rate(errors_total{{job="{job}"}}[5m])) > 0'))
    for values in scraped.prometheus.by_job("system_memory_usage_bytes / system_memory_total_bytes * 100").values():
        assert 0 < values[0] < 100
    for values in scraped.prometheus.by_job("histogram_quantile(0.95, prediction_duration_seconds_bucket)").values():
        assert 0 < values[0] <= 10


@pytest.mark.parametrize("selector", SENT)
def test_the_values_are_what_was_sent(scraped, selector):
    """After the traffic each job has exactly what was sent, in every format alike."""
    assert scraped.prometheus.by_job(selector) == in_every_job(SENT[selector])


def test_an_absent_gpu_is_absent(scraped):
    """Without a GPU its query finds nothing: no series, not 0."""
    assert scraped.prometheus.by_job('{__name__=~"gpu_.+"}') == {}


def test_a_signed_histogram_has_its_sum_in_the_text_format_only(scraped):
    """OpenMetrics forbids the sum of negative buckets; who needs it scrapes the text."""
    assert scraped.prometheus.by_job("prediction_values_sum") == {"text": [0.0]}


def test_prometheus_stores_every_sample_of_the_page(scraped):
    """As many samples are ingested as stand on the page: none is dropped, none appears twice."""
    page = scraped.service.page_url
    in_text = sum(len(family.samples) for family in parse_text(get(page, Accept="text/plain")[0]))
    openmetrics, content_type = get(page, Accept="application/openmetrics-text")
    in_openmetrics = sum(len(family.samples) for family in parse_openmetrics(openmetrics))
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    until(lambda: scraped.prometheus.by_job("scrape_samples_scraped").get("text") == [in_text])
    until(lambda: scraped.prometheus.by_job("scrape_samples_scraped").get("page") == [in_openmetrics])
    dropped = "scrape_samples_scraped - scrape_samples_post_metric_relabeling"
    assert scraped.prometheus.by_job(dropped) == in_every_job(0.0)


@pytest.mark.parametrize("job", JOBS)
def test_prometheus_knows_what_each_metric_is(scraped, job):
    """Type and help of the metrics on the page reach Prometheus as they stand in the catalogue."""
    target = f'{{job="{job}"}}'
    metadata = scraped.prometheus.ask("targets/metadata", match_target=target)
    said = {each["metric"]: (each["type"], each["help"]) for each in metadata}
    in_text = job == "text"
    plain = {"updown": "gauge"} | ({"info": "gauge", "stateset": "gauge"} if in_text else {})
    expected = {
        (row.page_name if in_text else row.family): (plain.get(row.kind, row.kind), row.help) for row in CATALOGUE
    }
    on_page = expected.keys() & said.keys()
    assert {name: said[name] for name in on_page} == {name: expected[name] for name in on_page}
    assert len(on_page) > 35
    assert {"api_request_duration_seconds", "system_memory_usage_bytes", "active_connections_count"} <= on_page


def test_promtool_accepts_the_page(scraped):
    """`promtool check metrics` finds nothing on the page but the `_count` of the one name that is fixed."""
    page = get(scraped.service.page_url, Accept="text/plain")[0]
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=page, capture_output=True, text=True, timeout=30, check=False
    )
    findings = (done.stdout + done.stderr).splitlines()
    assert len(findings) == 1, findings
    assert findings[0].startswith("active_connections_count")
