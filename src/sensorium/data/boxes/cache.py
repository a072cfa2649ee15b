"""Images with boxes, decoded once: whole pictures in squares of a memory map, their boxes as rows of one shape.

The longer side is resized to S (antialiased bilinear) and laid into the top left corner of the square. What is left of
the square, right or below, mirrors the picture, so that the statistics of all pixels are those of the pictures; views
cut it away. Caching is that of :mod:`sensorium.data.images.cache`.
Shapes: N images, S side of the square, M the most boxes of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sensorium.data.boxes.open import BoxSet, _Moved
from sensorium.data.images.cache import Pixels, Progress, cache
from sensorium.data.images.decode import BadImage
from sensorium.data.images.sets import Digest, EncodedImages
from sensorium.data.scenes.scenes import Scenes

REDUCED = (1, 2, 4, 8)  # what a JPEG may be decoded at


class Letterboxed(EncodedImages):
    """The images of ``boxed`` as squares of ``size``; the label of an image is its index."""

    def __init__(self, boxed: BoxSet, size: int) -> None:
        source = _Moved(boxed.images.source, np.asarray(boxed.rows).tolist())
        super().__init__(source, boxed.names, np.arange(len(boxed)))
        self.sizes, self.size = boxed.sizes, size

    def picture(self, index: int, at_least: int | None = None) -> Image.Image:
        """Image ``index`` in its square. Raises BadImage where it is damaged or of another size than its header
        says."""
        height, width = (int(n) for n in self.sizes[index])
        # Twice the size is kept in reduced decoding, so that the antialiased resize still decides what is seen.
        shorter = max(1, 2 * self.size * min(height, width) // max(height, width))
        image = super().picture(index, shorter)
        if image.size not in [(-(-width // k), -(-height // k)) for k in REDUCED]:
            found = f"{image.width} x {image.height}"
            raise BadImage(self.names[index], f"its header says {width} x {height} pixels, there are {found}")
        return laid(image, inner_size(height, width, self.size), self.size)

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        digest.update(b"letterboxed;")
        super().sign(digest, indices)


def inner_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) of a picture whose longer side is ``size``."""
    factor = size / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def laid(image: Image.Image, inner: tuple[int, int], size: int) -> Image.Image:
    """``image`` resized to ``inner`` (height, width) in the top left corner of a square, the rest its mirror image."""
    height, width = inner
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if (height, width) == (size, size):
        return image
    return Image.fromarray(np.pad(np.asarray(image), ((0, size - height), (0, size - width), (0, 0)), "symmetric"))


@dataclass(frozen=True, eq=False)
class Boxed:
    """Images with boxes as training and judging read them.

    ``truth``: the images that could be decoded, with their boxes in their own pixels; ``pixels``: their squares;
    ``inner`` int64 [N, 2]: height and width of what is picture in a square; ``labels`` float32 [N, 1 + M, 5], in
    pixels of the square: the first row (0, 0, width, height, -1) is the picture itself, the others are boxes by their
    edges and class, class -1 where there are fewer than M. Crowd is left out.
    """

    truth: BoxSet
    pixels: Pixels
    inner: np.ndarray
    labels: np.ndarray

    @property
    def images(self) -> np.ndarray:
        """uint8 [N, 3, S, S]."""
        return self.pixels.images

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.pixels.mean

    @property
    def std(self) -> tuple[float, float, float]:
        return self.pixels.std

    @property
    def classes(self) -> tuple[str, ...]:
        return self.truth.classes

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A sample to judge by: the picture as cached, the truth in the pixels of ``original`` (height, width)."""
        index = range(len(self))[int(index)]
        height, width = (int(n) for n in self.inner[index])
        image = torch.from_numpy(np.array(self.images[index, :, :height, :width]))
        return {"image": image, **self.truth.truth(index), "original": torch.from_numpy(self.truth.sizes[index].copy())}

    def some(self, indices: np.ndarray) -> Boxed:
        """The images at ``indices`` (int [n]), in that order."""
        indices = np.asarray(indices, np.int64)
        return Boxed(self.truth.subset(indices), self.pixels.subset(indices), self.inner[indices], self.labels[indices])


def cache_boxes(boxed: BoxSet, size: int, folder: Path, progress: Progress | None = None) -> Boxed:
    """Decode the images of ``boxed`` to squares of ``size`` pixels in ``folder``, or find them there.

    Images that cannot be decoded are dropped with their boxes and listed in ``pixels.skipped``. Raises SensoriumError
    where none can be, or the disk is full.
    """
    base: Any = boxed.images
    if isinstance(base, Scenes):  # drawn at the size that is wanted
        pixels, truth = cache(base, size, folder, progress=progress), boxed
    else:
        pixels = cache(Letterboxed(boxed, size), size, folder, progress=progress)
        assert pixels.labels is not None
        truth = boxed.subset(pixels.labels)
    sizes = [inner_size(int(height), int(width), size) for height, width in truth.sizes]
    inner = np.array(sizes, np.int64).reshape(-1, 2)
    return Boxed(truth, pixels, inner, rows_of(truth, inner))


def rows_of(truth: BoxSet, inner: np.ndarray) -> np.ndarray:
    """The boxes of ``truth`` in pictures of ``inner`` [N, 2] pixels: float32 [N, 1 + M, 5], as :class:`Boxed` says."""
    count, learnt = len(truth), ~truth.crowd
    image = np.repeat(np.arange(count), np.diff(truth.starts))[learnt]
    counts = np.bincount(image, minlength=count)
    rows = np.zeros((count, 1 + int(counts.max(initial=0)), 5), np.float32)
    rows[..., 4] = -1
    rows[:, 0, 2:4] = inner[:, ::-1]
    place = 1 + np.arange(len(image)) - (np.cumsum(counts) - counts)[image]
    factors = (inner / truth.sizes)[:, [1, 0, 1, 0]][image]
    rows[image, place, :4] = np.minimum(truth.boxes[learnt] * factors, inner[:, [1, 0, 1, 0]][image])
    rows[image, place, 4] = truth.labels[learnt]
    return rows


def sample_of(image: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """A square [3, S, S] and its rows [1 + M, 5] -> the picture in it and its boxes, as a sample of ``box_views``."""
    width, height = (int(n) for n in rows[0, 2:4])
    boxes = rows[1:][rows[1:, 4] >= 0]
    crowd = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    return {"image": image[:, :height, :width], "boxes": boxes[:, :4], "labels": boxes[:, 4].long(), "crowd": crowd}
