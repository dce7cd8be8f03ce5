"""A dashboard as data: what a panel asks Prometheus, how it shows the answer, and what a person is to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["timeseries", "stat", "bargauge", "table"]
Colour = Literal["green", "yellow", "orange", "red", "blue", "text"]
Steps = tuple[tuple[float | None, Colour], ...]
"""The colour from each value on; the first from None, which is everything below."""

RISING_SHARE: Steps = ((None, "green"), (0.01, "yellow"), (0.05, "red"))
"""For the share of what fails."""
FULLNESS: Steps = ((None, "green"), (0.8, "yellow"), (0.95, "red"))
"""For the share of something that must not run out."""
YES: Steps = ((None, "red"), (1.0, "green"))
"""For 1 where all is well and 0 where not."""
NONE: Steps = ((None, "green"), (1.0, "red"))
"""For the number of things of which there should be none."""
PLAIN: Steps = ((None, "text"),)
"""For what is neither good nor bad."""

NO_TRAFFIC = "No traffic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is asked of Prometheus, in PromQL with Grafana's variables."""

    expression: str
    legend: str = ""
    """The name of each series, `{{label}}` for a label; in a table, of the column of values."""
    unit: str = ""
    """Of a table's column: its unit where it is not the panel's."""
    thresholds: Steps = ()
    """Of a table's column: its colours."""
    mapping: Mapping[float, tuple[str, Colour]] = field(default_factory=dict)
    """Of a table's column: words for values."""
    no_value: str = "-"
    """Of a table's column: what stands in a row that has no value in it."""
    dashed: bool = False
    """Of a graph: a limit, a bound or a time before, beside what it is to be compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel. The sizes are Grafana's: 24 columns are as wide as the page."""

    title: str
    description: str
    """What is shown, and what to do with it."""
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    thresholds: Steps = PLAIN
    no_value: str = "No data"
    """What stands there when there is no series."""
    not_a_number: str = NO_TRAFFIC
    """What stands there for NaN, which a share of nothing is."""
    mapping: Mapping[float, tuple[str, Colour]] = field(default_factory=dict)
    """Words for values."""
    decimals: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    stacked: bool = False
    bars: bool = False
    """Each value is of the whole of a step, such as a day, and not of a moment."""
    sparse: bool = False
    """Only what is not 0 is asked for, so that a point may stand alone."""
    step: str = ""
    """The least time between two points, such as `1d`: some readings apart, where they are rare."""
    columns: tuple[tuple[str, str], ...] = ()
    """Of a table: the labels that are shown, in this order, with their titles."""
    widths: Mapping[str, int] = field(default_factory=dict)
    """Of a table: by title the columns that need more room than others, in pixels."""
    sort: str = ""
    """Of a table: the title of the column by which it is sorted, the largest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels under one title, from left to right; a collapsed row asks Prometheus nothing until it is opened."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label."""

    name: str
    label: str
    query: str
    every: str
    """The regular expression that stands for all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One dashboard: the row without a title is at the top, where who was called looks first."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    since: str = "now-3h"
    refresh: str = "30s"
    timezone: Literal["browser", "utc"] = "browser"
