"""Training steps of MAE and ViT against transformers and timm: time and peak memory, paired and interleaved.

A step is forward, loss, backward, AdamW (fused on all sides), zero_grad; same shapes, same images and noise, same
precision, float32 on a CPU; bf16 autocast on a GPU (``--device cuda``) where both sides are timed to their end.
Time: medians over rounds A B, B A, ...; the ratio is theirs / ours, above 1: ours is faster.
Peak memory: on a CPU the profiler's record of every allocation and release in one step, summed up, its highest point
above the start of the step; on a GPU ``torch.cuda.max_memory_allocated``, less what was there before the step. Its ratio
is ours / theirs, below 1: ours needs less.
Run: ``python -m benchmarks.vit_mae [--json] [--rounds N] [--threads 2] [--large]``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining

from benchmarks._paired import Pair, paired, peak_bytes, show, step_of
from sensorium.networks.vit import VIT_SIZES, ViT
from sensorium.selfsup.mae.method import MAE

CLASSES = 10
# size, image, patch, batch, decoder (width, depth, heads)
CPU_SHAPES = [("micro", 32, 4, 64, (96, 2, 3)), ("small", 96, 8, 8, (192, 4, 6))]
LARGE = [("base", 224, 16, 4, (512, 8, 16))]
GPU_SHAPES = [
    ("micro", 32, 4, 1024, (96, 2, 3)),
    ("small", 96, 8, 256, (192, 4, 6)),
    ("base", 224, 16, 128, (512, 8, 16)),
]


class Classifier(nn.Module):
    """A backbone and a linear head: what fine-tuning trains."""

    def __init__(self, backbone: ViT) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone.features(images))


def hf_numbers(size: str) -> dict[str, Any]:
    """What both of transformers' configurations share."""
    width, depth, heads = VIT_SIZES[size]
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "attn_implementation": "sdpa",
        "num_labels": CLASSES,
    }


def classification(size: str, image: int, patch: int, batch: int, device: str) -> dict[str, Callable[[], None]]:
    """Steps of a ViT classifier: ours, timm's, transformers'."""
    width, depth, heads = VIT_SIZES[size]
    images, labels = torch.randn(batch, 3, image, image, device=device), torch.randint(CLASSES, (batch,), device=device)
    ours = Classifier(ViT(image, patch, width, depth, heads))
    timm = VisionTransformer(image, patch, num_classes=CLASSES, embed_dim=width, depth=depth, num_heads=heads)
    config = ViTConfig(image_size=image, patch_size=patch, **hf_numbers(size))
    hf = ViTForImageClassification(config)
    return {
        "ours": step_of(ours, lambda: F.cross_entropy(ours(images), labels), device),
        "timm": step_of(timm, lambda: F.cross_entropy(timm(images), labels), device),
        "transformers": step_of(hf, lambda: F.cross_entropy(hf(images).logits, labels), device),
    }


def pretraining(
    size: str, image: int, patch: int, batch: int, decoder: tuple[int, int, int], device: str
) -> dict[str, Callable[[], None]]:
    """Steps of MAE: ours and transformers'."""
    width, depth, heads = VIT_SIZES[size]
    decoder_width, decoder_depth, decoder_heads = decoder
    images = torch.randn(batch, 3, image, image, device=device)
    noise = torch.rand(batch, (image // patch) ** 2, device=device)
    ours = MAE(
        ViT(image, patch, width, depth, heads, positions="sincos"),
        decoder_width=decoder_width,
        decoder_depth=decoder_depth,
        decoder_heads=decoder_heads,
    )
    config = ViTMAEConfig(
        image_size=image, patch_size=patch, norm_pix_loss=True, decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=decoder_depth, decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_width, **hf_numbers(size),
    )  # fmt: skip
    hf = ViTMAEForPreTraining(config)
    return {
        "ours": step_of(ours, lambda: ours({"image": images, "noise": noise})["loss"], device),
        "transformers": step_of(hf, lambda: hf(images, noise=noise).loss, device),
    }


def compare(
    name: str, steps: dict[str, Callable[[], None]], rounds: int, device: str
) -> list[tuple[Pair, float, float]]:
    """Ours against each other one: the timing, our peak and theirs in MiB."""
    peaks = {side: peak_bytes(step, device) / 2**20 for side, step in steps.items()}
    return [
        (paired(f"{name}, {side}", steps["ours"], step, rounds=rounds, target=1.0), peaks["ours"], peaks[side])
        for side, step in steps.items()
        if side != "ours"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each pair, at most")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--large", action="store_true", help="on a CPU also ViT-Base at 224 px")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    rows = []
    for size, image, patch, batch, decoder in (
        GPU_SHAPES if given.device == "cuda" else CPU_SHAPES + LARGE * given.large
    ):
        shape = f"{size} {image}/{patch} x{batch}"
        rows += compare(
            f"MAE {shape}", pretraining(size, image, patch, batch, decoder, given.device), given.rounds, given.device
        )
        rows += compare(
            f"ViT {shape}", classification(size, image, patch, batch, given.device), given.rounds, given.device
        )
    if given.json:
        print(
            json.dumps(
                [asdict(pair) | {"peak_mib": ours, "peak_mib_theirs": theirs} for pair, ours, theirs in rows], indent=1
            )
        )
        return
    show([pair for pair, _, _ in rows])
    print("\n| what | our peak MiB | their peak MiB | ours / theirs |\n|---|---|---|---|")
    for pair, ours, theirs in rows:
        print(f"| {pair.name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
