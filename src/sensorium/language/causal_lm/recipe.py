"""A decoder language model: how to train it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, cast

import torch

from sensorium.data.text.prepare import TextSituation
from sensorium.errors import SensoriumError
from sensorium.language.causal_lm.method import CausalLM
from sensorium.networks.decoder import Layer
from sensorium.networks.mixing import AttentionKind, GroupedHeads, mixer
from sensorium.parts.feedforward import FeedForward, Kind, rows
from sensorium.parts.init import Draw as Drawn
from sensorium.parts.init import Scheme, fill_, fixup_, to_ntk_
from sensorium.parts.moe.layer import MoE
from sensorium.parts.moe.route import Routing, deepseek, top1, top2, top_k
from sensorium.parts.norms import Placement, Residual, deepnorm
from sensorium.parts.positions import Positions
from sensorium.parts.positions.absolute import Complex, Learned, Multiplicative, Recursive, Sinusoidal
from sensorium.parts.positions.relative import T5, ALiBi, Shaw
from sensorium.parts.positions.turning import Rotary
from sensorium.recipe.recipe import Recipe, Settings, pick_heads, refused_by
from sensorium.recipe.text import note_text, text_recipe

PositionKind = Literal[
    "rope", "sinusoidal", "learned", "multiplicative", "recursive", "complex", "alibi", "t5", "shaw", "none"
]
CausalNorm = Literal["layer", "rms", "scale", "none"]  # a batch norm would use later tokens
Start = Literal["normal", "lecun", "xavier", "he", "orthogonal", "ntk"]
Route = Literal["mixtral", "switch", "gshard", "deepseek"]


def causal_lm(
    on: TextSituation,
    *,
    length: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    positions: PositionKind = "rope",
    attention: AttentionKind = "softmax",
    experts: int = 0,
    batch_size: int | None = None,
    lr: float | None = None,
    vocab: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    hidden: int | None = None,
    active: int = 2,
    routing: Route = "mixtral",
    shared: int = 0,
    capacity: float | None = None,
    tied: bool = True,
    ffn: Kind = "swiglu",
    norm: CausalNorm = "rms",
    placement: Placement = "pre",
    init: Start | None = None,
    weight_decay: float = 0.1,
    warmup: float = 0.05,
) -> Recipe:
    """A decoder language model (Llama; with experts, Mixtral): each token predicts the next.

    Example: sensorium train causal_lm --data book.txt --budget 3m

    Args:
        vocab: size of a byte-pair vocabulary learned from the text; bytes by default.
        length: tokens per row, the maximum context in training.
        width: channels of a token embedding.
        depth: layers.
        heads: of attention.
        kv_heads: key and value heads, shared by groups of query heads; by default as many as heads.
        hidden: channels of the feed-forward layer, or of each expert.
        experts: number of feed-forward experts; 0 is one layer for all tokens.
        active: experts per token.
        routing: mixtral is top-k, switch top-1, gshard top-2; deepseek balances experts by a bias instead of a loss.
        shared: hidden channels of one more expert, which processes every token.
        capacity: capacity factor of an expert, 1 being just enough at uniform load; unlimited by default. All first
            choices of a row precede its second ones (GShard), so with two experts a token may be dropped in favor of
            later ones in training.
        tied: the output head shares the embedding's weights.
        positions: kind of position encoding.
        attention: softmax; linear (with elu + 1), relu, performer or cosformer, whose cost is linear in the length;
            gau, a gated unit, and flash, the same in chunks.
        ffn: kind of feed-forward layer; plain ones have as many weights as gated ones.
        norm: kind of normalization.
        placement: of the norm, or what replaces it.
        init: initial weights; normal is a standard deviation of 0.02 everywhere, which needs a norm before each layer.
        batch_size: rows per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    small, why = note_text(on, vocab, length, s)
    channels: int = s.pick("width", width, 128 if small else 512, why)
    layers: int = s.pick("depth", depth, 4 if small else 8, why)
    queries = pick_heads(heads, channels, small, s)
    groups: int = s.pick("kv_heads", kv_heads, queries, "one for each head")
    inner: int = s.pick("hidden", hidden, *_usual_hidden(channels, ffn))
    batch = s.pick("batch_size", batch_size, 16 if small else 64, why)
    rate = s.pick("lr", lr, *_usual_lr(channels, placement))
    active = {"switch": 1, "gshard": 2}.get(routing, active)
    s.note(experts=experts, active=active, routing=routing, shared=shared, capacity=capacity, tied=tied)
    s.note(positions=positions, attention=attention, ffn=ffn, norm=norm, placement=placement)
    fixed = experts > 0 or attention in ("gau", "flash")  # set their own weights
    usual: Start = "normal" if fixed or placement in ("pre", "fixup") else "xavier"
    start: Start = s.pick("init", init, usual, f"placement {placement}")
    if not experts and (routing, shared, capacity) != ("mixtral", 0, None):
        raise SensoriumError("causal_lm: --routing, --shared and --capacity are of experts: give --experts, 4 say.")
    if placement in ("rezero", "fixup") and norm != "rms":
        raise SensoriumError(f"causal_lm: --placement {placement} has no norms in its layers; leave --norm out.")
    alpha = deepnorm(layers)[0] if placement == "deepnorm" else 1.0
    # As published, words of size 1: of 0.02 they drown in the waves, and layers without a norm before them have no input.
    large = positions == "sinusoidal" or placement != "pre"
    plain = experts == 0 or (routing, shared, capacity, ffn) == ("mixtral", 0, None, "swiglu")
    with refused_by("causal_lm"):
        mixture = partial(
            MoE, channels, inner, experts, routed(routing, active, capacity),
            kind=ffn, shared=shared, bias=routing == "deepseek",
        )  # fmt: skip
        method = CausalLM(
            on.vocab, channels, layers, queries, hidden=inner, kv_heads=groups, tied=tied,
            experts=experts if plain else 0, active=active, ffn=ffn if plain else mixture,
            positions=placed(positions, channels, queries, on.length),
            attention=lambda: mixer(
                attention, channels, queries, groups, channels // queries, length=on.length
            ),
            joint=partial(Residual, placement=placement, kind=norm, alpha=alpha),
            gain=channels**0.5 if large else 1.0,
        )  # fmt: skip
    if large:
        torch.nn.init.normal_(method.embed.weight, std=channels**-0.5)
    if start != "normal" or placement in ("deepnorm", "fixup"):
        if fixed:
            raise SensoriumError(
                "causal_lm: --init, and the placements deepnorm and fixup, don't set the weights of experts and gated units."
            )
        begin_(method, start, placement)
    return text_recipe("causal_lm", method, on, s, batch, rate, weight_decay, warmup)


