"""Reading data sets against a bare loop over the libraries that do the decoding: what finding the layout, checking and
counting cost.

Every input is made in a temporary folder. One thread on both sides.
Run: python -m benchmarks.readers
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks._paired import Pair, arguments, paired, show
from sensorium.data.boxes.open import open_boxes
from sensorium.data.images.open import open_data
from sensorium.data.pairs.open import open_pairs
from sensorium.data.text.open import Bytes, open_text, tokens_of

WORDS = [
    "the",
    "quick",
    "brown",
    "fox,",
    "they",
    "say,",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "and",
    "runs",
    "away",
    "into",
    "the",
    "wood",
    "",
]


def picture(width: int, height: int, seed: int) -> Image.Image:
    """A smooth picture of colors."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def folder_of(root: Path, ending: str, count: int, width: int, height: int, **how: Any) -> Path:
    for i in range(count):
        path = root / f"class-{i % 5}" / f"{i}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(width, height, i).save(path, **how)
    return root


def decoded(root: Path) -> Callable[[], None]:
    def call() -> None:
        images = open_data(root).train
        for i in range(len(images)):
            images[i]

    return call


def bare(root: Path) -> Callable[[], None]:
    def call() -> None:
        for path in sorted(root.rglob("*.*")):
            with Image.open(path) as image:
                np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy()

    return call


def sentence(i: int) -> str:
    return " ".join(WORDS[(i * 7 + k) % len(WORDS)] for k in range(12))


def texts(root: Path) -> list[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    root.mkdir()
    plain, rows = root / "a.txt", root / "a.jsonl"
    plain.write_text("\n".join(sentence(i) for i in range(200_000)), "utf-8")
    rows.write_text("\n".join(json.dumps({"text": sentence(i)}) for i in range(50_000)), "utf-8")

    def tokens(path: Path) -> None:
        shutil.rmtree(root / "cache", ignore_errors=True)
        tokens_of(open_text(path).train, Bytes(), root / "cache", "train")

    def write(documents: list[bytes]) -> None:
        for document in documents:
            np.frombuffer(document, np.uint8).astype(np.uint16).tofile(root / "bare")

    return [
        ("text to tokens, 12 MB", lambda: tokens(plain), lambda: write([plain.read_bytes()])),
        (
            "JSONL to tokens, 50,000 rows",
            lambda: tokens(rows),
            lambda: write([b"".join(json.loads(line)["text"].encode() for line in rows.open("rb"))]),
        ),
    ]


def tables(root: Path) -> list[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    for i in range(500):
        path = root / "p" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(16, 16, i).save(path)
    labels, captions = root / "labels.csv", root / "c" / "captions.csv"
    captions.parent.mkdir()
    lines = [(f"p/{i % 500}.png", f"class-{i % 7}") for i in range(20_000)]
    labels.write_text("path,label\n" + "\n".join(",".join(line) for line in lines), "utf-8")
    quoted = "\n".join(f'../p/{i % 500}.png,"{sentence(i)}"' for i in range(20_000))
    captions.write_text("file,caption\n" + quoted, "utf-8")

    def read(path: Path) -> list[bool]:
        with path.open(encoding="utf-8", newline="") as file:
            return [(path.parent / row[0]).is_file() for row in csv.reader(file)]

    return [
        ("CSV of labels, 20,000 rows", lambda: open_data(labels), lambda: read(labels)),
        ("CSV of captions, 20,000 rows", lambda: open_pairs(captions.parent), lambda: read(captions)),
    ]


def boxes(root: Path) -> list[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    found = []
    for i in range(400):
        for part in ("images", "labels"):
            (root / "yolo" / part).mkdir(parents=True, exist_ok=True)
        picture(64, 48, i).save(root / "yolo" / "images" / f"{i}.jpg")
        (root / "yolo" / "labels" / f"{i}.txt").write_text(
            "".join(f"{(i + k) % 3} {0.3 + 0.04 * k:.2f} 0.5 0.2 0.3\n" for k in range(10))  # no box twice
        )
        found += [{"id": 10 * i + k, "image_id": i, "category_id": k % 3, "bbox": [k, 3, 20, 15]} for k in range(10)]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(400)]
    names = [{"id": i, "name": f"class-{i}"} for i in range(3)]
    (root / "yolo" / "data.yaml").write_text("names: [a, b, c]\n")
    coco = root / "coco"
    coco.mkdir()
    (coco / "images").symlink_to(root / "yolo" / "images")
    (coco / "annotations.json").write_text(json.dumps({"images": images, "annotations": found, "categories": names}))

    def read() -> None:
        for path in sorted((root / "yolo" / "images").iterdir()):
            with Image.open(path) as image:
                assert image.size
        for path in sorted((root / "yolo" / "labels").iterdir()):
            [[float(word) for word in line.split()] for line in path.read_text().splitlines()]

    return [
        ("YOLO, 400 pictures, 4,000 boxes", lambda: open_boxes(root / "yolo"), read),
        ("COCO, 400 pictures, 4,000 boxes", lambda: open_boxes(coco), read),
    ]


def shards(root: Path) -> list[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    root.mkdir()
    path = root / "a.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(2000):
            file = io.BytesIO()
            picture(16, 16, i).save(file, "PNG")
            for name, data in ((f"{i:05}.png", file.getvalue()), (f"{i:05}.cls", str(i % 3).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    def read() -> list[str]:
        with tarfile.open(path) as tar:
            return [member.name for member in tar]

    return [("tar, 2,000 pictures with labels", lambda: open_data(path), read)]


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    pairs: list[Pair] = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        sets = [
            ("1,000 PNG, 32 px", folder_of(root / "png", "png", 1000, 32, 32)),
            ("1,000 JPEG, 64 px", folder_of(root / "jpg", "jpg", 1000, 64, 64, quality=90)),
            ("40 JPEG, 1,280 x 960", folder_of(root / "photos", "jpg", 40, 1280, 960, quality=90)),
        ]
        rows = [(name, decoded(at), bare(at)) for name, at in sets]
        for name, at in sets[:1]:
            rows.append(
                (f"the folder of {name}, opened", lambda at=at: open_data(at), lambda at=at: sorted(at.rglob("*")))
            )
        for make in (texts, tables, boxes, shards):
            rows += make(root / make.__name__)
        for name, ours, theirs in rows:
            pairs.append(paired(name, ours, theirs, rounds=options.rounds, limit=10))
    show(pairs, as_json=options.json)


if __name__ == "__main__":
    main()
