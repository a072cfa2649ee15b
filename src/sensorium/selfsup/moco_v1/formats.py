"""Formats of MoCo v1: the training checkpoints of the authors' code (facebookresearch/moco, ``moco/builder.py``), whole.

``{"state_dict": ...}`` of a wrapped module: ``module.encoder_q.`` and ``module.encoder_k.`` are torchvision's ResNet with
the head as its ``fc``, ``module.queue`` holds a key a column, all of them pushed, and ``module.queue_ptr`` the oldest.
Temperature and momentum are in no file: they become the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.networks.formats import resnet
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.published.format import IMAGENET, TRANSPOSED, Change, Entry, Format, under
from sensorium.published.source import Source
from sensorium.selfsup.moco_v1.method import MoCo

QUERY, KEY = "module.encoder_q.", "module.encoder_k."
UNWRAPPED = ((r"^(?=encoder_[qk]\.|queue(_ptr)?$)", "module."),)  # a module that was saved without its wrapper
_ONE = Change(lambda x, _: x.reshape(()), lambda x, _: x.reshape(1))  # [1] of theirs, [] of ours


def _full(target: Tensor, moco: Any) -> Tensor:
    return torch.full(target.shape, len(moco.queue.rows), dtype=target.dtype)


def table(head: Entry) -> tuple[Entry, ...]:
    """Both encoders, whose heads' names ``head`` translates, and the queue."""
    sides = (("query.", QUERY), ("key.", KEY))
    return (
        *(entry for ours, theirs in sides for entry in under(f"{ours}head.", f"{theirs}fc.", [head])),
        *(entry for ours, theirs in sides for entry in under(f"{ours}backbone.", theirs, resnet.table())),
        Entry("queue.rows", "module.queue", TRANSPOSED),
        Entry("queue.at", "module.queue_ptr", _ONE),
        Entry("queue.count", (), otherwise=_full),
    )


def numbers(source: Source, last: str) -> dict[str, Any]:
    """The ResNet's arguments, ``widths`` of the head's layers after the first, and the queue's size. last: the name of the
    head's last weight."""
    projection, size = source.shape("module.queue", 2)
    found = source.shape(last, 2)
    source.agree(found[0], projection, f"'{last}'")
    return {"encoder": resnet.sniffed(source, QUERY), "projection": projection, "queue": size}


def settle(method: Any, source: Source) -> None:
    """The backbone alone expects the same pixels."""
    method.backbone.normalization, method.backbone.trained_size = method.normalization, method.trained_size


def fits_resnet(network: Any, whose: str) -> None:
    """SensoriumError unless torchvision's class can be this network."""
    if not isinstance(network, ResNet):
        raise SensoriumError(f"{whose} needs a ResNet, not a {type(network).__name__}.")
    n = resnet.resnet_numbers(network)
    if n["stem"] != "imagenet":
        raise SensoriumError(f"{whose} is on torchvision's ResNet, which has no '{n['stem']}' stem.")
    if n["first_stride"] != 1 or n["early_stride"]:
        raise SensoriumError(f"{whose} is on torchvision's ResNet, which has its strides in other layers.")


def with_head(layers: Sequence[str]) -> Any:
    """The method, if its head has these kinds of layers; v1 and v2 are one method, told apart by it."""

    def of(network: Any) -> Any:
        if not isinstance(network, MoCo):
            return None
        return network if [type(part).__name__ for part in network.query["head"].children()] == list(layers) else None

    return of


def _build(encoder: dict[str, Any], projection: int, queue: int) -> MoCo:
    network = ResNet(**encoder)
    return MoCo(network, mlp_head(network.dim, projection), projection=projection, queue=queue)


AUTHORS = Format(
    name="authors' MoCo v1",
    network=MoCo,
    keys=(r"module\.encoder_q\.fc\.weight", r"module\.encoder_k\.fc\.weight", r"module\.queue"),
    spellings=UNWRAPPED,
    table=table(Entry("0.{kind}", "{kind}")),
    numbers=lambda source: numbers(source, f"{QUERY}fc.weight"),
    build=_build,
    settle=settle,
    normalization=IMAGENET,
    to="authors",
    of=with_head(["Linear"]),
    fits=lambda moco: fits_resnet(moco.backbone, "the authors' MoCo"),
    file="moco_v1.pth",
    container="state_dict",
)

FORMATS: tuple[Format, ...] = (AUTHORS,)
