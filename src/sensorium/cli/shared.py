"""Shared by the groups of commands: the terminal, and how options become flags."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_args, get_type_hints

from cyclopts import Group, Parameter

from sensorium.base.terminal import terminal
from sensorium.base.whole import Whole
from sensorium.catalogue import allow
from sensorium.runs.options import TRUSTED, AblationOptions, Common, Judging, RunOptions, Trust

# Without a terminal, a wide table is more useful than one cut to 80 columns.
console = terminal(stderr=False, width=None if sys.stdout.isatty() else 160)

# Flags in the order in which `--help` shows them.
SYSTEM = Group("The system", sort_key=1)
FURTHER = Group("The system, further", sort_key=2)
RUN = Group("The run", sort_key=3)
JUDGED = Group("Judging", sort_key=4)

CommonFlags = Annotated[Common, Parameter(name="*", group=RUN)]
RunFlags = Annotated[RunOptions, Parameter(name="*", group=RUN)]
AblationFlags = Annotated[AblationOptions, Parameter(name="*", group=RUN)]
JudgingFlags = Annotated[Judging, Parameter(name="*", group=JUDGED)]
Json = Annotated[bool, Parameter(name="--json")]


def opens_runs(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with the option ``--trust FILE.py:FUNCTION``, the only way to execute what a run names."""

    @wraps(command)
    def trusting(*arguments: Any, trust: tuple[str, ...] = (), **named: Any) -> None:
        for recipe in trust:
            allow(recipe)
        command(*arguments, **named)

    hint = Annotated[Trust, Parameter(help=TRUSTED)]
    option = inspect.Parameter("trust", inspect.Parameter.KEYWORD_ONLY, default=(), annotation=hint)
    hints = get_type_hints(command, include_extras=True)
    known = [p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values()]
    trusting.__signature__ = inspect.Signature([*known, option])  # type: ignore[attr-defined]
    trusting.__annotations__ = {p.name: p.annotation for p in (*known, option)}
    return trusting


def whole(hint: Any) -> Any:
    """A type with ``Whole`` for ``int``, alone or beside None: a number like 1.5 is refused, not rounded."""
    return Annotated[hint, *get_args(Whole)[1:]] if hint in (int, int | None) else hint
