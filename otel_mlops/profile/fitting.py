"""Fitting: a profile from what a model was trained with, whole or piece by piece, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from math import isfinite, sqrt
from types import ModuleType
from typing import Any, Literal, TypedDict

from . import Profile, plain
from .columns import Kind, categories_of, column_of, columns_of, has_a_name, kind_of
from .feature import PREDICTION, Categorical, Feature, Numeric
from .quantiles import counts_of, edges_of
from .training import ClassificationScores, RegressionScores

KEPT = 20_000_000
"""How many values are kept, of all columns together: 160 MB. Of more, the bins are those of a sample of the rows."""

DISTINCT = 1_000_000
"""How many distinct categories are counted, of all columns together; at least 100 of each."""

MOST_BINS, MOST_CATEGORIES = 200, 500


class Options(TypedDict, total=False):
    """What one can say of a profile beside the data. See docs/profile.md."""

    names: Sequence[str] | None
    bins: int
    categories: int
    categorical: Sequence[str]
    type: Literal["regression", "classification"] | None
    positive: object
    model_name: str | None
    model_version: str | None
    created_at: datetime | None


def fastest() -> ModuleType:
    """Return the arithmetic of columns: numpy's where it is installed, else plain Python's."""
    try:
        from . import vectors
    except ModuleNotFoundError:
        return plain
    return vectors


class Fit:
    """A profile in the making: `update()` for each piece of the data, then `finish()`.

    The result is that of the whole data at once, however it is cut, but for the last digits of means and scores.
    """

    def __init__(
        self, arithmetic: ModuleType | None = None, *, kept: int = KEPT, distinct: int = DISTINCT, **options: Any
    ) -> None:
        unknown = options.keys() - Options.__annotations__.keys()
        if unknown:
            raise TypeError(f"a profile has no option {min(unknown)!r}")
        self._arithmetic = arithmetic or fastest()
        self._kept = kept
        self._distinct = distinct
        self._options: Options = options  # type: ignore[assignment]
        self._bins = _whole("bins", options.get("bins", 10), 2, MOST_BINS)
        self._categories = _whole("categories", options.get("categories", 50), 1, MOST_CATEGORIES)
        self._type = options.get("type")
        if self._type not in (None, "regression", "classification"):
            raise ValueError(f"type is {self._type!r}, expected 'regression' or 'classification'")
        for what in (options.get("model_name"), options.get("model_version")):
            if what is not None and not (isinstance(what, str) and has_a_name(what)):
                raise ValueError(f"{what!r:.40} is no name or version of a model: a text of at most 200 characters is")
        self._columns: dict[str, _Column] = {}
        self._given: tuple[bool, ...] | None = None
        self._rows = 0
        self._sample = _Sample(self._arithmetic)
        self._classification = ClassificationScores(self._arithmetic, options.get("positive"))
        self._regression = RegressionScores(self._arithmetic)

    def update(self, features: Any, predictions: Any = None, truth: Any = None, scores: Any = None) -> None:
        """Add rows. The first piece says which columns there are; the same arguments belong to each.

        Errors:  ValueError for what does not fit together; the profile is to be begun anew then.
        """
        names = list(self._columns) or self._options.get("names")
        columns, rows = columns_of(features, [name for name in names if name != PREDICTION] if names else None)
        if not rows:
            return
        beside = {"predictions": predictions, "truth": truth, "scores": scores}
        beside = {what: column_of(given, rows, what) for what, given in beside.items() if given is not None}
        self._agree(beside)
        if "predictions" in beside:
            columns[PREDICTION] = beside["predictions"]
        if not self._columns:
            self._columns = {name: _Column(name, self._arithmetic) for name in columns}
            self._name_categories()
        if self._type == "classification" and PREDICTION in columns:
            self._columns[PREDICTION].name_category()
        for name, column in columns.items():
            self._columns[name].check(column)
        self._sample.take(self._rows, rows, max(1, self._kept // len(columns)), self._columns.values())
        most = max(100, self._distinct // len(columns))
        for name, column in columns.items():
            self._columns[name].update(column, self._sample.mask, most)
        self._rows += rows
        if "truth" in beside:
            self._score(beside)

    def finish(self) -> Profile:
        """Return the profile of all rows so far.

        Errors:  ValueError where there are none.
        """
        if not self._rows:
            raise ValueError("there are no rows to make a profile of")
        features = [column.feature(self._bins, self._categories) for column in self._columns.values()]
        training, calibration, positive = self._regression.finish(), None, None
        if self._type == "classification" and self._given and self._given[1]:
            training, calibration, positive = self._classification.finish()
        predicted = PREDICTION in self._columns
        return Profile(
            features=tuple(features[:-1] if predicted else features),
            prediction=features[-1] if predicted else None,
            rows=self._rows,
            calibration=None if calibration is None else tuple(calibration),
            positive=positive,
            training=training,
            model_name=self._options.get("model_name"),
            model_version=self._options.get("model_version"),
            created_at=self._options.get("created_at") or datetime.now(UTC).replace(microsecond=0),
        )

    def _agree(self, beside: dict[str, Any]) -> None:
        """Refuse arguments that do not go together, and find out what kind of answers the model gives."""
        given = tuple([what in beside for what in ("predictions", "truth", "scores")])
        predictions, truth, scores = given
        if self._given not in (None, given):
            raise ValueError("predictions, truth and scores belong to each piece or to none")
        if truth and not (predictions or scores):
            raise ValueError("truth needs predictions or scores to be compared with")
        if scores and not truth:
            raise ValueError("scores need the truth: what they mean is worked out from both")
        if scores and self._type == "regression":
            raise ValueError("scores are a classifier's probabilities; this is a regression")
        self._given = given
        if PREDICTION in self._options.get("categorical", ()):
            self._type = self._type or "classification"
        if self._type is None and predictions:
            kind = kind_of(beside["predictions"], PREDICTION)
            self._type = "classification" if scores or kind == "category" else kind and "regression"
        elif self._type is None and (predictions or scores):
            self._type = "classification"
        if self._type == "regression":
            if self._options.get("positive") is not None:
                raise ValueError("positive is a label; this is a regression")
            if predictions and kind_of(beside["predictions"], PREDICTION) == "category":
                raise ValueError("the predictions of a regression are numbers")

    def _name_categories(self) -> None:
        for name in self._options.get("categorical", ()):
            if name not in self._columns and name != PREDICTION:
                raise ValueError(f"categorical names {name!r}, and there is no such column")
            if name in self._columns:
                self._columns[name].name_category()

    def _score(self, beside: dict[str, Any]) -> None:
        if self._type == "classification":
            self._classification.update(beside.get("predictions"), beside["truth"], beside.get("scores"))
        elif self._type == "regression":
            self._regression.update(beside["predictions"], beside["truth"])


class _Sample:
    """Which rows are kept: all, and where they are too many, one in 2, 4, 8 and so on, by their place alone."""

    def __init__(self, arithmetic: ModuleType) -> None:
        self._arithmetic = arithmetic
        self._level = 0
        self._marks: Any = arithmetic.marks(0, 0)
        self.mask: Any = None
        """Which rows of the last piece are kept."""

    def take(self, start: int, rows: int, most: int, columns: Any) -> None:
        """Choose of some more rows; the columns give up what is kept no longer."""
        marks = self._arithmetic.marks(start, start + rows)
        new = self._left(marks)
        level = self._level
        while len(self._left(self._marks)) + len(self._left(new)) > most:
            self._level += 1
        if self._level > level:
            mask = self._arithmetic.survivors(self._marks, self._level)
            for column in columns:
                column.drop(mask)
        self._marks = self._arithmetic.joined([self._left(self._marks), self._left(new)])
        self.mask = self._arithmetic.survivors(marks, self._level)

    def _left(self, marks: Any) -> Any:
        return self._arithmetic.picked(marks, self._arithmetic.survivors(marks, self._level))


class _Column:
    """What is known of a column so far."""

    def __init__(self, name: str, arithmetic: ModuleType) -> None:
        self.kind: Kind | None = None
        self.named = False
        self._name = name
        self._arithmetic = arithmetic
        self._rows = 0
        self._moments = plain.Moments()
        self._parts: list[Any] = []
        self._counts: dict[str, int] = {}
        self._other = 0

    def check(self, column: Any) -> None:
        """Refuse a column that is of another kind than before."""
        kind = self.kind if self.named else kind_of(column, self._name)
        if self.kind and kind and kind != self.kind:
            raise ValueError(
                f"column {self._name!r} began with one of numbers and texts and goes on with the other: "
                "name it in categorical=, or make it one of both"
            )
        self.kind = self.kind or kind

    def name_category(self) -> None:
        """Take whatever comes as categories, numbers as well."""
        self.kind, self.named = "category", True

    def update(self, column: Any, mask: Any, most: int) -> None:
        """Add rows, of which the mask says which are kept; no more than so many categories are told apart."""
        self._rows += len(column)
        if self.kind != "category":
            values = self._arithmetic.floats(column)
            self._moments = self._moments.plus(self._arithmetic.moments(values))
            self._parts.append(self._arithmetic.picked(values, mask))
            return
        self._parts = []  # there were only missing ones so far
        for text, count in Counter(categories_of(column, self._name)).items():
            if text is None:
                continue
            if text in self._counts or (len(self._counts) < most and has_a_name(text)):
                self._counts[text] = self._counts.get(text, 0) + count
            else:
                self._other += count

    def drop(self, mask: Any) -> None:
        """Keep of the rows so far those of the mask only."""
        if self._parts:
            self._parts = [self._arithmetic.picked(self._arithmetic.joined(self._parts), mask)]

    def feature(self, bins: int, categories: int) -> Feature:
        """Return the feature with its bins and counts."""
        return self._category(categories) if self.kind == "category" else self._number(bins)

    def _category(self, categories: int) -> Categorical:
        top = sorted(self._counts.items(), key=lambda each: (-each[1], each[0]))[:categories]
        counts = [count for _, count in top]
        present = sum(self._counts.values()) + self._other
        every = (*counts, present - sum(counts), self._rows - present)
        return Categorical(self._name, tuple([text for text, _ in top]), tuple(map(float, every)))

    def _number(self, bins: int) -> Numeric:
        found = self._moments
        ordered = self._arithmetic.ordered(self._arithmetic.joined(self._parts))
        edges = edges_of(ordered, bins)
        counts = (*counts_of(ordered, edges, found.n), float(self._rows - found.n))
        if not found.n:
            return Numeric(self._name, edges, counts)
        mean = found.mean if isfinite(found.mean) else None
        std = sqrt(found.squares / found.n) if isfinite(found.squares) else None
        return Numeric(self._name, edges, counts, found.minimum, found.maximum, mean, std)


def _whole(what: str, number: Any, least: int, most: int) -> int:
    if type(number) is not int or not least <= number <= most:
        raise ValueError(f"{what} is {number!r}, expected a whole number from {least} to {most}")
    return number
