from __future__ import annotations

import base64
import logging
import math
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_mlops.model.keys import KEY_FILE, Keys, keys_from, read_key
from otel_mlops.model.receipts import LONGEST_RECEIPT, MOST_SCORES, ReceiptError, Receipts, pack, unpack
from tests.clock import Clock
from tests.model.children import children

KEY = "a key for tests only"
NUMBERS = st.floats()
LABELS = st.text(st.characters(), max_size=60)  # lone surrogates among them


def receipts_of(name: str = "model", version: str = "1", key: str = KEY, **others: Any) -> Receipts:
    return Receipts(Keys(key), name, version, **others)


def refused(receipts: Receipts, receipt: object) -> str:
    with pytest.raises(ReceiptError) as caught:
        receipts.read(receipt)
    return caught.value.reason


def same(left: Any, right: Any) -> bool:
    """Equal to the bit, where NaN is itself."""
    if isinstance(left, float) and isinstance(right, float):
        return struct.pack("d", left) == struct.pack("d", right) or (math.isnan(left) and math.isnan(right))
    return bool(left == right)


# --- What comes back ---------------------------------------------------------------------------------------------


@given(st.one_of(NUMBERS, LABELS), st.none() | NUMBERS)
@example(-0.0, 5e-324)
@example("\ud800", math.nan)
@example("", math.inf)
def test_what_was_predicted_comes_back_exactly(value: float | str, score: float | None):
    """Any number, label and score comes back to the bit, with the time of the prediction."""
    clock = Clock(1_800_000_000.25)
    receipts = receipts_of(clock=clock)
    answer = receipts.read(receipts.issue(value, score))
    assert same(answer.value, value)
    assert same(answer.score, score)
    assert answer.scores is None
    assert answer.time_s == clock.now_s


@given(st.dictionaries(LABELS, NUMBERS, max_size=40))
def test_of_many_probabilities_the_largest_come_back(scores: dict[str, float]):
    """Of the probabilities that fit none is smaller than one that was left out for its rank."""
    receipts = receipts_of()
    kept = receipts.read(receipts.issue("label", None, scores)).scores
    assert kept is not None
    assert len(kept) <= MOST_SCORES
    assert all(same(scores[label], score) for label, score in kept.items())
    if len(scores) <= MOST_SCORES and sum(len(label.encode("utf-8", "surrogatepass")) for label in scores) < 400:
        assert set(kept) == set(scores)


def test_the_most_probable_sixteen_classes_are_kept():
    """Of 1,000 classes the 16 most probable come back, whatever their order was."""
    scores = {f"class {number}": (number * 37 % 1000) / 1000 for number in range(1000)}
    receipts = receipts_of()
    kept = receipts.read(receipts.issue("class 1", None, {**scores, "nobody knows": math.nan})).scores
    assert kept == dict(sorted(scores.items(), key=lambda pair: -pair[1])[:16])


def test_receipts_are_short():
    """A number takes 67 characters, with a score 78, and nothing takes more than 1,000; none needs escaping."""
    receipts = receipts_of()
    sizes = [len(receipts.issue(*each)) for each in [(1.5,), (1.5, 0.5), ("1", 0.5)]]
    assert sizes == [67, 78, 70]
    long = receipts.issue("é" * 127, 0.5, {f"{number} {'x' * 40}": 0.1 for number in range(16)})
    assert 950 < len(long) <= LONGEST_RECEIPT
    assert receipts.read(long).value == "é" * 127
    assert all(each.isascii() and (each.isalnum() or each in "-_") for each in long)


@pytest.mark.parametrize("value", ["é" * 128, "x" * 256, None, 1j, [1.0], 10**400])
def test_what_cannot_be_predicted_is_refused_when_it_is_issued(value: Any):
    """A label of more than 255 bytes, and what is no number, is an error at once."""
    with pytest.raises((TypeError, ValueError, OverflowError)):
        receipts_of().issue(value)


