"""AMD's GPUs over a pretended amdsmi, and that one beside the real package."""

from __future__ import annotations

import ast
import doctest
import inspect
import logging
import math
import os
import re
import subprocess
import sys
from ctypes.util import find_library
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from otel_mlops import metrics as rows
from otel_mlops.doctor.sources import check_amd
from otel_mlops.leading import open_sources
from otel_mlops.settings import Settings
from otel_mlops.sources import amd
from otel_mlops.sources.amd import load_amdsmi, visible
from otel_mlops.sources.sampler import Absent
from tests.sources.amd import (
    CONSUMER,
    DATACENTRE,
    ENUMERATIONS,
    STATUS,
    AmdSmiLibraryException,
    FakeAmdSmi,
    Gpu,
    Machine,
    series,
    up,
)

SOURCE_LOG = "otel_mlops.sources.amd"
FAILED = "amdsmi_get_gpu_activity"


@pytest.fixture
def machine() -> Machine:
    """A machine with an MI300X and an RX 7900 XTX."""
    return Machine()


def component(name: str) -> tuple[rows.Metric, frozenset[tuple[str, str]]]:
    """The temperature of a component."""
    return rows.HARDWARE_TEMPERATURE, frozenset({("component", name)})


# --- Values ---------------------------------------------------------------------------------------------------


def test_a_gpu_of_a_data_centre_is_read(machine: Machine):
    """Every value of an MI300X is there in the row's unit, and nothing else."""
    seen = machine.read()
    own = {
        one: value
        for one, value in seen.items()
        if ("gpu_id", "0") in one[1] or dict(one[1]).get("component", "").startswith("amd0/")
    }
    assert own == pytest.approx(
        {
            series(rows.GPU_UP): 1,
            series(rows.GPU_UTILIZATION): 73,
            series(rows.GPU_MEMORY_TOTAL): 206141652992,
            series(rows.GPU_MEMORY_USED): 100000000000,
            series(rows.GPU_MEMORY_FREE): 106141652992,
            series(rows.GPU_TEMPERATURE): 61,
            component("amd0/hotspot"): 61,
            component("amd0/memory"): 44,
            series(rows.GPU_POWER_USAGE): 412,
            series(rows.GPU_POWER_LIMIT): 750,
            series(rows.GPU_ENERGY): 15259,
            series(rows.GPU_CLOCK_FREQUENCY, clock="graphics"): 2.1e9,
            series(rows.GPU_CLOCK_MAX_FREQUENCY, clock="graphics"): 2.1e9,
            series(rows.GPU_CLOCK_FREQUENCY, clock="memory"): 1.3e9,
            series(rows.GPU_CLOCK_MAX_FREQUENCY, clock="memory"): 1.3e9,
            series(rows.GPU_CLOCK_FREQUENCY, clock="video"): 2.9e7,
            series(rows.GPU_CLOCK_MAX_FREQUENCY, clock="video"): 1.333e9,
            series(rows.GPU_PCIE_LINK_WIDTH): 16,
            series(rows.GPU_PCIE_LINK_WIDTH_MAX): 16,
            series(rows.GPU_PCIE_LINK_GENERATION): 5,
            series(rows.GPU_PCIE_LINK_GENERATION_MAX): 5,
            series(rows.GPU_PCIE_REPLAYS): 3,
            series(rows.GPU_ECC_ERRORS, type="corrected", counter="volatile"): 5,
            series(rows.GPU_ECC_ERRORS, type="uncorrected", counter="volatile"): 1,
            series(
                rows.GPU_INFO, gpu_uuid="00ff74a1-0000-1000-80f9-bf48de9ab2d2", pci_bus_id="0000:01:00.0",
                architecture="gfx942", serial="0x7B39FD81F59F6F20", driver_version="6.14.14",
            ): 1,
            series(rows.GPU_READ_ERRORS, error="timeout"): 0,
            series(rows.GPU_READ_ERRORS, error="unknown_error"): 0,
        }
    )  # fmt: skip


