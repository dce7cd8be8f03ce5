"""The contract of a source finds what breaks it."""

from __future__ import annotations

import math

import pytest

from otel_mlops import metrics as rows
from otel_mlops.sources.watched import Sample
from tests.sources.contract import series_of

GPU = {"gpu_id": "0", "gpu_name": "H100"}


def test_what_keeps_the_contract_passes():
    """Samples of declared rows come back by series."""
    samples = [
        Sample(rows.GPU_UTILIZATION, 100, GPU),
        Sample(rows.GPU_UTILIZATION, 0.0, {**GPU, "gpu_id": "1"}),
        Sample(rows.GPU_TEMPERATURE, -3.5, GPU),
        Sample(rows.GPU_INFO, 1.0, {**GPU, "gpu_uuid": "GPU-1", "serial": "7"}),
        Sample(rows.GPU_FAN_SPEED, 1.1, {**GPU, "fan": "0"}),
    ]
    assert list(series_of(samples).values()) == [100, 0.0, -3.5, 1.0, 1.1]


@pytest.mark.parametrize(
    "samples",
    [
        [Sample(rows.Metric("gpu.unheard.of", "gauge", "", "Nothing.", (), "once"), 1)],
        [Sample(rows.GPU_UTILIZATION, 100.5, GPU)],
        [Sample(rows.GPU_UTILIZATION, -1, GPU)],
        [Sample(rows.GPU_FAN_SPEED, -0.1, {**GPU, "fan": "0"})],
        [Sample(rows.GPU_TEMPERATURE, math.nan, GPU)],
        [Sample(rows.GPU_POWER_USAGE, math.inf, GPU)],
        [Sample(rows.GPU_UP, True, GPU)],
        [Sample(rows.GPU_UP, None, GPU)],
        [Sample(rows.GPU_INFO, 0.0, {**GPU, "gpu_uuid": "GPU-1"})],
        [Sample(rows.GPU_ENERGY, -1, GPU)],
        [Sample(rows.GPU_UP, 1.0, {"gpu_id": "0"})],
        [Sample(rows.GPU_UP, 1.0, {**GPU, "serial": "7"})],
        [Sample(rows.GPU_UP, 1.0, {"gpu_id": 0, "gpu_name": "H100"})],
        [Sample(rows.GPU_UP, 1.0, {"gpu_id": "0", "gpu_name": ""})],
        [Sample(rows.GPU_THROTTLE, 1.0, {**GPU, "reason": "boredom"})],
        [Sample(rows.GPU_UP, 1.0, GPU), Sample(rows.GPU_UP, 0.0, dict(GPU))],
    ],
)
def test_a_breach_of_the_contract_is_found(samples):
    """Each sample that a source may not give is refused."""
    with pytest.raises(AssertionError):
        series_of(samples)
