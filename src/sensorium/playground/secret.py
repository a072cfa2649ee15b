"""Where the page's password comes from: a prompt, a file or the environment, for the command line is seen by everyone."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sensorium.base.reading import printable, read_bytes
from sensorium.errors import SensoriumError

VARIABLE = "SENSORIUM_PASSWORD"
LONGEST = 1024


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
        first = read_bytes(file, most=LONGEST).split(b"\n")[0].rstrip(b"\r").decode("utf-8", "surrogateescape")
        return _checked(first, printable(str(file)))
    return None if given is None else _checked(given, VARIABLE)


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
