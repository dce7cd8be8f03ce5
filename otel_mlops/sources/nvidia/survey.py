"""What can be read of the NVIDIA GPUs here and what cannot, for those who ask why a series is absent."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from otel_mlops.metrics import GPU_XID_ERRORS
from otel_mlops.sources.nvidia.device import Device, World, find
from otel_mlops.sources.nvidia.driver import Driver, Failed, Gpu, Lost, Unsupported


class Finding(NamedTuple):
    """Whether a part of a GPU can be read here."""

    gpu: int
    name: str
    part: str
    """As the row it is about is called, where it is about one."""
    state: str
    """`supported`, `not supported`, `no permission`, `failed` or `lost`."""
    why: str
    """What the driver says; empty where it is supported."""


def survey(nvml: Any = None) -> list[Finding]:
    """Try everything once on every GPU that the driver shows, whatever CUDA_VISIBLE_DEVICES says.

    Reads:   NVML, for some milliseconds a GPU; nothing of it stays open.
    Errors:  ImportError without nvidia-ml-py; Unsupported, Failed, Lost or Gone if the driver cannot be opened.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    driver = Driver(nvml)
    driver.open()
    try:
        return [finding for index in range(driver.ask("nvmlDeviceGetCount")) for finding in _of(driver, index)]
    finally:
        driver.close()


def _of(driver: Driver, index: int) -> list[Finding]:
    world = World(pids=lambda: {"": os.getpid()})
    try:
        gpu = find(driver, world, index)
    except Unsupported as refusal:
        return [Finding(index, "", "gpu", "no permission", str(refusal))]
    except (Failed, Lost) as loss:
        return [Finding(index, "", "gpu", "lost", str(loss))]
    device = Device(driver, world, world.known[index], gpu)
    try:
        device.read()
    finally:
        device.close()
    if device.is_lost:
        return [Finding(index, gpu.name, "gpu", "lost", "it answers to its name and to nothing else")]
    _try_events(gpu)
    return [Finding(index, gpu.name, part, state.state, state.why) for part, state in sorted(gpu.states.items())]


def _try_events(gpu: Gpu) -> None:
    driver = gpu.driver
    with gpu.part(GPU_XID_ERRORS.name):
        events = driver.ask("nvmlEventSetCreate")
        try:
            gpu.ask("nvmlDeviceRegisterEvents", driver.nvml.nvmlEventTypeXidCriticalError, events)
        except Lost as loss:
            raise Failed(str(loss)) from loss
        finally:
            driver.ask("nvmlEventSetFree", events)
