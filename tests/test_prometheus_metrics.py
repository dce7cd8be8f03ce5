"""What the specification asks for, in its own words: every metric recorded, updated and seen on the page."""

from __future__ import annotations

import json
import logging
import math
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from fastapi import FastAPI, HTTPException, WebSocket
from prometheus_client import CollectorRegistry, Counter, generate_latest

from otel_mlops import configure_telemetry, get_telemetry
from otel_mlops.metrics import (
    HARDWARE_TEMPERATURE,
    SYSTEM_CPU_USAGE,
    SYSTEM_DISK_TOTAL,
    SYSTEM_DISK_USAGE,
    SYSTEM_MEMORY_TOTAL,
    SYSTEM_MEMORY_USAGE,
)
from otel_mlops.settings import Settings
from otel_mlops.sources.host import open_host
from otel_mlops.sources.sampler import Sample
from otel_mlops.telemetry import Telemetry
from otel_mlops.testing import Samples, collect, fresh_telemetry
from tests import waiting
from tests.asgi import Socket, ask, serving

REQUIRED = Path(__file__).parent / "required_metrics.md"
PATIENCE_S = 30.0
eventually = partial(waiting.eventually, within_s=PATIENCE_S)

SPECIFICATION = """
from otel_mlops import configure_telemetry, get_telemetry, initialize_metrics, get_metrics

metrics = initialize_metrics(start_server=True, server_port=8001, start_monitoring=True, monitoring_interval=5.0)
metrics = get_metrics()

metrics.record_request(method="POST", endpoint="/predict", status_code=200, duration=0.025)          # seconds
metrics.record_error(error_type="ValueError", endpoint="/predict")
metrics.record_prediction(duration_ms=15.5, model_version="v1.2.3", prediction_value=4.2)            # milliseconds
metrics.update_model_performance_metrics(model_version="v1.2.3", dataset="validation",
                                         accuracy=0.95, rmse=0.123, mae=0.089, r2=0.92)  # each score optional
metrics.schedule_task(func=custom_health_check, interval_seconds=30, task_name="health_check")
metrics.update_api_health_status("database", True)
metrics.update_api_health_status("model", False)
metrics.update_prediction_latency_percentiles(model_version="v1.2.3", p95_latency=0.05, p99_latency=0.1)
metrics.update_model_drift_score(model_version="v1.2.3", feature="MedInc", drift_score=0.15)
metrics.system_info.info({"environment": "production", "version": "1.0.0", "deployment_date": "2024-01-15"})
"""
"""The lines of the specification, as they stand there."""

V1 = {"model_version": "v1.2.3"}
SINGLE = {**V1, "prediction_type": "single"}
VALIDATION = {**V1, "dataset": "validation"}
AT = {"method": "POST", "endpoint": "/predict"}

SAID = {
    ("api_requests_total", 1.0): {**AT, "status_code": "200"},
    ("api_request_duration_seconds_count", 1.0): AT,
    ("api_request_duration_seconds_sum", 0.025): AT,
    ("errors_total", 1.0): {"error_type": "ValueError", "endpoint": "/predict"},
    ("predictions_total", 1.0): SINGLE,
    ("daily_predictions_total", 1.0): V1,
    ("prediction_duration_seconds_count", 1.0): SINGLE,
    ("prediction_duration_seconds_sum", 0.0155): SINGLE,
    ("prediction_values_count", 1.0): V1,
    ("prediction_values_sum", 4.2): V1,
    ("model_accuracy_score", 0.95): VALIDATION,
    ("model_rmse_score", 0.123): VALIDATION,
    ("model_mae_score", 0.089): VALIDATION,
    ("model_r2_score", 0.92): VALIDATION,
    ("prediction_latency_p95_seconds", 0.05): V1,
    ("prediction_latency_p99_seconds", 0.1): V1,
    ("model_drift_score", 0.15): {**V1, "feature": "MedInc"},
    ("system_info", 1.0): {"environment": "production", "version": "1.0.0", "deployment_date": "2024-01-15"},
}
"""What the lines of the specification put on the page: name and value, and all of the labels."""

BATCH = {**V1, "prediction_type": "batch"}
OBSERVED = {
    SYSTEM_CPU_USAGE: 12.5,
    SYSTEM_MEMORY_USAGE: 4e9,
    SYSTEM_MEMORY_TOTAL: 16e9,
}

