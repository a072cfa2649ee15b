"""A sparse mixture of SwiGLU experts, each token to its k best (Mixtral: Jiang et al., 2024, arXiv:2401.04088).

    y = sum over e in top-k(r) of  softmax(r[top-k])_e  expert_e(x),        r = W_router x        (section 2.1)
The routing is balanced by the loss of Switch Transformers (Fedus et al., 2021, arXiv:2101.03961, eq. 4), for k choices:
    L = E sum_e f_e P_e,    f_e the share of tokens that chose e (they sum to k),  P_e the mean of softmax(r)_e;
it is k where all experts are chosen alike. Tokens are sorted by expert, so that each expert is one product of matrices.
Weights of all experts are stacked along the first dimension: gate and up of each in turn [E 2 H, D], down [E D, H].
Shapes: N tokens, D width, H hidden channels, E experts, k active.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MixtureOfExperts(nn.Module):
    """``experts`` SwiGLU layers of ``hidden`` channels, of which ``active`` see each token."""

    def __init__(self, width: int, hidden: int, experts: int, active: int = 2) -> None:
        super().__init__()
        if not 1 <= active <= experts:
            raise ValueError(f"active must be between 1 and the {experts} experts, got {active}")
        self.experts, self.active = experts, active
        self.router = nn.Linear(width, experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(experts * 2 * hidden, width))
        self.down = nn.Parameter(torch.empty(experts * width, hidden))
        for weight in (self.gate_up, self.down):
            nn.init.normal_(weight, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[..., D] -> y [..., D] and the router's record float32 [2, E]: f and P, for :func:`balance_loss`."""
        flat_ND = x.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):  # small differences decide who is chosen
            exact = torch.promote_types(x.dtype, torch.float32)
            score_NE = F.linear(flat_ND.to(exact), self.router.weight.to(exact))
        probability_NE = score_NE.softmax(-1)
        weight_Nk, chosen_Nk = probability_NE.topk(self.active, dim=-1)
        weight_Nk = weight_Nk / weight_Nk.sum(-1, keepdim=True)

        order = chosen_Nk.flatten().argsort(stable=True)  # tokens k times, those of the first expert first
        count = chosen_Nk.flatten().bincount(minlength=self.experts)
        token = order // self.active
        parts = flat_ND[token].split(count.tolist())
        # chunk, not an index each: its backward is one concatenation instead of a whole zeroed weight for each expert
        own = zip(parts, self.gate_up.chunk(self.experts), self.down.chunk(self.experts), strict=True)
        done = []
        for part, gate_up, down in own:
            if len(part):
                gate, up = F.linear(part, gate_up).chunk(2, dim=-1)
                done.append(F.linear(F.silu(gate) * up, down))
        y_ND = torch.zeros_like(flat_ND, dtype=done[0].dtype)
        y_ND = y_ND.index_add(0, token, torch.cat(done) * weight_Nk.flatten()[order, None].to(done[0].dtype))
        return y_ND.view_as(x), torch.stack([count / len(flat_ND), probability_NE.mean(0)])


def balance_loss(record_L2E: Tensor) -> Tensor:
    """The records of L layers [L, 2, E] -> L, of f and P averaged over the layers (as Mixtral's published code has it)."""
    f_E, p_E = record_L2E.mean(0)
    return len(f_E) * (f_E.detach() * p_E).sum()
