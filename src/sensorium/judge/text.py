"""Language models: bits per byte of held-out text, with an interpolated 5-gram model and byte frequencies as
baselines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sensorium.abilities import LanguageModel
from sensorium.base.precision import device_name
from sensorium.data.text.prepare import Prepared
from sensorium.judge import lengths as elsewhere
from sensorium.judge.bits import bits_per_byte, in_blocks, text_baselines
from sensorium.judge.evaluator import Evaluator, Kept
from sensorium.judge.score import Asked, Judgement, Score, Trained

BITS = "bits per byte"
LOOKED = 20_000  # held-out tokens of an online evaluation


def online(method: Any, ready: Prepared) -> dict[str, float]:
    """Bits per byte of the beginning of the held-out text."""
    device = next(method.parameters()).device
    return {"bits_per_byte": _bits(method, ready, *_beginning(ready), device)["bits_per_byte"]}


def judge(run: Trained, ready: Prepared, asked: Asked, kept: Kept) -> Judgement:
    """Bits per byte of the whole held-out text, and of the baselines."""

    def whole() -> dict[str, Any]:
        bytes_of = np.array([len(ready.tokenizer.decode([token])) for token in range(ready.tokenizer.vocab)])
        each: list[np.ndarray] = []
        found = _bits(run.method, ready, ready.test, ready.test_bytes, device_name(), each.append)
        kept.outcomes[BITS] = in_blocks(each[0], bytes_of[ready.test])
        return found

    found = kept.piece("bits", whole)
    simple = kept.piece("baselines", lambda: text_baselines(ready.opened.train, ready.opened.test))
    beside = {
        title: simple[name]["bits_per_byte"]
        for name, title in (("kneser_ney", "Kneser-Ney, 5"), ("unigram", "unigram"))
    }
    score = Score(BITS, found["bits_per_byte"], "lower", found["n"], "held-out bytes", beside, curve="bits_per_byte")
    return Judgement((score,))


def at_lengths(run: Trained, ready: Prepared) -> list[dict[str, Any]]:
    """Bits per byte of the beginning of the held-out text, and the cost of a training step, at one, two, four and eight
    times the training length."""
    part, count = _beginning(ready)
    boundary = ready.tokenizer.vocab - 1
    return elsewhere.at_lengths(
        run.method, part, count, length=ready.length, boundary=boundary, device=next(run.method.parameters()).device
    )


def _beginning(ready: Prepared) -> tuple[np.ndarray, int]:
    """The first held-out tokens, and how many bytes they encode."""
    part = ready.test[:LOOKED]
    return part, sum(len(ready.tokenizer.decode(part[i : i + 1000].tolist())) for i in range(0, len(part), 1000))


def _bits(
    method: Any,
    ready: Prepared,
    tokens: np.ndarray,
    count: int,
    device: Any,
    keep: Callable[[np.ndarray], None] | None = None,
) -> dict[str, Any]:
    boundary = ready.tokenizer.vocab - 1
    return bits_per_byte(
        method, tokens, count, length=ready.length, boundary=boundary, device=device, batch_size=32, keep=keep
    )


EVALUATOR = Evaluator(
    name="language", ability=LanguageModel, needs=frozenset({"tokens"}), judge=judge, online=online, beyond=at_lengths
)
