"""The faults that the driver reports by itself: its XID errors, which a thread waits for; nothing is asked here."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from otel_mlops.metrics import GPU_XID_ERRORS, GPU_XID_LAST_TIMESTAMP
from otel_mlops.sources.nvidia.driver import Driver, Failed, Gone, Gpu, Lost, Unsupported, code_of
from otel_mlops.sources.watched import Sample

logger = logging.getLogger(__name__)

ALERTED_XIDS = ("13", "31", "43", "48", "62", "63", "64", "74", "79", "92", "94", "95", "119", "120")
"""The codes that are worth an alert."""

_FIRST_WAIT_MS = 8
_MOST_CODES = 64
_MOST_OUTCOMES = 1000
_DELAYS_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""How long after a failure the driver is asked again: at once after the first, as a lost GPU leaves others to watch."""

_MOST_IN_A_ROW, _BREATH_S = 256, 0.01
"""A storm of events takes no more than a part of a core from those who predict."""


class XidEvents:
    """The XID errors of the GPUs, counted from `start()` to `close()`.

    Reads:   an NVML event set with all GPUs on it, in a daemon thread that waits for `wait_s` at a time, and in the
             beginning for less: who opens and closes the GPUs in a moment does not wait for a second. A GPU that
             cannot be watched is tried again after `again_s`.
    Yields:  GPU_XID_ERRORS as increments, and GPU_XID_LAST_TIMESTAMP of each code seen. The codes that alerts ask for
             are there as 0 once the GPU is watched; past 64 codes of a GPU the rest is `other`.
    Absent when: the driver has no such events for the GPU (WSL, containers without the right).
    Errors:  Gone from `read()` if the driver went away from under the thread, which has ended then.
    Units:   seconds; the timestamps since the epoch.

    What a fork copies is the parent's: in the child nothing is watched or counted before its own `start()`.
    """

    def __init__(
        self,
        driver: Driver,
        gpus: Iterable[Gpu],
        wall_clock: Callable[[], float] = time.time,
        *,
        wait_s: float = 1.0,
        again_s: float = 60.0,
    ) -> None:
        self._driver = driver
        self._gpus = list(gpus)
        self._wall_clock = wall_clock
        self._longest_ms = round(wait_s * 1000)
        self._again_s = again_s
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._visit: _Visit | None = None
        self._gone: Gone | None = None
        self._listed: set[Gpu] = set()
        self._codes = {gpu: set(ALERTED_XIDS) for gpu in self._gpus}
        self._lock = threading.Lock()
        # What the thread leaves for the reader: how often, when last, and how the watching of a GPU went.
        self._counts: Counter[tuple[Gpu, str]] = Counter()
        self._last_at: dict[tuple[Gpu, str], float] = {}
        self._outcomes: deque[tuple[Gpu, Unsupported | Failed | None]] = deque(maxlen=_MOST_OUTCOMES)

    def start(self) -> None:
        """Begin to watch; does nothing while it runs."""
        self._mind_fork()
        if self._thread is not None and self._thread.is_alive():
            return
        self._gone = None
        self._visit = _Visit(self._driver)
        thread = threading.Thread(name="otel-mlops-xid", target=self._watch, args=(self._visit,), daemon=True)
        try:
            thread.start()
        except RuntimeError:
            logger.exception("The GPUs' XID errors are not watched: no thread can be started")
        else:
            self._thread = thread

    def read(self) -> list[Sample]:
        """Give what has happened since the last reading; after `close()` too, for what came in between."""
        self._mind_fork()
        with self._lock:
            counts, self._counts = self._counts, Counter()
            outcomes = list(self._outcomes)
            self._outcomes.clear()
            last_at = dict(self._last_at)
        for gpu, outcome in outcomes:
            with gpu.part(GPU_XID_ERRORS.name):
                if outcome is not None:
                    raise outcome
                if gpu not in self._listed:
                    self._listed.add(gpu)
                    for code in ALERTED_XIDS:
                        counts[gpu, code] += 0
        if self._gone is not None and not counts:
            raise Gone(str(self._gone)) from self._gone
        return [
            *(Sample(GPU_XID_ERRORS, count, {**gpu.labels, "xid": code}) for (gpu, code), count in counts.items()),
            *(Sample(GPU_XID_LAST_TIMESTAMP, at, {**gpu.labels, "xid": code}) for (gpu, code), at in last_at.items()),
        ]

    def close(self, timeout_s: float) -> bool:
        """End the watch within the time; False if a call of the driver has not come back.

        Either way the thread makes no further call. One that it is stuck in must not have the driver shut down
        under it.
        """
        self._mind_fork()
        visit, self._visit = self._visit, None
        thread, self._thread = self._thread, None
        if visit is None:
            return True
        visit.over.set()
        if thread is not None:
            thread.join(timeout_s)
        return visit.end()

    def _mind_fork(self) -> None:
        # The thread, the lock and the event set are the parent's, and so is what it has not read yet.
        if self._pid != os.getpid():
            self._begin_anew()

    # --- The thread ---------------------------------------------------------------------------------------

    def _watch(self, visit: _Visit) -> None:
        while not visit.over.wait(visit.delay_s):
            try:
                self._follow(visit)
            except Gone as gone:
                if not visit.over.is_set():
                    logger.info("The GPUs' XID errors are not watched until the driver is opened again: %s", gone)
                    self._gone = gone
                return
            except Exception as failure:
                visit.failures += 1
                for gpu in visit.watched or self._gpus:
                    self._tell(gpu, failure)

    def _follow(self, visit: _Visit) -> None:
        """Make an event set, and count what comes of it until the watch is over or the set fails."""
        visit.watched = []
        events = visit.ask("nvmlEventSetCreate")
        try:
            in_a_row = 0
            register_at = time.monotonic()
            while not visit.over.is_set():
                if time.monotonic() >= register_at:
                    self._register(visit, events)
                    register_at = time.monotonic() + self._again_s
                if not visit.watched:
                    visit.over.wait(self._again_s)
                elif not self._wait(visit, events):
                    in_a_row = 0
                else:
                    in_a_row += 1
                    if in_a_row % _MOST_IN_A_ROW == 0:
                        visit.over.wait(_BREATH_S)
        finally:
            try:
                visit.ask("nvmlEventSetFree", events)
            except Exception as failure:
                logger.debug("An event set was not freed: %r", failure)

    def _register(self, visit: _Visit, events: Any) -> None:
        """Have the set told of those GPUs that it is not told of yet."""
        xid = self._driver.nvml.nvmlEventTypeXidCriticalError
        for gpu in self._gpus:
            if gpu in visit.watched:
                continue
            try:
                visit.ask("nvmlDeviceRegisterEvents", gpu.handle, xid, events)
            except (Unsupported, Failed, Lost) as failure:
                self._tell(gpu, failure)
            else:
                visit.watched.append(gpu)
                self._tell(gpu, None)

    def _wait(self, visit: _Visit, events: Any) -> bool:
        """Wait for one event and count it; False if none came."""
        nvml = self._driver.nvml
        try:
            event = visit.ask("nvmlEventSetWait_v2", events, visit.wait_ms)
        except Failed as failure:
            if code_of(failure) != nvml.NVML_ERROR_TIMEOUT:
                raise
            visit.wait_ms = min(self._longest_ms, 2 * visit.wait_ms)
            event = None
        visit.failures = 0
        if event is not None and event.eventType & nvml.nvmlEventTypeXidCriticalError:
            gpu = self._gpu_of(visit, event.device)
            if gpu is not None:
                self._count(gpu, str(event.eventData))
        return event is not None

    def _gpu_of(self, visit: _Visit, handle: Any) -> Gpu | None:
        """The GPU that an event names by a handle, which is ours unless the driver has several for it."""
        for gpu in self._gpus:
            if _address(gpu.handle) == _address(handle):
                return gpu
        try:
            uuid = visit.ask("nvmlDeviceGetUUID", handle)
        except (Unsupported, Failed, Lost) as failure:
            logger.debug("An XID error of a GPU that has no name: %s", failure)
            return None
        return next((gpu for gpu in self._gpus if gpu.uuid == uuid), None)

    def _count(self, gpu: Gpu, code: str) -> None:
        codes = self._codes[gpu]
        if code not in codes and len(codes) >= _MOST_CODES:
            code = "other"
        codes.add(code)
        with self._lock:
            is_new = (gpu, code) not in self._last_at
            self._counts[gpu, code] += 1
            self._last_at[gpu, code] = self._wall_clock()
        if is_new:
            logger.warning("GPU %d reported the XID error %s; more of the same are counted only", gpu.index, code)

    def _tell(self, gpu: Gpu, outcome: Exception | None) -> None:
        """Leave word of how the watching of a GPU went; that it is lost the readings of its values say."""
        if isinstance(outcome, Lost):
            return
        if outcome is not None and not isinstance(outcome, Unsupported | Failed):
            outcome = Failed(f"XID events: {outcome!r}")
        with self._lock:
            self._outcomes.append((gpu, outcome))


