"""Format of FCOS: torchvision's state dict (``fcos_resnet50_fpn``, also with other ResNets).

The network follows from the tensors' names and shapes. The rest has torchvision's defaults: 32 groups, center sampling
of 1.5 strides, levels from the body's third map from the end. Locations are torchvision's (``points="torchvision"``),
images in 0..1 are normalized by ImageNet's mean and standard deviation; class k is the k-th label, for COCO the
category id, where 0 and a few others are unused. An export writes its normalization, sides, classes and anchors beside
it, as ``.json``, and a ``.py`` (``elsewhere.py``) that builds the detector of it in torchvision alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sensorium.base.reading import brief
from sensorium.detection.fcos.method import FCOS
from sensorium.errors import SensoriumError
from sensorium.networks.formats import resnet
from sensorium.networks.fpn import FPN
from sensorium.networks.resnet import ResNet
from sensorium.published.format import IMAGENET, Entry, Format, Preparation, under, write
from sensorium.published.opening import fill, open_path
from sensorium.published.source import Source

SIDES = (800, 1333)  # pixels of the shorter side, and maximum of the longer one
GROUPS = 32


def _numbers(source: Source) -> dict[str, Any]:
    body = resnet.sniffed(source, "backbone.body.")
    levels, stages = source.count(r"backbone\.fpn\.inner_blocks\.(\d+)\."), len(body["layers"])
    width = source.shape("backbone.fpn.layer_blocks.0.0.weight", 4)[0]
    if body["stem"] != "imagenet" or not 1 <= levels <= stages or width % GROUPS:
        raise SensoriumError(
            f"{source.where}: a stem for {body['stem']} pictures, {levels} of {stages} maps and a pyramid of {width} channels are "
            f"not torchvision's (7x7, maps that exist, a multiple of {GROUPS})."
        )
    tower = [n for n, x in source.state.items() if n.startswith("head.classification_head.conv.") and x.ndim == 4]
    return {
        "body": body,
        "pyramid": {"levels": levels, "width": width, "extra": source.count(r"backbone\.fpn\.extra_blocks\.p(\d+)\.")},
        "classes": source.shape("head.classification_head.cls_logits.weight", 4)[0],
        "convs": len(tower),
    }


def _build(body: dict[str, Any], pyramid: dict[str, Any], classes: int, convs: int) -> FCOS:
    trunk = FPN(ResNet(**body), **pyramid, frozen_norms=True)
    return FCOS(trunk, classes, convs=convs, groups=GROUPS, points="torchvision")


def _settle(network: Any, source: Source) -> None:
    """The JSON file beside an export: normalization, sides and classes."""
    if (own := source.told_beside()) is None:
        return
    try:
        network.normalization = own.statistics(own.config["image_mean"], own.config["image_std"])
        network.sides = tuple(own.whole(name, high=(1 << 14) - 1) for name in ("min_size", "max_size"))
        network.divisor = own.whole("size_divisible", 32, high=(1 << 14) - 1)
        names = tuple(map(str, own.config["classes"]))
    except (KeyError, TypeError, RecursionError) as error:
        raise SensoriumError(
            f"{own.told}: not the file that an export of FCOS writes beside its weights ({brief(error)})."
        ) from None
    network.class_names = names if len(names) == network.classes else ()


def _strides_elsewhere(body: ResNet) -> bool:
    return body.early_stride or resnet.resnet_numbers(body)["first_stride"] != 1


def _fits(network: FCOS) -> None:
    pyramid = network.backbone
    groups = {m.num_groups for m in network.head.modules() if isinstance(m, nn.GroupNorm)}
    if not isinstance(pyramid.body, ResNet) or pyramid.body.stem != "imagenet" or _strides_elsewhere(pyramid.body):
        raise SensoriumError("torchvision's FCOS needs a ResNet with a 7x7 stem: this body is another.")
    if len(pyramid.extra) != 2 or groups - {GROUPS}:
        raise SensoriumError(
            f"torchvision's FCOS has two extra levels and {GROUPS} groups: train with extra=2, groups={GROUPS}."
        )
    if network.points != "torchvision":
        raise SensoriumError("torchvision's FCOS has other locations: train with points='torchvision' to export.")


def _beside(network: Any, how: Preparation) -> dict[str, dict[str, Any]]:
    """The numbers of body, pyramid and head, and torchvision's constants."""
    mean, std = how.normalization or network.normalization or IMAGENET
    shorter, longer = network.sides
    own = network.backbone
    about = {
        "image_mean": list(mean), "image_std": list(std), "min_size": shorter, "max_size": longer,
        "size_divisible": network.divisor, "anchor_sizes": list(own.strides), "num_classes": network.classes, "classes": list(network.class_names),
        "backbone": resnet.resnet_numbers(own.body) | {"returned_maps": own.levels, "out_channels": own.channels[0]},
        "head": {"num_convs": sum(isinstance(layer, nn.Conv2d) for layer in network.head.class_tower)},
    }  # fmt: skip
    return {"{stem}.json": about}


