"""Formats of DINO: the training checkpoints of the authors' code (facebookresearch/dino, ``main_dino.py``).

"student" and "teacher" hold a ``MultiCropWrapper``: ``backbone.`` and the projection ``head.``, the student's, and with batch
norms also the teacher's, under ``module.``. Only the backbone is read, preferably the teacher's. The separately
published backbones (``dino_deitsmall16_pretrain.pth``) have timm's or torchvision's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from sensorium.networks.formats import resnet, timm_vit, vit
from sensorium.published.format import Dropped, Entry, Format, anything, under

_OTHERS = (r"backbone\.(head|fc)\..+", r"dino_head\..+", r"projector\..+")  # another network, or another method's
_PROJECTION = "the projection head is only used by the loss in training"
_HEAD = (
    Dropped(r"head\.mlp(\.\d+)?\.(weight|bias|running_mean|running_var|num_batches_tracked)", _PROJECTION),
    Dropped(r"head\.last_layer\.(weight_g|weight_v|parametrizations\.weight\.original[01])", _PROJECTION),
)

VIT = replace(
    timm_vit.TIMM,
    name="authors' DINO on a ViT",
    keys=tuple(rf"backbone\.{key}" for key in timm_vit.TIMM_KEYS),
    absent=_OTHERS,
    table=(Entry("{rest}", "backbone.{rest}"),),
    prepare=None,
    dropped=_HEAD,
    numbers=lambda source: timm_vit.timm_numbers(replace(source, state=_bare(source.state))),
    to="",
    fits=lambda network: vit.plain(network, "DINO's"),
    config=None,
    beside=None,
    file="dino.pth",
    container="teacher",
)
RESNET = replace(
    resnet.TIMM,
    name="authors' DINO on a ResNet",
    keys=tuple(rf"backbone\.{key}" for key in resnet.TIMM.keys),
    absent=_OTHERS,
    table=under("", "backbone.", resnet.table()),
    dropped=_HEAD,
    numbers=lambda source: resnet.sniffed(source, "backbone."),
    to="",
    fits=anything,
    config=None,
    beside=None,
    file="dino.pth",
    container="teacher",
)  # fmt: skip


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("backbone."): tensor for name, tensor in state.items() if name.startswith("backbone.")}


FORMATS: tuple[Format, ...] = (VIT, RESNET)
