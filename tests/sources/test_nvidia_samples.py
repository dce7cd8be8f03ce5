"""Busy seconds and the peak of the power, out of what the driver samples by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pynvml
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_mlops.metrics import GPU_BUSY, GPU_MEMORY_BUSY, GPU_POWER_PEAK, Metric
from otel_mlops.sources.nvidia.driver import Driver, Gone, Gpu, Lost
from otel_mlops.sources.nvidia.samples import Samples
from tests.nvml.driver import FakeDriver

PERIOD_S = 0.2  # of the utilization; that of the power is 0.02
DEPTH_S = 71 * PERIOD_S


class Card:
    """The first GPU of a driver, its samples as they are read, and a clock that goes with the driver's."""

    def __init__(self, fake: FakeDriver, nvml: Any = pynvml):
        self.fake = fake
        self.now = 1000.0
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        self.gpu = Gpu(
            Driver(nvml), handle, index=0, uuid="GPU-0", name="H100", driver_version=(580,), clock=lambda: self.now
        )
        self.samples = Samples(self.gpu, clock=lambda: self.now)

    def read(self) -> dict[Metric, float]:
        """One reading, by row."""
        samples = list(self.samples.read())
        assert all(sample.attributes == {"gpu_id": "0", "gpu_name": "H100"} for sample in samples)
        assert len({sample.metric for sample in samples}) == len(samples)
        return {sample.metric: sample.value for sample in samples}

    def advance(self, seconds: float) -> None:
        """Let time pass for the driver and for us."""
        self.fake.advance(seconds)
        self.now += seconds

    def set(self, key: str, value: float | None) -> None:
        """Set a number of the GPU from now on."""
        self.fake.gpu(0).set(key, value)


class Scripted:
    """pynvml, but for the samples, which a test writes down as (microseconds, value)."""

    def __init__(self):
        self.written: list[tuple[int, float]] = []
        self.value_type = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
        self.field = "uiVal"

    def __getattr__(self, name: str) -> Any:
        return getattr(pynvml, name)

    def nvmlDeviceGetSamples(self, device: Any, kind: int, since_us: int) -> tuple[int, list[Any]]:  # noqa: N802
        """What is in the buffer, which is the same for all kinds."""
        samples = []
        for at_us, value in self.written:
            if at_us > since_us:
                sample = pynvml.c_nvmlSample_t(timeStamp=at_us)
                setattr(sample.sampleValue, self.field, value)
                samples.append(sample)
        if not samples:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self.value_type, samples


@pytest.fixture
def card(nvml: FakeDriver) -> Iterator[Card]:
    """A GPU of a driver that was opened."""
    pynvml.nvmlInit()
    yield Card(nvml)
    pynvml.nvmlShutdown()


@pytest.fixture
def script() -> Scripted:
    """What the driver has sampled, to be written."""
    return Scripted()


@pytest.fixture
def scripted(nvml: FakeDriver, script: Scripted) -> Iterator[Card]:
    """A GPU whose samples are what the script says."""
    pynvml.nvmlInit()
    yield Card(nvml, script)
    pynvml.nvmlShutdown()


def busy(card: Card) -> float:
    """The busy seconds of one reading."""
    return card.read()[GPU_BUSY]


def every(period_s: float, since_s: float, until_s: float, value: float) -> list[tuple[int, float]]:
    """Samples at even distances, the first one period after the start."""
    count = round((until_s - since_s) / period_s)
    return [(round((since_s + period_s * number) * 1e6), value) for number in range(1, count + 1)]


# --- Busy seconds -----------------------------------------------------------------------------------------------


def test_the_first_reading_sets_the_start(card: Card):
    """The first reading gives both counters as 0, though the buffers are full, and no peak."""
    assert card.read() == {GPU_BUSY: 0, GPU_MEMORY_BUSY: 0}


def test_busy_seconds_are_the_utilization_times_its_time(card: Card):
    """At 60 % of the GPU and 35 % of its memory 10 seconds hold 6 busy seconds and 3.5."""
    card.read()
    card.advance(10)
    read = card.read()
    assert read[GPU_BUSY] == pytest.approx(6.0, abs=1e-9)
    assert read[GPU_MEMORY_BUSY] == pytest.approx(3.5, abs=1e-9)


