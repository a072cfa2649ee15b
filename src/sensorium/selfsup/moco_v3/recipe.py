"""MoCo v3: how to train it, and a ViT as its authors start it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from sensorium.abilities import TokenEncoder
from sensorium.data.augment.crops import byol_views
from sensorium.data.augment.growing import growing
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.networks.vit import ViT
from sensorium.parts.heads import mlp_head
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone, is_checkpoint
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_lr, pick_view_sizes
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.selfsup.moco_v3.method import MoCoV3


def moco_v3(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    temperature: float = 0.2,
    momentum: float = 0.99,
    freeze_patches: bool = True,
    crop_min: float | None = None,
    view_size: int | None = None,
    hidden: int | None = None,
    projection: int = 256,
    weight_decay: float | None = None,
    warmup: float = 0.1,
    optimizer: Optimizer | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
    patch_dropout: float = 0.0,
) -> Recipe:
    """MoCo v3 (Chen et al., 2021): contrastive learning against the batch's keys of a moving average, with a predictor.

    Example: sensorium train moco_v3 --data DIR --budget 10m --backbone vit-micro

    Args:
        backbone: any backbone by name, or the path of a checkpoint. With a ViT the report shows its attention.
        batch_size: pictures per step, two views of each; the negatives are of the same batch.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        temperature: of the softmax over similarities.
        momentum: initial momentum of the encoder's moving average; it rises to 1.
        freeze_patches: leave the patch projection of a ViT as it is initialized.
        hidden: channels of the hidden layers of projector and predictor.
        projection: dimension of queries and keys.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
        patch_dropout: fraction of a ViT's patches that the network leaves out while it learns; its moving average sees all.
    """
    s = Settings()
    initial: dict[str, Any] = {"positions": "sincos", "init": "xavier"}
    network = build_backbone(backbone, on, s, by="MoCo v3", patch_dropout=patch_dropout, **initial)
    if isinstance(network, ViT) and not is_checkpoint(backbone):
        start_(network)
    vit, cpu = isinstance(network, TokenEncoder), on.device == "cpu"
    batch = pick_batch_size(batch_size, on, s, cpu=128)
    # The authors' 2.4e-3 at batch 4,096 for a ViT, by the square root; a CPU's few steps stand more.
    by = pick_optimizer(optimizer, network, s)
    rate = pick_lr(lr, rate_of(by, 2e-3 if not vit else 1e-3 if cpu else 6e-4), batch, s)
    decay = s.pick("weight_decay", weight_decay, 0.1 if vit else 0.01, "the paper's" if vit else "a ResNet's")
    smallest = 0.2 if not vit or on.image_size <= 64 else 0.08
    scale = s.pick("crop_min", crop_min, smallest, f"the authors' configuration; image size {on.image_size}")
    width = s.pick("hidden", hidden, *((512, "cheap on a CPU") if cpu else (4096, "the paper's")))
    _check(momentum, temperature)
    s.note(warmup=warmup, temperature=temperature, momentum=momentum)
    s.note(freeze_patches=freeze_patches, projection=projection)
    head, predictor = heads(network.dim, width, projection, vit=vit)
    method = MoCoV3(network, head, predictor, temperature=temperature, momentum=momentum, freeze_patches=freeze_patches)
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    views = growing(lambda px: byol_views(on.mean, on.std, px, scale=(scale, 1.0)), sides)
    made = Recipe("moco_v3", method, views, optimizer_of(by, rate, decay), lambda f: warmup_cosine(f, warmup), batch, s)
    return heads_first(made, head_first)


def _check(momentum: float, temperature: float) -> None:
    if not 0 <= momentum <= 1:
        raise SensoriumError(f"--momentum {momentum:g}: must be at least 0 and at most 1; the paper's is 0.99.")
    if temperature <= 0:
        raise SensoriumError(f"--temperature {temperature:g}: must be above 0.")


def heads(dim: int, hidden: int, projection: int, *, vit: bool) -> tuple[nn.Sequential, nn.Sequential]:
    """Projector [B, dim] -> [B, projection] and predictor [B, projection] -> [B, projection], as in the authors' code:
    batch norms after all layers; with a ViT the projector has one layer more, with a ResNet the predictor no last norm."""
    projector = mlp_head(dim, *[hidden] * (2 if vit else 1), projection, standardized=True)
    return projector, mlp_head(projection, hidden, projection, standardized=vit, last_bias=False)


@torch.no_grad()
def start_(vit: ViT) -> None:
    """A ViT's initial weights and fixed positions as in the authors' code. In place.

    Queries, keys and values are three layers to Xavier's rule, the class token is nearly zero; and in the table of
    positions the row comes before the column, where MAE's has it after.
    """
    for name, layer in vit.named_modules():
        if name.endswith("attn.qkv") and isinstance(layer, nn.Linear):
            bound = math.sqrt(6 / (layer.out_features // 3 + layer.in_features))
            nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.normal_(vit.cls_token, std=1e-6)
    table: Any = vit.pos_embed
    if vit.positions == "sincos":
        table.copy_(table.roll(vit.dim // 2, dims=2))
