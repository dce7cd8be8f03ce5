"""Quality: what stands on the page for the truths in the window, held against scikit-learn on the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from otel_mlops.model.truth import Truth
from otel_mlops.numbers.chance import mean_interval, wilson
from otel_mlops.numbers.probability import BINS
from otel_mlops.profile import Profile
from otel_mlops.scores import Scores
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.settings import Settings
from tests.clock import Clock
from tests.sdk.workers import Worker, state_folder

MODEL = {"model_name": "m", "model_version": "1"}
NOON = 1_700_000_000.0
DAY = 86_400.0


class Told:
    """A model's truths and the scores that a leader works out of them."""

    def __init__(self, provider: MeterProvider | None = None, *, counts: bool = False, **about: Any) -> None:
        self.clock = Clock(NOON)
        self.provider = provider or MeterProvider(shutdown_on_exit=False)
        self.truth = truth_of(self.provider, **about)
        settings = Settings(model_counts=counts)
        self.scores = Scores(self.provider, None, settings, clock=self.clock)

    def read(self) -> dict[str, float]:
        """The samples, by the row's name and the labels that are not the model's."""
        found: dict[str, float] = {}
        for row, value, labels in self.scores():
            assert {*row.attributes} <= {*labels} <= {*row.attributes, *row.optional_attributes}
            assert math.isfinite(value)
            rest = [labels[name] for name in labels if name not in MODEL and labels[name] != "live"]
            key = ".".join([row.name.removeprefix("model.").removesuffix(".score"), *rest])
            assert key not in found, f"{key} is there twice"
            assert {name: labels[name] for name in MODEL} == MODEL
            found[key] = value
        return found


def truth_of(provider: MeterProvider, **about: Any) -> Truth:
    """The truth of a model without receipts and ids."""
    about = {"type": None, "positive": None, "profile": None, **about}

    def nothing() -> Any:
        raise AssertionError("it is asked for no receipt and no id")

    return Truth(provider, MODEL, receipts=nothing, store=nothing, **about)


def near(expected: dict[str, float], tolerance: float = 1e-9) -> Any:
    """What numbers are to be, to so much of themselves."""
    return pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.fixture
def state() -> Iterator[Path]:
    """The folder of the groups."""
    with state_folder() as folder:
        yield folder


def of_names(found: dict[str, float], names: Any) -> dict[str, float]:
    """Those of some names."""
    return {name: found[name] for name in names}


# --- Classifiers ----------------------------------------------------------------------------------------------------


def macro(true: list[str], said: list[str]) -> dict[str, float]:
    """What scikit-learn says of several classes, those without a score left out."""
    p, r, f, _ = oracle.precision_recall_fscore_support(true, said, average="macro", zero_division=np.nan)
    found = {"accuracy": oracle.accuracy_score(true, said), "precision": p, "recall": r, "f1": f}
    return {name: float(value) for name, value in found.items() if not math.isnan(value)}


@pytest.mark.filterwarnings("ignore:A single label was found")
@hypothesis_settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=60))
def test_scores_of_several_classes_are_those_of_scikit_learn(rows: list[tuple[str, str]]):
    """Accuracy, the means of precision, recall and F1, and Matthews' coefficient are the oracle's."""
    told = Told(type="multi-class")
    true, said = [list(column) for column in zip(*rows, strict=True)]
    for actual, prediction in rows:
        assert told.truth.record(actual=actual, prediction=prediction) == "matched"
    found = told.read()
    assert of_names(found, macro(true, said)) == near(macro(true, said))
    assert found.get("matthews", 0.0) == pytest.approx(oracle.matthews_corrcoef(true, said), abs=1e-9)
    assert found["performance.samples"] == len(rows)
    interval = wilson(oracle.accuracy_score(true, said) * len(rows), len(rows))
    assert interval is not None
    assert [found["score.bound.accuracy.lower"], found["score.bound.accuracy.upper"]] == pytest.approx([*interval])


