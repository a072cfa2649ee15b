"""Tables of images: CSV and JSON lines of paths and labels, Parquet of paths or of image bytes.

Columns are recognized by name (:mod:`sensorium.data.columns`). Paths are relative to the table, or found by
:class:`sensorium.data.images.named.Pictures`. A Parquet image column may hold bytes, or the {bytes, path} of the
Hugging Face hub, whose class names are read too; row groups are read on demand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.memory import Headroom
from sensorium.base.parquet import Parquet
from sensorium.base.reading import CSV, parse_json, printable
from sensorium.base.words import counted, plural
from sensorium.data import columns as means
from sensorium.data.columns import SplitColumn, Unused, as_label, as_text, key, listed, pick
from sensorium.data.images import json_table
from sensorium.data.images.cells import Cells, holds
from sensorium.data.images.endings import EXTENSIONS
from sensorium.data.images.folders import Files
from sensorium.data.images.named import Pictures, unnamed
from sensorium.data.images.sets import EncodedImages, Found, Source, numbered
from sensorium.data.log import Log
from sensorium.data.names import is_unlabeled
from sensorium.errors import NothingOfItsKind, SensoriumError

_LOOKED = "looked for path, file, image or filename, and for label, class or target"
_ONE = "one label per row is read"
_ENDINGS = "|".join(ending.removeprefix(".") for ending in sorted(EXTENSIONS))
_ROW_OF_DATA = re.compile(rf"\s*\"?[^,\t;|\"]+\.({_ENDINGS})(#\d+)?\"?\s*([,\t;|]|$)", re.IGNORECASE)
_PEEK = 20
_SMALL_GROUP = 64 << 20


class Gathered:
    """Rows that become image sets by split; what is kept is watched against the free memory."""

    def __init__(self, layout: str, where: str, log: Log) -> None:
        self.layout, self.where, self.log = layout, where, log
        self.rows: dict[str, list[tuple[str, Any, str | None, str | None]]] = {}
        self.unlabeled, self.apart = Counter[str](), Counter[str]()
        self.labelled = False
        self.column = "the labels"  # what they are called
        self._room = Headroom(where, "split the data.")

    def add(
        self, name: str, place: Any, label: Any, text: Any, split: str, reason: str = "", apart: str | None = None
    ) -> None:
        """``label`` is as it was stored, ``reason`` why it is None, ``place`` what the source of the images needs,
        ``apart`` the name of a file, folder or split if it says that labels are missing: the label is not used."""
        self._room.check()
        if apart is not None:
            self.apart[apart] += split == "train"
            self.rows.setdefault(split, []).append((printable(name), place, None, as_text(text)))
            return
        label, why = as_label(label)
        self.labelled |= label is not None or bool(reason or why)
        if label is None:
            self.unlabeled[reason or why or "label is empty, NaN or null"] += 1
        self.rows.setdefault(split, []).append((printable(name), place, label, as_text(text)))

    def called(self, header: Sequence[str], label: int | None) -> None:
        """Name the column of labels, for messages."""
        if label is not None:
            self.column = f"column '{printable(header[label])}'"

    def found(self, source: Callable[[list[Any]], Source], classes: tuple[str, ...] | None = None) -> Found:
        """The sets; ``source`` makes the images of the places. Raises SensoriumError if there are none."""
        log = self.log
        if not self.rows:
            raise SensoriumError(f"{self.where}: no row names an existing image{first_skipped(log)}.")
        if "train" not in self.rows:
            only = next(iter(self.rows))
            log.notes.append(f"All images are of the {only} split; as there are no others, they are used for training.")
            self.rows["train"] = self.rows.pop(only)
        if self.labelled:
            log.notes += [
                f"{counted(count, 'image')} {plural(count, 'is')} unlabeled: {reason}."
                for reason, count in self.unlabeled.items()
            ]
        log.notes += self._several()
        found = Found(self.layout, {}, log.skipped, [*log.notes, *log.sentences()], unlabeled=self.apart)
        if classes is not None:
            classes = tuple(name for name in classes if not is_unlabeled(name))
        every = [row[2] for rows in self.rows.values() for row in rows]
        short = dict(zip(every, means.whole_numbers(every), strict=True)) if classes is None else {}
        for split, rows in self.rows.items():
            names, places, labels, texts = (list(column) for column in zip(*rows, strict=True))
            images = EncodedImages(source(places), names)
            if any(label is not None for label in labels):
                images.labels, images.classes = numbered([short.get(label, label) for label in labels], classes)
            images.texts = texts if any(texts) else None
            found.sets[split] = images
        return found

    def _several(self) -> list[str]:
        """Notes about images that have more than one label."""
        rows, notes = [row for rows in self.rows.values() for row in rows], []
        if number := self.unlabeled[means.SEVERAL]:
            notes.append(f"{counted(number, 'row')} with several labels in {self.column}: {_ONE}, so they have none.")
        elif found := means.joined(row[2] for row in rows):
            number, separator, example = found
            notes.append(
                f"In {self.column} '{separator}' seems to join several labels, in {counted(number, 'row')} (the first: "
                f"'{example[:80]}'): each combination is a class of its own, as {_ONE}."
            )
        known: dict[str, str | None] = {}
        twice = {row[0]: None for row in rows if isinstance(row[1], str) and known.setdefault(row[1], row[2]) != row[2]}
        if twice:
            notes.append(
                f"{counted(len(twice), 'image')} {plural(len(twice), 'is')} in several rows with different labels (the first: "
                f"{next(iter(twice))[:200]}); {_ONE}."
            )
        return notes


def apart(file: Path, files: int) -> str | None:
    """The name of a file that says that labels are missing; not that of a single one, which was given for itself."""
    return file.name if files > 1 and is_unlabeled(file.name) else None


def first_skipped(log: Log) -> str:
    """The most frequent reason and its first entry, for a message."""
    if not log.counts:
        return ""
    ((reason, count),) = log.counts.most_common(1)
    return f"; {count:,} skipped; the first: {log.first.get(reason, '')[:200]}: {reason}"


def read_csv(files: Mapping[str, Path | Sequence[Path]]) -> Found:
    """Tables of paths and labels by split, of text or JSON lines; a column "split" divides one table."""
    pairs = [(s, path) for s, paths in files.items() for path in ([paths] if isinstance(paths, Path) else paths)]
    log = Log()
    lines = all(path.name.casefold().endswith(json_table.ENDINGS) for _, path in pairs)
    gathered = Gathered("json lines" if lines else "csv", printable(str(pairs[0][1])), log)
    for split, path in pairs:
        json = path.name.casefold().endswith(json_table.ENDINGS)
        table = json_table.JSONTable(path, log) if json else headed(path, "label", log)
        pictures = Pictures(path, split)
        rows = ((f"{printable(str(path))} line {number}", row) for number, row in table)
        ahead = list(islice(rows, _PEEK))
        at = _path_column(path, table.header, [row for _, row in ahead], pictures, log)
        text, label = pick(table.header, means.TEXTS), pick(table.header, means.LABELS)
        spill = text if text is not None else label
        table.spill = -1 if spill is None else spill
        _add_paths(gathered, path, table.header, at, chain(ahead, rows), split, pictures, apart(path, len(pairs)))
        log.notes += odd_rows(table)
    log.notes += unnamed(str(row[1]) for rows in gathered.rows.values() for row in rows)
    return gathered.found(Files)


def headed(path: Path, second: str, log: Log) -> CSV:
    """A table of text with a header. If its first line is data already ("a.jpg,cat"), its columns are taken as "path"
    and ``second``, and a note says so."""
    table = CSV(path)
    match = _ROW_OF_DATA.match(table.first)
    if match is None:
        return table
    delimiter = match.group(3) or ","
    count, where = table.first.count(delimiter) + 1, printable(path.name)
    if count > 2 and second == "label":
        raise SensoriumError(f"{printable(str(path))}: its first line is a row, not a header; add one: path,label,...")
    log.notes.append(
        f"{where} has no header: its first column is taken as images{f', the second as {second}s' * (count > 1)}."
    )
    return CSV(path, delimiter, ["path", second][:count])


def odd_rows(table: CSV | json_table.JSONTable) -> list[str]:
    """Notes about rows that were not as the header says."""
    return [f"{printable(table.path.name)}: {counted(count, 'time')} a {what}." for what, count in table.odd.items()]


def _path_column(path: Path, header: list[str], rows: Sequence[Sequence[Any]], pictures: Pictures, log: Log) -> int:
    """The column of paths: by its name, else the one whose values are found as images."""
    at = pick(header, means.PATHS)
    if at is not None:
        return at
    data = any(_ROW_OF_DATA.match(name) for name in header)
    other = (*means.LABELS, *means.CAPTIONS, *means.SPLITS)
    hint = means.hint(header)
    for i, name in enumerate(() if data or hint else header):
        if key(name) in other:
            continue
        values = [value for row in rows if i < len(row) and (value := as_text(row[i]))]
        if values and 2 * sum(isinstance(pictures.find(value), Path) for value in values) > len(values):
            log.notes.append(
                f"Column '{printable(name)}' of {printable(path.name)} is used: its values name the images."
            )
            return i
    if data:
        hint = "; its first line is a row, not a header: add one, such as path,label"
    raise NothingOfItsKind(
        f"{printable(str(path))}: no column of image paths; {_LOOKED}; it has {listed(header)}{hint}."
    )


def _add_paths(
    gathered: Gathered,
    path: Path,
    header: list[str],
    at: int,
    rows: Iterable[tuple[str, Sequence[Any]]],
    split: str,
    pictures: Pictures,
    bare: str | None,
) -> None:
    """Rows of paths; missing files are skipped and counted. ``bare``: see ``apart``."""
    log = gathered.log
    label, text, own = (pick(header, names) for names in (means.LABELS, means.TEXTS, means.SPLITS))
    gathered.called(header, label)
    used = [i for i in (at, label, text, own) if i is not None]
    unused, splits = Unused(header, used), SplitColumn(None if own is None else header[own], log)
    for where, row in rows:
        unused.see(row)
        name, stored, words, part = (None if i is None or i >= len(row) else row[i] for i in (at, label, text, own))
        name, of = as_text(name), splits.of(part, split)
        if of is None:
            log.skip(where, splits.reason(part))
            continue
        found = pictures.find(name, None if part is None else of)
        if isinstance(found, str):
            log.skip(name[:300] if name else where, found)
        elif label is not None and "UTF-8" in (reason := as_label(stored)[1]):
            log.skip(where, reason)
        else:
            gathered.add(name or "", str(found), stored, words, of, apart=bare or splits.apart(part))
    log.notes += means.doubled(header, used) + pictures.notes(printable(path.name))
    log.notes += means.about_labels(header, label, unused.like_labels(labelled=label is not None))


def read_parquet(files: Mapping[str, Sequence[Path]]) -> Found:
    """Parquet files by split. One that cannot be read is skipped, if another can."""
    pairs = [(split, path) for split, paths in files.items() for path in paths]
    log, errors = Log(), []
    gathered = Gathered("parquet", printable(str(pairs[0][1])), log)
    cells = _CellReader(gathered, [path for _, path in pairs])
    named = False
    for split, path in pairs:
        try:
            table = Parquet(path)
            at, kind = image_column(table, path, split, log)
            if (cells.columns and kind == "paths") or (named and kind == "bytes"):
                raise SensoriumError(f"{table.where}: its images are not stored as in {printable(pairs[0][1].name)}.")
            if kind == "bytes":
                cells.add(table, at, split, apart(path, len(pairs)))
            else:
                named = True
                _parquet_of_paths(gathered, table, at, split, apart(path, len(pairs)))
        except SensoriumError as error:
            errors.append(error)
            log.skip(str(path), "file cannot be read", str(error))
    if errors and not gathered.rows:
        raise errors[0]
    log.notes = list(dict.fromkeys(log.notes))
    if cells.columns:
        return gathered.found(cells.source, cells.all_classes())
    log.notes += unnamed(str(row[1]) for rows in gathered.rows.values() for row in rows)
    return gathered.found(Files)


def image_column(table: Parquet, path: Path, split: str, log: Log) -> tuple[int, str]:
    """(column of images, "bytes" or "paths"): of a known name, with bytes before paths; else the only one of bytes."""
    kinds = [holds(kind) for kind in table.types]
    known = [i for i, name in enumerate(table.names) if key(name) in means.PATHS]
    order = sorted(known, key=lambda i: (kinds[i] != "bytes", means.PATHS.index(key(table.names[i]))))
    for at in order:
        if (kind := kinds[at]) is not None:
            return at, kind
    if known:
        at = known[0]
        name, kind = printable(table.names[at]), str(table.types[at])[:80]
        raise SensoriumError(
            f"{table.where}: column '{name}' is {kind}; expected paths, image bytes or {{bytes, path}}."
        )
    only = [i for i, kind in enumerate(kinds) if kind == "bytes"]
    if len(only) == 1:
        log.notes.append(f"Column '{printable(table.names[only[0]])}' is used: it alone holds bytes.")
        return only[0], "bytes"
    words = [i for i, kind in enumerate(kinds) if kind == "paths"]
    rows = [row for _, _, row in islice(table.rows(words), _PEEK)] if words else []
    names = [table.names[i] for i in words]
    try:
        return words[_path_column(path, names, rows, Pictures(path, split), log)], "paths"
    except SensoriumError:
        raise NothingOfItsKind(
            f"{table.where}: no column of images; {_LOOKED}; it has {listed(table.names)}{means.hint(table.names)}."
        ) from None


def _parquet_of_paths(gathered: Gathered, table: Parquet, at: int, split: str, bare: str | None) -> None:
    roles = [pick(table.names, names) for names in (means.LABELS, means.TEXTS, means.SPLITS)]
    columns = [at, *(i for i in roles if i is not None and i != at)]
    rows = ((f"{printable(table.path.name)}[{group}:{row}]", values) for group, row, values in table.rows(columns))
    header = [table.names[i] for i in columns]
    _add_paths(gathered, table.path, header, 0, rows, split, Pictures(table.path, split), bare)
    gathered.log.notes += means.doubled(table.names, columns) + _parquet_labels(table, columns, roles[0])


class _CellReader:
    """Rows of image bytes of several files; only their other columns are read now."""

    def __init__(self, gathered: Gathered, files: list[Path]) -> None:
        self.gathered, self.files = gathered, files
        self.columns: dict[int, str] = {}
        self.classes: list[str] = []
        self.hub = False

    def add(self, table: Parquet, at: int, split: str, bare: str | None) -> None:
        log, number = self.gathered.log, self.files.index(table.path)
        table.check_groups()
        self.columns[number] = table.names[at]
        label, text, own = (pick(table.names, names) for names in (means.LABELS, means.TEXTS, means.SPLITS))
        self.gathered.called(table.names, label)
        columns = [i for i in (label, text, own) if i is not None]
        splits = SplitColumn(None if own is None else table.names[own], log)
        classes = None if label is None else _hub_classes(table.metadata, table.names[label])
        self.hub |= classes is not None
        self.classes += [name for name in classes or () if name not in self.classes]
        for group, row, values in table.rows(columns):
            given = dict(zip(columns, values, strict=True))
            name = f"{printable(table.path.name)}[{group}:{row}]"
            stored, words, part = (None if i is None else given[i] for i in (label, text, own))
            if (of := splits.of(part, split)) is None:
                log.skip(name, splits.reason(part))
                continue
            stored, reason = (stored, "") if classes is None else _class_of(stored, classes)
            self.gathered.add(name, (number, group, row), stored, words, of, reason, bare or splits.apart(part))
        log.notes += means.doubled(table.names, [at, *columns]) + _parquet_labels(table, [at, *columns], label)

    def source(self, places: list[tuple[int, int, int]]) -> Cells:
        return Cells(self.files, self.columns, np.array(places, np.int64).reshape(-1, 3))

    def all_classes(self) -> tuple[str, ...] | None:
        if not self.hub:
            return None
        known = set(self.classes)
        rows = chain.from_iterable(self.gathered.rows.values())
        return (*self.classes, *sorted({row[2] for row in rows if row[2] is not None} - known))


def _class_of(value: Any, classes: tuple[str, ...]) -> tuple[str | None, str]:
    """The class that a label of the hub is: by number, else by name."""
    text = as_text(value)
    if text is None or text == "-1":
        return None, ""
    if text.isdecimal() and len(text) < 12 and int(text) < len(classes):
        return classes[int(text)], ""
    return (text, "") if text in classes else (None, "label is not one of the class names in the schema")


def _parquet_labels(table: Parquet, used: Sequence[int], label: int | None) -> list[str]:
    """Notes about columns that look like labels, from the first rows of the small ones."""
    free = [i for i in range(len(table.names)) if i not in used and holds(table.types[i]) != "bytes"]
    header = [table.names[i] for i in free]
    unused = Unused(header, ())
    if free and max(table.sizes, default=0) < _SMALL_GROUP:
        with suppress(SensoriumError):  # these columns are not needed
            for _, _, row in islice(table.rows(free), means.SAMPLE):
                unused.see(row)
    else:
        unused.see(["?"] * len(free))  # their names alone are judged
    like = unused.like_labels(labelled=label is not None)
    return means.about_labels(
        [*header, *([] if label is None else [table.names[label]])], None if label is None else len(header), like
    )


def _hub_classes(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...] | None:
    """Class names in the Hugging Face hub's schema, if valid."""
    try:
        feature = parse_json(metadata[b"huggingface"], "")["info"]["features"][label]
        names = tuple(printable(str(name)) for name in feature["names"])
    except (KeyError, TypeError, ValueError, SensoriumError):
        return None
    return names if names and len(set(names)) == len(names) else None
