"""The NVIDIA source when something is wrong: with a call, a GPU, the driver, or with its being there at all."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from otel_mlops import metrics as rows
from otel_mlops.sources.nvidia import open_nvidia
from otel_mlops.sources.nvidia.driver import FAULTS, Failed, Gone, Unsupported
from otel_mlops.sources.nvidia.events import XidEvents
from otel_mlops.sources.sampler import Absent, Sample
from tests.nvml.driver import EVERY_CALL, HOPPER, FakeDriver
from tests.sources.gpus import Altered, Machine, NoEvents, opened, series
from tests.waiting import eventually

INIT = "nvmlInitWithFlags"
UTILIZATION = "nvmlDeviceGetUtilizationRates"


@pytest.fixture
def machine(nvml: FakeDriver) -> Iterator[Machine]:
    """A machine with an H100 and an RTX 2080."""
    with opened(nvml) as made:
        yield made


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning or worse."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- A call -----------------------------------------------------------------------------------------------


def test_a_call_that_fails_leaves_out_its_own_samples_alone(machine, caplog):
    """A call that fails is counted and said once; all other series stay, and its own are back when it works."""
    whole = machine.read().keys()
    machine.driver.gpu(0).fail(UTILIZATION, pynvml.NVML_ERROR_TIMEOUT)
    machine.run(3)
    standing = {one for one in whole if not (one[0].kind == "counter" and one[0].across == "sum")}
    assert standing - machine.seen.keys() == {series(rows.GPU_UTILIZATION)}
    assert machine.up(0) == 1
    assert machine.totals[series(rows.GPU_READ_ERRORS, error="timeout")] == 3
    assert machine.totals[series(rows.GPU_READ_ERRORS, 1, error="timeout")] == 0
    assert len(warnings(caplog)) == 1
    machine.driver.clear_faults()
    machine.read(after=1.0)
    assert standing <= machine.seen.keys()
    assert machine.totals[series(rows.GPU_READ_ERRORS, error="timeout")] == 3
    machine.driver.gpu(0).fail(UTILIZATION, pynvml.NVML_ERROR_TIMEOUT)
    machine.read(after=1.0)
    assert len(warnings(caplog)) == 2


@pytest.mark.parametrize(
    "code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND]
)
def test_what_is_not_supported_is_absent_and_tried_again(machine, code, caplog):
    """What a GPU does not have, or this process may not read, is absent without an error, and asked for after 5 min."""
    machine.driver.gpu(0).fail(UTILIZATION, code)
    machine.read()
    machine.run(2)
    assert series(rows.GPU_UTILIZATION) not in machine.seen
    assert series(rows.GPU_UTILIZATION, 1) in machine.seen
    assert machine.driver.gpu(0).calls(UTILIZATION) == 1
    machine.driver.clear_faults()
    machine.advance(290)
    assert series(rows.GPU_UTILIZATION) not in machine.read()
    machine.advance(10)
    assert series(rows.GPU_UTILIZATION) in machine.read()
    assert not any(value for one, value in machine.totals.items() if one[0] is rows.GPU_READ_ERRORS)
    assert warnings(caplog) == []


def test_one_field_fails_and_the_others_of_its_call_do_not(machine):
    """Each field of a call has a return code of its own: one that fails is counted, one that is missing is absent."""
    machine.driver.gpu(0).fail_field(230, pynvml.NVML_ERROR_UNKNOWN)
    machine.driver.gpu(0).fail_field(94, pynvml.NVML_ERROR_INVALID_ARGUMENT)
    machine.read()
    assert series(rows.GPU_RECOVERY_ACTION) not in machine.seen
    assert series(rows.GPU_PCIE_REPLAYS) not in machine.seen
    assert series(rows.GPU_THROTTLE, reason="sw_power_cap") in machine.seen
    assert machine.totals[series(rows.GPU_READ_ERRORS, error="unknown")] == 1
    assert machine.totals[series(rows.GPU_READ_ERRORS, error="invalid_argument")] == 0
    machine.driver.reset()
    machine.driver.gpu(0).set("recovery_action", 2)
    assert machine.read(after=60.0)[series(rows.GPU_RECOVERY_ACTION)] == 2


def test_all_fields_fail_as_one_call(machine):
    """A call for fields that fails as a whole is one error, and what does not come by it is there."""
    machine.driver.gpu(0).fail("nvmlDeviceGetFieldValues", pynvml.NVML_ERROR_TIMEOUT)
    machine.read()
    assert rows.GPU_ENERGY not in machine.rows(0)
    assert rows.GPU_ECC_ERRORS in machine.rows(0)
    assert machine.totals[series(rows.GPU_READ_ERRORS, error="timeout")] == 3  # every 2, 5 and 60 s
    machine.driver.clear_faults()
    machine.read(after=60.0)
    assert rows.GPU_ENERGY in machine.rows(0)


def test_what_a_field_counted_before_the_gpu_was_lost_counts(nvml):
    """What one field of a call has grown by is counted though the next one finds the GPU lost."""
    nvml.set_gpus(1)
    nvml.gpu(0).set("pcie_bits", 64)
    with opened(nvml) as machine:
        machine.read()
        nvml.gpu(0).fail_field(198, pynvml.NVML_ERROR_GPU_IS_LOST)
        machine.read(after=2.0)
        assert machine.up(0) == 0
        sent = nvml.gpu(0).get("pcie_tx_rate") * 2
        assert machine.totals[series(rows.GPU_PCIE_IO, direction="transmit")] == sent


def test_an_error_without_a_name_is_counted_as_other(machine):
    """A return code that nvidia-ml-py does not know is counted under a name of its own."""
    machine.driver.gpu(0).fail(UTILIZATION, 4711)
    machine.read()
    assert machine.totals[series(rows.GPU_READ_ERRORS, error="other")] == 1


@pytest.mark.parametrize(
    "surprise",
    [
        Altered(NVML_GPU_UTILIZATION_SAMPLES=None),  # asked for where the samples are read
        Altered(nvmlDeviceGetSamples=lambda *_given: 1 / 0),
        Altered(NVML_TOTAL_POWER_SAMPLES="no number"),
    ],
)
def test_a_surprise_costs_its_own_samples_alone(nvml, surprise, caplog):
    """An error of ours, or of a release that does not fit, is counted and said once, and all else is read."""
    with opened(nvml, nvml=surprise) as machine:
        machine.run(4)
    assert {rows.GPU_UTILIZATION, rows.GPU_ENERGY, rows.GPU_ECC_ERRORS, rows.GPU_INFO} <= machine.rows(0)
    assert machine.totals[series(rows.GPU_READ_ERRORS, error="failed")] > 1
    assert 1 <= len([text for text in warnings(caplog) if text.startswith("GPU 0")]) <= 3


# --- A GPU ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED])
def test_a_lost_gpu_is_down_and_nothing_else(machine, code, caplog):
    """Of a lost GPU there is that it is down; the others are whole; it is said once, and all is back when it is."""
    machine.driver.gpu(1).fail(UTILIZATION, pynvml.NVML_ERROR_NOT_SUPPORTED)
    whole = machine.read().keys()
    machine.driver.gpu(1).fail(UTILIZATION, pynvml.NVML_SUCCESS)
    machine.driver.gpu(1).fail(EVERY_CALL, code)
    machine.run(5)
    assert machine.rows(1) == {rows.GPU_UP}
    assert machine.up(1) == 0
    of_first = {one for one in whole if ("gpu_id", "0") in one[1] and one[0].across == "once"}
    assert of_first <= machine.seen.keys()
    assert [text for text in warnings(caplog) if "does not answer" in text] == warnings(caplog)
    assert len(warnings(caplog)) == 1
    machine.driver.gpu(1).find()
    machine.run(10)
    assert {one for one in whole if one[0].across == "once"} <= machine.seen.keys()
    assert rows.GPU_UTILIZATION in machine.rows(1)  # it may have changed: what it lacked is asked for again
    assert machine.driver.calls(INIT) == 1
    machine.driver.gpu(1).lose()
    machine.read(after=1.0)
    machine.driver.gpu(1).find()
    machine.read(after=1.0)
    assert machine.up(1) == 1
    assert len(warnings(caplog)) == 2


def test_a_lost_gpu_is_tried_less_and_less_often(machine):
    """A lost GPU is tried again after 1 s, 2 s, 4 s and so on up to a minute."""
    machine.read()
    machine.driver.gpu(1).lose()
    tries = []
    for second in range(200):
        before = machine.driver.gpu(1).calls()
        machine.read(after=1.0)
        if machine.driver.gpu(1).calls() > before:
            tries.append(second)
    assert tries == [0, 1, 3, 7, 15, 31, 63, 123, 183]


def test_what_a_lost_gpu_had_counted_goes_on(machine):
    """The counts of a GPU neither step back nor jump when it was lost and is back."""
    machine.read()
    machine.run(10)
    machine.driver.gpu(0).lose()
    machine.run(2)
    before = dict(machine.totals)
    machine.driver.gpu(0).find()
    machine.run(4)
    for one, value in before.items():
        assert 0 <= machine.totals[one] - value <= 4 * 500_000_000, one


def test_a_gpu_that_fails_whatever_it_is_asked_is_down(machine):
    """A GPU of which no call succeeds does not answer, whatever the error is called."""
    machine.read()
    machine.driver.gpu(1).fail(EVERY_CALL, pynvml.NVML_ERROR_UNKNOWN)
    machine.read(after=1.0)
    assert (machine.up(0), machine.up(1)) == (1, 0)
    assert machine.totals[series(rows.GPU_READ_ERRORS, 1, error="unknown")] > 0


def test_a_gpu_of_which_nothing_is_supported_is_up(nvml):
    """A GPU that answers to everything that it has no such thing is up."""
    nvml.set_gpus(1)
    with opened(nvml) as machine:
        machine.read()
        nvml.gpu(0).fail(EVERY_CALL, pynvml.NVML_ERROR_NOT_SUPPORTED)
        machine.read(after=60.0)
        assert machine.up(0) == 1


def test_a_gpu_lost_before_the_start_is_down(nvml, caplog):
    """A GPU that has never answered is down under its number, and has its name when it answers."""
    nvml.gpu(1).lose()
    with opened(nvml, watch=XidEvents) as machine:
        machine.read()
        assert machine.seen[series(rows.GPU_UP, 1, "unknown")] == 0
        assert nvml.gpu(1).calls() == 1
        assert len(warnings(caplog)) == 1
        assert machine.up(0) == 1
        nvml.gpu(1).find()
        machine.run(3)
        assert machine.seen[series(rows.GPU_UP, 1)] == 1
        assert rows.GPU_UTILIZATION in machine.rows(1)
        watched = series(rows.GPU_XID_ERRORS, 1, xid="79")
        eventually(lambda: machine.read() and watched in machine.totals)
        nvml.gpu(1).push_xid(79)
        eventually(lambda: machine.read() and machine.totals[watched] == 1)


def test_the_errors_of_a_gpu_that_is_back_are_counted_once(nvml):
    """A GPU that was lost and is back is watched as before, not once more."""
    with opened(nvml, watch=XidEvents) as machine:
        watched = series(rows.GPU_XID_ERRORS, xid="79")
        eventually(lambda: machine.read() and watched in machine.totals)
        nvml.gpu(0).fail(UTILIZATION, pynvml.NVML_ERROR_GPU_IS_LOST)
        machine.read(after=1.0)
        nvml.clear_faults()
        machine.read(after=1.0)
        assert machine.up(0) == 1
        nvml.gpu(0).push_xid(13)
        nvml.gpu(0).push_xid(79)
        eventually(lambda: machine.read() and machine.totals[watched])
        machine.source.close()
        assert machine.totals[watched] == 1
        assert machine.totals[series(rows.GPU_XID_ERRORS, xid="13")] == 1
        assert nvml.calls("nvmlEventSetCreate") == 1


def test_a_gpu_that_this_process_may_not_have_is_not_shown(nvml):
    """A GPU whose handle is refused is somebody else's."""
    nvml.gpu(1).fail("nvmlDeviceGetHandleByIndex_v2", pynvml.NVML_ERROR_NO_PERMISSION)
    with opened(nvml) as machine:
        machine.read()
    assert machine.rows(0)
    assert not machine.rows(1)


