"""Formats of CLIP's image tower alone: transformers' CLIPVisionModel, also with projection or with a classifier; timm's
``vit_*_clip_*``, with a norm before the blocks; and the ``visual`` of OpenCLIP's and OpenAI's code. Whole CLIPs:
``multimodal/clip/formats.py``.

The feature is the class token after the last norm; the projection into the space of texts is not part of the backbone.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, get_args

from sensorium.base.reading import printable
from sensorium.errors import SensoriumError
from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.formats.shared import (
    CLASSIFIER,
    FEED,
    RESAMPLING,
    TRANSFORMER_FIELDS,
    Fields,
    own,
    processor,
    squares,
    timm_beside,
)
from sensorium.networks.formats.timm_vit import TIMM_KEYS, timm_activation, timm_grid, timm_ratio, timm_shapes
from sensorium.networks.text import ACTIVATIONS, Activation
from sensorium.published import usage
from sensorium.published.format import ROW, TOKEN, Dropped, Entry, Format, Preparation, layers
from sensorium.published.source import Source, Statistics, shown

OPENAI: Statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
USUAL = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
"""transformers' defaults: what a configuration in another does not mention."""
PROJECTION = "the projection into the space of texts is not part of the backbone"
EPS = 1e-5


def _square(tower: CLIPVision, whose: str) -> None:
    if tower.grid[0] != tower.grid[1]:
        raise SensoriumError(f"{whose} CLIP has square images only; this one has {tower.grid} patches.")


# --- Hugging Face ---

HF_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def _hf_numbers(source: Source) -> dict[str, Any]:
    told = source.within("vision_config", "vision_config_dict") if "vision_config" in source.config else source
    told = replace(told, config={**USUAL, **told.config})
    told.only("num_channels", 3)
    depth, (size, patch) = told.whole("num_hidden_layers"), squares(told)
    told.agree(depth, told.count(r"vision_model\.encoder\.layers\.(\d+)\."), "num_hidden_layers")
    return {
        "image_size": size,
        "patch_size": patch,
        "width": told.whole("hidden_size"),
        "depth": depth,
        "heads": told.whole("num_attention_heads"),
        "hidden": told.whole("intermediate_size"),
        "activation": told.word("hidden_act", tuple(ACTIVATIONS)),
        "eps": told.eps("layer_norm_eps"),
    }


def _hf_config(tower: CLIPVision) -> dict[str, Any]:
    return {
        "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", "num_channels": 3,
        "hidden_size": tower.dim, "intermediate_size": tower.hidden, "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads, "image_size": tower.grid[0] * tower.patch_size,
        "patch_size": tower.patch_size, "hidden_act": tower.activation, "layer_norm_eps": tower.eps,
        "attention_dropout": 0.0,
    }  # fmt: skip


HF = Format(
    name="Hugging Face CLIP image tower",
    network=CLIPVision,
    kinds=("clip_vision_model", "clip"),
    keys=(r"vision_model\.embeddings\.class_embedding",),
    absent=(r"logit_scale",),
    table=(
        Entry("cls_token", "vision_model.embeddings.class_embedding", TOKEN),
        Entry("pos_embed", "vision_model.embeddings.position_embedding.weight", ROW),
        Entry("patch_embed.proj.weight", "vision_model.embeddings.patch_embedding.weight"),
        Entry("norm_pre.{kind}", "vision_model.pre_layrnorm.{kind}"),
        *layers("blocks.{i}.", "vision_model.encoder.layers.{i}.", HF_BLOCK),
        Entry("norm.{kind}", "vision_model.post_layernorm.{kind}"),
    ),
    spellings=(
        (r"^(?=(embeddings|encoder|pre_layrnorm|post_layernorm)\.)", "vision_model."),
    ),  # newer files of a tower alone
    dropped=(
        Dropped(r"visual_projection\.weight", PROJECTION),
        Dropped(r"vision_model\.embeddings\.position_ids", "counts 0, 1, 2 ..."),
        Dropped(r"classifier\.(weight|bias)", CLASSIFIER),
    ),
    numbers=_hf_numbers,
    normalization=OPENAI,
    to="hf",
    usage=usage.features_by("found.pooler_output", "CLIPVisionModel"),
    fits=lambda tower: _square(tower, "Hugging Face's"),
    config=_hf_config,
    beside=processor,
)


# --- timm ---

