"""Text as tokens: documents from a path, tokenizers, and rows of tokens for training and evaluation.

open_text reads .txt and .md files (also .gz), .jsonl and Parquet with a column "text", and folders of these. Files and
folders named train, valid or test are those splits (see :mod:`sensorium.data.names`); with no test set, neither there
nor as a second path, the end of the text is held out: the last tenth of the documents, or of a single document.
Documents are bytes, decoded as UTF-8 for tokenizers of characters.
Tokens of all documents are concatenated in a memory map, each document after a boundary token; a row is a window of it,
so there is no padding, and a document may begin anywhere in a row.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from sensorium.base.files import cache_for, write_bytes, write_text
from sensorium.base.reading import printable
from sensorium.base.words import counted, plural
from sensorium.data.log import Log, Skipped
from sensorium.data.text.documents import Room, read_sets
from sensorium.data.text.foreign import Parts, build, byte_level, read_tokenizer_file
from sensorium.errors import SensoriumError

HELD_OUT = 0.1
BOUNDARY = "<|end|>"
_PIECE = 1 << 20  # bytes of a document that are encoded at once
_WORD = re.compile(rb"[!-~](?= [0-9A-Za-z])")


@dataclass(frozen=True)
class Texts:
    """Opened text: the documents of both sets as bytes, the layout, what was skipped and why, and notes: about choices,
    and counts of what was skipped."""

    path: str
    layout: str
    train: tuple[bytes, ...]
    test: tuple[bytes, ...]
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()


class Tokenizer(Protocol):
    """Encodes bytes as tokens and decodes them. ``vocab`` includes the boundary, the last token."""

    vocab: int

    def encode(self, document: bytes) -> np.ndarray: ...
    def decode(self, tokens: Iterable[int]) -> bytes: ...
    def save(self, path: Path) -> None: ...


def open_text(path: str | Path, *, test: str | Path | None = None) -> Texts:
    """Read ``path``, and ``test`` as the test set. Raises SensoriumError that names the file if there is no text."""
    shown, log, room = printable(str(path)), Log(), Room.now()
    layout, sets = read_sets(Path(path), log, room)
    if test is not None:
        second = read_sets(Path(test), log, room)[1]
        sets["test"] = second.get("test") or second.get("val") or second["train"]
    train, held = sets["train"], sets.get("test") or sets.get("val")
    if held is None:
        train, held = _hold_out(train)
        log.notes.append("No test set was given: the last tenth of the text is held out.")
    elif "val" in sets:
        used = "used as the test set" if held is sets["val"] else "neither trained on nor judged by"
        log.notes.append(f"The validation set ({counted(len(sets['val']), 'document')}) is {used}.")
    if both := _shared(train, held):
        log.notes.append(
            f"{both:,} of the {counted(len(held), 'test document')} {plural(both, 'is')} also in the training set."
        )
    for name, documents in (("train", train), ("test", held)):
        if sum(map(len, documents)) < 64:
            told = f" {' '.join(log.sentences())}" if log.counts else ""
            raise SensoriumError(f"{shown}: the {name} set has fewer than 64 bytes of text.{told}")
    return Texts(
        shown,
        layout,
        tuple(train),
        tuple(held),
        tuple(dict.fromkeys([*log.notes, *log.sentences()])),
        tuple(log.skipped),
    )


def _shared(train: list[bytes], held: list[bytes]) -> int:
    """How many different documents of ``held`` are in ``train``. Only those of a size in both are compared."""
    sizes = set(map(len, train)).intersection(map(len, held))
    known = {document for document in held if len(document) in sizes}
    return len(known.intersection(document for document in train if len(document) in sizes)) if known else 0


def _hold_out(documents: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    if len(documents) >= 10:
        cut = len(documents) - round(len(documents) * HELD_OUT)
        return documents[:cut], documents[cut:]
    whole = b"\n".join(documents) if len(documents) > 1 else documents[0]
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
        trainer = trainers.BpeTrainer(vocab_size=vocab - 1, initial_alphabet=_alphabet(), show_progress=False)
        inner.train_from_iterator((part.decode(errors="replace") for d in documents for part in _pieces(d)), trainer)
        inner.add_special_tokens([BOUNDARY])  # the last token
        return cls(inner)

    def encode(self, document: bytes) -> np.ndarray:
        """int64 [N]; invalid UTF-8 becomes the replacement character."""
        return np.array(self.inner.encode(document.decode(errors="replace")).ids, np.int64)

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The bytes of the tokens, which may begin and end within a character."""
        return b"".join(self._bytes_of(int(t)) for t in tokens if t < self.vocab - 1)

    def _bytes_of(self, token: int) -> bytes:
        name, numbers = self.inner.id_to_token(token) or "", _numbers()
        if all(symbol in numbers for symbol in name):
            return bytes(numbers[symbol] for symbol in name)
        return name.encode()  # added as it is

    def save(self, path: Path) -> None:
        write_text(path, json.dumps({"kind": "bpe", "tokenizer": json.loads(self.inner.to_str())}))


