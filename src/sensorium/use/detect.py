"""Detecting objects in pictures with a run or a published detector.

    boxes = detect("sensorium-runs/fcos", "street.jpg")          # [Box(left=12.1, top=..., score=0.93, name="car"), ...]
    of_each = detect(run, ["a.jpg", pillow_image, uint8_tensor])    # a list of boxes for each

Every way to a picture is prepared by :mod:`sensorium.data.boxes.seen`, as it is when a run is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, overload

from torch import Tensor

from sensorium.base.precision import device_name
from sensorium.data.boxes.seen import Sight
from sensorium.data.images.given import Given, Picture, given, is_one
from sensorium.data.images.values import Scale
from sensorium.errors import SensoriumError
from sensorium.pictures.boxes import class_name
from sensorium.recipe.boxes import sight_of
from sensorium.runs.run import Run
from sensorium.use.able import able

THRESHOLD = 0.3


class Box(NamedTuple):
    """A detected object: its edges in pixels of the picture, its score in 0..1, and its class by name and number."""

    left: float
    top: float
    right: float
    bottom: float
    score: float
    name: str
    label: int


@dataclass(frozen=True)
class Finder:
    """A detector ready for pictures. ``classes``: names by label, () if unknown; ``sight``: how it sees a picture;
    ``first``: the category id of class 0; ``scale``: of a run's 16-bit and float images."""

    method: Any
    classes: tuple[str, ...]
    sight: Sight
    first: int
    scale: Scale | None = None

    def find(self, picture: Picture | Given, threshold: float = THRESHOLD) -> dict[str, Tensor]:
        """A picture of any size -> ``boxes`` xyxy [N, 4] in its pixels, ``scores`` [N], descending, ``labels`` [N]."""
        one = picture if isinstance(picture, Given) else given(picture, self.scale)
        device = next(self.method.parameters()).device
        return self.sight.find(self.method, [self.sight.look(one.image, one.size)], threshold, device)[0]

    def boxes(self, found: dict[str, Tensor]) -> list[Box]:
        """Detections as :class:`Box`, the highest score first."""
        rows = zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
        return [
            Box(edges[0], edges[1], edges[2], edges[3], score, class_name(self.classes, label), label)
            for edges, score, label in rows
        ]


@overload
def detect(run: Any, pictures: Picture, threshold: float = THRESHOLD) -> list[Box]: ...
@overload
def detect(run: Any, pictures: Sequence[Picture], threshold: float = THRESHOLD) -> list[list[Box]]: ...
def detect(run: Any, pictures: Any, threshold: float = THRESHOLD) -> list[Box] | list[list[Box]]:
    """The objects in a picture, best first, in its own pixels; of a sequence of pictures, a list for each.

    run: a run, its folder, a detector, or a checkpoint's path. pictures: paths, Pillow images, uint8 tensors [3, H, W] or
    uint8 arrays [H, W, 3]; they may differ in size. threshold: minimum score. Raises SensoriumError, in one line.
    """
    checked(threshold)
    finder = open_finder(run)
    if is_one(pictures):
        return finder.boxes(finder.find(pictures, threshold))
    return [finder.boxes(finder.find(one, threshold)) for one in pictures]


def checked(threshold: float) -> float:
    """A minimum score. Raises SensoriumError unless it is from 0 to 1."""
    if not 0 <= threshold <= 1:
        raise SensoriumError(f"--threshold {threshold}: must be from 0 to 1.")
    return threshold


def open_finder(run: Any) -> Finder:
    """A detector from a run, its folder, a network, or a checkpoint's path. Raises SensoriumError for anything else."""
    from sensorium.use import load

    path = isinstance(run, (str, PathLike))
    thing = load(Path(run)) if path else run
    method = able(thing, "detect", Path(run) if path else "")
    method = method.to(device_name()).eval()  # type: ignore[attr-defined]
    if isinstance(thing, Run):
        return Finder(method, thing.situation.classes, sight_of(method, thing.situation), 1, thing.situation.scale)
    mean, std = method.normalization
    return Finder(method, method.class_names, Sight(mean, std, method.sides, method.divisor), 0)
