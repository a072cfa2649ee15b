"""A step that is not finite, kept so that it can be taken again: `sensorium replay RUN`.

A run reads its losses a few steps late, when the weights are spoiled already. So it goes back to its last checkpoint
and takes the steps since then again, with the same rows, seeds and learning rates, and looks at each: what it was before
the first bad one is written to ``RUN/nonfinite/``, as plain numbers. ``step.json`` has the seeds, the rates and the
rows' indices, ``weights.safetensors`` the weights, ``optimizer.safetensors`` the optimizers' state and the moving
average, ``rows.safetensors`` the rows as the data gave them, from which the seeds make the batch.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sensorium.base.files import own_folder, write_folder, write_json
from sensorium.base.records import Amount, Count, Seed, Share, Size
from sensorium.data.rows import Taken
from sensorium.errors import SensoriumError
from sensorium.published.files import save_tensors
from sensorium.training.checkpoints import LAST, load_checkpoint
from sensorium.training.fabric import local, whole

if TYPE_CHECKING:
    from sensorium.training.loop import Loop

FOLDER, STEP = "nonfinite", "step.json"
WEIGHTS, OPTIMIZER, ROWS = "weights.safetensors", "optimizer.safetensors", "rows.safetensors"
MOST_ROWS, MOST_STATE = 1 << 30, 1 << 33  # bytes that are kept


@dataclass(frozen=True)
class KeptStep:
    """``step.json``. ``terms``: those of the loss that were not finite, with their ``values``; ``pieces``: micro-batches
    of all processes; ``fraction`` of the budget spent; ``walked``: whether it was not finite when it was taken again;
    ``fields``: of the rows, with the number of tensors of a list; ``indices`` of the rows in the training data."""

    step: Count
    told: str
    fraction: Share
    epoch: Count
    lr: Amount
    seed: Seed
    batch_size: Size
    pieces: Size
    precision: str
    device: str
    values: dict[str, str]
    indices: tuple[Count, ...]
    terms: tuple[str, ...] = ()
    walked: bool = True
    weights: bool = True
    fields: dict[str, int | None] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)


class Trail:
    """Where a run can go back to: its last checkpoint or its initial state, and the fractions of the budget at the steps
    since then."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.checkpoint = loop, loop.job.checkpoint
        self.first, self.fractions = loop.steps, list[float]()
        self.start = None if self.checkpoint or sharded(loop) else copied(loop)

    def saved(self) -> None:
        """There is a new checkpoint."""
        self.checkpoint, self.start = self.loop.job.out / LAST, None
        self.first, self.fractions = self.loop.steps, []

    def keep(self, last: int, told: str, bad: Mapping[str, Any] | None = None) -> int | None:
        """Take the steps up to ``last`` again, and keep the first one that is not finite: its number, None if none was.

        ``told``: what was seen; ``bad``: the step, its terms and values as they were recorded. All processes take part.
        """
        loop = self.loop
        if sharded(loop):
            self._write(last, self.fractions[last - self.first], None, told, bad, walked=False)
            return None
        self._back()
        state: dict[str, Any] = {}
        found, values = None, {}
        for step in range(self.first, last + 1):
            state = copied(loop)
            loop.steps, loop.fraction = step, self.fractions[step - self.first]
            loop.batches.load_state_dict({"step": step})
            scalars = loop.take()
            fine = bool(torch.isfinite(scalars["loss"])) and finite_weights(loop)
            if loop.agree(not fine):
                found, values = step, {name: str(float(x)) for name, x in scalars.items()}
                break
        at = last if found is None else found
        if bad is None or bad["step"] != at:
            bad = {"step": at, "lr": loop.step.lr, "terms": [], "values": values}
        self._write(at, self.fractions[at - self.first], state, told, bad, walked=found is not None)
        return found

    def _back(self) -> None:
        loop = self.loop
        if self.start is not None:
            loop.method.load_state_dict(self.start["state_dict"])
            for optimizer in loop.step.optimizers.values():
                optimizer.state.clear()
            loop.step.load_state_dict(self.start["step"])
            return
        assert self.checkpoint is not None
        found = load_checkpoint(self.checkpoint)
        loop.method.load_state_dict(found["state_dict"])
        loop.restore(found)

    def _write(
        self,
        step: int,
        fraction: float,
        state: dict[str, Any] | None,
        told: str,
        bad: Mapping[str, Any] | None,
        *,
        walked: bool,
    ) -> None:
        loop, bad = self.loop, bad or {}
        if loop.fabric.global_rank:
            return
        batches, share = loop.batches, loop.batches.share
        indices = batches.order(step)
        rows, fields = flat(loop.job.rows.take(indices, batches.names))
        rows, fields = (rows, fields) if size(rows) <= MOST_ROWS else ({}, {})
        optimizer, scalars = ({}, {}) if state is None else flat_state(state["step"])
        told_step = KeptStep(
            step, told, fraction, step * share.batch_size // batches.order.count, bad.get("lr", loop.step.lr),
            loop.options.seed, share.batch_size, share.accumulate * share.world, loop.options.precision,
            loop.fabric.device.type, dict(bad.get("values", {})), tuple(indices.tolist()), tuple(bad.get("terms", ())),
            walked, state is not None, fields, scalars,
        )  # fmt: skip

        def write(into: Path) -> None:
            if state is not None:
                save_tensors(separate(state["state_dict"]), into / WEIGHTS, {})
            if optimizer and size(optimizer) <= MOST_STATE:
                save_tensors(separate(optimizer), into / OPTIMIZER, {})
            if rows:
                save_tensors(separate(rows), into / ROWS, {})
            write_json(into / STEP, asdict(told_step))

        shutil.rmtree(own_folder(loop.job.out, FOLDER), ignore_errors=True)
        write_folder(loop.job.out / FOLDER, write)


