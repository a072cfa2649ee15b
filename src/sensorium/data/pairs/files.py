"""Readers of pairs: tars, Parquet, tables of text, JSON lines, and JSON of captions as of COCO and of Karpathy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sensorium.base.json_rows import first_row, json_rows
from sensorium.base.parquet import Parquet
from sensorium.base.reading import open_regular, parse_json, printable, read_bytes, read_json, utf8
from sensorium.data import columns as means
from sensorium.data.columns import CAPTIONS, SplitColumn, as_text, caption_columns, listed, pick
from sensorium.data.images.cells import Cells
from sensorium.data.images.folders import Files
from sensorium.data.images.named import Pictures, unnamed
from sensorium.data.images.shards import Slices, read_samples, splits_within
from sensorium.data.images.tables import headed, image_column, odd_rows
from sensorium.data.pairs.gathered import MOST_BYTES, Gathered, unlisted
from sensorium.errors import NothingOfItsKind, SensoriumError

Divided = Mapping[str, Sequence[Path]]
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".ndjson.gz")
_CAPTIONS_TEXT = re.compile(r"(caption|\.token\.txt$|sentence)", re.IGNORECASE)
_KINDS_BESIDE = (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG")
OF_ANOTHER_KIND = "holds no images with captions"
_FIRST = 100  # rows that tell which fields there are
_LOOKED = "file, path, image or filename, and caption, text or title"


def read_tars(files: Divided, gathered: Gathered) -> None:
    """Samples of tars: .txt, else the caption in .json."""
    tars = [tar for part in files.values() for tar in part]
    numbers, log = {tar: i for i, tar in enumerate(tars)}, gathered.log
    for split, part in files.items():
        for tar in part:
            number, samples = numbers[tar], read_samples(tar, log)
            of = splits_within(samples)
            with open_regular(tar) as file:
                for one in samples:
                    name = f"{tar.name}/{one.key}"
                    if one.picture is None:
                        if "txt" in one.members or "json" in one.members:
                            log.skip(name, "a caption without a picture")
                        continue
                    lost = None
                    if one.key.startswith("/") or ".." in one.key.split("/"):
                        lost = "its path leads outside the archive"
                    elif one.members[one.picture][1] == 0:
                        lost = "zero bytes"
                    caption = None if lost else _caption_in(file, one.members)
                    place = (number, *one.members[one.picture])
                    gathered.add(of.get(one.key, split), f"{name}.{one.picture}", place, caption, lost)
    gathered.source = lambda places: Slices(tars, np.array(places, np.int64).reshape(-1, 3))


def _caption_in(file: BinaryIO, members: dict[str, tuple[int, int]]) -> Any:
    """The content of .txt (or .caption), else the captions in .json."""
    kind = next((kind for kind in ("txt", "caption", "text", "json") if kind in members), None)
    if kind is None:
        return None
    offset, size = members[kind]
    file.seek(offset)
    data = utf8(file.read(min(size, 2 * MOST_BYTES + 4)))
    if kind != "json" or len(data) > MOST_BYTES:
        return data
    try:
        return parse_json(data.decode(), "")
    except UnicodeDecodeError:
        return data  # that is the reason then
    except SensoriumError:
        return None


def read_parquet(files: Divided, gathered: Gathered) -> None:
    """Parquet of paths or of image bytes. A file that cannot be read is skipped, if another can."""
    paths = [path for part in files.values() for path in part]
    numbers = {path: i for i, path in enumerate(paths)}
    columns: dict[int, str] = {}
    kinds: dict[str, Path] = {}
    errors = []
    for split, part in files.items():
        for path in part:
            try:
                table = Parquet(path)
                at, kind = image_column(table, path, split, gathered.log)
                kinds.setdefault(kind, path)
                if len(kinds) > 1:
                    raise SensoriumError(f"{table.where}: its images are not stored as in {printable(paths[0].name)}.")
                columns[numbers[path]] = table.names[at]
                _parquet_rows(table, at, kind, (numbers[path], split), gathered)
            except SensoriumError as error:
                errors.append(error)
                gathered.log.skip(str(path), "file cannot be read", str(error))
    if errors and not gathered.rows:
        raise errors[0]
    gathered.log.notes = list(dict.fromkeys(gathered.log.notes))
    if "bytes" in kinds:
        gathered.source = lambda places: Cells(paths, columns, np.array(places, np.int64).reshape(-1, 3))
    else:
        _as_files(gathered)


def _parquet_rows(table: Parquet, at: int, kind: str, here: tuple[int, str], gathered: Gathered) -> None:
    number, split = here
    captions, own = caption_columns(table.names), pick(table.names, means.SPLITS)
    if not captions:
        raise SensoriumError(f"{table.where}: no column of captions; it has {listed(table.names)}.")
    if kind == "bytes":
        table.check_groups()
    wanted = [*captions, *([at] if kind == "paths" else []), *([] if own is None else [own])]
    rows = _Rows(table.path, split, None if own is None else table.names[own], gathered)
    for group, row, values in table.rows(wanted):
        name = f"{printable(table.path.name)}[{group}:{row}]"
        given = dict(zip(wanted, values, strict=True))
        found, part = [given[i] for i in captions], None if own is None else given[own]
        if kind == "paths":
            rows.add(name, as_text(given[at]), found, part)
        elif (of := rows.splits.of(part, split)) is None:
            gathered.log.skip(name, rows.splits.reason(part))
        else:
            gathered.add(of, name, (number, group, row), found)
    rows.tell(table.names, [at, *captions], captions)


def read_tables(files: Divided, gathered: Gathered) -> None:
    """Tables of text and JSON lines. One without the columns is skipped, if another has them."""
    errors = []
    for split, part in files.items():
        for path in part:
            try:
                if ".jsonl" in path.name.casefold() or ".ndjson" in path.name.casefold():
                    _json_lines(path, split, gathered)
                else:
                    _csv(path, split, gathered)
            except SensoriumError as error:
                errors.append(error)
                gathered.log.skip(str(path), "file cannot be read", str(error))
    if errors and not gathered.rows:
        raise errors[0]
    _as_files(gathered)


def _csv(path: Path, split: str, gathered: Gathered) -> None:
    table, title = headed(path, "caption", gathered.log), printable(str(path))
    header = table.header
    file, captions, own = pick(header, means.PATHS), caption_columns(header), pick(header, means.SPLITS)
    for role, found in (("file", file is not None), ("caption", captions)):
        if not found:
            raise NothingOfItsKind(
                f"{title}: no column of {role}s; looked for {_LOOKED}; it has {listed(header)}{means.hint(header)}."
            )
    assert file is not None
    table.spill = captions[-1]
    rows = _Rows(path, split, None if own is None else header[own], gathered)
    for number, row in table:
        cells = dict(enumerate(row))
        texts = [unlisted(cells[i]) for i in captions if i in cells]
        part = None if own is None else cells.get(own)
        rows.add(f"{printable(path.name)} line {number}", as_text(cells.get(file)), texts, part)
    rows.tell(header, [file, *captions], captions)
    gathered.log.notes += odd_rows(table)


def _json_lines(path: Path, split: str, gathered: Gathered) -> None:
    log, rows = gathered.log, None
    word, each = json_rows(path)
    ahead = list(islice(each, _FIRST))
    _check_fields(path, [line for _, line in ahead])
    for number, line in chain(ahead, each):
        where = f"{printable(path.name)} {word} {number}"
        if not line.strip():
            continue
        try:
            row = parse_json(line.decode(), "")
        except UnicodeDecodeError:
            log.skip(where, "caption is not UTF-8")
            continue
        except SensoriumError:
            row = None
        if not isinstance(row, dict):
            log.skip(where, "not a JSON object")
            continue
        rows = rows or _Rows(path, split, "split", gathered)
        _object(row, where, rows)


def _check_fields(path: Path, lines: Sequence[bytes]) -> None:
    """Raise NothingOfItsKind if the first objects have no file or no caption."""
    fields: dict[str, None] = {}
    for line in lines:
        with suppress(SensoriumError):
            row = parse_json(line, "")
            fields |= dict.fromkeys(row if isinstance(row, dict) else ())
    names = list(fields)
    for role, found in (("file", pick(names, means.PATHS) is not None), ("caption", caption_columns(names))):
        if names and not found:
            raise NothingOfItsKind(
                f"{printable(str(path))}: no field of {role}s; looked for {_LOOKED}; it has {listed(names)}."
            )


def _object(row: dict[str, Any], where: str, rows: _Rows) -> None:
    keys = list(row)
    file, own = pick(keys, means.PATHS), pick(keys, means.SPLITS)
    name = None if file is None else row[keys[file]]
    texts = [row[keys[i]] for i in caption_columns(keys)]
    rows.add(where, name if isinstance(name, str) else None, texts, None if own is None else row[keys[own]])


def read_beside(files: Divided, gathered: Gathered) -> None:
    """Texts beside pictures of their names: 0001.txt beside 0001.jpg."""
    for split, part in files.items():
        for path in part:
            picture = _picture_beside(path)
            try:
                caption = read_bytes(path, most=2 * MOST_BYTES)
            except SensoriumError as error:
                gathered.log.skip(str(path), "file cannot be read", str(error))
            else:
                gathered.add(split, picture.name if picture else path.name, str(picture), caption)
    _as_files(gathered)


def _picture_beside(file: Path) -> Path | None:
    """The picture with the name of a .txt."""
    if file.suffix.casefold() != ".txt":
        return None
    return next((path for kind in _KINDS_BESIDE if (path := file.with_suffix(kind)).is_file()), None)


def read_objects(files: Divided, gathered: Gathered) -> None:
    """JSON of captions: {images, annotations} as of COCO, images with sentences as of Karpathy, a list of objects."""
    errors, count = [], sum(map(len, files.values()))
    for split, part in files.items():
        for path in part:
            try:
                found = read_json(path, most=1 << 31 if count == 1 or "caption" in path.name.casefold() else 1 << 28)
            except SensoriumError as error:
                if isinstance(first := first_row(path), dict) and caption_columns(list(first)):
                    _json_lines(path, split, gathered)  # whatever its name says
                else:
                    errors.append(error)
                    gathered.log.skip(str(path), "file cannot be read", str(error))
                continue
            if isinstance(found, dict) and isinstance(found.get("annotations"), list):
                done = _coco(found, path, split, gathered)
            else:
                done = _objects(found, path, split, gathered)
            if not done:
                gathered.log.skip(str(path), OF_ANOTHER_KIND)
    if errors and not gathered.rows:
        raise errors[0]
    _as_files(gathered)


def _objects(found: Any, path: Path, split: str, gathered: Gathered) -> bool:
    """A list of objects, or the one called "images" or "data"; False if they have no captions."""
    held = found.get("images", found.get("data")) if isinstance(found, dict) else found
    if not isinstance(held, list) or not any(isinstance(one, dict) and caption_columns(list(one)) for one in held):
        return False
    rows = _Rows(path, split, "split", gathered)
    for number, one in enumerate(held):
        where = f"{printable(path.name)}[{number}]"
        if isinstance(one, dict):
            _object(one, where, rows)
        else:
            gathered.log.skip(where, "not a JSON object")
    return True


def _coco(found: dict[str, Any], path: Path, split: str, gathered: Gathered) -> bool:
    """Captions of "annotations" by the ids of "images"; False if it has none."""
    log, title = gathered.log, printable(path.name)
    notes = [one for one in found["annotations"] if isinstance(one, dict) and caption_columns(list(one))]
    if not notes:
        return False
    if lost := len(found["annotations"]) - len(notes):
        log.counts["annotation without a caption"] += lost
    images = found.get("images") if isinstance(found.get("images"), list) else []
    names = {str(one.get("id")): one.get("file_name") for one in images or () if isinstance(one, dict)}
    by_image: dict[str, list[Any]] = {}
    for one in notes:
        by_image.setdefault(str(one.get("image_id")), []).append(one)
    rows = _Rows(path, split, None, gathered)
    for number, (image, name) in enumerate(names.items()):
        if image in by_image:
            rows.add(f"{title}: images[{number}]", name if isinstance(name, str) else None, by_image[image], None)
        else:
            log.skip(str(name)[:300], "no caption")
    if strange := sum(len(held) for image, held in by_image.items() if image not in names):
        log.counts["caption of an unknown image_id"] += strange
    return True


class _Rows:
    """Rows of one table that name image files."""

    def __init__(self, path: Path, split: str, own: str | None, gathered: Gathered) -> None:
        self.path, self.split, self.gathered = path, split, gathered
        self.splits, self.pictures = SplitColumn(own, gathered.log), Pictures(path, split)

    def add(self, where: str, name: str | None, captions: Any, part: Any) -> None:
        log, of = self.gathered.log, self.splits.of(part, self.split)
        if of is None:
            log.skip(where, self.splits.reason(part))
        elif not name or not name.strip():
            log.skip(where, "no file in this row")
        else:
            own = None if part is None else of
            found = self.pictures.find(name.strip(), own)
            if isinstance(found, str) and (bare := re.sub(r"#\d+$", "", name.strip())) != name.strip():
                name, found = bare, self.pictures.find(bare, own)
            lost = found if isinstance(found, str) else None
            self.gathered.add(of, name.strip(), str(found), captions, lost)

    def tell(self, header: Sequence[str], used: Sequence[int], captions: Sequence[int]) -> None:
        """Notes about columns."""
        log = self.gathered.log
        log.notes += means.doubled(header, used) + self.pictures.notes(printable(self.path.name))
        keys = [re.sub(r"\d+$", "", means.key(name)) for name in header]
        if others := [header[i] for i, found in enumerate(keys) if found in CAPTIONS and i not in captions]:
            log.notes.append(
                f"Captions are those of '{printable(header[captions[0]])}'; not used: {listed(others, 6)}."
            )


def _as_files(gathered: Gathered) -> None:
    gathered.source = Files
    gathered.log.notes += unnamed({row[1] for rows in gathered.rows.values() for row in rows})


def _ends(*endings: str) -> Callable[[Path], bool]:
    return lambda file: file.name.casefold().endswith(endings)


def _is_text_of_captions(file: Path) -> bool:
    name = file.name.casefold()
    return name.endswith(_TABLES) or (name.endswith((".txt", ".token")) and bool(_CAPTIONS_TEXT.search(name)))


Reader = Callable[[Divided, Gathered], None]
KINDS: tuple[tuple[str, Callable[[Path], bool], Reader], ...] = (
    ("webdataset", _ends(".tar"), read_tars),
    ("parquet", _ends(".parquet"), read_parquet),
    ("captions file", _is_text_of_captions, read_tables),
    ("captions JSON", _ends(".json"), read_objects),
    ("images with texts", lambda file: _picture_beside(file) is not None, read_beside),
)
