"""How long a Collector that is not well delays the end of a service that pushes to it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

SERVICE = """
import sys, threading, time
from opentelemetry.sdk.resources import Resource
from otel_mlops.otlp import call_within, open_metric_reader, open_tracer_provider
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.settings import Settings

endpoint, ends, interval_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
settings = Settings(metrics_endpoint=endpoint, traces_endpoint=endpoint, metric_export_interval_s=interval_s)
resource = Resource({"service.name": "exit"})
said = lambda signal: None
reader = open_metric_reader(settings, on_failure=said)
meters = MeterProvider([reader], resource, shutdown_on_exit=False)
tracers = open_tracer_provider(settings, resource, on_failure=said)
counter, tracer = meters.get_meter("m").create_counter("c"), tracers.get_tracer("t")
started = time.monotonic()
for number in range(3000):
    counter.add(1)
    tracer.start_span("s").end()
print("recorded", time.monotonic() - started, flush=True)
sys.stdin.readline()
print("ends", time.monotonic(), flush=True)
if ends == "shutdown":
    call_within(2, lambda: meters.shutdown(timeout_millis=2000), tracers.shutdown)
assert all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())
"""

Behaviour = Callable[[socket.socket], None]


def read_request(connection: socket.socket) -> bool:
    """Read one request; False at the end of the connection."""
    received = b""
    while b"\r\n\r\n" not in received:
        if not (chunk := connection.recv(65536)):
            return False
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    (length,) = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while len(body) < length:
        body += connection.recv(65536)
    return True


def answering(status: str, after_s: float = 0.0, headers: str = "") -> Behaviour:
    """A Collector that gives the same answer to everything, after a while."""

    def behave(connection: socket.socket) -> None:
        while read_request(connection):
            time.sleep(after_s)
            connection.sendall(f"HTTP/1.1 {status}\r\n{headers}Content-Length: 0\r\n\r\n".encode())

    return behave


def silent(connection: socket.socket) -> None:
    """A Collector that takes the request and never says a word."""
    while connection.recv(65536):
        ...


def dripping(connection: socket.socket) -> None:
    """A Collector whose answer comes byte by byte, and never ends."""
    while True:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: " if read_request(connection) else b"")
        while True:
            connection.sendall(b"x")
            time.sleep(0.1)


@contextmanager
def collector(behave: Behaviour | None) -> Iterator[tuple[str, threading.Event]]:
    """A listener's URL, and an event that tells of the first connection; None for nobody who listens."""
    came = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def serve(connection: socket.socket) -> None:
        came.set()
        with connection:
            try:
                behave(connection)
            except OSError:
                return  # the service has ended

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    if behave is None:
        listener.close()
    else:
        threading.Thread(target=accept, daemon=True).start()
    try:
        yield url, came
    finally:
        if behave is not None:
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def exit_delay_s(
    url: str, came: threading.Event | None, *, ends: str, interval_s: float = 0.05
) -> tuple[float, float, str]:
    """Run the service; the seconds it took to record, those from its end to its exit, and what it logged."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    with subprocess.Popen(
        [sys.executable, "-c", SERVICE, url, ends, str(interval_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            recorded_s = float(process.stdout.readline().split()[1])
            if came is not None:
                assert came.wait(20)  # an export is on its way
            process.stdin.write("\n")
            process.stdin.flush()
            ended_at = float(process.stdout.readline().split()[1])
            _, log = process.communicate(timeout=20)
            delay_s = time.monotonic() - ended_at
            assert process.returncode == 0, log
            return recorded_s, delay_s, log
        finally:
            process.kill()


SICK = {
    "silent": silent,
    "dripping": dripping,
    "slow": answering("200 OK", after_s=5),
    "refusing": None,
    "busy": answering("503 Service Unavailable"),
    "busy for long": answering("503 Service Unavailable", headers="Retry-After: 3\r\n"),
}
ENDS_AT_ONCE = {"refusing", "busy", "busy for long"}


@pytest.mark.parametrize("sickness", SICK)
def test_a_sick_collector_delays_the_exit_by_two_seconds_at_most(sickness: str):
    """Whatever the Collector does, the process ends in 2 s after the shutdown began; at once where it is refused."""
    with collector(SICK[sickness]) as (url, came):
        recorded_s, delay_s, log = exit_delay_s(url, came if SICK[sickness] else None, ends="shutdown")

    print(f"{sickness}: {delay_s:.2f} s, recorded in {recorded_s:.3f} s; {log}")
    assert delay_s < (1.0 if sickness in ENDS_AT_ONCE else 2.5), log
    assert recorded_s < 2.0  # 3000 requests, more than the queue holds
    assert log.count("metrics do not reach") == 1, log
    assert log.count("traces do not reach") == 1, log
    assert "Traceback" not in log


def test_without_a_shutdown_nothing_keeps_the_process():
    """A process that just ends does so at once, though its exports hang."""
    with collector(silent) as (url, came):
        _, delay_s, log = exit_delay_s(url, came, ends="just so")

    assert delay_s < 1.0, log


def test_a_slow_collector_gets_what_is_left():
    """What a Collector can take within the time is not given up."""
    seen: list[float] = []
    behave = answering("200 OK", after_s=0.1)

    def counting(connection: socket.socket) -> None:
        seen.append(time.monotonic())
        behave(connection)

    with collector(counting) as (url, _):
        _, delay_s, log = exit_delay_s(url, None, ends="shutdown", interval_s=3600)

    assert delay_s < 2.5
    assert len(seen) >= 2
    assert "reach" not in log
    assert "still waited" not in log
