"""Families of the page: all series of one name, and the text they had when it was last made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import Metric
from prometheus_client.samples import Exemplar as PrometheusExemplar

from otel_mlops.metrics import page_family, page_unit
from otel_mlops.sdk.text import HistogramLines, ValueLine, exemplar_labels, help_text, labels

if TYPE_CHECKING:
    from otel_mlops.sdk.exemplars import Exemplar

_SUFFIXES = {
    "counter": ("_total", "_created"),
    "histogram": ("_bucket", "_count", "_sum", "_created"),
    "info": ("_info",),
}
"""The names that a family takes besides its own. Source: OpenMetrics 1.0, Suffixes."""


class Readable(Protocol):
    """What a line is made of: a series of ours, or what a callback has just said."""

    def read(self) -> list[float]: ...


class Fact:
    """A value that does not change."""

    __slots__ = ("_value",)

    def __init__(self, value: float) -> None:
        self._value = value

    def read(self) -> list[float]:
        """The value."""
        return [self._value]


class Observed(Fact):
    """A value that a callback has said, good for one page."""

    __slots__ = ()


class Family:
    """All series of one name on the page."""

    __slots__ = ("additive", "help", "name", "reserved", "type", "unit", "written")

    def __init__(self, name: str, kind: str, unit: str, description: str) -> None:
        self.type = "gauge" if kind == "updown" else kind
        self.additive = kind in ("counter", "updown", "histogram")
        self.name = page_family(name, self.type, unit)  # type: ignore[arg-type]
        self.unit = page_unit(unit) if self.name.endswith(f"_{page_unit(unit)}") else ""
        self.help = description
        self.reserved = "le" if self.type == "histogram" else None
        self.written: dict[str, Written] = {}

    @property
    def identity(self) -> tuple[str, str]:
        """What two metrics of one family have in common."""
        return self.name, self.type

    @property
    def sample(self) -> str:
        """The name of its samples, histograms aside."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.type, "")

    def names(self) -> set[str]:
        """Every name that belongs to this family."""
        return {self.name, *(self.name + suffix for suffix in _SUFFIXES.get(self.type, ()))}

    def head(self, *, openmetrics: bool) -> str:
        """The lines above the samples."""
        told = help_text(self.help, openmetrics=openmetrics)
        if openmetrics:
            unit = f"# UNIT {self.name} {self.unit}\n" if self.unit else ""
            return f"# HELP {self.name} {told}\n# TYPE {self.name} {self.type}\n{unit}"
        shown = "gauge" if self.type in ("info", "stateset") else self.type
        return f"# HELP {self.sample} {told}\n# TYPE {self.sample} {shown}\n"

    def empty(self) -> None:
        """Let go of the series, not of the text they had."""
        for written in self.written.values():
            written.series.clear()

    def put(self, key: str, series: Readable, attributes: Mapping[str, Any], bounds: Sequence[float]) -> Written | None:
        """Add a series under its labels' text; None if its buckets are not those the labels have already."""
        written = self.written.get(key)
        if written is None:
            pairs = labels(attributes, reserved=self.reserved)
            lines = HistogramLines(self.name, pairs, bounds) if self.reserved else ValueLine(self.sample, pairs)
            written = self.written[key] = Written(lines, bounds)
        elif written.bounds != bounds:
            if written.series:
                return None
            del self.written[key]
            return self.put(key, series, attributes, bounds)
        written.series.append(series)
        return written

    def drop_empty(self) -> bool:
        """Let go of the labels that no series has any more; False if there are none left."""
        for key in [key for key, written in self.written.items() if not written.series]:
            del self.written[key]
        return bool(self.written)

    def write(self, *, openmetrics: bool) -> list[bytes]:
        """The lines of every series, made again only where a number has changed."""
        return [written.write(additive=self.additive, openmetrics=openmetrics) for written in self._in_order()]

    def as_metric(self) -> Metric:
        """The family as prometheus_client's."""
        metric = Metric(self.name, self.help, self.type, self.unit)
        for written in self._in_order():
            values = written.read(additive=self.additive)
            pairs = dict(written.lines.pairs)
            if isinstance(written.lines, HistogramLines):
                exemplars = written.exemplars() or [None] * (len(values) - 1)
                for end, count, exemplar in zip(
                    written.lines.ends, written.lines.added(values), exemplars, strict=True
                ):
                    metric.add_sample(f"{self.name}_bucket", pairs | {"le": end}, count, exemplar=_exemplar(exemplar))
                metric.add_sample(f"{self.name}_count", pairs, math.fsum(values[:-1]))
                metric.add_sample(f"{self.name}_sum", pairs, values[-1])
            else:
                metric.add_sample(self.sample, pairs, values[0])
        return metric

    def _in_order(self) -> list[Written]:
        if self.type != "stateset":
            return list(self.written.values())
        # OpenMetrics wants the states of one thing to follow one another.
        return sorted(
            self.written.values(), key=lambda w: [pair for pair in w.lines.pairs.items() if pair[0] != self.name]
        )


class Written:
    """One set of labels in a family: the series that have it, and the text they had last time."""

    __slots__ = ("_text", "_values", "bounds", "lines", "series")

    def __init__(self, lines: ValueLine | HistogramLines, bounds: Sequence[float]) -> None:
        self.lines = lines
        self.bounds = bounds
        self.series: list[Any] = []
        self._values: list[float] = []
        self._text = b""

    def unsay(self) -> None:
        """Let go of what callbacks have said."""
        self.series = [each for each in self.series if not isinstance(each, Observed)]

    def read(self, *, additive: bool) -> list[float]:
        """The numbers as of now: of several series with the same labels the sum, or the latest."""
        series = self.series
        if len(series) == 1:
            return series[0].read()  # type: ignore[no-any-return]
        every = [each.read() for each in series]
        if additive:
            # Not strict: a gauge that shares its name with an up-down counter has a cell more.
            return [math.fsum(cells) for cells in zip(*every, strict=False)]
        return max(every, key=lambda cells: cells[1] if len(cells) > 1 else math.inf)

    def write(self, *, additive: bool, openmetrics: bool) -> bytes:
        """The lines as of now."""
        values = self.read(additive=additive)
        if values != self._values:
            self._text = self.lines.write(values).encode("utf-8", "replace")
            self._values = values
        if openmetrics and isinstance(self.lines, HistogramLines):
            exemplars = self.exemplars()
            if exemplars is not None or self.lines.lacks_sum(values):
                return self.lines.write_openmetrics(values, exemplars or ()).encode("utf-8", "replace")
        return self._text

    def exemplars(self) -> list[Exemplar | None] | None:
        """The newest exemplar of each bucket; None where there never was one."""
        found = [kept.read() for each in self.series if (kept := getattr(each, "exemplars", None)) is not None]
        if not found:
            return None
        return [
            max(filter(None, slot), key=lambda each: each.time_s, default=None) for slot in zip(*found, strict=True)
        ]


def _exemplar(exemplar: Exemplar | None) -> PrometheusExemplar | None:
    if exemplar is None:
        return None
    return PrometheusExemplar(exemplar_labels(exemplar), exemplar.value, exemplar.time_s)
