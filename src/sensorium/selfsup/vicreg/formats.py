"""Format of VICReg: ``model.pth`` of the authors' code (facebookresearch/vicreg, ``main_vicreg.py``).

"model" holds the whole method, wrapped: ``module.backbone.``, a ResNet with torchvision's names, and ``module.projector.``.
Their ResNet pads the picture by 1 and its first convolution by 2, which is torchvision's padding by 3. The backbone alone,
their ``resnet50.pth``, has torchvision's names.
"""

from __future__ import annotations

from typing import Any

from sensorium.networks.formats import resnet
from sensorium.networks.formats.projected import mlp_widths, torchvisions
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.published.format import IMAGENET, Format, under
from sensorium.published.source import Source
from sensorium.selfsup.vicreg.method import VICReg


def _numbers(source: Source) -> dict[str, Any]:
    widths = mlp_widths(source, "module.projector.")
    return {"encoder": resnet.sniffed(source, "module.backbone."), "widths": widths}


def _build(encoder: dict[str, Any], widths: list[int]) -> VICReg:
    return VICReg(ResNet(**encoder), mlp_head(*widths, bias=True, last_bias=False))


AUTHORS = Format(
    name="authors' VICReg",
    network=VICReg,
    keys=(
        r"module\.backbone\.conv1\.weight",
        r"module\.backbone\.layer1\.0\.conv1\.weight",
        r"module\.projector\.0\.bias",
    ),
    absent=(r"module\.bn\..+",),
    table=(
        *under("backbone.", "module.backbone.", resnet.table()),
        *under("head.", "module.projector.", resnet.table()),
    ),
    spellings=((r"^(?=(backbone|projector)\.)", "module."),),  # without the wrapper
    numbers=_numbers,
    build=_build,
    normalization=IMAGENET,
    to="authors",
    fits=lambda method: torchvisions(method.backbone),
    file="model.pth",
    container="model",
)

FORMATS: tuple[Format, ...] = (AUTHORS,)
