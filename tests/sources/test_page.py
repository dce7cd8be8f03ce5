"""Every source at once, as it comes to stand on a page: the pretended driver, and a machine that the test describes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from otel_mlops import metrics as rows
from otel_mlops.metrics import gpu, machine
from otel_mlops.sources.container import open_container
from otel_mlops.sources.host import open_host
from otel_mlops.sources.nvidia import open_nvidia
from otel_mlops.sources.process import open_process
from otel_mlops.telemetry import Telemetry
from otel_mlops.testing import collect, fresh_telemetry
from tests.clock import Clock
from tests.nvml.driver import TURING, FakeDriver
from tests.sources.machine import FakePsutil, Sensor, Tree
from tests.sources.test_container import contain

OTHERS = {rows.SYSTEM_INFO, rows.EVENT_LOOP_LAG, rows.PYTHON_GC_PAUSE}
"""What no source reads: the service tells the first, and each worker times the others itself."""

AFTER_A_FAULT = {"gpu_xid_last_timestamp_seconds"}


@pytest.fixture
def everything(nvml: FakeDriver, tmp_path: Path) -> Iterator[Telemetry]:
    """Telemetry of a container with three GPUs, one of them divided and one old, on a machine that has everything."""
    clock, tree, world = Clock(1000.0), Tree(tmp_path / "tree"), FakePsutil()
    contain(tree)
    tree.disk("sda")
    tree.interface("eth0", real=True)
    tree.pressure(cpu=1_000_000, memory=0, io=0)
    tree.pressure("sys/fs/cgroup", cpu=1_000_000, memory=0, io=0)
    world.sensors = {"coretemp": [Sensor("Package id 0", 41.0, 80.0, 100.0)]}
    nvml.set_gpus(3)
    nvml.gpu(2).become(TURING)
    nvml.gpu(1).set("mig_mode", 1)
    pids = {"0": os.getpid()}
    nvml.gpu(0).run(os.getpid(), 2**30)
    gpus = open_nvidia(pynvml, gpus="all", environ={}, pids=lambda: pids, clock=clock)
    sources = {
        "host": open_host(world, root=tree.root, clock=clock),
        "container": open_container(tree.root, cpus=lambda: 8, clock=clock),
        "process": open_process(lambda: pids),
        "nvidia": gpus,
    }
    with fresh_telemetry(sources=sources) as telemetry:
        telemetry.start()
        telemetry.sample()
        for _ in range(3):
            clock.now_s += 60
            nvml.advance(60)
            telemetry.sample()
        yield telemetry
    gpus.close()


def test_each_row_of_the_machine_has_a_source(everything: Telemetry):
    """Each row of the host, the container, the workers, the GPUs and their instances comes to stand on a page."""
    page = collect(everything)
    every = (*machine.SYSTEM, *machine.CONTAINER, *machine.PROCESS, *gpu.GPU, *gpu.MIG)
    missing = {row.page_name for row in every if row not in OTHERS} - {
        name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in page.names()
    }
    assert missing == AFTER_A_FAULT


def test_what_counts_is_counted_once(everything: Telemetry):
    """What a source counts stands on the page as the sum of its readings, however often the page is made."""
    for _ in range(3):
        page = collect(everything)
    busy = page.value("gpu_busy_seconds_total", gpu_id="0")
    assert 0 < busy <= 180
    assert page.value("gpu_xid_errors_total", gpu_id="0", xid="79") == 0
    assert page.value("container_cpu_usage_seconds_total") == 100
