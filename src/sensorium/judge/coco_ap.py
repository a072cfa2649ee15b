"""COCO's average precision of detections (Lin et al., 2014, arXiv:1405.0312), by ``faster_coco_eval``.

Detections of a class, highest scores first, are matched to the unmatched true box of largest IoU, if it reaches a
threshold. AP is the area under the precision-recall curve (precision made monotone), averaged over classes and over the
thresholds 0.5, 0.55 ... 0.95. A detection on a crowd box is ignored. small: area below 32^2 pixels; large: above 96^2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.data.boxes.seen import Sight
from sensorium.data.images.decode import BadImage
from sensorium.errors import SensoriumError
from sensorium.judge.encode import judged
from sensorium.parts.boxes import area, iou

SIZES = ("small", "medium", "large")
_EDGES = (32.0**2, 96.0**2)


def detect_all(
    detector: Any,
    images: Any,
    sight: Sight,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    threshold: float = 0.05,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Tensor]], list[dict[str, Any]], list[int]]:
    """Run ``detector`` on every readable image of ``images`` (a map-style set of samples of its size): detections in
    pixels of the ``original`` image, the true samples without their image, and their indices. ``progress`` is called
    with (done, total)."""
    found, truth, indices = [], [], []
    with judged(detector, device):
        for start in range(0, len(images), batch_size):
            samples = []
            for i in range(start, min(start + batch_size, len(images))):
                try:
                    samples.append(images[i])
                    indices.append(i)
                except BadImage:
                    continue
            if samples:
                found += sight.find(detector, samples, threshold, device)
                truth += [{k: v for k, v in sample.items() if k != "image"} for sample in samples]
            if progress is not None:
                progress(min(start + batch_size, len(images)), len(images))
    return found, truth, indices


def coco_ap(
    found: Sequence[Mapping[str, Tensor]],
    truth: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    *,
    most: int = 100,
) -> dict[str, Any]:
    """AP of detections (``boxes`` xyxy [N, 4], ``scores``, ``labels``) against the truth (``boxes``, ``labels`` and,
    optional, ``crowd`` and ``area``), one entry per image, all in the same pixels.

    Returns ``ap``, ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large`` and ``ar``, the recall averaged over
    thresholds, in 0..1 or None if there are no objects; ``classes``: the ``ap``, ``ap50`` and number of ``boxes`` of
    each; and counts: ``images``, ``boxes`` (without crowd), ``boxes_small`` ..., ``detections``. most: maximum
    detections per image and class. Raises ValueError if the two lists differ in length.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if len(found) != len(truth):
        raise ValueError(f"detections of {len(found)} images against the truth of {len(truth)}")
    boxes, rows = _annotations(truth), _detections(found)
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(classes)]
    stored = {"images": [{"id": i} for i in range(len(truth))], "annotations": boxes, "categories": categories}
    precision = np.full((10, 101, len(classes), 4, 1), -1.0)
    recall = np.full((10, len(classes), 4, 1), -1.0)
    if boxes:
        peer = COCO(stored)
        judge = COCOeval_faster(peer, peer.loadRes(rows), "bbox")
        judge.params.maxDets = [most]
        judge.evaluate()
        judge.accumulate()
        precision, recall = np.asarray(judge.eval["precision"]), np.asarray(judge.eval["recall"])
    real = [box for box in boxes if not box["iscrowd"]]
    group = np.digitize([box["area"] for box in real], _EDGES)
    each = np.bincount([box["category_id"] - 1 for box in real], minlength=len(classes))
    scores: dict[str, Any] = {
        "ap": _mean(precision[..., 0, 0]),
        "ap50": _mean(precision[0, ..., 0, 0]),
        "ap75": _mean(precision[5, ..., 0, 0]),
        **{f"ap_{size}": _mean(precision[..., 1 + i, 0]) for i, size in enumerate(SIZES)},
        "ar": _mean(recall[..., 0, 0]),
        "classes": [
            {"class": name, "ap": _mean(one[..., 0, 0]), "ap50": _mean(one[0, ..., 0, 0]), "boxes": int(boxes_of_it)}
            for name, one, boxes_of_it in zip(classes, np.moveaxis(precision, 2, 0), each, strict=True)
        ],
        "images": len(truth),
        "boxes": len(real),
        **{f"boxes_{size}": int((group == i).sum()) for i, size in enumerate(SIZES)},
        "detections": len(rows),
    }
    return scores


