"""What is published says nothing of the machine that it was made on: of a path only the last name stays."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sensorium.base.reading import printable
from sensorium.runs.run import Run

Bare = Callable[[Any], Any]
# What looks like an absolute path, not after a letter or in an address.
_ABSOLUTE = re.compile(r"(?<![\w.:/\\-])(?:~[/\\]|/(?=[\w.~])|[A-Za-z]:[\\/])[^\s\"'<>|*?,;()\[\]{}]*")


def name_of(path: str | Path) -> str:
    """The last name of a path, of whichever system: "photos" of /home/me/photos/ and of C:\\photos."""
    text = str(path).rstrip("/\\")
    if text in ("", ".", ".."):
        text = str(Path(path).resolve())
    return printable(re.split(r"[/\\]", text)[-1]) or "data"


def bare_of(run: Run) -> Bare:
    """JSON values -> the same with bare names for paths: those that the run knows, and what else looks absolute."""
    known = {path: name_of(path) for path in sorted(set(_paths(run)), key=len, reverse=True)}

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bare(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [bare(one) for one in value]
        if not isinstance(value, str):
            return value
        for path, name in known.items():
            value = value.replace(path, name)
        return _ABSOLUTE.sub(lambda found: name_of(found.group()), value)

    return bare


def _paths(run: Run) -> Iterator[str]:
    """Every path that the run's files may have, and those above, each as it may have been written; none of a single name."""
    info = run.info
    told = [info.recipe.rpartition(":")[0], info.data.path, info.data.test, info.data.absolute, info.data.absolute_test]
    told += [info.data.cache, run.folder, *(one.folder for one in info.inputs.values())]
    told += [one for one in (*info.given.values(), *info.values.values()) if isinstance(one, str)]
    told += [one for one in vars(run.situation).values() if isinstance(one, str)]
    for one in (str(path) for path in told if path):
        whole = Path(one).is_absolute() or Path(one).exists()
        if not any(separator in one for separator in "/\\"):
            continue
        yield one
        if whole:
            yield from (str(Path(one).absolute()), str(Path(one).resolve()))
