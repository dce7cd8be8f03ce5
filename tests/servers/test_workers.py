"""Several workers, one page, nothing lost: behind each server, under load, through kills, recycling and restarts."""

from __future__ import annotations

import math
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.client import HTTPException

import psutil
import pytest

from tests.servers.fleet import (
    IMPORTED_BY_PARENT,
    IMPORTS_BY_WORKER,
    SERVERS,
    Fleet,
    Growth,
    Load,
    Page,
    Place,
    Tally,
    Watch,
    place,
    post,
    recording,
    runs,
    serve,
)
from tests.servers.service import WAIT_S, get, listens, running, until

KILLS = {"uvicorn": 8, "gunicorn": 10, "gunicorn --preload": 24, "fastapi run": 4, "granian": 6}
"""How many workers are killed, 52 in all; hypercorn replaces none, and `python` is uvicorn as well."""

MOST_GAP_S = 1.0
"""How long the page may be away when the worker that serves it ends."""

RELATIVE_ERROR = 1e-12
"""What a few thousand additions of doubles are off by at most, each by 2**-53 of the sum."""

BEHIND_ALL = pytest.mark.parametrize("fleet", SERVERS, indirect=True)
BEHIND_GUNICORN = pytest.mark.parametrize("fleet", ["gunicorn", "gunicorn --preload"], indirect=True)


def requests(tally: Tally) -> float:
    return len(tally)


def rows(tally: Tally) -> float:
    return sum(rows for rows, _ in tally)


def amount(tally: Tally) -> float:
    return math.fsum(amount for _, amount in tally)


def values(tally: Tally) -> float:
    return math.fsum(rows * amount for rows, amount in tally)


COUNTED: tuple[tuple[str, dict[str, str], Callable[[Tally], float]], ...] = (
    ("api_requests_total", {"endpoint": "/record", "status_code": "200"}, requests),
    ("api_request_duration_seconds_count", {"endpoint": "/record"}, requests),
    ("api_request_duration_seconds_bucket", {"endpoint": "/record", "le": "+Inf"}, requests),
    ("predictions_total", {"model_version": "v1"}, rows),
    ("daily_predictions_total", {"model_version": "v1"}, rows),
    ("prediction_duration_seconds_count", {"model_version": "v1"}, requests),
    ("prediction_batch_size_sum", {"model_version": "v1"}, rows),
    ("prediction_values_count", {"model_version": "v1"}, rows),
    ("prediction_values_sum", {"model_version": "v1"}, values),
    ("fleet_amount_total", {}, amount),
    ("fleet_size_count", {}, requests),
    ("fleet_size_sum", {}, amount),
)
"""What a request to /record leaves on the page: the sample, its labels, and what of the requests it says."""

AT_REST = (
    "active_connections_count",
    "api_requests_in_progress",
    "predictions_in_progress",
    "fleet_under_way",
    "http_server_active_requests",
)
"""What is 0 when nothing goes on, whoever has died in the middle of something."""


def counted(page: Page) -> list[float]:
    """What a page says of the requests to /record."""
    return [page.total(name, **labels) for name, labels, _ in COUNTED]


def check_counted(before: list[float], page: Page, at_least: Tally, at_most: Tally) -> None:
    """Hold what has come onto a page since `before` against what was sent, and against what was acknowledged."""
    for was, (name, labels, of) in zip(before, COUNTED, strict=True):
        if name == "daily_predictions_total" and time.time() % 86_400 < 300:
            continue  # a new day may have begun since, in UTC: no test takes five minutes
        now = page.total(name, **labels)
        off = 0.0 if of in (requests, rows) else RELATIVE_ERROR * now
        assert of(at_least) - off <= now - was <= of(at_most) + off, (name, was, now)


def rest(fleet: Fleet) -> None:
    """Wait until nothing goes on, and the page says so."""
    until(lambda: not any(fleet.page().total(name) for name in AT_REST))


def check_watch(watch: Watch) -> None:
    """No sample stepped back, and no page was wrong."""
    assert not watch.faults, watch.faults[:20]


