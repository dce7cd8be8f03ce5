"""The parts of the demo by themselves: readings, lines, questions, programs, Prometheus' configuration."""

from __future__ import annotations

import io
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
import yaml

from otel_mlops import metrics as rows
from otel_mlops.demo import processes, view
from otel_mlops.demo.options import DemoError, Options, choose_ports
from otel_mlops.demo.processes import Program, write_config
from otel_mlops.demo.readings import Reading, Window
from otel_mlops.demo.screen import Lines, Table, open_screen
from otel_mlops.demo.show import Ending
from otel_mlops.demo.traffic import Question, Traffic, ask
from otel_mlops.render import CHECKOUT
from tests.waiting import eventually

WAIT_S = 20.0


def is_gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its exit code yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def page(requests: int, *, failed: int = 0, fast: int = 0, slow: int = 0) -> str:
    """A page with so many requests, of which some failed, and so many that were fast and slow."""
    at = 'method="POST",endpoint="/predict"'
    return textwrap.dedent(f"""\
        # TYPE api_requests_total counter
        api_requests_total{{{at},status_code="200"}} {requests - failed}
        api_requests_total{{{at},status_code="500"}} {failed}
        # TYPE api_request_duration_seconds histogram
        api_request_duration_seconds_bucket{{{at},le="0.1"}} {fast}
        api_request_duration_seconds_bucket{{{at},le="0.5"}} {fast + slow}
        api_request_duration_seconds_bucket{{{at},le="+Inf"}} {fast + slow}
        # TYPE errors_total counter
        errors_total{{error_type="ValueError",endpoint="/predict"}} {failed}
        # TYPE predictions_total counter
        predictions_total{{model_name="tumour",model_version="v1",prediction_type="single"}} {requests}
        # TYPE model_status gauge
        model_status{{model_name="tumour",model_version="v1",model_status="ready"}} 1
        model_status{{model_name="tumour",model_version="v1",model_status="error"}} 0
        # TYPE system_cpu_usage_percent gauge
        system_cpu_usage_percent 41.7
        # TYPE system_memory_usage_bytes gauge
        system_memory_usage_bytes 3221225472
        # TYPE system_memory_total_bytes gauge
        system_memory_total_bytes 8589934592
        """)


@pytest.fixture
def window() -> Window:
    """Ten seconds in which 100 requests came, 10 failed, 80 were fast and 20 slow."""
    before = Reading(page(50, failed=5, fast=50), 100.0)
    return Window(before, Reading(page(150, failed=15, fast=130, slow=20), 110.0))


# --- Readings ---------------------------------------------------------------------------------------------


def test_a_rate_is_the_growth_per_second(window: Window):
    """A rate goes over the series that carry the labels, and is that of the time between the readings."""
    assert window.rate("api_requests_total") == 10.0
    assert window.rate("api_requests_total", status_code="500") == 1.0
    assert window.rate("api_requests_total", status_code="404") == 0.0


def test_a_counter_that_begins_again_has_no_negative_rate():
    """After a restart a counter is lower than before, which is no growth."""
    assert Window(Reading(page(50), 0.0), Reading(page(3), 1.0)).rate("api_requests_total") == 0.0


@pytest.mark.parametrize(("share", "seconds"), [(0.4, 0.05), (0.8, 0.1), (0.9, 0.3), (1.0, 0.5)])
def test_a_quantile_is_linear_within_its_bucket(window: Window, share: float, seconds: float):
    """Of 80 requests up to 0.1 s and 20 up to 0.5 s, the quantiles are those that Prometheus gives."""
    assert window.quantile(share, rows.API_REQUEST_DURATION) == pytest.approx(seconds)


def test_a_quantile_past_the_last_bound_is_the_last_bound():
    """What took longer than every bound is told as the highest of them, as by Prometheus."""
    before = Reading(page(0), 0.0)
    after = Reading(page(0).replace('le="+Inf"} 0', 'le="+Inf"} 7'), 1.0)
    assert Window(before, after).quantile(0.5, rows.API_REQUEST_DURATION) == 0.5