THE_REST = {
    ("model_info", 1.0): {"model_name": "housing", **V1, "stage": "production", "type": "regression", "features": "8"},
    ("model_load_duration_seconds_sum", 2.5): V1,
    ("model_status", 1.0): {**V1, "model_status": "ready"},
    ("database_operations_total", 1.0): {"operation": "insert", "table": "predictions"},
    ("database_operation_duration_seconds_sum", 0.003): {"operation": "insert", "table": "predictions"},
    ("active_connections_count", 0.0): {},
    ("api_health_status", 1.0): {"component": "database"},
    ("system_cpu_usage_percent", 12.5): {},
    ("system_memory_usage_bytes", 4e9): {},
    ("system_memory_total_bytes", 16e9): {},
    ("system_disk_usage_bytes", 2e10): {"mount_point": "/"},
    ("system_disk_total_bytes", 1e11): {"mount_point": "/"},
    ("hardware_temperature_celsius", 41.5): {"component": "coretemp/Core 0"},
}
"""The required metrics of which the specification's lines say nothing, or which a machine must be asked for."""


def machine():
    """A machine whose values are known."""
    yield from (Sample(row, value) for row, value in OBSERVED.items())
    yield Sample(SYSTEM_DISK_USAGE, 2e10, {"mount_point": "/"})
    yield Sample(SYSTEM_DISK_TOTAL, 1e11, {"mount_point": "/"})
    yield Sample(HARDWARE_TEMPERATURE, 41.5, {"component": "coretemp/Core 0"})


def required() -> dict[str, tuple[str, list[str]]]:
    """The required metrics by their names on the page: kind and labels."""
    rows = {}
    for line in REQUIRED.read_text().splitlines()[2:]:
        names, kind, labels, _ = (cell.strip() for cell in line.strip("|").split(" |"))
        bare = re.sub(r"\(.*?\)", "", labels)
        for name in names.split(", "):
            rows[name] = kind, [label.strip() for label in bare.split(",") if label.strip().isidentifier()]
    return rows


def labels_of(samples: Samples, name: str) -> list[dict[str, str]]:
    """The labels of every series of a metric, a histogram's from its count."""
    return samples.labels(name) or samples.labels(f"{name}_count")


def scrape(url: str) -> str:
    """The page as a scraper reads it."""
    with urlopen(url, timeout=PATIENCE_S) as response:
        return response.read().decode()


def is_closed(url: str) -> bool:
    """Whether nothing listens at a URL's port any more."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(autouse=True)
def threads_end():
    """Each test leaves no thread of ours behind."""
    before = set(threading.enumerate())
    yield
    eventually(lambda: not [each for each in set(threading.enumerate()) - before if each.name.startswith("otel-mlops")])


@pytest.fixture
def metrics():
    """A telemetry of the test's own, on a machine whose values are known."""
    with fresh_telemetry(sources={"machine": machine}) as fresh:
        yield fresh


@pytest.fixture
async def everything_said(metrics):
    """The page after all that the required table speaks of has happened once."""
    exec(SPECIFICATION.partition("metrics = get_metrics()")[2], {"metrics": metrics, "custom_health_check": int})
    metrics.set_model_info("housing", "v1.2.3", stage="production", type="regression", features=8)
    metrics.record_model_load("v1.2.3", 2.5)
    metrics.set_model_status("v1.2.3", "ready")
    metrics.record_database_operation("insert", "predictions", 0.003)
    app = FastAPI()
    metrics.instrument_app(app)
    await ask(app, "GET", "/")
    metrics.sample()
    return collect(metrics)


