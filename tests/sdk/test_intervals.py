"""Prediction calls that are written down by those who make them, and read by who leads."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest

from otel_mlops.metrics import PREDICTIONS
from otel_mlops.sdk import intervals as intervals_module
from otel_mlops.sdk.calls import Calls, Follower
from otel_mlops.sdk.intervals import LENGTH, SLOTS, Intervals, Ring, facts_of
from otel_mlops.sdk.ledger import Ledger
from tests.sdk.workers import Worker, state_folder

A = {"model_name": "a", "model_version": "v1"}
B = {"model_version": "v2"}


@pytest.fixture
def state() -> Iterator[Path]:
    """A folder for a group."""
    with state_folder() as folder:
        yield folder


@pytest.fixture
def alone() -> Intervals:
    """Those of a process without a group, wanted."""
    found = Intervals(Ledger())
    found.begin_when(lambda: True)
    return found


def begin(intervals: Intervals, at: float, model=A) -> int:
    """Begin a call."""
    return intervals.ring.begin(intervals.number(model), at)


def write(intervals: Intervals, at: float, until: float, weight: float = 1.0, model=A) -> None:
    """Write down a call that is over."""
    intervals.ring.add(intervals.number(model), at, until, weight)


def follow(intervals: Intervals) -> Follower:
    """Whoever reads the ring of this process."""
    [ring] = intervals.rings()
    return Follower("alone", ring.memory)


def shown(follower: Follower) -> list:
    """Its calls in order: the model, begin, end, weight."""
    return sorted((call.begin, call.end, call.weight, call.model.get("model_version")) for call in follower.calls)


def work(state: Path) -> Worker:
    """A worker that writes its calls down, and has recorded something."""
    worker = Worker(state)
    worker.provider.instrument(PREDICTIONS).add(1, {"model_version": "v1", "prediction_type": "single"})
    worker.provider.intervals.begin_when(lambda: True)
    return worker


def files(worker: Worker) -> set[str]:
    """Whose calls lie in the group's folder."""
    return {path.stem for path in worker.files() if path.suffix == ".intervals"}


# --- Writing -----------------------------------------------------------------------------------------------


def test_calls_are_read_as_they_were_written(alone):
    """A call has its model, begin, end and weight; while it runs its end is infinite and its weight one."""
    first = begin(alone, 10.0)
    second = begin(alone, 11.0, B)
    follower = follow(alone)
    assert follower.look(12.0) == 0
    assert shown(follower) == [(10.0, inf, 1.0, "v1"), (11.0, inf, 1.0, "v2")]
    alone.ring.end(second, 12.5, 32)
    write(alone, 12.0, 12.25, 4, B)
    follower.look(13.0)
    assert shown(follower) == [(10.0, inf, 1.0, "v1"), (11.0, 12.5, 32.0, "v2"), (12.0, 12.25, 4.0, "v2")]
    alone.ring.end(first, 13.5, 1.0)
    follower.look(14.0)
    follower.look(15.0)
    assert [call[1] for call in shown(follower)] == [13.5, 12.5, 12.25]


def test_who_reads_late_finds_the_last_calls(alone):
    """One who begins to read finds what the slots hold, and counts nothing before as missed."""
    slot = begin(alone, 1.0)
    for number in range(3 * SLOTS):
        write(alone, 2.0 + number, 2.5 + number)
    follower = follow(alone)
    assert follower.look(1e6) == 0
    assert len(follower.calls) == SLOTS
    assert {(call.begin, call.end) for call in follower.calls} >= {(1.0, inf), (3.0 * SLOTS + 1.0, 3.0 * SLOTS + 1.5)}
    alone.ring.end(slot, 9.0, 1.0)
    follower.look(1e6)
    assert inf not in {call.end for call in follower.calls}


