"""Energy: how the joules of a GPU are shared out among the calls that ran on it; no clock, no GPU, no file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import fsum, inf
from typing import NamedTuple, TypeAlias

Interval: TypeAlias = tuple[float, float, float]
"""When something ran, and its weight: begin, end (infinite while it runs), rows."""


class Slot(NamedTuple):
    """A stretch of time and the energy that was used in it, evenly."""

    begin: float
    end: float
    joules: float


class Shares(NamedTuple):
    """What each interval gets, in their order, and what is left for none."""

    joules: list[float]
    idle: float


def share(intervals: Sequence[Interval], slots: Iterable[Slot]) -> Shares:
    """Share the energy of the slots out among the intervals: at each moment among those that run, by their weights.

    An interval of weight w gets w ∫ P(t)/n(t) dt over its time, with P the power and n the weight that runs at t.
    What was used while nothing ran is idle. Shares and idle add up to the energy of the slots.

    Takes:   intervals in any order, with begin <= end and a weight above 0 (exact for whole numbers, as rows are);
             slots in order that do not overlap, each of some length; between them nothing is known to be used.
    Units:   seconds, joules.
    Source:  the accumulator A(t) = ∫ P(t)/n(t) dt is that of weighted fair queueing's virtual time (Demers, Keshav,
             Shenker 1989; Parekh, Gallager 1993), with energy in the place of the link's bits.

    >>> share([(0.0, 2.0, 1.0), (1.0, 2.0, 3.0)], [Slot(0.0, 4.0, 400.0)])
    Shares(joules=[125.0, 75.0], idle=200.0)
    """
    return _Sweep(intervals).over(slots)


class _Sweep:
    """Goes through time once: from one change of what runs to the next."""

    def __init__(self, intervals: Sequence[Interval]) -> None:
        self._intervals = intervals
        begins = [(begin, 0, index) for index, (begin, _, _) in enumerate(intervals)]
        ends = [(end, 1, index) for index, (_, end, _) in enumerate(intervals)]
        self._changes = sorted(begins + ends)  # one that begins and ends at once begins first
        self._next = 0
        self._running = 0
        self._weight = 0.0
        # A(t) so far as two numbers that are exact together: a short interval is the difference of two long sums.
        self._high = self._low = 0.0
        self._at_begin = [(0.0, 0.0)] * len(intervals)
        self._joules = [0.0] * len(intervals)

    def over(self, slots: Iterable[Slot]) -> Shares:
        idle: list[float] = []
        for begin, end, joules in slots:
            here = begin
            while here < end:
                self._change_up_to(here)
                until = min(end, self._changes[self._next][0]) if self._next < len(self._changes) else end
                piece = joules * ((until - here) / (end - begin))
                if self._running:
                    self._add(piece / self._weight)
                else:
                    idle.append(piece)
                here = until
        self._change_up_to(inf)
        return Shares(self._joules, fsum(idle))

    def _change_up_to(self, time: float) -> None:
        while self._next < len(self._changes) and self._changes[self._next][0] <= time:
            _, has_ended, index = self._changes[self._next]
            self._next += 1
            weight = self._intervals[index][2]
            if has_ended:
                high, low = self._at_begin[index]
                self._joules[index] = weight * max(0.0, (self._high - high) + (self._low - low))
                self._running -= 1
                # Nothing is nothing: what rounding may leave of it would be divided by.
                self._weight = self._weight - weight if self._running else 0.0
            else:
                self._at_begin[index] = self._high, self._low
                self._running += 1
                self._weight += weight

    def _add(self, amount: float) -> None:
        total = self._high + amount
        carried = total - self._high
        self._low += (self._high - (total - carried)) + (amount - carried)
        self._high = total


def price(powers: Iterable[tuple[float, float]], begin: float, end: float, joules: float) -> list[Slot]:
    """Spread the energy of a period over its time, by the power that was seen.

    Takes:   `powers` as (time, watts) in order of time, each the mean up to its time from the one before; outside of
             the period they say nothing about it, but that the first after its end says what was drawn up to there.
             What none tells is as the last before it; where all is 0 or unknown, the energy is spread evenly.
    Units:   seconds, watts, joules.

    >>> price([(1.0, 100.0), (2.0, 300.0)], 0.0, 2.0, 200.0)
    [Slot(begin=0.0, end=1.0, joules=50.0), Slot(begin=1.0, end=2.0, joules=150.0)]
    """
    until: list[float] = [begin]
    watts: list[float] = []
    for time, power in powers:
        if time <= until[-1]:
            continue
        until.append(min(time, end))
        watts.append(power)
        if time >= end:
            break
    if until[-1] < end:
        until.append(end)
        watts.append(watts[-1] if watts else 0.0)
    stretches = list(pairwise(until))
    weights = [power * (stop - start) for power, (start, stop) in zip(watts, stretches, strict=True)]
    total = fsum(weights)
    if not total > 0.0:
        weights, total = [stop - start for start, stop in stretches], end - begin
    return [
        Slot(start, stop, joules * (weight / total)) for weight, (start, stop) in zip(weights, stretches, strict=True)
    ]