@pytest.fixture(scope="module")
def fleet(request) -> Iterator[Fleet]:
    """A service of four workers, which tests share: what they leave behind does not matter to the next."""
    folder = request.getfixturevalue("tmp_path_factory").mktemp("service")
    with place() as at:
        with serve(request.param, folder, at=at) as fleet:
            yield fleet
        assert at.files() == [], "left by the workers after their graceful end"


@pytest.fixture
def at() -> Iterator[Place]:
    """A port and a folder that outlive a service."""
    with place() as at:
        yield at


# --- One page ------------------------------------------------------------------------------------------------


@BEHIND_ALL
def test_one_page_has_the_numbers_of_all_workers(fleet):
    """What the workers have answered is on the page at once, all of it and no more, and nothing is in progress."""
    rest(fleet)
    before = counted(fleet.page())
    tally = [one for pid in fleet.worker_pids() for one in fleet.record(5, of=pid)]

    check_counted(before, fleet.page(), tally, tally)
    rest(fleet)


@BEHIND_ALL
def test_facts_of_the_host_and_of_the_group_stand_there_once(fleet):
    """One worker reads the machine for all, and the page knows how many they are."""
    for name in ("system_cpu_usage_percent", "system_memory_total_bytes", "otel_mlops_build_info"):
        until(lambda name=name: len(fleet.page().of(name)) == 1)
    assert len(fleet.page().of("otel_mlops_source_up", source="host")) == 1
    fleet.worker_pids()
    # Whoever supervises them is none of them, though it may have recorded something at import time.
    until(lambda: fleet.page().total("otel_mlops_workers") == fleet.workers)
    assert len(fleet.page().of("otel_mlops_workers")) == 1


@BEHIND_ALL
def test_a_worker_leads_and_not_its_parent(fleet):
    """Whoever supervises the workers does not listen on the page's port, though it may have imported the module."""
    until(fleet.listeners)
    assert fleet.process.pid not in fleet.listeners()
    assert fleet.leader() in fleet.worker_pids()


@BEHIND_ALL
def test_an_observable_has_a_sample_of_each_worker(fleet):
    """Callbacks of a user say something of their own worker: each has one sample, with a small number that stays."""
    pids = {float(pid) for pid in fleet.worker_pids()}
    until(lambda: sorted(fleet.page().of("fleet_pid").values()) == sorted(pids))
    seen = fleet.page().of("fleet_pid")

    numbers = [dict(labels)["worker"] for _, labels in seen]
    assert len(set(numbers)) == len(pids)
    assert all(0 <= int(number) <= 2 * fleet.workers for number in numbers)
    fleet.record(5)
    assert fleet.page().of("fleet_pid") == seen


@BEHIND_ALL
def test_what_one_worker_forgets_is_gone_from_the_page(fleet):
    """`forget` in one worker removes the series of all of them within a second, and they begin anew."""
    pids = sorted(fleet.worker_pids())
    for pid in pids:
        fleet.record(1, of=pid, version="v2")
    assert fleet.page().of("predictions_total", model_version="v2")
    before = counted(fleet.page())

    # The watch is for how late the machine makes it; that series go away is what is asked for.
    with Watch(fleet) as watch, closing(fleet.line(of=pids[0])) as line:
        forgotten, waited = time.monotonic(), fleet.waited()
        post(line, "/forget?version=v2")
        until(lambda: not [series for series in fleet.page().samples if ("model_version", "v2") in series[1]])
        gone = time.monotonic()
        assert gone - forgotten - watch.late_s(forgotten, gone, waited) < MOST_GAP_S

    check_counted(before, fleet.page(), [], [])
    tally: Tally = []
    for pid in pids:
        tally += fleet.record(1, of=pid, version="v2")
        assert fleet.page().total("predictions_total", model_version="v2") == rows(tally)


@pytest.mark.parametrize("mode", ["uvicorn", *sorted(IMPORTED_BY_PARENT)])
def test_what_is_recorded_at_import_time_is_on_the_page_once(mode, tmp_path):
    """Each execution of the module has recorded one load of the model: nothing is lost, nothing counted twice."""
    # A master that has imported the module for its workers has recorded alone, and they do not repeat it.
    with serve(mode, tmp_path, workers=2) as fleet:
        for pid in fleet.worker_pids():
            fleet.record(1, of=pid)
        executed = 2 * IMPORTS_BY_WORKER.get(mode, 1) + (mode in IMPORTED_BY_PARENT)
        assert fleet.page().total("model_load_duration_seconds_count") == executed


