"""Several workers behind a real server, and one push: who leads pushes everybody's numbers, and so does the next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pytest

from tests.servers.fleet import Fleet, Load, Tally, serve
from tests.servers.service import until
from tests.test_otlp import Collector

COUNT, AMOUNT = "fleet.size", "fleet.amount"
"""A histogram of what each request to /record asks for, and its sum as a counter."""

Series = tuple[str, frozenset[tuple[str, str]]]


class Push(NamedTuple):
    """One export: from where it came, about what, and its points by metric and attributes."""

    peer: Any
    instance: str
    points: Mapping[Series, Any]

    def count(self) -> int:
        """How many requests to /record it tells of."""
        return sum(point.count for (name, _), point in self.points.items() if name == COUNT)

    def amount(self) -> float:
        """What they have asked for together."""
        return math.fsum(point.as_double for (name, _), point in self.points.items() if name == AMOUNT)

    def workers(self) -> set[str]:
        """The workers that it shows each by itself."""
        return {dict(labels)["worker"] for name, labels in self.points if name == "fleet.pid"}


class Pushes:
    """What a Collector has taken so far."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._seen: list[Push] = []

    def __call__(self) -> list[Push]:
        while not self._collector.requests.empty():
            request = self._collector.requests.get()
            (of_resource,) = request.otlp.resource_metrics
            resource = {each.key: each.value.string_value for each in of_resource.resource.attributes}
            points = {
                (metric.name, frozenset((each.key, each.value.string_value) for each in point.attributes)): point
                for of_scope in of_resource.scope_metrics
                for metric in of_scope.metrics
                for point in getattr(metric, metric.WhichOneof("data")).data_points
            }
            self._seen.append(Push(request.peer, resource["service.instance.id"], points))
        return list(self._seen)

    def of_others(self, than: Sequence[Any]) -> list[Push]:
        """Those of processes that are not among these."""
        return [push for push in self() if push.peer not in than]


@pytest.fixture
def pushes() -> Iterator[Pushes]:
    """A Collector, as a list of what it got."""
    collector = Collector()
    taken = Pushes(collector)
    taken.url = collector.url
    yield taken
    collector.close()


def pushing(folder: Any, pushes: Any, temporality: str) -> Any:
    """A service of three workers that pushes to the Collector every tenth of a second."""
    return serve(
        "uvicorn",
        folder,
        workers=3,
        OTEL_METRICS_EXPORTER="prometheus,otlp",
        OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{pushes.url}/v1/metrics",
        OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=temporality,
        OTEL_METRIC_EXPORT_INTERVAL="100",
        NO_PROXY="*",
    )


def record_in_each(fleet: Fleet) -> Tally:
    """Some requests to every worker."""
    return [one for pid in fleet.worker_pids() for one in fleet.record(4, of=pid)]


def amount_of(tally: Tally) -> float:
    """What requests have asked for together."""
    return math.fsum(amount for _, amount in tally)


def test_whoever_leads_pushes_the_totals_of_all(pushes, tmp_path):
    """One worker pushes, for all; when it is killed another goes on, under the same name and from the same start."""
    with pushing(tmp_path, pushes, "cumulative") as fleet:
        tally = record_in_each(fleet)
        until(lambda: pushes()[-1:] and pushes()[-1].count() == len(tally))
        until(lambda: pushes()[-1].workers() == {"0", "1", "2"})
        before = pushes()[-1]
        assert math.isclose(before.amount(), amount_of(tally), rel_tol=1e-12)
        assert len({push.peer for push in pushes()}) == 1, "more than one worker pushes"

        fleet.kill(fleet.leader())
        until(lambda: pushes.of_others([before.peer]))
        tally += record_in_each(fleet)
        until(lambda: pushes()[-1].count() == len(tally))
        after = pushes()[-1]
        assert math.isclose(after.amount(), amount_of(tally), rel_tol=1e-12)
        assert len({push.peer for push in pushes()}) == 2
        assert {push.instance for push in pushes()} == {before.instance}
        for series in before.points:
            if series[0] in (COUNT, AMOUNT, "api.requests", "predictions", "prediction.duration"):
                start = before.points[series].start_time_unix_nano
                assert after.points[series].start_time_unix_nano == start > 0, series
                assert after.points[series].time_unix_nano > before.points[series].time_unix_nano


def test_differences_go_on_through_the_deaths_of_leaders(pushes, tmp_path):
    """All differences together are what was recorded; the last export of one that was killed may be there twice."""
    with pushing(tmp_path, pushes, "delta") as fleet:
        led: list[Any] = []
        with Load(fleet) as load:
            for _ in range(3):
                fleet.worker_pids()
                until(lambda: pushes.of_others(led))
                led.append(pushes.of_others(led)[-1].peer)
                fleet.kill(fleet.leader())
            until(lambda: pushes.of_others(led))
        fleet.worker_pids()
        recorded = int(fleet.page().total("fleet_size_count"))
        assert len(load.acknowledged) <= recorded <= len(load.sent)
        tally = record_in_each(fleet)
        recorded += len(tally)
        seen = len(pushes())
        until(lambda: len(pushes()) > seen + 1)  # the second one was collected after all was recorded

        twice = sum(push.count() for push in pushes()) - recorded
        last = [[push for push in pushes() if push.peer == peer][-1] for peer in led]
        assert 0 <= twice <= sum(push.count() for push in last)
        amount, most = fleet.page().total("fleet_amount_total"), math.fsum(push.amount() for push in last)
        off = 1e-9 * amount
        assert -off <= math.fsum(push.amount() for push in pushes()) - amount <= most + off
        assert len({push.instance for push in pushes()}) == 1
