"""Checking a page: it must pass prometheus_client's strict parser, the text parser and promtool."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.text import OPENMETRICS, TEXT

ALLOWED = frozenset({'active_connections_count non-histogram and non-summary metrics should not have "_count" suffix'})
"""What promtool may find on a page of ours: the one name that is fixed as it is."""

_OURS = "otel_mlops_"
"""What a page says of ourselves changes from page to page."""

Labels = frozenset[tuple[str, str]]


class Checked(NamedTuple):
    """A page that has passed, and what stands on it."""

    text: str
    openmetrics: str
    samples: dict[tuple[str, Labels], float]
    types: dict[str, str]
    """By the families' names in OpenMetrics."""

    def value(self, sample: str, **labels: str) -> float | None:
        """The value of a sample with exactly these labels; None if it is not there."""
        return self.samples.get((sample, frozenset(labels.items())))

    def of(self, sample: str) -> dict[Labels, float]:
        """Every series of a sample's name."""
        return {labels: value for (name, labels), value in self.samples.items() if name == sample}

    def names(self) -> set[str]:
        """The families, those about ourselves and the target aside."""
        return {name for name in self.types if not name.startswith("otel_mlops") and name != "target"}


def check_page(reader: PageReader, *, lint: bool = False, findings: Iterable[str] = ALLOWED) -> Checked:
    """Make a page in both formats and hold it against the parsers; with `lint`, against promtool too."""
    text = reader.page()
    openmetrics = reader.page("application/openmetrics-text")
    assert (text.content_type, openmetrics.content_type) == (TEXT, OPENMETRICS)
    checked = check_text(text.body.decode(), openmetrics.body.decode())
    if lint:
        check_lint(checked.text, findings)
    return checked


def check_text(text: str, openmetrics: str) -> Checked:
    """Parse both formats of a page and compare them."""
    for page in (text, openmetrics):
        _check_lines(page)
    samples = _samples(text_string_to_metric_families(text))
    families = list(openmetrics_parser.text_string_to_metric_families(openmetrics))
    strict = _samples(families)
    signed = {f.name for f in families if f.type == "histogram" and f"{f.name}_sum" not in {s.name for s in f.samples}}
    for key, value in samples.items():
        name = key[0]
        if name.startswith(_OURS) or name.removesuffix("_sum").removesuffix("_count") in signed:
            continue
        assert strict.get(key) == value or math.isnan(value), f"{key} is {value} in text and not in OpenMetrics"
    missing = {key for key in strict if key not in samples and not key[0].startswith(_OURS)}
    assert not missing, f"only in OpenMetrics: {missing}"
    return Checked(text, openmetrics, samples, {family.name: family.type for family in families})


def check_lint(text: str, findings: Iterable[str] = ALLOWED) -> None:
    """Let promtool read a page; skips where it is missing."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: run make servers")
    ran = subprocess.run([promtool, "check", "metrics"], input=text.encode(), capture_output=True, check=False)
    said = {line for line in (ran.stderr + ran.stdout).decode().splitlines() if line.strip()}
    assert said <= set(findings), f"promtool: {said}"
    assert ran.returncode in (0, 3), ran.returncode


def _check_lines(page: str) -> None:
    """No series twice, no metadata twice, every line ended; the parsers overlook some of it."""
    assert page == "" or page.endswith("\n")
    lines = page.split("\n")[:-1]
    assert all(lines), "a blank line"
    twice = [key for key, count in Counter(map(_key, lines)).items() if count > 1]
    assert not twice, f"more than once: {twice}"


def _key(line: str) -> str:
    if line.startswith("#"):
        return " ".join(line.split(" ", 3)[:3])
    line = re.sub(r" # \{.*$", "", line)
    return line.rpartition(" ")[0]


def _samples(families: Iterable[object]) -> dict[tuple[str, Labels], float]:
    found: dict[tuple[str, Labels], float] = {}
    for family in families:
        for sample in family.samples:
            found[sample.name, _labels(sample.name, sample.labels)] = sample.value
    return found


def _labels(sample: str, labels: Mapping[str, str]) -> Labels:
    # An empty label is none to Prometheus; bounds are compared as the numbers they are.
    bound = "le" if sample.endswith("_bucket") else None
    return frozenset((name, str(float(value)) if name == bound else value) for name, value in labels.items() if value)
