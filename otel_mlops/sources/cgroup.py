"""The control group (cgroup v2) that the process runs in: where it lies and its limits; what it uses is not here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from otel_mlops.sources.files import lines_of, pairs_of, text_of
from otel_mlops.sources.sampler import Absent

_NOT_OF_THE_ROOT = ("cgroup.type", "cpu.max", "memory.current")
"""Files that groups have and the root of the machine has not, as nothing limits it."""


class Share(NamedTuple):
    """A group whose use counts, and its limit, if there is one."""

    group: Path
    limit: float | None


class Groups(NamedTuple):
    """The folders of the process's own group and of those that it lies in."""

    own_first: tuple[Path, ...]
    are_a_containers: bool
    """Whether the outermost is all that is seen of the tree, as it is in a container."""

    def cpus(self) -> int | None:
        """How many CPUs the own group may run on, if it is said."""
        said = text_of(self.own_first[0] / "cpuset.cpus.effective")
        return sum(map(_length, said.split(","))) if said else None

    def cpu_share(self, most: float | None) -> Share:
        """The group with the tightest CPU limit, in cores, or the own one if none is limited below `most`."""
        return self._tightest(_cores, most)

    def memory_share(self, most: float | None) -> Share:
        """The group with the tightest memory limit, in bytes, or the own one if none is limited below `most`."""
        return self._tightest(_bytes, most)

    def _tightest(self, limit: Callable[[Path], float | None], most: float | None) -> Share:
        tightest = Share(self.own_first[0], None)
        for group in self.own_first:
            found = limit(group)
            if found is None or (most is not None and found > most):
                continue  # what exceeds all that there is limits nothing
            if tightest.limit is None or found < tightest.limit:
                tightest = Share(group, found)
        return tightest


class ControlGroup:
    """The way to the process's own group, looked up at each reading: a process can be moved."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._own: str | None = None
        self._groups: Groups | None = None

    def find(self) -> Groups:
        """Return the groups that the process runs in now.

        Errors:  Absent where there is no cgroup v2, or no group but the root of the machine.
        """
        own = self._read_own()
        if self._groups is None or self._own != own:
            self._groups = self._look(own)
            self._own = own
        return self._groups

    def machines_memory(self) -> int | None:
        """How much memory the machine has, in bytes, if it is said."""
        said = pairs_of(self._root / "proc/meminfo").get("MemTotal:")
        return None if said is None else 1024 * int(said.split()[0])

    def _read_own(self) -> str:
        """The path of the own group as the kernel says it, from the root of its namespace."""
        own = None
        for line in lines_of(self._root / "proc/self/cgroup"):
            number, controllers, path = line.split(":", 2)
            if number == "0":
                own = path
            elif {"cpu", "memory"} & set(controllers.split(",")):
                raise Absent("the limits are those of cgroup v1, and only v2 is read")
        if own is None:
            raise Absent("there is no control group (cgroup v2)")
        return own

    def _look(self, own: str) -> Groups:
        for inside, mount_point in self._mounts():
            if not PurePosixPath(own).is_relative_to(inside):
                continue  # it shows a part of the tree that the own group is not in
            below = PurePosixPath(own).relative_to(inside)
            top = self._root / mount_point.lstrip("/")
            if ".." in below.parts or not (top / below).is_dir():
                continue  # the own group lies outside the namespace
            groups = tuple(top / each for each in (below, *below.parents))
            is_a_group = any((top / name).exists() for name in _NOT_OF_THE_ROOT)
            if groups == (top,) and not is_a_group:
                raise Absent("the process runs in no control group but the machine's root")
            return Groups(groups, are_a_containers=is_a_group)
        raise Absent("the own control group is in no mount of cgroup v2 that is seen here")

    def _mounts(self) -> Iterator[tuple[str, str]]:
        """What part of the tree each mount of cgroup v2 shows, and where."""
        for line in lines_of(self._root / "proc/self/mountinfo"):
            mount, _, of = line.partition(" - ")
            if of.split(" ", 1)[0] == "cgroup2":
                inside, mount_point = mount.split(" ")[3:5]
                yield _unescaped(inside), _unescaped(mount_point)


def _cores(group: Path) -> float | None:
    said = text_of(group / "cpu.max")
    if said is None:
        return None
    quota, period = said.split()
    return None if quota == "max" else int(quota) / int(period)


def _bytes(group: Path) -> int | None:
    said = text_of(group / "memory.max")
    return None if said in (None, "max") else int(said)


def _length(cpus: str) -> int:
    """How many CPUs a range has: 4 in `0-3`, 1 in `7`."""
    first, _, last = cpus.partition("-")
    length = int(last or first) - int(first) + 1
    if length < 1:
        raise ValueError(f"{cpus!r} is no range of CPUs")
    return length


def _unescaped(path: str) -> str:
    """A path of mountinfo, in which blanks and the like stand as their octal codes."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), path)
