"""Observability for machine-learning services in Python: OpenTelemetry inside, Prometheus outside."""

from __future__ import annotations

from otel_mlops.configure import configure_telemetry, get_metrics, get_telemetry, initialize_metrics
from otel_mlops.metrics import Metric
from otel_mlops.model import Model
from otel_mlops.settings import Settings
from otel_mlops.telemetry import Telemetry

__all__ = [
    "Metric",
    "Model",
    "Settings",
    "Telemetry",
    "configure_telemetry",
    "get_metrics",
    "get_telemetry",
    "initialize_metrics",
]
