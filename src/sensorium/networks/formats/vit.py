"""Formats of the ViT: Hugging Face's, timm's (and torch.hub's of DeiT, MAE and DINO, which have its names), and ours."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from sensorium.abilities import HasBackbone, SeesImages
from sensorium.errors import SensoriumError
from sensorium.networks.vit import BLOCK_PARTS, Pool, Positions, ViT
from sensorium.parts.feedforward import FeedForward
from sensorium.parts.positions.grid import Resampling
from sensorium.published.format import (
    HALF,
    IMAGENET,
    SAME,
    Change,
    Dropped,
    Entry,
    Format,
    Preparation,
    layers,
    under,
)
from sensorium.published.source import Source

CLASSIFIER = "a classifier is specific to its training labels"
MASKED = "only masked training uses it"
TIMM_EPS = 1e-6
POOLS = ("cls", "mean")  # after the final norm
WIDE = 1280  # ViT-H's width: the only usual one with heads of 80 channels


def vit_numbers(vit: ViT) -> dict[str, Any]:
    """The arguments that rebuild a ViT."""
    return {
        "image_size": vit.image_size, "patch_size": vit.patch_size, "width": vit.dim, "depth": vit.depth,
        "heads": vit.heads, "mlp_ratio": vit.mlp_ratio, "eps": vit.norm.eps, "qkv_bias": vit.qkv_bias,
        "registers": vit.registers, "pool": vit.pool, "positions": vit.positions, "resampling": vit.resampling,
        "parts": vit.parts,
    }  # fmt: skip


def published(vit: ViT, whose: str, has: Sequence[str] = ()) -> None:
    """Raises SensoriumError for a ViT with parts that the published one does not have; it ``has`` some."""
    parts = (*(["rope"] if vit.rope is not None else []), *(["fc_norm"] if vit.pool == "fc_norm" else []), *vit.parts)
    other = [part for part in parts if part not in has]
    if other:
        raise SensoriumError(f"{whose} ViT has no {', '.join(other)}.")


def plain(vit: ViT, whose: str) -> None:
    """Raises SensoriumError for a ViT with registers, or with parts that the published one does not have."""
    if vit.registers:
        raise SensoriumError(f"{whose} ViT has no register tokens.")
    published(vit, whose)


def feed_channels(vit: ViT) -> int:
    """Hidden channels of a block's feed-forward layer, plain or gated."""
    mlp: Any = vit.get_submodule("blocks.0.mlp")
    return mlp.down.in_features if isinstance(mlp, FeedForward) else mlp.fc1.out_features


def squares(source: Source) -> tuple[int, int]:
    """Image size and patch size of a configuration whose images are square; what the patches don't cover is cut off, as
    transformers does."""
    side, patch = source.side("image_size"), source.whole("patch_size")
    if isinstance(side, tuple):
        raise SensoriumError(
            f"{source.told}: {source.inside}image_size {side} is not supported; it must be one number."
        )
    if side < patch:
        raise SensoriumError(f"{source.told}: {source.inside}image_size {side} is less than patch_size {patch}.")
    return side // patch * patch, patch


def processor(network: Any, how: Preparation) -> dict[str, dict[str, Any]]:
    """transformers' preprocessor_config.json for the pixels of a backbone."""
    seen = network.backbone if isinstance(network, HasBackbone) else network
    own = network.normalization if isinstance(network, SeesImages) else None
    side = how.image_size or (seen.image_size if isinstance(seen, SeesImages) else None) or 224
    mean, std = how.normalization or own or HALF
    height, width = (side, side) if isinstance(side, int) else side
    told = {
        "image_processor_type": "ViTImageProcessor", "image_mean": list(mean), "image_std": list(std),
        "size": {"height": height, "width": width}, "do_normalize": True, "do_resize": True, "do_rescale": True,
    }  # fmt: skip
    return {"preprocessor_config.json": told}


# --- Hugging Face ---

HF_BLOCK = layers("", "", {
    "norm1": "layernorm_before",
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
})  # fmt: skip


def hf_blocks(ours: str, theirs: str) -> tuple[Entry, ...]:
    """The table of a stack of blocks."""
    return under(f"{ours}.{{i}}.", f"{theirs}.{{i}}.", HF_BLOCK)


