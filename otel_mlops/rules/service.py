"""The service itself: whether it is there, its workers, its components, its tasks and its database."""

from __future__ import annotations

from inspect import cleandoc

from otel_mlops.metrics import (
    API_HEALTH_STATUS,
    BUILD_INFO,
    DATABASE_OPERATION_DURATION,
    EVENT_LOOP_LAG,
    PROCESS_START_TIME,
    SCHEDULED_TASK_RUNS,
    WORKERS,
)
from otel_mlops.rules.row import Alert, Group, Recording

_HEARTBEAT = "job:otel_mlops_instances:count"
_DATABASE = DATABASE_OPERATION_DURATION.page_name
_OPERATION = "job_operation_table:database_operation_duration_seconds:mean5m"
_RUNS = SCHEDULED_TASK_RUNS.page_name
_STARTED = f'{PROCESS_START_TIME.page_name}{{worker!=""}}'
"""Every client library has this name; only ours has workers."""


def _failing(window: str) -> str:
    bad = f'sum by (job, task) (increase({_RUNS}{{result=~"error|missed"}}[{window}]))'
    return f"(\n  {bad} >= 3\n  and {bad} > 0.5 * sum by (job, task) (increase({_RUNS}[{window}]))\n)"


_RECORDINGS = (
    Recording(
        name=_HEARTBEAT,
        expression=f"count by (job) (group by (job, instance) ({BUILD_INFO.page_name}))",
        meaning="Instances of a service that are heard of: the heartbeat, which is there without `up` as well.",
        shown=True,
    ),
    Recording(
        name=_OPERATION,
        expression=cleandoc(
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
            "a scrape nor over OTLP. After a day this ends, though the service may still be gone."
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
        name="InstancesMissing",
        expression=f"{_HEARTBEAT} < 0.5 * quantile_over_time(0.8, {_HEARTBEAT}[1h])",
        lasting="15m",
        severity="warning",
        summary="{{ $labels.job }}: only {{ $value }} instances are heard of, less than half of an hour ago",
        means=(
            "For a quarter of an hour fewer than half of the instances of the last hour have been heard of. Over OTLP, "
            "or where a target is no longer listed, nothing else tells. It ends within the hour, whether they come "
            "back or not."
        ),
        act=(
            "See what has become of them: a deployment that does not get on, nodes, the network, the Collector. Where "
            "a service is scaled down by more than half on purpose, leave it out of this rule."
        ),
        look=((f"{_HEARTBEAT} offset 1h", "instances an hour ago"), ("up == 0", "targets that do not answer")),
    ),
    Alert(
        name="InstancesRestarting",
        # Where an instance keeps its name its target goes up and down; over OTLP each start is another instance,
        # which came and went. Those that a quick succession of deployments replaces are not so many.
        expression=cleandoc(
            f"""
            max by (job, instance) (changes(up[30m])) >= 6
            and on (job, instance) group by (job, instance) (last_over_time({BUILD_INFO.page_name}[30m]))
            or count by (job) (
              group by (job, instance) (last_over_time({BUILD_INFO.page_name}[30m]))
              unless group by (job, instance) ({BUILD_INFO.page_name})
              unless group by (job, instance) ({BUILD_INFO.page_name} offset 30m)
            ) > 1.5 * max_over_time({_HEARTBEAT}[30m]) > 2
            """
        ),
        lasting="0m",
        severity="warning",
        summary='{{ $labels.job }}: {{ or $labels.instance "an instance" }} starts again and again',
        means=(
            "An instance has come and gone at least three times in half an hour, or over OTLP more instances have than "
            "there are. No other alert lasts long enough to tell: each time it is well for a moment."
        ),
        act="Look at what it last wrote, at its exit code, and for the kernel's out-of-memory messages.",
        look=(
            ("changes(up[30m]) > 1", "which targets"),
            (
                f"group by (job, instance) (last_over_time({BUILD_INFO.page_name}[30m]))",
                "all instances of half an hour",
            ),
        ),
        keeping="15m",
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
        expression=cleandoc(
            f"""
            max by (job, instance) ({WORKERS.page_name})
            < max by (job, instance) (quantile_over_time(0.9, {WORKERS.page_name}[1d:5m]))
            """
        ),
        lasting="15m",
        severity="warning",
        summary="{{ $labels.job }}: {{ $labels.instance }} has {{ $value }} workers, less than usual",
        means=(
            "For a quarter of an hour an instance has had fewer workers than it had in the last day: one has died, and "
            "its server has not replaced it. After most of a day this ends, whether it is replaced or not."
        ),
        act=(
            "Look for the reason in the server's log (memory, a signal), and restart the instance. Where it has been "
            "given fewer workers on purpose, silence it for a day."
        ),
        look=((_STARTED, "when each worker started"),),
    ),
    Alert(
        name="WorkersRestarting",
        expression=f"max by (job, instance) (changes({_STARTED}[30m])) >= 4",
        lasting="0m",
        severity="warning",
        summary="{{ $labels.job }}: a worker of {{ $labels.instance }} started {{ $value }} times in half an hour",
        means="A worker ends and is replaced again and again, at least four times in half an hour.",
        act=(
            "Look at what it last wrote, and for the kernel's out-of-memory messages. Where the server recycles "
            "workers on purpose, let it do so less often: each start loads the models anew."
        ),
        look=((f"changes({_STARTED}[30m])", "which worker"),),
        keeping="15m",
    ),
)

_WELL = (
    Alert(
        name="ComponentUnhealthy",
        # A service that loads for minutes says so of itself at each deployment.
        expression=cleandoc(
            f"""
            min by (job, instance, component) ({API_HEALTH_STATUS.page_name}) == 0
            unless on (job, instance) time() - min by (job, instance) ({_STARTED}) < 600
            """
        ),
        lasting="3m",
        severity="critical",
        summary="{{ $labels.job }}: {{ $labels.component }} is not healthy at {{ $labels.instance }}",
        means=(
            "The service itself says that a component, a database or a model for instance, does not work. In the first "
            "ten minutes of an instance nobody is told: it may still be loading."
        ),
        act="Look at the component; the service's health check tells what it tried.",
        look=((API_HEALTH_STATUS.page_name, "the other components and instances"),),
    ),
    Alert(
        name="EventLoopBlocked",
        expression=cleandoc(
            f"""
            max by (job, instance) (
              sum by (job, instance, worker) (rate({EVENT_LOOP_LAG.page_name}_sum[5m]))
            ) > 0.25
            """
        ),
        lasting="10m",
        severity="warning",
        summary='{{ $labels.job }}: a loop of {{ $labels.instance }} is {{ $value | printf "%.2f" }} s late a second',
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
        # By the hour, by six for a task that runs hourly, and by days for one that runs daily.
        expression="\nor\n".join(
            (
                _failing("1h"),
                _failing("6h"),
                cleandoc(
                    f"""
                    (
                      sum by (job, task) (increase({_RUNS}{{result=~"error|missed"}}[1d])) > 0
                      and sum by (job, task) (increase({_RUNS}{{result=~"error|missed"}}[1d] offset 1d)) > 0
                      unless sum by (job, task) (increase({_RUNS}{{result="success"}}[2d])) > 0
                    )
                    """
                ),
            )
        ),
        lasting="0m",
        severity="warning",
        summary='{{ $labels.job }}: {{ $labels.task }} failed or was missed {{ $value | printf "%.0f" }} times of late',
        means=(
            "In the last hour, or in six, a scheduled task has failed, or was still busy when it was due again, more "
            "often than it succeeded; or it has failed on two days in a row and not once succeeded."
        ),
        act="Its traceback is in the log. A task that is missed needs a longer interval.",
        look=((f"increase({_RUNS}[1h])", "how its runs ended"),),
    ),
    Alert(
        name="DatabaseSlow",
        expression=cleandoc(
            f"""
            {_OPERATION} > 3 * (
              avg_over_time({_OPERATION}[1d] offset 1d) or avg_over_time({_OPERATION}[1d] offset 1h)
            )
            and {_OPERATION} > 0.1
            and sum by (job, operation, table) (rate({_DATABASE}_count[5m])) > 0.1
            """
        ),
        lasting="15m",
        severity="warning",
        summary="{{ $labels.job }}: {{ $labels.operation }} {{ $labels.table }} takes {{ $value | humanizeDuration }}",
        means=(
            "An operation of the database takes more than 0.1 s, three times as long as on the day before. After two "
            "days this is its usual time, and the alert ends."
        ),
        act="Look for locks, for a plan that has changed, for a full disk and for who else uses the database.",
        look=((_OPERATION, "all operations"),),
    ),
)

GROUP = Group(name="otel_mlops_service", about="The service", rules=(*_RECORDINGS, *_THERE, *_WELL))
"""The heartbeat, and the alerts of what is gone, unwell or slow."""
