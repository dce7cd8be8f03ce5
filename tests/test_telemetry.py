"""configure_telemetry() and Telemetry: one handle, started late, ended in time, and in nobody's way."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from fastapi import FastAPI
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    LastValueAggregation,
    View,
)
from prometheus_client import CollectorRegistry

import otel_mlops
from otel_mlops import configure_telemetry, get_metrics, get_telemetry, initialize_metrics
from otel_mlops.configure import current
from otel_mlops.metrics import ERRORS, MODEL_STATES, PREDICTIONS
from otel_mlops.settings import Settings
from otel_mlops.telemetry import Telemetry
from otel_mlops.testing import collect, fresh_telemetry
from tests import waiting
from tests.asgi import ask, serving

PATIENCE_S = 30.0
eventually = partial(waiting.eventually, within_s=PATIENCE_S)
PRIVATE = {"start_server": False, "start_monitoring": False, "set_global": False, "service_name": "test"}


def run(script: str, *arguments: str, **environment: str) -> str:
    """Run a script in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def listens(port: int) -> bool:
    """Whether anything listens at a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


_before: set[threading.Thread] = set()


def our_threads() -> list[str]:
    """The names of the threads that this test's telemetry has."""
    names = (thread.name for thread in threading.enumerate() if thread not in _before)
    return sorted(name for name in names if name.startswith(("otel-mlops", "APScheduler")))


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """A telemetry of the test's own."""
    with fresh_telemetry() as fresh:
        yield fresh


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch) -> Iterator[None]:
    """Each test begins in a process that is not configured, and leaves no telemetry and none of its threads."""
    _before.clear()
    _before.update(threading.enumerate())
    monkeypatch.setattr(current, "telemetry", None)
    monkeypatch.setattr(current, "objects", {})
    yield
    if current.telemetry is not None:
        current.telemetry.shutdown()
    eventually(lambda: not our_threads())


# --- One handle --------------------------------------------------------------------------------------------


def test_before_the_configuration_there_is_no_handle():
    """Asking for the telemetry too early is an error that says what to do."""
    for ask_for_it in (get_telemetry, get_metrics):
        with pytest.raises(RuntimeError, match=r"call configure_telemetry\(\) at start-up"):
            ask_for_it()


def test_configuring_again_in_the_same_words_gives_the_same_handle():
    """However often and under whichever name it is called with the same settings, there is one telemetry."""
    handle = configure_telemetry(**PRIVATE)
    assert configure_telemetry(**PRIVATE) is handle
    assert initialize_metrics(**PRIVATE) is handle
    assert configure_telemetry(FastAPI(), **PRIVATE) is handle
    assert get_telemetry() is get_metrics() is handle


def test_configuring_otherwise_is_an_error_that_names_each_difference():
    """With other settings it is refused, with both values of what differs, and the first handle stays."""
    handle = configure_telemetry(port=9001, **PRIVATE)
    with pytest.raises(RuntimeError, match=r"port is 9001, now 9002; monitoring_interval is 5\.0, now 10\.0"):
        configure_telemetry(port=9002, monitoring_interval=10, **PRIVATE)
    assert get_telemetry() is handle


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("registry", CollectorRegistry),
        ("metric_readers", lambda: [InMemoryMetricReader()]),
        ("views", lambda: [View(instrument_name="errors", aggregation=DropAggregation())]),
    ],
)
def test_what_is_no_setting_must_be_the_same_too(name, make):
    """The same registry, readers and views are fine; others than the first time, or none any more, are an error."""
    first, other = make(), make()
    if name == "views":
        other = [View(instrument_name="errors", name="faults")]
    handle = configure_telemetry(**{name: first}, **PRIVATE)
    assert configure_telemetry(**{name: first}, **PRIVATE) is handle
    for given in ({name: other}, {}):
        with pytest.raises(RuntimeError, match=f"{name} is .*, now "):
            configure_telemetry(**given, **PRIVATE)


def test_views_in_the_same_words_are_the_same():
    """A module that is executed once more makes its views anew, and that is no difference."""

    def views(*, bounds: tuple[float, ...] = (0.1, 1.0)) -> list[View]:
        aggregation = ExplicitBucketHistogramAggregation(bounds)
        return [View(instrument_name="prediction.duration", attribute_keys={"model_version"}, aggregation=aggregation)]

    handle = configure_telemetry(views=views(), **PRIVATE)
    assert configure_telemetry(views=views(), **PRIVATE) is handle
    with pytest.raises(RuntimeError, match="views is"):
        configure_telemetry(views=views(bounds=(0.2, 1.0)), **PRIVATE)


def test_configuring_from_many_threads_makes_one():
    """Threads that configure at the same time get the same handle."""
    together = threading.Barrier(8)

    def configure(_):
        together.wait(PATIENCE_S)
        return configure_telemetry(FastAPI(), **PRIVATE)

    with ThreadPoolExecutor(8) as threads:
        assert len({id(handle) for handle in threads.map(configure, range(8))}) == 1


@pytest.mark.parametrize(
    ("keywords", "environment", "port"),
    [({"port": 9001}, "9002", 9001), ({}, "9002", 9002), ({}, None, 8001)],
    ids=["keyword", "environment", "default"],
)
def test_a_keyword_goes_before_the_environment_and_that_before_the_default(monkeypatch, keywords, environment, port):
    """What is given in the call counts most, then the environment, then the default."""
    monkeypatch.delenv("OTEL_EXPORTER_PROMETHEUS_PORT", raising=False)
    if environment is not None:
        monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", environment)
    assert configure_telemetry(FastAPI(), **keywords, **PRIVATE).settings.port == port


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"prot": 9001}, TypeError, "no setting 'prot'; did you mean port"),
        ({"port": "9001"}, TypeError, "port is '9001', expected a whole number"),
        ({"port": 70_000}, ValueError, "port is 70000, expected a whole number from 0 to 65535"),
        ({"views": [View(instrument_name="x", aggregation=LastValueAggregation())]}, ValueError, "LastValue"),
    ],
)
def test_a_mistake_in_the_call_is_an_error_and_configures_nothing(given, error, message):
    """A wrong argument is named with its value and what was expected, and the process stays unconfigured."""
    with pytest.raises(error, match=message):
        configure_telemetry(**given)
    assert current.telemetry is None