def test_nothing_new_has_no_quantile(window: Window):
    """A window without new values has no quantile, and a metric that is not there has none either."""
    assert Window(window.now, window.now).quantile(0.5, rows.API_REQUEST_DURATION) is None
    assert window.quantile(0.5, rows.PAGE_DURATION) is None


# --- What is shown ----------------------------------------------------------------------------------------


def test_the_table_says_what_the_page_says(window: Window):
    """Rates, totals, shares, quantiles, predictions, models and the machine stand in the table."""
    lines = {text.strip().partition("  ")[0]: " ".join(text.split()) for text in view.table(window, 100)}
    assert lines["all"] == "all 10.0/s 150 0.0 % 10.0 % 62.5 ms 400.0 ms"
    assert lines["POST /predict"] == "POST /predict 10.0/s 150 0.0 % 10.0 % 62.5 ms 400.0 ms"
    assert lines["tumour v1 single"] == "tumour v1 single 10.0/s 150 0 - -"
    assert lines["models"] == "models v1 ready"
    assert lines["machine"] == "machine CPU 42 %, memory 3.0 of 8.0 GiB"
    assert lines["GPU"] == "GPU no GPU"


def test_a_gpu_stands_in_the_table():
    """Where the page has a GPU, its name, utilisation and memory are shown."""
    gpu = 'gpu_id="0",gpu_name="H100"'
    text = (
        f"gpu_utilization_percent{{{gpu}}} 87\n"
        f"gpu_memory_used_bytes{{{gpu}}} 10737418240\ngpu_memory_total_bytes{{{gpu}}} 85899345920\n"
    )
    reading = Reading(text, 0.0)
    assert "  GPU          H100 87 %, memory 10.0 of 80.0 GiB" in list(view.table(Window(reading, reading), 100))


def test_the_line_says_it_in_short(window: Window):
    """The line for a log has rate, failures, quantiles, predictions, machine and models."""
    assert view.line(window) == (
        "10.0 requests/s, 10.0 % failed, p50 62.5 ms, p95 400.0 ms | predictions/s 10.0 single, 0.0 batch | "
        "CPU 42 %, memory 3.0 of 8.0 GiB | v1 ready"
    )


def test_an_empty_page_is_shown_as_well():
    """Before the first request there is a table, a line and a summary all the same."""
    empty = Reading("", 0.0)
    assert "- failed" in view.line(Window(empty, empty))
    assert any("no GPU" in text for text in view.table(Window(empty, empty), 100))
    assert "requests" in "\n".join(view.summary(empty, Counter(), 0))


def test_the_summary_sets_the_page_beside_the_clients(window: Window):
    """Each status stands with what the page has counted and what the clients have seen."""
    lines = [text.split() for text in view.summary(window.now, Counter({200: 135, 500: 14}), 1)]
    assert ["requests", "150", "149"] in lines
    assert ["answered", "with", "500", "15", "14"] in lines
    assert ["without", "an", "answer", "1"] in lines
    assert ["errors", "15", "ValueError"] in lines


