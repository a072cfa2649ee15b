"""The command `sensorium`. Nothing heavy is imported until a command runs, so help is quick."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from sensorium import __version__
from sensorium.catalogue import NETWORKS, allow, find, systems, tables
from sensorium.cli import use as cli_use
from sensorium.errors import SensoriumError

# A table cut to 80 columns tells nobody anything: where there is no terminal to measure, there is room.
console = Console(width=None if sys.stdout.isatty() else 160)

app = App(
    name="sensorium",
    suppress_keyboard_interrupt=False,  # `main` says how to go on
    version=__version__,
    help="""Which method learns best from my images?

Start with `sensorium demo`, or with your own folder:

    sensorium data DIR
    sensorium compare mae simclr dino supervised --data DIR --budget 10m --labels 1%,10%,100%
""",
    help_format="plaintext",
)

train_app = App(
    name="train",
    help="""Train one system: sensorium train mae --data DIR --budget 10m

The same command again resumes a stopped run, bit for bit, and returns at once when it has finished.
A recipe of your own needs no registration: sensorium train --recipe mine.py:fn --data DIR
""",
    help_format="plaintext",
)
for system in systems():
    train_app.command(
        f"sensorium.cli.train:train_{system.name}", name=system.name, help=f"{system.title} ({system.paper})"
    )
app.command(train_app)


@app.command
def demo(*, out: Path = Path("sensorium-demo"), budget: str = "30s", images: int = 2000, quiet: bool = False) -> None:
    """The main job on the built-in scenes, in a few minutes: compare MAE, SimCLR, DINO and supervised, write the report.

    Example: sensorium demo --budget 2m

    Args:
        out: folder of the runs and of report.html.
        budget: training time of each method.
        images: how many scenes to draw.
        quiet: no progress bars.
    """
    compare(
        "mae",
        "simclr",
        "dino",
        "supervised",
        data=f"scenes:{images}",
        budget=budget,
        labels="5%,100%",
        label_seeds=2,
        tune_steps=30,
        out=out,
        quiet=quiet,
    )


@app.command
def data(
    path: str,
    *,
    test: str | None = None,
    limit: int | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Say what is in a data set and what is wrong with it: counts, sizes, imbalance, duplicates, overlap, broken files.

    Example: sensorium data photos/ --json

    Args:
        path: a folder of images, .npz, IDX, CSV, Parquet, tars, or 'scenes' or 'digits'.
        test: a second path, the test set.
        limit: look at the first N pictures only.
        as_json: print JSON.
    """
    from sensorium.base.terminal import bar
    from sensorium.data.images.diagnose import diagnose
    from sensorium.data.images.open import open_data

    opened = open_data(path, test=test, limit=limit)
    with bar("looking", not as_json) as advance:
        found = diagnose(opened, progress=advance)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        console.print(found.render())


