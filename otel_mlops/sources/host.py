"""The machine as a source: CPU, memory and temperatures, read through psutil; disks and network lie beside it."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from otel_mlops.metrics import (
    HARDWARE_TEMPERATURE,
    SYSTEM_CPU_LOAD_1M,
    SYSTEM_CPU_LOAD_5M,
    SYSTEM_CPU_LOAD_15M,
    SYSTEM_CPU_USAGE,
    SYSTEM_MEMORY_TOTAL,
    SYSTEM_MEMORY_USAGE,
    SYSTEM_SWAP_TOTAL,
    SYSTEM_SWAP_USAGE,
)
from otel_mlops.sources.disks import Space, Traffic, readable
from otel_mlops.sources.network import Network
from otel_mlops.sources.parts import Parts
from otel_mlops.sources.pressure import Pressure
from otel_mlops.sources.sampler import Sample, Source
from otel_mlops.sources.totals import SHORTEST_WINDOW_S

logger = logging.getLogger(__name__)


def open_host(
    psutil: Any = None,
    *,
    disk_timeout_s: float = 1.0,
    root: Path = Path("/"),
    clock: Callable[[], float] = time.monotonic,
) -> Source:
    """Open the machine as a source.

    Reads:   psutil's cpu_times, getloadavg, virtual_memory, swap_memory, disk_partitions, disk_usage per mount,
             disk_io_counters, net_io_counters and sensors_temperatures; on Linux, under `root`, proc/pressure,
             sys/block, sys/class/net and the pressure of the own control group.
    Yields:  the rows SYSTEM but SYSTEM_INFO; the pressure from the second reading on.
    Absent when: the machine has no such thing (a sensor, pressure, a load average), or a part cannot be read; the
             other parts are there still.
    Errors:  ImportError without psutil; a reading raises if no part at all could be read.
    """
    if psutil is None:
        import psutil
    machine = _Machine(psutil)
    return Parts(
        "machine",
        {
            "CPU": _Cpu(psutil).read,
            "load": machine.load,
            "pressure": Pressure(root, clock).read,
            "memory": machine.memory,
            "swap": machine.swap,
            "disks": Space(psutil, disk_timeout_s).read,
            "disk traffic": Traffic(psutil, root).read,
            "network": Network(psutil, root).read,
            "temperatures": machine.temperatures,
        },
    ).read


class _Machine:
    """What psutil says at once, without a reading before."""

    def __init__(self, psutil: Any) -> None:
        self._psutil = psutil

    def load(self) -> Iterator[Sample]:
        # On Windows psutil imitates it: it starts a thread for it, and says 0 at first.
        if not self._psutil.WINDOWS:
            rows = (SYSTEM_CPU_LOAD_1M, SYSTEM_CPU_LOAD_5M, SYSTEM_CPU_LOAD_15M)
            yield from map(Sample, rows, self._psutil.getloadavg())

    def memory(self) -> Iterator[Sample]:
        memory = self._psutil.virtual_memory()
        yield Sample(SYSTEM_MEMORY_USAGE, memory.total - memory.available)
        yield Sample(SYSTEM_MEMORY_TOTAL, memory.total)

    def swap(self) -> Iterator[Sample]:
        swap = self._psutil.swap_memory()
        yield Sample(SYSTEM_SWAP_USAGE, swap.used)
        yield Sample(SYSTEM_SWAP_TOTAL, swap.total)

    def temperatures(self) -> Iterator[Sample]:
        read = getattr(self._psutil, "sensors_temperatures", None)
        if read is None:
            return
        times_named: Counter[str] = Counter()
        for chip, sensors in read().items():
            for sensor in sensors:
                component = f"{chip}/{sensor.label}" if sensor.label else chip
                times_named[component] += 1
                if times_named[component] > 1:
                    # Two sockets or two drives carry the same names.
                    component = f"{component}#{times_named[component]}"
                if _is_measured(sensor.current):
                    yield Sample(HARDWARE_TEMPERATURE, sensor.current, {"component": readable(component)})


def _is_measured(celsius: float | None) -> bool:
    """Say whether a sensor measured anything: Linux gives 0, or absolute zero, for one not connected."""
    if celsius is None or not math.isfinite(celsius):
        return False
    return celsius != 0.0 and celsius > -100.0


class _Cpu:
    """The share of CPU time in use between two readings, of which the first is made when it is opened.

    psutil's own `cpu_percent` keeps its last reading per thread, and gives 0 to a thread that is new to it.
    """

    def __init__(self, psutil: Any) -> None:
        self._psutil = psutil
        self._shortest_window_s = SHORTEST_WINDOW_S * (psutil.cpu_count() or 1)
        self._percent: float | None = None
        self._last: dict[str, float] | None = None
        try:
            self._last = self._read_times()
        except Exception as error:
            # The first reading of the source will meet it again, and say it.
            logger.debug("The CPU times cannot be read yet: %r", error)

    def read(self) -> Iterable[Sample]:
        """Read the times; a window too short to mean anything gives the last value, or that since boot."""
        times = self._read_times()
        last = self._last or {}
        # A field may step back: iowait does, and so does a sum over CPUs when one goes offline.
        spent = {field: max(0.0, seconds - last.get(field, 0.0)) for field, seconds in times.items()}
        if last and sum(spent.values()) < self._shortest_window_s:
            if self._percent is None:
                self._percent = _percent(times)
        else:
            self._last, self._percent = times, _percent(spent)
        return () if self._percent is None else [Sample(SYSTEM_CPU_USAGE, self._percent)]

    def _read_times(self) -> dict[str, float]:
        times: dict[str, float] = self._psutil.cpu_times()._asdict()
        # Linux counts a guest's time in user and nice already, Windows the interrupts in system.
        parts = ("guest", "guest_nice", "interrupt", "dpc")
        return {field: seconds for field, seconds in times.items() if field not in parts}


def _percent(spent: dict[str, float]) -> float | None:
    total = sum(spent.values())
    idle = spent.get("idle", 0.0) + spent.get("iowait", 0.0)
    return 100.0 * (total - idle) / total if total else None
