"""The shipped rules and routes in the programs that are to take them: what fires, what does not, who is told."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from otel_mlops.rules import ALERTS, GROUPS, RECORDINGS
from tests.servers.programs import CONFIG, alertmanager, program, routes_to, said, succeeds
from tests.servers.service import status, until

FILES = sorted(path.name for path in (CONFIG / "rules_tests").iterdir())
LONG = ["days.yaml", "weeks.yaml"]
SHORT = [name for name in FILES if name not in LONG]
VERSIONS = ("promtool-2", "promtool")


def both_said(*arguments: str, cwd: Path = CONFIG) -> None:
    """Ask both versions at a time, which must be content."""
    with ThreadPoolExecutor(len(VERSIONS)) as pool:
        asked = [pool.submit(said, program(version), *arguments, cwd=cwd) for version in VERSIONS]
        for version, answer in zip(VERSIONS, asked, strict=True):
            content, text = answer.result()
            assert content, f"{version}: {text}"


@pytest.mark.parametrize("version", VERSIONS)
def test_promtool_accepts_the_rules(version: str):
    """Prometheus' own tool finds nothing wrong in the rules, in both versions."""
    text = succeeds(program(version), "check", "rules", "rules.yaml", cwd=CONFIG)
    assert f"SUCCESS: {len(ALERTS) + len(RECORDINGS)} rules found" in text


@pytest.mark.parametrize("file", SHORT)
def test_the_rules_pass_their_tests(file: str):
    """Each alert fires when it must, and only then, with its words, in both versions."""
    both_said("test", "rules", file, cwd=CONFIG / "rules_tests")


@pytest.mark.parametrize("file", LONG)
def test_the_rules_pass_the_tests_that_take_days(file: str):
    """So does what looks back for days; in the newer version alone, as it takes long."""
    succeeds(program("promtool"), "test", "rules", file, cwd=CONFIG / "rules_tests")


