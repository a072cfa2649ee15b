"""Good pictures, and what makes each of them doubtful."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def drawn(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """A good picture: shapes of many colors with edges, before a slope."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 1, width)[None, :, None] * rng.integers(40, 200, 3) + rng.integers(0, 50, 3)
    image = Image.fromarray(np.broadcast_to(slope, (height, width, 3)).clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for k in range(14):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = 4 + rng.uniform(0.1, 0.3, 2) * (width, height)
        color = (255, 240, 230) if k == 0 else (5, 0, 10) if k == 1 else tuple(map(int, rng.integers(0, 256, 3)))
        (pen.ellipse if k % 2 else pen.rectangle)((x, y, x + w, y + h), fill=color)
    noisy = np.asarray(image).astype(np.int16) + rng.integers(-6, 7, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def strokes(seed: int, side: int = 28) -> Image.Image:
    """A figure on black, of little information, as in sets of digits."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side))
    ImageDraw.Draw(image).line(
        [tuple(map(int, p)) for p in rng.integers(4, side - 4, (3, 2))], fill=(255, 255, 255), width=2
    )
    return image


def gray_levels(table: Callable[[int], float]) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.point([round(table(v)) for v in range(256)] * 3)


FAULTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(9)),
    "dark": gray_levels(lambda v: 0.15 * v),
    "bright": gray_levels(lambda v: 255 - 0.04 * (255 - v)),
    "little_information": lambda image: image.quantize(2, dither=Image.Dither.NONE).convert("RGB"),
    "odd_shape": lambda image: image.resize((220, 60)),
    "odd_size": lambda image: image.resize((480, 360)),
}


def folder_of(root: Path, images: list[Image.Image]) -> Path:
    for k, image in enumerate(images):
        path = root / "ab"[k % 2] / f"{k:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return root
