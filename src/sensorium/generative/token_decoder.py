"""The causal Transformer of priors over codes."""

from __future__ import annotations

from functools import partial

from torch import nn

from sensorium.networks.decoder import Decoder, Layer
from sensorium.networks.mixing import SoftmaxAttention
from sensorium.parts.feedforward import FeedForward
from sensorium.parts.norms import Residual
from sensorium.parts.positions.turning import Rotary

JOINT = partial(Residual, kind="rms")


def token_decoder(
    vocab: int, width: int, depth: int, heads: int, hidden: int | None = None, *, predicted: int | None = None
) -> Decoder:
    """A decoder over ``vocab`` tokens. hidden: channels of its feed-forward layers, by default 8/3 of the width. predicted: how many tokens,
    the first ones, it predicts, by default all."""
    inner = hidden or 8 * -(-width // 3)

    def layer() -> Layer:
        return Layer(SoftmaxAttention(width, heads, heads, width // heads), FeedForward(width, inner), JOINT, width)

    decoder = Decoder(
        nn.Embedding(vocab, width), [layer() for _ in range(depth)], JOINT(width).norm,
        positions=Rotary(), head=nn.Linear(width, predicted or vocab, bias=False),
    )  # fmt: skip
    for module in decoder.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    return decoder
