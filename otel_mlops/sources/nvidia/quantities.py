"""What is read of each GPU, as rows of data: how the driver is asked, how often, and which samples that makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter, itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

from otel_mlops import metrics as rows
from otel_mlops.metrics import Metric

EVERY_S, BUFFERED_S, MEDIUM_S, SLOW_S = 0.0, 2.0, 5.0, 60.0
"""How often something is read, by what it costs: NVML's slow calls hold up the launches of kernels on the same GPU.

Every time what takes about a microsecond; every 2 s what the driver keeps no longer (its power samples go back 2.36 s);
the rest of what changes quickly, about a millisecond each; and all else.
"""

ADA = 8
_COUNTED, _RENUMBERED = (575,), (580, 82)
_ALL_LINKS = 0xFFFFFFFF
_MOST_BYTES, _MOST_CELSIUS, _MOST_WATTS = 2**60, 250, 100_000
_NONE: Mapping[str, str] = MappingProxyType({})

ARCHITECTURES = {
    2: "Kepler", 3: "Maxwell", 4: "Pascal", 5: "Volta", 6: "Turing", 7: "Ampere", 8: "Ada", 9: "Hopper",
    10: "Blackwell", 13: "Rubin",
}  # fmt: skip


class Value(NamedTuple):
    """One sample that an answer makes."""

    row: Metric
    pick: Callable[[Any], float] = float
    """Finds it in the answer, in the row's unit."""
    labels: Mapping[str, str] = _NONE
    """Besides those of the GPU; `{}` in one stands for its index."""
    least: float = 0
    most: float = math.inf
    """What is outside was not measured: NVML gives its highest or 0 for some values that it does not have."""


class Call(NamedTuple):
    """A function of NVML that is asked about a GPU."""

    every_s: float
    part: str
    function: str
    values: tuple[Value, ...]
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = _NONE
    instead_of: str = ""
    """The part that stands above this one: it is asked only where that is not supported."""


class Field(NamedTuple):
    """A field value of NVML; those that are read at a time share a call."""

    every_s: float
    part: str
    number: int
    value: Value
    scope: int = 0
    instead_of: str = ""


def _thousandth(milli: float) -> float:
    return milli / 1e3


def _hundredth(percent: float) -> float:
    return percent / 1e2


def _from_ns(nanoseconds: float) -> float:
    return nanoseconds / 1e9


def _from_mhz(megahertz: float) -> float:
    return megahertz * 1e6


def _from_kib(kibibytes: float) -> float:
    return kibibytes * 1024


def _bit(mask: int) -> Callable[[int], float]:
    return lambda bits: float(bits & mask != 0)


def _clocks(every_s: float, function: str, row: Metric) -> Iterator[Call]:
    # In NVML's order; each can be missing by itself.
    for number, clock in enumerate(("graphics", "sm", "memory", "video")):
        yield Call(every_s, f"{row.name} {clock}", function, (Value(row, _from_mhz, {"clock": clock}),), (number,))


def _thresholds() -> Iterator[Call]:
    for number, limit in enumerate(("shutdown", "slowdown", "memory_max", "gpu_max")):
        row = rows.GPU_TEMPERATURE_LIMIT
        value = Value(row, labels={"limit": limit}, least=1, most=_MOST_CELSIUS)
        yield Call(SLOW_S, f"{row.name} {limit}", "nvmlDeviceGetTemperatureThreshold", (value,), (number,))


def _ecc() -> Iterator[Call]:
    row = rows.GPU_ECC_ERRORS
    for kind, type_ in enumerate(("corrected", "uncorrected")):
        for since, counter in enumerate(("volatile", "aggregate")):
            value = Value(row, labels={"type": type_, "counter": counter})
            part = f"{row.name} {type_} {counter}"
            yield Call(SLOW_S, part, "nvmlDeviceGetTotalEccErrors", (value,), (kind, since))


