"""The numbers of a whole group, as any one of its workers reads them: exact, and never less than before."""

from __future__ import annotations

import math
import mmap
import os
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry.metrics import Observation

from otel_mlops.metrics import (
    ACTIVE_CONNECTIONS,
    API_HEALTH_STATUS,
    MODEL_ACCURACY,
    MODEL_INFO,
    MODEL_STATUS,
    PREDICTION_DURATION,
    PREDICTIONS,
    SYSTEM_INFO,
)
from otel_mlops.sdk import everyone as everyone_module
from otel_mlops.sdk import peers as peers_module
from otel_mlops.sdk import retired as retired_module
from otel_mlops.sdk.everyone import Everyone
from otel_mlops.sdk.group import RETIRED, Group
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.peers import Peer
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.sdk.records import FORGETS, LEADS, PID, PID_NAMESPACE, SERIES, STREAM
from otel_mlops.sdk.retired import Retired
from tests.sdk.test_merge import FLOATS, exactly
from tests.sdk.test_peers import GARBAGE, fail, in_span
from tests.sdk.test_retired import told
from tests.sdk.workers import Worker, state_folder

OpenWorker = Callable[..., Worker]


@pytest.fixture
def state() -> Iterator[Path]:
    """The folder of the groups."""
    with state_folder() as folder:
        yield folder


@pytest.fixture
def open_worker(state: Path) -> OpenWorker:
    """Opens workers of one group."""
    return lambda **arguments: Worker(state, **arguments)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged about the group."""
    return [each.getMessage() for each in caplog.records if each.name == "otel_mlops.sdk.everyone"]


# --- Sums ----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(FLOATS.map(abs), min_size=1, max_size=4), min_size=2, max_size=5), st.data())
def test_the_page_is_the_exact_sum_through_any_order_of_deaths(amounts: list[list[float]], data: st.DataObject):
    """Whoever dies when, and whenever the dead are folded, the page has the correctly rounded sum of the cells."""
    with state_folder() as state:
        reader = Worker(state)
        reader.meter.create_counter("mine").add(1)
        workers, cells = [], []
        for lot in amounts:
            worker = Worker(state)
            counter = worker.meter.create_counter("c")
            for amount in lot:
                counter.add(amount)
            cells += [series.read()[0] for stream in worker.provider.streams() for series in stream.living()]
            workers.append(worker)
        total = float(exactly(cells))
        while workers:
            assert reader.page()["c_total"] == total
            workers.pop(data.draw(st.integers(0, len(workers) - 1))).die()
            if data.draw(st.booleans()):
                reader.everyone.retire()
        assert reader.page()["c_total"] == total
        reader.everyone.retire()
        assert reader.page()["c_total"] == total
        assert Worker(state).page()["c_total"] == total


def test_histograms_of_all_workers_add_up(open_worker: OpenWorker):
    """Each bucket, the count and the sum are the group's, before and after a death."""
    workers = [open_worker() for _ in range(3)]
    for number, worker in enumerate(workers):
        histogram = worker.meter.create_histogram("h", explicit_bucket_boundaries_advisory=[1.0, 2.0])
        for value in (0.1, 1.7, number + 0.5):
            histogram.record(value)
    expected = {
        'h_bucket{le="1.0"}': 4.0, 'h_bucket{le="2.0"}': 8.0, 'h_bucket{le="+Inf"}': 9.0, "h_count": 9.0,
        "h_sum": float(exactly([series.read()[-1] for worker in workers for stream in worker.provider.streams()[:1]
                                for series in stream.living()])),
    }  # fmt: skip
    assert [worker.page() for worker in workers] == [expected] * 3
    workers.pop().die()
    workers[0].everyone.retire()
    assert [worker.page() for worker in workers] == [expected] * 2


@pytest.mark.stress
def test_four_workers_with_a_thousand_series_each(open_worker: OpenWorker):
    """A page of many series has of each the sum over the workers."""
    workers = [open_worker() for _ in range(4)]
    for number, worker in enumerate(workers):
        histogram = worker.meter.create_histogram("h", explicit_bucket_boundaries_advisory=[0.5])
        for each in range(1_000):
            histogram.record((each * 7 + number) % 11 / 10, {"n": each})
    page = workers[0].page()
    for each in range(1_000):
        values = [(each * 7 + number) % 11 / 10 for number in range(4)]
        assert page[f'h_count{{n="{each}"}}'] == 4.0
        assert page[f'h_bucket{{n="{each}",le="0.5"}}'] == sum(value <= 0.5 for value in values)
        assert page[f'h_sum{{n="{each}"}}'] == float(exactly(values))
    # And again, where some have changed.
    for each in range(0, 1_000, 20):
        workers[3].provider.get_meter("m").create_histogram("h").record(0.25, {"n": each})
    again = workers[0].page()
    changed = {series for series in page if again[series] != page[series]}
    assert {series.split('"')[1] for series in changed} == {str(each) for each in range(0, 1_000, 20)}
    assert all(again[f'h_count{{n="{each}"}}'] == 5.0 for each in range(0, 1_000, 20))


@pytest.mark.stress
def test_a_thousand_deaths_leave_a_bounded_number_of_files(state: Path):
    """However many workers have died, what lies on disk is that of the living, and the total is exact."""
    leader = Worker(state)
    leader.meter.create_counter("mine").add(1)
    assert leader.group.try_to_lead()
    total, sizes = Fraction(0), []
    group = Group("group", state)
    for number in range(1_000):
        # A worker at its barest: one that has described a metric, recorded once and died.
        ledger, amount = Ledger(group), 1 / (number + 3)
        ledger.append(STREAM, {"number": 1, **told()}, 0)
        ledger.append(SERIES, [1, [["k", str(number % 5)]], 1], [amount])
        ledger._let_go()
        total += Fraction(amount)
        if number % 7 == 0:
            leader.everyone.retire()
            assert len(leader.files()) <= 5
            sizes.append((leader.group.folder / RETIRED).stat().st_size)
    leader.everyone.retire()
    page = leader.page()
    shares = [share for share in leader.everyone.shares()[1] if share.stream.name == "c"]
    assert sum(Fraction(series.read()[0]) for share in shares for series in share.series) == total
    assert math.isclose(math.fsum(page[f'c_total{{k="{each}"}}'] for each in range(5)), float(total))
    assert max(sizes[20:]) <= max(sizes[:20]) + 512
    assert {path.name for path in leader.files()} == {"door", "lead", RETIRED, leader.path.name}


# --- Rules ---------------------------------------------------------------------------------------------------


