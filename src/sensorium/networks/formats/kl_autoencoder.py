"""Formats of the KL autoencoder: diffusers' ``AutoencoderKL`` directory, and the single file of the authors' code
(CompVis/latent-diffusion, stable-diffusion), alone or as ``first_stage_model`` in the file of a whole latent diffusion.

The authors' file does not tell the scaling of latents, which their configuration has: it is an option, and by default
Stable Diffusion's. Networks without the 1 x 1 convolutions (Stable Diffusion 3, FLUX) are read, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.networks.formats.autoencoder import (
    GROUPS,
    LINEAR,
    SPELLINGS,
    alike,
    authors_numbers,
    coder_config,
    coder_fits,
    coder_numbers,
    coder_table,
    square,
)
from sensorium.networks.kl_autoencoder import SCALING, KLAutoencoder, built
from sensorium.published import usage
from sensorium.published.format import Dropped, Entry, Format, Preparation, zero
from sensorium.published.opening import open_path
from sensorium.published.source import Source

LARGEST = 1e6  # of scaling and shift
_POINTWISE = tuple(f".attn_1.{name}.weight" for name in ("q", "k", "v", "proj_out"))
_TOLD = (Entry("scaling", (), otherwise=zero), Entry("shift", (), otherwise=zero))  # see _settle


def _settle(network: Any, source: Source) -> None:
    """Scaling and shift, of the caller or of the configuration."""
    for name, default in (("scaling", SCALING), ("shift", 0.0)):
        given = source.options.get(name)
        low = 1 / LARGEST if name == "scaling" else -LARGEST
        value = source.number(f"{name}_factor", default, low=low, high=LARGEST) if given is None else float(given)
        if not low <= value <= LARGEST:
            raise SensoriumError(f"{source.told}: {name} {value:g} is not a number from {low:g} to {LARGEST:g}.")
        network.get_buffer(name).fill_(value)


def _latent(source: Source) -> int:
    """Z, by the last layer of the encoder, which has 2 Z channels."""
    doubled = source.shape("encoder.conv_out.weight", 4)[0]
    if doubled % 2:
        raise SensoriumError(
            f"{source.where}: 'encoder.conv_out.weight' has {doubled} outputs, expected an even number: means and "
            "variances."
        )
    return doubled // 2


# --- diffusers ---


def _hf_numbers(source: Source) -> dict[str, Any]:
    latent, numbers = _latent(source), coder_numbers(source)
    source.agree(source.whole("latent_channels", 4), latent, "latent_channels")
    for field in ("latents_mean", "latents_std"):
        source.only(field, None)
    convolutions = {name: source.flag(f"use_{name}_conv", True) for name in ("quant", "post_quant")}
    return {"latent": latent, **convolutions, **numbers}


def _hf_config(network: Any) -> dict[str, Any]:
    shift = float(network.shift)
    return {
        "_class_name": "AutoencoderKL",
        **coder_config(network.encoder),
        "latent_channels": network.latent,
        "scaling_factor": float(network.scaling),
        "shift_factor": shift or None,
        "use_quant_conv": not isinstance(network.quant_conv, nn.Identity),
        "use_post_quant_conv": not isinstance(network.post_quant_conv, nn.Identity),
    }


def _hf_usage(network: Any, how: Preparation) -> str:
    return f"""import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import to_dtype, to_image

model = AutoencoderKL.from_pretrained(folder).eval()
{usage.square(network, how)}
x = to_dtype(to_image(picture), torch.float32, scale=True)[None] * 2 - 1
with torch.inference_mode():
    latents = (model.encode(x).latent_dist.mode() - (model.config.shift_factor or 0)) * model.config.scaling_factor
    y = model.decode(latents / model.config.scaling_factor + (model.config.shift_factor or 0)).sample
images = ((y / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
print(latents.shape, images.shape)"""


HF = Format(
    name="diffusers AutoencoderKL",
    network=KLAutoencoder,
    kinds=("AutoencoderKL",),
    keys=(r"encoder\.conv_in\.weight", r"encoder\.down_blocks\.0\..+", r"decoder\.up_blocks\.0\..+"),
    table=(*_TOLD, *coder_table("encoder", "down"), *coder_table("decoder", "up"), Entry("{rest}", "{rest}")),
    spellings=SPELLINGS,
    prepare=lambda source: square(source.state, LINEAR, 2),
    numbers=_hf_numbers,
    build=built,
    settle=_settle,
    normalization=None,
    to="hf",
    fits=lambda network: coder_fits(network, "diffusers' AutoencoderKL"),
    config=_hf_config,
    file="diffusion_pytorch_model.safetensors",
    usage=_hf_usage,
)


# --- the authors' ---


def _authors_numbers(source: Source) -> dict[str, Any]:
    convolutions = {name: f"{name}_conv.weight" in source.state for name in ("quant", "post_quant")}
    return {"latent": _latent(source), **convolutions, **authors_numbers(source)}


def _authors_fits(network: KLAutoencoder) -> None:
    alike(network, "the authors' AutoencoderKL")
    if network.encoder.groups != GROUPS:
        raise SensoriumError(f"the authors' norms have {GROUPS} groups, these {network.encoder.groups}. Use --to hf.")


def _pointwise(source: Source) -> Mapping[str, Tensor]:
    return square(source.state, _POINTWISE, 4)


AUTHORS = Format(
    name="authors' AutoencoderKL",
    network=KLAutoencoder,
    keys=(r"encoder\.down\.0\.block\.0\.conv1\.weight", r"decoder\.up\.0\.block\.0\.conv1\.weight"),
    absent=(r"quantize\..+",),
    table=(*_TOLD, Entry("{rest}", "{rest}")),
    dropped=(
        Dropped(r"loss\..+", "the discriminator, LPIPS and the variance of the loss only train it"),
        Dropped(r"colorize", "a random projection for showing segmentations"),
        Dropped(r"model_ema\.(decay|num_updates)", "counters of a moving average whose weights are not in the file"),
    ),
    prepare=_pointwise,
    numbers=_authors_numbers,
    build=built,
    settle=_settle,
    normalization=None,
    to="authors",
    fits=_authors_fits,
    file="autoencoder_kl.ckpt",
    container="state_dict",
)

FORMATS: tuple[Format, ...] = (HF, AUTHORS)


def load_kl_autoencoder(path: str | Path, *, scaling: float | None = None, shift: float | None = None) -> KLAutoencoder:
    """The autoencoder of a directory, of a single file, or in the file of a whole latent diffusion, in evaluation mode.

    scaling, shift: of latents, if not those of the directory's configuration, or not Stable Diffusion's for a single
    file. Raises SensoriumError, in one line, that names the file and the error.
    """
    return open_path(path, FORMATS, scaling=scaling, shift=shift)
