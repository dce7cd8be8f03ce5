"""The MIG instances of a GPU, through the real nvidia-ml-py on the pretended driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pynvml
import pytest

from otel_mlops.metrics import (
    GPU_MIG_INFO,
    GPU_MIG_MEMORY_TOTAL,
    GPU_MIG_MEMORY_USED,
    GPU_MIG_SM_ACTIVITY,
    MIG,
    Metric,
)
from otel_mlops.sources.nvidia.driver import Driver, Gone, Gpu, Lost
from otel_mlops.sources.nvidia.mig import Instances
from otel_mlops.sources.sampler import Sample, Sampler
from tests.nvml.driver import TURING, FakeDriver

GIB = 2**30
NAME = "NVIDIA H100 80GB HBM3"
LARGE, SMALL, OTHER = (f"MIG-00000000-0000-5000-8000-00000000000{index}" for index in (0, 1, 3))
"""A 3g.40gb and two 1g.10gb; the device with index 2 is not there."""


class Noting:
    """pynvml, and what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return getattr(pynvml, name)


@pytest.fixture
def gpu(nvml: FakeDriver) -> Gpu:
    """An H100 on which MIG is on, whose clock is the driver's."""
    pynvml.nvmlInit()
    nvml.gpu(0).set("mig_mode", 1)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    uuid = pynvml.nvmlDeviceGetUUID(handle)
    clock = lambda: nvml.clock_us / 1e6  # noqa: E731
    return Gpu(Driver(pynvml), handle, index=0, uuid=uuid, name=NAME, driver_version=(580, 95, 5), clock=clock)


@pytest.fixture
def opened(nvml: FakeDriver, gpu: Gpu) -> Iterator[Callable[..., Instances]]:
    """Opens the instances of the GPU, by the driver's clock; they are closed after the test."""
    all_of_them: list[Instances] = []

    def open_one(**arguments: Any) -> Instances:
        all_of_them.append(Instances(gpu, lambda: nvml.clock_us / 1e6, **arguments))
        return all_of_them[-1]

    yield open_one
    for instances in all_of_them:
        instances.close()
    assert nvml.gpm_samples == 0


def values(samples: Iterable[Sample], row: Metric) -> dict[str, float]:
    """The values of a row by the instance."""
    return {sample.attributes["mig_uuid"]: sample.value for sample in samples if sample.metric is row}


def uuids(samples: Iterable[Sample]) -> set[str]:
    """The instances that are shown."""
    return {sample.attributes["mig_uuid"] for sample in samples}


def test_each_instance_is_described(opened):
    """Each instance has its uuid, its profile and its ids beside the labels of its GPU; indexes may have gaps."""
    infos = [sample.attributes for sample in opened().read() if sample.metric is GPU_MIG_INFO]
    parent = {"gpu_id": "0", "gpu_name": NAME}
    large = {"profile": "3g.40gb", "gpu_instance_id": "2", "compute_instance_id": "0"}
    small = {"profile": "1g.10gb", "compute_instance_id": "0"}
    assert infos == [
        {**parent, "mig_uuid": LARGE, **large},
        {**parent, "mig_uuid": SMALL, **small, "gpu_instance_id": "7"},
        {**parent, "mig_uuid": OTHER, **small, "gpu_instance_id": "9"},
    ]


def test_the_memory_is_each_instances_own(nvml, opened):
    """Used and total are those of the instance, and what the driver reserves is not counted as used."""
    nvml.gpu(0).mig(1).set("memory_used", 3 * GIB)
    samples = opened().read()
    assert values(samples, GPU_MIG_MEMORY_USED) == {LARGE: 39.5 * GIB / 4, SMALL: 3 * GIB, OTHER: 9.75 * GIB / 4}
    assert values(samples, GPU_MIG_MEMORY_TOTAL) == {LARGE: 39.5 * GIB, SMALL: 9.75 * GIB, OTHER: 9.75 * GIB}
    assert nvml.calls("nvmlDeviceGetMemoryInfo") == 0


