"""The dashboards: what is common to all of them, and their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from otel_mlops.dashboards.api import API
from otel_mlops.dashboards.business import BUSINESS
from otel_mlops.dashboards.grafana import document
from otel_mlops.dashboards.models import MODELS
from otel_mlops.dashboards.panels import Dashboard, Variable
from otel_mlops.dashboards.promql import series
from otel_mlops.dashboards.system import SYSTEM
from otel_mlops.metrics import (
    BUILD_INFO,
    GPU_MEMORY_FREE,
    MODEL_ACCURACY,
    MODEL_INFO,
    PREDICTIONS,
    PROCESS_START_TIME,
    Metric,
)

DASHBOARDS: tuple[Dashboard, ...] = (API, MODELS, SYSTEM, BUSINESS)

# What a model is known by, also one of which nothing but its scores is told.
_OF_MODELS = f'__name__=~"{MODEL_INFO.page_name}|{PREDICTIONS.page_name}|{MODEL_ACCURACY.page_name}"'
_OF_TARGET = 'job=~"$job", instance=~"$instance"'

VARIABLES: tuple[Variable, ...] = (
    Variable(name="job", label="Job", query=f"label_values({BUILD_INFO.page_name}, job)", every=".+"),
    Variable(
        name="instance",
        label="Instance",
        query=f'label_values({BUILD_INFO.page_name}{{job=~"$job"}}, instance)',
        every=".+",
    ),
    # A series may have no name of a model: `.*` finds it too.
    Variable(
        name="model_name",
        label="Model",
        query=f"label_values({{{_OF_MODELS}, {_OF_TARGET}}}, model_name)",
        every=".*",
    ),
    Variable(
        name="model_version",
        label="Version",
        query=f'label_values({{{_OF_MODELS}, {_OF_TARGET}, model_name=~"$model_name"}}, model_version)',
        every=".*",
    ),
)
"""The choices at the top, the same on each dashboard, so that a link keeps them."""

ANNOTATIONS: Mapping[str, str] = {
    "Worker started": f"{series(PROCESS_START_TIME)} * 1000",
    "Alert fires": 'ALERTS{alertstate="firing", job=~"$job|"}',
}
"""What is marked on every graph, by its name: restarts and deployments, and alerts where the rules are loaded."""

LEFT_OUT: Mapping[Metric, str] = {
    GPU_MEMORY_FREE: "the total less what is used and reserved, which are shown",
}
"""The metrics that no panel shows, and why."""


def files() -> Iterator[tuple[str, str]]:
    """Each file's name and content."""
    for dashboard in DASHBOARDS:
        yield f"{dashboard.uid.removeprefix('otel-mlops-')}.json", document(dashboard, VARIABLES, ANNOTATIONS)
