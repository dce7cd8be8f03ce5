"""Profiles as JSON: what is saved is loaded, SageMaker's statistics too, and anything else is told what is wrong."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from otel_mlops.profile import PREDICTION, Categorical, Numeric, Profile

SCHEMA = json.loads(files("otel_mlops.profile").joinpath("profile.schema.json").read_text())
VALID = Draft202012Validator(SCHEMA)

FULL = Profile.fit(
    {"rooms": [float(each) for each in range(40)], "kind": ["a", "b", None, "a"] * 10, "empty": [None] * 40},
    predictions=[each % 2 for each in range(40)],
    truth=[each % 3 == 0 for each in range(40)],
    scores=[each / 40 for each in range(40)],
    timestamps=[each * 10_800.0 for each in range(40)],
    block="hour",
    model_name="housing",
    model_version="v1",
    created_at=datetime(2024, 5, 1, tzinfo=UTC),
)


def test_the_schema_is_one():
    """The schema is a valid JSON schema, and a profile with everything is valid by it."""
    Draft202012Validator.check_schema(SCHEMA)
    VALID.validate(json.loads(FULL.to_json()))
    assert FULL.calibration
    assert FULL.features[0].block


FLOATS = st.one_of(st.none(), st.floats(), st.integers(), st.sampled_from([0.0, -0.0, 1e308, -1.7976931348623157e308]))
TEXTS = st.one_of(st.none(), st.text(max_size=3), st.sampled_from(["missing", "other", "\ud800", "a" * 201, "\x00"]))


@settings(max_examples=80, deadline=None)
@given(
    numbers=st.lists(FLOATS, min_size=1, max_size=30),
    texts=st.lists(TEXTS, min_size=1, max_size=30),
    bins=st.integers(2, 12),
    version=st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=5)),
)
def test_what_is_saved_is_loaded(numbers: list[Any], texts: list[Any], bins: int, version: str | None):
    """Any profile is the same after it was text, with the same digest, and is valid by the schema."""
    rows = min(len(numbers), len(texts))
    data = {"n": numbers[:rows], "k": texts[:rows]}
    profile = Profile.fit(data, numbers[:rows], bins=bins, categories=3, categorical=["k"], model_version=version)
    text = profile.to_json()
    VALID.validate(json.loads(text))
    loaded = Profile.from_json(text)
    assert loaded == profile
    for feature in json.loads(text)["features"][:1]:
        for bucket in feature["numerical_statistics"]["distribution"]["kll"]["buckets"]:
            assert bucket["lower_bound"] <= bucket["upper_bound"]
    assert (loaded.digest, loaded.to_json(), loaded.reference()) == (profile.digest, text, profile.reference())
    assert [sum(feature.counts) for feature in loaded.every_feature] == [rows] * 3


def test_a_file_is_written_and_read(tmp_path: Path):
    """save() and load() take a text or a path, and leave nothing beside the file."""
    path = tmp_path / "model.profile.json"
    path.write_text("before")
    FULL.save(path)
    FULL.save(str(path))
    assert Profile.load(str(path)) == Profile.load(path) == FULL
    assert os.listdir(tmp_path) == [path.name]  # noqa: PTH208 (its names)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_that_cannot_be_written(tmp_path: Path):
    """A folder that is not there, and a folder in the file's place, are told by the given name; nothing is left."""
    with pytest.raises(FileNotFoundError, match=r"nowhere.p\.json"):
        FULL.save(tmp_path / "nowhere" / "p.json")
    (tmp_path / "p.json").mkdir()
    with pytest.raises(OSError, match=r"p\.json"):
        FULL.save(tmp_path / "p.json")
    assert os.listdir(tmp_path) == ["p.json"]  # noqa: PTH208 (its names)


