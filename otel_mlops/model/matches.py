"""Matches: answers and their truths, added to the cells that scores are worked out from."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from otel_mlops.model.answers import (
    Classes,
    Kind,
    Of,
    Positive,
    ScoresReader,
    is_numeric,
    label_of,
    labels_of,
    number_of,
    numbers_of_rows,
)
from otel_mlops.model.estimates import UNKNOWN_CLASS
from otel_mlops.numbers.probability import BINS, SCORE_BOUNDS, brier_loss, log_loss
from otel_mlops.numbers.quality import MOST_CLASSES, PAST, residuals

if TYPE_CHECKING:
    from otel_mlops.sdk.provider import MeterProvider

LARGEST_ERROR = 1e150
"""The square of a larger one, a few times, would be infinite."""
_SIDES = {(True, True): "both", (True, False): "actual", (False, True): "predicted", (False, False): "neither"}


class Matches:
    """Adds answers and their truths to the cells of one model."""

    def __init__(
        self,
        instruments: MeterProvider,
        labels: Mapping[str, str],
        kind: Kind | None,
        positive: Positive,
        scores: ScoresReader,
        reference: float,
        tell: Callable[[str], None],
    ) -> None:
        self._instruments = instruments
        self._labels = labels
        self._kind = kind
        self._positive = positive
        self._scores = scores
        self._reference = reference
        self._tell = tell
        self._classes = Classes(MOST_CLASSES)
        # About another reference the sums are others: they have cells of their own.
        self._residuals = instruments.cells("quality/regression", 6, {**labels, "reference": repr(reference)})
        # How many there are in all: where there is no room for some of the pairs, whoever leads knows that they lack.
        self._classified = instruments.cells("quality/classified", 1, labels)
        self._pairs: dict[tuple[str, str, str], Any] = {}
        self._probabilities: dict[Of, Any] = {}

    def _kind_of(self, said: Any, true: Any, has_scores: bool) -> Kind | None:
        if self._kind is not None:
            return self._kind
        if has_scores:
            return "classification"
        if is_numeric(said) is is_numeric(true):
            return "regression" if is_numeric(said) else "classification"
        self._tell("numbers whose truth is a label, or labels whose truth is a number: give the model its type")
        return None

    def can_add(self, said: Any, true: Any, score: Any) -> bool:
        """Say whether an answer and a truth go together."""
        kind = self._kind_of(said, true, score is not None)
        if kind == "regression":
            return self._residuals_of(said, true) is not None
        return kind is not None and label_of(said) is not None and label_of(true) is not None

    def add(self, said: Any, true: Any, score: Any) -> bool:
        """Add an answer and its truth; False if they do not go together."""
        kind = self._kind_of(said, true, score is not None)
        if kind is None:
            return False
        if kind == "regression":
            sums = self._residuals_of(said, true)
            if sums is not None:
                self._residuals.add(enumerate(sums))
            return sums is not None
        answer, truth = label_of(said), label_of(true)
        if answer is None or truth is None:
            return False
        found = self._scores.read(score, answer)
        self._pair(truth, answer).count((0,))
        self._classified.count((0,))
        if found is not None:
            self._add_scores([found.p], found.of, [answer], [truth])
        return True

    def _residuals_of(self, said: Any, true: Any) -> Sequence[float] | None:
        """What a number and its truth add to the sums; None where they are too far apart for any."""
        predicted, actual = number_of(said), number_of(true)
        if predicted is None or actual is None:
            return None
        e, d = predicted - actual, actual - self._reference
        if not (abs(e) <= LARGEST_ERROR and abs(d) <= LARGEST_ERROR):
            return None
        return residuals(predicted, actual, self._reference)[:6]

    def add_rows(self, said: Any, true: Any, scores: Any) -> int:
        """Add as many answers, truths and scores, if there are any, and return how many of them go together."""
        if self._kind == "regression":
            return self._add_numbers(numbers_of_rows(said), numbers_of_rows(true))
        if self._kind == "classification":
            return self._add_labels(labels_of(said), labels_of(true), scores)
        each = zip(said, true, [None] * len(said) if scores is None else scores, strict=True)
        return sum([self.add(*row) for row in each])

    def _add_numbers(self, predicted: Any, actual: Any) -> int:
        if isinstance(predicted, list) or isinstance(actual, list):
            found = [self._residuals_of(*pair) for pair in zip(predicted, actual, strict=True)]
            sums: Sequence[float] = [
                sum(column) for column in zip(*[each for each in found if each is not None], strict=True)
            ]
        else:
            sums = self._sums_of_arrays(predicted, actual)
        if not sums or not sums[0]:
            return 0
        self._residuals.add(enumerate(map(float, sums)))
        return int(sums[0])

    def _sums_of_arrays(self, predicted: Any, actual: Any) -> Sequence[float]:
        from otel_mlops.profile.vectors import residual_sums

        numpy = sys.modules["numpy"]
        with numpy.errstate(over="ignore", invalid="ignore"):
            small = abs(predicted - actual) <= LARGEST_ERROR
            small &= abs(actual - self._reference) <= LARGEST_ERROR
        return residual_sums(predicted[small], actual[small], self._reference)[:6]

    def _add_labels(self, said: list[str | None], true: list[str | None], scores: Any) -> int:
        found = None if scores is None else self._scores.read_rows(scores, said)
        good = 0
        for (truth, answer), n in Counter(zip(true, said, strict=True)).items():
            if truth is not None and answer is not None:
                self._pair(truth, answer).add([(0, float(n))])
                good += n
        self._classified.add([(0, float(good))])
        if found is not None:
            self._add_scores(*found, said, true)
        return good

    def _pair(self, truth: str, answer: str) -> Any:
        """The cells of a truth and an answer, and which of both is the positive class, where that is known."""
        actual, predicted = self._classes(truth), self._classes(answer)
        if actual == predicted and truth != answer:
            predicted = PAST  # they are past the bound, and no hit
        sides = self._positive(truth), self._positive(answer)
        which = "" if None in sides else _SIDES[sides]  # type: ignore[index]
        key = actual, predicted, which
        found = self._pairs.get(key)
        if found is None:
            labels = {**self._labels, "actual": actual, "predicted": predicted}
            found = self._instruments.cells("quality/confusion", 1, {**labels, "positive": which} if which else labels)
            self._pairs[key] = found
        return found

    def _add_scores(self, p: Any, of: Of, said: Sequence[str | None], true: Sequence[str | None]) -> None:
        """Add what probabilities were worth: which were of what turned out so, and by how much they were off."""
        if of == "unknown":
            if any(each >= 0.0 for each in p):
                self._tell(UNKNOWN_CLASS)
            return
        bins: Counter[int] = Counter()
        brier = log = 0.0
        for each, answer, truth in zip(p, said, true, strict=True):
            if not each >= 0.0 or answer is None or truth is None:  # NaN is none
                continue
            came_true = answer == truth if of == "answer" else self._positive(truth)
            if came_true is not None:
                bins[bisect_left(SCORE_BOUNDS, each) + (0 if came_true else BINS)] += 1
                brier += brier_loss(each, came_true)
                log += log_loss(each if came_true else 1.0 - each)
        if bins:
            cells = self._probabilities.get(of)
            if cells is None:
                cells = self._instruments.cells("quality/scores", 2 * BINS + 2, {**self._labels, "of": of})
                self._probabilities[of] = cells
            counts = [(place, float(n)) for place, n in bins.items()]
            cells.add([*counts, (2 * BINS, brier), (2 * BINS + 1, log)])
