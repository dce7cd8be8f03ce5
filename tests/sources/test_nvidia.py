"""What the NVIDIA source reads of GPUs that answer, how often, and what of it is absent."""

from __future__ import annotations

import doctest
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import SimpleNamespace

import pynvml
import pytest

from otel_mlops import metrics as rows
from otel_mlops.metrics import Metric
from otel_mlops.metrics.gpu import THROTTLE_REASONS
from otel_mlops.sources.nvidia import driver, open_nvidia, survey
from otel_mlops.sources.nvidia.quantities import SLOW_S
from otel_mlops.sources.sampler import Sampler
from tests.nvml.driver import HOPPER, TURING, TURING_TESLA, FakeDriver
from tests.sources.contract import Series
from tests.sources.gpus import Altered, Machine, opened, series

WRAP = 2**32
OF_OTHERS = {
    rows.GPU_BUSY, rows.GPU_MEMORY_BUSY, rows.GPU_POWER_PEAK, rows.GPU_SM_ACTIVITY, rows.GPU_SM_OCCUPANCY,
    rows.GPU_TENSOR_ACTIVITY, rows.GPU_DRAM_ACTIVITY, rows.GPU_SM_ACTIVE, rows.GPU_XID_ERRORS,
    rows.GPU_XID_LAST_TIMESTAMP, rows.GPU_READ_ERRORS, *rows.gpu.MIG,
}  # fmt: skip
"""Rows that have tests of their own."""

# Row, labels besides the GPU's, the driver's number, and what one of it is in the row's unit.
NUMBERS: list[tuple[Metric, dict[str, str], str, float]] = [
    (rows.GPU_UTILIZATION, {}, "utilization", 1),
    (rows.GPU_ENCODER_UTILIZATION, {}, "encoder", 1),
    (rows.GPU_DECODER_UTILIZATION, {}, "decoder", 1),
    (rows.GPU_MEMORY_USED, {}, "memory_used", 1),
    (rows.GPU_MEMORY_TOTAL, {}, "memory_total", 1),
    (rows.GPU_MEMORY_RESERVED, {}, "memory_reserved", 1),
    (rows.GPU_TEMPERATURE, {}, "temperature", 1),
    (rows.HARDWARE_TEMPERATURE, {"component": "gpu{}"}, "temperature", 1),
    (rows.HARDWARE_TEMPERATURE, {"component": "gpu{}/memory"}, "memory_temperature", 1),
    (rows.GPU_POWER_USAGE, {}, "power_mw", 1e-3),
    (rows.GPU_POWER_LIMIT, {}, "power_limit_enforced_mw", 1e-3),
    (rows.GPU_ENERGY, {}, "energy_mj", 1e-3),
    *((rows.GPU_CLOCK_FREQUENCY, {"clock": clock}, f"clock_{clock}", 1e6)
      for clock in ("graphics", "sm", "memory", "video")),
    *((rows.GPU_CLOCK_MAX_FREQUENCY, {"clock": clock}, f"clock_max_{clock}", 1e6)
      for clock in ("graphics", "sm", "memory", "video")),
    (rows.GPU_THROTTLE, {"reason": "sw_power_cap"}, "throttle_power_ns", 1e-9),
    (rows.GPU_THROTTLE, {"reason": "sync_boost"}, "throttle_sync_boost_ns", 1e-9),
    (rows.GPU_THROTTLE, {"reason": "sw_thermal"}, "throttle_sw_thermal_ns", 1e-9),
    (rows.GPU_THROTTLE, {"reason": "hw_thermal"}, "throttle_hw_thermal_ns", 1e-9),
    (rows.GPU_THROTTLE, {"reason": "hw_power_brake"}, "throttle_power_brake_ns", 1e-9),
    (rows.GPU_PERFORMANCE_STATE, {}, "performance_state", 1),
    (rows.GPU_PCIE_REPLAYS, {}, "pcie_replays", 1),
    (rows.GPU_PCIE_LINK_GENERATION, {}, "pcie_generation", 1),
    (rows.GPU_PCIE_LINK_GENERATION_MAX, {}, "pcie_generation_max", 1),
    (rows.GPU_PCIE_LINK_WIDTH, {}, "pcie_width", 1),
    (rows.GPU_PCIE_LINK_WIDTH_MAX, {}, "pcie_width_max", 1),
    *((rows.GPU_ECC_ERRORS, {"type": type_, "counter": counter}, f"ecc_{type_}_{counter}", 1)
      for type_ in ("corrected", "uncorrected") for counter in ("volatile", "aggregate")),
    (rows.GPU_REMAPPED_ROWS, {"state": "correctable"}, "remapped_corrected", 1),
    (rows.GPU_REMAPPED_ROWS, {"state": "uncorrectable"}, "remapped_uncorrected", 1),
    (rows.GPU_REMAPPED_ROWS, {"state": "pending"}, "remapped_pending", 1),
    (rows.GPU_REMAPPED_ROWS, {"state": "failure"}, "remapped_failure", 1),
    (rows.GPU_RECOVERY_ACTION, {}, "recovery_action", 1),
    *((rows.GPU_TEMPERATURE_LIMIT, {"limit": limit}, f"threshold_{limit}", 1)
      for limit in ("shutdown", "slowdown", "memory_max", "gpu_max")),
]  # fmt: skip


