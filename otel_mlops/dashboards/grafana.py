"""Dashboards in the JSON that Grafana 11 and newer import; how a panel looks is said here, once for all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from string import ascii_uppercase
from typing import Any

from otel_mlops.dashboards.panels import Colour, Dashboard, Panel, Query, Row, Steps, Variable

SCHEMA_VERSION = 39
COLUMNS = 24
TAG = "otel-mlops"
"""What the dashboards have in common: by it they link to one another."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

_DEFAULT = {"type": "grafana", "uid": "-- Grafana --"}
_REDUCE = {"calcs": ["lastNotNull"], "fields": "", "values": False}


def document(dashboard: Dashboard, variables: Sequence[Variable], annotations: Mapping[str, str]) -> str:
    """Return the file of a dashboard."""
    return json.dumps(_dashboard(dashboard, variables, annotations), indent=2, ensure_ascii=False) + "\n"


def _dashboard(dashboard: Dashboard, variables: Sequence[Variable], annotations: Mapping[str, str]) -> dict[str, Any]:
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "time": {"from": dashboard.since, "to": "now"},
        "timepicker": {},
        "timezone": dashboard.timezone,
        "refresh": dashboard.refresh,
        "weekStart": "",
        "links": [_link()],
        "annotations": {"list": [_built_in(), *(_annotation(*each) for each in annotations.items())]},
        "templating": {"list": [_source_variable(), *map(_variable, variables)]},
        "panels": list(_placed(dashboard.rows)),
    }


def _link() -> dict[str, Any]:
    return {
        "title": "Dashboards",
        "type": "dashboards",
        "tags": [TAG],
        "asDropdown": False,
        "icon": "external link",
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "tooltip": "",
        "url": "",
    }


def _built_in() -> dict[str, Any]:
    return {
        "builtIn": 1,
        "datasource": _DEFAULT,
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
        "name": "Annotations & Alerts",
        "type": "dashboard",
    }


def _annotation(name: str, expression: str) -> dict[str, Any]:
    # Where the value is a time in milliseconds, it says when.
    return {
        "datasource": SOURCE,
        "enable": True,
        "expr": expression,
        "hide": False,
        "iconColor": "blue" if "time" in expression else "red",
        "name": name,
        "step": "60s",
        "tagKeys": "job,instance,severity",
        "titleFormat": name,
        "textFormat": "{{alertname}}",
        "useValueForTime": "time" in expression,
    }


def _source_variable() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "regex": "",
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "skipUrlSync": False,
    }


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": SOURCE,
        "definition": variable.query,
        "query": {"qryType": 1, "query": variable.query, "refId": f"variable-{variable.name}"},
        "regex": "",
        "allValue": variable.every,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "includeAll": True,
        "multi": True,
        "options": [],
        "refresh": 2,
        "skipUrlSync": False,
        "sort": 1,
    }


# --- Panels ---------------------------------------------------------------------------------------------------


