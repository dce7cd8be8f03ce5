"""Quality: what a model's answers are worth where the truth is known, from counts and sums that add up over workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import fsum, isfinite, sqrt
from typing import Literal, NamedTuple

MOST_CLASSES = 30
"""How many classes of a model are told apart; those past them are one."""
PAST = "another"
"""What a wrong answer is called where it and the truth are both past MOST_CLASSES."""

Confusion = Sequence[Sequence[float]]
"""How often each class (a row) was taken for each class (a column): (classes, classes), counts >= 0."""


class Rates(NamedTuple):
    """Of one class or a mean of several: None where nothing was to be judged."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: float


def accuracy(confusion: Confusion) -> float | None:
    """Return the share of answers that are right.

    Absent when: there are no answers.
    Source:  scikit-learn's accuracy_score.

    >>> accuracy([[8, 2], [1, 9]])
    0.85
    """
    return _ratio(sum(_hits(confusion)), sum(map(sum, confusion)))


def class_rates(confusion: Confusion) -> list[Rates]:
    """Return precision, recall and F1 of each class; of a positive class, they are the scores of a binary model.

    Absent when: the class was never given (its precision), never the truth (its recall), or neither (its F1).
    Source:  scikit-learn's precision_recall_fscore_support with zero_division=nan; rows are the truth, as in its
             confusion_matrix.

    >>> class_rates([[8, 2], [0, 0]])[1]
    Rates(precision=0.0, recall=None, f1=0.0, support=0)
    """
    given = [sum(column) for column in zip(*confusion, strict=True)]
    true = [sum(row) for row in confusion]
    return [
        Rates(_ratio(hits, p), _ratio(hits, t), _ratio(2.0 * hits, p + t), t)
        for hits, p, t in zip(_hits(confusion), given, true, strict=True)
    ]


def mean_rates(confusion: Confusion, average: Literal["macro", "micro", "weighted"]) -> Rates:
    """Return precision, recall and F1 over all classes.

    macro: the mean of the classes. weighted: their mean by support. micro: of all answers together, where each of the
    three is the accuracy. A class that has no score is left out of its mean.

    Errors:  KeyError if the average is another.
    Absent when: no class has the score.
    Source:  as class_rates.

    >>> mean_rates([[8, 0], [2, 6]], "macro").recall, mean_rates([[8, 0], [2, 6]], "weighted").precision
    (0.875, 0.9)
    """
    rates = class_rates(confusion)
    support = sum([each.support for each in rates])
    if average == "micro":
        share = accuracy(confusion)
        return Rates(share, share, share, support)
    weights = {"macro": [1.0] * len(rates), "weighted": [each.support for each in rates]}[average]
    return Rates(
        _mean([each.precision for each in rates], weights),
        _mean([each.recall for each in rates], weights),
        _mean([each.f1 for each in rates], weights),
        support,
    )


def matthews(confusion: Confusion) -> float | None:
    """Return Matthews' correlation coefficient of answers and truth, for two classes or more.

    Units:   dimensionless: 1 all right, 0 no better than by chance.
    Absent when: all answers or all truths are of one class.
    Source:  Gorodkin 2004, Computational Biology and Chemistry 28, 367; scikit-learn's matthews_corrcoef.

    >>> matthews([[8, 2], [1, 9]])
    0.7035264706814485
    """
    s, c, p, t = _margins(confusion)
    squares = (s * s - sum([each * each for each in p])) * (s * s - sum([each * each for each in t]))
    covariance = c * s - sum([a * b for a, b in zip(p, t, strict=True)])
    return covariance / sqrt(squares) if squares > 0.0 else None


def kappa(confusion: Confusion) -> float | None:
    """Return Cohen's kappa: by how much answers and truth agree beyond what their frequencies alone would give.

    Units:   dimensionless: 1 all right, 0 no better than by chance.
    Absent when: answers and truth are all of one class, or there are none.
    Source:  Cohen 1960; scikit-learn's cohen_kappa_score.

    >>> round(kappa([[8, 2], [1, 9]]), 6)
    0.7
    """
    s, c, p, t = _margins(confusion)
    by_chance = sum([a * b for a, b in zip(p, t, strict=True)])
    return _ratio(c * s - by_chance, s * s - by_chance)


class Residuals(NamedTuple):
    """Sums over answers with e = predicted - actual and d = actual - reference; all but the reference add up."""

    n: float = 0.0
    e: float = 0.0
    e2: float = 0.0
    abs_e: float = 0.0
    d: float = 0.0
    d2: float = 0.0
    reference: float = 0.0


