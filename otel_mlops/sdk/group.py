"""The workers that share one page: their folder, its door, who leads; what is in their ledgers is read elsewhere.

Workers of one user, network namespace, service, host and port find each other by the name of a folder in
shared memory. Whoever joins or leaves holds the `door`; whoever leads holds `lead`; whoever lives holds its own
ledger. All three are locks of the kernel's, which no death leaves behind.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_mlops.sdk.files import create, identity, is_alive, namespace
from otel_mlops.sdk.peers import about_of
from otel_mlops.sdk.records import FORGETS as FOLLOWED
from otel_mlops.sdk.records import MAGIC, ZEROED
from otel_mlops.sdk.retired import followed_by_retired, load_json, put_in_place, write_beside

if TYPE_CHECKING:
    from otel_mlops.settings import Settings

_logger = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (its folder in there is checked for owner, mode and links)
_PATIENCE_S = 0.25
"""How long a record may wait at the door; past it the numbers lie in private memory for a moment."""
_MANY_FORGETS = 256
"""Past so many calls of `forget`, those that everybody has followed are not kept."""
_MOST_FORGETS = 10_000
"""Past so many none is, followed or not."""

RETIRED, FORGETS, MIDNIGHT, RESOURCE, PUSHED = "retired", "forgets", "midnight", "resource", "pushed"
"""The files of a group besides its ledgers and locks."""


class Group:
    """The workers that share one page, as one of them sees them.

    The process of the page, which is no worker, has the open file of its worker's lead as `inherited_lead`.
    """

    def __init__(self, name: str, state_dir: Path | None = None, *, inherited_lead: int | None = None) -> None:
        self._name = name
        self._state_dir = state_dir
        self._is_page_process = inherited_lead is not None
        self.number: int | None = None
        """This worker's number: the smallest that no other living one had when it joined."""
        self._lead_file = -1 if inherited_lead is None else inherited_lead
        self._lead_identity = identity(self._lead_file)
        self._inside = 0
        """The thread that holds the door."""
        self._has_lost_forgets = False

    @property
    def folder(self) -> Path:
        """Where everything of the group lies."""
        return _root(self._state_dir) / f"otel_mlops-{os.getuid()}" / self._name

    @property
    def label(self) -> str | None:
        """The value of the label `worker` where each worker is shown; None before it has joined."""
        if self._is_page_process:
            return "page"
        return None if self.number is None else str(self.number)

    def ledgers(self) -> list[Path]:
        """The ledgers there are, of the living and of those that were not folded yet."""
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == ".ledger")
        except (FileNotFoundError, NotADirectoryError):
            return []

    # --- Joining and leaving ---------------------------------------------------------------------------------

    def join(self, length: int) -> tuple[Path, int]:
        """Make this worker's ledger; the first one in clears away what a group before has left.

        Errors:  OSError if the folder cannot be made, belongs to somebody else, or is a link; TimeoutError if
                 the door stays shut.
        """
        with self._door():
            living = [path for path in self.ledgers() if is_alive(path)]
            self._clear(all_of_it=not living)
            taken = {path.name.partition("-")[0] for path in living}
            number = next(each for each in range(len(taken) + 1) if str(each) not in taken)
            kind = "page" if self._is_page_process else str(number)
            self.number = None if self._is_page_process else number
            last = max((number for number, _ in self.forgets()), default=0)
            return create(self.folder, f"{kind}-{uuid.uuid4().hex}", length, forgets=last)

    def leave(self, path: Path, lock_file: int, on_stay: Callable[[], None]) -> None:
        """Give the ledger's lock up; the last one out leaves nothing behind."""
        try:
            with self._door():
                if any(each != path and is_alive(each) for each in self.ledgers()):
                    on_stay()
                else:
                    self._remove()
        except OSError as error:
            # The numbers stay where they are: the next to come in folds them or clears them away.
            _logger.debug("left without closing the door: %s", error)
            on_stay()
        finally:
            os.close(lock_file)

    @contextmanager
    def _door(self) -> Iterator[None]:
        """Hold the door; a signal handler of the thread that holds it comes in as well."""
        import fcntl

        if self._inside == threading.get_ident():
            yield
            return
        until = time.monotonic() + _PATIENCE_S
        while True:
            file = self._open_lock("door")
            try:
                while not _locked(file, fcntl.LOCK_EX):
                    if time.monotonic() > until:
                        msg = f"another worker holds the door of {self.folder} for more than {_PATIENCE_S} s"
                        raise TimeoutError(msg)
                    time.sleep(0.002)  # no lock of files can be waited for with a limit
                if not self._is_current(file, "door"):
                    continue  # the last one out has removed it meanwhile
                self._inside = threading.get_ident()
                try:
                    yield
                finally:
                    self._inside = 0
                    # By word, not by closing alone: a child forked just now has the file open as well.
                    fcntl.flock(file, fcntl.LOCK_UN)
                return
            finally:
                os.close(file)

    def _open_lock(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            folder = self._make_folder()
            with suppress(FileNotFoundError):  # the last one out has removed the folder meanwhile
                return os.open(folder / name, flags, 0o600)

    def _is_current(self, file: int, name: str) -> bool:
        """Whether an open lock is still the one that others find under its name."""
        try:
            found = (self.folder / name).lstat()
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == identity(file)

    def _clear(self, *, all_of_it: bool) -> None:
        """Remove what nobody needs; the door is held, so whatever is not finished never will be."""
        for path in self.folder.iterdir():
            half_made = path.suffix == ".new" and "-" in path.stem  # a ledger: the leader writes the others
            if half_made or (all_of_it and path.name not in ("door", "lead")):
                path.unlink(missing_ok=True)

    def _remove(self) -> None:
        # The door last: until then nobody comes in, whose files would have the same names.
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == "door"):
            path.unlink(missing_ok=True)
        # A worker may be at the door by now, and have made the folder's content anew.
        with suppress(OSError):
            self.folder.rmdir()

    def _make_folder(self) -> Path:
        folder = self.folder
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        for each in (folder.parent, folder):
            while True:
                with suppress(FileExistsError):  # then it is checked
                    each.mkdir(mode=0o700)
                with suppress(FileNotFoundError):  # removed again before it was looked at
                    _check_folder(each)
                    break
        return folder

    # --- Leading ---------------------------------------------------------------------------------------------

    def try_to_lead(self) -> bool:
        """Take the lead if nobody has it, and say whether this process has it now.

        Errors:  OSError if the folder cannot be used.
        """
        import fcntl

        if self._lead_file >= 0 and not (self._has_lead_file() and self._is_current(self._lead_file, "lead")):
            self.give_up_lead()
        if self._lead_file < 0:
            self._lead_file = self._open_lock("lead")
            self._lead_identity = identity(self._lead_file)
        return _locked(self._lead_file, fcntl.LOCK_EX) and self._is_current(self._lead_file, "lead")

    @property
    def lead_file(self) -> int:
        """The open file whose lock is the lead: who inherits it keeps the lead."""
        return self._lead_file

    def give_up_lead(self) -> None:
        """Let another lead."""
        is_ours, file = self._has_lead_file(), self._lead_file
        self._lead_file = -1
        if is_ours:
            os.close(file)

    def _has_lead_file(self) -> bool:
        """Whether its number is still that file's: a program may close all that it knows nothing of."""
        return self._lead_file >= 0 and identity(self._lead_file) == self._lead_identity

    def sweep_neighbours(self) -> None:
        """Remove the folders of groups that died as a whole, and that nobody has joined since."""
        for folder in self.folder.parent.iterdir():
            if folder != self.folder and (folder / "door").exists():
                other = Group(folder.name, self._state_dir)
                try:
                    with other._door():
                        if not any(map(is_alive, other.ledgers())):
                            other._remove()
                except OSError as error:
                    _logger.debug("%s is left as it is: %s", folder, error)

    def after_fork(self) -> None:
        """In a forked child: nothing of the parent's, which goes on with its own."""
        self.give_up_lead()
        self._inside = 0
        self.number = None

    # --- What the group knows --------------------------------------------------------------------------------

    def load(self, name: str, otherwise: Any = None) -> Any:
        """What was kept under a name."""
        return load_json(self.folder / name, otherwise)

    def keep(self, name: str, what: Any) -> None:
        """Keep something for whoever leads next; what is there while nobody has joined is not kept.

        Errors:  OSError if there is no room.
        """
        path = self.folder / name
        write_beside(path, json.dumps(what).encode())
        put_in_place(path)

    def forgets(self) -> list[tuple[int, Mapping[str, str]]]:
        """The last calls of `forget`, by all workers, with their numbers."""
        return [(number, labels) for number, labels in self.load(FORGETS, [])]

    def tell_to_forget(self, labels: Mapping[str, str], on_told: Callable[[], None] = lambda: None) -> int:
        """Have every worker forget the series that carry these labels; returns the number of the call.

        `on_told` is called before anybody else can tell something, or join.

        Errors:  OSError if it cannot be written.
        """
        with self._door():
            known = self.forgets()
            number = max((number for number, _ in known), default=0) + 1
            kept = [each for each in known if each[1] != labels]
            self.keep(FORGETS, self._needed([*kept, (number, labels)]))
            on_told()
            return number

    def _needed(self, known: list[tuple[int, Mapping[str, str]]]) -> list[tuple[int, Mapping[str, str]]]:
        """The last calls of `forget`, and of those before them what somebody is yet to follow."""
        if len(known) <= _MANY_FORGETS:
            return known
        followed, carried_out = self._followed()
        kept = [each for each in known[:-_MANY_FORGETS] if each[0] > followed] + known[-_MANY_FORGETS:]
        lost, kept = kept[:-_MOST_FORGETS], kept[-_MOST_FORGETS:]
        if lost and lost[-1][0] > carried_out and not self._has_lost_forgets:
            self._has_lost_forgets = True
            _logger.warning(
                "more than %d calls of forget() wait for workers that do not follow: the oldest are dropped, and what "
                "they name may be back on the page",
                _MOST_FORGETS,
            )
        return kept

    def _followed(self) -> tuple[float, float]:
        """The last `forget` that everybody has followed, and the last that was, or was carried out for them."""
        followed = carried_out = math.inf
        try:
            for path in self.ledgers():
                with suppress(FileNotFoundError):  # folded just now: the retired, who are asked after it, have it
                    about = about_of(path)
                    followed = min(followed, about[FOLLOWED])
                    carried_out = min(carried_out, max(about[FOLLOWED], about[ZEROED]))
            retired = followed_by_retired(self.folder / RETIRED)
        except OSError as error:
            _logger.debug("all calls of forget are kept: %s", error)
            return 0.0, 0.0
        return min(followed, retired), min(carried_out, retired)


