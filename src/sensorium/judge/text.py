"""Language models: bits per byte of held-out text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from sensorium.base.files import write_json
from sensorium.base.precision import device_name
from sensorium.data.text.prepare import Prepared
from sensorium.judge import lengths as elsewhere
from sensorium.judge.bits import bits_per_byte, text_baselines
from sensorium.judge.score import Asked, Score, Trained
from sensorium.method import Method

LOOKED = 20_000  # held-out tokens of a look during training


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


def _beginning(ready: Prepared) -> tuple[np.ndarray, int]:
    """The first held-out tokens, and how many bytes they stand for."""
    part = ready.test[:LOOKED]
    return part, sum(len(ready.tokenizer.decode(part[i : i + 1000].tolist())) for i in range(0, len(part), 1000))


def _bits(method: Any, ready: Prepared, tokens: np.ndarray, count: int, device: Any) -> dict[str, Any]:
    return bits_per_byte(
        method, tokens, count, length=ready.length, boundary=ready.tokenizer.vocab - 1, device=device, batch_size=32
    )
