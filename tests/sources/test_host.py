"""The machine as a source: psutil's fake and the kernel's files as a test writes them, then this machine itself."""

from __future__ import annotations

import errno
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_mlops.metrics import (
    CATALOGUE,
    HARDWARE_TEMPERATURE,
    SYSTEM_CPU_LOAD_1M,
    SYSTEM_CPU_LOAD_5M,
    SYSTEM_CPU_LOAD_15M,
    SYSTEM_CPU_USAGE,
    SYSTEM_DISK_IO,
    SYSTEM_DISK_TOTAL,
    SYSTEM_DISK_USAGE,
    SYSTEM_MEMORY_TOTAL,
    SYSTEM_MEMORY_USAGE,
    SYSTEM_NETWORK_IO,
    SYSTEM_PRESSURE,
    SYSTEM_SWAP_TOTAL,
    SYSTEM_SWAP_USAGE,
)
from otel_mlops.sources.files import pairs_of, text_of
from otel_mlops.sources.host import open_host
from otel_mlops.sources.sampler import Source
from tests.clock import Clock
from tests.sources.contract import series_of
from tests.sources.machine import (
    Disk,
    FakePsutil,
    Interface,
    Partition,
    Sensor,
    Swap,
    Tree,
    Usage,
    only,
    values,
)

LINUX = sys.platform == "linux"
LOADS = {SYSTEM_CPU_LOAD_1M, SYSTEM_CPU_LOAD_5M, SYSTEM_CPU_LOAD_15M}
DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture
def machine():
    """A machine that the test describes."""
    machine = FakePsutil()
    yield machine
    machine.leave.set()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """The kernel's files of that machine: one disk and one real interface."""
    tree = Tree(tmp_path / "root")
    tree.disk("sda")
    tree.interface("eth0", real=True)
    tree.interface("lo", kind="772")
    return tree


@pytest.fixture
def clock() -> Clock:
    """A clock that the test moves."""
    return Clock(1000.0)


@pytest.fixture
def opened(tree: Tree, clock: Clock) -> Callable[..., Source]:
    """Opens machines whose kernel's files are the tree's."""
    return lambda driver, **arguments: open_host(driver, root=tree.root, clock=clock, **arguments)


# --- CPU, load and memory ----------------------------------------------------------------------------------


def cpu_percent(source: Source) -> float | None:
    """The CPU figure of one reading."""
    return only(source(), SYSTEM_CPU_USAGE)


def test_the_cpu_figure_is_that_of_the_time_since_the_last_reading(machine, opened):
    """Each reading covers the window since the one before, the first that since the opening."""
    source = opened(machine)
    machine.spend(user=1.0, idle=3.0)
    assert cpu_percent(source) == 25.0
    machine.spend(system=1.0, nice=1.0, iowait=1.0, idle=1.0)
    assert cpu_percent(source) == 50.0


def test_a_guests_time_is_not_counted_twice(machine, opened):
    """Linux counts the time of virtual machines in user and nice already."""
    source = opened(machine)
    machine.spend(user=2.0, guest=2.0, nice=1.0, guest_nice=1.0, idle=3.0)
    assert cpu_percent(source) == 50.0


def test_all_other_times_are_busy(machine, opened):
    """Interrupts and stolen time are not idle; what a system does not count is not missed."""
    source = opened(machine)
    machine.spend(irq=1.0, softirq=1.0, steal=1.0, idle=1.0)
    assert cpu_percent(source) == 75.0
    machine.times = {"user": 1.0, "nice": 0.0, "system": 0.0, "idle": 0.0}
    source = opened(machine)
    machine.spend(system=1.0, idle=1.0)
    assert cpu_percent(source) == 50.0


def test_a_window_too_short_to_mean_anything_repeats_the_last_figure(machine, opened):
    """Two readings within a clock tick do not give 0 or 100, and the time between them is not lost."""
    source = opened(machine)
    assert cpu_percent(source) == 10.0  # since boot: nothing better is known yet
    machine.spend(user=3.0, idle=1.0)
    assert cpu_percent(source) == 75.0
    machine.spend(user=0.01)
    assert cpu_percent(source) == 75.0
    machine.spend(idle=0.99)
    assert cpu_percent(source) == pytest.approx(1.0)


def test_times_that_step_back_keep_the_figure_in_its_range(machine, opened):
    """Where iowait or a CPU that went offline makes a counter smaller, the figure stays within 0 to 100."""
    source = opened(machine)
    machine.spend(user=4.0, idle=-2.0, iowait=-1.0)
    assert cpu_percent(source) == 100.0
    machine.spend(user=-50.0, idle=4.0)
    assert cpu_percent(source) == 0.0


