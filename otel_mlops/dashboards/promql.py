"""PromQL of the dashboards, made from metrics: each selector has the matchers of the variables at the top."""

from __future__ import annotations

from otel_mlops.dashboards.panels import Query
from otel_mlops.metrics import Metric

WHERE = ("job", "instance")
"""A scrape's target, or over OTLP the service and its group of workers."""
MODEL = ("model_name", "model_version")
GPU = (*WHERE, "gpu_id")

_WINDOW = "$__rate_interval"
_OF_TARGET = ('job=~"$job"', 'instance=~"$instance"')
_OF_MODEL = ('model_name=~"$model_name"', 'model_version=~"$model_version"')
# Where two models stand in a series as `name:version`, those of the chosen name: a version has no other to compare.
_OF_LABEL = {
    "candidate": 'candidate=~"${model_name}:.*"',
    "gen_ai_response_model": 'gen_ai_response_model=~"${model_name}:${model_version}"',
}


def series(metric: Metric, *matchers: str, part: str = "") -> str:
    """The selector of a metric, or of a `part` of a histogram: `_bucket`, `_sum` or `_count`."""
    labels = [each.replace(".", "_") for each in metric.attributes]
    chosen = [*_OF_TARGET, *(_OF_MODEL if "model_version" in labels else ())]
    chosen += [matcher for label, matcher in _OF_LABEL.items() if label in labels]
    return f"{metric.page_name}{part}{{{', '.join([*chosen, *matchers])}}}"


def rate(metric: Metric, *matchers: str, part: str = "") -> str:
    """How much a counter grows a second."""
    return f"rate({series(metric, *matchers, part=part)}[{_WINDOW}])"


def increase(metric: Metric, *matchers: str, part: str = "", window: str = _WINDOW, offset: str = "") -> str:
    """By how much a counter has grown in a window that ends now, or so much later as `offset` says, `-1d`."""
    when = f" offset {offset}" if offset else ""
    return f"increase({series(metric, *matchers, part=part)}[{window}]{when})"


def total(expression: str, *by: str) -> str:
    """The sum, of each group of labels."""
    return f"sum {_by(by)}({expression})"


def largest(expression: str, *by: str) -> str:
    """The maximum, of each group of labels."""
    return f"max {_by(by)}({expression})"


def least(expression: str, *by: str) -> str:
    """The minimum, of each group of labels."""
    return f"min {_by(by)}({expression})"


def quantile(share: float, metric: Metric, *by: str, matchers: tuple[str, ...] = ()) -> str:
    """The value of a histogram below which a share of the observations lies."""
    buckets = total(rate(metric, *matchers, part="_bucket"), *by, "le")
    return f"histogram_quantile({share:g}, {buckets})"


def mean(metric: Metric, *by: str) -> str:
    """The mean of a histogram's observations."""
    return f"{total(rate(metric, part='_sum'), *by)} / {total(rate(metric, part='_count'), *by)}"


def share(part: str, whole: str, *by: str) -> str:
    """The share of rates or increases in others; 0 where the part has no series yet, NaN where nothing happened."""
    every = total(whole, *by)
    return f"({total(part, *by)} or 0 * {every}) / {every}"


def filled(used: Metric, of: Metric, *by: str) -> str:
    """How full something is: one gauge as a share of another."""
    return f"{largest(series(used), *by)} / {largest(series(of), *by)}"


def by_model(expression: str) -> str:
    """Give each series the label `model`, name and version, also where a series has no name."""
    return f'label_join({expression}, "model", " ", "model_name", "model_version")'


def quantiles(metric: Metric, *shares: float, matchers: tuple[str, ...] = ()) -> tuple[Query, ...]:
    """A query for each quantile over all series, named p50 and the like."""
    return tuple(
        Query(expression=quantile(each, metric, matchers=matchers), legend=f"p{100 * each:g}") for each in shares
    )


def _by(labels: tuple[str, ...]) -> str:
    return f"by ({', '.join(labels)}) " if labels else ""
