"""How an export is used: Python for the reader of a model card, who has ``folder``, the other library and a photo.jpg.

Each text sets one of ``features`` [1, D], ``probabilities`` [K], ``objects``, ``images`` uint8 [N, H, W, 3] and ``text``, as
Sensorium itself gives them of the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sensorium.abilities import Classifier, Detector, HasBackbone, SeesImages
from sensorium.published.format import HALF, Preparation

Usage = Callable[[Any, Preparation], str]
READ = 'picture = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")'
BEST = """best = int(probabilities.argmax())
print({names}[best], float(probabilities[best]))"""
PRINTED = "print(features.shape)"


def sides(network: Any, how: Preparation) -> tuple[int, int]:
    """Height and width of the pictures that ``network`` sees."""
    seen = network.backbone if isinstance(network, HasBackbone) else network
    side = how.image_size or (seen.image_size if isinstance(seen, SeesImages) else None) or 224
    return (side, side) if isinstance(side, int) else side


def square(network: Any, how: Preparation) -> str:
    """Lines that read photo.jpg upright, its central part resized to what the network sees."""
    height, width = sides(network, how)
    return f"{READ}\npicture = ImageOps.fit(picture, ({width}, {height}), Image.Resampling.BILINEAR)"


def heated(logits: str, how: Preparation) -> str:
    """The logits of one picture as probabilities."""
    heat = "" if how.temperature == 1 else f" / {how.temperature!r}"
    return f"probabilities = ({logits}{heat}).softmax(1)[0]"


def features_by(output: str, auto: str = "AutoModel", *, code: bool = False, options: str = "") -> Usage:
    """Features of an encoder of transformers. output: what is taken of ``found``, its output; code: files of the export
    are executed."""

    def usage(network: Any, how: Preparation) -> str:
        more = ", trust_remote_code=True" if code else ""
        return f"""import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, {auto}

model = {auto}.from_pretrained(folder{options}{more}).eval()
prepare = AutoImageProcessor.from_pretrained(folder)
{square(network, how)}
with torch.inference_mode():
    found = model(**prepare(picture, return_tensors="pt"))
features = {output}
{PRINTED}"""

    return usage


def classes_by_transformers(network: Any, how: Preparation, *, code: bool = False) -> str:
    """A classifier of transformers."""
    more = ", trust_remote_code=True" if code else ""
    return f"""import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(folder{more}).eval()
prepare = AutoImageProcessor.from_pretrained(folder)
{square(network, how)}
with torch.inference_mode():
    logits = model(**prepare(picture, return_tensors="pt")).logits
{heated("logits", how)}
{BEST.format(names="model.config.id2label")}"""


def by_timm(network: Any, how: Preparation) -> str:
    """A classifier or an encoder that timm creates."""
    sorts = isinstance(network, Classifier)
    names = BEST.format(names='model.pretrained_cfg["label_names"]')
    last = f"{heated('model(x)', how)}\n{names}" if sorts else f"features = model(x)\n{PRINTED}"
    return f"""import timm
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import normalize, to_dtype, to_image

model = timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval()
seen = timm.data.resolve_model_data_config(model)
{square(network, how)}
x = normalize(to_dtype(to_image(picture), torch.float32, scale=True), list(seen["mean"]), list(seen["std"]))[None]
with torch.inference_mode():
    {last.replace(chr(10), chr(10) + "    ")}"""


def by_script(module: str) -> Usage:
    """A classifier or an encoder by the Python file ``module`` that the export wrote beside its weights."""

    def usage(network: Any, how: Preparation) -> str:
        sorts = isinstance(network, Classifier)
        last = f"{heated('found', how)}\n{BEST.format(names=chr(39).join(['about()[', 'classes', ']']))}"
        return f"""import sys

import torch

sys.path.insert(0, folder)
from {module} import about, network, read

model = network()
with torch.inference_mode():
    found = model(read("photo.jpg")[None])
{last if sorts else f"features = found{chr(10)}{PRINTED}"}"""

    return usage


def by_sensorium(network: Any, how: Preparation) -> str:
    """A network in our own format."""
    height, width = sides(network, how)
    sorts = isinstance(network, Classifier)
    last = f"{heated('model.logits(x)', how)}\n{BEST.format(names='model.class_names')}"
    last = last if sorts else f"features = model.features(x)\n{PRINTED}"
    return f"""import sensorium
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import normalize, to_dtype, to_image

model = sensorium.load(folder)
{READ}
picture = ImageOps.fit(picture, ({width}, {height}), Image.Resampling.BILINEAR)
x = normalize(to_dtype(to_image(picture), torch.float32, scale=True), *model.normalization)[None]
with torch.inference_mode():
    {last.replace(chr(10), chr(10) + "    ")}"""


def by_onnx(network: Any, how: Preparation) -> str:
    """What :func:`sensorium.published.onnx.write_onnx` or ``export_boxes`` wrote."""
    if isinstance(network, Detector):
        return """import sys

sys.path.insert(0, folder)
from model import Detector

objects = Detector().find("photo.jpg")
print(objects)"""
    mean, std = how.normalization or HALF
    numbers = 'pixels = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255\nsession = onnxruntime.InferenceSession(f"{folder}/model.onnx")'
    last = f"""pixels = (pixels - np.array({list(mean)!r}, np.float32)[:, None, None]) / np.array({list(std)!r}, np.float32)[:, None, None]
features = session.run(["features"], {{"images": pixels}})[0]
{PRINTED}"""
    if isinstance(network, Classifier):
        names = BEST.format(names='json.loads(session.get_modelmeta().custom_metadata_map["classes"])')
        last = f'probabilities = session.run(["probabilities"], {{"images": pixels}})[0][0]\n{names}'
    return f"""import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

{square(network, how)}
{numbers}
{last}"""
