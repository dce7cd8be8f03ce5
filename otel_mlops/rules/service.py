"""The service itself: whether it is there, its workers, its components, its tasks and its database."""

from __future__ import annotations

from otel_mlops.metrics import (
    API_HEALTH_STATUS,
    BUILD_INFO,
    DATABASE_OPERATION_DURATION,
    EVENT_LOOP_LAG,
    PROCESS_START_TIME,
    SCHEDULED_TASK_RUNS,
    WORKERS,
)
from otel_mlops.rules.row import Alert, Group, Recording, promql

_HEARTBEAT = "job:otel_mlops_instances:count"
_DATABASE = DATABASE_OPERATION_DURATION.page_name
_OPERATION = "job_operation_table:database_operation_duration_seconds:mean5m"
_RUNS = SCHEDULED_TASK_RUNS.page_name

_RECORDINGS = (
    Recording(
        name=_HEARTBEAT,
        expression=f"count by (job) (group by (job, instance) ({BUILD_INFO.page_name}))",
        meaning="Instances of a service that are heard of: the heartbeat, which is there without `up` as well.",
        shown=True,
    ),
    Recording(
        name=_OPERATION,
        expression=promql(
            f"""
            sum by (job, operation, table) (rate({_DATABASE}_sum[5m]))
            / (sum by (job, operation, table) (rate({_DATABASE}_count[5m])) > 0)
            """
        ),
        meaning="Mean time of a database operation; absent where there was none.",
        shown=True,
    ),
)

_THERE = (
    Alert(
        name="ServiceAbsent",
        expression=f"last_over_time({_HEARTBEAT}[1d]) unless {_HEARTBEAT}",
        lasting="3m",
        severity="critical",
        summary="{{ $labels.job }}: no instance is heard of any more, of {{ $value }}",
        means=(
            "The service was there within the last day, and now nothing comes from any of its instances: neither by "
            "a scrape nor over OTLP."
        ),
        act="See whether it runs and answers; if it does, whether its page, the Collector and the network do.",
        look=(("up == 0", "targets that do not answer"), (f"{_HEARTBEAT} offset 1h", "instances an hour ago")),
    ),
    Alert(
        name="TargetDown",
        expression="max by (job, instance) (up) == 0",
        lasting="5m",
        severity="warning",
        summary="{{ $labels.job }}: {{ $labels.instance }} cannot be scraped",
        means="Prometheus cannot read a page that it is told to read. Others of the service may be well.",
        act="Open the page from where Prometheus runs; its own list of targets tells the error.",
        look=(("up == 0", "which targets"), (_HEARTBEAT, "how many instances are heard of")),
    ),
    Alert(
        name="NothingMonitored",
        expression=f"absent_over_time({_HEARTBEAT}[1d])",
        lasting="15m",
        severity="warning",
        summary="No service's metrics have come for a day",
        means="These rules are loaded where no metric of any service of ours has arrived for a day, if ever.",
        act="Set up the scrape or the push, or take the rules away.",
        look=(("up", "what is scraped at all"),),
    ),
    Alert(
        name="WorkersMissing",
        expression=promql(
            f"""
            max by (job, instance) ({WORKERS.page_name})
            < max by (job, instance) (quantile_over_time(0.5, {WORKERS.page_name}[6h]))
            """
        ),
        lasting="15m",
        severity="warning",
        summary="{{ $labels.job }}: {{ $labels.instance }} has {{ $value }} workers, less than usual",
        means=(
            "For a quarter of an hour an instance has had fewer workers than most of the time in the last 6 hours: "
            "one has died, and its server has not replaced it."
        ),
        act="Look for the reason in the server's log (memory, a signal), and restart the instance.",
        look=((PROCESS_START_TIME.page_name, "when each worker started"),),
    ),
    Alert(
        name="WorkersRestarting",
        expression=f"max by (job, instance) (changes({PROCESS_START_TIME.page_name}[30m])) >= 5",
        lasting="0m",
        severity="warning",
        summary="{{ $labels.job }}: a worker of {{ $labels.instance }} started {{ $value }} times in half an hour",
        means="A worker ends and is replaced again and again, at least five times in half an hour.",
        act=(
            "Look at what it last wrote, and for the kernel's out-of-memory messages. Where the server recycles "
            "workers on purpose, let it do so less often: each start loads the models anew."
        ),
        look=((f"changes({PROCESS_START_TIME.page_name}[30m])", "which worker"),),
    ),
)

_WELL = (
    Alert(
        name="ComponentUnhealthy",
        expression=f"min by (job, instance, component) ({API_HEALTH_STATUS.page_name}) == 0",
        lasting="3m",
        severity="critical",
        summary="{{ $labels.job }}: {{ $labels.component }} is not healthy at {{ $labels.instance }}",
        means="The service itself says that a component, a database or a model for instance, does not work.",
        act="Look at the component; the service's health check tells what it tried.",
        look=((API_HEALTH_STATUS.page_name, "the other components and instances"),),
    ),
    Alert(
        name="EventLoopBlocked",
        expression=f"sum by (job, instance) (rate({EVENT_LOOP_LAG.page_name}_sum[5m])) > 0.25",
        lasting="10m",
        severity="warning",
        summary='{{ $labels.job }}: loops of {{ $labels.instance }} are {{ $value | printf "%.2f" }} s late a second',
        means=(
            "Calls that block hold up the event loop of a worker for a quarter of its time or more: everything else "
            "that it serves waits."
        ),
        act="Find the call (a model, a driver, a file) and put it into a thread: a `def` endpoint is in one.",
        look=(
            (
                f"histogram_quantile(0.99, sum by (job, worker, le) (rate({EVENT_LOOP_LAG.page_name}_bucket[5m])))",
                "how late, by worker",
            ),
        ),
    ),
    Alert(
        name="ScheduledTaskFails",
        expression=promql(
            f"""
            sum by (job, task) (increase({_RUNS}{{result=~"error|missed"}}[1h])) >= 3
            and sum by (job, task) (increase({_RUNS}{{result=~"error|missed"}}[1h]))
              > 0.5 * sum by (job, task) (increase({_RUNS}[1h]))
            """
        ),
        lasting="0m",
        severity="warning",
        summary='{{ $labels.job }}: {{ $labels.task }} failed or was missed {{ $value | printf "%.0f" }} times an hour',
        means="A scheduled task fails, or is still busy when it is due again, more often than it succeeds.",
        act="Its traceback is in the log. A task that is missed needs a longer interval.",
        look=((f"increase({_RUNS}[1h])", "how its runs ended"),),
    ),
    Alert(
        name="DatabaseSlow",
        expression=promql(
            f"""
            {_OPERATION} > 3 * avg_over_time({_OPERATION}[1d] offset 1h)
            and {_OPERATION} > 0.1
            and sum by (job, operation, table) (rate({_DATABASE}_count[5m])) > 0.1
            """
        ),
        lasting="15m",
        severity="warning",
        summary="{{ $labels.job }}: {{ $labels.operation }} {{ $labels.table }} takes {{ $value | humanizeDuration }}",
        means="An operation of the database takes more than 0.1 s, three times as long as in the day before.",
        act="Look for locks, for a plan that has changed, for a full disk and for who else uses the database.",
        look=((_OPERATION, "all operations"),),
    ),
)

GROUP = Group(name="otel_mlops_service", about="The service", rules=(*_RECORDINGS, *_THERE, *_WELL))
"""The heartbeat, and the alerts of what is gone, unwell or slow."""
