"""Scores of a model over all instances of a service, from their counts: what one process would say."""

from __future__ import annotations

from inspect import cleandoc

from otel_mlops.metrics import (
    MODEL_CONFUSION,
    MODEL_ERROR_ABSOLUTE,
    MODEL_ERROR_SQUARED,
    MODEL_FEATURE_BIN,
    MODEL_REFERENCE_BIN_RATIO,
    MODEL_REFERENCE_SAMPLES,
    MODEL_TRUTHS,
)
from otel_mlops.rules.row import Group, Recording

_MODEL = "job, model_name, model_version"
_FEATURE = f"{_MODEL}, feature"
_BIN = f"{_FEATURE}, bin"

_ROWS = "job_model_feature:model_feature_bin:increase1h"
_BIN_ROWS = "job_model_feature_bin:model_feature_bin:increase1h"
_REFERENCE = "job_model_feature:model_reference_samples:max"
_BIN_REFERENCE = "job_model_feature_bin:model_reference_samples:max"
_SEEN = "job_model_feature_bin:model_feature_bin:smoothed1h"
_EXPECTED = "job_model_feature_bin:model_reference_samples:smoothed1h"


def _smoothed(own: str, own_rows: str) -> str:
    """Counts of bins, of which those that are not empty on both sides are raised by a half or by their share."""
    return cleandoc(
        f"""
        {own} + clamp_max(
          ({_BIN_ROWS} + {_BIN_REFERENCE} > 0)
          * on ({_FEATURE}) group_left () ({own_rows} / ({_ROWS} + {_REFERENCE})),
          0.5
        )
        """
    )


def _share(bins: str) -> str:
    return f"({bins} / on ({_FEATURE}) group_left () sum by ({_FEATURE}) ({bins}))"


DRIFT = Group(
    name="otel_mlops_fleet_drift",
    about="Drift of all instances",
    rules=(
        Recording(
            name=_BIN_ROWS,
            expression=f"sum by ({_BIN}) (increase({MODEL_FEATURE_BIN.page_name}[1h])) >= 0",
            meaning="Rows of an hour by feature and bin.",
        ),
        Recording(
            name=_ROWS,
            expression=f"sum by ({_FEATURE}) ({_BIN_ROWS})",
            meaning="Rows of an hour by feature: what its score is worth.",
            shown=True,
        ),
        Recording(
            name=_REFERENCE,
            expression=f"max by ({_FEATURE}) ({MODEL_REFERENCE_SAMPLES.page_name})",
            meaning="Training's rows by feature.",
        ),
        Recording(
            name=_BIN_REFERENCE,
            expression=cleandoc(
                f"""
                max by ({_BIN}) ({MODEL_REFERENCE_BIN_RATIO.page_name})
                * on ({_FEATURE}) group_left () {_REFERENCE}
                """
            ),
            meaning="Training's rows by feature and bin.",
        ),
        Recording(
            name=_SEEN,
            expression=_smoothed(_BIN_ROWS, _ROWS),
            meaning="Rows of an hour, raised by a half or less so that no bin in use is empty.",
        ),
        Recording(
            name=_EXPECTED,
            expression=_smoothed(_BIN_REFERENCE, _REFERENCE),
            meaning="Training's rows, raised likewise.",
        ),
        Recording(
            name="job_model_feature:model_drift_score:1h",
            expression=cleandoc(
                f"""
                sum by ({_FEATURE}) (
                  ({_share(_SEEN)} - {_share(_EXPECTED)})
                  * ln({_share(_SEEN)} / {_share(_EXPECTED)})
                )
                and {_ROWS} > 0
                """
            ),
            meaning="The drift score of a feature over all instances of a service, of the last hour.",
            shown=True,
        ),
    ),
)
"""From `model_feature_bin_total`, which is on the page with OTEL_MLOPS_MODEL_COUNTS."""

_RIGHT = "job_model:model_confusion_right:increase1d"
_JUDGED = "job_model:model_confusion:increase1d"
_ACCURACY = "job_model:model_accuracy_score:1d"
_Z = 1.959963984540054
_CONFUSION = f"sum by ({_MODEL}, actual, predicted) (increase({MODEL_CONFUSION.page_name}[1d]))"


def _sum(page_name: str) -> str:
    return f"sum by ({_MODEL}) (increase({page_name}[1d]))"


QUALITY = Group(
    name="otel_mlops_fleet_quality",
    about="Quality of all instances",
    interval="2m",
    rules=(
        Recording(
            name=_JUDGED,
            expression=f"{_sum(MODEL_CONFUSION.page_name)} >= 0",
            meaning="Truths of a day: what the accuracy is worth.",
            shown=True,
        ),
        Recording(
            name=_RIGHT,
            # A label cannot be compared with another: each class becomes its own answer, and the pairs are looked up.
            expression=cleandoc(
                f"""
                sum by ({_MODEL}) (
                  {_CONFUSION}
                  and on ({_MODEL}, actual, predicted)
                  label_replace(
                    sum by ({_MODEL}, actual) ({MODEL_CONFUSION.page_name}), "predicted", "$1", "actual", "(.*)"
                  )
                )
                or 0 * {_JUDGED}
                """
            ),
            meaning="Truths of a day that the answers met.",
        ),
        Recording(
            name=_ACCURACY,
            expression=f"{_RIGHT} / ({_JUDGED} > 0)",
            meaning="The accuracy of a day over all instances of a service.",
            shown=True,
        ),
        Recording(
            name="job_model:model_accuracy_upper_bound:1d",
            expression=cleandoc(
                f"""
                (
                  {_ACCURACY} + {_Z**2 / 2!r} / {_JUDGED}
                  + {_Z!r} * sqrt({_ACCURACY} * (1 - {_ACCURACY}) / {_JUDGED} + {_Z**2 / 4!r} / {_JUDGED} ^ 2)
                ) / (1 + {_Z**2!r} / {_JUDGED})
                """
            ),
            meaning="The upper end of that accuracy's 95 percent interval (Wilson).",
            shown=True,
        ),
        Recording(
            name="job_model:model_truths:increase1d",
            expression=f"{_sum(MODEL_TRUTHS.page_name)} >= 0",
            meaning="Truths of a regression of a day: what the next two are worth.",
            shown=True,
        ),
        Recording(
            name="job_model:model_rmse_score:1d",
            expression=f"sqrt({_sum(MODEL_ERROR_SQUARED.page_name)} / (job_model:model_truths:increase1d > 0))",
            meaning="The root of the mean squared error of a day over all instances of a service.",
            shown=True,
        ),
        Recording(
            name="job_model:model_mae_score:1d",
            expression=f"{_sum(MODEL_ERROR_ABSOLUTE.page_name)} / (job_model:model_truths:increase1d > 0)",
            meaning="The mean absolute error of a day over all instances of a service.",
            shown=True,
        ),
    ),
)
"""From `model_confusion_total` and the sums of errors, which are on the page with OTEL_MLOPS_MODEL_COUNTS."""
