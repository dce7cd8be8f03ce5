"""Every metric as a row: a constant that code, docs, rules and tests share; nothing is recorded here."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from otel_mlops.metrics import gpu, machine, model
from otel_mlops.metrics.gpu import *  # noqa: F403  (every row of it is one of this module)
from otel_mlops.metrics.machine import *  # noqa: F403
from otel_mlops.metrics.model import *  # noqa: F403
from otel_mlops.metrics.row import Across as Across
from otel_mlops.metrics.row import Kind as Kind
from otel_mlops.metrics.row import Metric as Metric
from otel_mlops.metrics.row import page_family as page_family
from otel_mlops.metrics.row import page_name as page_name
from otel_mlops.metrics.row import page_unit as page_unit

# --- What several rows share ------------------------------------------------------------------------------
# fmt: off

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY", "_OTHER")
"""The methods of RFC 9110, PATCH and QUERY, and what stands for all others."""

PREDICTION_TYPES = ("single", "batch")
MODEL_STATES = ("error", "unavailable", "loading", "ready")
"""The worst first: the state of a group is the worst of its workers'."""

TASK_RESULTS = ("success", "error", "missed")

DROP_REASONS = (
    "type", "not_finite", "negative", "callback", "queue_full", "energy", "undeclared", "attributes", "duplicate",
    "shape", "truth",
)

REFUSALS = ("auth", "busy", "rate", "request", "tls")
"""Why the page's server sends a client away."""

_METHOD = {"method": METHODS}
_TYPE = {"prediction_type": PREDICTION_TYPES}
_MODEL = ("model_name",)

# The bounds of http.server.request.duration in OpenTelemetry's semantic conventions.
_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PREDICTION_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)
_DATABASE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LOAD_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TASK_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
_PAGE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZE_BYTES = tuple(float(4**power) for power in range(4, 15))
_BATCH_ROWS = tuple(float(2**power) for power in range(13))
_VALUES = (
    -1000.0, -100.0, -10.0, -1.0, -0.1,
    0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 3.0, 5.0, 10.0, 100.0, 1000.0,
)

# --- Requests ---------------------------------------------------------------------------------------------

API_REQUESTS = Metric(
    "api.requests", "counter", "{request}", "HTTP requests answered.",
    ("method", "endpoint", "status_code"), values=_METHOD,
    note="`endpoint` is the route's template, `unmatched` where no route matched: never a raw path. With an endpoint's "
    "first answer its 500s stand at 0, so that `increase()` sees the first of them.",
)
API_REQUEST_DURATION = Metric(
    "api.request.duration", "histogram", "s", "Time from a request's arrival to the end of its response.",
    ("method", "endpoint"), buckets=_REQUEST_S, values=_METHOD,
)
API_REQUESTS_IN_PROGRESS = Metric(
    "api.requests.in.progress", "updown", "{request}", "HTTP requests being answered now.",
    ("method",), "living", values=_METHOD,
    note="No `endpoint`: the route is not known yet when a request arrives.",
)
API_REQUEST_SIZE = Metric(
    "api.request.size", "histogram", "By", "Size of request bodies as received.",
    ("method", "endpoint"), buckets=_SIZE_BYTES, values=_METHOD,
)
API_RESPONSE_SIZE = Metric(
    "api.response.size", "histogram", "By", "Size of response bodies as sent.",
    ("method", "endpoint"), buckets=_SIZE_BYTES, values=_METHOD,
)
ERRORS = Metric(
    "errors", "counter", "{error}", "Errors by the exception's class and the endpoint they met.",
    ("error_type", "endpoint"),
    note="An unhandled exception counts once, at its route; a response of 500 and above that the application "
    "made itself counts as `HTTPException` or its class; 4xx are no errors.",
)
ACTIVE_CONNECTIONS = Metric(
    "active.connections.count", "updown", "{connection}", "HTTP exchanges in progress and open websockets.",
    (), "living",
)
API_HEALTH_STATUS = Metric(
    "api.health.status", "gauge", "", "Health of a component: 1 healthy, 0 not.", ("component",), "min",
    note="The least of the living workers' values: one worker without its database is a fault.",
)

# --- Predictions ------------------------------------------------------------------------------------------