def test_a_consumers_gpu_is_read(machine: Machine):
    """What an RX 7900 XTX has otherwise is there, and what it does not have is absent, not 0."""
    seen = machine.read()
    assert seen[series(rows.GPU_TEMPERATURE, 1)] == seen[component("amd1/hotspot")] == 55
    assert seen[component("amd1/edge")] == 47
    assert component("amd1/memory") not in seen
    assert seen[series(rows.GPU_POWER_USAGE, 1)] == 38
    assert seen[series(rows.GPU_FAN_SPEED, 1, fan="0")] == pytest.approx(0.2)
    assert seen[series(rows.GPU_CLOCK_FREQUENCY, 1, clock="graphics")] == 0
    assert seen[series(rows.GPU_PCIE_LINK_GENERATION, 1)] == seen[series(rows.GPU_PCIE_LINK_WIDTH, 1)] == 1
    there = {row for row, labels in seen if ("gpu_id", "1") in labels}
    assert not there & {rows.GPU_ENERGY, rows.GPU_ECC_ERRORS, rows.GPU_PCIE_REPLAYS}
    (info,) = [dict(labels) for row, labels in seen if row is rows.GPU_INFO and ("gpu_id", "1") in labels]
    assert (info["architecture"], "serial" in info) == ("gfx1100", False)


def test_the_edge_is_the_temperature_where_there_is_no_hotspot(machine: Machine):
    """Old GPUs have no sensor but that at the edge."""
    machine.amdsmi.gpus[1].answers["amdsmi_get_temp_metric HOTSPOT"] = 0xFFFF
    seen = machine.read()
    assert seen[series(rows.GPU_TEMPERATURE, 1)] == 47
    assert component("amd1/hotspot") not in seen