def written(folder: Path, tests: list[dict[str, Any]], *, every: str, replaced: Mapping[str, str] | None = None) -> str:
    """Write tests and the rules, in which the expressions of some are others, and return the tests' name."""
    rules = yaml.safe_load((CONFIG / "rules.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = (replaced or {}).get(rule.get("alert") or rule["record"], rule["expr"])
    (folder / "rules.yaml").write_text(json.dumps(rules))  # JSON is YAML
    file = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": every,
        "group_eval_order": [group.name for group in GROUPS],
        "tests": tests,
    }
    (folder / "tests.yaml").write_text(json.dumps(file))
    return "tests.yaml"


NAIVE = {
    "HighErrorRate": ("requests.yaml", "rate(errors_total[5m]) > 0.1"),
    "GPUHighUtilization": ("gpu.yaml", "gpu_utilization_percent > 90"),
    "ModelAccuracyDrop": ("models.yaml", "model_accuracy_score < 0.85"),
}
"""Alerts, where their tests are, and how one would write them at first."""


@pytest.mark.parametrize("alert", NAIVE)
def test_the_tests_tell_a_sound_alert_from_a_naive_one(tmp_path: Path, alert: str):
    """Tests that the shipped expression passes fail with the naive one, each for what that gets wrong."""
    file, naive = NAIVE[alert]
    loaded = yaml.safe_load((CONFIG / "rules_tests" / file).read_text())
    tests = []
    for test in loaded["tests"]:
        # By who fires alone: the naive expressions have other labels, and so other words.
        cases = [case for case in test.get("alert_rule_test", []) if case["alertname"] == alert]
        expressions = [
            {
                "expr": f'(count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)) > bool 0',
                "eval_time": case["eval_time"],
                "exp_samples": [{"labels": "{}", "value": int(bool(case["exp_alerts"]))}],
            }
            for case in cases
        ]
        if expressions:
            tests.append({**test, "alert_rule_test": [], "promql_expr_test": expressions})
    arguments = {"every": loaded["evaluation_interval"]}
    succeeds(program("promtool"), "test", "rules", written(tmp_path, tests, **arguments), cwd=tmp_path)
    name = written(tmp_path, tests, replaced={alert: naive}, **arguments)
    content, text = said(program("promtool"), "test", "rules", name, cwd=tmp_path)
    assert not content
    assert text.count("exp: ") >= 2, text  # more than one thing
    assert "parse error" not in text


# --- Other objectives -----------------------------------------------------------------------------------------


def objectives(name: str, of: str, promised: Mapping[str, float]) -> dict[str, str]:
    """The expression of an objective that differs by job, as docs/alerts.md says that one writes it."""
    return {name: " or ".join(f'group by (job) ({of}{{job="{job}"}}) * {share}' for job, share in promised.items())}


def test_an_objective_can_be_kept_low(tmp_path: Path):
    """In a total outage every objective pages within 45 minutes of a good hour, and 0 never does."""
    promised = {"high": 0.99, "less": 0.95, "low": 0.9, "lower": 0.8, "none": 0.0}
    series = [
        {"series": f'api_requests_total{{job="{job}", status_code="{code}"}}', "values": values}
        for job in promised
        for code, values in (("200", "0+600x120 72000x120"), ("500", "0x120 0+600x120"))
    ]
    paging = 'group by (job) (ALERTS{alertname="ErrorBudgetBurn", alertstate="firing"})'
    paged = [
        {"expr": paging, "eval_time": at, "exp_samples": [{"labels": f'{{job="{job}"}}', "value": 1} for job in jobs]}
        for at, jobs in (("2h", []), ("2h45m", [job for job in promised if job != "none"]))
    ]
    never = {"expr": 'ALERTS{alertname=~"ErrorBudget.*", job="none"}', "eval_time": "4h", "exp_samples": []}
    tests = [{"interval": "1m", "input_series": series, "promql_expr_test": [*paged, never]}]
    replaced = objectives("job:slo_availability:objective", "api_requests_total", promised)
    both_said("test", "rules", written(tmp_path, tests, every="1m", replaced=replaced), cwd=tmp_path)


def test_where_no_latency_is_promised_a_gpu_is_still_watched(tmp_path: Path):
    """Without a latency objective a busy GPU is told of where requests take twice as long, an idle one at once."""
    promised = {"slower": 0.0, "same": 0.0, "idle": 0.0}
    series = {
        f'gpu_utilization_percent{{job="{job}", instance="a", gpu_id="0", gpu_name="H100"}}': f"{busy}x200"
        for job, busy in (("slower", 97), ("same", 97), ("idle", 0))
    }
    for job, spent in (("slower", "0+600x150 90000+2400x50"), ("same", "0+600x200"), ("idle", "0+600x200")):
        for part, values in (("count", "0+60x200"), ("sum", spent), ('bucket{le="0.5"', "0+0x200")):
            name, _, label = part.partition("{")
            labels = f'job="{job}", instance="a"' + (f", {label}" if label else "")
            series[f"api_request_duration_seconds_{name}{{{labels}}}"] = values
        series[f'predictions_in_progress{{job="{job}", instance="a", model_version="v1"}}'] = "8x200"
    fires = [
        {"labels": '{alertname="GPUHighUtilization", job="slower"}', "value": 1},
        {"labels": '{alertname="GPUIdleWhileQueueing", job="idle"}', "value": 1},
    ]
    asked = 'group by (alertname, job) (ALERTS{alertname=~"GPU.*|Latency.*", alertstate="firing"})'
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [{"expr": asked, "eval_time": "2h50m", "exp_samples": fires}],
        }
    ]
    replaced = objectives("job:slo_latency:objective", "api_request_duration_seconds_count", promised)
    both_said("test", "rules", written(tmp_path, tests, every="2m", replaced=replaced), cwd=tmp_path)


# --- When there is nothing to be seen -----------------------------------------------------------------------------


def fire(names: set[str], at: str) -> dict[str, Any]:
    """A test that exactly these alerts fire."""
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(names)]
    return {
        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": at,
        "exp_samples": samples,
    }


