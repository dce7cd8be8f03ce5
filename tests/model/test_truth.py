"""Late truth: what becomes of it by each of the three ways, whatever is told, and what stands in the cells then."""

from __future__ import annotations

import json
import logging
import math
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_mlops.metrics import DROPPED, GROUND_TRUTH, GROUND_TRUTH_DELAY, PREDICTION_CLASS, PREDICTION_CONFIDENCE
from otel_mlops.model.answers import label_of
from otel_mlops.model.database import StoreError
from otel_mlops.model.keys import Keys
from otel_mlops.model.receipts import Receipts
from otel_mlops.model.store import Store
from otel_mlops.model.truth import Truth
from otel_mlops.numbers.probability import BINS, SCORE_BOUNDS, estimated_accuracy
from otel_mlops.profile import Profile
from otel_mlops.sdk.provider import MeterProvider
from tests.sdk.workers import Worker, state_folder

MODEL = {"model_name": "m", "model_version": "1"}
NOON = 1_700_000_000.0


class Service:
    """One model in service, with a clock that is set, and what it has counted."""

    def __init__(
        self,
        provider: MeterProvider | None = None,
        *,
        labels: dict[str, str] = MODEL,
        store: Any = None,
        clock: Any = None,
        **about: Any,
    ) -> None:
        self.clock = clock or SimpleNamespace(now=NOON)
        self.provider = provider or MeterProvider(shutdown_on_exit=False)
        self.store = store or Store(clock=self.now)
        receipts = Receipts(Keys("a key of some length"), *labels.values(), max_age_s=3600.0, clock=self.now)
        self.truth = Truth(
            self.provider, labels, **{"type": None, "positive": None, "profile": None, **about},
            receipts=lambda: receipts, store=lambda: self.store, clock=self.now,
        )  # fmt: skip
        self.tell = self.truth.record

    def now(self) -> float:
        """The time."""
        return float(self.clock.now)

    def cells(self, name: str) -> dict[tuple[str, ...], list[float]]:
        """The cells of a name, by the labels beyond the model's."""
        return {
            tuple(labels[each] for each in labels if each not in MODEL): cells
            for found, _, labels, cells in self.provider.everyone.cells()
            if found == f"quality/{name}"
        }

    def pairs(self) -> dict[tuple[str, ...], float]:
        """How often each class was taken for which; with which of them is positive, if that is known."""
        return {labels: count for labels, (count,) in self.cells("confusion").items()}

    def totals(self, row: Any) -> dict[str, float]:
        """The totals of a row, by the label that is not the model's."""
        return {
            ".".join(str(value) for name, value in attributes.items() if name not in MODEL): value
            for attributes, value in self.provider.totals(row)
            if value
        }

    def results(self) -> dict[str, float]:
        """What became of the truths."""
        return self.totals(GROUND_TRUTH)

    def known(self) -> int:
        """How many truths are in the cells."""
        sums = [cells[0] for name in ("confusion", "regression") for cells in self.cells(name).values()]
        return int(sum(sums))


@pytest.fixture
def state() -> Iterator[Path]:
    """The folder of the groups."""
    with state_folder() as folder:
        yield folder


# --- The three ways ---------------------------------------------------------------------------------------------------


def test_a_prediction_with_its_truth_is_matched():
    """What is told as matched is in the cells, and nothing of it needs a receipt or an id."""
    service = Service(type="regression")
    assert service.tell(actual=3.0, prediction=5.0) == "matched"
    assert service.cells("regression") == {("0.0",): [1.0, 2.0, 4.0, 2.0, 3.0, 9.0]}
    assert service.results() == {"matched": 1}
    assert not service.cells("matched")


def test_a_receipt_is_matched_once():
    """A truth by receipt counts once, with its delay; what is handed in again is a duplicate."""
    service = Service(type="regression")
    first, second = service.truth.issue([5.0, 7.0], None)
    service.clock.now += 600.0
    assert [service.tell(actual=4.0, receipt=each) for each in (first, first, second)] == [
        "matched", "duplicate", "matched",
    ]  # fmt: skip
    assert service.cells("regression") == {("0.0",): [2.0, 4.0, 10.0, 4.0, 8.0, 32.0]}
    assert service.cells("asked") == {(): [2.0]}
    assert service.cells("matched") == {(): [2.0, 1200.0]}
    assert service.totals(GROUND_TRUTH_DELAY) == {"": 2}
    assert service.results() == {"matched": 2, "duplicate": 1}


