"""The command line: its arguments, its exit codes, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from otel_mlops import render
from otel_mlops.cli import main
from otel_mlops.demo import options
from otel_mlops.doctor.network import take_free_ports


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the tests' own environment says of us counts."""
    for name in list(os.environ):
        if name.startswith(("DEMO_", "OTEL_")):
            monkeypatch.delenv(name)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[options.Options]:
    """What the demo is asked for, which is all that it does."""
    import otel_mlops.demo.show

    kept: list[options.Options] = []
    monkeypatch.setattr(otel_mlops.demo.show, "run", lambda wanted, *_: kept.append(wanted))
    return kept


# --- The command ------------------------------------------------------------------------------------------


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]):
    """--version tells the installed version and ends with 0."""
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"otel-mlops {metadata.version('otel-mlops')}\n"


@pytest.mark.parametrize("command", [[], ["demo"], ["doctor"], ["profile"], ["render"]])
def test_the_help_is_told(capsys: pytest.CaptureFixture[str], command: list[str]):
    """Each command has a help, and ends with 0 after it."""
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    assert " ".join(["otel-mlops", *command]) in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["dance"], ["doctor", "--loud"]])
def test_a_wrong_argument_ends_with_2(arguments: list[str]):
    """No command, an unknown one and an unknown option end with 2."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


def test_the_command_loads_late():
    """What one command needs is not loaded for another."""
    program = """
import sys
from otel_mlops.cli import main
try:
    main(["--version"])
