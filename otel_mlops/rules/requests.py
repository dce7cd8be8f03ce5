"""Requests: how many, how many failed or were slow, and how fast that uses up the error budget."""

from __future__ import annotations

from collections.abc import Iterator

from otel_mlops.metrics import API_REQUEST_DURATION, API_REQUESTS, ERRORS, WORKERS
from otel_mlops.rules.objectives import LATENCY_S
from otel_mlops.rules.row import Alert, Group, Recording, promql

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
"""Over which the shares are recorded: those of the Google SRE workbook, chapter 5."""

LEAST_REQUESTS = 5
"""So many must have failed, or been slow, before anybody is told: one of three is no outage."""

_PAGE = (("1h", "5m", 14.4), ("6h", "30m", 6))
_TICKET = (("1d", "2h", 3), ("3d", "6h", 1))
"""Both windows must burn the budget of 30 days so many times too fast: 14.4 uses up 2 % of it in an hour."""

_REQUESTS = API_REQUESTS.page_name
_DURATION = API_REQUEST_DURATION.page_name


def _shares(bad: str, every: str, meaning: str) -> Iterator[Recording]:
    """The share of requests that were bad, over each of the windows, by what was recorded every few seconds."""
    for window in WINDOWS:
        if window == "5m":
            expression = f"job:{bad}:rate5m / (job:{every}:rate5m > 0)"
        else:
            expression = (
                f"sum_over_time(job:{bad}:rate5m[{window}]) / (sum_over_time(job:{every}:rate5m[{window}]) > 0)"
            )
        yield Recording(
            name=f"job:{bad}:ratio_rate{window}",
            expression=expression,
            meaning=f"{meaning}, over {window}.",
            shown=True,
        )


def _burning(bad: str, objective: str, windows: tuple[tuple[str, str, float], ...]) -> str:
    """The expression that the budget is used up too fast in one of the pairs of windows."""
    either = []
    for long, short, factor in windows:
        limit = f"{factor} * (1 - job:{objective}:objective)"
        step, seconds = ("1m", 60) if long == "1h" else ("5m", 300)
        either.append(
            f"(\n"
            f"  job:{bad}:ratio_rate{long} > {limit}\n"
            f"  and job:{bad}:ratio_rate{short} > {limit}\n"
            f"  and {seconds} * sum_over_time(job:{bad}:rate5m[{long}:{step}]) >= {LEAST_REQUESTS}\n"
            f")"
        )
    return "\nor\n".join(either)


_RECORDINGS = (
    Recording(
        name="job_endpoint:api_requests:rate5m",
        expression=f"sum by (job, endpoint) (rate({_REQUESTS}[5m])) >= 0",
        meaning="Requests a second by endpoint.",
        shown=True,
    ),
    Recording(
        name="job_endpoint:api_requests_failed:rate5m",
        expression=promql(
            f"""
            sum by (job, endpoint) (rate({_REQUESTS}{{status_code=~"5.."}}[5m])) >= 0
            or 0 * job_endpoint:api_requests:rate5m
            """
        ),
        meaning="Requests a second that were answered with 500 and above, by endpoint; 0 where none was.",
        shown=True,
    ),
    Recording(
        name="job_endpoint:api_requests_failed:ratio_rate5m",
        expression="job_endpoint:api_requests_failed:rate5m / (job_endpoint:api_requests:rate5m > 0)",
        meaning="The share of requests that failed by endpoint; absent without requests.",
        shown=True,
    ),
    Recording(
        name="job:api_requests:rate5m",
        expression=promql(
            f"""
            sum by (job) (job_endpoint:api_requests:rate5m)
            or 0 * sum by (job) ({WORKERS.page_name})
            """
        ),
        meaning="Requests a second; 0 where a service lives that nobody has asked yet.",
        shown=True,
    ),
    Recording(
        name="job:api_requests:rate30m",
        expression="avg_over_time(job:api_requests:rate5m[30m])",
        meaning="Requests a second over half an hour.",
        shown=True,
    ),
    Recording(
        name="job:api_requests_failed:rate5m",
        expression=promql(
            """
            sum by (job) (job_endpoint:api_requests_failed:rate5m)
            or 0 * job:api_requests:rate5m
            """
        ),
        meaning="Requests a second that were answered with 500 and above; 0 where none was.",
        shown=True,
    ),
    *_shares("api_requests_failed", "api_requests", "The share of requests that failed"),
    Recording(
        name="job:api_requests_timed:rate5m",
        expression=f"sum by (job) (rate({_DURATION}_count[5m])) >= 0",
        meaning="Requests a second whose duration is known.",
    ),
    Recording(
        name="job:api_requests_slow:rate5m",
        expression=promql(
            f"""
            clamp_min(
              job:api_requests_timed:rate5m - sum by (job) (rate({_DURATION}_bucket{{le="{LATENCY_S}"}}[5m])), 0
            ) >= 0
            """
        ),
        meaning=f"Requests a second that took longer than {LATENCY_S} s: `le` is a bound of the buckets. Set it here.",
        shown=True,
    ),
    *_shares("api_requests_slow", "api_requests_timed", "The share of requests that were slow"),
)

