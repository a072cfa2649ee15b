"""Where the page keeps uploads and drawn pictures: a temporary folder of its own, bounded, removed when the page ends.

A process has one root, ``sensorium-page-...`` with mode 0700 and a locked file ``lock`` in it, and in it a folder for
each page. The lock ends with the process, however it ended, so that the next start removes what a killed one left.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows, where an open file can't be removed either
    fcntl = None

PREFIX = "sensorium-page-"
KEPT = 3600  # seconds that an upload and its results are kept
MOST_FILES = 5000
_UNBORN = 60  # seconds within which a new root has its lock
_root: tuple[Path, Any] | None = None


def root() -> Path:
    """This process's root, made when first asked for."""
    global _root
    if _root is None or not _root[0].is_dir():
        base = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
        base.mkdir(parents=True, exist_ok=True)
        remove_leftovers(base)
        made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base)).resolve()
        file = (made / "lock.new").open("w", encoding="ascii")
        file.write(str(os.getpid()))
        file.flush()
        _lock(file)
        (made / "lock.new").rename(made / "lock")  # never seen without its lock held
        _root = made, file
        atexit.register(remove, made)
    return _root[0]


def remove_leftovers(base: Path) -> None:
    """Remove the roots in ``base`` whose processes are gone; those of other users and of living ones stay."""
    for found in base.glob(f"{PREFIX}*"):
        with suppress(OSError):
            about = found.lstat()
            if not stat.S_ISDIR(about.st_mode) or (os.name == "posix" and about.st_uid != os.getuid()):
                continue
            try:
                with (found / "lock").open("r+", encoding="ascii") as file:
                    dead = _lock(file)
            except FileNotFoundError:
                dead = time.time() - about.st_mtime > _UNBORN
            if dead:
                shutil.rmtree(found, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a folder with all that is in it."""
    shutil.rmtree(path, ignore_errors=True)


def _lock(file: Any) -> bool:
    """Lock a file for this process; False if another holds it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Folder:
    """The files of one page: at most ``most`` bytes, and ``each`` bytes of uploads of one client."""

    def __init__(self, most: int, each: int) -> None:
        self.path = Path(tempfile.mkdtemp(dir=root()))
        self.most, self.each = most, each
        self._clients: dict[Path, str] = {}
        self._known: list[tuple[float, int, Path]] = []  # (time, size, path), the oldest first
        self._busy, self._next = threading.Lock(), 0.0

    def holds(self, name: object) -> Path | None:
        """The file of that absolute path if it is one of this folder, and no link; nothing outside is looked at."""
        if not isinstance(name, str) or not 0 < len(name) < 4096 or "\0" in name:
            return None
        path = Path(name)
        if ".." in path.parts or not path.is_relative_to(self.path):
            return None
        try:
            about = path.lstat()
            real = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return None
        return path if real == path and stat.S_ISREG(about.st_mode) and about.st_nlink == 1 else None

    def owned(self, names: list[str], client: str) -> None:
        """Note whose uploads these are."""
        with self._busy, suppress(OSError):
            for path in map(Path, names):
                if self.holds(str(path)):
                    self._clients[path] = client
                    about = path.lstat()
                    self._known.append((about.st_mtime, about.st_size, path))

    def sweep(self, room: int = 0, client: str | None = None) -> None:
        """Remove what is older than an hour, then the oldest, until ``room`` bytes more may be written (by ``client``)."""
        with self._busy:
            begun = time.monotonic()
            if begun >= self._next:
                self._known = sorted(self._files())
                there = {path for _, _, path in self._known}
                self._clients = {path: owner for path, owner in self._clients.items() if path in there}
                took = time.monotonic() - begun
                self._next = begun + took + max(1.0, 20 * took)  # of thousands of files it takes a while
            elif client is None:
                return
            files, now = self._known, time.time()
            old = bisect_left(files, now - KEPT, key=lambda one: one[0])
            self._remove(range(max(old, len(files) - MOST_FILES)))
            for mine, bound in ((True, self.each), (False, self.most)):
                if mine and client is None:
                    continue
                counted = [k for k, f in enumerate(files) if not mine or self._clients.get(f[2]) == client]
                over = sum(files[k][1] for k in counted) + room - bound
                ends = [0, *accumulate(files[k][1] for k in counted)]
                self._remove(counted[: bisect_left(ends, over)])

    def drop_partial(self) -> None:
        """Remove what uploads that broke off left; only when none is under way."""
        with suppress(OSError):
            for one in self.path.iterdir():
                if one.is_file():
                    self._drop(one)

    def free(self) -> int:
        """Bytes left on the disk."""
        try:
            return shutil.disk_usage(self.path).free
        except OSError:
            return 0

    def close(self) -> None:
        """Remove it, and the root with the last one."""
        remove(self.path)
        above = self.path.parent
        with suppress(OSError):
            if not any(one.is_dir() for one in above.iterdir()):
                remove(above)

    def _files(self) -> list[tuple[float, int, Path]]:
        found: list[tuple[float, int, Path]] = []
        for place, _, names in os.walk(self.path):
            with suppress(OSError):
                if Path(place) != self.path and not names and time.time() - os.lstat(place).st_mtime > _UNBORN:
                    Path(place).rmdir()
            for name in names:
                with suppress(OSError):
                    path = Path(place, name)
                    about = path.lstat()
                    found.append((about.st_mtime, about.st_size, path))
        return found

    def _remove(self, places: Sequence[int]) -> None:
        """Remove the files at these places of ``_known``."""
        for place in reversed(places):
            self._drop(self._known.pop(place)[2])

    def _drop(self, path: Path) -> None:
        with suppress(OSError):
            path.unlink()
