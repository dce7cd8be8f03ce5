"""One GPU: everything that is read of it, each thing as often as it is worth, and whether it answers at all."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from otel_mlops.metrics import GPU_INFO, GPU_PROCESS_MEMORY, GPU_READ_ERRORS, GPU_UP
from otel_mlops.sources.backoff import Backoff
from otel_mlops.sources.nvidia import quantities
from otel_mlops.sources.nvidia.activity import Activity
from otel_mlops.sources.nvidia.driver import Driver, Failed, Gone, Gpu, Lost, Unsupported
from otel_mlops.sources.nvidia.events import XidEvents
from otel_mlops.sources.nvidia.fields import Fields, labels_of, number_of
from otel_mlops.sources.nvidia.mig import Instances
from otel_mlops.sources.nvidia.quantities import BUFFERED_S, EVERY_S, MEDIUM_S, SLOW_S, Call
from otel_mlops.sources.nvidia.samples import Samples
from otel_mlops.sources.nvidia.visible import Identity
from otel_mlops.sources.watched import Sample, is_increase

logger = logging.getLogger(__name__)

_EARLY_S = 0.25
"""What is due in a moment is read now: the next reading may be a second away, and that too late for a buffer."""

_COMMON_ERRORS = ("timeout", "unknown")
"""Errors that are there at 0 from the start, so that the first one shows in `increase()`."""

_FANS = "gpu.fan.speed"

Pids = Callable[[], Mapping[str, int]]
"""The process id of each worker, by its label."""


Watch = Callable[[Driver, Iterable[Gpu], Callable[[], float]], XidEvents]
"""Makes what waits for the events that the driver reports of GPUs."""


class Increases:
    """What counters have grown by, kept until it is given to whoever counts."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, frozenset[tuple[str, str]]], Sample] = {}

    def keep(self, samples: Iterable[Sample]) -> list[Sample]:
        """Keep those that are increases, and return the others."""
        others = []
        for sample in samples:
            if is_increase(sample.metric):
                series = (sample.metric.name, frozenset(sample.attributes.items()))
                kept = self._sums.get(series)
                self._sums[series] = sample if kept is None else sample._replace(value=kept.value + sample.value)
            else:
                others.append(sample)
        return others

    def take(self) -> list[Sample]:
        """Give all, once."""
        sums, self._sums = self._sums, {}
        return list(sums.values())


@dataclass(frozen=True)
class World:
    """What the source was opened with, and what outlives one opening of the driver."""

    gpus: str = "all"
    """`visible`: those that CUDA_VISIBLE_DEVICES leaves; or `all`."""
    environ: Mapping[str, str] = field(default_factory=dict)
    pids: Pids | None = None
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    watch: Watch = XidEvents
    increases: Increases = field(default_factory=Increases)
    known: dict[int, Identity] = field(default_factory=dict)
    """What the GPUs were called when they last answered, by their number."""
    lost: set[int] = field(default_factory=set)
    """The GPUs of which it was said that they do not answer."""
    told: set[str] = field(default_factory=set)
    """What else was said, once."""

    def tell_lost(self, identity: Identity, loss: Exception) -> None:
        """Say that a GPU does not answer, once until it does."""
        if identity.index not in self.lost:
            self.lost.add(identity.index)
            words = "GPU %d (%s) does not answer: %s; tried again until it does"
            logger.warning(words, identity.index, identity.name, loss)

    def tell_found(self, identity: Identity) -> None:
        """Say that it answers, if the contrary was said."""
        if identity.index in self.lost:
            self.lost.discard(identity.index)
            logger.info("GPU %d (%s) answers again", identity.index, identity.name)


class Part(Protocol):
    """Something that a class of its own reads of a GPU."""

    def read(self) -> Iterable[Sample]: ...
    def close(self) -> None: ...


def find(driver: Driver, world: World, index: int) -> Gpu:
    """Find a GPU by the driver's number for it.

    Errors:  Unsupported if this process may not have it; Failed, Lost, Gone.
    """
    handle = driver.ask("nvmlDeviceGetHandleByIndex", index)
    uuid, name = driver.ask("nvmlDeviceGetUUID", handle), driver.ask("nvmlDeviceGetName", handle)
    world.known[index] = Identity(index, uuid, name)
    return Gpu(driver, handle, index=index, uuid=uuid, name=name, driver_version=driver.version, clock=world.clock)


