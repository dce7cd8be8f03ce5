"""What Prometheus calls that which is pushed to it: the rules of its OTLP receiver, held against the page's names."""

from __future__ import annotations

import re

import pytest

from otel_mlops.metrics import CATALOGUE, page_name
from otel_mlops.metrics.row import Kind
from otel_mlops.sdk.text import labels

_UNITS = {
    "%": "percent", "1": "", "By": "bytes", "Cel": "celsius", "Hz": "hertz", "J": "joules", "MBy": "megabytes",
    "W": "watts", "m": "meters", "ms": "milliseconds", "s": "seconds",
}  # fmt: skip
_PER = {"s": "second"}


def name_by_otlp(name: str, kind: Kind, unit: str) -> str:
    """Return what an instrument is called that was pushed.

    Source: github.com/prometheus/otlptranslator v1.0.0, UnderscoreEscapingWithSuffixes, which is the default.

    >>> name_by_otlp("gpu.memory.used", "gauge", "By")
    'gpu_memory_used_bytes'
    """
    words = re.findall("[a-zA-Z0-9:]+", name)
    top, _, bottom = ("" if "{" in part else part for part in unit.partition("/"))
    main = re.sub("[^a-zA-Z0-9:]+", "_", _UNITS.get(top, top)).removeprefix("_")
    if main and main not in words:
        words.append(main)
    if bottom:
        words += ["per", _PER.get(bottom, bottom)]
    if kind == "counter":
        words = [word for word in words if word != "total"] + ["total"]
    elif unit == "1" and kind not in ("updown", "histogram"):  # an info and a state set are gauges there
        words = [word for word in words if word != "ratio"] + ["ratio"]
    joined = "_".join(words)
    return f"_{joined}" if joined[:1].isdigit() else joined


def label_by_otlp(key: str) -> str:
    """Return the label of an attribute that was pushed.

    >>> label_by_otlp("gen_ai.request.model"), label_by_otlp("9x"), label_by_otlp("_x")
    ('gen_ai_request_model', 'key_9x', 'key_x')
    """
    name = re.sub("[^a-zA-Z0-9_]", "_", key)
    if name[:1].isdigit():
        return f"key_{name}"
    return f"key{name}" if name.startswith("_") and not name.startswith("__") else name


def test_every_metric_of_the_catalogue_has_one_name():
    """What Prometheus calls a pushed metric of the catalogue is its name on the page."""
    differ = {row.page_name: name_by_otlp(row.name, row.kind, row.unit) for row in CATALOGUE}
    assert {page: pushed for page, pushed in differ.items() if page != pushed} == {}


def test_every_attribute_of_the_catalogue_has_one_label():
    """What Prometheus calls a pushed attribute of the catalogue is its label on the page."""
    keys = {key for row in CATALOGUE for key in (*row.attributes, *row.optional_attributes)}
    assert {key: label_by_otlp(key) for key in keys} == {key: next(iter(labels({key: "x"}))) for key in keys}


@pytest.mark.parametrize(
    ("name", "kind", "unit", "on_page", "pushed"),
    [
        ("cpu.share", "gauge", "1", "cpu_share", "cpu_share_ratio"),
        ("cache.ratio", "gauge", "1", "cache_ratio", "cache_ratio"),
        ("cpu.level", "updown", "1", "cpu_level", "cpu_level"),
        ("cpu.seen", "counter", "1", "cpu_seen_total", "cpu_seen_total"),
        ("bytes_sent", "gauge", "By", "bytes_sent_bytes", "bytes_sent"),
        ("request_seconds_max", "gauge", "s", "request_seconds_max_seconds", "request_seconds_max"),
        ("tokens_total_count", "counter", "", "tokens_total_count_total", "tokens_count_total"),
        ("ends_", "gauge", "", "ends_", "ends"),
        ("in.ms", "histogram", "ms", "in_ms_milliseconds", "in_ms_milliseconds"),
        ("double__under", "counter", "{row}", "double_under_total", "double_under_total"),
        ("traffic", "gauge", "By/s", "traffic_bytes_per_second", "traffic_bytes_per_second"),
        ("arrivals", "gauge", "{row}/s", "arrivals_per_second", "arrivals_per_second"),
    ],
)
def test_the_names_of_other_instruments_differ_by_known_rules(
    name: str, kind: Kind, unit: str, on_page: str, pushed: str
):
    """Names of instruments that are not the catalogue's differ where docs/otlp.md says so, and nowhere else."""
    assert (page_name(name, kind, unit), name_by_otlp(name, kind, unit)) == (on_page, pushed)
