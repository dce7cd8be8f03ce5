"""What a reader of the group gets: the numbers of all workers, by the rules of the page; differences that go on."""

from __future__ import annotations

import json
import logging
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.metrics import Observation
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_mlops.metrics import MODEL_INFO, MODEL_STATUS
from otel_mlops.sdk import group_points
from otel_mlops.sdk.group import PUSHED
from otel_mlops.sdk.stream import Stream
from tests.sdk.workers import Worker, state_folder

DELTA, CUMULATIVE = AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE
CLASSES = [
    sdk.Counter, sdk.UpDownCounter, sdk.Histogram, sdk._Gauge, sdk.ObservableCounter, sdk.ObservableUpDownCounter,
    sdk.ObservableGauge,
]  # fmt: skip
DIFFERENCES_OF_OTLP = [sdk.Counter, sdk.Histogram, sdk.ObservableCounter]
"""OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta."""

Point = tuple[str, frozenset[tuple[str, Any]]]


class Pushing(InMemoryMetricReader):
    """A reader of the group, on one of its workers; with `delta` as OTLP's is, unless it says of what."""

    def __init__(self, worker: Worker, *, delta: bool = False, of: Any = DIFFERENCES_OF_OTLP) -> None:
        super().__init__(preferred_temporality=dict.fromkeys(of, DELTA) if delta else None)
        self.worker = worker
        worker.provider.add_metric_reader(self, of_group=True)

    def points(self) -> dict[Point, Any]:
        """The points of a collection by name and attributes, those about ourselves aside."""
        found: dict[Point, Any] = {}
        data = self.get_metrics_data()
        for of_resource in data.resource_metrics if data else ():
            for of_scope in of_resource.scope_metrics:
                for metric in of_scope.metrics:
                    for point in metric.data.data_points if not metric.name.startswith("otel_mlops.") else ():
                        key = metric.name, frozenset(point.attributes.items())
                        assert key not in found, f"{key} is told twice"
                        found[key] = point
        return found

    def values(self) -> dict[Point, Any]:
        """The values, or the buckets and the sum, of a collection."""
        return {key: value_of(point) for key, point in self.points().items()}

    def push(self) -> dict[Point, Any]:
        """The values of a collection that was exported."""
        found = self.values()
        self.worker.provider.exported(self)
        return found


def value_of(point: Any) -> Any:
    return (*point.bucket_counts, point.sum) if hasattr(point, "bucket_counts") else point.value


def about(name: str, **attributes: Any) -> Point:
    return name, frozenset(attributes.items())


@pytest.fixture
def workers() -> Iterator[Callable[..., Worker]]:
    """Opens workers of one group."""
    opened: list[Worker] = []
    with state_folder() as state:

        def open_one(**arguments: Any) -> Worker:
            opened.append(Worker(state, **arguments))
            return opened[-1]

        yield open_one
        for worker in opened:
            worker.leave()


# --- Everybody's numbers ------------------------------------------------------------------------------------


def test_what_all_workers_have_recorded_is_told_by_any_the_dead_included(workers):
    """Counters and histograms are the sum of all workers, through deaths and however the dead are put together."""
    one, two, three = workers(), workers(), workers()
    for number, worker in enumerate((one, two, three), 1):
        worker.meter.create_counter("c").add(number, {"k": "v"})
        worker.meter.create_histogram("h", explicit_bucket_boundaries_advisory=[1.0, 2.0]).record(number)
    expected = {about("c", k="v"): 6.0, about("h"): (1, 1, 1, 6.0)}
    readers = [Pushing(one), Pushing(two)]
    assert [reader.values() for reader in readers] == [expected] * 2

    three.die()
    assert readers[0].values() == expected
    one.everyone.retire()
    two.die()
    one.everyone.retire()
    assert readers[0].values() == expected


def test_a_total_begins_when_the_first_of_its_workers_did(workers):
    """The start time is that of the earliest record, whoever reads, and whoever has died since."""
    one, two = workers(), workers()
    one.meter.create_counter("c").add(1)
    one.meter.create_histogram("h").record(1)
    two.meter.create_counter("c").add(1)
    two.meter.create_histogram("h").record(1)
    (first,) = one.provider.streams()[0].living()
    reader = Pushing(two)
    before = reader.points()
    one.die()
    two.everyone.retire()
    two.meter.create_counter("c").add(1)
    after = reader.points()

    assert before[about("c")].start_time_unix_nano == first.born_ns
    assert before.keys() == after.keys()
    assert [point.start_time_unix_nano for point in after.values()] == [
        point.start_time_unix_nano for point in before.values()
    ]


