"""How busy the parts of a GPU are, through the real nvidia-ml-py on the pretended driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pynvml
import pytest

from otel_mlops.metrics import (
    GPU_DRAM_ACTIVITY,
    GPU_SM_ACTIVE,
    GPU_SM_ACTIVITY,
    GPU_SM_OCCUPANCY,
    GPU_TENSOR_ACTIVITY,
    Metric,
)
from otel_mlops.sources.nvidia.activity import Activity
from otel_mlops.sources.nvidia.driver import Driver, Gone, Gpu, Lost
from otel_mlops.sources.sampler import Sample, Sampler
from tests.nvml.driver import FakeDriver

RATIOS = (GPU_SM_ACTIVITY, GPU_SM_OCCUPANCY, GPU_TENSOR_ACTIVITY, GPU_DRAM_ACTIVITY)
HOPPER, TURING = 0, 1

Open = Callable[..., Activity]


class Altered:
    """pynvml with some functions replaced: what a driver may do that the pretended one does not."""

    def __init__(self, **functions: Callable[..., Any]) -> None:
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(pynvml, name)


def answering(metric: Metric, **answer: Any) -> Altered:
    """A driver that has another value or return code for one metric."""

    def metrics_get(asked: Any) -> Any:
        pynvml.nvmlGpmMetricsGet(asked)
        for field, value in answer.items():
            setattr(asked.metrics[RATIOS.index(metric)], field, value)
        return asked

    return Altered(nvmlGpmMetricsGet=metrics_get)


@pytest.fixture
def gpu_of(nvml: FakeDriver) -> Callable[..., Gpu]:
    """Gives a GPU of the driver, whose clock is the driver's."""
    pynvml.nvmlInit()

    def find(index: int = HOPPER, module: Any = pynvml) -> Gpu:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
        clock = lambda: nvml.clock_us / 1e6  # noqa: E731
        return Gpu(Driver(module), handle, index=index, uuid=uuid, name=name, driver_version=(580, 95, 5), clock=clock)

    return find


@pytest.fixture
def opened(nvml: FakeDriver, gpu_of: Callable[..., Gpu]) -> Iterator[Callable[[Gpu], Activity]]:
    """Opens the activity of GPUs, by the driver's clock; all of it is closed after the test."""
    activities: list[Activity] = []

    def open_one(gpu: Gpu) -> Activity:
        activities.append(Activity(gpu, lambda: nvml.clock_us / 1e6))
        return activities[-1]

    yield open_one
    for activity in activities:
        activity.close()
    assert nvml.gpm_samples == 0


def values(samples: Iterable[Sample]) -> dict[Metric, float]:
    """The values by their row, each of which is there once."""
    listed = list(samples)
    found = {sample.metric: sample.value for sample in listed}
    assert len(found) == len(listed)
    return found


def test_the_first_reading_has_nothing_to_tell_but_that_counting_begins(nvml, gpu_of, opened):
    """The first reading gives the increase of 0 alone, with the labels of the GPU."""
    labels = {"gpu_id": "0", "gpu_name": "NVIDIA H100 80GB HBM3"}
    assert list(opened(gpu_of()).read()) == [Sample(GPU_SM_ACTIVE, 0.0, labels)]


def test_the_ratios_are_means_since_the_last_reading(nvml, gpu_of, opened):
    """What varied between two readings is shown as its mean, and the busy seconds as their sum."""
    activity, gpu = opened(gpu_of()), nvml.gpu(HOPPER)
    activity.read()
    for busy_percent, seconds in ((100, 2), (0, 3)):
        gpu.set("gpm_sm", busy_percent)
        nvml.advance(seconds)
    assert values(activity.read()) == {
        GPU_SM_ACTIVITY: pytest.approx(0.4),
        GPU_SM_ACTIVE: pytest.approx(2.0),
        GPU_SM_OCCUPANCY: pytest.approx(0.3325),
        GPU_TENSOR_ACTIVITY: pytest.approx(0.215),
        GPU_DRAM_ACTIVITY: pytest.approx(0.3075),
    }


