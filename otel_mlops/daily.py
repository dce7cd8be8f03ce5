"""Today's predictions: the running totals less what they were at midnight UTC."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from opentelemetry.metrics import CallbackOptions, Observation

from otel_mlops.metrics import PREDICTIONS

if TYPE_CHECKING:
    from otel_mlops.sdk.provider import MeterProvider

_Labels = tuple[tuple[str, str], ...]
"""The labels of a series, as the page has them."""


class Daily:
    """Subtracts midnight's reading, so that nothing is asked of the clock when a prediction is made."""

    def __init__(self, provider: MeterProvider) -> None:
        self._provider = provider
        provider.instrument(PREDICTIONS)
        self.after_fork()

    def after_fork(self) -> None:
        """Begin at nothing, as the totals of a forked child do."""
        self._lock = threading.RLock()
        self._at_midnight: dict[_Labels, float] = {}

    def begin_day(self) -> None:
        """Take midnight's reading."""
        with self._lock:
            self._at_midnight = self._totals()

    def forget(self, labels: Mapping[str, str]) -> None:
        """Let the series that carry all of these labels begin at nothing, as their totals do."""
        with self._lock:
            for series in [each for each in self._at_midnight if labels.items() <= dict(each).items()]:
                del self._at_midnight[series]

    def observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        """Today's count of each model."""
        today: dict[_Labels, float] = {}
        with self._lock:
            for series, count in self._totals().items():
                if count < self._at_midnight.get(series, 0.0):
                    # It was forgotten, by whatever way, and has begun anew.
                    del self._at_midnight[series]
                model = tuple(each for each in series if each[0] != "prediction_type")
                today[model] = today.get(model, 0.0) + count - self._at_midnight.get(series, 0.0)
        return [Observation(count, dict(model)) for model, count in today.items()]

    def _totals(self) -> dict[_Labels, float]:
        from otel_mlops.sdk.text import labels  # late, as it is costly to import

        return {tuple(labels(each).items()): count for each, count in self._provider.totals(PREDICTIONS)}
