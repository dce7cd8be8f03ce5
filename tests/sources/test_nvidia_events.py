"""XID errors, from the driver's event set to samples, through the real nvidia-ml-py."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pynvml
import pytest

from otel_mlops.metrics import GPU_XID_ERRORS, GPU_XID_LAST_TIMESTAMP, Metric
from otel_mlops.sources.nvidia.driver import Driver, Gone, Gpu
from otel_mlops.sources.nvidia.events import ALERTED_XIDS, XidEvents, _Visit
from tests.nvml.driver import FakeDriver
from tests.waiting import eventually

WAIT = "nvmlEventSetWait_v2"
NOW = 1_700_000_000.0


class Altered:
    """pynvml with some functions replaced: what a driver may do that the pretended one does not."""

    def __init__(self, **functions: Callable[..., Any]):
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(pynvml, name)


class Watch:
    """The XID events of both GPUs of the pretended driver, and all that they have given."""

    def __init__(self, fake: FakeDriver, nvml: Any = pynvml, **options: Any):
        self.fake = fake
        self.now = NOW
        driver = Driver(nvml)
        self.gpus = [
            Gpu(
                driver,
                pynvml.nvmlDeviceGetHandleByIndex(index),
                index=index,
                uuid=pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)),
                name=f"GPU {index}",
                driver_version=(580,),
                clock=lambda: 0.0,
            )
            for index in range(2)
        ]
        self.events = XidEvents(driver, self.gpus, lambda: self.now, **{"wait_s": 0.01, "again_s": 0.02} | options)
        self.counted: Counter[tuple[int, str]] = Counter()
        self.last_at: dict[tuple[int, str], float] = {}

    def read(self) -> dict[tuple[Metric, int, str], float]:
        """One reading, by row, GPU and code."""
        samples = self.events.read()
        read = {(row, int(labels["gpu_id"]), labels["xid"]): value for row, value, labels in samples}
        assert len(read) == len(samples)
        for row, value, labels in samples:
            assert labels == {"gpu_id": labels["gpu_id"], "gpu_name": f"GPU {labels['gpu_id']}", "xid": labels["xid"]}
            series = int(labels["gpu_id"]), labels["xid"]
            if row is GPU_XID_ERRORS:
                self.counted[series] += int(value)
            else:
                self.last_at[series] = value
        return read

    def read_until(self, condition: Callable[[], object]) -> None:
        """Read until a condition holds."""

        def holds() -> object:
            self.read()
            return condition()

        eventually(holds)

    def start(self) -> None:
        """Watch, and wait until the driver tells of both GPUs."""
        waits = self.fake.calls(WAIT)
        self.events.start()
        eventually(lambda: self.fake.calls(WAIT) > waits)


def watchers() -> list[threading.Thread]:
    """The threads that watch."""
    return [thread for thread in threading.enumerate() if thread.name == "otel-mlops-xid"]


Open = Callable[..., Watch]


@pytest.fixture
def opened(nvml: FakeDriver) -> Iterator[Open]:
    """Opens watches of the pretended driver; all are closed after the test, and leave nothing behind."""
    pynvml.nvmlInit()
    watches: list[Watch] = []

    def open_one(module: Any = pynvml, **options: Any) -> Watch:
        watches.append(Watch(nvml, module, **options))
        return watches[-1]

    yield open_one
    nvml.clear_faults()
    for watch in watches:
        assert watch.events.close(20)
    eventually(lambda: not watchers())
    if nvml.initialized:
        pynvml.nvmlShutdown()


@pytest.fixture
def watch(opened: Open) -> Watch:
    """A watch that runs."""
    found = opened()
    found.start()
    return found


# --- What is counted ----------------------------------------------------------------------------------------------


def test_the_alerted_codes_are_there_as_0_from_the_start(watch: Watch):
    """The first reading gives 0 for each code that alerts ask for, of each GPU; the next gives nothing."""
    assert {"48", "62", "63", "64", "74", "79", "92", "94", "95", "119", "120", "13", "31", "43"} == set(ALERTED_XIDS)
    assert watch.read() == {(GPU_XID_ERRORS, gpu, code): 0 for gpu in (0, 1) for code in ALERTED_XIDS}
    assert watch.read() == {}


def test_the_same_error_twice_counts_2(watch: Watch):
    """Each XID error counts, also when it is the same as the one before it."""
    watch.read()
    for _ in range(2):
        watch.fake.gpu(1).push_xid(79)
    watch.read_until(lambda: watch.counted[1, "79"] == 2)
    assert +watch.counted == {(1, "79"): 2}
    assert (GPU_XID_ERRORS, 1, "79") not in watch.read()


def test_errors_are_those_of_their_gpu(watch: Watch):
    """The errors of two GPUs are told apart by GPU and code."""
    told = [(0, 31), (1, 31), (1, 48), (0, 31), (1, 999)]
    for gpu, code in told:
        watch.fake.gpu(gpu).push_xid(code)
    watch.read_until(lambda: watch.counted.total() == len(told))
    assert +watch.counted == {(0, "31"): 2, (1, "31"): 1, (1, "48"): 1, (1, "999"): 1}


def test_the_last_error_of_each_code_has_its_time(watch: Watch):
    """The time of the last error of a code is the wall clock's when it came, and is given at each reading."""
    watch.fake.gpu(0).push_xid(94)
    watch.read_until(lambda: watch.counted[0, "94"] == 1)
    watch.now += 60
    watch.fake.gpu(0).push_xid(95)
    watch.read_until(lambda: watch.counted[0, "95"] == 1)
    assert watch.read() == {(GPU_XID_LAST_TIMESTAMP, 0, "94"): NOW, (GPU_XID_LAST_TIMESTAMP, 0, "95"): NOW + 60}
    watch.fake.gpu(0).push_xid(94)
    watch.read_until(lambda: watch.last_at[0, "94"] == NOW + 60)