def test_the_service_is_named_after_the_app_or_the_script(monkeypatch):
    """Without a name the application's title is taken, or the script's, where the title is FastAPI's own."""
    nameless = {key: value for key, value in PRIVATE.items() if key != "service_name"}
    monkeypatch.setattr(sys, "argv", ["/srv/scoring.py"])
    handle = configure_telemetry(FastAPI(title="housing"), **nameless)
    assert handle.settings.service_name == "housing"
    for argument, name in (("/srv/scoring.py", "scoring"), ("/srv/scoring/__main__.py", "scoring"), ("-c", "python")):
        get_telemetry().shutdown()
        monkeypatch.setattr(sys, "argv", [argument])
        assert configure_telemetry(FastAPI(), **nameless).settings.service_name == name


def test_a_module_that_is_executed_twice_configures_once(tmp_path):
    """`python app.py` whose server imports app: one telemetry, both applications measured, tasks and models once."""
    (tmp_path / "app.py").write_text(
        textwrap.dedent("""
            from fastapi import FastAPI
            from opentelemetry.sdk.metrics.view import View
            from otel_mlops import configure_telemetry

            app = FastAPI(title="housing")
            telemetry = configure_telemetry(
                app, start_server=False, views=[View(instrument_name="errors", name="faults")]
            )
            model = telemetry.model("housing", version="v1", stage="production")
            ran = []

            def check():
                ran.append(__name__)

            telemetry.schedule_task(check, 3600, "check")
            telemetry.schedule_task(lambda: ran.append(__name__), 3600, "lambda")

            if __name__ == "__main__":
                import time
                import app as served

                assert served.telemetry is telemetry and served.model is model and served.app is not app
                assert hasattr(served.app, "_otel_mlops") and hasattr(app, "_otel_mlops")
                telemetry.start()
                until = time.monotonic() + 10
                while len(served.ran) < 2 and time.monotonic() < until:
                    time.sleep(0.01)
                print(ran, served.ran)
        """)
    )
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("[] ['app', 'app']\n", "")


def test_a_model_is_one_object_as_long_as_it_is_described_alike(telemetry):
    """The same name and version give the same model; described otherwise it is an error that says both."""
    model = telemetry.model("housing", "v1", stage="production", features=8)
    assert telemetry.model("housing", version="v1", features=8, stage="production") is model
    assert telemetry.model("housing", "v2") is not model
    with pytest.raises(ValueError, match=r"'housing' version 'v1' is there with .*'production'.*says .*'staging'"):
        telemetry.model("housing", "v1", stage="staging")
    with pytest.raises(TypeError, match="features is '8'"):
        telemetry.model("housing", "v3", features="8")
    telemetry.model("housing", "v3", features=8)


def nightly() -> None:
    """A task of this module."""


def test_a_task_that_is_scheduled_again_is_the_same_task(telemetry):
    """The same function at the same interval is one task; another function or interval under its name is an error."""
    telemetry.schedule_task(nightly, 3600, "nightly")
    telemetry.schedule_task(nightly, 3600, "nightly")
    telemetry.schedule_task(partial(nightly), 3600, "nightly")
    telemetry.schedule_task(lambda: None, 3600, "short")
    for func, interval_seconds, task_name in (
        (print, 3600, "nightly"),
        (nightly, 60, "nightly"),
        (lambda: None, 3600, "short"),  # all lambdas of a module have one name
    ):
        with pytest.raises(ValueError, match=f"task_name is '{task_name}'"):
            telemetry.schedule_task(func, interval_seconds, task_name)
    with pytest.raises(ValueError, match="task_name is 'nightly'"):
        telemetry.schedule_task(nightly, 3600, "nightly", once_per_group=True)


# --- Start and end -----------------------------------------------------------------------------------------


async def test_with_an_app_nothing_starts_before_its_lifespan():
    """Configured with an app there is neither thread nor port until its lifespan begins, and none after its end."""
    app, port = FastAPI(), free_port()
    handle = configure_telemetry(app, port=port, set_global=False, host="127.0.0.1")
    handle.schedule_task(nightly, 3600, "nightly")
    handle.record_error("ValueError", "/predict")
    assert not our_threads()
    assert not listens(port)
    async with serving(app):
        assert listens(port)
    assert not listens(port)
    eventually(lambda: not our_threads())


async def test_the_next_lifespan_begins_again(tmp_path):
    """Stopped by the end of a lifespan it leaves no thread, port or file, and the next serves the counts so far."""
    app, port = FastAPI(), free_port()
    handle = configure_telemetry(
        app, port=port, set_global=False, host="127.0.0.1", start_monitoring=False, state_dir=tmp_path
    )
    for count in (1, 2, 3):
        async with serving(app):
            assert get_telemetry() is handle
            assert listens(port)
            handle.record_error("ValueError", "/predict")
            await ask(app, "GET", "/nowhere")
            assert collect(handle).value("errors_total") == count
            assert collect(handle).value("api_requests_total", endpoint="unmatched") == count
        assert not listens(port)
        eventually(lambda: not our_threads())
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_stopping_what_has_not_started_does_nothing(telemetry):
    """stop() before start(), or twice, is no mistake, and start() begins afterwards all the same."""
    telemetry.stop()
    telemetry.start()
    telemetry.stop()
    telemetry.stop()
    telemetry.start()
    assert our_threads()
    telemetry.shutdown()
    telemetry.stop()


async def test_without_a_lifespan_it_starts_with_the_first_request():
    """Where the server runs no lifespan the first request starts it."""
    app, port = FastAPI(), free_port()
    configure_telemetry(app, port=port, set_global=False, start_monitoring=False, host="127.0.0.1")
    assert not listens(port)
    await ask(app, "GET", "/")
    assert listens(port)


