"""The file format: whoever reads while a record is written sees what is whole, and nothing that never was."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from otel_mlops.sdk import records
from otel_mlops.sdk.records import EXEMPLARS, SERIES, STREAM

KINDS = st.sampled_from([STREAM, SERIES, EXEMPLARS])


class Watched:
    """A segment of which every state is kept that another process may see, in whatever order the bytes arrive.

    Eight bytes are written at once by every processor, in any order within one copy.
    """

    def __init__(self, size: int) -> None:
        self.memory = memoryview(bytearray(size))
        self.states: list[bytes] = []

    def __getitem__(self, index: Any) -> Any:
        return self.memory[index]

    def __setitem__(self, index: int | slice, value: Any) -> None:
        self.states.append(bytes(self.memory))
        if isinstance(index, slice):
            begin, end = index.start, index.stop
            edges = [begin, *range(begin - begin % 8 + 8, end, 8), end]
            pieces = list(pairwise(edges))
            for ordered in (pieces, pieces[::-1]):
                before = bytes(self.memory)
                for first, last in ordered:
                    self.memory[first:last] = value[first - begin : last - begin]
                    self.states.append(bytes(self.memory))
                self.memory[:] = before
        self.memory[index] = value
        self.states.append(bytes(self.memory))


def found_in(state: bytes) -> Iterator[tuple[int, Any, list[float]]]:
    """The records that whoever looks at this state reads."""
    segment = memoryview(state)
    for found in records.scan(segment, 0):
        if not found.forgotten:
            yield found.kind, records.describe(segment, found), records.cells_of(segment, found).tolist()


TEXTS = st.text(
    st.characters(codec="ascii", exclude_characters='"\\\x7f', min_codepoint=32), max_size=25
)  # as long in JSON
CELLS = st.integers(0, 5)


@settings(max_examples=150, deadline=None)
@given(
    # Whatever stands before: the edges of a record are at any multiple of eight.
    st.integers(0, 3).map(lambda cells: (STREAM, "before", [1.5] * cells)),
    st.tuples(KINDS, TEXTS),
    st.tuples(KINDS, TEXTS),
    CELLS,
    st.tuples(KINDS, TEXTS, CELLS.map(lambda cells: [2.5] * cells)),
)
def test_a_place_that_is_used_again_shows_no_false_record(
    before: tuple[int, str, list[float]],
    old: tuple[int, str],
    new: tuple[int, str],
    cells: int,
    behind: tuple[int, str, list[float]],
):
    """At each step of forgetting a record and writing another over it, the others are read, and it is one or none."""
    first, second = (*old, [7.0] * cells), (*new, [-9.0] * cells)
    segment, offset = Watched(1024), 0
    begins = []
    for kind, text, values in (before, first, behind):
        begins.append(offset)
        written = records.encode(text)
        records.write(segment, offset, kind, written, values)  # type: ignore[arg-type]
        offset += records.size_of(written, len(values))
    assert list(found_in(segment.states[-1])) == [before, first, behind]
    for count, state in enumerate(segment.states):
        seen = list(found_in(state))
        assert seen == [before, first, behind][: len(seen)], f"at step {count}"
    segment.states.clear()
    assert records.forget(segment, begins[1])  # type: ignore[arg-type]
    records.write(segment, begins[1], second[0], records.encode(second[1]), second[2])  # type: ignore[arg-type]
    stories = [list(found_in(state)) for state in segment.states]
    assert stories[0] == [before, first, behind]
    assert stories[-1] == [before, second, behind]
    assert [story for story in stories if story not in ([before, first, behind], [before, behind], stories[-1])] == []
    changes = [story for last, story in pairwise(stories) if story != last]
    assert changes == [[before, behind], [before, second, behind]], "it came back, or went, in between"


def test_forgetting_is_done_once():
    """Whoever forgets a record that is forgotten is told so, and until its place is used again nothing is there."""
    segment = memoryview(bytearray(256))
    records.write(segment, 0, SERIES, records.encode("x"), [1.0])
    assert [records.forget(segment, 0), records.forget(segment, 0)] == [True, False]
    assert list(found_in(bytes(segment))) == []
    records.write(segment, 0, SERIES, records.encode("y"), [2.0])
    assert list(found_in(bytes(segment))) == [(SERIES, "y", [2.0])]
    assert records.forget(segment, 0)


def test_descriptions_of_about_the_same_length_take_the_same_place():
    """A description is padded, with nothing that is read, so that places are of few sizes."""
    sizes = {len(records.encode("x" * length)) for length in range(62)}
    assert sizes == {32, 64}
