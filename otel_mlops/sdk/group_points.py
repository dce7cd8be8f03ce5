"""The numbers of a whole group as OpenTelemetry's data points, for the one reader that pushes them.

Who leads next goes on with differences where the leader before has stopped: what was told last lies in the
group's folder. It is written when an export has ended, whether it has arrived or not. So the death of a leader
loses nothing; what its last export held is told twice if it dies after the arrival and before the writing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.sdk.metrics.export import AggregationTemporality

from otel_mlops.metrics import page_family
from otel_mlops.sdk.group import PUSHED
from otel_mlops.sdk.merge import combine_by, newest_exemplars, told_last, worst_states
from otel_mlops.sdk.peers import identity_of
from otel_mlops.sdk.points import Points, Reading, Said, Told, metrics_data
from otel_mlops.sdk.records import encode
from otel_mlops.sdk.sketch import LATENCY

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader, MetricsData
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from otel_mlops.sdk.group import Group
    from otel_mlops.sdk.provider import MeterProvider
    from otel_mlops.sdk.shares import Share

_logger = logging.getLogger(__name__)

_MOST_AWAY = 1000
"""How many series, besides twice those there are, are remembered: a callback that was silent may speak again."""


class _Together(NamedTuple):
    """A metric, and its series by key: the attributes, and what each worker adds."""

    stream: Any
    scope: InstrumentationScope
    series: dict[str, tuple[Mapping[str, Any], list[Any]]]


class GroupPoints(Points):
    """What a reader of the whole group sees: every worker's numbers, put together as on the page.

    `told` is what the last such reader in this process was told, and stands where the group has kept nothing.
    """

    def __init__(
        self, reader: MetricReader, told: Mapping[str, Told], *, provider: MeterProvider, group: Group | None
    ) -> None:
        super().__init__(reader)
        self._provider = provider
        self._group = group
        self._differs = AggregationTemporality.DELTA in self._temporality.values()
        self.told: dict[str, Told] = self._kept(told) if self._differs else {}
        """What was told last, those that were there last at the end."""
        self._last = self.told
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._version: Any = None
        self._metrics: list[_Together] = []
        self._collected = self._exported = 0
        self._fault = ""

    def after_fork(self) -> None:
        """In a forked child: nothing was told yet."""
        self.told.clear()
        self._begin()

    def collect(self, reader: MetricReader, timeout_millis: float) -> MetricsData | None:
        """Have this worker's callbacks speak, and return what all workers say."""
        self._provider.refresh(reader, timeout_millis / 1e3)
        with self._lock:
            version, shares = self._provider.everyone.shares()
            if version != self._version:
                # Only when a series came or went.
                self._version, self._metrics = version, _arrange(shares)
            said = [(each.stream, each.scope, _read(each)) for each in self._metrics]
            found = self.read(said)
            self._remember(said)
            self._collected += bool(found)
        return metrics_data(found, self._provider.shared_resource)

    def exported(self) -> None:
        """Keep what was told last, once all of it has been exported."""
        with self._lock:
            self._exported += 1
            joined = self._provider.ledger.path is not None
            if self._group is None or not joined or not self._differs or self._exported < self._collected:
                return
            try:
                self._group.keep(PUSHED, self.told)
            except OSError as error:
                if not self._fault:
                    _logger.warning("who leads next will push again what was pushed, as it cannot be kept: %s", error)
                self._fault = str(error)
            else:
                self._fault = ""

    def _goes_on(self, stream: Any, reading: Reading, told: Told) -> bool:
        if len(told.values) != len(reading.values):
            return False
        if stream.rule == "sum" and not stream.observed and reading.start_ns > told.start_ns:
            return False  # forgotten by all: of the others a worker may leave, or a callback be silent for a while
        counts = {"counter": slice(1), "histogram": slice(-1), "cells": slice(-1)}.get(stream.kind, slice(0))
        return all(now >= then for now, then in zip(reading.values[counts], told.values[counts], strict=True))

    def _remember(self, said: list[Said]) -> None:
        """Let go of what has been away the longest, if it is too much."""
        keys = [each.key for _, _, readings in said for each in readings]
        for key in keys:
            if key in self.told:
                self.told[key] = self.told.pop(key)
        for key in list(self.told)[: max(0, len(self.told) - 2 * len(keys) - _MOST_AWAY)]:
            del self.told[key]

    def _kept(self, otherwise: Mapping[str, Told]) -> dict[str, Told]:
        """What the leader before was told, or who led in this process if nothing was kept."""
        try:
            kept = None if self._group is None else self._group.load(PUSHED)
            return dict(otherwise) if kept is None else {key: Told(*told) for key, told in kept.items()}
        except (OSError, AttributeError, TypeError) as error:
            _logger.warning("what was pushed last cannot be read, and is pushed again: %r", error)
            return dict(otherwise)


