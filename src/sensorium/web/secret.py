"""Where the page's password, and the API's key, come from: a prompt, a file or the environment, for the command line is
seen by everyone."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sensorium.base.reading import printable, read_bytes
from sensorium.errors import SensoriumError

VARIABLE = "SENSORIUM_PASSWORD"
KEY_VARIABLE = "SENSORIUM_KEY"
LONGEST = 1024
SHORTEST_KEY = 16  # characters: wrong keys are not made to wait, so that a key must not be guessed


def chosen_password(ask: bool, file: Path | None, runs: Sequence[Path] = ()) -> str | None:
    """The password: asked for, of a file's first line, or of the environment; None if none is set.

    Raises SensoriumError if one was written behind --password: ``runs`` is where such a word ends up.
    """
    given = os.environ.pop(VARIABLE, None)  # programs that the page starts need not have it
    if ask and file is not None:
        raise SensoriumError("--password asks for the password and --password-file reads it: give one of them.")
    if ask:
        if any(not run.exists() for run in runs):
            raise SensoriumError(
                "--password takes no value, for anyone on this machine could read it in the list of processes (ps): "
                f"--password alone asks for it; or use --password-file FILE, or the variable {VARIABLE}."
            )
        return _asked()
    if file is not None:
        return _checked(_first_line(file), printable(str(file)))
    return None if given is None else _checked(given, VARIABLE)


def chosen_key(file: Path | None) -> str | None:
    """The key of the API: of a file's first line, or of the environment; None if none is set. Raises SensoriumError for
    one that is short, or that no header of a request can have."""
    given = os.environ.pop(KEY_VARIABLE, None)  # programs that the server starts need not have it
    if file is None and given is None:
        return None
    where = KEY_VARIABLE if file is None else printable(str(file))
    key = (given or "" if file is None else _first_line(file)).strip()
    if not (key.isascii() and key.isprintable() and " " not in key and SHORTEST_KEY <= len(key) <= LONGEST):
        raise SensoriumError(
            f"{where}: a key needs {SHORTEST_KEY} to {LONGEST} letters, digits or signs of ASCII, without spaces. One is "
            'made by: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return key


def _first_line(file: Path) -> str:
    return read_bytes(file, most=LONGEST).split(b"\n")[0].rstrip(b"\r").decode("utf-8", "surrogateescape")


def _asked() -> str:
    if not sys.stdin.isatty():
        raise SensoriumError(
            f"--password asks at a terminal, and there is none: use --password-file FILE or the variable {VARIABLE}."
        )
    word = _checked(getpass.getpass("Password of the page: "), "the password")
    if getpass.getpass("Again: ") != word:
        raise SensoriumError("the two passwords differ; nothing was started.")
    return word


def _checked(word: str, where: str) -> str:
    if not word.strip():
        raise SensoriumError(f"{where}: is empty; a password needs at least one character.")
    if len(word) > LONGEST:
        raise SensoriumError(f"{where}: longer than the {LONGEST} characters that a password may have.")
    return word
