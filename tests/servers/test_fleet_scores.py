"""What the docs tell Prometheus to compute and to alert on, in Prometheus' own evaluation."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from otel_mlops.profile import PREDICTION, Profile
from tests.monitoring.replay import Columns, cut, of, replaying, table

DOCS = Path(__file__).parents[2] / "docs"
CAR_LOAN = ("car_value", "salary_range", "loan_length", "driver_tenure")
COUNTS = ("model_feature_bin_total", "model_reference_bin_ratio", "model_reference_samples")


def rules_of(name: str) -> str:
    """The rules of Prometheus in a document."""
    (rules,) = (
        block
        for block in re.findall(r"^```yaml\n(.*?)^```$", (DOCS / name).read_text(), re.DOTALL | re.MULTILINE)
        if block.startswith("groups:")
    )
    return rules


def evaluate(folder: Path, name: str, tests: list[dict[str, Any]]) -> None:
    """Let promtool run tests of the rules in a document."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: run make servers")
    (folder / "rules.yaml").write_text(rules_of(name))
    (folder / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "30m", "tests": tests})
    )
    for arguments in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
        ran = subprocess.run(
            [promtool, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


def counted(profile: Profile, parts: list[Columns], instance: str) -> tuple[list[dict[str, str]], dict[str, float]]:
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
    series = [
        {"series": f'{name[:-1]},instance="{instance}"}}', "values": " ".join(page[name] for page in pages)}
        for name in pages[0]
    ]
    return series, scores


def test_the_drift_of_a_fleet_in_promql_is_that_of_one_service(tmp_path: Path):
    """The recording rules of docs/drift.md give, of two machines' counts, the score of all traffic to 1e-9."""
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
    checks = [
        {
            "expr": f'abs(model:drift_score:1h{{feature="{feature}"}} - {score!r}) < bool 1e-9',
            "eval_time": "1h",
            "exp_samples": [
                {"labels": f'{{model_name="replayed", model_version="1", feature="{feature}"}}', "value": 1}
            ],
        }
        for feature, score in expected.items()
    ]
    series = [each for found, _ in on_two for each in found]
    evaluate(tmp_path, "drift.md", [{"interval": "30m", "input_series": series, "promql_expr_test": checks}])


OF = 'model_name="loans",model_version="v1"'
INCOME = f'{OF},feature="income"'
UPPER = f'{OF},dataset="live",score="accuracy",bound="upper"'
ALERTS = {
    "ModelInputDrifted": {
        f"model_drift_score{{{INCOME}}}": ("0.3x14", "0.1x14"),
        f"model_drift_threshold{{{INCOME}}}": ("0.2x14", "0.3x14"),
        f"model_drift_window_samples{{{INCOME}}}": ("500x14", "499x14"),
    },
    "ModelInputMissing": {
        f"model_feature_missing_total{{{INCOME}}}": ("0+60x14", "0+40x14"),
        f"model_drift_window_samples{{{INCOME}}}": ("500x14", "499x14"),
    },
    "ModelAccuracyLow": {
        f"model_score_bound{{{UPPER}}}": ("0.84x14", "0.85x14"),
        f'model_performance_samples{{{OF},dataset="live"}}': ("200x14", "199x14"),
    },
    "ModelTruthMissing": {f"ground_truth_coverage_ratio{{{OF}}}": ("0.4x14", "0.5x14")},
}
"""By alert, the series that let it fire, and what each of them has where it must not; values every half hour."""


def test_the_alerts_of_the_walk_through_fire_when_they_must(tmp_path: Path):
    """Each alert of docs/monitoring.md fires, and does not once any one of its values is on the other side."""
    written = [
        rule["alert"] for group in yaml.safe_load(rules_of("monitoring.md"))["groups"] for rule in group["rules"]
    ]
    assert written == [*ALERTS]
    tests = [
        {
            "interval": "30m",
            "input_series": [{"series": name, "values": values[name == quiet]} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                    "eval_time": "6h30m",
                    "exp_samples": [{"labels": "{}", "value": int(quiet is None)}],
                }
            ],
        }
        for alert, series in ALERTS.items()
        for quiet in (None, *series)
    ]
    evaluate(tmp_path, "monitoring.md", tests)
