"""Bits per byte of held-out text, which is comparable between tokenizers.

    bits = sum over tokens of -log2 p(token | earlier tokens of its document) / bytes of the text
Windows of ``length`` tokens overlap by half, and only the new tokens of each are counted: every token, except at the
start of the text, has a context of at least half a window. Boundaries between documents are given, not predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from sensorium.data.text.open import Bytes
from sensorium.judge.encode import Precision, autocast, judged
from sensorium.metrics.ngram import KneserNey, unigram_bits


def bits_per_byte(
    model: Any,
    tokens: np.ndarray,
    count: int,
    *,
    length: int,
    boundary: int,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
    keep: Callable[[np.ndarray], None] | None = None,
) -> dict[str, float | int]:
    """``{"bits_per_byte", "n"}`` of ``tokens`` [N] that encode ``count`` bytes; n is ``count``.

    model: has ``log_prob(tokens [B, T], documents [B, T]) -> [B, T - 1]``. boundary: the token before each document.
    ``keep`` is called with each token's bits, float64 [N].
    """
    spans, bits = windows(len(tokens), length), np.zeros(len(tokens))
    nats = 0.0
    with judged(model, device), autocast(device, precision):
        for at in range(0, len(spans), batch_size):
            part = spans[at : at + batch_size]
            widths = {stop - start for start, stop, _ in part}
            for width in sorted(widths):
                same = [span for span in part if span[1] - span[0] == width]
                x = torch.from_numpy(np.stack([tokens[a:b] for a, b, _ in same]).astype(np.int64)).to(device)
                log_p = model.log_prob(x, (x == boundary).cumsum(1)).double()
                fresh = torch.arange(width - 1, device=log_p.device) >= torch.tensor(
                    [width - 1 - new for _, _, new in same], device=log_p.device
                ).unsqueeze(1)
                counted = fresh & (x[:, 1:] != boundary)
                nats -= float(log_p[counted].sum())
                each = torch.where(counted, -log_p / math.log(2), 0).cpu().numpy()
                for row, (_, stop, new) in zip(each, same, strict=True):
                    bits[stop - new : stop] = row[width - 1 - new :]
            if on_progress is not None:
                on_progress(min(at + batch_size, len(spans)), len(spans))
    if keep is not None:
        keep(bits)
    return {"bits_per_byte": nats / math.log(2) / count, "n": count}


def in_blocks(bits: np.ndarray, lengths: np.ndarray, most: int = 1000, least: int = 64) -> np.ndarray:
    """Bits per byte of equal blocks of the text, float64 [K], from the bits and the byte count of each token [N].

    At most ``most`` blocks of at least ``least`` bytes, which do not depend on the tokenizer; a token counts in the
    block in which it ends.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    count = int(np.clip(total // least, 1, most))
    block = np.clip(ends - 1, 0, None) * count // total
    return np.bincount(block, bits, minlength=count) * count / total


def windows(tokens: int, length: int) -> list[tuple[int, int, int]]:
    """Windows (start, stop, number of new tokens at the end): every token but the first is new in exactly one
    window."""
    stride = max(1, length // 2)
    spans, done = [], 1
    while done < tokens:
        stop = min(tokens, length + 1 if done == 1 else done + stride)
        spans.append((max(0, stop - length - 1), stop, stop - done))
        done = stop
    return spans


def text_baselines(
    train: Sequence[bytes], test: Sequence[bytes], *, order: int = 5
) -> dict[str, dict[str, float | int]]:
    """``unigram`` and ``kneser_ney`` of ``order`` bytes, each {"bits_per_byte", "n"}, on the concatenated test
    documents."""
    fit, held = (Bytes().encode(b"\n".join(documents)).astype(np.uint8) for documents in (train, test))
    return {
        "unigram": {"bits_per_byte": unigram_bits(fit, held), "n": len(held)},
        "kneser_ney": {"bits_per_byte": KneserNey(fit, order).bits_per_byte(held), "n": len(held)},
    }
