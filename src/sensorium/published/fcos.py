"""torchvision's FCOS (``fcos_resnet50_fpn`` and its like on other ResNets): its state dict in and out.

The network follows from the tensors' names and shapes. What the file does not say is torchvision's default: 32 groups,
centre sampling of 1.5 strides, levels that begin at the body's third map from the end. Its boxes are found at
torchvision's places (``points="torchvision"``), on images in 0..1 normalised by ImageNet's mean and standard deviation;
its class k is the k-th of its labels, for COCO the category's number, where 0 and a few others stand for nothing.
An exported network's own normalisation, sides and classes lie beside its file, as ``.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.detection.fcos.method import FCOS
from sensorium.errors import SensoriumError
from sensorium.networks.fpn import FPN
from sensorium.networks.resnet import ResNet
from sensorium.published import names
from sensorium.published.files import read_weights

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIDES = (800, 1333)  # pixels of the shorter side, and of the longer one at most
GROUPS = 32
_PREFIXES = {
    "backbone.body.": "backbone.body.",
    "head.class_tower.": "head.classification_head.conv.",
    "head.box_tower.": "head.regression_head.conv.",
    "head.logits.": "head.classification_head.cls_logits.",
    "head.distances.": "head.regression_head.bbox_reg.",
    "head.centerness.": "head.regression_head.bbox_ctrness.",
}
_PYRAMID = {"lateral": "backbone.fpn.inner_blocks", "smooth": "backbone.fpn.layer_blocks"}


def torchvision_fcos(ours: str) -> tuple[str, ...]:
    """Our name -> torchvision's."""
    for prefix, theirs in _PREFIXES.items():
        if ours.startswith(prefix):
            return (theirs + ours.removeprefix(prefix),)
    found = re.fullmatch(r"backbone\.(lateral|smooth|extra)\.(\d+)\.(weight|bias)", ours)
    if not found:
        raise SensoriumError(f"'{ours}' has no place in torchvision's FCOS.")
    part, number, kind = found.groups()
    if part == "extra":
        if int(number) > 1:
            raise SensoriumError(f"torchvision's pyramids have two extra levels, not {int(number) + 1}.")
        return (f"backbone.fpn.extra_blocks.p{6 + int(number)}.{kind}",)
    return (f"{_PYRAMID[part]}.{number}.0.{kind}",)


