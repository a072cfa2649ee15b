"""Samplers of one trained diffusion side by side: how near its pictures are to real ones, by evaluations of the network and by time.

Each sampler draws the same number of pictures from the same noise with 6, 12, 25, 50 and 100 evaluations of the network a picture; their Fréchet
distance is that of judging (the features of a network of these pictures). Seconds a picture are those of drawing alone.
Run: python -m benchmarks.samplers RUN [--samples 1000] [--evaluations 6,12,25,50] [--plot FILE.svg]; RUN is a run of ddpm, score_sde or edm. Alone, for it times.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch

from benchmarks._plots import Curves, by_length, write
from sensorium.base.terminal import bar
from sensorium.errors import SensoriumError
from sensorium.generative.diffusion import Diffusion
from sensorium.judge.generated import feature_space, pictures_of
from sensorium.metrics.frechet import frechet, frechet_error
from sensorium.parts.denoising.samplers import Sampler
from sensorium.runs.run import Run

FIXED = tuple(name for name in get_args(Sampler) if name != "adaptive")  # that one takes as many as it needs
EVALUATIONS = "6,12,25,50,100"


class Found(NamedTuple):
    """Of one sampler. seconds: a picture."""

    sampler: Sampler
    evaluations: int
    distance: float
    error: float
    seconds: float


def steps_of(sampler: Sampler, evaluations: int) -> int:
    """Steps that take about so many evaluations: Heun's take two each but the last, PLMS one more in all."""
    return max(1, (evaluations + 1) // 2 if sampler == "heun" else evaluations - (sampler == "plms"))


def measured(run: Run, samplers: Sequence[Sampler], evaluations: Sequence[int], n: int) -> list[Found]:
    """Every sampler with every number of evaluations; SensoriumError if the run is no diffusion."""
    method: Any = run.method
    if not isinstance(method, Diffusion):
        raise SensoriumError(
            f"{run.folder}: no diffusion, so it has no choice of samplers; give a run of ddpm, score_sde or edm."
        )
    ready, found = run.data(), []
    train = pictures_of(ready.train)
    _, embed = feature_space(run, ready, None)
    chosen = np.sort(np.random.default_rng(0).permutation(len(train))[: max(n, 2)])
    real = embed(method.to_pixels(method.from_pixels(torch.from_numpy(np.array(train.images[chosen])))).numpy())
    with bar("drawing", True) as report:
        for k, (sampler, count) in enumerate((one, many) for one in samplers for many in evaluations):
            begun = time.perf_counter()
            drawn = method.sample(n, seed=0, steps=steps_of(sampler, count), sampler=sampler)
            seconds = (time.perf_counter() - begun) / n
            mine = embed(method.to_pixels(drawn).cpu().numpy())
            found.append(Found(sampler, count, frechet(mine, real), frechet_error(mine, real), seconds))
            if report:
                report(k + 1, len(samplers) * len(evaluations))
    return found


def table(found: Sequence[Found]) -> str:
    """As Markdown: distance and milliseconds a picture of each sampler by evaluations."""
    counts = sorted({one.evaluations for one in found})
    lines = [f"| Fréchet distance (ms a picture) | {' | '.join(map(str, counts))} |", "|---" * (len(counts) + 1) + "|"]
    for sampler in dict.fromkeys(one.sampler for one in found):
        cells = {
            one.evaluations: f"{one.distance:.3g} +- {one.error:.2g} ({1000 * one.seconds:.0f})"
            for one in found
            if one.sampler == sampler
        }
        lines.append(f"| {sampler} | {' | '.join(cells.get(count, '') for count in counts)} |")
    return "\n".join(lines)


def plot(found: Sequence[Found], path: Path) -> None:
    """The distance by evaluations, a line a sampler."""
    curves: Curves = {}
    for one in found:
        curves.setdefault(one.sampler, []).append((one.evaluations, one.distance))
    write(path, [by_length("Fréchet distance", "evaluations of the network a picture", curves)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run of a diffusion")
    parser.add_argument("--samples", type=int, default=1000, help="pictures of each sampler")
    parser.add_argument(
        "--samplers", nargs="+", choices=FIXED, default=FIXED, metavar="NAME", help=f"by default {', '.join(FIXED)}"
    )
    parser.add_argument("--evaluations", default=EVALUATIONS, help="of the network a picture, by commas")
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    asked = parser.parse_args()
    try:
        counts = [int(one) for one in asked.evaluations.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 2 or asked.samples < 2:
        raise SystemExit(f"--evaluations {asked.evaluations}, --samples {asked.samples}: whole numbers from 2 on")
    try:
        found = measured(Run(asked.run), asked.samplers, counts, asked.samples)
    except SensoriumError as error:
        raise SystemExit(str(error)) from None
    print(table(found))
    if asked.plot:
        plot(found, asked.plot)


if __name__ == "__main__":
    main()
