"""SwiGLU: the gated feed-forward layer of Llama (Shazeer, 2020, arXiv:2002.05202, eq. 6, without biases).

y = W_down (silu(W_gate x) * W_up x)
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SwiGLU(nn.Module):
    """[..., width] -> [..., width] through ``hidden`` gated channels. ``gate_up`` holds W_gate above W_up: one product."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
