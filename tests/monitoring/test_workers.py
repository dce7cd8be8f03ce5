"""Scores over several workers: those of one that had all the traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from otel_mlops.model import Model
from otel_mlops.model.ways import Ways
from otel_mlops.profile import Profile
from otel_mlops.scores import Scores
from otel_mlops.settings import Settings
from tests.monitoring.replay import BEGAN_S, cut, of, table
from tests.sdk.workers import Worker, state_folder

HOUSING = ("MedInc", "HouseAge", "AveRooms", "AveOccup")


def told(state: Path, number: int) -> tuple[Any, Any]:
    """The cells of a group of workers that share the traffic out, and the scores of them, of which one dies."""
    reference, analysis = table("california_reference"), table("california_analysis")
    profile = Profile.fit(
        of(reference, *HOUSING), reference["y_pred"], reference["clf_target"], reference["y_pred_proba"],
        type="classification", positive=1,
    )  # fmt: skip
    clock = [BEGAN_S]
    workers = [Worker(state) for _ in range(number)]
    models = [
        Model(
            worker.provider, name="housing", version="1", type="classification", profile=profile,
            ways=Ways(worker.provider, clock=lambda: clock[0]),
        )
        for worker in workers
    ]  # fmt: skip
    leader = workers[-1]
    settings = Settings(service_name="test", model_counts=True)
    scores = Scores(leader.provider, leader.group, settings, clock=lambda: clock[0])
    scores()
    for turn, begin in enumerate(range(0, 1_000, 20)):
        rows = cut(analysis, slice(begin, begin + 20))
        model = models[turn % number]
        with model.prediction(features=of(rows, *HOUSING)) as prediction:
            prediction.values, prediction.scores = rows["y_pred"], rows["y_pred_proba"]
        model.record_truth(actual=rows["clf_target"], prediction=rows["y_pred"], scores=rows["y_pred_proba"])
    if number > 1:
        workers[0].die()
    clock[0] += 600.0
    # How long a call takes is no matter of who answered it.
    cells = {
        (name, *sorted(labels.items())): each
        for name, _, labels, each in leader.everyone.cells()
        if not name.startswith("latency")
    }
    samples = {
        (sample.metric.name, *sorted(sample.attributes.items())): sample.value
        for sample in scores()
        if "latency" not in sample.metric.name
    }
    for worker in workers[number > 1 :]:
        worker.leave()
    return cells, samples


SUMS = {
    "quality/estimate", "quality/scores",
    "model.brier.score", "model.log.loss.score", "model.estimated.accuracy.score",
}  # fmt: skip
"""What is made of sums, which round; all else is made of counts."""


def test_four_workers_have_the_scores_of_one():
    """What four workers have counted, one of which was killed, scores as one's: exactly, and sums to 1e-12."""
    with state_folder() as one, state_folder() as four:
        of_one, of_four = told(one, 1), told(four, 4)
    for one_has, four_have in zip(of_one, of_four, strict=True):
        assert four_have.keys() == one_has.keys()
        for key, value in four_have.items():
            assert value == (pytest.approx(one_has[key], rel=1e-12) if key[0] in SUMS else one_has[key]), key
    names = {name for part in of_four for name, *_ in part}
    assert names >= SUMS | {"model.drift.score", "model.accuracy.score", "model.auc.score", "model.feature.bin"}
