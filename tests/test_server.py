"""The page's own HTTP server: what it answers, what it refuses, and that nobody can hold it up."""

from __future__ import annotations

import gzip
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.client import HTTPConnection

import pytest

from otel_mlops.sdk import connections, scrape, server, sharing
from otel_mlops.sdk.page import Page
from otel_mlops.sdk.server import PageServer
from otel_mlops.sdk.text import OPENMETRICS, TEXT
from otel_mlops.testing import fresh_telemetry
from tests import waiting

SMALL = Page(b"up 1\n", TEXT)
LARGE = Page(b"".join(b'requests_total{endpoint="/%d"} %d\n' % (i, i) for i in range(500)), TEXT)
PATIENCE_S = 30.0
eventually = partial(waiting.eventually, within_s=PATIENCE_S)
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,*/*;q=0.2"
)
REQUEST_THREAD = "otel-mlops-page-request"


def small(accept):
    """Make a page of one line."""
    return SMALL


def large(accept):
    """Make a page that is worth compressing."""
    return LARGE


def giving(page):
    """What makes this page, whatever is asked for."""

    def make(accept):
        return page

    return make


@contextmanager
def serving(page=None, host="127.0.0.1", port=0, **options):
    """A server that serves until the block ends."""
    page_server = PageServer(page or large, host, port, **options)
    page_server.start()
    try:
        if page_server.fault is None:
            assert page_server.serving.wait(PATIENCE_S)
        yield page_server
    finally:
        page_server.stop(PATIENCE_S)


def request(page_server, path="/metrics", method="GET", body=None, host="127.0.0.1", **headers):
    """One request: the response, and its body as it came."""
    connection = HTTPConnection(host, page_server.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def connect(page_server):
    """A raw connection."""
    return socket.create_connection(("127.0.0.1", page_server.port), timeout=PATIENCE_S)


def everything(connection) -> bytes:
    """What comes until the server ends the connection."""
    parts = []
    # A reset ends it too.
    with suppress(ConnectionError):
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def request_threads() -> int:
    """How many requests are being served in this process."""
    return sum(thread.name == REQUEST_THREAD for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def nobody_is_served():
    """Each test begins when the requests of those before it have ended."""
    eventually(lambda: request_threads() == 0)


# --- What it answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/metrics?name[]=up", "http://example.test:8001/metrics", "//metrics"]
)
def test_the_page_is_at_metrics_and_at_the_root(path):
    """The page is at /metrics and at /, whatever the query, and where a proxy asks with a whole URL."""
    with serving() as page_server:
        response, body = request(page_server, path)
    assert (response.status, body) == (200, LARGE.body)
    assert response.headers["Content-Type"] == TEXT
    assert response.headers["Content-Length"] == str(len(body))
    assert response.headers["Cache-Control"] == "no-store"


def test_a_browser_gets_html_at_the_root_and_the_page_at_metrics():
    """At / who asks for HTML gets the page for people; at /metrics a browser sees the page as text."""
    with serving() as page_server:
        people, html = request(page_server, "/", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
        metrics, body = request(page_server, "/metrics", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert people.headers["Content-Type"].startswith("text/html")
    assert html.startswith(b"<!doctype html>")
    assert (metrics.headers["Content-Type"], body) == (TEXT, LARGE.body)


@pytest.mark.parametrize("path", ["/-/healthy", "/-/ready"])
def test_the_probes_of_prometheus_are_answered_without_making_a_page(path):
    """Probes get 200 at once, and no page is made for them."""
    made = []
    with serving(lambda accept: made.append(accept) or SMALL) as page_server:
        response, body = request(page_server, path)
    assert (response.status, body, made) == (200, b"OK\n", [])


@pytest.mark.parametrize("path", ["/metricsx", "/metrics/", "/favicon.ico", "/<script>", "*", "/%6detrics"])
def test_any_other_path_is_not_found_and_not_echoed(path):
    """Every other path is a 404 that repeats nothing of the request."""
    with serving() as page_server:
        response, body = request(page_server, path)
    assert response.status == 404
    assert body == b"The page is at /metrics.\n"


@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/nowhere"])
def test_head_has_the_headers_of_get_and_no_body(path):
    """HEAD answers with the status and headers of GET, and without a body."""
    with serving() as page_server:
        got, _ = request(page_server, path, Accept_Encoding="gzip")
        head, body = request(page_server, path, "HEAD", Accept_Encoding="gzip")
    ignored = {"date"}
    assert head.status == got.status
    assert {n.lower(): v for n, v in head.getheaders() if n.lower() not in ignored} == {
        n.lower(): v for n, v in got.getheaders() if n.lower() not in ignored
    }
    assert body == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "FOO"])
def test_other_methods_are_refused_with_those_that_are_allowed(method):
    """Every method but GET and HEAD is a 405 with an Allow header."""
    with serving() as page_server:
        response, body = request(page_server, "/metrics", method, b"x=1")
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
    assert body == b"Method Not Allowed\n"


def test_who_sends_a_large_body_still_reads_why_it_is_refused():
    """A refusal is not lost to a reset of the connection while the client is still sending."""
    part = bytes(20_000)
    with serving() as page_server, connect(page_server) as connection:
        connection.sendall(b"POST /metrics HTTP/1.1\r\nContent-Length: 200000\r\n\r\n" + part)
        answer = connection.recv(12)
        for _ in range(9):
            time.sleep(0.005)
            connection.sendall(part)
        answer += everything(connection)
    assert answer.startswith(b"HTTP/1.1 405")
    assert answer.endswith(b"Method Not Allowed\n")


@pytest.mark.parametrize(
    ("accept_encoding", "zipped"),
    [
        ("gzip", True),
        ("gzip, deflate, br", True),
        ("br;q=1.0, GZIP;q=0.8, *;q=0.1", True),
        ("x-gzip", True),
        ("gzip;q=0.001", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000, identity", False),
        ("deflate", False),
        ("notgzip", False),
        ("gzip;q=abc", False),
        ("", False),
    ],
)
def test_the_page_is_compressed_for_who_takes_it_so(accept_encoding, zipped):
    """Compression is used exactly where Accept-Encoding allows it, and unpacks to the same page."""
    with serving() as page_server:
        response, body = request(page_server, Accept_Encoding=accept_encoding)
    assert (response.headers["Content-Encoding"] == "gzip") is zipped
    assert (gzip.decompress(body) if zipped else body) == LARGE.body
    assert response.headers["Vary"] == "Accept, Accept-Encoding"


def test_a_small_page_is_not_compressed():
    """What fits into a packet is sent as it is."""
    with serving(small) as page_server:
        response, body = request(page_server, Accept_Encoding="gzip")
    assert (response.headers["Content-Encoding"], body) == (None, SMALL.body)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain", TEXT),
        ("application/openmetrics-text; version=1.0.0", OPENMETRICS),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
    ],
)
def test_the_format_is_what_the_client_asks_for(accept, content_type):
    """The Accept header chooses between the text format and OpenMetrics, over HTTP as in a call."""
    with fresh_telemetry(start_server=True, port=0) as telemetry:
        telemetry.record_error("ValueError", "/predict")
        telemetry.start()
        response, body = request(telemetry._leading.server, Accept=accept)
    assert response.headers["Content-Type"] == content_type
    assert body.endswith(b"# EOF\n") is (content_type == OPENMETRICS)
    assert b'errors_total{endpoint="/predict",error_type="ValueError"} 1' in body


def test_several_accept_headers_are_one_list():
    """A header that comes in several lines means what the lines mean together."""
    asked = []
    with serving(lambda accept: asked.append(accept) or SMALL) as page_server, connect(page_server) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nAccept: text/plain\r\nAccept: */*;q=0.1\r\n\r\n")
        everything(connection)
    assert asked == ["text/plain, */*;q=0.1"]


