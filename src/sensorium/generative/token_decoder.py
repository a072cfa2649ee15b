"""The causal Transformer of priors over codes."""

from __future__ import annotations

from functools import partial

from torch import nn

from sensorium.errors import SensoriumError
from sensorium.networks.decoder import Decoder, Layer
from sensorium.networks.mixing import SoftmaxAttention
from sensorium.parts.feedforward import FeedForward
from sensorium.parts.norms import Residual
from sensorium.parts.positions.turning import Rotary
from sensorium.recipe.recipe import Machine, Settings, machine_of

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


def pick_sizes(
    width: int | None, depth: int | None, heads: int | None, on: Machine, s: Settings
) -> tuple[int, int, int]:
    """Channels, layers and heads. Raises SensoriumError unless the heads divide the channels."""
    small, why = machine_of(on)
    channels: int = s.pick("width", width, 128 if small else 768, why)
    layers: int = s.pick("depth", depth, 4 if small else 12, why)
    attentive: int = s.pick("heads", heads, max(1, channels // (32 if small else 64)), f"width {channels}")
    if channels < 1 or layers < 1 or attentive < 1 or channels % attentive:
        raise SensoriumError(f"--width {channels}, --depth {layers}, --heads {attentive}: heads must divide the width.")
    return channels, layers, attentive
