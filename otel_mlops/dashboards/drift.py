"""The rows of drift: whether the models are asked what they were trained for, and answer as they did."""

from __future__ import annotations

from otel_mlops.dashboards.panels import NO_TRAFFIC, Panel, Query, Row, Steps
from otel_mlops.dashboards.promql import (
    MODEL,
    WHERE,
    by_model,
    increase,
    largest,
    quantile,
    quantiles,
    rate,
    series,
    total,
)
from otel_mlops.metrics import (
    MODEL_DRIFT_DETECTED,
    MODEL_DRIFT_DISTANCE,
    MODEL_DRIFT_FEATURES,
    MODEL_DRIFT_SCORE,
    MODEL_DRIFT_THRESHOLD,
    MODEL_DRIFT_WINDOW_SAMPLES,
    MODEL_FEATURE_BIN,
    MODEL_FEATURE_INVALID,
    MODEL_FEATURE_MISSING,
    MODEL_REFERENCE_BIN_RATIO,
    MODEL_REFERENCE_SAMPLES,
    PREDICTION_CLASS,
    PREDICTION_CONFIDENCE,
    PREDICTION_VALUES,
)

# fmt: off

_FEATURE = (*WHERE, *MODEL, "feature")
_ANSWERS_ARE = "its answers"
_NO_PROFILE = "No profile"
_COUNTS = "Set OTEL_MLOPS_MODEL_COUNTS"
_PAST: Steps = ((None, "green"), (0.8, "yellow"), (1.0, "red"))

def _by_feature(expression: str) -> str:
    """Call a model's answers so, which are a feature too."""
    return f'label_replace({expression}, "feature", "{_ANSWERS_ARE}", "feature", "__prediction__")'


DRIFT = Row(title="Drift", panels=(
    Panel(
        title="Drift by feature, 1 is the threshold", unit="none", width=12, minimum=0, thresholds=_PAST,
        no_value=_NO_PROFILE,
        description="The drift score of each feature as a multiple of the threshold above which it has drifted; "
        "the answers are one too. Above 1: ask whoever feeds this feature what changed; if nothing did, the world has, "
        "and the model is to be trained anew. Of few rows it moves by chance: the table says whether it counts.",
        queries=(Query(
            expression=by_model(_by_feature(
                f"{largest(series(MODEL_DRIFT_SCORE), *_FEATURE)} / {largest(series(MODEL_DRIFT_THRESHOLD), *_FEATURE)}"
            )),
            legend="{{model}} {{feature}}",
        ),),
    ),
    Panel(
        title="Features that drifted", unit="none", width=12, minimum=0, decimals=0, no_value=_NO_PROFILE,
        description="How many features of a model have drifted, chance allowed for. One: its source. Many at once: "
        "another kind of traffic, or a fault upstream of all.",
        queries=(Query(
            expression=by_model(largest(series(MODEL_DRIFT_FEATURES), *WHERE, *MODEL)), legend="{{instance}} {{model}}",
        ),),
    ),
    Panel(
        title="Features now", kind="table", unit="short", width=24, height=9, no_value=_NO_PROFILE, sort="Score",
        description="Score, threshold and rows of each feature's window. A score counts only with enough rows; which "
        "values went missing or out of range stands in the row of features.",
        columns=(
            ("model_name", "Model"), ("model_version", "Version"), ("feature", "Feature"), ("instance", "Instance"),
            ("job", "Job"),
        ),
        queries=(
            Query(expression=_by_feature(largest(series(MODEL_DRIFT_SCORE), *_FEATURE)), legend="Score"),
            Query(expression=_by_feature(largest(series(MODEL_DRIFT_THRESHOLD), *_FEATURE)), legend="Threshold"),
            Query(
                expression=_by_feature(largest(series(MODEL_DRIFT_DETECTED), *_FEATURE)), legend="Drifted",
                thresholds=((None, "green"), (1.0, "red")), mapping={0: ("no", "green"), 1: ("yes", "red")},
                no_value="too few rows",
            ),
            Query(
                expression=_by_feature(largest(series(MODEL_DRIFT_WINDOW_SAMPLES), *_FEATURE)), legend="Rows",
                unit="none",
            ),
        ),
    ),
))

