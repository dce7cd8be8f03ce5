"""Quality of models: what the truths in the window say of the answers, how sure that is, and how many are known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from math import fsum, isfinite
from typing import TYPE_CHECKING

from otel_mlops import metrics as rows
from otel_mlops.numbers.chance import Interval, mean_interval, wilson
from otel_mlops.numbers.pairs import has_digits
from otel_mlops.numbers.probability import BINS, auc, auc_error, calibration_error
from otel_mlops.numbers.quality import (
    MOST_CLASSES,
    PAST,
    Residuals,
    accuracy,
    bias,
    class_rates,
    matthews,
    mean_absolute_error,
    mean_rates,
    merge,
    r2,
    root_mean_squared_error,
)
from otel_mlops.sources.watched import Sample

if TYPE_CHECKING:
    from otel_mlops.metrics import Metric
    from otel_mlops.scores import Counted, Labels
    from otel_mlops.settings import Settings

CELLS = "quality"
"""What the cells' names begin with."""
_REGRESSION, _CONFUSION, _SCORES = "quality/regression", "quality/confusion", "quality/scores"
_CLASSIFIED, _ASKED, _MATCHED, _ESTIMATE = (
    f"quality/{each}" for each in ("classified", "asked", "matched", "estimate")
)
_SIZES = {_REGRESSION: 6, _CONFUSION: 1, _CLASSIFIED: 1, _SCORES: 2 * BINS + 2, _ASKED: 1, _MATCHED: 2, _ESTIMATE: 2}
"""Cells of another size are of a worker that runs other code than this process."""

_MOST_AUC_ERROR = 0.02
"""Half the share of pairs in the same bin, past which the area under the curve is not told. It is off by less, as a
rule by a tenth of that."""

SIGNED: dict[str, Collection[int]] = {
    _REGRESSION: frozenset({Residuals._fields.index("e"), Residuals._fields.index("d")})
}
"""By the cells' name, the indices of those that may go down."""


def samples(every: Iterable[Counted], settings: Settings) -> Iterator[Sample]:
    """The scores of each model, from the truths in the window; absent where none of them tells."""
    models: defaultdict[tuple[str, str], defaultdict[str, list[Counted]]] = defaultdict(lambda: defaultdict(list))
    for each in every:
        name, version = each.labels.get("model_name"), each.labels.get("model_version")
        sums = [*each.totals, *each.window.cells]
        known = _SIZES.get(each.name) == len(each.totals) and _is_number(each.labels.get("reference", "0"))
        known &= each.name != _CONFUSION or {"actual", "predicted"} <= each.labels.keys()
        if known and name and version and all(map(isfinite, sums)):
            models[name, version][each.name].append(each)
    for (name, version), parts in models.items():
        labels = {"model_name": name, "model_version": version}
        yield from _of_model(parts, labels, settings)
        if settings.model_counts:
            yield from _counts(parts, labels)


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def _of_model(parts: defaultdict[str, list[Counted]], labels: Labels, settings: Settings) -> Iterator[Sample]:
    live = {**labels, "dataset": "live"}
    truths = [*parts[_CLASSIFIED], *parts[_REGRESSION]]
    if truths:
        yield Sample(rows.MODEL_PERFORMANCE_SAMPLES, sum([each.window.cells[0] for each in truths]), live)
    if parts[_CONFUSION] and _is_whole(parts[_CONFUSION], parts[_CLASSIFIED]):
        yield from _classification(parts[_CONFUSION], live)
    if parts[_REGRESSION]:
        yield from _regression(parts[_REGRESSION], live)
    if parts[_SCORES]:
        yield from _probabilities(parts[_SCORES], live)
    for each in parts[_ESTIMATE]:
        n, right = each.window.cells
        if n > 0.0:
            yield Sample(rows.MODEL_ESTIMATED_ACCURACY, min(right / n, 1.0), labels)
    if parts[_ASKED] and parts[_MATCHED]:
        yield from _coverage(parts[_ASKED][0], parts[_MATCHED][0], labels, settings.quality_window)


