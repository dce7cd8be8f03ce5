"""What can be found out about the driver at hand: measurements, without an opinion on what they should be."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import pynvml

from otel_mlops import metrics as rows
from otel_mlops.metrics import Metric
from otel_mlops.sources.nvidia import open_nvidia, quantities
from otel_mlops.sources.nvidia.activity import Activity
from otel_mlops.sources.nvidia.driver import FAULTS, error_name
from otel_mlops.sources.nvidia.fields import number_of
from otel_mlops.sources.nvidia.samples import Samples
from otel_mlops.sources.sampler import Sampler
from tests.gpu.hand import HOW_TO_GET_LOADS, HOW_TO_GET_SMI, Hand

MIB = 1024**2

# --- Calls --------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """One way in which the source asks the driver."""

    title: str
    function: str
    ask: Callable[[], Any]
    every_s: float | None = None
    """How often the source asks it, whatever the driver answers; None: not regularly."""


def asked(hand: Hand) -> Iterator[Asked]:
    """Each call that the source makes about a GPU, ready to be made."""
    gpu, driver = hand.gpu, hand.driver

    def about(function: str, *arguments: Any, every_s: float | None = None, **options: Any) -> Asked:
        title = " ".join([function, *map(str, arguments), *(f"{key}={value}" for key, value in options.items())])
        return Asked(title, function, lambda: gpu.ask(function, *arguments, **options), every_s)

    for call in quantities.calls(_architecture(hand)):
        every_s = None if call.instead_of else call.every_s
        yield about(call.function, *call.arguments, every_s=every_s, **call.options)
    batches: dict[float, list[tuple[int, int]]] = defaultdict(list)
    for one in quantities.fields(gpu.driver_version):
        batches[one.every_s].append((one.number, one.scope))
        yield about("nvmlDeviceGetFieldValues", [(one.number, one.scope)])
    for every_s, numbers in batches.items():
        ask = partial(gpu.ask, "nvmlDeviceGetFieldValues", numbers)
        title = f"nvmlDeviceGetFieldValues, {len(numbers)} of them"
        yield Asked(title, "nvmlDeviceGetFieldValues", ask, every_s)
    for kind in (pynvml.NVML_TOTAL_POWER_SAMPLES, 1, 2):
        yield about("nvmlDeviceGetSamples", kind, 0, every_s=quantities.BUFFERED_S)
    for _, function, _ in quantities.INFO:
        yield about(function, every_s=quantities.SLOW_S)
    for function in ("nvmlDeviceGetName", "nvmlDeviceGetUUID", "nvmlGpmQueryDeviceSupport"):
        yield about(function)
    yield about("nvmlDeviceGetNumFans", every_s=quantities.SLOW_S)
    yield about("nvmlDeviceGetFanSpeed_v2", 0, every_s=quantities.SLOW_S)
    yield about("nvmlDeviceGetComputeRunningProcesses", every_s=quantities.MEDIUM_S)
    for function in ("nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion", "nvmlDeviceGetCount"):
        yield Asked(function, function, partial(driver.ask, function))
    by_index = "nvmlDeviceGetHandleByIndex"
    yield Asked(by_index, by_index, partial(driver.ask, by_index, gpu.index))
    yield Asked("nvmlGpmSampleGet", "nvmlGpmSampleGet", partial(_gpm, hand), quantities.MEDIUM_S)
    yield Asked("nvmlDeviceRegisterEvents", "nvmlDeviceRegisterEvents", partial(_event_set, hand))


def _architecture(hand: Hand) -> int | None:
    try:
        return int(hand.gpu.ask("nvmlDeviceGetArchitecture"))
    except FAULTS:
        return None


def _gpm(hand: Hand) -> Any:
    """A sample of GPM, with room made for it and taken away again."""
    sample = hand.driver.ask("nvmlGpmSampleAlloc")
    try:
        hand.gpu.ask("nvmlGpmSampleGet", sample)
        return sample
    finally:
        hand.driver.ask("nvmlGpmSampleFree", sample)


def _event_set(hand: Hand) -> Any:
    """An event set, made and freed again."""
    driver = hand.driver
    events = driver.ask("nvmlEventSetCreate")
    try:
        return hand.gpu.ask("nvmlDeviceRegisterEvents", pynvml.nvmlEventTypeXidCriticalError, events)
    finally:
        driver.ask("nvmlEventSetFree", events)


def shape(answer: Any) -> Any:
    """What an answer is made of: the Python types, whatever the values.

    >>> shape((1, [2.5, 3.5], "name"))
    ('tuple', 'int', ('list', 'float'), 'str')
    """
    if isinstance(answer, ctypes.Structure | ctypes._Pointer):
        return type(answer).__name__
    if isinstance(answer, list):
        return ("list", *map(shape, answer[:1]))
    if isinstance(answer, tuple):
        return ("tuple", *map(shape, answer))
    return type(answer).__name__


def shapes(hand: Hand) -> dict[str, Any]:
    """What each call answers is made of; of one that fails, the failure's name after a question mark."""
    found = {}
    for call in asked(hand):
        try:
            found[call.title] = shape(call.ask())
        except FAULTS as fault:
            found[call.title] = f"?{error_name(fault)}"
    return found


