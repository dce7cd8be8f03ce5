"""The dashboard of the system: GPUs, CPU, memory, the database, and the telemetry itself."""

from __future__ import annotations

from otel_mlops.dashboards import gpus, machines
from otel_mlops.dashboards.panels import FULLNESS, NO_TRAFFIC, YES, Dashboard, Panel, Query, Row, Steps
from otel_mlops.dashboards.promql import (
    WHERE,
    filled,
    increase,
    largest,
    least,
    mean,
    quantile,
    quantiles,
    rate,
    series,
    share,
    total,
)
from otel_mlops.metrics import (
    BUILD_INFO,
    DATABASE_OPERATION_DURATION,
    DATABASE_OPERATIONS,
    DROPPED,
    EXPORT_FAILURES,
    GPU_MEMORY_TOTAL,
    GPU_MEMORY_USED,
    GPU_TEMPERATURE,
    GPU_UP,
    GPU_UTILIZATION,
    LEDGER_SIZE,
    LEDGER_UP,
    OVERFLOW,
    PAGE_CONFIG_UP,
    PAGE_DURATION,
    PAGE_REFUSED,
    PAGE_SERIES,
    SCHEDULED_TASK_DURATION,
    SCHEDULED_TASK_RUNS,
    SOURCE_AGE,
    SOURCE_DURATION,
    SOURCE_UP,
    SYSTEM_CPU_USAGE,
    SYSTEM_DISK_TOTAL,
    SYSTEM_DISK_USAGE,
    SYSTEM_INFO,
    SYSTEM_MEMORY_TOTAL,
    SYSTEM_MEMORY_USAGE,
    WORKERS,
)

# fmt: off

_BUSY: Steps = ((None, "green"), (85.0, "yellow"), (95.0, "red"))
_HOT: Steps = ((None, "green"), (80.0, "yellow"), (90.0, "red"))
_SLOW: Steps = ((None, "green"), (0.1, "yellow"), (0.5, "red"))
_OPERATION = ("operation", "table")
_TARGET = "{{job}} {{instance}}"

_AT_A_GLANCE = Row(title="", panels=(
    Panel(
        title="CPU", kind="stat", width=3, height=4, unit="percent", thresholds=_BUSY, decimals=0,
        description="The busiest of the chosen machines. Red with slow answers: more machines, or less work for each.",
        queries=(Query(expression=largest(series(SYSTEM_CPU_USAGE))),),
    ),
    Panel(
        title="Memory", kind="stat", width=3, height=4, unit="percentunit", thresholds=FULLNESS, decimals=0,
        description="The fullest of the machines. Red: which process grows is shown under the worker processes; the "
        "kernel ends one of them when it is full.",
        queries=(Query(expression=largest(filled(SYSTEM_MEMORY_USAGE, SYSTEM_MEMORY_TOTAL, *WHERE))),),
    ),
    Panel(
        title="Disk", kind="stat", width=3, height=4, unit="percentunit", thresholds=FULLNESS, decimals=0,
        description="The fullest file system. Red: make room before logs and the state folder can no longer be "
        "written.",
        queries=(Query(
            expression=largest(filled(SYSTEM_DISK_USAGE, SYSTEM_DISK_TOTAL, *WHERE, "mount_point")),
        ),),
    ),
    Panel(
        title="GPUs that answer", kind="stat", width=3, height=4, unit="percentunit", thresholds=YES, decimals=0,
        no_value="No GPU",
        description="Less than 100 %: a GPU has fallen off the bus or needs a reset. What it needs stands in the table "
        "of GPUs.",
        queries=(Query(expression=f"avg({series(GPU_UP)})"),),
    ),
    Panel(
        title="GPU utilization", kind="stat", width=3, height=4, unit="percent", decimals=0, no_value="No GPU",
        description="The mean of the GPUs. High is what they are for. Low while requests queue: the work does not "
        "reach them.",
        queries=(Query(expression=f"avg({series(GPU_UTILIZATION)})"),),
    ),
    Panel(
        title="GPU memory", kind="stat", width=3, height=4, unit="percentunit", thresholds=FULLNESS, decimals=0,
        no_value="No GPU",
        description="The fullest GPU. Red: the next large batch may fail for want of memory.",
        queries=(Query(expression=largest(filled(GPU_MEMORY_USED, GPU_MEMORY_TOTAL, *WHERE, "gpu_id"))),),
    ),
    Panel(
        title="GPU temperature", kind="stat", width=3, height=4, unit="celsius", thresholds=_HOT, decimals=0,
        no_value="No GPU",
        description="The hottest GPU. At some 85 to 90 °C it slows itself down: look at the throttled time and at the "
        "fans.",
        queries=(Query(expression=largest(series(GPU_TEMPERATURE))),),
    ),
    Panel(
        title="Database p95", kind="stat", width=3, height=4, unit="s", thresholds=_SLOW, no_value=NO_TRAFFIC,
        description="One operation in twenty takes longer. Red: see below which table; an index or a lock is missing "
        "or held.",
        queries=(Query(expression=quantile(0.95, DATABASE_OPERATION_DURATION)),),
    ),
))

