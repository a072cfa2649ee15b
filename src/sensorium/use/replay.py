"""`sensorium replay RUN`: take the step again that was not finite, and find where it begins.

The step was kept in ``RUN/nonfinite/`` (:mod:`sensorium.training.nonfinite`). Its forward pass is watched module by
module, its backward pass too, in the order in which they are computed; then the gradients' norms, and what the update
makes of the weights. Nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sensorium.base import threads
from sensorium.base.draw import Draw
from sensorium.base.precision import resolve_precision
from sensorium.base.reading import brief, printable, read_object
from sensorium.base.records import decode
from sensorium.data.rows import Taken
from sensorium.errors import SensoriumError
from sensorium.method import Method, Progress
from sensorium.recipe.blueprint import compare, shapes_in
from sensorium.recipe.recipe import Recipe
from sensorium.recipe.trained import Trained
from sensorium.runs.run import Run
from sensorium.training.batches import Share, read_by
from sensorium.training.fabric import fabric_for, quiet
from sensorium.training.loop import seed_step
from sensorium.training.nonfinite import FOLDER, OPTIMIZER, ROWS, STEP, WEIGHTS, KeptStep, unflat
from sensorium.training.options import Options
from sensorium.training.step import Step

LARGE = 1e6  # beyond any value of a weight or of data that were prepared
SHOWN = 24  # layers whose gradients are listed
HINT = "train the run again"


@dataclass(frozen=True)
class Begins:
    """Where values that are not finite appear first: ``where`` "forward", "backward" or "update"; the module's name and
    class; how many of ``count`` values; the largest finite value that went in."""

    where: str
    module: str
    kind: str
    bad: int
    count: int
    largest: float | None = None


@dataclass(frozen=True)
class Replay:
    """A step that was taken again: ``loss`` now and as ``recorded``; ``begins`` None if all is finite; gradient norms
    by layer; the largest weight before the step; rows with values that are not finite or huge; the ``way_out``."""

    run: str
    step: int
    lr: float
    loss: float
    recorded: str
    begins: Begins | None
    gradients: dict[str, float]
    weight: tuple[str, float]
    rows: tuple[str, ...]
    notes: tuple[str, ...]
    way_out: str


def replay(folder: str | Path) -> Replay:
    """Take the kept step of a run again. Raises SensoriumError if none was kept, or if what was kept is damaged."""
    run = Trained(folder)
    kept, here = read_step(run.folder), run.folder / FOLDER
    device = kept.device if kept.device == "cpu" or _available(kept.device) else "cpu"
    notes = [] if device == kept.device else [f"It was trained on {kept.device}, which is not available here."]
    if not kept.walked:
        notes.append("When the run took the step again it was finite: the order of summation decides.")
    if run.info.threads is not None:
        threads.use(threads.choose(asked=None, kept=asdict(run.info.threads)))
    rows = _rows(run, kept, here)
    largest, loss, seen, more = _once(run.recipe, kept, here, rows, device, kept.precision)
    exact = False
    if seen.begins and kept.precision != "32-true":
        exact = _once(Trained(folder).recipe, kept, here, rows, device, "32-true")[2].begins is None
        notes.append(f"Taken in precision 32-true, it is {'finite' if exact else 'not finite either'}.")
    told = _bad_rows(rows, kept)
    return Replay(
        str(run.folder), kept.step, kept.lr, loss, kept.values.get("loss", "unknown"), seen.begins, seen.gradients,
        largest, told, (*notes, *more), _way_out(seen.begins, told, largest, exact, run.recipe),
    )  # fmt: skip


def _once(
    recipe: Recipe, kept: KeptStep, here: Path, rows: Taken, device: str, precision: str
) -> tuple[tuple[str, float], float, Seen, list[str]]:
    """The largest weight before the step, its loss, what was seen of it, and notes."""
    method = recipe.method
    _load_weights(method, here)
    largest = _largest(method)
    options = Options(kept.seed, kept.pieces, 1, device, precision=resolve_precision(precision, device))
    with quiet(), torch.random.fork_rng(devices=[0] if device == "cuda" else []):
        fabric = fabric_for(options.resolved(kept.batch_size), method)
        network = fabric.setup_module(method)
        step = Step(method, recipe.optimizers, recipe.schedule, network=network, fabric=fabric, accumulate=kept.pieces)
        notes = _load_optimizers(step, here, kept)
        with watched(method) as seen:
            loss = _take(step, recipe, kept, rows, fabric.device)
        seen.begins = seen.begins or _update(method)
    return largest, loss, seen, notes


def read_step(run: Path) -> KeptStep:
    """The kept step of a run. Raises SensoriumError if there is none, if it is damaged, or without weights."""
    path = run / FOLDER / STEP
    if not path.is_file():
        raise SensoriumError(
            f"{printable(str(run))}: no step of this run was kept: it has had no loss that is not a number."
        )
    kept = decode(KeptStep, read_object(path, most=1 << 26, hint="Train the run again."), str(path), HINT)
    if not kept.weights:
        raise SensoriumError(f"{path}: the weights were not kept, since they were spread over several devices.")
    if kept.batch_size % kept.pieces or len(kept.indices) != kept.batch_size:
        raise SensoriumError(f"{path}: batch_size doesn't fit pieces and indices; {HINT}.")
    return kept


def lines(found: Replay) -> list[str]:
    """For people."""
    same = _same(found.loss, found.recorded)
    now = "as recorded" if same else f"recorded as {found.recorded}"
    told = [f"{found.run}: step {found.step:,}, learning rate {found.lr:.3g}", f"loss {found.loss:.6g}, {now}"]
    if (at := found.begins) is None:
        told.append("every value is finite this time")
    else:
        given = "" if at.largest is None else f"; its input reaches {at.largest:.3g}"
        of = f"not finite: {at.bad:,} of {at.count:,} values"
        told.append(f"begins: {at.where}, {at.module or 'the loss'} ({at.kind}): {of}{given}")
    told.append(f"largest weight before the step: {found.weight[1]:.3g} in {found.weight[0]}")
    told += [f"data: {line}" for line in found.rows] + [f"note: {line}" for line in found.notes]
    if found.gradients:
        wide = max(map(len, found.gradients))
        told += ["gradient norms by layer:", *(f"  {name:{wide}}  {x:.3g}" for name, x in found.gradients.items())]
    return [*told, found.way_out]


# -- the step --


def _take(step: Step, recipe: Recipe, kept: KeptStep, rows: Taken, device: torch.device) -> float:
    def batches() -> Iterator[dict[str, Any]]:
        share = Share(kept.batch_size, kept.pieces)
        for micro in range(kept.pieces):
            where = share.rows(micro)
            fields: Taken = {name: _on(value[where], device) for name, value in rows.items()}
            draw = Draw.seeded(kept.seed, kept.step, kept.batch_size, where.start, where.stop, device, kept.fraction)
            with torch.no_grad():
                batch = recipe.views(fields, draw)
            yield batch

    recipe.method.train()
    seed_step(kept.seed, 0, kept.step, device)
    return float(step(batches(), Progress(kept.step, kept.epoch, kept.fraction))["loss"])


def _on(value: Tensor | list[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    return [one.to(device) for one in value] if isinstance(value, list) else value.to(device)


def _load_weights(method: Method, here: Path) -> None:
    path = here / WEIGHTS
    if not path.is_file():
        raise SensoriumError(f"{path} is missing; {HINT}.")
    compare(method, shapes_in(path), printable(str(here.parent)), path.name)
    method.load_state_dict(_tensors(path))


def _load_optimizers(step: Step, here: Path, kept: KeptStep) -> list[str]:
    """Load the optimizers' state; a note if it is missing or doesn't fit: only the update depends on it."""
    path = here / OPTIMIZER
    found = {**(_tensors(path) if path.is_file() else {}), **kept.scalars}
    if not found:
        return [] if kept.step == 0 else ["The optimizers' state was not kept: the update is that of a first step."]
    for phase, optimizer in step.optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, value in found.items():
            of, _, rest = key.partition("/")
            number, _, name = rest.partition("/")
            if of != phase or not number.isdecimal() or not name:
                continue
            i = int(number[:9])
            if i >= len(parameters) or (
                isinstance(value, Tensor) and value.ndim and value.shape != parameters[i].shape
            ):
                return [f"{path.name} doesn't fit the optimizers: the update is that of a first step."]
            state.setdefault(i, {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return []


def _rows(run: Trained, kept: KeptStep, here: Path) -> Taken:
    """The rows of the step: as they were kept, or read from the data again where they were too large."""
    path = here / ROWS
    if not path.is_file():
        ready = Run(run.folder).data()
        train = ready.train if run.recipe.derive is None else run.recipe.derive(ready.train, run.cache, False)
        if max(kept.indices) >= len(train):
            raise SensoriumError(f"{here / STEP}: its rows are not in the run's data, which are others now; {HINT}.")
        return train.take(np.array(kept.indices, np.int64), read_by(run.recipe.views))
    try:
        rows = unflat(_tensors(path), kept.fields)
    except KeyError as missing:
        raise SensoriumError(f"{path}: the rows' field {missing} is missing; {HINT}.") from None
    for name, value in rows.items():
        if len(value) != kept.batch_size:
            raise SensoriumError(
                f"{path}: {printable(name)} has {len(value)} rows, should be {kept.batch_size}; {HINT}."
            )
    return rows


def _tensors(path: Path) -> dict[str, Tensor]:
    shapes_in(path)  # one line if it is damaged
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise SensoriumError(f"{path}: not a readable safetensors file ({brief(error)}); {HINT}.") from None


def _available(device: str) -> bool:
    return torch.cuda.is_available() if device == "cuda" else device == "mps" and torch.backends.mps.is_available()


# -- watching it --


class Seen:
    """What was seen of a step: where it stops being finite, and the gradients' norms before the update."""

    def __init__(self) -> None:
        self.begins: Begins | None = None
        self.gradients: dict[str, float] = {}

    def found(self, where: str, module: str, kind: str, value: Tensor, largest: float | None = None) -> None:
        """Note the first value that isn't finite."""
        if self.begins is None and value.is_floating_point():
            bad = int((~torch.isfinite(value)).sum())
            if bad:
                self.begins = Begins(where, module, kind, bad, value.numel(), largest)


