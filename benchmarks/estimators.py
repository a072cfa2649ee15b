"""Bias and variance of the estimators of gradients through choices (``sensorium.parts.estimators``).

One of six choices x is drawn from softmax(a) and costs f(x) = 1 - cos(w . x), which bends between the choices and is
positive as losses are. The sum over the choices gives the gradient of the mean cost exactly,
    dE / da_k = p_k (f_k - E),    E = sum over k of p_k f_k,    p = softmax(a),
and many estimates of it, each from four samples if nothing else is said, give for each estimator
    bias       |mean of the estimates - exact|; its standard error, sqrt(variance / estimates), is what chance alone makes
               of the bias of an unbiased estimator: such a norm is seldom more than twice it
    variance   mean squared distance of an estimate from their mean, summed over the parameters
Per sample REBAR and RELAX ask three times for f or its control where the others ask once. The last row of the table is of
another problem, and in no picture: x = mu + sigma e with the same f, for which E = 1 - cos(w . mu) exp(-|sigma w|^2 / 2).
Run: ``python -m benchmarks.estimators [--samples N] [--plot FILE.svg]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._plots import COLORS, GREY, Panel, log_axis, power, write
from sensorium.parts.estimators import Value, gaussian, gumbel_softmax, rebar, reinforce, relax
from sensorium.report.charts import Line

CHOICES, SAMPLES = 6, 4
GAUSSIAN = "gaussian (of its own E)"
TEMPERATURES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
Estimate = Callable[[Tensor, Tensor], Tensor]  # parameters and uniform noise [rows, K] to a surrogate []


@dataclass(frozen=True)
class Row:
    """What ``measure`` found of one estimator; ``samples`` go into each of the ``estimates``."""

    name: str
    temperature: float | None
    samples: int
    bias: float
    error: float
    variance: float


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOGITS = torch.randn(CHOICES, dtype=torch.float64, generator=seeded(0))  # a
WEIGHT = 2 * torch.randn(CHOICES, dtype=torch.float64, generator=seeded(1))  # w
MEAN_AND_LOG_STD = torch.stack([LOGITS, LOGITS.new_full((CHOICES,), -1.0)])


def f(x: Tensor) -> Tensor:
    """The cost of each row, [S, K] to [S]."""
    return 1 - (x @ WEIGHT).cos()


def expected(logits: Tensor) -> Tensor:
    """E, the sum over the choices."""
    return logits.softmax(-1) @ f(torch.eye(CHOICES, dtype=logits.dtype))


def exact(logits: Tensor) -> Tensor:
    """dE / da [K]."""
    return logits.softmax(-1) * (f(torch.eye(CHOICES, dtype=logits.dtype)) - expected(logits))


def expected_gaussian(parameters: Tensor) -> Tensor:
    """E for normal x of the given mean and logarithmic standard deviation [2, K]."""
    mean, log_std = parameters
    return 1 - (mean @ WEIGHT).cos() * (-0.5 * (log_std.exp() * WEIGHT).square().sum()).exp()


def gradients(estimate: Estimate, parameters: Tensor, rows: int, count: int, seed: int = 0) -> Tensor:
    """``count`` estimates, each of fresh noise of so many rows, [count, *parameters]."""
    noise, one = seeded(seed), torch.vmap(torch.func.grad(estimate), in_dims=(None, 0))
    sizes = [min(5_000, count - done) for done in range(0, count, 5_000)]
    draws = (torch.rand(n, rows, CHOICES, dtype=torch.float64, generator=noise) for n in sizes)
    return torch.cat([one(parameters, draw) for draw in draws])


def measure(name: str, estimate: Estimate, count: int, *, temperature: float | None = None, samples: int = SAMPLES,
            rows: int | None = None, parameters: Tensor = LOGITS, truth: Tensor | None = None) -> Row:  # fmt: skip
    """``rows`` of noise make an estimate, if not one a sample; ``truth`` is the exact gradient, if not that of choices."""
    found = gradients(estimate, parameters, rows or samples, count).flatten(1)
    truth = exact(parameters) if truth is None else truth
    variance = found.var(0).sum().item()
    bias = (found.mean(0) - truth.flatten()).norm().item()
    return Row(name, temperature, samples, bias, (variance / count) ** 0.5, variance)


def halves(estimator: Callable[..., Tensor], **settings: Any) -> Estimate:
    """An estimator of two noises, the first rows for the one and the rest for the other."""

    def estimate(logits: Tensor, uniform: Tensor) -> Tensor:
        return estimator(logits=logits, uniform=uniform[:SAMPLES], again=uniform[SAMPLES:], **settings)

    return estimate


def relaxed(logits: Tensor, uniform: Tensor, *, temperature: float, hard: bool) -> Tensor:
    return f(gumbel_softmax(logits, uniform, temperature, hard=hard)).mean()


def normal(parameters: Tensor, uniform: Tensor) -> Tensor:
    return f(gaussian(parameters[0], parameters[1], torch.special.ndtri(uniform))).mean()


def fitted_control(count: int = 5_000) -> Value:
    """A control for ``relax`` that holds both a baseline and REBAR's at every temperature, by weight. It enters the
    estimate linearly, so the weights of least variance are those of least squares, here over estimates of other noise."""

    def parts(z: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(z[:, 0]), *(f((z / t).softmax(-1)) for t in TEMPERATURES)], -1)

    def estimates(weights: Tensor) -> Tensor:
        found = gradients(halves(relax, f=f, control=lambda z: parts(z) @ weights), LOGITS, 2 * SAMPLES, count, seed=1)
        return (found - found.mean(0)).flatten()

    units = torch.eye(1 + len(TEMPERATURES), dtype=LOGITS.dtype)
    alone = estimates(torch.zeros_like(units[0]))
    change = torch.stack([estimates(unit) - alone for unit in units], -1)
    weights = torch.linalg.lstsq(change, -alone[:, None]).solution[:, 0]
    return lambda z: parts(z) @ weights


def table(count: int) -> list[Row]:
    """Every estimator, each from ``count`` estimates; all meet the same noise."""
    rows = [measure("reinforce", partial(reinforce, f), count)]
    rows.append(measure("reinforce, baseline E", partial(reinforce, f, baseline=expected(LOGITS).item()), count))
    for baseline in ("leave-one-out", "mean"):
        for samples in (2, SAMPLES, 16):
            estimate = partial(reinforce, f, baseline=baseline)
            rows.append(measure(f"reinforce, {baseline}", estimate, count, samples=samples))
    control = fitted_control()
    rows.append(measure("relax, control fitted", halves(relax, f=f, control=control), count, rows=2 * SAMPLES))
    for t in TEMPERATURES:
        rows.append(measure("rebar", halves(rebar, f=f, temperature=t), count, temperature=t, rows=2 * SAMPLES))
    for name, hard in (("gumbel_softmax", False), ("gumbel_softmax, hard", True)):
        for t in TEMPERATURES:
            rows.append(measure(name, partial(relaxed, temperature=t, hard=hard), count, temperature=t))
    truth = torch.func.grad(expected_gaussian)(MEAN_AND_LOG_STD)
    rows.append(measure(GAUSSIAN, normal, count, parameters=MEAN_AND_LOG_STD, truth=truth))
    return rows


def show(rows: list[Row]) -> None:
    """A Markdown table."""
    print(f"The exact gradient has norm {exact(LOGITS).norm():.5f}.\n")
    print("| estimator | temperature | samples an estimate | bias (standard error) | variance |\n|---|---|---|---|---|")
    for row in rows:
        t = "" if row.temperature is None else f"{row.temperature:g}"
        print(f"| {row.name} | {t} | {row.samples} | {row.bias:.5f} ({row.error:.5f}) | {row.variance:.2g} |")


def plot(rows: list[Row], path: Path) -> None:
    """Squared bias and variance by temperature of what takes ``SAMPLES`` choices; what has none is a dashed line."""
    rows = [row for row in rows if row.samples == SAMPLES and row.name != GAUSSIAN]
    names = list(dict.fromkeys(row.name for row in rows))
    # Of what has no bias the squares would show nothing but chance, which goes with the spread.
    biased = {row.name for row in rows if row.bias > 3 * row.error}
    error = {
        t: max(row.error for row in rows if row.name in biased and row.temperature in (None, t)) for t in TEMPERATURES
    }
    x = log_axis(TEMPERATURES, lambda t: f"{t:g}", title="temperature", ticks=TEMPERATURES)

    def line(name: str, value: Callable[[Row], float]) -> Line:
        mine, i = [row for row in rows if row.name == name], names.index(name)
        if mine[0].temperature is None:
            return Line(name, [(t, value(mine[0])) for t in (x.low, x.high)], COLORS[i], dash=i + 1)
        return Line(name, [(row.temperature, value(row)) for row in mine if row.temperature], COLORS[i], marker=i)

    squares = [line(name, lambda row: row.bias**2) for name in names if name in biased]
    squares.append(Line("three standard errors", [(t, 9 * e**2) for t, e in error.items()], GREY, dash=6))
    what = f"of the gradient estimated from {SAMPLES} samples"
    panels = [
        Panel(title, lines, x, log_axis((v for line in lines for _, v in line.points), power), height=320)
        for title, lines in (
            (f"Squared bias {what}, of those beyond three standard errors", squares),
            (f"Variance {what}", [line(name, lambda row: row.variance) for name in names]),
        )
    ]
    write(path, panels)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=30_000, help="estimates of each estimator")
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    given = parser.parse_args()
    rows = table(given.samples)
    show(rows)
    if given.plot:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
