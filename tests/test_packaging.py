"""What is installed, what it brings with it, and what the commands around it promise."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BROUGHT_BY_THE_USER = {
    ("otel_mlops/testing.py", "pytest"),
    ("tests/gpu/loads.py", "torch"),
    ("tests/gpu/loads.py", "cupy"),
}
"""Whoever uses our fixtures runs pytest; whoever has a GPU to load has what loads it."""

FOR_DEVELOPERS = {"bench", "dev", "test"}
NO_TEXT = {".git", ".venv", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", "__pycache__"}

# What brings a module, where it is not called like its distribution. The longest prefix counts.
DISTRIBUTIONS = {
    "anyio": "fastapi",
    "opentelemetry": "opentelemetry-api",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.exporter.otlp": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.exporter.prometheus": "opentelemetry-exporter-prometheus",
    "opentelemetry.instrumentation.fastapi": "opentelemetry-instrumentation-fastapi",
    "opentelemetry.semconv": "opentelemetry-sdk",
    "google.protobuf": "protobuf",
    "pydantic": "fastapi",
    "pynvml": "nvidia-ml-py",
    "sklearn": "scikit-learn",
    "starlette": "fastapi",
    "yaml": "pyyaml",
}


def requirements(*extras: str) -> dict[str, Requirement]:
    """What the package requires at run time, and with the extras and the extras that they name."""
    found = {}
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    for line in lines:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            found |= requirements(*requirement.extras)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def distribution(module: str) -> str:
    """The distribution that a module is installed by."""
    names = module.split(".")
    for end in range(len(names), 0, -1):
        prefix = ".".join(names[:end])
        if prefix in DISTRIBUTIONS:
            return DISTRIBUTIONS[prefix]
    return str(canonicalize_name(names[0]))


def third_party_imports(folder: Path) -> Iterator[tuple[str, str]]:
    """Each module from outside that a file of the folder imports, anywhere in it."""
    ours = {"otel_mlops", "benchmarks", "tests", *(path.stem for path in folder.rglob("*.py"))}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            for module in modules:
                if module.partition(".")[0] not in ours | set(sys.stdlib_module_names):
                    yield module, str(path.relative_to(ROOT))


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the repository with some variables changed."""
    variables = os.environ | environment
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=False)


def test_the_version_stands_in_one_place():
    """The installed version is pyproject.toml's, and no file of the package repeats it."""
    assert importlib.metadata.version("otel-mlops") == PROJECT["version"]
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "otel_mlops").rglob("*.py"))
    assert not any(f'"{PROJECT["version"]}"' in source for source in sources)


def test_the_types_are_shipped():
    """py.typed lies in the package, so a user's type checker reads our annotations."""
    assert importlib.resources.files("otel_mlops").joinpath("py.typed").is_file()


def test_the_console_script_loads():
    """The command otel-mlops names a function that exists."""
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="otel-mlops")
    assert callable(script.load())


@pytest.mark.stress
@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("otel_mlops", set(PROJECT["optional-dependencies"]) - FOR_DEVELOPERS),
        ("benchmarks", {"bench"}),
        ("tests", {"test"}),
    ],
)
def test_every_import_is_declared(folder: str, extras: set[str]):
    """What a folder imports from outside is a runtime dependency or in the extra that belongs to it."""
    declared = requirements(*extras)
    missing = [
        f"{path}: {module}"
        for module, path in third_party_imports(ROOT / folder)
        if distribution(module) not in declared and (path, module) not in BROUGHT_BY_THE_USER
    ]
    assert not missing, "\n".join(missing)


def test_opentelemetry_is_pinned_to_a_tested_minor():
    """Each OpenTelemetry dependency has an upper bound, and what is installed is within it."""
    for name, requirement in requirements("otlp").items():
        if name.startswith("opentelemetry-"):
            assert any(specifier.operator == "<" for specifier in requirement.specifier), name
            assert requirement.specifier.contains(importlib.metadata.version(name), prereleases=True)


def test_importing_loads_nothing_costly():
    """`import otel_mlops` loads no costly package that the OpenTelemetry SDK does not load itself."""
    program = """
import sys, opentelemetry.sdk.metrics
before = set(sys.modules)
import otel_mlops
costly = {"amdsmi", "apscheduler", "fastapi", "numpy", "prometheus_client", "psutil", "pynvml", "starlette"}
print(sorted(costly & sys.modules.keys() - before))
"""
    done = run(sys.executable, "-c", program)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


