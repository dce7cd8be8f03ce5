"""What the machine has for the numbers of a service: shared memory."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path

from otel_mlops.doctor.installed import Checked
from otel_mlops.settings import Settings

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 (compared, not written to)
_LITTLE_BYTES = 16 * 2**20
_FIRST_USER = 1000


def check_memory(settings: Settings) -> Checked:
    """Whether a worker's ledger fits where it is to lie."""
    if os.name != "posix":
        yield "note", "there is no shared memory on this system: one worker works, and its numbers die with it"
        return
    from otel_mlops.sdk.group import Group
    from otel_mlops.sdk.ledger import Ledger
    from otel_mlops.sdk.records import STREAM

    faults: list[str] = []
    # A group of its own: a trial is no worker of the service's.
    group = Group(f"doctor-{uuid.uuid4().hex}", settings.state_dir)
    folder = group.folder.parent
    with ExitStack() as undo:
        for missing in _missing(folder):
            undo.callback(_remove_empty, missing)
        undo.callback(shutil.rmtree, group.folder, ignore_errors=True)
        ledger = Ledger(group, on_fault=faults.append)
        undo.callback(ledger.close)
        ledger.append(STREAM, "doctor", 1)
        if faults:
            told = "Numbers lie in private memory and do not survive their worker"
            yield "fault", f"a ledger cannot be made in {folder}: {faults[0]}. {told}"
            return
        space = shutil.disk_usage(folder)
        yield "ok", f"{folder} can be written, {_megabytes(space.free)} of {_megabytes(space.total)} are free"
    if space.free < _LITTLE_BYTES:
        yield "note", "that is little: a worker takes 64 kB and more with each series (Docker: --shm-size)"
    shared = folder.is_relative_to(_SHARED_MEMORY)
    if not shared and settings.state_dir is None:
        yield "note", "there is no /dev/shm that can be written; a folder on a disk is slower to start"
    if shared and removes_ipc(os.getuid()):
        yield (
            "note",
            (
                "systemd-logind removes it when this user logs out. Run services as a system user, "
                "or set RemoveIPC=no in /etc/systemd/logind.conf, or OTEL_MLOPS_STATE_DIR"
            ),
        )


def removes_ipc(uid: int, root: Path = Path("/")) -> bool:
    """Whether systemd-logind removes the shared memory of a user who logs out.

    Source:  logind.conf(5), RemoveIPC=: for all but system users, on by default. A user who lingers never is
             logged out.
    """
    if uid < _FIRST_USER or not (root / "run/systemd/system").is_dir():
        return False
    import pwd

    with suppress(KeyError):  # a user without a name cannot linger
        if (root / "var/lib/systemd/linger" / pwd.getpwuid(uid).pw_name).exists():
            return False
    folders = [root / "usr/lib/systemd", root / "run/systemd", root / "etc/systemd"]
    snippets = [path for folder in folders for path in (folder / "logind.conf.d").glob("*.conf")]
    said = "yes"
    # The later one goes before the earlier, and a snippet before the file.
    for path in [*(folder / "logind.conf" for folder in folders), *sorted(snippets, key=lambda path: path.name)]:
        with suppress(OSError, UnicodeDecodeError):  # most are not there; one that cannot be read says nothing
            text = path.read_text(encoding="utf-8")
            said = [said, *re.findall(r"^\s*RemoveIPC\s*=\s*(\w+)", text, re.MULTILINE)][-1]
    return said.lower() in ("yes", "y", "true", "t", "on", "1")


def _missing(folder: Path) -> list[Path]:
    """The folders that are to be made for one, the outermost first."""
    return [each for each in reversed([folder, *folder.parents]) if not each.exists()]


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # somebody's numbers lie in it now, and so it stays
        folder.rmdir()


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"
