"""The reference: what the leader must know of a profile to compare counts with it, as one JSON text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite, nextafter
from typing import Any

from .feature import MISSING, OTHER, Feature, Numeric

VERSION = 1
_TYPES = ("numeric", "categorical")


@dataclass(frozen=True, slots=True)
class ReferenceFeature:
    """A feature as who compares sees it. Its cells are its bins in order, the missing last, then its reasons."""

    name: str
    type: str
    bins: tuple[str, ...]
    """What the bins are called: distinct texts, `missing` last."""
    counts: tuple[float, ...]
    """How many of training's values each bin has."""
    reasons: tuple[str, ...]
    apart: int
    """How many bins, from the last on, have no place in the order."""
    block: float | None
    offset: int
    """Where its cells begin: the features' cells lie one after the other."""

    @property
    def size(self) -> int:
        """How many cells it has."""
        return len(self.counts) + len(self.reasons)


def reference_of(features: Sequence[Feature]) -> str:
    """Return the reference of features, in their order, as compact JSON in ASCII."""
    data = [
        {
            "name": feature.name,
            "type": _TYPES[0] if isinstance(feature, Numeric) else _TYPES[1],
            "bins": labels_of(feature),
            "counts": [int(count) if count.is_integer() else count for count in feature.counts],
            "reasons": feature.reasons,
            "apart": feature.apart,
            "block": feature.block,
        }
        for feature in features
    ]
    return json.dumps({"version": VERSION, "features": data}, separators=(",", ":"), allow_nan=False)


def read_reference(text: str) -> list[ReferenceFeature]:
    """Return the features of a reference, in order.

    Errors:  ValueError for any text that `reference_of` cannot have written.
    """
    try:
        return _features(json.loads(text))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"no reference of a profile: {error!r}") from None


def size_of(features: Sequence[ReferenceFeature]) -> int:
    """Return how many cells all features have together."""
    return features[-1].offset + features[-1].size if features else 0


def labels_of(feature: Feature) -> list[str]:
    """Return what the bins of a feature are called, in their order: short texts, each another one.

    A number that has a bin of its own is called by itself.

    >>> labels_of(Numeric("rooms", edges=(1.5, 2.25), counts=(5.0, 3.0, 2.0, 0.0)))
    ['(-inf, 1.5]', '(1.5, 2.25]', '(2.25, inf)', 'missing']
    >>> labels_of(Numeric("debt", edges=(nextafter(0.0, -inf), 0.0), counts=(0.0, 9.0, 1.0, 0.0)))
    ['(-inf, 0)', '0', '(0, inf)', 'missing']
    """
    if isinstance(feature, Numeric):
        return [*_intervals(feature.edges), MISSING]
    labels = [OTHER, MISSING]
    for value in reversed(feature.values):
        label = value
        while label in (OTHER, MISSING, "") or (label != value and label in feature.values):
            label = f'"{label}"'
        labels.insert(0, label)
    return labels


def _intervals(edges: Sequence[float]) -> list[str]:
    """The bins between edges. Of two edges right beside each other, the second is a value with a bin of its own."""
    before: set[int] = set()
    for i, (low, high) in enumerate(pairwise(edges)):
        if i - 1 not in before and low == nextafter(high, -inf):
            before.add(i)
    shown = [edge for i, edge in enumerate(edges) if i not in before]
    digits = 6
    while len({f"{edge:.{digits}g}" for edge in shown}) < len(shown):
        digits += 1  # 17 tell any two numbers apart
    labels, begin = [], "(-inf"
    for i, edge in enumerate(edges):
        text = f"{edges[i + 1] if i in before else edge:.{digits}g}"
        if i in before:
            labels.append(f"{begin}, {text})")
        else:
            labels.append(text if i - 1 in before else f"{begin}, {text}]")
            begin = f"({text}"
    return [*labels, f"{begin}, inf)"]


def _features(data: Any) -> list[ReferenceFeature]:
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']!r}, expected {VERSION}")
    features: list[ReferenceFeature] = []
    for each in data["features"]:
        features.append(_feature(each, size_of(features)))
    return features


def _feature(data: Any, offset: int) -> ReferenceFeature:
    name, kind, block, apart = data["name"], data["type"], data["block"], data["apart"]
    bins, reasons = tuple(data["bins"]), tuple(data["reasons"])
    counts = tuple([float(count) for count in data["counts"]])
    if not all(isinstance(text, str) for text in (name, *bins, *reasons)) or kind not in _TYPES:
        raise ValueError(f"a name is no text, or the type {kind!r} is none of {_TYPES}")
    if len(bins) != len(counts) or not bins or len({*bins}) < len(bins) or bins[-1] != MISSING:
        raise ValueError(f"{len(bins)} bins and {len(counts)} counts of {name!r}")
    if not all(isfinite(count) and count >= 0.0 for count in counts):
        raise ValueError(f"the counts of {name!r} are not all counts")
    if type(apart) is not int or not 0 <= apart <= len(bins):
        raise ValueError(f"{apart!r} bins of {name!r} are apart")
    if block is not None and not isfinite(block):
        raise ValueError(f"the block of {name!r} is {block!r}")
    return ReferenceFeature(name, kind, bins, counts, reasons, apart, block, offset)