ALL_ONES = ("N/A", 0xFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
VALUES: list[tuple[rows.Metric, list[str]]] = [
    (rows.GPU_UTILIZATION, ["amdsmi_get_gpu_activity", "gfx_activity"]),
    (rows.GPU_TEMPERATURE, ["amdsmi_get_temp_metric HOTSPOT"]),
    (rows.GPU_CLOCK_FREQUENCY, ["amdsmi_get_clock_info GFX", "clk"]),
    (rows.GPU_CLOCK_MAX_FREQUENCY, ["amdsmi_get_clock_info GFX", "max_clk"]),
    (rows.GPU_POWER_USAGE, ["amdsmi_get_power_info", "socket_power"]),
    (rows.GPU_PCIE_LINK_WIDTH, ["amdsmi_get_pcie_info", "pcie_metric", "pcie_width"]),
]


@pytest.mark.parametrize("raw", [*ALL_ONES, None, "", True, -1, math.nan, math.inf, [7], {}])
@pytest.mark.parametrize(("row", "path"), VALUES)
def test_what_was_not_measured_is_absent(machine: Machine, row, path, raw):
    """Neither amdsmi's highest values nor what is no number is shown, and what is beside it stays."""
    answers = machine.amdsmi.gpus[0].answers
    answers["amdsmi_get_power_info"]["current_socket_power"] = "N/A"
    *folders, last = path
    for key in folders:
        answers = answers[key]
    answers[last] = raw
    seen = machine.read()
    labels = {"clock": "graphics"} if "clock" in row.attributes else {}
    assert series(row, **labels) not in seen
    assert series(rows.GPU_MEMORY_USED) in seen


@pytest.mark.parametrize("raw", [*(ones for ones in ALL_ONES if ones != 0xFFFF), None, math.inf])
def test_a_counter_or_size_that_is_not_there_is_absent(machine: Machine, raw):
    """The highest values of 32 and 64 bits are none of a counter's or of a memory's either."""
    answers = machine.amdsmi.gpus[0].answers
    answers["amdsmi_get_gpu_memory_total"] = raw
    answers["amdsmi_get_energy_count"]["energy_accumulator"] = raw
    answers["amdsmi_get_gpu_total_ecc_count"]["correctable_count"] = raw
    answers["amdsmi_get_pcie_info"]["pcie_metric"]["pcie_replay_count"] = raw
    there = {row for row, labels in machine.read() if ("gpu_id", "0") in labels}
    assert not there & {rows.GPU_MEMORY_TOTAL, rows.GPU_MEMORY_FREE, rows.GPU_ENERGY, rows.GPU_PCIE_REPLAYS}
    assert {rows.GPU_MEMORY_USED, rows.GPU_ECC_ERRORS} <= there


@pytest.mark.parametrize(
    ("speed", "generation"), [(2500, 1), (5000, 2), (8000, 3), (16000, 4), (32000, 5), (64000, 6), (0, None), (5, None)]
)
def test_the_speed_of_the_link_is_its_generation(machine: Machine, speed, generation):
    """Each speed of PCI Express has a generation, and what is none of them has none."""
    machine.amdsmi.gpus[0].answers["amdsmi_get_pcie_info"]["pcie_metric"]["pcie_speed"] = speed
    assert machine.read().get(series(rows.GPU_PCIE_LINK_GENERATION)) == generation


def test_a_gpu_without_a_uuid_has_no_info(machine: Machine):
    """What cannot be told apart from others is not described."""
    del machine.amdsmi.gpus[0].answers["amdsmi_get_gpu_device_uuid"]
    assert {dict(labels)["gpu_id"] for row, labels in machine.read() if row is rows.GPU_INFO} == {"1"}


def test_an_answer_of_another_shape_is_no_value(machine: Machine):
    """A release that answers otherwise costs the values of that answer."""
    for function in ("amdsmi_get_power_info", "amdsmi_get_pcie_info", "amdsmi_get_gpu_asic_info"):
        machine.amdsmi.gpus[1].answers[function] = 7
    there = {row for row, labels in machine.read() if ("gpu_id", "1") in labels}
    assert rows.GPU_UTILIZATION in there
    assert not there & {rows.GPU_POWER_USAGE, rows.GPU_PCIE_LINK_WIDTH}


def test_an_older_release_lacks_some_things():
    """Functions and members of enumerations that a release does not have are no failures."""

    class Older(FakeAmdSmi):
        amdsmi_get_gpu_activity = property()
        AmdSmiClkType = object()

    machine = Machine(Older())
    seen = machine.read()
    assert up(seen) == {"0": 1, "1": 1}
    assert not {rows.GPU_UTILIZATION, rows.GPU_CLOCK_FREQUENCY} & {row for row, _ in seen}
    assert not any(machine.totals.values())


def test_a_gpu_without_a_market_name_has_the_boards(machine: Machine):
    """The name is the product's, or where the library does not know it the board's."""
    machine.amdsmi.gpus[0].answers["amdsmi_get_gpu_asic_info"]["market_name"] = "N/A"
    assert (rows.GPU_UP, frozenset({("gpu_id", "0"), ("gpu_name", "Aqua Vanjaram")})) in machine.read()


# --- How often ------------------------------------------------------------------------------------------------


def test_what_changes_seldom_is_read_seldom(machine: Machine):
    """In two minutes of readings once a second, what costs more is asked less often, and its values stay."""
    for _ in range(120):
        seen = machine.read(after=1.0)
        assert {series(rows.GPU_ENERGY), series(rows.GPU_POWER_LIMIT), series(rows.GPU_UTILIZATION)} <= seen.keys()
    calls = machine.amdsmi.calls
    assert calls["amdsmi_get_gpu_activity of 0"] == 120
    assert calls["amdsmi_get_energy_count of 0"] == 24
    assert calls["amdsmi_get_power_cap_info of 0"] == 2


def test_what_is_not_supported_is_tried_again_after_minutes(machine: Machine):
    """A part that a GPU does not have is not asked for each time, and is found when it is there."""
    machine.amdsmi.fail(0, FAILED, "NO_PERM")
    for _ in range(10):
        machine.read(after=1.0)
    assert machine.amdsmi.calls[f"{FAILED} of 0"] == 1
    assert not any(machine.totals.values())
    machine.amdsmi.fail(0, FAILED, None)
    assert series(rows.GPU_UTILIZATION) not in machine.read(after=200.0)
    assert series(rows.GPU_UTILIZATION) in machine.read(after=100.0)


def test_a_failure_is_counted_and_said_once(machine: Machine, caplog: pytest.LogCaptureFixture):
    """What fails is absent, is counted each time under amdsmi's name for it, and logged until it works again."""
    caplog.set_level(logging.INFO, SOURCE_LOG)
    machine.amdsmi.fail(0, FAILED, "TIMEOUT")
    for _ in range(3):
        seen = machine.read(after=1.0)
        assert series(rows.GPU_UTILIZATION) not in seen
        assert up(seen) == {"0": 1, "1": 1}
    assert machine.totals[series(rows.GPU_READ_ERRORS, error="timeout")] == 3
    assert machine.totals[series(rows.GPU_READ_ERRORS, 1, error="timeout")] == 0
    machine.amdsmi.fail(0, FAILED, None)
    machine.read(after=1.0)
    machine.amdsmi.fail(0, FAILED, "TIMEOUT")
    machine.read(after=1.0)
    told = "AMD GPU 0: amdsmi_get_gpu_activity fails: Error code: 8 | AMDSMI_STATUS_TIMEOUT - Timeout in API call"
    assert [record.getMessage() for record in caplog.records] == [f"{told}; said once"] * 2


def test_what_fails_seldom_is_said_once_too(machine: Machine, caplog: pytest.LogCaptureFixture):
    """A part that is read every minute and fails each time is logged once."""
    machine.amdsmi.fail(0, "amdsmi_get_pcie_info", "IO")
    for _ in range(130):
        machine.read(after=1.0)
    assert machine.totals[series(rows.GPU_READ_ERRORS, error="io")] == 3
    assert len(caplog.records) == 1


def test_a_surprise_costs_its_own_value(machine: Machine):
    """An error that is none of amdsmi's counts as failed."""

    def surprise(_handle):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    machine.amdsmi.amdsmi_get_gpu_driver_info = surprise
    seen = machine.read()
    assert seen[series(rows.GPU_READ_ERRORS, error="failed")] == 1
    assert all("driver_version" not in dict(labels) for row, labels in seen if row is rows.GPU_INFO)


# --- Lost -----------------------------------------------------------------------------------------------------


def test_a_lost_gpu_leaves_the_other_whole(machine: Machine, caplog: pytest.LogCaptureFixture):
    """A GPU of which nothing can be read is down and nothing else, until it answers again."""
    caplog.set_level(logging.INFO, SOURCE_LOG)
    whole = machine.read().keys()
    machine.amdsmi.gpus[0].is_lost = True
    for _ in range(12):
        seen = machine.read(after=1.0)
        assert {one for one in seen if ("gpu_id", "0") in one[1]} == {series(rows.GPU_UP)}
        assert up(seen) == {"0": 0, "1": 1}
        assert {one for one in whole if ("gpu_id", "1") in one[1]} <= seen.keys()
    assert not any(machine.totals.values())
    machine.amdsmi.gpus[0].is_lost = False
    assert up(machine.read(after=1.0)) == {"0": 0, "1": 1}
    for _ in range(2):
        assert machine.read(after=10.0).keys() == whole
    assert machine.amdsmi.calls["amdsmi_shut_down"] == 0
    assert [(record.levelname, record.getMessage().partition(" does ")[0]) for record in caplog.records] == [
        ("WARNING", "AMD GPU 0 (AMD Instinct MI300X)"),
        ("INFO", "AMD GPU 0 (AMD Instinct MI300X) answers again"),
    ]


def test_a_gpu_that_is_lost_from_the_start_is_down(machine: Machine):
    """It has no name yet, and one that no other vendor's GPU has."""
    machine.amdsmi.gpus[1].is_lost = True
    lost = rows.GPU_UP, frozenset({("gpu_id", "1"), ("gpu_name", "unknown AMD GPU")})
    assert machine.read()[lost] == 0
    machine.amdsmi.gpus[1].is_lost = False
    assert machine.read(after=10.0)[series(rows.GPU_UP, 1)] == 1


def test_a_gpu_that_is_back_is_asked_for_everything(machine: Machine):
    """What was not supported before a GPU was lost may be when it is back."""
    machine.amdsmi.fail(0, FAILED, "NOT_SUPPORTED")
    machine.read()
    machine.amdsmi.gpus[0].is_lost = True
    machine.read(after=1.0)
    machine.amdsmi.gpus[0].is_lost = False
    machine.amdsmi.fail(0, FAILED, None)
    assert series(rows.GPU_UTILIZATION) in machine.read(after=10.0)


def test_a_driver_that_is_loaded_anew_is_found(machine: Machine):
    """When no GPU answers amdsmi is opened again, which finds them under their new handles."""
    whole = machine.read().keys()
    machine.amdsmi.reload()
    machine.amdsmi.is_open = False  # whoever else uses amdsmi in this process has shut it down
    assert up(machine.read(after=1.0)) == {"0": 0, "1": 0}
    assert up(machine.read(after=0.5)) == {"0": 0, "1": 0}
    assert machine.read(after=0.5).keys() == whole
    machine.amdsmi.reload()
    machine.read(after=1.0)
    machine.amdsmi.gpus[0].is_lost = True
    assert machine.read(after=1.0)[series(rows.GPU_UP)] == 0  # under the name it has had


def test_a_driver_that_goes_away_is_a_fault(machine: Machine, caplog: pytest.LogCaptureFixture):
    """Without its driver the source is down, is opened again with a growing pause, and is whole in the end."""
    whole = machine.read().keys()
    machine.amdsmi.unload()
    assert up(machine.read(after=1.0)) == {"0": 0, "1": 0}
    tried_at = []
    for _ in range(200):
        before = machine.amdsmi.calls["amdsmi_init"]
        machine.now += 1.0
        with pytest.raises(AmdSmiLibraryException, match="DRIVER_NOT_LOADED"):
            machine.source()
        if machine.amdsmi.calls["amdsmi_init"] > before:
            tried_at.append(machine.now)
    pauses = [after - before for before, after in pairwise(tried_at)]
    assert pauses == [2, 4, 8, 16, 32, 60, 60]
    machine.amdsmi.reload()
    assert machine.read(after=60.0).keys() == whole
    assert len(caplog.records) == 2
    machine.amdsmi.reload()
    assert up(machine.read(after=1.0)) == {"0": 0, "1": 0}
    assert machine.read(after=1.0).keys() == whole  # a new fault: the pauses are short again


def test_gpus_that_are_gone_are_a_fault(machine: Machine):
    """A driver that shows no GPU any more is down; one that never showed one is just absent."""
    machine.read()
    machine.amdsmi.unload()
    machine.read(after=1.0)
    machine.amdsmi.has_driver, machine.amdsmi.gpus = True, []
    with pytest.raises(OSError, match="no AMD GPU"):
        machine.read(after=1.0)
    other = Machine(machine.amdsmi)
    machine.amdsmi.amdsmi_shut_down()
    with pytest.raises(Absent, match="ROCm shows no AMD GPU"):
        other.read()


@pytest.mark.parametrize("lacks", ["library", "driver"])
def test_a_machine_without_rocm_is_absent(machine: Machine, lacks: str):
    """What never was there is no fault, and is found within a minute when it comes."""
    machine.is_installed = lacks != "library"
    machine.amdsmi.has_driver = lacks != "driver"
    for _ in range(100):
        with pytest.raises(Absent, match="no ROCm is here"):
            machine.read(after=1.0)
    assert machine.amdsmi.calls["amdsmi_init"] < 10
    machine.is_installed = machine.amdsmi.has_driver = True
    assert up(machine.read(after=60.0)) == {"0": 1, "1": 1}


def test_a_library_that_does_not_fit_is_a_fault(machine: Machine):
    """An amdsmi of another release than ROCm's is told, and not taken for a machine without a GPU."""

    def load():
        raise AttributeError("libamd_smi.so: undefined symbol: amdsmi_get_gpu_xcd_counter")

    source = Machine(load=load).source
    for _ in range(2):
        with pytest.raises(AttributeError, match="undefined symbol"):
            source()


# --- Which ----------------------------------------------------------------------------------------------------

ROCR, HIP, CUDA = "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("environ", "left"),
    [
        ({}, [0, 1, 2, 3]),
        ({HIP: "2"}, [2]),
        ({ROCR: "3, 1"}, [3, 1]),
        ({ROCR: ""}, []),
        ({HIP: ""}, [0, 1, 2, 3]),
        ({HIP: "", CUDA: "1"}, [1]),
        ({HIP: "2", CUDA: "1"}, [2]),
        ({HIP: "-1"}, []),
        ({HIP: "0,1,4,2"}, [0, 1]),
        ({HIP: "1,1,0"}, [1, 0]),
        ({HIP: "0x1"}, []),
        ({HIP: "٣"}, []),
        ({HIP: "9" * 5000}, []),
        ({ROCR: "3,2", HIP: "1"}, [2]),
        ({ROCR: "3,2", HIP: "2"}, []),
        ({ROCR: "GPU-7b39fd81f59f6f20"}, [0, 1, 2, 3]),
        ({ROCR: "gpu-7b39fd81f59f6f20,1", HIP: "1"}, [1]),
    ],
)
def test_the_variables_are_read_as_rocm_reads_them(environ, left):
    """Indices leave some, one variable counts what the other leaves, and UUIDs are not understood."""
    assert visible(environ, 4) == left


