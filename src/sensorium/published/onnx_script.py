"""A detector exported to ONNX, without Sensorium: an export writes this file beside its .onnx.

    python model.py photo.jpg photos/*.png          prints one line of JSON for each object

    from model import Detector                      or in code
    found = Detector().find("photo.jpg")            [{"name", "score", "box": (x1, y1, x2, y2 in the picture's pixels)}, ...]

It needs onnxruntime, Pillow and NumPy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Detector:
    """The detector in a .onnx file, by default that beside this one."""

    def __init__(self, path: str | Path | None = None, providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> None:
        file = Path(path or Path(__file__).with_suffix(".onnx"))
        self.session = onnxruntime.InferenceSession(file, providers=list(providers))
        about = self.session.get_modelmeta().custom_metadata_map
        self.classes: list[str] = json.loads(about["classes"])
        self.sides = json.loads(about["shorter"]), json.loads(about["longer"])
        self.square = json.loads(about["square"])
        self.mean, self.std = (np.array(json.loads(about[name]), np.float32)[:, None, None] for name in ("mean", "std"))

    def prepare(self, image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        """An RGB picture of any size -> [3, S, S], and its height and width there."""
        factor = min(self.sides[0] / min(image.size), self.sides[1] / max(image.size))
        width, height = (max(1, int(side * factor)) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        seen = np.zeros((3, self.square, self.square), np.float32)
        pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32)
        seen[:, :height, :width] = (pixels / 255 - self.mean) / self.std
        return seen, (height, width)

    def find(self, picture: str | Path | Image.Image, threshold: float = 0.3) -> list[dict[str, Any]]:
        """The objects in a picture, best first."""
        image = picture if isinstance(picture, Image.Image) else Image.open(picture)
        image = ImageOps.exif_transpose(image).convert("RGB")
        seen, (height, width) = self.prepare(image)
        given = {"images": seen[None], "sizes": np.array([[height, width]], np.int64)}
        out: list[Any] = list(self.session.run(["boxes", "scores", "labels"], given))
        boxes, scores, labels = (one[0] for one in out)
        back = np.array([image.width / width, image.height / height] * 2, np.float32)
        edges = np.clip(boxes * back, 0, np.array(image.size * 2, np.float32))
        return [
            {
                "name": self.classes[label] if label < len(self.classes) else f"class {label}",
                "score": float(score),
                "box": tuple(box.tolist()),
            }
            for box, score, label in zip(edges, scores, labels, strict=True)
            if score > threshold
        ]


if __name__ == "__main__":
    detector = Detector()
    for name in sys.argv[1:]:
        for found in detector.find(name):
            print(json.dumps({"file": name, **found}))