class TestPrometheusMetrics:
    """Each metric, recorded and updated."""

    def test_the_lines_of_the_specification_work_as_written(self):
        """Every line of the specification runs in a process of its own, and its values are on the page."""
        script = f"""
            import time
            runs = []
            def custom_health_check():
                runs.append(time.monotonic())
            {textwrap.indent(SPECIFICATION, " " * 12).strip()}
            assert metrics is get_telemetry()
            until = time.monotonic() + {PATIENCE_S}
            while not runs or b"system_cpu_usage_percent " not in metrics.page().body:
                assert time.monotonic() < until
                time.sleep(0.01)
            from otel_mlops.testing import collect
            import json
            print(json.dumps([[name, sorted(labels), value] for (name, labels), value in collect(metrics).items()]))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
        )
        page = {(name, value): dict(labels) for name, labels, value in json.loads(done.stdout)}
        assert {key: page.get(key) for key in SAID} == SAID
        health = {labels[0][1]: value for name, labels, value in json.loads(done.stdout) if name == "api_health_status"}
        assert health == {"database": 1.0, "model": 0.0}
        assert not any(name.startswith("gpu_") for name, _ in page)

    @pytest.mark.parametrize("key", [*SAID, *THE_REST], ids=lambda key: key[0])
    def test_every_required_metric_is_on_the_page(self, everything_said, key):
        """After what the specification describes each metric has its value, with exactly the labels of its series."""
        name, value = key
        labels = (SAID | THE_REST)[key]
        assert everything_said[name, frozenset(labels.items())] == value

    def test_no_required_metric_is_forgotten_here(self, everything_said):
        """The table above speaks of every required metric but the GPU's, and each has the labels it must have."""
        rows = required()
        spoken = {re.sub(r"_(count|sum)$", "", name) if name not in rows else name for name, _ in SAID | THE_REST}
        assert spoken == {name for name in rows if not name.startswith("gpu_")}
        for name in spoken:
            for labels in labels_of(everything_said, name):
                assert set(rows[name][1]) == set(labels), name

    def test_a_gpu_that_is_absent_has_no_values(self, everything_said):
        """Without a GPU there are no gpu_ metrics: absent, not 0."""
        assert not [name for name in everything_said.names() if name.startswith("gpu_")]

    def test_requests_are_counted_by_method_endpoint_and_status(self, metrics):
        """Each request adds to its counter, and its seconds to the histogram of its endpoint."""
        for status_code, duration in ((200, 0.02), (200, 0.04), (404, 0.5)):
            metrics.record_request("GET", "/items/{item_id}", status_code, duration)
        page = collect(metrics)
        at = {"method": "GET", "endpoint": "/items/{item_id}"}
        assert page.value("api_requests_total", **at, status_code="200") == 2
        assert page.value("api_requests_total", **at, status_code="404") == 1
        assert page.value("api_request_duration_seconds_count", **at) == 3
        assert page.value("api_request_duration_seconds_sum", **at) == pytest.approx(0.56)
        assert page.value("api_request_duration_seconds_bucket", **at, le="0.025") == 1
        assert page.value("api_request_duration_seconds_bucket", **at, le="0.05") == 2
        assert page.value("api_request_duration_seconds_bucket", **at, le="+Inf") == 3

    def test_a_method_nobody_knows_is_other(self, metrics):
        """Unknown methods share one label value, so nobody can make up new ones."""
        for method in ("GET", "BREW", "get", "x" * 1000):
            metrics.record_request(method, "/", 200, 0.1)
        page = collect(metrics)
        assert page.value("api_requests_total", method="GET") == 1
        assert page.value("api_requests_total", method="_OTHER") == 3

    def test_errors_are_counted_by_their_class(self, metrics):
        """An error is counted under its class; given the exception itself, its text stays out of the label."""
        metrics.record_error("ValueError", "/predict")
        metrics.record_error(ValueError("user 4711"), "/predict")
        metrics.record_error(ValueError, "/predict")
        page = collect(metrics)
        assert page.value("errors_total", error_type="ValueError", endpoint="/predict") == 3
        assert page.labels("errors_total") == [{"error_type": "ValueError", "endpoint": "/predict"}]

    def test_single_and_batch_predictions_are_told_apart(self, metrics):
        """One prediction adds 1 to `single`; a batch adds its rows to `batch`, and one duration."""
        metrics.record_prediction(duration_ms=10, model_version="v1", prediction_value=-2.5)
        metrics.record_prediction(duration_ms=20, model_version="v1")
        metrics.record_batch_prediction([1.0, 2.0, 3.0], duration_ms=30, model_version="v1")
        metrics.record_batch_prediction([], duration_ms=1, model_version="v1")
        page = collect(metrics)
        assert page.value("predictions_total", prediction_type="single") == 2
        assert page.value("predictions_total", prediction_type="batch") == 3
        assert page.value("prediction_duration_seconds_count", prediction_type="batch") == 2
        assert page.value("prediction_duration_seconds_sum", prediction_type="single") == pytest.approx(0.03)
        assert page.value("prediction_values_count") == 4
        assert page.value("prediction_values_sum") == pytest.approx(3.5)
        assert page.value("prediction_values_bucket", le="-1.0") == 1
        assert page.value("prediction_batch_size_sum") == 3
        assert page.value("daily_predictions_total", model_version="v1") == 5

    @pytest.mark.parametrize("columns", [1, 3])
    def test_a_batch_may_be_an_array(self, metrics, columns):
        """The rows of an array are counted; its values too, where there is one a row."""
        metrics.record_batch_prediction(np.ones((4, columns)), duration_ms=1, model_version="v1")
        page = collect(metrics)
        assert page.value("predictions_total", prediction_type="batch") == 4
        assert ("prediction_values_count" in page.names()) is (columns == 1)

    def test_predictions_of_a_named_model_carry_its_name(self, metrics):
        """Where the name is given too it is a label, else there is no such label."""
        metrics.record_prediction(1.0, "v1", 1.0)
        metrics.record_prediction(1.0, "v1", 1.0, model_name="housing")
        assert sorted(map(sorted, collect(metrics).labels("predictions_total"))) == [
            ["model_name", "model_version", "prediction_type"],
            ["model_version", "prediction_type"],
        ]

    def test_scores_that_are_not_given_stay(self, metrics):
        """Each score is optional, and one that is left out keeps its value."""
        metrics.update_model_performance_metrics("v1", "validation", accuracy=0.9, rmse=0.2)
        metrics.update_model_performance_metrics("v1", "validation", accuracy=0.95, r2=0.0)
        page = collect(metrics)
        assert page.value("model_accuracy_score", model_version="v1", dataset="validation") == 0.95
        assert page.value("model_rmse_score") == 0.2
        assert page.value("model_r2_score") == 0.0
        assert "model_mae_score" not in page.names()

    def test_percentiles_and_drift_are_updated(self, metrics):
        """The last value pushed is the one on the page, of each model and feature by itself."""
        metrics.update_prediction_latency_percentiles("v1", p95_latency=0.05, p99_latency=0.1)
        metrics.update_prediction_latency_percentiles("v1", p95_latency=0.07)
        metrics.update_model_drift_score("v1", "MedInc", 0.1)
        metrics.update_model_drift_score("v1", "MedInc", 0.2)
        metrics.update_model_drift_score("v1", "AveRooms", 0.3)
        page = collect(metrics)
        assert page.value("prediction_latency_p95_seconds", model_version="v1") == 0.07
        assert page.value("prediction_latency_p99_seconds", model_version="v1") == 0.1
        assert page.value("model_drift_score", feature="MedInc") == 0.2
        assert page.value("model_drift_score", feature="AveRooms") == 0.3

    def test_a_models_status_is_one_of_four(self, metrics):
        """One state has the value 1 and the others 0; another state is refused, with the four that there are."""
        for status in ("loading", "ready", "error", "unavailable", "ready"):
            metrics.set_model_status("v1", status)
            states = {labels["model_status"] for labels in collect(metrics).labels("model_status")}
            assert states == {"loading", "ready", "error", "unavailable"}
            assert collect(metrics).value("model_status", model_status=status) == 1
            assert collect(metrics).value("model_status") == 1
        with pytest.raises(ValueError, match="status is 'broken', expected one of error, loading, ready, unavailable"):
            metrics.set_model_status("v1", "broken")

    def test_what_is_said_of_a_model_or_the_system_replaces_what_was_said(self, metrics):
        """There is one info of a model version and one of the system: the last that was given."""
        metrics.set_model_info("housing", "v1", stage="staging", type="regression", features=8)
        metrics.set_model_info("housing", "v1", stage="production")
        metrics.set_model_info("housing", "v2")
        metrics.system_info.info({"environment": "staging", "version": "1"})
        metrics.system_info.info({"environment": "production"})
        page = collect(metrics)
        assert page.labels("model_info") == [
            {"model_name": "housing", "model_version": "v1", "stage": "production"},
            {"model_name": "housing", "model_version": "v2"},
        ]
        assert page.labels("system_info") == [{"environment": "production"}]

    def test_database_operations_are_counted_and_timed_those_that_fail_too(self, metrics):
        """A `with` block times its operation and counts it, and an exception goes on its way."""
        with metrics.database_operation("select", "houses"):
            pass
        with pytest.raises(KeyError), metrics.database_operation("select", "houses"):
            raise KeyError
        metrics.record_database_operation("select", "houses", 0.25)
        page = collect(metrics)
        assert page.value("database_operations_total", operation="select", table="houses") == 3
        assert page.value("database_operation_duration_seconds_count") == 3
        assert 0.25 <= page.value("database_operation_duration_seconds_sum") < 0.5

    def test_the_health_of_components_is_updated_and_told(self, metrics):
        """Each component is 1 or 0, and health() says it in one word."""
        assert metrics.health() == {"status": "healthy", "components": {}}
        metrics.update_api_health_status("database", True)
        metrics.update_api_health_status("model", False)
        assert collect(metrics).value("api_health_status", component="model") == 0
        assert metrics.health() == {"status": "unhealthy", "components": {"database": True, "model": False}}
        metrics.update_api_health_status("model", 1)
        assert collect(metrics).value("api_health_status", component="model") == 1
        assert metrics.health()["status"] == "healthy"

    def test_a_registry_of_ones_own_holds_our_metrics_and_the_hosts(self):
        """With a registry given both sides see both: ours in the registry, and the host's own on our page."""
        registry = CollectorRegistry()
        Counter("cache_hits", "The host's own.", registry=registry).inc(3)
        telemetry = Telemetry(Settings(service_name="test", start_server=False, set_global=False), registry=registry)
        try:
            telemetry.record_error("ValueError", "/predict")
            assert collect(telemetry).value("cache_hits_total") == 3
            assert b'errors_total{endpoint="/predict",error_type="ValueError"} 1.0' in generate_latest(registry)
        finally:
            telemetry.shutdown()
        assert b"errors_total" not in generate_latest(registry)

    def test_two_telemetries_share_nothing(self):
        """What one has recorded the other does not show."""
        with fresh_telemetry() as one, fresh_telemetry() as other:
            one.record_error("ValueError", "/predict")
            assert collect(one).value("errors_total") == 1
            assert "errors_total" not in collect(other).names()


