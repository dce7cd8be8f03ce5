"""Drift and latency as the page tells them: from the cells of all workers, over a window, by whoever leads."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from otel_mlops import metrics as rows
from otel_mlops.model import Model
from otel_mlops.numbers import drift as formulas
from otel_mlops.profile import Profile
from otel_mlops.scores import PUSHED
from otel_mlops.telemetry import Telemetry
from otel_mlops.testing import Samples, collect, fresh_telemetry
from tests.clock import Clock

WINDOW_S = 3600.0
MODEL = {"model_name": "housing", "model_version": "v1"}
RNG = np.random.default_rng(5)
TRAINING = RNG.normal(size=(5_000, 3))
PROFILE = Profile.fit(
    {"rooms": TRAINING[:, 0], "age": TRAINING[:, 1], "town": [str(int(each > 0)) for each in TRAINING[:, 2]]},
    TRAINING.sum(axis=1),
)


@pytest.fixture
def telemetry(clock: Clock) -> Iterator[Telemetry]:
    """Telemetry whose windows go by the clock."""
    with fresh_telemetry(clock=clock, drift_window=WINDOW_S, latency_window=60.0) as made:
        yield made


@pytest.fixture
def model(telemetry: Telemetry) -> Model:
    """A model with a profile."""
    return telemetry.model("housing", "v1", profile=PROFILE, type="regression")


def ask(model: Model, count: int, shift: float = 0.0, seed: int = 1) -> None:
    """Have a batch of rows predicted, all numbers of it shifted."""
    found = np.random.default_rng(seed).normal(size=(count, 3))
    batch = [[a + shift, b, str(int(c > 0))] for a, b, c in found.tolist()]
    with model.prediction(features=batch) as prediction:
        prediction.values = found.sum(axis=1)


def said(telemetry: Telemetry) -> Samples:
    """What the page says after a look."""
    telemetry.sample()
    return collect(telemetry)


def of_feature(samples: Samples, name: str, feature: str) -> float:
    """What is said of a feature."""
    return samples.value(name, feature=feature, **MODEL)


# --- Drift --------------------------------------------------------------------------------------------------


def test_a_feature_that_changes_has_drifted_and_the_others_have_not(telemetry: Telemetry, model: Model):
    """The score of the one that was shifted is above its threshold, and it alone is counted."""
    ask(model, 1_000, shift=1.0)
    samples = said(telemetry)
    for feature, drifted in (("rooms", 1.0), ("age", 0.0), ("town", 0.0), ("__prediction__", 0.0)):
        score, threshold = (of_feature(samples, f"model_drift_{each}", feature) for each in ("score", "threshold"))
        assert of_feature(samples, "model_drift_detected", feature) == drifted == float(score > threshold)
        assert of_feature(samples, "model_drift_window_samples", feature) == 1_000.0
    assert samples.value("model_drift_features", **MODEL) == 1.0


def test_the_scores_are_those_of_the_formulas_on_the_same_rows(telemetry: Telemetry, model: Model):
    """What the page says is the index, the distance and the statistic of the bins that the rows fall into."""
    ask(model, 700, shift=0.3)
    found = np.random.default_rng(1).normal(size=(700, 3))[:, 0] + 0.3
    feature: Any = PROFILE.features[0]
    actual = [*np.bincount(np.searchsorted(feature.edges, found), minlength=len(feature.edges) + 1).tolist(), 0]
    samples = said(telemetry)
    assert of_feature(samples, "model_drift_score", "rooms") == formulas.stability_index(feature.counts, actual)
    distances = {
        "jensen_shannon": formulas.jensen_shannon(feature.counts, actual),
        "kolmogorov_smirnov": formulas.kolmogorov_smirnov(feature.counts, actual, 1),
    }
    for measure, distance in distances.items():
        assert samples.value("model_drift_distance", feature="rooms", measure=measure, **MODEL) == distance


@pytest.mark.stress
def test_what_moves_within_its_habit_makes_no_room_for_chance(telemetry: Telemetry):
    """Features that change as they always did are not counted, and others are not the likelier called for it."""
    draw = np.random.default_rng(11)
    seen = Profile.fit(draw.normal(size=(1_000, 20)), bins=30).features
    features = (*(dataclasses.replace(each, block=50.0) for each in seen[:10]), *seen[10:])
    counts = []
    for turn in range(20):
        model = telemetry.model("habits", f"v{turn}", profile=Profile(features=features))
        with model.prediction(features=np.hstack([draw.normal(2.0, 1.0, (500, 10)), draw.normal(size=(500, 10))])):
            pass
        counts.append(said(telemetry).value("model_drift_features", model_version=f"v{turn}"))
        telemetry.forget(model_name="habits")
    assert sum(counts) <= 1.0


def test_few_rows_are_no_drift(telemetry: Telemetry, model: Model):
    """With fewer rows than the settings ask for there is a score, and nothing is called a drift or none."""
    ask(model, 499, shift=3.0)
    samples = said(telemetry)
    assert of_feature(samples, "model_drift_score", "rooms") > of_feature(samples, "model_drift_threshold", "rooms")
    assert "model_drift_detected" not in samples.names()
    assert "model_drift_features" not in samples.names()
    ask(model, 1, shift=3.0)
    assert of_feature(said(telemetry), "model_drift_detected", "rooms") == 1.0


def test_rows_leave_the_window(telemetry: Telemetry, model: Model, clock: Clock):
    """What was asked longer ago than the window does not count, and without a row there is no score."""
    ask(model, 1_000, shift=2.0)
    said(telemetry)
    clock.now_s += WINDOW_S + 1.0
    said(telemetry)
    ask(model, 1_000)
    samples = said(telemetry)
    assert of_feature(samples, "model_drift_window_samples", "rooms") == 1_000.0
    assert of_feature(samples, "model_drift_detected", "rooms") == 0.0
    clock.now_s += WINDOW_S / 12
    said(telemetry)
    clock.now_s += WINDOW_S
    samples = said(telemetry)
    assert of_feature(samples, "model_drift_window_samples", "rooms") == 0.0
    assert "model_drift_score" not in samples.names()


def test_what_is_not_as_in_training_is_counted_by_reason(telemetry: Telemetry, model: Model):
    """Missing, infinite and out-of-range values, wrong types and unseen categories are each counted."""
    odd = [[None, 1e9, "7"], ["text", float("inf"), None], [-1e9, 0.0, "1"]]
    with model.prediction(features=odd) as prediction:
        prediction.values = [0.0] * 3
    samples = said(telemetry)
    assert of_feature(samples, "model_feature_missing_total", "rooms") == 2.0
    assert of_feature(samples, "model_feature_missing_total", "town") == 1.0
    for feature, reason in (
        ("rooms", "type"), ("rooms", "below_range"), ("age", "above_range"), ("age", "infinite"), ("town", "unseen"),
    ):  # fmt: skip
        assert samples.value("model_feature_invalid_total", feature=feature, reason=reason, **MODEL) == 1.0
    assert samples.value("model_feature_invalid_total", **MODEL) == 5.0


def test_features_of_another_shape_are_dropped_and_counted(telemetry: Telemetry, model: Model):
    """A row with another number of values is in no bin."""
    with model.prediction(features=[1.0, 2.0]) as prediction:
        prediction.values = 1.0
    samples = said(telemetry)
    assert samples.value("otel_mlops_dropped_total", reason="shape") == 1.0
    assert of_feature(samples, "model_drift_window_samples", "rooms") == 0.0


def test_the_features_of_a_prediction_that_raises_are_counted(telemetry: Telemetry, model: Model):
    """What made the model fail is in the bins; what was cancelled is not."""
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), model.prediction(features=[0.0, 0.0, "1"]):
            raise error
    samples = said(telemetry)
    assert of_feature(samples, "model_drift_window_samples", "rooms") == 1.0
    assert of_feature(samples, "model_drift_window_samples", "__prediction__") == 0.0


def test_a_decorated_function_says_which_of_its_arguments_are_features(telemetry: Telemetry, model: Model):
    """`features` as a function of the arguments is asked in each call; one that fails is no features."""

    @model.prediction(features=lambda row, **_: row["features"])
    def predict(row: dict[str, Any], *, factor: float = 1.0) -> float:
        return factor

    assert predict({"features": [0.0, 0.0, "1"]}) == predict({"features": [0.0, 0.0, "0"]}, factor=1.0) == 1.0
    assert predict({}) == 1.0
    assert of_feature(said(telemetry), "model_drift_window_samples", "rooms") == 2.0


def test_the_counts_stand_on_the_page_when_they_are_asked_for(clock: Clock):
    """With model_counts there is a counter for each bin, and the share that training had of it."""
    with fresh_telemetry(clock=clock, model_counts=True) as telemetry:
        ask(telemetry.model("housing", "v1", profile=PROFILE), 1_000)
        samples = said(telemetry)
    feature: Any = PROFILE.features[0]
    bins = [each for each in samples.labels("model_feature_bin_total") if each["feature"] == "rooms"]
    assert len(bins) == len(feature.counts)
    assert samples.value("model_feature_bin_total", feature="rooms") == 1_000.0
    assert samples.value("model_reference_bin_ratio", feature="rooms") == pytest.approx(1.0)
    assert samples.value("model_reference_bin_ratio", feature="rooms", bin="missing") == 0.0


def test_forgotten_drift_is_gone(telemetry: Telemetry, model: Model):
    """forget() removes the counts of a version, and its scores with them."""
    ask(model, 1_000)
    said(telemetry)
    telemetry.forget(model_version="v1")
    assert not {each for each in said(telemetry).names() if each.startswith(("model_drift", "prediction_latency"))}


def test_a_model_of_another_profile_is_another(telemetry: Telemetry, model: Model):
    """The same name and version with another profile is a mistake, and with the same the same model."""
    other = Profile.fit({"rooms": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match=f"is there with .*{PROFILE.digest}.*this call says .*{other.digest}"):
        telemetry.model("housing", "v1", profile=other, type="regression")
    assert telemetry.model("housing", "v1", profile=Profile.from_json(PROFILE.to_json()), type="regression") is model


def test_a_reference_that_nobody_understands_is_no_fault(
    telemetry: Telemetry, model: Model, caplog: pytest.LogCaptureFixture
):
    """Cells of a worker that runs other code are left out, with one line in the log; all else is told."""
    ask(model, 600)
    cells = telemetry.meter_provider.cells("drift/0", 3, {"model_name": "m", "model_version": "2"}, "{nonsense")
    cells.count([0])
    for _ in range(2):
        assert of_feature(said(telemetry), "model_drift_detected", "rooms") == 0.0
    assert [each.getMessage() for each in caplog.records if "no reference" in each.getMessage()] != []
    assert sum("is not shown" in each.getMessage() for each in caplog.records) == 1


# --- Latency ------------------------------------------------------------------------------------------------


def test_percentiles_are_within_their_error(telemetry: Telemetry, model: Model):
    """The percentiles of the calls' durations are near those of the durations themselves by 1.1 percent."""
    draw = random.Random(3)
    durations = [draw.lognormvariate(-3.0, 1.0) for _ in range(5_000)]
    for seconds in durations:
        model._series.record(1.0, seconds)
    samples = said(telemetry)
    for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999)):
        exact = float(np.quantile(durations, q, method="inverted_cdf"))
        assert samples.value(f"prediction_latency_{name}_seconds", **MODEL) == pytest.approx(exact, rel=0.0109)
    assert samples.value("prediction_latency_samples", **MODEL) == 5_000.0


