"""Energy per prediction: exact in the sum over workers, models, GPUs and leaders, whoever dies."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from math import fsum, inf
from pathlib import Path
from typing import NamedTuple

import pytest

from otel_mlops.energy import KEPT, Energy, has_gpu, share_energy_out
from otel_mlops.metrics import (
    GPU_ENERGY,
    GPU_IDLE_ENERGY,
    GPU_INFO,
    GPU_MIG_INFO,
    GPU_POWER_USAGE,
    GPU_TEMPERATURE,
    PREDICTIONS,
)
from otel_mlops.model import Model
from otel_mlops.numbers.energy import Slot, share
from otel_mlops.sdk.calls import Follower
from otel_mlops.sdk.group import Group
from otel_mlops.sdk.intervals import SLOTS
from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.settings import Settings
from otel_mlops.sources.sampler import Sample
from otel_mlops.testing import collect, fresh_telemetry
from otel_mlops.verbs import Verbs
from tests.sdk.workers import Worker, state_folder

BEGAN = 1_000.0
ENOUGH_S = 20
"""After so many seconds without a call all is shared out."""


class Call(NamedTuple):
    """A prediction call that a worker is to make."""

    begin: float
    end: float
    weight: float = 1.0
    version: str = "v1"


class World:
    """GPUs whose power is known for each second, and the workers that use them, in a time of their own."""

    def __init__(self, state: Path, watts: Callable[[str, int], float] = lambda _gpu, _second: 300.0, gpus: str = "0"):
        self.state = state
        self.now = BEGAN
        self.watts = watts
        self.gpus = gpus
        self.loaded = dict.fromkeys(gpus, 0.0)
        """How much each GPU had used when its driver was last loaded."""
        self.has_counter = True
        self.fault: Exception | None = None
        self.more: list[Sample] = []
        self.open: list[tuple[Staff, Call, int]] = []
        self.due: list[tuple[Staff, Call]] = []

    def used(self, gpu: str, until: float | None = None) -> float:
        """What a GPU has used since the beginning."""
        until = self.now if until is None else until
        return fsum(self.watts(gpu, second) for second in range(round(until - BEGAN)))

    def energy(self, until: float | None = None) -> float:
        """What all have used."""
        return fsum(self.used(gpu, until) for gpu in self.gpus)

    def reader(self) -> Callable[[], Iterator[Sample]]:
        """A source of these GPUs, as one process has it: it asks for the energy every 5 s, and repeats it meanwhile."""
        asked, said = -inf, dict[str, float]()

        def read() -> Iterator[Sample]:
            nonlocal asked, said
            if self.fault is not None:
                raise self.fault
            if self.now - asked >= 5.0:
                asked, said = self.now, {gpu: 1e6 + self.used(gpu) - self.loaded[gpu] for gpu in self.loaded}
            return self.read(said)

        return read

    def read(self, said: Mapping[str, float]) -> Iterator[Sample]:
        """What the driver says now, and has said of the energy when it was asked; power is the mean of a second."""
        for gpu in self.gpus:
            labels = {"gpu_id": gpu, "gpu_name": "H100"}
            yield Sample(GPU_INFO, 1.0, {**labels, "gpu_uuid": f"GPU-{gpu}"})
            yield Sample(GPU_POWER_USAGE, self.watts(gpu, round(self.now - BEGAN) - 1), labels)
            if self.has_counter:
                yield Sample(GPU_ENERGY, said[gpu], labels)
        yield from self.more

    def plan(self, worker: Staff, *calls: Call) -> None:
        """Have a worker make calls when their time comes."""
        self.due += [(worker, call) for call in calls]

    def run(self, leader: Staff, seconds: float = ENOUGH_S) -> None:
        """Let time go by; the leader reads once a second."""
        if self.now == BEGAN:
            leader.read()
        for _ in range(round(seconds)):
            self.now += 1.0
            for worker, call in sorted(self.due, key=lambda each: each[1]):
                if call.begin <= self.now:
                    self.due.remove((worker, call))
                    self.open.append((worker, call, worker.begin(call)))
            for worker, call, slot in self.open[:]:
                if call.end <= self.now:
                    self.open.remove((worker, call, slot))
                    worker.end(slot, call)
            leader.read()


class Staff(Worker):
    """A worker that makes calls, and can lead."""

    def __init__(self, world: World, group: Group | None = None) -> None:
        super().__init__(world.state, group or Group("group", world.state))
        self.provider.instrument(PREDICTIONS).add(1, {"model_version": "v1", "prediction_type": "single"})
        self.provider.intervals.begin_when(lambda: True)
        self.leads = True
        self.energy = Energy(
            world.reader(), self.provider, self.group, is_leader=lambda: self.leads, clock=lambda: world.now
        )

    def begin(self, call: Call) -> int:
        intervals = self.provider.intervals
        return intervals.ring.begin(intervals.number({"model_version": call.version}), call.begin)

    def end(self, slot: int, call: Call) -> None:
        self.provider.intervals.ring.end(slot, call.end, call.weight)

    def read(self) -> list[Sample]:
        """Read as the sampler does, and count what it would count."""
        samples = self.energy()
        for sample in samples:
            if sample.metric is GPU_IDLE_ENERGY:
                self.provider.instrument(sample.metric).add(sample.value, sample.attributes)
        return samples

    def joules(self, **labels: str) -> float:
        """The energy of the predictions that carry these labels, as the page has it."""
        return self.of("prediction_energy_joules_sum", **labels)

    def calls(self, **labels: str) -> float:
        """How many calls were given their energy."""
        return self.of("prediction_energy_joules_count", **labels)

    def idle(self, **labels: str) -> float:
        """The idle energy."""
        return self.of("gpu_idle_energy_joules_total", **labels)

    def of(self, name: str, **labels: str) -> float:
        """The sum of a name's samples."""
        wanted = [f'{label}="{text}"' for label, text in labels.items()]
        lines = self.page().items()
        return fsum(value for line, value in lines if line.startswith(name) and all(each in line for each in wanted))

    def marks(self) -> dict[str, list[float]]:
        """How far the group's energy is shared out."""
        return self.group.load(KEPT)["marks"]


