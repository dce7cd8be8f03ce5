"""The pretended driver behaves, through the real pynvml, as tests of the GPU source rely on."""

from __future__ import annotations

import ctypes
import inspect
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pynvml
import pytest

from tests.nvml import driver as module
from tests.nvml.driver import EVERY_CALL, HOPPER, SOURCE, TURING, TURING_TESLA, Control, FakeDriver, build, load

ALL_LINKS = 0xFFFFFFFF
NOT_AVAILABLE = 0xFFFFFFFF
PATIENCE_S = 30  # for what comes at once, unless the machine is busy


@pytest.fixture
def handles(nvml: FakeDriver) -> list[Any]:
    """The handles of both GPUs of a driver that was initialized."""
    pynvml.nvmlInit()
    return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(2)]


@contextmanager
def raises(code: int) -> Iterator[None]:
    """The block ends with this error of NVML."""
    with pytest.raises(pynvml.NVMLError) as caught:
        yield
    assert caught.value.value == code


def field(handle: Any, number: int, scope: int | None = None) -> Any:
    """One field value, or its error code with the sign turned."""
    found = pynvml.nvmlDeviceGetFieldValues(handle, [number if scope is None else (number, scope)])[0]
    assert found.fieldId == number
    if found.nvmlReturn != pynvml.NVML_SUCCESS:
        return -found.nvmlReturn
    member = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}[found.valueType]
    return getattr(found.value, member)


def samples(handle: Any, kind: int, since: int = 0) -> list[tuple[int, int]]:
    """The time and value of each sample."""
    value_type, found = pynvml.nvmlDeviceGetSamples(handle, kind, since)
    assert value_type == pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
    return [(one.timeStamp, one.sampleValue.uiVal) for one in found]


# ---- what the library is ---------------------------------------------------------------------------------------


def exported() -> list[str]:
    """The functions of NVML that the C source defines."""
    found = re.findall(r"^(?:nvmlReturn_t |const char \*|A_NUMBER\()(nvml\w+)[(,]", SOURCE.read_text(), re.MULTILINE)
    assert len(found) > 60
    return found


def test_every_function_is_one_that_pynvml_asks_for(nvml: FakeDriver):
    """No function has a name that the real pynvml never looks up."""
    asked = set(re.findall(r'_nvmlGetFunctionPointer\("(\w+)"\)', inspect.getsource(pynvml)))
    assert set(exported()) <= asked
    assert all(hasattr(pynvml.nvmlLib, name) for name in exported())


def test_a_function_that_is_not_there_is_told_by_pynvml(handles: list[Any]):
    """What the library does not have ends as FunctionNotFound."""
    with raises(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
        pynvml.nvmlDeviceGetVbiosVersion(handles[0])


def test_pynvml_is_given_back(nvml: FakeDriver):
    """After load() pynvml has the library, the functions and the count it had before."""
    pynvml.nvmlInit()
    before = pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache), pynvml._nvmlLib_refcount
    with load(nvml.path) as inner:
        assert inner.initialized == pynvml._nvmlLib_refcount == 0
        assert pynvml._nvmlGetFunctionPointer_cache == {}
        pynvml.nvmlInit()
    assert (pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache), pynvml._nvmlLib_refcount) == before


# ---- building --------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes a library of two bytes in two steps; and the file with a line for each of its runs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    compiler = folder / "cc"
    runs = tmp_path / "runs"
    compiler.write_text(
        f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho run >> "{runs}"\nprintf a > "$2"\nprintf b >> "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return runs


def test_builders_do_not_disturb_each_other(slow_compiler: Path, tmp_path: Path):
    """Several that build at once get the same whole file, and later ones do not compile."""
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(build, [tmp_path / "cache"] * 4))
    (path,) = paths
    assert path.read_text() == "ab"
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    runs = slow_compiler.read_text()
    assert build(tmp_path / "cache") == path
    assert slow_compiler.read_text() == runs


