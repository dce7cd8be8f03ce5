"""The dashboards on a real Prometheus: every panel has an answer, and it is one that can be drawn."""

from __future__ import annotations

import json
import math
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from otel_mlops.profile import Profile
from tests import grafana
from tests.nvml.driver import Control, FakeDriver, build
from tests.servers.programs import Prometheus, prometheus, scraping
from tests.servers.service import Service, running, status, until

SERVICE = """
    import random

    from fastapi import FastAPI, HTTPException
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    from otel_mlops import configure_telemetry

    trace.set_tracer_provider(TracerProvider())
    tracer = trace.get_tracer("shop")
    app = FastAPI(title="shop")
    telemetry = configure_telemetry(app, service_name="shop", monitoring_interval=0.5)
    telemetry.system_info.info({"environment": "test", "version": "1.0.0", "deployment_date": "2024-01-15"})
    telemetry.update_api_health_status("database", True)
    telemetry.schedule_task(lambda: None, 1, "check")

    chosen = telemetry.model("spam", version="v1", stage="production", type="classification", profile="profile.json")
    canary = telemetry.model("spam", version="v2", stage="canary", type="classification", features=2)
    price = telemetry.model("price", version="v1", stage="production", type="regression", features=2)
    poet = telemetry.model("poet", version="v7", stage="production", type="language", features=0)
    by_label, by_number = chosen.shadow(canary), price.shadow(telemetry.model("price", version="v2", type="regression"))
    for model in (chosen, canary, price, poet):
        with model.loading():
            pass
    # What a service tells without a model has no model's name.
    telemetry.update_model_performance_metrics("v0", "validation", accuracy=0.95, rmse=0.1, mae=0.1, r2=0.9)
    telemetry.update_model_drift_score("v0", "MedInc", 0.1)
    telemetry.update_prediction_latency_percentiles("v0", p95_latency=0.05, p99_latency=0.1)
    telemetry.set_model_status("v0", "unavailable")

    @app.post("/classify")
    def classify(rows: list[list[float]]) -> int:
        scores = [min(max(row[0], 0.01), 0.99) for row in rows]
        with tracer.start_as_current_span("classify"), chosen.prediction(features=rows) as prediction:
            with prediction.phase("inference"):
                answers = [int(score > 0.5) for score in scores]
            prediction.cache_hit = random.random() < 0.5
            prediction.values, prediction.scores = answers, scores
        truths = [int(random.random() < score) for score in scores]
        for receipt, actual in zip(prediction.receipts, truths):
            chosen.record_truth(receipt=receipt, actual=actual)
        with canary.prediction() as other:
            other.values = [int(score > 0.6) for score in scores]
        by_label.record(answers, other.values, truths)
        with telemetry.database_operation("insert", "mails"):
            pass
        return len(rows)

    @app.post("/price")
    def appraise(row: list[float]) -> float:
        with price.prediction() as prediction:
            prediction.values = sum(row)
        actual = sum(row) + random.gauss(0, 1)
        price.record_truth(prediction=sum(row), actual=actual)
        by_number.record(sum(row), sum(row) + 0.1, actual)
        telemetry.record_prediction(duration_ms=1.5, model_version="v0", prediction_value=4.2)
        return sum(row)

    @app.post("/poem")
    def poem(words: int) -> int:
        with poet.generation(provider="own") as generation:
            generation.tokens(input=words)
            made = len(list(generation.stream(iter("abc"))))
        try:
            with poet.generation(provider="own"):
                raise MemoryError
        except MemoryError:
            return made

    @app.get("/broken")
    def broken() -> None:
        telemetry.record_prediction(duration_ms=float("nan"), model_version="v0")
        try:
            with chosen.prediction():
                raise ValueError("secret")
        except ValueError as error:
            raise HTTPException(503) from error
"""
WORKERS = ("--workers", "2")
FEATURES = ("words", "links")
ENVIRONMENT = {
    "OTEL_MLOPS_MODEL_COUNTS": "true",
    "OTEL_MLOPS_PREDICTION_ENERGY": "true",
    "OTEL_MLOPS_QUALITY_WINDOW": "5",
    "OTEL_MLOPS_DRIFT_WINDOW": "30",
}
ORDERS = (
    "set:0:event_reasons:4",
    *("set:1:fans:1", "set:1:fan_speed:40", "set:1:architecture:7", "set:1:threshold_slowdown:97"),
    "set:2:mig_mode:1",
    "err:nvmlDeviceGetEncoderUtilization:999:1",
)
"""What is peculiar about the three GPUs: one is slowed down, one is older and has a fan, one is divided."""
FAULT = "xid:1:94"


