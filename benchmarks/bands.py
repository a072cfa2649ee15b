"""Bands of the loss: what finished runs reached over their budgets, for the line that a later run ends with.

Every finished run below the folders is read, of a system that knows the scale of its loss, from random weights, of at least
100 steps, and that did not collapse. Their relative losses (``sensorium/training/bands.py``) are gathered by system, class
of network and size of the pictures (up to 64 pixels, or larger); groups of fewer than three runs are left out. The bands of
a system replace those in its folder, ``bands.json``; systems without runs keep theirs.
Run: ``python -m benchmarks.bands FOLDER [FOLDER ...] [--fewest N] [--dry-run]``.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sensorium.base.files import write_json
from sensorium.base.table import finite, read_table
from sensorium.catalogue import find
from sensorium.errors import SensoriumError
from sensorium.recipe.recipe import READ
from sensorium.runs.listing import list_runs
from sensorium.runs.run import Run
from sensorium.training.bands import (
    AT,
    FEWEST_RUNS,
    FEWEST_STEPS,
    SMALL,
    Band,
    averaged,
    bands_path,
    network_of,
    quantiles,
    scale_of,
)


@dataclass(frozen=True)
class Curve:
    """A run's relative losses at the fractions ``AT`` of its budget."""

    system: str
    network: str
    side: int
    values: tuple[float, ...]


def curve_of(folder: Path) -> Curve | str:
    """The curve of a finished run, or why it has none."""
    run = Run(folder)
    if ":" in run.info.recipe:
        return "a recipe of one's own"
    if READ in run.settings:
        return "it began with the network of a checkpoint"
    if run.info.kind != "images":
        return "it learned from other data than pictures"
    if any("have collapsed" in note for note in run.outcome.notes):
        return "it collapsed"
    rows = [finite(row) for row in read_table(folder / "metrics.csv").rows]
    losses = [row["loss"] for row in rows if "loss" in row]
    if len(losses) < FEWEST_STEPS:
        return f"fewer than {FEWEST_STEPS} steps"
    scale = scale_of(run.recipe.method, rows[-1])
    if scale is None:
        return "the scale of its loss is unknown"
    values = tuple((loss - scale[0]) / (scale[1] - scale[0]) for loss in averaged(losses))
    return Curve(run.info.recipe, network_of(run.recipe.method), run.situation.image_size, values)


def bands_of(curves: Sequence[Curve], fewest: int) -> dict[str, list[Band]]:
    """The bands by system."""
    groups: dict[tuple[str, str, bool], list[Curve]] = defaultdict(list)
    for one in curves:
        groups[one.system, one.network, one.side <= SMALL].append(one)
    found: dict[str, list[Band]] = defaultdict(list)
    for (system, network, _), group in sorted(groups.items()):
        if len(group) >= fewest:
            sides = min(one.side for one in group), max(one.side for one in group)
            found[system].append(Band(network, sides, len(group), AT, **quantiles([one.values for one in group])))
    return found


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--fewest", type=int, default=FEWEST_RUNS, metavar="N", help="runs of a band, at least")
    parser.add_argument("--dry-run", action="store_true", help="print the bands and write nothing")
    asked = parser.parse_args(given)
    curves = []
    for row in list_runs(asked.folders):
        if row.status != "finished":
            continue
        try:
            found = curve_of(Path(row.run))
        except SensoriumError as error:
            found = str(error)
        if isinstance(found, str):
            print(f"{row.run}: left out: {found}")
        else:
            curves.append(found)
    bands = bands_of(curves, asked.fewest)
    if not bands:
        print(f"no band: of no system and network there are {asked.fewest} runs")
    for system, rows in bands.items():
        for band in rows:
            sides = f"{band.sides[0]} to {band.sides[1]} px"
            ends = ", ".join(f"{low:.3f} to {high:.3f}" for low, high in zip(band.low, band.high, strict=True))
            print(f"{system}, {band.network}, {sides}, {band.runs} runs, at {AT}: {ends}")
        if not asked.dry_run:
            path = bands_path(find(system))
            write_json(path, {"made": "python -m benchmarks.bands", "bands": [asdict(band) for band in rows]})
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
