"""A prior over a tokenizer's codes: how to train it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sensorium.base.draw import Draw, Views
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.generative.encoded import encoded, tokenizer_of
from sensorium.generative.token_decoder import pick_sizes, token_decoder
from sensorium.generative.token_prior.method import TokenPrior, vocab_of
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw
from sensorium.recipe.recipe import Recipe, Settings, machine_of
from sensorium.recipe.trained import RunFolder


def token_prior(
    on: Situation,
    *,
    tokens: RunFolder,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    classes: bool = True,
    top_k: int | None = None,
    temperature: float = 1.0,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.1,
    warmup: float = 0.05,
) -> Recipe:
    """A Transformer over a tokenizer's codes (Esser et al., 2020, section 3.2), which generates pictures.

    Example: sensorium train token_prior --tokens sensorium-runs/vqgan --data DIR --budget 20m

    Args:
        tokens: folder of a run of an image tokenizer (vqgan). It is copied into this run.
        width: channels of a code's embedding.
        depth: layers.
        heads: of attention.
        classes: condition on the class, if the data have classes.
        top_k: sample from the k most likely codes; all by default.
        temperature: of sampling: 0 is greedy, 1 samples from the model's distribution.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    small, why = machine_of(on)
    coder, tokenizer = tokenizer_of(tokens, on)
    s.note(tokens=tokens)
    channels, layers, attentive = pick_sizes(width, depth, heads, on, s)
    count = len(on.classes) if classes and len(on.classes) > 1 else 0
    batch = s.pick("batch_size", batch_size, 32 if small else 128, why)
    rate = s.pick("lr", lr, 2e-3 if channels <= 256 else 5e-4, f"width {channels}")
    s.note(classes=classes, top_k=top_k, temperature=temperature, weight_decay=weight_decay, warmup=warmup)
    network = token_decoder(vocab_of(tokenizer.codes, count), channels, layers, attentive)
    shape = (3, on.image_size, on.image_size)
    method = TokenPrior(network, tokenizer, shape, count, top_k=top_k, temperature=temperature)
    optimizer = adamw(rate, weight_decay, (0.9, 0.95))
    return Recipe(
        "token_prior", method, code_views(count > 0), optimizer, lambda f: warmup_cosine(f, warmup, 0.1), batch, s,
        derive=lambda rows, cache, progress: encoded(rows, coder, cache, "codes", torch.int32, progress=progress),
    )  # fmt: skip


def code_views(labeled: bool) -> Views:
    """``{"codes" int64 [B, h, w], "label" int64 [B] where it learns classes}``."""

    @reads("codes", *(("label",) if labeled else ()))
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return {name: value.to(torch.int64) for name, value in fields.items()}

    return views
