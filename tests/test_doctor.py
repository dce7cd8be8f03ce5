"""What `otel-mlops doctor` finds, on a machine that is well and on ones that are not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from ctypes.util import find_library
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from otel_mlops import doctor
from otel_mlops.doctor import Finding, Report, examine, installed, machine, network, sources
from otel_mlops.doctor.patience import within
from otel_mlops.sdk.group import group_of
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.records import STREAM
from otel_mlops.settings import SETTINGS, Settings
from otel_mlops.testing import fresh_telemetry
from tests.nvml.driver import HOPPER, TURING, FakeDriver

pytestmark = pytest.mark.skipif(os.name != "posix", reason="run it on Linux or macOS")


@pytest.fixture
def port() -> int:
    """A port that is free."""
    (free,) = network.take_free_ports("127.0.0.1", 1)
    return free


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.fixture
def environ(tmp_path: Path, port: int) -> dict[str, str]:
    """An environment in which everything needed works."""
    return {
        "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
        "OTEL_MLOPS_STATE_DIR": str(tmp_path / "state"),
    }


def found(report: Report, subject: str, level: str) -> list[str]:
    """What a report says of a subject at a level."""
    return [finding.text for finding in report.findings if (finding.subject, finding.level) == (subject, level)]


def said(findings: Iterator[tuple[str, str]]) -> dict[str, str]:
    """What a check says, by level."""
    return dict(findings)


# --- The whole --------------------------------------------------------------------------------------------


def test_a_machine_that_is_well_has_no_fault(environ: dict[str, str], port: int):
    """Where everything needed works there is no fault, and each check has said something."""
    report = examine(environ)
    assert not report.faults, [finding for finding in report.findings if finding.level == "fault"]
    assert {finding.subject for finding in report.findings} == {"settings", *doctor.CHECKS}
    assert found(report, "page", "ok") == [f"127.0.0.1 port {port} is free"]
    assert found(report, "shared memory", "ok")[0].startswith(environ["OTEL_MLOPS_STATE_DIR"])


def test_an_examination_leaves_nothing(environ: dict[str, str], tmp_path: Path):
    """The folder that was made to try a ledger in is gone afterwards, and so are those above it."""
    environ["OTEL_MLOPS_STATE_DIR"] = str(tmp_path / "one" / "two")
    assert not examine(environ).faults
    assert list(tmp_path.iterdir()) == []


def test_an_examination_leaves_what_was_there(environ: dict[str, str]):
    """A folder of ledgers that a service has made stays."""
    state = Path(environ["OTEL_MLOPS_STATE_DIR"])
    with fresh_telemetry(state_dir=state) as telemetry:
        telemetry.record_error("ValueError", "/")
        before = sorted(state.rglob("*"))
        assert not examine(environ).faults
        assert sorted(state.rglob("*")) == before


def test_a_machine_that_is_not_well_has_faults(environ: dict[str, str], tmp_path: Path, taken: int):
    """A port that is taken and a folder that cannot be made are faults that name the way out."""
    (tmp_path / "file").touch()
    environ["OTEL_MLOPS_STATE_DIR"] = str(tmp_path / "file" / "state")
    environ["OTEL_EXPORTER_PROMETHEUS_PORT"] = str(taken)
    report = examine(environ)
    (page,), (memory,) = found(report, "page", "fault"), found(report, "shared memory", "fault")
    assert f"process {os.getpid()}" in page
    assert "OTEL_EXPORTER_PROMETHEUS_PORT" in page
    assert str(tmp_path / "file") in memory
    assert report.faults == 2
    assert list(report.lines())[-1] == "To be put right: shared memory, page."


def test_the_text_has_a_line_for_each_finding(environ: dict[str, str]):
    """The text is aligned, has each finding on one line, and each setting with its origin."""
    report = examine(environ)
    lines = list(report.lines())
    for level, subject, text in report.findings:
        assert any(line.split()[0] == level and subject in line and line.endswith(text) for line in lines if line)
    starts = {line.index(finding.text) for finding in report.findings for line in lines if line.endswith(finding.text)}
    assert len(starts) == 1
    for row in SETTINGS:
        assert any(line.startswith(f"  {row.field} ") for line in lines)


def test_the_json_says_the_same(environ: dict[str, str]):
    """The JSON has every finding and setting of the text."""
    report = examine(environ)
    data = json.loads(json.dumps(report.as_json()))
    assert data["healthy"] is True
    assert [Finding(**finding) for finding in data["findings"]] == list(report.findings)
    assert [setting["name"] for setting in data["settings"]] == [row.field for row in SETTINGS]


def test_a_check_that_fails_is_a_fault(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    """A check that raises is told as a fault, and the others go on."""

    def break_down(_: Settings) -> Iterator[tuple[str, str]]:
        raise OSError("broken")
        yield

    monkeypatch.setattr(doctor, "CHECKS", {"odd": break_down, "Python": installed.check_python})
    report = examine(environ)
    assert found(report, "odd", "fault") == ["cannot be examined: OSError: broken"]
    assert found(report, "Python", "ok")


def test_a_wrong_setting_is_a_fault(environ: dict[str, str]):
    """A setting with which no service starts is told with its variable, and the rest is examined all the same."""
    report = examine(environ | {"OTEL_MLOPS_MAX_SERIES": "many"})
    (fault,) = found(report, "settings", "fault")
    assert "OTEL_MLOPS_MAX_SERIES" in fault
    assert found(report, "Python", "ok")


def test_each_setting_says_where_it_comes_from(environ: dict[str, str]):
    """A setting is the default's, or that of the variable which gave it."""
    report = examine(environ | {"OTEL_RESOURCE_ATTRIBUTES": "service.version=7", "OTEL_MLOPS_MAX_SERIES": "9"})
    settings = {name: (value, origin) for name, value, origin in report.settings}
    assert settings["max_series"] == ("9", "OTEL_MLOPS_MAX_SERIES")
    assert settings["service_version"] == ("7", "OTEL_RESOURCE_ATTRIBUTES, service.version")
    assert settings["monitoring_interval"] == ("5.0", "default")