def _usual_hidden(width: int, ffn: Kind) -> tuple[int, str]:
    gated = rows(ffn, 1) == 2
    most, share = (8 / 3, "8/3 of the width (Shazeer, 2020)") if gated else (4, "4 times the width: no gate")
    return round(width * most / 16) * 16, share


def _usual_lr(width: int, placement: Placement) -> tuple[float, str]:
    """A norm behind each layer does not start at the rates of one before it."""
    behind = placement in ("post", "deepnorm")
    rate = (1e-3 if behind else 3e-3) if width <= 256 else (3e-4 if behind else 1e-3)
    return rate, f"width {width}, placement {placement}"


def placed(kind: PositionKind, width: int, heads: int, length: int) -> Positions:
    """A position encoding by name, for texts of ``length``."""
    made: dict[str, Callable[[], Positions]] = {
        "rope": Rotary,
        "sinusoidal": lambda: Sinusoidal(width),
        "learned": lambda: Learned(width, length),
        "multiplicative": lambda: Multiplicative(width, length),
        "recursive": lambda: Recursive(width, width),
        "complex": lambda: Complex(width),
        "alibi": lambda: ALiBi(heads),
        "t5": lambda: T5(heads, bidirectional=False),
        "shaw": lambda: Shaw(width // heads, 16),
        "none": Positions,
    }
    return made[kind]()


def routed(kind: Route, active: int, capacity: float | None) -> Callable[..., Routing]:
    """The router of a causal model's experts, by name."""
    if kind == "deepseek":
        if capacity is not None:
            raise ValueError("deepseek drops no tokens: leave capacity out")
        return partial(deepseek, k=active)
    if kind == "mixtral":
        return partial(top_k, k=active, factor=capacity)
    return partial(top1 if kind == "switch" else top2, factor=capacity)


def begin_(method: CausalLM, how: Start, placement: Placement) -> None:
    """Set the weights of every layer of a model that was built with 0.02, as the placement asks besides."""
    layers = len(method.layers)
    start_(method, how, deepnorm(layers)[1] if placement == "deepnorm" else 1.0)
    if placement == "fixup":
        for layer in cast("Iterable[Layer]", method.layers):
            feed = cast(FeedForward, layer.ffn)
            attn = cast(GroupedHeads, layer.attn)
            fixup_(2 * layers, [attn.qkv.weight], attn.proj.weight)
            fixup_(2 * layers, [feed.gate_up.weight], feed.down.weight)


@torch.no_grad()
def start_(method: CausalLM, how: Start, beta: float = 1.0) -> None:
    """Set the initial weights of every layer of a model built with 0.02; ``beta``: deepnorm's gain."""
    schemes: dict[str, tuple[Scheme, Drawn]] = {
        "lecun": ("lecun", "truncated"), "xavier": ("xavier", "uniform"), "he": ("he", "normal"),
        "orthogonal": ("lecun", "orthogonal"), "ntk": ("lecun", "normal"),
    }  # fmt: skip
    for layer in cast("Iterable[Layer]", method.layers):
        attn = cast(GroupedHeads, layer.attn)
        heads = (attn.heads + attn.kv_heads) * attn.head_dim
        feed = cast(FeedForward, layer.ffn)
        weights = [attn.qkv.weight, attn.proj.weight, feed.gate_up.weight, feed.down.weight]
        if how in schemes:
            for weight in weights:
                fill_(weight, *schemes[how])
        weights[0][heads:] *= beta
        for weight in weights[1:]:
            weight *= beta
    if how == "ntk":
        to_ntk_(method.layers)