def test_another_source_is_another_library(slow_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A changed source does not get the library of the old one."""
    old = build(tmp_path / "cache")
    changed = tmp_path / "changed.c"
    changed.write_text("int x;")
    monkeypatch.setattr(module, "SOURCE", changed)
    assert build(tmp_path / "cache") != old


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_without_a_compiler(ci: str, outcome: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without a C compiler tests skip and say what to install, except where nothing may skip."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="apt-get install gcc"):
        build(tmp_path)


# ---- init, handles and arguments -------------------------------------------------------------------------------


def test_nothing_works_before_init_and_after_shutdown(nvml: FakeDriver):
    """Calls are UNINITIALIZED until init and after as many shutdowns as inits."""
    with raises(pynvml.NVML_ERROR_UNINITIALIZED):
        pynvml.nvmlDeviceGetCount()
    with raises(pynvml.NVML_ERROR_UNINITIALIZED):
        pynvml.nvmlShutdown()
    pynvml.nvmlInit()
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == 350_500
    assert nvml.initialized == 1
    pynvml.nvmlShutdown()
    with raises(pynvml.NVML_ERROR_UNINITIALIZED):
        pynvml.nvmlDeviceGetPowerUsage(handle)


@pytest.mark.parametrize("end", ["shutdown", "reload", "reset"])
def test_a_handle_lives_until_shutdown(nvml: FakeDriver, handles: list[Any], end: str):
    """A handle from before the last init is no handle."""
    (pynvml.nvmlShutdown if end == "shutdown" else getattr(nvml, end))()
    pynvml.nvmlInit()
    with raises(pynvml.NVML_ERROR_INVALID_ARGUMENT):
        pynvml.nvmlDeviceGetName(handles[0])
    assert pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)) == HOPPER


def test_handles_are_found(nvml: FakeDriver, handles: list[Any]):
    """A GPU is found by index, UUID and bus id, and nothing else is."""
    for index, handle in enumerate(handles):
        uuid = pynvml.nvmlDeviceGetUUID(handle)
        bus_id = pynvml.nvmlDeviceGetPciInfo(handle).busId
        for found in (pynvml.nvmlDeviceGetHandleByUUID(uuid), pynvml.nvmlDeviceGetHandleByPciBusId(bus_id)):
            assert pynvml.nvmlDeviceGetIndex(found) == index
        assert pynvml.nvmlDeviceGetMinorNumber(handle) == index
        short = pynvml.nvmlDeviceGetPciInfo(handle).busIdLegacy
        assert bus_id.endswith(short)
        assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByPciBusId(short)) == index
    with raises(pynvml.NVML_ERROR_INVALID_ARGUMENT):
        pynvml.nvmlDeviceGetHandleByIndex(2)
    with raises(pynvml.NVML_ERROR_NOT_FOUND):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-no-such")
    with raises(pynvml.NVML_ERROR_NOT_FOUND):
        pynvml.nvmlDeviceGetHandleByPciBusId("00000000:FF:00.0")


def test_what_is_no_handle_is_refused(handles: list[Any]):
    """Calls with an invented or empty handle are INVALID_ARGUMENT."""
    for invented in (pynvml.c_nvmlDevice_t(), ctypes.cast(ctypes.c_void_p(12345), pynvml.c_nvmlDevice_t)):
        with raises(pynvml.NVML_ERROR_INVALID_ARGUMENT):
            pynvml.nvmlDeviceGetPowerUsage(invented)


def test_a_text_needs_room(handles: list[Any]):
    """A buffer that is too small is INSUFFICIENT_SIZE."""
    name = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetName")
    short, enough = ctypes.create_string_buffer(len(HOPPER)), ctypes.create_string_buffer(len(HOPPER) + 1)
    assert name(handles[0], short, len(short)) == pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert name(handles[0], enough, len(enough)) == pynvml.NVML_SUCCESS
    assert enough.value.decode() == HOPPER


STRUCTS: list[tuple[str, type, int]] = [
    ("nvmlDeviceGetMemoryInfo_v2", pynvml.c_nvmlMemory_v2_t, pynvml.nvmlMemory_v2),
    ("nvmlDeviceGetTemperatureV", pynvml.c_nvmlTemperature_v1_t, pynvml.nvmlTemperature_v1),
    ("nvmlDeviceGetMarginTemperature", pynvml.c_nvmlMarginTemperature_v1_t, pynvml.nvmlMarginTemperature_v1),
    ("nvmlDeviceGetFanSpeedRPM", pynvml.c_nvmlFanSpeedInfo_t, pynvml.nvmlFanSpeedInfo_v1),
    ("nvmlGpmQueryDeviceSupport", pynvml.c_nvmlGpmSupport_t, pynvml.NVML_GPM_SUPPORT_VERSION),
]


@pytest.mark.parametrize(("function", "struct", "version"), STRUCTS)
def test_versions_are_checked(handles: list[Any], function: str, struct: type, version: int):
    """A struct without its version word is ARGUMENT_VERSION_MISMATCH."""
    asked = struct()
    call = pynvml._nvmlGetFunctionPointer(function)
    for wrong in (0, version + 1, version + 0x01000000):
        asked.version = wrong  # type: ignore[attr-defined]
        assert call(handles[0], ctypes.byref(asked)) == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH
    asked.version = version  # type: ignore[attr-defined]
    assert call(handles[0], ctypes.byref(asked)) in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_SUPPORTED)


def test_pynvml_sends_the_versions(handles: list[Any]):
    """The version of the memory's struct is the one pynvml calls nvmlMemory_v2, and no other."""
    assert pynvml.nvmlDeviceGetMemoryInfo(handles[0], version=pynvml.nvmlMemory_v2).total == 80 << 30
    with raises(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
        pynvml.nvmlDeviceGetMemoryInfo(handles[0], version=2)


def test_errors_have_their_texts(nvml: FakeDriver):
    """An error prints as the driver's own text."""
    assert str(pynvml.nvmlErrorString(pynvml.NVML_ERROR_GPU_IS_LOST)) == "GPU is lost"
    assert pynvml.nvmlErrorString(12345) == "Unknown Error"


def test_arguments_out_of_range_are_refused(handles: list[Any]):
    """What is no sensor, clock, threshold, counter or fan is INVALID_ARGUMENT."""
    for call in (
        lambda: pynvml.nvmlDeviceGetTemperature(handles[0], 1),
        lambda: pynvml.nvmlDeviceGetTemperatureV(handles[0], 7),
        lambda: pynvml.nvmlDeviceGetTemperatureThreshold(handles[0], 99),
        lambda: pynvml.nvmlDeviceGetClockInfo(handles[0], 4),
        lambda: pynvml.nvmlDeviceGetTotalEccErrors(handles[0], 2, 0),
        lambda: pynvml.nvmlDeviceGetFanSpeed_v2(handles[1], 1),
        lambda: pynvml.nvmlDeviceGetPcieThroughput(handles[0], 2),
        lambda: pynvml.nvmlDeviceGetFieldValues(handles[0], []),
        lambda: pynvml.nvmlDeviceGetSamples(handles[0], 99, 0),
    ):
        with raises(pynvml.NVML_ERROR_INVALID_ARGUMENT):
            call()


# ---- two generations -------------------------------------------------------------------------------------------

NONE = "not supported"
READINGS: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    "name": (pynvml.nvmlDeviceGetName, HOPPER, TURING),
    "uuid": (
        pynvml.nvmlDeviceGetUUID,
        "GPU-00000000-0000-4000-8000-000000000000",
        "GPU-00000000-0000-4000-8000-000000000001",
    ),
    "serial": (pynvml.nvmlDeviceGetSerial, "1321023000000", NONE),
    "bus id": (lambda h: pynvml.nvmlDeviceGetPciInfo(h).busId, "00000000:10:00.0", "00000000:11:00.0"),
    "bus": (lambda h: pynvml.nvmlDeviceGetPciInfo(h).bus, 0x10, 0x11),
    "device id": (lambda h: pynvml.nvmlDeviceGetPciInfo(h).pciDeviceId, 0x233010DE, 0x1E8210DE),
    "architecture": (pynvml.nvmlDeviceGetArchitecture, pynvml.NVML_DEVICE_ARCH_HOPPER, pynvml.NVML_DEVICE_ARCH_TURING),
    "compute capability": (pynvml.nvmlDeviceGetCudaComputeCapability, (9, 0), (7, 5)),
    "brand": (pynvml.nvmlDeviceGetBrand, pynvml.NVML_BRAND_NVIDIA, pynvml.NVML_BRAND_GEFORCE),
    "persistence": (pynvml.nvmlDeviceGetPersistenceMode, 1, 0),
    "mig mode": (pynvml.nvmlDeviceGetMigMode, [0, 0], NONE),
    "utilization": (lambda h: pynvml.nvmlDeviceGetUtilizationRates(h).gpu, 60, 25),
    "memory utilization": (lambda h: pynvml.nvmlDeviceGetUtilizationRates(h).memory, 35, 10),
    "encoder": (pynvml.nvmlDeviceGetEncoderUtilization, [5, 167_000], [12, 167_000]),
    "decoder": (pynvml.nvmlDeviceGetDecoderUtilization, [7, 167_000], [0, 167_000]),
    "bar1 used": (lambda h: pynvml.nvmlDeviceGetBAR1MemoryInfo(h).bar1Used, 1 << 30, 16 << 20),
    "temperature": (lambda h: pynvml.nvmlDeviceGetTemperatureV(h, 0), 45, 62),
    "temperature, old": (lambda h: pynvml.nvmlDeviceGetTemperature(h, 0), 45, 62),
    "margin": (pynvml.nvmlDeviceGetMarginTemperature, 42, NONE),
    "shutdown": (lambda h: pynvml.nvmlDeviceGetTemperatureThreshold(h, 0), NONE, 100),
    "slowdown": (lambda h: pynvml.nvmlDeviceGetTemperatureThreshold(h, 1), NONE, 97),
    "memory max": (lambda h: pynvml.nvmlDeviceGetTemperatureThreshold(h, 2), NONE, NONE),
    "gpu max": (lambda h: pynvml.nvmlDeviceGetTemperatureThreshold(h, 3), NONE, 88),
    "acoustic": (lambda h: pynvml.nvmlDeviceGetTemperatureThreshold(h, 5), NONE, NONE),
    "power": (pynvml.nvmlDeviceGetPowerUsage, 350_500, 120_250),
    "power limit": (pynvml.nvmlDeviceGetEnforcedPowerLimit, 700_000, 215_000),
    "managed limit": (pynvml.nvmlDeviceGetPowerManagementLimit, 700_000, 225_000),
    "default limit": (pynvml.nvmlDeviceGetPowerManagementDefaultLimit, 700_000, 225_000),
    "constraints": (pynvml.nvmlDeviceGetPowerManagementLimitConstraints, [200_000, 700_000], [105_000, 292_000]),
    "energy": (pynvml.nvmlDeviceGetTotalEnergyConsumption, 5_000_000, 3_000_000),
    "clock": (
        lambda h: [pynvml.nvmlDeviceGetClockInfo(h, t) for t in range(4)],
        [1755, 1740, 2619, 1545],
        [1515, 1515, 6800, 1410],
    ),
    "max clock": (
        lambda h: [pynvml.nvmlDeviceGetMaxClockInfo(h, t) for t in range(4)],
        [1980, 1980, 2619, 1545],
        [2100, 2100, 7000, 1950],
    ),
    "reasons": (pynvml.nvmlDeviceGetCurrentClocksEventReasons, 0, pynvml.nvmlClocksEventReasonGpuIdle),
    "reasons, old": (pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, 0, pynvml.nvmlClocksEventReasonGpuIdle),
    "reasons there are": (pynvml.nvmlDeviceGetSupportedClocksEventReasons, 0x1FF, 0x1FF),
    "performance state": (pynvml.nvmlDeviceGetPerformanceState, 0, 2),
    "fans": (pynvml.nvmlDeviceGetNumFans, 0, 1),
    "fan": (lambda h: pynvml.nvmlDeviceGetFanSpeed_v2(h, 0), NONE, 41),
    "fan, old": (pynvml.nvmlDeviceGetFanSpeed, NONE, 41),
    "fan rpm": (pynvml.nvmlDeviceGetFanSpeedRPM, NONE, 1540),
    "pcie generation": (pynvml.nvmlDeviceGetCurrPcieLinkGeneration, 5, 1),
    "pcie width": (pynvml.nvmlDeviceGetCurrPcieLinkWidth, 16, 8),
    "pcie max generation": (pynvml.nvmlDeviceGetMaxPcieLinkGeneration, 5, 3),
    "pcie max width": (pynvml.nvmlDeviceGetMaxPcieLinkWidth, 16, 16),
    "pcie replays": (pynvml.nvmlDeviceGetPcieReplayCounter, 3, 0),
    "nvlink": (lambda h: pynvml.nvmlDeviceGetNvLinkState(h, 17), 1, NONE),
    "ecc mode": (pynvml.nvmlDeviceGetEccMode, [1, 1], NONE),
    "ecc corrected": (lambda h: pynvml.nvmlDeviceGetTotalEccErrors(h, 0, 0), 4, NONE),
    "ecc uncorrected": (lambda h: pynvml.nvmlDeviceGetTotalEccErrors(h, 1, 0), 0, NONE),
    "ecc corrected ever": (lambda h: pynvml.nvmlDeviceGetTotalEccErrors(h, 0, 1), 40, NONE),
    "ecc uncorrected ever": (lambda h: pynvml.nvmlDeviceGetTotalEccErrors(h, 1, 1), 2, NONE),
    "ecc in memory": (lambda h: pynvml.nvmlDeviceGetMemoryErrorCounter(h, 0, 1, 2), 40, NONE),
    "ecc in sram": (lambda h: pynvml.nvmlDeviceGetMemoryErrorCounter(h, 0, 1, 7), 0, NONE),
    "remapped rows": (pynvml.nvmlDeviceGetRemappedRows, (1, 2, 0, 0), NONE),
    "retired pages": (lambda h: pynvml.nvmlDeviceGetRetiredPages(h, 0), NONE, NONE),
    "retired pending": (pynvml.nvmlDeviceGetRetiredPagesPendingStatus, NONE, NONE),
    "gpm": (lambda h: pynvml.nvmlGpmQueryDeviceSupport(h).isSupportedDevice, 1, 0),
    "xid": (lambda h: pynvml.nvmlDeviceGetSupportedEventTypes(h) & pynvml.nvmlEventTypeXidCriticalError, 8, 8),
    "mig devices": (pynvml.nvmlDeviceGetMaxMigDeviceCount, 0, 0),
    "memory temperature": (lambda h: field(h, 82), 52, -pynvml.NVML_ERROR_NOT_SUPPORTED),
    "energy field": (lambda h: field(h, 83), 5_000_000, 3_000_000),
    "average power": (lambda h: field(h, 185), 350_250, -pynvml.NVML_ERROR_NOT_SUPPORTED),
    "instant power": (lambda h: field(h, 186), 351_000, 120_250),
    "limit field": (lambda h: field(h, 190), 700_000, 215_000),
    "recovery": (lambda h: field(h, 230), 0, -pynvml.NVML_ERROR_NOT_SUPPORTED),
}


@pytest.mark.parametrize("index", [0, 1], ids=["hopper", "turing"])
def test_a_generation_has_what_it_has(handles: list[Any], index: int):
    """An H100 and an RTX 2080 give their fixed values, and what they lack is NOT_SUPPORTED."""

    def read(reading: Callable[[Any], Any]) -> Any:
        try:
            return reading(handles[index])
        except pynvml.NVMLError_NotSupported:
            return NONE

    found = {name: read(reading) for name, (reading, *_) in READINGS.items()}
    assert found == {name: row[1 + index] for name, row in READINGS.items()}


def test_used_memory_excludes_the_reserve_only_in_the_second_version(handles: list[Any]):
    """The old call counts the driver's reserve as used, the new one tells it apart."""
    old = pynvml.nvmlDeviceGetMemoryInfo(handles[0])
    new = pynvml.nvmlDeviceGetMemoryInfo(handles[0], version=pynvml.nvmlMemory_v2)
    assert (new.total, new.reserved, new.used) == (80 << 30, 512 << 20, 20 << 30)
    assert old.used == new.used + new.reserved
    assert old.free == new.free == new.total - new.reserved - new.used


def test_a_tesla_has_pages_that_retired(nvml: FakeDriver):
    """A GPU may be another model: the Tesla T4 has ECC and retired pages, and no fan."""
    nvml.gpu(1).become(TURING_TESLA)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    assert pynvml.nvmlDeviceGetName(handle) == TURING_TESLA
    nvml.gpu(1).set("ecc_mode", 0)
    with raises(pynvml.NVML_ERROR_NOT_SUPPORTED):
        pynvml.nvmlDeviceGetTotalEccErrors(handle, 0, 1)
    nvml.gpu(1).set("ecc_mode", 1)
    assert len(pynvml.nvmlDeviceGetRetiredPages(handle, 0)) == 1
    assert len(pynvml.nvmlDeviceGetRetiredPages_v2(handle, 1)) == 2
    assert pynvml.nvmlDeviceGetRetiredPagesPendingStatus(handle) == 0
    assert pynvml.nvmlDeviceGetTotalEccErrors(handle, 0, 1) == 11
    with raises(pynvml.NVML_ERROR_NOT_SUPPORTED):
        pynvml.nvmlDeviceGetFanSpeed_v2(handle, 0)


def test_there_may_be_sixteen(nvml: FakeDriver):
    """Any other number than two is that many H100, each with its own name on the bus."""
    nvml.set_gpus(16)
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 16
    found = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(16)]
    assert {pynvml.nvmlDeviceGetName(handle) for handle in found} == {HOPPER}
    for identity in (
        pynvml.nvmlDeviceGetUUID,
        pynvml.nvmlDeviceGetSerial,
        lambda h: pynvml.nvmlDeviceGetPciInfo(h).busId,
    ):
        assert len({identity(handle) for handle in found}) == 16
    nvml.set_gpus(0)
    assert pynvml.nvmlDeviceGetCount() == 0


