"""Masked language models: bits per byte of masked tokens of held-out text.

Of every row as many tokens are masked, 15 % as by BERT, whatever a run was trained with; boundaries of documents never are.
Rows are as long as in training, at most ``MOST`` of them, evenly spread over the held-out text. Baselines, on the same masked
tokens: the frequencies of tokens, and those between the two neighbors, where these are not masked.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from sensorium.abilities import MaskedLanguageModel
from sensorium.base.precision import device_name
from sensorium.base.terminal import bar
from sensorium.data.text.prepare import Prepared
from sensorium.errors import SensoriumError
from sensorium.judge.encode import judged
from sensorium.judge.evaluator import Evaluator, Kept
from sensorium.judge.score import Asked, Judgement, Score, Trained
from sensorium.metrics.between import UNKNOWN, Between

BITS = "bits per masked byte"
RATIO = 0.15
MOST, LOOKED = 512, 64  # rows in all, and of an online evaluation
SEEN = 5_000_000  # training tokens that the baselines count
_BATCH = 32


class Held(NamedTuple):
    """Rows of held-out text: ``tokens`` int64 [R, T], of which ``masked`` bool [R, T] are M in every row, and
    ``lengths`` [R, M], the bytes of the masked ones."""

    tokens: np.ndarray
    masked: np.ndarray
    lengths: np.ndarray


def online(method: Any, ready: Prepared) -> dict[str, float]:
    """Bits per masked byte of some rows of the held-out text."""
    held = held_rows(ready, LOOKED)
    bits = bits_of(method, held, next(method.parameters()).device)
    return {"masked_bits": float(bits.sum() / held.lengths.sum())}


def judge(run: Trained, ready: Prepared, asked: Asked, kept: Kept) -> Judgement:
    """Bits per masked byte, and those of the baselines."""
    held = held_rows(ready, MOST)

    def mine() -> dict[str, Any]:
        with bar("judging", asked.progress):
            bits = bits_of(run.method, held, device_name())
        kept.outcomes[BITS] = bits.sum(1) / held.lengths.sum(1)
        return {"bits": float(bits.sum() / held.lengths.sum()), "n": int(held.lengths.sum())}

    found = kept.piece("bits", mine)
    beside = kept.piece("baselines", lambda: baselines(ready, held))
    return Judgement((Score(BITS, found["bits"], "lower", found["n"], "held-out bytes", beside, curve="masked_bits"),))


def held_rows(ready: Prepared, most: int) -> Held:
    """At most ``most`` rows with their masks, the same for every run of the same length. Raises SensoriumError if the
    held-out text has not enough tokens for one."""
    length = min(ready.length, len(ready.test))
    count, rng = max(1, int(RATIO * length)), np.random.default_rng(0)
    every = np.asarray(ready.test)[: len(ready.test) // max(1, length) * length].reshape(-1, max(1, length))
    noise = rng.random(every.shape)
    noise[every == ready.tokenizer.vocab - 1] = 2.0  # boundaries are given
    every, noise = (one[(noise < 2).sum(1) >= count] for one in (every, noise))
    if not len(every) or length < 2:
        raise SensoriumError(f"{ready.opened.path}: the held-out text is too short to mask some of it; give a --test.")
    chosen = np.unique(np.linspace(0, len(every) - 1, min(most, len(every))).round().astype(np.int64))
    tokens, order = every[chosen].astype(np.int64), noise[chosen].argsort(axis=1)
    masked = np.zeros(tokens.shape, bool)
    np.put_along_axis(masked, order[:, :count], True, axis=1)
    bytes_of = np.array([len(ready.tokenizer.decode([token])) for token in range(ready.tokenizer.vocab)])
    return Held(tokens, masked, bytes_of[tokens[masked]].reshape(len(tokens), count))


def bits_of(method: Any, held: Held, device: torch.device | str) -> np.ndarray:
    """Bits of the masked tokens, in the order of their places: float64 [R, M]."""
    found = []
    with judged(method, device):
        for at in range(0, len(held.tokens), _BATCH):
            rows = slice(at, at + _BATCH)
            given = (torch.from_numpy(one[rows]).to(device) for one in (held.tokens, held.masked))
            found.append(-method.masked_log_prob(*given).double().cpu().numpy() / math.log(2))
    return np.concatenate(found)


def baselines(ready: Prepared, held: Held) -> dict[str, float]:
    """Bits per masked byte by the training text's frequencies, alone and between the neighbors."""
    rows = ready.train.columns["tokens"][: max(1, SEEN // ready.length)]
    model = Between(
        np.asarray(rows)[:, :-1].ravel(), ready.tokenizer.vocab
    )  # a row begins with the last token before it
    hidden = np.pad(np.where(held.masked, UNKNOWN, held.tokens), ((0, 0), (1, 1)), constant_values=UNKNOWN)
    left, right, token = hidden[:, :-2][held.masked], hidden[:, 2:][held.masked], held.tokens[held.masked]
    count = held.lengths.sum()
    between = -np.log2(model.probability(left, token, right)).sum() / count
    return {"unigram": float(-np.log2(model.frequency[token]).sum() / count), "between neighbors": float(between)}


EVALUATOR = Evaluator(
    name="masked language", ability=MaskedLanguageModel, needs=frozenset({"tokens"}), judge=judge, online=online
)