def test_receipts_that_are_not_taken_are_told_apart():
    """An altered, an old, another model's and no receipt each have their result, and count in no score."""
    service = Service(type="regression")
    other = Service(labels={"model_name": "m", "model_version": "2"}, type="regression")
    (receipt,) = service.truth.issue(5.0, None)
    altered = receipt[:-2] + ("A" if receipt[-2] != "A" else "B") + receipt[-1]
    assert service.tell(actual=1.0, receipt=altered) == "forged"
    assert other.tell(actual=1.0, receipt=receipt) == "unmatched"
    for nothing in ("", "?", "x" * 5000, b"\xff", 17, ["a"], {}, object()):
        assert service.tell(actual=1.0, receipt=nothing) == "invalid"
    service.clock.now += 3601.0
    assert service.tell(actual=1.0, receipt=receipt) == "expired"
    assert service.known() == other.known() == 0
    assert service.results() == {"forged": 1, "invalid": 8, "expired": 1}


def test_a_truth_that_is_none_does_not_spend_the_receipt():
    """Who hands in nonsense, or a label for a number, can still hand in the truth."""
    service = Service()
    (receipt,) = service.truth.issue(5.0, None)
    for nonsense in (None, math.nan, math.inf, "five", True, 1e200, [5.0], object()):
        assert service.tell(actual=nonsense, receipt=receipt) == "invalid"
    assert service.tell(actual=5.0, receipt=receipt) == "matched"


@pytest.mark.parametrize("id_", ["order", 17, uuid.UUID(int=3), np.int64(4), "é\udc80" * 500])
def test_an_id_is_matched_once(id_: Any):
    """A truth by id finds the prediction that was made with it, once, with its delay."""
    service = Service(type="binary")
    assert service.tell(actual="yes", id="another") == "unmatched"
    service.truth.remember(id_, "yes", 0.75)
    service.clock.now += 60.0
    assert [service.tell(actual="no", id=id_) for _ in range(2)] == ["matched", "duplicate"]
    assert service.pairs() == {("no", "yes", "predicted"): 1.0}
    (cells,) = service.cells("scores").values()
    assert [place for place, count in enumerate(cells[:-2]) if count] == [BINS + SCORE_BOUNDS.index(0.75)]
    assert cells[-2:] == [0.5625, pytest.approx(math.log(4))]
    assert service.cells("asked") == {(): [1.0]}
    assert service.cells("matched") == {(): [1.0, 60.0]}


def test_a_truth_that_comes_first_waits():
    """A truth by an id that is not known yet is unmatched, and matched when the prediction comes."""
    service = Service(type="regression")
    assert service.tell(actual=4.0, id="a") == "unmatched"
    assert service.tell(actual=5.0, id="a") == "duplicate"
    service.truth.remember(["b", "a"], np.array([1.0, 6.0]), None)
    assert service.cells("regression") == {("0.0",): [1.0, 2.0, 4.0, 2.0, 4.0, 16.0]}
    assert service.results() == {"unmatched": 1, "duplicate": 1, "matched": 1}
    assert service.cells("matched") == {(): [1.0, 0.0]}


def test_a_class_that_comes_first_keeps_its_digits():
    """The truth of a classifier waits as a label: a large number is not rounded."""
    service = Service(type="classification")
    service.tell(actual=2**60 + 1, id="a")
    service.truth.remember("a", 2**60 + 1, None)
    assert service.pairs() == {(str(2**60 + 1), str(2**60 + 1)): 1.0}


def test_no_delay_is_negative():
    """A truth that is told after the clock was set back has come at once."""
    service = Service(type="regression")
    (receipt,) = service.truth.issue(1.0, None)
    service.clock.now -= 600.0
    assert service.tell(actual=1.0, receipt=receipt) == "matched"
    assert service.cells("matched") == {(): [1.0, 0.0]}


def test_ids_of_several_models_are_apart():
    """Two models in one store, or two versions, may have the same ids."""
    one = Service(type="regression")
    other = Service(one.provider, labels={**MODEL, "model_version": "2"}, store=one.store, type="regression")
    one.truth.remember("a", 1.0, None)
    assert other.tell(actual=1.0, id="a") == "unmatched"
    assert one.tell(actual=1.0, id="a") == "matched"


