"""Detection data of the Hugging Face hub: Parquet files, or a metadata.jsonl beside its images, with a column of boxes.

    {"image": {bytes, path}, "objects": {"bbox": [[x, y, w, h], ...], "category": [0, ...]}}    Parquet
    {"file_name": "a.jpg", "objects": {"bbox": [[x, y, w, h], ...], "categories": [0, ...]}}    a line of metadata.jsonl
The column may also be a list of objects with one box each, have another name, or be columns "bbox" and "category" of
the row itself. Boxes are COCO's: left, top, width and height in pixels. Names of classes come from the schema that the hub's
library writes into a Parquet file; without one classes are named by their numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sensorium.base.parquet import Parquet
from sensorium.base.reading import lines, parse_json, printable
from sensorium.base.words import counted, plural
from sensorium.data.boxes.coco import box_of
from sensorium.data.boxes.listed import Listed, Raw, Sets, about_equal, number, say_fractions, size_stated
from sensorium.data.columns import PATHS, as_text, key, pick
from sensorium.data.images.cells import Cells
from sensorium.data.images.folders import Files
from sensorium.data.images.named import Pictures
from sensorium.data.images.tables import image_column
from sensorium.data.log import Log
from sensorium.data.names import divide, natural_key
from sensorium.errors import SensoriumError

_BOXES = ("bbox", "bboxes", "box", "boxes")
_CLASSES = (
    "category", "categories", "categoryid", "categoryids", "label", "labels", "class", "classes", "classid", "classids",
    "classlabel", "classlabels", "categoryname", "categorynames", "name", "names",
)  # fmt: skip
_CROWD = ("iscrowd", "crowd", "difficult", "isdifficult")
_AREAS = ("area", "areas")
_OF_OBJECTS = (*_BOXES, *_CLASSES, *_CROWD, *_AREAS)
_PEEKED = 20  # files or lines that show whether there are boxes
_DEEP = 8  # levels of a schema
_THING = "object"


class Row(NamedTuple):
    """``name`` of a row for messages, ``place`` of its image (a path as it is said, or file, row group and row), its
    columns by :func:`key`, and those of its ``objects``."""

    name: str
    place: Any
    columns: dict[str, Any]
    objects: Any


@dataclass
class Table:
    """A file whose rows have boxes. ``images``: the Parquet column of encoded images, None if rows name files;
    ``names`` of the classes, () if not given."""

    path: Path
    column: str
    images: str | None = None
    names: tuple[str, ...] = ()
    file: Parquet | None = field(default=None, repr=False)


def may_be_hub(path: Path) -> bool:
    """Whether a file is of a kind that may have boxes in a column."""
    name = path.name.lower()
    return name.endswith(".parquet") or name in ("metadata.jsonl", "metadata.jsonl.gz")


def read_hub(
    files: Sequence[Path], root: Path, pictures: Sequence[Path], log: Log
) -> tuple[tuple[str, ...], Sets] | None:
    """(classes, splits) of the files with a column of boxes; None if the first have none. ``pictures``: those beside
    them, of which the unused are noted."""
    tables = {file: table for file in files[:_PEEKED] if (table := _table(file))}
    if not tables:
        return None
    tables |= {file: table for file in files[_PEEKED:] if (table := _table(file))}
    if rest := len(files) - len(tables):
        first = printable(next(file for file in files if file not in tables).name)
        log.notes.append(
            f"{counted(rest, 'file')} beside those with boxes {plural(rest, 'has')} none and {plural(rest, 'is')} "
            f"not used, the first is {first}."
        )
    used: set[str] = set()
    sets = {
        split: _set([tables[file] for file in mine], split, used, log)
        for split, mine in divide(tables, root, log).items()
    }
    names = list(dict.fromkeys(chain.from_iterable(table.names for table in tables.values())))
    found = {name for part in sets.values() for raw in part.raws for name in raw.labels if name}
    for table in tables.values():
        log.notes += [note for note in about_equal(enumerate(table.names), table.path.name) if note not in log.notes]
    if not names and found - {_THING} and all(name.isdecimal() for name in found):
        log.notes.append("There are no names of classes; classes are named by number.")
    log.notes.append("Boxes are read as left, top, width and height, as COCO's.")
    beside = {Path(path).parent for path in used}
    unused = [p for p in pictures if str(p) not in used and p.parent in beside]
    if unused:
        n = len(unused)
        log.notes.append(
            f"{counted(n, 'picture')} {plural(n, 'is')} not in the metadata and not used, the first is "
            f"{printable(unused[0].name)}."
        )
    return tuple(names) or tuple(sorted(found, key=natural_key)), sets


def _table(path: Path) -> Table | None:
    """The file, if it has boxes; None if it has none or can't be read, which the readers of images tell."""
    try:
        if not path.name.lower().endswith(".parquet"):
            for _, row in islice(_json_rows(path, Log()), _PEEKED):
                names = {key(name) for name in row}
                for name, value in row.items():
                    fields = _fields(value)
                    if any(_is_boxes(fields.get(box)) for box in _BOXES):
                        return Table(path, name)
                    if key(name) in _BOXES and value and _is_boxes(value) and names & set(_CLASSES):
                        return Table(path, "")
            return None
        file = Parquet(path)
    except SensoriumError:
        return None
    boxed = [name for name, kind in zip(file.names, file.types, strict=True) if set(_children(kind)) & set(_BOXES)]
    flat = [n for n, kind in zip(file.names, file.types, strict=True) if key(n) in _BOXES and _is_list(kind)]
    # Boxes of words in a document have no class.
    if not boxed and (not flat or pick(file.names, _CLASSES) is None):
        return None
    column = "objects" if "objects" in boxed else boxed[0] if boxed else ""
    return Table(path, column, names=_schema_names(file, column), file=file)