_WHERE = (
    "topk(5, job_endpoint:api_requests_failed:rate5m)",
    "the endpoints that fail most",
)
_WHICH = (f"topk(5, sum by (job, endpoint, error_type) (rate({ERRORS.page_name}[5m])))", "the classes of the errors")
_SLOW = (
    f"histogram_quantile(0.95, sum by (job, endpoint, le) (rate({_DURATION}_bucket[5m])))",
    "the 95th percentile by endpoint",
)

_ALERTS = (
    Alert(
        name="HighErrorRate",
        expression=promql(
            f"""
            job_endpoint:api_requests_failed:ratio_rate5m > 0.05
            and 300 * job_endpoint:api_requests_failed:rate5m >= {LEAST_REQUESTS}
            """
        ),
        lasting="2m",
        severity="warning",
        summary="{{ $labels.job }}: {{ $value | humanizePercentage }} of the requests to {{ $labels.endpoint }} fail",
        means=(
            "More than 5 % of the requests to one endpoint were answered with 500 and above in the last 5 minutes, "
            f"at least {LEAST_REQUESTS} of them."
        ),
        act="Look for the class of the error in the service's log, and at what was deployed last.",
        look=(_WHICH, _WHERE),
    ),
    Alert(
        name="ErrorBudgetBurn",
        expression=_burning("api_requests_failed", "slo_availability", _PAGE),
        lasting="0m",
        severity="critical",
        summary="{{ $labels.job }}: {{ $value | humanizePercentage }} of all requests fail",
        means=(
            "Requests fail so often that the error budget of 30 days lasts for 2 days (14.4 times too fast over an "
            "hour) or for 5 (6 times over 6 hours), and they still do."
        ),
        act="Go back to the last version that worked if one was deployed; otherwise see which endpoint fails and why.",
        look=(_WHERE, _WHICH, ("job:api_requests_failed:ratio_rate5m", "whether it still goes on")),
    ),
    Alert(
        name="ErrorBudgetBurnSlow",
        expression=_burning("api_requests_failed", "slo_availability", _TICKET),
        lasting="15m",
        severity="warning",
        summary="{{ $labels.job }}: {{ $value | humanizePercentage }} of the requests have failed for days",
        means=(
            "Requests have failed so often for a day (3 times too fast) or for three (faster than the budget allows) "
            "that the objective of 30 days will be missed."
        ),
        act="Nobody need get up: find the error that comes again and again, and plan its repair.",
        look=(_WHERE, _WHICH),
    ),
    Alert(
        name="LatencyBudgetBurn",
        expression=_burning("api_requests_slow", "slo_latency", _PAGE),
        lasting="0m",
        severity="critical",
        summary="{{ $labels.job }}: {{ $value | humanizePercentage }} of all requests take too long",
        means=(
            f"So many requests take longer than {LATENCY_S} s that the budget for slow ones of 30 days lasts for 2 "
            "days, or for 5, and they still do."
        ),
        act=(
            "See which endpoint is slow, then whether the model, the database, a blocked event loop, a full CPU or a "
            "throttled GPU holds it up. If the endpoint is slow by nature, set its objective."
        ),
        look=(_SLOW, ("job:api_requests_slow:ratio_rate5m", "whether it still goes on")),
    ),
    Alert(
        name="LatencyBudgetBurnSlow",
        expression=_burning("api_requests_slow", "slo_latency", _TICKET),
        lasting="15m",
        severity="warning",
        summary="{{ $labels.job }}: {{ $value | humanizePercentage }} of the requests of days took too long",
        means="Requests have been slow so often for a day or for three that the objective of 30 days will be missed.",
        act="Nobody need get up: find the endpoint that is slow, or set an objective that can be kept.",
        look=(_SLOW,),
    ),
    Alert(
        name="TrafficLost",
        expression=promql(
            """
            job:api_requests:rate30m < 0.1 * job:api_requests:rate30m offset 1d
            and job:api_requests:rate30m < 0.1 * job:api_requests:rate30m offset 1w
            and job:api_requests:rate30m offset 1d > 0.02
            and job:api_requests:rate30m offset 1w > 0.02
            """
        ),
        lasting="10m",
        severity="warning",
        summary='{{ $labels.job }}: {{ $value | printf "%.3f" }} requests a second, less than a tenth of the usual',
        means=(
            "The service lives, and for half an hour has had less than a tenth of the requests of the same time "
            "yesterday and a week ago. An outage before the service has no errors."
        ),
        act="Ask the service from outside; then look at the load balancer, at DNS and at those who call.",
        look=(("job:api_requests:rate30m offset 1w", "what is usual"),),
    ),
)

GROUP = Group(name="otel_mlops_requests", about="Requests", rules=(*_RECORDINGS, *_ALERTS))
"""Rates, shares, and the alerts of the error budgets."""
