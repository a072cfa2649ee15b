"""Formats of ConvNeXt and ConvNeXt V2: Hugging Face's (one for each), timm's, the authors' (facebookresearch/ConvNeXt and
ConvNeXt-V2), torchvision's, and ours.

Norms have an epsilon of 1e-6 in all of them, but for Hugging Face's last one, which its configuration holds, and for
timm's, which are as its arguments say.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sensorium.base.reading import printable
from sensorium.errors import SensoriumError
from sensorium.networks.convnext import LAYER_SCALE, ConvNeXt
from sensorium.networks.formats.shared import CLASSIFIER, Fields, flags, numbers_of, own, processor, timm_beside
from sensorium.published import usage
from sensorium.published.format import IMAGENET, Change, Dropped, Entry, Format, Preparation, layers
from sensorium.published.source import Source, shown

EPS = 1e-6
_DOWN, _BLOCK = "stages.{s}.downsample.{n}.{kind}", "stages.{s}.blocks.{i}."
_CHANNELS_FIRST = Change(lambda x, _: x.flatten(), lambda x, _: x[:, None, None])  # [D, 1, 1] of theirs
_CHANNELS_LAST = Change(lambda x, _: x.flatten(), lambda x, _: x[None, None, None])  # [1, 1, 1, D] of theirs


def sniffed(
    source: Source, stem: str, stage: Callable[[int], str], conv: str, *, scale: str, grn: str = "no GRN"
) -> dict[str, Any]:
    """The arguments of a ConvNeXt from its tensors. stem: name of its convolution. stage: of a stage's number, the
    beginning of its blocks' names. conv, scale, grn: names in a block, of its depthwise convolution, LayerScale, GRN."""
    width, colors, patch, across = source.shape(f"{stem}.weight", 4, "a ConvNeXt's stem is expected")
    if colors != 3 or patch != across:
        raise SensoriumError(
            f"{source.where}: '{stem}.weight' has {colors} input channels and patches of {patch}x{across}; only 3 channels "
            "and square patches are supported."
        )
    depths: list[int] = []
    while count := source.count(re.escape(stage(len(depths))) + r"(\d+)\."):
        depths.append(count)
    widths = [source.shape(f"{stage(s)}0.{conv}.weight", 4)[0] for s in range(1, len(depths))]
    first = f"{stage(0)}0."
    return {
        "depths": tuple(depths), "widths": (width, *widths), "patch": patch, "grn": first + grn in source.state,
        "layer_scale": LAYER_SCALE if first + scale in source.state else 0.0,
    }  # fmt: skip


def _has_norm(source: Source, *names: str, last: str) -> Mapping[str, Tensor]:
    """The tensors, with a new last norm ``names[0]`` if the file has none of ``names``, as after FCMAE pretraining, which
    trains none. last: name of a vector of each stage's channels."""
    if any(f"{name}.{kind}" in source.state for name in names for kind in ("weight", "bias")):
        return source.state
    stages = source.count(r"stages\.(\d+)\.")
    (width,) = source.shape(last.format(stages - 1), 1)
    warnings.warn(f"{printable(source.where)}: it has no last norm, as after FCMAE; a new one is used", stacklevel=6)
    return dict(source.state) | {f"{names[0]}.weight": torch.ones(width), f"{names[0]}.bias": torch.zeros(width)}


def _published(net: ConvNeXt, whose: str, *, patch: int | None = None, stages: int | None = None) -> None:
    """SensoriumError for what a published ConvNeXt does not have; it may have one ``patch`` only, and so many
    ``stages``."""
    for wrong, said in (
        (net.norm_first, "its last norm after pooling; this network before it"),
        (net.grn and net.layer_scale, "either GRN or LayerScale; this network both"),
        (patch not in (None, net.patch), f"patches of {patch} pixels; this network of {net.patch}"),
        (stages not in (None, len(net.depths)), f"{stages} stages; this network {len(net.depths)}"),
    ):
        if wrong:
            raise SensoriumError(f"{whose} ConvNeXt has {said}.")


def _warn_eps(whose: str, held: float, has: float) -> None:
    if has != held:
        warnings.warn(
            f"{whose} norms have an epsilon of {held:g} in such a file; this network's {has:g}: its outputs there differ "
            "slightly",
            stacklevel=3,
        )


