"""The disks: the space of the file systems on them, and the bytes read and written."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from otel_mlops.metrics import SYSTEM_DISK_IO, SYSTEM_DISK_TOTAL, SYSTEM_DISK_USAGE
from otel_mlops.sources.files import text_of
from otel_mlops.sources.sampler import Sample
from otel_mlops.sources.totals import Sum

logger = logging.getLogger(__name__)

_IMAGES = frozenset({"squashfs", "iso9660", "udf", "erofs", "cramfs"})
_NVME_PATH = re.compile(r"(nvme\d+)c\d+(n\d+)")


class Space:
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
                attributes = {"mount_point": readable(mount)}
                samples += [
                    Sample(SYSTEM_DISK_USAGE, usage.used, attributes),
                    Sample(SYSTEM_DISK_TOTAL, usage.total, attributes),
                ]
                return


class Traffic:
    """The bytes that were read from and written to the disks that are real, each counted once."""

    def __init__(self, psutil: Any, root: Path) -> None:
        self._psutil = psutil
        self._of_disks = root / "sys/block" if psutil.LINUX else None
        self._read, self._written = Sum(), Sum()

    def read(self) -> Iterator[Sample]:
        """Read the kernel's own counts: with `nowrap` psutil keeps some of its own, for all who ask it."""
        try:
            counts = self._psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        except NotImplementedError as error:
            logger.debug("There is no accounting of disks: %s", error)
            return
        disks = [name for name in counts if self._is_disk(name)]
        if not disks:
            return
        paths = [(name, path[1] + path[2]) for name in counts if (path := _NVME_PATH.fullmatch(name))]

        def moved(field: str) -> dict[str, int]:
            moved = {disk: getattr(counts[disk], field) for disk in disks}
            for disk in moved.keys() & {to for _, to in paths}:
                # Before Linux 6.4 an NVMe disk with several paths counts nothing itself, since then both do.
                moved[disk] = max(moved[disk], sum(getattr(counts[name], field) for name, to in paths if to == disk))
            return moved

        yield Sample(SYSTEM_DISK_IO, self._read.of(moved("read_bytes")), {"direction": "read"})
        yield Sample(SYSTEM_DISK_IO, self._written.of(moved("write_bytes")), {"direction": "write"})

    def _is_disk(self, name: str) -> bool:
        """Say whether it is a disk: not a partition, nor a device made of others, of files or of memory."""
        if self._of_disks is None:
            return True  # elsewhere than on Linux psutil gives no others
        disk = self._of_disks / name.replace("/", "!")
        return (disk / "device").exists() and text_of(disk / "hidden") != "1"


def readable(name: str) -> str:
    """Return a name as it can be written in UTF-8: psutil gives bytes that are none as lone surrogates."""
    return name.encode("utf-8", "replace").decode()
