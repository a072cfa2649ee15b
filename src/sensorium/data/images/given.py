"""Pictures that a caller of the Python interface gives: a path, a Pillow image, a uint8 tensor or array."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from torch import Tensor

from sensorium.base.reading import printable
from sensorium.data.images import decode
from sensorium.data.images.values import Scale, to_eight
from sensorium.errors import SensoriumError

Picture = str | PathLike[str] | Image.Image | Tensor | np.ndarray
KINDS = "a path, a Pillow image, a uint8 (or uint16) tensor [3, H, W] or array [H, W, 3]"


class Given(NamedTuple):
    """``image``: RGB, upright. ``size``: (height, width) of the picture; of more than 100 megapixels, ``image`` is a
    reduced copy."""

    image: Image.Image
    size: tuple[int, int]


def given(picture: Any, scale: Scale | None = None) -> Given:
    """A picture as RGB, by whichever way it comes the same. ``scale``: of more than 8 bits; by default its own values'.
    Raises SensoriumError for what isn't one."""
    if isinstance(picture, (str, PathLike)):
        return _of_file(Path(picture), scale)
    if isinstance(picture, Image.Image):
        # Of one that is opened and not loaded, the file has all there is: 16 bits a color, the orientation.
        if isinstance(picture, ImageFile) and picture.tile and Path(name := str(picture.filename)).is_file() and name:
            return _of_file(Path(name), scale)
        image = _of_pillow(picture, scale)
    else:
        image = _of_values(picture, scale)
    return Given(image, (image.height, image.width))


def is_one(pictures: Any) -> bool:
    """Whether ``pictures`` is one picture rather than a sequence of them."""
    if isinstance(pictures, (Tensor, np.ndarray)):
        return pictures.ndim < 4
    return not isinstance(pictures, Sequence) or isinstance(pictures, (str, bytes))


def given_file(source: bytes | Path, name: str, scale: Scale | None = None) -> Given:
    """An image file, by its path or its bytes. Raises BadImage that has the name."""
    image = decode.rgb(source, name, scale=scale)
    size = (image.height, image.width)
    if 64 * image.height * image.width > decode.MAX_PIXELS:  # it may have been reduced eight times
        width, height, _ = decode.header(source, name)
        size = height, width
    return Given(image, size)


def _of_file(path: Path, scale: Scale | None) -> Given:
    return given_file(path, printable(str(path)), scale)


def _of_pillow(image: Image.Image, scale: Scale | None) -> Image.Image:
    try:
        if image.mode.startswith("I") or image.mode == "F":
            return decode.upright(Image.fromarray(to_eight(np.asarray(image), scale)), image)
        return decode.upright(image, image)
    except (OSError, ValueError, SyntaxError) as error:
        raise SensoriumError(f"the picture can't be decoded: {error}.") from None


def _of_values(values: Any, scale: Scale | None) -> Image.Image:
    if isinstance(values, Tensor):
        shape, values = list(values.shape), values.detach().cpu().numpy()
        values = values.transpose(1, 2, 0) if values.ndim == 3 else values
    elif isinstance(values, np.ndarray):
        shape = list(values.shape)
    else:
        raise SensoriumError(f"a picture is {KINDS}; this is a {type(values).__name__}.")
    gray = values.ndim == 2 or (values.ndim == 3 and values.shape[2] == 1)
    if values.dtype == np.uint16:
        values = to_eight(values, scale)
    if values.dtype != np.uint8 or not (gray or (values.ndim == 3 and values.shape[2] == 3)) or not values.size:
        raise SensoriumError(f"a picture is {KINDS}; this one is {values.dtype} {shape}.")
    return Image.fromarray(np.ascontiguousarray(values.reshape(values.shape[:2]) if gray else values)).convert("RGB")
