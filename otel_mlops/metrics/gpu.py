"""The rows of the GPUs, whoever made them: activity, memory, heat, power, faults, and the energy of predictions."""

from otel_mlops.metrics.machine import DIRECTIONS
from otel_mlops.metrics.row import Metric

# fmt: off

_GPU = ("gpu_id", "gpu_name")
_MIG = (*_GPU, "mig_uuid", "profile")

THROTTLE_REASONS = (
    "sw_power_cap", "sw_thermal", "hw_slowdown", "hw_thermal", "hw_power_brake", "sync_boost", "display_clock",
    "applications_clock",
)
"""Why a GPU runs slower than it could."""

_CLOCK = {"clock": ("graphics", "sm", "memory", "video")}
_REASON = {"reason": THROTTLE_REASONS}
_JOULES = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1000.0,
    10000.0,
)

# --- Activity ---------------------------------------------------------------------------------------------

GPU_UTILIZATION = Metric(
    "gpu.utilization", "gauge", "%", "Share of the last sample period in which a kernel ran, 0 to 100.",
    _GPU, "once",
    note="One kernel on one multiprocessor makes it 100: it says busy, not how busy: see `gpu_sm_activity_ratio`.",
)
GPU_BUSY = Metric(
    "gpu.busy", "counter", "s", "Time in which a kernel ran.", _GPU,
    note="`rate()` of it is the exact mean of the utilization at any scrape interval.",
)
GPU_MEMORY_BUSY = Metric(
    "gpu.memory.busy", "counter", "s", "Time in which the GPU's memory was read or written.", _GPU
)
GPU_ENCODER_UTILIZATION = Metric(
    "gpu.encoder.utilization", "gauge", "%", "Share of time in which the video encoder ran, 0 to 100.", _GPU, "once"
)
GPU_DECODER_UTILIZATION = Metric(
    "gpu.decoder.utilization", "gauge", "%", "Share of time in which the video decoder ran, 0 to 100.", _GPU, "once"
)
GPU_SM_ACTIVITY = Metric(
    "gpu.sm.activity.ratio", "gauge", "1", "Share of the multiprocessors' time with at least one warp, 0 to 1.",
    _GPU, "once", note="Hopper and newer.",
)
GPU_SM_OCCUPANCY = Metric(
    "gpu.sm.occupancy.ratio", "gauge", "1",
    "Warps on the multiprocessors as a share of the most there could be, 0 to 1.", _GPU, "once",
    note="Hopper and newer.",
)
GPU_TENSOR_ACTIVITY = Metric(
    "gpu.tensor.activity.ratio", "gauge", "1", "Share of time in which the tensor cores were busy, 0 to 1.",
    _GPU, "once", note="Hopper and newer.",
)
GPU_DRAM_ACTIVITY = Metric(
    "gpu.dram.activity.ratio", "gauge", "1", "Share of the memory's bandwidth in use, 0 to 1.",
    _GPU, "once", note="Hopper and newer.",
)
GPU_SM_ACTIVE = Metric(
    "gpu.sm.active", "counter", "s", "Time of the multiprocessors with at least one warp, averaged over them.", _GPU,
    note="Hopper and newer. `rate()` of it is the exact mean of `gpu_sm_activity_ratio`.",
)
GPU_PROCESS_MEMORY = Metric(
    "gpu.process.memory", "gauge", "By", "GPU memory that a worker uses.", (*_GPU, "worker"), "once",
    note="Absent where the driver's process ids are not those of this container.",
)

# --- Memory -----------------------------------------------------------------------------------------------

GPU_MEMORY_USED = Metric(
    "gpu.memory.used", "gauge", "By", "GPU memory in use, what the driver reserves for itself apart.", _GPU, "once",
    note="Drivers older than 510 count what they reserve as used; there `gpu_memory_reserved_bytes` is absent.",
)
GPU_MEMORY_TOTAL = Metric("gpu.memory.total", "gauge", "By", "GPU memory of the device.", _GPU, "once")
GPU_MEMORY_FREE = Metric("gpu.memory.free", "gauge", "By", "GPU memory that is free.", _GPU, "once")
GPU_MEMORY_RESERVED = Metric(
    "gpu.memory.reserved", "gauge", "By", "GPU memory that the driver and the firmware reserve.", _GPU, "once"
)

# --- Heat, power and clocks -------------------------------------------------------------------------------

