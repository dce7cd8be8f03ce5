"""The real GPU of this machine; without one these tests skip."""

from __future__ import annotations

from collections.abc import Iterator

import pynvml
import pytest

from tests.gpu.hand import HOW_TO_GET_LOADS, HOW_TO_GET_SMI, Hand, NoGpu, real_hand


@pytest.fixture(scope="module")
def hand() -> Iterator[Hand]:
    """The GPU, and what there is to load and to compare it with."""
    try:
        with real_hand() as found:
            if hasattr(pynvml.nvmlLib, "fake_reset"):
                # By its name the linker gives a library that the process has already, whoever it was loaded for.
                pytest.skip("the pretended driver is in this process: run these tests by themselves, make test-gpu")
            yield found
    except NoGpu as absence:
        pytest.skip(f"no GPU to run these tests on: {absence}")


@pytest.fixture
def loaded(hand: Hand) -> Hand:
    """The GPU, with loads."""
    if hand.loads is None:
        pytest.skip(f"nothing to run on the GPU: {HOW_TO_GET_LOADS}")
    return hand


@pytest.fixture
def with_smi(hand: Hand) -> Hand:
    """The GPU, with nvidia-smi."""
    if hand.smi is None:
        pytest.skip(f"no nvidia-smi to run: {HOW_TO_GET_SMI}")
    return hand