@pytest.mark.parametrize("bad", [None, True, 1.5, b"a", [], {}, object(), np.float64(1.0)])
def test_what_is_no_id_is_invalid(bad: Any):
    """Texts, whole numbers and UUIDs are ids; nothing else is kept, and nothing raises."""
    service = Service(type="regression")
    service.truth.remember(bad, 1.0, None)
    assert service.cells("asked") == {}
    if bad is not None:
        assert service.tell(actual=1.0, id=bad) == "invalid"


class Troubled:
    """A store that nobody gets at."""

    def __getattr__(self, verb: str) -> Any:
        def refuse(*_: Any) -> Any:
            raise StoreError("busy", verb)

        return refuse


def test_a_store_that_is_busy_says_so():
    """What cannot be looked up in time is busy and not spent; predictions that cannot be kept are counted."""
    service = Service(store=Troubled(), type="regression")
    (receipt,) = service.truth.issue(5.0, None)
    service.truth.remember(["a", "b"], [1.0, 2.0], None)
    assert service.tell(actual=5.0, receipt=receipt) == service.tell(actual=5.0, id="a") == "busy"
    assert service.known() == 0
    assert service.cells("asked") == {(): [1.0]}
    assert service.totals(DROPPED) == {"truth": 2}
    service.store = Store(clock=service.now)
    assert service.tell(actual=5.0, receipt=receipt) == "matched"


def test_what_was_matched_outlives_the_worker(state: Path):
    """A truth that a worker has told as matched counts after its SIGKILL, and its receipt is spent for all."""
    first, second = Worker(state), Worker(state)
    store = Store(lambda: first.group.folder)
    one, other = (Service(each.provider, store=store, type="regression") for each in (first, second))
    (receipt,) = one.truth.issue(5.0, None)
    other.truth.remember("a", 1.0, None)
    assert one.tell(actual=4.0, receipt=receipt) == one.tell(actual=4.0, id="a") == "matched"
    first.die()
    assert other.known() == 2
    assert other.cells("matched") == {(): [2.0, 0.0]}
    assert other.tell(actual=4.0, receipt=receipt) == other.tell(actual=4.0, id="a") == "duplicate"
    store.close()


# --- The caller's mistakes, and hostile values ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({}, TypeError, "exactly one of prediction, receipt and id"),
        ({"prediction": 1, "id": "a"}, TypeError, "prediction and id"),
        ({"prediction": 1, "receipt": "a", "id": "a"}, TypeError, "prediction and receipt and id"),
        ({"prediction": 1, "score": 0.5, "scores": {}}, ValueError, "score and scores"),
        ({"receipt": "a", "score": 0.5}, ValueError, "the receipt has"),
        ({"prediction": [1, 2]}, ValueError, "prediction: 2 rows, actual: one value"),
        ({"prediction": 1, "actual": [1, 2]}, ValueError, "prediction: one value, actual: 2 rows"),
        ({"prediction": [1, 2], "actual": np.zeros(3)}, ValueError, "prediction: 2 rows, actual: 3 rows"),
        ({"prediction": [1], "actual": [1], "score": [0.1, 0.2]}, ValueError, "score: 2 rows"),
        ({"prediction": [1], "actual": [1], "scores": {"1": 0.5}}, ValueError, "score: one value"),
    ],
)
def test_a_mistake_in_the_call_names_the_argument(arguments: Any, error: type[Exception], named: str):
    """Not exactly one way, and batches of different lengths, are errors, and count as nothing."""
    service = Service()
    with pytest.raises(error, match=named):
        service.tell(**{"actual": 1, **arguments})
    assert service.results() == {}


