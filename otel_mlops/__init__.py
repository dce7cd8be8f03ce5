"""Observability for machine-learning services in Python: OpenTelemetry inside, Prometheus outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_mlops.configure import configure_telemetry, get_metrics, get_telemetry, initialize_metrics
from otel_mlops.metrics import Metric
from otel_mlops.settings import Settings
from otel_mlops.telemetry import Telemetry

if TYPE_CHECKING:
    from otel_mlops.model import Model
    from otel_mlops.profile import Profile


def __getattr__(name: str) -> Any:
    # Late: a service that has no model does not pay for them.
    match name:
        case "__version__":
            from importlib.metadata import version

            return version("otel-mlops")
        case "Model":
            from otel_mlops.model import Model

            return Model
        case "Profile":
            from otel_mlops.profile import Profile

            return Profile
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


__all__ = [
    "Metric",
    "Model",
    "Profile",
    "Settings",
    "Telemetry",
    "configure_telemetry",
    "get_metrics",
    "get_telemetry",
    "initialize_metrics",
]
