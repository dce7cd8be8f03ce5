"""Receipts: what was predicted, signed, for the client to hand back with the truth; nothing is kept meanwhile.

A receipt is URL-safe text without padding. Decoded it is

    version, 1 byte | model, 4 | id, 12 | what was predicted and when, 17 or more | MAC, 16

so 67 characters for a number, 78 for a number with a score, 70 for the label "1" with a score, and at most 1,000
for a label of 255 bytes with the probabilities of many classes.

The MAC is keyed blake2b. Its 16 bytes suffice as a forger has nothing to try it on but the service: each guess
hits with a probability of 2^-128. The id is 96 random bits of the kernel's, asked for each time: a forked child,
a clone of a machine or a restart cannot repeat what was never kept, and a billion ids collide with a probability
of 6e-12.
"""

from __future__ import annotations

import binascii
import heapq
import json
import os
import struct
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from hmac import compare_digest
from math import inf
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from otel_mlops.model.keys import Keys

Refusal: TypeAlias = Literal["invalid", "forged", "other_model", "expired"]

LONGEST_RECEIPT = 1_000
"""In characters; what is longer is not looked at."""
LONGEST_LABEL = 255
"""In bytes of UTF-8."""
MOST_SCORES = 16
_MOST_BYTES = 700
"""Of a packed answer: with what goes round it, and in base64, the longest receipt."""

_VERSION = b"\x01"
_MODEL_BYTES, _ID_BYTES, _MAC_BYTES = 4, 12, 16
_ID_AT = len(_VERSION) + _MODEL_BYTES
_ANSWER_AT = _ID_AT + _ID_BYTES

_HAS_LABEL, _HAS_SCORE, _HAS_SCORES = 1, 2, 4
_KNOWN_PARTS = _HAS_LABEL | _HAS_SCORE | _HAS_SCORES
_PARTS_AND_TIME = struct.Struct(">Bd")
_DOUBLE = struct.Struct(">d")

_TO_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class Answer(NamedTuple):
    """What a model has answered: all that its truth is compared with."""

    value: float | str
    """The number that was predicted, or the text of the class's label."""
    score: float | None
    """The probability of the positive class, where there are two."""
    scores: Mapping[str, float] | None
    """The probabilities of the most probable classes, 16 at most."""
    time_s: float
    """When it was predicted, by the wall clock."""
    id: str
    """What nothing else that was predicted has."""


class ReceiptError(Exception):
    """A receipt that is not taken, and why.

    `invalid` is no receipt of this format, `forged` is signed with none of our keys (altered, somebody else's, or
    the key is lost), `other_model` is ours but of another model or version, `expired` is older than they may be.
    """

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason)
        self.reason: Refusal = reason


