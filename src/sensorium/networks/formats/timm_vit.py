"""timm's format of a ViT with class token, whose names are ours, and what others of its formats are made of: ``vit.py`` lists
it; with a norm of the mean ``fc_norm.py``, without class token ``mean_vit.py``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.networks.formats.shared import (
    CLASSIFIER,
    MASKED,
    VIT_FIELDS,
    feed_channels,
    numbers_of,
    own_numbers,
    published,
    timm_beside,
)
from sensorium.networks.vit import ViT
from sensorium.published import usage
from sensorium.published.format import IMAGENET, Change, Dropped, Entry, Format, Preparation
from sensorium.published.source import Source, shown

TIMM_EPS = 1e-6
WIDE = (1152, 1280, 1408, 1664)  # of So400m, ViT-H, ViT-g and ViT-G: 16 heads; others' have 64 channels


def _without(x: Tensor, vit: Any) -> Tensor:
    return torch.cat([x[:, :1], x[:, 1 + vit.registers :]], 1) if vit.registers else x


def _with(x: Tensor, vit: Any) -> Tensor:
    return torch.cat([x[:, :1], x.new_zeros(1, vit.registers, x.shape[2]), x[:, 1:]], 1) if vit.registers else x


# theirs have positions of registers, ours don't: zeros
PLACES = Change(_without, _with)
TIMM_TABLE = (
    Entry("pos_embed", "pos_embed", PLACES),
    Entry("blocks.{i}.mlp.gate_up.{kind}", "blocks.{i}.mlp.fc1.{kind}"),
    Entry("blocks.{i}.mlp.down.{kind}", "blocks.{i}.mlp.fc2.{kind}"),
    Entry("{rest}", "{rest}"),
)
TIMM_ACTIVATIONS = ("gelu_tanh", "quick_gelu")  # timm's words are ours
TIMM_PARTS = ("swiglu", "layerscale", *TIMM_ACTIVATIONS)
# timm's models whose name tells another activation than GELU
QUICK = "quickgelu"
TANH = (
    "vit_base_patch32_siglip", "vit_large_patch16_siglip_512", "vit_large_patch16_siglip_gap_512",
    "vit_so400m_patch16_siglip", "vit_giantopt_patch16_siglip",
)  # fmt: skip
SCALED = r"blocks\.0\.ls1\.gamma"
TIMM_KEYS = (r"patch_embed\.proj\.weight", r"blocks\.0\.attn\.qkv\.weight")
TIMM_REFUSED = (
    (r"norm_pre\.(weight|bias)", "a ViT with a norm before its blocks, but not CLIP's image tower"),
    (r"attn_pool\..+", "a ViT whose feature is pooled by attention, which ours does not have"),
)


def timm_numbers(source: Source) -> dict[str, Any]:
    """The arguments of a ViT from its tensors; heads from the configuration or the caller, else of 64 channels."""
    if source.config.get("sensorium"):
        numbers = own_numbers(source, "sensorium")
        timm_grid(source)
        return numbers
    return timm_shapes(source, timm_grid(source)[0]) | {"pool": timm_pool(source)}


def timm_shapes(source: Source, grid: tuple[int, int]) -> dict[str, Any]:
    """Those of the arguments that the tensors of its names tell, for a ``grid`` of positions."""
    arguments = source.within("model_args")
    if arguments.config.get("num_heads") is not None:
        arguments.whole("num_heads")
    width, patch = timm_patch(source)
    heads = source.options.get("heads") or arguments.config.get("num_heads")
    hidden, inner = source.shape("blocks.0.mlp.fc1.weight", 2)[0], source.shape("blocks.0.mlp.fc2.weight", 2)[1]
    gated = hidden == 2 * inner  # of timm's gated layers only SwiGLU's is so in a published ViT
    scaled = "blocks.0.ls1.gamma" in source.state
    parts = (*(["swiglu"] if gated else timm_activation(source)), *(["layerscale"] if scaled else []))
    size = (grid[0] * patch, grid[1] * patch)
    return {
        "image_size": size[0] if size[0] == size[1] else size,
        "patch_size": patch,
        "width": width,
        "depth": source.count(r"blocks\.(\d+)\."),
        "heads": int(heads or (16 if width in WIDE else max(1, width // 64))),
        "mlp_ratio": 1.5 * inner / width if gated else hidden / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in source.state,
        "registers": source.shape("reg_token", 3)[1] if "reg_token" in source.state else 0,
        "parts": parts,
        # the code of DeiT and others, which has these names too, does it otherwise
        "resampling": "antialias" if scaled or "architecture" in source.config else "bicubic",
    }


def timm_patch(source: Source) -> tuple[int, int]:
    """The width, and the side of a patch, which must be square."""
    width, _, patch, across = source.shape("patch_embed.proj.weight", 4)
    if patch != across:
        raise SensoriumError(f"{source.where}: 'patch_embed.proj.weight' has patches of {patch}x{across}, not square.")
    return width, patch


def timm_pool(source: Source) -> str:
    """How timm's configuration pools normed tokens, "avg" or the class token, which is the default."""
    pooled = source.within("model_args").config.get("global_pool", source.config.get("global_pool"))
    if pooled not in (None, "", "token", "avg"):
        raise SensoriumError(
            f"{source.told}: global_pool {shown(pooled)} is not supported; it must be 'token' or 'avg'."
        )
    return "mean" if pooled == "avg" else "cls"


