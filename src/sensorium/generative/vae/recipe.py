"""VAE: how to train it, and its views of an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from sensorium.base.draw import Draw, Views
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.generative.binary import binary_views
from sensorium.generative.flow import dequantized_views, pick_channels
from sensorium.generative.vae.method import VAE, Estimator
from sensorium.generative.vae.network import Decoder, Encoder, flow_of, widths_of
from sensorium.parts.density.pixels import (
    BernoulliPixels,
    GaussianPixels,
    LogisticPixels,
    PixelDistribution,
    levels_of,
    middle,
)
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr
from sensorium.recipe.recipe import Recipe, Settings, refused_by

Values = Literal["bernoulli", "gaussian", "logistic"]
Posterior = Literal["gaussian", "iaf", "planar"]
FLOWS = {"gaussian": 0, "iaf": 4, "planar": 10}
PIXELS: dict[str, type[PixelDistribution]] = {
    "bernoulli": BernoulliPixels,
    "gaussian": GaussianPixels,
    "logistic": LogisticPixels,
}


def vae(
    on: Situation,
    *,
    values: Values = "logistic",
    latents: int | None = None,
    classes: int = 0,
    estimator: Estimator = "gumbel",
    posterior: Posterior = "gaussian",
    flows: int | None = None,
    beta: float = 1.0,
    free: float = 0.0,
    width: int | None = None,
    hidden: int = 256,
    gray: bool | None = None,
    stochastic: bool = False,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
) -> Recipe:
    """VAE (Kingma & Welling, 2013): a few latent variables of a picture, and what they say of its values.

    Example: sensorium train vae --data DIR --budget 10m

    Args:
        values: distribution of a value: bernoulli (black and white), gaussian, or logistic (256 levels).
        latents: number of latent variables.
        classes: of each latent variable, if they are categorical; 0 for Gaussian ones.
        estimator: of the gradient through categorical ones: gumbel, straight-through, reinforce or rebar.
        posterior: distribution that the encoder gives: gaussian, or changed by flows: iaf (inverse autoregressive) or planar.
        flows: steps of the flow; 4 of iaf, 10 of planar by default.
        beta: weight of the divergence of the latents from their prior.
        free: nats of divergence of each latent that cost nothing; with flows, of all latents together as many for each.
        width: channels of the convolutions at the first scale.
        hidden: units of the layer beside the latents.
        gray: the mean of the channels; by default of pictures that have no colors.
        stochastic: of bernoulli, in training binarize values at random with their intensity as probability.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    if values not in PIXELS:
        raise SensoriumError(f"--values {values}: choose {', '.join(get_args(Values))}.")
    channels = 1 if values == "bernoulli" else pick_channels(gray, on, s)
    wide = s.pick("width", width, 32 if on.device == "cpu" else 64, on.device)
    count = s.pick("latents", latents, 20 if classes else 32, "categorical" if classes else "Gaussian")
    steps = _pick_flows(posterior, flows, classes, s)
    batch = pick_batch_size(batch_size, on, s)
    rate = pick_lr(lr, 2e-3, batch, s)
    if wide < 4 or wide % 4 or hidden < 1:
        raise SensoriumError(
            f"--width {wide} and --hidden {hidden}: the width must be a multiple of 4, and both above 0."
        )
    s.note(values=values, classes=classes, estimator=estimator, beta=beta, free=free, hidden=hidden)
    s.note(stochastic=stochastic, weight_decay=weight_decay, warmup=warmup)
    shape, widths = (channels, on.image_size, on.image_size), widths_of(on.image_size, wide)
    pixels = PIXELS[values]()
    numbers = count * classes if classes else 2 * count + (hidden if steps else 0)
    with refused_by("vae"):
        method = VAE(
            Encoder(shape, max(1, numbers), widths, hidden),
            Decoder(max(1, count * (classes or 1)), shape, channels * pixels.numbers, widths, hidden),
            pixels, shape, count, classes=classes, estimator=estimator, beta=beta, free=free,
            flow=flow_of(max(1, count), steps, hidden, planar=posterior == "planar") if steps else None,
        )  # fmt: skip
    views = vae_views(method, channels, stochastic=stochastic)
    return Recipe("vae", method, views, adamw(rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s)


def _pick_flows(posterior: Posterior, flows: int | None, classes: int, s: Settings) -> int:
    if posterior not in FLOWS:
        raise SensoriumError(f"--posterior {posterior}: choose {', '.join(get_args(Posterior))}.")
    steps = FLOWS[posterior] if flows is None else flows
    if steps < 0 or (steps and posterior == "gaussian"):
        why = "must not be negative" if steps < 0 else "a Gaussian posterior has none; choose --posterior iaf or planar"
        raise SensoriumError(f"--flows {steps}: {why}.")
    if steps and classes:
        raise SensoriumError(
            f"--posterior {posterior} with --classes {classes}: flows change Gaussian latents; give one of the two."
        )
    if steps:  # else not recorded, so that a run from before there were flows goes on
        s.note(posterior=posterior)
        s.pick("flows", flows, steps, posterior)
    return steps


def vae_views(method: VAE, channels: int, *, stochastic: bool = False) -> Views:
    """``{"image", "noise"}``: black and white, of whole levels, or of a density with uniform noise; and the random numbers of the
    latents."""
    plain = _levels(channels)
    if method.pixels.binary:
        plain = binary_views(stochastic)
    elif method.pixels.width < 1:
        plain = dequantized_views(channels)
    one, *more = method.noise_shape

    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        batch = plain(fields, draw)
        noise = draw.rand(one, *more) if method.classes else draw.randn(one)
        return {**batch, "noise": noise.to(batch["image"].device)}

    return views


def _levels(channels: int) -> Views:
    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return {"image": middle(levels_of(fields["image"], channels))}

    return views
