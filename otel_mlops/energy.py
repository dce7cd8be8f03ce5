"""Energy per prediction: what the GPUs have used, shared out among the calls that ran meanwhile, by who leads."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from otel_mlops.metrics import (
    DROPPED,
    GPU_ENERGY,
    GPU_IDLE_ENERGY,
    GPU_INFO,
    GPU_MIG_INFO,
    GPU_POWER_USAGE,
    PREDICTION_ENERGY,
)
from otel_mlops.numbers.energy import price, share
from otel_mlops.sdk.calls import Call, Calls, Follower
from otel_mlops.sources.nvidia.visible import VISIBLE_DEVICES, Identity, UnknownOrder, visible_devices
from otel_mlops.sources.sampler import Sample

if TYPE_CHECKING:
    from otel_mlops.sdk.group import Group
    from otel_mlops.sdk.provider import MeterProvider
    from otel_mlops.settings import Settings
    from otel_mlops.sources.sampler import Source

_logger = logging.getLogger(__name__)

KEPT = "energy"
"""The file of the group that tells how far the energy is shared out."""

_NODES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""One of them is there where NVIDIA's driver is: the second in WSL."""
_PERIOD_S = 2.5
"""The shortest period that is shared out by itself; an energy counter is read every 5 s or so."""
_LONGEST_PERIOD_S = 15.0
"""A counter that says the same for so long has counted nothing: it was read again meanwhile."""
_LAG_S = 4.0
"""How long a period rests before it is shared out: most calls of its time have ended by then, and told their rows."""
_OLDEST_S = 60.0
"""What is older and was not shared out, as the GPU did not answer, is not shared out any more."""
_MOST_POWERS, _MOST_PERIODS = 256, 24
_MOST_CALLS = 100_000


def share_energy_out(
    sources: Mapping[str, Source],
    settings: Settings,
    provider: MeterProvider,
    group: Group | None,
    is_leader: Callable[[], bool],
) -> Mapping[str, Source]:
    """Have predictions written down, and the energy shared out that the source `nvidia` reads, if that is wanted.

    Returns the sources to read in the place of those given.
    """
    if "nvidia" not in sources or settings.disabled or settings.prediction_energy is False:
        return sources
    provider.intervals.begin_when(has_gpu if settings.prediction_energy is None else lambda: True)
    return {**sources, "nvidia": Energy(sources["nvidia"], provider, group, is_leader=is_leader)}


def has_gpu(nodes: Iterable[Path] = _NODES) -> bool:
    """Say whether there is an NVIDIA GPU, by the device nodes of its driver: nothing is loaded, and no GPU is asked."""
    return any(map(Path.exists, nodes))