def test_without_an_app_it_starts_at_once():
    """Without an application the call itself begins to serve."""
    port = free_port()
    configure_telemetry(port=port, set_global=False, start_monitoring=False, host="127.0.0.1")
    assert listens(port)
    get_telemetry().shutdown()
    assert not listens(port)


def test_a_with_block_starts_it_and_shuts_it_down():
    """Inside a `with` block it serves; at its end it is shut down, whatever was raised."""
    telemetry = Telemetry(Settings(service_name="test", port=0, set_global=False))

    def fail_inside() -> None:
        with telemetry as inside:
            assert inside is telemetry
            assert telemetry._leading.server.serving.wait(PATIENCE_S)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert telemetry.is_shut_down
    assert not telemetry._leading.server.serving.is_set()


async def test_an_async_with_block_does_so_beside_the_loop():
    """`async with` is the same, and while it shuts down the event loop runs on."""
    hangs = threading.Event()
    telemetry = Telemetry(
        Settings(service_name="test", port=0, set_global=False), sources={"stuck": lambda: hangs.wait(PATIENCE_S) or ()}
    )
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.005)

    async with telemetry as inside:
        assert inside is telemetry
        assert await asyncio.to_thread(telemetry._leading.server.serving.wait, PATIENCE_S)
        turning = asyncio.ensure_future(turn())
        await asyncio.sleep(0)
        turns = 0
    turning.cancel()
    hangs.set()
    assert telemetry.is_shut_down
    assert turns > 10


def test_shutting_down_is_repeatable_and_recording_goes_on():
    """A second shutdown does nothing; after it every verb, handle and model is still there and raises nothing."""
    handle = configure_telemetry(**PRIVATE)
    bound = handle.instrument(ERRORS).bind({"error_type": "ValueError", "endpoint": "/"})
    model = handle.model("housing", "v1")
    counter = handle.meter.create_counter("orders")
    handle.shutdown()
    handle.shutdown()
    handle.start()
    bound.add(1)
    counter.add(1)
    counter.bind({}).add(1)
    handle.meter_provider.get_meter("late").create_counter("late").bind({}).add(1)
    handle.record_prediction(1.0, "v1", 1.0)
    handle.model("housing", "v2").status = "ready"
    with model.prediction() as prediction:
        prediction.values = 1.0
    assert handle.force_flush(0.1)
    assert handle.page().content_type.startswith("text/plain")
    assert get_telemetry() is handle, "an endpoint that still asks for it must not fail"


def test_a_shutdown_leaves_no_file(tmp_path):
    """The ledger is in its folder while the telemetry lives, and gone when it has ended."""
    with fresh_telemetry(state_dir=tmp_path) as telemetry:
        assert not list(tmp_path.rglob("*.ledger")), "nothing is made before the first record"
        telemetry.record_error("ValueError", "/")
        assert len(list(tmp_path.rglob("*.ledger"))) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_after_a_shutdown_it_can_be_configured_anew():
    """A new telemetry takes the place of the ended one, as OpenTelemetry's global provider too."""
    said = run("""
        from opentelemetry import metrics
        from otel_mlops import configure_telemetry, get_telemetry
        from otel_mlops.testing import collect

        early = metrics.get_meter("early").create_counter("jobs")
        first = configure_telemetry(start_server=False, service_name="first")
        assert metrics.get_meter_provider() is first.meter_provider
        early.add(1)
        assert collect(first).value("jobs_total") == 1
        first.shutdown()
        second = configure_telemetry(start_server=False, service_name="second")
        assert get_telemetry() is second is not first
        assert metrics.get_meter_provider() is second.meter_provider
        metrics.get_meter("late").create_counter("jobs").add(5)
        assert collect(second).value("jobs_total") == 5
    """)
    assert said == ""


@pytest.mark.stress
def test_a_shutdown_ends_in_its_time_whatever_hangs():
    """A source, a task, a reader and a scraper that hang do not hold the shutdown beyond its time."""
    hangs = threading.Event()

    class HangingReader(InMemoryMetricReader):
        def shutdown(self, timeout_millis=30_000, **_):
            hangs.wait(PATIENCE_S)

    settings = Settings(service_name="test", port=0, set_global=False)
    telemetry = Telemetry(
        settings, sources={"stuck": lambda: hangs.wait(PATIENCE_S) or ()}, metric_readers=[HangingReader()]
    )
    running = threading.Event()
    telemetry.schedule_task(lambda: running.set() or hangs.wait(PATIENCE_S), 3600, "stuck")
    telemetry.start()
    assert running.wait(PATIENCE_S)
    port = telemetry._leading.server.port
    try:
        with socket.create_connection(("127.0.0.1", port)):
            began_s = time.monotonic()
            telemetry.shutdown(timeout_s=0.5)
            took_s = time.monotonic() - began_s
        assert took_s < 1.5
        assert not listens(port)
    finally:
        hangs.set()


@pytest.mark.stress
def test_the_end_of_the_process_is_not_delayed():
    """A process that ends without a word is gone in time, though a source, a task and a scraper hang."""
    said = run("""
        import socket, sys, threading, time
        from otel_mlops import configure_telemetry, leading
        reading, running = threading.Event(), threading.Event()
        leading.open_sources = lambda *_: {"stuck": lambda: (reading.set(), time.sleep(60))}
        telemetry = configure_telemetry(port=0)
        telemetry.schedule_task(lambda: (running.set(), time.sleep(60)), 3600, "stuck")
        assert running.wait(10) and reading.wait(10)
        client = socket.create_connection(("127.0.0.1", telemetry._leading.server.port))
        print(time.time())
    """)
    assert time.time() - float(said.splitlines()[0]) < 5.0


def test_flushing_says_whether_everything_went(telemetry, caplog):
    """force_flush() is true where nothing fails, false where a reader does, and never raises."""
    assert telemetry.force_flush()

    class BrokenReader(InMemoryMetricReader):
        def force_flush(self, timeout_millis=10_000):
            raise ConnectionError("the Collector is gone")

    telemetry.meter_provider.add_metric_reader(BrokenReader())
    assert not telemetry.force_flush(1.0)
    assert "the Collector is gone" in caplog.text


