"""Formats of CLIP: state dicts of OpenCLIP's class ``CLIP`` and of OpenAI's code, which have the same names.

Activation and pixel statistics are in OpenCLIP's ``open_clip_config.json``, not in a state dict: OpenAI's, recognized
by its three sizes, were trained with "quick_gelu"; most of OpenCLIP's with "gelu", some not. Without the configuration
the activation is the caller's, or that of the run's ``params.txt`` or of its name in a training checkpoint, else
OpenCLIP's default, "gelu", with a warning. OpenAI's published TorchScript archives hold code and are not read.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.base.reading import lines
from sensorium.errors import SensoriumError
from sensorium.multimodal.clip.method import CLIP
from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.formats.clip_vision import OPEN_BLOCK, OPENAI
from sensorium.networks.text import ACTIVATIONS, Activation, TextTower
from sensorium.published.files import unwrap
from sensorium.published.format import ROW, TOKEN, TRANSPOSED, Dropped, Entry, Format, Preparation, layers, write
from sensorium.published.opening import fill
from sensorium.published.source import Source, Statistics


def towers(clip: CLIP) -> tuple[CLIPVision, TextTower]:
    image, text = clip.backbone, clip.text
    if not isinstance(image, CLIPVision) or not isinstance(text, TextTower):
        raise SensoriumError(
            f"a CLIP of {type(image).__name__} and {type(text).__name__} has no published format; "
            "one of CLIPVision and TextTower has: train with --backbone clip-micro."
        )
    return image, text


def build(image: dict[str, Any], text: dict[str, Any], embed_dim: int) -> CLIP:
    return CLIP(CLIPVision(**image), TextTower(**text), embed_dim)


def side_of(image: CLIPVision) -> int:
    return image.image_size if isinstance(image.image_size, int) else image.image_size[0]


_OPEN_TOWERS = {"image": "visual.transformer.resblocks", "text": "transformer.resblocks"}


def _open_blocks(ours: str, theirs: str) -> tuple[Entry, ...]:
    at = f"{theirs}.{{i}}."
    return (
        Entry(f"{ours}.blocks.{{i}}.attn.qkv.{{kind}}", f"{at}attn.in_proj_{{kind}}"),
        *layers(f"{ours}.blocks.{{i}}.", at, OPEN_BLOCK),
    )


def _open_numbers(source: Source) -> dict[str, Any]:
    """Sizes from the tensors; activation, heads and pixel statistics from OpenCLIP's configuration or the caller."""
    told, options = source.within("model_cfg"), source.options
    vision, words = told.within("vision_cfg"), told.within("text_cfg")
    if told.config.get("custom_text") or "hf_model_name" in words.config:
        raise SensoriumError(f"{source.told}: a model of OpenCLIP, but not of its class CLIP with its own two towers.")
    activation = options.get("activation") or _activation(source, told)
    if activation not in ACTIVATIONS:
        raise SensoriumError(f"activation '{activation}' is not one of {', '.join(ACTIVATIONS)}.")
    width, _, patch, _ = source.shape("visual.conv1.weight", 4)
    places = source.shape("visual.positional_embedding", 2)[0]
    side = math.isqrt(max(0, places - 1))
    if side * side != places - 1 or not side:
        raise SensoriumError(f"{source.where}: {places} positions are not a square grid plus a class token.")
    context, text_width = source.shape("positional_embedding", 2)
    head_width = vision.whole("head_width", 64)

    def tower(at: str, how: Source) -> dict[str, Any]:
        return {
            "depth": source.count(rf"{at}\.(\d+)\."),
            "hidden": source.shape(f"{at}.0.mlp.c_fc.weight", 2)[0],
            "activation": activation,
            "eps": options.get("eps", how.within("norm_kwargs").eps("eps", 1e-5)),
        }

    text_heads = options.get("text_heads") or words.whole("heads", max(1, text_width // 64))
    return {
        "image": {
            "image_size": side * patch,
            "patch_size": patch,
            "width": width,
            "heads": options.get("heads") or max(1, width // head_width),
        }
        | tower(_OPEN_TOWERS["image"], vision),
        "text": {
            "vocab": source.shape("token_embedding.weight", 2)[0],
            "context": context,
            "width": text_width,
            "heads": text_heads,
            "eot": options.get("eot"),
        }
        | tower(_OPEN_TOWERS["text"], words),
        "embed_dim": source.shape("visual.proj", 2)[1],
    }


_ACTIVATION = {True: "quick_gelu", False: "gelu"}


def _activation(source: Source, told: Source) -> str:
    """From the configuration; else from what OpenCLIP's training wrote with the weights; else OpenCLIP's default."""
    if told.config:
        return _ACTIVATION[told.flag("quick_gelu", False)]
    run, folder = source.beside.get("name"), source.path.parent if source.path is not None else None
    if folder is not None and (kept := _parameters(folder)):
        return _ACTIVATION[kept.get("force_quick_gelu") == "True" or "quickgelu" in kept.get("model", "").lower()]
    if isinstance(run, str) and "model_" in run:  # OpenCLIP's name of a run contains that of its model
        return _ACTIVATION["quickgelu" in run.lower()]
    warnings.warn(
        f"{source.where}: an OpenCLIP state dict does not contain its activation; assumed gelu, OpenCLIP's default. Put "
        "its open_clip_config.json beside it, or give activation='quick_gelu' (OpenAI's, and names that end in -quickgelu)",
        stacklevel=2,
    )
    return "gelu"


def _parameters(folder: Path) -> dict[str, str]:
    """OpenCLIP's ``params.txt``, which is above the folder of a run's checkpoints."""
    for path in (folder / "params.txt", folder.parent / "params.txt"):
        if path.is_file():
            pairs = (line.decode("utf-8", "replace").partition(": ") for _, line in lines(path))
            return {name.strip(): value.strip() for name, _, value in pairs}
    return {}


def _open_fits(clip: CLIP) -> None:
    image, text = towers(clip)
    if image.activation != text.activation or image.activation not in _ACTIVATION.values():
        raise SensoriumError(
            f"OpenCLIP has gelu or quick_gelu in both towers, not {image.activation}, {text.activation}."
        )
    if image.grid[0] != image.grid[1]:
        raise SensoriumError(f"OpenCLIP's state dict has square images only; this one has {image.grid} patches.")


def _settle_open(clip: Any, source: Source) -> None:
    told = source.object("preprocess_cfg")
    clip.normalization = source.options.get("normalization") or OPENAI
    if told.get("mean") is not None and told.get("std") is not None:
        clip.normalization = source.statistics(told["mean"], told["std"])


def _open_config(clip: Any, how: Preparation) -> dict[str, dict[str, Any]]:
    image, text = towers(clip)
    mean, std = how.normalization or clip.normalization or OPENAI
    model = {
        "embed_dim": clip.embed_dim,
        "quick_gelu": image.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": side_of(image), "layers": image.depth, "width": image.dim, "patch_size": image.patch_size,
            "head_width": image.dim // image.heads, "mlp_ratio": image.hidden / image.dim,
        },
        "text_cfg": {
            "context_length": text.context, "vocab_size": text.vocab, "width": text.dim, "heads": text.heads,
            "layers": text.depth, "mlp_ratio": text.hidden / text.dim,
        },
    }  # fmt: skip
    for tower, name in ((image, "vision_cfg"), (text, "text_cfg")):
        model[name] |= {"norm_kwargs": {"eps": tower.eps}} if tower.eps != 1e-5 else {}
    return {"open_clip_config.json": {"model_cfg": model, "preprocess_cfg": {"mean": list(mean), "std": list(std)}}}


_KEYS = (r"visual\.(conv1\.weight|trunk\..+)", r"token_embedding\.weight|text\..+")
_SIZES = "a size that follows from the tensors' shapes"
_MASK = Dropped(r"attn_mask", "the causal mask follows from the length")
OPEN = Format(
    name="OpenCLIP",
    network=CLIP,
    keys=_KEYS,
    absent=(r"input_resolution",),
    refused=(
        (r"visual\.attnpool\..+", "its image tower is a ResNet; only those with a transformer are supported"),
        (r"logit_bias|text\..+|visual\.trunk\..+", "a model of OpenCLIP, but not of its class CLIP with its own two towers"),
    ),
    table=(
        Entry("logit_scale", "logit_scale"),
        Entry("image_projection.weight", "visual.proj", TRANSPOSED),
        Entry("text_projection.weight", "text_projection", TRANSPOSED),
        Entry("backbone.cls_token", "visual.class_embedding", TOKEN),
        Entry("backbone.pos_embed", "visual.positional_embedding", ROW),
        Entry("backbone.patch_embed.proj.weight", "visual.conv1.weight"),
        Entry("backbone.norm_pre.{kind}", "visual.ln_pre.{kind}"),
        Entry("backbone.norm.{kind}", "visual.ln_post.{kind}"),
        *_open_blocks("backbone", _OPEN_TOWERS["image"]),
        Entry("text.token_embed.weight", "token_embedding.weight"),
        Entry("text.pos_embed", "positional_embedding"),
        *_open_blocks("text", _OPEN_TOWERS["text"]),
        Entry("text.norm.{kind}", "ln_final.{kind}"),
    ),
    dropped=(_MASK,),
    numbers=_open_numbers,
    build=build,
    settle=_settle_open,
    normalization=OPENAI,
    to="open_clip",
    fits=_open_fits,
    beside=_open_config,
    file="open_clip_model.safetensors",
)  # fmt: skip


def _openai_numbers(source: Source) -> dict[str, Any]:
    options = {key: value for key, value in source.options.items() if value is not None}
    return _open_numbers(replace(source, options={"activation": "quick_gelu"} | options))


def _openai_fits(clip: CLIP) -> None:
    _open_fits(clip)
    if towers(clip)[0].activation != "quick_gelu":
        raise SensoriumError("OpenAI's CLIP has quick_gelu, but this one has another activation.")


AUTHORS = replace(
    OPEN,
    name="OpenAI's CLIP",
    keys=(*_KEYS, r"input_resolution"),
    absent=(),
    dropped=(
        _MASK,
        Dropped("input_resolution", _SIZES, lambda clip: torch.tensor(side_of(clip.backbone))),
        Dropped("context_length", _SIZES, lambda clip: torch.tensor(clip.text.context)),
        Dropped("vocab_size", _SIZES, lambda clip: torch.tensor(clip.text.vocab)),
    ),
    numbers=_openai_numbers,
    to="openai",
    fits=_openai_fits,
    beside=None,
    file="clip.pt",
)

FORMATS: tuple[Format, ...] = (OPEN, AUTHORS)


def from_open_clip(
    state: Mapping[str, Tensor],
    *,
    activation: Activation,
    heads: int | None = None,
    text_heads: int | None = None,
    eps: float = 1e-5,
    eot: int | None = None,
    normalization: Statistics = OPENAI,
    where: str = "the state dict",
) -> CLIP:
    """A state dict of OpenCLIP's ``CLIP`` or of OpenAI's, transformer towers -> CLIP in evaluation mode.

    heads, text_heads: of attention, which the tensors do not contain: by default 64 channels per head, as in OpenAI's.
    Raises SensoriumError that names the tensor that is missing, unknown or of another shape.
    """
    options = {
        "activation": activation, "heads": heads, "text_heads": text_heads, "eps": eps, "eot": eot,
        "normalization": normalization,
    }  # fmt: skip
    state = next(unwrap(state), {})
    return fill(AUTHORS if "input_resolution" in state else OPEN, Source(where, state, options=options))


def to_open_clip(clip: CLIP) -> dict[str, Tensor]:
    """The state dict of OpenCLIP's ``CLIP`` with these weights; OpenAI's code has the same names."""
    return write(OPEN, clip)
