"""Families of the page: all series of one name, and the text they had when it was last made."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import Metric
from prometheus_client.samples import Exemplar as PrometheusExemplar

from otel_mlops.metrics import page_family, page_unit
from otel_mlops.sdk.merge import Combine, combine_by, newest_exemplars, told_last, worst_states
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
    """What a line is made of: a series, of this worker or of another."""

    cells: Any
    """A buffer of the numbers, for whoever only asks whether they have changed."""

    def read(self) -> list[float]: ...

    def read_exemplars(self) -> list[Exemplar | None] | None: ...


class Fact:
    """A value that does not change."""

    __slots__ = ("cells",)

    def __init__(self, value: float) -> None:
        self.cells = array("d", [value])

    def read(self) -> list[float]:
        """The value."""
        return [*self.cells]

    def read_exemplars(self) -> None:
        """None."""


class Family:
    """All series of one name on the page."""

    __slots__ = ("combine", "help", "name", "reserved", "states", "subject", "type", "unit", "written")

    def __init__(
        self,
        name: str,
        kind: str,
        unit: str,
        description: str,
        rule: str = "",
        states: Sequence[str] = (),
        subject: Sequence[str] | None = None,
    ) -> None:
        self.type = "gauge" if kind == "updown" else kind
        self.combine = combine_by(kind, rule)
        self.states = states
        self.subject = subject
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

    def put(
        self,
        key: str,
        series: Readable,
        attributes: Mapping[str, Any],
        bounds: Sequence[float],
        worker: str | None = None,
    ) -> bool:
        """Add a series under its labels' text; False if its buckets are not those the labels have already."""
        written = self.written.get(key)
        if written is None:
            pairs = labels(attributes, reserved=self.reserved, worker=worker)
            lines = HistogramLines(self.name, pairs, bounds) if self.reserved else ValueLine(self.sample, pairs)
            written = self.written[key] = Written(lines, bounds)
        elif written.bounds != bounds:
            if written.series:
                return False
            del self.written[key]
            return self.put(key, series, attributes, bounds, worker)
        written.series.append(series)
        return True

    def drop_empty(self) -> bool:
        """Let go of the labels that no series has any more; False if there are none left."""
        for key in [key for key, written in self.written.items() if not written.series]:
            del self.written[key]
        return bool(self.written)

    def write(self, *, openmetrics: bool) -> list[bytes]:
        """The lines of every series, made again only where a number has changed."""
        return [written.write(values, openmetrics=openmetrics) for written, values in self._shown()]

    def as_metric(self) -> Metric:
        """The family as prometheus_client's."""
        metric = Metric(self.name, self.help, self.type, self.unit)
        for written, values in self._shown():
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

    def _shown(self) -> list[tuple[Written, list[float]]]:
        """What is on the page, with the numbers as of now."""
        read = [(written, written.read(self.combine)) for written in self.written.values()]
        if self.type == "stateset":
            return self._worst(read)
        return read if self.subject is None else self._latest(read, self.subject)

    def _worst(self, read: list[tuple[Written, list[float]]]) -> list[tuple[Written, list[float]]]:
        """The states of each thing, one after the other as OpenMetrics wants it; of several the worst is its state."""
        cells = worst_states(self.name, self.states, [(written.lines.pairs, values) for written, values in read])
        shown = [(written, values) for (written, _), values in zip(read, cells, strict=True)]
        return sorted(shown, key=lambda each: [pair for pair in each[0].lines.pairs.items() if pair[0] != self.name])

    def _latest(
        self, read: list[tuple[Written, list[float]]], subject: Sequence[str]
    ) -> list[tuple[Written, list[float]]]:
        """Of the infos about the same thing the one that was told last."""
        shown = told_last(subject, [(written.lines.pairs, values) for written, values in read])
        return [each for each, is_shown in zip(read, shown, strict=True) if is_shown]


class Written:
    """One set of labels in a family: the series that have it, and the text they had last time."""

    __slots__ = ("_seen", "_text", "_together", "_values", "bounds", "lines", "series")

    def __init__(self, lines: ValueLine | HistogramLines, bounds: Sequence[float]) -> None:
        self.lines = lines
        self.bounds = bounds
        self.series: list[Any] = []
        self._seen: bytes | None = None
        self._together: list[float] = []
        self._values: list[float] = []
        self._text = b""

    def read(self, combine: Combine) -> list[float]:
        """The numbers as of now, of all series with these labels together."""
        try:
            seen = b"".join([each.cells for each in self.series])
        except TypeError:  # one was forgotten just now and has no cells any more
            seen = None
        if seen is None or seen != self._seen:
            # Reading and adding up cost more than a look: only when one of them has changed. What comes in between
            # is on this page, and is seen to have changed at the next.
            every = [each.read() for each in self.series]
            self._seen, self._together = seen, every[0] if len(every) == 1 else combine(every)
        return self._together

    def write(self, values: list[float], *, openmetrics: bool) -> bytes:
        """The lines with these numbers."""
        if values is not self._values and values != self._values:
            self._text = self.lines.write(values).encode("utf-8", "replace")
            self._values = values
        if openmetrics and isinstance(self.lines, HistogramLines):
            exemplars = self.exemplars()
            if exemplars is not None or self.lines.lacks_sum(values):
                return self.lines.write_openmetrics(values, exemplars or ()).encode("utf-8", "replace")
        return self._text

    def exemplars(self) -> list[Exemplar | None] | None:
        """The newest exemplar of each bucket; None where there never was one."""
        return newest_exemplars(each.read_exemplars() for each in self.series)


def _exemplar(exemplar: Exemplar | None) -> PrometheusExemplar | None:
    if exemplar is None:
        return None
    return PrometheusExemplar(exemplar_labels(exemplar), exemplar.value, exemplar.time_s)
