"""The container as a source: trees of control groups as a test writes them, then a group of this machine's kernel."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.metrics import CallbackOptions

from otel_mlops.metrics import (
    CONTAINER,
    CONTAINER_CPU_LIMIT,
    CONTAINER_CPU_THROTTLED,
    CONTAINER_CPU_USAGE,
    CONTAINER_CPU_UTILIZATION,
    CONTAINER_MEMORY_EVENTS,
    CONTAINER_MEMORY_LIMIT,
    CONTAINER_MEMORY_USAGE,
    CONTAINER_MEMORY_UTILIZATION,
    CONTAINER_MEMORY_WORKING_SET,
    SOURCE_UP,
)
from otel_mlops.sources.container import cpus_of_this_process, open_container
from otel_mlops.sources.sampler import Absent, Sample, Sampler, Source
from tests.clock import Clock
from tests.sources.contract import series_of
from tests.sources.machine import Tree, only, values

CPUS = 8
MIB = 1024 * 1024
LIMITS = {CONTAINER_CPU_LIMIT, CONTAINER_MEMORY_LIMIT, CONTAINER_MEMORY_UTILIZATION}


def contain(tree: Tree) -> None:
    """A container in a namespace of its own, on a machine of 16 GB, that may use 4 CPUs and 4000 bytes."""
    tree.write("proc/meminfo", "MemTotal:       16000000 kB\nMemFree: 1 kB\n")
    tree.group()
    tree.write("sys/fs/cgroup/cgroup.type", "domain\n")
    tree.limits(cpu="400000 100000", memory="4000")
    tree.uses(cpu_s=100, throttled_s=7, memory=1000, file=200)
    tree.events(low=1, high=2, max=3, oom=4, oom_kill=5, oom_group_kill=6)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A container that the test describes further."""
    tree = Tree(tmp_path / "root")
    contain(tree)
    return tree


@pytest.fixture
def clock() -> Clock:
    """A clock that the test moves."""
    return Clock(1000.0)


@pytest.fixture
def source(tree: Tree, clock: Clock) -> Source:
    """The container of the tree, on a machine of 8 CPUs."""
    return open_container(tree.root, cpus=lambda: CPUS, clock=clock)


# --- What a container uses ---------------------------------------------------------------------------------


def test_a_container_has_its_limits_and_its_use(tree, clock, source):
    """Each figure is that of the kernel's files, in seconds, cores and bytes; shares are of the limits."""
    source()
    clock.now_s += 10.0
    tree.uses(cpu_s=120, throttled_s=7.5, memory=1000, file=200)
    samples = source()
    assert only(samples, CONTAINER_CPU_LIMIT) == 4
    assert only(samples, CONTAINER_CPU_USAGE) == 120
    assert only(samples, CONTAINER_CPU_THROTTLED) == 7.5
    assert only(samples, CONTAINER_CPU_UTILIZATION) == 0.5
    assert only(samples, CONTAINER_MEMORY_LIMIT) == 4000
    assert only(samples, CONTAINER_MEMORY_USAGE) == 1000
    assert only(samples, CONTAINER_MEMORY_WORKING_SET) == 800
    assert only(samples, CONTAINER_MEMORY_UTILIZATION) == 0.2
    events = {("high",): 2, ("max",): 3, ("oom",): 4, ("oom_kill",): 5}
    assert values(samples, CONTAINER_MEMORY_EVENTS) == events
    assert {row for row, _ in series_of(samples)} == set(CONTAINER)


def test_what_is_not_limited_has_no_limit(tree, clock, source):
    """Without limits the use is there, that of the CPUs as a share of those that the container may run on."""
    tree.limits()
    samples = source()
    assert {sample.metric for sample in samples} == set(CONTAINER) - LIMITS - {CONTAINER_CPU_UTILIZATION}
    clock.now_s += 10.0
    tree.uses(cpu_s=120)
    assert only(source(), CONTAINER_CPU_UTILIZATION) == 0.25
    tree.write("sys/fs/cgroup/cpuset.cpus.effective", "0-2,7\n")
    clock.now_s += 10.0
    tree.uses(cpu_s=140)
    assert only(source(), CONTAINER_CPU_UTILIZATION) == 0.5


