"""The rows of machines, containers and worker processes."""

from __future__ import annotations

from otel_mlops.dashboards.panels import FULLNESS, Panel, Query, Row
from otel_mlops.dashboards.promql import WHERE, filled, increase, largest, quantile, rate, series, total
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
    EVENT_LOOP_LAG,
    HARDWARE_TEMPERATURE,
    PROCESS_CPU,
    PROCESS_MAX_FDS,
    PROCESS_OPEN_FDS,
    PROCESS_PROPORTIONAL_MEMORY,
    PROCESS_RESIDENT_MEMORY,
    PROCESS_START_TIME,
    PROCESS_THREADS,
    PYTHON_GC_PAUSE,
    SYSTEM_CPU_LOAD_1M,
    SYSTEM_CPU_LOAD_5M,
    SYSTEM_CPU_LOAD_15M,
    SYSTEM_CPU_USAGE,
    SYSTEM_DISK_IO,
    SYSTEM_DISK_TOTAL,
    SYSTEM_DISK_USAGE,
    SYSTEM_MEMORY_TOTAL,
    SYSTEM_MEMORY_USAGE,
    SYSTEM_NETWORK_IO,
    SYSTEM_PRESSURE,
    SYSTEM_SWAP_TOTAL,
    SYSTEM_SWAP_USAGE,
    Metric,
)

# fmt: off

_TARGET = "{{job}} {{instance}}"
_WORKER = (*WHERE, "worker")
_OF_WORKER = "{{instance}} worker {{worker}}"


def _of_target(row: Metric, name: str = "", *, dashed: bool = False) -> Query:
    """A gauge of each machine or container."""
    return Query(expression=largest(series(row), *WHERE), legend=f"{_TARGET} {name}".strip(), dashed=dashed)


MACHINE = Row(title="CPU and memory", panels=(
    Panel(
        title="CPU", unit="percent", minimum=0, maximum=100,
        description="Share of each machine's CPU time in use. In a container it is of the whole machine: its own share "
        "is in the row of containers.",
        queries=(_of_target(SYSTEM_CPU_USAGE),),
    ),
    Panel(
        title="Memory", unit="percentunit", minimum=0, maximum=1, thresholds=FULLNESS,
        description="Share of each machine's memory that is not available to a new process. A steady climb is a leak: "
        "see the worker processes.",
        queries=(Query(expression=filled(SYSTEM_MEMORY_USAGE, SYSTEM_MEMORY_TOTAL, *WHERE), legend=_TARGET),),
    ),
    Panel(
        title="Waiting for CPU, memory, disk", unit="percentunit", minimum=0, no_value="Not told by this kernel",
        description="Share of the time in which some task waited for a resource. This says that a machine is too "
        "small better than any utilization.",
        queries=(Query(
            expression=largest(series(SYSTEM_PRESSURE), *WHERE, "resource"), legend="{{instance}} {{resource}}",
        ),),
    ),
))

_MORE = Row(title="Machine: load, swap, disks, network, temperatures", collapsed=True, panels=(
    Panel(
        title="Load", unit="none", minimum=0,
        description="Threads that ran or waited, averaged over 1, 5 and 15 minutes. Above the number of CPUs "
        "they wait.",
        queries=(
            _of_target(SYSTEM_CPU_LOAD_1M, "1 m"), _of_target(SYSTEM_CPU_LOAD_5M, "5 m"),
            _of_target(SYSTEM_CPU_LOAD_15M, "15 m"),
        ),
    ),
    Panel(
        title="Swap", unit="bytes", minimum=0,
        description="Swap in use and in all. Use that grows is memory that is missing: answers become slow by orders.",
        queries=(_of_target(SYSTEM_SWAP_USAGE, "used"), _of_target(SYSTEM_SWAP_TOTAL, "total", dashed=True)),
    ),
    Panel(
        title="Disk space", unit="percentunit", minimum=0, maximum=1, thresholds=FULLNESS,
        description="How full each file system is. Red: make room; a full disk stops logs, queues and the "
        "state folder.",
        queries=(Query(
            expression=filled(SYSTEM_DISK_USAGE, SYSTEM_DISK_TOTAL, *WHERE, "mount_point"),
            legend="{{instance}} {{mount_point}}",
        ),),
    ),
    Panel(
        title="Disk traffic", unit="Bps", minimum=0, no_value="Not told by this machine",
        description="Bytes read and written in a second. With waiting for disk: the disk is the limit.",
        queries=(Query(
            expression=total(rate(SYSTEM_DISK_IO), *WHERE, "direction"), legend="{{instance}} {{direction}}",
        ),),
    ),
    Panel(
        title="Network traffic", unit="Bps", minimum=0,
        description="Bytes sent and received in a second. Near the interface's limit answers wait for the network.",
        queries=(Query(
            expression=total(rate(SYSTEM_NETWORK_IO), *WHERE, "direction"), legend="{{instance}} {{direction}}",
        ),),
    ),
    Panel(
        title="Temperatures", unit="celsius", no_value="Not told by this machine",
        description="Components of the machine. A climb at the same load is a fan or the room.",
        queries=(Query(
            expression=largest(series(HARDWARE_TEMPERATURE), *WHERE, "component"), legend="{{instance}} {{component}}",
        ),),
    ),
))

