"""Several telemetries of one group, as several workers have them: who leads, what goes on, what is forgotten."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from opentelemetry.metrics import Observation

from otel_mlops.metrics import ERRORS, GPU_BUSY, PREDICTIONS
from otel_mlops.sdk import member
from otel_mlops.sources.sampler import Sample
from otel_mlops.testing import Samples, collect, fresh_telemetry
from tests import waiting

PATIENCE_S = 30.0
eventually = partial(waiting.eventually, within_s=PATIENCE_S)
MIDNIGHT_S = 86_400.0 * 20_000

Join = Callable[..., Any]


@pytest.fixture
def join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Join]:
    """Makes workers of one group, started, each with telemetry of its own."""
    monkeypatch.setattr(member, "_TIDY_S", 0.1)
    with ExitStack() as stack:

        def make(**settings: Any) -> Any:
            chosen = {"group": "several", "state_dir": tmp_path, **settings}
            telemetry = stack.enter_context(fresh_telemetry(**chosen))
            telemetry.start()
            return telemetry

        yield make


def leads(telemetry: Any) -> bool:
    """Whether a worker leads."""
    return bool(telemetry._member.leads)


def predict(telemetry: Any, times: int = 1) -> None:
    """Record predictions."""
    for _ in range(times):
        telemetry.record_prediction(1.0, "v1")


def predictions(telemetry: Any) -> float:
    """How many predictions its page shows."""
    return collect(telemetry).value("predictions_total", model_version="v1")


def own_models(telemetry: Any) -> set[Any]:
    """The models whose predictions a worker has counted itself."""
    return {attributes["model_version"] for attributes, _ in telemetry.meter_provider.totals(PREDICTIONS)}


def test_what_sources_count_is_counted_by_the_leader_alone(join: Join):
    """A worker that reads the sources itself, by `sample()`, adds nothing to what the leader has counted."""
    gpu = {"gpu_id": "0", "gpu_name": "H100"}
    first, second = (join(sources={"gpus": lambda: [Sample(GPU_BUSY, 1.0, gpu)]}) for _ in range(2))
    eventually(lambda: "gpu_busy_seconds_total" in collect(second).names())
    counted = collect(first).value("gpu_busy_seconds_total")
    for _ in range(1000):
        second.sample()
    assert collect(first).value("gpu_busy_seconds_total") < counted + 500


def test_every_workers_page_is_that_of_all(join: Join):
    """The sum over the workers stands on the page of each, and one of them leads."""
    first, second, third = join(), join(), join()
    for telemetry, times in ((first, 1), (second, 20), (third, 300)):
        predict(telemetry, times)
    assert [predictions(each) for each in (first, second, third)] == [321.0] * 3
    assert [leads(each) for each in (first, second, third)] == [True, False, False]
    assert collect(first).value("otel_mlops_workers") == 3
    assert {labels["worker"] for labels in collect(first).labels("otel_mlops_ledger_size_bytes")} == {"0", "1", "2"}


def test_what_is_said_once_is_said_by_the_leader(join: Join):
    """Today's count and the number of workers stand on a page once, whoever makes it."""
    first, second = join(monitoring_interval=0.05), join(monitoring_interval=0.05)
    predict(first)
    predict(second, 2)
    collect(first)
    for page in (collect(first), collect(second)):
        assert len(page.labels("otel_mlops_workers")) == len(page.labels("daily_predictions_total")) == 1
    eventually(lambda: collect(second).value("daily_predictions_total") == 3)


def test_when_the_leader_ends_another_one_goes_on(join: Join):
    """Totals, today's count and the instance's id are the same on the page of the next leader."""
    first, second = join(), join()
    predict(first, 5)
    predict(second, 2)

    def told(page: Samples) -> Any:
        instance = page.labels("target_info")[0]["service_instance_id"]
        return page.value("predictions_total"), page.value("daily_predictions_total"), instance

    before = told(collect(first))
    first.shutdown()
    eventually(lambda: leads(second))
    assert told(collect(second)) == before
    assert before[:2] == (7.0, 7.0)
    eventually(lambda: not [path for path in second._group.ledgers() if path.name.startswith("0-")])
    assert told(collect(second)) == before, "when the dead one's ledger is folded too"


def test_midnight_is_known_to_the_next_leader(join: Join):
    """A leader that takes over during the day goes on with midnight's reading of the one before."""
    now_s = [MIDNIGHT_S - 1.0]
    first, second = join(clock=lambda: now_s[0]), join(clock=lambda: now_s[0])
    predict(second, 10)
    assert collect(first).value("daily_predictions_total") == 10
    now_s[0] = MIDNIGHT_S + 3600
    eventually(lambda: collect(first).value("daily_predictions_total") == 0)
    predict(second, 3)
    first.shutdown()
    eventually(lambda: leads(second))
    assert collect(second).value("daily_predictions_total") == 3
    assert predictions(second) == 13


