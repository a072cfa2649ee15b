"""Formats of DINOv2 (Oquab et al., 2024, arXiv:2304.07193), also with registers (Darcet et al., 2024, arXiv:2309.16588):
transformers' Dinov2Model and Dinov2WithRegistersModel, and the state dicts of the authors' code
(facebookresearch/dinov2).

The network is a ViT with LayerScale, the giant one also with SwiGLU. Published weights have patches of 14 pixels and
positions of 37 x 37 of them (518 pixels), so that at any usual image size positions are resampled, and each code does it
in its own way:
    authors        by a factor of (new + 0.1) / old;  with registers by size, antialiased
    transformers   by size;                           with registers by size, antialiased
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, zeros

from sensorium.errors import SensoriumError
from sensorium.networks.formats.shared import (
    CLASSIFIER,
    MASKED,
    POOLS,
    feed_channels,
    pooled,
    processor,
    published,
    squares,
)
from sensorium.networks.formats.timm_vit import SCALED, TIMM, TIMM_KEYS, timm_numbers
from sensorium.networks.vit import ViT
from sensorium.published import usage
from sensorium.published.format import IMAGENET, Dropped, Entry, Format, Preparation, layers
from sensorium.published.source import Source

PARTS = ("swiglu", "layerscale")
RATIOS = range(1, 65)  # transformers' mlp_ratio is an integer


def _gated(hidden: int) -> int:
    """Channels of SwiGLU in place of a plain layer's: two thirds, rounded up to a multiple of 8."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def _masked(name: str) -> Dropped:
    """The token of masked patches, which both codes expect in a file."""
    return Dropped(name, MASKED, made=lambda vit: zeros(1, vit.dim))


def _scaled(network: Any) -> Any:
    """``of``: a ViT with LayerScale; others have formats of their own."""
    return network if isinstance(network, ViT) and "layerscale" in network.parts else None


# --- Hugging Face ---

_REGISTERED = "dinov2_with_registers"


def _hf_numbers(source: Source) -> dict[str, Any]:
    source.only("num_channels", 3)
    source.only("hidden_act", "gelu")
    width, depth, gated = (
        source.whole("hidden_size"),
        source.whole("num_hidden_layers"),
        source.flag("use_swiglu_ffn", False),
    )
    source.agree(depth, source.count(r"encoder\.layer\.(\d+)\."), "num_hidden_layers")
    hidden = int(width * source.number("mlp_ratio", 4, low=0, high=1 << 10))
    size, patch = squares(source)
    registers = source.whole("num_register_tokens", 4) if source.config.get("model_type") == _REGISTERED else 0
    return {
        "image_size": size,
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "heads": source.whole("num_attention_heads"),
        "mlp_ratio": 1.5 * _gated(hidden) / width if gated else hidden / width,
        "eps": source.eps("layer_norm_eps", 1e-6),
        "qkv_bias": source.flag("qkv_bias", True),
        "registers": registers,
        "pool": source.word("sensorium_pool", POOLS, "cls"),
        "parts": PARTS if gated else ("layerscale",),
        "resampling": "antialias" if registers else "bicubic",
    }


def _ratio(vit: ViT) -> int | None:
    """Their ratio of the channels of a feed-forward layer; None if no integer gives them."""
    channels = feed_channels(vit)
    found = ((r, _gated(r * vit.dim) if "swiglu" in vit.parts else r * vit.dim) for r in RATIOS)
    return next((r for r, hidden in found if hidden == channels), None)


def _hf_fits(vit: ViT) -> None:
    published(vit, "Hugging Face's DINOv2", PARTS)
    if not isinstance(vit.image_size, int):
        raise SensoriumError(f"Hugging Face's DINOv2 has square images only; this one has {vit.grid} patches.")
    if _ratio(vit) is None:
        raise SensoriumError(
            f"Hugging Face's DINOv2 has feed-forward layers of a whole multiple of the width; this network's has "
            f"{feed_channels(vit)} channels, and a width of {vit.dim}."
        )