def test_what_nobody_could_read_is_counted(alone):
    """Calls whose slots were taken again between two looks are counted one by one; one that ran keeps its slot."""
    slow = begin(alone, 1.0)
    gone = begin(alone, 2.0)
    follower = follow(alone)
    follower.look(5.0)
    alone.ring.end(gone, 6.0, 7.0)
    for number in range(SLOTS + 100):
        write(alone, 10.0 + number, 10.5 + number)
    assert follower.look(20.0) == 101  # SLOTS - 1 slots had SLOTS + 100 calls
    by_begin = {call.begin: (call.end, call.weight) for call in follower.calls}
    assert by_begin[1.0] == (inf, 1.0)
    assert by_begin[2.0] == (5.0, 1.0), "nobody has seen its end: it ends where it was last seen to run"
    assert len(follower.calls) == SLOTS + 1
    assert follower.look(21.0) == 0
    alone.ring.end(slow, 22.0, 1.0)
    follower.look(23.0)
    assert follower.calls[0].end == 22.0


def test_a_slot_that_is_taken_again_has_nothing_of_the_call_before(alone):
    """A call in a slot whose last call has ended runs until it ends itself, and its weight is not known before."""
    for number in range(SLOTS):
        write(alone, 1.0 + number, 2.0 + number, 9)
    begin(alone, 1e6, B)
    follower = follow(alone)
    follower.look(2e6)
    assert shown(follower)[-1] == (1e6, inf, 1.0, "v2")


def test_more_calls_than_slots_are_let_through(alone):
    """Where all slots are taken a further call goes on without one, and takes no other's at its end."""
    slots = [begin(alone, 1.0 + number) for number in range(SLOTS)]
    assert sorted(slots) == [*range(SLOTS)]
    assert begin(alone, 9e9) == -1
    alone.ring.end(-1, 9e9, 1.0)
    follower = follow(alone)
    follower.look(1.0)
    assert {call.end for call in follower.calls} == {inf}
    alone.ring.end(slots[7], 9e9, 1.0)
    assert begin(alone, 9e9) == slots[7]


class Meddling:
    """A column of a ring in which a slot changes just as it is read."""

    def __init__(self, column, meddle):
        self.column, self.meddle = column, meddle

    def __getitem__(self, slot):
        value, meddle = self.column[slot], self.meddle
        self.meddle = lambda: None
        meddle()
        return value


def test_a_call_that_changes_under_the_reader_is_read_the_next_time(alone):
    """What does not stand still while it is read is not taken; the next look finds it whole."""
    write(alone, 1.0, 2.0, 3)
    follower = follow(alone)

    def take_all_slots_again():
        for number in range(SLOTS):
            write(alone, 10.0 + number, 11.0 + number, 5)

    follower._begins = Meddling(follower._begins, take_all_slots_again)
    follower.look(5.0)
    assert shown(follower) == []
    follower.look(6.0)
    assert len(follower.calls) == SLOTS
    assert {call.end - call.begin for call in follower.calls} == {1.0}
    assert {call.weight for call in follower.calls} == {5.0}


def test_an_end_that_changes_under_the_reader_is_none(alone):
    """An end is another call's if the slot was taken again: the call ends where it was last seen to run."""
    slot = begin(alone, 1.0)
    follower = follow(alone)
    follower.look(5.0)

    def take_all_slots_again():
        alone.ring.end(slot, 6.0, 1.0)
        for number in range(SLOTS):
            write(alone, 10.0 + number, 11.0 + number)

    follower._ends = Meddling(follower._ends, take_all_slots_again)
    follower.look(7.0)
    follower.look(8.0)
    assert [call.end for call in follower.calls if call.begin == 1.0] == [7.0]


def test_facts_that_are_half_written_are_read_the_next_time(alone):
    """The calls of a model whose labels do not check yet wait until they do."""
    write(alone, 1.0, 2.0)
    [ring] = alone.rings()
    whole = bytes(ring.memory[:64])
    ring.memory[20:24] = b"????"
    follower = follow(alone)
    follower.look(3.0)
    assert follower.calls == []
    ring.memory[:64] = whole
    follower.look(4.0)
    assert shown(follower) == [(1.0, 2.0, 1.0, "v1")]


