"""Writing ONNX: an encoder's features, or a classifier from pictures in 0..1 to probabilities."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sensorium.abilities import Classifier, Encoder, HasBackbone
from sensorium.base.files import write_file
from sensorium.errors import SensoriumError
from sensorium.published.format import HALF, Preparation

_PACKAGES = ("onnx", "onnxscript")


def missing() -> str | None:
    """The package that is missing, or None."""
    return next((name for name in _PACKAGES if find_spec(name) is None), None)


def _inner(network: Any) -> Any:
    return network.backbone if isinstance(network, HasBackbone) else network


def needed() -> None:
    """Raise SensoriumError that says how to install what is missing."""
    if name := missing():
        raise SensoriumError(f"--to onnx needs the package '{name}': pip install 'sensorium[export]'")


class _Features(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(images)


class _Classified(nn.Module):
    """Pictures in 0..1 [B, 3, S, S] -> logits and probabilities [B, K]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any, how: Preparation) -> None:
        super().__init__()
        mean, std = how.normalization or network.normalization or HALF
        self.network, self.temperature = network, how.temperature
        # as the judge rounds it: (255 x - 255 mean) / (255 std)
        self.register_buffer("mean", torch.tensor([255 * m for m in mean]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([255 * s for s in std]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network.logits((images * 255 - self.mean) / self.std)
        return logits, (logits / self.temperature).softmax(dim=1)


def _about(network: Any, how: Preparation, side: int) -> dict[str, str]:
    """The metadata of a classifier's file."""
    return {
        "classes": json.dumps(how.names(network), ensure_ascii=False),
        "image_size": str(side),
        "input": f"images: float32 [batch, 3, {side}, {side}], RGB, 0..1; normalized in the graph",
        "resize": "the shorter side to image_size, bilinear and antialiased; then the central square",
        "temperature": repr(how.temperature),
    }


def save_onnx(made: Any, path: Path) -> None:
    """Write what torch made, without the traces that name this machine's folders."""
    for graph in (made.model.graph, *made.model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
    write_file(path, lambda partial: made.save(partial, external_data=False))


def write_onnx(network: Any, out: Path, how: Preparation) -> Path:
    """Write ``out``, or model.onnx in it; any batch size.

    Encoders: images [B, 3, S, S], normalized -> features [B, D]. Classifiers: images in 0..1 -> logits [B, K], and
    probabilities at the temperature; the names of the classes, S and the resizing are in the metadata.
    """
    sorts = isinstance(network, Classifier)
    if not (sorts or isinstance(network, Encoder)):
        raise SensoriumError(f"{type(network).__name__} isn't an encoder of images, which --to onnx needs.")
    needed()
    path = out if out.suffix == ".onnx" else out / "model.onnx"
    side = how.image_size or network.image_size or _inner(network).image_size or 224
    side = side if isinstance(side, int) else side[0]
    modules: list[nn.Module] = list(cast(nn.Module, network).modules())
    modes = {part: part.training for part in modules}
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it warns of constants that it does not fold
    try:
        made = torch.onnx.export(
            (_Classified(network, how) if sorts else _Features(network)).eval(), (torch.zeros(2, 3, side, side),),
            dynamo=True, verbose=False, input_names=["images"],
            output_names=["logits", "probabilities"] if sorts else ["features"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
        )  # fmt: skip
        assert made is not None  # of dynamo
        if sorts:
            made.model.metadata_props.update(_about(network, how, side))
        save_onnx(made, path)
    finally:
        for part, mode in modes.items():
            part.training = mode
    return path
