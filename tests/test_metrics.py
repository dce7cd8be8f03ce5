"""The rows of the catalogue: each holds to the rules, all together are what the specification asks for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.exporter.prometheus._mapping import map_unit, sanitize_attribute, sanitize_full_name
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from otel_mlops import metrics
from otel_mlops.metrics import CATALOGUE, DOMAINS, Metric, page_family, page_name, page_unit

REQUIRED = Path(__file__).parent / "required_metrics.md"
UNITS = {"", "s", "By", "%", "Cel", "W", "J", "Hz", "1"}
ACROSS_IN_WORDS = {"min over the living": "min", "sum over the living": "living"}
KINDS_IN_WORDS = {"up-down": "updown", "state set": "stateset"}
SUFFIXES = {
    "counter": ("_total", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "info": ("_info",),
}


def every_row(check: Callable[[Metric], None]) -> Callable[[], None]:
    """Have a test look at each row, and name those of which its fact does not hold."""

    @wraps(check)
    def look() -> None:
        broken = []
        for row in CATALOGUE:
            try:
                check(row)
            except AssertionError as error:
                broken.append(f"{row.page_name}: {error}")
        assert not broken, "\n".join(broken)

    del look.__wrapped__  # else pytest asks for the row
    return look


# --- Each row ----------------------------------------------------------------------------------------------


def is_of_a_convention(row: Metric) -> bool:
    """Whether the names are those of the semantic conventions for generative AI."""
    return row.name.startswith("gen_ai.")


@every_row
def test_the_name_is_lower_case_dotted_and_carries_neither_unit_nor_total(row: Metric):
    """A row's name is words with dots between; its unit, and `total` on a counter, come with the page."""
    plain = row.name.replace("gen_ai.", "").replace("_", "") if is_of_a_convention(row) else row.name
    assert re.fullmatch(r"(otel_mlops\.)?[a-z][a-z0-9]*(\.[a-z0-9]+)*", plain)
    last = row.name.rpartition(".")[2]
    assert last != page_unit(row.unit) or not row.unit
    assert last not in {"seconds", "bytes", "percent", "celsius", "watts", "joules", "milliseconds"}
    assert not (row.kind == "counter" and last == "total")


@every_row
def test_the_constant_is_named_like_the_metric(row: Metric):
    """A row is found under its own name in capitals, or that without its last word."""
    (constant,) = [name for name, value in vars(metrics).items() if value is row]
    words = row.name.removeprefix("otel_mlops.").upper().replace("_", ".").split(".")
    assert constant in {"_".join(words), "_".join(words[:-1])}


@every_row
def test_the_unit_is_a_base_unit(row: Metric):
    """Units are base units or counts of something; `1` is for what its name calls a ratio."""
    assert row.unit in UNITS or re.fullmatch(r"\{[a-z]+\}", row.unit)
    assert (row.unit == "1") == row.name.endswith("ratio")


@every_row
def test_help_and_note_are_sentences(row: Metric):
    """Help is one sentence, a note some; both end with a full stop and do not repeat the other."""
    assert row.help[0].isupper() or row.help[0].isdigit()
    assert re.fullmatch(r"[^.\n]+\.", row.help)
    assert not row.note or (row.note.endswith(".") and "\n" not in row.note)


@every_row
def test_gauges_of_nought_and_one_say_what_they_mean(row: Metric):
    """A flag says in its help what 1 and 0 stand for."""
    if row.name.endswith((".status", ".up")):
        assert "1 " in row.help
        assert "0 " in row.help


@every_row
def test_labels_are_plain(row: Metric):
    """Label names are snake_case, stay themselves on the page, and are none of Prometheus' own."""
    for label in row.attributes + row.optional_attributes:
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", label) or is_of_a_convention(row)
        assert sanitize_attribute(label) == label or is_of_a_convention(row)
        assert label not in {"le", "quantile", "job", "instance"}
        # Where each worker is shown by itself the page adds it; of what the leader reads it is a label like others.
        assert label != "worker" or row.across == "once"