@pytest.mark.stress
def test_ten_thousand_errors_all_count(watch: Watch):
    """Of 10,000 errors in a row none is lost."""
    for pushed in range(0, 10_000, 50):
        for _ in range(50):
            watch.fake.gpu(0).push_xid(43)
        watch.read_until(lambda pushed=pushed: watch.counted[0, "43"] > pushed)
    watch.read_until(lambda: watch.counted[0, "43"] >= 10_000)
    assert watch.counted[0, "43"] == 10_000


def test_codes_nobody_has_heard_of_do_not_grow_the_page(watch: Watch):
    """A GPU has at most 64 codes; the errors of all others are counted as `other`."""
    told = [2**64 - 1, *range(1000, 1149)]
    for start in range(0, len(told), 50):
        for code in told[start : start + 50]:
            watch.fake.gpu(0).push_xid(code)
        watch.read_until(lambda start=start: watch.counted.total() == start + 50)
    watch.fake.gpu(0).push_xid(79)
    watch.fake.gpu(1).push_xid(1148)
    watch.read_until(lambda: watch.counted.total() == 152)
    codes = {code for gpu, code in watch.counted if gpu == 0}
    assert len(codes - {"other"}) == 64
    assert watch.counted[0, "other"] == 150 - (64 - len(ALERTED_XIDS))
    assert (watch.counted[0, "79"], watch.counted[1, "1148"]) == (1, 1)


def test_a_mig_instances_error_is_the_gpus(watch: Watch):
    """An error in a MIG instance counts for the GPU it is on."""
    watch.fake.gpu(0).set("mig_mode", 1)
    watch.fake.gpu(0).push_event(pynvml.nvmlEventTypeXidCriticalError, 94, gpu_instance=2)
    watch.read_until(lambda: watch.counted[0, "94"] == 1)


