"""Probability: what bins of scores say is what the scores say, to within what binning can hide."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from otel_mlops.numbers.probability import (
    BINS,
    LEAST,
    SCORE_BOUNDS,
    auc,
    auc_error,
    brier_loss,
    calibration_error,
    calibration_map,
    estimated_accuracy,
    log_loss,
    reliability,
)
from tests.numbers.rows import binned

SEED = 20260401

scored = st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), min_size=1, max_size=60)
counts = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12)


def group_of(score: float, groups: int) -> int:
    """The group of equal width that a score is in; the upper end belongs to it."""
    width = 100 // groups
    return bisect_left([hundredth / 100 for hundredth in range(width, 100, width)], score)


def columns(rows) -> tuple[list[float], list[float]]:
    """Pairs as two lists of floats."""
    return tuple([float(each) for each in column] for column in zip(*rows, strict=True))


def test_the_bins_are_fine_where_scores_crowd():
    """The bounds rise from a millionth by at most a factor of 1.7 to the hundredths, and are the same from above."""
    below = [bound for bound in SCORE_BOUNDS if bound < 0.01]
    assert list(SCORE_BOUNDS) == [*below, *(i / 100 for i in range(1, 100)), *(1.0 - each for each in reversed(below))]
    assert below[0] == 1e-6
    ratios = [high / low for low, high in pairwise([*below, 0.01])]
    assert min(ratios) > 1.3
    assert max(ratios) < 1.7
    assert len(SCORE_BOUNDS) + 1 == BINS


# --- Losses -------------------------------------------------------------------------------------------------


@given(st.floats(0.0, 1.0), st.booleans())
def test_losses_are_finite(score: float, positive: bool):
    """No score makes a sum infinite or smaller."""
    assert 0.0 <= brier_loss(score, positive) <= 1.0
    assert 0.0 <= log_loss(score) <= -math.log(LEAST)
    assert brier_loss(score, positive) == pytest.approx((score - float(positive)) ** 2)


# --- Ranking ------------------------------------------------------------------------------------------------


@given(counts)
def test_auc_counts_the_pairs(rows):
    """The area is the share of pairs in which the positive is in the higher bin, and half of those in the same."""
    positives, negatives = columns(rows)
    assume(sum(positives) and sum(negatives))
    wins = ties = 0.0
    for i, p in enumerate(positives):
        for j, n in enumerate(negatives):
            wins += p * n * (i > j)
            ties += p * n * (i == j)
    total = sum(positives) * sum(negatives)
    assert auc(positives, negatives) == pytest.approx((wins + ties / 2.0) / total)
    assert auc_error(positives, negatives) == pytest.approx(ties / 2.0 / total)


@given(scored)
def test_auc_is_within_its_error(rows):
    """The area of the scores themselves is never further from that of the bins than `auc_error` says."""
    positives = [score for score, truth in rows if truth]
    negatives = [score for score, truth in rows if not truth]
    assume(positives and negatives)
    exact = np.mean([(p > n) + (p == n) / 2.0 for p in positives for n in negatives])
    sides = binned(*zip(*rows, strict=True))
    assert abs(auc(*sides) - exact) <= auc_error(*sides) + 1e-12


def test_bins_that_hide_the_order_say_so():
    """Scores that all lie in one bin have no order left, and the error says that it may be anything."""
    sides = binned([0.501, 0.502, 0.503, 0.504], [False, False, True, True])
    assert (auc(*sides), auc_error(*sides)) == (0.5, 0.5)


@pytest.mark.parametrize("rate", [0.003, 0.01, 0.99])
def test_the_bins_tell_rare_cases_apart(rate: float):
    """Where all scores are near 0 or 1, the area is within 0.006 of that of the scores."""
    rng = np.random.default_rng(SEED)
    scores = 1.0 / (1.0 + np.exp(-1.5 * rng.normal(size=20_000) - math.log(rate / (1.0 - rate))))
    truth = rng.random(20_000) < scores
    ranks = np.argsort(np.argsort(scores)) + 1.0
    positives = truth.sum()
    exact = (ranks[truth].sum() - positives * (positives + 1) / 2.0) / positives / (len(truth) - positives)
    assert auc(*binned(scores, truth)) == pytest.approx(exact, abs=0.006)


# --- Calibration --------------------------------------------------------------------------------------------


@given(scored, st.sampled_from([1, 2, 5, 10, 20]))
def test_reliability_is_near_that_of_the_scores(rows, groups: int):
    """In each group the share is the one of the rows, and the mean score within half a bin of theirs."""
    of_rows: dict[int, list[tuple[float, bool]]] = {}
    for score, truth in rows:
        of_rows.setdefault(group_of(score, groups), []).append((score, truth))
    found = reliability(*binned(*zip(*rows, strict=True)), groups=groups)
    assert len(found) == len(of_rows)
    for group, (_, members) in zip(found, sorted(of_rows.items()), strict=True):
        assert group.n == len(members)
        assert group.share == pytest.approx(np.mean([truth for _, truth in members]))
        assert group.score == pytest.approx(np.mean([score for score, _ in members]), abs=0.005 + 1e-12)


@given(scored, st.sampled_from([1, 2, 5, 10, 20]))
def test_the_calibration_error_is_near_that_of_the_scores(rows, groups: int):
    """The error is within half a bin of what the same groups of the rows give."""
    exact: dict[int, list[float]] = {}
    for score, truth in rows:
        exact.setdefault(group_of(score, groups), []).append(truth - score)
    error = sum(abs(sum(differences)) for differences in exact.values()) / len(rows)
    found = calibration_error(*binned(*zip(*rows, strict=True)), groups=groups)
    assert found == pytest.approx(error, abs=0.005 + 1e-12)


@pytest.mark.parametrize("groups", [0, -1, 3, 200])
def test_groups_are_of_whole_hundredths(groups: int):
    """A number of groups that does not divide 100 is an error."""
    with pytest.raises(ValueError, match="not of whole hundredths"):
        calibration_error([1.0] * BINS, [1.0] * BINS, groups=groups)


@given(counts)
def test_the_map_rises_and_keeps_the_mean(rows):
    """The map never falls, and gives the reference as many positives as it has."""
    positives, negatives = columns(rows)
    q = calibration_map(positives, negatives)
    assume(q is not None)
    assert len(q) == len(rows)
    assert q == sorted(q)
    assert 0.0 <= q[0] <= q[-1] <= 1.0
    n = [p + m for p, m in zip(positives, negatives, strict=True)]
    assert sum(each * count for each, count in zip(q, n, strict=True)) == pytest.approx(sum(positives))


def test_an_empty_bin_lies_between_its_neighbours():
    """A bin without scores takes the value on the line between its neighbours, or of the only one."""
    assert calibration_map([0, 1, 0, 0, 4, 0], [0, 3, 0, 0, 0, 0]) == [0.25, 0.25, 0.5, 0.75, 1.0, 1.0]


# --- Without the truth --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(0, 12))
def test_on_the_reference_the_estimate_is_the_accuracy(rising, cut: int):
    """Where the positives rise with the score, the estimate on the reference's own answers is their accuracy."""
    positives = sorted(map(float, rising))
    negatives = [20.0 - p for p in positives]
    below, above = [20.0] * len(positives[:cut]), [20.0] * len(positives[cut:])
    said_positive, said_negative = [0.0] * len(below) + above, below + [0.0] * len(above)
    right = sum(negatives[:cut]) + sum(positives[cut:])
    q = calibration_map(positives, negatives)
    assert estimated_accuracy(q, said_positive, said_negative) == pytest.approx(right / (20.0 * len(positives)))


