"""AMD's GPUs as a source, read through ROCm's amdsmi. Unverified: no value has been compared with a real GPU."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from itertools import takewhile
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TypeAlias

from otel_mlops import metrics as rows
from otel_mlops.metrics import Metric
from otel_mlops.sources.backoff import Backoff
from otel_mlops.sources.watched import Absent, Sample

logger = logging.getLogger(__name__)

_MEDIUM_S, _SLOW_S = 5.0, 60.0
_FORGET_UNSUPPORTED_S = 300.0
_TRY_LOST_AFTER_S = 10.0

_LIBRARY = "libamd_smi.so"
_VISIBLE = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
_UNKNOWN = "unknown AMD GPU"

_NO_DRIVER = {"driver_not_loaded", "not_init"}
_UNSUPPORTED = {
    "not_supported", "not_yet_implemented", "no_perm", "inval", "no_data", "file_not_found", "directory_not_found",
    "fail_load_symbol", "setting_unavailable",
}  # fmt: skip
"""The errors that say that a GPU does not have something, or that this process may not read it."""

_COMMON_ERRORS = ("timeout", "unknown_error")
"""Errors that are there at 0 from the start, so that the first one shows in `increase()`."""

_NO_VALUES = {2**32 - 1, 2**63 - 1, 2**64 - 1}
"""What amdsmi gives for what it does not have. 2**16 - 1 as well, but that a counter can be; see `_MOST`."""

_MOST: Mapping[str, float] = {"%": 100, "Cel": 250, "W": 10_000, "By": 2**60, "Hz": 5e10, "{lane}": 64}
"""What is more was not measured, by the unit."""

_CURRENT = "AmdSmiTemperatureMetric.CURRENT"
_SENSORS = {"hotspot": "HOTSPOT", "edge": "EDGE", "memory": "VRAM"}
_CLOCKS = {"graphics": "GFX", "memory": "MEM", "video": "VCLK0"}
_Clock: TypeAlias = Callable[[], float]

_GENERATIONS = {2500: 1, 5000: 2, 8000: 3, 16000: 4, 32000: 5, 64000: 6}
"""Of PCI Express, by its millions of transfers a second."""


def open_amd(
    load: Callable[[], Any] | None = None,
    *,
    gpus: Literal["visible", "all"] = "visible",
    environ: Mapping[str, str] = os.environ,
    clock: _Clock = time.monotonic,
) -> Amd:
    """Open the AMD GPUs as a source, to be read once a second; ROCm is not touched before the first reading.

    `load` gives the module amdsmi; `gpus` are those that `environ` leaves, see `visible`, or all.

    Reads:   amdsmi, by what it costs: each time, every 5 or every 60 s. Not amdsmi_get_violation_status: it sleeps
             for 100 ms, and what it counts is no time.
    Yields:  utilization, memory, temperatures, power, energy, clocks, fan, PCIe link, ECC errors, GPU_UP, GPU_INFO and
             GPU_READ_ERRORS. The last values of what is not read each time stay.
    Absent when: the GPU does not have it, which is tried again after 5 minutes; of a GPU that is lost all but GPU_UP.
             `Absent` is raised where there never was a ROCm or a driver, or no GPU is left.
    Errors:  A reading raises while ROCm cannot be opened any more; it is tried again after 1 s, then less and less
             often, at least once a minute.
    """
    return Amd(load or load_amdsmi, gpus, environ, clock)


def load_amdsmi() -> Any:
    """Import amdsmi, once ROCm's library is found where amdsmi looks: without one it prints before it fails.

    Errors:  ImportError without amdsmi; OSError without the library; what amdsmi raises for one that does not fit it.
    """
    if "amdsmi" not in sys.modules and (package := find_spec("amdsmi")) is not None:
        home = os.environ.get("ROCM_PATH") or "/opt/rocm"
        linker = ""
        folders = [f"{os.environ.get('ROCM_HOME') or home}/lib", linker, *(package.submodule_search_locations or ())]
        _load_first(str(Path(folder, _LIBRARY)) for folder in [*folders, f"{home}/lib"])
    import amdsmi

    return amdsmi


def _load_first(places: Iterable[str]) -> None:
    fault = OSError()
    for place in places:
        try:
            ctypes.CDLL(place)
        except OSError as error:
            # Of one that is there it says more than of those that are not.
            fault = error if not fault.args or Path(place).exists() else fault
        else:
            return
    raise fault


def visible(environ: Mapping[str, str], count: int) -> list[int]:
    """Return which of so many GPUs an environment leaves, by ROCm's numbers for them; all, if it names some by UUID.

    HIP_VISIBLE_DEVICES, or CUDA_VISIBLE_DEVICES in its place, counts what ROCR_VISIBLE_DEVICES leaves; only that one
    leaves none by being empty. A list ends before the first entry that is no index.
    Source:  the filters in ROCR-Runtime and ROCclr.

    >>> visible({"ROCR_VISIBLE_DEVICES": "3,1,0", "HIP_VISIBLE_DEVICES": "1,2,7,0"}, count=4)
    [1, 0]
    """
    left = list(range(count))
    rocr, hip, cuda = (environ.get(name) for name in _VISIBLE)
    for text in (rocr, hip or cuda or None):
        if text is not None and "GPU-" not in text.upper():
            by_index = {str(index): number for index, number in enumerate(left)}
            entries = takewhile(by_index.__contains__, map(str.strip, text.split(",")))
            left = [by_index[entry] for entry in dict.fromkeys(entries)]
    return left


class Amd:
    """The source. One thread reads it at a time.

    It is not closed at the end: whoever shuts amdsmi down does so for everybody in the process, and PyTorch uses it
    too. It is when no GPU answers any more.
    """

    def __init__(self, load: Callable[[], Any], gpus: str, environ: Mapping[str, str], clock: _Clock) -> None:
        self._load = load
        self._shows_all = gpus == "all"
        self._environ = environ
        self._clock = clock
        self._amdsmi: Any = None
        self._gpus: list[_Gpu] = []  # those that are shown; none while amdsmi is not open
        self._known: dict[int, _Gpu] = {}  # all that there are or were
        self._backoff = Backoff(clock)
        self._meanwhile: Exception | list[Sample] = []  # what a reading gives until that is over

    def __call__(self) -> list[Sample]:
        """Read what is due.

        Errors:  Absent; what amdsmi raised, while it cannot be opened.
        """
        if not self._gpus:
            if not self._backoff.is_over:
                if isinstance(self._meanwhile, Exception):
                    raise self._meanwhile.with_traceback(None)
                return self._meanwhile
            try:
                self._gpus = self._open()
            except Exception as error:
                self._give_up(error)
                raise
        samples = [sample for gpu in self._gpus for sample in gpu.read()]
        if all(gpu.is_lost for gpu in self._gpus):
            # The driver may have been loaded anew: its GPUs are found when it is opened again.
            self._give_up(samples)
        else:
            self._backoff.reset()
        return samples

    def _open(self) -> list[_Gpu]:
        """Open amdsmi and return the GPUs to show; raises Absent, or whatever amdsmi raises."""
        try:
            self._amdsmi = self._load()
            self._amdsmi.amdsmi_init()
            handles = self._amdsmi.amdsmi_get_processor_handles()
        except Exception as error:
            is_missing = isinstance(error, (ImportError, KeyError, OSError)) or error_name(error) in _NO_DRIVER
            if self._known or not is_missing:
                raise
            raise Absent(f"no ROCm is here ({_words(error)})") from error
        for index, handle in enumerate(handles):
            self._known.setdefault(index, _Gpu(index, self._clock)).renew(self._amdsmi, handle)
        gpus = [self._known[index] for index in range(len(handles))]
        shown = gpus if self._shows_all else self._visible(gpus)
        if not gpus:
            none = "ROCm shows no AMD GPU"
            raise OSError(none) if self._known else Absent(none)
        if not shown:
            raise Absent(f"{', '.join(_VISIBLE)} leave none of the {len(gpus)} AMD GPUs")
        return shown

    def _visible(self, gpus: list[_Gpu]) -> list[_Gpu]:
        """Those that are left, by ROCm's numbers for them; where it does not tell them, by amdsmi's."""
        if not any(name in self._environ for name in _VISIBLE):
            return gpus
        by_number = {_at(gpu.ask("amdsmi_get_gpu_enumeration_info"), "hip_id"): gpu for gpu in gpus}
        if by_number.keys() != set(range(len(gpus))):
            by_number = dict(enumerate(gpus))
        left = {by_number[number] for number in visible(self._environ, len(gpus))}
        return [gpu for gpu in gpus if gpu in left]

    def _give_up(self, meanwhile: Exception | list[Sample]) -> None:
        """Close amdsmi, if its GPUs were read, and wait before it is opened again."""
        self._meanwhile = meanwhile
        self._backoff.fail()
        if self._gpus:
            self._gpus = []
            try:
                self._amdsmi.amdsmi_shut_down()
            except Exception as error:
                logger.debug("amdsmi was not shut down: %s", _words(error))


class _Gpu:
    """One GPU: what it is called, what was read of it last, and whether it answers."""

    def __init__(self, index: int, clock: _Clock) -> None:
        self.index = index
        self.is_lost = False
        self.about: dict[str, str] = {}  # labels, of which those that were read once stay
        self._labels = {"gpu_id": str(index), "gpu_name": _UNKNOWN}
        self._clock = clock
        self._told: set[str] = set()

    def renew(self, amdsmi: Any, handle: Any) -> None:
        """Be as if nothing of it had been read yet, under the handle that it has now."""
        self._amdsmi, self._handle = amdsmi, handle
        self._try_at = -math.inf
        self._forget()

    def _forget(self) -> None:
        self._kept: dict[float, list[Sample]] = {}
        self._due_at: dict[float, float] = {}
        self._unsupported_until: dict[str, float] = {}
        self._failures: dict[str, Exception] = {}

    def read(self) -> list[Sample]:
        """Read what is due, and give the last values of all else."""
        now = self._clock()
        if self.is_lost and now < self._try_at:
            return [self._up(0.0)]
        if self._labels["gpu_name"] == _UNKNOWN:
            asic, board = self.ask("amdsmi_get_gpu_asic_info"), self.ask("amdsmi_get_gpu_board_info")
            name = _text(_at(asic, "market_name")) or _text(_at(board, "product_name")) or _UNKNOWN
            self._labels = {**self._labels, "gpu_name": name}
        often = list(_often(self))
        if not often:
            self._lose()
            return [self._up(0.0)]
        if self.is_lost:
            self.is_lost = False
            logger.info("AMD GPU %d (%s) answers again", self.index, self._labels["gpu_name"])
        for every_s, read in ((_MEDIUM_S, _sometimes), (_SLOW_S, _seldom)):
            if now >= self._due_at.get(every_s, -math.inf):
                self._kept[every_s] = list(read(self))
                self._due_at[every_s] = now + every_s
        faults = Counter(dict.fromkeys(_COMMON_ERRORS, 0))
        for part, error in self._failures.items():
            faults[error_name(error)] += 1
            if part not in self._told:
                self._told.add(part)
                logger.warning("AMD GPU %d: %s fails: %s; said once", self.index, part, _words(error))
        self._failures = {}
        counted = [Sample(rows.GPU_READ_ERRORS, n, {**self._labels, "error": name}) for name, n in faults.items()]
        return [self._up(1.0), *often, *(sample for kept in self._kept.values() for sample in kept), *counted]

    def ask(self, function: str, *arguments: str | int) -> Any:
        """Call a function of amdsmi about this GPU; None where it does not have it, or fails now.

        An argument that is a str names a member of one of amdsmi's enumerations.
        """
        part = " ".join((function, *map(str, arguments)))
        if self._clock() < self._unsupported_until.get(part, -math.inf):
            return None
        try:
            given = [attrgetter(each)(self._amdsmi) if isinstance(each, str) else each for each in arguments]
            answer = getattr(self._amdsmi, function)(self._handle, *given)
        except Exception as error:
            # AttributeError: this release has no such thing.
            if isinstance(error, AttributeError) or error_name(error) in _UNSUPPORTED:
                self._unsupported_until[part] = self._clock() + _FORGET_UNSUPPORTED_S
            else:
                self._failures[part] = error
            return None
        self._told.discard(part)
        return answer

    def give(self, row: Metric, raw: Any, scale: float = 1.0, **labels: str) -> Iterator[Sample]:
        """Give a sample of what was read, if it is a value."""
        value = _number(raw)
        if value is not None and value * scale <= _MOST.get(row.unit, math.inf):
            own = self._labels if "gpu_id" in row.attributes else {}
            yield Sample(row, value * scale, {**own, **labels})

    def _up(self, value: float) -> Sample:
        return Sample(rows.GPU_UP, value, self._labels)

    def _lose(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            why = "; ".join(sorted({_words(error) for error in self._failures.values()})) or "nothing is supported"
            name = self._labels["gpu_name"]
            logger.warning("AMD GPU %d (%s) does not answer: %s; tried again until it does", self.index, name, why)
        self._try_at = self._clock() + _TRY_LOST_AFTER_S
        self._forget()


# --- What is read ---------------------------------------------------------------------------------------------


def _often(gpu: _Gpu) -> Iterator[Sample]:
    yield from gpu.give(rows.GPU_UTILIZATION, _at(gpu.ask("amdsmi_get_gpu_activity"), "gfx_activity"))
    # These are in bytes; amdsmi_get_gpu_vram_usage has megabytes, and asks for more permissions.
    total, used = (gpu.ask(f"amdsmi_get_gpu_memory_{what}", "AmdSmiMemoryType.VRAM") for what in ("total", "usage"))
    yield from gpu.give(rows.GPU_MEMORY_TOTAL, total)
    yield from gpu.give(rows.GPU_MEMORY_USED, used)
    if _number(total) is not None and _number(used) is not None:
        yield from gpu.give(rows.GPU_MEMORY_FREE, total - used)
    # The GPU's own is the hotspot's: it slows down by that one, and the newest have no other.
    own = None
    for sensor, member in _SENSORS.items():
        celsius = gpu.ask("amdsmi_get_temp_metric", f"AmdSmiTemperatureType.{member}", _CURRENT)
        samples = list(gpu.give(rows.HARDWARE_TEMPERATURE, celsius or None, component=f"amd{gpu.index}/{sensor}"))
        own = celsius if samples and own is None and sensor != "memory" else own
        yield from samples
    yield from gpu.give(rows.GPU_TEMPERATURE, own)
    power = gpu.ask("amdsmi_get_power_info")
    # The first is one of the others, but not all releases have it.
    watts = [_at(power, f"{which}socket_power") for which in ("", "current_", "average_")]
    yield from gpu.give(rows.GPU_POWER_USAGE, next((each for each in watts if _number(each) is not None), None))
    for clock, member in _CLOCKS.items():
        megahertz = gpu.ask("amdsmi_get_clock_info", f"AmdSmiClkType.{member}")
        yield from gpu.give(rows.GPU_CLOCK_FREQUENCY, _at(megahertz, "clk"), 1e6, clock=clock)
        yield from gpu.give(rows.GPU_CLOCK_MAX_FREQUENCY, _at(megahertz, "max_clk") or None, 1e6, clock=clock)


def _sometimes(gpu: _Gpu) -> Iterator[Sample]:
    energy = gpu.ask("amdsmi_get_energy_count")
    microjoules = _number(_at(energy, "counter_resolution"))
    if microjoules:
        yield from gpu.give(rows.GPU_ENERGY, _at(energy, "energy_accumulator") or None, microjoules / 1e6)


def _seldom(gpu: _Gpu) -> Iterator[Sample]:
    yield from gpu.give(rows.GPU_POWER_LIMIT, _at(gpu.ask("amdsmi_get_power_cap_info"), "power_cap") or None, 1e-6)
    link = gpu.ask("amdsmi_get_pcie_info")
    now, most = _at(link, "pcie_metric"), _at(link, "pcie_static")
    yield from gpu.give(rows.GPU_PCIE_LINK_WIDTH, _at(now, "pcie_width") or None)
    yield from gpu.give(rows.GPU_PCIE_LINK_WIDTH_MAX, _at(most, "max_pcie_width") or None)
    yield from gpu.give(rows.GPU_PCIE_LINK_GENERATION, _GENERATIONS.get(_at(now, "pcie_speed")))
    yield from gpu.give(rows.GPU_PCIE_LINK_GENERATION_MAX, _GENERATIONS.get(_at(most, "max_pcie_speed")))
    yield from gpu.give(rows.GPU_PCIE_REPLAYS, _at(now, "pcie_replay_count"))
    errors = gpu.ask("amdsmi_get_gpu_total_ecc_count")
    for type_, key in (("corrected", "correctable_count"), ("uncorrected", "uncorrectable_count")):
        yield from gpu.give(rows.GPU_ECC_ERRORS, _at(errors, key), type=type_, counter="volatile")
    speed, highest = (gpu.ask(f"amdsmi_get_gpu_fan_speed{which}", 0) for which in ("", "_max"))
    if _number(highest):
        yield from gpu.give(rows.GPU_FAN_SPEED, speed, 1 / highest, fan="0")
    asic, driver = gpu.ask("amdsmi_get_gpu_asic_info"), gpu.ask("amdsmi_get_gpu_driver_info")
    found = {
        "gpu_uuid": _text(gpu.ask("amdsmi_get_gpu_device_uuid")),
        "pci_bus_id": _text(gpu.ask("amdsmi_get_gpu_device_bdf")),
        "architecture": _text(_at(asic, "target_graphics_version")),
        "serial": _text(_at(asic, "asic_serial")),
        "driver_version": _text(_at(driver, "driver_version")),
    }
    gpu.about |= {label: text for label, text in found.items() if text}
    if "gpu_uuid" in gpu.about:
        yield from gpu.give(rows.GPU_INFO, 1, 1.0, **gpu.about)


def error_name(error: Exception) -> str:
    """Return amdsmi's error as a label: AMDSMI_STATUS_NO_PERM is `no_perm`, and what is none of its errors `failed`."""
    name = str(getattr(error, "err_info", "")).partition(" ")[0]
    return name.removeprefix("AMDSMI_STATUS_").lower() or "failed"


def _words(error: Exception) -> str:
    """What an error says; amdsmi's are of several lines."""
    return " ".join(str(error).split()) or repr(error)


def _at(answer: Any, key: str) -> Any:
    return answer.get(key) if isinstance(answer, dict) else None


def _number(raw: Any) -> float | None:
    """A number that amdsmi gives, or None: it has strings and highest values for what it does not have."""
    is_one = isinstance(raw, (int, float)) and not isinstance(raw, bool)
    return raw if is_one and 0 <= raw < math.inf and raw not in _NO_VALUES else None


def _text(text: Any) -> str:
    """A text that amdsmi gives, or an empty one: its highest values are there in hexadecimal digits."""
    is_there = isinstance(text, str) and text != "N/A" and not re.fullmatch("(0x|gfx)?f{8,}", text, re.IGNORECASE)
    return text.strip() if is_there else ""
