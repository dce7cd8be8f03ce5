"""The dashboard of the API: how much it is asked, what fails, how long an answer takes and why."""

from __future__ import annotations

from otel_mlops.dashboards.panels import NO_TRAFFIC, RISING_SHARE, YES, Dashboard, Panel, Query, Row, Steps
from otel_mlops.dashboards.promql import (
    WHERE,
    increase,
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
    ACTIVE_CONNECTIONS,
    API_HEALTH_STATUS,
    API_REQUEST_DURATION,
    API_REQUEST_SIZE,
    API_REQUESTS,
    API_REQUESTS_IN_PROGRESS,
    API_RESPONSE_SIZE,
    DATABASE_OPERATION_DURATION,
    ERRORS,
    EVENT_LOOP_LAG,
    PREDICTION_DURATION,
    PREDICTION_ERRORS,
    PREDICTIONS_IN_PROGRESS,
    PYTHON_GC_PAUSE,
    WORKERS,
)

# fmt: off

SERVER_ERROR, CLIENT_ERROR = 'status_code=~"5.."', 'status_code=~"4.."'
_ROUTE = ("method", "endpoint")
_SLOW: Steps = ((None, "green"), (0.5, "yellow"), (1.0, "red"))


def _requests(*matchers: str) -> str:
    return rate(API_REQUESTS, *matchers)


_AT_A_GLANCE = Row(title="", panels=(
    Panel(
        title="Requests", kind="stat", width=4, height=4, unit="reqps", no_value=NO_TRAFFIC,
        description="Requests answered in a second. None where there should be some: look at the load balancer "
        "and at whether the instances report.",
        queries=(Query(expression=total(_requests())),),
    ),
    Panel(
        title="Server errors", kind="stat", width=4, height=4, unit="percentunit", thresholds=RISING_SHARE, decimals=2,
        no_value=NO_TRAFFIC,
        description="Share of the requests answered with 500 and above. Red from 5 %: see which endpoint and which "
        "exception below, and what was deployed last.",
        queries=(Query(expression=share(_requests(SERVER_ERROR), _requests())),),
    ),
    Panel(
        title="p95", kind="stat", width=4, height=4, unit="s", thresholds=_SLOW, no_value=NO_TRAFFIC,
        description="One request in twenty takes longer. The colours are at 0.5 s and 1 s: set what you have "
        "promised. Where the time goes is shown further down.",
        queries=(Query(expression=quantile(0.95, API_REQUEST_DURATION)),),
    ),
    Panel(
        title="p99", kind="stat", width=4, height=4, unit="s", thresholds=_SLOW, no_value=NO_TRAFFIC,
        description="One request in a hundred takes longer. Far above p95: a few requests wait for something, such "
        "as a lock, a cold cache or a pause.",
        queries=(Query(expression=quantile(0.99, API_REQUEST_DURATION)),),
    ),
    Panel(
        title="Components", kind="stat", width=4, height=4, unit="none", thresholds=YES, no_value="None is told",
        mapping={1: ("Healthy", "green"), 0: ("Unhealthy", "red")},
        description="The worst of the components that the service tells the health of. Unhealthy: see which in the "
        "row of details.",
        queries=(Query(expression=least(series(API_HEALTH_STATUS))),),
    ),
    Panel(
        title="Workers", kind="stat", width=4, height=4, unit="none", no_value="No worker reports",
        description="Living workers of all chosen instances. Fewer than were started: look for the end of one in "
        "the server's log.",
        queries=(Query(expression=total(series(WORKERS))),),
    ),
))