@pytest.fixture
def state() -> Iterator[Path]:
    """A folder for a group."""
    with state_folder() as folder:
        yield folder


@pytest.fixture
def world(state: Path) -> World:
    """One GPU that draws 300 watts."""
    return World(state)


def unsteady(_gpu: str, second: int) -> float:
    """A power that is another each second."""
    return 70.0 + (second * 7919) % 631


def wanted(world: World, calls: list[Call], gpu: str = "0") -> dict[str, float]:
    """What each model's calls should get of a GPU."""
    seconds = range(round(world.now - BEGAN))
    slots = [Slot(BEGAN + second, BEGAN + second + 1, world.watts(gpu, second)) for second in seconds]
    found: dict[str, float] = {}
    for call, joules in zip(calls, share([call[:3] for call in calls], slots).joules, strict=True):
        found[call.version] = found.get(call.version, 0.0) + joules
    return found


def random_calls(seed: int, number: int, over_s: float) -> list[Call]:
    """Calls of two models, none longer than three seconds."""
    chance = random.Random(seed)
    begins = [BEGAN + chance.uniform(1, over_s) for _ in range(number)]
    return [
        Call(begin, begin + chance.uniform(0.01, 3), float(chance.randint(1, 64)), chance.choice(["v1", "v2"]))
        for begin in begins
    ]


# --- The sum -----------------------------------------------------------------------------------------------


def test_two_models_in_three_workers_share_what_was_used(state):
    """Each model has what an exact account of power and calls gives it, and with what was idle it is all there was."""
    world = World(state, unsteady)
    staff = [Staff(world) for _ in range(3)]
    calls = random_calls(1, 200, 40)
    for number, call in enumerate(calls):
        world.plan(staff[number % 3], call)
    world.run(staff[0], 40 + ENOUGH_S)
    for version, joules in wanted(world, calls).items():
        assert staff[1].joules(model_version=version) == pytest.approx(joules, rel=1e-9)
    assert staff[1].calls() == 200
    [(time, joules)] = staff[0].marks().values()
    assert joules - 1e6 == pytest.approx(world.used("0", time), rel=1e-12)
    assert time >= world.now - 10
    assert staff[1].joules() + staff[1].idle() == pytest.approx(world.energy(time), rel=1e-12)


def test_calls_at_the_same_time_share_by_their_rows(world):
    """Two calls that run together split the power by their rows; alone each has all of it; between them it is idle."""
    one, other = Staff(world), Staff(world)
    world.plan(one, Call(BEGAN + 5, BEGAN + 7, 1, "one"))
    world.plan(other, Call(BEGAN + 6, BEGAN + 8, 3, "other"))
    world.run(one)
    assert one.joules(model_version="one") == pytest.approx(300 + 75)
    assert one.joules(model_version="other") == pytest.approx(225 + 300)
    assert one.idle() == pytest.approx(world.energy(one.marks()["GPU-0"][0]) - 900)


def test_the_idle_energy_is_there_from_the_first_reading(world):
    """Before anything can be shared out the series stands at 0, beside all that the source gives."""
    staff = Staff(world)
    world.more = [Sample(GPU_TEMPERATURE, 40.0, {"gpu_id": "0", "gpu_name": "H100"})]
    samples = staff.read()
    assert [sample.metric for sample in samples] == [
        GPU_INFO, GPU_POWER_USAGE, GPU_ENERGY, GPU_TEMPERATURE, GPU_IDLE_ENERGY
    ]  # fmt: skip
    assert samples[-1] == Sample(GPU_IDLE_ENERGY, 0.0, {"gpu_id": "0", "gpu_name": "H100"})


def test_who_does_not_lead_only_passes_on(world):
    """A worker that reads for itself records nothing and keeps nothing."""
    leader, other = Staff(world), Staff(world)
    other.leads = False
    world.plan(leader, Call(BEGAN + 3, BEGAN + 4))
    world.run(other)
    assert [sample.metric for sample in other.read()] == [GPU_INFO, GPU_POWER_USAGE, GPU_ENERGY]
    assert leader.joules() == leader.idle() == 0.0
    assert leader.group.load(KEPT) is None


