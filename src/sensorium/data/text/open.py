"""Text as tokens: documents from a path, tokenizers, and rows of tokens for training and evaluation.

open_text reads .txt and .md files (also .gz), .jsonl and Parquet with a column "text", and folders of these; with
train/val/test sub-folders or a second path as the test set, else the end of the text is held out: the last tenth of the
documents, or of a single document. Documents are bytes, decoded as UTF-8 for tokenizers of characters.
Tokens of all documents are concatenated in a memory map, each document after a boundary token; a row is a window of it,
so there is no padding, and a document may begin anywhere in a row.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from sensorium.base.files import cache_for, write_bytes, write_text
from sensorium.base.reading import printable
from sensorium.errors import SensoriumError

HELD_OUT = 0.1
_PLAIN = (".txt", ".md", ".text")
_ROWS = (".jsonl", ".ndjson")
_LOOKED_FOR = "a .txt or .md file (also .gz), .jsonl or .parquet with a column 'text', or a folder of these"
BOUNDARY = "<|end|>"


@dataclass(frozen=True)
class Texts:
    """Opened text: the documents of both sets as bytes, the layout, and notes about choices."""

    path: str
    layout: str
    train: tuple[bytes, ...]
    test: tuple[bytes, ...]
    notes: tuple[str, ...] = ()


class Tokenizer(Protocol):
    """Encodes bytes as tokens and decodes them. ``vocab`` includes the boundary, the last token."""

    vocab: int

    def encode(self, document: bytes) -> np.ndarray: ...
    def decode(self, tokens: Iterable[int]) -> bytes: ...
    def save(self, path: Path) -> None: ...


def open_text(path: str | Path, *, test: str | Path | None = None) -> Texts:
    """Read ``path``, and ``test`` as the test set. Raises SensoriumError that names the file and the line or column."""
    layout, sets = _sets(Path(path))
    notes: list[str] = []
    if test is not None:
        second = _sets(Path(test))[1]
        sets["test"] = second.get("test") or second["train"]
    train, held = sets["train"], sets.get("test") or sets.get("val")
    if held is None:
        train, held = _hold_out(train)
        notes.append("No test set was given: the last tenth of the text is held out.")
    for name, documents in (("train", train), ("test", held)):
        if sum(map(len, documents)) < 64:
            raise SensoriumError(f"{printable(str(path))}: the {name} set has fewer than 64 bytes of text.")
    return Texts(printable(str(path)), layout, tuple(train), tuple(held), tuple(notes))


def _sets(path: Path) -> tuple[str, dict[str, list[bytes]]]:
    where = printable(str(path))
    if not path.exists():
        raise SensoriumError(f"there is nothing at '{where}'. Give {_LOOKED_FOR}.")
    if path.is_file():
        return path.name.removesuffix(".gz").rsplit(".", 1)[-1], {"train": list(_documents(path))}
    parts = {name: path / name for name in ("train", "val", "test") if (path / name).is_dir()}
    if "train" not in parts:
        parts = {"train": path}
    sets = {name: [document for file in _files(part) for document in _documents(file)] for name, part in parts.items()}
    if not sets["train"]:
        raise SensoriumError(f"'{where}' has no text. Looked for {_LOOKED_FOR}.")
    return "folder", {name: documents for name, documents in sets.items() if documents}


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and _kind(file))


def _kind(file: Path) -> str | None:
    name = file.name.lower().removesuffix(".gz")
    if name.endswith(_PLAIN):
        return "plain"
    if name.endswith(_ROWS):
        return "rows"
    return "parquet" if name.endswith(".parquet") else None


def _documents(file: Path) -> Iterator[bytes]:
    where, kind = printable(str(file)), _kind(file)
    if kind is None:
        raise SensoriumError(f"'{where}' is not text in a known format. Give {_LOOKED_FOR}.")
    try:
        if kind == "parquet":
            yield from _parquet(file, where)
            return
        data = gzip.decompress(file.read_bytes()) if file.name.lower().endswith(".gz") else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SensoriumError(f"{where}: not readable ({error}).") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    if kind == "plain":
        if data:
            yield data
        return
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)["text"].encode()
            except (ValueError, KeyError, TypeError, AttributeError):
                raise SensoriumError(f"{where}, line {number}: not a JSON object with a string 'text'.") from None


def _parquet(file: Path, where: str) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        if "text" not in table.schema_arrow.names:
            listed = ", ".join(table.schema_arrow.names)
            raise SensoriumError(f"{where}: no column 'text'; it has {listed}.")
        for batch in table.iter_batches(columns=["text"]):
            yield from (text.encode() for text in batch.column(0).to_pylist() if text)
    except (pa.ArrowException, AttributeError) as error:
        raise SensoriumError(f"{where}: not readable as Parquet ({error}).") from None


def _hold_out(documents: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    if len(documents) >= 10:
        cut = len(documents) - round(len(documents) * HELD_OUT)
        return documents[:cut], documents[cut:]
    whole = b"\n".join(documents)
    cut = len(whole) - round(len(whole) * HELD_OUT)
    return [whole[:cut]], [whole[cut:]]


class Bytes:
    """One token per byte, and one for the boundary: 257."""

    vocab = 257

    def encode(self, document: bytes) -> np.ndarray:
        """int64 [N], 0..255."""
        return np.frombuffer(document, np.uint8).astype(np.int64)

    def decode(self, tokens: Iterable[int]) -> bytes:
        return bytes(token for token in tokens if token < 256)

    def save(self, path: Path) -> None:
        write_text(path, json.dumps({"kind": "bytes"}))


class BPE:
    """Byte-pair encoding of bytes (Sennrich et al., 2016, arXiv:1508.07909; of bytes as in GPT-2), by ``tokenizers``."""

    def __init__(self, tokenizer: Any) -> None:
        self.inner = tokenizer
        self.vocab: int = tokenizer.get_vocab_size()

    @classmethod
    def learn(cls, documents: Iterable[bytes], vocab: int) -> BPE:
        """Learn ``vocab`` tokens (at least 257) from ``documents``."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if vocab < 257:
            raise SensoriumError(f"--vocab {vocab}: must be at least 257: 256 bytes and a boundary.")
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=vocab - 1, initial_alphabet=alphabet, show_progress=False)
        inner.train_from_iterator((d.decode(errors="replace") for d in documents), trainer)
        inner.add_special_tokens([BOUNDARY])  # the last token
        return cls(inner)

    def encode(self, document: bytes) -> np.ndarray:
        """int64 [N]; invalid UTF-8 becomes the replacement character."""
        return np.array(self.inner.encode(document.decode(errors="replace")).ids, np.int64)

    def decode(self, tokens: Iterable[int]) -> bytes:
        return self.inner.decode([int(t) for t in tokens if t < self.vocab - 1]).encode()

    def save(self, path: Path) -> None:
        write_text(path, json.dumps({"kind": "bpe", "tokenizer": json.loads(self.inner.to_str())}))


