"""Images with boxes, decoded once: whole images in squares of a memory map, their boxes as rows of one shape.

The longer side is resized to S (:mod:`sensorium.data.boxes.seen`) and placed in the top left corner of the square. The
rest, right or below, is a reflection of the image, so that the statistics of all pixels are those of the images; views
crop it. Images that are judged are decoded in full, as they are for a detector in use; training images beside them may be
decoded at a reduced scale, in a quarter of the time.
Caching is that of :mod:`sensorium.data.images.cache`.
Shapes: N images, S side of the square, M maximum boxes per image.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sensorium.data.boxes.seen import inner_size, resized
from sensorium.data.boxes.sets import BoxSet, Moved, StoredImages
from sensorium.data.images.cache import Pixels, Progress, cache
from sensorium.data.images.decode import BadImage
from sensorium.data.images.sets import Digest
from sensorium.data.rows import Field, Rows, Taken, sampled_digest, stacked
from sensorium.data.scenes.scenes import Scenes

REDUCED = (1, 2, 4, 8)  # reduced scales of a JPEG decoder


class Letterboxed(StoredImages):
    """The images of ``boxed`` as squares of ``size``; the label of an image is its index. exact: decoded in full."""

    def __init__(self, boxed: BoxSet, size: int, exact: bool = True) -> None:
        source = Moved(boxed.images.source, np.asarray(boxed.rows).tolist())
        super().__init__(source, boxed.names, boxed.images.unturned[boxed.rows], np.arange(len(boxed)))
        self.scale = boxed.images.scale
        self.sizes, self.size, self.exact = boxed.sizes, size, exact

    def picture(self, index: int, at_least: int | None = None) -> Image.Image:
        """Image ``index`` in its square. Raises BadImage if it is damaged or its size differs from its
        header's."""
        height, width = (int(n) for n in self.sizes[index])
        # Reduced decoding keeps at least twice the size, so that the antialiased resize determines the result.
        shorter = max(1, 2 * self.size * min(height, width) // max(height, width))
        image = super().picture(index, None if self.exact else shorter)
        if image.size not in [(-(-width // k), -(-height // k)) for k in REDUCED]:
            found = f"{image.width} x {image.height}"
            raise BadImage(self.names[index], f"its header says {width} x {height} pixels, there are {found}")
        return laid(image, inner_size(height, width, self.size), self.size)

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        digest.update(b"letterboxed exactly;" if self.exact else b"letterboxed;")
        super().sign(digest, indices)


def laid(image: Image.Image, inner: tuple[int, int], size: int) -> Image.Image:
    """``image`` resized to ``inner`` (height, width) in the top left corner of a square, the rest its mirror image."""
    height, width = inner
    image = resized(image, inner)
    if (height, width) == (size, size):
        return image
    return Image.fromarray(np.pad(np.asarray(image), ((0, size - height), (0, size - width), (0, 0)), "symmetric"))


@dataclass(frozen=True, eq=False)
class Boxed(Rows):
    """Images with boxes for training and evaluation.

    ``truth``: the images that could be decoded, with their boxes in their own pixels; ``pixels``: their squares;
    ``inner`` int64 [N, 2]: height and width of the image in its square.
    """

    truth: BoxSet
    pixels: Pixels
    inner: np.ndarray
    unit: str = "images"

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.pixels.mean

    @property
    def std(self) -> tuple[float, float, float]:
        return self.pixels.std

    @property
    def classes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.truth.classes

    @property
    def fields(self) -> dict[str, Field]:
        masks = {"masks": Field("bool", (None, None, None))} if self.truth.masked else {}
        boxes = {"boxes": Field("float32", (None, 4)), "labels": Field("int64", (None,))}
        return {"image": Field("uint8", (3, None, None)), **boxes, **masks}

    @cached_property
    def digest(self) -> str:
        return sampled_digest(self.pixels, (self.truth.starts, self.truth.boxes, self.truth.labels, self.truth.crowd))

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, index: np.ndarray, names: Collection[str] | None = None) -> Taken:
        """A training sample: ``image`` uint8 [3, h, w], ``boxes`` [N, 4] in its pixels, ``labels`` [N], and ``masks``
        bool [N, h, w] if the data have any. Without crowd boxes."""
        samples = [self._sample(int(i), names) for i in index]
        return {name: stacked([sample[name] for sample in samples]) for name in samples[0]}

    def _sample(self, index: int, names: Collection[str] | None) -> dict[str, Tensor]:
        wanted = self.fields if names is None else names
        height, width = (int(n) for n in self.inner[index])
        rows = slice(int(self.truth.starts[index]), int(self.truth.starts[index + 1]))
        kept = ~self.truth.crowd[rows]
        sample = {}
        if "image" in wanted:
            sample["image"] = torch.from_numpy(np.array(self.pixels.images[index, :, :height, :width]))
        if "boxes" in wanted:
            sample["boxes"] = torch.from_numpy(self.boxes_in(index)[kept])
        if "labels" in wanted:
            sample["labels"] = torch.from_numpy(self.truth.labels[rows][kept])
        if "masks" in wanted and self.truth.masked:
            sample["masks"] = self.truth.masks(index, (height, width), kept)
        return sample

    def boxes_in(self, index: int) -> np.ndarray:
        """All boxes of image ``index`` in the pixels of its square: float32 [N, 4]."""
        rows = slice(int(self.truth.starts[index]), int(self.truth.starts[index + 1]))
        height, width = self.inner[index]
        factors = (self.inner[index] / self.truth.sizes[index])[[1, 0, 1, 0]]
        return np.minimum(self.truth.boxes[rows] * factors, [width, height, width, height]).astype(np.float32)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An evaluation sample: the cached image, and the truth in pixels of the ``original`` (height, width)."""
        index = range(len(self))[int(index)]
        height, width = (int(n) for n in self.inner[index])
        image = torch.from_numpy(np.array(self.pixels.images[index, :, :height, :width]))
        return {"image": image, **self.truth.truth(index), "original": torch.from_numpy(self.truth.sizes[index].copy())}

    def some(self, indices: np.ndarray) -> Boxed:
        """The images at ``indices`` (int [n]), in that order."""
        indices = np.asarray(indices, np.int64)
        return Boxed(self.truth.subset(indices), self.pixels.subset(indices), self.inner[indices])


def cache_boxes(
    boxed: BoxSet, size: int, folder: Path, progress: Progress | None = None, *, exact: bool = True
) -> Boxed:
    """Decode the images of ``boxed`` to squares of ``size`` pixels in ``folder``, or find them there. exact: never at a
    reduced scale.

    Images that cannot be decoded are dropped with their boxes and listed in ``pixels.skipped``. Raises SensoriumError
    if none can be, or the disk is full.
    """
    base: Any = boxed.images
    if isinstance(base, Scenes):  # rendered at the requested size
        pixels, truth = cache(base, size, folder, progress=progress), boxed
    else:
        pixels = cache(Letterboxed(boxed, size, exact), size, folder, progress=progress)
        assert pixels.labels is not None
        truth = boxed.subset(pixels.labels)
    sizes = [inner_size(int(height), int(width), size) for height, width in truth.sizes]
    inner = np.array(sizes, np.int64).reshape(-1, 2)
    return Boxed(truth, pixels, inner)