def test_a_gpu_without_a_counter_is_priced_by_its_power(state):
    """Where the GPU counts no energy, it is power by time."""
    world = World(state, unsteady)
    world.has_counter = False
    staff = Staff(world)
    calls = random_calls(2, 40, 20)
    world.plan(staff, *calls)
    world.run(staff, 20 + ENOUGH_S)
    for version, joules in wanted(world, calls).items():
        assert staff.joules(model_version=version) == pytest.approx(joules, rel=1e-9)
    assert staff.marks() == {}, "a sum of this process's own is of no use to another"


def test_a_counter_that_begins_late_takes_over(world):
    """A GPU that comes to count its energy is priced by it from then on, and nothing is counted twice."""
    world.has_counter = False
    staff = Staff(world)
    world.plan(staff, Call(BEGAN + 2, BEGAN + 60))
    world.run(staff, 20)
    world.has_counter = True
    world.run(staff, 40 + ENOUGH_S)
    assert 0.7 * world.energy() < staff.joules() + staff.idle() <= world.energy()


@pytest.mark.parametrize("bad", [float("nan"), inf, -5.0])
def test_a_power_that_is_none_is_passed_over(world, bad):
    """What is no power does not spoil the energy that was counted."""
    staff = Staff(world)
    world.plan(staff, Call(BEGAN + 2, BEGAN + 8))
    world.watts = lambda _gpu, second: bad if second == 4 else 300.0
    world.used = lambda _gpu, until=None: 300.0 * ((world.now if until is None else until) - BEGAN)  # type: ignore[method-assign]
    world.run(staff)
    assert staff.joules() == pytest.approx(1800.0)


# --- Long calls --------------------------------------------------------------------------------------------


def test_a_long_call_is_one_observation(world):
    """A call over many periods has the energy of all of them when it has ended, and counts once."""
    staff = Staff(world)
    world.plan(staff, Call(BEGAN + 3, BEGAN + 43, 16.0))
    world.run(staff, 43)
    assert staff.calls() == 0
    world.run(staff)
    assert (staff.calls(), staff.joules()) == (1, pytest.approx(40 * 300.0))


def test_what_still_runs_weighs_one(world):
    """While a call runs nobody knows its rows: of what is shared out by then it gets the part of one."""
    staff = Staff(world)
    world.plan(staff, Call(BEGAN, BEGAN + 30, 3.0, "long"), Call(BEGAN + 4, BEGAN + 6, 3.0, "early"))
    world.plan(staff, Call(BEGAN + 28, BEGAN + 29, 3.0, "late"))
    world.run(staff, 30 + ENOUGH_S)
    assert staff.joules(model_version="early") == pytest.approx(2 * 300 * 3 / 4)
    assert staff.joules(model_version="late") == pytest.approx(300 / 2)


def test_a_call_written_down_late_gets_what_is_left(world):
    """A verb that tells of a long call when it is over gets the part that was not shared out yet."""
    staff = Staff(world)
    world.run(staff, 40)
    intervals = staff.provider.intervals
    intervals.ring.add(intervals.number({"model_version": "told"}), BEGAN + 1, BEGAN + 40, 1.0)
    world.run(staff)
    assert 300.0 <= staff.joules() <= 10 * 300.0
    assert staff.joules() + staff.idle() == pytest.approx(world.energy(staff.marks()["GPU-0"][0]))


# --- Several GPUs ------------------------------------------------------------------------------------------


def visible(monkeypatch: pytest.MonkeyPatch, world: World, **environment: str) -> Staff:
    """A worker that has begun to predict with this environment."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    staff = Staff(world)
    staff.end(staff.begin(Call(1.0, 1.0)), Call(1.0, 1.0))
    return staff


def instance_on(gpu: str) -> list[Sample]:
    """A MIG instance of a GPU."""
    labels = {"gpu_id": gpu, "gpu_name": "H100", "mig_uuid": "MIG-x", "profile": "1g.10gb"}
    return [Sample(GPU_MIG_INFO, 1.0, {**labels, "gpu_instance_id": "7", "compute_instance_id": "0"})]


def test_a_worker_takes_part_in_the_gpus_that_it_may_use(state, monkeypatch):
    """Workers that are bound to a GPU get its energy and no other's; one that may use both gets of each."""
    world = World(state, lambda gpu, _second: {"0": 100.0, "1": 300.0}[gpu], gpus="01")
    first = visible(monkeypatch, world, CUDA_VISIBLE_DEVICES="0")
    second = visible(monkeypatch, world, CUDA_VISIBLE_DEVICES="GPU-7,GPU-1")
    both = visible(monkeypatch, world)
    none = visible(monkeypatch, world, CUDA_VISIBLE_DEVICES="")
    for begin, workers in ((4, [first]), (10, [second]), (16, [both]), (22, [none]), (28, [first, both])):
        for worker in workers:
            name = {first: "first", second: "second", both: "both", none: "none"}[worker]
            world.plan(worker, Call(BEGAN + begin, BEGAN + begin + 2, 1.0, f"{name}-{begin}"))
    world.run(first, 28 + ENOUGH_S)
    found = {
        version: first.joules(model_version=version)
        for version in ("first-4", "second-10", "both-16", "none-22", "first-28", "both-28")
    }
    assert found == pytest.approx(
        {"first-4": 200, "second-10": 600, "both-16": 800, "none-22": 0, "first-28": 100, "both-28": 700}
    )
    assert first.calls(model_version="none-22") == 0
    assert first.calls(model_version="both-16") == 1
    until = first.marks()["GPU-0"][0]
    assert first.idle(gpu_id="0") == pytest.approx(world.used("0", until) - 200 - 200 - 200)
    assert first.idle(gpu_id="1") == pytest.approx(world.used("1", until) - 600 - 600 - 600)


