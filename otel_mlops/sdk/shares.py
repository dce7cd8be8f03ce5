"""Shares: what each worker adds to a metric, and whose word comes first."""

from __future__ import annotations

from typing import Any, NamedTuple

DEAD = 3
"""The rank of what no living worker says."""


class Share(NamedTuple):
    """What one worker adds to a metric."""

    stream: Any
    """A `Stream` of ours, or what has the same attributes and `living()`."""
    series: list[Any]
    worker: str | None
    """The value of the label `worker`, where each worker is shown by itself."""


def rank_of(*, leads: bool, label: str | None) -> int:
    """Whose word comes first; the process of the page leads in its worker's stead."""
    return 2 if not leads else 0 if label == "page" else 1


def in_order(found: list[tuple[int, Share]]) -> list[Share]:
    """The shares in the order in which they count, where the first one does: the leader's, or the youngest bounds.

    Bounds are as young as the last living worker that began to record by them, the dead where none lives; what is
    recorded later changes nothing.
    """
    births: dict[Any, dict[Any, tuple[bool, int]]] = {}
    for rank, (stream, every, _) in found:
        born = [each.born_ns for each in every if each.born_ns]
        if stream.kind == "histogram" and born:
            of_metric = births.setdefault((stream.name, stream.scope.name), {})
            of_metric[stream.bounds] = max((rank != DEAD, min(born)), of_metric.get(stream.bounds, (False, 0)))

    def place(each: tuple[int, Share]) -> int:
        rank, (stream, _, _) = each
        if stream.rule == "once":
            return rank
        of_metric = births.get((stream.name, stream.scope.name), {})
        birth = of_metric.get(stream.bounds)
        return sum(birth < other for other in of_metric.values()) if birth else 0

    return [share for _, share in sorted(found, key=place)]


def worker_of(stream: Any, label: str | None) -> str | None:
    """The label `worker` of what a worker says, where each is shown by itself."""
    return label if stream.rule == "worker" else None