def test_up_down_counters_count_the_living(open_worker: OpenWorker):
    """What a worker had under way ends with it."""
    mine, other = open_worker(), open_worker()
    mine.provider.instrument(ACTIVE_CONNECTIONS).add(2)
    other.provider.instrument(ACTIVE_CONNECTIONS).add(3)
    assert mine.page()["active_connections_count"] == 5.0
    other.die()
    assert mine.page()["active_connections_count"] == 2.0
    mine.everyone.retire()
    assert mine.page()["active_connections_count"] == 2.0


def test_the_latest_outlives_its_worker(open_worker: OpenWorker):
    """A score stands until another is set, whoever set it and whoever has died since."""
    mine, other = open_worker(), open_worker()
    labels = {"model_version": "1", "dataset": "test"}
    mine.provider.instrument(MODEL_ACCURACY).set(0.9, labels)
    other.provider.instrument(MODEL_ACCURACY).set(0.8, labels)
    name = 'model_accuracy_score{dataset="test",model_version="1"}'
    assert mine.page()[name] == 0.8
    other.die()
    assert mine.page()[name] == 0.8
    mine.everyone.retire()
    assert mine.page()[name] == 0.8
    mine.provider.instrument(MODEL_ACCURACY).set(0.7, labels)
    assert mine.page()[name] == 0.7


def test_health_is_the_least_of_the_living(open_worker: OpenWorker):
    """A component is as healthy as the worker that has the most trouble with it."""
    mine, other = open_worker(), open_worker()
    mine.provider.instrument(API_HEALTH_STATUS).set(1, {"component": "database"})
    other.provider.instrument(API_HEALTH_STATUS).set(0, {"component": "database"})
    assert mine.page()['api_health_status{component="database"}'] == 0.0
    other.die()
    assert mine.page()['api_health_status{component="database"}'] == 1.0


def test_a_gauge_of_others_is_shown_by_worker(open_worker: OpenWorker):
    """Each living worker has its own sample, under its number."""
    workers = [open_worker() for _ in range(3)]
    for number, worker in enumerate(workers):
        worker.meter.create_gauge("g").set(number * 10.0, {"k": "x"})
    expected = {f'g{{k="x",worker="{number}"}}': number * 10.0 for number in range(3)}
    assert [worker.page() for worker in workers] == [expected] * 3
    workers[1].die()
    workers[0].everyone.retire()
    del expected['g{k="x",worker="1"}']
    assert workers[2].page() == expected


def test_a_fact_of_the_host_is_not_added_up(open_worker: OpenWorker):
    """What every worker's callbacks say of the machine stands there once, a counter too."""
    workers = [open_worker() for _ in range(3)]
    for number, worker in enumerate(workers):
        worker.meter.create_observable_counter("system.network.io", [lambda _, n=number: [Observation(1000 + n)]], "By")
        worker.meter.create_observable_up_down_counter("system.processes.count", [lambda _: [Observation(7)]])
        worker.meter.create_observable_gauge("hw.temperature", [lambda _: [Observation(50)]])
        worker.page()
    page = workers[2].page()
    assert page["system_network_io_bytes_total"] == 1002.0
    assert page["system_processes_count"] == 7.0
    assert page["hw_temperature"] == 50.0


def test_what_callbacks_say_of_processes_is_added_up(open_worker: OpenWorker):
    """Processor time of the dead counts as well; a level is shown by worker."""
    workers = [open_worker() for _ in range(2)]
    for number, worker in enumerate(workers):
        worker.meter.create_observable_counter("process.cpu.time", [lambda _, n=number: [Observation(n + 0.1)]], "s")
        worker.meter.create_observable_gauge("level", [lambda _, n=number: [Observation(n)]])
        worker.page()
    cpu = float(exactly([0.1, 1.1]))
    assert workers[0].page() == {
        "process_cpu_time_seconds_total": cpu,
        'level{worker="0"}': 0.0,
        'level{worker="1"}': 1.0,
    }
    workers[1].die()
    workers[0].everyone.retire()
    assert workers[0].page() == {"process_cpu_time_seconds_total": cpu, 'level{worker="0"}': 0.0}


def test_a_model_is_in_the_worst_state_of_any_living_worker(open_worker: OpenWorker):
    """One state of a model stands at 1: the worst that a living worker has it in."""
    mine, other = open_worker(), open_worker()

    def enter(worker: Worker, state: str) -> None:
        for each in MODEL_STATUS.states:
            worker.provider.instrument(MODEL_STATUS).set(each == state, {"model_version": "1", "model_status": each})

    def shown() -> list[str]:
        page = mine.page()
        assert len(page) == 4
        return [series.split('"')[1] for series, value in page.items() if value]

    enter(mine, "ready")
    enter(other, "loading")
    assert shown() == ["loading"]
    enter(mine, "error")
    assert shown() == ["error"]
    enter(mine, "ready")
    other.die()
    assert shown() == ["ready"]


def test_of_infos_about_one_thing_the_newest_is_shown(open_worker: OpenWorker):
    """What was told last of a model is what it is, and of another model what was told of that."""
    mine, other = open_worker(), open_worker()
    about = {"model_name": "m", "model_version": "1"}
    mine.provider.instrument(MODEL_INFO).set(1, {**about, "stage": "old"})
    other.provider.instrument(MODEL_INFO).set(1, {**about, "stage": "new"})
    mine.provider.instrument(MODEL_INFO).set(1, {"model_name": "m", "model_version": "2", "stage": "x"})
    mine.provider.instrument(SYSTEM_INFO).set(1, {"version": "1"})
    other.provider.instrument(SYSTEM_INFO).set(1, {"version": "2"})
    expected = {
        'model_info{model_name="m",model_version="1",stage="new"}': 1.0,
        'model_info{model_name="m",model_version="2",stage="x"}': 1.0,
        'system_info{version="2"}': 1.0,
    }
    assert mine.page() == expected
    other.die()
    mine.everyone.retire()
    assert mine.page() == expected


def test_exemplars_are_the_newest_of_any_worker(open_worker: OpenWorker):
    """Each bucket has the exemplar that was taken last, also when who took it has died and was folded."""
    mine, other = open_worker(), open_worker()

    def record(worker: Worker, value: float, span: int) -> None:
        token = in_span(span)
        worker.meter.create_histogram("h", explicit_bucket_boundaries_advisory=[1.0]).record(value)
        otel_context.detach(token)

    def spans() -> list[int]:
        lines = mine.reader.page("application/openmetrics-text").body.decode().splitlines()
        return [int(line.split('"')[-2], 16) for line in lines if " # " in line]

    record(mine, 0.5, 1)
    record(other, 0.5, 2)
    record(other, 5.0, 3)
    assert spans() == [2, 3]
    record(mine, 0.5, 4)
    assert spans() == [4, 3]
    other.die()
    mine.everyone.retire()
    assert spans() == [4, 3]
    assert Worker(mine.group._state_dir or Path()).reader.page("application/openmetrics-text").body.count(b" # {") == 2