def test_an_index_counts_the_gpus_that_nobody_reads(state, monkeypatch):
    """Where only the second GPU is read, index 1 is that one, and a worker on the first gets nothing of it."""
    world = World(state, gpus="1")
    first = visible(monkeypatch, world, CUDA_VISIBLE_DEVICES="0")
    second = visible(monkeypatch, world, CUDA_VISIBLE_DEVICES="1")
    world.plan(first, Call(BEGAN + 3, BEGAN + 5, 1.0, "first"))
    world.plan(second, Call(BEGAN + 4, BEGAN + 6, 1.0, "second"))
    world.run(second)
    assert (first.joules(model_version="first"), second.joules(model_version="second")) == pytest.approx((0.0, 600.0))


def test_a_worker_on_a_mig_instance_takes_part_in_its_gpu(state, monkeypatch):
    """The energy of an instance is not known, so its calls share the whole GPU's."""
    world = World(state, gpus="01")
    world.more = instance_on("1")
    staff = visible(monkeypatch, world, CUDA_VISIBLE_DEVICES="MIG-x")
    world.plan(staff, Call(BEGAN + 3, BEGAN + 5))
    world.run(staff)
    assert staff.joules() == pytest.approx(600.0)
    assert staff.idle(gpu_id="0") == pytest.approx(world.used("0", staff.marks()["GPU-0"][0]))


def test_where_only_cuda_knows_a_worker_takes_part_in_all(state, monkeypatch):
    """Indices that count the fastest GPU first say nothing of GPUs of several models."""
    world = World(state, gpus="01")
    world.read = lambda said: (  # type: ignore[method-assign]
        Sample(row, value, attributes | ({"gpu_name": "L4"} if attributes["gpu_id"] == "1" else {}))
        for row, value, attributes in World.read(world, said)
    )
    staff = visible(monkeypatch, world, CUDA_VISIBLE_DEVICES="0")
    world.plan(staff, Call(BEGAN + 3, BEGAN + 5))
    world.run(staff)
    assert staff.joules() == pytest.approx(1200.0)


# --- Leaders that come and go ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_a_new_leader_goes_on_to_the_joule(state, seed):
    """Leaders that die one after the other lose nothing but their own calls' ends, and nothing is counted twice."""
    chance = random.Random(seed)
    world = World(state, unsteady)
    staff = [Staff(world) for _ in range(5)]
    calls = random_calls(seed, 300, 80)
    for number, call in enumerate(calls):
        world.plan(staff[4], call) if number % 2 else world.plan(staff[3], call)
    world.plan(staff[4], Call(BEGAN + 2, BEGAN + 75, 5.0, "long"))
    for leader in staff[:3]:
        world.run(leader, chance.randint(12, 30))
        leader.die()
    world.run(staff[3], BEGAN + 80 + ENOUGH_S - world.now)
    staff[3].everyone.retire()
    last = staff[3]
    assert last.calls() == 301
    assert last.joules() + last.idle() == pytest.approx(world.energy(last.marks()["GPU-0"][0]), rel=1e-12)
    assert last.calls(model_version="long") == 1


def test_a_leader_that_comes_back_goes_on_where_the_other_has_stopped(world):
    """What one remembers from before another led is not believed: no second is shared out twice."""
    one, other = Staff(world), Staff(world)
    world.plan(one, Call(BEGAN + 2, BEGAN + 32), Call(BEGAN + 55, BEGAN + 90))
    for leader in (one, other, one, other):
        world.run(leader, 23)
    world.run(one)
    assert one.joules() + one.idle() == pytest.approx(world.energy(one.marks()["GPU-0"][0]), rel=1e-12)
    assert one.joules() == pytest.approx((30 + 35) * 300)
    assert one.calls() == 2


class Killed(BaseException):
    """Stands for SIGKILL."""


class Mortal(Group):
    """A group whose leader is killed right before or after it tells how far it has come."""

    def __init__(self, state: Path, moment: str, keep: int) -> None:
        super().__init__("group", state)
        self.moment, self.left = moment, keep

    def keep(self, name: str, what: object) -> None:
        self.left -= name == KEPT
        if self.left < 0 and self.moment == "before":
            raise Killed
        super().keep(name, what)
        if self.left < 0:
            raise Killed