HF_TABLE = (
    Entry("cls_token", "embeddings.cls_token"),
    Entry("pos_embed", "embeddings.position_embeddings"),
    Entry("patch_embed.proj.{kind}", "embeddings.patch_embeddings.projection.{kind}"),
    *hf_blocks("blocks", "encoder.layer"),
    Entry("norm.{kind}", "layernorm.{kind}"),
)
HF_KEYS = (r"embeddings\.patch_embeddings\.projection\.weight", r"encoder\.layer\.0\.layernorm_before\.weight")


def hf_numbers(source: Source, prefix: str = "") -> dict[str, Any]:
    """The arguments of a ViT that Hugging Face's configuration describes. prefix: of the encoder's names."""
    source.only("hidden_act", "gelu")
    source.only("num_channels", 3)
    width, depth = source.whole("hidden_size"), source.whole("num_hidden_layers")
    source.agree(depth, source.count(rf"{prefix}encoder\.layer\.(\d+)\."), "num_hidden_layers")
    return {
        "image_size": source.side("image_size"),
        "patch_size": source.whole("patch_size"),
        "width": width,
        "depth": depth,
        "heads": source.whole("num_attention_heads"),
        "mlp_ratio": source.whole("intermediate_size") / width,
        "eps": source.eps("layer_norm_eps", 1e-12),
        "qkv_bias": source.flag("qkv_bias", True),
    }


def hf_config(vit: ViT) -> dict[str, Any]:
    """Hugging Face's configuration of a ViT."""
    return {
        "architectures": ["ViTModel"], "model_type": "vit", "num_channels": 3, "hidden_size": vit.dim,
        "num_hidden_layers": vit.depth, "num_attention_heads": vit.heads,
        "intermediate_size": feed_channels(vit), "hidden_act": "gelu", "image_size": vit.image_size,
        "patch_size": vit.patch_size, "layer_norm_eps": vit.norm.eps, "qkv_bias": vit.qkv_bias,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "sensorium_pool": vit.pool,
    }  # fmt: skip


HF = Format(
    name="Hugging Face ViT",
    network=ViT,
    kinds=("vit",),
    keys=HF_KEYS,
    table=HF_TABLE,
    spellings=((r"^vit\.", ""),),  # if a head was saved with it
    dropped=(
        Dropped(r"pooler\.dense\.(weight|bias)", "the pooler is not part of the published features"),
        Dropped(r"classifier\.(weight|bias)", CLASSIFIER),
        Dropped(r"embeddings\.mask_token", MASKED),
        Dropped(r"decoder\.0\.(weight|bias)", MASKED),
    ),
    numbers=lambda source: hf_numbers(source) | {"pool": source.word("sensorium_pool", POOLS, "cls")},
    normalization=HALF,
    to="hf",
    fits=lambda vit: plain(vit, "Hugging Face's"),
    config=hf_config,
    beside=processor,
)


# --- timm: the names are ours ---


def _without(x: Tensor, vit: Any) -> Tensor:
    return torch.cat([x[:, :1], x[:, 1 + vit.registers :]], 1) if vit.registers else x


def _with(x: Tensor, vit: Any) -> Tensor:
    return torch.cat([x[:, :1], x.new_zeros(1, vit.registers, x.shape[2]), x[:, 1:]], 1) if vit.registers else x


# timm's registers have position embeddings, ours don't: zeros
TIMM_TABLE = (
    Entry("pos_embed", "pos_embed", Change(_without, _with)),
    Entry("blocks.{i}.mlp.gate_up.{kind}", "blocks.{i}.mlp.fc1.{kind}"),
    Entry("blocks.{i}.mlp.down.{kind}", "blocks.{i}.mlp.fc2.{kind}"),
    Entry("{rest}", "{rest}"),
)
TIMM_PARTS = ("swiglu", "layerscale")
SCALED = r"blocks\.0\.ls1\.gamma"
TIMM_KEYS = (r"patch_embed\.proj\.weight", r"blocks\.0\.attn\.qkv\.weight")
TIMM_REFUSED = (
    (r"norm_pre\.(weight|bias)", "a ViT with a norm before its blocks (CLIP's image tower), which ours does not have"),
    (r"dist_token", "a distilled DeiT, whose second class token ours does not have"),
)


