"""Formats of I-JEPA: the training checkpoints of the authors' code (facebookresearch/ijepa, ``src/train.py``), whole: both
encoders and the predictor, so that training can go on. The encoder alone, as transformers has it, is in
``networks/formats/mean_vit.py``.

{"encoder": ..., "predictor": ..., "target_encoder": ...}, each of a wrapped module (``module.``), with timm's names in the
encoders and ``predictor_`` before those of the predictor. The heads are in no file: the authors' encoders have 64 channels a
head, the large ones 16 heads, and the predictor as many heads as the encoder. Momentum and masks are in no file either.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.networks.formats import timm_vit
from sensorium.networks.mean_vit import MeanViT
from sensorium.published.format import IMAGENET, Entry, Format
from sensorium.published.source import Source
from sensorium.selfsup.i_jepa.method import IJEPA
from sensorium.selfsup.i_jepa.predictor import Predictor

ENCODER, TARGET, PREDICTOR = "encoder.module.", "target_encoder.module.", "predictor.module."
_WHOSE = "the authors' I-JEPA"


def _numbers(source: Source) -> dict[str, Any]:
    bare = {name.removeprefix(TARGET): tensor for name, tensor in source.state.items() if name.startswith(TARGET)}
    encoder = replace(source, state=bare)
    return {
        "encoder": timm_vit.timm_shapes(encoder, timm_vit.timm_grid(encoder, 0)[0]),
        "width": source.shape(f"{PREDICTOR}predictor_embed.weight", 2)[0],
        "depth": source.count(r"predictor\.module\.predictor_blocks\.(\d+)\."),
        "hidden": source.shape(f"{PREDICTOR}predictor_blocks.0.mlp.fc1.weight", 2)[0],
    }


def _build(encoder: dict[str, Any], width: int, depth: int, hidden: int) -> IJEPA:
    network = MeanViT(**encoder, positions="sincos")
    return IJEPA(network, Predictor(network.dim, network.grid, width, depth, network.heads, mlp_ratio=hidden / width))


def _settle(method: Any, source: Source) -> None:
    method.target_encoder.normalization = method.encoder.normalization = method.normalization


def _heads(width: int) -> int:
    """What is read of a file of theirs whose encoder has this width."""
    return 16 if width in timm_vit.WIDE else max(1, width // 64)


def _fits(method: IJEPA) -> None:
    network: MeanViT = method.encoder
    predicting = {block.attn.heads for block in method.predictor.blocks}  # pyright: ignore[reportAttributeAccessIssue]
    for wrong, said in (
        (network.pool != "mean", "takes the mean of normed patches"),
        (network.positions != "sincos", "has fixed positions"),
        (bool(network.registers), "has no register tokens"),
        (bool(network.parts), f"has no {', '.join(network.parts)}"),
        (network.grid[0] != network.grid[1], "sees square images"),
        (not network.qkv_bias, "has biases of queries, keys and values"),
        (network.heads != _heads(network.dim), f"has {_heads(network.dim)} heads at this width, not {network.heads}"),
        (predicting != {network.heads}, f"has as many heads in its predictor as in its encoder, {network.heads}"),
    ):
        if wrong:
            raise SensoriumError(f"{_WHOSE} {said}.")
    timm_vit.timm_eps(network)


AUTHORS = Format(
    name="authors' I-JEPA",
    network=IJEPA,
    keys=(
        r"encoder\.module\.patch_embed\.proj\.weight",
        r"target_encoder\.module\.patch_embed\.proj\.weight",
        r"predictor\.module\.predictor_embed\.weight",
    ),
    spellings=((r"^(encoder|target_encoder|predictor)\.(?!module\.)", r"\1.module."),),  # saved without its wrapper
    table=(
        Entry("predictor.mask_token", f"{PREDICTOR}mask_token"),
        Entry("predictor.{rest}", f"{PREDICTOR}predictor_{{rest}}"),
        Entry("encoder.{rest}", f"{ENCODER}{{rest}}"),
        Entry("target_encoder.{rest}", f"{TARGET}{{rest}}"),
    ),
    numbers=_numbers,
    build=_build,
    settle=_settle,
    normalization=IMAGENET,
    to="authors",
    of=lambda network: network if isinstance(network, IJEPA) and isinstance(network.encoder, MeanViT) else None,
    fits=_fits,
    file="i_jepa.pth",
    apart=True,
)

FORMATS: tuple[Format, ...] = (AUTHORS,)
