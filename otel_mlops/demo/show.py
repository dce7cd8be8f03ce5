"""The demo from its start to its end: starts the programs, asks and reads, and leaves nothing running."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Self, TextIO, TypeVar

from otel_mlops import metrics as rows
from otel_mlops.demo import view
from otel_mlops.demo.options import DemoError, Options, check_packages, check_settings, choose_ports
from otel_mlops.demo.processes import Alertmanager, Program, Prometheus, find_alertmanager, find_prometheus
from otel_mlops.demo.readings import Reading, Window, read
from otel_mlops.demo.screen import open_screen
from otel_mlops.demo.traffic import Traffic
from otel_mlops.doctor.network import take_free_ports

T = TypeVar("T")

_START_TIMEOUT_S = 90.0
_SILENCE_TIMEOUT_S = 15.0
_WINDOW_S = 10.0
_SETTLE_TIMEOUT_S = 3.0
_PROMETHEUS_TIMEOUT_S = 10.0


def run(options: Options, out: TextIO) -> None:
    """Run the demo until its time is over or the user ends it; then nothing of it is left.

    Errors:  DemoError that says what is to be done.
    """
    check_packages()
    check_settings()
    with Ending() as ending, ExitStack() as things:
        Demo(choose_ports(options), out, ending, things).run()


class Ending:
    """Whether the user wants it to end: by Ctrl-C, by SIGTERM, or by closing the terminal."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                if (number := getattr(signal, name, None)) is not None:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        # No Event: the main thread may hold its lock at this very moment.
        self.asked = True

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a condition holds, and say whether it does; gives up when the user wants the end."""
        deadline = time.monotonic() + timeout_s
        while not self.asked and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(max(0.0, min(0.1, deadline - time.monotonic())))
        return False


class Demo:
    """One run of the demo."""

    def __init__(self, options: Options, out: TextIO, ending: Ending, things: ExitStack) -> None:
        import httpx

        self._options = options
        self._out = out
        self._ending = ending
        self._things = things
        self._client = things.enter_context(httpx.Client(trust_env=False, timeout=2.0))
        self._folder = Path(things.enter_context(TemporaryDirectory(prefix="otel-mlops-demo-")))
        # Where this machine reaches what listens there.
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)  # noqa: S104 (compared)
        self._here = f"[{here}]" if ":" in here else here
        self.service_url = f"http://{self._here}:{options.port}"
        self.page_url = f"http://{self._here}:{options.page_port}/metrics"

    def run(self) -> None:
        """Run it to its end."""
        self._say("Starting the service, which trains two models …")
        service = self._start_service()
        first = self._wait_for_page(service)
        if first is None:
            self._say("Ended before the service was ready.")
            return
        alertmanager = self._start_alertmanager()
        prometheus = self._start_prometheus(alertmanager)
        traffic = Traffic(self.service_url, self._options.rate)
        self._things.callback(traffic.stop, 0.0)
        began_s = time.monotonic()
        traffic.start()
        self._watch(service, prometheus, first, began_s)
        lasted_s = time.monotonic() - began_s
        traffic.stop(_SETTLE_TIMEOUT_S)
        self._say(f"Ended after {lasted_s:.0f} s.\n")
        self._sum_up(traffic, prometheus)

    def _start_service(self) -> Program:
        options = self._options
        command = [
            sys.executable, "-m", "uvicorn", "otel_mlops.demo.service:app",
            "--host", options.host, "--port", str(options.port),
            "--log-level", "warning", "--no-access-log", "--timeout-graceful-shutdown", "3",
        ]  # fmt: skip
        told = {
            "OTEL_EXPORTER_PROMETHEUS_HOST": options.host,
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(options.page_port),
            # What it leaves there goes with our folder, even if it is killed.
            "TMPDIR": str(self._folder),
        }
        service = Program(command, os.environ | told)
        self._things.callback(service.stop)
        return service

    def _wait_for_page(self, service: Program) -> Reading | None:
        """The first reading, once the service answers; None if the user does not want to wait."""
        readings: list[Reading] = []

        def is_ready() -> bool:
            import httpx

            if service.has_ended():
                raise DemoError(_with_output("the service ended while it started", service))
            # Not there yet.
            with suppress(httpx.HTTPError, ValueError):
                if self._client.get(f"{self.service_url}/health").status_code in (200, 503):
                    readings.append(read(self._client, self.page_url))
            return bool(readings)

        if not self._ending.wait(is_ready, _START_TIMEOUT_S) and not self._ending.asked:
            raise DemoError(_with_output(f"the service did not answer within {_START_TIMEOUT_S:.0f} s", service))
        return readings[0] if readings else None

    def _start_alertmanager(self) -> Alertmanager | None:
        binary = find_alertmanager() if self._options.prometheus else None
        if binary is None:
            return None
        (port,) = take_free_ports(self._options.host, 1)
        alertmanager = Alertmanager([binary, self._listen(port)], self._folder, url=f"http://{self._here}:{port}")
        self._things.callback(alertmanager.program.stop)
        return alertmanager

    def _start_prometheus(self, alertmanager: Alertmanager | None) -> Prometheus | None:
        binary = find_prometheus() if self._options.prometheus else None
        if binary is None:
            return None
        port = self._options.prometheus_port
        prometheus = Prometheus(
            [binary, self._listen(port)],
            self._folder,
            url=f"http://{self._here}:{port}",
            page=f"{self._here}:{self._options.page_port}",
            alertmanager=alertmanager,
        )
        self._things.callback(prometheus.program.stop)
        return prometheus

    def _listen(self, port: int) -> str:
        host = self._options.host
        return f"--web.listen-address={f'[{host}]' if ':' in host else host}:{port}"

    def _watch(self, service: Program, prometheus: Prometheus | None, first: Reading, began_s: float) -> None:
        """Read the page and show what it says until the end."""
        import httpx

        screen = open_screen(self._out, os.environ, self._options.seconds)
        ends_s = began_s + (self._options.seconds or float("inf"))
        readings = deque([first])
        try:
            while not self._ending.asked and (left_s := ends_s - time.monotonic()) > 0:
                self._ending.wait(service.has_ended, min(screen.refresh_s, left_s))
                if service.has_ended():
                    raise DemoError(_with_output("the service has ended", service))
                try:
                    readings.append(read(self._client, self.page_url))
                except (httpx.HTTPError, ValueError) as error:
                    if time.monotonic() - readings[-1].at_s > _SILENCE_TIMEOUT_S:
                        raise DemoError(_with_output(f"the page does not answer: {error}", service)) from None
                    continue
                while len(readings) > 2 and readings[-1].at_s - readings[0].at_s > _WINDOW_S + screen.refresh_s:
                    readings.popleft()
                when = _when(time.monotonic() - began_s, self._options.seconds)
                screen.show(when, list(self._facts(prometheus)), Window(readings[0], readings[-1]))
        finally:
            screen.end()

    def _facts(self, prometheus: Prometheus | None) -> Iterator[str]:
        yield f"  {'service':<12} {self.service_url}/docs"
        yield f"  {'page':<12} {self.page_url}"
        yield f"  {'for people':<12} {self.page_url.removesuffix('metrics')}"
        if prometheus is not None:
            yield f"  {'Prometheus':<12} {_url_or_end(prometheus)}"
            if prometheus.alertmanager is not None:
                yield f"  {'Alertmanager':<12} {_url_or_end(prometheus.alertmanager)}"
            if (alerts := prometheus.alerts(self._client)) is not None:
                yield f"  {'alerts':<12} {', '.join(alerts) or 'none'}"
        elif self._options.prometheus:
            yield f"  {'Prometheus':<12} not found on the PATH"

    def _sum_up(self, traffic: Traffic, prometheus: Prometheus | None) -> None:
        """Say what there was in all, once the page and Prometheus know of the last answer."""
        import httpx

        name = rows.API_REQUESTS.page_name
        asked = traffic.answers.total()
        try:
            reading = _settled(
                lambda: read(self._client, self.page_url), lambda r: r.total(name) >= asked, _SETTLE_TIMEOUT_S
            )
        except (httpx.HTTPError, ValueError) as error:
            raise DemoError(f"the page does not answer: {error}") from None
        for text in view.summary(reading, traffic.answers, traffic.unanswered):
            self._say(text)
        if prometheus is not None:
            self._say_what_it_saw(prometheus, reading.total(name))

    def _say_what_it_saw(self, prometheus: Prometheus, requests: float) -> None:
        requests_query = f"sum({rows.API_REQUESTS.page_name})"
        buckets = f"{rows.PREDICTION_DURATION.page_name}_bucket"
        _settled(
            lambda: prometheus.query(self._client, requests_query),
            lambda seen: seen == requests or prometheus.program.has_ended(),
            _PROMETHEUS_TIMEOUT_S,
        )
        if not prometheus.is_ready(self._client):
            self._say(f"  Prometheus    {_with_output('does not answer', prometheus.program, 1)}")
            return
        title = "Prometheus"
        for query in ("up", requests_query, f"histogram_quantile(0.95, sum by (le) (rate({buckets}[1m])))"):
            value = prometheus.query(self._client, query)
            self._say(f"  {title:<13} {query} == {'nothing yet' if value is None else f'{value:.6g}'}")
            title = ""

    def _say(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()


# --- How things are told ----------------------------------------------------------------------------------


def _settled(get: Callable[[], T], is_settled: Callable[[T], bool], timeout_s: float) -> T:
    """Get something until it is as it should be or the time is over, and return what it was last."""
    deadline = time.monotonic() + timeout_s
    while not is_settled(got := get()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return got


def _url_or_end(server: Prometheus | Alertmanager) -> str:
    """Where a server is, or what it said before it ended."""
    return _with_output("has ended", server.program, 1) if server.program.has_ended() else server.url


def _when(seconds: float, of_seconds: float | None) -> str:
    """The time that has gone by, as a clock shows it."""
    return _clock(seconds) if of_seconds is None else f"{_clock(seconds)} of {_clock(of_seconds)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _with_output(what: str, program: Program, lines: int = 15) -> str:
    """A fault with the last lines that the program wrote."""
    said = program.said(lines)
    if lines == 1:
        return f"{what}: {said[0]}" if said else what
    return "\n".join([f"{what}; the last that it said:" if said else what, *(f"  {text}" for text in said)])