# --- Deaths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fleet", KILLS, indirect=True)
def test_kills_under_load_lose_nothing(fleet):
    """Workers die by SIGKILL, the one that leads as often as not, and the page goes on as if nothing had happened."""
    # Every total lies between what was acknowledged and what was sent, none ever steps back by as much as a digit,
    # and within a second of a leader's death another worker serves the page.
    rest(fleet)
    before = counted(fleet.page())
    led = 0
    with Watch(fleet) as watch, Load(fleet) as load:
        for number in range(KILLS[fleet.mode]):
            # Two that have answered, and so recorded, are always left: without one of them the group would end.
            alive, spare, leader = fleet.worker_pids(at_least=fleet.workers - 1), spared(fleet), fleet.leader()
            if number % 2 == 0 and leader not in spare:
                led += 1
                with watch.within(MOST_GAP_S):
                    fleet.kill(leader)
            else:
                fleet.kill(random.choice(sorted(alive - {leader} - spare)))
        fleet.worker_pids()
    rest(fleet)

    check_watch(watch)
    assert led >= KILLS[fleet.mode] // 4
    assert not load.refused
    assert load.acknowledged
    check_counted(before, fleet.page(), load.acknowledged, load.sent)


def spared(fleet: Fleet) -> set[int]:
    """The youngest worker of granian: one that dies soon after it was started ends the whole server."""
    if fleet.mode != "granian":
        return set()
    workers = [psutil.Process(pid) for pid in fleet.worker_pids(at_least=fleet.workers)]
    return {max(workers, key=lambda worker: worker.create_time()).pid}


@BEHIND_GUNICORN
def test_a_forked_child_keeps_neither_port_nor_lead(fleet):
    """A child that the leader has forked for some work outlives it, and another worker leads all the same."""
    leader = fleet.leader()
    child = fleet.ask("/fork", of=leader)
    try:
        assert child not in fleet.listeners()
        with Watch(fleet) as watch, watch.within(MOST_GAP_S):
            fleet.kill(leader)
        assert runs(child)
        assert child not in fleet.listeners()
        check_watch(watch)
        before = counted(fleet.page())
        tally = [one for pid in fleet.worker_pids() for one in fleet.record(2, of=pid)]
        check_counted(before, fleet.page(), tally, tally)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_page_process_may_die_and_so_may_its_worker(tmp_path):
    """Where the page has a process of its own, the end of that, of its worker, and of both goes unnoticed."""
    with (
        serve("gunicorn --preload", tmp_path, workers=3, OTEL_MLOPS_PAGE_PROCESS="true") as fleet,
        Watch(fleet) as watch,
    ):
        tally = [one for pid in fleet.worker_pids() for one in fleet.record(5, of=pid)]
        for victims in ("page", "worker", "both"):
            page, worker = fleet.page_process(), fleet.leader()
            with watch.within(MOST_GAP_S):
                for pid in {"page": [page], "worker": [worker], "both": [worker, page]}[victims]:
                    if runs(pid):
                        fleet.kill(pid)
            fleet.worker_pids()
        check_watch(watch)
        check_counted([0.0] * len(COUNTED), fleet.page(), tally, tally)


@pytest.mark.parametrize("mode", ["uvicorn", "gunicorn --preload", "hypercorn"])
def test_after_a_total_kill_the_next_start_is_clean(mode, at, tmp_path):
    """When every process was killed, the next start begins at nothing and sweeps what they left."""
    with serve(mode, tmp_path, workers=2, at=at) as fleet:
        fleet.record(10)
        if mode == "hypercorn":  # one is enough: the parent then ends the others, and does not let them finish
            fleet.kill(fleet.leader())
            fleet.process.wait(WAIT_S)
            until(lambda: not fleet.processes())
        else:
            fleet.kill_all()
    left = at.files()
    assert left, "killed workers cannot have cleared up"

    check_begins_at_nothing(mode, at, tmp_path)
    assert not [path for path in left if path.exists()]


