"""Consistency models: how to distill them from a run of EDM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from sensorium.base.draw import Draw, Views
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.generative.consistency.method import Consistency, neighbor
from sensorium.generative.diffusion import Diffusion
from sensorium.generative.signed import deviation, signed
from sensorium.networks.choice import velocity_network
from sensorium.parts.denoising.denoiser import broad
from sensorium.parts.ema import EMA
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.recipe.trained import RunFolder, Trained


def consistency(
    on: Situation,
    *,
    teacher: RunFolder,
    levels: int = 18,
    momentum: float = 0.95,
    steps: int = 1,
    batch_size: int | None = None,
    lr: float | None = None,
    flip: bool = False,
    classes: bool = True,
    drop: float = 0.1,
    network: str | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
    average: float = 0.999,
) -> Recipe:
    """Consistency models (Song et al., 2023): a trained diffusion becomes a function from noise to pictures, of one step or a few.

    Example: sensorium train consistency --teacher sensorium-runs/edm --data DIR --budget 10m

    Args:
        teacher: folder of a run of edm on the same data, whose weights it starts from.
        levels: number of noise levels; with more of them neighbors differ less.
        momentum: of the moving average of the weights that gives the targets.
        steps: of sampling, by default when samples are drawn.
        classes: condition on the class, which is what the teacher does if the data have classes.
        drop: probability of dropping a label in training, for samples without one.
        flip: also flip pictures horizontally; not for letters or digits.
        network: the teacher's; recorded to open the run without it.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
        average: momentum of the moving average of the weights that samples are drawn with; 0 for none.
    """
    s = Settings()
    small = on.device == "cpu"
    if not 0 <= drop <= 1:
        raise SensoriumError(f"--drop {drop:g}: must be in 0..1.")
    run = _teacher(teacher, on)
    told = {} if run is None else run.settings
    name = s.pick("network", network, told.get("network") or "unet-micro", "the teacher's")
    classes = classes and told.get("classes", True)
    count = len(on.classes) if classes and len(on.classes) > 1 else 0
    batch = pick_batch_size(batch_size, on, s)
    s.note(teacher=teacher, levels=levels, momentum=momentum, steps=steps, classes=classes, drop=drop, flip=flip)
    s.note(weight_decay=weight_decay, warmup=warmup, average=average)
    net = velocity_network(name, on.image_size, count + 1 if count else 0)
    rate = pick_lr(lr, (2e-3 if small else 4e-4) / 4, batch, s)
    shape = (3, on.image_size, on.image_size)
    with refused_by("consistency"):
        method = Consistency(
            net, shape, deviation=deviation(on), levels=levels, momentum=momentum, classes=count, usual_steps=steps
        )
        moving = EMA(average) if average else None
    master = None if run is None else cast(Diffusion, run.method)
    if master is not None:
        if name != told["network"] or count != master.classes:
            is_, has = f"{name} of {count} classes", f"{told['network']} of {master.classes} classes"
            raise SensoriumError(
                f"--teacher {teacher}: is {has}, which the student, {is_}, can't start from. Leave --network and --classes "
                "out, and give the data of the teacher's training."
            )
        method.begin_from(master.net)
    views = distilled_views(method, master, drop=drop, flip=flip)
    return Recipe(
        "consistency",
        method,
        views,
        adamw(rate, weight_decay),
        lambda f: warmup_cosine(f, warmup),
        batch,
        s,
        average=moving,
    )


def distilled_views(method: Consistency, teacher: Diffusion | None, *, drop: float = 0.1, flip: bool = False) -> Views:
    """``{"noisy", "solved", "sigma", "below", "label" where it learns classes, -1 where it is dropped}``: neighbors on the teacher's
    trajectories through pictures with noise."""

    @reads("image", *(("label",) if method.classes else ()))
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        if teacher is None:
            raise SensoriumError("--teacher: there is no such run any more; train one first and name its folder.")
        image = signed(fields["image"], draw, flip)
        teacher.to(image.device)
        levels = method.training_sigmas().to(image)
        at = (draw.rand() * (len(levels) - 1)).long().clamp(max=len(levels) - 2)
        sigma, below = levels[at + 1], levels[at]
        noisy = image + broad(sigma, image) * draw.randn(*method.shape)
        label = torch.where(draw.chance(drop), -1, fields["label"]) if method.classes else None
        found = {"noisy": noisy, "solved": neighbor(teacher.denoiser(label), noisy, sigma, below)}
        return found | {"sigma": sigma, "below": below} | ({} if label is None else {"label": label})

    return views


def _teacher(folder: str, on: Situation) -> Trained | None:
    """A run of EDM, in whose scale the student's network works; None if the folder no longer exists, which only matters for training."""
    if not (Path(folder) / "model.safetensors").is_file():
        return None
    run = Trained(folder)
    suits = isinstance(run.method, Diffusion) and run.situation.image_size == on.image_size
    if not (suits and _sees_log_sigma(cast(Diffusion, run.method))):
        raise SensoriumError(f"--teacher {folder}: must be a run of EDM at {on.image_size} px.")
    return run


def _sees_log_sigma(diffusion: Diffusion) -> bool:
    with torch.device("cpu"):  # also where a method is built without memory, on the device "meta"
        sigma = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
        return torch.equal(diffusion.frame.time(sigma), sigma.log() / 4)
