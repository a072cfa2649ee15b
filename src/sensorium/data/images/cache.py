"""A cache of decoded images: square uint8 pixels in a memory map.

The shorter side is resized to S (antialiased bilinear), the center cropped, and [N, 3, S, S] written beside the run.
The file's name has a hash of its sources, its side file a checksum of its content: a cache is reused if both match, and
rebuilt if the images changed or the file is damaged. Writing is sequential and atomic, and removes what a process that
was killed while writing has left.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.files import cache_for, write_file, write_json
from sensorium.base.words import counted
from sensorium.data.images import decode
from sensorium.data.images.decode import BadImage
from sensorium.data.images.sets import ArrayImages, EncodedImages, ImageSet, View, header, picture
from sensorium.data.log import Skipped
from sensorium.data.rows import ArrayRows, Field, Rows, Taken, sampled_digest
from sensorium.errors import SensoriumError

VERSION = 2
MAX_BYTES = 40 * 10**9
SIZES = (32, 64, 96, 128, 224)
_CHUNK = 256
_BLOCK = 1 << 16
_MIN_STD = 1 / 255

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pixels(Rows):
    """The cached, square form of a set.

    ``images`` uint8 [N, 3, S, S] (read-only), ``labels`` int64 [N] (-1 unknown) or None, ``mean`` and ``std`` per channel
    in 0..1 scale (a std is at least 1/255, so that it can divide), ``names`` of the N images, ``skipped`` the broken ones.
    """

    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    names: Sequence[str] = ()
    skipped: tuple[Skipped, ...] = ()
    unit: str = "images"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def held(self) -> bool:
        return True

    @property
    def fields(self) -> dict[str, Field]:
        label = {} if self.labels is None else {"label": Field("int64", ())}
        return {"image": Field("uint8", self.images.shape[1:]), **label}

    @cached_property
    def digest(self) -> str:
        return sampled_digest(self, () if self.labels is None else (self.labels,))

    def take(self, index: np.ndarray, names: Collection[str] | None = None) -> Taken:
        """``image`` uint8 [n, 3, S, S], and ``label`` int64 [n] if there are labels."""
        columns = {"image": self.images} | ({} if self.labels is None else {"label": self.labels})
        return ArrayRows(columns).take(index, names)

    @property
    def size(self) -> int:
        """S, the side in pixels."""
        return self.images.shape[-1]

    def subset(self, indices: Any) -> Pixels:
        """The images at ``indices`` (int [n], bool [N] or a slice); mean and std are those of the whole set.

        A slice is a view of the memory map, anything else a copy in memory.
        """
        where = indices if isinstance(indices, slice) else np.asarray(indices)
        if not isinstance(where, slice) and where.dtype != bool:
            where = where.astype(np.int64)
        labels = None if self.labels is None else self.labels[where]
        names = [self.names[int(i)] for i in np.arange(len(self))[where]] if len(self.names) else ()
        return Pixels(self.images[where], labels, self.classes, self.mean, self.std, names, self.skipped)


def cache(
    images: ImageSet,
    size: int,
    folder: str | Path,
    *,
    max_bytes: int | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Pixels:
    """Decode ``images`` to squares of ``size`` pixels in ``folder``, or find them there.

    Broken images are dropped with their labels and listed in ``Pixels.skipped``. ``max_bytes``: maximum size of the
    file (default: 40 GB, or 80 % of the free disk if less). ``progress`` is called with (done, total). Raises
    SensoriumError if nothing can be decoded, the file would be too large or the disk is full.
    """
    if not 1 <= size <= 4096:
        raise SensoriumError(f"image size {size}: must be from 1 to 4096 pixels.")
    key = content_hash(images, size)
    names = f"pixels-{size}-{key[:16]}.u8", f"pixels-{size}-{key[:16]}.json"
    folder = cache_for(Path(folder), *names)
    data, side = (folder / name for name in names)
    stored = _stored(data, side, key, size, len(images))
    if stored is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _bound(len(images), size, folder, max_bytes)
            stored = _build(images, size, key, data, side, progress, workers)
        except OSError as error:
            raise SensoriumError(
                f"{data}: {error.strerror or error} while caching pixels; free some space, choose another --out, or lower the image size."
            ) from None
    dropped = np.array(stored["dropped"], np.int64)
    kept = np.setdiff1d(np.arange(len(images)), dropped)
    pixels = np.memmap(data, np.uint8, "r", shape=(len(kept), 3, size, size))
    labels = None if images.labels is None else np.asarray(images.labels, np.int64)[kept]
    names = images.names if not len(dropped) else [images.names[int(i)] for i in kept]
    skipped = tuple(Skipped(*pair) for pair in stored["skipped"])
    return Pixels(pixels, labels, images.classes, tuple(stored["mean"]), tuple(stored["std"]), names, skipped)


def natural_size(images: ImageSet, cpu: bool) -> int:
    """The default square size for training, in pixels.

    Images that all have the same small shape (shorter side <= 64) keep it. Else the median shorter side, rounded down
    to one of 32, 64, 96, 128 and 224; at most 64 on a CPU. Reads the headers of at most 512 images.
    """
    sides = []
    shapes = set()
    reason = "it is empty"
    for index in np.unique(np.linspace(0, len(images) - 1, min(512, len(images))).astype(np.int64)):
        try:
            width, height, _ = header(images, int(index))
        except BadImage as bad:
            reason = str(bad)
            continue
        sides.append(min(width, height))
        shapes.add((width, height))
    if not sides:
        raise SensoriumError(f"none of the images can be read ({reason}).")
    if len(shapes) == 1 and sides[0] <= 64:
        return sides[0]
    median = float(np.median(sides))
    largest = 64 if cpu else 224
    return max([s for s in SIZES if s <= min(median, largest)], default=SIZES[0])


def content_hash(images: ImageSet, size: int) -> str:
    """The key of a cache: names, the bytes of arrays or size and time of files, the image size, this version."""
    digest = hashlib.blake2b(f"{VERSION}:{size}:{len(images)};".encode(), digest_size=20)
    base, indices = (images.base, images.indices) if isinstance(images, View) else (images, np.arange(len(images)))
    for start in range(0, len(images), 4096):
        names = images.names[start : start + 4096]
        digest.update("\0".join(names).encode("utf-8", "surrogateescape"))
    if isinstance(base, EncodedImages | ArrayImages):
        base.sign(digest, indices)
    else:  # generated images: their own description if they have one, and a few samples
        digest.update(f"{type(base).__qualname__}:{getattr(base, 'signature', '')};".encode())
        for index in indices[np.unique(np.linspace(0, max(0, len(indices) - 1), min(16, len(indices))).astype(int))]:
            digest.update(np.ascontiguousarray(base[int(index)]["image"]).tobytes())
    return digest.hexdigest()


def _bound(count: int, size: int, folder: Path, max_bytes: int | None) -> None:
    need = count * 3 * size * size
    free = shutil.disk_usage(folder).free
    most = min(MAX_BYTES, int(0.8 * free)) if max_bytes is None else max_bytes
    if need <= most:
        return
    fitting = int((most / (3 * max(count, 1))) ** 0.5)
    raise SensoriumError(
        f"{folder}: {counted(count, 'image')} of {size} x {size} {'needs' if count == 1 else 'need'} {need / 1e9:.1f} GB of cache, more than the {most / 1e9:.1f} GB allowed "
        f"({free / 1e9:.1f} GB of disk are free); lower the image size to {max(fitting, 1)} or less, or limit the images."
    )


def _build(
    images: ImageSet, size: int, key: str, data: Path, side: Path, progress: Progress | None, workers: int | None
) -> dict[str, Any]:
    """Decode everything, write the two files, return the content of the side file."""
    dropped: list[int] = []
    skipped: list[tuple[str, str]] = []
    counts = np.zeros((3, 256), np.int64)
    stored: dict[str, Any] = {}

    def write(part: Path) -> None:
        done = 0
        with part.open("wb") as file:
            for block, bad in squares(images, size, workers):
                for index, error in bad:
                    dropped.append(index)
                    skipped.append((error.name, error.reason))
                if len(block):
                    for channel in range(3):
                        counts[channel] += np.bincount(block[:, channel].reshape(-1), minlength=256)
                    block.tofile(file)
                done += len(block) + len(bad)
                if progress is not None:
                    progress(done, len(images))
        if len(dropped) == len(images):
            first = f": {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
            raise SensoriumError(f"none of the {counted(len(images), 'image')} can be decoded{first}.")
        mean, std = _moments(counts)
        stored.update({
            "version": VERSION, "hash": key, "size": size, "count": len(images) - len(dropped), "total": len(images),
            "checksum": _checksum(part), "mean": mean, "std": std, "dropped": dropped, "skipped": skipped,
        })  # fmt: skip

    write_file(data, write)
    write_json(side, stored)
    return stored


def squares(
    images: ImageSet, size: int, workers: int | None = None
) -> Iterator[tuple[np.ndarray, list[tuple[int, BadImage]]]]:
    """Chunks in order: (uint8 [n, 3, S, S] of the readable ones, the broken ones). Decoders release the GIL."""
    workers = workers or os.cpu_count() or 1
    base = images.base if isinstance(images, View) else images
    starts = range(0, len(images), _CHUNK)
    if workers == 1 or len(starts) < 2 or not isinstance(base, EncodedImages):
        yield from (_chunk(images, start, size) for start in starts)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future] = deque()
        for start in starts:
            waiting.append(pool.submit(_chunk, images, start, size))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _chunk(images: ImageSet, start: int, size: int) -> tuple[np.ndarray, list[tuple[int, BadImage]]]:
    indices = range(start, min(start + _CHUNK, len(images)))
    base = images.base if isinstance(images, View) else images
    if (
        isinstance(base, ArrayImages)
        and base.pixels.shape[1:3] == (size, size)
        and base.pixels.shape[3:] in ((), (1,), (3,))
    ):
        where = images.indices[start : indices.stop] if isinstance(images, View) else slice(start, indices.stop)
        block = base.pixels[where]
        block = block[..., None] if block.ndim == 3 else block
        return np.ascontiguousarray(np.broadcast_to(block, (*block.shape[:3], 3)).transpose(0, 3, 1, 2)), []
    drawn: Any = getattr(base, "images", None)
    if drawn is not None:  # generated: rendered together at the requested size
        return drawn(images.indices[start : indices.stop] if isinstance(images, View) else indices, size).numpy(), []
    out = np.empty((len(indices), 3, size, size), np.uint8)
    bad: list[tuple[int, BadImage]] = []
    at = 0
    for index in indices:
        try:
            # Reduced decoding keeps at least twice the size, so that the antialiased resize determines the result.
            out[at] = decode.square(picture(images, index, 2 * size), size)
            at += 1
        except BadImage as error:
            # Without its traceback, whose frames hold the file's bytes and, by way of this list, themselves.
            bad.append((index, BadImage(error.name, error.reason)))
    return out[:at], bad


def _moments(counts: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and std per channel in 0..1 scale from histograms [3, 256]: exact and independent of the order."""
    values = np.arange(256) / 255
    total = counts.sum(1)
    mean = (counts * values).sum(1) / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / total
    return mean.tolist(), np.maximum(np.sqrt(variance), _MIN_STD).tolist()


