"""Whether bfloat16 is faster: a processor without bfloat16 units emulates it, and float32 is two to three times as
fast."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch


def fast_bf16(device: torch.device | str) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices in hardware."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(torch.device(device)) >= (8, 0)
    if kind == "cpu":
        return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    return False


@functools.cache
def _cpu_flags() -> set[str]:
    """The CPU's feature flags as Linux lists them ("Features" on Arm); empty if not available."""
    info = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not info.exists():
        return set()
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()
