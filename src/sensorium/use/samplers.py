"""`sensorium samplers`: the samplers of one trained run side by side, by the quality of their pictures and what they cost.

Each sampler draws the same number of pictures from the same noise with about the same numbers of evaluations of the network, the
fewest first. Their Fréchet distance d is that of judging (:mod:`sensorium.judge.generated`), of as many training pictures; seconds
are those of drawing alone. Two samplers are compared by the bootstrap of the same pictures: with d_k, the distances of pictures drawn
again, the difference of d and d' has the standard error std_k(d_k - d'_k). Of all whose distance is within two of these of the least,
the one with the fewest evaluations is the one to take.

OUT/samplers.html                         table, curves and pictures, in one file that opens offline
OUT/samplers.json                         the same numbers
OUT/SAMPLER.png                           pictures from the same noise, a row a number of evaluations
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sensorium.abilities import TextConditional
from sensorium.base.files import write_json, write_text
from sensorium.base.precision import device_name
from sensorium.base.reading import printable
from sensorium.base.terminal import bar
from sensorium.base.whole import checked
from sensorium.base.words import counted
from sensorium.errors import SensoriumError
from sensorium.judge.generated import LEAST, as_drawn, feature_space, grid, held_of, pictures_of, samples
from sensorium.metrics.frechet import frechet, frechet_again
from sensorium.pictures.images import save
from sensorium.report.samplers import render, shown
from sensorium.runs.run import Run
from sensorium.runs.signal import page_in
from sensorium.use.able import able

EVALUATIONS = "6,12,25,50"
MOST = 1000  # evaluations of a picture; noise of discrete time has so many steps
SHOWN = 8  # pictures in a row


class Planned(NamedTuple):
    """``steps`` that take ``evaluations`` of the network, the most that are at most ``column``."""

    sampler: str
    steps: int
    evaluations: int
    column: int


@dataclass(frozen=True)
class Measured:
    """``distance`` of the pictures and those ``again`` by the bootstrap [R], ``seconds`` a picture, and the first ``pictures``
    uint8 [SHOWN, 3, H, W]."""

    plan: Planned
    distance: float
    again: Tensor
    seconds: float
    pictures: np.ndarray

    @property
    def row(self) -> dict[str, Any]:
        """For JSON."""
        error = float(self.again.std())
        return {**self.plan._asdict(), "distance": self.distance, "error": error, "seconds": self.seconds}


def samplers_of(
    run: Run | str | Path,
    *,
    samplers: str | Sequence[str] | None = None,
    evaluations: str | Sequence[int] | None = None,
    n: int = 1000,
    out: str | Path | None = None,
    progress: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Compare the ``samplers`` of a run, by default all, with these numbers of ``evaluations`` a picture, by default some and that of the
    run's own default, by ``n`` pictures each. Write
    page, numbers and pictures into the folder ``out``, or sensorium-samplers, and return the content of samplers.json and the page.

    Stopped by Ctrl-C, it is of what was measured so far, and ``stopped``. Raises SensoriumError for a run that does not generate in
    steps, and for unknown samplers.
    """
    found = run if isinstance(run, Run) else Run(run)
    method: Any = able(found, "samplers", found.folder)
    usual = method.evaluations(method.sampler, method.usual_steps)
    plans = planned(method, samplers, evaluations or f"{EVALUATIONS},{usual}")
    checked(n, "--n", least=LEAST)
    page = page_in(Path(out or "sensorium-samplers"), "samplers.html", *found.info.data.places)
    total, done, stopped = sum(plan.evaluations for plan in plans), 0, False
    points: list[Measured] = []
    with bar("evaluations a picture", progress) as advance:
        bench = Bench.of(found, n)
        try:
            for point in bench.measure(plans):
                points.append(point)
                done += point.plan.evaluations
                if advance is not None:
                    advance(done, total)
        except KeyboardInterrupt:
            if not points:
                raise
            stopped = True
    best, take = chosen(points)
    kept = {
        "run": str(found.folder), "system": found.info.recipe, "n": bench.n, "features": bench.features, "held_out": bench.held_out,
        "usual": {"sampler": method.sampler, "steps": method.usual_steps}, "stopped": stopped,
        "points": [point.row for point in points], "best": best.row, "take": take.row, "said": said(points, best, take),
        "command": command(found, take.plan), "pictures": pictured(points, page.parent),
    }  # fmt: skip
    write_text(page, render(kept, page.parent))
    write_json(page.with_name("samplers.json"), kept)
    return kept, page