def test_the_busy_seconds_add_up_whenever_they_are_read(nvml, gpu_of, opened):
    """The increases of readings at uneven times add up to the integral of the activity."""
    activity, gpu = opened(gpu_of()), nvml.gpu(HOPPER)
    counted = values(activity.read())[GPU_SM_ACTIVE]
    integral = 0.0
    for seconds, busy_percent in ((5.0, 10), (0.3, 90), (61.7, 55), (1.1, 0), (4.9, 100)):
        gpu.set("gpm_sm", busy_percent)
        nvml.advance(seconds)
        integral += seconds * busy_percent / 100
        counted += values(activity.read())[GPU_SM_ACTIVE]
    assert counted == pytest.approx(integral, rel=1e-9)


def test_readings_close_to_each_other_say_the_same(nvml, gpu_of, opened):
    """Within 100 ms the driver is not asked again: the ratios stand and nothing is added."""
    activity = opened(gpu_of())
    activity.read()
    nvml.advance(5)
    before = values(activity.read())
    asked = nvml.calls()
    nvml.advance(0.09)
    assert values(activity.read()) == before | {GPU_SM_ACTIVE: 0.0}
    assert nvml.calls() == asked
    nvml.advance(0.02)
    assert values(activity.read())[GPU_SM_ACTIVE] == pytest.approx(0.11 * 0.555)


def test_two_samples_serve_all_readings_and_are_freed(nvml, gpu_of, opened):
    """Support is asked for once, two samples are allocated once, and closing, however often, frees them once."""
    activity = opened(gpu_of())
    for _ in range(20):
        activity.read()
        nvml.advance(5)
    assert [nvml.calls(f"nvmlGpm{what}") for what in ("QueryDeviceSupport", "SampleAlloc")] == [1, 2]
    assert [nvml.calls(f"nvmlGpm{what}") for what in ("SampleGet", "MetricsGet")] == [20, 19]
    activity.close()
    activity.close()
    assert (nvml.gpm_samples, nvml.calls("nvmlGpmSampleFree")) == (0, 2)


def test_a_closed_activity_begins_anew(nvml, gpu_of, opened):
    """What is read after closing counts nothing of the time before."""
    activity = opened(gpu_of())
    for _ in range(2):
        activity.read()
        nvml.advance(5)
    activity.close()
    assert values(activity.read()) == {GPU_SM_ACTIVE: 0.0}


@pytest.mark.parametrize("alone", RATIOS[1:], ids=lambda row: row.name)
def test_one_metric_that_is_not_supported_leaves_the_others(nvml, gpu_of, opened, alone):
    """A GPU without tensor cores, say, shows the activity of all else."""
    keys = dict(zip(RATIOS, ("gpm_sm", "gpm_occupancy", "gpm_tensor", "gpm_dram"), strict=True))
    nvml.gpu(HOPPER).set(keys[alone], None)
    gpu = gpu_of()
    activity = opened(gpu)
    activity.read()
    nvml.advance(5)
    assert values(activity.read()).keys() == {*RATIOS, GPU_SM_ACTIVE} - {alone}
    assert (list(gpu.unsupported), gpu.faults) == ([alone.name], {})


@pytest.mark.parametrize("percent", [9.2e18, float("inf"), float("nan"), 101.5, -0.5])
def test_a_value_that_makes_no_sense_is_left_out(nvml, gpu_of, opened, caplog, percent):
    """A value out of range is absent, counted as a fault and said once, and the others stay."""
    module = answering(GPU_SM_ACTIVITY, value=percent)
    gpu = gpu_of(module=module)
    activity = opened(gpu)
    activity.read()
    for _ in range(3):
        nvml.advance(5)
        assert values(activity.read()).keys() == set(RATIOS) - {GPU_SM_ACTIVITY}
    assert sum(gpu.faults.values()) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    del module.nvmlGpmMetricsGet
    nvml.advance(5)
    assert values(activity.read())[GPU_SM_ACTIVITY] == pytest.approx(0.555)


