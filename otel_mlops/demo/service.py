"""The demo's service, as a service should be: a model and its next version, a database, scheduled tasks.

It tells from the measurements of a cell sample how likely a tumour is malignant. It runs by itself as well:
`uvicorn otel_mlops.demo.service:app`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from otel_mlops import Model, configure_telemetry
from otel_mlops.demo.samples import FEATURES, Samples

KEPT_DIAGNOSES = 10_000
CANARY_SHARE = 10
"""One prediction in so many is the canary's."""


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Train the models and fill the database before the first request."""
    train()
    with TemporaryDirectory(prefix="diagnosis-") as folder:
        # The last sample lacks a measurement. The model refuses it, so there is now and then a 500 to see.
        samples.create(Path(folder, "samples.sqlite"), [*measured.tolist(), [None] * len(FEATURES)])
        telemetry.schedule_task(check_health, 2, "check_health")
        telemetry.schedule_task(evaluate, 5, "evaluate")
        telemetry.schedule_task(watch_drift, 2, "watch_drift")
        telemetry.schedule_task(lambda: samples.prune(KEPT_DIAGNOSES), 30, "prune_diagnoses")
        yield


app = FastAPI(title="Diagnosis", lifespan=lifespan)
telemetry = configure_telemetry(
    app, service_name="diagnosis", service_version="1.0.0", environment="demo", metrics_path="/metrics",
    request_timing_header="X-Process-Time", monitoring_interval=1.0,
)  # fmt: skip
telemetry.system_info.info({"environment": "demo", "version": "1.0.0", "deployment_date": "2024-01-15"})

# --- The models -------------------------------------------------------------------------------------------

stable = telemetry.model("tumour", version="v1.2.3", stage="production", type="classification", features=len(FEATURES))
canary = telemetry.model("tumour", version="v1.3.0", stage="canary", type="classification", features=len(FEATURES))
estimators: dict[Model, Any] = {
    stable: make_pipeline(StandardScaler(), LogisticRegression()),
    canary: RandomForestClassifier(n_estimators=40, random_state=0),
}
data = load_breast_cancer()
measured = data.data[:, [list(data.feature_names).index(f"mean {feature}") for feature in FEATURES]]
seen, unseen, is_seen_malignant, is_unseen_malignant = train_test_split(
    measured, data.target == list(data.target_names).index("malignant"), test_size=0.3, random_state=0
)
samples = Samples(telemetry)
recent: deque[Sequence[float]] = deque(maxlen=500)
"""The last rows that were asked about."""
turns = itertools.count(1)


def train() -> None:
    """Make both models ready; the status and the time it took are on the page."""
    for model, estimator in estimators.items():
        with model.loading():
            estimator.fit(seen, is_seen_malignant)


def malignancy(rows: Sequence[Sequence[float]]) -> tuple[Any, str]:
    """How likely each row is malignant, and the version that says so; a row by itself is a single prediction."""
    model = canary if next(turns) % CANARY_SHARE == 0 else stable
    recent.extend(rows)
    with model.prediction() as prediction:
        likely = estimators[model].predict_proba(rows)[:, 1]
        prediction.values = likely if len(rows) > 1 else likely[0]
    return likely.tolist(), model.version


# --- The API ----------------------------------------------------------------------------------------------

Length = Annotated[float, Field(gt=0, lt=100)]
Share = Annotated[float, Field(ge=0, lt=1)]


class CellSample(BaseModel):
    """The measurements of a sample, each the mean over its cells."""

    radius: Length
    texture: Length
    smoothness: Share
    compactness: Share
    concavity: Share
    symmetry: Share

    def row(self) -> list[float]:
        """The measurements in the order of the model's features."""
        return [getattr(self, feature) for feature in FEATURES]


class Diagnosis(BaseModel):
    """How likely each sample is malignant, 0 to 1."""

    malignant: list[float]
    version: str


def diagnose(rows: Sequence[Sequence[float]]) -> Diagnosis:
    """Predict and write down what was predicted."""
    malignant, version = malignancy(rows)
    samples.keep(malignant, version)
    return Diagnosis(malignant=malignant, version=version)


@app.post("/predict")
def predict(sample: CellSample) -> Diagnosis:
    """Diagnose one sample."""
    return diagnose([sample.row()])


@app.post("/predict/batch")
def predict_batch(batch: Annotated[list[CellSample], Field(min_length=2, max_length=256)]) -> Diagnosis:
    """Diagnose many samples at once."""
    return diagnose([sample.row() for sample in batch])


@app.get("/samples/{sample_id}/diagnosis")
def predict_stored(sample_id: int) -> Diagnosis:
    """Diagnose a sample of the database."""
    row = samples.find(sample_id)
    if row is None:
        raise HTTPException(404, "There is no such sample.")
    return diagnose([[np.nan if value is None else value for value in row]])


# --- The scheduled tasks ----------------------------------------------------------------------------------


def check_health() -> None:
    """Say whether the database answers and the models are ready; /health and the page tell it."""
    telemetry.update_api_health_status("database", samples.find(1) is not None)
    telemetry.update_api_health_status("model", all(model.status == "ready" for model in estimators))


def evaluate() -> None:
    """Score both models on samples that they were not trained on, drawn anew each time."""
    drawn = np.random.default_rng().integers(0, len(unseen), 100)
    for model, estimator in estimators.items():
        accuracy = estimator.score(unseen[drawn], is_unseen_malignant[drawn])
        telemetry.update_model_performance_metrics(
            model.version, "validation", accuracy=accuracy, model_name=model.name
        )


def watch_drift() -> None:
    """Say how many standard deviations what is asked about lies from what was seen in training."""
    rows = np.array(list(recent))  # a copy: requests go on meanwhile
    if not len(rows):
        return
    distances = np.abs(np.nanmean(rows, axis=0) - seen.mean(axis=0)) / seen.std(axis=0)
    for model in estimators:
        for feature, distance in zip(FEATURES, distances, strict=True):
            telemetry.update_model_drift_score(model.version, feature, distance, model_name=model.name)
