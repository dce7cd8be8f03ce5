"""The rows of quality: how good the answers were, by what turned out to be true."""

from __future__ import annotations

from otel_mlops.dashboards.panels import Panel, Query, Row
from otel_mlops.dashboards.promql import (
    MODEL,
    WHERE,
    by_model,
    increase,
    largest,
    quantile,
    rate,
    series,
    total,
)
from otel_mlops.metrics import (
    GROUND_TRUTH,
    GROUND_TRUTH_COVERAGE,
    GROUND_TRUTH_DELAY,
    MODEL_ACCURACY,
    MODEL_AGREEMENT,
    MODEL_AUC,
    MODEL_BIAS,
    MODEL_BRIER,
    MODEL_CALIBRATION_ERROR,
    MODEL_COMPARED,
    MODEL_CONFUSION,
    MODEL_ERROR_ABSOLUTE,
    MODEL_ERROR_SQUARED,
    MODEL_ESTIMATED_ACCURACY,
    MODEL_F1,
    MODEL_LOG_LOSS,
    MODEL_MAE,
    MODEL_MATTHEWS,
    MODEL_PAIRED_DIFFERENCE,
    MODEL_PERFORMANCE_SAMPLES,
    MODEL_PRECISION,
    MODEL_PREDICTION_DIFFERENCE,
    MODEL_R2,
    MODEL_RECALL,
    MODEL_RMSE,
    MODEL_SCORE_BOUND,
    MODEL_TRUTHS,
    Metric,
)

# fmt: off

_ON = (*WHERE, *MODEL, "dataset")
_PAIR = (*WHERE, "baseline", "candidate")
_NO_TRUTH = "No truth"
_NO_PAIR = "Nothing is compared"
_COUNTS = "Set OTEL_MLOPS_MODEL_COUNTS"
_OF_PAIR = "{{baseline}} and {{candidate}}"
_RANGE = "$__range"


def _scores(*rows: tuple[Metric, str]) -> tuple[Query, ...]:
    """Each score of each model and dataset, by instance: a mean of instances would be no score of anything."""
    return tuple(
        Query(
            expression=by_model(largest(series(row), *_ON)), legend=f"{{{{model}}}} {{{{dataset}}}} {name}".strip(),
        )
        for row, name in rows
    )


ACCURACY = Row(title="Quality", panels=(
    Panel(
        title="Accuracy and its interval", unit="percentunit", width=12, maximum=1, no_value=_NO_TRUTH,
        description="Share of right answers by dataset; `live` is from late truth, with the 95 % interval around it. "
        "Act when the upper bound is below what you need: a point below it may be chance.",
        queries=(
            *_scores((MODEL_ACCURACY, "")),
            Query(
                expression=by_model(largest(series(MODEL_SCORE_BOUND, 'score="accuracy"'), *_ON, "bound")),
                legend="{{model}} {{dataset}} {{bound}}", dashed=True,
            ),
        ),
    ),
    Panel(
        title="Errors of regressions", unit="none", width=12, minimum=0, no_value=_NO_TRUTH,
        description="Mean absolute error and root mean squared error, in the target's unit. RMSE that rises alone is a "
        "few large errors; both, the model as a whole.",
        queries=_scores((MODEL_MAE, "MAE"), (MODEL_RMSE, "RMSE")),
    ),
    Panel(
        title="R² of regressions", unit="none", maximum=1, no_value=_NO_TRUTH,
        description="1 is perfect, 0 no better than the mean of the targets. It falls too where the targets vary less: "
        "compare with the errors.",
        queries=_scores((MODEL_R2, "")),
    ),
    Panel(
        title="Estimated accuracy", unit="percentunit", maximum=1, no_value="No probabilities",
        description="The accuracy that the probabilities let expect, without any truth: a warning days before the "
        "truth comes. It is blind to a change of what the inputs mean.",
        queries=(Query(
            expression=by_model(largest(series(MODEL_ESTIMATED_ACCURACY), *WHERE, *MODEL)),
            legend="{{instance}} {{model}}",
        ),),
    ),
    Panel(
        title="Truths in the window", unit="none", minimum=0, decimals=0, no_value=_NO_TRUTH,
        description="How many truths the scores are of (`OTEL_MLOPS_QUALITY_WINDOW`). Below some hundred a score "
        "moves by chance; a fall is truth that no longer comes.",
        queries=_scores((MODEL_PERFORMANCE_SAMPLES, "")),
    ),
))