PREDICTIONS = Metric(
    "predictions", "counter", "{prediction}", "Rows predicted: a batch of 32 adds 32.",
    ("model_version", "prediction_type"), values=_TYPE, optional_attributes=_MODEL,
)
PREDICTION_DURATION = Metric(
    "prediction.duration", "histogram", "s", "Time of one prediction call, of a row or of a batch.",
    ("model_version", "prediction_type"), buckets=_PREDICTION_S, values=_TYPE, optional_attributes=_MODEL,
)
PREDICTION_VALUES = Metric(
    "prediction.values", "histogram", "", "Values that the model predicted.",
    ("model_version",), buckets=_VALUES, signed=True, optional_attributes=_MODEL,
    note="Negative values count too, so its sum is no counter: `rate()` of the sum means nothing.",
)
PREDICTIONS_IN_PROGRESS = Metric(
    "predictions.in.progress", "updown", "{prediction}", "Prediction calls running now.",
    ("model_version",), "living", optional_attributes=_MODEL,
)
PREDICTION_ERRORS = Metric(
    "prediction.errors", "counter", "{error}", "Prediction calls that raised, by the exception's class.",
    ("model_version", "error_type"), optional_attributes=_MODEL,
)
PREDICTION_BATCH_SIZE = Metric(
    "prediction.batch.size", "histogram", "{row}", "Rows in a prediction call that was given a batch.",
    ("model_version",), buckets=_BATCH_ROWS, optional_attributes=_MODEL,
)
PREDICTION_LATENCY_P95 = Metric(
    "prediction.latency.p95", "gauge", "s", "95th percentile of the prediction's duration.",
    ("model_version",), "latest", optional_attributes=_MODEL,
)
PREDICTION_LATENCY_P99 = Metric(
    "prediction.latency.p99", "gauge", "s", "99th percentile of the prediction's duration.",
    ("model_version",), "latest", optional_attributes=_MODEL,
)
DAILY_PREDICTIONS = Metric(
    "daily.predictions", "counter", "{prediction}", "Rows predicted since midnight UTC.",
    ("model_version",), optional_attributes=_MODEL,
    note="Begins again at midnight UTC, so its value is today's count. `increase()` reads the drop as a "
    "reset, exact when the first scrape after midnight is lower than the last before it.",
)

# --- Models -----------------------------------------------------------------------------------------------

MODEL_INFO = Metric(
    "model.info", "info", "", "What a model is; always 1.",
    ("model_name", "model_version", "stage", "type", "features"), "latest",
    subject=("model_name", "model_version"),
    note="`features` is the number of them.",
)
MODEL_LOAD_DURATION = Metric(
    "model.load.duration", "histogram", "s", "Time to load a model.",
    ("model_version",), buckets=_LOAD_S, optional_attributes=_MODEL,
)
MODEL_STATUS = Metric(
    "model.status", "stateset", "", "State of a model: 1 for the state it is in, 0 for the others.",
    ("model_version", "model_status"), "worst", values={"model_status": MODEL_STATES},
    optional_attributes=_MODEL,
    note="The worst of the living workers' states; from the worst: error, unavailable, loading, ready.",
)
MODEL_ACCURACY = Metric(
    "model.accuracy.score", "gauge", "", "Share of right predictions on a dataset, 0 to 1.",
    ("model_version", "dataset"), "latest", optional_attributes=_MODEL,
)
MODEL_RMSE = Metric(
    "model.rmse.score", "gauge", "", "Root of the mean squared error on a dataset, in the target's unit.",
    ("model_version", "dataset"), "latest", optional_attributes=_MODEL,
)
MODEL_MAE = Metric(
    "model.mae.score", "gauge", "", "Mean absolute error on a dataset, in the target's unit.",
    ("model_version", "dataset"), "latest", optional_attributes=_MODEL,
)
MODEL_R2 = Metric(
    "model.r2.score", "gauge", "", "Coefficient of determination on a dataset: 1 perfect, 0 the mean's.",
    ("model_version", "dataset"), "latest", optional_attributes=_MODEL,
)
MODEL_DRIFT_SCORE = Metric(
    "model.drift.score", "gauge", "", "How far a feature has drifted from its reference; 0 is not at all.",
    ("model_version", "feature"), "latest", optional_attributes=_MODEL,
)

# --- Database ---------------------------------------------------------------------------------------------

DATABASE_OPERATIONS = Metric(
    "database.operations", "counter", "{operation}", "Database operations, failed ones included.",
    ("operation", "table"),
)
DATABASE_OPERATION_DURATION = Metric(
    "database.operation.duration", "histogram", "s", "Time of one database operation.",
    ("operation", "table"), buckets=_DATABASE_S,
)

# --- Tasks ------------------------------------------------------------------------------------------------

SCHEDULED_TASK_RUNS = Metric(
    "scheduled.task.runs", "counter", "{run}", "Runs of a scheduled task by how they ended.",
    ("task", "result"), values={"result": TASK_RESULTS},
    note="`missed` is a run that was due and did not begin in time.",
)
SCHEDULED_TASK_DURATION = Metric(
    "scheduled.task.duration", "histogram", "s", "Time of one run of a scheduled task.",
    ("task",), buckets=_TASK_S,
)

# --- About ourselves --------------------------------------------------------------------------------------

