"""What metrics add to one FastAPI request, for us and for the usual ways to have them.

Each contender runs in processes of its own, as several of them set global state. A process calls one app
with the contender's metrics and one without by turns, through ASGI without a network, and gives the
difference; the contenders' processes take turns, and the median of theirs counts.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Line, Measured, in_a_process

if TYPE_CHECKING:
    from fastapi import FastAPI

REQUESTS = 100
"""At a stretch: long against the clock, short against the other load of the machine."""

WARM_UP = 3
"""Stretches before the clock counts: routes, caches and series are made by the first requests."""

SILENT: Any = {"tracing": False, "metrics": False, "logs": False}
"""FastAPI's own telemetry, switched off: it would find a global provider."""

ROUTES = 20
"""Of the service; the one that is called stands in the middle, as several peers search the list again."""

BODY = json.dumps({"features": [0.5] * 10}).encode()
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/predict",
    "raw_path": b"/predict",
    "query_string": b"",
    "root_path": "",
    "headers": [
        (b"host", b"localhost:8000"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(BODY)).encode()),
    ],
    "client": ("127.0.0.1", 50_000),
    "server": ("127.0.0.1", 8_000),
}

Read = Callable[[], str]
"""Gives what a contender has recorded, to see that it really has."""


def application(telemetry: Any = SILENT) -> FastAPI:
    """A service with some routes, of which one predicts."""
    from fastapi import FastAPI

    app = FastAPI(telemetry=telemetry)

    async def other(item_id: int) -> dict[str, int]:
        return {"item_id": item_id}

    async def predict(house: dict[str, list[float]]) -> dict[str, float]:
        return {"value": sum(house["features"])}

    for number in range(ROUTES):
        if number == ROUTES // 2:
            app.add_api_route("/predict", predict, methods=["POST"])
        else:
            app.add_api_route(f"/items{number}/{{item_id}}", other)
    return app


def ours(*, everything: bool) -> tuple[FastAPI, Read]:
    """Our request metrics alone, or all that is on by default: FastAPI's own metrics and the sources too."""
    from otel_mlops import configure_telemetry

    app = application({} if everything else SILENT)
    settings: dict[str, Any] = {} if everything else {"set_global": False, "instrumentation": "none"}
    telemetry = configure_telemetry(app, service_name="bench", **settings)

    def read() -> str:
        page: bytes = telemetry.page().body
        return page.decode()

    return app, read


def instrumentator() -> tuple[FastAPI, Read]:
    """prometheus-fastapi-instrumentator as its README shows it."""
    from prometheus_client import generate_latest
    from prometheus_fastapi_instrumentator import Instrumentator

    app = application()
    Instrumentator().instrument(app)
    return app, lambda: generate_latest().decode()


def starlette_exporter() -> tuple[FastAPI, Read]:
    """starlette_exporter as its README shows it."""
    from prometheus_client import generate_latest
    from starlette_exporter import PrometheusMiddleware

    app = application()
    app.add_middleware(PrometheusMiddleware)
    return app, lambda: generate_latest().decode()


def contrib() -> tuple[FastAPI, Read]:
    """OpenTelemetry's instrumentor over the stock SDK."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    provider, read = _stock()
    app = application()
    FastAPIInstrumentor().instrument_app(app, meter_provider=provider)
    return app, read


def native() -> tuple[FastAPI, Read]:
    """FastAPI's own telemetry over the stock SDK, its metrics alone."""
    provider, read = _stock()
    return application({"meter_provider": provider}), read


def _stock() -> tuple[Any, Read]:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    provider = MeterProvider(metric_readers=[PrometheusMetricReader(registry=registry)])
    return provider, lambda: generate_latest(registry).decode()


CONTENDERS: dict[str, tuple[Callable[[], tuple[FastAPI, Read]], str]] = {
    "ours": (lambda: ours(everything=False), "api_request_duration_seconds_count"),
    "everything": (lambda: ours(everything=True), "http_server_request_duration_seconds_count"),
    "instrumentator": (instrumentator, "http_request_duration_seconds_count"),
    "starlette_exporter": (starlette_exporter, "starlette_request_duration_seconds_count"),
    "contrib": (contrib, "http_server_duration_milliseconds_count"),
    "native": (native, "http_server_request_duration_seconds_count"),
}
"""How each is set up, and the series that counts its requests."""


async def _requests(app: FastAPI) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message.get("status", 200) != 200:
            raise ValueError(message)

    for _ in range(REQUESTS):
        await app(dict(SCOPE), receive, send)


def added_s(name: str, rounds: int) -> float:
    """Seconds that a contender adds to one request, measured in this process.

    Errors: ValueError if it has not counted the requests it was timed with.
    """
    set_up, counter = CONTENDERS[name]
    bare = application()
    app, read = set_up()
    best = {False: float("inf"), True: float("inf")}
    with asyncio.Runner() as runner:
        for turn in range(WARM_UP + rounds):
            for counted, each in ((False, bare), (True, app)):
                gc.collect()
                gc.disable()
                start = time.perf_counter()
                runner.run(_requests(each))
                taken_s = time.perf_counter() - start
                gc.enable()
                if turn >= WARM_UP:
                    best[counted] = min(best[counted], taken_s / REQUESTS)
    expected = (WARM_UP + rounds) * REQUESTS
    lines = [line for line in read().splitlines() if line.startswith(counter)]
    if sum(float(line.rpartition(" ")[2]) for line in lines) != expected:
        msg = f"{name} has not counted {expected} requests: {lines}"
        raise ValueError(msg)
    return best[True] - best[False]


def lines(*, quick: bool) -> Iterator[Line]:
    """The lines of this topic."""
    processes, rounds = (1, 10) if quick else (3, 40)
    found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    reasons = {}
    for _ in range(processes):
        for name in CONTENDERS:
            if name not in reasons:
                try:
                    found[name].append(in_a_process("-m", "benchmarks.request", name, str(rounds)))
                except RuntimeError as error:
                    reasons[name] = f"{name}: {error}"
    measured = Measured({name: statistics.median(each) for name, each in found.items() if each}, reasons)
    peers = {
        "instrumentator": "prometheus-fastapi-instrumentator",
        "starlette_exporter": "starlette_exporter",
        "contrib": "OpenTelemetry's FastAPIInstrumentor",
        "native": "FastAPI's own, stock SDK",
    }
    for what, ours_name, target in (
        ("request metrics added to one request", "ours", 1 / 8),
        ("all defaults added to one request", "everything", 1.0),
    ):
        for theirs, peer in peers.items():
            goal = target if theirs == "instrumentator" else 1.0
            yield measured.line(what, peer, ours_name, theirs, target=goal)


if __name__ == "__main__":
    print(json.dumps(added_s(sys.argv[1], int(sys.argv[2]))))