def test_the_activity_is_the_mean_since_the_last_reading(nvml, opened):
    """Each instance has an activity of its own from the second reading on."""
    instances = opened()
    assert values(instances.read(), GPU_MIG_SM_ACTIVITY) == {}
    for percent, seconds in ((100, 2), (0, 3)):
        nvml.gpu(0).mig(1).set("gpm_sm", percent)
        nvml.advance(seconds)
    activity = values(instances.read(), GPU_MIG_SM_ACTIVITY)
    assert activity == {LARGE: pytest.approx(0.2775), SMALL: pytest.approx(0.4), OTHER: pytest.approx(0.2775)}


def test_no_row_is_also_the_parents(nvml, opened):
    """Instances stand under names of their own, so that no sum counts anything twice."""
    instances = opened()
    instances.read()
    nvml.advance(5)
    assert {sample.metric for sample in instances.read()} == set(MIG)


@pytest.mark.parametrize("mode", [0, None])
def test_without_mig_there_are_no_instances(nvml, opened, gpu, mode):
    """Where MIG is off it is asked for once a minute, where there is none every five, and nothing else is."""
    nvml.gpu(0).set("mig_mode", mode)
    instances = opened()
    before = nvml.calls()
    for _ in range(24):
        assert list(instances.read()) == []
        nvml.advance(5)
    assert nvml.calls() - before == (1 if mode is None else 2)
    assert (nvml.gpm_samples, gpu.faults) == (0, {})
    nvml.gpu(0).set("mig_mode", 1)
    nvml.advance(300)
    assert uuids(instances.read()) == {LARGE, SMALL, OTHER}


def test_a_gpu_that_cannot_have_instances_has_none(nvml, opened, gpu):
    """An older GPU is no fault."""
    nvml.gpu(0).become(TURING)
    assert list(opened().read()) == []
    assert gpu.faults == {}


def test_only_visible_instances_are_shown(nvml, opened):
    """What CUDA_VISIBLE_DEVICES leaves out is neither shown nor read."""
    instances = opened(visible={SMALL})
    instances.read()
    nvml.advance(5)
    samples = instances.read()
    assert uuids(samples) == {SMALL}
    assert {sample.metric for sample in samples} == set(MIG)
    assert nvml.calls("nvmlDeviceGetMemoryInfo_v2") == 2
    assert list(opened(visible=set()).read()) == []


def test_the_list_is_made_once_a_minute(nvml, opened):
    """Readings in between ask each instance for its uuid alone, and a new one is found within a minute."""
    instances = opened()
    for _ in range(12):
        instances.read()
        nvml.advance(5)
    assert nvml.calls("nvmlDeviceGetMigDeviceHandleByIndex") == 7
    assert nvml.calls("nvmlDeviceGetUUID") == 1 + 3 * 12
    nvml.gpu(0).mig(2).set_text("uuid", "MIG-new")
    nvml.gpu(0).mig(2).set_text("name", f"{NAME} MIG 1g.10gb+me")
    nvml.gpu(0).mig(2).set("gpu_instance", 8)
    nvml.gpu(0).mig(2).set("compute_instance", 0)
    new = [sample.attributes for sample in instances.read() if sample.attributes["mig_uuid"] == "MIG-new"]
    assert {attributes["profile"] for attributes in new} == {"1g.10gb+me"}


def test_a_destroyed_instance_leaves_at_once(nvml, opened, gpu):
    """At the next reading its series and its samples are gone, and it was no fault."""
    instances = opened()
    instances.read()
    nvml.advance(5)
    instances.read()
    nvml.gpu(0).mig(1).set("gpu_instance", None)
    nvml.advance(5)
    samples = instances.read()
    assert uuids(samples) == {LARGE, OTHER}
    assert values(samples, GPU_MIG_SM_ACTIVITY).keys() == {LARGE, OTHER}
    assert (nvml.gpm_samples, gpu.faults) == (4, {})


