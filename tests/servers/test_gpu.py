"""GPUs of a pretended driver behind a real server: who reads them, what a loss and a hang leave of the page."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from otel_mlops.metrics import GPU_MIG_INFO, GPU_PROCESS_MEMORY, GPU_RECOVERY_ACTION, gpu
from tests.nvml.driver import LIBRARY, Control, FakeDriver, build
from tests.servers.service import Service, free_port, get, listens, running, until

SERVICE = """
    from fastapi import FastAPI
    from otel_mlops import configure_telemetry

    app = FastAPI(title="gpus")
    telemetry = configure_telemetry(app, monitoring_interval=0.5)
    model = telemetry.model("housing", version="v1")

    @app.get("/predict")
    def predict() -> float:
        with model.prediction() as prediction:
            prediction.values = 1.0
        return prediction.values
"""
EXAMPLES = Path(__file__).parents[2] / "examples"
WORKERS = ("--workers", "2")
STATED_AGE_S = 15.0
"""The age at which values of a source leave the page."""
MOST_SCRAPE_S = 1.0


@pytest.fixture
def control(tmp_path: Path) -> Control:
    """Tells the driver of the running service what happens."""
    found = Control(tmp_path / "orders")
    found.write()
    return found


@pytest.fixture
def gpus(request: pytest.FixtureRequest, tmp_path: Path, control: Control) -> Iterator[Service]:
    """A service of two workers on a machine with two GPUs."""
    driver = FakeDriver(build(request.config.cache.mkdir("nvml")))
    environment = driver.environment(gpus=2, realtime=True, control=control)
    told = {name: environment[name] for name in environment if name.startswith(("FAKE_NVML", "LD_LIBRARY"))}
    with running(SERVICE, tmp_path, arguments=WORKERS, **told) as service:
        until(lambda: listens(service.page_port))
        until(lambda: value(service, "gpu_up", gpu_id="1") == 1)
        yield service


def samples(service: Service, prefix: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The samples of a page whose name begins so."""
    families = text_string_to_metric_families(get(service.page_url)[0])
    found = (sample for family in families for sample in family.samples if sample.name.startswith(prefix))
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}


def value(service: Service, name: str, **labels: str) -> float | None:
    """The value of the sample that carries these labels; None if none does."""
    found = (
        number for (each, has), number in samples(service, name).items() if each == name and labels.items() <= set(has)
    )
    return next(found, None)


def names(service: Service, gpu_id: str) -> set[str]:
    """The names of what the page has of a GPU."""
    return {name for name, has in samples(service, "gpu_") if ("gpu_id", gpu_id) in has}


def has_open(process: psutil.Process) -> bool:
    """Whether a process has the driver's library in its memory."""
    return LIBRARY in Path(f"/proc/{process.pid}/maps").read_text()


def test_the_gpus_are_read_by_the_process_of_the_page_alone(gpus: Service) -> None:
    """Each value of two GPUs stands on the page of two workers once, and no worker has opened the driver."""
    until(lambda: value(gpus, "gpu_busy_seconds_total", gpu_id="0"))
    assert value(gpus, "gpu_utilization_percent", gpu_id="0") is not None
    wanted = {row.page_name for row in gpu.GPU} - {
        GPU_PROCESS_MEMORY.page_name,  # no worker computes on a GPU
        GPU_RECOVERY_ACTION.page_name if value(gpus, "gpu_recovery_action", gpu_id="0") is None else "",
        "gpu_fan_speed_ratio",  # the other one has it
        "gpu_temperature_limit_celsius",
    }
    until(lambda: wanted - {"gpu_xid_last_timestamp_seconds"} <= names(gpus, "0"))
    assert GPU_MIG_INFO.page_name not in names(gpus, "0")
    readers = [process for process in psutil.Process(gpus.process.pid).children(recursive=True) if has_open(process)]
    assert [process.cmdline()[-2:] for process in readers] == [["otel-mlops-page", "gpus"]]


def test_a_gpu_that_is_lost_leaves_the_other_whole(gpus: Service, control: Control) -> None:
    """It has gpu_up 0 and nothing else that is read, the other all that it had; when it answers again all is back."""
    until(lambda: "gpu_energy_joules_total" in names(gpus, "0"))
    before = names(gpus, "0")
    control.write("lost:1", "xid:0:79")
    until(lambda: value(gpus, "gpu_up", gpu_id="1") == 0)
    assert before <= names(gpus, "0")
    assert value(gpus, "gpu_utilization_percent", gpu_id="1") is None
    assert value(gpus, "gpu_power_usage_watts", gpu_id="1") is None
    until(lambda: value(gpus, "gpu_xid_errors_total", gpu_id="0", xid="79") == 1)
    control.write()
    until(lambda: value(gpus, "gpu_up", gpu_id="1") == 1)
    until(lambda: value(gpus, "gpu_power_usage_watts", gpu_id="1") is not None)


def test_a_driver_that_hangs_delays_neither_the_page_nor_another_source_nor_the_exit(
    gpus: Service, control: Control
) -> None:
    """Scrapes stay quick, the machine's values stay fresh, the GPUs' leave when they are too old, and all ends."""
    control.write("hang:nvmlDeviceGetUtilizationRates:600000")
    slowest_s = 0.0

    def is_gone() -> bool:
        nonlocal slowest_s
        began = time.monotonic()
        gone = not samples(gpus, "gpu_utilization")
        slowest_s = max(slowest_s, time.monotonic() - began)
        return gone

    until(lambda: value(gpus, "otel_mlops_source_up", source="nvidia") == 0)
    until(is_gone, STATED_AGE_S + 30)
    assert slowest_s < MOST_SCRAPE_S
    assert (value(gpus, "otel_mlops_source_age_seconds", source="nvidia") or 0) >= STATED_AGE_S
    assert value(gpus, "otel_mlops_source_up", source="host") == 1
    until(lambda: (value(gpus, "otel_mlops_source_age_seconds", source="host") or 99) < 2)
    # The block's end has it stop in time.


def test_the_example_tells_what_a_prediction_costs(request: pytest.FixtureRequest) -> None:
    """gpu_batch.py says the power of both GPUs, and the energy of its calls; what it cost is of the size it must be."""
    driver = FakeDriver(build(request.config.cache.mkdir("nvml")))
    environment = driver.environment(gpus=2, realtime=True)
    environment |= {
        "OTEL_MLOPS_PREDICTION_ENERGY": "true",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(free_port()),
        "SECONDS_TO_RUN": "25",
    }
    done = subprocess.run(
        [sys.executable, EXAMPLES / "gpu_batch.py"],
        env=environment, capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    samples = {
        sample.name: sample.value for family in text_string_to_metric_families(done.stdout) for sample in family.samples
    }
    assert samples["gpu_power_usage_watts"] > 0
    calls, joules = samples["prediction_energy_joules_count"], samples["prediction_energy_joules_sum"]
    # The driver draws some 470 W, and the calls take 8 to 32 ms each, one after the other.
    assert 470 * 0.008 < joules / calls < 470 * 0.032 * 3
