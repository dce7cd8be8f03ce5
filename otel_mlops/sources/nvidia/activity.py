"""How busy the multiprocessors, the tensor cores and the memory of a GPU are, from GPM; no other value is read here."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from otel_mlops.metrics import (
    GPU_DRAM_ACTIVITY,
    GPU_PCIE_IO,
    GPU_SM_ACTIVE,
    GPU_SM_ACTIVITY,
    GPU_SM_OCCUPANCY,
    GPU_TENSOR_ACTIVITY,
    Metric,
)
from otel_mlops.sources.nvidia.driver import Driver, Failed, Gone, Gpu, Lost, Unsupported
from otel_mlops.sources.watched import Sample

logger = logging.getLogger(__name__)

# The numbers are NVML's, and fixed. They stand here because a release of nvidia-ml-py may not know all of them.
SM_UTIL = 2
_ROWS = {SM_UTIL: GPU_SM_ACTIVITY, 3: GPU_SM_OCCUPANCY, 5: GPU_TENSOR_ACTIVITY, 10: GPU_DRAM_ACTIVITY}
_PCIE = {20: "transmit", 21: "receive"}
_VERSION = 1

_SHORTEST_S = 0.1
"""GPM has nothing to say about less: its counters move every 100 ms."""

_MOST_PERCENT = 101.0
"""The counters of a sample are not all read at one instant, so that a full unit can come out above 100."""

_MOST_MIB_S = 2.0**20
"""A terabyte a second: no bus carries that."""


class Pair:
    """Two samples of the driver's counters, filled by turns, and what happened between the last two fillings.

    A sample lies in the driver's memory until it is freed. `take` fills one.
    """

    def __init__(
        self, driver: Driver, take: Callable[[Any], object], metrics: Iterable[int], clock: Callable[[], float]
    ) -> None:
        self._driver = driver
        self._take = take
        self._metrics = tuple(metrics)
        self._clock = clock
        self._samples: list[Any] = []
        """The one filled last comes first."""
        self._filled_at: float | None = None
        self._asked: Any = None
        self._answers: dict[int, Any] = {}

    def read(self) -> float:
        """Fill the older sample, and return the seconds since the other was filled; 0 if there is nothing new.

        Errors:  Unsupported, Failed, Lost, Gone.
        """
        try:
            return self._read()
        except Lost:
            self.close()
            raise
        except Gone:
            self.forget()
            raise

    def ratio(self, metric: int) -> float | None:
        """The mean of a metric of GPM between the last two fillings, 0 to 1; None before there were two.

        Errors:  Unsupported, Failed, Lost, Gone; Failed too if the driver's value makes no sense.
        """
        percent = self._value(metric)
        if percent is None:
            return None
        if not 0.0 <= percent <= _MOST_PERCENT:
            raise Failed(f"metric {metric} of GPM: {percent!r} is no percentage")
        return min(percent, 100.0) / 100.0

    def bytes_per_s(self, metric: int) -> float | None:
        """The mean of a metric of GPM that is in MiB/s, in bytes a second; None before there were two fillings.

        Errors:  as `ratio`.
        """
        rate = self._value(metric)
        if rate is not None and not 0.0 <= rate <= _MOST_MIB_S:
            raise Failed(f"metric {metric} of GPM: {rate!r} is no rate")
        return None if rate is None else rate * 2**20

    def _value(self, metric: int) -> float | None:
        answer = self._answers.get(metric)
        if answer is None:
            return None
        if answer.nvmlReturn != self._driver.nvml.NVML_SUCCESS:
            raise self._driver.fault(answer.nvmlReturn, f"metric {metric} of GPM")
        return float(answer.value)

    def close(self) -> None:
        """Free the samples. What is read afterwards begins anew."""
        samples = self._samples
        self.forget()
        for sample in samples:
            try:
                # Whatever is wrong with this one, the other is to be freed too.
                with suppress(Unsupported, Failed, Lost):
                    self._driver.ask("nvmlGpmSampleFree", sample)
            except Gone as gone:
                logger.debug("The samples went with the driver: %s", gone)
                return

    def forget(self) -> None:
        """Leave the samples to a driver that is gone: it is not called, and there is nothing left to free."""
        self._samples = []
        self._filled_at = None

    def _read(self) -> float:
        filled_at = self._filled_at
        if filled_at is not None and self._clock() - filled_at < _SHORTEST_S:
            return 0.0
        self._answers = {}
        while len(self._samples) < 2:
            self._samples.append(self._driver.ask("nvmlGpmSampleAlloc"))
        self._take(self._samples[1])
        self._samples.reverse()
        self._filled_at = self._clock()
        if filled_at is None:
            return 0.0
        self._answers = self._between(*self._samples)
        return self._filled_at - filled_at

    def _between(self, newer: Any, older: Any) -> dict[int, Any]:
        """What the driver makes of two samples, by metric."""
        asked = self._asked
        if asked is None:
            asked = self._asked = self._driver.nvml.c_nvmlGpmMetricsGet_t()
            asked.version, asked.numMetrics = _VERSION, len(self._metrics)
        asked.sample1, asked.sample2 = older, newer
        answers = dict(zip(self._metrics, asked.metrics, strict=False))
        for metric, answer in answers.items():
            # What the driver does not answer must not look like the last answer, nor like 0.
            answer.metricId, answer.value = metric, math.nan
        self._driver.ask("nvmlGpmMetricsGet", asked)
        return answers


class Activity:
    """How busy the parts of a GPU were since the last reading.

    Reads:   nvmlGpmQueryDeviceSupport once, nvmlGpmSampleGet and nvmlGpmMetricsGet each time.
    Yields:  GPU_SM_ACTIVITY, GPU_SM_OCCUPANCY, GPU_TENSOR_ACTIVITY and GPU_DRAM_ACTIVITY as means since the last
             reading, GPU_SM_ACTIVE as the increase since then; at the first reading the increase of 0 alone. So too
             GPU_PCIE_IO, where the driver has no counter of it that is wide enough.
    Absent when: the GPU is older than Hopper, or this process may not read it.
    Errors:  Lost, Gone.
    """

    def __init__(self, gpu: Gpu, clock: Callable[[], float]) -> None:
        self._gpu = gpu
        self._has_gpm = False
        self._pair = Pair(gpu.driver, lambda sample: gpu.ask("nvmlGpmSampleGet", sample), (*_ROWS, *_PCIE), clock)

    def read(self) -> Iterable[Sample]:
        """Read what happened since the last reading."""
        gpu, samples = self._gpu, []
        if gpu.supports("activity"):
            with gpu.part("activity"):
                if not self._has_gpm:
                    require_gpm(gpu)
                    self._has_gpm = True
                since_s = self._pair.read()
                samples = [sample for metric, row in _ROWS.items() for sample in self._of(metric, row, since_s)]
                samples += [sample for metric in _PCIE for sample in self._pcie(metric, since_s)]
        return samples

    def close(self) -> None:
        """Free what lies in the driver's memory; call it before NVML is shut down."""
        self._pair.close()

    def _of(self, metric: int, row: Metric, since_s: float) -> list[Sample]:
        """The samples that come from one metric of GPM; one that fails leaves the others."""
        gpu, samples = self._gpu, []
        with gpu.part(row.name):
            ratio = self._pair.ratio(metric)
            if ratio is not None:
                samples.append(Sample(row, ratio, gpu.labels))
            if row is GPU_SM_ACTIVITY:
                samples.append(Sample(GPU_SM_ACTIVE, (ratio or 0.0) * since_s, gpu.labels))
        return samples

    def _pcie(self, metric: int, since_s: float) -> list[Sample]:
        """What went over the bus by GPM's mean of it; nothing where the driver counts it itself."""
        gpu, samples, direction = self._gpu, [], _PCIE[metric]
        counted = gpu.states.get(f"{GPU_PCIE_IO.name} {direction}")
        if counted is None or counted.state in ("supported", "failed"):
            return []
        with gpu.part(f"{GPU_PCIE_IO.name} {direction} mean"):
            rate = self._pair.bytes_per_s(metric) or 0.0
            samples.append(Sample(GPU_PCIE_IO, rate * since_s, {**gpu.labels, "direction": direction}))
        return samples


def require_gpm(gpu: Gpu) -> None:
    """Make sure that a GPU has GPM.

    Errors:  Unsupported if it has not; Failed, Lost, Gone.
    """
    if not gpu.ask("nvmlGpmQueryDeviceSupport").isSupportedDevice:
        raise Unsupported("nvmlGpmQueryDeviceSupport: it is older than Hopper")