def test_the_cpu_figure_does_not_depend_on_the_thread(machine, opened):
    """A thread that is new gets the same figure: psutil's own gives it 0."""
    source = opened(machine)
    figures = []
    for _ in range(3):
        machine.spend(user=1.0, idle=1.0)
        thread = threading.Thread(target=lambda: figures.append(cpu_percent(source)))
        thread.start()
        thread.join(10)
    assert figures == [50.0, 50.0, 50.0]


def test_many_cpus_need_no_longer_window(machine, opened):
    """The shortest window is one of the clock's: what all CPUs spend in it grows with their number."""
    machine.cpus = 8
    source = opened(machine)
    machine.spend(user=3.0, idle=1.0)
    assert cpu_percent(source) == 75.0
    machine.spend(user=0.7)
    assert cpu_percent(source) == 75.0
    machine.spend(idle=0.7)
    assert cpu_percent(source) == pytest.approx(50.0)


def test_a_second_reader_changes_no_figure(machine, tree, clock, opened):
    """What another sampler reads in between shortens no window."""
    tree.pressure(cpu=0, memory=0, io=0)
    source, other = opened(machine), opened(machine)
    source()
    for _ in range(3):
        machine.spend(user=1.0)
        other()
        machine.spend(idle=1.0)
        clock.now_s += 2.0
        tree.pressure(cpu=int(1e6 * (clock.now_s - 1000) / 4), memory=0, io=0)
        other()
        samples = source()
        assert only(samples, SYSTEM_CPU_USAGE) == 50.0
        assert values(samples, SYSTEM_PRESSURE)["cpu",] == pytest.approx(0.25)


def test_the_load_is_that_of_three_windows(machine, opened):
    """Each average has its own metric."""
    samples = opened(machine)()
    found = [only(samples, row) for row in (SYSTEM_CPU_LOAD_1M, SYSTEM_CPU_LOAD_5M, SYSTEM_CPU_LOAD_15M)]
    assert found == [1.5, 1.0, 0.5]


def test_windows_has_no_load(machine, opened):
    """What psutil imitates there is not asked for."""
    machine.WINDOWS, machine.load = True, None
    assert not LOADS & {sample.metric for sample in opened(machine)()}


def test_memory_in_use_is_what_is_not_available(machine, opened):
    """Caches that can be given back are not in use."""
    samples = opened(machine)()
    assert values(samples, SYSTEM_MEMORY_USAGE) == {(): 600}
    assert values(samples, SYSTEM_MEMORY_TOTAL) == {(): 1000}


def test_swap_has_its_use_and_its_size(machine, opened):
    """A machine without swap says that it has 0 of it, which it knows."""
    samples = opened(machine)()
    assert (only(samples, SYSTEM_SWAP_USAGE), only(samples, SYSTEM_SWAP_TOTAL)) == (25, 100)
    machine.swap = Swap(0, 0, 0, 0.0)
    samples = opened(machine)()
    assert (only(samples, SYSTEM_SWAP_USAGE), only(samples, SYSTEM_SWAP_TOTAL)) == (0, 0)


# --- Pressure ----------------------------------------------------------------------------------------------


def pressure(source: Source) -> dict[str, float]:
    """The pressure of one reading, by resource."""
    return {resource: ratio for (resource,), ratio in values(source(), SYSTEM_PRESSURE).items()}


def test_pressure_is_the_share_of_the_time_in_which_some_task_waited(machine, tree, clock, opened):
    """It is the growth of the total between two readings; the first has none, and the total never counts twice."""
    tree.pressure(cpu=5_000_000, memory=0, io=100)
    source = opened(machine)
    assert pressure(source) == {}
    clock.now_s += 4.0
    tree.pressure(cpu=6_000_000, memory=0, io=4_000_100)
    assert pressure(source) == {"cpu": 0.25, "memory": 0.0, "io": pytest.approx(1.0)}
    clock.now_s += 2.0
    assert pressure(source) == {"cpu": 0.0, "memory": 0.0, "io": 0.0}


def test_a_window_too_short_repeats_the_pressure(machine, tree, clock, opened):
    """Two readings within a moment do not give 0 or 1, and the time between them is not lost."""
    tree.pressure(cpu=0)
    source = opened(machine)
    source()
    clock.now_s += 1.0
    tree.pressure(cpu=500_000)
    assert pressure(source) == {"cpu": 0.5}
    clock.now_s += 0.05
    tree.pressure(cpu=550_000)
    assert pressure(source) == {"cpu": 0.5}
    clock.now_s += 0.95
    assert pressure(source) == {"cpu": pytest.approx(0.05)}


def test_pressure_stays_within_its_range(machine, tree, clock, opened):
    """A total that is a moment newer than the clock, or that begins anew, gives no share past 0 to 1."""
    tree.pressure(cpu=1_000_000, memory=1_000_000)
    source = opened(machine)
    source()
    clock.now_s += 1.0
    tree.pressure(cpu=2_000_500, memory=0)
    assert pressure(source) == {"cpu": 1.0, "memory": 0.0}