def test_a_burst_between_two_readings_counts(card: Card):
    """What happened and was over before the reading counts in full."""
    card.set("utilization", 0)
    card.read()
    for percent in (100, 0):
        card.set("utilization", percent)
        card.advance(1.0)
    assert busy(card) == pytest.approx(1.0)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 100), st.integers(0, 68), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_the_sum_is_exact_whenever_it_is_read(card: Card, story: list[tuple[int, int, bool]]):
    """However the readings fall, at most a buffer apart, their sum is the integral of the utilization."""
    card.samples = Samples(card.gpu, clock=lambda: card.now)
    card.read()
    total, expected, unread = 0.0, 0.0, 0
    for percent, periods, is_read in story:
        if unread + periods > 70:
            total, unread = total + busy(card), 0
        card.set("utilization", percent)
        card.advance(periods * PERIOD_S)
        expected += percent / 100 * periods * PERIOD_S
        unread += periods
        if is_read:
            total, unread = total + busy(card), 0
    total += busy(card)
    assert total == pytest.approx(expected, abs=1e-6)


def test_nothing_counts_twice(card: Card):
    """Two readings between two samples give 0 the second time."""
    card.read()
    card.advance(2)
    assert busy(card) > 0
    assert busy(card) == 0
    card.advance(PERIOD_S / 2)
    assert busy(card) == 0


def test_what_a_late_reader_missed_is_not_invented(card: Card):
    """After a minute without a reading what the buffer holds counts, and the rest of the minute does not."""
    card.set("utilization", 50)
    card.read()
    card.advance(60)
    assert busy(card) == pytest.approx(DEPTH_S * 0.5)
    card.advance(2)
    assert busy(card) == pytest.approx(1.0)


def test_a_machine_that_slept_adds_nothing(scripted: Card, script: Scripted):
    """Where the driver's clock went on for a day without samples, the day counts as nothing."""
    script.written = every(0.2, 0, 4, 100)
    scripted.read()
    script.written += every(0.2, 86_400, 86_402, 100)
    assert busy(scripted) == pytest.approx(2.0)


def test_a_gpu_that_dozes_between_bursts_counts_the_bursts(scripted: Card, script: Scripted):
    """A driver that takes no samples of an idle GPU gives the busy seconds of its bursts, and 0 in between."""
    scripted.read()
    total = 0.0
    for burst in range(1, 6):
        script.written += every(0.2, burst * 10, burst * 10 + 1, 80)
        total += busy(scripted)
        assert busy(scripted) == 0
    assert total == pytest.approx(5 * 0.8)


def test_a_sample_alone_after_a_gap_says_nothing(scripted: Card, script: Scripted):
    """A single sample without a neighbour has no known period: it only sets the start of the next."""
    scripted.read()
    script.written = [(50_000_000, 100)]
    assert busy(scripted) == 0
    script.written.append((50_200_000, 100))
    assert busy(scripted) == pytest.approx(0.2)


def test_a_sample_that_was_left_out_is_covered_by_the_next(scripted: Card, script: Scripted):
    """Where the driver skips a sample, the next stands for both periods."""
    script.written = every(0.2, 0, 2, 0)
    scripted.read()
    script.written += [(2_200_000, 50), (2_600_000, 50)]
    assert busy(scripted) == pytest.approx(0.3)


@pytest.mark.parametrize("period_s", [1 / 6, 0.2, 1.0, 1.04])
def test_the_period_is_the_drivers(scripted: Card, script: Scripted, period_s: float):
    """GPUs that sample from six times a second to once, and a little late, are read alike."""
    script.written = every(period_s, 0, 12 * period_s, 0)
    scripted.read()
    script.written += every(period_s, 12 * period_s, 24 * period_s, 25)
    assert busy(scripted) == pytest.approx(12 * period_s * 0.25, abs=1e-5)


def test_duplicates_and_disorder_change_nothing(scripted: Card, script: Scripted):
    """Samples in any order, some of them twice and some empty, count as if they came one after the other."""
    script.written = every(0.2, 0, 2, 0)
    scripted.read()
    new = every(0.2, 2, 4, 100)
    script.written = [*new[5:], (0, 0), *new[:7], *script.written[::-1], *new[3:4]]
    assert busy(scripted) == pytest.approx(2.0)