def _set(tables: Sequence[Table], split: str, used: set[str], log: Log) -> Listed:
    raws: dict[Any, Raw] = {}
    boxes: dict[Any, list[list[float]]] = {}
    cells: dict[int, str] = {}
    for at, table in enumerate(tables):
        pictures, unnamed = Pictures(table.path, split), 0
        mine: list[Raw] = []
        for row in _rows(table, at, split, log):
            place = row.place
            if table.images is None:
                place = pictures.find(as_text(place))
                if not isinstance(place, Path):
                    log.skip(row.name, "image is missing", place)
                    continue
                used.add(str(place))
            if place not in raws:
                size = size_stated(row.columns.get("width"), row.columns.get("height"))
                raws[place] = Raw(row.name, row.columns.get("imageid", len(raws)), len(raws), size)
                boxes[place] = []
                mine.append(raws[place])
            else:
                log.counts["image entry of the same file as another; their boxes are joined"] += 1
            unnamed += _add(raws[place], boxes[place], row.objects, table.names, log)
            raws[place].boxes = np.array(boxes[place], np.float64).reshape(-1, 4)
        if table.images is not None:
            cells[at] = table.images
        say_fractions(mine, table.path.name, log)
        where = printable(table.path.name)
        log.notes += pictures.notes(where)
        if unnamed:
            log.notes.append(f"{where}: {counted(unnamed, 'box')} {plural(unnamed, 'has')} no class; it is '{_THING}'.")
    if cells and len(cells) < len(tables):
        raise SensoriumError(f"{tables[0].path}: some files have images and others name them; give one kind.")
    if cells:
        places = np.array(list(raws), np.int64).reshape(-1, 3)
        return Listed(Cells([table.path for table in tables], cells, places), list(raws.values()))
    return Listed(Files([str(place) for place in raws]), list(raws.values()))


def _add(raw: Raw, boxes: list[list[float]], objects: Any, names: Sequence[str], log: Log) -> int:
    """Add the objects of a row; the number of those without a class."""
    fields = _fields(objects)
    given = next((fields[name] for name in _BOXES if isinstance(fields.get(name), list)), [])
    classes, crowd, areas = (
        next((fields[name] for name in wanted if isinstance(fields.get(name), list)), [])
        for wanted in (_CLASSES, _CROWD, _AREAS)
    )
    unnamed = 0
    for i, said in enumerate(given):
        box = box_of({"bbox": said}, log)
        if box is None:
            log.skip(raw.name, "annotation without a box", repr(said)[:80])
            continue
        text = as_text(classes[i]) if i < len(classes) else None
        unnamed += text is None
        boxes.append(box)
        raw.labels.append(_THING if text is None and not names else _class(text, names))
        raw.crowd.append(i < len(crowd) and number(crowd[i]) > 0)
        raw.areas.append(number(areas[i]) if i < len(areas) else np.nan)
    return unnamed if not names else 0