def test_a_full_unit_is_not_more_than_full(nvml, gpu_of, opened):
    """A hair above 100 percent is 1: the counters of a sample are not read at one instant."""
    activity = opened(gpu_of())
    nvml.gpu(HOPPER).set("gpm_sm", 100.4)
    activity.read()
    nvml.advance(5)
    assert values(activity.read())[GPU_SM_ACTIVITY] == 1.0


def test_an_older_gpu_has_no_activity(nvml, gpu_of, opened):
    """A GPU without GPM gives nothing and costs no sample, and is asked again after five minutes only."""
    gpu = gpu_of(TURING)
    activity = opened(gpu)
    for _ in range(10):
        assert list(activity.read()) == []
        nvml.advance(5)
    assert nvml.calls("nvmlGpmQueryDeviceSupport") == 1
    assert (nvml.gpm_samples, nvml.calls("nvmlGpmSampleAlloc"), gpu.faults) == (0, 0, {})
    nvml.advance(300)
    activity.read()
    assert nvml.calls("nvmlGpmQueryDeviceSupport") == 2


def test_an_old_driver_without_gpm_has_no_activity(nvml, gpu_of, opened):
    """A function that the driver lacks is no fault."""
    nvml.fail("nvmlGpmQueryDeviceSupport", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    gpu = gpu_of()
    assert list(opened(gpu).read()) == []
    assert gpu.faults == {}


def test_without_permission_the_activity_is_absent(nvml, gpu_of, opened):
    """NO_PERMISSION is absence, no fault, and is tried again after five minutes."""
    gpu = gpu_of()
    activity = opened(gpu)
    nvml.fail("nvmlGpmSampleGet", pynvml.NVML_ERROR_NO_PERMISSION)
    for _ in range(3):
        assert list(activity.read()) == []
        nvml.advance(5)
    assert (nvml.calls("nvmlGpmSampleGet"), gpu.faults) == (1, {})
    nvml.recover("nvmlGpmSampleGet")
    nvml.advance(300)
    assert values(activity.read()) == {GPU_SM_ACTIVE: 0.0}
    assert nvml.gpm_samples == 2


def test_a_sample_that_could_not_be_taken_costs_no_busy_time(nvml, gpu_of, opened):
    """While taking samples fails there are no ratios, and the next that succeeds counts the whole time since."""
    gpu = gpu_of()
    activity = opened(gpu)
    activity.read()
    nvml.fail("nvmlGpmSampleGet", pynvml.NVML_ERROR_TIMEOUT)
    for _ in range(2):
        nvml.advance(5)
        assert list(activity.read()) == []
    assert gpu.faults == {"timeout": 2}
    nvml.recover("nvmlGpmSampleGet")
    nvml.advance(5)
    assert values(activity.read())[GPU_SM_ACTIVE] == pytest.approx(15 * 0.555)


def test_samples_that_cannot_be_compared_are_not_kept(nvml, gpu_of, opened):
    """A pair of samples that the driver refuses is given up with what was known before, and the next is shown."""
    gpu = gpu_of()
    activity = opened(gpu)
    for _ in range(2):
        activity.read()
        nvml.advance(5)
    nvml.fail("nvmlGpmMetricsGet", pynvml.NVML_ERROR_INVALID_ARGUMENT)
    assert list(activity.read()) == []
    nvml.recover("nvmlGpmMetricsGet")
    assert values(activity.read()) == {GPU_SM_ACTIVE: 0.0}
    nvml.advance(5)
    assert values(activity.read())[GPU_SM_ACTIVE] == pytest.approx(5 * 0.555)
    assert gpu.faults == {"invalid_argument": 1}


def test_samples_that_cannot_be_had_are_asked_for_again(nvml, gpu_of, opened):
    """A driver short of memory gives the samples later, and two of them all the same."""
    activity = opened(gpu_of())
    nvml.fail("nvmlGpmSampleAlloc", pynvml.NVML_ERROR_MEMORY)
    assert list(activity.read()) == []
    nvml.recover("nvmlGpmSampleAlloc")
    assert values(activity.read()) == {GPU_SM_ACTIVE: 0.0}
    assert nvml.gpm_samples == 2


def test_a_lost_gpu_keeps_no_samples(nvml, gpu_of, opened):
    """A GPU that is lost is said to be, its samples are freed at once, and once it is back it begins anew."""
    activity, gpu = opened(gpu_of()), nvml.gpu(HOPPER)
    activity.read()
    gpu.lose()
    nvml.advance(5)
    with pytest.raises(Lost):
        activity.read()
    assert nvml.gpm_samples == 0
    gpu.find()
    assert values(activity.read()) == {GPU_SM_ACTIVE: 0.0}


def test_a_driver_that_is_gone_is_not_called(nvml, gpu_of, opened):
    """After a reading found the driver gone, closing calls nothing."""
    activity = opened(gpu_of())
    activity.read()
    nvml.advance(5)
    nvml.reload()
    with pytest.raises(Gone):
        activity.read()
    activity.close()
    assert nvml.calls("nvmlGpmSampleFree") == 0


def test_closing_finds_the_driver_gone_and_leaves_it(nvml, gpu_of, opened):
    """If the driver went since the last reading, closing learns it from its first call and makes no second."""
    activity = opened(gpu_of())
    activity.read()
    nvml.reload()
    activity.close()
    assert nvml.calls("nvmlGpmSampleFree") == 1


def test_a_sample_that_cannot_be_freed_does_not_keep_the_other(nvml, gpu_of, opened):
    """Closing tries to free both samples, and raises nothing."""
    activity = opened(gpu_of())
    activity.read()
    nvml.fail("nvmlGpmSampleFree", pynvml.NVML_ERROR_UNKNOWN)
    activity.close()
    assert nvml.calls("nvmlGpmSampleFree") == 2
    nvml.reload()  # the driver takes what is left


def test_one_metric_that_fails_is_a_fault_and_leaves_the_others(nvml, gpu_of, opened):
    """A metric has a return code of its own, which is respected and counted."""
    gpu = gpu_of(module=answering(GPU_TENSOR_ACTIVITY, nvmlReturn=pynvml.NVML_ERROR_UNKNOWN))
    activity = opened(gpu)
    activity.read()
    nvml.advance(5)
    assert values(activity.read()).keys() == {*RATIOS, GPU_SM_ACTIVE} - {GPU_TENSOR_ACTIVITY}
    assert gpu.faults == {"unknown": 1}


def test_a_metric_may_tell_that_the_gpu_is_lost(nvml, gpu_of, opened):
    """The return code of a metric can say that the whole GPU is lost."""
    activity = opened(gpu_of(module=answering(GPU_SM_OCCUPANCY, nvmlReturn=pynvml.NVML_ERROR_GPU_IS_LOST)))
    activity.read()
    nvml.advance(5)
    with pytest.raises(Lost):
        activity.read()


def test_what_the_driver_does_not_answer_is_absent(nvml, gpu_of, opened):
    """A call that succeeds and fills nothing in is not taken for the last answer, nor for 0."""
    silent = Altered()
    activity = opened(gpu_of(module=silent))
    activity.read()
    nvml.advance(5)
    assert values(activity.read()).keys() == {*RATIOS, GPU_SM_ACTIVE}
    silent.nvmlGpmMetricsGet = lambda asked: asked
    nvml.advance(5)
    assert list(activity.read()) == []


def test_every_sample_of_the_activity_can_be_shown(nvml, gpu_of, opened):
    """What is read is declared, finite, in range and without duplicates, and the counter is counted."""
    activity = opened(gpu_of())
    dropped: list[str] = []
    counted: list[tuple[Metric, float, object]] = []
    sampler = Sampler(
        {"gpu": activity.read}, 5.0, count=lambda *increase: counted.append(increase), on_dropped=dropped.append
    )
    for _ in range(3):
        sampler.sample()
        nvml.advance(5)
    assert dropped == []
    assert [value for _, value, _ in counted] == [0.0, pytest.approx(2.775), pytest.approx(2.775)]
    for row in RATIOS:
        (shown,) = sampler.observe(row)(None)
        assert 0 <= shown.value <= 1