@pytest.mark.parametrize(("moment", "lost_s"), [("before", 0), ("after", 5)])
@pytest.mark.parametrize("keeps", [0, 1, 3])
def test_a_death_while_recording_loses_one_period_at_most(world, moment, lost_s, keeps):
    """What is told before it is recorded may be lost, but is never recorded a second time by the next leader."""
    first, second = Staff(world, Mortal(world.state, moment, keeps)), Staff(world)
    world.plan(second, *[Call(BEGAN + at, BEGAN + at + 0.5) for at in range(1, 60)])
    with pytest.raises(Killed):
        world.run(first, 60)
    first.die()
    world.run(second, BEGAN + 60 + ENOUGH_S - world.now)
    lost = world.energy(second.marks()["GPU-0"][0]) - second.joules() - second.idle()
    at_most = 0.0 if keeps == 0 else 300.0 * lost_s
    assert -1e-6 <= lost <= at_most + 300.0 * (moment == "before" and keeps == 0) + 1e-6
    assert (moment == "after" and keeps > 0) == (lost > 1.0)


@pytest.mark.parametrize("reloaded", [False, True])
def test_what_a_call_had_got_is_recorded_though_nobody_finds_it(world, reloaded):
    """A leader that cannot read a call any more records what it had got, under the one before the last one too."""
    first, second, third, busy = (Staff(world) for _ in range(4))
    world.plan(busy, Call(BEGAN + 1, BEGAN + 1e9))
    world.run(first, 30)
    [mark] = first.marks().values()
    first.die()
    busy.path.with_suffix(".intervals").unlink()
    if reloaded:
        world.loaded["0"] = world.used("0")
    world.run(second, 1)
    second.die()
    world.run(third)
    assert third.calls() == 1
    assert third.joules() == pytest.approx(world.energy(mark[0]) - 300)


def test_a_reading_of_the_future_is_not_gone_on_from(world):
    """Where a folder outlives the machine's clock, which begins anew with it, the energy does too."""
    staff = Staff(world)
    staff.group.keep(KEPT, {"stamp": "x", "marks": {"GPU-0": [9e9, 5.0]}, "carried": []})
    world.run(staff, 30)
    assert staff.idle() == pytest.approx(world.energy(staff.marks()["GPU-0"][0]))


def test_a_call_waits_for_the_gpus_of_its_worker_alone(state, monkeypatch):
    """A GPU that is lost holds up none of the calls that cannot have used it."""
    world = World(state, gpus="01")
    staff = visible(monkeypatch, world, CUDA_VISIBLE_DEVICES="0")
    world.plan(staff, Call(BEGAN + 12, BEGAN + 13))
    world.run(staff, 10)
    world.gpus = "0"
    world.run(staff)
    assert (staff.calls(), staff.joules()) == (1, pytest.approx(300.0))


def test_a_reading_that_is_too_old_is_not_gone_on_from(world):
    """A leader that comes more than a minute after the last begins anew: nobody knows what ran meanwhile."""
    first, second = Staff(world), Staff(world)
    world.run(first, 30)
    before = first.idle()
    first.die()
    world.now += 61
    began = world.now
    second.read()
    world.run(second)
    assert second.idle() - before == pytest.approx(
        world.energy(second.marks()["GPU-0"][0]) - world.energy(began), abs=1e-6
    )


@pytest.mark.parametrize(
    "kept",
    [
        None,
        5,
        {"stamp": "x"},
        {"stamp": "x", "marks": {"GPU-0": 3}, "carried": []},
        {"stamp": "x", "marks": {"GPU-0": ["now", None]}, "carried": []},
        {"stamp": "x", "marks": {}, "carried": [["ring", 1, 1, {}, "much"]]},
    ],
)
def test_what_another_version_has_kept_does_no_harm(world, kept):
    """What is not understood is put aside, and said at most once."""
    staff = Staff(world)
    staff.group.keep(KEPT, kept)
    world.run(staff, 30)
    assert staff.idle() > 0.5 * world.energy()


