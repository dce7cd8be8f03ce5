"""Alerts as data, written with the constants of `metrics`: a misspelt metric is a NameError."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from otel_mlops.metrics import ERRORS, GPU_UTILIZATION, MODEL_ACCURACY


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alerting rule of Prometheus: when it fires, and what somebody is to do about it."""

    name: str
    expression: str
    lasting: str
    """How long the expression must hold before the alert fires, as Prometheus writes it: `2m`."""
    severity: Literal["warning", "critical"]
    summary: str
    """What has happened, with the values of the labels."""
    description: str
    """What the alert means, and what to do."""


ALERTS: tuple[Alert, ...] = (
    Alert(
        name="HighErrorRate",
        expression=f"rate({ERRORS.page_name}[5m]) > 0.1",
        lasting="2m",
        severity="warning",
        summary='{{ $labels.error_type }} at {{ $labels.endpoint }}: {{ $value | printf "%.2f" }} a second',
        description=(
            "More than 0.1 errors a second of one class at one endpoint, for 2 minutes. "
            "Look for the class in the service's log, and at what was deployed last."
        ),
    ),
    Alert(
        name="GPUHighUtilization",
        expression=f"{GPU_UTILIZATION.page_name} > 90",
        lasting="5m",
        severity="warning",
        summary=(
            'GPU {{ $labels.gpu_id }} ({{ $labels.gpu_name }}) is busy {{ $value | printf "%.0f" }} % of the time'
        ),
        description=(
            "More than 90 % for 5 minutes. A busy GPU is no fault by itself: "
            "if requests wait longer as well, add a GPU or send larger batches."
        ),
    ),
    Alert(
        name="ModelAccuracyDrop",
        expression=f"{MODEL_ACCURACY.page_name} < 0.85",
        lasting="1m",
        severity="critical",
        summary=(
            'Model {{ $labels.model_version }} has an accuracy of {{ $value | printf "%.3f" }} on {{ $labels.dataset }}'
        ),
        description=(
            "Below 0.85 for 1 minute. Compare with the version before and with the drift scores: "
            "go back to that version, or train on data like today's."
        ),
    ),
)
"""Every alert."""
