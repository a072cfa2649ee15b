"""Self-training: a network learns the class probabilities of a fine-tuned teacher, the third step of SimCLR v2: big
self-supervised models are strong semi-supervised learners (Chen, Kornblith, Swersky, Norouzi, Hinton, 2020, arXiv:2006.10029).

Few labels fine-tune the teacher; all images, with labels or without, then teach the student, which may be smaller, or as large
and better than its teacher (eq. 2, knowledge distillation: Hinton et al., 2015, arXiv:1503.02531):

    L_d = mean over images x of  -sum_y P_t(y|x; tau) log P_s(y|x; tau)         P(y|x; tau) = softmax(logits(x) / tau)

Labels of the images that have them may be used once more (eq. 3, with means for its sums):

    L = alpha L_d + (1 - alpha) mean over labeled images of  -log P_s(y|x; 1)

Teacher and student see the same crop. As in the paper, and not as in the authors' notebook, L_d is not multiplied by tau^2.
Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.base.precision import precise
from sensorium.method import Progress
from sensorium.parts.gather import sum_over_processes, world_size
from sensorium.parts.moe.layer import update_biases
from sensorium.selfsup.classifier import UNKNOWN, LinearClassifier


class Teacher(Protocol):
    """Gives the targets. No part of the method: it is neither trained nor saved with the student."""

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], as the student gets them -> [B, K]."""
        ...


class SelfTraining(LinearClassifier):
    """A student of class probabilities. backbone: an Encoder. teacher: of K classes. temperature: tau, above 0. alpha: weight
    of the teacher, above 0 and at most 1."""

    def __init__(
        self, backbone: nn.Module, classes: int, teacher: Teacher, *, temperature: float = 1.0, alpha: float = 1.0
    ):
        super().__init__(backbone, classes, "Self-training")
        if temperature <= 0:
            raise ValueError(f"temperature {temperature:g} must be above 0")
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha {alpha:g} must be above 0 and at most 1")
        self.teacher, self.temperature, self.alpha = teacher, temperature, alpha

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["image"]: [B, 3, H, W]; batch["label"]: int64 [B], -1 where unknown.

        Logs ``kl``, the divergence of the student from the teacher in nats, ``agreement`` (fraction of images that both
        classify alike) and ``top1``, the accuracy on the labeled images.
        """
        images, labels = batch["image"], batch["label"]
        with torch.no_grad():
            t = precise(self.teacher.logits(images))
        s = precise(self.logits(images))
        with torch.autocast(s.device.type, enabled=False):
            loss, entropy = distillation_loss(s, t, self.temperature)
            kl = loss.detach() - entropy
            known = labels != UNKNOWN
            # Each process divides by the mean number of labels per process, not by its own.
            count = (sum_over_processes(known.sum().to(s.dtype)) / world_size()).clamp(min=1 / world_size())
            if self.alpha < 1:
                supervised = F.cross_entropy(s, labels, ignore_index=UNKNOWN, reduction="sum") / count
                loss = self.alpha * loss + (1 - self.alpha) * supervised
        found = s.detach().argmax(1)
        agreement = (found == t.argmax(1)).to(s.dtype).mean()
        return {"loss": loss, "kl": kl, "agreement": agreement, "top1": ((found == labels) & known).sum() / count}

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits [B, K] of both -> the loss (eq. 2), and the part of it that no student can avoid, the entropy of the teacher's
    probabilities. Scalars in nats, means over the batch, float32 or better."""
    log_s = F.log_softmax(precise(student) / temperature, dim=1)
    p_t = F.softmax(precise(teacher) / temperature, dim=1)
    return -(p_t * log_s).sum(1).mean(), torch.special.entr(p_t).sum(1).mean()
