"""What is rendered is up to date and shown to be right by the tools that read it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_mlops import render as rendering
from otel_mlops import rules
from otel_mlops.metrics import CATALOGUE
from otel_mlops.render import CHECKOUT, SEEN, main, render
from otel_mlops.rules import ALERTS
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


@pytest.mark.parametrize("name", ["docs/metrics.md", "docs/settings.md", "collector-config/rules.yaml"])
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


def test_the_alerts_are_the_specifications():
    """The three alerts have the expression, the duration and the severity that were asked for."""
    (group,) = load("rules.yaml")["groups"]
    assert [(rule["alert"], rule["expr"], rule["for"], rule["labels"]["severity"]) for rule in group["rules"]] == [
        ("HighErrorRate", "rate(errors_total[5m]) > 0.1", "2m", "warning"),
        ("GPUHighUtilization", "gpu_utilization_percent > 90", "5m", "warning"),
        ("ModelAccuracyDrop", "model_accuracy_score < 0.85", "1m", "critical"),
    ]


def test_an_alert_survives_the_writing(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    """Quotes, colons, hashes, braces and letters beyond ASCII come out of the YAML as they went in."""
    odd = dataclasses.replace(
        ALERTS[0],
        expression='up{job="it\'s"} == 0 # é',
        summary="a: 'b' {{ $value }} § \\",
        description="- [x] 'y",
    )
    monkeypatch.setattr(rendering, "ALERTS", (odd,))
    render(check=False, root=checkout)
    ((rule,),) = [
        group["rules"]
        for group in yaml.safe_load((checkout / "collector-config" / "rules.yaml").read_bytes())["groups"]
    ]
    assert rule["expr"] == odd.expression
    assert rule["annotations"] == {"summary": odd.summary, "description": odd.description}


def test_an_alert_names_only_labels_that_its_metric_has():
    """The labels in an alert's text are attributes of the metric in its expression."""
    for alert in rules.ALERTS:
        (row,) = [row for row in CATALOGUE if re.search(rf"\b{row.page_name}\b", alert.expression)]
        used = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.description))
        assert used
        assert used <= set(row.attributes)


def test_each_alert_is_tested_firing_and_not_firing():
    """The rules' own tests let each alert fire somewhere and stay away somewhere."""
    cases = [case for test in load("rules_test.yaml")["tests"] for case in test["alert_rule_test"]]
    for outcome in (True, False):
        tested = {case["alertname"] for case in cases if bool(case["exp_alerts"]) == outcome}
        assert tested == {alert.name for alert in ALERTS}


def test_promtool_accepts_the_rules():
    """Prometheus' own tool finds nothing wrong in the rules."""
    assert f"SUCCESS: {len(ALERTS)} rules found" in promtool("check", "rules", "rules.yaml")


def test_the_rules_pass_their_tests():
    """Each alert fires when it must, and only then, in Prometheus' own evaluation."""
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yaml")


# --- Prometheus and the Collector -------------------------------------------------------------------------


def test_promtool_accepts_the_configuration():
    """Prometheus' own tool finds nothing wrong in prometheus.yaml and finds its rules."""
    said = promtool("check", "config", "prometheus.yaml")
    assert "1 rule files found" in said
    assert f"{len(ALERTS)} rules found" in said


def test_prometheus_scrapes_the_page_where_it_is():
    """The target is the default address of the page, read every 15 s."""
    config = load("prometheus.yaml")
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [PAGE]}]
    assert config["global"]["scrape_interval"] == "15s"


def test_the_collector_has_all_that_its_pipeline_names():
    """The pipeline uses all that is configured, the memory limiter first and no deprecated processor."""
    config = load("collector.yaml")
    (pipeline,) = config["service"]["pipelines"].values()
    for part in ("receivers", "processors", "exporters"):
        assert pipeline[part] == list(config[part])
    assert pipeline["processors"][0] == "memory_limiter"
    assert "batch" not in config["processors"]
    (job,) = config["receivers"]["prometheus"]["config"]["scrape_configs"]
    assert job["static_configs"] == [{"targets": [PAGE]}]


def test_the_collector_keeps_no_secret():
    """Where the Collector sends to is told by the environment."""
    (exporter,) = load("collector.yaml")["exporters"].values()
    assert re.fullmatch(r"\$\{env:[A-Z_]+\}", exporter["endpoint"])
