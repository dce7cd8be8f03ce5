"""The reference: one JSON text for who compares, its layout of cells, and the names of bins."""

from __future__ import annotations

import json
from math import inf, nextafter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_mlops.profile import PREDICTION, Categorical, Numeric, Profile, read_reference, size_of
from otel_mlops.profile.reference import labels_of

PROFILE = Profile(
    features=(
        Numeric("rooms", (1.5, 2.25), (5.0, 3.0, 2.0, 1.0), block=0.25),
        Categorical("kind", ("a", "b"), (5.5, 3.0, 2.0, 0.0)),
    ),
    prediction=Numeric(PREDICTION, (), (10.0, 1.0)),
)


def test_the_reference_of_a_profile():
    """The reference is compact JSON of what the leader needs, the prediction last."""
    text = PROFILE.reference()
    assert " " not in text.replace(", ", ",")
    assert json.loads(text) == {
        "version": 1,
        "features": [
            {
                "name": "rooms", "type": "numeric", "bins": ["(-inf, 1.5]", "(1.5, 2.25]", "(2.25, inf)", "missing"],
                "counts": [5, 3, 2, 1], "reasons": ["below_range", "above_range", "infinite", "type"],
                "apart": 1, "block": 0.25,
            },
            {
                "name": "kind", "type": "categorical", "bins": ["a", "b", "other", "missing"],
                "counts": [5.5, 3, 2, 0], "reasons": ["unseen", "type"], "apart": 4, "block": None,
            },
            {
                "name": PREDICTION, "type": "numeric", "bins": ["(-inf, inf)", "missing"],
                "counts": [10, 1], "reasons": ["below_range", "above_range", "infinite", "type"],
                "apart": 1, "block": None,
            },
        ],
    }  # fmt: skip


def test_the_cells_lie_one_after_the_other():
    """A feature's cells are its bins, then its reasons, and begin where those of the one before end."""
    features = read_reference(PROFILE.reference())
    assert [(each.name, each.offset, each.size) for each in features] == [
        ("rooms", 0, 8),
        ("kind", 8, 6),
        (PREDICTION, 14, 6),
    ]
    assert (size_of(features), size_of([])) == (20, 0)
    for found, feature in zip(features, PROFILE.every_feature, strict=True):
        assert (found.counts, found.reasons, found.apart) == (feature.counts, feature.reasons, feature.apart)
        assert (found.block, list(found.bins)) == (feature.block, labels_of(feature))


EDGES = st.lists(st.floats(allow_nan=False, allow_infinity=False).map(lambda each: each + 0.0), unique=True, max_size=8)


@settings(max_examples=100, deadline=None)
@given(edges=EDGES, own=st.integers(0, 7), values=st.lists(st.text(max_size=9), unique=True, max_size=6))
def test_labels_are_distinct(edges: list[float], own: int, values: list[str]):
    """Whatever the edges and values, each bin has a text of its own, and the reference can be read."""
    if own < len(edges) and nextafter(edges[own], -inf) not in (-inf, *edges):
        edges = [*edges, nextafter(edges[own], -inf)]
    values = [*values, "missing", "other", '"other"'] if own % 2 else values
    numeric = Numeric("n", tuple(sorted(edges)), (1.0,) * (len(edges) + 2))
    categorical = Categorical("k", tuple(dict.fromkeys(values)), (1.0,) * (len(set(values)) + 2))
    for feature in (numeric, categorical):
        labels = labels_of(feature)
        assert len(set(labels)) == len(labels) == len(feature.counts)
        assert "" not in labels
    found = read_reference(Profile((numeric, categorical)).reference())
    assert [each.counts for each in found] == [numeric.counts, categorical.counts]


def test_near_edges_get_more_digits():
    """Labels have as many digits as tell the edges apart; what has a bin of its own is called by itself."""
    near = Numeric("n", (1.0, 1.0 + 1e-9, 2.0), (0.0,) * 5)
    assert labels_of(near)[:3] == ["(-inf, 1]", "(1, 1.000000001]", "(1.000000001, 2]"]
    own = Numeric("n", (-1.0, nextafter(0.0, -inf), 0.0, 3.0), (0.0,) * 6)
    assert labels_of(own) == ["(-inf, -1]", "(-1, 0)", "0", "(0, 3]", "(3, inf)", "missing"]


def test_neighbours_with_bins_of_their_own():
    """Of three edges right beside each other the first two are one value's, and each bin has a name."""
    below = nextafter(1.0, -inf)
    feature = Numeric("n", (nextafter(below, -inf), below, 1.0), (0.0,) * 5)
    assert labels_of(feature) == [
        "(-inf, 0.9999999999999999)", "0.9999999999999999", "(0.9999999999999999, 1]", "(1, inf)", "missing",
    ]  # fmt: skip


def test_a_value_does_not_take_the_name_of_a_bin():
    """A category that is called as the bins other and missing are, or not at all, stands in quotes."""
    feature = Categorical("k", ("missing", "other", '"other"', ""), (0.0,) * 6)
    assert labels_of(feature) == ['"missing"', '""other""', '"other"', '""', "other", "missing"]


def changed(name: str, value: Any) -> str:
    """A reference with a field of the first feature changed."""
    data = json.loads(PROFILE.reference())
    data["features"][0][name] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "1", "null", "{}", '{"version": 2, "features": []}', '{"version": 1, "features": 5}', "[" * 100_000,
        changed("name", 5), changed("name", None), changed("type", "date"), changed("bins", ["a"]),
        changed("bins", ["a", "a", "b", "missing"]), changed("bins", ["missing", "a", "b", "c"]), changed("bins", 4),
        changed("counts", [1, 2, 3, -1]), changed("counts", [1, 2, 3, None]), changed("counts", [1, 2, 3, 10**400]),
        changed("counts", [1, 2, 3, float("nan")]), changed("reasons", [1]), changed("apart", 5),
        changed("apart", True), changed("block", "high"), changed("block", float("inf")),
    ],
)  # fmt: skip
def test_what_is_no_reference_is_told(text: str):
    """Any other text is a ValueError."""
    with pytest.raises(ValueError, match="no reference of a profile"):
        read_reference(text)
