"""The commands that compare and evaluate systems, and that inspect a network before training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sensorium.base.whole import Positive, Seed
from sensorium.base.words import counted
from sensorium.catalogue import starters
from sensorium.cli.shared import AblationFlags, CommonFlags, Json, JudgingFlags, RunFlags, console, opens_runs
from sensorium.errors import SensoriumError
from sensorium.runs.options import AblationOptions, Common, Judging, RunOptions

if TYPE_CHECKING:
    from sensorium.runs.results import Results


def demo(
    *,
    out: Path = Path("sensorium-demo"),
    budget: str = "40s",
    images: Positive = 2000,
    seed: Seed = 0,
    quiet: bool = False,
) -> None:
    """Compare three systems on the built-in shapes in under four minutes, and write the report.

    Example: sensorium demo --budget 2m

    Args:
        out: folder of the runs and of report.html.
        budget: training time of each method.
        images: number of pictures to generate.
        seed: of the training; the pictures are always the same.
        quiet: no progress bars.
    """
    run = RunOptions(data=f"shapes:{images}", budget=budget, out=out, seed=seed, quiet=quiet)
    judging = Judging(labels="5%,100%", label_seeds=2, finetune=False)
    compare(*starters(quick=True), run=run, judging=judging)
    console.print(f"Try the runs in a browser:           sensorium play {out}")
    console.print(
        f"The same on a folder of your own:    sensorium compare {' '.join(starters())} --data DIR --budget 10m"
    )


def compare(
    *methods: str,
    run: RunFlags = RunOptions(),
    judging: JudgingFlags = Judging(),
    backbone: str | None = None,
    jobs: Positive = 1,
    seeds: Positive = 1,
    every: Annotated[bool, Parameter(name="--all", negative="")] = False,
    search: Annotated[bool, Parameter(negative="")] = False,
    settings: Positive = 1,
) -> None:
    """Train several systems on the same data under the same budget, judge them alike, and write one report.

    Example: sensorium compare mae simclr dino supervised --data DIR --budget 10m --labels 1%,10%,100%

    Example: sensorium compare --all --search --data DIR --budget 60m

    Example: sensorium compare simclr dino --search --settings 6 --data DIR --budget 60m

    Systems that learn from the same kind of data can be compared: language models in bits per byte, detectors in
    average precision, generators by their samples. A finished run is not repeated, a stopped one is resumed, a failed
    one does not affect the others. The report is OUT/report.html; OUT is sensorium-compare by default.

    Args:
        methods: names of systems (`sensorium list`), or recipes FILE.py:FUNCTION; settings may follow:
            causal_lm,width=64,experts=4. By default the systems that `sensorium demo` compares.
        backbone: a name or a checkpoint, for every method; by default chosen by method and machine.
        jobs: how many methods to train at once.
        seeds: how often to train each method; --seed is the first. With 3 or more the verdict knows how much
            trainings differ by chance.
        every: all systems of the same family that need no other run, and no labels unless the first method does: of the
            first method given, else of the default. Others may be named beside it: compare supcon --all.
        search: spend --budget on all methods together. Each is trained for a short time; the best third goes on for
            three times longer, and so on; the report says what was stopped, when and why.
        settings: with --search, how many settings of each method to try: its defaults, and the rest drawn from the ranges that
            its recipe declares (learning rate, temperature, crops ...). Settings that you give are kept; --seed decides the
            draws. The verdict says which settings won, and a command that trains with them again is printed.
    """
    from sensorium.runs.compare import alike, compare_all
    from sensorium.runs.search import search_all

    chosen = methods or starters()
    chosen = (*chosen, *(name for name in alike(chosen[0]) if name not in chosen)) if every else chosen
    if settings > 1 and not search:
        raise SensoriumError(
            f"--settings {settings}: only a search tries several; add --search, or vary one: sensorium ablate."
        )
    if search:
        for flag, number in (("jobs", jobs), ("seeds", seeds)):
            if number > 1:
                raise SensoriumError(
                    f"--search and --{flag} {number}: a search trains one run at a time, with one seed."
                )
        _show(search_all(chosen, run, judging, backbone=backbone, settings=settings), "method")
        return
    _show(compare_all(chosen, run, judging, backbone=backbone, jobs=jobs, seeds=seeds), "method")


def ablate(
    system: str, *, vary: str, run: AblationFlags = AblationOptions(), seeds: Positive = 3, jobs: Positive = 1
) -> None:
    """Vary one part of a system, all else equal, and compare the results over several seeds.

    Example: sensorium ablate causal_lm --vary positions=rope,alibi,t5,none --data book.txt --budget 3m

    Any setting of a system can be varied (`sensorium train SYSTEM --help` lists them). The report has the mean and
    standard error over seeds, quality against time and samples, and for text also quality, speed and memory beyond the
    training length. A finished run is not repeated. The report is OUT/report.html; OUT is sensorium-ablate by default.

    Args:
        system: its name; settings shared by all runs may follow: causal_lm,width=64.
        vary: SETTING=VALUE,VALUE,...
        seeds: how many times each value is trained; --seed is the first.
        jobs: how many values to train at once; a time budget then allows fewer steps.
    """
    from sensorium.runs.ablate import ablate_with

    _show(ablate_with(system, vary, run, seeds=seeds, jobs=jobs), "run")


def _show(found: tuple[Results, Path], what: str) -> None:
    """A comparison's table, verdict and path of the report; an error if no run finished."""
    from sensorium.report.table import results_table

    results, folder = found
    console.print(results_table(results))
    console.print(results.verdict)
    if results.again:
        console.print(f"Train it again, in one go: {results.again}", soft_wrap=True)
    console.print(f"Report: {(folder / 'report.html').resolve()}")
    for suspects, what in (
        (results.suspects, "training label"), (results.box_suspects, "training box"), (results.caption_suspects, "training caption"),
    ):  # fmt: skip
        if suspects is not None and suspects.clear:
            told = counted(suspects.clear, what)
            console.print(f"Look at {told}, in clear doubt: see {folder / suspects.file}, the most doubtful first")
    if results.model is not None:
        console.print(f"Its classifier, for new pictures: sensorium predict {folder / results.model.folder} PICTURES")
    if not results.finished:
        raise SensoriumError(f"no {what} finished; the report says why.")