SOURCE_UP = Metric(
    "otel_mlops.source.up", "gauge", "", "Whether the last reading of a source succeeded: 1 yes, 0 no.",
    ("source",), "once",
)
SOURCE_DURATION = Metric(
    "otel_mlops.source.duration", "gauge", "s", "Time of the last reading of a source.", ("source",), "once"
)
SOURCE_AGE = Metric(
    "otel_mlops.source.age", "gauge", "s", "Age of the last good reading of a source.", ("source",), "once",
    note="A driver that hangs makes this grow: alert on it; when they are too old its values leave the page.",
)
PAGE_DURATION = Metric(
    "otel_mlops.page.duration", "histogram", "s", "Time to make this page for one scrape.", buckets=_PAGE_S
)
PAGE_SERIES = Metric("otel_mlops.page.series", "gauge", "{series}", "Series on this page.", (), "once")
PAGE_REFUSED = Metric(
    "otel_mlops.page.refused", "counter", "{request}", "Clients of the page's own port that were sent away.",
    ("cause",), values={"cause": REFUSALS},
    note="`auth` is a wrong or missing password; `busy` too many clients at a time; `rate` the web.config.yml's "
    "`rate_limit`; `request` one that is unfit, or comes or is taken too slowly; `tls` a failed handshake.",
)
PAGE_CONFIG_UP = Metric(
    "otel_mlops.page.config.up", "gauge", "",
    "Whether the configuration of the page's server could be read when it last changed: 1 yes, 0 no.",
    (), "once", note="Where it could not, the one before holds. Absent without OTEL_MLOPS_WEB_CONFIG_FILE.",
)
OVERFLOW = Metric(
    "otel_mlops.overflow", "counter", "{record}", "Records that went to a metric's overflow series.",
    ("metric",), note="A metric reached its cap of series: some attribute takes too many values.",
)
DROPPED = Metric(
    "otel_mlops.dropped", "counter", "{record}", "Records that were dropped, by the reason.",
    ("reason",), values={"reason": DROP_REASONS},
    note="`type` is a value that is no number; `negative` one for a metric that only grows; `callback` a callback "
    "that raised; `queue_full` a span that waited too long; `energy` a prediction call without energy, as nobody could "
    "read it in time; `shape` features that are no row of the profile's, or answers that are not as many as what "
    "belongs to them; `truth` a prediction that has waited for its truth in vain; the rest are faults of a source.",
)
EXPORT_FAILURES = Metric(
    "otel_mlops.export.failures", "counter", "{export}", "Exports over OTLP that failed.",
    ("signal",), values={"signal": ("metrics", "traces")},
)
BUILD_INFO = Metric(
    "otel_mlops.build.info", "info", "", "Versions of otel_mlops and of what it runs on; always 1.",
    ("version", "python_version", "opentelemetry_version"), "latest", subject=(),
)
WORKERS = Metric(
    "otel_mlops.workers", "gauge", "{worker}", "Workers that live and share this page.", (), "once",
    note="Less than the server was told to run: a worker has died, or has not started yet.",
)
LEDGER_SIZE = Metric(
    "otel_mlops.ledger.size", "gauge", "By", "Memory that the series of a worker take.", (), "worker",
    note="Shared memory, which a container counts as its own; OTEL_MLOPS_MAX_LEDGER_BYTES is the cap.",
)
LEDGER_UP = Metric(
    "otel_mlops.ledger.up", "gauge", "",
    "Whether all numbers of a worker lie in shared memory: 1 yes, 0 no, some are seen by itself alone.", (), "worker",
    note="0 when shared memory is full or cannot be written; what a worker counts then is on the page if it leads.",
)

DOMAINS: Mapping[str, tuple[Metric, ...]] = {
    "Requests": (
        API_REQUESTS, API_REQUEST_DURATION, API_REQUESTS_IN_PROGRESS, API_REQUEST_SIZE, API_RESPONSE_SIZE,
        ERRORS, ACTIVE_CONNECTIONS, API_HEALTH_STATUS,
    ),
    "Predictions": (
        PREDICTIONS, PREDICTION_DURATION, PREDICTION_VALUES, PREDICTIONS_IN_PROGRESS, PREDICTION_ERRORS,
        PREDICTION_BATCH_SIZE, PREDICTION_LATENCY_P95, PREDICTION_LATENCY_P99, DAILY_PREDICTIONS, *model.PREDICTION,
    ),
    "Models": (
        MODEL_INFO, MODEL_LOAD_DURATION, MODEL_STATUS, MODEL_ACCURACY, MODEL_RMSE, MODEL_MAE, MODEL_R2,
        MODEL_DRIFT_SCORE,
    ),
    "Features and drift": model.DRIFT,
    "Late truth": model.QUALITY,
    "Comparisons": model.COMPARISON,
    "Generating models": model.GENERATION,
    "Database": (DATABASE_OPERATIONS, DATABASE_OPERATION_DURATION),
    "System": machine.SYSTEM,
    "Containers": machine.CONTAINER,
    "Worker processes": machine.PROCESS,
    "GPU": gpu.GPU,
    "MIG instances": gpu.MIG,
    "Energy": gpu.ENERGY,
    "Tasks": (SCHEDULED_TASK_RUNS, SCHEDULED_TASK_DURATION),
    "About ourselves": (
        SOURCE_UP, SOURCE_DURATION, SOURCE_AGE, PAGE_DURATION, PAGE_SERIES, PAGE_REFUSED, PAGE_CONFIG_UP,
        OVERFLOW, DROPPED, EXPORT_FAILURES, BUILD_INFO, WORKERS, LEDGER_SIZE, LEDGER_UP,
    ),
}
"""Every row by domain, in the order of the reference."""

# fmt: on

CATALOGUE: tuple[Metric, ...] = tuple(chain.from_iterable(DOMAINS.values()))
"""Every row."""
