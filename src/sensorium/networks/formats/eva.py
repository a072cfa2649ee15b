"""Formats of EVA and EVA-02 (Fang et al., 2023, arXiv:2211.07636, arXiv:2303.11331): timm's (its class ``Eva``), and ours.

timm rotates adjacent channels, ours are a quarter of a head apart: queries and keys are permuted, which their products don't
see. Its larger models have three projections in place of one, and a norm inside the feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.networks.eva import EVA
from sensorium.networks.formats.clip_vision import OPENAI
from sensorium.networks.formats.shared import (
    CLASSIFIER,
    FEED,
    MASKED,
    POOL,
    TRANSFORMER_FIELDS,
    Fields,
    flags,
    own,
    timm_beside,
)
from sensorium.networks.formats.timm_vit import (
    TIMM_EPS,
    TIMM_KEYS,
    WIDE,
    timm_eps,
    timm_grid,
    timm_patch,
    timm_pool,
    timm_ratio,
)
from sensorium.published import usage
from sensorium.published.format import Change, Dropped, Entry, Format, Preparation
from sensorium.published.source import Source, shown

FC_NORM = "fc_norm"
REFERENCE = 16  # rows and columns of every published EVA-02's rotations
POST_NORM = "eva02_enormous"  # timm's models of another block, whose tensors have the same names


# --- the order of channels: of each axis, adjacent pairs <-> halves ---


def _halves(x: Tensor, network: Any) -> Tensor:
    return x.unflatten(0, (network.heads, 2, -1, 2)).transpose(2, 3).flatten(0, 3)


def _pairs(x: Tensor, network: Any) -> Tensor:
    return x.unflatten(0, (network.heads, 2, 2, -1)).transpose(2, 3).flatten(0, 3)


def _both(one: Callable[[Tensor, Any], Tensor]) -> Callable[[Tensor, Any], Tensor]:
    """A change of queries and keys in a product of queries, keys and values."""

    def change(x: Tensor, network: Any) -> Tensor:
        q, k, v = x.chunk(3)
        return torch.cat([one(q, network), one(k, network), v])

    return change


BIAS, PROJECTIONS = Change(_halves, _pairs), Change(_both(_halves), _both(_pairs))

# --- timm ---

_AT = "blocks.{i}."


def _numbers(source: Source) -> dict[str, Any]:
    arguments, name = source.within("model_args"), str(source.config.get("architecture"))
    arguments.only("use_post_norm", False)
    if name.startswith(POST_NORM):
        raise SensoriumError(f"{source.told}: architecture {shown(name)} norms after its blocks, which ours does not.")
    arguments.only("rope_type", "cat", None)
    width, patch = timm_patch(source)
    split = "blocks.0.attn.q_proj.weight" in source.state
    first = source.shape("blocks.0.mlp.fc1_g.weight" if split else "blocks.0.mlp.fc1.weight", 2)[0]
    hidden = source.shape("blocks.0.mlp.fc2.weight", 2)[1]
    gated = split or first == 2 * hidden
    rotated = arguments.flag("use_rot_pos_emb", gated)
    (rows, columns), _ = timm_grid(source)
    heads = arguments.whole("num_heads", 16 if width in WIDE else max(1, width // 64))
    reference = arguments.side("ref_feat_shape", REFERENCE)
    if not isinstance(reference, int):
        raise SensoriumError(
            f"{source.told}: model_args.ref_feat_shape {reference} is not supported; it must be square."
        )
    return {
        "image_size": rows * patch if rows == columns else (rows * patch, columns * patch),
        "patch_size": patch,
        "width": width,
        "depth": source.count(r"blocks\.(\d+)\."),
        "heads": source.options.get("heads") or heads,
        "hidden": hidden,
        "gated": gated,
        "reference": reference if rotated else 0,
        "sub_norm": split,
        "inner_norm": "blocks.0.attn.norm.weight" in source.state,
        "pool": timm_pool(source),
        "eps": TIMM_EPS,
    }


def _config(network: EVA) -> dict[str, Any]:
    arguments = {
        "img_size": network.image_size, "patch_size": network.patch_size, "embed_dim": network.dim,
        "depth": network.depth, "num_heads": network.heads, "mlp_ratio": timm_ratio(network.dim, network.hidden),
        "swiglu_mlp": network.gated, "scale_mlp": network.sub_norm, "qkv_fused": not network.sub_norm,
        "scale_attn_inner": network.inner_norm, "use_rot_pos_emb": network.reference > 0,
        "ref_feat_shape": [network.reference or REFERENCE] * 2, "use_fc_norm": network.pool == FC_NORM,
        "global_pool": "token" if network.pool == "cls" else "avg", "num_classes": 0,
    }  # fmt: skip
    return {"architecture": "eva02_tiny_patch14_224", "num_classes": 0, "model_args": arguments}


def _beside(network: EVA, how: Preparation) -> dict[str, dict[str, Any]]:
    return timm_beside(network, how, _config(network))


def _of(split: bool, mean: bool) -> Callable[[Any], Any]:
    def of(network: Any) -> Any:
        right = isinstance(network, EVA) and network.sub_norm is split and (network.pool == FC_NORM) is mean
        return network if right else None

    return of


_INNER = (
    Entry(f"{_AT}attn.proj.0.{{kind}}", f"{_AT}attn.norm.{{kind}}"),
    Entry(f"{_AT}attn.proj.1.{{kind}}", f"{_AT}attn.proj.{{kind}}"),
    Entry(f"{_AT}mlp.down.0.{{kind}}", f"{_AT}mlp.norm.{{kind}}"),
    Entry(f"{_AT}mlp.down.1.{{kind}}", f"{_AT}mlp.fc2.{{kind}}"),
)
_FUSED = (
    *_INNER,
    Entry(f"{_AT}attn.qkv.weight", f"{_AT}attn.qkv.weight", PROJECTIONS),
    Entry(f"{_AT}attn.q_bias", f"{_AT}attn.q_bias", BIAS),
    Entry(f"{_AT}mlp.gate_up.{{kind}}", f"{_AT}mlp.fc1.{{kind}}"),
    Entry(f"{_AT}mlp.down.{{kind}}", f"{_AT}mlp.fc2.{{kind}}"),
)
_SPLIT = (
    *_INNER,
    Entry(f"{_AT}attn.qkv.weight", tuple(f"{_AT}attn.{part}_proj.weight" for part in "qkv"), PROJECTIONS),
    Entry(f"{_AT}attn.q_bias", f"{_AT}attn.q_proj.bias", BIAS),
    Entry(f"{_AT}attn.v_bias", f"{_AT}attn.v_proj.bias"),
    Entry(f"{_AT}mlp.gate_up.{{kind}}", (f"{_AT}mlp.fc1_g.{{kind}}", f"{_AT}mlp.fc1_x.{{kind}}")),
)
_REST, _MEAN = Entry("{rest}", "{rest}"), Entry("norm.{kind}", "fc_norm.{kind}")
_OTHERS = (r"blocks\.0\.(gamma_1|attn\.relative_position_bias_table)", r"rel_pos_bias\..+", r"norm_pre\.weight")

TIMM = Format(
    name="timm EVA",
    network=EVA,
    keys=(*TIMM_KEYS, r"blocks\.0\.attn\.q_bias", r"pos_embed"),
    absent=(r"fc_norm\.weight", *_OTHERS),
    table=(*_FUSED, _REST),
    dropped=(
        Dropped(r"mask_token", MASKED),
        Dropped(r"lm_head\.(weight|bias)", MASKED),
        Dropped(r"head\.(weight|bias)", CLASSIFIER),
    ),
    numbers=_numbers,
    normalization=OPENAI,
    to="timm",
    usage=usage.by_timm,
    of=_of(split=False, mean=False),
    fits=timm_eps,
    config=_config,
    beside=_beside,
)
TIMM_MEAN = replace(
    TIMM,
    name="timm EVA with fc_norm",
    keys=(*TIMM.keys, r"fc_norm\.weight"),
    absent=_OTHERS,
    table=(*_FUSED, _MEAN, _REST),
    numbers=lambda source: _numbers(source) | {"pool": FC_NORM},
    of=_of(split=False, mean=True),
)
SPLIT = replace(
    TIMM,
    name="timm EVA-02 with sub-norm",
    keys=(TIMM_KEYS[0], r"blocks\.0\.attn\.q_proj\.weight", r"blocks\.0\.mlp\.norm\.weight", r"pos_embed"),
    table=(*_SPLIT, _REST),
    of=_of(split=True, mean=False),
)
SPLIT_MEAN = replace(
    SPLIT,
    name="timm EVA-02 with sub-norm and fc_norm",
    keys=(*SPLIT.keys, r"fc_norm\.weight"),
    absent=_OTHERS,
    table=(*_SPLIT, _MEAN, _REST),
    numbers=TIMM_MEAN.numbers,
    of=_of(split=True, mean=True),
)

# --- ours ---

FIELDS: Fields = {
    **TRANSFORMER_FIELDS, **FEED, **POOL, **flags("gated", "sub_norm", "inner_norm"),
    "reference": lambda source, name: source.whole(name, low=0),
}  # fmt: skip
OWN = own("EVA", EVA, "eva", FIELDS, OPENAI)

FORMATS: tuple[Format, ...] = (TIMM, TIMM_MEAN, SPLIT, SPLIT_MEAN, OWN)
