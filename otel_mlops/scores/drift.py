"""Drift of models: the bins of features and predictions in the window against those of training."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from otel_mlops import metrics as rows
from otel_mlops.numbers.drift import (
    FLOOR,
    compared_bins,
    discoveries,
    drift_threshold,
    jensen_shannon,
    kolmogorov_smirnov,
    psi_p_value,
    stability_index,
)
from otel_mlops.profile.feature import PREDICTION
from otel_mlops.profile.reference import ReferenceFeature, read_reference, size_of
from otel_mlops.sources.watched import Sample

if TYPE_CHECKING:
    from otel_mlops.scores import Counted, Labels
    from otel_mlops.settings import Settings

_logger = logging.getLogger(__name__)

CELLS = "drift"
"""What the cells' names begin with; the profile's digest follows, and its reference is their description."""

ALPHA = 0.01
"""How often chance may lift the score of any of a model's features above its threshold, in one look."""
_FALSE_SHARE = ALPHA
"""How many of the features that count as drifted may be chance, in the mean."""


class _Judged(NamedTuple):
    feature: ReferenceFeature
    score: float
    threshold: float
    p_value: float
    rows: float


def samples(every: Iterable[Counted], settings: Settings) -> Iterator[Sample]:
    """The drift of each model that has a profile, and the counts behind it."""
    newest: dict[tuple[tuple[str, str], ...], Counted] = {}
    for each in every:
        # Of two profiles of one version, as while it is replaced, that which is in use.
        of = tuple(sorted(each.labels.items()))
        newest[of] = max(newest.get(of, each), each, key=lambda one: sum(one.window.cells))
    for each in newest.values():
        features = _features_of(each.about)
        if features and size_of(features) == len(each.totals):
            yield from _scores(each, features, settings.drift_samples)
            yield from _invalid(each, features)
            if settings.model_counts:
                yield from _bins(each, features)


def _scores(each: Counted, features: tuple[ReferenceFeature, ...], minimum: int) -> Iterator[Sample]:
    judged = []
    for feature in features:
        labels = {**each.labels, "feature": feature.name}
        actual = _of(feature, each.window.cells)
        n = sum(actual)
        yield Sample(rows.MODEL_DRIFT_WINDOW_SAMPLES, n, labels)
        found = _judge(feature, actual, n, ALPHA / len(features))
        if found is None:
            continue
        yield Sample(rows.MODEL_DRIFT_SCORE, found.score, labels)
        yield Sample(rows.MODEL_DRIFT_THRESHOLD, found.threshold, labels)
        for measure, distance in (
            ("jensen_shannon", jensen_shannon(feature.counts, actual)),
            ("kolmogorov_smirnov", kolmogorov_smirnov(feature.counts, actual, feature.apart)),
        ):
            if distance is not None:
                yield Sample(rows.MODEL_DRIFT_DISTANCE, distance, {**labels, "measure": measure})
        if n >= minimum:
            yield Sample(rows.MODEL_DRIFT_DETECTED, float(found.score > found.threshold), labels)
            judged.append(found)
    if judged:
        yield Sample(rows.MODEL_DRIFT_FEATURES, _drifted(judged), each.labels)


def _judge(feature: ReferenceFeature, actual: list[float], n: float, alpha: float) -> _Judged | None:
    """A feature's score, and what it is to be compared with; None where nothing was counted."""
    m, bins = sum(feature.counts), compared_bins(feature.counts, actual)
    score = stability_index(feature.counts, actual)
    threshold = drift_threshold(n, m, max(bins, 2), alpha, block=feature.block)
    p_value = None if score is None else psi_p_value(score, n, m, max(bins, 2))
    if score is None or threshold is None or p_value is None:
        return None
    return _Judged(feature, score, threshold, p_value, n)


def _drifted(judged: list[_Judged]) -> float:
    """How many of the model's own features have changed beyond chance, by enough to matter."""
    own = [each for each in judged if each.feature.name != PREDICTION]
    # Before it is counted, not after: a feature that moves within its habit is no discovery, and must not make room for
    # another that is chance.
    large = [each.score > max(FLOOR, each.feature.block or 0.0) for each in own]
    p_values = [each.p_value if is_large else 1.0 for each, is_large in zip(own, large, strict=True)]
    return float(sum(discoveries(p_values, _FALSE_SHARE)))


def _invalid(each: Counted, features: tuple[ReferenceFeature, ...]) -> Iterator[Sample]:
    for feature in features:
        if feature.name == PREDICTION:
            continue
        labels: Labels = {**each.labels, "feature": feature.name}
        last = feature.offset + len(feature.counts)
        yield Sample(rows.MODEL_FEATURE_MISSING, each.totals[last - 1], labels)
        for index, reason in enumerate(feature.reasons, start=last):
            yield Sample(rows.MODEL_FEATURE_INVALID, each.totals[index], {**labels, "reason": reason})


def _bins(each: Counted, features: tuple[ReferenceFeature, ...]) -> Iterator[Sample]:
    for feature in features:
        m = sum(feature.counts)
        yield Sample(rows.MODEL_REFERENCE_SAMPLES, m, {**each.labels, "feature": feature.name})
        for name, expected, count in zip(feature.bins, feature.counts, _of(feature, each.totals), strict=True):
            labels = {**each.labels, "feature": feature.name, "bin": name}
            yield Sample(rows.MODEL_FEATURE_BIN, count, labels)
            if m:
                yield Sample(rows.MODEL_REFERENCE_BIN_RATIO, expected / m, labels)


def _of(feature: ReferenceFeature, cells: list[float]) -> list[float]:
    """The bins of a feature."""
    return cells[feature.offset : feature.offset + len(feature.counts)]


@lru_cache(maxsize=64)
def _features_of(about: str) -> tuple[ReferenceFeature, ...]:
    try:
        return tuple(read_reference(about))
    except ValueError as error:  # of a worker that runs other code than this process
        _logger.warning("the drift of a model is not shown: %s", error)
        return ()
