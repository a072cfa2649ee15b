"""Stable Diffusion 1 in one file, as its authors publish it (CompVis/stable-diffusion): three networks, each with a prefix of its own.

    model.diffusion_model.            the U-Net; its averaged weights, model_ema., if there are any
    first_stage_model.                the autoencoder
    cond_stage_model.transformer.     CLIP's text tower, by transformers' names
Sizes follow from shapes. A tokenizer is not among them.
"""

from __future__ import annotations

from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.networks.formats.clip_text import BARE
from sensorium.networks.formats.kl_autoencoder import AUTHORS as AUTOENCODER
from sensorium.networks.formats.text_unet import AUTHORS as UNET
from sensorium.networks.kl_autoencoder import KLAutoencoder
from sensorium.networks.text import TextTower
from sensorium.networks.text_unet import TextUNet
from sensorium.published.files import TORCH, candidates, read_weights
from sensorium.published.opening import fill, in_one_line
from sensorium.published.source import Source

ENDINGS = (".safetensors", *TORCH)
PARTS = {
    "U-Net": "model.diffusion_model.",
    "autoencoder": "first_stage_model.",
    "text tower": "cond_stage_model.transformer.",
}


def read_single_file(path: str | Path) -> tuple[TextUNet, KLAutoencoder, TextTower]:
    """The parts in evaluation mode; nothing is read twice. Raises SensoriumError that names the part or the tensor that is wrong."""
    with in_one_line():
        return _read(Path(path), str(path))


def _read(path: Path, where: str) -> tuple[TextUNet, KLAutoencoder, TextTower]:
    states = (one.state for one in candidates(read_weights(path)))
    state = next((one for one in states if any(name.startswith(PARTS["U-Net"]) for name in one)), {})
    inside = {
        part: {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
        for part, prefix in PARTS.items()
    }
    if any(name.startswith("cond_stage_model.model.") for name in state):
        raise SensoriumError(f"{where}: its text tower is OpenCLIP's (Stable Diffusion 2): give its diffusers folder.")
    for part, prefix in PARTS.items():
        if not inside[part]:
            raise SensoriumError(
                f"{where}: the {part} ('{prefix}..') is missing; one file of Stable Diffusion 1 has all."
            )
    scale = state.get("scale_factor")
    options = {}
    if scale is not None and scale.numel() == 1 and scale.is_floating_point():
        options = {"scaling": scale.item()}
    unet = fill(UNET, Source(where, state, path))  # of the whole file, so that every name in it is known
    autoencoder = fill(AUTOENCODER, Source(where, inside["autoencoder"], path, options=options))
    return unet, autoencoder, fill(BARE, Source(where, inside["text tower"], path))
