"""The dashboard of the models: their state, latency, calls, quality and drift."""

from __future__ import annotations

from otel_mlops.dashboards import drift, quality
from otel_mlops.dashboards.panels import (
    NO_TRAFFIC,
    NONE,
    RISING_SHARE,
    Colour,
    Dashboard,
    Panel,
    Query,
    Row,
    Steps,
)
from otel_mlops.dashboards.promql import (
    MODEL,
    WHERE,
    by_model,
    largest,
    least,
    mean,
    quantile,
    quantiles,
    rate,
    series,
    share,
    total,
)
from otel_mlops.metrics import (
    GEN_AI_CLIENT_TOKEN_USAGE,
    GEN_AI_SERVER_REQUEST_DURATION,
    GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
    GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
    GROUND_TRUTH_COVERAGE,
    MODEL_ACCURACY,
    MODEL_DRIFT_FEATURES,
    MODEL_INFO,
    MODEL_LOAD_DURATION,
    MODEL_R2,
    MODEL_STATUS,
    PREDICTION_BATCH_SIZE,
    PREDICTION_CACHE,
    PREDICTION_DURATION,
    PREDICTION_ERRORS,
    PREDICTION_LATENCY_P50,
    PREDICTION_LATENCY_P95,
    PREDICTION_LATENCY_P99,
    PREDICTION_LATENCY_P999,
    PREDICTION_LATENCY_SAMPLES,
    PREDICTION_PHASE_DURATION,
    PREDICTIONS,
    PREDICTIONS_IN_PROGRESS,
)

# fmt: off

_STATES: dict[float, tuple[str, Colour]] = {
    0: ("Ready", "green"), 1: ("Loading", "blue"), 2: ("Unavailable", "orange"), 3: ("Error", "red"),
}
_SLOW: Steps = ((None, "green"), (0.25, "yellow"), (0.5, "red"))
_SCORE: Steps = ((None, "red"), (0.7, "yellow"), (0.85, "green"))
_COVERED: Steps = ((None, "red"), (0.5, "yellow"), (0.8, "green"))
_ANSWERS = "gen_ai_response_model"
_OF_ANSWERS = f"{{{{{_ANSWERS}}}}}"


def _state(*by: str) -> str:
    """The worst state as a number: 0 is ready."""
    states = ((MODEL_STATUS, 'model_status="error"', 3), (MODEL_STATUS, 'model_status="unavailable"', 2),
              (MODEL_STATUS, 'model_status="loading"', 1))
    return largest(" or ".join(f"{series(row, state)} * {number}" for row, state, number in states), *by)


def _failing(*by: str) -> str:
    """The share of the calls that raised, of all."""
    failed, answered = rate(PREDICTION_ERRORS), rate(PREDICTION_DURATION, part="_count")
    every = f"({total(answered, *by)} + ({total(failed, *by)} or 0 * {total(answered, *by)}))"
    return f"({total(failed, *by)} or 0 * {total(answered, *by)}) / {every}"


