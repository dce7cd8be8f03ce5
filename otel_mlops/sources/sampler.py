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
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from opentelemetry.metrics import CallbackOptions, Observation

from otel_mlops.metrics import SOURCE_AGE, SOURCE_DURATION, SOURCE_UP, Metric
from otel_mlops.sources.watched import DECLARED, Absent, Count, Sample, Source, Terms, Watched

__all__ = ["Absent", "Callback", "Sample", "Sampler", "Source"]

logger = logging.getLogger(__name__)

_DAY_S = 86_400
_LONGEST_WAIT_S = 1.0

Callback: TypeAlias = Callable[[CallbackOptions], Iterable[Observation]]
"""What OpenTelemetry's observable instruments call."""


class Sampler:
    """Reads the sources every `interval_s` and shows their last snapshot to OpenTelemetry's callbacks.

    Those named in `paces` have an interval of their own. A snapshot older than three intervals (at least 15 s) is
    not shown. What counts is given to `count`. `on_dropped` is told why a sample was dropped: `undeclared`, `type`,
    `not_finite`, `negative`, `attributes` or `duplicate`. `at_midnight` is called once at each midnight UTC while
    the sampler runs, and late if it was asleep.

    Units:   seconds; `clock` is monotonic, `wall_clock` counts from the epoch in UTC.
    Errors:  TypeError or ValueError that names the argument, its value and what was expected.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        interval_s: float,
        *,
        paces: Mapping[str, float] = MappingProxyType({}),
        count: Count | None = None,
        on_dropped: Callable[[str], None] | None = None,
        at_midnight: Callable[[], None] | None = None,
        patience_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._patience_s, interval_s = _seconds("patience_s", patience_s), _seconds("interval_s", interval_s)
        self._clock = clock
        self._at_midnight = at_midnight
        self._wall_clock = wall_clock
        self._day = int(wall_clock() // _DAY_S)
        self._sources = []
        for name, source in _checked(sources).items():
            pace_s = _seconds(f"paces[{name!r}]", paces.get(name, interval_s))
            self._sources.append(Watched(name, source, Terms(pace_s, self._patience_s, clock, on_dropped, count)))
        self._lifecycle = threading.RLock()
        self._stop = threading.Event()
        self._end_by = 0.0
        """Until when who stops waits for the threads, in the time of `time.monotonic`."""
        self._round_done = threading.Event()
        self._keeper: threading.Thread | None = None
        self._reader: _Reader | None = None

    def start(self, *, without: Collection[str] = ()) -> None:
        """Begin to read, at once and then every interval, `without` some sources; called again it changes only that."""
        with self._lifecycle:
            for source in self._sources:
                source.is_left_out = source.name in without
            if self._keeper is not None:
                return
            self._round_done = threading.Event()
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

    def wait(self, timeout_s: float) -> bool:
        """Wait within the time until each source has been read since the start; False if one takes longer."""
        return self._round_done.wait(timeout_s)

    def stop(self, timeout_s: float) -> None:
        """End both threads, waiting at most `timeout_s`; one that is stuck in a driver is left behind.

        A source that has a method `close` lets go of its driver then; where that takes longer it goes on behind. What
        was read is not shown any more: who reads next may have counted further meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        with self._lifecycle:
            keeper, self._keeper = self._keeper, None
            self._end_by = deadline
            self._stop.set()
        if keeper is None:
            self._close_sources()
        _join(keeper, deadline)
        for source in self._sources:
            source.forget_readings()

    def sample(self) -> None:
        """Read all sources now, in this thread; one that another thread is stuck in is left out."""
        for source in self._sources:
            source.read(wait_s=self._patience_s)

    def observe(self, row: Metric) -> Callback:
        """Return the callback of a row's observable instrument; it looks at the last snapshots only.

        Errors:  ValueError if the row is not in the catalogue.
        """
        if DECLARED.get(row.name) is not row:
            raise ValueError(f"row is {row.name!r}, expected a row of otel_mlops.metrics.CATALOGUE")
        about_sources = {
            SOURCE_UP.name: lambda source: source.up(),
            SOURCE_DURATION.name: lambda source: source.duration_s,
            SOURCE_AGE.name: lambda source: source.age_s(),
        }.get(row.name)

        def observe_sources(_options: CallbackOptions) -> Iterable[Observation]:
            values = ((source, about_sources(source)) for source in self._sources) if about_sources else ()
            return [Observation(float(v), source.labels) for source, v in values if v is not None]

        def observe_snapshots(_options: CallbackOptions) -> Iterable[Observation]:
            return [observation for source in self._sources for observation in source.said(row)]

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
        patience_s = self._patience_s
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
            _join(reader, self._end_by)
        # Here, where nobody waits for it: a driver may hang when it is let go, too.
        self._close_sources()

    def _close_sources(self) -> None:
        for source in self._sources:
            source.close()

    def _new_reader(self) -> _Reader | None:
        if not self._sources:
            self._round_done.set()
            return None
        reader = _Reader(self._sources, self._clock, self._round_done.set)
        try:
            reader.start()
        except RuntimeError:
            logger.exception("No thread can be started to read the sources; tried again in a moment")
            return None
        self._reader = reader
        return reader

    def _until_next_look(self) -> float:
        wait_s = min(_LONGEST_WAIT_S, self._patience_s / 4)
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
    """Reads each source when it is due, one after the other, until told to leave."""

    def __init__(self, sources: Iterable[Watched], clock: Callable[[], float], on_round: Callable[[], None]) -> None:
        super().__init__(name="otel-mlops-reader", daemon=True)
        self._on_round = on_round
        self.leave = threading.Event()
        self.current: Watched | None = None
        self._sources = sources
        self._clock = clock

    def run(self) -> None:
        """Read each source at once, then at every multiple of its interval; rounds that were missed are skipped."""
        began_at = self._clock()
        for source in self._sources:
            source.due_at = began_at
        while not self.leave.is_set():
            for source in self._sources:
                if source.is_left_out or source.due_at > self._clock():
                    continue
                self.current = source
                source.read(wait_s=0.0)
                self.current = None
                if self.leave.is_set():
                    return
                interval_s = source.terms.interval_s
                source.due_at += interval_s * max(1, math.ceil((self._clock() - source.due_at) / interval_s))
            self._on_round()
            self.leave.wait(max(0.0, self._next_due_at() - self._clock()))

    def _next_due_at(self) -> float:
        """When the next source is due; soon in any case, as one that is left out may be read after all."""
        due = [source.due_at for source in self._sources if not source.is_left_out]
        return min([*due, self._clock() + _LONGEST_WAIT_S])


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