# --- What callbacks said ------------------------------------------------------------------------------------


def test_what_callbacks_said_too_long_ago_is_not_shown(open_worker: OpenWorker, monkeypatch: pytest.MonkeyPatch):
    """A worker that does not refresh loses its levels from the page, and has them back with the next word."""
    mine, other = open_worker(stale_s=15.0), open_worker()
    other.meter.create_observable_gauge("level", [lambda _: [Observation(5)]])
    other.meter.create_observable_counter("process.cpu.time", [lambda _: [Observation(9)]])
    other.meter.create_gauge("set").set(1.0)
    other.page()
    now = time.monotonic()
    for later_s, is_shown in ((0.0, True), (14.0, True), (16.0, False), (3600.0, False)):
        monkeypatch.setattr(everyone_module.time, "monotonic", lambda at=now + later_s: at)
        page = mine.page()
        assert ('level{worker="0"}' in page) is is_shown
        assert page['set{worker="0"}'] == 1.0
        assert page["process_cpu_time_total"] == 9.0
    other.page()
    assert 'level{worker="0"}' in mine.page()


def test_what_the_own_callbacks_said_too_long_ago_is_not_shown(
    open_worker: OpenWorker, monkeypatch: pytest.MonkeyPatch
):
    """Where a callback of this very worker hangs its level is gone from its page after a while, its counts stay."""
    mine = open_worker(stale_s=15.0)
    mine.meter.create_observable_gauge("level", [lambda _: [Observation(5)]])
    mine.meter.create_observable_counter("process.cpu.time", [lambda _: [Observation(9)]])
    assert mine.page() == {'level{worker="0"}': 5.0, "process_cpu_time_total": 9.0}
    monkeypatch.setattr(mine.provider._observed, "refresh", lambda *_: None)  # as while another thread hangs in it
    now = time.monotonic()
    for later_s, is_shown in ((14.0, True), (16.0, False)):
        monkeypatch.setattr(everyone_module.time, "monotonic", lambda at=now + later_s: at)
        page = mine.page()
        assert ('level{worker="0"}' in page) is is_shown
        assert page["process_cpu_time_total"] == 9.0


def test_what_callbacks_counted_stays_when_they_fail(open_worker: OpenWorker):
    """A callback that fails once takes nothing off a total; a level that nobody says is gone."""
    mine, other = open_worker(), open_worker()
    fails = False

    def say(_options: object) -> list[Observation]:
        if fails:
            raise OSError("once")
        return [Observation(1000)]

    for worker in (mine, other):
        worker.meter.create_observable_counter("process.cpu.time", [say])
    mine.meter.create_observable_gauge("level", [say])
    mine.page()
    other.page()
    assert mine.page() == {"process_cpu_time_total": 2000.0, 'level{worker="0"}': 1000.0}
    fails = True
    assert [worker.page() for worker in (mine, other)] == [{"process_cpu_time_total": 2000.0}] * 2


def test_what_callbacks_count_goes_on_when_a_worker_comes_back(open_worker: OpenWorker):
    """What a worker's callbacks counted stays with the group, and of their totals only the rest comes on top."""
    mine, other = open_worker(), open_worker()
    other.meter.create_counter("c").add(1)
    total = 10.0
    mine.meter.create_observable_counter("process.cpu.time", [lambda _: [Observation(total)]])
    assert mine.page()["process_cpu_time_total"] == 10.0
    for total in (11.5, 12.0):
        mine.provider.leave()
        assert other.page()["process_cpu_time_total"] == total - (1.5 if total == 11.5 else 0.5)
        mine.provider.ledger.rejoin()
        other.everyone.retire()
        assert mine.page()["process_cpu_time_total"] == other.page()["process_cpu_time_total"] == total
    mine.die()
    assert other.page()["process_cpu_time_total"] == 12.0


def test_callbacks_that_begin_anew_count_from_nothing(open_worker: OpenWorker):
    """Less than what stayed with the group is a new count: all of it comes on top."""
    mine, other = open_worker(), open_worker()
    other.meter.create_counter("c").add(1)
    total = 10.0
    mine.meter.create_observable_counter("process.cpu.time", [lambda _: [Observation(total)]])
    mine.page()
    mine.provider.leave()
    mine.provider.ledger.rejoin()
    total = 3.0
    assert mine.page()["process_cpu_time_total"] == 13.0
    total = 4.0
    assert mine.page()["process_cpu_time_total"] == 14.0
    mine.provider.leave()
    mine.provider.ledger.rejoin()
    mine.provider._observed.after_fork()  # what its parent counted is nothing to a child
    total = 5.0
    assert mine.page()["process_cpu_time_total"] == 19.0


def test_only_what_callbacks_say_now_counts_towards_the_cap(open_worker: OpenWorker):
    """Attributes that change with every word never fill a metric of which few series live."""
    mine = open_worker(max_series=100)
    said = 0

    def say(_options: object) -> list[Observation]:
        nonlocal said
        said += 1
        return [Observation(1, {"pid": f"{said}-{number}"}) for number in range(90)]

    mine.meter.create_observable_gauge("per_pid", [say])
    for _ in range(30):
        page = mine.page()
        assert len(page) == 90
        assert not any("overflow" in series for series in page)


def test_an_overflow_of_what_callbacks_say_ends_with_it(open_worker: OpenWorker):
    """Where fewer series are said again there is no overflow any more, and none while there is room."""
    mine = open_worker(max_series=5)
    many = 5
    mine.meter.create_observable_gauge(
        "level", [lambda _: [Observation(1, {"n": f"{many}-{number}"}) for number in range(many)]]
    )
    for many in (5, 7, 8, 4):
        page = mine.page()
        assert len(page) == min(many, 6)
        assert ('level{otel_metric_overflow="true",worker="0"}' in page) is (many > 5)
        version = mine.everyone.shares()[0]
        assert mine.page() == page
        assert mine.everyone.shares()[0] == version


