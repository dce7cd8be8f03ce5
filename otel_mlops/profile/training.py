"""Training scores: what the model's answers were worth in training, and what its scores mean."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, isfinite
from types import ModuleType
from typing import Any

from otel_mlops.numbers.probability import BINS, SCORE_BOUNDS, auc, calibration_map
from otel_mlops.numbers.quality import Residuals, mean_absolute_error, r2, root_mean_squared_error

from .columns import categories_of, has_a_name, kind_of

_SLACK = 1e-6
"""By how much a probability in float32 may be beyond 0 and 1."""


class RegressionScores:
    """Adds up the residuals of a regression."""

    def __init__(self, arithmetic: ModuleType) -> None:
        self._arithmetic = arithmetic
        self._sums: Residuals | None = None

    def update(self, predictions: Any, truth: Any) -> None:
        """Add rows; those without one of both are left out."""
        if kind_of(truth, "truth") == "category":
            raise ValueError("the truth of a regression is numbers; for labels give type='classification'")
        predicted, actual = self._arithmetic.floats(predictions), self._arithmetic.floats(truth)
        before = self._sums
        if before is None:
            found = self._arithmetic.moments(actual)
            before = Residuals(reference=found.mean if found.n and isfinite(found.mean) else 0.0)
        piece = self._arithmetic.residual_sums(predicted, actual, before.reference)
        added = [x + y for x, y in zip(before[:-1], piece[:-1], strict=True)]
        self._sums = Residuals._make([*added, before.reference]) if piece.n else self._sums

    def finish(self) -> dict[str, float]:
        """Return rmse, mae, r2 and the mean of the truth, those of them that there are."""
        sums = self._sums
        if sums is None:
            return {}
        found = {
            "rmse": root_mean_squared_error(sums),
            "mae": mean_absolute_error(sums),
            "r2": r2(sums),
            "truth_mean": sums.reference + sums.d / sums.n,
        }
        return {name: value for name, value in found.items() if value is not None and isfinite(value)}


class _Answers:
    """Of some answers: how many, in which bins their scores are, and what these add to both losses if positive or not.

    Field 0 of the losses is for the negative, field 1 for the positive.
    """

    __slots__ = ("log", "n", "scored", "scores", "squares")

    def __init__(self) -> None:
        self.n = 0.0
        self.scored = 0.0
        self.scores = [0.0] * BINS
        self.squares = [0.0, 0.0]
        self.log = [0.0, 0.0]

    def add(self, other: _Answers) -> None:
        self.n += other.n
        self.scored += other.scored
        self.scores = [x + y for x, y in zip(self.scores, other.scores, strict=True)]
        self.squares = [x + y for x, y in zip(self.squares, other.squares, strict=True)]
        self.log = [x + y for x, y in zip(self.log, other.log, strict=True)]


class ClassificationScores:
    """Adds up the answers of a classifier.

    While no more than two labels have come, by what was true and what was said; always by whether the answer is right.
    """

    def __init__(self, arithmetic: ModuleType, positive: object = None) -> None:
        self._arithmetic = arithmetic
        self._positive = None if positive is None else _labels([positive])[0]
        self._labels: set[str] = set()
        self._pairs: dict[tuple[str, str | None], _Answers] = {}
        self._right = {True: _Answers(), False: _Answers()}
        self._answered = False

    def update(self, predictions: Any, truth: Any, scores: Any) -> None:
        """Add rows; those without a truth, or without a prediction where there are some, are left out.

        Errors:  ValueError for scores that are no probabilities.
        """
        true = _labels(truth)
        said = [None] * len(true) if predictions is None else _labels(predictions)
        self._answered |= predictions is not None
        if self._positive is not None:
            true, said = self._of_two(true), self._of_two(said)
        usable = [t is not None and (predictions is None or s is not None) for t, s in zip(true, said, strict=True)]
        labels = self._labels | {each for each in (*true, *said) if each is not None}
        self._labels = set(sorted(labels)[:3])  # a third says that they are several, which is all we must know
        for (t, s), answers in self._by_pair(true, said, usable, scores).items():
            self._right[t == s].add(answers)
            self._pairs.setdefault((t, s), _Answers()).add(answers)

    def finish(self) -> tuple[dict[str, float], list[float] | None, str | None]:
        """Return the scores, the calibration map and the positive label.

        Errors:  ValueError for scores of several classes without predictions.
        """
        positive = self._positive_label()
        if positive is not None and not has_a_name(positive):
            raise ValueError(f"{positive!r:.40} is too long for a label, or cannot be written")
        if positive is None and not self._answered:
            raise ValueError("the scores of several classes need predictions, to tell which of them are right")
        groups = self._right
        if positive is not None:
            groups = {True: _Answers(), False: _Answers()}
            for (true, _), answers in self._pairs.items():
                groups[true == positive].add(answers)
        scored = groups[True].scored + groups[False].scored
        found: dict[str, float | None] = {}
        if self._answered and (n := self._right[True].n + self._right[False].n):
            found["accuracy"] = self._right[True].n / n
        if scored:
            found["auc"] = auc(groups[True].scores, groups[False].scores)
            found["brier"] = fsum([groups[side].squares[side] for side in (True, False)]) / scored
            found["log_loss"] = fsum([groups[side].log[side] for side in (True, False)]) / scored
        training = {name: value for name, value in found.items() if value is not None}
        return training, calibration_map(groups[True].scores, groups[False].scores), positive

    def _of_two(self, labels: Sequence[str | None]) -> list[str | None]:
        """The positive label and another for all others."""
        return [each if each is None or each == self._positive else f"not {self._positive}" for each in labels]

    def _by_pair(
        self, true: Sequence[str | None], said: Sequence[str | None], usable: Sequence[bool], scores: Any
    ) -> dict[tuple[str, str | None], _Answers]:
        """The answers by what was true and what was said; with several classes, only by whether they are right."""
        if len(self._labels) > 2:
            keys: list[Any] = [("", "" if t == s else None) if use else None
                               for t, s, use in zip(true, said, usable, strict=True)]  # fmt: skip
        else:
            keys = [pair if use else None for pair, use in zip(zip(true, said, strict=True), usable, strict=True)]
        arithmetic = self._arithmetic
        found, codes = arithmetic.codes_of(keys)
        answers = [_Answers() for _ in found]
        for code, n in enumerate(arithmetic.sums(codes, len(found), [1.0] * len(keys))):
            answers[code].n = n
        if scores is not None:
            probabilities = _probabilities(arithmetic, scores)
            places = arithmetic.places(probabilities, SCORE_BOUNDS)
            present = arithmetic.below(places, BINS)
            codes, places, values = (arithmetic.picked(each, present) for each in (codes, places, probabilities))
            for each, row in zip(answers, arithmetic.table(codes, len(found), places, BINS), strict=True):
                each.scores, each.scored = row, fsum(row)
            for side in (False, True):
                squares = arithmetic.sums(codes, len(found), arithmetic.squares(values, side))
                losses = arithmetic.sums(codes, len(found), arithmetic.losses(values, side))
                for each, square, loss in zip(answers, squares, losses, strict=True):
                    each.squares[side], each.log[side] = square, loss
        return {key: each for key, each in zip(found, answers, strict=True) if key is not None}

    def _positive_label(self) -> str | None:
        """The given one; else of two labels the later, as 1 of 0 and 1, and "yes" of "no" and "yes"."""
        if self._positive is not None or len(self._labels) > 2:
            return self._positive
        if self._labels <= {"0", "1"}:
            return "1"
        return max(self._labels, key=_order) if len(self._labels) == 2 else None


def _labels(values: Any) -> list[str | None]:
    """Labels as texts. True and 1 are the same answer, which a model and its truth may well write differently."""
    values = values.tolist() if hasattr(values, "tolist") else values
    plain = [int(each) if type(each).__name__ in ("bool", "bool_") else each for each in values]
    return categories_of(plain, "truth or predictions")


def _order(label: str) -> tuple[int, float, str]:
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)


def _probabilities(arithmetic: ModuleType, scores: Any) -> Any:
    if kind_of(scores, "scores") == "category":
        raise ValueError("scores are probabilities from 0 to 1, not labels")
    values = arithmetic.floats(scores)
    found = arithmetic.moments(values)
    if found.n and not -_SLACK <= found.minimum <= found.maximum <= 1.0 + _SLACK:
        raise ValueError(f"scores are probabilities from 0 to 1; these go from {found.minimum} to {found.maximum}")
    return arithmetic.clipped(values)