def test_numbers_are_set_and_taken_away(nvml: FakeDriver, handles: list[Any]):
    """A number that a test sets is what the calls give, and none at all is NOT_SUPPORTED."""
    gpu = nvml.gpu(1)
    gpu.set("power_mw", 99_000)
    assert pynvml.nvmlDeviceGetPowerUsage(handles[1]) == gpu.get("power_mw") == 99_000
    gpu.set("power_mw", None)
    assert gpu.get("power_mw") is None
    with raises(pynvml.NVML_ERROR_NOT_SUPPORTED):
        pynvml.nvmlDeviceGetPowerUsage(handles[1])
    gpu.set_text("name", "NVIDIA L4")
    assert pynvml.nvmlDeviceGetName(handles[1]) == "NVIDIA L4"
    assert pynvml.nvmlDeviceGetPowerUsage(handles[0]) == 350_500
    for mistake in (lambda: gpu.set("power", 1), lambda: gpu.set_text("names", ""), lambda: gpu.become("NVIDIA L4")):
        with pytest.raises(KeyError):
            mistake()


def test_the_system_has_versions(nvml: FakeDriver):
    """The versions of the driver and of CUDA are what a test sets."""
    pynvml.nvmlInit()
    assert pynvml.nvmlSystemGetDriverVersion() == "580.95.05"
    assert pynvml.nvmlSystemGetCudaDriverVersion() == pynvml.nvmlSystemGetCudaDriverVersion_v2() == 13_000
    nvml.set_version("575.51.03")
    nvml.set_cuda_version(12_090)
    assert pynvml.nvmlSystemGetNVMLVersion() == "12.575.51.03"
    assert pynvml.nvmlSystemGetCudaDriverVersion() == 12_090


# ---- faults ----------------------------------------------------------------------------------------------------


