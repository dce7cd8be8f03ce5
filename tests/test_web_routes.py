"""The template of every kind of route, and what a client cannot do to the labels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Host, Mount, Route
from starlette.staticfiles import StaticFiles

from otel_mlops import metrics as rows
from otel_mlops.web import instrument_app
from otel_mlops.web.requests import RequestMetrics
from tests.asgi import (
    Settings,
    Telemetry,
    anything,
    ask,
    endpoint,
    opaque,
)


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def every_kind_of_route(folder: Path) -> FastAPI:
    (folder / "page.html").write_text("page")
    app = FastAPI()
    app.get("/")(anything)
    app.get("/items/{item_id}")(anything)
    app.post("/slash/")(anything)
    app.get("/files/{name:path}")(lambda name: name)
    inner, outer, plain = APIRouter(prefix="/inner"), APIRouter(), APIRouter()
    inner.get("/{item_id}")(anything)
    inner.get("/slash/")(anything)
    plain.add_route("/{name}", endpoint)
    plain.mount("/mounted", Starlette(routes=[Route("/{name}", endpoint)]))
    outer.include_router(inner, prefix="/outer")
    app.include_router(outer, prefix="/v1")
    app.include_router(outer, prefix="/v2/{version}")
    app.include_router(plain, prefix="/plain")
    fastapi, starlette = (
        FastAPI(),
        Starlette(routes=[Route("/{name}", endpoint), Mount("/deep", routes=[Route("/{x}", endpoint)])]),
    )
    fastapi.include_router(inner, prefix="/sub")
    fastapi.get("/")(anything)
    fastapi.get("/slash/")(anything)
    app.mount("/fastapi", fastapi)
    app.mount("/starlette", starlette)
    app.mount("/tenants/{tenant}", fastapi)
    app.mount("/wrapped", CORSMiddleware(fastapi, allow_origins=["*"]))
    app.mount("/static", StaticFiles(directory=folder))
    app.mount("/opaque", opaque)
    app.router.routes.append(Host("named.example", Starlette(routes=[Route("/host/{x}", endpoint)])))
    if hasattr(app, "frontend"):
        app.frontend("/ui", directory=folder)
    return app


# --- Templates -----------------------------------------------------------------------------------------------
KINDS = [
    ("GET", "/", 200, "/"),
    ("GET", "/items/7", 200, "/items/{item_id}"),
    ("GET", "/items/none", 422, "/items/{item_id}"),
    ("PATCH", "/items/7", 405, "/items/{item_id}"),
    ("OPTIONS", "/items/7", 405, "/items/{item_id}"),
    ("GET", "/files/a/b/c", 200, "/files/{name}"),
    ("GET", "/nothing/here", 404, "unmatched"),
    ("POST", "/slash", 307, "/slash/"),
    ("GET", "/items/7/", 307, "/items/{item_id}"),
    ("GET", "/v1/outer/inner/7", 200, "/v1/outer/inner/{item_id}"),
    ("PUT", "/v1/outer/inner/7", 405, "/v1/outer/inner/{item_id}"),
    ("GET", "/v2/9/outer/inner/7", 200, "/v2/{version}/outer/inner/{item_id}"),
    ("GET", "/v1/outer/inner/slash/", 200, "/v1/outer/inner/slash/"),
    ("GET", "/v1/outer/nothing", 404, "unmatched"),
    ("GET", "/plain/name", 200, "/plain/{name}"),
    ("GET", "/plain/mounted/name", 200, "/plain/mounted/{name}"),
    ("GET", "/fastapi/", 200, "/fastapi/"),
    ("GET", "/fastapi/sub/inner/7", 200, "/fastapi/sub/inner/{item_id}"),
    ("GET", "/fastapi/nothing", 404, "unmatched"),
    ("GET", "/fastapi/slash", 307, "/fastapi/slash/"),
    ("GET", "/fastapi/docs", 200, "/fastapi/docs"),
    ("GET", "/starlette/name", 200, "/starlette/{name}"),
    ("GET", "/starlette/deep/name", 200, "/starlette/deep/{x}"),
    ("GET", "/starlette/deep/name/more", 404, "unmatched"),
    ("POST", "/starlette/name", 405, "/starlette/{name}"),
    ("GET", "/tenants/secret/", 200, "/tenants/{tenant}/"),
    ("GET", "/tenants/secret/sub/inner/7", 200, "/tenants/{tenant}/sub/inner/{item_id}"),
    ("GET", "/tenants/secret/nothing", 404, "unmatched"),
    ("GET", "/wrapped/sub/inner/7", 200, "/wrapped/sub/inner/{item_id}"),
    ("GET", "/wrapped/nothing", 404, "unmatched"),
    ("GET", "/static/page.html", 200, "/static/{path}"),
    ("GET", "/static/nothing.html", 404, "/static/{path}"),
    ("GET", "/opaque/what/ever", 200, "/opaque/{path}"),
    ("GET", "/docs", 200, "/docs"),
    ("GET", "/openapi.json", 200, "/openapi.json"),
    ("HEAD", "/docs", 200, "/docs"),
    ("GET", "/ui/page.html", 200, "/ui/{path}"),
]


@pytest.mark.parametrize("instrumentation", ["auto", "none"])
@pytest.mark.parametrize(("method", "path", "status", "template"), KINDS)
async def test_the_endpoint_is_the_whole_template(method, path, status, template, instrumentation, tmp_path):
    """The endpoint is the route's template with the prefixes of its routers and mounts, or `unmatched`."""
    telemetry, app = Telemetry(Settings(instrumentation=instrumentation)), every_kind_of_route(tmp_path)
    instrument_app(app, telemetry)
    for _ in range(2):  # what is learned from the first must hold for the second
        assert (await ask(app, method, path)).status == status
    assert telemetry.requests == {(method, template, str(status)): 2}
    assert telemetry.is_balanced


