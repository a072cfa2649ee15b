"""Supervised learning as it comes, on CIFAR-10 or pictures like it: accuracy by seconds of training, and when 94 % is reached.

The recipe's defaults on the device, the schedule over the whole budget; looks at the test pictures are not counted. Made-up
pictures say how fast a run is, and nothing of how well the recipe learns photographs.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks._gpu.here import Here, cifar, situation
from sensorium.data.images.cache import Pixels
from sensorium.method import Method
from sensorium.selfsup.supervised.method import Supervised
from sensorium.selfsup.supervised.recipe import supervised
from sensorium.training.fit import Options, fit

GOAL = 0.94
SHOWN = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the budget


class Accuracy:
    """The share of ``test`` that a classifier gets right."""

    def __init__(self, here: Here, test: Pixels, train: Pixels) -> None:
        self.here = here
        self.images = torch.from_numpy(np.ascontiguousarray(test.images)).to(here.device)
        self.labels = torch.from_numpy(np.asarray(test.labels)).to(here.device)
        self.mean, self.std = (
            torch.tensor(x, dtype=torch.float32, device=here.device)[:, None, None] for x in (train.mean, train.std)
        )

    def __call__(self, method: Method) -> Mapping[str, float]:
        assert isinstance(method, Supervised)
        right = 0
        for images, labels in zip(self.images.split(2_000), self.labels.split(2_000), strict=True):
            with self.here.autocast():
                found = method.logits((images / 255 - self.mean) / self.std)
            right += int((found.argmax(1) == labels).sum())
        return {"top1": right / len(self.labels)}


def curve(folder: Path) -> list[tuple[float, float]]:
    """(seconds, accuracy) of each look."""
    with (folder / "online.csv").open(encoding="utf-8") as file:
        return [(float(row["seconds"]), float(row["top1"])) for row in csv.DictReader(file)]


def told(looks: list[tuple[float, float]], budget: float) -> str:
    """Accuracy at some times, and the first look at which the goal was reached."""
    at = [min(looks, key=lambda look: abs(look[0] - part * budget)) for part in SHOWN]
    by_time = ", ".join(f"{100 * top1:.1f} % at {seconds:.0f} s" for seconds, top1 in dict.fromkeys(at))
    first = next((seconds for seconds, top1 in looks if top1 >= GOAL), None)
    reached = f"{100 * GOAL:.0f} % " + ("not reached" if first is None else f"after {first:.1f} s")
    return f"{reached}; {by_time}"


def measure(here: Here) -> None:
    with tempfile.TemporaryDirectory() as place:
        train, test, what = cifar(here, Path(place) / "cache")
        given = {"batch_size": 16} if here.dry else {}
        recipe = supervised(situation(train, here.device), **given)
        # A fifth of the time for looks, checkpoints and the end.
        budget = "6steps" if here.dry else f"{max(5, int(0.8 * here.left))}s"
        asked = Options(
            device=here.device.type, precision="32-true" if here.dry else "auto", online_every="4%", progress=False
        )
        run = Path(place) / "run"
        outcome = fit(recipe, train, budget=budget, out=run, options=asked, online=Accuracy(here, test, train))
        looks = curve(run)
    figure = f"{told(looks, outcome.seconds)} ({len(train):,} {what}, {recipe.settings['backbone'].value}, {outcome.per_second:,.0f} pictures/s)"
    here.tell(
        "cifar", figure, data=what, train=len(train), test=len(test), seconds=outcome.seconds, curve=looks,
        reached=next((s for s, top1 in looks if top1 >= GOAL), None), per_second=outcome.per_second,
        settings={name: str(setting.value) for name, setting in recipe.settings.items()},
    )  # fmt: skip
