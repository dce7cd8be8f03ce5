"""Which GPUs a process may use, by its CUDA_VISIBLE_DEVICES as CUDA understands it; no value of a GPU is read here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from otel_mlops.sources.nvidia.driver import Driver, Failed, Lost, Unsupported

VISIBLE_DEVICES, DEVICE_ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"

_NUMBER = re.compile(r"[+-]?\d{1,9}", re.ASCII)
_OLD_INSTANCE = re.compile(r"MIG-(GPU-[^/]+)/\d+/\d+")
_NAMED = ("GPU-", "MIG-")

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a GPU is called: the driver's number for it, its uuid, its model."""

    index: int
    uuid: str
    name: str


@dataclass(frozen=True, slots=True)
class Visible:
    """A device that a process may use: a GPU, or one MIG instance of it."""

    index: int
    uuid: str
    """The GPU's, for an instance too."""
    instance: str | None = None
    """The uuid of the MIG instance."""


class UnknownOrder(Exception):  # noqa: N818 (it is no error of the user's)
    """CUDA counts the GPUs the fastest first, and which that is only CUDA knows."""


def visible_devices(
    environ: Mapping[str, str],
    gpus: Sequence[Identity],
    parent_of: Callable[[str], str | None] = lambda _uuid: None,
) -> list[Visible]:
    """Return the devices that CUDA_VISIBLE_DEVICES in an environment leaves.

    `gpus` are all that the driver shows, in its order; `parent_of` gives the uuid of the GPU that a MIG instance is
    on. An entry is an index, the beginning of a GPU's uuid, or a MIG instance's uuid. The list ends before the first
    entry that is none of them, and one that names a device twice leaves none. An index counts whole GPUs.
    Errors:  UnknownOrder if there are indices, GPUs of several models, and no CUDA_DEVICE_ORDER=PCI_BUS_ID.
    Source:  CUDA C++ Programming Guide, "CUDA Environment Variables"; the tests of PyTorch's torch.cuda.

    >>> two = [Identity(0, "GPU-aa", "H100"), Identity(1, "GPU-bb", "H100")]
    >>> visible_devices({"CUDA_VISIBLE_DEVICES": "1,7,0"}, two)
    [Visible(index=1, uuid='GPU-bb', instance=None)]
    """
    text = environ.get(VISIBLE_DEVICES)
    if text is None:
        return [Visible(gpu.index, gpu.uuid) for gpu in gpus]
    entries = _entries(text)
    left = _until_none(_device(entry, gpus, parent_of) for entry in entries)
    if len(set(entries)) < len(entries) or len(set(left)) < len(left):
        return []
    if 0 < len(left) < len(gpus) and isinstance(entries[0], int) and not _is_ordered(environ, gpus):
        raise UnknownOrder(f"{VISIBLE_DEVICES}={text} counts the fastest GPU first: set {DEVICE_ORDER}=PCI_BUS_ID")
    return left


def leaves_none(environ: Mapping[str, str]) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES leaves no device, whatever there is: it is empty, or begins with no name."""
    text = environ.get(VISIBLE_DEVICES)
    return text is not None and not _entries(text)


def parent_in(driver: Driver) -> Callable[[str], str | None]:
    """Return what gives the uuid of the GPU that a MIG instance is on, or None if there is no such instance."""

    def parent_of(uuid: str) -> str | None:
        try:
            instance = driver.ask("nvmlDeviceGetHandleByUUID", uuid)
            gpu = driver.ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", instance)
            return str(driver.ask("nvmlDeviceGetUUID", gpu))
        except (Unsupported, Failed, Lost):
            return None

    return parent_of


def _entries(text: str) -> list[int] | list[str]:
    """The indices, or the names of one kind, before the first entry that is no such thing."""
    if not text.startswith(_NAMED):
        return _until_none(map(_number, text.split(",")))
    return _until_none(entry if entry.startswith(text[:4]) else None for entry in text.split(","))


def _number(entry: str) -> int | None:
    """The number that an entry begins with, as strtoul reads it: `1gpu` is 1. A negative one is none."""
    found = _NUMBER.match(entry.strip())
    number = int(found[0]) if found else -1
    return number if number >= 0 else None


def _device(entry: int | str, gpus: Sequence[Identity], parent_of: Callable[[str], str | None]) -> Visible | None:
    """The device that an entry names, if it is there and the only one."""
    if isinstance(entry, int):
        named = list(gpus[entry : entry + 1])
    elif entry.startswith("GPU-"):
        named = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
    else:
        old = _OLD_INSTANCE.fullmatch(entry)
        parent = old[1] if old else parent_of(entry)
        named = [gpu for gpu in gpus if gpu.uuid == parent]
    instance = entry if isinstance(entry, str) and entry.startswith("MIG-") else None
    return Visible(named[0].index, named[0].uuid, instance) if len(named) == 1 else None


def _is_ordered(environ: Mapping[str, str], gpus: Sequence[Identity]) -> bool:
    """Whether CUDA's indices are the driver's: those of the PCI bus. Of equally fast GPUs they are in any case."""
    return environ.get(DEVICE_ORDER, "").strip() == "PCI_BUS_ID" or len({gpu.name for gpu in gpus}) == 1


def _until_none(items: Iterable[_Item | None]) -> list[_Item]:
    """The items before the first that is None."""
    found: list[_Item] = []
    for item in items:
        if item is None:
            break
        found.append(item)
    return found
