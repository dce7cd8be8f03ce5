"""The rows of GPUs: how busy, how hot, how full, what is wrong with them and what they are."""

from __future__ import annotations

from otel_mlops.dashboards.panels import NONE, YES, Colour, Panel, Query, Row
from otel_mlops.dashboards.promql import GPU, filled, increase, largest, rate, series, total
from otel_mlops.metrics import (
    GPU_BUSY,
    GPU_CLOCK_EVENT,
    GPU_CLOCK_FREQUENCY,
    GPU_CLOCK_MAX_FREQUENCY,
    GPU_DECODER_UTILIZATION,
    GPU_DRAM_ACTIVITY,
    GPU_ECC_ERRORS,
    GPU_ENCODER_UTILIZATION,
    GPU_ENERGY,
    GPU_FAN_SPEED,
    GPU_INFO,
    GPU_MEMORY_BUSY,
    GPU_MEMORY_RESERVED,
    GPU_MEMORY_TOTAL,
    GPU_MEMORY_USED,
    GPU_MIG_INFO,
    GPU_MIG_MEMORY_TOTAL,
    GPU_MIG_MEMORY_USED,
    GPU_MIG_SM_ACTIVITY,
    GPU_NVLINK_IO,
    GPU_PCIE_IO,
    GPU_PCIE_LINK_GENERATION,
    GPU_PCIE_LINK_GENERATION_MAX,
    GPU_PCIE_LINK_WIDTH,
    GPU_PCIE_LINK_WIDTH_MAX,
    GPU_PCIE_REPLAYS,
    GPU_PERFORMANCE_STATE,
    GPU_POWER_LIMIT,
    GPU_POWER_PEAK,
    GPU_POWER_USAGE,
    GPU_PROCESS_MEMORY,
    GPU_READ_ERRORS,
    GPU_RECOVERY_ACTION,
    GPU_REMAPPED_ROWS,
    GPU_SM_ACTIVE,
    GPU_SM_ACTIVITY,
    GPU_SM_OCCUPANCY,
    GPU_TEMPERATURE,
    GPU_TEMPERATURE_LIMIT,
    GPU_TENSOR_ACTIVITY,
    GPU_THROTTLE,
    GPU_UP,
    GPU_UTILIZATION,
    GPU_XID_ERRORS,
    GPU_XID_LAST_TIMESTAMP,
    Metric,
)

# fmt: off

_NO_GPU = "No GPU"
_NOT_COUNTED = "Not counted by this GPU"
_OF_GPU = "{{instance}} GPU {{gpu_id}}"
_NUMBERED = ("fan", "worker")
_MIG = (*GPU, "profile", "mig_uuid")
_SLOW_STEP, _ENERGY_STEP = "2m", "10s"
"""Some readings: the driver is asked each 60 s for what costs much, and each 5 s for the energy."""
_ACTIONS: dict[float, tuple[str, Colour]] = {
    0: ("none", "green"), 1: ("reset", "red"), 2: ("reboot", "red"), 3: ("drain peers", "orange"),
    4: ("drain and reset", "red"), 5: ("recover IMEX", "orange"), 6: ("reset bus", "red"), 7: ("reboot all", "red"),
}


def _each(row: Metric, name: str = "", *by: str, dashed: bool = False) -> Query:
    """A gauge of each GPU."""
    return Query(expression=largest(series(row), *GPU, *by), legend=_legend(name, *by), dashed=dashed)


def _flow(row: Metric, name: str = "", *by: str) -> Query:
    """What a counter of each GPU grows by in a second."""
    return Query(expression=total(rate(row), *GPU, *by), legend=_legend(name, *by))


def _legend(name: str, *by: str) -> str:
    labels = (f"{label} {{{{{label}}}}}" if label in _NUMBERED else f"{{{{{label}}}}}" for label in by)
    return " ".join(filter(None, (_OF_GPU, *labels, name)))


