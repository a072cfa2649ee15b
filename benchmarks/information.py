"""Bias and variance of the bounds of mutual information (``sensorium.parts.learning.information``).

Pairs of 20-dimensional Gaussians whose coordinates correlate by rho have the information I = -20 / 2 log(1 - rho^2), here
2 to 10 nats, and the density ratio of their best critic is known. Each bound is estimated from many fresh batches, of 64
and of 256 pairs (all other pairings of a batch are its marginal samples), with
    the best critic      log r, what the bound itself does; 1 + log r for nwj
    a trained critic     g(x) . h(y), two networks of one hidden layer, trained by the bound itself on batches of the same
                         size while the information rises from 2 to 10 nats in five stages, as in Poole et al. (2019,
                         arXiv:1905.06922), who train longer and larger ones. jsd trains by its own bound, and jsd_nwj
                         is estimated; mine is trained with the moving average, and donsker_varadhan is estimated
and for each are told
    bias       mean of the estimates - I, with its standard error
    variance   of an estimate
InfoNCE can't exceed log N, interpolated at most 1 + log(K / a). An estimator with e^T in a mean has a variance that grows
exponentially with I: where I is large, rare samples that these batches never contain hold most of it, so that variance
and bias as measured are too small.
Run: ``python -m benchmarks.information [--steps N] [--batches N] [--plot FILE.svg]``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks._plots import COLORS, GREY, Panel, log_axis, power, write
from sensorium.parts.learning import information as bound
from sensorium.report.charts import Axis, Line

DIMS, TRUTHS, BATCHES = 20, (2.0, 4.0, 6.0, 8.0, 10.0), (64, 256)
A = 0.1  # of interpolated
HIDDEN, EMBEDDED, LR, MOMENTUM = 128, 32, 2e-3, 0.95
Measure = Callable[[Tensor], Tensor]  # scores [N, N] to a value


@dataclass(frozen=True)
class Row:
    """What was measured of one estimator; ``critic``: "best" or "trained"."""

    name: str
    critic: str
    batch: int
    truth: float
    bias: float
    error: float
    variance: float


def split(measure: Callable[[Tensor, Tensor], Tensor], scores: Tensor) -> Tensor:
    return measure(*bound.pairs(scores))


ESTIMATES: dict[str, Measure] = {
    "donsker_varadhan": partial(split, bound.donsker_varadhan),
    "mine": partial(split, bound.donsker_varadhan),
    "nwj": partial(split, bound.nwj),
    "jsd_nwj": partial(split, bound.jsd_nwj),
    "infonce": partial(split, bound.infonce),
    "interpolated": partial(bound.interpolated, a=A),
}
# With the best critic these are another estimator once more.
TRAINED_ONLY = ("mine", "jsd_nwj")


def draw(truth: float, n: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """n pairs [n, DIMS] of so much information."""
    x, e = torch.randn(2, n, DIMS, generator=noise)
    rho = correlation(truth)
    return x, rho * x + (1 - rho**2) ** 0.5 * e


def correlation(truth: float) -> float:
    return math.sqrt(1 - math.exp(-2 * truth / DIMS))


def log_ratio(x: Tensor, y: Tensor, truth: float) -> Tensor:
    """log p(y_i | x_j) / p(y_i), [N, N], whose mean over pairs is ``truth``."""
    rho = correlation(truth)
    quadratic = y.square().sum(1)[:, None] * rho**2 + x.square().sum(1) * rho**2 - 2 * rho * y @ x.T
    return truth - quadratic / (2 * (1 - rho**2))


class Critic(nn.Module):
    """g(x) . h(y) of every pairing, [N, DIMS] twice -> [N, N]."""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.h = (
            nn.Sequential(nn.Linear(DIMS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, EMBEDDED)) for _ in range(2)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.h(y) @ self.g(x).T


class Objective:
    """What a critic is trained to maximize; holds MINE's moving average."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.log_average: Tensor | None = None

    def __call__(self, scores: Tensor) -> Tensor:
        joint, marginal = bound.pairs(scores)
        if self.name == "jsd_nwj":
            return bound.jsd(joint, marginal)
        if self.name != "mine":
            return ESTIMATES[self.name](scores)
        now = bound.log_mean_exp(marginal).detach()
        self.log_average = (
            now if self.log_average is None else bound.updated_log_average(self.log_average, marginal, MOMENTUM)
        )
        return bound.mine(joint, marginal, self.log_average)