def test_a_kernel_without_pressure_has_none(machine, tree, clock, opened):
    """Where there are no such files the metric is absent, and that is no fault."""
    source = opened(machine)
    source()
    clock.now_s += 1.0
    assert pressure(source) == {}
    for total in (7, 500_000):
        tree.write("proc/pressure/cpu", f"full avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n")
        assert pressure(source) == {}
        clock.now_s += 1.0


class Refusing:
    """A file that the kernel refuses to read."""

    def __init__(self, code: int):
        self._code = code

    def read_text(self, **_arguments) -> str:
        raise OSError(self._code, os.strerror(self._code))


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOTDIR, errno.EOPNOTSUPP])
def test_a_file_that_the_kernel_does_not_have_says_nothing(code):
    """Accounting that was switched off at the start shows as files that cannot be read, or as none."""
    assert text_of(Refusing(code)) is None
    assert pairs_of(Refusing(code)) == {}


def test_a_file_that_may_not_be_read_is_a_fault():
    """What is there and refused is said."""
    with pytest.raises(PermissionError):
        text_of(Refusing(errno.EACCES))


OWN, MACHINES = {"cpu": 0.25, "memory": 0.5}, {"cpu": 0.75, "memory": 1.0}


def contained(tree: Tree, clock: Clock, source: Source) -> dict[str, float]:
    """The pressure where that of the own group is OWN, and that of the machine MACHINES."""
    for folder in ("proc/pressure", "sys/fs/cgroup/own"):
        tree.pressure(folder, cpu=0, memory=0)
    source()
    clock.now_s += 4.0
    tree.pressure("proc/pressure", cpu=3_000_000, memory=4_000_000)
    tree.pressure("sys/fs/cgroup/own", cpu=1_000_000, memory=2_000_000)
    return pressure(source)


@pytest.mark.parametrize("limit", [{"cpu": "100000 100000"}, {"memory": "500000000"}])
def test_a_limited_group_has_its_own_pressure(machine, tree, clock, opened, limit):
    """Where the group is limited, what its own tasks wait for counts: a throttled one waits on an idle machine."""
    tree.write("proc/meminfo", "MemTotal: 1000000 kB\n")
    tree.group("/own")
    tree.limits("/own", **limit)
    assert contained(tree, clock, opened(machine)) == OWN


def test_a_namespace_has_its_own_pressure(machine, tree, clock, opened):
    """In a container without a limit nothing but its own tree is seen, and the tasks in that count."""
    tree.group("/own")
    tree.write("sys/fs/cgroup/cgroup.type", "domain\n")
    assert contained(tree, clock, opened(machine)) == OWN


@pytest.mark.parametrize("where", ["a login session", "the root", "cgroup v1", "accounting off"])
def test_else_the_pressure_is_the_machines(machine, tree, clock, opened, where):
    """A group without a limit is no container, and one whose kernel does not tell leaves the machine's."""
    tree.group("/" if where == "the root" else "/own")
    if where == "cgroup v1":
        tree.write("proc/self/cgroup", "4:cpu,cpuacct:/own\n0::/own\n")
    if where == "accounting off":
        tree.limits("/own", cpu="50000 100000")
    else:
        assert contained(tree, clock, opened(machine)) == MACHINES
        return
    source = opened(machine)
    tree.pressure(cpu=0)
    source()
    clock.now_s += 4.0
    tree.pressure(cpu=3_000_000)
    assert pressure(source) == {"cpu": 0.75}


# --- Disks ---------------------------------------------------------------------------------------------------


def test_each_file_system_has_its_space(machine, opened):
    """Use and size stand by mount point."""
    samples = opened(machine)()
    assert values(samples, SYSTEM_DISK_USAGE) == {("/",): 40, ("/data",): 50}
    assert values(samples, SYSTEM_DISK_TOTAL) == {("/",): 100, ("/data",): 200}


def test_images_and_second_mounts_of_a_device_are_left_out(machine, opened):
    """A read-only image is always full, and a device mounted twice is one file system."""
    machine.partitions += [
        Partition("/dev/loop3", "/snap/core/1", "squashfs", "ro"),
        Partition("/dev/loop4", "/mnt/disk-image", "ext4", "rw"),
        Partition("/dev/sr0", "/media/cdrom", "iso9660", "ro"),
        Partition("/dev/sdb1", "/var/lib/kubelet/pods/7/volumes/data", "xfs", "rw"),
    ]
    assert values(opened(machine)(), SYSTEM_DISK_USAGE) == {("/",): 40, ("/data",): 50}


