"""The process of the page, as its worker keeps it: when it is begun, listened to, ended and given up."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from otel_mlops import page_process
from otel_mlops.page_process import PageProcess, why_not
from otel_mlops.sdk.group import MIDNIGHT
from otel_mlops.settings import Settings
from otel_mlops.telemetry import Telemetry
from tests.test_otlp import Collector
from tests.waiting import eventually

PATIENCE_S = 20.0
LOGGER = "otel_mlops.page_process"

READY = "print('ready', flush=True); word = sys.stdin.readline()"
BEATS = "threading.Thread(target=lambda: [print('here', flush=True) or time.sleep(0.02) for _ in iter(int, 1)]).start()"
SERVES = f"{READY}; import os, threading; {BEATS}; sys.stdin.readline(); os._exit(0)"
"""What leads until it is told another word, or its worker dies."""
SILENT = f"{READY}; time.sleep(3600)"
NEVER_READY = "time.sleep(3600)"
ENDS = "sys.exit(3)"


class Worker:
    """A worker as the process of its page knows it; what is run in the place of the page is a few words of Python."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.sees_all = True
        self.serving = threading.Event()
        self.serving.set()
        self.folder = folder
        self.commands: list[list[str]] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.runs = SERVES
        self.group = SimpleNamespace(lead_file=self.lead("lead"))
        self.listener = SimpleNamespace(fileno=self.group.lead_file.__index__)
        settings = Settings(service_name="bench", metrics_endpoint="http://user:secret@collector:4318")
        self.page = PageProcess(
            settings,
            self.group,
            self,
            sees_all=lambda: self.sees_all,
            hand_over=lambda: self.told.append("hand over"),
            take_back=lambda: self.told.append("take back"),
        )
        popen = subprocess.Popen

        def run(command, **options):
            self.commands.append(command)
            code = f"import sys, time; sys.stdin.readline(); {self.runs}"
            process = popen([sys.executable, "-I", "-S", "-c", code], **options)
            self.processes.append(process)
            return process

        monkeypatch.setattr(page_process.subprocess, "Popen", run)

    def lead(self, name: str) -> int:
        """Open a file that stands for the lead."""
        return os.open(self.folder / name, os.O_RDWR | os.O_CREAT)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Rests and beats that nobody has to wait for."""
    monkeypatch.setattr(page_process, "_FIRST_REST_S", 0.01)
    monkeypatch.setattr(page_process, "_BEAT_S", 0.3)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A worker that leads."""
    worker = Worker(tmp_path, monkeypatch)
    yield worker
    worker.page.stop(PATIENCE_S)
    for process in worker.processes:
        assert process.poll() is not None, "left behind"


# --- Whether there is one ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("executable", ["/usr/bin/python3.11", "/opt/pypy/bin/pypy3", sys.executable])
def test_a_python_can_start_another(executable, monkeypatch):
    """Where the interpreter is a Python there is no reason against a process of its own."""
    monkeypatch.setattr(sys, "executable", executable)
    assert why_not() is None


@pytest.mark.parametrize("executable", ["/usr/bin/uwsgi", "", None])
def test_what_is_no_python_starts_none(executable, monkeypatch):
    """A server that embeds Python would start itself again."""
    monkeypatch.setattr(sys, "executable", executable)
    assert "no Python" in why_not()


