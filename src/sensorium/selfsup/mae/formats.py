"""Formats of MAE: Hugging Face's ViTMAE, whole or only the encoder, and the files of the authors' code
(facebookresearch/mae, ``models_mae.py``): {"model": ...}, with the encoder's names without prefix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.networks.formats import timm_vit, vit
from sensorium.networks.vit import ViT
from sensorium.published import usage
from sensorium.published.format import HALF, IMAGENET, Entry, Format, under
from sensorium.published.source import Source
from sensorium.selfsup.mae.method import MAE

_ENCODER: dict[str, Any] = {"positions": "sincos", "pool": "mean"}
_LAYERS = "decoder.decoder_layers"

HF_ENCODER = replace(
    vit.HF,
    name="Hugging Face ViTMAE encoder",
    kinds=("vit_mae",),
    absent=(r"decoder\.mask_token",),
    dropped=(),
    numbers=lambda source: vit.hf_numbers(source, "", {}) | _ENCODER,
    to="",
    config=lambda network: vit.hf_config(network) | {"architectures": ["ViTMAEModel"], "model_type": "vit_mae"},
)


def _hf_numbers(source: Source) -> dict[str, Any]:
    encoder = vit.hf_numbers(source, r"vit\.", {})
    width, depth = source.whole("decoder_hidden_size"), source.whole("decoder_num_hidden_layers")
    source.agree(depth, source.count(r"decoder\.decoder_layers\.(\d+)\."), "decoder_num_hidden_layers")
    return {
        "encoder": encoder,
        "decoder_width": width,
        "decoder_depth": depth,
        "decoder_heads": source.whole("decoder_num_attention_heads"),
        "decoder_mlp_ratio": source.whole("decoder_intermediate_size") / width,
        "mask_ratio": source.number("mask_ratio", 0.75, low=0, high=1),
        "normalize_targets": source.flag("norm_pix_loss", False),
        "eps": encoder["eps"],
        "qkv_bias": encoder["qkv_bias"],
    }


def _build(encoder: dict[str, Any], **numbers: Any) -> MAE:
    return MAE(ViT(**encoder, **_ENCODER), **numbers)


def _hf_fits(mae: MAE) -> None:
    if not isinstance(mae.backbone, ViT):
        raise SensoriumError(f"Hugging Face's ViTMAE needs a ViT, not a {type(mae.backbone).__name__}.")
    vit.plain(mae.backbone, "Hugging Face's")


def _hf_config(mae: Any) -> dict[str, Any]:
    block: Any = mae.decoder_blocks[0]
    return vit.hf_config(mae.backbone) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": mae.decoder_embed.out_features,
        "decoder_num_hidden_layers": len(mae.decoder_blocks),
        "decoder_num_attention_heads": block.attn.heads,
        "decoder_intermediate_size": block.mlp.fc1.out_features,
        "mask_ratio": mae.mask_ratio,
        "norm_pix_loss": mae.normalize_targets,
    }


HF = Format(
    name="Hugging Face ViTMAE",
    network=MAE,
    kinds=("vit_mae",),
    keys=(*(rf"vit\.{key}" for key in vit.HF_KEYS), r"decoder\.mask_token"),
    table=(
        *under("backbone.", "vit.", vit.HF_TABLE),
        *vit.hf_blocks("decoder_blocks", _LAYERS),
        Entry("{rest}", "decoder.{rest}"),
    ),
    spellings=((r"^decoder\.decoder_encoder\.layer\.", f"{_LAYERS}."),),  # the name in some versions of transformers
    numbers=_hf_numbers,
    build=_build,
    normalization=HALF,
    to="hf",
    fits=_hf_fits,
    config=_hf_config,
    beside=vit.processor,
    # their encoder masks patches and shuffles the rest, of which the mean is still that of all
    usage=usage.features_by(vit.pooled("mean"), options=", mask_ratio=0.0"),
)


def _authors_numbers(source: Source) -> dict[str, Any]:
    width = source.shape("decoder_embed.weight", 2)[0]
    encoder = timm_vit.timm_numbers(source)
    heads = source.argued("decoder_num_heads") or (16 if width % 16 == 0 and width >= 256 else max(1, width // 32))
    normed, ratio = source.argument("norm_pix_loss"), source.argument("mask_ratio")
    return {
        "encoder": {key: encoder[key] for key in encoder if key != "pool"},
        "decoder_width": width,
        "decoder_depth": source.count(r"decoder_blocks\.(\d+)\."),
        "decoder_heads": heads,
        "decoder_mlp_ratio": source.shape("decoder_blocks.0.mlp.fc1.weight", 2)[0] / width,
        "normalize_targets": True if normed is None else bool(normed),
        "mask_ratio": ratio if isinstance(ratio, float) and 0 <= ratio < 1 else 0.75,
    }


def _authors_fits(mae: MAE) -> None:
    if not isinstance(mae.backbone, ViT):
        raise SensoriumError(f"the authors' MAE needs a ViT, not a {type(mae.backbone).__name__}.")
    vit.plain(mae.backbone, "the authors'")


AUTHORS = Format(
    name="authors' MAE",
    network=MAE,
    keys=(*timm_vit.TIMM_KEYS, r"decoder_embed\.weight"),
    table=(Entry("backbone.{rest}", "{rest}"), Entry("{rest}", "{rest}")),
    numbers=_authors_numbers,
    build=_build,
    normalization=IMAGENET,
    to="authors",
    fits=_authors_fits,
    file="mae.pth",
    container="model",
)

FORMATS: tuple[Format, ...] = (HF, HF_ENCODER, AUTHORS)
