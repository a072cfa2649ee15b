"""This machine: versions, device, precision, attention kernel, and missing packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import statistics
import time
from typing import Any

EXTRAS = {
    "onnx": ("export", "export --to onnx"),
    "onnxruntime": ("export", "checking what was exported to ONNX"),
    "transformers": ("test", "parity tests"),
    "timm": ("test", "parity tests"),
    "lightly": ("test", "parity tests and benchmarks"),
}
CORE = (
    "torch",
    "torchvision",
    "lightning-fabric",
    "scikit-learn",
    "numpy",
    "pillow",
    "safetensors",
    "pyarrow",
    "cyclopts",
    "rich",
)

FACTS = (
    "sensorium",
    "python",
    "system",
    "device",
    "device_name",
    "cores",
    "threads",
    "precision",
    "vector_instructions",
    "free_disk_gb",
)


def examine() -> dict[str, Any]:
    """The facts, as plain values."""
    import torch

    from sensorium import __version__
    from sensorium.base import live, threads
    from sensorium.base.bf16 import fast_bf16
    from sensorium.base.precision import device_name

    chosen = threads.choose()  # first: what follows uses the cores itself
    device = device_name()
    free = shutil.disk_usage(".").free
    return {
        "sensorium": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in CORE},
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": chosen.count,
        "threads_reason": chosen.reason,
        "spin_count": chosen.spin,
        "runs_beside": len(live.others()),
        "precision": "bf16-mixed" if fast_bf16(device) else "32-true",
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "attention": _attention(device),
        "free_disk_gb": round(free / 1e9, 1),
        "optional": {
            name: {"version": _version(name), "for": use, "extra": extra} for name, (extra, use) in EXTRAS.items()
        },
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _attention(device: str) -> dict[str, Any]:
    """Which of torch's scaled-dot-product kernels runs on a small ViT-like input, found by profiling."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    q = torch.randn(2, 3, 65, 64, device=device)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    names = [event.key for event in seen.key_averages()]
    kernel = next(
        (name for name in names if "attention" in name and name != "aten::scaled_dot_product_attention"), "math"
    )
    from sensorium.parts.attention.exact import choose

    packed = choose(q[:1], q[:1], q[:1], lengths=[40, 25])
    return {
        "path": "torch scaled_dot_product_attention",
        "kernel": kernel.removeprefix("aten::"),
        "packed": getattr(packed.attend, "__name__", "?"),
        "packed_reason": packed.reason,
        "milliseconds": _milliseconds(device),
    }


def _milliseconds(device: str) -> dict[str, float]:
    """Causal attention over 512 tokens, four heads of 32: the median of seven calls of each kernel, the fastest
    first."""
    import torch

    from sensorium.parts.attention.exact import fused, naive
    from sensorium.parts.attention.tiled import tiled

    q = torch.randn(1, 4, 512, 32, device=device)
    found = {}
    for attend in (naive, fused, tiled):
        times = []
        for _ in range(8):
            begin = time.perf_counter()
            attend(q, q, q, causal=True)
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        found[attend.__name__] = round(1e3 * statistics.median(times[1:]), 2)
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def render(found: dict[str, Any]) -> Any:
    """The facts as a table."""
    from rich.table import Table

    table = Table(show_header=False, box=None)
    shown = {key: str(found[key]) for key in FACTS}
    waiting = "libgomp's own" if found["spin_count"] is None else f"{found['spin_count']:,}"
    shown["threads"] += f": {found['threads_reason']} (spin count {waiting})"
    for key, value in shown.items():
        table.add_row(key.replace("_", " "), value)
    table.add_row("attention", f"{found['attention']['path']}: {found['attention']['kernel']}")
    measured = ", ".join(f"{name} {ms:g} ms" for name, ms in found["attention"]["milliseconds"].items())
    table.add_row("attention, 512 tokens", measured)
    table.add_row("packed documents", f"{found['attention']['packed']}: {found['attention']['packed_reason']}")
    table.add_row(
        "packages", ", ".join(f"{name} {version or 'MISSING'}" for name, version in found["packages"].items())
    )
    for name, fact in found["optional"].items():
        said = fact["version"] or f"missing: needed for {fact['for']}; pip install 'sensorium[{fact['extra']}]'"
        table.add_row(name, said)
    return table
