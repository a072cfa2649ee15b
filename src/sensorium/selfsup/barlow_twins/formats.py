"""Format of Barlow Twins: ``checkpoint.pth`` of the authors' code (facebookresearch/barlowtwins, ``main.py``).

"model" holds the whole method, wrapped: ``module.backbone.``, torchvision's ResNet, ``module.projector.`` and ``module.bn.``.
The backbone alone, their ``resnet50.pth``, has torchvision's names.
"""

from __future__ import annotations

from typing import Any

from sensorium.networks.formats import resnet
from sensorium.networks.formats.projected import mlp_widths, torchvisions
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.published.format import IMAGENET, Format, under
from sensorium.published.source import Source
from sensorium.selfsup.barlow_twins.method import BarlowTwins


def _numbers(source: Source) -> dict[str, Any]:
    widths = mlp_widths(source, "module.projector.")
    return {"encoder": resnet.sniffed(source, "module.backbone."), "widths": widths}


def _build(encoder: dict[str, Any], widths: list[int]) -> BarlowTwins:
    return BarlowTwins(ResNet(**encoder), mlp_head(*widths, last_bias=False))


AUTHORS = Format(
    name="authors' Barlow Twins",
    network=BarlowTwins,
    keys=(
        r"module\.backbone\.conv1\.weight",
        r"module\.backbone\.layer1\.0\.conv1\.weight",
        r"module\.projector\.0\.weight",
        r"module\.bn\.running_mean",
    ),
    absent=(r"module\.projector\.0\.bias",),
    table=(
        *under("backbone.", "module.backbone.", resnet.table()),
        *under("head.", "module.projector.", resnet.table()),
        *under("bn.", "module.bn.", resnet.table()),
    ),
    spellings=((r"^(?=(backbone|projector|bn)\.)", "module."),),  # without the wrapper
    numbers=_numbers,
    build=_build,
    normalization=IMAGENET,
    to="authors",
    fits=lambda method: torchvisions(method.backbone),
    file="checkpoint.pth",
    container="model",
)

FORMATS: tuple[Format, ...] = (AUTHORS,)
