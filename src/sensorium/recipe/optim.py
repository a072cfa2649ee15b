"""Optimizers as recipes use them, and the defaults that follow from data and machine."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from sensorium.abilities import TokenEncoder
from sensorium.data.images.prepare import Situation
from sensorium.method import Method
from sensorium.recipe.recipe import Settings

UNDECAYED = ("cls_token", "pos_embed", "mask_token", "reg_token")


def adamw(
    lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)
) -> Callable[[Method], torch.optim.Optimizer]:
    """AdamW over the trainable parameters; biases, norms and learned tokens are not decayed (MAE, appendix A)."""

    def build(method: Method) -> torch.optim.Optimizer:
        decayed, plain = [], []
        for name, parameter in method.named_parameters():
            if parameter.requires_grad:
                special = parameter.ndim <= 1 or name.rsplit(".", 1)[-1] in UNDECAYED
                (plain if special else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)

    return build


def pick_batch_size(given: int | None, on: Situation, settings: Settings, *, cpu: int = 64) -> int:
    """256 on a GPU, ``cpu`` on a CPU, or what leaves at least eight steps a pass over a small data set (a power of two, 8 or more).

    A CPU is no faster with large batches, and minutes on it are few: what counts is how many updates they hold.
    """
    most, why = (
        (cpu, "a CPU gains nothing from larger batches, and has time for few")
        if on.device == "cpu"
        else (256, "one GPU")
    )
    fit = 2 ** max(3, int(math.log2(max(on.images / 8, 8))))
    return settings.pick("batch_size", given, min(most, fit), f"{on.images:,} training images" if fit < most else why)


def pick_lr(given: float | None, base: float, batch_size: int, settings: Settings) -> float:
    """``base`` is for a batch of 256; adaptive optimizers want it scaled by the square root of the batch."""
    return settings.pick(
        "lr",
        given,
        base * math.sqrt(batch_size / 256),
        f"{base:g} at batch 256, square-root scaling to batch {batch_size}",
    )


def pick_view_size(given: int | None, network: object, on: Situation, settings: Settings) -> int:
    """Side of the training crops in pixels: three quarters of a small picture for a ResNet on a CPU, else the picture's.

    A convolutional network that saw smaller crops does as well on whole pictures (Touvron et al., 2019, arXiv:1906.06423),
    and sees nearly twice as many a minute.
    """
    cheap = on.device == "cpu" and 24 <= on.image_size <= 64 and not isinstance(network, TokenEncoder)
    size = on.image_size * 3 // 4 // 8 * 8 if cheap else on.image_size
    why = (
        "three quarters of the picture: nearly twice as many a minute on a CPU"
        if cheap
        else f"image size {on.image_size}"
    )
    return settings.pick("view_size", given, size, why)