@contextmanager
def watched(method: Method) -> Iterator[Seen]:
    """Inside, the passes of ``method`` are watched, and its gradients are measured before they are used."""
    seen, handles, before_update = Seen(), [], method.before_update

    def forward(name: str, module: nn.Module) -> Any:
        kind = type(module).__name__

        def own(value: Tensor) -> Tensor:
            """The same values, whose gradient is that of this module alone."""
            if not (value.is_floating_point() and value.requires_grad):
                return value
            view = value.view_as(value)
            view.register_hook(lambda g: seen.found("backward", name, kind, g))
            return view

        def before(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            for value in _floats([given, named]):
                if value.requires_grad or not torch.isneginf(value).any():  # as a mask has
                    seen.found("forward", name, f"what enters this {kind}", value)
            return _mapped(own, given), _mapped(own, named)

        def after(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], made: Any) -> None:
            for value in _floats(made):
                if seen.begins is None:
                    seen.found("forward", name, kind, value, _reach(_floats([given, named])))
                if value.requires_grad and seen.begins is None:
                    value.register_hook(lambda g: seen.found("backward", name, "what follows its output", g))

        return before, after

    def measure(at: Progress) -> None:
        for name, parameter in method.named_parameters():
            if parameter.grad is not None:
                owner, _, own = name.rpartition(".")
                seen.found("backward", owner, f"gradient of its {own}", parameter.grad)
        seen.gradients |= _norms(method)
        before_update(at)

    try:
        for name, module in method.named_modules():
            before, after = forward(name, module)
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        method.before_update = measure  # type: ignore[method-assign]
        yield seen
    finally:
        del method.before_update
        for handle in handles:
            handle.remove()


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A nested value with its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(change, one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(change, one) for one in value)
    return value


