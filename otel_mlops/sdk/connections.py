"""The connections to the page's port: how many there are at a time, and which of them makes room for another."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MOST_CONNECTIONS = 32
"""How many connections there are at a time; a further one takes the place of one that waits or hardly moves."""

MOST_SENDING_BYTES = 64 * 1024 * 1024
"""How many bytes of pages are kept for clients that are still taking them."""

FRESH_S = 0.05
"""So long after it came, or began its request, a connection does not make room: the rest is on the way."""

STALLED_S = 0.25
"""A client that has taken nothing of its answer for so long may have to make room."""

_SEND_BUFFER_BYTES = 128 * 1024


class Connection:
    """One client's connection, from the accepting to its end."""

    def __init__(self, raw: socket.socket, host: str) -> None:
        self.socket = raw
        """What is read from and written to; TLS puts itself in the place of the plain socket."""
        self.host = host
        self.is_busy = False
        """A thread is at work for it, which nothing can end."""
        self.body = b""
        """What is being sent."""
        self.came_s = self.moved_s = time.monotonic()
        """When it came, or began its request, and when it last took a part of its answer."""
        self.is_ended = False
        """It has made room for another: what fails on it now is no fault of its client."""

    def end(self) -> None:
        """Wake the thread that waits on it, which closes it: closing it here would not wake that thread."""
        self.is_ended = True
        # It fails where the client has ended the connection before. The socket's own method, as TLS' would pull
        # the session away from under the thread that is using it.
        with suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class Connections:
    """The connections there are, oldest first."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._all: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._all)

    def wake(self) -> None:
        """Let who waits for a place look again."""
        with self._change:
            self._change.notify_all()

    def enter(self, connection: Connection, timeout_s: float, stopping: threading.Event) -> Connection | None:
        """Take a connection in, as soon as there is a place for it.

        Returns the one that has to go for it: itself, if all others are being worked on for all the time.
        """
        until_s = time.monotonic() + timeout_s
        with self._change:
            leaver = None
            # At the end of the accepting nobody else comes, and this one is one more.
            while len(self._all) >= MOST_CONNECTIONS and not stopping.is_set():
                leaver = self._makes_room()
                if leaver is not None:
                    self._drop(leaver)
                    break
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    return connection
                # Nobody tells when a client stalls, so this looks for itself.
                self._change.wait(min(left_s, FRESH_S))
            self._all[connection] = None
            return leaver

    def leave(self, connection: Connection) -> None:
        """Close a connection and give its place to another."""
        with self._change:
            self._all.pop(connection, None)
            is_cut_off = connection.is_ended and connection.body
            self._change.notify_all()
        if is_cut_off:
            # The kernel forgets what is left, instead of keeping it until the client has taken it.
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.end()
        connection.socket.close()

    def secure(self, connection: Connection, secured: socket.socket) -> None:
        """Put TLS in the place of the plain socket; if the connection has just been ended, so is this."""
        with self._change:
            connection.socket = secured
            if connection.is_ended:
                connection.end()

    @contextmanager
    def busy(self, connection: Connection) -> Iterator[None]:
        """While a page is made or a password checked nothing can end the thread, so the connection keeps its place."""
        self._set_busy(connection, is_busy=True)
        try:
            yield
        finally:
            self._set_busy(connection, is_busy=False)

    def begin_to_send(self, connection: Connection, body: bytes) -> list[Connection]:
        """Note that a body is being sent. Returns those that are ended for it, as too much is kept for the slow."""
        # The kernel would take megabytes for a client that reads nothing, and it would look like a quick one.
        with suppress(OSError):  # the client is gone
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        ended = []
        with self._change:
            connection.body, connection.moved_s = body, time.monotonic()
            while self._bytes_kept() > MOST_SENDING_BYTES:
                slowest = self._slowest(but=connection)
                if slowest is None:
                    break
                self._drop(slowest)
                ended.append(slowest)
        return ended

    def end_waiting(self) -> None:
        """End those for which nothing is being done."""
        with self._change:
            for connection in self._all:
                if not connection.is_busy and not connection.body:
                    connection.end()

    def wait_until_none(self, timeout_s: float) -> None:
        """Wait until those there are have been answered, within the time: some may never ask for anything."""
        with self._change:
            self._change.wait_for(lambda: not self._all, timeout_s)

    def close(self) -> None:
        """In a forked child: close what is the parent's, which goes on with its own copies."""
        for connection in self._all:
            connection.socket.close()

    def _makes_room(self) -> Connection | None:
        """Who goes for another: the one that has waited longest, else the one that has taken nothing for longest.

        Who has the most connections gives one up first, so that a crowd from one host displaces itself.
        """
        waiting = [each for each in self._all if not each.is_busy and not each.body]
        unread = _with_something_unread(waiting)
        idle = [each for each in waiting if each.socket.fileno() not in unread]
        if not idle:
            return self._slowest()
        hosts = Counter(each.host for each in self._all)
        leaver = max(idle, key=lambda each: hosts[each.host])
        is_fresh = time.monotonic() - leaver.came_s < FRESH_S
        return None if is_fresh else leaver

    def _slowest(self, but: Connection | None = None) -> Connection | None:
        stalled_s = time.monotonic() - STALLED_S
        slow = [each for each in self._all if each.body and each is not but and each.moved_s < stalled_s]
        return min(slow, key=lambda each: each.moved_s, default=None)

    def _drop(self, connection: Connection) -> None:
        del self._all[connection]
        connection.end()

    def _bytes_kept(self) -> int:
        """Those who share a rendering keep one body."""
        return sum(len(body) for body in {id(each.body): each.body for each in self._all}.values())

    def _set_busy(self, connection: Connection, *, is_busy: bool) -> None:
        with self._change:
            connection.is_busy = is_busy
            self._change.notify_all()


def _with_something_unread(connections: list[Connection]) -> set[int]:
    """The descriptors of those whose client has said something that its thread has not come to read yet."""
    arrivals = select.poll()
    for each in connections:
        if (descriptor := each.socket.fileno()) >= 0:  # else it is being wrapped in TLS
            arrivals.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, event in arrivals.poll(0) if event & select.POLLIN}
