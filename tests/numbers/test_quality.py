"""Quality: the scores are what their definitions say of the rows, from counts and sums alone, or None."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from otel_mlops.numbers.quality import (
    Rates,
    Residuals,
    accuracy,
    bias,
    class_rates,
    kappa,
    matthews,
    mean_absolute_error,
    mean_rates,
    merge,
    r2,
    residuals,
    root_mean_squared_error,
)
from tests.numbers.rows import confusion_of, sums_of

CLOSE = 1e-9
SEED = 20260401

answers = st.integers(2, 5).flatmap(
    lambda classes: st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1, max_size=60)
)
numbers = st.floats(-1e3, 1e3)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=60)


# --- Labels -------------------------------------------------------------------------------------------------


@given(answers)
def test_rates_are_what_their_names_say(rows):
    """Precision is of what was given, recall of what is true, F1 their harmonic mean."""
    for k, rates in enumerate(class_rates(confusion_of(rows))):
        given_k = [actual == k for actual, predicted in rows if predicted == k]
        true_k = [predicted == k for actual, predicted in rows if actual == k]
        assert rates.precision == (np.mean(given_k) if given_k else None)
        assert rates.recall == (np.mean(true_k) if true_k else None)
        assert rates.support == len(true_k)
        if rates.precision and rates.recall:
            harmonic = 2.0 / (1.0 / rates.precision + 1.0 / rates.recall)
            assert rates.f1 == pytest.approx(harmonic)
        else:
            assert rates.f1 == (0.0 if given_k or true_k else None)


@given(answers)
def test_matthews_is_a_correlation(rows):
    """The coefficient is the correlation of answers and truth, each written as one indicator a class."""
    actual, predicted = (np.eye(5)[list(column)] for column in zip(*rows, strict=True))
    actual, predicted = actual - actual.mean(0), predicted - predicted.mean(0)
    scale = (actual**2).sum() * (predicted**2).sum()
    found = matthews(confusion_of(rows))
    if scale < 1e-12:
        assert found is None
    else:
        assert found == pytest.approx((actual * predicted).sum() / math.sqrt(scale), abs=CLOSE)


@given(answers)
def test_kappa_is_agreement_beyond_chance(rows):
    """Kappa is what agrees beyond the frequencies, over all that could."""
    agree = np.mean([actual == predicted for actual, predicted in rows])
    actual, predicted = (np.eye(5)[list(column)].mean(0) for column in zip(*rows, strict=True))
    by_chance = float(actual @ predicted)
    found = kappa(confusion_of(rows))
    if by_chance > 1.0 - 1e-12:
        assert found is None
    else:
        assert found == pytest.approx((agree - by_chance) / (1.0 - by_chance), abs=CLOSE)


@given(answers)
def test_classes_that_never_come_change_nothing(rows):
    """A class that is neither given nor true has no rates, and moves no score."""
    few, many = confusion_of(rows), confusion_of(rows, classes=7)
    assert class_rates(many)[-1] == Rates(None, None, None, 0.0)
    for score in (accuracy, matthews, kappa):
        assert score(many) == score(few)
    for average in ("macro", "micro", "weighted"):
        assert mean_rates(many, average) == mean_rates(few, average)


@given(answers, answers)
def test_counts_of_labels_merge(one, other):
    """Counts added up cell by cell are those of all answers."""
    added = np.add(confusion_of(one), confusion_of(other)).tolist()
    assert added == confusion_of(one + other)


def test_without_answers_labels_have_no_score():
    """Of no answers every score is None."""
    empty = [[0.0, 0.0], [0.0, 0.0]]
    assert accuracy(empty) is None
    assert matthews(empty) is None
    assert kappa(empty) is None
    assert class_rates(empty) == [Rates(None, None, None, 0.0)] * 2
    for average in ("macro", "micro", "weighted"):
        assert mean_rates(empty, average) == Rates(None, None, None, 0.0)


def test_one_class_is_no_correlation():
    """Where all is of one class, accuracy is 1 and there is nothing to correlate."""
    assert accuracy([[7.0, 0.0], [0.0, 0.0]]) == 1.0
    assert matthews([[7.0, 0.0], [0.0, 0.0]]) is None
    assert kappa([[7.0, 0.0], [0.0, 0.0]]) is None


def test_an_unknown_average_is_an_error():
    """Only scikit-learn's three names are averages."""
    with pytest.raises(KeyError):
        mean_rates([[1.0]], "samples")


