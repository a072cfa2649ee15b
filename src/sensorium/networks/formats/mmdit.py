"""Formats of the MM-DiT of Stable Diffusion 3 and 3.5: diffusers' ``SD3Transformer2DModel`` directories, and the single files of
the authors' code (Stability-AI/sd3-ref, sd3.5), of which it is one part.

A single file has no configuration, and the authors' code takes all sizes from shapes: 64 channels a head, as many blocks as
heads.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.networks.mmdit import MMDiT
from sensorium.published.format import Change, Dropped, Entry, Format, Preparation, layers
from sensorium.published.opening import open_path
from sensorium.published.source import Source


def _numbers_of(source: Source, prefix: str, attention: str) -> tuple[int, ...]:
    """The blocks with a second attention."""
    name = re.compile(rf"{re.escape(prefix)}\.(\d+)\.{re.escape(attention)}\.weight")
    return tuple(sorted(int(found[1]) for one in source.state if (found := name.fullmatch(one))))


def _side(source: Source, table: str) -> int:
    """Of the table of positions, in patches."""
    rows = source.shape(table, 3)[1]
    side = math.isqrt(rows)
    if side * side != rows:
        raise SensoriumError(f"{source.where}: '{table}' has {rows} positions, which make no square.")
    return side


# --- diffusers ---


def _halves(x: Tensor, net: Any) -> Tensor:
    """Shift and scale of a norm without a gate: theirs have the scale first."""
    return x.roll(len(x) // 2, 0) if len(x) == 2 * net.width else x


_SWAPPED = Change(_halves, _halves)
_EMBEDDERS = {"t_embedder": "timestep_embedder", "y_embedder": "text_embedder"}
_STREAMS = {
    "x_block": {
        "adaLN_modulation.1": "norm1.linear",
        "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "attn.ln_q": "attn.norm_q",
        "attn.ln_k": "attn.norm_k",
        "attn.proj": "attn.to_out.0",
        "attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
        "attn2.ln_q": "attn2.norm_q",
        "attn2.ln_k": "attn2.norm_k",
        "attn2.proj": "attn2.to_out.0",
        "mlp.gate_up": "ff.net.0.proj",
        "mlp.down": "ff.net.2",
    },
    "context_block": {
        "attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "attn.ln_q": "attn.norm_added_q",
        "attn.ln_k": "attn.norm_added_k",
        "attn.proj": "attn.to_add_out",
        "mlp.gate_up": "ff_context.net.0.proj",
        "mlp.down": "ff_context.net.2",
    },
}


def _numbers(source: Source) -> dict[str, Any]:
    heads, patch = source.whole("num_attention_heads", 18), source.whole("patch_size", 2)
    width, depth = heads * source.whole("attention_head_dim", 64), source.whole("num_layers", 18)
    positions, channels = source.whole("pos_embed_max_size", 96), source.whole("in_channels", 16)
    text_width, pooled_width = source.whole("joint_attention_dim", 4096), source.whole("pooled_projection_dim", 2048)
    source.only("qk_norm", None, "rms_norm")
    dual = _numbers_of(source, "transformer_blocks", "attn2.to_q")
    claimed = source.wholes("dual_attention_layers", low=0) if source.config.get("dual_attention_layers") else ()
    proj, first = source.shape("pos_embed.proj.weight", 4), "time_text_embed.text_embedder.linear_1.weight"
    for name, told, found in (
        ("num_attention_heads times attention_head_dim", width, proj[0]),
        ("caption_projection_dim", source.whole("caption_projection_dim", 1152), proj[0]),
        ("in_channels", channels, proj[1]),
        ("patch_size", patch, proj[2]),
        ("num_layers", depth, source.count(r"transformer_blocks\.(\d+)\.")),
        ("joint_attention_dim", text_width, source.shape("context_embedder.weight", 2)[1]),
        ("pooled_projection_dim", pooled_width, source.shape(first, 2)[1]),
        ("pos_embed_max_size", positions, _side(source, "pos_embed.pos_embed")),
        ("dual_attention_layers", tuple(sorted(claimed)), dual),
    ):
        source.agree(told, found, name)
    return {
        "width": width,
        "depth": depth,
        "heads": heads,
        "text_width": text_width,
        "pooled_width": pooled_width,
        "channels": channels,
        "out_channels": source.whole("out_channels", channels),
        "patch_size": patch,
        "positions": positions,
        "sample_size": source.whole("sample_size", 128),
        "qk_norm": source.config.get("qk_norm") is not None,
        "dual": dual,
    }


def _has_pooled(net: MMDiT) -> None:
    if not net.pooled_width:
        raise SensoriumError(
            "Stable Diffusion 3 has a vector of the whole text, this MM-DiT none: build it with pooled_width."
        )


def _config(net: MMDiT) -> dict[str, Any]:
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": net.sample_size,
        "patch_size": net.patch_size,
        "in_channels": net.channels,
        "out_channels": net.out_channels,
        "num_layers": net.depth,
        "attention_head_dim": net.width // net.heads,
        "num_attention_heads": net.heads,
        "joint_attention_dim": net.text_width,
        "caption_projection_dim": net.width,
        "pooled_projection_dim": net.pooled_width,
        "pos_embed_max_size": net.positions,
        "dual_attention_layers": list(net.dual),
        "qk_norm": "rms_norm" if net.qk_norm else None,
    }


def _usage(net: MMDiT, how: Preparation) -> str:
    side = min(net.sample_size, net.positions * net.patch_size) // net.patch_size * net.patch_size
    return f"""import torch
