"""GPUs: broken, slowed down, full, or idle while requests wait. A busy GPU is no fault."""

from __future__ import annotations

from inspect import cleandoc

from otel_mlops.metrics import (
    BUILD_INFO,
    GPU_BUSY,
    GPU_CLOCK_EVENT,
    GPU_ECC_ERRORS,
    GPU_MEMORY_FREE,
    GPU_MEMORY_TOTAL,
    GPU_PROCESS_MEMORY,
    GPU_RECOVERY_ACTION,
    GPU_REMAPPED_ROWS,
    GPU_TEMPERATURE,
    GPU_THROTTLE,
    GPU_UP,
    GPU_UTILIZATION,
    GPU_XID_ERRORS,
    GPU_XID_LAST_TIMESTAMP,
    PREDICTIONS_IN_PROGRESS,
)
from otel_mlops.rules.row import Alert, Group, Recording

BROKEN_XIDS = ("48", "62", "64", "74", "79", "95", "119", "120")
"""After one of these the GPU needs a reset or to be replaced: memory, NVLink, the bus, its own processor."""
DAMAGED_XIDS = ("63", "92", "94")
"""Memory that was repaired or contained: it goes on, and is worth a look."""
APPLICATION_XIDS = ("13", "31", "43")
"""Of a program, mostly: its own errors tell."""

_GPU = "job, instance, gpu_id, gpu_name"
_WHERE = "{{ $labels.job }}: GPU {{ $labels.gpu_id }} ({{ $labels.gpu_name }}) of {{ $labels.instance }}"
_BUSY = "job_instance_gpu:gpu_busy:percent5m"
_COUNT = "job_instance:gpu_up:count"
_ERRORS = f'{GPU_ECC_ERRORS.page_name}{{type="uncorrected", counter="volatile"}}'
_MEAN = "job:api_request_duration_seconds:mean5m"
_SLOW = "job:api_requests_slow:ratio_rate5m > 0.06"
"""A number, and no multiple of an objective: that may promise nothing."""
_SLOWER = f"({_SLOW} and job:slo_latency:objective > 0 or {_MEAN} > 2 * avg_over_time({_MEAN}[1d:5m]))"
"""A service that is slow by nature is so at any load: there it must be twice as slow as on the mean of a day."""
_SLOWED = 'reason=~"hw_thermal|hw_power_brake"'


def _xids(codes: tuple[str, ...]) -> str:
    return f'sum by ({_GPU}, xid) (increase({GPU_XID_ERRORS.page_name}{{xid=~"{"|".join(codes)}"}}[1h])) > 0'