class Hostile:
    """Raises whatever it is asked."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __float__(self) -> float:
        raise RuntimeError

    def __len__(self) -> int:
        raise RuntimeError

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


HOSTILE = [
    None, math.nan, -math.inf, "", "a", "\udc80", b"a", True, 0, -1, 2**2000, 1e308, -1e308, 1 + 2j, Hostile(), [],
    [[]], [Hostile()], {}, {"a": Hostile()}, np.array([]), np.array(["a", None], object), np.zeros((2, 3)),
    np.array(3.0), np.datetime64("2020-01-01"), pd.NA, pd.Series([1.5, None]), pd.Categorical(["a"]), range(3),
    object, len, {1, 2}, [1, "a"], [0.1, 0.9], {"a": 0.1, "b": 0.9}, {1: math.nan}, (each for each in "ab"),
]  # fmt: skip
PLACES = st.integers(0, len(HOSTILE) - 1)
"""Not the values themselves: some cannot be printed."""


@settings(max_examples=120, deadline=None)
@given(
    st.tuples(PLACES, PLACES, PLACES),
    st.sampled_from([None, "regression", "binary"]),
    st.sampled_from(["prediction", "receipt", "id"]),
)
def test_nothing_that_is_told_raises(places: tuple[int, int, int], type_: str | None, way: str):
    """Whatever the values are, a truth has a result, all cells are finite, and each count is of one truth."""
    said, true, scores = [HOSTILE[place] for place in places]
    service = Service(type=type_)
    service.truth.estimate(said, scores)
    receipts = service.truth.issue(said, scores)
    service.truth.remember(["a"], said, scores)
    service.truth.remember("b", said, scores)
    told = {
        "prediction": {"prediction": said, "scores": scores},
        "receipt": {"receipt": receipts[0] if receipts else ""},
        "id": {"id": "a"},
    }[way]
    with suppress(TypeError, ValueError):  # of the caller's mistakes, which another test is of
        service.tell(actual=true, **told)
    assert all(math.isfinite(cell) for *_, cells in service.provider.everyone.cells() for cell in cells)
    assert service.known() == service.results().get("matched", 0)


@pytest.mark.parametrize("numpy", [True, False])
def test_sums_stay_finite(numpy: bool):
    """Numbers whose squares would not be finite are invalid, one by one and in batches of either kind."""
    service = Service(type="regression")
    said, true = [1e308, 1e151, 1.0, math.nan, 5.0, -1e308], [-1e308, 0.0, 1e151, 1.0, 4.0, -1e308]
    for one, other in zip(said, true, strict=True):
        assert service.tell(actual=other, prediction=one) == ("matched" if one == 5.0 else "invalid")
    batch = (np.array(said), np.array(true)) if numpy else (said, true)
    assert service.tell(actual=batch[1], prediction=batch[0]) == "invalid"
    assert service.cells("regression") == {("0.0",): [2.0, 2.0, 2.0, 2.0, 8.0, 32.0]}
    assert service.results() == {"matched": 2, "invalid": 10}


# --- Kinds, labels and scores -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "prediction", "actual", "expected"),
    [
        (None, 1, 2.5, "regression"), (None, "1", "2", "confusion"), (None, True, np.bool_(False), "confusion"),
        (None, 1, "1", None), ("a regressor", 1, "1", None), ("regression", True, 1.0, None),
        ("multi-output regression", 1, 2, "regression"), ("Binary", 1, "1", "confusion"),
        ("logistic regression", 0, 1, "confusion"), ("multi", 1.0, 2, "confusion"), ("classifier", 2, None, None),
        ("fraud", np.float32(1.5), 2, "regression"), ("classification", math.nan, 1, None), (None, "a", "", None),
    ],
)  # fmt: skip
def test_the_kind_is_that_of_the_type_or_of_the_values(type_: str | None, prediction: Any, actual: Any, expected: Any):
    """The model's type decides, else the answer and its truth do; a number and a label do not go together."""
    for rows in (False, True):
        service = Service(type=type_)
        told = ([prediction], [actual]) if rows else (prediction, actual)
        assert service.tell(actual=told[1], prediction=told[0]) == ("matched" if expected else "invalid")
        assert [name for name in ("regression", "confusion") if service.cells(name)] == ([expected] if expected else [])


def test_the_profile_says_the_kind():
    """A model whose profile is of classes is a classifier, also where its labels are numbers."""
    profile = Profile.fit({"x": [1, 2, 3]}, [0, 1, 2], [0, 1, 1], type="classification")
    service = Service(profile=profile)
    assert service.truth.classifies
    assert service.tell(actual=2, prediction=1.0) == "matched"
    assert service.pairs() == {("2", "1"): 1.0}
    assert not Service().truth.classifies


