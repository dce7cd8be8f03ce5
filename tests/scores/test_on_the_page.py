"""Late truth, comparisons and counts as the page tells them, with whoever leads and whatever was forgotten."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_mlops.model import Model
from otel_mlops.profile import Profile
from otel_mlops.telemetry import Telemetry
from otel_mlops.testing import Samples, collect, fresh_telemetry
from tests.clock import Clock

LIVE = {"dataset": "live", "model_name": "tumour", "model_version": "v1"}


@pytest.fixture
def telemetry(clock: Clock) -> Iterator[Telemetry]:
    """Telemetry whose windows go by the clock, with the counts on its page."""
    with fresh_telemetry(clock=clock, model_counts=True, receipt_key="a key for these tests") as made:
        yield made


@pytest.fixture
def model(telemetry: Telemetry) -> Model:
    """A classifier."""
    return telemetry.model("tumour", "v1", type="classification", positive="bad")


def said(telemetry: Telemetry) -> Samples:
    """What the page says after a look."""
    telemetry.sample()
    return collect(telemetry)


def receipts(model: Model, count: int) -> list[str]:
    """The receipts of so many predictions, which say `bad` with 0.9."""
    with model.prediction() as prediction:
        prediction.values, prediction.scores = ["bad"] * count, [0.9] * count
    return prediction.receipts


def test_a_prediction_goes_from_its_receipt_to_the_score(telemetry: Telemetry, model: Model, clock: Clock):
    """What was right and wrong ten minutes later is the accuracy, with its delay, its samples and its counts."""
    handed_out = receipts(model, 10)
    clock.now_s += 600.0
    for number, receipt in enumerate(handed_out):
        assert model.record_truth(receipt=receipt, actual="bad" if number < 8 else "good") == "matched"
    assert model.record_truth(receipt=handed_out[0], actual="bad") == "duplicate"
    samples = said(telemetry)
    assert samples.value("model_accuracy_score", **LIVE) == 0.8
    assert samples.value("model_performance_samples", **LIVE) == 10.0
    assert samples.value("model_score_bound", score="accuracy", bound="lower", **LIVE) < 0.8
    assert samples.value("ground_truth_total", result="matched") == 10.0
    assert samples.value("ground_truth_total", result="duplicate") == 1.0
    assert samples.value("ground_truth_delay_seconds_sum") == 6_000.0
    assert samples.value("model_confusion_total", actual="good", predicted="bad") == 2.0


def test_an_id_finds_its_prediction(telemetry: Telemetry, model: Model):
    """A prediction that was made with an id is matched by it, once."""
    with model.prediction(id="order 7") as prediction:
        prediction.values = "good"
    assert [model.record_truth(id="order 7", actual="good") for _ in range(2)] == ["matched", "duplicate"]
    assert said(telemetry).value("model_accuracy_score", **LIVE) == 1.0


def test_truths_leave_the_window(telemetry: Telemetry, model: Model, clock: Clock):
    """A day later the score is that of the day."""
    for actual in ("good", "bad"):
        for _ in range(4):
            model.record_truth(prediction="bad", actual=actual)
            said(telemetry)
            clock.now_s += 7_300.0
        clock.now_s += 80_000.0 if actual == "good" else 0.0
    samples = said(telemetry)
    assert samples.value("model_accuracy_score", **LIVE) == 1.0
    assert samples.value("model_confusion_total") == 8.0, "counters go on"


def test_a_score_that_was_set_is_the_services(telemetry: Telemetry, model: Model):
    """What is set for the dataset `live` is not worked out; another dataset is another series."""
    model.record_truth(prediction="bad", actual="bad")
    telemetry.update_model_performance_metrics("v1", "validation", accuracy=0.5, model_name="tumour")
    samples = said(telemetry)
    assert samples.value("model_accuracy_score", **LIVE) == 1.0
    telemetry.update_model_performance_metrics("v1", "live", accuracy=0.25, model_name="tumour")
    samples = said(telemetry)
    assert samples.value("model_accuracy_score", **LIVE) == 0.25
    assert samples.value("model_f1_score", **LIVE) == 1.0


def test_a_candidate_is_compared(telemetry: Telemetry, model: Model):
    """Both models' answers to the same inputs are agreement, and with the truth a difference with its interval."""
    shadow = model.shadow(telemetry.model("tumour", "v2", type="classification"))
    shadow.record(["bad", "good", "bad", "bad"], ["bad", "bad", "bad", "good"], ["bad", "bad", "bad", "bad"])
    samples = said(telemetry)
    pair = {"baseline": "tumour:v1", "candidate": "tumour:v2"}
    assert samples.value("model_agreement_ratio", **pair) == 0.5
    assert samples.value("model_compared", known="truths", **pair) == 4.0
    assert samples.value("model_paired_difference", estimate="mean", difference="accuracy", **pair) == 0.0
    numbers = telemetry.model("price", "v1", type="regression").shadow(
        telemetry.model("price", "v2", type="regression")
    )
    numbers.record([1.0, 2.0], [2.0, 4.0])
    assert said(telemetry).value("model_prediction_difference", baseline="price:v1") == 1.5
    with pytest.raises(TypeError, match="other is 'v2', expected a Model"):
        model.shadow("v2")  # type: ignore[arg-type]


