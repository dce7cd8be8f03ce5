"""Today's predictions: the running totals less what they were at midnight UTC."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import CallbackOptions, Observation

from otel_mlops.metrics import PREDICTIONS
from otel_mlops.sdk.group import MIDNIGHT

if TYPE_CHECKING:
    from otel_mlops.sdk.group import Group
    from otel_mlops.sdk.provider import MeterProvider

_logger = logging.getLogger(__name__)

_DAY_S = 86_400

_Labels = tuple[tuple[str, str], ...]
"""The labels of a series, as the page has them."""


class Daily:
    """Subtracts midnight's reading, so that nothing is asked of the clock when a prediction is made.

    The reading lies in the group's folder: who leads next goes on with it.
    """

    def __init__(
        self,
        provider: MeterProvider,
        group: Group | None = None,
        *,
        is_leader: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._provider = provider
        self._group = group
        self._is_leader = is_leader
        self._clock = clock
        provider.instrument(PREDICTIONS)
        self.after_fork()

    def after_fork(self) -> None:
        """Begin at nothing, as the totals of a forked child do."""
        self._lock = threading.RLock()
        self._at_midnight: dict[_Labels, float] = {}
        self._day = self._today()

    def resume(self) -> None:
        """Go on where the leader before has stopped; a midnight that nobody saw is now."""
        with self._lock:
            kept = self._kept()
            if kept is not None:
                self._day = kept["day"]
                self._at_midnight = {tuple(map(tuple, series)): count for series, count in kept["totals"]}
            if self._day < self._today():
                self.begin_day()
            elif kept is None:
                self._keep()

    def begin_day(self) -> None:
        """Take midnight's reading."""
        with self._lock:
            self._day = self._today()
            self._at_midnight = self._totals()
            self._keep()

    def forget(self, labels: Mapping[str, str]) -> None:
        """Let the series that carry all of these labels begin at nothing, as their totals do."""
        with self._lock:
            gone = [each for each in self._at_midnight if labels.items() <= dict(each).items()]
            for series in gone:
                del self._at_midnight[series]
            if gone:
                self._keep()

    def observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        """Today's count of each model."""
        if not self._is_leader():
            return []
        today: dict[_Labels, float] = {}
        with self._lock:
            if self._day < self._today():
                self.begin_day()  # midnight has just passed, and the sampler is about to say so
            for series, count in self._totals().items():
                if count < self._at_midnight.get(series, 0.0):
                    # It was forgotten, by whatever way, and has begun anew.
                    del self._at_midnight[series]
                model = tuple(each for each in series if each[0] != "prediction_type")
                today[model] = today.get(model, 0.0) + count - self._at_midnight.get(series, 0.0)
        return [Observation(count, dict(model)) for model, count in today.items()]

    def _kept(self) -> Any:
        try:
            return self._group.load(MIDNIGHT) if self._group is not None else None
        except OSError as error:
            _logger.debug("midnight's reading cannot be had: %s", error)
            return None

    def _keep(self) -> None:
        if self._group is None or not self._is_leader():
            return
        try:
            self._group.keep(MIDNIGHT, {"day": self._day, "totals": [*self._at_midnight.items()]})
        except OSError as error:
            _logger.debug("midnight's reading is known to this worker alone: %s", error)

    def _today(self) -> int:
        return int(self._clock() // _DAY_S)

    def _totals(self) -> dict[_Labels, float]:
        from otel_mlops.sdk.text import labels  # late, as it is costly to import

        return {tuple(labels(each).items()): count for each, count in self._provider.everyone.totals(PREDICTIONS)}
