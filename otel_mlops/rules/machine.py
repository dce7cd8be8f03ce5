"""The machine and the container: memory, disks, processors and file descriptors that run out."""

from __future__ import annotations

from inspect import cleandoc

from otel_mlops.metrics import (
    CONTAINER_CPU_LIMIT,
    CONTAINER_CPU_THROTTLED,
    CONTAINER_MEMORY_EVENTS,
    CONTAINER_MEMORY_UTILIZATION,
    CONTAINER_MEMORY_WORKING_SET,
    PROCESS_MAX_FDS,
    PROCESS_OPEN_FDS,
    PROCESS_RESIDENT_MEMORY,
    SYSTEM_CPU_USAGE,
    SYSTEM_DISK_TOTAL,
    SYSTEM_DISK_USAGE,
    SYSTEM_MEMORY_TOTAL,
    SYSTEM_MEMORY_USAGE,
    SYSTEM_PRESSURE,
)
from otel_mlops.rules.row import Alert, Group

_PLACE = "{{ $labels.job }}: {{ $labels.instance }}"
_MEMORY = f"{SYSTEM_MEMORY_USAGE.page_name} / {SYSTEM_MEMORY_TOTAL.page_name}"
_USED, _SPACE = SYSTEM_DISK_USAGE.page_name, SYSTEM_DISK_TOTAL.page_name
_WORKERS = (PROCESS_RESIDENT_MEMORY.page_name, "what each worker takes")


def _fills(window: str, ahead_s: int, share: float) -> str:
    return f"(\n  {_USED} / {_SPACE} > {share}\n  and predict_linear({_USED}[{window}], {ahead_s}) > {_SPACE}\n)"


GROUP = Group(
    name="otel_mlops_machine",
    about="Machine and container",
    rules=(
        Alert(
            name="HostMemoryLow",
            expression=f"max by (job, instance) ({_MEMORY}) > 0.95",
            lasting="10m",
            severity="warning",
            summary=_PLACE + ": {{ $value | humanizePercentage }} of the machine's memory is in use",
            means="Less than 5 % of the machine's memory is available: the kernel may soon end a process.",
            act="See who takes it. Fewer workers, a smaller model or a larger machine help.",
            look=(_WORKERS,),
        ),
        Alert(
            name="HostDiskFull",
            expression=(
                f"max by (job, instance, mount_point) ({_USED} / {_SPACE}) > 0.98\n"
                f"or max by (job, instance, mount_point) {_fills('1h', 4 * 3600, 0.9)}"
            ),
            lasting="15m",
            severity="critical",
            summary=_PLACE + ": {{ $labels.mount_point }} is {{ $value | humanizePercentage }} full",
            means="A disk is full, or will be within four hours at the pace of the last one.",
            act="Delete what is not needed (logs, caches, old models), or make it larger.",
            look=((f"predict_linear({_USED}[1h], 14400) / {_SPACE}", "how full it will be in four hours"),),
        ),
        Alert(
            name="HostDiskFills",
            expression=f"max by (job, instance, mount_point) {_fills('6h', 24 * 3600, 0.75)}",
            lasting="1h",
            severity="warning",
            summary=_PLACE
            + ": {{ $labels.mount_point }}, {{ $value | humanizePercentage }} full, will be full in a day",
            means="At the pace of the last six hours a disk that is three quarters full will be full within a day.",
            act="See what grows: logs, a cache, the queue of a Collector that cannot send.",
            look=((f"deriv({_USED}[6h])", "how fast, in bytes a second"),),
        ),
        Alert(
            name="HostPressure",
            expression=cleandoc(
                f"""
                max by (job, instance, resource) (
                  avg_over_time({SYSTEM_PRESSURE.page_name}{{resource="memory"}}[15m]) > 0.2
                  or avg_over_time({SYSTEM_PRESSURE.page_name}{{resource=~"cpu|io"}}[15m]) > 0.8
                )
                """
            ),
            lasting="15m",
            severity="warning",
            summary=_PLACE + ": tasks wait for {{ $labels.resource }} {{ $value | humanizePercentage }} of the time",
            means="Tasks wait for memory for a fifth of the time, or nearly always for a processor or a disk.",
            act="Give the machine more of it, or less to do: fewer threads, fewer workers, smaller batches.",
            look=((SYSTEM_CPU_USAGE.page_name, "how busy the processors are"), (_MEMORY, "how full the memory is")),
        ),
        Alert(
            name="ContainerThrottled",
            expression=cleandoc(
                f"""
                max by (job, instance) (
                  rate({CONTAINER_CPU_THROTTLED.page_name}[5m]) / {CONTAINER_CPU_LIMIT.page_name}
                ) > 0.25
                """
            ),
            lasting="15m",
            severity="warning",
            summary=_PLACE
            + ': threads are held back by the CPU limit for {{ $value | printf "%.2f" }} s a second and CPU',
            means=(
                "The CPU limit holds the container's threads back for a quarter of a second in each second and CPU of "
                "the limit, or more, as many can wait at once: requests wait, and CPUs look idle."
            ),
            act="Raise the limit, or have fewer threads: libraries start as many as the machine has CPUs.",
            look=((CONTAINER_CPU_LIMIT.page_name, "the limit"),),
        ),
        Alert(
            name="ContainerMemoryLow",
            expression=f"max by (job, instance) ({CONTAINER_MEMORY_UTILIZATION.page_name}) > 0.9",
            lasting="10m",
            severity="warning",
            summary=_PLACE + ": the container uses {{ $value | humanizePercentage }} of its memory",
            means="The container is near its memory limit, files that could be forgotten not counted.",
            act="Raise the limit, or have fewer workers; if it only ever grows, look for a leak.",
            look=((CONTAINER_MEMORY_WORKING_SET.page_name, "how it has grown"), _WORKERS),
        ),
        Alert(
            name="ContainerOutOfMemory",
            expression=(
                f'sum by (job, instance) (increase({CONTAINER_MEMORY_EVENTS.page_name}{{event="oom_kill"}}[15m])) > 0'
            ),
            lasting="0m",
            severity="warning",
            summary=_PLACE + ": the kernel has ended a process of the container for want of memory",
            means="The container met its memory limit and lost a process. What a worker had counted is not lost.",
            act="Raise the limit, have fewer workers, or find who takes so much.",
            look=(_WORKERS, (f"increase({CONTAINER_MEMORY_EVENTS.page_name}[1d])", "how often")),
        ),
        Alert(
            name="FileDescriptorsLow",
            # Every client library has these names; only ours has workers.
            expression=cleandoc(
                f"""
                max by (job, instance, worker) (
                  {PROCESS_OPEN_FDS.page_name}{{worker!=""}} / {PROCESS_MAX_FDS.page_name}{{worker!=""}}
                ) > 0.85
                """
            ),
            lasting="5m",
            severity="warning",
            summary=_PLACE
            + ": worker {{ $labels.worker }} has {{ $value | humanizePercentage }} of its file descriptors open",
            means="A worker will soon not be able to open a file or to accept a connection.",
            act="Look for connections or files that nobody closes; raise the limit (`ulimit -n`) meanwhile.",
            look=((PROCESS_OPEN_FDS.page_name, "how it has grown"),),
        ),
    ),
)
"""The alerts of what runs out."""
