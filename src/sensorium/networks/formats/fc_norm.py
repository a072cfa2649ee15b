"""The format of timm's ViT with ``fc_norm``: its norm is that of the mean of the patches, and no token is normed. timm's usual
one for mean pooling, and that of MAE's fine-tuning (He et al., 2022, arXiv:2111.06377; ``--global_pool`` of its code)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.networks.formats.shared import published
from sensorium.networks.formats.timm_vit import TIMM, TIMM_KEYS, TIMM_PARTS, TIMM_TABLE, timm_eps, timm_numbers
from sensorium.networks.vit import ViT
from sensorium.published.format import Entry, Format
from sensorium.published.source import Source, shown


def _numbers(source: Source) -> dict[str, Any]:
    pooled = source.within("model_args").config.get("global_pool", source.config.get("global_pool"))
    if pooled not in (None, "avg"):
        raise SensoriumError(
            f"{source.told}: global_pool {shown(pooled)} with fc_norm is not supported; it must be 'avg'."
        )
    return timm_numbers(source) | {"pool": "fc_norm"}


def _fits(vit: ViT) -> None:
    published(vit, "timm's", (*TIMM_PARTS, "fc_norm"))
    timm_eps(vit)


TIMM_MEAN = replace(
    TIMM,
    name="timm ViT with fc_norm",
    keys=(*TIMM_KEYS, r"cls_token", r"fc_norm\.weight"),
    absent=(
        r"blocks\.0\.(gamma_1|attn\.q_bias|attn\.relative_position_bias_table)",
        r"rel_pos_bias\..+",
        r"norm_pre\.weight",
    ),
    table=(Entry("norm.{kind}", "fc_norm.{kind}"), *TIMM_TABLE),
    numbers=_numbers,
    of=lambda network: network if isinstance(network, ViT) and network.pool == "fc_norm" else None,
    fits=_fits,
)

FORMATS: tuple[Format, ...] = (TIMM_MEAN,)
