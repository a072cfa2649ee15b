"""Formats of CLIP: Hugging Face's CLIPModel directories, and our own of its image tower. OpenCLIP's:
``open_clip.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sensorium.base.files import write_json, write_text
from sensorium.data.text.clip_tokens import CLIPTokens, read_clip_tokens
from sensorium.errors import SensoriumError
from sensorium.multimodal.clip import open_clip
from sensorium.multimodal.clip.method import CLIP
from sensorium.multimodal.clip.open_clip import build, from_open_clip, side_of, to_open_clip, towers
from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.formats.clip_vision import HF_BLOCK, OPENAI, USUAL
from sensorium.networks.text import ACTIVATIONS, TextTower
from sensorium.published import usage
from sensorium.published.format import ROW, TOKEN, Dropped, Entry, Format, Preparation, layers
from sensorium.published.opening import open_path, save
from sensorium.published.source import Source
from sensorium.recipe.trained import Trained

_OLD_EOS = 2  # in older files; transformers then pools at the largest token, as OpenAI's code does


# --- Hugging Face ---

_TEXT_USUAL = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}  # fmt: skip


def _hf_numbers(source: Source) -> dict[str, Any]:
    vision, text = _part(source, "vision", USUAL), _part(source, "text", _TEXT_USUAL)
    vision.only("num_channels", 3)
    image = {"image_size": vision.side("image_size"), "patch_size": vision.whole("patch_size")}
    end = text.config["eos_token_id"]
    words = {
        "vocab": text.whole("vocab_size"),
        "context": text.whole("max_position_embeddings"),
        "eot": None if end is None or end == _OLD_EOS else text.whole("eos_token_id", low=0),
    }
    embed_dim = source.whole("projection_dim", 512)
    return {
        "image": image | _hf_tower(vision, "vision"),
        "text": words | _hf_tower(text, "text"),
        "embed_dim": embed_dim,
    }


def _hf_tower(part: Source, kind: str) -> dict[str, Any]:
    depth = part.whole("num_hidden_layers")
    part.agree(depth, part.count(rf"{kind}_model\.encoder\.layers\.(\d+)\."), "num_hidden_layers")
    return {
        "width": part.whole("hidden_size"),
        "depth": depth,
        "heads": part.whole("num_attention_heads"),
        "hidden": part.whole("intermediate_size"),
        "activation": part.word("hidden_act", tuple(ACTIVATIONS)),
        "eps": part.eps("layer_norm_eps"),
    }


def _part(source: Source, kind: str, usual: Mapping[str, Any]) -> Source:
    """A tower's configuration: defaults are transformers'; an older file's ``_config_dict`` takes precedence."""
    told = source.within(f"{kind}_config", f"{kind}_config_dict")
    return replace(told, config={**usual, **told.config})


def _hf_fits(clip: CLIP) -> None:
    image, text = towers(clip)
    if image.grid[0] != image.grid[1]:
        raise SensoriumError(f"Hugging Face's CLIP has square images only; this one has {image.grid} patches.")
    if text.eot == _OLD_EOS:
        raise SensoriumError(
            f"an end-of-text token {_OLD_EOS} means another pooling rule in Hugging Face's CLIP; choose another token."
        )


def _hf_config(clip: CLIP) -> dict[str, Any]:
    image, text = towers(clip)

    def common(tower: CLIPVision | TextTower) -> dict[str, Any]:
        return {
            "hidden_size": tower.dim,
            "intermediate_size": tower.hidden,
            "num_hidden_layers": tower.depth,
            "num_attention_heads": tower.heads,
            "hidden_act": tower.activation,
            "layer_norm_eps": tower.eps,
            "projection_dim": clip.embed_dim,
        }

    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": clip.embed_dim,
        "logit_scale_init_value": float(clip.logit_scale.detach()),
        "vision_config": common(image)
        | {
            "model_type": "clip_vision_model",
            "num_channels": 3,
            "image_size": side_of(image),
            "patch_size": image.patch_size,
        },
        "text_config": common(text)
        | {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab,
            "max_position_embeddings": text.context,
            "bos_token_id": max(0, text.vocab - 2),
            "eos_token_id": _OLD_EOS if text.eot is None else text.eot,
            "pad_token_id": min(1, text.vocab - 1),
        },
    }