# --- Hugging Face: a class for each of the papers ---


def _hf_numbers(source: Source) -> dict[str, Any]:
    source.only("hidden_act", "gelu")
    source.only("num_channels", 3)
    second = source.config.get("model_type") == HF_V2.kinds[0]
    depths = source.wholes("depths", (3, 3, 9, 3))
    counted = [source.count(rf"encoder\.stages\.{s}\.layers\.(\d+)\.") for s in range(len(depths))]
    source.agree(list(depths), counted, "depths")
    source.agree(source.whole("num_stages", len(depths)), len(depths), "num_stages")
    widths = source.wholes("hidden_sizes", (96, 192, 384, 768))
    source.agree(len(widths), len(depths), "the number of hidden_sizes")
    scale = 0.0 if second else source.number("layer_scale_init_value", LAYER_SCALE, low=-1e6, high=1e6)
    return {
        "depths": depths, "widths": widths, "patch": source.whole("patch_size", 4), "grn": second,
        "layer_scale": max(0.0, scale), "pool_eps": source.eps("layer_norm_eps", 1e-12),
    }  # fmt: skip


def hf_config(net: ConvNeXt) -> dict[str, Any]:
    """Hugging Face's configuration of a ConvNeXt."""
    _warn_eps("Hugging Face's", EPS, net.eps)
    told = {
        "architectures": ["ConvNextV2Model" if net.grn else "ConvNextModel"],
        "model_type": (HF_V2 if net.grn else HF).kinds[0], "num_channels": 3, "patch_size": net.patch,
        "num_stages": len(net.depths), "depths": list(net.depths), "hidden_sizes": list(net.channels),
        "hidden_act": "gelu", "layer_norm_eps": net.pool_eps, "drop_path_rate": 0.0,
    }  # fmt: skip
    return told if net.grn else told | {"layer_scale_init_value": net.layer_scale}


def _version(grn: bool) -> Callable[[Any], Any]:
    """``of``: networks of one of the papers."""
    return lambda network: network if isinstance(network, ConvNeXt) and network.grn == grn else None


_HF_BLOCK = "encoder.stages.{s}.layers.{i}."

HF = Format(
    name="Hugging Face ConvNeXt",
    network=ConvNeXt,
    kinds=("convnext",),
    keys=(r"embeddings\.patch_embeddings\.weight", r"encoder\.stages\.0\.layers\.0\.dwconv\.weight"),
    table=(
        Entry("stem.0.{kind}", "embeddings.patch_embeddings.{kind}"),
        Entry("stem.1.{kind}", "embeddings.layernorm.{kind}"),
        Entry(_DOWN, "encoder.stages.{s}.downsampling_layer.{n}.{kind}"),
        *layers(_BLOCK, _HF_BLOCK, {"dwconv": "dwconv", "norm": "layernorm", "fc1": "pwconv1", "fc2": "pwconv2"}),
        Entry(_BLOCK + "grn.{kind}", _HF_BLOCK + "grn.{kind}", _CHANNELS_LAST),
        Entry(_BLOCK + "ls.gamma", _HF_BLOCK + "layer_scale_parameter"),
        Entry("norm.{kind}", "layernorm.{kind}"),
    ),
    spellings=((r"^convnext(v2)?\.", ""),),  # if a head was saved with it
    dropped=(Dropped(r"classifier\.(weight|bias)", CLASSIFIER),),
    numbers=_hf_numbers,
    normalization=IMAGENET,
    to="hf",
    usage=usage.features_by("found.pooler_output"),
    of=_version(grn=False),
    fits=lambda net: _published(net, "Hugging Face's"),
    config=hf_config,
    beside=processor,
)
HF_V2 = replace(HF, name="Hugging Face ConvNeXt V2", kinds=("convnextv2",), of=_version(grn=True))


# --- timm ---


