"""What the numbers themselves come by: our own faults, the Collector's, and the alert that must always fire."""

from __future__ import annotations

from inspect import cleandoc

from otel_mlops.metrics import (
    DROPPED,
    EXPORT_FAILURES,
    LEDGER_SIZE,
    LEDGER_UP,
    OVERFLOW,
    PAGE_CONFIG_UP,
    PAGE_REFUSED,
    SOURCE_AGE,
    SOURCE_DURATION,
    SOURCE_UP,
)
from otel_mlops.rules.row import Alert, Group

LEDGER_BYTES = 8 * 1024 * 1024
"""What OTEL_MLOPS_MAX_LEDGER_BYTES is unless somebody sets it."""

_PLACE = "{{ $labels.job }}: {{ $labels.instance }}"

_OURS = (
    Alert(
        name="MetricOverflow",
        expression=f"sum by (job, metric) (increase({OVERFLOW.page_name}[1h])) > 0",
        lasting="5m",
        severity="warning",
        summary="{{ $labels.job }}: {{ $labels.metric }} has more series than it may",
        means="Some label of a metric takes too many values. What comes new is counted in one series for all of it.",
        act=(
            "Find the label (a path, an id, a text), and record something with few values instead, or raise "
            "`OTEL_MLOPS_MAX_SERIES`."
        ),
        look=(('topk(10, count by (__name__) ({job!=""}))', "the metrics with the most series"),),
    ),
    Alert(
        name="TelemetryDropped",
        # A prediction whose truth never comes is dropped in the end, and that is as it should be.
        expression=f'sum by (job, reason) (rate({DROPPED.page_name}{{reason!="truth"}}[15m])) > 0',
        lasting="30m",
        severity="warning",
        summary='{{ $labels.job }}: {{ $value | printf "%.3f" }} records a second are dropped ({{ $labels.reason }})',
        means="For half an hour records have been dropped all the time: some numbers are too low or missing.",
        act="The log says once what was dropped and why; the reasons are in the reference of the metrics.",
        look=((f"increase({DROPPED.page_name}[1h])", "all reasons"),),
    ),
    Alert(
        name="SourceDown",
        expression=cleandoc(
            f"""
            min by (job, instance, source) ({SOURCE_UP.page_name}) == 0
            or max by (job, instance, source) ({SOURCE_AGE.page_name}) > 300
            """
        ),
        lasting="10m",
        severity="warning",
        summary=_PLACE + ": nothing is read from {{ $labels.source }} any more",
        means="A source of values (the driver of the GPUs, the machine, the scores) fails, hangs or is stale.",
        act="Run `otel-mlops doctor` there, and look at the log. What it gave is absent until it answers again.",
        look=((SOURCE_AGE.page_name, "how old the values are"), (SOURCE_DURATION.page_name, "how long a reading took")),
    ),
    Alert(
        name="LedgerDown",
        expression=f"min by (job, instance, worker) ({LEDGER_UP.page_name}) == 0",
        lasting="5m",
        severity="warning",
        summary=_PLACE + ": numbers of worker {{ $labels.worker }} are not in shared memory",
        means="Shared memory is full or cannot be written: part of what a worker counts is on no page unless it leads.",
        act="Make room in `/dev/shm`, give the container more (`--shm-size`), or set `OTEL_MLOPS_STATE_DIR`.",
        look=((LEDGER_SIZE.page_name, "what each worker takes"),),
    ),
    Alert(
        name="LedgerNearlyFull",
        expression=f"max by (job, instance, worker) ({LEDGER_SIZE.page_name}) > {LEDGER_BYTES * 9 // 10}",
        lasting="15m",
        severity="warning",
        summary=_PLACE + ": worker {{ $labels.worker }} keeps {{ $value | humanize1024 }}B of series",
        means="A worker's series take nine tenths of `OTEL_MLOPS_MAX_LEDGER_BYTES`. Past it new ones overflow.",
        act="See which metric has so many series; forget models that are gone; or raise the setting, and this number.",
        look=(('topk(10, count by (__name__) ({job!=""}))', "the metrics with the most series"),),
    ),
    Alert(
        name="ExportFails",
        expression=f"sum by (job, instance, signal) (increase({EXPORT_FAILURES.page_name}[15m])) > 0",
        lasting="15m",
        severity="warning",
        summary=_PLACE + ": {{ $labels.signal }} cannot be pushed",
        means="Pushing over OTLP has failed for a quarter of an hour. Counts are sent later; traces are lost.",
        act="See whether the Collector runs, is reached, and takes what it is sent; the log has its answer.",
        look=((f"increase({EXPORT_FAILURES.page_name}[1h])", "since when"),),
    ),
    Alert(
        name="PageRefuses",
        expression=f"sum by (job, instance, cause) (increase({PAGE_REFUSED.page_name}[15m])) > 10",
        lasting="0m",
        severity="warning",
        summary=_PLACE + ": the page has sent clients away ({{ $labels.cause }})",
        means="More than ten clients of the metrics' port were sent away in a quarter of an hour.",
        act="With `auth` or `tls` a scraper has the wrong secret, or somebody tries; otherwise too many ask too often.",
        look=((f"increase({PAGE_REFUSED.page_name}[1h])", "all causes"),),
    ),
    Alert(
        name="PageConfigBroken",
        expression=f"min by (job, instance) ({PAGE_CONFIG_UP.page_name}) == 0",
        lasting="5m",
        severity="warning",
        summary=_PLACE + ": the page's web.config.yml cannot be read",
        means="The file was changed and is not valid. The one before holds until the service restarts; then none does.",
        act="Correct the file; the log has the line.",
    ),
)


