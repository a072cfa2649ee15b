"""Formats of Swin: Hugging Face's, timm's, the authors' (microsoft/Swin-Transformer; timm's before 0.9 have the same
names), torchvision's, and ours; and what those of Swin V2 share with them.

Stages are ``layers.S`` in all but torchvision's; their merging is in theirs before the blocks (timm), or after those of the
stage before (the authors, Hugging Face). All norms have an epsilon of 1e-5.

Outputs are the same wherever the maps are whole windows. Others differ as follows. timm shifts a map before it pads it;
torchvision leaves incomplete patches out; timm and the authors build their network for one image size, and make windows
no larger than its maps; Hugging Face's Swin shifts neither side once one of them is no larger than the window, and
fails below that; Hugging Face's Swin V2 and timm decide by the image size of the configuration whether a stage is shifted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.networks.formats.shared import (
    CLASSIFIER,
    DECODER,
    MASKED,
    Fields,
    flags,
    numbers_of,
    own,
    processor,
    timm_beside,
)
from sensorium.networks.swin import ShiftedWindows, Swin, clipped
from sensorium.published import usage
from sensorium.published.format import IMAGENET, Dropped, Entry, Format, Preparation, layers
from sensorium.published.source import Source

EPS = 1e-5
_BLOCK, _DOWN = "stages.{s}.blocks.{i}.", "stages.{s}.downsample."
MADE = Dropped(
    r".*(relative_position_index|relative_coords_table|attn_mask)", "they follow from the window and the image size"
)
TABLE, SCALE = "relative_position_bias_table", "logit_scale"


def sniffed(
    source: Source, stem: str, stage: Callable[[int], str], *, fc1: str, heads: tuple[str, int], biased: str
) -> dict[str, Any]:
    """The arguments of a Swin from its tensors, but for its windows. stem: name of its convolution. stage: of a stage's
    number, the beginning of its blocks' names. Names in a block: fc1, of the first layer of its Mlp; heads, of a tensor and
    of its dimension that counts the heads; biased, of a bias of queries."""
    width, colors, patch, across = source.shape(f"{stem}.weight", 4, "a Swin's patches are expected")
    if colors != 3 or patch != across:
        raise SensoriumError(
            f"{source.where}: '{stem}.weight' has {colors} input channels and patches of {patch}x{across}; only 3 channels "
            "and square patches are supported."
        )
    depths: list[int] = []
    while count := source.count(re.escape(stage(len(depths))) + r"(\d+)\."):
        depths.append(count)
    if not depths:
        raise SensoriumError(f"{source.where}: it has no blocks '{stage(0)}0'.")
    firsts, (name, dimension) = [f"{stage(s)}0." for s in range(len(depths))], heads
    dims = 3 if dimension == 0 else 2
    return {
        "depths": tuple(depths), "embed_dim": width, "patch": patch, "eps": EPS,
        "heads": tuple(source.shape(first + name, dims)[dimension] for first in firsts),
        "mlp_ratio": source.shape(f"{firsts[0]}{fc1}.weight", 2)[0] / width, "qkv_bias": firsts[0] + biased in source.state,
    }  # fmt: skip


def _windows(source: Source, stages: int, table: Callable[[int], str]) -> dict[str, Any]:
    """``windows`` from the tables of biases, by the stage's number."""
    return {"windows": tuple(_window(source, table(s)) for s in range(stages))}


def _window(source: Source, name: str) -> int:
    """The side of a window from the number of distances in it, (2 M - 1)^2."""
    rows = source.shape(name, 2)[0]
    side = math.isqrt(rows)
    if side * side != rows or side % 2 == 0:
        raise SensoriumError(f"{source.where}: '{name}' has {rows} rows, which are the distances of no square window.")
    return (side + 1) // 2


def usual_side(net: ShiftedWindows) -> int:
    """The image size in pixels whose last map is one window."""
    return net.strides[-1] * net.windows[-1]


def side_of(net: ShiftedWindows, whose: str, asked: Any = None) -> int:
    """An image size for which others build windows of these sides: ``asked`` if possible. Raises SensoriumError if there
    is none."""
    for side in (asked, usual_side(net)):
        if isinstance(side, int) and clipped(side, net.patch, max(net.windows), len(net.depths)) == net.windows:
            return side
    raise SensoriumError(
        f"{whose} Swin has windows no larger than its maps, and else equal; this network {net.windows}."
    )


