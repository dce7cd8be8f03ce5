"""The leader of real server processes is killed in the middle of retiring the dead, before and after each step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from otel_mlops.sdk.retired import Retired
from tests.servers import fleet as fleet_module
from tests.servers.fleet import AMOUNTS, Fleet, Watch, runs, serve
from tests.servers.service import until

STEPS = ["write_beside", "put_in_place", "unlink"]
MOMENTS = [f"{step} {moment}" for step in STEPS for moment in ("before", "after")]

KILLS_ITSELF = """
    import os as _os, pathlib, signal, sys as _sys
    from otel_mlops.sdk import retired as _retired

    order = pathlib.Path("order")

    def _stepping(owner, step):
        real = getattr(owner, step)

        def end(moment):
            if order.exists() and order.read_text() == f"{step} {moment}":
                order.rename("done")
                _os.kill(_os.getpid(), signal.SIGKILL)

        def stepping(path, *arguments, **named):
            if step == "unlink" and _sys._getframe(1).f_code.co_name != "retire":
                return real(path, *arguments, **named)
            end("before")
            result = real(path, *arguments, **named)
            end("after")
            return result

        setattr(owner, step, stepping)

    _stepping(_retired, "write_beside")
    _stepping(_retired, "put_in_place")
    _stepping(pathlib.Path, "unlink")
"""
"""Before the service's own code: whoever is at the step that `order` names ends by SIGKILL, once."""


class Recorded:
    """What each worker has recorded, and so what the page must say, to the last digit."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._rows = 0
        self._amounts: dict[int, float] = {}

    def record(self, pid: int, times: int) -> None:
        """Let a worker record."""
        for rows, amount in self._fleet.record(times, of=pid):
            self._rows += rows
            self._amounts[pid] = self._amounts.get(pid, 0.0) + amount

    def is_on_the_page(self) -> bool:
        """Whether the page says just that."""
        page = self._fleet.page()
        rows, amount = page.total("predictions_total"), page.total("fleet_amount_total")
        return (rows, amount) == (self._rows, math.fsum(self._amounts.values()))


def order_a_death(folder: Path, moment: str) -> None:
    """Have the next who retires end at a step."""
    (folder / "done").unlink(missing_ok=True)
    beside = folder / "order.new"
    beside.write_text(moment)
    beside.rename(folder / "order")


def test_a_leader_killed_at_each_step_of_retiring_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The totals are exact afterwards, none ever steps back, what the dead have left is readable, no file piles up."""
    monkeypatch.setattr(fleet_module, "SERVICE", KILLS_ITSELF + fleet_module.SERVICE)
    with serve("uvicorn", tmp_path, OTEL_MLOPS_PAGE_PROCESS="False") as fleet, Watch(fleet) as watch:
        recorded = Recorded(fleet)
        for number, moment in enumerate(MOMENTS):
            workers, leader = fleet.worker_pids(), fleet.leader()
            for pid in workers:
                recorded.record(pid, len(AMOUNTS) + number)
            victim = min(workers - {leader})
            order_a_death(tmp_path, moment)
            fleet.kill(victim)
            until((tmp_path / "done").exists)
            until(lambda pid=leader: not runs(pid))
            until(fleet.listeners)
            seen = len(watch.good)
            until(lambda seen=seen: len(watch.good) > seen)
            assert recorded.is_on_the_page(), moment
            until(lambda: len(ledgers(fleet)) <= fleet.workers)
            assert recorded.is_on_the_page(), moment
        [retired] = fleet.place.state.rglob("retired")
        left = Retired.load(retired)
        assert {"predictions", "fleet.amount"} <= {stream.name for stream in left.streams}
        assert len(left.names) <= 4
        assert len(fleet.place.files()) <= fleet.workers + 8
    assert not watch.faults, watch.faults[:20]


def ledgers(fleet: Fleet) -> list[Path]:
    """The ledgers there are."""
    return [path for path in fleet.place.files() if path.suffix == ".ledger"]
