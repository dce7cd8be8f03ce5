"""The dashboards as files: what Grafana needs of them, the rules of Grafana's own linter, and that metrics are ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from itertools import combinations
from typing import Any

import promql_parser as promql
import pytest

from otel_mlops.dashboards import DASHBOARDS, LEFT_OUT, files
from otel_mlops.dashboards.panels import Dashboard, Panel, Query, Row
from otel_mlops.metrics import CATALOGUE, Metric
from tests import grafana
from tests.promql import nodes, selectors_of

Json = dict[str, Any]
Rule = Callable[[Json], Iterator[str]]

PANEL_TYPES = {"timeseries", "stat", "bargauge", "table"}
"""Those of Grafana 11 and newer that can be drawn with its UI library, too."""
UNITS = {
    "none", "short", "percent", "percentunit", "bytes", "Bps", "s", "dtdurations", "dateTimeFromNow",
    "celsius", "watt", "kwatth", "joule", "ops", "reqps",
}  # fmt: skip
"""Those of Grafana's list that are used: https://grafana.com/docs/grafana/latest/panels-visualizations/ has all."""
OWN_UNIT = re.compile(r"suffix:[a-z]*/s")
"""Grafana's way of saying what is counted in a second."""
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
CHOSEN = {
    "job": "chosen-job", "instance": "chosen-instance", "model_name": "chosen-name", "model_version": "chosen-version",
    "__rate_interval": "61s", "__range": "3601s",
}  # fmt: skip
"""The variables' values by which a query is recognised once it is parsed."""
RATE_INTERVAL, RANGE, DAY = timedelta(seconds=61), timedelta(seconds=3601), timedelta(days=1)
GROWTH = {"rate", "irate", "increase"}
TODAY = "daily_predictions_total"

ROWS: Mapping[str, Metric] = {metric.page_name: metric for metric in CATALOGUE}
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


@pytest.fixture(params=grafana.FILES)
def dashboard(request: pytest.FixtureRequest) -> Json:
    """Each of the dashboards."""
    return grafana.dashboard(request.param)


# --- What a query says ----------------------------------------------------------------------------------------


def parsed(query: str) -> promql.Expr:
    """The tree of a query with the variables chosen."""
    return promql.parse(grafana.interpolated(query, CHOSEN))


def selectors(query: str) -> Iterator[tuple[Any, tuple[promql.Expr, ...]]]:
    """Each selector of a query with what lies above it."""
    return selectors_of(grafana.interpolated(query, CHOSEN))


def matchers(selector: Any) -> dict[str, tuple[Any, str]]:
    """What a selector asks of each label."""
    return {matcher.name: (matcher.op, matcher.value) for matcher in selector.matchers.matchers}


def names(selector: Any) -> list[str]:
    """The metrics that a selector finds: one, or those of an alternative on the name."""
    return [selector.name] if selector.name else matchers(selector)["__name__"][1].split("|")


def row_of(name: str) -> Metric | None:
    """The metric whose series a name on the page is."""
    for part in HISTOGRAM_PARTS:
        row = ROWS.get(name.removesuffix(part))
        if row is not None and name.endswith(part) and row.kind == "histogram":
            return row
    row = ROWS.get(name)
    return row if row is None or row.kind != "histogram" else None


def labels_of(name: str) -> set[str]:
    """The labels that series of a name can have in Prometheus."""
    row = row_of(name)
    assert row is not None, name
    labels = {label.replace(".", "_") for label in row.attributes + row.optional_attributes} | {"job", "instance"}
    if row.across == "worker":
        labels.add("worker")
    if name.endswith("_bucket"):
        labels.add("le")
    return labels


def targets(dashboard: Json) -> Iterator[tuple[Json, Json]]:
    """Each query with its panel."""
    return ((panel, target) for panel in grafana.panels(dashboard) for target in panel["targets"])


# --- The rules of Grafana's linter, by their names there -------------------------------------------------------


def template_datasource_rule(dashboard: Json) -> Iterator[str]:
    """One variable is the data source, of Prometheus' kind, called `datasource` and labelled `Data source`."""
    found = [each for each in dashboard["templating"]["list"] if each["type"] == "datasource"]
    said = [(each["name"], each["label"], each["query"]) for each in found]
    if said != [("datasource", "Data source", "prometheus")]:
        yield f"the data sources are {said}"


