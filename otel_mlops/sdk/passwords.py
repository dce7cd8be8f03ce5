"""Who may read the page: passwords, a token, and how often. Comparing takes as long whoever asks."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

from otel_mlops.sdk.web_config import WebConfig

MOST_IN_LINE = 8
"""How many passwords wait to be checked at a time; bcrypt is slow on purpose, and one is checked at a time."""

MOST_IN_LINE_OF_A_HOST = 2
"""How many of them may be of one host, so that who guesses passwords does not keep others out of the line."""

CHECK_TIMEOUT_S = 3.0
"""How long a password waits for its turn."""

RESTS = 2
"""After a check that took so long, checking rests for this many times as long: guessing gets a third of a CPU."""

_MOST_CHECKED = 100
_MOST_PASSWORD_BYTES = 72
_REALM = 'realm="otel-mlops"'


class Refusal(NamedTuple):
    """Why a request is not answered."""

    status: HTTPStatus
    reason: str
    headers: tuple[tuple[str, str], ...] = ()


class Door:
    """Lets requests in, or says why not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._passwords = _Passwords()
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}

    def admit(self, config: WebConfig, authorization: list[str], host: str) -> Refusal | None:
        """None if a request with these Authorization headers is let in.

        Who is known does not wait for who is not: their passwords are checked, and their requests counted, apart.
        """
        is_open = not config.users and config.token is None
        credentials = authorization[0].encode("latin-1", "replace") if len(authorization) == 1 else b""
        scheme, _, rest = credentials.strip().partition(b" ")
        scheme, rest = scheme.lower(), rest.strip()
        if is_open or (scheme == b"bearer" and _same(rest, config.token)):
            return self._limit(config, "known")
        user, password = _user_and_password(rest) if scheme == b"basic" and config.users else (None, b"")
        if user is not None and self._passwords.is_known(config, user, password):
            return self._limit(config, "known")
        if refusal := self._limit(config, "strangers"):
            return refusal
        if user is not None:
            is_right = self._passwords.check(config, user, password, host)
            if is_right is None:
                return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "busy", (("Retry-After", "5"),))
            if is_right:
                return None
        asked = []
        if config.users:
            asked.append(("WWW-Authenticate", f'Basic {_REALM}, charset="UTF-8"'))
        if config.token is not None:
            asked.append(("WWW-Authenticate", f"Bearer {_REALM}"))
        return Refusal(HTTPStatus.UNAUTHORIZED, "auth", tuple(asked))

    def _limit(self, config: WebConfig, who: str) -> Refusal | None:
        if not config.interval_s:
            return None
        now_s = self._clock()
        with self._lock:
            bucket = self._buckets.get(who)
            if bucket is None or (bucket.interval_s, bucket.burst) != (config.interval_s, config.burst):
                bucket = self._buckets[who] = _Bucket(config.interval_s, config.burst, now_s)
            wait_s = bucket.take(now_s)
        if wait_s <= 0:
            return None
        retry_s = str(math.ceil(wait_s))
        return Refusal(HTTPStatus.TOO_MANY_REQUESTS, "rate", (("Retry-After", retry_s),))


class _Bucket:
    """Full it allows a burst, and it gets one request more in each interval."""

    def __init__(self, interval_s: float, burst: int, now_s: float) -> None:
        self.interval_s = interval_s
        self.burst = burst
        self._left = float(burst)
        self._since_s = now_s

    def take(self, now_s: float) -> float:
        """Take one out. Returns 0, or the seconds until there is one."""
        self._left = min(self.burst, self._left + (now_s - self._since_s) / self.interval_s)
        self._since_s = now_s
        if self._left < 1:
            return (1 - self._left) * self.interval_s
        self._left -= 1
        return 0.0


class _Passwords:
    """Passwords, checked one at a time, and those that were right, remembered."""

    def __init__(self) -> None:
        self._secret = os.urandom(32)
        self._turn = threading.Condition()
        self._line: Counter[str] = Counter()
        self._is_checking = False
        self._next_s = 0.0
        self._right: OrderedDict[bytes, None] = OrderedDict()

    def is_known(self, config: WebConfig, user: bytes, password: bytes) -> bool:
        """Whether this very password was right for this user's hash before."""
        hashed = (config.users or {}).get(user)
        if hashed is None:
            return False
        digest = self._digest(user, hashed, password)
        with self._turn:
            is_known = digest in self._right
            if is_known:
                self._right.move_to_end(digest)
        return is_known

    def check(self, config: WebConfig, user: bytes, password: bytes, host: str) -> bool | None:
        """Whether a password is right; None if too many wait to be checked."""
        import bcrypt

        users = config.users or {}
        hashed = users.get(user)
        with self._turn:
            if self._line.total() >= MOST_IN_LINE or self._line[host] >= MOST_IN_LINE_OF_A_HOST:
                return None
            self._line[host] += 1
            try:
                if not self._wait_for_turn():
                    return None
            finally:
                self._line -= Counter({host: 1})
        began_s = time.monotonic()
        try:
            # An unknown user costs as much as a known one, or the time would tell which there are. bcrypt has never
            # looked at more than 72 bytes, and with zero bytes in them different passwords would be equal.
            is_equal = bcrypt.checkpw(password[:_MOST_PASSWORD_BYTES], hashed or self._like_one_of(users, user))
            is_right = is_equal and hashed is not None and b"\0" not in password
        finally:
            with self._turn:
                now_s = time.monotonic()
                self._next_s = now_s + RESTS * (now_s - began_s)
                self._is_checking = False
                self._turn.notify_all()
        if is_right and hashed is not None:
            with self._turn:
                self._right[self._digest(user, hashed, password)] = None
                while len(self._right) > _MOST_CHECKED:
                    self._right.popitem(last=False)
        return is_right

    def _wait_for_turn(self) -> bool:
        until_s = time.monotonic() + CHECK_TIMEOUT_S
        while True:
            now_s = time.monotonic()
            if not self._is_checking and now_s >= self._next_s:
                self._is_checking = True
                return True
            if now_s >= until_s:
                return False
            wait_s = until_s - now_s
            if not self._is_checking:
                wait_s = min(wait_s, self._next_s - now_s)
            self._turn.wait(wait_s)

    def _like_one_of(self, users: Mapping[bytes, bytes], user: bytes) -> bytes:
        """A hash for a user who is not there: it costs what one of the others does, the same one each time."""
        number = int.from_bytes(self._digest(user, b"", b"")[:8], "big")
        return list(users.values())[number % len(users)][:7] + b"." * 53

    def _digest(self, user: bytes, hashed: bytes, password: bytes) -> bytes:
        """A key that no other user, hash and password have, and that tells nothing without this process' secret.

        Each part goes in with its length: joined as they are, two triples could look the same (CVE-2022-46146).
        """
        mac = hmac.new(self._secret, digestmod=hashlib.sha256)
        for part in (user, hashed, password):
            mac.update(len(part).to_bytes(8, "big") + part)
        return mac.digest()


def _same(token: bytes, expected: bytes | None) -> bool:
    """Whether two tokens are the same, in a time that tells neither where they differ nor how long they are."""
    if expected is None:
        return False
    return hmac.compare_digest(hashlib.sha256(token).digest(), hashlib.sha256(expected).digest())


def _user_and_password(encoded: bytes) -> tuple[bytes | None, bytes]:
    """What a Basic header says; no user if it says nothing that can be read."""
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None, b""
    return (user, password) if colon else (None, b"")
