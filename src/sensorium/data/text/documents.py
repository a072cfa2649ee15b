"""Documents from files of text: .txt and .md whole, .jsonl and Parquet by rows with a column "text"; .json too, if its
objects have one.

A row without text is skipped and counted with its number, and so is a file of several that can't be read or isn't text.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sensorium.base.json_rows import WAY_OUT, first_row, json_rows
from sensorium.base.memory import available_memory
from sensorium.base.parquet import Parquet, is_text
from sensorium.base.reading import parse_json, printable, read_bytes
from sensorium.data.log import Log
from sensorium.data.names import divide, files_below
from sensorium.errors import NothingOfItsKind, SensoriumError

_PLAIN = (".txt", ".md", ".text")
_ROWS = (".jsonl", ".ndjson")
LOOKED_FOR = "a .txt or .md file (also .gz), .jsonl, .json or .parquet with a column 'text', or a folder of these"
_ABOUT = ("readme", "license", "licence", "notice", "citation", "changelog", "contributing")
_SHARE = 0.4  # of the free memory, for the documents
_OVERHEAD = 64  # bytes of memory per document
_BINARY = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"%PDF-",
    b"PK\3\4",
    b"\x1f\x8b",
    b"7z\xbc\xaf",
    b"\xfd7zXZ",
    b"\x28\xb5\x2f\xfd",
)
_CONTROLS = bytes(c for c in range(32) if c not in b"\t\n\v\f\r\b\x1b") + b"\x7f"
_HEAD = 1 << 16
_ODD = " is not UTF-8: its bytes are kept as they are."


@dataclass
class Room:
    """What documents may still need of the memory that was free at the start."""

    left: float

    @classmethod
    def now(cls) -> Room:
        return cls(_SHARE * available_memory())

    def take(self, size: int, where: str) -> None:
        self.left -= size + _OVERHEAD
        if self.left < 0:
            raise SensoriumError(f"{where}: the text is larger than {_SHARE:.0%} of the free memory; give less of it.")


def read_sets(path: Path, log: Log, room: Room) -> tuple[str, dict[str, list[bytes]]]:
    """The layout, and the documents by split, including "train". Raises SensoriumError if there are none."""
    where = printable(str(path))
    if not path.exists():
        raise SensoriumError(f"there is nothing at '{where}'. Give {LOOKED_FOR}.")
    if not path.is_dir():
        layout = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
        if kind_of(path) is None:
            raise NothingOfItsKind(f"'{where}' is not text in a known format. Give {LOOKED_FOR}.")
        found = list(_documents(path, path.name, log, room))
        if not found:
            broken = (
                [f"Rows are JSON objects with a 'text'; {WAY_OUT}."] if any("JSON" in why for why in log.counts) else []
            )
            raise SensoriumError(" ".join([f"{where}: has no text.", *log.sentences(), *broken]))
        return layout, {"train": found}
    files = list(files_below(path, log))
    texts = _wanted(files, path, log)
    sets: dict[str, list[bytes]] = {}
    for split, parts in divide(texts, path, log).items():
        for file in parts:
            name, before = str(file.relative_to(path)), room.left
            try:
                sets.setdefault(split, []).extend(list(_documents(file, name, log, room)))
            except SensoriumError as error:
                if room.left < 0 or len(texts) == 1:
                    raise
                room.left = before
                log.skip(name, "file that cannot be read as text", str(error))
    odd = [note for note in log.notes if note.endswith(_ODD)]
    if len(odd) > 1:
        first = odd[0].removesuffix(_ODD)
        log.notes[:] = [note for note in log.notes if not note.endswith(_ODD)]
        log.notes.append(f"{len(odd):,} files are not UTF-8 (the first: {first}): their bytes are kept as they are.")
    if not sets.get("train"):
        told = f" {' '.join(log.sentences())}" if log.counts else ""
        raise (SensoriumError if told else NothingOfItsKind)(f"'{where}' has no text. Looked for {LOOKED_FOR}.{told}")
    return "folder", {name: documents for name, documents in sets.items() if documents}


def kind_of(file: Path) -> str | None:
    """ "plain", "rows" or "parquet" by a file's name, of .json by its first object; None for others."""
    name = file.name.casefold().removesuffix(".gz")
    if name.endswith(_PLAIN):
        return "plain"
    if name.endswith(_ROWS):
        return "rows"
    if name.endswith(".json"):
        row = first_row(file)
        return "rows" if isinstance(row, dict) and isinstance(row.get("text"), str) else None
    return "parquet" if name.endswith(".parquet") else None


