"""A model: what it is, what state it is in, and its predictions, timed and counted."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from otel_mlops.facts import ModelStatus, check_text, describe, facts_of
from otel_mlops.metrics import MODEL_LOAD_DURATION
from otel_mlops.model.blocks import Loading
from otel_mlops.model.prediction import Prediction, PredictionSeries
from otel_mlops.model.truth import Truth
from otel_mlops.model.ways import MAX_AGE_S, Ways

if TYPE_CHECKING:
    from otel_mlops.model.generation import Generation
    from otel_mlops.model.inputs import Inputs
    from otel_mlops.model.receipts import Receipts
    from otel_mlops.model.shadow import Shadow
    from otel_mlops.profile import Profile
    from otel_mlops.sdk.provider import MeterProvider

_logger = logging.getLogger(__name__)

_KEPT: Any = object()


class Model:
    """One version of a model in service.

    The `profile`, a Profile or its file, is what the model saw in training: with it the drift of features and
    predictions is watched. `positive` is the class whose probability the scores of a binary classifier are.

    Errors:  TypeError or ValueError that names the argument, its value and what was expected; OSError if the profile
             cannot be read.
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
        profile: Profile | str | os.PathLike[str] | None = None,
        positive: str | None = None,
        ways: Ways | None = None,
    ) -> None:
        self._instruments = instruments
        self._labels = {"model_name": check_text("name", name), "model_version": check_text("version", version)}
        self.profile = load_profile(profile)
        """What it saw in training."""
        self.description = describe_model(
            stage=stage, type=type, features=features, profile=self.profile, positive=positive
        )
        """What was said of it when it was made."""
        if features is None and self.profile is not None:
            features = len(self.profile.features)
        self._facts = facts_of(instruments, self._labels)
        self._ways = ways or Ways(instruments)
        self._has_told = False
        self._truth = Truth(
            instruments,
            self._labels,
            type=type,
            positive=positive,
            profile=self.profile,
            receipts=self._open_receipts,
            store=self._ways.store,
            clock=self._ways.clock,
        )
        self._series = PredictionSeries(
            instruments, self._labels, self._truth, self._open_inputs(), classifies=self._truth.classifies
        )
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

    def prediction(self, features: Any = None, *, id: Any = None) -> Prediction:  # noqa: A002
        """Time and count one prediction, as a `with` block or a decorator; ask for a new one each time.

        The `features`, a row or a batch in any usual form, are compared with the model's profile. With an `id`, or a
        list of them for a batch, the answer waits for its truth, `record_truth(id=…)`. A decorator takes functions
        of the call's arguments for both.

        Give it what was predicted as `values`; of a decorated function they are the result. A prediction that
        raises is counted by the exception's class, and neither counted nor timed among the predictions: a
        failure that comes fast must not make the model look fast. One that was cancelled or interrupted is
        not counted at all.
        """
        if features is not None and self.profile is None and not self._has_told:
            self._has_told = True
            _logger.warning("%s %s has no profile: its features are not compared", self.name, self.version)
        return Prediction(self._series, features, id)

    def record_truth(
        self,
        *,
        actual: Any,
        prediction: Any = None,
        score: Any = None,
        scores: Any = None,
        receipt: str | None = None,
        id: str | None = None,  # noqa: A002
    ) -> str:
        """Say what was true, and return what became of it: `matched`, or why it was not.

        By the `prediction` itself (with its `score` or `scores`, the probabilities), by the `receipt` that it gave, or
        by the `id` that it was made with.

        Errors:  TypeError or ValueError if not exactly one of the three is given; nothing else raises.
        """
        return self._truth.record(
            actual=actual, prediction=prediction, score=score, scores=scores, receipt=receipt, id=id
        )

    def shadow(self, other: Model) -> Shadow:
        """Compare this model with another, a candidate, by their answers to the same inputs.

        Errors:  TypeError for what is no model.
        """
        from otel_mlops.model.shadow import Shadow

        if not isinstance(other, Model):
            raise TypeError(f"other is {other!r:.200}, expected a Model")
        classifies = self._truth.classifies or other._truth.classifies
        return Shadow(self._instruments, self._labels, other._labels, classifies or None)

    def generation(self, operation: str = "chat", *, provider: str, request_model: str | None = None) -> Generation:
        """Time one request to a generating model, its tokens and its first one, as a `with` block."""
        from otel_mlops.model.generation import Generation

        return Generation(self._instruments, self._labels, operation, provider=provider, request_model=request_model)

    def _open_inputs(self) -> Inputs | None:
        if self.profile is None:
            return None
        from otel_mlops.model.inputs import Inputs

        return Inputs(self._instruments, self._labels, self.profile)

    def _open_receipts(self) -> Receipts:
        from otel_mlops.model.receipts import Receipts

        return Receipts(self._ways.keys(), self.name, self.version, MAX_AGE_S, self._ways.clock)


def describe_model(
    *,
    profile: Profile | None = None,
    positive: str | None = None,
    **facts: Any,
) -> dict[str, str | None]:
    """What is said of a model as texts, None for what is not said; of its profile, if it has one, the digest.

    Errors:  TypeError or ValueError that names the argument.
    """
    said = describe(**facts)
    if profile is not None:
        said["profile"] = profile.digest
    if positive is not None:
        said["positive"] = check_text("positive", positive)
    return said


def load_profile(profile: Profile | str | os.PathLike[str] | None) -> Profile | None:
    """Return a profile that is given as such or as its file.

    Errors:  ValueError or OSError for a file that is none; TypeError for what is no file.
    """
    if profile is None:
        return None
    from otel_mlops.profile import Profile

    if isinstance(profile, Profile):
        return profile
    if not isinstance(profile, (str, os.PathLike)):
        raise TypeError(f"profile is {profile!r:.200}, expected a Profile or the path of its file")
    return Profile.load(profile)