@pytest.mark.parametrize(
    ("own", "around", "counts"),
    [
        ({"cpu": "400000 100000"}, {"cpu": "150000 100000"}, "around"),
        ({"cpu": "50000 100000"}, {"cpu": "150000 100000"}, "own"),
        ({"cpu": "150000 100000"}, {"cpu": "300000 200000"}, "own"),
        ({}, {"cpu": "150000 100000"}, "around"),
        ({"memory": "4000"}, {"memory": "3000"}, "around"),
        ({"memory": "3000"}, {"memory": "4000"}, "own"),
        ({"memory": "3000"}, {"memory": "3000"}, "own"),
        ({}, {"memory": "3000"}, "around"),
        ({}, {}, "own"),
    ],
)
def test_the_tightest_limit_counts_and_the_use_of_its_group(tree, source, own, around, counts):
    """A limit binds all that lies in the group that has it, so what is used of it is what all of those use."""
    tree.remove("sys/fs/cgroup")
    tree.group("/slice/service")
    tree.limits("/slice", **around)
    tree.limits("/slice/service", **own)
    tree.uses("/slice", cpu_s=50, memory=2000)
    tree.uses("/slice/service", cpu_s=5, memory=200)
    tree.events("/slice", oom_kill=9)
    tree.events("/slice/service", oom_kill=2)
    samples = source()
    is_cpus, is_memorys = "cpu" in own | around, "memory" in own | around
    assert only(samples, CONTAINER_CPU_USAGE) == (50 if is_cpus and counts == "around" else 5)
    of_memory = only(samples, CONTAINER_MEMORY_USAGE), values(samples, CONTAINER_MEMORY_EVENTS)["oom_kill",]
    assert of_memory == ((2000, 9) if is_memorys and counts == "around" else (200, 2))
    tightest = {"around": around, "own": own}[counts]
    assert only(samples, CONTAINER_MEMORY_LIMIT) == (int(tightest["memory"]) if is_memorys else None)
    quota = tightest.get("cpu", "").split()
    assert only(samples, CONTAINER_CPU_LIMIT) == (int(quota[0]) / int(quota[1]) if quota else None)


def test_a_limit_past_what_the_machine_has_is_none(tree, source):
    """A limit that can never bind is absent; one that is all that there is stays."""
    tree.limits(cpu="800000 100000", memory=str(16_000_000 * 1024))
    assert only(source(), CONTAINER_CPU_LIMIT) == 8
    assert only(source(), CONTAINER_MEMORY_LIMIT) == 16_000_000 * 1024
    tree.limits(cpu="800001 100000", memory=str(16_000_000 * 1024 + 1))
    assert not LIMITS & {sample.metric for sample in source()}


def test_a_limit_that_changes_at_run_time_is_seen(tree, clock, source):
    """A pod that is resized in place has its new limits at the next reading."""
    source()
    tree.limits(cpu="200000 100000", memory="1600")
    clock.now_s += 10.0
    tree.uses(cpu_s=120, memory=1000, file=200)
    samples = source()
    assert only(samples, CONTAINER_CPU_LIMIT) == 2
    assert only(samples, CONTAINER_CPU_UTILIZATION) == 1.0
    assert only(samples, CONTAINER_MEMORY_UTILIZATION) == 0.5


def test_the_utilization_is_that_of_the_time_since_the_last_reading(tree, clock, source):
    """A window too short repeats the last value, a burst goes past 1, and a group that begins anew has used nothing."""

    def used(cpu_s: float, after_s: float) -> float | None:
        clock.now_s += after_s
        tree.uses(cpu_s=cpu_s)
        return only(source(), CONTAINER_CPU_UTILIZATION)

    assert used(100, 0) is None
    assert used(120, 10) == 0.5
    assert used(120, 0.05) == 0.5
    assert used(120.5, 0.95) == pytest.approx(0.125)
    assert used(125.5, 1) == 1.25
    assert used(1, 1) == 0.0
    assert used(2, 1) == 0.25


