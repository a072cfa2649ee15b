"""Rectified flow: how to train it, reflow it and distill it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from sensorium.base.draw import Draw, Views
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.generative.rectified_flow.method import RectifiedFlow
from sensorium.generative.signed import signed
from sensorium.networks.choice import velocity_network
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.muon import Optimizer, drawing_optimizer
from sensorium.recipe.optim import pick_batch_size
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.recipe.trained import RunFolder, Trained


def rectified_flow(
    on: Situation,
    *,
    network: str | None = None,
    optimizer: Optimizer | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    times: Literal["uniform", "logit-normal"] = "logit-normal",
    classes: bool = True,
    flip: bool = False,
    teacher: RunFolder | None = None,
    one_step: bool = False,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
    drop: float = 0.1,
    teacher_steps: int = 20,
    shift: float | None = None,
) -> Recipe:
    """Rectified flow (Liu et al., 2022): generates pictures from noise along nearly straight trajectories.

    Example: sensorium train rectified_flow --data DIR --budget 20m

    Then reflow: with --teacher RUN it starts from that run's weights and trains on its pairs of noise and samples, so
    that its trajectories are straighter and need fewer steps; with --one-step it is distilled into a single step.

    Args:
        network: unet-micro ... unet-large, or dit-micro and so on.
        optimizer: muon (orthogonal updates of matrices and filters), the default for a U-Net on a CPU, or adamw.
        batch_size: pictures per step.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        warmup: fraction of the budget for learning rate warm-up.
        times: distribution of training times between noise and picture.
        classes: condition on the class, if the data have classes.
        drop: probability of dropping a label in training, for guidance.
        flip: also flip pictures horizontally; not for letters or digits.
        teacher: folder of a rectified_flow run on the same data, for reflow.
        teacher_steps: sampling steps of the teacher.
        one_step: distill the teacher into a single step.
        shift: how far times are shifted toward the noise, in training and sampling; above 1 for large pictures. By default 1, or the teacher's.
    """
    s = Settings()
    small = on.device == "cpu"
    if one_step and teacher is None:
        raise SensoriumError("--one-step distills a trained run: name it with --teacher RUN.")
    master = None if teacher is None else _teacher(teacher, on)
    told = {} if master is None else master.settings
    name = s.pick("network", network, told.get("network") or ("unet-micro" if small else "unet-small"), "the teacher's" if told else on.device)  # fmt: skip
    classes = classes and told.get("classes", True)
    count = len(on.classes) if classes and len(on.classes) > 1 else 0
    net = velocity_network(name, on.image_size, count + 1 if count else 0)
    batch = pick_batch_size(batch_size, on, s)
    build = drawing_optimizer(
        optimizer, lr, net, batch, s, adamw_rate=(2e-3 if small else 4e-4) * (1 if teacher is None else 0.25),
        weight_decay=weight_decay, trained=teacher is not None, better=small and name.startswith("unet"),
    )  # fmt: skip
    s.note(weight_decay=weight_decay, warmup=warmup, times=times, classes=classes, drop=drop, flip=flip)
    moved = s.pick("shift", shift, float(told.get("shift", 1.0)), "the teacher's" if told else "1 does not shift times")
    if not 0 < moved < float("inf"):
        raise SensoriumError(f"--shift {moved:g}: must be a positive number; 1 does not shift times.")
    s.note(teacher=teacher, teacher_steps=teacher_steps, one_step=one_step)
    shape = (3, on.image_size, on.image_size)
    method = RectifiedFlow(net, shape, times="start" if one_step else times, shift=moved, classes=count, drop=drop)
    views = flow_views(method, flip=flip)
    if teacher is not None:
        if master is not None:
            method.load_state_dict(master.method.state_dict())
        views = taught_views(method, master and cast(RectifiedFlow, master.method), teacher_steps)
    return Recipe("rectified_flow", method, views, build, lambda f: warmup_cosine(f, warmup), batch, s)


def flow_views(flow: RectifiedFlow, *, flip: bool = False) -> Views:
    """``{"image" in -1..1, "label" where it learns classes, "noise", "time", "drop" bool}``: all random values of a
    flow's step, drawn per picture."""

    @reads("image", *(("label",) if flow.classes else ()))
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return {
            "image": signed(fields["image"], draw, flip),
            **({"label": fields["label"]} if flow.classes else {}),
            "noise": draw.randn(*flow.shape),
            "time": flow.draw_time(draw.rand()),
            "drop": draw.chance(flow.drop),
        }

    return views


def _teacher(folder: str, on: Situation) -> Trained | None:
    """A run of this system; None if the folder no longer exists, which only matters for training."""
    if not (Path(folder) / "model.safetensors").is_file():
        return None
    run = Trained(folder)
    if run.info.recipe != "rectified_flow" or run.situation.image_size != on.image_size:
        raise SensoriumError(f"--teacher {folder}: must be a run of rectified_flow at {on.image_size} px.")
    return run


def taught_views(flow: RectifiedFlow, teacher: RectifiedFlow | None, steps: int) -> Views:
    """``{"start", "image", "label" where it learns classes, "time", "drop"}``: noise, and the teacher's samples for the
    data's labels."""

    @reads("image", *(("label",) if flow.classes else ()))
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        if teacher is None:
            raise SensoriumError("--teacher: there is no run of rectified_flow; train one first and name its folder.")
        teacher.to(fields["image"].device)
        start = draw.randn(*flow.shape)
        label = {"label": fields["label"]} if flow.classes else {}
        image = teacher.sample(len(start), steps, start=start, condition=label.get("label"), sampler="euler")
        drawn = {"time": flow.draw_time(draw.rand()), "drop": draw.chance(flow.drop)}
        return {"start": start, "image": image, **label, **drawn}

    return views
