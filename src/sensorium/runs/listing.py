"""`sensorium runs`: what the folders of runs say of themselves.

Only JSON and the end of a table are read, so a hundred runs take a moment; nothing is executed, and torch isn't imported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sensorium.base.lock import holder
from sensorium.base.reading import printable, read_object
from sensorium.base.records import Count, decode
from sensorium.base.words import duration
from sensorium.errors import SensoriumError
from sensorium.judge.score import Score
from sensorium.training.budget import Budget

if TYPE_CHECKING:
    from rich.console import Group

USUAL = ("sensorium-runs", "sensorium-compare")
DEEPEST, MOST_ENTRIES = 5, 20_000  # levels of folders, and entries of one, that are looked through
_PASSED_OVER = ("cache", "inputs", "former", "tensorboard")
_HINT = "train it again"

Status = Literal["finished", "stopped", "failed", "running", "damaged"]


@dataclass(frozen=True)
class Row:
    """One run. ``spent``: the fraction of the budget; ``said``: what is wrong with it; ``score``: the deciding one,
    ``shown`` for people; ``data``: their path as it was given, with the ``digest`` of the training set; ``age``: seconds
    since it was last written."""

    run: str
    system: str = ""
    budget: str = ""
    steps: int | None = None
    spent: float | None = None
    status: Status = "stopped"
    said: str = ""
    score: str = ""
    value: float | None = None
    better: str = ""
    shown: str = ""
    data: str = ""
    digest: str = ""
    age: float = 0.0


def list_runs(folders: Sequence[Path] = ()) -> list[Row]:
    """The runs below ``folders``, by default those of this place; by data, the newest first, and there the best first.

    Raises SensoriumError for a folder that isn't one.
    """
    for folder in folders:
        if not folder.is_dir():
            raise SensoriumError(f"{printable(str(folder))}: no such folder.")
    usual = [Path(name) for name in USUAL if Path(name).is_dir()] or [Path()]
    found = dict.fromkeys(one for folder in folders or usual for one in _below(folder, DEEPEST))
    return _ordered([_row(folder) for folder in found])


def table(rows: Sequence[Row]) -> Group | str:
    """The rows for a terminal, with a line for each that says what is wrong."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return "No runs here. Train one: sensorium train SYSTEM --data DIR, or name the folder: sensorium runs FOLDER"
    shown = Table(pad_edge=False)
    for name in ("run", "system", "budget", "steps", "status", "score", "data", "age"):
        shown.add_column(name, overflow="fold", justify="right" if name in ("steps", "age") else "left")
    for i, row in enumerate(rows):
        if i and _data_of(row) != _data_of(rows[i - 1]):
            shown.add_section()
        percent = "" if row.spent is None or row.status == "finished" else f" at {100 * min(1.0, row.spent):.0f} %"
        steps = "" if row.steps is None else f"{row.steps:,}"
        data = " ".join(filter(None, (Path(row.data).name or row.data, row.digest.rpartition(" ")[2])))
        cells = (row.run, row.system, row.budget, steps, f"{row.status}{percent}", row.shown, data, _age(row.age))
        shown.add_row(*(Text(printable(cell)) for cell in cells))
    told = [Text(printable(f"{row.run}: {row.said}")) for row in rows if row.said]
    return Group(shown, *told)


def _below(folder: Path, levels: int) -> Iterator[Path]:
    """The runs at ``folder`` and below it. Links to folders are not followed."""
    if os.path.lexists(folder / "run.json"):
        yield folder
        return
    inner = []
    with suppress(OSError), os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count >= MOST_ENTRIES:
                break
            named = entry.name.startswith(".") or entry.name in _PASSED_OVER
            if not named and entry.is_dir(follow_symlinks=False):
                inner.append(entry.name)
    for name in sorted(inner) if levels else ():
        yield from _below(folder / name, levels - 1)


def _row(folder: Path) -> Row:
    """A run's folder; a damaged one says why."""
    row = Row(str(folder), age=_since(folder))
    try:
        info = read_object(folder / "run.json", most=1 << 24)
        where = str(folder / "run.json")
        row = replace(row, system=decode(str, info.get("recipe"), where, _HINT, field="recipe"))
        data = decode(dict[str, Any], info.get("data"), where, _HINT, field="data")
        row = replace(
            row,
            data=decode(str, data.get("path"), where, _HINT, field="data.path"),
            digest=" ".join(decode(str, data.get("digest", ""), where, _HINT, field="data.digest").split()[:2]),
            budget=decode(str, info.get("budget", ""), where, _HINT, field="budget"),
        )
        return _with_score(_with_status(row, folder), folder)
    except (SensoriumError, OSError) as error:
        return replace(row, status="damaged", said=_said(error, folder))