def _is_whole(pairs: list[Counted], classified: list[Counted]) -> bool:
    """Whether no pair lacks for want of room: it is the rare ones that come last, and those are the errors."""
    n = sum([each.window.cells[0] for each in classified])
    # Some were just being counted when they were read.
    return n - sum([each.window.cells[0] for each in pairs]) <= 10.0 + 0.001 * n and bool(classified)


def _classification(pairs: list[Counted], live: Labels) -> Iterator[Sample]:
    """The scores of a classifier."""
    confusion = _confusion_of(pairs)
    right, n = sum([row[k] for k, row in enumerate(confusion)]), sum(map(sum, confusion))
    sides: defaultdict[str, float] = defaultdict(float)
    for each in pairs:
        sides[each.labels.get("positive", "")] += each.window.cells[0]
    if len(confusion) > MOST_CLASSES or any(each.labels["predicted"] == PAST for each in pairs):
        # The classes past the bound are one: of them nothing can be said one by one, nor in the mean.
        yield from _known(live, (rows.MODEL_ACCURACY, accuracy(confusion)))
        yield from _bounds("accuracy", wilson(right, n), live)
        return
    if sides[""]:
        rates = mean_rates(confusion, "macro")
    else:  # for all that is in the window it is known which is the positive class
        of_two = [[sides["neither"], sides["predicted"]], [sides["actual"], sides["both"]]]
        rates = class_rates(of_two)[1]
    yield from _known(
        live,
        (rows.MODEL_ACCURACY, accuracy(confusion)),
        (rows.MODEL_PRECISION, rates.precision),
        (rows.MODEL_RECALL, rates.recall),
        (rows.MODEL_F1, rates.f1),
        (rows.MODEL_MATTHEWS, matthews(confusion)),
    )
    yield from _bounds("accuracy", wilson(right, n), live)


def _confusion_of(pairs: list[Counted]) -> list[list[float]]:
    """How often each class was taken for each in the window; those that were not in it are left out."""
    seen = [each for each in pairs if each.window.cells[0]]
    classes = sorted({each.labels[side] for each in seen for side in ("actual", "predicted")})
    places = {label: place for place, label in enumerate(classes)}
    confusion = [[0.0] * len(classes) for _ in classes]
    for each in seen:
        confusion[places[each.labels["actual"]]][places[each.labels["predicted"]]] += each.window.cells[0]
    return confusion


def _regression(parts: list[Counted], live: Labels) -> Iterator[Sample]:
    """The scores of a regression."""
    every = [Residuals._make([*each.window.cells, float(each.labels["reference"])]) for each in parts]
    every = [each for each in every if each.n > 0.0]
    before = Residuals._make([*map(fsum, zip(*[each.totals for each in parts], strict=True)), 0.0])
    # One alone is left about its reference: about the mean of its truths, r2 could not tell that they do not vary.
    sums = every[0] if len(every) == 1 else merge(every)
    # What a single absurd error has added to the totals may have swallowed the digits of all that came after it. Where
    # every error is 0 nothing was to be swallowed.
    squares = sums.e2 == before.e2 or has_digits(sums.e2, before.e2, sums.n)
    errors = sums.abs_e == before.abs_e or has_digits(sums.abs_e, before.abs_e, sums.n)
    spread = sums.d2 == before.d2 or has_digits(sums.d2, before.d2, sums.n)
    if squares:
        yield from _known(live, (rows.MODEL_RMSE, root_mean_squared_error(sums)))
        if spread:
            yield from _known(live, (rows.MODEL_R2, r2(sums)))
    if errors:
        yield from _known(live, (rows.MODEL_MAE, mean_absolute_error(sums)), (rows.MODEL_BIAS, bias(sums)))
    if squares and errors:
        yield from _bounds("bias", mean_interval(sums.n, sums.e, sums.e2), live)
        interval = mean_interval(sums.n, sums.abs_e, sums.e2)
        yield from _bounds("mae", interval and Interval(max(0.0, interval.lower), interval.upper), live)