def template_label_rule(name: str, label: str) -> Rule:
    """A label's variable is a query of the chosen source for several values, `.+` for all of them."""

    def rule(dashboard: Json) -> Iterator[str]:
        variable = grafana.variables(dashboard).get(name)
        if variable is None:
            yield f"there is no variable {name}"
            return
        wanted = {"label": label, "datasource": SOURCE, "multi": True, "includeAll": True, "allValue": ".+"}
        yield from (f"{name}: {title} is {variable[title]!r}" for title in wanted if variable[title] != wanted[title])

    return rule


def template_label_promql_rule(dashboard: Json) -> Iterator[str]:
    """A variable's query is `label_values` of a selector and a label."""
    for name, variable in grafana.variables(dashboard).items():
        query = variable["query"]["query"]
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        if not found or variable["definition"] != query:
            yield f"{name}: {query}"
        elif not isinstance(parsed(found[1]), promql.VectorSelector):
            yield f"{name}: {found[1]} is no selector"


def template_on_time_change_reload_rule(dashboard: Json) -> Iterator[str]:
    """The choices are asked for again when the time range changes."""
    for name, variable in grafana.variables(dashboard).items():
        if variable["refresh"] != 2:
            yield f"{name}: refresh is {variable['refresh']}"


def panel_datasource_rule(dashboard: Json) -> Iterator[str]:
    """Each panel and query asks the chosen source."""
    for panel in grafana.panels(dashboard):
        for each in (panel, *panel["targets"]):
            if each["datasource"] != SOURCE:
                yield f"{panel['title']}: {each['datasource']}"


def panel_title_description_rule(dashboard: Json) -> Iterator[str]:
    """Each panel has a title and a description that ends as a sentence does."""
    for panel in grafana.panels(dashboard):
        if not panel["title"] or not panel["description"].endswith("."):
            yield f"{panel['id']}: {panel['title']!r}, {panel['description']!r}"


def panel_units_rule(dashboard: Json) -> Iterator[str]:
    """Each panel, and each column that has its own, has a unit of Grafana's."""
    for panel in grafana.panels(dashboard):
        config = panel["fieldConfig"]
        own = [each["value"] for of in config["overrides"] for each in of["properties"] if each["id"] == "unit"]
        found = {config["defaults"].get("unit"), *own}
        if unknown := {unit for unit in found - UNITS if not OWN_UNIT.fullmatch(unit or "")}:
            yield f"{panel['title']}: {unknown}"


def panel_no_targets_rule(dashboard: Json) -> Iterator[str]:
    """Each panel asks something."""
    yield from (panel["title"] for panel in grafana.panels(dashboard) if not panel["targets"])


def target_promql_rule(dashboard: Json) -> Iterator[str]:
    """Each query can be parsed."""
    for panel, target in targets(dashboard):
        try:
            parsed(target["expr"])
        except ValueError as error:
            yield f"{panel['title']}: {error}: {target['expr']}"


def target_rate_interval_rule(dashboard: Json) -> Iterator[str]:
    """What grows is looked at over `$__rate_interval`; over the time shown, or a day, where the panel says so."""
    for panel, target in targets(dashboard):
        for node, above in nodes(parsed(target["expr"])):
            if isinstance(node, promql.MatrixSelector) and above[-1].func.name in GROWTH:
                by_moment = node.range == RANGE and target["instant"] and above[-1].func.name == "increase"
                by_day = node.range == DAY and panel.get("interval") == "1d"
                if node.range != RATE_INTERVAL and not by_moment and not by_day:
                    yield f"{panel['title']}: {node.range}: {target['expr']}"


def target_matcher_rule(label: str) -> Rule:
    """Each selector leaves what is not chosen out."""

    def rule(dashboard: Json) -> Iterator[str]:
        for panel, target in targets(dashboard):
            for selector, _ in selectors(target["expr"]):
                if matchers(selector).get(label) != (promql.MatchOp.Re, CHOSEN[label]):
                    yield f"{panel['title']}: {selector.prettify()}"

    return rule


def target_counter_agg_rule(dashboard: Json) -> Iterator[str]:
    """A counter is only looked at by what it grows; today's predictions are today's number."""
    for panel, target in targets(dashboard):
        for selector, above in selectors(target["expr"]):
            grows = len(above) > 1 and isinstance(above[-2], promql.Call) and above[-2].func.name in GROWTH
            if selector.name.endswith("_total") and selector.name != TODAY and not grows:
                yield f"{panel['title']}: {selector.prettify()}"


