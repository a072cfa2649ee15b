"""Recipes of the language family.

Each function's keyword parameters are the flags of ``sensorium train NAME``. ``None`` follows from the text and the
machine; what was chosen and why is printed and kept with the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sensorium.data.draw import Draw, Views
from sensorium.language.causal_lm import CausalLM
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipes.optim import adamw
from sensorium.recipes.recipe import Recipe, Settings


@dataclass(frozen=True)
class TextSituation:
    """What defaults follow from: ``vocab`` tokens with the boundary, ``length`` of a row, ``rows`` of training text, the machine."""

    vocab: int
    length: int
    rows: int
    device: str = "cpu"
    cores: int = 1
    bf16: bool = False


def causal_lm(
    on: TextSituation,
    *,
    vocab: int | None = None,
    length: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    hidden: int | None = None,
    experts: int = 0,
    active: int = 2,
    tied: bool = True,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.1,
    warmup: float = 0.05,
) -> Recipe:
    """A decoder language model (Llama; with experts, Mixtral): each token predicts the next.

    Example: sensorium train causal_lm --data book.txt --budget 3m

    Args:
        vocab: tokens of a byte-pair encoding learnt from the text; bytes if left out.
        length: tokens a row, the longest memory that is trained.
        width: channels of a token.
        depth: layers.
        heads: of attention.
        kv_heads: of keys and values, which queries share; as many as heads if left out.
        hidden: channels of the feed-forward layer, or of each expert.
        experts: feed-forward layers to choose from; 0 is one for all tokens.
        active: experts that see a token.
        tied: predict with the weights of the embedding.
        batch_size: rows a step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: share of the budget over which the learning rate rises.
    """
    s = Settings()
    small = on.device == "cpu"
    why = f"{on.cores}-core CPU" if small else on.device
    s.pick("vocab", vocab, on.vocab, "bytes and a boundary")
    s.pick("length", length, on.length, why)
    channels: int = s.pick("width", width, 128 if small else 512, why)
    layers: int = s.pick("depth", depth, 4 if small else 8, why)
    wide = 32 if small else 64
    queries: int = s.pick("heads", heads, max(1, channels // wide), f"{wide} channels a head")
    shared: int = s.pick("kv_heads", kv_heads, queries, "one for each head")
    inner: int = s.pick("hidden", hidden, round(channels * 8 / 3 / 16) * 16, "8/3 of the width (Shazeer, 2020)")
    batch = s.pick("batch_size", batch_size, 16 if small else 64, why)
    rate = s.pick("lr", lr, 3e-3 if channels <= 256 else 1e-3, f"width {channels}")
    s.note(experts=experts, active=active, tied=tied, weight_decay=weight_decay, warmup=warmup)
    method = CausalLM(
        on.vocab,
        channels,
        layers,
        queries,
        hidden=inner,
        kv_heads=shared,
        experts=experts,
        active=active,
        tied=tied,
    )
    return Recipe(
        "causal_lm",
        method,
        packed(on.vocab - 1),
        adamw(rate, weight_decay, (0.9, 0.99)),
        lambda f: warmup_cosine(f, warmup, 0.1),
        batch,
        s,
    )


def packed(boundary: int) -> Views:
    """Rows of tokens [B, L], documents ended by ``boundary`` -> ``tokens`` [B, L] and the ``documents`` they are of [B, L]."""

    def views(rows: Tensor, labels: Tensor, draw: Draw) -> dict[str, Any]:
        tokens = rows.to(torch.int64)
        return {"tokens": tokens, "documents": (tokens == boundary).cumsum(1)}

    return views
