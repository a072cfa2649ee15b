"""From pixels to features: one pass of a frozen encoder over a data set.

The encoder runs in evaluation mode, without gradients and augmentation. Afterward each module's mode is restored, since
a method may hold a network in training mode beside one that never is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.abilities import Encoder
from sensorium.data.images.cache import Pixels
from sensorium.errors import SensoriumError

Precision = Literal["float32", "bf16"]
OnProgress = Callable[[int, int], None]


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 ``(x / 255 - mean) / std`` on the same device."""
    shift = torch.tensor([m * 255 for m in mean], device=images.device).view(3, 1, 1)
    scale = torch.tensor([s * 255 for s in std], device=images.device).view(3, 1, 1)
    return (images.float() - shift) / scale


def labels_of(pixels: Pixels) -> np.ndarray:
    """Labels int64 [N]; all -1 if the data set has none."""
    if pixels.labels is None:
        return np.full(len(pixels.images), -1, dtype=np.int64)
    return np.asarray(pixels.labels, dtype=np.int64)


def autocast(device: torch.device | str, precision: Precision) -> Any:
    """The context in which a network runs at ``precision``."""
    if precision not in ("float32", "bf16"):
        raise ValueError(f"precision is {precision!r}; it must be 'float32' or 'bf16'")
    on_bf16 = precision == "bf16"
    return torch.autocast(torch.device(device).type, torch.bfloat16) if on_bf16 else nullcontext()


@contextmanager
def judged(encoder: object, device: torch.device | str) -> Iterator[None]:
    """Evaluation mode on ``device`` without gradients; afterward modes, device and random state are restored."""
    device = torch.device(device)
    module = encoder if isinstance(encoder, nn.Module) else nn.Module()
    modes = {part: part.training for part in module.modules()}
    home = next((p.device for p in module.parameters()), device)
    # no_grad, not inference_mode: tensors that a network caches (positions, say) must stay usable for training
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        try:
            module.to(device).eval()
            yield
        finally:
            module.to(home)
            for part, mode in modes.items():
                part.training = mode


def encode(
    encoder: Encoder,
    pixels: Pixels,
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    precision: Precision = "float32",
    size: int | None = None,
    indices: np.ndarray | None = None,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """Features [N, D], float32, on the CPU, in the order of ``pixels`` (or of ``indices`` into it).

    ``batch_size``: 256 images, on a CPU 64, because larger activations (over 32 MiB) are reallocated for each batch.
    ``size``: the images are resized to it (square, antialiased). ``on_progress`` is called with (done, total) images
    after each batch. Raises ``SensoriumError`` that names the first image whose features are not finite.
    """
    chosen = np.arange(len(pixels.images)) if indices is None else np.asarray(indices)
    total, out = len(chosen), torch.empty(0, encoder.dim)
    batch_size = batch_size or (64 if torch.device(device).type == "cpu" else 256)
    with judged(encoder, device), autocast(device, precision):
        for start in range(0, total, batch_size):
            rows = chosen[start : start + batch_size]
            images = normalised(torch.from_numpy(np.array(pixels.images[rows])).to(device), pixels.mean, pixels.std)
            if size is not None and images.shape[-1] != size:
                images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
            found = encoder.features(images).float()
            if found.ndim != 2:
                raise ValueError(
                    f"{type(encoder).__name__}.features gave shape {tuple(found.shape)}; it must be [B, D]"
                )
            _require_finite(found, rows)
            if start == 0:
                out = torch.empty(total, found.shape[1])
            out[start : start + len(rows)] = found.cpu()
            if on_progress is not None:
                on_progress(start + len(rows), total)
    return out


def _require_finite(found: Tensor, rows: np.ndarray) -> None:
    bad = ~torch.isfinite(found).all(dim=1)
    if bad.any():
        first = int(rows[int(bad.nonzero()[0, 0])])
        raise SensoriumError(
            f"The features of image {first} are not finite: the weights have diverged; "
            "train again with a lower learning rate, or evaluate in float32 if this was bf16."
        )
