"""Pascal VOC: one XML file of boxes per image.

Annotations/*.xml and JPEGImages/, splits in ImageSets/Main; or XML files beside their images, flat or in folders of
splits. Corners are pixel indices from 1, inclusive: the edges of a box are (xmin - 1, ymin - 1, xmax, ymax).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from sensorium.base.reading import brief, printable, read_bytes
from sensorium.base.words import counted, plural
from sensorium.data.boxes.listed import Listed, Raw, Sets, number, size_stated
from sensorium.data.boxes.places import Scan, parted
from sensorium.data.images.folders import Files
from sensorium.data.log import Log
from sensorium.data.names import folded, name_parts, natural_key
from sensorium.errors import SensoriumError

_SMALL = 16 << 20  # maximum bytes of an image's annotation
_TEXTS = ("annotations", "annotation", "xml", "xmls", "labels")
_PICTURES = frozenset({"jpegimages", "images", "image", "imgs", "img", "pictures", "photos"})


def read_voc(scan: Scan, log: Log) -> tuple[tuple[str, ...], Sets] | None:
    """(classes, splits) of the XML files in a folder; None if it has none."""
    if not scan.xmls:
        return None
    mine = Log()
    used: set[Path] = set()
    places = _places(scan, mine)
    sets = {split: _read_set(files, scan, used, mine) for split, files in places.items()}
    foreign = mine.counts["XML file that is no annotation"]
    if not any(listed.raws for listed in sets.values()) and (foreign or scan.texts):
        none = foreign + mine.counts["annotation cannot be read"]
        log.notes.append(f"{counted(none, 'XML file')} {plural(none, 'is')} no annotation in Pascal VOC's form.")
        return None
    log.skipped += mine.skipped
    log.counts += mine.counts
    log.notes += mine.notes
    beside = {picture.parent for picture in used}
    if unused := [picture for picture in scan.pictures if picture not in used and picture.parent in beside]:
        n = len(unused)
        log.notes.append(
            f"{counted(n, 'picture')} {plural(n, 'has')} no annotation that is used, "
            f"the first is {printable(unused[0].name)}."
        )
    found = {name for listed in sets.values() for raw in listed.raws for name in raw.labels if name}
    difficult = sum(sum(raw.crowd) for listed in sets.values() for raw in listed.raws)
    if difficult:
        log.notes.append(
            f"{counted(difficult, 'box')} {plural(difficult, 'is')} marked difficult: "
            "ignored in training and evaluation."
        )
    return tuple(sorted(found, key=natural_key)), {
        s: listed for s, listed in sets.items() if listed.raws or s == "train"
    }


def _places(scan: Scan, log: Log) -> dict[str, list[Path]]:
    """Annotations by split: by lists in ImageSets/Main, else by folders."""
    within = [xml for xml in scan.xmls if any(p.casefold() in _TEXTS for p in xml.relative_to(scan.root).parts[:-1])]
    xmls = within or scan.xmls
    lists = {}
    for text in scan.texts:
        if [part.casefold() for part in text.parent.parts[-2:]] == ["imagesets", "main"]:
            lists[text.stem.casefold()] = text
    lists = {split: lists[split] for split in ("train", "trainval", "val", "test") if split in lists}
    if not lists:
        return parted(xmls, scan.root, log)
    by_stem: dict[str, list[Path]] = {}
    for xml in xmls:
        by_stem.setdefault(xml.stem, []).append(xml)
    found: dict[str, list[Path]] = {}
    for split, file in lists.items():
        words = [parts[0] for line in scan.lines(file, log) if (parts := line.split())]
        stems = dict.fromkeys(
            word if word in by_stem else Path((name_parts(word) or [word])[-1]).stem for word in words
        )
        if missing := [stem for stem in stems if stem not in by_stem]:
            n = len(missing)
            log.notes.append(
                f"{counted(n, 'name')} in {printable(file.name)} {plural(n, 'has')} no annotation, "
                f"the first is {printable(missing[0])}."
            )
        found[split] = [xml for stem in stems for xml in by_stem.get(stem, ())]
    both = found.pop("trainval", None)
    held = {xml for split in ("val", "test") for xml in found.get(split, ())}
    if "train" not in found:
        found["train"] = [xml for xml in (both if both is not None else xmls) if xml not in held]
    if rest := len(set(xmls) - held - set(found["train"])):
        log.notes.append(f"{counted(rest, 'annotation')} {plural(rest, 'is')} in none of the lists that are used.")
    return found


def _read_set(files: Iterable[Path], scan: Scan, used: set[Path], log: Log) -> Listed:
    raws: list[Raw] = []
    paths: dict[Path, int] = {}
    for file in files:
        try:
            root = parse_xml(file)
        except SensoriumError as error:
            log.skip(file.name, "annotation cannot be read", str(error).partition(": ")[2])
            continue
        if root.tag.rpartition("}")[2] != "annotation":
            log.skip(file.name, "XML file that is no annotation", f"it is of '{printable(root.tag)[:40]}'")
            continue
        picture = _picture(file, root, scan)
        if picture is None:
            log.skip(file.name, "image is missing", f"no {file.stem}")
            continue
        if picture in paths:
            log.skip(file.name, "annotation of an image that another describes", printable(picture.name))
            continue
        size = size_stated(*((root.findtext(f"size/{k}") or "") for k in ("width", "height")))
        raw = Raw(picture.name, len(raws), len(raws), size)
        _add_objects(raw, root, log)
        paths[picture] = len(raws)
        raws.append(raw)
    used.update(paths)
    return Listed(Files([str(path) for path in paths]), raws)


def _add_objects(raw: Raw, root: ElementTree.Element, log: Log) -> None:
    rows = []
    for thing in root.iter("object"):
        for field in ("name", "bndbox"):
            if len(thing.findall(field)) > 1:
                log.skip(raw.name, f"object with two of '{field}'; the first is used", f"object {len(rows) + 1}")
        x1, y1, x2, y2 = (number(thing.findtext(f"bndbox/{k}") or "") for k in ("xmin", "ymin", "xmax", "ymax"))
        # Some tools count from 0: a 0 is not decremented.
        rows.append([x1 - 1 if x1 >= 1 else x1, y1 - 1 if y1 >= 1 else y1, x2, y2])
        raw.labels.append(printable((thing.findtext("name") or "").strip()) or None)
        raw.crowd.append((thing.findtext("difficult") or "").strip().casefold() in ("1", "1.0", "true"))
    raw.boxes = np.array(rows, np.float64).reshape(-1, 4)


def _picture(file: Path, root: ElementTree.Element, scan: Scan) -> Path | None:
    """The picture of an annotation: of its stem, else of the file name in it. Among several of that name, the one that
    the annotation names, of its folder, or of its folder's counterpart."""
    said = name_parts(root.findtext("filename") or "")
    folder = name_parts(root.findtext("folder") or "")
    alike = scan.by_stem.get(folded(file.stem), [])
    if not alike and said:
        stem = Path(said[-1]).stem
        alike = [p for p in scan.by_stem.get(folded(stem), ()) if folded(p.name) == folded(said[-1])]

    def fits(picture: Path) -> tuple[bool, ...]:
        here = picture.relative_to(scan.root).parts[:-1]
        there = file.relative_to(scan.root).parts[:-1]
        return (
            picture.parent == file.parent,
            _rest(here, _PICTURES) == _rest(there, _TEXTS),
            bool(said) and folded(picture.name) == folded(said[-1]),
            bool(folder) and folder[-1] in here,
            any(part.casefold() in _PICTURES for part in here),
        )

    ranked = sorted(alike, key=fits, reverse=True)
    if said:  # beside each other, of one stem: the name decides
        exact = [p for p in ranked if folded(p.name) == folded(said[-1]) and fits(p)[:2] == fits(ranked[0])[:2]]
        ranked = exact + ranked
    if len(ranked) > 1 and ranked[0] != ranked[1] and fits(ranked[0]) == fits(ranked[1]):
        return None
    return ranked[0] if ranked else None


def _rest(parts: tuple[str, ...], without: Iterable[str]) -> list[str]:
    return [part for part in parts if part.casefold() not in without]


def parse_xml(file: Path) -> ElementTree.Element:
    """The root of a small XML file. A document type, and so every entity, is an error: nothing is expanded or fetched.

    Raises SensoriumError "FILE: what is wrong".
    """
    try:
        data = read_bytes(file, most=_SMALL)
    except SensoriumError as error:
        raise SensoriumError(f"{printable(file.name)}: {str(error).partition(': ')[2]}") from None
    # Text that is converted while it is read no longer is what it declares.
    converted = re.match(rb"<\?xml[^>]{0,80}encoding=.(utf|ucs)", data, re.IGNORECASE)
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate("utf-8" if converted else None)

    def refuse(*_: Any) -> None:
        raise ValueError("it declares a document type, which is not supported")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, LookupError, ValueError, AssertionError, RecursionError) as error:
        raise SensoriumError(f"{printable(file.name)}: {brief(error)}") from None