def ask(service: Service, chance: random.Random) -> None:
    """One of everything that the panels show."""
    rows = [[chance.random(), chance.gauss(0, 1)] for _ in range(chance.randint(2, 40))]
    for path, body in (
        ("/classify", rows), ("/classify", rows[:1]), ("/price", rows[0]), ("/poem?words=3", None), ("/none", None),
    ):  # fmt: skip
        status(service.url + path, "POST", json.dumps(body).encode())
    status(f"{service.url}/broken")
    with socket.create_connection(("127.0.0.1", service.page_port)) as stranger:
        stranger.sendall(b"no request at all\r\n\r\n")
        stranger.recv(100)


VERSIONS = ("prometheus", "prometheus-2")
EXEMPLARS = ("--enable-feature=exemplar-storage",)
DAY_S = 86_400
ABSENT = {
    "gpu_process_memory_bytes": "no worker computes on a GPU",
    "otel_mlops_overflow_total": "no metric has too many series",
    "otel_mlops_export_failures_total": "nothing is exported over OTLP",
    "offset 1d": "the service did not run yesterday",
    "offset 1w": "nor a week ago",
}
"""What must have no series here, by a part of the query, and why."""
BY_MACHINE = {
    "container_": "a container, a limit or a service of systemd has a control group; a bare process has none",
    "system_disk_io_bytes_total": "a container or a virtual machine may have no disk that is its own",
    "hardware_temperature_celsius": "GPUs have one here; a machine may have none",
    "system_pressure_ratio": "the kernel may not tell",
    "python_gc_pause_seconds": "a worker that allocates little is not stopped",
}
"""What the machine on which the tests run may have or not."""


READY = (
    "count(rate(predictions_total[10s]) > 0) == 4",
    "count(process_start_time_seconds) == 3",
    "rate(errors_total[10s]) > 0",
)
"""What has an answer once a Prometheus has seen all of the traffic and all of the processes."""


class Run(NamedTuple):
    """A service whose panels are looked at, and who scrapes it."""

    service: Service
    prometheus: dict[str, Prometheus]


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("dashboards")
    chance = random.Random(5)
    rows = [[chance.random(), chance.gauss(0, 1)] for _ in range(2000)]
    scores = [row[0] for row in rows]
    Profile.fit(
        rows, names=FEATURES, predictions=[int(score > 0.5) for score in scores], scores=scores,
        truth=[int(chance.random() < score) for score in scores], type="classification",
    ).save(folder / "profile.json")  # fmt: skip
    (folder / "web.yml").write_text("rate_limit: {interval: 10ms, burst: 100}")
    driver = FakeDriver(build(request.config.cache.mkdir("nvml")))
    control = Control(folder / "orders")
    control.write(*ORDERS)
    environment = driver.environment(gpus=3, realtime=True, control=control)
    environment = {name: environment[name] for name in environment if name.startswith(("FAKE_NVML", "LD_LIBRARY"))}
    environment["OTEL_MLOPS_WEB_CONFIG_FILE"] = str(folder / "web.yml")
    with (
        running(SERVICE, folder, arguments=WORKERS, **environment, **ENVIRONMENT) as service,
        prometheus(folder / "3", scraping({"shop": service.page_port}), arguments=EXEMPLARS) as newest,
        prometheus(
            folder / "2", scraping({"shop": service.page_port}), name="prometheus-2", arguments=EXEMPLARS
        ) as oldest,
        under_load(service, chance, control),
    ):
        for each in (newest, oldest):
            until(lambda each=each: all(each.series(query) for query in READY))
        yield Run(service, {"prometheus": newest, "prometheus-2": oldest})


