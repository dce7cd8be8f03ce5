"""What is said of a model: its state and its description, by a Model and by the verbs alike."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from weakref import WeakValueDictionary

from otel_mlops.metrics import MODEL_INFO, MODEL_STATES, MODEL_STATUS

if TYPE_CHECKING:
    from otel_mlops.metrics import Metric
    from otel_mlops.sdk.provider import MeterProvider

ModelStatus: TypeAlias = Literal["loading", "ready", "error", "unavailable"]


class ModelFacts:
    """What is said of one model version, by a Model and by the verbs alike: its state and its info."""

    def __init__(self, instruments: MeterProvider, labels: Mapping[str, str]) -> None:
        self._instruments = instruments
        self._labels = labels
        self._states = instruments.instrument(MODEL_STATUS)
        self._info: dict[str, str] = {}
        # A verb may have said it before, whose own facts are gone by now.
        told = [attributes for attributes, value in instruments.totals(MODEL_STATUS) if value == 1.0]
        said: list[Any] = [state for state in MODEL_STATES if {**labels, "model_status": state} in told]
        self.status: ModelStatus | None = said[0] if said else None

    def set_status(self, status: Any) -> None:
        """Say which state it is in.

        Errors:  TypeError or ValueError for what is no state.
        """
        if check_text("status", status) not in MODEL_STATES:
            raise ValueError(f"status is {status!r:.80}, expected one of {', '.join(sorted(MODEL_STATES))}")
        with _lock:
            self.status = status
            # The new one first: a page made in between shows two states rather than none.
            for state in sorted(MODEL_STATES, key=status.__ne__):
                self._states.set(float(state == status), {**self._labels, "model_status": state})

    def update_info(self, facts: Mapping[str, str | None]) -> None:
        """Say what it is; what is not among the facts stays, and None takes it away."""
        with _lock:
            self._info = {title: text for title, text in {**self._info, **facts}.items() if text is not None}
            set_info(self._instruments, MODEL_INFO, self._info, of=self._labels)


def facts_of(instruments: MeterProvider, labels: Mapping[str, str]) -> ModelFacts:
    """The facts of the model with these labels, the same object for all who hold it."""
    key = (id(instruments), *sorted(labels.items()))
    with _lock:
        found = _facts.get(key)
        if found is None:
            found = _facts[key] = ModelFacts(instruments, labels)
        return found


def set_info(instruments: MeterProvider, row: Metric, facts: Mapping[str, str], of: Mapping[str, str]) -> None:
    """Make the facts the one info series among those that carry the labels `of`."""
    instrument, told = instruments.instrument(row), {**of, **facts}
    with _lock:
        # The new one first: a page made in between shows two infos rather than none.
        instrument.set(1.0, told)
        if instrument.forget(of, but=told):
            instrument.set(1.0, told)  # there may have been no room for it, in a metric that was full


_lock = threading.RLock()
"""Held while something is said, which is seldom; a signal handler that says something may hold it again."""
_facts: WeakValueDictionary[Any, ModelFacts] = WeakValueDictionary()
"""By the provider's id, its own as long as the facts hold it, and the labels; a Model keeps its facts alive."""


def _renew_lock() -> None:
    global _lock  # noqa: PLW0603 (a forked child may find it held by a thread that it does not have)
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def describe(
    *,
    stage: str | None = None,
    type: str | None = None,  # noqa: A002 (the label's name)
    features: int | None = None,
) -> dict[str, str | None]:
    """The facts of a model as the texts of its labels, None for what is not said.

    Errors:  TypeError or ValueError; `features` is the number of them.
    """
    texts = {"stage": stage, "type": type}
    checked = {title: None if text is None else check_text(title, text) for title, text in texts.items()}
    return {**checked, "features": None if features is None else _number_of_features(features)}


def check_text(title: str, text: object) -> str:
    """Return a text that a label needs.

    Errors:  TypeError for what is no str, ValueError for an empty one, which is no label.
    """
    if not isinstance(text, str):
        raise TypeError(f"{title} is {text!r:.200}, expected a non-empty str")
    if not text:
        raise ValueError(f"{title} is {text!r}, expected a non-empty str")
    return text


def _number_of_features(features: object) -> str:
    if isinstance(features, bool) or not hasattr(type(features), "__index__"):
        raise TypeError(f"features is {features!r:.200}, expected the number of features")
    number = operator.index(features)  # type: ignore[arg-type]
    if number < 0:
        raise ValueError(f"features is {features!r}, expected 0 or more")
    return str(number)
