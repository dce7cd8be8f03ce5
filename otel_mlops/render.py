"""Renders what is derived from metrics, settings and rules: `python -m otel_mlops.render [--check]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from otel_mlops import dashboards
from otel_mlops.manifests import manifests
from otel_mlops.metrics import CATALOGUE, DOMAINS, Across, Kind, Metric
from otel_mlops.rules.text import as_prometheus_rule, as_runbook, as_yaml
from otel_mlops.settings import SETTINGS, Setting, Settings

CHECKOUT = Path(__file__).resolve().parents[1]
SEEN = Path("docs/seen.txt")
"""The names that a test has seen on a page, one a line; the reference has no others."""

_RENDERED_FROM = "Rendered by `make render` from {}: change it there."
_KINDS: Mapping[Kind, str] = {"updown": "up-down", "stateset": "state set"}
_ACROSS: Mapping[Across, str] = {
    "sum": "added up over all workers, those that have ended included",
    "living": "added up over the living workers",
    "latest": "the value that a worker set last",
    "min": "the least of the living workers' values",
    "worst": "the worst of the living workers' states",
    "once": "a fact of the machine or of the page, read by one worker",
    "worker": "each worker for itself, with the label `worker`",
}


def render(*, check: bool, root: Path = CHECKOUT) -> list[Path]:
    """Write the rendered files that are not as they should be, or with `check` only find them.

    Returns the paths of those files.

    Errors:  FileNotFoundError outside of a checkout; ValueError if docs/seen.txt names what is no metric.
    """
    stale: list[Path] = []
    for path, text in list(_texts(root)):  # all of them, or none is written
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
    return stale


def _texts(root: Path) -> Iterator[tuple[Path, str]]:
    seen = set((root / SEEN).read_text(encoding="utf-8").split())
    if unknown := seen - {metric.page_name for metric in CATALOGUE}:
        raise ValueError(f"{SEEN} names {', '.join(sorted(unknown))}, expected names of metrics")
    yield root / "docs" / "metrics.md", _metrics(seen)
    yield root / "docs" / "settings.md", _settings()
    rules = _RENDERED_FROM.format("otel_mlops/rules")
    yield root / "docs" / "runbook.md", as_runbook(rules)
    yield root / "collector-config" / "rules.yaml", as_yaml(rules)
    yield root / "collector-config" / "kubernetes" / "prometheusrule.yaml", as_prometheus_rule(rules)
    for name, text in dashboards.files():
        yield root / "collector-config" / "grafana" / name, text
    yield from manifests(root / "collector-config")


# --- docs/metrics.md --------------------------------------------------------------------------------------


def _metrics(seen: set[str]) -> str:
    shown = {domain: [metric for metric in metrics if metric.page_name in seen] for domain, metrics in DOMAINS.items()}
    used = {metric.across for metrics in shown.values() for metric in metrics}
    lines = [
        "# Metrics",
        "",
        _comment("otel_mlops/metrics"),
        "",
        "The names as they stand on the page. The OpenTelemetry instrument has the same name with dots and",
        "without the unit: `api.request.duration` in `s` is `api_request_duration_seconds`. On the page an",
        "up-down is a gauge, and so are an info and a state set, except in OpenMetrics.",
        "",
        "A label in parentheses may be absent: `model_name` is there when a `Model` records.",
        "",
        "_Workers_ says how the processes of one service combine:",
        "",
        *(f"- _{across}_: {meaning}" for across, meaning in _ACROSS.items() if across in used),
    ]
    for domain, metrics in shown.items():
        if metrics:
            lines += ["", f"## {domain}", "", *_domain(metrics)]
    return "\n".join(lines) + "\n"


def _domain(metrics: Sequence[Metric]) -> Iterator[str]:
    yield from _table(
        ("Metric", "Kind", "Unit", "Labels", "Workers", "Meaning"),
        (
            (
                f"`{metric.page_name}`",
                _KINDS.get(metric.kind, metric.kind),
                f"`{metric.unit}`" if metric.unit else "",
                _labels(metric),
                metric.across,
                " ".join(filter(None, (metric.help, metric.note))),
            )
            for metric in metrics
        ),
    )
    closed = {
        f"- `{label}` is one of {_code_list(values)}." for metric in metrics for label, values in metric.values.items()
    }
    buckets = [
        f"- `{metric.page_name}` has the buckets {_code_list(map(_number, metric.buckets))}."
        for metric in metrics
        if metric.buckets
    ]
    if closed or buckets:
        yield from ("", *sorted(closed), *buckets)


def _labels(metric: Metric) -> str:
    labels = [f"`{label}`" for label in metric.attributes]
    if metric.open_attributes:
        labels = [f"({label})" for label in labels] + ["… as given"]
    return ", ".join(labels + [f"(`{label}`)" for label in metric.optional_attributes])


# --- docs/settings.md -------------------------------------------------------------------------------------


def _settings() -> str:
    defaults = {field.name: field.default for field in fields(Settings)}
    lines = [
        "# Settings",
        "",
        _comment("otel_mlops/settings"),
        "",
        "An argument of `configure_telemetry` goes before the environment, and that before the default. An",
        "empty variable is as good as none. A value that is not accepted, an unknown argument and an unknown",
        "`OTEL_MLOPS_` variable are errors at start-up.",
        "",
        *_table(
            ("Argument", "Variable", "Accepts", "Default", "Meaning"),
            (
                (
                    f"`{row.field}`" if row.keyword else "",
                    _variables(row),
                    row.expected,
                    row.default or f"`{_default(defaults[row.field])}`",
                    row.meaning,
                )
                for row in SETTINGS
            ),
        ),
        "",
        "OTLP's headers, certificates and time limits come from OpenTelemetry's own variables, which its",
        "exporter reads: `OTEL_EXPORTER_OTLP_HEADERS` and the like. They are not kept here.",
    ]
    return "\n".join(lines) + "\n"


def _variables(row: Setting) -> str:
    names = [f"`{name}`" for name in row.variables]
    if row.resource_attribute:
        names.append(f"`{row.resource_attribute}` in `OTEL_RESOURCE_ATTRIBUTES`")
    return ", else ".join(names)


def _default(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


# --- How things are written -------------------------------------------------------------------------------


def _comment(origin: str) -> str:
    return f"<!-- {_RENDERED_FROM.format(origin)} -->"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _number(value: float) -> str:
    return repr(value).removesuffix(".0")


def _code_list(items: Iterable[str]) -> str:
    return ", ".join(f"`{item}`" for item in items)


def main(arguments: Sequence[str] | None = None) -> int:
    """Render, or with `--check` fail if something rendered is not what it should be."""
    parser = argparse.ArgumentParser(prog="otel_mlops.render", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale")
    check = parser.parse_args(arguments).check
    stale = render(check=check, root=CHECKOUT)
    for path in stale:
        print(f"{'stale' if check else 'wrote'}: {path}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