@pytest.mark.parametrize(
    "raw", [b"GET /metrics HTTP/1.1\r\n\r\n", b"GET /x HTTP/1.1\r\n\r\n", b"BREW / HTTP/1.1\r\n\r\n", b"\x00\r\n"]
)
def test_no_answer_tells_what_it_runs_on(raw):
    """Neither an answer nor a refusal names Python, a library or a version."""
    with serving() as page_server, connect(page_server) as connection:
        connection.sendall(raw)
        head = everything(connection).partition(b"\r\n\r\n")[0]
    assert b"Server: otel-mlops\r\n" in head
    for telling in (b"python", b"basehttp", sys.version.split()[0].encode()):
        assert telling not in head.lower()


def test_a_page_that_cannot_be_made_is_an_error_said_once(caplog):
    """A page that raises is a 503, logged at the first scrape only, and served as soon as it can be made."""
    broken = threading.Event()
    broken.set()

    def page(accept):
        if broken.is_set():
            raise RuntimeError("no page today")
        return SMALL

    with serving(page) as page_server:
        statuses = [request(page_server)[0].status for _ in range(3)]
        broken.clear()
        statuses.append(request(page_server)[0].status)
    assert statuses == [503, 503, 503, 200]
    assert caplog.text.count("could not be made") == 1


# --- Who would harm it -------------------------------------------------------------------------------------

TLS_HELLO = bytes.fromhex("16030100c8010000c403") + bytes(190)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (TLS_HELLO + b"\n", b"400"),
        (b"\x00" * 100 + b"\n", b"400"),
        (b"\xff\xfe\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET / HTTP/x.y\r\n\r\n", b"400"),
        (b"GET / HTTP/2.0\r\n\r\n", b"505"),
        (b"GET / / / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + (b"X: " + b"a" * 2_000 + b"\r\n") * 90 + b"\r\n", b"431"),
    ],
)
def test_what_is_no_fit_request_is_refused_and_harms_nobody(raw, status, caplog):
    """Garbage and what is too long get the status that says so, nothing is logged, and the next is served."""
    caplog.set_level(logging.INFO)
    with serving() as page_server:
        with connect(page_server) as connection:
            connection.sendall(raw)
            answer = everything(connection)
        response, _ = request(page_server)
    assert answer.split(b" ", 2)[1] == status
    assert b"aaaa" not in answer
    assert response.status == 200
    assert not caplog.records


@pytest.mark.parametrize("raw", [b"", b"\r\n\r\n", b"GET /metrics HTTP/1.1\r\nHost"])
def test_a_client_that_leaves_early_harms_nobody(raw, caplog):
    """Who goes away before a request is whole leaves no thread, no line in the log and no damage."""
    caplog.set_level(logging.INFO)
    with serving() as page_server:
        for _ in range(5):
            with connect(page_server) as connection:
                connection.sendall(raw)
        eventually(lambda: request_threads() == 0)
        assert request(page_server)[0].status == 200
    assert not caplog.records