def test_a_fault_meets_its_function_and_gpu_alone(nvml: FakeDriver, handles: list[Any]):
    """A function that fails for one GPU works for the other, and others work for this one."""
    nvml.gpu(1).fail("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_UNKNOWN)
    with raises(pynvml.NVML_ERROR_UNKNOWN):
        pynvml.nvmlDeviceGetPowerUsage(handles[1])
    assert pynvml.nvmlDeviceGetPowerUsage(handles[0]) == 350_500
    assert pynvml.nvmlDeviceGetPerformanceState(handles[1]) == 2
    nvml.gpu(1).recover("nvmlDeviceGetPowerUsage")
    assert pynvml.nvmlDeviceGetPowerUsage(handles[1]) == 120_250


def test_the_narrowest_fault_wins(nvml: FakeDriver, handles: list[Any]):
    """A fault of a function and a GPU goes before one of the function, which goes before one of the GPU."""
    nvml.gpu(1).lose()
    nvml.fail("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_UNKNOWN)
    nvml.gpu(0).fail("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_NO_PERMISSION)
    for handle, code in zip(handles, (pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_UNKNOWN), strict=True):
        with raises(code):
            pynvml.nvmlDeviceGetPowerUsage(handle)
    nvml.clear_faults()
    assert [pynvml.nvmlDeviceGetPowerUsage(handle) for handle in handles] == [350_500, 120_250]


def test_a_lost_gpu_leaves_the_other_alone(nvml: FakeDriver, handles: list[Any]):
    """Everything about a lost GPU is GPU_IS_LOST, its handle too; it still counts, and the other one works."""
    nvml.gpu(1).lose()
    uuid = "GPU-00000000-0000-4000-8000-000000000001"
    for call in (
        lambda: pynvml.nvmlDeviceGetPowerUsage(handles[1]),
        lambda: pynvml.nvmlDeviceGetFieldValues(handles[1], [83]),
        lambda: pynvml.nvmlDeviceGetHandleByIndex(1),
        lambda: pynvml.nvmlDeviceGetHandleByUUID(uuid),
    ):
        with raises(pynvml.NVML_ERROR_GPU_IS_LOST):
            call()
    assert pynvml.nvmlDeviceGetCount() == 2
    assert pynvml.nvmlDeviceGetPowerUsage(handles[0]) == 350_500
    nvml.gpu(1).find()
    assert pynvml.nvmlDeviceGetPowerUsage(handles[1]) == 120_250


def test_all_may_fail_and_init_with_them(nvml: FakeDriver, handles: list[Any]):
    """A fault of everything meets the system's calls too, but not init, which has faults of its own."""
    nvml.fail(EVERY_CALL, pynvml.NVML_ERROR_UNKNOWN)
    with raises(pynvml.NVML_ERROR_UNKNOWN):
        pynvml.nvmlDeviceGetCount()
    with raises(pynvml.NVML_ERROR_UNKNOWN):
        pynvml.nvmlDeviceGetName(handles[0])
    pynvml.nvmlInit()
    nvml.fail("nvmlInitWithFlags", pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    with raises(pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
        pynvml.nvmlInit()
    assert nvml.initialized == 2


def test_calls_are_counted(nvml: FakeDriver, handles: list[Any]):
    """Every call is counted, by function and by GPU, failed ones as well."""
    before = nvml.calls()
    nvml.gpu(1).fail("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_UNKNOWN)
    pynvml.nvmlDeviceGetPowerUsage(handles[0])
    with raises(pynvml.NVML_ERROR_UNKNOWN):
        pynvml.nvmlDeviceGetPowerUsage(handles[1])
    pynvml.nvmlDeviceGetCount()
    assert nvml.calls() - before == 3
    assert nvml.calls("nvmlDeviceGetPowerUsage") == 2
    assert nvml.gpu(1).calls("nvmlDeviceGetPowerUsage") == 1
    assert nvml.gpu(0).calls("nvmlDeviceGetCount_v2") == 0
    nvml.reset()
    assert nvml.calls() == 0


def await_condition(holds: Callable[[], bool]) -> None:
    """Wait until something is so, which nobody tells."""
    moment = threading.Event()
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it never was so"
        moment.wait(0.001)


def await_hanging(nvml: FakeDriver, calls: int) -> None:
    """Wait until so many calls hang."""
    await_condition(lambda: nvml.hanging == calls)


def await_call(nvml: FakeDriver, function: str) -> None:
    """Wait until a function was called."""
    await_condition(lambda: nvml.calls(function) > 0)


def test_a_call_that_hangs_holds_nobody_else(nvml: FakeDriver, handles: list[Any]):
    """While a call hangs others go on, of the same function for another GPU and of the same GPU, until it is let go."""
    nvml.gpu(1).hang("nvmlDeviceGetPowerUsage", 600_000)
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(pynvml.nvmlDeviceGetPowerUsage, handles[1])
        await_hanging(nvml, 1)
        assert pynvml.nvmlDeviceGetPowerUsage(handles[0]) == 350_500
        assert pynvml.nvmlDeviceGetName(handles[1]) == TURING
        assert not hung.done()
        nvml.gpu(1).hang("nvmlDeviceGetPowerUsage", 0)
        assert hung.result(PATIENCE_S) == 120_250
    assert nvml.hanging == 0


def test_a_hang_ends_by_itself_and_then_the_fault_comes(nvml: FakeDriver, handles: list[Any]):
    """A hang lasts as long as it was told to, and the call then ends as it would have."""
    nvml.gpu(0).hang("nvmlDeviceGetPowerUsage", 5)
    assert pynvml.nvmlDeviceGetPowerUsage(handles[0]) == 350_500
    nvml.gpu(0).fail("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_TIMEOUT)
    with raises(pynvml.NVML_ERROR_TIMEOUT):
        pynvml.nvmlDeviceGetPowerUsage(handles[0])


@pytest.mark.parametrize("end", ["reload", "reset", "shutdown"])
def test_what_hangs_notices_the_end(nvml: FakeDriver, handles: list[Any], end: str):
    """A call that hung while the driver went away is UNINITIALIZED."""
    nvml.hang("nvmlDeviceGetPowerUsage", 600_000)
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(pynvml.nvmlDeviceGetPowerUsage, handles[0])
        await_hanging(nvml, 1)
        (pynvml.nvmlShutdown if end == "shutdown" else getattr(nvml, end))()
        nvml.clear_faults()
        with raises(pynvml.NVML_ERROR_UNINITIALIZED):
            hung.result(PATIENCE_S)
    assert nvml.hanging == 0


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetCount_v2"])
def test_any_call_may_hang_once(nvml: FakeDriver, function: str):
    """Init, finding a GPU and counting them hang as any other call, and once each."""
    if function != "nvmlInitWithFlags":
        pynvml.nvmlInit()
    nvml.hang(function, 600_000)
    call = {
        "nvmlInitWithFlags": pynvml.nvmlInit,
        "nvmlDeviceGetHandleByIndex_v2": lambda: pynvml.nvmlDeviceGetHandleByIndex(0),
        "nvmlDeviceGetCount_v2": pynvml.nvmlDeviceGetCount,
    }[function]
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(call)
        await_hanging(nvml, 1)
        nvml.hang(function, 0)
        hung.result(PATIENCE_S)


def test_threads_do_not_hurt_each_other(nvml: FakeDriver, handles: list[Any]):
    """Many threads that read while time passes get whole answers."""

    def read(number: int) -> None:
        for _ in range(200):
            assert len(samples(handles[number % 2], 0)) == 120
            assert field(handles[number % 2], 83) > 0

    with ThreadPoolExecutor(5) as pool:
        reading = [pool.submit(read, number) for number in range(4)]
        for _ in range(200):
            nvml.advance(0.1)
        for one in reading:
            one.result(PATIENCE_S)


# ---- time ------------------------------------------------------------------------------------------------------


def test_energy_is_power_over_time(nvml: FakeDriver, handles: list[Any]):
    """Energy grows by the power at each moment, and not by itself."""
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handles[0])
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handles[0]) == before
    nvml.advance(2)
    nvml.gpu(0).set("power_mw", 100_000)
    nvml.advance(3)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handles[0]) - before == 2 * 350_500 + 3 * 100_000


def test_the_clock_may_be_the_real_one(nvml: FakeDriver, monkeypatch: pytest.MonkeyPatch):
    """With the real clock energy grows by itself, and what was until a change counts as it was."""
    monkeypatch.setenv("FAKE_NVML_REALTIME", "1")
    nvml.reset()
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    nvml.gpu(0).set("energy_mj", 0)
    nvml.gpu(0).set("power_mw", 1e9)
    start = time.monotonic()
    await_condition(lambda: time.monotonic() > start)
    nvml.gpu(0).set("power_mw", 0)
    energy = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    assert energy > 0
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == energy
    assert nvml.clock_us == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME) * 1e6, abs=PATIENCE_S * 1e6)
    stamped = pynvml.nvmlDeviceGetFieldValues(handle, [83])[0].timestamp
    assert stamped == pytest.approx(time.time() * 1e6, abs=PATIENCE_S * 1e6)


def test_a_slow_clock_counts_its_reasons(nvml: FakeDriver, handles: list[Any]):
    """The nanoseconds of a reason grow while its bit is set."""
    nvml.gpu(0).set(
        "event_reasons", pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwThermalSlowdown
    )
    before = [field(handles[0], number) for number in (74, 75, 76, 269, 270, 271)]
    nvml.advance(1.5)
    after = [field(handles[0], number) for number in (74, 75, 76, 269, 270, 271)]
    grown = [new - old for old, new in zip(before, after, strict=True)]
    assert grown == [1_500_000_000, 1_500_000_000, 0, 0, 1_500_000_000, 0]


def test_pcie_bytes_wrap(nvml: FakeDriver, handles: list[Any]):
    """The PCIe counters have 32 bits and start again, unless a test says they have more."""
    nvml.gpu(0).set("pcie_tx_bytes", 2**32 - 1)
    nvml.gpu(0).set("pcie_tx_rate", 100)
    nvml.advance(1)
    assert field(handles[0], 197) == 99
    assert field(handles[0], 198) == 2_000_000 + 500_000_000
    nvml.gpu(0).set("pcie_bits", 64)
    assert field(handles[0], 197) == 2**32 + 99


def test_nvlink_counts_by_link_and_in_all(nvml: FakeDriver, handles: list[Any]):
    """The NVLink fields give all links together for the scope of all, and one link for its number."""
    nvml.advance(1)
    assert field(handles[0], 138, ALL_LINKS) == 18_000 + 1_024_000
    assert field(handles[0], 139, ALL_LINKS) == 36_000 + 2_048_000
    assert field(handles[0], 138, 17) == (18_000 + 1_024_000) // 18
    assert field(handles[0], 138, 18) == -pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert field(handles[1], 138, ALL_LINKS) == -pynvml.NVML_ERROR_NOT_SUPPORTED
    assert field(handles[0], 202, ALL_LINKS) == -pynvml.NVML_ERROR_NOT_SUPPORTED
    nvml.gpu(0).set("nvlink_tx_bytes", 5)
    assert field(handles[0], 202, ALL_LINKS) == 5


def test_pcie_throughput_takes_its_time(handles: list[Any]):
    """The rate in KB/s is there, at 20 ms a call."""
    assert pynvml.nvmlDeviceGetPcieThroughput(handles[0], pynvml.NVML_PCIE_UTIL_TX_BYTES) == 300_000
    assert pynvml.nvmlDeviceGetPcieThroughput(handles[0], pynvml.NVML_PCIE_UTIL_RX_BYTES) == 500_000


COUNTED = (74, 83, 94, 197, 269)


def test_a_reload_starts_again(nvml: FakeDriver, handles: list[Any]):
    """After a reload every call is UNINITIALIZED until init, and counters that are not stored start at 0."""
    assert all(field(handles[0], number) > 0 for number in COUNTED)
    nvml.reload()
    with raises(pynvml.NVML_ERROR_UNINITIALIZED):
        pynvml.nvmlDeviceGetPowerUsage(handles[0])
    with raises(pynvml.NVML_ERROR_UNINITIALIZED):
        pynvml.nvmlShutdown()
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert [field(handle, number) for number in COUNTED] == [0] * len(COUNTED)
    assert pynvml.nvmlDeviceGetTotalEccErrors(handle, 0, 0) == 0
    assert pynvml.nvmlDeviceGetTotalEccErrors(handle, 0, 1) == 40
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == 350_500
    nvml.advance(1)
    assert field(handle, 83) == 350_500


# ---- samples ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "count", "step", "value"), [(0, 120, 20_000, 350_500), (1, 71, 200_000, 60), (2, 71, 200_000, 35)]
)
def test_samples_are_evenly_spaced(nvml: FakeDriver, handles: list[Any], kind: int, count: int, step: int, value: int):
    """The buffer is full when a process comes, and holds the last samples with the value of their moment."""
    found = samples(handles[0], kind)
    assert [one[1] for one in found] == [value] * count
    assert [later[0] - earlier[0] for earlier, later in itertools.pairwise(found)] == [step] * (count - 1)
    assert found[-1][0] == nvml.clock_us
    nvml.advance(3_600)
    assert [one[0] for one in samples(handles[0], kind)] == [
        nvml.clock_us - step * age for age in reversed(range(count))
    ]


def test_only_newer_samples_are_given(nvml: FakeDriver, handles: list[Any]):
    """The samples since the last one seen are given, NOT_FOUND when there are none."""
    last = samples(handles[0], 0)[-1][0]
    with raises(pynvml.NVML_ERROR_NOT_FOUND):
        samples(handles[0], 0, last)
    nvml.gpu(0).set("power_mw", 500_000)
    nvml.advance(0.04)
    nvml.gpu(0).set("power_mw", 200_000)
    nvml.advance(0.039)
    assert samples(handles[0], 0, last) == [
        (last + 20_000, 500_000),
        (last + 40_000, 500_000),
        (last + 60_000, 200_000),
    ]


def test_a_gpu_may_have_no_samples(nvml: FakeDriver, handles: list[Any]):
    """A kind of samples is NOT_SUPPORTED for the GPU that a test takes it from, and clocks are for all."""
    nvml.gpu(1).set("utilization_samples", None)
    with raises(pynvml.NVML_ERROR_NOT_SUPPORTED):
        samples(handles[1], 1)
    assert samples(handles[0], 1)
    assert samples(handles[1], 0)
    with raises(pynvml.NVML_ERROR_NOT_SUPPORTED):
        samples(handles[0], pynvml.NVML_PROCESSOR_CLK_SAMPLES)


def test_an_idle_gpu_may_take_no_samples(nvml: FakeDriver, handles: list[Any]):
    """Where a test says so, no utilization is sampled while it is 0, and there is a gap afterwards."""
    nvml.gpu(0).set("utilization", 0)
    nvml.advance(0.2)
    last, idle = samples(handles[0], 1)[-1]
    assert idle == 0
    nvml.gpu(0).set("idle_samples", 0)
    nvml.advance(10)
    with raises(pynvml.NVML_ERROR_NOT_FOUND):
        samples(handles[0], 1, last)
    nvml.gpu(0).set("utilization", 80)
    nvml.advance(0.2)
    assert samples(handles[0], 1, last) == [(last + 10_200_000, 80)]


def test_the_clock_may_be_another(nvml: FakeDriver, handles: list[Any]):
    """Samples are stamped by a clock that may count from boot or from 1970, field values always from 1970."""
    assert samples(handles[0], 0)[-1][0] == nvml.clock_us == 5 * 86_400 * 1_000_000
    wall = pynvml.nvmlDeviceGetFieldValues(handles[0], [83])[0].timestamp
    nvml.set_clock(1_800_000_000_000_000)
    nvml.advance(0.02)
    assert samples(handles[0], 0)[-1][0] == 1_800_000_000_020_000
    assert len(samples(handles[0], 0, 1_800_000_000_000_000)) == 1
    assert pynvml.nvmlDeviceGetFieldValues(handles[0], [83])[0].timestamp == wall + 20_000


# ---- fields ----------------------------------------------------------------------------------------------------


def test_each_field_has_a_type_and_a_code(nvml: FakeDriver, handles: list[Any]):
    """Fields of one call succeed and fail each by itself, and say their type."""
    nvml.gpu(0).fail_field(83, pynvml.NVML_ERROR_UNKNOWN)
    nvml.gpu(0).set_field(169, 2.5, pynvml.NVML_VALUE_TYPE_DOUBLE)
    nvml.gpu(0).set_field(170, -3, pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG)
    found = pynvml.nvmlDeviceGetFieldValues(handles[0], [82, 83, 194, 169, 170, 999, 74])
    assert [one.nvmlReturn for one in found] == [
        0,
        pynvml.NVML_ERROR_UNKNOWN,
        0,
        0,
        0,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        0,
    ]
    assert [found[place].valueType for place in (0, 2, 3, 4, 6)] == [1, 5, 0, 4, 3]
    assert found[2].value.siVal == -2
    assert found[3].value.dVal == 2.5
    assert found[4].value.sllVal == -3


def test_power_has_scopes(handles: list[Any]):
    """The power of the module and of the memory is not that of the GPU."""
    assert field(handles[0], 186, pynvml.NVML_POWER_SCOPE_GPU) == 351_000
    assert field(handles[0], 186, pynvml.NVML_POWER_SCOPE_MODULE) == -pynvml.NVML_ERROR_NOT_SUPPORTED


THROTTLED, SMOOTHING, UNKNOWN = 2_000_000_000, 7, -pynvml.NVML_ERROR_NOT_SUPPORTED
BY_DRIVER = {
    "560.35.03": (UNKNOWN, UNKNOWN),
    "570.86.15": (SMOOTHING, UNKNOWN),
    "575.51.03": (THROTTLED, SMOOTHING),
    "580.65.06": (THROTTLED, SMOOTHING),
    "580.82.07": (SMOOTHING, THROTTLED),
    "590.48.01": (SMOOTHING, THROTTLED),
}


@pytest.mark.parametrize("version", BY_DRIVER)
def test_field_ids_depend_on_the_driver(nvml: FakeDriver, handles: list[Any], version: str):
    """Fields 251 and 269 are time throttled, power smoothing or nothing, by the version of the driver."""
    nvml.set_version(version)
    nvml.gpu(0).set("power_smoothing", SMOOTHING)
    assert (field(handles[0], 251), field(handles[0], 269)) == BY_DRIVER[version]
    assert field(handles[0], 74) == 1_000_000_000


def test_functions_came_with_drivers(nvml: FakeDriver, handles: list[Any]):
    """An old driver lacks new functions and fields, and has the old ones."""
    nvml.set_version("525.147.05")
    with raises(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
        pynvml.nvmlDeviceGetTemperatureV(handles[0], 0)
    with raises(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
        pynvml.nvmlDeviceGetCurrentClocksEventReasons(handles[0])
    assert pynvml.nvmlDeviceGetTemperature(handles[0], 0) == 45
    assert pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handles[0]) == 0
    assert [field(handles[0], number) for number in (186, 190, 197, 230)] == [UNKNOWN] * 4


# ---- processes -------------------------------------------------------------------------------------------------


def test_processes_come_and_go(nvml: FakeDriver, handles: list[Any]):
    """Running processes are told by kind and GPU, with their memory or without."""
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handles[0]) == []
    nvml.gpu(0).run(100, 1 << 30)
    nvml.gpu(0).run(101)
    nvml.gpu(0).run(102, 5, graphics=True)
    found = pynvml.nvmlDeviceGetComputeRunningProcesses(handles[0])
    assert [(one.pid, one.usedGpuMemory, one.gpuInstanceId) for one in found] == [
        (100, 1 << 30, NOT_AVAILABLE),
        (101, None, NOT_AVAILABLE),
    ]
    assert [one.pid for one in pynvml.nvmlDeviceGetGraphicsRunningProcesses(handles[0])] == [102]
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handles[1]) == []
    nvml.gpu(0).end(100)
    nvml.gpu(0).run(101, 7)
    assert [(one.pid, one.usedGpuMemory) for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handles[0])] == [
        (101, 7)
    ]