class Energy:
    """A source of GPUs that also shares their energy out.

    Reads:   the samples of another source, GPU_POWER_USAGE and, where the GPU counts it, GPU_ENERGY; the prediction
             calls of the group's workers.
    Yields:  what the source yields; GPU_IDLE_ENERGY as increments, from 0 on. A call is recorded in PREDICTION_ENERGY
             when all that it has used is known, some ten seconds after its end.
    Absent when: this process does not lead, or the source gives neither power nor energy.
    Errors:  the source's, and no others.
    Units:   joules.
    """

    def __init__(
        self,
        source: Source,
        provider: MeterProvider,
        group: Group | None = None,
        *,
        is_leader: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._source = source
        self._provider = provider
        self._group = group
        self._is_leader = is_leader
        self._clock = clock
        self._fault: str | None = None
        self._begin()

    def _begin(self, stamp: str | None = None) -> None:
        self._pid = os.getpid()
        self._gpus: dict[str, _Gpu] = {}
        self._instances: dict[str, str] = {}
        """On which GPU each MIG instance is."""
        self._calls = Calls(self._provider.intervals, self._group)
        self._stamp = stamp
        self._marks: dict[str, _Mark] = {}
        self._carried: dict[tuple[str, int, int], Call] = {}

    def __call__(self) -> list[Sample]:
        """Read the source, and share out what is due."""
        samples = [*self._source()]
        if self._pid != os.getpid() or not self._is_leader():
            self._begin()  # what is known here grows old
            return samples
        try:
            samples += self._share_out(samples, self._clock())
        except Exception as error:
            # The GPUs' own samples must not suffer from it.
            if repr(error) != self._fault:
                self._fault = repr(error)
                _logger.warning("the energy of predictions cannot be worked out: %r; trying again", error)
        else:
            self._fault = None
        return samples

    def close(self) -> None:
        """Have the source let go of its driver, if it can."""
        getattr(self._source, "close", lambda: None)()

    def _share_out(self, samples: Iterable[Sample], now: float) -> list[Sample]:
        self._go_on_from_another(now)
        readings, instances = _read(samples)
        self._instances = instances or self._instances
        for reading in readings:
            if reading.name not in self._gpus:
                self._gpus[reading.name] = _Gpu(self._marks.get(reading.name))
            self._gpus[reading.name].read(reading, now)
        self._gpus = {name: gpu for name, gpu in self._gpus.items() if now - gpu.read_at < _OLDEST_S}
        self._look(now)
        due = [(name, gpu, period) for name, gpu in self._gpus.items() for period in gpu.take_due(now)]
        over = self._settle(due, now) if due or not self._gpus else []
        marks = {name: gpu.mark for name, gpu in self._gpus.items() if gpu.counts}
        if due or over or marks != self._marks:
            # Before anything is recorded: what a death in between loses nobody counts twice.
            self._keep(marks)
        for call in over:
            self._provider.instrument(PREDICTION_ENERGY).record(call.joules, call.model)
        return [Sample(GPU_IDLE_ENERGY, gpu.take_idle(), gpu.labels) for gpu in self._gpus.values()]

    def _look(self, now: float) -> None:
        """See which calls there are."""
        lost = self._calls.look(now)
        if sum(len(follower.calls) for follower in self._calls) > _MOST_CALLS:
            for follower in self._calls:
                kept = [call for call in follower.calls if call.end == inf or call.joules is not None]
                lost += len(follower.calls) - len(kept)
                follower.calls = kept
        if lost:
            self._provider.instrument(DROPPED).add(lost, {"reason": "energy"})
        if self._carried:
            for call in (call for follower in self._calls for call in follower.calls if call.key in self._carried):
                call.joules = self._carried.pop(call.key).joules

    def _settle(self, due: Iterable[tuple[str, _Gpu, _Period]], now: float) -> list[Call]:
        """Price what is due, and let go of the calls that will get no more; returns those that have got something."""
        sees = {each: _gpus_of(each.environment, self._gpus, self._instances) for each in self._calls}
        for name, gpu, period in due:
            gpu.idle += _price(gpu, period, [each for each, gpus in sees.items() if name in gpus])
        # Those that another has left, and that nobody finds any more, are over too.
        over, self._carried = [*self._carried.values()], {}
        for follower, gpus in sees.items():
            until = min((gpu.mark.time for name, gpu in self._gpus.items() if name in gpus), default=now)
            over += [call for call in follower.calls if call.end <= until and call.joules is not None]
            follower.calls = [call for call in follower.calls if call.end > until]
        return over

    def _go_on_from_another(self, now: float) -> None:
        """Begin where another has stopped, if one has shared something out since this did."""
        kept = None if self._group is None else self._group.load(KEPT)
        if not isinstance(kept, dict) or kept.get("stamp") == self._stamp:
            return
        self._begin(kept.get("stamp"))
        try:
            self._marks = {name: _Mark(*map(float, mark)) for name, mark in kept["marks"].items()}
            for ring, slot, turn, model, joules in kept["carried"]:
                self._carried[ring, slot, turn] = Call((ring, slot, turn), dict(model), now, now, joules=float(joules))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            _logger.debug("what another has kept of the energy is not understood: %r", error)

    def _keep(self, marks: dict[str, _Mark]) -> None:
        """Tell whoever leads next how far the energy is shared out, and what calls have got that are not over."""
        self._marks = marks
        if self._group is None:
            return
        calls = [call for follower in self._calls for call in follower.calls if call.joules is not None]
        carried = [[*call.key, call.model, call.joules] for call in (*calls, *self._carried.values())]
        self._stamp = uuid.uuid4().hex
        try:
            self._group.keep(KEPT, {"stamp": self._stamp, "marks": marks, "carried": carried})
        except OSError as error:
            _logger.debug("how far the energy is shared out is known here alone: %s", error)
            (self._group.folder / KEPT).unlink(missing_ok=True)  # who went on from there would count twice


def _price(gpu: _Gpu, period: _Period, followers: Iterable[Follower]) -> float:
    """Add to the calls what they have used in a period, and return what was idle."""
    begin, end = period
    calls = [
        call for follower in followers for call in follower.calls if call.begin < end.time and call.end > begin.time
    ]
    slots = price(gpu.powers, begin.time, end.time, end.joules - begin.joules)
    shares, idle = share([(call.begin, call.end, call.weight) for call in calls], slots)
    for call, joules in zip(calls, shares, strict=True):
        call.joules = (call.joules or 0.0) + joules
    return idle


def _read(samples: Iterable[Sample]) -> tuple[list[_Reading], dict[str, str]]:
    """What the samples say of each GPU, and which of them each MIG instance is on."""
    labels: dict[str, Mapping[str, str]] = {}
    found: dict[str, dict[str, float]] = {}
    names: dict[str, str] = {}
    instances: dict[str, str] = {}
    for row, value, attributes in samples:
        gpu = attributes.get("gpu_id", "")
        if row is GPU_INFO:
            names[gpu] = attributes["gpu_uuid"]
        elif row is GPU_MIG_INFO:
            instances[attributes["mig_uuid"]] = gpu
        elif (row is GPU_POWER_USAGE or row is GPU_ENERGY) and isfinite(value) and value >= 0.0:
            labels[gpu] = attributes
            found.setdefault(gpu, {})[row.name] = value
    readings = [
        _Reading(names.get(gpu, gpu), labels[gpu], values.get(GPU_POWER_USAGE.name), values.get(GPU_ENERGY.name))
        for gpu, values in found.items()
    ]
    return readings, {instance: names.get(gpu, gpu) for instance, gpu in instances.items()}


def _gpus_of(environment: Mapping[str, str], gpus: Mapping[str, _Gpu], instances: Mapping[str, str]) -> set[str]:
    """The names of those GPUs that a process may use; all of them where only CUDA knows."""
    if VISIBLE_DEVICES not in environment:
        return set(gpus)
    known = {gpu.index: Identity(gpu.index, name, gpu.labels["gpu_name"]) for name, gpu in gpus.items()}
    some = next(iter(known.values()), Identity(0, "", ""))
    # An index counts those too that are not read here.
    every = [known.get(index, Identity(index, "", some.name)) for index in range(max(known, default=-1) + 1)]
    names: set[str] = set()
    # Entry by entry: a list ends before a GPU that is not there, which may only not be read here.
    for entry in environment[VISIBLE_DEVICES].split(","):
        try:
            left = visible_devices({**environment, VISIBLE_DEVICES: entry}, every, instances.get)
        except UnknownOrder:
            return set(gpus)
        names.update(each.uuid for each in left)
    return names


class _Mark(NamedTuple):
    """How much a GPU has used up to a time."""

    time: float
    joules: float


_Period: TypeAlias = tuple[_Mark, _Mark]


class _Reading(NamedTuple):
    """What the source says of a GPU."""

    name: str
    """What it is called wherever it is: its uuid."""
    labels: Mapping[str, str]
    watts: float | None
    joules: float | None


class _Gpu:
    """What one GPU has used since its energy was last shared out."""

    def __init__(self, mark: _Mark | None = None) -> None:
        self.labels: Mapping[str, str] = {}
        self.read_at = -inf
        self.counts = mark is not None
        """Whether it counts its energy itself; else its power is added up."""
        self.powers: deque[tuple[float, float]] = deque(maxlen=_MOST_POWERS)
        self.idle = 0.0
        self._periods: deque[_Period] = deque(maxlen=_MOST_PERIODS)
        self._open = mark
        self._joules = 0.0

    @property
    def index(self) -> int:
        """Its number."""
        return int(self.labels["gpu_id"])

    @property
    def mark(self) -> _Mark:
        """How far its energy is shared out."""
        return self._periods[0][0] if self._periods else self._open or _Mark(-inf, 0.0)

    def read(self, reading: _Reading, now: float) -> None:
        """Take a reading: a period ends where the energy has changed."""
        if self.counts != self._should_count(reading, now):
            self.counts, self._open, self._joules = not self.counts, None, 0.0
        joules = reading.joules if self.counts else self._added_up(reading.watts, now)
        self.labels, self.read_at = reading.labels, now
        if reading.watts is not None:
            self.powers.append((now, reading.watts))
        if joules is None:
            return
        here, before, self._joules = _Mark(now, joules), self._joules, joules
        began = self._open
        if began is None or joules < max(before, began.joules) or not 0.0 <= now - began.time <= _OLDEST_S:
            self._open = here  # what was used meanwhile nobody can tell: the driver was loaded anew, or did not answer
        elif now - began.time >= (_PERIOD_S if joules > before else _LONGEST_PERIOD_S):
            self._periods.append((began, here))
            self._open = here

    def take_due(self, now: float) -> Iterator[_Period]:
        """The periods that have rested, each once."""
        while self._periods and now - self._periods[0][1].time >= _LAG_S:
            yield self._periods.popleft()

    def take_idle(self) -> float:
        """What was idle since this was last asked."""
        idle, self.idle = self.idle, 0.0
        return idle

    def _should_count(self, reading: _Reading, now: float) -> bool:
        """Whether to go by the counter: as long as it answers now and then."""
        if reading.joules is not None or not self.counts:
            return reading.joules is not None
        return self._open is not None and now - self._open.time <= _OLDEST_S

    def _added_up(self, watts: float | None, now: float) -> float | None:
        """The energy that the power comes to since the first reading."""
        if watts is None:
            return None
        if not self.powers or now - self.powers[-1][0] > _LONGEST_PERIOD_S:
            self._open = None
            return self._joules
        return self._joules + watts * (now - self.powers[-1][0])