def _hf_config(vit: ViT) -> dict[str, Any]:
    usual = "antialias" if vit.registers else "bicubic"
    if vit.resampling != usual:
        warnings.warn(
            f"transformers resamples this network's positions otherwise ('{usual}', not '{vit.resampling}'): there its "
            f"features of images of other sizes than {vit.image_size} differ slightly",
            stacklevel=2,
        )
    told = {
        "architectures": ["Dinov2WithRegistersModel" if vit.registers else "Dinov2Model"],
        "model_type": _REGISTERED if vit.registers else "dinov2", "num_channels": 3, "hidden_size": vit.dim,
        "num_hidden_layers": vit.depth, "num_attention_heads": vit.heads, "mlp_ratio": _ratio(vit),
        "use_swiglu_ffn": "swiglu" in vit.parts, "hidden_act": "gelu", "image_size": vit.image_size,
        "patch_size": vit.patch_size, "layer_norm_eps": vit.norm.eps, "qkv_bias": vit.qkv_bias, "drop_path_rate": 0.0,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "sensorium_pool": vit.pool,
    }  # fmt: skip
    return told | ({"num_register_tokens": vit.registers} if vit.registers else {})


def _hf_usage(vit: ViT, how: Preparation) -> str:
    return usage.features_by(pooled(vit.pool, 1 + vit.registers))(vit, how)


HF = Format(
    name="Hugging Face DINOv2",
    network=ViT,
    kinds=("dinov2", _REGISTERED),
    keys=(r"embeddings\.patch_embeddings\.projection\.weight", r"encoder\.layer\.0\.layer_scale1\.lambda1"),
    table=(
        Entry("cls_token", "embeddings.cls_token"),
        Entry("reg_token", "embeddings.register_tokens"),
        Entry("pos_embed", "embeddings.position_embeddings"),
        Entry("patch_embed.proj.{kind}", "embeddings.patch_embeddings.projection.{kind}"),
        Entry("blocks.{i}.ls{n}.gamma", "encoder.layer.{i}.layer_scale{n}.lambda1"),
        *layers("blocks.{i}.", "encoder.layer.{i}.", {
            "norm1": "norm1",
            "attn.qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
            "attn.proj": "attention.output.dense",
            "norm2": "norm2",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
            "mlp.gate_up": "mlp.weights_in",
            "mlp.down": "mlp.weights_out",
        }),
        Entry("norm.{kind}", "layernorm.{kind}"),
    ),
    spellings=((r"^dinov2(_with_registers)?\.", ""),),  # if a head was saved with it
    dropped=(_masked("embeddings.mask_token"), Dropped(r"classifier\.(weight|bias)", CLASSIFIER)),
    numbers=_hf_numbers,
    normalization=IMAGENET,
    to="hf",
    of=_scaled,
    fits=_hf_fits,
    config=_hf_config,
    beside=processor,
    usage=_hf_usage,
)  # fmt: skip


# --- the authors' state dicts ---


def _authors_numbers(source: Source) -> dict[str, Any]:
    """Those of timm's names, but for three. Positions are of the class token and of a square of patches."""
    numbers = timm_numbers(replace(source, state=_timms(source.state), config={}))
    registers = source.shape("register_tokens", 3)[1] if "register_tokens" in source.state else 0
    return numbers | {"registers": registers, "resampling": "antialias" if registers else "offset"}


def _timms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With timm's names of a gated feed-forward layer."""
    return {name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): t for name, t in state.items()}


AUTHORS = replace(
    TIMM,
    name="authors' DINOv2",
    keys=(*TIMM_KEYS, SCALED, r"mask_token"),
    absent=(),
    table=(
        Entry("reg_token", "register_tokens"),
        Entry("blocks.{i}.mlp.gate_up.{kind}", "blocks.{i}.mlp.w12.{kind}"),
        Entry("blocks.{i}.mlp.down.{kind}", "blocks.{i}.mlp.w3.{kind}"),
        Entry("{rest}", "{rest}"),
    ),
    spellings=((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),),  # training code divides the blocks into chunks
    dropped=(_masked("mask_token"),),
    numbers=_authors_numbers,
    prepare=None,
    to="",
    of=_scaled,
    fits=lambda vit: published(vit, "the authors' DINOv2", PARTS),
    config=None,
    beside=None,
    file="dinov2.pth",
)

FORMATS: tuple[Format, ...] = (HF, AUTHORS)
