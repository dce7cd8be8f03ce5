"""The life of a group against a model of it: whoever comes, dies or leads when, the page has the exact totals."""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from otel_mlops.sdk import retired as retired_module
from tests.sdk.workers import Worker, state_folder

AMOUNTS = [1.0, 3.0, 0.1, 0.7, 1 / 3, 1e16, 5e-324, 2.0**53]
METRICS = ["a", "b"]
LABELS = ["x", "y"]
STEPS = ["write_beside", "put_in_place", "unlink"]
BOUNDS = [1.0, 100.0]

amounts, metrics, labels = st.sampled_from(AMOUNTS), st.sampled_from(METRICS), st.sampled_from(LABELS)
some = st.integers(0, 100)


class Killed(BaseException):
    """The process ends here."""


class GroupLife(RuleBasedStateMachine):
    """Workers that join, record, die, leave, lead and forget; and what the page must say at any time.

    The model keeps of each counter the terms as each worker's cell adds them up, one rounding at a time, and
    adds the cells up without any.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.state = self.stack.enter_context(state_folder())
        self.workers: list[Worker] = []
        self.leader: Worker | None = None
        self.cells: dict[tuple[str, str], dict[Any, float]] = {}
        """Of each counter what each worker has added up, by an object that stands for it."""
        self.counts: dict[Any, int] = {}
        self.under_way: dict[Worker, float] = {}
        self.last: dict[str, float] = {}
        self.dead = 0

    def teardown(self) -> None:
        for worker in self.workers:
            worker.die()
        self.stack.close()

    # --- What happens ----------------------------------------------------------------------------------------

    @rule()
    def join(self) -> None:
        """A worker comes."""
        if len(self.workers) < 5:
            worker = Worker(self.state)
            worker.meter.create_counter("births").add(1)
            self._add("births", "", worker, 1.0)
            self.workers.append(worker)

    @precondition(lambda self: self.workers)
    @rule(who=some, metric=metrics, label=labels, amount=amounts)
    def record(self, who: int, metric: str, label: str, amount: float) -> None:
        """A worker counts."""
        worker = self._pick(who)
        worker.follow()
        worker.meter.create_counter(metric).add(amount, {"k": label})
        self._add(metric, label, worker, amount)

    @precondition(lambda self: self.workers)
    @rule(who=some, amount=amounts)
    def measure(self, who: int, amount: float) -> None:
        """A worker measures."""
        worker = self._pick(who)
        worker.meter.create_histogram("h", explicit_bucket_boundaries_advisory=BOUNDS).record(amount)
        self._add("h", "", worker, amount)
        bucket = sum(amount > bound for bound in BOUNDS)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1

    @precondition(lambda self: self.workers)
    @rule(who=some, amount=st.sampled_from([1.0, -1.0, 0.5]))
    def work(self, who: int, amount: float) -> None:
        """A worker begins or ends something."""
        worker = self._pick(who)
        worker.meter.create_up_down_counter("u").add(amount)
        self.under_way[worker] = self.under_way.get(worker, 0.0) + amount

    @precondition(lambda self: len(self.workers) > 1)
    @rule(who=some)
    def die(self, who: int) -> None:
        """A worker is killed."""
        worker = self._remove(who)
        worker.die()
        self.dead += 1

    @precondition(lambda self: len(self.workers) > 1)
    @rule(who=some)
    def leave(self, who: int) -> None:
        """A worker ends as it should."""
        self._remove(who).leave()
        self.dead += 1

    @precondition(lambda self: self.workers)
    @rule(who=some)
    def end_as_a_whole(self, who: int) -> None:
        """All workers are killed; who comes next begins at nothing."""
        while self.workers:
            self._remove(who).die()
        self.cells, self.counts, self.last, self.dead = {}, {}, {}, 0

    @precondition(lambda self: self.workers)
    @rule(who=some)
    def lead(self, who: int) -> None:
        """A worker leads if nobody does, and retires the dead."""
        leader = self._lead(who)
        leader.everyone.retire()
        self.dead = 0

    @precondition(lambda self: len(self.workers) > 1)
    @rule(who=some, step=st.sampled_from(STEPS), late=st.booleans())
    def die_while_retiring(self, who: int, step: str, late: bool) -> None:
        """The leader is killed before or after a step of retiring."""
        leader = self._lead(who)
        with self._at(step, late, Killed()), contextlib.suppress(Killed):
            leader.everyone.retire()
        self._remove(self.workers.index(leader)).die()
        self.dead += 1

    @precondition(lambda self: self.workers)
    @rule(who=some, step=st.sampled_from(STEPS), late=st.booleans())
    def fail_while_retiring(self, who: int, step: str, late: bool) -> None:
        """A step of retiring fails, as on a full disk."""
        with self._at(step, late, OSError(28, "No space left on device")):
            self._lead(who).everyone.retire()

    @precondition(lambda self: self.workers)
    @rule(who=some, label=labels)
    def forget(self, who: int, label: str) -> None:
        """A worker has a label forgotten; the others have yet to follow."""
        self._pick(who).forget(k=label)
        for key in [key for key in self.cells if key[1] == label]:
            self.cells[key] = {}
        self.last = {series: value for series, value in self.last.items() if f'k="{label}"' not in series}

    @precondition(lambda self: self.workers)
    @rule()
    def follow(self) -> None:
        """Every worker does what it was asked to."""
        for worker in self.workers:
            worker.follow()

    # --- What holds ------------------------------------------------------------------------------------------

    @invariant()
    def the_page_is_exact(self) -> None:
        """Any worker's page has the totals, each rounded once, and none steps back."""
        for worker in self.workers[:2] + self.workers[2:][-1:]:
            page = worker.page()
            expected = {}
            for (metric, label), cells in self.cells.items():
                if cells:
                    total = float(sum(map(Fraction, cells.values())))
                    braces = f'{{k="{label}"}}' if label else ""
                    expected["h_sum" if metric == "h" else f"{metric}_total{braces}"] = total
            if self.counts:
                ends = ["1.0", "100.0", "+Inf"]
                for index, end in enumerate(ends):
                    expected[f'h_bucket{{le="{end}"}}'] = sum(self.counts.get(each, 0) for each in range(index + 1))
                expected["h_count"] = sum(self.counts.values())
            living = [self.under_way[each] for each in self.workers if each in self.under_way]
            if living:
                expected["u"] = math.fsum(living)
            assert page == expected
            growing = {series: value for series, value in page.items() if series != "u"}
            assert all(growing[series] >= value for series, value in self.last.items())
            self.last = growing

    @invariant()
    def files_are_bounded(self) -> None:
        """There are no more files than workers and dead who were not retired, and those of the group."""
        if self.workers:
            names = {path.name for path in self.workers[0].files()}
            assert len(names) <= len(self.workers) + self.dead + len(
                {"door", "lead", "retired", "retired.new", "forgets"}
            )
            assert not {name for name in names if name.endswith(".new")} - {"retired.new"}

    # --- How -------------------------------------------------------------------------------------------------

    def _pick(self, who: int) -> Worker:
        return self.workers[who % len(self.workers)]

    def _remove(self, who: int) -> Worker:
        worker = self.workers.pop(who % len(self.workers))
        self.under_way.pop(worker, None)
        if self.leader is worker:
            self.leader = None
        return worker

    def _lead(self, who: int) -> Worker:
        if self.leader is None:
            self.leader = self._pick(who)
        assert self.leader.group.try_to_lead()
        assert not any(each.group.try_to_lead() for each in self.workers if each is not self.leader)
        return self.leader

    def _add(self, metric: str, label: str, worker: Worker, amount: float) -> None:
        cells = self.cells.setdefault((metric, label), {})
        cells[worker] = cells.get(worker, 0.0) + amount

    @contextlib.contextmanager
    def _at(self, step: str, late: bool, error: BaseException) -> Any:
        owner: Any = Path if step == "unlink" else retired_module
        real = getattr(owner, step)

        def stopping(path: Path, *arguments: Any, **named: Any) -> Any:
            if step == "unlink" and path.suffix != ".ledger":
                return real(path, *arguments, **named)
            if late:
                real(path, *arguments, **named)
            raise error

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(owner, step, stopping)
            yield


def test_the_page_of_a_group_follows_its_model():
    """Through any life of a group its page is exact and never steps back."""
    run_state_machine_as_test(GroupLife, settings=settings(max_examples=25, stateful_step_count=30, deadline=None))


@pytest.mark.stress
def test_the_page_of_a_group_follows_its_model_for_long():
    """Through any long life of a group its page is exact and never steps back."""
    run_state_machine_as_test(GroupLife, settings=settings(max_examples=200, stateful_step_count=60, deadline=None))
