"""Figures as text: read from a run's folder, or from what a benchmark printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks._rows import Cell, Pick, Printed, Ratio, Score, Table, Varied


class Missing(LookupError):
    """A command did not end well, or its figure is not in what it left."""


def picked(pick: Pick, folder: Path, printed: str) -> str:
    """The figure as text, from the runs in ``folder`` or from what was ``printed``. Raises Missing."""
    match pick:
        case Score():
            return _score(folder / pick.run, pick)
        case Varied():
            return _varied(folder / "sensorium-ablate" / "results.json", pick.name)
        case Ratio():
            return re.sub(r"^[\d.]+", r"\g<0>x", cell(printed, pick.row, "ratio (quartiles)"))
        case Cell():
            return cell(printed, pick.row, pick.column)
        case Printed():
            if found := re.search(pick.pattern, printed):
                return found[1]
            raise Missing(f"nothing was printed like {pick.pattern}")
        case Table():
            return table(printed, pick.head)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Missing(f"{path}: {error}") from None


def _score(run: Path, pick: Score) -> str:
    one = next((s for s in _read(run / "evaluation.json").get("scores", ()) if s["name"] == pick.name), None)
    if one is None or one["value"] is None:
        raise Missing(f"{run.name} has no score '{pick.name}'")
    if pick.beside is None:
        return shown(one["value"], one["error"], share=one["share"])
    beside = one["baselines"] | one["references"]
    if pick.beside not in beside:
        raise Missing(f"{run.name}: beside '{pick.name}' is no '{pick.beside}', only {', '.join(beside)}")
    return shown(beside[pick.beside], None, share=one["share"])


def _varied(path: Path, name: str) -> str:
    found = []
    for run in _read(path)["runs"]:
        score = next((s for s in run["scores"] if s["name"] == name), None)
        if score is None or score["value"] is None:
            raise Missing(f"{run['name']} has no score '{name}'")
        value = run["name"].rpartition("=")[2]
        sign = 1 if score["better"] == "lower" else -1
        found.append((sign * score["value"], f"{value} {shown(score['value'], score['error'], share=score['share'])}"))
    return ", ".join(text for _, text in sorted(found))


def shown(value: float, error: float | None, *, share: bool) -> str:
    """0.469, 0.012 -> "46.9 % ± 1.2" of a share, "0.469 ± 0.012" else."""
    if share:
        return f"{100 * value:.1f} %" + (f" ± {100 * error:.1f}" if error else "")
    return f"{value:.4g}" + (f" ± {error:.2g}" if error else "")


def cells(line: str) -> list[str]:
    return [one.strip() for one in line.strip().removeprefix("|").removesuffix("|").split("|")]


def cell(printed: str, row: str, column: str) -> str:
    """Of printed Markdown tables: the last line that begins with ``row`` in one that has the ``column``."""
    head: list[str] = []
    found = None
    for line in printed.splitlines():
        if not line.startswith("|"):
            head = []
        elif not head:
            head = cells(line)
        elif column in head and line.startswith(f"| {row}"):
            found = cells(line)[head.index(column)]
    if not found:
        raise Missing(f"no table has a figure '{column}' of '{row}'")
    return found


def table(printed: str, head: str) -> str:
    """A whole printed table."""
    found = []
    for line in printed.splitlines():
        if found and not line.startswith("|"):
            break
        if found or line.startswith(f"| {head}"):
            found.append(line.rstrip())
    if not found:
        raise Missing(f"no table begins with '{head}'")
    return "\n".join(found)
