"""The shop whose dashboards are drawn: its models and its API; what the clients ask of it decides how it fares."""

# ruff: noqa: S311

from __future__ import annotations

import random
import sqlite3
import time
from collections import deque

from fastapi import FastAPI, HTTPException

from otel_mlops import Model, configure_telemetry

chance = random.Random()
app = FastAPI(title="shop")
telemetry = configure_telemetry(
    app, service_name="shop", service_version="2.3.0", environment="production", monitoring_interval=1.0
)
telemetry.system_info.info({"environment": "production", "version": "2.3.0", "deployment_date": "2026-01-15"})
telemetry.schedule_task(lambda: telemetry.update_api_health_status("database", True), 2, "check_database")

fraud = telemetry.model("fraud", version="v1.4", stage="production", type="classification", profile="profile.json")
canary = telemetry.model("fraud", version="v1.5", stage="canary", type="classification", profile="profile.json")
price = telemetry.model("price", version="v2.1", stage="production", type="regression", features=2)
writer = telemetry.model("writer", version="v7", stage="production", type="language", features=0)
for model in (fraud, canary, price, writer):
    with model.loading():
        time.sleep(0.1)

compared = fraud.shadow(canary)

outcomes: deque[tuple[float, Model, str, int]] = deque(maxlen=10_000)
"""Orders whose outcome is not known yet: when it will be, which model was asked, the receipt, and what is true."""


def work(milliseconds: float) -> None:
    """Take some time, now and then much more."""
    time.sleep(milliseconds / 1000 * chance.lognormvariate(0, 0.4))


def store(operation: str, table: str, milliseconds: float) -> None:
    """Ask the database."""
    with telemetry.database_operation(operation, table):
        work(milliseconds)


def tell_outcomes() -> None:
    """Say of the orders of some seconds ago whether they were frauds."""
    while outcomes and outcomes[0][0] < time.monotonic():
        _, model, receipt, actual = outcomes.popleft()
        model.record_truth(receipt=receipt, actual=actual)


telemetry.schedule_task(tell_outcomes, 1, "tell_outcomes")


@app.post("/orders")
def order(rows: list[list[float]]) -> list[int]:
    """Look at orders: their amounts, how many items, the hour."""
    model = canary if chance.random() < 0.15 else fraud
    likely = [min(max((amount - 40) / 90, 0.02), 0.98) for amount, *_ in rows]
    with model.prediction(features=rows) as prediction:
        with prediction.phase("preprocess"):
            work(2)
            if chance.random() < (0.04 if model is canary else 0.002):
                raise ValueError("an hour beyond the last")
        with prediction.phase("inference"):
            work(9 if model is fraud else 6)
        prediction.cache_hit = chance.random() < 0.3
        prediction.values, prediction.scores = [int(share > 0.5) for share in likely], likely
    store("insert", "orders", 4)
    for share, receipt in zip(likely, prediction.receipts, strict=True):
        if chance.random() < 0.85:  # of some orders nobody ever hears again
            actual = int(chance.random() < share)
            outcomes.append((time.monotonic() + 8, model, receipt, actual))
            compared.record(int(share > 0.5), int(share > 0.55), actual)
    return list(prediction.values)


@app.get("/products/{product}/price")
def appraise(product: int) -> float:
    """Say what a product should cost."""
    store("select", "products", 3)
    if product > 9000:
        raise HTTPException(404, "There is no such product.")
    wanted = product % 97 + 3.0
    with price.prediction() as prediction:
        work(5)
        prediction.values = wanted + chance.gauss(0, 2)
    price.record_truth(prediction=prediction.values, actual=wanted + chance.gauss(0, 3))
    return float(prediction.values)


@app.post("/texts")
def write(words: int) -> int:
    """Write about a product."""
    with writer.generation(provider="own") as generation:
        generation.tokens(input=words)
        work(30)
        made = 0
        for _ in generation.stream(range(words)):
            time.sleep(0.002)
            made += 1
    return made


@app.post("/refunds")
def refund(amount: float) -> None:
    """Pay back; for this the database must be there."""
    with telemetry.database_operation("update", "orders"):
        work(6)
        if amount > 100:
            raise sqlite3.OperationalError("database is locked")
