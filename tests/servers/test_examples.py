"""Each example as a user runs it: it starts, answers, and its numbers stand on the page."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from otel_mlops.demo.readings import Reading, read
from otel_mlops.doctor.network import take_free_ports
from tests.servers.service import CLEAN, until

EXAMPLES = Path(__file__).parents[2] / "examples"
WAIT_S = 60.0


@contextmanager
def started(command: list[str], port: int, page_port: int) -> Iterator[tuple[httpx.Client, str]]:
    """A service that runs: a client of it, and its page's URL."""
    environ = CLEAN | {"PORT": str(port), "OTEL_EXPORTER_PROMETHEUS_PORT": str(page_port)}
    service = subprocess.Popen(
        command, cwd=EXAMPLES, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10.0) as client:
            deadline = time.monotonic() + WAIT_S
            while not is_healthy(client):
                assert service.poll() is None, service.communicate()[0]
                assert time.monotonic() < deadline, "the example did not answer"
                time.sleep(0.05)
            yield client, f"http://127.0.0.1:{page_port}/metrics"
            service.terminate()
            service.communicate(timeout=WAIT_S)
    finally:
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(service.pid, signal.SIGKILL)  # its workers too, which hold the pipe of what it says
        print("--- it said:", service.communicate()[0], sep="\n")


def is_healthy(client: httpx.Client) -> bool:
    """Whether a service answers at /health, as each does without a line of its own."""
    try:
        answer = client.get("/health")
    except httpx.TransportError:
        return False
    assert answer.status_code == 200, answer.text
    return answer.json()["status"] == "healthy"


@pytest.fixture
def ports() -> list[int]:
    """Two ports that are free."""
    return take_free_ports("127.0.0.1", 2)


def looked_at(client: httpx.Client, url: str) -> Reading:
    """The page; an empty one before the worker that leads serves it, as another may answer a moment sooner."""
    try:
        return read(client, url)
    except httpx.TransportError:
        return Reading("", time.monotonic())


def settled(client: httpx.Client, url: str, requests: int) -> Reading:
    """The page once it knows of so many requests: an answer may arrive a moment before it is counted."""
    deadline = time.monotonic() + WAIT_S
    while (reading := looked_at(client, url)).total("api_requests_total") < requests:
        assert time.monotonic() < deadline, reading.samples("api_requests_total")
        time.sleep(0.05)
    return reading


def test_minimal_service(ports: list[int]):
    """The README's first service counts its requests, predictions and their values."""
    command = [sys.executable, "-m", "uvicorn", "minimal_service:app", "--port", str(ports[0])]
    with started(command, *ports) as (client, url):
        for rooms in (5, 10):
            answer = client.post("/predict", json={"median_income": 8.0, "rooms": rooms})
            assert answer.json() == {"price": pytest.approx(3.2 + rooms / 10)}
        assert client.post("/predict", json={}).status_code == 422
        page = settled(client, url, 3)
    predict = {"method": "POST", "endpoint": "/predict"}
    assert page.total("api_requests_total", **predict, status_code="200") == 2
    assert page.total("api_requests_total", **predict, status_code="422") == 1
    assert page.total("api_request_duration_seconds_count", **predict) == 3
    model = {"model_name": "housing", "model_version": "v1.2.3"}
    assert page.total("predictions_total", **model, prediction_type="single") == 2
    assert page.total("prediction_values_sum", **model) == pytest.approx(3.7 + 4.2)
    assert page.total("model_info", **model, type="regression") == 1
    assert page.total("target_info", service_name="housing") == 1


