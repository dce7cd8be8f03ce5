"""What all workers of a group have recorded, the dead included, as any one of them reads it."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics._internal._view_instrument_match import _hash_attributes

from otel_mlops.sdk.files import mark_of, namespace
from otel_mlops.sdk.forgotten import Forgotten, missed
from otel_mlops.sdk.group import FORGETS as FORGETS_FILE
from otel_mlops.sdk.group import RETIRED, Group
from otel_mlops.sdk.merge import KEEP_THE_DEAD, combine_by
from otel_mlops.sdk.peers import Peer, identity_of
from otel_mlops.sdk.records import FORGETS, LEADS, STARTED, ZEROED
from otel_mlops.sdk.retired import Retired
from otel_mlops.sdk.shares import DEAD, Share, in_order, rank_of, worker_of

if TYPE_CHECKING:
    from otel_mlops.metrics import Metric
    from otel_mlops.sdk.ledger import Ledger
    from otel_mlops.sdk.stream import Stream

_logger = logging.getLogger(__name__)

_MOST_RETIRED = 10
"""How many times the series that one worker may have are kept of the dead, a metric."""

_UNKNOWN = ()
"""Differs from the mark of every file, and from that of none."""


class Everyone:
    """The numbers of all workers of a group; of this process alone where there is no group.

    `stale_s` is the age past which what another worker's callbacks said is not shown.
    """

    def __init__(
        self,
        streams: Callable[[], list[Stream]],
        ledger: Ledger,
        group: Group | None = None,
        *,
        stale_s: float = 15.0,
        max_series: int = 2000,
    ) -> None:
        self._streams = streams
        self._ledger = ledger
        self._group = group
        self._stale_s = stale_s
        self._max_series = max_series
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._peers: dict[str, Peer] = {}
        self._retired = Retired()
        self._retired_at: tuple[int, ...] | None = None
        self._forgets: list[tuple[int, Mapping[str, str]]] = []
        self._forgets_at: tuple[int, ...] | None = None
        self._version: Any = None
        self._shares: list[Share] = []
        self._faults: dict[str, str] = {}
        self._unread: OSError | None = None
        """Why the last look has not read everything."""

    def shares(self) -> tuple[Any, list[Share]]:
        """What every worker adds, and what changes whenever a series has come or gone."""
        with self._lock:
            own = self._streams()
            self._look()
            version = (
                [stream.version for stream in own],
                self._stale(own),
                [
                    (peer.name, peer.version, peer.forgets, peer.leads, self._stale_of(peer), self._at_zero_of(peer))
                    for peer in self._peers.values()
                ],
                self._retired_at,
                self._forgets_at,
                self._label(),
                self._ledger.about[FORGETS],
                self._missed_here().at_zero(own),
                self._ledger.about[LEADS],
            )
            if version != self._version:
                self._version = version
                self._shares = self._gather(own)
            return version, self._shares

    def totals(self, row: Metric) -> list[tuple[Mapping[str, Any], float]]:
        """The attributes and the value, or the count, of every series of a row."""
        found: dict[Any, tuple[Mapping[str, Any], list[list[float]]]] = {}
        combine = combine_by(row.kind, row.across)
        for stream, series, _ in self.shares()[1]:
            if stream.name == row.name and stream.shown == row.kind:
                for each in series:
                    key = _hash_attributes(each.attributes)
                    found.setdefault(key, (each.attributes, []))[1].append(each.read())
        return [
            (attributes, math.fsum(cells[:-1]) if row.kind == "histogram" else cells[0])
            for attributes, readings in found.values()
            for cells in [combine(readings)]
        ]

    def cells(self) -> list[tuple[str, str, Mapping[str, Any], list[float]]]:
        """The cells of all workers together: their name, description, attributes and numbers.

        Errors:  OSError while those of some worker cannot be read.
        """
        found: dict[Any, tuple[Any, Mapping[str, Any], list[list[float]]]] = {}
        combine = combine_by("cells", "sum")
        with self._lock:
            shares = self.shares()[1]
            if self._unread is not None:
                raise OSError(f"the numbers of some workers cannot be read: {self._unread}")
        for stream, series, _ in shares:
            for each in series if stream.kind == "cells" else ():
                key = stream.name, stream.size, _hash_attributes(each.attributes)
                found.setdefault(key, (stream, each.attributes, []))[2].append(each.read())
        return [
            (stream.name, stream.description, attributes, combine(readings))
            for stream, attributes, readings in found.values()
        ]

    def workers(self) -> int:
        """How many workers live and have started."""
        with self._lock:
            self._look()
            others = [peer for peer in self._peers.values() if peer.is_alive and peer.number is not None]
            mine = self._group is not None and self._group.label != "page" and bool(self._ledger.about[STARTED])
            return sum(peer.has_started for peer in others) + mine

    def processes(self) -> dict[str, int]:
        """The pids of those that live and have started, the page's process too, by their label `worker`.

        Whoever runs in another namespace of pids, a container of its own, is left out: here its pid is somebody else's.
        """
        here, what = namespace("pid"), "the processes of some workers cannot be read"
        with self._lock:
            self._look()
            others = [peer for peer in self._peers.values() if peer.is_alive and peer.has_started and peer.pid]
            found = {peer.label: peer.pid for peer in others if peer.pid_namespace == here}
            if self._ledger.about[STARTED]:
                # Without a ledger that others can find it has no number, and the first is free if it is alone.
                found.setdefault(self._label() or "0", os.getpid())
            elsewhere = sorted(peer.label for peer in others if peer.pid_namespace != here)
            if elsewhere:
                self._tell(what, f"worker {', '.join(elsewhere)} runs in another pid namespace")
            else:
                self._faults.pop(what, None)
            return found

    @property
    def is_alone(self) -> bool:
        """Whether no other worker lives."""
        with self._lock:
            self._look()
            return not any(peer.is_alive for peer in self._peers.values())

    def tell_to_forget(self, labels: Mapping[str, str]) -> None:
        """Have every worker of the group forget the series that carry these labels, if there is any worker.

        Errors:  OSError if they cannot be told.
        """
        group = self._group
        if group is not None and group.ledgers():
            with self._lock:  # before the door, where nobody else is to wait for us
                group.tell_to_forget(labels, self._zero)

    def _zero(self) -> None:
        """Forget in the stead of the living that have not started: they have no thread that follows."""
        self._look()
        for peer in self._peers.values():
            done = max(peer.forgets, peer.zeroed)
            late = [labels for number, labels in self._forgets if number > done]
            if late and peer.is_alive and not peer.has_started:
                try:
                    peer.zero(self._forgets[-1][0], Forgotten(late))
                except OSError as error:  # what matches stays hidden until it can be done
                    self._tell(f"{peer.path} cannot be written", error)

    def follow(self) -> Iterator[Mapping[str, str]]:
        """What this worker is to forget, as another was asked to; it counts as done when the next is asked for."""
        if self._group is None or self._ledger.path is None:
            return
        with self._lock:
            self._look_at_forgets()
            late = [each for each in self._forgets if each[0] > self._ledger.about[FORGETS]]
        for number, labels in late:
            if number > self._ledger.about[ZEROED] or not self._has_begun_anew(labels):
                yield labels
            self._ledger.about[FORGETS] = number

    def retire(self, may: Callable[[], bool] = lambda: True) -> None:
        """Fold the ledgers of the dead into the totals of the retired, and remove them; for the leader alone.

        `may` is asked when nothing of it can happen at the same time any more: the leader may have changed.
        """
        if self._group is None:
            return
        with self._lock:
            if not may() or not self._look():
                return  # what could not be read must not be written over
            dead = [peer for peer in self._peers.values() if not peer.is_alive]
            late = [(number, labels) for number, labels in self._forgets if number > self._retired.forgets]
            try:
                if dead or late:
                    self._fold(self._group, dead, late)
                for path in self._group.ledgers():
                    if path.stem in self._retired.names:
                        path.unlink(missing_ok=True)
            except OSError as error:
                self._tell("the numbers of dead workers cannot be put together", error)
            else:
                self._faults.pop("the numbers of dead workers cannot be put together", None)

    def after_fork(self) -> None:
        """In a forked child: nothing of what the parent has open."""
        for peer in self._peers.values():
            peer.close()
        self._begin()

    def _fold(self, group: Group, dead: list[Peer], late: list[tuple[int, Mapping[str, str]]]) -> None:
        self._retired_at = _UNKNOWN  # until it is saved, what is on disk stands
        present = {path.stem for path in group.ledgers()}
        # A name whose file is gone never comes back.
        self._retired.names = [name for name in self._retired.names if name in present]
        if late:
            self._retired.forget(*(labels for _, labels in late))
            self._retired.forgets = late[-1][0]
        for peer in dead:
            self._retired.fold(peer, self._missed_by(peer), _MOST_RETIRED * self._max_series, self._is_living)
        path = group.folder / RETIRED
        self._retired.save(path)
        self._retired_at = mark_of(path)
        for peer in dead:
            self._drop(peer)

    def _is_living(self, identity: tuple[Any, ...], key: Any) -> bool:
        """Whether a living worker has a series: its total must not lose what the dead have added."""
        if any(key in stream.series for stream in self._streams() if identity_of(stream) == identity):
            return True
        others = [stream for peer in self._peers.values() if peer.is_alive for stream in peer.streams]
        return any(key in stream.by_attributes for stream in others if stream.identity == identity)

    def _look(self) -> bool:
        """See who is there: every number is read once, as a dead worker's ledger or among the retired.

        False if the folder cannot be read: what was read before stands.
        """
        group = self._group
        if group is None:
            return True
        retired = group.folder / RETIRED
        self._unread = None
        try:
            while True:
                mark = mark_of(retired)
                if mark != self._retired_at:
                    self._load(retired, mark)
                self._meet({path.stem: path for path in group.ledgers() if path != self._ledger.path})
                # A ledger that was folded and removed while we looked stands in a newer file of the retired.
                if mark_of(retired) == mark:
                    break
            self._look_at_forgets()
        except OSError as error:
            self._unread = error
            self._tell(f"{group.folder} cannot be read", error)
            return False
        self._faults.pop(f"{group.folder} cannot be read", None)
        return True

    def _meet(self, paths: Mapping[str, Path]) -> None:
        """Open the ledgers that are new, let go of those that are gone or folded, and look at all of them."""
        for name in [name for name in self._peers if name not in paths or name in self._retired.names]:
            self._drop(self._peers[name])
        for name, path in paths.items():
            if name not in self._peers and name not in self._retired.names:
                self._open(path)
        for peer in self._peers.values():
            try:
                peer.look()
            except OSError as error:
                self._unread = error
                self._tell(f"{peer.path} cannot be read", error)

    def _look_at_forgets(self) -> None:
        if self._group is not None:
            mark = mark_of(self._group.folder / FORGETS_FILE)
            if mark != self._forgets_at:
                self._forgets_at, self._forgets = mark, self._group.forgets()

    def _load(self, path: Path, mark: tuple[int, ...] | None) -> None:
        try:
            self._retired = Retired.load(path)
        except ValueError as error:
            self._tell("the numbers of dead workers are lost", error)
        self._retired_at = mark

    def _open(self, path: Path) -> None:
        try:
            self._peers[path.stem] = Peer(path)
        except FileNotFoundError:
            return  # folded or left just now: the next round of looking finds it among the retired
        except OSError as error:
            self._unread = error
            self._tell(f"{path} cannot be read", error)

    def _drop(self, peer: Peer) -> None:
        self._peers.pop(peer.name, None)
        peer.close()

    def _missed_by(self, peer: Peer) -> Forgotten:
        """What a worker was told to forget and has not forgotten itself."""
        return missed(self._forgets, peer.forgets, peer.zeroed)

    def _at_zero_of(self, peer: Peer) -> frozenset[tuple[int, int]]:
        return self._missed_by(peer).at_zero(peer.streams)

    def _missed_here(self) -> Forgotten:
        about = self._ledger.about
        return Forgotten() if self._ledger.path is None else missed(self._forgets, about[FORGETS], about[ZEROED])

    def _has_begun_anew(self, labels: Mapping[str, str]) -> bool:
        """Whether this worker has recorded into a series since another has set it to zero."""
        forgotten = Forgotten([labels])
        return any(
            any(each.read()) and forgotten.hides(stream, each) for stream in self._streams() for each in stream.living()
        )

    def _gather(self, own: list[Stream]) -> list[Share]:
        gone, stale = self._missed_here(), self._stale(own)
        rank = rank_of(leads=bool(self._ledger.about[LEADS]), label=self._label())
        found = [
            (rank, Share(stream, gone.kept(stream), worker_of(stream, self._label())))
            for index, stream in enumerate(own)
            if index not in stale
        ]
        for peer in sorted(self._peers.values(), key=lambda each: (each.number is None, each.number, each.name)):
            gone, stale = self._missed_by(peer), self._stale_of(peer)
            rank = rank_of(leads=peer.leads, label=peer.label) if peer.is_alive else DEAD
            for index, stream in enumerate(peer.streams):
                if index not in stale and (peer.is_alive or stream.rule in KEEP_THE_DEAD):
                    found.append((rank, Share(stream, gone.kept(stream), worker_of(stream, peer.label))))
        gone = missed(self._forgets, self._retired.forgets)
        found += [(DEAD, Share(retired, [*retired.living(gone)], None)) for retired in self._retired.streams]
        return in_order(found)

    def _label(self) -> str | None:
        return None if self._group is None else self._group.label

    def _stale_of(self, peer: Peer) -> frozenset[int]:
        return self._stale(peer.streams) if peer.is_alive else frozenset()

    def _stale(self, streams: Sequence[Any]) -> frozenset[int]:
        """Which of a worker's streams its callbacks have not refreshed for too long."""
        oldest = time.monotonic() - self._stale_s
        return frozenset(
            index
            for index, stream in enumerate(streams)
            if stream.observed and stream.rule not in KEEP_THE_DEAD and all(
                each.cells[1] < oldest for each in stream.living()
            )
        )  # fmt: skip

    def _tell(self, what: str, error: object) -> None:
        """Say a fault once, and again when it has another cause: all is tried again at the next look."""
        if self._faults.get(what) != str(error):
            self._faults[what] = str(error)
            _logger.warning("group: %s: %s; trying again", what, error)
