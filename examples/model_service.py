"""A service with a trained model, as it runs in production: how diabetes will progress within a year.

`python model_service.py`, or `uvicorn model_service:app`; the port is PORT's, else 8000. The page is on port
8001 and at /metrics of the service.
"""

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Annotated

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.model_selection import train_test_split

from otel_mlops import configure_telemetry

FEATURES = ("bmi", "bp", "s5")
DATABASE = "file:patients?mode=memory&cache=shared"


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Be ready for requests: a database, a model, and a look at both every 30 seconds."""
    with closing(sqlite3.connect(DATABASE, uri=True)) as kept:  # a database in memory lives as long as this
        fill(kept)
        load()
        telemetry.schedule_task(check_health, 30, "check_health")
        yield


app = FastAPI(title="progression", lifespan=lifespan)
telemetry = configure_telemetry(
    app,
    service_version="1.0.0",
    environment="production",
    monitoring_interval=10,  # the machine's values every 10 seconds instead of 5
    metrics_path="/metrics",
)
telemetry.system_info.info({"environment": "production", "version": "1.0.0", "deployment_date": "2024-01-15"})
model = telemetry.model("progression", version="v1.2.3", stage="production", type="regression", features=len(FEATURES))
regressor = Ridge(alpha=0.1)
data = load_diabetes()
patients = data.data[:, [data.feature_names.index(feature) for feature in FEATURES]]


@model.loading()
def load() -> None:
    """Train the model; a service of yours loads one. Its status, the time and its scores are on the page."""
    seen, unseen, seen_progressions, unseen_progressions = train_test_split(patients, data.target, random_state=0)
    regressor.fit(seen, seen_progressions)
    predicted = regressor.predict(unseen)
    telemetry.update_model_performance_metrics(
        model_version="v1.2.3",
        dataset="validation",
        rmse=root_mean_squared_error(unseen_progressions, predicted),
        mae=mean_absolute_error(unseen_progressions, predicted),
        r2=r2_score(unseen_progressions, predicted),
        model_name="progression",
    )


class Patient(BaseModel):
    """What the model looks at, each in standard units as the data set has it."""

    bmi: Annotated[float, Field(gt=-1, lt=1)]
    bp: Annotated[float, Field(gt=-1, lt=1)]
    s5: Annotated[float, Field(gt=-1, lt=1)]


@app.post("/predict")
def predict(patient: Patient) -> dict[str, float]:
    """Predict for one patient."""
    with model.prediction() as prediction:
        prediction.values = float(regressor.predict([[patient.bmi, patient.bp, patient.s5]])[0])
    return {"progression": prediction.values}


@app.post("/predict/batch")
def predict_batch(batch: Annotated[list[Patient], Field(min_length=1, max_length=1000)]) -> dict[str, list[float]]:
    """Predict for many patients at once."""
    with model.prediction() as prediction:
        prediction.values = regressor.predict([[patient.bmi, patient.bp, patient.s5] for patient in batch])
    return {"progressions": prediction.values.tolist()}


@app.get("/patients/{patient_id}/progression")
def predict_stored(patient_id: int) -> dict[str, float]:
    """Predict for a patient of the database."""
    with telemetry.database_operation("select", "patients"), closing(sqlite3.connect(DATABASE, uri=True)) as database:
        row = database.execute("SELECT bmi, bp, s5 FROM patients WHERE id = ?", (patient_id,)).fetchone()
    if row is None:
        raise HTTPException(404, "There is no such patient.")
    with model.prediction() as prediction:
        prediction.values = float(regressor.predict([row])[0])
    return {"progression": prediction.values}


def fill(database: sqlite3.Connection) -> None:
    """Write the patients into the database."""
    with telemetry.database_operation("insert", "patients"), database:
        database.execute("CREATE TABLE patients (id INTEGER PRIMARY KEY, bmi REAL, bp REAL, s5 REAL)")
        database.executemany("INSERT INTO patients (bmi, bp, s5) VALUES (?, ?, ?)", patients.tolist())


def check_health() -> None:
    """Tell at /health, and on the page, whether the database answers and the model is ready."""
    with closing(sqlite3.connect(DATABASE, uri=True)) as database:
        answers = database.execute("SELECT 1 FROM patients LIMIT 1").fetchone() is not None
    telemetry.update_api_health_status("database", answers)
    telemetry.update_api_health_status("model", model.status == "ready")


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
