"""A training step of MAE with three quarters of the patches masked, against the same network that encodes all of them.

He et al., 2022 (arXiv:2111.06377, abstract) train "by 3x or more" faster, for the encoder gets a quarter of the patches and the
decoder is small. Both sides have the same weights, images and decoder, which gets all patches: with a ratio of 0 all are
encoded, and all are predicted. A step is forward, loss, backward, AdamW (fused), zero_grad; float32 on a CPU, bf16 autocast
on a GPU (``--device cuda``). Medians over rounds A B, B A, ... in one process; the ratio is all / masked, above 1: masking is
faster. Decoders are those of ``sensorium train mae``; of the large networks, which a GPU is needed for, the paper's.

Then a step of SimCLR and of DINO on two views with half of the patches left out (``--patch-dropout 0.5``), against the same weights
with none left out; DINO's teacher encodes all of them on both sides.
Run: ``python -m benchmarks.masking [--json] [--rounds N] [--threads 2] [--device cuda]``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch

from benchmarks._paired import paired, show, step_of
from sensorium.method import Method
from sensorium.networks.vit import VIT_SIZES, ViT
from sensorium.parts.drop import patch_dropout_
from sensorium.parts.heads import DINOHead, ProjectionHead
from sensorium.selfsup.dino.method import DINO
from sensorium.selfsup.mae.method import MAE
from sensorium.selfsup.simclr.method import SimCLR

RATIO, DROPPED = 0.75, 0.5
# size, image, patch, batch, decoder (width, depth, heads)
CPU_SHAPES = [("micro", 32, 4, 32, (96, 1, 3)), ("small", 224, 16, 4, (192, 8, 6))]
GPU_SHAPES = [
    ("small", 224, 16, 256, (192, 8, 6)),
    ("base", 224, 16, 128, (512, 8, 16)),
    ("large", 224, 16, 64, (512, 8, 16)),
]
# size, image, patch, batch
CPU_VIEWS = [("micro", 32, 4, 32)]
GPU_VIEWS = [("small", 224, 16, 128), ("base", 224, 16, 64)]


def steps(
    size: str, image: int, patch: int, batch: int, decoder: tuple[int, int, int], device: str
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A step with ``RATIO`` of the patches masked, and one with none masked."""
    width, depth, heads = decoder
    network = ViT(image, patch, *VIT_SIZES[size], positions="sincos", pool="mean", init="xavier")
    masked = MAE(network, decoder_width=width, decoder_depth=depth, decoder_heads=heads, mask_ratio=RATIO)
    whole = copy.deepcopy(masked)
    whole.mask_ratio = 0.0
    images = torch.randn(batch, 3, image, image, device=device)
    given = {"image": images, "noise": torch.rand(batch, (image // patch) ** 2, device=device)}
    return (
        step_of(masked, lambda: masked(given)["loss"], device),
        step_of(whole, lambda: whole(given)["loss"], device),
    )


def learner(system: str, network: ViT) -> Method:
    """A system on a network, with the heads of `sensorium train` on a CPU."""
    if system == "DINO":
        return DINO(network, DINOHead(network.dim, 1024, hidden=512, bottleneck=128, norm=False))
    return SimCLR(network, ProjectionHead(network.dim, max(network.dim, 256), 128), temperature=0.2)


def of_views(
    system: str, size: str, image: int, patch: int, batch: int, device: str
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A step on two views with ``DROPPED`` of the patches left out, and one with none left out."""
    whole = learner(system, ViT(image, patch, *VIT_SIZES[size]))
    dropping = copy.deepcopy(whole)
    patch_dropout_(dropping, DROPPED)
    views = [torch.randn(batch, 3, image, image, device=device) for _ in range(2)]
    given = {"crops" if system == "DINO" else "views": views}
    return (
        step_of(dropping, lambda: dropping(given)["loss"], device),
        step_of(whole, lambda: whole(given)["loss"], device),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each pair, at most")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    pairs = []
    for shape in GPU_SHAPES if given.device == "cuda" else CPU_SHAPES:
        size, image, patch, batch, _ = shape
        masked, whole = steps(*shape, given.device)
        name = f"MAE {size} {image}/{patch} x{batch}, 75 % masked"
        pairs.append(paired(name, masked, whole, rounds=given.rounds, limit=60.0))
    for system in ("SimCLR", "DINO"):
        for size, image, patch, batch in GPU_VIEWS if given.device == "cuda" else CPU_VIEWS:
            dropping, whole = of_views(system, size, image, patch, batch, given.device)
            name = f"{system} {size} {image}/{patch} x{batch}, 50 % dropped"
            pairs.append(paired(name, dropping, whole, rounds=given.rounds, limit=60.0))
    show(pairs, as_json=given.json)


if __name__ == "__main__":
    main()