def test_the_driver_is_let_go_while_no_gpu_answers(machine, caplog):
    """While all GPUs are lost the driver is closed, so that they can be reset; they are down, and are found again."""
    whole = machine.read().keys()
    for gpu in (0, 1):
        machine.driver.gpu(gpu).lose()
    machine.run(3)
    assert (machine.up(0), machine.up(1)) == (0, 0)
    assert (machine.driver.initialized, machine.driver.event_sets, machine.driver.gpm_samples) == (0, 0, 0)
    machine.run(60)
    assert len(warnings(caplog)) == 2
    for gpu in (0, 1):
        machine.driver.gpu(gpu).find()
    machine.run(60)
    assert {one for one in whole if one[0].across == "once"} <= machine.seen.keys()


def test_what_is_reported_while_a_gpu_falls_is_counted(nvml):
    """The XID error of a GPU that falls off the bus is counted though nothing else is read of it."""
    nvml.set_gpus(1)
    with opened(nvml, watch=XidEvents) as machine:
        watched = series(rows.GPU_XID_ERRORS, xid="79")
        eventually(lambda: machine.read() and watched in machine.totals)
        nvml.gpu(0).push_xid(79)
        nvml.gpu(0).lose()
        eventually(lambda: machine.read() and machine.totals[watched] == 1)
        assert machine.up(0) == 0


