"""Score matching by SDEs: how to train it."""

from __future__ import annotations

from typing import Literal

from sensorium.data.images.prepare import Situation
from sensorium.generative.diffusion import diffusion_recipe
from sensorium.parts.denoising.frames import frame_of
from sensorium.parts.denoising.paths import Prediction
from sensorium.parts.denoising.samplers import Sampler
from sensorium.recipe.muon import Optimizer
from sensorium.recipe.recipe import Recipe, Settings

FORMERLY = {"prediction": "noise"}


def score_sde(
    on: Situation,
    *,
    network: str | None = None,
    sde: Literal["ve", "vp", "subvp"] = "vp",
    prediction: Prediction = "velocity",
    classes: bool = True,
    drop: float = 0.1,
    sampler: Sampler = "heun",
    steps: int = 25,
    flip: bool = False,
    clip: bool = True,
    optimizer: Optimizer | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
    average: float = 0.999,
) -> Recipe:
    """Score matching (Song et al., 2020): learns the gradient of the log density of noisy pictures, and follows it.

    Example: sensorium train score_sde --data DIR --budget 20m

    Args:
        network: unet-micro ... unet-large, or dit-micro and so on.
        sde: how noise comes in: ve (NCSN's scales), vp (DDPM's limit) or subvp.
        prediction: what the network tells of a noisy picture, from which the score follows: velocity (of the way from noise to it, which
            takes the fewest steps to learn), noise (the paper's), x, v or score.
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
    s.note(sde=sde, prediction=prediction)
    return diffusion_recipe(
        "score_sde", lambda: frame_of(sde, prediction), on, s, network=network, classes=classes, drop=drop, sampler=sampler, steps=steps,
        flip=flip, clip=clip, optimizer=optimizer, batch_size=batch_size, lr=lr, weight_decay=weight_decay, warmup=warmup, average=average,
    )  # fmt: skip
