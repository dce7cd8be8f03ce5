"""What each source can read here and what it cannot, and why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from otel_mlops import metrics as rows
from otel_mlops.doctor.installed import Checked
from otel_mlops.doctor.patience import PATIENCE_S, within
from otel_mlops.settings import Settings

if TYPE_CHECKING:
    from otel_mlops.metrics import Metric
    from otel_mlops.sources.nvidia import Finding
    from otel_mlops.sources.sampler import Sample

_HOST: Mapping[str, tuple[Metric, ...]] = {
    "CPU": (rows.SYSTEM_CPU_USAGE,),
    "load": (rows.SYSTEM_CPU_LOAD_1M,),
    "memory": (rows.SYSTEM_MEMORY_USAGE, rows.SYSTEM_MEMORY_TOTAL),
    "swap": (rows.SYSTEM_SWAP_USAGE,),
    "disks": (rows.SYSTEM_DISK_USAGE, rows.SYSTEM_DISK_TOTAL),
    "disk traffic": (rows.SYSTEM_DISK_IO,),
    "network traffic": (rows.SYSTEM_NETWORK_IO,),
    "temperatures": (rows.HARDWARE_TEMPERATURE,),
}
_CONTAINER: Mapping[str, tuple[Metric, ...]] = {
    "CPU": (rows.CONTAINER_CPU_USAGE,),
    "CPU limit": (rows.CONTAINER_CPU_LIMIT,),
    "memory": (rows.CONTAINER_MEMORY_USAGE,),
    "memory limit": (rows.CONTAINER_MEMORY_LIMIT,),
    "memory events": (rows.CONTAINER_MEMORY_EVENTS,),
}
_PROCESS: Mapping[str, tuple[Metric, ...]] = {
    "CPU": (rows.PROCESS_CPU,),
    "resident memory": (rows.PROCESS_RESIDENT_MEMORY,),
    "proportional memory": (rows.PROCESS_PROPORTIONAL_MEMORY,),
    "file descriptors": (rows.PROCESS_OPEN_FDS,),
    "threads": (rows.PROCESS_THREADS,),
    "start": (rows.PROCESS_START_TIME,),
}
_NO_READING = {rows.GPU_UP, rows.GPU_READ_ERRORS}
_WHY_NOT = {
    "temperatures": "no sensor is shown, as in most virtual machines",
    "disk traffic": "no disk of its own is shown",
    "CPU limit": "there is none",
    "memory limit": "there is none",
}


def check_host(_: Settings) -> Checked:
    """What can be read of the machine."""
    from otel_mlops.sources.host import open_host

    samples = list(within(PATIENCE_S, open_host()))
    disks = [sample.attributes["mount_point"] for sample in samples if sample.metric is rows.SYSTEM_DISK_USAGE]
    yield from _told(samples, _HOST, more=f"the disks are {', '.join(disks)}" if disks else "")


def check_container(_: Settings) -> Checked:
    """What can be read of the container that this runs in."""
    from otel_mlops.sources.container import open_container
    from otel_mlops.sources.sampler import Absent

    try:
        samples = list(within(PATIENCE_S, open_container()))
    except Absent as absence:
        yield "ok", f"none is to be read: {absence}"
    else:
        yield from _told(samples, _CONTAINER)


def check_process(_: Settings) -> Checked:
    """What can be read of worker processes, with this one in the place of a worker."""
    from otel_mlops.sources.process import open_process

    read = open_process(lambda: {"0": os.getpid()})
    yield from _told(list(within(PATIENCE_S, read)), _PROCESS)


def check_gpu(settings: Settings) -> Checked:
    """What can be read of the GPUs, each part with what the driver says where it cannot."""
    import pynvml

    from otel_mlops.sources.nvidia import survey
    from otel_mlops.sources.nvidia.driver import code_of
    from otel_mlops.sources.nvidia.visible import VISIBLE_DEVICES

    try:
        findings = within(PATIENCE_S, survey)
    except TimeoutError as error:
        yield "note", f"none can be read: the NVIDIA driver gave {error}"
    except Exception as error:
        if code_of(error) == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            yield "note", "none: there is no NVIDIA driver here"
        else:
            yield "note", f"none can be read: the NVIDIA driver says {error}"
    else:
        if not findings:
            yield "note", "none; the NVIDIA driver is there"
        for gpu in sorted({finding.gpu for finding in findings}):
            yield from _of_gpu(gpu, [finding for finding in findings if finding.gpu == gpu])
        if findings and "nvidia" not in settings.sources:
            yield "note", "they are not read: nvidia is not among the sources"
        elif findings and settings.gpus == "visible" and VISIBLE_DEVICES in os.environ:
            visible = os.environ[VISIBLE_DEVICES]
            yield "note", f"of them {VISIBLE_DEVICES}={visible} says which are shown: OTEL_MLOPS_GPUS=all shows all"


def check_amd(settings: Settings, load: Callable[[], Any] | None = None) -> Checked:
    """What can be read of AMD's GPUs, where ROCm's package is installed; `load` gives it."""
    from otel_mlops.leading import has_amdsmi
    from otel_mlops.sources.amd import open_amd
    from otel_mlops.sources.sampler import Absent

    if load is None and not has_amdsmi():
        yield "note", "not looked for: pip install 'otel-mlops[amd]' where ROCm is"
        return
    try:
        samples = within(PATIENCE_S, open_amd(load, gpus="all"))
    except Absent as absence:
        yield "note", f"none: {absence}"
    except Exception as error:
        yield "note", f"none can be read: {error}"
    else:
        for up in samples:
            if up.metric is rows.GPU_UP:
                gpu, name = up.attributes["gpu_id"], up.attributes["gpu_name"]
                read = {each.metric for each in samples if each.attributes.get("gpu_id") == gpu} - _NO_READING
                can = f": {len(read)} metrics can be read; no value has been compared with a real GPU yet"
                yield ("ok" if up.value else "fault"), f"{gpu} ({name}){can if up.value else ' does not answer'}"
        if "amd" not in settings.sources:
            yield "note", "they are not read: amd is not among the sources"


def _told(samples: Iterable[Sample], parts: Mapping[str, tuple[Metric, ...]], more: str = "") -> Checked:
    there = {sample.metric for sample in samples}
    read = [part for part, wanted in parts.items() if there.issuperset(wanted)]
    missing = [part for part in parts if part not in read]
    yield "ok", "; ".join(filter(None, (", ".join(read) or "nothing", more)))
    if missing:
        told = (f"{part} ({_WHY_NOT[part]})" if part in _WHY_NOT else part for part in missing)
        yield "note", f"not to be read here: {', '.join(told)}"


def _of_gpu(index: int, findings: list[Finding]) -> Checked:
    """A line for what can be read, and one for each reason why the rest cannot."""
    by_state: dict[str, list[str]] = {}
    for finding in findings:
        by_state.setdefault(finding.state, []).append(finding.part)
    gpu = f"{index} ({findings[0].name or 'unknown'})"
    if "lost" in by_state:
        yield "fault", f"{gpu} does not answer: {findings[0].why}"
        return
    supported = by_state.pop("supported", [])
    if supported:
        yield "ok", f"{gpu}: {len(supported)} parts of {len(findings)} can be read"
    for state, parts in sorted(by_state.items()):
        yield "note", f"{index}, {state}: {', '.join(parts)}"
