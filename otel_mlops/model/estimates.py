"""Estimates: what a classifier's answers and their scores say before any truth has come."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from otel_mlops.metrics import PREDICTION_CLASS, PREDICTION_CONFIDENCE
from otel_mlops.model.answers import (
    PLAIN,
    Classes,
    Kind,
    Of,
    Positive,
    ScoresReader,
    is_numeric,
    label_of,
    labels_of,
    rows_of,
)
from otel_mlops.numbers.probability import SCORE_BOUNDS
from otel_mlops.profile.columns import has_a_name

if TYPE_CHECKING:
    from otel_mlops.profile import Profile
    from otel_mlops.sdk.provider import MeterProvider

MOST_CLASSES = 100
UNKNOWN_CLASS = "scores, and which class they are of is not known: give the model its positive class"
_MOST_FORMS = 400
"""How many values are known by which class they are: 1, 1.0 and "1" are three."""


class Estimates:
    """Counts the answers of a classifier by class, how sure it was of them, and how many of them are likely right."""

    def __init__(
        self,
        instruments: MeterProvider,
        labels: Mapping[str, str],
        kind: Kind | None,
        positive: Positive,
        scores: ScoresReader,
        profile: Profile | None,
        tell: Callable[[str], None],
    ) -> None:
        self._labels = labels
        self._kind = kind
        self._tell = tell
        self._positive = positive
        self._scores = scores
        self._classes = Classes(MOST_CLASSES)
        self._rows = instruments.instrument(PREDICTION_CLASS)
        self._confidence = instruments.instrument(PREDICTION_CONFIDENCE).bind(labels)
        self._estimate = instruments.cells("quality/estimate", 2, labels)
        self._forms: dict[Any, tuple[str, Any]] = {}
        self._bound: dict[str, Any] = {}
        self._calibration = None if profile is None else profile.calibration
        self._arrays: Any = None
        self._is_of_answers = profile is not None and profile.positive is None
        if profile is not None and profile.positive is not None and label_of(profile.positive) != positive.given:
            tell("a profile with another positive class, whose calibration says nothing of these scores")
            self._calibration = None

    def count(self, values: Any, scores: Any) -> None:
        """Count the answers of a call; of a model whose kind is not known, numbers without scores are no classes.

        Errors:  ValueError for scores that are not as many as the answers; whatever the objects' own methods raise.
        """
        if self._kind != "classification" and (self._kind is not None or (scores is None and is_numeric(values))):
            return
        # An exact type: of any other, what is equal need not be the same class.
        if type(values) in PLAIN:
            found = self._forms.get(values) or self._form_of(values)
            if found is not None:
                label, rows = found
                rows.add(1.0)
                if type(scores) is float and 0.0 <= scores <= 1.0 and self._positive(label) is not None:
                    self._add(scores, "positive", label)  # as it would be read, and most are
                elif scores is not None:
                    read = self._scores.read(scores, label)
                    if read is not None:
                        self._add(*read, label)
        elif values is not None:
            answers = rows_of(values)
            if answers is None:
                self._count_rows([values], None if scores is None else [scores])
            else:
                self._count_rows(answers, None if scores is None else rows_of(scores))

    def _count_rows(self, answers: Any, scores: Any) -> None:
        if self._kind is None and scores is None and len(answers) and is_numeric(answers[0]):
            return
        labels = labels_of(answers)
        distinct = Counter(labels)
        for label, n in distinct.items():
            if label is not None:
                self._rows_of(label).add(float(n))
        if scores is not None:
            p, of = self._scores.read_rows(scores, labels)
            if of == "unknown" or isinstance(p, list):
                for each, label in zip(p, labels, strict=True):
                    if label is not None and each >= 0.0:  # NaN is none
                        self._add(each, of, label)
            else:
                sides = {label: label and (of == "answer" or self._positive(label)) for label in distinct}
                self._add_arrays(p, of, [sides[label] for label in labels])

    def _form_of(self, value: Any) -> tuple[str, Any] | None:
        """The class of an answer and the series in which it counts."""
        label = label_of(value)
        if label is None:
            return None
        found = label, self._rows_of(label)
        if len(self._forms) < _MOST_FORMS and has_a_name(label):
            self._forms[value] = found
        return found

    def _rows_of(self, label: str) -> Any:
        shown = self._classes(label)
        found = self._bound.get(shown)
        if found is None:
            found = self._bound[shown] = self._rows.bind({**self._labels, "predicted_class": shown})
        return found

    def _add(self, p: float, of: Of, label: str) -> None:
        """Add how sure the model was of an answer, and how likely that is right."""
        if of == "unknown":
            self._tell(UNKNOWN_CLASS)
            return
        said_positive = of == "answer" or self._positive(label)
        own = p if said_positive else 1.0 - p
        self._confidence.record(own)
        if self._calibration is None:
            return
        if self._is_of_answers:
            self._estimate.record(0, self._calibration[bisect_left(SCORE_BOUNDS, own)])
        elif of == "positive":
            q = self._calibration[bisect_left(SCORE_BOUNDS, p)]
            self._estimate.record(0, q if said_positive else 1.0 - q)

    def _add_arrays(self, p: Any, of: Of, sides: Sequence[Any]) -> None:
        """Add many probabilities: True where that of the answer is p, False where it is the rest, None for none."""
        import numpy as np

        known = np.array([side is not None for side in sides]) & (p >= 0.0)
        p, said_positive = p[known], np.array(sides, dtype=bool)[known]
        own = np.where(said_positive, p, 1.0 - p)
        self._confidence.record_many(own)
        if self._calibration is None or not len(p) or (not self._is_of_answers and of != "positive"):
            return
        if self._arrays is None:
            self._arrays = np.array(SCORE_BOUNDS), np.array(self._calibration)
        bounds, calibration = self._arrays
        right = calibration[np.searchsorted(bounds, own if self._is_of_answers else p, side="left")]
        if not self._is_of_answers:
            right = np.where(said_positive, right, 1.0 - right)
        self._estimate.add([(0, float(len(p))), (1, float(right.sum()))])
