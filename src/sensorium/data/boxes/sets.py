"""Sets of images with boxes and masks, map-style; see :mod:`sensorium.data.boxes.open` for what a sample is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sensorium.base.memory import affordable
from sensorium.base.words import counted
from sensorium.data.boxes.masks import Outline, drawn
from sensorium.data.images import decode
from sensorium.data.images.decode import BadImage
from sensorium.data.images.sets import Digest, EncodedImages, Source
from sensorium.data.scenes.scenes import Scenes


class StoredImages(EncodedImages):
    """Encoded images, of which some are shown as their pixels are stored, whatever their EXIF orientation says:
    ``unturned`` bool [N]."""

    def __init__(
        self, source: Source, names: Sequence[str], unturned: np.ndarray | None = None, labels: np.ndarray | None = None
    ) -> None:
        super().__init__(source, names, labels)
        self.unturned = np.zeros(len(names), bool) if unturned is None else unturned

    def picture(self, index: int, at_least: int | None = None) -> Image.Image:
        return decode.rgb(self._read(index), self.names[index], at_least, self.scale, upright=not self.unturned[index])

    def header(self, index: int) -> tuple[int, int, str]:
        width, height, mode, turn = decode.stored_header(self._read(index), self.names[index])
        turned = turn >= 5 and not self.unturned[index]
        return (height, width, mode) if turned else (width, height, mode)

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        super().sign(digest, indices)
        if self.unturned[indices].any():
            digest.update(b"unturned;" + np.packbits(self.unturned[indices]).tobytes())


@dataclass(frozen=True, eq=False)
class BoxSet:
    """Map-style images with boxes. ``rows`` int64 [N]: indices into ``images``; ``sizes`` int64 [N, 2]: heights and
    widths; ``boxes`` float32 [M, 4], ``labels`` int64, ``crowd`` bool and ``areas`` float32 [M] of all images,
    concatenated, those of image i at ``starts[i]:starts[i + 1]``; ``outlines`` [M] of their masks, or None if the
    files have none; ``classes`` by label, ``ids`` by image."""

    images: StoredImages
    rows: np.ndarray
    ids: Sequence[Any]
    classes: tuple[str, ...]
    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    outlines: Sequence[Outline | None] | None = None

    @property
    def names(self) -> list[str]:
        """The origin of each image, for display."""
        return [self.images.names[int(row)] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises :class:`BadImage` for an image that cannot be decoded."""
        index = range(len(self))[int(index)]
        found: Any = self.images[int(self.rows[index])]
        image = found["image"]
        height, width = (int(n) for n in self.sizes[index])
        if tuple(image.shape[1:]) != (height, width):
            there = f"{image.shape[2]} x {image.shape[1]}"
            name = self.images.names[int(self.rows[index])]
            raise BadImage(name, f"its header says {width} x {height} pixels, there are {there}")
        masks = {"masks": found["masks"]} if "masks" in found else {}  # scenes have them
        if not masks and self.masked:
            masks = {"masks": self.masks(index)}
        return {"image": image, **self.truth(index), **masks}

    @property
    def masked(self) -> bool:
        """Whether there are masks: of outlines in files, or of scenes."""
        return self.outlines is not None or isinstance(self.images, Scenes)

    def masks(self, index: int, size: tuple[int, int] | None = None, kept: np.ndarray | None = None) -> Any:
        """Masks of image ``index``, bool [N, h, w]: of a ``size`` (h, w) to which the image is resized, or its own; of
        the objects ``kept`` (bool [N]), or all. Raises SensoriumError if they don't fit in memory."""
        import torch

        rows = np.arange(self.starts[index], self.starts[index + 1])
        kept = np.ones(len(rows), bool) if kept is None else kept
        own = (int(self.sizes[index][0]), int(self.sizes[index][1]))
        height, width = size or own
        where = f"{self.names[index]}: {counted(int(kept.sum()), 'mask')} of {width} x {height} pixels"
        affordable(int(kept.sum()) * height * width, where, "choose a smaller --image-size.")
        if self.outlines is None:
            masks = self.images[int(self.rows[index])]["masks"][torch.from_numpy(kept)]
            if (height, width) == own:
                return masks
            return torch.nn.functional.interpolate(masks[None].float(), (height, width), mode="nearest-exact")[0] > 0
        rows = rows[kept]
        return torch.from_numpy(drawn([self.outlines[i] for i in rows], self.boxes[rows], own, (height, width)))

    def truth(self, index: int) -> dict[str, Any]:
        """A sample without its image and masks; nothing is decoded."""
        import torch  # here, so that inspecting a data set does not import torch

        index = range(len(self))[int(index)]
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        columns = {"boxes": self.boxes, "labels": self.labels, "crowd": self.crowd, "area": self.areas}
        return {k: torch.from_numpy(v[rows].copy()) for k, v in columns.items()} | {"id": self.ids[index]}

    def subset(self, indices: np.ndarray) -> BoxSet:
        """The images at ``indices`` (int [n]), in that order."""
        indices = np.asarray(indices, np.int64)
        counts = np.diff(self.starts)[indices]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        each = np.repeat(self.starts[indices] - starts[:-1], counts) + np.arange(starts[-1])
        return BoxSet(
            self.images, self.rows[indices], [self.ids[i] for i in indices], self.classes, self.sizes[indices], starts,
            self.boxes[each], self.labels[each], self.crowd[each], self.areas[each],
            None if self.outlines is None else [self.outlines[i] for i in each],
        )  # fmt: skip


class Moved:
    """Some of a source's images, in a given order."""

    def __init__(self, source: Source, at: list[int]):
        self.source, self.at = source, np.array(at, np.int64)

    def read(self, index: int) -> bytes | Path:
        return self.source.read(int(self.at[index]))

    def sign(self, digest: Any, indices: np.ndarray) -> None:
        self.source.sign(digest, self.at[indices])
