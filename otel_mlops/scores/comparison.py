"""Comparisons of models: how a candidate's answers differ from a baseline's, and which of the two is better."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from otel_mlops import metrics as rows
from otel_mlops.numbers import pairs
from otel_mlops.sources.watched import Sample

if TYPE_CHECKING:
    from otel_mlops.scores import Counted, Labels

ANSWERS, TRUTHS = "comparison/answers", "comparison/truths"
"""The names of the cells; `numbers.pairs` says what each of them counts."""

SIGNED: Mapping[str, Collection[int]] = {TRUTHS: pairs.SIGNED_TRUTHS}
"""The cells that may also become less, by name."""


def samples(every: Iterable[Counted]) -> Iterator[Sample]:
    """Agreement, difference and paired difference of each two models, absent where nothing was compared."""
    for each in every:
        labels = _pair_of(each.labels)
        size = {ANSWERS: pairs.ANSWERS, TRUTHS: pairs.TRUTHS}.get(each.name)
        # Of another size are the cells of a worker that runs other code than this process.
        if labels is not None and len(each.totals) == size:
            yield from (_answers if each.name == ANSWERS else _truths)(each, labels)


def _answers(each: Counted, labels: Labels) -> Iterator[Sample]:
    cells = each.window.cells
    yield Sample(rows.MODEL_COMPARED, cells[0] + cells[2], {**labels, "known": "answers"})
    for row, value in (
        (rows.MODEL_AGREEMENT, pairs.agreement(cells)),
        (rows.MODEL_PREDICTION_DIFFERENCE, pairs.mean_difference(cells, each.totals)),
    ):
        if value is not None:
            yield Sample(row, value, labels)


def _truths(each: Counted, labels: Labels) -> Iterator[Sample]:
    cells = each.window.cells
    yield Sample(rows.MODEL_COMPARED, sum(cells[:5]), {**labels, "known": "truths"})
    if accuracy := pairs.accuracy_difference(cells):
        yield from _estimates("accuracy", accuracy.difference, (accuracy.lower, accuracy.upper), labels)
    if error := pairs.error_difference(cells, each.totals):
        yield from _estimates("absolute_error", error.mean, error.interval or (), labels)


def _estimates(difference: str, mean: float, interval: Collection[float], labels: Labels) -> Iterator[Sample]:
    for estimate, value in zip(("mean", "lower", "upper"), (mean, *interval), strict=False):
        yield Sample(rows.MODEL_PAIRED_DIFFERENCE, value, {**labels, "difference": difference, "estimate": estimate})


def _pair_of(labels: Labels) -> Labels | None:
    """The names of both models; None of the series that takes what there is no room for."""
    if not {"model_name", "model_version", "candidate"} <= labels.keys():
        return None
    return {"baseline": f"{labels['model_name']}:{labels['model_version']}", "candidate": labels["candidate"]}
