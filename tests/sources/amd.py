"""A pretended amdsmi: the functions that the source calls, with the signatures and the shapes of amdsmi 7.0.2.

The real one needs ROCm to be imported; tests/sources/test_amd.py compares this one with its source.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from otel_mlops.metrics import GPU_UP, Metric
from otel_mlops.sources.amd import open_amd
from tests.sources.contract import Series, series_of

MI300X, RX7900 = "AMD Instinct MI300X", "AMD Radeon RX 7900 XTX"

STATUS = {
    "NOT_SUPPORTED": (2, "Feature not supported"),
    "TIMEOUT": (8, "Timeout in API call"),
    "NO_PERM": (10, "Permission Denied"),
    "IO": (12, "I/O Error"),
    "NOT_FOUND": (31, "Device Not found"),
    "NOT_INIT": (32, "Device not initialized"),
    "DRIVER_NOT_LOADED": (34, "Driver not loaded"),
}
"""Some of amdsmi's errors, with their numbers and words."""


class AmdSmiException(Exception): ...  # noqa: N818 (it is called like that)


class AmdSmiLibraryException(AmdSmiException):
    def __init__(self, err_code: int):
        super().__init__(err_code)
        self.err_code = err_code
        self.err_info = next(
            f"AMDSMI_STATUS_{name} - {words}" for name, (code, words) in STATUS.items() if code == err_code
        )

    def __str__(self) -> str:
        return f"Error code:\n\t{self.err_code} | {self.err_info}"


class AmdSmiParameterException(AmdSmiException): ...


class AmdSmiInitFlags(IntEnum):
    INIT_AMD_GPUS = 2


class AmdSmiMemoryType(IntEnum):
    VRAM = 0


class AmdSmiTemperatureType(IntEnum):
    EDGE = 0
    HOTSPOT = 1
    VRAM = 2


class AmdSmiTemperatureMetric(IntEnum):
    CURRENT = 0


class AmdSmiClkType(IntEnum):
    GFX = 0
    MEM = 4
    VCLK0 = 6


ENUMERATIONS = (AmdSmiInitFlags, AmdSmiMemoryType, AmdSmiTemperatureType, AmdSmiTemperatureMetric, AmdSmiClkType)


class Gpu:
    """One GPU: what each function answers about it; one that is not here is not supported."""

    def __init__(self, number: int, hip_id: int | str, answers: Mapping[str, Any]):
        self.number = number
        self.handle = object()
        self.is_lost = False
        self.errors: dict[str, str] = {}
        """The errors that functions fail with."""
        self.answers: dict[str, Any] = copy.deepcopy(dict(answers)) | {
            "amdsmi_get_gpu_device_bdf": f"0000:{number + 1:02x}:00.0",
            "amdsmi_get_gpu_device_uuid": f"{number:02d}ff74a1-0000-1000-80f9-bf48de9ab2d2",
            "amdsmi_get_gpu_driver_info": {
                "driver_name": "amdgpu", "driver_version": "6.14.14", "driver_date": "2015/01/01 00:00",
            },
            "amdsmi_get_gpu_enumeration_info": {
                "drm_render": 128 + number, "drm_card": number, "hsa_id": number + 1, "hip_id": hip_id,
                "hip_uuid": "GPU-7b39fd81f59f6f20",
            },
            "amdsmi_get_gpu_board_info": {
                "model_number": "102-G30211-0C", "product_serial": "N/A", "fru_id": "N/A",
                "product_name": "Aqua Vanjaram", "manufacturer_name": "AMD",
            },
        }  # fmt: skip


def _clock(now: int | str, most: int) -> dict[str, Any]:
    return {"clk": now, "min_clk": 500, "max_clk": most, "clk_locked": False, "clk_deep_sleep": "N/A"}


