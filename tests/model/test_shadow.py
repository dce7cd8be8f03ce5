"""What a Shadow counts of two models' answers, whatever they are."""

from __future__ import annotations

import asyncio
import logging
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_mlops.metrics import DROPPED
from otel_mlops.model.shadow import Shadow
from otel_mlops.sdk.provider import MeterProvider
from tests.sdk.workers import Worker, state_folder

BASELINE = {"model_name": "housing", "model_version": "v1"}
CANDIDATE = {"model_name": "housing", "model_version": "v2"}
NONE = float("nan")


class Compared:
    """A shadow of a provider of its own, and what it has counted."""

    def __init__(self, classification: bool | None = None, provider: MeterProvider | None = None):
        self.provider = provider or MeterProvider(shutdown_on_exit=False)
        self.shadow = Shadow(self.provider, BASELINE, CANDIDATE, classification)

    def cells(self, name: str) -> list[float]:
        """The cells of a name; nothing counted is nothing there."""
        found = {each: cells for each, _, _, cells in self.provider.everyone.cells()}
        return found.get(f"comparison/{name}", [])

    @property
    def answers(self) -> list[float]:
        """The cells of the answers."""
        return self.cells("answers")

    @property
    def truths(self) -> list[float]:
        """The cells of the truths."""
        return self.cells("truths")

    @property
    def dropped(self) -> dict[str, float]:
        """What was dropped, by reason."""
        return {attributes["reason"]: value for attributes, value in self.provider.totals(DROPPED)}


def test_labels_of_both_models_are_held_against_each_other_and_the_truth():
    """Same labels are counted, and with the truth which of the two is right."""
    compared = Compared()
    for answer, other, actual in [("a", "a", "a"), ("a", "b", "a"), ("a", "b", "b"), ("a", "b", "c"), ("a", "a", "c")]:
        compared.shadow.record(answer, other, actual)
    compared.shadow.record("a", "b")
    assert compared.answers == [6, 2, 0, 0, 0]
    assert compared.truths == [1, 1, 1, 2, 0, 0, 0, 0]
    ((_, _, labels, _), _) = compared.provider.everyone.cells()
    assert labels == {**BASELINE, "candidate": "housing:v2"}


def test_numbers_of_both_models_are_held_against_each_other_and_the_truth():
    """Absolute differences add up, and with the truth by how much the candidate's error is smaller."""
    compared = Compared()
    compared.shadow.record(10.0, 13.0, 12.0)  # errors 2 and 1: better by 1
    compared.shadow.record(10.0, 6.0, 10.0)  # errors 0 and 4: worse by 4
    compared.shadow.record(5, 5, 7)
    compared.shadow.record(5.0, 7.0, 6.0)  # differ, with errors of one size
    assert compared.answers == [0, 0, 4, 1, 9.0]
    assert compared.truths == [0, 0, 0, 0, 4, 2, -3.0, 17.0]


def test_a_truth_that_comes_later_does_not_count_the_answers_again():
    """What record_truth is told goes to the truths alone."""
    compared = Compared()
    compared.shadow.record([1.0, 2.0], [1.0, 3.0])
    compared.shadow.record_truth([1.0, 2.0], [1.0, 3.0], [1.0, 3.0])
    assert compared.answers == [0, 0, 2, 1, 1.0]
    assert compared.truths == [0, 0, 0, 0, 2, 1, 1.0, 1.0]


@pytest.mark.parametrize(
    "form",
    [
        list, tuple, np.array, pd.Series, lambda column: np.array(column)[:, None],
        lambda column: [[x] for x in column], lambda column: np.array(column, dtype=object),
        lambda column: [np.array(x) for x in column],
        lambda column: pd.DataFrame({"x": column}), lambda column: [*map(np.float32, column)],
    ],
)  # fmt: skip
def test_a_batch_counts_row_by_row_in_whatever_form(form: Any):
    """Lists, arrays, columns and series of numbers count as one pair a row."""
    compared = Compared()
    compared.shadow.record(form([1.0, 2.0, 4.0]), form([1.0, 3.0, 2.0]), form([0.0, 3.0, 4.0]))
    assert compared.answers == [0, 0, 3, 1, 3.0]
    assert compared.truths == [0, 0, 0, 0, 3, 2, -1.0, 5.0]
    assert compared.dropped == {}


