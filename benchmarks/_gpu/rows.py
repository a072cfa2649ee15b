"""What ``benchmarks.gpu`` measures: its parts with their shares of the time, and the figures of each."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """``share``: of the time, relative to the others. ``rows``: figure -> what it says."""

    share: float
    rows: dict[str, str]


def _attention(kind: str) -> dict[str, str]:
    shapes = {"197": "197 tokens (ViT at 224 px)", "1024": "1,024 tokens, causal", "4096": "4,096 tokens, causal"}
    return {f"{kind}-{n}": f"{kind} attention against SDPA, {what}, heads of 64" for n, what in shapes.items()}


def _resident(system: str, side: int) -> dict[str, str]:
    return {f"{system}-{side}": f"{system} at {side} px, images on the GPU against images on the host"}


PARTS: dict[str, Part] = {
    "tests": Part(110, {"tests": "tests that need a GPU"}),
    "attention": Part(80, _attention("triton") | _attention("tiled") | _attention("flex")),
    "resident": Part(
        70, _resident("simclr", 32) | _resident("mae", 32) | _resident("simclr", 224) | _resident("mae", 224)
    ),
    "cifar": Part(70, {"cifar": "supervised as it comes, accuracy by time, 94 %"}),
    "vit": Part(
        85,
        {
            "vit-step": "two-view step of ViT-S/16 at 224 px, bf16, channels last, with its share of the GPU's peak",
            "vit-views": "the same with its views, made of images on the GPU",
            "vit-compiled": "the step alone, compiled",
        },
    ),
    "compiled": Part(
        65,
        {
            "resnet-micro": "training step of resnet-micro, `torch.compile(mode='reduce-overhead')` against none",
            "vit-micro": "training step of vit-micro, the same",
        },
    ),
}
