"""Glow: generative flow with invertible 1x1 convolutions (Kingma & Dhariwal, 2018, arXiv:1807.03039).

At each scale 2 x 2 pixels (of odd sides 3 x 3, ...) become channels, and ``steps`` of flow follow (table 1):
    ActNorm, a matrix of the channels (W = P L (U + diag(s))), affine coupling of their halves by three convolutions, s = sigmoid(r + 2)
Then half of the channels are done, normal with a mean and a deviation that the other half gives (the authors' code).
Pictures are 0..1 less a half (their preprocessing).
Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.generative.flow import NormalizingFlow, factors_of
from sensorium.parts.density.coupling import Coupling, Factored
from sensorium.parts.density.invertible import ActNorm, Chain, Invertible, Mixing, Reversed, Squeeze


class Glow(NormalizingFlow):
    """width: channels of the couplings' networks. steps: of flow at each of ``scales``."""

    def __init__(
        self, shape: Sequence[int], *, width: int = 512, steps: int = 32, scales: int = 3, noise: int = 0
    ) -> None:
        channels, height, across = shape
        factors = factors_of(height, across)[:scales]
        if min(steps, scales) < 1:
            raise ValueError(f"Glow needs at least one scale and one step, not {scales} and {steps}")
        if scales != len(factors):
            raise ValueError(
                f"Glow with {scales} scales needs sides that can be divided {scales} times, not {height} x {across}"
            )
        super().__init__(Chain(ActNorm(channels), scale(channels, width, steps, factors)), shape, noise=noise)


def scale(channels: int, width: int, steps: int, factors: Sequence[int]) -> Chain:
    """The layers of a scale and of those after it; z has the shape of what they get."""
    inside = factors[0] ** 2 * channels
    still, moving = (inside + 1) // 2, inside // 2
    found: list[Invertible] = [Squeeze(factors[0])]
    for _ in range(steps):
        found += [ActNorm(inside), Mixing(inside), Coupling(Convolutions(still, 2 * moving, width), None, "sigmoid")]
    if len(factors) > 1:
        found.append(Factored(Zeros(still, 2 * moving), scale(still, width, steps, factors[1:])))
    return Chain(*found, Reversed(Squeeze(factors[0])))


class Convolutions(nn.Module):
    """3 x 3, 1 x 1 and 3 x 3 with ReLU between them, zeros at first."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 1)
        self.last = Zeros(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(F.relu(self.first(x)))))


class Zeros(nn.Module):
    """A convolution with zeros at first, and a factor exp(3 l) of each channel that lets it grow (the authors' code)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        nn.init.zeros_(self.convolution.weight)
        nn.init.zeros_(self.convolution.bias)  # pyright: ignore
        self.log_scale = nn.Parameter(self.convolution.weight.new_zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x) * (3 * self.log_scale).exp()[:, None, None]
