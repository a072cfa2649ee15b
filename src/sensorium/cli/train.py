"""`sensorium train NAME`: the recipe's parameters and the run's, as one typed function a system.

The command line reads signatures, so a system's command is a function whose signature is its recipe's keyword
parameters followed by those of :func:`sensorium.runs.train.train`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

from sensorium.catalogue import resolve

RUN_HELP = """
    data: a folder, file or the name of a built-in set ('scenes', 'digits'); `sensorium data PATH` says what is in it.
    test: the test set, where it is not inside `data`.
    budget: 10m, 90s, 2h, 500steps, 100000images or 20epochs.
    out: the run's folder; the same command again resumes or returns it. Default: sensorium-runs/NAME.
    seed: of weights, order and augmentation.
    devices: how many processes or GPUs share the batch.
    strategy: auto, ddp or fsdp.
    precision: auto, 32-true or bf16-mixed.
    accumulate: parts into which a batch is split to save memory.
    image_size: side in pixels at which to train.
    limit: use only the first N pictures.
    fresh: forget what is in the run's folder and start anew.
    judge: judge the run afterwards, as `sensorium evaluate` does.
    quiet: no progress bar.
"""


def _run(
    *,
    data: str = "scenes",
    test: str | None = None,
    budget: str = "10m",
    out: Path | None = None,
    seed: int = 0,
    devices: int = 1,
    strategy: str = "auto",
    precision: str = "auto",
    accumulate: int = 1,
    image_size: int | None = None,
    limit: int | None = None,
    fresh: bool = False,
    judge: bool = False,
    quiet: bool = False,
) -> None:
    """Signature only."""


def train_command(recipe: str) -> Callable[..., None]:
    """The command of a system by its name, or of ``FILE.py:FUNCTION``: what a run notes as its recipe."""
    function = resolve(recipe)
    hints = {**get_type_hints(function), **get_type_hints(_run)}
    own = list(inspect.signature(function).parameters.values())[1:]
    common = list(inspect.signature(_run).parameters.values())

    def command(**values: Any) -> None:
        judge, quiet = values.pop("judge", False), values.pop("quiet", False)
        defaults = {p.name: p.default for p in own}
        settings = {key: values.pop(key) for key in defaults if key in values}
        changed = {key: value for key, value in settings.items() if value != defaults[key]}
        _show_run(recipe, judge=judge, progress=not quiet, **values, **changed)

    command.__name__ = function.__name__
    parameters = [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in own + common]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: hints[p.name] for p in own + common}
    doc = inspect.cleandoc(function.__doc__ or "")
    if "Args:\n" not in doc:
        doc += "\n\nArgs:"
    command.__doc__ = doc + RUN_HELP
    return command


def _show_run(name: str, *, judge: bool, progress: bool, **arguments: Any) -> None:
    """Train and print what came of it."""
    from rich.console import Console

    from sensorium.judge.score import lines
    from sensorium.runs.train import train

    console = Console(width=None if sys.stdout.isatty() else 160)
    run = train(name, progress=progress, **arguments)
    if not run.finished:
        raise KeyboardInterrupt
    o = run.outcome
    console.print(
        f"{run.name}: {o['steps']:,} steps, {o['images_seen']:,} images in {o['seconds']:.0f} s ({o['images_per_second']:.0f} images/s), {o['status']}"
    )
    for note in o.get("notes", []):
        console.print(f"  note: {note}")
    console.print(f"  {run.folder}/model.safetensors")
    if judge:
        console.print(lines(run.judge(progress=progress).scores), markup=False, highlight=False)


def __getattr__(name: str) -> Callable[..., None]:
    """``sensorium.cli.train.train_mae``: built when the command line asks for it."""
    if name.startswith("train_"):
        return train_command(name.removeprefix("train_"))
    raise AttributeError(name)
