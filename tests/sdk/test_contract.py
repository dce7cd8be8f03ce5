"""The private names of the SDK that ours stands on: a release that changes one fails here, by its name."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import attributes as sdk_attributes
from opentelemetry import context as otel_context
from opentelemetry import metrics as api
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.metrics import _internal as api_internal
from opentelemetry.metrics._internal import instrument as api_instrument
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics._internal import (
    _view_instrument_match,
    instrument,
    measurement_consumer,
    metric_reader_storage,
)
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader
from opentelemetry.sdk.metrics.view import DefaultAggregation, ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry

import otel_mlops.sdk

SOURCES = sorted(Path(next(iter(otel_mlops.sdk.__path__))).glob("*.py"))


@pytest.fixture(scope="module")
def stock() -> Any:
    """The stock SDK at work: a provider with a reader, a meter and one instrument of each sort."""
    reader = InMemoryMetricReader()
    provider = sdk.MeterProvider([reader], Resource({}), shutdown_on_exit=True)
    meter = provider.get_meter("m")
    counter = meter.create_counter("c")
    observable = meter.create_observable_gauge("o", [lambda _: [Observation(1)]])
    counter.add(1)
    reader.collect()
    consumer = provider._measurement_consumer
    everything = SimpleNamespace(
        reader=reader,
        provider=provider,
        meter=meter,
        counter=counter,
        observable=observable,
        consumer=consumer,
        storage=consumer._reader_storages[reader],
        view=View(
            instrument_name="c", name="n", description="d", attribute_keys={"a"}, aggregation_cardinality_limit=5
        ),
        page=PrometheusMetricReader(registry=CollectorRegistry()),
    )
    yield everything
    provider.shutdown()


def parameters(function: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters."""
    return list(inspect.signature(function).parameters)


def is_lock(value: object) -> bool:
    """Whether something is a lock that a reentrant one can stand in for."""
    return isinstance(value, type(threading.Lock()) | type(threading.RLock()))


