"""Monitoring a run: whether it has collapsed, and whether its loss falls.

A self-supervised loss can fall while the features become useless: all equal (complete collapse) or confined to a few
directions (dimensional collapse). Two numbers show it, on L2-normalized features z [N, D] with singular values s:
    rank   = exp(-sum_i p_i log p_i),  p = s / sum(s)            (effective rank: Roy & Vetterli, 2007; RankMe)
    spread = sqrt(D) * mean over dimensions of std over images    (1 on a uniform sphere, 0 when all are alike)
What is a collapse for one method is not for another, so each declares its ``signs`` (:class:`sensorium.method.Sign`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.method import Method, Sign

Online = Callable[[Method], Mapping[str, float]]


def collapse(features: Tensor) -> dict[str, float]:
    """``rank`` and ``spread`` of features [N, D]; see the module's equations."""
    z = torch.nn.functional.normalize(features.detach().double().flatten(1), dim=1)
    n, d = z.shape
    gram = z @ z.T if n < d else z.T @ z  # its eigenvalues are the squared singular values, whichever side is shorter
    s = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = s / s.sum().clamp(min=torch.finfo(s.dtype).tiny)
    rank = torch.special.entr(p).sum().exp()
    spread = z.std(0, correction=0).mean() * math.sqrt(d)
    return {"rank": float(rank), "spread": float(spread)}


def look(online: Online, method: Method) -> dict[str, float]:
    """Evaluate ``method`` in evaluation mode without gradient; restores the random state and the modules' modes."""
    modes = [(module, module.training) for module in method.modules()]
    device = next((p.device for p in method.parameters()), torch.device("cpu"))
    gpus = [device] if device.type == "cuda" else []
    try:
        method.eval()
        with torch.random.fork_rng(devices=gpus), torch.no_grad():
            return {name: float(value) for name, value in online(method).items()}
    finally:
        for module, mode in modes:
            module.training = mode


def collapsed(row: Mapping[str, Any], signs: Sequence[Sign] = Method.signs) -> str | None:
    """A warning by the first of the ``signs`` that a ``row`` shows: the scalars of an online evaluation, and of the steps
    before it. A scalar that is missing or not a number shows nothing."""
    for sign in signs:
        value = row.get(sign.name, math.nan)
        if value < sign.least or value > sign.most:
            told = f"{sign.what} have collapsed at step {row.get('step')}: {sign.how} ({sign.name} {value:.3g})"
            return f"{told}. Try a smaller learning rate, a larger batch or stronger augmentation."
    return None


def learned_nothing(losses: Sequence[float]) -> str | None:
    """A note if the last losses are not below the first ones by more than noise."""
    if len(losses) < 20:
        return None
    window = max(5, len(losses) // 20)
    first, last = np.asarray(losses[:window]), np.asarray(losses[-window:])
    chance = math.sqrt((first.var() + last.var()) / window)
    if float(last.mean()) < float(first.mean()) - chance:
        return None
    return (
        f"the loss did not fall: {first.mean():.4g} over the first {window} steps, {last.mean():.4g} over the last. "
        "Try another learning rate or a longer budget, and check the data's diagnosis."
    )
