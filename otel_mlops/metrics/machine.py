"""The rows of the machine: the host, the container that the service runs in, and its worker processes."""

from otel_mlops.metrics.row import Metric

# fmt: off

DIRECTIONS = ("transmit", "receive")
"""Which way bytes go over a network or a bus, as the semantic conventions call it."""

_PAUSE_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

# --- The host ---------------------------------------------------------------------------------------------

SYSTEM_CPU_USAGE = Metric(
    "system.cpu.usage", "gauge", "%", "Share of the machine's CPU time in use since the last reading, 0 to 100.",
    (), "once", note="Of the whole machine, in a container too; `container_cpu_utilization_ratio` is of its share.",
)
SYSTEM_CPU_LOAD_1M = Metric(
    "system.cpu.load.1m", "gauge", "{thread}", "Threads that ran or waited, averaged over 1 minute.", (), "once",
    note="On Linux those that wait for a disk as well. Of the whole machine. Absent on Windows.",
)
SYSTEM_CPU_LOAD_5M = Metric(
    "system.cpu.load.5m", "gauge", "{thread}", "Threads that ran or waited, averaged over 5 minutes.", (), "once"
)
SYSTEM_CPU_LOAD_15M = Metric(
    "system.cpu.load.15m", "gauge", "{thread}", "Threads that ran or waited, averaged over 15 minutes.", (), "once"
)
SYSTEM_PRESSURE = Metric(
    "system.pressure.ratio", "gauge", "1",
    "Share of the time since the last reading in which some task waited for a resource, 0 to 1.",
    ("resource",), "once", values={"resource": ("cpu", "memory", "io")},
    note="The kernel's pressure stall information, `some`. Of a container's own tasks where its control group tells. "
    "Absent where the kernel does not.",
)
SYSTEM_MEMORY_USAGE = Metric(
    "system.memory.usage", "gauge", "By", "Memory in use: what is not available to a new process.",
    (), "once",
    note="Of the whole machine, in a container too; `container_memory_utilization_ratio` is of its share.",
)
SYSTEM_MEMORY_TOTAL = Metric("system.memory.total", "gauge", "By", "Memory of the machine.", (), "once")
SYSTEM_SWAP_USAGE = Metric("system.swap.usage", "gauge", "By", "Swap space in use.", (), "once")
SYSTEM_SWAP_TOTAL = Metric(
    "system.swap.total", "gauge", "By", "Swap space of the machine; 0 where it has none.", (), "once"
)
SYSTEM_DISK_USAGE = Metric(
    "system.disk.usage", "gauge", "By", "Disk space in use on a mounted file system.",
    ("mount_point",), "once",
)
SYSTEM_DISK_TOTAL = Metric(
    "system.disk.total", "gauge", "By", "Disk space of a mounted file system.", ("mount_point",), "once"
)
SYSTEM_DISK_IO = Metric(
    "system.disk.io", "counter", "By", "Bytes read from and written to the disks.", ("direction",), "once",
    note="`direction` is `read` or `write`. Whole disks, each once: no partitions, loops or mappings onto other disks.",
)
SYSTEM_NETWORK_IO = Metric(
    "system.network.io", "counter", "By", "Bytes sent and received over the network.",
    ("direction",), "once", values={"direction": DIRECTIONS},
    note="Real interfaces where there are any, else all but the loopback: a container has none that is real. "
    "RDMA passes them by.",
)
HARDWARE_TEMPERATURE = Metric(
    "hardware.temperature", "gauge", "Cel", "Temperature of a component of the machine.",
    ("component",), "once",
)
SYSTEM_INFO = Metric(
    "system.info", "info", "", "What is deployed, as the service told; always 1.",
    ("environment", "version", "deployment_date"), "latest", open_attributes=True, subject=(),
)

# --- The container: limits and use of the control group that the service runs in -----------------------------

