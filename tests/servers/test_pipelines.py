"""The pipelines of collector-config by the real Collector and Prometheus 3: they start, carry, refuse and keep all."""

from __future__ import annotations

import re
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

from otel_mlops.metrics import CATALOGUE
from otel_mlops.sdk.text import TEXT
from tests.servers.fleet import Page, fetch
from tests.servers.pipelines import TOKEN, Place, pipeline, push, receiving
from tests.servers.programs import CONFIG, Prometheus, program
from tests.servers.service import CLEAN, Service, running, status, until
from tests.test_otlp import Collector

FILES = ("agent", "gateway", "sidecar")

DOCS = CONFIG.parent / "docs" / "pipelines.md"

SERVICE = """
    import time

    from fastapi import FastAPI
    from otel_mlops import configure_telemetry

    app = FastAPI(title="carried")
    telemetry = configure_telemetry(app)

    @app.post("/quick")
    async def quick() -> None: ...

    @app.post("/slow")
    def slow() -> None:
        time.sleep(0.3)

    @app.post("/failing")
    async def failing() -> None:
        raise RuntimeError
"""

REQUESTS = {"/quick": 100, "/slow": 3, "/failing": 4}


def load(name: str) -> Any:
    """A file of collector-config as a reader of YAML has it."""
    return yaml.safe_load((CONFIG / f"{name}.yaml").read_text())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A place of its own."""
    return Place(tmp_path)


# --- The files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_the_collector_finds_nothing_wrong(name: str, place: Place):
    """`validate` accepts the file, and has no warning about it: no name in it is an old one."""
    command = [program("otelcol-mlops"), "validate", f"--config={CONFIG / name}.yaml"]
    done = subprocess.run(
        command, env=CLEAN | place.environ(name), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_nothing_to_spare(name: str):
    """What is configured is used, the memory limiter first where anything comes in, and no deprecated batch."""
    config = load(name)
    wired = config["service"]["pipelines"].values()
    connectors = set(config.get("connectors", ()))
    for part, also in (("receivers", connectors), ("processors", set()), ("exporters", connectors)):
        assert {each for one in wired for each in one.get(part, [])} == set(config[part]) | also
    assert set(config["service"]["extensions"]) == set(config["extensions"])
    assert "batch" not in config["processors"]
    for one in wired:
        assert set(one["receivers"]) <= connectors or one["processors"][0] == "memory_limiter"


@pytest.mark.parametrize("name", FILES)
def test_every_exporter_holds_on(name: str):
    """Each exporter keeps its queue on disk, in the order it came, and never gives up."""
    for exporter in load(name)["exporters"].values():
        assert exporter["retry_on_failure"]["max_elapsed_time"] == 0
        assert exporter["sending_queue"]["storage"] == "file_storage"
        assert exporter["sending_queue"]["num_consumers"] == 1
        assert "batch" in exporter["sending_queue"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_and_the_docs_tell_every_variable(name: str):
    """The head of a file and docs/pipelines.md name each variable that the file reads, with its default."""
    head, _, body = (CONFIG / f"{name}.yaml").read_text().partition("\n\n")
    needed, _, optional = head.partition("and with one:")
    table = [line.split("|")[1:4] for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    for variable, has_default, default in re.findall(r"\$\{env:(\w+)(:-)?(.*?)\}", body):
        (told,) = [told.strip() for variables, _, told in table if f"`{variable}`" in variables]
        assert variable in (optional if has_default else needed)
        assert f"`{default}`" in told if default else told == ("empty" if has_default else "")
    for variable, default in re.findall(r"^#   (\w+) .*; (\S+?)\.?$", optional, re.MULTILINE):
        assert f"${{env:{variable}:-{default}}}" in body or default == "none"


@pytest.mark.parametrize("name", FILES)
def test_a_collector_does_not_start_without_what_it_needs(name: str, place: Place):
    """Where a variable without a default is missing the Collector says so and ends; nothing is sent astray."""
    environ = place.environ(name)
    needed = set(re.findall(r"\$\{env:(\w+)\}", (CONFIG / f"{name}.yaml").read_text()))
    for variable in needed - {"GATEWAY_TOKEN"}:
        done = subprocess.run(
            [program("otelcol-mlops"), f"--config={CONFIG / name}.yaml"],
            env=CLEAN | {key: value for key, value in environ.items() if key != variable},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert f'unset environment variable\t{{"name": "{variable}"}}' in done.stderr


def test_only_who_asks_for_a_token_over_tls_listens_to_others():
    """Addresses that are not this machine's own stand where TLS and a token are asked for, and nowhere else."""
    for config in map(load, FILES):
        protocols = config["receivers"].get("otlp", {}).get("protocols", {})
        for listens in (config["extensions"]["health_check"], *protocols.values()):
            assert ":-127.0.0.1:" in listens["endpoint"] or {"tls", "auth"} <= set(listens)


# --- What goes through ----------------------------------------------------------------------------------------