def evaluate(
    run: Path,
    *,
    data: str | None = None,
    test: str | None = None,
    judging: JudgingFlags = Judging(),
    as_json: Json = False,
) -> None:
    """Evaluate a finished run by the standard metrics of its task, with simple baselines.

    Example: sensorium evaluate sensorium-runs/mae --labels 1%,100%

    The data that it was trained on are read from the path that run.json names, as data and nothing else. Scores on
    another set are kept in RUN/evaluated, beside the run's own.

    Args:
        run: folder of a run.
        data: another set to evaluate on (its test part, or all of it), or where the run's data are now.
        test: another test set.
        as_json: print JSON.
    """
    from sensorium.base.records import encode
    from sensorium.data.log import tell
    from sensorium.judge.evaluator import place_beside
    from sensorium.judge.score import lines
    from sensorium.runs.run import Run

    loaded = Run(run)
    ready, notes = (None, []) if data is None and test is None else loaded.elsewhere(data, test)
    tell(notes)
    found = loaded.judge(ready, **asdict(judging), progress=not as_json)
    print(json.dumps(encode(found), indent=1) if as_json else lines(found.scores))
    tell(note for note in found.notes if note not in notes)
    if ready is not None and not as_json and (place := place_beside(run, ready)).is_file() and not loaded.owns(ready):
        console.print(f"kept in {place}; the run's own scores are in {run / 'evaluation.json'}")


