"""Small data sets with boxes, and what tests ask of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sensorium.data.boxes.open import OpenedBoxes

BOX = [25.6, 19.2, 38.4, 28.8]  # of "0.5 0.5 0.2 0.2" in 64 x 48 pixels


def pic(path: Path, size: tuple[int, int] = (64, 48), seed: int = 0, turn: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    exif = Image.Exif()
    exif[0x0112] = turn
    more: dict[str, Any] = {} if turn == 1 else {"exif": exif.tobytes()}
    image.save(path, **more)


def yolo(root: Path, text: str | bytes, yaml: str = "names: [cat, dog]\n", count: int = 5) -> Path:
    for i in range(count):
        pic(root / "images" / f"{i:03}.jpg", seed=i)
        (root / "labels").mkdir(parents=True, exist_ok=True)
        (root / "labels" / f"{i:03}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    if yaml:
        (root / "data.yaml").write_text(yaml)
    return root


def coco(
    root: Path,
    name: Callable[[int], str] = lambda i: f"{i:03}.jpg",
    change: Callable[[dict], Any] = lambda stored: None,
    *,
    images: str = "images",
    file: str = "annotations.json",
    size: tuple[int, int] = (64, 48),
    turn: int = 1,
) -> Path:
    for i in range(1, 6):
        pic(root / images / f"{i:03}.jpg", size, i, turn)
    stored = {
        "images": [{"id": i, "file_name": name(i), "width": 64, "height": 48} for i in range(1, 6)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [5, 6, 20, 15], "area": 300, "iscrowd": 0}
            for i in range(1, 6)
        ],
    }
    change(stored)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(stored))
    return root


def totals(opened: OpenedBoxes) -> tuple[int, int]:
    """Pictures and boxes of both sets."""
    parts = [part for part in (opened.train, opened.test) if part is not None]
    return sum(map(len, parts)), sum(len(part.boxes) for part in parts)


def close(boxes: np.ndarray, wanted: list[float]) -> bool:
    return boxes.shape == (1, 4) and bool(np.abs(boxes[0] - wanted).max() < 1e-4)


def told(opened: OpenedBoxes, *words: str) -> bool:
    return any(all(word in note for word in words) for note in opened.notes)
