"""Formats of VQGAN: the checkpoints of the authors' code (CompVis/taming-transformers), and diffusers' ``VQModel``; and the
files of LPIPS, VQGAN's perceptual loss (torchvision's VGG16 and the heads of richzhang/PerceptualSimilarity).

The authors' names are ours except for those of their loss, which holds the discriminator and LPIPS; either may be
missing. diffusers has only the autoencoder, numbers the decoder's levels from the coarsest, and has linear layers for
attention's 1 x 1 convolutions. Without a discriminator a checkpoint encodes and decodes, but can't be trained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sensorium.errors import SensoriumError
from sensorium.generative.vqgan.method import VQGAN
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.discriminator import PatchDiscriminator
from sensorium.parts.perceptual import LPIPS, VGG16
from sensorium.parts.quantize import Quantizer
from sensorium.published import usage
from sensorium.published.files import read_weights, unwrap
from sensorium.published.format import Change, Dropped, Entry, Format, Preparation, under, zero
from sensorium.published.opening import fill, recognized
from sensorium.published.source import Source, shown

PIXELS = 256  # per side, of the authors' images
GROUPS = 32  # of the authors' norms
_NUMBERS = ("width", "mults", "layers", "attention", "channels", "groups")
_MATRIX = Change(lambda x, _: x[..., None, None], lambda x, _: x[..., 0, 0])  # theirs, of a 1 x 1 convolution of ours
_FRESH = (
    Entry("adversarial", (), otherwise=zero),
    Entry("usage", (), otherwise=zero),
)  # of training, which starts over


# --- LPIPS ---


def _places() -> list[tuple[int, int]]:
    """(block from 1, index of the layer) of each convolution of VGG16: a ReLU follows each, a pooling each block."""
    found, layer = [], 0
    for block, widths in enumerate(VGG16, 1):
        found += [(block, layer + 2 * i) for i in range(len(widths))]
        layer += 2 * len(widths) + 1
    return found


_HEADS = Entry("heads.{i}.weight", "lin{i}.model.1.weight")
_TORCHVISION = "features.{layer}"
_WHOLE = "net.slice{block}.{layer}"


def _lpips_table(name: str) -> tuple[Entry, ...]:
    features = (
        Entry(f"features.{layer}.{{kind}}", name.format(block=block, layer=layer) + ".{kind}")
        for block, layer in _places()
    )
    return (*features, _HEADS)


def _blocks(source: Source, name: str) -> tuple[tuple[int, ...], ...]:
    """The convolutions' channels, one entry per block."""
    found: list[list[int]] = [[] for _ in VGG16]
    for block, layer in _places():
        found[block - 1].append(source.shape(f"{name.format(block=block, layer=layer)}.weight", 4)[0])
    return tuple(map(tuple, found))


def _described(network: Any, source: Source) -> None:
    network.described = "LPIPS (VGG16, heads learned from judgments)"


LPIPS_WHOLE = Format(
    name="LPIPS in one file",
    network=LPIPS,
    keys=(r"net\.slice1\.0\.weight",),
    table=_lpips_table(_WHOLE),
    dropped=(
        Dropped(r"scaling_layer\.(shift|scale)", "constants, the same as ours"),
        Dropped(r"lins\.\d\..+", "a copy of the heads"),
    ),
    numbers=lambda source: {"blocks": _blocks(source, _WHOLE)},
    settle=_described,
    normalization=None,
)
LPIPS_PARTS = replace(
    LPIPS_WHOLE,
    name="LPIPS of torchvision's VGG16 and the heads",
    keys=(r"features\.0\.weight",),
    table=_lpips_table(_TORCHVISION),
    dropped=(Dropped(r"classifier\..+", "VGG16's classifier is not part of the distance"),),
    numbers=lambda source: {"blocks": _blocks(source, _TORCHVISION)},
)
_INSIDE = "loss.perceptual_loss."


