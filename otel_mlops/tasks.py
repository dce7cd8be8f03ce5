"""Scheduled tasks: functions that run in the background at an interval; their runs are counted and timed.

APScheduler tells when a task is due. A synchronous function then runs in a daemon thread of its own, an
asynchronous one on an event loop that the tasks share and the service does not. APScheduler's own executors
are not used: they run on `concurrent.futures`, whose threads the interpreter joins at its exit, so that one
task that hangs would keep the process alive.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, wait
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from otel_mlops.metrics import SCHEDULED_TASK_DURATION, SCHEDULED_TASK_RUNS

if TYPE_CHECKING:
    from otel_mlops.sdk.provider import MeterProvider

logger = logging.getLogger(__name__)

_SHORTEST_S = 0.001
_LONGEST_S = 366 * 86_400


class Tasks:
    """The scheduled tasks of one process.

    A task runs at once when it is scheduled or started, then every interval. Runs of one task do not overlap:
    one that falls due while the last is under way is counted as `missed`. Runs that fell due while the
    machine slept are made up for by one. `is_leader` is asked before each run of a task that runs once per
    group.
    """

    def __init__(self, instruments: MeterProvider, *, is_leader: Callable[[], bool] = lambda: True) -> None:
        self._instruments = instruments
        self._is_leader = is_leader
        self._tasks: dict[str, _Task] = {}
        self._lock = threading.RLock()
        self._running = False
        self._scheduler: Any = None
        self._loop: _Loop | None = None

    def schedule(
        self,
        func: Callable[[], object],
        interval_seconds: float,
        task_name: str,
        *,
        once_per_group: bool = False,
    ) -> None:
        """Run `func` every `interval_seconds`, at once for the first time, or from `start()` on.

        With `once_per_group` it runs in the leader only. Where the module that schedules it is executed once
        more (`python app.py`, whose server imports app), the newer function takes the place of the older.

        Units:   seconds, from a millisecond to a year.
        Errors:  TypeError or ValueError that names the argument; ValueError if the name is taken by another
                 function or another interval.
        """
        _check(func, interval_seconds, task_name)
        is_due = self._is_leader if once_per_group else None
        with self._lock:
            known = self._tasks.get(task_name)
            if known is not None:
                if not known.is_again(func, interval_seconds, is_due):
                    raise ValueError(f"task_name is {task_name!r}, expected a name that is not scheduled already")
                known.func = func
                return
            task = _Task(self._instruments, func, interval_seconds, task_name, is_due)
            self._tasks[task_name] = task
            scheduler = self._open_scheduler() if self._running else None
        self._add(scheduler, [task])

    def start(self) -> None:
        """Begin to run the tasks; does nothing while they run."""
        with self._lock:
            if self._running:
                return
            self._running = True
            tasks = list(self._tasks.values())
            scheduler = self._open_scheduler() if tasks else None
        self._add(scheduler, tasks)

    def stop(self, timeout_s: float) -> bool:
        """Begin no more runs, wait at most `timeout_s` for those under way, and say whether all have ended.

        Past that time asynchronous runs are cancelled and synchronous ones left behind in their threads. The
        tasks stay scheduled, and `start()` runs them again.
        """
        with self._lock:
            self._running = False
            scheduler, self._scheduler = self._scheduler, None
            loop, self._loop = self._loop, None
            under_way = {run: task.name for task in self._tasks.values() if (run := task.awaited_run())}
        if scheduler is not None:
            # It waits for the thread that tells when tasks are due, in which nothing of the users' runs.
            scheduler.shutdown(wait=False)
        left = wait(under_way, timeout_s).not_done
        if loop is not None:
            loop.end()
        if left:
            names = ", ".join(sorted(under_way[run] for run in left))
            logger.warning("Tasks still running after %g s are left behind: %s", timeout_s, names)
        return not left

    def after_fork(self) -> None:
        """Begin anew in a forked child: the tasks stay scheduled, and none runs until `start()`."""
        self._lock = threading.RLock()
        self._running = False
        self._scheduler = None
        self._loop = None
        for task in self._tasks.values():
            task.forget_run()

    def _open_scheduler(self) -> Any:
        if self._scheduler is None:
            self._scheduler = _start_scheduler()
        return self._scheduler

    def _add(self, scheduler: Any, tasks: Iterable[_Task]) -> None:
        """Let the scheduler tell when tasks are due.

        Without our lock: the scheduler's thread holds a lock of its own when it comes for ours to begin a run,
        and adding a job waits for that one.
        """
        if scheduler is None:
            return
        from apscheduler.triggers.interval import IntervalTrigger

        for task in tasks:
            scheduler.add_job(
                self._begin_run,
                IntervalTrigger(seconds=task.interval_s, timezone=UTC),
                args=(task,),
                id=task.name,
                next_run_time=datetime.now(UTC),
                misfire_grace_time=None,
                coalesce=True,
                max_instances=1,
            )

    def _begin_run(self, task: _Task) -> None:
        """Begin a run of a task that is due; called in the scheduler's thread."""
        with self._lock:
            if not self._running:
                return
            if task.is_under_way():
                task.miss("its last run has not ended")
                return
            try:
                if task.is_async:
                    task.begin_on(self._open_loop())
                else:
                    task.begin_in_thread(self._wait_for)
            except RuntimeError as error:
                task.miss(str(error))

    def _open_loop(self) -> _Loop:
        with self._lock:
            if self._loop is None:
                self._loop = _Loop()
            return self._loop

    def _wait_for(self, result: Awaitable[object]) -> None:
        """Await what a synchronous function returned (a lambda over a coroutine), from its own thread."""

        async def awaited() -> None:
            await result

        self._open_loop().submit(awaited()).result()