class TestMetricsIntegration:
    """The whole way, and what goes wrong on it."""

    async def test_from_a_request_to_the_scrape(self):
        """A request to the application, the model behind it and its failure are read from the page's own port."""
        app = FastAPI(title="housing")

        @app.post("/predict/{region}")
        def predict(region: str, rows: list[float]) -> dict[str, object]:
            with get_telemetry().model("housing", version="v1").prediction() as prediction:
                prediction.values = [0.5 * value for value in rows]
            return {"region": region, "values": prediction.values}

        @app.get("/broken")
        def broken() -> None:
            raise LookupError("user 4711")

        @app.get("/gone")
        def gone() -> None:
            raise HTTPException(503)

        with fresh_telemetry(
            start_server=True,
            port=0,
            sources={"machine": machine},
            metrics_path="/metrics",
            request_timing_header="X-Process-Time",
        ) as metrics:
            metrics.instrument_app(app)
            metrics.update_api_health_status("database", True)
            async with serving(app):
                for region in ("north", "south"):
                    json_body = {"headers": {"content-type": "application/json"}, "body": [b"[1.0, 2.0, 4.0]"]}
                    answer = await ask(app, "POST", f"/predict/{region}", **json_body)
                    assert float(answer.headers[b"x-process-time"]) > 0
                statuses = [(await ask(app, "GET", path)).status for path in ("/broken", "/gone", "/nowhere")]
                health = json.loads((await ask(app, "GET", "/health")).body)
                eventually(lambda: b"system_cpu_usage_percent 12.5" in metrics.page().body)
                scraped = scrape(metrics.url)
                inside = (await ask(app, "GET", "/metrics")).body.decode()
                page = collect(metrics)
            assert is_closed(metrics.url)
        assert statuses == [500, 503, 404]
        assert health == {"status": "healthy", "components": {"database": True}}
        predict_at = {"method": "POST", "endpoint": "/predict/{region}"}
        assert page.value("api_requests_total", **predict_at, status_code="200") == 2
        assert page.value("api_request_duration_seconds_count", **predict_at) == 2
        assert page.value("api_requests_total", endpoint="/broken", status_code="500") == 1
        assert page.value("api_requests_total", endpoint="unmatched", status_code="404") == 1
        assert page.value("errors_total", error_type="LookupError", endpoint="/broken") == 1
        assert page.value("errors_total", error_type="HTTPException", endpoint="/gone") == 1
        assert page.value("predictions_total", model_name="housing", prediction_type="batch") == 6
        assert page.value("prediction_values_sum", model_version="v1") == 7.0
        assert page.value("active_connections_count") == 0
        for line in ('errors_total{endpoint="/broken",error_type="LookupError"} 1.0', "system_cpu_usage_percent 12.5"):
            assert line in scraped
            assert line in inside
        assert "4711" not in scraped
        assert 'endpoint="/metrics"' not in scraped
        assert 'endpoint="/health"' not in scraped

    async def test_open_connections_are_counted_while_they_are_open(self, metrics):
        """A websocket counts as a connection from its opening to its end."""
        app = FastAPI()

        @app.websocket("/live")
        async def live(websocket: WebSocket) -> None:
            await websocket.accept()
            await websocket.receive_text()

        metrics.instrument_app(app)
        websocket = await Socket(app, "/live").connect()
        assert collect(metrics).value("active_connections_count") == 1
        await websocket.says("receive", text="bye")
        await websocket.running
        assert collect(metrics).value("active_connections_count") == 0

    def test_the_machine_is_watched_in_the_background(self):
        """With monitoring on the values of this machine come by themselves, are plausible, and are refreshed."""
        with fresh_telemetry(sources={"host": open_host()}, monitoring_interval=0.05) as metrics:
            metrics.start()
            eventually(lambda: "system_cpu_usage_percent" in collect(metrics).names())
            first = collect(metrics)
            eventually(
                lambda: (
                    collect(metrics).value("otel_mlops_source_age_seconds", source="host")
                    < first.value("otel_mlops_source_age_seconds", source="host")
                )
            )
        assert 0 <= first.value("system_cpu_usage_percent") <= 100
        assert 0 < first.value("system_memory_usage_bytes") < first.value("system_memory_total_bytes")
        usage, total = "system_disk_usage_bytes", "system_disk_total_bytes"
        assert 0 < first.value(usage, mount_point="/") < first.value(total, mount_point="/")
        assert first.value("otel_mlops_source_up", source="host") == 1

    def test_without_monitoring_nothing_is_read(self):
        """With monitoring off the machine is not read, and everything else works."""
        script = """
            from otel_mlops import initialize_metrics
            from otel_mlops.testing import collect
            metrics = initialize_metrics(start_server=False, start_monitoring=False)
            metrics.sample()
            metrics.record_error("ValueError", "/predict")
            print(sorted(collect(metrics).names()))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
        )
        assert "errors_total" in done.stdout
        assert "system_" not in done.stdout

    def test_a_source_that_fails_is_down_and_its_last_values_stand(self, caplog):
        """One failing source is said once, is 0 in otel_mlops_source_up, and takes no other with it."""
        broken = threading.Event()

        def driver():
            if broken.is_set():
                raise OSError("the driver is gone")
            return [Sample(HARDWARE_TEMPERATURE, 50.0, {"component": "nvme"})]

        with fresh_telemetry(sources={"driver": driver, "machine": machine}) as metrics:
            metrics.sample()
            broken.set()
            for _ in range(3):
                metrics.sample()
            page = collect(metrics)
        assert page.value("otel_mlops_source_up", source="driver") == 0
        assert page.value("otel_mlops_source_up", source="machine") == 1
        assert page.value("hardware_temperature_celsius", component="nvme") == 50.0
        assert caplog.text.count("the driver is gone") == 1

    def test_a_missing_dependency_costs_only_what_needs_it(self):
        """Without psutil the service runs and records; the machine's source is down, which is said."""
        script = """
            import logging, sys, time
            logging.basicConfig(stream=sys.stdout)
            sys.modules["psutil"] = None
            from otel_mlops import initialize_metrics
            from otel_mlops.testing import collect
            metrics = initialize_metrics(start_server=False)
            metrics.sample()
            metrics.record_error("ValueError", "/predict")
            page = collect(metrics)
            print(page.value("otel_mlops_source_up", source="host"), page.value("errors_total"))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.splitlines()[-1] == "0.0 1.0"
        assert done.stdout.count("Source host is down") == 1
        assert "psutil" in done.stdout

    def test_scheduled_tasks_run_and_a_failing_one_leaves_the_others_alone(self, metrics, caplog):
        """Tasks, plain and async, run in the background; one that fails is logged and counted, the others go on."""
        runs: dict[str, list[str]] = {"plain": [], "awaited": []}

        def plain():
            runs["plain"].append(threading.current_thread().name)

        async def awaited():
            runs["awaited"].append(threading.current_thread().name)

        def failing():
            raise ConnectionError("no database")

        for func in (plain, awaited, failing):
            metrics.schedule_task(func=func, interval_seconds=0.02, task_name=func.__name__)
        assert not runs["plain"], "nothing runs before the start"
        metrics.start()
        eventually(lambda: len(runs["plain"]) > 2 and len(runs["awaited"]) > 2)
        eventually(lambda: collect(metrics).value("scheduled_task_runs_total", task="failing", result="error") > 1)
        assert collect(metrics).value("scheduled_task_runs_total", task="plain", result="success") > 1
        assert collect(metrics).value("scheduled_task_duration_seconds_count", task="failing") > 1
        assert threading.main_thread().name not in runs["plain"] + runs["awaited"]
        assert caplog.text.count("Task failing failed") == 1
        metrics.shutdown()
        count = len(runs["plain"])
        time.sleep(0.1)
        assert len(runs["plain"]) == count, "a task ran after the shutdown"

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, "fast", None, [1.0], 10**400, object()])
    def test_a_value_that_is_no_fit_number_is_counted_and_said_once(self, metrics, caplog, bad):
        """Whatever is given as a duration nothing is raised, the drop is counted by its reason, and logged once."""
        for _ in range(3):
            metrics.record_request("GET", "/", 200, bad)
        page = collect(metrics)
        reason = "negative" if bad == -1.0 else "not_finite" if isinstance(bad, float) else "type"
        assert page.value("otel_mlops_dropped_total", reason=reason) == 3
        assert page.value("otel_mlops_dropped_total") == 3
        assert page.value("api_requests_total") == 3
        assert caplog.text.count("api.request.duration: dropped") == 1

    def test_recording_from_many_threads_loses_nothing(self, metrics):
        """Counts and sums that eight threads record at a time are exact."""

        def record(worker: int) -> None:
            for _ in range(500):
                metrics.record_request("GET", f"/{worker % 2}", 200, 0.25)
                metrics.record_prediction(duration_ms=250, model_version="v1", prediction_value=1.0)

        with ThreadPoolExecutor(8) as workers:
            list(workers.map(record, range(8)))
        page = collect(metrics)
        assert page.value("api_requests_total") == 4000
        assert page.value("api_request_duration_seconds_sum") == 1000.0
        assert page.value("predictions_total") == 4000
        assert page.value("prediction_values_sum") == 4000.0
        assert page.value("daily_predictions_total") == 4000

    def test_a_taken_port_does_not_stop_the_service(self, caplog):
        """Where the port is taken the service starts, records, and shows its page in a call."""
        caplog.set_level(logging.ERROR)
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with fresh_telemetry(start_server=True, port=port) as metrics:
                metrics.start()
                metrics.record_error("ValueError", "/predict")
                assert collect(metrics).value("errors_total") == 1
                eventually(lambda: f"port {port}" in caplog.text)

    def test_everything_ends_at_shutdown(self):
        """After shutdown no thread of ours is left, the port is free, and recording still raises nothing."""
        before = set(threading.enumerate())
        with fresh_telemetry(start_server=True, port=0, sources={"machine": machine}) as metrics:
            metrics.schedule_task(func=lambda: None, interval_seconds=0.02, task_name="often")
            metrics.start()
            url = metrics.url
            assert "otel_mlops_build_info" in scrape(url)
            metrics.shutdown()
            assert is_closed(url)
            eventually(lambda: not set(threading.enumerate()) - before)
            metrics.record_error("ValueError", "/predict")
            metrics.shutdown()

    def test_the_environment_configures_as_the_arguments_do(self, monkeypatch):
        """What the specification gives as arguments can be given by the environment's standard names."""
        monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "18001")
        monkeypatch.setenv("OTEL_MLOPS_MONITORING_INTERVAL", "10")
        metrics = configure_telemetry(FastAPI(), set_global=False)
        try:
            assert (metrics.settings.port, metrics.settings.monitoring_interval) == (18001, 10.0)
        finally:
            metrics.shutdown()
