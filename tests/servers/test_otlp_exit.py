"""How long a Collector that is not well delays the end of a service that pushes to it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.servers.service import CLEAN

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
started = time.monotonic()
if ends == "shutdown":
    call_within(2, lambda: meters.shutdown(timeout_millis=2000), tracers.shutdown)
print("ended", time.monotonic() - started, time.monotonic(), flush=True)
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


@dataclass
class Run:
    """A run of the service."""

    recording_s: float
    ending_s: float
    """What its shutdown took."""
    exiting_s: float
    """What the interpreter took after that."""
    log: str


def run_service(url: str, came: threading.Event | None, *, ends: str, interval_s: float = 0.05) -> Run:
    """Run the service; it ends once a connection has come, where one is expected."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVICE, url, ends, str(interval_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=CLEAN,
    ) as process:
        try:
            recording_s = float(process.stdout.readline().split()[1])
            if came is not None:
                assert came.wait(20)  # an export is on its way
            process.stdin.write("\n")
            process.stdin.flush()
            ending_s, ended_at = map(float, process.stdout.readline().split()[1:])
            _, log = process.communicate(timeout=20)
            exiting_s = time.monotonic() - ended_at
            assert process.returncode == 0, log
            return Run(recording_s, ending_s, exiting_s, log)
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
MOST_S = 2.3  # 2 s, and what a machine that does other things adds
AT_ONCE_S = 1.5
TEARDOWN_S = 1.5  # no thread is waited for


@pytest.mark.parametrize("sickness", SICK)
def test_a_sick_collector_delays_the_exit_by_two_seconds_at_most(sickness: str):
    """Whatever the Collector does, a shutdown takes 2 s at most, and far less where it is refused."""
    with collector(SICK[sickness]) as (url, came):
        run = run_service(url, came if SICK[sickness] else None, ends="shutdown")

    assert run.ending_s < (AT_ONCE_S if sickness in ENDS_AT_ONCE else MOST_S), run
    assert run.exiting_s < TEARDOWN_S, run
    assert run.recording_s < 2.0, run  # 3000 requests, more spans than the queue holds
    assert run.log.count("metrics do not reach") == 1, run
    assert run.log.count("traces do not reach") == 1, run
    assert "Traceback" not in run.log


def test_without_a_shutdown_nothing_keeps_the_process():
    """A process that just ends does so at once, though its exports hang."""
    with collector(silent) as (url, came):
        run = run_service(url, came, ends="just so")

    assert run.exiting_s < TEARDOWN_S, run


def test_the_last_export_ends_in_time_to_say_so():
    """An export that begins with the shutdown and gets no answer is in the log."""
    with collector(silent) as (url, _):
        run = run_service(url, None, ends="shutdown", interval_s=3600)

    assert run.ending_s < MOST_S, run
    assert run.log.count("metrics do not reach") == 1, run


def test_a_slow_collector_gets_what_is_left():
    """What a Collector can take within the time is not given up."""
    connections: list[float] = []
    behave = answering("200 OK", after_s=0.1)

    def counting(connection: socket.socket) -> None:
        connections.append(time.monotonic())
        behave(connection)

    with collector(counting) as (url, _):
        run = run_service(url, None, ends="shutdown", interval_s=3600)

    assert run.ending_s < MOST_S, run
    assert len(connections) >= 2  # of the metrics and of the traces
    assert "reach" not in run.log
    assert "still waited" not in run.log
