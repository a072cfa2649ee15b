"""VQGAN: how to train it, and its view of an image."""

from __future__ import annotations

from functools import partial

from sensorium.data.images.prepare import Situation
from sensorium.generative.adversarial import Phase, adam, critic, pick_critic, pick_network, pick_perceptual
from sensorium.generative.signed import signed_views
from sensorium.generative.vqgan.method import VQGAN
from sensorium.networks.autoencoder import autoencoder
from sensorium.parts.quantize import Quantizer
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import pick_batch_size
from sensorium.recipe.recipe import Recipe, Settings, machine_of, refused_by
from sensorium.recipe.trained import RunFolder


def vqgan(
    on: Situation,
    *,
    network: str | None = None,
    codes: int | None = None,
    code_width: int | None = None,
    features: RunFolder | None = None,
    lpips: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    discriminator_lr: float | None = None,
    warmup: float = 0.05,
    start: float = 0.5,
    adversarial_weight: float | None = None,
    perceptual_weight: float = 1.0,
    discriminator_width: int | None = None,
    discriminator_depth: int | None = None,
    revive: float = 0.1,
    clip: float = 1.0,
    flip: bool = False,
) -> Recipe:
    """VQGAN (Esser et al., 2020): encodes a picture as a small grid of codes of a learned codebook, and decodes it.

    Example: sensorium train vqgan --data DIR --budget 20m

    Then `sensorium train token_prior --tokens RUN` learns a prior over such grids, which generates new pictures.

    Args:
        network: size of the autoencoder: micro, small or base.
        codes: size of the codebook.
        code_width: channels of a code.
        features: a run of an encoder (e.g. `sensorium train simclr`), whose features define the perceptual loss.
        lpips: published weights of LPIPS for the perceptual loss, VGG16 and its heads: vgg16.pth,vgg.pth.
        batch_size: pictures per step.
        lr: peak learning rate of Adam for encoder, codebook and decoder.
        discriminator_lr: learning rate of the discriminator.
        warmup: fraction of the budget for learning rate warm-up.
        start: fraction of the budget before the adversarial loss is added.
        adversarial_weight: weight of the adversarial loss.
        perceptual_weight: weight of the perceptual loss of --features or --lpips.
        discriminator_width: channels after the discriminator's first layer.
        discriminator_depth: layers of the discriminator with stride 2.
        revive: reset a code to an encoder output if its usage is below this fraction of uniform usage; 0 for never.
        clip: maximum norm of the gradients.
        flip: also flip pictures horizontally; not for letters or digits.
    """
    s = Settings()
    small, why = machine_of(on)
    size = pick_network(network, on, s)
    words: int = s.pick("codes", codes, 512 if small else 1024, f"{why}; the paper's is 1024")
    width: int = s.pick("code_width", code_width, 16 if small else 256, f"{why}; the paper's is 256")
    seen = pick_perceptual(features, lpips, s)
    batch = pick_batch_size(batch_size, on, s, cpu=32)
    rate: float = s.pick("lr", lr, 2e-3 if small else 4.5e-6 * batch, f"{why}; the authors' is 4.5e-6 a picture")
    other: float = s.pick("discriminator_lr", discriminator_lr, rate / 2 if small else rate, why)
    usual = 0.1 if small else 0.8
    weight: float = s.pick("adversarial_weight", adversarial_weight, usual, f"{why}; the paper's is 0.8")
    judged = pick_critic(discriminator_width, discriminator_depth, on, s)
    s.note(warmup=warmup, start=start, perceptual_weight=perceptual_weight, revive=revive, clip=clip, flip=flip)
    s.note(features=features, lpips=lpips)
    with refused_by("vqgan", " Choose another --image-size, --network or value."):
        method = VQGAN(
            *autoencoder(size, on.image_size), Quantizer(words, width), critic(*judged, on),
            (on.image_size, on.image_size),
            perceptual=seen, perceptual_weight=perceptual_weight, adversarial_weight=weight, start=start, revive=revive,
            memory=0.95 if small else 0.99, clip=clip,
        )  # fmt: skip
    rates: dict[Phase, float] = {"generator": rate, "discriminator": other}
    optimizers = {phase: partial(adam, phase=phase, lr=value) for phase, value in rates.items()}
    return Recipe("vqgan", method, signed_views(flip), optimizers, lambda f: warmup_cosine(f, warmup), batch, s)