class Device:
    """One GPU of the driver, for as long as that is open.

    `gpu` is None if it did not answer when the driver was opened. `share`, above 0 and at most 1, is where in a
    tier's time it has its turn, so that many GPUs are not read all at a time. `instances` are the uuids of the MIG
    instances to show, None for all.
    """

    def __init__(
        self,
        driver: Driver,
        world: World,
        identity: Identity,
        gpu: Gpu | None,
        *,
        share: float = 1.0,
        instances: Collection[str] | None = None,
    ) -> None:
        self.identity = identity
        self.gpu = gpu
        self._driver = driver
        self._world = world
        self._share = share
        self._instances = instances
        self._backoff = Backoff(world.clock)
        if gpu is None:
            self._backoff.fail()
        self._info: dict[str, str] = {}
        self._tiers: list[_Tier] = []
        self._parts: list[Part] = []

    @property
    def is_lost(self) -> bool:
        """Whether it did not answer."""
        return bool(self._backoff.failures)

    @property
    def is_given_up(self) -> bool:
        """Whether it has never answered, or did not when it was tried again either."""
        return self._backoff.failures > (0 if self.gpu is None else 1)

    @property
    def absence(self) -> Sample:
        """What is shown of it while it does not answer."""
        return Sample(GPU_UP, 0.0, {"gpu_id": str(self.identity.index), "gpu_name": self.identity.name})

    def read(self) -> list[Sample]:
        """Read what is due, and give the last values of all else.

        Errors:  Gone.
        """
        if not self._backoff.is_over:
            return [self.absence]
        try:
            samples = self._read()
        except Lost as loss:
            self._world.tell_lost(self.identity, loss)
            self._backoff.fail()
            self.close()
            return [self.absence]
        self._backoff.reset()
        self._world.tell_found(self.identity)
        return samples

    def close(self) -> None:
        """Let go of what the driver holds for it; call it before NVML is shut down."""
        parts, self._parts, self._tiers = self._parts, [], []
        for part in parts:
            part.close()

    def _read(self) -> list[Sample]:
        gpu = self._found()
        if not self._tiers:
            self._open(gpu)
        try:
            for tier in self._tiers:
                if tier.is_due(self._world.clock()):
                    self._read_tier(gpu, tier)
        finally:
            labels = gpu.labels
            faults = [Sample(GPU_READ_ERRORS, times, {**labels, "error": name}) for name, times in gpu.faults.items()]
            self._world.increases.keep(faults)
            gpu.faults.clear()
        return [Sample(GPU_UP, 1.0, labels), *(sample for tier in self._tiers for sample in tier.samples)]

    def _found(self) -> Gpu:
        """The GPU; after it was lost, looked for anew.

        Errors:  Lost, Gone.
        """
        if self.gpu is not None and not self._backoff.failures:
            return self.gpu
        try:
            found = find(self._driver, self._world, self.identity.index)
        except (Failed, Unsupported) as failure:
            raise Lost(str(failure)) from failure
        if self.gpu is not None and self.gpu.uuid == found.uuid:
            # Others know it too, by this object.
            self.gpu.renew(found.handle)
        else:
            self.gpu = found
            self.identity = Identity(found.index, found.uuid, found.name)
        return self.gpu

    # --- What is read -------------------------------------------------------------------------------------

    def _open(self, gpu: Gpu) -> None:
        """Lay out what is read of it, by how often."""
        world = self._world
        self._tiers = []
        own: list[tuple[float, str, _Reading]] = [
            (MEDIUM_S, "processes", partial(self._processes, gpu)),
            (SLOW_S, "fans", partial(self._fans, gpu)),
            (SLOW_S, "info", partial(self._about, gpu)),
        ]
        made: list[tuple[float, str, Callable[[], Part]]] = [
            (BUFFERED_S, "samples", lambda: Samples(gpu, world.clock)),
            (MEDIUM_S, "activity", lambda: Activity(gpu, world.clock)),
            (MEDIUM_S, "instances", lambda: Instances(gpu, world.clock, self._instances)),
        ]
        for every_s, name, make in made:
            with _unharmed(gpu, name):
                part = make()
                self._parts.append(part)
                own.append((every_s, name, part.read))
        architecture = None
        with gpu.part("gpu.architecture"):
            architecture = gpu.ask("nvmlDeviceGetArchitecture")
        own += [(call.every_s, call.part, _bound(gpu, call)) for call in quantities.calls(architecture)]
        fields = list(quantities.fields(gpu.driver_version))
        for every_s in (EVERY_S, BUFFERED_S, MEDIUM_S, SLOW_S):
            if batch := [field for field in fields if field.every_s == every_s]:
                own.append((every_s, "field values", Fields(gpu, batch).read))
            readings = [(name, read) for often, name, read in own if often == every_s]
            self._tiers.append(_Tier(every_s, readings, self._share))
        world.increases.keep(Sample(GPU_READ_ERRORS, 0, {**gpu.labels, "error": error}) for error in _COMMON_ERRORS)

    def _read_tier(self, gpu: Gpu, tier: _Tier) -> None:
        failures = gpu.faults.total()
        samples: list[Sample] = []
        for name, read in tier.readings:
            with _unharmed(gpu, name):
                samples += self._world.increases.keep(read())
        if tier.every_s == EVERY_S and not samples and gpu.faults.total() > failures:
            why = next(state.why for state in gpu.states.values() if state.state == "failed")
            raise Lost(f"nothing of it can be read: {why}")
        tier.note(samples, self._world.clock())

    def _about(self, gpu: Gpu) -> Iterable[Sample]:
        """What it is; what could be read once stays, so that a call that fails makes no other series."""
        for label, function, text_of in quantities.INFO:
            part = f"{GPU_INFO.name} {label}"
            if gpu.supports(part):
                with gpu.part(part):
                    self._info[label] = text_of(gpu.ask(function)) or ""
        known = {label: text for label, text in {**self._driver.about, **self._info}.items() if text}
        return [Sample(GPU_INFO, 1.0, {**gpu.labels, "gpu_uuid": gpu.uuid, **known})]

    def _fans(self, gpu: Gpu) -> Iterable[Sample]:
        """Its fans, each asked for by itself; old drivers know of one."""
        samples: list[Sample] = []
        count = 0
        if gpu.supports(_FANS):
            with gpu.part(_FANS):
                count = gpu.ask("nvmlDeviceGetNumFans")
        if not gpu.supports(_FANS):
            return _bound(gpu, quantities.ONLY_FAN)()
        for number in range(count):
            samples += _bound(gpu, quantities.fan(number))()
        return samples

    def _processes(self, gpu: Gpu) -> Iterable[Sample]:
        """The memory that each worker has of it.

        In a container the driver may say what the processes are called outside. One that is not here gives that
        away: then none of its numbers is to be taken for one of ours.
        """
        used: dict[str, int] = {}
        if self._world.pids is not None and gpu.supports(GPU_PROCESS_MEMORY.name):
            workers = {pid: worker for worker, pid in self._world.pids().items()}
            with gpu.part(GPU_PROCESS_MEMORY.name):
                processes = gpu.ask("nvmlDeviceGetComputeRunningProcesses") if workers else []
                for process in processes if all(_is_here(process.pid) for process in processes) else ():
                    worker = workers.get(process.pid)
                    if worker is not None and process.usedGpuMemory is not None:
                        used[worker] = used.get(worker, 0) + process.usedGpuMemory
        return [Sample(GPU_PROCESS_MEMORY, bytes_, {**gpu.labels, "worker": worker}) for worker, bytes_ in used.items()]


