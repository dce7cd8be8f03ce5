"""Latency of models: percentiles of the sketch of the prediction calls in the window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from otel_mlops import metrics as rows
from otel_mlops.numbers.sketch import quantile
from otel_mlops.sdk.sketch import LATENCY
from otel_mlops.sources.watched import Sample

if TYPE_CHECKING:
    from otel_mlops.scores import Counted

CELLS = LATENCY.cells
"""The name of the cells."""

_QUANTILES = (
    (rows.PREDICTION_LATENCY_P50, 0.5), (rows.PREDICTION_LATENCY_P95, 0.95), (rows.PREDICTION_LATENCY_P99, 0.99),
    (rows.PREDICTION_LATENCY_P999, 0.999),
)  # fmt: skip


def samples(every: Iterable[Counted]) -> Iterator[Sample]:
    """The percentiles of each model's prediction calls, absent where there was none, and how many there were."""
    for each in every:
        if len(each.totals) != LATENCY.size:
            continue  # of a worker that runs other code than this process
        counts = each.window.cells[:-1]  # the last is their sum
        yield Sample(rows.PREDICTION_LATENCY_SAMPLES, sum(counts), each.labels)
        for row, q in _QUANTILES:
            seconds = quantile(q, counts)
            if seconds is not None:
                yield Sample(row, seconds, each.labels)