def is_torchvision_fcos(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of torchvision's FCOS."""
    return "head.regression_head.bbox_ctrness.weight" in state


def from_torchvision(state: Mapping[str, Tensor], where: str = "torchvision's FCOS") -> FCOS:
    """A state dict as a detector in evaluation mode; ``.normalization`` is its (mean, std). Batch norms stay frozen.

    Raises SensoriumError that names ``where`` and the entry that is missing, unknown or of another shape.
    """
    if not is_torchvision_fcos(state):
        raise SensoriumError(f"{where}: not an FCOS of torchvision (no 'head.regression_head.bbox_ctrness.weight').")
    body = {name.removeprefix("backbone.body."): x for name, x in state.items() if name.startswith("backbone.body.")}
    stages = _count(body, r"layer(\d+)\.")
    levels = _count(state, r"backbone\.fpn\.inner_blocks\.(\d+)\.")
    try:
        layers = tuple(_count(body, rf"layer{i + 1}\.(\d+)\.") for i in range(stages))
        widths = tuple(body[f"layer{i + 1}.0.conv1.weight"].shape[0] for i in range(stages))
        width = state["backbone.fpn.layer_blocks.0.0.weight"].shape[0]
        classes = state["head.classification_head.cls_logits.weight"].shape[0]
        kernel, stem = body["conv1.weight"].shape[-1], body["conv1.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise SensoriumError(f"{where}: {error} is missing.") from None
    if kernel != 7 or not 1 <= levels <= stages or not classes or width % GROUPS:
        raise SensoriumError(
            f"{where}: a {kernel}x{kernel} stem, {levels} of {stages} maps, {classes} classes and a pyramid of {width} "
            f"channels are not torchvision's (7x7, maps that exist, a class or more, a multiple of {GROUPS})."
        )
    convs = sum(x.ndim == 4 for name, x in state.items() if name.startswith("head.classification_head.conv."))
    extra = _count(state, r"backbone\.fpn\.extra_blocks\.p(\d+)\.")
    with torch.device("meta"):
        resnet = ResNet(layers, widths, bottleneck="layer1.0.conv3.weight" in body, stem_width=stem)
        pyramid = FPN(resnet, levels=levels, width=width, extra=extra, frozen_norms=True)
        network = FCOS(pyramid, classes, convs=convs, groups=GROUPS, points="torchvision")
    network.load_state_dict(names.read(state, network.state_dict(), torchvision_fcos, where), assign=True)
    network.normalization = IMAGENET  # type: ignore[assignment]
    return network.eval()


def load_fcos(path: str | Path) -> FCOS:
    """A .pth or .safetensors file, or a directory with model.safetensors, of torchvision's FCOS.

    ``.normalization``, ``.sides`` (pixels of the shorter side of its images, and of the longer one at most) and
    ``.class_names`` are those of the ``.json`` beside the file, where there is one, else torchvision's and ().
    """
    loaded = read_weights(Path(path))
    inner = loaded["model"] if isinstance(loaded.get("model"), dict) else loaded
    network: Any = from_torchvision({str(k): v for k, v in inner.items() if isinstance(v, Tensor)}, str(path))
    side = Path(path).with_suffix(".json")
    if side.is_file() and Path(path).is_file():
        try:
            told = json.loads(side.read_text())
            mean, std = (tuple(float(v) for v in told[name]) for name in ("image_mean", "image_std"))
            sides, names_of = (int(told["min_size"]), int(told["max_size"])), tuple(map(str, told["classes"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SensoriumError(f"{side}: not what an export of FCOS leaves beside its weights ({error}).") from None
        if len(mean) != 3 or len(std) != 3 or not all(0 < n < 1 << 14 for n in sides):
            raise SensoriumError(f"{side}: image_mean and image_std want three numbers, min_size and max_size pixels.")
        network.normalization, network.sides = (mean, std), sides
        network.class_names = names_of if len(names_of) == network.classes else ()
    return network


def export_torchvision(network: nn.Module, out: Path) -> Path:
    """Write an FCOS as a state dict of torchvision's: ``out``, or ``fcos.pth`` in it; give the path.

    Beside it ``.json`` says what torchvision's FCOS has to be told: ``image_mean``, ``image_std``, ``min_size`` and
    ``max_size``, ``num_classes`` and ``classes``, and the numbers of body, pyramid and head.
    """
    from sensorium.published.export import resnet_numbers

    if not isinstance(network, FCOS):
        raise SensoriumError(f"{type(network).__name__} is not exported to torchvision: FCOS is.")
    state, own = to_torchvision(network), network.backbone
    assert isinstance(own.body, ResNet)
    told: Any = network
    mean, std = getattr(told, "normalization", IMAGENET)
    shorter, longer = getattr(told, "sides", SIDES)
    path = out if out.suffix in (".pth", ".safetensors") else out / "fcos.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    about = {
        "image_mean": list(mean), "image_std": list(std), "min_size": shorter, "max_size": longer,
        "num_classes": network.classes, "classes": list(getattr(told, "class_names", ())),
        "backbone": resnet_numbers(own.body) | {"returned_maps": own.levels, "out_channels": own.channels[0]},
        "head": {"num_convs": sum(isinstance(layer, nn.Conv2d) for layer in network.head.class_tower)},
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(about, indent=1))
    return path


def to_torchvision(network: FCOS) -> dict[str, Tensor]:
    """The state dict under torchvision's names, to be saved with safetensors or ``torch.save``.

    Raises SensoriumError where torchvision has no such network: another body than a ResNet with the usual stem, other
    groups, other than two extra levels.
    """
    pyramid = network.backbone
    groups = {m.num_groups for m in network.head.modules() if isinstance(m, torch.nn.GroupNorm)}
    if not isinstance(pyramid.body, ResNet) or pyramid.body.stem != "imagenet" or pyramid.body.early_stride:
        raise SensoriumError("torchvision's FCOS stands on a ResNet with a 7x7 stem: this body is another.")
    if len(pyramid.extra) != 2 or groups - {GROUPS}:
        raise SensoriumError(
            f"torchvision's FCOS has two extra levels and {GROUPS} groups: train with extra=2, groups={GROUPS}."
        )
    if network.points != "torchvision":
        raise SensoriumError("torchvision's FCOS has its places elsewhere: train with points='torchvision' to export.")
    return names.write(network.state_dict(), torchvision_fcos)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({m[1] for k in state if (m := re.match(pattern, k))})
