"""Writing into a run's folder, which may have come with links to elsewhere: a link is replaced, never followed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sensorium.base.files import disk_errors, replace


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


def own_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file by ``write(temporary path)``, replacing what is there, and return its path; its folder is made where
    it is missing."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, write)
    return path
