"""Faults of the world: a port that is taken, memory that is full, folders that cannot be written, sudden death."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from otel_mlops.sdk.records import SERIES, STREAM, read_ledger
from tests.servers.service import CLEAN, WAIT_S, free_port, get, listens, running, status, until

WITH_APP = """
    from fastapi import FastAPI
    from otel_mlops import configure_telemetry

    app = FastAPI(title="housing")
    telemetry = configure_telemetry(app, metrics_path="/metrics")

    @app.get("/items/{item_id}")
    def item(item_id: int) -> int:
        return item_id
"""

RECORDS = """
    import json, logging, os, sys
    from urllib.request import urlopen
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s")
    from otel_mlops import configure_telemetry
    from otel_mlops.testing import collect
    {before}
    telemetry = configure_telemetry(service_name="housing", port=0, host="127.0.0.1", max_series=5000)
    assert telemetry._leading.server.serving.wait(10)
    bound = telemetry.meter.create_counter("jobs").bind({{}})
    bound.add(1)
    for number in range({series}):
        telemetry.record_request("GET", f"/{{number}}", 200, 0.1)
    bound.add(1)
    with urlopen(telemetry.url) as response:
        response.read()
    page = collect(telemetry)
    print(json.dumps({{
        "requests": page.value("api_requests_total"),
        "durations": page.value("api_request_duration_seconds_count"),
        "jobs": page.value("jobs_total"),
        "ledger": str(telemetry.meter_provider.ledger.path),
        "uid": os.getuid(),
    }}))
"""
"""A service that records many series, is scraped, and says what it has."""

ENOUGH_FOR_SOME_SEGMENTS = 600
"""So many endpoints take some 200 kB of cells and their descriptions."""


@cache
def may_mount() -> bool:
    """Whether this user can mount in a namespace of its own: root where the container lets it."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


needs_mounts = pytest.mark.skipif("not may_mount()", reason="needs to mount in a namespace of its own: run as root")
needs_root = pytest.mark.skipif("os.getuid() != 0", reason="needs to change the user: run as root")


def record(*, mounts: str = "", before: str = "", series: int = 300, **environment: str) -> tuple[dict[str, Any], str]:
    """Run RECORDS, in mounts of its own where some are given: what it has, and what it logged."""
    script = textwrap.dedent(RECORDS).format(series=series, before=before)
    command = [sys.executable, "-c", script]
    if mounts:
        command = ["unshare", "--mount", "sh", "-ec", f'{mounts}\nexec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False, env=CLEAN | environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def has_everything(said: dict[str, Any], series: int = 300) -> bool:
    """Whether all that was recorded is on the page."""
    return (said["requests"], said["durations"], said["jobs"]) == (series, series, 2)


# --- The port ----------------------------------------------------------------------------------------------


def test_a_service_runs_while_another_program_has_its_port(tmp_path):
    """Requests are answered and counted, one error names the port, and the page is there once that is free."""
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        running(WITH_APP, tmp_path, page_port=other.getsockname()[1]) as service,
    ):
        for number in range(5):
            assert status(f"{service.url}/items/{number}") == 200
        counted = 'api_requests_total{endpoint="/items/{item_id}",method="GET",status_code="200"} 5'
        assert counted in get(f"{service.url}/metrics")[0]
        until(lambda: f"port {service.page_port}" in service.said())
        assert "OTEL_EXPORTER_PROMETHEUS_PORT" in service.said()
        other.close()
        until(lambda: listens(service.page_port))
        assert counted in get(service.page_url)[0]
        assert service.said().count(f"port {service.page_port}") == 1


def test_a_service_that_is_killed_frees_its_port_for_the_next(tmp_path):
    """After SIGKILL the next start listens on the same port at once, and begins at nothing."""
    port = free_port()
    for _ in range(2):
        with running(WITH_APP, tmp_path, page_port=port) as service:
            assert status(f"{service.url}/items/1") == 200
            assert "another program" not in service.said()
            assert 'endpoint="/items/{item_id}",method="GET",status_code="200"} 1' in get(service.page_url)[0]
            service.process.kill()
            service.process.wait()


# --- Shared memory -----------------------------------------------------------------------------------------

FULL = "mount -t tmpfs -o size=64k tmpfs /dev/shm && head -c 64k /dev/zero > /dev/shm/somebody-elses"
GETS_FULL = "mount -t tmpfs -o size=128k tmpfs /dev/shm"
READ_ONLY = """
mount -o remount,bind,ro /
mount -t tmpfs -o ro tmpfs /dev/shm
for folder in /tmp /var/tmp; do
    if mountpoint -q $folder; then mount -o remount,bind,ro $folder; fi
done
cd /
"""
TAKEN = "mount -t tmpfs tmpfs /dev/shm && mkdir -m 700 /dev/shm/otel_mlops-0 && chown 54321 /dev/shm/otel_mlops-0"
OPEN = "mount -t tmpfs tmpfs /dev/shm && mkdir /dev/shm/otel_mlops-0 && chmod 777 /dev/shm/otel_mlops-0"
LINKED = "mount -t tmpfs tmpfs /dev/shm && mkdir -m 700 /dev/shm/trap && ln -s /dev/shm/trap /dev/shm/otel_mlops-0"