@pytest.mark.parametrize(("columns", "height"), [(40, 10), (120, 60)])
def test_the_table_fits_the_terminal(window: Window, monkeypatch: pytest.MonkeyPatch, columns: int, height: int):
    """No line is longer and the table no higher than the terminal, and it is drawn over itself."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(height))
    out = io.StringIO()
    table = Table(out)
    table.show("0:01", ["  service http://127.0.0.1:8000/docs"], window)
    first = out.getvalue()
    drawn = first.count("\n")
    plain = [text.split("\x1b[K")[0].split("\x1b[1m")[-1].split("\x1b[0m")[0] for text in first.split("\n")]
    assert 5 < drawn < height
    assert max(len(text.removeprefix("\x1b[?25l")) for text in plain) < columns
    table.show("0:02", ["  service http://127.0.0.1:8000/docs"], window)
    assert out.getvalue().removeprefix(first).startswith(f"\x1b[{drawn}F")
    table.end()
    assert out.getvalue().endswith("\x1b[?25h\n")


def test_a_log_repeats_no_fact(window: Window):
    """Lines for a log carry no control characters, and the facts stand there once, until they change."""
    out = io.StringIO()
    lines = Lines(out, 10.0)
    for fact in ("  page here", "  page here", "  page there"):
        lines.show("0:01", [fact], window)
    assert out.getvalue().count("page here") == out.getvalue().count("page there") == 1
    assert "\x1b" not in out.getvalue()


def test_only_a_terminal_gets_a_table():
    """A pipe, a log and a dumb terminal get lines."""
    terminal = SimpleNamespace(isatty=lambda: True)
    assert isinstance(open_screen(terminal, {"TERM": "xterm"}, None), Table)
    assert isinstance(open_screen(terminal, {"TERM": "dumb"}, None), Lines)
    assert isinstance(open_screen(io.StringIO(), {"TERM": "xterm"}, None), Lines)


# --- Traffic ----------------------------------------------------------------------------------------------


def kind(question: Question) -> str:
    """What a question is, by its path and whether it is a good one."""
    if question.path.startswith("/samples/"):
        number = int(question.path.split("/")[2])
        return "stored" if number <= 569 else "incomplete" if number == 570 else "no such sample"
    if question.path == "/predict":
        return "bad" if question.body["radius"] < 0 else "single"
    if question.path == "/predict/batch":
        return "bad" if len(question.body[0]) < 6 else "batch"
    return "no such route"


def test_every_kind_of_question_is_asked():
    """Good questions are the most, and each kind of bad one is among them."""
    chance = random.Random(7)
    asked = Counter(kind(ask(chance, drift=1.0)) for _ in range(4000))
    assert set(asked) == {"single", "batch", "stored", "incomplete", "no such sample", "bad", "no such route"}
    assert 0.85 < (asked["single"] + asked["batch"] + asked["stored"]) / asked.total() < 0.95
    assert asked["incomplete"] / asked.total() < 0.05


def test_questions_without_an_answer_are_counted():
    """Where nobody listens the clients go on, count what was not answered, and end when told to."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        traffic = Traffic(f"http://127.0.0.1:{nobody.getsockname()[1]}", rate=400.0, seed=1)
        traffic.start()
        eventually(lambda: traffic.unanswered >= 3)
        traffic.stop(WAIT_S)
    unanswered = traffic.unanswered
    assert not any(thread.is_alive() for thread in traffic._threads)
    assert traffic.unanswered == unanswered
    assert not traffic.answers


# --- Programs ---------------------------------------------------------------------------------------------


def test_a_program_is_stopped_with_all_that_it_started():
    """After the stop neither the program nor its child lives."""
    program = Program(["/bin/sh", "-c", "sleep 600 & echo $!; wait"], os.environ)
    eventually(lambda: program.said(1))
    child = int(program.said(1)[0])
    assert not program.has_ended()
    program.stop()
    assert program.has_ended()
    eventually(lambda: is_gone(child))


def test_a_program_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch):
    """A program that ignores SIGTERM is killed after the time that it is given."""
    monkeypatch.setattr(processes, "_STOP_TIMEOUT_S", 0.2)
    program = Program(["/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"], os.environ)
    eventually(lambda: program.said(1))
    program.stop()
    assert program.has_ended()


def test_a_program_that_ended_is_known_with_its_last_words():
    """What a program wrote is kept, bounded, after it has ended."""
    program = Program(["/bin/sh", "-c", "seq 1000; echo no luck >&2; exit 3"], os.environ)
    eventually(program.has_ended)
    assert program.said(2) == ["1000", "no luck"]
    assert len(program.said(10_000)) == 200
    program.stop()


def test_what_a_program_writes_cannot_steer_the_terminal():
    """Control characters in its lines are shown as question marks."""
    program = Program([sys.executable, "-c", r"print('\x1b[2J\x07wiped')"], os.environ)
    try:
        eventually(lambda: program.said(1))
        assert program.said(1) == ["?[2J?wiped"]
    finally:
        program.stop()