def test_no_secret_is_told(environ: dict[str, str], port: int):
    """Of a URL with credentials only the host is told, in text and in JSON."""
    environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://me:s3cret@127.0.0.1:{port}/v1?token=s3cret"
    environ["OTEL_METRICS_EXPORTER"] = "prometheus,otlp"
    report = examine(environ)
    told = "\n".join(report.lines()) + json.dumps(report.as_json())
    assert f"http://127.0.0.1:{port}" in told
    assert "s3cret" not in told


# --- Python and packages ----------------------------------------------------------------------------------


def test_a_python_that_is_not_tested_is_a_note(monkeypatch: pytest.MonkeyPatch):
    """A version of Python that the package does not name is told."""
    monkeypatch.setattr(installed.sys, "version_info", SimpleNamespace(major=3, minor=99))
    assert said(installed.check_python(Settings()))["note"] == "3.99 is not among the versions that are tested"


def test_a_python_without_gil_says_what_it_costs(monkeypatch: pytest.MonkeyPatch):
    """Where records are not atomic by themselves, the lock that makes them so is told."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert "takes a lock" in said(installed.check_python(Settings()))["ok"]


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("1.45.2", "<1.46,>=1.45", True),
        ("1.45", "<1.46,>=1.45", True),
        ("1.46.0", "<1.46,>=1.45", False),
        ("1.46.0", "<1.46.1", True),
        ("1.46", "<1.46.0", False),
        ("1.44.9", "<1.46,>=1.45", False),
        ("0.66b2", "<0.67,>=0.66b2", True),
        ("0.66b1", "<0.67,>=0.66b2", False),
        ("0.66", "<0.67,>=0.66b2", True),
        ("0.66rc1", ">=0.66b2", True),
        ("10.0", ">=9", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_as_pip_does(version: str, bounds: str, fits: bool):
    """Releases, and what comes before a release, lie within bounds or do not."""
    from packaging.specifiers import SpecifierSet

    assert installed._fits(version, bounds) is fits
    assert SpecifierSet(bounds).contains(version, prereleases=True) is fits


def test_an_untested_opentelemetry_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    """A version out of the tested range, and a package that is missing, are told with what to install."""
    versions = {"opentelemetry-sdk": "1.99.0", "opentelemetry-exporter-prometheus": None}
    real = metadata.version

    def version(name: str) -> str:
        wanted = versions.get(name, real(name))
        if wanted is None:
            raise metadata.PackageNotFoundError(name)
        return wanted

    monkeypatch.setattr(metadata, "version", version)
    faults = [text for level, text in installed.check_opentelemetry(Settings()) if level == "fault"]
    assert [text.split()[0] for text in faults] == ["opentelemetry-exporter-prometheus", "opentelemetry-sdk"]
    assert "pip install 'opentelemetry-sdk" in faults[1]


def test_fastapi_without_telemetry_of_its_own_is_told(monkeypatch: pytest.MonkeyPatch):
    """An older FastAPI gets its conventions from OpenTelemetry's package, and a hint."""
    import fastapi

    monkeypatch.setattr("otel_mlops.web.conventions.choose", lambda *_: "opentelemetry")
    told = said(installed.check_fastapi(Settings()))
    assert fastapi.__version__ in told["ok"]
    assert "opentelemetry-instrumentation-fastapi" in told["ok"]
    assert "0.142" in told["note"]


