"""Settings: keyword before environment before default, and every mistake is named at start-up."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_mlops import settings as settings_module
from otel_mlops.settings import SETTINGS, SOURCES, Setting, Settings, in_container

ROWS = {row.field: row for row in SETTINGS}
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def from_env(environ: dict[str, str] | None = None, **keywords: Any) -> Settings:
    """Settings of an environment of one's own, outside of a container unless said otherwise."""
    return Settings.from_env(environ or {}, **{"container": False, **keywords})


def outcome(environ: dict[str, str], **keywords: Any) -> Settings | TypeError | ValueError:
    """The settings, or the error that a user would see."""
    try:
        return from_env(environ, **keywords)
    except (TypeError, ValueError) as error:
        return error


# --- The table --------------------------------------------------------------------------------------------


def test_the_table_and_the_class_have_the_same_fields_in_the_same_order():
    """Each field is one row of the table, so what is documented, read and checked is what there is."""
    assert [row.field for row in SETTINGS] == [field.name for field in dataclasses.fields(Settings)]


def test_every_variable_is_a_standard_one_or_ours():
    """Variables are OpenTelemetry's, or begin with OTEL_MLOPS_ and the field's own name."""
    for row in SETTINGS:
        for variable in row.variables:
            assert variable.startswith("OTEL_")
            if variable.startswith("OTEL_MLOPS_"):
                assert variable == f"OTEL_MLOPS_{row.field.upper()}"


def test_every_setting_is_told_in_a_sentence():
    """Each row says what it accepts and what it means."""
    for row in SETTINGS:
        assert row.expected
        assert row.meaning[0].isupper()
        assert row.meaning.endswith(".")


def test_every_setting_can_be_set():
    """Each setting is an argument or has a variable: none is there for nothing."""
    assert all(row.keyword or row.variables for row in SETTINGS)


def test_the_words_of_a_choice_are_the_types_words():
    """What an argument accepts and what its annotation says are the same."""
    for field, literal in (
        ("exemplar_filter", settings_module.ExemplarFilter),
        ("gpus", settings_module.Gpus),
        ("instrumentation", settings_module.Instrumentation),
        ("metrics_exporter", settings_module.MetricsExporter),
    ):
        for word in get_args(literal):
            assert word in ROWS[field].expected
            assert getattr(from_env(**{field: word}), field) in (word, (word,))


# --- Where a value comes from -----------------------------------------------------------------------------


def test_the_defaults_are_the_designs():
    """Without a word the page is on 127.0.0.1:8001, every source is read each 5 s, with 2,000 series."""
    found = from_env()
    assert (found.host, found.port) == ("127.0.0.1", 8001)
    assert (found.monitoring_interval, found.max_series) == (5.0, 2000)
    assert (found.metrics_exporter, found.sources) == (("prometheus",), SOURCES)
    assert found.start_server
    assert found.start_monitoring
    assert found.set_global
    assert not found.disabled
    assert found == Settings()


EXAMPLES: dict[str, tuple[str, Any, Any]] = {
    "service_name": ("from the variable", "housing", "from the variable"),
    "resource_attributes": ("team=ml", {"team": "web"}, {"team": "ml"}),
    "disabled": ("TRUE", False, True),
    "host": ("::1", "localhost", "::1"),
    "port": ("9464", 0, 9464),
    "metrics_exporter": ("otlp, prometheus", "none", ("prometheus", "otlp")),
    "metrics_endpoint": ("http://collector:4318", None, "http://collector:4318"),
    "traces_endpoint": ("https://collector:4318/v1/traces", None, "https://collector:4318/v1/traces"),
    "metric_export_interval_s": ("1500", 10, 1.5),
    "exemplar_filter": ("always_on", "always_off", "always_on"),
    "monitoring_interval": ("0.5", 10, 0.5),
    "sources": ("none", "all", ()),
    "state_dir": ("/run/mlops", Path("/srv/mlops"), Path("/run/mlops")),
    "group": ("blue", "green", "blue"),
    "gpus": ("all", "visible", "all"),
    "prediction_energy": ("TRUE", False, True),
    "latency_window": ("60", 30.0, 60.0),
    "drift_window": ("7200", 60.0, 7200.0),
    "drift_samples": ("100", 50, 100),
    "quality_window": ("3600", 60.0, 3600.0),
    "model_counts": ("true", False, True),
    "receipt_key": ("a key of some length", "another key of the same", "a key of some length"),
    "page_process": ("TRUE", False, True),
    "web_config_file": ("/etc/web.config.yml", None, Path("/etc/web.config.yml")),
    "max_ledger_bytes": ("1000000", 65_536, 1_000_000),
    "max_series": ("10", 1, 10),
}


