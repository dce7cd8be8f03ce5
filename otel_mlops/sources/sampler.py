"""The sampler: reads every source at its own pace and keeps the last snapshot; no source lives here.

A source is a plain callable that reads the world once and gives samples. Two daemon threads do the work: the
reader reads the sources one after the other, and the keeper, which never reads anything, watches over it and
minds midnight. When a reading takes longer than `patience_s`, the keeper leaves the reader to its source and
starts another for the rest. The stuck source is left out until its reading returns, so there is at most one
abandoned thread per source, and scrapes, the other sources and the exit of the process never wait for it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from opentelemetry.metrics import CallbackOptions, Observation

from otel_mlops.metrics import CATALOGUE, SOURCE_AGE, SOURCE_DURATION, SOURCE_UP, Metric

logger = logging.getLogger(__name__)

_DAY_S = 86_400
_LONGEST_WAIT_S = 1.0
_DECLARED = {row.name: row for row in CATALOGUE}


class Sample(NamedTuple):
    """One value that a source has read."""

    metric: Metric
    value: float
    attributes: Mapping[str, str] = MappingProxyType({})


Source: TypeAlias = Callable[[], Iterable[Sample]]
"""Reads the world once. If it raises it is down, and its last good reading stands until it is too old."""

Callback: TypeAlias = Callable[[CallbackOptions], Iterable[Observation]]
"""What OpenTelemetry's observable instruments call."""


class _Snapshot(NamedTuple):
    """A good reading; replaced as a whole, so that it can be looked at without a lock."""

    observations: Mapping[str, list[Observation]]
    read_at: float


@dataclass(frozen=True)
class _Terms:
    """What holds for every source alike."""

    interval_s: float
    patience_s: float
    clock: Callable[[], float]
    on_dropped: Callable[[str], None] | None

    @property
    def oldest_s(self) -> float:
        """The age past which a snapshot is not shown."""
        return max(3 * self.interval_s, 15.0)