_TRAFFIC = Row(title="Traffic and errors", panels=(
    Panel(
        title="Requests by endpoint", unit="reqps", width=12, stacked=True, minimum=0, no_value=NO_TRAFFIC,
        description="Requests answered in a second, by route. A route that rises alone is one client's doing: "
        "`unmatched` are paths that do not exist.",
        queries=(Query(expression=total(_requests(), *_ROUTE), legend="{{method}} {{endpoint}}"),),
    ),
    Panel(
        title="Requests by status code", unit="reqps", width=12, stacked=True, minimum=0, no_value=NO_TRAFFIC,
        description="Requests answered in a second, by status code. 5xx are the service's fault, 4xx mostly the "
        "client's: many 422 after a deployment may be a changed interface.",
        queries=(Query(expression=total(_requests(), "status_code"), legend="{{status_code}}"),),
    ),
    Panel(
        title="Share of requests that fail", unit="percentunit", width=12, minimum=0, thresholds=RISING_SHARE,
        no_value=NO_TRAFFIC,
        description="Share of the requests answered with 5xx. Compare the moment of a rise with the marks of started "
        "workers: a deployment shows there. Those with 4xx are in the details.",
        queries=(Query(expression=share(_requests(SERVER_ERROR), _requests()), legend="server errors (5xx)"),),
    ),
    Panel(
        title="Errors by exception", unit="suffix:/s", width=12, stacked=True, minimum=0, no_value="No errors",
        description="Errors in a second, by the exception's class and the endpoint. Look for the class in the "
        "service's log. The very first error of a kind shows with the second: a counter is born with it.",
        queries=(Query(
            expression=total(rate(ERRORS), "error_type", "endpoint"), legend="{{error_type}} {{endpoint}}",
        ),),
    ),
))

_LATENCY = Row(title="Response time", panels=(
    Panel(
        title="Response-time percentiles", unit="s", width=12, minimum=0, no_value=NO_TRAFFIC,
        description="The time that half of the requests, 5 % and 1 % exceed. A dot is a request with a trace: open "
        "one of the slow ones.",
        queries=quantiles(API_REQUEST_DURATION, 0.5, 0.95, 0.99),
    ),
    Panel(
        title="p95 by endpoint", unit="s", width=12, minimum=0, no_value=NO_TRAFFIC,
        description="The time that one request in twenty exceeds, by route. One slow route: its own work. All at "
        "once: something that they share, see below.",
        queries=(Query(
            expression=quantile(0.95, API_REQUEST_DURATION, *_ROUTE), legend="{{method}} {{endpoint}}",
        ),),
    ),
    Panel(
        title="What a request waits for", unit="s", width=12, minimum=0, no_value=NO_TRAFFIC,
        description="p95 of what is inside a request: calls of models, database operations, the lag of the event "
        "loop and pauses of the garbage collector. What rises with the response time is the cause; a lag of the loop "
        "is a blocking call in asynchronous code.",
        queries=(
            Query(expression=quantile(0.95, PREDICTION_DURATION), legend="model"),
            Query(expression=quantile(0.95, DATABASE_OPERATION_DURATION), legend="database"),
            Query(expression=quantile(0.95, EVENT_LOOP_LAG), legend="event loop lag"),
            Query(expression=quantile(0.95, PYTHON_GC_PAUSE), legend="garbage collector"),
        ),
    ),
    Panel(
        title="In progress", unit="none", width=12, minimum=0, decimals=0,
        description="Requests, connections and model calls that are under way. What rises while the traffic does not "
        "is a queue: the service takes in more than it can answer.",
        queries=(
            Query(expression=total(series(API_REQUESTS_IN_PROGRESS)), legend="requests"),
            Query(expression=total(series(ACTIVE_CONNECTIONS)), legend="connections and websockets"),
            Query(expression=total(series(PREDICTIONS_IN_PROGRESS)), legend="model calls"),
        ),
    ),
    Panel(
        title="Endpoints", kind="table", unit="short", width=24, height=9, no_value=NO_TRAFFIC,
        sort="Requests a second",
        description="Each route now. The slowest route is not the one that matters if nobody asks it.",
        columns=(("method", "Method"), ("endpoint", "Endpoint")),
        queries=(
            Query(expression=total(_requests(), *_ROUTE), legend="Requests a second", unit="reqps"),
            Query(
                expression=share(_requests(SERVER_ERROR), _requests(), *_ROUTE), legend="Server errors",
                unit="percentunit", thresholds=RISING_SHARE,
            ),
            Query(expression=mean(API_REQUEST_DURATION, *_ROUTE), legend="Mean", unit="s"),
            Query(expression=quantile(0.95, API_REQUEST_DURATION, *_ROUTE), legend="p95", unit="s", thresholds=_SLOW),
        ),
    ),
))

