"""CPC: how to train it, and its view of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sensorium.abilities import MapEncoder, TokenEncoder
from sensorium.base.draw import Draw, Views
from sensorium.data.augment.views import View
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_lr, pick_view_size
from sensorium.recipe.recipe import Recipe, Settings, machine_of, refused_by
from sensorium.selfsup.cpc.method import CPC


def cpc(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    patch: int | None = None,
    stride: int | None = None,
    steps: int | None = None,
    skip: int | None = None,
    crop_min: float = 0.3,
    context_width: int | None = None,
    context_depth: int | None = None,
    targets: int = 64,
    strength: float = 0.5,
    view_size: int | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    head_first: float | None = None,
) -> Recipe:
    """CPC (van den Oord et al., 2018): predicts the patches further down a picture from those above, among all others.

    Example: sensorium train cpc --data DIR --budget 10m

    Args:
        backbone: encoder of the patches: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step; the patches of all are the candidates.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        patch: side of a patch in pixels.
        stride: pixels between patches; by default half a patch, so that they overlap.
        steps: how many rows ahead is predicted, at most.
        skip: the nearest rows, which are not predicted; by default those that overlap.
        context_width: channels of the context network's convolutions.
        context_depth: its blocks; each sees one row more.
        targets: dimension in which predictions and patches are compared.
        crop_min: minimum area of a crop, as a fraction of the picture.
        strength: of the color jitter.
        view_size: side of the crop in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
    """
    s = Settings()
    small, why = machine_of(on)
    network = build_backbone(backbone, on, s, by="CPC")
    batch = pick_batch_size(batch_size, on, s)
    by = pick_optimizer(optimizer, network, s)
    rate = pick_lr(lr, rate_of(by, 2e-3), batch, s)
    side = pick_view_size(view_size, network, on, s)
    size, apart, near, ahead = _grid(patch, stride, skip, steps, network, side, on, s)
    width: int = s.pick("context_width", context_width, 128 if small else 256, why)
    depth: int = s.pick("context_depth", context_depth, 2 if small else 5, f"{why}; the paper's is 5")
    s.note(targets=targets, crop_min=crop_min, strength=strength, weight_decay=weight_decay, warmup=warmup)
    with refused_by("cpc"):
        method = CPC(
            network, size, apart, steps=ahead, skip=near, context_width=width, context_depth=depth, targets=targets
        )  # fmt: skip
    views = cpc_views(on.mean, on.std, side, crop_min, strength)
    made = Recipe(
        "cpc", method, views, optimizer_of(by, rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s
    )
    return heads_first(made, head_first)


def _grid(
    patch: int | None,
    stride: int | None,
    skip: int | None,
    steps: int | None,
    network: Any,
    side: int,
    on: Situation,
    s: Settings,
) -> tuple[int, int, int, int]:
    """Side and distance of patches in pixels, the rows that are not predicted, and the last that is."""
    small, why = machine_of(on)
    unit = network.patch_size if isinstance(network, TokenEncoder) else 1
    part, of = (3, f"a third of {side} px; {why}") if small else (4, f"a quarter of {side} px, as in the paper")
    # A stage that halves a map of one place has weights that see only padding; in bfloat16 their gradients aren't defined.
    least = network.strides[-1] if isinstance(network, MapEncoder) else unit
    usual = min(max(side // part, least), side // 2) // unit * unit
    size: int = s.pick("patch", patch, max(unit, usual), f"{of}, at least the backbone's stride")
    apart: int = s.pick("stride", stride, max(1, size // 2), "half a patch, as in the paper")
    if not 1 <= apart <= size <= side or size % unit:
        whole = f", and a multiple of the backbone's patches of {unit}" * (unit > 1)
        raise SensoriumError(f"cpc: --patch {size} --stride {apart}: must be 1 <= stride <= patch <= {side} px{whole}.")
    rows = (side - size) // apart + 1
    if rows < 2:
        raise SensoriumError(f"cpc: {rows} row of patches at {side} px: give a smaller --patch or --stride.")
    near: int = s.pick("skip", skip, min(-(-size // apart) - 1, rows - 2), "rows that overlap")
    last = max(near + 1, min(5, rows - 1))
    ahead: int = s.pick("steps", steps, last, f"{rows} rows of patches; the paper's is 5 of 7")
    if not 0 <= near < ahead < rows:
        raise SensoriumError(
            f"cpc: --skip {near} --steps {ahead}: must be 0 <= skip < steps < {rows}, the rows of patches."
        )
    return size, apart, near, ahead


def cpc_views(mean: Sequence[float], std: Sequence[float], size: int, crop_min: float, strength: float) -> Views:
    """``{"image"}``: one crop of each picture, flipped, color-jittered, gray with probability 0.2."""
    jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    view = View(size, (crop_min, 1.0), jitter=jitter, jitter_p=0.8, grey_p=0.2)

    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return {"image": view(fields["image"], draw, mean, std)}

    return views
