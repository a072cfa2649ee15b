"""Recipes of the generative family: what draws new pictures, or says how likely a picture is.

Each function's keyword parameters are the flags of ``sensorium train NAME``. ``None`` follows from the data and the
machine; what was chosen and why is printed and kept with the run.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from sensorium.backbones.dit import DIT_SIZES, dit
from sensorium.backbones.unet import UNET_SIZES, unet
from sensorium.data.augment import flip as flipped
from sensorium.data.draw import Draw, Views
from sensorium.errors import SensoriumError
from sensorium.generative.made import MADE, binarise
from sensorium.generative.rectified_flow import RectifiedFlow
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipes.optim import adamw, pick_batch_size, pick_lr
from sensorium.recipes.recipe import Recipe, Settings, Situation


def rectified_flow(
    on: Situation,
    *,
    network: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
    times: Literal["uniform", "logit-normal"] = "logit-normal",
    classes: bool = True,
    drop: float = 0.1,
    flip: bool = False,
) -> Recipe:
    """Rectified flow (Liu et al., 2022): straight paths from noise to pictures; new noise, new picture.

    Example: sensorium train rectified_flow --data DIR --budget 20m

    Args:
        network: unet-micro ... unet-large, or dit-micro and so on.
        batch_size: pictures a step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: share of the budget over which the learning rate rises.
        times: where on the way from noise to picture to look while training.
        classes: learn to draw the class that is asked for, where there are classes.
        drop: share of the labels that are hidden while training, for guidance.
        flip: also show every picture mirrored; not for letters or digits.
    """
    s = Settings()
    small = on.device == "cpu"
    name = s.pick("network", network, "unet-micro" if small else "unet-small", on.device)
    count = len(on.classes) if classes and len(on.classes) > 1 else 0
    net = _velocity_network(name, on.image_size, count + 1 if count else 0)
    batch = pick_batch_size(batch_size, on, s)
    rate = pick_lr(lr, 2e-3 if small else 4e-4, batch, s)
    s.note(weight_decay=weight_decay, warmup=warmup, times=times, classes=classes, drop=drop, flip=flip)
    method = RectifiedFlow(net, (3, on.image_size, on.image_size), times=times, classes=count, drop=drop)
    return Recipe(
        "rectified_flow",
        method,
        flow_views(method, flip=flip),
        adamw(rate, weight_decay),
        lambda f: warmup_cosine(f, warmup),
        batch,
        s,
    )


def _velocity_network(name: str, image_size: int, labels: int) -> Any:
    family, _, size = name.partition("-")
    if family == "unet" and size in UNET_SIZES:
        return unet(size, image_size, labels=labels)
    if family == "dit" and size in DIT_SIZES:
        return dit(size, image_size, labels=labels)
    names = [*(f"unet-{size}" for size in UNET_SIZES), *(f"dit-{size}" for size in DIT_SIZES)]
    raise SensoriumError(f"no network is called '{name}'. Choose {', '.join(names)}.")


def flow_views(flow: RectifiedFlow, *, flip: bool = False) -> Views:
    """``{"image" in -1..1, "label", "noise", "time", "drop" bool}``: all chance of a flow's step, drawn per picture."""

    def views(pixels: Tensor, labels: Tensor, draw: Draw) -> dict[str, Any]:
        image = pixels.float() / 127.5 - 1
        return {
            "image": flipped(image, draw) if flip else image,
            "label": labels,
            "noise": draw.randn(*flow.shape),
            "time": flow.draw_time(draw.rand()),
            "drop": draw.chance(flow.drop),
        }

    return views


def made(
    on: Situation,
    *,
    hidden: int | None = None,
    layers: int = 2,
    masks: int = 1,
    natural: bool = False,
    stochastic: bool = True,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
) -> Recipe:
    """MADE (Germain et al., 2015): the exact probability of a black-and-white picture, place after place.

    Example: sensorium train made --data DIR --budget 5m

    Args:
        hidden: units of a hidden layer.
        layers: hidden layers.
        masks: sets of masks that take turns; averaged when judged.
        natural: places in reading order; in an order drawn by chance otherwise.
        stochastic: a grey place is white as often as it is bright, drawn anew each time; by threshold otherwise.
        batch_size: pictures a step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: share of the budget over which the learning rate rises.
    """
    s = Settings()
    units = s.pick("hidden", hidden, 500 if on.device == "cpu" else 2000, on.device)
    batch = pick_batch_size(batch_size, on, s)
    rate = pick_lr(lr, 2e-3, batch, s)
    s.note(layers=layers, masks=masks, natural=natural, stochastic=stochastic, weight_decay=weight_decay, warmup=warmup)
    if layers < 1 or masks < 1:
        raise SensoriumError(f"--layers {layers} and --masks {masks}: one is the least.")
    shape, order = (1, on.image_size, on.image_size), "natural" if natural else "random"
    method = MADE(shape, (units,) * layers, order=order, seeds=range(masks))
    return Recipe(
        "made",
        method,
        binary_views(stochastic),
        adamw(rate, weight_decay),
        lambda f: warmup_cosine(f, warmup),
        batch,
        s,
    )


def binary_views(stochastic: bool) -> Views:
    """``{"image" [B, 1, S, S] zeros and ones, "label"}``: grey pictures by threshold, or by chance as bright as they are."""

    def views(pixels: Tensor, labels: Tensor, draw: Draw) -> dict[str, Any]:
        grey = pixels.float().mean(1, keepdim=True) / 255
        chance = draw.rand(*grey.shape[1:]).to(grey.device) if stochastic else None
        return {"image": binarise(grey, chance), "label": labels}

    return views
