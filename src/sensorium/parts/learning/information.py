"""Lower bounds of the mutual information of x and y, by a critic T(x, y) that scores pairs.

    I(x; y) = E_p log r,   r(x, y) = p(x, y) / (p(x) p(y)),   E_p over p(x, y), E_q over p(x) p(y)
    donsker_varadhan   E_p T - log E_q e^T                              best for T = log r + c
                       Donsker & Varadhan, 1983; MINE: Belghazi et al., 2018, arXiv:1801.04062, eq. 10
    mine               the same value; its gradient has a moving average of E_q e^T (MINE, section 3.2): one of a
                       batch alone is biased
    nwj                E_p T - E_q e^(T - 1)                            best for T = 1 + log r
                       f-GAN's KL: Nguyen et al., 2010, arXiv:0809.0853; Nowozin et al., 2016, arXiv:1606.00709
    jsd                2 log 2 - E_p softplus(-T) - E_q softplus(T)     best for T = log r
                       bounds twice the Jensen-Shannon divergence of p and q, no information: Hjelm et al., 2018,
                       arXiv:1808.06670, eq. 4. A critic that it trained gives
    jsd_nwj            1 + E_p T - E_q e^T                              Poole et al., 2019, arXiv:1905.06922, section 2.4
    infonce            log K + E_p [T - log sum over the K candidates of e^T] <= log K      best for T = log r + c(y)
                       van den Oord et al., 2018, arXiv:1807.03748, eq. 4
    interpolated       1 + E_p [T - log b] - E_q [e^T / b],   b = a m(y) + (1 - a) q(y)     best for T = log r, q = 1
                       m(y) the mean of e^T over the K candidates: infonce for a = 1, jsd_nwj for a = 0
                       Poole et al., eq. 11
The expectations are means over a batch. Those of donsker_varadhan (log of a mean) exceed the bound on average; those of
the others don't, for a fixed critic. Their bias and variance are measured by `python -m benchmarks.information`.
Losses are the negative values. Each process gives the value of its own rows; the mean over processes is that of the
global batch, with the gradient convention of :mod:`sensorium.parts.gather`.
Shapes: B rows (y), N candidates (x) of each, of which one is its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.base.precision import precise
from sensorium.parts.gather import gather, world_size


def pairs(scores: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """Scores [B, N, ...] -> those of the joint [B, ...] and of the marginals [B, N - 1, ...], in order.

    Row i's own candidate is column ``first`` + i. Further dimensions: places. Raises ValueError if a row has no other
    candidate, or none of its own.
    """
    B, N = scores.shape[:2]
    if N < 2 or not 0 <= first <= N - B:
        raise ValueError(f"{B} rows from column {first} need as many candidates and another one, got {N}")
    row = torch.arange(B, device=scores.device)
    own = row + first
    others = torch.arange(N - 1, device=scores.device).expand(B, -1)
    return scores[row, own], scores[row[:, None], others + (others >= own[:, None])]


def donsker_varadhan(joint: Tensor, marginal: Tensor) -> Tensor:
    """Scores of any shape -> 0-d, in nats. The mean of e^T is that of all processes."""
    return precise(joint).mean() - log_mean_exp(marginal)


def mine(joint: Tensor, marginal: Tensor, log_average: Tensor) -> Tensor:
    """The value of :func:`donsker_varadhan`, with the gradient E_p dT - E_q e^T dT / average.

    log_average: 0-d, of the moving average, without gradient; see :func:`updated_log_average`.
    """
    surrogate = precise(joint).mean() - (precise(marginal) - log_average).exp().mean()
    return surrogate + (donsker_varadhan(joint, marginal) - surrogate).detach()


@torch.no_grad()
def updated_log_average(log_average: Tensor, marginal: Tensor, momentum: float) -> Tensor:
    """The logarithm of momentum * average + (1 - momentum) * mean of e^T over all processes. 0-d."""
    return _log_mix(momentum, log_average, log_mean_exp(marginal))


def nwj(joint: Tensor, marginal: Tensor) -> Tensor:
    """Scores of any shape -> 0-d, in nats."""
    return jsd_nwj(joint - 1, marginal - 1)


def jsd_nwj(joint: Tensor, marginal: Tensor) -> Tensor:
    """Scores T = log r of any shape -> 0-d, in nats: :func:`nwj` of T + 1."""
    return 1 + precise(joint).mean() - precise(marginal).exp().mean()


def jsd(joint: Tensor, marginal: Tensor) -> Tensor:
    """Scores of any shape -> 0-d, at most 2 log 2; 0 for a critic that is 0."""
    return 2 * math.log(2) - F.softplus(-precise(joint)).mean() - F.softplus(precise(marginal)).mean()


def infonce(joint: Tensor, marginal: Tensor) -> Tensor:
    """Scores [B, ...] and [B, M, ...] -> 0-d, in nats, at most :func:`ceiling`.

    A row's own places are scored one at a time, each among all M (times places) others of its row.
    """
    own, others = precise(joint).reshape(len(joint), -1), precise(marginal).flatten(1).logsumexp(1, keepdim=True)
    return ceiling(marginal) - F.softplus(others - own).mean()


def ceiling(marginal: Tensor) -> float:
    """log K, the largest value of :func:`infonce` with marginal scores [B, M, ...]: K = 1 + M (times places)."""
    return math.log(1 + marginal[0].numel())


def bound_scalars(loss: Tensor, candidates: int) -> dict[str, Tensor]:
    """What a contrastive method logs of its bound (``abilities.BoundsInformation``), for a ``loss`` that is the
    cross-entropy of a choice among K ``candidates``: ``information``, log K - loss, and its ``ceiling``, log K."""
    most = loss.detach().new_full((), math.log(candidates))
    return {"information": most - loss.detach(), "ceiling": most}


def interpolated(scores: Tensor, a: float, log_q: Tensor | float = 0.0, *, first: int = 0) -> Tensor:
    """Scores [B, N], own ones as in :func:`pairs` -> 0-d, in nats, at most 1 + log(K / a).

    a: 0 to 1. log_q: [B] or 0-d, of any positive function of y. K = N - 1: y meets the N - 1 other candidates in E_q,
    and in E_p its own in the place of each of them in turn. Raises ValueError for another a or for fewer than three
    candidates.
    """
    if not 0 <= a <= 1 or scores.shape[1] < 3:
        raise ValueError(f"needs a in [0, 1] and at least 3 candidates, got {a} and {scores.shape[1]}")
    joint, marginal = pairs(precise(scores), first)
    log_k, log_q = math.log(marginal.shape[1]), torch.as_tensor(log_q, device=scores.device)
    apart = _log_mix(a, marginal.logsumexp(1) - log_k, log_q)
    among = torch.logaddexp(joint[:, None], _without_each(marginal)) - log_k
    baseline = _log_mix(a, among, log_q.unsqueeze(-1))
    return 1 + (joint[:, None] - baseline).mean() - (marginal - apart[:, None]).exp().mean()


def log_mean_exp(x: Tensor) -> Tensor:
    """log of the mean of e^x over all elements, as many in every process, of all processes. 0-d."""
    x = precise(x)
    here = x.flatten().logsumexp(0) - math.log(x.numel())
    return gather(here.view(1)).logsumexp(0) - math.log(world_size())


def _without_each(x: Tensor) -> Tensor:
    """[B, M] -> [B, M]: logsumexp of a row without its element j. Only the largest may be most of the sum; without it
    the sum is taken anew, where a difference would cancel."""
    top = x.argmax(1, keepdim=True)
    share = x.softmax(1).scatter(1, top, 0.0)
    rest = x.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    return (x.logsumexp(1, keepdim=True) + (-share).log1p()).scatter(1, top, rest)


def _log_mix(a: float, x: Tensor, y: Tensor) -> Tensor:
    """log(a e^x + (1 - a) e^y)."""
    if a in (0, 1):
        return x + 0 * y if a else y + 0 * x
    return torch.logaddexp(x + math.log(a), y + math.log(1 - a))