_DATABASE = Row(title="Database", panels=(
    Panel(
        title="Operations", unit="ops", stacked=True, minimum=0, no_value=NO_TRAFFIC,
        description="Database operations in a second, failed ones included. Many more than requests: one request asks "
        "in a loop.",
        queries=(Query(expression=total(rate(DATABASE_OPERATIONS), *_OPERATION), legend="{{operation}} {{table}}"),),
    ),
    Panel(
        title="Duration", unit="s", minimum=0, no_value=NO_TRAFFIC,
        description="The time that half of the operations, 5 % and 1 % exceed. A dot is an operation with a trace.",
        queries=quantiles(DATABASE_OPERATION_DURATION, 0.5, 0.95, 0.99),
    ),
    Panel(
        title="p95 by table", unit="s", minimum=0, no_value=NO_TRAFFIC,
        description="One slow table: its index, its size, a lock. All at once: the server or the network.",
        queries=(Query(
            expression=quantile(0.95, DATABASE_OPERATION_DURATION, *_OPERATION), legend="{{operation}} {{table}}",
        ),),
    ),
    Panel(
        title="Where the database's time goes", kind="table", unit="short", width=24, height=7, no_value=NO_TRAFFIC,
        sort="Time a second",
        description="Time that operations take in each second, all together: 1 s is one that always runs. What is at "
        "the top is worth making faster, be it slow or frequent.",
        columns=(("operation", "Operation"), ("table", "Table")),
        queries=(
            Query(
                expression=total(rate(DATABASE_OPERATION_DURATION, part="_sum"), *_OPERATION), legend="Time a second",
                unit="s",
            ),
            Query(expression=total(rate(DATABASE_OPERATIONS), *_OPERATION), legend="Operations a second", unit="ops"),
            Query(expression=mean(DATABASE_OPERATION_DURATION, *_OPERATION), legend="Mean", unit="s"),
            Query(
                expression=quantile(0.99, DATABASE_OPERATION_DURATION, *_OPERATION), legend="p99", unit="s",
                thresholds=_SLOW,
            ),
        ),
    ),
))

_TASKS = Row(title="Scheduled tasks", collapsed=True, panels=(
    Panel(
        title="Runs by result", unit="none", minimum=0, decimals=0, no_value="No task",
        description="Runs of each task in a step of the graph. None of `success`: it has stopped; `missed`: the one "
        "before was still under way.",
        queries=(Query(
            expression=total(increase(SCHEDULED_TASK_RUNS), "task", "result"), legend="{{task}} {{result}}",
        ),),
    ),
    Panel(
        title="Runs that do not succeed", unit="percentunit", minimum=0, maximum=1, no_value="No task",
        description="Share of the runs that failed or were missed. The log has the traceback of the first failure.",
        queries=(Query(
            expression=share(rate(SCHEDULED_TASK_RUNS, 'result!="success"'), rate(SCHEDULED_TASK_RUNS), "task"),
            legend="{{task}}",
        ),),
    ),
    Panel(
        title="Duration, p95", unit="s", minimum=0, no_value="No task",
        description="The time that one run in twenty exceeds. When it nears the interval, runs are missed.",
        queries=(Query(expression=quantile(0.95, SCHEDULED_TASK_DURATION, "task"), legend="{{task}}"),),
    ),
))

