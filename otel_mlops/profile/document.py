"""The document: a profile as JSON and back. It reads whatever it is given, and says what is wrong with it.

Its fields are those of SageMaker Model Monitor's statistics.json and some more; that file is version 0 and is read too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from math import inf, isfinite, nextafter
from sys import float_info
from typing import Any

from otel_mlops.numbers.probability import BINS

from . import Profile
from .columns import MOST_FEATURES, check_names, has_a_name
from .feature import PREDICTION, Categorical, Feature, Numeric

VERSION = 1
MOST_BINS = 1_000
MOST_COUNT = 2**53
_STATISTICS = ("numerical_statistics", "string_statistics")


def document_of(profile: Profile) -> dict[str, Any]:
    """Return a profile as what json.dumps takes."""
    return {
        "version": VERSION,
        "created_at": profile.created_at.isoformat() if profile.created_at else None,
        "model": {"name": profile.model_name, "version": profile.model_version},
        "dataset": {"item_count": profile.rows},
        "features": [_written(feature) for feature in profile.features],
        "prediction": _written(profile.prediction) if profile.prediction else None,
        "positive": profile.positive,
        "calibration": profile.calibration,
        "training": dict(profile.training),
    }


def read(text: str) -> Profile:
    """Return the profile of a document.

    Errors:  ValueError that names the field and what is expected there.
    """
    try:
        whole = _Field(json.loads(text, parse_constant=_refuse), "")
    except RecursionError:
        raise ValueError("expected JSON that is less deep") from None
    except ValueError as error:
        raise ValueError(f"expected JSON: {error}") from None
    version = whole["version"].data
    if isinstance(version, bool) or not isinstance(version, (int, float)) or not (version in (0, 1) or version > 1):
        raise whole["version"].wrong("the version of a profile, 1")
    if version > VERSION:
        raise ValueError(
            f"version: {version!r:.20} is of a newer otel-mlops, expected {VERSION}: pip install --upgrade otel-mlops"
        )
    found = [_feature(each, version) for each in whole["features"].items(MOST_FEATURES)]
    features = [each for each in found if each is not None]
    try:
        check_names([each.name for each in features])
    except ValueError as error:
        raise ValueError(f"features: {error}") from None
    rows = int(whole["dataset"]["item_count"].count())
    if version < VERSION:
        return Profile(features=tuple(features), rows=rows)
    predicted, calibration = whole["prediction"], whole["calibration"]
    shares = None if calibration.data is None else [each.number(0.0, 1.0) for each in calibration.items(BINS)]
    if shares is not None and len(shares) != BINS:
        raise calibration.wrong(f"{BINS} shares")
    training = whole["training"].mapping()
    if len(training) > 100:
        raise whole["training"].wrong("at most 100 scores")
    return Profile(
        features=tuple(features),
        prediction=None if predicted.data is None else _feature(predicted, version),
        rows=rows,
        calibration=None if shares is None else tuple(shares),
        positive=whole["positive"].text_or_none(),
        training={name: whole["training"][name].number() for name in training},
        model_name=whole["model"]["name"].text_or_none(),
        model_version=whole["model"]["version"].text_or_none(),
        created_at=whole["created_at"].time_or_none(),
    )


class _Field:
    """A part of a document and where it stands."""

    __slots__ = ("data", "where")

    def __init__(self, data: Any, where: str) -> None:
        self.data = data
        self.where = where

    def __getitem__(self, name: str) -> _Field:
        """The field of that name; None where there is none."""
        return _Field(self.mapping().get(name), f"{self.where}.{name}".lstrip("."))

    def wrong(self, expected: str) -> ValueError:
        got = "nothing" if self.data is None else f"{self.data!r:.60}"
        return ValueError(f"{self.where or 'the document'}: expected {expected}, got {got}")

    def mapping(self) -> Mapping[str, Any]:
        if not isinstance(self.data, dict):
            raise self.wrong("an object")
        return self.data

    def items(self, most: int) -> list[_Field]:
        if not isinstance(self.data, list) or len(self.data) > most:
            raise self.wrong(f"an array of at most {most}")
        return [_Field(each, f"{self.where}[{i}]") for i, each in enumerate(self.data)]

    def number(self, least: float = -inf, most: float = inf) -> float:
        if isinstance(self.data, (int, float)) and not isinstance(self.data, bool):
            number = float(self.data) if abs(self.data) <= float_info.max else inf
            if isfinite(number) and least <= number <= most:
                return number
        raise self.wrong("a finite number" if least == -inf else f"a number from {least:g} to {most:g}")

    def number_or_none(self, least: float = -inf) -> float | None:
        return None if self.data is None else self.number(least)

    def count(self) -> float:
        return self.number(0.0, MOST_COUNT)

    def text(self, expected: str) -> str:
        if not isinstance(self.data, str) or not has_a_name(self.data):
            raise self.wrong(expected)
        return str(self.data)

    def text_or_none(self) -> str | None:
        return None if self.data is None else self.text("a text of at most 200 characters")

    def time_or_none(self) -> datetime | None:
        if self.data is None:
            return None
        try:
            return datetime.fromisoformat(self.data)
        except (TypeError, ValueError):
            raise self.wrong("a time as ISO 8601 writes it") from None


def _written(feature: Feature) -> dict[str, Any]:
    missing = feature.counts[-1]
    kind, statistics = _of_categories(feature) if isinstance(feature, Categorical) else _of_numbers(feature)
    statistics["common"] = {"num_present": _whole(sum(feature.counts) - missing), "num_missing": _whole(missing)}
    place = _STATISTICS[kind == "String"]
    return {"name": feature.name, "inferred_type": kind, place: statistics, "block": feature.block}


def _of_categories(feature: Categorical) -> tuple[str, dict[str, Any]]:
    *counts, other = feature.counts[:-1]
    buckets = [{"value": value, "count": _whole(n)} for value, n in zip(feature.values, counts, strict=True)]
    found: dict[str, Any] = {} if other else {"distinct_count": len(feature.values)}
    return "String", found | {"other_count": _whole(other), "distribution": {"categorical": {"buckets": buckets}}}


def _of_numbers(feature: Numeric) -> tuple[str, dict[str, Any]]:
    return "Fractional", {
        "mean": feature.mean,
        "sum": _product(feature.mean, sum(feature.counts[:-1])),
        "std_dev": feature.std,
        "min": feature.minimum,
        "max": feature.maximum,
        "distribution": {"kll": {"buckets": _buckets(feature)}},
    }


def _buckets(feature: Numeric) -> list[dict[str, Any]]:
    """The bins with bounds: the open ends have those of the values."""
    every = [each for each in (feature.minimum, feature.maximum, *feature.edges) if each is not None]
    if not every:
        return []
    bounds = [min(every), *feature.edges, max(every)]
    return [
        {"lower_bound": low, "upper_bound": high, "count": _whole(count)}
        for (low, high), count in zip(pairwise(bounds), feature.counts[:-1], strict=True)
    ]


def _feature(field: _Field, version: float) -> Feature | None:
    """A feature; None for one that SageMaker has no statistics of."""
    name = field["name"].text("a name of at most 200 characters")
    present = [each for each in _STATISTICS if field.mapping().get(each) is not None]
    if not present and version < VERSION and field["inferred_type"].data == "Unknown":
        return None
    if len(present) != 1:
        raise field.wrong("one of numerical_statistics and string_statistics")
    if field.where == "prediction" and name != PREDICTION:
        raise field["name"].wrong(f"{PREDICTION!r}")
    statistics = field[present[0]]
    missing = statistics["common"]["num_missing"].count()
    block = field["block"].number_or_none(0.0)
    if present[0] == _STATISTICS[1]:
        return _categorical(name, statistics, missing, block, version)
    minimum, maximum = statistics["min"].number_or_none(), statistics["max"].number_or_none()
    if minimum is not None and maximum is not None and minimum > maximum:
        raise statistics["max"].wrong(f"at least min, {minimum!r}")
    edges, counts = _bins(statistics["distribution"]["kll"]["buckets"], strict=version == VERSION)
    return Numeric(
        name, edges, (*counts, missing), minimum, maximum,
        statistics["mean"].number_or_none(), statistics["std_dev"].number_or_none(0.0), block,
    )  # fmt: skip


def _categorical(name: str, statistics: _Field, missing: float, block: float | None, version: float) -> Categorical:
    buckets = statistics["distribution"]["categorical"]["buckets"]
    found: dict[str, float] = {}
    other = 0.0
    for each in buckets.items(MOST_BINS if version == VERSION else 100_000):
        value = each["value"].data
        if isinstance(value, str) and has_a_name(value) and len(found) < MOST_BINS - 2 and value not in found:
            found[value] = each["count"].count()
        elif version < VERSION and isinstance(value, str):
            other += each["count"].count()
        else:
            raise each["value"].wrong("another text of at most 200 characters")
    if version == VERSION:
        other = statistics["other_count"].count()
    else:
        other += max(0.0, statistics["common"]["num_present"].count() - sum(found.values()) - other)
    return Categorical(name, tuple(found), (*found.values(), other, missing), block)


def _bins(buckets: _Field, *, strict: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Edges and counts of buckets. SageMaker's may have no width; those are one with their neighbour."""
    fields = buckets.items(MOST_BINS - 1)
    counts = [each["count"].count() for each in fields]
    uppers = [each["upper_bound"].number() for each in fields]
    if not fields:
        return (), (0.0,)
    if not strict and fields[0]["lower_bound"].number() == uppers[-1] and isfinite(nextafter(uppers[-1], -inf)):
        return (nextafter(uppers[-1], -inf), uppers[-1]), (0.0, sum(counts), 0.0)
    edges: list[float] = []
    merged: list[float] = []
    for each, upper, count in zip(fields[:-1], uppers, counts, strict=False):
        if edges and upper == edges[-1] and not strict:
            merged[-1] += count
        elif edges and not upper > edges[-1]:
            raise each["upper_bound"].wrong(f"more than the bucket's before, {edges[-1]!r}")
        else:
            edges.append(upper)
            merged.append(count)
    return tuple(edges), (*merged, counts[-1])


def _whole(count: float) -> int | float:
    return int(count) if count.is_integer() else count


def _product(mean: float | None, n: float) -> float | None:
    product = None if mean is None else mean * n
    return product if product is not None and isfinite(product) else None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