# --- Numbers ------------------------------------------------------------------------------------------------


@given(pairs, st.floats(-100.0, 100.0))
def test_errors_are_those_of_the_rows(rows, reference: float):
    """Bias, absolute and squared errors are the means over the rows, whatever the reference."""
    actual, predicted = map(np.array, zip(*rows, strict=True))
    sums = sums_of(rows, reference)
    assert bias(sums) == pytest.approx(np.mean(predicted - actual), abs=CLOSE)
    assert mean_absolute_error(sums) == pytest.approx(np.mean(np.abs(predicted - actual)), abs=CLOSE)
    assert root_mean_squared_error(sums) == pytest.approx(np.sqrt(np.mean((predicted - actual) ** 2)), abs=CLOSE)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=60), st.floats(-100.0, 100.0))
def test_r2_is_that_of_the_rows(rows, reference: float):
    """R2 is one less the squared errors over the squared distances from the mean."""
    actual, predicted = map(np.array, zip(*rows, strict=True))
    spread = np.sum((actual - actual.mean()) ** 2)
    assume(spread > 1e-3)
    exact = 1.0 - np.sum((predicted - actual) ** 2) / spread
    assert r2(sums_of(rows, reference)) == pytest.approx(exact, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6, 1e9])
def test_a_reference_near_the_values_keeps_the_digits(offset: float):
    """Far from 0 the sums are as good as near it, if the reference is there too."""
    rng = np.random.default_rng(SEED)
    actual = rng.normal(size=2_000) + offset
    predicted = actual + rng.normal(scale=0.5, size=2_000)
    exact = 1.0 - np.sum((predicted - actual) ** 2) / np.sum((actual - actual.mean()) ** 2)
    rows = list(zip(actual.tolist(), predicted.tolist(), strict=True))
    assert r2(sums_of(rows, offset + 0.3)) == pytest.approx(exact, abs=CLOSE)


def test_r2_is_none_rather_than_noise():
    """A reference so far away that the variance is lost in rounding gives None, not a number made of it."""
    rows = [(1e9 + 0.1 * i, 1e9) for i in range(10)]
    assert r2(sums_of(rows, 0.0)) is None
    assert r2(sums_of(rows, 1e9)) == pytest.approx(1.0 - 2.85 / 0.825, rel=1e-6)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(2, 50))
def test_values_that_do_not_vary_have_no_r2(value: float, reference: float, n: int):
    """Where all actual values are the same, rounding makes no variance."""
    assert r2(sums_of([(value, value + 1.0)] * n, reference)) is None


@given(st.lists(st.tuples(pairs, st.floats(-1e3, 1e3)), min_size=1, max_size=4))
def test_parts_with_different_references_merge(parts):
    """Merged parts have the scores of all rows together, each part about its own reference."""
    merged = merge(sums_of(rows, reference) for rows, reference in parts)
    rows = [row for part, _ in parts for row in part]
    middle = float(np.mean([actual for actual, _ in rows]))
    together = sums_of(rows, middle)
    assert merged == pytest.approx(together._replace(d=0.0, reference=middle), rel=1e-6, abs=1e-6)
    assert merged.d == 0.0


@given(pairs, pairs, st.floats(-10.0, 10.0))
def test_sums_with_one_reference_add_up(one, other, reference: float):
    """Cells added up give the scores of all rows together."""
    added = Residuals(*np.add(sums_of(one, reference)[:-1], sums_of(other, reference)[:-1]).tolist(), reference)
    assert added == pytest.approx(sums_of(one + other, reference), rel=1e-9, abs=1e-6)
    assert added.n == len(one) + len(other)


def test_nothing_merges_to_nothing():
    """Empty parts leave the others as they are, and alone are empty."""
    part = residuals(2.0, 1.0, reference=5.0)
    assert merge([]) == Residuals() == (0.0,) * 7
    assert merge([Residuals(reference=9.0), part, Residuals()]).reference == 1.0
    assert bias(merge([Residuals(), part])) == 1.0


def test_without_answers_numbers_have_no_score():
    """Of no answers every score is None, and of one there is no R2."""
    for score in (bias, mean_absolute_error, root_mean_squared_error, r2):
        assert score(Residuals()) is None
    assert r2(residuals(1.0, 2.0)) is None
