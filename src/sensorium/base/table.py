"""Tables of a run that grow by rows: CSV files whose first column is ``step``.

A row is passed to the operating system when it is appended, so that a killed process loses none. A table that a power
loss damaged never stops a run: what can be read is kept, and the file itself is set aside.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorium.base.files import disk_errors, write_text

MOST_BYTES = 4 * 2**30  # a table of a longer run than any


@dataclass(frozen=True)
class Found:
    """A table as it was read: ``rows`` of numbers by column; ``damage`` says what could not be read, "" if nothing."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    damage: str = ""


def read_table(path: Path) -> Found:
    """The sound rows of a table in the order of their steps, each step once. A last line without its end is no row."""
    if not path.exists() and not path.is_symlink():
        return Found((), ())
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return Found((), (), "is not a table")
        raw = path.read_bytes()
    except OSError as error:
        return Found((), (), f"can't be read ({error.strerror})")
    whole = raw[: raw.rfind(b"\n") + 1]
    text = whole.decode("utf-8", "replace")
    reader = csv.reader(line for line in io.StringIO(text, newline="") if line.strip("\r\n"))
    rows: list[dict[str, str]] = []
    lost, columns, steps = 0, (), -1
    try:
        columns = tuple(next(reader, ()))
        if not columns:
            return Found((), (), "has no columns" if raw.strip() else "")
        if columns[0] != "step" or len(set(columns)) < len(columns) or not all(map(_name, columns)):
            return Found((), (), "does not begin with the names of its columns")
        for cells in reader:
            row = dict(zip(columns, cells, strict=False))
            if len(cells) != len(columns) or not _sound(row) or int(row["step"]) <= steps:
                lost += 1
            else:
                rows.append(row)
                steps = int(row["step"])
    except csv.Error as error:
        return Found(columns, tuple(rows), f"can't be read after {len(rows):,} rows ({error})")
    return Found(columns, tuple(rows), f"has {lost:,} damaged rows beside {len(rows):,} sound ones" if lost else "")


def _name(column: str) -> bool:
    return bool(column) and column.isprintable() and "\ufffd" not in column


def _sound(row: dict[str, str]) -> bool:
    step = row["step"]
    if not (step.isascii() and step.isdigit() and len(step) < 16):
        return False
    for value in row.values():
        try:
            float(value or 0)
        except ValueError:
            return False
    return True


def set_aside(path: Path) -> Path:
    """Rename a damaged file to NAME.damaged.EXT, or to the first such name that is free; return it."""
    number = 1
    while (place := path.with_name(f"{path.stem}.damaged{f'-{number}' if number > 1 else ''}{path.suffix}")).exists():
        number += 1
    with disk_errors(place):
        path.rename(place)
    return place


class Table:
    """An append-only CSV file; its first column is ``step``. New columns are added at the end. ``damage``: a line that
    says what was wrong with the former file, "" if nothing."""

    def __init__(self, path: Path, *, before: int) -> None:
        """Open ``path`` and drop rows of steps ``>= before``, and an incomplete last row."""
        self.path, self.damage = path, ""
        found = read_table(path)
        if found.damage:
            self.damage = f"{path} {found.damage}; it was set aside as {set_aside(path).name}."
        kept = [row for row in found.rows if int(row["step"]) < before]
        self.columns = list(found.columns) if kept else []
        self._rewrite(kept)

    def extend(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows and pass them to the operating system: a killed process loses none of them."""
        new = list(dict.fromkeys(name for row in rows for name in row if name not in self.columns))
        if new:
            self.close()
            old = read_table(self.path).rows if self.columns else ()
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
        with suppress(OSError):  # of a full disk: `extend` has said so
            self._file.close()

    def column(self, name: str) -> list[float]:
        """The numbers of a column; NaN and infinities too."""
        return [float(row[name]) for row in read_table(self.path).rows if row.get(name)]

    def _rewrite(self, rows: Sequence[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        if self.columns:
            writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
        with disk_errors(self.path):
            self._file = self.path.open("a", newline="", encoding="utf-8")


def finite(row: dict[str, str]) -> dict[str, float]:
    """A row's finite numbers."""
    return {name: number for name, text in row.items() if text and math.isfinite(number := float(text))}
