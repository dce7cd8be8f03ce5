"""A hostile network against the page's own port: whatever clients do, a scrape is answered and the service is well."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import psutil
import pytest
import trustme

from otel_mlops.sdk.connections import MOST_CONNECTIONS
from tests.servers.service import WAIT_S, Service, listens, running, until

SERVICE = """
    from fastapi import FastAPI
    from otel_mlops import configure_telemetry

    app = FastAPI(title="housing")
    telemetry = configure_telemetry(app, max_series=20_000)
    jobs = telemetry.meter.create_counter("jobs")
    for number in range(10_000):
        jobs.add(1, {"job": f"a job with quite a long name, as jobs of larger firms tend to have: {number:06}"})
"""

ANSWER_S = 0.5
"""Within this a scrape is answered whatever is going on: the best of a few, as the machine has other things to do."""

TRIES = 8
MOST_FURTHER_THREADS = MOST_CONNECTIONS + 8
MOST_FURTHER_BYTES = 160 * 1024 * 1024
"""64 MiB of pages for slow readers, what they are made of, and what the allocator keeps of it."""


@contextmanager
def attacked(folder: Path, *, page_process: bool, **environment: str) -> Iterator[Service]:
    """A service with a page of a megabyte, which it serves itself or has a process for."""
    environment["OTEL_MLOPS_PAGE_PROCESS"] = str(page_process).lower()
    with running(SERVICE, folder, **environment) as service:
        until(lambda: listens(service.page_port) and len(processes(service)) == 1 + page_process)
        threads_at_rest(service)
        yield service


@pytest.fixture(scope="module", params=[False, True], ids=["the service's", "a process of its own"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose page is served in plain HTTP."""
    with attacked(tmp_path_factory.mktemp("hostile"), page_process=request.param) as service:
        yield service


class Secured(NamedTuple):
    """A service whose page is behind TLS, and what a client needs to trust it."""

    service: Service
    context: ssl.SSLContext


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """The same service with TLS."""
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    config = folder / "web.config.yml"
    config.write_text("tls_server_config: {cert_file: both.pem, key_file: both.pem}\n")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with attacked(folder, page_process=False, OTEL_MLOPS_WEB_CONFIG_FILE=str(config)) as service:
        yield Secured(service, context)


def scrape(service: Service, context: ssl.SSLContext | None = None) -> str:
    """The page, as Prometheus gets it."""
    url = service.page_url if context is None else service.page_url.replace("http:", "https:")
    with urlopen(url, timeout=WAIT_S, context=context) as response:
        assert response.status == 200
        return response.read().decode()


def best_time_s(service: Service, context: ssl.SSLContext | None = None) -> float:
    """How long a scrape takes; nothing is said of one that the machine had no time for."""
    best_s = WAIT_S
    for _ in range(TRIES):
        began_s = time.monotonic()
        assert "jobs_total" in scrape(service, context)
        best_s = min(best_s, time.monotonic() - began_s)
        if best_s < ANSWER_S:
            break
    return best_s


def refused(service: Service, reason: str, context: ssl.SSLContext | None = None) -> float:
    """How many clients the page's port has sent away for a reason."""
    line = rf'^otel_mlops_page_refused_total{{cause="{reason}"}} (\S+)'
    found = re.search(line, scrape(service, context), re.MULTILINE)
    return float(found[1]) if found else 0.0


def processes(service: Service) -> list[psutil.Process]:
    """The service's process, and the page's own where it has one."""
    process = psutil.Process(service.process.pid)
    return [process, *process.children()]


def threads_of(service: Service) -> int:
    """How many threads there are."""
    return sum(process.num_threads() for process in processes(service))


def files(service: Service) -> int:
    """How many files and sockets are open."""
    return sum(process.num_fds() for process in processes(service))


def memory_of(service: Service) -> int:
    """How much memory is in use, in bytes."""
    return sum(process.memory_info().rss for process in processes(service))


def threads_at_rest(service: Service) -> int:
    """How many threads there are once those of the requests before have ended: as many for half a second."""
    counts = [threads_of(service)]

    def is_at_rest() -> bool:
        counts.append(threads_of(service))
        return len(set(counts[-10:])) == 1 and len(counts) > 10

    until(is_at_rest)
    return counts[-1]


@contextmanager
def unharmed(service: Service, context: ssl.SSLContext | None = None) -> Iterator[None]:
    """The block attacks: threads, files and memory stay within bounds, and threads and files come back afterwards."""
    scrape(service, context)
    threads, memory, opened = threads_at_rest(service), memory_of(service), files(service)
    yield
    assert threads_of(service) <= threads + MOST_FURTHER_THREADS
    assert files(service) <= opened + MOST_FURTHER_THREADS
    assert memory_of(service) - memory < MOST_FURTHER_BYTES


def settled(service: Service, threads: int) -> None:
    """After an attack the service has no more threads than before it, but for those that its pools keep."""
    until(lambda: threads_of(service) <= threads + 2)


def connect(service: Service, receive_bytes: int | None = None) -> socket.socket:
    """A raw connection to the page's port."""
    client = socket.socket()
    if receive_bytes:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.settimeout(WAIT_S)
    client.connect(("127.0.0.1", service.page_port))
    return client


def answer_to(service: Service, data: bytes) -> bytes:
    """What comes back for some bytes."""
    parts = []
    with connect(service) as client, suppress(ConnectionError):
        client.sendall(data)
        while part := client.recv(65_536):
            parts.append(part)
    return b"".join(parts)


