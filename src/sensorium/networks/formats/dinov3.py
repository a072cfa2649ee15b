"""Formats of DINOv3 (Siméoni et al., 2025, arXiv:2508.10104): transformers' DINOv3ViTModel, timm's (its class ``Eva``), and ours.

Both libraries order the channels of a head [row, column, row, column]: a rotated pair is half a head apart. Ours have the
row's pairs first, so queries and keys are permuted, which their products don't see. Random shifts and scales of the
coordinates are of DINOv3's training and not read.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, zeros

from sensorium.base.reading import printable
from sensorium.errors import SensoriumError
from sensorium.networks.dinov3 import DINOv3
from sensorium.networks.formats.shared import (
    FEED,
    MASKED,
    POOLS,
    REGISTERS,
    TRANSFORMER_FIELDS,
    Fields,
    flags,
    own,
    processor,
    timm_beside,
)
from sensorium.networks.formats.timm_vit import TIMM_KEYS, timm_patch, timm_pool, timm_ratio
from sensorium.published import usage
from sensorium.published.format import IMAGENET, Change, Dropped, Entry, Format, layers
from sensorium.published.source import Source, shown

LICENSE = "DINOv3's weights are under the DINOv3 License (ai.meta.com/resources/models-and-libraries/dinov3-license)"
TIMM_EPS = 1e-5


def licensed(source: Source, said: str) -> None:
    """Tell the license of what is read."""
    warnings.warn(f"{printable(source.where)}: {said}", stacklevel=3)


# --- the order of channels ---


def _swapped(x: Tensor, heads: int) -> Tensor:
    """Channels of heads [h * 2 * 2 * d/4, ...], pair before axis <-> axis before pair."""
    return x.unflatten(0, (heads, 2, 2, -1)).transpose(1, 2).flatten(0, 3)


def _query(x: Tensor, network: Any) -> Tensor:
    return _swapped(x, network.heads)


def _queries_and_keys(x: Tensor, network: Any) -> Tensor:
    q, k, v = x.chunk(3)
    return torch.cat([_swapped(q, network.heads), _swapped(k, network.heads), v])


BIAS, PROJECTIONS = Change(_query, _query), Change(_queries_and_keys, _queries_and_keys)


# --- Hugging Face ---


def cut(source: Source, patch: int) -> int | tuple[int, int]:
    """Its image size without what the patches don't cover."""
    side = source.side("image_size")
    if min(side if isinstance(side, tuple) else (side,)) < patch:
        raise SensoriumError(f"{source.told}: image_size {shown(side, '')} is less than patch_size {patch}.")
    return side // patch * patch if isinstance(side, int) else (side[0] // patch * patch, side[1] // patch * patch)


def _hf_numbers(source: Source) -> dict[str, Any]:
    licensed(source, LICENSE)
    source.only("num_channels", 3)
    for name, usual in (("key_bias", False), ("proj_bias", True), ("mlp_bias", True)):
        source.only(name, usual)
    width, depth = source.whole("hidden_size"), source.whole("num_hidden_layers")
    source.agree(depth, source.count(r"layer\.(\d+)\."), "num_hidden_layers")
    gated, biased, patch = (
        source.flag("use_gated_mlp", False),
        source.flag("query_bias", True),
        source.whole("patch_size"),
    )
    source.only("value_bias", biased)
    if gated:
        source.word("hidden_act", ("silu",))
    else:
        source.only("hidden_act", "gelu")
    return {
        "image_size": cut(source, patch),
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "heads": source.whole("num_attention_heads"),
        "hidden": source.whole("intermediate_size"),
        "gated": gated,
        "biased": biased,
        "registers": source.whole("num_register_tokens"),
        "pool": source.word("sensorium_pool", POOLS, "cls"),
        "theta": source.number("rope_theta", 100.0, low=1e-3),
        "eps": source.eps("layer_norm_eps", 1e-5),
    }


def _published(network: DINOv3) -> None:
    if not network.registers or network.pool not in POOLS:
        raise SensoriumError("the published DINOv3 has registers, and its mean is of normed tokens.")


def _hf_config(network: DINOv3) -> dict[str, Any]:
    return {
        "architectures": ["DINOv3ViTModel"], "model_type": "dinov3_vit", "num_channels": 3,
        "hidden_size": network.dim, "num_hidden_layers": network.depth, "num_attention_heads": network.heads,
        "intermediate_size": network.hidden, "use_gated_mlp": network.gated,
        "hidden_act": "silu" if network.gated else "gelu", "image_size": network.image_size,
        "patch_size": network.patch_size, "layer_norm_eps": network.eps, "rope_theta": network.theta,
        "query_bias": network.biased, "key_bias": False, "value_bias": network.biased, "proj_bias": True,
        "mlp_bias": True, "num_register_tokens": network.registers, "pos_embed_rescale": None,
        "drop_path_rate": 0.0, "attention_dropout": 0.0, "sensorium_pool": network.pool,
    }  # fmt: skip


