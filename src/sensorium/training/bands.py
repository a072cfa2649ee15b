"""Is this loss normal? What finished runs of a system reached over their budgets, and where a run lies in it.

    r = (loss - least) / (chance - least)         the relative loss, by the method's own scale
                                                  (``Method.loss_scale``)
A band is the quantiles of r over runs at some fractions of the budget, of a kind of network and a size of pictures. It is
in ``bands.json`` in the system's folder, written by ``python -m benchmarks.bands`` from the tables of runs. Runs that went
on from a checkpoint's network are neither in it nor compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

from sensorium.base.reading import read_object
from sensorium.base.records import Count, decode
from sensorium.catalogue import System, systems
from sensorium.method import Method
from sensorium.networks.seen import inner
from sensorium.recipe.recipe import READ, Recipe

FILE = "bands.json"
AT = (0.1, 0.25, 0.5, 0.75, 1.0)  # fractions of the budget
QUANTILES = (0.05, 0.95)
SMALL = 64  # pixels: smaller pictures have other views, networks and losses
FEWEST_RUNS, FEWEST_STEPS = 3, 100
AROUND = 0.025  # of the budget on each side of a fraction, over which losses are averaged


@dataclass(frozen=True)
class Band:
    """Relative losses of ``runs`` runs of the network class ``network`` on pictures of ``sides[0]`` to ``sides[1]``
    pixels: quantiles ``low`` and ``high`` and the median at each of the fractions ``at``."""

    network: str
    sides: tuple[Count, Count]
    runs: Count
    at: tuple[float, ...]
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Place:
    """Where a finished run lies: ``said``, a sentence, and (fraction of the budget, low, high) of the band in its own
    loss's units."""

    said: str
    band: tuple[tuple[float, float, float], ...]


def bands_path(system: System) -> Path:
    """Where a system's bands are, or would be."""
    return Path(str(resources.files(f"sensorium.{system.family}.{system.name}"))) / FILE


def read_bands(path: Path) -> tuple[Band, ...]:
    """The bands in a file, () if there is none. Raises SensoriumError for a damaged one."""
    if not path.is_file():
        return ()
    found, hint = read_object(path), "make it again: `python -m benchmarks.bands`"
    return decode(tuple[Band, ...], found.get("bands"), str(path), hint, field="bands")


def network_of(method: Method) -> str:
    """The class of a method's network, "" if it has none."""
    found = method.backbones()
    return type(inner(found[0])).__name__ if found else ""


def averaged(losses: Sequence[float]) -> list[float]:
    """The mean loss around each of the fractions ``AT``, of the losses of all steps."""
    count = len(losses)
    around = max(1, round(AROUND * count))
    return [fmean(losses[max(0, round(at * count) - around) : round(at * count) + around]) for at in AT]


def scale_of(method: Method, scalars: Mapping[str, float]) -> tuple[float, float] | None:
    """The least loss and that by chance of a method that logged ``scalars``; None if they are unknown."""
    scale = method.loss_scale(scalars)
    return scale if scale is not None and scale[1] > scale[0] else None


def place(recipe: Recipe, side: int | None, losses: Sequence[float], scalars: Mapping[str, float]) -> Place | None:
    """Where a finished run of ``recipe`` lies. side: of its pictures; losses: of all steps; scalars: of the last.

    None for a run of fewer than ``FEWEST_STEPS`` steps, or if there is no band for it.
    """
    system = next((one for one in systems() if one.name == recipe.name), None)
    scale = scale_of(recipe.method, scalars)
    if system is None or side is None or scale is None or READ in recipe.settings or len(losses) < FEWEST_STEPS:
        return None
    network = network_of(recipe.method)
    of = [one for one in read_bands(bands_path(system)) if one.network == network]
    band = next((one for one in of if (one.sides[1] <= SMALL) == (side <= SMALL)), None)
    if band is None:
        return None
    least, span = scale[0], scale[1] - scale[0]
    own = tuple(
        (at, least + low * span, least + high * span)
        for at, low, high in zip(band.at, band.low, band.high, strict=True)
    )
    return Place(_said(system.short or system.name, band, averaged(losses)[-1], *own[-1][1:]), own)


def _said(system: str, band: Band, loss: float, low: float, high: float) -> str:
    first, last = band.sides
    sides = f"{first} px" if first == last else f"{first} to {last} px"
    where, advice = "within", ""
    if loss > high:
        where = "above"
        advice = ". Train longer or try another learning rate; `sensorium rates` shows which"
    elif loss < low:
        where = "below"
        advice = ". Look whether its features are good too: a task that is too easy teaches little"
    reached = f"{where} what {band.runs} runs of {system} ({band.network}) reached on pictures of {sides}"
    return f"loss {_short(loss)} at the end: {reached} ({_short(low)} to {_short(high)}){advice}."


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def quantiles(curves: Sequence[Sequence[float]]) -> dict[str, tuple[float, ...]]:
    """``low``, ``median`` and ``high`` of relative losses at each fraction, of one curve per run."""
    import numpy as np

    values: Any = np.quantile(np.array(curves), (QUANTILES[0], 0.5, QUANTILES[1]), axis=0)
    return {
        name: tuple(round(float(v), 4) for v in row)
        for name, row in zip(("low", "median", "high"), values, strict=True)
    }
