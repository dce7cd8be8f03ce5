"""Models: whether they answer, what they are asked, how good they are, and whether anybody can know."""

from __future__ import annotations

from inspect import cleandoc

from otel_mlops.metrics import (
    GROUND_TRUTH,
    GROUND_TRUTH_COVERAGE,
    MODEL_ACCURACY,
    MODEL_DRIFT_DISTANCE,
    MODEL_DRIFT_SCORE,
    MODEL_DRIFT_THRESHOLD,
    MODEL_DRIFT_WINDOW_SAMPLES,
    MODEL_ESTIMATED_ACCURACY,
    MODEL_FEATURE_INVALID,
    MODEL_FEATURE_MISSING,
    MODEL_MAE,
    MODEL_PERFORMANCE_SAMPLES,
    MODEL_SCORE_BOUND,
    MODEL_STATUS,
    PREDICTION_DURATION,
    PREDICTION_ERRORS,
    PREDICTIONS,
)
from otel_mlops.rules.row import Alert, Group, Recording

LEAST_TRUTHS = 200
"""So many truths must be in the window before a score is one."""
LEAST_ROWS = 500
"""So many rows must be in the window before a feature can have drifted."""

_MODEL = "job, model_name, model_version"
_FEATURE = f"{_MODEL}, feature"
_WHO = "{{ $labels.job }}: {{ $labels.model_name }} {{ $labels.model_version }}"
_LIMIT = "job_model:slo_accuracy:objective"
_STATUS = MODEL_STATUS.page_name
_ACCURACY = MODEL_ACCURACY.page_name
_JUDGED = "job_model:model_confusion:increase1d"
_BOUND = MODEL_SCORE_BOUND.page_name
_SAMPLES = MODEL_PERFORMANCE_SAMPLES.page_name
_DRIFT = MODEL_DRIFT_SCORE.page_name
_THRESHOLD = MODEL_DRIFT_THRESHOLD.page_name
_ROWS = MODEL_DRIFT_WINDOW_SAMPLES.page_name
_MAE = MODEL_MAE.page_name
_SERVED = f"sum by ({_MODEL}) (increase({PREDICTIONS.page_name}[{{}}]))"
_RETIRED = f"unless on ({_MODEL}) {_SERVED.format('1d')} == 0"
"""What a service has set stays when the version is not asked any more, unless it is forgotten."""
_AT = "{{ with $labels.instance }} at {{ . }}{{ end }}"

_RECORDINGS = (
    Recording(
        name="job_model:predictions:rate5m",
        expression=f"sum by ({_MODEL}) (rate({PREDICTIONS.page_name}[5m])) >= 0",
        meaning="Rows predicted a second.",
        shown=True,
    ),
    Recording(
        name="job_model:prediction_errors:rate5m",
        expression=f"sum by ({_MODEL}) (rate({PREDICTION_ERRORS.page_name}[5m])) >= 0",
        meaning="Prediction calls a second that raised.",
        shown=True,
    ),
    Recording(
        name="job_model:prediction_errors:ratio_rate5m",
        expression=cleandoc(
            f"""
            job_model:prediction_errors:rate5m
            / (
              (
                job_model:prediction_errors:rate5m
                + (
                  sum by ({_MODEL}) (rate({PREDICTION_DURATION.page_name}_count[5m])) >= 0
                  or 0 * job_model:prediction_errors:rate5m
                )
              ) > 0
            )
            """
        ),
        meaning="The share of prediction calls that raised.",
        shown=True,
    ),
)

_ANSWERS = (
    Alert(
        name="ModelNotReady",
        expression=f'max by ({_MODEL}, model_status) ({_STATUS}{{model_status=~"error|unavailable"}}) == 1',
        lasting="2m",
        severity="critical",
        summary=_WHO + " is in the state {{ $labels.model_status }}",
        means="The service says that a model cannot answer, in one worker at least.",
        act=(
            "Look for the error of its load in the log. If the model is gone on purpose, forget it: "
            "`telemetry.forget(model_version=…)`."
        ),
        look=((f"{_STATUS} == 1", "the state of every model"),),
    ),
    Alert(
        name="ModelLoading",
        expression=f'max by ({_MODEL}) ({_STATUS}{{model_status="loading"}}) == 1',
        lasting="15m",
        severity="warning",
        summary=_WHO + " has been loading for a quarter of an hour",
        means="A model does not get ready, in one worker at least, and no error says why.",
        act=(
            "See what its load waits for: a registry, a disk, a download, a lock, a GPU that another process fills. "
            "Where loading takes longer by nature, raise the time."
        ),
        look=((f"{_STATUS} == 1", "the state of every model"),),
    ),
    Alert(
        name="PredictionsFail",
        expression=cleandoc(
            """
            job_model:prediction_errors:ratio_rate5m > 0.05
            and 300 * job_model:prediction_errors:rate5m >= 5
            """
        ),
        lasting="5m",
        severity="warning",
        summary=_WHO + ": {{ $value | humanizePercentage }} of the predictions raise",
        means="More than 5 % of the prediction calls raised an exception in the last 5 minutes, at least five of them.",
        act="Look for the class in the log: input that the model does not know, memory, a version that does not fit.",
        look=((f"sum by (job, model_version, error_type) (rate({PREDICTION_ERRORS.page_name}[5m]))", "the classes"),),
    ),
)