# fmt: off
_REASONS = tuple(
    Value(rows.GPU_CLOCK_EVENT, _bit(mask), {"reason": reason})
    for reason, mask in {
        "applications_clock": 0x2, "sw_power_cap": 0x4, "hw_slowdown": 0x8, "sync_boost": 0x10, "sw_thermal": 0x20,
        "hw_thermal": 0x40, "hw_power_brake": 0x80, "display_clock": 0x100,
    }.items()
)
_MEMORY = tuple(
    Value(row, attrgetter(name), most=_MOST_BYTES)
    for row, name in ((rows.GPU_MEMORY_USED, "used"), (rows.GPU_MEMORY_TOTAL, "total"), (rows.GPU_MEMORY_FREE, "free"))
)
_RESERVED = Value(rows.GPU_MEMORY_RESERVED, attrgetter("reserved"), most=_MOST_BYTES)
_TEMPERATURE = (
    Value(rows.GPU_TEMPERATURE, least=-100, most=_MOST_CELSIUS),
    Value(rows.HARDWARE_TEMPERATURE, labels={"component": "gpu{}"}, least=-100, most=_MOST_CELSIUS),
)
_MEMORY_V2 = 0x02000028

_CALLS = (
    Call(EVERY_S, "gpu.utilization", "nvmlDeviceGetUtilizationRates",
         (Value(rows.GPU_UTILIZATION, attrgetter("gpu"), most=100),)),
    Call(EVERY_S, "gpu.encoder.utilization", "nvmlDeviceGetEncoderUtilization",
         (Value(rows.GPU_ENCODER_UTILIZATION, itemgetter(0), most=100),)),
    Call(EVERY_S, "gpu.decoder.utilization", "nvmlDeviceGetDecoderUtilization",
         (Value(rows.GPU_DECODER_UTILIZATION, itemgetter(0), most=100),)),
    Call(EVERY_S, "gpu.memory", "nvmlDeviceGetMemoryInfo",
         (*_MEMORY, _RESERVED), options={"version": _MEMORY_V2}),
    # What it says is used has the driver's own in it: there is no telling them apart.
    Call(EVERY_S, "gpu.memory v1", "nvmlDeviceGetMemoryInfo", _MEMORY, instead_of="gpu.memory"),
    Call(EVERY_S, "gpu.temperature", "nvmlDeviceGetTemperatureV", _TEMPERATURE, (0,)),
    # NVIDIA has announced its end with CUDA 14.
    Call(EVERY_S, "gpu.temperature v1", "nvmlDeviceGetTemperature", _TEMPERATURE, (0,), instead_of="gpu.temperature"),
    Call(EVERY_S, "gpu.power.usage", "nvmlDeviceGetPowerUsage",
         (Value(rows.GPU_POWER_USAGE, _thousandth, most=_MOST_WATTS),)),
    *_clocks(EVERY_S, "nvmlDeviceGetClockInfo", rows.GPU_CLOCK_FREQUENCY),
    Call(EVERY_S, "gpu.clock.event.active", "nvmlDeviceGetCurrentClocksEventReasons", _REASONS),
    Call(EVERY_S, "gpu.clock.event.active v1", "nvmlDeviceGetCurrentClocksThrottleReasons", _REASONS,
         instead_of="gpu.clock.event.active"),
    Call(EVERY_S, "gpu.performance.state", "nvmlDeviceGetPerformanceState",
         (Value(rows.GPU_PERFORMANCE_STATE, most=15),)),
    Call(SLOW_S, "gpu.power.limit", "nvmlDeviceGetEnforcedPowerLimit",
         (Value(rows.GPU_POWER_LIMIT, _thousandth, most=_MOST_WATTS),)),
    *_clocks(SLOW_S, "nvmlDeviceGetMaxClockInfo", rows.GPU_CLOCK_MAX_FREQUENCY),
    Call(SLOW_S, "gpu.pcie.link.generation", "nvmlDeviceGetCurrPcieLinkGeneration",
         (Value(rows.GPU_PCIE_LINK_GENERATION),)),
    Call(SLOW_S, "gpu.pcie.link.generation.max", "nvmlDeviceGetMaxPcieLinkGeneration",
         (Value(rows.GPU_PCIE_LINK_GENERATION_MAX),)),
    Call(SLOW_S, "gpu.pcie.link.width", "nvmlDeviceGetCurrPcieLinkWidth", (Value(rows.GPU_PCIE_LINK_WIDTH),)),
    Call(SLOW_S, "gpu.pcie.link.width.max", "nvmlDeviceGetMaxPcieLinkWidth", (Value(rows.GPU_PCIE_LINK_WIDTH_MAX),)),
    *_ecc(),
    Call(SLOW_S, "gpu.remapped.rows", "nvmlDeviceGetRemappedRows",
         tuple(Value(rows.GPU_REMAPPED_ROWS, itemgetter(place), {"state": state})
               for place, state in enumerate(("correctable", "uncorrectable", "pending", "failure")))),
)