def published(net: ShiftedWindows, whose: str) -> None:
    """SensoriumError for what no published Swin has."""
    if net.eps != EPS:
        raise SensoriumError(f"{whose} Swin has norms with an epsilon of {EPS:g}, this network of {net.eps:g}.")


# --- Hugging Face ---


def hf_numbers(source: Source) -> dict[str, Any]:
    """The arguments of a Swin in Hugging Face's configuration; one window for all stages."""
    for field, legal in (("hidden_act", "gelu"), ("num_channels", 3), ("use_absolute_embeddings", False)):
        source.only(field, legal)
    source.only("layer_norm_eps", EPS)
    depths = source.wholes("depths", (2, 2, 6, 2))
    counted = [source.count(rf"encoder\.layers\.{s}\.blocks\.(\d+)\.") for s in range(len(depths))]
    source.agree(list(depths), counted, "depths")
    heads = source.wholes("num_heads", (3, 6, 12, 24))
    source.agree(len(heads), len(depths), "the number of num_heads")
    return {
        "depths": depths, "embed_dim": source.whole("embed_dim", 96), "heads": heads, "eps": EPS,
        "windows": (source.whole("window_size", 7),) * len(depths), "patch": source.whole("patch_size", 4),
        "mlp_ratio": source.number("mlp_ratio", 4.0, low=0, high=1 << 10), "qkv_bias": source.flag("qkv_bias", True),
    }  # fmt: skip


def hf_config(net: ShiftedWindows, side: Any = None) -> dict[str, Any]:
    """Hugging Face's configuration of a Swin, for images of ``side`` pixels if its windows are built so."""
    return {
        "architectures": ["SwinModel"], "model_type": "swin", "num_channels": 3, "image_size": side_of(net, "Hugging Face's", side),
        "patch_size": net.patch, "embed_dim": net.embed_dim, "depths": list(net.depths), "num_heads": list(net.heads),
        "window_size": max(net.windows), "mlp_ratio": net.mlp_ratio, "qkv_bias": net.qkv_bias, "hidden_act": "gelu",
        "layer_norm_eps": EPS, "hidden_size": net.dim, "drop_path_rate": 0.0, "use_absolute_embeddings": False,
    }  # fmt: skip


def hf_files(config: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, dict[str, Any]]]:
    """``beside`` of Hugging Face's formats. config: of a network and an image size."""

    def beside(net: Any, how: Preparation) -> dict[str, dict[str, Any]]:
        return processor(net, how) | {"config.json": config(net, how.image_size or net.trained_size)}

    return beside


def hf_settle(net: ShiftedWindows, source: Source) -> None:
    """Keep the image size of the configuration, on which Hugging Face's shifts depend, if no processor tells another."""
    net.trained_size = net.trained_size or source.whole("image_size", 224)


def _hf_fits(net: ShiftedWindows) -> None:
    published(net, "Hugging Face's")
    if len(set(net.windows)) > 1:
        raise SensoriumError(f"Hugging Face's Swin has one window for all stages; this network {net.windows}.")


_HF_BLOCK = "encoder.layers.{s}.blocks.{i}."
_HF_SELF = _HF_BLOCK + "attention.self."
_HF_NAMES = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip

