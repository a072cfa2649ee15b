"""Another budget for a run that was stopped or has finished: it goes on from its last checkpoint.

The schedule follows from what is left: the fraction of the budget spent is that of the new one, so learning rates rise
again to what the schedule says there. Weights, optimizers and averages go on as they are. A checkpoint holds the budgets
that a run has had, and the step from which each of them counts, so that a run that is killed after that resumes exactly.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorium.base.files import disk_errors, own_folder
from sensorium.base.words import count, duration
from sensorium.errors import SensoriumError
from sensorium.training.budget import Budget

FORMER = "former"  # folder of what a run said of itself at the end of a former budget

Budgets = tuple[tuple[str, int], ...]  # each with the step from which it counts


def same_run(found: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether two runs have the same settings but for the budget."""
    return {**found, "budget": ""} == {**now, "budget": ""}


def budgets_of(state: Mapping[str, Any], budget: Budget) -> Budgets:
    """The budgets of a run that goes on from a checkpoint's ``state``, or starts, with ``budget``."""
    if not state["steps"]:
        return ((str(budget), 0),)
    before = tuple((text, step) for text, step in state.get("budgets") or [(state["settings"]["budget"], 0)])
    return before if before[-1][0] == str(budget) else (*before, (str(budget), state["steps"]))


def check_left(folder: Path, budget: Budget, state: Mapping[str, Any], *, batch: int, data: int) -> None:
    """Raise SensoriumError if a run has used up another ``budget`` than its own already; ``batch`` and ``data`` as in
    :meth:`Budget.spent`."""
    steps, seconds = state["steps"], state["seconds"]
    if budget.spent(steps=steps, seconds=seconds, batch=batch, data=data) >= 1:
        raise SensoriumError(
            f"{folder} holds a run that has been trained for {duration(seconds)} ({count(steps)} steps) already, which "
            f"--budget {budget} doesn't exceed. Give a longer one to go on with it, another --out for a new run, or "
            "--fresh to delete that run."
        )


def told(budgets: Budgets) -> list[str]:
    """A note if a run has had several budgets: "First trained for 10 min, raised to 20 min at step 1,234."."""
    if len(budgets) < 2:
        return []
    each = [Budget.parse(text) for text, _ in budgets]
    changes = [
        f"{'raised' if new.kind == old.kind and new.amount > old.amount else 'changed'} to {new.told} at step {count(step)}"
        for old, new, (_, step) in zip(each, each[1:], budgets[1:], strict=False)
    ]
    return [f"First trained for {each[0].told}, {', '.join(changes)}."]


def set_apart(folder: Path, budget: str, *names: str) -> None:
    """Move files and folders of the run that are there to ``former/BUDGET/``: they describe it at the end of that
    budget."""
    there = [folder / name for name in names if (folder / name).exists()]
    if not there:
        return
    into = own_folder(folder, FORMER, budget)
    for path in there:
        with disk_errors(path):
            shutil.rmtree(into / path.name, ignore_errors=True)
            path.replace(into / path.name)