@pytest.fixture
def world():
    """A model whose scores are not calibrated, and cases that are easy or hard."""
    rng = np.random.default_rng(SEED)

    def cases(hardness: float, n: int, flipped: float = 0.0):
        x = rng.normal(0.0, 1.0 / hardness, n)
        truth = (rng.random(n) < 1.0 / (1.0 + np.exp(-3.0 * x))) ^ (rng.random(n) < flipped)
        return 1.0 / (1.0 + np.exp(-1.5 * x)), truth

    return cases


def estimate(calibration: list[float], scores) -> float:
    """The accuracy that is expected of answers at the threshold of one half."""
    sides = binned(scores, scores > 0.5)
    return estimated_accuracy(calibration, *sides)


def test_a_drop_is_seen_without_the_truth(world):
    """Where cases become harder, the estimate falls with the accuracy, to within a point."""
    scores, truth = world(1.0, 40_000)
    calibration = calibration_map(*binned(scores, truth))
    reference = np.mean((scores > 0.5) == truth)
    scores, truth = world(4.0, 20_000)
    real = np.mean((scores > 0.5) == truth)
    assert real < reference - 0.1
    assert estimate(calibration, scores) == pytest.approx(real, abs=0.01)


def test_the_estimate_is_blind_to_a_truth_that_turns(world):
    """Where the same cases turn out otherwise, the estimate stays as it was."""
    scores, truth = world(1.0, 40_000)
    calibration = calibration_map(*binned(scores, truth))
    before = estimate(calibration, scores)
    scores, truth = world(1.0, 20_000, flipped=0.3)
    assert np.mean((scores > 0.5) == truth) < before - 0.1
    assert estimate(calibration, scores) == pytest.approx(before, abs=0.01)


# --- Where there is none ------------------------------------------------------------------------------------


def test_without_scores_there_is_none():
    """Of no scores, and of one class alone where two are compared, there is None."""
    none, some = [0.0] * BINS, [1.0] * BINS
    for answer in (auc, auc_error):
        assert answer(none, none) is None
        assert answer(some, none) is None
        assert answer(none, some) is None
    assert calibration_error(none, none) is None
    assert reliability(none, none) == []
    assert calibration_map(none, none) is None
    assert estimated_accuracy(some, none, none) is None
    assert estimated_accuracy(some, none) is None


@pytest.mark.parametrize("answer", [auc, auc_error, calibration_error, calibration_map, estimated_accuracy])
def test_the_bins_are_the_same(answer):
    """Bins of different number are an error."""
    with pytest.raises(ValueError, match=r"zip|there are 148 bins"):
        answer([1.0] * 10, [1.0] * 20)
