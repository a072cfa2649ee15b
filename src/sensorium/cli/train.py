"""`sensorium train NAME`: the recipe's parameters and the run's, as one typed function a system.

The command line reads signatures, so a system's command is a function whose signature is its recipe's keyword
parameters followed by the options of a run. The recipe's first eight are shown first, the rest below.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

from cyclopts import App, Parameter

from sensorium.base.words import counted
from sensorium.catalogue import resolve, systems
from sensorium.cli.shared import FURTHER, RUN, SYSTEM, RunFlags, console, whole
from sensorium.runs.options import RunOptions

FIRST = 8  # of a recipe's parameters
TRAIN_HELP = """Train one system: sensorium train SYSTEM --data DIR --budget 10m

The same command again resumes a stopped run exactly, and returns at once if it has finished.
A recipe of your own needs no registration: sensorium train --recipe mine.py:fn --data DIR
"""

train_app = App(name="train", help=TRAIN_HELP, help_format="plaintext")
for _system in systems():
    train_app.command(
        f"sensorium.cli.train:train_{_system.name}", name=_system.name, help=f"{_system.title} ({_system.paper})"
    )


def _run(*, run: RunFlags = RunOptions(), judge: Annotated[bool, Parameter(group=RUN)] = False) -> None:
    """Signature only."""


def train_command(recipe: str) -> Callable[..., None]:
    """The command of a system by its name, or of ``FILE.py:FUNCTION``, which is recorded as the run's recipe."""
    function = resolve(recipe)
    hints = {**get_type_hints(function), **get_type_hints(_run, include_extras=True)}
    own = list(inspect.signature(function).parameters.values())[1:]
    for i, parameter in enumerate(own):
        group = Parameter(group=SYSTEM if i < FIRST else FURTHER)
        hints[parameter.name] = Annotated[whole(hints[parameter.name]), group]  # type: ignore[valid-type]
    common = list(inspect.signature(_run).parameters.values())

    def command(**values: Any) -> None:
        options, judge = values.pop("run", RunOptions()), values.pop("judge", False)
        defaults = {p.name: p.default for p in own}
        _show_run(recipe, options, {k: v for k, v in values.items() if v != defaults[k]}, judge=judge)

    command.__name__ = function.__name__
    parameters = [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in own + common]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: hints[p.name] for p in own + common}
    doc = inspect.cleandoc(function.__doc__ or "")
    if "Args:\n" not in doc:
        doc += "\n\nArgs:"
    command.__doc__ = doc + "\n    judge: evaluate the run afterward, like `sensorium evaluate`.\n"
    return command


def _show_run(name: str, options: RunOptions, settings: dict[str, Any], *, judge: bool) -> None:
    """Train and print the outcome."""
    from sensorium.data.log import tell
    from sensorium.judge.score import lines, numbers
    from sensorium.runs.train import train_with
    from sensorium.training.track import add_scores

    run = train_with(name, options, settings)
    if not run.finished:
        raise KeyboardInterrupt
    o = run.outcome
    console.print(
        f"{run.name}: {counted(o.steps, 'step')}, {o.seen:,} {o.unit} in {o.seconds:.0f} s ({o.per_second:,.0f} {o.unit}/s), {o.status}"
    )
    for note in o.notes if options.quiet else ():  # else they were said as they came up
        console.print(f"  note: {note}")
    console.print(f"  {run.folder}/model.safetensors")
    if judge:
        judged = run.judge(progress=not options.quiet)
        if options.track:
            add_scores(options.track, run.folder, numbers(judged.scores))
        console.print(lines(judged.scores))
        tell(judged.notes)


def __getattr__(name: str) -> Callable[..., None]:
    """``sensorium.cli.train.train_NAME``: built when the command line asks for it."""
    if name.startswith("train_"):
        return train_command(name.removeprefix("train_"))
    raise AttributeError(name)


COMMANDS = {"train": train_app}
