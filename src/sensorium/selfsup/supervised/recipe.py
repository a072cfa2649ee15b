"""The supervised baseline: how to train it, and how much of a trained network."""

from __future__ import annotations

from typing import Any, Literal, get_args

from sensorium.abilities import TokenEncoder
from sensorium.data.augment.growing import growing
from sensorium.data.augment.shifts import usual_shift
from sensorium.data.augment.views import supervised_views
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import labeled
from sensorium.errors import SensoriumError
from sensorium.networks.seen import AsTrained, inner
from sensorium.parts.drop import DropPath, rising_
from sensorium.parts.lowrank import low_rank_
from sensorium.parts.schedules import warmup_cosine, warmup_linear
from sensorium.recipe.backbone import as_trained, build_backbone, is_checkpoint, started_from
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer
from sensorium.recipe.optim import growing_sides, layered, pick_batch_size, pick_lr, pick_view_sizes
from sensorium.recipe.ranges import Log, Times, Uniform
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.recipe.trained import RunFolder
from sensorium.selfsup.supervised.method import Supervised

Tune = Literal["full", "lora", "last"]
BETAS = (0.9, 0.99)
SCRATCH = {"muon": 1.4e-2, "adamw": 2e-3}
RATES = {"full": 4e-3, "lora": 1e-2, "last": 5e-2}  # of a trained network
DEEP = 5e-4  # of a trained transformer, all of it: layers at rates that decay

RANGES = {
    "lr": Times(1 / 4, 4),
    "weight_decay": Log(0.005, 0.5),
    "label_smoothing": Uniform(0.0, 0.2),
}


def supervised(
    on: Situation,
    *,
    backbone: str | None = None,
    start: RunFolder | None = None,
    tune: Tune = "full",
    optimizer: Optimizer | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    label_smoothing: float = 0.1,
    crop_min: float | None = None,
    shift: int | None = None,
    jitter: float | None = None,
    view_size: int | None = None,
    side: int | None = None,
    rank: int = 8,
    alpha: float = 16.0,
    layer_decay: float | None = None,
    head_first: float | None = None,
    drop_path: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    view_size_first: int | None = None,
) -> Recipe:
    """The supervised baseline: cross-entropy on every label, with flips and shifts, or with crops and color jitter.

    Pictures without a label are left out. A trained network, of --backbone PATH or --start RUN, is fine-tuned: all of it,
    by low-rank adaptation, or the head alone.

    Example: sensorium train supervised --data DIR --budget 10m

    Args:
        backbone: any backbone by name, or a checkpoint's path or hub id.
        start: folder of a run of any encoder, whose network is fine-tuned; instead of --backbone.
        tune: what is trained of a trained network: full (all of it), lora (low-rank products, which are added to the
            weights on export) or last (the head only).
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), whose rate falls linearly;
            by default muon for airbench's network.
        batch_size: pictures per step.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        warmup: fraction of the budget for learning rate warm-up.
        label_smoothing: probability mass given to the other classes.
        crop_min: minimum area of a crop, as a fraction of the picture; small pictures are shifted instead.
        shift: pixels by which a picture is moved at most, mirrored at its borders, instead of cropped; 0 crops.
        jitter: strength of the changes of brightness, contrast and saturation; of hue a sixth of it.
        view_size: side of the crops in pixels.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
        side: pixels to which pictures are resized before a checkpoint's network sees them; by default the size that it
            was trained at, at most 224. Small sides are faster and worse.
        rank: of the low-rank products.
        alpha: the products are multiplied by alpha / rank.
        layer_decay: the learning rate of each layer as a fraction of that of the layer above it.
        head_first: fraction of the budget in which only the head is trained.
        drop_path: rate at which a transformer's or ConvNeXt's last layer is skipped; those before it are skipped less.
        mixup: alpha of mixup; MAE's authors fine-tune with 0.8.
        cutmix: alpha of CutMix; MAE's authors fine-tune with 1.0.
    """
    if len(on.classes) < 2:
        what = "no labels" if not on.classes else f"one class only ('{on.classes[0]}')"
        raise SensoriumError(
            f"'supervised' needs at least two classes; the data has {what}. Leave it out, or give a folder per class."
        )
    s = Settings()
    network, trained = _network(on, backbone, start, side, s)
    _tuned(network, trained, tune, rank, alpha, s)
    by = pick_optimizer(optimizer, network, s, trained=trained)
    batch = pick_batch_size(batch_size, on, s, cpu=128 if by == "muon" else 64)
    deep = trained and tune == "full" and isinstance(inner(network), TokenEncoder)
    rate = pick_lr(lr, DEEP if deep else RATES[tune] if trained else SCRATCH[by], batch, s)
    why = "all of a trained transformer" if deep else "of a trained network" if trained else "of a random network"
    decay = _decay(layer_decay, deep, why, s)
    s.note(weight_decay=weight_decay, warmup=warmup, label_smoothing=label_smoothing)
    augmented = _augmented(crop_min, shift, jitter, trained, on, s)
    mixing = _regularized(network, drop_path, mixup, cutmix, s)
    with refused_by("supervised"):
        method = Supervised(network, len(on.classes), label_smoothing=label_smoothing)
    sides = _sides(network, view_size, view_size_first, augmented["shift"] > 0, on, s)
    views = growing(lambda px: supervised_views(on.mean, on.std, px, **augmented, **mixing), sides)
    if by == "muon" and decay < 1:
        raise SensoriumError(f"--layer-decay {decay:g}: Muon has no rates by layer; leave one of them out.")
    build = optimizer_of(by, rate, weight_decay, BETAS) if decay == 1 else layered(rate, weight_decay, BETAS, decay)
    fall = warmup_linear if by == "muon" else warmup_cosine
    made = Recipe(
        "supervised", method, views, build, lambda f: fall(f, warmup), batch, s,
        derive=lambda rows, cache, progress: labeled(rows),
    )  # fmt: skip
    return heads_first(made, head_first, (0.2 if deep else 0.0, why))


