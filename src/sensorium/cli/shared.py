"""Shared by the groups of commands: the terminal, and how options become flags."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Group, Parameter

from sensorium.base.terminal import terminal
from sensorium.runs.options import AblationOptions, Common, Judging, RunOptions

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