_DETAILS = Row(title="Components, methods and instances", collapsed=True, panels=(
    Panel(
        title="Health of components", unit="none", width=12, minimum=0, maximum=1, decimals=0,
        mapping={1: ("Healthy", "green"), 0: ("Unhealthy", "red")}, no_value="None is told",
        description="1 healthy, 0 not: the least over the workers, as one worker without its database is a fault. "
        "`/health` tells the same.",
        queries=(Query(
            expression=least(series(API_HEALTH_STATUS), *WHERE, "component"), legend="{{instance}} {{component}}",
        ),),
    ),
    Panel(
        title="Requests by instance", unit="reqps", width=12, minimum=0, no_value=NO_TRAFFIC,
        description="Requests answered in a second by each instance. Uneven: the balancing is, or one of them is slow.",
        queries=(Query(expression=total(_requests(), *WHERE), legend="{{job}} {{instance}}"),),
    ),
    Panel(
        title="p95 by instance", unit="s", width=12, minimum=0, no_value=NO_TRAFFIC,
        description="One instance that is slower than the others: look at its machine on the dashboard of the system.",
        queries=(Query(expression=quantile(0.95, API_REQUEST_DURATION, *WHERE), legend="{{job}} {{instance}}"),),
    ),
    Panel(
        title="Server errors by instance", unit="percentunit", width=12, minimum=0, thresholds=RISING_SHARE,
        no_value=NO_TRAFFIC,
        description="One instance that fails alone can be taken out of service; if all do, it is the release or what "
        "they share.",
        queries=(Query(
            expression=share(_requests(SERVER_ERROR), _requests(), *WHERE), legend="{{job}} {{instance}}",
        ),),
    ),
    Panel(
        title="In progress by method", unit="none", width=8, stacked=True, minimum=0, decimals=0,
        description="Requests being answered, by method. The route is not known yet when a request arrives.",
        queries=(Query(expression=total(series(API_REQUESTS_IN_PROGRESS), "method"), legend="{{method}}"),),
    ),
    Panel(
        title="Client errors", unit="percentunit", width=8, minimum=0, no_value=NO_TRAFFIC,
        description="Share of the requests answered with 4xx, mostly the clients' doing. A jump after a deployment may "
        "be a changed interface; 401 and 403 somebody's old key.",
        queries=(Query(expression=share(_requests(CLIENT_ERROR), _requests()), legend="client errors (4xx)"),),
    ),
    Panel(
        title="Model calls that raised", unit="suffix:/s", width=8, minimum=0, no_value="No errors",
        description="Prediction calls in a second that ended with an exception, by its class. They explain errors of "
        "the API: the dashboard of the models says whose they are.",
        queries=(Query(expression=total(rate(PREDICTION_ERRORS), "error_type"), legend="{{error_type}}"),),
    ),
    Panel(
        title="Errors in the time shown", kind="bargauge", unit="none", width=24, height=7, no_value="No errors",
        decimals=0, minimum=0,
        description="Errors by class and endpoint over the chosen time, the most frequent to be looked at first.",
        queries=(Query(
            expression=total(increase(ERRORS, window="$__range"), "error_type", "endpoint"),
            legend="{{error_type}} {{endpoint}}",
        ),),
    ),
))

_SIZES = Row(title="Sizes", collapsed=True, panels=(
    Panel(
        title="Bytes received and sent", unit="Bps", width=8, minimum=0, no_value=NO_TRAFFIC,
        description="Bodies of requests and responses in a second. A rise without more requests is larger batches.",
        queries=(
            Query(expression=total(rate(API_REQUEST_SIZE, part="_sum")), legend="received"),
            Query(expression=total(rate(API_RESPONSE_SIZE, part="_sum")), legend="sent"),
        ),
    ),
    Panel(
        title="Size of requests, p95", unit="bytes", width=8, minimum=0, no_value=NO_TRAFFIC,
        description="One request in twenty is larger, by route, as near as the buckets tell. Far more than its clients "
        "send by habit: set a limit.",
        queries=(Query(expression=quantile(0.95, API_REQUEST_SIZE, *_ROUTE), legend="{{method}} {{endpoint}}"),),
    ),
    Panel(
        title="Size of responses, p95", unit="bytes", width=8, minimum=0, no_value=NO_TRAFFIC,
        description="One response in twenty is larger, by route, as near as the buckets tell. Large and slow: send "
        "pages, or compress.",
        queries=(Query(expression=quantile(0.95, API_RESPONSE_SIZE, *_ROUTE), legend="{{method}} {{endpoint}}"),),
    ),
))

# fmt: on

API = Dashboard(
    uid="otel-mlops-api",
    title="API performance",
    description="Requests, errors and response times of the services, and what a request waits for.",
    rows=(_AT_A_GLANCE, _TRAFFIC, _LATENCY, _DETAILS, _SIZES),
)