def _timm_numbers(source: Source) -> dict[str, Any]:
    if source.config.get("sensorium"):
        return own_numbers(source, "sensorium")
    arguments = source.within("model_args")
    for field, *legal in (
        ("act_layer", "gelu"),
        ("norm_layer", "layernorm", "layernorm2d"),
        ("stem_type", "patch"),
        ("output_stride", 32),
        ("global_pool", "avg", ""),
    ):
        if arguments.config.get(field) is not None:
            arguments.only(field, *legal)
    if str(source.config.get("architecture")).startswith("test_convnext"):
        raise SensoriumError(
            f"{source.told}: architecture {shown(source.config['architecture'])} has another activation than GELU."
        )
    if not any(name.endswith("norm.bias") for name in source.state):
        raise SensoriumError(
            f"{source.where}: norms without a bias (convnext_*_rms), which this ConvNeXt does not have."
        )
    found = sniffed(
        source, "stem.0", "stages.{}.blocks.".format, "conv_dw", scale="gamma", grn="mlp.grn.weight"
    )  # fmt: skip
    usual = 1e-5 if found["depths"] == (3, 4, 30, 3) else EPS  # convnext_xxlarge
    first = "norm_pre.weight" in source.state
    return found | {"norm_first": first, "eps": arguments.eps("norm_eps", usual)}


def _timm_prepared(source: Source) -> Mapping[str, Tensor]:
    """Linear layers in the shape of 1x1 convolutions (``conv_mlp``) as linear ones; the last norm, if there is none."""
    linear = {
        name: tensor.flatten(1)
        for name, tensor in source.state.items()
        if re.search(r"\.mlp\.fc[12]\.weight$", name) and tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
    }
    return dict(_has_norm(source, "head.norm", "norm_pre", last="stages.{}.blocks.0.conv_dw.bias")) | linear


def _timm_fits(net: ConvNeXt) -> None:
    if len(net.depths) != 4:
        raise SensoriumError(f"timm's ConvNeXt has four stages, this network {len(net.depths)}.")
    if net.patch == 2:
        raise SensoriumError(
            "timm's ConvNeXt with patches of 2 pixels has another downsampling before its first stage, this network none."
        )


def timm_config(net: ConvNeXt) -> dict[str, Any]:
    """timm's configuration of a ConvNeXt without a head."""
    _warn_eps("timm's", net.eps, net.pool_eps)
    arguments = {
        "depths": list(net.depths), "dims": list(net.channels), "patch_size": net.patch, "use_grn": net.grn,
        "ls_init_value": net.layer_scale or None, "head_norm_first": net.norm_first, "norm_eps": net.eps,
        "num_classes": 0,
    }  # fmt: skip
    # a name that timm knows, overridden by the arguments
    name = "convnextv2_tiny" if net.grn else "convnext_tiny"
    return {"architecture": name, "num_classes": 0, "model_args": arguments, "sensorium": numbers_of(net, _FIELDS)}


def _timm_beside(net: ConvNeXt, how: Preparation) -> dict[str, dict[str, Any]]:
    return timm_beside(net, how, timm_config(net))


_TIMM_REFUSED = (
    (r"stem\.[23]\..+", "a ConvNeXt with an overlapping stem (convnext_*_ols), which this one does not have"),
    (
        r"stages\.0\.downsample\..+",
        "a ConvNeXt with a downsampling before its first stage, which this one does not have",
    ),
)
_TIMM_BLOCK = {"dwconv": "conv_dw", "norm": "norm", "fc1": "mlp.fc1", "grn": "mlp.grn", "fc2": "mlp.fc2"}

TIMM = Format(
    name="timm ConvNeXt",
    network=ConvNeXt,
    keys=(r"stem\.0\.weight", r"stages\.0\.blocks\.0\.conv_dw\.weight"),
    refused=_TIMM_REFUSED,
    table=(
        *layers(_BLOCK, _BLOCK, _TIMM_BLOCK),
        Entry(_BLOCK + "ls.gamma", _BLOCK + "gamma"),
        Entry("norm.{kind}", "head.norm.{kind}"),
        Entry("{rest}", "{rest}"),
    ),
    dropped=(Dropped(r"head\.(pre_logits\.)?fc\.(weight|bias)", CLASSIFIER),),
    numbers=_timm_numbers,
    prepare=_timm_prepared,
    normalization=IMAGENET,
    to="timm",
    usage=usage.by_timm,
    fits=_timm_fits,
    config=timm_config,
    beside=_timm_beside,
)


# --- the authors' state dicts ---


