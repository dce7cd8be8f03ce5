"""Faults between the page and Prometheus: after each, every count that the service recorded is there, once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from tests.servers import fleet
from tests.servers.fleet import READ, Load, Page, Series
from tests.servers.pipelines import Life, Place, pipeline, receiving
from tests.servers.service import until
from tests.servers.test_faults import may_mount

JOB, HOST = "fleet", "host-1"

PUSHES = {
    "OTEL_METRICS_EXPORTER": "prometheus,otlp",
    "OTEL_METRIC_EXPORT_INTERVAL": "300",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    "NO_PROXY": "*",
}

COUNT = "fleet_size_count"
"""How many requests to /record the service has answered."""

Samples = Sequence[tuple[float, float]]
"""Times and values."""


class World:
    """A service of two workers, and all that stands between its page and Prometheus, each with a life of its own."""

    def __init__(self, way: str, folder: Path, meeting: fleet.Place) -> None:
        self.way = way
        self.place = Place(folder)
        self.prometheus = Life(partial(receiving, self.place))
        self.gateway = Life(partial(pipeline, "gateway", self.place))
        if way == "scrape":
            self.near_to = {"SCRAPE_JOB": JOB, "SCRAPE_TARGET": f"127.0.0.1:{meeting.page_port}"}
            pushes = {}
        else:
            self.near_to = {}
            pushes = {**PUSHES, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{self.place.otlp_url}/v1/metrics"}
        self.near_name = "agent" if way == "scrape" else "sidecar"
        self.near = Life(partial(pipeline, self.near_name, self.place, **self.near_to))
        self.service = Life(partial(fleet.serve, "uvicorn", folder, workers=2, at=meeting, **pushes))
        self.recorded_before = 0.0
        """What COUNT was when the lives of the service before this one ended, together."""
        self.ends: list[float] = []
        """When they did."""

    @property
    def lives(self) -> tuple[Life, ...]:
        """All of it, in the order to begin."""
        return self.prometheus, self.gateway, self.near, self.service

    def page(self) -> Page:
        """The page, whoever of the workers serves it."""
        pages: list[Page] = []

        def is_there() -> bool:
            try:
                pages.append(self.service.it.page())
            except OSError:
                return False  # the one who has served it has just died
            return True

        until(is_there)
        return pages[-1]

    def instance(self) -> str:
        """The label `instance` of the service in this life."""
        ((_, labels),) = self.page().of("target_info")
        return HOST if self.way == "scrape" else dict(labels)["service_instance_id"]

    def value(self, query: str) -> float | None:
        """The value of a query that gives one, or None."""
        return self.prometheus.it.value(query)

    def history(self, name: str) -> dict[Series, Samples]:
        """All raw samples of the service's series of a name, or of all names that match, in Prometheus."""
        matrix = self.prometheus.it.ask("query", query=f'{{job="{JOB}",__name__=~"{name}"}}[1h]')["result"]
        return {
            series(each["metric"]): [(float(at), float(value)) for at, value in each["values"]]
            for each in matrix
            if "values" in each  # not a native histogram
        }

    def between(self, began: float, ended: float) -> set[float]:
        """The values of COUNT at times between these."""
        (samples,) = [each for key, each in self.history(COUNT).items() if ("instance", self.instance()) in key[1]]
        return {value for at, value in samples if began < at < ended}

    def lacking(self) -> dict[Series, tuple[float, float | None]]:
        """What stands still on the page and is something else in Prometheus, or not there: both values."""
        before = self.page().growing()
        own = {"job": JOB, "instance": self.instance()}
        result = self.prometheus.it.ask("query", query='{{job="{job}",instance="{instance}"}}'.format(**own))["result"]
        found = {series(each["metric"]): float(each["value"][1]) for each in result if "value" in each}
        after = self.page().growing()
        lacking = {}
        for (name, labels), value in before.items():
            wanted = series({**dict(labels), **own, "__name__": name})
            if name not in READ and after[name, labels] == value != found.get(wanted):
                lacking[name, labels] = value, found.get(wanted)
        assert {COUNT, "fleet_amount_total", "api_requests_total"} <= {name for name, _ in before}
        return lacking