async def test_a_host_adds_nothing_to_the_template(telemetry, tmp_path):
    """A route below a Host has its own template, and the Host header is in no label."""
    app = every_kind_of_route(tmp_path)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/host/secret", headers={"host": "named.example"})
    assert telemetry.requests == {("GET", "/host/{x}", "200"): 1}


async def test_what_lies_in_an_application_that_cannot_be_seen_into_is_its_mount(telemetry):
    """A mount within a function around an application has the template of what can be seen, and no raw path."""
    within = Starlette(routes=[Mount("/{secret}", routes=[Route("/{c}", endpoint)]), Route("/{d}", endpoint)])

    async def around(scope: Any, receive: Any, send: Any) -> None:
        await within(scope, receive, send)

    app = FastAPI()
    app.mount("/a", around)
    instrument_app(app, telemetry)
    for path in ("/a/1/2", "/a/3", "/a/4/5/6"):
        await ask(app, "GET", path)
    assert telemetry.requests == {
        ("GET", "/a/{path}", "200"): 1,
        ("GET", "/a/{d}", "200"): 1,
        ("GET", "/a/{path}", "404"): 1,
    }


async def test_a_plain_starlette_application_is_counted_too(telemetry):
    """A Starlette application without FastAPI has the same labels."""
    app = Starlette(routes=[Mount("/a/{b}", routes=[Route("/{c}", endpoint)]), Route("/{d}", endpoint)])
    instrument_app(app, telemetry)
    for path in ("/a/1/2", "/3", "/4/", "/a/1/2/5"):
        await ask(app, "GET", path)
    assert telemetry.requests == {
        ("GET", "/a/{b}/{c}", "200"): 1,
        ("GET", "/{d}", "200"): 1,
        ("GET", "/{d}", "307"): 1,
        ("GET", "unmatched", "404"): 1,
    }


