"""The one way to write a file: a crash, a kill or a full disk leaves the former file intact.

A file is written beside its place under a name of its own, flushed to disk and then renamed over the former one; a folder
likewise. Leftovers of processes that were killed are removed by the next that writes into that folder. Errors of the
operating system (no space, a size limit, no permission) become one line that names the path.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from sensorium.errors import SensoriumError

_PARTIAL = re.compile(r"\..*\.(?P<pid>\d+)-(?P<host>[0-9a-f]{8})[0-9a-f]{8}\.partial", re.DOTALL)
_NAME_BYTES = 200  # a file's name has at most 255, and the partial one's is longer
_FOREIGN = 24 * 3600.0  # seconds after which a partial file of another machine is a leftover
_MANY = 256  # entries of a folder from which on it is swept once only
NO_LINK: int = vars(os).get("O_NOFOLLOW", 0)  # Windows has no such flag
_FULL = (errno.ENOSPC, errno.EDQUOT)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.ENOENT)

_being_written: set[str] = set()
_swept: set[str] = set()


@contextmanager
def disk_errors(path: Path, kept: str = "") -> Iterator[None]:
    """Turn a failure to write ``path`` into a ``SensoriumError``; ``kept`` says what survives."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _by_the_disk(error):
            raise
        cause = error if isinstance(error, OSError) else error.__context__
        number = cause.errno if isinstance(cause, OSError) else None
        reason = os.strerror(number) if number else " ".join(str(error).split())[:200]
        if number in _IN_THE_WAY and (why := blocked(path)):
            raise SensoriumError(f"could not write {path}: {why}. {kept}Choose another --out.") from error
        full = number in (*_FULL, None)
        free = f"; {_free(path) / 2**20:,.0f} MB are free there" if full else ""
        way = "Choose another --out, or make it writable."
        if full:
            way = "Free some space and run the same command again."
        elif number == errno.EFBIG:
            way = "Raise the limit on the size of a file (ulimit -f), or choose another --out."
        raise SensoriumError(f"could not write {path}: {reason}{free}. {kept}{way}") from error


def blocked(path: Path) -> str | None:
    """Why there can be no file or folder at ``path``, of those that its folder would be in: "a.txt is a file"."""
    for one in path.parents:
        with suppress(OSError):
            found = os.lstat(one).st_mode
            if one.is_dir():
                return None
            what = "a file" if one.is_file() else "a link to nothing" if stat.S_ISLNK(found) else "not a folder"
            return f"{one} is {what}"
    return None


def _by_the_disk(error: BaseException) -> bool:
    """torch's zip writer reports a failed write as a RuntimeError, sometimes in place of the original OSError."""
    if not isinstance(error, RuntimeError):
        return True
    signs = ("PytorchStreamWriter", "unexpected pos", "iostream error", "inline_container")
    return isinstance(error.__context__, OSError) or any(sign in str(error) for sign in signs)


