"""Our side of whole trainings that are timed beside others' on CIFAR-10 files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from sensorium.data.images.cache import Pixels, cache
from sensorium.data.images.open import open_data
from sensorium.data.images.prepare import Situation
from sensorium.recipe.recipe import Recipe
from sensorium.training.fit import Options, fit

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar10" / "train.npz"


def opened(limit: int, folder: Path) -> tuple[Pixels, Situation]:
    """Some pictures of 32 px, kept in ``folder``, and what recipes for them depend on. Ends the command if there are none."""
    if not DATA.is_file():
        raise SystemExit(f"skipped: {DATA} is not there (set SENSORIUM_DATA to the folder of data sets)")
    pixels = cache(open_data(str(DATA), limit=limit).train, 32, folder / "cache")
    return pixels, Situation(
        32, len(pixels), tuple(pixels.classes), pixels.mean, pixels.std, "cpu", os.cpu_count() or 1
    )


def our_seconds(recipe: Recipe, pixels: Pixels, images: int, folder: Path, *, begun: int) -> tuple[float, float]:
    """Seconds an image of a training on ``images`` of them, after the first ``begun`` steps, and the share of all seconds
    spent waiting for data."""
    out = tempfile.mkdtemp(dir=folder)
    outcome = fit(recipe, pixels, budget=f"{images}images", out=out, options=Options(progress=False))
    seconds, seen = np.loadtxt(Path(out) / "metrics.csv", delimiter=",", skiprows=1, usecols=(1, 2)).T
    return (seconds[-1] - seconds[begun - 1]) / (seen[-1] - seen[begun - 1]), outcome.waiting