@every_row
def test_a_model_object_may_add_its_name(row: Metric):
    """Rows with model_version can carry model_name as well, and no other rows can."""
    labels = row.attributes + row.optional_attributes
    assert ("model_version" in labels) == ("model_name" in labels)


@every_row
def test_closed_values_are_distinct_words(row: Metric):
    """Where the values of a label are closed, they are short words, each once."""
    for values in row.values.values():
        assert len(values) == len(set(values)) > 1
        assert all(re.fullmatch(r"[A-Z]+|_?[a-zA-Z_]+", value) for value in values)


@every_row
def test_buckets_are_floats_that_read_the_same_everywhere(row: Metric):
    """Bounds are floats whose text has no exponent, so that `le` is the same on every page."""
    for bound in row.buckets:
        assert type(bound) is float
        assert "e" not in repr(bound)
    assert len(row.buckets) <= 20


@every_row
def test_a_row_is_hashable_and_can_be_varied(row: Metric):
    """Rows serve as keys, and a varied row is another one."""
    assert {row: 1}[dataclasses.replace(row)] == 1
    assert dataclasses.replace(row, help="Another.") != row


# --- The page's names, against the stock exporter ----------------------------------------------------------


def stock_name(name: str, kind: str, unit: str) -> str:
    """What the stock exporter and prometheus_client make of an instrument."""
    if kind == "counter":
        return CounterMetricFamily(sanitize_full_name(name), "", value=1, unit=map_unit(unit)).samples[0].name
    return GaugeMetricFamily(sanitize_full_name(name), "", value=1, unit=map_unit(unit)).name


@every_row
def test_the_page_name_is_the_stock_exporters(row: Metric):
    """Each row stands on our page under the name that the stock exporter would give it."""
    assert row.page_name == stock_name(row.name, row.kind, row.unit)