def _with_status(row: Row, folder: Path) -> Row:
    outcome, error = folder / "outcome.json", folder / "error.json"
    if (who := holder(folder)) is not None:
        return _unfinished(replace(row, status="running", said=f"process {who} works on it"), folder)
    if outcome.is_file():
        told = read_object(outcome)
        row = replace(
            row, status="finished", steps=decode(Count, told.get("steps"), str(outcome), _HINT, field="steps")
        )
    else:
        row = _unfinished(row, folder)
    if error.is_file():
        said = decode(str, read_object(error).get("error"), str(error), _HINT, field="error")
        return replace(row, status="failed", said=said)
    kept = folder / "nonfinite" / "step.json"
    if row.status == "stopped" and kept.is_file() and _time(kept) >= _time(folder / "metrics.csv"):
        told = decode(str, read_object(kept).get("told"), str(kept), _HINT, field="told")
        return replace(row, status="failed", said=f"{told}; `sensorium replay {folder}` shows where it begins")
    return row


def _unfinished(row: Row, folder: Path) -> Row:
    """With the steps and the fraction of the budget by the end of its table."""
    last = _last(folder / "metrics.csv")
    if not last:
        return replace(row, steps=0)
    steps = int(last.get("step", -1)) + 1
    spent = None
    with suppress(SensoriumError):
        budget = Budget.parse(row.budget)
        so_far = {"seconds": last.get("seconds"), "steps": steps, "epochs": None}.get(budget.kind, last.get("seen"))
        spent = None if so_far is None else so_far / budget.amount
    return replace(row, steps=steps, spent=spent)


def _last(path: Path) -> dict[str, float]:
    """The last whole row of a table; {} if there is none."""
    with suppress(OSError, ValueError):
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            names = file.readline(1 << 16).decode().strip().split(",")
            start = file.tell()
            file.seek(0, os.SEEK_END)
            file.seek(max(start, file.tell() - (1 << 16)))
            lines = file.read(1 << 16).decode().rpartition("\n")[0].splitlines()
        if lines:
            cells = dict(zip(names, lines[-1].split(","), strict=False))
            numbers = {name: float(cells[name]) for name in ("step", "seconds", "seen") if name in cells}
            return {name: number for name, number in numbers.items() if 0 <= number < 1e15}
    return {}


def _with_score(row: Row, folder: Path) -> Row:
    path = folder / "evaluation.json"
    if not path.is_file():
        return row
    try:
        found = read_object(path)
        scores = decode(tuple[Score, ...], found.get("scores", []), str(path), "evaluate it again", field="scores")
    except SensoriumError as error:
        return replace(row, said="; ".join(filter(None, (row.said, _said(error, folder)))))
    for one in scores:
        if one.decides and one.value is not None:
            shown = f"{one.name} {one.show(one.value)}"
            return replace(row, score=one.name, value=one.value, better=one.better, shown=shown)
    return row


def _ordered(rows: list[Row]) -> list[Row]:
    newest: dict[tuple[str, str], float] = {}
    for row in rows:
        newest[_data_of(row)] = min(row.age, newest.get(_data_of(row), row.age))

    def place(row: Row) -> tuple[Any, ...]:
        value = row.value if row.value is not None else 0.0
        return (
            newest[_data_of(row)],
            _data_of(row),
            row.value is None,
            row.score,
            -value if row.better == "higher" else value,
            row.run,
        )

    return sorted(rows, key=place)


def _data_of(row: Row) -> tuple[str, str]:
    return (row.digest, "") if row.digest else ("", row.data)


def _since(folder: Path) -> float:
    times = [_time(folder / name) for name in ("run.json", "metrics.csv", "outcome.json", "evaluation.json")]
    return round(max(0.0, time.time() - max(times)), 1)


def _time(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _age(seconds: float) -> str:
    days = seconds / 86400
    return f"{days:.0f} days" if days >= 2 else duration(round(seconds))


def _said(error: Exception, folder: Path) -> str:
    """An error without the folder, which its row has."""
    said = str(error) if isinstance(error, SensoriumError) else f"can't be read ({error})"
    return " ".join(said.replace(f"{folder}{os.sep}", "").split())
