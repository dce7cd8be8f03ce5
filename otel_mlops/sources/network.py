"""What goes over the network: the bytes of the interfaces, each of which is counted once."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from otel_mlops.metrics import SYSTEM_NETWORK_IO
from otel_mlops.sources.files import text_of
from otel_mlops.sources.sampler import Sample
from otel_mlops.sources.totals import Sum

_LOOPBACK = re.compile(r"lo\d*|Loopback.*")
_LIKE_ETHERNET = (None, "1", "32")
"""Types of interfaces that packets leave through; tunnels have others, and what is in them leaves through these.

32 is InfiniBand; None is for a system that does not tell.
"""


class Network:
    """The bytes sent and received by the interfaces that are real or, where none is, as in a container, by all."""

    def __init__(self, psutil: Any, root: Path) -> None:
        self._psutil = psutil
        self._of_interfaces = root / "sys/class/net" if psutil.LINUX else None
        self._has_real = False
        self._sent, self._received = Sum(), Sum()

    def read(self) -> Iterator[Sample]:
        """Read the kernel's own counts: with `nowrap` psutil keeps some of its own, for all who ask it."""
        counts = self._psutil.net_io_counters(pernic=True, nowrap=False) or {}
        chosen = self._chosen(counts)
        if not chosen:
            return
        sent = self._sent.of({name: counts[name].bytes_sent for name in chosen})
        received = self._received.of({name: counts[name].bytes_recv for name in chosen})
        yield Sample(SYSTEM_NETWORK_IO, sent, {"direction": "transmit"})
        yield Sample(SYSTEM_NETWORK_IO, received, {"direction": "receive"})

    def _chosen(self, names: Collection[str]) -> list[str]:
        folder = self._of_interfaces
        if folder is None:
            return [name for name in names if not _LOOPBACK.fullmatch(name)]
        real = {name for name in names if (folder / name / "device").exists()}
        self._has_real = self._has_real or bool(real)
        # Not for a driver that is loaded anew: what the others have counted would come to the real ones' bytes.
        if self._has_real:
            return [name for name in real if _master(folder / name) not in real]
        return [name for name in names if not _LOOPBACK.fullmatch(name) and _is_outermost(folder / name)]


def _master(interface: Path) -> str | None:
    """The interface that this one is part of, and that counts its bytes if it is real itself.

    On Hyper-V an accelerated interface is part of the synthetic one, which has the bytes of both.
    """
    master = interface / "master"
    return master.resolve().name if master.exists() else None


def _is_outermost(interface: Path) -> bool:
    """Say whether packets leave here: not through a tunnel, a port of a bridge, or what stands on another interface."""
    if text_of(interface / "type") not in _LIKE_ETHERNET or (interface / "brport").exists():
        return False
    return not any(interface.glob("lower_*")) and not (interface / "bridge").exists()