NAMES = st.from_regex(r"[a-zA-Z][-_./a-zA-Z0-9]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12)
PARTS = st.sampled_from(["s", "ms", "By", "1", "%", "{x}", "m", "d", "w", "mo", "kHz", "", "_", "°C", "/", "Cel"])


@given(st.one_of(TEXTS, st.lists(PARTS, max_size=4).map("".join), st.lists(PARTS, max_size=3).map("/".join)))
@example("{a}s{b}")
@example("By/s")
@example("/s")
@example("s/")
@example("1/s")
def test_every_unit_is_mapped_as_the_stock_exporter_does(unit: str):
    """Our copy of the exporter's mapping of units says the same for whatever an instrument may have."""
    assert page_unit(unit) == map_unit(unit)


@given(NAMES, st.sampled_from(["counter", "gauge", "updown", "histogram"]), PARTS)
@example("9lives", "gauge", "s")
@example("requests_total", "counter", "s")
@example("request.seconds", "histogram", "s")
@example("a__b..c", "gauge", "")
def test_every_name_is_made_as_the_stock_exporter_does(name: str, kind: Any, unit: str):
    """Our names of other people's instruments are the stock exporter's too."""
    assert page_name(name, kind, unit) == stock_name(name, kind, unit)


@given(NAMES, st.sampled_from(["counter", "gauge", "info", "histogram", "stateset"]), PARTS)
def test_a_family_is_the_page_name_without_its_suffix(name: str, kind: Any, unit: str):
    """The family and the name on the page differ by `_total` or `_info` at most."""
    suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
    assert page_name(name, kind, unit) == page_family(name, kind, unit) + suffix


def test_the_stock_oracle_tells_names_apart():
    """The oracle of these tests is the installed exporter, which adds units and `_total`."""
    assert stock_name("gpu.memory.used", "gauge", "By") == "gpu_memory_used_bytes"
    assert stock_name("errors", "counter", "{error}") == "errors_total"
    assert prometheus_client.Counter("errors", "Errors.", registry=None)._name == "errors"


# --- The catalogue -----------------------------------------------------------------------------------------


def test_every_row_of_the_module_is_in_the_catalogue_once():
    """A constant that is left out of its domain would be silent: there is none, and none is there twice."""
    constants = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert sorted(row.name for row in constants) == sorted(row.name for row in CATALOGUE)
    assert sum(map(len, DOMAINS.values())) == len(CATALOGUE)


def test_no_two_rows_share_a_name_on_the_page():
    """Families and all the sample names they make are apart, `_created` and buckets included."""
    samples: dict[str, str] = {}
    for row in CATALOGUE:
        for name in {row.family, *(row.family + suffix for suffix in SUFFIXES.get(row.kind, ()))}:
            assert samples.setdefault(name, row.name) == row.name, name


def test_a_label_has_the_same_values_wherever_it_is_closed():
    """A label that two rows close has one list: a query may join them, though not with rows about ourselves."""
    lists: dict[str, tuple[str, ...]] = {}
    for row in CATALOGUE:
        if row.name.startswith("otel_mlops."):
            continue
        for label, values in row.values.items():
            if label in ("result", "reason"):
                continue  # of a task, a lookup, a truth, a GPU: nobody joins those
            assert lists.setdefault(label, values) == values, label


def test_methods_are_the_known_ones_of_the_semantic_conventions(monkeypatch: pytest.MonkeyPatch):
    """A method counts under its own name exactly where OpenTelemetry's instrumentation lets it."""
    from opentelemetry.util.http import sanitize_method

    assert metrics.METHODS[-1] == "_OTHER"
    assert all(sanitize_method(method) == method for method in metrics.METHODS[:-1])
    assert {sanitize_method(method) for method in ("PROPFIND", "get me", "PURGE")} == {"_OTHER"}


def test_prediction_values_below_nought_have_buckets():
    """The one signed row has bounds on both sides of 0, and all others begin at 0 or above."""
    signed = [row for row in CATALOGUE if row.signed]
    assert signed == [metrics.PREDICTION_VALUES]
    assert signed[0].buckets[0] < 0.0 < signed[0].buckets[-1]
    assert 0.0 in signed[0].buckets


def test_the_states_of_a_model_come_from_the_worst():
    """The order of a state set's values is its order of precedence among workers."""
    assert metrics.MODEL_STATUS.states == ("error", "unavailable", "loading", "ready")
    assert metrics.API_HEALTH_STATUS.states == ()


# --- What the specification asks for -----------------------------------------------------------------------


def required_rows() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Name, kind, labels and how workers combine, as the table of the specification has them."""
    rows = []
    for line in REQUIRED.read_text(encoding="utf-8").splitlines()[2:]:
        names, told, listed, across = (cell.strip() for cell in line.strip("|").split("|"))
        kind = re.split(r"[,:;(]| of ", told)[0].strip()
        labels = re.findall(r"\b[a-z_]+(?=,|$)", re.sub(r" *\([^)]*\)|, … as given", "", listed))
        combined = re.sub(r"the worst of the living:.*", "worst", across)
        row = KINDS_IN_WORDS.get(kind, kind), tuple(labels), ACROSS_IN_WORDS.get(combined, combined)
        rows += [(name, *row) for name in names.split(", ")]
    return rows


def test_the_table_of_the_specification_is_read_whole():
    """The parsing finds every row: 33 names, and labels in all but those of the machine as a whole."""
    rows = required_rows()
    assert len(rows) == 33
    assert {kind for _, kind, _, _ in rows} == {"counter", "histogram", "gauge", "info", "stateset", "updown"}
    assert {across for *_, across in rows} == {"sum", "latest", "worst", "once", "min", "living"}
    bare = {name for name, _, labels, _ in rows if not labels}
    assert bare == {
        "system_cpu_usage_percent",
        "system_memory_usage_bytes",
        "system_memory_total_bytes",
        "active_connections_count",
    }


@pytest.mark.parametrize(("name", "kind", "labels", "across"), required_rows(), ids=str)
def test_the_specification_is_met(name: str, kind: str, labels: tuple[str, ...], across: str):
    """Each metric that the specification requires is in the catalogue: name, kind, labels, and across."""
    (row,) = [row for row in CATALOGUE if row.page_name == name]
    assert (row.kind, row.attributes, row.across) == (kind, labels, across)


# --- Rows that are refused ---------------------------------------------------------------------------------

GAUGE = {"name": "x.level", "kind": "gauge", "unit": "", "help": "Level.", "across": "latest"}
HISTOGRAM = {"name": "x.wait", "kind": "histogram", "unit": "s", "help": "Wait.", "buckets": (0.1, 1.0)}
STATES = {"name": "x.state", "kind": "stateset", "unit": "", "help": "State.", "across": "worst"}

REFUSED = [
    (GAUGE | {"name": "9lives"}, ValueError, "name"),
    (GAUGE | {"name": ""}, ValueError, "name"),
    (GAUGE | {"kind": "guage"}, ValueError, "kind is 'guage', expected one of counter, updown"),
    (GAUGE | {"across": "sum"}, ValueError, "across is 'sum', expected one of latest"),
    (HISTOGRAM | {"across": "latest"}, ValueError, "across"),
    (GAUGE | {"unit": "°C"}, ValueError, "unit is '°C'"),
    (GAUGE | {"kind": "info", "name": "x.info", "unit": "s"}, ValueError, "unit"),
    (GAUGE | {"kind": "info"}, ValueError, "ends in .info"),
    (GAUGE | {"attributes": "level"}, TypeError, "attributes must be a tuple"),
    (GAUGE | {"attributes": ("a", "a")}, ValueError, "each name once"),
    (GAUGE | {"attributes": ("a",), "optional_attributes": ("a",)}, ValueError, "each name once"),
    (GAUGE | {"attributes": ("le",)}, ValueError, "reserved"),
    (GAUGE | {"attributes": ("quantile",)}, ValueError, "reserved"),
    (GAUGE | {"values": {"colour": ("red",)}}, ValueError, "values"),
    (GAUGE | {"buckets": (1.0,)}, ValueError, "buckets"),
    (GAUGE | {"signed": True}, ValueError, "signed"),
    (HISTOGRAM | {"buckets": ()}, ValueError, "buckets"),
    (HISTOGRAM | {"buckets": (0.1, 1)}, ValueError, "finite floats"),
    (HISTOGRAM | {"buckets": (0.1, True)}, ValueError, "finite floats"),
    (HISTOGRAM | {"buckets": (0.1, float("inf"))}, ValueError, "finite floats"),
    (HISTOGRAM | {"buckets": (0.1, float("nan"))}, ValueError, "finite floats"),
    (HISTOGRAM | {"buckets": (1.0, 0.1)}, ValueError, "ascending"),
    (HISTOGRAM | {"buckets": (1.0, 1.0)}, ValueError, "ascending"),
    (HISTOGRAM | {"buckets": (-1.0, 1.0)}, ValueError, "unless signed"),
    (STATES, ValueError, "the states, under 'x_state'"),
    (STATES | {"attributes": ("x_state",), "values": {"x_state": ()}}, ValueError, "the states"),
]


@pytest.mark.parametrize(("row", "error", "said"), REFUSED)
def test_a_row_that_cannot_be_meant_is_refused(row: dict[str, Any], error: type[Exception], said: str):
    """A wrong row is an error where it is written, which names the metric and the field."""
    with pytest.raises(error, match=re.escape(said)) as raised:
        Metric(**row)
    assert repr(row["name"]) in str(raised.value)


@pytest.mark.parametrize("row", [GAUGE, HISTOGRAM, HISTOGRAM | {"buckets": (-1.0, 0.0), "signed": True}])
def test_a_row_that_is_meant_is_accepted(row: dict[str, Any]):
    """The rows from which the wrong ones are made are right themselves."""
    assert Metric(**row).name == row["name"]
