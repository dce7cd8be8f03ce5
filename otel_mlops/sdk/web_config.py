"""The web.config.yml of Prometheus' exporters: read, checked, and read again when it changes.

Source: docs/web-configuration.md of prometheus/exporter-toolkit.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from otel_mlops.sdk import tls
from otel_mlops.settings.values import did_you_mean

if TYPE_CHECKING:
    import ssl

_logger = logging.getLogger(__name__)

_SECTIONS = ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit", "bearer_token_file")
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-Content-Type-Options": ("nosniff",),
    "X-XSS-Protection": (),
    "Strict-Transport-Security": (),
}
_MOST_FILE_BYTES = 1024 * 1024
_HASH = re.compile(r"\$2[aby]\$(?P<cost>\d\d)\$[./A-Za-z0-9]{53}")
_COSTS = range(4, 19)
_TOKEN = re.compile(rb"[\x21-\x7e]+")
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

Signature = tuple[int, ...] | None


class _TwiceError(ValueError):
    """A key stands in the file twice."""


@dataclass(frozen=True, slots=True)
class WebConfig:
    """What a web.config.yml asks for."""

    context: ssl.SSLContext | None = None
    allowed_names: frozenset[str] | None = None
    headers: Mapping[str, str] | None = None
    users: Mapping[bytes, bytes] | None = None
    """The bcrypt hash of each user's password."""
    token: bytes | None = None
    interval_s: float = 0.0
    """A further request is allowed each time so much has passed; 0 is no limit."""
    burst: int = 0


class Section:
    """A mapping of the file, with messages that name the file, the key, the value and what was expected."""

    def __init__(self, file: Path, name: str, found: Any, known: tuple[str, ...], read: dict[Path, Signature]) -> None:
        self._file = file
        self._name = name
        self._read = read
        found = {} if found is None else found
        if not isinstance(found, dict):
            self.fail("", type(found).__name__, f"keys and values, of {', '.join(known)}")
        self._found: dict[str, Any] = found
        for key in found:
            if key not in known:
                self.fail(key, None, f"one of {', '.join(known)}{did_you_mean(str(key), known)}")

    def __bool__(self) -> bool:
        return bool(self._found)

    def fail(self, key: object, value: object, expected: str) -> NoReturn:
        """Raise the ValueError for a value."""
        path = ".".join(str(part) for part in (self._name, key) if part != "")
        said = "" if value is None else f": {value!r}"
        raise ValueError(f"{self._file}: {path}{said}; expected {expected}")

    def get(self, key: str) -> Any:
        """What the file says, or None."""
        return self._found.get(key)

    def text(self, key: str) -> str | None:
        """A text that is not empty, or None."""
        value = self._found.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            self.fail(key, value, "a text that is not empty")
        return value

    def secret(self, key: str) -> str | None:
        """A text that no message repeats, or None."""
        value = self._found.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            self.fail(key, None, "a text that is not empty")
        return value

    def texts(self, key: str) -> list[str] | None:
        """A list of texts, or None."""
        value = self._found.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            self.fail(key, value, "a list of texts")
        return value

    def boolean(self, key: str, *, default: bool) -> bool:
        """True or False."""
        value = self._found.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, value, "true or false")
        return value

    def path(self, key: str) -> Path | None:
        """A path, which is relative to the folder of the file."""
        value = self.text(key)
        return None if value is None else self._file.parent / value

    def read(self, key: str, path: Path) -> bytes:
        """The content of a file, whose changes are looked for from now on."""
        self._read[path] = signature(path)
        try:
            return _content(path)
        except (OSError, ValueError) as error:
            self.fail(key, str(path), f"a file that can be read ({error})")


def load(path: Path, read: dict[Path, Signature]) -> WebConfig:
    """Read a web.config.yml with the files it names; `read` gets each file and its signature, whatever happens.

    Errors:  ValueError that names the file, the key, the value and what was expected; ImportError without PyYAML
             or, where there are passwords, bcrypt.
    """
    read[path] = signature(path)
    try:
        text = _content(path).decode()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; expected a file in YAML that can be read") from error
    found = _parse(path, text)
    if not found:
        # Nobody writes such a file on purpose, but it is what is seen while it is being written.
        raise ValueError(f"{path}: it is empty; expected one of {', '.join(_SECTIONS)}")
    top = Section(path, "", found, _SECTIONS, read)

    def section(name: str, known: tuple[str, ...]) -> Section:
        return Section(path, name, top.get(name), known, read)

    secured = section("tls_server_config", tls.KEYS)
    http = section("http_server_config", ("http2", "headers"))
    http.boolean("http2", default=True)
    interval_s, burst = _rate(section("rate_limit", ("interval", "burst")))
    return WebConfig(
        context=tls.context_of(secured) if secured else None,
        allowed_names=tls.allowed_names(secured),
        headers=_headers(Section(path, "http_server_config.headers", http.get("headers"), (*_HEADERS,), read)),
        users=_users(path, top.get("basic_auth_users")),
        token=_token(top),
        interval_s=interval_s,
        burst=burst,
    )