@pytest.fixture
def machine(nvml: FakeDriver) -> Iterator[Machine]:
    """A machine with an H100 and an RTX 2080."""
    with opened(nvml) as made:
        yield made


@pytest.fixture
def alone(nvml: FakeDriver) -> Iterator[Machine]:
    """A machine with an H100 that need not take turns."""
    nvml.set_gpus(1)
    with opened(nvml) as made:
        yield made


def expected(machine: Machine, gpu: int, name: str) -> Mapping[Series, float]:
    """What is to be read of a GPU by the driver's own numbers, without what is read in other ways."""
    found: dict[Series, float] = {}
    for row, labels, key, unit in NUMBERS:
        number = machine.driver.gpu(gpu).get(key)
        if number is not None:
            own = {label: text.format(gpu) for label, text in labels.items()}
            found[series(row, None if row is rows.HARDWARE_TEMPERATURE else gpu, name, **own)] = number * unit
    return found


def compared(machine: Machine, gpu: int) -> Mapping[Series, float]:
    """What the last reading has of a GPU in the rows of `NUMBERS`."""
    known = {row for row, _, _, _ in NUMBERS}
    component = {f"gpu{gpu}", f"gpu{gpu}/memory"}
    return {
        (row, labels): value
        for (row, labels), value in machine.seen.items()
        if row in known and (("gpu_id", str(gpu)) in labels or component & {text for _, text in labels})
    }


@pytest.mark.parametrize("model", [HOPPER, TURING, TURING_TESLA])
def test_each_value_is_the_drivers_in_the_unit_of_its_row(nvml, model):
    """What a GPU has is read as the driver has it, in base units, and what it does not have is absent."""
    with opened(nvml) as machine:
        machine.driver.gpu(0).become(model)
        machine.read()
        assert compared(machine, 0) == pytest.approx(expected(machine, 0, model))
        for key in {key for _, _, key, _ in NUMBERS} - {"performance_state", "recovery_action"}:
            number = machine.driver.gpu(0).get(key)
            if number is not None:
                machine.driver.gpu(0).set(key, number + 1)
        machine.read(after=SLOW_S)
        assert compared(machine, 0) == pytest.approx(expected(machine, 0, model))
        assert machine.rows(0) - OF_OTHERS - {row for row, _, _, _ in NUMBERS} <= {
            rows.GPU_UP, rows.GPU_INFO, rows.GPU_MEMORY_FREE, rows.GPU_CLOCK_EVENT, rows.GPU_FAN_SPEED,
            rows.GPU_PCIE_IO, rows.GPU_NVLINK_IO,
        }  # fmt: skip