def _probabilities(parts: list[Counted], live: Labels) -> Iterator[Sample]:
    """What the scores are worth: those of the positive class, or of the answers, of which there are more."""
    cells = max([each.window.cells for each in parts], key=lambda cells: fsum(cells[: 2 * BINS]))
    positives, negatives, (brier, log) = cells[:BINS], cells[BINS : 2 * BINS], cells[2 * BINS :]
    n = fsum(positives) + fsum(negatives)
    if n > 0.0:
        yield from _known(
            live,
            (rows.MODEL_AUC, auc(positives, negatives) if _tells_apart(positives, negatives) else None),
            (rows.MODEL_BRIER, brier / n),
            (rows.MODEL_LOG_LOSS, log / n),
            (rows.MODEL_CALIBRATION_ERROR, calibration_error(positives, negatives)),
        )


def _tells_apart(positives: list[float], negatives: list[float]) -> bool:
    """Whether the bins are fine enough for the scores: few pairs of a positive and a negative share one."""
    error = auc_error(positives, negatives)
    return error is not None and error <= _MOST_AUC_ERROR


def _coverage(asked: Counted, matched: Counted, labels: Labels, length_s: float) -> Iterator[Sample]:
    """The share of predictions whose truth has come, of those made so long ago as truths take in the mean.

    Truths that come sooner than that are of predictions that were made after those: where there are ever more of
    them, there may be more truths than such predictions, and no share is above 1. Truths that take longer than the
    window are of predictions of which no count is kept.

    Absent when: no truth has come yet, nothing was predicted so long ago, truths take longer than the window, or less
        is known of the predictions than a whole window that ended so long ago: at first only the quick truths have
        come, and the share of them would be too low.
    """
    now = matched.lagged(0.0)  # without what was counted before the first look, as is the other
    n, delays_s = matched.totals if now is None or not now.cells[0] > 0.0 else now.cells
    if now is None or not n > 0.0 or not delays_s / n <= length_s:
        return
    before = asked.lagged(delays_s / n)
    if before is not None and before.seconds >= 0.999 * length_s and before.cells[0] > 0.0:
        yield Sample(rows.GROUND_TRUTH_COVERAGE, min(now.cells[0] / before.cells[0], 1.0), labels)


def _counts(parts: defaultdict[str, list[Counted]], labels: Labels) -> Iterator[Sample]:
    """The counts behind the scores, from which PromQL works out those of a fleet."""
    pairs: defaultdict[tuple[str, str], float] = defaultdict(float)
    for each in parts[_CONFUSION]:
        pairs[each.labels["actual"], each.labels["predicted"]] += each.totals[0]
    for (actual, predicted), count in pairs.items():
        yield Sample(rows.MODEL_CONFUSION, count, {**labels, "actual": actual, "predicted": predicted})
    if parts[_REGRESSION]:
        n, _, e2, abs_e, _, _ = map(fsum, zip(*[each.totals for each in parts[_REGRESSION]], strict=True))
        yield Sample(rows.MODEL_TRUTHS, n, labels)
        yield Sample(rows.MODEL_ERROR_ABSOLUTE, abs_e, labels)
        yield Sample(rows.MODEL_ERROR_SQUARED, e2, labels)


def _known(labels: Labels, *scores: tuple[Metric, float | None]) -> Iterator[Sample]:
    """A sample of each score that there is."""
    for row, score in scores:
        if score is not None and isfinite(score):
            yield Sample(row, score, labels)


def _bounds(score: str, interval: Interval | None, labels: Labels) -> Iterator[Sample]:
    if interval is not None and all(map(isfinite, interval)):
        for bound, value in zip(Interval._fields, interval, strict=True):
            yield Sample(rows.MODEL_SCORE_BOUND, value, {**labels, "score": score, "bound": bound})
