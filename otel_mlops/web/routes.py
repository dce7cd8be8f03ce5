"""The template of the route that answered a request, read from its ASGI scope; never a raw path."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any

_logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]

UNMATCHED = "unmatched"
"""The endpoint of a request that no route matched."""

_MOST_NESTED = 20
"""How many applications wrapped in one another are looked into for their routes."""

_SLASH_REDIRECTS = (307, 308)

_LEFT_BY_ROUTING = ("app_root_path", "endpoint", "fastapi", "path_params", "route")
"""What routing writes into a scope; a scope that is routed again must be without it."""


class Templates:
    """Finds the template of a routed scope: the prefixes of routers and mounts, and the route's own path.

    `root_path` is no part of it: it belongs to the deployment, and a proxy's header may hold anything.
    Where the routing left the route itself in the scope, that is all that is read. Elsewhere (a mount with
    parameters, a route that FastAPI does not name, an answer given before the routing) the routes are asked
    again, so that no text of a request ever is a template.
    """

    def __init__(self) -> None:
        # Mounts without parameters, learned: bounded, for each is the text of a mount in the application.
        self._prefixes: dict[str, str] = {}
        self._failed = False

    def of(self, scope: Scope, status: int | None) -> str:
        """The template of the route that answered with this status, or `unmatched`."""
        try:
            path = _selected(scope)
            if path is None:
                return self._asked_again(scope, status) or UNMATCHED
            return path if "app_root_path" not in scope else self._mounted(scope, path)
        except Exception:
            # A route class of somebody else's may raise; its requests are counted all the same.
            if not self._failed:
                self._failed = True
                _logger.exception("A route's template could not be read; it counts as %s", UNMATCHED)
            return UNMATCHED

    def _mounted(self, scope: Scope, path: str) -> str:
        """Put the prefixes of the mounts before a path that is known within the last of them."""
        first, last = scope["app_root_path"], scope.get("root_path", "")
        text = last.removeprefix(first)
        prefix = self._prefixes.get(text)
        if prefix is None:
            prefix, whole = _mounts_until(last, _routes_of(scope), _fresh(scope))
            if not whole:
                return prefix + "/{path}"
            if prefix == text:
                self._prefixes[text] = prefix
        return prefix + path

    def _asked_again(self, scope: Scope, status: int | None) -> str | None:
        found = None
        if "router" not in scope or "endpoint" in scope:
            # A middleware answered before the routing, or the routing left no route behind.
            found = match(_routes_of(scope), _fresh(scope))
        if found is None and "frontend_path" in scope.get("fastapi", ()):
            found = self._frontend(scope)
        if found is None and status in _SLASH_REDIRECTS:
            path = scope["path"]
            toggled = path.rstrip("/") if path.endswith("/") else path + "/"
            found = match(_routes_of(scope), {**_fresh(scope), "path": toggled})
        return found

    def _frontend(self, scope: Scope) -> str:
        """The template of `FastAPI.frontend()`, whose routes are in no list: the path without the file's."""
        path = route_path(scope).removesuffix(scope["fastapi"]["frontend_path"]).rstrip("/") + "/{path}"
        return path if "app_root_path" not in scope else self._mounted(scope, path)


def route_path(scope: Scope) -> str:
    """The path of a request below `root_path`: what the routes of an application are matched with."""
    path: str = scope["path"]
    below = path.removeprefix(scope.get("root_path", ""))
    return below if below[:1] in ("", "/") else path


def match(routes: Iterable[Any], scope: Scope) -> str | None:
    """The template of the first route that matches a scope as it came, mounted routes included.

    A route that knows the path but not the method stands in where none matches fully, as in the routing.
    """
    from starlette.routing import Host, Match, Mount

    partial = None
    for route in flattened(routes):
        found, child = route.matches(scope)
        if found is Match.NONE:
            continue
        original = getattr(route, "original_route", route)
        if isinstance(original, Mount | Host):
            prefix, within = _prefix_of(route), _routes_within(route)
            if within is None:
                return prefix + "/{path}"
            rest = match(within, {**scope, **child})
            return None if rest is None else prefix + rest
        path: str | None = getattr(route, "path_format", None)
        if found is Match.FULL:
            return path
        partial = partial or path
    return partial


def flattened(routes: Iterable[Any]) -> Iterator[Any]:
    """The routes of an application, those of included routers with their prefixes."""
    # FastAPI 0.137 keeps included routers as one node each; before, their routes stood in the list.
    flatten = getattr(sys.modules.get("fastapi.routing"), "iter_route_contexts", None)
    for route in routes if flatten is None else flatten(routes):
        # A plain route in an included router has a copy of its own with the prefix.
        yield getattr(route, "starlette_route", None) or route


def _selected(scope: Scope) -> str | None:
    """The path of the route the routing ended with, without mounts; None if it left none behind."""
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return None
    route = scope.get("route")
    fastapi = scope.get("fastapi")
    if fastapi is not None:
        context = fastapi.get("effective_route_context")
        if context is not None and context.original_route is route:
            # The same route may be included twice, under two prefixes.
            route = context
    # A route without this endpoint is an outer one: the last step did not leave its own.
    return getattr(route, "path_format", None) if getattr(route, "endpoint", None) is endpoint else None


def _fresh(scope: Scope) -> Scope:
    """The scope as it was before the routing."""
    fresh = {key: value for key, value in scope.items() if key not in _LEFT_BY_ROUTING}
    fresh["root_path"] = scope.get("app_root_path", scope.get("root_path", ""))
    return fresh


def _routes_of(scope: Scope) -> Sequence[Any]:
    """The routes the routing began with, or would have begun with."""
    router = scope.get("router") or scope["app"]
    routes: Sequence[Any] = router.routes
    return routes


def _mounts_until(root_path: str, routes: Sequence[Any] | None, scope: Scope) -> tuple[str, bool]:
    """The templates of the mounts that lead to a `root_path`, and whether they lead all the way."""
    from starlette.routing import Host, Match, Mount

    prefix = ""
    while routes is not None:
        for route in flattened(routes):
            if isinstance(getattr(route, "original_route", route), Mount | Host):
                found, child = route.matches(scope)
                if found is Match.FULL:
                    break
        else:
            break
        prefix += _prefix_of(route)
        scope = {**scope, **child}
        if scope["root_path"] == root_path:
            return prefix, True
        routes = _routes_within(route)
    return prefix, False


def _prefix_of(route: Any) -> str:
    """The template of a mount; nothing for a host."""
    template: str = getattr(route, "path_format", "")
    return template.removesuffix("/{path}")


def _routes_within(route: Any) -> Sequence[Any] | None:
    """The routes of a mounted application, seen through its middleware; None if none can be seen."""
    app = route
    for _ in range(_MOST_NESTED):
        routes: Sequence[Any] | None = getattr(app, "routes", None)
        if routes or app is None:
            return routes or None
        app = getattr(app, "app", None)
    return None