def test_a_second_reader_changes_no_figure(tree, clock, source):
    """What another sampler reads in between shortens no window."""
    other = open_container(tree.root, cpus=lambda: CPUS, clock=clock)
    source()
    for cpu_s in (110, 120):
        clock.now_s += 5.0
        tree.uses(cpu_s=cpu_s)
        other()
    assert only(source(), CONTAINER_CPU_UTILIZATION) == 0.5


def test_the_cpus_are_those_of_the_own_group(tree, clock, source):
    """A group within another may run on fewer CPUs than that."""
    tree.group("/own")
    tree.uses("/own", cpu_s=0)
    tree.write("sys/fs/cgroup/cpuset.cpus.effective", "0-7\n")
    tree.write("sys/fs/cgroup/own/cpuset.cpus.effective", "4-5\n")
    tree.limits()
    source()
    clock.now_s += 10.0
    tree.uses("/own", cpu_s=5)
    assert only(source(), CONTAINER_CPU_UTILIZATION) == 0.25


def test_another_group_begins_a_window_of_its_own(tree, clock, source):
    """Where the tightest limit is another group's, or the process was moved, no share mixes the two."""
    tree.limits("/own", cpu="max 100000")
    tree.uses("/own", cpu_s=1)
    tree.group("/own")
    source()
    tree.limits("/own", cpu="100000 100000")
    clock.now_s += 10.0
    samples = source()
    assert only(samples, CONTAINER_CPU_LIMIT) == 1
    assert only(samples, CONTAINER_CPU_USAGE) == 1
    assert only(samples, CONTAINER_CPU_UTILIZATION) is None
    clock.now_s += 10.0
    tree.uses("/own", cpu_s=6)
    assert only(source(), CONTAINER_CPU_UTILIZATION) == 0.5
    tree.limits("/other", cpu="50000 100000")
    tree.uses("/other", cpu_s=70)
    tree.group("/other")
    assert only(source(), CONTAINER_CPU_USAGE) == 70


def test_a_cache_larger_than_the_use_leaves_a_working_set_of_0(tree, source):
    """The two are not read at the same moment, and nothing is below 0."""
    tree.uses(memory=1000)
    tree.write("sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 1001\n")
    assert only(source(), CONTAINER_MEMORY_WORKING_SET) == 0
    assert only(source(), CONTAINER_MEMORY_UTILIZATION) == 0


def test_memory_of_which_none_is_allowed_has_no_share(tree, source):
    """A limit of 0 is a limit, and no share of it can be."""
    tree.limits(memory="0")
    assert only(source(), CONTAINER_MEMORY_LIMIT) == 0
    assert only(source(), CONTAINER_MEMORY_UTILIZATION) is None


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("cpu.max", CONTAINER_CPU_LIMIT),
        ("memory.max", CONTAINER_MEMORY_LIMIT),
        ("memory.stat", CONTAINER_MEMORY_WORKING_SET),
        ("memory.events", CONTAINER_MEMORY_EVENTS),
        ("memory.current", CONTAINER_MEMORY_USAGE),
        ("cpu.stat", CONTAINER_CPU_USAGE),
    ],
)
def test_what_the_kernel_does_not_tell_is_absent(tree, source, caplog, file, row):
    """Where a controller is not there for the group, or the kernel is older, the rest stands, and it is no fault."""
    tree.remove(f"sys/fs/cgroup/{file}")
    found = {sample.metric for sample in source()}
    assert row not in found
    assert len(found) >= 4
    assert not caplog.records


def test_the_controller_of_the_cpu_is_needed_for_limits_only(tree, source):
    """Without it the kernel counts the time used all the same, and no throttling."""
    tree.write("sys/fs/cgroup/cpu.stat", "usage_usec 5000000\nuser_usec 1\nsystem_usec 1\n")
    assert only(source(), CONTAINER_CPU_USAGE) == 5
    assert only(source(), CONTAINER_CPU_THROTTLED) is None


