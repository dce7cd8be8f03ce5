"""Waits for what may hang, but not for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 5.0


def within(timeout_s: float, call: Callable[[], T]) -> T:
    """Return what a call returns that may hang: a driver, or the look-up of a host's name.

    Errors:  what the call raises; TimeoutError if it has not come back, in which case its thread is left
             behind.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(timeout_s)
    except TimeoutError:
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None