def test_busy_processes_are_told_once(nvml: FakeDriver, handles: list[Any]):
    """The utilization of processes is NOT_FOUND while none is busy or none is news."""
    nvml.gpu(0).run(100, 5)
    with raises(pynvml.NVML_ERROR_NOT_FOUND):
        pynvml.nvmlDeviceGetProcessUtilization(handles[0], 0)
    nvml.gpu(0).run(100, 5, sm=40, memory=10, encoder=3, decoder=2)
    (one,) = pynvml.nvmlDeviceGetProcessUtilization(handles[0], 0)
    assert (one.pid, one.smUtil, one.memUtil, one.encUtil, one.decUtil) == (100, 40, 10, 3, 2)
    with raises(pynvml.NVML_ERROR_NOT_FOUND):
        pynvml.nvmlDeviceGetProcessUtilization(handles[0], one.timeStamp)
    nvml.advance(0.2)
    assert len(pynvml.nvmlDeviceGetProcessUtilization(handles[0], one.timeStamp)) == 1


# ---- GPM -------------------------------------------------------------------------------------------------------


def gpm(first: Any, second: Any, *metrics: int) -> list[float]:
    """The metrics between two samples; their error codes with the sign turned."""
    asked = pynvml.c_nvmlGpmMetricsGet_t()
    asked.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    asked.numMetrics, asked.sample1, asked.sample2 = len(metrics), first, second
    for place, metric in enumerate(metrics):
        asked.metrics[place].metricId = metric
    pynvml.nvmlGpmMetricsGet(asked)
    found = [asked.metrics[place] for place in range(len(metrics))]
    return [one.value if one.nvmlReturn == pynvml.NVML_SUCCESS else -one.nvmlReturn for one in found]


