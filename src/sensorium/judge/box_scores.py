"""Evaluation of detectors: COCO's average precision, a baseline that ignores the image, and images with most misses.

Images to look at are written to ``RUN/pictures/``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sensorium.base.precision import device_name
from sensorium.base.terminal import bar
from sensorium.base.words import counted, plural
from sensorium.data.boxes.cache import Boxed
from sensorium.data.boxes.prepare import Prepared
from sensorium.data.images.decode import BadImage
from sensorium.errors import SensoriumError
from sensorium.judge.box_baseline import constant_boxes, placed
from sensorium.judge.boxes import detections
from sensorium.judge.coco_ap import SIZES, coco_ap, misses
from sensorium.judge.cost import parameters
from sensorium.judge.evaluator import Kept
from sensorium.judge.score import Asked, Judgement, Picture, Score, Trained
from sensorium.pictures.boxes import beside, enlarged, sheet, with_boxes
from sensorium.pictures.images import save_picture
from sensorium.recipe.boxes import sight_of

SHOWN = 8
SURE = 0.3  # minimum score of a drawn detection
ALONE = 1000  # maximum number of images with an AP of their own
ROUNDS, RESAMPLED = 20, 500  # bootstrap resamples, and images in each, for the standard error
BASELINE = "same boxes everywhere"


def judge(run: Trained, ready: Prepared, asked: Asked, kept: Kept) -> Judgement:
    """AP of the test images (of the training images if there is no test set), standard error, baseline and images."""
    held = ready.held
    check_classes(run, held)
    if "pictures" not in kept.pieces:
        with bar("judging", asked.progress) as advance:
            sight = sight_of(run.method, run.situation)
            seen, truth, _ = detections(run.method, held, sight, device=device_name(), progress=advance)
        kept.outcomes["AP"] = each_picture(seen, truth, held.classes)
        more = {"counted": "training" if ready.test is None else "test", "error": _error(seen, truth, held.classes)}
        kept.piece("detection", lambda: coco_ap(seen, truth, held.classes) | more)
        lost = misses(seen, truth, threshold=SURE, count=SHOWN)
        kept.piece("misses", lambda: [{**one, "name": held.truth.names[one["index"]]} for one in lost])
        kept.piece("pictures", lambda: _pictures(run, held, seen, lost))
    with bar("baseline", asked.progress and "baselines" not in kept.pieces):
        kept.piece("baselines", lambda: {BASELINE: _baseline(ready)})
    size = kept.piece("parameters", lambda: parameters(run.method))
    pictures = tuple(Picture(**one) for one in kept.pieces["pictures"])
    return Judgement(tuple(scores(kept.pieces)), pictures, parameters=size)


def check_classes(run: Trained, held: Boxed) -> None:
    """Raise SensoriumError if a detector was trained on other classes than ``held`` has."""
    if run.situation.classes != held.classes:
        raise SensoriumError(
            f"{run.folder}: trained on the classes {_some(run.situation.classes)}, but the data have "
            f"{_some(held.classes)}."
        )


def scores(found: dict[str, Any]) -> list[Score]:
    """AP, AP50, AP75, and AP of small, medium and large objects, if there are any, each with the baseline's."""
    mine, theirs = found["detection"], found["baselines"][BASELINE]
    of = f"in {counted(mine['images'], mine['counted'] + ' picture')}"
    rows = []
    for key, name in (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"), *((f"ap_{s}", f"AP, {s}") for s in SIZES)):
        if mine[key] is None:
            continue
        simple = {} if theirs.get(key) is None else {BASELINE: theirs[key]}
        n = mine[f"boxes_{key[3:]}"] if key.startswith("ap_") else mine["boxes"]
        error, curve = (mine["error"] if key == "ap" else None), (key if key in ("ap", "ap50") else "")
        rows.append(
            Score(name, mine[key], "higher", n, f"{plural(n, 'box')} {of}", simple, error, share=True, curve=curve)
        )
    return rows


def each_picture(seen: Sequence[Any], truth: Sequence[Any], classes: Sequence[str]) -> np.ndarray:
    """AP of each image alone, float [N]: nan if it has no object or isn't among the 1,000 evaluated."""
    found = np.full(len(truth), np.nan)
    for i in np.unique(np.linspace(0, len(truth) - 1, min(len(truth), ALONE)).astype(int)):
        ap = coco_ap([seen[i]], [truth[i]], classes)["ap"]
        found[i] = np.nan if ap is None else ap
    return found


def _error(seen: Sequence[Any], truth: Sequence[Any], classes: Sequence[str]) -> float | None:
    """Bootstrap standard error of AP (resamples of at most 500 images, scaled to all); None for fewer than ten
    images."""
    count = len(truth)
    if count < 10:
        return None
    rng, found = np.random.default_rng(0), []
    drawn = min(count, RESAMPLED)
    for _ in range(ROUNDS):
        rows = rng.integers(0, count, drawn)
        ap = coco_ap([seen[i] for i in rows], [truth[i] for i in rows], classes)["ap"]
        if ap is not None:
            found.append(ap)
    return float(np.std(found, ddof=1)) * math.sqrt(drawn / count) if len(found) > ROUNDS // 2 else None


def _baseline(ready: Prepared) -> dict[str, Any]:
    held, constant = ready.held.truth, constant_boxes(ready.train.truth)
    seen = [placed(constant, (int(height), int(width))) for height, width in held.sizes]
    return coco_ap(seen, [held.truth(i) for i in range(len(held))], held.classes)


def _pictures(run: Trained, held: Boxed, seen: Sequence[Any], lost: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Test images spread over all, and those with the most misses: ground truth beside detections."""
    folder = run.folder / "pictures"
    spread = np.linspace(0, len(held) - 1, min(SHOWN, len(held))).astype(int).tolist()
    worst = {one["index"]: one["lost"] for one in lost}
    told = f"Left: ground truth; right: detections with a score of at least {SURE:.1f}."
    made = []
    for title, file, chosen, caption in (
        ("Detections", "detections.png", spread, told),
        ("Misses", "misses.png", list(worst), f"Most misses first. {told} Missed boxes have a white frame."),
    ):
        panels = [panel(held, i, seen[i], worst.get(i, []) if chosen is not spread else []) for i in chosen]
        drawn = [one for one in panels if one is not None]
        if drawn:
            save_picture(sheet(drawn), folder / file)
            made.append({"title": title, "caption": caption, "file": f"{run.folder.name}/pictures/{file}"})
    return made


def panel(
    held: Boxed,
    index: int,
    found: dict[str, Any],
    lost: Sequence[int],
    false: Sequence[int] = (),
    threshold: float = SURE,
) -> Image.Image | None:
    """One image with ground truth, and with detections; ``lost`` boxes and ``false`` detections (indices) have a white
    frame. None if it can no longer be read."""
    try:
        sample = held.truth[index]
    except BadImage:
        return None
    image = Image.fromarray(sample["image"].permute(1, 2, 0).numpy())
    sure = torch.where(found["scores"] >= threshold)[0]
    large, true = enlarged(image, sample["boxes"].tolist())
    left = with_boxes(large, true, sample["labels"].tolist(), held.classes, marked=lost)
    boxes = enlarged(image, found["boxes"][sure].tolist())[1]
    labels, said = found["labels"][sure].tolist(), found["scores"][sure].tolist()
    marked = [i for i, at in enumerate(sure.tolist()) if at in false]
    right = with_boxes(large, boxes, labels, held.classes, said, marked)
    wrong = ", ".join(f"{len(some)} {what}" for some, what in ((lost, "missed"), (false, "false")) if some)
    words = f"{Path(held.truth.names[index]).name}: {counted(len(true), 'box')}, {len(labels)} found"
    return beside(left, right, words + (wrong and f", {wrong}"))


def _some(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - 4} more" if len(classes) > 4 else ""
    return ", ".join(classes[:4]) + more
