"""What a setting accepts, and how it is read from text.

Each function returns the value as it is kept, or raises a bare TypeError or ValueError: the row of the
setting knows what to say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Accept = Callable[[Any], Any]
ResourceValue = str | bool | int | float

SHORTEST_S = 0.01
"""More often than a hundred times a second nothing is worth reading, and a thread would do nothing else."""
SMALLEST_LEDGER_BYTES = 64 * 1024
"""One segment of a ledger: with less there would be no series at all."""
LONGEST_S = 86_400
"""A day: the longest interval that makes sense, and far below what a timer can hold."""
LONGEST_WINDOW_S = 90 * 86_400
"""Three months: no later than that is a model judged by what it once saw."""
_SHORTEST_KEY = 16


def flag(value: Any) -> bool:
    """Accept True and False."""
    if not isinstance(value, bool):
        raise TypeError
    return value


def text(value: Any) -> str:
    """Accept a text that is not blank."""
    if not isinstance(value, str):
        raise TypeError
    if not value.strip():
        raise ValueError
    return value


def or_none(accept: Accept) -> Accept:
    """Accept None as well."""
    return lambda value: None if value is None else accept(value)


def one_of(*choices: str) -> Accept:
    """Accept one of some words."""

    def accept(value: Any) -> str:
        if text(value) not in choices:
            raise ValueError
        return str(value)

    return accept


def names(known: tuple[str, ...], *, every: bool = False) -> Accept:
    """Accept a comma list or an iterable of known names, `none` for none and, with `every`, `all` for all."""

    def accept(value: Any) -> tuple[str, ...]:
        if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
            raise TypeError
        chosen = [text(name).strip() for name in (value.split(",") if isinstance(value, str) else value)]
        if chosen in ([], ["none"]):
            return ()
        if every and chosen == ["all"]:
            return known
        if not set(chosen) <= set(known):
            raise ValueError
        return tuple(name for name in known if name in chosen)

    return accept


def whole(low: int, high: float = math.inf) -> Accept:
    """Accept a whole number within bounds."""

    def accept(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError
        if not low <= value <= high:
            raise ValueError
        return int(value)

    return accept


def seconds(value: Any) -> float:
    """Accept a time that is more than none and at most a day."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError
    if not SHORTEST_S <= value <= LONGEST_S:
        raise ValueError
    return float(value)


def window(value: Any) -> float:
    """Accept the length of a window, three months at most."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError
    if not SHORTEST_S <= value <= LONGEST_WINDOW_S:
        raise ValueError
    return float(value)


def keys(value: Any) -> str:
    """Accept keys with commas between them, none of which is short enough to be guessed."""
    if any(len(key.strip()) < _SHORTEST_KEY for key in text(value).split(",")):
        raise ValueError
    return str(value)


def host(value: Any) -> str:
    """Accept an address or the name of a host, without a port."""
    if re.search(r"[\s/]", text(value)):
        raise ValueError
    if ":" in value:
        ip_address(value)
    return str(value)


def url(value: Any) -> str:
    """Accept the URL of an OTLP endpoint over HTTP."""
    parts = urlsplit(text(value))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError
    return str(value)


def url_path(value: Any) -> str:
    """Accept the path of a route without parameters."""
    if not re.fullmatch(r"/[^\s?#{}]*", text(value)):
        raise ValueError
    return str(value)


def header(value: Any) -> str:
    """Accept the name of an HTTP header.

    Source:  RFC 9110, section 5.6.2, token.
    """
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", text(value)):
        raise ValueError
    return str(value)


def folder(value: Any) -> Path:
    """Accept an absolute path: workers that were started in different places must mean the same folder."""
    if not isinstance(value, str | Path):
        raise TypeError
    if not Path(value).is_absolute():
        raise ValueError
    return Path(value)


def resource_attributes(value: Any) -> dict[str, ResourceValue]:
    """Accept attributes of a resource."""
    if not isinstance(value, Mapping):
        raise TypeError
    if not all(isinstance(key, str) and isinstance(item, ResourceValue) for key, item in value.items()):
        raise TypeError
    if not all(key.strip() for key in value):
        raise ValueError
    return dict(value)


def flag_from(text: str) -> bool:
    """Read true or false, in any case."""
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def pairs_from(text: str) -> dict[str, str]:
    """Read `key=value,key=value`.

    Source:  OpenTelemetry, Resource SDK, OTEL_RESOURCE_ATTRIBUTES: percent-encoded, as W3C Baggage.
    """
    pairs: dict[str, str] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError
        pairs[unquote(key.strip())] = unquote(value.strip())
    return pairs


def seconds_from_milliseconds(text: str) -> float:
    """Read milliseconds as seconds."""
    return float(text) / 1000


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that is most like it, if any is."""
    from difflib import get_close_matches  # only for a message that ends the start-up

    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