def _wanted(files: list[Path], root: Path, log: Log) -> list[Path]:
    """The files of text; a README beside rows is about the data, and not of them."""
    kinds = {file: kind_of(file) for file in files}
    rows = any(kind in ("rows", "parquet") for kind in kinds.values())
    found = []
    for file, kind in kinds.items():
        name = str(file.relative_to(root))
        if kind is None:
            log.skip(name, "file of another format")
        elif kind == "plain" and rows and file.name.casefold().split(".")[0] in _ABOUT:
            log.skip(name, "file about the data")
        else:
            found.append(file)
    return found


def _documents(file: Path, name: str, log: Log, room: Room) -> Iterator[bytes]:
    where, kind = printable(str(file)), kind_of(file)
    if kind == "plain":
        if document := _plain(file, name, log):
            room.take(len(document), where)
            yield document
        return
    for document in _rows(file, name, log) if kind == "rows" else _parquet(file, name, log):
        room.take(len(document), where)
        yield document


def _plain(file: Path, name: str, log: Log) -> bytes:
    data = read_bytes(file)
    head = data[:_HEAD]
    if not head.strip(b"\0 \t\r\n") and not data.strip(b"\0 \t\r\n"):
        log.skip(name, "empty file")
        return b""
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if (
        data.startswith(_BINARY)
        or (0 in data and 100 * data.count(0) > max(len(data), 300))
        or 20 * controls > len(head)
    ):
        raise SensoriumError(f"{printable(str(file))}: is not text, whatever its name says.")
    if not _utf8(data):
        log.notes.append(f"{printable(name)}{_ODD}")
    return data


def _utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(data), 1 << 20):
            decoder.decode(data[at : at + (1 << 20)])
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return False
    return True


def _rows(file: Path, name: str, log: Log) -> Iterator[bytes]:
    decode = json.JSONDecoder().decode
    word, rows = json_rows(file)
    for number, line in rows:
        try:
            text = decode(line.decode())["text"]
            if type(text) is str and text and not text.isspace():
                yield _encoded(text)
                continue
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        if not line.strip(b"\0 \t"):
            continue
        at = f"{name}, {word} {number}"
        try:
            row = parse_json(line, at)
        except SensoriumError as error:
            log.skip(at, "row that is not readable as JSON", str(error).rpartition("JSON ")[2])
            continue
        if not isinstance(row, dict) or not isinstance(row.get("text"), str | None):
            log.skip(at, "row that is not a JSON object with a string 'text'")
        elif "text" not in row:
            log.skip(at, "row without 'text'")
        elif not (row["text"] or "").strip():
            log.skip(at, "row with an empty text")
        else:
            yield _encoded(row["text"])


def _encoded(text: str) -> bytes:
    """UTF-8; half of a pair of surrogates becomes the replacement character."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _parquet(file: Path, name: str, log: Log) -> Iterator[bytes]:
    table = Parquet(file)
    if "text" not in table.names:
        raise SensoriumError(f"{table.where}: no column 'text'; it has {', '.join(map(printable, table.names[:12]))}.")
    column = table.names.index("text")
    if not is_text(table.types[column]):
        raise SensoriumError(f"{table.where}: its column 'text' is {table.types[column]}; it must be of strings.")
    for number, text in enumerate(table.texts(column), 1):
        if text is None or not text.strip():
            log.skip(f"{name}, row {number}", "row with an empty text")
        elif not _utf8(text):
            log.skip(f"{name}, row {number}", "row that is not UTF-8")
        else:
            yield text
