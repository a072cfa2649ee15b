"""What formats of training checkpoints of a torchvision ResNet and an MLP after it share: the numbers in them."""

from __future__ import annotations

from typing import Any

from sensorium.errors import SensoriumError
from sensorium.networks.formats import resnet
from sensorium.networks.resnet import ResNet
from sensorium.published.source import Source


def mlp_widths(source: Source, name: str) -> list[int]:
    """The widths of the MLP called ``name`` (its last dot included), inputs first: its linear layers are those of its
    tensors with two dimensions."""
    found = {}
    for key, tensor in source.state.items():
        index = key.removeprefix(name).removesuffix(".weight")
        if key.startswith(name) and key.endswith(".weight") and index.isdigit() and tensor.ndim == 2:
            found[int(index)] = source.shape(key, 2)
    layers = [found[index] for index in sorted(found)]
    if len(layers) < 2:
        raise SensoriumError(
            f"{source.where}: '{name}*.weight' has {len(layers)} linear layers, at least 2 are expected."
        )
    return [layers[0][1], *(rows for rows, _ in layers)]


def torchvisions(backbone: Any) -> None:
    """SensoriumError unless the backbone is built as torchvision's ResNet is, in any width and depth."""
    if not isinstance(backbone, ResNet):
        raise SensoriumError(f"the authors' code has a ResNet, not a {type(backbone).__name__}.")
    n = resnet.resnet_numbers(backbone)
    for wrong, said in (
        (n["stem"] != "imagenet", f"no '{n['stem']}' stem"),
        (len(n["layers"]) != 4, f"four stages, this network {len(n['layers'])}"),
        (n["stem_width"] != n["width"][0], f"a stem of {n['width'][0]} channels, this network {n['stem_width']}"),
        (n["first_stride"] != 1 or n["early_stride"], "its strides in other layers"),
    ):
        if wrong:
            raise SensoriumError(f"the authors' ResNet has {said}.")
