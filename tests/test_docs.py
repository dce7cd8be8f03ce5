"""What README and docs show is run: the code works, and the page has what they say it has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from otel_mlops.configure import current
from otel_mlops.settings import SETTINGS
from tests.asgi import ask, serving
from tests.servers import test_workers
from tests.servers.fleet import SERVERS

ROOT = Path(__file__).parent.parent
SOMETIMES = {"errors_total"}
"""On the first screen of the README, and not there before something has failed."""


def blocks(name: str, language: str) -> list[str]:
    """The blocks of code of a document in a language; "" are those without one."""
    every = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
    return [code for of, code in every if of == language]


def shapes(text: str) -> set[tuple[str, frozenset[str]]]:
    """The samples of a page by name and names of labels."""
    return {
        (sample.name, frozenset(sample.labels))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process that is not configured, whose pages take free ports, stay here, and set nothing global."""
    monkeypatch.setattr(current, "telemetry", None)
    monkeypatch.setattr("otel_mlops.configure.become_global", lambda _provider: None)
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "0")
    # In the moment of the hand-over neither the worker nor that process speaks for all.
    monkeypatch.setenv("OTEL_MLOPS_PAGE_PROCESS", "false")
    yield
    if current.telemetry is not None:
        current.telemetry.shutdown()


async def test_the_first_screen_of_the_readme_gives_what_it_says(unconfigured: None) -> None:
    """The README's service runs as it stands, and each line that it shows of the page is on its page."""
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(compile(blocks("README.md", "python")[0], "README.md", "exec"), namespace)
    app, telemetry = namespace["app"], namespace["telemetry"]
    async with serving(app):
        house = json.dumps({"median_income": 3.0, "rooms": 2.0}).encode()
        await ask(app, "POST", "/predict", body=[house], headers={"content-type": "application/json"})
        telemetry.sample()
        page = telemetry.page().body.decode()
    wanted = {shape for shape in shapes(blocks("README.md", "")[0]) if shape[0] not in SOMETIMES}
    assert len(wanted) >= 8
    assert wanted <= shapes(page)


@pytest.mark.parametrize(
    ("name", "number"), [("docs/opentelemetry.md", 0), ("docs/testing.md", 2), ("docs/truth.md", 0)]
)
def test_the_code_of_the_docs_runs(name: str, number: int, unconfigured: None) -> None:
    """A block of code that stands on its own runs, its assertions included."""
    exec(compile(blocks(name, "python")[number], name, "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("document", ["../README.md", *sorted(path.name for path in (ROOT / "docs").glob("*.md"))])
def test_links_and_variables_of_the_docs_are_there(document: str) -> None:
    """A link leads to a file of the project, and a variable of ours is one of the settings'."""
    path = ROOT / "docs" / document
    text = path.read_text()
    missing = [to for to in re.findall(r"\]\((?!http)([^)#]+)", text) if not (path.parent / to).exists()]
    variables = {variable for setting in SETTINGS for variable in setting.variables}
    unknown = set(re.findall(r"OTEL_MLOPS_[A-Z_]+", text)) - variables - {"OTEL_MLOPS_"}
    assert (missing, unknown) == ([], set())


COLUMNS = {
    "one page of all, exact": ("test_one_page_has_the_numbers_of_all_workers",),
    "host once, callbacks of each, `forget`": (
        "test_facts_of_the_host_and_of_the_group_stand_there_once",
        "test_an_observable_has_a_sample_of_each_worker",
        "test_what_one_worker_forgets_is_gone_from_the_page",
    ),
    "recorded at import time": ("test_what_is_recorded_at_import_time_is_on_the_page_once",),
    "killed under load": ("test_kills_under_load_lose_nothing",),
    "recycled": ("test_recycling_resets_nothing",),
    "rolling restart": ("test_a_rolling_restart_resets_nothing",),
    "all killed": ("test_after_a_total_kill_the_next_start_is_clean",),
}


def test_each_mark_of_the_matrix_of_servers_is_a_test() -> None:
    """A cell of docs/workers.md has a mark where a test runs that server, and the kills are as many as it says."""

    def modes(name: str) -> set[str]:
        every = [mark.args[1] for mark in getattr(test_workers, name).pytestmark if mark.name == "parametrize"]
        return {mode if isinstance(mode, str) else mode[0] for values in every for mode in values}

    lines = [line.strip("|").split("|") for line in (ROOT / "docs/workers.md").read_text().splitlines()]
    head, _, *rows = [[cell.strip() for cell in cells] for cells in lines if len(cells) == len(COLUMNS) + 1]
    assert head[1:] == list(COLUMNS)
    assert {row[0] for row in rows} == set(SERVERS)
    for server, *cells in rows:
        for column, cell in zip(COLUMNS, cells, strict=True):
            tested = all(server in modes(name) for name in COLUMNS[column])
            wanted = f"{test_workers.KILLS[server]} kills" if tested and column == "killed under load" else "✓"
            assert cell == (wanted if tested else ""), (server, column)
    assert sum(test_workers.KILLS.values()) >= 50
