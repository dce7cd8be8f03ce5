"""Today's predictions: the running totals less what they were at midnight UTC."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from opentelemetry.metrics import CallbackOptions, Observation

from otel_mlops.metrics import PREDICTIONS

if TYPE_CHECKING:
    from otel_mlops.sdk.provider import MeterProvider

_Model = tuple[tuple[str, str], ...]


class Daily:
    """Subtracts midnight's reading, so that nothing is asked of the clock when a prediction is made."""

    def __init__(self, provider: MeterProvider) -> None:
        self._provider = provider
        provider.instrument(PREDICTIONS)
        self.after_fork()

    def after_fork(self) -> None:
        """Begin at nothing, as the totals of a forked child do."""
        self._lock = threading.Lock()
        self._at_midnight: dict[_Model, float] = {}

    def begin_day(self) -> None:
        """Take midnight's reading."""
        totals = self._totals()
        with self._lock:
            self._at_midnight = totals

    def observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        """Today's count of each model."""
        with self._lock:
            before = self._at_midnight
        return [
            # A total below midnight's is that of a model which was forgotten and has begun anew.
            Observation(
                total - before[model] if total >= before.get(model, 0.0) and model in before else total, dict(model)
            )
            for model, total in self._totals().items()
        ]

    def _totals(self) -> dict[_Model, float]:
        totals: dict[_Model, float] = {}
        for attributes, count in self._provider.totals(PREDICTIONS):
            model = tuple(sorted((key, str(value)) for key, value in attributes.items() if key != "prediction_type"))
            totals[model] = totals.get(model, 0.0) + count
        return totals