def test_what_is_shown_once_is_the_leaders(open_worker: OpenWorker, state: Path):
    """The process of the page, or any worker that makes one, shows the leader's word, whoever spoke last."""
    first, leader, last = (open_worker() for _ in range(3))
    outside = Worker(state, Group("group", state, inherited_lead=-1))
    outside.meter.create_counter("mine").add(1)
    for number, worker in ((0, first), (1, leader), (2, last)):
        worker.meter.create_observable_counter("system.network.io", [lambda _, n=number: [Observation(10 + n)]])
        worker.page()
    leader.provider.ledger.about[LEADS] = 1.0
    for worker in (outside, leader, first, last):
        assert worker.page()["system_network_io_total"] == 11.0
    leader.provider.ledger.about[LEADS], last.provider.ledger.about[LEADS] = 0.0, 1.0
    assert first.page()["system_network_io_total"] == 12.0
    first.provider.ledger.about[LEADS] = 1.0  # for a moment both say so
    assert first.page()["system_network_io_total"] == 10.0
    first.provider.ledger.about[LEADS] = 0.0
    outside.provider.ledger.about[LEADS] = 1.0
    assert outside.page()["system_network_io_total"] == 12.0
    outside.meter.create_observable_counter("system.network.io", [lambda _: [Observation(13)]])
    outside.page()
    assert last.page()["system_network_io_total"] == 13.0


# --- Forgetting ----------------------------------------------------------------------------------------------


def test_what_is_forgotten_is_gone_from_every_page_at_once(open_worker: OpenWorker):
    """Workers that have not followed yet, and the dead, folded or not, do not show it either."""
    workers = [open_worker() for _ in range(4)]
    for worker in workers:
        worker.meter.create_counter("c").add(1, {"v": "1"})
        worker.meter.create_counter("c").add(1, {"v": "2"})
    workers.pop().die()
    workers[0].everyone.retire()
    workers.pop().die()
    workers[0].forget(v="1")
    for worker in workers:
        assert worker.page() == {'c_total{v="2"}': 4.0}
    workers[0].everyone.retire()
    workers[1].follow()
    for worker in workers:
        assert worker.page() == {'c_total{v="2"}': 4.0}


def test_a_forgotten_series_begins_anew(open_worker: OpenWorker):
    """Recorded again, it shows what was recorded since, whoever recorded it before."""
    mine, other = open_worker(), open_worker()
    for worker in (mine, other):
        worker.meter.create_counter("c").add(5, {"v": "1"})
    mine.forget(v="1")
    mine.meter.create_counter("c").add(1, {"v": "1"})
    assert mine.page() == {'c_total{v="1"}': 1.0}
    other.follow()
    other.meter.create_counter("c").add(2, {"v": "1"})
    assert mine.page() == other.page() == {'c_total{v="1"}': 3.0}
    other.die()
    mine.everyone.retire()
    assert mine.page() == {'c_total{v="1"}': 3.0}
    mine.everyone.retire()
    assert mine.page() == {'c_total{v="1"}': 3.0}


def test_who_joins_later_has_nothing_to_forget(open_worker: OpenWorker):
    """What was forgotten before a worker came is its own when it records it."""
    mine = open_worker()
    mine.meter.create_counter("c").add(5, {"v": "1"})
    mine.forget(v="1")
    late = open_worker()
    late.meter.create_counter("c").add(1, {"v": "1"})
    assert [*late.everyone.follow()] == []
    assert mine.page() == {'c_total{v="1"}': 1.0}
    late.die()
    mine.everyone.retire()
    assert mine.page() == {'c_total{v="1"}': 1.0}


def test_an_up_down_counter_in_use_is_not_hidden(open_worker: OpenWorker):
    """What another worker has under way stays on the page, as it does with that worker."""
    mine, other = open_worker(), open_worker()
    for worker in (mine, other):
        worker.meter.create_up_down_counter("u").add(1, {"v": "1"})
    mine.forget(v="1")
    assert mine.page() == {'u{v="1"}': 2.0}
    other.follow()
    assert mine.page() == {'u{v="1"}': 2.0}


def test_a_forget_is_followed_when_it_is_done(open_worker: OpenWorker):
    """A worker says that it has followed once it has: killed in the middle, it leaves nothing to show."""
    mine, other = open_worker(), open_worker()
    mine.meter.create_counter("mine").add(1)
    other.meter.create_counter("c").add(5, {"v": "1"})
    mine.forget(v="1")
    for labels in other.everyone.follow():
        assert labels == {"v": "1"}
        assert mine.page() == {"mine_total": 1.0}
        other.die()
        break
    mine.everyone.retire()
    assert mine.page() == {"mine_total": 1.0}


def test_each_is_told_once_what_to_forget(open_worker: OpenWorker):
    """Calls are followed in their order, each once."""
    mine, other = open_worker(), open_worker()
    assert [*other.everyone.follow()] == []
    for worker in (mine, other):
        worker.meter.create_counter("c").add(1)
    for version in "123":
        mine.forget(v=version)
    assert [*other.everyone.follow()] == [{"v": "1"}, {"v": "2"}, {"v": "3"}]
    assert [*other.everyone.follow()] == []
    assert [*mine.everyone.follow()] == []


def test_who_has_nothing_to_show_tells_the_others_to_forget(open_worker: OpenWorker, state: Path):
    """A process without a ledger asks the group too; where there is none, nothing is made for it."""
    silent = open_worker()
    silent.forget(v="1")
    assert [*state.iterdir()] == []
    other = open_worker()
    other.meter.create_counter("c").add(5, {"v": "1"})
    silent.forget(v="1")
    assert silent.provider.ledger.path is None
    assert other.page() == {}
    assert [*other.everyone.follow()] == [{"v": "1"}]


# --- Those that have not started, and follow nobody --------------------------------------------------------------


def unstarted(open_worker: OpenWorker) -> Worker:
    """A worker that has not started: a master that imports the application, or a forked child that records."""
    made = open_worker()
    made.provider.ledger.note_started(has_started=False)
    return made


def record_all(worker: Worker, amount: float, bounds: float = 1.0) -> None:
    """Record a number into each kind of instrument."""
    meter = worker.meter
    meter.create_counter("c").add(amount, {"v": "1"})
    meter.create_histogram("h", explicit_bucket_boundaries_advisory=[bounds]).record(amount, {"v": "1"})
    meter.create_gauge("g").set(amount, {"v": "1"})


def shown(amount: float, worker: str) -> dict[str, float]:
    """What the page shows of it."""
    return {
        'c_total{v="1"}': amount,
        'h_bucket{v="1",le="1.0"}': 0.0,
        'h_bucket{v="1",le="+Inf"}': 1.0,
        'h_count{v="1"}': 1.0,
        'h_sum{v="1"}': amount,
        f'g{{v="1",worker="{worker}"}}': amount,
    }


