"""The whole way: two workers, the Collector, Prometheus, Alertmanager, a person; with the shipped files, in a hurry."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import yaml

from tests.servers.pipelines import Place, pipeline, receiving
from tests.servers.programs import CONFIG, Prometheus, alertmanager, routes_to, webhook
from tests.servers.service import Service, listens, running, status, until

FASTER = 300
"""Time in the rules and the routes runs so many times faster, or nobody would wait for the end of the test."""

LEAST_MS = 4000
"""No range is shorter: it must hold some samples."""

SERVICE = """
    import random
    from fastapi import FastAPI
    from otel_mlops import configure_telemetry
    from otel_mlops.profile import Profile

    rows = [{"income": random.gauss(4, 1), "rooms": random.gauss(6, 2)} for _ in range(4_000)]
    profile = Profile.fit(rows, [row["income"] for row in rows], type="regression")

    app = FastAPI(title="housing")
    telemetry = configure_telemetry(app)
    model = telemetry.model("housing", version="v1", type="regression", profile=profile)

    @app.post("/predict")
    def predict(rows: list[dict[str, float]]) -> list[float]:
        with model.prediction(features=rows) as prediction:
            prediction.values = [row["income"] for row in rows]
        return prediction.values

    @app.get("/broken")
    def broken() -> None:
        raise ValueError("secret")
"""
ROWS = 50

FAULTS = {"ErrorBudgetBurn", "ModelInputDrifted"}
"""The alerts that somebody must hear of."""

ALSO = {"HighErrorRate", "ErrorBudgetBurnSlow"}
"""Those that are about the same: one names the endpoint, the other is hidden while ErrorBudgetBurn fires."""

MACHINE = re.compile("Host.*|Container.*|EventLoop.*|Latency.*")
"""Alerts that tell the truth about the machine on which this test runs with others."""

Mood = Literal["well", "ill"]


class Clients:
    """Those who ask the service, all the time: good things, or also such as fail and rows unlike the training's."""

    def __init__(self, service: Service) -> None:
        self.mood: Mood = "well"
        self.answers: list[int] = []
        self._url = service.url
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)

    def _ask(self) -> None:
        chance = random.Random(1)
        while not self._stopping.wait(0.05):
            income = 6 if self.mood == "ill" else 4
            rows = [{"income": chance.gauss(income, 1), "rooms": chance.gauss(6, 2)} for _ in range(ROWS)]
            # A new connection each time, so that both workers are asked.
            self.answers.append(status(f"{self._url}/predict", "POST", json.dumps(rows).encode()))
            if self.mood == "ill":
                self.answers.append(status(f"{self._url}/broken"))


# --- Time -----------------------------------------------------------------------------------------------------


def hurried(text: str) -> str:
    """A duration FASTER times shorter, in milliseconds."""
    units = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
    return f"{sum(int(count) * units[unit] for count, unit in _PARTS.findall(text)) // FASTER}ms"


def at_least(text: str, least_ms: int) -> str:
    """The same, but no shorter than so many milliseconds."""
    return f"{max(int(hurried(text)[:-2]), least_ms)}ms"


_PARTS = re.compile(r"(\d+)(ms|s|m|h|d|w)")
_RANGE = re.compile(r"\[(\w+)(:\w+)?\]")
_OFFSET = re.compile(r"(?<=offset )\w+")


def hurry_rules(rules: dict[str, Any]) -> dict[str, Any]:
    """Shorten each range, offset and patience of rules."""
    for group in rules["groups"]:
        group.pop("interval", None)
        for rule in group["rules"]:
            expression = _RANGE.sub(
                lambda found: f"[{at_least(found[1], LEAST_MS)}{':1s' if found[2] else ''}]", rule["expr"]
            )
            rule["expr"] = _OFFSET.sub(lambda found: hurried(found[0]), expression)
            for patience in rule.keys() & {"for", "keep_firing_for"}:
                rule[patience] = hurried(rule[patience])
    return rules


def hurry_routes(route: dict[str, Any]) -> None:
    """Shorten what Alertmanager waits for before it sends."""
    for wait in route.keys() & {"group_wait", "group_interval", "repeat_interval"}:
        route[wait] = at_least(route[wait], 1000)
    for each in route.get("routes", ()):
        hurry_routes(each)