@pytest.mark.parametrize(
    ("host", "level", "words"),
    [("127.0.0.1", logging.INFO, "open to this machine only"), ("0.0.0.0", logging.WARNING, "without a password")],
)
def test_one_line_says_where_the_page_is_and_who_can_read_it(caplog, host, level, words):
    """The start-up line names the page's URL, and warns where anybody on the network can read it."""
    caplog.set_level(logging.INFO)
    with Telemetry(Settings(service_name="housing", host=host, port=0, set_global=False)) as telemetry:
        url = telemetry.url
    lines = [record for record in caplog.records if "the page of housing" in record.message]
    assert [record.levelno for record in lines] == [level]
    assert url in lines[0].message
    assert words in lines[0].message


def test_a_page_that_is_protected_is_said_to_be(caplog, tmp_path):
    """With a web.config.yml the start-up line names it, and warns of nothing."""
    caplog.set_level(logging.INFO)
    config = tmp_path / "web.config.yml"
    config.write_text("rate_limit: {interval: 1s, burst: 5}")
    settings = Settings(service_name="housing", host="0.0.0.0", port=0, set_global=False, web_config_file=config)
    with Telemetry(settings):
        pass
    lines = [record for record in caplog.records if "the page of housing" in record.message]
    assert [(record.levelno, f"whom {config} admits" in record.message) for record in lines] == [(logging.INFO, True)]


def test_an_ended_telemetry_can_be_collected():
    """Nothing keeps a telemetry that has ended: no hook, no thread, no registry."""
    with fresh_telemetry(start_server=True, port=0) as telemetry:
        telemetry.schedule_task(nightly, 3600, "nightly")
        telemetry.model("housing", "v1")
        telemetry.start()
        telemetry.page()
        weak = weakref.ref(telemetry)
    del telemetry

    def is_gone() -> bool:
        gc.collect()
        return weak() is None

    eventually(is_gone)


# --- In nobody's way ---------------------------------------------------------------------------------------


def test_a_stock_provider_that_is_there_already_stays_global():
    """Somebody else's global provider keeps its instruments; ours serves our metrics, and a warning says the order."""
    said = run("""
        import logging
        logging.basicConfig()
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from otel_mlops import configure_telemetry
        from otel_mlops.testing import collect

        theirs = MeterProvider([reader := InMemoryMetricReader()])
        metrics.set_meter_provider(theirs)
        telemetry = configure_telemetry(start_server=False)
        assert metrics.get_meter_provider() is theirs
        metrics.get_meter("somebody").create_counter("jobs").add(1)
        telemetry.record_error("ValueError", "/predict")
        page = collect(telemetry)
        assert page.value("errors_total") == 1 and "jobs_total" not in page.names()
        assert "jobs" in reader.get_metrics_data().to_json()
    """)
    (warning,) = [line for line in said.splitlines() if line.startswith("WARNING")]
    assert "Call configure_telemetry() before" in warning
    assert "opentelemetry.sdk.metrics" in warning


def test_nothing_becomes_global_where_that_is_not_wanted():
    """With set_global=False the global API stays as it was, and the telemetry's own meter works."""
    said = run("""
        from opentelemetry import metrics, trace
        before = metrics.get_meter_provider(), trace.get_tracer_provider()
        from otel_mlops import configure_telemetry
        from otel_mlops.testing import collect
        telemetry = configure_telemetry(start_server=False, set_global=False)
        assert (metrics.get_meter_provider(), trace.get_tracer_provider()) == before
        telemetry.meter.create_counter("jobs").add(1)
        assert collect(telemetry).value("jobs_total") == 1
    """)
    assert said == ""


def test_without_an_exporter_there_is_no_tracer_provider():
    """Traces cost nothing where nobody wants them: no provider is set, and the tracer makes no real spans."""
    said = run("""
        from opentelemetry import trace
        from otel_mlops import configure_telemetry
        telemetry = configure_telemetry(start_server=False)
        assert telemetry.tracer_provider is None
        assert not telemetry.tracer.start_span("x").is_recording()
        assert type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"
    """)
    assert said == ""


def test_disabled_everything_is_there_and_nothing_happens(tmp_path):
    """OTEL_SDK_DISABLED: no thread, port, file or global; every verb, handle and model works as nothing."""
    port = free_port()
    said = run(
        """
        import pathlib, socket, sys, threading
        from fastapi import FastAPI
        from opentelemetry import metrics
        from otel_mlops import configure_telemetry, get_telemetry
        from otel_mlops.metrics import ERRORS, PREDICTION_VALUES
        from otel_mlops.testing import collect

        app = FastAPI()
        telemetry = configure_telemetry(app)
        telemetry.start()
        telemetry.schedule_task(lambda: print("ran"), 0.01, "task")
        for row, verb in ((ERRORS, "add"), (PREDICTION_VALUES, "record")):
            getattr(telemetry.instrument(row), verb)(1, {})
            getattr(telemetry.instrument(row).bind({}), verb)(1)
        telemetry.instrument(PREDICTION_VALUES).bind({}).record_many([1, 2])
        telemetry.meter.create_counter("jobs").bind({}).add(1)
        telemetry.record_request("GET", "/", 200, 0.1)
        telemetry.record_batch_prediction([1, 2], 1.0, "v1")
        telemetry.update_api_health_status("database", False)
        telemetry.system_info.info({"version": "1"})
        telemetry.set_model_status("v1", "ready")
        model = telemetry.model("housing", "v1")
        with model.loading(), model.prediction() as prediction:
            prediction.values = [1.0]
        telemetry.sample()
        telemetry.forget(model_version="v1")
        with telemetry.tracer.start_as_current_span("x"):
            pass
        assert threading.active_count() == 1
        assert type(metrics.get_meter_provider()).__name__ == "_ProxyMeterProvider"
        assert {name for name in collect(telemetry).names() if name != "target_info"} == set()
        assert socket.socket().connect_ex(("127.0.0.1", telemetry.settings.port)) != 0
        assert not list(pathlib.Path(sys.argv[1]).iterdir())
        assert telemetry.force_flush()
        telemetry.shutdown()
        """,
        str(tmp_path),
        OTEL_SDK_DISABLED="true",
        OTEL_EXPORTER_PROMETHEUS_PORT=str(port),
        OTEL_MLOPS_STATE_DIR=str(tmp_path),
    )
    assert said == ""


