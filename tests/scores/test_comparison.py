"""Comparisons: what windows of pairs say of two models, against scipy and by simulation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from otel_mlops import metrics as rows
from otel_mlops.model.shadow import Shadow
from otel_mlops.numbers import pairs
from otel_mlops.scores import Counted
from otel_mlops.scores.comparison import ANSWERS, SIGNED, TRUTHS, samples
from otel_mlops.scores.windows import Window, Windows
from otel_mlops.sdk.provider import MeterProvider

LABELS = {"model_name": "housing", "model_version": "v1", "candidate": "housing:v2"}
PAIR = {"baseline": "housing:v1", "candidate": "housing:v2"}


def counted(name: str, cells: Sequence[float], totals: Sequence[float] | None = None, **labels: str) -> Counted:
    """The cells of a name in a window, and as they were ever counted."""
    cells = [float(each) for each in cells]
    every = cells if totals is None else [float(each) for each in totals]
    return Counted(name, "", labels or LABELS, every, Window(cells, 60.0), lambda _lag_s: None)


def shown(every: Iterable[Counted]) -> dict[Any, float]:
    """The samples by their row and what their labels say beyond the pair of models."""
    found = {}
    for sample in samples(every):
        assert PAIR.items() <= sample.attributes.items()
        assert set(sample.attributes) == set(sample.metric.attributes)
        key = (sample.metric, *[value for title, value in sample.attributes.items() if title not in PAIR])
        assert key not in found
        found[key] = sample.value
    return found


class Comparing:
    """A shadow, and windows of what it counts: each holds what came since the last."""

    def __init__(self, classification: bool | None = None) -> None:
        self.provider = MeterProvider(shutdown_on_exit=False)
        candidate = {"model_name": "housing", "model_version": "v2"}
        baseline = {"model_name": "housing", "model_version": "v1"}
        self.shadow = Shadow(self.provider, baseline, candidate, classification)
        self.windows = Windows(60.0, None, "quality", panes=1, signed=lambda key: SIGNED.get(key[0], ()))
        self.now = 0.0

    def look(self) -> dict[Any, float]:
        """What the last minute comes to."""
        cells = {(name,): totals for name, _, _, totals in self.provider.everyone.cells()}
        seen = self.windows.look(self.now, cells)
        self.now += 60.0
        return shown(counted(name, seen[key].cells, totals) for key, totals in cells.items() for name in key)


def paired(shown: dict[Any, float], difference: str) -> list[float]:
    """Mean and bounds of a paired difference."""
    row = rows.MODEL_PAIRED_DIFFERENCE
    return [shown[row, difference, estimate] for estimate in ("mean", "lower", "upper")]


def test_labels_show_agreement_and_the_difference_of_accuracies():
    """Of labels the share of equal ones is shown, and which model is right more often, above 0 for the candidate."""
    found = shown([counted(ANSWERS, [30, 20, 0, 0, 0]), counted(TRUTHS, [10, 1, 7, 3, 0, 0, 0, 0])])
    assert found[rows.MODEL_AGREEMENT,] == pytest.approx(2 / 3)
    assert (found[rows.MODEL_COMPARED, "answers"], found[rows.MODEL_COMPARED, "truths"]) == (30, 21)
    # Bonett and Price's own example: 6 / 21 with [0.0134, 0.5084].
    assert paired(found, "accuracy") == pytest.approx([6 / 21, 0.0134, 0.5084], abs=1e-4)
    assert len(found) == 6


def test_numbers_show_their_difference_and_that_of_the_errors():
    """Of numbers the mean absolute difference is shown, and scipy's interval of the difference of absolute errors."""
    rng = np.random.default_rng(1)
    actual = rng.normal(100.0, 20.0, 50)
    answer, other = actual + rng.normal(0.0, 3.0, 50), actual + rng.normal(1.0, 2.0, 50)
    comparing = Comparing()
    comparing.shadow.record(answer, other, actual)
    found = comparing.look()
    better = abs(answer - actual) - abs(other - actual)
    expected = stats.ttest_1samp(better, 0.0).confidence_interval(0.95)
    assert found[rows.MODEL_PREDICTION_DIFFERENCE,] == pytest.approx(abs(answer - other).mean())
    assert paired(found, "absolute_error") == pytest.approx([better.mean(), *expected])
    assert (found[rows.MODEL_COMPARED, "answers"], found[rows.MODEL_COMPARED, "truths"]) == (50, 50)
    assert len(found) == 6


def test_a_window_holds_what_came_in_it_and_no_more():
    """Each window says what its own pairs say, also where a signed sum goes down, and nothing once none came."""
    comparing = Comparing()
    comparing.shadow.record([1.0, 1.0], [3.0, 3.0], [3.0, 3.0])
    comparing.look()
    comparing.shadow.record([0.0, 0.0], [5.0, 7.0], [0.0, 0.0])
    found = comparing.look()
    assert paired(found, "absolute_error")[0] == -6.0
    assert found[rows.MODEL_PREDICTION_DIFFERENCE,] == 6.0
    assert comparing.look() == {(rows.MODEL_COMPARED, "answers"): 0.0, (rows.MODEL_COMPARED, "truths"): 0.0}


