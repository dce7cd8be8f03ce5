"""What the dead leave: the exact totals of any number of them, in one file that is bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_mlops.sdk import records
from otel_mlops.sdk.exemplars import Exemplar
from otel_mlops.sdk.forgotten import Forgotten
from otel_mlops.sdk.merge import combine_by
from otel_mlops.sdk.peers import PeerStream
from otel_mlops.sdk.retired import Retired, load_json, put_in_place, write_beside
from tests.sdk.test_merge import FLOATS, exactly
from tests.sdk.workers import state_folder


@pytest.fixture
def path() -> Iterator[Path]:
    """Where the file of the retired is."""
    with state_folder() as folder:
        yield folder / "retired"


def told(name: str = "c", kind: str = "counter", rule: str = "sum", **rest: Any) -> dict[str, Any]:
    """How a ledger describes a metric."""
    about = {"unit": "", "description": "", "shown": kind, "observed": False, "states": [], "subject": None}
    return {
        "name": name,
        "kind": kind,
        "rule": rule,
        "bounds": [],
        "size": 1,
        "scope": ["m", None, None],
        **about,
        **rest,
    }


class Left:
    """A series as a dead worker has left it."""

    def __init__(self, cells: list[float], *, exemplars: Any = None, born_ns: int = 1, **attributes: Any) -> None:
        self.attributes = attributes
        self.born_ns = born_ns
        self._cells, self._exemplars = cells, exemplars

    def read(self) -> list[float]:
        return self._cells

    def read_exemplars(self) -> Any:
        return self._exemplars


class Dead:
    """A worker that has died, as what folds it sees it."""

    def __init__(self, name: str, *series: Left, about: dict[str, Any] | None = None) -> None:
        self.name = name
        stream: Any = PeerStream(about or told())
        stream.series = [*series]
        self.streams = [stream]


def fold(retired: Retired, *dead: Any, forgotten: Any = (), limit: int = 2000) -> None:
    """Fold dead workers."""
    for each in dead:
        retired.fold(each, Forgotten(forgotten), limit)


def read(retired: Retired) -> dict[Any, list[float]]:
    """What the page makes of the retired, by the attributes."""
    found: dict[Any, list[list[float]]] = {}
    for stream in retired.streams:
        for series in stream.living():
            found.setdefault((stream, *series.attributes.items()), []).append(series.read())
    return {key[1:]: combine_by(key[0].kind, key[0].rule)(every) for key, every in found.items()}


STEPS = st.lists(st.tuples(FLOATS | st.integers(0, 2**53).map(float), st.booleans()), min_size=1, max_size=25)


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_the_total_is_exact_through_saves_and_loads(steps: list[tuple[float, bool]]):
    """However the dead are folded, saved and loaded, their numbers add up as if all had been added at once."""
    with state_folder() as folder:
        retired, path, values = Retired(), folder / "retired", []
        for number, (value, saved) in enumerate(steps):
            fold(retired, Dead(str(number), Left([value])))
            values.append(value)
            if saved:
                retired.save(path)
                retired = Retired.load(path)
            assert read(retired) == {(): [float(exactly(values))]}
        terms = [cells[0] for stream in retired.streams for series in stream.living() for cells in [series.read()]]
        assert exactly(terms) == exactly(values)


@settings(max_examples=50, deadline=None)
@given(st.lists(FLOATS, min_size=2, max_size=12), st.data())
def test_a_death_moves_nothing(values: list[float], data: st.DataObject):
    """The total of the living and the dead is the same float before and after any of them is folded."""
    retired, living = Retired(), [[value] for value in values]
    before = combine_by("counter", "sum")(living)
    while living:
        fold(retired, Dead("x", Left(living.pop(data.draw(st.integers(0, len(living) - 1))))))
        gone = [series.read() for stream in retired.streams for series in stream.living()]
        assert combine_by("counter", "sum")([*living, *gone]) == before


def test_histograms_keep_their_counts_and_the_exact_sum(path: Path):
    """Buckets and the sum of a histogram go through the file, though one float does not hold the sum."""
    about = told("h", "histogram", bounds=[1.0])
    retired = Retired()
    sums = [0.1, 1e16, -1e16, 1 / 3, 5e-324]
    for number, total in enumerate(sums):
        fold(retired, Dead(str(number), Left([1.0, float(number), total]), about=about))
    retired.save(path)
    [cells] = read(Retired.load(path)).values()
    assert cells == [5.0, 10.0, float(exactly(sums))]


def test_the_latest_goes_by_the_time_and_not_by_the_order_of_deaths():
    """Of gauges that outlive their workers the one that was set last stays."""
    for order in ([1, 2, 3], [3, 2, 1], [2, 3, 1]):
        retired = Retired()
        for at in order:
            fold(retired, Dead(str(at), Left([at * 10.0, float(at)]), about=told("g", "gauge", "latest")))
        assert read(retired) == {(): [30.0, 3.0]}


@pytest.mark.parametrize("rule", ["living", "min", "worst", "worker", "once"])
def test_what_counts_the_living_is_not_kept(rule: str, path: Path):
    """A number that is the living's alone is in no file of the dead."""
    retired = Retired()
    fold(retired, Dead("a", Left([1.0, 2.0]), about=told("g", "gauge", rule)))
    assert read(retired) == {}
    assert retired.names == ["a"]
    retired.save(path)
    assert Retired.load(path).streams == []


