"""Starts a telemetry with an application's lifespan and ends it after: beside the loop, in bounded time."""

from __future__ import annotations

import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from otel_mlops.web.exchange import ASGIApp, Message, Receive, Send
from otel_mlops.web.routes import Scope
from otel_mlops.web.threads import call_beside_the_loop

if TYPE_CHECKING:
    from otel_mlops.web.requests import Telemetry

_logger = logging.getLogger(__name__)

START_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 2.0

_ENDS = ("lifespan.shutdown.complete", "lifespan.shutdown.failed", "lifespan.startup.failed")

# Applications that share a telemetry must not end it for one another.
_lock = threading.Lock()
_open: Counter[int] = Counter()


async def start(telemetry: Telemetry) -> None:
    """Start a telemetry, unless it has started already, and have it time the loop that runs here."""
    await _call(START_TIMEOUT_S, telemetry.start)
    telemetry.watch_loop()


async def live(telemetry: Telemetry, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run an application's lifespan: start the telemetry before it begins, stop it after it has ended.

    The messages are passed on as they come, so what the application does in its lifespan stays its own.
    """
    is_open = False

    def leave() -> bool:
        nonlocal is_open
        was_open, is_open = is_open, False
        return was_open and _leave(telemetry)

    async def receive_and_start() -> Message:
        nonlocal is_open
        message = await receive()
        if message["type"] == "lifespan.startup":
            is_open = True
            _enter(telemetry)
            await start(telemetry)
        return message

    async def end_and_send(message: Message) -> None:
        if message["type"] in _ENDS and leave():
            await _call(STOP_TIMEOUT_S + 1.0, telemetry.stop, STOP_TIMEOUT_S)
        await send(message)

    try:
        await app(scope, receive_and_start, end_and_send)
    finally:
        # An application that ends without a word has no lifespan; it serves all the same.
        leave()


def _enter(telemetry: Telemetry) -> None:
    with _lock:
        _open[id(telemetry)] += 1


def _leave(telemetry: Telemetry) -> bool:
    """Note the end of a lifespan, and return whether it was the last."""
    with _lock:
        _open[id(telemetry)] -= 1
        if _open[id(telemetry)] > 0:
            return False
        del _open[id(telemetry)]
        return True


async def _call(timeout_s: float, function: Callable[..., object], *arguments: object) -> None:
    """Call a function beside the loop; the application goes on without it if it fails or takes too long."""
    try:
        await call_beside_the_loop(functools.partial(function, *arguments), timeout_s)
    except Exception:
        _logger.exception("The telemetry's %s failed; the application goes on", getattr(function, "__name__", ""))