def arrived(prometheus: Prometheus, job: str, name: str) -> dict[frozenset[tuple[str, str]], float]:
    """The series of a name in Prometheus, without what names the service."""
    found = prometheus.series(f'{name}{{job="{job}"}}')
    return {
        frozenset((key, value) for key, value in labels.items() if key not in ("__name__", "job", "instance")): value
        for labels, value in found
    }


COUNTED = ("api_requests_total", "api_request_duration_seconds_count", "errors_total")


def has_all(prometheus: Prometheus, job: str, page: Page) -> bool:
    """Whether Prometheus has of these counts what the page has."""
    return all(
        arrived(prometheus, job, name) == {labels: value for (_, labels), value in page.of(name).items()} != {}
        for name in COUNTED
    )


def make_requests(service: Service) -> None:
    """Send each request so often."""
    for path, times in REQUESTS.items():
        for _ in range(times):
            assert status(service.url + path, "POST") == (500 if path == "/failing" else 200)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """One service that is scraped and one that pushes, through an agent, a sidecar and a gateway into Prometheus."""
    traces = Collector()
    place = Place(tmp_path_factory.mktemp("pipelines"), traces_url=traces.url)
    scraped, pushing = tmp_path_factory.mktemp("scraped"), tmp_path_factory.mktemp("pushing")
    pushes = {
        "OTEL_METRICS_EXPORTER": "prometheus,otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": place.otlp_url,
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OTEL_SERVICE_NAME": "pushing",
        "NO_PROXY": "*",
    }
    try:
        with ExitStack() as now:
            prometheus = now.enter_context(receiving(place))
            now.enter_context(
                pipeline("gateway", place, TRACES_WAIT="1s", TRACES_SLOW_MS="250", TRACES_AUTHORIZATION="Basic YTpi")
            )
            now.enter_context(pipeline("sidecar", place))
            by_scrape = now.enter_context(running(SERVICE, scraped))
            by_push = now.enter_context(running(SERVICE, pushing, **pushes))
            now.enter_context(
                pipeline("agent", place, SCRAPE_TARGET=f"127.0.0.1:{by_scrape.page_port}", SCRAPE_JOB="scraped")
            )
            make_requests(by_scrape)
            make_requests(by_push)
            yield SimpleNamespace(
                place=place, prometheus=prometheus, traces=traces, by_scrape=by_scrape, by_push=by_push
            )
    finally:
        traces.close()


def test_what_is_scraped_is_in_prometheus(flow: SimpleNamespace):
    """From the page through agent and gateway, with TLS and a token, every count comes to Prometheus as it is."""
    page = Page(fetch(flow.by_scrape.page_port, TEXT))
    assert page.total("api_requests_total") == sum(REQUESTS.values())
    until(lambda: has_all(flow.prometheus, "scraped", page))
    assert flow.prometheus.series('up{job="scraped"}')[0][1] == 1


def test_what_is_pushed_is_in_prometheus(flow: SimpleNamespace):
    """From the service through sidecar and gateway every count comes to Prometheus as it stands on the page."""
    page = Page(fetch(flow.by_push.page_port, TEXT))
    assert page.total("api_requests_total") == sum(REQUESTS.values())
    until(lambda: has_all(flow.prometheus, "pushing", page))


def test_the_host_has_no_name_in_common_with_a_page(flow: SimpleNamespace):
    """What the agent reads of the host is there as the job `host`, under none of the names that our pages have."""
    until(lambda: arrived(flow.prometheus, "host", "system_memory_utilization_ratio"))
    names = {labels["__name__"] for labels, _ in flow.prometheus.series('{job="host",__name__!=""}')}
    assert len(names) > 15
    assert not names & {row.page_name for row in CATALOGUE}
    assert {labels["instance"] for labels, _ in flow.prometheus.series('{job="host",__name__!=""}')} == {"host-1"}


def test_span_metrics_count_what_sampling_drops(flow: SimpleNamespace):
    """Every request is counted from its span; of the traces the failed and the slow go on, and few of the others."""
    calls = 'sum by (http_route) (traces_span_metrics_calls_total{span_kind="SPAN_KIND_SERVER"})'
    wanted = {path: float(times) for path, times in REQUESTS.items()}
    until(lambda: {labels["http_route"]: value for labels, value in flow.prometheus.series(calls)} == wanted)

    kept: Counter[str] = Counter()

    def have_come() -> bool:
        while not flow.traces.requests.empty():
            request = flow.traces.requests.get()
            assert request.headers["Authorization"] == "Basic YTpi"
            for of_resource in request.otlp.resource_spans:
                for of_scope in of_resource.scope_spans:
                    for span in of_scope.spans:
                        route = {each.key: each.value.string_value for each in span.attributes}.get("http.route")
                        kept[route] += route is not None and not span.parent_span_id
        return {path: kept[path] for path in ("/slow", "/failing")} == {"/slow": 3, "/failing": 4}

    until(have_come)
    assert kept["/quick"] < 50  # 10 of 100 are to be expected