def test_what_happens_in_a_prediction(telemetry: Telemetry, model: Model):
    """Phases are timed, lookups counted, answers counted by class with how sure the model was."""
    for is_hit in (True, False, False):
        with model.prediction() as prediction:
            with prediction.phase("preprocess"), prediction.phase("inference"):
                prediction.values, prediction.scores = "good", 0.25
            prediction.cache_hit = is_hit
    samples = said(telemetry)
    for phase in ("preprocess", "inference"):
        assert samples.value("prediction_phase_duration_seconds_count", phase=phase) == 3.0
    assert samples.value("prediction_cache_total", result="hit") == 1.0
    assert samples.value("prediction_cache_total", result="miss") == 2.0
    assert samples.value("prediction_class_total", predicted_class="good") == 3.0
    assert samples.value("prediction_confidence_sum") == pytest.approx(2.25)


def test_one_absurd_truth_makes_no_later_error_look_small(telemetry: Telemetry, clock: Clock):
    """When it has left the window what it has swallowed the digits of is absent, and not 0; the next group has them."""
    model = telemetry.model("price", "v1", type="regression")
    telemetry.sample()
    model.record_truth(prediction=1e9, actual=100.0)
    samples = said(telemetry)
    assert samples.value("model_rmse_score", dataset="live") > 1e8
    for _ in range(14):
        clock.now_s += 7_300.0
        telemetry.sample()
    for turn in range(1_000):
        model.record_truth(prediction=100.0 + (-1) ** turn, actual=100.0)
    samples = said(telemetry)
    assert samples.value("model_performance_samples", dataset="live") == 1_000.0
    assert not {"model_rmse_score", "model_r2_score", "model_score_bound"} & samples.names()
    assert samples.value("model_mae_score", dataset="live") == pytest.approx(1.0, rel=1e-3)


def test_past_thirty_classes_there_is_the_accuracy_alone(telemetry: Telemetry, model: Model):
    """Of classes that are counted as one nothing is said one by one, nor in the mean."""
    for number in range(40):
        model.record_truth(prediction=str(number), actual=str(number if number % 2 else 0))
    samples = said(telemetry)
    assert samples.value("model_accuracy_score", **LIVE) == pytest.approx(21 / 40)
    assert (
        not {"model_f1_score", "model_precision_score", "model_recall_score", "model_matthews_score"} & samples.names()
    )


def test_pairs_of_classes_without_room_silence_the_accuracy(clock: Clock):
    """Where rare pairs, which are the errors, find no room, there is no accuracy rather than one that is too high."""
    with fresh_telemetry(clock=clock, max_series=4) as telemetry:
        model = telemetry.model("letters", "v1", type="classification")
        said_, true = [f"class {number % 10}" for number in range(1_000)], [f"class {n % 7}" for n in range(1_000)]
        model.record_truth(prediction=said_, actual=true)
        samples = said(telemetry)
        assert samples.value("model_performance_samples", model_name="letters") == 1_000.0
        assert not {"model_accuracy_score", "model_score_bound", "model_f1_score"} & samples.names()