@pytest.mark.parametrize(
    "forms", [(1, 0), (True, False), (1.0, 0.0), ("1", "0"), (np.int8(1), np.bool_(False)), (np.array(1), np.str_("0"))]
)
def test_a_class_is_the_same_in_all_its_forms(forms: tuple[Any, Any]):
    """True, 1 and the text of 1 are one class, one by one and in a batch."""
    service = Service(type="binary")
    service.tell(actual=[forms[0], 1], prediction=[forms[1], "1"])
    service.tell(actual=forms[0], prediction="0")
    assert service.pairs() == {("1", "0", "actual"): 2.0, ("1", "1", "both"): 1.0}
    assert label_of(forms[0]) == "1"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (0.25, 0.25), (np.float32(0.25), 0.25), ([0.25], 0.25), ({"yes": 0.25, "no": 0.75}, 0.25),
        ({"no": 0.75, "yes": 0.25}, 0.25), (1.0 + 1e-7, 1.0), (0, 0.0), (-1e-7, 0.0),
    ],
)  # fmt: skip
def test_scores_of_two_classes_are_of_the_positive_one(scores: Any, expected: float):
    """A number, or a mapping, gives the probability of the positive class, one by one and in a batch."""
    service = Service(type="binary")
    assert service.tell(actual="yes", prediction="no", scores=scores) == "matched"
    assert service.tell(actual=["yes"] * 2, prediction=["no"] * 2, scores=[scores] * 2) == "matched"
    (cells,) = service.cells("scores").values()
    assert sum(cells[:BINS]) == 3
    assert cells[-2] == pytest.approx(3 * (1 - expected) ** 2)


@pytest.mark.parametrize(
    ("scores", "reasons", "warnings"),
    [
        (None, {}, 0), ({"no": "high", "yes": None}, {}, 0), (1.5, {"type": 3}, 0), (-0.1, {"type": 3}, 0),
        (math.nan, {"not_finite": 3}, 0), ({"yes": math.inf, "no": 0.0}, {"not_finite": 3}, 0),
        ("0.25", {"type": 3}, 1), ([0.75, 0.25], {"type": 3}, 1), (np.array([0.75, 0.25]), {"type": 3}, 1),
    ],
)  # fmt: skip
def test_what_is_no_probability_is_left_out(scores: Any, reasons: dict[str, float], warnings: int, caplog: Any):
    """The answers and their truths count all the same; a missing score is none, any other is counted as dropped."""
    service = Service(type="binary")
    with caplog.at_level(logging.WARNING):
        assert service.tell(actual="yes", prediction="no", scores=scores) == "matched"
        assert service.tell(actual=["yes"] * 2, prediction=["no"] * 2, scores=[scores] * 2) == "matched"
    assert service.pairs() == {("yes", "no", "actual"): 3.0}
    assert service.cells("scores") == {}
    assert service.totals(DROPPED) == reasons
    assert len(caplog.records) == warnings


def test_what_is_no_probability_in_an_array_is_left_out():
    """Of an array, and of rows of which some are of another class, those that can be read are counted."""
    service = Service(type="binary", positive="yes")
    scores = np.array([1.5, math.nan, 0.25, -1e-7, -math.inf])
    service.tell(actual=["yes"] * 5, prediction=["no"] * 5, score=scores)
    assert service.totals(DROPPED) == {"type": 1, "not_finite": 2}
    service.tell(actual=["yes"] * 2, prediction=["no"] * 2, scores=[{"yes": 0.25, "no": 0.75}, {"no": 0.75}])
    (cells,) = service.cells("scores").values()
    assert sum(cells[:BINS]) == 3
    assert cells[-2] == pytest.approx(2 * 0.75**2 + 1.0)


def test_a_column_for_each_class_is_in_the_order_of_the_profile():
    """Where the profile knows all classes, a row has the probability of each: numbers by size, texts by alphabet."""
    labels = [10, 9, 2] * 4
    profile = Profile.fit({"x": range(12)}, labels, labels, type="classification")
    service, table = Service(profile=profile), np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    assert service.tell(actual=[2, 9, 9], prediction=[2, 9, 10], scores=table) == "matched"
    (cells,) = service.cells("scores").values()
    assert cells[-2] == pytest.approx(0.5**2 + 0.4**2 + 0.6**2)
    one = Service(profile=profile)
    for actual, prediction, row in zip([2, 9, 9], [2, 9, 10], table.tolist(), strict=True):
        one.tell(actual=actual, prediction=prediction, scores=row)
    assert one.cells("scores") == {("answer",): pytest.approx(cells)}
    service.tell(actual=[2, 2], prediction=[2, 77], scores=table[:2])
    assert service.totals(DROPPED) == {"type": 1}
    (cells,) = service.cells("scores").values()
    assert sum(cells[:-2]) == 4
    some = Profile.fit({"x": range(12)}, labels, labels, type="classification", categories=2)
    other = Service(profile=some)
    other.tell(actual=[2], prediction=[2], scores=table[:1, :2])
    assert other.totals(DROPPED) == {"type": 1}


