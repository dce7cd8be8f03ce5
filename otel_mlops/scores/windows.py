"""Windows: what was counted in the last while, as a difference between two readings of the merged totals.

No formula and no metric is known here: totals by key go in, and those of the window come out.
"""

from __future__ import annotations

import logging
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Container, Mapping, Sequence
from math import isfinite
from operator import attrgetter, gt, sub
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from otel_mlops.sdk.files import mark_of

if TYPE_CHECKING:
    from otel_mlops.sdk.group import Group

_logger = logging.getLogger(__name__)

Key: TypeAlias = tuple[str, ...]
"""What tells a row of cells from every other: its name, its attributes."""

_VERSION = 1
"""Of the file; a leader that finds another begins anew."""


class Window(NamedTuple):
    """What was counted in the last `seconds`, cell by cell."""

    cells: list[float]
    seconds: float


class Windows:
    """Remembers readings of totals, and tells by how much they have grown in the last `length_s`.

    A window begins at a reading: the newest that is `length_s` old, or the oldest while none is. A look is kept as a
    reading once a pane (`length_s / panes`) has passed since the last reading. So a window covers the last `length_s`
    as soon as the readings reach so far back, and begins less than a pane before the last look that is so old: it is
    at most a pane and the time between two looks longer, and where looks are further apart than that, as in a replay
    or after a suspension, it goes back to a look before.

    - What was counted before the first look of all is in the windows until that look is `length_s` old: another leader
      may have died and left nothing. Since when is not known; `seconds` counts from the first look, where it is 0.
    - A key that is new began at 0, and its window begins at the last reading without it. So does that of a key that
      has vanished and come back, and that of one with a cell below what it was at the last look: it was forgotten. Not
      seen is a `forget` after which each cell has grown past its old count before the next look.
    - Cells are counts or sums of what is never below 0, except for those whose indices `signed(key)` has. The
      difference of counts is exact up to 2**53, and never below 0. That of other sums has the rounding error of the
      totals: 1e-16 of all that was ever added, however little of it is in the window.
    - While the clock was set back no time has passed: the readings move back with it, by as much as the last look was
      ahead. A clock that goes forward is believed; `seconds` says how long the window has become.

    The readings lie in the group's file `name`, a word. Whoever leads, and nobody else, looks, in one thread, and goes
    on from what another leader has kept meanwhile, be it of other windows' length; what is damaged or of another
    version counts as nothing kept. A leader that has just taken over knows the last reading, and not the last look.

    `history` says how far back, in lengths, `lagged` can look. There are at most `history * panes + 2` readings, those
    of before a change of length aside. Each has 8 bytes a cell, which a key that has not changed shares with the
    reading before, and some 12 to 20 bytes in the file for each cell that has changed.
    """

    def __init__(
        self,
        length_s: float,
        group: Group | None,
        name: str,
        *,
        panes: int = 12,
        history: float = 1.0,
        signed: Callable[[Key], Container[int]] = lambda _key: (),
    ) -> None:
        self._length_s = length_s
        self._pane_s = length_s / panes
        self._history_s = length_s * max(history, 1.0)
        self._group = group
        self._name = name
        self._signed = signed
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._readings: list[_Reading] = []
        """The oldest first. A key that is in one is in all that follow."""
        self._last = _Reading(0.0, {})
        """The last look; right after another has led, its last reading."""
        self._mark: tuple[int, ...] | None = None
        """Of the file that these readings were kept in or loaded from."""
        self._faults: dict[str, str] = {}

    def look(self, now: float, totals: Mapping[Key, Sequence[float]]) -> dict[Key, Window]:
        """The windows of all keys that there are now, a time in seconds since the epoch."""
        if self._pid != os.getpid():
            self._begin()  # a forked child's totals begin at nothing, too
        self._go_on_from_another()
        is_changed = self._follow_clock(now) | self._drop_forgotten(totals)
        self._last = _Reading(now, {key: [*cells] for key, cells in totals.items()})
        if not self._readings:
            self._readings = [_Reading(now, {}), self._reading()]
            is_changed = True
        elif now - self._readings[-1].time >= self._pane_s:
            oldest = max(bisect_right(self._readings, now - self._history_s, key=_time) - 1, 0)
            self._readings = [*self._readings[oldest:], self._reading()]
            is_changed = True
        if is_changed or self._faults:
            self._keep()
        return self._windows(now)

    def lagged(self, key: Key, lag_s: float) -> Window | None:
        """What was counted in the window that ended some time before the last look, evenly between two readings.

        What was counted before the first look of all is in none. The window is shorter than the others while the
        readings do not reach so far back, and of a key that began in it.

        Absent when: the key is not there now, or was not yet when the window ended.
        """
        if key not in self._last.totals:
            return None
        first = max(self._without(key) - 1, 0)
        points = [*self._readings[first:], self._last]
        end = self._last.time - lag_s
        begin = max(end - self._length_s, points[0].time)
        if end <= begin:
            return None
        return Window([*map(sub, _cells_at(end, points, key), _cells_at(begin, points, key))], end - begin)

    def _windows(self, now: float) -> dict[Key, Window]:
        begin = self._readings[max(bisect_right(self._readings, now - self._length_s, key=_time) - 1, 0)]
        seconds = now - begin.time
        found = {}
        for key, cells in self._last.totals.items():
            before = begin.totals.get(key)
            if before is None:
                found[key] = Window([*cells], now - self._readings[self._without(key) - 1].time)
            else:
                found[key] = Window([*map(sub, cells, before)], seconds)
        return found

    def _without(self, key: Key) -> int:
        """How many of the readings do not have a key: the first ones."""
        return bisect_right(self._readings, 0, key=lambda reading: key in reading.totals)

    def _reading(self) -> _Reading:
        """The last look as a reading."""
        known = self._readings[-1].totals if self._readings else {}
        totals: dict[Key, Sequence[float]] = {}
        for key, cells in self._last.totals.items():
            packed, before = array("d", cells), known.get(key)
            totals[key] = packed if before is None or before != packed else before
        return _Reading(self._last.time, totals)

    def _follow_clock(self, now: float) -> bool:
        """Move the readings back if the last look lies in the future, and say whether it does."""
        ahead = self._last.time - now
        if not self._readings or ahead <= 0.0:
            return False
        self._readings = [each._replace(time=each.time - ahead) for each in self._readings]
        return True

    def _drop_forgotten(self, totals: Mapping[Key, Sequence[float]]) -> bool:
        """Know nothing any more of the keys that are gone or have begun anew, and say whether there are any."""
        known = self._readings[-1].totals if self._readings else {}
        last = self._last.totals
        gone = {key for key in known if key not in totals or self._is_anew(key, last[key], totals[key])}
        if gone:
            self._readings = [
                _Reading(time, {key: cells for key, cells in then.items() if key not in gone})
                for time, then in self._readings
            ]
        return bool(gone)

    def _is_anew(self, key: Key, before: Sequence[float], cells: Sequence[float]) -> bool:
        if len(before) != len(cells):
            return True
        if not any(map(gt, before, cells)):
            return False
        signed = self._signed(key)
        return any(index not in signed for index, smaller in enumerate(map(gt, before, cells)) if smaller)

    # --- What the next leader goes on from -------------------------------------------------------------------

    def _go_on_from_another(self) -> None:
        if self._group is None:
            return
        try:
            mark = mark_of(self._group.folder / self._name)
            if mark is None or mark == self._mark:
                return
            readings = self._understood(self._group.load(self._name))
        except OSError as error:
            self._tell("cannot be read", error)
        except Exception as error:
            # Whatever it says, what is known here is better; it is written over at once.
            self._tell("are not understood", error)
        else:
            self._mark = mark
            self._readings, self._last = readings, readings[-1]

    def _understood(self, told: Any) -> list[_Reading]:
        """The readings of a file.

        Errors:  any, if it is not one that `_keep` has written.
        """
        if told["version"] != _VERSION:
            msg = f"version {told['version']}"
            raise ValueError(msg)
        readings: list[_Reading] = []
        totals: dict[Key, Sequence[float]] = {}
        for time, changes in told["readings"]:
            totals = dict(totals)
            for names, size, indices, values in changes:
                key = tuple(names)
                cells = array("d", totals.get(key, bytes(8 * size)))
                for index, value in zip(indices, values, strict=True):
                    cells[index] = value
                if self._is_anew(key, totals.get(key, cells), cells):
                    msg = f"{key} goes back"
                    raise ValueError(msg)
                totals[key] = cells
            if not isfinite(time) or (readings and time < readings[-1].time):
                msg = f"time {time}"
                raise ValueError(msg)
            readings.append(_Reading(time, totals))
        if not readings:
            msg = "no reading"
            raise ValueError(msg)
        return readings

    def _keep(self) -> None:
        """Write of each reading what differs from the one before, where what is absent is 0."""
        if self._group is None:
            return
        told: list[tuple[float, list[Any]]] = []
        before: Mapping[Key, Sequence[float]] = {}
        for time, totals in self._readings:
            changes = []
            for key, cells in totals.items():
                old = before.get(key)
                if old is not cells:
                    old = bytes(len(cells)) if old is None else old
                    indices = [index for index, (a, b) in enumerate(zip(old, cells, strict=True)) if a != b]
                    changes.append((key, len(cells), indices, [cells[index] for index in indices]))
            told.append((time, changes))
            before = totals
        try:
            self._group.keep(self._name, {"version": _VERSION, "readings": told})
            self._mark = mark_of(self._group.folder / self._name)
            self._faults.clear()
        except OSError as error:
            self._tell("are known to this worker alone", error)

    def _tell(self, what: str, error: Exception) -> None:
        """Log a fault once, until the readings are kept again."""
        if self._faults.get(what) != repr(error):
            self._faults[what] = repr(error)
            _logger.debug("the readings of %s %s: %r", self._name, what, error)


class _Reading(NamedTuple):
    """Totals as they were at a time."""

    time: float
    totals: Mapping[Key, Sequence[float]]


_time = attrgetter("time")


def _cells_at(time: float, points: Sequence[_Reading], key: Key) -> list[float]:
    """The cells of a key at a time that is not before the first point, on a straight line between two of them."""
    after = bisect_right(points, time, key=_time)
    before = points[after - 1]
    if after == len(points):
        return [*before.totals[key]]
    cells = points[after].totals[key]
    old = before.totals.get(key, bytes(len(cells)))
    share = (time - before.time) / (points[after].time - before.time)
    return [a + share * (b - a) for a, b in zip(old, cells, strict=True)]
