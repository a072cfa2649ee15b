"""Formats of BEiT (Bao et al., 2022, arXiv:2106.08254): transformers' BeitModel, timm's ``Beit``, and ours.

transformers resamples the table of distances for images of other sizes, and so does the network here; timm's class takes
images of one size only, and its ``set_input_size`` resamples in another way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

from sensorium.errors import SensoriumError
from sensorium.networks.beit import EXTRA, BEiT, Distances
from sensorium.networks.formats.shared import (
    CLASSIFIER,
    FEED,
    MASKED,
    POOL,
    TRANSFORMER_FIELDS,
    Fields,
    flags,
    own,
    processor,
    squares,
    timm_beside,
)
from sensorium.networks.formats.timm_vit import TIMM_EPS, TIMM_KEYS, timm_eps, timm_patch, timm_pool, timm_ratio
from sensorium.published import usage
from sensorium.published.format import HALF, Dropped, Entry, Format, Preparation, layers
from sensorium.published.source import Source

TABLE = "relative_position_bias_table"
INDEX = Dropped(r".*relative_position_index", "the index of a table follows from the grid")
FC_NORM = "fc_norm"


def _of(*pools: str) -> Callable[[Any], Any]:
    return lambda network: network if isinstance(network, BEiT) and network.pool in pools else None


# --- Hugging Face ---

_SELF = "encoder.layer.{i}.attention.attention"


def _hf_numbers(source: Source) -> dict[str, Any]:
    source.only("num_channels", 3)
    source.only("hidden_act", "gelu")
    width, depth = source.whole("hidden_size"), source.whole("num_hidden_layers")
    source.agree(depth, source.count(r"encoder\.layer\.(\d+)\."), "num_hidden_layers")
    each = source.flag("use_relative_position_bias", False)
    if each is source.flag("use_shared_relative_position_bias", False):
        raise SensoriumError(
            f"{source.told}: use_relative_position_bias or use_shared_relative_position_bias must be true, and not both."
        )
    size, patch = squares(source)
    mean = source.flag("use_mean_pooling", True)
    return {
        "image_size": size,
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "heads": source.whole("num_attention_heads"),
        "hidden": source.whole("intermediate_size"),
        "relative": "each" if each else "shared",
        "absolute": source.flag("use_absolute_position_embeddings", False),
        "scaled": source.number("layer_scale_init_value", 0.1, low=-1) > 0,
        "pool": "mean" if mean else "cls",
        "eps": source.eps("layer_norm_eps", 1e-12),
    }


def _hf_fits(network: BEiT) -> None:
    if not isinstance(network.image_size, int):
        raise SensoriumError(f"Hugging Face's BEiT has square images only; this one has {network.grid} patches.")
    if not network.biased:
        raise SensoriumError("Hugging Face's BEiT has biases of queries and values; this one has none.")
    if network.pool == "mean":
        raise SensoriumError("Hugging Face's BEiT norms the mean of the patches, this network the patches.")


def _hf_config(network: BEiT) -> dict[str, Any]:
    return {
        "architectures": ["BeitModel"], "model_type": "beit", "num_channels": 3, "hidden_size": network.dim,
        "num_hidden_layers": network.depth, "num_attention_heads": network.heads,
        "intermediate_size": network.hidden, "hidden_act": "gelu", "image_size": network.image_size,
        "patch_size": network.patch_size, "layer_norm_eps": network.eps, "use_mask_token": False,
        "use_relative_position_bias": network.relative == "each",
        "use_shared_relative_position_bias": network.relative == "shared",
        "use_absolute_position_embeddings": network.absolute, "layer_scale_init_value": 0.1 if network.scaled else 0.0,
        "use_mean_pooling": network.pool != "cls", "drop_path_rate": 0.0, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip


_HF_TABLE = (
    Entry("cls_token", "embeddings.cls_token"),
    Entry("pos_embed", "embeddings.position_embeddings"),
    Entry("patch_embed.proj.{kind}", "embeddings.patch_embeddings.projection.{kind}"),
    Entry("distances.table", f"encoder.relative_position_bias.{TABLE}"),
    Entry("blocks.{i}.ls{n}.gamma", "encoder.layer.{i}.lambda_{n}"),
    Entry("blocks.{i}.attn.distances.table", f"{_SELF}.relative_position_bias.{TABLE}"),
    Entry("blocks.{i}.attn.qkv.weight", tuple(f"{_SELF}.{part}.weight" for part in ("query", "key", "value"))),
    Entry("blocks.{i}.attn.q_bias", f"{_SELF}.query.bias"),
    Entry("blocks.{i}.attn.v_bias", f"{_SELF}.value.bias"),
    *layers("blocks.{i}.", "encoder.layer.{i}.", {
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }),
)  # fmt: skip
HF = Format(
    name="Hugging Face BEiT",
    network=BEiT,
    kinds=("beit",),
    keys=(
        r"embeddings\.patch_embeddings\.projection\.weight",
        rf"encoder\.(layer\.0\.attention\.attention\.)?relative_position_bias\.{TABLE}",
    ),
    absent=(r"pooler\.layernorm\.weight",),
    table=(*_HF_TABLE, Entry("norm.{kind}", "layernorm.{kind}")),
    spellings=((r"^beit\.", ""),),  # if a head was saved with it
    dropped=(
        INDEX,
        Dropped(r"embeddings\.mask_token", MASKED),
        Dropped(r"lm_head\.(weight|bias)", MASKED),
        Dropped(r"classifier\.(weight|bias)", CLASSIFIER),
    ),
    numbers=_hf_numbers,
    normalization=HALF,
    to="hf",
    usage=usage.features_by("found.pooler_output"),
    of=_of("cls", "mean"),
    fits=_hf_fits,
    config=_hf_config,
    beside=processor,
)
HF_MEAN = replace(
    HF,
    name="Hugging Face BEiT with mean pooling",
    keys=(*HF.keys, r"pooler\.layernorm\.weight"),
    absent=(),
    table=(*_HF_TABLE, Entry("norm.{kind}", "pooler.layernorm.{kind}")),
    numbers=lambda source: _hf_numbers(source) | {"pool": FC_NORM},
    of=_of(FC_NORM),
)


# --- timm ---

_EACH, _SHARED = f"blocks.0.attn.{TABLE}", f"rel_pos_bias.{TABLE}"


def _timm_numbers(source: Source) -> dict[str, Any]:
    arguments = source.within("model_args")
    width, patch = timm_patch(source)
    each = _EACH in source.state
    entries, heads = source.shape(_EACH if each else _SHARED, 2)
    size = None if arguments.config.get("img_size") is None else arguments.side("img_size")
    if size is None:  # a square of an odd number of distances a side
        size = (round((entries - EXTRA) ** 0.5) + 1) // 2 * patch if entries > EXTRA else 0
    grid = tuple(side // patch for side in (size if isinstance(size, tuple) else (size, size)))
    if min(grid) < 1 or (2 * grid[0] - 1) * (2 * grid[1] - 1) + EXTRA != entries:
        raise SensoriumError(
            f"{source.where}: '{_EACH if each else _SHARED}' has {entries} entries, which is not a table of a "
            f"{'square' if isinstance(size, int) else f'{grid[0]}x{grid[1]}'} grid."
        )
    return {
        "image_size": size,
        "patch_size": patch,
        "width": width,
        "depth": source.count(r"blocks\.(\d+)\."),
        "heads": heads,
        "hidden": source.shape("blocks.0.mlp.fc1.weight", 2)[0],
        "relative": "each" if each else "shared",
        "absolute": "pos_embed" in source.state,
        "biased": "blocks.0.attn.q_bias" in source.state,
        "scaled": "blocks.0.gamma_1" in source.state,
        "pool": timm_pool(source),
        "eps": TIMM_EPS,
    }


def _timm_config(network: BEiT) -> dict[str, Any]:
    arguments = {
        "img_size": network.image_size, "patch_size": network.patch_size, "embed_dim": network.dim,
        "depth": network.depth, "num_heads": network.heads, "mlp_ratio": timm_ratio(network.dim, network.hidden),
        "qkv_bias": network.biased, "init_values": 0.1 if network.scaled else None, "num_classes": 0,
        "use_abs_pos_emb": network.absolute, "use_rel_pos_bias": network.relative == "each",
        "use_shared_rel_pos_bias": network.relative == "shared", "use_fc_norm": network.pool == FC_NORM,
        "global_pool": "token" if network.pool == "cls" else "avg",
    }  # fmt: skip
    return {"architecture": "beit_base_patch16_224", "num_classes": 0, "model_args": arguments}


def _timm_beside(network: BEiT, how: Preparation) -> dict[str, dict[str, Any]]:
    return timm_beside(network, how, _timm_config(network))


TIMM_BLOCK = (
    Entry("blocks.{i}.ls{n}.gamma", "blocks.{i}.gamma_{n}"),
    Entry("distances.table", _SHARED),
    Entry("blocks.{i}.attn.distances.table", f"blocks.{{i}}.attn.{TABLE}"),
)
TIMM = Format(
    name="timm BEiT",
    network=BEiT,
    keys=(*TIMM_KEYS, rf"(blocks\.0\.attn|rel_pos_bias)\.{TABLE}"),
    absent=(r"fc_norm\.weight",),
    table=(*TIMM_BLOCK, Entry("{rest}", "{rest}")),
    dropped=(
        INDEX,
        Dropped(r"mask_token", MASKED),
        Dropped(r"lm_head\.(weight|bias)", MASKED),
        Dropped(r"head\.(weight|bias)", CLASSIFIER),
    ),
    numbers=_timm_numbers,
    normalization=HALF,
    to="timm",
    usage=usage.by_timm,
    of=_of("cls", "mean"),
    fits=timm_eps,
    config=_timm_config,
    beside=_timm_beside,
)
TIMM_MEAN = replace(
    TIMM,
    name="timm BEiT with fc_norm",
    keys=(*TIMM.keys, r"fc_norm\.weight"),
    absent=(),
    table=(*TIMM_BLOCK, Entry("norm.{kind}", "fc_norm.{kind}"), Entry("{rest}", "{rest}")),
    numbers=lambda source: _timm_numbers(source) | {"pool": FC_NORM},
    of=_of(FC_NORM),
)


# --- ours ---

FIELDS: Fields = {
    **TRANSFORMER_FIELDS, **FEED, **POOL, **flags("absolute", "biased", "scaled"),
    "relative": lambda source, name: source.word(name, get_args(Distances)),
}  # fmt: skip
OWN = own("BEiT", BEiT, "beit", FIELDS)

FORMATS: tuple[Format, ...] = (HF, HF_MEAN, TIMM, TIMM_MEAN, OWN)