_OURS = {"gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
_TIMMS = {ours: timms for timms, ours in _OURS.items()}


def _assumed(source: Source, whose: str) -> str:
    """The caller's activation, else GELU, with a warning: a file of weights alone doesn't hold it."""
    told = source.options.get("activation")
    if told is None:
        warnings.warn(
            f"{printable(source.where)}: {whose} does not contain its activation; assumed gelu. Put its configuration "
            "beside it, or give activation='quick_gelu' (OpenAI's, and names with quickgelu)",
            stacklevel=4,
        )
        return "gelu"
    if told not in ACTIVATIONS:
        raise SensoriumError(f"activation '{told}' is not one of {', '.join(ACTIVATIONS)}.")
    return told


def _timm_numbers(source: Source) -> dict[str, Any]:
    arguments = source.within("model_args")
    pooled = arguments.config.get("global_pool", source.config.get("global_pool"))
    if pooled not in (None, "", "token"):
        raise SensoriumError(f"{source.told}: global_pool {shown(pooled)} is not supported; it must be 'token'.")
    known = timm_shapes(source, timm_grid(source)[0])
    numbers = {name: known[name] for name in ("image_size", "patch_size", "width", "depth", "heads")}
    if "architecture" in source.config or "act_layer" in arguments.config:
        said = timm_activation(source)
        activation = _OURS[said[0]] if said else "gelu"
    else:
        activation = _assumed(source, "a state dict of timm's CLIP")
    hidden = source.shape("blocks.0.mlp.fc1.weight", 2)[0]
    return numbers | {"hidden": hidden, "activation": activation, "eps": EPS, "resampling": "antialias"}


def _timm_fits(tower: CLIPVision) -> None:
    if tower.eps != EPS:
        warnings.warn(
            f"timm's CLIP has norms with an epsilon of {EPS:g}, which its files can't hold; this network's is "
            f"{tower.eps:g}: its outputs in timm differ slightly",
            stacklevel=2,
        )


def _timm_config(tower: CLIPVision) -> dict[str, Any]:
    arguments = {
        "img_size": tower.image_size, "patch_size": tower.patch_size, "embed_dim": tower.dim, "depth": tower.depth,
        "num_heads": tower.heads, "mlp_ratio": timm_ratio(tower.dim, tower.hidden), "num_classes": 0,
        "act_layer": _TIMMS.get(tower.activation, "gelu"), "global_pool": "token",
    }  # fmt: skip
    return {"architecture": "vit_base_patch32_clip_224", "num_classes": 0, "model_args": arguments}


def _timm_beside(tower: CLIPVision, how: Preparation) -> dict[str, dict[str, Any]]:
    return timm_beside(tower, how, _timm_config(tower))


TIMM = Format(
    name="timm CLIP image tower",
    network=CLIPVision,
    keys=(*TIMM_KEYS, r"norm_pre\.weight", r"cls_token"),
    table=(Entry("{rest}", "{rest}"),),
    dropped=(Dropped(r"head\.(weight|bias)", PROJECTION),),
    numbers=_timm_numbers,
    normalization=OPENAI,
    to="timm",
    usage=usage.by_timm,
    fits=_timm_fits,
    config=_timm_config,
    beside=_timm_beside,
)


# --- OpenCLIP's and OpenAI's ---

OPEN_BLOCK = {
    "norm1": "ln_1", "norm2": "ln_2", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
_AT = "transformer.resblocks.{i}."


def _open_numbers(source: Source) -> dict[str, Any]:
    told = source.within("model_cfg")
    width, _, patch, _ = source.shape("conv1.weight", 4)
    places = source.shape("positional_embedding", 2)[0]
    side = round(max(0, places - 1) ** 0.5)
    if not side or side * side != places - 1:
        raise SensoriumError(f"{source.where}: {places} positions are not a square grid plus a class token.")
    quick = told.flag("quick_gelu", False) if told.config else None
    activation = (
        _assumed(source, "an image tower of OpenCLIP's code") if quick is None else ("gelu", "quick_gelu")[quick]
    )
    vision = told.within("vision_cfg")
    return {
        "image_size": side * patch,
        "patch_size": patch,
        "width": width,
        "depth": source.count(r"transformer\.resblocks\.(\d+)\."),
        "heads": source.options.get("heads") or max(1, width // vision.whole("head_width", 64)),
        "hidden": source.shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "activation": activation,
        "eps": vision.within("norm_kwargs").eps("eps", EPS),
        "resampling": "antialias",
    }


OPEN = Format(
    name="OpenCLIP image tower",
    network=CLIPVision,
    keys=(r"conv1\.weight", r"class_embedding", r"ln_pre\.weight"),
    table=(
        Entry("cls_token", "class_embedding", TOKEN),
        Entry("pos_embed", "positional_embedding", ROW),
        Entry("patch_embed.proj.weight", "conv1.weight"),
        Entry("norm_pre.{kind}", "ln_pre.{kind}"),
        Entry("norm.{kind}", "ln_post.{kind}"),
        Entry("blocks.{i}.attn.qkv.{kind}", f"{_AT}attn.in_proj_{{kind}}"),
        *layers("blocks.{i}.", _AT, OPEN_BLOCK),
    ),
    dropped=(Dropped(r"proj", PROJECTION),),
    numbers=_open_numbers,
    normalization=OPENAI,
    fits=lambda tower: _square(tower, "OpenCLIP's"),
    file="visual.pt",
)


# --- ours ---

FIELDS: Fields = {
    **TRANSFORMER_FIELDS, **FEED, **RESAMPLING,
    "activation": lambda source, name: source.word(name, get_args(Activation)),
}  # fmt: skip


OWN = own("CLIP image tower", CLIPVision, "clip_vision", FIELDS)

FORMATS: tuple[Format, ...] = (HF, TIMM, OPEN, OWN)
