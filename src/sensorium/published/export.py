"""Exporting our networks in others' checkpoint formats, the inverse of :mod:`sensorium.published.load`; and ONNX."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from sensorium.abilities import Classifier, Detector, Encoder, HasBackbone, HasBody, PreparesImages, SeesImages
from sensorium.catalogue import FORMATS, find
from sensorium.errors import SensoriumError
from sensorium.parts.lowrank import merged
from sensorium.published.format import Format, Preparation
from sensorium.published.onnx import missing, needed, write_onnx
from sensorium.published.opening import save
from sensorium.published.registry import held, writers
from sensorium.published.source import Statistics


def export(
    network: nn.Module,
    to: str,
    out: Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    recipe: str = "",
    classes: Sequence[str] = (),
    temperature: float = 1.0,
) -> Path:
    """Write ``network``, or a method's backbone, as "safetensors", "hf", "timm", "torchvision", "onnx" ...; return the
    path.

    If a format holds the whole method (ViTMAE, DETR, CLIP, a classifier with its head), the method is written; else its
    backbone, but never a classifier's without its head. mean, std: of the pixels in 0..1 scale. recipe: of the run that
    it is of. classes, temperature: of a classifier, names and what divides its logits. Raises SensoriumError, which
    lists the possible formats, if the format can't hold the network.
    """
    network, seen = _bare(merged(network))
    if seen is not None:  # what the network expects is not what its method is given
        (mean, std), image_size = seen.own, seen.side or image_size
    chain = _parts(network)
    own = network.normalization if isinstance(network, SeesImages) else None
    if own is None and (mean is not None or std is not None):
        own = ((0.5,) * 3, (0.5,) * 3)
    pixels = None if own is None else (tuple(own[0] if mean is None else mean), tuple(own[1] if std is None else std))
    how = Preparation(cast("Statistics | None", pixels), image_size, tuple(classes), temperature)
    if to == "onnx" and isinstance(network, Detector):
        from sensorium.published.onnx_boxes import export_boxes

        needed()
        return export_boxes(network, Path(out), pixels)
    if to == "onnx":
        return write_onnx(chain[0] if isinstance(chain[0], Classifier) else chain[-1], Path(out), how)
    form, part = _written(chain, to, recipe)
    try:
        form.fits(part)
    except SensoriumError as error:
        raise SensoriumError(f"{error} {_way(exportable(network, recipe))}") from error
    if isinstance(network, Detector):  # a detector's images have a size rule of their own
        how = replace(how, image_size=None)
    path = save(form, part, Path(out) / form.inside, how)
    return Path(out) if form.inside else path


def _bare(network: nn.Module) -> tuple[nn.Module, PreparesImages | None]:
    """A network or a method without the preparation of its images, sharing its weights; and that preparation."""
    if isinstance(network, PreparesImages):
        return network.network, network
    if isinstance(network, HasBackbone) and isinstance(seen := network.backbone, PreparesImages):
        alone = copy.copy(network)
        alone._modules = network._modules | {"backbone": seen.network}
        return alone, seen
    return network, None


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
    sorts = isinstance(chain[0], Classifier)
    name = " on ".join(type(one).__name__ for one in (chain[:2] if sorts else chain[-1:]))
    known = any(_first(chain[-1:], one) for one in LIBRARIES[1:])  # else it is no library's
    strange = to in LIBRARIES and isinstance(chain[-1], Encoder) and not known
    other = " (a ResNet has: --backbone resnet-micro)" if strange else ""
    raise SensoriumError(f"{name} has no format '{to}'{other}. {_way(exportable(chain[0], recipe))}")


def _first(chain: list[nn.Module], to: str) -> tuple[Format, Any] | None:
    for part in chain[:1] if isinstance(chain[0], Classifier) else chain:  # a classifier goes with its head
        for form in writers():
            if form.to == to and (inner := held(form, part)) is not None:
                return form, inner
    return None


def exportable(network: nn.Module, recipe: str = "") -> tuple[str, ...]:
    """What :func:`export` writes of ``network``, or of a run of ``recipe`` with that method: the formats of ``FORMATS``
    that hold it as it is."""
    chain = _parts(_bare(merged(network))[0])
    known = FORMATS if not recipe or ":" in recipe else find(recipe).exports
    return tuple(to for to in FORMATS if to in known and (_has_onnx(chain) if to == "onnx" else _fits(chain, to)))


LIBRARIES = ("hf", "timm", "torchvision")
OPENED = (*LIBRARIES, "safetensors", "onnx")
"""Of ``FORMATS``, first what most others open."""


class Written(NamedTuple):
    """What :func:`export` writes: ``to`` this format, by ``form`` (None: ONNX), ``part`` of the network."""

    to: str
    form: Format | None
    part: Any


def preferred(network: nn.Module, recipe: str = "") -> Written | None:
    """The format of ``network``, or of a run of ``recipe`` with that method, that most others open; None without one."""
    network = _bare(merged(network))[0]
    able, chain = exportable(network, recipe), _parts(network)
    for to in (one for one in OPENED if one in able):
        if to == "onnx":
            return Written(to, None, chain[0] if isinstance(network, Classifier | Detector) else chain[-1])
        form, part = _written(chain, to, recipe)
        if form.usage is not None:
            return Written(to, form, part)
    return None


def _fits(chain: list[nn.Module], to: str) -> bool:
    try:
        form, part = _first(chain, to) or (None, None)
        if form is not None:
            form.fits(part)
        return form is not None
    except SensoriumError:
        return False


def _has_onnx(chain: list[nn.Module]) -> bool:
    able = isinstance(chain[0], Classifier | Detector) or isinstance(chain[-1], Encoder)
    return able and missing() is None


def _way(able: Sequence[str]) -> str:
    able = sorted(able, key=lambda to: to not in ("safetensors", "onnx"))  # first what holds any network
    return f"Use --to {' or '.join(able)}." if able else "Its only format is its run's model.safetensors."
