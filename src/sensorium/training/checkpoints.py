"""Checkpoints: written atomically, the last good one kept, verified when they are read.

``last.ckpt`` holds the weights, the state of the step (optimizers, moving average) and what a run needs to resume
exactly. If it is damaged, or not of this run, ``previous.ckpt`` is used. Nothing is ever unpickled: ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.base.files import write_file
from sensorium.errors import SensoriumError
from sensorium.published.files import save_tensors
from sensorium.recipe.recipe import Recipe
from sensorium.training.budget import Budget
from sensorium.training.further import same_run
from sensorium.training.step import build_optimizers

LAST, PREVIOUS, WEIGHTS, OUTCOME = "last.ckpt", "previous.ckpt", "model.safetensors", "outcome.json"
WRITTEN = (LAST, PREVIOUS, WEIGHTS, OUTCOME, "metrics.csv", "online.csv")
_NUMBERS = ("seconds", "waited", "augmented", "peak")


def save_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write beside, then rename into place; the last checkpoint becomes the previous one."""
    kept = "The previous checkpoint is intact. " if path.exists() else ""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:  # Python's file object reports the error, torch's does not
            torch.save(dict(checkpoint), file)

    write_file(path, write, former=path.with_name(PREVIOUS), kept=kept)


def load_checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def find_checkpoint(
    folder: Path, recipe: Recipe | None = None, settings: Mapping[str, str] | None = None
) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest sound checkpoint of a run with these ``settings``, of any budget: its path, the run's state, and notes.

    What isn't one is set aside as ``NAME.damaged.ckpt``, so that it never takes the place of a sound one. If there are
    only sound ones of other settings, the newest of them, untouched. If there is none, ``steps`` of the state is 0;
    None if there never was one.
    """
    notes: list[str] = []
    others: list[tuple[Path, dict[str, Any]]] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists() and not path.is_symlink():
            continue
        try:
            state = read_state(path, recipe, settings)
        except FileNotFoundError:  # another process of this run has set it aside
            notes.append(f"{path} is damaged or not a checkpoint of this run; it was not used.")
        except Exception as error:  # any error that a damaged or foreign file causes in zip, pickle or torch
            _set_aside(path)
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            notes.append(f"{path} is damaged or not a checkpoint of this run ({reason}); it was not used.")
        else:
            if settings is None or same_run(state["settings"], settings):
                for other, _ in others:
                    _set_aside(other)
                    notes.append(f"{other} is of a run with other settings; it was not used.")
                return path, state, notes
            others.append((path, state))
    if others:
        return *others[0], notes
    if not notes:
        return None
    notes.append("No checkpoint of this run can be read: it starts again.")
    return folder / LAST, {"steps": 0}, notes


def _set_aside(path: Path) -> None:
    with suppress(OSError):
        path.replace(path.with_name(f"{path.stem}.damaged.ckpt"))


def read_state(path: Path, recipe: Recipe | None = None, settings: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The run's state in a checkpoint. Raises an error of any kind if it isn't sound, or if it has these ``settings`` and
    yet doesn't fit the recipe's method."""
    with zipfile.ZipFile(path) as archive:  # torch does not verify the checksums that it writes
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"checksum of {bad} is wrong")
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state = _typed(found)
    if recipe is not None and (settings is None or same_run(state["settings"], settings)):
        _fits(found, recipe)
    return state


def _typed(found: Any) -> dict[str, Any]:
    """The entry ``sensorium`` of a checkpoint, each of its values checked."""
    for name in ("state_dict", "step", "precision", "sensorium"):
        if not isinstance(found, dict) or not isinstance(found.get(name), dict):
            raise ValueError(f"it is not a checkpoint of sensorium: it has no '{name}'")
    state = found["sensorium"]
    settings, looked = state.get("settings"), state.get("looked")
    if not isinstance(settings, dict) or not all(isinstance(text, str) for text in (*settings, *settings.values())):
        raise ValueError("it is not a checkpoint of sensorium: its settings are missing")
    if type(state.get("steps")) is not int or state["steps"] < 1:
        raise ValueError(f"steps is {state.get('steps')!r}")
    numbers = {name: state.get(name) for name in _NUMBERS}
    numbers |= dict(enumerate(looked)) if isinstance(looked, list) and len(looked) == 3 else {"looked": None}
    for name, value in numbers.items():
        if type(value) not in (int, float) or not math.isfinite(value) or (name in _NUMBERS and value < 0):
            raise ValueError(f"{name} is {value!r}")
    _check_budgets(state.get("budgets", []), state["steps"])
    return state


def _check_budgets(found: Any, steps: int) -> None:
    """Raise an error unless these are the budgets of a run of so many ``steps``, each with the step of its start."""
    for text, step in found:
        if (
            not isinstance(text, str)
            or str(Budget.parse(text)) != text
            or type(step) is not int
            or not 0 <= step <= steps
        ):
            raise ValueError(f"its budgets are {found!r}")


def _fits(found: dict[str, Any], recipe: Recipe) -> None:
    """Raise ValueError if weights, optimizers or averages aren't those of the recipe's method."""
    own = recipe.method.state_dict()
    parameters = dict(recipe.method.named_parameters())
    _same_tensors("weights", found["state_dict"], own)
    for name in parameters:
        if not torch.isfinite(found["state_dict"][name]).all():
            raise ValueError(f"weights: {name} is not finite")
    step = found["step"]
    averaged = {name: parameters[name] for name in step.get("average", {}) if name in parameters}
    if bool(averaged) != (recipe.average is not None):
        raise ValueError("its moving average is missing" if recipe.average else "it has a moving average")
    _same_tensors("average", step["average"], averaged, kinds=False)
    optimizers, kept = build_optimizers(recipe.method, recipe.optimizers), step.get("optimizers")
    if not isinstance(kept, dict) or set(kept) != set(optimizers):
        raise ValueError("its optimizers are others")
    for phase, optimizer in optimizers.items():
        _same_optimizer(kept[phase], optimizer)


