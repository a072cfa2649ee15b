"""DINO: how to train it, and its views of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from sensorium.abilities import TokenEncoder
from sensorium.base.draw import Views
from sensorium.data.augment.crops import SMALL, byol_view, drawn
from sensorium.data.augment.growing import growing
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.parts.heads import DINOHead
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_local_size, pick_lr, pick_view_sizes
from sensorium.recipe.ranges import FromOne, Log, Times
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.selfsup.dino.method import DINO

Centering = Literal["mean", "sinkhorn"]

RANGES = {
    "lr": Times(1 / 4, 4),
    "momentum": FromOne(1 / 4, 4),
    "tau_teacher": Times(1 / 2, 4 / 3),  # sharper than the student, or all collapses
    "crop_min": Log(0.1, 0.6),
}


def dino(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    tau_teacher: float | None = None,
    prototypes: int | None = None,
    local_crops: int | None = None,
    crop_min: float | None = None,
    weight_decay: float = 0.04,
    warmup: float = 0.1,
    optimizer: Optimizer | None = None,
    centering: Centering | None = None,
    center_momentum: float | None = None,
    tau_student: float = 0.1,
    local_size: int | None = None,
    view_size: int | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
    patch_dropout: float = 0.0,
) -> Recipe:
    """DINO (Caron et al., 2021): self-distillation; a student predicts from crops the output of its own moving average.

    Example: sensorium train dino --data DIR --budget 10m --backbone vit-micro

    Args:
        backbone: any backbone by name, or the path of a checkpoint. With a ViT the report shows its attention.
        batch_size: pictures per step.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        momentum: initial momentum of the teacher's moving average; it rises to 1.
        centering: what spreads the teacher's outputs over the prototypes: the mean of earlier ones (mean), or Sinkhorn-Knopp
            over those of the step (sinkhorn).
        center_momentum: of the center's moving average.
        tau_student: temperature of the student's softmax.
        tau_teacher: temperature of the teacher's softmax after its warm-up.
        prototypes: dimension of the head's output.
        crop_min: minimum area of a global crop, as a fraction of the picture.
        local_crops: small crops a picture, beside the two global ones.
        local_size: their side in pixels.
        view_size: side of the global crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
        patch_dropout: fraction of a ViT's patches that the network leaves out while it learns; its moving average sees all.
    """
    s = Settings()
    network = build_backbone(backbone, on, s, by="DINO", patch_dropout=patch_dropout)
    by = pick_optimizer(optimizer, network, s)
    batch = pick_batch_size(batch_size, on, s, cpu=128 if by == "muon" else 64)
    usual = _dino_defaults(on, batch)
    vit = isinstance(network, TokenEncoder)
    rate = pick_lr(lr, rate_of(by, 1e-3 if vit or on.device != "cpu" else 4e-3), batch, s)
    given = {"momentum": momentum, "centering": centering, "center_momentum": center_momentum, "tau_teacher": tau_teacher,
             "prototypes": prototypes, "local_crops": local_crops}  # fmt: skip
    start, spread, center, tau_t, width, locals_ = (s.pick(name, given[name], *usual[name]) for name in given)
    if spread not in get_args(Centering):
        raise SensoriumError(f"--centering {spread}: choose {', '.join(get_args(Centering))}.")
    # Without local crops the global ones must hide enough of the picture themselves.
    smallest = s.pick("crop_min", crop_min, 0.4 if locals_ else 0.2, f"{locals_} local crops")
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    small = pick_local_size(local_size, sides[-1], 0.5, "half", network, s)  # 96 of 224 in the paper
    s.note(weight_decay=weight_decay, warmup=warmup, tau_student=tau_student)
    head, warming = _dino_head(network, width, on), (min(0.04, tau_t), tau_t)
    numbers: dict[str, Any] = {"momentum": start, "center_momentum": center, "sinkhorn": spread == "sinkhorn"}
    method = DINO(network, head, tau_s=tau_student, tau_t=warming, **numbers)
    views = growing(lambda px: dino_views(on.mean, on.std, px, small, locals_, global_scale=(smallest, 1.0)), sides)
    build = optimizer_of(by, rate, weight_decay, (0.9, 0.99))
    made = Recipe("dino", method, views, build, lambda f: warmup_cosine(f, warmup), batch, s)
    return heads_first(made, head_first)


def _dino_defaults(on: Situation, batch: int) -> dict[str, tuple[Any, str]]:
    """Each setting's value and its reason.

    A CPU does a thousand or two steps in some minutes; the paper trained for a hundred thousand. In so few the teacher
    and the center must be updated faster (the paper's 0.996 is for 800 epochs): if they lag, all images collapse to the
    same prototypes. A sharper teacher gives a stronger signal per image; local crops cost more time than they are
    worth.
    """
    if on.device == "cpu":
        usual = {"momentum": 0.98, "centering": "mean", "center_momentum": 0.5, "tau_teacher": 0.03, "prototypes": 1024,
                 "local_crops": 0}  # fmt: skip
        return {name: (value, "a CPU has time for few steps") for name, value in usual.items()}
    few, data = on.images < 200_000, f"{on.images:,} training images"
    return {
        "momentum": (0.99 if few else 0.996, data),
        "centering": ("mean", "the paper's"),
        "center_momentum": (0.9, "the paper's"),
        "tau_teacher": (0.04 if batch < 512 else 0.07, f"batch {batch}"),
        "prototypes": (2048 if few else 65_536, data),
        "local_crops": (2 if on.image_size <= 64 else 6, f"image size {on.image_size}"),
    }


def _dino_head(network, width: int, on: Situation) -> DINOHead:
    """The authors' head; on a CPU at a quarter of its width, since it would otherwise cost more than the backbone."""
    hidden, bottleneck = (512, 128) if on.device == "cpu" else (2048, 256)
    norm = not isinstance(network, TokenEncoder)
    return DINOHead(network.dim, width, hidden=hidden, bottleneck=bottleneck, norm=norm)


def dino_views(
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    local_size: int,
    local_crops: int,
    *,
    global_scale: tuple[float, float] = (0.4, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.4),
    blur: bool | None = None,
) -> Views:
    """DINO's multi-crop (arXiv:2104.14294; the augmentation is BYOL's): ``{"crops": [2 global, then local]}``.

    The first global crop is always blurred, the second with probability 0.1, local ones 0.5; the second is solarized
    with probability 0.2. ``blur`` is off by default up to 64 pixels, where it would remove too much detail. Crops are
    bilinear (the authors': bicubic).
    """
    blurs = size > SMALL if blur is None else blur
    first = byol_view(size, global_scale, 1.0, blur=blurs)
    second = byol_view(size, global_scale, 0.1, 0.2, blur=blurs)
    local = byol_view(local_size, local_scale, 0.5, blur=blurs)
    return drawn("crops", [first, second, *[local] * local_crops], mean, std)