def residuals(predicted: float, actual: float, reference: float = 0.0) -> Residuals:
    """Return what one answer adds to the sums.

    The reference is any number near the actual values, such as their mean in training: the further away it is, by their
    standard deviation, the fewer digits R2 has. An error above 1e154 has no finite square; who adds up leaves it out.

    >>> residuals(5.0, 3.0, reference=2.0)
    Residuals(n=1.0, e=2.0, e2=4.0, abs_e=2.0, d=1.0, d2=1.0, reference=2.0)
    """
    e, d = predicted - actual, actual - reference
    return Residuals(1.0, e, e * e, abs(e), d, d * d, reference)


def merge(parts: Iterable[Residuals]) -> Residuals:
    """Return the sums of all parts about their common mean, which becomes the reference.

    For parts with different references, as of two versions of a model; parts with the same just add up.

    Source:  Chan, Golub, LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances.

    >>> merge([Residuals(n=2.0, d=2.0, d2=4.0, reference=1.0), Residuals(n=1.0, reference=5.0)])
    Residuals(n=3.0, e=0.0, e2=0.0, abs_e=0.0, d=0.0, d2=8.0, reference=3.0)
    """
    merged = Residuals()
    for part in parts:
        n = merged.n + part.n
        if part.n > 0.0:
            delta = part.reference + part.d / part.n - merged.reference
            merged = Residuals(
                n,
                merged.e + part.e,
                merged.e2 + part.e2,
                merged.abs_e + part.abs_e,
                0.0,
                merged.d2 + _spread(part) + delta * delta * (merged.n * part.n / n),
                merged.reference + delta * (part.n / n),
            )
    return merged


def bias(sums: Residuals) -> float | None:
    """Return the mean error: above 0 where the model says too much.

    Units:   those of the values.
    Absent when: there are no answers.

    >>> bias(Residuals(n=4.0, e=2.0))
    0.5
    """
    return _ratio(sums.e, sums.n)


def mean_absolute_error(sums: Residuals) -> float | None:
    """Return the mean absolute error.

    Units:   those of the values.
    Absent when: there are no answers.
    Source:  scikit-learn's mean_absolute_error.

    >>> mean_absolute_error(Residuals(n=4.0, abs_e=2.0))
    0.5
    """
    return _ratio(sums.abs_e, sums.n)


def root_mean_squared_error(sums: Residuals) -> float | None:
    """Return the root of the mean squared error.

    Units:   those of the values.
    Absent when: there are no answers.
    Source:  scikit-learn's root_mean_squared_error.

    >>> root_mean_squared_error(Residuals(n=4.0, e2=16.0))
    2.0
    """
    mean = _ratio(sums.e2, sums.n)
    return None if mean is None else sqrt(max(0.0, mean))


def r2(sums: Residuals) -> float | None:
    """Return the coefficient of determination: the share of the actual values' variance that the model explains.

    Units:   dimensionless: 1 all right, 0 no better than the mean of these values, below 0 worse than it.
    Absent when: there are fewer than 2 answers, or the actual values do not vary: less than the sums can tell, a
             millionth of their distance from the reference.
    Source:  scikit-learn's r2_score: 1 - sum of e2 / sum of (actual - mean)2.

    >>> r2(Residuals(n=3.0, e2=1.0, d=6.0, d2=14.0)), r2(Residuals(n=3.0, e2=1.0, d=6.0, d2=12.0))
    (0.5, None)
    """
    spread = _spread(sums)
    if sums.n < 2.0 or not spread > 1e-12 * sums.d2:
        return None
    score = 1.0 - sums.e2 / spread
    return score if isfinite(score) else None


def _spread(sums: Residuals) -> float:
    """The sum of the squared distances of the actual values from their mean."""
    return max(0.0, sums.d2 - sums.d * (sums.d / sums.n)) if sums.n > 0.0 else 0.0


def _hits(confusion: Confusion) -> list[float]:
    return [row[k] for k, row in enumerate(confusion)]


def _margins(confusion: Confusion) -> tuple[float, float, list[float], list[float]]:
    """All answers, the right ones, and how often each class was given and was true."""
    t = [sum(row) for row in confusion]
    return sum(t), sum(_hits(confusion)), [sum(column) for column in zip(*confusion, strict=True)], t


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0.0 else None


def _mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    if not any(weight for _, weight in known):
        known = [(value, 1.0) for value, _ in known]  # as scikit-learn does where none has support
    return _ratio(fsum([value * weight for value, weight in known]), fsum([weight for _, weight in known]))