class _Visit:
    """One thread's stay with the driver: what it watches there, and whether it may still ask."""

    def __init__(self, driver: Driver) -> None:
        self.over = threading.Event()
        """Set when it is to end."""
        self.wait_ms = _FIRST_WAIT_MS
        self.watched: list[Gpu] = []
        self.failures = 0
        """How often in a row a set could not be waited on."""
        self._driver = driver
        self._door = threading.Lock()
        self._is_inside = self._has_ended = False

    @property
    def delay_s(self) -> float:
        return _DELAYS_S[min(max(0, self.failures - 1), len(_DELAYS_S) - 1)]

    def ask(self, function: str, *arguments: Any) -> Any:
        """Call the driver, unless the stay has ended: it may be shut down by now.

        Errors:  as `Driver.ask`; Gone when it has ended.
        """
        with self._door:
            if self._has_ended:
                raise Gone(f"{function}: not asked any more")
            self._is_inside = True
        try:
            return self._driver.ask(function, *arguments)
        finally:
            self._is_inside = False

    def end(self) -> bool:
        """Let no further call begin; False if one has not come back."""
        with self._door:
            self._has_ended = True
            return not self._is_inside


def _address(handle: Any) -> int | None:
    """Where a handle points: two pointers of ctypes are never equal."""
    import ctypes

    return ctypes.cast(handle, ctypes.c_void_p).value
