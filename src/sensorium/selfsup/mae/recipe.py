"""MAE: how to train it, and its view of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sensorium.abilities import TokenEncoder
from sensorium.base.draw import Draw, Views
from sensorium.data.augment.views import View
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr
from sensorium.recipe.ranges import Choice, Log, Times, Uniform
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.selfsup.mae.method import MAE

RANGES = {
    "lr": Times(1 / 4, 4),
    "mask_ratio": Uniform(0.5, 0.9),
    "normalize_targets": Choice(True, False),
    "crop_min": Log(0.08, 0.6),
}


def mae(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    mask_ratio: float = 0.75,
    decoder_width: int | None = None,
    decoder_depth: int | None = None,
    normalize_targets: bool = True,
    crop_min: float = 0.2,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
) -> Recipe:
    """MAE (He et al., 2021): mask three quarters of the patches and reconstruct them.

    Example: sensorium train mae --data DIR --budget 10m --mask-ratio 0.6

    Args:
        backbone: a ViT by name, or the path of a checkpoint of one.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
        mask_ratio: fraction of the patches that is masked.
        decoder_width: channels of the decoder.
        decoder_depth: layers of the decoder.
        normalize_targets: predict each patch normalized by its own mean and standard deviation.
        crop_min: minimum area of a crop, as a fraction of the picture.
    """
    s = Settings()
    network = build_backbone(
        backbone, on, s, by="MAE", needs=TokenEncoder, positions="sincos", pool="mean", init="xavier"
    )
    batch = pick_batch_size(batch_size, on, s, cpu=32)
    rate = pick_lr(lr, 1.5e-3, batch, s)
    width = s.pick("decoder_width", decoder_width, max(64, network.dim // 2), "half the encoder's width")
    usual = 1 if network.depth <= 6 else 4 if network.depth < 12 else 8
    depth = s.pick("decoder_depth", decoder_depth, usual, f"encoder depth {network.depth}")
    s.note(weight_decay=weight_decay, warmup=warmup, mask_ratio=mask_ratio)
    s.note(normalize_targets=normalize_targets, crop_min=crop_min)
    if not 0.0 < mask_ratio < 1.0:
        raise SensoriumError(f"--mask-ratio {mask_ratio} is not between 0 and 1; the paper's is 0.75.")
    method = MAE(
        network,
        decoder_width=width,
        decoder_depth=depth,
        decoder_heads=max(1, width // 32),
        mask_ratio=mask_ratio,
        normalize_targets=normalize_targets,
    )
    patches = (on.image_size // network.patch_size) ** 2
    views = mae_views(on.mean, on.std, on.image_size, patches, scale=(crop_min, 1.0))
    return Recipe("mae", method, views, adamw(rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s)


def mae_views(
    mean: Sequence[float], std: Sequence[float], size: int, patches: int, *, scale: tuple[float, float] = (0.2, 1.0)
) -> Views:
    """MAE (arXiv:2111.06377): crop and flip only, ``{"image", "noise" [B, patches]}``; the noise ranks the
    patches for masking. Crops are bilinear (the authors': bicubic)."""
    view = View(size, scale)

    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        image = view(fields["image"], draw, mean, std)
        return {"image": image, "noise": draw.rand(patches).to(image.device)}

    return views
