"""How many wrong boxes a comparison finds: blood cells (BCCD) with some boxes removed, of another class, or moved.

A detector learns from the wrong boxes as they are, and OUT/suspects.csv lists those that it contradicts. Each change is made to
``--share`` of the training boxes: removed; given another class, at random; moved by 30 % of its sides across and down, to an overlap
of 0.32 with where it was. A change is found if a suspect of its kind is of it: for a removed box a missing one that overlaps it by 0.5
or more; for a moved one also an unconfirmed one. Printed: of as many suspects as there are changes, the share of the changes that they
find, by kind and in all, beside the expectation of a random order of everything that can be suspected: the boxes as they are, and the
detections that overlap none. With --runs DIR the finished comparison of a former call.
Run: python -m benchmarks.box_suspects [--share 0.05] [--budget 150s] [--seed 0] [--method fcos] [--out DIR]
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