def test_a_frozen_program_starts_none(monkeypatch):
    """A frozen program would start itself again."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert "frozen" in why_not()


def planned(tmp_path, *, registry=None, **settings):
    """The process that a Telemetry of these settings plans, or None."""
    telemetry = Telemetry(
        Settings(**{"state_dir": tmp_path / "state", "set_global": False, **settings}), registry=registry
    )
    telemetry.shutdown()
    return telemetry._leading._page_process


def test_it_is_the_default(tmp_path):
    """Nobody has to ask for it."""
    assert planned(tmp_path) is not None


@pytest.mark.parametrize(
    "settings",
    [
        {"page_process": False},
        {"start_server": False},
        {"metrics_exporter": ("otlp",)},
        {"metrics_exporter": ()},
        {"disabled": True},
    ],
)
def test_it_is_not_where_nobody_wants_it(settings, tmp_path):
    """There is none where it was declined, and none without a page on a port of its own."""
    assert planned(tmp_path, **settings) is None


@pytest.mark.parametrize(("said", "warnings"), [(True, 1), (None, 0)])
def test_what_keeps_the_page_here_is_told_to_who_asked(said, warnings, tmp_path, caplog):
    """A registry of this process keeps the page in it, which is a warning only to who has wanted it otherwise."""
    with caplog.at_level(logging.WARNING):
        assert planned(tmp_path, registry=CollectorRegistry(), page_process=said) is None
    assert len([each for each in caplog.messages if "no process of its own" in each]) == warnings


# --- What it is given -------------------------------------------------------------------------------------------


def test_settings_come_through_whole(tmp_path):
    """The process has the settings of its worker, but has no process of its own and makes no traces."""
    settings = Settings(
        service_name="housing",
        service_version="1",
        environment="test",
        resource_attributes={"team": "ml", "on": True, "shards": 3},
        metrics_exporter=("prometheus", "otlp"),
        metrics_endpoint="http://collector:4318/v1/metrics",
        traces_endpoint="http://collector:4318/v1/traces",
        sources=("host",),
        state_dir=tmp_path,
        web_config_file=tmp_path / "web.config.yml",
        page_process=True,
    )
    order = json.loads(json.dumps(page_process._plain(settings)))
    assert Settings(**order) == replace(settings, page_process=False, set_global=False, traces_endpoint=None)


def test_the_standard_library_is_found_first(monkeypatch):
    """All else is found in the worker's order; what is no text is left out, as imports do."""
    library = str(Path(os.__file__).parent)
    monkeypatch.setattr(sys, "path", ["", Path("/nowhere"), "/beside", library, "/site", f"{library}/lib-dynload"])
    assert page_process._path() == [library, f"{library}/lib-dynload", "", "/beside", "/site"]


def test_the_command_line_tells_no_secret(worker):
    """It has the service's name, by which one finds it, and nothing of the other settings."""
    worker.page.start()
    eventually(lambda: worker.commands)
    assert worker.commands[0][-2:] == ["otel-mlops-page", "bench"]
    assert "secret" not in "".join(worker.commands[0])


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [("dont_write_bytecode", True, "-B"), ("pycache_prefix", "/cache", "pycache_prefix=/cache")],
)
def test_bytecode_goes_where_the_service_has_it(name, value, option, worker, monkeypatch):
    """Where the service writes none, or elsewhere, so does the process, which reads no environment."""
    for each in ("dont_write_bytecode", "pycache_prefix"):
        monkeypatch.setattr(sys, each, None)
    monkeypatch.setattr(sys, name, value)
    worker.page.start()
    eventually(lambda: worker.commands)
    assert option in worker.commands[0]
    assert "-I" in worker.commands[0]


# --- Its life ---------------------------------------------------------------------------------------------------


def test_it_leads_when_it_is_ready(worker):
    """It is handed over to once it is ready, and no sooner than the port is the worker's."""
    worker.serving.clear()
    worker.page.start()
    eventually(lambda: worker.told)
    assert set(worker.told) == {"take back"}  # the worker does meanwhile what there is to do
    assert worker.commands == []
    worker.serving.set()
    eventually(lambda: worker.told[-1] == "hand over")
    assert worker.page.pid == worker.processes[0].pid


def test_it_does_not_begin_where_numbers_are_private(worker):
    """Numbers for which there is no shared memory stand on the worker's own page alone, so it stays there."""
    worker.sees_all = False
    worker.page.start()
    eventually(lambda: worker.told)
    assert worker.commands == []
    worker.sees_all = True
    eventually(lambda: worker.told[-1] == "hand over")


