"""Formats of diffusers' denoising networks: ``UNet2DModel`` and ``DiTTransformer2DModel`` directories.

Options of a configuration that our networks do not support are errors that name them; sizes are compared with the
tensors before anything is built.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sensorium.abilities import Flow
from sensorium.errors import SensoriumError
from sensorium.networks.dit import DiT
from sensorium.networks.unet import UNet, sinusoids
from sensorium.parts.positions.grid import sincos_2d
from sensorium.published.format import Dropped, Entry, Format, Preparation, layers
from sensorium.published.opening import open_path, save
from sensorium.published.source import Source

FILE = "diffusion_pytorch_model.safetensors"
LARGEST_GRID = 256  # patches per side: a limit, because a DiT's tensors do not determine its image size


# --- UNet2DModel ---

_RESNET = {part: part for part in ("norm1", "conv1", "norm2", "conv2")} | {
    "time": "time_emb_proj",
    "shortcut": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "qkv": ("to_q", "to_k", "to_v"), "proj": "to_out.0"}


def _level(ours: str, theirs: str) -> tuple[Entry, ...]:
    return (
        *layers(f"{ours}.blocks.{{i}}.", f"{theirs}.resnets.{{i}}.", _RESNET),
        *layers(f"{ours}.attns.{{i}}.", f"{theirs}.attentions.{{i}}.", _ATTENTION),
    )


_UNET_TABLE = (
    *layers(
        "",
        "",
        {"conv_in": "conv_in", "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"},
    ),
    *layers("", "", {"class_embed": "class_embedding", "norm_out": "conv_norm_out", "conv_out": "conv_out"}),
    *_level("down.{l}", "down_blocks.{l}"),
    *_level("up.{l}", "up_blocks.{l}"),
    *_level("middle", "mid_block"),
    Entry("down.{l}.resample.{kind}", "down_blocks.{l}.downsamplers.0.conv.{kind}"),
    Entry("up.{l}.resample.{kind}", "up_blocks.{l}.upsamplers.0.conv.{kind}"),
)
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of files before 2023


def _unet_numbers(source: Source) -> dict[str, Any]:
    config, widths = source.config, source.wholes("block_out_channels")
    for field, *legal in (
        ("time_embedding_type", "positional"),
        ("act_fn", "silu", "swish"),
        ("resnet_time_scale_shift", "default"),
        ("downsample_type", "conv"),
        ("upsample_type", "conv"),
        ("mid_block_type", "UNetMidBlock2D"),
        ("mid_block_scale_factor", 1),
        ("center_input_sample", False),
        ("class_embed_type", None),
        ("attn_norm_num_groups", None, config.get("norm_num_groups", 32)),
        ("time_embedding_dim", None, 4 * widths[0]),
        ("downsample_padding", 1, 0),
    ):
        source.only(field, *legal)
    down = source.words("down_block_types", ("DownBlock2D", "AttnDownBlock2D"))
    up = source.words("up_block_types", ("UpBlock2D", "AttnUpBlock2D"))
    attention = tuple(kind.startswith("Attn") for kind in down)
    if attention != tuple(kind.startswith("Attn") for kind in reversed(up)):
        raise SensoriumError(
            f"{source.told}: down_block_types {str(list(down))[:200]} with up_block_types {str(list(up))[:200]} is not "
            "supported: DownBlock2D or AttnDownBlock2D, and the same in the decoder."
        )
    count = source.whole("layers_per_block", 2)
    source.agree(len(down), source.count(r"down_blocks\.(\d+)\."), "down_block_types")
    source.agree(count, source.count(r"down_blocks\.0\.resnets\.(\d+)\."), "layers_per_block")
    return {
        "widths": widths,
        "channels": source.whole("in_channels"),
        "out_channels": source.whole("out_channels"),
        "layers": count,
        "attention": attention,
        "middle_attention": source.flag("add_attention", True),
        "labels": source.whole("num_class_embeds", 0, low=0),
        # null is one head, and not the default
        "head_dim": None if config.get("attention_head_dim", 8) is None else source.whole("attention_head_dim", 8),
        "groups": source.whole("norm_num_groups", 32),
        "eps": source.eps("norm_eps", 1e-5),
        "dropout": source.number("dropout", 0.0, low=0, high=1),
        "pad_after": config.get("downsample_padding", 1) == 0,
        "cos_first": source.flag("flip_sin_to_cos", True),
        "freq_shift": source.number("freq_shift", 0, low=0, high=8),
    }


def unet_config(net: UNet) -> dict[str, Any]:
    """The configuration of diffusers' UNet2DModel for this network."""
    return {
        "_class_name": "UNet2DModel",
        "in_channels": net.channels,
        "out_channels": net.out_channels,
        "block_out_channels": list(net.widths),
        "layers_per_block": net.layers,
        "down_block_types": ["AttnDownBlock2D" if attend else "DownBlock2D" for attend in net.attention],
        "up_block_types": ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(net.attention)],
        "add_attention": net.middle_attention,
        "attention_head_dim": net.head_dim,
        "num_class_embeds": net.labels or None,
        "norm_num_groups": net.groups,
        "norm_eps": net.eps,
        "dropout": net.dropout,
        "downsample_padding": 0 if net.pad_after else 1,
        "flip_sin_to_cos": net.cos_first,
        "freq_shift": net.freq_shift,
        "time_embedding_type": "positional",
        "resnet_time_scale_shift": "default",
        "act_fn": "silu",
    }


