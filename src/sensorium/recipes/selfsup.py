"""Recipes of the self-supervised family and its supervised baseline.

Each function's keyword parameters are the flags of ``sensorium train NAME``. ``None`` follows from the data and the
machine; what was chosen and why is printed and kept with the run.
"""

from __future__ import annotations

from typing import Any

from sensorium.abilities import TokenEncoder
from sensorium.data.augment.views import dino_views, mae_views, simclr_views, supervised_views
from sensorium.errors import SensoriumError
from sensorium.parts.heads import DINOHead, ProjectionHead
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr, pick_view_size
from sensorium.recipe.recipe import Recipe, Settings, Situation
from sensorium.selfsup.dino import DINO
from sensorium.selfsup.mae import MAE
from sensorium.selfsup.simclr import SimCLR
from sensorium.selfsup.supervised import Supervised


def simclr(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    temperature: float | None = None,
    projection: int = 128,
    crop_min: float | None = None,
    view_size: int | None = None,
    strength: float = 0.5,
) -> Recipe:
    """SimCLR (Chen et al., 2020): two views of one picture should be nearest neighbours among all views of the batch.

    Example: sensorium train simclr --data DIR --budget 10m --temperature 0.2

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures a step, each seen twice.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: share of the budget over which the learning rate rises.
        temperature: of the softmax over similarities; lower for small batches.
        projection: width of the space in which views are compared.
        crop_min: smallest share of the picture that a crop may keep.
        view_size: side of the crops in pixels.
        strength: of the colour jitter (0.5 for small pictures, 1 in the paper's ImageNet setting).
    """
    s = Settings()
    network = build_backbone(backbone, on, s, by="SimCLR")
    batch = pick_batch_size(batch_size, on, s, cpu=128)
    rate = pick_lr(lr, 2e-3, batch, s)
    # Fewer negatives make the contrast easier; a lower temperature makes it hard again (SimCLR, table 5).
    tau = s.pick("temperature", temperature, 0.2 if batch <= 512 else 0.5, f"batch {batch}")
    smallest = s.pick("crop_min", crop_min, 0.2 if on.image_size <= 64 else 0.08, f"image size {on.image_size}")
    s.note(weight_decay=weight_decay, warmup=warmup, projection=projection, strength=strength)
    method = SimCLR(network, ProjectionHead(network.dim, max(network.dim, 256), projection), temperature=tau)
    side = pick_view_size(view_size, network, on, s)
    views = simclr_views(on.mean, on.std, side, strength=strength, scale=(smallest, 1.0))
    return Recipe("simclr", method, views, adamw(rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s)


def mae(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    mask_ratio: float = 0.75,
    decoder_width: int | None = None,
    decoder_depth: int | None = None,
    normalize_targets: bool = True,
    crop_min: float = 0.2,
) -> Recipe:
    """MAE (He et al., 2021): hide three quarters of the patches and paint them back.

    Example: sensorium train mae --data DIR --budget 10m --mask-ratio 0.6

    Args:
        backbone: a ViT by name, or the path of a checkpoint of one.
        batch_size: pictures a step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: share of the budget over which the learning rate rises.
        mask_ratio: share of the patches that is hidden.
        decoder_width: of the small Transformer that paints.
        decoder_depth: its layers.
        normalize_targets: paint each patch relative to its own mean and spread.
        crop_min: smallest share of the picture that a crop may keep.
    """
    s = Settings()
    network = build_backbone(
        backbone, on, s, by="MAE", needs=TokenEncoder, positions="sincos", pool="mean", init="xavier"
    )
    batch = pick_batch_size(batch_size, on, s, cpu=32)
    rate = pick_lr(lr, 1.5e-3, batch, s)
    width = s.pick("decoder_width", decoder_width, max(64, network.dim // 2), "half the encoder's width")
    depth = s.pick(
        "decoder_depth",
        decoder_depth,
        1 if network.depth <= 6 else 4 if network.depth < 12 else 8,
        f"encoder depth {network.depth}",
    )
    s.note(
        weight_decay=weight_decay,
        warmup=warmup,
        mask_ratio=mask_ratio,
        normalize_targets=normalize_targets,
        crop_min=crop_min,
    )
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


def dino(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.04,
    warmup: float = 0.1,
    momentum: float | None = None,
    center_momentum: float | None = None,
    tau_student: float = 0.1,
    tau_teacher: float | None = None,
    prototypes: int | None = None,
    crop_min: float | None = None,
    local_crops: int | None = None,
    local_size: int | None = None,
    view_size: int | None = None,
) -> Recipe:
    """DINO (Caron et al., 2021): a student that sees crops predicts what its own moving average makes of the whole.

    Example: sensorium train dino --data DIR --budget 10m --backbone vit-micro

    Args:
        backbone: any backbone by name, or the path of a checkpoint. With a ViT the report shows where it looks.
        batch_size: pictures a step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: share of the budget over which the learning rate rises.
        momentum: of the teacher's moving average at the start; it rises to 1.
        center_momentum: of the centre's moving average.
        tau_student: temperature of the student's softmax.
        tau_teacher: temperature of the teacher's softmax after its warm-up.
        prototypes: width of the output.
        crop_min: smallest share of the picture that a global crop may keep.
        local_crops: small crops a picture, beside the two global ones.
        local_size: their side in pixels.
        view_size: side of the global crops in pixels.
    """
    s = Settings()
    network = build_backbone(backbone, on, s, by="DINO")
    batch = pick_batch_size(batch_size, on, s)
    usual = _dino_defaults(on, batch)
    vit = hasattr(network, "patch_size")
    rate = pick_lr(lr, 1e-3 if vit or on.device != "cpu" else 4e-3, batch, s)
    start = s.pick("momentum", momentum, *usual["momentum"])
    center = s.pick("center_momentum", center_momentum, *usual["center_momentum"])
    tau_t = s.pick("tau_teacher", tau_teacher, *usual["tau_teacher"])
    width = s.pick("prototypes", prototypes, *usual["prototypes"])
    locals_ = s.pick("local_crops", local_crops, *usual["local_crops"])
    # Without local crops the global ones must hide enough of the picture themselves.
    smallest = s.pick("crop_min", crop_min, 0.4 if locals_ else 0.2, f"{locals_} local crops")
    side = pick_view_size(view_size, network, on, s)
    crop = _local_size(side, getattr(network, "patch_size", 1))
    small = s.pick("local_size", local_size, crop, f"half of {side} px")
    s.note(weight_decay=weight_decay, warmup=warmup, tau_student=tau_student)
    method = DINO(
        network,
        _dino_head(network, width, on),
        tau_s=tau_student,
        tau_t=(min(0.04, tau_t), tau_t),
        momentum=start,
        center_momentum=center,
    )
    views = dino_views(on.mean, on.std, side, small, locals_, global_scale=(smallest, 1.0))
    return Recipe(
        "dino", method, views, adamw(rate, weight_decay, (0.9, 0.99)), lambda f: warmup_cosine(f, warmup), batch, s
    )


def _dino_defaults(on: Situation, batch: int) -> dict[str, tuple[Any, str]]:
    """Each setting's value and its reason.

    Minutes on a CPU hold a thousand steps or two, where the paper took a hundred thousand. In so few the teacher must follow
    quickly (the paper's 0.996 is for 800 epochs), and the centre with it: where it lags, all pictures fall to the same
    prototypes. A sharp teacher says more about each picture; local crops cost more than they teach.
    """
    if on.device == "cpu":
        usual = {"momentum": 0.98, "center_momentum": 0.5, "tau_teacher": 0.03, "prototypes": 1024, "local_crops": 0}
        return {name: (value, "a CPU has time for few steps") for name, value in usual.items()}
    few, data = on.images < 200_000, f"{on.images:,} training images"
    return {
        "momentum": (0.99 if few else 0.996, data),
        "center_momentum": (0.9, "the paper's"),
        "tau_teacher": (0.04 if batch < 512 else 0.07, f"batch {batch}"),
        "prototypes": (2048 if few else 65_536, data),
        "local_crops": (2 if on.image_size <= 64 else 6, f"image size {on.image_size}"),
    }


def _dino_head(network, width: int, on: Situation) -> DINOHead:
    """The authors' head; on a CPU a quarter of its width, which would else cost more than the backbone."""
    hidden, bottleneck = (512, 128) if on.device == "cpu" else (2048, 256)
    return DINOHead(network.dim, width, hidden=hidden, bottleneck=bottleneck, norm=not hasattr(network, "patch_size"))


def _local_size(image_size: int, patch_size: int) -> int:
    """Nearest multiple of the patch to half the picture (96 of 224 in the paper)."""
    return max(patch_size, round(image_size * 0.5 / patch_size) * patch_size)


def supervised(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    label_smoothing: float = 0.1,
    crop_min: float = 0.3,
    view_size: int | None = None,
) -> Recipe:
    """The baseline that needs every label: cross-entropy with crops, flips and colour jitter.

    Example: sensorium train supervised --data DIR --budget 10m

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures a step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: share of the budget over which the learning rate rises.
        label_smoothing: probability mass given to the other classes.
        crop_min: smallest share of the picture that a crop may keep.
        view_size: side of the crops in pixels.
    """
    if len(on.classes) < 2:
        what = "no labels" if not on.classes else f"one class only ('{on.classes[0]}')"
        raise SensoriumError(
            f"'supervised' needs at least two classes; the data has {what}. Leave it out, or give a folder per class."
        )
    s = Settings()
    network = build_backbone(backbone, on, s, by="the supervised baseline")
    batch = pick_batch_size(batch_size, on, s)
    rate = pick_lr(lr, 2e-3, batch, s)
    s.note(weight_decay=weight_decay, warmup=warmup, label_smoothing=label_smoothing, crop_min=crop_min)
    method = Supervised(network, len(on.classes), label_smoothing=label_smoothing)
    side = pick_view_size(view_size, network, on, s)
    views = supervised_views(on.mean, on.std, side, scale=(crop_min, 1.0), jitter=(0.3, 0.3, 0.3, 0.05))
    return Recipe(
        "supervised",
        method,
        views,
        adamw(rate, weight_decay, (0.9, 0.99)),
        lambda f: warmup_cosine(f, warmup),
        batch,
        s,
    )
