"""The heads first: a network of a checkpoint rests while heads of random weights learn.

What a random head asks of a trained network spoils it in the first steps (Kumar et al., 2022, arXiv:2202.10054, of
classifiers). So in the first ``head_first`` of the budget the head alone is trained, then all; the learning rate warms up
and falls in both parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sensorium.errors import SensoriumError
from sensorium.recipe.recipe import READ, Recipe

FIRST = (0.1, "a checkpoint's network: random heads would spoil it")


def heads_first(recipe: Recipe, given: float | None, usual: tuple[float, str] | None = None) -> Recipe:
    """``recipe`` with its heads trained alone in the first ``given`` of the budget.

    ``usual``: the default and its reason; if it is None, a tenth with the backbone of a checkpoint, and nothing with
    random weights. Raises SensoriumError unless 0 <= given < 1.
    """
    if usual is None and READ in recipe.settings:
        usual = FIRST
    if usual is None and given is None:
        return recipe
    first = recipe.settings.pick("head_first", given, *(usual or (0.0, "random weights")))
    if not 0 <= first < 1:
        raise SensoriumError(f"--head-first {first:g}: must be at least 0 and less than 1.")
    recipe.method.head_first = first
    return replace(recipe, schedule=staged(recipe.schedule, first))


def staged(schedule: Callable[[float], float], first: float) -> Callable[[float], float]:
    """``schedule`` over the first part of the budget, and again over the rest."""
    return lambda done: schedule(done / first) if done < first else schedule((done - first) / (1 - first))
