"""The checks and measurements for a real GPU, run on the pretended one, so that they work where there is a real one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pynvml
import pytest

from otel_mlops.sources.nvidia import open_nvidia
from otel_mlops.sources.nvidia.driver import Driver
from tests.gpu import checks, measure, readings
from tests.gpu.hand import HOW_TO_GET_A_GPU, Hand, NoGpu, hand_of, real_hand
from tests.nvml.driver import TURING_TESLA, FakeDriver, FakeGpu

TIMED = (checks.cheap_calls_are_cheap, checks.inference_does_not_notice)
"""They hold of a driver's speed, of which the pretended one says nothing."""

IDLE = {
    "utilization": 0, "memory_utilization": 0, "gpm_sm": 0, "gpm_occupancy": 0, "gpm_tensor": 0, "gpm_dram": 0,
    "power_mw": 70_000,
}  # fmt: skip
BUSY = {
    "matmul": {"utilization": 100, "gpm_sm": 97, "gpm_tensor": 90, "gpm_dram": 40, "power_mw": 650_000},
    "copy": {"utilization": 100, "memory_utilization": 95, "gpm_sm": 99, "gpm_dram": 92, "power_mw": 450_000},
}


class PretendedLoads:
    """Loads that say themselves what the GPU does while they run."""

    name = "pretended"

    def __init__(self, gpu: FakeGpu):
        self._gpu = gpu
        self.busy = {kind: dict(numbers) for kind, numbers in BUSY.items()}
        self.memory_factor = 1.0

    def uuid(self) -> None:
        """Nothing computes."""

    @contextmanager
    def running(self, kind: str) -> Iterator[None]:
        before = {key: self._gpu.get(key) for key in self.busy[kind]}
        self._set(self.busy[kind])
        yield
        self._set(before)

    @contextmanager
    def allocated(self, size: int) -> Iterator[None]:
        before = self._gpu.get("memory_used")
        self._set({"memory_used": before + size * self.memory_factor})
        yield
        self._set({"memory_used": before})

    def prediction(self) -> Callable[[], None]:
        return lambda: None

    def _set(self, numbers: dict[str, float | None]) -> None:
        for key, value in numbers.items():
            self._gpu.set(key, value)


NUMBERS = {
    "utilization.gpu": ("utilization", 1),
    "utilization.encoder": ("encoder", 1),
    "utilization.decoder": ("decoder", 1),
    "memory.total": ("memory_total", 1024**-2),
    "memory.used": ("memory_used", 1024**-2),
    "memory.reserved": ("memory_reserved", 1024**-2),
    "temperature.gpu": ("temperature", 1),
    "temperature.memory": ("memory_temperature", 1),
    "power.draw": ("power_mw", 1e-3),
    "enforced.power.limit": ("power_limit_enforced_mw", 1e-3),
    "clocks.current.sm": ("clock_sm", 1),
    "clocks.max.sm": ("clock_max_sm", 1),
    "pstate": ("performance_state", 1),
    "fan.speed": ("fan_speed", 1),
    "pcie.link.width.current": ("pcie_width", 1),
    "ecc.errors.corrected.volatile.total": ("ecc_corrected_volatile", 1),
    "ecc.errors.uncorrected.aggregate.total": ("ecc_uncorrected_aggregate", 1),
}


def smi_of(gpu: FakeGpu) -> Callable[[Sequence[str]], list[str] | None]:
    """Answers as nvidia-smi would of the pretended GPU; a field that it knows not spoils the whole query."""

    def ask(fields: Sequence[str]) -> list[str] | None:
        if any(name not in NUMBERS for name in fields):
            return None
        texts = []
        for name in fields:
            key, factor = NUMBERS[name]
            value = gpu.get(key)
            texts.append("[N/A]" if value is None else f"{'P' * (name == 'pstate')}{value * factor:g}")
        return texts

    return ask


@pytest.fixture
def hand(nvml: FakeDriver) -> Iterator[Hand]:
    """An H100 on which nothing runs, with loads and an nvidia-smi."""
    nvml.set_gpus(1)
    driver = Driver(pynvml)
    driver.open()
    found = hand_of(driver, 0, lambda: nvml.clock_us / 1e6)
    found.wait = nvml.advance
    found.loads = PretendedLoads(nvml.gpu(0))
    found.smi = smi_of(nvml.gpu(0))
    for key, value in IDLE.items():
        nvml.gpu(0).set(key, value)
    yield found
    driver.close()


@pytest.mark.parametrize(
    "check",
    [check for check in (*checks.WITHOUT_LOADS, *checks.WITH_LOADS, checks.smi_agrees) if check not in TIMED],
    ids=lambda check: check.__name__,
)
def test_the_check_passes_where_all_is_well(hand: Hand, check: Callable[[Hand], None]):
    """On a pretended GPU that does what its loads say, each check for the real one passes."""
    check(hand)


def test_both_drivers_look_alike_to_the_check(hand: Hand):
    """The answers of a driver look like those of the same driver, and not like those that have other types."""
    alike = measure.shapes(hand)
    assert alike["nvmlDeviceGetName"] == "str"
    assert alike["nvmlDeviceGetSamples 0 0"] == ("tuple", "int", ("list", "c_nvmlSample_t"))
    checks.answers_look_alike(hand, alike)
    with pytest.raises(AssertionError, match="bytes"):
        checks.answers_look_alike(hand, alike | {"nvmlDeviceGetName": "bytes"})