GPUS = Row(title="GPUs", panels=(
    Panel(
        title="GPU utilization", unit="percentunit", minimum=0, no_value=_NO_GPU,
        description="Share of the time in which a kernel ran, exact at any scrape interval, and as read at one moment "
        "where it is not counted. Low while requests queue: the batches are small or the data comes too slowly.",
        queries=(Query(
            expression=f"{total(rate(GPU_BUSY), *GPU)} or {largest(series(GPU_UTILIZATION), *GPU)} / 100",
            legend=_OF_GPU,
        ),),
    ),
    Panel(
        title="GPU temperature", unit="celsius", no_value=_NO_GPU,
        description="At its limit a GPU slows itself down. One hotter than its neighbours: its place in the rack, its "
        "fan, dust.",
        queries=(_each(GPU_TEMPERATURE), _each(GPU_TEMPERATURE_LIMIT, "limit", "limit", dashed=True)),
    ),
    Panel(
        title="GPU memory", unit="bytes", minimum=0, no_value=_NO_GPU,
        description="Memory in use and in all. Near the total: the next large batch may fail; what a worker holds is "
        "shown in the details.",
        queries=(_each(GPU_MEMORY_USED, "used"), _each(GPU_MEMORY_TOTAL, "total", dashed=True)),
    ),
    Panel(
        title="GPU power", unit="watt", width=12, minimum=0, step=_ENERGY_STEP, no_value=_NO_GPU,
        description="The exact mean from the energy counter, the highest of the driver's own samples, and the limit. "
        "At the limit the GPU runs slower: see the throttled time.",
        queries=(
            _flow(GPU_ENERGY, "mean"), _each(GPU_POWER_USAGE, "now"), _each(GPU_POWER_PEAK, "peak"),
            _each(GPU_POWER_LIMIT, "limit", dashed=True),
        ),
    ),
    Panel(
        title="Throttled time", unit="percentunit", width=12, minimum=0, step=_SLOW_STEP,
        no_value="No GPU, or not told",
        description="Share of the time in which the GPU ran slower than it could, by the reason. Thermal: cool it. "
        "Power cap: that is its limit, and no fault. Power brake: the supply.",
        queries=(_flow(GPU_THROTTLE, "", "reason"),),
    ),
))

_INVENTORY = Row(title="GPU: which, and what each needs", collapsed=True, panels=(
    Panel(
        title="GPUs", kind="table", unit="short", width=24, height=7, no_value=_NO_GPU,
        description="Each GPU: whether it answers, what it needs, and its link. `drain` and `reset` are for whoever "
        "runs the machine; a link narrower than it could be, under load, is a bad slot.",
        columns=(("gpu_name", "GPU"), ("gpu_id", "Id"), ("instance", "Instance"), ("job", "Job")),
        widths={"GPU": 260, "PCIe generation": 160},
        queries=(
            Query(
                expression=largest(series(GPU_UP), *GPU, "gpu_name"), legend="Answers", thresholds=YES,
                mapping={1: ("yes", "green"), 0: ("no", "red")},
            ),
            Query(
                expression=largest(series(GPU_RECOVERY_ACTION), *GPU, "gpu_name"), legend="Needs", thresholds=NONE,
                mapping=_ACTIONS,
            ),
            *(
                Query(expression=largest(series(row), *GPU, "gpu_name"), legend=name, unit="none")
                for row, name in (
                    (GPU_PERFORMANCE_STATE, "P state"), (GPU_PCIE_LINK_GENERATION, "PCIe generation"),
                    (GPU_PCIE_LINK_GENERATION_MAX, "of"), (GPU_PCIE_LINK_WIDTH, "Lanes"),
                    (GPU_PCIE_LINK_WIDTH_MAX, "out of"),
                )
            ),
        ),
    ),
    Panel(
        title="Drivers", kind="table", unit="none", width=24, height=6, no_value=_NO_GPU,
        description="What each GPU is and what drives it. Instances that differ in driver or CUDA may differ in "
        "results and speed.",
        columns=(
            ("gpu_name", "GPU"), ("gpu_id", "Id"), ("gpu_uuid", "UUID"), ("pci_bus_id", "PCI bus"),
            ("driver_version", "Driver"), ("cuda_version", "CUDA"), ("mig_mode", "MIG"), ("instance", "Instance"),
        ),
        widths={"GPU": 260, "UUID": 380},
        queries=(Query(
            expression=largest(
                series(GPU_INFO), "instance", "gpu_id", "gpu_name", "gpu_uuid", "pci_bus_id", "driver_version",
                "cuda_version", "mig_mode",
            ),
        ),),
    ),
))