@pytest.mark.parametrize("raw", [b"GET /metrics HTTP/1.1\r\nHost: a", b"GET /metrics HTTP/1.1\r\n", b"GET /metr"])
def test_half_a_request_is_not_taken_for_a_whole_one(raw):
    """Of who leaves, or has to, in the middle of a request nothing is answered, made or counted."""
    made, refused = [], []

    def page(accept):
        made.append(accept)
        return SMALL

    with serving(page, on_refused=refused.append) as page_server, connect(page_server) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        assert everything(connection) == b""
    assert made == refused == []


def test_a_client_that_says_nothing_is_sent_away(monkeypatch):
    """A connection without a request ends when the time for one is over."""
    monkeypatch.setattr(scrape, "REQUEST_TIMEOUT_S", 0.1)
    with serving() as page_server, connect(page_server) as connection:
        began_s = time.monotonic()
        assert everything(connection) == b""
        assert 0.05 < time.monotonic() - began_s < 3.0


def test_a_request_has_a_time_in_which_it_must_arrive(monkeypatch, caplog):
    """A client that sends a byte now and then is sent away when its time is over, however steady it is."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(scrape, "REQUEST_TIMEOUT_S", 0.3)
    with serving() as page_server, connect(page_server) as connection:
        began_s = time.monotonic()
        sent = 0
        with suppress(ConnectionError):
            while time.monotonic() - began_s < PATIENCE_S:
                connection.sendall(b"G")
                sent += 1
                connection.settimeout(0.02)
                with suppress(TimeoutError):
                    if not connection.recv(1):
                        break
        took_s = time.monotonic() - began_s
    assert sent > 3
    assert took_s < 3.0
    assert not caplog.records


def test_a_client_that_reads_nothing_is_sent_away(monkeypatch):
    """A client that does not take its answer holds a thread no longer than the time it has for it."""
    monkeypatch.setattr(scrape, "ANSWER_TIMEOUT_S", 0.2)
    huge = Page(bytes(50_000_000), TEXT)

    def page(accept):
        return huge

    with serving(page) as page_server, connect(page_server) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        eventually(lambda: request_threads() == 1)
        eventually(lambda: request_threads() == 0, within_s=3.0)


def test_idle_connections_do_not_keep_a_scraper_out():
    """With a hundred clients connected that say nothing a scrape is answered at once, in few threads."""
    with serving() as page_server, ExitStack() as idle:
        for _ in range(100):
            idle.enter_context(connect(page_server))
        began_s = time.monotonic()
        statuses = [request(page_server)[0].status for _ in range(5)]
        took_s = time.monotonic() - began_s
        eventually(lambda: request_threads() <= connections.MOST_CONNECTIONS)
    assert statuses == [200] * 5
    assert took_s < 2.0


def test_the_oldest_idle_connection_makes_room(monkeypatch):
    """When there are too many connections it is the one that has waited longest that is ended, not a newer one."""
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 3)
    with serving() as page_server, ExitStack() as stack:
        first, second, third = (stack.enter_context(connect(page_server)) for _ in range(3))
        eventually(lambda: request_threads() == 3)
        fourth = stack.enter_context(connect(page_server))
        assert everything(first) == b""
        for connection in (second, third, fourth):
            connection.sendall(b"GET /-/healthy HTTP/1.1\r\n\r\n")
            assert everything(connection).startswith(b"HTTP/1.1 200")


def test_a_page_that_is_being_made_does_not_make_room(monkeypatch):
    """Requests that are being worked on are finished; further ones wait for them in the kernel, and get no thread."""
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(connections, "FRESH_S", PATIENCE_S)
    monkeypatch.setattr(server, "_ROOM_TIMEOUT_S", PATIENCE_S)
    go_on = threading.Event()

    def page(accept):
        go_on.wait(PATIENCE_S)
        return SMALL

    with serving(page) as page_server, ExitStack() as stack:
        asked = [stack.enter_context(connect(page_server)) for _ in range(2)]
        for connection in asked:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        eventually(lambda: [each.is_busy for each in page_server._connections._all] == [True, True])
        asked += [stack.enter_context(connect(page_server)) for _ in range(5)]
        for connection in asked[2:]:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        asked[-1].settimeout(0.1)
        with pytest.raises(TimeoutError):
            asked[-1].recv(1)
        asked[-1].settimeout(PATIENCE_S)
        assert request_threads() == 2
        go_on.set()
        assert all(everything(connection).endswith(SMALL.body) for connection in asked)


def test_who_waits_too_long_for_a_place_is_sent_away(monkeypatch):
    """Where every place is taken by a page that hangs, a further client is closed after a time, and counted."""
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 1)
    monkeypatch.setattr(server, "_ROOM_TIMEOUT_S", 0.02)
    go_on, refused = threading.Event(), []

    def page(accept):
        go_on.wait(PATIENCE_S)
        return SMALL

    with serving(page, on_refused=refused.append) as page_server, connect(page_server) as asking:
        asking.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        eventually(lambda: [each.is_busy for each in page_server._connections._all] == [True])
        for _ in range(3):
            with connect(page_server) as connection:
                assert everything(connection) == b""
        assert refused == ["busy"] * 3
        assert request_threads() == 1
        go_on.set()
        assert everything(asking).endswith(SMALL.body)


def slow_reader(page_server, receive_bytes=128 * 1024, source="127.0.0.1"):
    """A client that has asked for the page and has little room for what comes."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.settimeout(PATIENCE_S)
    client.bind((source, 0))
    client.connect(("127.0.0.1", page_server.port))
    client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    return client


