"""Finding the layout of detection data, and two of its three layouts, Pascal VOC XML and YOLO text; COCO is in
:mod:`coco`.

VOC     Annotations/*.xml and JPEGImages/, splits in ImageSets/Main; or XML files beside their images, flat or in
        folders train, valid, test. Corners are pixel indices from 1, inclusive: the edges of a box are
        (xmin - 1, ymin - 1, xmax, ymax).
YOLO    images/ and labels/ with one text file per image, or these beside the images, in the usual splits. A line is
        "class cx cy w h" as fractions of the image, or "class x1 y1 x2 y2 x3 y3 ..." for a polygon, which gives the box
        and the mask. Names come from data.yaml, classes.txt or obj.names. An image without a text file has no objects.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from sensorium.base.reading import printable
from sensorium.data.boxes.coco import coco_files, read_coco
from sensorium.data.boxes.open import Listed, Raw, number, size_stated
from sensorium.data.images.decode import EXTENSIONS
from sensorium.data.images.folders import Files
from sensorium.data.log import Log
from sensorium.data.names import litter, natural_key, split_of
from sensorium.errors import SensoriumError

_SMALL = 16 << 20  # maximum bytes of an image's annotation
_LOOKED_FOR = (
    "COCO (a .json with images, annotations and categories), Pascal VOC (.xml files, or folders Annotations and "
    "JPEGImages) and YOLO (folders images and labels, or .txt files beside the images)"
)
_LISTS = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
Sets = dict[str, Listed]


def find_boxes(path: Path, log: Log) -> tuple[str, tuple[str, ...], Sets]:
    """(layout, classes, splits) of a JSON file or a folder. Raises SensoriumError if the layout is unknown."""
    where = printable(str(path))
    try:
        if not path.exists():
            raise SensoriumError(f"there is nothing at '{where}'. Give one of {_LOOKED_FOR}.")
        if path.is_file() and path.suffix.lower() != ".json":
            raise SensoriumError(f"'{where}' has no boxes in a known format. Give one of {_LOOKED_FOR}.")
        if files := {"train": path} if path.is_file() else coco_files(path):
            return "COCO json", *read_coco(files, log)
        for layout, read in (("Pascal VOC", _voc), ("YOLO text", _yolo)):
            if found := read(path, log):
                classes, sets = found
                if "train" not in sets:
                    raise SensoriumError(f"'{where}': no training images; there are {', '.join(sets)}.")
                return layout, classes, sets
    except OSError as error:
        raise SensoriumError(f"'{where}' cannot be read ({error.strerror or error}).") from None
    raise SensoriumError(f"'{where}' has no boxes. Looked for {_LOOKED_FOR}.")


# ----------------------------------------------------------------------------------------------------------------- VOC


def _voc(folder: Path, log: Log) -> tuple[tuple[str, ...], Sets] | None:
    sets = {split: _voc_set(files, at, log) for split, (files, at) in _voc_places(folder).items() if files}
    if not sets:
        return None
    found = {name for listed in sets.values() for raw in listed.raws for name in raw.labels if name}
    difficult = sum(sum(raw.crowd) for listed in sets.values() for raw in listed.raws)
    if difficult:
        log.notes.append(f"{difficult:,} boxes are marked difficult: they are ignored in training and evaluation.")
    return tuple(sorted(found, key=natural_key)), sets


def _voc_places(folder: Path) -> dict[str, tuple[list[Path], Path]]:
    """Annotations, and the folder of their images, by split."""
    texts, pictures = folder / "Annotations", folder / "JPEGImages"
    if not texts.is_dir():
        return {split: (list(_of_suffix(at, ".xml").values()), at) for split, at in _split_places(folder).items()}
    every, lists = _of_suffix(texts, ".xml"), folder / "ImageSets" / "Main"
    at = pictures if pictures.is_dir() else texts
    named = {split: lists / f"{split}.txt" for split in ("train", "val", "test")}
    if not named["train"].is_file():
        named["train"] = lists / "trainval.txt"
    if not named["train"].is_file():
        return {"train": (list(every.values()), at)}
    return {s: ([every[n] for n in _words(f) if n in every], at) for s, f in named.items() if f.is_file()}


def _voc_set(files: Iterable[Path], pictures: Path, log: Log) -> Listed:
    there = _of_suffix(pictures, *EXTENSIONS)
    by_name = {path.name: path for path in there.values()}
    raws, paths = [], []
    for file in files:
        try:
            root = parse_xml(file)
        except SensoriumError as error:
            log.skip(file.name, "annotation cannot be read", str(error).partition(": ")[2])
            continue
        picture = there.get(file.stem) or by_name.get((root.findtext("filename") or "").strip())
        if picture is None:
            log.skip(file.name, "image is missing", f"no {file.stem} in {pictures.name}")
            continue
        size = size_stated(*(number((root.findtext(f"size/{k}") or "").strip()) for k in ("width", "height")))
        raw = Raw(picture.name, len(raws), len(raws), size)
        rows = []
        for thing in root.iter("object"):
            corners = (number((thing.findtext(f"bndbox/{k}") or "").strip()) for k in ("xmin", "ymin", "xmax", "ymax"))
            x1, y1, x2, y2 = corners
            # Some tools count from 0: a 0 is not decremented.
            rows.append([x1 - 1 if x1 >= 1 else x1, y1 - 1 if y1 >= 1 else y1, x2, y2])
            raw.labels.append(printable((thing.findtext("name") or "").strip()) or None)
            raw.crowd.append((thing.findtext("difficult") or "").strip() == "1")
        raw.boxes = np.array(rows, np.float64).reshape(-1, 4)
        raws.append(raw)
        paths.append(str(picture))
    return Listed(Files(paths), raws)


def parse_xml(file: Path) -> ElementTree.Element:
    """The root of a small XML file. A document type, and so every entity, is an error: nothing is expanded or fetched.

    Raises SensoriumError "FILE: what is wrong".
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise ValueError("it declares a document type, which is not supported")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        if file.stat().st_size > _SMALL:
            raise ValueError(f"larger than {_SMALL >> 20} MB")
        parser.Parse(file.read_bytes(), True)
        return builder.close()
    except (expat.ExpatError, LookupError, ValueError, OSError, AssertionError) as error:
        raise SensoriumError(f"{printable(file.name)}: {printable(str(error))[:120]}") from None