def test_other_events_are_no_errors(opened: Open):
    """An event of another kind, which nobody asked for, is not counted as an XID error."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    events = [pynvml.c_nvmlEventData_t(handle, pynvml.nvmlEventTypeClock, 1500, 0, 0)]
    watch = opened(
        Altered(nvmlEventSetWait_v2=lambda *given: events.pop() if events else pynvml.nvmlEventSetWait(*given))
    )
    watch.start()
    assert not events
    watch.fake.gpu(0).push_xid(8)
    watch.read_until(lambda: watch.counted[0, "8"] == 1)
    assert watch.counted.total() == 1


def test_an_event_is_known_by_the_uuid_too(opened: Open):
    """An event that names its GPU by another handle counts for the GPU of that UUID; without one for nobody."""
    uuids = ["GPU-unknown", "", "GPU-00000000-0000-4000-8000-000000000001"]

    def uuid_of(_device: Any) -> str:
        uuid = uuids.pop()
        if not uuid:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return uuid

    stranger = ctypes.cast(ctypes.create_string_buffer(8), pynvml.c_nvmlDevice_t)
    events = [pynvml.c_nvmlEventData_t(stranger, 8, 62, 0, 0) for _ in uuids]
    watch = opened(
        Altered(
            nvmlEventSetWait_v2=lambda *given: events.pop() if events else pynvml.nvmlEventSetWait(*given),
            nvmlDeviceGetUUID=uuid_of,
        )
    )
    watch.start()
    watch.read_until(lambda: watch.counted[1, "62"] == 1)
    eventually(lambda: not uuids)
    assert watch.fake.calls("nvmlEventSetCreate") == 1
    watch.read()
    assert watch.counted.total() == 1


def test_a_code_is_logged_once(watch: Watch, caplog: pytest.LogCaptureFixture):
    """The first error of each code is a line of the log, more of the same are not."""
    for code in (79, 79, 31, 79):
        watch.fake.gpu(1).push_xid(code)
    watch.read_until(lambda: watch.counted.total() == 4)
    assert [record.args for record in caplog.records if record.levelno == logging.WARNING] == [(1, "79"), (1, "31")]


# --- What is missing, and what fails ------------------------------------------------------------------------------


def test_a_gpu_without_events_has_no_series(opened: Open):
    """A GPU whose driver has no XID events has no series, and the other GPU has its own."""
    watch = opened()
    watch.fake.gpu(0).set("event_types", None)
    watch.start()
    watch.fake.gpu(1).push_xid(79)
    watch.read_until(lambda: watch.counted[1, "79"] == 1)
    assert {gpu for gpu, _ in watch.counted} == {1}
    assert watch.gpus[0].unsupported == [GPU_XID_ERRORS.name]
    assert not watch.gpus[0].faults


def test_without_any_events_nothing_is_waited_for(opened: Open):
    """Where no GPU has such events, the driver is asked again later, and not waited on."""
    watch = opened()
    for index in (0, 1):
        watch.fake.gpu(index).set("event_types", None)
    watch.events.start()
    eventually(lambda: watch.fake.calls("nvmlDeviceRegisterEvents") >= 3)
    assert watch.fake.calls(WAIT) == 0
    assert watch.read() == {}
    for index in (0, 1):
        watch.fake.gpu(index).set("event_types", 8)
    watch.read_until(lambda: len(watch.counted) == 2 * len(ALERTED_XIDS))


def test_a_watched_gpu_is_not_registered_again(watch: Watch):
    """A GPU that the driver tells of is registered once, however long it is watched."""
    waits = watch.fake.calls(WAIT)
    eventually(lambda: watch.fake.calls(WAIT) >= waits + 5)
    assert watch.fake.calls("nvmlDeviceRegisterEvents") == 2


def test_a_gpu_that_cannot_be_watched_yet_is_tried_again(opened: Open, caplog: pytest.LogCaptureFixture):
    """A registration that fails is a failure of that GPU, said once, and is tried again until it succeeds."""
    watch = opened()
    watch.fake.gpu(1).fail("nvmlDeviceRegisterEvents", pynvml.NVML_ERROR_IN_USE)
    watch.start()
    watch.read_until(lambda: watch.gpus[1].faults["in_use"] >= 2)
    assert {gpu for gpu, _ in watch.counted} == {0}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    watch.fake.gpu(1).recover("nvmlDeviceRegisterEvents")
    watch.read_until(lambda: (1, "79") in watch.counted)
    watch.fake.gpu(1).push_xid(79)
    watch.read_until(lambda: watch.counted[1, "79"] == 1)


def test_a_lost_gpu_does_not_hide_the_others(watch: Watch):
    """A GPU off the bus has the driver fail every wait; the others are watched on, and so is it when it is back."""
    watch.fake.gpu(1).push_xid(79)
    watch.fake.gpu(1).lose()
    watch.read_until(lambda: watch.counted[1, "79"] == 1)
    eventually(lambda: watch.fake.calls("nvmlEventSetCreate") >= 2)
    waits = watch.fake.calls(WAIT)
    eventually(lambda: watch.fake.calls(WAIT) >= waits + 3)
    watch.fake.gpu(0).push_xid(31)
    watch.read_until(lambda: watch.counted[0, "31"] == 1)
    registered = watch.fake.gpu(1).calls("nvmlDeviceRegisterEvents")
    watch.fake.gpu(1).find()
    eventually(lambda: watch.fake.gpu(1).calls("nvmlDeviceRegisterEvents") > registered)
    waits = watch.fake.calls(WAIT)
    eventually(lambda: watch.fake.calls(WAIT) >= waits + 2)
    watch.fake.gpu(1).push_xid(48)
    watch.read_until(lambda: watch.counted[1, "48"] == 1)
    assert not watch.gpus[0].faults
    assert not watch.gpus[1].faults


@pytest.mark.parametrize(
    ("error", "told"),
    [(pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN), "unknown"), (OSError("no such call"), "failed")],
)
def test_a_wait_that_fails_is_got_over(opened: Open, error: Exception, told: str):
    """After a failure of any kind a new event set is made, the failure counts, and errors are counted again."""
    failures = [error]

    def wait(*given: Any) -> Any:
        if failures:
            raise failures.pop()
        return pynvml.nvmlEventSetWait_v2(*given)

    watch = opened(Altered(nvmlEventSetWait_v2=wait))
    watch.events.start()
    eventually(lambda: watch.fake.calls(WAIT) >= 1)
    watch.fake.gpu(0).push_xid(79)
    watch.read_until(lambda: watch.counted[0, "79"] == 1)
    assert watch.fake.calls("nvmlEventSetCreate") == 2
    assert watch.fake.event_sets == 1
    assert [gpu.faults for gpu in watch.gpus] == [{told: 1}] * 2
    assert watch.events._visit.failures == 0


def test_a_driver_that_makes_no_event_set_is_a_failure(opened: Open):
    """When no event set can be made, each GPU has a failure, and the watch goes on trying."""
    watch = opened()
    watch.fake.fail("nvmlEventSetCreate", pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES)
    watch.events.start()
    watch.read_until(lambda: all(gpu.faults["insufficient_resources"] for gpu in watch.gpus))
    eventually(lambda: watch.fake.calls("nvmlEventSetCreate") == 2)


def test_failures_in_a_row_are_answered_ever_more_slowly():
    """The first failure is answered at once, the next after a second, and later ones within a minute."""
    visit = _Visit(Driver(pynvml))
    delays = []
    for visit.failures in range(20):
        delays.append(visit.delay_s)
    assert delays[:4] == [0, 0, 1, 2]
    assert delays == sorted(delays)
    assert delays[-1] == 60


def test_a_driver_that_is_gone_ends_the_watch(watch: Watch):
    """What came before the driver went is given first; then a reading says that it is gone, and the thread ends."""
    watch.read()
    watch.fake.gpu(0).push_xid(79)
    eventually(lambda: watch.events._counts)
    watch.fake.reload()
    eventually(lambda: not watchers())
    assert watch.read() == {(GPU_XID_ERRORS, 0, "79"): 1, (GPU_XID_LAST_TIMESTAMP, 0, "79"): NOW}
    for _ in range(2):
        with pytest.raises(Gone):
            watch.read()


# --- The thread ---------------------------------------------------------------------------------------------------


def test_closing_ends_the_thread_and_frees_the_set(opened: Open, nvml: FakeDriver):
    """A watch that waits ends when it is closed, and the driver is not called after that."""
    watch = opened()
    watch.start()
    watch.events.start()
    assert len(watchers()) == nvml.event_sets == 1
    assert watchers()[0].daemon
    assert watch.events.close(20)
    assert not watchers()
    assert nvml.event_sets == 0
    assert watch.events.close(20)


def test_what_came_before_the_end_is_not_lost(watch: Watch):
    """A reading after `close()` gives what came since the last one."""
    watch.read()
    watch.fake.gpu(1).push_xid(79)
    eventually(lambda: watch.events._counts)
    assert watch.events.close(20)
    assert watch.read()[GPU_XID_ERRORS, 1, "79"] == 1


def test_a_closed_watch_can_be_started_again(watch: Watch):
    """After `close()` and `start()` errors are counted as before."""
    assert watch.events.close(20)
    watch.start()
    watch.fake.gpu(0).push_xid(79)
    watch.read_until(lambda: watch.counted[0, "79"] == 1)


def test_nothing_is_watched_before_the_start(opened: Open, nvml: FakeDriver):
    """A watch that was not started gives nothing, asks nothing, and can be closed."""
    asked = nvml.calls("nvmlEventSetCreate")
    watch = opened()
    assert watch.read() == {}
    assert watch.events.close(20)
    assert nvml.calls("nvmlEventSetCreate") == asked
    assert not watchers()


def test_a_hanging_driver_does_not_hold_the_end(opened: Open, nvml: FakeDriver):
    """A call that does not come back holds `close()` for its time only, which says so; it is the thread's last."""
    watch = opened()
    nvml.hang(WAIT, 60_000)
    watch.events.start()
    eventually(lambda: nvml.hanging)
    began = time.monotonic()
    assert not watch.events.close(0.05)
    assert time.monotonic() - began < 20
    asked = nvml.calls()
    nvml.hang(WAIT, 0)
    eventually(lambda: not watchers())
    assert nvml.calls() == asked