def test_where_nothing_can_be_kept_nothing_is_counted_twice(world, monkeypatch):
    """With no room for the group's file the leader goes on, and takes away what would mislead the next one."""
    first, second = Staff(world), Staff(world)
    world.plan(second, *[Call(BEGAN + at, BEGAN + at + 0.5) for at in range(1, 80)])
    world.run(first, 30)
    keep = first.group.keep

    def refuse(name: str, what: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(first.group, "keep", refuse)
    world.run(first, 20)
    assert first.group.load(KEPT) is None
    seen = first.joules() + first.idle()
    assert seen > 0.7 * world.energy()
    monkeypatch.setattr(first.group, "keep", keep)
    first.die()
    world.run(second, 30 + ENOUGH_S)
    assert second.joules() + second.idle() <= world.energy()


# --- Faults of the world -----------------------------------------------------------------------------------


def test_a_counter_that_steps_back_loses_what_was_between(world):
    """A driver that was loaded anew counts from 0: what was used around it is left out, and all else is there."""
    staff = Staff(world)
    world.run(staff, 23)
    world.loaded["0"] = world.used("0")
    world.run(staff, 40)
    until = staff.marks()["GPU-0"][0]
    assert staff.idle() == pytest.approx(world.energy(until) - 5 * 300)


def test_a_gpu_that_is_away_for_a_while_is_made_up_for(world):
    """The counter goes on while nobody reads: after some seconds all of it is shared out among what ran."""
    staff = Staff(world)
    world.plan(staff, Call(BEGAN + 20, BEGAN + 60))
    world.run(staff, 20)
    world.fault = RuntimeError("driver")
    for _ in range(30):
        with pytest.raises(RuntimeError, match="driver"):
            world.run(staff, 1)
    world.fault = None
    world.run(staff, 30 + ENOUGH_S)
    assert staff.joules() == pytest.approx(40 * 300)
    assert staff.joules() + staff.idle() == pytest.approx(world.energy(staff.marks()["GPU-0"][0]))


def test_a_gpu_that_is_away_for_long_is_begun_anew(world):
    """After a minute nobody knows any more what ran: that time is left out."""
    staff = Staff(world)
    world.run(staff, 25)
    before = staff.marks()["GPU-0"][0]
    for _ in range(90):
        world.now += 1
        slot = staff.begin(Call(world.now - 0.5, world.now))
        staff.end(slot, Call(world.now - 0.5, world.now))
    began = world.now
    world.run(staff, 30)
    until = staff.marks()["GPU-0"][0]
    used = world.energy(until) - world.energy(began) + world.energy(before)
    assert staff.joules() + staff.idle() == pytest.approx(used, abs=300.0 * 6)
    assert not any(follower.calls for follower in staff.energy._calls), "calls without a price are let go"


def test_a_gpu_that_is_not_in_a_reading_keeps_its_calls(state, monkeypatch):
    """A reading in which a GPU, or its MIG instances, happen to be missing makes no idle energy of what ran on it."""
    world = World(state)
    world.more = mig = instance_on("0")
    staff = visible(monkeypatch, world, CUDA_VISIBLE_DEVICES="MIG-x")
    world.plan(staff, Call(BEGAN + 2, BEGAN + 62))
    for second in range(90):
        world.gpus, world.more = ("", []) if second % 5 == 3 else ("0", mig)  # just when a period is shared out
        world.run(staff, 1)
    assert staff.joules() == pytest.approx(60 * 300)


def test_a_gpu_that_goes_lets_its_calls_go(world):
    """Calls wait for a GPU that is lost for a minute, then what they have got is recorded; those that run go on."""
    staff = Staff(world)
    world.plan(staff, Call(BEGAN + 1, BEGAN + 22), Call(BEGAN + 1, BEGAN + 120, 1.0, "long"))
    world.run(staff, 20)
    world.gpus = ""
    world.run(staff, 55)
    assert staff.calls() == 0
    world.run(staff, 15)
    assert staff.calls() == 1
    assert 0.0 < staff.joules() <= 20 * 150
    world.gpus = "0"
    world.run(staff, 60)
    assert staff.calls(model_version="long") == 1
    assert staff.joules(model_version="long") > 20 * 150 + 20 * 300
    world.gpus = ""
    world.run(staff, 70)
    assert not any(follower.calls for follower in staff.energy._calls)
    assert staff.read() == [], "nobody knows of its idle energy any more"


def test_a_counter_that_fails_for_long_gives_way_to_the_power(world):
    """A GPU whose energy cannot be read for a minute is priced by its power, until it counts again."""
    staff = Staff(world)
    world.plan(staff, *[Call(BEGAN + at, BEGAN + at + 0.5) for at in range(1, 240)])
    world.run(staff, 30)
    world.has_counter = False
    world.run(staff, 120)
    during = staff.joules() + staff.idle()
    assert during == pytest.approx(300.0 * (30 + 120 - 60), abs=300.0 * 25)
    world.has_counter = True
    world.run(staff, 90)
    assert staff.joules() + staff.idle() - during == pytest.approx(300.0 * 90, abs=300.0 * 25)
    assert sum(len(follower.calls) for follower in staff.energy._calls) <= 15, "calls are let go all the while"


def test_power_that_nobody_has_read_is_not_made_up(world):
    """Without a counter nobody knows what was used while the driver did not answer: calls of that time get nothing."""
    world.has_counter = False
    staff = Staff(world)
    world.run(staff, 20)
    world.fault = RuntimeError("driver")
    world.plan(staff, Call(BEGAN + 25, BEGAN + 35))
    for _ in range(30):
        with pytest.raises(RuntimeError, match="driver"):
            world.run(staff, 1)
    world.fault = None
    world.run(staff, 30)
    assert staff.joules() == 0.0
    assert staff.idle() == pytest.approx(300.0 * 50, abs=300.0 * 15)


def test_a_gpu_that_uses_nothing_holds_no_call(state):
    """Where the counter stands still there is nothing to share, and calls are let go with nothing."""
    world = World(state, lambda _gpu, _second: 0.0)
    staff = Staff(world)
    world.plan(staff, Call(BEGAN + 1, BEGAN + 2))
    world.run(staff, 40)
    assert (staff.calls(), staff.joules(), staff.idle()) == (1, 0.0, 0.0)


def test_a_killed_workers_call_ends_when_that_is_seen(world):
    """What a dead worker had running gets its energy until its death was noticed, and no more."""
    leader, other = Staff(world), Staff(world)
    world.plan(other, Call(BEGAN + 5, BEGAN + 1e9))
    world.run(leader, 20)
    other.die()
    world.run(leader, 40)
    assert leader.calls() == 1
    assert leader.joules() == pytest.approx(16 * 300)
    assert leader.idle() == pytest.approx(world.energy(leader.marks()["GPU-0"][0]) - 16 * 300)


def test_calls_that_come_too_fast_are_counted(world):
    """What the leader could not read in time has no energy and is counted; the sum is exact all the same."""
    staff = Staff(world)
    world.run(staff, 5)
    staff.end(staff.begin(Call(1.0, 1.0)), Call(1.0, 1.0))
    world.run(staff, 5)
    for number in range(SLOTS + 50):
        at = world.now + number / 1e5
        staff.end(staff.begin(Call(at, at + 1e-6)), Call(at, at + 1e-6))
    world.run(staff)
    assert staff.calls() == SLOTS
    dropped = staff.reader.page().body.decode().split('otel_mlops_dropped_total{reason="energy"} ')[1].split()[0]
    assert float(dropped) == 50.0
    assert staff.joules() + staff.idle() == pytest.approx(world.energy(staff.marks()["GPU-0"][0]))


def test_memory_is_bounded(world, monkeypatch):
    """Past the most calls that are remembered, those that are over and without energy are dropped and counted."""
    monkeypatch.setattr("otel_mlops.energy._MOST_CALLS", 100)
    staff = Staff(world)
    running = staff.begin(Call(BEGAN, inf))
    world.run(staff, 1)
    for _ in range(150):
        staff.end(staff.begin(Call(world.now, world.now)), Call(world.now, world.now))
    staff.read()
    assert [call.key[1] for follower in staff.energy._calls for call in follower.calls] == [running]
    assert 'reason="energy"} 150' in staff.reader.page().body.decode()


def test_a_fault_in_the_sharing_spares_the_gpus(world, caplog):
    """What goes wrong here takes no GPU off the page, and is said once until it works again."""
    staff = Staff(world)
    world.run(staff, 12)
    world.more = [Sample(GPU_TEMPERATURE, 40.0, None)]
    for _ in range(3):
        assert [sample.metric for sample in staff.read()] == [GPU_INFO, GPU_POWER_USAGE, GPU_ENERGY, GPU_TEMPERATURE]
    world.more = []
    world.run(staff)
    assert [each.levelno for each in caplog.records if "cannot be worked out" in each.message] == [logging.WARNING]
    assert staff.idle() == pytest.approx(world.energy(staff.marks()["GPU-0"][0]))


# --- Whether it is wanted ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sources", "wanted"),
    [
        ({"prediction_energy": True}, {"nvidia": list}, True),
        ({"prediction_energy": True}, {"host": list}, False),
        ({"prediction_energy": False}, {"nvidia": list}, False),
        ({"prediction_energy": True, "disabled": True}, {"nvidia": list}, False),
    ],
)
def test_it_is_on_where_it_is_asked_for_and_gpus_are_read(settings, sources, wanted):
    """Without the source, disabled, or told not to, nothing is written down and the sources stay as they are."""
    provider = MeterProvider(shutdown_on_exit=False)
    found = share_energy_out(sources, Settings(**settings), provider, None, lambda: True)
    assert (provider.intervals.ring is not None) is wanted
    assert isinstance(found.get("nvidia"), Energy) is wanted
    assert found.keys() == sources.keys()
    provider.shutdown()


