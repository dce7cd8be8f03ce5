"""Which GPUs CUDA_VISIBLE_DEVICES leaves, by itself and through the source."""

from __future__ import annotations

import doctest
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_mlops import metrics as rows
from otel_mlops.sources.nvidia import visible
from otel_mlops.sources.nvidia.visible import Identity, UnknownOrder, leaves_none, visible_devices
from otel_mlops.sources.sampler import Absent
from tests.sources.gpus import opened

NAMES = ["GPU-11aa", "GPU-11bb", "GPU-22cc", "GPU-33dd"]
ALIKE = [Identity(index, uuid, "H100") for index, uuid in enumerate(NAMES)]
MIXED = [Identity(index, uuid, f"model {index // 2}") for index, uuid in enumerate(NAMES)]
FIRST = "GPU-00000000-0000-4000-8000-000000000000"
SECOND = "GPU-00000000-0000-4000-8000-000000000001"
INSTANCE = "MIG-00000000-0000-5000-8000-000000000000"
PARENTS = {"MIG-9": "GPU-22cc", "MIG-8": "GPU-22cc", "MIG-7": "GPU-99"}


def left(text: str | None, gpus: list[Identity] = ALIKE, order: str | None = None) -> list[int]:
    """The numbers of the GPUs that are left."""
    environ = {"CUDA_VISIBLE_DEVICES": text, "CUDA_DEVICE_ORDER": order}
    given = {name: value for name, value in environ.items() if value is not None}
    return [device.index for device in visible_devices(given, gpus, PARENTS.get)]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (None, [0, 1, 2, 3]),
        ("2", [2]),
        ("3,0", [3, 0]),
        (" 1 , 2 ", [1, 2]),
        ("0,1,4,2", [0, 1]),  # the list ends at the first that is not there
        ("0, 1, 2, -1, 3", [0, 1, 2]),
        ("2, +3, -0", [2, 3, 0]),
        ("1gpu2,2ampere", [1, 2]),
        ("one,two,3,4", []),
        ("3,2,two,one", [3, 2]),
        ("0, 1, 2, 1", []),  # one that is named twice leaves none
        ("0,9,9", []),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        (",0", []),
        ("9" * 5000, []),
        ("٣", []),  # digits to Python, not to CUDA
        ("GPU-22cc", [2]),
        ("GPU-3", [3]),
        ("GPU-33dd,GPU-11a", [3, 0]),
        ("GPU-11", []),  # the beginning of two
        ("GPU-22cc,GPU-nn,GPU-33dd", [2]),
        ("GPU-22cc,3", [2]),
        ("0,GPU-22cc", [0]),
        ("GPU-22cc,GPU-2", []),
        ("gpu-22cc", []),
        ("MIG-9", [2]),
        ("MIG-9,MIG-8", [2, 2]),
        ("MIG-9,MIG-9", []),
        ("MIG-7", []),
        ("MIG-1", []),
        ("MIG-9,GPU-33dd", [2]),
        ("MIG-GPU-33dd/1/0", [3]),
        ("MIG-GPU-3/1/0", []),
    ],
)
def test_the_list_is_read_as_cuda_reads_it(text, numbers):
    """Indices, beginnings of uuids and MIG instances are found, and the list ends where CUDA's does."""
    assert left(text) == numbers


def test_an_instance_is_told_with_the_gpu_that_it_is_on():
    """A MIG instance is a device of its own on the GPU that is its parent."""
    found = visible_devices({"CUDA_VISIBLE_DEVICES": "MIG-8"}, ALIKE, PARENTS.get)
    assert [(device.index, device.uuid, device.instance) for device in found] == [(2, "GPU-22cc", "MIG-8")]


def test_indices_of_unlike_gpus_are_known_by_their_order_alone():
    """CUDA counts the fastest GPU first: of several models an index means something in PCI order only."""
    with pytest.raises(UnknownOrder, match="CUDA_DEVICE_ORDER"):
        left("0", MIXED)
    with pytest.raises(UnknownOrder):
        left("0", MIXED, "FASTEST_FIRST")
    assert left("2,0", MIXED, "PCI_BUS_ID") == [2, 0]
    assert set(left("3,2,1,0", MIXED)) == {0, 1, 2, 3}
    assert left("-1", MIXED) == []
    assert left("9", MIXED) == []
    assert left("GPU-33dd", MIXED) == [3]


def test_an_index_counts_the_gpus_that_this_process_may_have():
    """Where the driver refuses some GPUs CUDA does not count them either."""
    assert left("1", [ALIKE[1], ALIKE[3]]) == [3]