def test_a_midnight_that_nobody_saw_is_when_the_next_one_leads(join: Join):
    """Where the leader died before midnight and another took over after it, today begins with the new leader."""
    now_s = [MIDNIGHT_S - 1.0]
    first, second = join(clock=lambda: now_s[0]), join(clock=lambda: now_s[0])
    predict(second, 10)
    collect(first)
    first._member.stop(1.0)  # it sees no midnight
    first._leading.sampler.stop(1.0)
    now_s[0] = MIDNIGHT_S + 1.0
    first._member.give_up()
    eventually(lambda: leads(second))
    eventually(lambda: collect(second).value("daily_predictions_total") == 0)
    predict(second, 2)
    assert collect(second).value("daily_predictions_total") == 2


def test_a_second_lifespan_joins_again(join: Join):
    """A worker that ends and starts again in one process counts on, and what it recorded meanwhile is not lost."""
    only = join()
    predict(only, 5)
    only.stop()
    assert only.meter_provider.ledger.path is None
    predict(only, 2)
    only.start()
    assert only.meter_provider.ledger.path is not None
    predict(only, 1)
    assert predictions(only) == 8


def test_a_second_lifespan_beside_others_counts_nothing_twice(join: Join):
    """What a worker has left to the group stays there, and it begins at nothing when it comes back."""
    other, again = join(), join()
    predict(other, 100)
    model = again.model("housing", "v2")
    with model.prediction() as prediction:
        prediction.values = [1.0] * 5
    bound = again.instrument(ERRORS).bind({"error_type": "E", "endpoint": "/"})
    bound.add(3)
    again.stop()
    bound.add(4)
    again.start()
    bound.add(5)
    for page in (collect(other), collect(again)):
        assert page.value("errors_total") == 12
        assert page.value("predictions_total", model_version="v2") == 5


def test_what_is_in_progress_over_a_second_lifespan_ends_at_zero(join: Join):
    """A prediction that began before a worker left and ends after it has come back leaves nothing behind."""
    other, again = join(), join()
    predict(other)
    with again.model("housing", "v2").prediction():
        again.stop()
        again.start()
        assert collect(other).value("predictions_in_progress", model_version="v2") == 1
    assert collect(other).value("predictions_in_progress", model_version="v2") == 0


def test_what_one_is_told_to_forget_all_forget(join: Join):
    """The series are gone from every page at once, and what is recorded after that begins at nothing."""
    first, second, third = join(), join(), join()
    for telemetry in (first, second, third):
        predict(telemetry, 7)
        telemetry.record_prediction(1.0, "v2")
    assert second.forget(model_version="v1") == 2, "its own are counted"
    for telemetry in (first, second, third):
        assert {labels["model_version"] for labels in collect(telemetry).labels("predictions_total")} == {"v2"}
    eventually(
        lambda: not [each for each in first.meter_provider.totals(PREDICTIONS) if each[0]["model_version"] == "v1"]
    )
    eventually(
        lambda: not [each for each in third.meter_provider.totals(PREDICTIONS) if each[0]["model_version"] == "v1"]
    )
    predict(third)
    assert [predictions(each) for each in (first, second, third)] == [1.0] * 3


def test_who_has_recorded_nothing_makes_the_others_forget(join: Join, tmp_path: Path):
    """A process of the group that has no ledger, as one that was just forked, tells the others too."""
    first = join()
    predict(first, 7)
    with fresh_telemetry(group="several", state_dir=tmp_path) as silent:
        assert silent.forget(model_version="v1") == 0
        assert silent.meter_provider.ledger.path is None
        assert not collect(first).labels("predictions_total")
        eventually(lambda: not first.meter_provider.totals(PREDICTIONS))


def test_a_late_joiner_has_nothing_to_do_with_what_was_forgotten_before(join: Join):
    """A model that was forgotten and is deployed again counts in the worker that begins with it."""
    first = join()
    predict(first, 7)
    first.forget(model_version="v1")
    late = join()
    predict(late, 2)
    eventually(lambda: predictions(first) == 2)
    assert not [*late.meter_provider.everyone.follow()]
    assert predictions(late) == 2


def test_each_workers_callbacks_speak_for_it(join: Join):
    """What an observable instrument says in each worker is on the page with that worker's number."""
    workers = [join(monitoring_interval=0.05) for _ in range(3)]
    for number, telemetry in enumerate(workers):
        telemetry.meter.create_observable_gauge("queue", [lambda _, n=number: [Observation(10.0 * n)]])

    def seen() -> dict[str, float]:
        page = collect(workers[0])
        return {labels["worker"]: page.value("queue", **labels) for labels in page.labels("queue")}

    eventually(lambda: seen() == {"0": 0.0, "1": 10.0, "2": 20.0})
    workers[1].shutdown()
    eventually(lambda: seen() == {"0": 0.0, "2": 20.0})


