"""CLIP: how to train it, and its views of a pair."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sensorium.abilities import TokenEncoder
from sensorium.base.draw import Draw, Views
from sensorium.data.augment.views import View
from sensorium.data.images.prepare import Situation
from sensorium.data.pairs.prepare import PairSituation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.multimodal.clip.method import CLIP
from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.vit import VIT_SIZES, auto_patch
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import NAMES, build_backbone
from sensorium.recipe.optim import adamw, pick_lr, pick_view_size
from sensorium.recipe.pairs import pick_text_tower, pick_tokens
from sensorium.recipe.recipe import Recipe, Settings, machine_of

TOWERS = tuple(f"clip-{size}" for size in VIT_SIZES)


def clip(
    on: PairSituation,
    *,
    backbone: str | None = None,
    text_width: int | None = None,
    text_depth: int | None = None,
    embed_dim: int | None = None,
    tokenizer: str | None = None,
    temperature: float = 0.07,
    batch_size: int | None = None,
    lr: float | None = None,
    vocab: int | None = None,
    context: int | None = None,
    weight_decay: float = 0.2,
    warmup: float = 0.05,
    crop_min: float = 0.6,
    flip: bool = False,
) -> Recipe:
    """CLIP (Radford et al., 2021): contrastive learning of pictures and their captions.

    Example: sensorium train clip --data DIR --budget 20m

    DIR holds tars of KEY.png and KEY.txt, a .csv, .tsv or .jsonl of file and caption, or .parquet of the same; for one
    folder per class, the class names are the captions.

    Args:
        backbone: image encoder: clip-micro ... clip-huge (which can be exported), another name, or a checkpoint's path.
        text_width: channels of the text tower.
        text_depth: layers of the text tower.
        embed_dim: dimension of the common embedding space.
        tokenizer: CLIP's own list of merges (.txt.gz), or a Hugging Face folder; by default learned from the captions.
        vocab: size of the vocabulary learned from the captions.
        context: maximum tokens of a caption; longer ones are truncated.
        batch_size: pairs per step, each contrasted with all others.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
        temperature: initial value; it is learned.
        crop_min: minimum area of a crop, as a fraction of the picture.
        flip: also flip pictures horizontally; not for captions with left or right, or pictures of text.
    """
    s = Settings()
    small, why = machine_of(on)
    image = _image_tower(backbone, on, s)
    text = pick_text_tower(text_width, text_depth, on, s)
    shared: int = s.pick("embed_dim", embed_dim, 128 if small else 512, why)
    pick_tokens(tokenizer, vocab, context, on, s)
    batch = _batch_size(batch_size, on, s)
    patches = isinstance(image, TokenEncoder)
    rate = pick_lr(lr, 5e-4 if not small else 1e-3 if patches else 2e-3, batch, s)  # higher for convolutions
    side = pick_view_size(None, image, on, s)
    s.note(weight_decay=weight_decay, warmup=warmup, temperature=temperature, crop_min=crop_min, flip=flip)
    method = CLIP(image, text, shared, temperature=temperature)
    # saved with the weights, as in published ones
    method.normalization, method.resample = (on.mean, on.std), int(Image.Resampling.BILINEAR)
    views, optimizer = pair_views(on, side, crop_min=crop_min, flip=flip), adamw(rate, weight_decay, (0.9, 0.98))
    return Recipe("clip", method, views, optimizer, lambda f: warmup_cosine(f, warmup), batch, s)


def pair_views(on: Situation, size: int, *, crop_min: float = 0.6, flip: bool = False) -> Views:
    """``{"image" [B, 3, size, size], "tokens" int64 [B, T]}`` of pictures and captions: a random crop, rarely a flip.

    Colors are not changed, because captions name them.
    """
    view = View(size, (crop_min, 1.0), flip_p=0.5 if flip else 0.0)

    @reads("image", "tokens")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return {"image": view(fields["image"], draw, on.mean, on.std), "tokens": fields["tokens"].to(torch.int64)}

    return views


def _image_tower(given: str | None, on: PairSituation, s: Settings) -> Any:
    if on.device == "cpu":
        default, why = (
            "resnet-micro",
            "learns sooner on a CPU; to export to hf, give clip-micro",
        )
    else:
        default, why = "clip-micro" if on.image_size <= 64 else "clip-small", f"images of {on.image_size} px"
    chosen = None if given == "auto" else given
    name: str = s.pick("backbone", chosen, default, why)
    if name in TOWERS:
        patch = s.pick("patch_size", None, auto_patch(on.image_size), f"image size {on.image_size}")
        width, depth, heads = VIT_SIZES[name.removeprefix("clip-")]
        return CLIPVision(on.image_size, patch, width, depth, heads)
    if name not in NAMES and not Path(name).exists():
        near = difflib.get_close_matches(name, [*TOWERS, *NAMES], n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise SensoriumError(
            f"no backbone or checkpoint called '{name}'. {hint}Choose {', '.join([*TOWERS, *NAMES])}, or a path."
        )
    network = build_backbone(name, on, s, by="CLIP")
    if chosen is None:
        s.pick("backbone", None, default, why)
    return network


def _batch_size(given: int | None, on: PairSituation, s: Settings) -> int:
    """As large as the machine allows: the other pairs of a batch are the negatives."""
    most, why = (128, f"{on.cores}-core CPU") if on.device == "cpu" else (1024, on.device)
    fit = 2 ** max(3, int(math.log2(max(on.images / 8, 8))))
    return s.pick("batch_size", given, min(most, fit), f"{on.images:,} training pairs" if fit < most else why)