def timm_numbers(source: Source) -> dict[str, Any]:
    """The arguments of a ViT from its tensors; heads from the configuration or the caller, else of 64 channels."""
    if source.config.get("sensorium"):
        numbers = own_numbers(source, "sensorium")
        timm_grid(source)
        return numbers
    arguments = source.within("model_args")
    if arguments.config.get("num_heads") is not None:
        arguments.whole("num_heads")
    pooled = arguments.config.get("global_pool", source.config.get("global_pool"))
    width, _, patch, across = source.shape("patch_embed.proj.weight", 4)
    if patch != across:
        raise SensoriumError(f"{source.where}: 'patch_embed.proj.weight' has patches of {patch}x{across}, not square.")
    heads = source.options.get("heads") or arguments.config.get("num_heads")
    hidden, inner = source.shape("blocks.0.mlp.fc1.weight", 2)[0], source.shape("blocks.0.mlp.fc2.weight", 2)[1]
    gated = hidden == 2 * inner  # of timm's gated layers only SwiGLU's is so in a published ViT
    scaled = "blocks.0.ls1.gamma" in source.state
    grid, _ = timm_grid(source)
    size = (grid[0] * patch, grid[1] * patch)
    return {
        "image_size": size[0] if size[0] == size[1] else size,
        "patch_size": patch,
        "width": width,
        "depth": source.count(r"blocks\.(\d+)\."),
        "heads": int(heads or (16 if width == WIDE else max(1, width // 64))),
        "mlp_ratio": 1.5 * inner / width if gated else hidden / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in source.state,
        "registers": source.shape("reg_token", 3)[1] if "reg_token" in source.state else 0,
        "pool": "mean" if pooled == "avg" else "cls",
        "parts": (*(["swiglu"] if gated else []), *(["layerscale"] if scaled else [])),
        "resampling": "antialias" if scaled else "bicubic",  # only timm's own code has these names
    }


def timm_grid(source: Source) -> tuple[tuple[int, int], int]:
    """Patches (rows, columns), and how many of the first positions belong to the class token and the registers."""
    for name in ("cls_token", "pos_embed"):
        if name not in source.state:
            raise SensoriumError(f"{source.where}: a ViT without '{name}', which ours needs.")
    places = source.shape("pos_embed", 3)[1]
    registers = source.shape("reg_token", 3)[1] if "reg_token" in source.state else 0
    arguments = source.within("model_args")
    size = None if arguments.config.get("img_size") is None else arguments.side("img_size")
    patch = source.shape("patch_embed.proj.weight", 4)[-1]
    ways = dict.fromkeys((1 + registers, 0, 1))  # timm's, timm's no_embed_class, DINOv2's
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        grid = (height // patch, width // patch)
        ways = {before: grid for before in ways if places - before == math.prod(grid)}
    else:
        side = {before: math.isqrt(max(0, places - before)) for before in ways}
        ways = {before: (n, n) for before, n in side.items() if n and n * n == places - before}
    if not ways:
        raise SensoriumError(
            f"{source.where}: 'pos_embed' has {places} positions, which is not a square grid plus a class token."
        )
    before, found = next(iter(ways.items()))
    return found, before


def timm_prepared(source: Source) -> Mapping[str, Tensor]:
    """Position embeddings converted to timm's usual layout, with those of registers added to the registers."""
    state, (_, before) = dict(source.state), timm_grid(source)
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    first, patches = state["pos_embed"][:, :before], state["pos_embed"][:, before:]
    missing = first.new_zeros(1, 1 + registers - before, first.shape[2])
    first = torch.cat([first, missing], 1)
    if registers:
        state["reg_token"] = state["reg_token"] + first[:, 1:]
        first = torch.cat([first[:, :1], torch.zeros_like(first[:, 1:])], 1)
    return state | {"pos_embed": torch.cat([first, patches], 1)}


def timm_ratio(width: int, hidden: int) -> float:
    """The ratio of which timm makes so many channels: it rounds down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def timm_config(vit: ViT) -> dict[str, Any]:
    """timm's configuration of a ViT without a head."""
    n, gated = vit_numbers(vit), "swiglu" in vit.parts
    arguments = {
        "img_size": n["image_size"], "patch_size": n["patch_size"], "embed_dim": n["width"], "depth": n["depth"],
        "num_heads": n["heads"], "mlp_ratio": timm_ratio(vit.dim, feed_channels(vit) * (2 if gated else 1)),
        "init_values": 1e-5 if "layerscale" in vit.parts else None, "qkv_bias": n["qkv_bias"], "reg_tokens": n["registers"],
        "num_classes": 0, "no_embed_class": False, "global_pool": "token" if vit.pool == "cls" else "avg",
        "fc_norm": vit.pool == "fc_norm",
    }  # fmt: skip
    # names that timm knows; every argument is overridden but the giant's feed-forward layer
    name = "vit_giant_patch14_dinov2" if gated else "vit_base_patch16_224"
    return {"architecture": name, "num_classes": 0, "model_args": arguments, "sensorium": n}


def _timm_fits(vit: ViT) -> None:
    published(vit, "timm's", TIMM_PARTS)
    timm_eps(vit)


def timm_eps(vit: ViT) -> None:
    """Warn of norms with another epsilon than timm's."""
    if vit.norm.eps != TIMM_EPS:
        warnings.warn(
            f"timm's norms have an epsilon of {TIMM_EPS:g}, which its files can't hold; this network's is "
            f"{vit.norm.eps:g}: its outputs in timm differ slightly",
            stacklevel=2,
        )


def _timm_beside(vit: ViT, how: Preparation) -> dict[str, dict[str, Any]]:
    return timm_beside(vit, how, timm_config(vit))


def timm_beside(network: Any, how: Preparation, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The processor's file, and timm's configuration with the same numbers: ``timm.create_model("local-dir:...")``."""
    files = processor(network, how)
    told = files["preprocessor_config.json"]
    side = told["size"]["height"], told["size"]["width"]
    seen = {"input_size": [3, *side], "mean": told["image_mean"], "std": told["image_std"], "num_classes": 0}
    return files | {"config.json": config | {"pretrained_cfg": seen}}


TIMM = Format(
    name="timm ViT",
    network=ViT,
    keys=TIMM_KEYS,
    absent=(  # MAE's, DINOv2's, fc_norm.py's, and what timm calls EVA
        r"decoder_embed\.weight",
        (SCALED, r"mask_token"),
        r"fc_norm\.weight",
        r"blocks\.0\.(gamma_1|attn\.q_bias)",
    ),
    refused=TIMM_REFUSED,
    table=TIMM_TABLE,
    dropped=(
        Dropped(r"head\.(weight|bias)", CLASSIFIER),
        Dropped(r"pre_logits\.fc\.(weight|bias)", CLASSIFIER),
        Dropped(r"mask_token", MASKED),
    ),
    numbers=timm_numbers,
    prepare=timm_prepared,
    normalization=IMAGENET,
    to="timm",
    fits=_timm_fits,
    config=timm_config,
    beside=_timm_beside,
)


# --- ours ---


VIT_FIELDS: dict[str, Callable[[Source, str], Any]] = {
    **dict.fromkeys(("patch_size", "width", "depth", "heads"), Source.whole),
    **dict.fromkeys(("qkv_bias", "antialias"), Source.flag),  # antialias: of older files, now resampling
    "image_size": Source.side,
    "mlp_ratio": lambda source, name: source.number(name, low=0, high=1 << 10),
    "eps": Source.eps,
    "registers": lambda source, name: source.whole(name, low=0),
    "pool": lambda source, name: source.word(name, get_args(Pool)),
    "positions": lambda source, name: source.word(name, get_args(Positions)),
    "resampling": lambda source, name: source.word(name, get_args(Resampling)),
    "parts": lambda source, name: source.words(name, BLOCK_PARTS),
}


def own_numbers(
    source: Source, name: str = "numbers", fields: Mapping[str, Callable[[Source, str], Any]] = VIT_FIELDS
) -> dict[str, Any]:
    """The arguments in our own files."""
    numbers = source.arguments(name, fields)
    source.agree(numbers["depth"], source.count(r"blocks\.(\d+)\."), "depth")
    if numbers.pop("antialias", False):
        numbers["resampling"] = "antialias"
    return numbers


OWN = Format(
    name="Sensorium ViT",
    network=ViT,
    kinds=("sensorium_vit",),
    keys=(r"patch_embed\.proj\.weight",),
    table=(Entry("{rest}", "{rest}", SAME),),
    numbers=own_numbers,
    normalization=HALF,
    to="safetensors",
    config=lambda vit: {"model_type": "sensorium_vit", "numbers": vit_numbers(vit)},
    beside=processor,
)

FORMATS: tuple[Format, ...] = (HF, TIMM, OWN)
