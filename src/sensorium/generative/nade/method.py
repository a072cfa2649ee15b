"""NADE: the neural autoregressive distribution estimator (Larochelle & Murray, 2011, AISTATS; review: Uria, Cote, Gregor, Murray &
Larochelle, 2016, arXiv:1605.02226), and its orderless and deep relative (Uria, Murray & Larochelle, 2014, arXiv:1310.1757).

Hidden units that share their weights see one more pixel o_d of an order at each step, which costs H products and not D H:
    a_1 = c,     a_{d+1} = a_d + W[:, o_d] x_{o_d}                                                              (2011, eq. 8)
    h_d = sigmoid(a_d),     p(x_{o_d} = 1 | x_{o_<d}) = sigmoid(b_{o_d} + V[o_d] . h_d)                         (2011, eq. 6, 7)
Orderless: the units see, too, which pixels are known (m = 1), and any set of them, drawn anew for each image, predicts the others:
    h_1 = relu(W (x . m) + U m + c),     h_l = relu(W_l h_{l-1} + c_l)                                          (2014, section 5)
    L = D / (D - k) sum_{d not known} -log p(x_d | x_known)          k known pixels, uniform in 0 .. D - 1      (2014, eq. 14)
L is without bias the mean of -log p(x) over all orders. Afterwards each order is a NADE of the same weights, and several form an
ensemble, averaged in probability.
Shapes: B images, D pixels, H hidden units, S pixels of a block, E seeds of orders.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sensorium.base.precision import precise
from sensorium.generative.binary import BinaryImages

BLOCK = 32  # pixels whose hidden units are computed at once
KEPT = 2**28  # bytes of all hidden units


class NADE(BinaryImages):
    """A distribution over binary images or vectors.

    shape: of an input, without the batch. hidden: units of each hidden layer; more than one layer if ``orderless``. seeds: of random
    orders of the pixels, None for reading order; the ensemble of an orderless one, of others one.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        hidden: Sequence[int] = (500,),
        *,
        orderless: bool = False,
        seeds: Sequence[int | None] = (None,),
    ) -> None:
        super().__init__(shape)
        if not hidden or not seeds:
            raise ValueError("NADE needs at least one hidden layer and one order")
        if not orderless and max(len(hidden), len(seeds)) > 1:
            raise ValueError("NADE has one hidden layer and one order; an orderless one may have more of both")
        self.members = len(seeds)
        units = hidden[0]
        self.weight = nn.Parameter(_uniform(units, self.inputs))
        self.bias = nn.Parameter(torch.zeros(units))
        self.known_weight = nn.Parameter(_uniform(units, self.inputs)) if orderless else None
        self.between = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(hidden))
        self.out = nn.Parameter(_uniform(self.inputs, hidden[-1]))
        self.out_bias = nn.Parameter(torch.zeros(self.inputs))
        self.register_buffer("orders", torch.stack([order(self.inputs, seed) for seed in seeds]), persistent=False)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, ...], zeros and ones, and of an orderless one ``known``, bool of the same shape, not all of an image -> the
        loss, nats per image. Logs ``bits_per_dim``, of an orderless one estimated by the pixels that were predicted."""
        if self.known_weight is None:
            return super().forward(batch)
        x, known = batch["image"].flatten(1), batch["known"].flatten(1)
        y = precise(self.hidden_to_logits(self.first(x, known.to(x.dtype))))
        each = F.binary_cross_entropy_with_logits(y, x.to(y.dtype), reduction="none")
        predicted = (~known).to(each.dtype)
        return self.told((self.inputs / predicted.sum(1) * (each * predicted).sum(1)).mean())

    def first(self, x: Tensor, known: Tensor) -> Tensor:
        """The sums a of the first layer [B, H] of pixels [B, D] that are ``known``, zeros and ones."""
        sums = F.linear(x * known, self.weight, self.bias)
        return sums if self.known_weight is None else sums + F.linear(known, self.known_weight)

    def hidden_to_logits(self, sums: Tensor) -> Tensor:
        """a [..., H] -> y of all pixels [..., D]."""
        return F.linear(self._last(sums), self.out, self.out_bias)

    def logits(self, x: Tensor, which: int = 0) -> Tensor:
        """y: the logit of a one at each pixel, given those before it in the order ``which``; in blocks, whose hidden units are
        computed again for the gradient where all would need more than ``KEPT`` bytes. [B, ...] -> the same shape."""
        turn = self.get_buffer("orders")[which]
        flat, found = precise(x.flatten(1)), []
        again = torch.is_grad_enabled() and flat.numel() * len(self.bias) * flat.element_size() > KEPT
        sums = self.bias.expand(len(flat), -1)
        for at in turn.split(BLOCK):
            given = flat[:, at], sums, at
            y, sums = checkpoint(self._block, *given, use_reentrant=False) if again else self._block(*given)  # pyright: ignore
            found.append(y)
        return torch.cat(found, 1)[:, turn.argsort()].view(x.shape)

    def _block(self, x: Tensor, sums: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels ``at`` [B, S] and the sums before them [B, H] -> their logits [B, S] and the sums after them."""
        weight = self.weight[:, at].T  # [S, H]
        earlier = x * x.new_ones(len(at), len(at)).tril_(-1)[:, None]  # [S, B, S]
        before, after = (earlier @ weight).add_(sums), sums + x @ weight
        if self.known_weight is not None:
            added = F.pad(self.known_weight[:, at].T.cumsum(0), (0, 0, 1, 0))
            before, after = before + added[:-1, None], after + added[-1]
        logits = torch.bmm(self._last(before), self.out[at][:, :, None])[..., 0]
        return logits.T + self.out_bias[at], after

    def _last(self, sums: Tensor) -> Tensor:
        """Hidden units of the last layer [..., H_L] of the sums of the first [..., H]."""
        if self.known_weight is None:
            return torch.sigmoid(sums)
        h = F.relu(sums)
        for layer in self.between:
            h = F.relu(layer(h))
        return h

    def in_turn(
        self, x: Tensor, which: int = 0, known: Tensor | None = None
    ) -> tuple[Sequence[int], Callable[[int], Tensor]]:
        """A step adds one pixel to the sums and computes only one row of the last layer. An orderless one sees known pixels first."""
        places = self.get_buffer("orders")[which]
        if known is not None and self.known_weight is not None:
            places = places[(~known[places]).long().argsort(stable=True)]
        turn = places.tolist()
        earlier, sums = dict(zip(turn[1:], turn[:-1], strict=True)), self.bias.repeat(len(x), 1)

        def logit(d: int) -> Tensor:
            if (e := earlier.get(d)) is not None:
                sums.addcmul_(x[:, e, None], self.weight[:, e])
                if self.known_weight is not None:
                    sums.add_(self.known_weight[:, e])
            return self._last(sums) @ self.out[d] + self.out_bias[d]

        return turn, logit


def order(inputs: int, seed: int | None) -> Tensor:
    """int64 [D]: which pixel is the first, the second ...; reading order for None."""
    if seed is None:
        return torch.arange(inputs)
    return torch.randperm(inputs, generator=torch.Generator().manual_seed(seed))


def _uniform(outputs: int, inputs: int) -> Tensor:
    bound = inputs**-0.5
    return torch.empty(outputs, inputs).uniform_(-bound, bound)