def test_the_example_in_the_docstring_holds():
    """What the docstring shows is so."""
    assert doctest.testmod(amd).failed == 0


def test_the_gpus_that_rocm_leaves_are_read():
    """ROCm's numbers for the GPUs are found out: they are not those that are shown."""
    assert up(Machine(gpus="visible", environ={HIP: "0"}).read()) == {"1": 1}
    assert up(Machine(gpus="visible", environ={HIP: "1,0"}).read()) == {"0": 1, "1": 1}
    assert up(Machine(gpus="visible").read()) == {"0": 1, "1": 1}
    assert up(Machine(gpus="all", environ={HIP: "0"}).read()) == {"0": 1, "1": 1}


def test_gpus_whose_numbers_are_not_told_are_counted():
    """Where ROCm does not tell its numbers they are taken for those that are shown."""
    fake = FakeAmdSmi()
    fake.gpus = [Gpu(0, "N/A", DATACENTRE), Gpu(1, 0, CONSUMER)]
    assert up(Machine(fake, gpus="visible", environ={HIP: "0"}).read()) == {"0": 1}


def test_no_gpu_that_is_left_is_no_fault():
    """A worker to whom the variables leave nothing has no AMD GPU."""
    with pytest.raises(Absent, match=r"HIP_VISIBLE_DEVICES.* leave none of the 2 AMD GPUs"):
        Machine(gpus="visible", environ={HIP: "7"}).read()


