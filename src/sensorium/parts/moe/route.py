"""Routing of tokens to experts, and load balancing.

A router scores every token for every expert; the functions here turn the scores r = W x into assignments:
    top1            Switch Transformers (Fedus et al., 2021, arXiv:2101.03961, eqs. 1, 2): weight p_i of the largest,
                    p = softmax(r)
    top2            GShard (Lepikhin et al., 2020, arXiv:2006.16668, algorithm 1): weights p_1, p_2 divided by their sum
    top_k           Mixtral (Jiang et al., 2024, arXiv:2401.04088, section 2.1): softmax over the k largest scores
    expert_choice   Zhou et al., 2022, arXiv:2202.09368, section 3: each expert takes the tokens with the largest p
    deepseek        DeepSeek-V3 (2024, arXiv:2412.19437, eqs. 12-16): s = sigmoid(r); the k largest of s + bias, weights
                    s divided by their sum; the bias balances without a loss (Wang et al., 2024, arXiv:2408.15664)
An expert has a capacity of C = factor k S / E of the S tokens of a group; all first choices in the order of tokens are
placed before any second choice, and assignments to a full expert are dropped. Losses, with f_e = assignments to e per
token and P_e = mean of p_e:
    balance = E sum_e f_e P_e      (Switch, eqs. 4 to 6; it is k at uniform load for k choices)
    z       = mean of (log sum_e exp r_e)^2                      (ST-MoE: Zoph et al., 2022, arXiv:2202.08906, eq. 5)
Padding is best removed before the router: it then takes no capacity and enters no mean.
Shapes: G groups (sequences) of S tokens, N = G S tokens, E experts, k choices per token, M assignments.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.base.precision import precise


@dataclass(frozen=True)
class Routing:
    """M assignments of tokens to experts, sorted by expert, and inputs of the losses and logs."""

    token: Tensor  # int64 [M], of N
    expert: Tensor  # int64 [M], ascending
    weight: Tensor  # [M], float32 or better: weight of the expert's output
    counts: Tensor  # int64 [E], assignments of each expert
    chosen: Tensor  # int64 [E], the same before any was dropped
    dropped: int  # assignments beyond capacity; in expert_choice the tokens that no expert took
    scores: Tensor  # r, as given: [N, E] or [G, S, E], float32 or better
    probability: Tensor  # p, of the same shape; sums to 1 over E

    @property
    def load(self) -> Tensor:
        """f [E]: assignments to each expert per token."""
        return self.chosen.to(self.probability.dtype) / self.scores[..., 0].numel()

    @property
    def share(self) -> Tensor:
        """P [E]: mean probability of each expert."""
        return self.probability.flatten(0, -2).mean(0)


def router_scores(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., D], weight [E, D] -> r [..., E] in float32 also under autocast: small differences decide who is
    chosen."""
    exact = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False) if torch.is_autocast_enabled(x.device.type) else nullcontext():
        return F.linear(x.to(exact), weight.to(exact))


def capacity(tokens: int, experts: int, factor: float) -> int:
    """Capacity of an expert: floor(factor tokens / experts), at least 1."""
    return max(1, int(factor * tokens / experts + 1e-6))


def top1(scores: Tensor, *, factor: float | None = None) -> Routing:
    """Switch: each token to its most likely expert, weighted by the unnormalized probability, so that the router is
    trained.

    scores: [N, E], or [G, S, E] for capacity per group. factor: capacity factor, 1 being just enough at uniform load;
    None: nothing is dropped.
    """
    scores, probability, flat_NE = _softmax(scores)
    weight_N1, chosen_N1 = flat_NE.max(-1, keepdim=True)
    return _assign(chosen_N1, weight_N1, scores, probability, factor)


