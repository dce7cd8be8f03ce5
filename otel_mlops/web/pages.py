"""The page and the health inside an application: made beside the event loop, not counted as requests."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from otel_mlops.web.exchange import EXCHANGE, ASGIApp, Exchange, Receive, Send
from otel_mlops.web.requests import Telemetry
from otel_mlops.web.routes import Scope, route_path
from otel_mlops.web.threads import call_beside_the_loop

_logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0
"""How long a client waits for a page or a health: as long as Prometheus does, if it is not told otherwise."""

_AT_A_TIME = 4
"""How many pages, and how many healths, are made at a time; more wait, however many clients ask."""

_METHODS = ("GET", "HEAD")

T = TypeVar("T")


class MetricsPage:
    """The endpoint of `metrics_path`: the page, in the format that the scraper asks for."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the page."""
        del receive  # a scrape has no body
        _withdraw(scope)
        accept = b", ".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
        try:
            page = await _make("page", functools.partial(self._telemetry.page, accept=accept or None))
        except Exception:
            _logger.exception("The page could not be made")
            await _answer(scope, send, 503, "text/plain; charset=utf-8", b"The page could not be made.\n")
        else:
            await _answer(scope, send, 200, page.content_type, page.body)


class HealthWhereNothingMatched:
    """The end of an application's routing: answers at `health_path`, and leaves the rest to what was there.

    It is asked when no route, mount or redirect of the application's has matched, so it never shadows one.
    """

    def __init__(self, telemetry: Telemetry, path: str, otherwise: ASGIApp) -> None:
        self._telemetry = telemetry
        self._path = path
        self._otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the health where it is asked for."""
        asked = scope["type"] == "http" and scope["method"] in _METHODS and route_path(scope) == self._path
        if not asked:
            await self._otherwise(scope, receive, send)
            return
        _withdraw(scope)
        try:
            health = await _make("health", self._telemetry.health)
            is_healthy = all(health["components"].values())
            body = json.dumps(dict(health)).encode()
        except Exception:
            _logger.exception("The health could not be told")
            is_healthy, body = False, b'{"status": "unhealthy", "components": {}}'
        await _answer(scope, send, 200 if is_healthy else 503, "application/json", body)


def _withdraw(scope: Scope) -> None:
    """Take the request off the books before the page is made, so that a scrape does not see itself."""
    exchange = scope.get(EXCHANGE)
    if isinstance(exchange, Exchange):
        exchange.withdraw()


async def _answer(scope: Scope, send: Send, status: int, content_type: str, body: bytes) -> None:
    headers = [
        (b"content-type", content_type.encode("latin-1")),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def _make(kind: str, function: Callable[[], T]) -> T:
    import anyio

    places = _places(kind)
    try:
        limiter = places.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_AT_A_TIME)
        places.set(limiter)
    return await call_beside_the_loop(function, TIMEOUT_S, limiter)


@functools.cache
def _places(kind: str) -> Any:
    """The limiter of each event loop for one kind of page, so that pages that hang hold up no health."""
    from anyio.lowlevel import RunVar

    return RunVar(f"otel_mlops_{kind}")
