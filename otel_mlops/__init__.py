"""Observability for machine-learning services in Python: OpenTelemetry inside, Prometheus outside."""

from __future__ import annotations

from otel_mlops.configure import configure_telemetry, get_metrics, get_telemetry, initialize_metrics
from otel_mlops.metrics import Metric
from otel_mlops.model import Model
from otel_mlops.settings import Settings
from otel_mlops.telemetry import Telemetry


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("otel-mlops")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


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
