"""Completing pictures of which a part is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sensorium.abilities import Completer
from sensorium.base.reading import printable
from sensorium.base.whole import checked
from sensorium.data.images.cache import squares
from sensorium.data.images.gathered import pictures_at
from sensorium.errors import SensoriumError
from sensorium.runs.run import Run

Half = Literal["top", "bottom", "left", "right"]
MOST = 8  # pictures, one row of the grid each
GRAY = 128


def halves(run: Run, given: str | Path | Tensor, keep: Half) -> tuple[Tensor, Tensor]:
    """At most ``MOST`` pictures of ``given`` (a picture, a folder, a data set), or these pixels uint8 [B, 3, S, S], as the run's method
    takes them [B, *shape], and which of their values are known, the half ``keep``: bool of the same shape. Raises SensoriumError if there
    are none."""
    if keep not in get_args(Half):
        raise SensoriumError(f"--keep {keep}: choose {', '.join(get_args(Half))}.")
    method: Any = run.method
    if not isinstance(method, Completer):
        raise SensoriumError(f"--given: '{printable(str(run.folder))}' can't complete pictures; leave it out.")
    images = method.from_pixels(given if isinstance(given, Tensor) else _pictures(given, run))
    known = torch.zeros_like(images, dtype=torch.bool)
    height, width = (side // 2 for side in images.shape[-2:])
    match keep:
        case "top":
            known[..., :height, :] = True
        case "bottom":
            known[..., height:, :] = True
        case "left":
            known[..., :width] = True
        case "right":
            known[..., width:] = True
    return images, known


def completed(run: Run, given: str | Path | Tensor, n: int, *, keep: Half, seed: int, other: bool = False) -> Tensor:
    """A row a picture: the whole one, its known half beside gray, and ``n`` completions; uint8 [B (n + 2), 3, H, W]. ``other``: whether
    other settings of drawing were given, which is refused."""
    if other:
        raise SensoriumError(
            "--given completes pictures: leave --trace, --between, --label, --guidance, --steps, --sampler and --size out."
        )
    images, known = halves(run, given, keep)
    checked(n, "--n", least=1)
    method: Any = run.method
    drawn = method.complete(images.repeat_interleave(n, 0), known.repeat_interleave(n, 0), seed=seed).cpu()
    whole, rest = method.to_pixels(images), method.to_pixels(drawn).unflatten(0, (len(images), n))
    half = torch.where(known.expand_as(whole), whole, GRAY)
    return torch.cat([whole[:, None], half[:, None], rest], 1).flatten(0, 1)


def _pictures(given: str | Path, run: Run) -> Tensor:
    """uint8 [B, 3, S, S]."""
    on, found = run.situation, []
    for images in pictures_at(str(given), on.scale):
        for block, bad in squares(images, on.image_size):
            if bad and len(images) == 1:
                raise SensoriumError(f"{printable(str(images.names[0]))}: {bad[0][1].reason}")
            found += [torch.from_numpy(np.array(one)) for one in block[: MOST - len(found)]]
            if len(found) == MOST:
                return torch.stack(found)
    if not found:
        raise SensoriumError(f"there is no readable picture in '{printable(str(given))}'.")
    return torch.stack(found)
