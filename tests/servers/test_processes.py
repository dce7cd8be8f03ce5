"""What a page says of each worker's process: while it lives, when it dies, and whoever leads."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from otel_mlops.metrics import (
    EVENT_LOOP_LAG,
    PROCESS_CPU,
    PROCESS_MAX_FDS,
    PROCESS_OPEN_FDS,
    PROCESS_PROPORTIONAL_MEMORY,
    PROCESS_RESIDENT_MEMORY,
    PROCESS_START_TIME,
    PROCESS_THREADS,
    PYTHON_GC_PAUSE,
)
from otel_mlops.sdk.peers import about_of
from otel_mlops.sdk.records import PID
from tests.servers.fleet import Fleet, Page, runs, serve
from tests.servers.service import WAIT_S, until

READ = [
    PROCESS_CPU, PROCESS_OPEN_FDS, PROCESS_RESIDENT_MEMORY, PROCESS_START_TIME, PROCESS_THREADS,
    *([PROCESS_MAX_FDS, PROCESS_PROPORTIONAL_MEMORY] if sys.platform == "linux" else []),
]  # fmt: skip
EVERYBODY = {"0", "1", "page"}
STARTED, CPU = PROCESS_START_TIME.page_name, PROCESS_CPU.page_name
PAUSES, LAGS = f"{PYTHON_GC_PAUSE.page_name}_count", f"{EVENT_LOOP_LAG.page_name}_count"
LAG = f"{EVENT_LOOP_LAG.page_name}_sum"
HOLD_S = 2.0


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Two workers, and their page in a process of its own."""
    with serve("uvicorn", tmp_path, workers=2) as fleet:
        yield fleet


def of_workers(page: Page, name: str) -> dict[str, float]:
    """The values of a metric by the worker."""
    return {dict(labels)["worker"]: value for (_, labels), value in page.of(name).items()}


def pids(fleet: Fleet) -> dict[str, int]:
    """The processes of those that live by the number in their ledgers' names."""
    found = {}
    for path in fleet.place.state.rglob("*.ledger"):
        with suppress(FileNotFoundError):  # folded meanwhile
            found[path.name.partition("-")[0]] = int(about_of(path)[PID])
    return {number: pid for number, pid in found.items() if runs(pid)}


def told(fleet: Fleet) -> dict[str, int]:
    """The processes that there are, by their numbers, once the page tells of just them, each under its number."""
    found: dict[str, int] = {}

    def is_told() -> bool:
        found.clear()
        found.update(pids(fleet))
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            started = {number: psutil.Process(pid).create_time() for number, pid in found.items()}
            return found.keys() == EVERYBODY and of_workers(fleet.page(), STARTED) == pytest.approx(started, abs=0.02)
        return False

    until(is_told, 2 * WAIT_S)
    assert {found["0"], found["1"]} == fleet.worker_pids()
    return found


def test_each_worker_is_told_of_and_its_successor_in_its_place(fleet: Fleet):
    """A worker's series stand under its number, the page's process is `page`, and the dead leave theirs to others."""
    before = told(fleet)
    until(lambda: all(of_workers(fleet.page(), row.page_name).keys() == EVERYBODY for row in READ))
    until(lambda: of_workers(fleet.page(), LAGS).keys() == {"0", "1"})
    page = fleet.page()
    assert of_workers(page, PAUSES).keys() == EVERYBODY
    assert all(value > 0 for row in READ for value in of_workers(page, row.page_name).values())
    assert before["page"] == fleet.page_process()

    leader = fleet.leader()
    [number] = [number for number in ("0", "1") if before[number] != leader]
    fleet.kill(before[number])
    until(lambda: pids(fleet).get(number, before[number]) != before[number])
    after = told(fleet)
    assert {each for each in EVERYBODY if after[each] != before[each]} == {number}
    for each in EVERYBODY - {number}:
        assert of_workers(fleet.page(), CPU)[each] >= of_workers(page, CPU)[each]


def test_whoever_leads_tells_the_same(fleet: Fleet):
    """When the page's process dies, and when the leader does, the totals of those that live go on."""
    for end in (fleet.page_process, fleet.leader):
        before, page = told(fleet), fleet.page()
        ended = end()
        fleet.kill(ended)
        until(lambda ended=ended: ended not in pids(fleet).values() and pids(fleet).keys() == EVERYBODY)
        after = told(fleet)
        lives = {each for each in EVERYBODY if after[each] == before[each]}
        assert lives
        for each in lives:
            assert of_workers(fleet.page(), CPU)[each] >= of_workers(page, CPU)[each]


def test_a_worker_that_is_stuck_is_told_of_and_its_lag_is_seen(fleet: Fleet):
    """Its process is read from outside while its interpreter does nothing else; afterwards its loop says how long."""
    stuck = fleet.leader()
    [number] = [number for number, pid in told(fleet).items() if pid == stuck]
    until(lambda: number in of_workers(fleet.page(), LAG))
    before = of_workers(fleet.page(), LAG)[number]
    with closing(socket.create_server(("127.0.0.1", 0))) as gate:
        path = f"/hold?port={gate.getsockname()[1]}"
        holding = threading.Thread(target=fleet.ask, args=(path,), kwargs={"of": stuck})
        holding.start()
        gate.settimeout(WAIT_S)
        released, _ = gate.accept()
        with closing(released):
            held = time.monotonic()
            until(lambda: time.monotonic() > held + HOLD_S)
            page = fleet.page()
            assert of_workers(page, CPU).keys() == EVERYBODY
            assert page.total("otel_mlops_source_up", source="process") == 1
            # It has been read since: that is done twice a second.
            assert page.total("otel_mlops_source_age_seconds", source="process") < HOLD_S
            released.sendall(b".")
        holding.join(WAIT_S)
    # The timer was due a quarter of a second after the loop was held up at the latest.
    until(lambda: of_workers(fleet.page(), LAG)[number] - before >= HOLD_S - 0.25)
