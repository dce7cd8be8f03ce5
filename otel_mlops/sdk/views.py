"""Views: which of the stock SDK's can be honoured."""

from __future__ import annotations

from opentelemetry.sdk.metrics.view import (
    DefaultAggregation,
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    View,
)

from otel_mlops.sdk.meter import check_bounds


def check_view(view: View) -> None:
    """Refuse a view that cannot be honoured.

    Errors:  ValueError that says which can.
    """
    aggregation = view._aggregation
    if not isinstance(aggregation, (DefaultAggregation, DropAggregation, ExplicitBucketHistogramAggregation)):
        msg = (
            f"views: {type(aggregation).__name__} cannot be honoured; expected no aggregation, DropAggregation or "
            "ExplicitBucketHistogramAggregation"
        )
        raise ValueError(msg)  # noqa: TRY004  (the view is one; its aggregation is a value of it)
    if isinstance(aggregation, ExplicitBucketHistogramAggregation):
        check_bounds(aggregation._boundaries or ())