def test_there_is_an_example_for_every_variable():
    """Each setting that has variables is tried below."""
    assert set(EXAMPLES) == {row.field for row in SETTINGS if row.variables}


@pytest.mark.parametrize("field", EXAMPLES)
def test_a_variable_goes_before_the_default(field: str):
    """Each variable of a setting gives its value, and the first that is set counts."""
    text, _, wanted = EXAMPLES[field]
    for variable in ROWS[field].variables:
        assert getattr(from_env({variable: text}), field) == wanted
    if len(ROWS[field].variables) > 1:
        first, second = ROWS[field].variables
        assert getattr(from_env({first: text, second: "http://other:1"}), field) == wanted


@pytest.mark.parametrize("field", [field for field in EXAMPLES if ROWS[field].keyword])
def test_a_keyword_goes_before_the_variable(field: str):
    """An argument wins over the environment, and is what it would be without it."""
    text, keyword, wanted = EXAMPLES[field]
    both = getattr(from_env(dict.fromkeys(ROWS[field].variables, text), **{field: keyword}), field)
    assert both != wanted
    assert both == getattr(from_env(**{field: keyword}), field)


@pytest.mark.parametrize("field", EXAMPLES)
def test_an_empty_variable_is_none(field: str):
    """A variable that is empty or blank is as good as one that is not there."""
    for text in ("", "  "):
        assert from_env(dict.fromkeys(ROWS[field].variables, text)) == Settings()


def test_the_process_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch):
    """Without an environment of one's own the process's is read."""
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "9999")
    assert Settings.from_env().port == 9999


def test_the_name_of_the_service_comes_from_the_nearest_place():
    """The service's name: argument, argument's attributes, variable, variable's attributes, fallback."""
    places: list[tuple[str, dict[str, str], dict[str, Any]]] = [
        ("argument", {}, {"service_name": "argument"}),
        ("attributes", {}, {"resource_attributes": {"service.name": "attributes"}}),
        ("variable", {"OTEL_SERVICE_NAME": "variable"}, {}),
        ("in the variable", {"OTEL_RESOURCE_ATTRIBUTES": "service.name=in%20the%20variable"}, {}),
        ("fallback", {}, {"fallback_service_name": "fallback"}),
    ]
    environ: dict[str, str] = {}
    keywords: dict[str, Any] = {}
    for name, more_environ, more_keywords in reversed(places):
        environ |= more_environ
        keywords |= more_keywords
        found = from_env(environ, **keywords)
        assert found.service_name == name
        assert found.resource["service.name"] == name


def test_version_and_environment_come_from_the_resource_attributes():
    """Version and environment are what OTEL_RESOURCE_ATTRIBUTES says, unless an argument is given."""
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "service.version=1.4.0,deployment.environment.name=staging"}
    assert from_env(environ).service_version == "1.4.0"
    assert from_env(environ).environment == "staging"
    assert from_env(environ, environment="production").resource == {
        "service.name": "unknown_service",
        "service.version": "1.4.0",
        "deployment.environment.name": "production",
    }


def test_the_resource_has_nothing_for_what_is_not_known():
    """Without a version and an environment the resource has neither."""
    assert from_env().resource == {"service.name": "unknown_service"}


def test_resource_attributes_are_merged_key_by_key():
    """An operator's attributes stay beside the developer's, whose own win."""
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=p0, team=ops"}
    found = from_env(environ, resource_attributes={"team": "ml", "shard": 3})
    assert found.resource_attributes == {"k8s.pod.name": "p0", "team": "ml", "shard": 3}


KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(KEYS.filter(lambda key: "service.name" not in key), TEXTS, max_size=4))
def test_encoded_resource_attributes_are_read_back(attributes: dict[str, str]):
    """Whatever is percent-encoded into OTEL_RESOURCE_ATTRIBUTES is what the settings hold."""
    text = ",".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in attributes.items())
    assert from_env({"OTEL_RESOURCE_ATTRIBUTES": text}).resource_attributes == attributes


def test_the_mapping_that_was_given_is_copied():
    """Changing the attributes after the call changes no settings."""
    attributes = {"team": "ml"}
    found = from_env(resource_attributes=attributes)
    attributes["team"] = "web"
    assert found.resource_attributes == {"team": "ml"}