def top2(scores: Tensor, *, factor: float | None = None, uniform: Tensor | None = None) -> Routing:
    """GShard: each token to its two most likely experts. scores, factor: as in :func:`top1`.

    uniform: random numbers of [0, 1), [N]; with them a second expert of weight w is only used if 2 w > uniform. As in
    the authors' code an unused second choice takes no capacity (in algorithm 1 it does). GShard's own loss is
    ``balance_loss`` of first choices: of ``top1(scores)``.
    """
    scores, probability, flat_NE = _softmax(scores)
    weight_N2, chosen_N2 = _normalised_top(flat_NE, 2)
    asked = None
    if uniform is not None:
        asked = torch.stack([torch.ones_like(uniform, dtype=torch.bool), 2 * weight_N2[:, 1] > uniform], dim=1)
    return _assign(chosen_N2, weight_N2, scores, probability, factor, asked)


def top_k(scores: Tensor, *, k: int, factor: float | None = None) -> Routing:
    """Mixtral: each token to its k most likely experts, weights divided by their sum. scores, factor: as in
    :func:`top1`."""
    scores, probability, flat_NE = _softmax(scores)
    weight_Nk, chosen_Nk = _normalised_top(flat_NE, k)
    return _assign(chosen_Nk, weight_Nk, scores, probability, factor)


def expert_choice(scores: Tensor, *, factor: float = 2.0) -> Routing:
    """Each expert takes its C = factor S / E most likely tokens of each group: always balanced, but a token may get no
    expert, and the choice depends on later tokens, so it is not for causal models. scores: as in :func:`top1`.

    factor: mean number of experts per token (the paper's c).
    """
    scores, probability, flat_NE = _softmax(scores)
    experts, size = scores.shape[-1], scores.shape[-2]
    room = min(size, capacity(size, experts, factor))
    weight_GCE, index_GCE = flat_NE.view(-1, size, experts).topk(room, dim=1)
    groups = len(index_GCE)
    first_G = torch.arange(groups, device=scores.device) * size
    token = (index_GCE + first_G[:, None, None]).permute(2, 0, 1).flatten()
    counts = torch.full((experts,), groups * room, device=scores.device)
    alone = torch.ones(len(flat_NE), dtype=torch.bool, device=scores.device).index_fill(0, token, False)
    return Routing(
        token,
        torch.arange(experts, device=scores.device).repeat_interleave(groups * room),
        weight_GCE.permute(2, 0, 1).flatten(),
        counts,
        counts,
        int(alone.sum()),
        scores,
        probability,
    )


def deepseek(
    scores: Tensor,
    bias: Tensor | None = None,
    *,
    k: int,
    groups: int = 1,
    best_groups: int = 1,
    normalise: bool = True,
    scale: float = 1.0,
) -> Routing:
    """DeepSeek-V3: each token to the k experts of the largest sigmoid(score) + bias; the bias does not affect the
    weights.

    scores: [N, E] or [G, S, E]. bias: [E], updated by :func:`update_bias_`. groups: number of contiguous groups of
    experts, of which a token only uses the ``best_groups`` with the largest sum of their two best scores. normalise:
    divide weights by their sum; then they are multiplied by ``scale``. ``probability`` is the sigmoid divided by its
    sum.
    """
    scores = precise(scores)
    affinity = scores.sigmoid()
    flat_NE = affinity.flatten(0, -2)
    preference_NE = flat_NE.detach() if bias is None else flat_NE.detach() + bias
    if groups > best_groups:
        grouped = preference_NE.unflatten(-1, (groups, -1))
        worth = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        closed = torch.ones_like(worth, dtype=torch.bool).scatter(-1, worth.topk(best_groups, dim=-1).indices, False)
        preference_NE = grouped.masked_fill(closed[..., None], -torch.inf).flatten(-2)
    chosen_Nk = preference_NE.topk(k, dim=-1).indices
    weight_Nk = flat_NE.gather(-1, chosen_Nk)
    if normalise:
        weight_Nk = weight_Nk / weight_Nk.sum(-1, keepdim=True).clamp_min(1e-20)
    return _assign(chosen_Nk, weight_Nk * scale, scores, affinity / affinity.sum(-1, keepdim=True), None)


