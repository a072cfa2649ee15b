"""Denoising networks as diffusers keeps them: config.json and diffusion_pytorch_model.safetensors, in and out.

``UNet2DModel`` is our :class:`UNet`, ``DiTTransformer2DModel`` our :class:`DiT`. Both tables of names are total both
ways. What a configuration may say and our networks do not do is refused by name; sizes are held against the tensors
before anything is built.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.networks.dit import DiT
from sensorium.networks.unet import UNet, sinusoids
from sensorium.parts.positions.grid import sincos_2d
from sensorium.published import names
from sensorium.published.files import read_config, read_weights, tensors_of

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
LARGEST_GRID = 256  # patches a side: a DiT's file holds nothing that its image size could be checked against


def load_diffusers(folder: str | Path) -> UNet | DiT:
    """The network of a directory, or of the "unet" or "transformer" directory of a pipeline, in evaluation mode.

    Raises SensoriumError that names the file and the field.
    """
    folder = Path(folder)
    inner = next((folder / name for name in ("unet", "transformer") if (folder / name / "config.json").is_file()), None)
    if not (folder / "config.json").is_file() and inner is not None:
        folder = inner
    config = read_config(folder)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise SensoriumError(f"'{folder}' has no {WEIGHTS[0]}.")
    builders: dict[str, Callable[..., Any]] = {"UNet2DModel": _unet, "DiTTransformer2DModel": _dit}
    kind = config.get("_class_name")
    if kind == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        kind = "DiTTransformer2DModel"  # how the first published ones are called
    if kind not in builders:
        raise SensoriumError(f"{folder / 'config.json'}: _class_name '{kind}' is not one of {', '.join(builders)}.")
    try:
        return builders[kind](config, tensors_of(read_weights(path)), str(folder)).eval()
    except KeyError as error:
        raise SensoriumError(f"{folder / 'config.json'}: the field {error} is missing.") from None
    except (TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError, RuntimeError) as error:
        raise SensoriumError(f"{folder / 'config.json'}: {str(error).splitlines()[0]}.") from None


def export_diffusers(network: nn.Module, out: str | Path) -> Path:
    """Write a :class:`UNet` or :class:`DiT`, or the ``net`` of a method, as diffusers would; gives the directory.

    For diffusers' flow-matching schedulers, whose time runs the other way, write :func:`reversed_flow` of it.
    """
    from safetensors.torch import save_file

    network = cast(nn.Module, getattr(network, "net", network))
    if isinstance(network, UNet):
        config, state = unet_config(network), names.write(network.state_dict(), unet_names())
    elif isinstance(network, DiT):
        config, ours = dit_config(network), network.state_dict()
        del ours["pos_embed"]  # follows from the size
        state = names.write(ours, dit_names)
        for name in [name for name in state if name.startswith(_FIRST)]:
            for i in range(1, network.depth):
                state[name.replace(_FIRST, _FIRST.replace("0", str(i)))] = state[name].clone()
    else:
        raise SensoriumError(f"{type(network).__name__} has no place in diffusers: a U-Net or a DiT has.")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    save_file(state, out / WEIGHTS[0], metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1))
    return out


def export_flow(flow: Any, out: str | Path) -> Path:
    """Write a :class:`~sensorium.generative.rectified_flow.RectifiedFlow` for diffusers' flow-matching schedulers."""
    return export_diffusers(reversed_flow(flow.net, flow.time_scale), out)


def reversed_flow(network: UNet | DiT, steps: float = 1000.0) -> UNet | DiT:
    """A copy that gives -v at ``steps`` - t where the network gives v at t, as diffusers' flow-matching schedulers ask.

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


# --- UNet2DModel ---

_BLOCK = {"time": "time_emb_proj", "shortcut": "conv_shortcut"}
_ATTENTION = {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "proj": ("to_out.0",)}
_OLD_ATTENTION = {"norm": ("group_norm",), "qkv": ("query", "key", "value"), "proj": ("proj_attn",)}
_STEM = {
    "conv_in": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "class_embed": "class_embedding",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}


def unet_names(old: bool = False) -> names.Names:
    """Our U-Net's names -> theirs; ``old`` is how files before 2023 call the attention."""
    attention = _OLD_ATTENTION if old else _ATTENTION

    def theirs(ours: str) -> tuple[str, ...]:
        layer, _, kind = ours.rpartition(".")
        if layer in _STEM:
            return (f"{_STEM[layer]}.{kind}",)
        found = re.fullmatch(r"(down|middle|up)(?:\.(\d+))?\.(?:(blocks|attns)\.(\d+)\.(\w+)|resample)", layer)
        if not found:
            raise SensoriumError(f"'{ours}' has no place in a UNet2DModel.")
        way, level, group, index, part = found.groups()
        where = "mid_block" if way == "middle" else f"{way}_blocks.{level}"
        if group is None:
            return (f"{where}.{way}samplers.0.conv.{kind}",)
        if group == "blocks":
            return (f"{where}.resnets.{index}.{_BLOCK.get(part, part)}.{kind}",)
        return tuple(f"{where}.attentions.{index}.{name}.{kind}" for name in attention[part])

    return theirs


