"""Marks tests by their folder, and turns skips into failures where nothing may skip."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from otel_mlops.metrics import CATALOGUE
from otel_mlops.sdk.page import Page, PageReader
from otel_mlops.sdk.text import TEXT

if TYPE_CHECKING:
    from tests.nvml.driver import FakeDriver

# The suite stays under a minute; where more examples pay, a test asks for them itself or is a stress test.
hypothesis.settings.register_profile("unit", max_examples=20, deadline=None)
hypothesis.settings.load_profile("unit")

TESTS = Path(__file__).parent
MAY_SKIP = TESTS / "gpu"
MARKED_FOLDERS = {"servers": TESTS / "servers", "gpu": TESTS / "gpu"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --no-skips, which CI=true turns on as well, and --update-seen."""
    parser.addoption(
        "--update-seen",
        action="store_true",
        help="write the metrics that the tests have seen on a page to docs/seen.txt, which the reference is made of",
    )
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


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport, node: pytest.Item | pytest.Collector) -> None:
    expected_failure = hasattr(report, "wasxfail")
    if not report.skipped or expected_failure or not node.config.getoption("--no-skips"):
        return
    if node.path.is_relative_to(MAY_SKIP):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{node.nodeid} may not skip here (--no-skips or CI=true). {reason}"


SEEN = TESTS.parent / "docs" / "seen.txt"
_seen: set[str] = set()


@pytest.fixture(scope="session", autouse=True)
def _note_pages() -> Iterator[None]:
    """Every page that a test makes in this process is noted: what no page shows does not enter the reference."""
    plain = PageReader.page

    def page(self: PageReader, accept: str | None = None) -> Page:
        made = plain(self, accept)
        if made.content_type == TEXT:
            _seen.update(re.findall(r"^# TYPE (\S+)", made.body.decode(), re.MULTILINE))
        return made

    PageReader.page = page  # type: ignore[method-assign]
    yield
    PageReader.page = plain  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _impatient_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports that never answer, of which the tests have several, are not waited for as long as in earnest."""
    if network := sys.modules.get("otel_mlops.doctor.network"):
        monkeypatch.setattr(network, "_ANSWER_TIMEOUT_S", 0.2)


# Without a C compiler there is no driver to read GPUs from.
_NOT_SEEN = () if any(map(shutil.which, ("cc", "gcc", "clang"))) else ("gpu_",)


@pytest.fixture
def nvml(request: pytest.FixtureRequest) -> Iterator[FakeDriver]:
    """A pretended NVIDIA driver with an H100 and an RTX 2080, which pynvml talks to; nobody has called init."""
    from tests.nvml.driver import build, load

    with load(build(request.config.cache.mkdir("nvml"))) as driver:
        yield driver


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What the tests of another process have seen (pytest-xdist), they have seen as well."""
    _seen.update(getattr(node, "workeroutput", {}).get("seen", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """After a run of everything, docs/seen.txt must list the metrics that stood on a page."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["seen"] = sorted(_seen)
        return
    everything = not config.option.keyword and config.option.markexpr in ("", "not stress")
    whole = everything and config.args_source is config.ArgsSource.TESTPATHS
    if not whole or session.testsfailed or config.option.collectonly:
        return
    names = sorted(row.page_name for row in CATALOGUE)
    seen = [name for name in names if name in _seen and not name.startswith(_NOT_SEEN)]
    listed = [name for name in SEEN.read_text().split() if not name.startswith(_NOT_SEEN)]
    if config.getoption("--update-seen"):
        SEEN.write_text("".join(f"{name}\n" for name in seen))
    elif listed != seen:
        differing = ", ".join(sorted(set(seen) ^ set(listed)))
        print(f"\ndocs/seen.txt is not what the tests saw: {differing}. Run pytest --update-seen, then make render.")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