def _script(network: Any) -> dict[str, str]:
    return {"{stem}.py": Path(__file__).with_name("elsewhere.py").read_text(encoding="utf-8")}


def _usage(network: Any, how: Preparation) -> str:
    return """import sys

import torch

sys.path.insert(0, folder)
from fcos import classes, detector, read

with torch.inference_mode():
    objects = detector(threshold=0.3)([read("photo.jpg")])[0]
for score, label, box in zip(objects["scores"].tolist(), objects["labels"].tolist(), objects["boxes"].tolist()):
    print(classes()[label], score, box)"""


TORCHVISION = Format(
    name="torchvision FCOS",
    network=FCOS,
    keys=(r"head\.regression_head\.bbox_ctrness\.weight",),
    table=(
        *under("backbone.body.", "backbone.body.", resnet.table()),
        Entry("backbone.lateral.{i}.{kind}", "backbone.fpn.inner_blocks.{i}.0.{kind}"),
        Entry("backbone.smooth.{i}.{kind}", "backbone.fpn.layer_blocks.{i}.0.{kind}"),
        Entry("backbone.extra.{i}.{kind}", "backbone.fpn.extra_blocks.p{i+6}.{kind}"),
        Entry("head.class_tower.{rest}", "head.classification_head.conv.{rest}"),
        Entry("head.box_tower.{rest}", "head.regression_head.conv.{rest}"),
        Entry("head.logits.{kind}", "head.classification_head.cls_logits.{kind}"),
        Entry("head.distances.{kind}", "head.regression_head.bbox_reg.{kind}"),
        Entry("head.centerness.{kind}", "head.regression_head.bbox_ctrness.{kind}"),
    ),
    numbers=_numbers,
    build=_build,
    settle=_settle,
    to="torchvision",
    fits=_fits,
    beside=_beside,
    scripts=_script,
    file="fcos.pth",
    usage=_usage,
)

FORMATS: tuple[Format, ...] = (TORCHVISION,)


def load_fcos(path: str | Path) -> FCOS:
    """A .pth or .safetensors file, or a directory with model.safetensors, of torchvision's FCOS.

    ``.normalization``, ``.sides`` (pixels of the shorter side of its images, and maximum of the longer one) and
    ``.class_names`` are those of the ``.json`` beside the file, if there is one, else torchvision's and ().
    """
    path = Path(path)
    return open_path(path / "model.safetensors" if path.is_dir() else path, FORMATS)


def from_torchvision(state: Mapping[str, Tensor], where: str = "torchvision's FCOS") -> FCOS:
    """A state dict as a detector in evaluation mode; ``.normalization`` is its (mean, std). Batch norms stay frozen.

    Raises SensoriumError that names ``where`` and the entry that is missing, unknown or of another shape.
    """
    if not TORCHVISION.knows(state):
        raise SensoriumError(f"{where}: not torchvision's FCOS (no 'head.regression_head.bbox_ctrness.weight').")
    return fill(TORCHVISION, Source(where, state))


def to_torchvision(network: FCOS) -> dict[str, Tensor]:
    """The state dict under torchvision's names, to be saved with safetensors or ``torch.save``.

    Raises SensoriumError if torchvision has no such network: a body other than a ResNet with the 7x7 stem, other
    groups, or other than two extra levels.
    """
    return write(TORCHVISION, network)
