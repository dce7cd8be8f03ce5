"""Another worker's ledger, as it is read: alive, dead, growing, damaged, of other code, or gone."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_mlops.sdk import ledger as ledger_module
from otel_mlops.sdk import records
from otel_mlops.sdk.ledger import SEGMENT_BYTES, Ledger
from otel_mlops.sdk.peers import Peer
from tests.sdk.test_retired import told
from tests.sdk.workers import Worker, state_folder


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A worker whose ledger others read."""
    with state_folder() as state:
        yield Worker(state)


def seen(peer: Peer) -> dict[tuple[str, Any], list[float]]:
    """Every series that is seen, once the ledger was looked at."""
    peer.look()
    return {
        (stream.name, *series.attributes.items()): series.read() for stream in peer.streams for series in stream.series
    }


def append(ledger: Ledger, *entries: tuple[int, Any, list[float]]) -> None:
    """Write records as they are into a ledger."""
    for kind, description, cells in entries:
        ledger.append(kind, description, cells)


def test_what_a_worker_records_is_seen_at_once(worker: Worker):
    """A number is read where it was written; series are found when the ledger is looked at."""
    counter = worker.meter.create_counter("c")
    counter.add(1, {"k": "x"})
    peer = Peer(worker.path)
    assert seen(peer) == {("c", ("k", "x")): [1.0]}
    counter.add(2, {"k": "x"})
    assert peer.streams[0].series[0].read() == [3.0]
    counter.add(4)
    assert seen(peer) == {("c", ("k", "x")): [3.0], ("c",): [4.0]}


def test_only_what_comes_or_goes_changes_the_version(worker: Worker):
    """A number that changes does not; a series that is born or forgotten, and a death, do."""
    counter = worker.meter.create_counter("c")
    counter.add(1, {"k": "x"})
    peer = Peer(worker.path)
    versions = []

    def look() -> None:
        peer.look()
        versions.append(peer.version)

    look()
    counter.add(1, {"k": "x"})
    look()
    counter.add(1, {"k": "y"})
    look()
    worker.provider.forget({"k": "x"})
    look()
    look()
    worker.die()
    look()
    look()
    assert [after > before for before, after in pairwise(versions)] == [
        False, True, True, False, True, False,
    ]  # fmt: skip
    assert not peer.is_alive


def test_a_series_is_one_object_as_long_as_it_lives(worker: Worker):
    """What was made of a series, its place on the page and its text, stands when another comes."""
    counter = worker.meter.create_counter("c")
    counter.add(1, {"k": "x"})
    peer = Peer(worker.path)
    peer.look()
    before = peer.streams[0].series[0]
    counter.add(1, {"k": "y"})
    peer.look()
    assert peer.streams[0].series[0] is before


def test_a_ledger_grows_under_a_reader(worker: Worker):
    """Segments that come are read, those of the dead as well."""
    counter = worker.meter.create_counter("c")
    counter.add(1, {"k": "first"})
    peer = Peer(worker.path)
    peer.look()
    for number in range(1_000):
        counter.add(1, {"k": number})
    size = worker.path.stat().st_size
    assert size > SEGMENT_BYTES
    worker.die()
    assert len(seen(peer)) == 1_001


def test_the_last_words_of_a_worker_are_read(worker: Worker):
    """What a worker had written when it was killed, before it could say that there was something new, is found."""
    counter = worker.meter.create_counter("c")
    counter.add(1)
    peer = Peer(worker.path)
    peer.look()
    counter.add(2, {"k": "x"})
    worker.provider.ledger.about[records.GENERATION] -= 1.0
    assert seen(peer) == {("c",): [1.0]}
    worker.die()
    assert seen(peer) == {("c",): [1.0], ("c", ("k", "x")): [2.0]}


def test_records_are_found_where_they_take_the_place_of_others(worker: Worker, monkeypatch: pytest.MonkeyPatch):
    """A new metric's series may stand before its description, as it takes the place of a forgotten one's."""
    first = worker.meter.create_counter("a")
    first.add(1, {"k": "x"})
    peer = Peer(worker.path)
    peer.look()
    now = ledger_module.time.monotonic()
    worker.provider.forget({"k": "x"})
    monkeypatch.setattr(ledger_module.time, "monotonic", lambda: now + 3600.0)
    size = worker.provider.ledger._used
    worker.meter.create_counter("b").add(2, {"k": "y"})
    assert worker.provider.ledger._used - size < 500, "no place was used again"
    assert seen(peer) == {("b", ("k", "y")): [2.0]}
    assert seen(Peer(worker.path)) == {("b", ("k", "y")): [2.0]}
    worker.die()
    assert seen(peer) == {("b", ("k", "y")): [2.0]}


