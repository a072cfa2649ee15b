"""MADE: masked autoencoder for distribution estimation (Germain, Gregor, Murray & Larochelle, 2015, arXiv:1502.03509).

An autoencoder of binary inputs whose weights are masked so that output d depends only on inputs before d; its outputs
are then conditional probabilities, and one pass gives the exact likelihood:
    p(x) = prod_d p(x_d | x_<d),           L = -log p(x) = sum_d cross entropy(x_d, sigmoid(y_d))            (section 3)
    m_0(d)   the position of input d in the order,      m_l(k) drawn from min m_{l-1} .. D - 1             (section 4.1)
    h_l = relu((W_l . M_l) h_{l-1} + b_l),           M_l[k, k'] = 1 where m_l(k) >= m_{l-1}(k')            (section 4.2)
    y   = (V . M_V) h_L + (A . M_A) x + c,              M_V[d, k]  = 1 where m_0(d) > m_L(k)
                                                        M_A[d, d'] = 1 where m_0(d) > m_0(d')
Orders and connections come from seeds. Each step takes the next seed of the list, cyclically: order-agnostic and
connectivity-agnostic training (sections 4.3, 4.4). Several seeds form an ensemble, averaged in probability.
Shapes: B images, D inputs, H_l hidden units of layer l, E seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import Generator, Likelihood, Reconstructor
from sensorium.method import Method, Progress

Order = Literal["random", "natural"]


def binarise(values: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Intensities (uint8, or floats in 0..1) to float32 zeros and ones of the same shape.

    By a threshold of one half; or with ``uniform`` (random numbers in [0, 1), one per value) stochastically, with the
    intensity as the probability of a one.
    """
    bright = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    return (bright > (0.5 if uniform is None else uniform)).float()


