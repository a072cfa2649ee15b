"""Formats of VQGAN: the checkpoints of the authors' code (CompVis/taming-transformers), and diffusers' ``VQModel``.

The authors' names are ours except for those of their loss, which holds the discriminator and LPIPS; either may be
missing. diffusers has only the autoencoder. Without a discriminator a checkpoint encodes and decodes, but can't be
trained.
"""

from __future__ import annotations

from typing import Any

from sensorium.errors import SensoriumError
from sensorium.generative.vqgan.method import VQGAN
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.discriminator import PatchDiscriminator
from sensorium.networks.formats.autoencoder import (
    GROUPS,
    SPELLINGS,
    alike,
    authors_numbers,
    coder_config,
    coder_fits,
    coder_numbers,
    coder_table,
)
from sensorium.networks.formats.lpips import INSIDE, WHOLE, blocks_of, described, lpips_table
from sensorium.parts.perceptual import LPIPS
from sensorium.parts.quantize import Quantizer
from sensorium.published import usage
from sensorium.published.format import Dropped, Entry, Format, Preparation, under, zero
from sensorium.published.source import Source

PIXELS = 256  # per side, of the authors' images
_FRESH = (
    Entry("adversarial", (), otherwise=zero),
    Entry("usage", (), otherwise=zero),
)  # of training, which starts over


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


def _authors_numbers(source: Source) -> dict[str, Any]:
    state, numbers = source.state, authors_numbers(source)
    codes, dim = source.shape("quantize.embedding.weight", 2)
    judge = None
    if "loss.discriminator.main.0.weight" in state:
        width, seen = source.shape("loss.discriminator.main.0.weight", 4)[:2]
        # the first and the last convolution, and ``depth`` times a convolution and a norm
        weights = source.count(r"loss\.discriminator\.main\.(\d+)\.weight")
        judge = (seen, width, (weights - 2) // 2)
    lpips = any(name.startswith(f"{INSIDE}net.") for name in state)
    return {
        "size": (PIXELS, PIXELS),
        "codes": codes,
        "dim": dim,
        "discriminator": judge,
        "perceptual": blocks_of(source, INSIDE + WHOLE) if lpips else None,
        "latent": source.shape("encoder.conv_out.weight", 4)[0],
        **numbers,
    }


def _authors_fits(network: VQGAN) -> None:
    alike(network, "the authors' VQGAN")
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
        described(network.perceptual, source)


_COUNTER = "discriminator.{rest}.num_batches_tracked"
AUTHORS = Format(
    name="authors' VQGAN",
    network=VQGAN,
    keys=(r"encoder\.down\.0\.block\.0\.conv1\.weight", r"quantize\.embed(ding)?\.weight", r"post_quant_conv\.weight"),
    refused=((r"quantize\.embed\.weight", "a VQGAN with a Gumbel-softmax quantizer, which is not supported"),),
    table=(
        *_FRESH,
        *under("perceptual.", INSIDE, lpips_table(WHOLE)),
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


def _hf_numbers(source: Source) -> dict[str, Any]:
    numbers, side = coder_numbers(source), source.side("sample_size", PIXELS)
    codes, dim = source.shape("quantize.embedding.weight", 2)
    latent = source.shape("encoder.conv_out.weight", 4)[0]
    for name, claimed, found in (
        ("latent_channels", source.whole("latent_channels", 3), latent),
        ("num_vq_embeddings", source.whole("num_vq_embeddings", 256), codes),
        ("vq_embed_dim", source.whole("vq_embed_dim", latent), dim),
    ):
        source.agree(claimed, found, name)
    size = (side, side) if isinstance(side, int) else side
    return {"size": size, "codes": codes, "dim": dim, "latent": latent, **numbers}


def _hf_config(network: Any) -> dict[str, Any]:
    height, width = network.size
    return {
        "_class_name": "VQModel",
        **coder_config(network.encoder),
        "latent_channels": network.encoder.latent,
        "sample_size": height if height == width else [height, width],
        "num_vq_embeddings": network.codes,
        "vq_embed_dim": network.quantize.dim,
    }


def _hf_fits(network: VQGAN) -> None:
    coder_fits(network, "diffusers' VQModel")


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
        *coder_table("encoder", "down"),
        *coder_table("decoder", "up"),
        Entry("{rest}", "{rest}"),
    ),
    spellings=SPELLINGS,
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