def test_a_slow_reader_keeps_its_place_while_idle_clients_come_and_go(monkeypatch):
    """A client that takes a large page slowly gets all of it, though a crowd of idle ones fills the places."""
    monkeypatch.setattr(connections, "FRESH_S", 0.0)
    huge = Page(bytes(4_000_000), TEXT)
    got = 0
    with serving(giving(huge)) as page_server, ExitStack() as idle, slow_reader(page_server) as reader:
        while part := reader.recv(100_000):
            got += len(part)
            if got < 500_000:
                for _ in range(20):
                    idle.enter_context(connect(page_server))
    assert got > 4_000_000


def test_clients_that_read_nothing_make_room(monkeypatch):
    """With every place taken by clients that take nothing of a large page, a scrape is answered at once."""
    huge = Page(bytes(4_000_000), TEXT)
    refused = []
    with serving(giving(huge), on_refused=refused.append) as page_server, ExitStack() as stack:
        for _ in range(connections.MOST_CONNECTIONS + 8):
            stack.enter_context(slow_reader(page_server))
        eventually(lambda: sum(bool(each.body) for each in page_server._connections._all) >= 32)
        began_s = time.monotonic()
        response, body = request(page_server)
        took_s = time.monotonic() - began_s
        assert (response.status, len(body)) == (200, 4_000_000)
        assert took_s < 3.0
        assert set(refused) == {"busy"}
        page_server._connections.end_waiting()


@pytest.fixture
def crowd(monkeypatch):
    """Connections of which there may be as many as are made here, each with the age and the state it is given."""
    present, ends = connections.Connections(), []

    def one(came_ago_s=1.0, moved_ago_s=0.0, *, body=b"", says=b"", is_busy=False, host="a"):
        raw, client = socket.socketpair()
        ends.extend([raw, client])
        client.send(says)
        made = connections.Connection(raw, host)
        made.came_s -= came_ago_s
        made.moved_s -= moved_ago_s
        made.body, made.is_busy = body, is_busy
        monkeypatch.setattr(connections, "MOST_CONNECTIONS", len(present) + 1)
        assert present.enter(made, 0.0, threading.Event()) is None
        return made

    def leavers(count):
        newcomers = [connections.Connection(socket.socket(), "new") for _ in range(count)]
        ends.extend(newcomer.socket for newcomer in newcomers)
        for newcomer in newcomers:
            newcomer.is_busy = True
        gone = [present.enter(newcomer, 0.0, threading.Event()) for newcomer in newcomers]
        return [None if left is newcomer else left for left, newcomer in zip(gone, newcomers, strict=True)]

    yield one, leavers
    for end in ends:
        end.close()


def test_the_idle_make_room_first_then_the_slowest(crowd):
    """The oldest idle go, then who has taken nothing for longest; not who is worked on, has asked or takes its page."""
    one, leavers = crowd
    busy = one(is_busy=True)
    moving = one(body=b"page", moved_ago_s=0.0)
    stalled = one(body=b"page", moved_ago_s=1.0)
    stalled_longer = one(body=b"page", moved_ago_s=2.0)
    one(came_ago_s=4.0, says=b"GET")
    idle = one(came_ago_s=2.0)
    younger_idle = one(came_ago_s=1.0)
    assert leavers(5) == [idle, younger_idle, stalled_longer, stalled, None]
    assert not busy.is_ended
    assert not moving.is_ended


def test_who_has_just_come_is_waited_for(crowd):
    """A connection whose request may be on the way does not make room, nor does a slow reader in its place."""
    one, leavers = crowd
    fresh = one(came_ago_s=-60.0)
    one(body=b"page", moved_ago_s=1.0)
    assert leavers(1) == [None]
    fresh.came_s -= 120.0
    assert leavers(1) == [fresh]


@pytest.mark.parametrize(("pause_s", "is_served"), [(0.0, True), (0.05, False)])
def test_an_answer_must_be_taken_at_a_rate(monkeypatch, pause_s, is_served):
    """Who takes the page fast enough gets all of it, over as many times as it needs; who trickles is sent away."""
    monkeypatch.setattr(scrape, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(scrape, "SLOWEST_BYTES_PER_S", 2_000_000)
    huge = Page(bytes(3_000_000), TEXT)
    refused, got = [], 0
    with serving(giving(huge), on_refused=refused.append) as page_server, slow_reader(page_server) as client:
        eventually(lambda: request_threads() == 1)
        with suppress(ConnectionError):
            while (part := client.recv(50_000 if is_served else 1_000)) and (is_served or request_threads()):
                got += len(part)
                threading.Event().wait(pause_s)
        eventually(lambda: request_threads() == 0)
    assert (got > 3_000_000) is is_served
    assert refused == ([] if is_served else ["request"])


def test_a_crowd_from_one_host_displaces_itself(monkeypatch):
    """Idle connections of a host that has most of them make room, and not another host's older one."""
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 4)
    with serving() as page_server, ExitStack() as stack:
        lonely = stack.enter_context(
            socket.create_connection(("127.0.0.1", page_server.port), PATIENCE_S, ("127.0.0.2", 0))
        )
        eventually(lambda: request_threads() == 1)
        crowd = [stack.enter_context(connect(page_server)) for _ in range(12)]
        assert all(everything(each) == b"" for each in crowd[:9])
        lonely.sendall(b"GET /-/healthy HTTP/1.1\r\n\r\n")
        assert everything(lonely).startswith(b"HTTP/1.1 200")


