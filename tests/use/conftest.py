"""One small run of each kind, for the commands that use runs."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sensorium.runs.train import train

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220)}


def field(color: str, seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A noisy picture of one color; ``size`` is (width, height)."""
    noise = np.random.default_rng(seed).normal(0, 12, (*size[::-1], 3))
    return Image.fromarray((np.array(COLORS[color]) + noise).clip(0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos/`` (12 pictures in three classes, and a broken one) and a run of each kind in ``runs/``."""
    folder = tmp_path_factory.mktemp("kinds")
    for i in range(12):
        color = [*COLORS][i % 3]
        (folder / "photos" / color).mkdir(parents=True, exist_ok=True)
        (folder / "photos" / color / f"{i}.png").write_bytes(png(field(color, i, (20, 16))))
    (folder / "photos" / "red" / "torn.png").write_bytes(b"no picture")
    _write_pairs(folder / "pairs.tar")
    _write_boxes(folder / "boxes")
    (folder / "book.txt").write_text("The cat sat on the mat, and the dog sat. " * 60)
    rng = np.random.default_rng(0)
    label = np.repeat(rng.integers(0, 2, 8), 100)
    signal = (rng.normal(size=(800, 2)) + 3 * label[:, None]).astype(np.float32)
    np.savez(folder / "steps.npz", signal=signal, label=label, offsets=[0, 400, 800], sample_rate_hz=50.0,
             class_names=np.array(["rest", "walk"]))  # fmt: skip
    pictures: dict[str, Any] = {"image_size": 16, "batch_size": 4}
    small = {"simclr": {"backbone": "resnet-micro", **pictures}, "mae": {"backbone": "vit-micro", **pictures},
             "supervised": {"backbone": "resnet-micro", **pictures},
             "rectified_flow": pictures,
             "clip": {"backbone": "resnet-micro", "text_width": 32, "text_depth": 1, "embed_dim": 16, **pictures},
             "fcos": {"image_size": 64, "batch_size": 2, "width": 16, "convs": 1},
             "causal_lm": {"width": 16, "depth": 1, "heads": 2, "length": 16, "batch_size": 8},
             "oadtr": {"width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "length": 6, "future": 2, "batch_size": 8}}  # fmt: skip
    data = {"clip": "pairs.tar", "fcos": "boxes", "causal_lm": "book.txt", "oadtr": "steps.npz"}
    for name, settings in small.items():
        where = str(folder / data.get(name, "photos"))
        train(name, where, budget="2steps", out=folder / "runs" / name, progress=False, **settings)
    return folder


def _write_pairs(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for i in range(12):
            color = [*COLORS][i % 3]
            for name, content in (
                (f"{i:02d}.png", png(field(color, i))),
                (f"{i:02d}.txt", f"a {color} field".encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def _write_boxes(folder: Path) -> None:
    folder.mkdir()
    stored: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    for i in range(12):
        image = np.zeros((64, 64, 3), np.uint8)
        image[8 : 8 + 20, 3 * i : 3 * i + 24] = 230
        Image.fromarray(image).save(folder / f"{i}.png")
        stored["images"].append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
        stored["annotations"].append(
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [3 * i, 8, 24, 20], "iscrowd": 0}
        )
    (folder / "instances.json").write_text(json.dumps(stored))
