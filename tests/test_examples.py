"""The examples as they are read: short, with public names only, each run by a test with real servers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import otel_mlops

TESTS = Path(__file__).parent
EXAMPLES = sorted((TESTS.parent / "examples").glob("*.py"))


def test_there_are_examples():
    """The examples that the documentation names are there."""
    assert {path.stem for path in EXAMPLES} >= {
        "minimal_service",
        "model_service",
        "model_monitoring",
        "several_workers",
        "gpu_batch",
        "prometheus_metrics_demo",
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_is_run(path: Path):
    """Each example is started by a test in tests/servers, which names it."""
    texts = [test.read_text(encoding="utf-8") for test in (TESTS / "servers").glob("test_*.py")]
    assert any(path.name in text or f"{path.stem}:app" in text for text in texts)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_keeps_to_public_names(path: Path):
    """An example imports from otel_mlops what is public: its names, the profile, and the command line's main."""
    public = {"otel_mlops": set(otel_mlops.__all__), "otel_mlops.profile": {"Profile"}}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("otel_mlops"):
            names = {alias.name for alias in node.names}
            assert names <= public.get(node.module, {"main"})


def test_the_first_example_fits_on_a_screen():
    """The README's first service is short enough to be read at a glance."""
    (path,) = (path for path in EXAMPLES if path.stem == "minimal_service")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 30