def _unet(config: Mapping[str, Any], state: dict[str, Tensor], where: str) -> UNet:
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
        ("time_embedding_dim", None, 4 * int(config["block_out_channels"][0])),
        ("downsample_padding", 1, 0),
    ):
        _only(config, field, legal, where)
    down, up = config["down_block_types"], config["up_block_types"]
    legal = {"DownBlock2D": False, "AttnDownBlock2D": True, "UpBlock2D": False, "AttnUpBlock2D": True}
    strange = [kind for kind in (*down, *up) if kind not in legal]
    attention = tuple(legal.get(kind, False) for kind in down)
    if strange or attention != tuple(legal.get(kind, False) for kind in reversed(up)):
        raise SensoriumError(
            f"{where}/config.json: down_block_types {list(down)} with up_block_types {list(up)} is not supported: "
            "DownBlock2D or AttnDownBlock2D, and the same on the way up."
        )
    layers = int(config.get("layers_per_block", 2))
    _bounded(len(down), _count(state, r"down_blocks\.(\d+)\."), "down_block_types", where)
    _bounded(layers, _count(state, r"down_blocks\.0\.resnets\.(\d+)\."), "layers_per_block", where)
    old = any(re.search(r"\.attentions\.\d+\.query\.", name) for name in state)

    def build() -> UNet:
        return UNet(
            tuple(int(width) for width in config["block_out_channels"]),
            channels=int(config["in_channels"]),
            out_channels=int(config["out_channels"]),
            layers=layers,
            attention=attention,
            middle_attention=bool(config.get("add_attention", True)),
            labels=int(config.get("num_class_embeds") or 0),
            head_dim=config.get("attention_head_dim", 8),
            groups=int(config.get("norm_num_groups", 32)),
            eps=float(config.get("norm_eps", 1e-5)),
            dropout=float(config.get("dropout", 0.0)),
            pad_after=config.get("downsample_padding", 1) == 0,
            cos_first=bool(config.get("flip_sin_to_cos", True)),
            freq_shift=float(config.get("freq_shift", 0)),
        )

    return cast(UNet, _filled(build, state, unet_names(old), where))


def unet_config(net: UNet) -> dict[str, Any]:
    """The configuration of diffusers' UNet2DModel that is this network."""
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


# --- DiTTransformer2DModel ---

_FIRST = "transformer_blocks.0.norm1.emb."
_DIT_STEM = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": f"{_FIRST}timestep_embedder.linear_1",
    "t_embedder.mlp.2": f"{_FIRST}timestep_embedder.linear_2",
    "y_embedder.embedding_table": f"{_FIRST}class_embedder.embedding_table",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_DIT_BLOCK = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm1.linear",),
}


def dit_names(ours: str) -> tuple[str, ...]:
    """Our DiT's names -> theirs. The embeddings of time and label, which they have once a block, are the first's."""
    layer, _, kind = ours.rpartition(".")
    if layer in _DIT_STEM:
        return (f"{_DIT_STEM[layer]}.{kind}",)
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", layer)
    if not block or block[2] not in _DIT_BLOCK:
        raise SensoriumError(f"'{ours}' has no place in a DiTTransformer2DModel.")
    return tuple(f"transformer_blocks.{block[1]}.{name}.{kind}" for name in _DIT_BLOCK[block[2]])


