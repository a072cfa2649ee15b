"""Checkpoints: written atomically, the last good one kept, verified when they are read.

``last.ckpt`` holds the weights, the state of the step (optimizers, moving average) and what a run needs to resume
exactly. If it is damaged, ``previous.ckpt`` is used. Nothing is ever unpickled: ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sensorium.base.files import replace
from sensorium.errors import SensoriumError
from sensorium.recipe.recipe import Recipe
from sensorium.training.step import build_optimizers

LAST, PREVIOUS, WEIGHTS, OUTCOME = "last.ckpt", "previous.ckpt", "model.safetensors", "outcome.json"
WRITTEN = (LAST, PREVIOUS, WEIGHTS, OUTCOME, "metrics.csv", "online.csv", "nan_batch.json")


def save_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write to a temporary file, then move it into place; the last checkpoint becomes the previous one."""
    kept = "The previous checkpoint is intact. " if path.exists() else ""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # Python's file object reports the error, torch's does not
            torch.save(dict(checkpoint), file)

    replace(path, write, former=path.with_name(PREVIOUS), kept=kept)


def load_checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def find_checkpoint(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest readable checkpoint: its path, the run's state in it, and notes; ``None`` if there is none."""
    notes: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            return path, _read_state(path), notes
        except Exception as error:  # any error that a damaged or foreign file causes in zip, pickle or torch
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            notes.append(f"{path} is damaged or not a checkpoint ({reason}); it was not used.")
    if notes:
        raise SensoriumError(f"{notes[-1]} No checkpoint of this run can be read: start over with --fresh.")
    return None


def _read_state(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:  # torch does not verify the checksums that it writes
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"checksum of {bad} is wrong")
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["sensorium"]
    if not isinstance(state, dict) or not isinstance(state.get("settings"), dict):
        raise ValueError("it is not a checkpoint of sensorium")
    return state


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
        "schedule": _text([round(float(recipe.schedule(f)), 9) for f in (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)]),
        **({"average": _text(asdict(recipe.average))} if recipe.average else {}),
        "data": data,
        **{name: _text(value) for name, value in run.items()},
        **{name: _text(setting.value) for name, setting in recipe.settings.items()},
    }


def _groups(optimizer: torch.optim.Optimizer) -> str:
    groups = [
        {name: value for name, value in group.items() if name != "params"} | {"params": len(group["params"])}
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__name__} {_text(groups)}" if len(groups) == 1 else _digest(groups)


def check_settings(found: Mapping[str, str], now: Mapping[str, str], folder: Path) -> None:
    """Raise SensoriumError if the run was started with other settings."""
    differing = [name for name in dict.fromkeys([*found, *now]) if found.get(name) != now.get(name)]
    if differing:
        name = differing[0]
        others = f" (and {', '.join(differing[1:6])})" if differing[1:] else ""
        raise SensoriumError(
            f"{folder} holds a run with other settings: {name} was {_short(found.get(name))} and is now "
            f"{_short(now.get(name))}{others}. Choose another --out, or --fresh to delete that run."
        )


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
    replace(path, lambda temporary: save_file(whole, temporary, metadata=dict(about)))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=repr)


def _digest(value: Any) -> str:
    return hashlib.sha256(_text(value).encode()).hexdigest()[:16]


def _short(value: str | None) -> str:
    return "not set" if value is None else value if len(value) <= 80 else value[:77] + "..."
