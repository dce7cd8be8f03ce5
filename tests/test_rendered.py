"""What is rendered is up to date and shown to be right by the tools that read it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_mlops import render as rendering
from otel_mlops.metrics import CATALOGUE
from otel_mlops.render import CHECKOUT, SEEN, main, render
from otel_mlops.rules import ALERTS, RECORDINGS, Group, Recording
from otel_mlops.rules.text import as_data, as_prometheus_rule, as_yaml
from otel_mlops.settings import SETTINGS, Settings

CONFIG = CHECKOUT / "collector-config"
PAGE = f"127.0.0.1:{Settings().port}"


def load(name: str) -> Any:
    """A file of collector-config as a reader of YAML has it."""
    return yaml.safe_load((CONFIG / name).read_text(encoding="utf-8"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what is rendered and of what that needs."""
    shutil.copytree(CHECKOUT / "docs", tmp_path / "docs")
    shutil.copytree(CONFIG, tmp_path / "collector-config")
    return tmp_path


def promtool(*arguments: str) -> str:
    """What promtool says, which must be content."""
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not on the PATH: `make servers` installs it with Prometheus")
    done = subprocess.run([path, *arguments], cwd=CONFIG, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- Rendering --------------------------------------------------------------------------------------------


def test_what_is_committed_is_what_is_rendered():
    """Docs and rules are as `make render` writes them."""
    stale = [str(path.relative_to(CHECKOUT)) for path in render(check=True)]
    assert not stale, f"run `make render`; stale: {stale}"


@pytest.mark.parametrize(
    "name", ["docs/metrics.md", "docs/settings.md", "docs/runbook.md", "collector-config/rules.yaml"]
)
def test_a_stale_file_is_found_and_only_then_written(checkout: Path, name: str):
    """A file that was changed by hand or is missing is found by the check and put right by rendering."""
    path = checkout / name
    wanted = path.read_text(encoding="utf-8")
    for damage in (lambda: path.write_text(wanted + "\n", encoding="utf-8"), path.unlink):
        damage()
        assert render(check=True, root=checkout) == [path]
        assert not path.exists() or path.read_text(encoding="utf-8") != wanted
        assert render(check=False, root=checkout) == [path]
        assert path.read_text(encoding="utf-8") == wanted
        assert render(check=True, root=checkout) == []


def test_the_command_fails_on_a_stale_file(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """`--check` ends with 1 and names the file; without it the file is written and all is well."""
    monkeypatch.setattr(rendering, "CHECKOUT", checkout)
    stale = checkout / "docs" / "settings.md"
    stale.write_text("", encoding="utf-8")
    assert main(["--check"]) == 1
    assert capsys.readouterr().out == f"stale: {stale}\n"
    assert main([]) == 0
    assert capsys.readouterr().out == f"wrote: {stale}\n"
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_outside_of_a_checkout_rendering_says_what_it_misses(tmp_path: Path):
    """An installed package has nothing to render, and the error names the file that is missing."""
    with pytest.raises(FileNotFoundError, match=re.escape(SEEN.name)):
        render(check=True, root=tmp_path)


# --- docs/metrics.md --------------------------------------------------------------------------------------


def reference(root: Path) -> dict[str, list[str]]:
    """The cells of each metric in the reference, by its name."""
    text = (root / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_reference_has_what_was_seen_on_a_page_and_nothing_else(checkout: Path):
    """A row is in the reference exactly if it stands in docs/seen.txt."""
    seen = (checkout / SEEN).read_text(encoding="utf-8").splitlines()
    assert seen == sorted(set(seen))
    assert set(reference(checkout)) == set(seen)
    gone, *rest = seen
    (checkout / SEEN).write_text("\n".join(rest), encoding="utf-8")
    render(check=False, root=checkout)
    assert set(reference(checkout)) == set(seen) - {gone}


def test_a_domain_of_which_nothing_was_seen_is_left_out(checkout: Path):
    """The reference has no empty tables."""
    (checkout / SEEN).write_text("errors_total\n", encoding="utf-8")
    render(check=False, root=checkout)
    text = (checkout / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["Requests"]
    assert "_once_" not in text


def test_a_name_that_is_no_metric_cannot_have_been_seen(checkout: Path):
    """A misspelt name in docs/seen.txt is an error that names it."""
    (checkout / SEEN).write_text("errors_totl\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"seen\.txt names errors_totl"):
        render(check=True, root=checkout)


def test_the_reference_tells_all_of_a_row(checkout: Path):
    """Unit, labels, how workers combine, help and note of each row stand beside its name."""
    (checkout / SEEN).write_text("\n".join(row.page_name for row in CATALOGUE), encoding="utf-8")
    render(check=False, root=checkout)
    found = reference(checkout)
    text = (checkout / "docs" / "metrics.md").read_text(encoding="utf-8")
    for row in CATALOGUE:
        _, unit, labels, across, meaning = found[row.page_name]
        assert unit.strip("`") == row.unit
        assert re.findall("`([^`]+)`", labels) == [*row.attributes, *row.optional_attributes]
        assert across == row.across
        assert f"- _{across}_: " in text
        assert meaning.startswith(row.help)
        assert meaning.endswith(row.note or row.help)
        if row.buckets:
            (bounds,) = re.findall(f"^- `{row.page_name}` has the buckets (.*)[.]$", text, re.MULTILINE)
            assert [float(bound) for bound in re.findall("`([^`]+)`", bounds)] == list(row.buckets)


# --- docs/settings.md -------------------------------------------------------------------------------------


def test_every_setting_is_in_the_reference_with_its_variables():
    """Each row of the settings' table is one row of the reference."""
    text = (CHECKOUT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(SETTINGS)
    for line, setting in zip(rows, SETTINGS, strict=True):
        assert (f"| `{setting.field}` |" in line) == setting.keyword
        assert setting.meaning in line
        assert all(f"`{variable}`" in line for variable in setting.variables)
        assert "object at" not in line
        assert "MISSING" not in line


# --- collector-config/rules.yaml --------------------------------------------------------------------------


def test_the_alerts_of_the_specification_are_there():
    """The three alerts have their names, how long they wait and their severity; their expressions are sound ones."""
    rules = [rule for group in load("rules.yaml")["groups"] for rule in group["rules"]]
    asked_for = {"HighErrorRate", "GPUHighUtilization", "ModelAccuracyDrop"}
    assert [
        (rule["alert"], rule["for"], rule["labels"]["severity"]) for rule in rules if rule.get("alert") in asked_for
    ] == [
        ("HighErrorRate", "2m", "warning"),
        ("ModelAccuracyDrop", "1m", "critical"),
        ("GPUHighUtilization", "5m", "warning"),
    ]


@pytest.mark.parametrize("write", [as_yaml, as_prometheus_rule])
def test_a_rule_survives_the_writing(write: Callable[..., str]):
    """Quotes, colons, hashes, braces, several lines and letters beyond ASCII come out of the YAML as they went in."""
    odd = dataclasses.replace(
        ALERTS[0],
        expression='up{job="it\'s"} == 0 # é\n  and\n\nx > 1',
        summary="a: 'b' {{ $value }} § \\",
        means="- [x] 'y",
    )
    recording = Recording(name="job:odd:sum", expression="vector(1)  # 'one'", meaning="What is # odd: {it}.")
    group = Group(name="odd", about="Odd", rules=(recording, odd))
    read = yaml.safe_load(write("a comment", [group]))
    assert read.get("spec", read) == as_data([group])
    first, second = as_data([group])["groups"][0]["rules"]
    assert first == {"record": "job:odd:sum", "expr": recording.expression}
    assert second["expr"] == odd.expression
    assert second["annotations"]["summary"] == odd.summary


# --- Prometheus and the Collector -------------------------------------------------------------------------


def test_promtool_accepts_the_configuration():
    """Prometheus' own tool finds nothing wrong in prometheus.yaml and finds its rules."""
    said = promtool("check", "config", "prometheus.yaml")
    assert "1 rule files found" in said
    assert f"{len(ALERTS) + len(RECORDINGS)} rules found" in said


def test_prometheus_scrapes_the_page_where_it_is():
    """The target is the default address of the page, read every 15 s."""
    config = load("prometheus.yaml")
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [PAGE]}]
    assert config["global"]["scrape_interval"] == "15s"
