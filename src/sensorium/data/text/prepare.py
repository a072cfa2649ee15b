"""Text: tokens in packed rows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.bf16 import fast_bf16
from sensorium.base.precision import device_name
from sensorium.base.records import Count, Device, Size
from sensorium.base.words import counted
from sensorium.data.log import tell
from sensorium.data.rows import ArrayRows
from sensorium.data.source import Source
from sensorium.data.text.faults import faults
from sensorium.data.text.open import BPE, Bytes, Texts, Tokenizer, open_text, read_tokenizer, rows_of, tokens_of
from sensorium.errors import SensoriumError


@dataclass(frozen=True)
class TextSituation:
    """What a recipe's defaults depend on: ``vocab`` with the boundary, ``length`` of a row, ``rows`` of training text,
    the machine."""

    vocab: Size
    length: Size
    rows: Count
    device: Device = "cpu"
    cores: Size = 1
    bf16: bool = False


SITUATION = TextSituation
UNIT = "rows of text"
SHAPED_BY: tuple[str, ...] = ("vocab", "length")
KEPT: tuple[str, ...] = ("tokenizer.json",)
LENGTHS = {"cpu": 128}
USUAL_LENGTH = 1024


@dataclass(frozen=True)
class Prepared:
    """Text ready for training and evaluation. ``test``: the held-out tokens, ``test_bytes``: their number of bytes."""

    opened: Texts
    tokenizer: Tokenizer
    train: ArrayRows
    test: np.ndarray
    test_bytes: int
    length: int


def prepare(source: Source, *, progress: bool = False) -> Prepared:
    """Read the text, learn a tokenizer of ``vocab`` from it (bytes if None) unless its run has one, make rows of
    ``length``."""
    for flag, value in (("--image-size", source.image_size), ("--limit", source.limit)):
        if value is not None:
            raise SensoriumError(f"{flag} is for pictures; this system learns from text.")
    opened = open_text(source.path, test=source.test)
    vocab = source.settings.get("vocab")
    if source.run is not None:
        tokenizer = kept_tokenizer(source.run)
    else:
        tokenizer = Bytes() if vocab in (None, Bytes.vocab) else BPE.learn(opened.train, int(vocab or 0))
    length = source.settings.get("length") or LENGTHS.get(device_name(), USUAL_LENGTH)
    if length < 2:
        raise SensoriumError(f"--length {length}: must be at least 2 tokens.")
    train, held = (
        tokens_of(documents, tokenizer, source.cache, name)
        for name, documents in (("train", opened.train), ("test", opened.test))
    )
    if progress:
        found = f"{opened.layout}: {len(opened.train):,} training and {counted(len(opened.test), 'test document')}"
        tell([found, *opened.notes])
    return Prepared(
        opened,
        tokenizer,
        ArrayRows({"tokens": rows_of(train, length)}, "tokens", length),
        held,
        sum(map(len, opened.test)),
        length,
    )


def situate(ready: Prepared) -> TextSituation:
    """Vocabulary, length and number of the rows, and the machine."""
    device, cores = device_name(), os.cpu_count() or 1
    return TextSituation(ready.tokenizer.vocab, ready.length, len(ready.train), device, cores, fast_bf16(device))


def wanted(situation: TextSituation) -> dict[str, Any]:
    return {"settings": {"length": situation.length}}


def keep(ready: Prepared, folder: Path) -> None:
    """Write the tokenizer."""
    ready.tokenizer.save(folder / "tokenizer.json")


def describe(ready: Prepared) -> dict[str, Any]:
    """Counts are of tokens."""
    return {
        "layout": ready.opened.layout,
        "train": len(ready.train) * (ready.length + 1),
        "test": len(ready.test),
        "unit": f"tokens ({ready.tokenizer.vocab:,} kinds)",
        "notes": list(ready.opened.notes),
    }


def diagnose(ready: Prepared, *, progress: bool = False) -> dict[str, Any] | None:
    """Advice about the text, beside what the description says; None if there is nothing to say."""
    advice = [one.said for one in faults(ready.opened)]
    return {"advice": advice} if advice else None


def kept_tokenizer(folder: Path) -> Tokenizer:
    return read_tokenizer(folder / "tokenizer.json")