def signal(system: str, *, run: CommonFlags = Common(), steps: Positive = 20) -> None:
    """Plot activations, gradients and attention by depth, at initialization and after a few steps.

    Example: sensorium signal causal_lm,depth=12 --data book.txt --steps 20 --out signal

    A missing 1/sqrt(d) or initial weights that are too large or too small show within a minute. Two sentences name what
    is wrong. Of a contrastive system a third says which bound of mutual information its loss is, and how near it is to the
    largest that its number of candidates allows. The page is OUT/signal.html, the numbers are in signal.json beside it; OUT
    is sensorium-signal by default.

    Args:
        system: its name or FILE.py:FUNCTION; settings may follow: causal_lm,width=64.
        steps: training steps between the two measurements; the whole schedule runs in them.
    """
    from sensorium.runs.compare import parse_method
    from sensorium.runs.signal import signal_of

    name, settings = parse_method(system)
    found, page = signal_of(name, run, settings, steps=steps)
    for line in found["diagnosis"]:
        console.print(line)
    if found["information"]:
        console.print(found["information"]["said"])
    console.print(f"Report: {page.resolve()}")


def rates(system: str, *, run: CommonFlags = Common(), steps: Positive = 200) -> None:
    """Find learning rates to try: train a minute or two while the rate rises, and see where the loss falls.

    Example: sensorium rates simclr --data DIR

    The range test of Smith (2015): the rate rises from 1e-6 to 1, without the recipe's warm-up, until the loss diverges. Told are
    the rate of the steepest fall and a tenth of that of the least loss, beside the default, or "Not sure" where the loss is flat
    or noisy. It is a test of the first steps, and of the loss alone: `sensorium ablate SYSTEM --vary lr=A,B` says which rate ends
    better. No run is changed. The page is OUT/rates.html, the numbers are in rates.json beside it; OUT is sensorium-rates by
    default.

    Args:
        system: its name or FILE.py:FUNCTION; settings may follow: simclr,batch_size=256.
        steps: training steps in which the rate rises; fewer where they are slow.
    """
    from sensorium.runs.compare import parse_method
    from sensorium.runs.rates import compared, rates_of

    name, settings = parse_method(system)
    found, page = rates_of(name, run, settings, steps=steps)
    for line in found["said"]:
        console.print(line)
    if command := compared(found, system):
        console.print(f"Which ends better: {command}", soft_wrap=True)
    console.print(f"Report: {page.resolve()}")


def samplers(
    run: Path,
    *,
    samplers: str | None = None,
    evaluations: str | None = None,
    n: Positive = 1000,
    out: Path | None = None,
    quiet: bool = False,
) -> None:
    """Compare the samplers of a trained diffusion or flow: the quality of their pictures over evaluations of the network, and time.

    Example: sensorium samplers sensorium-runs/edm --samplers euler,heun --evaluations 6,12,25

    Each draws --n pictures from the same noise with about each number of evaluations: euler takes one a step, heun two. Quality is the
    Fréchet distance to training pictures, as `sensorium evaluate` measures it; lower is better. Told is the cheapest whose distance is
    within error of the least, and how to draw with it. Ctrl-C ends with what was measured so far, the fewest evaluations first. The page,
    with pictures side by side, is OUT/samplers.html, the numbers are in samplers.json beside it; OUT is sensorium-samplers by default.

    Args:
        run: folder of a run that draws pictures in steps (ddpm, edm, consistency, score_sde, rectified_flow, latent_diffusion).
        samplers: names, by commas; by default all of the run's: of a diffusion euler (DDIM), heun, ancestral (DDPM), dpm, dpm-sde, plms, langevin.
        evaluations: of the network for each picture, numbers by commas; 6,12,25,50 and as many as the run's own default takes by default.
        n: pictures of each; more give a smaller error.
        out: folder for the page, the numbers and the pictures.
        quiet: no progress bar.
    """
    from sensorium.report.samplers import samplers_table
    from sensorium.use.samplers import samplers_of

    found, page = samplers_of(run, samplers=samplers, evaluations=evaluations, n=n, out=out, progress=not quiet)
    console.print(samplers_table(found))
    console.print(found["said"])
    console.print(f"Draw with it: {found['command']}", soft_wrap=True)
    console.print(f"Report: {page.resolve()}")
    if found["stopped"]:
        raise KeyboardInterrupt


COMMANDS = {
    "demo": demo,
    "compare": compare,
    "ablate": ablate,
    "evaluate": opens_runs(evaluate),
    "signal": signal,
    "rates": rates,
    "samplers": opens_runs(samplers),
}
