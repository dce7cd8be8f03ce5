"""Rows of answers with their truth, made into the counts and sums that the formulas take."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable

from otel_mlops.numbers.probability import BINS, SCORE_BOUNDS
from otel_mlops.numbers.quality import Residuals, residuals


def confusion_of(rows: Iterable[tuple[int, int]], classes: int = 5) -> list[list[float]]:
    """How often each true class was answered with each class."""
    counts = [[0.0] * classes for _ in range(classes)]
    for actual, predicted in rows:
        counts[actual][predicted] += 1.0
    return counts


def sums_of(rows: Iterable[tuple[float, float]], reference: float = 0.0) -> Residuals:
    """The sums of (actual, predicted) about a reference."""
    added = [residuals(predicted, actual, reference) for actual, predicted in rows]
    return Residuals(*(math.fsum(column) for column in list(zip(*added, strict=True))[:-1]), reference)


def binned(scores: Iterable[float], truths: Iterable[bool]) -> tuple[list[float], list[float]]:
    """The positives and the negatives by bin of their score."""
    sides = ([0.0] * BINS, [0.0] * BINS)
    for score, truth in zip(scores, truths, strict=True):
        sides[0 if truth else 1][bisect_left(SCORE_BOUNDS, score)] += 1.0
    return sides
