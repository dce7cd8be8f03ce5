"""Forked children of a test: what they answer, and their end."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

A_LONG_TIME_S = 60.0


class Child:
    """A forked child that does some work: `tell` hands a line to the test."""

    def __init__(self, work: Callable[[Callable[[Any], None]], Any]) -> None:
        self._lines, out = os.pipe()
        self._rest = b""
        self._has_ended = False

        def tell(what: Any) -> None:
            os.write(out, json.dumps(what).encode() + b"\n")

        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._lines)
                work(tell)
            except BaseException as error:
                os.write(out, json.dumps({"error": repr(error)}).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(out)

    def lines(self) -> Iterator[Any]:
        """What it tells, until it ends; a line that was cut off by its death is left out."""
        arrivals = select.poll()  # select() knows no descriptor past 1,023, of which other tests may leave many
        arrivals.register(self._lines, select.POLLIN)
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                told = json.loads(line)
                assert not (isinstance(told, dict) and "error" in told), told
                yield told
            assert arrivals.poll(A_LONG_TIME_S * 1000), "the child hangs"
            read = os.read(self._lines, 1 << 16)
            if not read:
                return
            self._rest += read

    def next(self) -> Any:
        """The next line."""
        return next(self.lines())

    def until_stopped(self) -> None:
        """Wait until it has stopped itself."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def kill(self) -> None:
        """End it without a word."""
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """See that it is gone."""
        if not self._has_ended:
            self._has_ended = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._lines)


@contextmanager
def children(*works: Callable[[Callable[[Any], None]], Any]) -> Iterator[list[Child]]:
    """Children that are gone after the block."""
    born = []
    try:
        for work in works:
            born.append(Child(work))  # noqa: PERF401 (those that are born are ended, whatever the next does)
        yield born
    finally:
        for child in born:
            child.end()