def test_what_goes_on_is_that_of_the_living(workers):
    """An up-down counter is the sum of those who live."""
    one, two = workers(), workers()
    for worker in (one, two):
        worker.meter.create_up_down_counter("u").add(2)
    reader = Pushing(one)
    assert reader.values() == {about("u"): 4.0}
    two.die()
    assert reader.values() == {about("u"): 2.0}


def test_each_worker_is_shown_where_nobody_knows_how_to_put_them_together(workers):
    """A gauge has the attribute `worker`; an attribute of that name gets another, as on the page."""
    for number in range(3):
        workers().meter.create_gauge("g").set(number, {"worker": "bee", "n": 1})
    reader = Pushing(workers())

    expected = {about("g", n=1, exported_worker="bee", worker=str(number)): number for number in range(3)}
    assert reader.values() == expected


def test_what_callbacks_say_is_told_and_they_are_asked_once(workers):
    """The reader has its own worker's callbacks speak, once; of the others it has what they said last."""
    asked = []
    one, two = workers(), workers()

    def say(number: int) -> list[Observation]:
        asked.append(number)
        return [Observation(number)]

    for number, worker in enumerate((one, two)):
        worker.meter.create_observable_gauge("o", [lambda _, number=number: say(number)])
        worker.meter.create_observable_counter("process.cpu.time", [lambda _, number=number: [Observation(1 + number)]])
    two.provider.refresh(two.reader, 1.0)
    reader = Pushing(one)
    asked.clear()

    # Two was the first to say something, and has the number 0.
    assert reader.values() == {about("o", worker="0"): 1, about("o", worker="1"): 0, about("process.cpu.time"): 3}
    assert asked == [0]


def test_what_callbacks_say_is_a_total_to_a_reader_of_differences_as_well(workers):
    """A callback's total is kept as it is; the reader of differences is told how much it has grown."""
    said = [5]
    one = workers()
    one.meter.create_observable_counter("process.cpu.time", [lambda _: [Observation(said[0])]])
    reader = Pushing(one, delta=True)
    told = []
    for total in (5, 7, 7, 12):
        said[0] = total
        told.append(reader.push().get(about("process.cpu.time")))

    assert told == [5, 2, None, 5]
    assert one.page()["process_cpu_time_total"] == 12


@pytest.mark.parametrize("delta", [False, True])
def test_of_the_states_of_a_model_the_worst_is_told(workers, delta):
    """A state set says what the worst of the living says, whoever said something last; every state is there."""
    one, two = workers(), workers()
    states = MODEL_STATUS.values[MODEL_STATUS.page_name]

    def be(worker: Worker, now: str) -> None:
        for state in states:
            labels = {"model_name": "m", "model_version": "1", MODEL_STATUS.page_name: state}
            worker.provider.instrument(MODEL_STATUS).set(float(state == now), labels)

    def told() -> dict[str, float]:
        found = Pushing(one, delta=delta, of=CLASSES).values()
        return {dict(labels)[MODEL_STATUS.page_name]: value for (_, labels), value in found.items()}

    be(two, states[0])
    be(one, states[-1])
    assert told() == dict.fromkeys(states, 0.0) | {states[0]: 1.0}
    two.die()
    assert told() == dict.fromkeys(states, 0.0) | {states[-1]: 1.0}


def test_of_the_infos_about_a_model_the_last_is_told(workers):
    """An info of a thing replaces what another worker has told about it before."""
    one, two = workers(), workers()
    labels = dict.fromkeys(MODEL_INFO.attributes, "x")
    one.provider.instrument(MODEL_INFO).set(1.0, labels)
    changed = next(name for name in labels if name not in MODEL_INFO.subject)
    two.provider.instrument(MODEL_INFO).set(1.0, labels | {changed: "y"})

    assert Pushing(one).values() == {about(MODEL_INFO.name, **labels | {changed: "y"}): 1.0}