HF = Format(
    name="Hugging Face DINOv3",
    network=DINOv3,
    kinds=("dinov3_vit",),
    keys=(r"embeddings\.patch_embeddings\.weight", r"layer\.0\.layer_scale1\.lambda1"),
    table=(
        Entry("cls_token", "embeddings.cls_token"),
        Entry("reg_token", "embeddings.register_tokens"),
        Entry("patch_embed.proj.{kind}", "embeddings.patch_embeddings.{kind}"),
        Entry("blocks.{i}.ls{n}.gamma", "layer.{i}.layer_scale{n}.lambda1"),
        Entry("blocks.{i}.attn.q_bias", "layer.{i}.attention.q_proj.bias", BIAS),
        Entry("blocks.{i}.attn.v_bias", "layer.{i}.attention.v_proj.bias"),
        Entry(
            "blocks.{i}.attn.qkv.weight",
            tuple(f"layer.{{i}}.attention.{part}_proj.weight" for part in "qkv"),
            PROJECTIONS,
        ),
        *layers("blocks.{i}.", "layer.{i}.", {
            "norm1": "norm1",
            "attn.proj": "attention.o_proj",
            "norm2": "norm2",
            "mlp.fc1": "mlp.up_proj",
            "mlp.fc2": "mlp.down_proj",
            "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
            "mlp.down": "mlp.down_proj",
        }),
        Entry("norm.{kind}", "norm.{kind}"),
    ),
    spellings=((r"^model\.layer\.", "layer."),),  # of the modules, which a state dict has
    dropped=(Dropped("embeddings.mask_token", MASKED, made=lambda network: zeros(1, 1, network.dim)),),
    numbers=_hf_numbers,
    normalization=IMAGENET,
    to="hf",
    usage=usage.features_by("found.pooler_output"),
    fits=_published,
    config=_hf_config,
    beside=processor,
)  # fmt: skip


# --- timm ---

_GATED = "blocks.0.mlp.fc1_g.weight"
_HEADS = {4096: 32}  # of the 7B model; others' heads have 64 channels


def _timm_numbers(source: Source) -> dict[str, Any]:
    arguments = source.within("model_args")
    arguments.only("rope_type", "dinov3")
    arguments.only("rope_rotate_half", True)
    told = source.object("pretrained_cfg").get("license")
    other = isinstance(told, str) and not told.startswith("dinov3")
    licensed(source, f"these weights are under the license '{shown(told, '')}'" if other else LICENSE)
    width, patch = timm_patch(source)
    gated = _GATED in source.state
    heads = arguments.whole("num_heads", _HEADS.get(width, max(1, width // 64)))
    if arguments.config.get("img_size") is not None:
        size = cut(Source(source.where, {}, config={"image_size": arguments.config["img_size"]}), patch)
    else:
        size = 256 // patch * patch or patch  # timm's usual
    return {
        "image_size": size,
        "patch_size": patch,
        "width": width,
        "depth": source.count(r"blocks\.(\d+)\."),
        "heads": source.options.get("heads") or heads,
        "hidden": source.shape(_GATED if gated else "blocks.0.mlp.fc1.weight", 2)[0],
        "gated": gated,
        "biased": "blocks.0.attn.q_bias" in source.state,
        "registers": source.shape("reg_token", 3)[1],
        "pool": timm_pool(source),
        "theta": arguments.number("rope_temperature", 100.0, low=1e-3),
        "eps": TIMM_EPS,
    }


def _timm_fits(network: DINOv3) -> None:
    _published(network)
    if network.eps != TIMM_EPS:
        warnings.warn(
            f"timm's DINOv3 has norms with an epsilon of {TIMM_EPS:g}, which its files can't hold; this network's is "
            f"{network.eps:g}: its outputs in timm differ slightly",
            stacklevel=2,
        )


def _timm_config(network: DINOv3) -> dict[str, Any]:
    arguments = {
        "img_size": network.image_size, "patch_size": network.patch_size, "embed_dim": network.dim,
        "depth": network.depth, "num_heads": network.heads, "mlp_ratio": timm_ratio(network.dim, network.hidden),
        "swiglu_mlp": network.gated, "swiglu_align_to": int(network.gated), "qkv_bias": network.biased,
        "num_reg_tokens": network.registers, "rope_temperature": network.theta, "num_classes": 0,
        "global_pool": "token" if network.pool == "cls" else "avg",
    }  # fmt: skip
    return {"architecture": "vit_small_patch16_dinov3", "num_classes": 0, "model_args": arguments}


TIMM = Format(
    name="timm DINOv3",
    network=DINOv3,
    keys=(*TIMM_KEYS, r"blocks\.0\.gamma_1", r"reg_token", r"norm\.weight"),
    absent=(r"pos_embed",),
    table=(
        Entry("blocks.{i}.ls{n}.gamma", "blocks.{i}.gamma_{n}"),
        Entry("blocks.{i}.attn.q_bias", "blocks.{i}.attn.q_bias", BIAS),
        Entry("blocks.{i}.attn.qkv.weight", "blocks.{i}.attn.qkv.weight", PROJECTIONS),
        Entry("blocks.{i}.mlp.gate_up.{kind}", ("blocks.{i}.mlp.fc1_g.{kind}", "blocks.{i}.mlp.fc1_x.{kind}")),
        Entry("blocks.{i}.mlp.down.{kind}", "blocks.{i}.mlp.fc2.{kind}"),
        Entry("{rest}", "{rest}"),
    ),
    dropped=(Dropped(r"head\.(weight|bias)", "a classifier is specific to its training labels"),),
    numbers=_timm_numbers,
    normalization=IMAGENET,
    to="timm",
    usage=usage.by_timm,
    fits=_timm_fits,
    config=_timm_config,
    beside=lambda network, how: timm_beside(network, how, _timm_config(network)),
)


# --- ours ---

FIELDS: Fields = {
    **TRANSFORMER_FIELDS, **FEED, **REGISTERS, **flags("gated", "biased"),
    "pool": lambda source, name: source.word(name, POOLS),
    "theta": lambda source, name: source.number(name, low=1e-3),
}  # fmt: skip
OWN = own("DINOv3", DINOv3, "dinov3", FIELDS, IMAGENET)

FORMATS: tuple[Format, ...] = (HF, TIMM, OWN)