def _link(speed: int, width: int, replays: int | str) -> dict[str, Any]:
    counts = dict.fromkeys(("pcie_l0_to_recovery_count", "pcie_replay_roll_over_count", "pcie_nak_sent_count",
                            "pcie_nak_received_count", "pcie_lc_perf_other_end_recovery_count"), 0)  # fmt: skip
    return {
        "pcie_static": {
            "max_pcie_width": 16, "max_pcie_speed": 32000, "pcie_interface_version": 5, "slot_type": "OAM",
        },
        "pcie_metric": {
            "pcie_width": width, "pcie_speed": speed, "pcie_bandwidth": 12, "pcie_replay_count": replays, **counts,
        },
    }  # fmt: skip


def _asic(name: str, graphics: str, serial: str) -> dict[str, Any]:
    return {
        "market_name": name, "vendor_id": "0x1002", "vendor_name": "Advanced Micro Devices Inc. [AMD/ATI]",
        "subvendor_id": "0x1002", "device_id": "0x74a1", "rev_id": "0x00", "asic_serial": serial, "oam_id": 2,
        "num_compute_units": 304, "target_graphics_version": graphics, "subsystem_id": "0x74a1",
    }  # fmt: skip


DATACENTRE: Mapping[str, Any] = {
    "amdsmi_get_gpu_asic_info": _asic(MI300X, "gfx942", "0x7B39FD81F59F6F20"),
    "amdsmi_get_gpu_activity": {"gfx_activity": 73, "umc_activity": 41, "mm_activity": "N/A"},
    "amdsmi_get_gpu_memory_total": 206141652992,
    "amdsmi_get_gpu_memory_usage": 100000000000,
    "amdsmi_get_temp_metric HOTSPOT": 61,
    "amdsmi_get_temp_metric VRAM": 44,
    "amdsmi_get_power_info": {
        "socket_power": 412, "current_socket_power": 412, "average_socket_power": "N/A", "gfx_voltage": "N/A",
        "soc_voltage": "N/A", "mem_voltage": "N/A", "power_limit": 750,
    },
    "amdsmi_get_power_cap_info": {
        "power_cap": 750000000, "default_power_cap": 750000000, "dpm_cap": 2100, "min_power_cap": 0,
        "max_power_cap": 750000000,
    },
    "amdsmi_get_energy_count": {
        "energy_accumulator": 1000000000, "counter_resolution": 15.259, "timestamp": 1788000000000,
    },
    "amdsmi_get_clock_info GFX": _clock(2100, 2100),
    "amdsmi_get_clock_info MEM": _clock(1300, 1300),
    "amdsmi_get_clock_info VCLK0": _clock(29, 1333),
    "amdsmi_get_pcie_info": _link(32000, 16, 3),
    "amdsmi_get_gpu_total_ecc_count": {"correctable_count": 5, "uncorrectable_count": 1, "deferred_count": 0},
}  # fmt: skip
"""An MI300X: no edge sensor, no fan."""

CONSUMER: Mapping[str, Any] = {
    "amdsmi_get_gpu_asic_info": _asic(RX7900, "gfx1100", "0xFFFFFFFFFFFFFFFF"),
    "amdsmi_get_gpu_activity": {"gfx_activity": 4, "umc_activity": 1, "mm_activity": 0},
    "amdsmi_get_gpu_memory_total": 25753026560,
    "amdsmi_get_gpu_memory_usage": 512000000,
    "amdsmi_get_temp_metric EDGE": 47,
    "amdsmi_get_temp_metric HOTSPOT": 55,
    "amdsmi_get_temp_metric VRAM": 0,
    "amdsmi_get_power_info": {
        "socket_power": 2**32 - 1, "current_socket_power": "N/A", "average_socket_power": 38, "gfx_voltage": 710,
        "soc_voltage": "N/A", "mem_voltage": "N/A", "power_limit": 327,
    },
    "amdsmi_get_power_cap_info": {
        "power_cap": 327000000, "default_power_cap": 327000000, "dpm_cap": 2526, "min_power_cap": 0,
        "max_power_cap": 376000000,
    },
    "amdsmi_get_energy_count": {
        "energy_accumulator": 2**64 - 1, "counter_resolution": 15.259, "timestamp": 1788000000000,
    },
    "amdsmi_get_clock_info GFX": _clock(0, 2526),
    "amdsmi_get_clock_info MEM": _clock(96, 1249),
    "amdsmi_get_pcie_info": _link(2500, 1, "N/A"),
    "amdsmi_get_gpu_fan_speed": 51,
    "amdsmi_get_gpu_fan_speed_max": 255,
}  # fmt: skip
"""An RX 7900 XTX, idle: no ECC, no energy."""


