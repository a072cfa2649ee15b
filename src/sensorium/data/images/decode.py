"""Decoding image files to square uint8 RGB, for any mode, orientation or damage.

Gray is repeated, transparency is composited on white, CMYK and palettes are converted, files of 16 bits and floats are
scaled (:mod:`values`), EXIF rotation is applied, and of an animation the first frame is used. A file that can't be
decoded, or would need gigabytes or minutes (:mod:`structure`), raises :class:`BadImage` with a reason, whatever the
decoder raised. Threads that decode together share a bound of memory.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile, jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from sensorium.base.memory import affordable
from sensorium.base.reading import open_regular, printable, read_regular
from sensorium.data.images.endings import UNREAD
from sensorium.data.images.structure import HEADER, Structure, inspect, orientation
from sensorium.data.images.values import TOPS, Scale, is_wide, span, to_eight, wide_values
from sensorium.errors import SensoriumError

MAX_PIXELS = 100_000_000
"""Larger images are decoded at a reduced scale where the format allows it (baseline JPEG), else refused."""
MAX_JPEG_PIXELS = 1_000_000_000
_MOST_OPENED = 178_956_970  # pixels of formats other than JPEG, as Pillow's own bound
_LARGE = 16_000_000  # pixels of images that are reduced on request, whatever their format
_BYTES_A_PIXEL = {
    "WEBP": 28,
    "JPEG2000": 36,
    "AVIF": 28,
    "TIFF": 24,
    "PNG": 20,
}  # at the peak of decoding; 12 otherwise
_TOGETHER = 1 << 30  # bytes that the threads of a process decode in at once
_ALWAYS = 64 << 20  # less is never compared with the free memory
_IN_MEMORY = 64 << 20
_MAKERS = {"JPEG": jpeg_factory, "PNG": PngImageFile}  # of small files, Image.open costs as much as the decoding
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:=["']|>)([0-9])""")

# The size is checked here against MAX_PIXELS, with a named error; Pillow's warning is redundant.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# No warnings about damaged metadata if the pixels are readable.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")


class BadImage(SensoriumError):
    """An unusable image: its ``name``, and the ``reason``."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self):
        return BadImage, (self.name, self.reason)


def rgb(
    source: bytes | Path, name: str, at_least: int | None = None, scale: Scale | None = None, *, upright: bool = True
) -> Image.Image:
    """Decode an image file (its bytes, or its path) to an RGB image, turned by its orientation if ``upright``.

    ``at_least`` allows a reduced scale whose shorter side is no smaller: of a JPEG, the same image in a fraction of the
    time; of others, if they are very large. ``scale``: the values of a 16-bit or float file that are
    black and white, see :mod:`values`; None follows from the picture itself. Raises :class:`BadImage` and nothing else.
    """
    with _Opened(source, name) as opened:
        image = opened.open()
        picture = _picture(opened, image, at_least, scale, upright)
        loaded = opened.structure.format in _MAKERS  # others may come back to their file
        return picture if loaded or picture is not image else picture.copy()


def peak(source: bytes | Path, name: str) -> tuple[float, float] | None:
    """(smallest, largest) value of a 16-bit or float file; None for one of 8 bits. Raises :class:`BadImage`; a
    file that can't have more than 8 bits is not opened further to see whether it is damaged."""
    with _Opened(source, name) as opened:
        if not opened.structure.wide or opened.structure.format == "ICO":
            return None
        image = opened.open()
        if not is_wide(image):
            return None
        with _Room(_bound(image, opened.structure, name, None)):
            values = _values(image, opened)
            return (0.0, TOPS[-1]) if values is None else None if values.dtype == np.uint8 else span(values)


def header(source: bytes | Path, name: str) -> tuple[int, int, str]:
    """(width, height, mode) of an image file, read from its header only. Raises :class:`BadImage`.

    The mode is Pillow's, or for example "RGB;16" for colors of 16 bits.
    """
    width, height, mode, turn = stored_header(source, name)
    return (height, width, mode) if turn >= 5 else (width, height, mode)


def stored_header(source: bytes | Path, name: str) -> tuple[int, int, str, int]:
    """(width, height, mode, orientation 1 to 8) of the pixels as they are stored; 5 to 8 exchange the sides of the
    upright image. Raises :class:`BadImage`."""
    with _Opened(source, name, header=True) as opened:
        image, structure = opened.open(), opened.structure
        mode = f"{image.mode};16" if is_wide(image) and len(image.getbands()) > 1 else image.mode
        if structure.format == "PNG":
            if structure.profile:  # it may stand behind the pixels: they are decoded to see
                with _Room(_bound(image, structure, name, None)):
                    image.load()
            else:
                image.info["exif"] = structure.exif
        return *image.size, mode, _orientation(image)


def to_array(image: Image.Image) -> np.ndarray:
    """RGB image -> uint8 [3, H, W]."""
    width, height = image.size
    values = np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, -1)
    return np.array(values.transpose(2, 0, 1), order="C")