# --- Containers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", [".dockerenv", "run/.containerenv"])
def test_a_marker_file_tells_a_container(tmp_path: Path, marker: str):
    """Docker's and Podman's marker files are known; a machine without them is no container."""
    assert not in_container({}, tmp_path)
    (tmp_path / marker).parent.mkdir(exist_ok=True)
    (tmp_path / marker).touch()
    assert in_container({}, tmp_path)


def test_kubernetes_tells_a_container(tmp_path: Path):
    """A pod whose runtime leaves no marker file is known by Kubernetes' variable."""
    assert in_container({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)


def test_a_container_listens_everywhere_unless_told_where():
    """In a container the page would be hidden on 127.0.0.1, so it listens on all interfaces."""
    assert from_env(container=True).host == "0.0.0.0"
    assert from_env({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, container=None).host == "0.0.0.0"
    assert from_env(container=True, host="127.0.0.1").host == "127.0.0.1"
    assert from_env({"OTEL_EXPORTER_PROMETHEUS_HOST": "10.1.2.3"}, container=True).host == "10.1.2.3"


# --- Mistakes ---------------------------------------------------------------------------------------------

WRONG_ARGUMENTS: list[tuple[str, Any, type[Exception]]] = [
    ("service_name", "", ValueError),
    ("service_name", " ", ValueError),
    ("service_name", None, TypeError),
    ("service_version", 1.4, TypeError),
    ("environment", "", ValueError),
    ("resource_attributes", "team=ml", TypeError),
    ("resource_attributes", {"team": None}, TypeError),
    ("resource_attributes", {1: "ml"}, TypeError),
    ("resource_attributes", {" ": "ml"}, ValueError),
    ("disabled", "false", TypeError),
    ("disabled", 0, TypeError),
    ("host", "localhost:8001", ValueError),
    ("host", "http://localhost", ValueError),
    ("host", "local host", ValueError),
    ("host", None, TypeError),
    ("port", -1, ValueError),
    ("port", 65_536, ValueError),
    ("port", "8001", TypeError),
    ("port", 8001.0, TypeError),
    ("port", True, TypeError),
    ("start_server", 1, TypeError),
    ("start_monitoring", None, TypeError),
    ("metrics_exporter", "console", ValueError),
    ("metrics_exporter", "prometheus,none", ValueError),
    ("metrics_exporter", "", ValueError),
    ("metrics_exporter", None, TypeError),
    ("metrics_exporter", ["otlp", 1], TypeError),
    ("metrics_exporter", {"otlp": True}, TypeError),
    ("metric_export_interval_s", 0, ValueError),
    ("metric_export_interval_s", "60", TypeError),
    ("exemplar_filter", "sometimes", ValueError),
    ("exemplar_filter", None, TypeError),
    ("monitoring_interval", 0, ValueError),
    ("monitoring_interval", -5.0, ValueError),
    ("monitoring_interval", float("nan"), ValueError),
    ("monitoring_interval", float("inf"), ValueError),
    ("monitoring_interval", 10**400, ValueError),
    ("monitoring_interval", True, TypeError),
    ("monitoring_interval", None, TypeError),
    ("sources", "gpx", ValueError),
    ("sources", ["all", "host"], ValueError),
    ("state_dir", "numbers", ValueError),
    ("state_dir", "~/numbers", ValueError),
    ("state_dir", 7, TypeError),
    ("group", "", ValueError),
    ("group", 1, TypeError),
    ("gpus", "some", ValueError),
    ("gpus", 0, TypeError),
    ("prediction_energy", "true", TypeError),
    ("latency_window", 0, ValueError),
    ("drift_window", 91 * 86_400, ValueError),
    ("drift_samples", 0, ValueError),
    ("quality_window", "1h", TypeError),
    ("model_counts", 1, TypeError),
    ("receipt_key", 5, TypeError),
    ("page_process", "true", TypeError),
    ("page_process", 1, TypeError),
    ("web_config_file", "web.config.yml", ValueError),
    ("max_ledger_bytes", 1024, ValueError),
    ("max_ledger_bytes", 8.0e6, TypeError),
    ("max_series", 0, ValueError),
    ("max_series", 2e3, TypeError),
    ("metrics_path", "metrics", ValueError),
    ("metrics_path", "", ValueError),
    ("metrics_path", True, TypeError),
    ("metrics_path", "/metrics/{name}", ValueError),
    ("health_path", "/health?now", ValueError),
    ("request_timing_header", "X Time", ValueError),
    ("request_timing_header", "X-Time:", ValueError),
    ("request_timing_header", True, TypeError),
    ("instrumentation", "flask", ValueError),
    ("set_global", "yes", TypeError),
]


@pytest.mark.parametrize(("field", "value", "error"), WRONG_ARGUMENTS)
def test_a_wrong_argument_is_named_with_its_value_and_what_was_expected(field: str, value: Any, error: type[Exception]):
    """A mistake in the call is a TypeError or a ValueError that tells all there is to know."""
    said = f"{field} is {value!r}, expected {ROWS[field].expected}"
    for make in (from_env, Settings):
        with pytest.raises(error, match=f"^{re.escape(said)}$") as raised:
            make(**{field: value})
        assert type(raised.value) is error


def test_every_argument_has_a_wrong_value_above():
    """No argument takes everything."""
    assert {field for field, *_ in WRONG_ARGUMENTS} == {row.field for row in SETTINGS if row.keyword}


WRONG_VARIABLES = [
    ("OTEL_RESOURCE_ATTRIBUTES", "team", "key=value pairs"),
    ("OTEL_SDK_DISABLED", "1", "true or false"),
    ("OTEL_EXPORTER_PROMETHEUS_HOST", "localhost:8001", "without a port"),
    ("OTEL_EXPORTER_PROMETHEUS_PORT", "80o1", "a whole number from 0 to 65535"),
    ("OTEL_EXPORTER_PROMETHEUS_PORT", "65536", "a whole number from 0 to 65535"),
    ("OTEL_METRICS_EXPORTER", "console", "prometheus, otlp"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "http:// or https://"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1", "http:// or https://"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "0", "milliseconds"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "60s", "milliseconds"),
    ("OTEL_METRICS_EXEMPLAR_FILTER", "on", "trace_based, always_on or always_off"),
    ("OTEL_MLOPS_MONITORING_INTERVAL", "5s", "seconds"),
    ("OTEL_MLOPS_SOURCES", "hosts", "all, none"),
    ("OTEL_MLOPS_STATE_DIR", "state", "absolute"),
    ("OTEL_MLOPS_MAX_SERIES", "2e3", "a whole number from 1"),
]


@pytest.mark.parametrize(("variable", "text", "expected"), WRONG_VARIABLES)
def test_a_wrong_variable_is_named_with_its_text_and_what_was_expected(variable: str, text: str, expected: str):
    """A mistake in the environment names the variable and not the field behind it."""
    with pytest.raises(ValueError, match=f"^{variable} is {text!r}, expected .*{expected}".replace("[", r"\[")):
        from_env({variable: text})


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
def test_a_port_is_taken_or_refused_and_nothing_else(text: str):
    """Whatever stands in the variable of the port, it is a valid port, the default, or a ValueError."""
    found = outcome({"OTEL_EXPORTER_PROMETHEUS_PORT": text})
    if isinstance(found, Settings):
        assert found.port == int(text.strip() or "8001")
        assert 0 <= found.port <= 65_535
    else:
        assert type(found) is ValueError
        assert repr(text.strip()) in str(found)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.just(Path("/srv")),
    st.lists(st.text()), st.dictionaries(st.text(), st.one_of(st.none(), st.text())), st.just(object()),
)  # fmt: skip


@given(st.sampled_from([row for row in SETTINGS if row.keyword]), JUNK)
def test_an_argument_is_accepted_in_one_form_or_refused(row: Setting, value: Any):
    """Any value at all is kept in a form that is accepted again, or an error with the name."""
    found = outcome({}, **{row.field: value})
    if isinstance(found, Settings):
        assert dataclasses.replace(found) == found
    else:
        assert row.field in str(found)


def test_an_unknown_argument_is_a_type_error_with_a_suggestion():
    """A misspelt argument is a TypeError that names the one that was meant."""
    with pytest.raises(TypeError, match=r"^there is no setting 'prot'; did you mean port\?$"):
        from_env(prot=1)
    with pytest.raises(TypeError, match=r"^there is no setting 'zzz'$"):
        from_env(zzz=1)


def test_what_only_the_environment_sets_is_no_argument():
    """OTLP's endpoints are the exporter's to read: as an argument they would do nothing."""
    with pytest.raises(TypeError, match=f"^metrics_endpoint is no argument; set .* or {ENDPOINT}$"):
        from_env(metrics_endpoint="http://collector:4318")


def test_an_unknown_variable_of_ours_is_an_error_with_a_suggestion():
    """A misspelt OTEL_MLOPS_ variable is not passed over in silence."""
    with pytest.raises(
        ValueError, match=r"^there is no variable OTEL_MLOPS_SORCES; did you mean OTEL_MLOPS_SOURCES\?$"
    ):
        from_env({"OTEL_MLOPS_SORCES": "none"})
    with pytest.raises(ValueError, match=r"^there is no variable OTEL_MLOPS_PORT"):
        from_env({"OTEL_MLOPS_PORT": "8001"})


def test_variables_of_kubernetes_services_are_no_mistakes():
    """A Service named otel-mlops or otel-mlops-gateway beside the pod does not keep it from starting."""
    links = {
        f"{service}_{rest}": text
        for service in ("OTEL_MLOPS", "OTEL_MLOPS_GATEWAY")
        for rest, text in {
            "SERVICE_HOST": "10.0.0.7",
            "SERVICE_PORT": "8001",
            "SERVICE_PORT_METRICS": "8001",
            "PORT": "tcp://10.0.0.7:8001",
            "PORT_8001_TCP": "tcp://10.0.0.7:8001",
            "PORT_8001_TCP_PROTO": "tcp",
            "PORT_8001_TCP_PORT": "8001",
            "PORT_8001_TCP_ADDR": "10.0.0.7",
        }.items()
    }
    assert from_env(links) == Settings()


def test_variables_of_others_are_left_alone():
    """OpenTelemetry has many more variables, and they are none of ours."""
    assert from_env({"OTEL_BLRP_SCHEDULE_DELAY": "x", "OTEL_MLOP": "x", "PORT": "80"}) == Settings()


def test_page_and_health_have_different_paths():
    """Two routes of one path would hide one another."""
    with pytest.raises(ValueError, match=r"^metrics_path is '/health'"):
        from_env(metrics_path="/health")
    assert from_env(metrics_path=None, health_path=None).health_path is None


# --- Secrets, and what differs ----------------------------------------------------------------------------

SECRET = "s3cr3t"
SECRET_URLS = [
    f"https://user:{SECRET}@collector:4318/v1",
    f"https://collector/otlp/{SECRET}",
    f"https://collector/otlp?token={SECRET}",
    f"https://collector/otlp#{SECRET}",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_no_secret_of_an_endpoint_is_ever_shown(url: str):
    """A credential in OTLP's endpoint stands neither in the repr nor in the list of differences."""
    found = from_env({ENDPOINT: url, "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={SECRET}"})
    assert found.metrics_endpoint == url
    assert SECRET not in repr(found)
    difference = found.difference(Settings())
    assert difference == dict.fromkeys(
        ["metrics_endpoint", "traces_endpoint"], ("https://collector" + (":4318" if "@" in url else ""), None)
    )


@pytest.mark.parametrize("url", [url.replace("https", "grpc") for url in SECRET_URLS] + [f"me:{SECRET}@host:4317"])
def test_no_secret_stands_in_an_error(url: str):
    """An endpoint that is refused is named without what may be a credential."""
    with pytest.raises(ValueError, match=f"^{ENDPOINT} is '") as raised:
        from_env({ENDPOINT: url})
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_the_difference_has_both_values():
    """The fields that differ come with ours and theirs, and equal settings differ in nothing."""
    ours, theirs = from_env(port=9000, sources="none"), from_env(sources="none")
    assert ours.difference(theirs) == {"port": (9000, 8001)}
    assert ours.difference(dataclasses.replace(ours)) == {}


def test_settings_do_not_change():
    """Settings are frozen: what was checked stays."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        from_env().port = 1  # type: ignore[misc]
    assert len({from_env(), from_env(), from_env(port=1)}) == 2


@pytest.mark.parametrize("key", ["too short", "long enough, as it seems,short"])
def test_a_key_that_can_be_guessed_is_refused_without_being_shown(key: str):
    """A key of fewer than 16 characters is an error that does not print it, and no repr shows one."""
    with pytest.raises(ValueError, match=f"receipt_key is 'a text of {len(key)} characters', expected") as caught:
        Settings(receipt_key=key)
    assert key not in str(caught.value)
    assert "a key of some length" not in repr(Settings(receipt_key="a key of some length"))
