"""Formats of Swin V2: Hugging Face's, timm's, the authors' and ours; where others' outputs differ is said in
:mod:`sensorium.networks.formats.swin`.

Biases come from a network of distances, so that the weights don't tell the windows. Hugging Face's configuration does;
timm's has them in its arguments or in the architecture's name; the authors' files contain the table of distances.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.networks.formats import swin
from sensorium.networks.formats.shared import Fields, numbers_of, own
from sensorium.networks.formats.swin import AFTER, PATCHES, SCALE, published, side_of
from sensorium.networks.swin import clipped
from sensorium.networks.swinv2 import SwinV2
from sensorium.published.format import Format
from sensorium.published.source import Source, shown

FIELDS: Fields = {**swin.FIELDS, "references": Source.wholes}


def _references(told: Any, windows: tuple[int, ...], source: Source) -> dict[str, Any]:
    """``references`` from a window for all stages or a list of windows, in which 0 is the window itself."""
    listed = told if isinstance(told, list | tuple) else [told or 0] * len(windows)
    if len(listed) < len(windows) or not all(type(w) is int and 0 <= w <= 1 << 10 for w in listed):
        raise SensoriumError(
            f"{source.told}: {source.inside}pretrained_window_sizes {shown(told, '')} are not the windows of the stages."
        )
    return {"references": tuple(w or window for w, window in zip(listed, windows, strict=False))}


# --- Hugging Face ---


def _hf_numbers(source: Source) -> dict[str, Any]:
    found = swin.hf_numbers(source)
    depths, window = found["depths"], found["windows"][0]
    windows = clipped(source.whole("image_size", 224), found["patch"], window, len(depths))
    return found | {"windows": windows} | _references(source.config.get("pretrained_window_sizes"), windows, source)


def hf_config(net: SwinV2, side: Any = None) -> dict[str, Any]:
    """Hugging Face's configuration of a Swin V2, for images of ``side`` pixels if its windows are built so."""
    told = {"architectures": ["Swinv2Model"], "model_type": "swinv2", "pretrained_window_sizes": list(net.references)}
    return swin.hf_config(net, side) | told


def _hf_fits(net: SwinV2) -> None:
    published(net, "Hugging Face's")
    side_of(net, "Hugging Face's")


HF = replace(
    swin.HF,
    name="Hugging Face Swin V2",
    network=SwinV2,
    kinds=("swinv2",),
    numbers=_hf_numbers,
    fits=_hf_fits,
    config=hf_config,
    beside=swin.hf_files(hf_config),
)


# --- timm, and the authors ---


def _layered(source: Source) -> dict[str, Any]:
    """The arguments of a Swin V2 from timm's or the authors' tensors, without its windows."""
    return swin.sniffed(
        source, "patch_embed.proj", "layers.{}.blocks.".format, fc1="mlp.fc1", heads=(f"attn.{SCALE}", 0),
        biased="attn.q_bias",
    )  # fmt: skip


_NAMED = re.compile(r"swinv2_[a-z]+_window(\d+)(?:to(\d+))?_(\d+)(?:to(\d+))?")


def _timm_numbers(source: Source) -> dict[str, Any]:
    if source.config.get("sensorium"):
        return swin.own_numbers(source, "sensorium", FIELDS)
    arguments, found = swin.timm_arguments(source), _layered(source)
    name = _NAMED.match(str(source.config.get("architecture", "")))  # swinv2_base_window12to16_192to256
    if name is None and not {"window_size", "img_size"} <= arguments.config.keys():
        raise SensoriumError(
            f"{source.where}: the weights of a Swin V2 don't tell its windows; load the directory with timm's config.json, "
            "whose architecture or model_args do."
        )
    first, then, small, large = (int(one) if one else None for one in name.groups()) if name else (None,) * 4
    stages = len(found["depths"])
    before = [first] * (stages - 1) + [first // 2] if first and then else None
    window, side = arguments.whole("window_size", then or first), arguments.whole("img_size", large or small)
    windows = clipped(side, found["patch"], window, stages)
    return found | {"windows": windows} | _references(
        arguments.config.get("pretrained_window_sizes", before), windows, arguments
    )  # fmt: skip


def timm_config(net: SwinV2, side: Any = None) -> dict[str, Any]:
    """timm's configuration of a Swin V2 without a head, for images of ``side`` pixels if its windows are built so."""
    told = swin.timm_config(net, side)
    arguments = told["model_args"] | {"pretrained_window_sizes": list(net.references)}
    own = {"architecture": "swinv2_tiny_window8_256", "sensorium": numbers_of(net, FIELDS)}
    return told | own | {"model_args": arguments}


_KEYS = (PATCHES, rf"layers\.0\.blocks\.0\.attn\.{SCALE}", r"layers\.0\.blocks\.0\.attn\.cpb_mlp\.2\.weight")

TIMM = replace(
    swin.TIMM,
    name="timm Swin V2",
    network=SwinV2,
    keys=_KEYS,
    numbers=_timm_numbers,
    config=timm_config,
    beside=swin.timm_files(timm_config),
)


def _authors_numbers(source: Source) -> dict[str, Any]:
    """With windows from the tables of logarithmic distances, of which the last is log2(1 + 8 (M - 1) / (reference - 1)) /
    3."""
    found, windows, references = _layered(source), [], []
    for s in range(len(found["depths"])):
        name = f"layers.{s}.blocks.0.attn.relative_coords_table"
        side = source.shape(name, 4, "the authors' files of Swin V2 have it")[1]
        farthest = float(source.state[name].flatten()[-1])
        windows.append((side + 1) // 2)
        told = 0 < farthest < 8 and windows[-1] > 1
        references.append(round(8 * (windows[-1] - 1) / (2 ** (3 * farthest) - 1)) + 1 if told else windows[-1])
    return found | {"windows": tuple(windows), "references": tuple(references)}


AUTHORS = replace(swin.AUTHORS, name="authors' Swin V2", network=SwinV2, keys=(*_KEYS, AFTER), numbers=_authors_numbers)


# --- ours ---

OWN = own(
    "Swin V2", SwinV2, "swinv2", FIELDS, key=swin.OWN_KEY + "logit_scale",
    numbers=lambda source: swin.own_numbers(source, fields=FIELDS),
)  # fmt: skip

FORMATS: tuple[Format, ...] = (HF, TIMM, AUTHORS, OWN)