def series(labels: dict[str, str]) -> Series:
    """A series by the labels that it has in Prometheus, its bound of a bucket written in one way."""
    rest = {key: str(float(text)) if key == "le" else text for key, text in labels.items() if key != "__name__"}
    return labels["__name__"], frozenset(rest.items())


@pytest.fixture(scope="module", params=["scrape", "push"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """All of it, running; it is whole again after each test."""
    with fleet.place() as meeting, ExitStack() as now:
        world = World(request.param, tmp_path_factory.mktemp(request.param), meeting)
        for life in world.lives:
            now.enter_context(life)
        yield world


@contextmanager
def under_load(world: World) -> Iterator[Load]:
    """Requests during the block; after it all that the service has recorded comes to Prometheus, and stays there."""
    with Load(world.service.it) as load:
        goes_on(load)
        yield load
        goes_on(load)
    arrives(world)
    never_steps_back(world)


def goes_on(load: Load, requests: int = 30) -> None:
    """Wait until so many more requests are answered."""
    answered = len(load.acknowledged)
    until(lambda: len(load.acknowledged) >= answered + requests)
    assert not load.refused


def arrives(world: World) -> None:
    """Wait until Prometheus has what the page has, or tell what it lacks."""
    lacking: dict[Series, tuple[float, float | None]] = {}

    def is_there() -> bool:
        nonlocal lacking
        lacking = world.lacking()
        return not lacking

    try:
        until(is_there)
    except AssertionError:
        pytest.fail(f"Prometheus lacks {len(lacking)}: {dict(list(lacking.items())[:5])}")


def never_steps_back(world: World) -> None:
    """No sample of what only grows is below the one before it, but for the new life of a service that is scraped."""
    names = {name for name, _ in world.page().growing()} - READ
    histories = world.history("|".join(sorted(names)))
    assert len(histories) > 100
    for key, samples in histories.items():
        if "worker" in dict(key[1]) or key[0] == "daily_predictions_total":
            continue
        for (since, before), (at, after) in pairwise(samples):
            anew = world.way == "scrape" and any(since <= end <= at for end in world.ends)
            assert after >= before or anew, (key, before, after)


def retries(life: Life, times: int = 6) -> None:
    """Wait until a Collector has failed to send so often more, and said that it will go on."""
    said = life.it.said().count("Will retry the request after interval")
    until(lambda: life.it.said().count("Will retry the request after interval") >= said + times)


# --- A Collector, or Prometheus, is away ----------------------------------------------------------------------


def test_the_gateway_is_down(world: World):
    """What the Collector before it has taken meanwhile waits on its disk, and comes later with its own times."""
    with under_load(world) as load:
        world.gateway.end()
        began = time.time()
        retries(world.near)
        goes_on(load)
        ended = time.time()
        world.gateway.begin()
    assert len(world.between(began, ended)) > 1


def test_the_collector_beside_the_service_is_down(world: World):
    """The service goes on, and the next scrape or push makes up for those that failed: only points are missing."""

    def failures() -> float:
        return world.page().total("otel_mlops_export_failures_total", signal="metrics")

    with under_load(world) as load:
        world.near.end()
        began, failed = time.time(), failures()
        goes_on(load)
        if world.way == "push":
            until(lambda: failures() >= failed + 2)
        ended = time.time()
        world.near.begin()
    assert not world.between(began, ended)


def test_prometheus_is_killed(world: World):
    """What comes to the gateway meanwhile waits on its disk, and comes later with its own times."""
    with under_load(world) as load:
        world.prometheus.it.running.kill()
        world.prometheus.end()
        began = time.time()
        retries(world.gateway)
        goes_on(load)
        ended = time.time()
        world.prometheus.begin()
    assert len(world.between(began, ended)) > 1


@pytest.mark.parametrize("killed", ["near", "gateway"])
def test_a_collector_is_killed_while_its_queue_holds_something(world: World, killed: str):
    """Its successor goes on with the queue that it finds on the disk: nothing is lost, and nothing counts twice."""
    collector, behind = {"near": (world.near, world.gateway), "gateway": (world.gateway, world.prometheus)}[killed]
    with under_load(world) as load:
        behind.end()
        began = time.time()
        retries(collector)
        goes_on(load)
        ended = time.time()
        collector.it.kill()
        collector.end()
        seen = len(collector.it.said())
        collector.begin()
        behind.begin()
    assert "Fetching items left for dispatch by consumers" in collector.it.said()[seen:]
    assert len(world.between(began, ended)) > 1


# --- The queue is full ----------------------------------------------------------------------------------------


FULL = {
    # A disk with room for a few scrapes, and none for the compaction of what is on it.
    "disk": ("no space left on device", 'mount -t tmpfs -o size=400k tmpfs "$QUEUE_DIR" && exec "$@"', "500000000"),
    "queue": ("sending queue is full", 'exec "$@"', "200000"),
}


@pytest.mark.parametrize("what", ["disk", "queue"])
def test_the_queue_is_full(world: World, what: str):
    """What does not go in is refused and counted as such; what is in it comes, and totals are right when it has."""
    if what == "disk" and not may_mount():
        pytest.skip("needs to mount in a namespace of its own: run as root")
    says, mounts, size = FULL[what]
    own = f'{{job="otelcol-{world.near_name}"}}'
    world.near.end()
    arguments = {**world.near_to, "QUEUE_BYTES": size}
    before = ["unshare", "--mount", "sh", "-ec", mounts, "sh"] if what == "disk" else []
    begins = partial(pipeline, world.near_name, world.place, before=before, **arguments)
    with Life(begins) as near, under_load(world) as load:
        world.gateway.end()
        began = time.time()
        retries(near)
        seen = len(near.it.said())
        until(lambda: says in near.it.said()[seen:])
        goes_on(load)
        ended = time.time()
        world.gateway.begin()
        for name in ("exporter_enqueue_failed", "receiver_refused"):
            until(lambda name=name: world.value(f"sum(otelcol_{name}_metric_points_total{own})"))
    world.near.begin()
    assert world.between(began, ended)


# --- The service ----------------------------------------------------------------------------------------------


def test_a_worker_is_killed(world: World):
    """Its counts stay with the others, in Prometheus as on the page, though it was the one that pushed."""
    with under_load(world) as load:
        world.service.it.kill(world.service.it.leader())
        world.service.it.worker_pids()
        goes_on(load)


def test_the_service_is_restarted(world: World):
    """Both lives are in Prometheus; over both `increase` gives all, but for the first sample of what is scraped."""
    with under_load(world) as load:
        goes_on(load)
    with Load(world.service.it) as load:
        goes_on(load)
    if world.way == "scrape":
        arrives(world)  # what is counted after the last scrape ends with the service
    old, last = world.instance(), world.page().total(COUNT)
    world.service.end()
    world.ends.append(time.time())
    world.recorded_before += last
    until(lambda: world.value(f'last_over_time({COUNT}{{instance="{old}"}}[5m])') == last)
    if world.way == "scrape":
        until(lambda: world.value(f'up{{job="{JOB}"}}') == 0)
    world.service.begin()
    world.service.it.record(1)
    arrives(world)  # the page of a new life is seen while it is below that of the old one
    with under_load(world) as load:
        goes_on(load)

    total = world.recorded_before + world.page().total(COUNT)
    histories = list(world.history(COUNT).values())
    steps = [(before, after) for each in histories for (_, before), (_, after) in pairwise(each)]
    grown = sum(after - before if after >= before else after for before, after in steps)
    first = sum(each[0][1] for each in histories)
    assert grown + first == total
    assert world.value(f'sum(increase({COUNT}{{job="{JOB}"}}[1h] anchored))') == grown
    assert first == 0 or world.way == "scrape"
