"""The rules as data: they name what exists, they are tested, and people are told what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_mlops.metrics import API_REQUEST_DURATION, CATALOGUE
from otel_mlops.render import CHECKOUT
from otel_mlops.rules import ALERTS, GROUPS, RECORDINGS, Alert
from otel_mlops.rules.gpu import APPLICATION_XIDS, BROKEN_XIDS, DAMAGED_XIDS
from otel_mlops.rules.objectives import LATENCY_S
from otel_mlops.rules.telemetry import LEDGER_BYTES
from otel_mlops.rules.text import as_data
from otel_mlops.settings import Settings
from otel_mlops.sources.nvidia.events import ALERTED_XIDS
from tests.promql import selectors_of

CONFIG = CHECKOUT / "collector-config"
OTHERS = {"up", "ALERTS"}
"""Series of Prometheus' own that a rule may ask for; those of the Collector begin with `otelcol_`."""

RULES = [*ALERTS, *RECORDINGS]
PARTS = ("_bucket", "_count", "_sum")


def load(path: Path) -> Any:
    """A file as a reader of YAML has it: the quick one, where there is one."""
    return yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


TESTS: dict[str, dict[str, Any]] = {path.name: load(path) for path in sorted((CONFIG / "rules_tests").iterdir())}
CASES: list[dict[str, Any]] = [
    case for file in TESTS.values() for test in file["tests"] for case in test.get("alert_rule_test", [])
]


def asked(expression: str) -> set[str]:
    """The names of the series that an expression asks for."""
    return {selector.name for selector, _ in selectors_of(expression) if selector.name}


def known_series() -> dict[str, set[str]]:
    """Every series of ours that a rule may name, with its labels."""
    known = {}
    for row in CATALOGUE:
        labels = {*row.attributes, *row.optional_attributes, "job", "instance"}
        labels |= {"worker"} if row.across == "worker" else set()
        for part in PARTS if row.kind == "histogram" else ("",):
            known[row.page_name + part] = labels | ({"le"} if part == "_bucket" else set())
    return known


QUERIES = [(rule.name, rule.expression) for rule in RULES] + [
    (alert.name, query) for alert in ALERTS for query, _ in alert.look
]


def test_an_expression_asks_for_what_exists():
    """Each series of a rule or of the runbook is one of the catalogue, a recorded one or Prometheus' own."""
    known, recorded = known_series(), {recording.name for recording in RECORDINGS}
    for name, expression in QUERIES:
        for selector, _ in selectors_of(expression):
            asks = selector.name
            if asks is None:
                assert name in {"MetricOverflow", "LedgerNearlyFull"}  # they count the series of all names
            elif asks in known:
                assert {matcher.name for matcher in selector.matchers.matchers} <= known[asks], expression
            else:
                assert asks in recorded | OTHERS or asks.startswith("otelcol_"), (name, asks)


def test_the_walk_finds_every_series():
    """The names are found in a range, a subquery, a function, an aggregation and on either side of an operator."""
    found = asked("-a + sum by (x) (rate(b[5m])) / (quantile_over_time(0.5, c[1h:1m]) unless topk(3, d offset 1d))")
    assert found == {"a", "b", "c", "d"}


def test_what_is_recorded_is_used():
    """Each recorded series is asked for by another rule, or is meant for dashboards."""
    used = set().union(*(asked(rule.expression) for rule in RULES))
    assert [recording.name for recording in RECORDINGS if not recording.shown and recording.name not in used] == []


def test_what_is_recorded_is_named_as_prometheus_recommends():
    """A recorded series is called `level:metric:operations`, once, and the level names labels that are left."""
    names = [recording.name for recording in RECORDINGS]
    assert len(set(names)) == len(names)
    for name in names:
        level, metric, operations = name.split(":")
        assert re.fullmatch(r"job(_instance|_endpoint|_model|_feature|_bin|_gpu|_operation|_table)*", level)
        assert metric
        assert operations


def test_a_rule_follows_those_that_it_needs():
    """Within its group a rule comes after the recordings that it asks for, or it would see those of the last time."""
    for group in GROUPS:
        later = {rule.name for rule in group.rules}
        for rule in group.rules:
            assert not (asked(rule.expression) - {rule.name}) & later, rule.name
            later.discard(rule.name)


def test_a_label_of_a_target_is_not_asked_for():
    """No rule matches job, instance or a whole number as bucket: they differ between a scrape and a push."""
    for rule in RULES:
        for selector, _ in selectors_of(rule.expression):
            for matcher in selector.matchers.matchers:
                assert matcher.name not in {"job", "instance"}
                if matcher.name == "le":
                    assert not float(matcher.value).is_integer()
    assert LATENCY_S in API_REQUEST_DURATION.buckets


def test_the_rules_know_what_other_parts_say():
    """Each XID that is counted from the start is of one of three kinds, and the ledger's cap is the setting's."""
    assert sorted(BROKEN_XIDS + DAMAGED_XIDS + APPLICATION_XIDS) == sorted(ALERTED_XIDS)
    assert Settings().max_ledger_bytes == LEDGER_BYTES


# --- Their tests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_each_alert_is_tested_firing_and_not_firing(alert: Alert):
    """An alert fires in some test with all its words, and stays away in some; the Watchdog never does."""
    cases = [case for case in CASES if case["alertname"] == alert.name]
    fired = [fired for case in cases for fired in case["exp_alerts"]]
    assert fired
    assert alert.name == "Watchdog" or any(not case["exp_alerts"] for case in cases)
    named = set(re.findall(r"(?<!or )(?<!with )\$labels\.(\w+)", alert.summary))
    for each in fired:
        assert named <= each["exp_labels"].keys() | {"model_name"}
        assert each["exp_annotations"].keys() == alert.annotations.keys()
    assert any(named <= each["exp_labels"].keys() for each in fired)


def test_the_tests_evaluate_the_groups_in_order():
    """Each file of tests is of these rules, in the order in which they stand."""
    for file in TESTS.values():
        assert file["rule_files"] == ["../rules.yaml"]
        assert file["group_eval_order"] == [group.name for group in GROUPS]


# --- For people -------------------------------------------------------------------------------------------


def test_an_alert_has_a_name_and_says_what_to_do():
    """Names differ, a summary has no full stop, and what it means and what to do are sentences without templates."""
    assert len({alert.name.lower() for alert in ALERTS}) == len(ALERTS)
    for alert in ALERTS:
        assert not alert.summary.endswith(".")
        assert alert.means.endswith(".")
        assert alert.act.endswith(".")
        assert "{{" not in alert.description


def test_the_runbook_has_a_place_for_each_alert():
    """The link of an alert leads to its heading, and there is no heading of another one."""
    text = (CHECKOUT / "docs" / "runbook.md").read_text(encoding="utf-8")
    headings = [line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")]
    assert [heading for heading in headings if not heading.startswith("Series")] == [alert.name for alert in ALERTS]
    for alert in ALERTS:
        path, _, anchor = alert.annotations["runbook_url"].partition("#")
        assert (CHECKOUT / path).is_file()
        assert anchor == alert.name.lower()
    assert all(f"| `{recording.name}` |" in text for recording in RECORDINGS if recording.shown)


def test_kubernetes_has_the_same_rules():
    """The PrometheusRule has the groups of rules.yaml, which are those of the data."""
    resource = load(CONFIG / "kubernetes" / "prometheusrule.yaml")
    assert (resource["apiVersion"], resource["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    rules = load(CONFIG / "rules.yaml")
    assert resource["spec"] == rules == as_data()
