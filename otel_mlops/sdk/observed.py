"""What callbacks of observable instruments have said, kept in cells like every other number.

So the page reads one kind of thing, and what the callbacks of a worker say can be read by whoever leads.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from opentelemetry.metrics import ObservableCounter, Observation
from opentelemetry.sdk.metrics.export import MetricsData, Sum

from otel_mlops.sdk.merge import KEEP_THE_DEAD
from otel_mlops.sdk.stream import Stream

SCOPE = "otel_mlops"
"""The scope of our own metrics."""

OursSaid: TypeAlias = tuple[Any, list[Observation]]
"""One of our observable instruments, and what its callbacks said: each set of attributes once."""


class Observed:
    """The streams of observable instruments.

    `new_stream` makes a stream of a scope, name, unit, description and kind.
    """

    def __init__(self, new_stream: Callable[..., Stream]) -> None:
        self._new_stream = new_stream
        self._streams: dict[Any, Stream] = {}
        self._known: dict[Stream, dict[int, tuple[Any, Any]]] = {}
        """The series of the attributes that were said last, by the id of the object that said them."""
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._asking: int | None = None
        self._began_at = 0.0

    @property
    def streams(self) -> list[Stream]:
        """The streams, in the order in which they were first spoken of."""
        return list(self._streams.values())

    def refresh(self, ask: Callable[[float, list[OursSaid]], MetricsData | None], timeout_s: float) -> None:
        """Have `ask` run the callbacks; what they said before stands where another thread is at it for too long."""
        if self._asking == threading.get_ident():
            return  # a callback that looks at the page
        waits_s = timeout_s if self._asking is None else max(0.0, self._began_at + timeout_s - time.monotonic())
        if not self._lock.acquire(timeout=waits_s):
            return
        try:
            self._asking, self._began_at = threading.get_ident(), time.monotonic()
            ours: list[OursSaid] = []
            self._keep(ask(timeout_s, ours), ours)
        finally:
            self._asking = None
            self._lock.release()

    def after_fork(self) -> None:
        """In a forked child: nothing was said yet, and nobody is asking."""
        self._begin()
        for stream in self._streams.values():
            stream.after_fork()

    def _keep(self, data: MetricsData | None, ours: list[OursSaid]) -> None:
        said: dict[Stream, list[Any]] = {stream: [] for stream in self._streams.values()}
        for resource_metrics in data.resource_metrics if data else ():
            for scope_metrics in resource_metrics.scope_metrics:
                for metric in scope_metrics.metrics:
                    kind = "gauge"
                    if isinstance(metric.data, Sum):
                        kind = "counter" if metric.data.is_monotonic else "updown"
                    stream = self._stream(scope_metrics.scope, metric, kind)
                    said.setdefault(stream, []).extend(metric.data.data_points)
        for instrument, observations in ours:
            if observations:
                kind = "counter" if isinstance(instrument, ObservableCounter) else "gauge"
                said[self._stream(instrument.instrumentation_scope, instrument, kind)] = observations
        for stream, points in said.items():
            if stream.rule in KEEP_THE_DEAD:
                # What was counted was counted, also where a callback fails once or comes too late.
                self._set(stream, points)
            else:
                # First of all, so that what is new has the room of what is gone.
                stream.keep_only({self._taken_by(stream, point.attributes) for point in points})
                stream.keep_only(self._set(stream, points))

    def _stream(self, scope: Any, metric: Any, kind: str) -> Stream:
        about = metric.name, metric.unit or "", metric.description or "", kind
        stream = self._streams.get((scope, *about))
        if stream is None:
            stream = self._streams[scope, *about] = self._new_stream(scope, *about)
        return stream

    def _taken_by(self, stream: Stream, attributes: Any) -> Any:
        known = _series_of(self._known.get(stream, {}), attributes)
        return stream.taken_by(attributes) if known is None else known

    def _set(self, stream: Stream, points: list[Any]) -> set[Any]:
        """Note what was said, and return the series that it was said of."""
        before, now = self._known.get(stream, {}), {}
        said = set()
        for point in points:
            attributes = point.attributes
            series = _series_of(before, attributes)
            if series is None:
                series = stream.find(attributes)
            now[id(attributes)] = attributes, series
            if stream.stays and point.value < stream.stays.get(series, -math.inf):
                del stream.stays[series]  # who counts has begun anew
            series.set(point.value - stream.stays.get(series, 0.0))
            said.add(series)
        self._known[stream] = now
        return said


def _series_of(known: dict[int, tuple[Any, Any]], attributes: Any) -> Any:
    """The series that these very attributes were said of last, or None if it is to be looked for.

    It is when it was forgotten, or has other attributes: the object was changed meanwhile, or the metric was full.
    """
    series = known.get(id(attributes), (None, None))[1]
    return series if series is not None and series.place is not None and series.attributes == attributes else None