_AT_A_GLANCE = Row(title="", panels=(
    Panel(
        title="State", kind="stat", width=3, height=4, unit="none", mapping=_STATES, no_value="Not told",
        description="The worst state of the chosen models over all workers. Error or unavailable: the log says why "
        "the model could not be loaded; which one it is stands in the table of models.",
        queries=(Query(expression=_state()),),
    ),
    Panel(
        title="Predictions", kind="stat", width=4, height=4, unit="suffix:rows/s", no_value=NO_TRAFFIC,
        description="Rows predicted in a second: a batch of 32 is 32. None while the API is asked: the calls fail, "
        "or do not go through the model.",
        queries=(Query(expression=total(rate(PREDICTIONS))),),
    ),
    Panel(
        title="Calls that fail", kind="stat", width=3, height=4, unit="percentunit", thresholds=RISING_SHARE,
        decimals=2, no_value=NO_TRAFFIC,
        description="Share of the prediction calls that raised. Red from 5 %: see the exceptions below; a version "
        "that fails alone is to be rolled back.",
        queries=(Query(expression=_failing()),),
    ),
    Panel(
        title="Latency p95", kind="stat", width=3, height=4, unit="s", thresholds=_SLOW, no_value=NO_TRAFFIC,
        description="The slowest model's p95 over the last 5 minutes (`OTEL_MLOPS_LATENCY_WINDOW`). The colours are "
        "at 0.25 s and 0.5 s: set what you have promised.",
        queries=(Query(expression=largest(series(PREDICTION_LATENCY_P95))),),
    ),
    Panel(
        title="Features that drifted", kind="stat", width=4, height=4, unit="none", thresholds=NONE,
        no_value="No profile",
        description="The most features of a model that have drifted from training, chance allowed for. Any: see which "
        "below, and whether the source of the data changed or the world did.",
        queries=(Query(expression=largest(series(MODEL_DRIFT_FEATURES))),),
    ),
    Panel(
        title="Lowest score", kind="stat", width=4, height=4, unit="percentunit", thresholds=_SCORE, decimals=1,
        no_value="No truth",
        description="The lowest accuracy of a classifier and the lowest R² of a regression, of the datasets shown. "
        "Before you act, look at the number of truths and at the interval below.",
        queries=(
            Query(expression=least(series(MODEL_ACCURACY)), legend="accuracy"),
            Query(expression=least(series(MODEL_R2)), legend="R²"),
        ),
    ),
    Panel(
        title="Truth known", kind="stat", width=3, height=4, unit="percentunit", thresholds=_COVERED, decimals=0,
        no_value="Not known",
        description="Share of the predictions that wait for a truth and got one, where it is least. Low: whoever sends "
        "the truth has stopped, and the scores are of fewer and fewer cases.",
        queries=(Query(expression=least(series(GROUND_TRUTH_COVERAGE))),),
    ),
))

_LATENCY = Row(title="Predictions and latency", panels=(
    Panel(
        title="Predictions by model", unit="suffix:rows/s", width=12, stacked=True, minimum=0, no_value=NO_TRAFFIC,
        description="Rows predicted in a second by each version. While a version is replaced the two must add up to "
        "what one did.",
        queries=(Query(expression=by_model(total(rate(PREDICTIONS), *MODEL)), legend="{{model}}"),),
    ),
    Panel(
        title="Calls that fail, by model", unit="percentunit", width=12, minimum=0, thresholds=RISING_SHARE,
        no_value=NO_TRAFFIC,
        description="Share of each version's calls that raised. A failure is not in the latency: it must not make a "
        "model look fast.",
        queries=(Query(expression=by_model(_failing(*MODEL)), legend="{{model}}"),),
    ),
    Panel(
        title="Latency of the last 5 minutes", unit="s", width=12, minimum=0, no_value=NO_TRAFFIC,
        description="Percentiles of a call over all workers, right within 1.1 % (`OTEL_MLOPS_LATENCY_WINDOW` is the "
        "window). Compare versions: a new one that is slower is seen here before clients tell.",
        queries=tuple(
            Query(expression=by_model(largest(series(row), *WHERE, *MODEL)), legend=f"{{{{model}}}} {name}")
            for row, name in (
                (PREDICTION_LATENCY_P50, "p50"), (PREDICTION_LATENCY_P95, "p95"), (PREDICTION_LATENCY_P99, "p99"),
            )
        ),
    ),
    Panel(
        title="Latency with traces", unit="s", width=12, minimum=0, no_value=NO_TRAFFIC,
        description="The same from the histogram of all instances, for any time. A dot is a call with a trace: open a "
        "slow one to see what it did.",
        queries=quantiles(PREDICTION_DURATION, 0.5, 0.95, 0.99),
    ),
))

