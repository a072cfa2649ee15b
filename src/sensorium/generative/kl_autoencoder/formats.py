"""A run as diffusers' ``AutoencoderKL``; reading is that of the network
(:mod:`sensorium.networks.formats.kl_autoencoder`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sensorium.generative.kl_autoencoder.method import KLRegularized
from sensorium.networks.formats.kl_autoencoder import HF
from sensorium.networks.kl_autoencoder import KLAutoencoder
from sensorium.published.format import Format


def _network(thing: Any) -> KLAutoencoder | None:
    return thing.autoencoder if isinstance(thing, KLRegularized) else None


FORMATS: tuple[Format, ...] = ()
EXPORTS: tuple[Format, ...] = (replace(HF, of=_network),)