def target_histogram_rule(dashboard: Json) -> Iterator[str]:
    """A bucket is only looked at for a quantile, and added up by its bound."""
    for panel, target in targets(dashboard):
        for selector, above in selectors(target["expr"]):
            if selector.name.endswith("_bucket"):
                calls = [node.func.name for node in above if isinstance(node, promql.Call)]
                by = [node.modifier.labels for node in above if isinstance(node, promql.AggregateExpr)]
                if "histogram_quantile" not in calls or not all("le" in labels for labels in by):
                    yield f"{panel['title']}: {selector.prettify()}"


RULES: Mapping[str, Rule] = {
    "template-datasource-rule": template_datasource_rule,
    "template-job-rule": template_label_rule("job", "Job"),
    "template-instance-rule": template_label_rule("instance", "Instance"),
    "template-label-promql-rule": template_label_promql_rule,
    "template-on-time-change-reload-rule": template_on_time_change_reload_rule,
    "panel-datasource-rule": panel_datasource_rule,
    "panel-title-description-rule": panel_title_description_rule,
    "panel-units-rule": panel_units_rule,
    "panel-no-targets-rule": panel_no_targets_rule,
    "target-promql-rule": target_promql_rule,
    "target-rate-interval-rule": target_rate_interval_rule,
    "target-job-rule": target_matcher_rule("job"),
    "target-instance-rule": target_matcher_rule("instance"),
    "target-counter-agg-rule": target_counter_agg_rule,
    "target-histogram-rule": target_histogram_rule,
}
"""Written from the descriptions in grafana/dashboard-linter. Not here: template-uneditable-rule, as whoever looks at a
dashboard may try a change, which lasts until the file is loaded again; and the rules of Loki, which is not asked."""


def _first(dashboard: Json) -> Json:
    return next(grafana.panels(dashboard))


def _asks(expression: str) -> Callable[[Json], None]:
    return lambda of: _first(of)["targets"][0].update(expr=expression)


DAMAGE: Mapping[str, Callable[[Json], None]] = {
    "template-datasource-rule": lambda of: of["templating"]["list"][0].update(name="source"),
    "template-job-rule": lambda of: grafana.variables(of)["job"].update(allValue=".*"),
    "template-instance-rule": lambda of: grafana.variables(of)["instance"].update(name="pod"),
    "template-label-promql-rule": lambda of: grafana.variables(of)["job"]["query"].update(query="label_values(job)"),
    "template-on-time-change-reload-rule": lambda of: grafana.variables(of)["job"].update(refresh=1),
    "panel-datasource-rule": lambda of: _first(of)["targets"][0].update(datasource={"uid": "prometheus"}),
    "panel-title-description-rule": lambda of: _first(of).update(description=""),
    "panel-units-rule": lambda of: _first(of)["fieldConfig"]["defaults"].update(unit="seconds"),
    "panel-no-targets-rule": lambda of: _first(of).update(targets=[]),
    "target-promql-rule": _asks('sum (errors_total{job=~"$job"}'),
    "target-rate-interval-rule": _asks("rate(errors_total[5m])"),
    "target-job-rule": _asks('api_health_status{job="$job", instance=~"$instance"}'),
    "target-instance-rule": _asks('api_health_status{job=~"$job"} + api_health_status{instance=~"$instance"}'),
    "target-counter-agg-rule": _asks("sum(errors_total) / max_over_time(errors_total[$__range])"),
    "target-histogram-rule": _asks('rate(api_request_duration_seconds_bucket{le="0.5"}[$__rate_interval])'),
}
"""By rule what breaks it."""


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_of_grafanas_linter_holds(dashboard: Json, rule: str) -> None:
    """No dashboard has what the linter would complain about."""
    assert list(RULES[rule](dashboard)) == []


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_finds_what_it_is_for(rule: str) -> None:
    """A dashboard that breaks a rule is found by it."""
    broken = grafana.dashboard("api")
    DAMAGE[rule](broken)
    assert list(RULES[rule](broken))


# --- The shape that Grafana needs -----------------------------------------------------------------------------


def test_the_files_are_those_that_are_tested() -> None:
    """There are four dashboards, and their files are what the panels as data are in Grafana's words."""
    written = {path.stem: path.read_text(encoding="utf-8") for path in grafana.FOLDER.glob("*.json")}
    assert written == {name.removesuffix(".json"): text for name, text in files()}
    assert sorted(written) == sorted(grafana.FILES)
    assert len(DASHBOARDS) == len({each.uid for each in DASHBOARDS}) == len({each.title for each in DASHBOARDS}) == 4