class Sampler:
    """Reads the sources every `interval_s` and shows their last snapshot to OpenTelemetry's callbacks.

    A snapshot older than three intervals (at least 15 s) is not shown. `on_dropped` is told why a sample was
    dropped: `undeclared`, `type`, `not_finite`, `attributes` or `duplicate`. `at_midnight` is called once at
    each midnight UTC while the sampler runs, and late if it was asleep.

    Units:   seconds; `clock` is monotonic, `wall_clock` counts from the epoch in UTC.
    Errors:  TypeError or ValueError that names the argument, its value and what was expected.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        interval_s: float,
        *,
        on_dropped: Callable[[str], None] | None = None,
        at_midnight: Callable[[], None] | None = None,
        patience_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._terms = _Terms(_seconds("interval_s", interval_s), _seconds("patience_s", patience_s), clock, on_dropped)
        self._at_midnight = at_midnight
        self._wall_clock = wall_clock
        self._day = int(wall_clock() // _DAY_S)
        self._sources = [_Watched(name, source, self._terms) for name, source in _checked(sources).items()]
        self._lifecycle = threading.RLock()
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None
        self._reader: _Reader | None = None

    def start(self) -> None:
        """Begin to read, at once and then every interval; does nothing while it runs."""
        with self._lifecycle:
            if self._keeper is not None:
                return
            # Midnights before the start are nobody's business here: another worker may have minded them.
            self._day = int(self._wall_clock() // _DAY_S)
            self._stop = threading.Event()
            keeper = threading.Thread(name="otel-mlops-keeper", target=self._keep, args=(self._stop,), daemon=True)
            try:
                keeper.start()
            except RuntimeError:
                logger.exception("The sources are not read: no thread can be started")
            else:
                self._keeper = keeper

    def stop(self, timeout_s: float) -> None:
        """End both threads, waiting at most `timeout_s`; one that is stuck in a driver is left behind."""
        deadline = time.monotonic() + timeout_s
        with self._lifecycle:
            keeper, self._keeper = self._keeper, None
            self._stop.set()
        _join(keeper, deadline)
        _join(self._reader, deadline)

    def sample(self) -> None:
        """Read all sources now, in this thread; one that another thread is stuck in is left out."""
        for source in self._sources:
            source.read(wait_s=self._terms.patience_s)

    def observe(self, row: Metric) -> Callback:
        """Return the callback of a row's observable instrument; it looks at the last snapshots only.

        Errors:  ValueError if the row is not in the catalogue.
        """
        if _DECLARED.get(row.name) is not row:
            raise ValueError(f"row is {row.name!r}, expected a row of otel_mlops.metrics.CATALOGUE")
        about_sources = {
            SOURCE_UP.name: lambda source: source.up(),
            SOURCE_DURATION.name: lambda source: source.duration_s,
            SOURCE_AGE.name: lambda source: source.age_s(),
        }.get(row.name)

        def observe_sources(_options: CallbackOptions) -> Iterable[Observation]:
            values = ((source, about_sources(source)) for source in self._sources) if about_sources else ()
            return [Observation(float(v), {"source": source.name}) for source, v in values if v is not None]

        def observe_snapshots(_options: CallbackOptions) -> Iterable[Observation]:
            return [seen for source in self._sources for seen in source.shown().get(row.name, ())]

        return observe_sources if about_sources else observe_snapshots

    def after_fork(self) -> None:
        """Begin anew in a forked child: fresh locks, nothing read yet, no thread until `start()`."""
        self._lifecycle = threading.RLock()
        self._stop = threading.Event()
        self._keeper = None
        self._reader = None
        for source in self._sources:
            source.forget()

    def _keep(self, stop: threading.Event) -> None:
        """Watch over the reader and mind midnight, until told to stop."""
        patience_s = self._terms.patience_s
        reader = self._new_reader()
        while not stop.wait(self._until_next_look()):
            self._mind_midnight()
            for source in self._sources:
                if source.is_stuck():
                    source.report(f"has not answered for {patience_s:g} s; it is left out until it does")
                    if reader is not None and reader.current is source:
                        reader.leave.set()
                        reader = None
            if reader is None:
                reader = self._new_reader()
        if reader is not None:
            reader.leave.set()

    def _new_reader(self) -> _Reader | None:
        reader = _Reader(self._sources, self._terms)
        try:
            reader.start()
        except RuntimeError:
            logger.exception("No thread can be started to read the sources; tried again in a moment")
            return None
        self._reader = reader
        return reader

    def _until_next_look(self) -> float:
        wait_s = min(_LONGEST_WAIT_S, self._terms.patience_s / 4)
        if self._at_midnight is None:
            return wait_s
        return min(wait_s, _DAY_S - self._wall_clock() % _DAY_S)

    def _mind_midnight(self) -> None:
        if self._at_midnight is None:
            return
        today = int(self._wall_clock() // _DAY_S)
        if today > self._day:
            self._day = today
            try:
                self._at_midnight()
            except Exception:
                logger.exception("What is to be done at midnight failed")
        elif today < self._day - 1:
            # The clock had run ahead and was set right. A step back of less than a day, over midnight, is
            # left alone instead: that midnight has been dealt with.
            self._day = today


class _Reader(threading.Thread):
    """Reads the sources one after the other, every interval, until told to leave."""

    def __init__(self, sources: Iterable[_Watched], terms: _Terms) -> None:
        super().__init__(name="otel-mlops-reader", daemon=True)
        self.leave = threading.Event()
        self.current: _Watched | None = None
        self._sources = sources
        self._terms = terms

    def run(self) -> None:
        """Read at once, then at every multiple of the interval; rounds that were missed are skipped."""
        interval_s, clock = self._terms.interval_s, self._terms.clock
        due = clock()
        while not self.leave.is_set():
            for source in self._sources:
                self.current = source
                source.read(wait_s=0.0)
                self.current = None
                if self.leave.is_set():
                    return
            now = clock()
            due += interval_s * max(1, math.ceil((now - due) / interval_s))
            self.leave.wait(due - now)


class _Watched:
    """A source with its last good reading, and whether it answers."""

    def __init__(self, name: str, source: Source, terms: _Terms) -> None:
        self.name = name
        self._source = source
        self._terms = terms
        self._clock = terms.clock
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._began_at: float | None = None
        self._answers: bool | None = None
        self._reported = False
        self._snapshot: _Snapshot | None = None
        self.duration_s: float | None = None

    def forget(self) -> None:
        """Be as if nothing had been read yet, with a fresh lock."""
        self._lock = threading.Lock()
        self._began_at = self._answers = self._snapshot = self.duration_s = None
        self._reported = False

    def read(self, wait_s: float) -> None:
        """Read the source, unless another thread is in it for longer than `wait_s`; raises nothing."""
        if not self._lock.acquire(timeout=wait_s):
            return
        try:
            began_at = self._began_at = self._clock()
            fault: BaseException | None = None
            try:
                observations = self._accepted(self._source())
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                # SystemExit too: a driver that gives up must not end the thread that reads the others.
                fault = error
            else:
                self._snapshot = _Snapshot(observations, self._clock())
            self.duration_s = self._clock() - began_at
            self._answers = fault is None
        finally:
            self._began_at = None
            self._lock.release()
        if fault is not None:
            self.report(f"is down: {type(fault).__name__}: {fault}")
        elif self._reported:
            self._reported = False
            logger.info("Source %s is up again", self.name)

    def report(self, what: str) -> None:
        """Log that the source is down, once until it is up again."""
        if not self._reported:
            self._reported = True
            logger.warning("Source %s %s", self.name, what)

    def is_stuck(self) -> bool:
        """Say whether a reading has been under way for longer than is waited for."""
        began_at = self._began_at
        return began_at is not None and self._clock() - began_at > self._terms.patience_s

    def up(self) -> bool | None:
        """Say whether the source answers and its values are shown; None before it has been tried."""
        if self.is_stuck():
            return False
        return self._answers and self._is_fresh()

    def age_s(self) -> float | None:
        """The age of the last good reading."""
        return None if self._snapshot is None else self._clock() - self._snapshot.read_at

    def shown(self) -> Mapping[str, list[Observation]]:
        """The observations of the last good reading by metric, or nothing if it is too old."""
        snapshot = self._snapshot
        return snapshot.observations if snapshot is not None and self._is_fresh() else {}

    def _is_fresh(self) -> bool:
        age_s = self.age_s()
        return age_s is not None and age_s <= self._terms.oldest_s

    def _accepted(self, samples: Iterable[Sample]) -> Mapping[str, list[Observation]]:
        accepted: dict[str, list[Observation]] = {}
        seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
        for sample in samples:
            row, value, attributes = sample
            fault = _fault(row, value, attributes)
            if fault is None:
                series = (row.name, frozenset(attributes.items()))
                fault = "duplicate" if series in seen else None
                seen.add(series)
            if fault is None:
                accepted.setdefault(row.name, []).append(Observation(float(value), dict(attributes)))
            else:
                self._drop(fault, sample)
        return accepted

    def _drop(self, fault: str, sample: Sample) -> None:
        if self._terms.on_dropped is not None:
            self._terms.on_dropped(fault)
        if fault not in self._told:
            self._told.add(fault)
            logger.warning(
                "Source %s: dropped %s=%.80r %.200r (%s); more of the same are counted only",
                self.name, sample.metric.name, sample.value, dict(sample.attributes), fault,
            )  # fmt: skip


def _fault(row: Metric, value: Any, attributes: Mapping[str, Any]) -> str | None:
    """Say why a sample cannot be shown, or None if it can."""
    if _DECLARED.get(row.name) is not row:
        return "undeclared"
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return "type"
    if not math.isfinite(number):
        return "not_finite"
    required, allowed = set(row.attributes), {*row.attributes, *row.optional_attributes}
    if not row.open_attributes and not required <= attributes.keys() <= allowed:
        return "attributes"
    for key, text in attributes.items():
        if not isinstance(text, str) or text not in row.values.get(key, (text,)):
            return "attributes"
    return None


def _join(thread: threading.Thread | None, deadline: float) -> None:
    """Wait for a thread to end, unless it is this one: a source may end the telemetry that reads it."""
    if thread is not None and thread is not threading.current_thread():
        thread.join(max(0.0, deadline - time.monotonic()))


def _seconds(title: str, seconds: object) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{title} is {seconds!r}, expected a number of seconds")
    if not 0 < seconds < math.inf:
        raise ValueError(f"{title} is {seconds!r}, expected a finite number of seconds above 0")
    return float(seconds)


def _checked(sources: Mapping[Any, Any]) -> Mapping[str, Source]:
    for name, source in sources.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"sources has the name {name!r}, expected a non-empty str")
        if not callable(source):
            raise TypeError(f"sources[{name!r}] is {source!r}, expected a callable that gives samples")
    return sources