def _network(on: Situation, backbone: str | None, start: str | None, side: int | None, s: Settings) -> tuple[Any, bool]:
    """The backbone, and whether it was trained before."""
    by = "the supervised baseline"
    if side is not None and not is_checkpoint(backbone):
        raise SensoriumError("--side is for the network of a checkpoint, --backbone PATH.")
    if start is not None:
        return started_from(start, backbone, on, s, by=by), True
    network = build_backbone(backbone, on, s, by=by)
    return (as_trained(network, on, s, side), True) if is_checkpoint(backbone) else (network, False)


def _augmented(
    crop_min: float | None, shift: int | None, jitter: float | None, trained: bool, on: Situation, s: Settings
) -> dict[str, Any]:
    """The arguments of the views. Small pictures are shifted, as in airbench, unless crops are asked for or the network is trained."""
    usual = 0 if trained or crop_min is not None else usual_shift(on.image_size)
    why = f"image size {on.image_size}" if usual else "crops"
    moved = s.pick("shift", shift, usual, why)
    if moved and crop_min is not None:
        raise SensoriumError(
            f"--shift {moved} and --crop-min {crop_min:g}: a picture is shifted or cropped; leave one out."
        )
    if not 0 <= moved < on.image_size:
        raise SensoriumError(f"--shift {moved}: must be at least 0 and below the image size of {on.image_size} pixels.")
    if not moved:
        crop_min = s.pick("crop_min", crop_min, 0.3, "no shift")
    strength = s.pick("jitter", jitter, 0.0 if moved else 0.3, why)
    if not 0 <= strength <= 1:
        raise SensoriumError(f"--jitter {strength:g}: must be from 0 to 1.")
    colors = (strength, strength, strength, strength / 6)
    return {"scale": (crop_min or 1.0, 1.0), "shift": moved, "jitter": colors}


def _sides(
    network: Any, given: int | None, first: int | None, whole: bool, on: Situation, s: Settings
) -> tuple[int, ...]:
    """Of the views in pixels, one after the other; ``whole`` pictures have theirs."""
    if not isinstance(network, AsTrained):
        if whole:
            return growing_sides(first, s.pick("view_size", given, on.image_size, "shifted pictures"), network, s)
        return pick_view_sizes(given, first, network, on, s)
    if first is not None:
        raise SensoriumError(
            f"--view-size-first {first}: the network of this checkpoint gets all crops at {network.side} px; leave it out, "
            "or give a smaller --side."
        )
    return (s.pick("view_size", given, on.image_size, "the pictures are resized for the network"),)


def _tuned(network: Any, trained: bool, tune: Tune, rank: int, alpha: float, s: Settings) -> None:
    """Set what of the network is trained."""
    if tune not in get_args(Tune):
        raise SensoriumError(f"--tune {tune}: choose {', '.join(get_args(Tune))}.")
    s.note(tune=tune)
    if tune == "full":
        return
    if not trained:
        raise SensoriumError(
            f"--tune {tune}: of a random network all must be trained. Give a trained one, --backbone PATH or --start RUN."
        )
    if tune == "last":
        network.requires_grad_(False)
        return
    s.note(rank=rank, alpha=alpha)
    with refused_by("supervised"):
        low_rank_(network, rank, alpha)


def _decay(given: float | None, deep: bool, why: str, s: Settings) -> float:
    """Of the learning rate from layer to layer."""
    decay = s.pick("layer_decay", given, 0.75 if deep else 1.0, why)
    if not 0 < decay <= 1:
        raise SensoriumError(f"--layer-decay {decay}: must be above 0 and at most 1.")
    return decay


def _regularized(network: Any, drop_path: float, mixup: float, cutmix: float, s: Settings) -> dict[str, Any]:
    """Set the network's drop-path rates; the alphas of the mixtures."""
    mixing = {"mixup": mixup, "cutmix": cutmix}
    for name, value in mixing.items():
        if not 0 <= value < float("inf"):
            raise SensoriumError(f"--{name} {value:g}: must not be negative; 0 mixes no pictures.")
    if not 0 <= drop_path < 1:
        raise SensoriumError(f"--drop-path {drop_path:g}: must be at least 0 and less than 1.")
    if drop_path and not any(isinstance(part, DropPath) for part in network.modules()):
        raise SensoriumError(
            f"--drop-path {drop_path:g}: {type(network).__name__} has no branches to skip; a ViT, a Swin and a ConvNeXt have."
        )
    if drop_path:
        rising_(network, drop_path)
    s.note(drop_path=drop_path, **mixing)
    return mixing
