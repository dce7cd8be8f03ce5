"""What a service promises: the numbers of the rules that somebody who takes them over is to set."""

from __future__ import annotations

from otel_mlops.metrics import (
    API_REQUEST_DURATION,
    API_REQUESTS,
    MODEL_ACCURACY,
    MODEL_ESTIMATED_ACCURACY,
    MODEL_SCORE_BOUND,
)
from otel_mlops.rules.row import Group, Recording

AVAILABILITY = 0.999
"""The share of requests that are to be answered without a fault of the server, over 30 days."""
LATENCY = 0.99
"""The share of requests that are to be answered within LATENCY_S."""
LATENCY_S = 0.5
"""A bound of the buckets, and no whole number: `1` is `1.0` on some of the ways into Prometheus."""
ACCURACY = 0.85
"""The share of answers that are to be right."""

_MODELS = " or ".join(row.page_name for row in (MODEL_ACCURACY, MODEL_ESTIMATED_ACCURACY, MODEL_SCORE_BOUND))

GROUP = Group(
    name="otel_mlops_objectives",
    about="Objectives",
    rules=(
        Recording(
            name="job:slo_availability:objective",
            expression=f"group by (job) ({API_REQUESTS.page_name}) * {AVAILABILITY}",
            meaning="The share of requests to be answered without a fault of the server, in 30 days. Set it here.",
            shown=True,
        ),
        Recording(
            name="job:slo_latency:objective",
            expression=f"group by (job) ({API_REQUEST_DURATION.page_name}_count) * {LATENCY}",
            meaning=f"The share of requests to be answered within {LATENCY_S} s, in 30 days. 0 promises nothing.",
            shown=True,
        ),
        Recording(
            name="job_model:slo_accuracy:objective",
            expression=f"group by (job, model_name, model_version) ({_MODELS}) * {ACCURACY}",
            meaning="The share of a model's answers that are to be right. Set it here.",
            shown=True,
        ),
    ),
)
"""The objectives, as series by job or model: what a rule compares with, and what somebody changes."""