@pytest.mark.parametrize("is_dead", [False, True])
def test_what_follows_nobody_is_set_to_zero(open_worker: OpenWorker, is_dead: bool):
    """A series of who has not started is gone with the call, and what is recorded later shows, from nothing."""
    mine, child = open_worker(), unstarted(open_worker)
    mine.meter.create_counter("mine").add(1)
    record_all(child, 7)
    child.meter.create_counter("c").add(3, {"v": "2"})
    mine.forget(v="1")
    kept = {"mine_total": 1.0, 'c_total{v="2"}': 3.0}
    assert mine.page() == child.page() == kept
    if is_dead:
        child.die()
        assert mine.page() == kept
        mine.everyone.retire()
        assert mine.page() == kept
        return
    record_all(child, 5)
    assert mine.page() == child.page() == {**kept, **shown(5.0, "1")}
    child.die()
    kept |= {sample: value for sample, value in shown(5.0, "1").items() if not sample.startswith("g")}
    assert mine.page() == kept
    mine.everyone.retire()
    assert mine.page() == kept


def test_each_forget_sets_to_zero_again(open_worker: OpenWorker):
    """The second call forgets what was recorded since the first, and a call for others leaves it."""
    mine, child = open_worker(), unstarted(open_worker)
    counter = child.meter.create_counter("c")
    for amount in (1.0, 2.0):
        counter.add(amount, {"v": "1"})
        mine.forget(v="2")
        assert mine.page() == {'c_total{v="1"}': amount}
        mine.forget(v="1")
        assert mine.page() == {}


def test_an_up_down_counter_in_use_is_not_set_to_zero(open_worker: OpenWorker):
    """What is under way in who has not started stays, may end, and begin again."""
    mine, child = open_worker(), unstarted(open_worker)
    counter = child.meter.create_up_down_counter("u")
    counter.add(2, {"v": "1"})
    mine.forget(v="1")
    assert mine.page() == mine.page() == {'u{v="1"}': 2.0}
    counter.add(-2, {"v": "1"})
    assert mine.page() == mine.page() == {}
    counter.add(3, {"v": "1"})
    assert mine.page() == {'u{v="1"}': 3.0}


def test_exemplars_go_with_the_numbers(open_worker: OpenWorker):
    """What was set to zero has no exemplar, and one that is taken later is shown."""
    mine, child = open_worker(), unstarted(open_worker)
    histogram = child.meter.create_histogram("h", explicit_bucket_boundaries_advisory=[1.0])
    for value, exemplars in ((0.5, 1), (3.0, 1)):
        token = in_span(7)
        histogram.record(value, {"v": "1"})
        otel_context.detach(token)
        page = mine.reader.page("application/openmetrics-text").body.decode()
        assert page.count("trace_id") == exemplars
        mine.forget(v="1")


def test_who_starts_later_keeps_what_it_has_recorded_since(open_worker: OpenWorker):
    """Of what others have set to zero for it, a worker that starts forgets what still stands there."""
    mine, late = open_worker(), unstarted(open_worker)
    counter = late.meter.create_counter("c")
    for version in "12":
        counter.add(1, {"v": version})
        mine.forget(v=version)
    counter.add(5, {"v": "1"})
    late.provider.ledger.note_started(has_started=True)
    assert mine.page() == late.page() == {'c_total{v="1"}': 5.0}
    assert [*late.everyone.follow()] == [{"v": "2"}]
    late.follow()
    assert late.provider.ledger.about[FORGETS] == 2.0