@pytest.mark.parametrize(
    ("name", "size", "labels", "about"),
    [
        ("latency", 500, {}, ""),
        ("drift/1", 3, {}, Profile.fit({"a": [1.0, 2.0]}).reference()),
        ("quality/regression", 6, {"reference": "z"}, ""),
        ("quality/confusion", 1, {}, ""),
        ("comparison/answers", 5, {}, ""),
    ],
)
def test_cells_of_other_code_cost_nobody_else_a_score(
    telemetry: Telemetry, model: Model, name: str, size: int, labels: dict[str, str], about: str
):
    """What a worker of another version has counted otherwise is left out, and all else is told."""
    model.record_truth(prediction="bad", actual="bad")
    of = {"model_name": "other", "model_version": "9", **labels}
    telemetry.meter_provider.cells(name, size, of, about).add([(0, 5.0)])
    samples = said(telemetry)
    assert samples.value("model_accuracy_score", **LIVE) == 1.0
    assert samples.value("otel_mlops_source_up", source="models") == 1.0


def test_a_worker_that_cannot_be_read_is_not_taken_for_forgotten(
    telemetry: Telemetry, model: Model, monkeypatch: pytest.MonkeyPatch, clock: Clock
):
    """While something cannot be read the source is down, and the windows go on from what they knew."""
    model.record_truth(prediction="bad", actual="bad")
    said(telemetry)
    everyone = telemetry.meter_provider.everyone
    look = everyone._look

    def blind() -> bool:
        look()
        everyone._unread = OSError(24, "Too many open files")
        return True

    monkeypatch.setattr(everyone, "_look", blind)
    assert said(telemetry).value("otel_mlops_source_up", source="models") == 0.0
    monkeypatch.undo()
    clock.now_s += 90_000.0
    said(telemetry)
    model.record_truth(prediction="bad", actual="good")
    samples = said(telemetry)
    assert samples.value("model_accuracy_score", **LIVE) == 0.0, "the first has left the window"


def test_models_that_come_and_go_leave_nothing_behind(telemetry: Telemetry):
    """The cells of a profile go with the last model that has it, and so does their description."""
    for version in range(5):
        profile = Profile.fit({"a": [float(version + each) for each in range(20)]})
        model = telemetry.model("passing", f"v{version}", profile=profile)
        with model.prediction(features=[1.0]) as prediction:
            prediction.values = 1.0
        del model, prediction
        telemetry.forget(model_name="passing")
    gc.collect()  # what is held by nobody
    telemetry.model("staying", "v1", profile=Profile.fit({"a": [0.5]}))
    names = [each.name for each in telemetry.meter_provider._cells.streams]
    assert sum(name.startswith("drift/") for name in names) == 1


def test_an_answer_that_is_very_long_is_not_kept(telemetry: Telemetry, model: Model):
    """Of long answers no class is remembered: four hundred of them would be the memory of the worker."""
    with model.prediction() as prediction:
        prediction.values = ["x" * 1_000_000, "bad"]
    for values in ("y" * 1_000_000, "good"):
        with model.prediction() as prediction:
            prediction.values = values
    assert {len(str(each)) for each in model._truth._estimates._forms} <= {3, 4}
    assert said(telemetry).value("prediction_class_total", predicted_class="other") == 2.0


def test_one_bad_id_leaves_the_others_of_its_batch(telemetry: Telemetry, model: Model):
    """What is no id is dropped and counted by itself."""
    with model.prediction(id=["a", 10**5000, "c"]) as prediction:
        prediction.values = ["bad"] * 3
    assert [model.record_truth(id=each, actual="bad") for each in ("a", "c")] == ["matched", "matched"]


def test_scores_that_are_all_alike_have_no_auc(telemetry: Telemetry, model: Model):
    """Where the bins cannot tell them apart the area is absent; the losses are exact all the same."""
    for number in range(100):
        score = 0.5001 + number * 1e-6
        model.record_truth(prediction="bad", actual="bad" if number > 50 else "good", score=score)
    samples = said(telemetry)
    assert "model_auc_score" not in samples.names()
    assert samples.value("model_brier_score", **LIVE) == pytest.approx(0.25, abs=0.01)


def test_a_candidate_is_compared_by_the_classes_that_truth_goes_by(telemetry: Telemetry, model: Model):
    """1, 1.0 and True are one class to both models and to the truth."""
    shadow = model.shadow(telemetry.model("tumour", "v2", type="classification"))
    for number in range(10):
        shadow.record(1, 1.0 if number < 8 else 0, actual=True)
    samples = said(telemetry)
    assert samples.value("model_paired_difference", estimate="mean") == pytest.approx(-0.2)


