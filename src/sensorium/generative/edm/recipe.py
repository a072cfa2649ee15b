"""EDM: how to train it."""

from __future__ import annotations

from sensorium.data.images.prepare import Situation
from sensorium.generative.diffusion import diffusion_recipe
from sensorium.generative.signed import deviation
from sensorium.parts.denoising.frames import edm_frame
from sensorium.parts.denoising.samplers import Sampler
from sensorium.recipe.muon import Optimizer
from sensorium.recipe.recipe import Recipe, Settings


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
    clip: bool = False,
    optimizer: Optimizer | None = None,
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
        sampler: euler (DDIM), heun, ancestral (DDPM), dpm, dpm-sde, plms, langevin (NCSN) or adaptive; by default when samples are drawn.
        steps: of sampling, by default when samples are drawn.
        clip: keep what samplers see of the data within the range of pixels.
        flip: also flip pictures horizontally; not for letters or digits.
        optimizer: muon (orthogonal updates of matrices and filters), the default for a U-Net on a CPU, or adamw.
        batch_size: pictures per step.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        warmup: fraction of the budget for learning rate warm-up.
        average: momentum of the moving average of the weights that samples are drawn with; 0 for none.
    """
    s = Settings()
    s.note(level_mean=level_mean, level_spread=level_spread)
    return diffusion_recipe(
        "edm", lambda: edm_frame(deviation(on), level_mean, level_spread), on, s, network=network, classes=classes, drop=drop, sampler=sampler, steps=steps,
        flip=flip, clip=clip, optimizer=optimizer, batch_size=batch_size, lr=lr, weight_decay=weight_decay, warmup=warmup, average=average,
    )  # fmt: skip
