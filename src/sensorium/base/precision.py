"""The floating-point format of a run.

``auto`` is bfloat16 autocast where the processor has units for it (it is then several times as fast as float32) and
float32 elsewhere: on a CPU without such units bfloat16 is emulated, and slower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sensorium.base.bf16 import fast_bf16
from sensorium.base.records import Device
from sensorium.errors import SensoriumError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")


def device_name() -> Device:
    """The available device: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_precision(asked: str, device: torch.device | str) -> str:
    """``auto`` or one of Lightning Fabric's precisions -> one of Fabric's precisions."""
    if asked == "auto":
        return "bf16-mixed" if fast_bf16(device) else "32-true"
    if asked not in PRECISIONS:
        raise SensoriumError(f"precision {asked!r} is unknown: choose auto, {', '.join(PRECISIONS)}.")
    return asked


def precise(x: Tensor) -> Tensor:
    """In float32 or better, for losses, norms and softmax statistics."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