def test_gpm_is_the_mean_between_samples(nvml: FakeDriver, handles: list[Any]):
    """Metrics are the mean of the activity between two samples; what a GPU lacks fails by itself."""
    first, second = pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()
    nvml.gpu(0).set("gpm_fp64", None)
    pynvml.nvmlGpmSampleGet(handles[0], first)
    nvml.advance(1)
    nvml.gpu(0).set("gpm_sm", 85.5)
    nvml.advance(2)
    pynvml.nvmlGpmSampleGet(handles[0], second)
    assert gpm(first, second, 2, 3, 11, 999, 61) == pytest.approx(
        [(55.5 + 2 * 85.5) / 3, 33.25, -pynvml.NVML_ERROR_NOT_SUPPORTED, -pynvml.NVML_ERROR_NOT_SUPPORTED, 1000]
    )
    for sample in (first, second):
        pynvml.nvmlGpmSampleFree(sample)
    assert nvml.gpm_samples == 0


def test_gpm_needs_two_samples_of_one_gpu(nvml: FakeDriver, handles: list[Any]):
    """Samples of one moment, in wrong order, not taken or freed, and another GPU's, are INVALID_ARGUMENT."""
    nvml.gpu(1).become(HOPPER)
    first, second, other, empty, freed = (pynvml.nvmlGpmSampleAlloc() for _ in range(5))
    pynvml.nvmlGpmSampleFree(freed)
    pynvml.nvmlGpmSampleGet(handles[0], first)
    pynvml.nvmlGpmSampleGet(handles[0], second)
    pairs = [(first, second), (first, empty), (first, freed)]
    for pair in pairs:
        with raises(pynvml.NVML_ERROR_INVALID_ARGUMENT):
            gpm(*pair, 2)
    nvml.advance(0.1)
    pynvml.nvmlGpmSampleGet(handles[0], second)
    pynvml.nvmlGpmSampleGet(handles[1], other)
    assert gpm(first, second, 2) == pytest.approx([55.5])
    for pair in ((second, first), (first, other)):
        with raises(pynvml.NVML_ERROR_INVALID_ARGUMENT):
            gpm(*pair, 2)
    wrong = pynvml.c_nvmlGpmMetricsGet_t(version=2, numMetrics=1, sample1=first, sample2=second)
    with raises(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
        pynvml.nvmlGpmMetricsGet(wrong)


def test_turing_has_no_gpm(handles: list[Any]):
    """A GPU without GPM takes no sample."""
    with raises(pynvml.NVML_ERROR_NOT_SUPPORTED):
        pynvml.nvmlGpmSampleGet(handles[1], pynvml.nvmlGpmSampleAlloc())


def test_a_leak_of_samples_is_seen(nvml: FakeDriver, handles: list[Any]):
    """Who never frees samples gets no more of them, and all end with the last shutdown."""
    with raises(pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES):
        for _ in range(1000):
            pynvml.nvmlGpmSampleAlloc()
    assert nvml.gpm_samples == 64
    pynvml.nvmlShutdown()
    assert nvml.gpm_samples == 0


# ---- events ----------------------------------------------------------------------------------------------------


def registered(*handles: Any) -> Any:
    """An event set for the XID errors of these GPUs."""
    events = pynvml.nvmlEventSetCreate()
    for handle in handles:
        pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
    return events


def test_events_come_in_order_from_registered_gpus(nvml: FakeDriver, handles: list[Any]):
    """A set is told what happened after it was registered for, in order, and then TIMEOUT."""
    nvml.gpu(1).push_xid(1)
    events = registered(handles[1])
    for gpu, xid in ((1, 79), (0, 13), (1, 31)):
        nvml.gpu(gpu).push_xid(xid)
    nvml.gpu(1).push_event(pynvml.nvmlEventTypePState, 5)
    for xid in (79, 31):
        found = pynvml.nvmlEventSetWait_v2(events, 0)
        assert (found.eventType, found.eventData) == (pynvml.nvmlEventTypeXidCriticalError, xid)
        assert pynvml.nvmlDeviceGetIndex(found.device) == 1
        assert found.gpuInstanceId == NOT_AVAILABLE
    with raises(pynvml.NVML_ERROR_TIMEOUT):
        pynvml.nvmlEventSetWait_v2(events, 1)
    pynvml.nvmlEventSetFree(events)
    assert nvml.event_sets == 0
    with raises(pynvml.NVML_ERROR_INVALID_ARGUMENT):
        pynvml.nvmlEventSetWait_v2(events, 0)


ENDS: dict[str, tuple[Callable[[FakeDriver, Any], object], int]] = {
    "xid": (lambda nvml, _: nvml.gpu(0).push_xid(48), pynvml.NVML_SUCCESS),
    "lost": (lambda nvml, _: nvml.gpu(1).lose(), pynvml.NVML_ERROR_GPU_IS_LOST),
    "reload": (lambda nvml, _: nvml.reload(), pynvml.NVML_ERROR_UNINITIALIZED),
    "shutdown": (lambda *_: pynvml.nvmlShutdown(), pynvml.NVML_ERROR_UNINITIALIZED),
    "freed": (lambda _, events: pynvml.nvmlEventSetFree(events), pynvml.NVML_ERROR_INVALID_ARGUMENT),
}


@pytest.mark.parametrize("end", ENDS)
def test_who_waits_is_woken(nvml: FakeDriver, handles: list[Any], end: str):
    """A wait of minutes ends as soon as there is an event, a GPU is lost, or there is nothing to wait for."""
    act, code = ENDS[end]
    events = registered(*handles)

    def wait() -> tuple[int, int]:
        try:
            return pynvml.NVML_SUCCESS, pynvml.nvmlEventSetWait_v2(events, 600_000).eventData
        except pynvml.NVMLError as error:
            return error.value, 0

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        await_call(nvml, "nvmlEventSetWait_v2")
        assert pynvml.nvmlDeviceGetPowerUsage(handles[0]) == 350_500
        act(nvml, events)
        assert waiting.result(PATIENCE_S) == (code, 48 if end == "xid" else 0)


def test_what_happened_is_told_before_the_loss(nvml: FakeDriver, handles: list[Any]):
    """The XID 79 of a GPU that fell off the bus is delivered, then the wait fails at once."""
    events = registered(*handles)
    nvml.gpu(1).push_xid(79)
    nvml.gpu(1).lose()
    assert pynvml.nvmlEventSetWait_v2(events, 600_000).eventData == 79
    with raises(pynvml.NVML_ERROR_GPU_IS_LOST):
        pynvml.nvmlEventSetWait_v2(events, 600_000)


def test_only_supported_events_are_registered(nvml: FakeDriver, handles: list[Any]):
    """Registering for what a GPU does not tell is NOT_SUPPORTED."""
    events = pynvml.nvmlEventSetCreate()
    with raises(pynvml.NVML_ERROR_NOT_SUPPORTED):
        pynvml.nvmlDeviceRegisterEvents(handles[1], pynvml.nvmlEventTypeDoubleBitEccError, events)
    nvml.gpu(1).set("event_types", None)
    with raises(pynvml.NVML_ERROR_NOT_SUPPORTED):
        pynvml.nvmlDeviceGetSupportedEventTypes(handles[1])
    with raises(pynvml.NVML_ERROR_NOT_SUPPORTED):
        pynvml.nvmlDeviceRegisterEvents(handles[1], pynvml.nvmlEventTypeXidCriticalError, events)


# ---- MIG -------------------------------------------------------------------------------------------------------


@pytest.fixture
def instances(nvml: FakeDriver, handles: list[Any]) -> dict[int, Any]:
    """The MIG devices of GPU 0 by their place."""
    nvml.gpu(0).set("mig_mode", 1)
    found = {}
    for place in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handles[0])):
        try:
            found[place] = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handles[0], place)
        except pynvml.NVMLError_NotFound:
            continue
    return found