def test_a_container_shows_its_root_and_no_single_files(machine, tmp_path, opened):
    """Psutil leaves out the overlay at the root and lists the files mounted from the host's disk."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost")
    volume = str(tmp_path / "a-volume-with-a-longer-name")
    machine.partitions = [
        Partition("/dev/sda1", str(hosts), "ext4", "rw"),
        Partition("/dev/sda1", volume, "ext4", "rw"),
    ]
    machine.usages[str(hosts)] = machine.usages[volume] = Usage(300, 60, 240, 20.0)
    assert values(opened(machine)(), SYSTEM_DISK_USAGE) == {("/",): 40, (volume,): 60}


def test_a_mount_that_cannot_be_read_leaves_the_others_whole(machine, caplog, opened):
    """An unreadable mount is absent and logged once; another mount of its device stands in for it."""
    machine.partitions.append(Partition("/dev/sda1", "/rescue", "ext4", "rw"))
    machine.usages |= {"/": PermissionError("no"), "/rescue": Usage(100, 41, 59, 41.0)}
    source = opened(machine)
    for _ in range(3):
        assert values(source(), SYSTEM_DISK_USAGE) == {("/rescue",): 41, ("/data",): 50}
    assert [record.getMessage() for record in caplog.records] == ["The file system at / cannot be read: no"]


def test_a_mount_that_hangs_leaves_everything_else_whole(machine, caplog, opened):
    """A dead mount costs its timeout once and one thread; it is back when it answers."""
    machine.usages["/data"] = "hangs"
    source = opened(machine, disk_timeout_s=0.05)
    for _ in range(3):
        samples = source()
        assert values(samples, SYSTEM_DISK_USAGE) == {("/",): 40}
        assert values(samples, SYSTEM_MEMORY_TOTAL) == {(): 1000}
    stuck = [thread for thread in threading.enumerate() if thread.name == "otel-mlops-disk"]
    assert len(stuck) == 1
    assert len(caplog.records) == 1
    machine.usages["/data"] = Usage(200, 51, 149, 25.5)
    machine.leave.set()
    stuck[0].join(10)
    assert values(source(), SYSTEM_DISK_USAGE) == {("/",): 40, ("/data",): 51}


def test_a_mount_point_that_is_no_text_can_be_written(machine, opened):
    """A path of bytes that are not UTF-8 becomes a label all the same."""
    odd = "/mnt/caf\udce9"
    machine.partitions.append(Partition("/dev/sdc1", odd, "ext4", "rw"))
    machine.usages[odd] = Usage(10, 1, 9, 10.0)
    labels = values(opened(machine)(), SYSTEM_DISK_USAGE)
    assert ("/mnt/caf?",) in labels


def traffic(source: Source) -> dict[str, float]:
    """The bytes of the disks and of the network in one reading, by direction."""
    samples = source()
    found = values(samples, SYSTEM_DISK_IO) | values(samples, SYSTEM_NETWORK_IO)
    return {direction: count for (direction,), count in found.items()}


def test_a_disk_counts_once(machine, tree, opened):
    """Partitions are in their disk, and what is made of disks, of files or of memory is no disk."""
    others = {"sda1": 1, "dm-0": 2, "md0": 3, "loop0": 4, "ram0": 5, "zram0": 6, "nbd0": 7, "bcache0": 8}
    for name in others:
        tree.write(f"sys/block/{name}/size", "1")
    tree.remove("sys/block/sda1")
    tree.disk("cciss!c0d0")
    machine.disks = {name: Disk(10**size, 10**size) for name, size in others.items()}
    machine.disks |= {"sda": Disk(500, 50), "cciss/c0d0": Disk(70, 7)}
    found = traffic(opened(machine))
    assert (found["read"], found["write"]) == (570, 57)


@pytest.mark.parametrize("head", [Disk(0, 0), Disk(300, 30), Disk(298, 29)])
def test_an_nvme_disk_with_several_paths_counts_once(machine, tree, opened, head):
    """Linux before 6.4 counts on the hidden paths alone, later ones on the disk as well."""
    tree.disk("nvme0n1")
    for path in ("nvme0c0n1", "nvme0c1n1"):
        tree.disk(path)
        tree.write(f"sys/block/{path}/hidden", "1\n")
    machine.disks = {"nvme0c0n1": Disk(200, 20), "nvme0c1n1": Disk(100, 10), "nvme0n1": head}
    found = traffic(opened(machine))
    assert (found["read"], found["write"]) == (300, 30)


def test_elsewhere_than_on_linux_every_disk_counts(machine, opened):
    """Macos and Windows have no /sys, and psutil names whole disks only."""
    machine.LINUX = False
    machine.disks = {"disk0": Disk(5, 1), "disk1": Disk(6, 2)}
    machine.interfaces = {"lo0": Interface(1, 1), "en0": Interface(20, 10), "lowpan0": Interface(2, 1)}
    assert traffic(opened(machine)) == {"read": 11, "write": 3, "transmit": 22, "receive": 11}


@pytest.mark.parametrize("disks", [{}, None, {"loop0": Disk(1, 1)}, NotImplementedError("no diskstats")])
def test_a_system_that_counts_no_disks_has_no_figure_of_them(machine, opened, caplog, disks):
    """Absent is no fault: nothing is said and nothing shown."""
    machine.disks = disks
    assert set(traffic(opened(machine))) == {"transmit", "receive"}
    assert not caplog.records


def test_totals_never_step_back(machine, tree, opened):
    """A disk or an interface that goes leaves what it had counted, and one that comes or begins anew adds its own."""
    for name in ("sdb", "sdc"):
        tree.disk(name)
    tree.interface("eth1", real=True)
    source = opened(machine)
    machine.disks = {"sda": Disk(100, 1), "sdb": Disk(1000, 10)}
    machine.interfaces = {"eth0": Interface(5, 50), "eth1": Interface(7, 70)}
    assert traffic(source) == {"read": 1100, "write": 11, "transmit": 12, "receive": 120}
    machine.disks, machine.interfaces = {"sda": Disk(101, 1)}, {"eth1": Interface(8, 70)}
    assert traffic(source) == {"read": 1101, "write": 11, "transmit": 13, "receive": 120}
    machine.disks = {"sda": Disk(3, 2), "sdb": Disk(2000, 0), "sdc": Disk(20, 20)}
    assert traffic(source) == {"read": 3124, "write": 32, "transmit": 13, "receive": 120}


def test_a_count_that_cannot_be_leaves_the_total_as_it_was(machine, opened):
    """A reading that fails is none: the next one goes on from the last that was good."""
    source = opened(machine)
    for count, total in ((1000, 1000), (-1, None), (math.nan, None), (math.inf, None), (1000, 1000), (1001, 1001)):
        machine.disks = {"sda": Disk(count, 5)}
        assert traffic(source).get("read") == total


# --- Network -----------------------------------------------------------------------------------------------


def counted(source: Source) -> float:
    """The bytes sent in one reading, in which each interface has sent another power of two."""
    return traffic(source)["transmit"]


def test_real_interfaces_count_and_what_stands_on_them_does_not(machine, tree, opened):
    """Bridges, bonds, VLANs, tunnels and containers' ends carry what a real interface has counted."""
    tree.interface("ib0", real=True, kind="32")
    for virtual in ("docker0", "veth1", "bond0", "eth0.7", "wg0", "cali7"):
        tree.interface(virtual)
    sent = ["eth0", "ib0", "lo", "docker0", "veth1", "bond0", "eth0.7", "wg0", "cali7"]
    machine.interfaces = {name: Interface(2**power, 0) for power, name in enumerate(sent)}
    assert counted(opened(machine)) == 1 + 2