def estimated(scores: Sequence[Tensor], name: str, critic: str, batch: int, truth: float) -> Row:
    found = torch.stack([ESTIMATES[name](one) for one in scores]).double()
    variance = found.var().item()
    return Row(name, critic, batch, truth, found.mean().item() - truth, (variance / len(found)) ** 0.5, variance)


def best(batch: int, truth: float, count: int) -> list[Row]:
    noise = torch.Generator().manual_seed(1)
    scores = [log_ratio(*draw(truth, batch, noise), truth) for _ in range(count)]
    more = [one + 1 for one in scores]
    return [
        estimated(more if name == "nwj" else scores, name, "best", batch, truth)
        for name in ESTIMATES
        if name not in TRAINED_ONLY
    ]


def trained(name: str, batch: int, steps: int, count: int) -> list[Row]:
    """A row for each stage of one training."""
    torch.manual_seed(0)
    critic, objective, noise = Critic(), Objective(name), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(critic.parameters(), LR, fused=True)
    rows = []
    for truth in TRUTHS:
        for _ in range(steps):
            loss = -objective(critic(*draw(truth, batch, noise)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        fresh = torch.Generator().manual_seed(1)
        with torch.no_grad():
            scores = [critic(*draw(truth, batch, fresh)) for _ in range(count)]
        rows.append(estimated(scores, name, "trained", batch, truth))
    return rows


def table(steps: int, count: int) -> list[Row]:
    """Every estimator with both critics, batches and all amounts of information; each meets the same samples."""
    rows = [row for batch in BATCHES for truth in TRUTHS for row in best(batch, truth, count)]
    return rows + [row for batch in BATCHES for name in ESTIMATES for row in trained(name, batch, steps, count)]


def show(rows: list[Row]) -> None:
    """A Markdown table: bias (standard error) and variance by the true information."""
    print("| bound | critic | batch | " + " | ".join(f"{truth:g} nats: bias, variance" for truth in TRUTHS) + " |")
    print("|---" * (3 + len(TRUTHS)) + "|")
    for name, critic, batch in dict.fromkeys((row.name, row.critic, row.batch) for row in rows):
        mine = [row for row in rows if (row.name, row.critic, row.batch) == (name, critic, batch)]
        cells = (f"{row.bias:+.2f} ({row.error:.2g}), {row.variance:.2g}" for row in mine)
        print(f"| {name} | {critic} | {batch} | {' | '.join(cells)} |")


def plot(rows: list[Row], path: Path) -> None:
    """Mean estimates by the true information, with the spread of one, and their variances."""
    x = Axis(TRUTHS[0] - 0.4, TRUTHS[-1] + 0.4, lambda v: f"{v:g}", title="mutual information, nats", ticks=TRUTHS)
    names = list(ESTIMATES)

    def lines(critic: str, batch: int, value: Callable[[Row], float]) -> list[Line]:
        found = []
        for i, name in enumerate(names):
            mine = [row for row in rows if (row.name, row.critic, row.batch) == (name, critic, batch)]
            if mine:
                found.append(Line(name, [(row.truth, value(row)) for row in mine], COLORS[i], marker=i % 5))
        return found

    y = Axis(0, 12, lambda v: f"{v:g}", ticks=range(0, 13, 2))
    panels, ends = [], (x.low, x.high)
    for critic, batch in ((critic, batch) for critic in ("best", "trained") for batch in BATCHES):
        drawn = lines(critic, batch, lambda row: min(max(row.truth + row.bias, 0.0), 12.0))
        drawn.append(Line("truth", [(end, end) for end in ends], GREY, dash=1))
        drawn.append(Line(f"log {batch}", [(end, math.log(batch)) for end in ends], GREY, dash=2))
        what = f"Mean estimate, nats (at 0 if below): the {critic} critic, {batch} pairs a batch"
        panels.append(Panel(what, drawn, x, y, height=300))
    for critic in ("best", "trained"):
        drawn = lines(critic, BATCHES[0], lambda row: row.variance)
        axis = log_axis((v for line in drawn for _, v in line.points), power)
        what = f"Variance of an estimate: the {critic} critic, {BATCHES[0]} pairs a batch"
        panels.append(Panel(what, drawn, x, axis, height=300))
    write(path, panels)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600, help="of training, for each amount of information")
    parser.add_argument("--batches", type=int, default=500, help="for each estimate's bias and variance")
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = table(given.steps, given.batches)
    show(rows)
    if given.plot:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