class MADE(Method, Generator, Likelihood, Reconstructor):
    """A distribution over binary images or vectors.

    shape: of an input, without the batch. hidden: units of each hidden layer. order: of the inputs, random from each
    seed, or "natural" (the seed then only determines the connections). seeds: one per set of masks. direct: connections
    from inputs to outputs too.
    """

    panels = ("original", "probability of a one at each pixel, given earlier ones")
    current: Tensor

    def __init__(
        self,
        shape: int | Sequence[int],
        hidden: Sequence[int] = (500,),
        *,
        order: Order = "random",
        seeds: Sequence[int] = (0,),
        direct: bool = True,
    ) -> None:
        super().__init__()
        if order not in get_args(Order):
            raise ValueError(f"order must be one of {', '.join(get_args(Order))}, got {order!r}")
        if not hidden or not seeds:
            raise ValueError("MADE needs at least one hidden layer and one seed")
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.inputs, self.seeds, self.members = math.prod(self.shape), tuple(seeds), len(seeds)
        widths = [self.inputs, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, [*hidden, self.inputs], strict=True))
        self.direct = nn.Parameter(torch.zeros(self.inputs, self.inputs)) if direct else None
        drawn = [degrees(self.inputs, hidden, order, seed) for seed in self.seeds]
        for layer, each in enumerate(zip(*drawn, strict=True)):  # m_l of every seed: [E, D or H_l]
            self.register_buffer(f"degrees_{layer}", torch.stack(each), persistent=False)
        self.register_buffer("current", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, ...], zeros and ones -> the loss: nats per image with this step's masks. Logs
        ``bits_per_dim``."""
        x = batch["image"].flatten(1)
        loss = -self._log_prob(x, self.current).mean()
        return {"loss": loss, "bits_per_dim": loss.detach() / (self.inputs * math.log(2))}

    def before_step(self, at: Progress) -> None:
        self.current.fill_(at.step % len(self.seeds))

    def logits(self, x: Tensor, which: int | Tensor = 0) -> Tensor:
        """y: the logit of a one at each position, given earlier ones in the order of seed ``which``.

        [B, ...] -> the same shape.
        """
        *hidden, out = self._weights(which)
        h, values = x.flatten(1), x.flatten(1)
        for weight, layer in zip(hidden, self.layers, strict=False):
            h = F.relu(F.linear(h, weight, cast(nn.Linear, layer).bias))
        y = F.linear(h, out, self._last_bias)
        if self.direct is not None:
            y = y + F.linear(values, self.direct * self._before(which, 0, -1))
        return y.view_as(x)

    def log_prob(self, x: Tensor, ensemble: int = 1) -> Tensor:
        """Zeros and ones [B, ...] -> [B] nats, averaged in probability over the masks of the first ``ensemble`` seeds.

        Raises ValueError for other values.
        """
        if not 1 <= ensemble <= len(self.seeds):
            raise ValueError(f"ensemble must be between 1 and the {len(self.seeds)} seeds, got {ensemble}")
        if not bool(((x == 0) | (x == 1)).all()):
            raise ValueError("MADE gives the probability of zeros and ones only: binarise the images")
        each = torch.stack([self._log_prob(x.flatten(1), which) for which in range(ensemble)])
        return each.logsumexp(0) - math.log(ensemble)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> zeros and ones [B, 1, H, W], gray by threshold."""
        return binarise(pixels.float().mean(1, keepdim=True) / 255)

    def to_pixels(self, samples: Tensor) -> Tensor:
        """Zeros and ones [B, 1, H, W] -> uint8 [B, 3, H, W], black and white."""
        return (samples.float().clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()

    @torch.no_grad()
    def sample(self, n: int, seed: int | torch.Generator = 0, *, which: int = 0) -> Tensor:
        """``n`` binary images [n, *shape], sampled pixel by pixel in the order of seed ``which``; ``seed``: of the
        sampling.

        A step adds one column to the first layer's sums and computes only one row of the last layer.
        """
        if isinstance(seed, int):
            seed = torch.Generator().manual_seed(seed)
        first, *between, out = self._weights(which)
        dice = torch.rand(self.inputs, n, generator=seed).to(out.device)
        direct = None if self.direct is None else self.direct * self._before(which, 0, -1)
        x = torch.zeros(n, self.inputs, device=out.device, dtype=out.dtype)
        layers = cast("list[nn.Linear]", list(self.layers))
        sums = layers[0].bias.expand(n, -1).clone()
        for d in self._degrees(0)[which].argsort().tolist():
            h = F.relu(sums)
            for weight, layer in zip(between, layers[1:], strict=False):
                h = F.relu(F.linear(h, weight, layer.bias))
            y = h @ out[d] + self._last_bias[d]
            if direct is not None:
                y = y + x @ direct[d]
            x[:, d] = (dice[d] < torch.sigmoid(y)).to(x.dtype)
            sums += x[:, d, None] * first[:, d]
        return x.view(n, *self.shape)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, *, seed: int = 0) -> Tensor:
        """Side by side: image | probability of a one at each pixel, given earlier ones, [B, 3, H, 2 W]. No sampling."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"panels are of images [B, 1 or 3, H, W], not {list(images.shape)}")
        both = torch.cat([images, torch.sigmoid(self.logits(images)).to(images.dtype)], dim=-1)
        return both.expand(-1, 3, -1, -1)

    def _log_prob(self, x: Tensor, which: int | Tensor) -> Tensor:
        y = self.logits(x, which)
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        return -F.binary_cross_entropy_with_logits(y, x.to(y.dtype), reduction="none").sum(1)

    @property
    def _last_bias(self) -> Tensor:
        return cast(nn.Linear, self.layers[-1]).bias

    def _degrees(self, layer: int) -> Tensor:
        return self.get_buffer(f"degrees_{layer}")

    def _before(self, which: int | Tensor, inputs: int, outputs: int) -> Tensor:
        """M between two layers, bool [outputs, inputs]; -1 is the output layer, whose inequality is strict."""
        source = self._degrees(inputs)[which]
        return (
            self._degrees(0)[which][:, None] > source
            if outputs < 0
            else self._degrees(outputs)[which][:, None] >= source
        )

    def _weights(self, which: int | Tensor) -> list[Tensor]:
        """Masked W_1 ... W_L and V."""
        last = len(self.layers) - 1
        return [
            cast(nn.Linear, layer).weight * self._before(which, i, i + 1 if i < last else -1)
            for i, layer in enumerate(self.layers)
        ]


def degrees(inputs: int, hidden: Sequence[int], order: Order, seed: int) -> list[Tensor]:
    """m_0 (a permutation of 1 .. D) and m_l of each hidden layer, int64, which determine the masks."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(inputs, generator=generator) if order == "random" else torch.arange(inputs)
    found = [places + 1]
    for width in hidden:
        low = 1 if found[-1].is_meta else int(found[-1].min())  # the shapes are the same
        found.append(torch.randint(low, max(inputs, low + 1), (width,), generator=generator))
    return found
