"""A check before a long training: can the detector overfit eight images?

Boxes in a different pixel scale than the images, objects that no location or query can be assigned to, or a bad
learning rate each end in an AP of zero, hours later. So a copy of the detector is trained on the same eight images
without augmentation, for at most a twentieth of the time, and the result is printed and kept in ``RUN/check.json``. The
images with their true boxes are in ``RUN/pictures/check.png``. The check does not change the training.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sensorium.base.bf16 import fast_bf16
from sensorium.base.files import write_json
from sensorium.base.precision import device_name
from sensorium.base.terminal import terminal
from sensorium.data.augment.boxes import without_crowd
from sensorium.data.boxes.cache import Boxed
from sensorium.data.boxes.prepare import Prepared, boxes_a_picture
from sensorium.data.images.decode import BadImage
from sensorium.judge.boxes import detections
from sensorium.judge.coco_ap import coco_ap
from sensorium.judge.encode import autocast
from sensorium.method import Method, Progress
from sensorium.pictures.boxes import enlarged, sheet, with_boxes
from sensorium.pictures.images import save_picture
from sensorium.recipe.boxes import sight_of
from sensorium.recipe.recipe import Recipe
from sensorium.training.budget import Budget
from sensorium.training.step import Step

PICTURES = 8
SECONDS, SHARE = 30.0, 0.05  # maximum length of a check, and its fraction of the training's budget
LEAST = 300.0  # minimum seconds of training for a check
STEPS = 400
LEARNT, FALLEN = 0.05, 0.8  # passed: minimum AP50, or a loss that fell by this factor


def check(recipe: Recipe, ready: Prepared, budget: str, folder: Path, *, progress: bool = False) -> None:
    """Check a training that is long enough, once: print the result to standard error, and keep it in ``folder``."""
    spend, asked = Budget.parse(budget), recipe.settings.get("check")
    long = spend.kind == "seconds" and spend.amount >= LEAST
    if not long or asked is None or not asked.value or (folder / "check.json").is_file():
        return
    part = eight(ready.train)
    seconds = min(SECONDS, SHARE * spend.amount)
    found = by_heart(recipe, part, seconds=seconds)
    found["note"] = verdict(found, ready.size)
    if (picture := look(part)) is not None:
        save_picture(picture, folder / "pictures" / "check.png")
        if found["note"] and not found["learnt"]:
            found["note"] += f" Check that the boxes fit the objects: {folder / 'pictures' / 'check.png'}."
    write_json(folder / "check.json", found)
    if progress:
        _say(found)


def eight(train: Boxed) -> Boxed:
    """The eight images, spread evenly over those that have boxes."""
    filled = np.flatnonzero(boxes_a_picture(train))
    return train.some(filled[np.linspace(0, len(filled) - 1, min(PICTURES, len(filled))).astype(int)])


def by_heart(recipe: Recipe, part: Boxed, *, seconds: float = SECONDS, steps: int = STEPS) -> dict[str, Any]:
    """Train a copy of the recipe's method on all of ``part`` as one batch, for a limited time and number of steps.

    -> ``ap50`` on it, first and last ``loss``, ``steps``, ``seconds``, ``pictures``, ``boxes`` and how many of
    them are ``unlearnable``; ``learnt``: whether the detector has learned something. The random state and the method
    are not changed.
    """
    device = device_name()
    gpus = [torch.device(device)] if device == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(0)
        method: Any = copy.deepcopy(recipe.method).to(device)
        sight = sight_of(method, part)
        batch = sight.batch([in_view(part, i) for i in range(len(part))])
        batch |= {k: _to(batch[k], device) for k in ("image", "boxes", "labels", "sizes")}
        losses, took = _train(method.train(), recipe, batch, device, seconds, steps)
        method.eval()
        with torch.no_grad():
            lost = method.unlearnable(batch)
        seen, truth, _ = detections(method, part, sight, device=device)
    ap50 = coco_ap(seen, truth, part.classes)["ap50"] or 0.0
    first, last = float(np.mean(losses[:3])), float(np.mean(losses[-3:]))
    return {
        "ap50": ap50,
        "loss": [first, last],
        "steps": len(losses),
        "seconds": round(took, 1),
        "pictures": len(part),
        "boxes": sum(len(rows) for rows in batch["boxes"]),
        "unlearnable": lost,
        "learnt": bool(ap50 >= LEARNT or last < FALLEN * first),
    }


def verdict(found: dict[str, Any], size: int) -> str:
    """What is wrong, in a sentence or two; "" if nothing is."""
    first, last = found["loss"]
    told = []
    if found["unlearnable"] > 0.05 * found["boxes"]:
        told.append(
            f"{found['unlearnable']} of {found['boxes']} boxes cannot be learned at {size} px: too small, or too many "
            f"in one picture. Try --image-size {size * 3 // 2 // 32 * 32}, a smaller --stride or more --queries."
        )
    if not np.isfinite(last):
        told.append("The loss is not finite: try a tenth of the --lr.")
    elif not found["learnt"]:
        told.append(
            f"The detector could not overfit eight pictures: AP50 {found['ap50']:.2f}, and the loss went from "
            f"{first:.3g} to {last:.3g} in {found['steps']} steps. Try another --lr."
        )
    return " ".join(told)


def look(part: Boxed) -> Image.Image | None:
    """The images with their true boxes; None if none can be read."""
    panels = []
    for i in range(len(part)):
        try:
            sample = part.truth[i]
        except BadImage:
            continue
        image = Image.fromarray(sample["image"].permute(1, 2, 0).numpy())
        large, boxes = enlarged(image, sample["boxes"].tolist())
        panels.append(with_boxes(large, boxes, sample["labels"].tolist(), part.classes))
    return sheet(panels, columns=4) if panels else None


def in_view(part: Boxed, index: int) -> dict[str, Any]:
    """Training sample ``index``: its boxes in pixels of the cached image, without crowd boxes."""
    sample = without_crowd(part[index])
    factor = (torch.from_numpy(part.inner[index]) / sample["original"]).flip(0).repeat(2)
    return sample | {"boxes": (sample["boxes"] * factor).float()}


def _train(
    method: Method, recipe: Recipe, batch: dict[str, Any], device: str, seconds: float, steps: int
) -> tuple[list[float], float]:
    def network(batch: dict[str, Any], *phase: str) -> dict[str, Any]:
        with autocast(device, "bf16" if fast_bf16(device) else "float32"):
            return method(batch, *phase)

    step = Step(method, recipe.optimizers, recipe.schedule, network=network)
    losses: list[float] = []
    start = time.perf_counter()
    while len(losses) < steps and (len(losses) < 3 or time.perf_counter() - start < seconds):
        spent = max(len(losses) / steps, (time.perf_counter() - start) / seconds)
        at = Progress(len(losses), len(losses), min(1.0, spent))
        losses.append(float(step([batch], at)["loss"]))
        if not np.isfinite(losses[-1]):
            break
    return losses, time.perf_counter() - start


def _to(value: Any, device: str) -> Any:
    return [one.to(device) for one in value] if isinstance(value, Sequence) else value.to(device)


def _say(found: dict[str, Any]) -> None:
    console = terminal()
    first, last = found["loss"]
    console.print(
        f"check: overfit {found['pictures']} pictures for {found['seconds']:.0f} s: AP50 {found['ap50']:.2f}, loss "
        f"{first:.3g} -> {last:.3g}",
        style="dim",
    )  # fmt: skip
    if found["note"]:
        console.print(f"Warning: {found['note']}", style="bold")
