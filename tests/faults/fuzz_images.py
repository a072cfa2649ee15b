"""Valid images of every format that is read, for fuzzing: opened, diagnosed for a 16-bit range, and decoded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, features

from sensorium.data.images import decode
from sensorium.data.images.decode import BadImage, square
from sensorium.data.images.open import open_data
from sensorium.data.images.sets import header, picture

_RNG = np.random.default_rng(0)
_COLOR = np.kron(_RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8), np.ones((5, 5, 1), np.uint8))
_GRAY = _COLOR[..., 0]
_DEEP = _GRAY.astype(np.uint16) * 13
_EXIF = Image.Exif()
_EXIF[274], _EXIF[271] = 6, "a camera"


def png16(array: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, from uint16 [H, W, 2|3|4]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = array.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    ends = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + ends


def _saved(array: np.ndarray, suffix: str, mode: str = "", **how) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(folder / f"a.{suffix}", **how)
        return folder

    return write


def _bytes(data: bytes, suffix: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / f"a.{suffix}").write_bytes(data)
        return folder

    return write


def _animation(suffix: str, **how) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        frames = [Image.fromarray(np.roll(_COLOR, k, 0)) for k in range(3)]
        frames[0].save(folder / f"a.{suffix}", save_all=True, append_images=frames[1:], **how)
        return folder

    return write


def _classes(folder: Path) -> Path:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            Image.fromarray(_COLOR).save(folder / split / name / "a.png")
    (folder / "train" / "bird").mkdir()
    return folder


_RLE = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 0, 0, 0, 54 + 1024, 40, 8, 4, 1, 8, 1, 0, 0, 0, 256, 0)
_RLE += bytes(1024) + b"\x08\x05\0\0" * 4 + b"\0\1"

SEEDS: dict[str, Callable[[Path], Path]] = {
    "images-classes": _classes,
    "images-jpeg": _saved(_COLOR, "jpg", exif=_EXIF),
    "images-jpeg-progressive": _saved(_COLOR, "jpg", progressive=True, quality=90),
    "images-jpeg-cmyk": _saved(_COLOR, "jpg", "CMYK"),
    "images-png": _saved(_COLOR, "png", exif=_EXIF),
    "images-png-palette": _saved(_COLOR, "png", "P", transparency=0),
    "images-png-16": _saved(_DEEP, "png"),
    "images-png-16-color": _bytes(png16(np.repeat(_DEEP[..., None], 3, 2)), "png"),
    "images-apng": _animation("png"),
    "images-gif": _animation("gif", comment="a comment"),
    "images-webp": _saved(_COLOR, "webp", exif=_EXIF),
    "images-webp-lossless": _animation("webp", lossless=True),
    "images-tiff": _saved(_COLOR, "tif"),
    "images-tiff-16": _saved(_DEEP, "tif"),
    "images-tiff-float": _saved(_DEEP.astype(np.float32), "tif"),
    "images-tiff-lzw": _saved(_COLOR, "tif", compression="tiff_lzw"),
    "images-tiff-jpeg": _saved(_COLOR, "tif", compression="jpeg"),
    "images-tiff-fax": _saved(_GRAY, "tif", "1", compression="group4"),
    "images-bmp": _saved(_COLOR, "bmp"),
    "images-bmp-rle": _bytes(_RLE, "bmp"),
    "images-ppm": _saved(_COLOR, "ppm"),
    "images-pgm-12": _bytes(b"P5\n35 25\n4095\n" + _DEEP.astype(">u2").tobytes(), "pgm"),
    "images-pgm-plain": _bytes(b"P2 # plain\n5 5 255\n" + b" ".join(b"%d" % n for n in _GRAY.flat[:25]), "pgm"),
    "images-tga": _saved(_COLOR, "tga", compression="tga_rle"),
    "images-ico": _saved(_COLOR, "ico", sizes=[(16, 16), (8, 8)], bitmap_format="bmp"),
    "images-ico-png": _saved(_COLOR, "ico", sizes=[(16, 16)]),
}
if features.check("jpg_2000"):
    SEEDS["images-jp2"] = _saved(_COLOR, "jp2")
    SEEDS["images-j2k"] = _saved(_COLOR, "j2k", tile_size=(16, 16), num_resolutions=3)
if features.check("avif"):
    SEEDS["images-avif"] = _saved(_COLOR, "avif", exif=_EXIF)


def decoded(path: Path) -> None:
    """Read headers and pixels of every set; a picture that cannot be decoded is BadImage, and nothing else."""
    opened = open_data(path)
    for images in (opened.train, opened.test, opened.val):
        for index in range(0 if images is None else len(images)):
            assert images is not None
            for read in (lambda i, part=images: header(part, i), lambda i, part=images: _pixels(part, i)):
                try:
                    read(index)
                except BadImage as bad:
                    if not bad.reason or "\n" in str(bad):
                        raise AssertionError(repr(bad)) from None


def _pixels(images, index: int) -> None:
    for at_least in (None, 8):
        image = picture(images, index, at_least)
        assert image.mode == "RGB"
        assert image.width * image.height <= decode.MAX_JPEG_PIXELS
        assert square(image, 8).shape == (3, 8, 8)


OPEN: dict[str, Callable[[Path], object]] = dict.fromkeys(SEEDS, decoded)