_TELEMETRY = Row(title="The telemetry itself", collapsed=True, panels=(
    Panel(
        title="Workers", unit="none", minimum=0, decimals=0, no_value="No worker reports",
        description="Living workers of each instance. A drop that stays is a worker that was not started again.",
        queries=(Query(expression=total(series(WORKERS), *WHERE), legend=_TARGET),),
    ),
    Panel(
        title="Instances that report", unit="none", minimum=0, decimals=0, no_value="None",
        description="Groups of workers whose page Prometheus has, by job. Fewer than you run: the service, the network "
        "or the Collector is down.",
        queries=(Query(expression=f"count by (job) ({series(WORKERS)})", legend="{{job}}"),),
    ),
    Panel(
        title="Age of readings", unit="s", minimum=0,
        description="Time since each source was read well. One that grows is a driver that hangs; past a limit its "
        "values leave the page.",
        queries=(Query(expression=largest(series(SOURCE_AGE), *WHERE, "source"), legend="{{instance}} {{source}}"),),
    ),
    Panel(
        title="Sources", kind="table", unit="short", width=12, height=8,
        description="Whether the last reading of each source succeeded, and how long it took. The log says why one "
        "does not.",
        columns=(("source", "Source"), ("job", "Job"), ("instance", "Instance")),
        queries=(
            Query(
                expression=least(series(SOURCE_UP), *WHERE, "source"), legend="Up", thresholds=YES,
                mapping={1: ("yes", "green"), 0: ("no", "red")},
            ),
            Query(expression=largest(series(SOURCE_DURATION), *WHERE, "source"), legend="Duration", unit="s"),
        ),
    ),
    Panel(
        title="Records dropped or merged", unit="suffix:/s", width=12, minimum=0, no_value="None",
        description="Records in a second that were dropped, by the reason, or that went to the overflow series of a "
        "metric that has too many. Find the label that takes too many values, or what records what is no number.",
        queries=(
            Query(expression=total(rate(DROPPED), "reason"), legend="dropped: {{reason}}"),
            Query(expression=total(rate(OVERFLOW), "metric"), legend="overflow: {{metric}}"),
        ),
    ),
    Panel(
        title="Series on the page", unit="none", minimum=0, decimals=0, no_value="No data",
        description="How many series each instance has. A steady climb is a label without bounds: see the overflow.",
        queries=(Query(expression=largest(series(PAGE_SERIES), *WHERE), legend=_TARGET),),
    ),
    Panel(
        title="Time to make the page, p99", unit="s", minimum=0,
        description="What a scrape waits for. Near the scrape's limit: fewer series, or a longer limit.",
        queries=(Query(expression=quantile(0.99, PAGE_DURATION, *WHERE), legend=_TARGET),),
    ),
    Panel(
        title="Clients sent away, failed exports", unit="ops", minimum=0, no_value="None",
        description="Clients of the page's port that were refused, by the cause, and exports over OTLP that failed, in "
        "a second. `auth`: somebody has an old password, or has none.",
        queries=(
            Query(expression=total(rate(PAGE_REFUSED), "cause"), legend="refused: {{cause}}"),
            Query(expression=total(rate(EXPORT_FAILURES), "signal"), legend="export: {{signal}}"),
        ),
    ),
    Panel(
        title="Shared memory", unit="bytes", width=18, height=6, minimum=0,
        description="Memory that the series of all workers take. At `OTEL_MLOPS_MAX_LEDGER_BYTES` for one worker "
        "further series are merged.",
        queries=(Query(expression=total(series(LEDGER_SIZE), *WHERE), legend=_TARGET),),
    ),
    Panel(
        title="Ledgers and configuration", kind="stat", width=6, height=6, unit="none", thresholds=YES,
        mapping={1: ("Sound", "green"), 0: ("Faulty", "red")},
        description="Whether the numbers of all workers lie in shared memory, and whether the configuration of the "
        "page's server could be read when it last changed. Faulty: see the log; `otel-mlops doctor` says what is full.",
        queries=(
            Query(expression=least(series(LEDGER_UP)), legend="ledgers"),
            Query(expression=least(series(PAGE_CONFIG_UP)), legend="configuration"),
        ),
    ),
    Panel(
        title="Versions", kind="table", unit="none", width=12, height=6, no_value="No data",
        description="What each instance runs. Two versions: a deployment is under way or has stopped.",
        columns=(
            ("job", "Job"), ("instance", "Instance"), ("version", "otel_mlops"), ("python_version", "Python"),
            ("opentelemetry_version", "OpenTelemetry"),
        ),
        queries=(Query(
            expression=largest(series(BUILD_INFO), *WHERE, "version", "python_version", "opentelemetry_version"),
        ),),
    ),
    Panel(
        title="Deployments", kind="table", unit="none", width=12, height=6, no_value="Not told",
        description="What each instance says is deployed. Compare with what should be.",
        columns=(
            ("job", "Job"), ("instance", "Instance"), ("environment", "Environment"), ("version", "Version"),
            ("deployment_date", "Deployed"),
        ),
        queries=(Query(
            expression=largest(series(SYSTEM_INFO), *WHERE, "environment", "version", "deployment_date"),
        ),),
    ),
))

# fmt: on

SYSTEM = Dashboard(
    uid="otel-mlops-system",
    title="System health",
    description="GPUs, CPU, memory, disks and the database under the services, their workers and their telemetry.",
    rows=(_AT_A_GLANCE, gpus.GPUS, machines.MACHINE, _DATABASE, *gpus.DETAILS, *machines.DETAILS, _TASKS, _TELEMETRY),
)