def misses(
    found: Sequence[Mapping[str, Tensor]],
    truth: Sequence[Mapping[str, Any]],
    *,
    overlap: float = 0.5,
    threshold: float = 0.2,
    count: int = 12,
) -> list[dict[str, Any]]:
    """The ``count`` images with the most missed true boxes: ``index``, ``lost`` (which boxes, without crowd), ``boxes``
    (their number) and ``false`` (false positives). threshold: minimum score of a detection."""
    rows = []
    for index, (mine, theirs) in enumerate(zip(found, truth, strict=True)):
        lost, false = compared(mine, theirs, overlap=overlap, threshold=threshold)
        boxes = len(theirs["boxes"]) - int(theirs["crowd"].sum() if "crowd" in theirs else 0)
        rows.append({"index": index, "lost": lost, "boxes": boxes, "false": len(false)})
    rows = [row for row in rows if row["lost"]]
    return sorted(rows, key=lambda row: (-len(row["lost"]), row["index"]))[:count]


def compared(
    found: Mapping[str, Tensor], truth: Mapping[str, Any], *, overlap: float, threshold: float
) -> tuple[list[int], list[int]]:
    """Of one image, the true boxes (without crowd) that no detection of their class covers, and the detections with at
    least ``threshold`` that are of none: indices. overlap: minimum IoU."""
    crowd = truth.get("crowd", torch.zeros(len(truth["boxes"]), dtype=torch.bool))
    order = found["scores"].argsort(descending=True, stable=True)
    order = order[found["scores"][order] >= threshold]
    shared = iou(found["boxes"][order], truth["boxes"]) * (found["labels"][order][:, None] == truth["labels"])
    false, free = [], ~crowd
    for at, row in zip(order.tolist(), shared, strict=True):
        best, which = (row * free).max(0) if len(row) else (torch.zeros(()), torch.zeros((), dtype=torch.long))
        if best >= overlap:
            free[which] = False
        elif not (row[crowd] >= overlap).any():
            false.append(at)
    return free.nonzero().flatten().tolist(), false


def _annotations(truth: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for i, image in enumerate(truth):
        boxes = image["boxes"].double()
        crowd = image.get("crowd", torch.zeros(len(boxes), dtype=torch.bool)).tolist()
        areas = image.get("area", area(boxes)).tolist()
        for box, label, many, size in zip(_xywh(boxes), image["labels"].tolist(), crowd, areas, strict=True):
            # 0 means "no match" to the evaluator: ids begin at 1.
            row = {"image_id": i, "id": len(rows) + 1, "category_id": label + 1, "bbox": box, "area": size}
            rows.append(row | {"iscrowd": int(many)})
    return rows


def _detections(found: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Any]]:
    rows = []
    for i, image in enumerate(found):
        if not image["boxes"].isfinite().all() or not image["scores"].isfinite().all():
            raise SensoriumError(f"image {i}: the detector's outputs are not finite: it has diverged.")
        for box, label, score in zip(
            _xywh(image["boxes"].double()), image["labels"].tolist(), image["scores"].tolist(), strict=True
        ):
            rows.append({"image_id": i, "category_id": label + 1, "bbox": box, "score": score})
    return rows


def _xywh(boxes: Tensor) -> list[list[float]]:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()


def _mean(values: np.ndarray) -> float | None:
    """The mean without -1, the evaluator's mark of no objects."""
    real = values[values > -1]
    return float(real.mean()) if real.size else None
