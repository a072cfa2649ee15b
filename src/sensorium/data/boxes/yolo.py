"""YOLO: one text file of boxes per image, a line per object (:mod:`yolo_lines`).

images/ and labels/, or texts beside their images, at any depth; splits by data.yaml, by lists of pictures, or by
folders. Names come from data.yaml, classes.txt or obj.names (:mod:`yolo_config`). An image without a text file has no
objects; how many have none is noted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from sensorium.base.reading import printable
from sensorium.base.words import counted, plural
from sensorium.data.boxes.listed import Listed, Raw, Sets, about_equal
from sensorium.data.boxes.places import Scan, parted
from sensorium.data.boxes.yolo_config import NAME_LISTS, read_config
from sensorium.data.boxes.yolo_lines import Form, Row, edges_of, form_of, ordinary, row_of, shape_of
from sensorium.data.images.folders import Files
from sensorium.data.log import Log
from sensorium.data.names import folded, is_split, natural_key

_PICTURES = frozenset({"images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "frames"})
_TEXTS = ("labels", "label", "annotations", "txt", "txts")
_DEEP = 4  # levels above a picture on which a folder "labels" is looked for
Pairs = dict[str, dict[Path, Path | None]]
Rows = np.ndarray | list[tuple[int, Row]]
"""The lines of a file: float64 [n, 5] if all are ordinary, else (line, its class and numbers)."""


def read_yolo(
    scan: Scan, log: Log, classes: tuple[str, ...] = (), given: Path | None = None
) -> tuple[tuple[str, ...], Sets] | None:
    """(classes, splits) of pictures with texts; None if no picture has one. ``classes``: names of the numbers if the
    files have none; ``given``: the configuration to use."""
    texts = Texts(scan.root)
    if given is None and not any(texts.of(picture)[0] for picture in scan.pictures) and not scan.others:
        return None
    config = read_config(scan, given, log)
    pairs = _paired(config.parts or parted(scan.pictures, scan.root, log), texts, bool(config.parts), log)
    if not pairs:
        return None
    names = config.names or classes or None
    numbered = {} if names is None else {name: i for i, name in reversed(list(enumerate(names)))}
    rows = {text: _rows(text, numbered, scan, log) for part in pairs.values() for text in part.values() if text}
    form = form_of(_each(rows.values()), config.points)
    sets = {split: _set(part, rows, form, names, scan.root, log) for split, part in pairs.items()}
    _tell(pairs, rows, scan, numbered, log)
    if names is None:
        found = {name for listed in sets.values() for raw in listed.raws for name in raw.labels if name}
        names = tuple(sorted(found, key=natural_key))
        log.notes.append("There is no data.yaml or classes.txt with class names; classes are named by number.")
    log.notes += about_equal(enumerate(names), config.file)
    return tuple(dict.fromkeys(names)), sets


class Texts:
    """Finds the text of a picture: beside it, or in a folder "labels" in place of "images" or next to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stems: dict[Path, dict[str, Path]] = {}
        self._near: dict[Path, list[tuple[Path, bool]]] = {}

    def of(self, picture: Path) -> tuple[Path | None, bool]:
        """The text file of a picture, None if there is none; and whether their folders correspond, so that it is of no
        picture of that name in another folder."""
        stem = picture.stem
        for folder, sure in self._folders(picture.parent):
            stems = self._in(folder)
            if found := stems.get(stem) or stems.get(folded(stem)):
                return found, sure
        return None, False

    def of_all(self, pictures: Iterable[Path]) -> dict[Path, Path | None]:
        """The text of each picture. One that is surely of a picture is of no other that is only near it."""
        found = {picture: self.of(picture) for picture in pictures}
        taken = {text for text, sure in found.values() if sure}
        return {picture: None if text in taken and not sure else text for picture, (text, sure) in found.items()}

    def _folders(self, here: Path) -> list[tuple[Path, bool]]:
        if here not in self._near:
            near, flat = [], []
            parts = here.parts
            for i in range(len(parts) - 1, max(len(parts) - 1 - _DEEP, 0), -1):
                if parts[i].casefold() in _PICTURES:
                    near += [Path(*parts[:i], name, *parts[i + 1 :]) for name in self._names(Path(*parts[:i]))]
            near.append(here)
            for above in [here, *here.parents][:_DEEP]:
                if not above.is_relative_to(self.root) and above != here:
                    break
                names = self._names(above)
                near += [above / name / here.relative_to(above) for name in names]
                flat += [above / name for name in names]
            places = dict.fromkeys(flat, False) | dict.fromkeys(near, True)
            self._near[here] = [(place, places[place]) for place in dict.fromkeys([*near, *flat]) if self._in(place)]
        return self._near[here]

    @staticmethod
    def _names(folder: Path) -> list[str]:
        """Folders of texts in a folder, under the names that they really have."""
        try:
            there = {e.name.casefold(): e.name for e in folder.iterdir() if e.name.casefold() in _TEXTS}
        except OSError:
            return []
        return [there[name] for name in _TEXTS if name in there]

    def _in(self, folder: Path) -> dict[str, Path]:
        """Texts of a folder by their stem, as it is and folded."""
        if folder not in self._stems:
            try:
                files = [
                    f for f in folder.iterdir() if f.suffix.lower() == ".txt" and f.name.casefold() not in NAME_LISTS
                ]
            except OSError:
                files = []
            self._stems[folder] = {folded(f.stem): f for f in sorted(files)} | {f.stem: f for f in files}
        return self._stems[folder]