@pytest.mark.parametrize("form", [list, tuple, np.array, pd.Series, lambda column: np.array(column, dtype=object)])
def test_a_batch_of_labels_counts_row_by_row(form: Any):
    """Texts do as numbers do."""
    compared = Compared()
    compared.shadow.record(form(["a", "b"]), form(["a", "c"]), form(["a", "c"]))
    assert (compared.answers, compared.truths) == ([2, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("classification", "pair", "cells"),
    [
        (None, (1, 2), [0, 0, 1, 0, 1.0]),
        (True, (1, 2), [1, 0, 0, 0, 0]),
        (True, (1, 1.0), [1, 1, 0, 0, 0]),
        (True, (np.int64(3), "3"), [1, 1, 0, 0, 0]),
        (None, (True, False), [1, 0, 0, 0, 0]),
        (None, (np.bool_(True), True), [1, 1, 0, 0, 0]),
        (False, (True, False), [0, 0, 1, 0, 1.0]),
        (None, (np.str_("a"), "a"), [1, 1, 0, 0, 0]),
        (None, (Decimal("1.5"), Fraction(1, 2)), [0, 0, 1, 0, 1.0]),
        (None, (2.0, np.array([2.0])), [0, 0, 1, 1, 0.0]),
    ],
)
def test_what_is_a_label_and_what_a_number(classification: bool | None, pair: tuple[Any, Any], cells: list[float]):
    """Classification says it; where it says nothing texts and bools are labels, and numbers are numbers."""
    compared = Compared(classification)
    compared.shadow.record(*pair)
    assert (compared.answers, compared.dropped) == (cells, {})


class Bomb:
    """Somebody's object of which nothing can be asked."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __len__(self) -> int:
        raise OSError

    def __float__(self) -> float:
        raise OSError

    def __repr__(self) -> str:
        raise OSError


class Rough(str):
    """A text that cannot be compared."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        raise OSError


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ((NONE, 1.0), "not_finite"), ((1.0, float("inf")), "not_finite"), ((10**400, 1.0), "not_finite"),
        ((1.0, 1e101), "not_finite"), ((None, 1.0), "type"), (("a", 1.0), "type"), ((b"a", "a"), "type"),
        (({"a": 1}, {"a": 1}), "type"), ((iter([1.0]), iter([1.0])), "type"), ((Rough("a"), Rough("a")), "type"),
        ((object(), object()), "type"), ((1j, 1.0), "type"), (([[1.0, 2.0]], [1.0]), "type"),
        ((Bomb(), 1.0), "shape"), ((1.0, Bomb()), "shape"), (([Bomb()], [1.0]), "type"),
        (([1.0, 2.0], [1.0]), "shape"), (([1.0, 2.0], 1.0), "shape"),
        ((np.ones((2, 3)), np.ones((2, 3))), "shape"), ((1.0, 2.0, [1.0, 2.0]), "shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_dropped_and_counted(pair: tuple[Any, ...], reason: str):
    """Nothing raises, nothing is recorded, and one is counted by its reason."""
    compared = Compared()
    compared.shadow.record(*pair)
    assert not any(compared.answers + compared.truths)
    assert compared.dropped == {reason: 1}


def test_a_text_is_no_number_even_if_it_looks_like_one():
    """A regression does not take labels."""
    compared = Compared(classification=False)
    compared.shadow.record("3", 3.0)
    assert (compared.answers, compared.dropped) == ([], {"type": 1})


def test_one_bad_row_leaves_the_others_alone(caplog: pytest.LogCaptureFixture):
    """Only the pair that is odd is dropped, each is counted, and it is said once."""
    compared = Compared(classification=True)
    with caplog.at_level(logging.WARNING):
        compared.shadow.record(["a", None, NONE, "b"], ["a", "a", "a", "c"])
        compared.shadow.record([None], ["a"])
    assert (compared.answers, compared.dropped) == ([2, 1, 0, 0, 0], {"type": 2, "not_finite": 1})
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_truth_that_is_not_known_is_no_fault():
    """None and NaN among the truths say that they are not known; what cannot be one is dropped without the answers."""
    compared = Compared()
    compared.shadow.record([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [None, NONE, 3.0])
    compared.shadow.record([1.0, 2.0], [1.0, 2.0], np.array([NONE, 2.0]))
    assert (compared.answers[2], compared.truths[4], compared.dropped) == (5, 2, {})
    compared.shadow.record(1.0, 1.0, "cheap")
    assert (compared.answers[2], compared.truths[4], compared.dropped) == (6, 2, {"type": 1})


numbers = st.floats(-1e6, 1e6)
rows = st.lists(st.tuples(numbers, numbers, numbers | st.none()), max_size=20)


@given(rows)
def test_a_batch_is_what_its_rows_are(batch: list[tuple[float, float, float | None]]):
    """Recording in one go counts what recording one by one counts."""
    whole, single = Compared(), Compared()
    whole.shadow.record(*([list(column) for column in zip(*batch, strict=True)] if batch else ([], [])))
    for row in batch:
        single.shadow.record(*row)
    assert whole.answers == pytest.approx(single.answers)
    assert whole.truths == pytest.approx(single.truths)


def test_pairs_of_all_workers_add_up():
    """What workers compare, one of which dies, is counted once and in full."""
    with state_folder() as state:
        workers = [Worker(Path(state)) for _ in range(3)]
        for number, worker in enumerate(workers):
            Shadow(worker.provider, BASELINE, CANDIDATE).record([1.0, 2.0], [2.0, 2.0], [2.0, float(number)])
        workers[2].die()
        reader = Compared(provider=workers[0].provider)
        assert reader.answers == [0, 0, 6, 3, 3.0]
        assert reader.truths == [0, 0, 0, 0, 6, 3, 3.0, 3.0]


def test_forgetting_the_baseline_or_the_candidate_forgets_their_comparison():
    """The labels of the cells are those by which a version is forgotten."""
    for labels in ({"model_version": "v1"}, {"candidate": "housing:v2"}):
        compared = Compared()
        compared.shadow.record(1.0, 2.0, 1.0)
        compared.provider.forget(labels)
        assert compared.answers == compared.truths == []


async def test_nothing_is_recorded_by_a_provider_that_is_disabled():
    """A shadow without telemetry does nothing, and raises nothing, in any number of tasks."""
    compared = Compared(provider=MeterProvider(shutdown_on_exit=False, disabled=True))
    await asyncio.gather(*[asyncio.to_thread(compared.shadow.record, 1.0, "a", 2.0) for _ in range(3)])
    assert compared.answers == []