def test_one_that_is_killed_is_followed_by_another(worker, caplog):
    """The worker takes the page back, says so once, and hands it over again."""
    worker.page.start()
    eventually(lambda: worker.told == ["hand over"])
    worker.processes[0].kill()
    eventually(lambda: worker.told == ["hand over", "take back", "hand over"])
    assert len(worker.processes) == 2
    assert (
        caplog.messages.count("the process of the page has ended; this worker serves the page until another one does")
        == 1
    )


@pytest.mark.stress
@pytest.mark.parametrize(
    ("runs", "told"),
    [(ENDS, "ended before it was ready"), (NEVER_READY, "was not ready in time"), (SILENT, "said nothing for 1 s")],
)
def test_one_that_is_of_no_use_is_ended(runs, told, worker, caplog, monkeypatch):
    """One that ends at once, does not begin or is frozen leaves the page with the worker, who says why, once."""
    monkeypatch.setattr(page_process, "_START_TIMEOUT_S", 0.3)
    worker.runs = runs
    worker.page.start()
    eventually(lambda: len(worker.processes) >= 3)
    assert worker.processes[0].poll() is not None
    assert worker.told[-1] == "take back" or runs == SILENT
    assert [told in each for each in caplog.messages] == [True]


def test_one_that_ends_again_and_again_keeps_no_processor_busy(worker, monkeypatch):
    """The rest between two tries doubles, up to a minute."""
    rests = []

    class Stopping(threading.Event):
        def wait(self, timeout=None):
            rests.append(timeout)
            return len(rests) > 12

    monkeypatch.setattr(page_process, "_FIRST_REST_S", 1.0)
    monkeypatch.setattr(worker.page, "_live", lambda _stopping: None)
    worker.page._keep(Stopping())
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60, 60]


@pytest.mark.parametrize("lost", ["lead", "numbers"])
def test_one_that_cannot_see_the_numbers_any_more_is_ended(lost, worker, caplog, monkeypatch):
    """When the group's folder was removed, or there is no room left in it, the worker takes the page back."""
    monkeypatch.setattr(page_process, "_LAST_WORDS_S", PATIENCE_S)
    ended = worker.folder / "ended"
    last = f"open({str(ended)!r}, 'w').close() if sys.stdin.readline() == 'end\\n' else None"
    worker.runs = f"{READY}; import os, threading; {BEATS}; {last}; os._exit(0)"
    worker.page.start()
    eventually(lambda: worker.told == ["hand over"])
    if lost == "lead":
        worker.group.lead_file = worker.lead("another")
    else:
        worker.sees_all = False
    eventually(lambda: worker.told[1:2] == ["take back"])
    eventually(lambda: any("cannot see the numbers" in each for each in caplog.messages))
    assert worker.processes[0].poll() is not None
    assert ended.exists(), "it was killed in the middle of an answer"


@pytest.mark.stress
def test_one_that_does_not_end_by_itself_is_killed(worker, monkeypatch):
    """One that is told to end, as it cannot see the numbers, and does not, is not waited for."""
    monkeypatch.setattr(page_process, "_LAST_WORDS_S", 0.1)
    worker.runs = f"{READY}; import threading; {BEATS}; time.sleep(3600)"
    worker.page.start()
    eventually(lambda: worker.told == ["hand over"])
    worker.sees_all = False
    eventually(lambda: worker.told[1:2] == ["take back"])
    assert worker.processes[0].poll() == -signal.SIGKILL


def test_what_cannot_be_started_is_said_once(worker, caplog, monkeypatch):
    """Where no process can be had the worker goes on by itself."""

    def refuse(*_, **__):
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(page_process.subprocess, "Popen", refuse)
    worker.page.start()
    eventually(lambda: len(worker.told) > 3)
    assert set(worker.told) == {"take back"}
    assert ["cannot be started: no more processes" in each for each in caplog.messages] == [True]


