from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_mlops.model.receipts import Answer
from otel_mlops.model.store import DUPLICATE, STORE_FILE, Store, StoreError
from tests.clock import Clock
from tests.model.children import Child, children

OpenStore = Callable[..., Store]
PATIENT = {"timeout_s": 30.0}
"""For tests of what is kept: a busy machine is not what they are about."""


def answer(value: float | str = 1.5, time_s: float = 1_800_000_000.0, **others: Any) -> Answer:
    return Answer(value, others.get("score"), others.get("scores"), time_s, others.get("id", ""))


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[OpenStore]:
    """Opens stores of one folder, which are closed after the test."""
    opened: list[Store] = []

    def open_one(folder: Path | None = tmp_path, **arguments: Any) -> Store:
        opened.append(Store(lambda: folder, **{**PATIENT, **arguments}))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


# --- Predictions and their truth ---------------------------------------------------------------------------------


FOLDERS = pytest.mark.parametrize("has_folder", [True, False])


@FOLDERS
def test_a_prediction_is_taken_once(open_store: OpenStore, tmp_path: Path, has_folder: bool):
    """What was remembered is found by its id, once; then the id is a duplicate, and one never seen is unknown."""
    store = open_store(tmp_path if has_folder else None)
    kept = Answer("cat", 0.25, {"cat": 0.25, "dog": 0.75}, 1.5e9, "a")
    assert store.remember("a", kept) is None
    assert store.waiting() == 1
    assert store.take("a") == kept
    assert store.take("a") is DUPLICATE
    assert store.take("b") is None
    assert store.waiting() == 0


@given(
    st.lists(
        st.tuples(
            st.text(st.characters()), st.one_of(st.floats(allow_nan=False), st.text(st.characters(), max_size=50))
        ),
        unique_by=lambda pair: pair[0],
    )
)
def test_any_id_and_any_answer_is_kept(predictions: list[tuple[str, float | str]]):
    """Ids of any text are told apart, and each finds the answer that was given for it."""
    store = Store(**PATIENT)
    assert store.remember_many([(id_, answer(value)) for id_, value in predictions]) == [None] * len(predictions)
    for id_, value in reversed(predictions):
        assert store.take(id_) == answer(value, id=id_)
    store.close()


def test_numbers_that_sql_does_not_know_are_kept(open_store: OpenStore):
    """NaN, the infinities and -0.0 come back as they are."""
    store = open_store()
    for value in (math.nan, math.inf, -math.inf, -0.0):
        store.remember("a", answer(value, score=value))
        found = store.take("a")
        assert isinstance(found, Answer)
        assert repr((found.value, found.score)) == repr((value, value))


def test_a_truth_that_comes_first_waits(open_store: OpenStore):
    """A truth without a prediction is kept, and handed out by `remember` with its time; both are done then."""
    clock = Clock(1_800_000_000.0)
    one, other = open_store(clock=clock), open_store(clock=clock)
    assert one.wait("a", 2.5) is None
    assert one.wait("a", 9.9) is DUPLICATE
    clock.now_s += 5.0
    found = other.remember("a", answer())
    assert found == (2.5, clock.now_s - 5.0)
    assert one.waiting() == 0
    assert one.take("a") is DUPLICATE
    assert one.wait("a", 3.5) is DUPLICATE


def test_a_truth_that_waits_takes_what_is_there_by_now(open_store: OpenStore):
    """Between `take` and `wait` the prediction may come: then `wait` returns it and keeps nothing."""
    store = open_store()
    assert store.take("a") is None
    store.remember("a", answer())
    assert store.wait("a", "dog") == answer(id="a")
    assert store.remember("a", answer()) is None


def test_of_a_batch_each_gets_its_truth(open_store: OpenStore):
    """`remember_many` returns for each prediction the truth that was waiting for it."""
    store = open_store()
    store.wait("b", "dog")
    found = store.remember_many([("a", answer()), ("b", answer()), ("c", answer())])
    assert [None if each is None else each.value for each in found] == [None, "dog", None]
    assert store.waiting() == 2
    assert store.remember_many([]) == []