SUITE = {
    "test_skip.py": "import pytest\ndef test_it(): pytest.skip('run make servers')",
    "test_mark.py": "import pytest\n@pytest.mark.skipif(True, reason='run make servers')\ndef test_it(): ...",
    "test_file.py": "import pytest\npytest.skip('run make servers', allow_module_level=True)",
    "test_fixture.py": """
import pytest
@pytest.fixture
def server(): pytest.skip('run make servers')
def test_it(server): ...
""",
    "test_expected.py": "import pytest\n@pytest.mark.xfail(reason='upstream')\ndef test_it(): assert False",
    "test_warning.py": "import warnings\ndef test_it(): warnings.warn('new')",
    "gpu/test_gpu.py": "import pytest\ndef test_it(): pytest.skip('run it on a machine with a GPU')",
}


@pytest.fixture
def run_suite(tmp_path: Path):
    """Runs pytest on SUITE under our conftest and configuration; gives the closing line and the output."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tests = tmp_path / "tests"
    for name, source in SUITE.items():
        (tests / name).parent.mkdir(parents=True, exist_ok=True)
        (tests / name).write_text(source)
    shutil.copy(ROOT / "tests" / "conftest.py", tests)

    def run_suite(*options: str, ci: str) -> tuple[dict[str, int], str]:
        configuration = ("-c", tmp_path / "pyproject.toml", "--rootdir", tmp_path)
        command = (sys.executable, "-m", "pytest", *configuration, "--continue-on-collection-errors", tests)
        output = run(*command, *options, CI=ci).stdout
        closing_line = output.rstrip().rpartition("\n")[2]
        return {what: int(number) for number, what in re.findall(r"(\d+) ([a-z]+)[, ]", closing_line)}, output

    return run_suite


@pytest.mark.stress
def test_a_skip_fails_in_ci(run_suite):
    """With CI=true each kind of skip outside tests/gpu fails and repeats how to get what is missing."""
    outcomes, output = run_suite(ci="true")
    # Failed: the skip in a test, the warning. Errors: the mark, the fixture, the file. Skipped: the GPU's.
    assert outcomes == {"failed": 2, "errors": 3, "skipped": 1, "xfailed": 1}
    for place in (
        "test_skip.py::test_it",
        "test_mark.py::test_it",
        "test_fixture.py::test_it",
        "test_file.py",
    ):
        assert re.search(rf"{place} may not skip here .*run make servers", output)


@pytest.mark.stress
def test_the_option_forbids_skips_as_well(run_suite):
    """--no-skips does on a laptop what CI=true does."""
    outcomes, _ = run_suite("--no-skips", ci="")
    assert outcomes == {"failed": 2, "errors": 3, "skipped": 1, "xfailed": 1}


@pytest.mark.stress
def test_a_laptop_may_skip_but_not_warn(run_suite):
    """Without CI=true a skip is a skip, while a warning that no line of the configuration explains fails."""
    outcomes, output = run_suite(ci="")
    assert outcomes == {"failed": 1, "skipped": 5, "xfailed": 1}
    assert "UserWarning: new" in output


def test_make_lists_every_target():
    """`make` alone explains each target."""
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    shown = run("make", "--no-print-directory").stdout
    assert {f"make {target}" for target in phony[1].split()} == set(re.findall(r"make [a-z-]+(?=  )", shown))


def test_the_makefile_says_when_there_is_no_python(tmp_path: Path):
    """Without Python 3.11 or newer make says so, and how to name one."""
    done = run("make", "test", f"VENV={tmp_path}/venv", "PYTHON=")
    assert done.returncode != 0
    assert "make PYTHON=/path/to/python3" in done.stderr


def test_the_makefile_says_when_venv_is_missing(tmp_path: Path):
    """A Python that cannot make virtual environments gets a message with the package to install."""
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = run("make", "test", f"VENV={tmp_path}/venv", f"PYTHON={python}")
    assert done.returncode != 0
    assert "python3-venv" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_nothing_depends_on_the_machine_it_was_written_on():
    """No file of the project names a folder of somebody's machine."""
    somebodys = re.compile(r"(?<![\w.-])/(root|work|home/\w+|Users/\w+)/")
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NO_TEXT]
        for path in (Path(folder, name) for name in names):
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in somebodys.finditer(text)]
    assert not found, "\n".join(found)