GPU_TEMPERATURE = Metric("gpu.temperature", "gauge", "Cel", "Temperature of the GPU.", _GPU, "once")
GPU_TEMPERATURE_LIMIT = Metric(
    "gpu.temperature.limit", "gauge", "Cel", "Temperature at which the GPU does something about it.",
    (*_GPU, "limit"), "once", values={"limit": ("shutdown", "slowdown", "memory_max", "gpu_max")},
    note="Until Ampere: newer GPUs tell how far they are from their limits, and not by which of their sensors.",
)
GPU_POWER_USAGE = Metric(
    "gpu.power.usage", "gauge", "W", "Power that the GPU draws.", _GPU, "once",
    note="Averaged over the last second by most GPUs since Ampere.",
)
GPU_POWER_LIMIT = Metric("gpu.power.limit", "gauge", "W", "Power that the GPU may draw.", _GPU, "once")
GPU_POWER_PEAK = Metric(
    "gpu.power.peak", "gauge", "W", "Highest of the driver's power samples in the last 60 seconds.", _GPU, "once",
    note="The samples are 20 ms to 100 ms apart, so it sees what an average over a second hides.",
)
GPU_ENERGY = Metric(
    "gpu.energy", "counter", "J", "Energy that the GPU has used since its driver was loaded.", _GPU, "once",
    note="`rate()` of it is the mean power in watts, exact at any scrape interval.",
)
GPU_CLOCK_FREQUENCY = Metric(
    "gpu.clock.frequency", "gauge", "Hz", "Frequency of a clock of the GPU.", (*_GPU, "clock"), "once", values=_CLOCK
)
GPU_CLOCK_MAX_FREQUENCY = Metric(
    "gpu.clock.max.frequency", "gauge", "Hz", "Highest frequency of a clock of the GPU.",
    (*_GPU, "clock"), "once", values=_CLOCK,
)
GPU_THROTTLE = Metric(
    "gpu.throttle", "counter", "s", "Time for which the GPU ran slower than it could, by the reason.",
    (*_GPU, "reason"), "once", values=_REASON,
)
GPU_CLOCK_EVENT = Metric(
    "gpu.clock.event.active", "gauge", "", "Whether a reason slows the GPU down now: 1 yes, 0 no.",
    (*_GPU, "reason"), "once", values=_REASON,
)
GPU_PERFORMANCE_STATE = Metric(
    "gpu.performance.state", "gauge", "", "Performance state of the GPU: 0 is the fastest, 15 the slowest.",
    _GPU, "once",
)
GPU_FAN_SPEED = Metric(
    "gpu.fan.speed.ratio", "gauge", "1", "Speed that the fan is told to have, as a share of its highest.",
    (*_GPU, "fan"), "once", note="Can be more than 1. GPUs in servers have no fan.",
)

# --- Buses ------------------------------------------------------------------------------------------------

GPU_PCIE_IO = Metric(
    "gpu.pcie.io", "counter", "By", "Bytes sent and received by the GPU over PCIe.",
    (*_GPU, "direction"), values={"direction": DIRECTIONS},
    note="Where the driver's counter has 32 bits, which overflow within a second, it is GPM's mean times the time, on "
    "Hopper and newer; absent on older GPUs then.",
)
GPU_PCIE_REPLAYS = Metric(
    "gpu.pcie.replays", "counter", "{replay}", "Packets that had to be sent again over PCIe.", _GPU, "once"
)
GPU_PCIE_LINK_GENERATION = Metric(
    "gpu.pcie.link.generation", "gauge", "", "Generation of the PCIe link as it is now.", _GPU, "once",
    note="An idle GPU lowers it.",
)
GPU_PCIE_LINK_GENERATION_MAX = Metric(
    "gpu.pcie.link.generation.max", "gauge", "", "Highest generation that the PCIe link can have.", _GPU, "once"
)
GPU_PCIE_LINK_WIDTH = Metric(
    "gpu.pcie.link.width", "gauge", "{lane}", "Lanes of the PCIe link as it is now.", _GPU, "once"
)
GPU_PCIE_LINK_WIDTH_MAX = Metric(
    "gpu.pcie.link.width.max", "gauge", "{lane}", "Most lanes that the PCIe link can have.", _GPU, "once"
)
GPU_NVLINK_IO = Metric(
    "gpu.nvlink.io", "counter", "By", "Bytes sent and received by the GPU over NVLink.",
    (*_GPU, "direction"), values={"direction": DIRECTIONS},
)

# --- Faults -----------------------------------------------------------------------------------------------