def test_without_numbers_nothing_fires(tmp_path: Path):
    """Where no series is, only that is told; where each series of the tests is no number, nothing is."""
    names = {
        series["series"]
        for file in FILES
        for test in yaml.safe_load((CONFIG / "rules_tests" / file).read_text())["tests"]
        for series in test["input_series"]
    }
    assert len(names) > 150
    none = [{"series": name, "values": "NaN+0x110"} for name in sorted(names)]
    tests = [
        {"name": "none", "interval": "4m", "promql_expr_test": [fire({"NothingMonitored", "Watchdog"}, "7h")]},
        {"name": "no number", "interval": "4m", "input_series": none, "promql_expr_test": [fire({"Watchdog"}, "7h")]},
    ]
    both_said("test", "rules", written(tmp_path, tests, every="4m"), cwd=tmp_path)


# --- A week ---------------------------------------------------------------------------------------------------

DAY, DAYS = 1440, 8  # minutes; and days, so that the last one can be compared with a week before
MINUTES = range(DAYS * DAY)
RESTARTS = {"a": {600, 3 * DAY + 77, 5 * DAY + 700}, "b": {602, 4 * DAY + 1000}}
"""At which minutes an instance restarts, for one of them: a deployment, a crash, another deployment."""
MODEL = 'model_name="loans", model_version="v1"'
GPU = 'gpu_id="0", gpu_name="NVIDIA H100"'