def _stored(data: Path, side: Path, key: str, size: int, total: int) -> dict[str, Any] | None:
    """The content of the side file, if it and the pixels are intact and made from these images; else None."""
    try:
        stored = json.loads(side.read_bytes())
        agrees = (stored["version"], stored["hash"], stored["size"], stored["total"]) == (VERSION, key, size, total)
        whole = data.stat().st_size == stored["count"] * 3 * size * size and stored["count"] > 0
        numbers = len(stored["mean"]) == len(stored["std"]) == 3 and stored["count"] + len(stored["dropped"]) == total
        named = all(len(pair) == 2 for pair in stored["skipped"])
        return stored if agrees and whole and numbers and named and stored["checksum"] == _checksum(data) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _checksum(path: Path) -> int:
    """CRC-32 of a file up to 256 MiB; of a larger one, of 4,096 blocks of 64 KiB spread over it."""
    size = path.stat().st_size
    blocks = max(1, -(-size // _BLOCK))
    value = zlib.crc32(str(size).encode())
    with path.open("rb") as file:
        for block in np.unique(np.linspace(0, blocks - 1, min(4096, blocks)).astype(np.int64)):
            file.seek(int(block) * _BLOCK)
            value = zlib.crc32(file.read(_BLOCK), value)
    return value