class FakeAmdSmi:
    """In place of the module; amdsmi keeps its state in the process, this one in itself."""

    AmdSmiException = AmdSmiException
    AmdSmiLibraryException = AmdSmiLibraryException
    AmdSmiParameterException = AmdSmiParameterException
    AmdSmiInitFlags = AmdSmiInitFlags
    AmdSmiMemoryType = AmdSmiMemoryType
    AmdSmiTemperatureType = AmdSmiTemperatureType
    AmdSmiTemperatureMetric = AmdSmiTemperatureMetric
    AmdSmiClkType = AmdSmiClkType

    def __init__(self) -> None:
        self.gpus = [Gpu(0, 1, DATACENTRE), Gpu(1, 0, CONSUMER)]
        self.has_driver = True
        self.is_open = False
        self.calls: Counter[str] = Counter()

    # --- What tests change ------------------------------------------------------------------------------------

    def fail(self, number: int, function: str, status: str | None) -> None:
        """Have a function fail about a GPU, until it is given no status."""
        if status is None:
            self.gpus[number].errors.pop(function, None)
        else:
            self.gpus[number].errors[function] = status

    def unload(self) -> None:
        """Take the driver away, and all GPUs with it."""
        self.has_driver = False

    def reload(self) -> None:
        """Load the driver again: the GPUs have other handles, which are found when amdsmi is opened anew."""
        self.has_driver = True
        for gpu in self.gpus:
            gpu.handle = object()

    # --- amdsmi's own -----------------------------------------------------------------------------------------

    def amdsmi_init(self, flag=AmdSmiInitFlags.INIT_AMD_GPUS):
        self._check(flag, AmdSmiInitFlags)
        self.calls["amdsmi_init"] += 1
        if not self.has_driver:
            raise self._error("DRIVER_NOT_LOADED")
        if not self.is_open:
            self.is_open = True
            self._handles = [gpu.handle for gpu in self.gpus]

    def amdsmi_shut_down(self):
        self.calls["amdsmi_shut_down"] += 1
        self.is_open = False

    def amdsmi_get_processor_handles(self):
        if not self.is_open:
            raise self._error("NOT_INIT")
        return list(self._handles)

    def amdsmi_get_gpu_asic_info(self, processor_handle):
        return self._answer(processor_handle)

    def amdsmi_get_gpu_board_info(self, processor_handle):
        return self._answer(processor_handle)

    def amdsmi_get_gpu_device_bdf(self, processor_handle):
        return self._answer(processor_handle)

    def amdsmi_get_gpu_device_uuid(self, processor_handle):
        return self._answer(processor_handle)

    def amdsmi_get_gpu_driver_info(self, processor_handle):
        return self._answer(processor_handle)

    def amdsmi_get_gpu_enumeration_info(self, processor_handle):
        return self._answer(processor_handle)

    def amdsmi_get_gpu_activity(self, processor_handle):
        return self._answer(processor_handle)

    def amdsmi_get_gpu_memory_total(self, processor_handle, mem_type):
        self._check(mem_type, AmdSmiMemoryType)
        return self._answer(processor_handle)

    def amdsmi_get_gpu_memory_usage(self, processor_handle, mem_type):
        self._check(mem_type, AmdSmiMemoryType)
        return self._answer(processor_handle)

    def amdsmi_get_temp_metric(self, processor_handle, sensor_type, metric):
        self._check(sensor_type, AmdSmiTemperatureType)
        self._check(metric, AmdSmiTemperatureMetric)
        return self._answer(processor_handle, sensor_type)

    def amdsmi_get_power_info(self, processor_handle):
        return self._answer(processor_handle)

    def amdsmi_get_power_cap_info(self, processor_handle):
        return self._answer(processor_handle)

    def amdsmi_get_energy_count(self, processor_handle):
        return self._answer(processor_handle)

    def amdsmi_get_clock_info(self, processor_handle, clock_type):
        self._check(clock_type, AmdSmiClkType)
        return self._answer(processor_handle, clock_type)

    def amdsmi_get_pcie_info(self, processor_handle):
        return self._answer(processor_handle)

    def amdsmi_get_gpu_total_ecc_count(self, processor_handle):
        return self._answer(processor_handle)

    def amdsmi_get_gpu_fan_speed(self, processor_handle, sensor_idx):
        self._check(sensor_idx, int)
        return self._answer(processor_handle)

    def amdsmi_get_gpu_fan_speed_max(self, processor_handle, sensor_idx):
        self._check(sensor_idx, int)
        return self._answer(processor_handle)

    def _answer(self, handle: object, member: IntEnum | None = None) -> Any:
        function = inspect.currentframe().f_back.f_code.co_name + (f" {member.name}" if member is not None else "")
        if not self.is_open:
            raise self._error("NOT_INIT")
        gpu = next((gpu for gpu in self.gpus if gpu.handle is handle), None)
        if gpu is None or handle not in self._handles:
            raise self._error("NOT_FOUND")
        self.calls[f"{function} of {gpu.number}"] += 1
        if gpu.is_lost or not self.has_driver:
            raise self._error("IO")
        if function in gpu.errors:
            raise self._error(gpu.errors[function])
        if function not in gpu.answers:
            raise self._error("NOT_SUPPORTED")
        return copy.deepcopy(gpu.answers[function])

    def _check(self, given: object, expected: type) -> None:
        if not isinstance(given, expected):
            raise AmdSmiParameterException(f"{given!r} is no {expected.__name__}")

    def _error(self, status: str) -> AmdSmiLibraryException:
        return AmdSmiLibraryException(STATUS[status][0])


