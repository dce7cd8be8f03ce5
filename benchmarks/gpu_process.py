"""One process beside the pretended NVIDIA driver: what a contender's scrape costs it, and what it shows in trouble.

Run by benchmarks/gpu.py in an interpreter of the contender's own, which may have neither this package nor ours.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, NamedTuple

LOST = 15
"""NVML's code of a GPU that does not answer any more."""

GPUS = "NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 2080"
"""What the two GPUs are called."""

POWER = re.compile("gpu_power_(usage|draw)")
"""The name of a power reading, whoever calls it what."""

SERIES = 1_000
"""About so many samples has a page besides: that of a service with a few models and routes."""

WAITING = b"nvmlEventSetWait_v2"
"""The call in which a thread waits for the driver's events: it comes with the clock, not with what is measured."""


class FakeDriver:
    """The pretended driver that this process has loaded, and what can be done to it."""

    def __init__(self) -> None:
        self._library = library = ctypes.CDLL("libnvidia-ml.so.1")
        library.fake_calls.restype = library.fake_clock_us.restype = ctypes.c_uint64
        library.fake_advance.argtypes = (ctypes.c_double,)
        library.fake_set_number.argtypes = ctypes.c_int, ctypes.c_char_p, ctypes.c_double

    @property
    def calls(self) -> int:
        """How often it was called."""
        return int(self._library.fake_calls(None, -1) - self._library.fake_calls(WAITING, -1))

    def clock(self) -> float:
        """Its clock in seconds."""
        return float(self._library.fake_clock_us() / 1e6)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._library.fake_advance(seconds)

    def lose(self, gpu: int) -> None:
        """Let a GPU fall off the bus."""
        self._library.fake_fail(b"*", gpu, LOST)

    def have_no_power(self, gpu: int) -> None:
        """Let a GPU not support the reading of its power."""
        self._library.fake_set_number(gpu, b"power_mw", float("nan"))


class Contender(NamedTuple):
    """One that shows GPUs to Prometheus."""

    read: Callable[[], object]
    """A round of reading the driver, where that is not done by the scrape."""
    page: Callable[[], str]
    """A scrape."""


def open_source(driver: FakeDriver) -> Any:
    """Our source on the driver's own clock, so that nothing is due while that stands."""
    from otel_mlops.sources.nvidia import open_nvidia

    return open_nvidia(environ={}, clock=driver.clock)


@contextmanager
def ours(driver: FakeDriver) -> Iterator[Contender]:
    """Our source behind our sampler, and our page."""
    from otel_mlops.testing import fresh_telemetry

    source = open_source(driver)
    with fresh_telemetry(sources={"nvidia": source}) as telemetry:

        def page() -> str:
            body: bytes = telemetry.page().body
            return body.decode()

        yield Contender(telemetry.sample, page)
        source.close()


@contextmanager
def openlit(_driver: FakeDriver) -> Iterator[Contender]:
    """OpenLIT's GPU metrics behind OpenTelemetry's exporter: its callbacks ask the driver."""
    client, metrics = import_module("prometheus_client"), import_module("opentelemetry.metrics")
    registry = client.CollectorRegistry()
    reader = import_module("opentelemetry.exporter.prometheus").PrometheusMetricReader(registry=registry)
    metrics.set_meter_provider(import_module("opentelemetry.sdk.metrics").MeterProvider(metric_readers=[reader]))
    import_module("openlit.instrumentation.gpu").GPUInstrumentor().instrument()
    yield Contender(lambda: None, lambda: str(client.generate_latest(registry).decode()))


@contextmanager
def nvitop(_driver: FakeDriver) -> Iterator[Contender]:
    """nvitop-exporter, whose loop reads the GPUs each second."""
    client = import_module("prometheus_client")
    registry, devices = client.CollectorRegistry(), import_module("nvitop").Device.all()
    exporter = import_module("nvitop_exporter.exporter").PrometheusExporter(devices, hostname="x", registry=registry)

    def read() -> None:
        for device in devices:
            exporter.update_device(device)

    yield Contender(read, lambda: str(client.generate_latest(registry).decode()))