def test_left_to_itself_it_asks_for_the_drivers_device_nodes(tmp_path):
    """Without a word in the settings it is on where one of the device nodes is there."""
    nodes = [tmp_path / "nvidiactl", tmp_path / "dxg"]
    assert not has_gpu(nodes)
    nodes[1].touch()
    assert has_gpu(nodes)
    provider = MeterProvider(shutdown_on_exit=False)
    share_energy_out({"nvidia": list}, Settings(), provider, None, lambda: True)
    assert (provider.intervals.ring is not None) is has_gpu()
    provider.shutdown()


def test_the_source_is_closed_with_it():
    """Who lets go of a driver is asked through it, and who has nothing to let go of is not."""

    class Source(list):
        closed = 0

        def __call__(self):
            return self

        def close(self):
            self.closed += 1

    source, provider = Source(), MeterProvider(shutdown_on_exit=False)
    Energy(source, provider).close()
    Energy(list, provider).close()
    assert source.closed == 1
    provider.shutdown()


def test_a_service_has_its_energy_on_the_page():
    """With a GPU among the sources the telemetry writes predictions down and has the idle energy on its page."""
    labels = {"gpu_id": "0", "gpu_name": "H100"}

    def read():
        return [Sample(GPU_POWER_USAGE, 300.0, labels), Sample(GPU_ENERGY, 1e6, labels)]

    with fresh_telemetry(sources={"nvidia": read}, prediction_energy=True) as telemetry:
        with telemetry.model("a", version="v1").prediction() as prediction:
            prediction.values = [1.0, 2.0]
        telemetry.sample()
        assert collect(telemetry).value("gpu_idle_energy_joules_total", **labels) == 0.0
        [ring] = telemetry.meter_provider.intervals.rings()
        follower = Follower("own", ring.memory)
        follower.look(1.0)
        assert [(call.weight, call.model["model_name"]) for call in follower.calls] == [(2.0, "a")]


# --- What a prediction writes down -------------------------------------------------------------------------


@pytest.fixture
def provider() -> Iterator[MeterProvider]:
    """A provider whose predictions are written down."""
    provider = MeterProvider([PageReader()], shutdown_on_exit=False)
    provider.intervals.begin_when(lambda: True)
    yield provider
    provider.shutdown()