GPU_UP = Metric(
    "gpu.up", "gauge", "", "Whether the GPU answers: 1 yes, 0 no.", _GPU, "once",
    note="0 after it fell off the bus or needs a reset, or when nothing of it can be read. What is read of it is "
    "absent then; what was counted of it stays.",
)
GPU_INFO = Metric(
    "gpu.info", "info", "", "What the GPU is; always 1.",
    (*_GPU, "gpu_uuid"), "once",
    optional_attributes=(
        "pci_bus_id", "architecture", "compute_capability", "driver_version", "cuda_version", "serial", "mig_mode",
    ),
    note="Join it: `gpu_power_usage_watts * on (gpu_id) group_left (gpu_uuid) gpu_info`.",
)
GPU_ECC_ERRORS = Metric(
    "gpu.ecc.errors", "counter", "{error}", "Errors of the GPU's memory that ECC found.",
    (*_GPU, "type", "counter"), "once",
    values={"type": ("corrected", "uncorrected"), "counter": ("volatile", "aggregate")},
    note="`volatile` counts since the driver was loaded, `aggregate` in the life of the GPU: do not add them.",
)
GPU_REMAPPED_ROWS = Metric(
    "gpu.remapped.rows", "gauge", "{row}", "Rows of memory that were replaced by spare ones.",
    (*_GPU, "state"), "once", values={"state": ("correctable", "uncorrectable", "pending", "failure")},
    note="`pending` is 1 until the next reset, `failure` 1 when no spare row was left: have the GPU replaced.",
)
GPU_XID_ERRORS = Metric(
    "gpu.xid.errors", "counter", "{error}", "Faults that the driver reported, by its XID code.", (*_GPU, "xid"),
    note="79 is a GPU that fell off the bus, 48, 63, 64, 94 and 95 are about memory, 13, 31 and 43 the application's. "
    "Those that are worth an alert are there at 0 from the start.",
)
GPU_XID_LAST_TIMESTAMP = Metric(
    "gpu.xid.last.timestamp", "gauge", "s", "When the driver last reported a fault, in seconds since the epoch.",
    (*_GPU, "xid"), "once",
)
GPU_RECOVERY_ACTION = Metric(
    "gpu.recovery.action", "gauge", "",
    "What the GPU needs: 0 nothing, 1 a reset, 2 a reboot, 3 draining of peers, 4 draining and a reset.",
    _GPU, "once", note="5 is recovering the IMEX domain, 6 a reset of the bus, 7 a reboot of the whole system.",
)
GPU_READ_ERRORS = Metric(
    "gpu.read.errors", "counter", "{error}", "Calls of the driver that failed, by the error.", (*_GPU, "error"),
    note="What a GPU does not support is no error: its series are absent. Nor is a lost GPU: see `gpu_up`.",
)

# --- MIG instances: under names of their own, so that nothing counts twice -----------------------------------

GPU_MIG_INFO = Metric(
    "gpu.mig.info", "info", "", "What a MIG instance is; always 1.",
    (*_MIG, "gpu_instance_id", "compute_instance_id"), "once",
)
GPU_MIG_MEMORY_USED = Metric(
    "gpu.mig.memory.used", "gauge", "By", "Memory of a MIG instance in use.", _MIG, "once"
)
GPU_MIG_MEMORY_TOTAL = Metric("gpu.mig.memory.total", "gauge", "By", "Memory of a MIG instance.", _MIG, "once")
GPU_MIG_SM_ACTIVITY = Metric(
    "gpu.mig.sm.activity.ratio", "gauge", "1",
    "Share of the time of a MIG instance's multiprocessors with at least one warp, 0 to 1.", _MIG, "once",
)

# --- Energy -----------------------------------------------------------------------------------------------

PREDICTION_ENERGY = Metric(
    "prediction.energy", "histogram", "J", "Energy that the GPUs used for a prediction call.",
    ("model_version",), buckets=_JOULES, optional_attributes=("model_name",),
    note="Its sum, with `gpu_idle_energy_joules_total`, is the GPUs' whole energy; what a single call got is a share.",
)
GPU_IDLE_ENERGY = Metric(
    "gpu.idle.energy", "counter", "J", "Energy that the GPU used while no prediction ran on it.", _GPU
)

GPU = (
    GPU_UTILIZATION, GPU_BUSY, GPU_MEMORY_BUSY, GPU_SM_ACTIVITY, GPU_SM_OCCUPANCY, GPU_TENSOR_ACTIVITY,
    GPU_DRAM_ACTIVITY, GPU_SM_ACTIVE, GPU_ENCODER_UTILIZATION, GPU_DECODER_UTILIZATION,
    GPU_MEMORY_USED, GPU_MEMORY_TOTAL, GPU_MEMORY_FREE, GPU_MEMORY_RESERVED, GPU_PROCESS_MEMORY,
    GPU_TEMPERATURE, GPU_TEMPERATURE_LIMIT, GPU_POWER_USAGE, GPU_POWER_LIMIT, GPU_POWER_PEAK, GPU_ENERGY,
    GPU_CLOCK_FREQUENCY, GPU_CLOCK_MAX_FREQUENCY, GPU_THROTTLE, GPU_CLOCK_EVENT, GPU_PERFORMANCE_STATE,
    GPU_FAN_SPEED, GPU_PCIE_IO, GPU_PCIE_REPLAYS, GPU_PCIE_LINK_GENERATION, GPU_PCIE_LINK_GENERATION_MAX,
    GPU_PCIE_LINK_WIDTH, GPU_PCIE_LINK_WIDTH_MAX, GPU_NVLINK_IO, GPU_UP, GPU_INFO, GPU_ECC_ERRORS,
    GPU_REMAPPED_ROWS, GPU_XID_ERRORS, GPU_XID_LAST_TIMESTAMP, GPU_RECOVERY_ACTION, GPU_READ_ERRORS,
)
MIG = (GPU_MIG_INFO, GPU_MIG_MEMORY_USED, GPU_MIG_MEMORY_TOTAL, GPU_MIG_SM_ACTIVITY)
ENERGY = (PREDICTION_ENERGY, GPU_IDLE_ENERGY)

# fmt: on
