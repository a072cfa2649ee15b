"""Tables of images: CSV of paths and labels, Parquet of paths or of image bytes.

Columns are recognized by name, case-insensitively. Paths are relative to the table. A Parquet image column may hold
bytes, or the {bytes, path} of the Hugging Face hub, whose class names are read too; row groups are read on demand.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.reading import printable
from sensorium.data.images.folders import Files
from sensorium.data.images.sets import Digest, EncodedImages, Found, numbered
from sensorium.data.log import Skipped
from sensorium.data.names import split_of
from sensorium.errors import SensoriumError

_PATHS = ("path", "file", "image", "filename", "file_name", "filepath", "image_path", "img", "images")
_LABELS = ("label", "class", "target", "labels", "class_name", "category", "y")
_SPLITS = ("split", "subset", "set")
_TEXTS = ("text", "caption")
_ROLES = {"path": _PATHS, "label": _LABELS, "split": _SPLITS, "text": _TEXTS}
_LOOKED = "looked for path, file, image or filename, and for label, class or target"


def read_csv(files: dict[str, Path]) -> Found:
    """Tables of paths and labels by split; a column "split" divides one table. Commas, semicolons or tabs."""
    found = Found("csv", {})
    for split, path in files.items():
        header, rows = _csv_rows(path)
        _add_rows(found, split, header, [(path, rows)])
    return found


def read_parquet(files: dict[str, list[Path]]) -> Found:
    """Parquet files by split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = Found("parquet", {})
    for split, paths in files.items():
        schema = pq.read_schema(paths[0])
        column = _column(schema.names, _PATHS)
        where = printable(str(paths[0]))
        if column is None:
            raise SensoriumError(f"{where}: no column of images; {_LOOKED}; it has {_listed(schema.names)}.")
        kind = schema.field(column).type
        other = {role: _column(schema.names, names) for role, names in _ROLES.items() if role != "path"}
        wanted = [name for name in other.values() if name is not None]
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            header = [column, *wanted]
            tables = []
            for path in paths:
                lists = [pq.read_table(path, columns=header).column(name).to_pylist() for name in header]
                tables.append((path, [[_word(v) for v in row] for row in zip(*lists, strict=True)]))
            _add_rows(found, split, header, tables)
        elif pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            _add_cells(found, split, paths, column, other, _hub_classes(schema.metadata, other["label"]))
        else:
            raise SensoriumError(
                f"{where}: column '{column}' is {kind}; expected paths, image bytes or {{bytes, path}}."
            )
    return found


class Cells:
    """Encoded images in a column of Parquet files. Two row groups are cached, enough for sequential reading."""

    def __init__(self, files: list[Path], column: str, rows: np.ndarray):
        self.files, self.column, self.rows = files, column, rows  # rows: int64 [N, 3] of (file, row group, row in it)
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple:
        return self.files, self.column, self.rows

    def __setstate__(self, state: tuple) -> None:
        Cells.__init__(self, *state)

    def read(self, index: int) -> bytes | Path:
        file, group, row = (int(v) for v in self.rows[index])
        value = self._group(file, group)[row].as_py()
        if isinstance(value, dict):
            path = value.get("path")
            value = value.get("bytes") or (self.files[file].parent / path if path else None)
        if value is None:
            raise ValueError("empty cell")
        return value

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        for path in self.files:
            stat = path.stat()
            digest.update(f"{path.name}:{stat.st_size}:{stat.st_mtime_ns};".encode())
        digest.update(np.ascontiguousarray(self.rows[indices]).data)

    def _group(self, file: int, group: int):
        import pyarrow.parquet as pq

        with self._lock:
            if (file, group) in self._kept:
                self._kept.move_to_end((file, group))
                return self._kept[file, group]
            column = pq.ParquetFile(self.files[file]).read_row_group(group, columns=[self.column]).column(0)
            self._kept[file, group] = column
            if len(self._kept) > 2:
                self._kept.popitem(last=False)
            return column


def _csv_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    where = printable(str(path))
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as raw:
        text = io.TextIOWrapper(raw, "utf-8-sig", newline="")
        try:
            first = text.readline(1 << 20)
            delimiter = max(",\t;", key=first.count)
            header = next(csv.reader([first], delimiter=delimiter), [])
            rows = [row for row in csv.reader(text, delimiter=delimiter) if row]
        except UnicodeDecodeError:
            raise SensoriumError(f"{where}: not UTF-8 text; save the table as UTF-8.") from None
        except csv.Error as error:
            raise SensoriumError(f"{where}: {error}; save the table again as plain CSV.") from None
    return [name.strip() for name in header], rows