def read_tokenizer(path: Path) -> Bytes | BPE:
    """Read the file of ``save``."""
    from tokenizers import Tokenizer as Inner

    try:
        found = json.loads(path.read_text())
        return BPE(Inner.from_str(json.dumps(found["tokenizer"]))) if found["kind"] == "bpe" else Bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SensoriumError(f"{path}: not a tokenizer ({error}).") from None


def tokens_of(documents: Iterable[bytes], tokenizer: Tokenizer, folder: Path, name: str) -> np.ndarray:
    """All documents' tokens, each document after a boundary: a read-only memory map in ``folder``, made once."""
    documents = list(documents)
    seal = hashlib.sha256(f"{type(tokenizer).__name__} {tokenizer.vocab}".encode())
    for document in documents:
        seal.update(len(document).to_bytes(8, "little") + document)
    dtype = np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32
    file_name = f"tokens-{name}-{seal.hexdigest()[:16]}.{np.dtype(dtype).name}"
    path = cache_for(folder, file_name) / file_name
    if not path.is_file():

        def write(file: BinaryIO) -> None:
            for document in documents:
                file.write(np.array([tokenizer.vocab - 1], dtype).tobytes())
                file.write(tokenizer.encode(document).astype(dtype).tobytes())

        write_bytes(path, write)
    return np.memmap(path, dtype, "r")


def rows_of(tokens: np.ndarray, length: int) -> np.ndarray:
    """Windows of ``length`` + 1 tokens, each beginning with the last of the previous one: [N, length + 1], no copy."""
    if len(tokens) < length + 1:
        raise SensoriumError(
            f"the text has {len(tokens)} tokens: too few for rows of {length}. Give a smaller --length."
        )
    return np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length]
