"""FastAPI and Starlette applications: request metrics, auto-instrumentation, the page and the health."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from otel_mlops.web import conventions
from otel_mlops.web.exchange import ASGIApp, Witness
from otel_mlops.web.pages import HealthWhereNothingMatched, MetricsPage
from otel_mlops.web.requests import RequestMetrics, Telemetry
from otel_mlops.web.routes import flattened, match

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["instrument_app"]

_logger = logging.getLogger(__name__)

_MARK = "_otel_mlops"
"""The attribute of an application that holds what was done to it."""


def instrument_app(app: Starlette, telemetry: Telemetry) -> None:
    """Count an application's requests, and give it what the settings say: conventions, page, health.

    Nothing runs before the application's lifespan begins or its first request comes. Instrumenting the same
    application again changes nothing. Where telemetry is disabled the pages are all that is added.

    Errors:  TypeError if `app` is no FastAPI or Starlette application.
             RuntimeError if it has begun to serve, belongs to another telemetry, or a package is missing.
             ValueError if it cannot have what the setting `instrumentation` asks for.
    """
    from starlette.applications import Starlette

    if not isinstance(app, Starlette):
        raise TypeError(f"app is {app!r}, expected a FastAPI or Starlette application")
    before = getattr(app, _MARK, None)
    if isinstance(before, _Stack):
        if before.telemetry is not telemetry:
            raise RuntimeError(
                "This application reports to another telemetry already. "
                "Make a new application for the new one, or keep to the first."
            )
        return
    if app.middleware_stack is not None:
        raise RuntimeError(
            "This application has begun to serve: its middleware is built, and nothing can be put around it. "
            "Call configure_telemetry(app) or instrument_app(app) right after FastAPI(), "
            "at the top of the module: not in the lifespan, a start-up handler or a request."
        )
    settings = telemetry.settings
    choice: conventions.Choice = "as it is"
    if not settings.disabled:
        choice = conventions.choose(app, settings.instrumentation)
    stack = _Stack(app, telemetry, hides_from_fastapi=choice in ("none", "opentelemetry"))
    setattr(app, _MARK, stack)
    app.build_middleware_stack = stack  # type: ignore[method-assign]
    # Last, since OpenTelemetry's package puts itself around what is there.
    conventions.apply(choice, app, telemetry, stack.own_pages)


class _Stack:
    """Builds an application's middleware with ours around it, so that none of its answers is missed.

    Around even the middleware that answers unhandled exceptions and refuses large bodies. An object instead
    of a function, since an application is pickled by those who send it to other processes.
    """

    def __init__(self, app: Any, telemetry: Telemetry, *, hides_from_fastapi: bool) -> None:
        self._app = app
        self.telemetry = telemetry
        self.own_pages = conventions.OwnPages()
        self._hides_from_fastapi = hides_from_fastapi
        # Another instrumentation may have been here before.
        self._before: Callable[[], Any] | None = vars(app).get("build_middleware_stack")

    def __call__(self) -> Any:
        app = self._app
        self._add_pages()
        if self.telemetry.settings.disabled:
            # Only the pages: what probes the health finds it all the same.
            return self._build()
        with _witness(app):
            stack = self._build()
        hides = self._hides_from_fastapi or getattr(app, "_is_instrumented_by_opentelemetry", False)
        if app.build_middleware_stack is self or not hasattr(stack, "app"):
            return RequestMetrics(stack, self.telemetry, hides)
        # Whoever came after us (OpenTelemetry's package) takes the outermost middleware off again, and
        # keeps what is below it.
        stack.app = RequestMetrics(stack.app, self.telemetry, hides)
        return stack

    def _build(self) -> Any:
        """Build the middleware as it would be without us."""
        return type(self._app).build_middleware_stack(self._app) if self._before is None else self._before()

    def _add_pages(self) -> None:
        """Add our pages now that the application's routes are there, without shadowing one of them."""
        own = set()
        path = self.telemetry.settings.metrics_path
        if path is not None and self._add_metrics_page(path):
            own.add(path)
        path = self.telemetry.settings.health_path
        if path is not None and self._add_health(path):
            own.add(path)
        self.own_pages.paths = frozenset(own)

    def _add_metrics_page(self, path: str) -> bool:
        """Serve the page at a path, and return whether it is ours."""
        from starlette.routing import Route

        routes = self._app.router.routes
        for route in flattened(routes):
            if getattr(route, "path", None) == path:
                is_ours = isinstance(getattr(route, "endpoint", None), MetricsPage)
                if not is_ours:
                    _logger.warning("metrics_path is %r, where the application has a route of its own", path)
                return is_ours
        # First, for it was asked for: a route that takes every path would hide it.
        page = Route(path, MetricsPage(self.telemetry), methods=["GET"], include_in_schema=False)
        routes.insert(0, page)
        return True

    def _add_health(self, path: str) -> bool:
        """Tell the health at a path where nothing else does, and return whether it is ours."""
        router = self._app.router
        if not isinstance(router.default, HealthWhereNothingMatched):
            otherwise: ASGIApp = router.default
            router.default = HealthWhereNothingMatched(self.telemetry, path, otherwise)
        probe = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
        return match(router.routes, probe) is None


@contextmanager
def _witness(app: Any) -> Iterator[None]:
    """Have a witness built into the middleware where one of the user's, `@app.middleware("http")`, needs it."""
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware

    users, witness = app.user_middleware, Middleware(Witness)
    if not any(isinstance(each.cls, type) and issubclass(each.cls, BaseHTTPMiddleware) for each in users):
        yield
        return
    users.append(witness)
    try:
        yield
    finally:
        users.remove(witness)