def test_classes_whose_labels_are_too_long_are_left_out():
    """A class with a label of more than 255 bytes has no probability in the receipt; the others have."""
    receipts = receipts_of()
    assert receipts.read(receipts.issue("a", None, {"x" * 300: 0.6, "a": 0.4})).scores == {"a": 0.4}


def test_ids_are_never_the_same():
    """No two receipts have an id in common, nor do those of a forked child and its parent."""
    receipts = receipts_of()

    def work(tell: Any) -> None:
        tell([receipts.read(receipts.issue(1.0)).id for _ in range(500)])

    receipts.issue(1.0)
    with children(work, work) as born:
        ids = [each for child in born for each in child.next()]
    ids += [receipts.read(receipts.issue(1.0)).id for _ in range(500)]
    assert len(set(ids)) == 1500


# --- What is refused ---------------------------------------------------------------------------------------------


def test_no_character_can_be_altered():
    """Another character at any place, one less or one more, and the receipt is refused."""
    receipts = receipts_of()
    receipt = receipts.issue(1.5, 0.25)
    for place in range(len(receipt)):
        for other in "Ab-_+/= é\n\0":
            if other != receipt[place]:
                assert refused(receipts, receipt[:place] + other + receipt[place + 1 :]) in ("forged", "invalid")
        assert refused(receipts, receipt[:place]) in ("forged", "invalid")
        assert refused(receipts, receipt[:place] + receipt[place + 1 :]) in ("forged", "invalid")
    for more in ("A", "=", "AAAA", "\n", " "):
        assert refused(receipts, receipt + more) in ("forged", "invalid")


