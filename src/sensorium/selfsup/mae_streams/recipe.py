"""MAE of streams: how to train it, and its view of a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensorium.base.draw import Draw, Views
from sensorium.data.rows import reads
from sensorium.data.streams.prepare import StreamSituation
from sensorium.errors import SensoriumError
from sensorium.recipe.optim import pick_lr
from sensorium.recipe.ranges import Choice, Times, Uniform
from sensorium.recipe.recipe import Recipe, Settings, machine_of, pick_heads, refused_by
from sensorium.recipe.streams import note_data, unlabeled_recipe
from sensorium.selfsup.mae_streams.method import StreamMAE

RANGES = {"lr": Times(1 / 4, 4), "mask_ratio": Uniform(0.5, 0.9), "normalize_targets": Choice(True, False)}


def mae_streams(
    on: StreamSituation,
    *,
    frame: int | None = None,
    length: int | None = None,
    patch: int = 1,
    width: int | None = None,
    depth: int | None = None,
    mask_ratio: float = 0.75,
    batch_size: int | None = None,
    lr: float | None = None,
    normalize_targets: bool = True,
    heads: int | None = None,
    decoder_width: int | None = None,
    decoder_depth: int = 1,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
) -> Recipe:
    """MAE (He et al., 2021) of signals and features: mask three quarters of a window's patches and reconstruct them.

    Example: sensorium train mae_streams --data recordings.npz --budget 3m

    Args:
        frame: samples of a signal per frame; by default a quarter of a second of a signal, else 1.
        length: frames of a window.
        patch: frames of a patch.
        width: channels of a patch.
        depth: layers of the encoder.
        heads: of attention.
        mask_ratio: fraction of the patches that is masked; with 0 all are encoded, and all are predicted.
        decoder_width: channels of the decoder.
        decoder_depth: layers of the decoder.
        normalize_targets: predict each patch normalized by its own mean and standard deviation.
        batch_size: windows per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    small, why = machine_of(on)
    note_data({"frame": frame, "length": length}, on, s)
    _check(patch, normalize_targets, on)
    channels: int = s.pick("width", width, 128 if small else 384, why)
    layers: int = s.pick("depth", depth, 4 if small else 12, why)
    attentive = pick_heads(heads, channels, small, s)
    narrow: int = s.pick("decoder_width", decoder_width, max(64, channels // 2), "half the encoder's width")
    batch: int = s.pick("batch_size", batch_size, 64 if small else 256, why)
    rate = pick_lr(lr, 1.5e-3, batch, s)
    s.note(patch=patch, mask_ratio=mask_ratio, normalize_targets=normalize_targets, decoder_depth=decoder_depth)
    with refused_by("mae_streams"):
        method = StreamMAE(
            on.features, patch, channels, layers, attentive, decoder_width=narrow, decoder_depth=decoder_depth,
            decoder_heads=max(1, narrow // 32), mask_ratio=mask_ratio, normalize_targets=normalize_targets,
        )  # fmt: skip
        method.kept(on.length // patch)
    views = masked_windows(on.length // patch)
    return unlabeled_recipe("mae_streams", method, views, s, batch, rate, weight_decay, warmup)


def _check(patch: int, normalize_targets: bool, on: StreamSituation) -> None:
    if patch < 1 or on.length % patch:
        raise SensoriumError(f"--patch {patch}: must divide the window of {on.length} frames (--length).")
    if normalize_targets and patch * on.features == 1:
        raise SensoriumError("a patch of one value can't be normalized: use --patch 2, or --no-normalize-targets.")


def masked_windows(patches: int) -> Views:
    """``{"frames", "noise"}``: windows as they are, and which of their ``patches`` are kept (the smallest noise)."""

    @reads("frames")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return {"frames": fields["frames"], "noise": draw.rand(patches)}

    return views
