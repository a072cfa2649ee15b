"""`sensorium detect`: the objects of pictures drawn into copies, written as a file for other tools, and cut out.

The file is one of ``FORMS``:

coco  ``detections.json``: COCO's results, ``{"image_id", "category_id", "bbox": [left, top, width, height], "score"}``,
      plus ``file_name`` and ``category``. Images are numbered from 1 in the order given, the classes of a run from 1; a
      published detector has its own numbers.
json  ``detections.json``: a list of pictures, each with its size and ``objects``: name, score and box (left, top, right,
      bottom).
csv   ``detections.csv``: one row an object.
yolo  ``labels/NAME.txt``, one for each picture, in folders as the pictures are (class, center, width, height in units of
      the picture), and ``data.yaml`` with the names of the classes: to be corrected and trained on.

All are in pixels of the original pictures (``yolo``: of their size), and have no picture outside those given.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Literal, get_args

from sensorium.base.files import check_writable, unlinked, write_json, write_text
from sensorium.base.reading import printable
from sensorium.base.terminal import bar
from sensorium.base.words import counted
from sensorium.data.images.decode import BadImage
from sensorium.data.images.endings import SHOWN
from sensorium.data.images.folders import Files
from sensorium.data.images.given import Given, given
from sensorium.data.images.sets import EncodedImages, measure
from sensorium.data.log import Log
from sensorium.data.names import files_below
from sensorium.data.output import check_place, lies_in
from sensorium.errors import SensoriumError
from sensorium.pictures.boxes import with_boxes
from sensorium.pictures.images import save_picture
from sensorium.recipe.info import data_of
from sensorium.use.detect import Box, Finder, checked, open_finder

NAMED = 5  # skipped images that are listed by name
Form = Literal["coco", "yolo", "csv", "json"]
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True)
class Seen:
    """A picture and its objects. ``name``: its path, from the folder that all pictures share; ``stem``: the name, used
    once, of what is written for it; ``size``: (height, width)."""

    name: str
    stem: str
    size: tuple[int, int]
    boxes: list[Box]


def find_in(
    run: Path, images: Sequence[Path], *, threshold: float, out: Path | None, form: Form, crops: Path | None
) -> str:
    """Detect the objects of ``images`` (files, or folders of them), draw them into copies in the folder ``out`` and write
    the file of ``form`` there; with ``crops`` also cut each object out, into a folder for each class. Returns lines that
    list what was found, and which images could not be read."""
    checked(threshold)
    if form not in FORMS:
        raise SensoriumError(f"--format {form}: choose {', '.join(FORMS)}.")
    target, apart = _places(run, images, out, crops)
    wanted = pictures_of(images, apart)
    finder = open_finder(run)
    if out is None:
        unlinked(target)
    files = EncodedImages(Files([str(path) for path in wanted]), [path.name for path in wanted])
    scale, scaled = measure([files], finder.scale)
    seen: list[Seen] = []
    skipped: list[str] = []
    stems, names = _stems(), _names(wanted)
    with bar("detecting", True) as advance:
        for number, path in enumerate(wanted, 1):
            try:
                picture = given(path, scale)
            except BadImage as bad:
                skipped.append(f"skipped {bad.name}: {bad.reason}")
            else:
                found = finder.boxes(finder.find(picture, threshold))
                seen.append(Seen(names[path], stems(path.stem), picture.size, found))
                _draw(picture, seen[-1], finder, target)
                if crops:
                    _cut(picture, seen[-1], crops)
            if advance is not None:
                advance(number, len(wanted))
    if not seen:
        which = "the picture cannot" if len(wanted) == 1 else f"none of {len(wanted):,} pictures can"
        raise SensoriumError(f"{which} be read: {skipped[0].removeprefix('skipped ')}.")
    written = WRITERS[form](seen, finder, target)
    told = _told(seen, skipped, [written, *([crops] if crops else [])])
    return "\n".join([*filter(None, [scaled]), *told])


def pictures_of(paths: Sequence[Path], apart: Sequence[Path] = ()) -> list[Path]:
    """The image files among ``paths`` and in folders of them, in order, each once; files in the folders ``apart`` are left
    out."""
    if not paths:
        raise SensoriumError("give pictures, or folders of them: sensorium detect RUN PICTURES")
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            files = list(_below(path, apart))
            if not files:
                raise SensoriumError(f"there is no picture in '{printable(str(path))}'.")
        elif path.is_file():
            files = [path]
        else:
            raise SensoriumError(f"there is no picture or folder '{printable(str(path))}'.")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _below(folder: Path, apart: Sequence[Path]) -> Iterator[Path]:
    left = [one.resolve() for one in apart]
    for path in files_below(folder, Log()):
        own = any(path.resolve().is_relative_to(one) for one in left)
        if path.suffix.lower() in SHOWN and not own and path.is_file():
            yield path


def _places(run: Path, images: Sequence[Path], out: Path | None, crops: Path | None) -> tuple[Path, list[Path]]:
    """Where drawn pictures go, and all folders that are written to. Raises SensoriumError for one that can't be, or
    that has the pictures in it."""
    target = out or (run if run.is_dir() else run.parent) / "found"
    if out is None:
        check_place(target, folder=True)
    for folder, option in ((out, "--out"), (crops, "--crops")):
        if folder is not None:
            # The folder of a single picture counts, too, as the drawn copy of a PNG would replace it.
            beside = [one.parent for one in images if not one.is_dir() and lies_in(one.parent, folder)]
            folders = [one for one in images if one.is_dir()]
            check_place(folder, *folders, *beside, *data_of(run), option=option, folder=True)
    for folder in filter(None, (target, crops)):
        check_writable(folder / "detections.json")
    return target, [target, *([crops] if crops else [])]


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Each path from the deepest folder that holds all, so that equal names in two folders differ."""
    whole = [path.absolute() for path in paths]
    try:
        above = Path(commonpath([path.parent for path in whole]))
    except ValueError:  # on several drives
        return {path: printable(path.name) for path in paths}
    return {path: printable(one.relative_to(above).as_posix()) for path, one in zip(paths, whole, strict=True)}