HF = Format(
    name="Hugging Face Swin",
    network=Swin,
    kinds=("swin",),
    keys=(
        r"embeddings\.patch_embeddings\.projection\.weight",
        r"encoder\.layers\.0\.blocks\.0\.layernorm_before\.weight",
    ),
    absent=(DECODER,),
    table=(
        Entry("stem.0.{kind}", "embeddings.patch_embeddings.projection.{kind}"),
        Entry("stem.1.{kind}", "embeddings.norm.{kind}"),
        Entry(_DOWN + "{rest}", "encoder.layers.{s-1}.downsample.{rest}"),
        Entry(_BLOCK + "attn.bias_table", _HF_SELF + TABLE),
        Entry(_BLOCK + "attn.logit_scale", _HF_SELF + SCALE),
        Entry(_BLOCK + "attn.mlp.{n}.{kind}", _HF_SELF + "continuous_position_bias_mlp.{n}.{kind}"),
        Entry(_BLOCK + "attn.q_bias", _HF_SELF + "query.bias"),
        Entry(_BLOCK + "attn.v_bias", _HF_SELF + "value.bias"),
        Entry(_BLOCK + "attn.qkv.{kind}", tuple(f"{_HF_SELF}{one}.{{kind}}" for one in ("query", "key", "value"))),
        *layers(_BLOCK, _HF_BLOCK, _HF_NAMES),
        Entry("norm.{kind}", "layernorm.{kind}"),
    ),
    spellings=((r"^swin(v2)?\.", ""),),  # if a head was saved with it
    dropped=(
        Dropped(r"classifier\.(weight|bias)", CLASSIFIER),
        Dropped(r"embeddings\.mask_token", MASKED),
        MADE,
    ),
    numbers=hf_numbers,
    normalization=IMAGENET,
    to="hf",
    usage=usage.features_by("found.pooler_output"),
    settle=hf_settle,
    fits=_hf_fits,
    config=hf_config,
    beside=hf_files(hf_config),
)


# --- timm, and the authors ---


def _table(merging: str) -> tuple[Entry, ...]:
    """merging: the number of the layer that has the merging of stage ``s``."""
    block = "layers.{s}.blocks.{i}."
    return (
        Entry("stem.0.{kind}", "patch_embed.proj.{kind}"),
        Entry("stem.1.{kind}", "patch_embed.norm.{kind}"),
        Entry(_DOWN + "{rest}", f"layers.{merging}.downsample.{{rest}}"),
        Entry(_BLOCK + "attn.bias_table", f"{block}attn.{TABLE}"),
        Entry(_BLOCK + "attn.mlp.{n}.{kind}", block + "attn.cpb_mlp.{n}.{kind}"),
        Entry(_BLOCK + "{rest}", block + "{rest}"),
        Entry("norm.{kind}", "norm.{kind}"),
    )


def _layered(source: Source, prefix: str = "") -> dict[str, Any]:
    """The arguments of a Swin from timm's or the authors' tensors."""
    found = sniffed(
        source, f"{prefix}patch_embed.proj", lambda s: f"{prefix}layers.{s}.blocks.", fc1="mlp.fc1",
        heads=(f"attn.{TABLE}", 1), biased="attn.qkv.bias",
    )  # fmt: skip
    return found | _windows(source, len(found["depths"]), lambda s: f"{prefix}layers.{s}.blocks.0.attn.{TABLE}")


def timm_arguments(source: Source) -> Source:
    """The arguments in timm's configuration, none of which may change what is computed."""
    arguments = source.within("model_args")
    for field, *legal in (
        ("act_layer", "gelu"),
        ("norm_layer", "layernorm", "layernorm2d"),
        ("global_pool", "avg", ""),
        ("always_partition", False),
    ):
        if arguments.config.get(field) is not None:
            arguments.only(field, *legal)
    return arguments


def _timm_numbers(source: Source) -> dict[str, Any]:
    if source.config.get("sensorium"):
        return own_numbers(source, "sensorium")
    timm_arguments(source)
    return _layered(source)


def timm_config(net: ShiftedWindows, side: Any = None) -> dict[str, Any]:
    """timm's configuration of a Swin without a head, for images of ``side`` pixels if its windows are built so."""
    arguments = {
        "img_size": side_of(net, "timm's", side), "patch_size": net.patch, "window_size": max(net.windows),
        "embed_dim": net.embed_dim, "depths": list(net.depths), "num_heads": list(net.heads), "mlp_ratio": net.mlp_ratio,
        "qkv_bias": net.qkv_bias, "num_classes": 0, "strict_img_size": False,
    }  # fmt: skip
    # a name that timm knows, overridden by the arguments
    name = "swin_tiny_patch4_window7_224"
    return {"architecture": name, "num_classes": 0, "model_args": arguments, "sensorium": numbers_of(net, FIELDS)}


def timm_fits(net: ShiftedWindows) -> None:
    """SensoriumError for what timm's Swin cannot hold."""
    published(net, "timm's")
    side_of(net, "timm's")


def timm_files(config: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, dict[str, Any]]]:
    """``beside`` of timm's formats. config: of a network and an image size."""

    def beside(net: Any, how: Preparation) -> dict[str, dict[str, Any]]:
        how = replace(how, image_size=side_of(net, "timm's", how.image_size or net.trained_size))
        return timm_beside(net, how, config(net, how.image_size))

    return beside