def test_what_cannot_be_set_to_zero_stays_hidden(
    open_worker: OpenWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """It is said, and the next call of `forget` tries again."""
    mine, child = open_worker(), unstarted(open_worker)
    mine.meter.create_counter("mine").add(1)
    counter = child.meter.create_counter("c")
    counter.add(1, {"v": "1"})
    with monkeypatch.context() as patched:
        patched.setattr(Peer, "zero", fail)
        mine.forget(v="1")
    counter.add(1, {"v": "1"})
    assert mine.page() == {"mine_total": 1.0}
    assert [each for each in said(caplog) if "cannot be written: [Errno 24]" in each]
    mine.forget(v="2")
    counter.add(1, {"v": "1"})
    assert mine.page() == {"mine_total": 1.0, 'c_total{v="1"}': 1.0}


def test_a_storm_of_forgets_loses_none(open_worker: OpenWorker):
    """Nobody brings a series back that was forgotten long ago: neither the living, nor the dead, nor the retired."""
    mine, busy, dying, child = open_worker(), open_worker(), open_worker(), unstarted(open_worker)
    gone = open_worker()
    for worker in (busy, dying, child, gone):
        worker.meter.create_counter("c").add(1, {"v": "first"})
    mine.meter.create_counter("mine").add(1)
    gone.die()
    mine.everyone.retire()
    mine.forget(v="first")
    for number in range(300):
        mine.group.tell_to_forget({"v": str(number)})
    dying.die()
    assert mine.page() == busy.page() == {"mine_total": 1.0}
    mine.everyone.retire()
    busy.follow()
    assert mine.page() == busy.page() == {"mine_total": 1.0}


# --- Older code, foreign files, and what cannot be read --------------------------------------------------------


def test_the_youngest_workers_buckets_are_shown(open_worker: OpenWorker):
    """In a rolling restart with other bounds the newcomer's are shown, whoever makes the page and records what then."""
    old, new = open_worker(), open_worker()
    reader = open_worker()
    reader.meter.create_counter("c").add(1)
    for worker, bounds, times in ((old, [1.0, 2.0], 10), (new, [5.0], 3)):
        for _ in range(times):
            worker.meter.create_histogram("h", explicit_bucket_boundaries_advisory=bounds).record(1)
    old.meter.create_histogram("h").record(1, {"k": "later"})
    for worker in (old, new, reader):
        page = worker.page()
        assert page["h_count"] == page['h_bucket{le="5.0"}'] == 3.0
        assert page['h_count{k="later"}'] == 1.0
    old.die()
    assert reader.page()["h_count"] == 3.0
    reader.everyone.retire()
    assert reader.page()["h_count"] == 3.0
    new.die()
    assert reader.page()["h_count"] == 3.0
    reader.everyone.retire()
    assert reader.page()["h_count"] == 3.0


def test_the_buckets_of_the_living_come_before_those_of_the_dead(open_worker: OpenWorker):
    """Where the newcomer has died the older worker's bounds are shown, whether it is folded or not."""
    old, new = open_worker(), open_worker()
    for worker, bounds, times in ((old, [1.0, 2.0], 2), (new, [5.0], 3)):
        for _ in range(times):
            worker.meter.create_histogram("h", explicit_bucket_boundaries_advisory=bounds).record(1)
    new.die()
    assert open_worker().page()["h_count"] == 2.0
    old.everyone.retire()
    assert open_worker().page()["h_count"] == 2.0


def test_other_buckets_are_left_out_and_told(open_worker: OpenWorker, caplog: pytest.LogCaptureFixture):
    """Of a histogram with other bounds in another worker nothing is added to ours, and the page says so."""
    mine, other = open_worker(), open_worker()
    mine.meter.create_histogram("h", explicit_bucket_boundaries_advisory=[1.0]).record(0.5)
    other.meter.create_histogram("h", explicit_bucket_boundaries_advisory=[2.0]).record(0.5)
    assert mine.page()["h_count"] == 1.0
    assert any("bucket bounds differ" in each.getMessage() for each in caplog.records)
    mine.die()
    assert other.page()["h_count"] == 1.0


def test_other_words_are_the_same_metric(open_worker: OpenWorker):
    """Of several descriptions the page has one; the numbers are added up."""
    mine, other = open_worker(), open_worker()
    mine.meter.create_counter("c", description="mine").add(1)
    other.meter.create_counter("c", description="other").add(2)
    assert mine.page() == other.page() == {"c_total": 3.0}
    assert b"# HELP c_total mine\n" in mine.reader.page().body
    assert b"# HELP c_total other\n" in other.reader.page().body


def test_another_unit_is_another_metric(open_worker: OpenWorker):
    """Nothing is added up across units."""
    mine, other = open_worker(), open_worker()
    mine.meter.create_counter("c", "s").add(1)
    other.meter.create_counter("c", "By").add(2)
    assert mine.page() == {"c_seconds_total": 1.0, "c_bytes_total": 2.0}


def test_another_kind_of_the_same_name_is_left_out(open_worker: OpenWorker):
    """A name on the page belongs to the kind that came first."""
    mine, other = open_worker(), open_worker()
    mine.meter.create_up_down_counter("c").add(1)
    other.meter.create_histogram("c").record(2)
    assert mine.page() == {"c": 1.0}


@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_in_the_folder_changes_nothing(open_worker: OpenWorker, content: str):
    """A file that is no ledger is on no page, and the leader removes it with the dead."""
    mine, other = open_worker(), open_worker()
    mine.meter.create_counter("c").add(1)
    other.meter.create_counter("c").add(2)
    garbage = mine.group.folder / "²-garbage.ledger"
    garbage.write_bytes(GARBAGE[content])
    assert mine.page() == {"c_total": 3.0}
    assert mine.everyone.workers() == 2
    other.die()
    mine.everyone.retire()
    assert mine.page() == {"c_total": 3.0}
    assert not garbage.exists()


def test_a_link_in_the_folder_is_told_and_left(open_worker: OpenWorker, caplog: pytest.LogCaptureFixture):
    """What cannot be opened is said once and is in nobody's way."""
    mine = open_worker()
    mine.meter.create_counter("c").add(1)
    (mine.group.folder / "0-x.ledger").symlink_to(mine.path)
    for _ in range(3):
        assert mine.page() == {"c_total": 1.0}
        mine.everyone.retire()
    assert len(said(caplog)) == 1


def test_a_folder_that_cannot_be_read_leaves_what_was_read(
    open_worker: OpenWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The page has the own numbers and those that were known; it is said once, and later all of it is there again."""
    mine, other = open_worker(), open_worker()
    mine.meter.create_counter("c").add(1)
    other.meter.create_counter("c").add(2)
    mine.page()
    with monkeypatch.context() as patched:
        patched.setattr(Group, "ledgers", fail)
        assert [mine.page() for _ in range(3)] == [{"c_total": 3.0}] * 3
    assert len(said(caplog)) == 1
    open_worker().meter.create_counter("c").add(4)
    assert mine.page() == {"c_total": 7.0}


def test_numbers_of_the_dead_that_cannot_be_read_are_not_written_over(
    open_worker: OpenWorker, monkeypatch: pytest.MonkeyPatch
):
    """A leader that is short of descriptors folds nobody until it has read what is there."""
    first, second, third, unseen = (open_worker() for _ in range(4))
    first.meter.create_counter("c").add(1)
    second.meter.create_counter("c").add(2)
    third.meter.create_counter("c").add(4)
    first.die()
    third.page()
    unseen.meter.create_counter("c").add(8)
    unseen.die()
    second.everyone.retire()
    second.die()
    with monkeypatch.context() as patched:
        patched.setattr(Retired, "load", fail)
        third.page()
        third.everyone.retire()
    third.everyone.retire()
    assert third.page() == {"c_total": 15.0}
    assert open_worker().page() == {"c_total": 15.0}


def test_a_ledger_that_could_not_be_mapped_is_not_folded(open_worker: OpenWorker, monkeypatch: pytest.MonkeyPatch):
    """A dead worker's numbers are folded when they were read, and its file stays until then."""
    mine, other = open_worker(), open_worker()
    mine.meter.create_counter("c").add(1)
    other.meter.create_counter("c").add(2)
    path = other.path
    other.die()
    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", fail)
        mine.everyone.retire()
    assert path.exists()
    mine.everyone.retire()
    assert not path.exists()
    assert mine.page() == {"c_total": 3.0}


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_damaged_numbers_of_the_dead_are_lost_and_said(
    open_worker: OpenWorker, content: bytes, caplog: pytest.LogCaptureFixture
):
    """The living are shown all the same, and those who die from now on are kept again."""
    mine, other = open_worker(), open_worker()
    mine.meter.create_counter("c").add(1)
    other.meter.create_counter("c").add(2)
    (mine.group.folder / RETIRED).write_bytes(content)
    assert mine.page() == {"c_total": 3.0}
    assert len(said(caplog)) == 1
    other.die()
    mine.everyone.retire()
    assert mine.page() == open_worker().page() == {"c_total": 3.0}


def test_where_the_folder_is_none_the_own_numbers_are_shown(tmp_path: Path):
    """A state folder that cannot be one takes nothing off this process's page."""
    (tmp_path / "file").write_text("")
    worker = Worker(tmp_path / "file")
    worker.meter.create_counter("c").add(1)
    worker.everyone.retire()
    assert worker.page() == {"c_total": 1.0}
    assert worker.everyone.workers() == 1


# --- Retiring, step by step ----------------------------------------------------------------------------------

STEPS = ["write_beside", "put_in_place", "unlink"]


class Stopped(BaseException):
    """The leader was killed here."""


def at_step(
    monkeypatch: pytest.MonkeyPatch, step: str, before: Callable[[], None], after: Callable[[], None] = lambda: None
) -> None:
    """Have something happen before and after a step of retiring, each time."""
    owner: Any = Path if step == "unlink" else retired_module
    real = getattr(owner, step)

    def stepping(path: Path, *arguments: Any, **named: Any) -> Any:
        if step == "unlink" and path.suffix != ".ledger":
            return real(path, *arguments, **named)
        before()
        result = real(path, *arguments, **named)
        after()
        return result

    monkeypatch.setattr(owner, step, stepping)


@pytest.fixture
def torn(open_worker: OpenWorker) -> tuple[Worker, Worker, float]:
    """A leader that has dead workers to fold, one that reads, and the total."""
    leader, reader = open_worker(), open_worker()
    amounts = [0.1, 0.7, 1 / 3, 1e16, 5e-324]
    leader.meter.create_counter("c").add(amounts[0])
    reader.meter.create_counter("c").add(0.0)
    dead = [open_worker() for _ in amounts[1:]]
    for worker, amount in zip(dead, amounts[1:], strict=True):
        worker.meter.create_counter("c").add(amount)
    dead.pop().die()
    leader.everyone.retire()
    for worker in dead:
        worker.die()
    return leader, reader, float(exactly(amounts))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("knows", [True, False])
def test_a_reader_sees_the_same_at_each_step_of_retiring(
    torn: tuple[Worker, Worker, float],
    open_worker: OpenWorker,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    knows: bool,
):
    """Before and after each step whoever reads, for the first time or again, finds every number once."""
    leader, reader, total = torn
    pages = []

    def look() -> None:
        pages.append((reader if knows else open_worker()).page())

    if knows:
        look()
    at_step(monkeypatch, step, look, look)
    leader.everyone.retire()
    look()
    assert len(pages) >= 3
    assert {page["c_total"] for page in pages} == {total}


READING = [
    (everyone_module, "mark_of"),
    (Retired, "load"),
    (Group, "ledgers"),
    (Everyone, "_meet"),
    (peers_module.os, "open"),
    (Peer, "look"),
    (peers_module, "is_locked"),
    (Peer, "_map"),
    (mmap, "mmap"),
    (Peer, "_read"),
    (Everyone, "_gather"),
]


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize(("owner", "name"), READING, ids=[name for _, name in READING])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_the_dead_are_folded_in_the_middle_of_a_reading(
    torn: tuple[Worker, Worker, float],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    nth: int,
    knows: bool,
):
    """At whatever step of its reading the leader folds and removes the dead, a reader finds every number once."""
    leader, reader, total = torn
    if knows:
        assert reader.page()["c_total"] == total
    real, calls = getattr(owner, name), 0

    def interrupted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            leader.everyone.retire()
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, interrupted)
        page = reader.page()
    assert page["c_total"] == total
    leader.everyone.retire()
    assert reader.page()["c_total"] == leader.page()["c_total"] == total


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_leader_killed_in_the_middle_of_retiring_loses_nothing(
    torn: tuple[Worker, Worker, float], monkeypatch: pytest.MonkeyPatch, step: str, late: bool
):
    """Whoever leads next, and whoever reads meanwhile, finds every number once."""
    leader, reader, total = torn

    def stop() -> None:
        raise Stopped

    with monkeypatch.context() as patched:
        at_step(patched, step, *((lambda: None, stop) if late else (stop,)))
        with pytest.raises(Stopped):
            leader.everyone.retire()
    leader.die()
    assert reader.page()["c_total"] == total
    assert reader.group.try_to_lead()
    reader.everyone.retire()
    assert reader.page()["c_total"] == total
    assert {path.suffix for path in reader.files()} <= {"", ".ledger"}
    assert len(reader.files()) == 4


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("first", [False, True], ids=["some were retired before", "nobody was"])
def test_a_step_that_fails_is_tried_again(
    open_worker: OpenWorker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
    late: bool,
    first: bool,
):
    """On a full disk nothing is removed that was not saved; it is said once, and done when there is room again."""
    leader, reader = open_worker(), open_worker()
    leader.meter.create_counter("c").add(0.1)
    amounts = [0.1, 0.7] if first else [0.1, 0.3, 0.7]
    for amount in amounts[1:]:
        leader.everyone.retire()
        dead = open_worker()
        dead.meter.create_counter("c").add(amount)
        path = dead.path
        dead.die()
    total = float(exactly(amounts))
    with monkeypatch.context() as patched:
        at_step(patched, step, *((lambda: None, fail) if late else (fail,)))
        for _ in range(3):
            leader.everyone.retire()
            assert leader.page()["c_total"] == total
            assert reader.page()["c_total"] == total
            assert open_worker().page()["c_total"] == total
    assert len(said(caplog)) == 1
    leader.everyone.retire()
    assert not path.exists()
    for worker in (leader, reader, open_worker()):
        assert worker.page()["c_total"] == total


def test_the_cap_of_series_holds_for_the_dead(open_worker: OpenWorker, monkeypatch: pytest.MonkeyPatch):
    """Workers that come and go with ever new labels leave a bounded number of series."""
    monkeypatch.setattr(everyone_module, "_MOST_RETIRED", 1)
    leader = open_worker(max_series=5)
    leader.meter.create_counter("mine").add(1)
    for number in range(20):
        worker = open_worker(max_series=5)
        worker.meter.create_counter("c").add(1, {"n": number})
        worker.die()
        leader.everyone.retire()
    page = leader.page()
    assert len(page) == 1 + 6
    assert page['c_total{otel_metric_overflow="true"}'] == 15.0


@pytest.mark.parametrize("most", [1, 10])
def test_a_total_that_a_living_worker_has_goes_on_past_the_cap(
    open_worker: OpenWorker, monkeypatch: pytest.MonkeyPatch, most: int
):
    """However many series the dead have left, none that the living have as well steps back."""
    monkeypatch.setattr(everyone_module, "_MOST_RETIRED", most)
    leader = open_worker(max_series=5)
    leader.meter.create_counter("c").add(1, {"n": "leader's"})
    first, second, other = (open_worker(max_series=5) for _ in range(3))
    for worker, numbers in ((first, range(5)), (second, range(5, 9)), (other, range(5, 9))):
        for number in numbers:
            worker.meter.create_counter("c").add(10, {"n": number})
    second.meter.create_counter("c").add(10, {"n": "leader's"})
    before = leader.page()
    for worker in (first, second):
        worker.die()
        leader.everyone.retire()
        assert leader.page() == before == other.page()


# --- Who is there --------------------------------------------------------------------------------------------


def test_the_living_workers_are_counted(open_worker: OpenWorker, state: Path):
    """Who has started and has not ended is a worker; the process of the page and the dead are none."""
    mine = open_worker()
    assert mine.everyone.workers() == 1, "itself, of which the others cannot know yet"
    assert mine.everyone.is_alone
    mine.meter.create_counter("c").add(1)
    others = [open_worker() for _ in range(2)]
    for other in others:
        other.meter.create_counter("c").add(1)
    assert mine.group.try_to_lead()
    page = Worker(state, Group("group", state, inherited_lead=os.dup(mine.group.lead_file)))
    page.meter.create_counter("c").add(1)
    assert [worker.everyone.workers() for worker in (mine, *others, page)] == [3] * 4
    others.pop().die()
    assert mine.everyone.workers() == 2
    others.pop().leave()
    assert mine.everyone.workers() == 1
    assert mine.page() == {"c_total": 4.0}


def test_totals_are_those_of_the_group(open_worker: OpenWorker):
    """A row's totals count every worker, the dead too, by labels; a histogram's are its counts."""
    workers = [open_worker() for _ in range(3)]
    for worker in workers:
        worker.provider.instrument(PREDICTIONS).add(2, {"model_version": "1"})
        worker.provider.instrument(PREDICTION_DURATION).record(0.1, {"model_version": "1"})
    workers.pop().die()
    workers[0].everyone.retire()
    workers.pop().die()
    [mine] = workers
    assert mine.everyone.totals(PREDICTIONS) == [({"model_version": "1"}, 6.0)]
    assert mine.everyone.totals(PREDICTION_DURATION) == [({"model_version": "1"}, 3.0)]


def test_without_a_group_there_is_this_process(provider: MeterProvider):
    """Alone, nothing is looked for and nobody is retired."""
    provider.get_meter("m").create_counter("c").add(3)
    provider.everyone.retire()
    version, [share] = provider.everyone.shares()
    assert share.series[0].read() == [3.0]
    assert provider.everyone.shares()[0] == version
    assert provider.everyone.workers() == 0
    assert [*provider.everyone.follow()] == []


def test_a_worker_that_left_and_came_back_counts_once(open_worker: OpenWorker):
    """What a worker recorded before it left is the group's, and what it records afterwards its own."""
    mine, other = open_worker(), open_worker()
    for worker in (mine, other):
        worker.meter.create_counter("c").add(1)
    mine.provider.leave()
    assert mine.page() == other.page() == {"c_total": 2.0}
    mine.provider.ledger.rejoin()
    mine.meter.create_counter("c").add(1)
    assert mine.page() == other.page() == {"c_total": 3.0}
    other.everyone.retire()
    assert mine.page() == other.page() == {"c_total": 3.0}
    assert mine.path.exists()


# --- Their processes -----------------------------------------------------------------------------------------


def named(worker: Worker, pid: int) -> Worker:
    """A worker that has joined, as if it were the process of a pid."""
    worker.meter.create_counter("c").add(1)
    worker.provider.ledger.about[PID] = float(pid)
    return worker


def test_every_worker_knows_the_processes_of_all(open_worker: OpenWorker, state: Path):
    """The pids of the living stand under the labels that the page gives them, the page's process among them."""
    mine, other = open_worker(), named(open_worker(), 10)
    mine.meter.create_counter("c").add(1)
    assert mine.group.try_to_lead()
    page = named(Worker(state, Group("group", state, inherited_lead=os.dup(mine.group.lead_file))), 11)
    # This process, of which there are three here, never asks its own ledger who it is.
    assert mine.everyone.processes() == {"0": 10, "1": os.getpid(), "page": 11}
    assert other.everyone.processes() == {"0": os.getpid(), "1": os.getpid(), "page": 11}
    assert page.everyone.processes() == {"0": 10, "1": os.getpid(), "page": os.getpid()}


def test_the_dead_have_no_process_and_a_successor_has_its_own(open_worker: OpenWorker):
    """A number stands for the worker that has it now, before and after the dead are folded."""
    mine, first = named(open_worker(), 10), named(open_worker(), 11)
    own = {"0": os.getpid()}
    assert mine.everyone.processes() == own | {"1": 11}
    first.die()
    assert mine.everyone.processes() == own
    second = named(open_worker(), 12)
    assert mine.everyone.processes() == own | {"1": 12}
    mine.everyone.retire()
    assert mine.everyone.processes() == own | {"1": 12}
    second.leave()
    assert mine.everyone.processes() == own


def test_who_has_not_started_is_no_worker_and_has_no_process(open_worker: OpenWorker):
    """A master that only imports the application is left out, by the others and by itself."""
    mine, master = named(open_worker(), 10), named(open_worker(), 11)
    master.provider.ledger.note_started(has_started=False)
    assert mine.everyone.processes() == {"0": os.getpid()}
    assert master.everyone.processes() == {"0": 10}
    master.provider.ledger.note_started(has_started=True)
    assert mine.everyone.processes() == {"0": os.getpid(), "1": 11}


def test_a_pid_of_another_namespace_is_nobodys_here(open_worker: OpenWorker, caplog: pytest.LogCaptureFixture):
    """Containers that share memory have a pid 1 each: whose process cannot be known is left out, which is said once."""
    mine, near, far = (named(open_worker(), pid) for pid in (10, 11, 1))
    expected = {"0": os.getpid(), "1": 11}
    assert mine.everyone.processes() == expected | {"2": 1}
    far.provider.ledger.about[PID_NAMESPACE] += 1.0
    for _ in range(2):
        assert mine.everyone.processes() == expected
    assert len(said(caplog)) == 1
    assert "worker 2 runs in another pid namespace" in said(caplog)[0]
    far.leave()
    assert mine.everyone.processes() == expected
    another = named(open_worker(), 1)
    another.provider.ledger.about[PID_NAMESPACE] += 1.0
    assert mine.everyone.processes() == expected
    assert len(said(caplog)) == 2
    near.leave()


def test_a_ledger_says_which_process_it_is_of(open_worker: OpenWorker):
    """From its first record on, and again when its worker has left and come back."""
    here = Path("/proc/self/ns/pid")
    mine, other = open_worker(), open_worker()
    for worker in (mine, other):
        worker.meter.create_counter("c").add(1)
    for _ in range(2):
        peer = Peer(mine.path)
        peer.look()
        assert peer.pid == os.getpid()
        assert peer.pid_namespace == (here.stat().st_ino if here.exists() else 0)
        mine.provider.leave()
        mine.provider.ledger.rejoin()
        mine.meter.create_counter("c").add(1)


def test_a_worker_without_a_ledger_that_others_find_is_the_first_if_it_is_alone(provider: MeterProvider):
    """Where there is no group, or no room for a ledger, this process has the number that would be its own."""
    assert provider.everyone.processes() == {}
    provider.ledger.note_started(has_started=True)
    assert provider.everyone.processes() == {"0": os.getpid()}


def test_a_worker_without_a_ledger_takes_nobodys_number(open_worker: OpenWorker):
    """Beside another that has the first number it has none, and is left out."""
    named(open_worker(), 10)
    assert open_worker().everyone.processes() == {"0": 10}