def _same_tensors(what: str, found: Any, own: Mapping[str, Tensor], *, kinds: bool = True) -> None:
    if not isinstance(found, dict) or set(found) != set(own):
        raise ValueError(f"{what} have other names")
    for name, value in own.items():
        kept = found[name]
        if not isinstance(kept, Tensor) or kept.shape != value.shape or (kinds and kept.dtype != value.dtype):
            raise ValueError(f"{what}: {name} has another shape or type")


def _same_optimizer(kept: Any, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if a state is not one of this optimizer."""
    groups = kept.get("param_groups") if isinstance(kept, dict) else None
    if not isinstance(groups, list) or len(groups) != len(optimizer.param_groups):
        raise ValueError("the optimizer's groups are others")
    for one, own in zip(groups, optimizer.param_groups, strict=True):
        if not isinstance(one, dict) or set(one) != set(own) or len(one["params"]) != len(own["params"]):
            raise ValueError("the optimizer's groups are others")
        for name, value in own.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and (type(one[name]) not in (int, float) or not math.isfinite(one[name])):
                raise ValueError(f"the optimizer's {name} is {one[name]!r}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = kept.get("state")
    if not isinstance(state, dict) or not all(type(i) is int and 0 <= i < len(parameters) for i in state):
        raise ValueError("the optimizer's state is of other parameters")
    for i, values in state.items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            tensor = isinstance(value, Tensor)
            if not name or (tensor and value.ndim and value.shape != parameters[i].shape):
                raise ValueError(f"the optimizer's state {name} has another shape")


def fingerprint(recipe: Recipe, data: str, run: Mapping[str, Any]) -> dict[str, str]:
    """Everything that must not change when a run is resumed: each setting as a short string.

    It consists of what the recipe resolved (settings, shapes, optimizers, schedule), so that an attribute of a method
    may be renamed. ``run`` are the run's own settings.
    """
    shapes = {name: list(value.shape) for name, value in recipe.method.state_dict().items()}
    optimizers = build_optimizers(recipe.method, recipe.optimizers)
    several = len(optimizers) > 1
    return {
        "method": type(recipe.method).__name__,
        "weights": _digest(shapes),
        **{f"optimizer.{k}" if several else "optimizer": _groups(o) for k, o in optimizers.items()},
        "schedule": as_text([round(float(recipe.schedule(f)), 9) for f in (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)]),
        **({"average": as_text(asdict(recipe.average))} if recipe.average else {}),
        "data": data,
        **{name: as_text(value) for name, value in run.items()},
        **{name: as_text(setting.value) for name, setting in recipe.settings.items()},
    }


def _groups(optimizer: torch.optim.Optimizer) -> str:
    groups = [
        {name: value for name, value in group.items() if name != "params"} | {"params": len(group["params"])}
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__name__} {as_text(groups)}" if len(groups) == 1 else _digest(groups)


def check_settings(found: Mapping[str, str], now: Mapping[str, str], folder: Path, given: tuple[str, ...] = ()) -> None:
    """Raise SensoriumError if the run was started with other settings than the budget: those that were ``given`` first,
    in words."""
    differing = [name for name in dict.fromkeys([*found, *now]) if found.get(name) != now.get(name)]
    if not set(differing) - {"budget"}:
        return
    first = [name for name in given if name in differing]
    told = [_changed(name, found, now) for name in first or [n for n in differing if not _hashed(n)][:3]]
    told = told or [_changed(name, found, now) for name in differing[:3]]
    others = [name for name in differing if name not in first and not _hashed(name)] if first else []
    also = f" ({', '.join(others[:5])} with it)" if others else ""
    way = "Give the former settings to go on with it, another --out for a new run, or --fresh to delete that run."
    raise SensoriumError(f"{folder} holds a run with other settings: {'; '.join(told)}{also}. {way}")


def _hashed(name: str) -> bool:
    """Whether a setting follows from others, and its text means nothing to a person."""
    return name.partition(".")[0] in ("method", "weights", "optimizer", "schedule", "average", "data")


def _changed(name: str, found: Mapping[str, str], now: Mapping[str, str]) -> str:
    one, other = found.get(name), now.get(name)
    if name == "data":
        count, counted = ((text or "").partition(" ")[0] for text in (one, other))
        rows = f" ({count} rows, now {counted})" if count != counted and count.isdigit() and counted.isdigit() else ""
        return f"the data was different{rows}"
    if name == "weights":
        return "the shape of the weights was different"
    if name.partition(".")[0] in ("optimizer", "schedule", "average"):
        return f"the {name.replace('.', ' of the ')} was different"
    return f"{name} was {_short(one)} and is now {_short(other)}"


def save_weights(weights: Mapping[str, Tensor], path: Path, about: Mapping[str, str]) -> None:
    """Write ``weights`` as safetensors; tensors that share memory are written separately, so that every name is
    present."""
    seen: set[tuple[str, int]] = set()
    whole: dict[str, Tensor] = {}
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        key = (str(value.device), value.untyped_storage().data_ptr())
        whole[name] = value.clone() if value.numel() and key in seen else value
        seen.add(key)
    write_file(path, lambda partial: save_tensors(whole, partial, about))


def as_text(value: Any) -> str:
    """A setting as it is compared."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=repr)


def _digest(value: Any) -> str:
    return hashlib.sha256(as_text(value).encode()).hexdigest()[:16]


def _short(value: str | None) -> str:
    return "not set" if value is None else value if len(value) <= 80 else value[:77] + "..."