def test_nobody_who_has_asked_is_sent_away_for_another(monkeypatch):
    """Of more requests at a time than there are places each is answered."""
    monkeypatch.setattr(connections, "FRESH_S", PATIENCE_S)
    monkeypatch.setattr(server, "_ROOM_TIMEOUT_S", PATIENCE_S)
    refused = []
    with (
        serving(on_refused=refused.append) as page_server,
        ThreadPoolExecutor(3 * connections.MOST_CONNECTIONS) as many,
    ):
        statuses = list(many.map(lambda _: request(page_server)[0].status, range(300)))
    assert statuses == [200] * 300
    assert refused == []


def test_what_is_kept_for_slow_readers_is_bounded(monkeypatch):
    """Pages that clients are slow to take are kept up to a size; then the slowest goes. A shared one counts once."""
    monkeypatch.setattr(connections, "MOST_SENDING_BYTES", 3_500_000)
    monkeypatch.setattr(connections, "STALLED_S", 0.0)
    shared = Page(bytes(1_000_000), TEXT)
    is_shared = threading.Event()

    def page(accept):
        return shared if is_shared.is_set() else Page(bytes(1_000_000), TEXT)

    refused = []
    with serving(page, on_refused=refused.append) as page_server, ExitStack() as stack:

        def sending():
            return sum(bool(each.body) for each in page_server._connections._all)

        for count in (1, 2, 3):
            stack.enter_context(slow_reader(page_server))
            eventually(lambda count=count: sending() == count)
        assert refused == []
        stack.enter_context(slow_reader(page_server))
        eventually(lambda: refused == ["busy"])
        assert sending() == 3
        page_server._connections.end_waiting()
        is_shared.set()
        for each in list(page_server._connections._all):
            each.end()
        eventually(lambda: request_threads() == 0)
        for count in range(1, 8):
            stack.enter_context(slow_reader(page_server))
            eventually(lambda count=count: sending() == count)
        assert refused == ["busy"]
        for each in list(page_server._connections._all):
            each.end()


@pytest.mark.parametrize(
    ("raw", "refused"),
    [
        (b"GET / HTTP/2.0\r\n\r\n", ["request"]),
        (b"POST / HTTP/1.1\r\n\r\n", ["request"]),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", ["request"]),
        (b"GET /nowhere HTTP/1.1\r\n\r\n", []),
        (b"GET /metrics HTTP/1.1\r\n\r\n", []),
    ],
)
def test_unfit_requests_are_counted(raw, refused):
    """Who sends a request that is unfit is told on; who asks for what is not there is not."""
    reasons = []
    with serving(on_refused=reasons.append) as page_server, connect(page_server) as connection:
        connection.sendall(raw)
        everything(connection)
    assert reasons == refused


def test_a_request_that_is_too_slow_is_counted_and_one_that_makes_room_is_busy(monkeypatch):
    """A client whose time is over is a `request`; one that goes for another is `busy`, and not both."""
    monkeypatch.setattr(scrape, "REQUEST_TIMEOUT_S", 0.3)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 1)
    reasons = []
    with serving(on_refused=reasons.append) as page_server, connect(page_server) as first:
        eventually(lambda: request_threads() == 1)
        with connect(page_server) as second:
            assert everything(first) == b""
            eventually(lambda: reasons == ["busy"])
            assert everything(second) == b""
            eventually(lambda: reasons == ["busy", "request"])


def test_counting_never_harms_an_answer(caplog):
    """A callback that raises is said in the log, and the client still reads why it was refused."""

    def refuse(reason):
        raise RuntimeError("no counter")

    with serving(on_refused=refuse) as page_server:
        response, body = request(page_server, method="POST")
    assert (response.status, body) == (405, b"Method Not Allowed\n")
    assert "could not be counted" in caplog.text


# --- One rendering for those who ask together --------------------------------------------------------------


class Gate:
    """A page whose rendering waits until it is let go, and which counts its renderings."""

    def __init__(self, page=SMALL):
        self.page = page
        self.accepts = []
        self.is_open = threading.Event()

    def __call__(self, accept):
        """Make the page."""
        self.accepts.append(accept)
        assert self.is_open.wait(PATIENCE_S)
        if isinstance(self.page, Exception):
            raise self.page
        return self.page


def wait_for_sharers(page_server, count):
    """Wait until so many requests are being worked on."""
    eventually(lambda: sum(each.is_busy for each in page_server._connections._all) == count)


def test_fifty_scrapes_at_a_time_make_two_renderings(monkeypatch):
    """Fifty who ask together each get the whole page, which is made for the first of them and then for the rest."""
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 50)
    gate = Gate(LARGE)
    with serving(gate) as page_server, ThreadPoolExecutor(50) as scrapers:
        bodies = [scrapers.submit(request, page_server) for _ in range(50)]
        wait_for_sharers(page_server, 50)
        gate.is_open.set()
        assert [body.result()[1] for body in bodies] == [LARGE.body] * 50
    assert len(gate.accepts) == 2


def test_what_was_recorded_before_a_scrape_is_on_it():
    """Who comes in the middle of a rendering shares the next one, never that one."""
    recorded, begun, go_on = [1], threading.Semaphore(0), threading.Semaphore(0)

    def page(accept):
        seen = recorded[0]
        begun.release()
        assert go_on.acquire(timeout=PATIENCE_S)
        return Page(b"records %d\n" % seen, TEXT)

    with serving(page) as page_server, ThreadPoolExecutor(3) as scrapers:
        first = scrapers.submit(request, page_server)
        assert begun.acquire(timeout=PATIENCE_S)
        recorded[0] = 2
        later = [scrapers.submit(request, page_server) for _ in range(2)]
        wait_for_sharers(page_server, 3)
        go_on.release(2)
        assert first.result()[1] == b"records 1\n"
        assert [each.result()[1] for each in later] == [b"records 2\n"] * 2
        assert begun.acquire(timeout=PATIENCE_S)
        assert not begun.acquire(blocking=False), "the two shared one"


