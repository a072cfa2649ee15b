"""One process works in a folder: a lock that the operating system releases when its process ends, however it ends.

The lock is ``flock`` on ``FOLDER/.lock``, which holds the process's number and machine for the message. Where the file
system has no such locks (some network ones), the numbers in the file decide.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sensorium.base.files import NO_LINK, alive, disk_errors
from sensorium.errors import SensoriumError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)

_held: dict[str, int] = {}  # folder -> how often this process holds it


@contextmanager
def locked(
    folder: Path, *, verb: str = "trains", way: str = "give another --out", optional: bool = False, wait: bool = False
) -> Iterator[None]:
    """Inside, no other process has this lock; the same process may take it again.

    The folder is created if need be, and removed again if it stays empty. Raises SensoriumError, which says who has the
    lock; ``verb``: what that one does there, ``way``: the way out. ``optional``: a folder that can't be written is not
    locked. ``wait``: for the other to end.
    """
    key = str(folder.resolve())
    if key in _held:
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    created = not folder.exists()
    handle = _take(folder, verb, way, optional, wait)
    _held[key] = 1
    try:
        yield
    finally:
        del _held[key]
        if handle is not None:
            with suppress(OSError):  # while it is still locked: who waits for it looks again
                (folder / NAME).unlink()
            os.close(handle)
        if created:
            with suppress(OSError):
                folder.rmdir()


def holder(folder: Path) -> str | None:
    """Who has the lock of a folder, "PROCESS on MACHINE"; None if nobody has. Nothing is written."""
    try:
        handle = os.open(folder / NAME, os.O_RDONLY | NO_LINK)
    except OSError:
        return None
    try:
        said = _told(handle)
        pid, _, host = said.partition(" on ")
        if host != socket.gethostname():  # its processes can't be seen from here
            return said if pid.isdigit() else None
        if not alive(int(pid)):
            return None
        if fcntl is not None and str(folder.resolve()) not in _held:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return said
            return None  # left by a process whose number another one has now
        return said
    finally:
        os.close(handle)


def _take(folder: Path, verb: str, way: str, optional: bool, wait: bool) -> int | None:
    path = folder / NAME
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
        except OSError as error:
            if optional and error.errno in _CLOSED:
                return None
            with disk_errors(path):
                raise
        try:
            if fcntl is None:
                _by_number(handle, folder, verb, way)
            else:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                said = _told(handle)
                os.close(handle)
                raise SensoriumError(f"another process ({said}) {verb} in {folder}; {way}.") from None
            _by_number(handle, folder, verb, way)
        if _same(handle, path):
            break
        os.close(handle)  # its holder removed it between the two
    with suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle


def _by_number(handle: int, folder: Path, verb: str, way: str) -> None:
    said = _told(handle)
    pid, _, host = said.partition(" on ")
    here = host == socket.gethostname()
    if pid.isdigit() and int(pid) != os.getpid() and not (here and not alive(int(pid))):
        os.close(handle)
        gone = f"; if it has ended, delete {folder / NAME}"
        raise SensoriumError(f"another process ({said}) {verb} in {folder}; {way}{gone}.")


def _told(handle: int) -> str:
    """Process and machine in the file."""
    words = os.pread(handle, 300, 0).decode("utf-8", "replace").split()
    return f"{words[0]} on {words[2][:100]}" if len(words) == 3 and words[0].isdigit() else "unknown"


def _same(handle: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False