_FAULTS = Row(title="GPU: faults", collapsed=True, panels=(
    Panel(
        title="Faults by XID", unit="none", minimum=0, decimals=0, sparse=True, no_value="No fault",
        description="Faults that the driver reported in a step of the graph. 79 is a GPU that fell off the bus; 48, "
        "63, 64, 94 and 95 are about memory; 13, 31 and 43 are the application's.",
        queries=(Query(
            expression=f"{total(increase(GPU_XID_ERRORS), *GPU, 'xid')} > 0", legend=f"{_OF_GPU} XID {{{{xid}}}}",
        ),),
    ),
    Panel(
        title="Memory errors", unit="none", minimum=0, decimals=0, step=_SLOW_STEP, no_value=_NOT_COUNTED,
        description="Errors that ECC found since the driver was loaded, in a step of the graph. Corrected ones are "
        "harmless while few; after an uncorrected one the GPU needs a reset.",
        queries=(Query(
            expression=total(increase(GPU_ECC_ERRORS, 'counter="volatile"'), *GPU, "type"),
            legend=f"{_OF_GPU} {{{{type}}}}",
        ),),
    ),
    Panel(
        title="Rows of memory replaced", unit="none", minimum=0, decimals=0, no_value=_NOT_COUNTED,
        description="Rows that spare ones stand in for. `pending` 1: reset the GPU; `failure` 1: have it replaced.",
        queries=(_each(GPU_REMAPPED_ROWS, "", "state"),),
    ),
    Panel(
        title="Last fault", kind="table", unit="dateTimeFromNow", width=12, height=7, no_value="No fault was seen",
        description="When the driver last reported each fault, as long as the process lives that reads it.",
        columns=(("gpu_id", "Id"), ("xid", "XID"), ("instance", "Instance"), ("job", "Job")),
        queries=(Query(
            expression=f"{largest(series(GPU_XID_LAST_TIMESTAMP), *GPU, 'xid')} * 1000", legend="When",
        ),),
    ),
    Panel(
        title="Readings that fail, packets sent again", unit="ops", width=12, height=7, minimum=0, step=_SLOW_STEP,
        no_value="None",
        description="Calls of the driver that failed, by the error, and PCIe packets that had to be sent again. Steady "
        "replays are a bad slot or riser.",
        queries=(_flow(GPU_READ_ERRORS, "", "error"), _flow(GPU_PCIE_REPLAYS, "PCIe replays")),
    ),
))

