"""Energy per prediction over real processes: workers and leaders that are killed, and a GPU whose power is known."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from otel_mlops.energy import KEPT
from otel_mlops.sdk.group import group_of
from otel_mlops.settings import Settings
from otel_mlops.telemetry import Telemetry
from tests.nvml.driver import FakeDriver
from tests.sdk.workers import state_folder
from tests.servers.fleet import serve
from tests.servers.service import CLEAN, until

WAIT_S = 60.0


def used(at: float) -> float:
    """What the GPU has used until a time: 200, 300, 400, 200, … watts, another each second."""
    second, part = divmod(at, 1.0)
    rounds, rest = divmod(second, 3.0)
    return rounds * 900.0 + (0.0, 200.0, 500.0)[int(rest)] + part * (200.0 + 100.0 * rest)


WORKER = """
    import json, sys, threading, time
    from pathlib import Path

    from otel_mlops.metrics import GPU_ENERGY, GPU_INFO, GPU_POWER_USAGE
    from otel_mlops.settings import Settings
    from otel_mlops.sources.sampler import Sample
    from otel_mlops.telemetry import Telemetry
    from tests.servers.test_energy import used

    order = json.loads(sys.argv[1])
    folder, name = Path(order["folder"]), order["name"]
    asked = said = 0.0

    def read():
        global asked, said
        (folder / "leader.new").write_text(name)
        (folder / "leader.new").rename(folder / "leader")
        now = time.perf_counter()
        if now - asked >= 4.9:
            asked, said = now, used(now)
        labels = {"gpu_id": "0", "gpu_name": "H100"}
        yield Sample(GPU_INFO, 1.0, {**labels, "gpu_uuid": "GPU-0"})
        yield Sample(GPU_POWER_USAGE, used(now) - used(now - 1.0), labels)
        yield Sample(GPU_ENERGY, said, labels)

    telemetry = Telemetry(Settings(**order["settings"]), sources={"nvidia": read})
    calls = 0

    def predict(rows):
        global calls
        while not (folder / "stop").exists():
            with telemetry.model("energy", version=name).prediction() as prediction:
                time.sleep(0.001 * (1 + calls % 40))
                prediction.values = [1.0] * rows
            with lock:
                calls += 1

    lock = threading.Lock()
    with telemetry:
        print("started", flush=True)
        sys.stdin.readline()
        threads = [threading.Thread(target=predict, args=(rows,)) for rows in (1, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(calls, flush=True)
        sys.stdin.readline()
"""


class Workers:
    """Processes of one group by their names."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder = folder
        self.settings = Settings(
            service_name="energy", group="energy", state_dir=state, start_server=False, prediction_energy=True
        )
        self.running: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str) -> None:
        """Start one, and wait until it has started."""
        named = {"service_name": "energy", "group": "energy", "state_dir": str(self.settings.state_dir)}
        named |= {"start_server": False, "prediction_energy": True}  # type: ignore[dict-item]
        order = json.dumps({"folder": str(self.folder), "name": name, "settings": named})
        script = self.folder / "worker.py"
        script.write_text("\n".join(line[4:] for line in WORKER.splitlines()))
        self.running[name] = subprocess.Popen(
            [sys.executable, str(script), order],
            env=CLEAN | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent.parent), *sys.path])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.hear(name) == "started"

    def hear(self, name: str) -> str:
        """What one says next."""
        return self.running[name].stdout.readline().strip()

    def tell(self, name: str) -> None:
        """Let one go on."""
        self.running[name].stdin.write("go\n")
        self.running[name].stdin.flush()

    def kill(self, name: str) -> None:
        """End one by SIGKILL."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            pipe.close()

    @property
    def leader(self) -> str:
        """Who reads the GPU."""
        path = self.folder / "leader"
        return path.read_text() if path.exists() else ""

    def mark(self) -> list[float] | None:
        """When the energy was shared out last, and what the GPU had used by then."""
        kept: Any = group_of(self.settings).load(KEPT)
        return None if kept is None else kept["marks"].get("GPU-0")

    def is_shared_out(self, at: float) -> bool:
        """Whether the energy is shared out up to a time."""
        mark = self.mark()
        return mark is not None and mark[0] > at


@contextmanager
def workers(folder: Path) -> Iterator[Workers]:
    """Processes that have ended after the block."""
    with state_folder() as state:
        found = Workers(folder, state)
        try:
            yield found
        finally:
            for name in list(found.running):
                found.kill(name)


@contextmanager
def page_of(settings: Settings) -> Iterator[Callable[[str], dict[str, float]]]:
    """What the group's page says under a name, by the model's version: of one that looks on, and never leads."""
    looking_on = Telemetry(settings, sources={})

    def read(name: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for line in looking_on.page().body.decode().splitlines():
            if line.startswith(name):
                version = line.partition('model_version="')[2].partition('"')[0]
                found[version] = found.get(version, 0.0) + float(line.rpartition(" ")[2])
        return found

    try:
        yield read
    finally:
        looking_on.shutdown()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no groups of workers here: run this on Linux or macOS")
def test_the_energy_is_exact_though_a_worker_and_the_leader_are_killed(tmp_path: Path):
    """What predictions and idleness have used is what the GPU has used; a survivor's calls have each got their part."""
    with workers(tmp_path) as group, page_of(group.settings) as page:
        for name in ("one", "two", "three", "four"):
            group.start(name)
        until(group.mark, WAIT_S)
        first = group.mark()
        for name in group.running:
            group.tell(name)
        until(lambda: group.is_shared_out(first[0]), WAIT_S)
        victim = min(set(group.running) - {group.leader})
        group.kill(victim)
        killed_at = time.perf_counter()
        until(lambda: group.is_shared_out(killed_at), WAIT_S)
        reading = Steady(lambda: (group.mark(), page("prediction_energy_joules_sum"), page("gpu_idle_energy")))
        until(reading, WAIT_S)  # not in the middle of recording, which test_energy.py in the folder above is about
        leader = group.leader
        group.kill(leader)
        killed_at = time.perf_counter()
        until(lambda: group.is_shared_out(killed_at), WAIT_S)
        assert group.leader in group.running

        (tmp_path / "stop").touch()
        calls = {name: int(group.hear(name)) for name in group.running}
        stopped_at = time.perf_counter()
        until(lambda: group.is_shared_out(stopped_at), WAIT_S)
        reading.left = reading.times
        until(reading, WAIT_S)
        mark, predicted, idle = reading.value
        total = math.fsum([*predicted.values(), *idle.values()])
        assert total == pytest.approx(mark[1] - first[1], rel=1e-9)
        counts = page("prediction_energy_joules_count")
        assert {name: counts[name] for name in calls} == calls
        assert min(predicted[victim], predicted[leader]) > 0.0
        assert math.fsum(predicted.values()) > 0.5 * total, "the GPU was in use most of the time"
        intervals = [path.stem for path in group_of(group.settings).folder.glob("*.intervals")]
        assert len(intervals) == len(group.running)