# --- The real package -----------------------------------------------------------------------------------------

PACKAGE = find_spec("amdsmi")
needs_package = pytest.mark.skipif(PACKAGE is None, reason="amdsmi is missing: pip install 'otel-mlops[amd]'")
needs_no_rocm = pytest.mark.skipif(
    find_library("amd_smi") is not None or Path("/opt/rocm").exists(),
    reason="ROCm is here: run it on a machine without",
)


def definitions(file: str, kind: type[ast.AST]) -> dict[str, Any]:
    """What a file of the real package defines, by name; it is not imported."""
    tree = ast.parse((Path(PACKAGE.origin).parent / file).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, kind)}


def strings(tree: ast.AST) -> set[str]:
    """All strings in a tree."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def keys(answer: Any) -> set[str]:
    """All keys of an answer, those further down too."""
    if not isinstance(answer, dict):
        return set()
    return set(answer).union(*map(keys, answer.values()))


@needs_package
def test_the_pretended_functions_are_the_real_ones():
    """Each has the name and the arguments of the real one, and keys that the real one has too."""
    real = definitions("amdsmi_interface.py", ast.FunctionDef)
    fake = FakeAmdSmi()
    names = [name for name in dir(fake) if name.startswith("amdsmi_")]
    assert len(names) == 21
    for name in names:
        arguments = inspect.signature(getattr(fake, name)).parameters.values()
        assert [argument.arg for argument in real[name].args.args] == [argument.name for argument in arguments], name
        assert len(real[name].args.defaults) == sum(argument.default is not argument.empty for argument in arguments)
    for gpu in fake.gpus:
        for part, answer in gpu.answers.items():
            assert keys(answer) <= strings(real[part.partition(" ")[0]]), part


@needs_package
def test_the_pretended_enumerations_and_errors_are_the_real_ones():
    """Each member and each error is there in the real package."""
    real = definitions("amdsmi_interface.py", ast.ClassDef)
    for enumeration in ENUMERATIONS:
        members = {ast.unparse(each.targets[0]) for each in real[enumeration.__name__].body}
        assert {member.name for member in enumeration} <= members
    errors = definitions("amdsmi_exception.py", ast.ClassDef)
    assert {name for name in dir(FakeAmdSmi) if name.endswith("Exception")} <= errors.keys()
    told = strings(errors["AmdSmiLibraryException"])
    assert {f"AMDSMI_STATUS_{name} - {words}" for name, (_, words) in STATUS.items()} <= told


@needs_package
@needs_no_rocm
def test_the_real_package_without_rocm_is_absent(capfd: pytest.CaptureFixture[str]):
    """Without ROCm nothing is imported, nothing is printed, and it is no fault."""
    with pytest.raises(OSError, match=r"libamd_smi\.so"):
        load_amdsmi()
    with pytest.raises(Absent, match=r"no ROCm is here .*libamd_smi\.so"):
        Machine(load=None).read()
    assert capfd.readouterr() == ("", "")
    assert "amdsmi" not in sys.modules


@needs_package
@needs_no_rocm
@pytest.mark.parametrize(("here", "elsewhere"), [("ROCM_HOME", "ROCM_PATH"), ("ROCM_PATH", "ROCM_HOME")])
def test_a_library_that_cannot_be_loaded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here, elsewhere):
    """What is wrong with the library that is there is told, not that it is missing elsewhere."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libamd_smi.so").write_text("no library")
    monkeypatch.setenv(here, str(tmp_path))
    monkeypatch.setenv(elsewhere, str(tmp_path / "nothing"))
    with pytest.raises(OSError, match=re.escape(str(tmp_path))) as raised:
        load_amdsmi()
    assert "No such file" not in str(raised.value)