def test_an_instance_made_anew_in_its_place_is_another(nvml, opened):
    """A new instance behind an old handle is shown as itself, and what was counted before it is not its own."""
    instances = opened()
    instances.read()
    nvml.advance(5)
    nvml.gpu(0).mig(1).set_text("uuid", "MIG-new")
    samples = instances.read()
    assert uuids(samples) == {LARGE, "MIG-new", OTHER}
    assert values(samples, GPU_MIG_SM_ACTIVITY).keys() == {LARGE, OTHER}
    nvml.advance(5)
    assert values(instances.read(), GPU_MIG_SM_ACTIVITY).keys() == {LARGE, "MIG-new", OTHER}
    assert nvml.gpm_samples == 6


def test_mig_can_be_turned_off_and_on(nvml, opened, gpu):
    """When MIG is turned off all instances are gone at the next reading."""
    instances = opened()
    instances.read()
    nvml.gpu(0).set("mig_mode", 0)
    nvml.advance(5)
    assert list(instances.read()) == []
    assert (nvml.gpm_samples, gpu.faults) == (0, {})
    nvml.gpu(0).set("mig_mode", 1)
    nvml.advance(60)
    assert uuids(instances.read()) == {LARGE, SMALL, OTHER}


def test_compute_instances_share_their_gpu_instance(nvml, opened):
    """Two compute instances on one GPU instance are told apart, and their one activity is sampled once."""
    nvml.gpu(0).mig(3).set("gpu_instance", 7)
    nvml.gpu(0).mig(3).set("compute_instance", 1)
    instances = opened()
    instances.read()
    nvml.advance(5)
    assert values(instances.read(), GPU_MIG_SM_ACTIVITY) == dict.fromkeys((LARGE, SMALL, OTHER), pytest.approx(0.2775))
    assert nvml.gpm_samples == 4
    nvml.gpu(0).mig(1).set("gpu_instance", None)
    instances.read()
    assert nvml.gpm_samples == 4


@pytest.mark.parametrize(
    ("slices", "compute", "gib", "profile"),
    [(1, 1, 9.75, "1g.10gb"), (3, 3, 39.5, "3g.40gb"), (3, 1, 19.5, "1c.3g.20gb"), (7, 7, 39.25, "7g.40gb")],
)
def test_an_old_drivers_name_has_no_profile(nvml, opened, slices, compute, gib, profile):
    """Where the name does not tell the profile, the slices and the memory do."""
    mig = nvml.gpu(0).mig(0)
    mig.set_text("name", NAME)
    mig.set("gpu_slices", slices)
    mig.set("compute_slices", compute)
    mig.set("memory_total", gib * GIB)
    assert opened(visible={LARGE}).read()[0].attributes["profile"] == profile


def test_an_older_gpu_has_instances_without_activity(nvml, opened, gpu):
    """An A100 has no GPM: its instances have all but the activity, and it is asked for GPM once."""
    nvml.gpu(0).set("gpm_sm", None)
    instances = opened()
    for _ in range(3):
        assert {sample.metric for sample in instances.read()} == set(MIG) - {GPU_MIG_SM_ACTIVITY}
        nvml.advance(5)
    assert (nvml.calls("nvmlGpmQueryDeviceSupport"), nvml.gpm_samples, gpu.faults) == (1, 0, {})


def test_without_permission_the_activity_is_absent(nvml, opened, gpu):
    """NO_PERMISSION is absence, no fault, and leaves the memory."""
    nvml.fail("nvmlGpmMigSampleGet", pynvml.NVML_ERROR_NO_PERMISSION)
    instances = opened()
    for _ in range(3):
        assert {sample.metric for sample in instances.read()} == set(MIG) - {GPU_MIG_SM_ACTIVITY}
        nvml.advance(5)
    assert (nvml.calls("nvmlGpmMigSampleGet"), gpu.faults) == (3, {})


def test_the_memory_is_read_before_the_activity(nvml, opened, gpu):
    """All memory is read before the first sample is taken, as sampling disturbs some drivers."""
    gpu.driver.nvml = noting = Noting()
    opened().read()
    memory = [place for place, name in enumerate(noting.asked) if name == "nvmlDeviceGetMemoryInfo"]
    samples = [place for place, name in enumerate(noting.asked) if name.startswith("nvmlGpm")]
    assert len(memory) == 3
    assert max(memory) < min(samples)


