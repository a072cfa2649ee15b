"""What the formats of autoencoders with a codebook and with Gaussian latents share: encoder and decoder
(:mod:`sensorium.networks.autoencoder`) in diffusers' ``VQModel`` and ``AutoencoderKL``, and in the checkpoints of their
authors.

The authors' names are ours. diffusers numbers the decoder's levels from the coarsest, and has linear layers for
attention's 1 x 1 convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.networks.autoencoder import Encoder
from sensorium.published.format import Change, Entry
from sensorium.published.source import Source, shown

GROUPS = 32  # of the authors' norms
_NUMBERS = ("width", "mults", "layers", "attention", "channels", "groups")
_MATRIX = Change(lambda x, _: x[..., None, None], lambda x, _: x[..., 0, 0])  # theirs, of a 1 x 1 convolution of ours
_DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
_UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of files before 2023


def alike(network: Any, whose: str) -> None:
    """SensoriumError if encoder and decoder differ, or a norm's groups don't divide its channels."""
    encoder, decoder = network.encoder, network.decoder
    ours = {name: (getattr(encoder, name), getattr(decoder, name)) for name in _NUMBERS}
    unlike = next((name for name, (one, other) in ours.items() if one != other), None)
    if unlike:
        raise SensoriumError(f"{whose} has one {unlike} for both; this encoder and decoder differ in it.")
    widths = [encoder.width * mult for mult in encoder.mults]
    if any(width % encoder.groups for width in [encoder.width, *widths]):
        raise SensoriumError(f"{whose} has {encoder.groups} groups in all norms, which don't divide {widths} channels.")


def square(state: Mapping[str, Tensor], names: tuple[str, ...], dims: int) -> dict[str, Tensor]:
    """A state whose 1 x 1 convolutions of attention, ``names``, have ``dims`` dimensions: files have them either
    way."""

    def changed(name: str, x: Tensor) -> Tensor:
        if not name.endswith(names) or x.ndim not in (2, 3, 4) or x.ndim == dims or set(x.shape[2:]) - {1}:
            return x  # a wrong shape is told as it is
        return x.reshape(*x.shape[:2], *(1,) * (dims - 2))

    return {name: changed(name, x) for name, x in state.items()}


# --- diffusers ---

SPELLINGS = tuple((rf"(\.attentions\.\d+)\.{old}\.", rf"\1.{new}.") for old, new in _OLD.items())
LINEAR = tuple(f".{name}.weight" for name in _OLD.values())


def _levels(network: Any) -> int:
    return len(network.decoder.mults)


def _attention(ours: str, theirs: str) -> tuple[Entry, ...]:
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    matrices = (Entry(f"{ours}.{key}.weight", f"{theirs}.{value}.weight", _MATRIX) for key, value in names.items())
    biases = (Entry(f"{ours}.{key}.bias", f"{theirs}.{value}.bias") for key, value in names.items())
    return (*matrices, *biases, Entry(f"{ours}.norm.{{kind}}", f"{theirs}.group_norm.{{kind}}"))


def coder_table(part: str, way: str) -> tuple[Entry, ...]:
    """The table of the encoder or the decoder; ``way``: the direction of its levels."""
    level, theirs, middle = f"{part}.{way}.{{i}}", f"{part}.{way}_blocks.{{i}}", f"{part}.mid_block"
    table = (
        Entry(f"{level}.block.{{n}}.nin_shortcut.{{kind}}", f"{theirs}.resnets.{{n}}.conv_shortcut.{{kind}}"),
        Entry(f"{level}.block.{{n}}.{{rest}}", f"{theirs}.resnets.{{n}}.{{rest}}"),
        *_attention(f"{level}.attn.{{n}}", f"{theirs}.attentions.{{n}}"),
        Entry(f"{level}.{way}sample.{{rest}}", f"{theirs}.{way}samplers.0.{{rest}}"),
    )
    if way == "up":
        table = tuple(replace(entry, from_last=_levels) for entry in table)
    return (
        *table,
        Entry(f"{part}.mid.block_{{n}}.{{rest}}", f"{middle}.resnets.{{n-1}}.{{rest}}"),
        *_attention(f"{part}.mid.attn_1", f"{middle}.attentions.0"),
        Entry(f"{part}.norm_out.{{kind}}", f"{part}.conv_norm_out.{{kind}}"),
        Entry(f"{part}.{{rest}}", f"{part}.{{rest}}"),
    )


def coder_numbers(source: Source) -> dict[str, Any]:
    """The arguments that encoder and decoder share but ``latent``, of a configuration whose sizes the weights
    confirm."""
    for field, *legal in (("act_fn", "silu", "swish"), ("norm_type", "group")):
        source.only(field, *legal)
    attention, layers = _attended(source), source.whole("layers_per_block", 1)
    widths = source.wholes("block_out_channels")
    width, channels = source.shape("encoder.conv_in.weight", 4)[:2]
    for name, claimed, found in (
        ("down_block_types", len(attention), source.count(r"encoder\.down_blocks\.(\d+)\.")),
        ("up_block_types", len(attention), source.count(r"decoder\.up_blocks\.(\d+)\.")),
        ("block_out_channels", len(widths), len(attention)),
        ("block_out_channels", widths[0], width),
        ("layers_per_block", layers, source.count(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")),
        ("in_channels", source.whole("in_channels", 3), channels),
        ("out_channels", source.whole("out_channels", 3), channels),
    ):
        source.agree(claimed, found, name)
    groups = source.whole("norm_num_groups", 32)
    if any(width % groups for width in widths):
        raise SensoriumError(f"{source.told}: norm_num_groups {groups} does not divide {shown(widths, '')}.")
    return {
        **_multiples(source, list(widths)),
        "layers": layers,
        "attention": attention,
        "middle_attention": source.flag("mid_block_add_attention", True),
        "channels": channels,
        "groups": groups,
    }


def _attended(source: Source) -> tuple[bool, ...]:
    """The levels with attention, finest first."""
    down, up = source.words("down_block_types", tuple(_DOWN)), source.words("up_block_types", tuple(_UP))
    attention = tuple(_DOWN[kind] for kind in down)
    if attention != tuple(_UP[kind] for kind in reversed(up)):
        raise SensoriumError(f"{source.told}: attention must be at the same levels of encoder and decoder.")
    return attention


def _multiples(source: Source, widths: list[int]) -> dict[str, Any]:
    """The channels of the levels as a width and its multiples."""
    if not widths or any(width < 1 or width % widths[0] for width in widths):
        raise SensoriumError(f"{source.told}: levels of {shown(widths, '')} channels are not multiples of the first.")
    return {"width": widths[0], "mults": tuple(width // widths[0] for width in widths)}


def coder_config(encoder: Encoder) -> dict[str, Any]:
    """The fields that both configurations have, but the latent channels."""
    return {
        "in_channels": encoder.channels,
        "out_channels": encoder.channels,
        "block_out_channels": [encoder.width * mult for mult in encoder.mults],
        "down_block_types": [list(_DOWN)[attend] for attend in encoder.attention],
        "up_block_types": [list(_UP)[attend] for attend in reversed(encoder.attention)],
        "layers_per_block": encoder.layers,
        "act_fn": "silu",
        "norm_num_groups": encoder.groups,
        "mid_block_add_attention": not isinstance(encoder.mid.attn_1, nn.Identity),
    }


def coder_fits(network: Any, whose: str) -> None:
    """SensoriumError if diffusers can't hold encoder and decoder."""
    alike(network, whose)
    if network.encoder.mults[0] != 1:
        raise SensoriumError(f"{whose} starts with the channels of its first level; this encoder with fewer.")


# --- the authors' ---


def authors_numbers(source: Source) -> dict[str, Any]:
    """The arguments that encoder and decoder share but ``latent``, from the shapes of the authors' tensors."""
    state, levels = source.state, source.count(r"encoder\.down\.(\d+)\.")
    first, channels = source.shape("encoder.conv_in.weight", 4)[:2]
    ends = [source.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
    return {
        "width": first,
        "mults": _multiples(source, [first, *ends])["mults"][1:],
        "layers": source.count(r"encoder\.down\.0\.block\.(\d+)\."),
        "attention": tuple(f"encoder.down.{i}.attn.0.q.weight" in state for i in range(levels)),
        "middle_attention": "encoder.mid.attn_1.q.weight" in state,
        "channels": channels,
        "groups": GROUPS,
    }
