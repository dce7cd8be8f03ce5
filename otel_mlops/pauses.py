"""What stops a worker: its garbage collector, and calls that hold up its event loop; each worker records its own."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import weakref
from bisect import bisect_left
from contextvars import Context
from time import perf_counter
from typing import TYPE_CHECKING, Any

from otel_mlops.metrics import EVENT_LOOP_LAG, PYTHON_GC_PAUSE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_mlops.sdk.provider import MeterProvider

_logger = logging.getLogger(__name__)

_CALLBACKS: list[Any] = getattr(gc, "callbacks", [])
"""Whom the collector tells; other interpreters than CPython tell nobody."""


class Pauses:
    """Records the pauses of this worker in the instruments of a provider, between `start()` and `stop()`.

    `timer_s` is how often a loop is to run its timer.
    """

    def __init__(self, provider: MeterProvider, *, timer_s: float = 0.25) -> None:
        self._provider = provider
        self.timer_s = timer_s
        self.series: list[Any] = []
        """Where the collector's runs are recorded."""
        self._timers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Timer] = weakref.WeakKeyDictionary()
        self.lag: Any = None
        """Where the timers record."""
        self.run: object = None
        """Differs from one start to the next; None while nothing is recorded."""

    def start(self) -> None:
        """Begin to record, or begin anew."""
        self.stop()
        self.lag = self._provider.instrument(EVENT_LOOP_LAG).bind()
        self.run = object()
        if not hasattr(gc, "callbacks"):
            return
        self._provider.instrument(PYTHON_GC_PAUSE)
        for stream in self._provider.streams():  # none where a view drops it, or several
            if stream.row is PYTHON_GC_PAUSE:
                series = stream.find(None)
                series.join()  # now: the first record is not to take cells in the middle of a collection
                self.series.append(series)
        _collections.add(self)

    def watch_loop(self) -> None:
        """Time the event loop that runs here, if one does, until `stop()`; does nothing if that goes on already."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # none runs here, or none of asyncio's
        run = self.run
        try:
            known = self._timers.get(loop)
            if run is not None and (known is None or known.run is not run):
                timer = _Timer(self, run)
                timer.set(loop, self.timer_s)
                self._timers[loop] = timer
        except Exception:
            _logger.exception("the event loop is not timed: %r", loop)  # somebody's own

    def stop(self) -> None:
        """Record nothing any more."""
        self.run = None
        _collections.remove(self)
        self.series = []


class _Collections:
    """Times the collector's runs, once for all who want to know; it keeps nobody alive."""

    def __init__(self) -> None:
        self._began = 0.0
        self.after_fork()

    def after_fork(self) -> None:
        """See nothing any more: a forked child that has not started must not record, and become a worker by it."""
        self._lock = threading.RLock()
        self._tell(())

    def add(self, pauses: Pauses) -> None:
        """Record where this one says as well."""
        with self._lock:
            self._tell((*self._whom, weakref.ref(pauses, lambda _: self.remove())))

    def remove(self, pauses: Pauses | None = None) -> None:
        """Do not record there any more, nor where nobody is left to say."""
        with self._lock:
            self._tell(tuple(each for each in self._whom if each() is not pauses))

    def _tell(self, whom: tuple[weakref.ref[Pauses], ...]) -> None:
        # A tuple in the place of another: a collection may run at any moment.
        self._whom = whom
        self._began = 0.0
        if whom and self._see not in _CALLBACKS:
            _CALLBACKS.append(self._see)
        elif not whom and self._see in _CALLBACKS:
            _CALLBACKS.remove(self._see)

    def _see(self, phase: str, info: Mapping[str, int]) -> None:
        """Called by the collector, in any thread and whatever that holds: it takes no lock and no exemplar."""
        if phase == "start":
            self._began = perf_counter()
        elif self._began:  # else it had begun before anybody wanted to know
            seconds = perf_counter() - self._began
            self._began = 0.0
            for each in self._whom:
                pauses = each()
                for series in pauses.series if pauses is not None else ():
                    index = bisect_left(series.bounds, seconds)
                    # No call stands between the three, as in every record: the series may move.
                    cells = series.cells
                    cells[index] += 1.0
                    cells[-1] += seconds


_collections = _Collections()
if hasattr(os, "register_at_fork"):
    # With this module, and so before those of any telemetry: its series are to be told apart from the parent's.
    os.register_at_fork(after_in_child=_collections.after_fork)


class _Timer:
    """The timer of one loop, which says how late it runs; neither the loop nor what it tells is kept alive by it."""

    def __init__(self, pauses: Pauses, run: object) -> None:
        self.run = run
        self._pauses = weakref.ref(pauses)
        self._due = 0.0

    def set(self, loop: asyncio.AbstractEventLoop, in_s: float) -> None:
        """Run in a while."""
        self._due = perf_counter() + in_s
        # In a context of its own: that of the request in which this may begin would be kept for ever.
        loop.call_later(in_s, self._look, loop, context=Context())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        pauses = self._pauses()
        if pauses is not None and pauses.run is self.run:
            pauses.lag.record(max(0.0, perf_counter() - self._due))
            self.set(loop, pauses.timer_s)
