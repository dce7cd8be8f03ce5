"""How a series is written on the page: names, labels, values; the same lines in both formats."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from otel_mlops.sdk.exemplars import Exemplar

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_NOT_IN_LABEL = re.compile(r"[^a-zA-Z0-9]+")
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def choose_format(accept: str | None) -> str:
    """The content type that a request's Accept header prefers; text where it names neither.

    Source: RFC 9110, section 12.5.1; a tie goes to OpenMetrics, which says more.
    """
    quality = {OPENMETRICS: 0.0, TEXT: 0.0}
    for media, options, q in _media_ranges(accept or ""):
        if media == "application/openmetrics-text" and options.get("version", "1.0.0") == "1.0.0":
            quality[OPENMETRICS] = max(quality[OPENMETRICS], q)
        elif media in ("text/plain", "text/*", "*/*"):
            quality[TEXT] = max(quality[TEXT], q)
    return OPENMETRICS if quality[OPENMETRICS] > 0 and quality[OPENMETRICS] >= quality[TEXT] else TEXT


def prefers_html(accept: str) -> bool:
    """Whether a request's Accept header names HTML and wants neither format of the metrics more.

    A wildcard names nothing: a browser asks for text/html, a scraper or curl for anything.
    Source: RFC 9110, section 12.5.1: of the ranges that fit, the most specific one tells how much a type is wanted.
    """
    quality: dict[str, float] = {}
    for media, _, q in _media_ranges(accept):
        quality[media] = max(quality.get(media, 0.0), q)
    anything = quality.get("*/*", 0.0)
    text = quality.get("text/plain", quality.get("text/*", anything))
    openmetrics = quality.get("application/openmetrics-text", quality.get("application/*", anything))
    html = quality.get("text/html", 0.0)
    return html > 0 and html >= max(text, openmetrics)


def _media_ranges(accept: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """The media ranges of an Accept header, each with its parameters and how much it is wanted."""
    for part in accept[:4096].split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        options = dict(piece.split("=", 1) for piece in parameters if "=" in piece)
        yield media, options, _quality(options.get("q", "1"))


def _quality(text: str) -> float:
    """How much a client wants a format, 0 to 1; what is no number asks for nothing."""
    return float(text) if re.fullmatch(r"[01](\.\d{0,3})?", text) else 0.0


def labels(attributes: Mapping[str, Any], *, reserved: str | None = None, worker: str | None = None) -> dict[str, str]:
    """Attributes as the page's labels, sorted; keys that become the same have their values joined by `;`.

    `reserved` is a label the metric itself needs (`le`), and `worker` the value of that label where each worker
    is shown; an attribute of such a name gets `exported_` before it.
    An empty value is no label: Prometheus takes the two for the same series and keeps one of them.
    Source: OpenTelemetry, Prometheus and OpenMetrics Compatibility, Metric Attributes.
    """
    merged: dict[str, list[str]] = {}
    for key, value in sorted(attributes.items()):
        name = _label_name(key)
        if name == reserved or (name == "worker" and worker is not None):
            name = f"exported_{name}"
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        # Half a surrogate pair cannot be written: replaced now, so that what looks the same is one series.
        merged.setdefault(name, []).append(text.encode("utf-8", "replace").decode())
    if worker is not None:
        merged["worker"] = [worker]
    return {name: text for name in sorted(merged) if (text := ";".join(merged[name]))}


@lru_cache(maxsize=4096)
def _label_name(key: str) -> str:
    # A leading digit is replaced, not prefixed, as the stock exporter does.
    return _NOT_IN_LABEL.sub("_", "_" + key[1:] if key[:1].isdigit() else key)


def label_text(pairs: Mapping[str, str]) -> str:
    """Labels as they stand between the braces."""
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in pairs.items())


def help_text(text: str, *, openmetrics: bool) -> str:
    """A help text in one line."""
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if openmetrics else text


class ValueLine:
    """How a series of one value is written."""

    __slots__ = ("_start", "pairs")

    def __init__(self, name: str, pairs: Mapping[str, str]) -> None:
        self.pairs = pairs
        inner = label_text(pairs)
        self._start = f"{name}{{{inner}}} " if inner else f"{name} "

    def write(self, values: Sequence[float]) -> str:
        """The line."""
        return f"{self._start}{values[0]!r}\n"


class HistogramLines:
    """How a histogram's series is written: its buckets, added up, its count and its sum."""

    __slots__ = ("_buckets", "_count", "_plain", "_signed", "_sum", "ends", "pairs")

    def __init__(self, name: str, pairs: Mapping[str, str], bounds: Iterable[float]) -> None:
        self.pairs = pairs
        bounds = tuple(bounds)
        self._signed = bool(bounds) and bounds[0] < 0
        inner = label_text(pairs).replace("%", "%%")
        comma = "," if inner else ""
        self.ends = [*map(floatToGoString, bounds), "+Inf"]
        lines = [f'{name}_bucket{{{inner}{comma}le="{end}"}} %d' for end in self.ends]
        braces = f"{{{inner}}}" if inner else ""
        self._count = f"{name}_count{braces} %d\n"
        self._sum = f"{name}_sum{braces} %r\n"
        self._plain = "".join(f"{line}\n" for line in lines) + self._count + self._sum
        self._buckets = lines

    def write(self, values: Sequence[float]) -> str:
        """The lines, without exemplars."""
        added = self.added(values)
        return self._plain % (*added, added[-1], values[-1])

    @staticmethod
    def added(values: Sequence[float]) -> list[float]:
        """The counts as the page has them: each bucket holds those below it too."""
        return [*accumulate(values[:-1])]

    def lacks_sum(self, values: Sequence[float]) -> bool:
        """Whether OpenMetrics has no sum: with negative values it is no counter, and without it there is no count.

        Both can be had from the text format. Source: OpenMetrics 1.0, Histogram.
        """
        return self._signed or values[-1] < 0

    def write_openmetrics(self, values: Sequence[float], exemplars: Sequence[Exemplar | None]) -> str:
        """The lines with exemplars, and without the sum where OpenMetrics forbids it."""
        added = self.added(values)
        padded = [*exemplars, *[None] * (len(added) - len(exemplars))]
        lines = [
            f"{line % count}{_exemplar_text(exemplar)}\n"
            for line, count, exemplar in zip(self._buckets, added, padded, strict=True)
        ]
        if not self.lacks_sum(values):
            lines.append(self._count % added[-1])
            lines.append(self._sum % values[-1])
        return "".join(lines)


def exemplar_labels(exemplar: Exemplar) -> dict[str, str]:
    """The labels of an exemplar: none where it was recorded outside of a span."""
    if not exemplar.trace_id:
        return {}
    return {"trace_id": f"{exemplar.trace_id:032x}", "span_id": f"{exemplar.span_id:016x}"}


def _exemplar_text(exemplar: Exemplar | None) -> str:
    if exemplar is None:
        return ""
    return f" # {{{label_text(exemplar_labels(exemplar))}}} {exemplar.value!r} {exemplar.time_s:.3f}"
