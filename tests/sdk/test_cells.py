"""Cells of a model: hidden, exact over workers and deaths, and as safe as any other record."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_mlops.sdk import recording, stream
from otel_mlops.sdk.provider import MeterProvider
from tests.sdk.test_merge import FLOATS, exactly
from tests.sdk.workers import Worker, state_folder

MODEL = {"model_name": "m", "model_version": "1"}


@pytest.fixture
def state() -> Iterator[Path]:
    """The folder of the groups."""
    with state_folder() as folder:
        yield folder


def test_cells_count_and_add(state: Path):
    """Indices count by one, amounts add up, and what was asked for again is the same series."""
    worker = Worker(state)
    cells = worker.provider.cells("drift/1", 4, MODEL, "what it means")
    cells.count([0, 3, 3])
    worker.provider.cells("drift/1", 4, MODEL).add([(1, 2.5), (3, 1.0)])
    assert worker.everyone.cells() == [("drift/1", "what it means", MODEL, [1.0, 2.5, 0.0, 3.0])]


def test_nobody_shows_cells(state: Path):
    """They stand neither on the page nor with a reader, of this process or of the group."""
    worker, plain, of_group = Worker(state), InMemoryMetricReader(), InMemoryMetricReader()
    worker.provider.add_metric_reader(plain)
    worker.provider.add_metric_reader(of_group, of_group=True)
    worker.provider.cells("hidden", 2, MODEL).count([1])
    worker.meter.create_counter("shown").add(1)
    assert worker.page() == {"shown_total": 1.0}
    for reader in (plain, of_group):
        data = reader.get_metrics_data()
        assert data is not None
        scopes = [scope for each in data.resource_metrics for scope in each.scope_metrics]
        names = [metric.name for scope in scopes for metric in scope.metrics]
        assert [name for name in names if not name.startswith("otel_mlops.")] == ["shown"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=5), st.randoms())
def test_cells_of_all_workers_add_up_exactly_through_deaths(lots: list[list[float]], random: object):
    """Whoever dies when, each cell is the correctly rounded sum of what was added to it."""
    with state_folder() as state:
        reader = Worker(state)
        reader.meter.create_counter("mine").add(1)
        for lot in lots:
            worker = Worker(state)
            worker.provider.cells("c", 3, MODEL).add(enumerate(lot))
            if random.random() < 0.7:  # type: ignore[attr-defined]
                worker.die()
                reader.everyone.retire()
        ((_, _, _, cells),) = reader.everyone.cells()
        sums = [exactly([lot[index] for lot in lots]) for index in range(3)]
        assert [Fraction(cell) for cell in cells] == [Fraction(math.fsum([float(each)])) for each in sums]


def test_cells_of_another_size_stay_apart(state: Path):
    """Workers of two versions that know cells of one name by different sizes do not spoil each other's."""
    one, other = Worker(state), Worker(state)
    one.provider.cells("c", 2, MODEL).count([0])
    other.provider.cells("c", 3, MODEL).count([2])
    assert sorted(cells for _, _, _, cells in one.everyone.cells()) == [[0.0, 0.0, 1.0], [1.0, 0.0]]


def test_forgotten_cells_begin_anew(state: Path):
    """What is forgotten by its labels is gone for all, and a handle that is held begins at nothing."""
    one, other = Worker(state), Worker(state)
    held = one.provider.cells("c", 2, MODEL)
    held.count([0, 1])
    other.provider.cells("c", 2, MODEL).count([0])
    one.forget(model_version="1")
    one.provider.forget(MODEL)
    other.follow()
    assert one.everyone.cells() == []
    held.count([1])
    assert one.everyone.cells() == [("c", "", MODEL, [0.0, 1.0])]


def test_cells_begin_at_nothing_in_a_forked_child(state: Path):
    """What the parent has counted is not the child's as well."""
    worker = Worker(state)
    cells = worker.provider.cells("c", 2, MODEL)
    cells.count([0])
    worker.provider._handle_fork()
    assert cells.read() == [0.0, 0.0]


def test_a_disabled_provider_has_no_cells():
    """Nothing is counted, and nothing raises."""
    provider = MeterProvider(shutdown_on_exit=False, disabled=True)
    cells = provider.cells("c", 2, MODEL)
    cells.count([0])
    cells.add([(1, 2.0)])
    assert provider.everyone.cells() == []


@pytest.mark.stress
@pytest.mark.parametrize("classes", [recording.LOCK_FREE, recording.LOCKED], ids=["lock_free", "locked"])
def test_no_count_is_lost_while_cells_move(state: Path, classes: dict[str, type], monkeypatch: pytest.MonkeyPatch):
    """Four threads count while the series moves from file to private memory and back: the totals are exact."""
    monkeypatch.setattr(stream, "RECORDING", classes)
    worker = Worker(state)
    cells = worker.provider.cells("c", 12, MODEL)
    cells.count([0])
    moved, start = threading.Event(), threading.Barrier(5)
    rounds: list[int] = []

    def work() -> None:
        start.wait(30)
        for count in itertools.count(1):
            cells.count((1, 3, 5, 7, 9, 11))
            cells.add(((2, 0.5), (11, 1.0)))
            if moved.is_set():
                rounds.append(count)
                return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait(30)
    for _ in range(100):
        cells.take_along()
        time.sleep(0)  # the others' turn
    moved.set()
    for thread in threads:
        thread.join(60)
    assert len(rounds) == 4
    all_ = float(sum(rounds))
    assert cells.read() == [1.0, all_, 0.5 * all_, all_, 0.0, all_, 0.0, all_, 0.0, all_, 0.0, 2 * all_]
