"""The commands that hold systems against each other, and that look at what would be trained."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sensorium.catalogue import starters
from sensorium.cli.shared import AblationFlags, CommonFlags, Json, JudgingFlags, RunFlags, console
from sensorium.errors import SensoriumError
from sensorium.runs.options import AblationOptions, Common, Judging, RunOptions

if TYPE_CHECKING:
    from sensorium.runs.results import Results


def demo(*, out: Path = Path("sensorium-demo"), budget: str = "30s", images: int = 2000, quiet: bool = False) -> None:
    """The main job on the built-in scenes, in a few minutes: compare the systems to start with, write the report.

    Example: sensorium demo --budget 2m

    Args:
        out: folder of the runs and of report.html.
        budget: training time of each method.
        images: how many scenes to draw.
        quiet: no progress bars.
    """
    run = RunOptions(data=f"scenes:{images}", budget=budget, out=out, quiet=quiet)
    compare(run=run, judging=Judging(labels="5%,100%", label_seeds=2, tune_steps=30))


def compare(
    *methods: str,
    run: RunFlags = RunOptions(),
    judging: JudgingFlags = Judging(),
    backbone: str | None = None,
    jobs: int = 1,
) -> None:
    """Train several systems on the same data under the same budget, judge them alike, and write one report.

    Example: sensorium compare mae simclr dino supervised --data DIR --budget 10m --labels 1%,10%,100%

    Systems that learn from the same kind of data can be compared: language models in bits per byte, detectors in
    average precision, generators by their samples. A finished run is not run again, a stopped one goes on, a failed one
    does not lose the others. The report is OUT/report.html; OUT is sensorium-compare if left out.

    Args:
        methods: names of systems (`sensorium list`), or recipes FILE.py:FUNCTION; settings may follow: causal_lm,width=64,experts=4. The systems to start with if left out.
        backbone: a name or a checkpoint, for every method; by default what suits method and machine.
        jobs: how many methods to train at once.
    """
    from sensorium.runs.compare import compare_all

    _show(compare_all(methods or starters(), run, judging, backbone=backbone, jobs=jobs), "method")


def ablate(system: str, *, vary: str, run: AblationFlags = AblationOptions(), seeds: int = 3, jobs: int = 1) -> None:
    """Vary one part of a system, all else equal, and see what it does: trained with several seeds, judged alike.

    Example: sensorium ablate causal_lm --vary positions=rope,alibi,t5,none --data book.txt --budget 3m

    Any setting of a system can be varied (`sensorium train SYSTEM --help` lists them). The report has the mean and spread
    over seeds, quality against time and samples, and for text also quality, speed and memory at lengths beyond the
    trained one. A finished run is not run again. The report is OUT/report.html; OUT is sensorium-ablate if left out.

    Args:
        system: its name, settings that all runs share may follow: causal_lm,width=64.
        vary: SETTING=VALUE,VALUE,...
        seeds: how many times each value is trained; --seed is the first.
        jobs: how many values to train at once; a budget in time then buys fewer steps.
    """
    from sensorium.runs.ablate import ablate_with

    _show(ablate_with(system, vary, run, seeds=seeds, jobs=jobs), "run")


def _show(found: tuple[Results, Path], what: str) -> None:
    """A comparison's table and verdict, and where its report is; an error where nothing finished."""
    from sensorium.report.table import results_table

    results, folder = found
    console.print(results_table(results))
    console.print(results.verdict)
    console.print(f"Report: {(folder / 'report.html').resolve()}")
    if not results.finished:
        raise SensoriumError(f"no {what} finished; the report says why.")


def evaluate(run: Path, *, judging: JudgingFlags = Judging(), as_json: Json = False) -> None:
    """Judge a finished run by the measures of its field, beside simple baselines.

    Example: sensorium evaluate sensorium-runs/mae --labels 1%,100%

    Args:
        run: folder of a run.
        as_json: print JSON.
    """
    from sensorium.base.records import encode
    from sensorium.judge.score import lines
    from sensorium.runs.run import Run

    loaded = Run(run)
    found = loaded.judge(**asdict(judging), progress=not as_json)
    print(json.dumps(encode(found), indent=1) if as_json else lines(found.scores))


def signal(system: str, *, run: CommonFlags = Common(), steps: int = 20) -> None:
    """Plot by depth what a system makes of its signal: activations, gradients and attention, before and after a few steps.

    Example: sensorium signal causal_lm,depth=12 --data book.txt --steps 20 --out signal.html

    A missing 1/sqrt(d) or weights that begin too large or too small show here in a minute. Two sentences say what is
    wrong; the numbers are in signal.json beside the page OUT, signal.html if left out.

    Args:
        system: its name or FILE.py:FUNCTION, settings may follow: causal_lm,width=64.
        steps: between the two measures; the schedule runs through in as many.
    """
    from sensorium.runs.compare import parse_method
    from sensorium.runs.signal import signal_of

    name, settings = parse_method(system)
    found, page = signal_of(name, run, settings, steps=steps)
    for line in found["diagnosis"]:
        console.print(line)
    console.print(f"Report: {page.resolve()}")


COMMANDS = {
    "demo": demo,
    "compare": compare,
    "ablate": ablate,
    "evaluate": evaluate,
    "signal": signal,
}