@contextmanager
def under_load(service: Service, chance: random.Random, control: Control) -> Iterator[None]:
    """Ask for everything again and again during a `with` block, and let a GPU fail."""
    ends = threading.Event()

    def load() -> None:
        while not ends.wait(0.05):
            ask(service, chance)
            control.write(*ORDERS, FAULT)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


@contextmanager
def said(what: Callable[[], str]) -> Iterator[None]:
    """Say what there was where a condition does not come to hold."""
    try:
        yield
    except AssertionError as error:
        error.add_note(what())
        raise


def asked(target: dict[str, Any], name: str, **more: str) -> str:
    """A panel's query as it is sent, with a choice at the top; what looks each minute looks each second."""
    chosen = grafana.everywhere(grafana.dashboard(name), window="10s", shown="1m") | more
    return grafana.interpolated(target["expr"], chosen).replace(":1m]", ":1s]")


def answer(run: Run, version: str, name: str, title: str, **more: str) -> list[tuple[dict[str, str], float]]:
    """The series that a panel with one query shows now, with a choice at the top."""
    (target,) = grafana.panel(name, title)["targets"]
    return run.prometheus[version].series(asked(target, name, **more))


def fault(prometheus: Prometheus, panel: dict[str, Any], target: dict[str, Any], query: str) -> str:
    """What is wrong with the answer to a query, as an instant and over time; nothing if it can be drawn."""
    step = DAY_S if panel.get("interval") == "1d" else 1
    now = time.time()
    since = now // DAY_S * DAY_S if step == DAY_S else now - 10
    over_time = prometheus.ask("query_range", query=query, start=since, end=now, step=step)["result"]
    # What asks for the day that begins has an answer where a day begins, and nowhere else.
    instant = [] if "offset -1d" in query else prometheus.ask("query", query=query)["result"]
    if not over_time or not (instant or "offset -1d" in query):
        return "empty"
    for each in instant:
        if not math.isfinite(float(each["value"][1])):
            return f"{each['metric']} is {each['value'][1]}"
    for each in over_time:
        if not any(math.isfinite(float(value)) for _, value in each["values"]):
            return f"{each['metric']} has no finite value"
    missing = {
        label
        for each in (*over_time, *instant)
        for label in set(re.findall(r"{{(\w+)}}", target["legendFormat"])) - each["metric"].keys()
    }
    columns = set(grafana.columns(panel)) - {label for each in over_time for label in each["metric"]}
    return f"no series has the labels {sorted(missing | columns)}" if missing | columns else ""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", grafana.FILES)