def _dit(config: Mapping[str, Any], state: dict[str, Tensor], where: str) -> DiT:
    for field, *legal in (
        ("norm_type", "ada_norm_zero"),
        ("activation_fn", "gelu-approximate"),
        ("norm_elementwise_affine", False),
        ("dropout", 0.0),
    ):
        _only(config, field, legal, where)
    heads, channels = int(config["num_attention_heads"]), int(config["in_channels"])
    size, patch, depth = int(config["sample_size"]), int(config["patch_size"]), int(config["num_layers"])
    _bounded(depth, _count(state, r"transformer_blocks\.(\d+)\."), "num_layers", where)
    if patch < 1 or size % patch or not 1 <= size // patch <= LARGEST_GRID:
        raise SensoriumError(
            f"{where}/config.json: sample_size {size}, patch_size {patch}: 1 to {LARGEST_GRID} whole patches a side."
        )
    state = _shared(state, where)
    width = state["pos_embed.proj.weight"].shape[0] if "pos_embed.proj.weight" in state else 0
    claimed = heads * int(config["attention_head_dim"])
    if claimed != width:
        raise SensoriumError(
            f"{where}/config.json: attention_head_dim {config['attention_head_dim']} and {heads} heads make {claimed} "
            f"channels, the weights have {width}."
        )
    state["pos_embed"] = sincos_2d((size // patch, size // patch), width)[:, 1:]  # fixed: their files leave it out

    def build() -> DiT:
        return DiT(
            size,
            patch,
            width,
            depth,
            heads,
            channels=channels,
            out_channels=int(config.get("out_channels") or channels),
            labels=int(config["num_embeds_ada_norm"]) + 1,
            qkv_bias=bool(config.get("attention_bias", True)),
            mlp_eps=float(config.get("norm_eps", 1e-5)),
            freq_shift=1.0,
        )

    return cast(DiT, _filled(build, state, lambda ours: (ours,) if ours == "pos_embed" else dit_names(ours), where))


def _shared(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Without the embeddings of the blocks after the first, which must be the first's: only then are they one."""
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        later = re.sub(r"^transformer_blocks\.[1-9]\d*\.norm1\.emb\.", _FIRST, name)
        if later != name:
            if later not in state or not torch.equal(tensor, state[later]):
                raise SensoriumError(f"{where}: '{name}' is not the first block's: a DiT embeds time and label once.")
        elif name != "pos_embed.pos_embed":  # the fixed table, in old files
            kept[name] = tensor
    return kept


def dit_config(net: DiT) -> dict[str, Any]:
    """The configuration of diffusers' DiTTransformer2DModel that is this network; SensoriumError where none is."""
    height, width = net.image_size
    first = cast(Any, net.blocks[0])
    for wrong, said in (
        (height != width, f"it has square images only, this network {height}x{width}"),
        (net.labels < 2, "it has labels, this network none"),
        (net.freq_shift != 1, f"its sinusoids have freq_shift 1, this network's {net.freq_shift:g}: train one with 1"),
        (net.mlp_ratio != 4, f"its MLPs are 4 times as wide, this network's {net.mlp_ratio:g}"),
        (first.norm1.eps != 1e-6, f"its first norms have an epsilon of 1e-6, this network's {first.norm1.eps:g}"),
    ):
        if wrong:
            raise SensoriumError(f"diffusers' DiT cannot hold this one: {said}. Use --to safetensors.")
    return {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": net.heads,
        "attention_head_dim": net.width // net.heads,
        "in_channels": net.channels,
        "out_channels": net.out_channels,
        "num_layers": net.depth,
        "sample_size": height,
        "patch_size": net.patch_size,
        "num_embeds_ada_norm": net.labels - 1,
        "attention_bias": first.attn.qkv.bias is not None,
        "norm_eps": first.norm2.eps,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "activation_fn": "gelu-approximate",
    }


# --- both ---


def _filled(build: Callable[[], nn.Module], state: Mapping[str, Tensor], table: names.Names, where: str) -> nn.Module:
    with torch.device("meta"):
        network = build()
    network.load_state_dict(names.read(state, network.state_dict(), table, where), assign=True)
    return network


def _only(config: Mapping[str, Any], field: str, legal: list[Any], where: str) -> None:
    if config.get(field, legal[0]) not in legal:
        raise SensoriumError(
            f"{where}/config.json: {field} '{config[field]}' is not supported; it must be one of {tuple(legal)}."
        )


def _bounded(claimed: int, found: int, field: str, where: str) -> None:
    if claimed != found:
        raise SensoriumError(f"{where}/config.json: {field} says {claimed}, the weights have {found}.")


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({m[1] for name in state if (m := re.match(pattern, name))})