def test_the_memory_adds_up(machine):
    """Used, free and reserved memory are the total."""
    seen = machine.read()
    parts = [rows.GPU_MEMORY_USED, rows.GPU_MEMORY_FREE, rows.GPU_MEMORY_RESERVED]
    assert sum(seen[series(row)] for row in parts) == seen[series(rows.GPU_MEMORY_TOTAL)]


def test_without_the_newer_call_the_reserved_memory_is_no_row_of_its_own(machine):
    """Where the driver cannot tell the reserved memory apart it is in the used, and its own series is absent."""
    machine.driver.fail("nvmlDeviceGetMemoryInfo_v2", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    seen = machine.read()
    gpu = machine.driver.gpu(0)
    assert seen[series(rows.GPU_MEMORY_USED)] == gpu.get("memory_used") + gpu.get("memory_reserved")
    assert series(rows.GPU_MEMORY_RESERVED) not in seen
    machine.driver.clear_faults()
    machine.read(after=299.0)
    assert series(rows.GPU_MEMORY_RESERVED) not in machine.seen
    machine.read(after=1.0)
    assert machine.seen[series(rows.GPU_MEMORY_USED)] == gpu.get("memory_used")
    assert machine.seen[series(rows.GPU_MEMORY_RESERVED)] == gpu.get("memory_reserved")


@pytest.mark.parametrize(
    ("function", "row"),
    [
        ("nvmlDeviceGetTemperatureV", rows.GPU_TEMPERATURE),
        ("nvmlDeviceGetCurrentClocksEventReasons", rows.GPU_CLOCK_EVENT),
    ],
)
def test_an_older_driver_is_asked_by_the_older_name(machine, function, row):
    """A function that a driver does not know is asked for under the name it had before."""
    whole = machine.read()
    machine.driver.fail(function, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    before = machine.driver.calls(function)
    seen = machine.read(after=1.0)
    assert {one for one in seen if one[0] is row} == {one for one in whole if one[0] is row}
    machine.run(3)
    assert machine.driver.calls(function) == before + 2  # once for each GPU


def test_an_older_package_is_asked_by_the_older_name(nvml):
    """What an older nvidia-ml-py does not have is absent or asked for in another way, and nothing is an error."""
    newer = (
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetNumFans",
        "NVMLLibraryMismatchError",
        "nvmlGpmQueryDeviceSupport",
    )
    with opened(nvml, nvml=Altered(**dict.fromkeys(newer))) as machine:
        seen = machine.read()
    assert seen[series(rows.GPU_TEMPERATURE)] == 45
    assert rows.GPU_SM_ACTIVITY not in machine.rows(0)
    assert not any(machine.totals[one] for one in machine.totals if one[0] is rows.GPU_READ_ERRORS)


def test_the_reasons_for_a_slower_clock_are_told_apart(machine):
    """Each reason is 1 while it holds and 0 while not; that the GPU is idle is none."""
    machine.driver.gpu(0).set("event_reasons", 0x1 | 0x20 | 0x80)
    seen = machine.read()
    active = {reason for reason in THROTTLE_REASONS if seen[series(rows.GPU_CLOCK_EVENT, reason=reason)]}
    assert active == {"sw_thermal", "hw_power_brake"}
    one_by_one = {0x2: "applications_clock", 0x4: "sw_power_cap", 0x8: "hw_slowdown", 0x10: "sync_boost",
                  0x40: "hw_thermal", 0x100: "display_clock"}  # fmt: skip
    for bit, reason in one_by_one.items():
        machine.driver.gpu(0).set("event_reasons", bit)
        seen = machine.read(after=1.0)
        assert [r for r in THROTTLE_REASONS if seen[series(rows.GPU_CLOCK_EVENT, reason=r)]] == [reason]


@pytest.mark.parametrize(
    ("version", "is_told"),
    [("575.51.03", True), ("580.65.06", True), ("580.82.07", True), ("595.10", True), ("535.104.05", False)],
)
def test_the_throttle_counters_are_those_of_the_drivers_version(nvml, version, is_told):
    """Counters that were renumbered are read by the numbers of this driver, never by those that mean something else."""
    nvml.set_version(version)
    nvml.gpu(0).set("power_smoothing", 77)
    with opened(nvml) as machine:
        machine.read()
        found = {dict(labels)["reason"]: value for (row, labels), value in machine.seen.items()
                 if row is rows.GPU_THROTTLE and ("gpu_id", "0") in labels}  # fmt: skip
    renumbered = {"sw_thermal": 2.0, "hw_thermal": 1.0, "hw_power_brake": 0.5}
    assert found == {"sw_power_cap": 1.0, "sync_boost": 0.0, **(renumbered if is_told else {})}


def test_of_a_driver_of_unknown_version_no_renumbered_counter_is_read(machine):
    """Where the version is not known, what the renumbered fields mean is not either: they are absent."""
    machine.driver.fail("nvmlSystemGetDriverVersion", pynvml.NVML_ERROR_UNKNOWN)
    machine.driver.gpu(0).set("power_smoothing", 77)
    seen = machine.read()
    assert series(rows.GPU_THROTTLE, reason="sw_power_cap") in seen
    assert series(rows.GPU_THROTTLE, reason="sw_thermal") not in seen
    assert "driver_version" not in {label for row, labels in seen if row is rows.GPU_INFO for label, _ in labels}


def test_what_a_gpu_is_stands_on_its_info(machine):
    """The info carries the versions and what the GPU is called elsewhere; a serial number only where there is one."""
    machine.driver.set_cuda_version(12080)
    infos = {dict(labels)["gpu_id"]: dict(labels) for row, labels in machine.read() if row is rows.GPU_INFO}
    assert infos["0"] == {
        "gpu_id": "0", "gpu_name": HOPPER, "gpu_uuid": "GPU-00000000-0000-4000-8000-000000000000",
        "pci_bus_id": "00000000:10:00.0", "architecture": "Hopper", "compute_capability": "9.0",
        "driver_version": "580.95.05", "cuda_version": "12.8", "serial": "1321023000000", "mig_mode": "disabled",
    }  # fmt: skip
    assert infos["1"]["architecture"] == "Turing"
    assert not {"serial", "mig_mode"} & infos["1"].keys()
    assert machine.driver.calls("nvmlSystemGetCudaDriverVersion_v2") == 0


def test_a_call_that_fails_makes_no_other_info(machine):
    """What was learnt about a GPU stays on its info when it cannot be asked again."""
    before = [one for one in machine.read() if one[0] is rows.GPU_INFO]
    machine.driver.fail("nvmlDeviceGetSerial", pynvml.NVML_ERROR_UNKNOWN)
    machine.driver.gpu(0).set("architecture", 99)
    assert [one for one in machine.read(after=SLOW_S) if one[0] is rows.GPU_INFO][1:] == before[1:]
    known = dict(next(labels for row, labels in machine.seen if row is rows.GPU_INFO))
    assert known["serial"] == "1321023000000"
    assert "architecture" not in known  # one without a name


def test_newer_gpus_tell_no_limit_of_their_temperature(nvml):
    """Since Ada what the older call for a limit says is not shown, whether it says something or not."""
    for gpu, architecture in ((0, 8), (1, 7)):
        nvml.gpu(gpu).set("threshold_slowdown", 90)
        nvml.gpu(gpu).set("architecture", architecture)
    with opened(nvml) as machine:
        machine.read()
    assert rows.GPU_TEMPERATURE_LIMIT not in machine.rows(0)
    assert machine.seen[series(rows.GPU_TEMPERATURE_LIMIT, 1, limit="slowdown")] == 90


def test_each_fan_has_a_series(machine):
    """A fan's speed is a ratio, which can be above 1; a GPU without fans has none."""
    gpu = machine.driver.gpu(1)
    gpu.set("fans", 2)
    gpu.set("fan_speed", 104)
    seen = machine.read()
    assert [seen[series(rows.GPU_FAN_SPEED, 1, fan=fan)] for fan in "01"] == [1.04, 1.04]
    assert rows.GPU_FAN_SPEED not in machine.rows(0)


def test_values_that_mean_not_available_are_absent(machine):
    """Numbers that cannot have been measured make no sample."""
    gpu = machine.driver.gpu(0)
    for key in ("utilization", "encoder", "power_mw", "clock_sm", "energy_mj", "recovery_action", "pcie_width"):
        gpu.set(key, WRAP - 1)
    gpu.set("memory_total", 2.0**63)
    gpu.set("temperature", 255)
    gpu.set("memory_temperature", 0)
    gpu.set("performance_state", 32)
    gpu.set("pcie_replays", WRAP - 1)
    machine.read()
    absent = {
        rows.GPU_UTILIZATION, rows.GPU_ENCODER_UTILIZATION, rows.GPU_POWER_USAGE, rows.GPU_RECOVERY_ACTION,
        rows.GPU_PCIE_LINK_WIDTH, rows.GPU_MEMORY_TOTAL, rows.GPU_TEMPERATURE, rows.GPU_PERFORMANCE_STATE,
        rows.GPU_PCIE_REPLAYS, rows.GPU_ENERGY,
    }  # fmt: skip
    assert not absent & machine.rows(0)
    assert series(rows.GPU_CLOCK_FREQUENCY, clock="sm") not in machine.seen
    assert series(rows.HARDWARE_TEMPERATURE, None, component="gpu0/memory") not in machine.seen
    assert rows.GPU_DECODER_UTILIZATION in machine.rows(0)


def test_a_field_of_any_type_is_read(machine):
    """A field's value is taken by the type that it says it has; one of an unknown type is a failure."""
    types = [pynvml.NVML_VALUE_TYPE_DOUBLE, pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG,
             pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG,
             pynvml.NVML_VALUE_TYPE_SIGNED_INT]  # fmt: skip
    for value_type in types:
        machine.driver.gpu(0).set_field(83, 7000, value_type)
        assert machine.read(after=5.0)[series(rows.GPU_ENERGY)] == 7.0
    machine.driver.gpu(0).set_field(83, 7000, 40)
    assert series(rows.GPU_ENERGY) not in machine.read(after=5.0)
    assert machine.seen[series(rows.GPU_READ_ERRORS, error="failed")] == 1


def test_a_narrow_counter_of_the_bus_is_not_believed(alone):
    """Where the driver counts with 32 bits, which overflow unseen, what went over the bus is GPM's mean by the time."""
    gpu = alone.driver.gpu(0)
    gpu.set("pcie_tx_rate", 20_000_000_000)
    alone.read()
    for direction in ("transmit", "receive"):
        assert alone.seen[series(rows.GPU_PCIE_IO, direction=direction)] == 0
    alone.run(60)
    assert alone.totals[series(rows.GPU_PCIE_IO, direction="transmit")] == pytest.approx(60 * 20_000_000_000)
    assert alone.totals[series(rows.GPU_PCIE_IO, direction="receive")] == pytest.approx(60 * 500_000_000)


def test_a_narrow_counter_alone_gives_no_bytes(alone):
    """Without GPM, and with 32 bits only, there are no bytes of the bus: too few would be a wrong number."""
    alone.driver.fail("nvmlGpmQueryDeviceSupport", pynvml.NVML_ERROR_NOT_SUPPORTED)
    alone.run(20)
    assert rows.GPU_PCIE_IO not in alone.rows(0)
    assert not any(row is rows.GPU_PCIE_IO for row, _ in alone.totals)


def test_the_bus_is_counted_once(alone):
    """Where the driver's counter is wide enough it counts alone: GPM's mean of the same is not added."""
    gpu = alone.driver.gpu(0)
    gpu.set("pcie_bits", 64)
    first = gpu.get("pcie_tx_bytes")
    alone.read()
    alone.run(700)
    assert alone.totals[series(rows.GPU_PCIE_IO, direction="transmit")] == gpu.get("pcie_tx_bytes") - first


def test_a_wide_counter_that_begins_anew_takes_nothing_away(machine):
    """A counter of 64 bits goes beyond 2³², and counts nothing when it steps back."""
    gpu = machine.driver.gpu(0)
    gpu.set("pcie_bits", 64)
    gpu.set("pcie_tx_bytes", 5 * WRAP)
    gpu.set("pcie_tx_rate", 0)
    machine.read()
    gpu.set("pcie_tx_bytes", 7 * WRAP)
    machine.read(after=2.0)
    gpu.set("pcie_tx_bytes", 100)
    machine.read(after=2.0)
    gpu.set("pcie_tx_bytes", 150)
    machine.read(after=2.0)
    assert machine.totals[series(rows.GPU_PCIE_IO, direction="transmit")] == 2 * WRAP + 50


def test_nvlink_counts_bytes_of_all_links(machine):
    """NVLink's kibibytes become bytes, of all links together."""
    gpu = machine.driver.gpu(0)
    gpu.set("nvlink_tx_rate", 0)
    machine.read()
    gpu.set("nvlink_tx_kib", gpu.get("nvlink_tx_kib") + 10)
    machine.read(after=SLOW_S)
    assert machine.totals[series(rows.GPU_NVLINK_IO, direction="transmit")] == 10 * 1024


def test_newer_links_are_counted_by_their_own_fields(machine):
    """Where NVLink has only the newer counters they are read at once, and counted once."""
    gpu = machine.driver.gpu(0)
    for direction in ("tx", "rx"):
        gpu.set(f"nvlink_{direction}_kib", None)
        gpu.set(f"nvlink_{direction}_bytes", 4000)
        gpu.set(f"nvlink_{direction}_rate", 0)
    assert machine.read()[series(rows.GPU_NVLINK_IO, direction="receive")] == 0
    gpu.set("nvlink_rx_bytes", 4500)
    machine.read(after=SLOW_S)
    assert machine.totals[series(rows.GPU_NVLINK_IO, direction="receive")] == 500


def test_each_thing_is_read_as_often_as_it_is_worth(alone):
    """Cheap calls are made each second, dearer ones every 2, 5 or 60 seconds, and the fields share a call."""
    often = {
        "nvmlDeviceGetUtilizationRates": 60,
        "nvmlDeviceGetTotalEccErrors": 4,
        "nvmlDeviceGetEnforcedPowerLimit": 1,
        "nvmlGpmSampleGet": 12,
        "nvmlDeviceGetSamples": 6 * 30,  # three kinds, each asked first for how many there are
        "nvmlDeviceGetFieldValues": 30 + 12 + 1,
    }
    alone.driver.gpu(0).set("pcie_bits", 64)
    alone.read()
    before = {function: alone.driver.gpu(0).calls(function) for function in often}
    alone.run(60)
    assert {function: alone.driver.gpu(0).calls(function) - before[function] for function in often} == often


def test_a_reading_a_little_early_does_not_miss_a_turn(alone):
    """The driver's buffer of power samples, 2.36 s deep, never overflows when readings come a little early or late."""
    alone.read()
    read_at = [alone.now]
    for after in [1.05, 0.9, 1.1, 0.95] * 15:
        before = alone.driver.gpu(0).calls("nvmlDeviceGetSamples")
        alone.read(after=after)
        if alone.driver.gpu(0).calls("nvmlDeviceGetSamples") > before:
            read_at.append(alone.now)
    assert max(after - before for before, after in pairwise(read_at)) < 2.3
    assert len(read_at) == 31


def test_values_stay_until_they_are_read_again(alone):
    """A value that is read seldom stands in every reading between; an increase stands in one."""
    alone.read()
    alone.driver.gpu(0).set("power_limit_enforced_mw", 500_000)
    alone.read(after=1.0)
    assert alone.seen[series(rows.GPU_POWER_LIMIT)] == 700
    assert series(rows.GPU_PCIE_IO, direction="transmit") not in alone.seen
    alone.run(59)
    assert alone.seen[series(rows.GPU_POWER_LIMIT)] == 500


def test_a_long_sleep_is_read_once(alone):
    """After the machine slept each thing is read once, not once for each turn that was missed."""
    alone.read()
    before = alone.driver.gpu(0).calls("nvmlDeviceGetEnforcedPowerLimit")
    alone.read(after=3600.0)
    alone.run(30)
    assert alone.driver.gpu(0).calls("nvmlDeviceGetEnforcedPowerLimit") == before + 1


def test_many_gpus_take_turns(nvml):
    """After the first reading no two of four GPUs are read whole in the same second."""
    nvml.set_gpus(4)
    with opened(nvml) as machine:
        machine.read()
        whole = []
        for _ in range(60):
            before = nvml.calls("nvmlDeviceGetEnforcedPowerLimit")
            machine.read(after=1.0)
            whole.append(nvml.calls("nvmlDeviceGetEnforcedPowerLimit") - before)
    assert max(whole) == 1
    assert sum(whole) == 4


def test_a_second_of_reading_is_a_handful_of_calls(alone):
    """What is read every second of a GPU is few calls, all of the cheap kind."""
    alone.read()
    before = alone.driver.gpu(0).calls()
    alone.read(after=1.0)
    assert alone.driver.gpu(0).calls() - before <= 12


def test_the_memory_of_our_own_processes_is_told_by_worker(nvml):
    """A worker's memory on a GPU is what the driver says of its process, and others' is nobody's here."""
    parent = os.getppid()
    nvml.gpu(0).run(os.getpid(), 3_000)
    nvml.gpu(0).run(parent, None)
    nvml.gpu(1).run(1, 70)
    with opened(nvml, pids=lambda: {"0": os.getpid(), "1": parent, "2": 2**22 + 7}) as machine:
        machine.read()
    found = {one: value for one, value in machine.seen.items() if one[0] is rows.GPU_PROCESS_MEMORY}
    assert found == {series(rows.GPU_PROCESS_MEMORY, worker="0"): 3_000}


def test_a_process_on_two_instances_has_the_memory_of_both(nvml):
    """A process that the driver names twice has what both say."""
    named = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=size) for size in (3_000, 500, None)]
    answering = Altered(nvmlDeviceGetComputeRunningProcesses=lambda _handle: named)
    with opened(nvml, nvml=answering, pids=lambda: {"0": os.getpid()}) as machine:
        assert machine.read()[series(rows.GPU_PROCESS_MEMORY, worker="0")] == 3_500


