"""The format of DeiT (Touvron et al., 2021, arXiv:2012.12877) in transformers, its DeiTModel. timm's: ``timm_vit.py``.

A ViT with a second class token, which a teacher's labels trained (section 3.1: the distillation token). Here it is a
register of a ViT, a token that is kept in the sequence: as its position never changes, both are one learned vector. The
feature is the class token; the published classifier is the mean of the logits of two heads, one on each token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from sensorium.networks.formats.shared import CLASSIFIER, MASKED, POOLS, processor, published
from sensorium.networks.formats.timm_vit import PLACES, folded
from sensorium.networks.formats.vit import ACTIVATIONS, HF, HF_TABLE, hf_config, hf_numbers
from sensorium.networks.vit import ViT
from sensorium.published.format import IMAGENET, Dropped, Entry, Format
from sensorium.published.source import Source

KNOWN = tuple(ACTIVATIONS.values())
DISTILLED, PLACED = "embeddings.distillation_token", "embeddings.position_embeddings"


def _numbers(source: Source) -> dict[str, Any]:
    return hf_numbers(source) | {"registers": 1, "pool": source.word("sensorium_pool", POOLS, "cls")}


def _prepared(source: Source) -> Mapping[str, Tensor]:
    source.shape(DISTILLED, 3)
    source.shape(PLACED, 3)
    return folded(source.state, 2, DISTILLED, PLACED)


def _plain_with_one(network: Any) -> Any:
    one = isinstance(network, ViT) and network.registers == 1 and network.rope is None
    return network if one and set(network.parts) <= set(KNOWN) else None


def _config(vit: ViT) -> dict[str, Any]:
    return hf_config(vit) | {"architectures": ["DeiTModel"], "model_type": "deit"}


DEIT = replace(
    HF,
    name="Hugging Face DeiT",
    kinds=("deit",),
    keys=(*HF.keys, DISTILLED.replace(".", r"\.")),
    table=(
        Entry("reg_token", DISTILLED),
        Entry("pos_embed", PLACED, PLACES),
        *HF_TABLE,
    ),
    spellings=((r"^deit\.", ""),),  # if a head was saved with it
    absent=(),
    dropped=(
        *HF.dropped,
        Dropped(r"(cls|distillation)_classifier\.(weight|bias)", CLASSIFIER),
        Dropped(r"decoder\.0\.(weight|bias)", MASKED),
    ),
    numbers=_numbers,
    prepare=_prepared,
    normalization=IMAGENET,
    of=_plain_with_one,
    fits=lambda vit: published(vit, "transformers' DeiT's", KNOWN),
    config=_config,
    beside=processor,
)

FORMATS: tuple[Format, ...] = (DEIT,)
