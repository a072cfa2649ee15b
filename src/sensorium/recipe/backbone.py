"""Backbones by name, and the default one."""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.abilities import Encoder, HasBackbone, MaskedEncoder, TokenEncoder, require
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.networks.airbench import AIRBENCH_SIZES, airbench
from sensorium.networks.convnext import CONVNEXT_SIZES, CONVNEXTV2_SIZES, convnext
from sensorium.networks.mean_vit import MeanViT
from sensorium.networks.resnet import RESNET_SIZES, resnet
from sensorium.networks.seen import AsTrained, usual_side
from sensorium.networks.swin import SWIN_SIZES, swin
from sensorium.networks.swinv2 import SWINV2_SIZES, swinv2
from sensorium.networks.vit import BLOCK_PARTS, FEED_PARTS, VIT_SIZES, auto_patch, vit
from sensorium.parts.drop import PatchDropout, patch_dropout_
from sensorium.parts.lowrank import merged
from sensorium.recipe.recipe import READ, Settings
from sensorium.recipe.trained import Trained

RESNETS = tuple(f"resnet-{size}" for size in RESNET_SIZES)
VITS = tuple(f"vit-{size}" for size in VIT_SIZES)
CONVNEXTS = tuple(f"convnext-{size}" for size in CONVNEXT_SIZES)
CONVNEXTV2S = tuple(f"convnextv2-{size}" for size in CONVNEXTV2_SIZES)
AIRBENCHES = tuple(f"airbench-{size}" for size in AIRBENCH_SIZES)
SWINS = tuple(f"swin-{size}" for size in SWIN_SIZES)
SWINV2S = tuple(f"swinv2-{size}" for size in SWINV2_SIZES)
NAMES = AIRBENCHES + RESNETS + VITS + CONVNEXTS + CONVNEXTV2S + SWINS + SWINV2S
POSITION_PARTS = ("learned", "sincos", "rope")
VIT_PARTS = (*POSITION_PARTS, "registers", *BLOCK_PARTS)


def choices(needs: type) -> tuple[str, ...]:
    """Names of the backbones with the ability ``needs``."""
    return {TokenEncoder: VITS, MaskedEncoder: VITS + SWINS + SWINV2S}.get(needs, NAMES)


def build_backbone(
    given: str | None,
    on: Situation,
    settings: Settings,
    *,
    by: str,
    needs: type = Encoder,
    default: tuple[str, str] | None = None,
    class_token: bool = True,
    patch_dropout: float = 0.0,
    **vit_numbers: Any,
) -> Any:
    """A backbone by name (``airbench-micro``, ``airbench-94``, ``resnet-micro`` .. ``resnet-101``, ``vit-micro`` ..
    ``vit-huge``, ``convnext-micro`` .. ``convnext-xlarge``, ``convnextv2-micro`` .. ``convnextv2-huge``, ``swin-micro`` ..
    ``swin-large``, ``swinv2-micro`` .. ``swinv2-large``) or from a checkpoint's path or hub id.

    A ViT's parts are appended to its size: ``vit-micro+rope+gau+experts`` (``VIT_PARTS``).

    ``None`` depends on the machine: on a CPU airbench's network for pictures of at most 64 px, else the narrow ResNet, because
    they learn more per minute; on a GPU a ResNet; where patches are masked a ViT. ``default``: another one, and why.
    ``class_token``: whether a ViT of a name has one. ``patch_dropout``: rate at which a ViT leaves patches out while it is trained;
    recorded if it is not 0, so that a run from before there was one goes on. ``vit_numbers`` are passed to a ViT of a name. An illegal
    pair of method and backbone is an error that lists the legal choices.
    """
    usual, why = default or _auto(on, needs)
    name = settings.pick("backbone", None if given in (None, "auto") else given, usual, why)
    network = _named(name, on, settings, needs, class_token, vit_numbers)
    try:
        require(network, needs, by=by, choices=", ".join(choices(needs)))
    except TypeError as error:
        raise SensoriumError(str(error)) from None
    if patch_dropout:
        _drop_patches_(network, name, patch_dropout, settings)
    return network


def _named(
    name: str, on: Situation, settings: Settings, needs: type, class_token: bool, vit_numbers: dict[str, Any]
) -> Any:
    if is_checkpoint(name):
        from sensorium.published import load_backbone

        network: Any = load_backbone(name)
        settings.pick(READ, None, type(network).__name__, f"read from {name}")
    elif name in RESNETS:
        network = resnet(name.removeprefix("resnet-"), on.image_size)
    elif name in AIRBENCHES:
        network = airbench(name.removeprefix("airbench-"))
    elif name in CONVNEXTS + CONVNEXTV2S:
        network = convnext(name.partition("-")[2], on.image_size, grn=name in CONVNEXTV2S)
    elif name in SWINS + SWINV2S:
        size = name.partition("-")[2]
        network = (swin if name in SWINS else swinv2)(size, on.image_size)
    elif name.partition("+")[0] in VITS:
        size, *parts = name.removeprefix("vit-").split("+")
        patch = auto_patch(on.image_size)
        settings.pick("patch_size", None, patch, f"image size {on.image_size}")
        numbers = vit_numbers | _vit_parts(name, parts, needs)
        if class_token:
            network = vit(size, on.image_size, patch, **numbers)
        else:
            network = MeanViT(on.image_size, patch, *VIT_SIZES[size], **numbers)
    else:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise SensoriumError(
            f"no backbone or checkpoint called '{name}'. {hint}Choose {', '.join(choices(needs))}, or a path."
        )
    return network