def test_a_positive_class_that_is_not_known_is_told_once(caplog: Any):
    """Scores of two classes of which none is positive by custom are told of once, and are in no score."""
    service = Service(type="binary")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            service.tell(actual="spam", prediction="ham", score=0.25)
            service.truth.estimate("ham", 0.25)
        service.truth.estimate(np.array(["ham", "spam"]), np.array([0.25, 0.5]))
    assert [record.getMessage() for record in caplog.records] == [
        '["m", "1"] has met scores, and which class they are of is not known: give the model its positive class'
    ]
    assert service.cells("scores") == {}
    assert service.totals(PREDICTION_CONFIDENCE) == {}


def test_ones_of_several_classes_are_no_positive_class():
    """Once a class comes that is neither yes nor no, 1 is a class as any other."""
    service = Service(type="multi-class")
    service.tell(actual=1, prediction=0)
    service.tell(actual=2, prediction=0)
    service.tell(actual=1, prediction=0)
    assert service.pairs() == {("1", "0", "actual"): 1.0, ("2", "0"): 1.0, ("1", "0"): 1.0}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("ab"), st.floats(0.0, 1.0)), max_size=12))
def test_a_batch_is_as_its_rows(rows: list[tuple[str, str, float]]):
    """A batch counts what its rows count one by one, by receipts and by ids as well."""
    single, batch, receipts, ids = (Service(type="binary", positive="b") for _ in range(4))
    for actual, prediction, score in rows:
        assert single.tell(actual=actual, prediction=prediction, score=score) == "matched"
    true, said, scores = [[row[k] for row in rows] for k in range(3)]
    assert batch.tell(actual=pd.Series(true, dtype=object), prediction=said, score=np.array(scores)) == "matched"
    issued = receipts.truth.issue(said, scores)
    ids.truth.remember(range(len(rows)), said, scores)
    for place, actual in enumerate(true):
        assert receipts.tell(actual=actual, receipt=issued[place]) == "matched"
        assert ids.tell(actual=actual, id=place) == "matched"
    for each in (batch, receipts, ids):
        assert each.pairs() == single.pairs()
        assert each.cells("scores") == {name: pytest.approx(cells) for name, cells in single.cells("scores").items()}


def test_receipts_of_several_classes_know_how_sure_the_answer_was():
    """A receipt or an id of an answer with the probabilities of all classes is worth what the pair is."""
    scores = {"a": 0.25, "b": 0.5, "c": 0.25}
    pair, late = Service(), Service()
    pair.tell(actual="c", prediction="b", scores=scores)
    late.tell(actual="c", receipt=late.truth.issue("b", scores)[0])
    assert pair.cells("scores") == late.cells("scores")
    assert pair.cells("scores")["answer",][-2] == 0.25


def test_answers_without_a_receipt_keep_their_place():
    """What cannot be signed has an empty text where its receipt would be, and is counted."""
    service = Service(type="classification")
    issued = service.truth.issue(["a", None, "x" * 300, 0.73, 2], None)
    assert [bool(each) for each in issued] == [True, False, False, False, True]
    assert service.cells("asked") == {(): [2.0]}
    assert service.totals(DROPPED) == {"type": 3}
    assert service.truth.issue(None, None) == []


def test_scores_and_ids_that_are_not_as_many_are_counted():
    """Scores that do not go with the answers are left out, ids that do not leave nothing to wait."""
    service = Service(type="binary")
    (first, _) = service.truth.issue(["yes", "no"], [0.5])
    assert service.tell(actual="yes", receipt=first) == "matched"
    service.truth.remember(["a"], ["yes", "no"], None)
    assert service.tell(actual="yes", id="a") == "unmatched"
    assert service.totals(DROPPED) == {"shape": 4}


# --- Before the truth -------------------------------------------------------------------------------------------------


def fitted() -> Profile:
    """The profile of a binary classifier that is too sure."""
    random = np.random.default_rng(3)
    p = random.random(5000)
    true, scores = random.random(5000) < p, p**2 / (p**2 + (1 - p) ** 2)
    return Profile.fit({"x": p}, (scores > 0.5).astype(int), true.astype(int), scores)