def test_a_dashboard_is_current_and_can_be_found_again(dashboard: Json) -> None:
    """It has a uid of its own, no database id, a schema of Grafana 11 or newer, and it is drawn anew by itself."""
    assert re.fullmatch(r"otel-mlops-\w+", dashboard["uid"])
    assert "id" not in dashboard
    assert dashboard["schemaVersion"] >= 39
    assert dashboard["editable"]
    assert dashboard["refresh"]
    assert dashboard["timezone"] == ("utc" if dashboard["title"] == "Business" else "browser")


def test_the_dashboards_lead_to_one_another(dashboard: Json) -> None:
    """The link finds all four by their tag and keeps the time and the variables, which are the same on each."""
    (link,) = dashboard["links"]
    assert link["type"] == "dashboards"
    assert link["keepTime"]
    assert link["includeVars"]
    assert link["tags"] == dashboard["tags"] == ["otel-mlops"]
    assert dashboard["templating"] == grafana.dashboard("api")["templating"]


def test_ids_and_letters_are_unique(dashboard: Json) -> None:
    """No two panels or rows share an id, nor two queries of a panel their letter."""
    ids = [each["id"] for each in grafana.everything(dashboard)]
    assert ids == list(range(1, len(ids) + 1))
    for panel in grafana.panels(dashboard):
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters))


def overlap(one: Json, other: Json) -> bool:
    """Whether two places share a cell."""
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def test_no_panel_lies_on_another(dashboard: Json) -> None:
    """All lie within 24 columns, beside or below one another; so do the panels of a row that is opened."""
    groups = [dashboard["panels"], *(each["panels"] for each in dashboard["panels"] if each["type"] == "row")]
    for group in groups:
        places = [each["gridPos"] for each in group]
        assert all(place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS for place in places)
        assert not [pair for pair in combinations(places, 2) if overlap(*pair)]
    for row in dashboard["panels"]:
        assert all(each["gridPos"]["y"] > row["gridPos"]["y"] for each in row.get("panels", ()))


def test_the_lines_of_panels_are_full(dashboard: Json) -> None:
    """Each line of panels takes the whole width, so that nothing is left out by mistake."""
    for group in (dashboard["panels"], *(each.get("panels", ()) for each in dashboard["panels"])):
        widths: dict[int, int] = {}
        for each in group:
            place = each["gridPos"]
            widths[place["y"]] = widths.get(place["y"], 0) + place["w"]
        assert set(widths.values()) <= {COLUMNS}


def test_panels_are_of_current_kinds_and_say_why_they_are_empty(dashboard: Json) -> None:
    """No panel needs Angular, each has words for no series and for NaN."""
    for panel in grafana.panels(dashboard):
        assert panel["type"] in PANEL_TYPES
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["noValue"]
        words = [each["options"].get("match") for each in defaults["mappings"] if each["type"] == "special"]
        assert words == (["nan", "null"] if panel["type"] in ("stat", "bargauge") else ["nan"])
        special = [each["options"]["result"] for each in defaults["mappings"] if each["type"] == "special"]
        assert {each["color"] for each in special} <= {"text", "transparent"}  # what is absent is neither good nor bad
        steps = [step["value"] for step in defaults["thresholds"]["steps"]]
        assert steps[0] is None
        assert steps[1:] == sorted(steps[1:])


def test_bars_begin_at_zero_and_say_their_value_by_their_length(dashboard: Json) -> None:
    """The smallest bar, or a single one, is not empty, and a whole one is not painted with the colours below it."""
    for panel in grafana.panels(dashboard):
        if panel["type"] == "bargauge":
            assert panel["fieldConfig"]["defaults"]["min"] == 0, panel["title"]
            assert panel["options"]["displayMode"] == "basic"


def test_only_parts_of_a_whole_are_areas(dashboard: Json) -> None:
    """Lines that cross have no area below them; limits and bounds are dashed where a panel has them with a value."""
    for panel in grafana.panels(dashboard):
        if panel["type"] == "timeseries":
            drawing = panel["fieldConfig"]["defaults"]["custom"]
            is_whole = drawing["stacking"]["mode"] == "normal" or drawing["drawStyle"] == "bars"
            assert bool(drawing["fillOpacity"]) == is_whole, panel["title"]
            dashed = {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]}
            limits = {
                target["refId"]
                for target in panel["targets"]
                if re.search(r"limit$|total$|{{bound}}$", target["legendFormat"])
            }
            assert limits == set() or limits <= dashed or len(limits) == len(panel["targets"]), panel["title"]


