"""Machines and containers that a test describes: psutil's fake, and trees of the kernel's files."""

from __future__ import annotations

import shutil
import threading
from collections import namedtuple
from pathlib import Path
from typing import NamedTuple

LINUX_TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")


class Memory(NamedTuple):
    """The fields of psutil's that every system has."""

    total: int
    available: int
    percent: float
    used: int
    free: int


class Swap(NamedTuple):
    """The fields of psutil's that every system has."""

    total: int
    used: int
    free: int
    percent: float


class Usage(NamedTuple):
    """The space of a file system."""

    total: int
    used: int
    free: int
    percent: float


class Partition(NamedTuple):
    """A mounted file system."""

    device: str
    mountpoint: str
    fstype: str
    opts: str


class Sensor(NamedTuple):
    """A temperature."""

    label: str
    current: float | None
    high: float | None
    critical: float | None


class Disk(NamedTuple):
    """What a disk counts."""

    read_bytes: int
    write_bytes: int


class Interface(NamedTuple):
    """What an interface of the network counts."""

    bytes_sent: int
    bytes_recv: int


class FakePsutil:
    """What the machine is read through: psutil with a machine that the test describes."""

    def __init__(self):
        self.LINUX, self.WINDOWS = True, False
        self.times = dict.fromkeys(LINUX_TIMES, 0.0) | {"user": 100.0, "idle": 900.0}
        self.cpus = 1
        self.load = (1.5, 1.0, 0.5)
        self.memory = Memory(total=1000, available=400, percent=60.0, used=500, free=100)
        self.swap = Swap(total=100, used=25, free=75, percent=25.0)
        self.partitions = [Partition("/dev/sda1", "/", "ext4", "rw"), Partition("/dev/sdb1", "/data", "xfs", "rw")]
        self.usages = {"/": Usage(100, 40, 60, 40.0), "/data": Usage(200, 50, 150, 25.0)}
        self.disks = {"sda": Disk(1000, 100), "sda1": Disk(990, 100)}
        self.interfaces = {"lo": Interface(7, 7), "eth0": Interface(10, 200)}
        self.sensors = {}
        self.leave = threading.Event()

    def cpu_times(self):
        return namedtuple("Times", self.times)(**self.times)  # noqa: PYI024 (the fields are the system's)

    def cpu_count(self, logical=True):
        return self.cpus

    def getloadavg(self):
        return self.load

    def virtual_memory(self):
        return self.memory

    def swap_memory(self):
        return self.swap

    def disk_partitions(self, all=False):  # noqa: A002 (psutil's name)
        assert all is False
        return self.partitions

    def disk_usage(self, path):
        usage = self.usages[path]
        if usage == "hangs":
            self.leave.wait(30)
            usage = Usage(1, 1, 0, 100.0)
        if isinstance(usage, Exception):
            raise usage
        return usage

    def disk_io_counters(self, perdisk=False, nowrap=True):
        # Else psutil keeps state that all its callers share, and that a fork or a `cache_clear()` changes.
        assert perdisk is True
        assert nowrap is False
        if isinstance(self.disks, Exception):
            raise self.disks
        return self.disks

    def net_io_counters(self, pernic=False, nowrap=True):
        assert pernic is True
        assert nowrap is False
        return self.interfaces

    def sensors_temperatures(self):
        return self.sensors

    def spend(self, **seconds: float) -> None:
        """Let CPU time pass."""
        for field, spent in seconds.items():
            self.times[field] += spent


class Tree:
    """The kernel's files under a folder, which stands for the root."""

    def __init__(self, root: Path):
        self.root = root

    def write(self, path: str, text: str = "") -> None:
        """Let a file say something, whether it was there or not."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", errors="surrogateescape")

    def link(self, path: str, to: str) -> None:
        """Let a path lead to another of the tree."""
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.root / to)

    def remove(self, path: str) -> None:
        """Take away a file, or a folder with all in it."""
        gone = self.root / path
        if gone.is_dir():
            shutil.rmtree(gone)
        else:
            gone.unlink()

    def disk(self, name: str) -> None:
        """Have a disk that is real."""
        self.write(f"sys/block/{name}/device/model", "a disk")

    def interface(self, name: str, *, real: bool = False, kind: str = "1", **files: str) -> None:
        """Have an interface of the network, with what else lies in its folder."""
        folder = f"sys/class/net/{name}"
        self.write(f"{folder}/type", f"{kind}\n")
        if real:
            self.write(f"{folder}/device/vendor", "0x1af4")
        for file, text in files.items():
            self.write(f"{folder}/{file}", text)

    def pressure(self, folder: str = "proc/pressure", **totals_us: int) -> None:
        """Let tasks have waited, in microseconds by resource."""
        for resource, total in totals_us.items():
            name = resource if folder == "proc/pressure" else f"{resource}.pressure"
            averages = "avg10=1.00 avg60=2.00 avg300=3.00"
            lines = f"some {averages} total={total}\nfull {averages} total={total // 2}\n"
            self.write(f"{folder}/{name}", lines)

    def group(self, path: str = "/", mount_point: str = "/sys/fs/cgroup", inside: str = "/") -> None:
        """Run in a group of cgroup v2, whose tree, or what of it is `inside`, is mounted somewhere."""
        self.write("proc/self/cgroup", f"0::{path}\n")
        blanks = mount_point.replace(" ", "\\040")
        self.write(
            "proc/self/mountinfo",
            "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
            "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
            f"29 22 0:26 {inside} {blanks} ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n",
        )

    def limits(self, group: str = "", *, cpu: str = "max 100000", memory: str = "max") -> None:
        """Limit a group of the tree, and let it have used something."""
        folder = f"sys/fs/cgroup{group}"
        self.write(f"{folder}/cpu.max", f"{cpu}\n")
        self.write(f"{folder}/memory.max", f"{memory}\n")

    def uses(
        self, group: str = "", *, cpu_s: float = 0, throttled_s: float = 0, memory: int = 0, file: int = 0
    ) -> None:
        """Let a group have used CPU time and memory, of which `file` is cache that is not in use."""
        folder = f"sys/fs/cgroup{group}"
        usage, throttled = round(cpu_s * 1e6), round(throttled_s * 1e6)
        self.write(
            f"{folder}/cpu.stat",
            f"usage_usec {usage}\nuser_usec {usage}\nsystem_usec 0\n"
            f"nr_periods 10\nnr_throttled 2\nthrottled_usec {throttled}\n",
        )
        self.write(f"{folder}/memory.current", f"{memory}\n")
        self.write(f"{folder}/memory.stat", f"anon {memory - file}\nfile {file}\ninactive_file {file}\n")

    def events(self, group: str = "", **times: int) -> None:
        """Let a group have met its memory limit."""
        lines = "".join(f"{event} {count}\n" for event, count in times.items())
        self.write(f"sys/fs/cgroup{group}/memory.events", lines)


def values(samples, row):
    """The values of a row among samples, by its attributes' values."""
    return {tuple(sample.attributes.values()): sample.value for sample in samples if sample.metric is row}


def only(samples, row):
    """The value of a row that has no attributes, or None."""
    return values(samples, row).get(())