except SystemExit:
    costly = {"fastapi", "httpx", "numpy", "prometheus_client", "pynvml", "sklearn", "uvicorn"}
    print(sorted(costly & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[1:] == ["[]"], done.stderr


def test_a_reader_that_leaves_is_no_traceback():
    """Where nobody reads the output any more (`| head`) the command ends without a word on the error stream."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "otel_mlops.cli", "doctor"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 1)


# --- render -----------------------------------------------------------------------------------------------


def test_render_finds_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`render --check` ends with 1 where something is stale, and with 0 after `render`."""
    shutil.copytree(render.CHECKOUT / "docs", tmp_path / "docs")
    shutil.copytree(render.CHECKOUT / "collector-config", tmp_path / "collector-config")
    monkeypatch.setattr(render, "CHECKOUT", tmp_path)
    settings = tmp_path / "docs" / "settings.md"
    settings.unlink()
    assert main(["render", "--check"]) == 1
    assert f"stale: {settings}" in capsys.readouterr().out
    assert not settings.exists()
    assert main(["render"]) == 0
    assert settings.exists()
    assert main(["render", "--check"]) == 0


def test_render_says_what_is_damaged_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """With a pipeline that is none it ends with 1 and a sentence, and what is stale stays so."""
    for folder in ("docs", "collector-config"):
        shutil.copytree(render.CHECKOUT / folder, tmp_path / folder)
    monkeypatch.setattr(render, "CHECKOUT", tmp_path)
    settings = tmp_path / "docs" / "settings.md"
    settings.write_text("stale")
    (tmp_path / "collector-config" / "agent.yaml").write_text("")
    assert main(["render"]) == 1
    assert "agent.yaml" in capsys.readouterr().err
    assert settings.read_text() == "stale"


def test_render_outside_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Where there is no checkout `render` says so and ends with 1."""
    monkeypatch.setattr(render, "CHECKOUT", tmp_path)
    assert main(["render", "--check"]) == 1
    assert "works in a checkout only" in capsys.readouterr().err


# --- doctor -----------------------------------------------------------------------------------------------


def test_doctor_ends_with_0_where_all_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Where everything needed works the doctor says so and ends with 0."""
    monkeypatch.setenv("OTEL_MLOPS_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(take_free_ports("127.0.0.1", 1)[0]))
    code = main(["doctor"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert "What is needed works" in out
    assert "\nfault " not in out


def test_doctor_ends_with_1_where_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], taken: int
):
    """A port that another program has and a folder that cannot be written are faults, and the end is 1."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("OTEL_MLOPS_STATE_DIR", str(tmp_path / "file" / "state"))
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_HOST", "127.0.0.1")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(taken))
    assert main(["doctor"]) == 1
    assert "To be put right: shared memory, page." in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["healthy"] is False
    assert {each["subject"] for each in data["findings"] if each["level"] == "fault"} == {"shared memory", "page"}


# --- demo -------------------------------------------------------------------------------------------------


def test_the_demo_has_defaults(asked: list[options.Options]):
    """Without arguments the demo runs until it is ended, on the ports of the documentation."""
    assert main(["demo"]) == 0
    assert asked == [options.Options()]
    assert (asked[0].port, asked[0].page_port, asked[0].seconds) == (8000, 8001, None)


def test_options_go_before_variables(asked: list[options.Options], monkeypatch: pytest.MonkeyPatch):
    """What is not given comes from a variable, and an empty variable is as good as none."""
    variables = {
        "DEMO_SECONDS": "20", "DEMO_PORT": "1234", "DEMO_HOST": "::1", "DEMO_RATE": "",
        "OTEL_EXPORTER_PROMETHEUS_PORT": "1235", "DEMO_PROMETHEUS_PORT": "1236",
    }  # fmt: skip
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert main(["demo", "--port", "4321", "--no-prometheus"]) == 0
    assert asked == [
        options.Options(
            host="::1", port=4321, page_port=1235, prometheus_port=1236, seconds=20.0, rate=20.0, prometheus=False
        )
    ]


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        (["--seconds", "0"], {}, "'0', expected a number above 0 (--seconds or DEMO_SECONDS)"),
        (["--seconds", "nan"], {}, "'nan', expected a number above 0"),
        ([], {"DEMO_SECONDS": "soon"}, "'soon', expected a number above 0 (--seconds or DEMO_SECONDS)"),
        ([], {"DEMO_PORT": "70000"}, "'70000', expected a port from 0 to 65535 (--port or DEMO_PORT)"),
        (["--page-port", "-1"], {}, "'-1', expected a port from 0 to 65535"),
    ],
)
def test_a_wrong_value_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    variables: dict[str, str],
    expected: str,
):
    """A value that is no time or port ends with 2, and names the option, the variable and what is expected."""
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(SystemExit) as end:
        main(["demo", *arguments])
    assert end.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "what", "option", "variable"),
    [
        (["--page-port", "0", "--port"], "the service", "--port", "DEMO_PORT"),
        (["--port", "0", "--page-port"], "the page", "--page-port", "OTEL_EXPORTER_PROMETHEUS_PORT"),
        (
            ["--port", "0", "--page-port", "0", "--prometheus-port"],
            "Prometheus",
            "--prometheus-port",
            "DEMO_PROMETHEUS_PORT",
        ),
    ],
)
def test_a_taken_port_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    taken: int,
    arguments: list[str],
    what: str,
    option: str,
    variable: str,
):
    """A port that another program has ends the demo with 1: the port, who has it, and how to choose another."""
    prometheus = tmp_path / "prometheus"
    prometheus.write_text("#!/bin/sh\n")
    prometheus.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert main(["demo", *arguments, str(taken)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert f"port {taken}, which {what} needs, is taken by" in told.err
    assert f"(process {os.getpid()})" in told.err
    assert f"{option} or {variable}" in told.err


def test_the_demo_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Without the extra the demo names the packages and the install line, and ends with 1."""
    monkeypatch.setattr(options, "find_spec", lambda name: None if name in ("sklearn", "uvicorn") else name)
    assert main(["demo"]) == 1
    err = capsys.readouterr().err
    assert "scikit-learn, uvicorn" in err
    assert "pip install 'otel-mlops[demo]'" in err


@pytest.mark.parametrize(
    ("variable", "text"),
    [("OTEL_SDK_DISABLED", "true"), ("OTEL_METRICS_EXPORTER", "otlp"), ("OTEL_MLOPS_MAX_SERIES", "many")],
)
def test_the_demo_says_which_variable_is_in_its_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, text: str
):
    """A variable with which there would be no page, or no start, is named, and the end is 1."""
    monkeypatch.setenv(variable, text)
    assert main(["demo"]) == 1
    assert variable in capsys.readouterr().err
