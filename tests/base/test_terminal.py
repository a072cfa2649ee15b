"""What a person sees while work goes on."""

import io
import time

from rich.console import Console

from sensorium.base import terminal as base
from sensorium.base.terminal import stages


def test_stages_are_a_line_each(capsys):
    with stages("run", True) as say:
        say("features", 0.1)
        say("features", 0.9)
        say("[red]probe")
    with stages("run", False) as say:
        say("nothing")
    assert capsys.readouterr().err == "run: features\nrun: [red]probe\n"


def test_a_stage_moves_on_a_terminal(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(base, "terminal", lambda: Console(file=out, force_terminal=True, width=60))
    with stages("run", True) as say:
        say("[b]features", 0.5)
        time.sleep(0.3)
    assert "run: [b]features, 50%" in out.getvalue()
