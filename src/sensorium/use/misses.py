"""`sensorium misses`: where a detector is wrong on its test pictures, worst first, drawn and as a table.

Every missed object and every false detection gets a reason, after Bolya et al., 2020, arXiv:2008.08115: of a detection
with the same object under it, another class ("class"), an overlap between 0.1 and the minimum ("place"), an object that
was found already ("double"), or none of it ("background"); of an object, a detection with too low a score ("score") before
these, or nothing ("nothing").
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.base.files import check_writable, own_folder, write_text
from sensorium.base.precision import device_name
from sensorium.base.reading import printable
from sensorium.base.terminal import bar
from sensorium.base.words import counted
from sensorium.data.boxes.cache import Boxed
from sensorium.data.output import check_place
from sensorium.errors import SensoriumError
from sensorium.judge.box_scores import check_classes, panel
from sensorium.judge.boxes import detections
from sensorium.judge.coco_ap import compared
from sensorium.parts.boxes import iou
from sensorium.pictures.boxes import class_name
from sensorium.pictures.images import save_picture
from sensorium.recipe.boxes import sight_of
from sensorium.recipe.info import data_of
from sensorium.runs.run import Run
from sensorium.use.able import able

NEAR = 0.1  # minimum overlap of what is near
COLUMNS = ("rank", "picture", "fault", "class", "reason", "other", "overlap", "score", "left", "top", "right", "bottom")


@dataclass(frozen=True)
class Fault:
    """A missed object or a false detection: its box in pixels of the picture, and the class and the overlap of what lies
    there instead."""

    kind: str  # "missed" or "false"
    name: str
    reason: str
    other: str
    overlap: float
    score: float | None
    box: list[float]


def write_misses(
    run: Path,
    *,
    data: str | None,
    test: str | None,
    n: int,
    threshold: float,
    overlap: float,
    out: Path | None,
    progress: bool = True,
) -> str:
    """Draw the ``n`` test pictures with the most missed objects and false detections into the folder ``out``, and write
    all faults to ``misses.csv`` there; returns lines that sum them up."""
    for flag, value in (("--threshold", threshold), ("--overlap", overlap)):
        if not 0 < value <= 1:
            raise SensoriumError(f"{flag} {value}: must be above 0 and at most 1.")
    if out is not None:
        check_place(out, data, test, *data_of(run), folder=True)
    found = Run(run)
    method = able(found, "misses", found.folder)
    target = own_folder(found.folder, "misses") if out is None else out
    check_writable(target / "misses.csv")
    ready = found.data(data, test)
    held: Boxed = ready.held
    check_classes(found, held)
    with bar("detecting", progress) as advance:
        sight = sight_of(method, found.situation)
        seen, truth, _ = detections(method, held, sight, device=device_name(), progress=advance)
    wrong = [compared(one, true, overlap=overlap, threshold=threshold) for one, true in zip(seen, truth, strict=True)]
    rank = sorted((i for i, both in enumerate(wrong) if any(both)), key=lambda i: (-sum(map(len, wrong[i])), i))
    faults = {
        i: faults_of(seen[i], truth[i], wrong[i], held.classes, overlap=overlap, threshold=threshold) for i in rank
    }
    if (target / "misses.csv").is_file():  # what an earlier call drew
        for old in target.glob("[0-9][0-9][0-9]-*.png"):
            old.unlink()
    write_text(target / "misses.csv", _table(rank, faults, held))
    with bar("drawing", progress) as advance:
        for place, i in enumerate(rank[:n], 1):
            drawn = panel(held, i, seen[i], *wrong[i], threshold=threshold)
            if drawn is not None:
                save_picture(drawn, target / f"{place:03}-{Path(held.truth.names[i]).stem[:80]}.png")
            if advance is not None:
                advance(place, min(n, len(rank)))
    objects = sum(int((~one["crowd"]).sum()) for one in truth)
    head = f"{counted(len(held), 'training picture' if ready.test is None else 'test picture')} with {counted(objects, 'object')}"
    return "\n".join(
        [*_told(head, [one for i in rank for one in faults[i]], threshold), f"{printable(str(target))}/misses.csv"]
    )


def faults_of(
    found: Mapping[str, Tensor],
    truth: Mapping[str, Any],
    wrong: tuple[list[int], list[int]],
    classes: Sequence[str],
    *,
    overlap: float,
    threshold: float,
) -> list[Fault]:
    """The faults of one image, missed objects first."""
    shared = iou(found["boxes"], truth["boxes"])  # [detections, objects]
    same = found["labels"][:, None] == truth["labels"]
    sure = (found["scores"] >= threshold)[:, None]
    lost, false = wrong
    told = []
    for i in lost:
        weak = (shared * same * ~sure)[:, i]
        reasons = (
            ("score", weak, overlap),
            ("class", (shared * ~same * sure)[:, i], overlap),
            ("place", (shared * same * sure)[:, i], NEAR),
        )
        reason, at, much = _best(reasons, "nothing")
        other = "" if at is None else class_name(classes, int(found["labels"][at]))
        score = None if at is None else float(found["scores"][at])
        box = truth["boxes"][i].tolist()
        told.append(Fault("missed", class_name(classes, int(truth["labels"][i])), reason, other, much, score, box))
    for i in false:
        reasons = (
            ("double", (shared * same)[i], overlap),
            ("class", (shared * ~same)[i], overlap),
            ("place", (shared * same)[i], NEAR),
        )
        reason, at, much = _best(reasons, "background")
        other = "" if at is None else class_name(classes, int(truth["labels"][at]))
        name, score = class_name(classes, int(found["labels"][i])), float(found["scores"][i])
        told.append(Fault("false", name, reason, other, much, score, found["boxes"][i].tolist()))
    return told


def _best(reasons: Sequence[tuple[str, Tensor, float]], otherwise: str) -> tuple[str, int | None, float]:
    """The first reason whose largest overlap reaches its minimum: its name, which that is, and how much."""
    for name, row, least in reasons:
        much, at = row.max(0) if len(row) else (torch.zeros(()), torch.zeros((), dtype=torch.long))
        if much >= least:
            return name, int(at), float(much)
    return otherwise, None, 0.0


def _table(rank: Sequence[int], faults: Mapping[int, Sequence[Fault]], held: Boxed) -> str:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    for place, i in enumerate(rank, 1):
        for one in faults[i]:
            score = "" if one.score is None else f"{one.score:.4f}"
            said = [place, printable(str(held.truth.names[i])), one.kind, one.name, one.reason, one.other]
            writer.writerow([*said, f"{one.overlap:.3f}", score, *(f"{edge:.1f}" for edge in one.box)])
    return table.getvalue()


def _told(head: str, faults: Sequence[Fault], threshold: float) -> list[str]:
    kinds = {kind: [one for one in faults if one.kind == kind] for kind in ("missed", "false")}
    lines = [
        f"{head}: {len(kinds['missed']):,} missed, {len(kinds['false']):,} false at a score of {threshold:g} or more"
    ]
    words = {
        "score": "score too low", "class": "taken for another class", "place": "box in the wrong place",
        "nothing": "nothing found there", "double": "found twice", "background": "nothing is there",
    }  # fmt: skip
    for kind, some in kinds.items():
        if some:
            why = ", ".join(
                f"{count:,} {words[reason]}" for reason, count in Counter(f.reason for f in some).most_common()
            )
            each = ", ".join(
                f"{count:,} {printable(name)}" for name, count in Counter(f.name for f in some).most_common(8)
            )
            lines.append(f"  {kind}: {each}; {why}")
    return lines