_HARDWARE = (
    Alert(
        name="GPULost",
        expression=f"min by ({_GPU}) ({GPU_UP.page_name}) == 0",
        lasting="1m",
        severity="critical",
        summary=_WHERE + " does not answer",
        means="The GPU has fallen off the bus, needs a reset, or lets nothing of it be read.",
        act="Take the traffic away from it. See `nvidia-smi` and the kernel's log; reset it, or restart the machine.",
        look=(
            (GPU_RECOVERY_ACTION.page_name, "what it says it needs"),
            (GPU_XID_LAST_TIMESTAMP.page_name, "its faults"),
        ),
    ),
    Alert(
        name="GPUMissing",
        expression=cleandoc(
            f"""
            {_COUNT} < max_over_time({_COUNT}[1d:5m])
            or (max_over_time({_COUNT}[1d:5m]) unless {_COUNT})
              and on (job, instance) group by (job, instance) ({BUILD_INFO.page_name})
            """
        ),
        lasting="10m",
        severity="critical",
        summary="{{ $labels.job }}: {{ $labels.instance }} has fewer GPUs than it had",
        means=(
            "A machine has fewer GPUs than within the last day, or none at all: one did not come back after a restart, "
            "or the driver does not find it. After a day this ends, though it may still be gone. An instance with "
            "another name, as each start over OTLP has, is not compared."
        ),
        act="See `nvidia-smi` and the kernel's log for the one that is missing; restart the machine or replace it.",
        look=((f"{_COUNT} offset 1d", "how many there were"), (GPU_UP.page_name, "those that are known")),
    ),
    Alert(
        name="GPUNeedsRecovery",
        expression=f"max by ({_GPU}) ({GPU_RECOVERY_ACTION.page_name}) > 0",
        lasting="1m",
        severity="critical",
        summary=_WHERE + " needs recovery (action {{ $value }})",
        means=(
            "The driver says that the GPU will not work rightly before something is done: 1 a reset, 2 a reboot, "
            "3 draining of its peers, 4 draining and a reset."
        ),
        act="Drain the machine and do that.",
        look=((GPU_XID_LAST_TIMESTAMP.page_name, "its faults"),),
    ),
    Alert(
        name="GPUBroken",
        expression=_xids(BROKEN_XIDS),
        lasting="1m",
        severity="critical",
        summary=_WHERE + " has reported the XID {{ $labels.xid }}",
        means="In the last hour the driver reported a fault after which a GPU needs a reset or has to be replaced.",
        act="Drain the machine, reset the GPU or restart. If the XID comes again, have the GPU replaced.",
        look=((f"increase({GPU_XID_ERRORS.page_name}[1d]) > 0", "all its faults of a day"),),
    ),
    Alert(
        name="GPUDamaged",
        expression=_xids(DAMAGED_XIDS),
        lasting="1m",
        severity="warning",
        summary=_WHERE + " has reported the XID {{ $labels.xid }}",
        means="In the last hour the driver repaired or contained an error of the GPU's memory. The GPU goes on.",
        act="Plan a reset, which takes the bad memory out of use. Processes that were hit have been ended.",
        look=((GPU_REMAPPED_ROWS.page_name, "rows that were replaced, and whether a reset is pending"),),
    ),
    Alert(
        name="GPUMemoryErrors",
        # Such an error may end the process. Where its successor is another instance, which begins with what the driver
        # has counted, that is compared with what the job knew of this GPU; an old count is told by no deployment.
        expression=cleandoc(
            f"""
            sum by ({_GPU}) (increase({_ERRORS}[1h])) > 0
            or max by ({_GPU}) ({_ERRORS} unless {_ERRORS} offset 1h)
              > on (job, gpu_id, gpu_name) group_left ()
              max by (job, gpu_id, gpu_name) (max_over_time({_ERRORS}[1d] offset 1h))
            """
        ),
        lasting="1m",
        severity="critical",
        summary=_WHERE + " has had errors of memory that ECC could not correct",
        means="Results computed in the last hour may be wrong, or a process was ended because of it.",
        act="Drain the machine and reset the GPU; if it comes again, have it replaced.",
        look=((GPU_REMAPPED_ROWS.page_name, "whether spare memory is left"),),
    ),
    Alert(
        name="GPUMemorySpent",
        expression=f'max by ({_GPU}) ({GPU_REMAPPED_ROWS.page_name}{{state="failure"}}) > 0',
        lasting="5m",
        severity="critical",
        summary=_WHERE + " has no spare memory left",
        means="A row of the GPU's memory was bad, and there was no spare one to replace it.",
        act="Take it out of service and have it replaced.",
        look=((GPU_REMAPPED_ROWS.page_name, "the rows that were replaced"),),
    ),
    Alert(
        name="GPUResetPending",
        expression=f'max by ({_GPU}) ({GPU_REMAPPED_ROWS.page_name}{{state="pending"}}) > 0',
        lasting="5m",
        severity="warning",
        summary=_WHERE + " waits for a reset to replace bad memory",
        means="A row of memory is bad and is replaced at the next reset. Until then it is kept out of use.",
        act="Reset the GPU at the next occasion.",
        look=((GPU_REMAPPED_ROWS.page_name, "the rows that were replaced"),),
    ),
)