@pytest.mark.parametrize("stranger", [2**22 + 7, 2**32 - 1])
def test_process_ids_of_another_namespace_are_nobodys(nvml, stranger):
    """Where the driver names a process that is not here its numbers are not ours: no worker has memory by chance."""
    nvml.gpu(0).run(os.getpid(), 3_000)
    nvml.gpu(0).run(stranger, 1_000)
    with opened(nvml, pids=lambda: {"0": os.getpid()}) as machine:
        machine.read()
    assert rows.GPU_PROCESS_MEMORY not in machine.rows(0)
    assert not any(value for one, value in machine.totals.items() if one[0] is rows.GPU_READ_ERRORS)


def test_processes_are_not_asked_for_without_workers(machine):
    """Without workers to tell apart the driver is not asked who runs."""
    machine.read()
    assert machine.driver.calls("nvmlDeviceGetComputeRunningProcesses_v3") == 0


def test_with_mig_the_instances_are_told_and_the_whole_is_not(nvml):
    """With MIG on, what the driver does not have of the whole GPU is absent, and its instances are there."""
    nvml.gpu(0).set("mig_mode", 1)
    with opened(nvml) as machine:
        machine.read()
        machine.read(after=5.0)
    assert rows.GPU_UTILIZATION not in machine.rows(0)
    assert {rows.GPU_MIG_INFO, rows.GPU_MIG_MEMORY_USED, rows.GPU_MIG_SM_ACTIVITY} <= machine.rows(0)
    assert not {one for one, value in machine.totals.items() if one[0] is rows.GPU_READ_ERRORS and value}
    assert ("mig_mode", "enabled") in next(labels for row, labels in machine.seen if row is rows.GPU_INFO)