def test_whole_numbers_are_drawn_as_such(dashboard: Json) -> None:
    """Where the values have no fractions the axis has none, and a line at 0 is not drawn from 0 to 100."""
    for panel in grafana.panels(dashboard):
        defaults = panel["fieldConfig"]["defaults"]
        if panel["type"] == "timeseries" and defaults["mappings"][1:]:
            assert defaults["decimals"] == 0, panel["title"]
        if panel["type"] == "timeseries" and defaults.get("decimals") == 0 and "max" not in defaults:
            assert defaults["custom"]["axisSoftMax"] == 1, panel["title"]


def test_what_is_read_each_minute_is_not_drawn_between_two_readings(dashboard: Json) -> None:
    """A rate of a counter that the driver is asked for each 60 s has steps of two minutes or more."""
    slow = re.compile(r"(?:rate|increase)\((?:gpu_throttle|gpu_nvlink_io|gpu_ecc_errors|gpu_pcie_replays)\w*{")
    for panel, target in targets(dashboard):
        if slow.search(target["expr"]):
            assert panel["interval"] == "2m", panel["title"]


def test_what_was_called_in_the_night_looks_at_is_at_the_top(dashboard: Json) -> None:
    """The first line is of single numbers, above any row; what is rarely needed lies in rows that are closed."""
    first_row = next(number for number, each in enumerate(dashboard["panels"]) if each["type"] == "row")
    assert first_row >= 6
    assert {each["type"] for each in dashboard["panels"][:first_row]} == {"stat"}
    assert any(each.get("collapsed") for each in dashboard["panels"])


def test_numbers_of_a_moment_are_asked_for_as_such(dashboard: Json) -> None:
    """A graph asks for a range, with exemplars where it is of buckets; all else for now, not the last of a range."""
    for panel, target in targets(dashboard):
        over_time = panel["type"] == "timeseries"
        assert (target["range"], target["instant"]) == (over_time, not over_time)
        assert target["exemplar"] == (over_time and "_bucket{" in target["expr"])


def test_a_table_shows_labels_and_named_columns(dashboard: Json) -> None:
    """Each query of a table gives the labels that it shows, and each column of values has a title or is hidden."""
    for panel in grafana.panels(dashboard):
        if panel["type"] != "table":
            continue
        (organized,) = (each["options"] for each in panel["transformations"] if each["id"] == "organize")
        titles = {
            each["matcher"]["options"]: each["properties"][0]["value"] for each in panel["fieldConfig"]["overrides"]
        }
        for target in panel["targets"]:
            assert target["format"] == "table"
            column = f"Value #{target['refId']}" if len(panel["targets"]) > 1 else "Value"
            assert bool(titles[column]) != (column in organized["excludeByName"])
            assert set(grafana.columns(panel)) == set(grouped(parsed(target["expr"])))


# --- The queries and the metrics ------------------------------------------------------------------------------


def grouped(tree: promql.Expr) -> set[str]:
    """The labels that the series of a query's answer can have."""
    if isinstance(tree, promql.AggregateExpr):
        return set(tree.modifier.labels) if tree.modifier else set()
    if isinstance(tree, promql.BinaryExpr):
        return grouped(tree.lhs) or grouped(tree.rhs)
    if isinstance(tree, promql.Call):
        of = next((grouped(each) for each in tree.args if grouped(each)), set())
        name = tree.func.name
        return of - {"le"} if name == "histogram_quantile" else of | {"model"} if name == "label_join" else of
    child = getattr(tree, "expr", None)
    return grouped(child) if isinstance(child, promql.Expr) else set()


def every_query(dashboard: Json) -> Iterator[str]:
    """The queries of the panels and of the choices."""
    yield from (target["expr"] for _, target in targets(dashboard))
    yield from (
        grafana.label_values(each["query"]["query"])[0] for each in grafana.variables(dashboard).values()
    )  # fmt: skip


def test_each_metric_that_is_asked_for_is_ours_and_has_the_labels(dashboard: Json) -> None:
    """Names, matchers and groups in the queries are of the catalogue, and `le` is never compared with a bound."""
    for query in every_query(dashboard):
        for selector, above in selectors(query):
            for name in names(selector):
                assert row_of(name) is not None, f"{name} in {query}"
                asked = matchers(selector).keys() - {"__name__"}
                by = next((node for node in reversed(above) if isinstance(node, promql.AggregateExpr)), None)
                asked |= set(by.modifier.labels) if by is not None and by.modifier else set()
                assert "le" not in matchers(selector)
                optional = {"model_name"} if not selector.name else set()
                assert asked <= labels_of(name) | optional, f"{asked - labels_of(name)} in {query}"


