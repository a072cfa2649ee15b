"""Deep InfoMax: how to train it, and its view of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from sensorium.abilities import MapEncoder
from sensorium.base.draw import Draw, Views
from sensorium.data.augment.growing import growing
from sensorium.data.augment.views import View
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_lr, pick_view_sizes
from sensorium.recipe.recipe import Builder, Recipe, Settings, machine_of, refused_by
from sensorium.selfsup.deep_infomax.critics import ConcatLocal, DotGlobal, DotLocal
from sensorium.selfsup.deep_infomax.method import PHASES, Bound, DeepInfoMax, discriminator

Critic = Literal["dot", "concat"]
CRITICS = {"dot": DotLocal, "concat": ConcatLocal}
PLACES = 6  # rows of the local map, at least: the authors' has 8


def deep_infomax(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    bound: Bound = "infonce",
    alpha: float = 0.0,
    beta: float = 1.0,
    gamma: float = 0.0,
    crop_min: float = 0.3,
    strength: float = 0.5,
    critic: Critic = "dot",
    units: int | None = None,
    outputs: int = 64,
    level: int | None = None,
    view_size: int | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
) -> Recipe:
    """Deep InfoMax (Hjelm et al., 2018): features that have much mutual information with every place of a picture's map.

    Example: sensorium train deep_infomax --data DIR --budget 10m --bound jsd

    Args:
        backbone: any backbone with feature maps by name, or the path of a checkpoint.
        batch_size: pictures per step; the others of a batch are the negatives.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network; with gamma it is the authors' Adam.
        warmup: fraction of the budget for learning rate warm-up.
        bound: of mutual information: infonce, jsd (Jensen-Shannon) or dv (Donsker-Varadhan).
        alpha: weight of the global objective (0 in the paper's DIM(L), 1 in DIM(G)).
        beta: weight of the local objective.
        gamma: weight of the prior's, which makes the output uniform; it is adversarial, and 0 leaves it out.
        critic: of the local objective: dot (encode and dot product) or concat (concatenate and convolve).
        units: of the critics' networks.
        outputs: dimension of the output whose mutual information is learned; features are those before it.
        level: which feature map, 0 for the finest; by default the coarsest with 6 rows or more.
        crop_min: minimum area of a crop, as a fraction of the picture.
        strength: of the color jitter; the paper has none.
        view_size: side of the crop in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
    """
    s, (small, why) = Settings(), machine_of(on)
    network = build_backbone(backbone, on, s, by="Deep InfoMax", needs=MapEncoder)
    by = _pick_optimizer(optimizer, network, gamma, s)
    rate = pick_lr(lr, rate_of(by, 2e-3), batch := pick_batch_size(batch_size, on, s), s)
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    which, shape = _level(level, network, sides[-1], s)
    wide: int = s.pick("units", units, 256 if small else 2048, f"{why}; the authors' has 2048")
    s.note(bound=bound, alpha=alpha, beta=beta, gamma=gamma, critic=critic, outputs=outputs, crop_min=crop_min)
    s.note(strength=strength, weight_decay=weight_decay, warmup=warmup)
    weights: dict[str, Any] = {"alpha": alpha, "beta": beta, "gamma": gamma}
    local, others = _critics(critic, shape, outputs, wide, weights)
    with refused_by("deep_infomax"):
        method = DeepInfoMax(network, outputs, local, **others, level=which, bound=bound, **weights)
    prior, optimizers = (outputs, _optimizers(rate)) if gamma else (0, optimizer_of(by, rate, weight_decay))
    views = growing(lambda px: deep_infomax_views(on.mean, on.std, px, crop_min, strength, prior=prior), sides)
    made = Recipe("deep_infomax", method, views, optimizers, lambda f: warmup_cosine(f, warmup), batch, s)
    return heads_first(made, head_first)


def _critics(
    name: str, shape: tuple[int, int], outputs: int, units: int, weights: Mapping[str, float]
) -> tuple[nn.Module, dict[str, Any]]:
    """Of places, and those that the weights ask for, for maps of so many channels and rows."""
    if name not in CRITICS:
        raise SensoriumError(f"--critic {name}: choose {', '.join(CRITICS)}.")
    channels, rows = shape
    whole = DotGlobal(channels, (rows, rows), outputs, units) if weights["alpha"] else None
    judge = discriminator(outputs) if weights["gamma"] else None
    return CRITICS[name](channels, outputs, units), {"whole": whole, "discriminator": judge}


def _pick_optimizer(given: Optimizer | None, network: Any, gamma: float, s: Settings) -> Optimizer:
    if not gamma:
        return pick_optimizer(given, network, s)
    if given is not None:
        raise SensoriumError(
            f"--optimizer {given}: with --gamma both phases have the authors' Adam; leave one of them out."
        )
    return "adamw"


def _optimizers(lr: float) -> dict[str, Builder]:
    """Of both phases, without weight decay, as the authors'."""
    return {phase: partial(_adam, phase=phase, lr=lr) for phase in PHASES}


def _adam(method: Any, phase: str, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(list(method.parameters_of(phase)), lr=lr, fused=True)


def _level(given: int | None, network: Any, side: int, s: Settings) -> tuple[int, tuple[int, int]]:
    """The coarsest map with enough places, or the finest; its channels and rows."""
    rows = network.rows(side)
    fine = [i for i, count in enumerate(rows) if count >= PLACES]
    which: int = s.pick("level", given, max(fine, default=0), f"the coarsest with {PLACES} rows or more at {side} px")
    if not 0 <= which < len(network.strides):
        raise SensoriumError(f"--level {which}: this network has maps 0 to {len(network.strides) - 1}.")
    return which, (network.channels[which], rows[which])


def deep_infomax_views(
    mean: Sequence[float], std: Sequence[float], size: int, crop_min: float, strength: float = 0.0, *, prior: int = 0
) -> Views:
    """``{"image"}``: one crop of each picture, flipped and color-jittered; with ``prior`` also as many uniform numbers."""
    jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    view = View(size, (crop_min, 1.0), jitter=jitter, jitter_p=0.8 if strength else 0.0)

    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        found = {"image": view(fields["image"], draw, mean, std)}
        return found | {"prior": draw.rand(prior)} if prior else found

    return views