def healthy() -> Iterator[tuple[str, list[str]]]:
    """The series of a service that is well: a daily wave, noise, some errors, some restarts."""
    chance = random.Random(7)

    def waved(minute: int) -> float:
        return 1.0 + 0.8 * math.sin(2 * math.pi * minute / DAY) + chance.uniform(-0.1, 0.1)

    for instance, restarts in RESTARTS.items():
        gone = {minute + more for minute in restarts for more in (0, 1)}

        def series(name: str, values: list[float], labels: str = "", *, of: str = instance, none: set[int] = gone):
            shown = ["_" if minute in none else f"{value:.6g}" for minute, value in enumerate(values)]
            yield f'{name}{{job="shop", instance="{of}"{labels and ", "}{labels}}}', shown

        def counter(name: str, each: list[float], labels: str = "", *, begins: set[int] = restarts):
            total, values = 0.0, []
            for minute, more in enumerate(each):
                total = more if minute in begins else total + more
                values.append(total)
            yield from series(name, values, labels)

        def gauge(name: str, mean: float, spread: float, labels: str = ""):
            values = [mean + chance.uniform(-spread, spread) for _ in MINUTES]
            yield from series(name, values, labels)

        asked = [round(300 * waved(minute)) for minute in MINUTES]
        failed = [sum(chance.random() < 0.0002 for _ in range(int(count) // 10)) for count in asked]
        where = 'method="POST", endpoint="/predict"'
        yield from counter("api_requests_total", asked, f'{where}, status_code="200"')
        yield from counter("api_requests_total", failed, f'{where}, status_code="500"')
        yield from counter("errors_total", failed, 'error_type="ValueError", endpoint="/predict"')
        slow = [sum(chance.random() < 0.005 for _ in range(count)) for count in asked]
        yield from counter("api_request_duration_seconds_count", asked, where)
        quick = [count - late for count, late in zip(asked, slow, strict=True)]
        yield from counter("api_request_duration_seconds_bucket", quick, f'{where}, le="0.5"')
        yield from series("up", [float(minute not in gone) for minute in MINUTES], none=set())
        for name, mean, spread, labels in (
            ("otel_mlops_build_info", 1, 0, 'version="1"'),
            ("otel_mlops_workers", 4, 0, ""),
            ("otel_mlops_source_up", 1, 0, 'source="nvidia"'),
            ("otel_mlops_source_age_seconds", 5, 5, 'source="nvidia"'),
            ("otel_mlops_ledger_up", 1, 0, 'worker="0"'),
            ("otel_mlops_ledger_size_bytes", 3e5, 1e5, 'worker="0"'),
            ("api_health_status", 1, 0, 'component="database"'),
            ("model_status", 0, 0, f'{MODEL}, model_status="error"'),
            ("model_status", 1, 0, f'{MODEL}, model_status="ready"'),
            ("model_drift_score", 0.08, 0.05, f'{MODEL}, feature="income"'),
            ("model_drift_threshold", 0.2, 0, f'{MODEL}, feature="income"'),
            ("model_drift_window_samples", 15_000, 5_000, f'{MODEL}, feature="income"'),
            ("model_accuracy_score", 0.86, 0.015, f'{MODEL}, dataset="live"'),
            ("model_score_bound", 0.88, 0.015, f'{MODEL}, dataset="live", score="accuracy", bound="upper"'),
            ("model_performance_samples", 800, 300, f'{MODEL}, dataset="live"'),
            ("model_estimated_accuracy_score", 0.9, 0.02, MODEL),
            ("ground_truth_coverage_ratio", 0.8, 0.1, MODEL),
            ("predictions_in_progress", 2, 2, MODEL),
            ("gpu_up", 1, 0, GPU),
            ("gpu_utilization_percent", 90, 10, GPU),
            ("gpu_memory_free_bytes", 12, 5, GPU),
            ("gpu_memory_total_bytes", 80, 0, GPU),
            ("gpu_recovery_action", 0, 0, GPU),
            ("gpu_clock_event_active", 0, 0, f'{GPU}, reason="hw_thermal"'),
            ("system_memory_usage_bytes", 70, 15, ""),
            ("system_memory_total_bytes", 100, 0, ""),
            ("system_disk_total_bytes", 100, 0, 'mount_point="/"'),
            ("system_pressure_ratio", 0.05, 0.05, 'resource="memory"'),
            ("system_pressure_ratio", 0.4, 0.4, 'resource="cpu"'),
            ("container_memory_utilization_ratio", 0.7, 0.1, ""),
            ("container_cpu_limit_cores", 4, 0, ""),
            ("process_open_fds", 100, 40, 'worker="0"'),
            ("process_max_fds", 1024, 0, 'worker="0"'),
            ("otelcol_exporter_queue_size", 20, 20, 'exporter="otlp"'),
            ("otelcol_exporter_queue_capacity", 1000, 0, 'exporter="otlp"'),
        ):
            yield from gauge(name, mean, spread, labels)
        # A disk that a daily job empties, and a start time that changes with each restart.
        filled = [60 + 20 * (minute % DAY) / DAY for minute in MINUTES]
        yield from series("system_disk_usage_bytes", filled, 'mount_point="/"')
        began = [max((start for start in restarts if start <= minute), default=0) for minute in MINUTES]
        yield from series("process_start_time_seconds", began, 'worker="0"')
        for name, mean, labels in (
            ("predictions_total", 300, f'{MODEL}, prediction_type="single"'),
            ("prediction_duration_seconds_count", 300, f'{MODEL}, prediction_type="single"'),
            ("prediction_errors_total", 1, f'{MODEL}, error_type="ValueError"'),
            ("model_feature_missing_total", 5, f'{MODEL}, feature="income"'),
            ("scheduled_task_runs_total", 2, 'task="check", result="success"'),
            ("scheduled_task_runs_total", 0.02, 'task="check", result="error"'),
            ("database_operations_total", 200, 'operation="select", table="orders"'),
            ("database_operation_duration_seconds_count", 200, 'operation="select", table="orders"'),
            ("database_operation_duration_seconds_sum", 4, 'operation="select", table="orders"'),
            ("event_loop_lag_seconds_sum", 1, 'worker="0"'),
            ("gpu_throttle_seconds_total", 0.5, f'{GPU}, reason="hw_thermal"'),
            ("gpu_xid_errors_total", 0, f'{GPU}, xid="79"'),
            ("gpu_ecc_errors_total", 0, f'{GPU}, type="uncorrected", counter="volatile"'),
            ("container_cpu_throttled_seconds_total", 10, ""),
            ("otel_mlops_page_refused_total", 0.01, 'cause="request"'),
            ("otel_mlops_dropped_total", 0.5, 'reason="truth"'),
        ):
            yield from counter(name, [chance.uniform(0, 2 * mean) for _ in MINUTES], labels)


def test_a_healthy_week_wakes_nobody(tmp_path: Path):
    """Of eight days with waves, noise, a few errors, deployments and a crash no alert fires but the Watchdog."""
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": " ".join(values)} for name, values in healthy()],
            "promql_expr_test": [
                {
                    "expr": f'group by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{DAYS}d]))',
                    "eval_time": f"{DAYS}d",
                    "exp_samples": [{"labels": '{alertname="Watchdog"}', "value": 1}],
                },
                {
                    # They were all there to be looked at.
                    "expr": 'count({__name__=~"job:.+:(objective|rate.+|ratio_rate.+)"})',
                    "eval_time": f"{DAYS * DAY - 10}m",
                    "exp_samples": [{"labels": "{}", "value": 21}],
                },
            ],
        }
    ]
    succeeds(program("promtool"), "test", "rules", written(tmp_path, tests, every="10m"), cwd=tmp_path)


def deployed() -> Iterator[tuple[str, str]]:
    """The series of ten instances of four workers that are deployed one after the other, and of a model's rollout."""
    end = 600

    def life(begins: int, ends: int, values: list[float]) -> str:
        return f"_x{begins} " * bool(begins) + " ".join(map(str, values)) + " stale" * (ends < end)

    for number in range(10):
        scraped, pushed = 240 + 2 * number, 240 + number
        # Scraped, an instance keeps its name and is gone for two minutes; over OTLP the next one has another.
        yield f'up{{job="rolled", instance="i{number}"}}', f"1x{scraped - 1} 0 0 1x{end - scraped - 2}"
        for job, name, begins, ends in (
            ("rolled", f"i{number}", 0, scraped),
            ("rolled", f"i{number}", scraped + 2, end),
            ("pushed", f"o{number}", 0, pushed),
            ("pushed", f"n{number}", pushed + 1, end),
        ):
            lives = range(begins, ends)
            of = f'job="{job}", instance="{name}"'
            gpu = f'{of}, gpu_id="0", gpu_name="H100"'
            for series, values in (
                (f'otel_mlops_build_info{{{of}, version="1"}}', [1.0 for _ in lives]),
                (f"otel_mlops_workers{{{of}}}", [4.0 for _ in lives]),
                (f'api_health_status{{{of}, component="model"}}', [float(m >= begins + 8) for m in lives]),
                (f"gpu_up{{{gpu}}}", [1.0 for _ in lives]),
                (f'gpu_ecc_errors_total{{{gpu}, type="uncorrected", counter="volatile"}}', [2.0 for _ in lives]),
                *(
                    # Recycled every ten minutes, one after the other.
                    (
                        f'process_start_time_seconds{{{of}, worker="{worker}"}}',
                        [60.0 * max(begins, (m - 2 * worker) // 10 * 10 + 2 * worker) for m in lives],
                    )
                    for worker in range(4)
                ),
            ):
                yield series, life(begins, ends, values)
    for version, begins, ends in (("v1", 0, 300), ("v2", 290, end)):
        lives = range(begins, ends)
        of = f'job="rolled", instance="i0", model_name="loans", model_version="{version}"'
        for series, values in (
            (f'predictions_total{{{of}, prediction_type="single"}}', [50.0 * m for m in lives]),
            (f'model_accuracy_score{{{of}, dataset="validation"}}', [0.9 for _ in lives]),
            (f'model_status{{{of}, model_status="loading"}}', [float(m < begins + 9) for m in lives]),
        ):
            yield series, life(begins, ends, values)


def test_a_deployment_wakes_nobody(tmp_path: Path):
    """Ten instances are deployed, by scrape and by push, workers recycled and a model replaced: nothing fires."""
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in deployed()],
            "promql_expr_test": [
                {
                    "expr": 'group by (alertname) (count_over_time(ALERTS{alertstate="firing"}[9h]))',
                    "eval_time": "9h",
                    "exp_samples": [{"labels": '{alertname="Watchdog"}', "value": 1}],
                }
            ],
        }
    ]
    succeeds(program("promtool"), "test", "rules", written(tmp_path, tests, every="2m"), cwd=tmp_path)