def test_nonsense_in_a_slot_does_no_harm(alone):
    """A weight that is none counts as one, and an end before the beginning makes the call one of no length."""
    for weight in (0.0, -1.0, inf, float("nan")):
        write(alone, 5.0, 4.0, weight)
    slot = begin(alone, 6.0)
    follower = follow(alone)
    follower.look(6.0)
    alone.ring.end(slot, 5.5, 1e30)
    follower.look(7.0)
    assert shown(follower) == [(4.0, 4.0, 1.0, "v1")] * 4 + [(6.0, 6.0, 1.0, "v1")]


def test_a_model_has_one_number(alone):
    """The same labels are the same number, others are another, before there is a ring as well as after."""
    numbers = [alone.number(A), alone.number(B), alone.number(dict(A))]
    begin(alone, 1.0)
    numbers += [alone.number(A), alone.number({"model_version": "v3"})]
    assert numbers == [1, 2, 1, 1, 3]
    [ring] = alone.rings()
    assert facts_of(ring.memory)["models"][1:] == [A, B, {"model_version": "v3"}]


def test_models_without_room_are_one(alone, caplog):
    """When there is no room for labels, further models share a number, which is said once; the others keep theirs."""
    first = alone.number(A)
    numbers = [alone.number({"model_version": f"{number}-{'é' * 100}"}) for number in range(100)]
    begin(alone, 1.0, {"model_version": "9" * LENGTH})
    assert numbers.count(0) > 10
    assert len(set(numbers)) == 100 - numbers.count(0) + 1
    assert alone.number(A) == first
    assert alone.number({"model_version": "short"}) > 0, "what is short enough has room still"
    assert len([each for each in caplog.records if "there is room for" in each.message]) == 1
    follower = follow(alone)
    follower.look(2.0)
    assert follower.calls[0].model == {"otel.metric.overflow": True}


def test_the_gpus_that_the_worker_may_use_are_noted(alone, monkeypatch):
    """The variables by which CUDA chooses stand among the facts as they are at the first call, if they are set."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", '1,"0"')
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    begin(alone, 1.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    alone.number(B)
    follower = follow(alone)
    follower.look(2.0)
    assert follower.environment == {"CUDA_VISIBLE_DEVICES": '1,"0"'}


def test_a_variable_that_is_far_too_long_is_left_out(alone, monkeypatch):
    """What would take the room of the labels is as good as not set."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "\x01" * 4000)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    begin(alone, 1.0)
    follower = follow(alone)
    follower.look(2.0)
    assert follower.environment == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.stress