@pytest.mark.parametrize("instrumentation", ["auto", "none"])
async def test_root_path_is_no_part_of_the_template(instrumentation):
    """A root_path, the server's or of a proxy's header, is in no label."""

    class Forwarded:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            prefix = dict(scope["headers"]).get(b"x-forwarded-prefix")
            if prefix is not None:
                scope["root_path"] = prefix.decode()
                scope["path"] = scope["root_path"] + scope["path"]
            await self.app(scope, receive, send)

    telemetry = Telemetry(Settings(instrumentation=instrumentation))
    app, sub = FastAPI(), FastAPI()
    app.add_middleware(Forwarded)
    app.get("/items/{item_id}")(anything)
    sub.get("/items/{item_id}")(anything)
    app.mount("/sub", sub)
    instrument_app(app, telemetry)
    assert (await ask(app, "GET", "/items/1")).status == 200
    assert (await ask(app, "GET", "/api/items/1", root_path="/api")).status == 200
    assert (await ask(app, "GET", "/api/sub/items/1", root_path="/api")).status == 200
    for number in range(20):
        prefix = {"x-forwarded-prefix": f"/tenant-{number}"}
        assert (await ask(app, "GET", "/items/1", headers=prefix)).status == 200
        assert (await ask(app, "GET", "/sub/items/1", headers=prefix)).status == 200
    assert telemetry.requests == {("GET", "/items/{item_id}", "200"): 22, ("GET", "/sub/items/{item_id}", "200"): 21}


async def test_a_mounted_application_by_itself_has_its_mounts_in_the_template(telemetry):
    """An instrumented application in one that is not has the mount's prefix, and never a tenant's name."""
    sub, outer = FastAPI(), Starlette()
    sub.get("/items/{item_id}")(anything)
    outer.mount("/fixed", sub)
    outer.mount("/tenants/{tenant}", sub)
    instrument_app(sub, telemetry)
    await ask(outer, "GET", "/fixed/items/1")
    await ask(outer, "GET", "/tenants/secret/items/1")
    assert telemetry.requests == {
        ("GET", "/fixed/items/{item_id}", "200"): 1,
        ("GET", "/tenants/{tenant}/items/{item_id}", "200"): 1,
    }


async def test_what_a_middleware_answers_has_the_template_of_the_route_it_was_for(telemetry):
    """A preflight and a refusal, answered before the routing, are counted at the route they were meant for."""
    app = FastAPI()
    app.get("/items/{item_id}")(anything)
    instrument_app(app, telemetry)

    class Refuse:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            refused = dict(scope["headers"]).get(b"authorization") == b"wrong"
            await (PlainTextResponse("no", 401) if refused else self.app)(scope, receive, send)

    app.add_middleware(CORSMiddleware, allow_origins=["https://a.example"])
    app.add_middleware(Refuse)
    preflight = {"origin": "https://a.example", "access-control-request-method": "GET"}
    assert (await ask(app, "OPTIONS", "/items/1", headers=preflight)).status == 200
    assert (await ask(app, "GET", "/items/1", headers={"authorization": "wrong"})).status == 401
    assert (await ask(app, "GET", "/nothing", headers={"authorization": "wrong"})).status == 401
    assert telemetry.requests == {
        ("OPTIONS", "/items/{item_id}", "200"): 1,
        ("GET", "/items/{item_id}", "401"): 1,
        ("GET", "unmatched", "401"): 1,
    }


async def test_a_middleware_that_copies_the_scope_hides_no_template(telemetry):
    """A middleware that hands on a copy of the scope leaves the template as it is."""

    class Copy:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(dict(scope), receive, send)

    app = FastAPI()
    app.get("/items/{item_id}")(anything)
    app.add_middleware(Copy)
    instrument_app(app, telemetry)
    await ask(app, "GET", "/items/1")
    assert telemetry.requests == {("GET", "/items/{item_id}", "200"): 1}


async def test_a_route_that_cannot_be_read_breaks_no_request(telemetry, caplog):
    """A route class that raises while it is asked again leaves the request whole, and is logged once."""

    class Moody(Route):
        has_answered = False

        def matches(self, scope: Any) -> Any:
            if Moody.has_answered:
                raise LookupError("moody")
            return super().matches(scope)

    async def answer(request: Request) -> PlainTextResponse:
        Moody.has_answered = True
        return PlainTextResponse("here")

    app = FastAPI()
    app.router.routes.append(Moody("/moody", answer))
    instrument_app(app, telemetry)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            Moody.has_answered = False
            assert (await ask(app, "GET", "/moody")).status == 200
    assert telemetry.requests == {("GET", "unmatched", "200"): 3}
    assert len(caplog.records) == 1


