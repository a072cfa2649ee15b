"""Image data sets: map-style sets of raw samples with standard fields.

A sample is ``{"image": uint8 [3, H, W], "label": int, ...}``; the label is 0..K-1, or -1 where unknown. Labels, class
names and image names are known without decoding anything. Sets are cheap to build, picklable and safe to read from
several threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from sensorium.data.images import decode
from sensorium.data.images.decode import BadImage
from sensorium.data.images.values import TOPS, Scale, scale_of
from sensorium.data.log import Skipped
from sensorium.data.names import natural_key

_EIGHT = (".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp")  # what has no more than 8 bits if named rightly
_PROBED, _MEASURED = 32, 256


@runtime_checkable
class ImageSet(Protocol):
    """Map-style images. ``classes`` is () and ``labels`` None when unlabeled."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Opened:
    """The result of :func:`sensorium.data.images.open.open_data`. ``notes`` are sentences about its choices;
    ``scale``: of its 16-bit and float images, None if there are none."""

    path: str
    layout: str
    train: ImageSet
    test: ImageSet | None = None
    val: ImageSet | None = None
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    scale: Scale | None = None


@dataclass
class Found:
    """The result of a reader: sets by split ("train", "val", "test"), before holding out splits and matching
    classes. ``tables``: files beside images that may hold their labels, and were not read. ``unlabeled``: training
    images by the name of the folder or file that says that they have no label."""

    layout: str
    sets: dict[str, ImageSet]
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    unlabeled: Counter[str] = field(default_factory=Counter)


class Digest(Protocol):
    """A hash of hashlib."""

    def update(self, data: Any, /) -> None: ...


class Source(Protocol):
    """The source of the bytes of encoded images."""

    def read(self, index: int) -> bytes | Path:
        """The file's bytes, or its path. Raises OSError."""
        ...

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        """Update the hash with what identifies the images."""
        ...


@runtime_checkable
class Headed(Protocol):
    """Images whose size and mode are known without decoding or drawing them."""

    def header(self, index: int) -> tuple[int, int, str]:
        """(width, height, mode)."""
        ...