def nonsense(hand: Hand) -> list[str]:
    """The values that the driver gives and the source drops, because they are out of range."""
    found = []
    for call in quantities.calls(_architecture(hand)):
        try:
            answer = hand.gpu.ask(call.function, *call.arguments, **call.options)
        except FAULTS:
            continue
        found += [f"{call.part}: {answer}" for value in call.values if number_of(value, answer) is None]
    return found


@dataclass
class Latency:
    """How long a call takes."""

    call: Asked
    p50_us: float
    p99_us: float
    answer: str


def latencies(hand: Hand, repeats: int) -> list[Latency]:
    """How long each call takes, failing ones too: the source makes those as well, now and then."""
    found = []
    for call in asked(hand):
        times, answer = [], "yes"
        for _ in range(repeats + 3):
            began = time.perf_counter()
            try:
                call.ask()
            except FAULTS as fault:
                answer = error_name(fault)
            times.append((time.perf_counter() - began) * 1e6)
        times = sorted(times[3:])  # the first ones look the function up
        found.append(Latency(call, times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)], answer))
    return found


# --- What the driver samples by itself --------------------------------------------------------------------------------


@dataclass
class Buffer:
    """One of the driver's buffers of samples."""

    kind: str
    count: int
    period_ms: float
    longest_ms: float
    span_s: float
    clock: str
    """Which clock of the machine the time stamps are by."""


def buffers(hand: Hand) -> list[Buffer]:
    """What the buffers hold that busy seconds and the peak of the power are made of."""
    found = []
    for kind in ("TOTAL_POWER", "GPU_UTILIZATION", "MEMORY_UTILIZATION"):
        try:
            _, samples = hand.gpu.ask("nvmlDeviceGetSamples", getattr(pynvml, f"NVML_{kind}_SAMPLES"), 0)
        except FAULTS:
            continue
        times = sorted(sample.timeStamp / 1e6 for sample in samples)
        periods = [after - before for before, after in pairwise(times)] or [0.0]
        period_ms, longest_ms = statistics.median(periods) * 1000, max(periods) * 1000
        name = kind.lower().replace("_", " ")
        found.append(Buffer(name, len(times), period_ms, longest_ms, times[-1] - times[0], _clock_near(times[-1])))
    return found


def _clock_near(seconds: float) -> str:
    clocks = {"since 1970": time.time(), "CLOCK_MONOTONIC": time.monotonic()}
    if hasattr(time, "CLOCK_BOOTTIME"):
        clocks["CLOCK_BOOTTIME"] = time.clock_gettime(time.CLOCK_BOOTTIME)
    near = [name for name, now in clocks.items() if abs(now - seconds) < 5]
    return " or ".join(near) or "another"


