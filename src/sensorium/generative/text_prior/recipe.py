"""A prior over a tokenizer's codes given a text: how to train it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sensorium.base.draw import Draw, Views
from sensorium.data.pairs.prepare import PairSituation
from sensorium.data.rows import reads
from sensorium.generative.encoded import encoded, tokenizer_of
from sensorium.generative.text_prior.method import TextPrior
from sensorium.generative.token_decoder import pick_sizes, token_decoder
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw
from sensorium.recipe.pairs import empty_text, pick_tokens
from sensorium.recipe.recipe import Recipe, Settings, machine_of, refused_by
from sensorium.recipe.trained import RunFolder


def text_prior(
    on: PairSituation,
    *,
    tokens: RunFolder,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    guidance: float = 3.0,
    drop: float = 0.1,
    top_k: int | None = None,
    temperature: float = 1.0,
    tokenizer: str | None = None,
    vocab: int | None = None,
    context: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.1,
    warmup: float = 0.05,
) -> Recipe:
    """A Transformer over texts and a tokenizer's codes (Ramesh et al., 2021): draws pictures of what a text says.

    Example: sensorium train text_prior --tokens sensorium-runs/vqgan --data DIR --budget 20m

    DIR holds pictures with captions, as for clip; for one folder per class, the class names are the captions.

    Args:
        tokens: folder of a run of an image tokenizer (vqgan) on these pictures. It is copied into this run.
        width: channels of a token's embedding.
        depth: layers.
        heads: of attention.
        guidance: guidance scale, by default when a prompt is drawn; 1 is none.
        drop: probability of leaving a text empty in training, for guidance.
        top_k: sample from the k most likely codes; all by default.
        temperature: of sampling: 0 is greedy, 1 samples from the model's distribution.
        tokenizer: CLIP's own list of merges (.txt.gz), or a Hugging Face folder; by default learned from the captions.
        vocab: size of the vocabulary learned from the captions.
        context: maximum tokens of a caption; longer ones are truncated.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    small, why = machine_of(on)
    coder, picture_codes = tokenizer_of(tokens, on)
    s.note(tokens=tokens)
    channels, layers, attentive = pick_sizes(width, depth, heads, on, s)
    pick_tokens(tokenizer, vocab, context, on, s)
    batch = s.pick("batch_size", batch_size, 32 if small else 128, why)
    rate = s.pick("lr", lr, 2e-3 if channels <= 256 else 5e-4, f"width {channels}")
    s.note(guidance=guidance, drop=drop, top_k=top_k, temperature=temperature, weight_decay=weight_decay, warmup=warmup)
    with refused_by("text_prior"):
        network = token_decoder(
            picture_codes.codes + on.vocab, channels, layers, attentive, predicted=picture_codes.codes
        )
        shape = (3, on.image_size, on.image_size)
        method = TextPrior(
            network,
            picture_codes,
            shape,
            empty_text(on),
            drop=drop,
            guidance=guidance,
            top_k=top_k,
            temperature=temperature,
        )
    return Recipe(
        "text_prior", method, text_views(drop), adamw(rate, weight_decay, (0.9, 0.95)),
        lambda f: warmup_cosine(f, warmup, 0.1), batch, s,
        derive=lambda rows, cache, progress: encoded(rows, coder, cache, "codes", torch.int32, progress=progress),
    )  # fmt: skip


def text_views(drop: float) -> Views:
    """``{"codes" int64 [B, h, w], "tokens" int64 [B, T], "drop" bool [B]}``."""

    @reads("codes", "tokens")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        whole = {name: value.to(torch.int64) for name, value in fields.items()}
        return {**whole, "drop": draw.chance(drop)}

    return views