@pytest.mark.stress
def test_a_program_ends_when_its_owner_is_killed():
    """A process that started a program and is killed by SIGKILL leaves nothing behind."""
    code = """
        import os, time
        from otel_mlops.demo.processes import Program
        program = Program(["sleep", "600"], os.environ)
        print(program.pid, flush=True)
        time.sleep(600)
    """
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert owner.stdout is not None
    with owner.stdout:
        pid = int(owner.stdout.readline())
        assert not is_gone(pid)
        owner.kill()
        owner.wait()
    eventually(lambda: is_gone(pid))
    eventually(lambda: not [each for each in psutil.process_iter() if _group(each.pid) == pid])


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait(number: signal.Signals):
    """A signal ends what is waited for, and the handlers of before are back afterwards."""
    before = signal.getsignal(number)
    with Ending() as ending:
        assert not ending.wait(lambda: signal.raise_signal(number), WAIT_S)
        assert ending.asked
    assert signal.getsignal(number) is before


# --- Ports ------------------------------------------------------------------------------------------------


def test_zero_takes_ports_that_differ():
    """Ports of 0 become ports that are free, each another."""
    chosen = choose_ports(Options(port=0, page_port=0, prometheus_port=0))
    assert len({chosen.port, chosen.page_port, 0}) == 3


def test_two_things_cannot_share_a_port():
    """The same port given twice is told with the option to change."""
    free = choose_ports(Options(port=0, page_port=0)).port
    with pytest.raises(DemoError, match=f"port {free}, which the page needs, is wanted twice.*--page-port"):
        choose_ports(Options(port=free, page_port=free))


def test_an_address_of_another_machine_is_told():
    """An address that is not this machine's is told with the option to change."""
    with pytest.raises(DemoError, match=r"192\.0\.2\.1.*--host or DEMO_HOST"):
        choose_ports(Options(host="192.0.2.1", port=0, page_port=0))


@pytest.mark.parametrize("host", ["é..x", "\udcff", ""])
def test_what_can_be_no_name_is_told(host: str):
    """A host that cannot be looked up at all is told with the option to change."""
    with pytest.raises(DemoError, match=r"nothing can listen on .*--host or DEMO_HOST"):
        choose_ports(Options(host=host, port=0, page_port=0))


# --- Prometheus' answers ----------------------------------------------------------------------------------

FIRING = [
    {"state": state, "labels": {"alertname": name, "severity": severity}}
    for state, name, severity in (
        ("firing", "Slow", "warning"), ("pending", "Later", "warning"), ("firing", "Watchdog", "none"),
    )
]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "alerts", "value"),
    [
        ({"data": {"alerts": FIRING, "result": [{"value": [0, "7"]}]}}, ["Slow"], 7.0),
        ({"data": {"alerts": [], "result": []}}, [], None),
        ({}, None, None),
        ([], None, None),
        ({"data": {"alerts": [{}], "result": [{"value": "?"}]}}, None, None),
        ({"data": None}, None, None),
    ],
)
def test_an_answer_that_is_not_prometheus_own_is_none(answer: object, alerts: list[str] | None, value: float | None):
    """Of what answers at its port the demo takes what it understands, and never fails."""
    prometheus = object.__new__(processes.Prometheus)
    prometheus.url = "http://prometheus"
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, json=answer))) as client:
        assert prometheus.alerts(client) == alerts
        assert prometheus.query(client, "up") == value


# --- Prometheus' configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize("alertmanager", [None, "http://127.0.0.1:19093"])
def test_the_configuration_has_the_page_and_the_shipped_rules(tmp_path: Path, alertmanager: str | None):
    """The page is read every 2 s, the rules are those that are shipped, and Alertmanager is told if there is one."""
    written = yaml.safe_load(write_config(tmp_path, "127.0.0.1:18001", alertmanager).read_text())
    assert written["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:18001"]}]
    assert set(written["global"].values()) == {"2s"}
    told = written.get("alerting") and written["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert told == (alertmanager and ["127.0.0.1:19093"])
    shipped = CHECKOUT / "collector-config" / "rules.yaml"
    assert yaml.safe_load((tmp_path / "rules.yaml").read_text()) == yaml.safe_load(shipped.read_text())
