"""How others keep VQGAN and LPIPS: tables of names, both ways.

    authors     CompVis/taming-transformers: ``state_dict`` of a Lightning checkpoint. Names are ours but for the losses'.
    diffusers   ``VQModel``: config.json and diffusion_pytorch_model.safetensors. Levels up are counted from the coarsest,
                attention's matrices are no 1 x 1 convolutions; files before 2023 have older names for them.
    lpips       torchvision's VGG16 and the heads of richzhang/PerceptualSimilarity, two files, or both in one.

An entry says which tensor is which, and in what shape they keep it where that differs. Reading is strict: each of ours is
filled, each of theirs is used or is on the format's own list of what is left out, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.generative.vqgan.method import VQGAN
from sensorium.parts.perceptual import LPIPS
from sensorium.published.files import read_weights, unwrap


class Entry(NamedTuple):
    """Our name and theirs; ``shape``: of theirs, where the same numbers lie in another."""

    ours: str
    theirs: str
    shape: tuple[int, ...] | None = None


# pattern of their name -> why it is left out
AUTHORS_DROPPED = {
    r"^loss\.perceptual_loss\.": "LPIPS is frozen, the same in all files, and read from its own",
    r"^colorize$": "a random projection by which segmentations are shown",
    r"\.num_batches_tracked$": "a counter that no result depends on",
}
LPIPS_DROPPED = {
    r"^classifier\.": "VGG16's classes are no part of the distance",
    r"^scaling_layer\.": "constants, which are ours too",
    r"^lins\.\d\.": "the heads once more",
}
# our name -> why no file of theirs has it
OURS_ALONE = {
    "adversarial": "follows from the step",
    "usage": "of training alone, begins anew",
    r"discriminator\..*num_batches_tracked": "a counter that no result depends on",
    r"perceptual\..*": "frozen, from files of its own",
}
DISCRIMINATOR_ALONE = {r"discriminator\..*": "diffusers keeps the autoencoder alone"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_ATTENTION = {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}


def authors(model: VQGAN) -> list[Entry]:
    """The table of taming-transformers."""
    names = [name for name in model.state_dict() if not _any(OURS_ALONE, name)]
    return [Entry(name, f"loss.{name}" if name.startswith("discriminator.") else name) for name in names]


def diffusers(model: VQGAN, *, old: bool = False) -> list[Entry]:
    """The table of diffusers' ``VQModel``; ``old``: the names of files before 2023."""
    attention, found = _OLD_ATTENTION if old else _ATTENTION, []
    for name, tensor in model.state_dict().items():
        if _any(OURS_ALONE | DISCRIMINATOR_ALONE, name):
            continue
        part, _, rest = name.partition(".")
        if part not in ("encoder", "decoder"):
            found.append(Entry(name, name))
            continue
        theirs = f"{part}.{_diffusers_layer(rest, len(model.decoder.mults), attention)}"
        flat = re.search(r"\.attn(\.\d+|_1)\.(q|k|v|proj_out)\.weight$", name)
        found.append(Entry(name, theirs, tuple(tensor.shape[:2]) if flat else None))
    return found


def diffusers_config(model: VQGAN) -> dict[str, Any]:
    """config.json of the ``VQModel`` that is this autoencoder; SensoriumError where none is.

    Channels are those of each level, so that mults must give whole ones; norms must have equally many groups.
    """
    encoder, decoder = model.encoder, model.decoder
    numbers = ("width", "mults", "layers", "attention", "channels", "groups")
    unlike = [n for n in numbers if getattr(encoder, n) != getattr(decoder, n)]
    if unlike:
        raise SensoriumError(f"diffusers' VQModel has one {unlike[0]}; this encoder and decoder differ in it.")
    widths = [encoder.width * mult for mult in encoder.mults]
    if any(width % encoder.groups for width in widths):
        raise SensoriumError(
            f"diffusers' VQModel has {encoder.groups} groups in all norms, which {widths} don't divide into."
        )
    return {
        "_class_name": "VQModel",
        "in_channels": encoder.channels,
        "out_channels": decoder.channels,
        "block_out_channels": widths,
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in encoder.attention],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(decoder.attention)],
        "layers_per_block": encoder.layers,
        "act_fn": "silu",
        "latent_channels": encoder.latent,
        "num_vq_embeddings": model.codes,
        "vq_embed_dim": model.quantize.dim,
        "norm_num_groups": encoder.groups,
        "mid_block_add_attention": not isinstance(encoder.mid.attn_1, nn.Identity),
    }