def test_every_query_of_every_panel_has_an_answer_that_can_be_drawn(run: Run, name: str, version: str) -> None:
    """Instant and over time it has series with finite values and the labels of its legend."""
    waiting = {
        f"{panel['title']} {target['refId']}: {target['expr']}": (panel, target, asked(target, name))
        for panel in grafana.panels(grafana.dashboard(name))
        for target in panel["targets"]
        if not any(text in target["expr"] for text in (*ABSENT, *BY_MACHINE))
    }
    assert len(waiting) > 15
    wrong: dict[str, str] = {}

    def all_have_answers() -> bool:
        nonlocal wrong
        found = {title: fault(run.prometheus[version], *waiting[title]) for title in wrong or waiting}
        wrong = {title: why for title, why in found.items() if why}
        return not wrong

    with said(lambda: "\n".join(f"{title}\n    {why}" for title, why in wrong.items())):
        until(all_have_answers, 60.0)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_must_be_empty_is(run: Run, version: str) -> None:
    """Where there is no such thing its query has no series; what this machine may lack is asked for in PromQL."""
    seen = set()
    for name in grafana.FILES:
        for panel in grafana.panels(grafana.dashboard(name)):
            for target in panel["targets"]:
                texts = {text for text in (*ABSENT, *BY_MACHINE) if text in target["expr"]}
                found = run.prometheus[version].series(asked(target, name)) if texts else []
                assert not any(math.isinf(value) for _, value in found)
                if texts & ABSENT.keys():
                    assert found == []
                    seen |= texts
    assert seen == set(ABSENT)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_variable_has_values(run: Run, version: str) -> None:
    """The choices at the top are the job, the instance, the models and the versions, those without a name too."""
    expected = {
        "job": {"shop"},
        "instance": {f"127.0.0.1:{run.service.page_port}"},
        "model_name": {"spam", "price", "poet"},
        "model_version": {"v0", "v1", "v2", "v7"},
    }
    for name in grafana.FILES:
        dashboard = grafana.dashboard(name)
        chosen = grafana.everywhere(dashboard)
        found = {}
        for variable, row in grafana.variables(dashboard).items():
            selector, label = grafana.label_values(grafana.interpolated(row["query"]["query"], chosen))
            path = f"label/{label}/values"
            found[variable] = set(run.prometheus[version].ask(path, **{"match[]": selector}))
        assert found == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_a_choice_leaves_the_rest_out(run: Run, version: str) -> None:
    """With one model and two versions chosen, a panel shows these, and nothing with another job."""
    chosen = {"model_name": "(price|spam)", "model_version": "(v1|v2)"}
    shown = {labels["model"] for labels, _ in answer(run, version, "models", "Predictions by model", **chosen)}
    assert shown == {"price v1", "spam v1", "spam v2"}
    assert answer(run, version, "models", "Predictions by model", job="other") == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_numbers_are_those_of_the_traffic(run: Run, version: str) -> None:
    """One request of six fails, and is counted so; a model without a name is in the state that was told."""
    expected = {
        ("api", "Server errors"): pytest.approx(1 / 6, abs=0.05),
        ("business", "Requests answered well"): pytest.approx(5 / 6, abs=0.05),
        ("business", "Models in use"): 4,
        ("models", "State"): 2,
        ("system", "GPUs that answer"): 1,
    }
    found: dict[tuple[str, str], float] = {}

    def all_are_right() -> bool:
        found.update({panel: math.fsum(value for _, value in answer(run, version, *panel)) for panel in expected})
        return found == expected

    with said(lambda: f"{found}"):
        until(all_are_right, 60.0)
    states = {labels["model"].strip(): value for labels, value in answer(run, version, "models", "States")}
    assert states == {"poet v7": 0, "price v1": 0, "spam v1": 0, "spam v2": 0, "v0": 2}
    ((_, reporting),) = answer(run, version, "business", "Time reporting")
    assert 0 < reporting <= 1
    shares = answer(run, version, "business", "Share of each model")
    assert math.fsum(value for _, value in shares) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_histogram_leads_to_a_trace(run: Run, version: str) -> None:
    """The exemplars of a panel carry the label by which the data source opens a trace."""
    target = grafana.panel("models", "Latency with traces")["targets"][0]
    query = asked(target, "models")
    assert target["exemplar"]

    def exemplars() -> list[dict[str, str]]:
        now = time.time()
        found = run.prometheus[version].ask("query_exemplars", query=query, start=now - 60, end=now)
        return [each["labels"] for series in found for each in series["exemplars"]]

    until(exemplars)
    (source,) = grafana.provisioned("datasources")["datasources"]
    (opened,) = source["jsonData"]["exemplarTraceIdDestinations"]
    assert all(opened["name"] in labels for labels in exemplars())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_marks_on_the_graphs_can_be_asked_for(run: Run, version: str) -> None:
    """The start of each worker is marked with its time in milliseconds; without rules no alert is."""
    found = {}
    for each in grafana.dashboard("api")["annotations"]["list"]:
        if "expr" in each:
            query = grafana.interpolated(each["expr"], grafana.everywhere(grafana.dashboard("api")))
            found[each["name"]] = [value for _, value in run.prometheus[version].series(query)]
    assert found.pop("Alert fires") == []
    (starts,) = found.values()
    assert len(starts) == len(("page", *range(int(WORKERS[-1]))))
    assert all(abs(start / 1000 - time.time()) < 600 for start in starts)
