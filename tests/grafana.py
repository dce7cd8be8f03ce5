"""Grafana's part in the tests: the dashboards as files, and what a query is once the variables have values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "collector-config" / "grafana"
FILES = ("api", "models", "system", "business")


def dashboard(name: str) -> dict[str, Any]:
    """A dashboard as it is imported."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def everything(of: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All that lies on a dashboard: the panels and rows, and the panels within rows."""
    for panel in of["panels"]:
        yield panel
        yield from panel.get("panels", ())


def panels(of: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels of a dashboard, those in collapsed rows too."""
    return (panel for panel in everything(of) if panel["type"] != "row")


def panel(name: str, title: str) -> dict[str, Any]:
    """The one panel of a dashboard with a title."""
    (found,) = (each for each in panels(dashboard(name)) if each["title"] == title)
    return found


def variables(of: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The variables of a dashboard by name, the data source's apart."""
    return {each["name"]: each for each in of["templating"]["list"] if each["type"] == "query"}


def interpolated(text: str, chosen: Mapping[str, str]) -> str:
    """A query once each variable has a value."""
    found = re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: chosen[match[1] or match[2]], text)
    assert "$" not in found
    return found


def everywhere(of: Mapping[str, Any], *, window: str = "1m", shown: str = "1h") -> dict[str, str]:
    """The values of the variables as a dashboard opens: all of everything."""
    chosen = {name: variable["allValue"] for name, variable in variables(of).items()}
    return chosen | {"__rate_interval": window, "__range": shown}


def label_values(query: str) -> tuple[str, str]:
    """The selector and the label of a variable's query."""
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert found, query
    return found[1], found[2]


def columns(panel: Mapping[str, Any]) -> list[str]:
    """The labels that a table shows."""
    organized = [each["options"] for each in panel.get("transformations", ()) if each["id"] == "organize"]
    return [label for each in organized for label in each["renameByName"]]


def provisioned(kind: str) -> Any:
    """What Grafana is given at its start: `datasources` or `dashboards`."""
    (path,) = (FOLDER / "provisioning" / kind).glob("*.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))