def _any(name: str, by: str) -> str:
    """What a Collector counts of points and of spans; the names end in `_total` or not by how it is scraped."""
    each = (
        f'label_replace(rate({name}_{items}[5m]) or rate({name}_{items}_total[5m]), "signal", "{signal}", "", "")'
        for signal, items in (("metrics", "metric_points"), ("traces", "spans"))
    )
    return f"sum by (job, instance, {by}, signal) (\n  " + "\n  or ".join(each) + "\n) > 0"


_QUEUE = "otelcol_exporter_queue_size"

_COLLECTORS = (
    Alert(
        name="CollectorQueueFilling",
        expression=f"max by (job, instance, exporter) ({_QUEUE} / otelcol_exporter_queue_capacity) > 0.8",
        lasting="10m",
        severity="warning",
        summary=_PLACE + ": the Collector's queue to {{ $labels.exporter }} is {{ $value | humanizePercentage }} full",
        means="A Collector cannot send as fast as it receives. When the queue is full it refuses or drops.",
        act="See whether its backend answers. If it does, give it more consumers, or another Collector.",
        look=((_QUEUE, "how the queue grows"),),
    ),
    Alert(
        name="CollectorDrops",
        expression=_any("otelcol_exporter_enqueue_failed", "exporter"),
        lasting="5m",
        severity="critical",
        summary=_PLACE + ": the Collector loses {{ $labels.signal }} for {{ $labels.exporter }}",
        means="The queue of an exporter is full or its disk cannot be written: what comes now is lost.",
        act="Make room: a backend that answers, a larger queue, a disk that is not full.",
        look=((_QUEUE, "how full the queue is"),),
    ),
    Alert(
        name="CollectorSendFails",
        expression=_any("otelcol_exporter_send_failed", "exporter"),
        lasting="10m",
        severity="warning",
        summary=_PLACE + ": the Collector cannot send {{ $labels.signal }} to {{ $labels.exporter }}",
        means="The backend refuses what a Collector sends for good, or the retries have ended: that is lost.",
        act="Its log has the backend's answer: a certificate, a token, a sample that is too old, a limit.",
        look=((_QUEUE, "whether it waits as well"),),
    ),
    Alert(
        name="CollectorRefuses",
        expression=_any("otelcol_receiver_refused", "receiver"),
        lasting="10m",
        severity="warning",
        summary=_PLACE + ": the Collector refuses {{ $labels.signal }} at {{ $labels.receiver }}",
        means="A Collector is out of memory or its queue is full, and tells its senders to come again.",
        act="Give it more memory or another beside it. Senders keep what they have for a while only.",
        look=((_QUEUE, "how full its queues are"),),
    ),
)

TELEMETRY = Group(name="otel_mlops_telemetry", about="Telemetry", rules=_OURS)
"""The alerts about the library's own work."""

COLLECTOR = Group(name="otel_mlops_collector", about="Collector", rules=_COLLECTORS)
"""The alerts about the OpenTelemetry Collector, where it is scraped."""

WATCHDOG = Group(
    name="otel_mlops_watchdog",
    about="Watchdog",
    rules=(
        Alert(
            name="Watchdog",
            expression="vector(1)",
            lasting="0m",
            severity="none",
            summary="Alerts get through",
            means="It always fires. Who receives it is to raise the alarm when it stops: nothing gets through then.",
            act="If it has stopped, look at Prometheus, at Alertmanager, and at the way from one to the other.",
            look=(("vector(1)", "that Prometheus evaluates"),),
        ),
    ),
)
"""The alert that must always fire."""
