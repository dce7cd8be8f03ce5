"""Replaying tables of data to a model in service, under a clock that the test moves."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from otel_mlops.profile import Profile
from otel_mlops.telemetry import Telemetry
from otel_mlops.testing import fresh_telemetry

DATA = Path(__file__).parent.parent / "data"
BEGAN_S = 1_700_000_000.0

Columns = dict[str, Any]
"""Columns by name, each an array: of numbers, or of texts."""


@cache
def table(name: str) -> Columns:
    """A table of tests/data; what is empty is NaN."""
    columns: Columns = {}
    for line in gzip.decompress((DATA / f"{name}.gz").read_bytes()).decode().splitlines():
        column, _, text = line.partition(",")
        try:
            float(text.lstrip(",").partition(",")[0])
        except ValueError:
            columns[column] = np.array(text.split(","))
        else:
            # Twice, as of two gaps beside each other the first ends where the second begins.
            gaps = f",{text},".replace(",,", ",nan,").replace(",,", ",nan,")
            columns[column] = np.fromstring(gaps.strip(","), sep=",")
    return columns


def cut(columns: Columns, rows: Any) -> Columns:
    """Some rows of columns: a slice or a mask."""
    return {name: column[rows] for name, column in columns.items()}


def of(columns: Columns, *names: str) -> Columns:
    """Some of the columns."""
    return {name: columns[name] for name in names}


class Replay:
    """A model in service, the traffic that reaches it, and what the page says of it."""

    def __init__(self, telemetry: Telemetry, clock: list[float], profile: Profile | None, **facts: Any) -> None:
        self.telemetry = telemetry
        self.model = telemetry.model("replayed", "1", profile=profile, **facts)
        self._clock = clock
        self._page = ""
        self.look()

    def serve(self, features: Any, values: Any = None, scores: Any = None, **arguments: Any) -> Any:
        """Predict for a batch."""
        with self.model.prediction(features=features, **arguments) as prediction:
            prediction.values, prediction.scores = values, scores
        return prediction

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._clock[0] += seconds

    def look(self) -> None:
        """Work the scores out, as the service does every few seconds, and make the page."""
        self.telemetry.sample()
        self._page = self.telemetry.page().body.decode()

    def each(self, name: str, by: str = "feature") -> dict[str, float]:
        """What the page says under a name, by the value of one label."""
        found = re.findall(rf'^{name}{{.*?\b{by}="((?:[^"\\]|\\.)*)".*}} (\S+)$', self._page, re.MULTILINE)
        return {label: float(value) for label, value in found}

    def value(self, name: str, *labels: str) -> float:
        """The one value that the page has under a name with labels, such as `bound="lower"`."""
        found = [line for line in self._page.splitlines() if line.startswith(f"{name}{{")]
        found = [line for line in found if all(label in line for label in labels)]
        assert len(found) == 1, (name, labels, found)
        return float(found[0].rpartition(" ")[2])

    def drifted(self) -> set[str]:
        """The features that the page says have drifted."""
        return {feature for feature, value in self.each("model_drift_detected").items() if value == 1.0}


@contextmanager
def replaying(
    profile: Profile | None, *, window_s: float, facts: Mapping[str, Any] | None = None, **settings: Any
) -> Iterator[Replay]:
    """A model in service, whose windows are so long."""
    clock = [BEGAN_S]
    windows = {"drift_window": window_s, "quality_window": window_s}
    with fresh_telemetry(clock=lambda: clock[0], **(windows | settings)) as telemetry:
        yield Replay(telemetry, clock, profile, **(facts or {}))