def test_another_model_looks_alike_too(hand: Hand, nvml: FakeDriver):
    """A GPU of another generation answers with the same types what it supports."""
    hopper = measure.shapes(hand)
    nvml.gpu(0).become(TURING_TESLA)
    turing = measure.shapes(hand)
    assert {title for title in turing if str(turing[title]).startswith("?")} > {"nvmlGpmSampleGet"}
    checks.answers_look_alike(hand, hopper)


def twice_as_fast(hand: Hand) -> None:
    """Let our clock go twice as fast as the driver's."""
    clock = hand.clock
    hand.clock = lambda: 2 * clock()


WRONG: list[tuple[Callable[[Hand], None], Callable[[Hand, FakeGpu], None]]] = [
    (checks.nothing_is_out_of_range, lambda _, gpu: gpu.set("utilization", 101)),
    (checks.an_idle_gpu_is_idle, lambda _, gpu: gpu.set("utilization", 30)),
    (checks.an_idle_gpu_is_idle, lambda _, gpu: gpu.set("gpm_sm", 10)),
    (checks.energy_is_the_integral_of_the_power, lambda hand, _: twice_as_fast(hand)),
    (checks.samples_are_dense_enough, lambda _, gpu: gpu.set("utilization_samples", 5)),
    (checks.a_product_is_for_the_tensor_cores, lambda hand, _: hand.loads.busy["matmul"].update(gpm_tensor=5)),
    (checks.a_product_is_for_the_tensor_cores, lambda hand, _: hand.loads.busy["matmul"].update(utilization=50)),
    (checks.an_addition_is_for_the_memory, lambda hand, _: hand.loads.busy["copy"].update(gpm_dram=5)),
    (checks.an_addition_is_for_the_memory, lambda hand, _: hand.loads.busy["copy"].update(gpm_tensor=50)),
    (checks.busy_seconds_are_the_loads, lambda hand, _: hand.loads.busy["matmul"].update(utilization=90)),
    (checks.memory_used_rises_by_what_is_taken, lambda hand, _: setattr(hand.loads, "memory_factor", 1.05)),
]


@pytest.mark.parametrize(("check", "spoil"), WRONG)
def test_the_check_fails_where_something_is_wrong(
    hand: Hand,
    nvml: FakeDriver,
    check: Callable[[Hand], None],
    spoil: Callable[[Hand, FakeGpu], None],
):
    """On a pretended GPU whose values are not those of its loads the check fails."""
    spoil(hand, nvml.gpu(0))
    with pytest.raises(AssertionError):
        check(hand)


def test_a_value_unlike_nvidia_smis_is_found(hand: Hand):
    """A value that nvidia-smi has otherwise, or not at all, fails the comparison."""
    true = hand.smi
    assert true is not None
    for name, text in (("memory.total", "4096"), ("temperature.gpu", "[N/A]"), ("fan.speed", "30")):
        hand.smi = lambda fields, name=name, text=text: [text] if fields == [name] else true(fields)
        with pytest.raises(AssertionError, match=name):
            checks.smi_agrees(hand)


def test_each_call_of_the_source_is_measured(hand: Hand):
    """The functions that the source calls, from being opened to being closed, are those whose latency is measured."""
    called: set[str] = set()

    class Noting:
        def __getattr__(self, name: str):
            if name.startswith("nvmlDeviceGet"):
                called.add(name)
            return getattr(pynvml, name)

    source = open_nvidia(Noting(), gpus="all", clock=hand.clock, pids=lambda: {"0": 1})
    source()
    hand.wait(61)
    source()
    source.close()
    measured = {call.function for call in measure.asked(hand)}
    # Of MIG only what a GPU without it is asked.
    assert called - measured == set()
    assert len(called) > 20


def test_the_report_has_every_table(hand: Hand):
    """The report on a GPU with loads and nvidia-smi has no table without a line."""
    lines = "\n".join(readings.report(hand, seconds=1.0, turn_s=0.01)).splitlines()
    titles = [number for number, line in enumerate(lines) if line.startswith("## ")]
    assert len(titles) == 8
    assert "NVIDIA H100" in lines[0]
    for title in titles:
        assert lines[title + 3].startswith("|---|"), lines[title : title + 4]
        assert lines[title + 4].startswith("| "), lines[title : title + 5]
    assert not [line for line in lines if "**no**" in line or "Not measured" in line]
    [product] = [line for line in lines if line.startswith("| matmul | 100%")]
    assert "90.0%" in product


def test_the_report_says_what_it_needs(hand: Hand):
    """Without loads and nvidia-smi the report says how to get them, and has the other tables."""
    hand.loads = hand.smi = None
    text = "\n".join(readings.report(hand, seconds=1.0, turn_s=0.01))
    assert text.count("Not measured: ") == 2
    assert "install torch or cupy" in text
    assert "| idle | 0% | 0.0% |" in text


def test_the_script_runs(nvml: FakeDriver):
    """`python -m tests.gpu.readings` prints the report of the driver that is installed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.readings", "--seconds", "0.02"],
        env=nvml.environment(realtime=True) | {"PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("# NVIDIA H100 80GB HBM3, driver ")
    assert "## Energy" in done.stdout


def test_without_a_driver_it_says_how_to_get_one(nvml: FakeDriver):
    """Where no driver answers, or none has a GPU, the reason says how to get one."""
    nvml.fail("nvmlInitWithFlags", pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    with pytest.raises(NoGpu, match=HOW_TO_GET_A_GPU), real_hand():
        pass
    nvml.recover("nvmlInitWithFlags")
    nvml.set_gpus(0)
    with pytest.raises(NoGpu, match=HOW_TO_GET_A_GPU), real_hand():
        pass
    assert nvml.initialized == 0
