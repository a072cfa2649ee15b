"""Detectors: COCO's average precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sensorium.abilities import Detector
from sensorium.data.boxes.cache import Boxed
from sensorium.data.boxes.prepare import Prepared
from sensorium.data.boxes.seen import Sight
from sensorium.judge.coco_ap import coco_ap, detect_all
from sensorium.judge.evaluator import Evaluator, Kept
from sensorium.judge.score import Asked, Judgement, Trained
from sensorium.recipe.boxes import sight_of

LOOKED = 100  # test images of an online evaluation
LEAST_SCORE = 0.01  # minimum score of a detection


def online(method: Any, ready: Prepared) -> dict[str, float]:
    """AP and AP50 of up to 100 test images."""
    held = ready.held
    few = held.some(np.linspace(0, len(held) - 1, min(LOOKED, len(held))).astype(np.int64))
    found, truth, _ = detections(method, few, sight_of(method, ready.train), device=next(method.parameters()).device)
    scores = coco_ap(found, truth, few.classes)
    return {name: scores[name] for name in ("ap", "ap50") if scores[name] is not None}


def detections(
    method: Any,
    part: Boxed,
    sight: Sight,
    *,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[int]]:
    """Detections and ground truth of each image, in the images' own pixels, and their indices."""
    return detect_all(
        method,
        part,
        sight,
        device=device,
        batch_size=8 if torch.device(device).type == "cpu" else 32,
        threshold=LEAST_SCORE,
        progress=progress,
    )


def judge(run: Trained, ready: Prepared, asked: Asked, kept: Kept) -> Judgement:
    """Average precision of the test images, by size and class, with the baseline of fixed boxes; images to look
    at."""
    from sensorium.judge import box_scores  # imports this module

    return box_scores.judge(run, ready, asked, kept)


EVALUATOR = Evaluator(
    name="detection", ability=Detector, needs=frozenset({"image", "boxes", "labels"}), judge=judge, online=online
)
