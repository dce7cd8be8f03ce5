"""What the tests of the scores share."""

import pytest

from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    """The clock of the telemetry."""
    return Clock()