@torch.no_grad()
def update_bias_(bias: Tensor, chosen: Tensor, rate: float = 1e-3) -> None:
    """After a step: raise the bias of experts chosen less than the mean by ``rate``, lower that of the others.

    bias: [E], in place (arXiv:2408.15664, algorithm 1). chosen: [E], summed over the step's micro-batches and
    processes.
    """
    chosen = chosen.to(bias.dtype)
    bias += rate * (chosen.mean() - chosen).sign()


def balance_loss(load: Tensor, share: Tensor) -> Tensor:
    """E sum_e f_e P_e: ``load`` and ``share`` of a routing [..., E] -> [...]. Gradients flow through ``share``.

    Switch sums the losses of the layers; Mixtral's published code averages both over the layers first.
    """
    return load.shape[-1] * (load.detach() * share).sum(-1)


def z_loss(scores: Tensor) -> Tensor:
    """Mean of the squared log-partition of the scores [..., E]: keeps them small, so that rounding can't decide."""
    return precise(scores).logsumexp(-1).square().mean()


def sequence_balance_loss(probability: Tensor, k: int) -> Tensor:
    """DeepSeek-V3's balance within each sequence (eqs. 17 to 20, without its factor alpha), averaged over sequences.

    probability: [G, S, E] of :func:`deepseek`; k: choices per token. It is 1 at uniform load. As in eq. 18 the bias
    is not used: f_e counts the k largest of the token's own affinities.
    """
    chosen_GSk = probability.topk(k, dim=-1).indices
    hit_GSE = torch.zeros_like(probability).scatter(-1, chosen_GSk, 1.0)
    f_GE = hit_GSE.mean(1) * (probability.shape[-1] / k)
    return (f_GE * probability.mean(1)).sum(-1).mean()


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scores in float32 or better, their softmax, and the softmax as [N, E]."""
    if scores.ndim not in (2, 3):
        raise ValueError(f"scores must be [tokens, experts] or [groups, tokens, experts], got {list(scores.shape)}")
    scores = precise(scores)
    probability = scores.softmax(-1)
    return scores, probability, probability.flatten(0, -2)


def _normalised_top(probability_NE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    weight_Nk, chosen_Nk = probability_NE.topk(k, dim=-1)
    return weight_Nk / weight_Nk.sum(-1, keepdim=True), chosen_Nk


def _count(key: Tensor, kinds: int) -> Tensor:
    """Counts of the values 0 .. kinds - 1 in ``key``: int64 [kinds]. bincount would synchronize with the device."""
    return key.new_zeros(kinds).scatter_add_(0, key, torch.ones_like(key))


def _assign(
    chosen_Nk: Tensor,
    weight_Nk: Tensor,
    scores: Tensor,
    probability: Tensor,
    factor: float | None,
    asked_Nk: Tensor | None = None,
) -> Routing:
    """Sort the choices by expert and drop those beyond capacity; unused choices don't count."""
    tokens, experts, size = len(chosen_Nk), scores.shape[-1], scores.shape[-2]
    # all first choices before the second: the sorts are stable, so that this is the order of preference within an expert
    expert, source = chosen_Nk.T.flatten(), None
    if asked_Nk is not None:
        source = asked_Nk.T.flatten().nonzero().squeeze(1)
        expert = expert[source]
    counts = chosen = _count(expert, experts)
    dropped = 0
    if factor is None:
        expert, order = expert.sort(stable=True)
        source = order if source is None else source[order]
    else:
        room, groups = capacity(size, experts, factor * chosen_Nk.shape[1]), tokens // max(size, 1)
        source = torch.arange(len(expert), device=expert.device) if source is None else source
        key, order = (expert * groups + source % tokens // size).sort(stable=True)
        held = _count(key, experts * groups)
        place = torch.arange(len(key), device=key.device) - (held.cumsum(0) - held)[key]
        order = order[place < room]
        counts, dropped = held.clamp(max=room).view(experts, groups).sum(1), len(key) - len(order)
        expert, source = expert[order], source[order]
    weight = weight_Nk.T.flatten().index_select(0, source)
    return Routing(source % tokens, expert, weight, counts, chosen, dropped, scores, probability)
