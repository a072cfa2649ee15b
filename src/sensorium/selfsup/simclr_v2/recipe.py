"""SimCLR v2: how to pretrain it."""

from __future__ import annotations

from sensorium.data.augment.crops import simclr_views
from sensorium.data.augment.growing import growing
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.parts.heads import ProjectionHead
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_crop_min, pick_lr, pick_view_sizes
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.selfsup.simclr_v2.method import Extended, SimCLRv2


def simclr_v2(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    temperature: float | None = None,
    head_layers: int = 3,
    kept_layers: int = 1,
    memory: int = 0,
    momentum: float | None = None,
    crop_min: float | None = None,
    view_size: int | None = None,
    strength: float = 0.5,
    projection: int = 128,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
) -> Recipe:
    """SimCLR v2 (Chen et al., 2020): contrastive learning with a deep head, whose first layer is fine-tuned with the network.

    Then `sensorium train supervised --start RUN`, and `sensorium train self_training --teacher RUN`.

    Example: sensorium train simclr_v2 --data DIR --budget 10m

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step, two views of each.
        lr: peak learning rate.
        temperature: of the softmax over similarities; lower for small batches.
        head_layers: layers of the projection head.
        kept_layers: how many of them belong to the features afterward; 0 as in SimCLR.
        memory: projections of earlier pictures as more negatives; 0 for none.
        momentum: of the moving average that makes these.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
        strength: of the color jitter (0.5 for small pictures, 1 in the paper's ImageNet setting).
        projection: dimension of the projections that the loss compares.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
    """
    _check(head_layers, kept_layers, memory)
    s = Settings()
    network = build_backbone(backbone, on, s, by="SimCLR v2")
    by = pick_optimizer(optimizer, network, s)
    rate = pick_lr(lr, rate_of(by, 2e-3), batch := pick_batch_size(batch_size, on, s, cpu=128), s)
    # The paper's 0.1 is for batches of 4,096.
    tau = s.pick("temperature", temperature, 0.2 if batch <= 512 else 0.1, f"batch {batch}")
    s.note(head_layers=head_layers, kept_layers=kept_layers, memory=memory)
    usual = (0.99, "a CPU has time for few steps") if on.device == "cpu" else (0.999, "MoCo's")
    m, smallest = s.pick("momentum", momentum, *usual), pick_crop_min(crop_min, on, s)
    s.note(weight_decay=weight_decay, warmup=warmup, projection=projection, strength=strength)
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    head = ProjectionHead(network.dim, network.dim, projection, layers=head_layers - kept_layers)
    with refused_by("simclr_v2"):
        whole = Extended(network, kept_layers) if kept_layers else network
        method = SimCLRv2(whole, head, temperature=tau, memory=memory, momentum=m)
    views = growing(lambda px: simclr_views(on.mean, on.std, px, strength=strength, scale=(smallest, 1.0)), sides)
    made = Recipe(
        "simclr_v2", method, views, optimizer_of(by, rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s
    )
    return heads_first(made, head_first)


def _check(head_layers: int, kept_layers: int, memory: int) -> None:
    if not 0 <= kept_layers < head_layers:
        raise SensoriumError(
            f"--kept-layers {kept_layers}: must be at least 0 and less than --head-layers {head_layers}."
        )
    if memory < 0:
        raise SensoriumError(f"--memory {memory}: must not be negative.")