def load_lpips(vgg: str | Path, heads: str | Path | None = None) -> LPIPS:
    """LPIPS from files: torchvision's VGG16 and the heads; or the whole of it from one, which a checkpoint of VQGAN may be.

    .pth or .safetensors. Raises SensoriumError that names the file and the entry.
    """
    state, where = next(unwrap(read_weights(Path(vgg))), {}), str(vgg)
    if any(name.startswith(_INSIDE) for name in state):
        state = {name.removeprefix(_INSIDE): x for name, x in state.items() if name.startswith(_INSIDE)}
    if heads is not None:
        state, where = state | next(unwrap(read_weights(Path(heads))), {}), f"{vgg} and {heads}"
    source = Source(where, state)
    forms = recognized(source, (LPIPS_WHOLE, LPIPS_PARTS))
    if not forms:
        raise SensoriumError(f"{where}: neither LPIPS in one file nor torchvision's VGG16 with LPIPS's heads.")
    return fill(forms[0], source)


# --- the authors' ---


def _build(
    size: tuple[int, int],
    codes: int,
    dim: int,
    discriminator: tuple[int, int, int] | None = None,
    perceptual: tuple[tuple[int, ...], ...] | None = None,
    **coder: Any,
) -> VQGAN:
    """Build VQGAN from numbers: those of :class:`PatchDiscriminator` and :class:`LPIPS`, if present; ``coder``: of the
    encoder and the decoder."""
    judge = None if discriminator is None else PatchDiscriminator(*discriminator)
    seen = None if perceptual is None else LPIPS(perceptual)
    return VQGAN(Encoder(**coder), Decoder(**coder), Quantizer(codes, dim), judge, size, perceptual=seen)


