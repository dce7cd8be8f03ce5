"""The page as Prometheus reads it: over HTTP, and two readings of it make rates and quantiles."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

    from otel_mlops.metrics import Metric

Labels = Mapping[str, str]

_ACCEPT = "text/plain;version=0.0.4"


class Reading:
    """What stood on the page at a time.

    Units:   seconds of the monotonic clock.
    """

    def __init__(self, text: str, at_s: float) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        self.at_s = at_s
        self._samples: dict[str, list[tuple[Labels, float]]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples[sample.name].append((sample.labels, sample.value))

    def samples(self, name: str, **labels: str) -> list[tuple[Labels, float]]:
        """The samples of a name that carry all of these labels."""
        there = self._samples.get(name, ())
        return [(has, value) for has, value in there if labels.items() <= has.items()]

    def total(self, name: str, **labels: str) -> float:
        """The sum over the samples of a name that carry all of these labels; 0 where there is none."""
        return math.fsum(value for _, value in self.samples(name, **labels))

    def value(self, row: Metric, **labels: str) -> float | None:
        """The first sample of a metric that carries all of these labels; None where there is none."""
        return next((value for _, value in self.samples(row.page_name, **labels)), None)

    def groups(self, names: Iterable[str], *keys: str) -> list[tuple[str, ...]]:
        """The different values of some labels over the samples of some names, sorted."""
        found = {tuple(has.get(key, "") for key in keys) for name in names for has, _ in self.samples(name)}
        return sorted(found)


def read(client: httpx.Client, url: str) -> Reading:
    """Read the page.

    Errors:  httpx.HTTPError if nobody answers, or not with the page; ValueError if it is none.
    """
    response = client.get(url, headers={"Accept": _ACCEPT})
    response.raise_for_status()
    return Reading(response.text, time.monotonic())


class Window:
    """What went on between two readings."""

    def __init__(self, before: Reading, now: Reading) -> None:
        self.before = before
        self.now = now

    def increase(self, name: str, **labels: str) -> float:
        """By how much the counters of a name have grown."""
        return max(0.0, self.now.total(name, **labels) - self.before.total(name, **labels))

    def rate(self, name: str, **labels: str) -> float:
        """By how much they grow per second."""
        seconds = self.now.at_s - self.before.at_s
        return self.increase(name, **labels) / seconds if seconds > 0 else 0.0

    def quantile(self, share: float, row: Metric, **labels: str) -> float | None:
        """A quantile of a histogram's new values, linear within a bucket; None where there are none.

        Source:  Prometheus, histogram_quantile().
        """
        grown: dict[float, float] = defaultdict(float)
        for reading, sign in ((self.now, 1), (self.before, -1)):
            for has, count in reading.samples(f"{row.page_name}_bucket", **labels):
                grown[float(has["le"])] += sign * count
        bounds = sorted(grown)
        if not bounds or grown[bounds[-1]] <= 0:
            return None
        rank = share * grown[bounds[-1]]
        low, below = 0.0, 0.0
        for bound in bounds:
            if grown[bound] >= rank:
                if bound == math.inf:
                    return low
                inside = grown[bound] - below
                return low + (bound - low) * ((rank - below) / inside if inside else 1.0)
            low, below = bound, grown[bound]
        return low