@pytest.mark.parametrize(("no", "yes", "positive"), [("no", "YES", None), (0, 1, None), ("ham", "spam", "spam")])
def test_scores_of_two_classes_are_of_the_positive_one(no: Any, yes: Any, positive: str | None):
    """With a positive class, by custom or given, the scores are its own, and those of its probabilities are there."""
    told, random = Told(type="binary", positive=positive), np.random.default_rng(5)
    true = random.random(4000) < 0.3
    scores = np.clip(0.35 * true + 0.6 * random.random(4000), 0.0, 1.0)
    said = scores > 0.4
    named = [np.where(each, yes, no) for each in (true, said)]
    assert told.truth.record(actual=named[0], prediction=named[1], score=scores) == "matched"
    found = told.read()
    p, r, f, _ = oracle.precision_recall_fscore_support(true, said, average="binary")
    exact = {
        "accuracy": oracle.accuracy_score(true, said), "precision": p, "recall": r, "f1": f,
        "matthews": oracle.matthews_corrcoef(true, said), "brier": oracle.brier_score_loss(true, scores),
        "log.loss": oracle.log_loss(true, scores), "performance.samples": 4000,
    }  # fmt: skip
    assert of_names(found, exact) == near(exact)
    assert found["auc"] == pytest.approx(oracle.roc_auc_score(true, scores), abs=0.005)
    assert found["calibration.error"] == pytest.approx(calibration_error(true, scores), abs=0.005)


def calibration_error(true: Any, scores: Any) -> float:
    """The expected calibration error, by its definition."""
    groups = np.minimum((scores * 10).astype(int), 9)
    parts = [(groups == group) for group in range(10)]
    return float(sum(mask.sum() * abs(true[mask].mean() - scores[mask].mean()) for mask in parts if mask.any())) / len(
        scores
    )


def test_without_a_positive_class_scores_are_those_of_all_classes():
    """Where nobody says which of two classes is the positive one, nothing that needs it is there."""
    told = Told(type="binary")
    told.truth.record(actual=["ham", "spam", "ham"], prediction=["ham", "spam", "spam"], score=[0.1, 0.9, 0.6])
    found = told.read()
    assert of_names(found, ["precision", "recall"]) == near({"precision": 0.75, "recall": 0.75})
    assert not {"auc", "brier", "log.loss", "calibration.error"} & {*found}


def test_probabilities_of_several_classes_are_those_of_the_answers():
    """With several classes a probability is worth how often an answer of it is right."""
    told, random = Told(type="multi-class"), np.random.default_rng(6)
    every = random.dirichlet([0.4] * 4, 3000)
    true = [random.choice(list("abcd"), p=row) for row in every]
    said = ["abcd"[place] for place in every.argmax(axis=1)]
    scores = [dict(zip("abcd", row.tolist(), strict=True)) for row in every]
    assert told.truth.record(actual=true, prediction=said, scores=scores) == "matched"
    right, sure = np.array(true) == np.array(said), every.max(axis=1)
    found = told.read()
    exact = {"brier": oracle.brier_score_loss(right, sure), "log.loss": oracle.log_loss(right, sure)}
    assert of_names(found, exact) == near(exact)
    assert found["auc"] == pytest.approx(oracle.roc_auc_score(right, sure), abs=0.005)
    assert found["calibration.error"] == pytest.approx(calibration_error(right, sure), abs=0.005)


def test_two_classes_past_the_bound_are_no_hit():
    """Of classes past the first 30 an answer is right if it is the same class, and not if both are past the bound."""
    told = Told(type="classification", counts=True)
    for k in range(30):
        told.truth.record(actual=f"c{k}", prediction=f"c{k}")
    for actual, prediction in (("x", "x"), ("x", "y"), ("other", "z"), ("z", "other"), ("c1", "x"), ("y" * 500, "x")):
        assert told.truth.record(actual=actual, prediction=prediction) == "matched"
    found = told.read()
    assert found["accuracy"] == pytest.approx(31 / 36)
    assert found["confusion.other.another"] == 4
    assert found["confusion.other.other"] == found["confusion.c1.other"] == 1
    assert len([name for name in found if name.startswith("confusion")]) == 30 + 3


