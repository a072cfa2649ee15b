"""COCO JSON: every image, category and box of a set in one file.

{"images": [{id, file_name, width, height}], "categories": [{id, name}], "annotations": [{image_id, category_id, bbox,
iscrowd, area, segmentation}]}, a bbox being left, top, width and height in pixels. "instances_train.json" is the
training set, "valid/_annotations.coco.json" the validation set. Classes are numbered in the order of their ids, which
need not be dense; two ids of one name are one class. What other tools write is understood, too: numbers as text, a bbox
as an object or in fractions of the image, one that is missing beside polygons. Images: :mod:`coco_images`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.reading import printable, read_json
from sensorium.data.boxes.coco_images import images_of
from sensorium.data.boxes.listed import (
    Listed,
    Raw,
    Sets,
    about_equal,
    about_twice,
    number,
    say_fractions,
    size_stated,
    whole,
)
from sensorium.data.boxes.masks import polygons_of
from sensorium.data.log import Log
from sensorium.data.names import divide, is_split, list_folder
from sensorium.errors import SensoriumError

_LISTS = ("images", "annotations", "categories")
_OTHER_JSON = ("captions", "panoptic", "stuff", "image_info")
_KEYPOINTS = "person_keypoints"
_MANY = 50  # so many JSON files in one folder are of one picture each, not of a set
_EDGES = (("x", "y", "width", "height"), ("left", "top", "width", "height"), ("x", "y", "w", "h"))
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))


def read_coco(path: Path, log: Log) -> tuple[tuple[str, ...], Sets] | None:
    """(classes, splits) of a COCO file, or of those in a folder; None if the folder has none."""
    if path.is_file():
        names, listed = _read(path, _stored(path, log), log)
        return _in_order(names), {"train": listed}
    groups = _by_split(path)
    sets: Sets = {}
    classes: tuple[str, ...] = ()
    foreign: list[SensoriumError] = []
    for split in sorted(groups, key="train".__ne__):
        if (chosen := _chosen(split, groups[split], path, foreign, log)) is None:
            continue
        names, sets[split] = _read(*chosen, log)
        if split == "train":
            classes = _in_order(names)
    if foreign and sets:
        log.notes.append(f"JSON files that are passed over: {len(foreign):,}, the first because {foreign[0]}")
    if not sets and foreign:
        raise foreign[0]
    if sets and "train" not in sets:
        why = f" {foreign[0]}" if foreign else ""
        raise SensoriumError(f"'{printable(str(path))}': no training annotations; there are {', '.join(sets)}.{why}")
    return (classes, sets) if sets else None


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """Files that may be COCO files, by the splits in their names and in those of their folders."""
    candidates = _candidates(folder)
    files = [f for f in candidates if not f.name.startswith(_KEYPOINTS)] or candidates
    groups = divide(files, folder)
    if list(groups) == ["train"] and len(files) > 1:
        told = {file: is_split(file.stem) or is_split(file.parent.name) for file in files}
        if told and all(told.values()) and "train" not in told.values():
            return {split: [file for file in files if told[file] == split] for split in set(told.values()) if split}
    return groups


def _chosen(
    split: str, files: list[Path], folder: Path, foreign: list[SensoriumError], log: Log
) -> tuple[Path, dict[str, list]] | None:
    """The COCO file of a split, and its content. Those that are none are added to ``foreign``."""
    chosen: tuple[Path, dict[str, list]] | None = None
    others = []
    for file in files:
        if chosen is not None and is_split(chosen[0].stem):
            others.append(file)
            continue
        try:
            stored = _stored(file, log)
        except SensoriumError as error:
            foreign.append(error)
            continue
        if chosen is None:
            chosen = file, stored
        else:
            others.append(file)
    if chosen is not None and others:
        names = ", ".join(printable(file.name) for file in others[:4])
        if is_split(chosen[0].stem) is None and chosen[0].parent == others[0].parent:
            names = f"{printable(chosen[0].name)}, {names}"
            raise SensoriumError(
                f"'{printable(str(folder))}': it isn't clear which COCO file to use: {names}. Give one."
            )
        log.notes.append(f"{printable(chosen[0].name)} is used as the {split} set, not {names}.")
    return chosen


def _candidates(folder: Path) -> list[Path]:
    """JSON files of a folder and of the two levels below it that may be COCO files."""
    found, level = [], [folder]
    for _ in range(3):
        below = []
        for place in level:
            try:
                entries = list_folder(place)
            except SensoriumError:
                if place == folder:
                    raise
                continue
            files = [Path(e.path) for e in entries if e.is_file() and e.name.lower().endswith((".json", ".json.gz"))]
            found += files if len(files) < _MANY else []
            below += [Path(e.path) for e in entries if e.is_dir()]
        level = below if len(below) < 1000 else []
    return [file for file in found if not file.name.startswith(_OTHER_JSON)]


def _stored(file: Path, log: Log) -> dict[str, list]:
    twice: Counter[str] = Counter()
    stored = read_json(file, twice=twice)
    for name in _LISTS:
        if not isinstance(stored, dict) or not isinstance(stored.get(name), list):
            raise SensoriumError(f"{printable(str(file))}: not a COCO detection file: it has no list '{name}'.")
    for name in _LISTS:
        if twice[name]:
            raise SensoriumError(f"{printable(str(file))}: '{name}' is given twice; join its lists in one.")
    log.notes += about_twice(twice, file.name)
    return stored


def _in_order(names: dict[Any, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names[key] for key in sorted(names, key=lambda k: (isinstance(k, str), k))))


def _read(file: Path, stored: dict[str, list], log: Log) -> tuple[dict[Any, str], Listed]:
    names: dict[Any, str] = {}
    for row in stored["categories"]:
        key, name = _key(row, "id"), row.get("name") if isinstance(row, dict) else None
        if key is None or key in names or not isinstance(name, str | int) or isinstance(name, bool):
            log.skip(file.name, "category without its own id and a name", repr(row)[:80])
        else:
            names[key] = printable(str(name))
    log.notes += about_equal(names.items(), file.name)
    entries: dict[Any, dict] = {}
    for row in stored["images"]:
        key = _key(row, "id")
        if key is None or key in entries or not isinstance(row.get("file_name"), str) or "\0" in row["file_name"]:
            log.skip(file.name, "image entry without its own id and a file_name", repr(row)[:80])
        else:
            entries[key] = row
    source, places = images_of(file, [row["file_name"] for row in entries.values()], log)
    raws: dict[Any, Raw] = {}
    first: dict[int, Raw] = {}
    for key, row in entries.items():
        at = places.get(row["file_name"])
        if at is None:
            log.skip(row["file_name"], "image is missing", f"listed in {file.name}")
            continue
        if at in first:
            log.counts["image entry of the same file as another; their boxes are joined"] += 1
        else:
            first[at] = Raw(row["file_name"], key, at, size_stated(row.get("width"), row.get("height")))
        raws[key] = first[at]
    _add_boxes(file, stored["annotations"], names, entries, raws, log)
    return names, Listed(source, list(first.values()))


def _add_boxes(
    file: Path, rows: list, names: dict[Any, str], entries: dict[Any, dict], raws: dict[Any, Raw], log: Log
) -> None:
    boxes: dict[int, list] = {id(raw): [] for raw in raws.values()}
    seen = set()
    for row in rows:
        key = _key(row, "image_id")
        if key is None or key not in entries:
            log.skip(file.name, "annotation of an unknown image", repr(row)[:80])
        elif (raw := raws.get(key)) is not None:
            box = box_of(row, log)
            if box is None:
                log.skip(raw.name, "annotation without a box", repr(row)[:80])
                continue
            category = _key(row, "category_id")
            this = (_key(row, "id"), key, category, *box)
            if this[0] is not None and this in seen:
                log.skip(raw.name, "annotation that is given twice", repr(row)[:80])
                continue
            seen.add(this)
            boxes[id(raw)].append(box)
            raw.labels.append(names.get(category))
            raw.crowd.append(number(row.get("iscrowd")) > 0)
            raw.areas.append(number(row.get("area")))
            raw.outlines.append(row.get("segmentation"))
    every = {id(raw): raw for raw in raws.values()}
    for one, raw in every.items():
        raw.boxes = np.array(boxes[one], np.float64).reshape(-1, 4)
    say_fractions(list(every.values()), file.name, log)


def box_of(row: dict, log: Log) -> list[float] | None:
    """Left, top, right and bottom of an annotation; None if it has no box."""
    box = row.get("bbox")
    if isinstance(box, dict):
        sides = next((names for names in (*_EDGES, *_CORNERS) if box.keys() >= set(names)), None)
        if sides is None:
            return None
        values = [number(box[name]) for name in sides]
        if sides in _CORNERS:
            return values
    elif isinstance(box, list) and len(box) == 4:
        values = [number(value) for value in box]
    elif not box and (parts := polygons_of(row.get("segmentation"))):
        points = np.concatenate(parts).reshape(-1, 2)
        log.counts["box that is missing, taken from its outline"] += 1
        return [*points.min(0).tolist(), *points.max(0).tolist()]
    else:
        return None
    left, top, width, height = values
    return [left, top, left + width, top + height]


def _key(row: Any, field: str) -> int | str | None:
    """An id of a file: a number, also as text ("1" is 1), or another text."""
    value = row.get(field) if isinstance(row, dict) else None
    found = whole(value)
    return found if found is not None else value if isinstance(value, int | str) else None
