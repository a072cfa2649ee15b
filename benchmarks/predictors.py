"""How well scores that need no labels predict the linear probe: RankMe, LiDAR and alpha-ReQ over the runs of finished comparisons.

Read from ``results.json`` in each folder are the runs of encoders that learned without labels. For each score are printed Spearman's and
Kendall's rank correlation with the accuracy of the probe on all labels, 1 where the better score always belongs to the better probe
(more is better of RankMe and LiDAR, less of alpha-ReQ, as in the report), 0 where it tells nothing, and the percentile interval of
95 % over 1,000 samples of the runs with replacement; of all runs, and of those of each network. The interval knows these runs alone,
not other data.
Run: python -m benchmarks.predictors FOLDER [FOLDER ...] [--plot FILE.svg]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._plots import COLORS, Panel, write
from sensorium.errors import SensoriumError
from sensorium.report.charts import Axis, Line
from sensorium.runs.results import RunResult, read_results

PREDICTORS, PROBE = ("RankMe", "LiDAR", "alpha-ReQ"), "linear, 100%"
LEAST, SAMPLES = 5, 1000
Found = tuple[str, RunResult]  # the folder's name, and a run of it


@dataclass(frozen=True)
class Correlation:
    """``low``, ``high``: the ends of its interval; all are nan where one side does not vary."""

    value: float
    low: float
    high: float


def runs_of(folders: Sequence[Path]) -> list[Found]:
    """Runs that learned without labels and have a probe. Raises SensoriumError for a folder without readable results."""
    found = []
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        runs = read_results(folder).finished
        found += [(folder.name, run) for run in runs if not run.by_labels and run.score(PROBE) is not None]
    return found


def points(runs: Sequence[Found], predictor: str) -> list[tuple[str, float, float]]:
    """(run, score, probe) of those that have both."""
    found = []
    for folder, run in runs:
        score, probe = run.score(predictor), run.score(PROBE)
        if score is not None and score.value is not None and probe is not None and probe.value is not None:
            found.append((f"{folder}/{run.name}", score.value, probe.value))
    return found


def better(runs: Sequence[Found], predictor: str) -> int:
    """1 where more of the score is better, else -1."""
    return next((score.sign for _, run in runs if (score := run.score(predictor)) is not None), 1)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    from scipy.stats import spearmanr

    found: Any = spearmanr(x, y)
    return float(found.statistic)


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    from scipy.stats import kendalltau

    found: Any = kendalltau(x, y)
    return float(found.statistic)


def correlation(x: np.ndarray, y: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]) -> Correlation:
    """A rank correlation [N], [N] with its bootstrap interval; samples of which one side does not vary have none."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(math.nan, math.nan, math.nan)
    sampled = np.random.default_rng(0).integers(len(x), size=(SAMPLES, len(x)))
    each = [measure(x[rows], y[rows]) for rows in sampled if np.ptp(x[rows]) > 0 and np.ptp(y[rows]) > 0]
    low, high = map(float, np.quantile(each, [0.025, 0.975]))
    return Correlation(measure(x, y), low, high)


def groups(runs: Sequence[Found]) -> dict[str, list[Found]]:
    """All runs, and those of each network that has enough of them, as a score may be bounded by the network's width."""
    found: dict[str, list[Found]] = {"all": list(runs)}
    for name in dict.fromkeys(run.backbone for _, run in runs if run.backbone):
        own = [one for one in runs if one[1].backbone == name]
        if LEAST <= len(own) < len(runs):
            found[name] = own
    return found


def table(runs: Sequence[Found]) -> str:
    """As Markdown."""
    lines = ["| predictor | networks | runs | Spearman's rho (95 %) | Kendall's tau (95 %) |\n|---|---|---|---|---|"]
    for name in PREDICTORS:
        for network, some in groups(runs).items():
            found = points(some, name)
            cells = ["too few runs"] * 2
            if len(found) >= LEAST:
                x, y = (np.array([one[i] for one in found]) for i in (1, 2))
                cells = [told(correlation(better(some, name) * x, y, measure)) for measure in (spearman, kendall)]
            lines.append(f"| {name} | {network} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def told(found: Correlation) -> str:
    return "all alike" if math.isnan(found.value) else f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def plot(runs: Sequence[Found], path: Path) -> None:
    """The probe against each score, a point a run; its name and values are the point's title."""
    panels = []
    for i, name in enumerate(PREDICTORS):
        found = points(runs, name)
        if not found:
            continue
        drawn = [
            Line(run, [(score, probe)], COLORS[i], tips=[f"{run}: {score:.4g}, {probe:.1%}"], marker=0, labelled=False)
            for run, score, probe in found
        ]
        x = axis([score for _, score, _ in found], lambda v: f"{v:g}", name)
        y = axis([probe for _, _, probe in found], lambda v: f"{100 * v:g} %", "")
        panels.append(Panel(f"Linear probe on all labels, by {name}", drawn, x, y, height=300))
    write(path, panels)


def axis(values: Sequence[float], show: Callable[[float], str], title: str) -> Axis:
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - room, high + room, show, title=title)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a finished comparison")
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    asked = parser.parse_args()
    try:
        runs = runs_of(asked.folders)
    except SensoriumError as error:
        raise SystemExit(str(error)) from None
    if len(runs) < LEAST:
        raise SystemExit(
            f"{len(runs)} runs without labels have a linear probe on all of them, and a rank correlation needs {LEAST}: name more "
            "folders, or compare more methods with `python -m benchmarks.collapse`."
        )
    print(table(runs))
    if asked.plot:
        plot(runs, asked.plot)


if __name__ == "__main__":
    main()
