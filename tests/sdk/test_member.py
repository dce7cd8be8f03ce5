"""A member of a group: when it leads and when it does not any more, and what it does for the others."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from otel_mlops.sdk import group as group_module
from otel_mlops.sdk import member as member_module
from otel_mlops.sdk.group import Group
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.member import Member
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.sdk.records import LEADS
from tests import waiting

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork: run this on Linux or macOS")

A_LONG_TIME_S = 30.0
eventually = partial(waiting.eventually, within_s=A_LONG_TIME_S)
NEVER_S = 1e6


class Worker:
    """A worker of a group in this process: what its member calls is noted."""

    def __init__(self, group: Group | None, provider: MeterProvider, *, refresh_s: float = NEVER_S) -> None:
        self.group = group
        self.provider = provider
        self.calls: list[Any] = []
        self.fails: set[str] = set()
        self.retires = True
        self.member = Member(
            group,
            provider,
            on_lead=lambda: self._note("lead"),
            on_lost=lambda: self._note("lost"),
            on_forget=self._forget,
            refresh=lambda: self._note("refresh"),
            refresh_s=refresh_s,
            retires=lambda: self.retires,
        )
        self.counter = provider.get_meter("m").create_counter("c")

    def join(self) -> None:
        """Record something, as a service does before it starts."""
        self.counter.add(1, {"kept": "yes"})

    def _forget(self, labels: Mapping[str, str]) -> None:
        self._note(f"forget {dict(labels)}")
        self.provider.forget(labels)

    def _note(self, call: Any) -> None:
        self.calls.append(call)
        if call in self.fails:
            raise RuntimeError(f"{call} failed")


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is done soon: what is waited for is that it is done."""
    monkeypatch.setattr(group_module, "_PATIENCE_S", A_LONG_TIME_S)
    monkeypatch.setattr(member_module, "_LOOK_S", 0.005)
    monkeypatch.setattr(member_module, "_TIDY_S", 0.02)