def test_time_is_shortened_everywhere():
    """Ranges, subqueries, offsets and patience are shortened, names and numbers are not."""
    rule = {"expr": "job:x:rate5m[1d:5m] > 300 * y[5m] offset 1d", "for": "2h"}
    hurry_rules({"groups": [{"interval": "1m", "rules": [rule]}]})
    assert rule == {"expr": "job:x:rate5m[288000ms:1s] > 300 * y[4000ms] offset 288000ms", "for": "24000ms"}


# --- The story ------------------------------------------------------------------------------------------------


class Person(NamedTuple):
    """Somebody who is told, and what was told."""

    notifications: list[dict[str, Any]]

    def told(self) -> dict[str, str]:
        """What each alert was last said to be: `firing` or `resolved`, by its name."""
        alerts = [alert for each in self.notifications for alert in each["alerts"]]
        return {alert["labels"]["alertname"]: alert["status"] for alert in alerts}

    def hears(self, status: str) -> set[str]:
        """The alerts about the service that were last said to be `firing`, or to be `resolved`."""
        return about_the_service(name for name, last in self.told().items() if last == status)


def about_the_service(names: Iterable[str]) -> set[str]:
    """Those names of alerts that are not about the machine."""
    return {name for name in names if not MACHINE.fullmatch(name)}


@contextmanager
def watched(folder: Path, service: Service) -> Iterator[tuple[Prometheus, Person]]:
    """All that stands between a page and a person, for as long as the block."""
    place = Place(folder)
    with ExitStack() as stack:
        url, notifications = stack.enter_context(webhook())
        routes = routes_to(url, folder)
        hurry_routes(routes["route"])
        alerts = stack.enter_context(alertmanager(folder, routes))
        rules = hurry_rules(yaml.safe_load((CONFIG / "rules.yaml").read_text()))
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        prometheus = stack.enter_context(
            receiving(
                place,
                rule_files=[str(folder / "rules.yaml")],
                alerting={"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alerts}"]}]}]},
                **{"global": {"evaluation_interval": "1s"}},
            )
        )
        stack.enter_context(pipeline("gateway", place))
        stack.enter_context(pipeline("agent", place, SCRAPE_TARGET=f"127.0.0.1:{service.page_port}"))
        yield prometheus, Person(notifications)


def test_a_person_hears_of_what_is_wrong_and_of_its_end(tmp_path: Path):
    """Failing requests, drifted rows and an end lead to their alerts and no others, and recovery resolves them."""
    settings = {
        # A label of every series where metrics are pushed; a scrape that fails does not know of it.
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_MLOPS_MONITORING_INTERVAL": "0.5",
        "OTEL_MLOPS_DRIFT_WINDOW": str(3600 / FASTER),
        "OTEL_MLOPS_LATENCY_WINDOW": "5",
    }
    with running(SERVICE, tmp_path, arguments=("--workers", "2"), **settings) as service:
        until(lambda: listens(service.page_port))
        with watched(tmp_path, service) as (prometheus, person):
            with Clients(service) as clients:
                until(lambda: (prometheus.value("min(model_drift_window_samples)") or 0) >= 500)
                until(lambda: prometheus.value("job:api_requests_failed:ratio_rate1h") == 0)
                until(lambda: about_the_service(prometheus.alerts()) == {"Watchdog"})
                person.notifications.clear()

                clients.mood = "ill"
                until(lambda: person.hears("firing") >= FAULTS, 90)
                until(lambda: prometheus.alerts().get("HighErrorRate") == "firing")

                clients.mood = "well"
                until(lambda: person.hears("resolved") >= FAULTS, 120)
                assert person.hears("firing") <= {"Watchdog"} | ALSO
                assert about_the_service(person.told()) - {"Watchdog"} <= FAULTS | ALSO
            # Nobody asks any more: what was answered is what Prometheus has.
            answered = len(clients.answers)
            until(lambda: prometheus.value("sum(api_requests_total)") == answered)

            service.process.terminate()
            until(lambda: "ServiceAbsent" in person.hears("firing"))
            assert prometheus.value("max(up)") == 0
