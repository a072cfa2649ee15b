"""The classes of new pictures, by a trained classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sensorium.base.precision import device_name
from sensorium.base.terminal import bar
from sensorium.base.words import counted
from sensorium.data.images.cache import squares
from sensorium.data.images.decode import to_array
from sensorium.data.images.gathered import picture_files, pictures_at
from sensorium.data.images.given import given
from sensorium.data.images.prepare import Situation
from sensorium.data.images.sets import ArrayImages, ImageSet
from sensorium.data.images.values import Scale
from sensorium.errors import SensoriumError
from sensorium.judge.classes import Logits, temperature_of
from sensorium.judge.encode import judged, normalised
from sensorium.runs.run import Run
from sensorium.use.able import able
from sensorium.use.tables import write_table

BATCH = 64
COUNTED = 8  # pictures that are named in a message


@dataclass(frozen=True)
class Prediction:
    """The ``classes`` of a ``picture``, the likeliest first, with their ``probabilities``; none if it could not be
    read, for the reason ``problem``. ``folder``: the name of the folder that it lies in."""

    picture: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str = ""
    folder: str = ""

    @property
    def doubt(self) -> float:
        """1 if the two likeliest classes are equally likely, 0 if one is certain."""
        first, second = (*self.probabilities, 0.0, 0.0)[:2]
        return 1.0 if self.problem else 1.0 - (first - second)


def predict(run: str | Path | Run, pictures: Any, *, top: int = 2, progress: bool = False) -> list[Prediction]:
    """The ``top`` likeliest classes of each picture. ``pictures``: a path or several, of pictures, folders of them or
    data sets (all of their images); PIL images; or a tensor uint8 [B, 3, H, W].

    Pictures are prepared as for training. The probabilities are those at the temperature that was fitted when the run
    was judged. Raises SensoriumError for a run that is no classifier, and for a path without pictures.
    """
    found = run if isinstance(run, Run) else Run(run)
    with bar("predicting", progress) as advance:
        return list(_predicted(found, _sets(pictures, _classifier(found)[1].scale), top, advance))


def predict_images(run: Run, images: ImageSet, *, top: int = 2) -> list[Prediction]:
    """Predictions for a set of images, as :func:`predict` makes them."""
    return list(_predicted(run, [images], top, None))


def predict_lines(run: Run, paths: Iterable[str], *, top: int = 2) -> Iterator[Prediction]:
    """Predictions for the pictures whose paths come one at a time, each as soon as it comes."""
    scale = _classifier(run)[1].scale
    for path in paths:
        if name := path.rstrip("\r\n"):
            yield from _predicted(run, [picture_files([Path(name)], scale)], top, None)


def _predicted(
    run: Run, sets: Sequence[ImageSet], top: int, advance: Callable[[int, int], None] | None
) -> Iterator[Prediction]:
    method, on, heat = _classifier(run)
    total, done, device = sum(map(len, sets)), 0, device_name()
    top = at_most(run, top)
    for images in sets:
        names, at = images.names, 0
        with judged(Logits(method), device):
            for block, bad in squares(images, on.image_size):
                failed = {index: error.reason for index, error in bad}
                probabilities = _probabilities(method, block, on, heat, device)
                rows = iter(zip(*(part.tolist() for part in probabilities.topk(top)), strict=True))
                for index in range(at, at + len(block) + len(bad)):
                    name = str(names[index])
                    if index in failed:
                        yield Prediction(name, problem=failed[index], folder=_folder(name))
                        continue
                    values, places = next(rows)
                    yield Prediction(name, tuple(on.classes[k] for k in places), tuple(values), folder=_folder(name))
                at += len(block) + len(bad)
                done += len(block) + len(bad)
                if advance is not None:
                    advance(done, total)


def _probabilities(method: Any, block: np.ndarray, on: Situation, heat: float, device: str) -> Tensor:
    parts = [torch.zeros(0, method.classes)]
    for start in range(0, len(block), BATCH):
        images = torch.from_numpy(np.array(block[start : start + BATCH])).to(device)
        parts.append(method.logits(normalised(images, on.mean, on.std)).float().cpu())
    return (torch.cat(parts) / heat).softmax(dim=1)


def _classifier(run: Run) -> tuple[Any, Situation, float]:
    """The run's method, its situation and its temperature."""
    return able(run, "predict", run.folder), run.situation, temperature_of(run.folder) or 1.0