CONTAINER_CPU_LIMIT = Metric(
    "container.cpu.limit.cores", "gauge", "{cpu}", "CPUs that the container may use at a time.", (), "once",
    note="Absent without a limit.",
)
CONTAINER_CPU_USAGE = Metric(
    "container.cpu.usage", "counter", "s", "CPU time that the container has used.", (), "once"
)
CONTAINER_CPU_UTILIZATION = Metric(
    "container.cpu.utilization.ratio", "gauge", "1",
    "CPU time that the container has used since the last reading, as a share of what it may use.",
    (), "once", note="Of its limit, or of the CPUs that it may run on where it has none. Past 1 in a burst.",
)
CONTAINER_CPU_THROTTLED = Metric(
    "container.cpu.throttled", "counter", "s", "Time for which the container was kept from running by its CPU limit.",
    (), "once",
    note="Throttled requests are slow while the CPU looks idle: raise the limit, or have fewer threads. The times of "
    "all CPUs are added up.",
)
CONTAINER_MEMORY_LIMIT = Metric(
    "container.memory.limit", "gauge", "By", "Memory that the container may use.", (), "once",
    note="Absent without a limit.",
)
CONTAINER_MEMORY_USAGE = Metric(
    "container.memory.usage", "gauge", "By", "Memory that the container uses, with its file cache.", (), "once",
    note="Near the limit in any container that reads many files, as the cache fills what is free.",
)
CONTAINER_MEMORY_WORKING_SET = Metric(
    "container.memory.working.set", "gauge", "By",
    "Memory that the container uses without the file cache that is not in active use.", (), "once",
    note="What Kubernetes evicts by.",
)
CONTAINER_MEMORY_UTILIZATION = Metric(
    "container.memory.utilization.ratio", "gauge", "1", "The working set as a share of the memory limit.",
    (), "once", note="Absent without a limit.",
)
CONTAINER_MEMORY_EVENTS = Metric(
    "container.memory.events", "counter", "{event}", "How often the container met its memory limit.",
    ("event",), "once", values={"event": ("high", "max", "oom", "oom_kill")},
    note="`high` was slowed down, `max` had to reclaim, `oom` ran out, `oom_kill` lost a process. "
    "Groups within it count too.",
)

# --- The worker processes, each under its number, the process of the page as `page` ---------------------------

_WORKER = ("worker",)

PROCESS_CPU = Metric(
    "process.cpu", "counter", "s", "CPU time that a worker has used, in user and kernel mode.", _WORKER, "once"
)
PROCESS_RESIDENT_MEMORY = Metric(
    "process.resident.memory", "gauge", "By", "Memory of a worker that is in RAM, what it shares included.",
    _WORKER, "once", note="Workers that were forked share pages: their sum counts those several times.",
)
PROCESS_PROPORTIONAL_MEMORY = Metric(
    "process.proportional.memory", "gauge", "By", "Memory of a worker in RAM, shared pages divided by who shares them.",
    _WORKER, "once", note="Adds up over workers. Costly to read: it is read once a minute, and not past 4 GiB.",
)
PROCESS_OPEN_FDS = Metric("process.open.fds", "gauge", "{fd}", "Open file descriptors of a worker.", _WORKER, "once")
PROCESS_MAX_FDS = Metric(
    "process.max.fds", "gauge", "{fd}", "Most file descriptors that a worker may have open.", _WORKER, "once"
)
PROCESS_THREADS = Metric("process.threads", "gauge", "{thread}", "Threads of a worker.", _WORKER, "once")
PROCESS_START_TIME = Metric(
    "process.start.time", "gauge", "s", "When a worker started, in seconds since the epoch.", _WORKER, "once"
)
PYTHON_GC_PAUSE = Metric(
    "python.gc.pause", "histogram", "s", "Time for which a run of the garbage collector stopped a worker.",
    (), "worker", buckets=_PAUSE_S,
)
EVENT_LOOP_LAG = Metric(
    "event.loop.lag", "histogram", "s", "How much later than due the event loop of a worker ran a timer.",
    (), "worker", buckets=_PAUSE_S,
    note="A loop that lags is held up by a call that blocks: everything that it serves waits.",
)

SYSTEM = (
    SYSTEM_CPU_USAGE, SYSTEM_CPU_LOAD_1M, SYSTEM_CPU_LOAD_5M, SYSTEM_CPU_LOAD_15M, SYSTEM_PRESSURE,
    SYSTEM_MEMORY_USAGE, SYSTEM_MEMORY_TOTAL, SYSTEM_SWAP_USAGE, SYSTEM_SWAP_TOTAL,
    SYSTEM_DISK_USAGE, SYSTEM_DISK_TOTAL, SYSTEM_DISK_IO, SYSTEM_NETWORK_IO, HARDWARE_TEMPERATURE, SYSTEM_INFO,
)
CONTAINER = (
    CONTAINER_CPU_LIMIT, CONTAINER_CPU_USAGE, CONTAINER_CPU_UTILIZATION, CONTAINER_CPU_THROTTLED,
    CONTAINER_MEMORY_LIMIT, CONTAINER_MEMORY_USAGE, CONTAINER_MEMORY_WORKING_SET, CONTAINER_MEMORY_UTILIZATION,
    CONTAINER_MEMORY_EVENTS,
)
PROCESS = (
    PROCESS_CPU, PROCESS_RESIDENT_MEMORY, PROCESS_PROPORTIONAL_MEMORY, PROCESS_OPEN_FDS, PROCESS_MAX_FDS,
    PROCESS_THREADS, PROCESS_START_TIME, PYTHON_GC_PAUSE, EVENT_LOOP_LAG,
)

# fmt: on