def test_of_each_bucket_the_newest_exemplar_is_told_once(workers):
    """Exemplars are those of the worker that recorded last, and those since the last collection alone."""
    one, two = workers(), workers()
    reader = Pushing(one)

    def record(worker: Worker, value: float, trace_id: int) -> None:
        span = NonRecordingSpan(SpanContext(trace_id, 1, False, TraceFlags(TraceFlags.SAMPLED)))
        token = otel_context.attach(trace.set_span_in_context(span))
        worker.meter.create_histogram("h", explicit_bucket_boundaries_advisory=[1.0]).record(value)
        otel_context.detach(token)

    def told() -> list[tuple[float, int]]:
        return [(each.value, each.trace_id) for each in reader.points()[about("h")].exemplars]

    record(two, 0.5, 1)
    record(one, 0.25, 2)
    record(one, 5.0, 3)
    record(two, 6.0, 4)
    assert told() == [(0.25, 2), (6.0, 4)]
    record(two, 0.75, 5)
    assert told() == [(0.75, 5)]


@pytest.mark.parametrize("of_group", [False, True])
def test_what_is_forgotten_in_the_middle_of_a_collection_is_left_out(workers, monkeypatch, of_group):
    """A series that is forgotten after everybody was asked and before it is read is not told as 0."""
    one = workers()
    one.meter.create_counter("c").add(1)
    shares, (stream,) = one.everyone.shares(), one.provider.streams()
    living = stream.living()
    stream.forget({})
    monkeypatch.setattr(one.everyone, "shares", lambda: shares)
    monkeypatch.setattr(Stream, "living", lambda _: living)
    reader = InMemoryMetricReader()
    one.provider.add_metric_reader(reader, of_group=of_group)

    assert reader.get_metrics_data() is None


def test_the_resource_is_the_one_that_all_leaders_share(workers):
    """What is told describes the group, not the worker that happens to lead it."""
    one = workers()
    one.meter.create_counter("c").add(1)
    one.provider.shared_resource = Resource({"service.name": "test", "service.instance.id": "of all"}, "https://s/1")
    data = Pushing(one).get_metrics_data()

    (of_resource,) = data.resource_metrics
    assert of_resource.resource is one.provider.shared_resource
    assert of_resource.schema_url == "https://s/1"


def test_a_metric_stands_in_one_scope_whoever_has_recorded_it(workers):
    """A metric that only another worker has recorded stands in our scope of that name, with its attributes."""
    one, two = workers(), workers()
    scope = ("lib", "1", "https://s/1", {"team": "ml"})
    one.provider.get_meter(*scope).create_counter("a").add(1)
    two.provider.get_meter(*scope).create_counter("a").add(1)
    two.provider.get_meter(*scope).create_counter("b", "By", "What it is.").add(1)
    data = Pushing(one).get_metrics_data()

    (of_scope,) = [each for each in data.resource_metrics[0].scope_metrics if each.scope.name == "lib"]
    assert dict(of_scope.scope.attributes) == {"team": "ml"}
    assert of_scope.schema_url == "https://s/1"
    assert [(each.name, each.unit, each.description) for each in of_scope.metrics] == [
        ("a", "", ""),
        ("b", "By", "What it is."),
    ]


def test_a_reader_that_somebody_else_adds_sees_its_own_process(workers):
    """Without `of_group` nothing of other workers is told, and no worker is named."""
    one, two = workers(), workers()
    for worker in (one, two):
        worker.meter.create_counter("c").add(1)
        worker.meter.create_gauge("g").set(1)
    reader = InMemoryMetricReader()
    one.provider.add_metric_reader(reader)
    data = reader.get_metrics_data()

    points = [each for metric in data.resource_metrics[0].scope_metrics[0].metrics for each in metric.data.data_points]
    assert [(each.value, each.attributes) for each in points] == [(1.0, {}), (1.0, {})]


def test_without_a_group_it_sees_its_own_process(open_provider):
    """Where a system has no groups, the reader of the group gets what there is."""
    provider = open_provider()
    provider.get_meter("m").create_gauge("g").set(1)
    reader = InMemoryMetricReader(preferred_temporality=dict.fromkeys(DIFFERENCES_OF_OTLP, DELTA))
    provider.add_metric_reader(reader, of_group=True)
    provider.get_meter("m").create_counter("c").add(1)

    points = [
        each
        for of_scope in reader.get_metrics_data().resource_metrics[0].scope_metrics
        for metric in of_scope.metrics
        for each in metric.data.data_points
    ]
    provider.exported(reader)
    assert [(each.value, each.attributes) for each in points] == [(1.0, {}), (1.0, {})]