@pytest.mark.parametrize("runs", [SERVES, NEVER_READY, SILENT])
def test_it_ends_with_the_service(runs, worker, caplog):
    """Whatever it does, it has ended when `stop` returns, nothing is taken back, and nothing is said of it."""
    worker.runs = runs
    worker.page.start()
    eventually(lambda: worker.page.pid)
    if runs != NEVER_READY:
        eventually(lambda: worker.told == ["hand over"])
    worker.page.stop(0.2)
    assert [process.poll() is not None for process in worker.processes] == [True]
    assert "take back" not in worker.told
    assert caplog.messages == []
    assert not [thread for thread in threading.enumerate() if thread.name == "otel-mlops-page-process"]


def test_one_that_does_not_lead_yet_is_not_waited_for(worker):
    """It has nothing to push and nothing to leave, so the end of the service does not wait for its beginning."""
    worker.runs = NEVER_READY
    worker.page.start()
    eventually(lambda: worker.page.pid)
    began = time.monotonic()
    worker.page.stop(PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S / 2


def test_it_ends_when_the_service_does_while_it_is_being_started(worker, monkeypatch):
    """A process that is just being born when `stop` is called is not left behind: it would hold the lead."""
    opened, go_on = threading.Event(), threading.Event()
    plain = worker.page._open

    def slow():
        process = plain()
        opened.set()
        assert go_on.wait(PATIENCE_S)
        return process

    worker.runs = NEVER_READY
    monkeypatch.setattr(worker.page, "_open", slow)
    worker.page.start()
    assert opened.wait(PATIENCE_S)
    worker.page.stop(0.01)
    go_on.set()
    assert worker.processes[0].wait(PATIENCE_S) is not None


def test_it_can_be_begun_again(worker):
    """After `stop` comes another `start`; a second `start` does nothing."""
    worker.page.start()
    worker.page.start()
    eventually(lambda: worker.told == ["hand over"])
    worker.page.stop(PATIENCE_S)
    worker.page.start()
    eventually(lambda: worker.told == ["hand over", "hand over"])
    assert len(worker.processes) == 2


def test_a_forked_child_lets_go_of_it(worker):
    """The ends of its pipes are closed in a forked child, which would keep the process beyond the worker's death."""
    worker.page.start()
    eventually(lambda: worker.told == ["hand over"])
    process = worker.processes[0]
    answer, ask = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):  # whatever fails here is told by the exit code
            ends = process.stdin.fileno(), process.stdout.fileno()
            worker.page.after_fork()
            for end in ends:
                with contextlib.suppress(OSError):  # it is closed, as it should be
                    os.fstat(end)
                    os._exit(2)
            code = 0 if worker.page.pid is None else 3
        os._exit(code)
    os.close(answer)
    os.close(ask)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert process.poll() is None


def test_signals_of_the_group_do_not_reach_it(worker):
    """From its first instruction on it has blocked what Ctrl-C and supervisors send to all processes; others not."""
    worker.runs = (
        textwrap.dedent(
            """
        import signal
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        print('ready' if blocked == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} else blocked, flush=True)
        sys.stdin.readline()
        """
        )
        .strip()
        .replace("\n", "; ")
    )
    worker.page.start()
    eventually(lambda: worker.told)
    assert worker.told[0] == "hand over"


# --- What its worker does before, meanwhile and after -----------------------------------------------------------


@pytest.fixture
def leader(tmp_path, monkeypatch):
    """Make a Telemetry that leads as soon as it is started, and whose process does not come."""
    monkeypatch.setattr(page_process, "_FIRST_REST_S", 3600.0)
    made = []

    def make(**settings):
        chosen = {"port": 0, "state_dir": tmp_path / "state", "set_global": False, "monitoring_interval": 0.1}
        made.append(Telemetry(Settings(**(chosen | settings))))
        return made[-1]

    yield make
    for telemetry in made:
        telemetry.shutdown()