CONTRACT: dict[str, Callable[[Any], object]] = {
    # What the provider takes from the stock one.
    "MeterProvider._sdk_config": lambda s: s.provider._sdk_config.resource == Resource({}),
    "MeterProvider._sdk_config.views": lambda s: s.provider._sdk_config.views == (),
    "MeterProvider._sdk_config.exemplar_filter": lambda s: isinstance(
        s.provider._sdk_config.exemplar_filter, sdk.TraceBasedExemplarFilter
    ),
    "MeterProvider._measurement_consumer": lambda s: isinstance(
        s.provider._measurement_consumer, measurement_consumer.SynchronousMeasurementConsumer
    ),
    "MeterProvider._metric_readers": lambda s: list(s.provider._metric_readers) == [s.reader],
    "MeterProvider._all_metric_readers": lambda s: s.reader in s.provider._all_metric_readers,
    "MeterProvider._all_metric_readers_lock": lambda s: is_lock(s.provider._all_metric_readers_lock),
    "MeterProvider._meters": lambda s: list(s.provider._meters.values()) == [s.meter],
    "MeterProvider._meter_lock": lambda s: is_lock(s.provider._meter_lock),
    "MeterProvider._lock": lambda s: is_lock(s.provider._lock),
    "MeterProvider._disabled": lambda s: s.provider._disabled is False,
    "MeterProvider._shutdown": lambda s: s.provider._shutdown is False,
    "MeterProvider._atexit_handler": lambda s: s.provider._atexit_handler == s.provider.shutdown,
    "MeterProvider._handle_fork": lambda s: parameters(s.provider._handle_fork) == [],
    "MeterProvider._apply_meter_configurator": lambda s: (
        s.provider._apply_meter_configurator(s.meter._instrumentation_scope).is_enabled
    ),
    "MeterProvider.__init__": lambda _: (
        parameters(sdk.MeterProvider)
        == ["metric_readers", "resource", "exemplar_filter", "shutdown_on_exit", "views", "_meter_configurator"]
    ),
    # Meters and instruments.
    "Meter.__init__": lambda _: (
        parameters(sdk.Meter) == ["instrumentation_scope", "measurement_consumer", "_meter_config"]
    ),
    "Meter._instrumentation_scope": lambda s: s.meter._instrumentation_scope.name == "m",
    "Meter._measurement_consumer": lambda s: s.meter._measurement_consumer is s.consumer,
    "Meter._meter_config": lambda s: s.meter._meter_config.is_enabled,
    "Meter._is_enabled": lambda s: s.meter._is_enabled() is True,
    "Meter._set_meter_config": lambda s: parameters(s.meter._set_meter_config) == ["meter_config"],
    "Meter._instrument_registration_lock": lambda s: is_lock(s.meter._instrument_registration_lock),
    "Meter._instrument_ids_lock": lambda s: is_lock(s.meter._instrument_ids_lock),
    "Meter._instrument_id_instrument": lambda s: s.counter in s.meter._instrument_id_instrument.values(),
    "Meter._register_instrument": lambda s: (
        (status := s.meter._register_instrument("c", instrument._Counter, "", "")).already_registered
        and not status.conflict
        and s.meter._instrument_id_instrument[status.instrument_id] is s.counter
    ),
    "_Synchronous.__init__": lambda _: (
        parameters(instrument._Counter.__init__)
        == ["self", "name", "instrumentation_scope", "measurement_consumer", "unit", "description", "_meter_config"]
    ),
    "_Counter": lambda s: type(s.counter) is instrument._Counter and issubclass(instrument._Counter, sdk.Counter),
    "_UpDownCounter": lambda _: issubclass(instrument._UpDownCounter, sdk.UpDownCounter),
    "_Histogram": lambda _: issubclass(instrument._Histogram, sdk.Histogram),
    "_Gauge": lambda _: issubclass(instrument._Gauge, sdk._Gauge) and issubclass(sdk._Gauge, api._Gauge),
    "_ObservableCounter": lambda _: issubclass(instrument._ObservableCounter, sdk.ObservableCounter),
    "_ObservableUpDownCounter": lambda _: issubclass(instrument._ObservableUpDownCounter, sdk.ObservableUpDownCounter),
    "_ObservableGauge": lambda s: type(s.observable) is instrument._ObservableGauge,
    "_NoOpGauge": lambda _: issubclass(api._NoOpGauge, api._Gauge),
    "_Asynchronous._callbacks": lambda s: (
        len(s.observable._callbacks) == 1
        and [each.value for each in s.observable.callback(CallbackOptions())] == [1]
        and s.observable._callbacks.append(lambda _: [Observation(2)]) is None
        and [each.value for each in s.observable.callback(CallbackOptions())] == [1, 2]
    ),
    "_ProxyInstrument": lambda _: all(
        issubclass(each, api_instrument._ProxyInstrument)
        for each in (
            api_instrument._ProxyCounter,
            api_instrument._ProxyUpDownCounter,
            api_instrument._ProxyHistogram,
            api_instrument._ProxyGauge,
        )
    ),
    "_ProxyInstrument._real_instrument": lambda _: api_instrument._ProxyCounter("c")._real_instrument is None,
    # The consumer and the storage of observables.
    "SynchronousMeasurementConsumer.__init__": lambda _: (
        parameters(measurement_consumer.SynchronousMeasurementConsumer) == ["sdk_config", "metric_readers"]
    ),
    "SynchronousMeasurementConsumer._lock": lambda s: is_lock(s.consumer._lock),
    "SynchronousMeasurementConsumer._sdk_config": lambda s: s.consumer._sdk_config is s.provider._sdk_config,
    "SynchronousMeasurementConsumer._reader_storages": lambda s: list(s.consumer._reader_storages) == [s.reader],
    "SynchronousMeasurementConsumer._async_instruments": lambda s: s.consumer._async_instruments == [s.observable],
    "MetricReaderStorage.__init__": lambda _: (
        parameters(metric_reader_storage.MetricReaderStorage)
        == [
            "sdk_config",
            "instrument_class_temporality",
            "instrument_class_aggregation",
            "instrument_class_cardinality_limit",
        ]
    ),
    "MetricReaderStorage.consume_measurement": lambda s: (
        parameters(s.storage.consume_measurement) == ["measurement", "should_sample_exemplar"]
    ),
    "MetricReaderStorage._instrument_view_instrument_matches": lambda s: (
        list(s.storage._instrument_view_instrument_matches) == [s.counter, s.observable]
    ),
    "_ViewInstrumentMatch._attributes_aggregation": lambda s: all(
        len(match._attributes_aggregation) == 1
        for matches in s.storage._instrument_view_instrument_matches.values()
        for match in matches
    ),
    "MetricReaderStorage.collect": lambda s: s.storage.collect() is not None,
    # Readers and views.
    "MetricReader._collect": lambda s: s.reader._collect == s.consumer.collect,
    "MetricReader._set_collect_callback": lambda s: parameters(s.reader._set_collect_callback) == ["func"],
    "MetricReader._set_meter_provider": lambda s: parameters(s.page._set_meter_provider) == ["meter_provider"],
    "MetricReader._receive_metrics": lambda _: (
        parameters(MetricReader._receive_metrics) == ["self", "metrics_data", "timeout_millis", "kwargs"]
    ),
    "MetricReader._instrument_class_temporality": lambda s: (
        set(s.reader._instrument_class_temporality)
        == {
            instrument._Counter,
            instrument._UpDownCounter,
            instrument._Histogram,
            instrument._Gauge,
            instrument._ObservableCounter,
            instrument._ObservableUpDownCounter,
            instrument._ObservableGauge,
        }
    ),
    "MetricReader._instrument_class_aggregation": lambda s: isinstance(
        s.reader._instrument_class_aggregation[instrument._Counter], DefaultAggregation
    ),
    "MetricReader._instrument_class_cardinality_limit": lambda s: (
        s.reader._instrument_class_cardinality_limit[instrument._Counter] == 2000
    ),
    "View._match": lambda s: s.view._match(s.counter) and not s.view._match(s.observable),
    "View._name": lambda s: s.view._name == "n",
    "View._description": lambda s: s.view._description == "d",
    "View._attribute_keys": lambda s: s.view._attribute_keys == {"a"},
    "View._aggregation": lambda s: isinstance(s.view._aggregation, DefaultAggregation),
    "View._aggregation_cardinality_limit": lambda s: s.view._aggregation_cardinality_limit == 5,
    "ExplicitBucketHistogramAggregation._boundaries": lambda _: (
        ExplicitBucketHistogramAggregation([1, 2])._boundaries == [1, 2]
        and ExplicitBucketHistogramAggregation()._boundaries is None
    ),
    # Attributes.
    "_clean_attribute_value": lambda _: (
        sdk_attributes._clean_attribute_value({"a": [1, {"b": True}], 5: None, "": 1}, None)
        == {"a": (1, {"b": True}), "5": None}
    ),
    "_hash_attributes": lambda _: (
        len({_view_instrument_match._hash_attributes({"k": v}) for v in (1, True, 1.0, "1", b"1", (1,), (True,))}) == 7
        and _view_instrument_match._hash_attributes({"a": 1, "b": 2})
        == _view_instrument_match._hash_attributes({"b": 2, "a": 1})
    ),
    "_OVERFLOW_ATTRIBUTES": lambda _: _view_instrument_match._OVERFLOW_ATTRIBUTES == {"otel.metric.overflow": True},
    # The API's global provider, and the current context.
    "_METER_PROVIDER": lambda _: "_METER_PROVIDER" in vars(api_internal),
    "_PROXY_METER_PROVIDER": lambda _: (
        parameters(api_internal._PROXY_METER_PROVIDER.on_set_meter_provider) == ["meter_provider"]
    ),
    "_RUNTIME_CONTEXT": lambda _: isinstance(otel_context._RUNTIME_CONTEXT._current_context, ContextVar),
    "_RUNTIME_CONTEXT._current_context": lambda _: (
        otel_context._RUNTIME_CONTEXT._current_context.get() is otel_context.get_current()
        or otel_context._RUNTIME_CONTEXT._current_context.get() == otel_context.get_current()
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONTRACT)
def test_the_sdk_has_this_name_and_it_means_the_same(stock: Any, name: str):
    """A private name that ours stands on is there and does what ours relies on."""
    assert CONTRACT[name](stock)


def test_every_private_name_that_is_used_has_a_contract():
    """No file of the engine uses a private name of the SDK that is not in the list above."""
    trees = {path.name: ast.parse(path.read_text()) for path in SOURCES}
    own: set[str] = set()
    used: dict[str, str] = {}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.update([node.attr] if ast.unparse(node.value) == "self" else [])
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                own.add(node.value)  # slots
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                used.setdefault(node.attr, file)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("opentelemetry"):
                used.update({alias.name: file for alias in node.names})
    named = {part for name in CONTRACT for part in name.split(".")}
    private = {name: file for name, file in used.items() if name.startswith("_") and not name.startswith("__")}
    assert {name: file for name, file in private.items() if name not in own | named | {"_internal"}} == {}


def test_collection_asks_the_consumer_with_reader_and_time():
    """A reader collects by calling what it was given with itself and the time, and hands on what comes."""
    asked: list[Any] = []
    reader = InMemoryMetricReader()
    reader._set_collect_callback(lambda *arguments, **named: asked.append((arguments, named)))
    reader.collect(timeout_millis=7)
    assert asked == [((reader,), {"timeout_millis": 7})]


def test_a_provider_registers_readers_consumer_and_collect(stock: Any):
    """The stock provider makes its parts before it registers its fork hook, as ours relies on."""
    source = inspect.getsource(sdk.MeterProvider.__init__)
    assert source.index("self._sdk_config =") < source.index("self._meters") < source.index("register_at_fork")
    assert "WeakMethod(self._handle_fork)" in source


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork: run this on Linux or macOS")
def test_the_fork_hook_is_the_overridden_method():
    """What runs in a child is the subclass's _handle_fork."""
    program = (
        "import os, sys\n"
        "from opentelemetry.sdk.metrics import MeterProvider\n"
        "class Ours(MeterProvider):\n"
        "    def _handle_fork(self):\n"
        "        print('ours', flush=True)\n"
        "provider = Ours(shutdown_on_exit=False)\n"
        "pid = os.fork()\n"
        "pid and os.waitpid(pid, 0)\n"
        "os._exit(0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "ours\n"


def test_the_tested_minor_version_is_the_installed_one():
    """The SDK that is installed is of the minor version that pyproject.toml allows."""
    from importlib.metadata import requires, version

    from packaging.requirements import Requirement

    wanted = [Requirement(each) for each in requires("otel-mlops") or () if "extra" not in each]
    for requirement in wanted:
        if requirement.name.startswith("opentelemetry-"):
            assert requirement.specifier.contains(version(requirement.name), prereleases=True), requirement
