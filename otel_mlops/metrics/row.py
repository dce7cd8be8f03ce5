"""A metric as a row: what it is, checked when it is made, and what the page calls it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

Kind = Literal["counter", "updown", "histogram", "gauge", "info", "stateset"]
"""What a metric is on the page. `info` and `stateset` are gauges to OpenTelemetry."""

Across = Literal["sum", "living", "latest", "min", "worst", "once", "worker"]
"""How workers combine: `sum` keeps the dead, `living` adds up the living, `once` is a fact of the host."""

_ACROSS_OF_KIND: Mapping[Kind, tuple[Across, ...]] = {
    "counter": ("sum", "once", "worker"),
    "updown": ("living", "sum", "once", "worker"),
    "histogram": ("sum", "once", "worker"),
    "gauge": ("latest", "min", "living", "once", "worker"),
    "info": ("latest", "once", "worker"),
    "stateset": ("worst", "latest", "once"),
}

_OTEL_NAME = re.compile(r"[a-zA-Z][-_./a-zA-Z0-9]{0,254}")
_RESERVED_LABELS = frozenset({"le", "quantile", "job", "instance"})

# The stock Prometheus exporter's tables, copied because importing it costs as much as the whole SDK;
# a test holds `page_unit` and `page_name` against it.
_UNITS = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds",
    "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds",
    "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes", "TiBy": "tibibytes",
    "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes", "TBy": "terabytes",
    "m": "meters", "V": "volts", "A": "amperes", "J": "joules", "W": "watts", "g": "grams",
    "Cel": "celsius", "Hz": "hertz", "1": "", "%": "percent",
}  # fmt: skip
_PER = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}


def _sanitize(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9:]+", "_", text)


def page_unit(unit: str) -> str:
    """Return a UCUM unit as the page writes it: `s` is `seconds`, `{request}` and `1` are nothing.

    Source: `map_unit` of opentelemetry-exporter-prometheus.
    """
    unit = re.sub(r"{.*}", "", unit)
    if unit in _UNITS:
        return _UNITS[unit]
    numerator, _, denominator = unit.partition("/")
    if denominator:
        top, bottom = _sanitize(numerator), _sanitize(denominator)
        top, bottom = _UNITS.get(top, top), _PER.get(bottom, bottom)
        return f"{top}_per_{bottom}" if top else f"per_{bottom}"
    return _sanitize(unit).strip("_")


def page_family(name: str, kind: Kind, unit: str) -> str:
    """Return the OpenMetrics family of an instrument: its name on the page without `_total` and `_info`.

    Source: `sanitize_full_name` of opentelemetry-exporter-prometheus and `metrics_core` of prometheus_client.
    """
    family = _sanitize("_" + name[1:] if name[:1].isdigit() else name)
    if kind == "counter":
        family = family.removesuffix("_total")
    suffix = page_unit(unit)
    if suffix and not family.endswith("_" + suffix):
        family += "_" + suffix
    return family.removesuffix("_info") if kind == "info" else family


def page_name(name: str, kind: Kind, unit: str) -> str:
    """Return an instrument's name on the page: `gpu.memory.used` in `By` is `gpu_memory_used_bytes`."""
    suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
    return page_family(name, kind, unit) + suffix


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: what it is called, what it means, and how workers combine.

    Units:   `unit` is UCUM (`s`, `By`, `1`, `{request}`); the name carries none.
    Errors:  ValueError or TypeError that names the metric, the field and what was expected.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    attributes: tuple[str, ...] = ()
    across: Across = "sum"
    buckets: tuple[float, ...] = ()
    """The upper bounds of a histogram's buckets, without the last, which is infinity."""
    signed: bool = False
    """Negative values count too: OpenTelemetry's histogram drops them."""
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """The closed list of an attribute's values, where it is closed; a state set's states, worst first."""
    optional_attributes: tuple[str, ...] = ()
    """Attributes that a series may do without: `model_name` is there when a `Model` object records."""
    open_attributes: bool = False
    """The caller chooses the attributes (`system_info`); `attributes` are the customary ones."""
    subject: tuple[str, ...] | None = None
    """Of an info: the attributes that say what it is about; of several with the same the latest is shown."""
    note: str = ""
    """Why it is as it is, or how to use it; printed in the reference."""

    @property
    def page_name(self) -> str:
        """The name on the page, with the unit and `_total` or `_info`."""
        return page_name(self.name, self.kind, self.unit)

    @property
    def family(self) -> str:
        """The name of the OpenMetrics family: the page's name without `_total` and `_info`."""
        return page_family(self.name, self.kind, self.unit)

    @property
    def states(self) -> tuple[str, ...]:
        """The states of a state set, the worst first; empty for every other kind."""
        return self.values[self.page_name] if self.kind == "stateset" else ()

    def __post_init__(self) -> None:
        """Refuse a row that could not be put on the page as it is meant."""
        if not _OTEL_NAME.fullmatch(self.name):
            raise ValueError(f"metric {self.name!r}: name must be an OpenTelemetry name, a letter first")
        if self.kind not in _ACROSS_OF_KIND:
            raise self._error("kind", self.kind, f"one of {', '.join(get_args(Kind))}")
        if self.across not in _ACROSS_OF_KIND[self.kind]:
            allowed = ", ".join(_ACROSS_OF_KIND[self.kind])
            raise self._error("across", self.across, f"one of {allowed} for kind {self.kind}")
        if not self.unit.isascii() or len(self.unit) > 63:
            raise self._error("unit", self.unit, "UCUM in at most 63 ASCII characters")
        if self.unit and self.kind in ("info", "stateset"):
            raise self._error("unit", self.unit, f"'' for kind {self.kind}")
        self._check_attributes()
        self._check_buckets()
        if self.kind == "info" and not self.name.endswith((".info", "_info")):
            raise self._error("name", self.name, "a name that ends in .info")
        if self.kind == "stateset" and not self.values.get(self.page_name):
            raise self._error("values", dict(self.values), f"the states, under {self.page_name!r}")

    def _check_attributes(self) -> None:
        for title in ("attributes", "optional_attributes"):
            if not isinstance(getattr(self, title), tuple):
                raise TypeError(f"metric {self.name!r}: {title} must be a tuple of names")
        labels = self.attributes + self.optional_attributes
        if len(set(labels)) < len(labels):
            raise self._error("attributes", labels, "each name once")
        if reserved := _RESERVED_LABELS.intersection(labels):
            raise self._error("attributes", labels, f"none of the reserved {', '.join(sorted(reserved))}")
        if self.subject is not None and (self.kind != "info" or not set(self.subject) <= set(labels)):
            raise self._error("subject", self.subject, f"some of the attributes {labels}, and that for an info only")
        if unknown := set(self.values) - set(labels):
            raise self._error("values", sorted(unknown), f"keys among the attributes {labels}")

    def _check_buckets(self) -> None:
        if (self.kind == "histogram") != bool(self.buckets):
            raise self._error("buckets", self.buckets, "bounds for a histogram, none for any other kind")
        if self.signed and self.kind != "histogram":
            raise self._error("signed", True, f"False for kind {self.kind}")
        # An int bound would be le="1" on the page where the others are le="1.0".
        if not all(type(bound) is float and math.isfinite(bound) for bound in self.buckets):
            raise self._error("buckets", self.buckets, "finite floats")
        if any(low >= high for low, high in pairwise(self.buckets)):
            raise self._error("buckets", self.buckets, "ascending bounds")
        if self.buckets and self.buckets[0] < 0 and not self.signed:
            raise self._error("buckets", self.buckets, "bounds >= 0 unless signed")

    def _error(self, title: str, value: object, expected: str) -> ValueError:
        return ValueError(f"metric {self.name!r}: {title} is {value!r}, expected {expected}")
