"""Pairs: what two models answer to the same inputs, as counts and sums that add up over workers and windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from otel_mlops.numbers.chance import Interval, PairedDifference, mean_interval, paired_difference

ANSWERS = 5
"""Cells of pairs of answers: labels, those that are the same; numbers, those that are the same, sum of the absolute
differences."""

TRUTHS = 8
"""Cells of pairs whose truth is known: of labels both right, only the first, only the second, neither; numbers, those
with errors of different size, sum and sum of squares of |error of the first| - |error of the second|."""

SIGNED_TRUTHS = frozenset({6})
"""The cells that may also become less."""

LARGEST = 1e100
"""Of a number; the squares of more could add up to infinity."""

_ROUNDING = 2.0**-53
"""Of each addition, as a share of the total."""


class ErrorDifference(NamedTuple):
    """By how much the second's absolute error is smaller, in the mean, and where that is to be expected."""

    mean: float
    interval: Interval | None


def add_labels(answers: list[float], first: str, second: str) -> None:
    """Count the labels that two models gave to one input.

    >>> answers = [0.0] * ANSWERS
    >>> add_labels(answers, "cat", "cat")
    >>> add_labels(answers, "cat", "dog")
    >>> answers
    [2.0, 1.0, 0.0, 0.0, 0.0]
    """
    answers[0] += 1.0
    answers[1] += first == second


def add_numbers(answers: list[float], first: float, second: float) -> None:
    """Count the numbers that two models gave to one input, up to LARGEST.

    >>> answers = [0.0] * ANSWERS
    >>> add_numbers(answers, 1.0, 3.5)
    >>> answers
    [0.0, 0.0, 1.0, 0.0, 2.5]
    """
    answers[2] += 1.0
    answers[3] += first == second
    answers[4] += abs(first - second)


def add_true_label(truths: list[float], first: str, second: str, actual: str) -> None:
    """Count which of two labels is right.

    >>> truths = [0.0] * TRUTHS
    >>> add_true_label(truths, "cat", "dog", actual="cat")
    >>> truths
    [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    truths[2 * (first != actual) + (second != actual)] += 1.0


def add_true_number(truths: list[float], first: float, second: float, actual: float) -> None:
    """Count which of two numbers is nearer to the truth, and by how much, up to LARGEST.

    >>> truths = [0.0] * TRUTHS
    >>> add_true_number(truths, 1.0, 4.0, actual=3.5)
    >>> truths
    [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 4.0]
    """
    better = abs(first - actual) - abs(second - actual)
    truths[4] += 1.0
    truths[5] += better != 0.0
    truths[6] += better
    truths[7] += better * better


def agreement(answers: Sequence[float]) -> float | None:
    """Return the share of labels that are the same.

    Units:   a share, 0 to 1.
    Absent when: there are no labels.

    >>> agreement([4.0, 3.0, 0.0, 0.0, 0.0])
    0.75
    """
    return min(1.0, answers[1] / answers[0]) if answers[0] else None


def mean_difference(answers: Sequence[float], totals: Sequence[float]) -> float | None:
    """Return the mean absolute difference of the numbers.

    The totals are those of which the answers are the last part: what rounding may have taken from the part is known by
    them.

    Units:   those of the numbers.
    Absent when: there are no numbers, or the totals are so large that the part has no digits left.

    >>> mean_difference([0.0, 0.0, 4.0, 1.0, 6.0], [0.0, 0.0, 9.0, 1.0, 60.0])
    1.5
    """
    _, _, n, same, total = answers
    if not n or not (n == same or has_digits(total, totals[4], n)):
        return None
    return total / n


def accuracy_difference(truths: Sequence[float], level: float = 0.95) -> PairedDifference | None:
    """Return how much more often the second of two models gives the right label.

    Units:   shares, -1 to 1.
    Absent when: there are no labels.
    Source:  numbers.chance.paired_difference.

    >>> [round(number, 4) for number in accuracy_difference([10, 1, 7, 3, 0, 0, 0, 0])][:3]
    [0.2857, 0.0134, 0.5084]
    """
    both, first, second, neither = truths[:4]
    return paired_difference(first, second, both + first + second + neither, level)


def error_difference(truths: Sequence[float], totals: Sequence[float], level: float = 0.95) -> ErrorDifference | None:
    """Return by how much the second's absolute error is smaller, in the mean.

    Units:   those of the numbers; above 0 the second is better.
    Absent when: there are no numbers, or the totals are so large that the part has no digits left; the interval: there
             are fewer than two.
    Source:  numbers.chance.mean_interval, of the differences.

    >>> error_difference([0, 0, 0, 0, 3.0, 3.0, 6.0, 14.0], [0, 0, 0, 0, 3.0, 3.0, 6.0, 14.0]).mean  # 1, 2 and 3
    2.0
    """
    n, unequal, total, squares = truths[4:]
    if not n or not (unequal == 0.0 or has_digits(squares, totals[7], n)):
        return None
    return ErrorDifference(total / n, mean_interval(n, total, squares, level))


def has_digits(part: float, total: float, n: float) -> bool:
    """Say whether n additions to a total cannot have been rounded by more than a millionth of what they added.

    >>> has_digits(1.0, 1e6, 100.0), has_digits(1.0, 1e12, 100.0)
    (True, False)
    """
    return n * _ROUNDING * total <= 1e-6 * part