def test_the_digest_tells_references_apart():
    """Bins, counts and blocks change the digest; names of the model, moments and training scores do not."""
    one = Profile.fit([1.0, 2.0, 3.0, 4.0], bins=2, model_name="a")
    assert len(one.digest) == 16
    assert int(one.digest, 16) >= 0
    assert one.digest == Profile.fit([1.5, 2.0, 3.0, 5.0], [1, 2, 3, 4], bins=2).__class__(one.features).digest
    assert one.digest == Profile.fit([0.5, 2.0, 3.0, 4.0], bins=2).digest
    others = [
        Profile.fit([1.0, 2.0 + 1e-15, 3.0, 4.0], bins=2),  # the labels of the bins are the same
        Profile.fit([1.0, 2.0, 3.0, 4.0, None], bins=2),
        Profile.fit([1.0, 2.0, 3.0, 4.0], names=["y"], bins=2),
        Profile.fit([1.0, 2.0, 3.0, 4.0], [1, 1, 1, 2], bins=2),
    ]
    assert len({one.digest, *[other.digest for other in others]}) == 5


# --- What is no profile -----------------------------------------------------------------------------------


def changed(*place: Any, to: Any) -> str:
    """The text of the full profile with another value at a place."""
    data = copy.deepcopy(json.loads(FULL.to_json()))
    part = data
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = to
    return json.dumps(data)


NUMBERS = ("features", 0, "numerical_statistics")
BUCKETS = (*NUMBERS, "distribution", "kll", "buckets")
VALUES = ("features", 1, "string_statistics", "distribution", "categorical", "buckets")
BUCKET = {"lower_bound": 0, "upper_bound": 1, "count": 1}
HOSTILE: list[tuple[str, str]] = [
    ("", "expected JSON"),
    (FULL.to_json()[:-20], "expected JSON"),
    ("[" * 100_000, "less deep"),
    ("[]", "the document: expected an object"),
    ("{}", "version: expected the version of a profile, 1, got nothing"),
    (changed("version", to=2), "version: 2 is of a newer otel-mlops.*pip install --upgrade"),
    (changed("version", to=True), "version: expected"),
    (changed("version", to=0.5), "version: expected"),
    (changed("version", to="1"), "version: expected"),
    (changed("features", to=[]), "features: 0 features, expected 1 to 10000"),
    (changed("features", to={}), "features: expected an array of at most 10000"),
    (changed("features", to=[1] * 10_001), "features: expected an array of at most 10000"),
    (changed("features", 0, to=None), r"features\[0\]"),
    (changed("features", 0, "name", to=5), r"features\[0\].name: expected a name of at most 200 characters, got 5"),
    (changed("features", 0, "name", to="a" * 201), r"features\[0\].name"),
    (changed("features", 0, "name", to="\ud800"), r"features\[0\].name"),
    (changed("features", 0, "name", to=""), "features: '' cannot name a feature"),
    (changed("features", 0, "name", to="kind"), "features: two features are named 'kind'"),
    (changed("features", 0, "name", to=PREDICTION), "cannot name a feature"),
    (changed("features", 0, "string_statistics", to={}), r"features\[0\]: expected one of"),
    (changed("features", 0, "block", to=-1), r"features\[0\].block: expected a number from 0"),
    (changed("features", 0, "block", to=10**400), r"features\[0\].block"),
    (changed(*NUMBERS, to=[]), r"features\[0\].numerical_statistics: expected an object"),
    (changed(*NUMBERS, "mean", to="1"), r"numerical_statistics.mean: expected a finite number, got '1'"),
    (changed(*NUMBERS, "mean", to=10**400), "numerical_statistics.mean"),
    (changed(*NUMBERS, "mean", to=math.nan), "expected JSON: NaN"),
    (changed(*NUMBERS, "mean", to=math.inf), "expected JSON: Infinity"),
    (changed(*NUMBERS, "std_dev", to=-1), "std_dev: expected a number from 0"),
    (changed(*NUMBERS, "max", to=-9), r"max: expected at least min, 0.0, got -9"),
    (changed(*NUMBERS, "common", "num_missing", to=-1), "num_missing"),
    (changed(*NUMBERS, "common", "num_missing", to=2**53 + 2), "num_missing"),
    (changed(*BUCKETS, to=[BUCKET] * 1_000), "buckets: expected an array of at most 999"),
    (changed(*BUCKETS, 1, "upper_bound", to=-5), r"buckets\[1\].upper_bound: expected more than the bucket's before"),
    (changed(*BUCKETS, 1, "upper_bound", to=None), r"buckets\[1\].upper_bound: expected a finite number, got nothing"),
    (changed(*BUCKETS, 0, "count", to=False), r"buckets\[0\].count"),
    (changed(*VALUES, 0, "value", to=1), r"buckets\[0\].value: expected another text"),
    (changed(*VALUES, 0, "value", to="b"), r"buckets\[1\].value: expected another text"),
    (changed(*VALUES, to=[{"value": str(i), "count": 1} for i in range(999)]), "another text"),
    (changed("features", 1, "string_statistics", "other_count", to=None), "other_count"),
    (changed("prediction", "name", to="price"), "prediction.name: expected '__prediction__'"),
    (changed("prediction", to=[]), "prediction"),
    (changed("calibration", to=[0.5]), "calibration: expected 148 shares"),
    (changed("calibration", 3, to=1.5), r"calibration\[3\]: expected a number from 0 to 1, got 1.5"),
    (changed("training", to={"accuracy": "high"}), "training.accuracy: expected a finite number"),
    (changed("training", to={str(i): 1 for i in range(101)}), "training: expected at most 100"),
    (changed("dataset", to=None), "dataset: expected an object, got nothing"),
    (changed("model", "version", to=7), "model.version: expected a text"),
    (changed("created_at", to="yesterday"), "created_at: expected a time"),
    (changed("created_at", to=5), "created_at: expected a time"),
]


