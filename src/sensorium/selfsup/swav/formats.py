"""The format of SwAV: files of the authors' code (facebookresearch/swav, ``main_swav.py``, ``src/resnet50.py``): the published
``swav_800ep_pretrain.pth.tar``, a state dict, and training checkpoints, with "state_dict" beside the optimizer's. Names begin
with ``module.``, that of the parallel wrapper; their scripts take it off.

Their ResNet pads images by one pixel before a first convolution that pads by two: together torchvision's three.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sensorium.errors import SensoriumError
from sensorium.networks.formats import resnet
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.published.format import Entry, Format, Statistics, under
from sensorium.published.source import Source
from sensorium.selfsup.swav.method import SwAV

PIXELS: Statistics = ((0.485, 0.456, 0.406), (0.228, 0.224, 0.225))  # theirs, in training and in evaluation


def _numbers(source: Source) -> dict[str, Any]:
    kernel = source.shape("module.conv1.weight", 4)[2]
    if kernel != 7:
        raise SensoriumError(
            f"{source.where}: the authors' SwAV has a first convolution of 7x7, this file {kernel}x{kernel}."
        )
    return {
        "body": resnet.sniffed(source, "module."),
        "hidden": source.shape("module.projection_head.0.weight", 2)[0],
        "projection": source.shape("module.projection_head.3.weight", 2)[0],
        "prototypes": source.shape("module.prototypes.weight", 2)[0],
    }


def _build(body: dict[str, Any], hidden: int, projection: int, prototypes: int) -> SwAV:
    network = ResNet(**body)
    head = mlp_head(network.dim, hidden, projection, bias=True)
    return SwAV(network, head, nn.Linear(projection, prototypes, bias=False))


def _fits(swav: SwAV) -> None:
    net = swav.backbone
    if not isinstance(net, ResNet):
        raise SensoriumError(f"the authors' SwAV needs a ResNet, not a {type(net).__name__}.")
    n = resnet.resnet_numbers(net)
    for wrong, said in (
        (n["stem"] != "imagenet", f"the stem of a ResNet for large pictures, not '{n['stem']}'"),
        (n["width"] != [n["stem_width"] * 2**i for i in range(4)], "four stages, each twice as wide as the one before"),
        (n["first_stride"] != 1 or n["early_stride"], "its strides in other layers"),
    ):
        if wrong:
            raise SensoriumError(f"the authors' SwAV has {said}.")
    kinds = [type(layer) for layer in swav.head.children()]
    if kinds != [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear] or "0.bias" not in swav.head.state_dict():
        raise SensoriumError("the authors' SwAV has a projection head of two linear layers with biases.")


AUTHORS = Format(
    name="authors' SwAV",
    network=SwAV,
    keys=(r"module\.conv1\.weight", r"module\.projection_head\.0\.weight", r"module\.prototypes\.weight"),
    spellings=((r"^(?!module\.)", "module."),),
    table=(
        Entry("prototypes.weight", "module.prototypes.weight"),
        Entry("queues.{rest}", ()),  # theirs stand in files of their own
        *under("head.", "module.projection_head.", resnet.table()),
        *under("backbone.", "module.", resnet.table()),
    ),
    numbers=_numbers,
    build=_build,
    normalization=PIXELS,
    to="authors",
    fits=_fits,
    file="swav.pth",
    container="state_dict",
)

FORMATS: tuple[Format, ...] = (AUTHORS,)