def started(telemetry):
    """The same one, which serves its page."""
    telemetry.start()
    assert telemetry._leading.server.serving.wait(PATIENCE_S)
    return telemetry


def stands_there(telemetry, name):
    """Whether a metric is on the page."""
    return f"\n{name}".encode() in telemetry.page().body


def test_the_sources_are_read_before_it_comes(leader):
    """A worker that leads has everything on its page at once."""
    telemetry = started(leader())
    eventually(lambda: stands_there(telemetry, "system_memory_total_bytes"))


def test_the_day_goes_on_before_it_comes(leader):
    """A worker that leads counts today's predictions from the midnight that the leader before has seen."""
    telemetry = leader()
    with telemetry.model("housing", version="1").prediction() as prediction:
        prediction.values = [0.5] * 7
    daily = telemetry._leading.daily
    telemetry._group.keep(MIDNIGHT, {"day": daily._today(), "totals": [(each, 5.0) for each in daily._totals()]})
    started(telemetry)
    assert re.search(r"\ndaily_predictions_total{.*} 2", telemetry.page().body.decode())


def test_a_service_that_is_over_in_a_moment_has_pushed(leader):
    """The push is left to the process, but where it never came the worker makes the last export itself."""
    collector = Collector()
    try:
        telemetry = started(leader(metrics_exporter="prometheus,otlp", metrics_endpoint=f"{collector.url}/v1/metrics"))
        telemetry.meter.create_counter("jobs").add(3)
        assert telemetry._leading._push is None
        telemetry.shutdown()
        assert "jobs" in collector.metrics()
    finally:
        collector.close()


def test_where_it_does_not_come_the_worker_pushes(leader):
    """As soon as it turns out that there is no process, the worker does everything itself."""
    telemetry = started(leader(metrics_exporter="prometheus,otlp", metrics_endpoint="http://127.0.0.1:9"))
    telemetry._leading._take_back()
    assert telemetry._leading._push is not None
    assert telemetry._leading.server.serving.is_set()


def test_numbers_are_seen_by_others_where_there_is_a_folder(leader, tmp_path):
    """Where the group's folder cannot be made nobody else sees this worker's numbers."""
    assert started(leader())._leading._is_seen()
    (tmp_path / "file").touch()
    assert not started(leader(state_dir=tmp_path / "file" / "state"))._leading._is_seen()


def test_the_page_is_handed_over_last(leader, monkeypatch):
    """It is served, with all that the leader says, until everything else has stopped; its port stays open."""
    telemetry = started(leader())
    leading = telemetry._leading
    stop, seen = leading.sampler.stop, []

    def stop_slowly(timeout_s):
        stop(timeout_s)
        seen.append(leading.server.serving.is_set())
        eventually(lambda: stands_there(telemetry, "otel_mlops_workers"))

    monkeypatch.setattr(leading.sampler, "stop", stop_slowly)
    leading._hand_over()
    assert seen == [True]
    assert leading.is_handed_over
    assert not leading.server.serving.is_set()
    assert not stands_there(telemetry, "otel_mlops_workers")  # that is for the process to say now
    with socket.create_connection(("127.0.0.1", leading.server.port)):
        leading._take_back()
    assert leading.server.serving.wait(PATIENCE_S)
    eventually(lambda: stands_there(telemetry, "otel_mlops_workers"))


def test_two_never_fold_at_a_time(leader):
    """The process is not told to lead while its worker folds the numbers of the dead."""
    leading = started(leader())._leading
    everyone = leading._provider.everyone
    handing = threading.Thread(target=leading._hand_over)
    with everyone._lock:
        handing.start()
        eventually(lambda: leading.is_handed_over)
        handing.join(0.05)
        assert handing.is_alive()
    handing.join(PATIENCE_S)
    assert not handing.is_alive()