# --- The driver -------------------------------------------------------------------------------------------


def test_a_reloaded_driver_is_opened_again_at_once(machine):
    """When the driver was loaded anew the same reading opens it and is whole; what it lacked is asked for again."""
    machine.driver.gpu(0).fail("nvmlDeviceGetPerformanceState", pynvml.NVML_ERROR_NOT_SUPPORTED)
    whole = machine.read().keys()
    machine.run(5)
    before = dict(machine.totals)
    machine.driver.clear_faults()
    machine.driver.reload()
    machine.read(after=1.0)
    assert {one for one in whole if one[0].across == "once"} <= machine.seen.keys()
    assert series(rows.GPU_PERFORMANCE_STATE) in machine.seen
    assert machine.driver.initialized == 1
    machine.run(10)
    for one, value in before.items():
        assert 0 <= machine.totals[one] - value <= 11 * 500_000_000, one


def test_what_was_read_before_the_driver_went_is_counted(machine):
    """Increases that were read before another GPU found the driver gone are given by the reading that follows."""
    machine.driver.gpu(0).set("pcie_bits", 64)
    machine.read()
    machine.run(5)
    before = machine.totals[series(rows.GPU_PCIE_IO, direction="receive")]
    sent = machine.driver.gpu(0).get("pcie_rx_bytes")
    machine.driver.gpu(1).fail(UTILIZATION, pynvml.NVML_ERROR_UNINITIALIZED)
    machine.driver.fail(INIT, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    machine.advance(2)
    with pytest.raises(Gone):
        machine.read()
    machine.driver.clear_faults()
    machine.read(after=2.0)
    counted = machine.totals[series(rows.GPU_PCIE_IO, direction="receive")] - before
    assert counted >= machine.driver.gpu(0).get("pcie_rx_rate") * 2
    assert counted <= machine.driver.gpu(0).get("pcie_rx_bytes") - sent + 500_000_000


def test_a_driver_that_goes_again_and_again_is_waited_for(machine):
    """A driver that is gone again soon is not opened in every reading; between, the same fault is raised."""
    machine.read()
    machine.driver.gpu(0).fail(UTILIZATION, pynvml.NVML_ERROR_UNINITIALIZED)
    opens = []
    for second in range(70):
        before = machine.driver.calls(INIT)
        with pytest.raises(Gone, match=UTILIZATION):
            machine.read(after=1.0)
        opens += [second] * (machine.driver.calls(INIT) - before)
    # At once, as nothing was wrong before, and then after 2 s (the first failure was the 1 s), 4 s and so on.
    assert opens == [0, 2, 6, 14, 30, 62]
    machine.driver.clear_faults()
    machine.recover()
    assert machine.up(0) == 1


def test_a_driver_that_was_steady_is_opened_at_once_again(machine):
    """A driver that was there for a minute since it was last gone has recovered: the next time is the first again."""
    machine.read()
    for _ in range(3):
        machine.driver.reload()
        machine.run(62)
        assert machine.up(0) == 1


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, Gone),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, Gone),
        (pynvml.NVML_ERROR_UNKNOWN, Failed),
        (pynvml.NVML_ERROR_NO_PERMISSION, Unsupported),
    ],
)
def test_a_driver_that_cannot_be_opened_is_a_fault(machine, code, fault):
    """A driver that is there and cannot be initialised is a fault, the same until it is tried again, and then is up."""
    machine.driver.fail(INIT, code)
    told = set()
    for _ in range(4):
        with pytest.raises(fault) as caught:
            machine.read(after=0.3)
        told.add(str(caught.value))
    assert machine.driver.calls(INIT) == 1
    assert len(told) == 1
    if code == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        assert "restart" in told.pop()
    machine.driver.clear_faults()
    machine.read(after=1.0)
    assert machine.up(0) == 1