@pytest.mark.parametrize(("exporters", "level"), [(("prometheus",), "note"), (("otlp",), "fault")])
def test_a_missing_extra_is_a_fault_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, exporters: tuple[str, ...], level: str
):
    """Without the extra otlp all is well, unless the settings want to push."""
    monkeypatch.setattr(installed, "_version", lambda *_: None)
    told = list(installed.check_extras(Settings(metrics_exporter=exporters)))
    assert told[0] == (level, "otlp is not installed: pip install 'otel-mlops[otlp]' to push")
    assert told[1][0] == "note"
    assert "numpy" in told[1][1]


def test_a_foreign_provider_is_told(monkeypatch: pytest.MonkeyPatch):
    """A global provider that somebody else has set is named."""
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider

    other = MeterProvider(shutdown_on_exit=False)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: other)
    assert "opentelemetry.sdk.metrics" in said(installed.check_provider(Settings()))["note"]


# --- The machine ------------------------------------------------------------------------------------------


def test_a_full_folder_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where a ledger's space cannot be reserved, that is told, and nothing is left."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    told = said(machine.check_memory(Settings(state_dir=tmp_path / "state")))
    assert "No space left on device" in told["fault"]
    assert list(tmp_path.iterdir()) == []


def test_little_shared_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A few megabytes are enough to start and too little to grow."""
    space = SimpleNamespace(total=2e6, free=1e6)
    monkeypatch.setattr(shutil, "disk_usage", lambda *_: space)
    told = said(machine.check_memory(Settings(state_dir=tmp_path)))
    assert "1 MB of 2 MB are free" in told["ok"]
    assert "--shm-size" in told["note"]


@pytest.mark.parametrize(
    ("uid", "files", "removed"),
    [
        (1000, {}, False),
        (1000, {"run/systemd/system/unit": ""}, True),
        (999, {"run/systemd/system/unit": ""}, False),
        (1000, {"run/systemd/system/unit": "", "etc/systemd/logind.conf": "[Login]\n#RemoveIPC=no\n"}, True),
        (1000, {"run/systemd/system/unit": "", "etc/systemd/logind.conf": "[Login]\nRemoveIPC=no\n"}, False),
        (
            1000,
            {
                "run/systemd/system/unit": "",
                "etc/systemd/logind.conf": "RemoveIPC=yes\n",
                "usr/lib/systemd/logind.conf.d/10-ours.conf": "RemoveIPC = off\n",
            },
            False,
        ),
    ],
)
def test_whether_a_logout_removes_shared_memory(tmp_path: Path, uid: int, files: Mapping[str, str], removed: bool):
    """systemd-logind removes it of people, not of system users, unless it is told not to."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.removes_ipc(uid, tmp_path) is removed


def test_a_user_who_lingers_keeps_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A user who lingers is never logged out."""
    import pwd

    monkeypatch.setattr(pwd, "getpwuid", lambda *_: SimpleNamespace(pw_name="ann"))
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert machine.removes_ipc(1000, tmp_path)
    (tmp_path / "var/lib/systemd/linger").mkdir(parents=True)
    (tmp_path / "var/lib/systemd/linger/ann").touch()
    assert not machine.removes_ipc(1000, tmp_path)


def test_the_removal_is_told(monkeypatch: pytest.MonkeyPatch):
    """Whose shared memory a logout removes is told how to keep it."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("run it where there is a /dev/shm that can be written")
    monkeypatch.setattr(machine, "removes_ipc", lambda *_: True)
    assert "RemoveIPC=no" in said(machine.check_memory(Settings()))["note"]


def test_the_machine_is_read():
    """CPU, memory and the disks are read here, and what is not is told with the reason."""
    told = list(sources.check_host(Settings()))
    assert told[0][0] == "ok"
    assert told[0][1].startswith("CPU, load, memory, swap, disks")
    assert "the disks are /" in told[0][1]
    assert all(level == "note" and text.startswith("not to be read here: ") for level, text in told[1:])