class WebConfigFile:
    """A web.config.yml that is read again when it, or a file it names, changes.

    Errors:  as `load`, when it is read for the first time; what is wrong later leaves the last good one in force.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._read: dict[Path, Signature] = {}
        self.fault: str | None = None
        """Why the file as it is now is not in force."""
        self._last_good = load(path, self._read)
        self._warn_of_passwords_in_clear()

    def after_fork(self) -> None:
        """In a forked child: a thread of the parent's may have held the lock."""
        self._lock = threading.Lock()

    def current(self) -> WebConfig:
        """The configuration in force."""
        # While one thread looks, which may take long on a network's disk, the others go on with what there was.
        if self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._last_good

    def _look(self) -> None:
        if all(signature(path) == was for path, was in self._read.items()):
            return
        self._read = {}
        try:
            self._last_good = load(self._path, self._read)
        except (ValueError, ImportError) as error:
            fault = str(error)
            if fault != self.fault:
                _logger.error("%s. What was in force before still is.", fault)  # noqa: TRY400 - it is no bug of ours
            self.fault = fault
        else:
            _logger.info("%s has changed and is in force", self._path)
            self.fault = None
            self._warn_of_passwords_in_clear()

    def _warn_of_passwords_in_clear(self) -> None:
        config = self._last_good
        if config.context is None and (config.users or config.token):
            _logger.warning(
                "%s asks for passwords but has no tls_server_config: they go over the network in clear", self._path
            )


def signature(path: Path) -> Signature:
    """What changes when a file does, even if it is replaced; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(_MOST_FILE_BYTES + 1)
    if len(content) > _MOST_FILE_BYTES:
        raise ValueError(f"it is larger than {_MOST_FILE_BYTES} bytes")
    return content


def _parse(path: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"{path} needs PyYAML: pip install 'otel-mlops[web]'") from error

    class Loader(yaml.SafeLoader):
        """A key that comes twice is a mistake, of which PyYAML would take the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise _TwiceError(f"{path}: {key} stands there twice; expected it once")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)  # noqa: S506 - it is a SafeLoader
    except _TwiceError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Where it is and not what, which may be a password.
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{path}: it cannot be understood{where}; expected YAML") from None


def _headers(section: Section) -> dict[str, str]:
    found = {}
    for name, values in _HEADERS.items():
        value = section.get(name)
        if value is None or (value == "" and not values):
            continue
        if values and value not in values:
            section.fail(name, value, f"one of {', '.join(values)}")
        if not isinstance(value, str) or not re.fullmatch(r"[\x20-\x7e]+", value):
            section.fail(name, value, "one line of plain text")
        found[name] = value
    return found


def _users(path: Path, found: Any) -> dict[bytes, bytes] | None:
    if found is None or found == {}:
        return None
    # No message repeats what stands where a hash should: it may be a password.
    names = tuple(found) if isinstance(found, dict) else ("user: hash",)
    section = Section(path, "basic_auth_users", found, names, {})
    users = {}
    for name, hashed in found.items():
        if not isinstance(name, str) or not name or ":" in name:
            section.fail(name, None, "a user's name, in quotes if it is a number, without a colon")
        match = _HASH.fullmatch(hashed) if isinstance(hashed, str) else None
        if match is None or int(match["cost"]) not in _COSTS:
            section.fail(name, None, f"a bcrypt hash ($2y$...) of a cost from {_COSTS[0]} to {_COSTS[-1]}")
        users[name.encode()] = hashed.encode()
    try:
        import bcrypt
    except ImportError as error:
        raise ImportError(f"{path}: basic_auth_users needs bcrypt: pip install 'otel-mlops[web]'") from error
    del bcrypt
    return users


def _token(top: Section) -> bytes | None:
    path = top.path("bearer_token_file")
    if path is None:
        return None
    token = top.read("bearer_token_file", path).rstrip(b"\r\n")
    if not _TOKEN.fullmatch(token):
        top.fail("bearer_token_file", str(path), "a file with one token: printable ASCII without spaces, not empty")
    return token


def _rate(section: Section) -> tuple[float, int]:
    if not section:
        return 0.0, 0
    interval, burst = section.get("interval"), section.get("burst")
    interval_s = _seconds(interval)
    if interval_s is None:
        section.fail("interval", interval, "a duration with its unit such as 1s or 250ms, or 0 for no limit")
    if interval_s > 0 and (type(burst) is not int or burst < 1):
        section.fail("burst", burst, "a whole number from 1")
    return interval_s, burst or 0


def _seconds(value: object) -> float | None:
    """A duration as Go writes it, `1m30s`; None if it is none."""
    if value == "0" or (type(value) is int and value == 0):
        return 0.0
    parts = _DURATION.findall(value) if isinstance(value, str) else []
    if not parts or "".join(parts) != value:
        return None
    split = [re.fullmatch(r"([\d.]+)(\D+)", part) for part in parts]
    return sum(float(match[1]) * _UNIT_S[match[2]] for match in split if match)