_USE = (
    Alert(
        name="GPUThrottled",
        # Drivers before 575 count no seconds: there the share of readings has to do.
        expression=cleandoc(
            f"""
            max by ({_GPU}, reason) (
              rate({GPU_THROTTLE.page_name}{{{_SLOWED}}}[5m])
              or avg_over_time({GPU_CLOCK_EVENT.page_name}{{{_SLOWED}}}[5m])
            ) > 0.1
            """
        ),
        lasting="5m",
        severity="warning",
        summary=_WHERE + " is slowed down for {{ $value | humanizePercentage }} of the time ({{ $labels.reason }})",
        means="The GPU's own protection slows it down: it is too hot, or its power supply is too weak.",
        act="Look at fans, air and neighbours for heat, and at the power supply and its cables for a power brake.",
        look=((GPU_TEMPERATURE.page_name, "how hot they are"),),
    ),
    Alert(
        name="GPUMemoryNearlyFull",
        expression=f"min by ({_GPU}) ({GPU_MEMORY_FREE.page_name} / {GPU_MEMORY_TOTAL.page_name}) < 0.05",
        lasting="10m",
        severity="warning",
        summary=_WHERE + " has {{ $value | humanizePercentage }} of its memory left",
        means="Less than 5 % of the GPU's memory is free: a larger batch or another model may fail for want of it.",
        act=(
            "Send smaller batches, or move a model. Where a framework takes all the memory beforehand this is no "
            "fault: have it take less, or silence the alert there."
        ),
        look=((GPU_PROCESS_MEMORY.page_name, "what each worker takes, where that can be known"),),
    ),
    Alert(
        name="GPUHighUtilization",
        expression=f"{_BUSY} > 90 and on (job) {_SLOWER}",
        lasting="5m",
        severity="warning",
        summary=_WHERE + ' is busy {{ $value | printf "%.0f" }} % of the time, and requests are slow',
        means=(
            "For 5 minutes a GPU has been busy for more than 90 % of the time while too many requests are slow, or "
            "take twice as long as usual: there is more to do than it can. A busy GPU alone is no fault."
        ),
        act="Add a GPU or an instance, or send larger batches, which need less time a row.",
        look=(
            ("job:api_requests_slow:ratio_rate5m", "the share of slow requests"),
            (f"sum by (job) ({PREDICTIONS_IN_PROGRESS.page_name})", "predictions that run or wait"),
        ),
    ),
    Alert(
        name="GPUIdleWhileQueueing",
        expression=cleandoc(
            f"""
            max by (job, instance) ({_BUSY}) < 5
            and on (job, instance) sum by (job, instance) (avg_over_time({PREDICTIONS_IN_PROGRESS.page_name}[10m])) > 2
            and on (job) ({_SLOW})
            """
        ),
        lasting="10m",
        severity="warning",
        summary="{{ $labels.job }}: the GPUs of {{ $labels.instance }} are idle while predictions wait",
        means=(
            "For 10 minutes predictions have been waiting and requests have been slow, and no GPU of the machine was "
            "busy for even 5 % of the time: the work does not reach it."
        ),
        act=(
            "See whether the model fell back to the CPU (the log at its load, the driver, `CUDA_VISIBLE_DEVICES`), or "
            "what comes before the GPU: reading, decoding, a lock."
        ),
        look=((GPU_PROCESS_MEMORY.page_name, "whether the workers are on the GPU at all"), (_BUSY, "how busy it is")),
    ),
)

GROUP = Group(
    name="otel_mlops_gpu",
    about="GPUs",
    rules=(
        Recording(
            name=_BUSY,
            expression=cleandoc(
                f"""
                max by ({_GPU}) (
                  100 * rate({GPU_BUSY.page_name}[5m]) or avg_over_time({GPU_UTILIZATION.page_name}[5m])
                ) >= 0
                """
            ),
            meaning="How much of the time a GPU was busy, in percent.",
            shown=True,
        ),
        Recording(
            name=_COUNT,
            expression=f"count by (job, instance) ({GPU_UP.page_name})",
            meaning="GPUs of an instance, those that do not answer as well.",
        ),
        *_HARDWARE,
        *_USE,
    ),
)
"""How busy they are, and the alerts."""