def test_a_pair_of_classes_stands_once_in_the_counts():
    """Truths from before it was known that 1 is no positive class, and from after it, are one count."""
    told = Told(type="classification", counts=True)
    told.truth.record(actual=[1, 2, 1], prediction=[0, 0, 0])
    told.truth.record(actual=1, prediction=0)
    found = told.read()
    assert (found["confusion.1.0"], found["confusion.2.0"]) == (3, 1)
    assert found["recall"] == 0.0


def test_probabilities_are_judged_by_the_kind_of_which_there_are_more():
    """A model whose scores were of the positive class, and then of the answers, has the scores of the latter."""
    told = Told(type="classification")
    told.truth.record(actual="yes", prediction="yes", score=0.5)
    for _ in range(2):
        told.truth.record(actual="a", prediction="a", scores={"a": 0.75, "b": 0.25, "c": 0.0})
    assert told.read()["brier"] == near(0.25**2)


# --- Regressions ----------------------------------------------------------------------------------------------------


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3).map(lambda each: round(each, 3))] * 2), min_size=2, max_size=60))
def test_scores_of_a_regression_are_those_of_scikit_learn(rows: list[tuple[float, float]]):
    """RMSE, MAE, R2 and bias are the oracle's, and the intervals are Student's."""
    told = Told(type="regression")
    for actual, prediction in rows:
        assert told.truth.record(actual=actual, prediction=prediction) == "matched"
    true, said = [np.array(column) for column in zip(*rows, strict=True)]
    found = told.read()
    exact = {
        "rmse": oracle.root_mean_squared_error(true, said), "mae": oracle.mean_absolute_error(true, said),
        "bias": float((said - true).mean()), "performance.samples": len(rows),
    }  # fmt: skip
    assert of_names(found, exact) == near(exact)
    if true.std() > 1e-3:
        assert found["r2"] == near(oracle.r2_score(true, said))
    for score, errors in (("bias", said - true), ("mae", abs(said - true))):
        interval = mean_interval(len(errors), float(errors.sum()), float((errors**2).sum()))
        assert interval is not None
        lower = interval.lower if score == "bias" else max(0.0, interval.lower)
        ends = [found[f"score.bound.{score}.lower"], found[f"score.bound.{score}.upper"]]
        assert ends == pytest.approx([lower, interval.upper], rel=1e-6, abs=1e-6)


def test_r2_keeps_its_digits_far_from_nought():
    """Sums are about the mean of the truth in training: truths that are far from 0 and differ little have an R2."""
    random = np.random.default_rng(7)
    true = 1e9 + random.normal(size=500)
    said = true + 0.3 * random.normal(size=500)
    profile = Profile.fit({"x": list(range(500))}, said, true)
    told = Told(type="regression", profile=profile)
    told.truth.record(actual=true[:400], prediction=said[:400])
    for actual, prediction in zip(true[400:], said[400:], strict=True):
        told.truth.record(actual=actual, prediction=prediction)
    assert told.read()["r2"] == pytest.approx(oracle.r2_score(true, said), abs=1e-6)


def test_sums_about_two_references_are_merged():
    """Workers whose profiles have different means of the truth add up to what one would have."""
    provider, random = MeterProvider(shutdown_on_exit=False), np.random.default_rng(8)
    true, said = random.normal(5.0, 2.0, (2, 400))
    told = Told(provider, type="regression")
    profile = Profile(features=(), training={"truth_mean": 4.0})
    told.truth.record(actual=true[:150], prediction=said[:150])
    truth_of(provider, type="regression", profile=profile).record(actual=true[150:], prediction=said[150:])
    assert told.read()["r2"] == near(oracle.r2_score(true, said))