def authors_numbers(state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """What the tensors of an authors' checkpoint say of its sizes: keyword arguments of ``Encoder`` and ``Decoder``, with
    ``codes`` and ``dim`` of the codebook, ``disc_width`` and ``disc_depth`` (0 where there is no discriminator).

    Raises SensoriumError where a tensor is missing that has to be there.
    """
    try:
        width, channels = state["encoder.conv_in.weight"].shape[:2]
        levels = _count(state, r"encoder\.down\.(\d+)\.")
        ends = [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
        codes, dim = state["quantize.embedding.weight"].shape
        latent = state["encoder.conv_out.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise SensoriumError(f"{where}: no VQGAN of the authors' ({error}).") from None
    if not levels or any(end % width for end in ends):
        raise SensoriumError(f"{where}: levels of {ends} channels are not multiples of the first {width}.")
    first = state.get("loss.discriminator.main.0.weight")
    last = _count(state, r"loss\.discriminator\.main\.(\d+)\.weight") - 1
    return {
        "width": width,
        "mults": tuple(end // width for end in ends),
        "layers": _count(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "attention": tuple(f"encoder.down.{i}.attn.0.q.weight" in state for i in range(levels)),
        "channels": channels,
        "latent": latent,
        "codes": codes,
        "dim": dim,
        "disc_width": 0 if first is None else first.shape[0],
        "disc_depth": 0 if first is None else (last - 2) // 3,  # conv, leaky, depth x (conv, norm, leaky), conv
    }


def lpips_entries(model: LPIPS, *, joined: bool = False) -> list[Entry]:
    """The table of LPIPS: torchvision's names with the heads', or ``joined`` those of the whole network's own file."""
    found = []
    for name in model.state_dict():
        part, number, kind = name.split(".")
        if part == "heads":
            found.append(Entry(name, f"lin{number}.model.1.{kind}"))
        else:
            block = 1 + sum(int(number) >= end for end in model.ends)
            found.append(Entry(name, f"net.slice{block}.{number}.{kind}" if joined else name))
    return found


def load_lpips(vgg: str | Path, heads: str | Path | None = None, *, model: LPIPS | None = None) -> LPIPS:
    """LPIPS from files: torchvision's VGG16 and the heads, or with one file the whole of it. .pth or .safetensors.

    Nothing in them is run. Raises SensoriumError that names the file and the entry.
    """
    state, where = next(unwrap(read_weights(Path(vgg)))), str(vgg)
    inside = "loss.perceptual_loss."
    if heads is None and any(name.startswith(inside) for name in state):  # a checkpoint of VQGAN
        state = {name.removeprefix(inside): t for name, t in state.items() if name.startswith(inside)}
    if heads is not None:
        state, where = state | next(unwrap(read_weights(Path(heads)))), f"{vgg} and {heads}"
    model = model or LPIPS()
    table = lpips_entries(model, joined=any(name.startswith("net.") for name in state))
    model.load_state_dict(read(state, table, model.state_dict(), LPIPS_DROPPED, where))
    model.described = "LPIPS (VGG16, heads learned from judgments)"
    return model


def read(
    state: Mapping[str, Tensor],
    table: Sequence[Entry],
    wanted: Mapping[str, Tensor],
    dropped: Mapping[str, str],
    where: str,
) -> dict[str, Tensor]:
    """Their tensors under our names, in the shapes of ``wanted``. Raises SensoriumError that names the entry."""
    ours: dict[str, Tensor] = {}
    for entry in table:
        tensor, target = state.get(entry.theirs), wanted[entry.ours]
        if tensor is None:
            raise SensoriumError(f"{where}: '{entry.theirs}' is missing.")
        legal = {tuple(target.shape), entry.shape or tuple(target.shape)}
        if tuple(tensor.shape) not in legal:
            shape = list(entry.shape or target.shape)
            raise SensoriumError(f"{where}: '{entry.theirs}' has shape {list(tensor.shape)}, its place {shape}.")
        ours[entry.ours] = tensor.reshape(target.shape).to(target.dtype)
    used = {entry.theirs for entry in table}
    strange = [name for name in state if name not in used and not _any(dropped, name, whole=False)]
    if strange:
        more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
        raise SensoriumError(f"{where}: '{strange[0]}' is unknown{more}.")
    return ours


def write(state: Mapping[str, Tensor], table: Sequence[Entry]) -> dict[str, Tensor]:
    """Our tensors under their names and in their shapes: the inverse of :func:`read`."""
    return {
        entry.theirs: state[entry.ours].detach().cpu().reshape(entry.shape or state[entry.ours].shape).clone()
        for entry in table
    }


def _diffusers_layer(name: str, levels: int, attention: Mapping[str, str]) -> str:
    """``up.0.block.1.norm1.weight`` and the like, within encoder or decoder -> theirs."""
    mid = re.fullmatch(r"mid\.(block|attn)_(\d)\.(\w+)\.(\w+)", name)
    if mid:
        kind, number, part, end = mid.groups()
        if kind == "attn":
            return f"mid_block.attentions.0.{attention[part]}.{end}"
        return f"mid_block.resnets.{int(number) - 1}.{part}.{end}"
    level = re.fullmatch(r"(down|up)\.(\d+)\.(\w+?)\.(?:(\d+)\.)?(\w+)\.(\w+)", name)
    if not level:
        return name.replace("norm_out", "conv_norm_out")
    way, i, kind, number, part, end = level.groups()
    where = f"{way}_blocks.{int(i) if way == 'down' else levels - 1 - int(i)}"
    if kind == "block":
        return f"{where}.resnets.{number}.{part.replace('nin_shortcut', 'conv_shortcut')}.{end}"
    if kind == "attn":
        return f"{where}.attentions.{number}.{attention[part]}.{end}"
    return f"{where}.{way}samplers.0.conv.{end}"


def _any(patterns: Mapping[str, str], name: str, *, whole: bool = True) -> bool:
    return any((re.fullmatch if whole else re.search)(pattern, name) for pattern in patterns)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers from 0 on the names of a pattern have, going by the largest, at most one a tensor."""
    found = {int(m[1]) for name in state if (m := re.match(pattern, name))}
    return min(max(found) + 1, len(state)) if found else 0
