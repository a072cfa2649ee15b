"""Images per second of methods that learn without labels against lightly's documented example of each, on CIFAR-10 files.

    as shipped   whole training: data, views, step. Ours is the recipe with its defaults on this machine, with as many views as the
                 example where that is a setting; theirs is the example's loop (benchmarks/_examples.py says what is changed of
                 it), in float32, with the best of 0, 1 and 2 DataLoader workers, which are tried once, at a quarter of the batch
    a step       forward, backward, optimizer and moving average alone, on the same ready batch of our views, in the same
                 precision, with the example's optimizer on both sides
The network has the same shape on both sides in both: resnet-micro or vit-micro with our heads, in the place of ResNet-18 or ViT-B/32.
Theirs sees the example's batch, ours where that is larger. A measurement is of as many images on both sides, without the first
step; both are taken in turn in one process, the ratio is theirs / ours within a round, its median is told and its quartiles.
Run: python -m benchmarks.methods [--only simclr,byol] [--rounds 3]; alone, on two cores about a minute a method.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._examples import EXAMPLES
from benchmarks._lightly import Example, Pictures, take, their_seconds
from benchmarks._paired import Pair, paired
from benchmarks._training import opened, our_seconds
from sensorium.base.precision import resolve_precision
from sensorium.catalogue import find
from sensorium.data.images.cache import Pixels
from sensorium.data.images.prepare import Situation
from sensorium.method import Progress
from sensorium.recipe.recipe import Recipe
from sensorium.recipe.trained import make_recipe
from sensorium.training.batches import Batches, Share
from sensorium.training.step import Step

LIMIT, PICTURES, FEWER = 8000, 768, 384  # of the data, of a measurement, and of one with eight views
SHIPPED, STEP = 2.0, 1.0  # the least ratios that are aimed at
WORKERS = (0, 1, 2)


def measure(name: str, pixels: Pixels, on: Situation, folder: Path, *, rounds: int, pictures: int | None = None) -> str:
    """The method's row of the table."""
    kind, precision = EXAMPLES[name], resolve_precision("auto", "cpu")
    count = pictures or (FEWER if kind.crops else PICTURES)

    how: dict[str, Any] = {"local_crops": kind.crops} if kind.crops else {}
    if find(name).needs not in ("TokenEncoder", "MaskedEncoder"):
        how["backbone"] = "resnet-micro"  # the default is a network that torchvision does not have

    def made() -> Recipe:
        return make_recipe(name, on, how)

    recipe = made()
    data, batch = Pictures(pixels.images, kind.transform()), max(kind.batch, recipe.batch_size)

    def theirs(workers: int, size: int = batch) -> float:
        return their_seconds(kind(recipe.method), data, max(count * size // batch, size), batch=size, workers=workers)

    tried = {workers: theirs(workers, max(batch // 4, 1)) for workers in WORKERS}
    best = min(tried, key=tried.__getitem__)
    shipped = whole(
        lambda: our_seconds(made(), pixels, max(count, 3 * recipe.batch_size), folder, begun=1)[0],
        lambda: theirs(best),
        rounds,
    )
    ready = next(Batches(pixels, recipe.views, Share(recipe.batch_size), seed=0))
    example = kind(recipe.method)
    loaded = example.loaded(next(iter(example.loader(data, batch, 0))))
    views = f"{seen(example.ours(ready))} / {seen(loaded)}"
    steps = our_step(recipe, example, ready, precision), their_step(example, ready, precision)
    alone = paired(name, *steps, rounds=5 * rounds, limit=10)
    network = recipe.settings["backbone"].value
    return f"| {name} | {network} | {views} | {best} | {told(shipped, alone)} | {goals(shipped.ratio, alone.ratio)} |"


def whole(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Pair:
    """Both measured in turn, in seconds an image."""
    found: dict[Any, list[float]] = {ours: [], theirs: []}
    for i in range(rounds):
        for side in (ours, theirs)[:: 1 if i % 2 == 0 else -1]:
            found[side].append(side())
    a, b = np.array(found[ours]), np.array(found[theirs])
    low, middle, high = map(float, np.quantile(b / a, [0.25, 0.5, 0.75]))
    return Pair("as shipped", float(np.median(a)), float(np.median(b)), middle, low, high, rounds)


def our_step(recipe: Recipe, example: Example, ready: Mapping[str, Any], precision: str) -> Callable[[], None]:
    method = recipe.method.train()

    def network(batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
            return method(batch)

    step = Step(method, lambda m: example.optimizer(m.parameters()), recipe.schedule, network=network)
    taken = itertools.count()

    def call() -> None:
        step([ready], Progress(next(taken), 0, 0.5))  # half of the budget spent: nothing is frozen any more

    return call


def their_step(example: Example, ready: Mapping[str, Any], precision: str) -> Callable[[], None]:
    example.train()
    optimizer, views = example.optimizer(example.parameters()), example.ours(ready)
    return lambda: take(example, optimizer, views, half=precision != "32-true")


def seen(views: Any) -> str:
    """A batch in words: "64 of 2 x 32 px + 6 x 14 px"."""
    images = [x for x in ([views[0]] if isinstance(views, tuple) else views) if x.ndim == 4]
    sides = Counter(x.shape[-1] for x in images)
    return f"{len(images[0])} of {' + '.join(f'{n} x {side} px' for side, n in sides.items())}"


HEAD = (
    "method", "network", "a batch, ours / theirs", "workers", "ours, images/s", "theirs, images/s", "as shipped (quartiles)",
    "our step, ms", "their step, ms", "a step (quartiles)", "goals",
)  # fmt: skip


def told(shipped: Pair, step: Pair) -> str:
    rates = f"{1 / shipped.ours:.1f} | {1 / shipped.theirs:.1f} | {ratio(shipped)}"
    return f"{rates} | {step.ours * 1e3:.1f} | {step.theirs * 1e3:.1f} | {ratio(step)}"


def ratio(pair: Pair) -> str:
    return f"{pair.ratio:.2f} ({pair.low:.2f} to {pair.high:.2f})"


def goals(shipped: float, step: float) -> str:
    """Which of them are not met."""
    asked = (("as shipped", shipped, SHIPPED), ("a step", step, STEP))
    missed = [f"{what} {found:.2f} of {least:g}" for what, found, least in asked if round(found, 2) < least]
    return f"NOT MET: {', '.join(missed)}" if missed else "met"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(EXAMPLES), help=f"some of {','.join(EXAMPLES)}")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of whole training; of a step at most five times as many"
    )
    asked = parser.parse_args()
    names = asked.only.split(",")
    if unknown := [name for name in names if name not in EXAMPLES]:
        raise SystemExit(f"--only {','.join(unknown)}: choose among {','.join(EXAMPLES)}")
    if asked.rounds < 1:
        raise SystemExit(f"--rounds {asked.rounds}: must be at least 1")
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        pixels, on = opened(LIMIT, Path(folder))
        print(f"Ours as shipped, and a step of both, in {resolve_precision('auto', 'cpu')}.\n")
        print(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|", flush=True)
        for name in names:
            print(measure(name, pixels, on, Path(folder), rounds=asked.rounds), flush=True)


if __name__ == "__main__":
    main()
