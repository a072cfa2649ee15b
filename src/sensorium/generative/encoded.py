"""Pictures as another run's autoencoder, or a published one, encodes them, once for all steps of a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.abilities import HasLatents, Tokenizer
from sensorium.base.files import cache_for, write_bytes, write_json
from sensorium.base.precision import device_name
from sensorium.base.terminal import bar
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import ArrayRows, Rows
from sensorium.errors import SensoriumError
from sensorium.networks.formats.kl_autoencoder import HF
from sensorium.networks.kl_autoencoder import KLSizes
from sensorium.networks.latents import LatentNetwork
from sensorium.published.opening import open_path, part_of
from sensorium.recipe.trained import ROLE, Checkpoint, Trained, digest_of, is_run, published_input

BESIDE = ("label", "tokens")  # fields that are kept as they are


def _open(path: str) -> nn.Module:
    network = open_path(part_of(path, "vae"), (HF,))
    if network.encoder.channels != 3:
        raise SensoriumError(f"{path}: takes pictures of {network.encoder.channels} channels, not of 3.")
    return network


PUBLISHED = Checkpoint(_open, KLSizes)
RunOrAutoencoder = Annotated[
    str, ROLE, PUBLISHED
]  # or diffusers' folder of an AutoencoderKL, or of a pipeline with one


@dataclass(frozen=True)
class Coder:
    """What encodes pictures. encode: uint8 [B, 3, H, W] -> [B, ...], by the ``network``. source: where it is from."""

    network: nn.Module
    encode: Callable[[Tensor], Tensor]
    source: Trained | str

    @cached_property
    def digest(self) -> str:
        """Of its weights."""
        return self.source.digest if isinstance(self.source, Trained) else digest_of(self.network)


def tokenizer_of(tokens: str, on: Situation) -> tuple[Coder, Any]:
    """What encodes pictures as codes, and the method of the run in the folder ``tokens``, which must be a tokenizer of pictures
    of this size. Raises SensoriumError that says so."""
    run = Trained(tokens)
    found = _method_of(run, tokens, Tokenizer, "codes", on)
    return Coder(found, lambda pixels: found.encode(found.from_pixels(pixels)), run), found


def latents_of(tokens: str, on: Situation) -> tuple[Coder, LatentNetwork]:
    """What encodes pictures as latents, of a run in the folder ``tokens`` that was made for pictures of this size, or a published
    autoencoder. Raises SensoriumError if there is none."""
    if is_run(tokens):
        source = Trained(tokens)
        network = _method_of(source, tokens, HasLatents, "maps of latents", on).latent_network()
    else:
        source, network = tokens, published_input("tokens", tokens, PUBLISHED)
    return Coder(network, lambda pixels: network.encode(pixels.float() / 127.5 - 1), source), network


def _method_of(run: Trained, tokens: str, ability: type, what: str, on: Situation) -> Any:
    found: Any = run.method if run.finished else run.recipe.method
    if not isinstance(found, ability):
        raise SensoriumError(f"--tokens {tokens}: must be a run of a system that turns pictures into {what}.")
    if run.situation.image_size != on.image_size:
        raise SensoriumError(
            f"--tokens {tokens}: made for {run.situation.image_size} px; give --image-size {run.situation.image_size}."
        )
    return found


@torch.no_grad()
def encoded(
    rows: Rows,
    coder: Coder,
    cache: Path,
    field: str,
    dtype: torch.dtype,
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> Rows:
    """Rows of ``image`` -> rows of ``field``, what ``coder`` encodes each as, with their ``label`` or ``tokens``.

    Computed once and kept in ``cache``, with a record of the run and the data.
    """
    name = f"{field}-{coder.digest}-{rows.digest.replace(' ', '-')}.npy"
    path = cache_for(cache, name) / name
    if not path.is_file():
        device = device_name()
        coder.network.to(device)
        parts = []
        with bar("encoding images", progress) as report:
            for start in range(0, len(rows), batch_size):
                end = min(start + batch_size, len(rows))
                image = rows.take(np.arange(start, end), ("image",))["image"]
                assert isinstance(image, torch.Tensor)
                parts.append(coder.encode(image.to(device)).to("cpu", dtype))
                if report:
                    report(end, len(rows))
        found = torch.cat(parts).numpy()
        write_bytes(path, lambda file: np.save(file, found))
        source = str(coder.source.folder if isinstance(coder.source, Trained) else coder.source)
        write_json(path.with_suffix(".json"), {"run": source, "weights": coder.digest, "data": rows.digest})
        coder.network.to("cpu")
    kept = rows.take(np.arange(len(rows)), [one for one in BESIDE if one in rows.fields])
    columns = {field: np.load(path, mmap_mode="r"), **{name: np.asarray(value) for name, value in kept.items()}}
    return ArrayRows(columns, rows.unit, classes=rows.classes)