def test_truths_that_do_not_vary_have_no_r2():
    """A regression whose truths are all the same has the other scores."""
    told = Told(type="regression")
    told.truth.record(actual=[0.1] * 7, prediction=[0.1, 0.2, 0.3] * 2 + [0.1])
    found = told.read()
    assert "r2" not in found
    assert found["rmse"] > 0.0


# --- Windows, workers and what is absent ------------------------------------------------------------------------------


def test_truths_that_left_the_window_do_not_count():
    """The scores are of the last day, to the last digit; a day without a truth has none."""
    told = Told(type="regression", counts=True)
    told.truth.record(actual=[1.0, 2.0, 3.0], prediction=[5.0, -7.0, 9.0])
    told.read()
    told.clock.now_s += DAY
    true, said = [-1.0, -2.0, -4.0], [-0.75, -1.5, -5.0]
    told.truth.record(actual=true, prediction=said)
    found = told.read()
    exact = {"rmse": oracle.root_mean_squared_error(true, said), "r2": oracle.r2_score(true, said), "truths": 6}
    assert of_names(found, exact) == near(exact)
    assert found["bias"] == near(-0.25 / 3)
    assert (found["error.absolute"], found["error.squared"]) == near((19 + 1.75, 133 + 1.3125))
    told.clock.now_s += DAY
    told.read()
    told.clock.now_s += DAY
    assert told.read() == {"performance.samples": 0, "truths": 6, "error.absolute": 20.75, "error.squared": 134.3125}


def test_classes_that_left_the_window_are_no_classes_of_the_mean():
    """A class that neither was true nor answered in the window is in no mean; the counts keep it."""
    told = Told(type="multi-class", counts=True)
    told.truth.record(actual=["a", "b"], prediction=["b", "a"])
    told.read()
    told.clock.now_s += DAY
    told.truth.record(actual=["c", "d", "d"], prediction=["c", "d", "c"])
    found = told.read()
    expected = macro(["c", "d", "d"], ["c", "d", "c"])
    assert of_names(found, expected) == near(expected)
    assert found["confusion.a.b"] == found["confusion.d.c"] == 1


def test_nothing_is_there_before_the_first_truth():
    """No score, no number of samples and no coverage is told of a model of which nothing is known."""
    told = Told(type="regression", counts=True)
    assert told.read() == {}


@hypothesis_settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 1.0)), min_size=2, max_size=30), st.integers(1, 29))
def test_two_workers_are_as_good_as_one(rows: list[tuple[bool, float]], cut: int):
    """Truths told to two workers, one of which is dead, give the scores of one that was told them all."""
    with state_folder() as state:
        one, workers = Told(type="binary", counts=True), [Worker(state), Worker(state)]
        for worker, part in zip(workers, (rows[:cut], rows[cut:]), strict=True):
            for truth in (one.truth, truth_of(worker.provider, type="binary")):
                for actual, score in part:
                    truth.record(actual=actual, prediction=score > 0.5, score=score)
        workers[1].die()
        both = Told(workers[0].provider, counts=True)
        assert both.read() == near(one.read(), 1e-12)


def test_cells_of_other_code_are_left_alone():
    """Cells of an unknown name or size, and sums that are not finite, spoil nothing."""
    provider = MeterProvider(shutdown_on_exit=False)
    provider.cells("quality/estimate", 1, MODEL).count([0])
    plain, told = Told(type="regression"), Told(provider, type="regression")
    for each in (plain, told):
        each.truth.record(actual=1.0, prediction=2.0)
    told.provider.cells("quality/unheard", 1, MODEL).count([0])
    told.provider.cells("quality/scores", 2 * BINS + 2, {**MODEL, "of": "answer"}).add([(0, 1.0), (2 * BINS, math.inf)])
    assert len(told.provider.everyone.cells()) == 4
    assert told.read() == plain.read()


# --- Coverage and estimates -------------------------------------------------------------------------------------------


