"""Blocks of time: by how much training's days differ from each other without any drift."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from types import ModuleType
from typing import Any

from otel_mlops.numbers.drift import block_quantile, block_scores

from . import Profile
from .columns import categories_of, column_of, columns_of, kind_of
from .feature import PREDICTION, Feature, Numeric
from .fitting import fastest

FEWEST = 8
"""Blocks below which nothing is said of how much one more differs."""

MOST = 4_000
"""Blocks that are counted: eleven years of days."""

LENGTHS = {"hour": 3_600.0, "day": 86_400.0, "week": 604_800.0}


class Blocks:
    """The blocks of a profile in the making: `update()` for each piece of the data, then `finish()`.

    It goes over the data a second time, since it counts in the bins that the first time has found. Days are UTC's.
    """

    def __init__(self, profile: Profile, block: str | float = "day", arithmetic: ModuleType | None = None) -> None:
        length = LENGTHS.get(block) if isinstance(block, str) else block
        if not isinstance(length, (int, float)) or not 0.0 < length < float("inf"):
            raise ValueError(f"block is {block!r}, expected {', '.join(map(repr, LENGTHS))} or seconds above 0")
        self._profile = profile
        self._length = float(length)
        self._arithmetic = arithmetic or fastest()
        every = (*profile.features, *([profile.prediction] if profile.prediction else []))
        self._features: dict[str, Feature] = {feature.name: feature for feature in every}
        self._counts: dict[str, dict[int, list[float]]] = {name: {} for name in self._features}

    def update(self, features: Any, timestamps: Any, predictions: Any = None) -> None:
        """Add rows; those without a timestamp are in no block.

        Timestamps are seconds since 1970, datetimes (UTC where they do not say), datetime64 or ISO 8601 texts.

        Errors:  ValueError for what is no point in time, and for more than MOST blocks.
        """
        columns, rows = columns_of(features, [feature.name for feature in self._profile.features])
        if not rows:
            return
        if self._profile.prediction is not None:
            if predictions is None:
                raise ValueError("the profile has predictions: they belong to the blocks as well")
            columns[PREDICTION] = column_of(predictions, rows, "predictions")
        arithmetic = self._arithmetic
        seconds = arithmetic.seconds_of(column_of(timestamps, rows, "timestamps"))
        numbers, codes = arithmetic.numbers_of_blocks(seconds, self._length)
        timed = arithmetic.below(codes, len(numbers))
        codes = arithmetic.picked(codes, timed)
        for name, feature in self._features.items():
            blocks = self._counts[name]
            if len({*blocks, *numbers}) > MOST:
                raise ValueError(f"there are more than {MOST} blocks of {self._length:g} s: choose longer ones")
            places = arithmetic.picked(self._places(feature, columns[name]), timed)
            size = len(feature.counts)
            for number, counts in zip(numbers, arithmetic.table(codes, len(numbers), places, size), strict=True):
                before = blocks.get(number)
                blocks[number] = counts if before is None else [x + y for x, y in zip(before, counts, strict=True)]

    def finish(self) -> Profile:
        """Return the profile with what each feature's index of one block stays below; none where blocks are few."""
        features = [replace(feature, block=self._threshold(feature.name)) for feature in self._features.values()]
        if self._profile.prediction is None:
            return replace(self._profile, features=tuple(features))
        return replace(self._profile, features=tuple(features[:-1]), prediction=features[-1])

    def _threshold(self, name: str) -> float | None:
        scores = block_scores(list(self._counts[name].values()))
        found = block_quantile(scores) if len(scores) >= FEWEST else None
        return found if found is not None and isfinite(found) else None

    def _places(self, feature: Feature, column: Any) -> Any:
        """The bin of each value."""
        if isinstance(feature, Numeric):
            if kind_of(column, feature.name) == "category":
                raise ValueError(f"column {feature.name!r} holds texts, and numbers in the profile")
            return self._arithmetic.places(self._arithmetic.floats(column), feature.edges)
        of: dict[str | None, int] = {value: place for place, value in enumerate(feature.values)}
        of[None] = len(feature.values) + 1
        found, codes = self._arithmetic.codes_of(categories_of(column, feature.name))
        return self._arithmetic.taken([of.get(text, len(feature.values)) for text in found], codes)