def test_the_processes_are_read():
    """What is read of a worker is read of this process."""
    told = said(sources.check_process(Settings()))
    assert told["ok"].startswith("CPU, resident memory")


def test_the_container_is_told():
    """Without a control group of version 2 it is said why there is nothing, and that is no fault."""
    told = list(sources.check_container(Settings()))
    assert told
    assert all(level in ("ok", "note") for level, _ in told)


def test_what_can_be_read_of_gpus(nvml: FakeDriver):
    """Each GPU has a line for what can be read of it, and one for each reason why the rest cannot."""
    nvml.gpu(0).fail("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_NO_PERMISSION)
    told = list(sources.check_gpu(Settings()))
    assert [text.partition(":")[0] for level, text in told if level == "ok"] == [f"0 ({HOPPER})", f"1 ({TURING})"]
    notes = {text.partition(": ")[0]: text.partition(": ")[2].split(", ") for level, text in told if level == "note"}
    assert notes["0, no permission"] == ["gpu.power.usage"]
    assert "activity" in notes["1, not supported"]
    assert nvml.initialized == 0


def test_a_lost_gpu_is_a_fault(nvml: FakeDriver):
    """A GPU that does not answer is to be put right; the other is told as ever."""
    nvml.gpu(1).lose()
    levels = {
        text.partition(" ")[0].rstrip(","): level for level, text in sources.check_gpu(Settings()) if level != "note"
    }
    assert levels == {"0": "ok", "1": "fault"}


def test_a_gpu_that_is_not_this_process_s_is_no_good_news(nvml: FakeDriver):
    """Of a GPU that may not be used nothing can be read, which is a note and not ok; the other is told as ever."""
    nvml.gpu(0).fail("nvmlDeviceGetUUID", pynvml.NVML_ERROR_NO_PERMISSION)
    told = list(sources.check_gpu(Settings()))
    assert [text.partition(" ")[0] for level, text in told if level == "ok"] == ["1"]
    assert ("note", "0, no permission: gpu") in told


def test_which_gpus_are_shown_is_told(nvml: FakeDriver, monkeypatch: pytest.MonkeyPatch):
    """Where a variable says which GPUs are shown, what can be read is not all on the page."""
    hint = ("note", "of them CUDA_VISIBLE_DEVICES=1 says which are shown: OTEL_MLOPS_GPUS=all shows all")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert hint in list(sources.check_gpu(Settings()))
    assert hint not in list(sources.check_gpu(Settings(gpus="all")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert not any("CUDA" in text for _, text in sources.check_gpu(Settings()))


def test_a_source_that_is_switched_off_is_told(nvml: FakeDriver):
    """GPUs that can be read and are not among the sources are a note."""
    assert ("note", "they are not read: nvidia is not among the sources") in list(
        sources.check_gpu(Settings(sources=("host",)))
    )


def test_a_driver_that_cannot_be_opened_is_told(nvml: FakeDriver):
    """What the driver says when it is opened is a note, as is a driver without a GPU."""
    nvml.fail("nvmlInitWithFlags", pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    ((level, text),) = sources.check_gpu(Settings())
    assert level == "note"
    assert text.startswith("none can be read: the NVIDIA driver says ")
    nvml.clear_faults()
    nvml.set_gpus(0)
    assert list(sources.check_gpu(Settings())) == [("note", "none; the NVIDIA driver is there")]


@pytest.mark.skipif(
    find_library("nvidia-ml") is not None, reason="there is an NVIDIA driver here: run it on a machine without one"
)
def test_no_driver_is_told():
    """Where there is no driver one line says so, and it is no fault."""
    # In a process of its own: once the pretended one is in this one's memory, it is found by its name.
    code = "from otel_mlops.doctor import sources, Settings; print([*sources.check_gpu(Settings())])"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    assert told.strip() == str([("note", "none: there is no NVIDIA driver here")])


def test_a_driver_that_hangs_holds_nothing_up(nvml: FakeDriver, monkeypatch: pytest.MonkeyPatch):
    """A driver that does not answer is told, after a bounded time."""
    nvml.hang("nvmlDeviceGetCount_v2", 600_000)
    monkeypatch.setattr(sources, "PATIENCE_S", 0.05)
    assert list(sources.check_gpu(Settings())) == [
        ("note", "none can be read: the NVIDIA driver gave no answer within 0.05 s")
    ]
    nvml.hang("nvmlDeviceGetCount_v2", 0)


def test_what_a_call_gives_comes_through():
    """What a call returns or raises in time is returned or raised."""
    assert within(5.0, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5.0, lambda: 1 // 0)


# --- The network ------------------------------------------------------------------------------------------


def test_a_page_of_ours_is_known():
    """A port at which a service of ours serves its page is no fault, and the service is named."""
    with fresh_telemetry(service_name="housing", start_server=True, start_monitoring=False, port=0) as telemetry:
        telemetry.start()
        port = int(telemetry.url.rpartition(":")[2].partition("/")[0])
        assert list(network.check_page(Settings(port=port))) == [
            ("ok", f"127.0.0.1 port {port} serves the page of housing")
        ]


def test_a_port_that_nobody_answers_on_is_taken(taken: int):
    """A program that listens and says nothing is told as the one who has the port, after a bounded time."""
    began_s = time.monotonic()
    assert "is taken by" in said(network.check_page(Settings(port=taken)))["fault"]
    assert time.monotonic() - began_s < 10.0


def test_a_port_of_the_services_own_workers_is_no_fault(taken: int, tmp_path: Path):
    """A page that tells nobody its name, behind TLS or a password, is known by the workers that live."""
    settings = Settings(port=taken, state_dir=tmp_path)
    group = group_of(settings)
    assert group is not None
    ledger = Ledger(group)
    ledger.append(STREAM, "a worker", 1)
    told = said(network.check_page(settings))
    assert told == {"ok": f"127.0.0.1 port {taken} is served by this service, of which 1 workers run"}
    ledger.close()
    assert "fault" in said(network.check_page(settings))


def test_who_has_a_port_may_be_unknown(taken: int, monkeypatch: pytest.MonkeyPatch):
    """Where the system does not say who listens, the port is taken by another program."""
    import psutil

    def refuse(kind: str) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", refuse)
    assert network.port_fault("127.0.0.1", taken) == "is taken by another program"


def test_a_port_that_is_not_allowed_is_told(monkeypatch: pytest.MonkeyPatch):
    """A port that only root may use is told as such, and an address of another machine as what it is."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    assert "cannot be used" in str(network.port_fault("192.0.2.1", 8001))
    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert network.port_fault("127.0.0.1", 80) == "may not be used by this user"


def test_an_open_page_is_told(port: int):
    """A page on all interfaces is a note."""
    told = said(network.check_page(Settings(host="0.0.0.0", port=port)))
    assert "free" in told["ok"]
    assert "OTEL_EXPORTER_PROMETHEUS_HOST" in told["note"]


@pytest.mark.parametrize(
    ("settings", "variable"),
    [(Settings(disabled=True), "OTEL_SDK_DISABLED"), (Settings(metrics_exporter=("otlp",)), "OTEL_METRICS_EXPORTER")],
)
def test_a_page_that_is_not_served_is_told(settings: Settings, variable: str):
    """Where there is no page, the variable that leaves it out is named."""
    assert variable in said(network.check_page(settings))["note"]


def test_a_collector_that_is_there_is_told_once(taken: int):
    """An endpoint that accepts connections is well, told once for all that is pushed to it."""
    endpoint = f"http://127.0.0.1:{taken}"
    settings = Settings(metrics_exporter=("otlp",), metrics_endpoint=endpoint, traces_endpoint=endpoint)
    assert list(network.check_collector(settings)) == [
        ("ok", f"127.0.0.1 port {taken}, to which metrics and traces are pushed, accepts connections")
    ]


def test_a_collector_that_is_not_there_is_a_fault(port: int):
    """An endpoint at which nobody listens is a fault; one for metrics that are not pushed is no matter."""
    endpoint = f"http://127.0.0.1:{port}"
    told = said(network.check_collector(Settings(traces_endpoint=endpoint)))
    assert "traces are pushed, cannot be reached: Connection refused" in told["fault"]
    assert "fault" not in said(network.check_collector(Settings(metrics_endpoint=endpoint)))


def test_a_name_that_is_not_found_holds_nothing_up(monkeypatch: pytest.MonkeyPatch):
    """A look-up of a name that does not come back is told, after a bounded time."""
    forever = threading.Event()
    monkeypatch.setattr(socket, "create_connection", lambda *_: forever.wait())
    monkeypatch.setattr(network, "PATIENCE_S", 0.05)
    told = said(network.check_collector(Settings(traces_endpoint="http://collector:4318")))
    assert "no answer within 0.05 s" in told["fault"]
    forever.set()
