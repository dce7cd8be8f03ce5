"""Answers: what a model said, what was true and how sure it was, of whatever library, as labels, numbers and shares."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from otel_mlops.numbers.values import count_rows
from otel_mlops.profile.columns import has_a_name, sequence_of
from otel_mlops.profile.feature import Categorical, category_of

if TYPE_CHECKING:
    from otel_mlops.profile import Profile

_logger = logging.getLogger(__name__)

Kind: TypeAlias = Literal["regression", "classification"]
Of: TypeAlias = Literal["positive", "answer", "unknown"]
"""What a probability is of: the positive class, the class that was answered, or a class that is not known yet."""

OTHER = "other"
"""The class of what is past the bound."""

POSITIVE_WORDS = frozenset({"1", "true", "yes", "positive"})
NEGATIVE_WORDS = frozenset({"0", "-1", "false", "no", "negative"})

PLAIN = frozenset({str, int, float, bool})
"""Types of values by which a class can be looked up."""

_WORTH_AN_ARRAY = 8
SLACK = 1e-6
"""By how much a probability in float32 may be beyond 0 and 1."""


def kind_of_model(type: str | None, profile: Profile | None) -> Kind | None:  # noqa: A002 (the label's name)
    """Return of which kind a model's answers are, by what was said of it, else by its profile; None if neither tells.

    >>> kind_of_model("Regression", None), kind_of_model("binary", None), kind_of_model("logistic regression", None)
    ('regression', 'classification', 'classification')
    """
    text = (type or "").lower()
    if any(word in text for word in ("class", "binary", "logistic")):
        return "classification"
    if "regress" in text:
        return "regression"
    if "multi" in text:
        return "classification"
    if profile is None:
        return None
    if profile.calibration is not None or isinstance(profile.prediction, Categorical):
        return "classification"
    return "regression" if "truth_mean" in profile.training else None


def label_of(value: Any) -> str | None:
    """Return the text of a class; None for what is none. Raises nothing.

    True and 1 are the same class, which a model and its truth may well write differently. A number that is not whole
    is none: it is a probability, as a rule, and each answer would be a class of its own.

    >>> label_of("cat"), label_of(True), label_of(1.0), label_of(0.73), label_of(float("nan")), label_of("")
    ('cat', '1', '1', None, None, None)
    """
    try:
        if getattr(value, "ndim", None) == 0:
            value = value.item()  # of an array or a tensor that is one value
        if issubclass(type(value), str):
            return str.__str__(value) or None
        if type(value) is bool:
            return "1" if value else "0"
        number = number_of(value)
        return None if number is None or not number.is_integer() else category_of(value)
    except Exception as error:
        _logger.debug("an answer or a truth of type %s is no class: %r", type(value).__qualname__, error)
        return None


def labels_of(rows: Any) -> list[str | None]:
    """Return the text of the class of each row, None for what is none."""
    values = rows.tolist() if hasattr(rows, "tolist") else rows
    if set(map(type, values)) <= PLAIN:
        # What is equal among these is the same class.
        known = {value: label_of(value) for value in set(values)}
        return [known[value] for value in values]
    return [label_of(value) for value in values]


def number_of(value: Any) -> float | None:
    """Return a finite number; None for what is none, and for True and False. Raises nothing.

    >>> number_of(3), number_of("3"), number_of(True), number_of(float("inf"))
    (3.0, None, None, None)
    """
    try:
        number = float(value) if is_numeric(value) else nan
    except Exception as error:
        _logger.debug("an answer or a truth of type %s is no number: %r", type(value).__qualname__, error)
        return None
    return number if isfinite(number) else None


def is_numeric(value: Any) -> bool:
    """Say whether something is of a type of numbers, NaN among them; bool is none."""
    # By its type: isinstance() may run code of the object's own, and that may raise.
    kind = type(value)
    if kind.__name__ in ("bool", "bool_") or issubclass(kind, (str, bytes, bytearray)):
        return False
    return (hasattr(kind, "__float__") or hasattr(kind, "__index__")) and not (hasattr(kind, "ndim") and value.ndim)


def numbers_of_rows(rows: Any) -> Any:
    """Return the number of each row, NaN for what is none: an array for an array of numbers, else a list."""
    if getattr(getattr(rows, "dtype", None), "kind", "") in ("i", "u", "f"):
        return rows.astype("float64")
    numbers = map(number_of, rows)
    return [nan if number is None else number for number in numbers]


def rows_of(values: Any) -> Any:
    """Return the rows of a batch as an array of numpy's or a sequence, one value a row; None for one answer.

    Errors:  whatever the object's own methods raise.

    >>> rows_of([1, 2]), rows_of([[1.5], [2.5]]), rows_of("cat"), rows_of(3)
    ([1, 2], [1.5, 2.5], None, None)
    """
    if type(values) in PLAIN or count_rows(values) is None:
        return None
    rows = values
    if type(values) not in (list, tuple):
        try:
            rows = sequence_of(values)
        except (TypeError, RuntimeError) as error:
            # A tensor on a GPU or with a gradient has no array, yet it has a list.
            _logger.debug("%s: %s", type(values).__qualname__, error)
            rows = values.tolist()
    if getattr(rows, "ndim", 1) == 2 and rows.shape[1] == 1:
        return rows[:, 0]
    if isinstance(rows, (list, tuple)) and len(rows) and isinstance(rows[0], (list, tuple)) and len(rows[0]) == 1:
        return [row[0] if isinstance(row, (list, tuple)) and len(row) == 1 else row for row in rows]
    return rows


class Classes:
    """The first so many classes; those past them, and those whose names are too long, are `other`."""

    __slots__ = ("_known", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, label: str) -> str:
        """Return the class by which a label is counted."""
        if label in self._known:
            return label
        if len(self._known) < self._most and has_a_name(label):
            self._known.add(label)
            return label
        return OTHER


class Positive:
    """Which class is the positive one.

    The one that was given, else the profile's, else by custom: 1, true, yes and positive, as long as every other
    class is 0, -1, false, no or negative.
    """

    __slots__ = ("_by_custom", "given")

    def __init__(self, given: str | None, profile: Profile | None) -> None:
        self.given = label_of(given) or (None if profile is None else label_of(profile.positive))
        several = profile is not None and (
            profile.calibration is not None
            or (isinstance(profile.prediction, Categorical) and len(profile.prediction.values) > 2)
        )
        self._by_custom = self.given is None and not several

    def __call__(self, label: str) -> bool | None:
        """Say whether a class is the positive one; None where that is not known."""
        if self.given is not None:
            return label == self.given
        if self._by_custom:
            word = label.casefold()
            if word in POSITIVE_WORDS:
                return True
            if word in NEGATIVE_WORDS:
                return False
            self._by_custom = False
        return None


class Probability(NamedTuple):
    """How sure a model was."""

    p: float
    of: Of


class ScoresReader:
    """Reads the probabilities that come with answers.

    A number is the probability of the positive class, or, of a model whose profile has none, that of the answer. A
    mapping is that of each class. A sequence is that of each class in their order, numbers by size and texts by the
    alphabet, if the profile knows all classes.
    """

    def __init__(self, positive: Positive, profile: Profile | None, on_dropped: Callable[[str, int], None]) -> None:
        self._positive = positive
        self._on_dropped = on_dropped
        self._is_of_answers = positive.given is None and profile is not None and profile.calibration is not None
        self._classes = _classes_of(profile)
        self._has_told = False

    def read(self, score: Any, said: str) -> Probability | None:
        """Return the probability that came with one answer; None where there is none, or it cannot be one."""
        try:
            return None if score is None else self._read(score, said)
        except Exception as error:
            _logger.debug("scores of type %s cannot be read: %r", type(score).__qualname__, error)
            self._on_dropped("type", 1)
            return None

    def _read(self, score: Any, said: str) -> Probability | None:
        if type(score) is not float and not is_numeric(score):
            if isinstance(score, Mapping):
                return self._of_mapping({label_of(key): each for key, each in score.items()}, said)
            row = rows_of(score)
            if row is None or len(row) != 1:
                known = self._known_classes(row)
                return None if known is None else self._of_mapping(dict(zip(known, row, strict=True)), said)
            score = row[0]
        p = self._checked(score)
        return None if p is None else Probability(p, self._what_a_number_is(said))

    def read_rows(self, scores: Any, said: Sequence[str | None]) -> tuple[Any, Of]:
        """Return the probabilities of several answers, NaN for none: an array for an array, else a list.

        `scores` is what `rows_of` gave. They all are of the same; those that are not are left out.
        """
        numpy = sys.modules.get("numpy")
        if numpy is not None and len(scores) >= _WORTH_AN_ARRAY and set(map(type, scores)) == {float}:
            scores = numpy.asarray(scores)
        if getattr(getattr(scores, "dtype", None), "kind", "") in ("i", "u", "f") and scores.ndim <= 2:
            first = next((label for label in said if label is not None), None)
            if first is None:
                return [nan] * len(said), "unknown"
            if scores.ndim == 1:
                return self._checked_array(scores), self._what_a_number_is(first)
            return self._of_columns(scores, said, first)
        found = [None if label is None else self.read(each, label) for each, label in zip(scores, said, strict=True)]
        of: Of = next((each.of for each in found if each is not None), "unknown")
        return [nan if each is None or each.of != of else each.p for each in found], of

    def _what_a_number_is(self, said: str) -> Of:
        if self._is_of_answers:
            return "answer"
        return "unknown" if self._positive(said) is None else "positive"

    def _of_mapping(self, scores: Mapping[str | None, Any], said: str) -> Probability | None:
        positive = self._positive_of(scores)
        of: Of = "answer" if positive is None else "positive"
        p = self._checked(scores.get(said if positive is None else positive))
        return None if p is None else Probability(p, of)

    def _of_columns(self, scores: Any, said: Sequence[str | None], first: str) -> tuple[Any, Of]:
        """The probabilities in an array that has a column for each class."""
        known = self._known_classes(scores[0])
        if known is None:
            if len(scores) > 1:
                self._on_dropped("type", len(scores) - 1)
            return [nan] * len(said), self._what_a_number_is(first)
        positive = self._positive_of(known)
        if positive is not None:
            return self._checked_array(scores[:, known.index(positive)]), "positive"
        places = {label: place for place, label in enumerate(known)}
        columns = [places.get(label, -1) for label in said]  # type: ignore[arg-type]
        numpy = sys.modules["numpy"]
        found = self._checked_array(scores[numpy.arange(len(scores)), columns])
        unseen = numpy.array(columns) < 0
        if unseen.any():
            self._on_dropped("type", int(unseen.sum()))
            found[unseen] = nan
        return found, "answer"

    def _positive_of(self, classes: Any) -> str | None:
        """The positive one among classes, if it is known."""
        if self._positive.given is not None:
            return self._positive.given if self._positive.given in classes else None
        if len(classes) != 2 or None in classes:
            return None
        first, second = classes
        if (first.casefold() in POSITIVE_WORDS) is (second.casefold() in POSITIVE_WORDS):
            return None
        found: str = first if first.casefold() in POSITIVE_WORDS else second
        return found if self._positive(first) is not None and self._positive(second) is not None else None

    def _known_classes(self, row: Any) -> tuple[str, ...] | None:
        """The classes that a row of probabilities is of."""
        if self._classes is not None and row is not None and len(row) == len(self._classes):
            return self._classes
        self._on_dropped("type", 1)
        if not self._has_told:
            self._has_told = True
            _logger.warning(
                "The scores of an answer are %.60r, and which classes they are of is not known: give the probability "
                "of the positive class, or a mapping of the classes to their probabilities",
                row if row is not None else "no probabilities",
            )
        return None

    def _checked(self, score: Any) -> float | None:
        """A probability; what is none is counted as dropped."""
        if score is None:
            return None
        p = score if type(score) is float else number_of(score)
        if p is not None and -SLACK <= p <= 1.0 + SLACK:
            return min(max(p, 0.0), 1.0)
        self._on_dropped("not_finite" if is_numeric(score) and (p is None or not isfinite(p)) else "type", 1)
        return None

    def _checked_array(self, scores: Any) -> Any:
        numpy = sys.modules["numpy"]
        found = scores.astype("float64")
        outside = ~((found >= -SLACK) & (found <= 1.0 + SLACK))
        if outside.any():
            beyond = int((outside & numpy.isfinite(found)).sum())
            for reason, count in (("type", beyond), ("not_finite", int(outside.sum()) - beyond)):
                if count:
                    self._on_dropped(reason, count)
            found[outside] = nan
        return numpy.clip(found, 0.0, 1.0)


def _classes_of(profile: Profile | None) -> tuple[str, ...] | None:
    """All classes of a classifier in the order that scikit-learn gives them, if its profile knows them all."""
    feature = None if profile is None else profile.prediction
    if not isinstance(feature, Categorical) or feature.counts[-2]:
        return None
    try:
        return tuple(sorted(feature.values, key=float))
    except ValueError:
        return tuple(sorted(feature.values))
