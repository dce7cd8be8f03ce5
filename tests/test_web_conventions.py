"""Whose semantic conventions an application gets: each name from one scope."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
from fastapi import APIRouter, FastAPI, Request
from opentelemetry import metrics as otel_metrics
from opentelemetry import trace as otel_trace
from opentelemetry.instrumentation import _semconv
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider as StockMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette

from otel_mlops import metrics as rows
from otel_mlops.web import instrument_app
from tests.asgi import (
    Settings,
    Telemetry,
    anything,
    ask,
    failing_app,
)


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


DURATION = "http.server.request.duration"


def routes_seen(telemetry: Telemetry) -> dict[str, int]:
    return {dict(key).get("http.route", ""): point.count for key, point in telemetry.points(DURATION).items()}


async def test_fastapi_reports_by_its_own_telemetry(telemetry):
    """With FastAPI's own telemetry each name comes from its scope, into our provider, without spans."""
    app, sub = FastAPI(), FastAPI()
    app.get("/items/{item_id}")(anything)
    sub.get("/items/{item_id}")(anything)
    app.mount("/sub", sub)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/items/1")
    await ask(app, "GET", "/sub/items/1")
    assert routes_seen(telemetry) == {"/items/{item_id}": 1, "/sub/items/{item_id}": 1}
    assert telemetry.scopes(DURATION) == {"fastapi"}
    assert telemetry.scopes("http.server.active_requests") == {"fastapi"}
    assert app._telemetry["tracer_provider"] is None


async def test_our_own_pages_are_not_in_fastapis_telemetry():
    """Scrapes and probes of ours are left out; a health of the user's own is not."""
    telemetry = Telemetry(Settings(metrics_path="/metrics"))
    ours, users = FastAPI(), FastAPI(telemetry={"exclude": lambda scope: scope["path"] == "/excluded"})
    users.get("/health")(anything)
    for app in (ours, users):
        instrument_app(app, telemetry)
        for path in ("/metrics", "/health", "/excluded"):
            await ask(app, "GET", path)
    assert routes_seen(telemetry) == {"": 1, "/health": 1}


async def test_what_the_user_gave_to_fastapi_stays(telemetry):
    """A provider of the user's own keeps what FastAPI reports."""
    reader = InMemoryMetricReader()
    app = FastAPI(telemetry={"meter_provider": StockMeterProvider((reader,), shutdown_on_exit=False)})
    app.get("/")(anything)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/")
    assert telemetry.points(DURATION) == {}
    assert reader.get_metrics_data() is not None
    assert telemetry.requests == {("GET", "/", "200"): 1}


@pytest.mark.parametrize(("api", "key"), [(otel_metrics, "meter"), (otel_trace, "tracer")])
def test_a_global_provider_of_somebody_elses_keeps_its_pipeline(api, key, monkeypatch):
    """Where another has set a global provider, FastAPI goes on reporting to it."""
    foreign = {"meter": StockMeterProvider(shutdown_on_exit=False), "tracer": TracerProvider(shutdown_on_exit=False)}[
        key
    ]
    monkeypatch.setattr(api, f"get_{key}_provider", lambda: foreign)
    app = FastAPI()
    instrument_app(app, Telemetry(tracer_provider=TracerProvider(shutdown_on_exit=False)))
    assert app._telemetry[f"{key}_provider"] is None


def spans_of(exporter: InMemorySpanExporter) -> set[tuple[str, str]]:
    return {(span.instrumentation_scope.name, span.name) for span in exporter.get_finished_spans()}


def traced() -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


async def test_spans_come_where_an_exporter_of_traces_is():
    """With a tracer provider FastAPI makes spans, and our histograms carry their ids as exemplars."""
    provider, exporter = traced()
    telemetry = Telemetry(tracer_provider=provider)
    app = FastAPI()
    app.get("/items/{item_id}")(anything)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/items/1")
    assert ("fastapi", "GET /items/{item_id}") in spans_of(exporter)
    (point,) = telemetry.points(rows.API_REQUEST_DURATION.name).values()
    server = next(span for span in exporter.get_finished_spans() if span.name == "GET /items/{item_id}")
    assert [exemplar.span_id for exemplar in point.exemplars] == [server.context.span_id]


@pytest.mark.parametrize("given", [False, True])
async def test_none_means_none(given, monkeypatch):
    """With `none` FastAPI reports nothing to a global provider, mounted or not; the user's own is kept."""
    reader = InMemoryMetricReader()
    users = StockMeterProvider((reader,), shutdown_on_exit=False)
    telemetry = Telemetry(Settings(instrumentation="none"))
    monkeypatch.setattr(otel_metrics, "get_meter_provider", lambda: telemetry.meter_provider)
    app, sub = FastAPI(telemetry={"meter_provider": users} if given else None), FastAPI()
    sub.get("/")(anything)
    app.mount("/sub", sub)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/sub/")
    assert telemetry.points(DURATION) == {}
    assert (reader.get_metrics_data() is not None) == given
    assert telemetry.requests == {("GET", "/sub/", "200"): 1}


