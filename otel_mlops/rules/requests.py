"""Requests: how many, how many failed or were slow, and how fast that uses up the error budget."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc

from otel_mlops.metrics import API_REQUEST_DURATION, API_REQUESTS, API_REQUESTS_IN_PROGRESS, ERRORS, WORKERS
from otel_mlops.rules.objectives import LATENCY_S
from otel_mlops.rules.row import Alert, Group, Recording

WINDOWS = ("30m", "1h", "2h", "6h", "1d", "3d")
"""Over which the shares are recorded, beside 5 minutes: those of the Google SRE workbook, chapter 5."""

LEAST_REQUESTS = 5
"""So many must have failed, or been slow, before anybody is told: one of three is no outage."""

LEAST_WAITING = 5
"""So many requests of an instance must wait before it can be said to hang."""

PROBES = "/(health|healthz|health/live|health/ready|live|livez|ready|readyz|metrics)"
"""Endpoints that no user asks: at one probe a second they would be most of the requests, and always well."""

_PAGE = (("1h", "5m", 14.4), ("6h", "30m", 6))
_TICKET = (("1d", "2h", 3), ("3d", "6h", 1))
"""Both windows must burn the budget of 30 days so many times too fast: 14.4 uses up 2 % of it in an hour."""

YOUNG = 200
"""A job of which rates were there for fewer five minutes of three days has no days that could be too bad."""

_REQUESTS = API_REQUESTS.page_name
_DURATION = API_REQUEST_DURATION.page_name
_ASKED = f'endpoint!~"{PROBES}"'


def _share(bad: str, every: str, meaning: str) -> Recording:
    """The share of requests that were bad, over the shortest window."""
    return Recording(
        name=f"job:{bad}:ratio_rate5m",
        expression=f"job:{bad}:rate5m / (job:{every}:rate5m > 0)",
        meaning=f"{meaning}, over 5m.",
        shown=True,
    )


def _shares(bad: str, every: str, meaning: str) -> Iterator[Recording]:
    """The share of requests that were bad, over each of the long windows, by what was recorded every few seconds."""
    for window in WINDOWS:
        yield Recording(
            name=f"job:{bad}:ratio_rate{window}",
            expression=(
                f"sum_over_time(job:{bad}:rate5m[{window}]) / (sum_over_time(job:{every}:rate5m[{window}]) > 0)"
            ),
            meaning=f"{meaning}, over {window}.",
            shown=True,
        )


def _burning(bad: str, objective: str, windows: tuple[tuple[str, str, float], ...], *, has_days: bool = False) -> str:
    """The expression that the budget is used up too fast in one of the pairs of windows, of a job that has days."""
    either = []
    for long, short, factor in windows:
        step, seconds = ("1m", 60) if long == "1h" else ("5m", 300)
        lines = [
            _above(f"job:{bad}:ratio_rate{window}", factor, f"job:{objective}:objective") for window in (long, short)
        ]
        lines.append(f"{seconds} * sum_over_time(job:{bad}:rate5m[{long}:{step}]) >= {LEAST_REQUESTS}")
        if has_days:
            lines.append(f"count_over_time(job:{bad}:rate5m[3d:5m]) > {YOUNG}")
        either.append("(\n  " + "\n  and ".join(lines) + "\n)")
    return "\nor\n".join(either)


def _above(ratio: str, factor: float, objective: str) -> str:
    """That a share is above its limit, or half way from the objective to nothing at all.

    Without the second an objective below 0.931 would have a limit above 1 for the factor 14.4: no outage would page.
    With an objective of 0 neither is ever true.
    """
    return f"({ratio} > {factor} * (1 - {objective}) or {ratio} > 1 - {objective} / 2)"


_FAILED, _SLOW = "The share of requests that failed", "The share of requests that were slow"

_RECORDINGS = (
    Recording(
        name="job_endpoint:api_requests:rate5m",
        expression=f"sum by (job, endpoint) (rate({_REQUESTS}{{{_ASKED}}}[5m])) >= 0",
        meaning="Requests a second by endpoint, probes (`/health`, `/ready` …) left out.",
        shown=True,
    ),
    Recording(
        name="job_endpoint:api_requests_failed:rate5m",
        expression=cleandoc(
            f"""
            sum by (job, endpoint) (rate({_REQUESTS}{{status_code=~"5..", {_ASKED}}}[5m])) >= 0
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
        expression=cleandoc(
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
        expression=cleandoc(
            """
            sum by (job) (job_endpoint:api_requests_failed:rate5m)
            or 0 * job:api_requests:rate5m
            """
        ),
        meaning="Requests a second that were answered with 500 and above; 0 where none was.",
        shown=True,
    ),
    _share("api_requests_failed", "api_requests", _FAILED),
    Recording(
        name="job:api_requests_timed:rate5m",
        expression=f"sum by (job) (rate({_DURATION}_count{{{_ASKED}}}[5m])) >= 0",
        meaning="Requests a second whose duration is known.",
    ),
    Recording(
        name="job:api_requests_slow:rate5m",
        expression=cleandoc(
            f"""
            clamp_min(
              job:api_requests_timed:rate5m - sum by (job) (rate({_DURATION}_bucket{{le="{LATENCY_S}", {_ASKED}}}[5m])),
              0
            ) >= 0
            """
        ),
        meaning=f"Requests a second that took longer than {LATENCY_S} s: `le` is a bound of the buckets. Set it here.",
        shown=True,
    ),
    _share("api_requests_slow", "api_requests_timed", _SLOW),
    Recording(
        name="job:api_request_duration_seconds:mean5m",
        expression=f"sum by (job) (rate({_DURATION}_sum{{{_ASKED}}}[5m])) / (job:api_requests_timed:rate5m > 0)",
        meaning="Mean time of a request; absent where there was none.",
        shown=True,
    ),
)