def test_a_part_of_a_real_interface_does_not_count_beside_it(machine, tree, opened):
    """On Hyper-V the synthetic interface counts what its accelerated part carries; those of a bond count themselves."""
    for name in ("enP1", "eth1"):
        tree.interface(name, real=True)
    tree.interface("bond0")
    tree.link("sys/class/net/enP1/master", "sys/class/net/eth0")
    tree.link("sys/class/net/eth1/master", "sys/class/net/bond0")
    machine.interfaces = {name: Interface(2**power, 0) for power, name in enumerate(["eth0", "enP1", "eth1", "bond0"])}
    assert counted(opened(machine)) == 1 + 4


def test_a_container_counts_what_leaves_it(machine, tree, opened):
    """No interface of a container is real: all count but the loopback, tunnels and what lies within."""
    tree.remove("sys/class/net/eth0")
    for name in ("eth0", "tap0"):
        tree.interface(name)
    tree.interface("docker0", bridge__bridge_id="")
    tree.write("sys/class/net/docker0/bridge/bridge_id", "8000")
    tree.interface("veth1")
    tree.write("sys/class/net/veth1/brport/port_id", "0x8001")
    tree.interface("eth0.7", lower_eth0="")
    tree.interface("wg0", kind="65534")
    sent = ["eth0", "tap0", "lo", "docker0", "veth1", "eth0.7", "wg0"]
    machine.interfaces = {name: Interface(2**power, 0) for power, name in enumerate(sent)}
    assert counted(opened(machine)) == 1 + 2


def test_a_machine_whose_driver_is_loaded_anew_counts_no_others(machine, tree, opened):
    """Where an interface is real, the others never count, also while it is away; it begins at 0 when it is back."""
    tree.interface("cali7")
    machine.interfaces = {"eth0": Interface(100, 0), "cali7": Interface(1000, 0)}
    source = opened(machine)
    assert counted(source) == 100
    tree.remove("sys/class/net/eth0")
    machine.interfaces = {"cali7": Interface(1001, 0)}
    assert "transmit" not in traffic(source)
    tree.interface("eth0", real=True)
    machine.interfaces = {"eth0": Interface(3, 0), "cali7": Interface(1002, 0)}
    assert counted(source) == 103