def test_threads_take_no_slot_twice(alone):
    """Calls of many threads at a time are all there, each with its own numbers."""
    per_thread, threads = 20_000, 8
    begin(alone, 1.0)
    follower, lost, stop = follow(alone), [], threading.Event()

    def predict(number: int) -> None:
        model = alone.number({"model_version": str(number)})
        for call in range(per_thread):
            slot = alone.ring.begin(model, 10.0 + call)
            alone.ring.end(slot, 10.0 + call + number / 16, number + 1)

    def read() -> None:
        while not stop.is_set():
            lost.append(follower.look(5.0))

    reader = threading.Thread(target=read)
    reader.start()
    workers = [threading.Thread(target=predict, args=(number,)) for number in range(threads)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    stop.set()
    reader.join()
    lost.append(follower.look(5.0))
    ended = [call for call in follower.calls if call.end < inf and call.end != 5.0 and call.end > call.begin]
    assert len(follower.calls) + sum(lost) == per_thread * threads + 1
    assert len(ended) > SLOTS / 2
    for call in ended:
        number = int(call.model["model_version"])
        assert (call.end - call.begin, call.weight) == (number / 16, number + 1)
    assert sorted(alone.ring._take() for _ in range(SLOTS - 1)) == [*range(1, SLOTS)]


# --- When and where ----------------------------------------------------------------------------------------


def test_nothing_is_written_that_nobody_wants(state):
    """Where no energy is wanted there is no ring, no file, and a model has a number all the same."""
    worker = Worker(state)
    worker.provider.instrument(PREDICTIONS).add(1, {"model_version": "v1", "prediction_type": "single"})
    worker.provider.settle()
    assert worker.provider.intervals.ring is None
    assert worker.provider.intervals.number(A) == 1
    assert files(worker) == set()
    worker.leave()


def test_it_is_asked_again_whether_they_are_wanted():
    """A driver that comes late is noticed with time, and then nobody is asked any more."""
    answers = iter([False, False, True])
    intervals = Intervals(Ledger())
    intervals.begin_when(lambda: next(answers))
    for wanted in (False, True, True):
        assert intervals.ring is None
        intervals.settle()  # too soon to ask again
        intervals._ask_at = 0.0
        intervals.settle()
        assert (intervals.ring is not None) is wanted
        if wanted:
            break
    intervals._ask_at = 0.0
    intervals.settle()


def test_the_file_is_made_with_the_first_call(state):
    """Before the first call there is none; then one beside the ledger, whose space is taken and which is ours alone."""
    worker = work(state)
    worker.provider.intervals.number(A)
    assert files(worker) == set()
    begin(worker.provider.intervals, 1.0)
    file = worker.path.with_suffix(".intervals")
    assert (file.stat().st_size, file.stat().st_mode & 0o777) == (LENGTH, 0o600)
    assert file.stat().st_blocks * 512 >= LENGTH
    begin(worker.provider.intervals, 2.0)
    assert files(worker) == {worker.path.stem}
    worker.leave()
    assert not worker.group.folder.exists()


def test_where_there_is_no_room_predictions_go_on(state, caplog):
    """A file that cannot be made is said once, loses the call, raises nothing, and is made when it can be."""
    worker = work(state)
    intervals = worker.provider.intervals
    file = worker.path.with_suffix(".intervals")
    file.mkdir()
    for _ in range(3):
        first = intervals.ring
        slot = begin(intervals, 1.0)
        first.end(slot, 2.0, 1.0)
        first.add(1, 1.0, 2.0, 1.0)
        assert intervals.ring is None
        worker.provider.settle()
    assert len([each for each in caplog.records if each.levelno >= logging.WARNING]) == 1
    file.rmdir()
    assert begin(intervals, 1.0) >= 0
    assert files(worker) == {worker.path.stem}
    worker.leave()


def test_a_file_whose_space_cannot_be_had_is_not_left(state, monkeypatch):
    """What could not be reserved is removed: nobody is to read it."""

    def refuse(file: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    worker = work(state)
    monkeypatch.setattr(intervals_module, "reserve", refuse)
    assert begin(worker.provider.intervals, 1.0) == -1
    assert files(worker) == set()
    worker.leave()


def test_the_file_follows_the_ledger(state):
    """A worker that leaves and comes back writes beside its new ledger; what runs ends where it began."""
    other, worker = work(state), work(state)
    intervals = worker.provider.intervals
    write(intervals, 0.5, 0.75)
    running = intervals.ring
    slot = begin(intervals, 1.0)
    before = worker.path.stem
    calls = Calls(other.provider.intervals, other.group)
    calls.look(2.0)
    worker.provider.leave()
    worker.provider.ledger.rejoin()
    worker.provider.instrument(PREDICTIONS).add(1, {"model_version": "v1", "prediction_type": "single"})
    worker.provider.settle()
    running.end(slot, 3.0, 8)
    begin(intervals, 4.0)
    assert files(worker) == {before, worker.path.stem}
    calls.look(5.0)
    assert {follower.name: shown(follower) for follower in calls} == {
        before: [(0.5, 0.75, 1.0, "v1"), (1.0, 3.0, 8.0, "v1")],
        worker.path.stem: [(4.0, inf, 1.0, "v1")],
    }
    assert files(worker) == {worker.path.stem}, "the leader removes what it has read of one that is gone"
    other.leave()
    worker.leave()


def test_numbers_in_private_memory_are_read_to_their_end(state):
    """Calls from before the ledger had a file are read by this process as long as they run."""
    worker = Worker(state)
    intervals = worker.provider.intervals
    intervals.begin_when(lambda: True)
    private = intervals.ring
    slot = begin(intervals, 1.0)
    worker.provider.instrument(PREDICTIONS).add(1, {"model_version": "v1", "prediction_type": "single"})
    worker.provider.settle()
    begin(intervals, 2.0)
    private.end(slot, 3.0, 2)
    calls = Calls(intervals, worker.group)
    calls.look(4.0)
    assert sorted(call for follower in calls for call in shown(follower)) == [
        (1.0, 3.0, 2.0, "v1"),
        (2.0, inf, 1.0, "v1"),
    ]
    worker.leave()


def test_a_stand_in_ends_what_it_began(alone):
    """A thread that still has the stand-in of an earlier ring ends its call in that ring."""
    stand_in = alone.ring
    slot = stand_in.begin(alone.number(A), 1.0)
    follower = follow(alone)
    alone._begin_anew()
    begin(alone, 5.0)
    stand_in.add(alone.number(A), 2.0, 2.5, 1.0)
    stand_in.end(slot, 3.0, 1.0)
    follower.look(4.0)
    assert shown(follower) == [(1.0, 3.0, 1.0, "v1"), (2.0, 2.5, 1.0, "v1")]


def test_after_a_fork_nothing_of_before_is_written_into(alone, monkeypatch):
    """What a child has of its parent's rings, the one of before too, changes no more; its environment is read anew."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    slots = []
    for _ in range(2):
        stand_in = alone.ring
        slots.append((stand_in, stand_in.begin(alone.number(A), 1.0)))
        alone._begin_anew()
    memories = [bytes(ring.memory) for ring in (stand_in._ring for stand_in, _ in slots)]
    alone.after_fork()
    for stand_in, slot in slots[1:]:
        stand_in.end(slot, 2.0, 1.0)
    assert [bytes(stand_in._ring.memory) for stand_in, _ in slots] == memories
    assert alone.rings() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    begin(alone, 3.0)
    [ring] = alone.rings()
    assert facts_of(ring.memory)["environment"] == {"CUDA_VISIBLE_DEVICES": "1"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork: run this on Linux or macOS")
def test_a_forked_child_leaves_its_parents_calls_alone(state):
    """A child ends nothing in its parent's file, and writes into one of its own."""
    worker = work(state)
    intervals = worker.provider.intervals
    ring = intervals.ring
    slot = begin(intervals, 1.0)
    answers, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ring.end(slot, 2.0, 1.0)
            intervals.rings() and os._exit(1)
            worker.provider.instrument(PREDICTIONS).add(1, {"model_version": "v1", "prediction_type": "single"})
            begin(intervals, 3.0, B)
            os.write(tell, json.dumps([worker.path.stem, *sorted(files(worker))]).encode())
        finally:
            os._exit(0)
    os.close(tell)
    with os.fdopen(answers) as heard:
        own, *every = json.loads(heard.read())
    os.waitpid(pid, 0)
    assert set(every) == {own, worker.path.stem}
    calls = Calls(intervals, worker.group)
    calls.look(4.0)
    assert {follower.name: shown(follower) for follower in calls} == {
        own: [(3.0, 4.0, 1.0, "v2")],
        worker.path.stem: [(1.0, inf, 1.0, "v1")],
    }
    worker.leave()


# --- Reading everybody's -----------------------------------------------------------------------------------


def test_the_calls_of_the_dead_end_when_that_is_seen(state):
    """What a dead worker has written until its death is read, what it had running ends, and its file goes."""
    leader, other = work(state), work(state)
    write(leader.provider.intervals, 1.0, 2.0)
    begin(other.provider.intervals, 1.5, B)
    calls = Calls(leader.provider.intervals, leader.group)
    calls.look(3.0)
    write(other.provider.intervals, 3.5, 3.75, 2, B)
    name = other.path.stem
    other.die()
    calls.look(4.0)
    [dead] = [follower for follower in calls if follower.name == name]
    assert shown(dead) == [(1.5, 4.0, 1.0, "v2"), (3.5, 3.75, 2.0, "v2")]
    assert files(leader) == {leader.path.stem}
    calls.look(5.0)
    assert dead in [*calls], "its calls are kept until they are let go"
    dead.calls = []
    calls.look(6.0)
    assert [follower.name for follower in calls] == [leader.path.stem]
    leader.leave()


def test_a_ring_that_vanishes_is_read_to_its_end(state):
    """Somebody who removes the file takes nothing away of what was written by then."""
    leader, other = work(state), work(state)
    begin(other.provider.intervals, 1.0)
    calls = Calls(leader.provider.intervals, leader.group)
    calls.look(2.0)
    write(other.provider.intervals, 2.5, 2.75)
    other.path.with_suffix(".intervals").unlink()
    calls.look(3.0)
    [follower] = calls
    assert shown(follower) == [(1.0, 3.0, 1.0, "v1"), (2.5, 2.75, 1.0, "v1")]
    other.leave()
    leader.leave()


@pytest.mark.parametrize("content", [b"", b"short", bytes(LENGTH), b"OMINTV99" + bytes(LENGTH - 8)])
def test_a_file_that_is_no_ring_is_passed_over(state, content):
    """What is not finished, or of another version, is left alone while its worker lives, and removed after."""
    leader, other = work(state), work(state)
    file = other.path.with_suffix(".intervals")
    file.write_bytes(content)
    calls = Calls(leader.provider.intervals, leader.group)
    assert calls.look(1.0) == 0
    assert [*calls] == []
    assert file.exists()
    other.die()
    calls.look(2.0)
    assert not file.exists()
    leader.leave()


def test_what_the_dead_leave_does_not_pile_up(state):
    """Where nobody reads, whoever makes a file removes those that have no ledger any more."""
    worker, left = work(state), work(state)
    begin(left.provider.intervals, 1.0)
    left.die()
    assert worker.everyone.workers() == 1
    worker.everyone.retire()
    assert len(files(worker)) == 1
    begin(worker.provider.intervals, 1.0)
    assert files(worker) == {worker.path.stem}
    worker.leave()


def test_a_worker_that_comes_is_read_from_its_first_call(state):
    """A ring that was not there at the last look is young: what its worker overwrote before the next one is counted."""
    leader, other = work(state), work(state)
    calls = Calls(leader.provider.intervals, leader.group)
    assert calls.look(1.0) == 0
    for worker in (leader, other):
        for number in range(SLOTS + 5):
            write(worker.provider.intervals, 1.0 + number, 2.0 + number)
    assert calls.look(2.0) == 10
    for worker in (leader, other):
        worker.leave()


def test_without_a_group_a_process_reads_its_own(alone):
    """Where there is nobody else, the calls of this process are those there are."""
    write(alone, 1.0, 2.0)
    calls = Calls(alone, None)
    calls.look(3.0)
    assert [shown(follower) for follower in calls] == [[(1.0, 2.0, 1.0, "v1")]]


def test_a_call_asks_nobody_for_anything():
    """Once there is a ring, a call takes a slot and gives it back: no lock, no system call, no other call at all."""
    ring = Ring(memoryview(bytearray(LENGTH)))
    called = []

    def note(frame, event, argument):
        if event == "c_call":
            called.append(argument.__name__)

    sys.setprofile(note)
    try:
        ring.end(ring.begin(1, 1.0), 2.0, 1.0)
    finally:
        sys.setprofile(None)
    assert called == ["popleft", "append", "setprofile"]
