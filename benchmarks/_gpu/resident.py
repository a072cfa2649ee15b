"""Whole training steps, views included, with the images on the GPU and on the host: one method, batches from either in turn.

The host's way is the run's own: a thread reads the next rows into pinned memory while a step runs. Ten steps a turn, so that
what is read ahead during the other's turn is a tenth of it at most. Recipes and batch sizes are the defaults of the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

from benchmarks._gpu.here import Here, cifar, each, noise, ratio, situation
from benchmarks._paired import paired
from sensorium.data.images.cache import Pixels
from sensorium.method import Progress
from sensorium.recipe.recipe import Recipe
from sensorium.selfsup.mae.recipe import mae
from sensorium.selfsup.simclr.recipe import simclr
from sensorium.training.batches import Batches, Share
from sensorium.training.record import peak_memory_mb, reset_peak_memory
from sensorium.training.resident import Resident
from sensorium.training.step import Step

RECIPES: dict[str, Callable[..., Recipe]] = {"simclr": simclr, "mae": mae}
LARGE = 4_096  # pictures of 224 px, 600 MB
TURN = 10  # steps


def batches(here: Here, pixels: Pixels, recipe: Recipe) -> tuple[Batches, Batches]:
    """On the device, and on the host."""
    there, host = (Batches(pixels, recipe.views, Share(recipe.batch_size), seed=0, ahead=True) for _ in range(2))
    host.device = here.device
    there.settle(here.device)
    if here.dry:
        there.rows, there.ahead = Resident(pixels, pixels.fields, here.device), False
    if not isinstance(there.rows, Resident):
        raise SystemExit(f"{len(pixels):,} pictures of {pixels.size} px do not fit in a quarter of the free GPU memory")
    return there, host


def compare(here: Here, system: str, side: int, pixels: Pixels, limit: float) -> None:
    """One system at one size; tells its row."""
    given = {"batch_size": 8} if here.dry else {}
    recipe = RECIPES[system](situation(pixels, here.device), **given)
    method = recipe.method.to(here.device).train()
    step = Step(method, recipe.optimizers, recipe.schedule, network=here.cast(method))
    turn, losses, taken = 1 if here.dry else TURN, [], 0

    def steps(source: Batches) -> None:
        nonlocal taken
        for _ in range(turn):
            losses.append(step(islice(source, 1), Progress(taken, 0, 0.5))["loss"])
            taken += 1
        here.wait()

    there, host = batches(here, pixels, recipe)
    reset_peak_memory(here.device)
    try:
        steps(there)
        steps(host)
        pair = paired(
            system, lambda: steps(there), lambda: steps(host), rounds=3 if here.dry else 30, limit=limit
        )  # fmt: skip
    finally:
        there.close()
        host.close()
    loss, peak = float(losses[-1]), peak_memory_mb(here.device)
    if not all(math.isfinite(float(x)) for x in losses):
        raise SystemExit(f"{system} at {side} px: a loss is not finite")
    rate, other = (turn * recipe.batch_size / seconds for seconds in (pair.ours, pair.theirs))
    backbone = recipe.settings["backbone"].value
    figure = f"{rate:,.0f} pictures/s, {ratio(pair)}; {peak / 1024:.2f} GiB at the peak; {backbone}, batch {recipe.batch_size}, loss {loss:.2f}"
    here.tell(
        f"{system}-{side}", figure, per_second=rate, per_second_host=other, ratio=pair.ratio, low=pair.low, high=pair.high,
        peak_mb=peak, loss=loss, batch_size=recipe.batch_size, backbone=backbone, rounds=pair.rounds,
    )  # fmt: skip


def measure(here: Here) -> None:
    small = cifar(here, here.out.parent / "cache")[0]
    large = noise(16, 48) if here.dry else noise(LARGE, 224)
    todo = [(system, side, pixels) for side, pixels in ((32, small), (224, large)) for system in RECIPES]
    left = iter(range(len(todo), 0, -1))
    each(todo, lambda system, side, pixels: compare(here, system, side, pixels, here.left / next(left) / 2))
