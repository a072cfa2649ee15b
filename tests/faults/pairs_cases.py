"""What the tests of tables, shards and captions share."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def pictures(folder: Path, count: int, ending: str = ".png", start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        (folder / f"{i}{ending}").write_bytes(png(i))


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def labels(opened) -> dict[str, str | None]:
    """Class by image name, over all sets."""
    found = {}
    for images in (opened.train, opened.test, opened.val):
        for i in range(0 if images is None else len(images)):
            number = -1 if images.labels is None else images.labels[i]
            found[images.names[i]] = images.classes[number] if number >= 0 else None
    return found


def texts(opened) -> list[str]:
    return sorted(
        text for pairs in (opened.train, opened.test, opened.val) if pairs is not None for text in pairs.texts
    )


def said(opened) -> str:
    return " ".join(opened.notes)
