"""The optimal matching of predictions and objects in DETR (Carion et al., 2020, arXiv:2005.12872, 3.1).

Every object of an image is matched to one prediction, with minimum total cost (eq. 1). The cost of a pair is
    C[q, n] = -c_class p_q[label_n]  +  c_box |b_q - t_n|_1  -  c_giou GIoU(b_q, t_n)              (eq. 2, appendix A.2)
with the probability p where the loss has its logarithm, so that the three terms are of the same magnitude. The
Hungarian algorithm finds the minimum, deterministically.
Shapes: B images, Q predictions per image, C classes (including no-object), N_b objects of image b, N their maximum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sensorium.parts.boxes import cxcywh_to_xyxy, paired_giou

Costs = tuple[float, float, float]

# Replaces a non-finite cost: above any other, and small enough that float64 still resolves the others.
HOPELESS = 1e6


@torch.no_grad()
def match(
    logits: Tensor,
    boxes: Tensor,
    labels: Sequence[Tensor],
    targets: Sequence[Tensor],
    costs: Costs = (1.0, 5.0, 2.0),
) -> list[tuple[Tensor, Tensor]]:
    """The optimal matching of each image.

    logits: [B, Q, C]. boxes: [B, Q, 4], center and size in units of the image. labels: B of int64 [N_b] in 0..C-1.
    targets: B of [N_b, 4], in the same form as ``boxes``. costs: c_class, c_box, c_giou.
    -> B of (predictions, objects): int64 [min(Q, N_b)] each, on the CPU, predictions ascending. Where there are more
    objects than predictions, some objects stay unmatched. Non-finite costs (a diverged network) are handled.
    """
    if not len(logits) == len(boxes) == len(labels) == len(targets):
        raise ValueError(f"{len(logits)} logits, {len(boxes)} boxes, {len(labels)} labels, {len(targets)} targets")
    padded_labels = pad_sequence(list(labels), batch_first=True)
    padded_targets = pad_sequence(list(targets), batch_first=True)
    # One transfer for the whole batch: padding is cheaper than a synchronization per image.
    cost = matching_cost(logits, boxes, padded_labels, padded_targets, costs).cpu()
    return [assign(of_image[:, : len(own)]) for of_image, own in zip(cost, labels, strict=True)]


def matching_cost(logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor, costs: Costs) -> Tensor:
    """[B, Q, C], [B, Q, 4], [B, N], [B, N, 4] -> C [B, Q, N], at least float32."""
    precise = torch.promote_types(logits.dtype, torch.float32)
    probability = logits.to(precise).softmax(-1)
    boxes, targets = boxes.to(precise), targets.to(precise)
    of_label = probability.gather(-1, labels[:, None].expand(-1, logits.shape[1], -1))
    overlap = paired_giou(cxcywh_to_xyxy(boxes)[:, :, None], cxcywh_to_xyxy(targets)[:, None])
    return -costs[0] * of_label + costs[1] * torch.cdist(boxes, targets, p=1) - costs[2] * overlap


def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Costs [Q, N] -> rows and columns of the minimum-cost matching, int64 [min(Q, N)], rows ascending."""
    from scipy.optimize import linear_sum_assignment  # a slow import, only needed here

    known = torch.nan_to_num(cost.double(), nan=HOPELESS, posinf=HOPELESS, neginf=HOPELESS)
    rows, columns = linear_sum_assignment(known.numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)
