"""MADE: masked autoencoder for distribution estimation (Germain, Gregor, Murray & Larochelle, 2015, arXiv:1502.03509).

An autoencoder of binary inputs whose weights are masked so that output d depends only on inputs before d; its outputs
are then conditional probabilities, and one pass gives the exact likelihood:
    p(x) = prod_d p(x_d | x_<d),           L = -log p(x) = sum_d cross entropy(x_d, sigmoid(y_d))            (section 3)
    m_0(d)   the position of input d in the order,      m_l(k) drawn from min m_{l-1} .. D - 1             (section 4.1)
    h_l = relu((W_l . M_l) h_{l-1} + b_l),           M_l[k, k'] = 1 where m_l(k) >= m_{l-1}(k')            (section 4.2)
    y   = (V . M_V) h_L + (A . M_A) x + c,              M_V[d, k]  = 1 where m_0(d) > m_L(k)
                                                        M_A[d, d'] = 1 where m_0(d) > m_0(d')
m_l(k) is the number of inputs that unit k may depend on (``parts/density/masked.py``). Orders and connections come from seeds. Each
step takes the next seed of the list, cyclically: order-agnostic and connectivity-agnostic training (sections 4.3, 4.4). Several
seeds form an ensemble, averaged in probability.
Shapes: B images, D inputs, H_l hidden units of layer l, E seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from sensorium.generative.binary import BinaryImages
from sensorium.method import Progress
from sensorium.parts.density.masked import MaskedMLP, in_order

Order = Literal["random", "natural"]


class MADE(BinaryImages):
    """A distribution over binary images or vectors.

    shape: of an input, without the batch. hidden: units of each hidden layer. order: of the inputs, random from each
    seed, or "natural" (the seed then only determines the connections). seeds: one per set of masks. direct: connections
    from inputs to outputs too.
    """

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
        super().__init__(shape)
        if order not in get_args(Order):
            raise ValueError(f"order must be one of {', '.join(get_args(Order))}, got {order!r}")
        if not hidden or not seeds:
            raise ValueError("MADE needs at least one hidden layer and one seed")
        self.seeds, self.members = tuple(seeds), len(seeds)
        drawn = [torch.Generator().manual_seed(seed) for seed in seeds]  # first the order, then the connections
        self.register_buffer(
            "places", torch.stack([places(self.inputs, order, one) for one in drawn]), persistent=False
        )
        before = torch.stack([in_order(one) for one in self.get_buffer("places")])
        self.network = MaskedMLP(before, hidden, direct=direct, seeds=drawn)
        self.register_buffer("current", torch.zeros((), dtype=torch.int64))

    def before_step(self, at: Progress) -> None:
        self.current.fill_(at.step % len(self.seeds))

    def nats(self, x: Tensor) -> Tensor:
        """With this step's masks."""
        return self.cost(self.logits(x, self.current), x)

    def logits(self, x: Tensor, which: int | Tensor = 0) -> Tensor:
        """y: the logit of a one at each position, given earlier ones in the order of seed ``which``.

        [B, ...] -> the same shape.
        """
        return self.network(x.flatten(1), which).view_as(x)

    def in_turn(
        self, x: Tensor, which: int = 0, known: Tensor | None = None
    ) -> tuple[Sequence[int], Callable[[int], Tensor]]:
        """By :meth:`MaskedMLP.in_turn`."""
        order = self.get_buffer("places")[which].argsort().tolist()
        outputs = self.network.in_turn(x, order, which)
        return order, lambda d: outputs(d, [d])[:, 0]


def places(inputs: int, order: Order, generator: torch.Generator) -> Tensor:
    """The position of each input in the order, int64 [D], from 0."""
    return torch.randperm(inputs, generator=generator) if order == "random" else torch.arange(inputs)
