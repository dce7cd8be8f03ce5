"""Several workers, one page. Run `python several_workers.py` and look at http://127.0.0.1:8001/metrics.

The same page comes from `uvicorn several_workers:app --workers 4`, from gunicorn with and without `--preload`,
`fastapi run --workers 4`, granian and hypercorn.
"""

import os
import threading
from collections.abc import Iterable

import uvicorn
from fastapi import FastAPI
from opentelemetry.metrics import CallbackOptions, Observation

from otel_mlops import configure_telemetry

app = FastAPI(title="housing")
telemetry = configure_telemetry(app)
model = telemetry.model("housing", version="v1.2.3", type="regression")

# Added up over all workers, those that have died included.
rooms_seen = telemetry.meter.create_counter("rooms.seen", unit="{room}", description="Rooms that were asked about.")


def threads(_options: CallbackOptions) -> Iterable[Observation]:
    """What is true of one worker alone: each has a sample, with the label `worker`."""
    yield Observation(threading.active_count())


telemetry.meter.create_observable_gauge("worker.threads", [threads], description="Threads of a worker.")


@app.post("/predict")
def predict(median_income: float, rooms: float) -> dict[str, float]:
    """Predict the price of a house in units of 100,000, and say which worker did it."""
    rooms_seen.add(rooms)
    with model.prediction() as prediction:
        prediction.values = 0.4 * median_income + 0.1 * rooms
    return {"price": prediction.values, "pid": os.getpid()}


@app.post("/forget")
def forget(model_version: str) -> None:
    """A model is gone: its series leave the page, whichever worker is asked."""
    telemetry.forget(model_version=model_version)


if __name__ == "__main__":
    uvicorn.run("several_workers:app", port=int(os.environ.get("PORT", "8000")), workers=4)
