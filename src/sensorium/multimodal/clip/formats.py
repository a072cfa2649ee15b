"""Formats of CLIP: Hugging Face's CLIPModel directories, and our own of its image tower. OpenCLIP's:
``open_clip.py``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sensorium.data.text.clip_tokens import read_clip_tokens
from sensorium.errors import SensoriumError
from sensorium.multimodal.clip import open_clip
from sensorium.multimodal.clip.method import CLIP
from sensorium.multimodal.clip.open_clip import build, from_open_clip, side_of, to_open_clip, towers
from sensorium.networks.formats.clip_text import OLD_EOS, TEXT_TABLE, text_config, text_numbers
from sensorium.networks.formats.clip_vision import HF_BLOCK, OPENAI, USUAL
from sensorium.networks.text import ACTIVATIONS
from sensorium.published import usage
from sensorium.published.format import ROW, TOKEN, Dropped, Entry, Format, Preparation, layers, under
from sensorium.published.opening import open_path, save
from sensorium.published.source import Source
from sensorium.recipe.trained import Trained

# --- Hugging Face ---


def _hf_numbers(source: Source) -> dict[str, Any]:
    """An older file's ``_config_dict`` takes precedence."""
    vision, text = (source.within(f"{kind}_config", f"{kind}_config_dict") for kind in ("vision", "text"))
    vision = replace(vision, config={**USUAL, **vision.config})
    vision.only("num_channels", 3)
    depth = vision.whole("num_hidden_layers")
    vision.agree(depth, vision.count(r"vision_model\.encoder\.layers\.(\d+)\."), "num_hidden_layers")
    image = {
        "image_size": vision.side("image_size"),
        "patch_size": vision.whole("patch_size"),
        "width": vision.whole("hidden_size"),
        "depth": depth,
        "heads": vision.whole("num_attention_heads"),
        "hidden": vision.whole("intermediate_size"),
        "activation": vision.word("hidden_act", tuple(ACTIVATIONS)),
        "eps": vision.eps("layer_norm_eps"),
    }
    return {"image": image, "text": text_numbers(text), "embed_dim": source.whole("projection_dim", 512)}


def _hf_fits(clip: CLIP) -> None:
    image, text = towers(clip)
    if image.grid[0] != image.grid[1]:
        raise SensoriumError(f"Hugging Face's CLIP has square images only; this one has {image.grid} patches.")
    if text.eot == OLD_EOS:
        raise SensoriumError(
            f"an end-of-text token {OLD_EOS} means another pooling rule in Hugging Face's CLIP; choose another token."
        )


def _hf_config(clip: CLIP) -> dict[str, Any]:
    image, text = towers(clip)

    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": clip.embed_dim,
        "logit_scale_init_value": float(clip.logit_scale.detach()),
        "vision_config": {
            "model_type": "clip_vision_model", "num_channels": 3, "image_size": side_of(image), "patch_size": image.patch_size,
            "hidden_size": image.dim, "intermediate_size": image.hidden, "num_hidden_layers": image.depth,
            "num_attention_heads": image.heads, "hidden_act": image.activation, "layer_norm_eps": image.eps,
            "projection_dim": clip.embed_dim,
        },
        "text_config": text_config(text) | {"projection_dim": clip.embed_dim},
    }  # fmt: skip


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
        *under("text.", "", TEXT_TABLE),
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
        read_clip_tokens(run.folder / "tokenizer.json").save_hf(out, length=run.situation.context)


__all__ = [
    "FORMATS",
    "HF",
    "OPENAI",
    "export_hf",
    "from_open_clip",
    "load_hf",
    "to_open_clip",
]
