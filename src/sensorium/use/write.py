"""Generating text with a language model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from sensorium.data.text.prepare import kept_tokenizer


def write_text(
    run: Any, prompt: str, *, most: int, temperature: float, top_k: int | None, seed: int
) -> Iterator[bytes]:
    """Tokens generated after ``prompt``, one at a time, until a document ends or ``most`` tokens are generated.

    Its context is as long as its rows in training.
    """
    tokenizer = kept_tokenizer(run.folder)
    boundary = tokenizer.vocab - 1
    given = np.concatenate([[boundary], tokenizer.encode(prompt.encode())]).astype(np.int64)
    generator = torch.Generator().manual_seed(seed)
    tokens = run.method.generate(
        torch.from_numpy(given)[None],
        most=most,
        temperature=temperature,
        top_k=top_k,
        generator=generator,
        window=run.situation.length,
    )
    for token in tokens:
        if int(token) == boundary:
            return
        yield tokenizer.decode([int(token)])