def test_enabled_by_keyword_it_records_though_the_environment_says_disabled(monkeypatch):
    """`disabled=False` goes before OTEL_SDK_DISABLED, for what is recorded as well."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    handle = configure_telemetry(disabled=False, **PRIVATE)
    handle.record_error("ValueError", "/")
    assert collect(handle).value("errors_total") == 1


def test_pickled_with_an_app_it_is_the_same_here_and_configured_anew_elsewhere(tmp_path):
    """An application that holds the telemetry can be pickled; another process configures it alike, unstarted."""
    handle = configure_telemetry(FastAPI(title="housing"), port=9123, environment="staging", **PRIVATE)
    assert pickle.loads(pickle.dumps(handle)) is handle
    pickled = tmp_path / "telemetry"
    pickled.write_bytes(pickle.dumps({"telemetry": handle}))
    said = run(
        """
        import pathlib, pickle, sys, threading
        telemetry = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())["telemetry"]
        import otel_mlops
        assert otel_mlops.get_telemetry() is telemetry
        assert threading.active_count() == 1
        telemetry.record_error("ValueError", "/")
        print(telemetry.settings.port, telemetry.settings.environment)
        """,
        str(pickled),
    )
    assert said == "9123 staging\n"


def test_a_forked_child_starts_at_nothing_and_holds_nothing():
    """A child of a started telemetry counts for itself, leaves the parent's counts and port alone, even after it."""
    script = """
        import json, os, signal, sys, threading
        from otel_mlops import configure_telemetry
        from otel_mlops.metrics import ERRORS
        from otel_mlops.testing import collect

        telemetry = configure_telemetry(port=0, host="127.0.0.1")
        bound = telemetry.instrument(ERRORS).bind({"error_type": "ValueError", "endpoint": "/"})
        bound.add(5)
        telemetry.record_prediction(1.0, "v1")
        telemetry._leading.daily.begin_day()
        assert telemetry._leading.server.serving.wait(10)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            own = telemetry.meter_provider.totals(ERRORS)
            before = {"errors": collect(telemetry).value("errors_total"), "own": own}
            bound.add(1)
            telemetry.record_prediction(1.0, "v1")
            page = collect(telemetry)
            os.write(writing, json.dumps({
                "before": before,
                "errors": page.value("errors_total"),
                "threads": threading.active_count(),
            }).encode())
            os.close(1), os.close(2)  # whoever reads the parent's output must see its end
            signal.alarm(60)
            signal.pause()
        said = json.loads(os.read(reading, 10_000))
        page = collect(telemetry)
        said |= {"today": page.value("daily_predictions_total"), "parent": page.value("errors_total")}
        said |= {"child": child, "port": telemetry._leading.server.port}
        print(json.dumps(said))
        sys.stdout.flush()
        os._exit(0)
    """
    said = json.loads(run(script).splitlines()[0])
    try:
        assert said["before"] == {"errors": 5, "own": []}, "what the parent counted is the parent's"
        assert (said["errors"], said["today"], said["threads"], said["parent"]) == (6, 1, 1, 6)
        assert not listens(said["port"])
        with socket.create_server(("127.0.0.1", said["port"])):
            pass
    finally:
        os.kill(said["child"], signal.SIGKILL)


def test_a_folder_that_cannot_be_used_is_said_once_and_costs_nothing(tmp_path, caplog):
    """Where the ledger cannot lie in a file numbers go on in memory, and one warning says why and what to do."""
    occupied = tmp_path / "file"
    occupied.write_text("no folder")
    with fresh_telemetry(state_dir=occupied) as telemetry:
        for number in range(300):
            telemetry.record_error(f"Error{number}", "/predict")
        assert len(collect(telemetry).labels("errors_total")) == 300
    (warning,) = [record.message for record in caplog.records if "private memory" in record.message]
    assert "OTEL_MLOPS_STATE_DIR" in warning
    assert str(occupied) in warning


# --- What is recorded --------------------------------------------------------------------------------------


def test_views_shape_what_is_on_the_page():
    """A view given at the configuration drops, renames, filters attributes and sets buckets."""
    views = [
        View(instrument_name="errors", name="faults"),
        View(instrument_name="predictions", aggregation=DropAggregation()),
        View(
            instrument_name="prediction.duration",
            attribute_keys={"model_version"},
            aggregation=ExplicitBucketHistogramAggregation((0.5, 1.0)),
        ),
    ]
    handle = configure_telemetry(views=views, **PRIVATE)
    handle.record_error("ValueError", "/")
    handle.record_prediction(700, "v1")
    page = collect(handle)
    assert page.value("faults_total") == 1
    assert not {"errors_total", "predictions_total", "daily_predictions_total"} & page.names()
    bounds = [labels["le"] for labels in page.labels("prediction_duration_seconds_bucket")]
    assert (bounds, page.labels("prediction_duration_seconds_count")) == (
        ["0.5", "1.0", "+Inf"],
        [{"model_version": "v1"}],
    )


def test_a_reader_of_ones_own_sees_everything():
    """A reader given at the configuration gets the numbers, and those of observable instruments too."""
    reader = InMemoryMetricReader()
    handle = configure_telemetry(metric_readers=[reader], **PRIVATE)
    handle.record_prediction(1.0, "v1")
    seen = reader.get_metrics_data().to_json()
    assert '"predictions"' in seen
    assert '"daily.predictions"' in seen


