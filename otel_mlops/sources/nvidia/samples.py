"""What the driver samples by itself between two readings: busy seconds, and the highest power; no other values."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from otel_mlops.metrics import GPU_BUSY, GPU_MEMORY_BUSY, GPU_POWER_PEAK
from otel_mlops.sources.nvidia.driver import Failed, Gpu, code_of, value_field
from otel_mlops.sources.watched import Sample

_PEAK_WINDOW_S = 60.0
_LONGEST_PERIOD_US = 1_500_000
"""A sample stands for 1/6 to 1 second, says nvml.h of the utilization; half a second is for the driver's jitter."""

_MOST_MW = 100_000_000
"""A hundred kilowatts: what is above was not measured. NVML writes a value it does not have as the highest number."""


class Samples:
    """The samples that the driver takes of one GPU by itself, from 20 ms to a second apart.

    Reads:   nvmlDeviceGetSamples for the utilization of the GPU and of its memory, and for the power.
    Yields:  GPU_BUSY and GPU_MEMORY_BUSY as increments, 0 at the first reading; GPU_POWER_PEAK from the second on.
    Absent when: the driver does not sample that value: each by itself. The utilization of the moment
             (nvmlDeviceGetUtilizationRates) does not stand in for the busy seconds: it sees one period of the many
             between two readings, and they are to be exact. The peak is absent too when there was no sample of the
             power for a minute.
    Errors:  Lost, Gone.
    Units:   seconds; watts.
    """

    def __init__(self, gpu: Gpu, clock: Callable[[], float] = time.monotonic) -> None:
        self._gpu = gpu
        self._clock = clock
        self._busy = (
            (GPU_BUSY, _Buffer(gpu, "NVML_GPU_UTILIZATION_SAMPLES")),
            (GPU_MEMORY_BUSY, _Buffer(gpu, "NVML_MEMORY_UTILIZATION_SAMPLES")),
        )
        self._power = _Buffer(gpu, "NVML_TOTAL_POWER_SAMPLES")
        self._peaks: deque[tuple[float, float]] = deque()
        """When and how high, the highest first: of the samples of the last minute those that none after exceeds."""

    def read(self) -> Iterable[Sample]:
        """Read what the driver has sampled since the last reading; its buffers reach back some seconds."""
        samples = []
        for row, buffer in self._busy:
            if self._gpu.supports(row.name):
                with self._gpu.part(row.name):
                    samples.append(Sample(row, _busy_s(buffer.fresh()), self._gpu.labels))
        if self._gpu.supports(GPU_POWER_PEAK.name):
            with self._gpu.part(GPU_POWER_PEAK.name):
                self._note_peaks(self._power.fresh())
        while self._peaks and self._peaks[0][0] < self._clock() - _PEAK_WINDOW_S:
            self._peaks.popleft()
        if self._peaks:
            samples.append(Sample(GPU_POWER_PEAK, self._peaks[0][1] / 1000, self._gpu.labels))
        return samples

    def close(self) -> None:
        """Forget what was sampled; the driver holds nothing for us."""
        self._peaks.clear()

    def _note_peaks(self, fresh: list[_Fresh]) -> None:
        now = self._clock()
        for sample in fresh:
            if 0 <= sample.value <= _MOST_MW:
                while self._peaks and self._peaks[-1][1] <= sample.value:
                    self._peaks.pop()
                self._peaks.append((now - sample.age_us / 1e6, sample.value))


class _Fresh(NamedTuple):
    """A sample that the last reading did not see."""

    value: float
    stands_for_us: int
    age_us: int
    """How much older it is than the newest, which is taken to be of now: nvml.h names no clock for the samples."""


class _Buffer:
    """One of the driver's buffers, from which each reading takes what is new.

    The driver is asked for all of it, not for what came after the last sample: it copies all of it anyway, and a
    driver whose clock was set back would say that there is nothing new until the clock is where it was.
    """

    def __init__(self, gpu: Gpu, kind: str) -> None:
        self._gpu = gpu
        self._kind = kind
        self._seen_us: int | None = None

    def fresh(self) -> list[_Fresh]:
        """What was sampled since the last reading, the oldest first; nothing at the first, which sets the start.

        Errors:  Unsupported, Failed, Lost, Gone.
        """
        field, samples = self._ask()
        sample_at = {sample.timeStamp: sample for sample in samples}
        times = sorted(sample_at)
        newest_us = times[-1] if times else self._seen_us or 0
        seen_us, self._seen_us = self._seen_us, newest_us
        fresh: list[_Fresh] = []
        if seen_us is None:
            return fresh
        # Where the clock was set back, all are older than what was seen: they may have been counted, the next were not.
        before_us = seen_us
        for at_us in times:
            if at_us > seen_us:
                period_us = at_us - before_us
                if period_us > _LONGEST_PERIOD_US:
                    # Nobody knows what was in a gap, and it counts as nothing. Drivers take no samples while the GPU
                    # sleeps, alone or with the machine: there nothing is the truth, where the mean of the samples
                    # around it would add hours of work to the next `rate()`. Only where the reader came later than
                    # the buffer reaches (14 s on most GPUs) is it too little; that shows in the source's age.
                    period_us = _usual_period_us(times)
                fresh.append(_Fresh(getattr(sample_at[at_us].sampleValue, field), period_us, newest_us - at_us))
                before_us = at_us
        return fresh

    def _ask(self) -> tuple[str, Sequence[Any]]:
        """All samples in the buffer, in the driver's order, and which member of the union their values are."""
        nvml = self._gpu.driver.nvml
        try:
            value_type, samples = self._gpu.ask("nvmlDeviceGetSamples", getattr(nvml, self._kind), 0)
        except Failed as failure:
            if code_of(failure) == nvml.NVML_ERROR_NOT_FOUND:
                return "", ()
            raise
        return value_field(value_type), samples


def _usual_period_us(times_us: list[int]) -> int:
    """The median time between two samples, gaps left out; 0 if there are no two.

    >>> _usual_period_us([0, 9_000_000, 9_200_000, 9_400_000])
    200000
    """
    periods = (after - before for before, after in pairwise(times_us))
    regular = sorted(period for period in periods if period <= _LONGEST_PERIOD_US)
    return regular[len(regular) // 2] if regular else 0


def _busy_s(fresh: list[_Fresh]) -> float:
    """The integral of a utilization in percent over the time that the samples stand for; others say nothing.

    >>> _busy_s([_Fresh(100, 200_000, 200_000), _Fresh(50, 200_000, 0)])
    0.3
    """
    return sum(sample.value * sample.stands_for_us for sample in fresh if 0 <= sample.value <= 100) / 1e8