def send(url: str, place: Place, token: str | None) -> int:
    """The status of an empty OTLP request with a token."""
    headers = {"Content-Type": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    context = ssl.create_default_context(cafile=str(place.folder / "ca.pem"))
    try:
        with urlopen(Request(url, b"{}", headers), timeout=10, context=context) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


@pytest.mark.parametrize("signal", ["metrics", "traces"])
def test_the_gateway_refuses_who_has_no_token(flow: SimpleNamespace, signal: str):
    """Each token of the file is let in, and no other."""
    url = f"{flow.place.gateway_url}/v1/{signal}"
    for token, wanted in ((TOKEN, 200), ("another-token", 200), ("wrong", 401), ("", 401), (None, 401)):
        assert send(url, flow.place, token) == wanted, token


def test_the_gateway_refuses_who_speaks_without_tls(flow: SimpleNamespace):
    """Plain HTTP is not understood at the gateway's port."""
    assert status(flow.place.gateway_url.replace("https", "http") + "/v1/metrics", "POST", b"{}") == 400


def push_gauges(url: str, name: str, *ages_s: float) -> None:
    """Push gauges of 1 to a sidecar or a gateway's pipeline: the name with its place in this list, each so old."""
    metrics = [
        {"name": f"{name}.{number}", "gauge": {"dataPoints": [{"asDouble": 1, "timeUnixNano": f"{at:.0f}"}]}}
        for number, at in enumerate((time.time() - age_s) * 1e9 for age_s in ages_s)
    ]
    push(url, {"service.name": "pushed"}, metrics)


BY_GRPC = (
    "exporters::otlp_grpc::endpoint: ${env:GRPC}",
    "exporters::otlp_grpc::tls::ca_file: ${env:GATEWAY_CA_FILE}",
    "exporters::otlp_grpc::auth::authenticator: bearertokenauth",
    "service::pipelines::metrics::exporters: [otlp_grpc]",
)
"""Settings over sidecar.yaml: metrics leave it over gRPC."""


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_who_has_the_wrong_token_says_that_it_drops(flow: SimpleNamespace, tmp_path: Path, protocol: str):
    """With the right token a sidecar gets through; what is sent with a wrong one is dropped at once, and logged."""
    environ = flow.place.environ("sidecar")
    sends = {key: environ[key] for key in ("GATEWAY_ENDPOINT", "GATEWAY_CA_FILE")}
    arguments = [f"--config=yaml:{setting}" for setting in BY_GRPC] if protocol == "grpc" else []
    for token in (TOKEN, "wrong"):
        place = Place(tmp_path)
        grpc = f"127.0.0.1:{flow.place.grpc_port}"
        with pipeline("sidecar", place, arguments=arguments, GATEWAY_TOKEN=token, GRPC=grpc, **sends) as sidecar:
            push_gauges(place.otlp_url, f"{protocol}.{token[0]}", 0)
            if token == TOKEN:
                until(lambda: arrived(flow.prometheus, "pushed", f"{protocol}_a_0"))
                assert "Dropping data" not in sidecar.said()
            else:
                until(lambda: "Exporting failed. Dropping data." in sidecar.said())
    assert not arrived(flow.prometheus, "pushed", f"{protocol}_w_0")


def test_points_of_yesterday_are_taken_and_older_ones_spoil_their_request(flow: SimpleNamespace):
    """Prometheus takes what is 23 hours old; with one point of 25 hours it takes nothing of a request."""
    dropped = 'sum(otelcol_exporter_send_failed_metric_points_total{job="otelcol-gateway"})'
    push_gauges(flow.place.otlp_url, "in.time", 0, 23 * 3600)
    until(lambda: flow.prometheus.series("in_time_0"))
    until(lambda: flow.prometheus.series("last_over_time(in_time_1[1d])"))
    assert flow.prometheus.value(dropped) is None
    push_gauges(flow.place.otlp_url, "too.late", 0, 25 * 3600)
    until(lambda: flow.prometheus.value(dropped))
    assert not flow.prometheus.series('last_over_time({__name__=~"too_late.*"}[2d])')


def test_a_collector_tells_of_itself(flow: SimpleNamespace):
    """Its own metrics are in Prometheus under the names that docs/pipelines.md gives, two from a failure on."""
    table = DOCS.read_text().partition("## What a Collector tells of itself")[2]
    told = re.findall(r"^\| `(otelcol_\w+)` .*\| (.*) \|$", table, re.MULTILINE)
    always = [name for name, meaning in told if "Absent until the first" not in meaning]
    assert len(told) - len(always) == 2
    for job in ("otelcol-agent", "otelcol-gateway", "otelcol-sidecar"):
        for name in always:
            until(lambda name=name, job=job: arrived(flow.prometheus, job, name))
    assert flow.prometheus.value("max(otelcol_exporter_queue_size / otelcol_exporter_queue_capacity)") < 0.01