from diffusers import SD3Transformer2DModel

model = SD3Transformer2DModel.from_pretrained(folder).eval()
generator = torch.Generator().manual_seed(0)
x = torch.randn(1, {net.channels}, {side}, {side}, generator=generator)
text = torch.randn(1, 77, {net.text_width}, generator=generator)  # in place of text encoders' outputs
pooled = torch.randn(1, {net.pooled_width}, generator=generator)
with torch.inference_mode():
    y = model(x, text, pooled, torch.tensor([500.0])).sample
print(y.shape)"""


HF = Format(
    name="diffusers SD3Transformer2DModel",
    network=MMDiT,
    kinds=("SD3Transformer2DModel",),
    keys=(r"pos_embed\.proj\.weight", r"transformer_blocks\.0\.attn\.add_q_proj\.weight"),
    table=(
        Entry("pos_embed", "pos_embed.pos_embed"),
        Entry("x_embedder.proj.{kind}", "pos_embed.proj.{kind}"),
        *(
            Entry(f"{ours}.mlp.{i}.{{kind}}", f"time_text_embed.{theirs}.linear_{1 + i // 2}.{{kind}}")
            for ours, theirs in _EMBEDDERS.items()
            for i in (0, 2)
        ),
        Entry("joint_blocks.{i}.context_block.adaLN_modulation.1.{kind}",
              "transformer_blocks.{i}.norm1_context.linear.{kind}", _SWAPPED),
        *(e for o, t in _STREAMS.items() for e in layers(f"joint_blocks.{{i}}.{o}.", "transformer_blocks.{i}.", t)),
        Entry("final_layer.adaLN_modulation.1.{kind}", "norm_out.linear.{kind}", _SWAPPED),
        *layers("", "", {"context_embedder": "context_embedder", "final_layer.linear": "proj_out"}),
    ),
    numbers=_numbers,
    normalization=None,
    to="hf",
    fits=_has_pooled,
    config=_config,
    file="diffusion_pytorch_model.safetensors",
    usage=_usage,
)  # fmt: skip


# --- the authors' ---

_INSIDE = "model.diffusion_model."
_HEAD, _CHANNELS, _LATENT = 64, 16, 128  # of the published: channels of a head, and of latents, and their side


def _authors_numbers(source: Source) -> dict[str, Any]:
    """From the shapes of tensors."""
    blocks = f"{_INSIDE}joint_blocks"
    width, channels, patch, _ = source.shape(f"{_INSIDE}x_embedder.proj.weight", 4)
    depth = source.count(rf"{re.escape(blocks)}\.(\d+)\.")
    if width != _HEAD * depth:
        raise SensoriumError(
            f"{source.where}: {depth} blocks of {width} channels, the authors' code has {_HEAD} channels a block: give the "
            "network's diffusers directory."
        )
    return {
        "width": width,
        "depth": depth,
        "heads": depth,
        "text_width": source.shape(f"{_INSIDE}context_embedder.weight", 2)[1],
        "pooled_width": source.shape(f"{_INSIDE}y_embedder.mlp.0.weight", 2)[1],
        "channels": channels,
        "out_channels": source.shape(f"{_INSIDE}final_layer.linear.weight", 2)[0] // patch**2,
        "patch_size": patch,
        "positions": _side(source, f"{_INSIDE}pos_embed"),
        "sample_size": _LATENT,
        "qk_norm": f"{blocks}.0.x_block.attn.ln_q.weight" in source.state,
        "dual": _numbers_of(source, blocks, "x_block.attn2.qkv"),
    }


def _authors_fits(net: MMDiT) -> None:
    _has_pooled(net)
    for wrong, said in (
        (
            (net.width, net.heads) != (_HEAD * net.depth, net.depth),
            f"as many heads as blocks, of {_HEAD} channels each",
        ),
        ({net.channels, net.out_channels} != {_CHANNELS}, f"latents of {_CHANNELS} channels"),
        (net.dual and not net.qk_norm, "a second attention only with normalized queries and keys"),
    ):
        if wrong:
            raise SensoriumError(f"the authors' code has {said}, unlike this MM-DiT. Use --to hf.")


AUTHORS = Format(
    name="authors' Stable Diffusion 3",
    network=MMDiT,
    keys=tuple(re.escape(f"{_INSIDE}{name}") for name in ("pos_embed", "joint_blocks.0.x_block.attn.qkv.weight")),
    table=(
        *(
            entry
            for stream in _STREAMS
            for entry in layers(
                f"joint_blocks.{{i}}.{stream}.mlp.",
                f"{_INSIDE}joint_blocks.{{i}}.{stream}.mlp.",
                {"gate_up": "fc1", "down": "fc2"},
            )
        ),
        Entry("{rest}", f"{_INSIDE}{{rest}}"),
    ),
    dropped=(
        Dropped(r"first_stage_model\..+", "the autoencoder, a network of its own"),
        Dropped(r"text_encoders\..+", "the text encoders, networks of their own"),
    ),
    numbers=_authors_numbers,
    normalization=None,
    to="authors",
    fits=_authors_fits,
    file="sd3.safetensors",
)

FORMATS: tuple[Format, ...] = (HF, AUTHORS)


def load_mmdit(path: str | Path) -> MMDiT:
    """The MM-DiT of a diffusers directory (its own, or a pipeline's) or of an authors' file, in evaluation mode.

    Raises SensoriumError that names the file and the field or tensor.
    """
    return open_path(path, FORMATS)