def test_each_byte_is_signed():
    """A receipt of which one bit is another, in whatever part, is forged, or of no known version."""
    receipts = receipts_of()
    receipt = receipts.issue(1.5)
    content = base64.urlsafe_b64decode(receipt + "=")
    for bit in range(len(content) * 8):
        altered = bytearray(content)
        altered[bit // 8] ^= 1 << bit % 8
        text = base64.urlsafe_b64encode(altered).rstrip(b"=").decode()
        assert refused(receipts, text) == ("invalid" if bit < 8 else "forged")


def test_each_content_has_one_text():
    """The bits of the last character that say nothing must be 0, so that no second text stands for a receipt."""
    receipts = receipts_of()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    receipt = receipts.issue(1.5)
    assert len(receipt) % 4 == 3
    unused = alphabet[alphabet.index(receipt[-1]) | 1]
    assert unused != receipt[-1]
    assert base64.urlsafe_b64decode(receipt[:-1] + unused + "=") == base64.urlsafe_b64decode(receipt + "=")
    assert refused(receipts, receipt[:-1] + unused) == "invalid"


class Hostile:
    """An object that raises whatever it is asked."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


@pytest.mark.parametrize(
    "receipt",
    [None, 1, 1.5, True, [], {}, object(), "", b"", "=", "====", "A", "é" * 67, "\ud800", "A" * 1_000,
     "A" * 1_001, "A" * 10_000_000, b"\xff" * 67, b"A" * 10_000_000, bytearray(b"A" * 67), "\0" * 67, "A" * 44],
)  # fmt: skip
def test_whatever_is_handed_in_is_refused_in_one_way(receipt: object):
    """What is no receipt is invalid, and nothing but a ReceiptError is raised."""
    assert refused(receipts_of(), receipt) == "invalid"


def test_an_object_that_raises_is_refused_as_well():
    """Not even an object whose every attribute raises gets another exception out of it."""
    assert refused(receipts_of(), Hostile()) == "invalid"


class Untouchable(str):
    """A text that must not be looked into."""

    __slots__ = ()

    def encode(self, *_: object, **__: object) -> bytes:
        raise AssertionError


def test_what_is_too_long_is_not_looked_at():
    """A text of more than 1,000 characters is refused by its length alone."""
    assert refused(receipts_of(), Untouchable("A" * 1_001)) == "invalid"
    with pytest.raises(AssertionError):
        receipts_of().read(Untouchable("A" * 1_000))


@given(st.one_of(st.text(), st.binary(), st.from_regex(rb"AQ[A-Za-z0-9_-]{65}", fullmatch=True)))
def test_no_text_gets_past_the_key(receipt: object):
    """Whatever text or bytes are handed in, they are refused."""
    assert refused(receipts_of(), receipt) in ("invalid", "forged")


def test_bytes_are_as_good_as_text():
    """A receipt that comes back as bytes is read."""
    receipts = receipts_of()
    assert receipts.read(receipts.issue(2.5).encode()).value == 2.5


@pytest.mark.parametrize("other", [("other", "1"), ("model", "2"), ("model1", ""), ('model", "1', "")])
def test_another_models_receipt_is_told_apart(other: tuple[str, str]):
    """A receipt of another model or version, by the same key, is of another model, not forged."""
    assert refused(receipts_of(*other), receipts_of().issue(1.0)) == "other_model"


def test_another_key_is_a_forgery():
    """A receipt that another key has signed is forged."""
    assert refused(receipts_of(), receipts_of(key="another key as long").issue(1.0)) == "forged"


def test_receipts_expire():
    """A receipt is read up to its greatest age, and expired past it; one from a clock that runs ahead is read."""
    clock = Clock(1_800_000_000.25)
    receipts = receipts_of(max_age_s=100.0, clock=clock)
    receipt = receipts.issue(1.0)
    clock.now_s += 100.0
    assert receipts.read(receipt).value == 1.0
    clock.now_s += 0.5
    assert refused(receipts, receipt) == "expired"
    clock.now_s -= 1000.0
    assert receipts.read(receipt).value == 1.0


def signed(payload: bytes) -> str:
    mac = blake2b(payload, key=keys_from(KEY)[0], digest_size=16).digest()
    return base64.urlsafe_b64encode(payload + mac).rstrip(b"=").decode()


CHANGES: list[Callable[[bytes], bytes]] = [
    lambda body: body + b"\0",
    lambda body: body[:-1],
    lambda body: b"\x08" + body[1:],
    lambda body: b"\x01" + body[1:],
    lambda body: b"\x04" + body[1:9] + b"\x02",
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_signed_but_not_understood_is_invalid(change: Callable[[bytes], bytes]):
    """A receipt of ours whose answer another release has written otherwise is invalid."""
    head = base64.urlsafe_b64decode(receipts_of().issue(1.0) + "=")[:17]
    body = pack(1.0, None, None, 1.8e9)
    assert receipts_of(max_age_s=math.inf).read(signed(head + body)).value == 1.0
    assert refused(receipts_of(max_age_s=math.inf), signed(head + change(body))) == "invalid"
    assert refused(receipts_of(max_age_s=math.inf), signed(b"\x02" + head[1:] + body)) == "invalid"


@given(st.binary(max_size=80))
def test_bytes_that_are_no_answer_are_a_value_error(packed: bytes):
    """Whatever the bytes, they are an answer or a ValueError."""
    try:
        unpack(packed, "id")
    except ValueError as error:
        assert str(error)  # noqa: PT017 (either is fine, another exception is not)


# --- Keys --------------------------------------------------------------------------------------------------------


def test_the_new_key_signs_and_the_old_one_still_reads():
    """With two keys receipts of either are read, and only the first signs."""
    old, both, new = (receipts_of(key=key) for key in ("k" * 16, "n" * 16 + " , " + "k" * 16, "n" * 16))
    assert both.read(old.issue(1.0)).value == 1.0
    assert new.read(both.issue(2.0)).value == 2.0
    assert refused(old, both.issue(2.0)) == "forged"
    assert refused(new, old.issue(2.0)) == "forged"


@pytest.mark.parametrize("given_key", ["", "secret", "s" * 15, "s" * 16 + ",", "s" * 16 + ",secret", " " * 20])
def test_a_short_key_is_refused_and_not_shown(given_key: str):
    """A key of fewer than 16 characters is an error that says what is expected, and does not show it."""
    with pytest.raises(ValueError, match="at least 16 characters") as caught:
        Keys(given_key)
    assert "secret" not in str(caught.value)
    assert "sss" not in str(caught.value)


def test_keys_do_not_show_themselves():
    """Neither the keys nor the receipts' object has the key in its repr."""
    keys = Keys(KEY)
    assert KEY not in repr(keys) + repr(Receipts(keys, "m", "1"))
    assert keys.current()[0].hex() not in repr(keys)


def test_workers_of_a_group_share_a_key_which_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The first makes the file, for its user alone, and says so; the second has the same key and says nothing."""
    first, second = Keys(None, lambda: tmp_path), Keys(None, lambda: tmp_path)
    receipt = Receipts(first, "m", "1").issue(1.0)
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert Receipts(second, "m", "1").read(receipt).value == 1.0
    assert second.current()[0] == first.current()[0] == read_key(tmp_path / KEY_FILE)
    (told,) = caplog.records
    assert "OTEL_MLOPS_RECEIPT_KEY" in told.getMessage()
    assert str(tmp_path) in told.getMessage()
    assert first.current()[0].hex() not in told.getMessage()


def test_nothing_is_made_before_it_is_needed(tmp_path: Path):
    """Keys that are not used leave no file."""
    Receipts(Keys(None, lambda: tmp_path), "m", "1")
    assert list(tmp_path.iterdir()) == []


def test_workers_that_begin_at_once_get_the_same_key(tmp_path: Path):
    """Of many that need a key at the same moment all get the one that came first."""
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        everyone = [Keys(None, lambda folder=folder: folder) for _ in range(4)]
        start = threading.Barrier(len(everyone))
        found: list[bytes] = []

        def work(keys: Keys, start: threading.Barrier = start, found: list[bytes] = found) -> None:
            start.wait()
            found.append(keys.current()[0])

        threads = [threading.Thread(target=work, args=(keys,)) for keys in everyone]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert set(found) == {read_key(folder / KEY_FILE)}
        assert [path.name for path in folder.iterdir()] == [KEY_FILE]


MAKES_A_KEY = """
import sys
from pathlib import Path
from otel_mlops.model.keys import Keys
sys.stdin.readline()
print(Keys(None, lambda: Path(sys.argv[1])).current()[0].hex())
"""


@pytest.mark.stress
def test_processes_that_begin_at_once_get_the_same_key(tmp_path: Path):
    """The same for processes that share nothing but the folder."""
    command = [sys.executable, "-c", MAKES_A_KEY, str(tmp_path)]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                text=True) for _ in range(6)]  # fmt: skip
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    assert {worker.communicate()[0].strip() for worker in workers} == {read_key(tmp_path / KEY_FILE).hex()}


def test_a_key_that_was_cleared_away_is_put_back(tmp_path: Path):
    """When the folder is wiped the key comes back, and receipts stay good for all workers."""
    clock = Clock(1_800_000_000.25)
    keys = Keys(None, lambda: tmp_path, clock)
    receipts = Receipts(keys, "m", "1")
    receipt = receipts.issue(1.0)
    (tmp_path / KEY_FILE).unlink()
    clock.now_s += 0.5
    receipts.issue(1.0)
    assert not (tmp_path / KEY_FILE).exists()  # it is looked at once a second
    clock.now_s += 1.0
    receipts.issue(1.0)
    assert Receipts(Keys(None, lambda: tmp_path), "m", "1").read(receipt).value == 1.0


def test_the_key_in_the_file_wins(tmp_path: Path):
    """A worker takes over the key it finds, at once where a receipt needs it, and still reads what it has signed."""
    clock = Clock(1_800_000_000.25)
    ours = Receipts(Keys(None, lambda: tmp_path, clock), "m", "1")
    before = ours.issue(1.0)
    (tmp_path / KEY_FILE).unlink()
    theirs = Receipts(Keys(None, lambda: tmp_path), "m", "1")
    assert ours.read(theirs.issue(2.0)).value == 2.0
    assert theirs.read(ours.issue(3.0)).value == 3.0
    assert ours.read(before).value == 1.0
    assert refused(theirs, before) == "forged"


def test_without_a_folder_the_key_is_the_process_own(caplog: pytest.LogCaptureFixture):
    """Without a folder receipts are good in this process, and in a child it forks, which is said once."""
    clock = Clock(1_800_000_000.25)
    keys = Keys(None, monotonic=clock)
    receipts = Receipts(keys, "m", "1")
    receipt = receipts.issue(1.0)
    assert not caplog.records  # one may come yet
    for _ in range(3):
        clock.now_s += 1.5
        receipts.issue(1.0)
    (told,) = caplog.records
    assert "no other worker" in told.getMessage()

    def work(tell: Any) -> None:
        tell(Receipts(keys, "m", "1").read(receipt).value)

    with children(work) as (child,):
        assert child.next() == 1.0
    assert refused(Receipts(Keys(None), "m", "1"), receipt) == "forged"


@pytest.mark.parametrize("is_named", [True, False])
def test_a_folder_that_comes_late_gets_the_key_in_use(is_named: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Receipts signed before the worker has joined its group are read by the others after it has."""
    clock, folder = Clock(1_800_000_000.25), tmp_path / "group"
    receipts = Receipts(Keys(None, lambda: folder if is_named or folder.exists() else None, clock), "m", "1")
    receipt = receipts.issue(1.0)
    assert not caplog.records
    folder.mkdir()
    clock.now_s += 1.5
    receipts.issue(1.0)
    assert Receipts(Keys(None, lambda: folder), "m", "1").read(receipt).value == 1.0


def test_a_folder_that_never_comes_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A folder that is still missing at the second look is a warning, and at the third none."""
    clock = Clock(1_800_000_000.25)
    keys = Keys(None, lambda: tmp_path / "none", clock)
    for _ in range(4):
        keys.current()
        clock.now_s += 1.5
    assert len(caplog.records) == 1


def link(path: Path) -> None:
    (path.parent / "elsewhere").write_bytes(b"k" * 32)
    (path.parent / "elsewhere").chmod(0o600)
    path.symlink_to(path.parent / "elsewhere")


def open_to_all(path: Path) -> None:
    path.write_bytes(b"k" * 32)
    path.chmod(0o644)


def too_short(path: Path) -> None:
    path.write_bytes(b"k" * 31)
    path.chmod(0o600)


def too_long(path: Path) -> None:
    path.write_bytes(b"k" * 33)
    path.chmod(0o600)


def pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)
    os.write(os.open(path, os.O_RDWR), b"k" * 32)  # left open: what is in a pipe nobody has open is lost


def directory(path: Path) -> None:
    path.mkdir(mode=0o700)


FALSE_KEYS = [link, open_to_all, too_short, too_long, pipe, directory]
if os.geteuid() == 0:

    def somebody_elses(path: Path) -> None:
        path.write_bytes(b"k" * 32)
        path.chmod(0o600)
        os.chown(path, 54321, 54321)

    FALSE_KEYS.append(somebody_elses)


@pytest.mark.parametrize("lay", FALSE_KEYS)
def test_a_file_that_others_may_have_made_is_no_key(lay: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A link, another's file, one that is open to others or of another size is not taken, and that is told once."""
    lay(tmp_path / KEY_FILE)
    clock = Clock(1_800_000_000.25)
    keys = Keys(None, lambda: tmp_path, clock)
    own = keys.current()
    clock.now_s += 1.5
    assert keys.current() == own
    assert own[0] != b"k" * 32
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert "no other worker knows" in told.getMessage()
