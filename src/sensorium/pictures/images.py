"""Images of a run to look at, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sensorium.abilities import AttentionMaps, MapEncoder, Reconstructor
from sensorium.base.files import write_file
from sensorium.errors import SensoriumError
from sensorium.judge.score import Trained

SHOWN = 8
LEAST = 96


class Look(NamedTuple):
    """A visualization: ``panels`` [B, 3, H, W'] in 0..1, one per image."""

    title: str
    caption: str
    file: str
    panels: Tensor
    halves: bool  # a panel is two images side by side


def looks(run: Trained, raw: Tensor) -> list[Look]:
    """The visualizations of the run's method on images uint8 [B, 3, S, S]: reconstructions, attention maps, feature
    maps."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (run.situation.mean, run.situation.std))
    images = (raw.float() / 255 - mean) / std
    method: Any = run.method
    found = []
    with torch.no_grad():
        if isinstance(method, Reconstructor):
            shown = method.reconstruct(images) * std + mean
            caption = f"From left to right: {', '.join(method.panels)}."
            found.append(Look("Reconstruction", caption, "reconstruction.png", shown, False))
        attention = method.attention(images) if isinstance(method, AttentionMaps) else None
        if attention is not None:
            panels = overlay(raw, attention.mean(1))
            caption = "Attention from the class token to the patches, mean over heads, last layer."
            found.append(Look("Where it looks", caption, "attention.png", panels, True))
        elif isinstance(run.backbone, MapEncoder):
            panels = overlay(raw, run.backbone.maps(images)[-1].square().mean(1).sqrt())
            caption = "Root mean square over the channels of the last feature map."
            found.append(Look("Where features are strong", caption, "features.png", panels, True))
    return found


def run_pictures(run: Trained, ready: Any) -> list[dict[str, str]]:
    """Write the visualizations to ``RUN/pictures``; return title, caption and path relative to the runs' common
    folder."""
    pixels = ready.test if ready.test is not None else ready.train
    chosen = np.linspace(0, len(pixels) - 1, min(SHOWN, len(pixels))).astype(int)
    folder = run.folder / "pictures"
    made = []
    for look in looks(run, torch.from_numpy(np.array(pixels.images[chosen]))):
        rows = [torch.cat(list(half), 2) for half in look.panels.chunk(2, 3)]
        save(torch.cat(rows, 1) if look.halves else stack(look.panels), folder / look.file)
        file = str((folder / look.file).relative_to(run.folder.parent))
        made.append({"title": look.title, "caption": look.caption, "file": file})
    return made


def overlay(raw: Tensor, heat: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] and heat [B, h, w] -> [B, 3, H, 2 W] in 0..1: each image beside its heat."""
    heat = F.interpolate(heat[:, None].float(), raw.shape[-2:], mode="bicubic", antialias=False).clamp_min(0)
    low, high = heat.amin((2, 3), keepdim=True), heat.amax((2, 3), keepdim=True)
    heat = (heat - low) / (high - low).clamp_min(1e-8)
    picture = raw.float() / 255
    warm = torch.cat([heat, heat.pow(2) * 0.8, (0.35 - heat).clamp_min(0)], 1)
    mixed = 0.35 * picture.mean(1, keepdim=True) + 0.65 * warm
    return torch.cat([picture, mixed], 3)


def stack(pictures: Tensor) -> Tensor:
    """[B, 3, H, W] -> [3, B/2 * H, 2 * W]: two columns."""
    pictures = pictures[: len(pictures) // 2 * 2] if len(pictures) > 1 else pictures
    columns = 2 if len(pictures) > 1 else 1
    rows = [torch.cat(list(pictures[i : i + columns]), 2) for i in range(0, len(pictures), columns)]
    return torch.cat(rows, 1)


def save(picture: Tensor, path: Path) -> None:
    """[3, H, W] in 0..1 -> PNG; small images are enlarged."""
    save_picture(enlarged(picture), path)


def save_picture(picture: Image.Image, path: Path) -> None:
    """An image as a file in the format of its name, PNG if that has none."""
    named = Image.registered_extensions().get(path.suffix.lower())
    if path.suffix and (named is None or named not in Image.SAVE):
        raise SensoriumError(f"{path}: '{path.suffix}' is no format of pictures that can be written; use .png.")
    write_file(path, lambda partial: picture.save(partial, named or "PNG"))


def enlarged(picture: Tensor, least: int = 3 * LEAST, most: int = 4) -> Image.Image:
    """[3, H, W] in 0..1 -> an image enlarged by an integer factor up to ``most``, to a height of about ``least``."""
    array = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(array)
    times = min(max(1, round(least / max(image.height, 1))), most)
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
