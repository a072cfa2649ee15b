"""How a run is executed, apart from its recipe and its data."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from sensorium.base.precision import resolve_precision
from sensorium.errors import SensoriumError
from sensorium.recipe.recipe import Recipe
from sensorium.training.batches import Share
from sensorium.training.launch import rank_and_world


@dataclass(frozen=True)
class Options:
    """accumulate: micro-batches of each device's part of a batch. device: "auto", "cpu", "cuda" or "mps".
    strategy: "auto", "ddp", "fsdp" or another of Fabric's names. precision: "auto" or one of
    :mod:`sensorium.base.precision`. online_every: training seconds between online evaluations, or "10%" of the budget.
    checkpoint_every: training seconds.
    """

    seed: int = 0
    accumulate: int = 1
    devices: int = 1
    device: str = "auto"
    strategy: str = "auto"
    precision: str = "auto"
    online_every: float | str = 60.0
    checkpoint_every: float = 30.0
    progress: bool = True

    def resolved(self, batch_size: int) -> Options:
        """With this machine's device and precision; SensoriumError if options conflict."""
        device = _device(self.device, self.devices)
        precision = resolve_precision(self.precision, device)
        Share(batch_size, self.accumulate, 0, max(self.devices, rank_and_world()[1]))
        _check_every(self.online_every)
        return replace(self, device=device, precision=precision)


def check_batch(recipe: Recipe, accumulate: int = 1) -> None:
    """Raise SensoriumError if the method can't learn from so few samples at once."""
    least, batch = recipe.method.least_batch, recipe.batch_size
    if batch // max(1, accumulate) < least:
        parts = f" in {accumulate} micro-batches" if accumulate > 1 else ""
        raise SensoriumError(
            f"{recipe.name}: --batch-size {batch}{parts}: it learns to tell the samples of a batch apart and needs at "
            f"least {least} of them at once; use --batch-size {least * accumulate} or more."
        )


def _device(asked: str, count: int) -> str:
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    device = ("cuda" if cuda else "mps" if mps else "cpu") if asked == "auto" else asked
    if device not in ("cpu", "cuda", "mps"):
        raise SensoriumError(f"device {asked!r} is unknown: choose auto, cpu, cuda or mps.")
    if (device == "cuda" and not cuda) or (device == "mps" and not mps):
        raise SensoriumError(f"device {device!r} is not available here: use --device cpu, or see `sensorium doctor`.")
    most = torch.cuda.device_count() if device == "cuda" else 1 if device == "mps" else os.cpu_count() or 1
    if not 1 <= count <= most and rank_and_world()[1] == 1:
        raise SensoriumError(f"--devices {count}: this machine has {most} for {device}; use --devices {most}.")
    return device


def _check_every(every: float | str) -> None:
    if isinstance(every, str):
        number = every.removesuffix("%")
        if every == number or not number.replace(".", "", 1).isdigit() or not 0 < float(number) <= 100:
            raise SensoriumError(
                f"online_every {every!r} is neither seconds nor a fraction of the budget such as '10%'."
            )
    elif every < 0:
        raise SensoriumError(f"online_every is {every}: it must not be negative.")
