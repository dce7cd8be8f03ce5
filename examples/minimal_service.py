"""The smallest service. Run `uvicorn minimal_service:app` and look at http://127.0.0.1:8001/metrics."""

from fastapi import FastAPI
from pydantic import BaseModel

from otel_mlops import configure_telemetry

app = FastAPI(title="housing")
telemetry = configure_telemetry(app)
model = telemetry.model("housing", version="v1.2.3", type="regression")


class House(BaseModel):
    """What the model looks at."""

    median_income: float
    rooms: float


@app.post("/predict")
def predict(house: House) -> dict[str, float]:
    """Predict the price of a house in units of 100,000."""
    with model.prediction() as prediction:
        prediction.values = 0.4 * house.median_income + 0.1 * house.rooms
    return {"price": prediction.values}