def test_of_exemplars_the_newest_of_each_bucket_stays(path: Path):
    """Through any order of deaths and the file, each bucket has the exemplar that was taken last."""
    about = told("h", "histogram", bounds=[1.0, 2.0])
    old, new, only = Exemplar(0.5, 10.0, 1, 2), Exemplar(0.25, 20.0, 2**127, 2**63), Exemplar(1.5, 5.0, 0, 0)
    for first, second in (([old, only, None], [new, None, None]), ([new, None, None], [old, only, None])):
        retired = Retired()
        fold(retired, Dead("a", Left([1.0, 1.0, 0.0, 1.0], exemplars=first), about=about))
        fold(retired, Dead("b", Left([1.0, 0.0, 0.0, 1.0]), about=about))
        fold(retired, Dead("c", Left([1.0, 0.0, 0.0, 1e-20], exemplars=second), about=about))
        retired.save(path)
        first_term, *rest = Retired.load(path).streams[0].living()
        assert first_term.read_exemplars() == [new, only, None]
        assert rest
        assert [each.read_exemplars() for each in rest] == [None] * len(rest)


def test_attributes_come_back_as_they_were(path: Path):
    """Series are told apart by the type of their attributes as well, before the file and after it."""
    kinds = [1, 1.0, True, "1", ("1",), (1, 2), b"\x00\xff", None, "é\n", "\ud800"]
    retired = Retired()
    for _ in range(3):
        fold(retired, Dead("a", *[Left([1.0], k=kind) for kind in kinds]))
        retired.save(path)
        retired = Retired.load(path)
    series = retired.streams[0].living()
    assert [(type(each.attributes["k"]), each.attributes["k"]) for each in series] == [(type(k), k) for k in kinds]
    assert [each.read() for each in series] == [[3.0]] * len(kinds)


def test_the_birth_is_that_of_the_first():
    """A series was born when the first of its workers recorded into it."""
    retired = Retired()
    fold(retired, *[Dead(str(born), Left([1.0], born_ns=born)) for born in (20, 10, 30)])
    assert [series.born_ns for series in retired.streams[0].living()] == [10]