def test_values_of_closed_labels_are_such_values(dashboard: Json) -> None:
    """Where a label has a closed list of values, a query asks for one of them."""
    for query in every_query(dashboard):
        for selector, _ in selectors(query):
            for label, (op, value) in matchers(selector).items():
                closed = {} if not selector.name else row_of(selector.name).values
                if label in closed:
                    assert value in closed[label] or str(op) == str(promql.MatchOp.NotEqual), query


def test_a_legend_names_labels_that_each_series_has(dashboard: Json) -> None:
    """No legend can say {} or undefined: its labels are among those by which the query groups."""
    for panel, target in targets(dashboard):
        used = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        found = grouped(parsed(target["expr"]))
        assert used <= found, f"{panel['title']}: {used - found}"
        # A model's name may be absent; `model` is always there.
        assert "model_name" not in used
        if panel["type"] != "table" and found:
            assert target["legendFormat"] != "__auto"
            assert found - used <= {"model_name", "model_version", "job", "instance"}, f"{panel['title']}: {found}"


def test_every_metric_is_shown_or_left_out_for_a_reason() -> None:
    """Each row of the catalogue is on a panel, except those that are listed, which are on none."""
    shown = {
        row_of(name)
        for each in grafana.FILES
        for query in (target["expr"] for _, target in targets(grafana.dashboard(each)))
        for selector, _ in selectors(query)
        for name in names(selector)
    }
    assert {row.page_name for row in CATALOGUE if row not in shown} == {row.page_name for row in LEFT_OUT}
    assert all(LEFT_OUT.values())


def test_what_the_specification_lists_is_there() -> None:
    """Each of the four dashboards shows what it is meant for."""
    wanted = {
        "api": ("rate(api_requests_total", "rate(errors_total", "status_code", "histogram_quantile(0.99"),
        "models": ("model_accuracy_score", "model_drift_score", "prediction_latency_p95_seconds"),
        "system": (
            "gpu_utilization_percent", "gpu_temperature_celsius", "system_cpu_usage_percent",
            "system_memory_usage_bytes", "database_operation_duration_seconds",
        ),
        "business": ("daily_predictions_total", "predictions_total", "api_health_status"),
    }  # fmt: skip
    for name, texts in wanted.items():
        open_panels = [each for each in grafana.dashboard(name)["panels"] if each["type"] != "row"]
        asked = json.dumps([each["targets"] for each in open_panels])
        assert [text for text in texts if text not in asked] == []


# --- The builder ----------------------------------------------------------------------------------------------


def test_panels_flow_into_lines_and_rows_follow_one_another() -> None:
    """A panel that does not fit begins a line below the tallest of the line before; a closed row takes one line."""
    from otel_mlops.dashboards.grafana import document

    def panel(width: int, height: int) -> Panel:
        query = Query(expression="1")
        return Panel(title="t", description="d.", unit="none", queries=(query,), width=width, height=height)

    rows = (
        Row(title="", panels=(panel(12, 4), panel(8, 6), panel(8, 2))),
        Row(title="closed", panels=(panel(24, 9), panel(24, 1)), collapsed=True),
        Row(title="open", panels=(panel(24, 3),)),
    )
    made = json.loads(document(Dashboard(uid="u", title="t", description="d", rows=rows), (), {}))
    places = [(each["id"], *(each["gridPos"][name] for name in "xywh")) for each in grafana.everything(made)]
    assert places == [
        (1, 0, 0, 12, 4), (2, 12, 0, 8, 6), (3, 0, 6, 8, 2),
        (4, 0, 8, 24, 1), (5, 0, 9, 24, 9), (6, 0, 18, 24, 1),
        (7, 0, 9, 24, 1), (8, 0, 10, 24, 3),
    ]  # fmt: skip


def test_grafana_is_given_the_source_and_the_folder() -> None:
    """The provisioned source has the uid that others name and opens traces; the dashboards come from a folder."""
    (source,) = grafana.provisioned("datasources")["datasources"]
    assert (source["uid"], source["type"]) == ("prometheus", "prometheus")
    (opened,) = source["jsonData"]["exemplarTraceIdDestinations"]
    assert opened["name"] == "trace_id"
    (provider,) = grafana.provisioned("dashboards")["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
