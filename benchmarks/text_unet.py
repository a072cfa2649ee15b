"""Training steps of the text-to-image U-Net against diffusers' UNet2DConditionModel: time and peak memory, paired and interleaved.

Stable Diffusion's shape with fewer channels: four resolutions, transformers at the first three, texts of 77 tokens. Both sides
have the same random weights (theirs, written to a file and loaded), inputs and precision (float32 on a CPU, bf16 autocast on a
GPU). A step is forward, mean squared error, backward, fused AdamW, zero_grad. Time: medians over rounds A B, B A, ...; the ratio
is theirs / ours, above 1: ours is faster. Peak memory: as in benchmarks/vit_mae.py; ours / theirs, below 1: ours needs less.
Run: ``python -m benchmarks.text_unet [--json] [--rounds N] [--threads 2] [--device cuda]``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.nn import functional as F

from benchmarks._paired import Pair, paired, peak_bytes, show, step_of
from sensorium.networks.formats.text_unet import load_text_unet

WIDTHS = (64, 128, 256, 256)
TOKENS = 77
# Stable Diffusion's version, side of the latents, batch
CPU_SHAPES = [("1", 32, 2), ("2", 32, 2), ("1", 64, 1)]
GPU_SHAPES = [("1", 32, 64), ("2", 32, 64), ("1", 64, 16)]
VERSIONS: dict[str, dict[str, Any]] = {
    "1": {"attention_head_dim": 8, "cross_attention_dim": 768},
    "2": {"attention_head_dim": (2, 4, 8, 8), "cross_attention_dim": 1024, "use_linear_projection": True},
}


def steps(version: str, side: int, batch: int, device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step of ours, and one of theirs."""
    theirs = UNet2DConditionModel(block_out_channels=WIDTHS, **VERSIONS[version])
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_text_unet(folder)
    x, noise = (torch.randn(batch, 4, side, side, device=device) for _ in range(2))
    text = torch.randn(batch, TOKENS, ours.text_width, device=device)
    t = torch.linspace(1, 999, batch, device=device).long()
    return (
        step_of(ours, lambda: F.mse_loss(ours(x, t, text), noise), device),
        step_of(theirs, lambda: F.mse_loss(theirs(x, t, text).sample, noise), device),
    )


def compare(version: str, side: int, batch: int, rounds: int, device: str) -> tuple[Pair, float, float]:
    """The timing, our peak and theirs in MiB."""
    ours, theirs = steps(version, side, batch, device)
    our_peak, their_peak = (peak_bytes(step, device) / 2**20 for step in (ours, theirs))
    name = (
        f"U-Net of Stable Diffusion {version}, {'-'.join(map(str, WIDTHS))}, latents of {side} x {side}, batch {batch}"
    )
    return paired(name, ours, theirs, rounds=rounds, target=1.0), our_peak, their_peak


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each pair, at most")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    shapes = GPU_SHAPES if given.device == "cuda" else CPU_SHAPES
    rows = [compare(*shape, given.rounds, given.device) for shape in shapes]
    if given.json:
        told = [asdict(pair) | {"peak_mib": ours, "peak_mib_theirs": theirs} for pair, ours, theirs in rows]
        print(json.dumps(told, indent=1))
        return
    show([pair for pair, _, _ in rows])
    print("\n| what | our peak MiB | their peak MiB | ours / theirs |\n|---|---|---|---|")
    for pair, ours, theirs in rows:
        print(f"| {pair.name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
