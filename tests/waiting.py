"""Waiting for what must come, with a bound: no test sleeps for a time that it hopes is enough."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(holds: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait until a condition holds, or fail."""
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "the condition did not come to hold in time"
        time.sleep(0.005)
