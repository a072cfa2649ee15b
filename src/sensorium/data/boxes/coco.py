"""COCO JSON: every image, category and box of a set in one file.

{"images": [{id, file_name, width, height}], "categories": [{id, name}], "annotations": [{image_id, category_id, bbox,
iscrowd, area, segmentation}]}, a bbox being left, top, width and height in pixels. Images lie in a folder or an uncompressed .tar
near the file. "instances_train.json" is the training set, "valid/_annotations.coco.json" the validation set. Classes
are numbered in the order of their ids, which need not be dense; two ids of one name are one class.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sensorium.base.reading import printable
from sensorium.data.boxes.open import Listed, Raw, number, size_stated
from sensorium.data.images.folders import Files
from sensorium.data.images.sets import Found, Source
from sensorium.data.images.shards import Slices, _members
from sensorium.data.log import Log
from sensorium.data.names import split_of
from sensorium.errors import SensoriumError

_OTHER_JSON = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")


def coco_files(folder: Path) -> dict[str, Path]:
    """Annotation files by split: named after splits, in folders of splits, or a single one."""
    found: dict[str, Path] = {}
    below = [folder / "annotations", *(e for e in sorted(folder.iterdir()) if e.is_dir() and split_of(e.name))]
    files = [file for place in (folder, *below) if place.is_dir() for file in sorted(place.glob("*.json"))]
    files = [f for f in files if not f.name.startswith((*_OTHER_JSON, "."))]
    for file in files:
        split = split_of(file.stem) or (split_of(file.parent.name) if file.parent != folder else None)
        if split is not None and split not in found:
            found[split] = file
    if "train" not in found:
        return {"train": files[0]} if len(files) == 1 and _is_coco(files[0]) else {}
    return found


def _is_coco(file: Path) -> bool:
    """Whether a JSON file of any name is an annotation file, by its content."""
    try:
        return isinstance(_coco_json(file)["annotations"], list)
    except SensoriumError:
        return False


def _coco_json(file: Path) -> dict[str, list]:
    where = printable(str(file))
    try:
        stored = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SensoriumError(f"{where}: not readable as JSON ({printable(str(error))[:120]}).") from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(stored, dict) or not isinstance(stored.get(name), list):
            raise SensoriumError(f"{where}: not a COCO detection file: it has no list '{name}'.")
    return stored


def read_coco(files: dict[str, Path], log: Log) -> tuple[tuple[str, ...], dict[str, Listed]]:
    sets, classes = {}, ()
    for split, file in files.items():
        stored = _coco_json(file)
        names = _categories(stored["categories"], file, log)
        if split == "train":
            classes = tuple(dict.fromkeys(names[key] for key in sorted(names, key=lambda k: (isinstance(k, str), k))))
        sets[split] = _coco_set(stored, names, file, log)
    return classes, sets


def _categories(rows: list, file: Path, log: Log) -> dict[Any, str]:
    names = {}
    for row in rows:
        if _key(row, "id") is None or not isinstance(row.get("name"), str) or row["id"] in names:
            log.skip(file.name, "category without its own id and a name", repr(row)[:80])
        else:
            names[row["id"]] = printable(row["name"])
    return names


def _coco_set(stored: dict[str, list], names: dict[Any, str], file: Path, log: Log) -> Listed:
    entries: dict[Any, dict] = {}
    for row in stored["images"]:
        key = _key(row, "id")
        if key is None or key in entries or not isinstance(row.get("file_name"), str) or "\0" in row["file_name"]:
            log.skip(file.name, "image entry without its own id and a file_name", repr(row)[:80])
        else:
            entries[key] = row
    source, places = _images_of(file, [row["file_name"] for row in entries.values()], log)
    raws: dict[Any, Raw] = {}
    for key, row in entries.items():
        at = places.get(row["file_name"])
        if at is None:
            log.skip(row["file_name"], "image is missing", f"listed in {file.name}")
        else:
            raws[key] = Raw(row["file_name"], key, at, size_stated(row.get("width"), row.get("height")))
    boxes: dict[Any, list] = {key: [] for key in raws}
    for row in stored["annotations"]:
        key = _key(row, "image_id")
        if key is None or key not in entries:
            log.skip(file.name, "annotation of an unknown image", repr(row)[:80])
        elif key in raws:
            box = row.get("bbox")
            if not isinstance(box, list) or len(box) != 4:
                log.skip(raws[key].name, "annotation without a box", repr(row)[:80])
                continue
            boxes[key].append([number(x) for x in box])
            raws[key].labels.append(names.get(_key(row, "category_id")))
            raws[key].crowd.append(bool(row.get("iscrowd")))
            raws[key].areas.append(number(row.get("area")))
            raws[key].outlines.append(row.get("segmentation"))
    for key, rows in boxes.items():
        raws[key].boxes = np.array(rows, np.float64).reshape(-1, 4)
        with np.errstate(invalid="ignore", over="ignore"):
            raws[key].boxes[:, 2:] += raws[key].boxes[:, :2]
    return Listed(source, list(raws.values()))


def _key(row: Any, field: str) -> int | str | None:
    value = row.get(field) if isinstance(row, dict) else None
    return value if isinstance(value, int | str) else None


def _images_of(file: Path, names: list[str], log: Log) -> tuple[Source, dict[str, int]]:
    """The folder or tar of a COCO file's images, and the image of each listed name: of the usual places, the one that
    has most of the first names."""
    stem = re.sub(r"^_?(instances|annotations)[_.]?|\.coco$", "", file.stem)
    wanted = [name for name in dict.fromkeys([stem, f"images_{stem}", f"images/{stem}", "images", "."]) if name]
    near = [base / name for base in (file.parent, file.parent.parent) for name in wanted]
    tars = (place.with_name(f"{place.name}.tar") for place in near if place.name)
    stores = [_Folder(p) for p in near if p.is_dir()] + [_Tar(tar, log) for tar in tars if tar.is_file()]
    best = max(stores, key=lambda store: sum(name in store for name in names[:50]), default=None)
    there = [] if best is None else [name for name in dict.fromkeys(names) if name in best]
    if best is None or (names and not there):
        looked = ", ".join(dict.fromkeys(printable(str(store.path)) for store in stores)) or "no folder"
        raise SensoriumError(f"{printable(str(file))}: none of its images was found; looked in {looked}.")
    return best.source(there), {name: i for i, name in enumerate(there)}


class _Folder:
    """Images in a folder, by the names in a file."""

    def __init__(self, path: Path):
        self.path = path

    def __contains__(self, name: str) -> bool:
        try:
            return _inside(name) and (self.path / name).is_file()
        except OSError:  # an invalid file name
            return False

    def source(self, names: list[str]) -> Source:
        return Files([str(self.path / name) for name in names])


class _Tar:
    """Images in a tar, by their full name or its last part."""

    def __init__(self, path: Path, log: Log):
        self.path, self.members = path, {}
        found = Found("tar", {})
        for name, offset, size in _members(path, found):
            self.members[name.removeprefix("./")] = (offset, size)
            self.members.setdefault(name.rpartition("/")[2], (offset, size))
        for skipped in found.skipped:
            log.skip(skipped.file, "tar is damaged", skipped.reason)

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def source(self, names: list[str]) -> Source:
        return Slices([self.path], np.array([(0, *self.members[name]) for name in names], np.int64).reshape(-1, 3))


def _inside(name: str) -> bool:
    """Whether a file name stays inside its folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and not re.match(r"[A-Za-z]:", name)