def test_a_second_is_waited_for_at_a_time(opened: Open):
    """The driver is asked to wait for a moment at first, then longer and longer, up to a second."""
    asked: list[int] = []

    def wait(_events: Any, wait_ms: int) -> Any:
        asked.append(wait_ms)
        time.sleep(0.001)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)

    watch = opened(Altered(nvmlEventSetWait_v2=wait), wait_s=1.0)
    watch.events.start()
    eventually(lambda: len(asked) > 20)
    assert asked[0] < 10
    assert asked[:11] == [min(1000, asked[0] * 2**turn) for turn in range(11)]
    assert asked[10:20] == [1000] * 10


def test_a_storm_leaves_the_core_to_others(opened: Open):
    """A driver that always has one more event is taken a breath from after each few hundred."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    event = pynvml.c_nvmlEventData_t(handle, 8, 43, 0, 0)
    watch = opened(Altered(nvmlEventSetWait_v2=lambda *_given: event))
    watch.events.start()
    watch.read_until(lambda: watch.counted[0, "43"] >= 1)
    began, counted = time.monotonic(), watch.counted[0, "43"]
    watch.read_until(lambda: watch.counted[0, "43"] - counted >= 2560)
    assert time.monotonic() - began >= 0.08


def test_a_forked_child_has_nothing_of_the_parents(watch: Watch):
    """In a forked child nothing of the parent's is counted again, nothing runs, and closing asks the driver nothing."""
    watch.read()
    watch.fake.gpu(0).push_xid(79)
    eventually(lambda: watch.events._counts)
    with watch.events._lock:  # as the thread may hold it in the moment of the fork
        child = os.fork()
        if child == 0:
            code = 1
            signal.alarm(20)  # a child that waits for the parent's lock ends all the same
            try:
                clean = watch.events.read() == [] and watch.events.close(0) and watch.events._thread is None
                code = 0 if clean else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    watch.read_until(lambda: watch.counted[0, "79"] == 1)


LEAVES = """
import pynvml
from otel_mlops.sources.nvidia.driver import Driver, Gpu
from otel_mlops.sources.nvidia.events import XidEvents

pynvml.nvmlInit()
driver = Driver(pynvml)
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
events = XidEvents(driver, [Gpu(driver, handle, index=0, uuid="", name="", driver_version=(580,))])
events.start()
while not events.read():
    pass
print("leaves")
"""


def test_a_process_exits_while_the_driver_hangs(nvml: FakeDriver):
    """A process that does not close its watch exits, though the driver never comes back."""
    environment = nvml.environment(faults=f"hang:{WAIT}:600000")
    done = subprocess.run(
        [sys.executable, "-c", LEAVES], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "leaves\n"
    assert done.stderr == ""