@pytest.fixture
def model(provider: MeterProvider) -> Model:
    """A model of it."""
    return Model(provider, name="housing", version="v1")


def written(provider: MeterProvider) -> list:
    """What was written down: the labels, the duration, the weight."""
    [ring] = provider.intervals.rings()
    follower = Follower("own", ring.memory)
    follower.look(1.0)
    return [(dict(call.model), call.end - call.begin, call.weight) for call in follower.calls]


HOUSING = {"model_name": "housing", "model_version": "v1"}


@pytest.mark.parametrize(
    ("values", "weight"), [(1.5, 1.0), (None, 1.0), ("cat", 1.0), ([1.0, 2.0, 3.0], 3.0), (["a", "b"], 2.0), ([], 1.0)]
)
def test_a_prediction_weighs_its_rows(provider, model, values, weight):
    """A single one and an empty batch weigh one, a batch as much as it has rows, of labels too."""
    with model.prediction() as prediction:
        prediction.values = values
    [(labels, duration, found)] = written(provider)
    assert (labels, found) == (HOUSING, weight)
    assert 0.0 < duration < 60.0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, asyncio.CancelledError])
def test_a_prediction_that_fails_has_used_energy_too(provider, model, error):
    """What raises, and what is cancelled or interrupted, is written down as a call of weight one."""

    def predict() -> None:
        with model.prediction() as prediction:
            prediction.values = [1.0, 2.0]
            raise error

    with pytest.raises(error):
        predict()
    [(labels, duration, weight)] = written(provider)
    assert (labels, weight) == (HOUSING, 1.0)
    assert 0.0 < duration < 60.0


async def test_asynchronous_and_decorated_predictions_are_written_down(provider, model):
    """Each way to make a prediction writes it down, those that run at the same time each for itself."""

    @model.prediction()
    async def predict(rows: int) -> list[float]:
        await asyncio.sleep(0)
        return [1.0] * rows

    await asyncio.gather(predict(2), predict(3), predict(4))
    async with model.prediction() as prediction:
        prediction.values = 1.0
    assert sorted(weight for _, _, weight in written(provider)) == [1.0, 2.0, 3.0, 4.0]


def test_a_prediction_that_is_entered_twice_leaves_nothing_running(provider, model):
    """Whoever uses one prediction for two calls at a time has them end all the same."""
    prediction = model.prediction()
    with prediction:
        with prediction:
            pass
        assert inf not in [duration for _, duration, _ in written(provider)]
    assert len(written(provider)) == 2
    assert inf not in [duration for _, duration, _ in written(provider)]
    [ring] = provider.intervals.rings()
    assert {*map(ring.begin, [1] * (SLOTS + 1), [1.0] * (SLOTS + 1))} == {*range(-1, SLOTS)}, "each is given back once"


def test_a_prediction_that_begins_before_it_is_wanted_is_not_written_down():
    """What was begun without a slot ends without one."""
    provider = MeterProvider(shutdown_on_exit=False)
    model = Model(provider, name="housing", version="v1")
    with model.prediction():
        provider.intervals.begin_when(lambda: True)
    assert provider.intervals.rings() == []
    with model.prediction():
        pass
    assert len(written(provider)) == 1
    provider.shutdown()


def test_the_verbs_write_predictions_down(provider):
    """A prediction that is told when it is over ran until now, and weighs its rows."""
    verbs = Verbs(provider)
    verbs.record_prediction(250.0, "v1", 4.0, model_name="housing")
    verbs.record_batch_prediction([1.0, 2.0], 500.0, "v2")
    verbs.record_batch_prediction([], 0.0, "v2")
    found = written(provider)
    assert [labels for labels, _, _ in found] == [HOUSING, {"model_version": "v2"}, {"model_version": "v2"}]
    assert [duration for _, duration, _ in found] == pytest.approx([0.25, 0.5, 0.0])
    assert [weight for _, _, weight in found] == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("duration", [-1.0, float("nan"), inf, "fast", None, [3.0]])
def test_a_duration_that_is_none_is_not_written_down(provider, duration):
    """What cannot be timed has no energy, and raises nothing."""
    verbs = Verbs(provider)
    verbs.record_prediction(duration, "v1")
    verbs.record_prediction(1.0, "v1")
    assert len(written(provider)) == 1


def test_a_version_that_cannot_be_hashed_raises_nothing(provider):
    """Whatever a stranger's text does, the prediction is written down, as one of those without a number."""

    class Text(str):
        __slots__ = ()

        def __hash__(self) -> int:
            raise RuntimeError("hash")

    Verbs(provider).record_prediction(1.0, Text("v1"))
    [(labels, _, weight)] = written(provider)
    assert (labels, weight) == ({"otel.metric.overflow": True}, 1.0)


def test_without_energy_nothing_is_written_down():
    """Where it is not wanted, predictions and verbs make no ring."""
    provider = MeterProvider(shutdown_on_exit=False)
    with Model(provider, name="housing", version="v1").prediction() as prediction:
        prediction.values = 1.0
    Verbs(provider).record_prediction(250.0, "v1")
    assert provider.intervals.rings() == []
    provider.shutdown()