@app.command(name="list")
def list_systems(*, as_json: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """Every system: paper, family, what it offers, what loads and exports, what it was held to.

    Example: sensorium list --json

    Args:
        as_json: print JSON.
    """
    from dataclasses import asdict

    if as_json:
        print(
            json.dumps(
                {"systems": [asdict(s) for s in systems()], "backbones": [asdict(n) for n in NETWORKS]}, indent=1
            )
        )
        return
    for table in tables():
        console.print(table)


@app.command
def compare(
    *methods: str,
    data: str = "scenes",
    test: str | None = None,
    budget: str = "10m",
    labels: str = "1%,10%,100%",
    out: Path = Path("sensorium-compare"),
    seed: int = 0,
    label_seeds: int = 3,
    backbone: str | None = None,
    jobs: int = 1,
    devices: int = 1,
    precision: str = "auto",
    image_size: int | None = None,
    limit: int | None = None,
    finetune: bool = True,
    tune_steps: int | None = None,
    inception: Path | None = None,
    quiet: bool = False,
) -> None:
    """Train several systems on the same data under the same budget, judge them alike, and write one report.

    Example: sensorium compare mae simclr dino supervised --data DIR --budget 10m --labels 1%,10%,100%

    Systems that learn from the same kind of data can be compared: language models in bits per byte, detectors in
    average precision, generators by their samples. A finished run is not run again, a stopped one goes on, a failed one
    does not lose the others.

    Args:
        methods: names of systems (`sensorium list`), or recipes FILE.py:FUNCTION; settings may follow: causal_lm,width=64,experts=4.
        data: a folder, file or the name of a built-in set ('scenes', 'digits').
        test: the test set, where it is not inside `data`.
        budget: of each method: 10m, 90s, 2h, 500steps, 100000images or 20epochs.
        labels: shares of the labels at which to judge.
        out: folder of the runs, report.html and results.json.
        seed: of weights, order and augmentation.
        label_seeds: how many subsets of labels to draw at each share.
        backbone: a name or a checkpoint, for every method; by default what suits method and machine.
        jobs: how many methods to train at once.
        devices: how many processes or GPUs each method gets.
        precision: auto, 32-true or bf16-mixed.
        image_size: side in pixels at which to train.
        limit: use only the first N pictures.
        finetune: also judge by fine-tuning (the longest part of judging).
        tune_steps: most steps of one fine-tuning; 250 on a CPU and 2000 on a GPU if left out.
        inception: weights in whose features drawn pictures are judged, see `sensorium evaluate --help`.
        quiet: no progress bars.
    """
    from sensorium.report.table import results_table
    from sensorium.runs.compare import compare as run_compare

    results = run_compare(
        methods or ("mae", "simclr", "dino", "supervised"),
        data,
        test=test,
        budget=budget,
        labels=labels,
        out=out,
        seed=seed,
        label_seeds=label_seeds,
        backbone=backbone,
        jobs=jobs,
        devices=devices,
        precision=precision,
        image_size=image_size,
        limit=limit,
        finetune=finetune,
        tune_steps=tune_steps,
        inception=inception,
        progress=not quiet,
    )
    console.print(results_table(results))
    console.print(results.verdict)
    console.print(f"Report: {(out / 'report.html').resolve()}")
    if not results.finished:
        raise SensoriumError("no method finished; the report says why.")


@app.command
def ablate(
    system: str,
    *,
    vary: str,
    data: str,
    test: str | None = None,
    budget: str = "3m",
    seeds: int = 3,
    out: Path = Path("sensorium-ablate"),
    precision: str = "auto",
    image_size: int | None = None,
    limit: int | None = None,
    jobs: int = 1,
    quiet: bool = False,
) -> None:
    """Vary one part of a system, all else equal, and see what it does: trained with several seeds, judged alike.

    Example: sensorium ablate causal_lm --vary positions=rope,alibi,t5,none --data book.txt --budget 3m

    Any setting of a system can be varied (`sensorium train SYSTEM --help` lists them). The report has the mean and spread
    over seeds, quality against time and samples, and for text also quality, speed and memory at lengths beyond the
    trained one. A finished run is not run again.

    Args:
        system: its name, settings that all runs share may follow: causal_lm,width=64.
        vary: SETTING=VALUE,VALUE,...
        data: a folder, file or the name of a built-in set.
        test: the test set, where it is not inside `data`.
        budget: of each run: 3m, 90s, 500steps, 100000images.
        seeds: how many times each value is trained.
        out: folder of the runs, report.html and results.json.
        precision: auto, 32-true or bf16-mixed.
        image_size: side in pixels at which to train.
        limit: use only the first N pictures.
        jobs: how many values to train at once; a budget in time then buys fewer steps.
        quiet: no progress bars.
    """
    from sensorium.report.table import results_table
    from sensorium.runs.ablate import ablate as run_ablate

    results = run_ablate(
        system, vary, data, test=test, budget=budget, seeds=seeds, out=out, precision=precision,
        image_size=image_size, limit=limit, jobs=jobs, progress=not quiet,
    )  # fmt: skip
    console.print(results_table(results))
    console.print(results.verdict)
    console.print(f"Report: {(out / 'report.html').resolve()}")
    if not results.finished:
        raise SensoriumError("no run finished; the report says why.")


@app.command
def evaluate(
    run: Path,
    *,
    labels: str = "1%,10%,100%",
    label_seeds: int = 3,
    finetune: bool = True,
    tune_steps: int | None = None,
    inception: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Judge a finished run by the measures of its field, beside simple baselines.

    Example: sensorium evaluate sensorium-runs/mae --labels 1%,100%

    Args:
        run: folder of a run.
        labels: shares of the labels at which to judge.
        label_seeds: how many subsets of labels to draw at each share.
        finetune: also judge by fine-tuning.
        tune_steps: most steps of one fine-tuning; 250 on a CPU and 2000 on a GPU if left out.
        inception: pt_inception-2015-12-05-6726825d.pth, to measure samples by the published Fréchet distance; slow on
            a CPU. In the features of a classifier of the same data if left out.
        as_json: print JSON.
    """
    from sensorium.base.records import encode
    from sensorium.judge.score import lines
    from sensorium.runs.run import Run

    loaded = Run(run)
    found = loaded.judge(
        labels=labels,
        label_seeds=label_seeds,
        finetune=finetune,
        tune_steps=tune_steps,
        inception=inception,
        progress=not as_json,
    )
    print(json.dumps(encode(found), indent=1) if as_json else lines(found.scores))


for command in cli_use.COMMANDS:
    app.command(command)


@app.command
def doctor(*, as_json: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """Versions, device, precision, which attention path runs, what is missing and how to get it.

    Example: sensorium doctor

    Args:
        as_json: print JSON.
    """
    from sensorium.cli.doctor import examine, render

    found = examine()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        console.print(render(found))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: errors that people can mend are one line and exit code 1 (2 for a wrong command line)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C: what runs writes a checkpoint
    words = [word for word in words if word != "--debug"]
    try:
        _own_recipe(words)
        app(words, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        raise SystemExit(2) from None
    except SensoriumError as error:
        if debug:
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None
    except BrokenPipeError:  # what reads our output has seen enough: `sensorium watch ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        if debug:
            raise
        Console(stderr=True).print("stopped; the same command goes on from here.")
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        Console(stderr=True).print(
            f"[bold red]error:[/] {_escape(f'{type(error).__name__}: {error}')} (--debug shows where)",
            highlight=False,
            soft_wrap=True,
        )
        raise SystemExit(1) from None


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _own_recipe(words: list[str]) -> None:
    """`train --recipe FILE.py:FUNCTION`: its signature becomes a command like any other. Elsewhere `--recipe` says that
    runs of it may be opened, which executes the file."""
    if words[:1] != ["train"] and "--recipe" in words:
        at = words.index("--recipe")
        allow(_recipe_after(words, at))
        del words[at : at + 2]
        return
    if words[:1] != ["train"] or (len(words) > 1 and words[1].startswith("-") and "--recipe" not in words):
        return
    from sensorium.cli.train import train_command

    if len(words) > 1 and not words[1].startswith("-"):
        system = find(words[1])  # an unknown system is named, with the nearest, before flags are read
        del train_app[system.name]  # the line in the list of systems gives way to the recipe's own page
        train_app.command(train_command(system.name), name=system.name)
    if "--recipe" not in words:
        return
    at = words.index("--recipe")
    train_app.command(train_command(_recipe_after(words, at)), name="own-recipe")
    words[:] = ["train", "own-recipe", *words[1:at], *words[at + 2 :]]


def _recipe_after(words: list[str], at: int) -> str:
    if at + 1 >= len(words) or ".py:" not in words[at + 1]:
        raise SensoriumError("--recipe needs FILE.py:FUNCTION.")
    return words[at + 1]


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
