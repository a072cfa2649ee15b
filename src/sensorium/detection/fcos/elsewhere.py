"""FCOS as torchvision's own module, without Sensorium: an export writes this file beside its weights and its JSON.

    python fcos.py photo.jpg photos/*.png           prints one line of JSON for each object

    from fcos import detector, read                 or in code
    model = detector(threshold=0.3)                 a torchvision.models.detection.FCOS, in evaluation mode
    found = model([read("photo.jpg")])              for each picture: boxes (x1, y1, x2, y2 in its pixels), scores, labels

Pictures are uint8, or float in 0..1, [3, H, W] of any size. torchvision's transform would resize them without antialiasing;
here they are resized as in training, by Pillow's bilinear filter on 8 bits, and stand in the same square.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

HERE = Path(__file__)


class Transform(GeneralizedRCNNTransform):
    """torchvision's transform with an antialiased resize."""

    def normalize(self, image: Tensor) -> Tensor:
        return image  # after the resize

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        eight = image if image.dtype == torch.uint8 else (image * 255).round().clamp(0, 255).to(torch.uint8)
        height, width = eight.shape[-2:]
        shorter: Any = self.min_size  # a tuple, whatever was given
        factor = min(shorter[-1] / min(height, width), self.max_size / max(height, width))
        size = max(1, int(width * factor)), max(1, int(height * factor))
        picture = Image.fromarray(np.ascontiguousarray(eight.permute(1, 2, 0).cpu().numpy()))
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(image.device).float() / 255
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], [height, width], [size[1], size[0]])
        return super().normalize(pixels), target


def detector(threshold: float = 0.3, told: str | Path | None = None) -> FCOS:
    """The detector of the JSON file ``told`` (by default that beside this file), with its weights."""
    path = Path(told or HERE.with_suffix(".json"))
    about = json.loads(path.read_text(encoding="utf-8"))
    width, classes = about["backbone"]["out_channels"], about["num_classes"]
    sizes = tuple((size,) for size in about["anchor_sizes"])
    anchors = AnchorGenerator(sizes, ((1.0,),) * len(sizes))
    how: dict[str, Any] = {name: about[name] for name in ("min_size", "max_size", "image_mean", "image_std")}
    model = FCOS(
        _backbone(about["backbone"], width), classes, anchor_generator=anchors, score_thresh=threshold,
        head=FCOSHead(width, 1, classes, about["head"]["num_convs"]), **how,
    )  # fmt: skip
    model.transform = Transform(**how, size_divisible=about["size_divisible"])
    model.load_state_dict(_weights(path))
    return model.eval()


def classes(told: str | Path | None = None) -> list[str]:
    """The names of the labels."""
    return json.loads(Path(told or HERE.with_suffix(".json")).read_text(encoding="utf-8"))["classes"]


def read(path: str | Path) -> Tensor:
    """A picture, uint8 [3, H, W], turned upright."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1)


def _backbone(about: dict[str, Any], width: int) -> BackboneWithFPN:
    block = Bottleneck if about["bottleneck"] else BasicBlock
    channels: int = about["stem_width"]
    body: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(channels),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
    )
    widths: list[int] = []
    for stage, (depth, planes) in enumerate(zip(about["layers"], about["width"], strict=True)):
        layers: list[nn.Module] = []
        for i in range(depth):
            stride = 2 if stage and not i else 1
            out = planes * block.expansion
            shorter = None
            if stride != 1 or channels != out:
                shorter = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
            layers.append(block(channels, planes, stride, shorter))
            channels = out
        body[f"layer{stage + 1}"] = nn.Sequential(*layers)
        widths.append(channels)
    first = len(widths) - about["returned_maps"]
    kept = {f"layer{i + 1}": str(i) for i in range(first, len(widths))}
    return BackboneWithFPN(nn.Sequential(body), kept, widths[first:], width, LastLevelP6P7(width, width))


def _weights(path: Path) -> dict[str, Tensor]:
    for suffix in (".pth", ".pt", ".bin", ".ckpt"):
        if path.with_suffix(suffix).is_file():
            return torch.load(path.with_suffix(suffix), map_location="cpu", weights_only=True)
    from safetensors.torch import load_file

    return load_file(path.with_suffix(".safetensors"))


if __name__ == "__main__":
    model, names = detector(), classes()
    for file in sys.argv[1:]:
        with torch.no_grad():
            (found,) = model([read(file)])
        for box, score, label in zip(*(found[name].tolist() for name in ("boxes", "scores", "labels")), strict=True):
            name = names[label] if label < len(names) else f"class {label}"
            print(json.dumps({"file": file, "name": name, "score": round(score, 5), "box": [round(v, 2) for v in box]}))