@given(st.text(alphabet="0123,-+ GPUMIGabcd/x\u0663"), st.sampled_from([ALIKE, MIXED, []]))
def test_any_text_leaves_some_of_the_gpus(text, gpus):
    """Whatever the variable holds, each device is left at most once, and none where it begins with none."""
    try:
        found = visible_devices({"CUDA_VISIBLE_DEVICES": text}, gpus, PARENTS.get)
    except UnknownOrder:
        assert gpus is MIXED
        return
    assert len(set(found)) == len(found)
    assert {device.index for device in found} <= {gpu.index for gpu in gpus}
    if leaves_none({"CUDA_VISIBLE_DEVICES": text}):
        assert found == []


def test_the_examples_hold():
    """The examples in the docstrings hold."""
    assert doctest.testmod(visible).failed == 0


# --- Through the source -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "shown"),
    [
        ({}, {0, 1}),
        ({"CUDA_VISIBLE_DEVICES": SECOND}, {1}),
        ({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, {1}),
        ({"CUDA_VISIBLE_DEVICES": "1"}, {0, 1}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-7"}, set()),
    ],
)
def test_the_visible_gpus_are_shown_under_the_drivers_numbers(nvml, environ, shown):
    """The source reads the GPUs that are left, and calls them what the driver calls them."""
    with opened(nvml, gpus="visible", environ=environ) as machine:
        machine.read()
        assert {gpu for gpu in range(2) if machine.rows(gpu)} == shown
    with opened(nvml, gpus="all", environ=environ) as machine:
        machine.read()
        assert machine.rows(0)
        assert machine.rows(1)


def test_another_process_is_told_its_gpus(nvml):
    """What the source knows of all GPUs says which of them another process may use, by its own environment."""
    with opened(nvml, gpus="visible", environ={"CUDA_VISIBLE_DEVICES": FIRST}) as machine:
        assert machine.source.identities == []
        machine.read()
        assert [identity.uuid for identity in machine.source.identities] == [FIRST, SECOND]
        found = visible_devices({"CUDA_VISIBLE_DEVICES": SECOND}, machine.source.identities)
    assert [(device.index, device.uuid) for device in found] == [(1, SECOND)]


def test_why_others_are_shown_is_said_once(nvml, caplog):
    """That the order of the GPUs is not known, so that all are shown, is said in one line, also when opened again."""
    caplog.set_level(logging.INFO)
    with opened(nvml, gpus="visible", environ={"CUDA_VISIBLE_DEVICES": "0"}) as machine:
        machine.read()
        nvml.reload()
        machine.read(after=1.0)
    said = [record for record in caplog.records if "All GPUs are shown" in record.getMessage()]
    assert len(said) == 1
    assert said[0].levelno == logging.INFO


@pytest.mark.parametrize("text", ["", "-1", "none"])
def test_where_no_gpu_is_left_the_driver_is_not_touched(nvml, text):
    """A service that is told to use no GPU has none, and does not open the driver to find that out."""
    with opened(nvml, gpus="visible", environ={"CUDA_VISIBLE_DEVICES": text}) as machine:
        with pytest.raises(Absent, match="CUDA_VISIBLE_DEVICES"):
            machine.read()
        assert nvml.calls() == 0


def test_a_lost_gpu_is_found_by_what_it_was_called(nvml):
    """A GPU that is lost when the driver is opened again is still the one that its uuid names."""
    with opened(nvml, gpus="visible", environ={"CUDA_VISIBLE_DEVICES": SECOND}) as machine:
        machine.read()
        nvml.gpu(1).lose()
        machine.run(5)
        assert machine.up(1) == 0
        assert machine.rows(1) == {rows.GPU_UP}
        nvml.gpu(1).find()
        machine.run(10)
        assert machine.up(1) == 1
        assert not machine.rows(0)


def test_a_visible_instance_is_shown_with_its_gpu(nvml):
    """Where one MIG instance is visible its GPU is shown, and of the instances that one."""
    nvml.gpu(0).set("mig_mode", 1)
    with opened(nvml, gpus="visible", environ={"CUDA_VISIBLE_DEVICES": INSTANCE}) as machine:
        machine.read()
        instances = {dict(labels)["mig_uuid"] for row, labels in machine.seen if row is rows.GPU_MIG_INFO}
        assert instances == {INSTANCE}
        assert machine.up(0) == 1
        assert not machine.rows(1)
