"""Formats of MoCo v3: the training checkpoints of the authors' code (facebookresearch/moco-v3), whole, on a ResNet and on a
ViT.

``{"state_dict": ...}`` of a wrapped module: ``module.base_encoder.`` and ``module.momentum_encoder.`` are torchvision's
ResNet or timm's ViT with the projector as its classifier (``fc``, ``head``), ``module.predictor.`` stands beside them.
Temperature and momentum are in no file: they become those of the authors' commands.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.networks.formats import resnet, timm_vit, vit
from sensorium.networks.formats.shared import feed_channels
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.published.format import IMAGENET, Entry, Format, under
from sensorium.published.source import Source
from sensorium.selfsup.moco_v1.formats import fits_resnet, settle
from sensorium.selfsup.moco_v3.method import MoCoV3
from sensorium.selfsup.moco_v3.recipe import heads

BASE, MOMENTUM = "module.base_encoder.", "module.momentum_encoder."
_WHOSE = "the authors' MoCo v3"
_HEADS = 12  # of both named sizes of theirs, vit_small too, whose heads are narrower than others'


def _table(head: str, network: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Both encoders, whose projectors are called ``head``, and the predictor."""
    sides = (("base.", BASE), ("teacher.", MOMENTUM))
    return (
        *(entry for ours, theirs in sides for entry in under(f"{ours}head.", f"{theirs}{head}.", resnet.table())),
        *(entry for ours, theirs in sides for entry in under(f"{ours}backbone.", theirs, network)),
        *under("predictor.", "module.predictor.", resnet.table()),
    )


def _widths(source: Source) -> dict[str, int]:
    hidden, projection = source.shape("module.predictor.0.weight", 2)
    return {"hidden": hidden, "projection": projection}


def _fits_heads(method: MoCoV3, *, vit: bool) -> None:
    """SensoriumError unless projector and predictor have the authors' layers."""
    theirs = heads(1, 1, 1, vit=vit)
    for name, ours, expected in zip(
        ("projector", "predictor"), (method.base["head"], method.predictor), theirs, strict=True
    ):
        found = [type(part).__name__ for part in ours.children()]
        if found != [type(part).__name__ for part in expected]:
            raise SensoriumError(f"{_WHOSE} has a {name} of other layers than {', '.join(found)}.")


# --- on a ResNet ---


def _build_resnet(encoder: dict[str, Any], hidden: int, projection: int) -> MoCoV3:
    network = ResNet(**encoder)
    return MoCoV3(network, *heads(network.dim, hidden, projection, vit=False), temperature=1.0)


def _fits_resnet(method: MoCoV3) -> None:
    fits_resnet(method.backbone, _WHOSE)
    _fits_heads(method, vit=False)


RESNET = Format(
    name="authors' MoCo v3 on a ResNet",
    network=MoCoV3,
    keys=(r"module\.base_encoder\.conv1\.weight", r"module\.momentum_encoder\.conv1\.weight", r"module\.predictor\.0\.weight"),
    spellings=((r"^(?=(base_encoder|momentum_encoder|predictor)\.)", "module."),),  # saved without its wrapper
    table=_table("fc", resnet.table()),
    numbers=lambda source: {"encoder": resnet.sniffed(source, BASE)} | _widths(source),
    build=_build_resnet,
    settle=settle,
    normalization=IMAGENET,
    to="authors",
    of=lambda network: network if isinstance(network, MoCoV3) and not isinstance(network.backbone, ViT) else None,
    fits=_fits_resnet,
    file="moco_v3.pth",
    container="state_dict",
)  # fmt: skip


# --- on a ViT ---


def _vit_numbers(source: Source) -> dict[str, Any]:
    bare = {name.removeprefix(BASE): tensor for name, tensor in source.state.items() if name.startswith(BASE)}
    found = timm_vit.timm_numbers(replace(source, state=bare))
    usual = _HEADS if found["width"] % _HEADS == 0 else found["heads"]
    given: Any = source.options.get("heads")
    return {"encoder": found | {"heads": given or usual, "positions": "sincos", "pool": "cls"}} | _widths(source)


def _build_vit(encoder: dict[str, Any], hidden: int, projection: int) -> MoCoV3:
    network = ViT(**encoder)
    return MoCoV3(network, *heads(network.dim, hidden, projection, vit=True), temperature=0.2)


def _fits_vit(method: MoCoV3) -> None:
    network: ViT = method.backbone
    vit.plain(network, _WHOSE)
    _fits_heads(method, vit=True)
    for wrong, said in (
        (network.pool != "cls", "takes its features from the class token"),
        (network.heads != _HEADS, f"has {_HEADS} heads, this network {network.heads}"),
        (feed_channels(network) != 4 * network.dim, "has four times its width in the feed-forward layers"),
        (not network.qkv_bias, "has biases of queries, keys and values"),
    ):
        if wrong:
            raise SensoriumError(f"{_WHOSE} {said}.")
    timm_vit.timm_eps(network)


VIT = replace(
    RESNET,
    name="authors' MoCo v3 on a ViT",
    keys=(
        r"module\.base_encoder\.blocks\.0\.attn\.qkv\.weight",
        r"module\.momentum_encoder\.blocks\.0\.attn\.qkv\.weight",
        r"module\.predictor\.0\.weight",
    ),
    refused=((r"module\.base_encoder\.patch_embed\.proj\.\d+\..+", "a ViT with a stem of convolutions, which ours has not"),),
    table=_table("head", (Entry("{rest}", "{rest}"),)),
    numbers=_vit_numbers,
    build=_build_vit,
    of=lambda network: network if isinstance(network, MoCoV3) and isinstance(network.backbone, ViT) else None,
    fits=_fits_vit,
)  # fmt: skip

FORMATS: tuple[Format, ...] = (RESNET, VIT)
