"""The page for people: what `/` of the page's port answers a browser, put together from the files beside this one.

It is one document without a request of its own but for the metrics, which its script reads every few seconds and
works out in the browser: the service holds nothing for it, and nothing happens while nobody looks.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import logging
import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

_logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/html; charset=utf-8"

_SCRIPTS = ("reading.js", "drawing.js", "figures.js", "page.js")
_NOT_NEEDED = re.compile(r"^ *(?://.*\n|/\*\*.*\*/\n|\n)?", re.MULTILINE)
"""Indentation, and lines that are a comment or empty: a tenth of the document."""


_fault = ""
"""Why the document could not be put together when it was last wanted."""


class PeoplePage(NamedTuple):
    """The document, and what a browser may do for it."""

    body: bytes
    compressed: bytes
    policy: str
    """The Content-Security-Policy."""


def people_page() -> PeoplePage | None:
    """The document; None where its files cannot be read, as in a program that was frozen without them."""
    global _fault  # noqa: PLW0603 (so that it is said once per change)
    try:
        page = _put_together()
    except (OSError, ValueError) as error:  # the second where one is no UTF-8
        if str(error) != _fault:
            _logger.warning("a browser gets the metrics instead of the page for people: %s", error)
        _fault = str(error)
        return None
    _fault = ""
    return page


@cache
def _put_together() -> PeoplePage:
    page, style = _text("page.html"), _text("page.css")
    script = _NOT_NEEDED.sub("", '"use strict";\n' + "".join(map(_text, _SCRIPTS)))
    body = page.replace("/* style */", style).replace("/* script */", script).encode()
    return PeoplePage(body, gzip.compress(body, mtime=0), _policy(style, script))


def _text(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Allow this style, this script, the icon in the document and the metrics; nothing else, and no HTML from text."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _hash(inline: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
