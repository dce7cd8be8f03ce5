"""The recorded scores of a fleet, in Prometheus' own evaluation: those of one service with all the traffic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from otel_mlops.numbers.chance import wilson
from otel_mlops.profile import PREDICTION, Profile
from otel_mlops.rules import GROUPS
from tests.monitoring.replay import Columns, cut, of, replaying, table
from tests.servers.programs import CONFIG, program, succeeds

CAR_LOAN = ("car_value", "salary_range", "loan_length", "driver_tenure")
COUNTS = ("model_feature_bin_total", "model_reference_bin_ratio", "model_reference_samples")
HALF_HOUR = "29m59s999ms"
"""A range of an hour has both its ends then, in Prometheus 3 too, which leaves the earlier one out."""


def evaluate(folder: Path, interval: str, series: dict[str, str], checks: dict[str, str]) -> None:
    """Let both versions of Prometheus compute the recorded rules of series, and ask whether expressions are true."""
    test = {
        "interval": interval,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": f"count({expression})", "eval_time": at, "exp_samples": [{"labels": "{}", "value": 1}]}
            for expression, at in checks.items()
        ],
    }
    file = {
        "rule_files": [str(CONFIG / "rules.yaml")],
        "evaluation_interval": interval,
        "group_eval_order": [group.name for group in GROUPS],
        "tests": [test],
    }
    (folder / "tests.yaml").write_text(yaml.safe_dump(file))
    for version in ("promtool-2", "promtool"):
        succeeds(program(version), "test", "rules", "tests.yaml", cwd=folder)


def counted(profile: Profile, parts: list[Columns], instance: str) -> tuple[dict[str, str], dict[str, float]]:
    """What a machine's page says every half hour, from its first traffic on, and its scores in the end."""
    pages = []
    with replaying(profile, window_s=3_600.0 * (len(parts) - 1) / 2.0, model_counts=True) as replay:
        for part in parts:
            replay.serve(of(part, *CAR_LOAN), part["y_pred_proba"])
            replay.wait(1_800.0)
            replay.look()
            lines = replay.telemetry.page().body.decode().splitlines()
            pages.append(dict(line.rsplit(" ", 1) for line in lines if line.startswith(COUNTS)))
        scores = replay.each("model_drift_score")
    series = {
        f'{name[:-1]},job="loans",instance="{instance}"}}': " ".join(page[name] for page in pages) for name in pages[0]
    }
    return series, scores


def test_the_drift_of_a_fleet_in_promql_is_that_of_one_service(tmp_path: Path):
    """Of two machines' counts the rules give the drift score of all traffic, to a millionth."""
    reference, analysis = table("car_loan_reference"), table("car_loan_analysis")
    profile = Profile.fit(of(reference, *CAR_LOAN), reference["y_pred_proba"])
    # Of a rare kind, so that bins are empty or nearly so: that is where counts are raised by less than one half.
    rows = np.arange(24_700, 25_300)
    parts = [cut(analysis, each) for each in np.array_split(rows, 3)]
    parts[2]["salary_range"] = np.where(np.arange(200) % 50 == 0, "unheard of", parts[2]["salary_range"])
    on_two = [counted(profile, [cut(part, slice(turn, None, 2)) for part in parts], f"{turn}") for turn in (0, 1)]
    _, expected = counted(profile, parts, "all")
    assert expected.keys() == {*CAR_LOAN, PREDICTION}
    assert [scores != expected for _, scores in on_two] == [True, True]
    labels = 'job="loans",model_name="replayed",model_version="1"'
    checks = {
        f'abs(job_model_feature:model_drift_score:1h{{{labels},feature="{feature}"}} - {score!r}) < {1e-6 * score!r}': (
            "59m59s998ms"
        )
        for feature, score in expected.items()
    }
    evaluate(tmp_path, HALF_HOUR, {name: values for found, _ in on_two for name, values in found.items()}, checks)


def test_the_quality_of_a_fleet_in_promql_is_that_of_one_service(tmp_path: Path):
    """Of two machines' counts the rules give accuracy, its upper bound, RMSE and MAE of all truths."""
    chance = np.random.default_rng(5)
    confusion = {("yes", "yes"): (310, 95), ("no", "no"): (402, 120), ("yes", "no"): (33, 40), ("no", "yes"): (9, 21)}
    errors = chance.normal(1.0, 3.0, 400)
    series: dict[str, str] = {}
    ours = 'job="loans",model_name="m",model_version="1"'
    for turn in (0, 1):
        of = f'{ours},instance="{turn}"'
        # Counted since long ago, so that nothing is guessed at the beginning of the range.
        for (actual, predicted), counts in confusion.items():
            series[f'model_confusion_total{{{of},actual="{actual}",predicted="{predicted}"}}'] = steps(counts[turn])
        own = errors[turn::3]  # of another number on each
        for name, total in (
            ("model_truths_total", len(own)),
            ("model_error_absolute_total", float(abs(own).sum())),
            ("model_error_squared_total", float((own**2).sum())),
        ):
            series[f"{name}{{{of}}}"] = steps(total)
    hits = sum(sum(counts) for (actual, predicted), counts in confusion.items() if actual == predicted)
    truths = sum(map(sum, confusion.values()))
    all_errors = np.concatenate([errors[0::3], errors[1::3]])
    bound = wilson(hits, truths)
    assert bound is not None
    wanted = {
        "job_model:model_accuracy_score:1d": hits / truths,
        "job_model:model_accuracy_upper_bound:1d": bound.upper,
        "job_model:model_rmse_score:1d": float(np.sqrt((all_errors**2).mean())),
        "job_model:model_mae_score:1d": float(abs(all_errors).mean()),
    }
    checks = {f"abs({name}{{{ours}}} - {value!r}) < {1e-4 * value!r}": "24h" for name, value in wanted.items()}
    evaluate(tmp_path, "10m", series, checks)


def steps(total: float) -> str:
    """A counter that grows by so much in a day, and is seen each ten minutes."""
    return f"1000000+{total / 144!r}x145"