def _free(path: Path) -> int:
    """Bytes that are free where ``path`` is or would be."""
    for folder in (path, *path.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return 0


def write_file(path: Path, write: Callable[[Path], object], *, former: Path | None = None, kept: str = "") -> Path:
    """Call ``write(partial path)``, then rename the result to ``path``; an existing file is renamed to ``former``.

    ``path`` itself is never opened: a link is replaced, not followed. What isn't a file (a folder, a device) is an error.
    """
    with disk_errors(path, kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        mode = _mode(path)
        partial = _partial_of(path)
        try:
            handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | NO_LINK, 0o666)
            made = os.fstat(handle).st_mode
            os.close(handle)
            write(partial)
            partial.chmod(stat.S_IMODE(mode or made))  # some writers create files that only the owner can read
            _sync(partial)
            if former is not None and path.exists():
                path.replace(former)
            partial.replace(path)
            _sync_folder(path.parent)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            _being_written.discard(str(partial))
    return path


def write_bytes(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """:func:`write_file` for a writer that takes an open file."""

    def through(partial: Path) -> None:
        with partial.open("wb") as file:
            write(file)

    return write_file(path, through)


def write_text(path: Path, content: str) -> Path:
    """``content`` at ``path`` as UTF-8; lone surrogates are escaped."""
    return write_bytes(path, lambda file: file.write(content.encode("utf-8", "backslashreplace")))


def write_json(path: Path, value: Any) -> Path:
    """``value`` as JSON at ``path``."""
    return write_text(path, json.dumps(value, indent=1) + "\n")


def write_folder(path: Path, write: Callable[[Path], object]) -> Path:
    """Call ``write(empty partial folder)``, then rename it to ``path``.

    If ``path`` is a folder with content, the new files replace those of the same names one by one, and others stay.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        if path.exists() and not path.is_dir():
            raise SensoriumError(f"{path}: this is a file; give a folder.")
        partial = _partial_of(path)
        try:
            partial.mkdir()
            try:
                write(partial)
            except SensoriumError as error:  # of a file in it
                raise SensoriumError(str(error).replace(str(partial), str(path))) from error
            files = sorted(one for one in partial.rglob("*") if one.is_file())
            for one in files:
                _sync(one)
            if path.is_dir() and any(path.iterdir()):
                for one in files:
                    place = path / one.relative_to(partial)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    one.replace(place)
            else:
                with suppress(FileNotFoundError):
                    path.rmdir()
                partial.rename(path)
            _sync_folder(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _being_written.discard(str(partial))
    return path


def unlinked(path: Path) -> Path:
    """``path``, to be written by code that follows links: it is removed if it is one, and so are those in it."""
    with disk_errors(path):
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            for entry in path.iterdir():
                if entry.is_symlink():
                    entry.unlink()
    return path


def own_folder(run: Path, *names: str) -> Path:
    """The folder ``run/names[0]/...``, for output alone: made where it is missing, links on the way and in it
    removed."""
    here = run
    for name in names:
        here = here / name
        with disk_errors(here):
            if here.is_symlink():
                here.unlink()
            here.mkdir(exist_ok=True)
    return unlinked(here) if names else here


def can_write(folder: Path) -> bool:
    """Whether a file could be created in ``folder``, or in the nearest folder above it that exists."""
    for one in (folder, *folder.absolute().parents):
        if one.is_dir():
            try:
                tempfile.TemporaryFile(dir=one).close()
            except OSError:
                return False
            return True
        if one.exists():
            return False
    return False


def check_writable(path: Path, *, option: str = "--out") -> Path:
    """``path``, if a file could be written there. Raises SensoriumError that names the way out, before any work."""
    if (path.exists() or path.is_symlink()) and not path.is_file() and not path.is_symlink():
        raise SensoriumError(f"{path}: this isn't a file; give another {option}.")
    if why := blocked(path):
        raise SensoriumError(f"{path}: {why}; give another {option}.")
    if not can_write(path.parent):
        raise SensoriumError(f"{path}: {path.parent} can't be written; give another {option}.")
    return path


def scratch() -> Path:
    """A private folder of this user for what can't be kept where it belongs."""
    user = vars(os).get("getuid", int)()
    path = Path(tempfile.gettempdir()) / f"sensorium-cache-{user}"
    with disk_errors(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_symlink() or path.stat().st_uid != user:
            raise SensoriumError(f"{path}: belongs to another user; set TMPDIR to a folder of your own.")
    return path


def cache_for(folder: Path, *names: str) -> Path:
    """The folder of cached files: ``folder`` if it has them or can be written, else one of this user."""
    kept = all((folder / name).is_file() for name in names)
    return folder if kept or can_write(folder) else scratch()


def _mode(path: Path) -> int | None:
    """Permissions of the file that is replaced, None if there is none. An error if it isn't a file."""
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found):
        return None
    if not stat.S_ISREG(found):
        what = "a folder" if stat.S_ISDIR(found) else "not a file"
        raise SensoriumError(f"could not write {path}: this is {what}. Give another path.")
    return found


def _partial_of(path: Path) -> Path:
    name = os.fsdecode(os.fsencode(path.name)[:_NAME_BYTES])
    partial = path.with_name(f".{name}.{os.getpid()}-{_host()}{secrets.token_hex(4)}.partial")
    _being_written.add(str(partial))
    return partial


@cache
def _host() -> str:
    """Of the machine and its process ids: containers may share a host's name, and each counts its own."""
    with suppress(OSError):
        name = f"{socket.gethostname()} {Path('/proc/self/ns/pid').stat().st_ino}"
        return hashlib.sha256(name.encode()).hexdigest()[:8]
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _sweep(folder: Path) -> None:
    """Remove what killed processes left in ``folder``."""
    if str(folder) in _swept:
        return
    count = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for count, entry in enumerate(entries, 1):  # noqa: B007
            found = _PARTIAL.fullmatch(entry.name)
            if found and str(folder / entry.name) not in _being_written and _left(entry, found):
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        Path(entry.path).unlink()
    if count > _MANY:
        _swept.add(str(folder))


def _left(entry: os.DirEntry[str], found: re.Match[str]) -> bool:
    if found["host"] == _host():
        return int(found["pid"]) == os.getpid() or not alive(int(found["pid"]))
    with suppress(OSError):
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _FOREIGN
    return False


def alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's
    with suppress(OSError, IndexError):  # Linux: one that ended, and whose parent has not asked how
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    return True


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
