"""How many wrong boxes a comparison finds: blood cells (BCCD) with some boxes removed, of another class, or moved.

A detector learns from the wrong boxes as they are, and OUT/suspects.csv lists those that it contradicts. Each change is made to
``--share`` of the training boxes: removed; given another class, at random; moved by 30 % of its sides across and down, to an overlap
of 0.32 with where it was. A change is found if a suspect of its kind is of it: for a removed box a missing one that overlaps it by 0.5
or more; for a moved one also an unconfirmed one. Printed: of as many suspects as there are changes, the share of the changes that they
find, by kind and in all, beside what a random order of everything that can be suspected finds: of the annotated boxes, and of the
missing ones that are listed. BCCD has boxes missing of its own, which count as wrong here. With the same --out a finished training is
not repeated.
Run: python -m benchmarks.box_suspects [--share 0.05] [--budget 250steps] [--seed 0] [--method fcos] [--out DIR]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.parts.boxes import iou
from sensorium.runs.compare import compare

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "bccd"
MOVED, SAME = 0.3, 0.5  # of the sides; the overlap from which on a detection is of a removed box
FOUND_AS = {"removed": ("missing",), "swapped": ("swapped",), "moved": ("misplaced", "unconfirmed")}


def changed(stored: dict[str, Any], share: float, seed: int) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The annotations with wrong boxes, and what was done: by kind of change, the boxes as they are now (removed: as
    they were), each with its picture's name."""
    rng = np.random.default_rng(seed)
    boxes = [dict(one) for one in stored["annotations"]]
    count = round(share * len(boxes))
    order = rng.permutation(len(boxes))
    sizes = {one["id"]: (one["width"], one["height"]) for one in stored["images"]}
    names = {one["id"]: Path(one["file_name"]).name for one in stored["images"]}
    kinds = [one["id"] for one in stored["categories"]]
    done: dict[str, list[dict[str, Any]]] = {"removed": [], "swapped": [], "moved": []}
    for place, at in enumerate(order[: 3 * count].tolist()):
        one, how = boxes[at], ("removed", "swapped", "moved")[place // count]
        if how == "swapped":
            one["category_id"] = int(rng.choice([kind for kind in kinds if kind != one["category_id"]]))
        if how == "moved":
            one["bbox"] = moved(one["bbox"], sizes[one["image_id"]], rng)
        done[how].append(one | {"picture": names[one["image_id"]]})
    gone = set(order[:count].tolist())
    return {**stored, "annotations": [one for i, one in enumerate(boxes) if i not in gone]}, done


def moved(box: Sequence[float], size: tuple[int, int], rng: np.random.Generator) -> list[float]:
    """A box (x, y, w, h) somewhere beside its place, the other way where it would leave the picture."""
    place = []
    for start, side, most in zip(box[:2], box[2:], size, strict=True):
        step = float(rng.choice([-1, 1])) * MOVED * side
        place.append(start + step if 0 <= start + step <= most - side else min(max(start - step, 0), most - side))
    return [*place, *box[2:]]


def write(folder: Path, share: float, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The data with wrong training boxes in ``folder``; returns what was done."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("images_train.tar", "images_val.tar", "instances_val.json"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to((DATA / name).resolve())
    wrong, done = changed(json.loads((DATA / "instances_train.json").read_text()), share, seed)
    (folder / "instances_train.json").write_text(json.dumps(wrong))
    return done


def change_of(row: dict[str, str], done: dict[str, list[dict[str, Any]]]) -> tuple[str, int] | None:
    """The change that a suspect finds: its kind and number; None if it finds none."""
    box = torch.tensor([[float(row[edge]) for edge in ("left", "top", "right", "bottom")]])
    for how, kinds in FOUND_AS.items():
        if row["kind"] in kinds:
            for number, one in enumerate(done[how]):
                x, y, w, h = one["bbox"]
                overlap = float(iou(box, torch.tensor([[x, y, x + w, y + h]], dtype=box.dtype)))
                if one["picture"] == Path(row["picture"]).name and overlap >= (SAME if how == "removed" else 0.99):
                    return how, number
    return None


def told(rows: Sequence[dict[str, str]], done: dict[str, list[dict[str, Any]]], boxes: int) -> list[str]:
    """Lines of recall, by kind of change and in all. boxes: as annotated now, each of which a random order may pick."""
    found = [change_of(row, done) for row in rows]
    lines = []
    for title, chosen in [*((how, (how,)) for how in done), ("all", tuple(done))]:
        kinds = {kind for how in chosen for kind in FOUND_AS[how]}
        total = sum(len(done[how]) for how in chosen)
        ranked = [change for row, change in zip(rows, found, strict=True) if row["kind"] in kinds]
        hit, every = len(set(ranked[:total]) - {None}), len(set(ranked) - {None})
        # What a random order picks from: the missing boxes that are listed, and every annotated box.
        missing = [change for row, change in zip(rows, found, strict=True) if row["kind"] == "missing"]
        pool = len(missing) * ("missing" in kinds) + boxes * (chosen != ("removed",))
        there = len(set(missing) - {None}) * ("missing" in kinds)
        there += sum(len(done[how]) for how in chosen if how != "removed")
        chance = there * min(1.0, total / max(pool, 1)) / total
        lines.append(
            f"{title}: {total} changes; the first {min(total, len(ranked))} suspects find {hit}, {hit / total:.0%} (in a random order "
            f"{chance:.0%}); all {len(ranked)} find {every}, {every / total:.0%}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--budget", default="250steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="fcos")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"no data at {DATA}: set SENSORIUM_DATA.")
    with tempfile.TemporaryDirectory() as temporary:
        out = asked.out or Path(temporary) / "out"
        data = out.parent / f"{out.name}-data"
        done = write(data, asked.share, asked.seed)
        found = compare([asked.method], str(data), budget=asked.budget, out=out, seed=asked.seed)
        suspects, score = found.box_suspects, found.runs[0].score("AP")
        if suspects is None or score is None:
            raise SystemExit("the detector finds too little to judge boxes by: train it longer.")
        rows = list(csv.DictReader((out / suspects.file).open()))
        print(
            f"{asked.method}, AP {score.value:.1%} on unchanged test boxes after {asked.budget}; {len(rows):,} suspects"
        )
        print("\n".join(told(rows, done, suspects.n)))
        by_score = sorted((row for row in rows if row["objectlab"]), key=lambda row: float(row["objectlab"]))
        for how in done:
            count = len(done[how])
            first = [row for row in by_score if row["kind"] in FOUND_AS[how]][:count]
            hit = len({change_of(row, done) for row in first} - {None})
            print(f"{how}: ranked by ObjectLab's score of the kind instead: {hit / count:.0%}")


if __name__ == "__main__":
    main()