def _placed(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Number the panels and give each its place, below what is above it."""
    number = count(1)
    y = 0
    for row in rows:
        heading: dict[str, Any] = {}
        if row.title:
            heading = {"id": next(number), "type": "row", "title": row.title, "collapsed": row.collapsed}
            heading["gridPos"] = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
            y += 1
        placed, end = _flowed(row.panels, number, y)
        if heading:
            yield heading | {"panels": placed if row.collapsed else []}
        if not row.collapsed:
            yield from placed
            y = end


def _flowed(panels: Sequence[Panel], number: Iterator[int], y: int) -> tuple[list[dict[str, Any]], int]:
    """Put panels beside one another as they fit, from a line on; and say where the next line is."""
    made: list[dict[str, Any]] = []
    x, end = 0, y
    for panel in panels:
        if x + panel.width > COLUMNS:
            x, y = 0, end
        place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
        made.append({"id": next(number), "gridPos": place, **_panel(panel)})
        x, end = x + panel.width, max(end, y + panel.height)
    return made, end


def _panel(panel: Panel) -> dict[str, Any]:
    is_table = panel.kind == "table"
    made: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [_target(panel, query, number) for number, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": list(_overrides(panel))},
        "options": _options(panel),
    }
    if panel.step:
        made["interval"] = panel.step
    if is_table:
        made["transformations"] = list(_transformations(panel))
    return made


def _target(panel: Panel, query: Query, number: int) -> dict[str, Any]:
    over_time = panel.kind == "timeseries"
    return {
        "refId": _ref(number),
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
        # A moment's value is asked for as such: the last of a range could be of a service that is gone.
        "range": over_time,
        "instant": not over_time,
        "exemplar": over_time and "_bucket{" in query.expression,
        "format": "table" if panel.kind == "table" else "time_series",
    }


def _ref(number: int) -> str:
    return ascii_uppercase[number]


def _defaults(panel: Panel) -> dict[str, Any]:
    over_time = panel.kind == "timeseries"
    made: dict[str, Any] = {
        "unit": panel.unit,
        "color": _colour(panel),
        "thresholds": _steps(panel.thresholds),
        "mappings": [*_nothing(panel), *_words(panel.mapping)],
        "noValue": panel.no_value,
    }
    limits = {"decimals": panel.decimals, "min": panel.minimum, "max": panel.maximum}
    made |= {name: value for name, value in limits.items() if value is not None}
    if over_time:
        made["custom"] = _drawing(panel)
    elif panel.kind == "table":
        cells = {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True, "inspect": False}
        made["custom"] = cells | {"minWidth": 80}
    return made


def _colour(panel: Panel) -> dict[str, str]:
    if panel.kind == "timeseries":
        return {"mode": "palette-classic"}
    is_neither_good_nor_bad = len(panel.thresholds) == 1 and panel.kind == "bargauge"
    return {"mode": "fixed", "fixedColor": "blue"} if is_neither_good_nor_bad else {"mode": "thresholds"}


def _drawing(panel: Panel) -> dict[str, Any]:
    drawing: dict[str, Any] = {
        "drawStyle": "bars" if panel.bars else "line",
        "lineWidth": 1,
        "lineStyle": {"fill": "solid"},
        # An area is a part of a whole: lines that cross would only make mud of it.
        "fillOpacity": 80 if panel.bars else 25 if panel.stacked else 0,
        "showPoints": "auto" if panel.sparse else "never",
        "spanNulls": False,
        "barAlignment": 1 if panel.bars else 0,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if len(panel.thresholds) > 1 else "off"},
    }
    if panel.minimum == 0 and panel.maximum is None and (most := _soft_maximum(panel)):
        drawing["axisSoftMax"] = most  # a line at 0 is not drawn from 0 to 100
    return drawing


def _soft_maximum(panel: Panel) -> float | None:
    if panel.unit == "none":
        return 1 if panel.decimals == 0 else None
    return 0.1 if panel.unit.startswith("suffix:") else {"percentunit": 0.1, "percent": 10, "ops": 0.1}.get(panel.unit)


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {
            "legend": _legend(panel),
            "tooltip": {"mode": "multi", "sort": "desc", "hideZeros": False},
        }
    if panel.kind == "stat":
        return {
            "colorMode": "background" if _has_background(panel) else "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "reduceOptions": _REDUCE,
            "showPercentChange": False,
            "textMode": "auto",
            "wideLayout": True,
        }
    if panel.kind == "bargauge":
        return {
            "displayMode": "basic",
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
            "maxVizHeight": 40,
            "minVizHeight": 16,
            "minVizWidth": 8,
            "namePlacement": "auto",
            "orientation": "horizontal",
            "reduceOptions": _REDUCE,
            "showUnfilled": True,
            "sizing": "manual",
            "valueMode": "color",
        }
    sort = [{"displayName": panel.sort, "desc": True}] if panel.sort else []
    return {"cellHeight": "sm", "frameIndex": 0, "showHeader": True, "sortBy": sort}


def _legend(panel: Panel) -> dict[str, Any]:
    """A table beside a wide graph, where more lines have room than below; a line of names where they are few."""
    may_be_many = any("{{" in query.legend.replace("{{job}}", "") for query in panel.queries)
    if panel.width > 8 and may_be_many:
        calculated = ["max", "lastNotNull"]
        return {"calcs": calculated, "displayMode": "table", "placement": "right", "showLegend": True, "width": 310}
    return {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True}


def _overrides(panel: Panel) -> Iterator[dict[str, Any]]:
    """What looks otherwise than the rest of its panel."""
    if panel.kind == "table":
        yield from _columns(panel)
    for title, width in panel.widths.items():
        yield {"matcher": {"id": "byName", "options": title}, "properties": [{"id": "custom.width", "value": width}]}
    for number, query in enumerate(panel.queries):
        if query.dashed:
            properties = [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [6, 6]}}]
            yield {"matcher": {"id": "byFrameRefID", "options": _ref(number)}, "properties": properties}


# --- Tables ---------------------------------------------------------------------------------------------------


def _columns(panel: Panel) -> Iterator[dict[str, Any]]:
    """How each column of values looks: its title, its unit, its colours."""
    for number, query in enumerate(panel.queries):
        properties: list[dict[str, Any]] = [{"id": "displayName", "value": query.legend}]
        if query.unit:
            properties.append({"id": "unit", "value": query.unit})
        if query.thresholds:
            properties.append({"id": "thresholds", "value": _steps(query.thresholds)})
        nothing = [_special("nan", panel.not_a_number), _special("null", query.no_value)]
        properties.append({"id": "mappings", "value": [*nothing, *_words(query.mapping)]})
        if query.thresholds or query.mapping:
            properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
        yield {"matcher": {"id": "byName", "options": _values(panel, number)}, "properties": properties}


def _transformations(panel: Panel) -> Iterator[dict[str, Any]]:
    """Put the answers beside one another, and show of the labels those that say something."""
    if len(panel.queries) > 1:
        yield {"id": "merge", "options": {}}
    labels = [label for label, _ in panel.columns]
    values = [_values(panel, number) for number in range(len(panel.queries))]
    hidden = ["Time", *(value for value, query in zip(values, panel.queries, strict=True) if not query.legend)]
    yield {
        "id": "organize",
        "options": {
            "excludeByName": dict.fromkeys(hidden, True),
            "indexByName": {name: number for number, name in enumerate([*labels, *values])},
            "renameByName": dict(panel.columns),
        },
    }


def _values(panel: Panel, number: int) -> str:
    """What Grafana calls the column of values: with several queries by the letter of each."""
    return f"Value #{_ref(number)}" if len(panel.queries) > 1 else "Value"


# --- Colours and words ----------------------------------------------------------------------------------------


def _steps(steps: Steps) -> dict[str, Any]:
    return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]}


def _nothing(panel: Panel) -> Iterator[dict[str, Any]]:
    """The words for NaN and for no value, in no colour: neither is good or bad."""
    colour = "transparent" if panel.kind == "stat" and _has_background(panel) else "text"
    yield _special("nan", panel.not_a_number, colour)
    if panel.kind in ("stat", "bargauge"):
        yield _special("null", panel.no_value, colour)


def _has_background(panel: Panel) -> bool:
    return len(panel.thresholds) > 1 or bool(panel.mapping)


def _special(match: str, text: str, colour: str = "text") -> dict[str, Any]:
    return {"type": "special", "options": {"match": match, "result": {"text": text, "color": colour, "index": 0}}}


def _words(mapping: Mapping[float, tuple[str, Colour]]) -> list[dict[str, Any]]:
    if not mapping:
        return []
    options = {
        f"{value:g}": {"text": text, "color": colour, "index": number}
        for number, (value, (text, colour)) in enumerate(mapping.items(), start=1)
    }
    return [{"type": "value", "options": options}]