# --- Values under a load ------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What was seen of a GPU while a load ran, by the parts of the source."""

    load: str
    seconds: float
    busy_s: float | None = None
    memory_busy_s: float | None = None
    peak_watts: float | None = None
    utilization_percent: list[float] = field(default_factory=list)
    power_watts: list[float] = field(default_factory=list)
    activity: dict[Metric, float] = field(default_factory=dict)

    @property
    def busy_ratio(self) -> float | None:
        """The share of the time that the busy seconds make."""
        return None if self.busy_s is None else self.busy_s / self.seconds


def under_load(hand: Hand, kind: str, seconds: float) -> Measured:
    """Watch a load run for so long, with the parts of the source that see what happens between two readings."""
    samples, activity = Samples(hand.gpu, hand.clock), Activity(hand.gpu, hand.clock)
    try:
        with hand.running(kind):
            hand.wait(min(1.5, seconds / 2))  # until clocks are up, and a sample was taken whole under the load
            samples.read()
            activity.read()
            began = hand.clock()
            measured = Measured(kind, seconds)
            for _ in range(max(2, round(seconds))):
                hand.wait(seconds / max(2, round(seconds)))
                _note(measured, samples, hand)
            measured.seconds = hand.clock() - began
            for sample in activity.read():
                measured.activity[sample.metric] = sample.value
    finally:
        activity.close()
    return measured


def _note(measured: Measured, samples: Samples, hand: Hand) -> None:
    for row, value, _ in samples.read():
        if row is rows.GPU_BUSY:
            measured.busy_s = (measured.busy_s or 0.0) + value
        elif row is rows.GPU_MEMORY_BUSY:
            measured.memory_busy_s = (measured.memory_busy_s or 0.0) + value
        else:
            measured.peak_watts = value
    for function, of, into in (
        ("nvmlDeviceGetUtilizationRates", lambda answer: float(answer.gpu), measured.utilization_percent),
        ("nvmlDeviceGetPowerUsage", lambda answer: answer / 1000, measured.power_watts),
    ):
        try:
            into.append(of(hand.gpu.ask(function)))
        except FAULTS:
            continue


