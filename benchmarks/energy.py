"""What energy per prediction costs: what it adds to a prediction, and what the leader does with each second's calls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Line, Work, race

ADDED_S = 0.6e-6
"""What writing a call down may take; the project asked for 2 µs."""
LEADER_S = 0.010
"""What the leader may take of each second."""
WORKERS, CALLS = 4, 400
"""The calls of each second, of all workers together; a batch of 32 takes 20 to 50 ms on most GPUs."""
SECONDS = 60


def prediction(*, energy: bool) -> Any:
    """A contender: one prediction of no rows, with energy and without."""

    def prepare() -> Work:
        from otel_mlops.model import Model
        from otel_mlops.sdk.page import PageReader
        from otel_mlops.sdk.provider import MeterProvider

        provider = MeterProvider([PageReader()], shutdown_on_exit=False)
        if energy:
            provider.intervals.begin_when(lambda: True)
        model = Model(provider, name="bench", version="1")
        return Work("with prediction(): pass", {"prediction": model.prediction})

    return prepare


def ring() -> Work:
    """What a prediction calls when it begins and when it ends."""
    from otel_mlops.sdk.intervals import LENGTH, Ring

    return Work("ring.end(ring.begin(1, 1.0), 2.0, 1.0)", {"ring": Ring(memoryview(bytearray(LENGTH)))})


def leader_s(state: Path) -> float:
    """Seconds that the leader takes for a second's calls, in the mean over a while, files and all."""
    from otel_mlops.energy import Energy
    from otel_mlops.metrics import GPU_ENERGY, GPU_POWER_USAGE, PREDICTIONS
    from otel_mlops.sdk.group import Group
    from otel_mlops.sdk.ledger import Ledger
    from otel_mlops.sdk.provider import MeterProvider
    from otel_mlops.sources.sampler import Sample

    now, labels = 1_000.0, {"gpu_id": "0", "gpu_name": "H100"}

    def read() -> list[Sample]:
        return [Sample(GPU_POWER_USAGE, 300.0, labels), Sample(GPU_ENERGY, 300.0 * (now // 5 * 5), labels)]

    providers = []
    for _ in range(WORKERS):
        group = Group("bench", state)
        provider = MeterProvider(shutdown_on_exit=False, ledger=Ledger(group), group=group)
        provider.instrument(PREDICTIONS).add(1, {"model_version": "1", "prediction_type": "single"})
        provider.intervals.begin_when(lambda: True)
        provider.intervals.number({"model_version": "1"})
        providers.append(provider)
    energy = Energy(read, providers[0], Group("bench", state), clock=lambda: now)
    took = 0.0
    for _ in range(SECONDS):
        for number in range(CALLS):
            at: Any = providers[number % WORKERS].intervals.ring
            at.add(1, now + number / CALLS, now + number / CALLS + 0.04, 32.0)
        now += 1.0
        began = time.perf_counter()
        energy()
        took += time.perf_counter() - began
    for provider in providers:
        provider.shutdown(1_000)
    return took / SECONDS


def lines(*, quick: bool) -> Iterator[Line]:
    """The lines of this topic."""
    without, with_it = "without energy", "with energy"
    measured = race(
        {without: prediction(energy=False), with_it: prediction(energy=True), "ring": ring},
        rounds=5 if quick else 50,
    )
    yield measured.line("a prediction with energy", without, with_it, without, target=1.5)
    yield Line("a prediction written down", "what it may take", 1.0, measured.seconds.get("ring"), ADDED_S)
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as state:
        took_s = leader_s(Path(state))
    yield Line(f"leader, {CALLS} calls a second, {WORKERS} workers", "what it may take", 1.0, took_s, LEADER_S)