_CALLS = Row(title="Inside a call: phases, batches, cache, errors", collapsed=True, panels=(
    Panel(
        title="Phases, p95", unit="s", minimum=0, no_value="No phase is told",
        description="The time that one call in twenty exceeds in each phase. The phase that grew is where to look: "
        "`queue` is load, `preprocess` the data, `inference` the model or its GPU.",
        queries=(Query(
            expression=by_model(quantile(0.95, PREDICTION_PHASE_DURATION, *MODEL, "phase")),
            legend="{{model}} {{phase}}",
        ),),
    ),
    Panel(
        title="Latency by kind of call, p95", unit="s", minimum=0, no_value=NO_TRAFFIC,
        description="Single rows and batches apart. A batch that takes as long as its rows one by one gains nothing.",
        queries=(Query(
            expression=by_model(quantile(0.95, PREDICTION_DURATION, *MODEL, "prediction_type")),
            legend="{{model}} {{prediction_type}}",
        ),),
    ),
    Panel(
        title="Rows in a batch", unit="none", minimum=0, decimals=0, no_value="No batch",
        description="Median and p95 of the rows in one call. Small batches on a GPU waste it; large ones let others "
        "wait.",
        queries=quantiles(PREDICTION_BATCH_SIZE, 0.5, 0.95),
    ),
    Panel(
        title="Calls in progress", unit="none", minimum=0, decimals=0,
        description="Calls that run now. More than there are workers or threads: the model is the queue.",
        queries=(Query(
            expression=by_model(total(series(PREDICTIONS_IN_PROGRESS), *MODEL)), legend="{{model}}",
        ),),
    ),
    Panel(
        title="Answers from the cache", unit="percentunit", minimum=0, maximum=1, no_value="No cache is told",
        description="Share of the calls that asked a cache and were answered from it. A fall after a deployment is an "
        "empty cache, or a key that changed.",
        queries=(Query(
            expression=by_model(share(rate(PREDICTION_CACHE, 'result="hit"'), rate(PREDICTION_CACHE), *MODEL)),
            legend="{{model}}",
        ),),
    ),
    Panel(
        title="Calls that raised, by exception", unit="suffix:/s", minimum=0, stacked=True, no_value="No errors",
        description="Failed calls in a second by the exception's class. Look for it in the log; ValueError is mostly "
        "an input that the model cannot take.",
        queries=(Query(
            expression=by_model(total(rate(PREDICTION_ERRORS), *MODEL, "error_type")),
            legend="{{model}} {{error_type}}",
        ),),
    ),
    Panel(
        title="Latency p99.9 of the last 5 minutes", unit="s", minimum=0, no_value=NO_TRAFFIC,
        description="What one call in a thousand exceeds: of fewer than some thousand calls it is the slowest of them. "
        "Single ones that are far slower wait for something: a cold cache, a pause, a lock.",
        queries=(Query(
            expression=by_model(largest(series(PREDICTION_LATENCY_P999), *WHERE, *MODEL)),
            legend="{{instance}} {{model}}",
        ),),
    ),
    Panel(
        title="Calls in the latency window", unit="none", minimum=0, decimals=0, no_value=NO_TRAFFIC,
        description="How many calls the percentiles are of. A p99 of fewer than some hundred says little.",
        queries=(Query(
            expression=by_model(largest(series(PREDICTION_LATENCY_SAMPLES), *WHERE, *MODEL)),
            legend="{{instance}} {{model}}",
        ),),
    ),
    Panel(
        title="Time to load", kind="bargauge", unit="s", minimum=0, no_value="None was loaded",
        description="Mean time of all loads since the workers started. It is what a restart or a new instance waits "
        "for: if it grows, start earlier or ship a smaller model.",
        # Not its growth: a model is mostly loaded before the first scrape, with which its series begins.
        queries=(Query(
            expression=by_model(" / ".join(
                total(series(MODEL_LOAD_DURATION, part=part), *MODEL) for part in ("_sum", "_count")
            )),
            legend="{{model}}",
        ),),
    ),
))