def test_a_clock_that_was_set_back_starts_anew(scripted: Card, script: Scripted):
    """After the driver's clock jumped back nothing is counted once, and everything from then on."""
    script.written = every(0.2, 5000, 5010, 100)
    scripted.read()
    script.written = every(0.2, 100, 110, 100)
    assert busy(scripted) == 0
    script.written += every(0.2, 110, 112, 100)
    assert busy(scripted) == pytest.approx(2.0)


def test_a_time_stamp_gone_mad_is_got_over(scripted: Card, script: Scripted):
    """One sample of the far future costs no more than what is in the buffer with it."""
    script.written = every(0.2, 0, 2, 100)
    scripted.read()
    script.written.append((2**63, 100))
    assert busy(scripted) <= 0.2
    script.written = every(0.2, 0, 10, 100)
    assert busy(scripted) == 0
    script.written += every(0.2, 10, 12, 100)
    assert busy(scripted) == pytest.approx(2.0)


TYPES = [
    (pynvml.NVML_VALUE_TYPE_DOUBLE, "dVal"),
    (pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, "uiVal"),
    (pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG, "ulVal"),
    (pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, "ullVal"),
    (pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG, "sllVal"),
    (pynvml.NVML_VALUE_TYPE_SIGNED_INT, "siVal"),
    (pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT, "usVal"),
]


@pytest.mark.parametrize(("value_type", "field"), TYPES)
def test_a_value_is_read_as_the_type_that_it_has(scripted: Card, script: Scripted, value_type: int, field: str):
    """A sample's value is taken out of the member of the union that the driver names."""
    script.value_type, script.field = value_type, field
    script.written = every(0.2, 0, 2, 0)
    scripted.read()
    script.written += every(0.2, 2, 4, 40)
    assert busy(scripted) == pytest.approx(0.8)


def test_a_type_nobody_knows_is_a_failure(scripted: Card, script: Scripted):
    """Values of a type that NVML did not have give no sample, and count as failures."""
    script.written = every(0.2, 0, 2, 0)
    script.value_type = 77
    assert scripted.read() == {}
    assert scripted.gpu.faults == {"failed": 3}


@pytest.mark.parametrize("value", [101, 9.2e18, -1, math.nan, math.inf])
def test_a_utilization_that_cannot_be_is_left_out(scripted: Card, script: Scripted, value: float):
    """A utilization out of 0 to 100 counts as nothing, and the time after it as always."""
    script.value_type, script.field = TYPES[0]
    script.written = every(0.2, 0, 2, 0)
    scripted.read()
    script.written += [*every(0.2, 2, 3, value), *every(0.2, 3, 4, 100)]
    assert busy(scripted) == pytest.approx(1.0)


# --- The peak of the power ----------------------------------------------------------------------------------------


def test_the_peak_sees_what_lasted_one_sample(card: Card):
    """20 ms at 620 W between two readings are the peak, in watts, for the minute that follows."""
    card.read()
    for milliwatts, seconds in ((300_000, 1.0), (620_500, 0.02), (300_000, 0.98)):
        card.set("power_mw", milliwatts)
        card.advance(seconds)
    assert card.read()[GPU_POWER_PEAK] == 620.5
    for _ in range(29):
        card.advance(2)
        assert card.read()[GPU_POWER_PEAK] == 620.5
    card.advance(2)
    assert card.read()[GPU_POWER_PEAK] == 300.0


def test_the_peak_is_of_the_last_minute(card: Card):
    """At each reading the peak is the highest sample of the 60 seconds before it, and what is kept stays small."""
    card.read()
    drawn: list[tuple[float, float]] = []
    for second in range(240):
        watts = 100 + (second * 37 % 101) + (240 - second)
        card.set("power_mw", watts * 1000)
        card.advance(1)
        drawn += [(card.now - age / 50, watts) for age in range(50)]
        if second % 2:
            peak = max(watts for at, watts in drawn if at >= card.now - 60)
            assert card.read()[GPU_POWER_PEAK] == peak
    assert len(card.samples._peaks) <= 60 * 50 + 1


def test_power_that_only_falls_is_kept_for_a_minute_only(card: Card):
    """The worst case, power that falls with each sample, keeps the samples of one minute."""
    card.read()
    for step in range(400):
        card.set("power_mw", 500_000 - step)
        card.advance(0.2)
        card.read()
    assert 300 <= len(card.samples._peaks) <= 301