class EncodedImages:
    """Images that are decoded on demand: files, slices of tars, cells of a table."""

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
        texts: Sequence[str | None] | None = None,
        scale: Scale | None = None,
    ):
        self.source, self.names, self.labels, self.classes, self.texts = source, names, labels, classes, texts
        self.scale = scale  # of 16-bit and float files, given by `measure`

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises :class:`BadImage` for an image that cannot be decoded."""
        index = _checked(index, len(self))
        sample = _sample(decode.to_array(self.picture(index)), self.labels, index)
        if self.texts is not None:
            sample["text"] = self.texts[index] or ""
        return sample

    def picture(self, index: int, at_least: int | None = None) -> Image.Image:
        """The decoded image, RGB; a JPEG may come at a reduced scale with its shorter side >= ``at_least``."""
        return decode.rgb(self._read(index), self.names[index], at_least, self.scale)

    def header(self, index: int) -> tuple[int, int, str]:
        """(width, height, mode) without decoding."""
        return decode.header(self._read(index), self.names[index])

    def _read(self, index: int) -> bytes | Path:
        try:
            return self.source.read(index)
        except (OSError, ValueError) as error:
            raise BadImage(self.names[index], decode.reason_of(error, self.names[index])) from None

    def peak(self, index: int) -> tuple[float, float] | None:
        """(smallest, largest) value of a 16-bit or float file; None for one of 8 bits."""
        return decode.peak(self._read(index), self.names[index])

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        if self.scale is not None:
            digest.update(f"scale {self.scale};".encode())
        self.source.sign(digest, indices)


class ArrayImages:
    """Images in memory: uint8 [N, H, W] or [N, H, W, C] with C of 1, 2 (alpha), 3 or 4 (alpha)."""

    def __init__(
        self, pixels: np.ndarray, names: Sequence[str], labels: np.ndarray | None = None, classes: tuple[str, ...] = ()
    ):
        self.pixels, self.names, self.labels, self.classes = pixels, names, labels, classes

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = _checked(index, len(self))
        return _sample(decode.flatten(self.pixels[index]), self.labels, index)

    def header(self, index: int) -> tuple[int, int, str]:
        channels = self.pixels.shape[3] if self.pixels.ndim == 4 else 1
        return self.pixels.shape[2], self.pixels.shape[1], {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        digest.update(str(self.pixels.shape[1:]).encode())
        for start in range(0, len(indices), 4096):
            digest.update(np.ascontiguousarray(self.pixels[indices[start : start + 4096]]).data)


class View:
    """Some images of another set, in a given order, optionally with other labels."""

    def __init__(self, base: ImageSet, indices: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...]):
        if isinstance(base, View):
            indices, base = base.indices[indices], base.base
        self.base, self.indices, self.labels, self.classes = base, np.asarray(indices, np.int64), labels, classes
        self.names: Sequence[str] = _Picked(base.names, self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = _checked(index, len(self))
        sample = dict(self.base[int(self.indices[index])])
        sample["label"] = -1 if self.labels is None else int(self.labels[index])
        return sample


def subset(images: ImageSet, indices: np.ndarray) -> View:
    """The images at ``indices`` (int [n]) with their labels."""
    indices = np.asarray(indices, np.int64)
    return View(images, indices, None if images.labels is None else images.labels[indices], images.classes)


def root(images: ImageSet, index: int) -> tuple[ImageSet, int]:
    """The set behind any view, and the index in it."""
    return (images.base, int(images.indices[index])) if isinstance(images, View) else (images, index)


def picture(images: ImageSet, index: int, at_least: int | None = None) -> Image.Image:
    """Image ``index`` of any set as an RGB image; see :meth:`EncodedImages.picture`."""
    base, at = root(images, index)
    if isinstance(base, EncodedImages):
        return base.picture(at, at_least)
    return Image.fromarray(np.asarray(base[at]["image"]).transpose(1, 2, 0))


def header(images: ImageSet, index: int) -> tuple[int, int, str]:
    """(width, height, mode) of image ``index`` of any set, without decoding it if possible."""
    base, at = root(images, index)
    if isinstance(base, Headed):
        return base.header(at)
    height, width = base[at]["image"].shape[1:]
    return int(width), int(height), "RGB"


def measure(sets: Iterable[ImageSet], scale: Scale | None = None) -> tuple[Scale | None, str | None]:
    """Give the 16-bit and float files of all ``sets`` one scale: ``scale``, that of a run, or their own, which is found
    in at most twice ``_MEASURED`` files, evenly spaced. Returns it (None if there are no such files) and a sentence."""
    bases = {id(base): base for images in sets if len(images) and isinstance(base := root(images, 0)[0], EncodedImages)}
    # Few files of the kinds that may be wide are not to be missed among many that are not.
    groups = [_Files(list(bases.values()), eight) for eight in (False, True)]
    groups = [group for group in groups if any(group.range(i) for i in _spaced(len(group), _PROBED))]
    if scale is None and groups:
        with ThreadPoolExecutor(4) as pool:
            spans = [
                found for group in groups for found in pool.map(group.range, _spaced(len(group), _MEASURED)) if found
            ]
        low, high = min(low for low, _ in spans), max(high for _, high in spans)
        scale, told = scale_of(low, high, floating=True), _scaled(low, high, len(spans))
    else:
        told = f"16-bit and float images are read as in training: {_named(scale)}." if scale and groups else None
    for base in bases.values():
        base.scale = scale
    return scale, told


def _scaled(low: float, high: float, count: int) -> str | None:
    """What was found in the values of ``count`` images; None if they fill a range that they would be expected to."""
    black, white = scale_of(low, high, floating=True)
    if black == 0 and white in (1.0, TOPS[-1]):
        return None
    found = f"The largest value of {count:,} 16-bit or float images is {high:,.6g}"
    if (black, white) == (low, high):
        return f"{found}, the smallest {low:,.6g}: in all of them {_named((black, white))}."
    return f"{found}: all are read as images of {round(np.log2(white + 1))} bits, in which {_named((black, white))}."


def _named(scale: Scale) -> str:
    black = f"{scale[0]:,.6g} is black and " if scale[0] else ""
    return f"{black}{scale[1]:,.6g} is white"


def _spaced(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64)).tolist() if count else []


class _Files:
    """The images of ``bases`` whose names are, or are not, those of 8-bit files."""

    def __init__(self, bases: list[EncodedImages], eight: bool):
        found = (np.fromiter((n.lower().endswith(_EIGHT) for n in base.names), bool, len(base)) for base in bases)
        self.bases, self.indices = bases, [np.flatnonzero(named == eight) for named in found]

    def __len__(self) -> int:
        return sum(map(len, self.indices))

    def range(self, index: int) -> tuple[float, float] | None:
        """(smallest, largest) value of one; None if it has 8 bits or cannot be read."""
        for base, indices in zip(self.bases, self.indices, strict=True):
            if index < len(indices):
                try:
                    return base.peak(int(indices[index]))
                except BadImage:
                    return None
            index -= len(indices)
        raise IndexError(index)


def numbered(values: Iterable[str | None], names: tuple[str, ...] | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class names per image (None: unknown) -> (labels int64 [N], classes in natural order, or as given in
    ``names``)."""
    values = list(values)
    classes = names if names is not None else tuple(sorted({v for v in values if v is not None}, key=natural_key))
    number = {name: i for i, name in enumerate(classes)}
    return np.array([-1 if v is None else number[v] for v in values], np.int64), classes


class Numbered(Sequence[str]):
    """The names "prefix[0]", "prefix[1]", ... without storing them."""

    def __init__(self, prefix: str, count: int):
        self.prefix, self.length = prefix, count

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [f"{self.prefix}[{i}]" for i in range(*index.indices(self.length))]
        return f"{self.prefix}[{_checked(index, self.length)}]"


class _Picked(Sequence[str]):
    def __init__(self, names: Sequence[str], indices: np.ndarray):
        self.base, self.indices = names, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.base[int(i)] for i in self.indices[index]]
        return self.base[int(self.indices[index])]


def _checked(index: int, count: int) -> int:
    index = int(index)
    if not -count <= index < count:
        raise IndexError(f"image {index} of {count}")
    return index % count


def _sample(pixels: np.ndarray, labels: np.ndarray | None, index: int) -> dict[str, Any]:
    import torch  # here, so that inspecting a data set does not import torch

    return {"image": torch.from_numpy(pixels), "label": -1 if labels is None else int(labels[index])}
