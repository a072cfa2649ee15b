"""Decoding image files to square uint8 RGB, for any mode, orientation or damage.

Gray is repeated, transparency is composited on white, CMYK and palettes are converted, 16-bit and float gray is scaled
by its value range, EXIF rotation is applied, and of an animation the first frame is used. A file that can't be decoded,
or would need gigabytes, raises :class:`BadImage` with a reason, whatever the decoder raised.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from sensorium.base.reading import printable
from sensorium.errors import SensoriumError

EXTENSIONS = frozenset(
    f".{kind}"
    for kind in (
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "bmp",
        "gif",
        "webp",
        "tif",
        "tiff",
        "ppm",
        "pgm",
        "pbm",
        "pnm",
        "jp2",
        "avif",
        "tga",
        "ico",
    )
)
MAX_PIXELS = 100_000_000
"""Larger images are decoded at a reduced scale where the format allows it (baseline JPEG), else refused."""
MAX_JPEG_PIXELS = 1_000_000_000

# Readers of EPS and similar formats run external programs; the list of formats excludes them.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 274

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


def rgb(source: bytes | Path, name: str, at_least: int | None = None, *, upright: bool = True) -> Image.Image:
    """Decode an image file (its bytes, or its path) to an RGB image, turned by its EXIF orientation if ``upright``.

    ``at_least`` allows a JPEG to be decoded at a reduced scale whose shorter side is no smaller: the same image, in
    a fraction of the time. Raises :class:`BadImage` and nothing else.
    """
    try:
        with _open(source, name) as image:
            _bound(image, name, at_least)
            image.load()
            return _upright(_to_rgb(image), image, 0 if upright else 1)
    except BadImage:
        raise
    except (
        Exception
    ) as error:  # decoders raise anything on damaged bytes: OSError, SyntaxError, struct.error, KeyError ...
        raise BadImage(name, _reason(error)) from None


def header(source: bytes | Path, name: str) -> tuple[int, int, str]:
    """(width, height, mode) of an image file, read from its header only. Raises :class:`BadImage`."""
    width, height, mode, turn = stored_header(source, name)
    return (height, width, mode) if turn >= 5 else (width, height, mode)


def stored_header(source: bytes | Path, name: str) -> tuple[int, int, str, int]:
    """(width, height, mode, EXIF orientation 1 to 8) of the pixels as they are stored; 5 to 8 exchange the sides of the
    upright image. Raises :class:`BadImage`."""
    try:
        with _open(source, name) as image:
            return *image.size, image.mode, _orientation(image)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(name, _reason(error)) from None


def to_array(image: Image.Image) -> np.ndarray:
    """RGB image -> uint8 [3, H, W]."""
    return np.array(np.asarray(image).transpose(2, 0, 1), order="C")  # a copy: Pillow's is read-only


def square(image: Image.Image, size: int) -> np.ndarray:
    """RGB image -> uint8 [3, size, size]: shorter side resized to ``size`` (antialiased bilinear), center cropped."""
    width, height = image.size
    side = min(width, height)
    if (width, height) != (size, size):
        left, top = (width - side) / 2, (height - side) / 2
        # Resizing only the central square gives the same image, without gigabytes for a 1 x 65,000 strip.
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return to_array(image)


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


def _open(source: bytes | Path, name: str) -> Image.Image:
    if isinstance(source, bytes) and not source:
        raise BadImage(name, "zero bytes")
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    except Image.DecompressionBombError:
        # Only a JPEG can be decoded at a reduced scale; opened directly, it skips Pillow's check and gets ours.
        data = source if isinstance(source, bytes) else source.read_bytes()
        if data[:2] != b"\xff\xd8":
            raise BadImage(name, f"more than {MAX_PIXELS // 10**6} megapixels; store it smaller") from None
        return JpegImageFile(io.BytesIO(data))


def _bound(image: Image.Image, name: str, at_least: int | None) -> None:
    """Raise for images that would need gigabytes; let a JPEG decode at a reduced scale if requested or needed."""
    width, height = image.size
    large = width * height > MAX_PIXELS
    # A progressive JPEG keeps all coefficients in memory, whatever the scale.
    reducible = isinstance(image, JpegImageFile) and not image.info.get("progressive")
    if large and not (reducible and width * height <= MAX_JPEG_PIXELS):
        reason = f"{width} x {height} = {width * height // 10**6} megapixels; at most {MAX_PIXELS // 10**6} are decoded"
        raise BadImage(name, reason + ": store it smaller")
    if isinstance(image, JpegImageFile) and (large or at_least):
        scale = 8 if large or not at_least else max(1, min(width, height) // at_least)
        image.draft(None, (max(1, width // scale), max(1, height // scale)))


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I") or mode == "F":
        return Image.fromarray(_wide_grey(image)).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        paper = Image.new("RGB", image.size, (255, 255, 255))
        paper.paste(layer, mask=layer.getchannel("A"))
        return paper
    return image.convert("RGB")


def _wide_grey(image: Image.Image) -> np.ndarray:
    """16-bit, 32-bit and float gray -> uint8 [H, W], scaled by the value range of its type, or by its own if beyond."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        top = 1.0 if high <= 1 else 255.0
    else:
        top = 65535.0
    if low < 0 or high > top:
        values, top = values - low, max(high - low, 1e-12)
    return np.round(values * (255.0 / top)).astype(np.uint8)


def _upright(picture: Image.Image, source: Image.Image, orientation: int = 0) -> Image.Image:
    turn = _TURNS.get(orientation or _orientation(source))
    if turn is not None:
        return picture.transpose(turn)
    return picture.copy() if picture is source else picture


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF: the pixels are still readable
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, MemoryError):
        return "does not fit in memory"
    text = printable(" ".join(str(error).split()))[:160]
    return text or type(error).__name__