_GENERATION = Row(title="Generating models", collapsed=True, panels=(
    Panel(
        title="Time to the first token", unit="s", minimum=0, no_value="No generation",
        description="Median and p95 until an answer begins. It grows with the queue and with long prompts: compare "
        "with the tokens read.",
        queries=tuple(
            Query(
                expression=quantile(each, GEN_AI_SERVER_TIME_TO_FIRST_TOKEN, _ANSWERS), legend=f"{_OF_ANSWERS} {name}",
            )
            for each, name in ((0.5, "p50"), (0.95, "p95"))
        ),
    ),
    Panel(
        title="Time of each further token, p95", unit="s", minimum=0, no_value="No generation",
        description="How fast an answer goes on. It grows with the number of answers that are made at a time.",
        queries=(Query(
            expression=quantile(0.95, GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN, _ANSWERS), legend=_OF_ANSWERS,
        ),),
    ),
    Panel(
        title="Tokens", unit="suffix:tokens/s", minimum=0, no_value="No generation",
        description="Tokens read and made in a second: what a provider bills, and what a GPU can do.",
        queries=(Query(
            expression=total(rate(GEN_AI_CLIENT_TOKEN_USAGE, part="_sum"), _ANSWERS, "gen_ai_token_type"),
            legend=f"{_OF_ANSWERS} {{{{gen_ai_token_type}}}}",
        ),),
    ),
    Panel(
        title="Time of an answer, p95", unit="s", width=12, minimum=0, no_value="No generation",
        description="From the request to the last token. Longer answers take longer: compare with the tokens made.",
        queries=(Query(
            expression=quantile(0.95, GEN_AI_SERVER_REQUEST_DURATION, _ANSWERS), legend=_OF_ANSWERS,
        ),),
    ),
    Panel(
        title="Answers that fail", unit="percentunit", width=12, minimum=0, thresholds=RISING_SHARE,
        no_value="No generation",
        description="Share of the requests in which the engine raised. See its log, and its limits of length and rate.",
        queries=(Query(
            expression=share(
                rate(GEN_AI_SERVER_REQUEST_DURATION, 'error_type!=""', part="_count"),
                rate(GEN_AI_SERVER_REQUEST_DURATION, part="_count"), _ANSWERS,
            ),
            legend=_OF_ANSWERS,
        ),),
    ),
))

_MODELS = Row(title="Which models these are", collapsed=True, panels=(
    Panel(
        title="Models", kind="table", unit="none", width=14, no_value="No model is told of",
        description="What each service says of its models. Two versions of one model in production: a deployment has "
        "stopped half-way.",
        columns=(
            ("model_name", "Model"), ("model_version", "Version"), ("stage", "Stage"), ("type", "Type"),
            ("features", "Features"), ("job", "Job"), ("instance", "Instance"),
        ),
        queries=(Query(
            expression=largest(series(MODEL_INFO), *WHERE, *MODEL, "stage", "type", "features"),
        ),),
    ),
    Panel(
        title="States", unit="none", width=10, mapping=_STATES, minimum=0, maximum=3, decimals=0, no_value="Not told",
        description="The state of each model over time, the worst of its workers'. One that stays at loading does not "
        "get ready: see its log.",
        queries=(Query(expression=by_model(_state(*MODEL)), legend="{{model}}"),),
    ),
    Panel(
        title="Mean latency by model", kind="bargauge", unit="s", width=24, height=6, minimum=0, no_value=NO_TRAFFIC,
        description="Mean time of a call now: what a call costs in time, to plan workers by.",
        queries=(Query(expression=by_model(mean(PREDICTION_DURATION, *MODEL)), legend="{{model}}"),),
    ),
))

# fmt: on

MODELS = Dashboard(
    uid="otel-mlops-models",
    title="Model performance",
    description="State, latency, drift and quality of the models, by version.",
    rows=(
        _AT_A_GLANCE,
        _LATENCY,
        quality.ACCURACY,
        drift.DRIFT,
        _CALLS,
        *quality.DETAILS,
        *drift.DETAILS,
        _GENERATION,
        _MODELS,
    ),
    since="now-24h",
)
