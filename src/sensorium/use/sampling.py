"""New pictures of a run that generates them, and those between the pictures of two seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sensorium.abilities import AnySize, ClassConditional, FromNoise, Generator, IterativeGenerator
from sensorium.base.reading import printable
from sensorium.base.whole import checked
from sensorium.catalogue import a_run_of
from sensorium.errors import SensoriumError
from sensorium.judge.generated import grid
from sensorium.runs.run import Run
from sensorium.use.able import able

BETWEEN = 6  # pictures between two others, with whom they are a row


def draw(
    run: Run,
    n: int,
    *,
    steps: int | None,
    label: str | None,
    guidance: float,
    seed: int,
    trace: bool = False,
    size: tuple[int, int] | None = None,
    start: Tensor | None = None,
    sampler: str | None = None,
) -> Tensor:
    """Samples of a run's method: [n, *shape] in its own value range, with ``trace`` trajectories [steps + 1, n,
    *shape]. start: their noise, which the method has to be a function of. label: by default all classes in turn, with a start none.
    sampler: one of the method's, if it has several."""
    method = generator_of(run)
    if n < 1 or (steps is not None and steps < 1):
        raise SensoriumError(f"--n {n} and --steps {steps}: must be at least 1.")
    how: dict[str, Any] = {"seed": seed} if start is None else {"start": start}
    if isinstance(method, IterativeGenerator):
        how |= {"steps": steps, "trace": trace}
        how |= {} if sampler is None else {"sampler": checked_sampler(sampler, method.samplers)}
    elif sampler is not None:
        raise SensoriumError(f"--sampler: '{run.folder}' does not sample in steps from noise; leave it out.")
    elif trace:
        raise SensoriumError(f"--trace: '{run.folder}' does not sample in steps from noise, so it has no trajectory.")
    if size is not None:
        if not isinstance(method, AnySize):
            where = printable(str(run.folder))
            raise SensoriumError(f"--size: '{where}' draws one size: leave it out; {a_run_of('AnySize')} draws others.")
        how["size"] = size
    if isinstance(method, ClassConditional) and method.classes:
        if guidance != 1 and not method.guided:
            raise SensoriumError(f"--guidance: '{run.folder}' can't be guided; leave it out.")
        # in turn, not of the unknown class, which a generator learns from few pictures or none
        in_turn = torch.arange(n) % method.classes if start is None else None
        how["condition"] = in_turn if label is None else _class_number(label, run)
        how |= {"guidance": guidance} if method.guided else {}
    elif label is not None or guidance != 1:
        raise SensoriumError(f"'{run.folder}' was trained without labels: leave --label and --guidance out.")
    return method.sample(n, **how)


def drawn_between(
    run: Run,
    seeds: tuple[int, int],
    n: int,
    *,
    steps: int | None,
    label: str | None,
    guidance: float,
    seed: int = 0,
    trace: bool = False,
    sampler: str | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """The pictures of two seeds, and ``n`` between them: [n + 2, *shape] in the method's own value range, the first seed's
    first. Their noise is :func:`on_the_arc` between that of the seeds, so that another ``seed`` and a ``trace`` are refused."""
    method = generator_of(run)
    if not isinstance(method, FromNoise):
        raise SensoriumError(
            f"--between: '{printable(str(run.folder))}' does not draw from normal noise; leave it out."
        )
    if seed or trace:
        raise SensoriumError("--between has the noise of two seeds: leave --seed and --trace out.")
    at = torch.linspace(0, 1, checked(n, "--n", least=1) + 2)
    first, last = (method.noise_of(1, one)[0] for one in _two(seeds, str(seeds)))
    start = on_the_arc(first, last, at)
    return draw(
        run, len(at), steps=steps, label=label, guidance=guidance, seed=0, size=size, start=start, sampler=sampler
    )


def checked_sampler(name: str | None, known: Sequence[str]) -> str | None:
    """A sampler's name, or None; SensoriumError if it is not one of those ``known``."""
    if name is not None and name not in known:
        raise SensoriumError(f"--sampler {printable(name)}: choose {', '.join(known)}.")
    return name


def on_the_arc(a: Tensor, b: Tensor, at: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake, 1985) from a [...] to b [...] at fractions [N] of their angle w -> [N, ...]:

        sin((1 - t) w) / sin w a + sin(t w) / sin w b

    In many dimensions normal noise has nearly one length, and so has what lies on the arc; the straight line would be too short.
    """
    cosine = torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
    angle, t = cosine.acos().clamp(1e-4, torch.pi - 1e-4), at.view(-1, *(1,) * a.ndim)
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def seeds_of(text: str) -> tuple[int, int]:
    """The two seeds of "3,8"."""
    return _two(text.split(","), text)


def generator_of(run: Run) -> Any:
    """A run's method, which must be a generator; SensoriumError if it isn't."""
    return able(run, "sample", run.folder)


def sheet(method: Generator, drawn: Tensor, columns: int = 8) -> Tensor:
    """Samples of ``method`` [n, *shape] -> one grid [3, H, W] in 0..1."""
    return grid(method.to_pixels(drawn.cpu()).float() / 255, columns)


def ways(method: Generator, path: Tensor) -> Tensor:
    """Trajectories [S + 1, n, *shape] -> one grid [3, H, W] in 0..1: one row per sample, eight steps of each."""
    stations = torch.linspace(0, len(path) - 1, min(8, len(path))).round().long()
    return sheet(method, path[stations].transpose(0, 1).flatten(0, 1), len(stations))


def _two(seeds: Sequence[Any], told: str) -> tuple[int, int]:
    if len(seeds) != 2:
        raise SensoriumError(f"--between {printable(told)}: give two seeds, such as --between 3,8.")
    return checked(seeds[0], "--between", least=0), checked(seeds[1], "--between", least=0)


def _class_number(label: str, run: Run) -> int:
    classes = list(run.situation.classes)
    if label not in classes:
        raise SensoriumError(f"no class is called '{label}'. The classes are: {', '.join(classes)}.")
    return classes.index(label)