def keep(trail: Trail, last: int, told: str, bad: Mapping[str, Any] | None = None) -> str:
    """:meth:`Trail.keep`; a sentence for the error's line: the command, or why there is nothing to replay."""
    out = trail.loop.job.out
    trail.loop.display.say(f"{told}: taking the steps since the last checkpoint again, to keep the first that fails")
    try:
        found = trail.keep(last, told, bad)
    except SensoriumError as error:  # a full disk
        return f"The step could not be kept: {str(error).rstrip('.')}. "
    begins = f" (it begins at step {found})" if found not in (None, last) else ""
    return f"`sensorium replay {out}` shows where it begins{begins}. "


def sharded(loop: Loop) -> bool:
    return any(local(p) is not p for p in loop.method.parameters())


def copied(loop: Loop) -> dict[str, Any]:
    """Weights and state of the step, in CPU memory; the loop changes its own."""
    return clone(whole({"state_dict": loop.method.state_dict(), "step": loop.step.state_dict()}))


def clone(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, Mapping):
        return {key: clone(value) for key, value in state.items()}
    return [clone(value) for value in state] if isinstance(state, list) else state


def finite_weights(loop: Loop) -> bool:
    """Whether the weights of this process are finite."""
    weights = [local(p).detach() for p in loop.method.parameters() if p.is_floating_point()]
    flags = [torch.isfinite(p).all() for p in weights if p.numel()]
    return bool(torch.stack(flags).all()) if flags else True


def flat(taken: Taken) -> tuple[dict[str, Tensor], dict[str, int | None]]:
    """Rows as tensors by name, a list as ``NAME/0``, ``NAME/1`` ..., and the fields with the lengths of lists."""
    tensors: dict[str, Tensor] = {}
    fields: dict[str, int | None] = {}
    for name, value in taken.items():
        if isinstance(value, Tensor):
            tensors[name], fields[name] = value, None
        else:
            tensors |= {f"{name}/{i}": one for i, one in enumerate(value)}
            fields[name] = len(value)
    return tensors, fields


def unflat(tensors: Mapping[str, Tensor], fields: Mapping[str, int | None]) -> Taken:
    """The rows that :func:`flat` took apart. Raises KeyError if one is missing."""
    return {
        name: tensors[name] if count is None else [tensors[f"{name}/{i}"] for i in range(count)]
        for name, count in fields.items()
    }


def flat_state(step: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The optimizers' state and the average as tensors by name, and as numbers by name."""
    tensors: dict[str, Tensor] = {f"average/{name}": value for name, value in step["average"].items()}
    numbers: dict[str, float] = {}
    for phase, optimizer in step["optimizers"].items():
        for i, values in optimizer["state"].items():
            for name, value in values.items():
                key = f"{phase}/{i}/{name}"
                if isinstance(value, Tensor):
                    tensors[key] = value
                elif isinstance(value, int | float) and math.isfinite(value):
                    numbers[key] = value
    return tensors, numbers


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each with memory of its own, as the format asks."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes."""
    return sum(value.numel() * value.element_size() for value in tensors.values())
