"""Formats of SigLIP's image tower: transformers' SiglipVisionModel, alone or in a SiglipModel, which is also that of SigLIP
2 for images of one size; its Siglip2VisionModel, for images of any shape (NaFlex); and ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from sensorium.base.reading import printable
from sensorium.errors import SensoriumError
from sensorium.networks.formats.shared import (
    CLASSIFIER,
    FEED,
    RESAMPLING,
    TRANSFORMER_FIELDS,
    Fields,
    own,
    processor,
    squares,
)
from sensorium.networks.siglip import SigLIPVision
from sensorium.networks.text import ACTIVATIONS
from sensorium.published import usage
from sensorium.published.format import HALF, ROW, Change, Dropped, Entry, Format, layers
from sensorium.published.source import Source

TEXT = "the text tower and what compares it with images are not part of the backbone"
USUAL = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    "vision_use_head": True, "num_patches": 256,
}  # fmt: skip
"""transformers' defaults: what a configuration in another does not mention."""


# --- Hugging Face ---

_WHOLE = ("siglip", "siglip2")  # models with a text tower


def _vision(source: Source) -> Source:
    """With the configuration of the image tower."""
    whole = source.config.get("model_type") in _WHOLE
    if any(name.startswith("text_model.") for name in source.state):
        warnings.warn(
            f"{printable(source.where)}: read the image tower; not read: the text tower, its scale and bias",
            stacklevel=3,
        )
    told = source.within("vision_config") if whole else source
    return replace(told, config={**USUAL, **told.config})


def _common(vision: Source) -> dict[str, Any]:
    vision.only("num_channels", 3)
    vision.only("vision_use_head", True)  # without it there is no feature of the whole image
    depth = vision.whole("num_hidden_layers")
    vision.agree(depth, vision.count(r"vision_model\.encoder\.layers\.(\d+)\."), "num_hidden_layers")
    return {
        "width": vision.whole("hidden_size"),
        "depth": depth,
        "heads": vision.whole("num_attention_heads"),
        "hidden": vision.whole("intermediate_size"),
        "activation": vision.word("hidden_act", tuple(ACTIVATIONS)),
        "eps": vision.eps("layer_norm_eps"),
    }


def _hf_numbers(source: Source) -> dict[str, Any]:
    vision = _vision(source)
    common, (size, patch) = _common(vision), squares(vision)
    return common | {"image_size": size, "patch_size": patch}


def _square(tower: SigLIPVision) -> None:
    if tower.grid[0] != tower.grid[1]:
        raise SensoriumError(f"Hugging Face's SigLIP has a square of positions; this one has {tower.grid} patches.")


def _hf_config(tower: SigLIPVision) -> dict[str, Any]:
    return {
        "architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model", "num_channels": 3,
        "hidden_size": tower.dim, "intermediate_size": tower.hidden, "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads, "image_size": tower.grid[0] * tower.patch_size,
        "patch_size": tower.patch_size, "hidden_act": tower.activation, "layer_norm_eps": tower.eps,
        "attention_dropout": 0.0, "vision_use_head": True,
    }  # fmt: skip


def _of(naflex: bool) -> Callable[[Any], Any]:
    """``of``: towers that resample positions as one kind of models or the other."""

    def of(network: Any) -> Any:
        right = isinstance(network, SigLIPVision) and (network.resampling == "bilinear") is naflex
        return network if right else None

    return of


_AT = "vision_model."
_HEAD = {"proj": "attention.out_proj", "norm": "layernorm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_PATCHES = "vision_model.embeddings.patch_embedding"

HF = Format(
    name="Hugging Face SigLIP",
    network=SigLIPVision,
    kinds=("siglip_vision_model", "siglip"),
    keys=(r"vision_model\.embeddings\.patch_embedding\.weight", r"vision_model\.head\.probe"),
    table=(
        Entry("patch_embed.proj.{kind}", f"{_PATCHES}.{{kind}}"),
        Entry("pos_embed", "vision_model.embeddings.position_embedding.weight", ROW),
        *layers("blocks.{i}.", "vision_model.encoder.layers.{i}.", {
            "norm1": "layer_norm1",
            "attn.qkv": tuple(f"self_attn.{part}_proj" for part in "qkv"),
            "attn.proj": "self_attn.out_proj",
            "norm2": "layer_norm2",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }),
        Entry("norm.{kind}", "vision_model.post_layernorm.{kind}"),
        Entry("pool.probe", "vision_model.head.probe"),
        Entry("pool.qkv.{kind}", "vision_model.head.attention.in_proj_{kind}"),
        *layers("pool.", "vision_model.head.", _HEAD),
    ),
    spellings=((r"^(?=(embeddings|encoder|post_layernorm|head)\.)", _AT),),  # newer files of a tower alone
    dropped=(
        Dropped(r"text_model\..+", TEXT),
        Dropped(r"logit_(scale|bias)", TEXT),
        Dropped(r"classifier\.(weight|bias)", CLASSIFIER),
        Dropped(r"vision_model\.embeddings\.position_ids", "counts 0, 1, 2 ..."),
    ),
    numbers=_hf_numbers,
    normalization=HALF,
    to="hf",
    of=_of(naflex=False),
    fits=_square,
    config=_hf_config,
    beside=processor,
    usage=usage.features_by("found.pooler_output", "SiglipVisionModel"),
)  # fmt: skip


# --- Hugging Face's for images of any shape: their patches are cut by the processor, in the order (row, column, channel) ---


def _convolution(x: Tensor, tower: Any) -> Tensor:
    return x.unflatten(1, (tower.patch_size, tower.patch_size, 3)).permute(0, 3, 1, 2)


def _linear(x: Tensor, tower: Any) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1)


def _naflex_numbers(source: Source) -> dict[str, Any]:
    vision = _vision(source)
    patch, places = vision.whole("patch_size"), vision.whole("num_patches")
    side = int(places**0.5)
    if side * side != places:
        raise SensoriumError(f"{vision.told}: {vision.inside}num_patches {places} is not a square number.")
    return _common(vision) | {"image_size": side * patch, "patch_size": patch, "resampling": "bilinear"}


def _naflex_config(tower: SigLIPVision) -> dict[str, Any]:
    told = {key: value for key, value in _hf_config(tower).items() if key != "image_size"}
    return told | {
        "architectures": ["Siglip2VisionModel"], "model_type": "siglip2_vision_model",
        "num_patches": tower.grid[0] * tower.grid[1],
    }  # fmt: skip


NAFLEX = replace(
    HF,
    name="Hugging Face SigLIP 2 (NaFlex)",
    kinds=("siglip2_vision_model", "siglip2"),
    table=(Entry("patch_embed.proj.weight", f"{_PATCHES}.weight", Change(_convolution, _linear)), *HF.table),
    numbers=_naflex_numbers,
    of=_of(naflex=True),
    config=_naflex_config,
    usage=None,
)


# --- ours ---

FIELDS: Fields = {
    **TRANSFORMER_FIELDS, **FEED, **RESAMPLING,
    "activation": lambda source, name: source.word(name, tuple(ACTIVATIONS)),
}  # fmt: skip
OWN = own("SigLIP image tower", SigLIPVision, "siglip_vision", FIELDS)

FORMATS: tuple[Format, ...] = (HF, NAFLEX, OWN)