def timm_activation(source: Source) -> list[str]:
    """The part that is the activation that timm's configuration says, or its model's name; none for GELU."""
    arguments, name = source.within("model_args"), source.config.get("architecture")
    said = "gelu_tanh" if str(name).startswith(TANH) else "quick_gelu" if QUICK in str(name) else "gelu"
    word = arguments.word("act_layer", ("gelu", *TIMM_ACTIVATIONS), said)
    return [word] if word in TIMM_ACTIVATIONS else []


def timm_grid(source: Source, first: int = 1) -> tuple[tuple[int, int], int]:
    """Patches (rows, columns), and how many of the positions are before theirs: of the ``first`` (class) tokens and of the
    registers."""
    for name in (*(["cls_token"] if first else []), "pos_embed"):
        if name not in source.state:
            raise SensoriumError(f"{source.where}: a ViT without '{name}', which ours needs.")
    places = source.shape("pos_embed", 3)[1]
    registers = source.shape("reg_token", 3)[1] if "reg_token" in source.state else 0
    arguments = source.within("model_args")
    size = None if arguments.config.get("img_size") is None else arguments.side("img_size")
    patch = source.shape("patch_embed.proj.weight", 4)[-1]
    ways = dict.fromkeys((first + registers, 0, first))  # timm's, timm's no_embed_class, DINOv2's
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        grid = (height // patch, width // patch)
        ways = {before: grid for before in ways if places - before == math.prod(grid)}
    else:
        side = {before: math.isqrt(max(0, places - before)) for before in ways}
        ways = {before: (n, n) for before, n in side.items() if n and n * n == places - before}
    if not ways:
        raise SensoriumError(
            f"{source.where}: 'pos_embed' has {places} positions, which is not a square grid{' plus a class token' * first}."
        )
    before, found = next(iter(ways.items()))
    return found, before


def timm_prepared(source: Source) -> Mapping[str, Tensor]:
    """Position embeddings converted to timm's usual layout, with those of registers added to the registers."""
    return folded(source.state, timm_grid(source)[1])


def folded(
    given: Mapping[str, Tensor], before: int, registered: str = "reg_token", placed: str = "pos_embed"
) -> dict[str, Tensor]:
    """Tensors with one position for each token, zero for registers, theirs added to them; ``before``: of class token and
    registers there were."""
    state = dict(given)
    registers = state[registered].shape[1] if registered in state else 0
    first, patches = state[placed][:, :before], state[placed][:, before:]
    missing = first.new_zeros(1, 1 + registers - before, first.shape[2])
    first = torch.cat([first, missing], 1)
    if registers:
        state[registered] = state[registered] + first[:, 1:]
        first = torch.cat([first[:, :1], torch.zeros_like(first[:, 1:])], 1)
    return state | {placed: torch.cat([first, patches], 1)}


def timm_ratio(width: int, hidden: int) -> float:
    """The ratio of which timm makes so many channels: it rounds down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def timm_config(vit: Any, numbers: dict[str, Any] | None = None) -> dict[str, Any]:
    """timm's configuration of a ViT without a head; ``numbers`` are the arguments that rebuild it."""
    n, gated = numbers or numbers_of(vit, VIT_FIELDS), "swiglu" in vit.parts
    arguments = {
        **({} if gated else {"act_layer": next((part for part in vit.parts if part in TIMM_ACTIVATIONS), None)}),
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


def timm_eps(vit: Any) -> None:
    """Warn of norms with another epsilon than timm's."""
    if vit.norm.eps != TIMM_EPS:
        warnings.warn(
            f"timm's norms have an epsilon of {TIMM_EPS:g}, which its files can't hold; this network's is "
            f"{vit.norm.eps:g}: its outputs in timm differ slightly",
            stacklevel=2,
        )


def _timm_beside(vit: ViT, how: Preparation) -> dict[str, dict[str, Any]]:
    return timm_beside(vit, how, timm_config(vit))


TIMM = Format(
    name="timm ViT",
    network=ViT,
    keys=(*TIMM_KEYS, r"cls_token"),
    absent=(  # MAE's, DINOv2's, fc_norm.py's, what timm calls EVA and BEiT, CLIP's
        r"decoder_embed\.weight",
        (SCALED, r"mask_token"),
        r"fc_norm\.weight",
        r"blocks\.0\.(gamma_1|attn\.q_bias|attn\.relative_position_bias_table)",
        r"rel_pos_bias\..+",
        r"norm_pre\.weight",
    ),
    refused=TIMM_REFUSED,
    table=TIMM_TABLE,
    spellings=((r"^dist_token$", "reg_token"),),  # DeiT's second class token: one more that is no patch's
    dropped=(
        Dropped(r"head(_dist)?\.(weight|bias)", CLASSIFIER),
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
    usage=usage.by_timm,
)