def memory_rise(hand: Hand, size: int) -> int:
    """By how much the memory used rises when so many bytes are taken."""
    if hand.loads is None:
        raise ValueError(HOW_TO_GET_LOADS)
    with hand.loads.allocated(size // 64):  # the library's own start is not measured
        before = _used(hand)
        with hand.loads.allocated(size):
            return _used(hand) - before


def _used(hand: Hand) -> int:
    return int(hand.gpu.ask("nvmlDeviceGetMemoryInfo", version=quantities._MEMORY_V2).used)


class Energy(NamedTuple):
    """The energy of a stretch of time, by the counter and by the power."""

    counter_joules: float
    integral_joules: float
    period_ms: float | None
    """How far apart the counter's steps were seen."""


def energy(hand: Hand, seconds: float, step_s: float = 0.02) -> Energy:
    """Compare the energy counter with the integral of the power."""
    steps = max(2, round(seconds / step_s))
    powers, joules, times = [], [], []
    for number in range(steps + 1):
        if number:
            hand.wait(seconds / steps)
        times.append(hand.clock())
        powers.append(hand.gpu.ask("nvmlDeviceGetPowerUsage") / 1000)
        joules.append(hand.gpu.ask("nvmlDeviceGetTotalEnergyConsumption") / 1000)
    integral = sum((b - a) * (p + q) / 2 for (a, b), (p, q) in zip(pairwise(times), pairwise(powers), strict=True))
    stepped = [at for at, (before, after) in zip(times[1:], pairwise(joules), strict=True) if after > before]
    periods = [after - before for before, after in pairwise(stepped)]
    period_ms = statistics.median(periods) * 1000 if periods else None
    return Energy(joules[-1] - joules[0], integral, period_ms)


# --- What the documents leave open --------------------------------------------------------------------------------


def open_questions(hand: Hand) -> dict[str, str]:
    """What the driver's documents do not say, as far as it can be seen without changing anything."""
    found = {}
    for title, number, _ in (("PCIe bytes sent", 197, 0), ("PCIe bytes received", 198, 0), ("energy", 83, 0)):
        [answer] = hand.gpu.ask("nvmlDeviceGetFieldValues", [number])
        types = {0: "double", 1: "unsigned int", 2: "unsigned long", 3: "unsigned long long"}
        if answer.nvmlReturn == pynvml.NVML_SUCCESS:
            found[f"type of field {number} ({title})"] = types.get(answer.valueType, str(answer.valueType))
        else:
            found[f"type of field {number} ({title})"] = str(pynvml.NVMLError(answer.nvmlReturn))
    [answer] = hand.gpu.ask("nvmlDeviceGetFieldValues", [74])
    try:
        violation = hand.gpu.ask("nvmlDeviceGetViolationStatus", pynvml.NVML_PERF_POLICY_POWER)
        text = f"{answer.value.ullVal} against {violation.violationTime} ns of nvmlDeviceGetViolationStatus"
    except FAULTS as fault:
        text = f"{answer.value.ullVal}; nvmlDeviceGetViolationStatus: {error_name(fault)}"
    found["field 74 (time throttled for power)"] = text
    return found


# --- nvidia-smi ---------------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """A value of the source beside that of nvidia-smi, both in the row's unit; None where there is none."""

    field: str
    row: Metric
    ours: float | None
    smi: float | None
    within: float

    @property
    def agrees(self) -> bool:
        """Whether both have it and are near to one another, or neither has it."""
        if self.ours is None or self.smi is None:
            return self.ours is self.smi
        return abs(self.ours - self.smi) <= self.within


class _Field(NamedTuple):
    """A field of nvidia-smi, and where the source has it."""

    name: str
    row: Metric
    labels: tuple[tuple[str, str], ...] = ()
    factor: float = 1.0
    within: float = 0.0
    """How far apart two readings a moment apart may lie, in the row's unit."""


# fmt: off
_SMI_FIELDS = (
    _Field("utilization.gpu", rows.GPU_UTILIZATION, within=15),
    _Field("utilization.encoder", rows.GPU_ENCODER_UTILIZATION, within=15),
    _Field("utilization.decoder", rows.GPU_DECODER_UTILIZATION, within=15),
    _Field("memory.total", rows.GPU_MEMORY_TOTAL, factor=MIB, within=MIB),
    _Field("memory.used", rows.GPU_MEMORY_USED, factor=MIB, within=64 * MIB),
    _Field("memory.free", rows.GPU_MEMORY_FREE, factor=MIB, within=64 * MIB),
    _Field("memory.reserved", rows.GPU_MEMORY_RESERVED, factor=MIB, within=MIB),
    _Field("temperature.gpu", rows.GPU_TEMPERATURE, within=3),
    _Field("temperature.memory", rows.HARDWARE_TEMPERATURE, (("component", "gpu{}/memory"),), within=3),
    _Field("power.draw", rows.GPU_POWER_USAGE, within=15),
    _Field("enforced.power.limit", rows.GPU_POWER_LIMIT, within=0.01),
    _Field("clocks.current.graphics", rows.GPU_CLOCK_FREQUENCY, (("clock", "graphics"),), 1e6, 200e6),
    _Field("clocks.current.sm", rows.GPU_CLOCK_FREQUENCY, (("clock", "sm"),), 1e6, 200e6),
    _Field("clocks.current.memory", rows.GPU_CLOCK_FREQUENCY, (("clock", "memory"),), 1e6, 200e6),
    _Field("clocks.max.graphics", rows.GPU_CLOCK_MAX_FREQUENCY, (("clock", "graphics"),), 1e6),
    _Field("clocks.max.sm", rows.GPU_CLOCK_MAX_FREQUENCY, (("clock", "sm"),), 1e6),
    _Field("clocks.max.memory", rows.GPU_CLOCK_MAX_FREQUENCY, (("clock", "memory"),), 1e6),
    _Field("pstate", rows.GPU_PERFORMANCE_STATE, within=2),
    _Field("fan.speed", rows.GPU_FAN_SPEED, (("fan", "0"),), 0.01, 0.05),
    _Field("pcie.link.gen.max", rows.GPU_PCIE_LINK_GENERATION_MAX),
    _Field("pcie.link.width.current", rows.GPU_PCIE_LINK_WIDTH),
    _Field("pcie.link.width.max", rows.GPU_PCIE_LINK_WIDTH_MAX),
    *(_Field(f"ecc.errors.{kind}.{counter}.total", rows.GPU_ECC_ERRORS, (("type", kind), ("counter", counter)))
      for kind in ("corrected", "uncorrected") for counter in ("volatile", "aggregate")),
)
# fmt: on


def against_smi(hand: Hand) -> list[Compared]:
    """The values of the source beside those of nvidia-smi, asked a moment later; fields it knows not are left out."""
    if hand.smi is None:
        raise ValueError(HOW_TO_GET_SMI)
    source = open_nvidia(gpus="all", clock=hand.clock)
    try:
        ours = {
            (sample.metric, frozenset(sample.attributes.items()) - set(hand.gpu.labels.items())): sample.value
            for sample in source()
            if sample.attributes.get("gpu_id", hand.gpu.labels["gpu_id"]) == hand.gpu.labels["gpu_id"]
        }
    finally:
        source.close()
    names = [each.name for each in _SMI_FIELDS]
    theirs = hand.smi(names)
    # Of a query with one field that it does not know nvidia-smi answers nothing at all.
    answers = theirs if theirs is not None else [(hand.smi([name]) or [None])[0] for name in names]
    found = []
    for each, text in zip(_SMI_FIELDS, answers, strict=True):
        if text is not None:
            labels = frozenset((key, label.format(hand.gpu.index)) for key, label in each.labels)
            smi = _number(text)
            value = None if smi is None else smi * each.factor
            found.append(Compared(each.name, each.row, ours.get((each.row, labels)), value, each.within))
    return found


def _number(text: str) -> float | None:
    """A value of nvidia-smi; N/A is none, and P2 is 2.

    >>> _number("P8"), _number(" 41 "), _number("[N/A]"), _number("[Not Supported]")
    (8.0, 41.0, None, None)
    """
    try:
        return float(text.strip().removeprefix("P"))
    except ValueError:
        return None


# --- What it costs the inference ----------------------------------------------------------------------------------


class Effect(NamedTuple):
    """How long a prediction takes, in milliseconds, while the source is read and while it is not."""

    without_p50_ms: float
    without_p99_ms: float
    with_p50_ms: float
    with_p99_ms: float
    readings: int


def effect_on_inference(hand: Hand, seconds: float, turns: int = 4) -> Effect:
    """Predict in a loop, by turns with and without the source read once a second; each turn takes `seconds`."""
    if hand.loads is None:
        raise ValueError(HOW_TO_GET_LOADS)
    predict = hand.loads.prediction()
    for _ in range(50):
        predict()
    source = open_nvidia(gpus="all", clock=hand.clock)
    readings = 0

    def read() -> Sequence[Any]:
        nonlocal readings
        readings += 1
        return source()

    sampler = Sampler({"nvidia": read}, 1.0)
    times: dict[bool, list[float]] = {False: [], True: []}
    try:
        for turn in range(turns):
            is_read = bool(turn % 2)
            if is_read:
                sampler.start()
            times[is_read] += _loop(predict, seconds)
            if is_read:
                sampler.stop(10.0)
    finally:
        sampler.stop(10.0)
        source.close()
    quantiles = [statistics.quantiles(times[is_read], n=100, method="inclusive") for is_read in (False, True)]
    (without_p50, without_p99), (with_p50, with_p99) = [(one[49], one[98]) for one in quantiles]
    return Effect(without_p50, without_p99, with_p50, with_p99, readings)


def _loop(predict: Callable[[], None], seconds: float) -> list[float]:
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < until:
        began = time.perf_counter()
        predict()
        times.append((time.perf_counter() - began) * 1000)
    return times