def test_a_sandbox_without_sys_counts_all_but_the_loopback(machine, tree, opened):
    """Where the kernel tells nothing of an interface but its counts, its name decides."""
    tree.remove("sys/class/net")
    assert counted(opened(machine)) == 10


def test_a_machine_with_a_loopback_only_has_no_figure(machine, opened):
    """No traffic is counted where no interface leads out."""
    machine.interfaces = {"lo": Interface(7, 7)}
    assert set(traffic(opened(machine))) == {"read", "write"}


# --- Temperatures ------------------------------------------------------------------------------------------


def test_each_temperature_has_its_component(machine, opened):
    """A component is chip and label, numbered where two are alike; a sensor not connected is absent."""
    machine.sensors = {
        "coretemp": [Sensor("Core 0", 51.0, 90.0, 100.0), Sensor("Core 0", 52.0, 90.0, 100.0)],
        "acpitz": [Sensor("", 27.8, None, None), Sensor("", 0.0, None, None)],
        "nvme": [Sensor("Composite", None, None, None), Sensor("Sensor 1", -273.1, None, None)],
    }
    assert values(opened(machine)(), HARDWARE_TEMPERATURE) == {
        ("coretemp/Core 0",): 51.0,
        ("coretemp/Core 0#2",): 52.0,
        ("acpitz",): 27.8,
    }


def test_a_system_without_sensors_has_no_temperature(machine, opened):
    """Where psutil cannot read sensors, or finds none, the metric is absent, not 0."""
    assert values(opened(machine)(), HARDWARE_TEMPERATURE) == {}

    class WithoutSensors(FakePsutil):
        @property
        def sensors_temperatures(self):
            raise AttributeError("psutil has no such function here")

    samples = opened(WithoutSensors())()
    assert values(samples, HARDWARE_TEMPERATURE) == {}
    assert values(samples, SYSTEM_MEMORY_TOTAL) == {(): 1000}


# --- Faults ------------------------------------------------------------------------------------------------

CALLS = {
    "cpu_times": {SYSTEM_CPU_USAGE},
    "getloadavg": LOADS,
    "virtual_memory": {SYSTEM_MEMORY_USAGE, SYSTEM_MEMORY_TOTAL},
    "swap_memory": {SYSTEM_SWAP_USAGE, SYSTEM_SWAP_TOTAL},
    "disk_partitions": {SYSTEM_DISK_USAGE, SYSTEM_DISK_TOTAL},
    "disk_io_counters": {SYSTEM_DISK_IO},
    "net_io_counters": {SYSTEM_NETWORK_IO},
    "sensors_temperatures": {HARDWARE_TEMPERATURE},
}


def broken(*_arguments, **_keywords):
    """Raises, as a driver does."""
    raise OSError("broken")


@pytest.mark.parametrize("call", CALLS)
def test_a_part_that_cannot_be_read_leaves_the_others_whole(machine, opened, caplog, call):
    """Whatever part fails, the others are there, one line is logged, and the part comes back."""
    machine.sensors = {"acpitz": [Sensor("", 27.8, None, None)]}
    whole = {sample.metric for sample in opened(machine)()}
    setattr(machine, call, broken)
    source = opened(machine)
    for _ in range(3):
        assert whole - {sample.metric for sample in source()} == CALLS[call]
    assert len(caplog.records) == 1
    delattr(machine, call)
    assert {sample.metric for sample in source()} == whole
    setattr(machine, call, broken)
    source()
    assert len(caplog.records) == 2


def test_pressure_that_cannot_be_read_leaves_the_others_whole(machine, tree, opened, caplog):
    """A file that says nonsense is a fault of its part, said once."""
    source = opened(machine)
    whole = {sample.metric for sample in source()}
    tree.write("proc/pressure/cpu", "some avg10=0.00 total=much\n")
    for _ in range(3):
        assert {sample.metric for sample in source()} == whole
    assert len(caplog.records) == 1
    assert "machine's pressure cannot be read: ValueError" in caplog.text


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "many", None, 10**400])
def test_a_figure_that_cannot_be_is_a_fault_of_its_part(machine, opened, caplog, value):
    """What is no finite number from 0 on is not shown, wherever psutil says it."""
    machine.memory = machine.memory._replace(total=value)
    machine.swap = machine.swap._replace(used=value)
    machine.load = (1.0, value, 1.0)
    machine.disks = {"sda": Disk(value, 1)}
    machine.interfaces = {"eth0": Interface(1, value)}
    assert {sample.metric for sample in opened(machine)()} == {SYSTEM_CPU_USAGE, SYSTEM_DISK_USAGE, SYSTEM_DISK_TOTAL}
    assert len(caplog.records) == 5


