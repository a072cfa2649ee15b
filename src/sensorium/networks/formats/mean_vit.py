"""Formats of ViTs without class token: timm's, also with ``fc_norm`` (its norm is that of the mean of the patches, and no token
is normed), transformers' IJepaModel, and ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.networks.formats.shared import (
    CLASSIFIER,
    MASKED,
    MEAN_VIT_FIELDS,
    Fields,
    numbers_of,
    own,
    own_numbers,
    processor,
    timm_beside,
)
from sensorium.networks.formats.timm_vit import (
    TIMM,
    TIMM_KEYS,
    TIMM_PARTS,
    TIMM_REFUSED,
    TIMM_TABLE,
    timm_config,
    timm_eps,
    timm_grid,
    timm_shapes,
)
from sensorium.networks.formats.vit import ACTIVATIONS, HF_KEYS, HF_TABLE, hf_config, hf_numbers
from sensorium.networks.mean_vit import MeanViT, Positions
from sensorium.published import usage
from sensorium.published.format import IMAGENET, Dropped, Format, Preparation
from sensorium.published.source import Source, shown

MEANS = ("mean", "fc_norm")


def _of(pool: str) -> Callable[[Any], Any]:
    return lambda network: network if isinstance(network, MeanViT) and network.pool == pool else None


def _has(network: MeanViT, whose: str, parts: tuple[str, ...]) -> None:
    if other := [part for part in network.parts if part not in parts]:
        raise SensoriumError(f"{whose} ViT without class token has no {', '.join(other)}.")


# --- timm ---


def _timm_numbers(source: Source) -> dict[str, Any]:
    if source.config.get("sensorium"):
        timm_grid(source, 0)
        return own_numbers(source, "sensorium", FIELDS)
    pooled = source.within("model_args").config.get("global_pool", source.config.get("global_pool"))
    if pooled not in (None, "", "avg"):
        raise SensoriumError(
            f"{source.told}: global_pool {shown(pooled)} without a class token is not supported; it must be 'avg'."
        )
    return timm_shapes(source, timm_grid(source, 0)[0]) | {"pool": "mean", "resampling": "antialias"}


def _timm_prepared(source: Source) -> Mapping[str, Tensor]:
    """Positions of registers are added to the registers."""
    state, (_, before) = dict(source.state), timm_grid(source, 0)
    if before:
        state["reg_token"] = state["reg_token"] + state["pos_embed"][:, :before]
    return state | {"pos_embed": state["pos_embed"][:, before:]}


def _timm_fits(network: MeanViT) -> None:
    _has(network, "timm's", TIMM_PARTS)
    timm_eps(network)


def _timm_config(network: MeanViT) -> dict[str, Any]:
    told = timm_config(network, numbers_of(network, FIELDS))
    return told | {"model_args": told["model_args"] | {"class_token": False, "no_embed_class": True}}


def _timm_beside(network: MeanViT, how: Preparation) -> dict[str, dict[str, Any]]:
    return timm_beside(network, how, _timm_config(network))


TIMM_MEAN = replace(
    TIMM,
    name="timm ViT without class token",
    network=MeanViT,
    keys=(*TIMM_KEYS, r"pos_embed"),
    absent=(r"cls_token", r"fc_norm\.weight", r"blocks\.0\.gamma_1"),
    refused=TIMM_REFUSED,
    table=TIMM_TABLE[1:],
    spellings=(),
    numbers=_timm_numbers,
    prepare=_timm_prepared,
    of=_of("mean"),
    fits=_timm_fits,
    config=_timm_config,
    beside=_timm_beside,
)
TIMM_FC_NORM = replace(
    TIMM_MEAN,
    name="timm ViT without class token, with fc_norm",
    keys=(*TIMM_MEAN.keys, r"fc_norm\.weight"),
    absent=(r"cls_token", r"blocks\.0\.gamma_1"),
    table=(replace(TIMM_TABLE[-1], ours="norm.{kind}", theirs="fc_norm.{kind}"), *TIMM_MEAN.table),
    numbers=lambda source: _timm_numbers(source) | {"pool": "fc_norm"},
    of=_of("fc_norm"),
)


# --- I-JEPA ---


def _hf_fits(network: MeanViT) -> None:
    _has(network, "transformers' I-JEPA's", tuple(ACTIVATIONS.values()))
    if network.registers:
        raise SensoriumError("transformers' I-JEPA has no register tokens.")


HF = Format(
    name="Hugging Face I-JEPA",
    network=MeanViT,
    kinds=("ijepa",),
    keys=HF_KEYS,
    absent=(r"embeddings\.cls_token",),
    table=HF_TABLE[1:],
    spellings=((r"^ijepa\.", ""),),  # if a head was saved with it
    dropped=(
        Dropped(r"pooler\.dense\.(weight|bias)", "the pooler is not part of the published features"),
        Dropped(r"classifier\.(weight|bias)", CLASSIFIER),
        Dropped(r"embeddings\.mask_token", MASKED),
    ),
    numbers=lambda source: hf_numbers(source) | {"pool": "mean", "resampling": "bicubic"},
    normalization=IMAGENET,
    to="hf",
    usage=usage.features_by("found.last_hidden_state.mean(1)"),
    of=_of("mean"),
    fits=_hf_fits,
    config=lambda network: hf_config(network) | {"architectures": ["IJepaModel"], "model_type": "ijepa"},
    beside=processor,
)


# --- ours ---

FIELDS: Fields = MEAN_VIT_FIELDS | {
    "pool": lambda source, name: source.word(name, MEANS),
    "positions": lambda source, name: source.word(name, get_args(Positions)),
}
OWN = own("ViT without class token", MeanViT, "mean_vit", FIELDS)

FORMATS: tuple[Format, ...] = (TIMM_MEAN, TIMM_FC_NORM, HF, OWN)