def test_forgetting_removes_the_series_that_carry_the_labels(telemetry):
    """forget() takes the series of a label out of every metric, and what comes later begins at nothing."""
    bound = telemetry.instrument(PREDICTIONS).bind({"model_version": "v1", "prediction_type": "single"})
    old = telemetry.model("housing", "v1", stage="staging")
    for version in ("v1", "v2"):
        telemetry.record_prediction(10, version, 1.0)
        telemetry.update_model_drift_score(version, "MedInc", 0.1)
    telemetry._leading.daily.begin_day()
    telemetry.record_prediction(10, "v2")
    assert telemetry.forget(model_version="v1") == 5
    page = collect(telemetry)
    every = [labels for name in page.names() for labels in page.labels(name)]
    assert not [labels for labels in every if labels.get("model_version") == "v1"]
    assert page.value("predictions_total", model_version="v2") == 2
    assert telemetry.forget(model_version="v1") == 0
    bound.add(1)
    assert collect(telemetry).value("predictions_total", model_version="v1") == 1
    assert collect(telemetry).value("daily_predictions_total", model_version="v1") == 1
    assert telemetry.forget(model_version="v2", feature="AveRooms") == 0
    assert telemetry.forget(model_name="housing") == 0
    assert telemetry.model("housing", "v1", stage="production") is not old


def test_forgetting_everything_must_be_said(telemetry):
    """Without a label forget() is refused, since it would remove every series."""
    with pytest.raises(ValueError, match=r"forget\(\) is given no label"):
        telemetry.forget()


def test_a_component_that_is_forgotten_is_healthy_no_more_and_sick_no_more(telemetry):
    """forget(component=...) takes a component out of the health as well as off the page."""
    telemetry.update_api_health_status("database", False)
    telemetry.update_api_health_status("model", True)
    telemetry.forget(component="database")
    assert telemetry.health() == {"status": "healthy", "components": {"model": True}}
    assert collect(telemetry).labels("api_health_status") == [{"component": "model"}]


def test_the_health_is_bounded(telemetry):
    """However many components are named, the health keeps a thousand, and those stay up to date."""
    for number in range(1500):
        telemetry.update_api_health_status(f"component-{number}", True)
    telemetry.update_api_health_status("component-0", False)
    assert len(telemetry.health()["components"]) == 1000
    assert telemetry.health()["status"] == "unhealthy"


class Hostile:
    """Raises whatever is asked of it."""

    def _refuse(self, *_: object) -> None:
        raise RuntimeError("hostile")

    __str__ = __repr__ = __bool__ = __float__ = __len__ = __iter__ = __hash__ = __eq__ = _refuse