def test_probabilities_are_no_classes(telemetry: Telemetry, model: Model):
    """A classifier whose values are probabilities has no class counted for them, each of which would be another."""
    for values in (0.73, [0.25, 0.5], 1):
        with model.prediction() as prediction:
            prediction.values = values
    samples = said(telemetry)
    assert samples.labels("prediction_class_total") == [
        {"model_name": "tumour", "model_version": "v1", "predicted_class": "1"}
    ]
    assert samples.value("predictions_total") == 4.0


async def test_a_phase_is_timed_in_asynchronous_code(telemetry: Telemetry, model: Model):
    """`async with` does as well, and a phase that raises is timed too."""
    with pytest.raises(ValueError, match="no row"):
        async with model.prediction() as prediction, prediction.phase("inference"):
            raise ValueError("no row")
    assert said(telemetry).value("prediction_phase_duration_seconds_count", phase="inference") == 1.0


@pytest.mark.parametrize("name", [None, 7, b"x", ["a"]])
def test_whatever_a_phase_is_called_nothing_raises(telemetry: Telemetry, model: Model, name: object):
    """A name that is no text is the name of its class."""
    with model.prediction() as prediction, prediction.phase(name):  # type: ignore[arg-type]
        prediction.values = "good"
    assert said(telemetry).value("prediction_phase_duration_seconds_count", phase=type(name).__name__) == 1.0


def test_phases_past_the_first_are_timed_all_the_same(telemetry: Telemetry, model: Model):
    """Handles are kept of the first fifty; the others are looked up, and capped as all series are."""
    with model.prediction() as prediction:
        for number in range(60):
            with prediction.phase(f"phase {number}"):
                pass
    assert said(telemetry).value("prediction_phase_duration_seconds_count") == 60.0


def test_a_key_in_the_settings_outlives_the_service(clock: Clock):
    """A receipt of before is read by a service that was started anew, with the same key; with another it is forged."""
    with fresh_telemetry(clock=clock, receipt_key="one key for both of them") as before:
        (receipt,) = receipts(before.model("tumour", "v1", type="binary"), 1)
    for key, result in (("one key for both of them", "matched"), ("and here is another one", "forged")):
        with fresh_telemetry(clock=clock, receipt_key=key) as after:
            model = after.model("tumour", "v1", type="binary")
            assert model.record_truth(receipt=receipt, actual="bad") == result


def test_what_waits_outlives_the_service_where_it_has_a_state_folder(tmp_path: Path, clock: Clock):
    """With a state folder of its own a service that was restarted knows its ids, its receipts and what was told."""
    named = {"state_dir": tmp_path, "group": "tumours", "clock": clock}
    with fresh_telemetry(**named) as before:
        model = before.model("tumour", "v1", type="binary")
        with model.prediction(id="7") as prediction:
            prediction.values = "bad"
        first, second = (*receipts(model, 1), *receipts(model, 1))
        assert model.record_truth(receipt=first, actual="bad") == "matched"
    with fresh_telemetry(**named) as after:
        model = after.model("tumour", "v1", type="binary")
        assert model.record_truth(id="7", actual="bad") == "matched"
        assert model.record_truth(receipt=second, actual="bad") == "matched"
        assert model.record_truth(receipt=first, actual="bad") == "duplicate"
    assert {path.stat().st_mode & 0o077 for path in tmp_path.rglob("*")} == {0}, "nobody else's affair"


def test_without_a_state_folder_nothing_is_left_behind(clock: Clock):
    """In shared memory what waits goes with the group: nobody would ever remove it."""
    with fresh_telemetry(clock=clock) as telemetry:
        telemetry.start()
        (receipt,) = receipts(telemetry.model("tumour", "v1", type="binary"), 1)
        assert telemetry.model("tumour", "v1", type="binary").record_truth(receipt=receipt, actual="bad") == "matched"
        path = telemetry.meter_provider.ledger.path
        assert path is not None
        assert {each.name for each in path.parent.iterdir()} >= {"receipt.key", "answers.sqlite"}
    assert not path.parent.exists()


def test_a_state_folder_that_cannot_be_used_is_no_fault(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    """Where what lasts cannot be kept, truths find their predictions as long as the group lives."""

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("otel_mlops.telemetry.lasting_folder", refuse)
    with fresh_telemetry(clock=clock, state_dir=tmp_path) as telemetry:
        model = telemetry.model("tumour", "v1", type="binary")
        (receipt,) = receipts(model, 1)
        assert model.record_truth(receipt=receipt, actual="bad") == "matched"