HALVES = [b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Half", b"GET /metr", b"G"]


@pytest.mark.parametrize(
    ("count", "said"),
    [(200, [b""]), (60, HALVES), (200, [*HALVES, b""])],
    ids=["idle", "half a request", "both"],
)
def test_who_connects_and_says_nothing_or_half_keeps_nobody_out(service: Service, count: int, said: list[bytes]):
    """With hundreds of clients that ask nothing, or not to the end, a scrape is answered at once, in few threads."""
    threads, busy = threads_at_rest(service), refused(service, "busy")
    with unharmed(service), ExitStack() as stack:
        for number in range(count):
            client = stack.enter_context(connect(service))
            client.sendall(said[number % len(said)])
        assert best_time_s(service) < ANSWER_S
        assert refused(service, "busy") >= busy + count - 2 * MOST_CONNECTIONS
    settled(service, threads)


def test_who_reads_nothing_keeps_nobody_out(service: Service):
    """With forty clients that ask for the page and do not take it, a scrape is answered, and memory is bounded."""
    threads = threads_at_rest(service)
    with unharmed(service), ExitStack() as stack:
        for _ in range(40):
            client = stack.enter_context(connect(service, receive_bytes=64 * 1024))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: threads_of(service) >= threads + MOST_CONNECTIONS // 2)
        assert best_time_s(service) < ANSWER_S
    settled(service, threads)


def test_fifty_scrapes_at_a_time_are_a_few_renderings(service: Service):
    """Fifty who ask at a time all get a whole page, of which a few are made."""

    def renderings() -> float:
        found = re.search(r"^otel_mlops_page_duration_seconds_count (\S+)", scrape(service), re.MULTILINE)
        assert found
        return float(found[1])

    with unharmed(service), ThreadPoolExecutor(50) as scrapers:
        before = renderings()
        pages = list(scrapers.map(lambda _: scrape(service), range(50)))
        assert {page.count("\njobs_total{") for page in pages} == {10_000}
        assert renderings() - before < 25
    assert best_time_s(service) < ANSWER_S


UNFIT = {
    "a URI of 70 kB": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
    "150 headers of 60 kB": (b"GET / HTTP/1.1\r\n" + (b"X: " + b"a" * 60_000 + b"\r\n") * 150 + b"\r\n", b"431"),
    "TLS": (bytes.fromhex("16030100c8010000c403") + bytes(190) + b"\n", b"400"),
    "zeros": (bytes(100) + b"\n", b"400"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),
    "a large body": (b"POST /metrics HTTP/1.1\r\nContent-Length: 900000\r\n\r\n" + bytes(900_000), b"405"),
    **{
        method: (f"{method} /metrics HTTP/1.1\r\n\r\n".encode(), b"405")
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "FOO", "get")
    },
    "another path": (b"GET /etc/passwd HTTP/1.1\r\n\r\n", b"404"),
    "a way up": (b"GET /metrics/../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
    "another slash": (b"GET /metrics/ HTTP/1.1\r\n\r\n", b"404"),
}


def test_what_is_no_fit_request_gets_the_status_that_says_so(service: Service):
    """Forty times each kind of unfit request: the right status, nothing of what the client sent, no versions."""
    threads, before = threads_at_rest(service), refused(service, "request")
    with unharmed(service), ThreadPoolExecutor(8) as clients:
        for name, (data, status) in UNFIT.items():
            answers = list(clients.map(answer_to, [service] * 40, [data] * 40))
            assert {answer.split(b" ", 2)[1] for answer in answers} == {status}, name
            for telling in (b"aaaa", b"passwd", b"Python", b"BaseHTTP"):
                assert not any(telling in answer for answer in answers), name
        assert best_time_s(service) < ANSWER_S
    assert refused(service, "request") == before + 40 * (len(UNFIT) - 3)
    assert "Traceback" not in service.said()
    settled(service, threads)


def test_silent_tls_clients_keep_nobody_out(secured: Secured):
    """With two hundred clients that hang in the handshake a scrape over TLS is answered at once."""
    service, context = secured.service, secured.context
    threads = threads_at_rest(service)
    with unharmed(service, context), ExitStack() as stack:
        for number in range(200):
            client = stack.enter_context(connect(service))
            client.sendall(b"\x16\x03\x01\x02\x00" * (number % 2))
        assert best_time_s(service, context) < ANSWER_S
    settled(service, threads)
    assert "Traceback" not in service.said()


def test_handshakes_that_fail_are_counted_and_harm_nobody(secured: Secured):
    """Garbage, plain HTTP and clients that do not trust the certificate are counted, and a scrape is answered."""
    service, context = secured.service, secured.context
    before = refused(service, "tls", context)
    with unharmed(service, context):
        for _ in range(20):
            answer_to(service, b"\x16\x03\x01\x00\x05hello")
            assert b"scheme: https" in answer_to(service, b"GET /metrics HTTP/1.1\r\n\r\n")
            with connect(service) as plain, pytest.raises(ssl.SSLError):
                ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")
        assert best_time_s(service, context) < ANSWER_S
        until(lambda: refused(service, "tls", context) == before + 60)


def test_slow_readers_behind_tls_keep_nobody_out(secured: Secured):
    """With forty TLS clients that ask for the page and do not take it, a scrape is answered."""
    service, context = secured.service, secured.context
    threads = threads_at_rest(service)
    with unharmed(service, context), ExitStack() as stack:
        for _ in range(40):
            plain = connect(service, receive_bytes=64 * 1024)
            client = stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert best_time_s(service, context) < ANSWER_S
    settled(service, threads)
    assert "Traceback" not in service.said()
