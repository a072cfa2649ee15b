"""Detecting objects with a run or a published detector: boxes are drawn, and written as COCO JSON.

``detections.json`` is a list in COCO's results format, ``{"image_id", "category_id", "bbox": [left, top, width,
height], "score"}`` in pixels of the original image, plus ``file_name`` and ``category``. Images are numbered from 1 in
the order given. The classes of a run are numbered from 1; a published detector has its own numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sensorium.abilities import Detector
from sensorium.base.files import check_writable, unlinked, write_json
from sensorium.base.precision import device_name
from sensorium.base.reading import printable
from sensorium.base.terminal import bar
from sensorium.base.words import counted
from sensorium.catalogue import a_run_of
from sensorium.data.augment.boxes import collate, to_original
from sensorium.data.images.decode import EXTENSIONS, BadImage, rgb, to_array
from sensorium.data.images.folders import Files
from sensorium.data.images.sets import EncodedImages, measure
from sensorium.data.images.values import Scale
from sensorium.data.log import Log
from sensorium.data.names import files_below
from sensorium.data.output import check_place, lies_in
from sensorium.errors import SensoriumError
from sensorium.pictures.boxes import class_name, with_boxes
from sensorium.pictures.images import save_picture
from sensorium.recipe.boxes import divisor_of
from sensorium.recipe.info import data_of
from sensorium.runs.run import Run

NAMED = 5  # skipped images that are listed by name


@dataclass(frozen=True)
class Finder:
    """A detector, and what it needs to read images.

    ``sides``: images are resized so that the shorter one has ``sides[0]`` pixels, unless the longer one would have
    more than ``sides[1]``. ``classes``: names by label, () if unknown; ``first``: the category id of class 0;
    ``scale``: of a run's 16-bit and float images.
    """

    method: Any
    classes: tuple[str, ...]
    mean: Sequence[float]
    std: Sequence[float]
    sides: tuple[int, int]
    first: int
    scale: Scale | None = None

    def find(self, image: Tensor, threshold: float = 0.3) -> dict[str, Tensor]:
        """uint8 [3, H, W] of any size -> ``boxes`` xyxy [N, 4] in its pixels, ``scores`` [N], descending,
        ``labels`` [N]."""
        height, width = (int(n) for n in image.shape[1:])
        factor = min(self.sides[0] / min(height, width), self.sides[1] / max(height, width))
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        shown = image
        if size != (width, height):
            resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BILINEAR)
            shown = torch.from_numpy(to_array(resized))
        sample = {"image": shown, "boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "crowd": torch.zeros(0)}
        divisor = divisor_of(self.method, max(self.sides))
        batch = collate([sample | {"original": torch.tensor([height, width])}], self.mean, self.std, divisor=divisor)
        device = next(self.method.parameters()).device
        with torch.no_grad():
            found = self.method.detect(batch["image"].to(device), threshold, sizes=batch["sizes"])
        result = to_original([{k: v.cpu() for k, v in one.items()} for one in found], batch)[0]
        limits = torch.tensor([width, height, width, height], dtype=result["boxes"].dtype)
        return result | {"boxes": torch.minimum(result["boxes"].clamp(min=0), limits)}


def open_finder(run: Path) -> Finder:
    """Load a detector: a run of one, or a published one. Raises SensoriumError for anything else."""
    from sensorium.use import load

    thing = load(run)
    method: Any = thing.method if isinstance(thing, Run) else thing
    if not isinstance(method, Detector):
        raise SensoriumError(f"'{run}' isn't a detector; `sensorium detect` needs {a_run_of('Detector')}.")
    method = method.to(device_name()).eval()  # type: ignore[attr-defined]
    if isinstance(thing, Run):
        on = thing.situation
        return Finder(method, on.classes, on.mean, on.std, (on.image_size, on.image_size), 1, on.scale)
    mean, std = method.normalization
    return Finder(method, method.class_names, mean, std, method.sides, 0)


def detect(run: Path, images: Sequence[Path], *, threshold: float, out: Path | None) -> str:
    """Draw the objects of ``images`` (files, or folders of them) into copies in the folder ``out``, and write
    ``detections.json`` there; returns lines that list what was found, and which images could not be read."""
    if not 0 <= threshold <= 1:
        raise SensoriumError(f"--threshold {threshold}: must be from 0 to 1.")
    target = out or (run if run.is_dir() else run.parent) / "found"
    if out is None:
        check_place(target, folder=True)
    else:
        # The folder of a single picture counts, too, as the drawn copy of a PNG would replace it.
        beside = [one.parent for one in images if not one.is_dir() and lies_in(one.parent, target)]
        check_place(target, *(one for one in images if one.is_dir()), *beside, *data_of(run), folder=True)
    check_writable(target / "detections.json")
    wanted = pictures_of(images, target)
    finder = open_finder(run)
    if out is None:
        unlinked(target)
    files = EncodedImages(Files([str(path) for path in wanted]), [path.name for path in wanted])
    scale, scaled = measure([files], finder.scale)
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    names: set[str] = set()
    with bar("detecting", True) as advance:
        for number, path in enumerate(wanted, 1):
            try:
                image = rgb(path, printable(str(path)), scale=scale)
            except BadImage as bad:
                skipped.append(f"skipped {bad.name}: {bad.reason}")
            else:
                found = finder.find(torch.from_numpy(to_array(image)), threshold)
                rows += rows_of(found, finder, number, path.name)
                _draw(image, found, finder, target / _free(path.stem, names))
            if advance is not None:
                advance(number, len(wanted))
    if len(skipped) == len(wanted):
        which = "the picture cannot" if len(wanted) == 1 else f"none of {len(wanted):,} pictures can"
        raise SensoriumError(f"{which} be read: {skipped[0].removeprefix('skipped ')}.")
    write_json(target / "detections.json", rows)
    lines = _told(rows, len(wanted) - len(skipped), skipped, target)
    return "\n".join([*filter(None, [scaled]), *lines])


def pictures_of(paths: Sequence[Path], out: Path | None = None) -> list[Path]:
    """The image files among ``paths`` and in folders of them, in order, each once; files in ``out`` are left
    out."""
    if not paths:
        raise SensoriumError("give pictures, or folders of them: sensorium detect RUN PICTURES")
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            files = list(_below(path, out))
            if not files:
                raise SensoriumError(f"there is no picture in '{printable(str(path))}'.")
        elif path.is_file():
            files = [path]
        else:
            raise SensoriumError(f"there is no picture or folder '{printable(str(path))}'.")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def rows_of(found: dict[str, Tensor], finder: Finder, number: int, name: str) -> list[dict[str, Any]]:
    """Detections of one image in COCO's results format."""
    rows = []
    for box, label, score in zip(
        found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
    ):
        x1, y1, x2, y2 = box
        bbox = [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
        row = {"image_id": number, "category_id": label + finder.first, "bbox": bbox, "score": round(score, 5)}
        rows.append(row | {"file_name": name, "category": class_name(finder.classes, label)})
    return rows


def _below(folder: Path, out: Path | None) -> Iterator[Path]:
    left = None if out is None else out.resolve()
    for path in files_below(folder, Log()):
        own = left is not None and path.resolve().is_relative_to(left)
        if path.suffix.lower() in EXTENSIONS and not own and path.is_file():
            yield path


def _draw(image: Image.Image, found: dict[str, Tensor], finder: Finder, path: Path) -> None:
    drawn = with_boxes(
        image, found["boxes"].tolist(), found["labels"].tolist(), finder.classes, found["scores"].tolist()
    )
    save_picture(drawn, path)


def _free(stem: str, taken: set[str]) -> str:
    """A unique file name for a drawn image."""
    name, n = f"{stem}.png", 1
    while name.lower() in taken:
        n += 1
        name = f"{stem}-{n}.png"
    taken.add(name.lower())
    return name


def _told(rows: list[dict[str, Any]], count: int, skipped: list[str], target: Path) -> list[str]:
    each = Counter(row["category"] for row in rows).most_common(8)
    of = f": {', '.join(f'{n:,} {printable(name)}' for name, n in each)}" if each else ""
    lines = [f"{counted(len(rows), 'object')} in {counted(count, 'picture')}{of}", *skipped[:NAMED]]
    if len(skipped) > NAMED:
        lines.append(f"... {len(skipped):,} pictures were skipped in all")
    return [*lines, f"{printable(str(target))}/detections.json"]