def _of(kind: type[nn.Module]) -> Any:
    """The network itself, or that of a flow with reversed time, as diffusers' schedulers need it."""

    def part(thing: Any) -> Any:
        if isinstance(thing, Flow) and isinstance(thing.net, kind):
            return reversed_flow(cast(Any, thing.net), thing.time_scale)
        return thing if isinstance(thing, kind) else None

    return part


def _usage(net: UNet | DiT, how: Preparation) -> str:
    """Euler's method, by diffusers' scheduler."""
    name = "UNet2DModel" if isinstance(net, UNet) else "DiTTransformer2DModel"
    height, width = net.image_size if isinstance(net, DiT) else (how.image_size or 32,) * 2
    last = net.labels - 1
    labels = (
        f"labels = torch.full((4,), {last})  # {last} is any class; one class: 0 to {last - 1}\n" if last > 0 else ""
    )
    return f"""import torch
from diffusers import {name}, FlowMatchEulerDiscreteScheduler

model = {name}.from_pretrained(folder).eval()
scheduler = FlowMatchEulerDiscreteScheduler()
scheduler.set_timesteps({how.steps})
x = torch.randn(4, {net.channels}, {height}, {width}, generator=torch.Generator().manual_seed(0))
{labels}with torch.inference_mode():
    for t in scheduler.timesteps:
        velocity = model(x, t.expand(4){", class_labels=labels" if labels else ""}).sample
        x = scheduler.step(velocity, t, x).prev_sample
images = ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
print(images.shape)"""


UNET = Format(
    name="diffusers UNet2DModel",
    network=UNet,
    kinds=("UNet2DModel",),
    keys=(r"conv_in\.weight", r"down_blocks\.0\..+"),
    table=_UNET_TABLE,
    spellings=tuple((rf"(\.attentions\.\d+)\.{old}\.", rf"\1.{new}.") for old, new in _OLD.items()),
    numbers=_unet_numbers,
    normalization=None,
    to="hf",
    of=_of(UNet),
    config=unet_config,
    file=FILE,
    usage=_usage,
)


# --- DiTTransformer2DModel ---

# embeddings of time and label; published files have a copy in each block
_EMBED = "transformer_blocks.{each}.norm1.emb."
_ONCE = "our DiT has one embedding of time and label for all blocks"


def _shared(ours: str, theirs: str) -> Entry:
    return Entry(f"{ours}.{{kind}}", f"{_EMBED}{theirs}.{{kind}}", copies="depth", why=_ONCE)


def _positions(target: Tensor, net: Any) -> Tensor:
    """The fixed table, absent in their files."""
    return sincos_2d(net.grid, target.shape[-1])[:, 1:]


def _dit_numbers(source: Source) -> dict[str, Any]:
    for field, *legal in (
        ("norm_type", "ada_norm_zero"),
        ("activation_fn", "gelu-approximate"),
        ("norm_elementwise_affine", False),
        ("dropout", 0.0),
    ):
        source.only(field, *legal)
    heads, channels = source.whole("num_attention_heads"), source.whole("in_channels")
    size, patch, depth = source.whole("sample_size"), source.whole("patch_size"), source.whole("num_layers")
    source.agree(depth, source.count(r"transformer_blocks\.(\d+)\."), "num_layers")
    if size % patch or not 1 <= size // patch <= LARGEST_GRID:
        raise SensoriumError(
            f"{source.told}: sample_size {size}, patch_size {patch}: must give 1 to {LARGEST_GRID} whole patches per side."
        )
    width, claimed = source.shape("pos_embed.proj.weight", 4)[0], heads * source.whole("attention_head_dim")
    if claimed != width:
        raise SensoriumError(
            f"{source.told}: attention_head_dim {claimed // heads} and {heads} heads make {claimed} "
            f"channels, the weights have {width}."
        )
    return {
        "image_size": size,
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "heads": heads,
        "channels": channels,
        "out_channels": source.whole("out_channels", channels),
        "labels": source.whole("num_embeds_ada_norm") + 1,
        "qkv_bias": source.flag("attention_bias", True),
        "mlp_eps": source.eps("norm_eps", 1e-5),
        "freq_shift": 1.0,
    }


def _dit_fits(net: DiT) -> None:
    height, width = net.image_size
    first = cast(Any, net.blocks[0])
    for wrong, said in (
        (height != width, f"it needs square images, this network has {height}x{width}"),
        (net.labels < 2, "it needs labels, this network has none"),
        (net.freq_shift != 1, f"its sinusoids have freq_shift 1, this network's {net.freq_shift:g}: train one with 1"),
        (net.mlp_ratio != 4, f"its MLPs are 4 times as wide, this network's {net.mlp_ratio:g}"),
        (first.norm1.eps != 1e-6, f"its first norms have an epsilon of 1e-6, this network's {first.norm1.eps:g}"),
    ):
        if wrong:
            raise SensoriumError(f"diffusers' DiT cannot hold this one: {said}.")