# --- Differences --------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.just("record"), st.integers(0, 2), st.integers(0, 9))
    | st.tuples(st.sampled_from(["push", "die in the export", "lose the lead", "kill another", "retire"])),
    max_size=25,
)


@pytest.mark.stress
@settings(max_examples=60, deadline=None)
@given(STEPS)
@example([("record", 0, 3), ("push",), ("record", 1, 4), ("die in the export",), ("record", 1, 2), ("push",)])
@example([("record", 1, 3), ("push",), ("kill another",), ("retire",), ("record", 0, 1), ("lose the lead",)])
def test_all_differences_together_are_what_was_recorded(steps: list[tuple[Any, ...]]):
    """Whoever leads and dies, nothing is lost; twice is told what it had not kept yet when it died after an export."""
    recorded, pushed, twice = Tally[str](), Tally[str](), Tally[str]()

    def tally(found: dict[Point, Any]) -> Tally[str]:
        low, high, total = found.get(about("h"), (0, 0, 0.0))
        return Tally(low=low, high=high, sum=total, amount=found.get(about("c"), 0.0))

    with state_folder() as state:

        def start() -> Worker:
            worker = Worker(state)
            worker.meter.create_gauge("joined").set(1)
            return worker

        alive = [start() for _ in range(3)]
        reader = Pushing(alive[0], delta=True)
        for step, *what in [*steps, ("push",)]:
            if step == "record":
                index, value = what
                alive[index].meter.create_counter("c").add(value)
                alive[index].meter.create_histogram("h", explicit_bucket_boundaries_advisory=[5.0]).record(value)
                recorded.update(low=value <= 5, high=value > 5, sum=value, amount=value)
            elif step == "push":
                pushed.update(tally(reader.push()))
            elif step == "retire":
                alive[0].everyone.retire()
            elif step == "kill another":
                alive[1].die()
                alive[1] = start()
            else:
                if step == "die in the export":
                    told = tally(reader.values())
                    pushed.update(told)
                    twice.update(told)
                    alive[0].die()
                    alive[0] = start()
                alive = [*alive[1:], alive[0]]
                reader = Pushing(alive[0], delta=True)
        for worker in alive:
            worker.leave()
    assert pushed == recorded + twice


def test_an_interval_begins_where_the_one_before_has_ended(workers):
    """Differences leave no time out and tell none twice, also when another worker goes on with them."""
    one, two = workers(), workers()
    told = []
    one.meter.create_gauge("joined").set(1)
    for worker in (one, two, one):
        reader = Pushing(worker, delta=True)
        for _ in range(2):
            two.meter.create_counter("c").add(1)
            told.append(reader.points()[about("c")])
            worker.provider.exported(reader)

    (born,) = two.provider.streams()[0].living()
    assert [each.value for each in told] == [1.0] * 6
    assert [each.start_time_unix_nano for each in told] == [
        born.born_ns,
        *[each.time_unix_nano for each in told[:-1]],
    ]


def test_what_was_told_is_kept_exactly_and_after_the_export(workers):
    """A tenth added up is the same number in the next leader; nothing is kept of what was not exported yet."""
    one, two = workers(), workers()
    counter = two.meter.create_counter("c")
    reader = Pushing(one, delta=True)
    one.meter.create_gauge("joined").set(1)
    for _ in range(10):
        counter.add(0.1)
        assert not (one.group.folder / PUSHED).exists()
        reader.values()
    one.provider.exported(reader)
    assert not (one.group.folder / PUSHED).exists(), "nine collections are still to be exported"
    for _ in range(9):
        one.provider.exported(reader)

    assert about("c") not in Pushing(two, delta=True).values()
    ((_, values, _),) = json.loads((one.group.folder / PUSHED).read_text()).values()
    assert values == two.provider.streams()[0].living()[0].read() != [1.0]