_WHERE = (
    "topk(5, job_endpoint:api_requests_failed:rate5m)",
    "the endpoints that fail most",
)
_WHICH = (f"topk(5, sum by (job, endpoint, error_type) (rate({ERRORS.page_name}[5m])))", "the classes of the errors")
_LATE = (
    f"histogram_quantile(0.95, sum by (job, endpoint, le) (rate({_DURATION}_bucket[5m])))",
    "the 95th percentile by endpoint",
)

_ALERTS = (
    Alert(
        name="HighErrorRate",
        expression=cleandoc(
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
        expression=_burning("api_requests_failed", "slo_availability", _TICKET, has_days=True),
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
        look=(_LATE, ("job:api_requests_slow:ratio_rate5m", "whether it still goes on")),
    ),
    Alert(
        name="LatencyBudgetBurnSlow",
        expression=_burning("api_requests_slow", "slo_latency", _TICKET, has_days=True),
        lasting="15m",
        severity="warning",
        summary="{{ $labels.job }}: {{ $value | humanizePercentage }} of the requests of days took too long",
        means="Requests have been slow so often for a day or for three that the objective of 30 days will be missed.",
        act="Nobody need get up: find the endpoint that is slow, or set an objective that can be kept.",
        look=(_LATE,),
    ),
    Alert(
        name="RequestsStuck",
        # A request is counted when it ends, so that a service in which none does has no errors and is not slow.
        # Where less than one a minute ends that is no sign: they are streams, or batches that take minutes.
        expression=cleandoc(
            f"""
            sum by (job, instance) (min_over_time({API_REQUESTS_IN_PROGRESS.page_name}[5m])) >= {LEAST_WAITING}
            unless on (job, instance) sum by (job, instance) (rate({_REQUESTS}{{{_ASKED}}}[5m])) > 0
            unless on (job, instance) sum by (job, instance) (rate({_REQUESTS}{{{_ASKED}}}[6h])) < 1 / 60
            """
        ),
        lasting="5m",
        severity="critical",
        summary="{{ $labels.job }}: {{ $value }} requests wait at {{ $labels.instance }}, and none is answered",
        means=(
            f"For ten minutes at least {LEAST_WAITING} requests have been in progress in an instance, and not one has "
            "ended. Nothing else tells: what hangs has no errors and no duration. An instance that has answered less "
            "than one a minute in the last 6 hours is left out."
        ),
        act=(
            "See what the threads do (`py-spy dump`): a lock, a model, a database or another service that never "
            "answers. Take the traffic away and restart the instance; then give that call a time limit."
        ),
        look=(
            (f"sum by (job, instance) ({API_REQUESTS_IN_PROGRESS.page_name})", "where requests wait"),
            (f"sum by (job, instance) (rate({_REQUESTS}[5m]))", "where they are still answered"),
        ),
    ),
    Alert(
        name="TrafficLost",
        expression=cleandoc(
            """
            job:api_requests:rate30m < 0.1 * job:api_requests:rate30m offset 1w
            and job:api_requests:rate30m offset 1w > 0.02
            """
        ),
        lasting="10m",
        severity="warning",
        summary='{{ $labels.job }}: {{ $value | printf "%.3f" }} requests a second, less than a tenth of the usual',
        means=(
            "The service lives, and for half an hour has had less than a tenth of the requests of the same time a "
            "week ago. An outage before the service has no errors."
        ),
        act=(
            "Ask the service from outside; then look at the load balancer, at DNS and at those who call. On a holiday, "
            "or where it is asked less for good, silence it for a week."
        ),
        look=(("job:api_requests:rate30m offset 1w", "what is usual"),),
    ),
)

GROUP = Group(name="otel_mlops_requests", about="Requests", rules=(*_RECORDINGS, *_ALERTS))
"""Rates, the shares of the last minutes, and the alerts."""

SHARES = Group(
    name="otel_mlops_shares",
    about="Shares of long windows",
    interval="1m",
    rules=(
        *_shares("api_requests_failed", "api_requests", _FAILED),
        *_shares("api_requests_slow", "api_requests_timed", _SLOW),
    ),
)
"""What the alerts of the error budgets compare, of up to three days: once a minute is enough."""