def _floats(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = list(value.values())
    return [one for item in value for one in _floats(item)] if isinstance(value, list | tuple) else []


def _reach(values: list[Tensor]) -> float | None:
    """The largest finite magnitude."""
    most = [float(x.detach().abs()[torch.isfinite(x)].max()) for x in values if torch.isfinite(x).any()]
    return max(most, default=None)


def _norms(method: Method) -> dict[str, float]:
    """Norms of the gradients by layer: as deep in the names as gives at most ``SHOWN`` of them."""
    named = [(name, p.grad) for name, p in method.named_parameters() if p.grad is not None]
    for depth in range(8, 0, -1):
        squares: dict[str, float] = {}
        for name, grad in named:
            layer = ".".join(name.split(".")[:-1][:depth]) or name
            squares[layer] = squares.get(layer, 0.0) + float(grad.double().square().sum())
        if len(squares) <= SHOWN:
            break
    return {name: math.sqrt(x) if math.isfinite(x) else x for name, x in squares.items()}


def _update(method: Method) -> Begins | None:
    """The first weight that the update has made something else than a number."""
    for name, parameter in method.named_parameters():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            return Begins("update", name, "weight", bad, parameter.numel())
    return None


# -- what to do --


def _largest(method: Method) -> tuple[str, float]:
    """The weight of the largest magnitude; nan if one isn't a number."""
    named = [(name, float(p.detach().abs().max())) for name, p in method.named_parameters() if p.numel()]
    return max(named, key=lambda one: math.inf if math.isnan(one[1]) else one[1], default=("none", 0.0))


def _bad_rows(rows: Taken, kept: KeptStep) -> tuple[str, ...]:
    """Rows of the data with values that are not finite or huge."""
    told = []
    for name, value in rows.items():
        for i, one in enumerate(value):
            if one.is_floating_point() and one.numel():
                most = float(one.double().abs().max())
                if not most < LARGE:
                    told.append(f"{printable(name)} of training sample {kept.indices[i]:,} reaches {most:.3g}")
    return tuple(told[:5])


def _way_out(
    begins: Begins | None, rows: tuple[str, ...], largest: tuple[str, float], exact: bool, recipe: Recipe
) -> str:
    """What to try; ``exact``: whether the step is finite in full precision."""
    if rows:
        return "What to do: correct these samples or leave them out of the data, then train again with --fresh."
    if begins is None:
        return "What to do: run the same command again; it goes on from the last checkpoint."
    rate = recipe.settings["lr"].value if "lr" in recipe.settings else None
    smaller = f"--lr {rate / 10:.2g} or less" if isinstance(rate, int | float) else "a smaller learning rate"
    grown = f"weights have grown to {largest[1]:.3g}: " if not largest[1] < LARGE else ""
    return f"What to do: {grown}{'--precision 32-true, or ' if exact and not grown else ''}{smaller}, with --fresh."


def _same(loss: float, recorded: str) -> bool:
    try:
        before = float(recorded)
    except ValueError:
        return False
    return loss == before or (math.isnan(loss) and math.isnan(before))
