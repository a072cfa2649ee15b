"""FCOS: fully convolutional one-stage object detection (Tian, Shen, Chen, He, 2019, arXiv:1904.01355).

Every location of a feature pyramid predicts the class of the object that it lies in, the distances to the object's four
edges, and its centerness: no anchor boxes, no proposals. The targets of a location p of a level with stride s, inside a
true box (x1, y1, x2, y2), are
    (l, t, r, b) = (p_x - x1, p_y - y1, x2 - p_x, y2 - p_y)                                              (eq. 1)
    centerness = sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))                                     (eq. 3)
It is assigned to the box if it lies inside it, within radius * s of its center on both axes, and
    4 s < max(l, t, r, b) < 8 s       (no lower bound on the finest level, no upper on the coarsest)     (section 3.2)
and of several boxes to the smallest. With N the number of assigned locations,
L = 1 / N (sum over all of focal(class) + over assigned ones of 1 - GIoU + BCE(centerness))          (eq. 2)
A detection's score is sqrt(class * centerness). As in the authors' later version (arXiv:2006.09214) and torchvision,
the head outputs l / s, ... after a ReLU, centerness branches off the box tower, and the box loss is GIoU.
Shapes: B images, P locations of all levels, K classes, N boxes of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import Detector, HasBackbone
from sensorium.base.precision import precise
from sensorium.method import Method, Progress
from sensorium.networks.fpn import FPN
from sensorium.parts.boxes import area, paired_giou
from sensorium.parts.gather import sum_over_processes, world_size
from sensorium.parts.moe.layer import update_biases

Points = Literal["paper", "torchvision"]
OVERLAP, CANDIDATES = 0.6, 1000


class Places(NamedTuple):
    """Locations of predictions: points [P, 2] (x, y) in pixels; stride [P] and range of max(l, t, r, b) [P, 2] of the
    level of each; and the number of locations per level."""

    points: Tensor
    strides: Tensor
    ranges: Tensor
    counts: tuple[int, ...]


class Predicted(NamedTuple):
    """Logits of classes [B, P, K], (l, t, r, b) in pixels [B, P, 4], logits of centerness [B, P], and the locations."""

    logits: Tensor
    distances: Tensor
    centerness: Tensor
    places: Places

    @property
    def scores(self) -> Tensor:
        """[B, P, K]."""
        return (self.logits.sigmoid() * self.centerness.sigmoid()[..., None]).sqrt()


class FCOS(Method, HasBackbone, Detector):
    """A detector on a pyramid.

    classes: K. convs: layers of each of the head's two towers, which all levels share. groups: of their GroupNorm.
    radius: of center sampling, in strides. alpha, gamma: of the focal loss. prior: probability of a class before
    training. points: of the locations: "paper" is the middle of each stride, (s/2 + i s); "torchvision" (and so its
    published weights) is i * (image // map), the size of the image divided by that of the map, rounded down.
    """

    overlap = OVERLAP

    def __init__(
        self,
        backbone: FPN,
        classes: int,
        *,
        convs: int = 4,
        groups: int = 32,
        radius: float = 1.5,
        alpha: float = 0.25,
        gamma: float = 2.0,
        prior: float = 0.01,
        points: Points = "paper",
    ) -> None:
        super().__init__()
        if len(set(backbone.channels)) != 1:
            raise ValueError(f"FCOS shares its head over levels of one width, not {backbone.channels}: give an FPN")
        if points not in get_args(Points):
            raise ValueError(f"points must be one of {', '.join(get_args(Points))}, got {points!r}")
        self.backbone, self.classes, self.points = backbone, classes, points
        self.radius, self.alpha, self.gamma = radius, alpha, gamma
        self.head = Head(backbone.channels[0], classes, convs, groups, prior)
        self.to(memory_format=torch.channels_last)  # the memory format of a ResNet's maps

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, 3, H, W], ``boxes`` a list of B [N, 4] (absolute edges) and ``labels`` a list of B [N] -> the
        losses.

        An image without boxes contributes only negatives. Raises RuntimeError for a label that is not in 0..K-1.
        """
        found = self.predict(batch["image"])
        truth = [boxes.to(found.distances) for boxes in batch["boxes"]]
        owners = [assign(found.places, boxes, self.radius) for boxes in truth]
        owned = torch.stack(owners) >= 0  # [B, P]
        boxes = torch.cat([b[o[o >= 0]] for b, o in zip(truth, owners, strict=True)])
        labels = torch.cat([x.to(o.device)[o[o >= 0]] for x, o in zip(batch["labels"], owners, strict=True)])
        is_class = torch.zeros_like(found.logits, dtype=torch.bool)
        is_class[owned] = F.one_hot(labels.long(), self.classes).bool()

        points = found.places.points.expand(*owned.shape, 2)[owned]
        giou = paired_giou(boxes_at(points, found.distances[owned]), boxes)
        central = F.binary_cross_entropy_with_logits(
            found.centerness[owned], centerness(points, boxes), reduction="sum"
        )
        # Each process divides by N / processes, so that the mean over processes is the global batch's sum / N.
        count = sum_over_processes(owned.sum().to(giou.dtype)).clamp(min=1) / world_size()
        classification = focal_loss(found.logits, is_class, self.alpha, self.gamma).sum() / count
        regression, central = (1 - giou).sum() / count, central / count
        return {
            "loss": classification + regression + central,
            "classification": classification.detach(),
            "regression": regression.detach(),
            "centerness": central.detach(),
        }

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self)

    @torch.no_grad()
    def unlearnable(self, batch: Mapping[str, Any]) -> int:
        """How many boxes of a batch have no location: too small for the finest stride, or covered by smaller
        ones."""
        images = batch["image"]
        places = self.places((images.shape[-2], images.shape[-1]), self.backbone.maps(images))
        owners = [assign(places, boxes.to(places.points), self.radius) for boxes in batch["boxes"]]
        return sum(len(boxes) - len(o[o >= 0].unique()) for boxes, o in zip(batch["boxes"], owners, strict=True))

    def predict(self, images: Tensor) -> Predicted:
        """[B, 3, H, W] -> the head's outputs at every location, float32 or better."""
        maps = self.backbone.maps(images)
        logits, distances, central = (precise(x) for x in self.head(maps))
        places = self.places((images.shape[-2], images.shape[-1]), maps)
        return Predicted(logits, distances * places.strides[:, None], central, places)

    def places(self, size: tuple[int, int], maps: Sequence[Tensor]) -> Places:
        """Locations of images of ``size`` (height, width) with the pyramid ``maps``: level by level, row by row."""
        points, strides, ranges = [], [], []
        like = precise(maps[0].new_empty(0))
        for i, (level, stride) in enumerate(zip(maps, self.backbone.strides, strict=True)):
            step, offset = (stride, stride), stride / 2
            if self.points == "torchvision":
                step, offset = (size[0] // level.shape[2], size[1] // level.shape[3]), 0
            y, x = (
                torch.arange(n, device=like.device) * s + offset for n, s in zip(level.shape[2:], step, strict=True)
            )
            points.append(torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1).to(like))
            strides.append(like.new_full((len(points[-1]),), stride))
            reach = (0.0 if i == 0 else 4.0 * stride, math.inf if i == len(maps) - 1 else 8.0 * stride)
            ranges.append(like.new_tensor(reach).expand(len(points[-1]), 2))
        counts = tuple(len(p) for p in points)
        return Places(torch.cat(points), torch.cat(strides), torch.cat(ranges), counts)

    @torch.no_grad()
    def detect(
        self,
        images: Tensor,
        threshold: float = 0.2,
        *,
        sizes: Tensor | None = None,
        nms: float = OVERLAP,
        candidates: int = CANDIDATES,
        most: int = 100,
    ) -> list[dict[str, Tensor]]:
        """[B, 3, H, W] -> for each image ``boxes`` [N, 4] (absolute edges), ``scores`` [N], descending, and ``labels``
        [N].

        sizes: int [B, 2], height and width without padding; boxes are clipped to it. threshold: minimum score.
        candidates: top ones of each level that enter non-maximum suppression, class by class. nms: maximum IoU of two
        boxes of a class. most: maximum boxes per image.
        """
        from torchvision.ops import batched_nms  # a slow import, only needed here

        found = self.predict(images)
        scores = found.scores
        whole = torch.tensor(images.shape[-2:]).expand(len(images), 2)
        results = []
        for score, distances, size in zip(scores, found.distances, whole if sizes is None else sizes, strict=True):
            chosen = [best(s, threshold, candidates) for s in score.split(found.places.counts)]
            firsts = torch.tensor([0, *found.places.counts]).cumsum(0)
            flat = torch.cat([c + int(first) * self.classes for c, first in zip(chosen, firsts[:-1], strict=True)])
            place, label = flat // self.classes, flat % self.classes
            boxes = boxes_at(found.places.points[place], distances[place])
            limits = size.to(boxes).flip(0).repeat(2)
            boxes = torch.minimum(boxes.clamp(min=0), limits)
            kept = batched_nms(boxes, score.flatten()[flat], label, nms)[:most]
            results.append({"boxes": boxes[kept], "scores": score.flatten()[flat[kept]], "labels": label[kept]})
        return results

    def candidates(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best of each level, at most 1,000, clipped to the images."""
        found = self.predict(images)
        edges = boxes_at(found.places.points, found.distances)
        limits = sizes.flip(1).repeat(1, 2)[:, None].to(edges)
        edges = torch.minimum(edges.clamp(min=0), limits)
        scores, boxes, labels, first = [], [], [], 0
        for level, count in zip(found.scores.split(found.places.counts, 1), found.places.counts, strict=True):
            top = level.flatten(1).topk(min(CANDIDATES, count * self.classes))
            place = first + top.indices // self.classes
            scores.append(top.values)
            labels.append(top.indices % self.classes)
            boxes.append(torch.gather(edges, 1, place[..., None].expand(-1, -1, 4)))
            first += count
        return torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1)


class Head(nn.Module):
    """Two towers over every level, one for the class, one for the box and its centerness (fig. 2)."""

    def __init__(self, width: int, classes: int, convs: int, groups: int, prior: float) -> None:
        super().__init__()
        self.class_tower, self.box_tower = _tower(width, convs, groups), _tower(width, convs, groups)
        self.logits = nn.Conv2d(width, classes, 3, padding=1)
        self.distances = nn.Conv2d(width, 4, 3, padding=1)
        self.centerness = nn.Conv2d(width, 1, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        nn.init.constant_(self.logits.bias, -math.log((1 - prior) / prior))  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Levels [B, D, H_i, W_i] -> logits [B, P, K], (l, t, r, b) in strides [B, P, 4], centerness [B, P]."""
        logits, distances, central = [], [], []
        for level in maps:
            logits.append(_rows(self.logits(self.class_tower(level))))
            boxes = self.box_tower(level)
            distances.append(_rows(F.relu(self.distances(boxes))))
            central.append(_rows(self.centerness(boxes)))
        return torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(central, 1).squeeze(-1)


def _tower(width: int, convs: int, groups: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(groups, width), nn.ReLU()]
    return nn.Sequential(*layers)


def _rows(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H W, C]."""
    return x.flatten(2).transpose(1, 2)


def assign(places: Places, boxes: Tensor, radius: float) -> Tensor:
    """The box [N, 4] assigned to each location: int64 [P], -1 for none."""
    if len(boxes) == 0:
        return torch.full((len(places.points),), -1, device=places.points.device)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = (places.points[:, None] - centre).abs().amax(-1) < radius * places.strides[:, None]  # [P, N]
    distances = distances_to(places.points[:, None], boxes)
    farthest = distances.amax(-1)
    fits = (farthest > places.ranges[:, :1]) & (farthest < places.ranges[:, 1:])
    legal = near & (distances.amin(-1) > 0) & fits
    smallest, owner = torch.where(legal, area(boxes), math.inf).min(dim=1)
    return owner.masked_fill(smallest.isinf(), -1)


def distances_to(points: Tensor, boxes: Tensor) -> Tensor:
    """(l, t, r, b) from points [..., 2] to the edges of boxes [..., 4] (shapes broadcast) -> [..., 4]. Eq. 1."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def boxes_at(points: Tensor, distances: Tensor) -> Tensor:
    """Edges [..., 4] of boxes from distances (l, t, r, b) [..., 4] and points [..., 2]: the inverse of eq. 1."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """Centerness of points [..., 2] inside boxes [..., 4] -> [...]: 1 in the middle, 0 on an edge. Eq. 3."""
    l, t, r, b = distances_to(points, boxes).unbind(-1)
    across, down = torch.minimum(l, r) / torch.maximum(l, r), torch.minimum(t, b) / torch.maximum(t, b)
    return (across * down).sqrt()


def focal_loss(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Cross-entropy of each logit with its bool ``target``, times (1 - p)^gamma with p the probability of the target,
    and times alpha if it is true, 1 - alpha if not (Lin et al., 2017, arXiv:1708.02002, eq. 5). [...] -> [...]."""
    wrong = torch.where(target, -logits, logits)  # the logit of the wrong answer
    weight = torch.where(target, alpha, 1 - alpha)
    return weight * wrong.sigmoid() ** gamma * F.softplus(wrong)


def best(scores: Tensor, threshold: float, most: int) -> Tensor:
    """Flat indices of the ``most`` highest scores above ``threshold``, the highest first: any shape -> int64 [n]."""
    flat = scores.flatten()
    above = torch.where(flat > threshold)[0]
    return above[flat[above].topk(min(most, len(above))).indices]
