"""Gradient estimators of an expectation over a random variable, E = sum over x of p(x) f(x), with parametrized p.

Each function takes given noise and returns a surrogate: a value whose gradient is the estimate. Their bias and variance
are measured against the exact sum by `python -m benchmarks.estimators`.
    gaussian          x = mu + sigma e                                    Kingma & Welling, 2013, arXiv:1312.6114
    gumbel_max        x = argmax(a + g), g = -log(-log u): distributed as softmax(a)       Gumbel, 1954
    gumbel_softmax    y = softmax((a + g) / t), a relaxed choice; hard: one-hot forward, y backward (straight-through)
                                      Jang et al., 2016, arXiv:1611.01144; Maddison et al., 2016, arXiv:1611.00712
    reinforce         (f(x) - b) grad log p(x)                                             Williams, 1992
    relax             reinforce with a control variate c, whose gradient passes through the relaxed choice z and
                      through z' resampled given x:  (f(x) - c(z')) grad log p(x) + grad c(z) - grad c(z')
                      Grathwohl et al., 2017, arXiv:1711.00123; with c = eta f(softmax(z / t)) it is
    rebar                                                         Tucker et al., 2017, arXiv:1703.07370
Shapes: S samples, K choices, [S, K], or of N variables at once [S, N, K]; f takes rows that sum to one and gives [S].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Value = Callable[[Tensor], Tensor]
Baseline = Literal["none", "mean", "leave-one-out"]


def gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """mu + sigma e, for standard normal ``noise`` of any shape that the parameters broadcast to."""
    return mean + log_std.exp() * noise


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise from numbers in [0, 1): -log(-log u)."""
    tiny = torch.finfo(uniform.dtype).tiny
    return -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()


def gumbel_max(logits: Tensor, uniform: Tensor) -> Tensor:
    """A choice for each row of ``uniform`` [S, K], distributed as softmax(logits): one-hot [S, K], without gradient."""
    return _largest(logits + gumbel(uniform))


def gumbel_softmax(logits: Tensor, uniform: Tensor, temperature: float, *, hard: bool = False) -> Tensor:
    """Relaxed choices [S, K]; ``hard`` gives one-hot rows whose gradient is that of the relaxed ones."""
    _positive(temperature)
    soft = ((logits + gumbel(uniform)) / temperature).softmax(-1)
    if not hard:
        return soft
    return _largest(soft) + soft - soft.detach()


def reinforce(f: Value, logits: Tensor, uniform: Tensor, *, baseline: Baseline | float = "none") -> Tensor:
    """The surrogate [] of S samples by ``uniform`` [S, K].

    baseline: a constant, "leave-one-out" (for each sample the mean of the others: unbiased, needs S > 1) or "mean" (of
    all: the estimate is smaller by the factor (S - 1) / S).
    """
    choice = gumbel_max(logits, uniform)
    value = f(choice).detach()
    if isinstance(baseline, str) and baseline not in get_args(Baseline):
        raise ValueError(f"baseline must be a number or one of {', '.join(get_args(Baseline))}, got {baseline!r}")
    if baseline == "leave-one-out":
        if len(value) < 2:
            raise ValueError("leave-one-out needs at least two samples")
        value = (value - value.mean()) * len(value) / (len(value) - 1)
    elif baseline == "mean":
        value = value - value.mean()
    elif not isinstance(baseline, str):
        value = value - baseline
    return (value * _joint(choice * logits.log_softmax(-1))).mean()


def relax(f: Value, control: Value, logits: Tensor, uniform: Tensor, again: Tensor) -> Tensor:
    """The surrogate [] of S samples. ``control`` takes unnormalized relaxed choices z [S, K] and gives [S]; ``uniform``
    and ``again`` [S, K] are independent. Its gradient for the control's own parameters is not that of the variance; see
    the paper's section 3.
    """
    log_p = logits.log_softmax(-1)
    relaxed = log_p + gumbel(uniform)
    choice = _largest(relaxed)
    explained, same = control(relaxed), control(given(choice, log_p, again))
    score = _joint(choice * log_p)
    return ((f(choice) - same).detach() * score + explained - same).mean()


def rebar(f: Value, logits: Tensor, uniform: Tensor, again: Tensor, *, temperature: float, eta: float = 1.0) -> Tensor:
    """``relax`` with the control eta f(softmax(z / t))."""
    _positive(temperature)
    return relax(f, lambda z: eta * f((z / temperature).softmax(-1)), logits, uniform, again)


def given(choice: Tensor, log_p: Tensor, uniform: Tensor) -> Tensor:
    """log p + g for Gumbel noise g conditioned on ``choice`` (one-hot [S, K]) being the argmax: the maximum is a Gumbel
    variable, the others are truncated below it (appendix of arXiv:1703.07370)."""
    rate = -uniform.clamp(torch.finfo(uniform.dtype).tiny, 1 - torch.finfo(uniform.dtype).eps).log()  # exponential
    largest = (choice * rate).sum(-1, keepdim=True)
    return torch.where(choice > 0, -largest.log(), -(rate * (-log_p).exp() + largest).log())


def _joint(each: Tensor) -> Tensor:
    """log p of each choice [S, ..., K] -> that of all variables of a sample [S]."""
    return each.flatten(1).sum(1)


def _largest(scores: Tensor) -> Tensor:
    """One-hot rows [S, K], without gradient."""
    return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)


def _positive(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