def group_of(settings: Settings, *, inherited_lead: int | None = None) -> Group | None:
    """The group that the workers of these settings share; None where this system has no way to have one.

    With `inherited_lead`, the open file of a worker's lead, it is that of the page's process.
    """
    if os.name != "posix":
        return None
    identity: list[Any] = [MAGIC.decode()]
    if settings.group is not None:
        identity += ["group", settings.group]
    else:
        # The network's: two containers may share memory and have a port 8001 each.
        identity += [namespace("net"), settings.service_name, settings.host, settings.port]
        # Whoever leads does it for all: a script without a page must not lead the workers that have one.
        identity += [settings.start_server, *settings.metrics_exporter]
    digest = _digest(json.dumps(identity))
    shown = re.sub(r"[^A-Za-z0-9]+", "-", settings.group or settings.service_name)[:32]
    return Group(f"{shown}-{digest[:16]}", settings.state_dir, inherited_lead=inherited_lead)


def lasting_folder(settings: Settings, group: Group) -> Path | None:
    """The folder for what is to be found again after the whole service was restarted, made if need be.

    There is one where the service has named a state folder: in shared memory it would be left behind for ever. Services
    of the same name share it, whatever their ports.

    Errors:  OSError if it cannot be made, or is somebody else's.
    """
    if settings.state_dir is None:
        return None
    name = settings.group or settings.service_name
    shown = re.sub(r"[^A-Za-z0-9]+", "-", name)[:32]
    folder = group.folder.with_name(f"lasting-{shown}-{_digest(name)[:16]}")
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    for each in (folder.parent, folder):
        with suppress(FileExistsError):  # then it is checked
            each.mkdir(mode=0o700)
        _check_folder(each)
    return folder


def _root(state_dir: Path | None) -> Path:
    if state_dir is not None:
        return state_dir
    if _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK | os.X_OK):
        return _SHARED_MEMORY
    import tempfile

    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # nothing can be written anywhere, which whoever tries to is told
        return _SHARED_MEMORY


def _check_folder(folder: Path) -> None:
    status, user = folder.lstat(), os.getuid()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user or status.st_mode & 0o077:
        msg = f"{folder} must be a directory of user {user} that nobody else can open"
        raise PermissionError(msg)


def _locked(file: int, how: int) -> bool:
    """Try to take a lock, and say whether it is held now."""
    import fcntl

    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _digest(text: str) -> str:
    from hashlib import sha256  # loads OpenSSL, which importing the package need not

    return sha256(text.encode()).hexdigest()
