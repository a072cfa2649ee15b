"""Small valid data with boxes, and what opens them, for :mod:`fuzz`: COCO, Pascal VOC, YOLO boxes and polygons,
metadata.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sensorium.data.boxes.open import open_boxes

_WIDTH, _HEIGHT = 24, 16


def _pictures(folder: Path, count: int = 2) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((_HEIGHT, _WIDTH, 3), 40 * i, np.uint8)).save(folder / name)
    return names


def coco(folder: Path) -> Path:
    """A COCO file with boxes, polygons and run lengths."""
    names = _pictures(folder / "images", 4)
    runs = {"size": [_HEIGHT, _WIDTH], "counts": [50, 40, _HEIGHT * _WIDTH - 90]}
    outlines = [[[2, 2, 9, 2, 9, 9]], runs, {"size": [_HEIGHT, _WIDTH], "counts": "b1X1^8"}, []]
    rows = [
        {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [2, 3, 8, 7], "area": 56, "iscrowd": i // 3,
         "segmentation": outlines[i]}
        for i in range(len(names))
    ]  # fmt: skip
    images = [{"id": i, "file_name": n, "width": _WIDTH, "height": _HEIGHT} for i, n in enumerate(names)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}), encoding="utf-8")
    return folder


def voc(folder: Path) -> Path:
    """Pascal VOC with lists of splits."""
    (folder / "Annotations").mkdir(parents=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    names = _pictures(folder / "JPEGImages", 3)
    box = "<bndbox><xmin>3</xmin><ymin>2</ymin><xmax>12</xmax><ymax>9.5</ymax></bndbox>"
    for name in names:
        (folder / "Annotations" / name).with_suffix(".xml").write_text(
            f'<?xml version="1.0" encoding="utf-8"?>\n<annotation><folder>x</folder><filename>{name}</filename><size>'
            f"<width>{_WIDTH}</width><height>{_HEIGHT}</height><depth>3</depth></size><object><name>cat</name>"
            f"<difficult>0</difficult>{box}</object></annotation>",
            encoding="utf-8",
        )
    for split, part in (("train", names[:2]), ("val", names[2:])):
        text = "".join(f"{Path(name).stem}\n" for name in part)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8")
    return folder


def _yolo(folder: Path, line: str, yaml: str) -> Path:
    for split in ("train", "val"):
        names = _pictures(folder / "images" / split)
        (folder / "labels" / split).mkdir(parents=True)
        for name in names:
            (folder / "labels" / split / name).with_suffix(".txt").write_text(line, encoding="utf-8")
    (folder / "data.yaml").write_text(yaml, encoding="utf-8")
    return folder


def yolo(folder: Path) -> Path:
    """YOLO boxes with data.yaml."""
    yaml = "path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames:\n  0: cat\n  1: dog\n"
    return _yolo(folder, "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.2 0.1 0.9\n", yaml)


def polygons(folder: Path) -> Path:
    """YOLO polygons and oriented boxes."""
    line = "0 0.1 0.1 0.9 0.1 0.9 0.9\n1 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n0 0.5 0.5 0.2 0.2\n"
    return _yolo(folder, line, 'names: &a ["cat", "dog"]\nothers: *a\nkpt: ~\n')


def pose(folder: Path) -> Path:
    """YOLO boxes with key points."""
    line = "0 0.5 0.5 0.2 0.2 0.45 0.45 2 0.55 0.45 1\n"
    return _yolo(folder, line, "kpt_shape: [2, 3]\nnames: [hand]\ntrain: images/train\nval: images/val\n")


def hub(folder: Path) -> Path:
    """A metadata.jsonl with objects in each folder of a split."""
    for split in ("train", "test"):
        objects = {
            "bbox": [[2, 3, 8, 7], [1.5, 2, 4, 4]],
            "categories": [0, "dog"],
            "area": [56, 16],
            "iscrowd": [0, 1],
        }
        row = {"width": _WIDTH, "height": _HEIGHT, "objects": objects}
        rows = [json.dumps({"file_name": name} | row) for name in _pictures(folder / split)]
        (folder / split / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def read(path: Path) -> object:
    """Everything: all boxes, and samples with their masks."""
    opened = open_boxes(path)
    for part in (opened.train, opened.test, opened.val):
        for i in range(0 if part is None else min(len(part), 4)):
            assert part is not None
            part[i]
            if part.masked:
                part.masks(i, (11, 7))
    return opened


SEEDS: dict[str, Callable[[Path], Path]] = {
    "boxes_coco": coco, "boxes_voc": voc, "boxes_yolo": yolo, "boxes_polygons": polygons, "boxes_pose": pose,
    "boxes_hub": hub,
}  # fmt: skip
OPEN: dict[str, Callable[[Path], object]] = dict.fromkeys(SEEDS, read)