_ASKED = (
    Alert(
        name="ModelInputDrifted",
        # First all instances together, where counts let that be known; each for itself as well; then scores that the
        # service sets itself, which come without a threshold.
        expression=cleandoc(
            f"""
            (
              job_model_feature:model_drift_score:1h > max by ({_FEATURE}) ({_THRESHOLD})
              and job_model_feature:model_feature_bin:increase1h >= {LEAST_ROWS}
            )
            or max by ({_FEATURE}) ({_DRIFT} > {_THRESHOLD} and {_ROWS} >= {LEAST_ROWS})
            or max by ({_FEATURE}) (({_DRIFT} unless {_THRESHOLD}) > 0.2)
              {_RETIRED}
            """
        ),
        lasting="2h",
        severity="warning",
        summary=_WHO + ': {{ $labels.feature }} is not as in training (score {{ $value | printf "%.2f" }})',
        means=(
            "A feature, or with `__prediction__` the answers, has been distributed otherwise than in training for two "
            "hours, by more than chance and training's own days explain."
        ),
        act=(
            "If many features went at once, look at the feed: units, a lost region, a renamed category. If accuracy "
            "holds, make a new profile with the next training; if it falls, train anew."
        ),
        look=(
            (MODEL_DRIFT_DISTANCE.page_name, "how far, by other measures"),
            (f"increase({MODEL_FEATURE_INVALID.page_name}[1h])", "in which way: unseen, out of range, of another type"),
            (_ACCURACY, "whether it matters"),
        ),
    ),
    Alert(
        name="ModelInputMissing",
        expression=cleandoc(
            f"""
            sum by ({_FEATURE}) (increase({MODEL_FEATURE_MISSING.page_name}[1h]))
            / on ({_MODEL}) group_left () ({_SERVED.format("1h")} >= {LEAST_ROWS}) > 0.2
            """
        ),
        lasting="30m",
        severity="warning",
        summary=_WHO + ": {{ $labels.feature }} is missing in {{ $value | humanizePercentage }} of the rows",
        means="A feature had no value in more than a fifth of the rows of the last hour.",
        act="Look at where it comes from. If it is missing as often in training, raise the share for this feature.",
        look=((f"increase({MODEL_FEATURE_MISSING.page_name}[1h])", "the other features"),),
    ),
)

_SURELY = (
    f"max by ({_MODEL}, dataset) "
    f'({_BOUND}{{score="mae", bound="lower"}} and ignoring (score, bound) {_SAMPLES} >= {LEAST_TRUTHS})'
)
_BEFORE = f"avg_over_time({_MAE}[7d] offset 1d)"