@needs_mounts
@pytest.mark.parametrize(
    ("mounts", "why"),
    [
        (FULL, "No space left on device"),
        (GETS_FULL, "No space left on device"),
        (READ_ONLY, ""),
        (TAKEN, "nobody else can open"),
        (OPEN, "nobody else can open"),
        (LINKED, "nobody else can open"),
    ],
    ids=["full", "gets full", "read-only root", "folder of another user", "folder open to all", "folder is a link"],
)
def test_without_shared_memory_numbers_go_on_in_private_memory(mounts, why):
    """Everything that was recorded is on the page, nothing is killed, and one warning says why and what to do."""
    said, log = record(mounts=mounts, series=ENOUGH_FOR_SOME_SEGMENTS)
    assert has_everything(said, ENOUGH_FOR_SOME_SEGMENTS)
    assert (said["ledger"] != "None") is (mounts == GETS_FULL)
    (warning,) = [line for line in log.splitlines() if not line.startswith("INFO")]
    assert "private memory" in warning
    assert "OTEL_MLOPS_STATE_DIR" in warning
    assert why in warning


@needs_mounts
def test_where_there_is_no_shared_memory_a_file_takes_its_place():
    """Without /dev/shm the ledger lies in the folder for temporary files, and nothing need be said."""
    said, log = record(mounts="mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && mknod /dev/urandom c 1 9")
    assert has_everything(said)
    assert Path(said["ledger"]).parent.parent == Path(tempfile.gettempdir()) / f"otel_mlops-{os.getuid()}"
    assert log == ""


def test_a_state_folder_that_cannot_be_made_is_said(tmp_path):
    """OTEL_MLOPS_STATE_DIR beneath a file is a fault like the others: one warning with the path."""
    (tmp_path / "file").write_text("no folder")
    said, log = record(OTEL_MLOPS_STATE_DIR=str(tmp_path / "file" / "state"))
    assert has_everything(said)
    assert log.count("private memory") == 1
    assert str(tmp_path / "file") in log


# What is imported late is imported before: the interpreter itself may not be readable to that user.
AS_NOBODY_KNOWN = """
from otel_mlops.testing import fresh_telemetry
with fresh_telemetry(start_server=True, port=0) as warm:
    warm.start()
    collect(warm)
import encodings.idna, otel_mlops.sources.host, psutil
os.environ.pop("HOME", None)
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
"""


@needs_root
def test_a_user_without_an_entry_in_passwd_is_a_user_like_any_other():
    """A container's made-up user id, with no home either, has a ledger of its own that nobody else can open."""
    folder = Path("/dev/shm/otel_mlops-54321")
    try:
        said, log = record(before=AS_NOBODY_KNOWN)
        assert has_everything(said)
        assert said["uid"] == 54321
        assert Path(said["ledger"]).parent.parent == folder
        assert folder.stat().st_mode & 0o777 == 0o700
        assert log == ""
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- Sudden death ------------------------------------------------------------------------------------------

KILLED = """
    import sys, signal
    from otel_mlops.configure import configure
    from otel_mlops.settings import Settings
    telemetry = configure(Settings.from_env(service_name="housing"))  # not started, so it does not lead
    for number in range(1000):
        telemetry.record_error(f"Error{number % 10}", "/predict")
    telemetry.record_prediction(duration_ms=250, model_version="v1", prediction_value=-2.5)
    print(telemetry.meter_provider.ledger.path, flush=True)
    signal.pause()
"""


def one_group(folder: Path) -> dict[str, str]:
    """The variables by which processes are workers of one group in a folder."""
    return {"OTEL_MLOPS_STATE_DIR": str(folder), "OTEL_MLOPS_GROUP": "one"}


@contextmanager
def recording(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has recorded what KILLED says, and its ledger."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED)],
        stdout=subprocess.PIPE,
        text=True,
        env=CLEAN | one_group(folder),
    )
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def counts(ledger: Path) -> dict[str, list[list[float]]]:
    """The cells of a ledger's series by the names of their metrics."""
    records = read_ledger(ledger)
    names = {each.description["number"]: each.description["name"] for each in records if each.kind == STREAM}
    found: dict[str, list[list[float]]] = {}
    for each in records:
        if each.kind == SERIES:
            found.setdefault(names[each.description[0]], []).append(each.cells)
    return found


def test_what_was_recorded_survives_the_worst(tmp_path):
    """After SIGKILL another process reads every count from the ledger, and the next start clears it."""
    with recording(tmp_path) as (process, ledger):
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = counts(ledger)
        assert sorted(found["errors"]) == [[100.0]] * 10
        assert found["predictions"] == [[1.0]]
        assert (sum(found["prediction.duration"][0][:-1]), found["prediction.duration"][0][-1]) == (1, 0.25)
        assert (sum(found["prediction.values"][0][:-1]), found["prediction.values"][0][-1]) == (1, -2.5)
        said, _ = record(**one_group(tmp_path))
        assert has_everything(said)
        assert not ledger.exists()
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_ledger_of_one_that_lives_is_left_alone(tmp_path):
    """A start beside a living worker clears nothing of it."""
    with recording(tmp_path) as (process, ledger):
        record(**one_group(tmp_path))
        assert process.poll() is None
        assert sorted(counts(ledger)["errors"]) == [[100.0]] * 10


def test_a_file_that_died_while_it_was_made_is_cleared_by_who_comes_next(tmp_path):
    """A worker killed before its ledger had a name leaves a file that the next one removes as it comes in."""
    with recording(tmp_path) as (_, ledger):
        half_made = ledger.with_name("7-0123.new")
        half_made.write_bytes(bytes(100))
        record(**one_group(tmp_path))
        assert ledger.exists()
        assert not half_made.exists()