def _arrange(shares: list[Share]) -> list[_Together]:
    from hashlib import blake2b  # loads OpenSSL, which importing the package need not

    metrics: dict[Any, _Together] = {}
    scopes: dict[Any, InstrumentationScope] = {}
    bounds: dict[bytes, Any] = {}
    for stream, every, worker in shares:
        if stream.kind == "cells":
            if stream.name != LATENCY.cells or stream.size != LATENCY.size:
                continue
            stream = LATENCY  # noqa: PLW2901 (what it is called outside)
        about, scope = (*identity_of(stream), stream.observed), stream.scope
        # Ours come first: a ledger does not tell the attributes of a scope.
        scope = scopes.setdefault((scope.name, scope.version, scope.schema_url), scope)
        metric = metrics.setdefault(about, _Together(stream, scope, {}))
        for series in every:
            attributes = _shown(series.attributes, worker)
            apart_from_bounds = encode([[each for each in about if each != stream.bounds], sorted(attributes.items())])
            if bounds.setdefault(apart_from_bounds, stream.bounds) != stream.bounds:
                continue  # as on the page: counts of other buckets are not told as the same series'
            key = blake2b(encode([about, sorted(attributes.items())]), digest_size=16).hexdigest()
            metric.series.setdefault(key, (attributes, []))[1].append(series)
    return list(metrics.values())


def _shown(attributes: Mapping[str, Any], worker: str | None) -> Mapping[str, Any]:
    """The attributes, with the worker where each is shown by itself; as on the page it takes the name for itself."""
    if worker is None:
        return attributes
    others = {("exported_worker" if name == "worker" else name): value for name, value in attributes.items()}
    return {**others, "worker": worker}


def _read(metric: _Together) -> list[Reading]:
    """The series as of now, of all workers together."""
    stream = metric.stream
    combine = combine_by(stream.shown, stream.rule)
    readings = []
    for key, (attributes, every) in metric.series.items():
        # Read before it is asked when they were born: not at all if they were forgotten just now.
        read = [(each.read(), each.born_ns) for each in every]
        cells = [values for values, born_ns in read if born_ns]
        if not cells:
            continue
        values = cells[0] if len(cells) == 1 else combine(cells)
        if stream.kind in ("counter", "updown"):
            values = values[:1]  # without when it was set, where callbacks say it
        start_ns = min(born_ns for _, born_ns in read if born_ns)
        exemplars = newest_exemplars(each.read_exemplars() for each in every)
        readings.append(Reading(key, attributes, start_ns, values, exemplars))
    about = [(each.attributes, each.values) for each in readings]
    if stream.shown == "stateset":
        label = page_family(stream.name, stream.shown, stream.unit)
        return [
            Reading(each.key, each.attributes, each.start_ns, values, None)
            for each, values in zip(readings, worst_states(label, stream.states, about), strict=True)
        ]
    return readings if stream.subject is None else [*compress(readings, told_last(stream.subject, about))]
