"""Feed-forward layers: gated (GLU variants improve Transformer; Shazeer, 2020, arXiv:2002.05202) and plain.

In a gated kind one half of the hidden channels multiplies the other; a plain kind applies an activation:
    y = W_down (gate(W x) * V x)        glu: sigmoid   bilinear: none   reglu: ReLU   geglu: GELU   swiglu: SiLU  (eqs. 5, 6)
    y = W_down act(W x)                 relu   gelu   relu2: ReLU(x)^2  (Primer: So et al., 2021, arXiv:2109.08668)
GELU is the exact one (erf); ``gelu_tanh`` and ``quick_gelu`` = x sigmoid(1.702 x) are its approximations (Hendrycks and
Gimpel, 2016, arXiv:1606.08415, section 2), which published weights need. With two thirds of the hidden channels a gated kind has as many weights as a plain one.
Shapes: D width, H hidden channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["glu", "bilinear", "reglu", "geglu", "swiglu", "relu", "gelu", "relu2", "gelu_tanh", "quick_gelu"]

_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "glu": torch.sigmoid,
    "bilinear": lambda gate: gate,
    "reglu": F.relu,
    "geglu": F.gelu,
    "swiglu": F.silu,
}
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def rows(kind: Kind, hidden: int) -> int:
    """Outputs of the first product: 2 H for a gated kind, the gate's first, else H."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    return 2 * hidden if kind in _GATES else hidden


def activate(x: Tensor, kind: Kind) -> Tensor:
    """Between the two products: [..., ``rows(kind, H)``] -> [..., H]."""
    if kind in _PLAIN:
        return _PLAIN[kind](x)
    gate, up = x.chunk(2, dim=-1)
    return _GATES[kind](gate) * up


class FeedForward(nn.Module):
    """[..., D] -> [..., D] through H ``hidden`` channels. ``gate_up`` holds W above V: one product; for a plain kind
    only W.

    dropout: dropout rate of the hidden channels.
    """

    def __init__(
        self, width: int, hidden: int, kind: Kind = "swiglu", *, bias: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.dropout = dropout
        self.gate_up = nn.Linear(width, rows(kind, hidden), bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        hidden = activate(self.gate_up(x), self.kind)
        return self.down(F.dropout(hidden, self.dropout, self.training) if self.dropout else hidden)
