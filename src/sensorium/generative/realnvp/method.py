"""RealNVP: density estimation using real-valued non-volume-preserving transformations (Dinh, Sohl-Dickstein & Bengio, 2016,
arXiv:1605.08803).

    y = b x + (1 - b) (x exp(s(b x)) + t(b x))                                                                        (eq. 9)
At each scale three couplings of a checkerboard b; 2 x 2 pixels (of odd sides 3 x 3, ...) become channels; three couplings of half of the channels, which are
turned around in between; then half of the values are done. At the last scale four of a checkerboard (section 3.6). s and t are
residual networks; s = c tanh(r). The authors' batch norm between couplings is an affine map of each channel here, which begins with
the data (Glow's ActNorm). Pictures are logits at first (section 4.1).
Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sensorium.generative.flow import NormalizingFlow, factors_of
from sensorium.parts.density.coupling import Coupling, Factored, ResidualNet, checkerboard
from sensorium.parts.density.invertible import ActNorm, Chain, Invertible, Logit, Permuted, Reversed, Squeeze


class RealNVP(NormalizingFlow):
    """width: channels of the residual networks at the first scale, twice as many after each squeeze. blocks: of these networks.
    scales: so many less one times half of the values are done."""

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 64,
        blocks: int = 4,
        scales: int = 2,
        margin: float = 0.05,
        noise: int = 0,
    ) -> None:
        channels, height, width_of = shape
        factors = factors_of(height, width_of)[: scales - 1] if scales > 0 else ()
        if min(blocks, scales) < 1:
            raise ValueError(f"RealNVP needs at least one scale and one block, not {scales} and {blocks}")
        if scales != len(factors) + 1:
            raise ValueError(
                f"RealNVP with {scales} scales needs sides that can be divided {scales - 1} times, not {height} x {width_of}"
            )
        layers = scale(channels, height, width_of, width, blocks, factors)
        super().__init__(Chain(Logit(margin), ActNorm(channels), layers), shape, noise=noise)


def scale(channels: int, height: int, width: int, wide: int, blocks: int, factors: Sequence[int]) -> Chain:
    """The layers of a scale and of those after it; z has the shape of what they get."""

    def across(odd: int) -> list[Invertible]:
        net = ResidualNet(channels, 2 * channels, wide, blocks)
        return [Coupling(net, checkerboard(height, width, bool(odd)), "tanh", channels), ActNorm(channels)]

    if not factors:
        return Chain(*(part for k in range(4) for part in across(k % 2)))
    factor, found = factors[0], [part for k in range(3) for part in across(k % 2)]
    inside = factor**2 * channels
    still, moving = (inside + 1) // 2, inside // 2
    turned = torch.arange(inside).roll(moving)
    found.append(Squeeze(factor))
    for _ in range(3):
        net = ResidualNet(still, 2 * moving, 2 * wide, blocks)
        found += [Coupling(net, None, "tanh", moving), ActNorm(inside), Permuted(turned)]
    rest = scale(still, height // factor, width // factor, 2 * wide, blocks, factors[1:])
    return Chain(*found, Factored(Nothing(moving), rest), Reversed(Squeeze(factor)))


class Nothing(nn.Module):
    """mu = alpha = 0 of half as many values: what is done is normal as it is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 2 * self.channels, *x.shape[2:])
