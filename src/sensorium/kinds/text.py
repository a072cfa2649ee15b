"""Text: tokens in packed rows, judged in bits per byte of held-out text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.base.bf16 import fast_bf16
from sensorium.base.files import write_json
from sensorium.base.precision import device_name
from sensorium.data.text.open import BPE, Bytes, Texts, Tokenizer, open_text, read_tokenizer, rows_of, tokens_of
from sensorium.errors import SensoriumError
from sensorium.judge import lengths as elsewhere
from sensorium.judge.bits import bits_per_byte, text_baselines
from sensorium.kinds import Asked, Score, Source, Trained
from sensorium.method import Method
from sensorium.recipes.language import TextSituation

SITUATION = TextSituation
UNIT = "rows of text"
LOOKED = 20_000  # held-out tokens of a look during training
LENGTHS = {"cpu": 128}
USUAL_LENGTH = 1024


@dataclass(frozen=True)
class Rows:
    """Rows of tokens as training reads them: ``images`` is [N, length + 1]."""

    images: np.ndarray
    labels: None = None
    mean: tuple[()] = ()
    std: tuple[()] = ()
    classes: tuple[()] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Prepared:
    """Text ready for training and judging. ``test`` are the held-out tokens, ``test_bytes`` what they stand for."""

    opened: Texts
    tokenizer: Tokenizer
    train: Rows
    test: np.ndarray
    test_bytes: int
    length: int


def prepare(source: Source, *, progress: bool = False) -> Prepared:
    """Read the text, learn ``vocab`` tokens from it (bytes if not given) unless its run has a tokenizer, lay out rows of ``length``."""
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
        raise SensoriumError(f"--length {length}: 2 tokens are the least.")
    train, held = (
        tokens_of(documents, tokenizer, source.cache, name)
        for name, documents in (("train", opened.train), ("test", opened.test))
    )
    return Prepared(opened, tokenizer, Rows(rows_of(train, length)), held, sum(map(len, opened.test)), length)


def situate(ready: Prepared) -> TextSituation:
    """Vocabulary, length and number of the rows, and the machine."""
    device, cores = device_name(), os.cpu_count() or 1
    return TextSituation(ready.tokenizer.vocab, ready.length, len(ready.train), device, cores, fast_bf16(device))


def wanted(situation: TextSituation) -> dict[str, Any]:
    return {"settings": {"length": situation.length}}


def keep(ready: Prepared, folder: Path) -> None:
    """The tokenizer, which was learnt from the text."""
    ready.tokenizer.save(folder / "tokenizer.json")


def online(ready: Prepared) -> Callable[[Method], dict[str, float]]:
    """A quick look during training: bits per byte of the beginning of the held-out text."""
    part, count = _beginning(ready)

    def look(method: Any) -> dict[str, float]:
        device = next(method.parameters()).device
        return {"bits_per_byte": _bits(method, ready, part, count, device)["bits_per_byte"]}

    return look


def judge(run: Trained, ready: Prepared, asked: Asked) -> dict[str, Any]:
    """Bits per byte of the whole held-out text, and the baselines beside it."""
    path = run.folder / "evaluation.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if "bits_per_byte" not in found:
        found |= _bits(run.method, ready, ready.test, ready.test_bytes, device_name())
        found["baselines"] = text_baselines(ready.opened.train, ready.opened.test)
        write_json(path, found)
    return found


def at_lengths(run: Trained, ready: Prepared) -> list[dict[str, Any]]:
    """The beginning of the held-out text and a training step at the trained length, and at two, four and eight times it."""
    part, count = _beginning(ready)
    boundary = ready.tokenizer.vocab - 1
    return elsewhere.at_lengths(
        run.method, part, count, length=ready.length, boundary=boundary, device=next(run.method.parameters()).device
    )


def scores(found: dict[str, Any]) -> list[Score]:
    """Bits per byte, beside an interpolated 5-gram model and the frequencies of single bytes."""
    beside = {
        title: found["baselines"][name]["bits_per_byte"]
        for name, title in (("kneser_ney", "Kneser-Ney, 5"), ("unigram", "unigram"))
    }
    value = found["bits_per_byte"]
    return [Score("bits per byte", value, "lower", found["n"], "held-out bytes", beside, curve="bits_per_byte")]


def describe(ready: Prepared) -> dict[str, Any]:
    """Counts are of tokens."""
    return {
        "layout": ready.opened.layout,
        "train": ready.train.images.size,
        "test": len(ready.test),
        "unit": f"tokens ({ready.tokenizer.vocab:,} kinds)",
        "notes": list(ready.opened.notes),
    }


def write_text(
    run: Any, prompt: str, *, most: int, temperature: float, top_k: int | None, seed: int
) -> Iterator[bytes]:
    """What a run's model writes after ``prompt``, a token at a time, until a document ends or ``most`` tokens are written.

    It looks back on as many tokens as its rows had in training.
    """
    tokenizer = kept_tokenizer(run.folder)
    boundary = tokenizer.vocab - 1
    given = np.concatenate([[boundary], tokenizer.encode(prompt.encode())]).astype(np.int64)
    generator = torch.Generator().manual_seed(seed)
    how = {"temperature": temperature, "top_k": top_k, "generator": generator, "window": run.situation.length}
    for token in run.method.generate(torch.from_numpy(given)[None], most=most, **how):
        if int(token) == boundary:
            return
        yield tokenizer.decode([int(token)])


def kept_tokenizer(folder: Path) -> Tokenizer:
    return read_tokenizer(folder / "tokenizer.json")


def _beginning(ready: Prepared) -> tuple[np.ndarray, int]:
    """The first held-out tokens, and how many bytes they stand for."""
    part = ready.test[:LOOKED]
    return part, sum(len(ready.tokenizer.decode(part[i : i + 1000].tolist())) for i in range(0, len(part), 1000))


def _bits(method: Any, ready: Prepared, tokens: np.ndarray, count: int, device: Any) -> dict[str, Any]:
    return bits_per_byte(
        method, tokens, count, length=ready.length, boundary=ready.tokenizer.vocab - 1, device=device, batch_size=32
    )
