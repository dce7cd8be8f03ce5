"""The pressure on CPU, memory and IO, as Linux tells it (PSI): of the container's own tasks or of the machine's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from otel_mlops.metrics import SYSTEM_PRESSURE
from otel_mlops.sources.cgroup import ControlGroup
from otel_mlops.sources.files import lines_of
from otel_mlops.sources.sampler import Absent, Sample
from otel_mlops.sources.totals import Rate

_RESOURCES = ("cpu", "memory", "io")


class Pressure:
    """For what share of the time some task waited, between two readings.

    It is made of the total, which every reader sees alike; the averages beside it are those of fixed windows.
    """

    def __init__(self, root: Path, clock: Callable[[], float]) -> None:
        self._root = root
        self._clock = clock
        self._group = ControlGroup(root)
        self._rates: dict[Path, Rate] = {}

    def read(self) -> Iterator[Sample]:
        """Read the totals; at the first reading there is no window yet, and nothing is given."""
        group = self._containers_group()
        waits = {resource: self._wait_of(resource, group) for resource in _RESOURCES}
        # A file that is not the last one's begins a window of its own.
        self._rates = {path: self._rates.get(path, Rate(self._clock)) for path, _ in filter(None, waits.values())}
        for resource, wait in waits.items():
            if wait is None:
                continue
            path, total_us = wait
            ratio = self._rates[path].of(total_us / 1e6)
            if ratio is not None:
                # The clock is read a moment after the total.
                yield Sample(SYSTEM_PRESSURE, min(1.0, ratio), {"resource": resource})

    def _wait_of(self, resource: str, group: Path | None) -> tuple[Path, int] | None:
        """Which file says for how long some task has waited, and what it says."""
        files = [] if group is None else [group / f"{resource}.pressure"]
        for path in (*files, self._root / "proc/pressure" / resource):
            for line in lines_of(path):
                kind, *fields = line.split()
                if kind == "some":
                    return path, int(dict(field.split("=", 1) for field in fields)["total"])
        return None

    def _containers_group(self) -> Path | None:
        """The own group where it is a container's: where nothing else is seen of the tree, or it is limited."""
        try:
            groups = self._group.find()
        except Absent:
            return None
        limits = groups.cpu_share(None).limit, groups.memory_share(self._group.machines_memory()).limit
        return groups.own_first[0] if groups.are_a_containers or limits != (None, None) else None
