"""A multilayer perceptron whose outputs depend on chosen inputs alone (Germain et al., 2015, arXiv:1502.03509, section 4; for any
dependencies, not only those of an order).

    A[o, i]    whether output o may depend on input i
    S_l(k)     the inputs that unit k of layer l may depend on: one of the distinct rows of A;   S_0(i) = {i}
    h_l = f((W_l . M_l) h_{l-1} + b_l),     M_l[k, k'] = 1 where S_{l-1}(k') is part of S_l(k)
    y   = (V . M_V) h_L + (D . A) x + c,    M_V[o, k]  = 1 where S_L(k) is part of A's row o
In an order each row of A is part of the next, and the size of S_l(k) is MADE's m_l(k).
Shapes: B samples, I inputs, O outputs, H_l hidden units of layer l, R distinct rows of A.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedMLP(nn.Module):
    """A perceptron of the hidden layers ``hidden`` with the Jacobian's zeros of ``adjacency`` bool [O, I]; ``direct`` connects inputs
    and outputs, too, by weights that begin at zero.

    Several adjacencies [E, O, I], with as many ``seeds`` of the hidden units' sets, are as many networks of the same weights. The
    masks are buffers that checkpoints don't hold: they follow from the arguments.
    """

    def __init__(
        self,
        adjacency: Tensor,
        hidden: Sequence[int],
        *,
        direct: bool = False,
        seeds: Sequence[int | torch.Generator] = (0,),
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        adjacency = adjacency[None] if adjacency.ndim == 2 else adjacency
        outputs, inputs = adjacency.shape[1:]
        widths = [inputs, *hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.direct = nn.Parameter(torch.zeros(outputs, inputs)) if direct else None
        self.activation = activation
        drawn = [layer_masks(one, hidden, seed) for one, seed in zip(adjacency, seeds, strict=True)]
        for layer, masks in enumerate(zip(*drawn, strict=True)):
            self.register_buffer(f"mask_{layer}", torch.stack(masks), persistent=False)
        if direct:
            self.register_buffer("adjacency", adjacency.clone(), persistent=False)

    def forward(self, x: Tensor, which: int | Tensor = 0) -> Tensor:
        """[B, I] -> [B, O], by the masks ``which``."""
        *inner, last = self.weights(which)
        h = x
        for weight, bias in zip(inner, self.biases, strict=False):
            h = self.activation(F.linear(h, weight, bias))
        y = F.linear(h, last, self.biases[-1])
        direct = self.direct_weight(which)
        return y if direct is None else y + F.linear(x, direct)

    @torch.no_grad()
    def in_turn(self, x: Tensor, order: Sequence[int], which: int | Tensor = 0) -> Callable[[int, list[int]], Tensor]:
        """A function that is called with each input d of an ``order`` in turn and some outputs, which depend on those before d alone,
        and on the inputs that the order leaves out: their values [B, outputs] for what ``x`` [B, I] has there then.

        A step adds one column to the first layer's sums, and computes only these rows of the last layer.
        """
        (first, *between, out), (bias, *biases, last) = self.weights(which), self.biases
        if len(self.layers) < 2:
            raise ValueError("a network without hidden layers has no sums to add to")
        direct, rest = self.direct_weight(which), sorted({*range(x.shape[1])} - {*order})
        sums = F.linear(x[:, rest], first[:, rest], bias) if rest else bias.repeat(len(x), 1)
        earlier = dict(zip(order[1:], order[:-1], strict=True))

        def outputs(d: int, rows: list[int]) -> Tensor:
            if (e := earlier.get(d)) is not None:
                sums.addcmul_(x[:, e, None], first[:, e])
            h = self.activation(sums)
            for weight, b in zip(between, biases, strict=True):
                h = self.activation(F.linear(h, weight, b))
            y = F.linear(h, out[rows], last[rows])
            return y if direct is None else y + F.linear(x, direct[rows])

        return outputs

    def weights(self, which: int | Tensor = 0) -> list[Tensor]:
        """W_l . M_l of each layer, [H_l, H_{l-1}]."""
        return [
            cast(nn.Linear, layer).weight * self.get_buffer(f"mask_{i}")[which] for i, layer in enumerate(self.layers)
        ]

    def direct_weight(self, which: int | Tensor = 0) -> Tensor | None:
        """D . A [O, I], None without such weights."""
        return None if self.direct is None else self.direct * self.get_buffer("adjacency")[which]

    @property
    def biases(self) -> list[Tensor]:
        """b_l of each layer, [H_l]."""
        return [cast(nn.Linear, layer).bias for layer in self.layers]


def in_order(places: Tensor) -> Tensor:
    """The adjacency of an order: bool [D, D], where input d' is before d in it; ``places`` int64 [D]."""
    return places[:, None] > places


def layer_masks(adjacency: Tensor, hidden: Sequence[int], seed: int | torch.Generator) -> list[Tensor]:
    """The masks of each layer, bool [H_l, H_{l-1}], the last [O, H_L].

    The set of a hidden unit is drawn from those of A's rows that are not empty and have some unit of the layer before in them.
    """
    outputs, inputs = adjacency.shape
    if adjacency.is_meta:  # the shapes are the same
        widths = [inputs, *hidden, outputs]
        return [adjacency.new_empty(b, a) for a, b in itertools.pairwise(widths)]
    sets, row = _distinct(adjacency)
    within = _within(sets)
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    masks, before = [], None  # the units' sets, as rows of ``sets``
    for width in hidden:
        usable = sets.any(1) if before is None else sets.any(1) & within[:, before].any(1)
        choice = usable.nonzero().squeeze(1)
        if not len(choice):  # no output depends on anything: the units are constant
            choice = torch.zeros(1, dtype=torch.int64)
        drawn = choice[torch.randint(0, len(choice), (width,), generator=generator)]
        masks.append(sets[drawn] if before is None else within[drawn][:, before])
        before = drawn
    return [*masks, adjacency if before is None else within[row][:, before]]


def _distinct(adjacency: Tensor) -> tuple[Tensor, Tensor]:
    """A's distinct rows by their size, bool [R, I], and which of them each output has, int64 [O]."""
    sets, row = adjacency.unique(dim=0, return_inverse=True)
    order = sets.sum(1).argsort(stable=True)
    return sets[order], order.argsort()[row]


def _within(sets: Tensor) -> Tensor:
    """bool [R, R]: whether set j is part of set i. ``sets`` are sorted by size."""
    size = sets.sum(1)
    if not (sets[:-1] & ~sets[1:]).any():  # each is part of the next, as in an order
        return size[:, None] >= size
    return sets.float() @ sets.float().T == size  # all of j's members are common to both
