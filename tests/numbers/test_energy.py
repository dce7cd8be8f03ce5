"""Sharing energy out among intervals, held against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import fsum, inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_mlops.numbers.energy import Shares, Slot, price, share

TIMES = st.floats(0.0, 100.0)
JOULES = st.floats(0.0, 1e5)
WEIGHTS = st.integers(1, 10_000).map(float)


@st.composite
def intervals(draw, most=12):
    """Intervals in any order: some at once, some of no length, some that still run."""
    found = []
    for _ in range(draw(st.integers(0, most))):
        begin, end = sorted((draw(TIMES), draw(TIMES)))
        found.append((begin, draw(st.sampled_from([end, end, begin, inf])), draw(WEIGHTS)))
    if found and draw(st.booleans()):
        found.append(found[0])
    return found


@st.composite
def slots(draw, most=8):
    """Slots in order, with and without time between them."""
    ends = sorted(set(draw(st.lists(TIMES, min_size=2, max_size=most))))
    stretches = [each for each in pairwise(ends) if draw(st.integers(0, 3))]
    return [Slot(begin, end, draw(JOULES)) for begin, end in stretches]


def exactly(every, slots) -> Shares:
    """The same by the definition, moment by moment, in fractions."""
    times = sorted({Fraction(time) for each in [*every, *slots] for time in each[:2] if time < inf})
    shares, idle = [Fraction(0)] * len(every), Fraction(0)
    for begin, end in pairwise(times):
        for slot in slots:
            if Fraction(slot.begin) <= begin and end <= Fraction(slot.end):
                used = Fraction(slot.joules) * (end - begin) / (Fraction(slot.end) - Fraction(slot.begin))
                runs = [index for index, (since, until, _) in enumerate(every) if since <= begin and end <= until]
                weight = sum(Fraction(every[index][2]) for index in runs)
                for index in runs:
                    shares[index] += used * Fraction(every[index][2]) / weight
                idle += 0 if runs else used
    return Shares([float(each) for each in shares], float(idle))


def near(amount, slots):
    """About an amount, on the scale of the energy that there is."""
    return pytest.approx(amount, rel=1e-9, abs=1e-12 * (1.0 + energy(slots)))


def energy(slots) -> float:
    """All that was used."""
    return fsum(slot.joules for slot in slots)


@given(intervals(), slots())
@example([(0.0, 2.0, 1.0), (1.0, 2.0, 3.0)], [Slot(0.0, 4.0, 400.0)])
@example([(1.0, 1.0, 1.0), (0.0, inf, 1.0)], [Slot(0.0, 1.0, 5.0), Slot(1.0, 2.0, 7.0)])
def test_each_interval_gets_what_exact_arithmetic_gives_it(every, slots):
    """The shares and the idle energy are those of the definition, worked out in fractions."""
    found, wanted = share(every, slots), exactly(every, slots)
    assert found.joules == near(wanted.joules, slots)
    assert found.idle == near(wanted.idle, slots)


@given(intervals(most=60), slots())
def test_nothing_is_lost_and_nothing_is_made(every, slots):
    """Shares and idle energy add up to the energy of the slots, and none is negative."""
    joules, idle = share(every, slots)
    assert fsum([*joules, idle]) == pytest.approx(energy(slots), rel=1e-9, abs=1e-300)
    assert min([*joules, idle]) >= 0.0


def test_long_sums_lose_nothing_either():
    """A short call after ten thousand others, most of them much larger, gets its share to twelve digits."""
    every = [(second, second + 0.3, 7.0) for second in range(10_000)] + [(9_999.75, 9_999.75 + 2.0**-20, 1.0)]
    joules, idle = share(every, [Slot(0.0, 10_000.0, 1e7 / 3)])
    assert joules[-1] == pytest.approx(1e3 / 3 * 2.0**-20, rel=1e-12)
    assert fsum([*joules, idle]) == pytest.approx(1e7 / 3, rel=1e-14)


def test_a_weight_beyond_measure_leaves_nothing_behind():
    """What rounding makes of the weights ends with the calls: those after them get their shares."""
    every = [(0.0, 1.0, 1e17), (0.0, 1.0, 1.0), (2.0, 3.0, 1.0)]
    assert share(every, [Slot(0.0, 4.0, 400.0)]).joules[2] == pytest.approx(100.0)


@given(intervals(), slots())
def test_what_does_not_overlap_gets_nothing(every, slots):
    """An interval outside of all slots, or of no length, gets exactly 0 and changes nothing."""
    outside = [(200.0, 300.0, 5.0), (50.0, 50.0, 5.0)]
    before = share(every, slots)
    after = share([*every, *outside], slots)
    assert after.joules[-2:] == [0.0, 0.0]
    assert after.joules[:-2] == near(before.joules, slots)


@given(intervals(), slots(), st.floats(0.01, 0.99))
def test_a_slot_in_two_parts_is_the_same(every, slots, part):
    """Splitting slots changes no share."""
    halves = []
    for slot in slots:
        middle = slot.begin + (slot.end - slot.begin) * part
        if slot.begin < middle < slot.end:
            used = slot.joules * ((middle - slot.begin) / (slot.end - slot.begin))
            halves += [Slot(slot.begin, middle, used), Slot(middle, slot.end, slot.joules - used)]
        else:
            halves.append(slot)
    assert share(every, halves).joules == near(share(every, slots).joules, slots)


@given(intervals(), slots(), st.randoms(use_true_random=False))
def test_the_order_of_the_intervals_does_not_matter(every, slots, random):
    """Whose calls come first, and which worker they are of, changes nothing."""
    order = [*range(len(every))]
    random.shuffle(order)
    mixed = share([every[index] for index in order], slots)
    assert mixed.joules == near([share(every, slots).joules[index] for index in order], slots)


@given(intervals(), slots(), TIMES, TIMES)
def test_equal_ones_get_equal_parts(every, slots, begin, end):
    """Two that run at the same times with the same weight get the same, to the last digit."""
    twin = (min(begin, end), max(begin, end), 3.0)
    joules = share([twin, *every, twin], slots).joules
    assert joules[0] == joules[-1]


@given(intervals(), slots(), TIMES, TIMES)
def test_weight_two_is_two_of_weight_one(every, slots, begin, end):
    """A call of two rows gets what two calls of a row get together, and the others do not notice."""
    begin, end = min(begin, end), max(begin, end)
    one = share([(begin, end, 2.0), *every], slots)
    two = share([(begin, end, 1.0), (begin, end, 1.0), *every], slots)
    assert one.joules[0] == near(two.joules[0] + two.joules[1], slots)
    assert one.joules[1:] == near(two.joules[2:], slots)


def test_without_intervals_all_is_idle():
    """Where nothing ran all is idle, and where nothing was used there is nothing."""
    assert share([], [Slot(0.0, 1.0, 5.0), Slot(1.0, 3.0, 7.0)]) == ([], 12.0)
    assert share([(0.0, 1.0, 1.0)], []) == ([0.0], 0.0)


# --- The price of a period ---------------------------------------------------------------------------------


@given(st.lists(st.tuples(TIMES, st.floats(0.0, 1e4)), max_size=10), TIMES, TIMES, JOULES)
def test_a_period_has_the_energy_that_was_counted(powers, begin, end, joules):
    """Whatever the power was, the slots fill the period without a gap and add up to the counter's energy."""
    begin, end = min(begin, end), max(begin, end) + 1.0
    found = price(sorted(powers), begin, end, joules)
    assert (found[0].begin, found[-1].end) == (begin, end)
    assert all(one.end == other.begin for one, other in pairwise(found))
    assert all(slot.begin < slot.end and slot.joules >= 0.0 for slot in found)
    assert energy(found) == pytest.approx(joules, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    ("powers", "joules"),
    [
        ([(1.0, 100.0), (2.0, 300.0)], [25.0, 75.0]),
        ([(-5.0, 900.0), (0.0, 900.0), (1.0, 100.0), (2.0, 300.0), (3.0, 900.0)], [25.0, 75.0]),
        ([(1.0, 100.0), (2.5, 300.0), (3.0, 900.0)], [25.0, 75.0]),
        ([(1.0, 100.0)], [50.0, 50.0]),
        ([(1.0, 0.0), (2.0, 0.0)], [50.0, 50.0]),
        ([(2.0, 70.0)], [100.0]),
        ([], [100.0]),
    ],
    ids=["whole", "and outside", "past the end", "the last goes on", "no power", "one", "unknown"],
)
def test_a_period_is_spread_by_the_power_that_was_seen(powers, joules):
    """Each stretch gets a part in proportion to its power; where no power is known, to its length."""
    assert [slot.joules for slot in price(powers, 0.0, 2.0, 100.0)] == pytest.approx(joules)