_CONTAINERS = Row(title="Containers", collapsed=True, panels=(
    Panel(
        title="CPU of the limit", unit="percentunit", minimum=0, no_value="No container",
        description="CPU time used as a share of what the container may use. At 1 it is throttled: raise the limit.",
        queries=(_of_target(CONTAINER_CPU_UTILIZATION),),
    ),
    Panel(
        title="CPU", unit="none", minimum=0, no_value="No container",
        description="CPUs used, the limit, and CPUs that were kept from running. Throttled requests are slow while the "
        "CPU looks idle.",
        queries=(
            Query(expression=total(rate(CONTAINER_CPU_USAGE), *WHERE), legend=f"{_TARGET} used"),
            _of_target(CONTAINER_CPU_LIMIT, "limit", dashed=True),
            Query(expression=total(rate(CONTAINER_CPU_THROTTLED), *WHERE), legend=f"{_TARGET} throttled"),
        ),
    ),
    Panel(
        title="Memory of the limit", unit="percentunit", minimum=0, thresholds=FULLNESS, no_value="No limit",
        description="The working set as a share of the limit. At 1 the kernel ends a process: raise the limit or find "
        "what grows.",
        queries=(_of_target(CONTAINER_MEMORY_UTILIZATION),),
    ),
    Panel(
        title="Memory", unit="bytes", width=12, minimum=0, no_value="No container",
        description="The working set, all with the file cache, and the limit. The cache fills what is free: that is no "
        "want of memory.",
        queries=(
            _of_target(CONTAINER_MEMORY_WORKING_SET, "working set"), _of_target(CONTAINER_MEMORY_USAGE, "with cache"),
            _of_target(CONTAINER_MEMORY_LIMIT, "limit", dashed=True),
        ),
    ),
    Panel(
        title="Meetings with the memory limit", unit="none", width=12, minimum=0, decimals=0, no_value="No container",
        description="In a step of the graph. `oom_kill`: a process was ended, mostly a worker; see its memory before.",
        queries=(Query(
            expression=total(increase(CONTAINER_MEMORY_EVENTS), *WHERE, "event"), legend="{{instance}} {{event}}",
        ),),
    ),
))

_WORKERS = Row(title="Worker processes", collapsed=True, panels=(
    Panel(
        title="CPU by worker", unit="percentunit", minimum=0,
        description="CPUs that each worker uses, 1 is one whole. A worker at 1 with one thread is full: add workers.",
        queries=(Query(expression=total(rate(PROCESS_CPU), *_WORKER), legend=_OF_WORKER),),
    ),
    Panel(
        title="Memory by worker", unit="bytes", minimum=0,
        description="Resident memory, what is shared included, and the share that adds up over workers. A climb that "
        "never falls is a leak; a restart helps until it is found.",
        queries=(
            Query(expression=largest(series(PROCESS_RESIDENT_MEMORY), *_WORKER), legend=f"{_OF_WORKER} resident"),
            Query(expression=largest(series(PROCESS_PROPORTIONAL_MEMORY), *_WORKER), legend=f"{_OF_WORKER} own share"),
        ),
    ),
    Panel(
        title="Files open, of the most", unit="percentunit", minimum=0, thresholds=FULLNESS,
        description="Near 1 no more connections can be taken: look for what is not closed, or raise the limit.",
        queries=(Query(expression=filled(PROCESS_OPEN_FDS, PROCESS_MAX_FDS, *_WORKER), legend=_OF_WORKER),),
    ),
    Panel(
        title="Event loop lag, p99", unit="s", minimum=0, no_value="No event loop",
        description="How late the loop of a worker runs its timers. It lags when a call blocks it: move that call to a "
        "thread.",
        queries=(Query(expression=quantile(0.99, EVENT_LOOP_LAG, *_WORKER), legend=_OF_WORKER),),
    ),
    Panel(
        title="Garbage collector", unit="percentunit", minimum=0, no_value="No run yet",
        description="Share of the time in which the garbage collector stopped a worker. Above some percent: fewer "
        "objects, or `gc.freeze()` after the models are loaded.",
        queries=(Query(expression=total(rate(PYTHON_GC_PAUSE, part="_sum"), *_WORKER), legend=_OF_WORKER),),
    ),
    Panel(
        title="Threads", unit="none", minimum=0, decimals=0,
        description="Threads of each worker. A steady climb: something starts them and never ends them.",
        queries=(Query(expression=largest(series(PROCESS_THREADS), *_WORKER), legend=_OF_WORKER),),
    ),
    Panel(
        title="Up for", kind="bargauge", unit="dtdurations", width=24, height=6, minimum=0,
        description="Time since each worker started. One that is much younger than the others was ended and started "
        "again: see the log of that time.",
        queries=(Query(
            expression=f"time() - {largest(series(PROCESS_START_TIME), *_WORKER)}", legend=_OF_WORKER,
        ),),
    ),
))

DETAILS = (_MORE, _CONTAINERS, _WORKERS)

# fmt: on
