"""What was to be forgotten: whether a series is gone by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Labels = Mapping[str, str]


class Forgotten:
    """What was to be forgotten; quick to ask, though it be thousands of labels.

    What carries one of `until_recorded` is gone only while its cells stand at zero: another worker has set them so.
    """

    def __init__(self, every: Iterable[Labels] = (), *, until_recorded: Iterable[Labels] = ()) -> None:
        self._every = _index(every)
        self._until_recorded = _index(until_recorded)

    def __bool__(self) -> bool:
        return bool(self._every or self._until_recorded)

    def hides(self, stream: Any, series: Any) -> bool:
        """Whether a series is gone; an up-down counter stays while it does not stand at 0.

        What was added is yet to be taken away again, by whichever worker.
        """
        if _is_in(self._every, series.attributes):
            return stream.kind != "updown" or not any(series.read())
        return bool(self._until_recorded) and not any(series.read()) and _is_in(self._until_recorded, series.attributes)

    def kept(self, stream: Any) -> list[Any]:
        """The series of a stream, but for those that are gone."""
        series: list[Any] = stream.living()
        return [each for each in series if not self.hides(stream, each)] if self else series

    def at_zero(self, streams: Sequence[Any]) -> frozenset[tuple[int, int]]:
        """Which series, by the numbers of their stream and their own, are gone only until something is recorded."""
        if not self._until_recorded:
            return frozenset()
        return frozenset(
            (index, number)
            for index, stream in enumerate(streams)
            for number, each in enumerate(stream.living())
            if not any(each.read()) and self.hides(stream, each)
        )


def missed(forgets: Sequence[tuple[int, Labels]], followed: float, zeroed: float = 0.0) -> Forgotten:
    """What a worker was told to forget and has not forgotten itself.

    It has `followed` the calls up to one, and others have set its cells to zero for those up to `zeroed`.
    """
    if not forgets or forgets[-1][0] <= followed:
        return Forgotten()  # as a rule, and asked for every worker on every page
    late = [each for each in forgets if each[0] > followed]
    return Forgotten(
        (labels for number, labels in late if number > zeroed),
        until_recorded=(labels for number, labels in late if number <= zeroed),
    )


def _index(every: Iterable[Labels]) -> dict[tuple[str, ...], Any]:
    """Labels by their names: the values that are text in a set, for the others the labels themselves."""
    found: dict[tuple[str, ...], Any] = {}
    for labels in every:
        names = tuple(sorted(labels))
        values = tuple(labels[name] for name in names)
        texts, others = found.setdefault(names, (set(), []))
        if all(isinstance(value, str) for value in values):
            texts.add(values)
        else:
            others.append(labels)
    return found


def _is_in(index: dict[tuple[str, ...], Any], attributes: Mapping[str, Any]) -> bool:
    for names, (texts, others) in index.items():
        values = [attributes.get(name) for name in names]
        if all(isinstance(value, str) for value in values) and tuple(values) in texts:
            return True
        if any(_carries(attributes, labels) for labels in others):
            return True
    return False


def _carries(attributes: Mapping[str, Any], labels: Labels) -> bool:
    return all(attributes.get(name) == value for name, value in labels.items())
