"""Images in one array: NumPy's .npz, and IDX files as in MNIST.

Sizes in a file's header are compared with its length and with the free memory before anything is allocated. Nothing is
ever unpickled.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sensorium.base.memory import affordable
from sensorium.base.npy import damage, member, npz, read_exactly
from sensorium.base.reading import open_regular, printable
from sensorium.base.words import counted, plural
from sensorium.data.images.sets import ArrayImages, Found, ImageSet, Numbered, numbered
from sensorium.data.names import SPLITS, list_folder, split_of
from sensorium.errors import NothingOfItsKind, SensoriumError

_IMAGES = ("images", "image", "x", "imgs", "data", "pixels", "arr_0")
_LABELS = ("labels", "label", "y", "targets", "target", "arr_1")
_CLASSES = ("class_names", "classes", "label_names", "categories")
_NAMES = ("source_path", "paths", "filenames", "names")
_STORE = "store the images as files or as .tar shards, which are read one at a time."
_IDX_TYPES = {0x08: np.dtype("u1"), 0x09: np.dtype("i1"), 0x0B: np.dtype(">i2"), 0x0C: np.dtype(">i4")}


def read_npz(path: Path) -> Found:
    """An .npz with images, labels and class names; one set, or one per split ("x_train", "train_images", ...)."""
    where = printable(str(path))
    with npz(path) as (archive, members):
        keys = {key.casefold(): key for key in members}
        class_key = next((keys[k] for k in _CLASSES if k in keys), None)
        names = None if class_key is None else _class_names(member(archive, members[class_key], where, _STORE), where)
        sets: dict[str, ImageSet] = {}
        for split in ("", *SPLITS):
            image_key = _key(keys, split, _IMAGES)
            if image_key is None:
                continue
            pixels = member(archive, members[image_key], where, _STORE)
            label_key = _key(keys, split, _LABELS)
            raw = None if label_key is None else member(archive, members[label_key], where, _STORE)
            name_key = next((keys[k] for k in _NAMES if k in keys), None) if not split else None
            titles = None if name_key is None else member(archive, members[name_key], where, _STORE)
            field = f"{where}: '{image_key}'"
            images = _images(pixels, field, titles, f"{path.name}{':' + split if split else ''}")
            if raw is not None:
                images.labels, images.classes = _labels(raw, len(images), names, f"{where}: '{label_key}'")
            sets[split or "train"] = images
    if not sets:
        held = ", ".join(map(printable, sorted(members)[:12])) or "nothing"
        raise NothingOfItsKind(
            f"{where}: no images. Looked for a uint8 array called 'images' [N, H, W, 3] or [N, H, W] (or x, data, "
            f"x_train, train_images); it holds {held}."
        )
    if "train" not in sets:
        sets["train"] = sets.pop(next(iter(sets)))
    return Found("npz", sets)


def idx_pairs(folder: Path) -> dict[str, Path]:
    """Image files of an IDX layout in a folder, by split; empty if there are none."""
    pairs: dict[str, Path] = {}
    for entry in list_folder(folder):
        if entry.is_file() and is_idx_images(entry.name):
            pairs.setdefault(split_of(entry.name) or "train", Path(entry.path))
    if pairs and "train" not in pairs:
        pairs["train"] = pairs.pop(next(iter(pairs)))
    return pairs


def is_idx_images(name: str) -> bool:
    """Whether a file name is that of IDX images: "train-images-idx3-ubyte", "t10k-images.idx3-ubyte.gz", ..."""
    stem = name.casefold().removesuffix(".gz")
    return "images" in stem and stem.endswith(("idx3-ubyte", "idx4-ubyte", ".idx", ".idx3", "-ubyte"))


def read_idx(files: dict[str, Path]) -> Found:
    """IDX images by split, each with its labels file if there is one."""
    sets: dict[str, ImageSet] = {}
    notes = []
    for split, path in files.items():
        pixels = _idx(path)
        where = printable(str(path))
        images = _images(pixels, where, None, path.name)
        labels = _labels_beside(path)
        if labels is None:
            notes.append(f"No labels file beside {printable(path.name)}.")
        else:
            images.labels, images.classes = _labels(_idx(labels), len(images), None, printable(str(labels)))
        sets[split] = images
    notes += _passed_over(files)
    return Found("idx", sets, [], notes)


def _passed_over(files: dict[str, Path]) -> list[str]:
    """Notes about further IDX images in the folder, such as a second training set."""
    used = {_plain(path.name) for path in files.values()}
    folder = next(iter(files.values())).parent
    others = {_plain(e.name) for e in list_folder(folder) if e.is_file() and is_idx_images(e.name)} - used
    if not others:
        return []
    return [f"{len(others)} further IDX files of images are not used (the first: {printable(min(others))})."]


def _plain(name: str) -> str:
    return name.casefold().removesuffix(".gz")


def _labels_beside(path: Path) -> Path | None:
    stem = path.name.removesuffix(".gz").replace("images", "labels").replace("Images", "Labels")
    for name in (stem, stem.replace("idx3", "idx1").replace("idx4", "idx1")):
        for candidate in (path.with_name(name + ".gz"), path.with_name(name)):
            if candidate != path and candidate.is_file():
                return candidate
    return None


def _idx(path: Path) -> np.ndarray:
    """Magic (two zero bytes, type, rank), the dimensions as big-endian 32-bit, then the values."""
    where = printable(str(path))
    with damage(where, "IDX"), open_regular(path) as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.GzipFile(fileobj=raw) if zipped else raw as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or not 1 <= magic[3] <= 4:
                raise SensoriumError(
                    f"{where}: not an IDX file of bytes or integers (its magic number is {magic.hex() or 'missing'})."
                )
            dtype, rank = _IDX_TYPES[magic[2]], magic[3]
            head = file.read(4 * rank)
            if len(head) < 4 * rank:
                raise SensoriumError(f"{where}: truncated in its header; fetch the file again.")
            shape = struct.unpack(f">{rank}I", head)
            size = math.prod(shape) * dtype.itemsize
            if not size:
                raise SensoriumError(f"{where} has shape {list(shape)}: it is empty.")
            affordable(size, where, _STORE)
            if not zipped and size != (held := os.fstat(raw.fileno()).st_size - 4 - 4 * rank):
                raise SensoriumError(
                    f"{where}: header gives {size:,} bytes of values, but the file has {held:,}; fetch the file again."
                )
            values = read_exactly(file, size, where)
            if file.read(1):
                raise SensoriumError(
                    f"{where}: has more than the {size:,} bytes of values in its header; fetch the file again."
                )
    array = np.frombuffer(values, dtype).reshape(shape)
    return array if dtype.itemsize == 1 else array.astype(np.int64)


def _images(pixels: np.ndarray, field: str, titles: np.ndarray | None, prefix: str) -> ArrayImages:
    if pixels.dtype != np.uint8:
        raise SensoriumError(f"{field} is {pixels.dtype}; save images as uint8, 0 to 255.")
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 2, 3, 4) and pixels.shape[1] in (1, 3, 4):
        pixels = pixels.transpose(0, 2, 3, 1)  # [N, C, H, W]
    if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 2, 3, 4)):
        raise SensoriumError(f"{field} has shape {list(pixels.shape)}; expected [N, H, W, 3] or [N, H, W].")
    if 0 in pixels.shape:
        raise SensoriumError(f"{field} has shape {list(pixels.shape)}: it has no images.")
    names: Sequence[str] = Numbered(prefix, len(pixels))
    if titles is not None and titles.dtype.kind == "U" and titles.shape == (len(pixels),):
        names = [printable(str(title)) for title in titles]
    return ArrayImages(pixels, names)


def _class_names(names: np.ndarray, where: str) -> tuple[str, ...] | None:
    """Class names of an array of strings; None if 'classes' holds something else, such as numbers."""
    if names.ndim != 1 or names.dtype.kind not in "US":
        return None
    words = [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names]
    if len(set(words)) != len(words):
        raise SensoriumError(f"{where}: two classes have the same name; give each its own.")
    return tuple(map(printable, words))


def _labels(
    raw: np.ndarray, count: int, names: tuple[str, ...] | None, field: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Stored labels -> 0..K-1 and class names. Integers index ``names``, or are themselves the names; -1: unknown."""
    if raw.ndim == 2 and raw.shape[1] == 1:
        raw = raw[:, 0]
    if raw.ndim != 1 or len(raw) != count:
        raise SensoriumError(
            f"{field} has shape {list(raw.shape)}; expected one label for each of the {counted(count, 'image')}."
        )
    if raw.dtype.kind in "US":
        words = [printable(v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v)) for v in raw]
        if names is not None and (odd := sorted(set(words) - set(names))):
            raise SensoriumError(f"{field} has '{odd[0]}', which is not a class name.")
        return numbered(words, names)
    if raw.dtype.kind == "f" and (np.abs(raw) < 2**53).all() and (raw == np.round(raw)).all():
        raw = raw.astype(np.int64)
    if raw.dtype.kind not in "iub":
        raise SensoriumError(f"{field} is {raw.dtype}; expected integers or strings.")
    labels = raw.astype(np.int64)
    if names is not None:
        if labels.min() < -1 or labels.max() >= len(names):
            raise SensoriumError(
                f"{field} runs from {labels.min()} to {labels.max()}, but there {plural(len(names), 'is')} {counted(len(names), 'class name')}."
            )
        return labels, names
    values = np.unique(labels[labels != -1])
    return np.where(labels == -1, -1, np.searchsorted(values, labels)), tuple(str(v) for v in values)


def _key(keys: dict[str, str], split: str, stems: tuple[str, ...]) -> str | None:
    """The key of an array, alone ("images") or with its split as prefix or suffix ("train_images", "x_test")."""
    if not split:
        return next((keys[stem] for stem in stems if stem in keys), None)
    for word in SPLITS[split]:
        for stem in stems:
            for name in (f"{word}_{stem}", f"{stem}_{word}", f"{word}{stem}", f"{stem}{word}"):
                if name in keys:
                    return keys[name]
    return None