FILES = [
    "proc/pressure/cpu", "proc/pressure/io", "proc/self/cgroup", "proc/self/mountinfo", "proc/meminfo",
    "sys/fs/cgroup/own/cpu.max", "sys/fs/cgroup/own/memory.max", "sys/fs/cgroup/own/cpu.pressure",
    "sys/class/net/eth0/type", "sys/block/sda/hidden",
]  # fmt: skip
NONSENSE = st.one_of(
    st.sampled_from(["", "\n", "0::", "0::/own\n", "0::/\0\n", "-1 -1", "0 0", "1 0", "nan inf", "some", " - cgroup2"]),
    st.sampled_from(["some total=-5", f"some total={10**400}", f"some total={'9' * 5000}", "some total=\udcff"]),
    st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"]), max_size=40),
)


@settings(deadline=None, max_examples=20)  # it writes files, which takes its time on a busy machine
@given(said=st.dictionaries(st.sampled_from(FILES), NONSENSE, max_size=3), later=NONSENSE)
def test_nonsense_in_the_kernels_files_harms_their_parts_only(said, later):
    """Whatever the files say, nothing raises, what else is read is there, and each value is one that can be."""
    with tempfile.TemporaryDirectory() as folder:
        tree, clock = Tree(Path(folder)), Clock(1000.0)
        tree.group("/own")
        tree.limits("/own", cpu="50000 100000")
        tree.pressure(cpu=0, memory=0, io=0)
        tree.disk("sda")
        tree.interface("eth0")
        source = open_host(FakePsutil(), root=tree.root, clock=clock)
        for path, text in said.items():
            tree.write(path, text)
        source()
        clock.now_s += 1.0
        tree.write("proc/pressure/cpu", later)
        samples = source()
    whole = {SYSTEM_CPU_USAGE, SYSTEM_MEMORY_TOTAL, SYSTEM_SWAP_TOTAL, SYSTEM_DISK_TOTAL}
    assert whole <= {row for row, _ in series_of(samples)}
    assert all(ratio <= 1 for ratio in values(samples, SYSTEM_PRESSURE).values())


def test_a_machine_of_which_nothing_can_be_read_is_down(machine, opened):
    """When every part fails the reading raises, so that the source is seen to be down."""
    for call in CALLS:
        setattr(machine, call, broken)
    source = opened(machine)
    with pytest.raises(OSError, match="broken"):
        source()