def check_begins_at_nothing(mode: str, at: Place, folder) -> None:
    """Start once more at a place where others have been: the page has what is recorded now, and nothing else."""
    with serve(mode, folder, workers=2, at=at) as fleet:
        tally = [one for pid in fleet.worker_pids() for one in fleet.record(3, of=pid)]
        check_counted([0.0] * len(COUNTED), fleet.page(), tally, tally)
    assert at.files() == []


# --- Recycling and restarts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "limit"), [("uvicorn", "--limit-max-requests"), ("gunicorn", "--max-requests")])
def test_recycling_resets_nothing(mode, limit, tmp_path):
    """Workers that end after so many requests and are replaced leave their numbers behind, the leader too."""
    # One ends after the other: the page says who is there, since asking the workers would use all of them up.
    with serve(mode, tmp_path, workers=3, arguments=(limit, "200")) as fleet:

        def alive() -> set[int]:
            return {int(pid) for pid in fleet.page().of("fleet_pid").values()}

        before = counted(fleet.page())
        tally: Tally = []
        with Watch(fleet) as watch:
            for number in range(3):
                until(lambda: len(alive()) >= 2)
                leader = fleet.leader()
                spent = leader if number != 1 else random.choice(sorted(alive() - {leader}))
                with watch.within(MOST_GAP_S):
                    tally += use_up(fleet, spent)
            until(lambda: len(alive()) == 3)
        rest(fleet)

        check_watch(watch)
        check_counted(before, fleet.page(), tally, tally)


def use_up(fleet: Fleet, pid: int) -> Tally:
    """Give a worker requests until it ends; one that finds its connection closed has recorded nothing."""
    tally: Tally = []
    with closing(fleet.line(of=pid)) as line, suppress(OSError, HTTPException):  # that is how it ends
        while line.sock is not None:
            post(line, recording(2, 0.1))
            tally.append((2, 0.1))
    until(lambda: not runs(pid), 2 * WAIT_S)
    return tally


@pytest.mark.parametrize("mode", ["uvicorn", "gunicorn --preload"])
def test_a_rolling_restart_resets_nothing(mode, at, tmp_path):
    """A second server of the same service joins, the first ends, and the totals go on; the last leaves nothing."""
    tally: Tally = []

    def record_in_each(fleet: Fleet) -> None:
        for pid in fleet.worker_pids():
            tally.extend(fleet.record(3, of=pid))

    with serve(mode, tmp_path, workers=2, at=at) as old:
        record_in_each(old)
        with serve(mode, tmp_path, workers=2, at=at) as new, Watch(new) as watch:
            record_in_each(new)
            record_in_each(old)
            check_counted([0.0] * len(COUNTED), new.page(), tally, tally)
            with watch.within(MOST_GAP_S):
                old.stop()
            record_in_each(new)
            check_counted([0.0] * len(COUNTED), new.page(), tally, tally)
            assert new.leader() in new.worker_pids()
        check_watch(watch)
    assert at.files() == []

    check_begins_at_nothing(mode, at, tmp_path)


# --- A worker that is stuck ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("stuck", "page_process"), [("follower", "false"), ("follower", "true"), ("leader", "true")])
def test_a_worker_that_holds_its_interpreter_delays_nobody(stuck, page_process, tmp_path):
    """While one worker runs nothing but one long call in C, the page has the others' numbers and its last ones."""
    # Where the page has a process of its own, the worker may be the one that leads.
    with (
        serve("gunicorn --preload", tmp_path, workers=3, OTEL_MLOPS_PAGE_PROCESS=page_process) as fleet,
        closing(socket.create_server(("127.0.0.1", 0))) as gate,
    ):
        pids, leader = fleet.worker_pids(), fleet.leader()
        holder = leader if stuck == "leader" else min(pids - {leader})
        if page_process == "true":
            fleet.page_process()
        others = pids - {holder}
        tally = fleet.record(5, of=holder)
        with Watch(fleet) as watch:
            holding = threading.Thread(
                target=fleet.ask, args=(f"/hold?port={gate.getsockname()[1]}",), kwargs={"of": holder}
            )
            holding.start()
            gate.settimeout(WAIT_S)
            released, _ = gate.accept()
            with closing(released):
                with watch.within(MOST_GAP_S), Load(fleet) as load:
                    for pid in others:
                        tally += fleet.record(5, of=pid)
                check_counted([0.0] * len(COUNTED), fleet.page(), tally + load.acknowledged, tally + load.sent)
                assert holding.is_alive()
                released.sendall(b".")
            holding.join(WAIT_S)
        check_watch(watch)