_MORE = Row(title="Quality: more scores", collapsed=True, panels=(
    Panel(
        title="Precision, recall, F1", unit="percentunit", minimum=0, maximum=1, no_value=_NO_TRUTH,
        description="Precision falls: more false alarms. Recall falls: more that is missed. Which of them costs more "
        "says whether to move the decision's threshold.",
        queries=_scores((MODEL_PRECISION, "precision"), (MODEL_RECALL, "recall"), (MODEL_F1, "F1")),
    ),
    Panel(
        title="AUC and Matthews' correlation", unit="none", maximum=1, no_value=_NO_TRUTH,
        description="AUC does not depend on the threshold of the decision: if it holds while accuracy falls, move the "
        "threshold; if it falls, train anew. Matthews' correlation is fair where one class is rare.",
        queries=_scores((MODEL_AUC, "AUC"), (MODEL_MATTHEWS, "Matthews")),
    ),
    Panel(
        title="Probabilities: calibration, Brier, log loss", unit="none", minimum=0, no_value=_NO_TRUTH,
        description="How far the probabilities are from what comes true, 0 is perfect. The calibration error alone "
        "rises: calibrate anew, the ranking is still good.",
        queries=_scores(
            (MODEL_CALIBRATION_ERROR, "calibration error"), (MODEL_BRIER, "Brier"), (MODEL_LOG_LOSS, "log loss"),
        ),
    ),
    Panel(
        title="Bias of regressions", unit="none", width=12, no_value=_NO_TRUTH,
        description="Mean error in the target's unit: above 0 the model says too much. With the bounds on one side of "
        "0 it is no chance.",
        queries=(
            *_scores((MODEL_BIAS, "bias")),
            Query(
                expression=by_model(largest(series(MODEL_SCORE_BOUND, 'score="bias"'), *_ON, "bound")),
                legend="{{model}} {{dataset}} {{bound}}", dashed=True,
            ),
        ),
    ),
    Panel(
        title="Interval of the mean absolute error", unit="none", width=12, minimum=0, no_value=_NO_TRUTH,
        description="The bounds between which the error lies with 95 %. Two versions whose intervals do not meet "
        "differ.",
        queries=(Query(
            expression=by_model(largest(series(MODEL_SCORE_BOUND, 'score="mae"'), *_ON, "bound")),
            legend="{{model}} {{dataset}} {{bound}}",
        ),),
    ),
))

_TRUTH = Row(title="Truth: what came, how late, of how many", collapsed=True, panels=(
    Panel(
        title="Truths by result", unit="suffix:truths/s", minimum=0, stacked=True, no_value=_NO_TRUTH,
        description="Truths in a second by what became of them. `unmatched` or `expired`: they come too late or with "
        "other ids; `forged`: the key of the receipts differs; `busy`: to be told again.",
        queries=(Query(
            expression=by_model(total(rate(GROUND_TRUTH), *MODEL, "result")), legend="{{model}} {{result}}",
        ),),
    ),
    Panel(
        title="Delay of the truth", unit="s", minimum=0, no_value=_NO_TRUTH,
        description="Median and p95 of the time from a prediction to its truth. What the scores say is as old as this.",
        queries=tuple(
            Query(expression=by_model(quantile(each, GROUND_TRUTH_DELAY, *MODEL)), legend=f"{{{{model}}}} {name}")
            for each, name in ((0.5, "p50"), (0.95, "p95"))
        ),
    ),
    Panel(
        title="Predictions whose truth is known", unit="percentunit", minimum=0, maximum=1, no_value="Not known",
        description="The share of those that wait for a truth. If it falls while predictions go on, the sender of the "
        "truth has stopped. It is not known until a whole window has passed.",
        queries=(Query(
            expression=by_model(largest(series(GROUND_TRUTH_COVERAGE), *WHERE, *MODEL)),
            legend="{{instance}} {{model}}",
        ),),
    ),
))

