"""Quality and cost of a language model at lengths beyond its training length.

Time and memory are those of a training step over the same number of tokens at each length, which isolates the effect of
the length: medians of a few steps, and the bytes kept for the backward pass.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.judge.bits import bits_per_byte

TOKENS = 4096  # per step
ROUNDS = 3


def at_lengths(
    model: Any, tokens: np.ndarray, count: int, *, length: int, boundary: int, device: torch.device | str = "cpu"
) -> list[dict[str, Any]]:
    """For the trained ``length``, twice, four times and eight times it: ``length``, ``bits_per_byte`` of ``tokens`` [N]
    that encode ``count`` bytes (None if the model does not support the length), ``tokens_per_second`` of a training
    step and ``kept_mb`` for its backward pass."""
    found = []
    for times in (1, 2, 4, 8):
        long = times * length
        row: dict[str, Any] = {"length": long}
        try:
            row |= bits_per_byte(
                model, tokens, count, length=long, boundary=boundary, device=device, batch_size=max(1, TOKENS // long)
            )
            row |= _cost(model, tokens, long, device)
        except (ValueError, IndexError) as error:
            row |= {"bits_per_byte": None, "said": str(error)[:200]}
        found.append({key: value for key, value in row.items() if key != "n"})
    return found


def _cost(model: Any, tokens: np.ndarray, length: int, device: torch.device | str) -> dict[str, float]:
    rows = max(1, TOKENS // length)
    some = np.resize(tokens, rows * (length + 1)).astype(np.int64).reshape(rows, length + 1)
    batch = {"tokens": torch.from_numpy(some).to(device)}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    weights = [p for p in model.parameters() if p.requires_grad]
    was = model.training
    model.train()
    seconds = []
    for i in range(ROUNDS + 1):
        begin = time.perf_counter()
        if i == 0:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                torch.autograd.grad(model(batch)["loss"], weights, allow_unused=True)
        else:
            torch.autograd.grad(model(batch)["loss"], weights, allow_unused=True)
            _wait(device)
            seconds.append(time.perf_counter() - begin)
    model.train(was)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = sum(size for at, size in kept.items() if at not in own)
    return {"tokens_per_second": rows * length / float(np.median(seconds)), "kept_mb": held / 2**20}


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