def test_a_single_truth_has_no_interval_of_errors():
    """The mean of one is shown, and where the mean of more may lie is not known."""
    found = shown([counted(TRUTHS, [0, 0, 0, 0, 1, 1, -2.0, 4.0])])
    assert found == {
        (rows.MODEL_COMPARED, "truths"): 1.0,
        (rows.MODEL_PAIRED_DIFFERENCE, "absolute_error", "mean"): -2.0,
    }


def test_few_truths_decide_nothing_about_accuracy():
    """One and two wins out of as many leave an interval on both sides of 0."""
    for wins in (1, 2):
        mean, lower, upper = paired(shown([counted(TRUTHS, [0, 0, wins, 0, 0, 0, 0, 0])]), "accuracy")
        assert lower < 0.0 < mean <= upper <= 1.0


def test_a_sum_without_digits_is_not_shown():
    """Where an outlier has swallowed all that came after nothing is claimed, but that equal answers are equal."""
    outlier = [0, 0, 0, 0, 101, 101, 1e90, 1e180]
    row = rows.MODEL_PAIRED_DIFFERENCE
    for left in (0.0, 1e170):
        assert not any(key[0] is row for key in shown([counted(TRUTHS, [0, 0, 0, 0, 100, 100, 0.0, left], outlier)]))
    same = shown([counted(TRUTHS, [0, 0, 0, 0, 100, 0, 0.0, 0.0], outlier)])
    assert paired(same, "absolute_error") == [0.0, 0.0, 0.0]
    difference = (rows.MODEL_PREDICTION_DIFFERENCE,)
    assert difference not in shown([counted(ANSWERS, [0, 0, 9, 3, 0.0], [0, 0, 10, 3, 1e90])])
    assert shown([counted(ANSWERS, [0, 0, 9, 9, 0.0], [0, 0, 10, 9, 1e90])])[difference] == 0.0


def test_a_long_life_does_not_take_the_digits():
    """A window of a thousand numbers after a thousand million is shown."""
    found = shown([counted(TRUTHS, [0, 0, 0, 0, 1e3, 1e3, 10.0, 1e3], [0, 0, 0, 0, 1e9, 1e9, 1e7, 1e9])])
    assert (rows.MODEL_PAIRED_DIFFERENCE, "absolute_error", "upper") in found


def test_numbers_that_cannot_be_read_are_left_alone():
    """Cells of other parts, of another size, and of the series that takes what there is no room for, give nothing."""
    overflow = {"otel_metric_overflow": "true"}
    assert list(samples([
        counted("drift/1", [1, 1, 1, 1, 1]), counted("comparison/later", [1, 1, 1, 1, 1]), counted(ANSWERS, [1, 1]),
        counted(ANSWERS, [1, 1, 0, 0, 0], **overflow), counted(TRUTHS, [1] * pairs.TRUTHS, **overflow),
    ])) == []  # fmt: skip


@pytest.mark.stress
@pytest.mark.parametrize(("size", "right", "better"), [(20, 0.6, 0.1), (60, 0.8, 0.0), (60, 0.5, 0.3)])
def test_the_interval_of_accuracy_covers_the_truth(size: int, right: float, better: float):
    """In 95 of 100 windows the true difference of accuracies lies within the bounds, a few more or less."""
    rng = np.random.default_rng(2)
    comparing, hits, windows = Comparing(classification=True), 0, 300
    for _ in range(windows):
        # Models that are right about the same cases: what one fails at, the other fails at mostly.
        ease = rng.random(size)
        answer = (ease > right).astype(int)
        other = (np.where(rng.random(size) < 0.5, rng.random(size), ease) > right + better).astype(int)
        comparing.shadow.record(answer, other, np.zeros(size))
        _, lower, upper = paired(comparing.look(), "accuracy")
        hits += lower <= better <= upper
    assert 0.91 <= hits / windows <= 0.995


@pytest.mark.parametrize("size", [10, 60])
def test_the_interval_of_errors_covers_the_truth(size: int):
    """In 95 of 100 windows the true difference of absolute errors lies within the bounds, a few more or less."""
    rng = np.random.default_rng(3)
    comparing, hits, windows = Comparing(), 0, 300
    expected = (3.0 - 2.0) * np.sqrt(2.0 / np.pi)
    for _ in range(windows):
        shared = rng.normal(0.0, 1.0, size)
        comparing.shadow.record(3.0 * shared, 2.0 * (0.8 * shared + 0.6 * rng.normal(0.0, 1.0, size)), np.zeros(size))
        _, lower, upper = paired(comparing.look(), "absolute_error")
        hits += lower <= expected <= upper
    assert 0.91 <= hits / windows <= 0.99
