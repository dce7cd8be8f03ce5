"""The dashboard of the business: how much is predicted by which model, whether it was there, and what it costs."""

from __future__ import annotations

from otel_mlops.dashboards.api import SERVER_ERROR
from otel_mlops.dashboards.panels import NO_TRAFFIC, Dashboard, Panel, Query, Row, Steps
from otel_mlops.dashboards.promql import (
    MODEL,
    by_model,
    increase,
    least,
    rate,
    series,
    share,
    total,
)
from otel_mlops.metrics import (
    API_HEALTH_STATUS,
    API_REQUESTS,
    DAILY_PREDICTIONS,
    GEN_AI_CLIENT_TOKEN_USAGE,
    GPU_ENERGY,
    GPU_IDLE_ENERGY,
    MODEL_INFO,
    PREDICTION_CLASS,
    PREDICTION_ENERGY,
    PREDICTIONS,
    WORKERS,
    Metric,
)

# fmt: off

_AVAILABLE: Steps = ((None, "red"), (0.99, "yellow"), (0.999, "green"))
_RANGE = "$__range"
_JOULES_A_KWH = "3.6e6"
_NO_GPU, _NOT_TOLD = "No GPU", "No GPU, or not shared out"


def _in_day(metric: Metric, *matchers: str) -> str:
    """The growth of a counter in the day, of UTC, that begins at a point of the graph; of today as far as it is."""
    return increase(metric, *matchers, window="1d", offset="-1d")


def _shown(metric: Metric, *matchers: str, part: str = "") -> str:
    """The growth of a counter over the time that is shown."""
    return increase(metric, *matchers, part=part, window=_RANGE)


def _reporting(*by: str) -> str:
    """The share of the minutes shown in which an instance told its numbers, by the page or over OTLP."""
    seen = f"count_over_time({total(series(WORKERS), *by)}[{_RANGE}:1m])"
    return f"{seen} / scalar(count_over_time(vector(1)[{_RANGE}:1m]))"


def _per_thousand(*by: str) -> str:
    energy, rows = _shown(PREDICTION_ENERGY, part="_sum"), _shown(PREDICTIONS)
    return f"1000 * {total(energy, *by)} / {total(rows, *by)}"


_AT_A_GLANCE = Row(title="", panels=(
    Panel(
        title="Predictions today", kind="stat", width=4, height=4, unit="short", no_value="None yet",
        description="Rows predicted since midnight UTC. Far below yesterday's at this time: see below whether clients "
        "or a model are missing.",
        queries=(Query(expression=total(series(DAILY_PREDICTIONS))),),
    ),
    Panel(
        title="Predictions in range", kind="stat", width=4, height=4, unit="short", no_value="None yet",
        description="Rows predicted in the chosen time, restarts allowed for. Choose a month for what is billed by it.",
        queries=(Query(expression=total(_shown(PREDICTIONS))),),
    ),
    Panel(
        title="Requests answered well", kind="stat", width=4, height=4, unit="percentunit", thresholds=_AVAILABLE,
        decimals=3, no_value=NO_TRAFFIC,
        description="Availability as clients see it: the share of the requests in the chosen time that were not "
        "answered with 500 and above. Set the colours, at 99 % and 99.9 %, to what you have promised.",
        queries=(Query(expression=f"1 - {share(_shown(API_REQUESTS, SERVER_ERROR), _shown(API_REQUESTS))}"),),
    ),
    Panel(
        title="Time reporting", kind="stat", width=4, height=4, unit="percentunit", thresholds=_AVAILABLE, decimals=2,
        no_value="No service reports",
        description="Share of the chosen time in which any of the services told its numbers. Where it was installed "
        "later than the time begins, choose a shorter time.",
        queries=(Query(expression=_reporting()),),
    ),
    Panel(
        title="Models in use", kind="stat", width=4, height=4, unit="none", no_value="None",
        description="Versions that predicted something in the chosen time; those that only generate are in the table "
        "alone. More than are meant to: an old one is still asked, and costs its memory.",
        queries=(Query(expression=f"count({total(_shown(PREDICTIONS), *MODEL)} > 0)"),),
    ),
    Panel(
        title="Energy of the GPUs", kind="stat", width=4, height=4, unit="kwatth", decimals=2, no_value=_NO_GPU,
        description="Kilowatt hours that the GPUs used in the chosen time; times your price it is the bill.",
        queries=(Query(expression=f"{total(_shown(GPU_ENERGY))} / {_JOULES_A_KWH}"),),
    ),
))

