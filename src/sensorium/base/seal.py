"""A seal on files that this user made on this machine, for formats that are not safe to read from others.

The seal is an HMAC-SHA256 with a key in the user's own state folder (``$XDG_STATE_HOME/sensorium/key``, by default below
``~/.local/state``), which is made once and readable by its owner alone. It never leaves the machine with a run.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

_LENGTH = 32
_SAFELY = sum(vars(os).get(flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


def seal(content: bytes, purpose: str) -> str | None:
    """The seal of ``content`` for one ``purpose``; None where no key can be kept."""
    key = _key()
    return None if key is None else hmac.new(key, _signed(content, purpose), hashlib.sha256).hexdigest()


def sealed(content: bytes, purpose: str, mark: object) -> bool:
    """Whether ``mark`` is the :func:`seal` of ``content`` by this user on this machine."""
    made = seal(content, purpose)
    return made is not None and isinstance(mark, str) and mark.isascii() and hmac.compare_digest(made, mark)


def _signed(content: bytes, purpose: str) -> bytes:
    return hashlib.sha256(purpose.encode()).digest() + hashlib.sha256(content).digest()


def _key() -> bytes | None:
    """The user's key, made if there is none; None if it can't be kept, or if others could read or replace it."""
    try:
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "sensorium"
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = home / "key"
        return _read(path) or _made(path)
    except (OSError, RuntimeError):  # no home, or none that can be written
        return None


def _made(path: Path) -> bytes | None:
    """Make the key beside its place and link it there, so that of two processes both take the first one's."""
    temporary = path.with_name(f"key.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_LENGTH))
        try:
            os.link(temporary, path)
        except FileExistsError:
            if _read(path) is None and not path.is_symlink():
                temporary.replace(path)  # damaged: what it sealed is made again
    finally:
        temporary.unlink(missing_ok=True)
    return _read(path)


def _read(path: Path) -> bytes | None:
    try:
        handle = os.open(path, os.O_RDONLY | _SAFELY)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(file.fileno())
        mine = "getuid" not in vars(os) or (about.st_uid == os.getuid() and not about.st_mode & 0o077)
        if not stat.S_ISREG(about.st_mode) or not mine:
            return None
        key = file.read(_LENGTH + 1)
        return key if len(key) == _LENGTH else None