def test_a_reader_of_totals_keeps_nothing(workers, caplog):
    """Totals need no memory: no file is written for them, and none is read."""
    one = workers()
    one.meter.create_counter("c").add(1)
    reader = Pushing(one)
    for _ in range(2):
        assert reader.push() == {about("c"): 1.0}

    assert not (one.group.folder / PUSHED).exists()
    (one.group.folder / PUSHED).write_text("[]")
    assert Pushing(one).push() == {about("c"): 1.0}
    assert not caplog.records


def test_what_was_forgotten_begins_at_nothing(workers):
    """A series that was forgotten and is recorded again is told from 0 on, however far it has come meanwhile."""
    one, two = workers(), workers()
    reader = Pushing(one, delta=True)
    for worker in (one, two):
        worker.meter.create_counter("c").add(2, {"k": "v"})
    assert reader.push() == {about("c", k="v"): 4.0}
    one.forget(k="v")
    assert reader.push() == {}
    two.follow()
    two.meter.create_counter("c").add(9, {"k": "v"})
    assert reader.push() == {about("c", k="v"): 9.0}


@pytest.mark.parametrize(("name", "worker"), [("o", {"worker": "0"}), ("process.cpu.time", {})])
def test_a_callback_that_was_silent_is_not_told_anew(workers, name, worker):
    """What a callback counts goes on after a while without a word; where it counts anew it is told from 0 on."""
    said: list[list[int]] = [[5], [], [7], [3]]
    one = workers()
    one.meter.create_observable_counter(name, [lambda _: [Observation(each) for each in said[0]]])
    reader = Pushing(one, delta=True)
    told = []
    while said:
        told.append(reader.points().get(about(name, **worker)))
        del said[0]

    told.remove(None)
    assert [each.value for each in told] == [5.0, 2.0, 3.0]
    assert [each.start_time_unix_nano for each in told[1:]] == [each.time_unix_nano for each in told[:-1]]


def test_what_goes_on_is_told_less_what_the_dead_had(workers):
    """Where differences of an up-down counter are wanted, the end of a worker takes away what it had under way."""
    one, two = workers(), workers()
    one.meter.create_up_down_counter("u").add(2)
    two.meter.create_up_down_counter("u").add(3)
    reader = Pushing(two, delta=True, of=CLASSES)
    assert reader.push() == {about("u"): 5.0}
    one.die()
    assert reader.push() == {about("u"): -2.0}
    assert reader.push() == {}


def test_what_another_counts_less_of_is_told_from_nothing(workers):
    """Of what one worker tells for all the next may have counted less: no difference is less than nothing."""
    one, two = workers(), workers()
    for worker, times in ((one, 3), (two, 2)):
        worker.meter.create_observable_counter("hw.c", [lambda _, said=times: [Observation(said)]])
        worker.page()
    assert Pushing(one, delta=True).push() == {about("hw.c"): 3.0}
    one.die()
    assert Pushing(two, delta=True).push() == {about("hw.c"): 2.0}


def test_of_other_bounds_the_youngest_are_told(workers):
    """Where workers differ in a histogram's buckets the same series is told once, by the bounds of the newcomer."""
    old, new = workers(), workers()
    old.meter.create_histogram("h", explicit_bucket_boundaries_advisory=[1.0, 2.0]).record(1)
    new.meter.create_histogram("h", explicit_bucket_boundaries_advisory=[5.0]).record(3)
    for worker in (old, new):
        assert Pushing(worker).push() == {about("h"): (1, 0, 3.0)}


def test_what_is_recorded_and_what_callbacks_say_may_differ_in_kind(workers):
    """A reader that wants differences of the one and totals of the other gets both, also of one name."""
    one = workers()
    one.meter.create_counter("process.c").add(1, {"by": "hand"})
    one.meter.create_observable_counter("process.c", [lambda _: [Observation(1, {"by": "callback"})]])
    reader = Pushing(one, delta=True, of=[sdk.Counter, sdk.Histogram])  # OTLP's "lowmemory"

    assert reader.push() == {about("process.c", by="hand"): 1.0, about("process.c", by="callback"): 1.0}
    assert reader.push() == {about("process.c", by="callback"): 1.0}


