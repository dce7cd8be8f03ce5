"""The NVIDIA source over the pretended driver, with a clock that stands until it is moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pynvml

from otel_mlops.metrics import GPU_UP, Metric
from otel_mlops.sources.nvidia import open_nvidia
from otel_mlops.sources.nvidia.driver import FAULTS
from otel_mlops.sources.watched import Sample
from tests.nvml.driver import FakeDriver
from tests.sources.contract import Series, series_of


def series(row: Metric, gpu: int | None = 0, name: str = "NVIDIA H100 80GB HBM3", **labels: str) -> Series:
    """A row with the labels of a GPU, and others."""
    if gpu == 1 and name.endswith("HBM3"):
        name = "NVIDIA GeForce RTX 2080"
    own = {} if gpu is None else {"gpu_id": str(gpu), "gpu_name": name}
    return row, frozenset({**own, **labels}.items())


class Altered:
    """pynvml with some names given otherwise; one given as None is missing, as in an older release."""

    def __init__(self, **names: Any):
        self._names = names

    def __getattr__(self, name: str) -> Any:
        if name not in self._names:
            return getattr(pynvml, name)
        if self._names[name] is None:
            raise AttributeError(name)
        return self._names[name]


class NoEvents:
    """In place of the events, for whose thread each closing waits up to a second."""

    def __init__(self, *_world: object):
        self.is_watching = False

    def start(self) -> None:
        self.is_watching = True

    def read(self) -> list[Sample]:
        return []

    def close(self, _timeout_s: float) -> bool:
        self.is_watching = False
        return True


class Machine:
    """A driver, the source that reads it, and what has come of that."""

    def __init__(self, driver: FakeDriver, **arguments: Any):
        self.driver = driver
        self.now = 1000.0
        given = {"nvml": pynvml, "gpus": "all", "environ": {}, "clock": lambda: self.now, "watch": NoEvents}
        self.source = open_nvidia(**{**given, **arguments})
        self.totals: Counter[Series] = Counter()
        """The sums of the increases."""
        self.seen: Mapping[Series, float] = {}
        """The last reading."""

    def advance(self, seconds: float) -> None:
        """Let time pass, for the driver too."""
        self.now += seconds
        self.driver.advance(seconds)

    def read(self, *, after: float = 0.0) -> Mapping[Series, float]:
        """Read, some time after the last reading; every reading holds the contract."""
        if after:
            self.advance(after)
        self.seen = series_of(self.source())
        for one, value in self.seen.items():
            if one[0].kind == "counter" and one[0].across == "sum":
                self.totals[one] += value
        return self.seen

    def recover(self) -> None:
        """Let the time pass that it takes until all that failed is tried again."""
        for _ in range(62):
            try:
                self.read(after=1.0)
            except FAULTS:
                continue
        self.read(after=300.0)
        self.read(after=1.0)

    def run(self, seconds: int) -> None:
        """Read once a second, as the sampler does."""
        for _ in range(seconds):
            self.read(after=1.0)

    def rows(self, gpu: int) -> set[Metric]:
        """The rows that the last reading has of a GPU."""
        return {row for row, labels in self.seen if ("gpu_id", str(gpu)) in labels}

    def up(self, gpu: int) -> float:
        """What the last reading says of a GPU that answers, or does not."""
        return next(
            value for (row, labels), value in self.seen.items() if row is GPU_UP and ("gpu_id", str(gpu)) in labels
        )


@contextmanager
def opened(driver: FakeDriver, **arguments: Any) -> Iterator[Machine]:
    """A machine whose source is closed in the end."""
    machine = Machine(driver, **arguments)
    try:
        yield machine
    finally:
        driver.reset()  # who waits for events comes back at once
        machine.source.close()