def test_a_batch_is_kept_as_a_whole_or_not_at_all(open_store: OpenStore):
    """A batch with an answer that cannot be packed leaves nothing behind."""
    store = open_store()
    with pytest.raises(ValueError, match="255 bytes"):
        store.remember_many([("a", answer()), ("b", answer("x" * 256))])
    assert store.take("a") is None


def test_an_id_that_is_predicted_again_has_the_later_answer(open_store: OpenStore):
    """The later prediction of an id is the one that its truth is for; the earlier is told as dropped."""
    dropped: Counter[str] = Counter()
    store = open_store(on_dropped=lambda reason, count: dropped.update({reason: count}))
    store.remember_many([("a", answer(1.0)), ("a", answer(2.0))])
    store.remember("a", answer(3.0))
    assert dropped == {"again": 2}
    assert store.take("a") == answer(3.0, id="a")
    assert store.take("a") is DUPLICATE
    store.remember("a", answer(4.0))
    assert store.take("a") == answer(4.0, id="a")


def test_what_came_before_the_worker_has_joined_is_carried_over(tmp_path: Path, open_store: OpenStore):
    """What was kept while there was no folder is there for all workers once there is one, and kept through trouble."""
    folder: list[Path] = []
    early, other = Store(lambda: folder[0] if folder else None, **PATIENT), open_store()
    early.remember_many([("a", answer(1.0)), ("both", answer(2.0)), ("b", answer(3.0))])
    early.wait("t", 4.0)
    early.redeem("r")
    other.remember("both", answer(5.0))
    folder.append(tmp_path / "not there")
    with pytest.raises(StoreError):
        early.take("a")
    folder[0] = tmp_path
    assert early.waiting() == 3
    assert other.take("a") == answer(1.0, id="a")
    assert other.take("both") == answer(5.0, id="both")
    assert other.remember("t", answer()) is not None
    assert not other.redeem("r")
    assert early.take("a") is DUPLICATE
    assert early.take("b") == answer(3.0, id="b")
    early.close()


def test_a_child_does_not_carry_over_what_its_parent_does(tmp_path: Path):
    """Forked between two folders, a child has none of the rows that its parent has yet to carry over."""
    folder: list[Path] = []
    store = Store(lambda: folder[0] if folder else None, **PATIENT)
    store.remember("a", answer())
    folder.append(tmp_path / "not there")
    with pytest.raises(StoreError):
        store.take("a")
    folder[0] = tmp_path

    def work(tell: Any) -> None:
        tell(store.take("a"))

    with children(work) as (child,):
        assert child.next() is None
    assert store.take("a") == answer(id="a")
    store.close()


@FOLDERS
def test_a_receipt_is_redeemed_once(open_store: OpenStore, tmp_path: Path, has_folder: bool):
    """The first to redeem a receipt is told so, and nobody after it; ids of predictions are other ids."""
    store = open_store(tmp_path if has_folder else None)
    store.remember("a", answer())
    assert store.redeem("a")
    assert not store.redeem("a")
    assert store.redeem("b")
    assert store.take("a") == answer(id="a")


# --- Bounds ------------------------------------------------------------------------------------------------------


def test_the_oldest_go_first(open_store: OpenStore):
    """Past the greatest number of rows the oldest go, each kind by itself, and what went unmatched is told."""
    dropped: Counter[str] = Counter()
    store = open_store(max_rows=10, on_dropped=lambda reason, count: dropped.update({reason: count}))
    for number in range(25):
        store.remember(f"p{number}", answer(float(number)))
        assert store.waiting() <= 10
    for number in range(15):
        store.wait(f"t{number}", 0.0)
    assert dropped == {"number": 15, "truth": 5}
    assert [store.take(f"p{number}") is None for number in range(25)] == [True] * 15 + [False] * 10
    assert store.take("p20") is DUPLICATE
    assert all(store.redeem(f"r{number}") for number in range(10))
    assert store.take("p24") is None  # so many ids were spent since that it is forgotten
    assert [store.redeem(f"r{number}") for number in range(9, -1, -1)] == [False] * 10
    assert store.redeem("r10")
    assert store.redeem("r0")
    assert not store.redeem("r5")


