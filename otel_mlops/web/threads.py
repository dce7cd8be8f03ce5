"""Calls a function beside the event loop, in a thread that nothing waits for longer than it wants."""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from anyio import CapacityLimiter

_logger = logging.getLogger(__name__)

T = TypeVar("T")


async def call_beside_the_loop(
    function: Callable[[], T], timeout_s: float, limiter: CapacityLimiter | None = None
) -> T:
    """Call a function in a thread of its own and return what it returns.

    The thread is a daemon, which those of anyio's pool are not: what hangs must not keep the process from
    exiting. What hangs keeps its place in the limiter, so that no more than its places can hang.

    Errors:  TimeoutError if the function, or the wait for a place, takes longer; it may go on by itself.
             RuntimeError if no thread can be started, and whatever the function raises.
    """
    import anyio

    outcome: Future[T] = Future()
    ended = anyio.Event()
    call_in_loop = _caller_in_loop()

    def end() -> None:
        ended.set()
        if limiter is not None:
            limiter.release_on_behalf_of(outcome)

    def run() -> None:
        try:
            outcome.set_result(function())
        except Exception as error:
            outcome.set_exception(error)
        except BaseException as error:
            # An exit here would be one of the event loop's there.
            outcome.set_exception(RuntimeError(f"ended by {error!r}"))
        try:
            call_in_loop(end)
        except RuntimeError as error:
            # The loop has ended before the function, so there is nobody to tell.
            _logger.debug("%s ended after its event loop: %s", _name_of(function), error)

    with anyio.move_on_after(timeout_s):
        if limiter is not None:
            await limiter.acquire_on_behalf_of(outcome)
        try:
            threading.Thread(target=run, name="otel-mlops-web", daemon=True).start()
        except RuntimeError:
            end()
            raise
        await ended.wait()
    if not outcome.done():
        raise TimeoutError(f"{_name_of(function)} takes longer than {timeout_s:g} s")
    return outcome.result()


def _caller_in_loop() -> Callable[[Callable[[], None]], object]:
    """What has a function called in the event loop that runs here, from any thread."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        # Starlette runs on trio as well, which is installed then.
        trio = importlib.import_module("trio")
        call: Callable[[Callable[[], None]], object] = trio.lowlevel.current_trio_token().run_sync_soon
        return call


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", repr(function))
