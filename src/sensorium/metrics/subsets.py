"""Label fractions: the same subset of labels for every method.

A fraction f of class c keeps max(1, round(f * n_c)) of its n_c labeled images. Each image of a class has a random
rank in its class, which depends on (seed, class) alone, and a fraction takes the first ones. So the subset is the same
for every method, and the 1 % subset is contained in the 10 % subset of the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sensorium.errors import SensoriumError

EXAMPLE = "write percentages between 0% and 100%, such as 1%,10%,100%"


def stratified(labels: np.ndarray, fraction: float, seed: int, *, classes: Sequence[str] = ()) -> np.ndarray:
    """Indices (int64, sorted) of the labeled subset; ``labels`` int64 [N] with -1 where unknown, ``fraction`` in (0,
    1].

    Raises ``SensoriumError`` if the fraction would leave a class without an image; ``classes`` provides its name.
    """
    if not 0 < fraction <= 1:
        raise SensoriumError(f"Label fraction {fraction:g} is outside (0, 1]: {EXAMPLE}.")
    labels = np.asarray(labels)
    present, counts = np.unique(labels[labels >= 0], return_counts=True)
    if len(present) == 0:
        raise SensoriumError("No training image has a label, so no subset can be taken: give labeled data.")
    smallest = int(counts.argmin())
    if fraction * counts[smallest] < 0.5 - 1e-9:
        raise SensoriumError(_too_small(fraction, int(present[smallest]), int(counts[smallest]), classes))
    kept = []
    for label, count in zip(present.tolist(), counts.tolist(), strict=True):
        queue = np.random.default_rng([seed, label]).random(count).argsort(kind="stable")
        take = max(1, math.floor(fraction * count + 0.5))
        kept.append(np.flatnonzero(labels == label)[queue[:take]])
    return np.sort(np.concatenate(kept))


def _too_small(fraction: float, label: int, count: int, classes: Sequence[str]) -> str:
    name = classes[label] if label < len(classes) else str(label)
    legal = math.ceil(0.5 / count * 1e4) / 1e4  # rounded up to a hundredth of a percent, so that it is legal as printed
    return (
        f"Label fraction {percent(fraction)} leaves no image of class {name!r} ({count} labeled images): "
        f"the minimum fraction is {percent(legal)}."
    )


def percent(fraction: float) -> str:
    """0.01 -> "1%": the key of a fraction's results."""
    return f"{fraction * 100:.6g}%"


def parse_fractions(text: str, flag: str = "--labels") -> tuple[float, ...]:
    """ "1%,10%,100%" -> (0.01, 0.1, 1.0), ascending. Decimals below one (0.01) are accepted too."""
    found = {_parse_one(part.strip(), flag) for part in text.split(",")}
    return tuple(sorted(found))


def _parse_one(part: str, flag: str) -> float:
    number, is_percent = part.removesuffix("%").strip(), part.endswith("%")
    try:
        value = float(number)
    except ValueError:
        what = "is empty" if not part else f"has {part!r}, which is not a number"
        raise SensoriumError(f"{flag} {what}: {EXAMPLE}.") from None
    if not is_percent and value >= 1:
        raise SensoriumError(f"{flag} has {part!r}, without a percent sign: write {number}% (or a decimal below 1).")
    fraction = float(f"{value / 100:.12g}") if is_percent else value
    if not 0 < fraction <= 1:
        raise SensoriumError(f"{flag} has {part!r}, which is outside (0%, 100%]: {EXAMPLE}.")
    return fraction