# --- The watch itself ----------------------------------------------------------------------------------------

BEFORE = """# TYPE a_total counter
a_total{x="1"} 0.30000000000000004
# TYPE h histogram
h_bucket{le="1.0"} 3
h_bucket{le="+Inf"} 4
h_count 4
h_sum 2.5
# TYPE g gauge
g 7
# TYPE daily_predictions_total counter
daily_predictions_total 9
"""
NOON_S, MIDNIGHT_S = 43_200.0, 86_400.0


@pytest.mark.parametrize(
    ("line", "after", "steps_back"),
    [
        ("g 7", "g 6", False),
        ('a_total{x="1"} 0.30000000000000004', 'a_total{x="1"} 0.4', False),
        ('a_total{x="1"} 0.30000000000000004', 'a_total{x="1"} 0.3', True),
        ('a_total{x="1"} 0.30000000000000004', 'a_total{x="1"} NaN', True),
        ('a_total{x="1"} 0.30000000000000004', 'a_total{x="2"} 0.4', True),
        ('h_bucket{le="1.0"} 3', 'h_bucket{le="1.0"} 2', True),
        ("h_count 4", "h_count 3", True),
        ("h_sum 2.5", "h_sum 2.4999999999999996", True),
        ("daily_predictions_total 9", "daily_predictions_total 8", True),
    ],
)
def test_the_watch_sees_what_steps_back(line, after, steps_back):
    """The smallest step back of what may only grow is seen, and a series that is gone; a gauge may fall."""
    growth = Growth()
    for text in (BEFORE, BEFORE.replace(line, after)):
        growth.look(Page(text).growing(), NOON_S)

    assert len(growth.faults) == steps_back, growth.faults


def test_the_watch_lets_a_new_day_begin():
    """Today's predictions may fall at midnight, and nothing else may."""
    growth = Growth()
    fallen = BEFORE.replace("total 9", "total 0")
    for text in (BEFORE, fallen):
        growth.look(Page(text).growing(), MIDNIGHT_S)
    assert growth.faults == []

    growth.look(Page(fallen.replace("h_count 4", "h_count 3")).growing(), MIDNIGHT_S)
    assert len(growth.faults) == 1


def test_a_series_stands_once_on_a_page():
    """The same labels in another order are the same series."""
    with pytest.raises(ValueError, match="stands twice"):
        Page('a{x="1",y="2"} 1\na{y="2",x="1"} 2\n')


RELOADED = """
    import os
    from fastapi import FastAPI
    from otel_mlops import configure_telemetry

    app = FastAPI(title="reloaded")
    telemetry = configure_telemetry(app)

    @app.get("/pid")
    def pid() -> int:
        return os.getpid()
"""


def test_reloading_begins_anew_on_the_same_port(tmp_path):
    """With `--reload` the next worker has the page's port at once, and the old one leaves nothing behind."""
    asked = 'api_requests_total{endpoint="/pid",method="GET",status_code="200"} '
    with running(RELOADED, tmp_path, arguments=["--reload"], OTEL_MLOPS_STATE_DIR=str(tmp_path / "state")) as service:
        first = get(f"{service.url}/pid")[0]
        until(lambda: asked + "1" in get(service.page_url)[0])
        code = tmp_path / "service.py"
        code.write_text(code.read_text() + "# changed\n")

        def pid() -> str:
            with suppress(OSError):  # between the two nobody listens
                return get(f"{service.url}/pid")[0]
            return first

        until(lambda: pid() != first)
        until(lambda: listens(service.page_port))
        until(lambda: asked in get(service.page_url)[0])
        assert "another program" not in service.said()
        assert len(list((tmp_path / "state").rglob("*.ledger"))) <= 2, "the worker's, and that of the page's process"