# ---------------------------------------------------------------------------------------------------------------- YOLO


def _yolo(folder: Path, log: Log) -> tuple[tuple[str, ...], Sets] | None:
    places = {}
    for split, at in _split_places(folder).items():
        pairs = [(at / "images", at / "labels"), (at, at)]
        if at.parent.name == "images":
            pairs.insert(0, (at, at.parent.parent / "labels" / at.name))
        for pictures, texts in pairs:
            if not (pictures.is_dir() and texts.is_dir()):
                continue
            if _of_suffix(pictures, *EXTENSIONS).keys() & _of_suffix(texts, ".txt").keys():
                places[split] = (pictures, texts)
                break
    if not places:
        return None
    names = _yolo_names(folder, places)
    sets = {split: _yolo_set(pictures, texts, names, log) for split, (pictures, texts) in places.items()}
    if names is None:
        found = {name for listed in sets.values() for raw in listed.raws for name in raw.labels if name}
        names = tuple(sorted(found, key=natural_key))
        log.notes.append("There is no data.yaml or classes.txt with class names; classes are named by number.")
    return tuple(dict.fromkeys(names)), sets


def _yolo_set(pictures: Path, texts: Path, names: tuple[str, ...] | None, log: Log) -> Listed:
    raws, paths = [], []
    files = _of_suffix(texts, ".txt")
    for stem, picture in _of_suffix(pictures, *EXTENSIONS).items():
        raw = Raw(picture.name, len(raws), len(raws), None, relative=True)
        rows = []
        for at, line in enumerate(_lines(files.get(stem), log), 1):
            try:
                row = _yolo_line(line)
            except ValueError as error:
                log.skip(f"{stem}.txt", "line is not a box", f"line {at}, {error}")
                continue
            rows.append(row[1])
            raw.labels.append(str(row[0]) if names is None else names[row[0]] if row[0] < len(names) else None)
            raw.crowd.append(False)
            raw.outlines.append(row[2])
        raw.boxes = np.array(rows, np.float64).reshape(-1, 4)
        raws.append(raw)
        paths.append(str(picture))
    return Listed(Files(paths), raws)