def test_the_sampler_takes_all_of_it(nvml):
    """The sampler drops no sample, shows the values and counts the increases."""
    dropped: list[str] = []
    counted: dict[str, float] = {}
    source = open_nvidia(pynvml, gpus="all", environ={})

    def count(row: Metric, increase: float, attributes: Mapping[str, str]) -> None:
        counted[row.name] = counted.get(row.name, 0.0) + increase

    sampler = Sampler({"nvidia": source}, 1.0, on_dropped=dropped.append, count=count)
    sampler.sample()
    nvml.advance(10)
    sampler.sample()
    assert dropped == []
    shown = {observation.attributes["gpu_id"]: observation.value for observation in sampler.observe(rows.GPU_UP)(None)}
    assert shown == {"0": 1.0, "1": 1.0}
    assert rows.GPU_PCIE_IO.name in counted
    nvml.reset()
    source.close()


def test_all_that_is_declared_is_read(nvml):
    """Every row of the GPUs but those of energy is produced by one GPU or another."""
    nvml.gpu(0).run(os.getpid(), 3_000)
    nvml.set_gpus(3)
    nvml.gpu(1).become(TURING)
    nvml.gpu(2).set("mig_mode", 1)
    nvml.gpu(0).run(os.getpid(), 3_000)
    with opened(nvml, pids=lambda: {"0": os.getpid()}) as machine:
        machine.read()
        machine.read(after=5.0)
        found = {row for row, _ in [*machine.seen, *machine.totals]}
    assert {*rows.gpu.GPU, *rows.gpu.MIG} - found == {rows.GPU_XID_ERRORS, rows.GPU_XID_LAST_TIMESTAMP} - found