BAD = [None, math.nan, -math.inf, -1, 10**400, "text", b"bytes", "", [], [1], {}, {"a": 1}, object(), Hostile(), int]
VERBS = {
    "record_request method": lambda t, bad: t.record_request(bad, "/", 200, 0.1),
    "record_request endpoint": lambda t, bad: t.record_request("GET", bad, 200, 0.1),
    "record_request status_code": lambda t, bad: t.record_request("GET", "/", bad, 0.1),
    "record_request duration": lambda t, bad: t.record_request("GET", "/", 200, bad),
    "record_error": lambda t, bad: t.record_error(bad, bad),
    "record_prediction": lambda t, bad: t.record_prediction(bad, bad, bad, model_name=bad),
    "record_batch_prediction": lambda t, bad: t.record_batch_prediction(bad, bad, bad, model_name=bad),
    "record_batch_prediction of bad values": lambda t, bad: t.record_batch_prediction([1.0, bad], 1.0, "v1"),
    "record_model_load": lambda t, bad: t.record_model_load(bad, bad, model_name=bad),
    "update_model_performance_metrics": lambda t, bad: t.update_model_performance_metrics(bad, bad, bad, bad, bad, bad),
    "update_prediction_latency_percentiles": lambda t, bad: t.update_prediction_latency_percentiles(bad, bad, bad),
    "update_model_drift_score": lambda t, bad: t.update_model_drift_score(bad, bad, bad),
    "update_api_health_status": lambda t, bad: t.update_api_health_status(bad, bad),
    "record_database_operation": lambda t, bad: t.record_database_operation(bad, bad, bad),
    "database_operation": lambda t, bad: t.database_operation(bad, bad).__enter__(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_recording_verb_raises_whatever_it_is_given(telemetry, verb):
    """Bad arguments of any kind in any place raise nothing, and the page can still be read."""
    for bad in BAD:
        VERBS[verb](telemetry, bad)
        VERBS[verb](telemetry, bad)
    assert len(collect(telemetry)) > 0
    assert telemetry.page("application/openmetrics-text").body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("record", "metric"),
    [
        (lambda t, bad: t.record_request("GET", "/", 200, bad), "api.request.duration"),
        (lambda t, bad: t.record_prediction(bad, "v1"), "prediction.duration"),
        (lambda t, bad: t.record_prediction(1.0, "v1", bad), "prediction.values"),
        (lambda t, bad: t.record_batch_prediction([1.0, bad], 1.0, "v1"), "prediction.values"),
        (lambda t, bad: t.record_model_load("v1", bad), "model.load.duration"),
        (lambda t, bad: t.update_model_performance_metrics("v1", "live", accuracy=bad), "model.accuracy.score"),
        (lambda t, bad: t.update_prediction_latency_percentiles("v1", p99_latency=bad), "prediction.latency.p99"),
        (lambda t, bad: t.update_model_drift_score("v1", "f", bad), "model.drift.score"),
        (lambda t, bad: t.record_database_operation("select", "t", bad), "database.operation.duration"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
@pytest.mark.parametrize(("bad", "reason"), [(math.nan, "not_finite"), ("slow", "type"), (10**400, "type")])
def test_a_value_that_is_no_fit_number_is_counted_each_time_and_said_once(
    telemetry, caplog, record, metric, bad, reason
):
    """A bad value is counted by its reason each time it comes, and logged once with the metric's name."""
    for _ in range(3):
        record(telemetry, bad)
    assert collect(telemetry).value("otel_mlops_dropped_total", reason=reason) == 3
    assert len([record for record in caplog.records if record.message.startswith(f"{metric}: dropped")]) == 1


def test_milliseconds_of_any_number_type_become_seconds(telemetry):
    """A duration in milliseconds may be an int, a Decimal or a Fraction: it is recorded in seconds."""
    from decimal import Decimal
    from fractions import Fraction

    for duration_ms in (15, Decimal("15.5"), Fraction(31, 2)):
        telemetry.record_prediction(duration_ms, "v1")
    assert collect(telemetry).value("prediction_duration_seconds_sum") == pytest.approx(0.046)


def test_a_text_is_no_health(telemetry):
    """A text that is no number leaves a component's health as it was, and is counted: "down" is not healthy."""
    telemetry.update_api_health_status("database", True)
    for text in ("down", "false", ""):
        telemetry.update_api_health_status("database", text)
        telemetry.update_api_health_status("cache", text)
    assert telemetry.health()["components"] == {"database": True}
    assert collect(telemetry).labels("api_health_status") == [{"component": "database"}]
    assert collect(telemetry).value("otel_mlops_dropped_total", reason="type") == 6


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, None, 2, -1, 0.5, "1", "true", [], [1], np.float64("nan"), Hostile()]
)
def test_what_is_no_truth_value_is_no_health(telemetry, bad):
    """Whatever is neither true nor false leaves a component's health as it was, and is counted."""
    telemetry.update_api_health_status("database", False)
    telemetry.update_api_health_status("database", bad)
    telemetry.update_api_health_status("cache", bad)
    assert telemetry.health()["components"] == {"database": False}
    assert collect(telemetry).value("api_health_status") == 0
    assert collect(telemetry).labels("api_health_status") == [{"component": "database"}]
    assert collect(telemetry).value("otel_mlops_dropped_total") == 2


@pytest.mark.parametrize(("healthy", "sick"), [(True, False), (1, 0), (1.0, 0.0), (np.True_, np.False_)])
def test_truth_values_of_any_library_are_a_health(telemetry, healthy, sick):
    """True and False, numpy's, and 1 and 0 say whether a component is healthy."""
    telemetry.update_api_health_status("database", healthy)
    telemetry.update_api_health_status("model", sick)
    assert telemetry.health()["components"] == {"database": True, "model": False}
    assert collect(telemetry).value("api_health_status", component="database") == 1
    assert collect(telemetry).value("api_health_status", component="model") == 0


class Shapeless(Sized):
    """Three rows whose shape is None."""

    shape = None

    def __len__(self) -> int:
        return 3


class Unshaped(Shapeless):
    """Three rows whose shape cannot be asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        raise RuntimeError("no shape yet")


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0], [[1.0], [2.0]], ["cat", "dog"], [None, 1.0], [], [[0.1, 0.9]], np.ones((2, 1)), np.ones((2, 2)),
        np.array(["cat"]), np.array(4.0), 4, None, "cat", b"cat", bytearray(b"cat"), {"cat": 0.7}, object(),
        Shapeless(), Unshaped(), Hostile(),
    ],
    ids=lambda values: type(values).__name__,
)  # fmt: skip
def test_a_batch_by_a_verb_counts_as_one_by_a_model(telemetry, values):
    """Whatever was predicted, the verb counts the rows and values that a Model counts, and drops as little."""
    with telemetry.model("housing", "v1").prediction() as prediction:
        prediction.values = values
    telemetry.record_batch_prediction(values, 1.0, "v1", model_name="verb")

    page = collect(telemetry)
    counted = {"housing": {}, "verb": {}}
    for (name, labels), value in page.items():
        said = dict(labels)
        if name.startswith("prediction") and not name.startswith(("prediction_duration", "predictions_in")):
            counted[said.pop("model_name")][name, *sorted(said.items())] = value
    assert counted["verb"] == counted["housing"] != {}
    assert "otel_mlops_dropped_total" not in page.names()


def test_values_that_cannot_be_read_are_said_once(telemetry, caplog):
    """Rows whose values cannot be read count all the same, and one line says so."""
    for _ in range(3):
        telemetry.record_batch_prediction(Unshaped(), 1.0, "v1")
    assert collect(telemetry).value("predictions_total", prediction_type="batch") == 9
    assert caplog.text.count("Predicted values of type Unshaped cannot be read") == 1


@pytest.mark.parametrize("first", ["model", "verb"])
def test_a_model_knows_the_status_that_a_verb_has_set(telemetry, first):
    """The verb and the model of one name and version say the same thing, whichever came first."""
    model = telemetry.model("housing", "v1") if first == "model" else None
    telemetry.set_model_status("v1", "ready", model_name="housing")
    model = model or telemetry.model("housing", "v1")
    assert model.status == "ready"
    assert telemetry.model("housing", "v2").status is None
    model.status = "error"
    telemetry.set_model_status("v1", "unavailable", model_name="housing")
    telemetry.set_model_status("v1", "loading")
    assert model.status == "unavailable"
    page = collect(telemetry)
    on = [state for state in MODEL_STATES if page.value("model_status", model_name="housing", model_status=state)]
    assert on == ["unavailable"]


def test_a_model_and_a_verb_say_what_it_is_in_one_series(telemetry):
    """The info of a name and version is the last that was said, by either, and what the model adds to it."""
    model = telemetry.model("housing", "v1", stage="staging", type="regression")
    telemetry.set_model_info("housing", "v1", stage="production", features=8)
    housing = {"model_name": "housing", "model_version": "v1"}
    assert collect(telemetry).labels("model_info") == [{**housing, "stage": "production", "features": "8"}]
    model.info(stage="retired")
    assert collect(telemetry).labels("model_info") == [{**housing, "stage": "retired", "features": "8"}]


@pytest.mark.parametrize(
    ("describe", "error", "message"),
    [
        (lambda t: t.set_model_info(None, "v1"), TypeError, "model_name is None, expected a non-empty str"),
        (lambda t: t.set_model_info("housing", None), TypeError, "model_version is None, expected a non-empty str"),
        (lambda t: t.set_model_info("", "v1"), ValueError, "model_name is '', expected a non-empty str"),
        (lambda t: t.set_model_info("housing", ""), ValueError, "model_version is '', expected a non-empty str"),
        (lambda t: t.set_model_info("housing", "v1", stage=1), TypeError, "stage is 1, expected"),
        (lambda t: t.set_model_info("housing", "v1", type=""), ValueError, "type is '', expected"),
        (lambda t: t.set_model_info("housing", "v1", features="abc"), TypeError, "features is 'abc', expected the num"),
        (lambda t: t.set_model_info("housing", "v1", features=-3), ValueError, "features is -3, expected 0 or more"),
        (lambda t: t.set_model_status(None, "ready"), TypeError, "model_version is None, expected a non-empty str"),
        (lambda t: t.set_model_status("v1", "ready", model_name=1), TypeError, "model_name is 1, expected"),
        (lambda t: t.set_model_status("v1", ["ready"]), TypeError, r"status is \['ready'\], expected"),
        (lambda t: t.set_model_status("v1", "broken"), ValueError, "status is 'broken', expected one of error, load"),
    ],
)
def test_a_mistake_in_what_is_said_of_a_model_names_the_argument(telemetry, describe, error, message):
    """What describes a model is refused where it is no fit text or number, and nothing of it is on the page."""
    with pytest.raises(error, match=message):
        describe(telemetry)
    assert not {"model_info", "model_status"} & collect(telemetry).names()


@pytest.mark.parametrize(
    ("old", "new"), [({"version": "1"}, {"version": "2"}), ({"version": "1"}, {"version": "1", "region": "north"})]
)
def test_what_is_said_of_the_system_again_replaces_it(telemetry, old, new):
    """The info of the system is one series, whether the new facts include the old ones or not."""
    for facts in (old, old, new):
        telemetry.system_info.info(facts)
    assert collect(telemetry).labels("system_info") == [new]
    telemetry.system_info.info(old)
    assert collect(telemetry).labels("system_info") == [old]


@pytest.mark.parametrize("facts", [None, "production", ["production"], {"version": 1}, {1: "1"}])
def test_facts_that_are_no_texts_are_refused(telemetry, facts):
    """What describes the system must be a mapping of strings to strings; what was said before stays."""
    telemetry.system_info.info({"version": "1"})
    with pytest.raises(TypeError, match=r"facts is .*, expected a mapping of strings to strings"):
        telemetry.system_info.info(facts)
    assert collect(telemetry).labels("system_info") == [{"version": "1"}]


def test_the_public_names_are_there():
    """Everything in __all__ can be imported, and the names of the specification are among them."""
    assert {"configure_telemetry", "get_telemetry", "initialize_metrics", "get_metrics"} <= set(otel_mlops.__all__)
    for name in otel_mlops.__all__:
        assert getattr(otel_mlops, name) is not None


def test_what_is_in_progress_is_not_forgotten():
    """Forgetting a model during its prediction leaves the number in progress to come back to 0."""
    with fresh_telemetry() as telemetry:
        model = telemetry.model("housing", "v1")
        with model.prediction():
            telemetry.forget(model_version="v1")
            assert collect(telemetry).value("predictions_in_progress") == 1
        assert collect(telemetry).value("predictions_in_progress") == 0
        telemetry.forget(model_version="v1")
        assert "predictions_in_progress" not in collect(telemetry).names()


def test_a_page_asked_for_by_a_callback_has_what_was_said_last():
    """A callback that asks for the page it is part of gets what it said before, and nothing is shown twice."""
    with fresh_telemetry() as telemetry:
        seen = []

        def nested(_options):
            seen.append(telemetry.page().body.decode())
            return [Observation(float(len(seen)))]

        telemetry.meter.create_observable_gauge("nested", [nested])
        telemetry.page()
        last = telemetry.page().body.decode()
        assert [re.findall("^nested.* (.*)$", body, re.MULTILINE) for body in (*seen, last)] == [[], ["1.0"], ["2.0"]]


def test_a_callback_that_hangs_takes_one_page_with_it():
    """While a callback hangs the others get their pages, with what was said before it began to hang."""
    stuck, leave, hangs = threading.Event(), threading.Event(), threading.Event()

    def observe(_options):
        if hangs.is_set():
            stuck.set()
            leave.wait(30)
        return [Observation(7.0)]

    with fresh_telemetry() as telemetry:
        telemetry._page._observe_timeout_s = 0.1
        telemetry.meter.create_observable_gauge("hangs", [observe])
        assert collect(telemetry).value("hangs") == 7.0
        hangs.set()
        rendering = threading.Thread(target=telemetry.page, daemon=True)
        rendering.start()
        assert stuck.wait(10)
        telemetry.record_error("ValueError", "/")
        page = collect(telemetry)
        assert (page.value("hangs"), page.value("errors_total")) == (7.0, 1.0)
        leave.set()
        rendering.join(10)
        assert telemetry.page().body


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"app": 123}, "app is 123, expected a FastAPI"),
        ({"app": "main:app"}, "app is 'main:app', expected a FastAPI"),
        ({"views": 5}, "views is 5, expected a sequence of Views"),
        ({"views": ["x"]}, "views is \\['x'\\], expected a sequence of Views"),
        ({"metric_readers": None}, "metric_readers is None, expected a sequence of MetricReaders"),
        ({"registry": 1}, "registry is 1, expected a prometheus_client CollectorRegistry"),
    ],
)
def test_a_wrong_argument_is_named_and_leaves_nothing_configured(wrong, named):
    """What is no application, view, reader or registry is a TypeError, and the next call begins at nothing."""
    with pytest.raises(TypeError, match=named):
        configure_telemetry(wrong.pop("app", None), **wrong)
    with pytest.raises(RuntimeError, match="not configured"):
        get_telemetry()


def test_a_name_that_nobody_chose_is_no_difference():
    """Configured without a name and then with an app, or with two apps, the service is one: the first's."""
    first = initialize_metrics(server_port=0, set_global=False)
    assert configure_telemetry(FastAPI(title="housing"), port=0, set_global=False) is first
    assert configure_telemetry(FastAPI(title="prices"), port=0, set_global=False) is first
    with pytest.raises(RuntimeError, match=r"service_name is .* now 'flats'"):
        configure_telemetry(service_name="flats", port=0, set_global=False)
