"""Workers of a group that live and die in one process: a lock of a file is held by an open file, not by a pid."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opentelemetry.sdk.resources import Resource

from otel_mlops.sdk.group import Group
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.provider import MeterProvider

RESOURCE = Resource({"service.name": "test"})


class Worker:
    """One worker of a group: its numbers, and the page as it makes it."""

    def __init__(self, state: Path, group: Group | None = None, **arguments: Any) -> None:
        self.group = group or Group("group", state)
        self.reader = PageReader()
        self.provider = MeterProvider(
            [self.reader],
            RESOURCE,
            shutdown_on_exit=False,
            ledger=Ledger(self.group),
            group=self.group,
            **arguments,
        )
        self.provider.ledger.note_started(has_started=True)
        self.everyone = self.provider.everyone
        self.meter: Any = self.provider.get_meter("m")

    @property
    def path(self) -> Path:
        """Its ledger's file."""
        path = self.provider.ledger.path
        assert path is not None, "it has recorded nothing"
        return path

    def die(self) -> None:
        """End as by SIGKILL: the kernel closes what was open, and nothing else happens."""
        ledger = self.provider.ledger
        file = ledger._file
        ledger._begin()
        if file is not None:
            os.close(file.lock_file)
        self.group.give_up_lead()
        self.everyone.after_fork()

    def leave(self) -> None:
        """End as a server's worker does."""
        self.provider.shutdown(5_000)
        self.group.give_up_lead()
        self.everyone.after_fork()

    def forget(self, **labels: str) -> None:
        """Forget here, and tell the others."""
        self.everyone.tell_to_forget(labels)
        self.follow()

    def follow(self) -> None:
        """Forget what any worker was asked to."""
        for labels in self.everyone.follow():
            self.provider.forget(labels)

    def page(self, accept: str | None = None) -> dict[str, float]:
        """The samples of its page by the text before the value, those about ourselves aside."""
        samples = {}
        for line in self.reader.page(accept).body.decode().splitlines():
            if not line.startswith(("#", "otel_mlops_", "target_info")):
                series, _, value = line.partition(" # ")[0].rpartition(" ")
                assert series not in samples, f"{series} stands there twice"
                samples[series] = float(value)
        return samples

    def files(self) -> list[Path]:
        """What lies in the group's folder."""
        return sorted(self.group.folder.iterdir())


@contextmanager
def state_folder() -> Iterator[Path]:
    """A folder for groups, in memory where there is such a place."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="workers-", dir=memory if memory.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
