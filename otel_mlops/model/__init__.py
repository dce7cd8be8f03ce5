"""A model: what it is, what state it is in, and its predictions, timed and counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_mlops.metrics import MODEL_LOAD_DURATION
from otel_mlops.model.blocks import Loading
from otel_mlops.model.facts import ModelStatus, check_text, describe, facts_of
from otel_mlops.model.prediction import Prediction, PredictionSeries

if TYPE_CHECKING:
    from otel_mlops.sdk.provider import MeterProvider

_KEPT: Any = object()


class Model:
    """One version of a model in service.

    Errors:  TypeError or ValueError that names the argument, its value and what was expected.
    """

    def __init__(
        self,
        instruments: MeterProvider,
        *,
        name: str,
        version: str,
        stage: str | None = None,
        type: str | None = None,  # noqa: A002 (the label's name)
        features: int | None = None,
    ) -> None:
        self._labels = {"model_name": check_text("name", name), "model_version": check_text("version", version)}
        self.description = describe(stage=stage, type=type, features=features)
        """What was said of it when it was made, as `describe()` puts it."""
        self._facts = facts_of(instruments, self._labels)
        self._series = PredictionSeries(instruments, self._labels)
        self._load_duration = instruments.instrument(MODEL_LOAD_DURATION).bind(self._labels)
        self.info(stage=stage, type=type, features=features)

    @property
    def name(self) -> str:
        """The model's name."""
        return self._labels["model_name"]

    @property
    def version(self) -> str:
        """The model's version."""
        return self._labels["model_version"]

    @property
    def status(self) -> ModelStatus | None:
        """The state it is in: `loading`, `ready`, `error` or `unavailable`; None before one is known.

        Errors:  TypeError or ValueError for any other state.
        """
        return self._facts.status

    @status.setter
    def status(self, status: ModelStatus) -> None:
        self._facts.set_status(status)

    def info(
        self,
        *,
        stage: str | None = _KEPT,
        type: str | None = _KEPT,  # noqa: A002 (the label's name)
        features: int | None = _KEPT,
    ) -> None:
        """Say what the model is; what is not given stays, and None takes it away.

        Errors:  TypeError or ValueError; `features` is the number of them.
        """
        told: dict[str, Any] = {"stage": stage, "type": type, "features": features}
        told = {title: fact for title, fact in told.items() if fact is not _KEPT}
        self._facts.update_info({title: text for title, text in describe(**told).items() if title in told})

    def loading(self) -> Loading:
        """Time the loading of the model, as a `with` block or a decorator.

        Its status is `loading` meanwhile, `ready` after it; `error` after an exception, which goes on its
        way, and `unavailable` if it was cancelled or interrupted. Only a load that succeeded is timed.
        """
        return Loading(self, self._load_duration)

    def prediction(self) -> Prediction:
        """Time and count one prediction, as a `with` block or a decorator; ask for a new one each time.

        Give it what was predicted as `values`; of a decorated function they are the result. A prediction that
        raises is counted by the exception's class, and neither counted nor timed among the predictions: a
        failure that comes fast must not make the model look fast. One that was cancelled or interrupted is
        not counted at all.
        """
        return Prediction(self._series)