_WORK = Row(title="GPU: how it works", collapsed=True, panels=(
    Panel(
        title="Activity", unit="percentunit", minimum=0, no_value="Hopper and newer",
        description="How much of the GPU works: multiprocessors, warps on them, tensor cores, memory bandwidth. Busy "
        "but with few multiprocessors: larger batches. High bandwidth, few tensor cores: it copies.",
        queries=(
            _each(GPU_SM_ACTIVITY, "multiprocessors"), _each(GPU_SM_OCCUPANCY, "warps"),
            _each(GPU_TENSOR_ACTIVITY, "tensor cores"), _each(GPU_DRAM_ACTIVITY, "memory bandwidth"),
        ),
    ),
    Panel(
        title="Activity, exact means", unit="percentunit", minimum=0, no_value=_NOT_COUNTED,
        description="Multiprocessors at work and memory in use as shares of the time, from counters: right also where "
        "scrapes are far apart.",
        queries=(_flow(GPU_SM_ACTIVE, "multiprocessors"), _flow(GPU_MEMORY_BUSY, "memory")),
    ),
    Panel(
        title="Clocks, of the highest", unit="percentunit", minimum=0, no_value=_NO_GPU,
        description="Each clock as a share of the highest that it can have. An idle GPU lowers them; under load a low "
        "one is throttled.",
        queries=(Query(
            expression=filled(GPU_CLOCK_FREQUENCY, GPU_CLOCK_MAX_FREQUENCY, *GPU, "clock"),
            legend=_legend("", "clock"),
        ),),
    ),
    Panel(
        title="Slowed down now", kind="table", unit="none", no_value="No GPU is slowed down",
        description="What slows a GPU down at this moment. The throttled time above counts it; older drivers have this "
        "only.",
        columns=(("gpu_id", "GPU"), ("reason", "Reason"), ("instance", "Instance"), ("job", "Job")),
        queries=(Query(expression=f"{largest(series(GPU_CLOCK_EVENT), *GPU, 'reason')} > 0"),),
    ),
    Panel(
        title="PCIe", unit="Bps", minimum=0, no_value=_NOT_COUNTED,
        description="Bytes to and from the GPU in a second. At the link's limit: keep data on the GPU, or send less.",
        queries=(_flow(GPU_PCIE_IO, "", "direction"),),
    ),
    Panel(
        title="Memory by worker, and the driver's", unit="bytes", minimum=0, no_value=_NO_GPU,
        description="GPU memory that each worker holds, and what the driver reserves. A worker that holds more than "
        "its model needs caches: restart it, or limit the cache.",
        queries=(_each(GPU_PROCESS_MEMORY, "", "worker"), _each(GPU_MEMORY_RESERVED, "reserved")),
    ),
    Panel(
        title="NVLink", unit="Bps", minimum=0, step=_SLOW_STEP, no_value=_NOT_COUNTED,
        description="Bytes between the GPUs in a second, counted each minute. Of one GPU far less than of the others: "
        "its work is not shared as it was meant to be.",
        queries=(_flow(GPU_NVLINK_IO, "", "direction"),),
    ),
    Panel(
        title="Video engines", unit="percent", minimum=0, no_value=_NO_GPU,
        description="Share of the time in which the encoder and the decoder ran: of services that read or write video.",
        queries=(_each(GPU_ENCODER_UTILIZATION, "encoder"), _each(GPU_DECODER_UTILIZATION, "decoder")),
    ),
    Panel(
        title="Fans", unit="percentunit", minimum=0, no_value="No fan: servers have none",
        description="Speed that each fan is told to have. At its highest while the GPU gets hotter: clean it.",
        queries=(_each(GPU_FAN_SPEED, "", "fan"),),
    ),
))

_INSTANCES = Row(title="GPU: MIG instances", collapsed=True, panels=(
    Panel(
        title="Instances", kind="table", unit="bytes", width=12, no_value="No MIG instance",
        description="The instances that GPUs are divided into. Full: give the model a larger profile.",
        columns=(
            ("gpu_id", "GPU"), ("profile", "Profile"), ("mig_uuid", "UUID"), ("instance", "Instance"), ("job", "Job"),
        ),
        queries=(
            Query(expression=largest(series(GPU_MIG_MEMORY_USED), *_MIG), legend="Used"),
            Query(expression=largest(series(GPU_MIG_MEMORY_TOTAL), *_MIG), legend="Memory"),
            Query(
                expression=f"count by ({', '.join(_MIG)}) ({series(GPU_MIG_INFO)})", legend="Compute instances",
                unit="none",
            ),
        ),
    ),
    Panel(
        title="Activity of instances", unit="percentunit", width=12, minimum=0, maximum=1, no_value="No MIG instance",
        description="Share of the time of an instance's multiprocessors with work. Idle ones can be given to others.",
        queries=(Query(
            expression=largest(series(GPU_MIG_SM_ACTIVITY), *_MIG),
            legend=f"{_OF_GPU} {{{{profile}}}} {{{{mig_uuid}}}}",
        ),),
    ),
))

DETAILS = (_INVENTORY, _FAULTS, _WORK, _INSTANCES)

# fmt: on
