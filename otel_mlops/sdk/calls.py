"""The prediction calls of all workers of the group, as their rings tell them; what each has cost is not known here."""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_mlops.sdk.files import is_alive
from otel_mlops.sdk.intervals import LENGTH, SLOTS, SUFFIX, columns_of, facts_of

if TYPE_CHECKING:
    from otel_mlops.sdk.group import Group
    from otel_mlops.sdk.intervals import Intervals

_logger = logging.getLogger(__name__)

_BLOCK = 64
_LARGEST_WEIGHT = 2.0**40
"""Far below what adds up exactly: who says more has no rows."""


@dataclass(slots=True, eq=False)
class Call:
    """One prediction call; its end is infinite, and its weight not known, while it runs."""

    key: tuple[str, int, int]
    """The ring, the slot, and how often that was taken: the same whoever reads it."""
    model: Mapping[str, Any]
    begin: float
    end: float = inf
    weight: float = 1.0
    joules: float | None = None
    """What was worked out for it so far, by whoever does."""


class Follower:
    """One worker's ring as it is read again and again, and its calls that were not let go.

    `seen_at` is when it was seen not to be there yet; None if it may be old.
    """

    def __init__(self, name: str, memory: memoryview, seen_at: float | None = None) -> None:
        self.name = name
        self.environment: Mapping[str, str] = {}
        """What it may use, by the variables that say so."""
        self.calls: list[Call] = []
        self._memory = memory
        self._turns, self._numbers, self._begins, self._ends, self._weights = columns_of(memory)
        self._seen = [0.0] * SLOTS
        self._seen_at = seen_at
        self._models: list[Mapping[str, Any]] = []
        self._facts_at = b""
        self._running: dict[int, Call] = {}

    def look(self, now: float) -> int:
        """Take what has begun and ended since the last look, at the first one all that is there.

        Returns how many calls were not seen, as others have had their slots since.
        """
        self._read_facts()
        turns: Any = self._turns.tolist()
        lost = 0
        if turns != self._seen:
            for slot in _differing(turns, self._seen):
                call = self._read(slot, turns[slot])
                if call is None:
                    turns[slot] = self._seen[slot]  # it is being written: the next look reads it
                    continue
                if self._seen_at is not None:
                    lost += int(turns[slot] - self._seen[slot]) - 1
                self._end(slot, self._seen_at or now)  # when the one before has ended nobody has seen
                self.calls.append(call)
                if call.end == inf:
                    self._running[slot] = call
            self._seen = turns
        for slot, call in list(self._running.items()):
            end, weight = self._ends[slot], self._weights[slot]
            if end and self._turns[slot] == self._seen[slot]:
                self._end(slot, end)
                call.weight = _fit(weight)
        self._seen_at = now
        return lost

    def finish(self, now: float) -> None:
        """End what runs: its worker is dead."""
        for slot in list(self._running):
            self._end(slot, now)

    def _end(self, slot: int, end: float) -> None:
        call = self._running.pop(slot, None)
        if call is not None:
            call.end = max(call.begin, end)

    def _read(self, slot: int, turn: float) -> Call | None:
        """The call that has a slot; None if it is not there as a whole."""
        number, begin, end, weight = self._numbers[slot], self._begins[slot], self._ends[slot], self._weights[slot]
        if self._turns[slot] != turn or number >= len(self._models):
            return None
        call = Call((self.name, slot, int(turn)), self._models[int(number)], begin)
        if end:
            call.begin, call.end, call.weight = min(begin, end), end, _fit(weight)
        return call

    def _read_facts(self) -> None:
        facts_at = bytes(self._memory[:16])
        if facts_at != self._facts_at and (facts := facts_of(self._memory)) is not None:
            self._facts_at, self.environment, self._models = facts_at, facts["environment"], facts["models"]


class Calls:
    """The calls of everybody in the group, of the dead too until they are let go."""

    def __init__(self, intervals: Intervals, group: Group | None) -> None:
        self._intervals = intervals
        self._group = group
        self._followers: dict[str, Follower] = {}
        self._looked_at: float | None = None

    def __iter__(self) -> Iterator[Follower]:
        return iter(list(self._followers.values()))

    def look(self, now: float) -> int:
        """Look at every ring, and remove those of the dead; returns how many calls were not seen.

        Errors:  OSError if the group's folder cannot be read.
        """
        lost = 0
        present = set()
        for ring in self._intervals.rings():
            name = f"private-{id(ring)}" if ring.path is None else ring.path.stem
            present.add(name)
            if name not in self._followers:
                self._followers[name] = Follower(name, ring.memory, self._looked_at)
            lost += self._followers[name].look(now)
        for path in self._files():
            name = path.stem
            if name not in present:
                present.add(name)
                lost += self._look_at(path, now)
        for name in [name for name in self._followers if name not in present]:
            lost += self._followers[name].look(now)  # it has gone under its name alone
            self._followers[name].finish(now)
            if not self._followers[name].calls:
                del self._followers[name]
        self._looked_at = now
        return lost

    def _files(self) -> list[Path]:
        if self._group is None:
            return []
        try:
            return [path for path in self._group.folder.iterdir() if path.suffix == SUFFIX]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _look_at(self, path: Path, now: float) -> int:
        # Before the look: what a worker has written until its death is there then.
        lives = is_alive(path.with_suffix(".ledger"))
        follower = self._followers.get(path.stem) or self._open(path)
        lost = 0 if follower is None else follower.look(now)
        if not lives:
            if follower is not None:
                follower.finish(now)
            path.unlink(missing_ok=True)
        return lost

    def _open(self, path: Path) -> Follower | None:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                memory = memoryview(mmap.mmap(file, LENGTH, access=mmap.ACCESS_READ))
            finally:
                os.close(file)
            facts_of(memory)
        except (OSError, ValueError) as error:
            # Gone just now, or not finished; one of another version is left to its own leader.
            _logger.debug("%s is not read: %s", path, error)
            return None
        follower = self._followers[path.stem] = Follower(path.stem, memory, self._looked_at)
        return follower


def _differing(turns: list[float], seen: list[float]) -> list[int]:
    """Where the two differ: a block at a time, as those that were taken lately mostly lie together."""
    return [
        slot
        for first in range(0, SLOTS, _BLOCK)
        if turns[first : first + _BLOCK] != seen[first : first + _BLOCK]
        for slot in range(first, first + _BLOCK)
        if turns[slot] != seen[slot]
    ]


def _fit(weight: float) -> float:
    """The rows of a call: one at least, as an empty batch has used something too."""
    return weight if 1.0 <= weight <= _LARGEST_WEIGHT else 1.0
