"""Format of OadTR: the authors' code (wangxiang1230/OadTR, ``VisionTransformer_v3``), a file {"model": ...}.

The numbers of heads are not in the tensors: they come from the file's arguments, else the caller, else the authors'
defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.published.format import POINTWISE, Dropped, Entry, Format, layers, write
from sensorium.published.opening import fill, open_path, save
from sensorium.published.source import Source
from sensorium.streaming.oadtr.method import OadTR

HEADS, DECODER_HEADS = 8, 4  # the authors' defaults

_FIRST, _SECOND = "encoder.net.{2*i}.fn.", "encoder.net.{2*i+1}.fn."
_HINT = "is this the authors' OadTR?"


def _numbers(source: Source) -> dict[str, Any]:
    def size(name: str, dims: int, at: int = 0) -> int:
        return source.shape(name, dims, _HINT)[at]

    def heads(option: str, argument: str, usual: int) -> int:
        return source.options.get(option) or source.argued(argument) or usual

    return {
        "features": size("linear_encoding.weight", 2, 1),
        "classes": size("mlp_head.weight", 2),
        "width": size("linear_encoding.weight", 2),
        "length": size("position_encoding.pe.weight", 2) - 1,
        "depth": source.count(r"encoder\.net\.(\d+)\.fn\.fn\.qkv\."),
        "heads": heads("heads", "num_heads", HEADS),
        "hidden": size("encoder.net.1.fn.fn.net.0.weight", 2),
        "future": size("decoder_cls_token", 3, 1),
        "decoder_depth": source.count(r"decoder\.layers\.(\d+)\."),
        "decoder_heads": heads("decoder_heads", "decoder_num_heads", DECODER_HEADS),
        "decoder_hidden": size("decoder.layers.0.conv1.weight", 3),
    }


def _fits(model: OadTR) -> None:
    if model.attention != "full":
        raise SensoriumError("the authors' OadTR has full attention; their layout can't hold a causal one.")


AUTHORS = Format(
    name="authors' OadTR",
    network=OadTR,
    keys=(r"decoder_cls_token", r"position_encoding\.pe\.weight"),
    table=(
        Entry("token", "cls_token"),
        Entry("positions", "position_encoding.pe.weight"),
        Entry("project.{kind}", "linear_encoding.{kind}"),
        *layers("encoder.{i}.", _FIRST, {"norm1": "norm", "qkv": "fn.qkv", "proj": "fn.proj"}),
        *layers("encoder.{i}.", _SECOND, {"norm2": "norm", "fc1": "fn.net.0", "fc2": "fn.net.3"}),
        Entry("norm.{kind}", "pre_head_ln.{kind}"),
        Entry("queries", "decoder_cls_token"),
        Entry("decoder.{i}.fc1.weight", "decoder.layers.{i}.conv1.weight", POINTWISE),
        Entry("decoder.{i}.fc2.weight", "decoder.layers.{i}.conv2.weight", POINTWISE),
        *layers("decoder.{i}.", "decoder.layers.{i}.", {
            "fc1": "conv1",
            "fc2": "conv2",
            "norm1": "norm1",
            "norm2": "norm2",
            "norm3": "norm3",
            "qkv": tuple(f"self_attention.{part}_projection" for part in ("query", "key", "value")),
            "proj": "self_attention.out_projection",
            "query": "cross_attention.query_projection",
            "key_value": ("cross_attention.key_projection", "cross_attention.value_projection"),
            "cross_proj": "cross_attention.out_projection",
        }),
        Entry("decoder_norm.{kind}", "decoder.norm.{kind}"),
        Entry("head.{kind}", "mlp_head.{kind}"),
        Entry("future_head.{kind}", "classifier.{kind}"),
    ),
    dropped=(
        Dropped("position_encoding.position_ids", "the numbers 0 to T", lambda m: torch.arange(m.length + 1)[None]),
        Dropped("decoder_position_encoding.position_ids", "the numbers 0 to L - 1", lambda m: torch.arange(m.future)[None]),
        Dropped(
            "decoder_position_encoding.pe.weight", "created but never used: queries have no position embedding",
            lambda m: torch.zeros(m.future, m.width, dtype=m.queries.dtype),
        ),
    ),
    numbers=_numbers,
    normalization=None,
    to="authors",
    fits=_fits,
    file="oadtr.pth",
    container="model",
)  # fmt: skip

FORMATS: tuple[Format, ...] = (AUTHORS,)
FOLLOWS = {one.name: one.why for one in AUTHORS.dropped}


def load_oadtr(path: str | Path, *, heads: int | None = None, decoder_heads: int | None = None) -> OadTR:
    """An :class:`OadTR` in evaluation mode from a .pth or .safetensors file of the authors' layout.

    heads, decoder_heads: of the encoder and the decoder if the file's arguments do not contain them (8 and 4). Raises
    SensoriumError that names the file and the entry.
    """
    return open_path(path, FORMATS, heads=heads, decoder_heads=decoder_heads)


def from_authors(
    state: Mapping[str, Tensor], *, heads: int = HEADS, decoder_heads: int = DECODER_HEADS, where: str = "state"
) -> OadTR:
    """Their state dict -> our network, with sizes from it. Raises SensoriumError that names ``where`` and the entry."""
    return fill(AUTHORS, Source(where, state, options={"heads": heads, "decoder_heads": decoder_heads}))


def to_authors(model: OadTR) -> dict[str, Tensor]:
    """Ours -> their complete state dict, including tensors that their code never reads (:data:`FOLLOWS`)."""
    return write(AUTHORS, model)


def save_oadtr(model: OadTR, path: str | Path) -> Path:
    """Write ``to_authors`` as a file: .safetensors, or else a PyTorch file under "model", as theirs."""
    return save(AUTHORS, model, path)
