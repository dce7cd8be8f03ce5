"""Timing by turns: each round times every contender once, and the fastest round of each counts.

A machine that others use as well is slow at times, never too fast: the minimum over many short rounds is
what the work costs, and taking turns lets a slow minute hit everybody.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from timeit import Timer
from typing import Any, Literal

ROOT = Path(__file__).parent.parent
ATTEMPT_S = 0.02
"""About how long one contender is timed at a stretch; long against the clock, short against other load."""


@dataclass(frozen=True)
class Line:
    """One line of the table: what we cost, what a peer costs for the same, and the ratio to reach.

    Units: seconds for one piece of the work, or what `unit` says is counted; None where it could not be measured.
    """

    what: str
    peer: str
    target: float
    ours: float | None
    theirs: float | None
    reason: str = ""
    """Why something could not be measured."""
    unit: str = "s"

    @property
    def ratio(self) -> float | None:
        """Our cost as a part of the peer's; None where one was not measured, or drowned in the noise."""
        if self.ours is None or not self.theirs or self.theirs < 0 or (self.unit == "s" and self.ours <= 0):
            return None
        return self.ours / self.theirs

    @property
    def verdict(self) -> Literal["ok", "short", "absent"]:
        """Whether the target is reached; what could not be measured is never ok."""
        if self.ours is None or self.theirs is None or (self.unit == "s" and self.ratio is None):
            return "absent"
        return "ok" if self.ours <= self.target * self.theirs else "short"


@dataclass(frozen=True)
class Measured:
    """What a topic measured: seconds by contender, and why a contender is missing."""

    seconds: Mapping[str, float]
    reasons: Mapping[str, str]

    def line(self, what: str, peer: str, ours: str, theirs: str, *, target: float, reason: str = "") -> Line:
        """The line of the table that compares two contenders."""
        reasons = [self.reasons[name] for name in (ours, theirs) if name in self.reasons]
        seconds = self.seconds.get(ours), self.seconds.get(theirs)
        return Line(what, peer, target, *seconds, "; ".join([reason, *reasons] if reason else reasons))


@dataclass(frozen=True)
class Work:
    """A statement to time, in a namespace of its own.

    `pieces`: how many pieces of work the statement does, 10,000 values, say. `before` is called
    ahead of each timing of it, outside the clock; a statement with a `before` runs once each time.
    """

    statement: str
    namespace: Mapping[str, Any]
    pieces: int = 1
    before: Callable[[], object] | None = None

    def timer(self) -> Callable[[], float]:
        """A function that runs the statement for about ATTEMPT_S and gives the seconds for one piece."""
        timer = Timer(self.statement, self.before or "pass", globals=dict(self.namespace))
        if self.before is not None:
            return lambda: timer.timeit(1) / self.pieces
        once = min(timer.repeat(3, 1))
        number = max(1, round(ATTEMPT_S / once))
        return lambda: timer.timeit(number) / number / self.pieces


def race(contenders: Mapping[str, Callable[[], Work]], *, rounds: int) -> Measured:
    """Times the contenders by turns and gives the fastest time of each; one that does not run is left out."""
    timers, reasons = {}, {}
    for name, prepare in contenders.items():
        try:
            timer = prepare().timer()
            timer()
            timers[name] = timer
        except Exception as error:  # whatever it is that keeps a peer from running, the others go on
            reasons[name] = f"{name}: {type(error).__name__}: {error}"
    best = dict.fromkeys(timers, float("inf"))
    for _ in range(rounds):
        for name, timer in timers.items():
            best[name] = min(best[name], timer())
    return Measured(best, reasons)


def in_a_process(*arguments: str, python: str = sys.executable, **environment: str) -> Any:
    """What a Python process of its own prints as its last line, read as JSON; `python` is the interpreter.

    Errors: RuntimeError with the end of what it said, if it failed.
    """
    done = subprocess.run(
        [python, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0 or not done.stdout.strip():
        last_words = (done.stderr.strip() or f"exit status {done.returncode}").rpartition("\n")[2]
        raise RuntimeError(last_words)
    return json.loads(done.stdout.strip().rpartition("\n")[2])
