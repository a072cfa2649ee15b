"""Detectors as ONNX: pictures in their squares -> their best boxes, non-maximum suppression included.

    images  float32 [B, 3, S, S]   normalized, the picture in the top left corner, zeros elsewhere
    sizes   int64 [B, 2]           height and width of each picture in its square
    boxes   float32 [B, N, 4]      x1, y1, x2, y2 in pixels of the square, the highest score first
    scores  float32 [B, N]         0 where a picture has fewer than N objects
    labels  int64 [B, N]

B is any number. The metadata have the names of the classes and how a picture is prepared, and a Python file beside it
does all of it with onnxruntime, Pillow and NumPy.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.abilities import Detector, Statistics
from sensorium.base.files import write_text
from sensorium.errors import SensoriumError
from sensorium.published.format import IMAGENET
from sensorium.published.onnx import save_onnx

MOST = 100  # detections of a picture
LEAST = 0.01  # minimum score
_ENOUGH = 1 << 31


@torch.library.custom_op("sensorium::kept", mutates_args=())
def kept(boxes: Tensor, scores: Tensor, labels: Tensor, classes: int, overlap: float, least: float) -> Tensor:
    """Which of the boxes [B, C, 4] non-maximum suppression, class by class, keeps: bool [B, C]."""
    from torchvision.ops import batched_nms

    found = torch.zeros_like(scores, dtype=torch.bool)
    for row, box, score, label in zip(found, boxes, scores, labels, strict=True):
        likely = torch.where(score > least)[0]
        row[likely[batched_nms(box[likely], score[likely], label[likely], overlap)]] = True
    return found


@kept.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, classes: int, overlap: float, least: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def _kept_in_onnx(boxes: Any, scores: Any, labels: Any, classes: int, overlap: float, least: float) -> Any:
    """``kept`` by ONNX's operator, which takes scores by class and gives a list of places."""
    from onnxscript import opset18

    op: Any = opset18  # its types don't know values of other operators
    one = op.Constant(value_ints=[1])
    numbers = op.Reshape(op.Constant(value_ints=list(range(classes))), op.Constant(value_ints=[1, classes, 1]))
    each = op.Where(
        op.Equal(op.Unsqueeze(labels, one), numbers), op.Unsqueeze(scores, one), op.Constant(value_float=0.0)
    )
    limits = (op.Constant(value_ints=[_ENOUGH]), *(op.Constant(value_floats=[value]) for value in (overlap, least)))
    places = op.Gather(op.NonMaxSuppression(boxes, each, *limits), op.Constant(value_ints=[0, 2]), axis=1)
    count = op.Slice(op.Shape(places), op.Constant(value_ints=[0]), one)
    marks = op.Expand(op.Constant(value_float=1.0), count)
    nothing = op.Mul(scores, op.Constant(value_float=0.0))
    return op.Greater(op.ScatterND(nothing, places, marks), op.Constant(value_float=0.5))


class _Best(nn.Module):
    """The ``MOST`` best detections of each picture."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, labels = self.network.candidates(images, sizes)
        if self.network.overlap is not None:
            stays = kept(boxes, scores, labels, self.network.classes, self.network.overlap, LEAST)
            scores = torch.where(stays, scores, 0.0)
        best = scores.topk(min(MOST, scores.shape[1]))
        boxes = torch.gather(boxes, 1, best.indices[..., None].expand(-1, -1, 4))
        return boxes, best.values, torch.gather(labels, 1, best.indices)


def export_boxes(network: Any, out: Path, pixels: Statistics | None = None) -> Path:
    """Write a detector to ``out`` (a .onnx file, or model.onnx in a folder), and the script that uses it beside it.
    pixels: their (mean, std), the network's own by default."""
    if type(network).candidates is Detector.candidates:
        raise SensoriumError(f"{type(network).__name__} has no `candidates`, which --to onnx needs of a detector.")
    path = out if out.suffix == ".onnx" else out / "model.onnx"
    longer = max(network.sides)
    side = network.divisor if network.divisor >= longer else -(-longer // 32) * 32
    example = torch.zeros(3, 3, side, side), torch.full((3, 2), side)
    batch = torch.export.Dim("batch", min=1)
    mode, home = network.training, next(network.parameters()).device
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "# The axis name")  # images and sizes share it, as they should
            made = torch.onnx.export(
                _Best(network.cpu()).eval(), example, dynamo=True, verbose=False, opset_version=18,
                input_names=["images", "sizes"], output_names=["boxes", "scores", "labels"],
                dynamic_shapes={"images": {0: batch}, "sizes": {0: batch}},
                custom_translation_table={torch.ops.sensorium.kept.default: _kept_in_onnx},
            )  # fmt: skip
    finally:
        network.train(mode).to(home)
    assert made is not None  # of dynamo
    made.model.metadata_props.update(_about(network, side, pixels or network.normalization or IMAGENET))
    save_onnx(made, path)
    script = Path(__file__).with_name("onnx_script.py").read_text(encoding="utf-8")
    write_text(path.with_suffix(".py"), script)
    return path


def _about(network: Any, side: int, pixels: Statistics) -> dict[str, str]:
    mean, std = pixels
    about = {
        "task": "detect", "classes": list(network.class_names), "mean": list(mean), "std": list(std),
        "shorter": network.sides[0], "longer": network.sides[1], "square": side,
    }  # fmt: skip
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
