"""Rules as rows: a recording, an alert, a group of both; what they say stands in the other files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RUNBOOK = "docs/runbook.md"
"""Where the runbook is to be found; every alert links there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One recording rule of Prometheus, named `level:metric:operations`: `level` is the labels that are left."""

    name: str
    expression: str
    meaning: str
    """What the series is, in one sentence."""
    shown: bool = False
    """It is meant for dashboards and people; else an alert or another recording needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alerting rule of Prometheus: when it fires, and what somebody is to do about it."""

    name: str
    expression: str
    lasting: str
    """How long the expression must hold before the alert fires, as Prometheus writes it: `2m`."""
    severity: Literal["warning", "critical", "none"]
    """`critical` is for somebody now, `warning` for somebody today, `none` for a machine."""
    summary: str
    """What has happened, with the values of the labels; only here stand templates."""
    means: str
    """What the alert means."""
    act: str
    """What to do."""
    look: tuple[tuple[str, str], ...] = ()
    """What to look at: a query, and what it tells."""
    keeping: str | None = None
    """How long it fires on when the expression holds no more, where that comes and goes."""

    @property
    def description(self) -> str:
        """What the alert means and what to do."""
        return f"{self.means} {self.act}"

    @property
    def anchor(self) -> str:
        """The alert's place in the runbook."""
        return self.name.lower()

    @property
    def annotations(self) -> dict[str, str]:
        """What Prometheus hands on with the alert."""
        return {
            "summary": self.summary,
            "description": self.description,
            "runbook_url": f"{RUNBOOK}#{self.anchor}",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rules that Prometheus evaluates together, one after the other."""

    name: str
    about: str
    """What the rules are about; a heading of the runbook."""
    rules: tuple[Recording | Alert, ...]
    interval: str | None = None
    """How often they are evaluated, where Prometheus' own interval would be too much work.

    It must be well below the 5 minutes in which an instant query finds a series, or what it records has gaps.
    """

    @property
    def domain(self) -> str:
        """What its alerts are about in one word: a label, for whom to tell and for which alerts hide others."""
        return self.name.removeprefix("otel_mlops_")