@pytest.fixture
def package(monkeypatch) -> Iterable[list[FastAPI]]:
    """OpenTelemetry's package as in a fresh process; the applications in the list are freed of it at the end."""
    stability = _semconv._OpenTelemetrySemanticConventionStability
    monkeypatch.setattr(stability, "_initialized", False)
    monkeypatch.setattr(stability, "_OTEL_SEMCONV_STABILITY_SIGNAL_MAPPING", {})
    monkeypatch.delenv("OTEL_SEMCONV_STABILITY_OPT_IN", raising=False)
    apps: list[FastAPI] = []
    yield apps
    for app in apps:
        FastAPIInstrumentor.uninstrument_app(app)


PACKAGE = "opentelemetry.instrumentation.fastapi"


async def test_opentelemetrys_package_reports_alone(package, monkeypatch):
    """With `opentelemetry` each name comes from the package, mounted or not, with no Host header in a label."""
    provider, exporter = traced()
    telemetry = Telemetry(Settings(instrumentation="opentelemetry"), tracer_provider=provider)
    monkeypatch.setattr(otel_metrics, "get_meter_provider", lambda: telemetry.meter_provider)
    app, sub = failing_app(), FastAPI()
    package.append(app)
    sub.get("/items/{item_id}")(anything)
    app.mount("/sub", sub)
    instrument_app(app, telemetry)
    for path in ("/raise/value", "/sub/items/1", "/plain/200"):
        await ask(app, "GET", path, headers={"host": "evil.example"})
    assert telemetry.scopes(DURATION) == {PACKAGE}
    assert sum(point.count for point in telemetry.points(DURATION).values()) == 3
    assert "evil" not in str(telemetry.points(DURATION))
    assert {scope for scope, _ in spans_of(exporter)} == {PACKAGE}
    assert not [name for _, name in spans_of(exporter) if name.endswith(("send", "receive"))]
    assert telemetry.requests == {
        ("GET", "/raise/{kind}", "500"): 1,
        ("GET", "/sub/items/{item_id}", "200"): 1,
        ("GET", "/plain/{code}", "200"): 1,
    }
    assert telemetry.errors == {("ValueError", "/raise/{kind}"): 1}
    assert "OTEL_SEMCONV_STABILITY_OPT_IN" not in os.environ


@pytest.mark.parametrize("order", ["package first", "package last"])
async def test_a_package_that_the_user_put_on_goes_along(order, package, telemetry, monkeypatch):
    """The package on an application by the user's own call, before or after ours, leaves one of each name."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    monkeypatch.setattr(otel_metrics, "get_meter_provider", lambda: telemetry.meter_provider)
    app, sub = failing_app(), FastAPI()
    package.append(app)
    sub.get("/items/{item_id}")(anything)
    app.mount("/sub", sub)
    if order == "package first":
        FastAPIInstrumentor.instrument_app(app, meter_provider=telemetry.meter_provider)
    instrument_app(app, telemetry)
    if order == "package last":
        FastAPIInstrumentor.instrument_app(app, meter_provider=telemetry.meter_provider)
    await ask(app, "GET", "/sub/items/1")
    await ask(app, "GET", "/raise/value")
    await ask(app, "GET", "/raise/busy")
    assert telemetry.scopes(DURATION) == {PACKAGE}
    assert telemetry.requests == {
        ("GET", "/sub/items/{item_id}", "200"): 1,
        ("GET", "/raise/{kind}", "500"): 1,
        ("GET", "/raise/{kind}", "503"): 1,
    }
    assert telemetry.errors == {("ValueError", "/raise/{kind}"): 1, ("Busy", "/raise/{kind}"): 1}
    assert telemetry.is_balanced


def test_a_choice_that_cannot_be_had_is_refused(monkeypatch):
    """What an application cannot have is an error at the call, and leaves the application as it was."""
    for wanted in ("fastapi", "opentelemetry"):
        app = Starlette()
        with pytest.raises(ValueError, match="only a FastAPI application"):
            instrument_app(app, Telemetry(Settings(instrumentation=wanted)))
        assert "build_middleware_stack" not in vars(app)
    old = FastAPI()
    del old._native_telemetry
    with pytest.raises(ValueError, match=r"0\.142"):
        instrument_app(old, Telemetry(Settings(instrumentation="fastapi")))
    monkeypatch.setattr("otel_mlops.web.conventions.find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="pip install opentelemetry-instrumentation-fastapi"):
        instrument_app(FastAPI(), Telemetry(Settings(instrumentation="opentelemetry")))


async def test_fastapi_still_has_the_names_we_rely_on():
    """The private names of FastAPI that are read or set are there."""
    app = FastAPI()
    assert {"meter_provider", "tracer_provider", "metrics", "tracing", "exclude"} <= set(app._telemetry)
    assert app._native_telemetry.config is app._telemetry
    app.include_router(router := APIRouter(), prefix="/v1")
    seen = {}

    @router.get("/x")
    def look(request: Request) -> None:
        seen.update(request.scope)

    await ask(app, "GET", "/v1/x")
    context = seen["fastapi"]["effective_route_context"]
    assert context.original_route is seen["route"]
    assert context.path_format == "/v1/x"