_GOOD = (
    Alert(
        name="ModelAccuracyDrop",
        # First what an instance knows from late truth, then all instances together, then what somebody has set.
        expression=cleandoc(
            f"""
            min by ({_MODEL}, instance, dataset) (
              {_BOUND}{{score="accuracy", bound="upper"}}
              and ignoring (score, bound) {_SAMPLES} >= {LEAST_TRUTHS}
            ) < on ({_MODEL}) group_left () {_LIMIT}
            or label_replace(
              job_model:model_accuracy_upper_bound:1d < {_LIMIT} and {_JUDGED} >= {LEAST_TRUTHS},
              "dataset", "live", "", ""
            )
            or min by ({_MODEL}, instance, dataset) ({_ACCURACY} unless {_SAMPLES})
              < on ({_MODEL}) group_left () {_LIMIT}
              {_RETIRED}
            """
        ),
        lasting="1m",
        severity="critical",
        summary=_WHO + _AT + ": at most {{ $value | humanizePercentage }} right on {{ $labels.dataset }}",
        means=(
            "The accuracy of an instance, or of all, is below its objective with 95 % certainty, by at least "
            f"{LEAST_TRUTHS} truths of the quality window; or an accuracy that the service sets itself is below it."
        ),
        act="Compare with the version before and with the drift: go back to that version, or train on newer data.",
        look=(
            (f"{_ACCURACY} and {_SAMPLES} >= {LEAST_TRUTHS}", "all models and versions"),
            (f"{_DRIFT} > {_THRESHOLD}", "features that have drifted"),
            (GROUND_TRUTH_COVERAGE.page_name, "whether the truths are those of all predictions"),
        ),
    ),
    Alert(
        name="ModelErrorRising",
        # A version is compared with itself; a new one, which has no week, with the others of the model.
        expression=cleandoc(
            f"""
            {_SURELY}
              > 1.25 * max by ({_MODEL}, dataset) ({_BEFORE})
            or ({_SURELY} unless max by ({_MODEL}, dataset) ({_BEFORE}))
              > on (job, model_name, dataset) group_left ()
              1.25 * max by (job, model_name, dataset) ({_BEFORE})
            """
        ),
        lasting="1h",
        severity="warning",
        summary=_WHO + ': the mean error is at least {{ $value | printf "%.3g" }} on {{ $labels.dataset }}',
        means=(
            "The mean absolute error of a regression is more than a quarter above that of the week before, surely; "
            "that of a new version, in its first day, above that of the versions before it."
        ),
        act="Look at the drift, at the bias and at absurd truths; go back to the version before, or train anew.",
        look=((_MAE, "all models and versions"),),
    ),
    Alert(
        name="ModelEstimatedAccuracyDrop",
        expression=cleandoc(
            f"""
            min by ({_MODEL}, instance) ({MODEL_ESTIMATED_ACCURACY.page_name}) < on ({_MODEL}) group_left () {_LIMIT}
            and max by ({_MODEL}, instance) ({_ROWS}) >= {LEAST_ROWS}
            """
        ),
        lasting="2h",
        severity="warning",
        summary=_WHO + _AT + ": only {{ $value | humanizePercentage }} are likely to be right",
        means=(
            "By the model's own probabilities its accuracy has been below the objective for two hours: the cases have "
            "become harder. It is an estimate without any truth."
        ),
        act="Look at the drift, and get truths for some of these cases soon.",
        look=((f"{_DRIFT} > {_THRESHOLD}", "features that have drifted"),),
    ),
    Alert(
        name="ModelTruthMissing",
        expression=f"min by ({_MODEL}) ({GROUND_TRUTH_COVERAGE.page_name}) < 0.5",
        lasting="6h",
        severity="warning",
        summary=_WHO + ": the truth has come for {{ $value | humanizePercentage }} of the predictions",
        means=(
            "For less than half of the predictions that wait for their truth it has come, for six hours. The scores "
            "are of the cases whose truth happens to come, and where none comes there is no score that could alert."
        ),
        act="Look at who tells the truth: does the job run, do its receipts or ids fit? Set the share to the usual.",
        look=((f"sum by ({_MODEL}, result) (increase({GROUND_TRUTH.page_name}[6h]))", "what became of the truths"),),
    ),
    Alert(
        name="ModelScoreMissing",
        # Of a score from late truth ModelTruthMissing tells; one of a version that nobody asks any more is not missed.
        expression=cleandoc(
            f"""
            max by ({_MODEL}, dataset) (
              last_over_time({_ACCURACY}[1d]) unless last_over_time({_SAMPLES}[1d])
              or last_over_time({_MAE}[1d]) unless last_over_time({_SAMPLES}[1d])
            )
            unless max by ({_MODEL}, dataset) ({_ACCURACY} or {_MAE})
            and on ({_MODEL}) {_SERVED.format("30m")} > 0
            """
        ),
        lasting="1h",
        severity="warning",
        summary=_WHO + ": its score on {{ $labels.dataset }} is gone",
        means=(
            "An accuracy or a mean error that the service sets itself was there within the day, and is not any more, "
            "while the version is asked: what is not there cannot alert. A score that is never set anew cannot be told "
            "from one that does not change."
        ),
        act="Set it again after each start, and see whether what works it out still runs.",
        look=((f"{_ACCURACY} or {_MAE}", "the scores that are there"),),
    ),
)

GROUP = Group(name="otel_mlops_models", about="Models", rules=(*_RECORDINGS, *_ANSWERS, *_ASKED, *_GOOD))
"""Rates of predictions, and the alerts of answers, input and quality."""