def test_what_is_remembered_is_bounded(workers, monkeypatch):
    """Of series that are gone for good as many are remembered as there are, and a fixed number more."""
    monkeypatch.setattr(group_points, "_MOST_AWAY", 3)
    one = workers()
    reader = Pushing(one, delta=True)
    for number in range(20):
        one.meter.create_counter("c").add(1, {"n": str(number)})
        assert reader.push() == {about("c", n=str(number)): 1.0}
        one.forget(n=str(number))
        one.meter.create_counter("stays").add(1)
        assert reader.push() == {about("stays"): 1.0}

    assert len(json.loads((one.group.folder / PUSHED).read_text())) <= 2 * 2 + 3


def test_where_nothing_can_be_kept_the_push_goes_on(workers, monkeypatch, caplog):
    """A folder without room costs one line in the log, and one more when it happens again."""
    one = workers()
    reader = Pushing(one, delta=True)
    counter = one.meter.create_counter("c")
    keep = one.group.keep

    def no_room(name: str, what: Any) -> None:
        raise OSError(28, "No space left on device")

    for step in (no_room, no_room, keep, no_room):
        monkeypatch.setattr(one.group, "keep", step)
        counter.add(1)
        assert reader.push() == {about("c"): 1.0}

    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("text", ["[]", '{"k": 5}', '{"k": [1]}', "{", '"x"'])
def test_what_cannot_be_read_is_told_anew(workers, text, caplog):
    """A file that is no such file is as none: what was told before is told again, and never by a raise."""
    one = workers()
    one.meter.create_counter("c").add(2)
    (one.group.folder / PUSHED).write_text(text)

    assert Pushing(one, delta=True).push() == {about("c"): 2.0}


def test_a_reader_goes_on_where_the_one_before_in_its_process_has_ended(workers):
    """A service that is stopped and started again has left no file behind, and tells nothing twice."""
    one = workers()
    counter = one.meter.create_counter("c")
    counter.add(2)
    reader = Pushing(one, delta=True)
    assert reader.push() == {about("c"): 2.0}
    one.provider.remove_metric_reader(reader)
    one.provider.leave()
    assert not one.group.folder.exists()
    one.provider.ledger.rejoin()
    one.provider.settle()
    counter.add(3)

    assert Pushing(one, delta=True).push() == {about("c"): 3.0}


def test_an_export_that_ends_after_its_reader_was_removed_is_not_kept(workers):
    """What another leader has kept meanwhile is not replaced by one that does not lead any more."""
    one, two = workers(), workers()
    one.meter.create_counter("c").add(1)
    two.meter.create_counter("c").add(1)
    late = Pushing(one, delta=True)
    late.values()
    one.provider.remove_metric_reader(late)
    Pushing(two, delta=True).push()
    kept = (one.group.folder / PUSHED).read_text()
    one.provider.exported(late)

    assert (one.group.folder / PUSHED).read_text() == kept


@pytest.mark.parametrize("removed", [False, True])
def test_a_forked_child_has_told_nothing(workers, removed):
    """In a forked child the reader of the group begins at nothing, as its numbers do, and what callbacks count."""
    said = [5]
    one = workers()
    counter = one.meter.create_counter("c")
    counter.add(5)
    one.meter.create_observable_counter("process.cpu.time", [lambda _: [Observation(said[0])]])
    reader = Pushing(one, delta=True)
    assert reader.push() == {about("c"): 5.0, about("process.cpu.time"): 5.0}
    if removed:
        one.provider.remove_metric_reader(reader)
    one.provider.leave()
    one.group.after_fork()
    one.provider._handle_fork()
    counter.add(6)
    said[0] = 6

    child = Pushing(one, delta=True) if removed else reader
    assert child.push() == {about("c"): 6.0, about("process.cpu.time"): 6.0}


def test_nothing_is_kept_by_who_has_not_joined(workers, caplog):
    """A worker that the others cannot see, say for lack of room, leaves alone what their leader keeps."""
    one, two = workers(), workers()
    two.meter.create_counter("c").add(1)

    assert Pushing(one, delta=True).push() == {about("c"): 1.0}
    assert not (two.group.folder / PUSHED).exists()
    assert not caplog.records


def test_a_collection_with_nothing_to_tell_is_not_waited_for(workers):
    """What is never exported, as there was nothing, does not keep what comes after it from being kept."""
    one = workers()
    reader = Pushing(one, delta=True)
    assert reader.values() == {}
    one.meter.create_counter("c").add(1)
    reader.push()

    assert (one.group.folder / PUSHED).exists()