def test_mig_devices_are_told_apart(handles: list[Any], instances: dict[int, Any]):
    """There is a MIG device at some places, with its own name, memory, instances and attributes, and a parent."""
    assert list(instances) == [0, 1, 3]
    assert [pynvml.nvmlDeviceGetName(mig) for mig in instances.values()] == [
        f"{HOPPER} MIG 3g.40gb",
        f"{HOPPER} MIG 1g.10gb",
        f"{HOPPER} MIG 1g.10gb",
    ]
    for place, mig in instances.items():
        assert pynvml.nvmlDeviceIsMigDeviceHandle(mig).value == 1
        assert pynvml.nvmlDeviceGetIndex(mig) == place
        parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig)
        assert pynvml.nvmlDeviceGetUUID(parent) == pynvml.nvmlDeviceGetUUID(handles[0])
        uuid = pynvml.nvmlDeviceGetUUID(mig)
        assert uuid.startswith("MIG-")
        assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(uuid)) == place
        assert pynvml.nvmlDeviceGetComputeInstanceId(mig) == 0
    assert pynvml.nvmlDeviceIsMigDeviceHandle(handles[0]).value == 0
    assert [pynvml.nvmlDeviceGetGpuInstanceId(mig) for mig in instances.values()] == [2, 7, 9]
    small = instances[1]
    assert pynvml.nvmlDeviceGetAttributes(small).multiprocessorCount == 16
    assert pynvml.nvmlDeviceGetAttributes(small).memorySizeMB == 9_984
    memory = pynvml.nvmlDeviceGetMemoryInfo(small, version=pynvml.nvmlMemory_v2)
    assert (memory.total, memory.used) == (9_984 << 20, 2_496 << 20)