def _hf_processor(clip: Any, how: Preparation) -> dict[str, dict[str, Any]]:
    mean, std = how.normalization or clip.normalization or OPENAI
    side = side_of(clip.backbone)
    told = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": side},
        "do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_rescale": True, "do_normalize": True,
        "do_convert_rgb": True, "resample": clip.resample, "image_mean": list(mean), "image_std": list(std),
    }  # fmt: skip
    return {"preprocessor_config.json": told}


def _hf_usage(clip: CLIP, how: Preparation) -> str:
    return f"""import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

model = CLIPModel.from_pretrained(folder).eval()
prepare, words = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
texts = ["a photo of a cat.", "a photo of a dog."]
{usage.square(clip, how)}
inputs = words(texts, padding=True, truncation=True, return_tensors="pt") | prepare(picture, return_tensors="pt")
with torch.inference_mode():
    probabilities = model(**inputs).logits_per_image.softmax(1)[0]
print(dict(zip(texts, probabilities.tolist())))"""


HF = Format(
    name="Hugging Face CLIP",
    network=CLIP,
    kinds=("clip",),
    keys=(r"logit_scale", r"vision_model\.embeddings\.class_embedding"),
    table=(
        Entry("logit_scale", "logit_scale"),
        Entry("image_projection.weight", "visual_projection.weight"),
        Entry("text_projection.weight", "text_projection.weight"),
        Entry("backbone.cls_token", "vision_model.embeddings.class_embedding", TOKEN),
        Entry("backbone.pos_embed", "vision_model.embeddings.position_embedding.weight", ROW),
        Entry("backbone.patch_embed.proj.weight", "vision_model.embeddings.patch_embedding.weight"),
        Entry("backbone.norm_pre.{kind}", "vision_model.pre_layrnorm.{kind}"),
        Entry("backbone.norm.{kind}", "vision_model.post_layernorm.{kind}"),
        *layers("backbone.blocks.{i}.", "vision_model.encoder.layers.{i}.", HF_BLOCK),
        Entry("text.token_embed.weight", "text_model.embeddings.token_embedding.weight"),
        Entry("text.pos_embed", "text_model.embeddings.position_embedding.weight"),
        *layers("text.blocks.{i}.", "text_model.encoder.layers.{i}.", HF_BLOCK),
        Entry("text.norm.{kind}", "text_model.final_layer_norm.{kind}"),
    ),
    dropped=(Dropped(r"(vision|text)_model\.embeddings\.position_ids", "counts 0, 1, 2 ..."),),
    numbers=_hf_numbers,
    build=build,
    normalization=OPENAI,
    to="hf",
    fits=_hf_fits,
    config=_hf_config,
    beside=_hf_processor,
    usage=_hf_usage,
)


# --- the image tower alone, ours ---


FORMATS: tuple[Format, ...] = (HF, *open_clip.FORMATS)


def load_hf(path: str | Path) -> CLIP:
    """A Hugging Face CLIPModel directory (or hub id) -> CLIP in evaluation mode; ``.normalization`` is its (mean, std).

    Raises SensoriumError that names the file and the field or tensor that is wrong.
    """
    return open_path(path, (HF,))


def export_hf(clip: CLIP, out: str | Path) -> Path:
    """Write ``clip`` as a directory of transformers' CLIPModel and CLIPImageProcessor; return the path."""
    return save(HF, clip, out)


def take_along(run: Trained, to: str, out: Path) -> None:
    """Write a run's tokenizer beside its export."""
    if to == "hf":
        export_tokens(read_clip_tokens(run.folder / "tokenizer.json"), run.situation.context, out)


def export_tokens(tokens: CLIPTokens, context: int, folder: Path) -> None:
    """Write ``tokens`` beside an exported CLIP, in the format of transformers' CLIPTokenizer; ``context`` tokens per
    text.

    Its text cleaning is the basic one, which differs from the authors' in quotes and HTML entities.
    """
    model = json.loads(tokens.inner.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    start, end = (tokens.inner.id_to_token(token) for token in (tokens.start, tokens.end))
    told = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": context, "bos_token": start, "eos_token": end,
        "unk_token": end, "pad_token": end,
    }  # fmt: skip
    vocabulary = sorted(tokens.inner.get_vocab().items(), key=lambda pair: pair[1])
    write_text(folder / "vocab.json", json.dumps(dict(vocabulary), ensure_ascii=False))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    write_json(folder / "tokenizer_config.json", told)


__all__ = [
    "FORMATS",
    "HF",
    "OPENAI",
    "export_hf",
    "export_tokens",
    "from_open_clip",
    "load_hf",
    "to_open_clip",
]
