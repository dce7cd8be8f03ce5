"""Where the demo shows itself: a table that is drawn over in a terminal, lines everywhere else."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Protocol, TextIO

from otel_mlops.demo import view
from otel_mlops.demo.readings import Window

_UP, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[{}F", "\x1b[K", "\x1b[J"
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Screen(Protocol):
    """What the demo needs of the place where it shows itself."""

    refresh_s: float

    def show(self, when: str, facts: Sequence[str], window: Window) -> None:
        """Show what goes on; `facts` are the lines above it, which seldom change."""

    def end(self) -> None:
        """Leave the place as it was found."""


def open_screen(out: TextIO, environ: Mapping[str, str], seconds: float | None) -> Screen:
    """A table for a terminal that can be drawn over, lines for a log or a pipe."""
    if out.isatty() and environ.get("TERM", "dumb") != "dumb":
        return Table(out)
    return Lines(out, seconds)


class Table:
    """A table that is drawn over every second; the last one stays."""

    refresh_s = 1.0

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._drawn = 0

    def show(self, when: str, facts: Sequence[str], window: Window) -> None:
        """Draw the table over the last one, as much of it as the terminal has room for."""
        columns, height = shutil.get_terminal_size()
        text = (f"otel-mlops demo, {when}; Ctrl-C ends it", "", *facts, "", *view.table(window, columns - 1))
        has_room = len(text) < height  # for lines that only part what is above and below
        lines = [line[: columns - 1] for line in text if line or has_room][: height - 1]
        back = _UP.format(self._drawn) if self._drawn else _HIDE_CURSOR
        drawn = "".join(f"{_emphasised(line)}{_CLEAR_LINE}\n" for line in lines)
        self._out.write(f"{back}{drawn}{_CLEAR_BELOW}")
        self._out.flush()
        self._drawn = len(lines)

    def end(self) -> None:
        """Show the cursor again."""
        if self._drawn:
            self._out.write(f"{_SHOW_CURSOR}\n")
            self._out.flush()


class Lines:
    """One line now and then, for a log."""

    def __init__(self, out: TextIO, seconds: float | None) -> None:
        self._out = out
        self._told: Sequence[str] = ()
        # A short demo still says something on its way.
        self.refresh_s = 5.0 if seconds is None else min(5.0, max(1.0, seconds / 5))

    def show(self, when: str, facts: Sequence[str], window: Window) -> None:
        """Write the facts that are new, and one line."""
        news = [fact for fact in facts if fact not in self._told]
        self._told = facts
        self._out.write("".join(f"{text}\n" for text in (*news, f"{when}  {view.line(window)}")))
        self._out.flush()

    def end(self) -> None:
        """Leave a line free."""
        self._out.write("\n")


def _emphasised(line: str) -> str:
    """The line in bold if it is the title, or the heads of columns, which are in capitals."""
    return f"{_BOLD}{line}{_PLAIN}" if line and (line[0] != " " or line.isupper()) else line