def test_model_service(ports: list[int]):
    """The service of production has its model, scores, database, health and both pages."""
    patient = {"bmi": 0.05, "bp": 0.02, "s5": 0.01}
    with started([sys.executable, "model_service.py"], *ports) as (client, url):
        value = client.post("/predict", json=patient).json()["progression"]
        assert client.post("/predict/batch", json=[patient] * 3).json() == {"progressions": [pytest.approx(value)] * 3}
        stored = client.get("/patients/7/progression").json()["progression"]
        assert client.get("/patients/7000/progression").status_code == 404
        assert client.post("/predict", json=patient | {"bp": "high"}).status_code == 422
        assert client.get("/health").json()["components"] == {"database": True, "model": True}
        page = settled(client, url, 5)
        assert settled(client, "/metrics", 5).total("predictions_total") == 5
    model = {"model_name": "progression", "model_version": "v1.2.3"}
    assert page.total("api_requests_total") == 5
    assert page.total("api_requests_total", endpoint="/patients/{patient_id}/progression", status_code="404") == 1
    assert page.total("predictions_total", **model, prediction_type="single") == 2
    assert page.total("predictions_total", **model, prediction_type="batch") == 3
    assert page.total("prediction_values_sum", **model) == pytest.approx(4 * value + stored)
    assert page.total("model_status", **model, model_status="ready") == 1
    assert page.total("model_info", **model, stage="production", type="regression", features="3") == 1
    assert page.total("model_load_duration_seconds_count", **model) == 1
    assert 0.3 < page.total("model_r2_score", **model, dataset="validation") < 0.4
    assert 50 < page.total("model_rmse_score", **model, dataset="validation") < 65
    assert 40 < page.total("model_mae_score", **model, dataset="validation") < 55
    assert page.total("database_operations_total", operation="select", table="patients") == 2
    assert page.total("database_operation_duration_seconds_count", operation="insert", table="patients") == 1
    assert page.total("api_health_status", component="database") == 1
    assert page.total("scheduled_task_runs_total", task="check_health", result="success") == 1
    assert page.total("system_info", environment="production", version="1.0.0") == 1
    assert page.total("target_info", service_name="progression", deployment_environment_name="production") == 1


def test_several_workers(ports: list[int]):
    """Four workers have one page: counts added up, a worker's own facts each, and what one forgets all forget."""
    with started([sys.executable, "several_workers.py"], *ports) as (client, url):
        until(lambda: len(looked_at(client, url).samples("worker_threads")) == 4)
        for _ in range(40):
            with httpx.Client(base_url=client.base_url, trust_env=False) as fresh:  # any worker may take it
                assert fresh.post("/predict", params={"median_income": 8.0, "rooms": 0.1}).status_code == 200
        page = settled(client, url, 40)
        assert page.total("predictions_total", model_version="v1.2.3") == 40
        assert page.total("rooms_seen_total") == pytest.approx(4.0)
        assert page.total("otel_mlops_workers") == 4
        assert len(page.samples("system_memory_total_bytes")) == 1
        client.post("/forget", params={"model_version": "v1.2.3"})
        assert not read(client, url).samples("predictions_total")


def test_model_monitoring():
    """The walk through ends with a drift of what broke alone, a fallen accuracy, and the share of truths."""
    command = [sys.executable, "model_monitoring.py"]
    ran = subprocess.run(command, cwd=EXAMPLES, env=CLEAN, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert ran.returncode == 0, ran.stderr
    before, after = ran.stdout.split("--- incomes come in thousands")

    def shown(text: str, name: str, label: str = "") -> float:
        (line,) = [line for line in text.splitlines() if line.startswith(name + "{") and label in line]
        return float(line.rsplit(" ", 1)[1])

    for feature, drifts in (("income", 1), ("__prediction__", 1), ("debt_ratio", 0), ("years_employed", 0)):
        label = f'feature="{feature}"'
        assert [shown(text, "model_drift_detected", label) for text in (before, after)] == [0, drifts]
        is_above = shown(after, "model_drift_score", label) > shown(after, "model_drift_threshold", label)
        assert is_above is bool(drifts)
    assert shown(before, "model_accuracy_score") > 0.75
    assert shown(before, "model_score_bound", 'bound="lower"') > shown(after, "model_score_bound", 'bound="upper"')
    estimated = shown(before, "model_estimated_accuracy_score")
    assert estimated == pytest.approx(shown(before, "model_accuracy_score"), abs=0.1)
    for text in (before, after):
        assert shown(text, "ground_truth_coverage_ratio") == pytest.approx(0.8, abs=0.2)
