"""The live runs of Sensorium of this user on this machine, so that two that start together share its cores.

Each run holds a lock on a small file that holds its number of threads, empty while it is starting. The operating system
releases the lock when the process ends, however it ends: an unlocked file is stale and is removed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # no such locks on Windows: every run assumes that it is alone
    fcntl = None

_mine: IO[str] | None = None


def folder() -> Path | None:
    """The folder of the files, private to this user; None if it can't be created."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    user = os.getuid() if hasattr(os, "getuid") else 0
    path = Path(base) / "sensorium" if base else Path(tempfile.gettempdir()) / f"sensorium-{user}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path if not path.is_symlink() and path.stat().st_uid == user else None
    except OSError:
        return None


def register() -> None:
    """Register this process as starting a run, as early as possible. Calling it again does nothing."""
    global _mine
    where = folder()
    if _mine is not None or where is None or fcntl is None:
        return
    new = where / f".{os.getpid()}"
    try:
        file = new.open("w+")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(where / f"{os.getpid()}.run")  # only now: other processes would remove an unlocked file as stale
    except OSError:
        return
    _mine = file


def settle(threads: int) -> None:
    """Record how many threads the registered run of this process uses."""
    if _mine is not None:
        with contextlib.suppress(OSError):
            _mine.seek(0)
            _mine.truncate()
            _mine.write(str(threads))
            _mine.flush()


def release() -> None:
    """Unregister the run of this process."""
    global _mine
    if _mine is not None:
        where = folder()
        with contextlib.suppress(OSError):
            if where is not None:
                (where / f"{os.getpid()}.run").unlink(missing_ok=True)
            _mine.close()
        _mine = None


def others() -> list[int | None]:
    """Threads of each other live run of this user, None for one that is starting."""
    where = folder()
    if where is None or fcntl is None:
        return []
    found = []
    for path in where.glob("*.run"):
        if _mine is not None and path.name == f"{os.getpid()}.run":
            continue
        with contextlib.suppress(OSError), path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                said = file.read().strip()
                found.append(int(said) if said.isdigit() else None)
            else:
                path.unlink()
    return found