def square(image: Image.Image, size: int) -> np.ndarray:
    """RGB image -> uint8 [3, size, size]: shorter side resized to ``size`` (antialiased bilinear), center cropped."""
    width, height = image.size
    side = min(width, height)
    if (width, height) != (size, size):
        left, top = (width - side) / 2, (height - side) / 2
        # Resizing only the central square gives the same image, without gigabytes for a 1 x 65,000 strip.
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return to_array(image)


def upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """A loaded image as RGB, turned by the orientation of ``source``."""
    turn = _TURNS.get(_orientation(source))
    return _to_rgb(image) if turn is None else _to_rgb(image).transpose(turn)


def flatten(array: np.ndarray) -> np.ndarray:
    """Stored pixels [H, W] or [H, W, 1|2|3|4] uint8 -> uint8 [3, H, W]; a 2nd or 4th channel is alpha, composited on
    white."""
    if array.ndim == 2:
        array = array[:, :, None]
    channels = array.shape[2]
    if channels in (2, 4):
        alpha = array[:, :, -1:].astype(np.uint16)
        array = ((array[:, :, :-1] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if array.shape[2] == 1:
        array = np.broadcast_to(array, (*array.shape[:2], 3))
    return np.array(array.transpose(2, 0, 1), order="C")


class _Opened:
    """An image file and its ``structure``. Whatever goes wrong with it, in a block of it, is a BadImage."""

    __slots__ = ("file", "name", "structure")

    def __init__(self, source: bytes | Path, name: str, *, header: bool = False) -> None:
        self.name = name
        try:
            self.file = _file(source, name, HEADER if header else _IN_MEMORY)
            self.structure = inspect(self.file, name, header=header)
        except Exception as error:
            raise _bad(name, error) from None

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.file.close()
        if isinstance(error, Exception) and not isinstance(error, BadImage):
            raise _bad(self.name, error) from None

    def open(self) -> ImageFile:
        """The image with its header read."""
        kind = self.structure.format
        make = _MAKERS.get(kind)
        self.file.seek(0)
        try:
            image = Image.open(self.file, formats=(kind,)) if make is None else make(self.file)
            if kind == "JPEG" or image.width * image.height <= _MOST_OPENED:
                return image
        except Image.DecompressionBombError:
            # Only a JPEG can be decoded at a reduced scale; opened directly, it skips Pillow's check and gets ours.
            if kind == "JPEG":
                self.file.seek(0)
                return JpegImageFile(self.file)
        except (SyntaxError, IndexError, TypeError, struct.error):
            raise UnidentifiedImageError from None
        raise BadImage(self.name, f"more than {MAX_PIXELS // 10**6} megapixels; store it smaller")


def _bad(name: str, error: Exception) -> BadImage:
    """Decoders raise anything on damaged bytes: OSError, struct.error, KeyError ..."""
    return error if isinstance(error, BadImage) else BadImage(name, reason_of(error, name))


def _file(source: bytes | Path, name: str, most: int) -> BinaryIO:
    """A regular file, not empty; one of at most ``most`` bytes in memory, since decoders read in small pieces."""
    try:
        data = source if isinstance(source, bytes) else read_regular(source, most)
        if data is None:
            return open_regular(Path(source))  # pyright: ignore[reportArgumentType]
    except SensoriumError as error:
        path = Path(source)  # pyright: ignore[reportArgumentType]
        if not path.exists():
            raise FileNotFoundError from None
        raise BadImage(name, str(error).removeprefix(f"{printable(str(path))}: ").rstrip(".")) from None
    if not data:
        raise BadImage(name, "zero bytes")
    return io.BytesIO(data)


def _picture(
    opened: _Opened, image: ImageFile, at_least: int | None, scale: Scale | None, upright: bool
) -> Image.Image:
    """See :func:`rgb`; it may be ``image`` itself."""
    with _Room(_bound(image, opened.structure, opened.name, at_least)):
        values = _values(image, opened)
        picture = _to_rgb(image) if values is None else _of_values(image, values, scale)
        turn = _TURNS.get(_orientation(image)) if upright else None
        if turn is not None:
            picture = picture.transpose(turn)
        side = min(picture.size)
        if at_least and picture.width * picture.height > _LARGE and side >= 2 * at_least:
            picture = picture.reduce(side // at_least)
        return picture


def _bound(image: Image.Image, structure: Structure, name: str, at_least: int | None) -> int:
    """Bytes that decoding needs. Raise for images that would need too many; let a JPEG decode at a reduced scale if
    requested or needed."""
    width, height = image.size
    large = width * height > MAX_PIXELS
    # A JPEG of several scans keeps all coefficients in memory, whatever the scale.
    reducible = isinstance(image, JpegImageFile) and structure.scans <= 1 and not image.info.get("progressive")
    if large and not (reducible and width * height <= MAX_JPEG_PIXELS):
        reason = f"{width} x {height} = {width * height // 10**6} megapixels; at most {MAX_PIXELS // 10**6} are decoded"
        raise BadImage(name, reason + ": store it smaller")
    if isinstance(image, JpegImageFile) and (large or at_least):
        scale = 8 if large or not at_least else max(1, min(width, height) // at_least)
        image.draft(None, (max(1, width // scale), max(1, height // scale)))
    tiles = _tiles(image)
    if len(tiles) > 1:  # one that is larger than the image is refused by the decoder
        covered = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (tile.extents for tile in tiles if tile.extents))
        if covered > max(len(image.getbands()), 1) * width * height * 2 + 1:
            raise BadImage(name, "damaged: its parts cover it more than once")
    need = image.size[0] * image.size[1] * _BYTES_A_PIXEL.get(structure.format, 12 if reducible else 20)
    if need > _ALWAYS:
        try:
            affordable(need, name, "store it smaller.", share=0.6)
        except SensoriumError as error:
            raise BadImage(name, str(error).removeprefix(f"{name}: ").rstrip(".")) from None
    return need


def _tiles(image: Image.Image) -> list[Any]:
    return image.tile if isinstance(image, ImageFile) else []


_free = threading.Condition()
_in_use = 0


class _Room:
    """Inside, ``need`` bytes are taken of what the threads of this process may use together; waits until they are left.
    One image is always decoded."""

    __slots__ = ("need",)

    def __init__(self, need: int) -> None:
        self.need = need

    def __enter__(self) -> None:
        global _in_use
        with _free:
            while _in_use and _in_use + self.need > _TOGETHER:
                _free.wait()
            _in_use += self.need

    def __exit__(self, *_: object) -> None:
        global _in_use
        with _free:
            _in_use -= self.need
            _free.notify_all()


def _values(image: ImageFile, opened: _Opened) -> np.ndarray | None:
    """The values of an image of more than 8 bits; None if Pillow's 8 bits are all. Loads the image."""
    if not opened.structure.wide:
        image.load()
        return None
    bands = len(image.getbands())
    tiles = _tiles(image)
    if len(tiles) == 1 and tiles[0].codec_name == "ppm":
        return _pnm(image, tiles[0])
    if not is_wide(image) or (bands > 1 and image.width * image.height > _LARGE):
        image.load()
        return None
    return wide_values(image, opened.open)


def _pnm(image: Any, tile: Any) -> np.ndarray:
    """A binary PNM that states where its values end, other than at 255: uint8. Pillow decodes it number by number."""
    most = tile.args[-1] if isinstance(tile.args, tuple) else tile.args
    width, height = image.size
    bands = max(len(image.getbands()), 1)
    kind = np.dtype(">u2" if most > 255 else "u1")
    file = image.fp
    file.seek(tile.offset)
    data = file.read(width * height * bands * kind.itemsize)
    if len(data) < width * height * bands * kind.itemsize:
        raise ValueError("truncated")
    image.tile = []  # nothing is left to decode
    values = np.minimum(np.frombuffer(data, kind), most).reshape((height, width, bands)[: 2 if bands == 1 else 3])
    table = np.round(np.arange(most + 1) * (255.0 / most)).astype(np.uint8)
    return table[values]


def _of_values(image: Image.Image, values: np.ndarray, scale: Scale | None) -> Image.Image:
    eight = values if values.dtype == np.uint8 else to_eight(values, scale)
    return _to_rgb(Image.fromarray(eight), image if image.mode == "RGBA" else None)


def _to_rgb(image: Image.Image, alpha: Image.Image | None = None) -> Image.Image:
    """RGB, composited on white by its own transparency or that of ``alpha``."""
    mode = image.mode
    if alpha is not None:
        layer = image.convert("RGBA")
        layer.putalpha(alpha.getchannel("A"))
    elif mode == "RGB" and "transparency" not in image.info:
        return image
    elif mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
    else:
        return image.convert("RGB")
    paper = Image.new("RGB", image.size, (255, 255, 255))
    paper.paste(layer, mask=layer.getchannel("A"))
    return paper


def _orientation(image: Image.Image) -> int:
    """The orientation, 1..8: of EXIF data, else of XMP. Damaged ones count as none: the pixels are still readable."""
    try:
        if isinstance(image, TiffImageFile):
            found = 1  # Pillow turns these itself
        elif exif := image.info.get("exif") or _profile(image.info.get("Raw profile type exif")):
            found = orientation(exif)
        else:
            xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
            xmp = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
            turned = _XMP_ORIENTATION.search(xmp)
            found = int(turned[1]) if turned else 1
    except Exception:
        return 1
    return found if found in _TURNS else 1


def _profile(text: str | None) -> bytes:
    """The EXIF data that some programs keep in a PNG as text: a name, a length, and hexadecimal digits."""
    return bytes.fromhex("".join(text.split("\n")[3:])) if text else b""


def reason_of(error: Exception, name: str) -> str:
    """Why the picture called ``name`` can't be read, in words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, MemoryError):
        return "does not fit in memory"
    if (kind := f".{name.rpartition('.')[2].lower()}") in UNREAD:
        return f"a {kind} file is not read; convert it to JPEG or PNG"
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    text = printable(" ".join(str(error).split()))[:160]
    return text or type(error).__name__