# --- Where the group lies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "mount_point", "inside", "folder"),
    [
        ("/", "/sys/fs/cgroup", "/", ""),
        ("/a/b", "/sys/fs/cgroup", "/", "/a/b"),
        ("/docker/7", "/sys/fs/cgroup", "/docker/7", ""),
        ("/docker/7/worker", "/sys/fs/cgroup", "/docker/7", "/worker"),
        ("/a/caf\udce9 1", "/sys/fs/cgroup", "/", "/a/caf\udce9 1"),
        ("/a:b", "/sys/fs/cgroup", "/", "/a:b"),
        ("/a", "/mnt/control groups", "/", "/a"),
    ],
)
def test_the_own_group_is_found_in_its_mount(tree, source, path, mount_point, inside, folder):
    """The mount tells what part of the tree it shows, and where; names need be neither UTF-8 nor without blanks."""
    tree.remove("sys/fs/cgroup")
    tree.limits(folder, memory="77")
    tree.group(path, mount_point, inside)
    if mount_point != "/sys/fs/cgroup":
        tree.link(mount_point.lstrip("/"), "sys/fs/cgroup")
    assert only(source(), CONTAINER_MEMORY_LIMIT) == 77


def test_of_several_mounts_that_one_counts_which_shows_the_own_group(tree, source):
    """Another mount of the tree may show another part of it, or hide where it lies."""
    tree.group("/own")
    tree.limits("/own", memory="77")
    mountinfo = tree.root / "proc/self/mountinfo"
    others = [f"{number} 22 0:26 {inside} /else rw - cgroup2 cgroup rw\n" for number, inside in ((31, "/b"), (32, "/"))]
    mountinfo.write_text("".join([*others, mountinfo.read_text()]))
    assert only(source(), CONTAINER_MEMORY_LIMIT) == 77


def test_a_process_can_be_moved(tree, source):
    """The own group is looked up at each reading."""
    tree.limits("/other", memory="77")
    tree.group("/other")
    assert only(source(), CONTAINER_MEMORY_LIMIT) == 77
    tree.limits(memory="66")
    assert only(source(), CONTAINER_MEMORY_LIMIT) == 66
    tree.group("/")
    tree.remove("sys/fs/cgroup/other")
    assert only(source(), CONTAINER_MEMORY_LIMIT) == 66


def of_v1(tree: Tree) -> None:
    """The limits are those of cgroup v1, beside which v2 is mounted for systemd's own use."""
    tree.write("proc/self/cgroup", "3:cpu,cpuacct:/docker/7\n0::/\n")


def partly_of_v1(tree: Tree) -> None:
    """The memory's limit is one of cgroup v1."""
    tree.write("proc/self/cgroup", "4:memory:/docker/7\n1:name=systemd:/\n0::/\n")


def without_groups(tree: Tree) -> None:
    """The system has no control groups, as macOS."""
    tree.remove("proc")


def without_v2(tree: Tree) -> None:
    """The kernel has groups of v1 alone, none of which limits anything."""
    tree.write("proc/self/cgroup", "1:name=systemd:/user.slice\n")


def at_the_root(tree: Tree) -> None:
    """The process runs in the root of the machine, which has no limits and tells of the whole machine."""
    tree.remove("sys/fs/cgroup")
    tree.write("sys/fs/cgroup/cpu.stat", "usage_usec 5000000\n")
    tree.write("sys/fs/cgroup/memory.stat", "anon 1\n")


def unmounted(tree: Tree) -> None:
    """The container does not see the tree."""
    tree.write("proc/self/mountinfo", "22 27 0:21 / /proc rw,relatime - proc proc rw\n")


def out_of_the_namespace(tree: Tree) -> None:
    """The process was moved out of the namespace's part of the tree."""
    tree.group("/../other")
    tree.limits("/../other", memory="77")


