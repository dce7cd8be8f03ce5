"""Inputs: which bins of training the features and the answers of a prediction fall into, counted for the drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from otel_mlops.metrics import DROPPED
from otel_mlops.profile.binning import Binning

if TYPE_CHECKING:
    from otel_mlops.profile import Profile
    from otel_mlops.profile.binning import Binned
    from otel_mlops.sdk.provider import MeterProvider


class Inputs:
    """Counts what a model is asked and answers, in the bins of its profile."""

    def __init__(self, instruments: MeterProvider, labels: Mapping[str, str], profile: Profile) -> None:
        self._binning = Binning(profile.features, profile.prediction)
        self._answers = profile.prediction is not None
        name = f"drift/{profile.digest}"
        self._cells = instruments.cells(name, self._binning.size, labels, profile.reference())
        # There from the start, at 0: of what first appears with a value, increase() does not see the first part.
        self._cells.add([(0, 0.0)])
        self._dropped = instruments.instrument(DROPPED)

    def count(self, features: Any, values: Any) -> None:
        """Count the features of a call, and its answers; None is nothing. Raises nothing."""
        if features is not None:
            self._add(self._binning.of_features(features))
        if self._answers and values is not None:
            self._add(self._binning.of_predictions(values))

    def _add(self, found: Binned) -> None:
        indices, amounts, dropped = found
        if indices is not None:
            self._cells.count(indices)
        elif amounts is not None:
            self._cells.add(amounts)
        if dropped:
            self._dropped.add(dropped, {"reason": "shape"})