def test_there_is_no_peak_without_samples(scripted: Card, script: Scripted):
    """When the driver has sampled no power for a minute the peak is absent, and comes back with the samples."""
    script.written = every(0.02, 0, 2, 90_000)
    scripted.read()
    script.written += every(0.02, 2, 4, 90_000)
    assert scripted.read()[GPU_POWER_PEAK] == 90.0
    scripted.now += 59
    assert scripted.read()[GPU_POWER_PEAK] == 90.0
    scripted.now += 2
    assert GPU_POWER_PEAK not in scripted.read()
    script.written += every(0.02, 90, 91, 80_000)
    assert scripted.read()[GPU_POWER_PEAK] == 80.0


def test_a_power_that_nothing_draws_is_no_peak(scripted: Card, script: Scripted):
    """The number that NVML writes for a value it does not have is not the peak."""
    script.written = every(0.02, 0, 2, 90_000)
    scripted.read()
    script.written += [*every(0.02, 2, 4, 90_000), (4_020_000, 0xFFFFFFFF)]
    assert scripted.read()[GPU_POWER_PEAK] == 90.0


# --- What is missing, and what fails ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "row"),
    [("utilization_samples", GPU_BUSY), ("memory_samples", GPU_MEMORY_BUSY), ("power_samples", GPU_POWER_PEAK)],
)
def test_each_kind_can_be_missing_by_itself(card: Card, key: str, row: Metric):
    """A kind of samples that the driver does not take is absent, the others are there, and it is not asked again."""
    card.set(key, None)
    card.read()
    card.advance(1)
    asked = card.fake.calls("nvmlDeviceGetSamples")
    assert card.read().keys() == {GPU_BUSY, GPU_MEMORY_BUSY, GPU_POWER_PEAK} - {row}
    assert card.fake.calls("nvmlDeviceGetSamples") - asked == 2 * 2  # for the size, and for the samples
    assert card.gpu.unsupported == [row.name]
    assert not card.gpu.faults
    assert pynvml.nvmlDeviceGetUtilizationRates(card.gpu.handle).gpu == 60


def test_a_kind_that_comes_is_found(card: Card):
    """What was not supported is tried again after some minutes."""
    card.set("utilization_samples", None)
    assert GPU_BUSY not in card.read()
    card.set("utilization_samples", 71)
    card.advance(301)
    assert busy(card) == 0
    card.advance(2)
    assert busy(card) == pytest.approx(1.2)


def test_with_mig_only_the_power_is_sampled(card: Card):
    """A GPU in MIG mode has a peak of its power and no busy seconds."""
    card.set("mig_mode", 1)
    card.read()
    card.advance(1)
    assert card.read().keys() == {GPU_POWER_PEAK}


def test_nothing_new_is_no_failure(card: Card):
    """NOT_FOUND says that there are no samples: the counters gain 0, and no failure is counted."""
    card.read()
    card.fake.fail("nvmlDeviceGetSamples", pynvml.NVML_ERROR_NOT_FOUND)
    assert card.read() == {GPU_BUSY: 0, GPU_MEMORY_BUSY: 0}
    assert not card.gpu.faults


def test_a_failed_reading_loses_nothing(card: Card):
    """A reading that fails is counted as a failure, and the next one gives what it would have given."""
    card.read()
    card.advance(2)
    card.fake.fail("nvmlDeviceGetSamples", pynvml.NVML_ERROR_UNKNOWN)
    assert card.read() == {}
    assert card.gpu.faults == {"unknown": 3}
    card.fake.recover("nvmlDeviceGetSamples")
    card.advance(2)
    assert busy(card) == pytest.approx(2.4)


@pytest.mark.parametrize(
    ("code", "error"), [(pynvml.NVML_ERROR_GPU_IS_LOST, Lost), (pynvml.NVML_ERROR_UNINITIALIZED, Gone)]
)
def test_a_lost_gpu_or_driver_is_said(card: Card, code: int, error: type[Exception]):
    """That the GPU or the driver is gone is told to who reads."""
    card.read()
    card.fake.fail("nvmlDeviceGetSamples", code)
    with pytest.raises(error):
        card.read()


@pytest.mark.stress
def test_closed_samples_are_forgotten(card: Card):
    """After `close()` there is no peak of what was."""
    card.read()
    card.advance(1)
    assert GPU_POWER_PEAK in card.read()
    card.samples.close()
    assert GPU_POWER_PEAK not in card.read()