def _authors_prepared(source: Source) -> Mapping[str, Tensor]:
    """GRN of sparse convolutions, whose weights are [1, D]; the last norm, if there is none."""
    flat = {
        name: tensor.reshape(1, 1, 1, -1)
        for name, tensor in source.state.items()
        if ".grn." in name and tensor.ndim == 2 and len(tensor) == 1
    }
    return dict(_has_norm(source, "norm", last="stages.{}.0.dwconv.bias")) | flat


_AUTHORS_BLOCK = "stages.{s}.{i}."

AUTHORS = Format(
    name="authors' ConvNeXt",
    network=ConvNeXt,
    keys=(r"downsample_layers\.0\.0\.weight", r"stages\.0\.0\.dwconv\.(weight|kernel)"),
    refused=(
        (
            r".+\.kernel",
            "sparse convolutions of FCMAE's training code; convert them by its remap_checkpoint_keys first",
        ),
    ),
    table=(
        Entry("stem.{n}.{kind}", "downsample_layers.0.{n}.{kind}"),
        Entry(_DOWN, "downsample_layers.{s}.{n}.{kind}"),
        Entry(_BLOCK + "grn.weight", _AUTHORS_BLOCK + "grn.gamma", _CHANNELS_LAST),
        Entry(_BLOCK + "grn.bias", _AUTHORS_BLOCK + "grn.beta", _CHANNELS_LAST),
        *layers(_BLOCK, _AUTHORS_BLOCK, {"dwconv": "dwconv", "norm": "norm", "fc1": "pwconv1", "fc2": "pwconv2"}),
        Entry(_BLOCK + "ls.gamma", _AUTHORS_BLOCK + "gamma"),
        Entry("norm.{kind}", "norm.{kind}"),
    ),
    dropped=(Dropped(r"head\.(weight|bias)", CLASSIFIER),),
    numbers=lambda source: sniffed(
        source, "downsample_layers.0.0", "stages.{}.".format, "dwconv", scale="gamma", grn="grn.gamma"
    ),
    prepare=_authors_prepared,
    normalization=IMAGENET,
    fits=lambda net: _published(net, "the authors'", patch=4, stages=4),
    file="convnext.pth",
    container="model",
)


# --- torchvision's state dicts ---

_VISION_BLOCK = "features.{2*s+1}.{i}."

TORCHVISION = Format(
    name="torchvision ConvNeXt",
    network=ConvNeXt,
    keys=(r"features\.0\.0\.weight", r"features\.1\.0\.layer_scale"),
    table=(
        Entry("stem.{n}.{kind}", "features.0.{n}.{kind}"),
        Entry(_DOWN, "features.{2*s}.{n}.{kind}"),
        *layers(_BLOCK, _VISION_BLOCK, {"dwconv": "block.0", "norm": "block.2", "fc1": "block.3", "fc2": "block.5"}),
        Entry(_BLOCK + "ls.gamma", _VISION_BLOCK + "layer_scale", _CHANNELS_FIRST),
        Entry("norm.{kind}", "classifier.0.{kind}"),
    ),
    dropped=(Dropped(r"classifier\.2\.(weight|bias)", CLASSIFIER),),
    numbers=lambda source: sniffed(
        source, "features.0.0", lambda s: f"features.{2 * s + 1}.", "block.0", scale="layer_scale"
    ),
    normalization=IMAGENET,
    fits=lambda net: _published(net, "torchvision's", patch=4),
    file="convnext.pth",
)


# --- ours ---

_FIELDS: Fields = flags("grn", "norm_first") | {
    **dict.fromkeys(("depths", "widths"), Source.wholes),
    **dict.fromkeys(("eps", "pool_eps"), Source.eps),
    "patch": Source.whole,
    "layer_scale": lambda source, name: source.number(name, low=0, high=1e6),
}


def own_numbers(source: Source, name: str = "numbers") -> dict[str, Any]:
    """The arguments in our own files."""
    numbers = source.arguments(name, _FIELDS)
    stages = source.count(r"stages\.(\d+)\.")
    source.agree(
        numbers["depths"], tuple(source.count(rf"stages\.{s}\.blocks\.(\d+)\.") for s in range(stages)), "depths"
    )
    return numbers


OWN = own("ConvNeXt", ConvNeXt, "convnext", _FIELDS, key=r"stem\.0\.weight", numbers=own_numbers)

FORMATS: tuple[Format, ...] = (HF, HF_V2, TIMM, AUTHORS, TORCHVISION, OWN)