_VOLUME = Row(title="Daily volumes", panels=(
    Panel(
        title="Predictions by day", unit="short", width=12, height=9, stacked=True, bars=True, step="1d",
        minimum=0, no_value="None yet",
        description="Rows predicted on each day of UTC by version; the last bar is today so far. A day that is missing "
        "is a day without data: see the time reporting.",
        queries=(Query(expression=by_model(total(_in_day(PREDICTIONS), *MODEL)), legend="{{model}}"),),
    ),
    Panel(
        title="Today and the days before", unit="short", width=12, height=9, minimum=0,
        no_value="None yet",
        description="Rows since midnight UTC, beside yesterday and the same day last week. Where today stays below "
        "both, ask why before the day is over.",
        queries=(
            Query(expression=total(series(DAILY_PREDICTIONS)), legend="this day"),
            Query(expression=total(f"{series(DAILY_PREDICTIONS)} offset 1d"), legend="the day before", dashed=True),
            Query(expression=total(f"{series(DAILY_PREDICTIONS)} offset 1w"), legend="a week before", dashed=True),
        ),
    ),
    Panel(
        title="Requests by day", unit="short", width=12, stacked=True, bars=True, step="1d", minimum=0,
        no_value=NO_TRAFFIC,
        description="Requests answered on each day of UTC by service. Requests without predictions are other uses, or "
        "failures.",
        queries=(Query(expression=total(_in_day(API_REQUESTS), "job"), legend="{{job}}"),),
    ),
    Panel(
        title="Predictions a second", unit="suffix:rows/s", width=12, minimum=0, no_value=NO_TRAFFIC,
        description="When in the day the load comes: plan capacity by the peak, and jobs and releases for the valley.",
        queries=(Query(expression=total(rate(PREDICTIONS), "job"), legend="{{job}}"),),
    ),
))

_USAGE = Row(title="Use of the models", panels=(
    Panel(
        title="Share of each model", kind="bargauge", unit="percentunit", width=8, minimum=0, maximum=1,
        no_value=NO_TRAFFIC,
        description="Share of each version in the predictions of the chosen time. A canary with more than it was meant "
        "to have: see the routing.",
        queries=(Query(
            expression=by_model(f"{total(_shown(PREDICTIONS), *MODEL)} / scalar({total(_shown(PREDICTIONS))})"),
            legend="{{model}}",
        ),),
    ),
    Panel(
        title="Single and batch", kind="bargauge", unit="short", width=8, minimum=0, no_value=NO_TRAFFIC,
        description="Rows that came one by one and in batches in the chosen time. Many single rows from one client: "
        "offer it batches.",
        queries=(Query(
            expression=by_model(total(_shown(PREDICTIONS), *MODEL, "prediction_type")),
            legend="{{model}} {{prediction_type}}",
        ),),
    ),
    Panel(
        title="Answers by class", kind="bargauge", unit="short", width=8, minimum=0,
        no_value="No classifier",
        description="How often each class was the answer in the chosen time: how many were flagged, approved, found. A "
        "share that moves moves the work of whoever handles them.",
        queries=(Query(
            expression=by_model(total(_shown(PREDICTION_CLASS), *MODEL, "predicted_class")),
            legend="{{model}} class {{predicted_class}}",
        ),),
    ),
    Panel(
        title="Models", kind="table", unit="none", width=24, height=7, no_value="No model is told of",
        description="What is deployed and where. A stage that is not what was decided: tell whoever releases.",
        columns=(
            ("model_name", "Model"), ("model_version", "Version"), ("stage", "Stage"), ("type", "Type"),
            ("features", "Features"), ("job", "Service"),
        ),
        queries=(Query(
            expression=f"count by ({', '.join(MODEL)}, stage, type, features, job) ({series(MODEL_INFO)})",
            legend="Instances",
        ),),
    ),
))