@pytest.mark.parametrize(("text", "message"), HOSTILE)
def test_what_is_no_profile_is_told(tmp_path: Path, text: str, message: str):
    """A wrong, truncated, hostile or newer file is a ValueError with the path, the field and what is expected."""
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"broken\.json: .*{message}"):
        Profile.load(path)


def test_what_is_no_text_is_told(tmp_path: Path):
    """Bytes that are no text, a device without an end, a pipe that nobody writes and a large file are told as well."""
    path = tmp_path / "bytes.json"
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"bytes\.json: .*utf-8"):
        Profile.load(path)
    with pytest.raises(ValueError, match="/dev/zero: expected a file"):
        Profile.load("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: expected a file"):
        Profile.load(tmp_path / "pipe")
    with path.open("wb") as file:
        file.truncate(64_000_001)
    with pytest.raises(ValueError, match=r"bytes\.json: expected at most 64000000 bytes"):
        Profile.load(path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        Profile.load(tmp_path / "nothing.json")


def places_of(data: Any) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    steps = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else []
    return [place for step, part in steps for place in ((step,), *[(step, *rest) for rest in places_of(part)])]


def test_a_count_of_minus_nought_is_nought():
    """A profile that was loaded with one is the same profile when it was written and loaded again."""
    profile = Profile.from_json(changed("features", 1, "string_statistics", "other_count", to=-0.0))
    assert Profile.from_json(profile.to_json()).digest == profile.digest


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_document_raises_anything_else(data: st.DataObject):
    """Whatever stands in a field, the document is a profile that can be written again, or a ValueError."""
    place = data.draw(st.sampled_from(PLACES))
    value = data.draw(st.one_of(*ANYTHING))
    try:
        profile = Profile.from_json(changed(*place, to=value))
    except ValueError:
        return
    assert Profile.from_json(profile.to_json()).digest == profile.digest


ANYTHING = [
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.sampled_from([[], {}, [[]]]),
]  # fmt: skip
PLACES = [place for place in places_of(json.loads(FULL.to_json())) if "calibration" not in place[:1] or len(place) == 1]

# --- SageMaker --------------------------------------------------------------------------------------------

SAGEMAKER: dict[str, Any] = {
    "version": 0.0,
    "dataset": {"item_count": 100},
    "features": [
        {
            "name": "rooms",
            "inferred_type": "Fractional",
            "numerical_statistics": {
                "common": {"num_present": 97, "num_missing": 3},
                "mean": 4.2, "sum": 407.4, "std_dev": 1.5, "min": 0.0, "max": 10.0,
                "distribution": {"kll": {
                    "buckets": [
                        {"lower_bound": float(i), "upper_bound": i + 1.0, "count": 7.0 + 3 * i} for i in range(10)
                    ],
                    "sketch": {"parameters": {"c": 0.64, "k": 2048.0}, "data": [[1.0, 2.0], []]},
                }},
            },
        },
        {
            "name": "constant",
            "inferred_type": "Integral",
            "numerical_statistics": {
                "common": {"num_present": 100, "num_missing": 0},
                "mean": 5.0, "sum": 500.0, "std_dev": 0.0, "min": 5.0, "max": 5.0,
                "distribution": {"kll": {"buckets": [{"lower_bound": 5.0, "upper_bound": 5.0, "count": 10.0}] * 10}},
            },
        },
        {
            "name": "kind",
            "inferred_type": "String",
            "string_statistics": {
                "common": {"num_present": 99, "num_missing": 1},
                "distinct_count": 4.0,
                "distribution": {"categorical": {"buckets": [
                    {"value": "a", "count": 50}, {"value": "b", "count": 30}, {"value": "c" * 300, "count": 4},
                ]}},
            },
        },
        {"name": "strange", "inferred_type": "Unknown"},
    ],
}  # fmt: skip


def test_sagemakers_statistics_are_a_profile():
    """Buckets become bins, a constant has a bin of its own, and what has no statistics is left out."""
    profile = Profile.from_json(json.dumps(SAGEMAKER))
    below = math.nextafter(5.0, 0.0)
    assert profile.rows == 100
    assert profile.features == (
        Numeric(
            "rooms", tuple(map(float, range(1, 10))), (*[7.0 + 3 * i for i in range(10)], 3.0), 0.0, 10.0, 4.2, 1.5
        ),
        Numeric("constant", (below, 5.0), (0.0, 100.0, 0.0, 0.0), 5.0, 5.0, 5.0, 0.0),
        Categorical("kind", ("a", "b"), (50.0, 30.0, 19.0, 1.0)),
    )
    assert Profile.from_json(profile.to_json()) == profile
    VALID.validate(json.loads(profile.to_json()))


def test_our_fields_are_sagemakers():
    """Each field of SageMaker's features, but for the sketch, stands in our document with the same meaning."""

    def fields(data: Any, at: str = "") -> set[str]:
        steps = (
            data.items()
            if isinstance(data, dict)
            else [("[]", each) for each in data]
            if isinstance(data, list)
            else []
        )
        return {at}.union(*[fields(part, f"{at}.{step}") for step, part in steps])

    ours = json.loads(Profile.fit({"n": [1.0, 2.0], "k": ["a", "b"]}).to_json())
    wanted: Callable[[set[str]], set[str]] = lambda found: {each for each in found if "sketch" not in each}  # noqa: E731
    assert wanted(fields(SAGEMAKER)) <= fields(ours)
    statistics = ours["features"][0]["numerical_statistics"]
    assert (statistics["sum"], statistics["common"]) == (3.0, {"num_present": 2, "num_missing": 0})


def test_buckets_without_width_are_one_with_their_neighbour():
    """Where rounding left a bucket of SageMaker's no width, its count is its neighbour's."""
    statistics = copy.deepcopy(SAGEMAKER)
    buckets = statistics["features"][0]["numerical_statistics"]["distribution"]["kll"]["buckets"]
    buckets[3]["upper_bound"] = buckets[4]["lower_bound"] = buckets[2]["upper_bound"]
    (feature, *_) = Profile.from_json(json.dumps(statistics)).features
    assert isinstance(feature, Numeric)
    assert feature.edges == (1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    assert feature.counts == (7.0, 10.0, 13.0 + 16.0, 19.0, 22.0, 25.0, 28.0, 31.0, 34.0, 3.0)


@pytest.mark.parametrize("part", ["numerical_statistics", "dataset", "features"])
def test_broken_statistics_are_told(part: str):
    """SageMaker's file with a part missing is a ValueError that names it."""
    broken = copy.deepcopy(SAGEMAKER)
    broken.pop(part, None) or broken["features"][0].pop(part)
    with pytest.raises(ValueError, match=r"dataset|features"):
        Profile.from_json(json.dumps(broken))