def test_mig_takes_from_the_parent(handles: list[Any], instances: dict[int, Any]):
    """With MIG on the parent has no utilization, samples of it, or codecs; a MIG device has them neither."""
    for handle in (handles[0], instances[0]):
        for call in (
            pynvml.nvmlDeviceGetUtilizationRates,
            pynvml.nvmlDeviceGetEncoderUtilization,
            pynvml.nvmlDeviceGetDecoderUtilization,
            pynvml.nvmlDeviceGetRemappedRows,
            lambda h: pynvml.nvmlDeviceGetSamples(h, pynvml.NVML_GPU_UTILIZATION_SAMPLES, 0),
            lambda h: pynvml.nvmlDeviceGetProcessUtilization(h, 0),
            lambda h: pynvml.nvmlDeviceGetPcieThroughput(h, 0),
        ):
            with raises(pynvml.NVML_ERROR_NOT_SUPPORTED):
                call(handle)
    assert pynvml.nvmlDeviceGetPowerUsage(handles[0]) == 350_500
    assert len(samples(handles[0], 0)) == 120
    for call in (pynvml.nvmlDeviceGetPowerUsage, lambda h: pynvml.nvmlDeviceGetTemperature(h, 0)):
        with raises(pynvml.NVML_ERROR_NOT_SUPPORTED):
            call(instances[0])
    with raises(pynvml.NVML_ERROR_NOT_SUPPORTED):
        registered(instances[0])


def test_mig_devices_go_with_the_mode(nvml: FakeDriver, handles: list[Any], instances: dict[int, Any]):
    """A MIG device may go alone and does with the mode; a GPU that knows no MIG says so."""
    assert pynvml.nvmlDeviceGetMigMode(handles[0]) == [1, 1]
    nvml.gpu(0).mig(3).set("gpu_instance", None)
    with raises(pynvml.NVML_ERROR_NOT_FOUND):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handles[0], 3)
    nvml.gpu(0).set("mig_pending", 0)
    assert pynvml.nvmlDeviceGetMigMode(handles[0]) == [1, 0]
    nvml.gpu(0).set("mig_mode", 0)
    with raises(pynvml.NVML_ERROR_INVALID_ARGUMENT):
        pynvml.nvmlDeviceGetName(instances[0])
    with raises(pynvml.NVML_ERROR_NOT_FOUND):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handles[0], 0)
    with raises(pynvml.NVML_ERROR_NOT_SUPPORTED):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handles[1], 0)


def test_mig_devices_have_gpm_processes_and_faults(nvml: FakeDriver, handles: list[Any], instances: dict[int, Any]):
    """GPM is per GPU instance, a process belongs to one, and a MIG device is lost with its GPU."""
    first, second = pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()
    nvml.gpu(0).mig(1).set("gpm_sm", 12.5)
    pynvml.nvmlGpmMigSampleGet(handles[0], 7, first)
    nvml.advance(1)
    pynvml.nvmlGpmMigSampleGet(handles[0], 7, second)
    assert gpm(first, second, 2) == [12.5]
    with raises(pynvml.NVML_ERROR_NOT_FOUND):
        pynvml.nvmlGpmMigSampleGet(handles[0], 8, first)
    nvml.gpu(0).run(100, 5, gpu_instance=7, compute_instance=0)
    counts = [len(pynvml.nvmlDeviceGetComputeRunningProcesses(mig)) for mig in instances.values()]
    assert counts == [0, 1, 0]
    nvml.gpu(0).lose()
    with raises(pynvml.NVML_ERROR_GPU_IS_LOST):
        pynvml.nvmlDeviceGetName(instances[1])


# ---- another process -------------------------------------------------------------------------------------------

OTHER = """
import json, sys
import pynvml

def read(index):
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return [pynvml.nvmlDeviceGetPowerUsage(handle), pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)]
    except pynvml.NVMLError as error:
        return error.value

pynvml.nvmlInit()
events = pynvml.nvmlEventSetCreate()
for index in range(0, pynvml.nvmlDeviceGetCount(), 2):
    pynvml.nvmlDeviceRegisterEvents(pynvml.nvmlDeviceGetHandleByIndex(index), 8, events)
for line in sys.stdin:
    if line.strip() == "wait":
        print(json.dumps(pynvml.nvmlEventSetWait_v2(events, 60000).eventData), flush=True)
    else:
        version = pynvml.nvmlSystemGetDriverVersion()
        print(json.dumps([version, *map(read, range(pynvml.nvmlDeviceGetCount()))]), flush=True)
"""


@contextmanager
def other_process(environment: dict[str, str], code: str = OTHER) -> Iterator[Callable[[str], Any]]:
    """Another process with the pretended driver, which is asked by lines."""
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def ask(line: str) -> Any:
            requests.write(f"{line}\n")
            requests.flush()
            return json.loads(answers.readline())

        yield ask
        requests.close()
        assert process.wait(PATIENCE_S) == 0


def test_another_process_is_told_by_a_file(nvml: FakeDriver, tmp_path: Path):
    """A process finds the driver by its environment, and sees faults come and go by the control file."""
    control = Control(tmp_path / "control")
    environment = nvml.environment(
        gpus=3,
        version="575.51.03",
        faults="err:nvmlDeviceGetPowerUsage:4:2,lost:1",
        xid="0:79,2:13",
        realtime=True,
        control=control,
    )
    with other_process(environment) as ask:
        version, first, lost, refused = ask("read")
        assert (version, lost, refused) == ("575.51.03", 15, 4)
        assert first[0] == 350_500
        assert [ask("wait"), ask("wait")] == [79, 13]
        control.write("lost:0", "set:1:power_mw:1000", "text:-1:driver_version:590.48.01")
        assert ask("read")[:2] == ["590.48.01", 15]
        control.write("set:2:power_mw:5", "field:2:83:3", "xid:0:31")
        assert ask("wait") == 31
        _, again, found, cured = ask("read")
        assert again[1] > first[1]
        assert (found[0], cured[0]) == (1000, 5)


def test_a_file_wakes_who_waits(nvml: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An order in the control file reaches those whose only call is a wait for events, or a call that hangs."""
    control = Control(tmp_path / "control")
    control.write("hang:nvmlDeviceGetPowerUsage:600000")
    monkeypatch.setenv("FAKE_NVML_CONTROL", str(control.path))
    nvml.reset()
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    events = registered(handle)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(pynvml.nvmlEventSetWait_v2, events, 600_000)
        hung = pool.submit(pynvml.nvmlDeviceGetPowerUsage, handle)
        await_hanging(nvml, 1)
        await_call(nvml, "nvmlEventSetWait_v2")
        control.write("xid:0:94")
        assert waiting.result(PATIENCE_S).eventData == 94
        assert hung.result(PATIENCE_S) == 350_500


def test_init_fails_in_another_process(nvml: FakeDriver):
    """The environment makes init fail, as without a driver."""
    code = "import pynvml\ntry: pynvml.nvmlInit()\nexcept pynvml.NVMLError as error: print(input() and error.value)"
    with other_process(nvml.environment(faults="initfail:9"), code) as ask:
        assert ask("what") == pynvml.NVML_ERROR_DRIVER_NOT_LOADED


def test_orders_that_are_none_are_told(nvml: FakeDriver):
    """A mistake in an order is written to standard error."""
    environment = nvml.environment(faults="loose:1,set:0:no_such_key:5,lost,lost:1")
    found = subprocess.run(
        [sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(nvml.path)!r})"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert re.findall(r"no such order: (.*)", found.stderr) == ["loose:1", "set:0:no_such_key:5", "lost"]


def test_a_fork_begins_again(nvml: FakeDriver, handles: list[Any]):
    """In a forked child every call is UNINITIALIZED until its own init, also when the parent was in a call."""
    ended = threading.Event()

    def keep_busy() -> None:
        while not ended.is_set():
            nvml.set_gpus(2)  # of all calls it holds the lock longest

    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                _live_in_child()
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        ended.set()
        busy.join()
    assert pynvml.nvmlDeviceGetCount() == 2


def _live_in_child() -> NoReturn:
    code = 1
    try:
        signal.alarm(PATIENCE_S)  # a lock that somebody held would be held for ever
        with raises(pynvml.NVML_ERROR_UNINITIALIZED):
            pynvml.nvmlDeviceGetCount()
        pynvml.nvmlInit()
        assert pynvml.nvmlDeviceGetCount() == 2
        code = 0
    finally:
        os._exit(code)