def _multiples(source: Source, widths: list[int]) -> dict[str, Any]:
    """The channels of the levels as a width and its multiples."""
    if not widths or any(width < 1 or width % widths[0] for width in widths):
        raise SensoriumError(f"{source.told}: levels of {shown(widths, '')} channels are not multiples of the first.")
    return {"width": widths[0], "mults": tuple(width // widths[0] for width in widths)}


def _authors_numbers(source: Source) -> dict[str, Any]:
    state, levels = source.state, source.count(r"encoder\.down\.(\d+)\.")
    first, channels = source.shape("encoder.conv_in.weight", 4)[:2]
    ends = [source.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
    multiples = _multiples(source, [first, *ends])
    codes, dim = source.shape("quantize.embedding.weight", 2)
    judge = None
    if "loss.discriminator.main.0.weight" in state:
        width, seen = source.shape("loss.discriminator.main.0.weight", 4)[:2]
        # the first and the last convolution, and ``depth`` times a convolution and a norm
        weights = source.count(r"loss\.discriminator\.main\.(\d+)\.weight")
        judge = (seen, width, (weights - 2) // 2)
    lpips = any(name.startswith(f"{_INSIDE}net.") for name in state)
    return {
        "size": (PIXELS, PIXELS),
        "codes": codes,
        "dim": dim,
        "discriminator": judge,
        "perceptual": _blocks(source, _INSIDE + _WHOLE) if lpips else None,
        "width": first,
        "mults": multiples["mults"][1:],
        "layers": source.count(r"encoder\.down\.0\.block\.(\d+)\."),
        "attention": tuple(f"encoder.down.{i}.attn.0.q.weight" in state for i in range(levels)),
        "middle_attention": "encoder.mid.attn_1.q.weight" in state,
        "channels": channels,
        "latent": source.shape("encoder.conv_out.weight", 4)[0],
        "groups": GROUPS,
    }


def _alike(network: VQGAN, whose: str) -> None:
    """SensoriumError if encoder and decoder differ, or a norm's groups don't divide its channels."""
    encoder, decoder = network.encoder, network.decoder
    ours = {name: (getattr(encoder, name), getattr(decoder, name)) for name in _NUMBERS}
    unlike = next((name for name, (one, other) in ours.items() if one != other), None)
    if unlike:
        raise SensoriumError(f"{whose} has one {unlike} for both; this encoder and decoder differ in it.")
    widths = [encoder.width * mult for mult in encoder.mults]
    if any(width % encoder.groups for width in [encoder.width, *widths]):
        raise SensoriumError(f"{whose} has {encoder.groups} groups in all norms, which don't divide {widths} channels.")


def _authors_fits(network: VQGAN) -> None:
    _alike(network, "the authors' VQGAN")
    seen, judge = network.perceptual, network.discriminator
    if network.encoder.groups != GROUPS:
        raise SensoriumError(f"the authors' norms have {GROUPS} groups, these {network.encoder.groups}. Use --to hf.")
    if judge is not None and not isinstance(judge, PatchDiscriminator):
        raise SensoriumError(
            f"the authors' discriminator is a PatchDiscriminator, this is a {type(judge).__name__}. Use --to hf."
        )
    if seen is not None and not isinstance(seen, LPIPS):
        raise SensoriumError(f"the authors' perceptual loss is LPIPS, this is {type(seen).__name__}. Use --to hf.")


def _perceptual(network: Any, source: Source) -> None:
    if network.perceptual is not None:
        _described(network.perceptual, source)


_COUNTER = "discriminator.{rest}.num_batches_tracked"
AUTHORS = Format(
    name="authors' VQGAN",
    network=VQGAN,
    keys=(r"encoder\.down\.0\.block\.0\.conv1\.weight", r"quantize\.embed(ding)?\.weight", r"post_quant_conv\.weight"),
    refused=((r"quantize\.embed\.weight", "a VQGAN with a Gumbel-softmax quantizer, which is not supported"),),
    table=(
        *_FRESH,
        *under("perceptual.", _INSIDE, _lpips_table(_WHOLE)),
        Entry(_COUNTER, f"loss.{_COUNTER}", otherwise=zero),
        Entry("discriminator.{rest}", "loss.discriminator.{rest}"),
        Entry("{rest}", "{rest}"),
    ),
    dropped=(
        Dropped(r"loss\.perceptual_loss\.scaling_layer\.(shift|scale)", "constants, the same as ours"),
        Dropped(r"colorize", "a random projection for showing segmentations"),
    ),
    numbers=_authors_numbers,
    build=_build,
    settle=_perceptual,
    normalization=None,
    to="authors",
    fits=_authors_fits,
    file="vqgan.ckpt",
    container="state_dict",
)


# --- diffusers ---


def _levels(network: VQGAN) -> int:
    return len(network.decoder.mults)


def _attention(ours: str, theirs: str) -> tuple[Entry, ...]:
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    matrices = (Entry(f"{ours}.{key}.weight", f"{theirs}.{value}.weight", _MATRIX) for key, value in names.items())
    biases = (Entry(f"{ours}.{key}.bias", f"{theirs}.{value}.bias") for key, value in names.items())
    return (*matrices, *biases, Entry(f"{ours}.norm.{{kind}}", f"{theirs}.group_norm.{{kind}}"))


def _coder(part: str, way: str) -> tuple[Entry, ...]:
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


_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of files before 2023
_DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
_UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}


def _hf_attention(source: Source) -> tuple[bool, ...]:
    """The levels with attention, finest first."""
    down, up = source.words("down_block_types", tuple(_DOWN)), source.words("up_block_types", tuple(_UP))
    attention = tuple(_DOWN[kind] for kind in down)
    if attention != tuple(_UP[kind] for kind in reversed(up)):
        raise SensoriumError(f"{source.told}: attention must be at the same levels of encoder and decoder.")
    return attention


def _hf_numbers(source: Source) -> dict[str, Any]:
    for field, *legal in (("act_fn", "silu", "swish"), ("norm_type", "group")):
        source.only(field, *legal)
    attention, layers = _hf_attention(source), source.whole("layers_per_block", 1)
    widths, side = source.wholes("block_out_channels"), source.side("sample_size", PIXELS)
    codes, dim = source.shape("quantize.embedding.weight", 2)
    width, channels = source.shape("encoder.conv_in.weight", 4)[:2]
    latent = source.shape("encoder.conv_out.weight", 4)[0]
    for name, claimed, found in (
        ("down_block_types", len(attention), source.count(r"encoder\.down_blocks\.(\d+)\.")),
        ("up_block_types", len(attention), source.count(r"decoder\.up_blocks\.(\d+)\.")),
        ("block_out_channels", len(widths), len(attention)),
        ("block_out_channels", widths[0], width),
        ("layers_per_block", layers, source.count(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")),
        ("in_channels", source.whole("in_channels", 3), channels),
        ("out_channels", source.whole("out_channels", 3), channels),
        ("latent_channels", source.whole("latent_channels", 3), latent),
        ("num_vq_embeddings", source.whole("num_vq_embeddings", 256), codes),
        ("vq_embed_dim", source.whole("vq_embed_dim", latent), dim),
    ):
        source.agree(claimed, found, name)
    groups = source.whole("norm_num_groups", 32)
    if any(width % groups for width in widths):
        raise SensoriumError(f"{source.told}: norm_num_groups {groups} does not divide {shown(widths, '')}.")
    return {
        "size": (side, side) if isinstance(side, int) else side,
        "codes": codes,
        "dim": dim,
        **_multiples(source, list(widths)),
        "layers": layers,
        "attention": attention,
        "middle_attention": source.flag("mid_block_add_attention", True),
        "channels": channels,
        "latent": latent,
        "groups": groups,
    }


def _hf_config(network: Any) -> dict[str, Any]:
    encoder, (height, width) = network.encoder, network.size
    return {
        "_class_name": "VQModel",
        "in_channels": encoder.channels,
        "out_channels": encoder.channels,
        "block_out_channels": [encoder.width * mult for mult in encoder.mults],
        "down_block_types": [list(_DOWN)[attend] for attend in encoder.attention],
        "up_block_types": [list(_UP)[attend] for attend in reversed(encoder.attention)],
        "layers_per_block": encoder.layers,
        "act_fn": "silu",
        "latent_channels": encoder.latent,
        "sample_size": height if height == width else [height, width],
        "num_vq_embeddings": network.codes,
        "vq_embed_dim": network.quantize.dim,
        "norm_num_groups": encoder.groups,
        "mid_block_add_attention": not isinstance(encoder.mid.attn_1, nn.Identity),
    }


def _hf_fits(network: VQGAN) -> None:
    _alike(network, "diffusers' VQModel")
    if network.encoder.mults[0] != 1:
        raise SensoriumError("diffusers' VQModel starts with the channels of its first level; this encoder with fewer.")


def _hf_usage(network: VQGAN, how: Preparation) -> str:
    return f"""import torch
from diffusers import VQModel
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import to_dtype, to_image

model = VQModel.from_pretrained(folder).eval()
{usage.square(network, how)}
x = to_dtype(to_image(picture), torch.float32, scale=True)[None] * 2 - 1
with torch.inference_mode():
    y = model(x).sample
images = ((y / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
print(images.shape)"""


HF = Format(
    name="diffusers VQModel",
    network=VQGAN,
    kinds=("VQModel",),
    keys=(r"encoder\.conv_in\.weight", r"encoder\.down_blocks\.0\..+", r"quantize\.embedding\.weight"),
    table=(
        *_FRESH,
        Entry("discriminator.{rest}", ()),
        Entry("perceptual.{rest}", ()),
        *_coder("encoder", "down"),
        *_coder("decoder", "up"),
        Entry("{rest}", "{rest}"),
    ),
    spellings=tuple((rf"(\.attentions\.\d+)\.{old}\.", rf"\1.{new}.") for old, new in _OLD.items()),
    numbers=_hf_numbers,
    build=_build,
    normalization=None,
    to="hf",
    fits=_hf_fits,
    config=_hf_config,
    file="diffusion_pytorch_model.safetensors",
    usage=_hf_usage,
)

FORMATS: tuple[Format, ...] = (HF, AUTHORS)
