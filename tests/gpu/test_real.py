"""The source and the pretended driver, held against a real NVIDIA GPU."""

from __future__ import annotations

import pytest

from otel_mlops.sources.nvidia.driver import Driver
from tests.gpu import checks, measure
from tests.gpu.hand import Hand, hand_of
from tests.nvml.driver import build, load


def test_the_pretended_driver_looks_like_the_real_one(hand: Hand, request: pytest.FixtureRequest):
    """For each call that the source makes, both drivers answer with the same types."""
    with load(build(request.config.cache.mkdir("nvml"))):
        driver = Driver(hand.driver.nvml)
        driver.open()
        pretended = measure.shapes(hand_of(driver, 0))
        driver.close()
    checks.answers_look_alike(hand, pretended)


@pytest.mark.parametrize("check", checks.WITHOUT_LOADS, ids=lambda check: check.__name__)
def test_it_holds_of_the_gpu(hand: Hand, check):
    """What can be checked without a load holds of the real GPU."""
    check(hand)


def test_nvidia_smi_says_the_same(with_smi: Hand):
    """Each value of the source is that of nvidia-smi, and absent where nvidia-smi has none."""
    checks.smi_agrees(with_smi)


@pytest.mark.parametrize("check", checks.WITH_LOADS, ids=lambda check: check.__name__)
def test_it_holds_under_a_load(loaded: Hand, check):
    """What is known of a load is what the source says of the GPU."""
    check(loaded)
