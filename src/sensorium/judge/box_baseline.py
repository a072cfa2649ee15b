"""A baseline detector: the same boxes in every image, the most frequent ones of the training images.

For each class, boxes of its median size are placed on a grid. The score of one is the fraction of the training images
that have an object of the class there (IoU of at least 0.5). A detector that can't beat it ignores the images.
Shapes: N images, M boxes of all, K boxes of the baseline; sizes are (height, width).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sensorium.data.boxes.open import BoxSet
from sensorium.parts.boxes import iou

GRID = 8
OVERLAP = 0.5
MOST = 100
LOOKED = 500  # training images


def constant_boxes(train: BoxSet) -> dict[str, Tensor]:
    """``boxes`` xyxy [K, 4] in units of the image, ``scores`` [K], descending, and ``labels`` [K]; K is at most
    100."""
    boxes, label = _relative(train)
    places = (torch.arange(GRID) + 0.5) / GRID
    centres = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1).flatten(0, 1)  # [G^2, 2]
    found, kinds = [], []
    for k in label.unique().tolist():
        half = (boxes[label == k][:, 2:] - boxes[label == k][:, :2]).median(dim=0).values / 2
        edges = torch.cat([centres - half, centres + half], dim=1)
        found.append(edges.clamp(0, 1))
        kinds.append(torch.full((len(edges),), k))
    guesses, kind = torch.cat(found), torch.cat(kinds)
    chosen = np.linspace(0, len(train) - 1, min(LOOKED, len(train))).astype(int)
    hits = torch.zeros(len(guesses))
    for i in chosen:
        rows = slice(int(train.starts[i]), int(train.starts[i + 1]))
        there = (iou(guesses, boxes[rows]) >= OVERLAP) & (kind[:, None] == label[rows])
        hits += there.any(dim=1)
    best = hits.argsort(descending=True, stable=True)[:MOST]
    best = best[hits[best] > 0]
    return {"boxes": guesses[best], "scores": hits[best] / len(chosen), "labels": kind[best]}


def placed(constant: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """The baseline's detections in an image of ``size``."""
    height, width = size
    return constant | {"boxes": constant["boxes"] * torch.tensor([width, height, width, height])}


def _relative(images: BoxSet) -> tuple[Tensor, Tensor]:
    """All boxes, in units of their images [M, 4], and their labels [M]."""
    sizes = np.repeat(images.sizes, np.diff(images.starts), axis=0)[:, [1, 0, 1, 0]]
    return torch.from_numpy((images.boxes / sizes).astype(np.float32)), torch.from_numpy(images.labels)
