"""Images with captions: pairs from a path, decoded on demand.

open_pairs reads WebDataset tars (KEY.png or .jpg beside KEY.txt, or KEY.json with a "caption"), a folder with a
captions file (.csv, .tsv or .jsonl of file and caption; paths relative to it) and Parquet (paths or image bytes, and a
caption); several files, or folders called train, val and test, are splits by name. A "caption" may be a list: its image
then gives several pairs. Without a test set the validation set is used, or a tenth of the pairs is held out, which
share no image or caption with the rest. Broken entries are skipped and listed: captions missing or not UTF-8 when a
path is opened, images when they are decoded.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sensorium.base.reading import printable
from sensorium.data.images.decode import EXTENSIONS, BadImage
from sensorium.data.images.folders import Files
from sensorium.data.images.sets import Digest, EncodedImages, Found, Source
from sensorium.data.images.shards import Slices, _samples
from sensorium.data.images.tables import Cells
from sensorium.data.log import Skipped
from sensorium.data.names import SPLITS, divide, list_folder, split_of
from sensorium.errors import SensoriumError

HELD_OUT = 0.1
_FILES = ("file", "path", "image", "filename", "file_name", "filepath", "image_path", "image_name", "img", "images")
_CAPTIONS = ("caption", "captions", "text", "texts", "title", "description", "comment")
_TABLES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")
_MOST_BYTES = 1 << 20  # maximum bytes of a caption
_LOOKED_FOR = (
    "tars of KEY.png or .jpg with KEY.txt or .json, a folder with a .csv, .tsv or .jsonl of file and caption, "
    "or .parquet"
)


class Pairs(EncodedImages):
    """Map-style: ``{"image": uint8 [3, H, W], "text": str}``; ``texts`` and ``names`` are known without decoding."""

    texts: Sequence[str]

    def __init__(self, source: Source, names: Sequence[str], texts: Sequence[str]) -> None:
        super().__init__(source, names)
        self.texts = texts

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises :class:`BadImage` for an image that cannot be decoded."""
        sample = super().__getitem__(index)
        del sample["label"]
        return sample

    def readable(self, skipped: list[Skipped]) -> Iterator[dict[str, Any]]:
        """The samples in order; an image that cannot be decoded is added to ``skipped`` instead."""
        for index in range(len(self)):
            try:
                sample = self[index]
            except BadImage as bad:
                skipped.append(Skipped(bad.name, bad.reason))
            else:
                yield sample

    def subset(self, indices: np.ndarray) -> Pairs:
        """The pairs at ``indices`` (int [n]), in that order."""
        rows = np.asarray(indices, np.int64)
        names, texts = ([str(of[int(i)]) for i in rows] for of in (self.names, self.texts))
        return Pairs(_Some(self.source, rows), names, texts)

    def without(self, skipped: Iterable[Skipped]) -> Pairs:
        """The pairs whose images are not among ``skipped``: those that ``cache`` kept, in its order."""
        lost = {one.file for one in skipped}
        return self.subset(np.array([i for i, name in enumerate(self.names) if name not in lost], np.int64))

    def groups(self) -> np.ndarray:
        """Groups of pairs: int64 [N], equal if they share an image or a caption, directly or through other pairs."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        n = len(self)
        ends = [np.unique(np.array(list(of), dtype=object), return_inverse=True)[1] for of in (self.names, self.texts)]
        graph = coo_matrix((np.ones(n, np.int8), (ends[0], ends[1] + n)), shape=(2 * n, 2 * n))
        parts = connected_components(graph, directed=False)[1][ends[0]]
        first = {part: number for number, part in enumerate(dict.fromkeys(parts.tolist()))}
        return np.array([first[part] for part in parts.tolist()], np.int64)


@dataclass(frozen=True)
class OpenedPairs:
    """The result of :func:`open_pairs`. ``notes`` are sentences, including the count of skipped entries."""

    path: str
    layout: str
    train: Pairs
    test: Pairs | None = None
    val: Pairs | None = None
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


def open_pairs(path: str | Path, *, test: str | Path | None = None, limit: int | None = None) -> OpenedPairs:
    """Find the layout of ``path`` and open its pairs; ``test`` opens a second path as the test set.

    ``limit`` keeps at most that many pairs of each set, the first ones. Raises SensoriumError for a user's error.
    """
    if limit is not None and limit < 1:
        raise SensoriumError(f"limit: {limit} pairs is too few; must be at least 1.")
    skipped: list[Skipped] = []
    notes: list[str] = []
    layout, sets = _read(Path(path).expanduser(), skipped)
    if test is not None:
        second = _read(Path(test).expanduser(), skipped)[1]
        sets["test"] = second.get("test") or second["train"]
    if "test" not in sets and "val" in sets:
        sets["test"] = sets.pop("val")
        notes.append("There is no test set; the validation set is used as one.")
    if "test" not in sets:
        kept, held = _hold_out(sets["train"])
        if held is None:
            notes.append("No test set was given, and all pairs share images or captions: nothing is held out.")
        else:
            sets |= {"train": kept, "test": held}
            notes.append(f"No test set was given: {len(held):,} of {len(kept) + len(held):,} pairs are held out.")
    for reason, count in Counter(s.reason for s in skipped).most_common():
        notes.append(f"{count:,} skipped: {reason}.")
    if limit is not None:
        sets = {split: pairs.subset(np.arange(min(limit, len(pairs)))) for split, pairs in sets.items()}
    found = printable(str(path))
    return OpenedPairs(found, layout, sets["train"], sets.get("test"), sets.get("val"), tuple(skipped), tuple(notes))


def _hold_out(pairs: Pairs, seed: int = 0) -> tuple[Pairs, Pairs | None]:
    groups = pairs.groups()
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    left, chosen = max(1, round(HELD_OUT * len(pairs))), []
    for group in order.tolist():
        if sizes[group] <= left:
            chosen.append(group)
            left -= sizes[group]
    held = np.isin(groups, chosen)
    if not held.any() or held.all():
        return pairs, None
    return pairs.subset(np.flatnonzero(~held)), pairs.subset(np.flatnonzero(held))


def _read(place: Path, skipped: list[Skipped]) -> tuple[str, dict[str, Pairs]]:
    where = printable(str(place))
    if not place.exists():
        raise SensoriumError(f"there is nothing at '{where}'. Give {_LOOKED_FOR}.")
    entries = [Path(e.path) for e in list_folder(place)] if place.is_dir() else [place]
    layout, sets = "", {}
    for name, endings, read in (
        ("webdataset", (".tar",), _tars),
        ("parquet", (".parquet",), _parquet),
        ("captions file", _TABLES, _tables),
    ):
        if files := [file for file in entries if file.is_file() and file.name.lower().endswith(endings)]:
            layout = name
            for split, group in divide(files, place if place.is_dir() else place.parent).items():
                sets |= {part: pairs for part, pairs in read(group, split, skipped).items() if len(pairs)}
            break
    else:
        for folder in entries:
            split = next(
                (s for s, known in SPLITS.items() if folder.is_dir() and folder.name.casefold() in known), None
            )
            if split is not None:
                layout, inner = _read(folder, skipped)
                sets[split] = inner["train"]
    if "train" not in sets:
        first = f" The first skipped entry: {skipped[0].file}: {skipped[0].reason}." if skipped else ""
        raise SensoriumError(f"'{where}' has no pictures with captions. Looked for {_LOOKED_FOR}.{first}")
    return layout, sets


def _captions(value: Any) -> tuple[list[str], str | None]:
    """The captions in a value, and the reason if there are none."""
    found = []
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, bytes):
            if len(one) > _MOST_BYTES:
                return [], "caption of more than 1 MiB"
            try:
                one = one.decode()
            except UnicodeDecodeError:
                return [], "caption is not UTF-8"
        if isinstance(one, str) and one.strip():
            found.append(one.strip())
    return found, None if found else "no caption"


class _Gathered:
    """Collects pairs: an image counts once it has a caption."""

    def __init__(self, skipped: list[Skipped]) -> None:
        self.names: list[str] = []
        self.places: list[Any] = []
        self.texts: list[str] = []
        self.skipped = skipped

    def add(self, name: str, place: Any, caption: Any, lost: str | None = None) -> None:
        texts, reason = ([], lost) if lost else _captions(caption)
        if reason is not None:
            self.skipped.append(Skipped(name, reason))
        for text in texts:
            self.names.append(name)
            self.places.append(place)
            self.texts.append(text)


def _tars(tars: list[Path], split: str, skipped: list[Skipped]) -> dict[str, Pairs]:
    gathered = _Gathered(skipped)
    damaged = Found("webdataset", {}, skipped=skipped)
    for number, tar in enumerate(tars):
        with tar.open("rb") as file:
            for stem, members in _samples(tar, damaged):
                image = next((ext for ext in members if f".{ext.rpartition('.')[2]}" in EXTENSIONS), None)
                name = f"{printable(tar.name)}/{printable(stem)}"
                if image is None:
                    if "txt" in members:
                        skipped.append(Skipped(name, "a caption without a picture"))
                    continue
                lost = None
                if stem.startswith("/") or ".." in stem.split("/"):
                    lost = "its path leads outside the archive"
                elif members[image][1] == 0:
                    lost = "zero bytes"
                place = (number, *members[image])
                gathered.add(f"{name}.{printable(image)}", place, None if lost else _caption_in(file, members), lost)
    places = np.array(gathered.places, np.int64).reshape(-1, 3)
    return {split: Pairs(Slices(tars, places), gathered.names, gathered.texts)}


def _caption_in(file: BinaryIO, members: dict[str, tuple[int, int]]) -> Any:
    """The content of .txt, else the caption in .json."""
    kind = next((kind for kind in ("txt", "json") if kind in members), None)
    if kind is None:
        return None
    offset, size = members[kind]
    file.seek(offset)
    data = file.read(min(size, _MOST_BYTES + 1))
    if kind == "txt":
        return data
    try:
        stored = json.loads(data)
    except UnicodeDecodeError:
        return data  # its own error is raised later
    except (ValueError, RecursionError):
        return None
    return next((stored[key] for key in _CAPTIONS if key in stored), None) if isinstance(stored, dict) else None


def _tables(tables: list[Path], split: str, skipped: list[Skipped]) -> dict[str, Pairs]:
    found: dict[str, _Gathered] = {}
    for table in tables:
        for where, name, caption, part in _rows(table, skipped):
            gathered = found.setdefault((split_of(part) if part else None) or split, _Gathered(skipped))
            if not isinstance(name, str) or not name.strip():
                skipped.append(Skipped(where, "no file in this row"))
                continue
            path = table.parent / name.strip()
            gathered.add(printable(name.strip()), str(path), caption, _lost(path))
    return {part: Pairs(Files(g.places), g.names, g.texts) for part, g in found.items()}


def _rows(table: Path, skipped: list[Skipped]) -> Iterator[tuple[str, Any, Any, str | None]]:
    """(where, file, captions, split) of each row; where is for messages."""
    title = printable(str(table))
    try:
        data = gzip.decompress(table.read_bytes()) if table.suffix.lower() == ".gz" else table.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SensoriumError(f"{title}: not readable ({error}).") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    if ".jsonl" in table.name.lower():
        for line, text in enumerate(data.splitlines(), 1):
            where = f"{printable(table.name)} line {line}"
            try:
                row = json.loads(text) if text.strip() else None
            except UnicodeDecodeError:
                skipped.append(Skipped(where, "caption is not UTF-8"))
                continue
            except (ValueError, RecursionError):
                row = 0
            if row is not None and not isinstance(row, dict):
                skipped.append(Skipped(where, "not a JSON object"))
            elif row:
                yield where, *(_of(row, names) for names in (_FILES, _CAPTIONS)), _of(row, ("split",))
        return
    lines = io.StringIO(data.decode(errors="surrogateescape"), newline="")
    delimiter = max(",\t;|", key=lines.readline(1 << 20).count)
    lines.seek(0)
    try:
        rows = csv.DictReader(lines, delimiter=delimiter, restval=None)
        header = [name.strip() for name in rows.fieldnames or ()]
        for role, names in (("file", _FILES), ("caption", _CAPTIONS)):
            if not {name.casefold() for name in header} & set(names):
                listed = ", ".join(map(printable, header[:12])) or "none"
                raise SensoriumError(f"{title}: no column of {role}s; looked for {', '.join(names)}; it has {listed}.")
        for row in rows:
            found = {str(key): value for key, value in row.items() if isinstance(value, str)}
            # invalid UTF-8 was decoded as lone surrogates, and is encoded as the original bytes
            caption = (_of(found, _CAPTIONS) or "").encode(errors="surrogateescape")
            yield f"{printable(table.name)} line {rows.line_num}", _of(found, _FILES), caption, _of(found, ("split",))
    except csv.Error as error:
        raise SensoriumError(f"{title}: {error}; save the table again as plain CSV.") from None


def _of(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    lower = {str(key).casefold().strip(): value for key, value in row.items()}
    return next((lower[name] for name in names if name in lower), None)


def _lost(path: Path) -> str | None:
    try:
        return None if path.is_file() else "no such file"
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return "not a path"


def _parquet(files: list[Path], split: str, skipped: list[Skipped]) -> dict[str, Pairs]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    gathered, cells, column = _Gathered(skipped), False, ""
    for number, path in enumerate(files):
        where = printable(str(path))
        try:
            file = pq.ParquetFile(path)
            names = {name.casefold(): name for name in file.schema_arrow.names}
            image, caption = (next((names[n] for n in wanted if n in names), None) for wanted in (_FILES, _CAPTIONS))
            if image is None or caption is None:
                raise SensoriumError(
                    f"{where}: no column of {'images' if image is None else 'captions'}; it has "
                    f"{', '.join(map(printable, file.schema_arrow.names[:12]))}."
                )
            kind = file.schema_arrow.field(image).type
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            if number and (column, cells) != (image, not text):
                raise SensoriumError(f"{where}: its images are not stored as in {printable(files[0].name)}.")
            column, cells = image, not text
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=[image, caption] if text else [caption])
                for row in range(len(table)):
                    name = f"{printable(path.name)}[{group}:{row}]"
                    _add_row(gathered, table, row, name, (number, group, row), path.parent, image, caption, text)
        except (pa.ArrowException, OSError) as error:
            raise SensoriumError(f"{where}: not readable as Parquet ({error}).") from None
    if cells:
        source: Source = Cells(files, column, np.array(gathered.places, np.int64).reshape(-1, 3))
    else:
        source = Files(gathered.places)
    return {split: Pairs(source, gathered.names, gathered.texts)}


def _add_row(
    gathered: _Gathered,
    table: Any,
    row: int,
    name: str,
    place: tuple,
    folder: Path,
    image: str,
    caption: str,
    paths: bool,
) -> None:
    try:
        found = table.column(caption)[row].as_py()
        file = table.column(image)[row].as_py() if paths else None
    except UnicodeDecodeError:
        gathered.add(name, None, None, "caption is not UTF-8")
        return
    if not paths:
        gathered.add(name, place, found)
    elif not file:
        gathered.add(name, None, None, "no file in this row")
    else:
        gathered.add(printable(file), str(folder / file), found, _lost(folder / file))


class _Some:
    """A selection of another source's images, in a given order."""

    def __init__(self, source: Source, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows

    def read(self, index: int) -> bytes | Path:
        return self.source.read(int(self.rows[index]))

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        self.source.sign(digest, self.rows[indices])
