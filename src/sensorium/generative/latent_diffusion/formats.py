"""A run as a folder that diffusers' ``StableDiffusionPipeline`` opens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sensorium.data.pairs.prepare import kept_tokens
from sensorium.generative.latent_diffusion.method import LatentDiffusion
from sensorium.generative.pipeline import TextToPicture, writable, write_beside_unet
from sensorium.networks.formats.text_unet import HF
from sensorium.published.format import Format
from sensorium.recipe.trained import Trained


def _network(thing: Any) -> Any:
    return thing.unet if isinstance(thing, LatentDiffusion) and writable(thing.unet, thing.autoencoder) else None


FORMATS: tuple[Format, ...] = ()
EXPORTS: tuple[Format, ...] = (replace(HF, of=_network, inside="unet"),)


def pipeline_of(run: Trained) -> TextToPicture:
    """A run's networks with its tokenizer."""
    method: Any = run.method
    return method.prompted(kept_tokens(run.folder))


def take_along(run: Trained, to: str, out: Path) -> None:
    """Write the other parts of the pipeline beside the U-Net."""
    if to == "hf":
        write_beside_unet(pipeline_of(run), out)
