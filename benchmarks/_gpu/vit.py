"""Pictures a second of a two-view step of ViT-S/16 at 224 px in bfloat16, channels last, and the share of the GPU's peak.

A step is SimCLR's: both views of a picture through the network and head, NT-Xent, backward, AdamW. The batch is the largest
power of two up to 1,024 that fits. The share is that of ``FlopCounterMode``'s operations (matrix products, convolutions and
attention, forward and backward) a second in ``PEAKS``. PUBLISHED is the rate stated for such a step on one H200.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._gpu.here import Here, noise, peak_of, situation
from sensorium.method import Progress
from sensorium.recipe.recipe import Recipe
from sensorium.selfsup.simclr.recipe import simclr
from sensorium.training.batches import Batches, Share
from sensorium.training.step import Step

PUBLISHED = 871.0
SIDE, PICTURES, LARGEST = 224, 4_096, 1_024
AT = Progress(0, 0, 0.5)


def recipe_of(here: Here, batch: int) -> Recipe:
    pixels = noise(16, 32) if here.dry else noise(64, SIDE)
    return simclr(
        situation(pixels, here.device), backbone="vit-micro" if here.dry else "vit-small", batch_size=batch
    )  # fmt: skip


def views(here: Here, batch: int, side: int) -> dict[str, list[Tensor]]:
    made = torch.randn(2, batch, 3, side, side, device=here.device)
    return {"views": [one.contiguous(memory_format=torch.channels_last) for one in made]}


Built = tuple[Recipe, Step, dict[str, list[Tensor]]]


def attempt(here: Here, batch: int) -> Built | None:
    """A recipe, its step, and a batch of views; None if the batch does not fit."""
    try:
        recipe = recipe_of(here, batch)
        method = recipe.method.to(here.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        step = Step(method, recipe.optimizers, recipe.schedule, network=here.cast(method))
        given = views(here, batch, 32 if here.dry else SIDE)
        step([given], AT)
        here.wait()
    except torch.OutOfMemoryError:
        return None
    return recipe, step, given


def built(here: Here) -> Built:
    """With the largest batch that fits."""
    batch = 8 if here.dry else LARGEST
    while batch >= 8:
        if found := attempt(here, batch):
            return found
        torch.cuda.empty_cache()
        batch //= 2
    raise SystemExit("a batch of 8 does not fit in the GPU's memory")


def rate(here: Here, call: Callable[[], Any], pictures: int, limit: float) -> float:
    """Pictures a second: the median over turns of four steps, for ``limit`` seconds, at least three turns."""
    found, begin, turn = list[float](), time.monotonic(), 1 if here.dry else 4
    call()
    here.wait()
    while len(found) < 3 or time.monotonic() - begin < limit:
        start = time.perf_counter()
        for _ in range(turn):
            call()
        here.wait()
        found.append(turn * pictures / (time.perf_counter() - start))
        if here.dry and len(found) == 3:
            break
    return statistics.median(found)


def tell(here: Here, row: str, per_second: float, batch: int, operations: float) -> None:
    """Operations are those of a picture."""
    name = torch.cuda.get_device_name() if here.device.type == "cuda" else "this CPU"
    peak = peak_of(name)
    share = None if peak is None else operations * per_second / peak
    part = f"no peak is listed for {name}" if share is None else f"{100 * share:.1f} % of the peak of {name}"
    figure = f"{per_second:,.0f} pictures/s ({per_second / PUBLISHED:.2f}x the published {PUBLISHED:.0f} of an H200), batch {batch}, {part}"
    here.tell(
        row, figure, per_second=per_second, published=PUBLISHED, batch_size=batch, flops_per_picture=operations,
        share_of_peak=share, gpu=name,
    )  # fmt: skip


def measure(here: Here) -> None:
    recipe, step, given = built(here)
    batch, method = recipe.batch_size, recipe.method
    with FlopCounterMode(display=False) as counter:
        loss = float(step([given], AT)["loss"])
    if loss != loss:
        raise SystemExit("the loss is not a number")
    operations = counter.get_total_flops() / batch
    tell(here, "vit-step", rate(here, lambda: step([given], AT), batch, here.left / 7), batch, operations)

    pixels = noise(32, 32) if here.dry else noise(max(batch, PICTURES), SIDE)
    batches = Batches(pixels, recipe.views, Share(batch), seed=0, ahead=True)
    batches.settle(here.device)
    whole = rate(here, lambda: step(islice(batches, 1), AT), batch, here.left / 6)
    batches.close()
    tell(here, "vit-views", whole, batch, operations)

    fast = torch.compile(method, backend="eager") if here.dry else torch.compile(method)
    step.network = here.cast(fast)  # type: ignore[arg-type]
    step([given], AT)  # compiles
    here.wait()
    tell(here, "vit-compiled", rate(here, lambda: step([given], AT), batch, here.left / 2), batch, operations)
