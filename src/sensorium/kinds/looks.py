"""What a person would look at: a run's pictures as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sensorium.data.draw import Draw
from sensorium.kinds import Trained
from sensorium.kinds.images import Prepared
from sensorium.protocols import AttentionMaps, MapEncoder, Pictures

SHOWN = 8
LEAST = 96


def run_pictures(run: Trained, ready: Prepared) -> list[dict[str, str]]:
    """Write what the method offers to ``RUN/pictures``; give title, caption and path relative to the runs' common folder."""
    pixels = ready.test if ready.test is not None else ready.train
    chosen = np.linspace(0, len(pixels) - 1, min(SHOWN, len(pixels))).astype(int)
    raw = torch.from_numpy(np.array(pixels.images[chosen]))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (run.situation.mean, run.situation.std))
    images = (raw.float() / 255 - mean) / std
    method: Any = run.method
    made = []
    folder = run.folder / "pictures"
    with torch.no_grad():
        if isinstance(method, Pictures):
            batch: dict[str, Any] = {"image": images}
            if hasattr(method, "mask_ratio"):
                patches = (ready.size // method.backbone.patch_size) ** 2  # type: ignore[union-attr]
                batch["noise"] = Draw.seeded(0, 0, len(images)).rand(patches)
            shown = method.pictures(batch) * std + mean
            made.append(
                (
                    "Reconstruction",
                    "Each row: the picture, what the network saw, what it painted.",
                    stack(shown),
                    folder / "reconstruction.png",
                )
            )
        if isinstance(method, AttentionMaps):
            heat = method.attention(images).mean(1)
            made.append(
                (
                    "Where it looks",
                    "Attention from the class token to the patches, mean over heads, last layer.",
                    overlay(raw, heat),
                    folder / "attention.png",
                )
            )
        elif isinstance(run.backbone, MapEncoder):
            heat = run.backbone.maps(images)[-1].square().mean(1).sqrt()
            made.append(
                (
                    "Where features are strong",
                    "Root mean square over the channels of the last feature map.",
                    overlay(raw, heat),
                    folder / "features.png",
                )
            )
    folder.mkdir(exist_ok=True)
    for *_, picture, path in made:
        save(picture, path)
    return [
        {"title": title, "caption": caption, "file": str(path.relative_to(run.folder.parent))}
        for title, caption, _, path in made
    ]


def overlay(raw: Tensor, heat: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] and heat [B, h, w] -> [3, 2 rows of pictures] in 0..1: the pictures above their heat."""
    heat = F.interpolate(heat[:, None].float(), raw.shape[-2:], mode="bicubic", antialias=False).clamp_min(0)
    low, high = heat.amin((2, 3), keepdim=True), heat.amax((2, 3), keepdim=True)
    heat = (heat - low) / (high - low).clamp_min(1e-8)
    picture = raw.float() / 255
    warm = torch.cat([heat, heat.pow(2) * 0.8, (0.35 - heat).clamp_min(0)], 1)
    mixed = 0.35 * picture.mean(1, keepdim=True) + 0.65 * warm
    return torch.cat([torch.cat(list(picture), 2), torch.cat(list(mixed), 2)], 1)


def stack(pictures: Tensor) -> Tensor:
    """[B, 3, H, W] -> [3, B/2 * H, 2 * W]: two columns."""
    pictures = pictures[: len(pictures) // 2 * 2] if len(pictures) > 1 else pictures
    columns = 2 if len(pictures) > 1 else 1
    rows = [torch.cat(list(pictures[i : i + columns]), 2) for i in range(0, len(pictures), columns)]
    return torch.cat(rows, 1)


def save(picture: Tensor, path: Path) -> None:
    """[3, H, W] in 0..1 -> PNG; small pixels are enlarged so that a person sees them."""
    array = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    times = max(1, round(LEAST * 3 / max(image.height, 1)))
    image.resize((image.width * min(times, 4), image.height * min(times, 4)), Image.Resampling.NEAREST).save(path)