_AVAILABILITY = Row(title="Availability", panels=(
    Panel(
        title="Requests answered well, by day", unit="percentunit", width=12, decimals=2, maximum=1, step="1d",
        bars=True, thresholds=_AVAILABLE, no_value=NO_TRAFFIC,
        description="Share of the requests of each day of UTC that were not answered with 500 and above. For a bad day "
        "see the errors of that day on the dashboard of the API.",
        queries=(Query(
            expression=f"1 - {share(_in_day(API_REQUESTS, SERVER_ERROR), _in_day(API_REQUESTS), 'job')}",
            legend="{{job}}",
        ),),
    ),
    Panel(
        title="Time reporting, by service", kind="bargauge", unit="percentunit", width=6, minimum=0, maximum=1,
        decimals=2, thresholds=_AVAILABLE, no_value="No service reports",
        description="Share of the chosen time in which each service told its numbers: the time in which we know "
        "anything of it.",
        queries=(Query(expression=_reporting("job"), legend="{{job}}"),),
    ),
    Panel(
        title="Time healthy, by component", kind="bargauge", unit="percentunit", width=6, minimum=0, maximum=1,
        decimals=2, thresholds=_AVAILABLE, no_value="None is told",
        description="Share of the chosen time in which each component was healthy on all instances, of the time in "
        "which the service told it.",
        queries=(Query(
            expression=f"avg_over_time({least(series(API_HEALTH_STATUS), 'job', 'component')}[{_RANGE}:1m])",
            legend="{{job}} {{component}}",
        ),),
    ),
))

_COST = Row(title="What it costs", collapsed=True, panels=(
    Panel(
        title="Energy of a thousand predictions", kind="bargauge", unit="joule", width=8, minimum=0, no_value=_NOT_TOLD,
        description="Joules that the GPUs used for a thousand rows of each version in the chosen time. Larger batches "
        "lower it.",
        queries=(Query(expression=by_model(_per_thousand(*MODEL)), legend="{{model}}"),),
    ),
    Panel(
        title="Power by model, and idle", unit="watt", width=8, stacked=True, minimum=0, step="30s", no_value=_NOT_TOLD,
        description="Watts that predictions of each version take, and those of GPUs that wait. Much idle: share the "
        "GPUs, or switch some off.",
        queries=(
            Query(expression=by_model(total(rate(PREDICTION_ENERGY, part="_sum"), *MODEL)), legend="{{model}}"),
            Query(expression=total(rate(GPU_IDLE_ENERGY)), legend="idle"),
        ),
    ),
    Panel(
        title="Tokens", kind="bargauge", unit="short", width=8, minimum=0, no_value="No generation",
        description="Tokens read and made in the chosen time by model: what a provider bills.",
        queries=(Query(
            expression=total(
                _shown(GEN_AI_CLIENT_TOKEN_USAGE, part="_sum"), "gen_ai_response_model", "gen_ai_token_type",
            ),
            legend="{{gen_ai_response_model}} {{gen_ai_token_type}}",
        ),),
    ),
))

# fmt: on

BUSINESS = Dashboard(
    uid="otel-mlops-business",
    title="Business",
    description="Daily volumes of predictions, use of the models, availability and energy. Days are those of UTC.",
    rows=(_AT_A_GLANCE, _VOLUME, _USAGE, _AVAILABILITY, _COST),
    since="now-7d",
    refresh="5m",
    timezone="utc",
)
