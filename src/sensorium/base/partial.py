"""Large files in the making: parts that a killed process leaves are removed by the next.

A file is written to a part beside it, which is locked as long as its process lives, and renamed when it is complete;
a part that nobody locks is of a process that is gone. The former file stays until then, whatever happens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_PART = ".part-"
_WINDOWS = os.name == "nt"


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when the block ends; if the block raises, it is removed. Raises
    OSError."""
    sweep(path.parent)
    part, file = _created(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not _WINDOWS:  # while it is locked, so that no other process takes it for a left part
                part.replace(path)
        if _WINDOWS:
            part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the parts in ``folder`` that no process writes any more."""
    with suppress(OSError):
        for part in folder.glob(f"*{_PART}*"):
            with suppress(OSError):
                if _WINDOWS:  # an open file can't be removed there
                    part.unlink()
                    continue
                with part.open("rb+") as file:
                    if _lock(file):
                        part.unlink()


def _created(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        part = path.with_name(f"{path.name}{_PART}{os.getpid()}-{os.urandom(4).hex()}")
        file = part.open("xb")
        if _lock(file) is not None and os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()  # another process swept it before it was locked


def _lock(file: BinaryIO) -> bool | None:
    """Lock an open file. None if another process has locked it, False if there are no locks here."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except (ImportError, OSError):
        return False
    return True