@pytest.fixture
def hire(open_provider: Callable[..., MeterProvider], tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Makes workers of one group, which end with the test."""
    workers: list[Worker] = []

    def one(*, in_group: bool = True, **arguments: Any) -> Worker:
        group = Group("house", tmp_path) if in_group else None
        provider = open_provider(ledger=Ledger(group), group=group)
        workers.append(Worker(group, provider, **arguments))
        return workers[-1]

    yield one
    for each in workers:
        each.member.stop(A_LONG_TIME_S)
        each.provider.leave()
        each.member.give_up()


LEADS_AND_WAITS = """
import sys
from pathlib import Path
from otel_mlops.sdk.group import Group
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.member import Member
from otel_mlops.sdk.provider import MeterProvider
group = Group("house", Path(sys.argv[1]))
provider = MeterProvider(ledger=Ledger(group), group=group)
provider.get_meter("m").create_counter("c").add(5, {"kept": "yes"})
member = Member(
    group, provider, on_lead=lambda: print("leads", flush=True), on_lost=int, on_forget=int, refresh=int, refresh_s=1e6
)
member.start()
sys.stdin.readline()
"""


# --- Leading ------------------------------------------------------------------------------------------------


def test_who_is_alone_leads_at_once(hire: Callable[..., Worker]):
    """When `start()` returns, the only worker leads; stopping ends the thread and leaves what is led to the caller."""
    worker = hire()
    worker.join()
    worker.member.start()
    assert worker.calls == ["lead"]
    assert worker.member.leads
    assert worker.provider.ledger.about[LEADS] == 1.0  # which the others see
    worker.member.stop(A_LONG_TIME_S)
    assert worker.calls == ["lead"]
    worker.member.give_up()
    assert not worker.member.leads


def test_without_a_group_it_leads_and_has_no_thread(hire: Callable[..., Worker]):
    """A worker where there are no groups leads by itself, and nothing runs for that."""
    worker = hire(in_group=False)
    before = threading.active_count()
    worker.member.start()
    assert (worker.calls, worker.member.leads, threading.active_count()) == (["lead"], True, before)
    worker.member.stop(A_LONG_TIME_S)
    worker.member.give_up()
    assert not worker.member.leads


def test_the_second_stands_by_and_takes_over(hire: Callable[..., Worker]):
    """While one leads another does not; it does when the first gives the lead up."""
    first, second = hire(), hire()
    for each in (first, second):
        each.join()
        each.member.start()
    eventually(lambda: second.member._tidy_at > time.monotonic())
    assert (first.calls, second.calls) == (["lead"], [])
    first.member.stop(A_LONG_TIME_S)
    first.provider.leave()
    assert second.calls == []
    first.member.give_up()
    eventually(lambda: second.calls)
    assert (second.calls, second.member.leads) == (["lead"], True)


def test_a_killed_leader_is_followed_by_who_stands_by(hire: Callable[..., Worker], tmp_path: Path):
    """The death of the process that leads makes another one lead, which folds what the dead has left."""
    with subprocess.Popen(
        [sys.executable, "-c", LEADS_AND_WAITS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "leads\n"
            worker = hire()
            worker.join()
            worker.member.start()
            assert worker.group is not None
            assert worker.calls == []
            assert len(worker.group.ledgers()) == 2
        finally:
            other.send_signal(signal.SIGKILL)
            other.wait(A_LONG_TIME_S)
        eventually(lambda: worker.calls == ["lead"])
        eventually(lambda: worker.group is not None and len(worker.group.ledgers()) == 1)
    _, shares = worker.provider.everyone.shares()
    assert sum(series.read()[0] for share in shares if share.stream.name == "c" for series in share.series) == 6.0


def test_who_does_not_lead_folds_nothing(hire: Callable[..., Worker], tmp_path: Path):
    """Two who fold at once would count the dead twice: a worker that stands by leaves them to the leader."""
    dead = subprocess.Popen(
        [sys.executable, "-c", LEADS_AND_WAITS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with dead:
        assert dead.stdout is not None
        assert dead.stdout.readline() == "leads\n"
        leader = Group("house", tmp_path)
        worker = hire()
        worker.join()
        dead.kill()
        dead.wait(A_LONG_TIME_S)
        assert leader.try_to_lead()
        settled = watch(worker.provider, "settle")
        worker.member.start()
        eventually(lambda: len(settled) >= 3)
        assert len(leader.ledgers()) == 2
        worker.retires = False
        leader.give_up_lead()
        eventually(lambda: worker.member.leads)
        settled.clear()
        eventually(lambda: len(settled) >= 3)
        assert len(leader.ledgers()) == 2, "its page process does it"
        worker.retires = True
        eventually(lambda: len(leader.ledgers()) == 1)


def watch(owner: Any, name: str) -> list[Any]:
    """Note each call of a method."""
    calls: list[Any] = []
    plain = getattr(owner, name)

    def noted(*given: Any) -> Any:
        calls.append(given)
        return plain(*given)

    setattr(owner, name, noted)
    return calls


def test_who_loses_its_folder_leads_again_in_the_next(hire: Callable[..., Worker]):
    """When somebody removes the folder, the numbers come back, and one leads again."""
    worker = hire()
    worker.join()
    worker.member.start()
    assert worker.group is not None
    before = worker.provider.ledger.path
    shutil.rmtree(worker.group.folder)
    eventually(lambda: worker.provider.ledger.path not in (None, before))
    worker.join()
    eventually(lambda: worker.member.leads and (worker.group.folder / "lead").exists())
    assert worker.calls == ["lead"]
    assert not Group("house", worker.group.folder.parent.parent).try_to_lead()
    second = hire()
    _, shares = second.provider.everyone.shares()
    assert [each.read() for share in shares for each in share.series if share.stream.name == "c"] == [[2.0]]


def test_who_finds_another_leading_stops_to_lead(hire: Callable[..., Worker], tmp_path: Path):
    """A leader whose lead is another's, its file removed by somebody, is told once that it lost it, and stands by."""
    worker = hire()
    worker.join()
    worker.member.start()
    assert worker.group is not None
    other, lead = Group("house", tmp_path), worker.group.folder / "lead"

    def is_taken() -> bool:
        lead.unlink(missing_ok=True)
        return other.try_to_lead()

    eventually(is_taken)
    eventually(lambda: worker.calls == ["lead", "lost"])
    assert not worker.member.leads
    other.give_up_lead()
    eventually(lambda: worker.calls == ["lead", "lost", "lead"])


def test_a_worker_whose_ledger_cannot_be_made_leads_where_it_is_alone(
    hire: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
):
    """It shows what it has by itself, and leads on when its ledger is made."""
    only = hire()
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", refuse)
        only.join()
        only.member.start()
        assert (only.calls, only.provider.ledger.path) == (["lead"], None)
    eventually(lambda: only.provider.ledger.path is not None)
    eventually(lambda: only.group is not None and only.group.lead_file >= 0)
    assert only.calls == ["lead"]


def test_a_worker_whose_ledger_cannot_be_made_leads_nobody_else(
    hire: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
):
    """Where others live one of them speaks for all, and does so once."""
    first = hire()
    first.join()
    first.member.start()
    second = hire()
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", refuse)
        second.join()
        second.member.start()
        assert (second.calls, second.provider.ledger.path) == ([], None)
    eventually(lambda: second.provider.ledger.path is not None)
    assert (first.calls, second.calls) == (["lead"], [])


def test_a_leader_sweeps_dead_neighbours_once(hire: Callable[..., Worker], tmp_path: Path):
    """What groups have left that died as a whole is removed by whoever begins to lead next to them."""
    worker = hire()
    worker.join()
    dead = Group("dead", tmp_path)
    path, lock_file = dead.join(1 << 16)
    os.close(lock_file)
    assert path.exists()
    worker.member.start()
    eventually(lambda: not dead.folder.exists())
    assert worker.group is not None
    swept, settled = watch(worker.group, "sweep_neighbours"), watch(worker.provider, "settle")
    eventually(lambda: len(settled) >= 3)
    assert swept == []


# --- What it does for the others ----------------------------------------------------------------------------


def test_what_others_forget_is_forgotten_once(hire: Callable[..., Worker]):
    """Every worker follows each call of `forget` once, the one that joined after it not at all."""
    first, second = hire(), hire()
    for each in (first, second):
        each.join()
        each.counter.add(1, {"model": "a"})
        each.member.start()
    assert first.group is not None
    first.group.tell_to_forget({"model": "a"})
    third = hire()
    third.join()
    third.counter.add(1, {"model": "a"})
    third.member.start()
    settled = watch(third.provider, "settle")
    for each in (first, second):
        eventually(lambda each=each: "forget {'model': 'a'}" in each.calls)
    eventually(lambda: len(settled) >= 3)
    for each in (first, second):
        assert each.calls.count("forget {'model': 'a'}") == 1
        assert [dict(series.attributes) for stream in each.provider.streams() for series in stream.living()] == [
            {"kept": "yes"}
        ]
    assert "forget {'model': 'a'}" not in third.calls


def test_callbacks_speak_every_so_often(hire: Callable[..., Worker]):
    """Observables are refreshed again and again, by a worker that does not lead too."""
    first, second = hire(refresh_s=0.01), hire(refresh_s=0.01)
    for each in (first, second):
        each.join()
        each.member.start()
    for each in (first, second):
        eventually(lambda each=each: each.calls.count("refresh") >= 3)
    first.member.stop(A_LONG_TIME_S)
    before = first.calls.count("refresh")
    count = second.calls.count("refresh")
    eventually(lambda: second.calls.count("refresh") >= count + 3)
    assert first.calls.count("refresh") == before


def test_numbers_in_private_memory_are_moved(hire: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch):
    """What was recorded while there was no room is in the file soon after there is some."""
    worker = hire()
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", refuse)
        worker.join()
        worker.member.start()
        settled = watch(worker.provider, "settle")
        eventually(lambda: len(settled) >= 3)
        assert worker.provider.ledger.path is None
    eventually(lambda: worker.provider.ledger.path is not None)
    eventually(lambda: worker.provider.ledger.fault is None)
    assert worker.calls == ["lead"]


def refuse(*_: object) -> None:
    """Fail as a full file system does."""
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("failing", ["refresh", "settle", "forget {'model': 'a'}"])
def test_what_fails_is_said_once_and_ends_nothing(
    hire: Callable[..., Worker], caplog: pytest.LogCaptureFixture, failing: Any, monkeypatch: pytest.MonkeyPatch
):
    """Whatever callback fails, the worker goes on following the others, and leads when it is its turn."""
    first, second = hire(), hire(refresh_s=0.01)
    for each in (first, second):
        each.join()
    first.member.start()
    second.member.start()
    assert first.group is not None
    failed: list[int] = []
    if failing == "settle":
        monkeypatch.setattr(second.provider, "settle", lambda: failed.append(1) or 1 // 0)
    second.fails.add(failing)
    first.group.tell_to_forget({"model": "a"})
    eventually(lambda: failing in second.calls or len(failed) >= 3)
    first.group.tell_to_forget({"model": "b"})
    eventually(lambda: "forget {'model': 'b'}" in second.calls)
    first.member.stop(A_LONG_TIME_S)
    first.provider.leave()
    first.member.give_up()
    eventually(lambda: second.member.leads)
    told = [each for each in caplog.records if each.name == member_module.__name__ and each.levelno >= logging.WARNING]
    assert told
    assert all(each.getMessage().startswith(("the group cannot be looked after", "{'model': 'a'}")) for each in told)
    second.member.stop(A_LONG_TIME_S)
    monkeypatch.undo()  # who leaves settles


def test_the_same_fault_is_said_once_until_all_is_well(caplog: pytest.LogCaptureFixture, hire: Callable[..., Worker]):
    """A fault at every look is one warning; after a look that went well it is said anew."""
    worker = hire()
    worker.join()
    worker.member.start()
    follows, plain = [0], worker.provider.everyone.follow

    def broken() -> Any:
        follows[0] += 1
        raise OSError(5, "Input/output error")

    for times in (1, 2):
        follows[0] = 0
        worker.provider.everyone.follow = broken  # type: ignore[method-assign]
        eventually(lambda: follows[0] >= 3)
        assert [each.levelname for each in caplog.records] == ["WARNING"] * times
        worker.provider.everyone.follow = plain  # type: ignore[method-assign]
        eventually(lambda: worker.member._fault is None)
    assert worker.member.leads


def test_who_cannot_begin_to_lead_lets_others_and_tries_again(
    hire: Callable[..., Worker], caplog: pytest.LogCaptureFixture
):
    """A worker whose page cannot be begun does not hold the lead; another takes it, or it itself in the end."""
    first, second = hire(), hire()
    for each in (first, second):
        each.join()
    first.member.start()
    second.fails.add("lead")
    second.member.start()
    first.member.stop(A_LONG_TIME_S)
    first.member.give_up()
    eventually(lambda: second.calls.count("lead") >= 3)
    assert "lead failed" in caplog.text
    third = hire()
    third.join()
    third.member.start()
    eventually(lambda: third.member.leads)
    assert not second.member.leads
    third.member.stop(A_LONG_TIME_S)
    second.fails.clear()
    third.member.give_up()
    eventually(lambda: second.member.leads)


# --- Start and stop -----------------------------------------------------------------------------------------


def test_it_starts_again_after_a_stop(hire: Callable[..., Worker]):
    """Started, stopped and started again it leads again, with one thread; a stop without a start is nothing."""
    worker = hire()
    worker.member.stop(A_LONG_TIME_S)
    worker.join()
    for round_ in (1, 2):
        worker.member.start()
        assert [each.name for each in threading.enumerate()].count("otel-mlops-member") == 1
        assert worker.calls == ["lead"] * round_
        worker.member.stop(A_LONG_TIME_S)
        assert "otel-mlops-member" not in [each.name for each in threading.enumerate()]
        worker.member.give_up()


def test_it_may_be_stopped_from_its_own_thread(hire: Callable[..., Worker]):
    """What it calls may end the telemetry, and does not wait for itself."""
    worker = hire()
    worker.join()
    worker.member.start()
    stopped = threading.Event()

    def settle() -> None:
        worker.member.stop(A_LONG_TIME_S)
        stopped.set()

    worker.provider.settle = settle  # type: ignore[method-assign]
    assert stopped.wait(A_LONG_TIME_S / 2)
    eventually(lambda: "otel-mlops-member" not in [each.name for each in threading.enumerate()])


def test_without_another_thread_it_leads_all_the_same(
    hire: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Where no thread can be started the worker is told, and leads if nobody does."""
    worker = hire()
    worker.join()

    def refuse_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse_thread)
        worker.member.start()
    assert worker.member.leads
    assert "cannot stand by" in caplog.text
    worker.member.stop(A_LONG_TIME_S)


def test_a_child_stands_by_for_nothing_until_it_is_started(hire: Callable[..., Worker], tmp_path: Path):
    """A forked child leads nothing and has no thread; started, it stands by behind its parent, who leads on."""
    worker = hire()
    worker.join()
    worker.member.start()
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            worker.member.after_fork()
            said: list[Any] = [worker.member.leads, worker.member._thread]
            worker.member.stop(1.0)
            worker.calls.clear()
            worker.join()
            worker.member.start()
            said += [worker.member.leads, worker.calls, worker.group and worker.group.number]
            worker.member.stop(A_LONG_TIME_S)
            os.write(tell, repr(said).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(ready, 4096).decode() == repr([False, None, False, [], 1])
    assert worker.member.leads
    assert not Group("house", tmp_path).try_to_lead()
    eventually(lambda: worker.group is not None and len(worker.group.ledgers()) == 1)
    for each in (ready, tell):
        os.close(each)
