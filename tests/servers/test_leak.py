"""A client that makes things up: paths, methods and hosts without end leave neither series nor memory behind."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.servers.service import Service, get, running

SERVICE = """
    from fastapi import FastAPI, HTTPException
    from otel_mlops import configure_telemetry

    app = FastAPI(title="housing")
    telemetry = configure_telemetry(app)

    @app.get("/items/{item_id}")
    async def item(item_id: str) -> str:
        return item_id

    @app.get("/fails/{item_id}")
    async def fails(item_id: str) -> None:
        raise HTTPException(503, item_id)
"""

REQUESTS = 10_000
PATHS = 5_000
METHODS = 500
HOSTS = 500
PIPELINED = 50
MOST_GROWTH_BYTES = 3_000_000
"""Measured are 0.5 MB; to keep as little as 300 bytes of each request would show."""

KNOWN = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY", "_OTHER"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose server takes every method that the grammar allows."""
    here = {"OTEL_MLOPS_PAGE_PROCESS": "false"}  # two pages in a row are to come from one process
    with running(SERVICE, tmp_path_factory.mktemp("leak"), arguments=["--http", "h11"], **here) as service:
        yield service


def made_up(first: int, count: int) -> Iterator[bytes]:
    """Requests of a client that makes things up."""
    for number in range(first, first + count):
        path = f"/{('items', 'nowhere', 'fails')[number % 3]}/made-up-path-{number % PATHS}?query={number}"
        method = "GET" if number % 2 else f"MADEUP{number % METHODS}"
        yield f"{method} {path} HTTP/1.1\r\nHost: made-up-host-{number % HOSTS}.test\r\n\r\n".encode()


def send(service: Service, requests: Iterator[bytes]) -> Counter[bytes]:
    """Send requests over one connection, some at a time, and count the statuses."""
    statuses: Counter[bytes] = Counter()
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        answers = connection.makefile("rb")
        while batch := list(islice(requests, PIPELINED)):
            connection.sendall(b"".join(batch))
            for _ in batch:
                statuses[answers.readline().split()[1]] += 1
                length = 0
                while (line := answers.readline()) != b"\r\n":
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                answers.read(length)
    return statuses


def series(service: Service) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Every series on the page, but what a page says of the one before it, and what the machine says a while later."""
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in text_string_to_metric_families(get(service.page_url)[0])
        for sample in family.samples
        if not sample.name.startswith(("otel_mlops_page", "system_", "container_", "process_"))
    }


def test_made_up_paths_methods_and_hosts_leave_nothing(service):
    """After 10,000 requests of 5,000 paths, 500 methods and 500 hosts there are as many series as after the first."""
    process = psutil.Process(service.process.pid)
    sent = send(service, made_up(0, 3_000))
    before, before_bytes = series(service), process.memory_info().rss
    sent += send(service, made_up(3_000, REQUESTS))
    after, after_bytes = series(service), process.memory_info().rss

    assert sent.keys() == {b"200", b"404", b"405", b"503"}
    assert after == before
    assert after_bytes - before_bytes < MOST_GROWTH_BYTES
    requests = [dict(labels) for name, labels in after if name == "api_requests_total"]
    assert {each["endpoint"] for each in requests} == {"/items/{item_id}", "/fails/{item_id}", "unmatched"}
    assert {each["method"] for each in requests} <= KNOWN
    assert len(requests) < 20
    assert len(after) < 500
    assert not re.search(r"made-up|MADEUP|query=", get(service.page_url)[0])
    counted = re.findall(r"^api_requests_total{.*} (\d+)", get(service.page_url)[0], re.MULTILINE)
    assert sum(map(int, counted)) == sum(sent.values()) == REQUESTS + 3_000