class Steady:
    """Reads something again and again, and is true once it has stayed the same for a while: it is not in the making."""

    def __init__(self, read: Callable[[], Any], times: int = 6) -> None:
        self.read = read
        self.times = self.left = times
        self.value: Any = None

    def __call__(self) -> bool:
        before, self.value = self.value, self.read()
        self.left = self.left - 1 if self.value == before else self.times
        return self.left <= 0


def test_a_service_behind_a_server_has_its_energy_on_its_page(tmp_path: Path, nvml: FakeDriver):
    """The page's own process shares out among the calls of all workers just what the driver has counted."""
    found = nvml.environment(gpus=1, realtime=True)
    environment = {name: text for name, text in found.items() if name.startswith(("FAKE_NVML_", "LD_LIBRARY_PATH"))}
    with serve("uvicorn", tmp_path, workers=2, OTEL_MLOPS_PREDICTION_ENERGY="true", **environment) as fleet:

        def mark() -> list[float] | None:
            kept = [json.loads(path.read_text()) for path in fleet.place.state.rglob(KEPT)]
            return next(iter(kept[0]["marks"].values()), None) if kept else None

        until(mark)
        first = mark()
        assert fleet.page_process() not in fleet.worker_pids()
        workers = fleet.worker_pids()
        for pid in [*workers] * 4:
            fleet.ask("/linger", of=pid)
        stopped_at = time.perf_counter()
        until(lambda: mark()[0] > stopped_at)
        names = "prediction_energy_joules_sum", "gpu_idle_energy_joules_total"
        reading = Steady(lambda: (mark(), *map(fleet.page().total, names)))
        until(reading)
        last, predicted, idle = reading.value
        assert predicted + idle == pytest.approx(last[1] - first[1], rel=1e-9)
        assert predicted == pytest.approx(8 * 0.2 * 350.5, rel=0.25), "eight calls of a fifth of a second, alone"
        assert fleet.page().of("prediction_energy_joules_count", model_version="lingering").popitem()[1] == 8.0
        assert not fleet.page().of("otel_mlops_dropped_total", reason="energy")