def test_a_state_is_the_worst_of_the_livings_and_an_info_the_latest(join: Join):
    """One worker's broken model is the model's state until that worker ends; of the infos the newest stands."""
    first, second = join(), join()
    first.model("housing", "v1", stage="staging").status = "ready"
    second.model("housing", "v1", stage="production").status = "error"
    first.system_info.info({"version": "1"})
    second.system_info.info({"version": "2"})

    def state() -> set[str]:
        page = collect(first)
        states = page.labels("model_status")
        return {each["model_status"] for each in states if page.value("model_status", **each) == 1}

    assert state() == {"error"}
    assert [each["stage"] for each in collect(first).labels("model_info")] == ["production"]
    assert collect(first).labels("system_info") == [{"version": "2"}]
    second.shutdown()
    eventually(lambda: state() == {"ready"})
    assert [each["stage"] for each in collect(first).labels("model_info")] == ["production"]


def test_a_worker_that_has_not_started_does_not_lead(join: Join, tmp_path: Path):
    """A master that imports the application and records is a worker, and leads nobody."""
    with fresh_telemetry(group="several", state_dir=tmp_path) as master:
        predict(master, 3)
        worker = join()
        predict(worker, 4)
        assert leads(worker)
        assert not leads(master)
        assert predictions(worker) == predictions(master) == 7


def test_a_broken_configuration_of_the_server_is_a_metric(tmp_path: Path):
    """Where web.config.yml can no longer be read the one before holds, and a gauge says so until it can again."""
    config = tmp_path / "web.config.yml"
    config.write_text("rate_limit: {interval: 1ms, burst: 1000}")
    with fresh_telemetry(web_config_file=config, start_server=True, port=0, host="127.0.0.1") as telemetry:
        telemetry.start()
        for text, value in (("rate_limit: {burst: many}", 0), ("rate_limit: {interval: 1ms, burst: 99}", 1)):
            config.write_text(text)

            def seen(value: int = value) -> bool:
                urlopen(telemetry.url, timeout=PATIENCE_S).close()  # it looks at the file when somebody asks
                return collect(telemetry).value("otel_mlops_page_config_up") == value

            eventually(seen)


def test_a_callback_that_hangs_keeps_no_worker_from_starting_or_leading(join: Join):
    """A worker whose callback never returns starts at once, follows the others and leads when it is its turn."""
    leave, stuck = threading.Event(), threading.Event()
    first, second = join(monitoring_interval=0.05), join(monitoring_interval=0.05)
    try:
        for telemetry in (first, second):
            hangs = [lambda _: stuck.set() or leave.wait(60) or []]
            telemetry.meter.create_observable_gauge("hangs", hangs)
        assert stuck.wait(PATIENCE_S)
        second.stop()
        began_s = time.monotonic()
        second.start()
        assert time.monotonic() - began_s < 5.0
        first.shutdown()
        eventually(lambda: leads(second))
    finally:
        leave.set()


def test_a_folder_that_may_not_be_entered_costs_the_group_and_not_the_page(tmp_path: Path):
    """Where the state folder is of no use the worker leads by itself, with its page, sources and today's count."""
    folder = tmp_path / f"otel_mlops-{os.getuid()}"
    folder.mkdir(mode=0o755)  # which others could open
    with fresh_telemetry(state_dir=tmp_path, start_server=True, port=0, host="127.0.0.1") as telemetry:
        telemetry.start()
        predict(telemetry, 3)
        assert leads(telemetry)
        page = urlopen(telemetry.url, timeout=PATIENCE_S).read().decode()
    assert 'daily_predictions_total{model_version="v1"} 3.0' in page
    assert "otel_mlops_workers 1.0" in page
    assert "otel_mlops_ledger_up 0.0" in page


def test_a_worker_whose_descriptors_are_closed_is_counted_once(join: Join):
    """A worker that loses its lock counts as dead: its counts go to the group, and it begins anew beside them."""
    first, second = join(), join()
    predict(first)
    predict(second, 100)
    stranger = os.open(os.devnull, os.O_RDONLY)
    file = second.meter_provider.ledger._file
    os.dup2(stranger, file.lock_file)  # as a program that closes all descriptors and opens others
    eventually(lambda: second.meter_provider.ledger._file is not file)
    predict(second, 10)
    eventually(lambda: not file.path.exists())
    assert [predictions(each) for each in (first, second)] == [111.0] * 2
    assert os.fstat(file.lock_file).st_rdev == os.fstat(stranger).st_rdev, "a stranger's file is left alone"
    os.close(file.lock_file)
    os.close(stranger)


def test_the_last_one_out_leaves_nothing(join: Join, tmp_path: Path):
    """After a graceful end of all workers their folder is gone, and the next ones begin at 0."""
    for _ in range(2):
        first, second = join(), join()
        predict(first, 3)
        predict(second, 4)
        assert predictions(first) == 7
        first.shutdown()
        second.shutdown()
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_somebody_removes_comes_back_with_the_numbers(join: Join, tmp_path: Path):
    """Where another program clears the shared memory the living workers meet again, and nothing of theirs is lost."""
    import shutil

    first, second = join(), join()
    predict(first, 3)
    predict(second, 4)
    shutil.rmtree(first._group.folder)
    eventually(lambda: len(first._group.ledgers()) == 2)
    eventually(lambda: predictions(first) == predictions(second) == 7)
    eventually(lambda: leads(first) != leads(second))
    predict(first)
    assert predictions(second) == 8
