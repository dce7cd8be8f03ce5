"""One worker's part in its group, in a thread: it stands by to lead, and follows what the others ask."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from otel_mlops.sdk.records import LEADS

if TYPE_CHECKING:
    from otel_mlops.sdk.group import Group
    from otel_mlops.sdk.provider import MeterProvider

_logger = logging.getLogger(__name__)

_LOOK_S = 0.1
"""How often the lead is asked for: after a leader's death another one leads within about this time."""
_TIDY_S = 1.0
"""How often ledgers are put in order."""


class Member:
    """A worker of a group; where there is no group, it leads by itself.

    `on_lead` and `on_lost` are called when this worker begins to lead and when it does not any more, `on_forget`
    with the labels that another worker wants forgotten, `refresh` every `refresh_s` to have callbacks speak.
    `retires` says whether a leader folds the ledgers of the dead itself.
    """

    def __init__(
        self,
        group: Group | None,
        provider: MeterProvider,
        *,
        on_lead: Callable[[], None],
        on_lost: Callable[[], None],
        on_forget: Callable[[Mapping[str, str]], object],
        refresh: Callable[[], None],
        refresh_s: float,
        retires: Callable[[], bool] = lambda: True,
    ) -> None:
        self._group = group
        self._provider = provider
        self._on_lead = on_lead
        self._on_lost = on_lost
        self._on_forget = on_forget
        self._refresh = refresh
        self._refresh_s = refresh_s
        self._retires = retires
        self._begin()

    def _begin(self) -> None:
        self.leads = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._refreshing: threading.Thread | None = None
        self._tidy_at = self._refresh_at = 0.0
        self._has_swept = False
        self._fault: str | None = None

    def start(self) -> None:
        """Lead at once if nobody does, else stand by."""
        self._stopping = threading.Event()
        now = time.monotonic()
        self._tidy_at, self._refresh_at = now, now + self._refresh_s
        if self._group is None:
            self._look()
            return
        self._look_safely()
        thread = threading.Thread(target=self._run, args=(self._stopping,), name="otel-mlops-member", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            _logger.exception("this worker cannot stand by to lead: no thread can be started")
        else:
            self._thread = thread

    def stop(self, timeout_s: float) -> None:
        """End the thread; what is led goes on until `on_lost` is called or the lead is given up."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def give_up(self) -> None:
        """Let another lead."""
        self.leads = False
        if self._group is not None:
            self._group.give_up_lead()

    def after_fork(self) -> None:
        """In a forked child: it stands by for nothing until it is started."""
        self._begin()
        if self._group is not None:
            self._group.after_fork()

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.wait(_LOOK_S):
            self._look_safely()

    def _look_safely(self) -> None:
        try:
            self._look()
        except Exception as error:
            self._tell(repr(error))
        else:
            self._fault = None

    def _look(self) -> None:
        now = time.monotonic()
        self._follow()
        if now >= self._tidy_at:
            self._tidy_at = now + _TIDY_S
            self._tidy()
        if now >= self._refresh_at:
            self._refresh_at = now + self._refresh_s
            self._refresh_beside()
        may_lead = self._may_lead()
        self._provider.ledger.about[LEADS] = float(may_lead)  # what the others see
        if may_lead and not self.leads:
            self.leads = True
            try:
                self._on_lead()
            except BaseException:
                self.give_up()  # another may do better, or this one when it is its turn again
                raise
        elif self.leads and not may_lead:
            self.leads = False
            self._on_lost()

    def _may_lead(self) -> bool:
        if self._group is None:
            return True
        if self._provider.ledger.path is None:
            # Nobody can find us, so nobody follows us; where there are others one of them speaks for all.
            return self._provider.everyone.is_alone
        return self._group.try_to_lead()

    def _tidy(self) -> None:
        self._provider.settle()
        if self.leads and self._group is not None and not self._has_swept:
            self._has_swept = True
            self._group.sweep_neighbours()
        if self.leads:
            self._provider.everyone.retire(self._retires)

    def _refresh_beside(self) -> None:
        """Have callbacks speak in a thread of their own: one that hangs must not keep this worker from leading."""
        if self._refreshing is None or not self._refreshing.is_alive():
            self._refreshing = threading.Thread(target=self._refresh_safely, name="otel-mlops-refresh", daemon=True)
            self._refreshing.start()

    def _refresh_safely(self) -> None:
        try:
            self._refresh()
        except Exception as error:
            self._tell(repr(error))

    def _follow(self) -> None:
        """Forget what another worker was asked to forget."""
        for labels in self._provider.everyone.follow():
            try:
                self._on_forget(labels)
            except Exception:
                _logger.exception("%s could not be forgotten", labels)  # it is asked once: those behind it go on

    def _tell(self, fault: str) -> None:
        if fault != self._fault:
            self._fault = fault
            _logger.warning("the group cannot be looked after: %s; trying again", fault)