def dit_config(net: DiT) -> dict[str, Any]:
    """The configuration of diffusers' DiTTransformer2DModel for this network."""
    first = cast(Any, net.blocks[0])
    return {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": net.heads,
        "attention_head_dim": net.width // net.heads,
        "in_channels": net.channels,
        "out_channels": net.out_channels,
        "num_layers": net.depth,
        "sample_size": net.image_size[0],
        "patch_size": net.patch_size,
        "num_embeds_ada_norm": net.labels - 1,
        "attention_bias": first.attn.qkv.bias is not None,
        "norm_eps": first.norm2.eps,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "activation_fn": "gelu-approximate",
    }


DIT = Format(
    name="diffusers DiTTransformer2DModel",
    network=DiT,
    kinds=("DiTTransformer2DModel", "Transformer2DModel"),  # the class of the first published ones
    keys=(r"pos_embed\.proj\.weight", r"proj_out_2\.weight"),
    table=(
        Entry("pos_embed", (), otherwise=_positions),
        Entry("x_embedder.proj.{kind}", "pos_embed.proj.{kind}"),
        _shared("t_embedder.mlp.0", "timestep_embedder.linear_1"),
        _shared("t_embedder.mlp.2", "timestep_embedder.linear_2"),
        _shared("y_embedder.embedding_table", "class_embedder.embedding_table"),
        *layers("blocks.{i}.", "transformer_blocks.{i}.", {
            "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
            "attn.proj": "attn1.to_out.0",
            "mlp.fc1": "ff.net.0.proj",
            "mlp.fc2": "ff.net.2",
            "adaLN_modulation.1": "norm1.linear",
        }),
        *layers("final_layer.", "", {"adaLN_modulation.1": "proj_out_1", "linear": "proj_out_2"}),
    ),
    dropped=(Dropped(r"pos_embed\.pos_embed", "the fixed table of positions, in old files"),),
    numbers=_dit_numbers,
    normalization=None,
    to="hf",
    of=_of(DiT),
    fits=_dit_fits,
    config=dit_config,
    file=FILE,
    usage=_usage,
)  # fmt: skip

FORMATS: tuple[Format, ...] = (UNET, DIT)


def load_diffusers(folder: str | Path) -> UNet | DiT:
    """The network of a directory, or of the "unet" or "transformer" directory of a pipeline, in evaluation mode.

    Raises SensoriumError that names the file and the field.
    """
    return open_path(folder, FORMATS)


def export_diffusers(network: nn.Module, out: str | Path) -> Path:
    """Write a :class:`UNet` or :class:`DiT`, or the ``net`` of a method, in diffusers' format; return the directory.

    For diffusers' flow-matching schedulers, whose time is reversed, write :func:`reversed_flow` of it.
    """
    network = cast(nn.Module, network.net) if isinstance(network, Flow) else network
    form = next((form for form in FORMATS if isinstance(network, form.network)), None)
    if form is None:
        raise SensoriumError(f"{type(network).__name__} can't be written for diffusers; a U-Net or a DiT can.")
    return save(form, network, out)


def reversed_flow(network: UNet | DiT, steps: float = 1000.0) -> UNet | DiT:
    """A copy that gives -v at ``steps`` - t where the network gives v at t, as diffusers' flow-matching schedulers
    need.

    They run from sigma = 1 (noise) to 0, with t = 1000 sigma and dx / dsigma. The sinusoids of (steps - t) are a
    rotation of those of t, which goes into the first layer after them; the sign goes into the last. steps: the flow's
    ``time_scale``.
    """
    network = copy.deepcopy(network)
    if isinstance(network, UNet):
        first, last = cast(nn.Linear, network.time_embed[0]), network.conv_out
        cos_first = network.cos_first
    else:
        time = cast(nn.Sequential, network.t_embedder["mlp"])
        first, last = cast(nn.Linear, time[0]), network.final_layer.linear
        cos_first = True
    shift = network.freq_shift
    with torch.no_grad():
        n = first.in_features // 2
        end = sinusoids(torch.tensor([steps], dtype=torch.float64), 2 * n, freq_shift=shift)[0].to(first.weight)
        end_sin, end_cos = end.chunk(2)
        parts = first.weight[:, : 2 * n].chunk(2, dim=1)
        of_cos, of_sin = parts if cos_first else parts[::-1]
        new_cos = of_cos * end_cos + of_sin * end_sin  # cos(a - b) and sin(a - b), a = steps w, b = t w
        new_sin = of_cos * end_sin - of_sin * end_cos
        first.weight[:, : 2 * n] = torch.cat([new_cos, new_sin] if cos_first else [new_sin, new_cos], dim=1)
        last.weight.neg_()
        cast(Tensor, last.bias).neg_()
    return network