def test_a_survey_says_what_can_be_read_and_why_not(nvml):
    """A survey names every part of every GPU, and of what cannot be read the driver's reason; nothing stays open."""
    nvml.gpu(0).fail("nvmlDeviceGetRemappedRows", pynvml.NVML_ERROR_NO_PERMISSION)
    nvml.gpu(0).fail("nvmlDeviceGetPerformanceState", pynvml.NVML_ERROR_TIMEOUT)
    found = {(finding.gpu, finding.part): finding for finding in survey(pynvml)}
    assert found[0, "gpu.utilization"].state == "supported"
    assert found[0, "gpu.xid.errors"].state == "supported"
    assert found[0, "gpu.process.memory"].state == "supported"
    assert found[0, "gpu.remapped.rows"][3:] == (
        "no permission", "nvmlDeviceGetRemappedRows: Insufficient Permissions",
    )  # fmt: skip
    assert found[0, "gpu.performance.state"][3:] == ("failed", "nvmlDeviceGetPerformanceState: Timeout")
    assert found[1, "hardware.temperature memory"][3:] == ("not supported", "field 82: Not Supported")
    assert found[1, "gpu.fan.speed 0"].state == "supported"
    assert (nvml.initialized, nvml.event_sets, nvml.gpm_samples) == (0, 0, 0)


def test_a_survey_goes_on_past_a_gpu_that_is_lost(nvml):
    """Of a GPU that is lost, or that this process may not have, a survey says that alone."""
    nvml.set_gpus(4)
    nvml.gpu(0).lose()
    nvml.gpu(1).fail("nvmlDeviceGetHandleByIndex_v2", pynvml.NVML_ERROR_NO_PERMISSION)
    nvml.gpu(2).fail("nvmlDeviceGetUtilizationRates", pynvml.NVML_ERROR_GPU_IS_LOST)
    found = survey(pynvml)
    assert [(each.gpu, each.part, each.state) for each in found if each.gpu < 3] == [
        (0, "gpu", "lost"), (1, "gpu", "no permission"), (2, "gpu", "lost"),
    ]  # fmt: skip
    assert any(each.gpu == 3 and each.state == "supported" for each in found)


def test_the_formulas_are_what_they_say():
    """The examples in the docstrings hold."""
    for module in (driver,):
        tried = doctest.testmod(module)
        assert (tried.failed, tried.attempted > 0) == (0, True)
