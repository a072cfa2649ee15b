"""A ResNet as torchvision's or timm's own module, without Sensorium: an export writes this file beside its weights and its
JSON.

    python resnet.py photo.jpg photos/*.png         prints one line of JSON for each picture: its class and probability

    from resnet import network, read                in code (this file has the name of its weights)
    model = network()                               torchvision's or timm's ResNet, in evaluation mode
    logits = model(read("photo.jpg")[None])         features if it was trained without classes

A stem for small pictures is one 3x3 convolution where the library has a 7x7 and a pool.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

HERE = Path(__file__)


def about(told: str | Path | None = None) -> dict[str, Any]:
    """The JSON file ``told`` (by default that beside this file): the network's numbers, its classes, the preparation."""
    return json.loads(Path(told or HERE.with_suffix(".json")).read_text(encoding="utf-8"))


def network(told: str | Path | None = None) -> nn.Module:
    """The network with its weights: normalized pictures [B, 3, image_size, image_size] -> logits, or features."""
    path = Path(told or HERE.with_suffix(".json"))
    known = about(path)
    library: Any = import_module(known["library"])  # torchvision.models.resnet or timm.models.resnet
    block, layers = getattr(library, known["block"]), known["layers"]
    widths = {"channels": known["channels"]} if "channels" in known else {}
    model = library.ResNet(block, layers + [1] * (4 - len(layers)), num_classes=len(known["classes"]), **widths)
    kernel, stride = known["stem"]
    if kernel != 7:
        model.conv1 = nn.Conv2d(3, 64, kernel, stride, kernel // 2, bias=False)
        model.maxpool = nn.Identity()
    for missing in range(len(layers) + 1, 5):
        setattr(model, f"layer{missing}", nn.Identity())
    model.fc = nn.Linear(known["features"], len(known["classes"])) if known["classes"] else nn.Identity()
    model.load_state_dict(_weights(path))
    return model.eval()


def read(picture: str | Path | Image.Image, told: str | Path | None = None) -> Tensor:
    """A picture, upright, its central square resized to the network's size and normalized, [3, image_size, image_size]."""
    known = about(told)
    side, mean, std = known["image_size"], known["mean"], known["std"]
    with picture if isinstance(picture, Image.Image) else Image.open(picture) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    (width, height), size = image.size, min(image.size)
    if image.size != (side, side):
        left, top = (width - size) / 2, (height - size) / 2
        box = (left, top, left + size, top + size)
        image = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def _weights(path: Path) -> dict[str, Tensor]:
    for suffix in (".pth", ".pt", ".bin", ".ckpt"):
        if path.with_suffix(suffix).is_file():
            return torch.load(path.with_suffix(suffix), map_location="cpu", weights_only=True)
    from safetensors.torch import load_file

    return load_file(path.with_suffix(".safetensors"))


if __name__ == "__main__":
    model, names, heat = network(), about()["classes"], about()["temperature"]
    for file in sys.argv[1:]:
        with torch.no_grad():
            found = model(read(file)[None])[0]
        if names:
            chance, best = (found / heat).softmax(0).max(0)
            print(json.dumps({"file": file, "class": names[int(best)], "probability": round(float(chance), 4)}))
        else:
            print(json.dumps({"file": file, "features": [round(float(value), 5) for value in found]}))