def test_coverage_is_right_where_truths_take_hours():
    """Of predictions whose truth takes 140 minutes, and 2.8 percent of which never get one, 97.2 percent have one."""
    told = Told(type="regression")
    asked, matched = (
        told.provider.cells(f"quality/{name}", size, MODEL) for name, size in (("asked", 1), ("matched", 2))
    )
    lag = 140 * 60
    seen = {}
    for minute in range(0, 3 * 24 * 60, 5):
        told.clock.now_s = NOON + minute * 60
        # By day five times as many as by night.
        asked.add([(0, _rate(minute))])
        if minute * 60 >= lag:
            due = 0.972 * _rate(minute - lag // 60)
            matched.add([(0, due), (1, due * lag)])
        seen[minute] = told.read().get("ground.truth.coverage.ratio")
    # Until a whole day of predictions is known, the truth of most of which may still come.
    assert {seen[minute] for minute in seen if minute < 24 * 60 + lag // 60} == {None}
    assert all(seen[minute] == pytest.approx(0.972, abs=0.02) for minute in seen if minute > 27 * 60)


def cells_of(told: Told) -> tuple[Any, Any]:
    """Where predictions that wait for a truth, and those that got one, are counted."""
    return told.provider.cells("quality/asked", 1, MODEL), told.provider.cells("quality/matched", 2, MODEL)


def _rate(minute: int) -> float:
    return 300.0 + 200.0 * math.sin(2 * math.pi * minute / 1440)


def test_coverage_falls_when_truths_stop():
    """Once no truth comes any more the share of those known falls to 0, and is not absent."""
    told = Told()
    asked, matched = (
        told.provider.cells(f"quality/{name}", size, MODEL) for name, size in (("asked", 1), ("matched", 2))
    )
    for hour in range(80):
        told.clock.now_s = NOON + hour * 3600
        asked.add([(0, 10.0)])
        if hour < 50:
            matched.add([(0, 10.0), (1, 36_000.0)])
        ratio = told.read().get("ground.truth.coverage.ratio")
        if 27 < hour < 50:
            assert ratio == 1.0
    assert ratio == 0.0


def test_truths_that_take_longer_than_the_window_have_no_coverage():
    """Of predictions longer ago than the window no count is kept, so the share is not told."""
    told = Told()
    asked, matched = (
        told.provider.cells(f"quality/{name}", size, MODEL) for name, size in (("asked", 1), ("matched", 2))
    )
    for hour in range(80):
        told.clock.now_s = NOON + hour * 3600
        asked.add([(0, 10.0)])
        matched.add([(0, 5.0), (1, 5.0 * 1.2 * DAY)])
        assert "ground.truth.coverage.ratio" not in told.read()


def test_the_estimated_accuracy_is_near_the_real_one():
    """From the scores alone, and the calibration in training, the accuracy of harder cases is foreseen."""
    random = np.random.default_rng(9)

    def cases(n: int, spread: float) -> tuple[Any, Any]:
        p = 1.0 / (1.0 + np.exp(-spread * random.normal(size=n)))
        return random.random(n) < p, p**2 / (p**2 + (1 - p) ** 2)  # a model that is too sure

    true, scores = cases(20_000, 3.0)
    profile = Profile.fit({"x": scores}, (scores > 0.5).astype(int), true.astype(int), scores, type="classification")
    told = Told(profile=profile)
    true, scores = cases(20_000, 1.0)
    said = (scores > 0.5).astype(int)
    told.truth.estimate(said[:10_000], scores[:10_000])
    for answer, score in zip(said[10_000:].tolist(), scores[10_000:].tolist(), strict=True):
        told.truth.estimate(answer, score)
    real = oracle.accuracy_score(true, said)
    assert profile.training["accuracy"] - real > 0.1
    ((n, right),) = [cells for name, _, _, cells in told.provider.everyone.cells() if name == "quality/estimate"]
    assert told.read()["estimated.accuracy"] == right / n == pytest.approx(real, abs=0.01)
    told.clock.now_s += DAY
    told.read()
    told.clock.now_s += DAY
    assert "estimated.accuracy" not in told.read()