async def test_the_same_function_on_two_paths_is_two_endpoints(telemetry):
    """Two paths of one function are told apart."""
    app = FastAPI()
    app.get("/old/{item_id}")(app.get("/new/{item_id}")(anything))
    instrument_app(app, telemetry)
    await ask(app, "GET", "/old/1")
    await ask(app, "GET", "/new/1")
    assert telemetry.values(rows.API_REQUESTS, "endpoint") == {"/old/{item_id}": 1, "/new/{item_id}": 1}


async def test_a_route_added_later_is_known(telemetry):
    """Routes and mounts that are added while the application serves have their templates."""
    app = FastAPI()
    instrument_app(app, telemetry)
    await ask(app, "GET", "/later/1")
    app.get("/later/{item_id}")(anything)
    sub = FastAPI()
    sub.get("/{item_id}")(anything)
    app.mount("/sub", sub)
    await ask(app, "GET", "/later/1")
    await ask(app, "GET", "/sub/1")
    assert telemetry.values(rows.API_REQUESTS, "endpoint") == {
        "unmatched": 1, "/later/{item_id}": 1, "/sub/{item_id}": 1,
    }  # fmt: skip


# --- Labels are bounded --------------------------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.parametrize(("instrumentation", "rounds"), [("auto", 500), ("none", 5000)])
async def test_no_client_can_make_series(instrumentation, rounds, tmp_path):
    """Thousands of paths, methods and hosts leave a handful of series."""
    telemetry, app = Telemetry(Settings(instrumentation=instrumentation)), every_kind_of_route(tmp_path)
    instrument_app(app, telemetry)
    shapes = (
        "/{}",
        "/items/{}",
        "/fastapi/{}",
        "/tenants/{}/",
        "/tenants/{}/sub/inner/1",
        "/static/{}",
        "/v2/{}/x",
        "/items/{}/",
    )
    for number in range(rounds):
        path = shapes[number % len(shapes)].format(f"secret{number}")
        await ask(app, "GET", path, headers={"host": f"secret{number % 500}.example"})
        await ask(app, f"SECRET{number % 500}", path)
    series = [attributes for row in rows.CATALOGUE for attributes in telemetry.points(row.name)]
    assert len(series) < 100
    for name in ("http.server.request.duration", "http.server.active_requests"):
        series += telemetry.points(name)
    assert len(series) < 150
    assert "secret" not in str(series).lower()
    middleware = app.middleware_stack
    assert isinstance(middleware, RequestMetrics)
    assert len(middleware.series) < 30
    assert len(middleware.templates._prefixes) < 10
    assert telemetry.is_balanced
    methods = {dict(each)["method"] for each in telemetry.points(rows.API_REQUESTS.name)}
    assert methods == {"GET", "_OTHER"}


async def test_the_handles_that_are_kept_are_bounded(telemetry, monkeypatch):
    """An application that makes up statuses and exception classes is counted, and fills no memory."""
    monkeypatch.setattr("otel_mlops.web.requests._MOST_REMEMBERED", 5)
    app = FastAPI()
    for number in range(10):
        app.get(f"/many/{number}")(anything)

    @app.get("/{code}")
    def made_up(code: int) -> PlainTextResponse:
        if code < 100:
            raise type(f"Made{code}", (Exception,), {})
        return PlainTextResponse("", code)

    instrument_app(app, telemetry)
    for code in range(20):
        await ask(app, "GET", f"/{code}")
        await ask(app, "GET", f"/{200 + code}")
    for number in range(10):
        await ask(app, "GET", f"/many/{number}")
    assert len(telemetry.requests) == 31
    assert len(telemetry.errors) == 20
    middleware = app.middleware_stack
    assert len(middleware._errors_by_type) == 5
    assert len(middleware.series) == 5
    assert all(len(each.by_status) <= 5 for each in middleware.series.values())


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "QUERY", "CONNECT"])
async def test_known_methods_count_as_themselves(method, telemetry):
    """Each method of HTTP is its own label."""
    app = FastAPI()
    app.add_api_route("/", anything, methods=[method])
    instrument_app(app, telemetry)
    await ask(app, method, "/")
    assert telemetry.requests == {(method, "/", "200"): 1}