def _drop_patches_(network: Any, name: str, rate: float, settings: Settings) -> None:
    if not 0 < rate < 1:
        raise SensoriumError(f"--patch-dropout {rate:g}: must be at least 0 and less than 1.")
    if not any(isinstance(part, PatchDropout) for part in network.modules()):
        raise SensoriumError(
            f"--patch-dropout {rate:g}: {name} can't leave patches out. Choose {', '.join(VITS)}, without rope and gau."
        )
    patch_dropout_(network, rate)
    settings.note(patch_dropout=rate)


def is_checkpoint(name: str | None) -> bool:
    """Whether a backbone is named by a path or a hub id."""
    return name is not None and ("/" in name or Path(name).exists())


def as_trained(network: Any, on: Situation, settings: Settings, side: int | None) -> Any:
    """A checkpoint's ``network`` that gets pictures as it was trained on them: normalized by its own statistics, and
    resized to ``side`` pixels, by default the size that it was trained at, at most 224; itself if that is how the
    data's pictures come. Raises SensoriumError for a side that its patches do not divide."""
    if side is not None and side < 8:
        raise SensoriumError(f"--side {side}: must be at least 8 pixels.")
    size = settings.pick("side", side, *usual_side(network))
    if isinstance(network, TokenEncoder):
        network.grid_of(torch.empty(1, 3, size, size, device="meta"))
    given, own = (on.mean, on.std), network.normalization or (on.mean, on.std)
    if size == on.image_size and np.allclose(given, own, rtol=0, atol=1e-6):
        return network
    return AsTrained(network, given, own, size)


def started_from(
    folder: str, named: str | None, on: Situation, settings: Settings, *, by: str, needs: type = Encoder
) -> Any:
    """A copy of the trained encoder of the run in ``folder``, all of it trainable."""
    if named is not None:
        raise SensoriumError(f"--start {folder} and --backbone {named}: the run has its own network; give one of them.")
    run = Trained(folder)
    method: Any = run.method if run.finished else run.recipe.method  # only the shapes, if its weights are elsewhere
    network: Any = method.backbone if isinstance(method, HasBackbone) else method
    if not isinstance(network, needs):
        raise SensoriumError(f"--start {folder}: '{run.info.recipe}' gives no features of pictures, which {by} needs.")
    if run.situation.image_size != on.image_size:
        raise SensoriumError(
            f"--start {folder}: trained at {run.situation.image_size} px; give --image-size {run.situation.image_size}."
        )
    settings.note(start=folder)
    settings.pick("network", None, run.settings.get("backbone", run.info.recipe), f"of {folder}")
    network = copy.deepcopy(merged(network)).requires_grad_(True)
    patch_dropout_(network, 0.0)  # a setting of that run
    return network


def _vit_parts(name: str, parts: list[str], needs: type) -> dict[str, Any]:
    """A ViT's arguments from the parts appended to its name."""
    strange = [part for part in parts if part not in VIT_PARTS]
    if strange:
        raise SensoriumError(f"{name}: no part is called '{strange[0]}'; choose among {', '.join(VIT_PARTS)}.")
    if "rope" in parts and needs is TokenEncoder:
        raise SensoriumError(f"{name}: masking patches needs positional embeddings in the tokens; leave rope out.")
    places = [part for part in parts if part in POSITION_PARTS]
    others = tuple(part for part in parts if part in BLOCK_PARTS)
    if len(places) > 1 or len([p for p in others if p in FEED_PARTS]) > 1 or len(set(parts)) < len(parts):
        raise SensoriumError(f"{name}: at most one kind each of positions, attention and feed-forward layer.")
    numbers: dict[str, Any] = {"parts": others}
    if places:
        numbers["positions"] = places[0]
    if "registers" in parts:
        numbers["registers"] = 4  # the number of Darcet et al.
    return numbers


def _auto(on: Situation, needs: type) -> tuple[str, str]:
    small = on.device == "cpu" or on.image_size <= 64
    if needs in (TokenEncoder, MaskedEncoder):
        return (
            ("vit-micro", f"masks patches; {on.image_size} px on {on.device}")
            if small
            else ("vit-small", "masks patches; GPU")
        )
    if on.device == "cpu":
        why = f"{on.image_size} px on a {on.cores}-core CPU: learns more per minute than"
        return (
            ("airbench-micro", f"{why} a ResNet (docs/log.md)")
            if on.image_size <= 64
            else ("resnet-micro", f"{why} a ViT")
        )
    return (
        ("resnet-18", f"images of {on.image_size} px")
        if small
        else ("resnet-50", f"images of {on.image_size} px on {on.device}")
    )
