"""Finding the layout of detection data: COCO JSON (:mod:`coco`), Pascal VOC XML (:mod:`voc`), YOLO text (:mod:`yolo`),
columns of boxes as on the Hugging Face hub (:mod:`hub`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sensorium.base.reading import printable
from sensorium.data.boxes.coco import read_coco
from sensorium.data.boxes.hub import may_be_hub, read_hub
from sensorium.data.boxes.listed import Sets
from sensorium.data.boxes.places import Scan, unwrapped
from sensorium.data.boxes.voc import read_voc
from sensorium.data.boxes.yolo import read_yolo
from sensorium.data.log import Log
from sensorium.errors import NothingOfItsKind, SensoriumError

HUB = "Hugging Face objects"
_LOOKED_FOR = (
    "COCO (a .json with images, annotations and categories), Pascal VOC (.xml files, or folders Annotations and "
    "JPEGImages), YOLO (folders images and labels, or .txt files beside the images) and the Hugging Face hub's objects "
    "(a .parquet or metadata.jsonl with a column of bbox and category)"
)


def find_boxes(path: Path, log: Log, classes: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...], Sets]:
    """(layout, classes, splits) of a JSON or data.yaml file, or of a folder. ``classes``: those of numbers, where the
    files have no names. Raises SensoriumError if the layout is unknown."""
    where = printable(str(path))
    try:
        if not path.exists():
            raise SensoriumError(f"there is nothing at '{where}'. Give one of {_LOOKED_FOR}.")
        if path.is_file() and path.name.lower().endswith((".parquet", ".jsonl", ".jsonl.gz")):
            if found := read_hub([path], path.parent, [], log):
                return HUB, *found
            raise NothingOfItsKind(f"'{where}' has no column of boxes. Give one of {_LOOKED_FOR}.")
        config = path if path.suffix.lower() in (".yaml", ".yml", ".data") and path.is_file() else None
        if not path.is_dir() and config is None and not path.name.lower().endswith((".json", ".json.gz")):
            raise NothingOfItsKind(f"'{where}' has no boxes in a known format. Give one of {_LOOKED_FOR}.")
        folder = unwrapped(path, log) if path.is_dir() else path
        failed: SensoriumError | None = None
        if config is None:
            try:
                if found := read_coco(folder, log):
                    return "COCO json", *found
            except SensoriumError as error:
                if path.is_file():
                    raise
                failed = error
        for layout, found in _texts(folder if config is None else config.parent, log, classes, config):
            if failed is not None:
                log.notes.append(f"{failed} It is passed over.")
            if "train" not in found[1]:
                raise SensoriumError(f"'{where}': no training images; there are {', '.join(found[1])}.")
            return layout, *found
        if failed is not None:
            raise SensoriumError(f"'{where}' has no boxes. {failed} Looked for {_LOOKED_FOR}.")
    except OSError as error:
        raise SensoriumError(f"'{where}' cannot be read ({error.strerror or error}).") from None
    raise NothingOfItsKind(f"'{where}' has no boxes. Looked for {_LOOKED_FOR}.")


def _texts(
    folder: Path, log: Log, classes: tuple[str, ...], config: Path | None
) -> Iterator[tuple[str, tuple[tuple[str, ...], Sets]]]:
    """(layout, (classes, splits)) of the layouts with one text for each picture."""
    scan = Scan(folder, log)
    of_hub = [file for file in scan.others if may_be_hub(file)] if config is None else []
    if of_hub and (found := read_hub(of_hub, scan.root, scan.pictures, log)):
        yield HUB, found
        return
    if config is None and (found := read_voc(scan, log)):
        yield "Pascal VOC", found
    elif found := read_yolo(scan, log, classes, config):
        yield "YOLO text", found