class _Task:
    """A function, when it runs, and what became of its runs."""

    def __init__(
        self,
        instruments: MeterProvider,
        func: Callable[[], Any],
        interval_s: float,
        name: str,
        is_due: Callable[[], bool] | None,
    ) -> None:
        self.name = name
        self.interval_s = interval_s
        self.func = func
        self._is_due = is_due
        runs = instruments.instrument(SCHEDULED_TASK_RUNS)
        self._succeeded = runs.bind({"task": name, "result": "success"})
        self._failed = runs.bind({"task": name, "result": "error"})
        self._missed = runs.bind({"task": name, "result": "missed"})
        self._duration = instruments.instrument(SCHEDULED_TASK_DURATION).bind({"task": name})
        self._fault: type[BaseException] | None = None
        self._misses = False
        self._run: Future[None] | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine's."""
        return _is_async(self.func)

    def is_again(self, func: Callable[[], Any], interval_s: float, is_due: Callable[[], bool] | None) -> bool:
        """Say whether this is what is scheduled already, from a module that is executed once more."""
        same_terms = (interval_s, is_due) == (self.interval_s, self._is_due)
        return same_terms and _is_same_definition(func, self.func)

    def forget_run(self) -> None:
        """Be as if no run were under way."""
        self._run = None
        self._thread = None

    def is_under_way(self) -> bool:
        """Say whether the last run has not ended."""
        return self._run is not None and not self._run.done()

    def awaited_run(self) -> Future[None] | None:
        """The run under way, unless it is the one that asks: a task may stop the tasks."""
        return self._run if self.is_under_way() and self._thread is not threading.current_thread() else None

    def begin_in_thread(self, wait_for: Callable[[Awaitable[object]], None]) -> None:
        """Begin a run of a synchronous function. Errors: RuntimeError if no thread can be started."""
        run: Future[None] = Future()
        thread = threading.Thread(
            name=f"otel-mlops-task-{self.name}", target=self._run_in_thread, args=(run, wait_for), daemon=True
        )
        thread.start()
        self._run, self._thread, self._misses = run, thread, False

    def begin_on(self, loop: _Loop) -> None:
        """Begin a run of an asynchronous function."""
        self._run, self._thread, self._misses = loop.submit(self._run_on_loop()), loop.thread, False

    def miss(self, why: str) -> None:
        """Count a run that could not begin, and log it once until one begins."""
        self._missed.add(1)
        if not self._misses:
            self._misses = True
            logger.warning("A run of task %s was missed: %s", self.name, why)

    def _run_in_thread(self, run: Future[None], wait_for: Callable[[Awaitable[object]], None]) -> None:
        try:
            self._run_here(wait_for)
        finally:
            run.set_result(None)

    def _run_here(self, wait_for: Callable[[Awaitable[object]], None]) -> None:
        began_s = time.perf_counter()
        fault: BaseException | None = None
        try:
            if self._is_due is not None and not self._is_due():
                return
            result = self.func()
            if inspect.isawaitable(result):
                wait_for(result)
        except BaseException as error:
            # SystemExit and its like too: a task ends itself, not what runs it.
            fault = error
        self._ended(time.perf_counter() - began_s, fault)

    async def _run_on_loop(self) -> None:
        began_s = time.perf_counter()
        fault: BaseException | None = None
        try:
            if self._is_due is not None and not self._is_due():
                return
            await self.func()
        except GeneratorExit:
            raise
        except BaseException as error:
            this = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and this is not None and this.cancelling():
                raise  # stop() ends the run: that is neither a success nor an error
            fault = error
        self._ended(time.perf_counter() - began_s, fault)

    def _ended(self, duration_s: float, fault: BaseException | None) -> None:
        """Record a run; a failure is logged when it begins or changes its kind, not each time."""
        self._duration.record(duration_s)
        if fault is None:
            self._succeeded.add(1)
            if self._fault is not None:
                logger.info("Task %s succeeds again", self.name)
            self._fault = None
            return
        self._failed.add(1)
        if type(fault) is not self._fault:
            self._fault = type(fault)
            logger.error("Task %s failed; more of the same is counted only", self.name, exc_info=fault)


