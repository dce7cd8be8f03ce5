"""Sketches: cells that a reader of the group is told of as well, as an exponential histogram."""

from __future__ import annotations

from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_mlops.numbers.sketch import CELLS
from otel_mlops.sdk.cells import KIND
from otel_mlops.sdk.observed import SCOPE


class Sketch:
    """Cells that are told over OTLP, as an exponential histogram; looks like a stream.

    The cells are those of `numbers.sketch`, and behind them the sum of what was recorded.
    """

    kind = shown = KIND
    rule = "sum"
    observed = False
    bounds: tuple[float, ...] = ()
    states: tuple[str, ...] = ()
    subject = None

    def __init__(self, cells: str, name: str, unit: str, description: str) -> None:
        self.cells, self.name, self.unit, self.description = cells, name, unit, description
        self.size = CELLS + 1
        self.scope = InstrumentationScope(SCOPE)


LATENCY = Sketch("latency", "prediction.latency", "s", "Time of one prediction call.")
"""The duration of the prediction calls of a model version."""