def test_metrics_that_are_described_otherwise_are_kept_apart(path: Path):
    """Of older code the unit, the buckets, the kind or the scope may differ: nothing is added up across them."""
    abouts = [
        told(),
        told(unit="s"),
        told(kind="updown"),
        told(rule="latest", kind="gauge"),
        told(scope=["m", "2", None]),
        told(kind="histogram", bounds=[1.0]),
        told(kind="histogram", bounds=[2.0]),
    ]
    retired = Retired()
    for name in ("a", "b"):
        for about in abouts:
            size = {"histogram": 3, "gauge": 2}.get(about["kind"], 1)
            fold(retired, Dead(name, Left([1.0] * size), about=about))
    fold(retired, Dead("c", Left([1.0]), about=told(description="told in other words")))
    retired.save(path)
    cells = [each.read() for stream in Retired.load(path).streams for each in stream.living()]
    assert cells == [[3.0], [2.0], [2.0], [1.0, 1.0], [2.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]


def test_past_the_cap_series_go_to_the_overflow():
    """The retired have no more series of a metric than the cap and one; no count is lost by that."""
    retired = Retired()
    for number in range(50):
        fold(retired, Dead(str(number), Left([1.0], n=number), Left([0.5], n=number % 2)), limit=10)
    found = read(retired)
    assert len(found) == 11
    assert found[("otel.metric.overflow", True),] == [40.0 * 1.0]
    assert math.fsum(cells[0] for cells in found.values()) == 75.0


def test_what_was_forgotten_is_not_folded():
    """A worker that died before it could forget does not bring back what another was asked to forget."""
    retired = Retired()
    fold(
        retired, Dead("a", Left([1.0], v="1"), Left([2.0], v="2", k="x")), forgotten=[{"v": "1"}, {"v": "2", "k": "y"}]
    )
    assert read(retired) == {(("v", "2"), ("k", "x")): [2.0]}


def test_forgetting_removes_what_carries_all_of_the_labels():
    """Of the retired the series with the labels go, and the others stay."""
    retired = Retired()
    fold(retired, Dead("a", Left([1.0], v="1", k="x"), Left([2.0], v="1"), Left([4.0])))
    retired.forget({"v": "1", "k": "x"})
    assert [*read(retired).values()] == [[2.0], [4.0]]
    retired.forget({"v": "1"})
    assert [*read(retired).values()] == [[4.0]]


@pytest.mark.parametrize("forgotten_first", [True, False])
def test_an_up_down_counter_in_use_is_not_forgotten(forgotten_first: bool):
    """What one worker has added and another is to take away stays, whether it is forgotten before or after."""
    about, labels = told("u", "updown"), {"v": "1"}
    retired = Retired()
    fold(retired, Dead("a", Left([2.0], v="1"), about=about), forgotten=[labels] if forgotten_first else [])
    retired.forget(labels)
    assert read(retired) == {(("v", "1"),): [2.0]}
    fold(retired, Dead("b", Left([-2.0], v="1"), about=about))
    retired.forget(labels)
    assert read(retired) == {}


@pytest.mark.parametrize("content", [b"", b"garbage", b"OMLEDG01" + bytes(100), bytes(64)])
def test_a_file_of_another_format_is_an_error(path: Path, content: bytes):
    """What is no file of the retired is not taken for an empty one."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no ledger"):
        Retired.load(path)


def test_where_there_is_no_file_nobody_has_died(path: Path):
    """Without a file there is nothing left of anybody."""
    retired = Retired.load(path)
    assert (retired.names, retired.streams, retired.forgets) == ([], [], 0)


def test_a_file_that_was_cut_is_read_as_far_as_it_goes(path: Path):
    """At whatever byte a file ends, what is whole in it is read, and nothing else."""
    retired = Retired()
    fold(retired, Dead("a", Left([1.0], v="1"), Left([2.0], v="2")))
    retired.save(path)
    whole = path.read_bytes()
    seen = set()
    for length in range(len(records.MAGIC), len(whole) + 1):
        path.write_bytes(whole[:length])
        left = Retired.load(path)
        seen.add((tuple(left.names), tuple(cells[0] for cells in read(left).values())))
    assert seen == {((), ()), (("a",), ()), (("a",), (1.0,)), (("a",), (1.0, 2.0))}


def test_what_is_not_understood_is_left_out(path: Path):
    """A record of newer code, of unknown kind or with other words in it, takes nothing else with it."""
    retired = Retired()
    fold(retired, Dead("a", Left([1.0], v="1")), Dead("b", Left([2.0]), about=told("d")))
    odd: list[tuple[int, Any, list[float]]] = [
        (9, {"new": 1}, []),
        (records.STREAM, {"number": 7}, []),
        (records.STREAM, told(kind="summary") | {"number": 8}, []),
        (records.SERIES, [7, [], [1, 1]], [1.0]),
        (records.SERIES, [1, [["v", "2"]], [1, 0]], [1.0]),
        (records.SERIES, [1, "x", 5, 6], [1.0]),
        (records.EXEMPLARS, [1, [], [[1]]], []),
    ]
    path.write_bytes(_among(retired._content(), odd))
    left = Retired.load(path)
    assert left.names == ["a", "b"]
    assert sorted(cells[0] for cells in read(left).values()) == [1.0, 2.0]


def _among(content: bytes, odd: list[tuple[int, Any, list[float]]]) -> bytes:
    """The content of a ledger with more records at its end."""
    texts = [records.encode(description) for _, description, _ in odd]
    more = sum(records.size_of(text, len(cells)) for text, (_, _, cells) in zip(texts, odd, strict=True))
    out = bytearray(content) + bytearray(more)
    segment, offset = memoryview(out), len(content)
    records.SEGMENT_HEADER.pack_into(segment, 0, records.MAGIC, len(out))
    for text, (kind, _, cells) in zip(texts, odd, strict=True):
        records.write(segment, offset, kind, text, cells)
        offset += records.size_of(text, len(cells))
    return bytes(out)


def test_the_file_does_not_grow_with_the_dead(path: Path):
    """Ten thousand dead workers take hardly more room than ten."""
    retired, sizes = Retired(), []
    for number in range(10_000):
        fold(retired, Dead(str(number), Left([number / 7], v="1")))
        retired.names = retired.names[-1:]  # as the files of the others are gone
        if number in (10, 9_999):
            retired.save(path)
            sizes.append(path.stat().st_size)
    assert sizes[1] <= sizes[0] + 64
    assert sum(map(Fraction, [cells[0] for cells in read(retired).values()])) > 0


def test_a_file_is_replaced_as_a_whole(path: Path):
    """Until the new content is put in place the old one stands; what could not be written leaves nothing."""
    path.write_bytes(b"old")
    write_beside(path, b"new")
    assert path.read_bytes() == b"old"
    put_in_place(path)
    assert path.read_bytes() == b"new"
    assert [*path.parent.iterdir()] == [path]


def test_a_write_that_fails_leaves_nothing_beside(path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a full disk the half-written file goes, and the error is told."""
    import os

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match="No space"):
        write_beside(path, b"new")
    assert not [*path.parent.iterdir()]


def test_json_that_is_not_there_or_broken_is_something_else(path: Path):
    """A file of the group that is absent or cannot be parsed is as if nothing had been kept."""
    assert load_json(path, 1) == 1
    path.write_text("{")
    assert load_json(path, 2) == 2
    path.write_text("[3]")
    assert load_json(path, 4) == [3]
