"""A shadow: a second model that answers the same inputs, compared with the first pair by pair."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from otel_mlops.metrics import DROPPED
from otel_mlops.model.answers import label_of
from otel_mlops.numbers import pairs
from otel_mlops.numbers.values import count_rows, is_number
from otel_mlops.profile.columns import is_missing

if TYPE_CHECKING:
    from otel_mlops.sdk.provider import MeterProvider

_logger = logging.getLogger(__name__)

_PLAIN = frozenset({float, int, bool, str, type(None)})


class Shadow:
    """Compares the answers of two models, the baseline and the candidate, to the same inputs.

    An answer is a label or a number, by `classification`; where that is None, texts and bools are labels, and all else
    is a number. Several answers are a list, tuple, array, series or tensor of shape (n,) or (n, 1).

    Nothing raises, whatever is given. What cannot be compared is dropped and counted: as `type` what is no label or
    number, as `not_finite` NaN, infinity and numbers beyond 1e100, as `shape` a call whose lengths differ.
    """

    def __init__(
        self,
        instruments: MeterProvider,
        baseline_labels: Mapping[str, str],
        candidate_labels: Mapping[str, str],
        classification: bool | None = None,
    ) -> None:
        candidate = f"{candidate_labels['model_name']}:{candidate_labels['model_version']}"
        labels = {**baseline_labels, "candidate": candidate}
        self._answers = instruments.cells("comparison/answers", pairs.ANSWERS, labels)
        self._truths = instruments.cells("comparison/truths", pairs.TRUTHS, labels)
        self._dropped = instruments.instrument(DROPPED)
        self._classification = classification
        self._has_told = False

    def record(self, answer: Any, other_answer: Any, actual: Any = None) -> None:
        """Compare what the baseline and the candidate answered to the same input or inputs.

        With the truth, where it is known by now; None and NaN among several truths stand for what is not.
        """
        self._compare(answer, other_answer, actual, is_new=True)

    def record_truth(self, answer: Any, other_answer: Any, actual: Any) -> None:
        """Compare with the truth what was recorded without it before."""
        self._compare(answer, other_answer, actual, is_new=False)

    def _compare(self, first: Any, second: Any, actual: Any, *, is_new: bool) -> None:
        answers, truths = [0.0] * pairs.ANSWERS, [0.0] * pairs.TRUTHS
        odd: Counter[str] = Counter()
        error: Exception | None = None
        for pair in self._pairs(first, second, actual, odd):
            try:
                self._add(answers, truths, *pair)
            except OverflowError as failure:
                odd["not_finite"] += 1
                error = failure
            except Exception as failure:
                # The answers are somebody else's objects: whatever they raise is no affair of the request's.
                odd["type"] += 1
                error = failure
        if is_new:
            self._answers.add([(index, amount) for index, amount in enumerate(answers) if amount])
        self._truths.add([(index, amount) for index, amount in enumerate(truths) if amount])
        for reason, number in odd.items():
            self._dropped.add(number, {"reason": reason})
        if odd and not self._has_told:
            self._has_told = True
            kinds = ", ".join(type(each).__qualname__ for each in (first, second, actual))
            _logger.warning(
                "Answers of two models are not compared (%s, given as %s): %r; more of the same are counted in "
                "otel_mlops_dropped_total", ", ".join(odd), kinds, error,
            )  # fmt: skip

    def _pairs(self, first: Any, second: Any, actual: Any, odd: Counter[str]) -> Any:
        """The answers one by one, with their truth; none if there are not as many of each."""
        try:
            firsts, seconds = _listed(first), _listed(second)
            actuals = [None] * len(firsts) if actual is None else _listed(actual)
            if len(firsts) == len(seconds) == len(actuals):
                return zip(firsts, seconds, actuals, strict=True)
        except Exception as error:
            _logger.debug("answers that cannot be read: %r", error)  # of somebody else's objects, too
        odd["shape"] += 1
        return ()

    def _add(self, answers: list[float], truths: list[float], first: Any, second: Any, actual: Any) -> None:
        """Add one pair, and its truth if that is known.

        Errors:  OverflowError for what is not finite, any other for what is neither a label nor a number.
        """
        is_label = self._classification
        if is_label is None:
            first, second = _plain(first), _plain(second)
            is_label = type(first) in (str, bool) and type(second) in (str, bool)
        read: Any = _label if is_label else _number
        first, second = read(first), read(second)
        (pairs.add_labels if is_label else pairs.add_numbers)(answers, first, second)
        if actual is not None and not is_missing(actual := _plain(actual)):
            (pairs.add_true_label if is_label else pairs.add_true_number)(truths, first, second, read(actual))


def _listed(values: Any) -> Sequence[Any]:
    """One answer or several as a list.

    Errors:  ValueError for several values a row; whatever the object's own methods raise.
    """
    if type(values) in _PLAIN or count_rows(values) is None:
        return [values]
    if isinstance(values, (list, tuple)):
        return values
    if tuple(getattr(values, "shape", ()))[1:] not in ((), (1,)):
        raise ValueError(f"answers of shape {values.shape}")
    for verb in ("tolist", "to_list"):
        if hasattr(values, verb):
            return [*getattr(values, verb)()]
    for verb in ("to_numpy", "numpy"):
        if hasattr(values, verb):
            return [*getattr(values, verb)().tolist()]
    return [*values]


def _plain(value: Any) -> Any:
    """The value of a row of one value, and of a scalar of any library."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return _plain(value[0])
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def _label(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, float) and not isfinite(value):
        raise OverflowError(value)
    label = label_of(value)
    if label is None:
        raise TypeError(type(value).__qualname__)
    return label


def _number(value: Any) -> float:
    if type(value) is not float:
        value = _plain(value)
        if not is_number(value):
            raise TypeError(type(value).__qualname__)
    number = float(value)
    if not -pairs.LARGEST <= number <= pairs.LARGEST:
        raise OverflowError(number)
    return number
