"""Quality on data: what the page says of late truths is what scikit-learn says of the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from otel_mlops.profile import Profile
from tests.monitoring.replay import Replay, cut, of, replaying, table

HOUSING = ("MedInc", "HouseAge", "AveRooms", "AveOccup")
MONTH = 720
"""Of hours: a row of the houses is an hour."""

DAY_S, LOOK_S = 86_400.0, 900.0


def test_the_accuracy_of_the_houses_falls_as_scikit_learn_says():
    """Month by month each score is that of scikit-learn, and what comes with the fall of accuracy is drift."""
    reference, analysis = table("california_reference"), table("california_analysis")
    profile = Profile.fit(
        of(reference, *HOUSING), reference["y_pred"], reference["clf_target"], reference["y_pred_proba"],
        type="classification",
    )  # fmt: skip
    accuracies, drifted = [], []
    with replaying(profile, window_s=3_600.0 * MONTH, facts={"type": "classification"}) as replay:
        for begin in range(0, len(analysis["y_pred"]) - MONTH + 1, MONTH):
            rows = cut(analysis, slice(begin, begin + MONTH))
            truth, answers, scores = rows["clf_target"], rows["y_pred"], rows["y_pred_proba"]
            replay.serve(of(rows, *HOUSING), answers, scores)
            assert replay.model.record_truth(actual=truth, prediction=answers, scores=scores) == "matched"
            replay.wait(3_600.0 * MONTH)
            replay.look()
            expected = scores_of(truth, answers, scores)
            for name, value in expected.items():
                shown = [*replay.each(f"model_{name}_score", by="dataset").values()]
                assert shown == [pytest.approx(value, abs=1e-9)] * (not np.isnan(value)), name
            assert replay.value("model_performance_samples") == MONTH
            # Of probabilities in 100 bins, where scikit-learn has each by itself.
            assert replay.value("model_auc_score") == pytest.approx(sk.roc_auc_score(truth, scores), abs=2e-3)
            lower, upper = [
                replay.value("model_score_bound", 'score="accuracy"', f'bound="{bound}"')
                for bound in ("lower", "upper")
            ]
            assert lower < expected["accuracy"] < upper < lower + 0.08
            accuracies.append(expected["accuracy"])
            drifted.append("MedInc" in replay.drifted())
    assert [accuracies[0], min(accuracies)] == pytest.approx([0.847, 0.290], abs=1e-3)
    assert (len(drifted), sum(drifted)) == (11, 9)


def scores_of(truth: Any, answers: Any, scores: Any) -> dict[str, float]:
    """The scores by scikit-learn; NaN where there is none."""
    undefined: dict[str, Any] = {"zero_division": np.nan}
    # Where all answers are the same, scikit-learn says 0 and the page nothing.
    matthews = sk.matthews_corrcoef(truth, answers) if len({*answers}) > 1 else np.nan
    return {
        "accuracy": sk.accuracy_score(truth, answers),
        "precision": sk.precision_score(truth, answers, **undefined),
        "recall": sk.recall_score(truth, answers, **undefined),
        "f1": sk.f1_score(truth, answers, **undefined),
        "matthews": matthews,
        "brier": sk.brier_score_loss(truth, scores),
    }


@pytest.mark.stress
def test_the_errors_of_flights_that_land_hours_later_are_scikit_learns():
    """Of predictions at departure, half told by receipt and half by id, errors, delay and coverage are right."""
    flights = table("arrivals")
    leaves_s = 60.0 * flights["minute"]
    lands_s = leaves_s + 60.0 * flights["took"]
    lands = ~np.isnan(lands_s)
    predicted = np.nan_to_num(flights["dep_delay"]) - 4.0
    with replaying(None, window_s=DAY_S, facts={"type": "regression"}) as replay:
        coverages = []
        for now_s in fly(replay, leaves_s, lands_s, predicted, flights["arr_delay"]):
            if now_s not in (30 * 3_600.0, 38 * 3_600.0, 54 * 3_600.0):
                continue  # where the window is a day to the second
            landed = lands & (lands_s > now_s - DAY_S) & (lands_s <= now_s)
            truth, answers = flights["arr_delay"][landed], predicted[landed]
            assert replay.value("model_performance_samples") == landed.sum() > 500
            for name, error in (
                ("rmse", sk.root_mean_squared_error(truth, answers)),
                ("mae", sk.mean_absolute_error(truth, answers)),
                ("r2", sk.r2_score(truth, answers)),
                ("bias", (answers - truth).mean()),
            ):
                assert replay.value(f"model_{name}_score") == pytest.approx(error, abs=1e-9), name
            delay_s = (lands_s - leaves_s)[landed].mean()
            asked = (leaves_s > now_s - DAY_S - delay_s) & (leaves_s <= now_s - delay_s)
            if now_s < 38 * 3_600.0:
                assert not replay.each("ground_truth_coverage_ratio", by="model_version"), "a day is not known yet"
                continue
            coverages.append(replay.value("ground_truth_coverage_ratio"))
            assert coverages[-1] == pytest.approx(landed.sum() / asked.sum(), abs=0.01)
        # On the second day, with storms, one in eight is cancelled.
        assert coverages == pytest.approx([0.97, 0.87], abs=0.01)
        assert replay.each("ground_truth_total", by="result")["matched"] == lands.sum()
        whole_s = replay.value("ground_truth_delay_seconds_sum")
        assert whole_s == pytest.approx((lands_s - leaves_s)[lands].sum(), abs=1.0)
        assert np.median((lands_s - leaves_s)[lands]) == 163.0 * 60.0
        bounds = replay.each("ground_truth_delay_seconds_bucket", by="le")
        assert bounds["7200.0"] < lands.sum() / 2.0 < bounds["14400.0"]


def fly(replay: Replay, leaves_s: Any, lands_s: Any, predicted: Any, actual: Any) -> Any:
    """Predict each flight as it leaves, tell the truth when it lands, and look every quarter of an hour."""
    end_s = np.nanmax(lands_s) + LOOK_S
    events = [(at_s, "leaves", row) for row, at_s in enumerate(leaves_s)]
    events += [(at_s, "lands", row) for row, at_s in enumerate(lands_s) if not np.isnan(at_s)]
    events += [(at_s, "look", 0) for at_s in np.arange(LOOK_S, end_s, LOOK_S)]
    waiting: dict[int, dict[str, str]] = {}
    now_s = 0.0
    for at_s, what, row in sorted(events):
        replay.wait(at_s - now_s)
        now_s = at_s
        if what == "leaves":
            named = {"id": f"flight {row}"} if row % 2 else {}
            made = replay.serve(None, predicted[row], **named)
            waiting[row] = named or {"receipt": made.receipt}
        elif what == "lands":
            assert replay.model.record_truth(actual=actual[row], **waiting.pop(row)) == "matched"
        else:
            replay.look()
            yield now_s
