"""The networks of flows and diffusions by name."""

from __future__ import annotations

from typing import Any

from sensorium.errors import SensoriumError
from sensorium.networks.dit import DIT_SIZES, dit
from sensorium.networks.unet import UNET_SIZES, unet


def velocity_network(name: str, image_size: int, labels: int) -> Any:
    """unet-micro ... or dit-micro ...; ``labels``: rows of the label embedding. Raises SensoriumError for another name."""
    family, _, size = name.partition("-")
    if family == "unet" and size in UNET_SIZES:
        return unet(size, image_size, labels=labels)
    if family == "dit" and size in DIT_SIZES:
        return dit(size, image_size, labels=labels)
    names = [*(f"unet-{size}" for size in UNET_SIZES), *(f"dit-{size}" for size in DIT_SIZES)]
    raise SensoriumError(f"no network is called '{name}'. Choose {', '.join(names)}.")
