"""Settings: what the service chose, checked once at start-up; keyword before environment before default.

`SETTINGS` is the one table: `Settings.from_env`, the reference in docs/settings.md and `doctor` go over it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from otel_mlops.settings import values
from otel_mlops.settings.values import Accept, ResourceValue

MetricsExporter = Literal["prometheus", "otlp"]
ExemplarFilter = Literal["trace_based", "always_on", "always_off"]
Gpus = Literal["visible", "all"]
Instrumentation = Literal["auto", "fastapi", "opentelemetry", "none"]

SOURCES = ("host", "container", "process", "nvidia", "amd", "models")
"""The names of the sources there are."""

_PREFIX = "OTEL_MLOPS_"
# Kubernetes tells every pod of the Services beside it: one named `otel-mlops-…` sets variables of this shape
# and OTEL_MLOPS_…_PORT to a URL. Nobody mistyped those, and they must not keep a pod from starting.
_SERVICE_LINK = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)")


def in_container(environ: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Return whether this process runs in a container, whose 127.0.0.1 no scraper outside can reach.

    Reads:  the marker files of Docker and of Podman under `root`, and the variable that Kubernetes sets.
    """
    markers = (root / ".dockerenv", root / "run" / ".containerenv")
    return bool(environ.get("KUBERNETES_SERVICE_HOST")) or any(marker.exists() for marker in markers)


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: a field of `Settings`, where its value comes from, and what it means."""

    field: str
    variables: tuple[str, ...]
    """The environment's variables; the first that is set counts."""
    expected: str
    accept: Accept
    """Checks a value and returns it as it is kept."""
    meaning: str
    read: Callable[[str], Any] = str
    """Makes a value of a variable's text."""
    expected_text: str = ""
    """What a variable must be, where that differs from the argument."""
    resource_attribute: str = ""
    """The key of the resource attributes that gives the value if no variable does."""
    keyword: bool = True
    """Whether it is an argument too."""
    default: str = ""
    """The default in words, where it is worked out."""
    secret: bool = False
    """Whether the value may hold a credential; then only its host is ever shown."""
    masked: bool = False
    """Whether the value is a secret, and never shown."""

    def check(self, value: object) -> Any:
        """Return the value to keep for an argument.

        Errors:  TypeError or ValueError that names the argument, the value and what was expected.
        """
        try:
            return self.accept(value)
        except (TypeError, ValueError) as error:
            wrong = TypeError if isinstance(error, TypeError) else ValueError
            raise wrong(f"{self.field} is {self.shown(value)!r}, expected {self.expected}") from None

    def from_environment(self, environ: Mapping[str, str]) -> Any:
        """Return the value that the first non-empty variable gives, or None where none is set.

        Errors:  ValueError that names the variable, its text and what was expected.
        """
        for variable in self.variables:
            if text := environ.get(variable, "").strip():
                try:
                    return self.accept(self.read(text))
                except (TypeError, ValueError):
                    expected = self.expected_text or self.expected
                    raise ValueError(f"{variable} is {self.shown(text)!r}, expected {expected}") from None
        return None

    def shown(self, value: object) -> object:
        """Return a value as messages may show it: of a URL with credentials no more than the host."""
        if self.masked and isinstance(value, str):
            return f"a text of {len(value)} characters"
        if not self.secret or not isinstance(value, str):
            return value
        return re.sub(r"^(\w+://)?(?:.*@)?([^/?#]*).*$", r"\1\2", value, flags=re.DOTALL)


