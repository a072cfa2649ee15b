"""Pictures and folders of them, for the tests of faults."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture_at(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((16, 12), 2).save(path)


def fill(root: Path, counts: dict[str, int]) -> Path:
    """``counts`` pictures in each folder below ``root``, all different."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture_at(root / name / f"{i}.png", 1000 * number + i)
    return root


def encoded(image: Image.Image, kind: str, **how) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()
