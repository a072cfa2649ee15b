"""GAN: how to train it, and its view of an image."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch

from sensorium.base.draw import Draw, Views
from sensorium.data.augment.differentiable import NUMBERS
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.generative.gan.method import GAN, Loss, Penalty, Phase
from sensorium.generative.signed import signed
from sensorium.networks.gan import Discriminator, Generator
from sensorium.parts.ema import EMA
from sensorium.parts.schedules import warmup_linear
from sensorium.recipe.optim import pick_batch_size
from sensorium.recipe.recipe import Recipe, Settings, refused_by

Network = Literal["dcgan", "resnet"]


def gan(
    on: Situation,
    *,
    network: Network = "resnet",
    loss: Loss = "non-saturating",
    penalty: Penalty | None = None,
    penalty_weight: float | None = None,
    spectral: bool = False,
    augment: bool | None = None,
    classes: bool = True,
    noise: int = 64,
    width: int | None = None,
    discriminator_width: int | None = None,
    flip: bool = False,
    batch_size: int | None = None,
    lr: float | None = None,
    discriminator_lr: float | None = None,
    average: float = 0.995,
    clip: float = 0.0,
) -> Recipe:
    """GAN (Goodfellow et al., 2014): a generator that a discriminator can't tell from the pictures.

    Example: sensorium train gan --data DIR --budget 15m

    Args:
        network: of both: dcgan or resnet.
        loss: non-saturating, hinge or wasserstein.
        penalty: of the discriminator's gradients: none, gradient (by default of wasserstein) or r1 (by default of the others, unless
            its layers are normalized).
        penalty_weight: by default 10 of gradient, 1 of r1.
        spectral: spectral normalization of the discriminator's layers.
        augment: augment real and generated pictures alike (DiffAugment); by default of fewer than 10,000.
        classes: condition on the class, if the data have classes.
        noise: numbers that a picture is made of.
        width: channels of the generator at the picture's side.
        discriminator_width: channels of the discriminator after its first block.
        flip: also flip pictures horizontally; not for letters or digits.
        batch_size: pictures per step.
        lr: peak learning rate of Adam for the generator; it falls linearly.
        discriminator_lr: of the discriminator.
        average: momentum of the moving average of the weights that samples are drawn with.
        clip: maximum norm of the gradients; 0 for none.
    """
    s = Settings()
    for name, value, choices in (("network", network, Network), ("loss", loss, Loss), ("penalty", penalty, Penalty)):
        if value is not None and value not in get_args(choices):
            raise SensoriumError(f"--{name} {value}: choose {', '.join(get_args(choices))}.")
    small = on.device == "cpu"
    batch = pick_batch_size(batch_size, on, s, cpu=64)
    usual: Penalty = "gradient" if loss == "wasserstein" else "none" if spectral else "r1"
    kind: Penalty = s.pick("penalty", penalty, usual, loss)
    weight = s.pick("penalty_weight", penalty_weight, 10.0 if kind == "gradient" else 1.0, kind)
    augmented = s.pick("augment", augment, on.images < 10_000, f"{on.images:,} training images")
    wide = s.pick("width", width, 16 if small else 64, on.device)
    other = s.pick("discriminator_width", discriminator_width, 32 if small else 64, on.device)
    rate = s.pick("lr", lr, 1e-3 if small else 2e-4, on.device)
    faster = s.pick("discriminator_lr", discriminator_lr, rate, "the generator's")
    count = len(on.classes) if classes and len(on.classes) > 1 else 0
    s.note(network=network, loss=loss, spectral=spectral, classes=classes)
    s.note(noise=noise, flip=flip, average=average, clip=clip)
    rows = count + 1 if count else 0  # the last is that of unknown classes
    shape, residual = (3, on.image_size, on.image_size), network == "resnet"
    if min(noise, wide, other) < 1 or not 0 <= average < 1:
        raise SensoriumError(
            "--noise, --width and --discriminator-width: at least 1; --average: at least 0 and less than 1."
        )
    with refused_by("gan"):
        method = GAN(
            Generator(noise, shape, wide, classes=rows, residual=residual),
            Discriminator(shape, other, classes=rows, residual=residual),
            shape, noise, loss=loss, penalty=kind, weight=weight, spectral=spectral, augment=augmented, classes=count,
        )  # fmt: skip
    rates: dict[Phase, float] = {"discriminator": faster, "generator": rate}
    optimizers = {phase: partial(_adam, phase=phase, lr=value) for phase, value in rates.items()}
    return Recipe(
        "gan", method, gan_views(method, flip), optimizers, lambda f: warmup_linear(f, 0.02), batch, s,
        average=EMA(average) if average else None,
    )  # fmt: skip


def _adam(method: Any, phase: Phase, lr: float) -> torch.optim.Optimizer:
    """Adam without first moment, as in later GANs, over the parameters of a phase."""
    return torch.optim.Adam(list(method.parameters_of(phase)), lr=lr, betas=(0.0, 0.99), fused=True)


def gan_views(method: GAN, flip: bool = False) -> Views:
    """``{"image" [B, 3, S, S] in -1..1, "noise" [B, 2, Z], "uniform" [B, 1 + 3 A], "label" where it learns classes}``."""

    @reads("image", *(("label",) if method.classes else ()))
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        noise, uniform = draw.randn(2, method.noise), draw.rand(1 + 3 * NUMBERS)
        batch = {"image": signed(fields["image"], draw, flip), "noise": noise, "uniform": uniform}
        if method.classes:
            batch["label"] = fields["label"]
        return batch

    return views