@needs_package
@needs_no_rocm
@pytest.mark.skipif(sys.platform != "linux", reason="needs a library of the system: run it on Linux")
def test_the_real_package_with_another_library_is_a_fault(tmp_path: Path):
    """A library that lacks what amdsmi wants is loaded, and what amdsmi says of it is the fault."""
    (tmp_path / "lib").mkdir()
    (library,) = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libm.so" in line}
    (tmp_path / "lib" / "libamd_smi.so").symlink_to(library)
    program = "from otel_mlops.sources.amd import open_amd\ntry: open_amd()()\nexcept AttributeError as e: print(e)"
    environ = {**os.environ, "ROCM_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert "undefined symbol: amdsmi_" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


# --- In its place ---------------------------------------------------------------------------------------------


def test_it_is_opened_where_its_package_is(monkeypatch: pytest.MonkeyPatch):
    """Without amdsmi there is no such source, and that is no fault."""
    settings = Settings(sources=("amd", "host"))
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert list(open_sources(settings, dict)) == ["host"]
    assert list(check_amd(settings)) == [("note", "not looked for: pip install 'otel-mlops[amd]' where ROCm is")]


def test_an_amdsmi_that_is_imported_already_is_taken(monkeypatch: pytest.MonkeyPatch):
    """What a service has imported under that name is read, wherever it came from."""
    fake = FakeAmdSmi()
    monkeypatch.setitem(sys.modules, "amdsmi", fake)
    source = open_sources(Settings(sources=("amd",), gpus="all"), dict)["amd"]
    assert {sample.attributes["gpu_id"] for sample in source() if sample.metric is rows.GPU_UP} == {"0", "1"}
    assert len(list(check_amd(Settings()))) == 2


@needs_package
def test_it_is_among_the_sources():
    """With amdsmi it is opened by its name, with the GPUs that the settings want."""
    opened_when_read: Any = open_sources(Settings(sources=("amd",), gpus="all"), dict)["amd"]
    source = opened_when_read.open()
    assert isinstance(source, amd.Amd)
    assert source._shows_all


def test_what_can_be_read_is_told():
    """Each GPU has a line, a lost one is a fault, and that nobody has compared the values is said."""
    fake = FakeAmdSmi()
    fake.gpus[1].is_lost = True
    levels = dict(check_amd(Settings(), load=lambda: fake))
    assert levels["ok"].startswith("0 (AMD Instinct MI300X): 17 metrics can be read")
    assert levels["fault"] == "1 (unknown AMD GPU) does not answer"
    told = list(check_amd(Settings(sources=("host",)), load=lambda: fake))
    assert ("note", "they are not read: amd is not among the sources") in told


def test_why_nothing_can_be_read_is_told():
    """No ROCm and a ROCm that cannot be opened are notes."""
    machine = Machine()
    machine.amdsmi.has_driver = False
    ((level, text),) = check_amd(Settings(), load=lambda: machine.amdsmi)
    assert (level, text.partition(" (")[0]) == ("note", "none: no ROCm is here")
    machine.amdsmi.amdsmi_init = None
    ((level, text),) = check_amd(Settings(), load=lambda: machine.amdsmi)
    assert (level, text.partition(": ")[0]) == ("note", "none can be read")