_FEATURES = Row(title="Features: missing and invalid values, other distances", collapsed=True, panels=(
    Panel(
        title="Missing values", unit="suffix:/s", width=12, minimum=0, no_value=_NO_PROFILE,
        description="Values in a second that are None, NaN or no number, by feature. A jump is a field that was "
        "renamed or a join that failed.",
        queries=(Query(
            expression=by_model(total(rate(MODEL_FEATURE_MISSING), *MODEL, "feature")), legend="{{model}} {{feature}}",
        ),),
    ),
    Panel(
        title="Values unlike training's", unit="suffix:/s", width=12, minimum=0, sparse=True,
        no_value="None, or no profile",
        description="Values in a second that are out of training's range, infinite, of another type or a category "
        "that was never seen. Out of range all at once is a unit that changed.",
        queries=(Query(
            expression=by_model(f"{total(rate(MODEL_FEATURE_INVALID), *MODEL, 'feature', 'reason')} > 0"),
            legend="{{model}} {{feature}} {{reason}}",
        ),),
    ),
    Panel(
        title="Drift score", unit="none", width=12, minimum=0, no_value=_NO_PROFILE,
        description="The population stability index itself, or what the service has set: below 0.1 nobody acts, above "
        "0.25 is much.",
        queries=(Query(
            expression=by_model(_by_feature(largest(series(MODEL_DRIFT_SCORE), *_FEATURE))),
            legend="{{instance}} {{model}} {{feature}}",
        ),),
    ),
    Panel(
        title="Rows in the drift window", unit="none", width=12, minimum=0, decimals=0, no_value=_NO_PROFILE,
        description="How many rows a score is of. Where they are few the threshold is higher, and nothing is called.",
        queries=(Query(
            expression=by_model(_by_feature(largest(series(MODEL_DRIFT_WINDOW_SAMPLES), *_FEATURE))),
            legend="{{instance}} {{model}} {{feature}}",
        ),),
    ),
    Panel(
        title="Other distances", kind="table", unit="short", width=24, no_value=_NO_PROFILE, sort="Distance",
        description="Two more measures of drift, 0 to 1. Kolmogorov and Smirnov's sees a shift of the whole; it can be "
        "read as a share of rows.",
        columns=(
            ("model_name", "Model"), ("model_version", "Version"), ("feature", "Feature"), ("measure", "Measure"),
            ("instance", "Instance"), ("job", "Job"),
        ),
        queries=(Query(
            expression=_by_feature(largest(series(MODEL_DRIFT_DISTANCE), *_FEATURE, "measure")), legend="Distance",
        ),),
    ),
))

_ANSWERS = Row(title="What the models answer", collapsed=True, panels=(
    Panel(
        title="Predicted values", unit="none", no_value=NO_TRAFFIC,
        description="A tenth of the values lies below the lowest line, half below the middle one. Flat lines where "
        "there was movement: the inputs are constant. The buckets are coarse.",
        queries=quantiles(PREDICTION_VALUES, 0.1, 0.5, 0.9),
    ),
    Panel(
        title="Predicted classes", unit="percentunit", minimum=0, maximum=1, no_value="No classifier",
        description="The share of each class among a version's answers. One that takes over or vanishes is drift of "
        "the answers, with or without a change of the inputs.",
        queries=(Query(
            expression=by_model(
                f'{total(rate(PREDICTION_CLASS), *MODEL, "predicted_class")} / on (model_name, model_version) '
                f"group_left () {total(rate(PREDICTION_CLASS), *MODEL)}"
            ),
            legend="{{model}} class {{predicted_class}}",
        ),),
    ),
    Panel(
        title="Confidence", unit="percentunit", minimum=0, maximum=1, no_value="No probabilities",
        description="The probability that a model gave its own answer: its median, and what a tenth of the answers "
        "lies below. A fall is cases that are harder than those of the training.",
        queries=tuple(
            Query(expression=by_model(quantile(each, PREDICTION_CONFIDENCE, *MODEL)), legend=f"{{{{model}}}} {name}")
            for each, name in ((0.1, "p10"), (0.5, "p50"))
        ),
    ),
))

_BINS = Row(title="Counts behind the drift", collapsed=True, panels=(
    Panel(
        title="Shares by bin", kind="table", unit="percentunit", width=24, height=10, no_value=_COUNTS,
        description="The share of each feature's values in each bin over the chosen time, and in training: what a "
        "drift looks like. Only with OTEL_MLOPS_MODEL_COUNTS. Filter by the feature.",
        columns=(("model_name", "Model"), ("model_version", "Version"), ("feature", "Feature"), ("bin", "Bin")),
        queries=(
            Query(
                expression=_by_feature(
                    f'{total(increase(MODEL_FEATURE_BIN, window="$__range"), *MODEL, "feature", "bin")} '
                    "/ on (model_name, model_version, feature) group_left () "
                    f'{total(increase(MODEL_FEATURE_BIN, window="$__range"), *MODEL, "feature")}'
                ),
                legend="Seen",
            ),
            Query(
                expression=_by_feature(largest(series(MODEL_REFERENCE_BIN_RATIO), *MODEL, "feature", "bin")),
                legend="Training",
            ),
        ),
    ),
    Panel(
        title="Training's rows", kind="bargauge", unit="none", width=24, minimum=0, no_value=_COUNTS,
        description="How many rows of training each feature is compared with. Few of them raise the threshold.",
        queries=(Query(
            expression=by_model(_by_feature(largest(series(MODEL_REFERENCE_SAMPLES), *MODEL, "feature"))),
            legend="{{model}} {{feature}}",
        ),),
    ),
))

DETAILS = (_ANSWERS, _FEATURES, _BINS)

# fmt: on
