"""Exporting our networks in others' checkpoint formats, the inverse of :mod:`sensorium.published.load`; and ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sensorium.abilities import Detector, Encoder, HasBackbone, HasBody, SeesImages
from sensorium.base.files import write_file
from sensorium.errors import SensoriumError
from sensorium.published.format import Format, Preparation
from sensorium.published.opening import save
from sensorium.published.registry import formats, held
from sensorium.published.source import Statistics


def export(
    network: nn.Module,
    to: str,
    out: Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
) -> Path:
    """Write ``network``, or a method's backbone, as "safetensors", "hf", "timm", "torchvision", "onnx" ...; return the
    path.

    If a format holds the whole method (ViTMAE, DETR, CLIP), the method is written; else its backbone. mean, std: of the
    pixels in 0..1 scale. Raises SensoriumError, which lists the possible formats, if the format can't hold the network.
    """
    chain = _parts(network)
    own = network.normalization if isinstance(network, SeesImages) else None
    if own is None and (mean is not None or std is not None):
        own = ((0.5,) * 3, (0.5,) * 3)
    pixels = None if own is None else (tuple(own[0] if mean is None else mean), tuple(own[1] if std is None else std))
    if to == "onnx" and isinstance(network, Detector):
        from sensorium.published.onnx_boxes import export_boxes

        _needs_onnx()
        return export_boxes(network, Path(out), pixels)
    if to == "onnx":
        return _onnx(chain, Path(out), image_size)
    form, part = _written(chain, to)
    if isinstance(network, Detector):  # a detector's images have a size rule of their own
        image_size = None
    return save(form, part, out, Preparation(cast("Statistics | None", pixels), image_size))


def _parts(network: nn.Module) -> list[nn.Module]:
    """A network, its backbone, and the backbone's body if it is a pyramid."""
    backbone = network.backbone if isinstance(network, HasBackbone) else None
    inner = backbone or network
    found = [network, backbone, inner.body if isinstance(inner, HasBody) else None]
    return [one for one in found if isinstance(one, nn.Module)]


def _written(chain: list[nn.Module], to: str) -> tuple[Format, Any]:
    """The format called ``to`` that holds the network or the first part of it, and that part."""
    for part in chain:
        for form in formats():
            if form.to == to and (inner := held(form, part)) is not None:
                return form, inner
    able = list(dict.fromkeys(f.to for part in chain for f in formats() if f.to and held(f, part) is not None))
    able += ["onnx"] if any(isinstance(part, Encoder) for part in chain) else []
    way = f"Use --to {' or '.join(able)}." if able else "Its only format is its run's model.safetensors."
    raise SensoriumError(f"{type(chain[-1]).__name__} has no format '{to}'. {way}")


class _Features(nn.Module):
    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(images)


def _needs_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SensoriumError(f"--to onnx needs the package '{error.name}': pip install 'sensorium[export]'") from None


def _onnx(chain: list[nn.Module], out: Path, size: int | None) -> Path:
    """images [B, 3, S, S], normalized -> features [B, D]; any batch size."""
    network: Any = chain[-1]
    if not isinstance(chain[-1], Encoder):
        raise SensoriumError(f"{type(network).__name__} isn't an encoder of images, which --to onnx needs.")
    _needs_onnx()
    path = out if out.suffix == ".onnx" else out / "model.onnx"
    side = size or network.image_size or 224
    side = side if isinstance(side, int) else side[0]
    example = torch.zeros(2, 3, side, side)
    batch = torch.export.Dim("batch", min=1)
    training = network.training
    try:
        made = torch.onnx.export(
            _Features(network).eval(), (example,), dynamo=True, verbose=False,
            input_names=["images"], output_names=["features"], dynamic_shapes={"images": {0: batch}},
        )  # fmt: skip
        assert made is not None  # of dynamo
        write_file(path, lambda partial: made.save(partial, external_data=False))
    finally:
        network.train(training)
    return path
