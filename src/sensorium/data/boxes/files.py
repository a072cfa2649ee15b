"""Finding the layout of detection data: COCO JSON (:mod:`coco`), Pascal VOC XML (:mod:`voc`), YOLO text (:mod:`yolo`)."""

from __future__ import annotations

from pathlib import Path

from sensorium.base.reading import printable
from sensorium.data.boxes.coco import read_coco
from sensorium.data.boxes.listed import Sets
from sensorium.data.boxes.places import Scan, unwrapped
from sensorium.data.boxes.voc import read_voc
from sensorium.data.boxes.yolo import read_yolo
from sensorium.data.log import Log
from sensorium.errors import SensoriumError

_LOOKED_FOR = (
    "COCO (a .json with images, annotations and categories), Pascal VOC (.xml files, or folders Annotations and "
    "JPEGImages) and YOLO (folders images and labels, or .txt files beside the images)"
)


def find_boxes(path: Path, log: Log, classes: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...], Sets]:
    """(layout, classes, splits) of a JSON or data.yaml file, or of a folder. ``classes``: those of numbers, where the
    files have no names. Raises SensoriumError if the layout is unknown."""
    where = printable(str(path))
    try:
        if not path.exists():
            raise SensoriumError(f"there is nothing at '{where}'. Give one of {_LOOKED_FOR}.")
        config = path if path.suffix.lower() in (".yaml", ".yml", ".data") and path.is_file() else None
        if not path.is_dir() and config is None and not path.name.lower().endswith((".json", ".json.gz")):
            raise SensoriumError(f"'{where}' has no boxes in a known format. Give one of {_LOOKED_FOR}.")
        folder = unwrapped(path, log) if path.is_dir() else path
        if config is None and (found := read_coco(folder, log)):
            return "COCO json", *found
        scan = Scan(folder if config is None else config.parent, log)
        if config is None and (found := read_voc(scan, log)):
            return _with_training("Pascal VOC", found, where)
        if found := read_yolo(scan, log, classes, config):
            return _with_training("YOLO text", found, where)
    except OSError as error:
        raise SensoriumError(f"'{where}' cannot be read ({error.strerror or error}).") from None
    raise SensoriumError(f"'{where}' has no boxes. Looked for {_LOOKED_FOR}.")


def _with_training(layout: str, found: tuple[tuple[str, ...], Sets], where: str) -> tuple[str, tuple[str, ...], Sets]:
    if "train" not in found[1]:
        raise SensoriumError(f"'{where}': no training images; there are {', '.join(found[1])}.")
    return layout, *found