def test_each_format_is_made_on_its_own():
    """Who wants text does not get, nor wait for, the OpenMetrics of another."""
    text, openmetrics = Gate(SMALL), Gate(Page(b"# EOF\n", OPENMETRICS))
    openmetrics.is_open.clear()
    text.is_open.set()

    def page(accept):
        return (openmetrics if "openmetrics" in accept else text)(accept)

    with serving(page) as page_server, ThreadPoolExecutor(1) as scraper:
        other = scraper.submit(request, page_server, Accept=PROMETHEUS_3)
        eventually(lambda: openmetrics.accepts)
        assert request(page_server, Accept="text/plain")[1] == SMALL.body
        assert not other.done()
        openmetrics.is_open.set()
        assert other.result()[1] == b"# EOF\n"


def test_a_shared_page_is_compressed_once(monkeypatch):
    """Those who share a rendering share its compressed form too."""
    compressions, compress = [], gzip.compress
    monkeypatch.setattr(gzip, "compress", lambda *a, **k: compressions.append(1) or compress(*a, **k))
    gate = Gate(LARGE)
    with serving(gate) as page_server, ThreadPoolExecutor(20) as scrapers:
        ask = [scrapers.submit(request, page_server, Accept_Encoding="gzip") for _ in range(20)]
        wait_for_sharers(page_server, 20)
        gate.is_open.set()
        assert {gzip.decompress(each.result()[1]) for each in ask} == {LARGE.body}
    assert len(gate.accepts) == len(compressions) == 2


def test_a_failure_is_shared(caplog):
    """A page that cannot be made is a 503 for all who share it, without another attempt for each."""
    gate = Gate(RuntimeError("no page today"))
    with serving(gate) as page_server, ThreadPoolExecutor(20) as scrapers:
        ask = [scrapers.submit(request, page_server) for _ in range(20)]
        wait_for_sharers(page_server, 20)
        gate.is_open.set()
        assert {each.result()[0].status for each in ask} == {503}
    assert len(gate.accepts) == 2
    assert caplog.text.count("could not be made") == 1


def test_nobody_waits_for_ever_for_what_another_begins(monkeypatch):
    """Who shares a rendering that does not begin, or does not end, is given none when its time is over."""
    gate = Gate()
    renderings = sharing.Renderings(gate)
    with ThreadPoolExecutor(2) as scrapers:
        first = scrapers.submit(renderings.share, TEXT, None)
        eventually(lambda: gate.accepts)
        second = scrapers.submit(renderings.share, TEXT, None)
        eventually(lambda: renderings._next)
        monkeypatch.setattr(sharing, "PATIENCE_S", 0.01)
        assert renderings.share(TEXT, None) is None
        gate.is_open.set()
        assert first.result().page is second.result().page is SMALL


def test_nobody_waits_for_ever_for_a_page_that_hangs(monkeypatch):
    """While a rendering hangs, those who wait for the next are told 503 when their time is over."""
    monkeypatch.setattr(sharing, "PATIENCE_S", 0.1)
    gate = Gate()
    with serving(gate) as page_server, ThreadPoolExecutor(4) as scrapers:
        first = scrapers.submit(request, page_server)
        eventually(lambda: gate.accepts)
        waiting = [scrapers.submit(request, page_server) for _ in range(3)]
        assert {each.result()[0].status for each in waiting} == {503}
        gate.is_open.set()
        assert first.result()[0].status == 200
        assert request(page_server)[0].status == 200


def test_many_scrapers_at_a_time_are_all_answered():
    """Scrapes that come together are each answered in full."""
    with serving() as page_server, ThreadPoolExecutor(8) as scrapers:
        bodies = list(scrapers.map(lambda _: request(page_server)[1], range(100)))
    assert bodies == [LARGE.body] * 100


def test_where_no_thread_can_be_had_the_connection_is_closed_and_forgotten(monkeypatch):
    """A process that is out of threads refuses a scrape, and answers again as soon as it has one."""
    start = threading.Thread.start
    refuses = threading.Event()

    def start_unless_refused(thread):
        if refuses.is_set() and thread.name == REQUEST_THREAD:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_unless_refused)
    with serving() as page_server:
        refuses.set()
        for _ in range(connections.MOST_CONNECTIONS + 1):
            with connect(page_server) as connection:
                assert everything(connection) == b""
        assert not len(page_server._connections)
        refuses.clear()
        assert request(page_server)[0].status == 200


def test_a_process_without_threads_goes_on_without_the_page(monkeypatch, caplog):
    """Where not even the server's own thread can be started that is said, and the port is free."""
    page_server = PageServer(small, "127.0.0.1", 0)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        page_server.start()
    assert "no thread can be started" in caplog.text
    assert page_server._listener is None
    page_server.stop(PATIENCE_S)