class Receipts:
    """The receipts of one model version.

    Past `max_age_s` a receipt is refused. That one is not handed in twice is for the Store to see (`redeem`),
    which remembers no longer than it is told to.
    """

    def __init__(
        self,
        keys: Keys,
        model_name: str,
        model_version: str,
        max_age_s: float = 30 * 86_400.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._max_age_s = max_age_s
        self._clock = clock
        model = json.dumps([model_name, model_version]).encode()
        self._head = _VERSION + blake2b(model, digest_size=_MODEL_BYTES).digest()

    def issue(self, value: float | str, score: float | None = None, scores: Mapping[str, float] | None = None) -> str:
        """Sign what was predicted just now.

        Errors:  TypeError, ValueError or OverflowError for a value that is neither a number nor a label of up to
                 255 bytes, and for scores that are no numbers.
        """
        signed = self._head + os.urandom(_ID_BYTES) + pack(value, score, scores, self._clock())
        return _text_of(signed + _mac(signed, self._keys.current()[0]))

    def read(self, receipt: object) -> Answer:
        """What a receipt says was predicted; whatever was handed in, there is no other exception.

        Errors:  ReceiptError.
        """
        content = _content_of(receipt)
        signed, mac = content[:-_MAC_BYTES], content[-_MAC_BYTES:]
        if len(signed) <= _ANSWER_AT or not signed.startswith(_VERSION):
            raise ReceiptError("invalid")
        # The key file may have been made anew since it was last looked at: that is found out before it is refused.
        if not self._has_signed(signed, mac) and not (self._keys.look() and self._has_signed(signed, mac)):
            raise ReceiptError("forged")
        if not signed.startswith(self._head):
            raise ReceiptError("other_model")
        try:
            answer = unpack(signed[_ANSWER_AT:], signed[_ID_AT:_ANSWER_AT].hex())
        except ValueError:
            raise ReceiptError("invalid") from None
        if not self._clock() - answer.time_s <= self._max_age_s:
            raise ReceiptError("expired")
        return answer

    def _has_signed(self, signed: bytes, mac: bytes) -> bool:
        return any(compare_digest(_mac(signed, key), mac) for key in self._keys.current())


def pack(value: float | str, score: float | None, scores: Mapping[str, float] | None, time_s: float) -> bytes:
    """An answer as bytes, without its id; numbers come back exactly.

    Errors:  TypeError, ValueError or OverflowError for what is neither a number nor a label of up to 255 bytes.
    """
    parts, packed = 0, b""
    if isinstance(value, str):
        parts |= _HAS_LABEL
        packed = _pack_label(value)
        if not packed:
            raise ValueError(f"the label is {value!r:.80}, expected one of at most {LONGEST_LABEL} bytes")
    else:
        packed = _DOUBLE.pack(float(value))
    if score is not None:
        parts |= _HAS_SCORE
        packed += _DOUBLE.pack(float(score))
    if scores is not None:
        parts |= _HAS_SCORES
        packed += _pack_scores(scores, _MOST_BYTES - _PARTS_AND_TIME.size - len(packed))
    return _PARTS_AND_TIME.pack(parts, time_s) + packed


def unpack(packed: bytes, id: str) -> Answer:  # noqa: A002 (the field's name)
    """The answer that was packed.

    Errors:  ValueError for what is no answer.
    """
    try:
        parts, time_s = _PARTS_AND_TIME.unpack_from(packed)
        offset = _PARTS_AND_TIME.size
        value: float | str
        score = scores = None
        if parts & _HAS_LABEL:
            value, offset = _unpack_label(packed, offset)
        else:
            value, offset = _unpack_number(packed, offset)
        if parts & _HAS_SCORE:
            score, offset = _unpack_number(packed, offset)
        if parts & _HAS_SCORES:
            scores, offset = _unpack_scores(packed, offset)
    except (IndexError, struct.error) as error:
        raise ValueError(f"the answer ends too early: {error}") from None
    if offset != len(packed) or parts & ~_KNOWN_PARTS:
        raise ValueError("the answer has a part that is not known")
    return Answer(value, score, scores, time_s, id)


def _pack_label(label: str) -> bytes:
    """A label after its length; nothing for one that is too long."""
    text = label.encode("utf-8", "surrogatepass")
    return bytes((len(text),)) + text if len(text) <= LONGEST_LABEL else b""


def _pack_scores(scores: Mapping[str, float], room: int) -> bytes:
    """The most probable classes, as many as there is room for."""
    pairs = ((float(score), str(label)) for label, score in scores.items())
    packed, count, room = b"", 0, room - 1
    for score, label in heapq.nlargest(MOST_SCORES, pairs, key=lambda pair: pair[0] if pair[0] == pair[0] else -inf):
        text = _pack_label(label)
        if text and len(text) + _DOUBLE.size <= room:
            room -= len(text) + _DOUBLE.size
            packed += text + _DOUBLE.pack(score)
            count += 1
    return bytes((count,)) + packed


def _unpack_label(packed: bytes, offset: int) -> tuple[str, int]:
    end = offset + 1 + packed[offset]
    return packed[offset + 1 : end].decode("utf-8", "surrogatepass"), end


def _unpack_number(packed: bytes, offset: int) -> tuple[float, int]:
    return _DOUBLE.unpack_from(packed, offset)[0], offset + _DOUBLE.size


def _unpack_scores(packed: bytes, offset: int) -> tuple[dict[str, float], int]:
    scores = {}
    count, offset = packed[offset], offset + 1
    for _ in range(count):
        label, offset = _unpack_label(packed, offset)
        scores[label], offset = _unpack_number(packed, offset)
    return scores, offset


def _mac(signed: bytes, key: bytes) -> bytes:
    return blake2b(signed, key=key, digest_size=_MAC_BYTES).digest()


def _text_of(content: bytes) -> str:
    return binascii.b2a_base64(content, newline=False).translate(_TO_URL_SAFE).rstrip(b"=").decode("ascii")


def _content_of(receipt: object) -> bytes:
    """What a text stands for, if it is the only one that stands for it.

    Errors:  ReceiptError.
    """
    # By its type: isinstance() may run code of the object's own, and that may raise.
    if not issubclass(type(receipt), (str, bytes)) or len(receipt) > LONGEST_RECEIPT:  # type: ignore[arg-type]
        raise ReceiptError("invalid")
    try:
        text = receipt.encode("ascii") if isinstance(receipt, str) else bytes(receipt)  # type: ignore[call-overload]
        content = binascii.a2b_base64(text.translate(_FROM_URL_SAFE) + b"=" * (-len(text) % 4), strict_mode=True)
    except ValueError:  # neither ASCII nor base64
        raise ReceiptError("invalid") from None
    if _text_of(content) != text.decode("ascii"):
        raise ReceiptError("invalid")  # of the other alphabet, or with bits in the end that say nothing
    return content