def planned(method: Any, samplers: str | Sequence[str] | None, evaluations: str | Sequence[int]) -> list[Planned]:
    """What is measured, by evaluations and then in the order of ``samplers``; no number of steps twice."""
    names = method.samplers if samplers is None else samplers.split(",") if isinstance(samplers, str) else samplers
    names = list(dict.fromkeys(name.strip() for name in names))
    if unknown := [name for name in names if name not in method.samplers]:
        hint = " DDIM is euler." if "ddim" in unknown else ""
        raise SensoriumError(
            f"--samplers {printable(','.join(unknown))}: this run's are {', '.join(method.samplers)}.{hint}"
        )
    given = evaluations.split(",") if isinstance(evaluations, str) else evaluations
    found: dict[tuple[str, int], Planned] = {}
    for column in sorted({checked(one, "--evaluations", least=1, most=MOST) for one in given}):
        for name in names:
            fitting = (steps for steps in range(column, 0, -1) if method.evaluations(name, steps) <= column)
            if (steps := next(fitting, None)) is not None:
                plan = Planned(name, steps, method.evaluations(name, steps), column)
                found.setdefault((name, steps), plan)
    if not found:
        least = min((method.evaluations(name, 1) for name in names), default=1)
        raise SensoriumError(f"--evaluations: {', '.join(names)} takes at least {least}.")
    return list(found.values())


@dataclass(frozen=True)
class Bench:
    """What all samplers have in common: the method, the data whose texts or classes it draws if it draws any, the number ``n`` of pictures, the
    ``features`` that compare them, and those of the training pictures, ``real`` [n, D]; ``held_out``: the distance of as many held-out
    pictures, None if there are fewer."""

    method: Any
    ready: Any
    n: int
    features: str
    embed: Callable[[np.ndarray], Tensor]
    real: Tensor
    held_out: float | None

    @classmethod
    def of(cls, run: Run, n: int) -> Bench:
        method: Any = run.method
        ready = run.data()
        train, held = pictures_of(ready.train), pictures_of(held_of(ready))
        if (n := min(n, len(train))) < LEAST:
            raise SensoriumError(
                f"samplers are compared by at least {LEAST} training pictures; the data have {len(train)}."
            )
        name, embed = feature_space(run, ready, None)

        def some(pictures: Any) -> Tensor:
            index = np.sort(np.random.default_rng(0).permutation(len(pictures))[:n])
            return embed(as_drawn(method, np.array(pictures.images[index])))

        real = some(train)
        away = None if ready.test is None or len(held) < n else frechet(some(held), real)
        return cls(method.to(device_name()), ready, n, name, embed, real, away)

    def measure(self, plans: Sequence[Planned]) -> Iterator[Measured]:
        """One after the other. What the machine does once only, it does before the first is timed."""
        self.draw(plans[0].sampler, 1)
        for plan in plans:
            begun = time.perf_counter()
            drawn = self.draw(plan.sampler, plan.steps)
            seconds = (time.perf_counter() - begun) / self.n
            mine = self.embed(drawn)
            yield Measured(
                plan, frechet(mine, self.real), frechet_again(mine, self.real), seconds, drawn[:SHOWN].copy()
            )

    def draw(self, sampler: str, steps: int) -> np.ndarray:
        return samples(self.method, self.ready, self.n, sampler=sampler, steps=steps)


def chosen(points: Sequence[Measured]) -> tuple[Measured, Measured]:
    """The one of least distance, and that with the fewest evaluations of those within two standard errors of it."""
    best = min(points, key=lambda one: one.distance)
    alike = [one for one in points if one.distance - best.distance <= 2 * _apart(one, best)]
    return best, min(alike, key=lambda one: (one.plan.evaluations, one.distance))


def _apart(one: Measured, other: Measured) -> float:
    """The standard error of the difference of their distances, paired."""
    return float((one.again - other.again).std())


def said(points: Sequence[Measured], best: Measured, take: Measured) -> str:
    """The verdict, a sentence."""
    if len(points) == 1:
        return f"{_told(take)}: nothing else was measured beside it."
    if take is not best:
        apart = f"{take.distance - best.distance:.2g} ± {_apart(take, best):.2g}"
        return f"Take {_told(take)}: {_told(best)} is nearer by {apart}, which is within error."
    columns = sorted({one.plan.column for one in points})
    why = "it has the least distance" + ", clearly less than with fewer evaluations" * (take.plan.column > columns[0])
    more = "; more may do better still" * (len(columns) > 1 and take.plan.column == columns[-1])
    return f"Take {_told(take)}: {why}{more}."


def _told(one: Measured) -> str:
    steps = counted(one.plan.steps, "step")
    return f"{one.plan.sampler} with {steps} (distance {shown(one.row)}, {1000 * one.seconds:.3g} ms a picture)"


def command(run: Run, plan: Planned) -> str:
    """What draws with it."""
    words = ["sensorium", "sample", printable(str(run.folder)), "--sampler", plan.sampler, "--steps", str(plan.steps)]
    words += ["--prompt", "TEXT"] if isinstance(run.method, TextConditional) else []
    words += ["--trust", printable(run.info.recipe)] if ":" in run.info.recipe else []
    return shlex.join(words)


def pictured(points: Sequence[Measured], folder: Path) -> list[dict[str, Any]]:
    """Write a grid for each sampler, a row a number of evaluations; their names, files and rows."""
    found = []
    for name in dict.fromkeys(one.plan.sampler for one in points):
        mine = [one for one in points if one.plan.sampler == name]
        pictures = torch.from_numpy(np.concatenate([one.pictures for one in mine])).float() / 255
        save(grid(pictures, len(mine[0].pictures)), folder / f"{name}.png")
        found.append({"sampler": name, "file": f"{name}.png", "rows": [one.plan.evaluations for one in mine]})
    return found
