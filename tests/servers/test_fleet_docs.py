"""What docs/fleet.md tells to configure, to ask and to expect, held by the programs themselves."""

from __future__ import annotations

import math
import random
import re
import time
from bisect import bisect_left
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_mlops.metrics import PREDICTION_DURATION
from otel_mlops.profile import Profile
from tests.monitoring.replay import replaying
from tests.servers.pipelines import push
from tests.servers.programs import CONFIG, program, prometheus, succeeds

TEXT = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()
CLASSIC, NATIVE = (
    code for of, code in re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE) if of == "promql"
)


def configurations(name: str) -> list[str]:
    """The configurations in the document that begin with this name."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return [block for block in blocks if block.startswith(f"# {name}\n")]


@pytest.mark.parametrize("promtool", ["promtool", "promtool-2"])
def test_prometheus_takes_the_configuration(tmp_path: Path, promtool: str):
    """Both versions of promtool find nothing wrong with the configuration that writes to another store."""
    (text,) = configurations("prometheus.yaml")
    (tmp_path / "prometheus.yaml").write_text(text)
    assert "SUCCESS" in succeeds(program(promtool), "check", "config", str(tmp_path / "prometheus.yaml"))


@pytest.mark.parametrize("number", [0, 1])
def test_the_collector_takes_each_configuration(tmp_path: Path, number: int):
    """`validate` finds nothing wrong with either way on, and warns of no name that is old."""
    texts = configurations("collector.yaml")
    assert len(texts) == 2
    text = texts[number].replace("/var/lib/otelcol", str(tmp_path / "queue"))
    (tmp_path / "collector.yaml").write_text(text)
    said = succeeds(program("otelcol-mlops"), "validate", f"--config={tmp_path / 'collector.yaml'}")
    assert "deprecated" not in said


def test_the_rules_that_it_names_exist():
    """Every recorded series in the document is recorded by collector-config/rules.yaml."""
    groups = yaml.safe_load((CONFIG / "rules.yaml").read_text())["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    named = set(re.findall(r"`(job\w*:\w+:\w+)`", TEXT))
    assert len(named) >= 4
    assert named <= recorded


def test_the_percentile_of_a_fleet_is_that_of_one_machine_with_all_the_traffic(tmp_path: Path):
    """The query gives of two machines what it gives of one that had both parts; their mean is far from it."""
    draw = random.Random(1)
    fast, slow = ([draw.lognormvariate(math.log(s), 0.5) for _ in range(n)] for s, n in ((0.002, 990), (0.4, 10)))
    of_all = quantile([*fast, *slow], 0.95)
    mean = (quantile(fast, 0.95) + quantile(slow, 0.95)) / 2.0
    assert mean > 50.0 * of_all
    of_each = f"avg({CLASSIC.strip().replace('job, ', 'instance, ')})"
    cases = (
        ([fast, slow], [close_to(CLASSIC.strip(), of_all), close_to(of_each, mean)]),
        ([fast + slow], [close_to(CLASSIC.strip(), of_all)]),
    )
    tests = [
        {
            "interval": "1m",
            "input_series": [series for number, part in enumerate(parts) for series in buckets(part, f"{number}")],
            "promql_expr_test": checks,
        }
        for parts, checks in cases
    ]
    written = tmp_path / "tests.yaml"
    written.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "1m", "tests": tests}))
    for promtool in ("promtool", "promtool-2"):
        succeeds(program(promtool), "test", "rules", str(written))


def buckets(durations: list[float], instance: str) -> list[dict[str, str]]:
    """The series of a machine whose durations come within every minute, as promtool takes them."""
    counts = [0] * (len(PREDICTION_DURATION.buckets) + 1)
    for duration in durations:
        counts[bisect_left(PREDICTION_DURATION.buckets, duration)] += 1
    of = f'job="shop",instance="{instance}",model_name="loans",model_version="v1"'
    return [
        {"series": f'{PREDICTION_DURATION.page_name}_bucket{{{of},le="{end}"}}', "values": f"0+{count}x10"}
        for end, count in zip([*PREDICTION_DURATION.buckets, "+Inf"], accumulate(counts), strict=True)
    ]


def quantile(durations: list[float], q: float) -> float:
    """The quantile by buckets, between whose bounds Prometheus draws a line."""
    bounds = (0.0, *PREDICTION_DURATION.buckets)
    ranks = [sum(duration <= bound for duration in durations) for bound in bounds]
    end = next(index for index, rank in enumerate(ranks) if rank >= q * len(durations))
    share = (q * len(durations) - ranks[end - 1]) / (ranks[end] - ranks[end - 1])
    return bounds[end - 1] + share * (bounds[end] - bounds[end - 1])


def close_to(query: str, value: float) -> dict[str, Any]:
    """A check that a query gives one value, to a millionth."""
    return {
        "expr": f"count(abs({query} / {value!r} - 1) < 1e-6)",
        "eval_time": "10m",
        "exp_samples": [{"labels": "{}", "value": 1}],
    }


def test_replicas_with_one_id_look_like_resets(tmp_path: Path):
    """Of two replicas that push 1 a second each under one service.instance.id the rate is many times too high."""
    now_s = int(time.time())
    with prometheus(tmp_path, {"global": {"scrape_interval": "1s"}}) as server:
        for instances in (("one", "two"), ("same", "same")):
            for second in range(-60, 0):
                for replica, instance in enumerate(instances):
                    at_ns = (now_s + second) * 10**9 + replica * 5 * 10**8
                    push_sold(f"{server.url}/api/v1/otlp", instance, 1000 * (replica + 1) + second, at_ns)
        rate = "sum(rate(shop_sold_total{{instance=~'{}'}}[40s]))"
        apart = server.ask("query", query=rate.format("one|two"), time=now_s - 1)["result"]
        together = server.ask("query", query=rate.format("same"), time=now_s - 1)["result"]
    assert float(apart[0]["value"][1]) == pytest.approx(2.0, rel=0.05)
    assert float(together[0]["value"][1]) > 500.0


def push_sold(url: str, instance: str, value: int, at_ns: int) -> None:
    """Push one cumulative counter."""
    point = {"asInt": str(value), "timeUnixNano": str(at_ns), "startTimeUnixNano": str(at_ns - 10**12)}
    metric = {"name": "shop.sold", "sum": {"dataPoints": [point], "aggregationTemporality": 2, "isMonotonic": True}}
    push(url, {"service.name": "shop", "service.instance.id": instance}, [metric])


@pytest.mark.parametrize(("counts", "expected"), [(False, 11), (True, 34)])
def test_a_feature_takes_as_many_series_as_it_says(counts: bool, expected: int):
    """Each feature of numbers is 11 series on the page, and 34 with OTEL_MLOPS_MODEL_COUNTS."""
    names = ["income", "rooms", "age"]
    draw = random.Random(1)
    rows = {name: [draw.random() for _ in range(1000)] for name in names}
    profile = Profile.fit(rows, [draw.random() for _ in range(1000)])
    with replaying(profile, window_s=3600.0, model_counts=counts) as replay:
        replay.serve(rows, [draw.random() for _ in range(1000)])
        replay.wait(1800.0)
        replay.look()
        lines = replay.telemetry.page().body.decode().splitlines()
    for name in names:
        assert sum(f'feature="{name}"' in line for line in lines) == expected
    row = "| each feature of it | 11 |" if not counts else "of numbers in ten bins | 34 |"
    assert row in TEXT
