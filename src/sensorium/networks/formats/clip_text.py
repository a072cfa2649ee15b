"""Formats of CLIP's text tower alone: transformers' CLIPTextModel, as in the text_encoder of Stable Diffusion, and its weights without a
configuration, as in Stable Diffusion's single file. Whole CLIPs: ``multimodal/clip/formats.py``."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.networks.formats.clip_vision import HF_BLOCK
from sensorium.networks.text import ACTIVATIONS, TextTower
from sensorium.published.format import Dropped, Entry, Format, layers
from sensorium.published.source import Source

TEXT_USUAL = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}  # fmt: skip
"""transformers' defaults: what a configuration in another does not mention."""
HEAD = 64  # channels
OLD_EOS = 2  # in older files; transformers then pools at the largest token, as OpenAI's code does


def text_numbers(source: Source) -> dict[str, Any]:
    """Of a text tower's own configuration."""
    told = replace(source, config={**TEXT_USUAL, **source.config})
    depth, end = told.whole("num_hidden_layers"), told.config["eos_token_id"]
    told.agree(depth, told.count(r"text_model\.encoder\.layers\.(\d+)\."), "num_hidden_layers")
    return {
        "vocab": told.whole("vocab_size"),
        "context": told.whole("max_position_embeddings"),
        "eot": None if end is None or end == OLD_EOS else told.whole("eos_token_id", low=0),
        "width": told.whole("hidden_size"),
        "depth": depth,
        "heads": told.whole("num_attention_heads"),
        "hidden": told.whole("intermediate_size"),
        "activation": told.word("hidden_act", tuple(ACTIVATIONS)),
        "eps": told.eps("layer_norm_eps"),
    }


def text_config(tower: TextTower) -> dict[str, Any]:
    """transformers' configuration of a text tower."""
    return {
        "model_type": "clip_text_model", "hidden_size": tower.dim, "intermediate_size": tower.hidden,
        "num_hidden_layers": tower.depth, "num_attention_heads": tower.heads, "hidden_act": tower.activation,
        "layer_norm_eps": tower.eps, "vocab_size": tower.vocab, "max_position_embeddings": tower.context,
        "bos_token_id": max(0, tower.vocab - 2), "eos_token_id": OLD_EOS if tower.eot is None else tower.eot,
        "pad_token_id": min(1, tower.vocab - 1),
    }  # fmt: skip


def _fits(tower: TextTower) -> None:
    if tower.eot == OLD_EOS:
        raise SensoriumError(
            f"an end-of-text token {OLD_EOS} means another pooling rule in Hugging Face's CLIP; choose another token."
        )


TEXT_TABLE = (
    Entry("token_embed.weight", "text_model.embeddings.token_embedding.weight"),
    Entry("pos_embed", "text_model.embeddings.position_embedding.weight"),
    *layers("blocks.{i}.", "text_model.encoder.layers.{i}.", HF_BLOCK),
    Entry("norm.{kind}", "text_model.final_layer_norm.{kind}"),
)
HF = Format(
    name="Hugging Face CLIP text tower",
    network=TextTower,
    kinds=("clip_text_model",),
    keys=(r"text_model\.embeddings\.token_embedding\.weight",),
    absent=(r"logit_scale",),
    table=TEXT_TABLE,
    spellings=((r"^(?=(embeddings|encoder|final_layer_norm)\.)", "text_model."),),  # newer files of a tower alone
    dropped=(Dropped(r"text_model\.embeddings\.position_ids", "counts 0, 1, 2 ..."),),
    numbers=text_numbers,
    normalization=None,
    to="hf",
    fits=_fits,
    config=lambda tower: {"architectures": ["CLIPTextModel"], **text_config(tower)},
)


def _numbers_of_shapes(source: Source) -> dict[str, Any]:
    """Of OpenAI's CLIP: 64 channels a head, quick_gelu."""
    layers_, embeddings = "text_model.encoder.layers", "text_model.embeddings"
    vocab, width = source.shape(f"{embeddings}.token_embedding.weight", 2)
    if width % HEAD:
        raise SensoriumError(f"{source.where}: a text tower of {width} channels; it must be a multiple of {HEAD}.")
    return {
        "vocab": vocab,
        "context": source.shape(f"{embeddings}.position_embedding.weight", 2)[0],
        "width": width,
        "depth": source.count(rf"{re.escape(layers_)}\.(\d+)\."),
        "heads": width // HEAD,
        "hidden": source.shape(f"{layers_}.0.mlp.fc1.weight", 2)[0],
    }


BARE = replace(HF, name="CLIP text tower", kinds=(), numbers=_numbers_of_shapes, to="", config=None)
"""OpenAI's CLIP by transformers' names, without a configuration."""
