"""From training to an alert, in some seconds: `python model_monitoring.py`.

A model says which loans are paid back. Then its feed breaks: incomes come in thousands. What the page says before and
after is printed, with windows of two seconds where a service has hours.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from otel_mlops import configure_telemetry
from otel_mlops.profile import Profile

FEATURES = ("income", "debt_ratio", "years_employed")
WINDOW_S = 2.0
chance = np.random.default_rng(1)


def applicants(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Those who ask for a loan, and whether they pay it back: 1 or 0."""
    income = chance.lognormal(10.5, 0.5, number)
    debt_ratio = chance.beta(2.0, 4.0, number)
    years_employed = chance.exponential(6.0, number)
    reliability = np.log(income / 36_000.0) * 4.0 - 9.0 * debt_ratio + 0.1 * years_employed + 2.0
    paid = chance.random(number) < 1.0 / (1.0 + np.exp(-reliability))
    return np.column_stack([income, debt_ratio, years_employed]), paid.astype(int)


def train(path: Path) -> LogisticRegression:
    """Train the model, and write down what it saw: the profile belongs beside the model."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    classifier.fit(*applicants(5_000))
    rows, paid = applicants(5_000)  # what the model has not been fitted to
    scores = classifier.predict_proba(rows)[:, 1]
    Profile.fit(
        rows, classifier.predict(rows), paid, scores, names=FEATURES, type="classification", model_name="loans"
    ).save(path)
    return classifier


def serve(*, is_broken: bool) -> None:
    """Decide on loans for nearly two windows, and learn later who has paid; one loan in five is never heard of."""
    waiting: list[tuple[list[str], np.ndarray]] = []
    end = time.monotonic() + 1.8 * WINDOW_S
    while time.monotonic() < end:
        rows, paid = applicants(50)
        if is_broken:
            rows[:, 0] /= 1_000.0
        with model.prediction(features=rows) as prediction:
            prediction.values = classifier.predict(rows)
            prediction.scores = classifier.predict_proba(rows)[:, 1]
        waiting.append((prediction.receipts, paid))  # a service gives each answer its receipt
        if len(waiting) > 5:
            receipts, truths = waiting.pop(0)
            for receipt, actual in list(zip(receipts, truths, strict=True))[:40]:
                model.record_truth(receipt=receipt, actual=actual)
        telemetry.sample()  # a service leaves this to the background
        time.sleep(0.1)


def show(title: str) -> None:
    """Print what Prometheus would read."""
    names = (
        "model_drift_score", "model_drift_threshold", "model_drift_detected", "model_drift_features",
        "model_accuracy_score", "model_score_bound", "model_estimated_accuracy_score", "model_performance_samples",
        "ground_truth_coverage_ratio",
    )  # fmt: skip
    print(f"--- {title}")
    for line in telemetry.page().body.decode().splitlines():
        if line.startswith(names):
            print(line.replace('model_name="loans",model_version="v1"', "…"))


with tempfile.TemporaryDirectory() as folder:
    profile = Path(folder) / "loans.profile.json"
    classifier = train(profile)
    with configure_telemetry(
        service_name="loans", start_server=False, drift_window=WINDOW_S, quality_window=WINDOW_S, drift_samples=200
    ) as telemetry:
        model = telemetry.model("loans", version="v1", type="classification", profile=profile)
        serve(is_broken=False)
        show("as in training")
        serve(is_broken=True)
        show("incomes come in thousands")
