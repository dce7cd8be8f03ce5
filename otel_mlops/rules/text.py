"""The rules as text: for Prometheus, for its operator in Kubernetes, and as a runbook for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from otel_mlops.rules import GROUPS, Alert, Group, Recording

_NOTE = (
    "Objectives are in the first group, a line each; the bound of slow requests is `le` in the second.",
    "docs/runbook.md says what each alert means. Where yours is elsewhere:",
    "  sed -i 's|docs/runbook.md#|https://wiki.example.com/runbook#|' {}",
)


def as_data(groups: Iterable[Group] = GROUPS) -> dict[str, Any]:
    """Return the rules as a reader of YAML has them."""
    return {
        "groups": [
            dict(_head(group)) | {"rules": [dict(_fields(rule, group)) for rule in group.rules]} for group in groups
        ]
    }


def _head(group: Group) -> Iterator[tuple[str, str]]:
    yield "name", group.name
    if group.interval is not None:
        yield "interval", group.interval


def _fields(rule: Recording | Alert, group: Group) -> Iterator[tuple[str, Any]]:
    if isinstance(rule, Recording):
        yield "record", rule.name
        yield "expr", rule.expression
        return
    yield "alert", rule.name
    yield "expr", rule.expression
    yield "for", rule.lasting
    if rule.keeping is not None:
        yield "keep_firing_for", rule.keeping
    yield "labels", {"severity": rule.severity, "domain": group.domain}
    yield "annotations", rule.annotations


def as_yaml(comment: str, groups: Iterable[Group] = GROUPS) -> str:
    """Return collector-config/rules.yaml."""
    return _lines([*_comments(comment, "rules.yaml"), *_groups(groups, "")])


def as_prometheus_rule(comment: str, groups: Iterable[Group] = GROUPS) -> str:
    """Return collector-config/kubernetes/prometheusrule.yaml, for the Prometheus Operator."""
    return _lines(
        [
            *_comments(comment, "prometheusrule.yaml"),
            "# A Prometheus finds it by its ruleSelector: give it the labels that yours asks for.",
            "apiVersion: monitoring.coreos.com/v1",
            "kind: PrometheusRule",
            "metadata:",
            "  name: otel-mlops",
            "  labels:",
            "    app.kubernetes.io/name: otel-mlops",
            "    release: kube-prometheus-stack # what that chart's Prometheus asks for, if this is its name",
            "spec:",
            *_groups(groups, "  "),
        ]
    )


def _comments(comment: str, name: str) -> Iterator[str]:
    return (f"# {line.format(name)}" for line in (comment, *_NOTE))


def _groups(groups: Iterable[Group], indent: str) -> Iterator[str]:
    yield f"{indent}groups:"
    for group in groups:
        first = "- "
        for name, value in _head(group):
            yield from _field(f"{indent}  {first}{name}", "", value)
            first = "  "
        yield f"{indent}    rules:"
        for rule in group.rules:
            if isinstance(rule, Recording):
                yield f"{indent}      # {rule.meaning}"
            first = "- "
            for name, value in _fields(rule, group):
                yield from _field(f"{indent}      {first}{name}", f"{indent}        ", value)
                first = "  "


def _field(name: str, indent: str, value: str | Mapping[str, str]) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{name}:"
        for key, inner in value.items():
            yield from _field(f"{indent}  {key}", f"{indent}  ", inner)
    elif "\n" in value:
        yield f"{name}: |-"
        yield from (f"{indent}  {line}" for line in value.split("\n"))
    elif value.replace("_", "").replace(":", "").isalnum():
        yield f"{name}: {value}"
    else:
        yield f"{name}: {_quoted(value)}"


def _quoted(text: str) -> str:
    """Return a YAML scalar; single quotes leave the double ones of PromQL and of templates readable."""
    return "'" + text.replace("'", "''") + "'"


def as_runbook(comment: str) -> str:
    """Return docs/runbook.md."""
    return _lines(_runbook(comment))


def _runbook(comment: str) -> Iterator[str]:
    yield from (
        "# Runbook",
        "",
        f"<!-- {comment} -->",
        "",
        "What each alert of `collector-config/rules.yaml` means, what to do, and what to look at. _critical_ is for",
        "somebody now, _warning_ for somebody today. [Alerts](alerts.md) says how they are set, and which hide others.",
    )
    for group in GROUPS:
        alerts = [rule for rule in group.rules if isinstance(rule, Alert)]
        recordings = [rule for rule in group.rules if isinstance(rule, Recording) and rule.shown]
        yield from ("", f"## {group.about}")
        for alert in alerts:
            when = f"_{alert.severity}_, after {alert.lasting}"
            if alert.keeping is not None:
                when += f", and for {alert.keeping} longer than it holds"
            yield from ("", f"### {alert.name}", "", f"{when}.", "", alert.means)
            yield from ("", f"**Do:** {alert.act}")
            if alert.look:
                yield from ("", "**Look at:**", "")
                yield from (f"- `{query}`: {tells}." for query, tells in alert.look)
            yield from ("", "```promql", alert.expression, "```")
        if recordings:
            yield from (
                "",
                f"### Series for dashboards: {group.about.lower()}",
                "",
                "| Series | Meaning |",
                "| --- | --- |",
            )
            yield from (f"| `{rule.name}` | {rule.meaning} |" for rule in recordings)


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"