class _Loop:
    """An event loop in a daemon thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self.thread = threading.Thread(name="otel-mlops-tasks", target=self._serve, daemon=True)
        self.thread.start()

    def submit(self, run: Any) -> Future[None]:
        """Run a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(run, self._loop)

    def end(self) -> None:
        """Cancel what runs on the loop and close it; waits for nothing."""
        self._loop.call_soon_threadsafe(self._ended.set)

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_ended())

    async def _until_ended(self) -> None:
        await self._ended.wait()


def _start_scheduler() -> Any:
    """Start what tells when tasks are due; None where no thread can be had, which is logged."""
    from apscheduler.executors.base import BaseExecutor
    from apscheduler.schedulers.background import BackgroundScheduler

    class Launcher(BaseExecutor):  # type: ignore[misc]
        """Begins a run and does not wait for it."""

        def _do_submit_job(self, job: Any, run_times: Any) -> None:
            job.func(*job.args)
            self._run_job_success(job.id, [])

    # UTC, so that the container's time zone need not be known; the level leaves out a line for each event.
    scheduler_logger = logging.getLogger(f"{__name__}.apscheduler")
    scheduler_logger.setLevel(logging.WARNING)
    scheduler = BackgroundScheduler(
        executors={"default": Launcher()}, timezone=UTC, daemon=True, logger=scheduler_logger
    )
    try:
        scheduler.start()
    except RuntimeError:
        logger.exception("Scheduled tasks do not run")
        return None
    return scheduler


def _is_async(func: Callable[[], Any]) -> bool:
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004


def _is_same_definition(one: Callable[[], Any], other: Callable[[], Any]) -> bool:
    """Say whether two functions are one in the source: at the top of a module a name stands for one only."""
    names, modules = zip(*(_definition(each) for each in (one, other)), strict=True)
    # Lambdas and inner functions share their names with others; from the same module they may be others.
    return names[0] == names[1] and (modules[0] != modules[1] or "<" not in names[0])


def _definition(func: Any) -> tuple[str, str]:
    while isinstance(func, functools.partial):
        func = func.func
    named = func if hasattr(func, "__qualname__") else type(func)
    return named.__qualname__, named.__module__


def _check(func: object, interval_seconds: object, task_name: object) -> None:
    if not isinstance(task_name, str) or not task_name:
        raise ValueError(f"task_name is {task_name!r}, expected a non-empty str")
    if not callable(func):
        raise TypeError(f"func is {func!r}, expected a function without arguments")
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise TypeError(f"func is {func!r}, expected a function that does its work when called, no generator")
    try:
        signature = inspect.signature(func)
    except ValueError:
        logger.debug("The signature of %r is not known: it is taken as it is", func)
    else:
        try:
            signature.bind()
        except TypeError as error:
            raise TypeError(f"func is {func!r}, expected a function without arguments: {error}") from None
    if isinstance(interval_seconds, bool) or not isinstance(interval_seconds, (int, float)):
        raise TypeError(f"interval_seconds is {interval_seconds!r}, expected a number of seconds")
    if not _SHORTEST_S <= interval_seconds <= _LONGEST_S:
        raise ValueError(f"interval_seconds is {interval_seconds!r}, expected {_SHORTEST_S} to {_LONGEST_S}")