# fmt: off
SETTINGS: tuple[Setting, ...] = (
    Setting("service_name", ("OTEL_SERVICE_NAME",), "a name", values.text,
            "What the service is called; the workers that share a page have the same.",
            resource_attribute="service.name", default="the title of the app, else the name of the script"),
    Setting("service_version", (), "a version or None", values.or_none(values.text),
            "The version that is deployed.", resource_attribute="service.version"),
    Setting("environment", (), "a name or None", values.or_none(values.text),
            "Where it is deployed: production, staging.", resource_attribute="deployment.environment.name"),
    Setting("resource_attributes", ("OTEL_RESOURCE_ATTRIBUTES",),
            "a mapping of names to strings, numbers or booleans", values.resource_attributes,
            "What else identifies the service; argument and variable are merged, the argument wins.",
            read=values.pairs_from, expected_text="key=value pairs with commas between them", default="none"),
    Setting("disabled", ("OTEL_SDK_DISABLED",), "true or false", values.flag,
            "Everything is a no-op: no page, no threads, no shared memory.", read=values.flag_from),
    Setting("host", ("OTEL_EXPORTER_PROMETHEUS_HOST",), "an address or a host name, without a port",
            values.host, "Where the page's own server listens.",
            default="`127.0.0.1`; in a container `0.0.0.0`"),
    Setting("port", ("OTEL_EXPORTER_PROMETHEUS_PORT",), "a whole number from 0 to 65535",
            values.whole(0, 65_535), "The port of the page's own server; 0 takes a free one.", read=int),
    Setting("start_server", (), "True or False", values.flag, "Whether the page has a server of its own."),
    Setting("start_monitoring", (), "True or False", values.flag,
            "Whether sources are read in the background, and pauses of the workers timed."),
    Setting("metrics_exporter", ("OTEL_METRICS_EXPORTER",),
            "prometheus, otlp, both with a comma between them, or none", values.names(("prometheus", "otlp")),
            "The ways of the metrics. Take one only into one Prometheus, or everything counts twice."),
    Setting("metrics_endpoint", ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
            "a URL that begins with http:// or https://", values.or_none(values.url),
            "Where metrics are pushed, if `otlp` is among the exporters.", keyword=False, secret=True),
    Setting("traces_endpoint", ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
            "a URL that begins with http:// or https://", values.or_none(values.url),
            "Where traces are pushed; without one there are none.", keyword=False, secret=True),
    Setting("metric_export_interval_s", ("OTEL_METRIC_EXPORT_INTERVAL",),
            f"seconds, {values.SHORTEST_S} to {values.LONGEST_S}", values.seconds,
            "How often metrics are pushed; the argument is in seconds, the variable in milliseconds.",
            read=values.seconds_from_milliseconds,
            expected_text=f"milliseconds, {values.SHORTEST_S * 1000:.0f} to {values.LONGEST_S}000"),
    Setting("exemplar_filter", ("OTEL_METRICS_EXEMPLAR_FILTER",), "trace_based, always_on or always_off",
            values.one_of("trace_based", "always_on", "always_off"),
            "Which records may leave an exemplar: those of a sampled trace, all, or none."),
    Setting("monitoring_interval", ("OTEL_MLOPS_MONITORING_INTERVAL",),
            f"seconds, {values.SHORTEST_S} to {values.LONGEST_S}", values.seconds,
            "How often the sources are read, in seconds; GPUs are read every second.", read=float),
    Setting("sources", ("OTEL_MLOPS_SOURCES",), f"all, none, or a comma list of {', '.join(SOURCES)}",
            values.names(SOURCES, every=True), "Which sources are read.", default="`all`"),
    Setting("gpus", ("OTEL_MLOPS_GPUS",), "visible or all", values.one_of("visible", "all"),
            "Which GPUs are read: those that CUDA_VISIBLE_DEVICES (AMD: HIP_ and ROCR_) leaves, or all that the "
            "driver shows."),
    Setting("prediction_energy", ("OTEL_MLOPS_PREDICTION_ENERGY",), "True, False or None", values.or_none(values.flag),
            "Whether the GPUs' energy is shared out among the predictions; None is where there is an NVIDIA GPU.",
            read=values.flag_from, expected_text="true or false"),
    Setting("latency_window", ("OTEL_MLOPS_LATENCY_WINDOW",),
            f"seconds, {values.SHORTEST_S} to {values.LONGEST_WINDOW_S}", values.window,
            "How far back the percentiles of a model's latency look, in seconds.", read=float),
    Setting("drift_window", ("OTEL_MLOPS_DRIFT_WINDOW",),
            f"seconds, {values.SHORTEST_S} to {values.LONGEST_WINDOW_S}", values.window,
            "How far back the drift of features and predictions looks, in seconds.", read=float),
    Setting("drift_samples", ("OTEL_MLOPS_DRIFT_SAMPLES",), "a whole number from 1", values.whole(1),
            "How many rows the drift window must hold before a drift is called one.", read=int),
    Setting("quality_window", ("OTEL_MLOPS_QUALITY_WINDOW",),
            f"seconds, {values.SHORTEST_S} to {values.LONGEST_WINDOW_S}", values.window,
            "How far back the scores of late truth and of comparisons look, in seconds.", read=float),
    Setting("model_counts", ("OTEL_MLOPS_MODEL_COUNTS",), "True or False", values.flag,
            "Whether the counts behind the scores stand on the page too, so that PromQL can work the scores out for "
            "a whole fleet.", read=values.flag_from, expected_text="true or false"),
    Setting("receipt_key", ("OTEL_MLOPS_RECEIPT_KEY",), "a text of at least 16 characters, or several with commas "
            "between them, or None", values.or_none(values.keys),
            "What receipts of predictions are signed with: with the first, and read with all. Have the same in all "
            "workers and machines.", default="a random one of this group, until it ends", masked=True),
    Setting("state_dir", ("OTEL_MLOPS_STATE_DIR",), "the absolute path of a folder, or None",
            values.or_none(values.folder), "Where the workers keep their numbers.", default="shared memory"),
    Setting("group", ("OTEL_MLOPS_GROUP",), "a name or None", values.or_none(values.text),
            "Which workers share a page: those of one machine that give the same name.",
            default="one user's workers with the same service name, host and port"),
    Setting("page_process", ("OTEL_MLOPS_PAGE_PROCESS",), "True, False or None", values.or_none(values.flag),
            "Whether the page, the sources and the push have a process of their own, so that a scrape never waits "
            "for the service's interpreter; None is where that can be had.", read=values.flag_from,
            expected_text="true or false"),
    Setting("web_config_file", ("OTEL_MLOPS_WEB_CONFIG_FILE",), "the absolute path of a file, or None",
            values.or_none(values.folder), "TLS, passwords and limits of the page's own server: the "
            "`web.config.yml` of Prometheus' exporters.", default="neither TLS nor passwords"),
    Setting("max_ledger_bytes", ("OTEL_MLOPS_MAX_LEDGER_BYTES",),
            f"a whole number from {values.SMALLEST_LEDGER_BYTES}", values.whole(values.SMALLEST_LEDGER_BYTES),
            "The most memory that the series of one worker may take, in bytes; further series go to the overflow "
            "series of their metric.", read=int),
    Setting("max_series", ("OTEL_MLOPS_MAX_SERIES",), "a whole number from 1", values.whole(1),
            "The most series that one metric may have; records past it go to its overflow series.", read=int),
    Setting("metrics_path", (), "a path that begins with /, or None", values.or_none(values.url_path),
            "Where the app serves the page as well, `/metrics` say; None for nowhere."),
    Setting("health_path", (), "a path that begins with /, or None", values.or_none(values.url_path),
            "Where the app tells its health; None for nowhere."),
    Setting("request_timing_header", (), "the name of a header, or None", values.or_none(values.header),
            "The response header that tells the processing time; None for none."),
    Setting("instrumentation", (), "auto, fastapi, opentelemetry or none",
            values.one_of("auto", "fastapi", "opentelemetry", "none"),
            "Whose semantic conventions the app gets: FastAPI's own, OpenTelemetry's package, or none."),
    Setting("set_global", (), "True or False", values.flag,
            "Whether the providers become OpenTelemetry's global ones."),
)
"""Every setting, in the order of the reference."""
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the service chose, checked and complete.

    Errors:  TypeError or ValueError that names the argument, the value and what was expected.
    """

    service_name: str = "unknown_service"
    service_version: str | None = None
    environment: str | None = None
    resource_attributes: Mapping[str, ResourceValue] = field(default_factory=dict, hash=False)
    disabled: bool = False
    host: str = "127.0.0.1"
    port: int = 8001
    start_server: bool = True
    start_monitoring: bool = True
    metrics_exporter: tuple[MetricsExporter, ...] = ("prometheus",)
    # OTLP's URLs may hold a token: they are left out of the repr, and headers are not kept at all.
    metrics_endpoint: str | None = field(default=None, repr=False)
    traces_endpoint: str | None = field(default=None, repr=False)
    metric_export_interval_s: float = 60.0
    exemplar_filter: ExemplarFilter = "trace_based"
    monitoring_interval: float = 5.0
    sources: tuple[str, ...] = SOURCES
    gpus: Gpus = "visible"
    prediction_energy: bool | None = None
    latency_window: float = 300.0
    drift_window: float = 3600.0
    drift_samples: int = 500
    quality_window: float = 86_400.0
    model_counts: bool = False
    receipt_key: str | None = field(default=None, repr=False)
    state_dir: Path | None = None
    group: str | None = None
    page_process: bool | None = None
    web_config_file: Path | None = None
    max_ledger_bytes: int = 8 * 1024 * 1024
    max_series: int = 2000
    metrics_path: str | None = None
    health_path: str | None = "/health"
    request_timing_header: str | None = None
    instrumentation: Instrumentation = "auto"
    set_global: bool = True

    def __post_init__(self) -> None:
        """Check every field and keep it in one form."""
        for setting in SETTINGS:
            object.__setattr__(self, setting.field, setting.check(getattr(self, setting.field)))
        if self.metrics_path is not None and self.metrics_path == self.health_path:
            raise ValueError(f"metrics_path is {self.metrics_path!r}, expected another than health_path")

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        fallback_service_name: str = "unknown_service",
        container: bool | None = None,
        **keywords: Any,
    ) -> Settings:
        """Return the settings of keywords, then of the environment, then the defaults.

        An empty variable is as good as none. `container` says whether this is one; None finds out.

        Errors:  TypeError for an unknown keyword or a value of the wrong type; ValueError for a value that
                 is not acceptable and for an OTEL_MLOPS_ variable that does not exist.
        """
        environ = os.environ if environ is None else environ
        _refuse_unknown_keywords(keywords)
        _refuse_unknown_variables(environ)
        rows = {setting.field: setting for setting in SETTINGS}
        given = {name: rows[name].check(value) for name, value in keywords.items()}
        found = {name: row.from_environment(environ) for name, row in rows.items()}
        found = {name: value for name, value in found.items() if value is not None}
        for chosen in (given, found):
            attributes = chosen.get("resource_attributes", {})
            for row in SETTINGS:
                if row.resource_attribute and attributes.get(row.resource_attribute):
                    chosen.setdefault(row.field, str(attributes[row.resource_attribute]))
        merged = found.get("resource_attributes", {}) | given.get("resource_attributes", {})
        defaults: dict[str, Any] = {"service_name": fallback_service_name}
        if in_container(environ) if container is None else container:
            defaults["host"] = "0.0.0.0"  # noqa: S104 - the start-up line says that it is open
        return cls(**(defaults | found | given | {"resource_attributes": merged}))

    @property
    def resource(self) -> dict[str, ResourceValue]:
        """The attributes of the OpenTelemetry resource: those given, and the fields that stand for some."""
        attributes = dict(self.resource_attributes)
        for row in SETTINGS:
            if row.resource_attribute and (value := getattr(self, row.field)) is not None:
                attributes[row.resource_attribute] = value
        return attributes

    def difference(self, other: Settings) -> dict[str, tuple[object, object]]:
        """Return the fields in which two settings differ with both values, fit to be shown in a message."""
        pairs = {row: (getattr(self, row.field), getattr(other, row.field)) for row in SETTINGS}
        return {
            row.field: (row.shown(ours), row.shown(theirs)) for row, (ours, theirs) in pairs.items() if ours != theirs
        }


def _refuse_unknown_keywords(keywords: Iterable[str]) -> None:
    known = {setting.field: setting for setting in SETTINGS}
    for name in keywords:
        if name not in known:
            arguments = [setting.field for setting in SETTINGS if setting.keyword]
            raise TypeError(f"there is no setting {name!r}{values.did_you_mean(name, arguments)}")
        if not known[name].keyword:
            raise TypeError(f"{name} is no argument; set {' or '.join(known[name].variables)}")


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = [variable for setting in SETTINGS for variable in setting.variables]
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or name in known:
            continue
        if _SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and "://" in text):
            continue
        raise ValueError(f"there is no variable {name}{values.did_you_mean(name, known)}")