def _stems() -> Callable[[str], str]:
    """Of the stem of a picture's name, one that was not given before, also where case makes no difference."""
    taken: set[str] = set()

    def free(stem: str) -> str:
        name, n = stem, 1
        while name.lower() in taken:
            n += 1
            name = f"{stem}-{n}"
        taken.add(name.lower())
        return name

    return free


def _draw(picture: Given, seen: Seen, finder: Finder, folder: Path) -> None:
    across, down = picture.image.width / seen.size[1], picture.image.height / seen.size[0]
    edges = [[b.left * across, b.top * down, b.right * across, b.bottom * down] for b in seen.boxes]
    labels, scores = [b.label for b in seen.boxes], [b.score for b in seen.boxes]
    save_picture(with_boxes(picture.image, edges, labels, finder.classes, scores), folder / f"{seen.stem}.png")


def _cut(picture: Given, seen: Seen, folder: Path) -> None:
    """Each object as a picture of its own, ``folder/CLASS/NAME-1.png``; a box of no whole pixel gets the one it is in."""
    across, down = picture.image.width / seen.size[1], picture.image.height / seen.size[0]
    for number, box in enumerate(seen.boxes, 1):
        left, top = (
            min(int(box.left * across), picture.image.width - 1),
            min(int(box.top * down), picture.image.height - 1),
        )
        right, bottom = max(left + 1, round(box.right * across)), max(top + 1, round(box.bottom * down))
        cut = picture.image.crop((left, top, min(right, picture.image.width), min(bottom, picture.image.height)))
        save_picture(cut, folder / folder_name(box.name) / f"{seen.stem}-{number}.png")


def folder_name(name: str) -> str:
    """A class's name as that of a folder, on any system."""
    kept = "".join(c if c.isprintable() and c not in '<>:"/\\|?*' else "_" for c in name).strip(" .")
    return kept[:80] or "_"


# --- the files ---


def _coco(seen: Sequence[Seen], finder: Finder, folder: Path) -> Path:
    rows = []
    for number, one in enumerate(seen, 1):
        for box in one.boxes:
            bbox = [round(v, 2) for v in (box.left, box.top, box.right - box.left, box.bottom - box.top)]
            row = {
                "image_id": number,
                "category_id": box.label + finder.first,
                "bbox": bbox,
                "score": round(box.score, 5),
            }
            rows.append(row | {"file_name": one.name, "category": box.name})
    return write_json(folder / "detections.json", rows)


def _json(seen: Sequence[Seen], finder: Finder, folder: Path) -> Path:
    rows = [
        {
            "file_name": one.name, "width": one.size[1], "height": one.size[0],
            "objects": [
                {"name": b.name, "score": round(b.score, 5), "box": [round(v, 2) for v in b[:4]]} for b in one.boxes
            ],
        }
        for one in seen
    ]  # fmt: skip
    return write_json(folder / "detections.json", rows)


def _csv(seen: Sequence[Seen], finder: Finder, folder: Path) -> Path:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["file_name", "class", "score", "left", "top", "right", "bottom", "width", "height"])
    for one in seen:
        for box in one.boxes:
            edges = [f"{v:.2f}" for v in box[:4]]
            writer.writerow([one.name, box.name, f"{box.score:.5f}", *edges, one.size[1], one.size[0]])
    return write_text(folder / "detections.csv", table.getvalue())


def _yolo(seen: Sequence[Seen], finder: Finder, folder: Path) -> Path:
    stems = _stems()
    for one in seen:
        lines = []
        for box in one.boxes:
            width, height = one.size[1], one.size[0]
            x, y = (box.left + box.right) / 2 / width, (box.top + box.bottom) / 2 / height
            sides = (box.right - box.left) / width, (box.bottom - box.top) / height
            lines.append(f"{box.label} {x:.6f} {y:.6f} {sides[0]:.6f} {sides[1]:.6f}\n")
        write_text(folder / "labels" / f"{stems(str(Path(one.name).with_suffix('')))}.txt", "".join(lines))
    highest = max((box.label for one in seen for box in one.boxes), default=-1) + 1
    names = finder.classes or tuple(f"class {i}" for i in range(highest))
    told = "".join(f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in enumerate(names))
    return write_text(folder / "data.yaml", f"path: .\nnames:\n{told}").parent / "labels"


WRITERS: dict[Form, Callable[[Sequence[Seen], Finder, Path], Path]] = {
    "coco": _coco, "yolo": _yolo, "csv": _csv, "json": _json,
}  # fmt: skip


def _told(seen: Sequence[Seen], skipped: list[str], written: Sequence[Path]) -> list[str]:
    each = Counter(box.name for one in seen for box in one.boxes)
    of = f": {', '.join(f'{n:,} {printable(name)}' for name, n in each.most_common(8))}" if each else ""
    head = f"{counted(each.total(), 'object')} in {counted(len(seen), 'picture')}{of}"
    lines = [head, *skipped[:NAMED]]
    if len(skipped) > NAMED:
        lines.append(f"... {counted(len(skipped), 'picture')} were skipped in all")
    return [*lines, *(printable(str(path)) for path in written)]
