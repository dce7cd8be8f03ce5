"""What must hold of a GPU and of what the source says of it, on the real driver and on the pretended one."""

from __future__ import annotations

from typing import Any

import pytest

from otel_mlops import metrics as rows
from otel_mlops.sources.nvidia import quantities
from otel_mlops.sources.nvidia.driver import Unsupported
from tests.gpu import measure
from tests.gpu.hand import Hand
from tests.gpu.loads import GIB


def answers_look_alike(hand: Hand, pretended: dict[str, Any]) -> None:
    """What both drivers answer is made of the same types, so that a test with the pretended one means something."""
    real = measure.shapes(hand)
    both = {
        title for title in real.keys() & pretended.keys() if not _failed(real[title]) and not _failed(pretended[title])
    }
    assert len(both) > 10, real
    different = {title: (real[title], pretended[title]) for title in both if not _agree(real[title], pretended[title])}
    assert not different, different


def _failed(shape: Any) -> bool:
    return isinstance(shape, str) and shape.startswith("?")


def _agree(one: Any, other: Any) -> bool:
    """Whether two shapes are the same; an empty list is like any other list."""
    if isinstance(one, tuple) and isinstance(other, tuple) and one[0] == other[0] == "list":
        return len(one) == 1 or len(other) == 1 or _agree(one[1], other[1])
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_agree, one, other))
    return bool(one == other)


def nothing_is_out_of_range(hand: Hand) -> None:
    """The source drops none of the driver's values as nonsense."""
    found = measure.nonsense(hand)
    assert found == [], found


def smi_agrees(hand: Hand) -> None:
    """The values of the source are those of nvidia-smi, and what nvidia-smi does not have the source has not either."""
    compared = measure.against_smi(hand)
    assert sum(one.smi is not None for one in compared) >= 5, compared
    different = [one for one in compared if not one.agrees]
    assert different == [], different


def an_idle_gpu_is_idle(hand: Hand, seconds: float = 5.0) -> None:
    """A GPU on which nothing runs has next to no busy seconds and no activity."""
    seen = measure.under_load(hand, "idle", seconds)
    assert seen.busy_ratio is None or seen.busy_ratio < 0.05, seen
    assert seen.activity.get(rows.GPU_SM_ACTIVITY, 0.0) < 0.05, seen
    assert seen.activity.get(rows.GPU_TENSOR_ACTIVITY, 0.0) < 0.01, seen


def a_product_is_for_the_tensor_cores(hand: Hand, seconds: float = 5.0) -> None:
    """While big half-precision matrices are multiplied the GPU, its multiprocessors and tensor cores are busy."""
    seen = measure.under_load(hand, "matmul", seconds)
    assert max(seen.utilization_percent, default=100) > 90, seen
    assert seen.busy_ratio is None or seen.busy_ratio > 0.9, seen
    assert seen.activity.get(rows.GPU_SM_ACTIVITY, 1.0) > 0.8, seen
    assert seen.activity.get(rows.GPU_TENSOR_ACTIVITY, 1.0) > 0.5, seen


def an_addition_is_for_the_memory(hand: Hand, seconds: float = 5.0) -> None:
    """While numbers are only moved and added the memory is busy, and the tensor cores are not."""
    seen = measure.under_load(hand, "copy", seconds)
    assert seen.busy_ratio is None or seen.busy_ratio > 0.9, seen
    assert seen.activity.get(rows.GPU_DRAM_ACTIVITY, 1.0) > 0.5, seen
    assert seen.activity.get(rows.GPU_TENSOR_ACTIVITY, 0.0) < 0.02, seen


def busy_seconds_are_the_loads(hand: Hand, seconds: float = 10.0) -> None:
    """The busy seconds of a load that keeps the GPU busy are the time for which it ran, within 5 %."""
    seen = measure.under_load(hand, "matmul", seconds)
    if seen.busy_s is None:
        pytest.skip("the driver takes no samples of the utilization: run it on a GPU that is not divided (MIG)")
    assert seen.busy_s == pytest.approx(seen.seconds, rel=0.05, abs=0.2), seen


def active_time_is_the_ratio_times_the_time(hand: Hand, seconds: float = 5.0) -> None:
    """The multiprocessors' active time of a load is their activity times its time."""
    seen = measure.under_load(hand, "matmul", seconds)
    if rows.GPU_SM_ACTIVE not in seen.activity:
        pytest.skip("there is no GPM: run it on a Hopper or newer, as a user who may read it")
    expected = seen.activity[rows.GPU_SM_ACTIVITY] * seen.seconds
    assert seen.activity[rows.GPU_SM_ACTIVE] == pytest.approx(expected, rel=0.05), seen


def memory_used_rises_by_what_is_taken(hand: Hand, size: int = 4 * GIB) -> None:
    """The memory used rises by the bytes that are taken, within 2 %."""
    risen = measure.memory_rise(hand, size)
    assert risen == pytest.approx(size, rel=0.02), risen


def the_peak_is_above_the_mean(hand: Hand, seconds: float = 5.0) -> None:
    """The highest sample of the power is at least the mean of the readings, and not many times as high."""
    seen = measure.under_load(hand, "matmul", seconds)
    if seen.peak_watts is None:
        pytest.skip("the driver takes no samples of the power: run it on a GPU of a server")
    mean = sum(seen.power_watts) / len(seen.power_watts)
    assert 0.9 * mean <= seen.peak_watts <= 3 * mean, seen


def energy_is_the_integral_of_the_power(hand: Hand, seconds: float = 10.0) -> None:
    """The energy counter rises by the integral of the power over the time, within 10 %."""
    try:
        with hand.running("matmul" if hand.loads else "idle"):
            hand.wait(min(2.0, seconds))  # the power is a mean of the last second
            seen = measure.energy(hand, seconds)
    except Unsupported as absence:
        pytest.skip(f"{absence}: run it on a Volta or newer")
    assert seen.counter_joules == pytest.approx(seen.integral_joules, rel=0.1), seen


def samples_are_dense_enough(hand: Hand) -> None:
    """The driver's samples come at least once a second, as the source takes for granted, and go back far enough."""
    for buffer in measure.buffers(hand):
        assert 0 < buffer.period_ms <= 1500, buffer
        assert buffer.span_s >= quantities.BUFFERED_S, buffer


def cheap_calls_are_cheap(hand: Hand, repeats: int = 200) -> None:
    """What is asked every second takes less than a millisecond in all, at the median."""
    seen = measure.latencies(hand, repeats)
    assert sum(one.p50_us for one in seen if one.call.every_s == quantities.EVERY_S) < 1000, seen


def inference_does_not_notice(hand: Hand, seconds: float = 10.0) -> None:
    """Reading the source once a second does not make the slowest hundredth of the predictions half as slow again."""
    seen = measure.effect_on_inference(hand, seconds)
    assert seen.readings >= 2, seen
    assert seen.with_p99_ms <= 1.5 * seen.without_p99_ms + 0.1, seen


WITHOUT_LOADS = (
    nothing_is_out_of_range,
    an_idle_gpu_is_idle,
    energy_is_the_integral_of_the_power,
    samples_are_dense_enough,
    cheap_calls_are_cheap,
)
WITH_LOADS = (
    a_product_is_for_the_tensor_cores,
    an_addition_is_for_the_memory,
    busy_seconds_are_the_loads,
    active_time_is_the_ratio_times_the_time,
    the_peak_is_above_the_mean,
    memory_used_rises_by_what_is_taken,
    inference_does_not_notice,
)
