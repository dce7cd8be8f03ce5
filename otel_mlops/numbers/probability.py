"""Probability: what a classifier's scores are worth, from how many positives and negatives fell into each bin of them.

All but the two losses are of bins: counts of scores from lowest to highest, of the cases that turned out positive and
of those that turned out negative. With several classes, "positive" is "the answer is right", of the answer's score.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import fsum, log
from typing import NamedTuple

_TAIL = [step / 10**power for power in (6, 5, 4, 3) for step in (1, 1.5, 2, 3, 5, 7)]

SCORE_BOUNDS: tuple[float, ...] = (
    *_TAIL,
    *[hundredth / 100 for hundredth in range(1, 100)],
    *[1.0 - each for each in reversed(_TAIL)],
)
"""The upper bounds, which belong to their bins, of scores from 0 to 1: the buckets of a histogram. They are hundredths,
and finer at both ends, where the scores of what is rare, and those of a model that is very sure, all lie."""

BINS = len(SCORE_BOUNDS) + 1
"""How many counts that makes."""

_MIDDLES = tuple((low + high) / 2.0 for low, high in pairwise((0.0, *SCORE_BOUNDS, 1.0)))

LEAST = 2.0**-52
"""A score nearer to 0 counts as this in the logarithmic loss: no single case makes the sum infinite."""


class Reliability(NamedTuple):
    """Of the scores of one group: their mean, the share that turned out positive, and how many they are."""

    score: float
    share: float
    n: float


def brier_loss(score: float, positive: bool) -> float:
    """Return what one case adds to the Brier score's sum; the score is the mean.

    Units:   0 to 1.
    Source:  Brier 1950; scikit-learn's brier_score_loss for two classes.

    >>> brier_loss(0.75, True), brier_loss(0.75, False)
    (0.0625, 0.5625)
    """
    return (score - positive) ** 2


def log_loss(score: float) -> float:
    """Return what one case adds to the logarithmic loss's sum, from the score of the class that was true.

    Units:   nats; at most 36.04, for a score of LEAST and below.
    Source:  scikit-learn's log_loss, which clips there as well.

    >>> round(log_loss(0.5), 4), round(log_loss(0.0), 2)
    (0.6931, 36.04)
    """
    return -log(min(max(score, LEAST), 1.0))


def auc(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """Return the area under the ROC curve: how often a positive scores above a negative, a tie being half.

    Scores in the same bin are ties, so it may be off by `auc_error`, and in the mean by much less.

    Shapes:  positives, negatives: (bins,), counts >= 0, by rising score.
    Units:   a share: 0.5 where the scores say nothing.
    Errors:  ValueError if the shapes differ.
    Absent when: there are no positives, or no negatives.
    Source:  Mann and Whitney 1947; scikit-learn's roc_auc_score of scores rounded to their bins.

    >>> auc([0, 1, 3], [3, 1, 0])
    0.96875
    """
    pairs = fsum(positives) * fsum(negatives)
    below = accumulate(negatives, initial=0.0)
    wins = fsum([p * (b + n / 2.0) for p, n, b in zip(positives, negatives, list(below)[:-1], strict=True)])
    return wins / pairs if pairs > 0.0 else None


def auc_error(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """Return the most that binning can have changed the area under the ROC curve: half the share of tied pairs.

    Shapes:  positives, negatives: (bins,), counts >= 0.
    Units:   a share, 0 to 0.5.
    Errors:  ValueError if the shapes differ.
    Absent when: there are no positives, or no negatives.

    >>> auc_error([0, 1, 3], [3, 1, 0])
    0.03125
    """
    pairs = fsum(positives) * fsum(negatives)
    ties = fsum([p * n for p, n in zip(positives, negatives, strict=True)])
    return ties / 2.0 / pairs if pairs > 0.0 else None


def reliability(positives: Sequence[float], negatives: Sequence[float], groups: int = 10) -> list[Reliability]:
    """Return how often scores turned out positive, by groups of equal width; groups without scores are left out.

    A bin stands for its middle, so mean scores are within 0.005 of those of the scores themselves.

    Shapes:  positives, negatives: (BINS,), counts >= 0.
    Errors:  ValueError if the counts are not BINS, or groups does not divide 100.
    Source:  scikit-learn's calibration_curve with n_bins=groups.

    >>> positives, negatives = [0.0] * BINS, [0.0] * BINS
    >>> negatives[SCORE_BOUNDS.index(0.2)], positives[SCORE_BOUNDS.index(0.8)] = 8.0, 4.0
    >>> [[round(number, 3) for number in group] for group in reliability(positives, negatives, groups=2)]
    [[0.195, 0.0, 8.0], [0.795, 1.0, 4.0]]
    """
    if groups < 1 or 100 % groups:
        raise ValueError(f"{groups} groups are not of whole hundredths")
    if not len(positives) == len(negatives) == BINS:
        raise ValueError(f"there are {BINS} bins of scores, not {len(positives)} and {len(negatives)}")
    scores, right, n = ([0.0] * groups for _ in range(3))
    for middle, p, m in zip(_MIDDLES, positives, negatives, strict=True):
        group = int(middle * groups)
        scores[group] += middle * (p + m)
        right[group] += p
        n[group] += p + m
    return [Reliability(a / c, b / c, c) for a, b, c in zip(scores, right, n, strict=True) if c]


def calibration_error(positives: Sequence[float], negatives: Sequence[float], groups: int = 10) -> float | None:
    """Return the expected calibration error: by how much scores and shares differ in the mean.

    Shapes:  positives, negatives: (BINS,), counts >= 0.
    Units:   a share, within 0.005 of what the scores themselves give.
    Errors:  ValueError if the counts are not BINS, or groups does not divide 100.
    Absent when: there are no scores.
    Source:  Guo et al. 2017, "On calibration of modern neural networks", equation 3.

    >>> calibration_error([0.0] * (BINS - 1) + [5.0], [5.0] + [0.0] * (BINS - 1)) < 1e-6
    True
    """
    curve = reliability(positives, negatives, groups)
    n = fsum([group.n for group in curve])
    return fsum([group.n * abs(group.share - group.score) for group in curve]) / n if curve else None


def calibration_map(positives: Sequence[float], negatives: Sequence[float]) -> list[float] | None:
    """Return for each bin how likely a score in it is to turn out positive, rising with the score.

    Bins without scores lie on the line between their neighbours, or have the value of the only one.

    Shapes:  positives, negatives: (bins,), counts >= 0, by rising score.
    Errors:  ValueError if the shapes differ.
    Absent when: there are no scores.
    Source:  isotonic regression by pooling adjacent violators: Ayer et al. 1955; Zadrozny and Elkan 2002 for scores.

    >>> calibration_map([1, 3, 2, 0, 9], [9, 7, 8, 0, 1])
    [0.1, 0.25, 0.25, 0.575, 0.9]
    """
    pools: list[tuple[float, float, list[int]]] = []  # positives, all, bins
    for b, (p, n) in enumerate(zip(positives, negatives, strict=True)):
        if p + n > 0.0:
            pool = (p, p + n, [b])
            while pools and pools[-1][0] * pool[1] >= pool[0] * pools[-1][1]:
                last = pools.pop()
                pool = (last[0] + pool[0], last[1] + pool[1], last[2] + pool[2])
            pools.append(pool)
    known = {b: p / n for p, n, bins in pools for b in bins}
    return [_between(b, known) for b in range(len(positives))] if known else None


def estimated_accuracy(
    calibration: Sequence[float], said_positive: Sequence[float], said_negative: Sequence[float] | None = None
) -> float | None:
    """Return the accuracy to be expected of answers whose truth is not known yet, from their scores alone.

    An estimate, and blind to concept drift: it sees that cases have become harder, not that the same case now turns
    out otherwise. For several classes, `said_positive` has the scores of all answers.

    Shapes:  all (bins,): what `calibration_map` gives of the reference, and how many answers were yes and how many no.
    Units:   a share.
    Errors:  ValueError if the shapes differ.
    Absent when: there are no answers.
    Source:  confidence-based performance estimation: Kivimäki et al. 2025, arXiv:2505.05295; here over bins.

    >>> round(estimated_accuracy([0.1, 0.8], said_positive=[0, 30], said_negative=[10, 0]), 3)
    0.825
    """
    if said_negative is None:
        said_negative = [0.0] * len(calibration)
    right = [yes * q + no * (1.0 - q) for q, yes, no in zip(calibration, said_positive, said_negative, strict=True)]
    n = fsum(said_positive) + fsum(said_negative)
    return fsum(right) / n if n > 0.0 else None


def _between(b: int, known: dict[int, float]) -> float:
    """The value of a bin: its own, or the one on the line between its nearest neighbours."""
    below = max([each for each in known if each <= b], default=min(known))
    above = min([each for each in known if each >= b], default=max(known))
    if below == above:
        return known[below]
    return known[below] + (known[above] - known[below]) * (b - below) / (above - below)