@pytest.mark.stress
def test_a_process_out_of_files_does_not_spin_and_serves_again():
    """Without a file descriptor for a client the server waits instead of burning a CPU, says so once, and recovers."""
    script = """
        import logging, os, resource, socket, sys, time
        from otel_mlops.sdk.page import Page
        from otel_mlops.sdk.server import PageServer
        logging.basicConfig(stream=sys.stdout)
        page_server = PageServer(lambda accept: Page(b"up 1\\n", "text/plain"), "127.0.0.1", 0)
        page_server.start()
        assert page_server.serving.wait(10)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        client = socket.socket()
        held = []
        try:
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        client.connect(("127.0.0.1", page_server.port))
        client.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
        before_s = time.process_time()
        time.sleep(0.6)
        print("cpu", time.process_time() - before_s)
        for each in held:
            os.close(each)
        client.settimeout(10)
        print(client.recv(100))
        page_server.stop(10)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.count("no connection to the page can be taken") == 1
    assert float(done.stdout.partition("cpu ")[2].split()[0]) < 0.2
    assert "200 OK" in done.stdout


# --- The port ----------------------------------------------------------------------------------------------


def test_a_taken_port_is_said_once_and_served_as_soon_as_it_is_free(monkeypatch, caplog):
    """One error names the port and the way out; the page is there as soon as the other program is gone."""
    monkeypatch.setattr(server, "_QUIET_S", 0.0)
    monkeypatch.setattr(server, "_QUICK_RETRY_S", 0.02)
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with serving(port=port) as page_server:
            looks = []
            look = page_server._listen
            page_server._listen = lambda: looks.append(None) or look()
            eventually(lambda: len(looks) > 3)
            assert not page_server.serving.is_set()
            other.close()
            assert page_server.serving.wait(PATIENCE_S)
            assert request(page_server)[0].status == 200
            assert page_server.fault is None
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert f"port {port}" in errors[0]
    assert "OTEL_EXPORTER_PROMETHEUS_PORT" in errors[0]
    assert f"served on http://127.0.0.1:{port}/metrics now" in caplog.text


def test_taking_over_a_port_is_quick_and_no_fault(caplog):
    """A port that is free within a moment is served within a fraction of a second, and nothing is said."""
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as other:
        page_server = PageServer(small, "127.0.0.1", other.getsockname()[1])
        page_server.start()
        assert not page_server.serving.wait(0.15)
        assert page_server.fault is None
    try:
        began_s = time.monotonic()
        assert page_server.serving.wait(PATIENCE_S)
        assert time.monotonic() - began_s < 1.0
        assert request(page_server)[0].status == 200
    finally:
        page_server.stop(PATIENCE_S)
    assert not caplog.records


def test_a_port_that_stays_taken_is_tried_ever_more_seldom(monkeypatch):
    """After the first seconds of trying often, a port is tried once a second."""
    waits = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        page_server = PageServer(small, "127.0.0.1", other.getsockname()[1])
        page_server._since_s = time.monotonic()

        class Stopping(threading.Event):
            def wait(self, timeout=None):
                waits.append(timeout)
                if len(waits) == 2:
                    page_server._since_s -= 5.0
                return len(waits) == 4

        page_server._run(Stopping(), None)
    assert waits == [0.1, 0.1, 1.0, 1.0]


# --- A socket that others have as well ---------------------------------------------------------------------


def test_while_it_pauses_clients_queue_for_the_next_who_accepts():
    """A paused server keeps its socket: who connects waits there, and is served when it goes on."""
    page_server = PageServer(large, "127.0.0.1", 0)
    page_server.start()
    try:
        assert page_server.serving.wait(PATIENCE_S)
        listener, port = page_server.listener, page_server.port
        page_server.pause()
        assert not page_server.serving.is_set()
        assert not any(thread.name == "otel-mlops-page" for thread in threading.enumerate())
        with connect(page_server) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            client.settimeout(0.05)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(PATIENCE_S)
            page_server.start()
            assert (page_server.listener, page_server.port) == (listener, port)
            assert everything(client).endswith(LARGE.body)
    finally:
        page_server.stop(PATIENCE_S)
    assert page_server.listener is None


def test_a_request_that_is_being_answered_outlives_a_pause():
    """Pausing takes nothing from who has been let in."""
    gate = Gate(LARGE)
    with serving(gate) as page_server, connect(page_server) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        eventually(lambda: gate.accepts)
        page_server.pause()
        gate.is_open.set()
        assert everything(client).endswith(LARGE.body)


def test_a_paused_server_that_stops_frees_the_port():
    """After pause and stop another can listen there."""
    with serving() as page_server:
        page_server.pause()
        page_server.stop(PATIENCE_S)
        with socket.create_server(("127.0.0.1", page_server.port)):
            pass


def test_it_accepts_on_a_socket_that_it_is_given():
    """With a socket it binds nothing, and its port is the socket's."""
    listener = socket.create_server(("127.0.0.1", 0))
    page_server = PageServer(large, "127.0.0.1", 1)
    page_server.start(listener)
    try:
        assert page_server.serving.wait(PATIENCE_S)
        assert page_server.port == listener.getsockname()[1]
        assert page_server.listener is listener
        assert listener.gettimeout() == 0, "another process may take who comes: accept() must not wait"
        assert request(page_server)[1] == LARGE.body
    finally:
        page_server.stop(PATIENCE_S)
    assert listener.fileno() == -1


