"""Atomic writes: a crash, a kill or a full disk leaves the previous file intact.

A file is written to a temporary path, flushed to disk and then renamed over the old one. Errors of the operating system
(no space, a size limit, no permission) become one line that names the path.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sensorium.errors import SensoriumError


@contextmanager
def disk_errors(path: Path, kept: str = "") -> Iterator[None]:
    """Turn a failure to write ``path`` into a ``SensoriumError``; ``kept`` says what survives."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _by_the_disk(error):
            raise
        free = ""
        with suppress(OSError):
            free = f"; {shutil.disk_usage(path.parent).free / 2**20:,.0f} MB are free there"
        reason = " ".join(str(error).split())[:200]
        raise SensoriumError(
            f"could not write {path}: {reason}{free}. {kept}Free some space and run the same command again."
        ) from error


def _by_the_disk(error: BaseException) -> bool:
    """torch's zip writer reports a failed write as a RuntimeError, sometimes in place of the original OSError."""
    if not isinstance(error, RuntimeError):
        return True
    signs = ("PytorchStreamWriter", "unexpected pos", "iostream error", "inline_container")
    return isinstance(error.__context__, OSError) or any(sign in str(error) for sign in signs)


def replace(path: Path, write: Callable[[Path], object], *, former: Path | None = None, kept: str = "") -> None:
    """Call ``write(temporary path)``, then move the result to ``path``; an existing file moves to ``former``."""
    temporary = path.with_name(path.name + ".tmp")
    with disk_errors(path, kept):
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # some writers create files that only the owner can read
            write(temporary)
            temporary.chmod(mode)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            if former is not None and path.exists():
                path.replace(former)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """``value`` as JSON at ``path``, atomically."""
    replace(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1) + "\n"))


def write_text(path: Path, content: str) -> Path:
    """Write a file atomically: a reader sees the old file or the new one, never a partial one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise SensoriumError(
            f"{path}: can't be written ({error.strerror}); free space or choose another --out"
        ) from error
    return path


class Table:
    """An append-only CSV file; its first column is ``step``. New columns are added at the end."""

    def __init__(self, path: Path, *, before: int) -> None:
        """Open ``path`` and drop rows of steps ``>= before``, and an incomplete last row."""
        self.path = path
        self.columns: list[str] = []
        rows: list[dict[str, str]] = []
        if path.exists() and before > 0:
            self.columns, found = _read(path)
            rows = [row for row in found if int(row["step"]) < before]
        self._rewrite(rows)

    def extend(self, rows: list[dict[str, Any]]) -> None:
        """Append rows and pass them to the operating system: a killed process loses none of them."""
        new = list(dict.fromkeys(name for row in rows for name in row if name not in self.columns))
        if new:
            self._file.close()
            old = _read(self.path)[1] if self.columns else []
            self.columns += new
            self._rewrite(old)
        with disk_errors(self.path):
            csv.DictWriter(self._file, self.columns, restval="", lineterminator="\n").writerows(rows)
            self._file.flush()

    def sync(self) -> None:
        """Flush the rows to disk."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def column(self, name: str) -> list[float]:
        return [float(row[name]) for row in _read(self.path)[1] if row.get(name)]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        def write(temporary: Path) -> None:
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
                if self.columns:
                    writer.writeheader()
                writer.writerows(rows)

        replace(self.path, write)
        self._file = self.path.open("a", newline="")


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and complete rows of a table; a last line without a newline is not a row."""
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    reader = csv.DictReader(lines)
    columns = list(reader.fieldnames or [])
    return columns, [row for row in reader if None not in row.values() and (row.get("step") or "").isdigit()]


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