def _class(text: str | None, names: Sequence[str]) -> str | None:
    """The name of a class that is given as a number or as a name."""
    if text is not None and names and text.isascii() and text.isdecimal() and len(text) < 9:
        return names[int(text)] if int(text) < len(names) else None
    return None if text is None else printable(text)


def _rows(table: Table, at: int, split: str, log: Log) -> Iterator[Row]:
    if table.file is None:
        for line, row in _json_rows(table.path, log):
            columns = {key(name): value for name, value in row.items()}
            said = next((columns[name] for name in ("filename", *PATHS) if name in columns), None)
            said = said.get("path") if isinstance(said, dict) else said
            name = said if isinstance(said, str) else f"{table.path.name} line {line}"
            yield Row(name, said if isinstance(said, str) else None, columns, row.get(table.column, row))
        return
    file = table.file
    image, kind = image_column(file, table.path, split, log)
    if file.names[image] == table.column:
        raise SensoriumError(
            f"{file.where}: column '{printable(table.column)}' has boxes, but there is no column of images; "
            "add one called image, or file_name."
        )
    file.check_groups()
    if kind == "bytes":
        table.images = file.names[image]
    wanted = [i for i in (pick(file.names, (name,)) for name in ("imageid", "width", "height")) if i is not None]
    wanted += [image] if kind != "bytes" else []
    wanted += [i for i, n in enumerate(file.names) if n == table.column or (not table.column and key(n) in _OF_OBJECTS)]
    wanted = [i for i in dict.fromkeys(wanted) if i != image or kind != "bytes"]
    for group, number_, values in file.rows(wanted):
        given = dict(zip((file.names[i] for i in wanted), values, strict=True))
        place = (at, group, number_) if kind == "bytes" else given[file.names[image]]
        columns = {key(name): value for name, value in given.items()}
        name = f"{table.path.name}[{group}:{number_}]" if kind == "bytes" else as_text(place) or ""
        yield Row(printable(name), place, columns, given[table.column] if table.column else given)


def _json_rows(path: Path, log: Log) -> Iterator[tuple[int, dict[str, Any]]]:
    for at, line in lines(path):
        if not line.strip():
            continue
        try:
            row = parse_json(line, "")
        except SensoriumError:
            row = None
        if isinstance(row, dict):
            yield at, row
        else:
            log.skip(f"{path.name} line {at}", "line is not a JSON object")


def _fields(objects: Any) -> dict[str, Any]:
    """The columns of objects by :func:`key`, of an object of lists or a list of objects."""
    if isinstance(objects, dict):
        return {key(str(name)): value for name, value in objects.items()}
    rows = [row for row in objects if isinstance(row, dict)] if isinstance(objects, list) else []
    names = dict.fromkeys(str(name) for row in rows for name in row)
    return {key(name): [row.get(name) for row in rows] for name in names}


def _is_boxes(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(one, dict) or (isinstance(one, list) and len(one) == 4) for one in value[:1])


def _is_list(kind: Any) -> bool:
    """Whether a Parquet type is a list of lists or of structs."""
    from pyarrow import types

    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    if not any(check(kind) for check in lists):
        return False
    return types.is_struct(kind.value_type) or any(check(kind.value_type) for check in lists)


def _children(kind: Any) -> Iterable[str]:
    """The fields of a struct, or of the structs of a list."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    return [key(kind.field(i).name) for i in range(kind.num_fields)] if types.is_struct(kind) else []


def _schema_names(file: Parquet, column: str) -> tuple[str, ...]:
    """Names of classes in the schema of the hub's library; () if it has none."""
    try:
        features = parse_json(file.metadata[b"huggingface"], "")["info"]["features"]
        names = _class_label(features[column] if column else features, False, _DEEP)
    except (KeyError, TypeError, SensoriumError):
        return ()
    return tuple(printable(str(name)) for name in names)


def _class_label(feature: Any, within: bool, deep: int) -> Sequence[Any]:
    """The names of the ClassLabel below a field for classes."""
    if isinstance(feature, list):
        feature = dict(enumerate(feature))
    if not isinstance(feature, dict) or not deep:
        return ()
    if within and isinstance(names := feature.get("names"), list):
        return names
    below = (_class_label(value, within or key(str(name)) in _CLASSES, deep - 1) for name, value in feature.items())
    return next((names for names in below if names), ())