def _yolo_line(line: str) -> tuple[int, list[float], list[list[float]]]:
    """(class, edges, outline) in fractions of the image, of "class cx cy w h" (without outline) or of a polygon."""
    words = line.split()
    if not words[0].isdecimal() or len(words[0]) > 9:
        raise ValueError(f"'{words[0][:20]}' is not a class number")
    numbers = [float(word) for word in words[1:]]
    if len(numbers) == 4:
        cx, cy, w, h = numbers
        return int(words[0]), [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], []
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        x, y = numbers[::2], numbers[1::2]
        edges = [min(x), min(y), max(x), max(y)] if all(map(math.isfinite, numbers)) else [math.nan] * 4
        return int(words[0]), edges, [numbers]
    raise ValueError(f"{len(numbers)} numbers after the class, not 4")


def _yolo_names(folder: Path, places: dict[str, tuple[Path, Path]]) -> tuple[str, ...] | None:
    near = dict.fromkeys([folder, *itertools.chain.from_iterable((t, t.parent, p.parent) for p, t in places.values())])
    for place in near:
        for file in (*sorted(place.glob("*.yaml")), *sorted(place.glob("*.yml"))):
            if names := _yaml_names(file):
                return names
        for name in _LISTS:
            if (place / name).is_file() and (words := _words(place / name, whole=True)):
                return tuple(printable(word) for word in words)
    return None


def _yaml_names(file: Path) -> tuple[str, ...] | None:
    """``names`` of a data.yaml, a list or a mapping from numbers; None if there is none."""
    import yaml

    try:
        if file.stat().st_size > _SMALL:
            return None
        stored = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise SensoriumError(f"{printable(str(file))}: not readable as YAML ({printable(str(error))[:120]}).") from None
    names = stored.get("names") if isinstance(stored, dict) else None
    if isinstance(names, dict):
        if not all(isinstance(k, int) and 0 <= k < len(names) for k in names):
            raise SensoriumError(f"{printable(str(file))}: 'names' must number the classes 0, 1, 2 and so on.")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        return None
    # Only scalars are converted to text: nested YAML aliases may expand to more than memory holds.
    return tuple(
        printable(str(name)) if isinstance(name, str | int | float) else str(i) for i, name in enumerate(names)
    )


# -------------------------------------------------------------------------------------------------------------- shared


def _split_places(folder: Path) -> dict[str, Path]:
    """Folders of splits, in ``folder`` or in its "images"; the folder itself as "train" if there are none."""
    for place in (folder, folder / "images"):
        if place.is_dir():
            entries = sorted(e for e in place.iterdir() if e.is_dir() and not litter(e.name))
            splits = {s: e for e in reversed(entries) if (s := split_of(e.name))}
            if "train" in splits:
                return splits
    return {"train": folder}


def _of_suffix(folder: Path, *suffixes: str) -> dict[str, Path]:
    """Files of a folder by stem, in natural order."""
    with os.scandir(folder) as entries:
        names = sorted((e.name for e in entries if not litter(e.name) and e.is_file()), key=natural_key)
    return {Path(n).stem: folder / n for n in names if Path(n).suffix.lower() in suffixes and n not in _LISTS}


def _lines(file: Path | None, log: Log) -> Iterator[str]:
    """Non-empty lines of a small text file."""
    if file is None:
        return
    try:
        if file.stat().st_size > _SMALL:
            raise ValueError(f"larger than {_SMALL >> 20} MB")
        text = file.read_text("utf-8", "replace")
    except (OSError, ValueError) as error:
        log.skip(file.name, "annotation cannot be read", str(error))
        return
    yield from (line for line in text.splitlines() if line.strip())


def _words(file: Path, whole: bool = False) -> list[str]:
    """The first word of each line, or the whole line."""
    lines = _lines(file, Log())
    return [line.strip() if whole else line.split()[0] for line in lines]
