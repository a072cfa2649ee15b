"""Memory of CLIP's loss as the global batch grows with the number of processes: whole, and in chunks.

Each process holds 128 pairs and compares them with all that were gathered; whole scores take 128 x N numbers a process
when only its own rows are scored, in chunks 16 x N at a time, made again in the backward pass. Here N grows on one
process, rows and columns alike, so the whole is quadratic in N and the chunked one linear.
Run: ``python -m benchmarks.clip_loss``.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch.nn import functional as F

from benchmarks._paired import peak_bytes
from sensorium.multimodal.clip.method import contrast

SIZES, CHUNK, WIDTH = (512, 1024, 2048, 4096), 64, 64


def peak(n: int, chunk: int | None) -> int:
    images, texts = (F.normalize(torch.randn(n, WIDTH), dim=-1).requires_grad_() for _ in range(2))

    def step() -> None:
        images.grad = texts.grad = None
        contrast(images, texts, torch.tensor(10.0), chunk=chunk)[0].backward()

    return max(
        peak_bytes(step, "cpu") for _ in range(3)
    )  # on a busy machine the profiler misses an allocation now and then


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    found = {chunk: [peak(n, chunk) / 2**20 for n in SIZES] for chunk in (None, CHUNK)}
    print("| pairs | whole, MiB | in chunks, MiB |\n|---|---|---|")
    for i, n in enumerate(SIZES):
        print(f"| {n} | {found[None][i]:.1f} | {found[CHUNK][i]:.1f} |")
    for chunk, name in ((None, "whole"), (CHUNK, "in chunks")):
        slope = math.log(found[chunk][-1] / found[chunk][0]) / math.log(SIZES[-1] / SIZES[0])
        print(f"{name}: memory grows as N^{slope:.2f}")


if __name__ == "__main__":
    main()
