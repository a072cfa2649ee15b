"""Tables, shards and captions for the mutation harness: valid inputs, and readers that take all of one.

The harness changes bytes of the files that a seed wrote; a reader must return, or raise SensoriumError.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sensorium.data.images.decode import BadImage
from sensorium.data.images.open import open_data
from sensorium.data.pairs.open import open_pairs

_COUNT = 6


def _png(number: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(_COUNT):
        (folder / f"{number}.png").write_bytes(_png(number))


def _text(name: str, head: str, row: Callable[[int], str]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        _pictures(folder)
        data = "\n".join([*([head] if head else []), *(row(number) for number in range(_COUNT))]).encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return folder / name

    return write


def _parquet(columns: Callable[[], dict[str, list]]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        _pictures(folder)
        pq.write_table(pa.table(columns()), folder / "a.parquet", row_group_size=4)
        return folder / "a.parquet"

    return write


def _tar(*annotations: Callable[[int], tuple[str, bytes]]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / "a.tar", "w") as archive:
            for number in range(_COUNT):
                for name, data in (("png", _png(number)), *(make(number) for make in annotations)):
                    info = tarfile.TarInfo(f"{number:04d}.{name}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        return folder / "a.tar"

    return write


def _coco(folder: Path) -> Path:
    _pictures(folder)
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(_COUNT)]
    captions = [{"image_id": n, "id": n, "caption": f"picture {n}"} for n in range(_COUNT)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}), encoding="utf-8")
    return folder / "captions.json"


def _cells() -> list[dict]:
    return [{"bytes": _png(n), "path": f"{n}.png"} for n in range(_COUNT)]


_WORDS = [f"picture {n}, of noise" for n in range(_COUNT)]
_FILES = [f"{n}.png" for n in range(_COUNT)]
_LABELS = [n % 2 for n in range(_COUNT)]

IMAGES: dict[str, Callable[[Path], Path]] = {
    "csv of images": _text("a.csv", "path,label,split", lambda n: f"{n}.png,{n % 2},{'test' if n > 4 else 'train'}"),
    "csv.gz of images": _text("a.csv.gz", "path,label", lambda n: f'{n}.png,"class {n % 2}"'),
    "csv without header": _text("a.csv", "", lambda n: f"{n}.png,{n % 2}"),
    "parquet of bytes": _parquet(lambda: {"image": _cells(), "label": _LABELS}),
    "parquet of paths": _parquet(lambda: {"path": _FILES, "label": _LABELS, "text": _WORDS}),
    "tar with cls": _tar(lambda n: ("cls", b"%d" % (n % 2))),
    "tar with json": _tar(lambda n: ("json", json.dumps({"label": n % 2, "caption": "words"}).encode())),
}
CAPTIONS: dict[str, Callable[[Path], Path]] = {
    "tar with txt": _tar(lambda n: ("txt", _WORDS[n].encode())),
    "tar with captions in json": _tar(lambda n: ("json", json.dumps({"caption": [_WORDS[n], "more"]}).encode())),
    "captions csv": _text("captions.csv", "image,caption", lambda n: f'{n}.png,"{_WORDS[n]}"'),
    "captions tsv of numbers": _text("captions.txt", "", lambda n: f"{n}.png#0\t{_WORDS[n]}"),
    "captions jsonl": _text(
        "a.jsonl", "", lambda n: json.dumps({"file_name": f"{n}.png", "caption": [_WORDS[n]], "split": "train"})
    ),
    "captions json of COCO": _coco,
    "captions parquet": _parquet(lambda: {"image": _FILES, "caption_0": _WORDS, "caption_1": _WORDS[::-1]}),
    "captions parquet of bytes": _parquet(lambda: {"image": _cells(), "caption": [[words] for words in _WORDS]}),
}


def _read_images(path: Path) -> object:
    opened = open_data(path)
    count = 0
    for images in (opened.train, opened.test, opened.val):
        for index in range(0 if images is None else len(images)):
            try:
                assert images is not None
                count += images[index]["image"].shape[0] == 3
            except BadImage:
                continue
    return opened, count


def _read_pairs(path: Path) -> object:
    opened = open_pairs(path)
    skipped = list(opened.skipped)
    return [list(pairs.readable(skipped)) for pairs in (opened.train, opened.test, opened.val) if pairs is not None]


SEEDS: dict[str, Callable[[Path], Path]] = IMAGES | CAPTIONS
OPEN: dict[str, Callable[[Path], object]] = dict.fromkeys(IMAGES, _read_images) | dict.fromkeys(CAPTIONS, _read_pairs)