def test_calls_leave_the_latency_window(telemetry: Telemetry, model: Model, clock: Clock):
    """After the window an old call is in no percentile, and without calls there is none."""
    model._series.record(1.0, 30.0)
    said(telemetry)
    clock.now_s += 61.0
    samples = said(telemetry)
    assert samples.value("prediction_latency_samples", **MODEL) == 0.0
    assert "prediction_latency_p99_seconds" not in samples.names()


# --- Who may say it ------------------------------------------------------------------------------------------


def push(telemetry: Telemetry, **model_name: str) -> dict[str, Callable[[], None]]:
    """How each of the rows that a service may set is set, to 0.5."""

    def percentiles() -> None:
        telemetry.update_prediction_latency_percentiles("v1", 0.5, 0.5, **model_name)

    return {
        "prediction_latency_p95_seconds": percentiles,
        "prediction_latency_p99_seconds": percentiles,
        "model_drift_score": lambda: telemetry.update_model_drift_score("v1", "rooms", 0.5, **model_name),
    }


@pytest.mark.parametrize("model_name", [{}, {"model_name": "housing"}])
def test_what_a_service_has_set_is_not_worked_out(telemetry: Telemetry, model: Model, model_name: dict[str, str]):
    """A pushed value owns its series, with and without the model's name, until it is forgotten."""
    ask(model, 1_000)
    said(telemetry)
    for name, set_it in push(telemetry, **model_name).items():
        labels = {} if "latency" in name else {"feature": "rooms"}
        set_it()
        samples = said(telemetry)
        assert [each for each in samples.labels(name) if labels.items() <= each.items()] == [
            {"model_version": "v1", **labels, **model_name}
        ]
        assert samples.value(name, model_version="v1", **labels) == 0.5
    assert of_feature(samples, "model_drift_score", "age") < 0.1, "the others go on"


def test_the_rows_that_can_be_set_are_those_of_the_verbs():
    """They are the rows of the specification's update verbs."""
    assert {row.page_name for row in PUSHED} == {
        "prediction_latency_p95_seconds", "prediction_latency_p99_seconds", "model_drift_score",
        "model_accuracy_score", "model_rmse_score", "model_mae_score", "model_r2_score",
    }  # fmt: skip


def test_models_can_be_left_out(clock: Clock):
    """Without `models` among the sources nothing is worked out, and no such source is spoken of."""
    with fresh_telemetry(clock=clock, sources={}) as telemetry:
        assert {"source": "models"} in said(telemetry).labels("otel_mlops_source_up")
    left_out: Sequence[dict[str, Any]] = (
        {"start_monitoring": False}, {"disabled": True},
    )  # fmt: skip
    for settings in left_out:
        with fresh_telemetry(clock=clock, **settings) as telemetry:
            ask(telemetry.model("housing", "v1", profile=PROFILE), 1_000)
            assert not {each for each in said(telemetry).names() if each.startswith("model_drift")}


def test_every_row_that_is_worked_out_is_observed():
    """Each row of drift is one that whoever leads speaks of once."""
    assert {row.across for row in rows.model.DRIFT} == {"once"}