PROFILE = fitted()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1]), st.floats(0.0, 1.0)), min_size=1, max_size=40))
def test_estimates_of_a_batch_are_those_of_its_rows(rows: list[tuple[int, float]]):
    """One by one, as lists, arrays and columns for each class, the answers count and are estimated alike."""
    said, scores = [row[0] for row in rows], [row[1] for row in rows]
    services = [Service(profile=PROFILE) for _ in range(4)]
    for row in rows:
        services[0].truth.estimate(*row)
    services[1].truth.estimate(said, scores)
    services[2].truth.estimate(np.array(said), np.array(scores))
    services[3].truth.estimate(pd.Series(said), np.array([[1.0 - each, each] for each in scores]))
    yes, no = ([0.0] * BINS, [0.0] * BINS)
    for label, score in rows:
        (yes if label else no)[int(np.searchsorted(SCORE_BOUNDS, score))] += 1.0
    expected = estimated_accuracy(PROFILE.calibration or (), yes, no)
    for service in services:
        ((n, right),) = service.cells("estimate").values()
        assert (n, right / n) == (len(rows), pytest.approx(expected, abs=1e-9))
        counts = {label: float(said.count(int(label))) for label in "01" if int(label) in said}
        assert service.totals(PREDICTION_CLASS) == counts
        assert service.totals(PREDICTION_CONFIDENCE) == {"": len(rows)}


def test_confidence_is_that_of_the_answer():
    """The probability of no is what is left of that of yes, and that of a class its own."""
    for values, scores, type_ in (
        (["yes", "no"], [0.9, 0.3], "binary"),
        (np.array(["yes", "no"]), np.array([0.9, 0.3]), "binary"),
        (["a", "b"], [{"a": 0.9, "b": 0.05, "c": 0.05}, {"a": 0.1, "b": 0.7, "c": 0.2}], "multi-class"),
    ):
        service = Service(type=type_)
        service.truth.estimate(values, scores)
        for value, score in zip(values, scores, strict=True):
            service.truth.estimate(value, score)
        ((_, sum_),) = [
            (sum(series.read()[:-1]), series.read()[-1])
            for stream in service.provider.streams()
            if stream.row is PREDICTION_CONFIDENCE
            for series in stream.living()
        ]
        assert sum_ == pytest.approx(2 * (0.9 + 0.7))


def test_a_regression_is_not_estimated():
    """Numbers of a regression, and those without scores of which nobody knows what they are, are no classes."""
    for service, values in (
        (Service(type="regression"), 1.0), (Service(type="regression"), "a"), (Service(), 3), (Service(), [1.0, 2.0]),
        (Service(), np.arange(3)), (Service(), None), (Service(), np.float64(1.0)),
    ):  # fmt: skip
        service.truth.estimate(values, None)
        assert service.totals(PREDICTION_CLASS) == {}


def test_classes_past_the_first_hundred_are_other():
    """However many classes a model answers with, at most 100 and `other` are told apart."""
    service = Service(type="classification")
    for k in range(1000):
        service.truth.estimate(f"c{k}", None)
    service.truth.estimate([f"c{k}" for k in range(1000)], None)
    counts = service.totals(PREDICTION_CLASS)
    assert len(service.truth._estimates._forms) <= 400
    assert len(counts) == 101
    assert counts["other"] == 1800
    assert counts["c99"] == 2
    few = Service(type="classification")
    few.truth.estimate("x" * 201, None)
    assert few.totals(PREDICTION_CLASS) == {"other": 1}


def test_the_calibration_of_another_class_is_not_used(caplog: Any):
    """Where the scores are of another class than in training, no accuracy is estimated, and the log says so."""
    service = Service(profile=PROFILE, positive="0")
    service.truth.estimate(0, 0.9)
    assert service.cells("estimate") == {}
    assert "another positive class" in caplog.text
    assert service.totals(PREDICTION_CONFIDENCE) == {"": 1}


def test_a_disabled_provider_records_nothing():
    """All of it works without a page."""
    service = Service(MeterProvider(shutdown_on_exit=False, disabled=True), type="binary")
    service.truth.estimate(1, 0.5)
    (receipt,) = service.truth.issue(1, 0.5)
    assert service.tell(actual=1, receipt=receipt) == "matched"
    assert json.dumps(service.results()) == "{}"