def of_another_part(tree: Tree) -> None:
    """What is mounted is the host's tree, seen from a namespace within it."""
    tree.group("/", inside="/../..")


def gone(tree: Tree) -> None:
    """The own group has no folder."""
    tree.group("/gone (deleted)")


def silent(tree: Tree) -> None:
    """The group has a folder, and the kernel tells nothing in it."""
    tree.remove("sys/fs/cgroup")
    tree.write("sys/fs/cgroup/own/cgroup.procs")
    tree.group("/own")


WITHOUT = [
    of_v1, partly_of_v1, without_groups, without_v2, at_the_root, unmounted, out_of_the_namespace, of_another_part,
    gone, silent,
]  # fmt: skip


@pytest.mark.parametrize("become", WITHOUT, ids=lambda become: become.__name__)
def test_where_no_group_can_be_limited_there_is_no_container(tree, source, caplog, become: Callable[[Tree], None]):
    """The source says that it has nothing to read: it is neither up nor down, and one line at INFO says why."""
    caplog.set_level(logging.INFO)
    become(tree)
    with pytest.raises(Absent):
        source()
    sampler = Sampler({"container": source}, 5.0)
    sampler.sample()
    sampler.sample()
    assert list(sampler.observe(SOURCE_UP)(CallbackOptions())) == []
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert "Source container: " in caplog.text


# --- Faults ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "part", "text"),
    [
        ("cpu.max", "CPU", "100000"),
        ("cpu.max", "CPU", "0 0"),
        ("cpu.max", "CPU", "-5 10"),
        ("cpu.stat", "CPU", "usage_usec many"),
        ("cpuset.cpus.effective", "CPU", "3-1"),
        ("memory.current", "memory", "-1"),
        ("memory.max", "memory", "lots"),
        ("memory.events", "memory", "oom"),
    ],
)
def test_a_part_that_cannot_be_read_leaves_the_other_whole(tree, source, caplog, file, part, text):
    """Nonsense in a file is a fault of its part, said once, and the part comes back."""
    whole = {sample.metric for sample in source()}
    path = tree.root / "sys/fs/cgroup" / file
    before = path.read_text() if path.exists() else "0-7"
    tree.write(f"sys/fs/cgroup/{file}", text)
    for _ in range(3):
        of_part = {row for row in whole if part.lower() in row.name}
        assert {sample.metric for sample in source()} == whole - of_part
    assert len(caplog.records) == 1
    assert f"The container's {part} cannot be read" in caplog.text
    tree.write(f"sys/fs/cgroup/{file}", before)
    assert {sample.metric for sample in source()} - {CONTAINER_CPU_UTILIZATION} == whole


def test_a_container_of_which_nothing_can_be_read_is_down(tree, source):
    """When both parts fail the reading raises, so that the source is seen to be down."""
    tree.limits(cpu="?", memory="?")
    with pytest.raises(ValueError, match="expected 2"):
        source()


FILES = {
    "CPU": ["cpu.max", "cpu.stat", "cpuset.cpus.effective"],
    "memory": ["memory.max", "memory.current", "memory.stat", "memory.events"],
}
NUMBERS = st.one_of(
    st.integers(-5, 10**20), st.sampled_from(["max", "nan", "inf", "-0", "1e5", "٣", "1_0", 10**400, "9" * 5000])
).map(str)
WORDS = ["", "usage_usec", "throttled_usec", "inactive_file", "oom_kill", "high", "MemTotal:", "0::/", "1:cpu:", "-"]
LINES = st.builds(" ".join, st.lists(st.one_of(st.sampled_from(WORDS), NUMBERS, st.text(max_size=5)), max_size=5))
NONSENSE = st.one_of(NUMBERS, st.lists(LINES, max_size=4).map("\n".join)).map(lambda text: text.replace("\0", "0"))