# --- Who is told ----------------------------------------------------------------------------------------------


def amtool(*arguments: str) -> str:
    """What Alertmanager's own tool says, which must be content."""
    return succeeds(program("amtool"), *arguments, cwd=CONFIG).strip()


def test_alertmanager_accepts_its_configuration():
    """Alertmanager's own tool finds nothing wrong, and no secret stands in the file."""
    assert "SUCCESS" in amtool("check-config", "alertmanager.yaml")
    routes = yaml.safe_load((CONFIG / "alertmanager.yaml").read_text())
    for receiver in routes["receivers"]:
        for hook in receiver["webhook_configs"]:
            assert hook.keys() <= {"url_file", "send_resolved"}


@pytest.mark.parametrize("severity", ["critical", "warning", "none"])
def test_each_alert_has_its_receiver(severity: str):
    """What is critical is a page, a warning a ticket, and the Watchdog goes where it is missed."""
    wanted = {"critical": "pages", "warning": "tickets", "none": "watchdog"}[severity]
    (name, *_) = [alert.name for alert in ALERTS if alert.severity == severity]
    labels = (f"alertname={name}", f"severity={severity}", "job=shop")
    assert amtool("config", "routes", "test", "--config.file=alertmanager.yaml", *labels) == wanted


def test_what_hides_alerts_exists():
    """Each alert and label that an inhibition names is one of the rules'."""
    routes = yaml.safe_load((CONFIG / "alertmanager.yaml").read_text())
    names = {alert.name for alert in ALERTS}
    domains = {group.domain for group in GROUPS}
    for rule in routes["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            label, value = matcher.replace('"', "").replace("~", "").replace("!", "").split(" = ")
            known = {"alertname": names, "domain": domains, "severity": {"critical", "warning"}}[label]
            assert {each.removesuffix(".*") for each in value.split("|")} <= known, matcher


GPU_OF, MODEL_OF = {"instance": "a", "gpu_id": "0"}, {"model_version": "v1"}
HIDES = (
    ("ErrorBudgetBurn", "ErrorBudgetBurnSlow", {}),
    ("LatencyBudgetBurn", "LatencyBudgetBurnSlow", {}),
    ("RequestsStuck", "TrafficLost", {}),
    ("InstancesRestarting", "TargetDown", {"instance": "a"}),
    ("ModelNotReady", "PredictionsFail", MODEL_OF),
    ("ModelAccuracyDrop", "ModelEstimatedAccuracyDrop", MODEL_OF),
    ("GPULost", "GPUThrottled", GPU_OF),
    ("HostDiskFull", "HostDiskFills", {"instance": "a", "mount_point": "/"}),
    ("CollectorDrops", "CollectorQueueFilling", {"instance": "a", "exporter": "otlp"}),
)
"""What hides what, and by which labels beside the job."""
BESIDE = (
    ("ErrorBudgetBurn", "HighErrorRate", {}),
    ("LatencyBudgetBurn", "TrafficLost", {}),
    ("ModelAccuracyDrop", "ModelInputDrifted", MODEL_OF),
    ("ModelAccuracyDrop", "ModelTruthMissing", MODEL_OF),
    ("ModelAccuracyDrop", "PredictionsFail", MODEL_OF),
    ("ComponentUnhealthy", "EventLoopBlocked", {"instance": "a"}),
    ("HostDiskFull", "HostMemoryLow", {"instance": "a"}),
    ("CollectorDrops", "CollectorRefuses", {"instance": "a"}),
)
"""Faults that are told beside each other."""


def test_one_fault_is_told_once_and_two_are_told_twice(tmp_path: Path):
    """Of each pair Alertmanager hides what says no more, and tells what is another fault."""
    domains = {rule.name: (group.domain, rule.severity) for group in GROUPS for rule in group.rules if rule in ALERTS}
    alerts, wanted = [], {}
    for number, (first, second, labels) in enumerate((*HIDES, *BESIDE)):
        for name in (first, second):
            domain, severity = domains[name]
            of = {"alertname": name, "job": f"shop{number}", "domain": domain, "severity": severity, **labels}
            alerts.append({"labels": of})
            wanted[f"shop{number}", name] = name == second and number < len(HIDES)
    with alertmanager(tmp_path, routes_to("http://127.0.0.1:9/", tmp_path)) as port:
        url = f"http://127.0.0.1:{port}/api/v2/alerts"
        assert status(url, "POST", json.dumps(alerts).encode()) == 200

        def hidden() -> dict[tuple[str, str], bool]:
            with urlopen(url) as answer:
                told = json.load(answer)
            return {
                (each["labels"]["job"], each["labels"]["alertname"]): bool(each["status"]["inhibitedBy"])
                for each in told
            }

        until(lambda: hidden() == wanted)
