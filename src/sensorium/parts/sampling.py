"""Generation with a language model: sampling tokens from its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def draw_token(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample one token per row: [B, V] -> int64 [B], from softmax(logits / temperature) over the ``top_k`` most likely,
    or all.

    temperature 0 is greedy.
    """
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if temperature == 0:
        return logits.argmax(-1)
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.multinomial((exact / temperature).softmax(-1), 1, generator=generator).squeeze(1)


def write_tokens(
    logits: Callable[[Tensor, Any], Tensor],
    new_cache: Callable[[int], Any],
    prompt: Tensor,
    *,
    most: int,
    window: int | None,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """Tokens generated after ``prompt`` [B, T], one [B] at a time, ``most`` of them.

    logits: tokens [B, n] and a cache of earlier ones -> [B, n, V]. new_cache: maximum tokens -> a cache, which counts
    the tokens ``seen``. window: maximum context, because a model generates nonsense beyond its training length; when it
    is full, its later half is processed again.
    """
    if prompt.shape[1] < 1:
        raise ValueError("generate needs a prompt of at least one token")
    room = prompt.shape[1] + most if window is None else min(window, prompt.shape[1] + most)
    cache = new_cache(room)
    text = tokens = prompt
    for _ in range(most):
        if cache.seen + tokens.shape[1] > room:
            cache, tokens = new_cache(room), text[:, -max(1, room // 2) :]
        with torch.inference_mode():
            last = logits(tokens, cache)[:, -1]
            chosen = draw_token(last, temperature=temperature, top_k=top_k, generator=generator)
        chosen = chosen.clone()  # outside inference mode: a normal tensor, usable for training
        yield chosen
        tokens = chosen[:, None]
        text = torch.cat([text, tokens], dim=1)[:, -room:]