@settings(deadline=None, max_examples=20)  # it writes files, which takes its time on a busy machine
@given(part=st.sampled_from(sorted(FILES)), first=st.lists(NONSENSE, max_size=4), later=st.lists(NONSENSE, max_size=4))
def test_nonsense_in_a_file_harms_its_part_only(part, first, later):
    """Whatever the kernel says of one part, nothing raises, the other part is whole, and each value can be."""
    with tempfile.TemporaryDirectory() as folder:
        tree, clock = Tree(Path(folder)), Clock(1000.0)
        contain(tree)
        source = open_container(tree.root, cpus=lambda: CPUS, clock=clock)
        whole = {row for row in CONTAINER if part.lower() not in row.name} - {CONTAINER_CPU_UTILIZATION}
        for texts in (first, later):
            for file, text in zip(FILES[part], texts, strict=False):
                tree.write(f"sys/fs/cgroup/{file}", text)
            clock.now_s += 1.0
            samples = source()
            assert whole <= {sample.metric for sample in samples}
            series_of(samples)


WAYS = ["0::/\0", "0::/" + "x" * 300, "0::", "0:", " - cgroup2", "a b c d - cgroup2", "MemTotal:", "MemTotal: -4 kB"]


@settings(deadline=None, max_examples=20)
@given(
    file=st.sampled_from(["proc/self/cgroup", "proc/self/mountinfo", "proc/meminfo"]),
    text=st.one_of(NONSENSE, st.sampled_from(WAYS)),
)
def test_nonsense_about_the_group_gives_no_value_that_cannot_be(file, text):
    """Where the way to the group is not understood the source is absent or down, and it shows nothing wrong."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(folder))
        contain(tree)
        tree.write(file, text)
        with contextlib.suppress(Absent, ValueError, OSError):  # these say that it is
            series_of(open_container(tree.root)())


# --- This machine's kernel ---------------------------------------------------------------------------------

BEGINS = "import sys; sys.stdin.readline()\n"
SPINS = "while True: pass"
KEEPS = "kept = b'x' * (32 << 20); sys.stdin.read()"
TAKES = "b'x' * (128 << 20)"


class KernelsGroup:
    """A group of this machine's kernel, shown to the source as that which it runs in."""

    def __init__(self, tree: Tree, folder: Path, *, is_new: bool):
        self.folder = folder
        self.is_new = is_new
        # What an old group is limited to is not the test's to say.
        self.controllers = set((folder / "cgroup.controllers").read_text().split()) if is_new else set()
        tree.write("proc/meminfo", Path("/proc/meminfo").read_text())
        tree.group("/")
        tree.write("sys/fs/here")
        (tree.root / "sys/fs/cgroup").symlink_to(folder)
        self.source = open_container(tree.root)

    @contextlib.contextmanager
    def runs(self, program: str) -> Iterator[subprocess.Popen[bytes]]:
        """A Python program that begins once it is in the group."""
        with subprocess.Popen([sys.executable, "-c", BEGINS + program], stdin=subprocess.PIPE, bufsize=0) as child:
            try:
                if self.is_new:
                    (self.folder / "cgroup.procs").write_text(f"{child.pid}\n")
                assert child.stdin is not None
                child.stdin.write(b"\n")
                yield child
            finally:
                child.kill()

    def read_until(self, condition: Callable[[list[Sample]], bool]) -> list[Sample]:
        """Read until a reading is as it is wanted."""
        deadline = time.monotonic() + 30
        while not condition(samples := list(self.source())):
            assert time.monotonic() < deadline, f"this did not come true: {samples}"
            time.sleep(0.01)
        return samples


def mounted_here() -> Path | None:
    """Where cgroup v2 is mounted on this machine."""
    mountinfo = Path("/proc/self/mountinfo")
    lines = mountinfo.read_text().splitlines() if mountinfo.exists() else []
    return next((Path(line.split(" ")[4]) for line in lines if " - cgroup2 " in line), None)


