"""How the numbers of several workers become one: by the metric's rule, and by nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import add
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from otel_mlops.sdk.exemplars import Exemplar

Cells: TypeAlias = list[float]
Combine: TypeAlias = Callable[[Sequence[Cells]], Cells]

KEEP_THE_DEAD = frozenset({"sum", "latest"})
"""The rules by which what a worker has recorded outlives it."""

_OF_THE_HOST = ("system.", "hw.", "container.")


def rule_of(name: str, kind: str, *, observed: bool) -> str:
    """How workers combine for a metric that is in no catalogue of ours.

    Nobody knows whether the callbacks of two workers speak of the same thing, so each is shown, but for what
    the names of the semantic conventions say.
    """
    if name.startswith(_OF_THE_HOST) and (observed or kind == "gauge"):
        return "once"
    if observed:
        return "sum" if kind == "counter" and name.startswith("process.") else "worker"
    return {"counter": "sum", "histogram": "sum", "cells": "sum", "updown": "living"}.get(kind, "worker")


def combine_by(kind: str, rule: str) -> Combine:
    """What makes one reading of several of the same labels."""
    if rule == "once":
        return _first
    if kind == "histogram":
        return _sum_of_buckets
    if kind == "cells":
        return _sum_of_cells
    if kind in ("counter", "updown") or rule == "living":
        return _sum
    if kind == "stateset" and rule == "worst":
        return _any
    return _least if rule == "min" else _latest


def _sum(every: Sequence[Cells]) -> Cells:
    return [_exact_sum([each[0] for each in every])]


def _sum_of_buckets(every: Sequence[Cells]) -> Cells:
    # Counts are whole numbers, which any order of adding gets right; the sum of the values is not.
    total = [*every[0]]
    for each in every[1:]:
        total = [*map(add, total, each)]
    total[-1] = _exact_sum([each[-1] for each in every])
    return total


def _sum_of_cells(every: Sequence[Cells]) -> Cells:
    return every[0] if len(every) == 1 else [_exact_sum(values) for values in zip(*every, strict=True)]


def _exact_sum(values: Sequence[float]) -> float:
    # Rounded once: else an idle sum would step back by a last digit when a worker dies.
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # past the largest number, or infinities of both signs
        return sum(values)


def _first(every: Sequence[Cells]) -> Cells:
    # The leader's, which come first.
    return every[0]


def _least(every: Sequence[Cells]) -> Cells:
    return min(every, key=lambda cells: cells[0])


def _any(every: Sequence[Cells]) -> Cells:
    return [max(each[0] for each in every)]


def _latest(every: Sequence[Cells]) -> Cells:
    # A cell more says when it was set; what has none is as of now.
    return max(every, key=lambda cells: cells[1] if len(cells) > 1 else math.inf)


def exact_terms(values: Sequence[float]) -> list[float]:
    """The exact sum of numbers as few numbers that do not overlap, the largest first.

    Their `math.fsum` with any others is that of the numbers themselves. Past the largest number it is infinite.
    Source: Shewchuk, Adaptive Precision Floating-Point Arithmetic (1997), section 2.4, Grow-Expansion.

    >>> exact_terms([1e16, 1.0, -1e16])
    [1.0]
    >>> exact_terms([1e16, 1.0])
    [1e+16, 1.0]
    """
    terms: list[float] = []
    for value in values:
        carried, count = value, 0
        for term in terms:
            large, small = (carried, term) if abs(carried) >= abs(term) else (term, carried)
            carried = large + small
            if not math.isfinite(carried):
                return [sum(values)]
            rest = small - (carried - large)
            if rest:
                terms[count] = rest
                count += 1
        terms[count:] = [carried]
    return [term for term in reversed(terms) if term] or [0.0]


Read: TypeAlias = Sequence[tuple[Mapping[str, Any], Cells]]
"""Series with their labels, as they were read."""


def worst_states(label: str, states: Sequence[str], read: Read) -> list[Cells]:
    """The cells of a state set's series: of several states of one thing the worst is its state.

    `label` holds the state, the other labels the thing; `states` has the worst first.
    """
    things = [frozenset((name, str(value)) for name, value in labels.items() if name != label) for labels, _ in read]
    on: dict[Any, set[str]] = {}
    for thing, (labels, cells) in zip(things, read, strict=True):
        if cells[0] == 1.0:
            on.setdefault(thing, set()).add(labels.get(label, ""))
    worst = {thing: next((state for state in states if state in found), None) for thing, found in on.items()}
    return [
        cells if worst.get(thing) in (None, labels.get(label)) else [0.0]
        for thing, (labels, cells) in zip(things, read, strict=True)
    ]


def told_last(subject: Sequence[str], read: Read) -> list[bool]:
    """Of infos, which are the newest about their subject."""
    newest: dict[Any, float] = {}
    about = [tuple(labels.get(name) for name in subject) for labels, _ in read]
    for thing, (_, cells) in zip(about, read, strict=True):
        newest[thing] = max(newest.get(thing, -math.inf), cells[-1])
    return [cells[-1] == newest[thing] for thing, (_, cells) in zip(about, read, strict=True)]


def newest_exemplars(every: Iterable[Sequence[Exemplar | None] | None]) -> list[Exemplar | None] | None:
    """The newest exemplar of each bucket; None where there never was one."""
    kept = [each for each in every if each is not None]
    if not kept:
        return None
    return [max(filter(None, slot), key=lambda each: each.time_s, default=None) for slot in zip(*kept, strict=True)]
