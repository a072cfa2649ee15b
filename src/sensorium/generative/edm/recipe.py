"""EDM: how to train it."""

from __future__ import annotations

from sensorium.data.images.prepare import Situation
from sensorium.generative.diffusion import Diffusion, diffusion_views
from sensorium.networks.choice import velocity_network
from sensorium.parts.denoising.frames import edm_frame
from sensorium.parts.denoising.samplers import Sampler
from sensorium.parts.ema import EMA
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr
from sensorium.recipe.recipe import Recipe, Settings, refused_by


def edm(
    on: Situation,
    *,
    network: str | None = None,
    level_mean: float = -1.2,
    level_spread: float = 1.2,
    classes: bool = True,
    drop: float = 0.1,
    sampler: Sampler = "heun",
    steps: int = 18,
    flip: bool = False,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
    average: float = 0.999,
) -> Recipe:
    """EDM (Karras et al., 2022): a diffusion whose network is scaled so that it has an equally hard task at each noise level.

    Example: sensorium train edm --data DIR --budget 20m

    Args:
        network: unet-micro ... unet-large, or dit-micro and so on.
        level_mean: mean of the logarithm of the noise levels in training.
        level_spread: their standard deviation.
        classes: condition on the class, if the data have classes.
        drop: probability of dropping a label in training, for guidance.
        sampler: euler (DDIM), heun, ancestral (DDPM), dpm, dpm-sde or adaptive; by default when samples are drawn.
        steps: of sampling, by default when samples are drawn.
        flip: also flip pictures horizontally; not for letters or digits.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
        average: momentum of the moving average of the weights that samples are drawn with; 0 for none.
    """
    s = Settings()
    small = on.device == "cpu"
    name = s.pick("network", network, "unet-micro" if small else "unet-small", on.device)
    count = len(on.classes) if classes and len(on.classes) > 1 else 0
    batch = pick_batch_size(batch_size, on, s)
    rate = pick_lr(lr, 2e-3 if small else 4e-4, batch, s)
    s.note(
        level_mean=level_mean,
        level_spread=level_spread,
        classes=classes,
        drop=drop,
        sampler=sampler,
        steps=steps,
        flip=flip,
    )
    s.note(weight_decay=weight_decay, warmup=warmup, average=average)
    with refused_by("edm"):
        frame = edm_frame(2 * (sum(one**2 for one in on.std) / 3) ** 0.5, level_mean, level_spread)
        net = velocity_network(name, on.image_size, count + 1 if count else 0)
        shape = (3, on.image_size, on.image_size)
        method = Diffusion(net, shape, frame, classes=count, drop=drop, sampler=sampler, usual_steps=steps)
        moving = EMA(average) if average else None
    views = diffusion_views(method, flip=flip)
    return Recipe(
        "edm", method, views, adamw(rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s, average=moving
    )