@pytest.mark.stress
def test_two_processes_take_turns_on_one_socket():
    """Of two who have a socket, one serves on while the other accepts, pauses and stops; no client is lost."""
    script = """
        import socket, sys
        from otel_mlops.sdk.page import Page
        from otel_mlops.sdk.server import PageServer
        listener = socket.socket(fileno=int(sys.argv[1]))
        page_server = PageServer(lambda accept: Page(b"child 1\\n", "text/plain"), "127.0.0.1", 0)
        orders = {"start": lambda: page_server.start(None if page_server.listener else listener),
                  "pause": page_server.pause, "stop": lambda: page_server.stop(10)}
        for line in sys.stdin:
            orders[line.strip()]()
            print("done", flush=True)
    """
    with serving(small) as page_server:
        inherited = page_server.listener.fileno()
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(inherited)],
            pass_fds=[inherited], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

        def order(what):
            child.stdin.write(f"{what}\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"

        def answers(count=20):
            return {request(page_server)[1] for _ in range(count)}

        try:
            order("start")
            with ThreadPoolExecutor(4) as scrapers:
                both = set(scrapers.map(lambda _: request(page_server)[1], range(200)))
            assert both <= {SMALL.body, b"child 1\n"}
            page_server.pause()
            assert answers() == {b"child 1\n"}
            order("pause")
            page_server.start()
            assert answers() == {SMALL.body}
            order("start")
            page_server.pause()
            assert answers() == {b"child 1\n"}
            page_server.start()
            order("stop")
            assert answers() == {SMALL.body}
        finally:
            child.kill()
            child.communicate()


def test_an_address_that_is_not_this_machines_is_said(caplog):
    """A host on which nothing can listen is an error in the log with the reason, not an exception."""
    with serving(host="192.0.2.1", port=8001) as page_server:
        assert "192.0.2.1 port 8001" in caplog.text
        assert page_server.fault is not None


def test_a_port_that_stays_taken_ends_with_the_server(monkeypatch):
    """Stopping ends the waiting for a port as well, at once."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        page_server = PageServer(small, "127.0.0.1", other.getsockname()[1])
        page_server.start()
        began_s = time.monotonic()
        page_server.stop(PATIENCE_S)
        assert time.monotonic() - began_s < 0.5
        assert not page_server.serving.is_set()


def test_stopping_frees_the_port_at_once_whoever_is_connected():
    """With clients connected and a page that hangs the port is free for another as soon as stop() returns."""
    is_being_made, go_on = threading.Event(), threading.Event()

    def page(accept):
        is_being_made.set()
        go_on.wait(PATIENCE_S)
        return SMALL

    with serving(page) as page_server, connect(page_server), connect(page_server) as asking:
        asking.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        port = page_server.port
        assert is_being_made.wait(PATIENCE_S)
        began_s = time.monotonic()
        page_server.stop(PATIENCE_S)
        took_s = time.monotonic() - began_s
        with serving(port=port) as next_server:
            assert next_server.fault is None
            assert request(next_server)[0].status == 200
        go_on.set()
        assert everything(asking).endswith(SMALL.body), "a page that is being made is still sent"
        eventually(lambda: request_threads() == 0)
    assert took_s < 0.5


def test_stopping_right_after_starting_never_hangs():
    """However early it is stopped, the server ends and leaves neither thread nor port."""
    page_server = PageServer(small, "127.0.0.1", 0)
    for _ in range(50):
        page_server.start()
        port = page_server.port
        page_server.stop(PATIENCE_S)
        with socket.create_server(("127.0.0.1", port)):
            pass
    assert not any(thread.name == "otel-mlops-page" for thread in threading.enumerate())


def test_it_starts_and_stops_any_number_of_times():
    """A second start or stop does nothing, and a server that was stopped serves again."""
    page_server = PageServer(small, "127.0.0.1", 0)
    page_server.stop(0.1)
    for _ in range(2):
        page_server.start()
        port = page_server.port
        page_server.start()
        assert page_server.port == port
        assert page_server.serving.wait(PATIENCE_S)
        assert request(page_server)[0].status == 200
        page_server.stop(PATIENCE_S)
        page_server.stop(PATIENCE_S)
        assert not page_server.serving.is_set()


def test_a_forked_child_does_not_hold_the_port():
    """While a child lives that was forked as the page was served, the port is free once the parent has stopped."""
    reading, writing = os.pipe()
    with serving() as page_server:
        port = page_server.port
        child = os.fork()
        if child == 0:
            page_server.after_fork()
            os.write(writing, b"x")
            signal.pause()
            os._exit(1)
        try:
            assert os.read(reading, 1) == b"x"
            assert request(page_server)[0].status == 200, "the parent serves on"
            page_server.stop(PATIENCE_S)
            with socket.create_server(("127.0.0.1", port)):
                pass
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reading)
            os.close(writing)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8001/metrics"),
        ("0.0.0.0", "http://127.0.0.1:8001/metrics"),
        ("::", "http://[::1]:8001/metrics"),
        ("::1", "http://[::1]:8001/metrics"),
        ("localhost", "http://localhost:8001/metrics"),
    ],
)
def test_the_url_can_be_opened_on_this_machine(host, url):
    """The URL names an address that a browser here can reach, with IPv6 in brackets."""
    assert PageServer(small, host, 8001).url == url


@pytest.mark.parametrize(("host", "reached_at"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])])
def test_ipv6_is_served(host, reached_at):
    """An IPv6 address is served, and `::` to IPv4 clients too; without IPv6 that is a fault like any other."""
    with serving(host=host) as page_server:
        if has_ipv6():
            assert [request(page_server, host=each)[0].status for each in reached_at] == [200] * len(reached_at)
        else:
            assert page_server.fault is not None


def test_a_name_means_its_ipv4_address():
    """`localhost` is 127.0.0.1, where scrapers look, whatever else it is."""
    with serving(host="localhost") as page_server:
        assert request(page_server, host="127.0.0.1")[0].status == 200


def has_ipv6() -> bool:
    """Whether this machine's loopback has IPv6."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