@pytest.fixture
def kernels_group(tmp_path: Path) -> Iterator[KernelsGroup]:
    """A new group where one may be made, else the one that the tests run in."""
    mounted, tree = mounted_here(), Tree(tmp_path / "root")
    if mounted is not None and os.access(mounted, os.W_OK):
        folder = mounted / f"otel-mlops-test-{os.getpid()}"
        folder.mkdir()
        try:
            yield KernelsGroup(tree, folder, is_new=True)
        finally:
            folder.rmdir()
        return
    own = [line[4:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::/")]
    if mounted is None or not own or not (mounted / own[0] / "cpu.stat").exists():
        pytest.skip("run it on a Linux that has cgroup v2 mounted, as root to have the limits tested as well")
    yield KernelsGroup(tree, mounted / own[0], is_new=False)


def test_a_computation_raises_the_time_used(kernels_group):
    """What a process of the group computes is in the figures, which are the kernel's own."""
    before = only(kernels_group.source(), CONTAINER_CPU_USAGE)
    with kernels_group.runs(SPINS):
        samples = kernels_group.read_until(
            lambda samples: (
                only(samples, CONTAINER_CPU_USAGE) > before + 0.2
                and (only(samples, CONTAINER_CPU_UTILIZATION) or 0) > 0
            )
        )
        told = dict(line.split() for line in (kernels_group.folder / "cpu.stat").read_text().splitlines())
        assert before + 0.2 < only(samples, CONTAINER_CPU_USAGE) <= int(told["usage_usec"]) / 1e6


def test_what_the_kernel_enforces_is_what_is_shown(kernels_group):
    """A throttled, a large and a killed process are seen as such, with what limits them, where the kernel limits."""
    folder, controllers = kernels_group.folder, kernels_group.controllers
    if "cpu" in controllers:
        (folder / "cpu.max").write_text("20000 100000\n")
        with kernels_group.runs(SPINS):
            samples = kernels_group.read_until(lambda samples: only(samples, CONTAINER_CPU_THROTTLED) > 0.1)
            assert only(samples, CONTAINER_CPU_LIMIT) == 0.2
            samples = kernels_group.read_until(lambda samples: (only(samples, CONTAINER_CPU_UTILIZATION) or 0) > 0.5)
            assert only(samples, CONTAINER_CPU_UTILIZATION) < 3
            (folder / "cpu.max").write_text("max 100000\n")
    if "memory" in controllers:
        (folder / "memory.max").write_text(f"{64 * MIB}\n")
        with kernels_group.runs(KEEPS):
            samples = kernels_group.read_until(lambda samples: only(samples, CONTAINER_MEMORY_USAGE) >= 32 * MIB)
            assert only(samples, CONTAINER_MEMORY_LIMIT) == 64 * MIB
            assert 32 * MIB <= only(samples, CONTAINER_MEMORY_WORKING_SET) <= only(samples, CONTAINER_MEMORY_USAGE)
            assert 0.5 <= only(samples, CONTAINER_MEMORY_UTILIZATION) <= 1
        assert values(kernels_group.source(), CONTAINER_MEMORY_EVENTS)["oom_kill",] == 0
        if (folder / "memory.swap.max").exists():
            (folder / "memory.swap.max").write_text("0\n")
        with kernels_group.runs(TAKES) as child:
            assert child.wait(30) == -signal.SIGKILL
        assert values(kernels_group.source(), CONTAINER_MEMORY_EVENTS)["oom_kill",] == 1
    shown = {sample.metric for sample in kernels_group.source()}
    assert (CONTAINER_CPU_THROTTLED in shown) == ("cpu" in controllers) or not kernels_group.is_new
    assert (CONTAINER_MEMORY_USAGE in shown) == ("memory" in controllers) or not kernels_group.is_new


def test_this_process_has_a_container_or_says_why_not():
    """On any machine the source gives what can be, or says that there is nothing to read."""
    source = open_container()
    with contextlib.suppress(Absent):  # where the machine has cgroup v1, or this is no container
        series_of(source())
        assert {CONTAINER_CPU_USAGE, CONTAINER_MEMORY_USAGE} & {sample.metric for sample in source()}
    assert 1 <= cpus_of_this_process() <= (os.cpu_count() or 1)