def at_most(run: Run, top: int) -> int:
    """``top``, or the number of the run's classes if that is less. Raises SensoriumError if it is no classifier."""
    return max(1, min(top, _classifier(run)[0].classes))


def _folder(name: str) -> str:
    return Path(name).parent.name


def _sets(pictures: Any, scale: Scale | None) -> list[ImageSet]:
    """Sets of images of whatever was given; ``scale``: of 16-bit and float images, as in training."""
    if isinstance(pictures, str | Path | Image.Image):
        pictures = [pictures]
    if isinstance(pictures, Tensor | np.ndarray):
        values = np.asarray(pictures)
        if values.ndim != 4 or values.shape[1] != 3 or values.dtype != np.uint8:
            raise SensoriumError(f"predict needs pictures uint8 [B, 3, H, W], not {values.dtype} {list(values.shape)}.")
        return [ArrayImages(values.transpose(0, 2, 3, 1), [f"picture {k}" for k in range(len(values))])]
    found: list[ImageSet] = []
    for k, one in enumerate(pictures):
        if isinstance(one, Image.Image):
            found.append(ArrayImages(to_array(given(one, scale).image).transpose(1, 2, 0)[None], [f"picture {k}"]))
        else:
            found += pictures_at(str(one), scale)
    return found


def columns(top: int) -> list[str]:
    """Names of the columns of a table of predictions."""
    more = [name for k in range(2, top + 1) for name in (f"class_{k}", f"probability_{k}")]
    return ["picture", "class", "probability", *more, "problem"]


def row(one: Prediction, top: int) -> list[Any]:
    """A row of the table."""
    pairs = [value for pair in zip(one.classes, one.probabilities, strict=True) for value in pair]
    return [one.picture, *pairs, *[None] * (2 * top - len(pairs)), one.problem or None]


def write(found: Sequence[Prediction], top: int, out: Path) -> Path:
    """Write the table as CSV, JSON, JSON lines or Parquet, by the ending of ``out``."""
    names = columns(top)
    numbers = [name for name in names if name.startswith("probability")]
    return write_table(out, names, [row(one, top) for one in found], numbers=numbers)


def told(found: Sequence[Prediction], run: Run) -> str:
    """What a person wants to know of the predictions."""
    read = [one for one in found if not one.problem]
    broken = [one for one in found if one.problem]
    lines = [counted(len(read), "picture")]
    counts = {name: sum(one.classes[0] == name for one in read) for name in run.situation.classes}
    often = sorted(((n, name) for name, n in counts.items() if n), key=lambda one: -one[0])
    lines[0] += ": " + ", ".join(f"{n:,} {name}" for n, name in islice(often, 12)) if often else ""
    lines[0] += f" and {len(often) - 12} more classes" if len(often) > 12 else ""
    if read and all(one.folder in run.situation.classes for one in read):
        right = sum(one.classes[0] == one.folder for one in read)
        lines.append(f"{right:,} of {len(read):,} ({right / len(read):.2%}) are of the class of the folder they lie in")
    if broken:
        names = "; ".join(f"{one.picture}: {one.problem}" for one in broken[:COUNTED])
        more = f"; and {len(broken) - COUNTED:,} more" if len(broken) > COUNTED else ""
        lines.append(f"{len(broken):,} could not be read: {names}{more}")
    if temperature_of(run.folder) is None:
        lines.append(f"The probabilities are not calibrated; `sensorium evaluate {run.folder}` does it.")
    return "\n".join(lines)
