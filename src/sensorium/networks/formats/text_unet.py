"""Formats of the U-Net of Stable Diffusion 1 and 2: diffusers' ``UNet2DConditionModel`` directories, and the single files of the
authors' code (CompVis/stable-diffusion, Stability-AI/stablediffusion), of which it is one part of three.

A single file has no configuration: sizes follow from shapes, all but the number of heads, which is that of the published
networks with such texts and projections. diffusers calls the number of heads ``attention_head_dim``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sensorium.base.reading import printable
from sensorium.errors import SensoriumError
from sensorium.networks.text_unet import TextUNet
from sensorium.published.format import Change, Dropped, Entry, Format, Preparation, layers
from sensorium.published.opening import open_path
from sensorium.published.source import Source, shown

# the halves of GEGLU's first layer: ours has the gate first
_HALVES = Change(lambda x, _: x.roll(len(x) // 2, 0), lambda x, _: x.roll(len(x) // 2, 0))
_PROJECTION = Change(lambda x, _: x.flatten(1), lambda x, net: x if net.matrices else x[..., None, None])
_LAYER = {
    **{norm: norm for norm in ("norm1", "norm2", "norm3")},
    **{f"{one}.q": f"{one}.to_q" for one in ("attn1", "attn2")},
    **{f"{one}.kv": (f"{one}.to_k", f"{one}.to_v") for one in ("attn1", "attn2")},
    **{f"{one}.proj": f"{one}.to_out.0" for one in ("attn1", "attn2")},
    "ff.down": "ff.net.2",
}


def _transformer(ours: str, theirs: str) -> tuple[Entry, ...]:
    """In both formats alike."""
    inner, blocks = f"{ours}.layers.{{d}}.", f"{theirs}.transformer_blocks.{{d}}."
    ends = ("proj_in", "proj_out")
    return (
        *(Entry(f"{ours}.{end}.weight", f"{theirs}.{end}.weight", _PROJECTION) for end in ends),
        *(Entry(f"{ours}.{end}.bias", f"{theirs}.{end}.bias") for end in ends),
        *layers(f"{ours}.", f"{theirs}.", {"norm": "norm"}),
        *layers(inner, blocks, _LAYER),
        Entry(f"{inner}ff.gate_up.{{kind}}", f"{blocks}ff.net.0.proj.{{kind}}", _HALVES),
    )


# --- diffusers ---

_BLOCK = {part: part for part in ("norm1", "conv1", "norm2", "conv2")} | {
    "time": "time_emb_proj",
    "shortcut": "conv_shortcut",
}
_ENDS = {
    "conv_in": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
_LEVELS = {"down.{l}": "down_blocks.{l}", "up.{l}": "up_blocks.{l}", "middle": "mid_block"}
_DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
_PLAIN: tuple[tuple[Any, ...], ...] = (  # options of which only one value is supported
    ("mid_block_type", "UNetMidBlock2DCrossAttn"), ("mid_block_scale_factor", 1), ("act_fn", "silu", "swish"),
    ("center_input_sample", False), ("downsample_padding", 1), ("freq_shift", 0), ("only_cross_attention", False),
    ("mid_block_only_cross_attention", None, False), ("dual_cross_attention", False), ("cross_attention_norm", None),
    ("attention_type", "default"), ("num_attention_heads", None), ("reverse_transformer_layers_per_block", None),
    ("encoder_hid_dim", None), ("encoder_hid_dim_type", None), ("addition_embed_type", None),
    ("class_embed_type", None), ("num_class_embeds", None), ("class_embeddings_concat", False),
    ("resnet_time_scale_shift", "default"), ("resnet_skip_time_act", False), ("resnet_out_scale_factor", 1),
    ("time_embedding_type", "positional"), ("time_embedding_act_fn", None), ("timestep_post_act", None),
    ("time_cond_proj_dim", None), ("conv_in_kernel", 3), ("conv_out_kernel", 3),
)  # fmt: skip


def _numbers(source: Source) -> dict[str, Any]:
    # "upcast_attention" needs no counterpart: torch's attention accumulates scores in float32 in any case
    for field, *legal in _PLAIN:
        source.only(field, *legal)
    widths, count = source.wholes("block_out_channels"), source.whole("layers_per_block", 2)
    depth, groups = source.whole("transformer_layers_per_block", 1), source.whole("norm_num_groups", 32)
    source.only("time_embedding_dim", None, 4 * widths[0])
    down, up = source.words("down_block_types", tuple(_DOWN)), source.words("up_block_types", tuple(_UP))
    attention = tuple(_DOWN[kind] for kind in down)
    if attention != tuple(_UP[kind] for kind in reversed(up)):
        raise SensoriumError(
            f"{source.told}: up_block_types {shown(list(up), '')} must have attention at the same levels as down_block_types."
        )
    several = isinstance(source.config.get("attention_head_dim"), list)
    heads = source.wholes("attention_head_dim") if several else (source.whole("attention_head_dim", 8),) * len(down)
    text_width, first = source.whole("cross_attention_dim", 1280), "mid_block.attentions.0.transformer_blocks"
    for name, claimed, found in (
        ("down_block_types", len(down), source.count(r"down_blocks\.(\d+)\.")),
        ("block_out_channels", len(widths), len(down)),
        ("attention_head_dim", len(heads), len(down)),
        ("layers_per_block", count, source.count(r"down_blocks\.0\.resnets\.(\d+)\.")),
        ("transformer_layers_per_block", depth, source.count(rf"{re.escape(first)}\.(\d+)\.")),
        ("cross_attention_dim", text_width, source.shape(f"{first}.0.attn2.to_k.weight", 2)[1]),
        ("in_channels", source.whole("in_channels", 4), source.shape("conv_in.weight", 4)[1]),
    ):
        source.agree(claimed, found, name)
    for i, width in enumerate(widths):
        many = heads[i] if attention[i] or i == len(widths) - 1 else 1  # the middle has the last one's
        for name, number in (("norm_num_groups", groups), ("attention_head_dim (the number of heads)", many)):
            if width % number:
                raise SensoriumError(f"{source.told}: {name} {number} does not divide {width} channels.")
    return {
        "widths": widths,
        "text_width": text_width,
        "channels": source.whole("in_channels", 4),
        "out_channels": source.whole("out_channels", 4),
        "layers": count,
        "attention": attention,
        "heads": heads,
        "depth": depth,
        "groups": groups,
        "eps": source.eps("norm_eps", 1e-5),
        "dropout": source.number("dropout", 0.0, low=0, high=1),
        "cos_first": source.flag("flip_sin_to_cos", True),
        "matrices": source.flag("use_linear_projection", False),
    }


def _config(net: TextUNet) -> dict[str, Any]:
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": net.sample_size,
        "in_channels": net.channels,
        "out_channels": net.out_channels,
        "block_out_channels": list(net.widths),
        "layers_per_block": net.layers,
        "transformer_layers_per_block": net.depth,
        "down_block_types": [list(_DOWN)[attends] for attends in net.attention],
        "up_block_types": [list(_UP)[attends] for attends in reversed(net.attention)],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "cross_attention_dim": net.text_width,
        "attention_head_dim": net.heads[0] if len(set(net.heads)) == 1 else list(net.heads),
        "use_linear_projection": net.matrices,
        "norm_num_groups": net.groups,
        "norm_eps": net.eps,
        "dropout": net.dropout,
        "flip_sin_to_cos": net.cos_first,
        "freq_shift": 0,
        "act_fn": "silu",
    }


def _settle(net: TextUNet, source: Source) -> None:
    net.sample_size = None if source.config.get("sample_size") is None else source.side("sample_size")


def _usage(net: TextUNet, how: Preparation) -> str:
    side = net.sample_size if isinstance(net.sample_size, int) else 2 ** (len(net.widths) + 1)
    return f"""import torch
