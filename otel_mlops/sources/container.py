"""The container as a source: what its control group (cgroup v2) may use and uses, read from the kernel's files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from otel_mlops.metrics import (
    CONTAINER_CPU_LIMIT,
    CONTAINER_CPU_THROTTLED,
    CONTAINER_CPU_USAGE,
    CONTAINER_CPU_UTILIZATION,
    CONTAINER_MEMORY_EVENTS,
    CONTAINER_MEMORY_LIMIT,
    CONTAINER_MEMORY_USAGE,
    CONTAINER_MEMORY_UTILIZATION,
    CONTAINER_MEMORY_WORKING_SET,
)
from otel_mlops.sources.cgroup import ControlGroup
from otel_mlops.sources.files import pairs_of, text_of
from otel_mlops.sources.parts import Parts
from otel_mlops.sources.sampler import Absent, Sample, Source
from otel_mlops.sources.totals import Rate

_EVENTS = ("high", "max", "oom", "oom_kill")


def cpus_of_this_process() -> int:
    """Return how many CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_container(
    root: Path = Path("/"),
    *,
    cpus: Callable[[], int] = cpus_of_this_process,
    clock: Callable[[], float] = time.monotonic,
) -> Source:
    """Open the container that the process runs in as a source.

    Reads:   under `root`: proc/self/cgroup, proc/self/mountinfo, proc/meminfo and the group's cpu.* and memory.*;
             `cpus` says how many CPUs there are where the group's cpuset does not.
    Yields:  the rows CONTAINER; those about a limit only where there is one, the utilization of the CPUs from the
             second reading on.
    Absent when: cgroup v2 does not set the limits, or the process runs in the root of its tree.
    Errors:  a part that cannot be read is left out; a reading raises if nothing at all could be read.
    """
    return _Container(root, cpus, clock).read


class _Container:
    """Limits bind a group and all that lies in it: the tightest counts, and what the group uses that has it."""

    def __init__(self, root: Path, cpus: Callable[[], int], clock: Callable[[], float]) -> None:
        self._control_group = ControlGroup(root)
        self._cpus = cpus
        self._clock = clock
        self._rates: dict[Path, Rate] = {}
        self._parts = Parts("container", {"CPU": self._read_cpu, "memory": self._read_memory})

    def read(self) -> list[Sample]:
        """Find the groups, whose limits may have changed, and read both parts."""
        self._groups = self._control_group.find()
        samples = self._parts.read()
        if not samples:
            raise Absent("the control group tells neither of CPU nor of memory")
        return samples

    def _read_cpu(self) -> Iterator[Sample]:
        cpus = self._groups.cpus() or self._cpus()
        group, limit = self._groups.cpu_share(cpus)
        if limit is not None:
            yield Sample(CONTAINER_CPU_LIMIT, limit)
        spent = pairs_of(group / "cpu.stat")
        if "throttled_usec" in spent:
            yield Sample(CONTAINER_CPU_THROTTLED, int(spent["throttled_usec"]) / 1e6)
        if "usage_usec" in spent:
            usage_s = int(spent["usage_usec"]) / 1e6
            yield Sample(CONTAINER_CPU_USAGE, usage_s)
            # Where another group has the tightest limit now, the window begins anew.
            self._rates = {group: self._rates.get(group) or Rate(self._clock)}
            used_cores = self._rates[group].of(usage_s)
            if used_cores is not None:
                yield Sample(CONTAINER_CPU_UTILIZATION, used_cores / (limit or cpus))

    def _read_memory(self) -> Iterator[Sample]:
        group, limit = self._groups.memory_share(self._control_group.machines_memory())
        if limit is not None:
            yield Sample(CONTAINER_MEMORY_LIMIT, limit)
        said = text_of(group / "memory.current")
        if said is not None:
            current = int(said)
            yield Sample(CONTAINER_MEMORY_USAGE, current)
            inactive = pairs_of(group / "memory.stat").get("inactive_file")
            if inactive is not None:
                # The two are not read at the same moment.
                working_set = max(0, current - int(inactive))
                yield Sample(CONTAINER_MEMORY_WORKING_SET, working_set)
                if limit:
                    yield Sample(CONTAINER_MEMORY_UTILIZATION, working_set / limit)
        events = pairs_of(group / "memory.events")
        for event in _EVENTS:
            if event in events:
                yield Sample(CONTAINER_MEMORY_EVENTS, int(events[event]), {"event": event})