def test_what_is_too_old_goes(open_store: OpenStore):
    """Past the greatest age a prediction, a truth and a spent id are not known any more, and are removed."""
    dropped: Counter[str] = Counter()
    clock = Clock(1_800_000_000.0)
    store = open_store(
        max_age_s=100.0, max_rows=10, clock=clock, on_dropped=lambda reason, count: dropped.update({reason: count})
    )
    store.remember("a", answer())
    store.remember("taken", answer())
    store.take("taken")
    store.wait("t", 1.0)
    store.redeem("r")
    clock.now_s += 99.0
    store.remember("b", answer())
    assert dropped == {}
    assert store.take("taken") is DUPLICATE
    assert not store.redeem("r")
    clock.now_s += 2.0
    assert store.take("a") is None
    assert store.take("taken") is None
    assert store.redeem("r")
    assert dropped == {"age": 1, "truth": 1}
    assert store.remember("t", answer()) is None
    assert store.waiting() == 2


def test_what_has_expired_makes_room_for_what_has_not(open_store: OpenStore):
    """Rows that go by their age are not counted against those that stay."""
    dropped: Counter[str] = Counter()
    clock = Clock(1_800_000_000.0)
    store = open_store(
        max_age_s=100.0, max_rows=10, clock=clock, on_dropped=lambda reason, count: dropped.update({reason: count})
    )
    for age in range(3):
        store.remember_many([(f"{age} {number}", answer()) for number in range(5)])
        clock.now_s += 60.0
    assert dropped == {"age": 5}
    assert store.waiting() == 10


def test_an_expired_row_that_is_still_there_does_not_count(open_store: OpenStore):
    """Between two looks at the bounds what has expired is as good as gone."""
    clock = Clock(1_800_000_000.0)
    store = open_store(max_age_s=100.0, clock=clock)
    store.remember("a", answer())
    store.wait("t", 1.0)
    store.redeem("r")
    clock.now_s += 101.0
    assert store.take("a") is None
    assert store.wait("t", 2.0) is None
    assert store.redeem("r")
    assert store.remember("t", answer()) == (2.0, clock.now_s)
    assert store.waiting() == 1  # it is removed at the next look


def test_a_clock_that_goes_back_harms_nothing(open_store: OpenStore):
    """Rows keep their order and are all known when the clock is set back."""
    clock = Clock(1_800_000_000.0)
    store = open_store(max_rows=10, clock=clock)
    for number in range(20):
        store.remember(f"p{number}", answer())
        clock.now_s -= 1000.0
    assert [store.take(f"p{number}") is None for number in range(20)] == [True] * 10 + [False] * 10


def test_each_worker_lets_a_few_more_in_than_it_may(open_store: OpenStore):
    """The bound is looked at once in a while, so that a call costs little; it is exceeded by no more than 1 %."""
    store = open_store(max_rows=1000)
    for number in range(1500):
        store.redeem(f"r{number}")
        store.remember(f"p{number}", answer())
        assert number % 100 or store.waiting() <= 1010


def test_the_file_does_not_outgrow_its_size(open_store: OpenStore, tmp_path: Path):
    """A file that has reached its greatest size drops its oldest rows and takes new ones."""
    dropped: Counter[str] = Counter()
    size = 40 * 4096
    store = open_store(max_bytes=size, on_dropped=lambda reason, count: dropped.update({reason: count}))
    for number in range(30):
        store.remember_many([(f"{number} {each}", answer("x" * 250)) for each in range(50)])
        assert (tmp_path / STORE_FILE).stat().st_size <= size
    assert dropped["space"] >= 1000
    assert set(dropped) == {"space"}
    assert store.waiting() == 1500 - dropped["space"]
    assert isinstance(store.take("29 49"), Answer)
    assert store.take("0 0") is None