from diffusers import UNet2DConditionModel

model = UNet2DConditionModel.from_pretrained(folder).eval()
generator = torch.Generator().manual_seed(0)
x = torch.randn(1, {net.channels}, {side}, {side}, generator=generator)
text = torch.randn(1, 77, {net.text_width}, generator=generator)  # in place of a text encoder's output
with torch.inference_mode():
    y = model(x, torch.tensor([500]), text).sample
print(y.shape)"""


HF = Format(
    name="diffusers UNet2DConditionModel",
    network=TextUNet,
    kinds=("UNet2DConditionModel",),
    keys=(r"conv_in\.weight", r"down_blocks\.0\..+"),
    table=(
        *layers("", "", _ENDS),
        *(e for o, t in _LEVELS.items() for e in layers(f"{o}.blocks.{{i}}.", f"{t}.resnets.{{i}}.", _BLOCK)),
        *(e for o, t in _LEVELS.items() for e in _transformer(f"{o}.attns.{{i}}", f"{t}.attentions.{{i}}")),
        Entry("down.{l}.resample.{kind}", "down_blocks.{l}.downsamplers.0.conv.{kind}"),
        Entry("up.{l}.resample.{kind}", "up_blocks.{l}.upsamplers.0.conv.{kind}"),
    ),
    numbers=_numbers,
    settle=_settle,
    normalization=None,
    to="hf",
    config=_config,
    file="diffusion_pytorch_model.safetensors",
    usage=_usage,
)


# --- the authors' ---

_INSIDE = "model.diffusion_model."
_GROUPS, _EPS = 32, 1e-5  # of the authors' norms
_AUTHORS_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
_AUTHORS_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embed.0": "time_embed.0",
    "time_embed.2": "time_embed.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
}


def _place(network: TextUNet, numbers: Mapping[str, str]) -> dict[str, int]:
    """``{n}``: theirs are counted through all resolutions, a downsampling as one more, an upsampling as part of the last, of
    which it is the ``{m}``-th part."""
    level, each = int(numbers["l"]), network.layers + 1
    at = level * each + int(numbers.get("i", network.layers))
    return {"n": at, "m": 1 + network.attention[-1 - level]}


def _authors_level(ours: str, theirs: str) -> tuple[Entry, ...]:
    table = (
        *layers(f"{ours}.blocks.{{i}}.", f"{theirs}.0.", _AUTHORS_BLOCK),
        *_transformer(f"{ours}.attns.{{i}}", f"{theirs}.1"),
    )
    return tuple(replace(entry, places=_place) for entry in table)


def _authors_numbers(source: Source) -> dict[str, Any]:
    """From the shapes of tensors."""
    state, inside = source.state, re.escape(_INSIDE)
    blocks = source.count(rf"{inside}input_blocks\.(\d+)\.")
    levels = 1 + source.count(rf"{inside}input_blocks\.(\d+)\.0\.op\.weight")
    channels = source.shape(f"{_INSIDE}input_blocks.0.0.weight", 4)[1]
    each = blocks // levels
    if blocks != levels * each or each < 2:
        raise SensoriumError(f"{source.where}: {blocks} input_blocks can't be {levels} resolutions of equal depth.")
    starts = [f"{_INSIDE}input_blocks.{1 + level * each}." for level in range(levels)]
    middle = f"{_INSIDE}middle_block.1."
    projection = source.state.get(f"{middle}proj_in.weight")
    widths = tuple(source.shape(f"{start}0.out_layers.3.weight", 4)[0] for start in starts)
    text_width = source.shape(f"{middle}transformer_blocks.0.attn2.to_k.weight", 2)[1]
    matrices = projection is not None and projection.ndim == 2
    return {
        "widths": widths,
        "text_width": text_width,
        "channels": channels,
        "out_channels": source.shape(f"{_INSIDE}out.2.weight", 4)[0],
        "layers": each - 1,
        "attention": tuple(f"{start}1.proj_in.weight" in state for start in starts),
        "heads": _authors_heads(source, widths, text_width, matrices),
        "depth": source.count(rf"{re.escape(middle)}transformer_blocks\.(\d+)\."),
        "groups": _GROUPS,
        "eps": _EPS,
        "matrices": matrices,
    }


def _known_heads(widths: tuple[int, ...], text_width: int, matrices: bool) -> tuple[int, ...] | None:
    """Stable Diffusion 1 has 8 heads everywhere, Stable Diffusion 2 has 64 channels a head; None for others."""
    if (text_width, matrices) == (768, False):
        return (8,) * len(widths)
    if (text_width, matrices) == (1024, True) and not any(width % 64 for width in widths):
        return tuple(width // 64 for width in widths)
    return None


def _authors_heads(source: Source, widths: tuple[int, ...], text_width: int, matrices: bool) -> tuple[int, ...]:
    heads = _known_heads(widths, text_width, matrices)
    if heads is None:
        raise SensoriumError(
            f"{source.where}: neither Stable Diffusion 1 nor 2 (texts of {text_width} channels, proj_in a "
            f"{'matrix' if matrices else 'convolution'}), and the file does not tell its heads: give its diffusers directory."
        )
    return heads


def _averaged(source: Source) -> dict[str, Tensor]:
    """With the moving averages of the weights in their place, if the file has both. Their names have no dots.

    Raises SensoriumError if one is missing.
    """
    state = dict(source.state)
    names = {n: f"model_ema.{n.removeprefix('model.').replace('.', '')}" for n in state if n.startswith(_INSIDE)}
    if not any(average in state for average in names.values()):
        return state
    if missing := [average for average in names.values() if average not in state]:
        raise SensoriumError(f"{source.where}: the moving average '{missing[0]}' is missing.")
    warnings.warn(
        f"{printable(source.where)}: read the averaged weights, 'model_ema'; the others were not read", stacklevel=6
    )
    return state | {name: state[average] for name, average in names.items()}


def _authors_fits(net: TextUNet) -> None:
    known = _known_heads(net.widths, net.text_width, net.matrices)
    for wrong, said in (
        ((net.groups, net.eps, net.cos_first) != (_GROUPS, _EPS, True), "its norms or sinusoids are not theirs"),
        (net.heads != known, "it is read as Stable Diffusion 1 or 2, with other heads than this network's"),
    ):
        if wrong:
            raise SensoriumError(f"the authors' file cannot hold this U-Net: {said}. Use --to hf.")


AUTHORS = Format(
    name="authors' Stable Diffusion U-Net",
    network=TextUNet,
    keys=tuple(re.escape(f"{_INSIDE}{name}.weight") for name in ("input_blocks.0.0", "middle_block.1.proj_in")),
    refused=((rf"{re.escape(_INSIDE)}label_emb\..+", "a U-Net that is given more than a text (SDXL, unCLIP), not supported"),),
    table=(
        *layers("", _INSIDE, _AUTHORS_ENDS),
        *_authors_level("down.{l}", f"{_INSIDE}input_blocks.{{n+1}}"),
        *_authors_level("up.{l}", f"{_INSIDE}output_blocks.{{n}}"),
        *layers("middle.blocks.{i}.", f"{_INSIDE}middle_block.{{2*i}}.", _AUTHORS_BLOCK),
        *_transformer("middle.attns.{i}", f"{_INSIDE}middle_block.{{2*i+1}}"),
        Entry("down.{l}.resample.{kind}", f"{_INSIDE}input_blocks.{{n+1}}.0.op.{{kind}}", places=_place),
        Entry("up.{l}.resample.{kind}", f"{_INSIDE}output_blocks.{{n}}.{{m}}.conv.{{kind}}", places=_place),
    ),
    dropped=(
        Dropped(r"first_stage_model\..+", "the autoencoder, a network of its own"),
        Dropped(r"cond_stage_model\..+", "the text encoder, a network of its own"),
        Dropped(r"model_ema\..+", "moving averages, which are read in place of the weights"),
        Dropped(r"betas|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|posterior_\w+|lvlb_weights|logvar",
                "the noise schedule, which the sampler computes"),
        Dropped(r"scale_factor", "the scale of the autoencoder's latents"),
    ),
    prepare=_averaged,
    numbers=_authors_numbers,
    normalization=None,
    to="authors",
    fits=_authors_fits,
    file="model.ckpt",
    container="state_dict",
)  # fmt: skip

FORMATS: tuple[Format, ...] = (HF, AUTHORS)


def load_text_unet(path: str | Path) -> TextUNet:
    """The U-Net of a diffusers directory (its own, or a pipeline's) or of an authors' file (.safetensors or .ckpt), in
    evaluation mode.

    Raises SensoriumError that names the file and the field or tensor.
    """
    return open_path(path, FORMATS)