def in_span(number: int) -> Any:
    """Attach a sampled span."""
    span = NonRecordingSpan(SpanContext(number, number, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    return otel_context.attach(trace.set_span_in_context(span))


def test_exemplars_belong_to_their_series(worker: Worker):
    """An exemplar that is taken after the series was seen is found, at its series and at no other."""
    histogram = worker.meter.create_histogram("h", explicit_bucket_boundaries_advisory=[1.0])
    for key in ("x", "y", "z"):
        histogram.record(0.5, {"k": key})
    peer = Peer(worker.path)
    peer.look()
    token = in_span(7)
    histogram.record(3.0, {"k": "y"})
    otel_context.detach(token)
    peer.look()
    kept = {series.attributes["k"]: series.read_exemplars() for series in peer.streams[0].series}
    assert kept["x"] is kept["z"] is None
    assert kept["y"] is not None
    assert kept["y"][0] is None
    assert (kept["y"][1].value, kept["y"][1].trace_id) == (3.0, 7)


ODD: list[tuple[int, Any, list[float]]] = [
    (9, {"new": 1}, [1.0]),
    (0, [], []),
    (records.NAMES, {"names": [], "forgets": 0}, []),
    (records.STREAM, {}, []),
    (records.STREAM, [], []),
    (records.STREAM, "x", []),
    (records.STREAM, {"number": 7, **{key: value for key, value in told().items() if key != "rule"}}, []),
    (records.STREAM, {"number": 7, **told(), "shown": "summary"}, []),
    (records.STREAM, {"number": 7, **told(), "bounds": 5}, []),
    (records.STREAM, {"number": 7, **told(), "scope": ["a", "b", "c", "d", "e"]}, []),
    (records.STREAM, {"number": [7], **told()}, []),
    (records.SERIES, [7, [], 1], [1.0]),
    (records.SERIES, [1, [], 1], [1.0, 2.0]),
    (records.SERIES, [1, [], 1], []),
    (records.SERIES, [1, [["k"]], 1], [1.0]),
    (records.SERIES, [1, "k", 1], [1.0]),
    (records.SERIES, [1, [], "x"], [1.0]),
    (records.SERIES, [1], [1.0]),
    (records.SERIES, None, [1.0]),
    (records.EXEMPLARS, [1, [["k", "nobody's"]], 1], [0.0] * 12),
    (records.EXEMPLARS, [1, [["k", "x"]], 1], [0.0] * 5),
]


@pytest.mark.parametrize("number", range(len(ODD)))
def test_what_is_not_understood_is_left_out(worker: Worker, number: int):
    """A record that newer code or nobody has written is left out, and those before and after it are read."""
    counter = worker.meter.create_counter("c")
    counter.add(1, {"k": "x"})
    append(worker.provider.ledger, ODD[number])
    counter.add(2, {"k": "y"})
    peer = Peer(worker.path)
    assert seen(peer) == {("c", ("k", "x")): [1.0], ("c", ("k", "y")): [2.0]}
    assert [series.read_exemplars() for series in peer.streams[0].series] == [None, None]


def test_more_words_than_are_known_do_no_harm(worker: Worker):
    """What newer code says besides is not listened to."""
    append(
        worker.provider.ledger,
        (records.STREAM, {"number": 1, **told(), "colour": "red"}, []),
        (records.SERIES, [1, [], 1], [3.0]),
    )
    assert seen(Peer(worker.path)) == {("c",): [3.0]}


GARBAGE = {
    "empty": b"",
    "short": b"OML",
    "no magic": bytes(SEGMENT_BYTES),
    "another magic": b"OMLEDG01" + (SEGMENT_BYTES).to_bytes(8, "little") + bytes(SEGMENT_BYTES - 16),
    "no length": records.MAGIC + bytes(SEGMENT_BYTES - 8),
    "an odd length": records.MAGIC + (mmap.PAGESIZE + 1).to_bytes(8, "little") + bytes(SEGMENT_BYTES),
    "a small length": records.MAGIC + (48).to_bytes(8, "little") + bytes(SEGMENT_BYTES),
    "too long": records.MAGIC + (2 * SEGMENT_BYTES).to_bytes(8, "little") + bytes(SEGMENT_BYTES - 16),
    "longer than any": records.MAGIC + b"\xff" * 8 + bytes(SEGMENT_BYTES - 16),
    "noise": records.MAGIC + SEGMENT_BYTES.to_bytes(8, "little") + b"\xa5" * (SEGMENT_BYTES - 16),
    "text": b"hello\n" * 1000,
}


@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_says_nothing(tmp_path: Path, content: str):
    """A file that is no ledger has no series and no worker, and ends the reading of nothing."""
    path = tmp_path / "0-x.ledger"
    path.write_bytes(GARBAGE[content])
    peer = Peer(path)
    assert seen(peer) == {}
    assert not peer.is_alive
    peer.close()


@pytest.mark.parametrize("name", ["x", "²-x", "page-x", "-", "1x-x"])
def test_a_name_without_a_number_is_no_workers(tmp_path: Path, name: str):
    """Whatever a file is called it is read, and only a number before the dash is a worker's."""
    path = tmp_path / f"{name}.ledger"
    path.write_bytes(b"")
    peer = Peer(path)
    assert peer.number is None
    peer.close()


def test_a_ledger_that_was_cut_is_read_as_far_as_it_goes(worker: Worker, tmp_path: Path):
    """At whatever byte a ledger ends, nothing but whole records is read."""
    for number in range(3):
        worker.meter.create_counter("c").add(number + 1, {"n": number})
    worker.meter.create_histogram("h").record(1.0)
    end = worker.provider.ledger._used
    content = worker.path.read_bytes()
    whole = seen(Peer(worker.path))
    path = tmp_path / "0-x.ledger"
    for length in [*range(0, end, 7), *range(end, end + 40, 8)]:
        path.write_bytes(content[:length] + bytes(len(content) - length))
        peer = Peer(path)
        found = seen(peer)
        assert all(length < end or found[key] == whole[key] for key in whole if key in found)
        assert found.keys() <= whole.keys()
        peer.close()
    assert found == whole


def test_a_flipped_bit_is_noticed(worker: Worker, tmp_path: Path):
    """Wherever a description or a header was damaged, what is read is what was written, or nothing."""
    worker.meter.create_counter("c").add(1, {"k": "x"})
    end = worker.provider.ledger._used
    content = bytearray(worker.path.read_bytes())
    path = tmp_path / "0-x.ledger"
    cells = end - 8
    for at in range(records.BEGIN, cells):
        content[at] ^= 0x10
        path.write_bytes(content)
        content[at] ^= 0x10
        peer = Peer(path)
        assert seen(peer) in ({}, {("c", ("k", "x")): [1.0]})
        peer.close()


def fail(*_: Any, **__: Any) -> Any:
    """What a process that has too many files open is told."""
    raise OSError(24, "Too many open files")


def test_a_ledger_that_cannot_be_mapped_is_not_taken_for_empty(worker: Worker, monkeypatch: pytest.MonkeyPatch):
    """As long as a dead worker's numbers cannot be read it is not said to be dead: nobody folds what was not read."""
    worker.meter.create_counter("c").add(1)
    peer = Peer(worker.path)
    worker.die()
    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", fail)
        with pytest.raises(OSError, match="Too many"):
            peer.look()
        assert peer.is_alive
    assert seen(peer) == {("c",): [1.0]}
    assert not peer.is_alive


def test_a_ledger_that_is_removed_under_a_reader_is_read_on(worker: Worker):
    """What was mapped stays readable when the file is gone, as its numbers are elsewhere by then."""
    counter = worker.meter.create_counter("c")
    counter.add(1)
    peer = Peer(worker.path)
    peer.look()
    worker.path.unlink()
    worker.die()
    assert seen(peer) == {("c",): [1.0]}
    assert not peer.is_alive


def test_a_ledger_that_is_gone_cannot_be_opened(tmp_path: Path):
    """Nobody has a ledger that is not there."""
    with pytest.raises(FileNotFoundError):
        Peer(tmp_path / "0-x.ledger")


def test_a_link_is_not_followed(worker: Worker, tmp_path: Path):
    """A name that leads elsewhere is no ledger."""
    worker.meter.create_counter("c").add(1)
    link = tmp_path / "0-x.ledger"
    link.symlink_to(worker.path)
    with pytest.raises(OSError, match=r"symbolic links|level"):
        Peer(link)


def test_a_reader_gives_everything_back(worker: Worker):
    """Once it is closed and let go of, no descriptor of a peer is left open."""
    worker.meter.create_counter("c").add(1)
    gc.collect()  # what other tests have left
    before = _open_files()
    peer = Peer(worker.path)
    peer.look()
    assert _open_files() > before
    peer.close()
    del peer
    assert _open_files() == before


def _open_files() -> int:
    return len([*Path("/dev/fd").iterdir()])