PATCHES = r"patch_embed\.proj\.weight"
AFTER = r"layers\.0\.downsample\.reduction\.weight"  # the merging after the blocks of the stage before

TIMM = Format(
    name="timm Swin",
    network=Swin,
    keys=(PATCHES, rf"layers\.0\.blocks\.0\.attn\.{TABLE}"),
    absent=(AFTER,),
    table=_table("{s}"),
    dropped=(Dropped(r"head\.fc\.(weight|bias)", CLASSIFIER), MADE),
    numbers=_timm_numbers,
    normalization=IMAGENET,
    to="timm",
    usage=usage.by_timm,
    fits=timm_fits,
    config=timm_config,
    beside=timm_files(timm_config),
)


AUTHORS = Format(
    name="authors' Swin",
    network=Swin,
    keys=(PATCHES, rf"layers\.0\.blocks\.0\.attn\.{TABLE}", AFTER),
    table=_table("{s-1}"),
    dropped=(Dropped(r"head\.(weight|bias)", CLASSIFIER), MADE),
    numbers=_layered,
    normalization=IMAGENET,
    fits=lambda net: published(net, "the authors'"),
    file="swin.pth",
    container="model",
)


# --- torchvision ---

_VISION_BLOCK = "features.{2*s+1}.{i}."


def _vision_numbers(source: Source) -> dict[str, Any]:
    found = sniffed(
        source, "features.0.0", lambda s: f"features.{2 * s + 1}.", fc1="mlp.0", heads=(f"attn.{TABLE}", 1),
        biased="attn.qkv.bias",
    )  # fmt: skip
    return found | _windows(source, len(found["depths"]), lambda s: f"features.{2 * s + 1}.0.attn.{TABLE}")


TORCHVISION = Format(
    name="torchvision Swin",
    network=Swin,
    keys=(r"features\.0\.0\.weight", rf"features\.1\.0\.attn\.({TABLE}|{SCALE})"),
    refused=((rf"features\.1\.0\.attn\.{SCALE}", "torchvision's Swin V2; take timm's or Hugging Face's file of it"),),
    table=(
        Entry("stem.0.{kind}", "features.0.0.{kind}"),
        Entry("stem.1.{kind}", "features.0.2.{kind}"),
        Entry(_DOWN + "{rest}", "features.{2*s}.{rest}"),
        Entry(_BLOCK + "attn.bias_table", f"{_VISION_BLOCK}attn.{TABLE}"),
        *layers(_BLOCK, _VISION_BLOCK, {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"}),
        Entry(_BLOCK + "{rest}", _VISION_BLOCK + "{rest}"),
        Entry("norm.{kind}", "norm.{kind}"),
    ),
    dropped=(Dropped(r"head\.(weight|bias)", CLASSIFIER), MADE),
    numbers=_vision_numbers,
    normalization=IMAGENET,
    fits=lambda net: published(net, "torchvision's"),
    file="swin.pth",
)  # fmt: skip


# --- ours ---

FIELDS: Fields = {
    **flags("qkv_bias"),
    **dict.fromkeys(("depths", "heads", "windows"), Source.wholes),
    **dict.fromkeys(("embed_dim", "patch"), Source.whole),
    "mlp_ratio": lambda source, name: source.number(name, low=0, high=1 << 10),
    "eps": Source.eps,
}


def own_numbers(source: Source, name: str = "numbers", fields: Fields = FIELDS) -> dict[str, Any]:
    """The arguments in our own files, and in what we write for timm."""
    numbers = source.arguments(name, fields)
    layer = "layers" if name == "sensorium" else "stages"
    counted = tuple(source.count(rf"{layer}\.{s}\.blocks\.(\d+)\.") for s in range(source.count(rf"{layer}\.(\d+)\.")))
    source.agree(numbers["depths"], counted, "depths")
    return numbers


OWN_KEY = r"stages\.0\.blocks\.0\.attn\."
OWN = own("Swin", Swin, "swin", FIELDS, key=OWN_KEY + "bias_table", numbers=own_numbers)

FORMATS: tuple[Format, ...] = (HF, TIMM, AUTHORS, TORCHVISION, OWN)
