"""What holds for the samples of every source, whatever it reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from otel_mlops.metrics import CATALOGUE, Metric
from otel_mlops.sources.watched import Sample

Series = tuple[Metric, frozenset[tuple[str, str]]]

_DECLARED = {row.name: row for row in CATALOGUE}
_SIGNED = {"Cel"}
"""The units in which there is less than nothing."""


def series_of(samples: Iterable[Sample]) -> Mapping[Series, float]:
    """The values of one reading by series, once they hold the contract of a source."""
    values: dict[Series, float] = {}
    for sample in samples:
        row, value, labels = sample
        assert _DECLARED.get(row.name) is row, f"{row.name} is not declared"
        assert type(value) in {int, float}, sample
        assert math.isfinite(value), sample
        assert value >= 0 or (row.unit in _SIGNED and row.kind == "gauge"), sample
        assert value <= 100 or row.unit != "%", sample
        assert value == 1 or row.kind != "info", sample
        allowed = {*row.attributes, *row.optional_attributes}
        assert set(row.attributes) <= labels.keys() <= allowed, sample
        for key, text in labels.items():
            assert isinstance(text, str), sample
            assert text, sample
            assert text in row.values.get(key, (text,)), sample
        series = (row, frozenset(labels.items()))
        assert series not in values, f"twice: {sample}"
        values[series] = value
    return values
