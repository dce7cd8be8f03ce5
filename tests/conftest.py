"""Marks tests by their folder, and turns skips into failures where nothing may skip."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MAY_SKIP = TESTS / "gpu"
MARKED_FOLDERS = {"servers": TESTS / "servers", "gpu": TESTS / "gpu"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --no-skips, which CI=true turns on as well."""
    parser.addoption(
        "--no-skips",
        action="store_true",
        default=os.environ.get("CI", "").lower() == "true",
        help="a skip outside tests/gpu is a failure (the default where CI=true)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test in tests/servers or tests/gpu carries the marker of its folder."""
    for item in items:
        for marker, folder in MARKED_FOLDERS.items():
            if item.path.is_relative_to(folder):
                item.add_marker(marker)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips fails where nothing may skip."""
    report = yield
    _forbid_skip(report, item)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file that skips as a whole (importorskip) is an error where nothing may skip."""
    report = yield
    _forbid_skip(report, collector)
    return report


def _forbid_skip(
    report: pytest.TestReport | pytest.CollectReport, node: pytest.Item | pytest.Collector
) -> None:
    expected_failure = hasattr(report, "wasxfail")
    if not report.skipped or expected_failure or not node.config.getoption("--no-skips"):
        return
    if node.path.is_relative_to(MAY_SKIP):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{node.nodeid} may not skip here (--no-skips or CI=true). {reason}"