_COMPARISON = Row(title="Comparison of two models", collapsed=True, panels=(
    Panel(
        title="By how much the candidate is better", unit="none", width=12, no_value=_NO_PAIR,
        description="The difference on the same truths with its 95 % interval: above 0 the candidate is better. "
        "Replace the model when the lower bound is above 0; stop the test when the upper one is below.",
        queries=(Query(
            expression=largest(series(MODEL_PAIRED_DIFFERENCE), *_PAIR, "difference", "estimate"),
            legend=f"{{{{difference}}}} {{{{estimate}}}}, {_OF_PAIR}",
        ),),
    ),
    Panel(
        title="Inputs compared", unit="none", width=12, minimum=0, decimals=0, no_value=_NO_PAIR,
        description="Inputs that both models answered, and those whose truth is known. The interval narrows with them.",
        queries=(Query(
            expression=largest(series(MODEL_COMPARED), *_PAIR, "known"), legend=f"{{{{known}}}}, {_OF_PAIR}",
        ),),
    ),
    Panel(
        title="Agreement", unit="percentunit", width=12, minimum=0, maximum=1, no_value="No labels are compared",
        description="Share of the inputs for which both give the same answer. What they disagree on is worth a look "
        "by a person.",
        queries=(Query(expression=largest(series(MODEL_AGREEMENT), *_PAIR), legend=_OF_PAIR),),
    ),
    Panel(
        title="Difference of the answers", unit="none", width=12, minimum=0, no_value="No numbers are compared",
        description="Mean absolute difference of the two models' numbers. A jump is one of them that has changed.",
        queries=(Query(expression=largest(series(MODEL_PREDICTION_DIFFERENCE), *_PAIR), legend=_OF_PAIR),),
    ),
))


def _mean_error(row: Metric) -> str:
    return f"{total(increase(row, window=_RANGE), *MODEL)} / {total(increase(MODEL_TRUTHS, window=_RANGE), *MODEL)}"


_FLEET = Row(title="Scores of all instances together", collapsed=True, panels=(
    Panel(
        title="Answers and truths", kind="table", unit="none", width=12, decimals=0, no_value=_COUNTS, sort="Truths",
        description="How often each class was answered with each over the chosen time, all instances together. Look "
        "at the largest rows in which the two differ. Only with OTEL_MLOPS_MODEL_COUNTS.",
        columns=(
            ("model_name", "Model"), ("model_version", "Version"), ("actual", "Truth"), ("predicted", "Answer"),
        ),
        queries=(Query(
            expression=total(increase(MODEL_CONFUSION, window=_RANGE), *MODEL, "actual", "predicted"), legend="Truths",
        ),),
    ),
    Panel(
        title="Errors of regressions", kind="bargauge", unit="none", width=12, minimum=0, no_value=_COUNTS,
        description="MAE and RMSE over the chosen time of all instances together; an average of the instances' scores "
        "would be another number. Only with OTEL_MLOPS_MODEL_COUNTS.",
        queries=(
            Query(expression=by_model(_mean_error(MODEL_ERROR_ABSOLUTE)), legend="{{model}} MAE"),
            Query(expression=by_model(f"sqrt({_mean_error(MODEL_ERROR_SQUARED)})"), legend="{{model}} RMSE"),
        ),
    ),
))

DETAILS = (_MORE, _TRUTH, _COMPARISON, _FLEET)

# fmt: on
