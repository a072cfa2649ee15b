"""Every picture at a path, whatever set it belongs to, or in memory: for classifying and searching, not for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sensorium.base.reading import printable
from sensorium.data.images.endings import SHOWN
from sensorium.data.images.folders import Files
from sensorium.data.images.open import open_data
from sensorium.data.images.sets import Digest, EncodedImages, ImageSet
from sensorium.data.images.values import Scale
from sensorium.data.log import Log
from sensorium.data.names import files_below


def pictures_at(text: str, scale: Scale | None) -> list[ImageSet]:
    """A file, every picture below a folder, or all sets of a data set; ``scale``: of more than 8 bits."""
    path = Path(text).expanduser()
    if path.is_file() and path.suffix.lower() in SHOWN:
        return [picture_files([path], scale)]
    if path.is_dir() and (files := [one for one in files_below(path, Log()) if one.suffix.lower() in SHOWN]):
        return [picture_files(files, scale)]
    opened = open_data(text, scale=scale)
    return [images for images in (opened.train, opened.val, opened.test) if images is not None]


def picture_files(paths: list[Path], scale: Scale | None) -> EncodedImages:
    """These files, which may be missing or damaged: a picture of theirs is then a BadImage."""
    names = [str(path) for path in paths]
    return EncodedImages(Files(names), [printable(name) for name in names], scale=scale)


class Encoded(NamedTuple):
    """An image file in memory: its ``name``, for messages alone, and its bytes."""

    name: str
    data: bytes


def pictures_in_memory(files: Sequence[Encoded], scale: Scale | None) -> EncodedImages:
    """These files as images, decoded as those of a disk are; a damaged one is a BadImage."""
    return EncodedImages(_Memory(files), [one.name for one in files], scale=scale)


class _Memory:
    """Encoded images in memory, for :class:`EncodedImages`."""

    def __init__(self, files: Sequence[Encoded]) -> None:
        self.files = files

    def read(self, index: int) -> bytes:
        return self.files[index].data

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        for index in indices:
            digest.update(self.files[int(index)].data)
