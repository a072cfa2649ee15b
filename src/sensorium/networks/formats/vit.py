"""Formats of the ViT: Hugging Face's, timm's (and torch.hub's of DeiT, MAE and DINO, which have its names), and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensorium.networks.formats.shared import (
    CLASSIFIER,
    DECODER,
    MASKED,
    POOLS,
    feed_channels,
    own,
    plain,
    pooled,
    processor,
)
from sensorium.networks.formats.shared import timm_beside as timm_beside
from sensorium.networks.formats.timm_vit import TIMM
from sensorium.networks.formats.timm_vit import timm_config as timm_config
from sensorium.networks.vit import ViT
from sensorium.published import usage
from sensorium.published.format import HALF, Dropped, Entry, Format, Preparation, layers, under
from sensorium.published.source import Source

# --- Hugging Face ---

HF_BLOCK = layers("", "", {
    "norm1": "layernorm_before",
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "mlp.gate_up": "intermediate.dense",
    "mlp.down": "output.dense",
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


# transformers' words for the activations that are not exactly GELU, and the part that is such a layer
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu"}


def hf_numbers(source: Source, prefix: str = "", activations: Mapping[str, str] = ACTIVATIONS) -> dict[str, Any]:
    """The arguments of a ViT that Hugging Face's configuration describes. prefix: of the encoder's names."""
    activation = source.word("hidden_act", ("gelu", *activations), "gelu")
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
        "parts": (activations[activation],) if activation in activations else (),
    }


def hf_activation(vit: Any) -> str:
    """transformers' word for the activation of a network with ``parts``."""
    return next((word for word, part in ACTIVATIONS.items() if part in vit.parts), "gelu")


def hf_config(vit: ViT) -> dict[str, Any]:
    """Hugging Face's configuration of a ViT."""
    return {
        "architectures": ["ViTModel"], "model_type": "vit", "num_channels": 3, "hidden_size": vit.dim,
        "num_hidden_layers": vit.depth, "num_attention_heads": vit.heads,
        "intermediate_size": feed_channels(vit), "hidden_act": hf_activation(vit), "image_size": vit.image_size,
        "patch_size": vit.patch_size, "layer_norm_eps": vit.norm.eps, "qkv_bias": vit.qkv_bias,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "sensorium_pool": vit.pool,
    }  # fmt: skip


def _hf_usage(vit: ViT, how: Preparation) -> str:
    return usage.features_by(pooled(vit.pool), options=", add_pooling_layer=False")(vit, how)


HF = Format(
    name="Hugging Face ViT",
    network=ViT,
    kinds=("vit",),
    keys=HF_KEYS,
    absent=(DECODER,),
    table=HF_TABLE,
    spellings=((r"^vit\.", ""),),  # if a head was saved with it
    dropped=(
        Dropped(r"pooler\.dense\.(weight|bias)", "the pooler is not part of the published features"),
        Dropped(r"classifier\.(weight|bias)", CLASSIFIER),
        Dropped(r"embeddings\.mask_token", MASKED),
    ),
    numbers=lambda source: hf_numbers(source) | {"pool": source.word("sensorium_pool", POOLS, "cls")},
    normalization=HALF,
    to="hf",
    fits=lambda vit: plain(vit, "Hugging Face's", tuple(ACTIVATIONS.values())),
    config=hf_config,
    beside=processor,
    usage=_hf_usage,
)


# --- ours ---


OWN = own("ViT", ViT, "vit")

FORMATS: tuple[Format, ...] = (HF, TIMM, OWN)
