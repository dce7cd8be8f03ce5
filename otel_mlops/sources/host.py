"""The machine as a source: CPU, memory, disks and temperatures, read through psutil."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from otel_mlops.metrics import (
    HARDWARE_TEMPERATURE,
    SYSTEM_CPU_USAGE,
    SYSTEM_DISK_TOTAL,
    SYSTEM_DISK_USAGE,
    SYSTEM_MEMORY_TOTAL,
    SYSTEM_MEMORY_USAGE,
)
from otel_mlops.sources.sampler import Sample, Source

logger = logging.getLogger(__name__)

_SHORTEST_WINDOW_S = 0.1
_IMAGES = frozenset({"squashfs", "iso9660", "udf", "erofs", "cramfs"})


def open_host(psutil: Any = None, *, disk_timeout_s: float = 1.0) -> Source:
    """Open the machine as a source.

    Reads:   cpu_times, virtual_memory, disk_partitions, disk_usage per mount, sensors_temperatures.
    Yields:  SYSTEM_CPU_USAGE, SYSTEM_MEMORY_USAGE, SYSTEM_MEMORY_TOTAL, SYSTEM_DISK_USAGE,
             SYSTEM_DISK_TOTAL, HARDWARE_TEMPERATURE.
    Absent when: the machine has no such sensor, or a part cannot be read; the other parts are there still.
    Errors:  ImportError without psutil; a reading raises if no part at all could be read.
    """
    if psutil is None:
        import psutil
    return _Host(psutil, disk_timeout_s).read


class _Host:
    def __init__(self, psutil: Any, disk_timeout_s: float) -> None:
        self._psutil = psutil
        self._cpu = _Cpu(psutil.cpu_times)
        self._disks = _Disks(psutil, disk_timeout_s)
        self._failing: set[str] = set()

    def read(self) -> Iterable[Sample]:
        """Read every part; one that fails leaves the others whole and is logged once until it is back."""
        parts: dict[str, Callable[[], Iterable[Sample]]] = {
            "cpu": self._cpu.read,
            "memory": self._memory,
            "disks": self._disks.read,
            "temperatures": self._temperatures,
        }
        samples: list[Sample] = []
        faults: list[Exception] = []
        for part, read in parts.items():
            try:
                samples.extend(read())
            except Exception as error:
                faults.append(error)
                if part not in self._failing:
                    self._failing.add(part)
                    logger.warning("The machine's %s cannot be read: %r", part, error)
            else:
                self._failing.discard(part)
        if faults and not samples:
            raise faults[0]
        return samples

    def _memory(self) -> Iterator[Sample]:
        memory = self._psutil.virtual_memory()
        yield Sample(SYSTEM_MEMORY_USAGE, memory.total - memory.available)
        yield Sample(SYSTEM_MEMORY_TOTAL, memory.total)

    def _temperatures(self) -> Iterator[Sample]:
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
                    yield Sample(HARDWARE_TEMPERATURE, sensor.current, {"component": _text(component)})


class _Cpu:
    """The share of CPU time in use between two readings, of which the first is made when it is opened.

    psutil's own `cpu_percent` keeps its last reading per thread, and gives 0 to a thread that is new to it.
    """

    def __init__(self, cpu_times: Callable[[], Any]) -> None:
        self._cpu_times = cpu_times
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
        if last and sum(spent.values()) < _SHORTEST_WINDOW_S:
            if self._percent is None:
                self._percent = _percent(times)
        else:
            self._last, self._percent = times, _percent(spent)
        return () if self._percent is None else [Sample(SYSTEM_CPU_USAGE, self._percent)]

    def _read_times(self) -> dict[str, float]:
        times: dict[str, float] = self._cpu_times()._asdict()
        # Linux counts a guest's time in user and nice already, Windows the interrupts in system.
        parts = ("guest", "guest_nice", "interrupt", "dpc")
        return {field: seconds for field, seconds in times.items() if field not in parts}


def _percent(spent: dict[str, float]) -> float | None:
    total = sum(spent.values())
    idle = spent.get("idle", 0.0) + spent.get("iowait", 0.0)
    return 100.0 * (total - idle) / total if total else None


class _Disks:
    """The space of the real file systems, at one mount point for each device."""

    def __init__(self, psutil: Any, timeout_s: float) -> None:
        self._psutil = psutil
        self._timeout_s = timeout_s
        self._silent: dict[str, threading.Thread] = {}
        self._unreadable: set[str] = set()

    def read(self) -> Iterator[Sample]:
        """Ask each device in a thread of its own: statvfs on a dead mount never returns."""
        for device, mounts in self._devices().items():
            stuck = self._silent.get(device)
            if stuck is not None and stuck.is_alive():
                continue
            samples: list[Sample] = []
            asking = threading.Thread(name="otel-mlops-disk", target=self._ask, args=(mounts, samples), daemon=True)
            try:
                asking.start()
            except RuntimeError:
                if threading.main_thread().is_alive():
                    raise
                return  # from Python 3.12 on none starts any more: the program is ending
            asking.join(self._timeout_s)
            if asking.is_alive():
                self._silent[device] = asking
                logger.warning("The file system at %s does not answer; left out until it does", mounts[0])
                continue
            if self._silent.pop(device, None) is not None:
                logger.info("The file system at %s answers again", mounts[0])
            yield from samples

    def _devices(self) -> dict[str, list[str]]:
        """The mount points of each device, and `/` whatever it is: in a container it is an overlay."""
        devices: dict[str, list[str]] = {}
        for partition in self._psutil.disk_partitions(all=False):
            if partition.fstype not in _IMAGES and not partition.device.startswith("/dev/loop"):
                devices.setdefault(partition.device, []).append(partition.mountpoint)
        if os.name == "posix" and not any("/" in mounts for mounts in devices.values()):
            devices["/"] = ["/"]
        return {device: sorted(mounts, key=len) for device, mounts in devices.items()}

    def _ask(self, mounts: list[str], samples: list[Sample]) -> None:
        """Read the first of a device's mount points that is a file system's: the others show the same one."""
        for mount in mounts:
            try:
                # A container has single files mounted (/etc/hosts) from the host's disk.
                usage = None if Path(mount).is_file() else self._psutil.disk_usage(mount)
            except Exception as error:
                if mount not in self._unreadable:
                    self._unreadable.add(mount)
                    logger.warning("The file system at %s cannot be read: %s", mount, error)
                continue
            self._unreadable.discard(mount)
            if usage is not None and usage.total > 0:
                attributes = {"mount_point": _text(mount)}
                samples += [
                    Sample(SYSTEM_DISK_USAGE, usage.used, attributes),
                    Sample(SYSTEM_DISK_TOTAL, usage.total, attributes),
                ]
                return


def _is_measured(celsius: float | None) -> bool:
    """Say whether a sensor measured anything: Linux gives 0, or absolute zero, for one not connected."""
    if celsius is None or not math.isfinite(celsius):
        return False
    return celsius != 0.0 and celsius > -100.0


def _text(name: str) -> str:
    """A name as it can be written in UTF-8: psutil gives bytes that are none as lone surrogates."""
    return name.encode("utf-8", "replace").decode()