def read_tokenizer(path: Path) -> Bytes | BPE:
    """Read the file of ``save``. Raises SensoriumError that names the file for anything else."""
    where, told = printable(str(path)), read_tokenizer_file(path)
    if told.get("kind") == "bytes":
        return Bytes()
    if told.get("kind") != "bpe":
        raise SensoriumError(f"{where}: not a tokenizer of text.")
    words = byte_level(True)
    parts = Parts((None,), (words,), words | {"add_prefix_space": True}, None, None)
    inner = build(told.get("tokenizer"), where, parts, whole=True)
    found, known = BPE(inner), inner.get_vocab()
    if known.get(BOUNDARY) != found.vocab - 1 or not all(symbol in known for symbol in _alphabet()):
        raise SensoriumError(
            f"{where}: not a tokenizer of text: it lacks some bytes, or the boundary as its last token."
        )
    return found


def byte_symbols() -> list[str]:
    """The character that stands for each byte 0 to 255 in a byte-level vocabulary: itself in Latin-1 if that is
    printable, else one from U+0100 on (as in GPT-2)."""
    unprinted = iter(range(0x100, 0x200))
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return [chr(byte if byte in printed else next(unprinted)) for byte in range(256)]


@cache
def _numbers() -> dict[str, int]:
    return {symbol: byte for byte, symbol in enumerate(byte_symbols())}


def _alphabet() -> list[str]:
    return sorted(byte_symbols())


def tokens_of(documents: Iterable[bytes], tokenizer: Tokenizer, folder: Path, name: str) -> np.ndarray:
    """All documents' tokens, each document after a boundary: a read-only memory map in ``folder``, made once."""
    documents = list(documents)
    seal = hashlib.sha256(f"{type(tokenizer).__name__} {tokenizer.vocab}".encode())
    if isinstance(tokenizer, BPE):
        seal.update(tokenizer.inner.to_str().encode())
    for document in documents:
        seal.update(len(document).to_bytes(8, "little"))
        seal.update(document)
    dtype = np.dtype(np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32)
    file_name = f"tokens-{name}-{seal.hexdigest()[:16]}.{dtype.name}"
    path = cache_for(folder, file_name) / file_name
    if not path.is_file() or path.stat().st_size < dtype.itemsize * len(documents):
        boundary = np.array([tokenizer.vocab - 1], dtype).tobytes()

        def write(file: BinaryIO) -> None:
            for document in documents:
                file.write(boundary)
                for piece in _pieces(document) if len(document) > _PIECE else (document,):
                    file.write(tokenizer.encode(piece).astype(dtype).tobytes())

        write_bytes(path, write)
    return np.memmap(path, dtype, "r")


def _pieces(document: bytes) -> Iterator[bytes]:
    """Parts of at most two ``_PIECE`` that are encoded as the whole is: a space after a visible one begins a word.

    Only text with no such space for that long is cut elsewhere."""
    start = 0
    while len(document) - start > _PIECE:
        space = _WORD.search(document, start + _PIECE, start + 2 * _PIECE)
        cut = space.end() if space else min(start + 2 * _PIECE, len(document))
        while not space and cut < len(document) and document[cut] & 0xC0 == 0x80 and cut > start + _PIECE:
            cut -= 1  # not within a character
        yield document[start:cut]
        start = cut
    yield document[start:]


def rows_of(tokens: np.ndarray, length: int) -> np.ndarray:
    """Windows of ``length`` + 1 tokens, each beginning with the last of the previous one: [N, length + 1], no copy."""
    if len(tokens) < length + 1:
        raise SensoriumError(
            f"the text has {counted(len(tokens), 'token')}: too few for rows of {length}. Give a smaller --length."
        )
    return np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length]
