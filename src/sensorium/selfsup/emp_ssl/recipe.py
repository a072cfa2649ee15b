"""EMP-SSL: how to train it, and its crops of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sensorium.abilities import TokenEncoder
from sensorium.base.draw import Views
from sensorium.data.augment.crops import SMALL, drawn
from sensorium.data.augment.growing import growing
from sensorium.data.augment.views import View
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.parts.heads import mlp_head
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import growing_sides, pick_batch_size, pick_lr
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.selfsup.emp_ssl.method import EMPSSL


def emp_ssl(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    crops: int | None = None,
    invariance: float = 200.0,
    projection: int | None = None,
    crop_area: float = 0.25,
    view_size: int | None = None,
    eps: float = 0.2,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
) -> Recipe:
    """EMP-SSL (Tong et al., 2023): many small crops of each picture agree, while pictures spread over all directions.

    Example: sensorium train emp_ssl --data DIR --budget 10m --crops 20

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step.
        lr: peak learning rate (the paper: LARS).
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        crops: of each picture and step.
        invariance: weight of the agreement of a picture's crops.
        eps: squared distortion up to which the coding rate codes the projections.
        projection: dimension of the projections.
        crop_area: area of each crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
    """
    for name, value, least in (("crops", crops, 2), ("projection", projection, 2)):
        if value is not None and value < least:
            raise SensoriumError(f"--{name} {value}: must be at least {least}.")
    if invariance < 0:
        raise SensoriumError(f"--invariance {invariance:g}: must not be negative; the paper's is 200.")
    for name, value, most in (("crop-area", crop_area, 1.0), ("eps", eps, 1e6)):
        if not 0 < value <= most:
            raise SensoriumError(f"--{name} {value:g}: must be above 0 and at most {most:g}.")
    s = Settings()
    network = build_backbone(backbone, on, s, by="EMP-SSL")
    cpu = on.device == "cpu"
    batch = pick_batch_size(batch_size, on, s)
    by = pick_optimizer(optimizer, network, s)
    rate = pick_lr(lr, rate_of(by, 4e-3 if cpu else 2e-3), batch, s)
    count = s.pick("crops", crops, *((8, "a CPU has time for few") if cpu else (20, "the paper's smaller number")))
    width = s.pick("projection", projection, *((256, "a small network") if cpu else (1024, "the authors'")))
    s.note(invariance=invariance, eps=eps, crop_area=crop_area, weight_decay=weight_decay, warmup=warmup)
    head = mlp_head(network.dim, *[512 if cpu else 4096] * 2, width, bias=True)
    method = EMPSSL(network, head, invariance=invariance, eps=eps)
    sides = growing_sides(view_size_first, _side(view_size, network, on, crop_area, s), network, s)
    views = growing(lambda px: emp_views(on.mean, on.std, px, count, crop_area), sides)
    made = Recipe(
        "emp_ssl", method, views, optimizer_of(by, rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s
    )
    return heads_first(made, head_first)


def _side(given: int | None, network: Any, on: Situation, area: float, s: Settings) -> int:
    """Of the crops in pixels. The authors enlarge crops to the size of the picture and judge a picture by the mean over
    many crops. Left at their own size, crops show things as large as they are in a whole picture, so that the mean of its
    map is such a mean, and a step costs a quarter.
    """
    unit = network.patch_size if isinstance(network, TokenEncoder) else 1
    side = max(round(on.image_size * area**0.5 / unit) * unit, min(on.image_size, 16) // unit * unit)
    return s.pick("view_size", given, side, "the crop's own size, as pictures are judged whole")


def emp_views(mean: Sequence[float], std: Sequence[float], size: int, crops: int, area: float) -> Views:
    """``{"crops"}``: ``crops`` of each picture, of the fraction ``area`` of it, as the authors' (``dataset/aug4img.py``);
    up to 64 pixels they are not blurred."""
    blur = 0.1 if size > SMALL else 0.0
    view = View(size, (area, area), jitter=(0.4, 0.4, 0.4, 0.2), jitter_p=0.8, grey_p=0.2, blur_p=blur, solarize_p=0.1)
    return drawn("crops", [view] * crops, mean, std)
