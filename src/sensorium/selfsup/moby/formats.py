"""Formats of MoBY: the training checkpoints of the authors' code (SwinTransformer/Transformer-SSL, ``models/moby.py``), of
the whole method: {"model": ...} with ``encoder.``, ``projector.``, ``predictor.``, the moving averages ``encoder_k.`` and
``projector_k.``, the queues [D, K] and their common place. Their encoder is a Swin, or timm's DeiT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.networks.formats import swin, timm_vit, vit
from sensorium.networks.swin import Swin
from sensorium.networks.vit import ViT
from sensorium.parts.heads import mlp_head
from sensorium.published.format import IMAGENET, TRANSPOSED, Change, Dropped, Entry, Format, batch_norm, under, zero
from sensorium.published.source import Source
from sensorium.selfsup.moby.method import MoBY

_PLACE = Change(lambda x, _: x[0], lambda x, _: x[None])  # [1] of theirs


def _head(ours: str, theirs: str) -> tuple[Entry, ...]:
    return (
        Entry(f"{ours}.0.{{kind}}", f"{theirs}.linear_hidden.1.{{kind}}"),
        *batch_norm(f"{ours}.1.", f"{theirs}.linear_hidden.2."),
        Entry(f"{ours}.3.{{kind}}", f"{theirs}.linear_out.{{kind}}"),
    )


def _table(network: tuple[Entry, ...]) -> tuple[Entry, ...]:
    return (
        *_head("projector", "projector"),
        *_head("predictor", "predictor"),
        *_head("teacher.projector", "projector_k"),
        Entry("queue.rows", ("queue1", "queue2"), TRANSPOSED),
        Entry("queue.at", "queue_ptr", _PLACE),
        Entry("queue.count", (), otherwise=zero),
        *under("backbone.", "encoder.", network),
        *under("teacher.backbone.", "encoder_k.", network),
    )


def _numbers(network: Callable[[Source], dict[str, Any]]) -> Callable[[Source], dict[str, Any]]:
    """network: a source with the encoder's names -> its arguments."""

    def numbers(source: Source) -> dict[str, Any]:
        out, hidden = source.shape("projector.linear_out.weight", 2, "two layers are supported")
        dim, negatives = source.shape("queue1", 2)
        source.agree(out, dim, "projector.linear_out.weight")
        return {"network": network(replace(source, state=_bare(source.state))), "hidden": hidden, "dim_keys": out,
                "negatives": negatives}  # fmt: skip

    return numbers


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}


def _built(network: Callable[..., Any]) -> Callable[..., MoBY]:
    def build(network_: dict[str, Any], hidden: int, dim_keys: int, negatives: int) -> MoBY:
        backbone = network(**network_)
        projector = mlp_head(backbone.dim, hidden, dim_keys, bias=True)
        predictor = mlp_head(dim_keys, hidden, dim_keys, bias=True)
        return MoBY(backbone, projector, predictor, dim_keys=dim_keys, negatives=negatives)

    return lambda **numbers: build(numbers.pop("network"), **numbers)


def _settle(method: Any, source: Source) -> None:
    method.backbone.normalization = method.normalization


def _with(network: type[nn.Module]) -> Callable[[Any], Any]:
    return lambda method: method if isinstance(method, MoBY) and isinstance(method.backbone, network) else None


def _fits(method: MoBY) -> None:
    """SensoriumError for a method whose parts the authors' code does not have."""
    if isinstance(method.backbone, Swin):
        swin.published(method.backbone, "the authors' MoBY's")
    else:
        vit.plain(method.backbone, "the authors' MoBY's")
    shapes = [[type(layer).__name__ for layer in head.children()] for head in (method.projector, method.predictor)]
    if any(names != ["Linear", "BatchNorm1d", "ReLU", "Linear"] for names in shapes):
        raise SensoriumError("the authors' MoBY has heads of two layers with a batch norm between them.")


SWIN = Format(
    name="authors' MoBY on a Swin",
    network=MoBY,
    keys=(r"encoder\.layers\.0\.blocks\.0\.attn\.relative_position_bias_table", r"encoder_k\.norm\.weight", "queue1"),
    table=_table(swin.AUTHORS.table),
    dropped=(
        Dropped(r"encoder(_k)?\..*(relative_position_index|attn_mask)", "they follow from the window and the size"),
    ),
    numbers=_numbers(swin.AUTHORS.numbers),
    build=_built(Swin),
    settle=_settle,
    normalization=IMAGENET,
    to="authors",
    of=_with(Swin),
    fits=_fits,
    file="moby.pth",
    container="model",
)
VIT = replace(
    SWIN,
    name="authors' MoBY on a ViT",
    keys=(*(rf"encoder\.{key}" for key in timm_vit.TIMM_KEYS), r"encoder_k\.norm\.weight", "queue1"),
    table=_table((Entry("{rest}", "{rest}"),)),
    dropped=(),
    numbers=_numbers(timm_vit.timm_numbers),
    build=_built(ViT),
    of=_with(ViT),
)

FORMATS: tuple[Format, ...] = (SWIN, VIT)
