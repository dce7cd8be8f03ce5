"""Scores of models: what the counts of all workers come to, worked out by whoever leads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sized
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from otel_mlops import metrics as rows
from otel_mlops.scores import comparison, drift, latency, quality
from otel_mlops.scores.windows import Window, Windows

if TYPE_CHECKING:
    from otel_mlops.scores.windows import Key
    from otel_mlops.sdk.group import Group
    from otel_mlops.sdk.provider import MeterProvider
    from otel_mlops.settings import Settings
    from otel_mlops.sources.watched import Sample

PUSHED = (
    rows.PREDICTION_LATENCY_P95, rows.PREDICTION_LATENCY_P99, rows.MODEL_DRIFT_SCORE, rows.MODEL_ACCURACY,
    rows.MODEL_RMSE, rows.MODEL_MAE, rows.MODEL_R2,
)  # fmt: skip
"""The rows that a service may set itself: what it has set is not worked out."""

_logger = logging.getLogger(__name__)

Labels: TypeAlias = Mapping[str, str]


class Counted(NamedTuple):
    """The cells of one name and one model: all that was ever counted, and what was in the window."""

    name: str
    about: str
    labels: Labels
    totals: list[float]
    window: Window
    lagged: Callable[[float], Window | None]
    """The window that ended some seconds ago."""


class Scores:
    """A source: the scores of all models of the group.

    Reads:   the cells of all workers.
    Yields:  latency, drift, quality and comparisons of each model, over the windows of the settings. Counters are
             totals.
    Absent when: this process does not lead, or the service has set a series itself.
    Errors:  OSError while the numbers of some worker cannot be read: what lacks must not be taken for forgotten.
    """

    def __init__(
        self,
        provider: MeterProvider,
        group: Group | None,
        settings: Settings,
        *,
        is_leader: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._provider = provider
        self._settings = settings
        self._is_leader = is_leader
        self._clock = clock
        self._faults: dict[str, str] = {}
        self._windows = {
            latency: Windows(settings.latency_window, group, "latency"),
            drift: Windows(settings.drift_window, group, "drift"),
            quality: Windows(settings.quality_window, group, "quality", history=2.0, signed=_signed),
        }

    def __call__(self) -> list[Sample]:
        """Work out what the counts come to now."""
        if not self._is_leader():
            return []
        found: dict[Any, list[Counted]] = {part: [] for part in self._windows}
        cells = {
            _key(name, labels, totals): (name, about, labels, totals)
            for name, about, labels, totals in self._provider.everyone.cells()
            if "model_version" in labels  # what there was no room for is of no model
        }
        now = self._clock()
        for part, windows in self._windows.items():
            mine = {key: each for key, each in cells.items() if part is _part_of(key[0])}
            seen = windows.look(now, {key: totals for key, (_, _, _, totals) in mine.items()})
            for key, (name, about, labels, totals) in mine.items():
                found[part].append(Counted(name, about, labels, totals, seen[key], _lagged(windows, key)))
        every = [
            *self._worked_out("latency", lambda: latency.samples(found[latency])),
            *self._worked_out("drift", lambda: drift.samples(found[drift], self._settings)),
            *self._worked_out("quality", lambda: quality.samples(found[quality], self._settings)),
            *self._worked_out("comparison", lambda: comparison.samples(found[quality])),
        ]
        return _without(every, self._pushed())

    def _worked_out(self, part: str, samples: Callable[[], Iterable[Sample]]) -> list[Sample]:
        try:
            return [*samples()]
        except Exception as error:
            # Cells of a worker that runs other code than this process must not cost the scores of all others.
            self._tell(part, error)
            return []

    def _tell(self, part: str, error: Exception) -> None:
        if self._faults.get(part) != repr(error):
            self._faults[part] = repr(error)
            _logger.warning("%s: what the workers have counted cannot be worked out: %r", part, error)

    def _pushed(self) -> dict[str, list[Collection[tuple[str, Any]]]]:
        """The labels of what the services have set themselves, by the row's name."""
        names = {row.name for row in PUSHED}
        found: dict[str, list[Collection[tuple[str, Any]]]] = {}
        for stream, every, _ in self._provider.everyone.shares()[1]:
            if stream.name in names and not stream.observed:
                found.setdefault(stream.name, []).extend(each.attributes.items() for each in every)
        return found


def _without(samples: list[Sample], pushed: Mapping[str, list[Collection[tuple[str, Any]]]]) -> list[Sample]:
    """The samples but for those whose series somebody has set, be it without the model's name."""
    if not pushed:
        return samples
    return [
        sample
        for sample in samples
        if not any(labels <= sample.attributes.items() for labels in pushed.get(sample.metric.name, ()))  # type: ignore[operator]
    ]


def _key(name: str, labels: Mapping[str, Any], totals: Sized) -> Key:
    # With the size: workers of two versions may know cells of one name by different ones.
    return (name, str(len(totals)), *(str(text) for pair in sorted(labels.items()) for text in pair))


def _lagged(windows: Windows, key: Key) -> Callable[[float], Window | None]:
    return lambda lag_s: windows.lagged(key, lag_s)


def _part_of(name: str) -> Any:
    return {latency.CELLS: latency, drift.CELLS: drift}.get(name.partition("/")[0], quality)


def _signed(key: Key) -> Collection[int]:
    return quality.SIGNED.get(key[0]) or comparison.SIGNED.get(key[0], ())
