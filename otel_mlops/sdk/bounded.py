"""Calls that may hang, waited for no longer than a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_logger = logging.getLogger(__name__)


def call_within(timeout_s: float, *calls: Callable[[], object]) -> bool:
    """Make all calls at once, and wait for them no longer than this.

    Returns whether each ended in time, raised nothing and did not return False. One that has not ended goes
    on in a daemon thread, which keeps no process from exiting.
    """
    deadline = time.monotonic() + timeout_s
    went_well: list[bool] = []

    def make(call: Callable[[], object]) -> None:
        try:
            went_well.append(call() is not False)
        except Exception:
            _logger.exception("%r failed", call)

    threads = []
    for call in calls:
        thread = threading.Thread(target=make, args=(call,), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # from Python 3.12 on, none starts in an atexit callback
            make(call)
        else:
            threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return len(went_well) == len(calls) and all(went_well)
