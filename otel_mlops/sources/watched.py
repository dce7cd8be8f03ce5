"""One source: what it gives, its last good reading, and whether it answers; when it is read is the sampler's."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from opentelemetry.metrics import Observation

from otel_mlops.metrics import CATALOGUE, Metric

logger = logging.getLogger(__name__)

DECLARED = {row.name: row for row in CATALOGUE}
"""The rows that samples may be of."""


def is_increase(row: Metric) -> bool:
    """Return whether a sample of a row is an increase since the last reading, see `Sample`."""
    return row.kind == "counter" and row.across == "sum"


class Sample(NamedTuple):
    """One value that a source has read.

    Of a counter whose workers add up it is the increase since the last reading, which is added into the ledger
    and outlives who leads; of one that is a fact of the host it is the total as the system counts it.
    """

    metric: Metric
    value: float
    attributes: Mapping[str, str] = MappingProxyType({})


Source: TypeAlias = Callable[[], Iterable[Sample]]
"""Reads the world once. If it raises it is down, and its last good reading stands until it is too old."""

Count: TypeAlias = Callable[[Metric, float, Mapping[str, str]], None]
"""Adds to a counter of the ledger."""


class Absent(Exception):  # noqa: N818 (it is no error)
    """Raised by a source that has nothing to read on this machine, and never had: it is neither up nor down."""


class _Snapshot(NamedTuple):
    """A good reading; replaced as a whole, so that it can be looked at without a lock."""

    observations: Mapping[str, list[Observation]]
    read_at: float


@dataclass
class _Last:
    """What came of the readings since they began, or began anew."""

    answers: bool | None = None
    snapshot: _Snapshot | None = None
    duration_s: float | None = None


@dataclass(frozen=True)
class Terms:
    """What holds for the readings of a source."""

    interval_s: float
    patience_s: float
    clock: Callable[[], float]
    on_dropped: Callable[[str], None] | None
    count: Count | None

    @property
    def oldest_s(self) -> float:
        """The age past which a snapshot is not shown."""
        return max(3 * self.interval_s, 15.0)


class Watched:
    """A source with its last good reading, and whether it answers."""

    def __init__(self, name: str, source: Source, terms: Terms) -> None:
        self.name = name
        self.labels = {"source": name}
        self._source = source
        self.terms = terms
        self.due_at = -math.inf
        """When the sampler is to read it next."""
        self.is_left_out = False
        """Whether the sampler is not to read it by itself."""
        self._clock = terms.clock
        self._told: set[str] = set()
        self._seen: dict[tuple[int, int], _Labels] = {}
        """The labels of the last reading by the ids of row and attributes: most sources give the same objects again."""
        self._lock = threading.Lock()
        self._began_at: float | None = None
        self._reported = False
        self._last = _Last()

    def forget(self) -> None:
        """Be as if nothing had been read yet, with a fresh lock."""
        self._lock = threading.Lock()
        self._began_at = None
        self._reported = False
        self.due_at = -math.inf
        self.forget_readings()

    def forget_readings(self) -> None:
        """Show nothing until the source has been read again; what a reading gives that is under way is not shown."""
        self._last = _Last()

    def close(self) -> None:
        """Have the source let go of what it holds, unless it is stuck; it may be read again all the same."""
        close = getattr(self._source, "close", None)
        if close is not None and not self.is_stuck():
            try:
                close()
            except Exception as error:
                logger.warning("Source %s cannot be closed: %r", self.name, error)

    def read(self, wait_s: float) -> None:
        """Read the source, unless another thread is in it for longer than `wait_s`; raises nothing."""
        if not self._lock.acquire(timeout=wait_s):
            return
        last = self._last
        try:
            began_at = self._began_at = self._clock()
            fault: BaseException | None = None
            try:
                observations = self._accepted(self._source())
            except KeyboardInterrupt as error:
                if threading.current_thread() is threading.main_thread():
                    raise
                fault = error
            except Absent as error:
                self._note_absence(error)
                return
            except BaseException as error:
                # SystemExit too: a driver that gives up must not end the thread that reads the others.
                fault = error
            else:
                last.snapshot = _Snapshot(observations, self._clock())
            last.duration_s = self._clock() - began_at
            last.answers = fault is None
        finally:
            self._began_at = None
            self._lock.release()
        if fault is not None:
            self.report(f"is down: {type(fault).__name__}: {fault}")
        elif self._reported:
            self._reported = False
            logger.info("Source %s is up again", self.name)

    def _note_absence(self, absence: Absent) -> None:
        self.forget_readings()
        if str(absence) not in self._told:
            self._told.add(str(absence))
            logger.info("Source %s: %s", self.name, absence)

    def report(self, what: str) -> None:
        """Log that the source is down, once until it is up again."""
        if not self._reported:
            self._reported = True
            logger.warning("Source %s %s", self.name, what)

    def is_stuck(self) -> bool:
        """Say whether a reading has been under way for longer than is waited for."""
        began_at = self._began_at
        return began_at is not None and self._clock() - began_at > self.terms.patience_s

    def up(self) -> bool | None:
        """Say whether the source answers and its values are shown; None before it has been tried."""
        if self.is_stuck():
            return False
        return self._last.answers and self._is_fresh()

    @property
    def duration_s(self) -> float | None:
        """How long the last reading took."""
        return self._last.duration_s

    def age_s(self) -> float | None:
        """The age of the last good reading."""
        snapshot = self._last.snapshot
        return None if snapshot is None else self._clock() - snapshot.read_at

    def said(self, row: Metric) -> Sequence[Observation]:
        """The observations of a row in the last good reading, or none if that is too old."""
        snapshot = self._last.snapshot
        found = () if snapshot is None else snapshot.observations.get(row.name, ())
        return found if found and self._is_fresh() else ()

    def _is_fresh(self) -> bool:
        age_s = self.age_s()
        return age_s is not None and age_s <= self.terms.oldest_s

    def _accepted(self, samples: Iterable[Sample]) -> Mapping[str, list[Observation]]:
        accepted: dict[str, list[Observation]] = {}
        increases: list[tuple[Metric, float, Mapping[str, str]]] = []
        seen: dict[tuple[int, int], _Labels] = {}
        series: set[_Labels] = set()
        for sample in samples:
            row, value, attributes = sample
            key = id(row), id(attributes)
            labels = self._seen.get(key)
            if labels is None or labels.plain != attributes:
                labels = _Labels(row, attributes)
            seen[key] = labels
            fault = labels.fault or _fault(row, value) or ("duplicate" if labels in series else None)
            if fault is not None:
                self._drop(fault, sample)
                continue
            series.add(labels)
            if labels.is_increase:
                increases.append((row, float(value), labels.plain))
            else:
                accepted.setdefault(row.name, []).append(Observation(float(value), labels.plain))
        self._seen = seen
        if self.terms.count is not None:
            # When all of it was read: a reading that fails counts nothing.
            for increase in increases:
                self.terms.count(*increase)
        return accepted

    def _drop(self, fault: str, sample: Sample) -> None:
        if self.terms.on_dropped is not None:
            self.terms.on_dropped(fault)
        if fault not in self._told:
            self._told.add(fault)
            logger.warning(
                "Source %s: dropped %s=%.80r %.200r (%s); more of the same are counted only",
                self.name, sample.metric.name, sample.value, dict(sample.attributes), fault,
            )  # fmt: skip


class _Labels:
    """The row and the attributes of a sample, looked at once while the source gives the same objects unchanged."""

    __slots__ = ("_hash", "_held", "_series", "fault", "is_increase", "plain")

    def __init__(self, row: Metric, given: Mapping[str, Any]) -> None:
        self._held = row, given  # as long as they are held no other objects have their ids
        self.plain: dict[str, str] = dict(given)
        self.is_increase = is_increase(row)
        self.fault: str | None = None
        if DECLARED.get(row.name) is not row:
            self.fault = "undeclared"
        elif not _are_declared(row, self.plain):
            self.fault = "attributes"
        self._series = row.name, frozenset(self.plain.items()) if self.fault is None else id(given)
        self._hash = hash(self._series)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Labels) and self._series == other._series

    def __hash__(self) -> int:
        return self._hash


def _fault(row: Metric, value: Any) -> str | None:
    """Say why a value cannot be shown, or None if it can."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return "type"
    if not math.isfinite(number):
        return "not_finite"
    return "negative" if number < 0 and row.kind == "counter" else None


def _are_declared(row: Metric, attributes: Mapping[str, Any]) -> bool:
    required, allowed = set(row.attributes), {*row.attributes, *row.optional_attributes}
    if not row.open_attributes and not required <= attributes.keys() <= allowed:
        return False
    return all(isinstance(text, str) and text in row.values.get(key, (text,)) for key, text in attributes.items())
