"""DETR: end-to-end object detection with transformers (Carion et al., 2020, arXiv:2005.12872).

A transformer turns an image's feature map and Q learned queries into Q predictions, each a class (or "no object") and a
box. The optimal one-to-one matching assigns predictions to objects; the target of all others is "no object", so that
there are no duplicates and non-maximum suppression is not needed:
    y = transformer(conv1x1(backbone(image)), queries)                                       (section 3.2, figure 2)
    p = softmax(class_embed(y)),   b = sigmoid(bbox_embed(y))                K + 1 classes; (cx, cy, w, h) in 0..1
    match = minimum sum of  -p[label] + 5 |b - t|_1 - 2 GIoU(b, t)                    (eqs. 1 and 2, parts/matcher.py)
    L = mean of -w log p[label or no object] + 5 sum |b - t|_1 / n + 2 sum (1 - GIoU(b, t)) / n  (section 3.1, A.2)
The mean is weighted by w, 1 for matched predictions and 0.1 for "no object"; n is the number of objects of the global
batch. Each decoder layer has the same loss, with its own matching (auxiliary losses).
Shapes: B images, Q queries, K classes, D width, L decoder layers, N_b objects of image b, M matched pairs in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sensorium.abilities import Detector, HasBackbone, MapEncoder, require
from sensorium.base.precision import precise
from sensorium.detection.detr.transformer import Transformer
from sensorium.method import Method, Progress
from sensorium.parts.boxes import cxcywh_to_xyxy, paired_giou, xyxy_to_cxcywh
from sensorium.parts.gather import sum_over_processes, world_size
from sensorium.parts.matcher import Costs, match
from sensorium.parts.moe.layer import update_biases


class DETR(Method, HasBackbone, Detector):
    """A detector on the last map of any backbone that gives maps; that map has ``backbone.dim`` channels.

    classes: K; labels are 0..K-1. queries: maximum number of detections per image. width: D, divisible by 4 and by
    ``heads``. hidden: channels of the feed-forward layers. auxiliary: losses after every decoder layer, not only the
    last. freeze_norms: the backbone's batch norms keep their statistics and weights, as in the authors' code with a
    pretrained backbone; use False with random initial weights. weights: of the class, L1 and GIoU losses; costs: the
    same for the matching. no_object: weight of the class "no object". clip: maximum norm of all gradients, 0 for none.
    ``class_names``: names of the labels, () if unknown.
    """

    def __init__(
        self,
        backbone: MapEncoder,
        classes: int,
        *,
        queries: int = 100,
        width: int = 256,
        heads: int = 8,
        encoder_depth: int = 6,
        decoder_depth: int = 6,
        hidden: int = 2048,
        dropout: float = 0.1,
        auxiliary: bool = True,
        freeze_norms: bool = True,
        weights: Costs = (1.0, 5.0, 2.0),
        costs: Costs = (1.0, 5.0, 2.0),
        no_object: float = 0.1,
        clip: float = 0.1,
    ) -> None:
        super().__init__()
        require(backbone, MapEncoder, by="DETR", choices="a ResNet or a ViT")
        if classes < 1 or queries < 1:
            raise ValueError(f"DETR needs at least one class and one query, got {classes} and {queries}")
        if width % 4:
            raise ValueError(f"width {width} must be divisible by 4 (sine and cosine of two axes)")
        if not no_object > 0:
            raise ValueError(f"no_object {no_object} must be positive, or an image without objects has no loss")
        self.classes, self.queries, self.width, self.heads = classes, queries, width, heads
        self.hidden, self.dropout, self.auxiliary, self.freeze_norms = hidden, dropout, auxiliary, freeze_norms
        self.weights, self.costs, self.no_object, self.clip = weights, costs, no_object, clip

        self.backbone = backbone
        self.input_proj = nn.Conv2d(backbone.dim, width, 1)
        self.transformer = Transformer(width, heads, (encoder_depth, decoder_depth), hidden, dropout)
        self.query_embed = nn.Embedding(queries, width)
        self.class_embed = nn.Linear(width, classes + 1)
        self.bbox_embed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )
        if freeze_norms:
            for norm in self._norms():
                norm.requires_grad_(False)
        self.train()

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The loss of a batch.

        ``image`` [B, 3, H, W]; ``boxes``, B of [N_b, 4], absolute (x1, y1, x2, y2); ``labels``, B of int64 [N_b] in
        0..K-1, N_b may be 0; and, optional, ``sizes`` int [B, 2], each image's (height, width) without padding at the
        right and the bottom, or None.
        -> scalars: ``loss``, of all decoder layers; of the last layer and before weighting ``class`` (cross-entropy),
        ``box`` (L1 per object, coordinates in units of the image), ``giou`` (1 - GIoU, mean over objects), and
        ``cardinality``, the absolute error of the number of predicted objects, mean over images.
        """
        logits, boxes = self.predict(batch["image"], batch.get("sizes"))
        if not self.auxiliary:
            logits, boxes = logits[-1:], boxes[-1:]
        labels, targets = self.targets(batch)
        found = self.set_loss(logits, boxes, labels, targets)
        of_class, of_box, of_giou = self.weights
        loss = of_class * found["class"].sum() + of_box * found["box"].sum() + of_giou * found["giou"].sum()
        counts = torch.tensor([len(own) for own in labels], device=logits.device)
        told = (logits[-1].detach().argmax(-1) != self.classes).sum(1)
        return {
            "loss": loss,
            **{name: value[-1].detach() for name, value in found.items()},
            "cardinality": (told - counts).abs().to(loss.dtype).mean(),
        }

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self)

    def before_update(self, at: Progress) -> None:
        """Clip gradients to a norm of ``clip``."""
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters(), self.clip)

    def unlearnable(self, batch: Mapping[str, Any]) -> int:
        """How many boxes of a batch exceed the queries of their image."""
        return sum(max(0, len(own) - self.queries) for own in batch["boxes"])

    def predict(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> predictions of every decoder layer, the last being the output: logits [L, B, Q, K + 1], with
        "no object" as the last class, and boxes [L, B, Q, 4], (cx, cy, w, h) in units of each image without padding.
        Float32 or better.
        """
        features, valid = self._features(images, sizes)
        y = self.transformer(features, valid, self.query_embed.weight)
        return precise(self.class_embed(y)), precise(self.bbox_embed(y)).sigmoid()

    def targets(self, batch: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Labels, B of [N_b], and boxes, B of [N_b, 4], (cx, cy, w, h) in units of the image. Float32 or better.

        Raises ValueError if the lists do not match or a label is outside 0..K-1.
        """
        images, labels = batch["image"], [own.to(batch["image"].device, torch.int64) for own in batch["labels"]]
        scales = self._scales(images, batch.get("sizes"))
        boxes = [precise(own.to(images.device)).reshape(-1, 4) for own in batch["boxes"]]
        if not len(images) == len(labels) == len(boxes) or any(
            len(a) != len(b) for a, b in zip(labels, boxes, strict=True)
        ):
            raise ValueError(
                f"{len(images)} images, labels {[len(own) for own in labels]}, boxes {[len(own) for own in boxes]}"
            )
        every = torch.cat(labels)
        if len(every) and not 0 <= int(every.min()) <= int(every.max()) < self.classes:
            raise ValueError(f"labels {int(every.min())}..{int(every.max())} are not in 0..{self.classes - 1}")
        return labels, [xyxy_to_cxcywh(own / scale) for own, scale in zip(boxes, scales, strict=True)]

    def set_loss(
        self, logits: Tensor, boxes: Tensor, labels: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """``class``, ``box`` and ``giou`` of each layer, [L] each, before weighting; their mean over processes is that
        of the global batch. ``logits``, ``boxes`` as of :meth:`predict`, ``labels``, ``targets`` as of :meth:`targets`.
        """
        layers, images, queries = logits.shape[:3]
        at, label, target = self._matched(logits, boxes, labels, targets)
        wanted = torch.full((layers * images * queries,), self.classes, device=logits.device)
        wanted[at] = label
        weight = logits.new_full((self.classes + 1,), 1.0)
        weight[-1] = self.no_object
        surprise = F.cross_entropy(logits.flatten(0, 2), wanted, weight, reduction="none").view(layers, -1)

        # Every layer matches the same number of predictions, so the normalizers are shared.
        pairs = len(at) // layers
        share = torch.tensor(
            [pairs + self.no_object * (images * queries - pairs), sum(len(own) for own in labels)],
            device=logits.device,
            dtype=logits.dtype,
        )
        weighed, objects = sum_over_processes(share).unbind()
        processes = world_size()
        guess = boxes.flatten(0, 2)[at]  # [M, 4]
        overlap = paired_giou(cxcywh_to_xyxy(guess), cxcywh_to_xyxy(target))
        n = objects.clamp(min=1) / processes
        return {
            "class": surprise.sum(1) / (weighed / processes),
            "box": (guess - target).abs().view(layers, 4 * pairs).sum(1) / n,
            "giou": (1 - overlap).view(layers, pairs).sum(1) / n,
        }

    def _matched(
        self, logits: Tensor, boxes: Tensor, labels: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The matched pairs of all layers, in order: indices into L * B * Q, int64 [M], labels [M], boxes [M, 4]."""
        layers, images, queries = logits.shape[:3]
        pairs = match(
            logits.flatten(0, 1), boxes.flatten(0, 1), list(labels) * layers, list(targets) * layers, self.costs
        )
        first = [0]  # offset of an image's objects in the batch
        for own in labels:
            first.append(first[-1] + len(own))
        at = torch.cat([guesses + i * queries for i, (guesses, _) in enumerate(pairs)])
        of = torch.cat([objects + first[i % images] for i, (_, objects) in enumerate(pairs)])
        at, of = torch.stack([at, of]).to(logits.device).unbind()
        return at, torch.cat(list(labels))[of], torch.cat(list(targets))[of]

    @torch.no_grad()
    def detect(self, images: Tensor, threshold: float = 0.7, *, sizes: Tensor | None = None) -> list[dict[str, Tensor]]:
        """[B, 3, H, W] -> for each image ``boxes`` [N, 4], absolute (x1, y1, x2, y2) in pixels, ``scores`` [N] and
        ``labels`` int64 [N]: the predictions whose best class has a probability above ``threshold``, highest first.

        sizes: int [B, 2], height and width without padding, as in :meth:`forward`. Threshold 0 gives all Q predictions,
        as average precision needs. Boxes may extend beyond the image.
        """
        boxes, scores, labels = self.candidates(images, sizes)
        found = []
        for score, label, box in zip(scores, labels, boxes, strict=True):
            order = score.argsort(descending=True, stable=True)
            order = order[score[order] > threshold]
            found.append({"boxes": box[order], "scores": score[order], "labels": label[order]})
        return found

    def candidates(self, images: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of every query the box, and the best class with its probability."""
        logits, boxes = (last[-1] for last in self.predict(images, sizes))
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        return cxcywh_to_xyxy(boxes) * self._scales(images, sizes)[:, None], scores, labels

    @torch.no_grad()
    def attention(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Cross-attention of each query in the last decoder layer, mean over heads: [B, 3, H, W] -> [B, Q, h, w].

        h x w is the size of the backbone's last map; each query's map sums to 1, padding has 0 (the paper's figure 6).
        """
        return self.transformer.attention(*self._features(images, sizes), self.query_embed.weight)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen norms stay in evaluation mode."""
        super().train(mode)
        if self.freeze_norms:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.backbone.modules() if isinstance(module, _BatchNorm)]

    def _features(self, images: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The projected map [B, D, h, w], and its mask without padding: bool [B, h, w] (None: no padding)."""
        features = self.input_proj(self.backbone.maps(images)[-1])
        if sizes is None:
            return features, None
        sizes = self._checked(images, sizes)
        down, across = (torch.arange(n, device=images.device) for n in images.shape[-2:])
        image = (down < sizes[:, :1])[:, :, None] & (across < sizes[:, 1:])[:, None]  # [B, H, W]
        return features, F.interpolate(image[:, None].float(), features.shape[-2:])[:, 0].bool()

    def _scales(self, images: Tensor, sizes: Tensor | None) -> Tensor:
        """(w, h, w, h) of each image without padding, float32 or better [B, 4]."""
        if sizes is None:
            sizes = torch.tensor(images.shape[-2:], device=images.device).expand(images.shape[0], 2)
        precise = torch.promote_types(images.dtype, torch.float32)
        return self._checked(images, sizes).flip(1).repeat(1, 2).to(precise)

    @staticmethod
    def _checked(images: Tensor, sizes: Tensor) -> Tensor:
        if sizes.shape != (images.shape[0], 2):  # len() would fix the batch of an export
            raise ValueError(f"sizes must be [{len(images)}, 2] (height and width), got {list(sizes.shape)}")
        return sizes.to(images.device)