CONTENDERS = {"ours": ours, "openlit": openlit, "nvitop": nvitop}


def cost(driver: FakeDriver, work: Callable[[], object], rounds: int) -> dict[str, float]:
    """The CPU time of a piece of work in the best of the rounds, and how often it calls the driver."""
    best, before = float("inf"), driver.calls
    for _ in range(rounds):
        best = min(best, cpu_s(work))
    return {"cpu_s": best, "calls": (driver.calls - before) / rounds}


def cpu_s(work: Callable[[], object]) -> float:
    """The CPU seconds that a piece of work takes in this thread."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def series_of(page: str, gpu: str) -> int:
    """How many series with a value a GPU has, by the name under which all show it."""
    return sum(gpu in line and not line.startswith("#") and not line.endswith(" NaN") for line in page.splitlines())


def contender(name: str, rounds: int) -> dict[str, object]:
    """What two GPUs cost to read and to scrape, and what is shown when one has no power reading, or one is lost."""
    driver = FakeDriver()
    with CONTENDERS[name](driver) as (read, page):
        for _ in range(2):  # what is read and compiled once
            read()
            page()
            driver.advance(1)
        read()
        reading, scrape = cost(driver, read, rounds), cost(driver, page, rounds)
        shown = sum(series_of(page(), gpu) for gpu in GPUS)
        driver.have_no_power(1)
        read()
        power = [line.rpartition(" ")[2] for line in page().splitlines() if GPUS[1] in line and POWER.match(line)]
        before = series_of(page(), GPUS[1])
        driver.lose(0)
        read()
        gone = before - series_of(page(), GPUS[1])
    return {"reading": reading, "scrape": scrape, "series": shown, "power": power, "healthy": before, "gone": gone}


def sampling(rounds: int) -> dict[str, float]:
    """The CPU seconds that our sampler takes each second: for what it reads each time, and for all in the mean."""
    driver = FakeDriver()
    minute = 60
    with ours(driver) as (read, _page):
        for _ in range(2):
            read()
            driver.advance(1)
        read()
        fast = cost(driver, read, rounds)  # the driver's clock stands: nothing else is due
        everything = float("inf")
        for _ in range(max(1, rounds // 10)):
            spent = 0.0
            for _ in range(minute):
                driver.advance(1)
                spent += cpu_s(read)
            everything = min(everything, spent / minute)
    return {"fast_s": fast["cpu_s"], "calls": fast["calls"], "everything_s": everything}


def page(rounds: int) -> dict[str, float]:
    """What the page of a service costs without GPUs and with them, and how often the driver is called for it."""
    from otel_mlops.testing import fresh_telemetry

    driver = FakeDriver()
    best, calls = {"with": float("inf"), "without": float("inf")}, 0
    with ExitStack() as stack:
        services = {}
        for name in best:
            source = open_source(driver)
            stack.callback(source.close)
            telemetry = stack.enter_context(fresh_telemetry(sources={"nvidia": source} if name == "with" else {}))
            services[name] = telemetry, telemetry.meter.create_histogram("bench.size")
        for number in range(rounds):
            driver.advance(15)
            for name, (telemetry, sizes) in services.items():
                for series in range(SERIES // 18):  # a histogram has so many lines
                    sizes.record(number, {"route": f"/items/{series}"})
                telemetry.sample()
                before, start = driver.calls, time.perf_counter()
                telemetry.page()
                best[name] = min(best[name], time.perf_counter() - start)
                calls += driver.calls - before
    return {"with_s": best["with"], "without_s": best["without"], "calls": calls}


MEASURES: dict[str, Callable[..., object]] = {"contender": contender, "sampling": sampling, "page": page}

if __name__ == "__main__":
    what, *names, turns = sys.argv[1:]
    print(json.dumps(MEASURES[what](*names, int(turns))))
