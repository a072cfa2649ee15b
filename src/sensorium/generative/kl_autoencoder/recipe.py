"""The KL autoencoder: how to train it, and its view of an image."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from sensorium.base.draw import Draw, Views
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.generative.adversarial import Phase, adam, critic, pick_critic, pick_network, pick_perceptual
from sensorium.generative.kl_autoencoder.method import KLRegularized
from sensorium.generative.signed import signed_views
from sensorium.networks.kl_autoencoder import KL_SIZES, sized
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import pick_batch_size
from sensorium.recipe.recipe import Recipe, Settings, machine_of, refused_by
from sensorium.recipe.trained import RunFolder


def kl_autoencoder(
    on: Situation,
    *,
    network: str | None = None,
    latent: int = 4,
    kl_weight: float = 1e-6,
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
    clip: float = 1.0,
    flip: bool = False,
) -> Recipe:
    """KL autoencoder (Rombach et al., 2021): encodes a picture as a small map of latents, and decodes it.

    Example: sensorium train kl_autoencoder --data DIR --budget 20m

    Args:
        network: size of the autoencoder: micro, small or base.
        latent: channels of the latents.
        kl_weight: weight of the divergence of an image's latents from their prior, beside a sum over its values.
        features: a run of an encoder (e.g. `sensorium train simclr`), whose features define the perceptual loss.
        lpips: published weights of LPIPS for the perceptual loss, VGG16 and its heads: vgg16.pth,vgg.pth.
        batch_size: pictures per step.
        lr: peak learning rate of Adam for encoder and decoder.
        discriminator_lr: learning rate of the discriminator.
        warmup: fraction of the budget for learning rate warm-up.
        start: fraction of the budget before the adversarial loss is added.
        adversarial_weight: weight of the adversarial loss.
        perceptual_weight: weight of the perceptual loss of --features or --lpips.
        discriminator_width: channels after the discriminator's first layer.
        discriminator_depth: layers of the discriminator with stride 2.
        clip: maximum norm of the gradients.
        flip: also flip pictures horizontally; not for letters or digits.
    """
    s = Settings()
    small, why = machine_of(on)
    size = pick_network(network, on, s, KL_SIZES)
    seen = pick_perceptual(features, lpips, s)
    batch = pick_batch_size(batch_size, on, s, cpu=32)
    rate: float = s.pick("lr", lr, 2e-3 if small else 4.5e-6 * batch, f"{why}; the authors' is 4.5e-6 a picture")
    other: float = s.pick("discriminator_lr", discriminator_lr, rate / 2 if small else rate, why)
    usual = 0.1 if small else 0.5
    weight: float = s.pick("adversarial_weight", adversarial_weight, usual, f"{why}; the authors' is 0.5")
    judged = pick_critic(discriminator_width, discriminator_depth, on, s)
    s.note(latent=latent, kl_weight=kl_weight, features=features, lpips=lpips)
    s.note(warmup=warmup, start=start, perceptual_weight=perceptual_weight, clip=clip, flip=flip)
    if latent < 1:
        raise SensoriumError(f"--latent {latent}: must be at least 1.")
    with refused_by("kl_autoencoder", " Choose another --image-size, --network or value."):
        method = KLRegularized(
            sized(size, on.image_size, latent=latent), critic(*judged, on), (on.image_size, on.image_size),
            perceptual=seen, perceptual_weight=perceptual_weight, kl_weight=kl_weight, adversarial_weight=weight,
            start=start, memory=0.95 if small else 0.99, clip=clip,
        )  # fmt: skip
    rates: dict[Phase, float] = {"generator": rate, "discriminator": other}
    optimizers = {phase: partial(adam, phase=phase, lr=value) for phase, value in rates.items()}
    views = kl_views((latent, *method.grid), flip)
    return Recipe("kl_autoencoder", method, views, optimizers, lambda f: warmup_cosine(f, warmup), batch, s)


def kl_views(latents: tuple[int, int, int], flip: bool = False) -> Views:
    """``{"image" [B, 3, S, S] in -1..1, "noise" [B, Z, h, w]}``, the random numbers of the latents."""
    plain = signed_views(flip)

    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        batch = plain(fields, draw)
        return {**batch, "noise": draw.randn(*latents).to(batch["image"].device)}

    return views
