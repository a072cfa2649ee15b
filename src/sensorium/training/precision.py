"""Which floating-point format a run computes in.

``auto`` is bfloat16 autocast where the processor has units for it (it is then several times as fast as float32) and
float32 elsewhere: on a CPU without such units bfloat16 is emulated, and slower.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from sensorium.errors import SensoriumError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")


def fast_bf16(device: torch.device | str) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices in hardware."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(torch.device(device)) >= (8, 0)
    if kind == "cpu":
        return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    return False


def device_name() -> str:
    """The accelerator at hand: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_precision(asked: str, device: torch.device | str) -> str:
    """``auto``, or a name of Lightning's -> a name of Lightning's."""
    if asked == "auto":
        return "bf16-mixed" if fast_bf16(device) else "32-true"
    if asked not in PRECISIONS:
        raise SensoriumError(f"precision {asked!r} is unknown: choose auto, {', '.join(PRECISIONS)}.")
    return asked


def _cpu_flags() -> set[str]:
    """Names of the CPU's features as Linux lists them ("Features" on Arm); empty where the system does not say."""
    info = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not info.exists():
        return set()
    for line in info.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()