def test_memory_that_cannot_be_read_leaves_the_rest(nvml, opened, gpu, caplog):
    """A fault is counted and said once per instance, and everything else is shown."""
    nvml.fail("nvmlDeviceGetMemoryInfo_v2", pynvml.NVML_ERROR_UNKNOWN)
    instances = opened()
    for _ in range(2):
        samples = instances.read()
        nvml.advance(5)
    assert {sample.metric for sample in samples} == {GPU_MIG_INFO, GPU_MIG_SM_ACTIVITY}
    assert (gpu.faults, len(caplog.records)) == ({"unknown": 6}, 3)
    nvml.clear_faults()
    assert len(values(instances.read(), GPU_MIG_MEMORY_USED)) == 3


def test_a_list_that_cannot_be_made_is_tried_again_at_the_next_reading(nvml, opened, gpu):
    """A failing call shows as a fault and not as a minute without instances."""
    instances = opened()
    nvml.fail("nvmlDeviceGetMigMode", pynvml.NVML_ERROR_UNKNOWN)
    assert list(instances.read()) == []
    nvml.clear_faults()
    nvml.fail("nvmlDeviceGetGpuInstanceId", pynvml.NVML_ERROR_TIMEOUT)
    assert list(instances.read()) == []
    assert gpu.faults == {"unknown": 1, "timeout": 3}
    nvml.clear_faults()
    assert uuids(instances.read()) == {LARGE, SMALL, OTHER}


def test_an_instance_that_this_process_may_not_see_is_none(nvml, opened, gpu):
    """NO_PERMISSION for a handle is a gap, and is not asked for again for five minutes."""
    nvml.fail("nvmlDeviceGetMigDeviceHandleByIndex", pynvml.NVML_ERROR_NO_PERMISSION)
    instances = opened()
    for _ in range(24):
        assert list(instances.read()) == []
        nvml.advance(5)
    assert (nvml.calls("nvmlDeviceGetMigDeviceHandleByIndex"), gpu.faults) == (7, {})


def test_a_lost_gpu_keeps_nothing(nvml, opened):
    """A GPU that is lost is said to be, its samples are freed at once, and its instances come back with it."""
    instances = opened()
    instances.read()
    nvml.gpu(0).lose()
    with pytest.raises(Lost):
        instances.read()
    assert nvml.gpm_samples == 0
    nvml.gpu(0).find()
    samples = instances.read()
    assert uuids(samples) == {LARGE, SMALL, OTHER}
    assert values(samples, GPU_MIG_SM_ACTIVITY) == {}


def test_a_driver_that_is_gone_is_not_called(nvml, opened):
    """After a reading found the driver gone, closing calls nothing."""
    instances = opened()
    instances.read()
    nvml.reload()
    with pytest.raises(Gone):
        instances.read()
    instances.close()
    assert nvml.calls("nvmlGpmSampleFree") == 0


def test_no_handle_outlives_closing(nvml, opened):
    """After closing and opening the driver again the instances are listed anew."""
    instances = opened()
    instances.read()
    instances.close()
    listed = nvml.calls("nvmlDeviceGetMigMode")
    assert uuids(instances.read()) == {LARGE, SMALL, OTHER}
    assert nvml.calls("nvmlDeviceGetMigMode") == listed + 1


def test_instances_that_come_and_go_leave_nothing_behind(nvml, opened, gpu):
    """A thousand re-creations cost no samples and no memory of them."""
    instances = opened()
    for number in range(1000):
        nvml.gpu(0).mig(1).set_text("uuid", f"MIG-{number}")
        instances.read()
        nvml.advance(5)
    assert nvml.gpm_samples == 6
    assert len(gpu.states) < 30
    instances.close()
    assert nvml.gpm_samples == 0


def test_every_sample_of_the_instances_can_be_shown(nvml, opened):
    """What is read is declared, finite, in range and without duplicates."""
    instances = opened()
    dropped: list[str] = []
    sampler = Sampler({"gpu": instances.read}, 5.0, on_dropped=dropped.append)
    for _ in range(2):
        sampler.sample()
        nvml.advance(5)
    assert dropped == []
    for row in MIG:
        assert len(list(sampler.observe(row)(None))) == 3
