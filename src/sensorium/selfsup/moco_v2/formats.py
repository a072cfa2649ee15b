"""Formats of MoCo v2: the training checkpoints of the authors' code (facebookresearch/moco with ``--mlp``), whole. They
are those of v1 (:mod:`sensorium.selfsup.moco_v1.formats`) with a head of two layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.published.format import Entry, Format
from sensorium.published.source import Source
from sensorium.selfsup.moco_v1 import formats as v1
from sensorium.selfsup.moco_v1.method import MoCo


def _numbers(source: Source) -> dict[str, Any]:
    return v1.numbers(source, f"{v1.QUERY}fc.2.weight") | {"hidden": source.shape(f"{v1.QUERY}fc.0.weight", 2)[0]}


def _build(encoder: dict[str, Any], hidden: int, projection: int, queue: int) -> MoCo:
    network = ResNet(**encoder)
    head = mlp_head(network.dim, hidden, projection, norm=False)
    return MoCo(network, head, projection=projection, queue=queue, temperature=0.2)


AUTHORS = replace(
    v1.AUTHORS,
    name="authors' MoCo v2",
    keys=(r"module\.encoder_q\.fc\.2\.weight", r"module\.encoder_k\.fc\.2\.weight", r"module\.queue"),
    table=v1.table(Entry("{i}.{kind}", "{i}.{kind}")),
    numbers=_numbers,
    build=_build,
    of=v1.with_head(["Linear", "ReLU", "Linear"]),
    file="moco_v2.pth",
)

FORMATS: tuple[Format, ...] = (AUTHORS,)