_Reading = Callable[[], Iterable[Sample]]


@contextmanager
def _unharmed(gpu: Gpu, name: str) -> Iterator[None]:
    """A block whose surprises, an error of ours or a release that does not fit, cost its own samples alone."""
    try:
        yield
    except (Lost, Gone):
        raise
    except Exception as surprise:
        gpu.note(name, surprise)


class _Tier:
    """What of a GPU is read equally often, and what came of it last."""

    def __init__(self, every_s: float, readings: list[tuple[str, _Reading]], share: float) -> None:
        self.every_s = every_s
        self.readings = readings
        self.samples: list[Sample] = []
        self._share = share
        self._due_at = -math.inf

    def is_due(self, now: float) -> bool:
        return now >= self._due_at - min(_EARLY_S, self.every_s)

    def note(self, samples: list[Sample], now: float) -> None:
        """Keep what was read, and be due again in time: the first time earlier, by its share."""
        self.samples = samples
        if not self.every_s:
            return
        if self._due_at == -math.inf:
            self._due_at = now + self.every_s * self._share
        else:
            self._due_at += self.every_s * max(1, math.floor((now - self._due_at) / self.every_s) + 1)


def _bound(gpu: Gpu, call: Call) -> _Reading:
    """A call as it is made of one GPU, again and again, with its labels made once."""
    values = tuple((value, labels_of(gpu, value)) for value in call.values)

    def read() -> list[Sample]:
        samples: list[Sample] = []
        if gpu.supports(call.part) and not (call.instead_of and gpu.supports(call.instead_of)):
            with gpu.part(call.part):
                answer: Any = gpu.ask(call.function, *call.arguments, **call.options)
                for value, labels in values:
                    number = number_of(value, answer)
                    if number is not None:
                        samples.append(Sample(value.row, number, labels))
        return samples

    return read


def _is_here(pid: int) -> bool:
    """Whether a process of that number is in this process id namespace; 0 is one that is outside."""
    if pid == 0:
        return True
    if os.name != "posix" or pid >= 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
