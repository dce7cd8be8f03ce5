"""otel_mlops.testing: what users test their own services with."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import pytest
from opentelemetry import metrics as api

from otel_mlops import get_telemetry
from otel_mlops.configure import current
from otel_mlops.metrics import HARDWARE_TEMPERATURE
from otel_mlops.sources.sampler import Sample
from otel_mlops.testing import collect, fresh_telemetry


def test_a_fresh_telemetry_is_found_by_the_code_under_test():
    """Inside the block get_telemetry() gives the fresh one, and after it what there was before."""
    before = current.telemetry
    with fresh_telemetry() as outer:
        assert get_telemetry() is outer
        with fresh_telemetry() as inner:
            assert get_telemetry() is inner
        assert get_telemetry() is outer
        assert inner.is_shut_down
    assert current.telemetry is before


def test_a_block_that_fails_leaves_nothing():
    """Whatever is raised in the block, the telemetry is shut down and the one of before is back."""
    before = current.telemetry
    telemetries = []

    def fail() -> None:
        with fresh_telemetry() as fresh:
            telemetries.append(fresh)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert telemetries[0].is_shut_down
    assert current.telemetry is before


def test_a_fresh_telemetry_touches_nothing(monkeypatch):
    """No thread, port or global provider, and no setting from the environment, though that says otherwise."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "9999")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "of the environment")
    monkeypatch.setenv("OTEL_MLOPS_NO_SUCH_THING", "1")
    threads, provider = threading.active_count(), api.get_meter_provider()
    with fresh_telemetry() as telemetry:
        telemetry.start()
        telemetry.record_error("ValueError", "/")
        assert collect(telemetry).value("errors_total") == 1
        assert collect(telemetry).labels("target_info")[0]["service_name"] == "test"
        assert telemetry.settings.port == 8001
        assert telemetry._leading.server._listener is None
        assert api.get_meter_provider() is provider
    assert threading.active_count() <= threads + 1  # the last of the sampler's may be on its way out


def test_settings_are_those_of_configure_telemetry():
    """Every setting can be given, and a mistake is refused as it is by configure_telemetry()."""
    with fresh_telemetry(max_series=7, environment="staging") as telemetry:
        assert (telemetry.settings.max_series, telemetry.settings.environment) == (7, "staging")
    with pytest.raises(TypeError, match="no_such_setting"), fresh_telemetry(no_such_setting=1):
        pass
    with pytest.raises(ValueError, match="port is -1"), fresh_telemetry(port=-1):
        pass


def test_sources_stand_for_the_drivers():
    """What a source yields is on the page after sample(), and only then."""
    temperature_c = [40.0]

    def sensors():
        return [Sample(HARDWARE_TEMPERATURE, temperature_c[0], {"component": "cpu"})]

    with fresh_telemetry(sources={"sensors": sensors}) as telemetry:
        assert "hardware_temperature_celsius" not in collect(telemetry).names()
        telemetry.sample()
        assert collect(telemetry).value("hardware_temperature_celsius", component="cpu") == 40.0
        temperature_c[0] = 60.0
        assert collect(telemetry).value("hardware_temperature_celsius") == 40.0
        telemetry.sample()
        assert collect(telemetry).value("hardware_temperature_celsius") == 60.0
        assert {"source": "sensors"} in collect(telemetry).labels("otel_mlops_source_up")


def test_samples_are_summed_over_the_labels_that_are_not_given():
    """value() adds up the samples that carry the given labels; with all of them it is the one sample's."""
    with fresh_telemetry() as telemetry:
        for method, status_code in (("GET", 200), ("GET", 500), ("POST", 200)):
            telemetry.record_request(method, "/", status_code, 0.25)
        page = collect(telemetry)
    assert page.value("api_requests_total") == 3
    assert page.value("api_requests_total", method="GET") == 2
    assert page.value("api_requests_total", method="GET", status_code="500", endpoint="/") == 1
    assert page.value("api_request_duration_seconds_bucket", le="0.25") == 3
    assert {labels["status_code"] for labels in page.labels("api_requests_total")} == {"200", "500"}
    assert {"api_requests_total", "api_request_duration_seconds_count"} <= page.names()


def test_what_is_not_there_is_an_error_that_says_what_is():
    """Asking for a sample that is missing names the labels that there are, so a typing error is seen at once."""
    with fresh_telemetry() as telemetry:
        telemetry.record_error("ValueError", "/predict")
        page = collect(telemetry)
    with pytest.raises(KeyError, match=r"no sample errors_total with .*'KeyError'.*there is .*'ValueError'"):
        page.value("errors_total", error_type="KeyError")
    with pytest.raises(KeyError, match="under that name there is nothing"):
        page.value("erors_total")
    assert page.labels("erors_total") == []


def test_samples_are_a_mapping():
    """All samples can be gone through, by name and labels."""
    with fresh_telemetry() as telemetry:
        telemetry.record_error("ValueError", "/")
        page = collect(telemetry)
    key = ("errors_total", frozenset({("error_type", "ValueError"), ("endpoint", "/")}))
    assert page[key] == 1
    assert dict(page)[key] == 1
    assert len(page) == len(list(page)) > 1
    assert page.get(("errors_total", frozenset())) is None


def test_the_fixture_works_as_the_documentation_says(tmp_path):
    """Imported into conftest.py it gives each test a telemetry of its own."""
    (tmp_path / "conftest.py").write_text("from otel_mlops.testing import telemetry\n__all__ = ['telemetry']\n")
    (tmp_path / "test_service.py").write_text(
        textwrap.dedent("""
            import pytest
            from otel_mlops import get_telemetry
            from otel_mlops.testing import collect

            @pytest.mark.parametrize("times", [1, 2])
            def test_errors(telemetry, times):
                for _ in range(times):
                    get_telemetry().record_error("ValueError", "/predict")
                assert collect(telemetry).value("errors_total", endpoint="/predict") == times
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_it_needs_no_pytest():
    """Under another test runner, without pytest installed, fresh_telemetry() and collect() work all the same."""
    script = """
        import sys
        from importlib import util
        find_spec = util.find_spec
        util.find_spec = lambda name, *more: None if name == "pytest" else find_spec(name, *more)
        sys.modules["pytest"] = None
        from otel_mlops.testing import collect, fresh_telemetry
        with fresh_telemetry() as telemetry:
            telemetry.record_error("ValueError", "/")
            print(collect(telemetry).value("errors_total"))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("1.0\n", "")
