"""What language models share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sensorium.parts.norms import Residual

Joint = Callable[[int], Residual]  # how a layer joins the residual stream, from its width
IGNORED = -100  # a target that has no loss


def precise(x: Tensor) -> Tensor:
    """At least float32, in which softmax statistics are taken."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
