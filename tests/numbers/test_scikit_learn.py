"""Scores of counts and sums against scikit-learn's of the same rows."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from otel_mlops.numbers.probability import SCORE_BOUNDS, auc, brier_loss, calibration_map, log_loss, reliability
from otel_mlops.numbers.quality import (
    accuracy,
    class_rates,
    kappa,
    matthews,
    mean_absolute_error,
    mean_rates,
    r2,
    root_mean_squared_error,
)
from tests.numbers.rows import binned, confusion_of, sums_of

CLOSE = 1e-9
SEED = 20260401


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore")  # scikit-learn warns of what it cannot score
def test_every_score_is_scikit_learns():
    """Scores of labels, numbers and probabilities are scikit-learn's, on random answers and on real sets."""
    # One test: scikit-learn takes over a second to import, which is then spent by one of the tests' processes only.
    compare_labels()
    compare_numbers()
    compare_probabilities()


def compare_labels() -> None:
    """Accuracy, rates and their means, Matthews and kappa are equal."""
    from sklearn import metrics

    for actual, predicted in labels():
        confusion = confusion_of(zip(actual, predicted, strict=True), classes=int(max(*actual, *predicted)) + 1)
        assert accuracy(confusion) == or_none(metrics.accuracy_score(actual, predicted))
        exact = metrics.precision_recall_fscore_support(
            actual, predicted, labels=range(len(confusion)), zero_division=np.nan
        )
        for rates, precision, recall, f1, support in zip(class_rates(confusion), *exact, strict=True):
            assert rates == (or_none(precision), or_none(recall), or_none(f1), support)
        for average in ("macro", "micro", "weighted"):
            exact = metrics.precision_recall_fscore_support(actual, predicted, average=average, zero_division=np.nan)
            assert mean_rates(confusion, average)[:3] == tuple(map(or_none, exact[:3]))
        # Where there is nothing to correlate scikit-learn says 0, and we say nothing.
        assert (matthews(confusion) or 0.0) == or_none(metrics.matthews_corrcoef(actual, predicted))
        assert kappa(confusion) == or_none(metrics.cohen_kappa_score(actual, predicted))


def compare_numbers() -> None:
    """RMSE, MAE and R2 of a line through a real set are equal."""
    from sklearn import datasets, metrics

    for load in (datasets.load_diabetes, datasets.load_linnerud):
        features, actual = load(return_X_y=True)
        actual = actual.reshape(len(actual), -1)[:, 0].astype(float)
        features = np.column_stack([features, np.ones(len(features))])
        predicted = features @ np.linalg.lstsq(features[::2], actual[::2], rcond=None)[0]
        sums = sums_of(zip(actual.tolist(), predicted.tolist(), strict=True), reference=round(actual[0]))
        assert root_mean_squared_error(sums) == or_none(metrics.root_mean_squared_error(actual, predicted))
        assert mean_absolute_error(sums) == or_none(metrics.mean_absolute_error(actual, predicted))
        assert r2(sums) == or_none(metrics.r2_score(actual, predicted))


def compare_probabilities() -> None:
    """Losses and map are equal; area and reliability are within 0.005, and equal for scores rounded to their bins."""
    from sklearn import calibration, isotonic, metrics

    for scores, truth in probabilities():
        sides = binned(scores, truth)
        losses = [brier_loss(score, each) for score, each in zip(scores.tolist(), truth.tolist(), strict=True)]
        assert np.mean(losses) == pytest.approx(metrics.brier_score_loss(truth, scores), abs=CLOSE)
        losses = [log_loss(score) for score in np.where(truth, scores, 1.0 - scores).tolist()]
        assert np.mean(losses) == pytest.approx(metrics.log_loss(truth, scores), abs=CLOSE)
        assert auc(*sides) == pytest.approx(metrics.roc_auc_score(truth, scores), abs=0.005)
        rounded = [bisect_left(SCORE_BOUNDS, score) for score in scores]
        assert auc(*sides) == pytest.approx(metrics.roc_auc_score(truth, rounded), abs=CLOSE)
        shares, means = calibration.calibration_curve(truth, scores, n_bins=10)
        curve = reliability(*sides, groups=10)
        assert [group.score for group in curve] == pytest.approx(means.tolist(), abs=0.005)
        assert [group.share for group in curve] == pytest.approx(shares.tolist(), abs=0.005)
        filled = np.flatnonzero(np.add(*sides))
        n = np.add(*sides)[filled]
        fit = isotonic.isotonic_regression(np.array(sides[0])[filled] / n, sample_weight=n)
        assert np.array(calibration_map(*sides))[filled] == pytest.approx(fit, abs=CLOSE)


def labels() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Truth and answers: of random models, some of which miss or invent classes, and of means of real sets."""
    from sklearn import datasets

    rng = np.random.default_rng(SEED)
    for classes in (2, 3, 6):
        actual = rng.integers(0, classes, 300)
        fewer = np.minimum(actual, rng.integers(0, max(classes - 1, 1), 300))
        yield actual, np.where(rng.random(300) < 0.7, actual, rng.integers(0, classes, 300))
        yield actual, fewer
        yield fewer, actual
    yield np.zeros(5, int), np.ones(5, int)
    for load in (datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer, datasets.load_digits):
        features, actual = load(return_X_y=True)
        means = np.array([features[::2][actual[::2] == k].mean(0) for k in np.unique(actual)])
        yield actual, ((features[:, None] - means) ** 2).sum(2).argmin(1)


def probabilities() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scores and truth: of random cases, calibrated and not, and of distances to the means of real sets."""
    from sklearn import datasets

    rng = np.random.default_rng(SEED)
    for power in (0.5, 1.0, 2.0):
        scores = rng.random(2_000)
        yield scores, rng.random(2_000) < scores**power
    for load in (datasets.load_breast_cancer, datasets.load_digits):
        features, classes = load(return_X_y=True)
        truth = classes % 2 == 1
        features = (features - features.mean(0)) / np.maximum(features.std(0), 1e-9)
        away = [((features - features[::2][truth[::2] == side].mean(0)) ** 2).sum(1) for side in (False, True)]
        yield 1.0 / (1.0 + np.exp((away[1] - away[0]) / 5.0)), truth


def or_none(value: float) -> Any:
    """A score of scikit-learn's, None where it says NaN."""
    return None if math.isnan(value) else pytest.approx(value, abs=CLOSE)