def test_a_fault_does_not_grow_with_its_readings(machine):
    """A fault that is raised a thousand times is as long as the first time."""
    machine.driver.fail(INIT, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    depths = set()
    for _ in range(50):
        with pytest.raises(Gone) as caught:
            machine.read(after=0.001)
        depths.add(len(caught.traceback))
    assert len(depths) == 2  # where it was met, and where it was repeated


def test_a_driver_that_fails_to_tell_its_gpus_is_not_left_open(machine):
    """A driver that cannot say how many GPUs there are is shut down again."""
    machine.driver.fail("nvmlDeviceGetCount_v2", pynvml.NVML_ERROR_UNKNOWN)
    with pytest.raises(Failed, match="nvmlDeviceGetCount"):
        machine.read()
    assert machine.driver.initialized == 0


def test_without_a_driver_the_source_is_absent(machine):
    """Where there is no driver's library, and never was, the source is absent: neither up nor down."""
    machine.driver.fail(INIT, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    for _ in range(3):
        with pytest.raises(Absent, match="no NVIDIA driver"):
            machine.read(after=0.1)
    assert machine.driver.calls(INIT) == 1
    machine.driver.clear_faults()
    machine.read(after=1.0)
    assert machine.up(0) == 1


def test_a_library_that_vanishes_is_a_fault(machine):
    """A library that is gone after it was there is a fault, not an absence."""
    machine.read()
    machine.driver.fail(INIT, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    machine.driver.reload()
    for _ in range(3):
        with pytest.raises(Gone):
            machine.read(after=1.0)


def test_another_library_of_that_name_is_a_fault(machine):
    """A library without NVML's functions is said to be that."""
    found = pynvml.nvmlLib
    pynvml.nvmlLib = ctypes.CDLL(None)  # the fixture puts back what was there
    with pytest.raises(Unsupported, match="nvmlInit: Function Not Found"):
        machine.read()
    pynvml.nvmlLib = found
    machine.read(after=1.0)
    assert machine.up(0) == 1


LATE = """
import json, shutil, sys, time
from pathlib import Path
from otel_mlops.sources.nvidia import open_nvidia
from otel_mlops.sources.nvidia.events import XidEvents
from otel_mlops.sources.sampler import Absent, Sample

found, library = Path(sys.argv[1]), Path(sys.argv[2])
now = [0.0]
source = open_nvidia(gpus="all", environ={}, clock=lambda: now[0])

def read():
    try:
        return len(list(source()))
    except Absent as absence:
        return str(absence)

told = [read()]
found.write_text("this is no library")
now[0] += 1
told.append(read())
shutil.copy(library, found)
now[0] += 2
told.append(read())
source.close()
print(json.dumps(told))
"""


def test_a_driver_that_comes_late_is_found(nvml, tmp_path):
    """A driver that is installed while the service runs is found, through the real loader of nvidia-ml-py."""
    if Path("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1").exists() or shutil.which("nvidia-smi"):
        pytest.skip("there is a real driver that would be found first: run it on a machine without one")
    environment = nvml.environment() | {"LD_LIBRARY_PATH": str(tmp_path)}
    order = [sys.executable, "-c", LATE, str(tmp_path / nvml.path.name), str(nvml.path)]
    done = subprocess.run(order, env=environment, capture_output=True, text=True, timeout=60, check=True)
    first, second, third = json.loads(done.stdout)
    assert "no NVIDIA driver" in first
    assert second == first
    assert third > 50


class LastWords(NoEvents):
    """Events of which one comes in while they are closed."""

    def read(self) -> list[Sample]:
        is_late, self.is_late = getattr(self, "is_late", False), False
        labels = {"gpu_id": "0", "gpu_name": HOPPER, "xid": "79"}
        return [Sample(rows.GPU_XID_ERRORS, 1, labels)] if is_late else []

    def close(self, timeout_s: float) -> bool:
        self.is_late = True
        return super().close(timeout_s)


def test_what_is_reported_while_the_driver_goes_is_counted(nvml):
    """What came in between the last reading and the closing is counted by the next reading, once."""
    with opened(nvml, watch=LastWords) as machine:
        machine.read()
        nvml.reload()
        machine.run(3)
        assert machine.totals[series(rows.GPU_XID_ERRORS, xid="79")] == 1


class Stuck(NoEvents):
    """Events whose call does not come back."""

    def close(self, timeout_s: float) -> bool:
        return False


def test_the_driver_is_not_shut_down_from_under_a_call(nvml):
    """While a call for events has not come back the driver stays initialised, and is opened once more."""
    with opened(nvml, watch=Stuck) as machine:
        machine.read()
        machine.source.close()
        assert nvml.initialized == 1
        machine.read(after=1.0)
        assert machine.up(0) == 1


# --- A call that hangs ------------------------------------------------------------------------------------


def test_a_call_that_hangs_holds_up_its_own_thread_alone(machine):
    """While a call hangs the source can be closed at once; when it returns the reading goes on and is whole."""
    whole = machine.read().keys()
    machine.driver.gpu(1).hang(UTILIZATION, 60_000)
    machine.advance(1)
    finished = threading.Event()
    given = []

    def read() -> None:
        given.extend(machine.source())
        finished.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    eventually(lambda: machine.driver.hanging)
    machine.source.close(timeout_s=0.01)
    assert machine.driver.initialized == 1  # not from under the call
    assert not finished.is_set()
    machine.driver.gpu(1).hang(UTILIZATION, 0)
    assert finished.wait(20)
    thread.join(20)
    assert {(sample.metric, frozenset(sample.attributes.items())) for sample in given} >= {
        one for one in whole if one[0].across == "once"
    }


# --- A fork -----------------------------------------------------------------------------------------------


def in_child(work: Callable[[], object]) -> object:
    """What a function gives in a forked child."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # one that is stuck ends, and has given nothing
        try:
            answer = work()
        except BaseException as error:
            answer = repr(error)
        os.write(theirs, json.dumps(answer).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as answers:
        text = answers.read()
    os.waitpid(child, 0)
    return json.loads(text)


def test_a_forked_child_opens_the_driver_for_itself(machine):
    """A child uses no handle, lock or count of its parent's, whose readings go on."""
    whole = machine.read().keys()
    machine.run(5)
    opened_before = machine.driver.calls(INIT)
    exact = {one: value for one, value in machine.totals.items() if one[0] is rows.GPU_PCIE_IO}

    def work() -> object:
        machine.totals.clear()
        machine.read(after=1.0)
        first = [value for one, value in machine.totals.items() if one[0] is rows.GPU_PCIE_IO]
        machine.run(8)
        inits = machine.driver.calls(INIT) - opened_before
        standing = sum(one[0].across == "once" for one in machine.seen)
        machine.source.close()
        return [inits, first, standing]

    # As if another thread were loading the library just now, and a reading were under way that has counted.
    counted = Sample(rows.GPU_PCIE_IO, 7, {"gpu_id": "0", "gpu_name": HOPPER, "direction": "transmit"})
    machine.source._world.increases.keep([counted])
    with pynvml.libLoadLock, machine.source._lock:
        inits, first, standing = in_child(work)
    assert inits == 1
    assert first == [0, 0]
    assert standing == sum(one[0].across == "once" for one in machine.seen)
    machine.run(4)
    assert machine.driver.calls(INIT) == opened_before
    assert {one for one in whole if one[0].across == "once"} <= machine.seen.keys()
    for one, value in exact.items():
        assert machine.totals[one] > value


# --- The end ----------------------------------------------------------------------------------------------


def test_closing_lets_the_driver_go(nvml):
    """After closing nothing of the driver is held; a later reading opens it again, and closing twice is fine."""
    source = open_nvidia(pynvml, gpus="all", environ={})
    assert nvml.calls() == 0
    source.close()
    source()
    assert nvml.initialized == 1
    eventually(lambda: nvml.event_sets)
    source.close()
    assert (nvml.initialized, nvml.event_sets, nvml.gpm_samples) == (0, 0, 0)
    source.close()
    assert len(source()) > 50
    nvml.reset()
    source.close()


def test_another_user_of_the_driver_keeps_it(machine):
    """Who else in the process has initialised NVML is not shut out when the source is closed."""
    pynvml.nvmlInit()
    machine.read()
    machine.source.close()
    assert machine.driver.initialized == 1
    assert pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)) == HOPPER
    pynvml.nvmlShutdown()


# --- Anything ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_the_readings_keep_their_contract(nvml, seed):
    """Faults in any order make no false sample and no other exception, and when all is well again all is there."""
    chance = random.Random(seed)
    codes = [1, 2, 3, 4, 6, 9, 10, 13, 15, 16, 18, 20, 25, 999]
    functions = [
        UTILIZATION, "nvmlDeviceGetFieldValues", "nvmlDeviceGetSamples", "nvmlDeviceGetMemoryInfo_v2",
        "nvmlGpmMetricsGet", "nvmlDeviceGetUUID", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetMigMode",
        "nvmlDeviceGetNumFans", EVERY_CALL,
    ]  # fmt: skip
    happenings: list[Callable[[], None]] = [
        nvml.reload,
        nvml.clear_faults,
        nvml.clear_faults,
        lambda: nvml.fail(INIT, chance.choice(codes)),
        lambda: nvml.gpu(chance.randrange(2)).fail(chance.choice(functions), chance.choice(codes)),
        lambda: nvml.fail(chance.choice(functions), chance.choice(codes)),
        lambda: nvml.gpu(chance.randrange(2)).fail_field(chance.choice([82, 83, 94, 197, 269]), chance.choice(codes)),
        lambda: nvml.gpu(0).set("mig_mode", chance.randrange(2)),
        lambda: nvml.gpu(0).set("pcie_rx_bytes", chance.randrange(2**34)),
        lambda: nvml.gpu(chance.randrange(2)).set("utilization", chance.choice([None, 0, 100, 101, 2**32 - 1])),
    ]
    with opened(nvml) as machine:
        whole = machine.read().keys()
        for _ in range(40):
            chance.choice(happenings)()
            machine.advance(chance.choice([0.5, 1, 1, 2, 7, 61]))
            try:
                machine.read()
            except (Absent, *FAULTS):
                continue
        nvml.reset()
        machine.recover()
        standing = {one for one in whole if one[0].across == "once"}
        assert standing <= machine.seen.keys()