def series(row: Metric, gpu: int = 0, **labels: str) -> Series:
    """A row with the labels of a GPU, and others."""
    return row, frozenset({"gpu_id": str(gpu), "gpu_name": (MI300X, RX7900)[gpu], **labels}.items())


class Machine:
    """A pretended amdsmi, the source that reads it, and what has come of that."""

    def __init__(self, fake: FakeAmdSmi | None = None, **arguments: Any):
        self.amdsmi = fake or FakeAmdSmi()
        self.now = 1000.0
        self.is_installed = True
        given = {"load": self._load, "gpus": "all", "environ": {}, "clock": lambda: self.now}
        self.source = open_amd(**{**given, **arguments})
        self.totals: Counter[Series] = Counter()
        """The sums of the increases."""

    def _load(self) -> FakeAmdSmi:
        if not self.is_installed:
            raise OSError("libamd_smi.so: cannot open shared object file")
        return self.amdsmi

    def read(self, *, after: float = 0.0) -> Mapping[Series, float]:
        """Read, some time after the last reading; every reading holds the contract."""
        self.now += after
        seen = series_of(self.source())
        for one, value in seen.items():
            if one[0].kind == "counter" and one[0].across == "sum":
                self.totals[one] += value
        return seen


def up(seen: Mapping[Series, float]) -> dict[str, float]:
    """Whether each GPU answers, by its number."""
    return {dict(labels)["gpu_id"]: value for (row, labels), value in seen.items() if row is GPU_UP}