_FIELDS = (
    # Before the MEDIUM tier, whose means stand in where these are not wide enough.
    *(Field(BUFFERED_S, f"gpu.pcie.io {direction}", number, Value(rows.GPU_PCIE_IO, labels={"direction": direction}))
      for direction, number in (("transmit", 197), ("receive", 198))),
    Field(MEDIUM_S, "gpu.energy", 83, Value(rows.GPU_ENERGY, _thousandth)),
    # It takes a millisecond also where there is nothing to be had.
    Field(MEDIUM_S, "hardware.temperature memory", 82,
          Value(rows.HARDWARE_TEMPERATURE, labels={"component": "gpu{}/memory"}, least=1, most=_MOST_CELSIUS)),
    Field(SLOW_S, "gpu.pcie.replays", 94, Value(rows.GPU_PCIE_REPLAYS)),
    Field(SLOW_S, "gpu.recovery.action", 230, Value(rows.GPU_RECOVERY_ACTION)),
    *(Field(SLOW_S, f"gpu.nvlink.io {direction}", number,
            Value(rows.GPU_NVLINK_IO, _from_kib, {"direction": direction}), _ALL_LINKS)
      for direction, number in (("transmit", 138), ("receive", 139))),
    # NVLink 5 counts bytes, under other numbers.
    *(Field(SLOW_S, f"gpu.nvlink.io {direction} v5", number,
            Value(rows.GPU_NVLINK_IO, labels={"direction": direction}), _ALL_LINKS, f"gpu.nvlink.io {direction}")
      for direction, number in (("transmit", 202), ("receive", 204))),
)
# fmt: on

INFO: tuple[tuple[str, str, Callable[[Any], str | None]], ...] = (
    ("pci_bus_id", "nvmlDeviceGetPciInfo", attrgetter("busId")),
    ("architecture", "nvmlDeviceGetArchitecture", ARCHITECTURES.get),
    ("compute_capability", "nvmlDeviceGetCudaComputeCapability", lambda version: f"{version[0]}.{version[1]}"),
    ("serial", "nvmlDeviceGetSerial", str),
    ("mig_mode", "nvmlDeviceGetMigMode", lambda modes: "enabled" if modes[0] else "disabled"),
)
"""The labels of `gpu.info` that the GPU is asked for."""


def calls(architecture: int | None) -> Iterable[Call]:
    """Return the calls for a GPU of an architecture as NVML counts them, None where it is not known."""
    yield from _CALLS
    # Since Ada a limit is told as a distance from the hottest of several sensors, of which only one is shown: with
    # what is shown no temperature can be made of it.
    if architecture is not None and architecture < ADA:
        yield from _thresholds()


def fields(driver_version: tuple[int, ...]) -> Iterable[Field]:
    """Return the field values to ask a driver for.

    The numbers of three throttle counters have changed their meaning, and a package of another age knows only the one:
    they stand here by the driver's version. Before 575 the driver has no such counters, and gives something else under
    those numbers; they are left out there, and where the version is not known.
    Source:  nvml.h of 12.570, 12.575, 580.65 and 580.82; NVIDIA/k8s-test-infra. The counters are nanoseconds.
    """
    yield from _FIELDS
    numbers = {"sw_power_cap": 74, "sync_boost": 76}
    if driver_version >= _COUNTED:
        first = 269 if driver_version >= _RENUMBERED else 251
        numbers |= {"sw_thermal": first, "hw_thermal": first + 1, "hw_power_brake": first + 2}
    for reason, number in numbers.items():
        row = rows.GPU_THROTTLE
        yield Field(SLOW_S, f"{row.name} {reason}", number, Value(row, _from_ns, {"reason": reason}))


def fan(number: int) -> Call:
    """Return the call for one of a GPU's fans."""
    value = Value(rows.GPU_FAN_SPEED, _hundredth, {"fan": str(number)})
    return Call(SLOW_S, f"gpu.fan.speed {number}", "nvmlDeviceGetFanSpeed_v2", (value,), (number,))


ONLY_FAN = Call(
    SLOW_S, "gpu.fan.speed v1", "nvmlDeviceGetFanSpeed", (Value(rows.GPU_FAN_SPEED, _hundredth, {"fan": "0"}),)
)
"""The call for a fan, where the driver cannot say how many there are."""