def _paired(parts: Mapping[str, list[Path]], texts: Texts, listed: bool, log: Log) -> Pairs:
    """The text of each picture by split. Folders of pictures without any text are left out unless they are ``listed``;
    so is a split without any."""
    pairs: Pairs = {}
    for split, pictures in parts.items():
        mine = texts.of_all(pictures)
        full = {picture.parent for picture, text in mine.items() if text}
        apart = {
            picture.parent: None
            for picture in mine
            if not listed and picture.parent not in full and not _is_of_images(picture.parent, texts.root)
        }
        if full and apart:
            count = sum(picture.parent in apart for picture in mine)
            first = printable(str(next(iter(apart))))
            are = plural(count, "is")
            log.notes.append(
                f"{counted(count, 'picture')} {are} in folders without label files and {are} not used: {first}."
            )
            mine = {picture: text for picture, text in mine.items() if picture.parent not in apart}
        if full:
            pairs[split] = mine
        elif pictures and split != "train":
            many = len(pictures)
            log.notes.append(
                f"The {counted(many, f'{split} picture')} {plural(many, 'has')} no {plural(many, 'label file')}; "
                f"{plural(many, 'it is')} not used."
            )
    return pairs


def _is_of_images(folder: Path, root: Path) -> bool:
    below = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
    return any(part.casefold() in _PICTURES for part in below)


def _rows(text: Path, numbered: Mapping[str, int], scan: Scan, log: Log) -> Rows:
    """The lines that have a class and numbers."""
    lines = scan.lines(text, log)
    if (plain := ordinary(lines)) is not None:
        return plain
    rows = []
    for at, line in enumerate(lines, 1):
        try:
            rows.append((at, row_of(line, numbered)))
        except ValueError as error:
            log.skip(text.name, "line is not a box", f"line {at}, {error}")
    return rows


def _each(rows: Iterable[Rows]) -> Iterator[Row]:
    """The lines of all files; one ordinary line stands for all of its file, which have four numbers like it."""
    for mine in rows:
        if not isinstance(mine, np.ndarray):
            yield from (row for _, row in mine)
        elif len(mine):
            yield Row(int(mine[0, 0]), mine[0, 1:], counted=False)


def _set(
    part: Mapping[Path, Path | None],
    rows: Mapping[Path, Rows],
    form: Form,
    names: tuple[str, ...] | None,
    root: Path,
    log: Log,
) -> Listed:
    raws = []
    several = len({picture.parent for picture in part}) > 1
    unused = 0

    def named(label: int) -> str | None:
        return str(label) if names is None else names[label] if label < len(names) else None

    for picture, text in part.items():
        name = str(picture.relative_to(root)) if several and picture.is_relative_to(root) else picture.name
        raw = Raw(name, len(raws), len(raws), None, relative=True)
        raws.append(raw)
        mine: Rows = rows[text] if text else []
        if isinstance(mine, np.ndarray):
            raw.boxes = edges_of(mine[:, 1:])
            raw.labels = [named(int(label)) for label in mine[:, 0]]
            raw.crowd = [False] * len(mine)
            continue
        boxes = []
        for at, row in mine:
            try:
                shape = shape_of(row, form)
            except ValueError as error:
                log.skip(printable(text.name if text else name), "line is not a box", f"line {at}, {error}")
                continue
            unused += shape.unused > 0
            boxes.append(shape.edges)
            raw.labels.append(named(row.label))
            raw.crowd.append(False)
            raw.outlines.append([] if shape.polygon is None else [shape.polygon])
        raw.boxes = np.array(boxes, np.float64).reshape(-1, 4)
    edges = np.concatenate([raw.boxes for raw in raws] or [np.zeros((0, 4))])
    if len(edges) and np.median(edges[:, 2:]) > 2:
        log.notes.append(
            "Most boxes of the label files are no fractions of their images, but numbers above 2: are they pixels?"
        )
    if unused:
        what = "key points" if form.points else "a confidence or the number of a track"
        log.notes.append(f"{counted(unused, 'line')} {plural(unused, 'has')} {what} after the box, which is not used.")
    return Listed(Files([str(picture) for picture in part]), raws)


def _tell(pairs: Pairs, rows: Mapping[Path, Rows], scan: Scan, numbered: Mapping[str, int], log: Log) -> None:
    """Note pictures without a text, texts of several pictures, and texts without a picture."""
    for split, part in pairs.items():
        if without := sum(text is None for text in part.values()):
            log.notes.append(
                f"{without:,} of {counted(len(part), f'{split} picture')} {plural(without, 'has')} no label file: "
                f"{plural(without, 'it is')} taken to have no objects."
            )
    owners = Counter(text for text in {p: t for part in pairs.values() for p, t in part.items()}.values() if text)
    shared = [text for text, count in owners.items() if count > 1]
    if shared:
        log.notes.append(
            f"{counted(len(shared), 'label file')} {plural(len(shared), 'is')} of several pictures of one name each, "
            f"the first is {printable(shared[0].name)}."
        )
    folders = {text.parent for text in rows}
    for text in scan.texts:
        if (
            text.parent in folders
            and text not in rows
            and text.name.casefold() not in NAME_LISTS
            and not is_split(text.stem)
        ):
            lines = scan.lines(text, Log())[:3]
            if not lines or any(_is_row(line, numbered) for line in lines):
                log.skip(text.name, "label file without a picture")


def _is_row(line: str, numbered: Mapping[str, int]) -> bool:
    try:
        return len(row_of(line, numbered).numbers) >= 4
    except ValueError:
        return False