def _add_rows(found: Found, split: str, header: list[str], tables: list[tuple[Path, list[list[str]]]]) -> None:
    """Rows of paths, converted to sets; missing files are skipped and listed."""
    where = printable(str(tables[0][0]))
    found_at = {role: _column(header, names) for role, names in _ROLES.items()}
    at = {role: header.index(name) for role, name in found_at.items() if name is not None}
    if "path" not in at:
        raise SensoriumError(f"{where}: no column of image paths; {_LOOKED}; it has {_listed(header)}.")
    gathered: dict[str, list[tuple[str, str, str | None, str | None]]] = {}
    for table, rows in tables:
        for line, row in enumerate(rows, 2):
            name, own, label, text = (_cell(row, at.get(role)) for role in ("path", "split", "label", "text"))
            reason = _missing(table.parent, name)
            if name is None or reason is not None:
                place = printable(name) if name else f"{printable(str(table))} line {line}"
                found.skipped.append(Skipped(place, reason or "no path in this row"))
                continue
            part = (split_of(own) if own else None) or split
            gathered.setdefault(part, []).append((name, str(table.parent / name), label, text))
    if not gathered and split == "train":
        why = f"; the first: {found.skipped[0].file}: {found.skipped[0].reason}" if found.skipped else ""
        raise SensoriumError(f"{where}: no row names an existing image{why}.")
    for part, items in gathered.items():
        names, paths, labels, texts = zip(*items, strict=True)
        images = EncodedImages(Files(paths), [printable(name) for name in names])
        if any(label is not None for label in labels):
            images.labels, images.classes = numbered(None if label is None else printable(label) for label in labels)
        images.texts = texts if any(texts) else None
        found.sets[part] = images


def _cell(row: list[str] | list[str | None], column: int | None) -> str | None:
    value = None if column is None or column >= len(row) else row[column]
    return (value.strip() or None) if value else None


def _missing(folder: Path, name: str | None) -> str | None:
    if not name:
        return "no path in this row"
    try:
        path = folder / name
        return None if path.is_file() else "no such file" if not path.exists() else "not a file"
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return "not a path"


def _add_cells(
    found: Found,
    split: str,
    paths: list[Path],
    column: str,
    other: dict[str, str | None],
    classes: tuple[str, ...] | None,
) -> None:
    """Rows of image bytes; only the other columns are read now."""
    import pyarrow.parquet as pq

    wanted = [name for name in other.values() if name is not None]
    places, extras = [], {name: [] for name in wanted}
    for number, path in enumerate(paths):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            places.append(np.stack([np.full(count, number), np.full(count, group), np.arange(count)], 1))
            if wanted:
                table = file.read_row_group(group, columns=wanted)
                for name in wanted:
                    extras[name] += table.column(name).to_pylist()
    rows = np.concatenate(places) if places else np.zeros((0, 3), np.int64)
    if not len(rows):
        raise SensoriumError(f"{printable(str(paths[0]))}: no rows.")
    values = [_word(v) for v in extras[other["label"]]] if other["label"] else None
    if values is not None and classes is not None:
        values = [classes[int(v)] if v and v.isdecimal() and int(v) < len(classes) else None for v in values]
    texts = [_word(v) for v in extras[other["text"]]] if other["text"] else None
    owns = (
        [split_of(_word(v) or "") or split for v in extras[other["split"]]] if other["split"] else [split] * len(rows)
    )
    for part in dict.fromkeys(owns):
        keep = np.array([i for i, own in enumerate(owns) if own == part])
        names = [f"{printable(paths[f].name)}[{g}:{r}]" for f, g, r in rows[keep]]
        images = EncodedImages(Cells(paths, column, rows[keep]), names)
        if values is not None and any(value is not None for value in values):
            images.labels, images.classes = numbered([values[i] for i in keep], classes)
        images.texts = [texts[i] for i in keep] if texts else None
        found.sets[part] = images


def _hub_classes(metadata: dict[bytes, bytes] | None, label: str | None) -> tuple[str, ...] | None:
    """Class names in the Hugging Face hub's schema, if valid."""
    try:
        feature = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]
        names = tuple(printable(str(name)) for name in feature["names"])
    except (KeyError, TypeError, ValueError):
        return None
    return names if len(set(names)) == len(names) else None


def _column(names: list[str], wanted: tuple[str, ...]) -> str | None:
    lower = {name.casefold().strip(): name for name in reversed(names)}
    return next((lower[name] for name in wanted if name in lower), None)


def _word(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return printable(str(value))


def _listed(names: list[str]) -> str:
    return ", ".join(printable(name) for name in names[:12]) or "none"
