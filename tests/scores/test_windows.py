"""Windows: what was counted in the last while, whoever leads, whatever the clock does."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_mlops.scores.windows import Key, Window, Windows
from otel_mlops.sdk.group import Group

A: Key = ("drift/1", "model", "housing")
B: Key = ("latency", "model", "housing", "version", "v\u00e92\udc80")
HOUR = 3600.0
PANE = 300.0
NOON = 1_700_000_000.0


def group_in(folder: Path) -> Group:
    """A group whose folder is there, as it is once a worker has joined."""
    group = Group("windows", folder)
    group.folder.mkdir(parents=True)
    return group


@pytest.fixture
def group(tmp_path: Path) -> Group:
    """A group that somebody has joined."""
    return group_in(tmp_path)


def counting(windows: Windows, until: float, every: float, *, since: float = 0.0) -> dict[Key, Window]:
    """Look at a cell that counts one a second."""
    found = {}
    for time in range(round(since), round(until) + 1, round(every)):
        found = windows.look(NOON + time, {A: [float(time)]})
    return found


# --- The window -----------------------------------------------------------------------------------------------------


def test_at_first_all_that_was_counted_is_in_the_window():
    """Before the window is full it holds everything, also what was counted before the first look of all."""
    windows = Windows(HOUR, None, "drift")
    assert windows.look(NOON, {A: [7.0, 0.0]}) == {A: ([7.0, 0.0], 0.0)}
    assert windows.look(NOON + 5, {A: [7.0, 2.0]}) == {A: ([7.0, 2.0], 5.0)}


@pytest.mark.parametrize("every", [1.0, 5.0, 15.0, 299.0, 300.0, 301.0, 599.0])
def test_a_full_window_has_its_length_and_at_most_a_pane_and_a_look_more(every):
    """However often one looks, a window of an hour holds the last hour, and less than a pane and a look beyond."""
    windows = Windows(HOUR, None, "drift")
    counting(windows, HOUR - every, every)
    for time in range(round(HOUR), round(3 * HOUR), round(every)):
        (cells, seconds) = windows.look(NOON + time, {A: [float(time)]})[A]
        assert cells == [seconds]
        if time >= HOUR + every:
            assert HOUR <= seconds < HOUR + PANE + every


def test_what_was_counted_before_the_first_look_leaves_the_window_too():
    """The totals of the first look are out of the window once that look is as old as the window is long."""
    windows = Windows(HOUR, None, "drift")
    windows.look(NOON, {A: [1000.0]})
    assert windows.look(NOON + HOUR - 1, {A: [1001.0]}) == {A: ([1001.0], HOUR - 1)}
    assert windows.look(NOON + HOUR, {A: [1001.0]}) == {A: ([1.0], HOUR)}


def test_looks_further_apart_than_the_window_give_what_is_between_two_of_them():
    """In a replay that jumps by hours, and after a suspension, a window goes back to the last look, and says so."""
    windows = Windows(HOUR, None, "drift")
    windows.look(NOON, {A: [1.0]})
    assert windows.look(NOON + 6 * HOUR, {A: [10.0]}) == {A: ([9.0], 6 * HOUR)}
    assert windows.look(NOON + 9 * HOUR, {A: [30.0]}) == {A: ([20.0], 3 * HOUR)}
    assert windows.look(NOON + 9.75 * HOUR, {A: [31.0]}) == {A: ([21.0], 3.75 * HOUR)}
    assert windows.look(NOON + 10 * HOUR, {A: [32.0]}) == {A: ([2.0], HOUR)}


def test_a_new_key_began_at_nothing():
    """A key that was not there before has all its counts in the window, which begins at the last reading without it."""
    windows = Windows(HOUR, None, "drift")
    counting(windows, 1000, 100)
    assert windows.look(NOON + 1100, {A: [1100.0], B: [3.0, 4.0]})[B] == ([3.0, 4.0], 200.0)
    found = windows.look(NOON + 1300, {A: [1300.0], B: [3.0, 5.0]})
    assert found == {A: ([1300.0], 1300.0), B: ([3.0, 5.0], 400.0)}


def test_a_key_that_is_gone_has_no_window_and_begins_anew_when_it_is_back():
    """A key that nobody has any more is not told of, and its old counts are not subtracted from its new ones."""
    windows = Windows(HOUR, None, "drift")
    windows.look(NOON, {A: [5.0], B: [5.0]})
    assert windows.look(NOON + 300, {B: [6.0]}) == {B: ([6.0], 300.0)}
    assert windows.look(NOON + 310, {A: [7.0], B: [6.0]})[A] == ([7.0], 10.0)


def test_counts_that_went_back_were_forgotten():
    """A key of which one cell is below what it was at the last look holds what was counted since it was forgotten."""
    windows = Windows(HOUR, None, "drift")
    windows.look(NOON, {A: [5.0, 1.0], B: [1.0]})
    windows.look(NOON + 100, {A: [9.0, 9.0], B: [2.0]})
    assert windows.look(NOON + 200, {A: [20.0, 8.0], B: [3.0]}) == {A: ([20.0, 8.0], 200.0), B: ([3.0], 200.0)}
    assert windows.look(NOON + HOUR, {A: [20.0, 8.0], B: [4.0]}) == {A: ([20.0, 8.0], HOUR), B: ([3.0], HOUR)}
    assert windows.look(NOON + 2 * HOUR, {A: [20.0, 8.0], B: [4.0]})[A] == ([0.0, 0.0], HOUR)


def test_a_sum_of_either_sign_may_go_down():
    """A cell that is told to be signed does not count as forgotten when it is less, and its difference is negative."""
    windows = Windows(HOUR, None, "quality", signed=lambda key: (1,) if key == A else ())
    windows.look(NOON, {A: [1.0, 4.0]})
    windows.look(NOON + HOUR, {A: [2.0, 1.5]})
    assert windows.look(NOON + HOUR + 1, {A: [3.0, 1.25]}) == {A: ([2.0, -2.75], HOUR + 1)}
    assert windows.look(NOON + HOUR + 2, {A: [1.0, 9.0]})[A].cells == [1.0, 9.0]


def test_a_key_with_another_number_of_cells_begins_anew():
    """Cells that newer code has made longer are not compared with the shorter ones."""
    windows = Windows(HOUR, None, "drift")
    windows.look(NOON, {A: [5.0]})
    assert windows.look(NOON + 1, {A: [6.0, 7.0]}) == {A: ([6.0, 7.0], 1.0)}


def test_the_totals_are_the_callers_own():
    """Totals and windows that are changed after a look change no later window."""
    windows, totals = Windows(HOUR, None, "drift"), {A: [5.0]}
    found = windows.look(NOON, totals)
    found[A].cells[0] = totals[A][0] = 99.0
    assert windows.look(NOON + HOUR, {A: [6.0]}) == {A: ([1.0], HOUR)}


def test_whole_numbers_are_exact():
    """Counts up to 2**53 are told to the last one, in memory and by whoever goes on from the file."""
    huge = 2.0**53 - 3.0
    assert Windows(HOUR, None, "drift").look(NOON, {A: [huge]}) == {A: ([huge], 0.0)}
    with tempfile.TemporaryDirectory() as folder:
        group = group_in(Path(folder))
        Windows(HOUR, group, "drift").look(NOON, {A: [huge, 0.1]})
        assert Windows(HOUR, group, "drift").look(NOON + HOUR, {A: [huge + 2.0, 0.1 + 0.2]}) == {
            A: ([2.0, (0.1 + 0.2) - 0.1], HOUR)
        }


def test_readings_are_few_and_share_what_has_not_changed():
    """Readings are a pane apart, at most two more than there are panes, and a key that is idle takes room once."""
    windows = Windows(HOUR, None, "drift")
    for time in range(0, round(5 * HOUR), 95):
        windows.look(NOON + time, {A: [float(time)], B: [0.0] * 962})
        assert len(windows._readings) <= 14
    times = [each.time for each in windows._readings]
    assert all(later - earlier >= PANE for earlier, later in pairwise(times))
    assert len({id(each.totals[B]) for each in windows._readings}) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork: run this on Linux or macOS")
def test_a_forked_child_knows_nothing():
    """The totals of a child begin at nothing, and so do its windows."""
    windows = Windows(HOUR, None, "drift")
    windows.look(NOON, {A: [5.0]})
    windows.look(NOON + HOUR, {A: [5.0]})
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if windows.look(NOON + HOUR, {A: [6.0]}) == {A: ([6.0], 0.0)} else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- The clock ------------------------------------------------------------------------------------------------------


def test_while_the_clock_was_set_back_no_time_has_passed():
    """Readings move back with the clock, so a window neither lasts for ever nor loses what is in it."""
    windows = Windows(HOUR, None, "drift")
    counting(windows, 2 * HOUR, 300)
    assert windows.look(NOON - 50_000, {A: [2 * HOUR + 4]}) == {A: ([HOUR + 4], HOUR)}
    assert windows.look(NOON - 50_000 + HOUR, {A: [2 * HOUR + 5]}) == {A: ([5.0], HOUR)}


def test_who_takes_over_after_the_clock_was_set_back_goes_on_from_the_last_reading(group):
    """Readings of another leader from the future are taken as of now."""
    counting(Windows(HOUR, group, "drift"), 2 * HOUR, 300)
    successor = Windows(HOUR, group, "drift")
    assert successor.look(NOON - 50_000, {A: [2 * HOUR + 4]}) == {A: ([HOUR + 4], HOUR)}
    # Also who comes next, as the readings are kept as they are now.
    assert Windows(HOUR, group, "drift").look(NOON - 49_990, {A: [2 * HOUR + 5]}) == {A: ([HOUR + 5], HOUR + 10)}


def test_a_clock_that_goes_forward_is_believed():
    """After a jump the window says how long it is, and has its length again one window later."""
    windows = Windows(HOUR, None, "drift")
    counting(windows, HOUR, 300)
    assert windows.look(NOON + 100 * HOUR, {A: [HOUR + 1]}) == {A: ([1.0], 99 * HOUR)}
    assert windows.look(NOON + 101 * HOUR, {A: [HOUR + 3]}) == {A: ([2.0], HOUR)}


# --- Leaders --------------------------------------------------------------------------------------------------------


def test_the_next_leader_goes_on_and_so_does_the_first_when_it_leads_again(group):
    """Windows are the same whoever of two processes looks."""
    alone, both = Windows(HOUR, None, "drift"), [Windows(HOUR, group, "drift") for _ in range(2)]
    for turn, time in enumerate(range(0, round(4 * HOUR), 100)):
        totals = {A: [float(time), 0.0, float(time // 1000)], B: [float(turn)] + [0.0] * 961}
        found = both[turn // 7 % 2].look(NOON + time, totals)
        assert found == alone.look(NOON + time, totals)


def test_what_was_forgotten_under_another_leader_is_not_subtracted(group):
    """A leader that leads again knows what the one between has seen forgotten, even just before."""
    first, second = Windows(HOUR, group, "drift"), Windows(HOUR, group, "drift")
    first.look(NOON, {A: [100.0]})
    second.look(NOON + 1, {A: [3.0]})
    assert first.look(NOON + 2, {A: [200.0]}) == {A: ([200.0], 2.0)}


def test_windows_of_another_length_go_on_from_the_same_readings(group):
    """A service whose window was made longer or shorter does not begin anew."""
    counting(Windows(HOUR, group, "drift"), 2 * HOUR, 300)
    assert Windows(2 * HOUR, group, "drift", panes=3).look(NOON + 2 * HOUR + 1, {A: [9000.0]}) == {
        A: ([9000.0 - HOUR], HOUR + 1)
    }
    assert Windows(HOUR / 2, group, "drift").look(NOON + 2 * HOUR + 2, {A: [9000.0]}) == {
        A: ([9000.0 - 1.5 * HOUR], HOUR / 2 + 2)
    }


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        "[" * 100_000,
        '"\ud800',
        '{"version": 0, "readings": [[1.0, []]]}',
        '{"version": 1, "readings": []}',
        '{"version": 1, "readings": 3}',
        '{"version": 1, "readings": [["noon", []]]}',
        '{"version": 1, "readings": [[NaN, []]]}',
        '{"version": 1, "readings": [[5.0, []], [4.0, []]]}',
        '{"version": 1, "readings": [[5.0, [[["a"], 1, [1], [2.0]]]]]}',
        '{"version": 1, "readings": [[5.0, [[["a"], 1, [0], ["2"]]]]]}',
        '{"version": 1, "readings": [[5.0, [[["a"], 1, [0], []]]]]}',
        '{"version": 1, "readings": [[5.0, [[[["a"]], 1, [0], [2.0]]]]]}',
        '{"version": 1, "readings": [[5.0, [[["a"], -1, [], []]]]]}',
        '{"version": 1, "readings": [[5.0, [[["a"], 1e30, [], []]]]]}',
        '{"version": 1, "readings": [[5.0, [[["a"], 1000000000000000000, [], []]]]]}',
        '{"version": 1, "readings": [[5.0, [[["a"], 1, [0], [2.0]]]], [6.0, [[["a"], 1, [0], [1.0]]]]]}',
    ],
)
def test_a_file_that_is_not_understood_counts_as_none(group, content, caplog):
    """Whatever the file says, the windows begin anew, say so once, and the next leader goes on from them."""
    caplog.set_level(logging.DEBUG)
    (group.folder / "drift").write_bytes(content.encode(errors="surrogatepass"))
    windows = Windows(HOUR, group, "drift")
    assert windows.look(NOON, {A: [5.0]}) == {A: ([5.0], 0.0)}
    assert windows.look(NOON + HOUR, {A: [6.0]}) == {A: ([1.0], HOUR)}
    assert len(caplog.records) == 1
    assert Windows(HOUR, group, "drift").look(NOON + HOUR, {A: [6.0]}) == {A: ([1.0], HOUR)}


def test_a_file_that_is_damaged_while_one_leads_is_written_anew(group):
    """Who knows better than the file goes on with what it knows."""
    windows = Windows(HOUR, group, "drift")
    windows.look(NOON, {A: [5.0]})
    (group.folder / "drift").write_text("{")
    assert windows.look(NOON + HOUR, {A: [6.0]}) == {A: ([1.0], HOUR)}
    assert "readings" in json.loads((group.folder / "drift").read_text())


def test_without_room_for_the_file_the_windows_go_on_in_memory(tmp_path, caplog):
    """Readings that cannot be kept are known here alone, which is said once, and are kept as soon as they can be."""
    caplog.set_level(logging.DEBUG)
    group = Group("nobody-has-joined", tmp_path)
    windows = Windows(HOUR, group, "drift")
    for time, count in [(0, 5.0), (10, 5.0), (HOUR, 6.0)]:
        found = windows.look(NOON + time, {A: [count]})
    assert found == {A: ([1.0], HOUR)}
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]
    group.folder.mkdir(parents=True)
    windows.look(NOON + HOUR + 1, {A: [6.0]})
    assert Windows(HOUR, group, "drift").look(NOON + HOUR + 2, {A: [6.0]}) == {A: ([1.0], HOUR + 2)}
    shutil.rmtree(group.folder)
    windows.look(NOON + 2 * HOUR, {A: [6.0]})
    assert len(caplog.records) == 2


def test_a_file_that_cannot_be_read_leaves_the_windows_as_they_are(group, caplog):
    """A fault of the folder never raises, and the windows go on in memory."""
    caplog.set_level(logging.DEBUG)
    (group.folder / "drift").mkdir()  # no user can read or replace it as a file
    windows = Windows(HOUR, group, "drift")
    windows.look(NOON, {A: [5.0]})
    assert windows.look(NOON + HOUR, {A: [6.0]}) == {A: ([1.0], HOUR)}
    assert caplog.records


def test_the_file_has_what_changed_alone(group):
    """The cells of a key are in the file once, the zeros never, however many readings there are."""
    windows = Windows(HOUR, group, "drift")
    for time in range(0, round(2 * HOUR), 100):
        windows.look(NOON + time, {A: [float(time), 3.0], B: [0.0] * 500 + [7.0] * 100 + [0.0] * 362})
    told = json.loads((group.folder / "drift").read_text())["readings"]
    rows = [row for _, changes in told for row in changes]
    assert [values for names, _, _, values in rows if tuple(names) == B] == [[7.0] * 100]
    assert all(indices == [0] for names, _, indices, _ in rows[2:])


# --- Windows of before ----------------------------------------------------------------------------------------------


def test_a_window_of_before_is_as_long_and_ends_a_while_ago():
    """Of what is counted evenly, a window that ended some time ago holds its length, wherever the readings are."""
    windows = Windows(HOUR, None, "quality", history=2.0)
    counting(windows, 3 * HOUR, 70)
    for lag in (0.0, 1.0, 299.0, 1800.0, HOUR):
        cells, seconds = windows.lagged(A, lag)
        assert seconds == HOUR
        assert cells == pytest.approx([HOUR], rel=1e-9)


def test_between_two_readings_the_counts_lie_on_a_line():
    """What came between two readings came evenly, also the first counts of a key."""
    windows = Windows(HOUR, None, "quality")
    windows.look(NOON, {A: [8.0]})
    windows.look(NOON + 400, {A: [12.0], B: [6.0]})
    assert windows.lagged(A, 100.0) == ([3.0], 300.0)
    assert windows.lagged(B, 100.0) == ([4.5], 300.0)
    windows.look(NOON + 800, {A: [12.0], B: [6.0]})
    assert windows.lagged(A, 300.0) == ([4.0], 500.0)


def test_a_window_of_before_is_absent_until_it_is_known():
    """Before there was a look, and of a key before it was there, nothing is known."""
    windows = Windows(HOUR, None, "quality", history=2.0)
    assert windows.lagged(A, 0.0) is None
    windows.look(NOON, {A: [8.0]})
    assert windows.lagged(A, 0.0) is None
    windows.look(NOON + 600, {A: [9.0]})
    windows.look(NOON + 1200, {A: [10.0], B: [3.0]})
    assert windows.lagged(A, 1200.0) is None
    assert windows.lagged(B, 600.0) is None
    assert windows.lagged(B, 300.0) == ([1.5], 300.0)
    windows.look(NOON + 1201, {B: [3.0]})
    assert windows.lagged(A, 0.0) is None


def test_windows_reach_back_as_far_as_they_are_told_to():
    """The readings of two lengths are kept where a window of before is wanted, and of one where it is not."""
    one, two = (Windows(HOUR, None, "quality", history=history) for history in (1.0, 2.0))
    counting(one, 5 * HOUR, 300)
    counting(two, 5 * HOUR, 300)
    assert one.lagged(A, HOUR / 2) == ([HOUR / 2], HOUR / 2)
    assert two.lagged(A, HOUR) == ([HOUR], HOUR)
    assert len(two._readings) <= 2 * 12 + 2


# --- Whatever happens -----------------------------------------------------------------------------------------------


class Story:
    """Every event there was, in order, and what the windows promise of them."""

    LENGTH_S, PANES = 60.0, 4

    def __init__(self, group: Group) -> None:
        self.group = group
        self.leaders = [Windows(self.LENGTH_S, group, "story", panes=self.PANES) for _ in range(2)]
        self.leader = self.leaders[0]
        self.now = self.looked_at = NOON
        self.elapsed = 0.0
        """The time as the leaders know it: it does not go back."""
        self.looks: list[float] = []
        """When each was."""
        self.events: list[tuple[int, Key, int, float]] = []
        """What was counted, and before which look."""
        self.born: dict[Key, int] = {}
        """The first look of each key that is there."""

    def count(self, key: Key, cell: int, times: float) -> None:
        """Something happens."""
        self.events.append((len(self.looks), key, cell, times))

    def wait(self, seconds: float) -> None:
        """The clock goes on, or back."""
        self.now += seconds

    def lead(self, which: int) -> None:
        """Another leads, which may have led before or have just been started, and whose clock has not gone back."""
        self.now = max(self.now, self.looked_at)
        self.leader = (*self.leaders, Windows(self.LENGTH_S, self.group, "story", panes=self.PANES))[which]
        self.look()

    def forget(self, key: Key) -> None:
        """All that was counted of a key is forgotten, which is seen at once."""
        self.events = [event for event in self.events if event[1] != key]
        self.look()

    def since(self, key: Key, look: int) -> list[float]:
        """What was counted of a key after a look."""
        cells = [0.0, 0.0, 0.0]
        for before, name, cell, times in self.events:
            if name == key and before > look:
                cells[cell] += times
        return cells

    def look(self) -> None:
        """Hold the windows against the events."""
        number = len(self.looks)
        self.elapsed += max(self.now - self.looked_at, 0.0)
        self.looked_at = self.now
        self.looks.append(self.elapsed)
        totals = {key: self.since(key, -1) for key in {name for _, name, _, _ in self.events}}
        self.born = {key: self.born.get(key, number) for key in totals}
        found = self.leader.look(self.now, totals)
        assert found.keys() == totals.keys()
        for key, (cells, seconds) in found.items():
            self.holds(key, cells, self.elapsed - seconds)

    def holds(self, key: Key, cells: Sequence[float], begin: float) -> None:
        """A window holds what was counted since a look, and that look is the right one."""
        born = self.born[key]
        due = [look for look in self.looks if look <= self.elapsed - self.LENGTH_S]
        newest = max([self.looks[0], *due, *self.looks[max(born - 1, 0) : born]])
        pane = self.LENGTH_S / self.PANES
        assert newest - pane < begin <= newest
        at = [number for number, look in enumerate(self.looks) if look == begin]
        if not due:
            at.append(-1)  # nobody knows when what was there at the first look was counted
        assert any(self.since(key, number) == cells for number in at)


numbers = st.sampled_from([1.0, 2.0, 1000.0, 2.0**40, 0.5])
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("count"), st.sampled_from([A, B, ("c",)]), st.integers(0, 2), numbers),
        st.tuples(
            st.just("wait"), st.sampled_from([1.0, 5.0, 14.0, 15.0, 16.0, 44.0, 60.0, 61.0, 500.0, -3.0, -700.0])
        ),
        st.tuples(st.just("look")),
        st.tuples(st.just("look")),
        st.tuples(st.just("lead"), st.integers(0, 2)),
        st.tuples(st.just("forget"), st.sampled_from([A, B])),
    ),
    max_size=60,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the groups of many stories."""
    return tmp_path_factory.mktemp("stories")


@settings(max_examples=200, deadline=None)
@given(happenings=happenings)
def test_whatever_happens_a_window_holds_what_was_counted_in_its_time(folder, happenings):
    """Whatever is counted and forgotten, whoever leads, however the clock goes: windows are the right events."""
    shutil.rmtree(folder / f"otel_mlops-{os.getuid()}", ignore_errors=True)
    story = Story(group_in(folder))
    story.look()
    for what, *how in happenings:
        getattr(story, what)(*how)
    story.look()


finite = st.floats(min_value=0.0, max_value=1e300)


@given(steps=st.lists(st.tuples(st.floats(min_value=-100.0, max_value=1e4), st.lists(finite, min_size=3, max_size=3))))
def test_nothing_is_ever_negative(steps):
    """Whatever the totals and the clock do, no cell and no time of a window is below 0."""
    windows, now = Windows(60.0, None, "drift", history=2.0), NOON
    for elapsed, cells in steps:
        now += elapsed
        found, before = windows.look(now, {A: cells})[A], windows.lagged(A, 30.0)
        assert min(*found.cells, found.seconds) >= 0.0
        assert math.isfinite(found.seconds)
        assert before is None or before.seconds > 0.0