def test_without_psutil_the_host_cannot_be_opened(monkeypatch):
    """The import is late, and its failure is the opener's."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ImportError):
        open_host()


@pytest.mark.parametrize("is_ending", [False, True])
def test_a_program_that_ends_has_no_fault(
    machine, opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_ending: bool
):
    """Where no thread can be started any more because the program ends nothing is said; at other times it is."""
    source = opened(machine)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    main = threading.Thread() if is_ending else threading.main_thread()
    monkeypatch.setattr(threading, "main_thread", lambda: main)
    assert values(source(), SYSTEM_MEMORY_TOTAL)
    assert bool(caplog.records) is not is_ending


# --- This machine ------------------------------------------------------------------------------------------


def test_every_sample_of_this_machine_can_be_shown():
    """What the source gives is declared, finite, labelled as its row says, in range, and there once."""
    samples = list(open_host()())
    series_of(samples)
    assert 0 <= only(samples, SYSTEM_CPU_USAGE) <= 100
    assert 0 < only(samples, SYSTEM_MEMORY_USAGE) < only(samples, SYSTEM_MEMORY_TOTAL)
    assert 0 <= only(samples, SYSTEM_SWAP_USAGE) <= only(samples, SYSTEM_SWAP_TOTAL)
    used, total = values(samples, SYSTEM_DISK_USAGE), values(samples, SYSTEM_DISK_TOTAL)
    assert ("/",) in used
    assert used.keys() == total.keys()
    assert all(0 <= used[mount] <= total[mount] for mount in used)
    assert all(-100 < celsius < 200 for celsius in values(samples, HARDWARE_TEMPERATURE).values())


def test_the_fake_looks_like_psutil():
    """The fields that are read have the same names in psutil as in the fake."""
    fake = FakePsutil()
    assert {fake.LINUX, psutil.LINUX, fake.WINDOWS, psutil.WINDOWS} <= {True, False}
    assert {"user", "system", "idle"} <= set(psutil.cpu_times()._fields)
    if LINUX:
        assert set(psutil.cpu_times()._fields) == set(fake.cpu_times()._fields)
    assert psutil.cpu_count() in (*range(1, 10_000), None)
    assert len(psutil.getloadavg()) == len(fake.getloadavg())
    assert {"total", "available"} <= set(psutil.virtual_memory()._fields)
    assert set(Swap._fields) <= set(psutil.swap_memory()._fields)
    assert set(Partition._fields) <= set(psutil._ntuples.sdiskpart._fields)
    assert all(set(Partition._fields) <= set(each._fields) for each in psutil.disk_partitions(all=False))
    assert set(Usage._fields) == set(psutil.disk_usage(os.sep)._fields)
    disks = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
    assert all(set(Disk._fields) <= set(each._fields) for each in disks.values())
    interfaces = psutil.net_io_counters(pernic=True, nowrap=False)
    assert all(set(Interface._fields) <= set(each._fields) for each in interfaces.values())
    sensors = getattr(psutil, "sensors_temperatures", dict)()
    assert all(set(Sensor._fields) <= set(each._fields) for chip in sensors.values() for each in chip)


@pytest.mark.skipif(not LINUX, reason="run this on Linux, which has /proc")
def test_the_figures_are_those_of_the_kernel():
    """Memory, swap, load and space agree with /proc and statvfs."""
    samples = open_host()()
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    meminfo = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    assert only(samples, SYSTEM_MEMORY_TOTAL) == meminfo["MemTotal"]
    in_use = meminfo["MemTotal"] - meminfo["MemAvailable"]
    assert only(samples, SYSTEM_MEMORY_USAGE) == pytest.approx(in_use, abs=0.05 * meminfo["MemTotal"])
    assert only(samples, SYSTEM_SWAP_TOTAL) == meminfo["SwapTotal"]
    assert only(samples, SYSTEM_CPU_LOAD_15M) == pytest.approx(os.getloadavg()[2], abs=2)
    root = os.statvfs("/")
    assert values(samples, SYSTEM_DISK_TOTAL)["/",] == root.f_blocks * root.f_frsize


@pytest.mark.skipif(not LINUX, reason="run this on Linux, which has /proc/diskstats and /sys")
def test_the_bytes_are_those_that_psutil_counts():
    """The sums of what is chosen lie between psutil's counts before and after, and what is left out is no disk."""

    def sums() -> dict[str, int]:
        disks = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        disks = {name: each for name, each in disks.items() if Path("/sys/block", name, "device").exists()}
        interfaces = psutil.net_io_counters(pernic=True, nowrap=False)
        real = {name: each for name, each in interfaces.items() if Path("/sys/class/net", name, "device").exists()}
        if not real:
            real = {name: each for name, each in interfaces.items() if name != "lo"}
        found = {}
        if disks:
            found["read"] = sum(each.read_bytes for each in disks.values())
            found["write"] = sum(each.write_bytes for each in disks.values())
        if real:
            found["transmit"] = sum(each.bytes_sent for each in real.values())
            found["receive"] = sum(each.bytes_recv for each in real.values())
        return found

    before, between, after = sums(), traffic(open_host()), sums()
    assert set(between) == set(before)
    assert all(before[direction] <= between[direction] <= after[direction] for direction in between)


@pytest.mark.skipif(not LINUX, reason="run this on Linux, where one thread's CPU time can be held against the clock")
def test_a_computation_raises_the_cpu_figure():
    """At least this thread's share of the machine is in use, however often others ask psutil in between."""
    source, other = open_host(), open_host()
    began, began_cpu = time.monotonic(), time.thread_time()
    while time.monotonic() - began < 0.5:
        sum(range(1000))
    share = 100 * (time.thread_time() - began_cpu) / (time.monotonic() - began) / (os.cpu_count() or 1)
    assert share > 0
    psutil.cpu_percent()
    psutil.disk_io_counters()
    other()
    # The kernel counts in ticks of 10 ms on each CPU.
    assert cpu_percent(source) >= share - 10


def test_tasks_that_wait_raise_the_pressure():
    """While more tasks want to run than there are CPUs some of them wait; a kernel that does not tell has no figure."""
    source = open_host()
    spin = [sys.executable, "-c", "while True: pass"]
    spinning = [subprocess.Popen(spin) for _ in range((os.cpu_count() or 1) + 1)]
    try:
        source()
        is_told = Path("/proc/pressure/cpu").exists()
        deadline = time.monotonic() + 20
        while is_told and pressure(source).get("cpu", 0.0) < 0.05:
            assert time.monotonic() < deadline, "no pressure was seen in time"
            time.sleep(0.01)
        assert bool(pressure(source)) is is_told
    finally:
        for each in spinning:
            each.kill()
            each.wait()


# --- The docs ----------------------------------------------------------------------------------------------


def test_the_docs_explain_each_number_of_the_machine():
    """Each metric of the machine and of the container has its place in docs/machine.md, which names no others."""
    text = (DOCS / "machine.md").read_text(encoding="utf-8")
    rows = {row.page_name for row in CATALOGUE}
    told = set(re.findall(r"\b(?:system|container|hardware)_[a-z0-9_]+", text))
    assert told <= rows
    ours = {name for name in rows if name.startswith(("system_", "container_", "hardware_"))} - {"system_info"}
    assert ours <= told