def test_a_trouble_is_told_when_it_begins(open_store: OpenStore, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A trouble is told once however many calls meet it, and again when it comes back after a minute without."""
    clock = Clock(1_800_000_000.0)
    store = open_store(tmp_path / "none", clock=clock)
    for _ in range(5):
        clock.now_s += 50.0
        with pytest.raises(StoreError, match="unavailable"):
            store.take("a")
    assert len(caplog.records) == 1
    clock.now_s += 61.0
    with pytest.raises(StoreError, match="unavailable"):
        store.take("a")
    assert len(caplog.records) == 2


def test_a_row_that_cannot_be_read_is_damage(open_store: OpenStore, tmp_path: Path):
    """A row that no release of ours has written means that the file is damaged: it is begun anew."""
    store = open_store()
    store.remember("a", answer())
    store._database.run(lambda connection: connection.execute("UPDATE predictions SET answer = 5"))
    assert store.take("a") is None
    assert (tmp_path / f"{STORE_FILE}.damaged").exists()


def test_nothing_is_made_before_it_is_needed(open_store: OpenStore, tmp_path: Path):
    """A store that is not used leaves no file; its file is for its user alone."""
    store = open_store()
    assert list(tmp_path.iterdir()) == []
    store.take("a")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert STORE_FILE in {path.name for path in tmp_path.iterdir()}
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == [STORE_FILE]


# --- Several at once ---------------------------------------------------------------------------------------------


def test_each_is_matched_once_by_whatever_process(open_store: OpenStore):
    """Of processes that take and redeem the same ids at once, one gets each; the others know it for a duplicate."""
    ids = [f"i{number}" for number in range(150)]
    store = open_store()
    store.remember_many([(id_, answer()) for id_ in ids])

    def work(tell: Any) -> None:
        taken = [id_ for id_ in ids if isinstance(store.take(id_), Answer)]
        assert all(store.take(id_) is DUPLICATE for id_ in ids)
        tell([taken, [id_ for id_ in ids if store.redeem(id_)]])

    with children(work, work, work) as born:
        taken, redeemed = zip(*(child.next() for child in born), strict=True)
    assert sorted(chain(*taken)) == sorted(ids)
    assert sorted(chain(*redeemed)) == sorted(ids)


def test_each_is_matched_once_by_whatever_thread(open_store: OpenStore):
    """The same for threads that share one store."""
    ids = [f"i{number}" for number in range(100)]
    store = open_store()
    store.remember_many([(id_, answer()) for id_ in ids])
    taken: list[str] = []

    def work() -> None:
        taken.extend(id_ for id_ in ids if isinstance(store.take(id_), Answer))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(ids)


def test_a_prediction_and_its_truth_meet_whoever_is_first(open_store: OpenStore):
    """Of two processes, one that predicts and one that has the truth, just one gets both, for each id."""
    ids = [f"i{number}" for number in range(150)]
    store = open_store()

    def predict(tell: Any) -> None:
        tell([id_ for id_ in ids if store.remember(id_, answer()) is not None])

    def know(tell: Any) -> None:
        tell([id_ for id_ in ids if isinstance(store.wait(id_, 1.0), Answer)])

    with children(predict, know) as (one, other):
        met = one.next() + other.next()
    assert sorted(met) == sorted(ids)
    assert store.waiting() == 0


TAKES = """
import sys
from pathlib import Path
from otel_mlops.model.store import Answer, Store
store = Store(lambda: Path(sys.argv[1]), timeout_s=60.0)
store.redeem(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
ids = [f"i{number}" for number in range(3000)]
print(*[id_ for id_ in ids if isinstance(store.take(id_), Answer)])
print(*[id_ for id_ in ids if store.redeem(id_)])
store.close()
"""


@pytest.mark.stress
def test_each_is_matched_once_by_processes_that_share_nothing(open_store: OpenStore, tmp_path: Path):
    """The same for processes that were started one by one, and that make the file at the same moment."""
    ids = [f"i{number}" for number in range(3000)]
    command = [sys.executable, "-c", TAKES, str(tmp_path)]
    workers = [
        subprocess.Popen([*command, f"{number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    store = open_store()
    store.remember_many([(id_, answer()) for id_ in ids])
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    lines = [worker.communicate()[0].splitlines() for worker in workers]
    for number in (0, 1):
        assert sorted(chain(*(each[number].split() for each in lines))) == sorted(ids)
    for number in range(4):
        assert not store.redeem(f"{number}")


def write_for_ever(store: Store, name: str) -> Callable[[Callable[[Any], None]], None]:
    """Remembers, takes and redeems, and tells each of them after it was done."""

    def work(tell: Callable[[Any], None]) -> None:
        number = 0
        while True:
            number += 1
            store.remember(f"{name} {number}", answer(float(number)))
            tell(["remembered", number])
            if number % 3 == 0:
                assert store.take(f"{name} {number}") == answer(float(number), id=f"{name} {number}")
                tell(["taken", number])
            if number % 5 == 0:
                assert store.redeem(f"{name} {number}")
                tell(["redeemed", number])

    return work


def kill_writers(store: Store, rounds: int) -> None:
    for attempt in range(rounds):
        names = [f"{attempt}{letter}" for letter in "abc"]
        with children(*(write_for_ever(store, name) for name in names)) as born:
            lines = [child.lines() for child in born]
            told = [[next(each) for _ in range(10 + 7 * attempt % 40)] for each in lines]
            for child in born:
                child.kill()
            for each, rest in zip(told, lines, strict=True):
                each.extend(rest)
        for name, each in zip(names, told, strict=True):
            done: dict[str, set[int]] = {"remembered": set(), "taken": set(), "redeemed": set()}
            for what, number in each:
                done[what].add(number)
            *sure, last = sorted(done["remembered"])
            for number in sure:
                found = store.take(f"{name} {number}")
                assert found is DUPLICATE if number in done["taken"] else isinstance(found, Answer), (name, number)
            assert store.take(f"{name} {last}") is not None
            assert not any(store.redeem(f"{name} {number}") for number in done["redeemed"])


def is_whole(folder: Path) -> bool:
    with closing(sqlite3.connect(folder / STORE_FILE)) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchone() == ("ok",))


@pytest.mark.stress
def test_a_killed_writer_loses_nothing_it_was_told_is_kept(open_store: OpenStore, tmp_path: Path):
    """After SIGKILL in the middle all that was acknowledged is there, what was taken stays so, and others go on."""
    kill_writers(open_store(), rounds=2)
    assert is_whole(tmp_path)


@pytest.mark.stress
def test_many_killed_writers_lose_nothing(open_store: OpenStore, tmp_path: Path):
    """The same, 60 times three writers."""
    kill_writers(open_store(), rounds=60)
    assert is_whole(tmp_path)


def stop_inside(store: Store) -> Callable[[Any], None]:
    """What a child does that stops inside a transaction, and says so when it could go on."""

    def stop(tell: Any) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM predictions")
            os.kill(os.getpid(), signal.SIGSTOP)

        store._database.run(work)
        tell("done")

    return stop


def test_a_worker_that_was_stopped_in_the_middle_makes_others_busy_and_no_more(open_store: OpenStore):
    """While a process is stopped inside a transaction the others are told `busy`; then they go on, and so does it."""
    store = open_store(timeout_s=0.02)
    store.remember("a", answer())

    with children(stop_inside(store)) as (child,):
        child.until_stopped()
        for call in (lambda: store.take("a"), lambda: store.remember("b", answer()), lambda: store.redeem("c")):
            with pytest.raises(StoreError) as caught:
                call()
            assert caught.value.reason == "busy"
        assert "just had it" in str(caught.value), "after two that have waited in vain nobody waits"
        os.kill(child.pid, signal.SIGCONT)
        assert child.next() == "done"
    store._rests_until = 0.0  # a second later
    store.remember("b", answer())
    assert store.take("a") is None  # it had removed it, once it went on
    assert store.take("b") == answer(id="b")


def test_a_worker_that_was_killed_while_stopped_leaves_nothing_half_done(open_store: OpenStore):
    """A transaction whose process dies never happened, and nobody waits for it."""
    store = open_store(timeout_s=0.02)
    store.remember("a", answer())

    with children(stop_inside(store)) as (child,):
        child.until_stopped()
        with pytest.raises(StoreError):
            store.take("a")
    assert store.take("a") == answer(id="a")


def test_a_thread_that_takes_long_makes_others_busy(open_store: OpenStore):
    """While one thread of a process is inside, another waits no longer than it may."""
    store = open_store(timeout_s=0.02)
    inside, go_on = threading.Event(), threading.Event()

    def work(_: sqlite3.Connection) -> None:
        inside.set()
        assert go_on.wait(60.0)

    thread = threading.Thread(target=store._database.run, args=(work,))
    thread.start()
    assert inside.wait(60.0)
    with pytest.raises(StoreError) as caught:
        store.take("a")
    assert caught.value.reason == "busy"
    go_on.set()
    thread.join()
    assert store.take("a") is None


# --- Forks -------------------------------------------------------------------------------------------------------


def test_a_child_opens_its_own(open_store: OpenStore):
    """A forked child finds no open file; parent, child and grandchild go on with the same rows."""
    store = open_store()
    store.remember("parent", answer())

    def work(tell: Any) -> None:
        assert store._database._connection is None
        taken = isinstance(store.take("parent"), Answer)
        store.remember("child", answer())
        with children(lambda tell: tell(isinstance(store.take("child"), Answer))) as (grandchild,):
            tell([taken, grandchild.next()])
        tell(store.take("child") is DUPLICATE)

    with children(work) as (child,):
        assert child.next() == [True, True]
        assert child.next() is True
        assert store.take("parent") is DUPLICATE
        assert store.take("child") is DUPLICATE


def test_a_child_of_a_store_in_memory_begins_at_nothing(open_store: OpenStore):
    """Without a folder the child has a store of its own, and the parent keeps what it had."""
    store = open_store(None)
    store.remember("a", answer())

    def work(tell: Any) -> None:
        tell(store.take("a"))

    with children(work) as (child,):
        assert child.next() is None
    assert store.take("a") == answer(id="a")


@pytest.mark.stress
def test_a_fork_while_threads_write_finds_it_closed(open_store: OpenStore):
    """However busy the parent's threads are, its children can use the store, and nothing is lost."""
    store = open_store()
    done = threading.Event()
    written: list[str] = []

    def write() -> None:
        while not done.is_set():
            store.remember(f"p{len(written)}", answer())
            written.append(f"p{len(written)}")

    thread = threading.Thread(target=write)
    thread.start()

    def work(tell: Any) -> None:
        tell([store._database._is_lost, [store.redeem(f"c{os.getpid()} {number}") for number in range(20)]])

    try:
        for _ in range(5):
            with children(work) as (child,):
                assert child.next() == [False, [True] * 20]
    finally:
        done.set()
        thread.join()
    assert all(isinstance(store.take(id_), Answer) for id_ in written)


@pytest.mark.stress
def test_a_child_that_inherits_an_open_file_leaves_it_alone(open_store: OpenStore):
    """A child forked out of the middle of a transaction says that it has no store, and its parent goes on."""
    store = open_store()
    told: list[Any] = []

    def ask(tell: Any) -> None:
        try:
            store.take("a")
        except StoreError as error:
            tell(error.reason)

    def work(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM predictions")
        child = Child(ask)
        told.append(child.next())
        child.end()

    store.remember("a", answer())
    store._database.run(work)
    assert told == ["unavailable"]
    assert store.take("a") is None
    store.remember("b", answer())
    assert store.take("b") == answer(id="b")
