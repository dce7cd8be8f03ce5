"""The worker processes as a source: CPU, memory, descriptors and threads of each, read from outside of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from otel_mlops.metrics import (
    PROCESS_CPU,
    PROCESS_MAX_FDS,
    PROCESS_OPEN_FDS,
    PROCESS_PROPORTIONAL_MEMORY,
    PROCESS_RESIDENT_MEMORY,
    PROCESS_START_TIME,
    PROCESS_THREADS,
    Metric,
)
from otel_mlops.sources.files import pairs_of
from otel_mlops.sources.sampler import Sample, Source

logger = logging.getLogger(__name__)

_PROPORTIONAL_S = 60.0
"""How old the proportional memory of a worker may be before it is read again."""
_MOST_PROPORTIONAL_BYTES = 4 * 2**30
"""Past it the reading, 12 ms a gigabyte, would hold a worker that maps memory just then up for too long."""


def open_process(
    pids: Callable[[], Mapping[str, int]],
    psutil: Any = None,
    *,
    root: Path = Path("/"),
    clock: Callable[[], float] = time.monotonic,
) -> Source:
    """Open the worker processes as a source; `pids` says which they are, by the value of the label `worker`.

    Reads:   through psutil what the kernel tells of each process, 0.1 ms a worker; and under `root`
             proc/PID/smaps_rollup, which takes 12 ms for each GB of the worker's that is in RAM and delays as long
             what maps or unmaps memory in it: of one worker a reading at most, and of each once a minute.
    Yields:  PROCESS_CPU (its own, of all its threads), PROCESS_RESIDENT_MEMORY, PROCESS_PROPORTIONAL_MEMORY,
             PROCESS_OPEN_FDS, PROCESS_MAX_FDS, PROCESS_THREADS, PROCESS_START_TIME.
    Absent when: the system does not tell, or not to this user, which is logged once; a worker that ends meanwhile.
    Errors:  ImportError without psutil; a reading raises if there are workers and nothing of them can be read.
    """
    if psutil is None:
        import psutil
    return _Processes(pids, psutil, root, clock).read


class _Known:
    """A worker's process, and what is read of it seldom or said of it once."""

    def __init__(self, process: Any) -> None:
        self.process = process
        """The same at each reading: it works its start time out once, though the system's clock may be set."""
        self.proportional: float | None = None
        self.proportional_at = -math.inf
        self.told: set[str] = set()


class _Processes:
    def __init__(
        self, pids: Callable[[], Mapping[str, int]], psutil: Any, root: Path, clock: Callable[[], float]
    ) -> None:
        self._pids = pids
        self._psutil = psutil
        self._root = root
        self._clock = clock
        self._ended = (psutil.NoSuchProcess, ProcessLookupError)
        self._known: dict[str, _Known] = {}
        self._due: _Known | None = None
        self._parts: dict[Metric, Callable[[_Known], float | None]] = {
            PROCESS_CPU: _cpu_s,
            PROCESS_RESIDENT_MEMORY: lambda known: float(known.process.memory_info().rss),
            PROCESS_PROPORTIONAL_MEMORY: self._proportional,
            PROCESS_THREADS: lambda known: float(known.process.num_threads()),
            PROCESS_START_TIME: lambda known: float(known.process.create_time()),
        }
        if hasattr(psutil.Process, "num_fds"):
            self._parts[PROCESS_OPEN_FDS] = lambda known: float(known.process.num_fds())
        if hasattr(psutil.Process, "rlimit"):
            self._parts[PROCESS_MAX_FDS] = self._max_fds

    def read(self) -> list[Sample]:
        """Read every worker; what of it cannot be read leaves the rest whole."""
        self._known = self._meet(self._pids())
        self._due = self._longest_unread()
        samples: list[Sample] = []
        faults: list[Exception] = []
        for worker, known in self._known.items():
            try:
                found, failed = self._read(worker, known)
            except self._ended as error:
                logger.debug("Worker %s has ended: %s", worker, error)
            else:
                samples += found
                faults += failed
        if faults and not samples:
            raise faults[0]
        return samples

    def _meet(self, pids: Mapping[str, int]) -> dict[str, _Known]:
        """The workers of now; those that were met before as they were left."""
        met = {}
        for worker, pid in pids.items():
            known = self._known.get(worker)
            try:
                # A successor may have been given the number and the pid as well.
                if known is None or known.process.pid != pid or not known.process.is_running():
                    known = _Known(self._psutil.Process(pid))
                met[worker] = known
            except self._ended as error:
                logger.debug("Worker %s has ended: %s", worker, error)
        return met

    def _read(self, worker: str, known: _Known) -> tuple[list[Sample], list[Exception]]:
        """What there is of a worker, and why the rest is not."""
        samples: list[Sample] = []
        failed: dict[str, Exception] = {}
        with known.process.oneshot():
            for row, read in self._parts.items():
                try:
                    value = read(known)
                except self._ended:
                    raise
                except Exception as error:
                    failed[row.name] = error
                else:
                    if value is not None:
                        samples.append(Sample(row, value, {"worker": worker}))
        if news := [name for name in failed if name not in known.told]:
            known.told.update(news)
            logger.warning("Of worker %s there is no %s: %r", worker, ", ".join(news), failed[news[0]])
        return samples, list(failed.values())

    def _longest_unread(self) -> _Known | None:
        """Whose proportional memory is to be read now: of those that wait, the one that waits longest."""
        longest = min(self._known.values(), key=lambda known: known.proportional_at, default=None)
        is_due = longest is not None and self._clock() - longest.proportional_at >= _PROPORTIONAL_S
        return longest if is_due else None

    def _proportional(self, known: _Known) -> float | None:
        if known is self._due:
            # First: what fails is not tried again at each reading.
            known.proportional, known.proportional_at = None, self._clock()
            if known.process.memory_info().rss > _MOST_PROPORTIONAL_BYTES:
                return None
            said = pairs_of(self._root / f"proc/{known.process.pid}/smaps_rollup").get("Pss:")
            if said is not None:
                known.proportional = 1024.0 * int(said.removesuffix(" kB"))
        return known.proportional

    def _max_fds(self, known: _Known) -> float | None:
        most = known.process.rlimit(self._psutil.RLIMIT_NOFILE)[0]
        return None if most == self._psutil.RLIM_INFINITY else float(most)


def _cpu_s(known: _Known) -> float:
    times = known.process.cpu_times()
    return float(times.user + times.system)
