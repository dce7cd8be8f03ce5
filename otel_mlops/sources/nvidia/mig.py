"""The MIG instances of a GPU, under names of their own: what they are, their memory, and how busy they are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from otel_mlops.metrics import GPU_MIG_INFO, GPU_MIG_MEMORY_TOTAL, GPU_MIG_MEMORY_USED, GPU_MIG_SM_ACTIVITY
from otel_mlops.sources.nvidia.activity import SM_UTIL, Pair, require_gpm
from otel_mlops.sources.nvidia.driver import Failed, Gone, Gpu, Lost, Unsupported, code_of
from otel_mlops.sources.watched import Sample

_LIST_EVERY_S = 60.0


class _Instance(NamedTuple):
    """A MIG device: a compute instance within a GPU instance, whose memory it shares with others of its like."""

    handle: Any
    uuid: str
    gpu_instance: int
    compute_instance: int
    labels: Mapping[str, str]

    @property
    def place(self) -> str:
        """Where it is on the GPU; unlike the uuid one of a few, however often instances are made anew."""
        return f"{self.gpu_instance}/{self.compute_instance}"


class Instances:
    """The MIG instances of a GPU, or those of them whose uuid is in `visible`.

    Reads:   nvmlDeviceGetMigMode and the MIG devices once a minute, and when one is not there any more; of each
             device its uuid, its memory, and a GPM sample of its GPU instance.
    Yields:  GPU_MIG_INFO, GPU_MIG_MEMORY_USED, GPU_MIG_MEMORY_TOTAL; GPU_MIG_SM_ACTIVITY from the second reading
             on, as the mean since the last. Memory and activity are those of the GPU instance, whichever of its
             compute instances asks.
    Absent when: MIG is off or the GPU has none; the activity also where the GPU is older than Hopper.
    Errors:  Lost, Gone.
    """

    def __init__(self, gpu: Gpu, clock: Callable[[], float], visible: Collection[str] | None = None) -> None:
        self._gpu = gpu
        self._clock = clock
        self._visible = visible
        self._list_at = -math.inf
        self._instances: list[_Instance] = []
        self._has_gpm = False
        self._pairs: dict[int, Pair] = {}
        """By GPU instance."""

    def read(self) -> Iterable[Sample]:
        """Read every instance."""
        try:
            if self._clock() >= self._list_at or not all(map(self._is_there, self._instances)):
                self._list()
            samples = [sample for instance in self._instances for sample in self._memory_of(instance)]
            samples.extend(self._activity())
        except Lost:
            self.close()
            raise
        except Gone:
            self._forget()
            raise
        return samples

    def close(self) -> None:
        """Free what lies in the driver's memory; call it before NVML is shut down."""
        pairs = self._pairs
        self._forget()
        for pair in pairs.values():
            pair.close()

    def _forget(self) -> None:
        self._list_at = -math.inf
        self._instances = []
        self._pairs = {}

    def _is_there(self, instance: _Instance) -> bool:
        """Whether a handle still is that of the instance: a new one may have come in its place."""
        try:
            uuid = self._gpu.driver.ask("nvmlDeviceGetUUID", instance.handle)
        except (Unsupported, Failed):
            return False
        return bool(uuid == instance.uuid)

    def _list(self) -> None:
        """Find the instances that there are now."""
        gpu, now = self._gpu, self._clock()
        known, self._instances = {(one.uuid, one.gpu_instance) for one in self._instances}, []
        faults = gpu.faults.total()
        if gpu.supports("gpu.mig"):
            with gpu.part("gpu.mig"):
                for index in range(self._most()):
                    part = f"gpu.mig device {index}"
                    if gpu.supports(part):
                        with gpu.part(part):
                            self._instances.extend(self._at(index))
        # What failed is asked again at the next reading.
        self._list_at = now + _LIST_EVERY_S if gpu.faults.total() == faults else now
        kept = {one.gpu_instance for one in self._instances if (one.uuid, one.gpu_instance) in known}
        for gone in self._pairs.keys() - kept:
            # A GPU instance made anew may have the number of one that is gone, but not its counters.
            self._pairs.pop(gone).close()

    def _most(self) -> int:
        """How many instances there may be; none while MIG is off."""
        current, _pending = self._gpu.ask("nvmlDeviceGetMigMode")
        if current != self._gpu.driver.nvml.NVML_DEVICE_MIG_ENABLE:
            return 0
        return int(self._gpu.ask("nvmlDeviceGetMaxMigDeviceCount"))

    def _at(self, index: int) -> Iterator[_Instance]:
        """The instance with an index, if there is one."""
        gpu, driver = self._gpu, self._gpu.driver
        try:
            handle = gpu.ask("nvmlDeviceGetMigDeviceHandleByIndex", index)
        except Failed as failure:
            if code_of(failure) == driver.nvml.NVML_ERROR_NOT_FOUND:
                return
            raise
        uuid = driver.ask("nvmlDeviceGetUUID", handle)
        if self._visible is None or uuid in self._visible:
            gpu_instance = driver.ask("nvmlDeviceGetGpuInstanceId", handle)
            compute_instance = driver.ask("nvmlDeviceGetComputeInstanceId", handle)
            labels = {**gpu.labels, "mig_uuid": uuid, "profile": self._profile(handle)}
            yield _Instance(handle, uuid, gpu_instance, compute_instance, labels)

    def _profile(self, handle: Any) -> str:
        """What an instance was made as, 1g.10gb: the driver has it in the name, old ones only in numbers."""
        driver = self._gpu.driver
        named = re.search(r" MIG (\S+)$", driver.ask("nvmlDeviceGetName", handle))
        if named:
            return named[1]
        has = driver.ask("nvmlDeviceGetAttributes_v2", handle)
        compute, slices = has.computeInstanceSliceCount, has.gpuInstanceSliceCount
        # A profile is named by its share of the whole memory, of which a little is the driver's.
        profile = f"{slices}g.{math.ceil(has.memorySizeMB / 1024)}gb"
        return profile if compute == slices else f"{compute}c.{profile}"

    def _memory_of(self, instance: _Instance) -> list[Sample]:
        ids = {"gpu_instance_id": str(instance.gpu_instance), "compute_instance_id": str(instance.compute_instance)}
        samples = [Sample(GPU_MIG_INFO, 1.0, {**instance.labels, **ids})]
        part, driver = f"gpu.mig.memory of {instance.place}", self._gpu.driver
        if self._gpu.supports(part):
            with self._gpu.part(part):
                # The first version counts what the driver reserves for itself as used.
                memory = driver.ask("nvmlDeviceGetMemoryInfo", instance.handle, version=driver.nvml.nvmlMemory_v2)
                samples.append(Sample(GPU_MIG_MEMORY_USED, memory.used, instance.labels))
                samples.append(Sample(GPU_MIG_MEMORY_TOTAL, memory.total, instance.labels))
        return samples

    def _activity(self) -> list[Sample]:
        """How busy each GPU instance was, once for all compute instances on it."""
        gpu, row = self._gpu, GPU_MIG_SM_ACTIVITY
        if not self._has_gpm and self._instances and gpu.supports(row.name):
            with gpu.part(row.name):
                require_gpm(gpu)
                self._has_gpm = True
        samples: list[Sample] = []
        for gpu_instance in {one.gpu_instance for one in self._instances} if self._has_gpm else ():
            part = f"{row.name} of {gpu_instance}"
            if gpu.supports(part):
                with gpu.part(part):
                    pair = self._pairs.get(gpu_instance) or self._pair(gpu_instance)
                    pair.read()
                    ratio = pair.ratio(SM_UTIL)
                    if ratio is not None:
                        alike = (one for one in self._instances if one.gpu_instance == gpu_instance)
                        samples.extend(Sample(row, ratio, one.labels) for one in alike)
        return samples

    def _pair(self, gpu_instance: int) -> Pair:
        def take(sample: Any) -> None:
            self._gpu.ask("nvmlGpmMigSampleGet", gpu_instance, sample)

        pair = self._pairs[gpu_instance] = Pair(self._gpu.driver, take, (SM_UTIL,), self._clock)
        return pair
