"""Exporting our networks in others' checkpoint formats, the inverse of :mod:`sensorium.published.load`; and ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sensorium.abilities import Detector, Encoder, HasBackbone, HasBody, SeesImages
from sensorium.base.files import write_file
from sensorium.catalogue import FORMATS, find
from sensorium.errors import SensoriumError
from sensorium.published.format import Format, Preparation
from sensorium.published.opening import save
from sensorium.published.registry import formats, held
from sensorium.published.source import Statistics

_ONNX = ("onnx", "onnxscript")  # packages


def export(
    network: nn.Module,
    to: str,
    out: Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    recipe: str = "",
) -> Path:
    """Write ``network``, or a method's backbone, as "safetensors", "hf", "timm", "torchvision", "onnx" ...; return the
    path.

    If a format holds the whole method (ViTMAE, DETR, CLIP), the method is written; else its backbone. mean, std: of the
    pixels in 0..1 scale. recipe: of the run that it is of. Raises SensoriumError, which lists the possible formats, if the format can't hold the network.
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
    form, part = _written(chain, to, recipe)
    try:
        form.fits(part)
    except SensoriumError as error:
        raise SensoriumError(f"{error} {_way(exportable(network, recipe))}") from error
    if isinstance(network, Detector):  # a detector's images have a size rule of their own
        image_size = None
    return save(form, part, out, Preparation(cast("Statistics | None", pixels), image_size))


def _parts(network: nn.Module) -> list[nn.Module]:
    """A network, its backbone, and the backbone's body if it is a pyramid."""
    backbone = network.backbone if isinstance(network, HasBackbone) else None
    inner = backbone or network
    found = [network, backbone, inner.body if isinstance(inner, HasBody) else None]
    return [one for one in found if isinstance(one, nn.Module)]


def _written(chain: list[nn.Module], to: str, recipe: str) -> tuple[Format, Any]:
    """The format called ``to`` that holds the network or the first part of it, and that part."""
    if found := _first(chain, to):
        return found
    raise SensoriumError(f"{type(chain[-1]).__name__} has no format '{to}'. {_way(exportable(chain[0], recipe))}")


def _first(chain: list[nn.Module], to: str) -> tuple[Format, Any] | None:
    for part in chain:
        for form in formats():
            if form.to == to and (inner := held(form, part)) is not None:
                return form, inner
    return None


def exportable(network: nn.Module, recipe: str = "") -> tuple[str, ...]:
    """What :func:`export` writes of ``network``, or of a run of ``recipe`` with that method: the formats of ``FORMATS``
    that hold it as it is."""
    chain = _parts(network)
    known = FORMATS if not recipe or ":" in recipe else find(recipe).exports
    return tuple(to for to in FORMATS if to in known and (_has_onnx(chain) if to == "onnx" else _fits(chain, to)))


def _fits(chain: list[nn.Module], to: str) -> bool:
    try:
        form, part = _first(chain, to) or (None, None)
        if form is not None:
            form.fits(part)
        return form is not None
    except SensoriumError:
        return False


def _has_onnx(chain: list[nn.Module]) -> bool:
    return (isinstance(chain[-1], Encoder) or isinstance(chain[0], Detector)) and all(
        find_spec(name) is not None for name in _ONNX
    )


def _way(able: Sequence[str]) -> str:
    able = sorted(able, key=lambda to: to not in ("safetensors", "onnx"))  # first what holds any network
    return f"Use --to {' or '.join(able)}." if able else "Its only format is its run's model.safetensors."


class _Features(nn.Module):
    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(images)


def _needs_onnx() -> None:
    for name in _ONNX:
        if find_spec(name) is None:
            raise SensoriumError(f"--to onnx needs the package '{name}': pip install 'sensorium[export]'")


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
